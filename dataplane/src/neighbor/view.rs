//! What the kernel knows of links, addresses and neighbours, as plain data: netlink messages mutate
//! it and it says what changed. No socket in here, so all of it is tested without a kernel.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BondMode, BondPortState, InfoBond, InfoBondPort, InfoData, InfoKind, InfoPortData, InfoVlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Mac;
use super::netlink::{NetlinkError, Requests};
use crate::verdict::PortId;

/// Marks the routes and neighbour entries that are ours, in the kernel's tables (`ip route show
/// proto 112`): what a former run left is recognised and cleaned.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);

/// A VLAN tag as it stands in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VlanTag {
    pub ethertype: u16,
    pub id: u16,
}

/// The tags of a frame, outermost first; two at most, as many as the box reads.
pub type VlanTags = [Option<VlanTag>; 2];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkEntry {
    pub(super) name: String,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// An 802.1Q or 802.1ad sub-interface: of whom, with which tag.
    pub(super) vlan: Option<(u32, VlanTag)>,
    pub(super) kind: Kind,
    /// The bond, bridge or team it is a member of.
    pub(super) master: Option<u32>,
    /// A member its bond does not use now.
    pub(super) standby: bool,
}

/// What a link is, as far as a port may be made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Bond(BondMode),
    /// Something over other interfaces, in words.
    Above(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NeighborEntry {
    pub(super) mac: Option<Mac>,
    /// The state says that the kernel itself would send there.
    pub(super) usable: bool,
    /// Set by an administrator: never replaced by a managed entry, which would lose that.
    pub(super) fixed: bool,
    pub(super) managed: bool,
    pub(super) ours: bool,
}

impl NeighborEntry {
    /// Nothing is left for us to do: the kernel or an administrator keeps the entry.
    pub(super) fn is_kept(&self) -> bool {
        self.fixed || self.managed
    }
}

/// A link's index and an address on it.
pub(super) type NeighborKey = (u32, IpAddr);

/// What a message changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// A link or an address: routes may have gone without a message of their own.
    Links,
    Neighbor(NeighborKey),
    /// Routes inside the prefix may lead elsewhere now.
    Routes(IpNet),
    /// Any route may.
    AllRoutes,
}

/// A VLAN the kernel is a member of on a port, by a sub-interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    pub port: PortId,
    pub tags: VlanTags,
    pub ifindex: u32,
}

/// The way out by a link: through which port, in which tags, from which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) port: PortId,
    pub(super) tags: VlanTags,
    pub(super) src: Mac,
    pub(super) mtu: u32,
    pub(super) up: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KernelView {
    pub(super) links: HashMap<u32, LinkEntry>,
    pub(super) addresses: HashMap<NeighborKey, IpNet>,
    pub(super) neighbors: HashMap<NeighborKey, NeighborEntry>,
}

impl KernelView {
    pub(super) fn apply(&mut self, message: &RouteNetlinkMessage) -> Change {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.new_link(link),
            RouteNetlinkMessage::DelLink(link) => self.del_link(link),
            RouteNetlinkMessage::NewAddress(address) => self.address(address, true),
            RouteNetlinkMessage::DelAddress(address) => self.address(address, false),
            RouteNetlinkMessage::NewNeighbour(neighbor) => self.neighbor(neighbor, true),
            RouteNetlinkMessage::DelNeighbour(neighbor) => self.neighbor(neighbor, false),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => changed_route(route),
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Change::AllRoutes,
            _ => Change::Nothing,
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Change {
        // Bridge ports are announced a second time in the bridge's family, with other attributes.
        if message.header.interface_family != AddressFamily::Unspec {
            return Change::Nothing;
        }
        let entry = read_link(message);
        let before = self.links.insert(message.header.index, entry);
        if before.as_ref() == self.links.get(&message.header.index) { Change::Nothing } else { Change::Links }
    }

    fn del_link(&mut self, message: &LinkMessage) -> Change {
        if message.header.interface_family != AddressFamily::Unspec {
            return Change::Nothing;
        }
        let index = message.header.index;
        self.addresses.retain(|key, _| key.0 != index);
        self.neighbors.retain(|key, _| key.0 != index);
        if self.links.remove(&index).is_some() { Change::Links } else { Change::Nothing }
    }

    fn address(&mut self, message: &AddressMessage, present: bool) -> Change {
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(value) => local = Some(*value),
                AddressAttribute::Address(value) => address = Some(*value),
                _ => {}
            }
        }
        // On point-to-point links `Address` is the peer's; `Local` is ours wherever it is given.
        let Some(own) = local.or(address) else { return Change::Nothing };
        let Ok(net) = IpNet::new(own, message.header.prefix_len) else { return Change::Nothing };
        let key = (message.header.index, own);
        let before = if present { self.addresses.insert(key, net) } else { self.addresses.remove(&key) };
        if before == present.then_some(net) { Change::Nothing } else { Change::Links }
    }

    fn neighbor(&mut self, message: &NeighbourMessage, present: bool) -> Change {
        let Some((address, entry)) = read_neighbor(message) else { return Change::Nothing };
        let key = (message.header.ifindex, address);
        let before = if present { self.neighbors.insert(key, entry) } else { self.neighbors.remove(&key) };
        if before == present.then_some(entry) { Change::Nothing } else { Change::Neighbor(key) }
    }

    /// Only the links, as they are now.
    pub(super) fn read_links(requests: &mut Requests) -> Result<Self, NetlinkError> {
        let mut view = Self::default();
        let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
        requests.dump("list links", &links, |message| {
            view.apply(&message);
            true
        })?;
        Ok(view)
    }

    /// Names of a bond's or bridge's members, in the order of their indices.
    pub(super) fn members(&self, master: u32) -> Vec<String> {
        let mut members: Vec<_> = self.links.iter().filter(|(_, link)| link.master == Some(master)).collect();
        members.sort_by_key(|(index, _)| **index);
        members.into_iter().map(|(_, link)| link.name.clone()).collect()
    }

    /// The members of bonds among `configured` that are up and no ports, each behind its bond.
    pub(super) fn unserved_members(&self, configured: &[String], ports: &[String]) -> Vec<(String, String)> {
        let bonds = self.links.iter().filter(|(_, link)| matches!(link.kind, Kind::Bond(_)));
        let bonds: HashMap<u32, &LinkEntry> =
            bonds.filter(|(_, bond)| configured.contains(&bond.name)).map(|(index, bond)| (*index, bond)).collect();
        let members = self.links.values().filter(|member| member.up && !ports.contains(&member.name));
        members.filter_map(|member| Some((bonds.get(&member.master?)?.name.clone(), member.name.clone()))).collect()
    }

    /// The bond an interface is a member of.
    pub(super) fn bond_of(&self, name: &str) -> Option<&str> {
        let master = self.links.get(&self.link_named(name)?.1.master?)?;
        matches!(master.kind, Kind::Bond(_)).then_some(master.name.as_str())
    }

    /// The port frames leave by that the kernel would give to this link, and whether they would get anywhere. Of
    /// a bond's members one that is in use; `spread` chooses among several.
    fn port_of(&self, index: u32, link: &LinkEntry, ports: &[String], spread: usize) -> Option<(PortId, bool)> {
        let port = |name: &str| {
            let at = ports.iter().position(|port| *port == *name)?;
            u8::try_from(at).ok().map(PortId)
        };
        if let Some(port) = port(&link.name) {
            return Some((port, true));
        }
        if !matches!(link.kind, Kind::Bond(_)) {
            return None;
        }
        let of_bond = self.links.iter().filter(|(_, member)| member.master == Some(index));
        let mut members: Vec<(PortId, bool)> =
            of_bond.filter_map(|(_, member)| Some((port(&member.name)?, member.up && !member.standby))).collect();
        members.sort_by_key(|(port, _)| port.0);
        let usable: Vec<_> = members.iter().filter(|(_, usable)| *usable).collect();
        match usable.len() {
            0 => members.first().copied(),
            count => usable.get(spread % count).map(|member| **member),
        }
    }

    /// The port a link belongs to, itself or by up to two VLAN sub-interfaces on top of it.
    pub(super) fn path(&self, ifindex: u32, ports: &[String]) -> Option<Path> {
        self.path_for(ifindex, ports, 0)
    }

    /// [`Self::path`] for one of many targets: bonds with several members in use spread them.
    pub(super) fn path_for(&self, ifindex: u32, ports: &[String], spread: usize) -> Option<Path> {
        let link = self.links.get(&ifindex)?;
        let mut tags = [None; 2];
        let mut below = link;
        let mut index = ifindex;
        let mut up = link.up;
        for depth in 0..=tags.len() {
            if let Some((port, usable)) = self.port_of(index, below, ports, spread) {
                return Some(Path { port, tags, src: link.mac?, mtu: link.mtu, up: up && usable });
            }
            let (parent, tag) = below.vlan?;
            if depth == tags.len() {
                return None;
            }
            // Going down, each link's tag is outside the ones found before.
            tags = [Some(tag), tags[0]];
            index = parent;
            below = self.links.get(&parent)?;
            up &= below.up;
        }
        None
    }

    /// The VLANs the kernel is a member of on the ports. Over a bond, on the member a packet would leave by.
    pub(super) fn vlans(&self, ports: &[String]) -> Vec<Vlan> {
        let tagged = self.links.iter().filter(|(_, link)| link.vlan.is_some());
        let vlan = |(index, _): (&u32, _)| {
            self.path(*index, ports).map(|path| Vlan { port: path.port, tags: path.tags, ifindex: *index })
        };
        let mut vlans: Vec<Vlan> = tagged.filter_map(vlan).collect();
        vlans.sort_by_key(|vlan| (vlan.port.0, vlan.tags.map(|tag| tag.map(|tag| (tag.ethertype, tag.id)))));
        vlans
    }

    pub(super) fn link_named(&self, name: &str) -> Option<(u32, &LinkEntry)> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, link)| (*index, link))
    }
}

fn changed_route(message: &RouteMessage) -> Change {
    // Cache entries of IPv6 (redirects, path MTU) are no routes.
    if message.header.flags.contains(netlink_packet_route::route::RouteFlags::Cloned) {
        return Change::Nothing;
    }
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return Change::Nothing,
    };
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => route_address(address),
        _ => None,
    });
    match IpNet::new(destination.unwrap_or(unspecified), message.header.destination_prefix_length) {
        Ok(net) => Change::Routes(net),
        Err(_) => Change::AllRoutes,
    }
}

pub(super) fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn read_link(message: &LinkMessage) -> LinkEntry {
    let flags = message.header.flags;
    let mut link = LinkEntry {
        name: String::new(),
        mac: None,
        mtu: 0,
        // Up by the administrator, and a carrier below.
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        vlan: None,
        kind: Kind::Plain,
        master: None,
        standby: false,
    };
    let mut parent = None;
    let mut tag = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::Controller(index) => link.master = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(infos) => {
                tag = vlan_tag(infos);
                link.kind = kind(infos);
                link.standby = is_standby(infos);
            }
            _ => {}
        }
    }
    link.vlan = parent.zip(tag);
    link
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Bond) => {
            let data = infos.iter().find_map(|info| match info {
                LinkInfo::Data(InfoData::Bond(bond)) => Some(bond),
                _ => None,
            });
            let mode = data.into_iter().flatten().find_map(|attribute| match attribute {
                InfoBond::Mode(mode) => Some(*mode),
                _ => None,
            });
            Kind::Bond(mode.unwrap_or_default())
        }
        Some(InfoKind::Bridge) => Kind::Above("a bridge"),
        Some(InfoKind::Team) => Kind::Above("a team"),
        Some(InfoKind::Vlan) => Kind::Above("a VLAN sub-interface"),
        _ => Kind::Plain,
    }
}

/// What the bonding driver says of a member: in active-backup all but one, with LACP those outside the aggregate.
fn is_standby(infos: &[LinkInfo]) -> bool {
    let members = infos.iter().filter_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BondPort(member)) => Some(member),
        _ => None,
    });
    members.flatten().any(|attribute| *attribute == InfoBondPort::BondPortState(BondPortState::Backup))
}

fn vlan_tag(infos: &[LinkInfo]) -> Option<VlanTag> {
    let vlan = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(vlan)) => Some(vlan),
        _ => None,
    })?;
    let mut tag = VlanTag { ethertype: 0x8100, id: 0 };
    for attribute in vlan {
        match attribute {
            InfoVlan::Id(id) => tag.id = *id,
            InfoVlan::Protocol(protocol) => tag.ethertype = u16::from(*protocol),
            _ => {}
        }
    }
    Some(tag)
}

fn read_neighbor(message: &NeighbourMessage) -> Option<(IpAddr, NeighborEntry)> {
    let state = message.header.state;
    let mut entry = NeighborEntry {
        mac: None,
        usable: matches!(
            state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        ),
        fixed: matches!(state, NeighbourState::Permanent | NeighbourState::Noarp),
        managed: false,
        ours: false,
    };
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => address = Some(IpAddr::from(*value)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(value)) => address = Some(IpAddr::from(*value)),
            NeighbourAttribute::LinkLayerAddress(bytes) => entry.mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => entry.managed = flags.contains(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(protocol) => entry.ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    Some((address?, entry))
}

#[cfg(test)]
mod tests;
