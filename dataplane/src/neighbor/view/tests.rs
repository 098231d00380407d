//! Messages in, data out: what a lab without the 8021q module can't show, and what must be ignored.

use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::VlanProtocol;
use netlink_packet_route::route::RouteFlags;

use penstock_configs::file::PortConfig;

use super::*;
use crate::neighbor::bond;

const MAC: Mac = [2, 0, 0, 0, 0, 1];

fn link(index: u32, name: &str, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes =
        vec![LinkAttribute::IfName(name.into()), LinkAttribute::Address(MAC.to_vec()), LinkAttribute::Mtu(1500)];
    message.attributes.extend(attributes);
    RouteNetlinkMessage::NewLink(message)
}

fn vlan(index: u32, parent: u32, id: u16, protocol: VlanProtocol) -> RouteNetlinkMessage {
    let data = InfoData::Vlan(vec![InfoVlan::Id(id), InfoVlan::Protocol(protocol)]);
    let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]);
    link(index, &format!("vlan{id}"), vec![LinkAttribute::Link(parent), info, LinkAttribute::Mtu(1496)])
}

fn ports() -> Vec<String> {
    vec!["other".into(), "eth0".into()]
}

#[test]
fn sub_interfaces_lead_to_their_port_in_their_tags() {
    let mut view = KernelView::default();
    assert_eq!(view.apply(&link(2, "eth0", vec![])), Change::Links);
    view.apply(&vlan(3, 2, 100, VlanProtocol::Ieee8021Ad));
    view.apply(&vlan(4, 3, 7, VlanProtocol::Ieee8021Q));
    view.apply(&vlan(5, 4, 8, VlanProtocol::Ieee8021Q));
    let outer = VlanTag { ethertype: 0x88a8, id: 100 };
    let inner = VlanTag { ethertype: 0x8100, id: 7 };

    let plain = view.path(2, &ports()).unwrap();
    assert_eq!((plain.port, plain.tags, plain.mtu, plain.src), (PortId(1), [None, None], 1500, MAC));
    assert_eq!(view.path(3, &ports()).unwrap().tags, [Some(outer), None]);
    let double = view.path(4, &ports()).unwrap();
    assert_eq!((double.port, double.tags, double.mtu), (PortId(1), [Some(outer), Some(inner)], 1496));
    assert_eq!(view.path(5, &ports()), None, "three tags are more than the box writes");
    assert_eq!(view.path(9, &ports()), None);
}

#[test]
fn a_path_is_up_only_if_every_link_of_it_is() {
    let mut view = KernelView::default();
    let mut down = LinkMessage::default();
    down.header.index = 2;
    down.header.flags = LinkFlags::Up;
    down.attributes = vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::Address(MAC.to_vec())];
    view.apply(&RouteNetlinkMessage::NewLink(down));
    view.apply(&vlan(3, 2, 100, VlanProtocol::Ieee8021Q));
    assert!(!view.path(2, &ports()).unwrap().up, "no carrier");
    assert!(!view.path(3, &ports()).unwrap().up);
    view.apply(&link(2, "eth0", vec![]));
    assert!(view.path(3, &ports()).unwrap().up);
}

#[test]
fn links_that_lead_nowhere_or_in_circles_have_no_path() {
    let mut view = KernelView::default();
    view.apply(&vlan(3, 4, 100, VlanProtocol::Ieee8021Q));
    view.apply(&vlan(4, 3, 101, VlanProtocol::Ieee8021Q));
    assert_eq!(view.path(3, &ports()), None);
    // A veth names its peer as its link: not a parent.
    view.apply(&link(2, "eth0", vec![]));
    view.apply(&link(6, "veth6", vec![LinkAttribute::Link(2)]));
    assert_eq!(view.path(6, &ports()), None);
}

#[test]
fn the_same_again_is_no_change() {
    let mut view = KernelView::default();
    assert_eq!(view.apply(&link(2, "eth0", vec![])), Change::Links);
    assert_eq!(view.apply(&link(2, "eth0", vec![])), Change::Nothing);
    let RouteNetlinkMessage::NewLink(mut bridge) = link(2, "eth0", vec![LinkAttribute::Mtu(9000)]) else { return };
    bridge.header.interface_family = AddressFamily::Bridge;
    assert_eq!(view.apply(&RouteNetlinkMessage::NewLink(bridge.clone())), Change::Nothing);
    assert_eq!(view.apply(&RouteNetlinkMessage::DelLink(bridge)), Change::Nothing, "left the bridge, not the box");
    assert_eq!(view.links[&2].mtu, 1500);
}

#[test]
fn a_point_to_point_address_is_the_local_one() {
    let mut view = KernelView::default();
    let mut message = AddressMessage::default();
    message.header = AddressHeader { family: AddressFamily::Inet, prefix_len: 32, index: 2, ..Default::default() };
    message.attributes =
        vec![AddressAttribute::Address([10, 0, 0, 2].into()), AddressAttribute::Local([10, 0, 0, 1].into())];
    assert_eq!(view.apply(&RouteNetlinkMessage::NewAddress(message.clone())), Change::Links);
    assert_eq!(view.addresses.values().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1/32"]);
    assert_eq!(view.apply(&RouteNetlinkMessage::DelAddress(message)), Change::Links);
    assert!(view.addresses.is_empty());
}

#[test]
fn neighbour_states_the_kernel_would_not_send_in_are_not_usable() {
    use NeighbourState::{Delay, Failed, Incomplete, Noarp, None, Permanent, Probe, Reachable, Stale};
    for (state, usable, fixed) in [
        (Reachable, true, false),
        (Stale, true, false),
        (Delay, true, false),
        (Probe, true, false),
        (Permanent, true, true),
        (Noarp, true, true),
        (Failed, false, false),
        (Incomplete, false, false),
        (None, false, false),
    ] {
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.header.ifindex = 2;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 9].into())),
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
        ];
        let mut view = KernelView::default();
        let key = (2, IpAddr::from([10, 0, 0, 9]));
        assert_eq!(view.apply(&RouteNetlinkMessage::NewNeighbour(message.clone())), Change::Neighbor(key));
        let entry = view.neighbors[&key];
        assert_eq!((entry.usable, entry.fixed, entry.mac), (usable, fixed, Some(MAC)), "{state}");
        assert_eq!(view.apply(&RouteNetlinkMessage::DelNeighbour(message)), Change::Neighbor(key));
        assert!(view.neighbors.is_empty());
    }
}

#[test]
fn route_changes_name_their_prefix() {
    let mut view = KernelView::default();
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    assert_eq!(view.apply(&RouteNetlinkMessage::NewRoute(message.clone())), Change::Routes("::/0".parse().unwrap()));
    message.header.destination_prefix_length = 64;
    let destination: std::net::Ipv6Addr = "2001:db8::".parse().unwrap();
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet6(destination))];
    let change = view.apply(&RouteNetlinkMessage::DelRoute(message.clone()));
    assert_eq!(change, Change::Routes("2001:db8::/64".parse().unwrap()));
    message.header.flags = RouteFlags::Cloned;
    assert_eq!(view.apply(&RouteNetlinkMessage::NewRoute(message)), Change::Nothing);
}

fn bond(index: u32, name: &str, mode: BondMode) -> RouteNetlinkMessage {
    let data = LinkInfo::Data(InfoData::Bond(vec![InfoBond::Mode(mode)]));
    link(index, name, vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bond), data])])
}

fn member(index: u32, name: &str, master: u32, state: BondPortState) -> RouteNetlinkMessage {
    let data = LinkInfo::PortData(InfoPortData::BondPort(vec![InfoBondPort::BondPortState(state)]));
    link(index, name, vec![LinkAttribute::Controller(master), LinkAttribute::LinkInfo(vec![data])])
}

/// A bond of eth0 and eth1, with a VLAN on it; eth0 in use.
fn bonded(mode: BondMode, second: BondPortState) -> KernelView {
    let mut view = KernelView::default();
    view.apply(&bond(9, "bond0", mode));
    view.apply(&member(3, "eth1", 9, second));
    view.apply(&member(2, "eth0", 9, BondPortState::Active));
    view.apply(&vlan(10, 9, 100, VlanProtocol::Ieee8021Q));
    view
}

fn port(interface: &str) -> PortConfig {
    serde_json::from_value(serde_json::json!({ "interface": interface, "mss_clamp": 1400 })).unwrap()
}

fn resolved(view: &KernelView, ports: &[&str]) -> Result<Vec<String>, String> {
    let ports: Vec<PortConfig> = ports.iter().map(|name| port(name)).collect();
    match bond::resolve_in(view, &ports, 2048, || Ok(false)) {
        Ok(resolved) => Ok(resolved.ports.into_iter().map(|port| port.interface).collect()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_bond_is_served_on_its_members() {
    let view = bonded(BondMode::Ieee8023Ad, BondPortState::Active);
    assert_eq!(resolved(&view, &["bond0", "eth7"]).unwrap(), ["eth0", "eth1", "eth7"]);
    let members = bond::resolve_in(&view, &[port("bond0")], 2048, || Ok(false)).unwrap().ports;
    assert!(members.iter().all(|member| member.mss_clamp == Some(1400)), "the port's settings are the members'");
    // By the members' own names it is the same box.
    assert_eq!(resolved(&view, &["eth0", "eth1"]).unwrap(), ["eth0", "eth1"]);
    assert_eq!(view.bond_of("eth1"), Some("bond0"));
    let error = resolved(&view, &["bond0", "eth0"]).unwrap_err();
    assert!(error.contains("eth0") && error.contains("member of bond0"), "{error}");
}

/// Its driver is loaded later than the first one's, or an operator adds it.
#[test]
fn a_member_that_joins_later_is_seen_to_be_no_port() {
    let mut view = bonded(BondMode::Ieee8023Ad, BondPortState::Active);
    let unserved = |view: &KernelView, configured: &str| {
        view.unserved_members(&[configured.to_owned()], &["eth0", "eth1"].map(str::to_owned))
    };
    view.apply(&link(4, "eth2", vec![]));
    assert_eq!(unserved(&view, "bond0"), []);
    for state in [BondPortState::Backup, BondPortState::Active] {
        view.apply(&member(4, "eth2", 9, state));
        assert_eq!(unserved(&view, "bond0"), [("bond0".to_owned(), "eth2".to_owned())]);
        assert_eq!(unserved(&view, "eth0"), [], "members that are named one by one are all that is asked for");
    }
    let RouteNetlinkMessage::NewLink(mut down) = member(4, "eth2", 9, BondPortState::Active) else { return };
    down.header.flags = LinkFlags::Up;
    view.apply(&RouteNetlinkMessage::NewLink(down));
    assert_eq!(unserved(&view, "bond0"), [], "nothing comes by it yet");
}

#[test]
fn what_cannot_be_a_port_is_refused_with_what_can() {
    let mut view = KernelView::default();
    let over = |index, name: &str, kind| link(index, name, vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])]);
    view.apply(&over(5, "br0", InfoKind::Bridge));
    view.apply(&link(6, "eth6", vec![LinkAttribute::Controller(5)]));
    view.apply(&over(7, "team0", InfoKind::Team));
    view.apply(&over(8, "veth0", InfoKind::Veth));
    view.apply(&bond(9, "bond0", BondMode::ActiveBackup));
    view.apply(&bond(10, "bond1", BondMode::BalanceAlb));
    view.apply(&member(11, "eth8", 10, BondPortState::Active));
    view.apply(&vlan(12, 6, 100, VlanProtocol::Ieee8021Q));
    view.apply(&link(13, "jumbo", vec![LinkAttribute::Mtu(9000)]));
    view.apply(&link(14, "largest", vec![LinkAttribute::Mtu(2048 - 256 - 22)]));
    for (name, words) in [
        ("br0", &["a bridge", "(eth6)"][..]),
        ("team0", &["a team", "each as a [[port]]"]),
        ("vlan100", &["a VLAN sub-interface", "(eth6)"]),
        ("bond0", &["no members", "master bond0"]),
        ("bond1", &["balance-alb", "active-backup"]),
        ("jumbo", &["MTU is 9000", "2048 bytes has 1770", "holds 3818", "ip link set jumbo mtu 1770"]),
    ] {
        let error = resolved(&view, &[name]).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert_eq!(resolved(&view, &["veth0", "eth6", "largest"]).unwrap(), ["veth0", "eth6", "largest"]);
}

#[test]
fn mtus_beyond_a_frame_need_a_kernel_with_packets_in_several() {
    let mut view = KernelView::default();
    for (index, mtu) in [(1, 1500), (2, 1770), (3, 1771), (4, 3818), (5, 3819), (6, 9000), (7, 9216), (8, 9217)] {
        view.apply(&link(index, &format!("mtu{mtu}"), vec![LinkAttribute::Mtu(mtu)]));
    }
    let jumbo = |names: &[&str], frame_size, scatters| {
        let ports: Vec<PortConfig> = names.iter().map(|name| port(name)).collect();
        let resolved = bond::resolve_in(&view, &ports, frame_size, || Ok(scatters));
        resolved.map(|resolved| resolved.jumbo).map_err(|error| error.to_string())
    };
    for scatters in [false, true] {
        assert_eq!(jumbo(&["mtu1500", "mtu1770"], 2048, scatters), Ok(false));
        assert_eq!(jumbo(&["mtu1500", "mtu3818"], 4096, scatters), Ok(false));
        let error = jumbo(&["mtu1500", "mtu9217"], 4096, scatters).unwrap_err();
        assert!(error.contains("mtu9217") && error.contains("9216 at most"), "{error}");
    }
    for (name, frame_size) in [("mtu1771", 2048), ("mtu3819", 4096), ("mtu9000", 2048), ("mtu9216", 4096)] {
        assert_eq!(jumbo(&["mtu1500", name], frame_size, true), Ok(true));
        let error = jumbo(&["mtu1500", name], frame_size, false).unwrap_err();
        assert!(error.contains(name) && error.contains("Linux 6.6"), "{error}");
        assert!(error.contains(&format!("has {} at most", frame_size - 278)), "{error}");
    }
    assert!(jumbo(&["mtu1771"], 2048, false).unwrap_err().contains("frame_size = 4096"));
}

#[test]
fn routes_by_a_bond_leave_by_a_member_in_use() {
    let ports = ["eth0".to_owned(), "eth1".to_owned()];
    let by = |view: &KernelView, link, spread| {
        let path = view.path_for(link, &ports, spread).unwrap();
        (path.port.0, path.up)
    };
    let view = bonded(BondMode::Ieee8023Ad, BondPortState::Active);
    assert_eq!([0, 1, 2, 3].map(|spread| by(&view, 9, spread)), [(0, true), (1, true), (0, true), (1, true)]);
    let tagged = view.path(10, &ports).unwrap();
    assert_eq!(
        (tagged.port, tagged.tags[0], tagged.up),
        (PortId(0), Some(VlanTag { ethertype: 0x8100, id: 100 }), true)
    );
    assert_eq!(view.vlans(&ports), [Vlan { port: tagged.port, tags: tagged.tags, ifindex: 10 }]);

    let mut view = bonded(BondMode::ActiveBackup, BondPortState::Backup);
    assert_eq!([0, 1].map(|spread| by(&view, 9, spread)), [(0, true); 2]);
    // The bonding driver fails over.
    assert_eq!(view.apply(&member(2, "eth0", 9, BondPortState::Backup)), Change::Links);
    view.apply(&member(3, "eth1", 9, BondPortState::Active));
    assert_eq!([0, 1].map(|spread| by(&view, 9, spread)), [(1, true); 2]);
    // None is left: there is a way, but it is down.
    view.apply(&member(3, "eth1", 9, BondPortState::Backup));
    assert!(!by(&view, 9, 0).1);
    // A bridge's or somebody else's members are no way at all.
    view.apply(&link(9, "bond0", vec![]));
    assert_eq!(view.path(9, &ports), None);
}
