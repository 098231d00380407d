//! What a configured port is made of. XDP and its sockets live on hardware queues: a bond has none, so its members
//! are served in its place, as it would use them; its addresses, routes and neighbours stay what they are.
//!
//! No packet of a bond's goes out by a member on standby, nor does one say there that an address is ours: the switch
//! would learn the bond's one hardware address in two places.

use netlink_packet_route::link::BondMode;
use penstock_configs::file::PortConfig;

use super::netlink::{NetlinkError, Requests};
use super::view::{KernelView, Kind};
use crate::io::LARGEST_MTU;
use crate::io::xsk::kernel_scatters;

/// Why an interface cannot be a port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("port {bond}: the bond has no members; add one (`ip link set IF master {bond}`)")]
    NoMembers { bond: String },
    #[error(
        "port {bond}: mode {mode} moves one hardware address between members, which only the bonding driver can keep \
         up with; make it active-backup, balance-xor or 802.3ad (LACP)"
    )]
    Mode { bond: String, mode: &'static str },
    #[error("port {port}: it is a member of {bond}, which is a port too; name one of them")]
    Twice { port: String, bond: String },
    #[error(
        "port {name}: {what} has no receive queues of its own; name the interfaces below it{members}, each as a [[port]]"
    )]
    Virtual { name: String, what: &'static str, members: String },
    #[error(
        "port {name}: its MTU is {mtu}, and a packet of a frame of {frame_size} bytes has {most} at most: {remedy} \
         (`ip link set {name} mtu {most}`)"
    )]
    Mtu { name: String, mtu: u32, frame_size: u32, most: u32, remedy: &'static str },
    #[error(
        "port {name}: its MTU is {mtu}, and the box takes {LARGEST_MTU} at most: lower it (`ip link set {name} mtu {LARGEST_MTU}`)"
    )]
    Beyond { name: String, mtu: u32 },
    #[error("this kernel has no AF_XDP, or no permission for it was given (CAP_NET_RAW): {0}")]
    AfXdp(std::io::Error),
    #[error("the kernel's links cannot be read: {0}")]
    Netlink(#[from] NetlinkError),
}

/// In front of a packet in its frame: what the kernel keeps for the XDP program.
const HEADROOM: u32 = 256;
/// Ethernet header and two tags.
const LINK_HEADERS: u32 = 14 + 8;

/// What there is to serve.
#[derive(Debug)]
pub struct Resolved {
    /// The ports, bonds replaced by their members.
    pub ports: Vec<PortConfig>,
    /// Packets of one of them may be larger than a frame.
    pub jumbo: bool,
}

/// The ports to serve, bonds replaced by their members.
///
/// # Errors
/// An interface that cannot be one, and what to name instead.
pub fn resolve(ports: &[PortConfig], frame_size: u32) -> Result<Resolved, PortError> {
    let view = KernelView::read_links(&mut Requests::open()?)?;
    resolve_in(&view, ports, frame_size, || kernel_scatters().map_err(PortError::AfXdp))
}

/// [`resolve`] on a kernel that has packets in several frames if `scatters` says so, which is asked if it matters.
pub(super) fn resolve_in(
    view: &KernelView,
    ports: &[PortConfig],
    frame_size: u32,
    scatters: impl FnOnce() -> Result<bool, PortError>,
) -> Result<Resolved, PortError> {
    let mut resolved = Vec::with_capacity(ports.len());
    for port in ports {
        let Some((index, link)) = view.link_named(&port.interface) else {
            // Whoever opens it says so.
            resolved.push(port.clone());
            continue;
        };
        let members = view.members(index);
        match &link.kind {
            Kind::Bond(mode) => {
                check_mode(&port.interface, mode)?;
                if members.is_empty() {
                    return Err(PortError::NoMembers { bond: port.interface.clone() });
                }
                resolved.extend(members.into_iter().map(|interface| PortConfig { interface, ..port.clone() }));
            }
            Kind::Above(what) => {
                let members = if let Some(parent) = link.vlan.and_then(|(parent, _)| view.links.get(&parent)) {
                    vec![parent.name.clone()]
                } else {
                    members
                };
                let members = if members.is_empty() { String::new() } else { format!(" ({})", members.join(", ")) };
                return Err(PortError::Virtual { name: port.interface.clone(), what, members });
            }
            Kind::Plain => resolved.push(port.clone()),
        }
    }
    for port in ports {
        let uses = resolved.iter().filter(|other| other.interface == port.interface).count();
        let bond = view.bond_of(&port.interface);
        if let (true, Some(bond)) = (uses > 1, bond) {
            return Err(PortError::Twice { port: port.interface.clone(), bond: bond.to_owned() });
        }
    }
    let jumbo = check_mtus(view, &resolved, frame_size, scatters)?;
    Ok(Resolved { ports: resolved, jumbo })
}

fn check_mode(bond: &str, mode: &BondMode) -> Result<(), PortError> {
    let mode = match mode {
        BondMode::BalanceTlb => "balance-tlb",
        BondMode::BalanceAlb => "balance-alb",
        BondMode::Broadcast => "broadcast",
        // Static and negotiated aggregates, and one member at a time: the switch takes frames from any active member.
        _ => return Ok(()),
    };
    Err(PortError::Mode { bond: bond.to_owned(), mode })
}

/// The largest packet a frame holds.
#[must_use]
pub fn largest_mtu(frame_size: u32) -> u32 {
    frame_size.saturating_sub(HEADROOM + LINK_HEADERS)
}

/// Whether a port has packets larger than a frame. On a kernel that cannot have them in several frames it is refused:
/// they would be dropped there, uncounted by name.
fn check_mtus(
    view: &KernelView,
    ports: &[PortConfig],
    frame_size: u32,
    scatters: impl FnOnce() -> Result<bool, PortError>,
) -> Result<bool, PortError> {
    let most = largest_mtu(frame_size);
    let mtus = || ports.iter().filter_map(|port| view.link_named(&port.interface)).map(|(_, link)| link);
    if let Some(link) = mtus().find(|link| link.mtu > LARGEST_MTU) {
        return Err(PortError::Beyond { name: link.name.clone(), mtu: link.mtu });
    }
    let Some(link) = mtus().find(|link| link.mtu > most) else { return Ok(false) };
    if scatters()? {
        return Ok(true);
    }
    let remedy = if link.mtu <= largest_mtu(4096) {
        "write workers.frame_size = 4096, or use Linux 6.6 or newer, or lower the MTU"
    } else {
        "this kernel has no packets in several frames (multi-buffer AF_XDP): use Linux 6.6 or newer, or lower the MTU; \
         workers.frame_size = 4096 holds 3818"
    };
    Err(PortError::Mtu { name: link.name.clone(), mtu: link.mtu, frame_size, most, remedy })
}
