//! Who is where on the wire: the box's side of ARP and neighbour discovery.
//!
//! * [`responder`] answers for VIPs and SNAT addresses, in the packet path.
//! * [`announce`] claims them: probes first, announces, notices who else has them.
//! * [`reply_check`] asks the nodes of mode `dnat` whether their replies come back through the box.
//! * [`mirror`] follows the kernel's routes and neighbours for the next hops to nodes.
//!
//! Only the responder is called per packet. The rest belongs to the housekeeping thread, which
//! keeps `CAP_NET_ADMIN` and `CAP_NET_RAW` for it.

pub mod announce;
pub mod bond;
pub mod frames;
pub mod host;
pub mod mirror;
pub mod netlink;
pub(crate) mod raw;
pub mod reply_check;
pub mod reply_frames;
pub mod responder;
pub mod routes;
pub mod sockets;
mod view;

pub use view::{PROTOCOL, Vlan, VlanTag, VlanTags};

/// An Ethernet hardware address.
pub type Mac = [u8; 6];

/// A hardware address as people write it.
#[must_use]
pub fn format_mac(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
