//! A router between the clients and the box: forwards by destination, takes one off the TTL.

use std::net::IpAddr;

use penstock_dataplane::wire::{self, PROTO_ICMPV6, Parsed};
use smoltcp::wire::Ipv4Packet;

/// Where the packet in a frame goes; `None`: it is no IP packet.
pub(super) fn destination(frame: &[u8]) -> Option<IpAddr> {
    let Ok(Parsed::Ip(packet)) = wire::parse(frame) else { return None };
    let l3 = usize::from(packet.l3);
    Some(if packet.v6 {
        IpAddr::from(wire::bytes_at::<16>(frame, l3 + 24))
    } else {
        IpAddr::from(wire::bytes_at::<4>(frame, l3 + 16))
    })
}

/// Whether the frame is for the router's own stack: ARP, neighbour discovery, its addresses.
pub(super) fn is_for_itself(frame: &[u8], is_own: impl Fn(IpAddr) -> bool) -> bool {
    match (wire::parse(frame), destination(frame)) {
        (Ok(Parsed::Ip(packet)), Some(to)) => {
            is_own(to) || packet.protocol == PROTO_ICMPV6 && wire::icmp::is_neighbor_discovery(frame, &packet)
        }
        _ => true,
    }
}

/// The frame as it leaves: other link-layer addresses, one hop less. `None`: dropped, as RFC 1812 asks
/// of a packet whose header is damaged or whose TTL is spent.
pub(super) fn forward(mut frame: Vec<u8>, from: [u8; 6], to: [u8; 6]) -> Option<Vec<u8>> {
    let Ok(Parsed::Ip(packet)) = wire::parse(&frame) else { return None };
    let l3 = usize::from(packet.l3);
    if packet.v6 {
        frame[l3 + 7] = frame[l3 + 7].checked_sub(1).filter(|hops| *hops > 0)?;
    } else {
        let mut header = Ipv4Packet::new_checked(&mut frame[l3..]).ok()?;
        if !header.verify_checksum() {
            return None;
        }
        let less = header.hop_limit().checked_sub(1).filter(|hops| *hops > 0)?;
        header.set_hop_limit(less);
        header.fill_checksum();
    }
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    Some(frame)
}
