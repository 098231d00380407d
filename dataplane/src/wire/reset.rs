//! RSTs the box speaks itself: for a connection nobody serves, and for one that was idle too long.

use std::net::{IpAddr, SocketAddr};

use super::checksum::{Sum, pseudo_header};
use super::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, V4, V6, be16, be32,
    bytes_at, put,
};
use crate::wire::Family;

/// Hop limit of what the box generates.
const TTL: u8 = 64;
const TCP_HEADER: usize = 20;
/// Ethernet, IPv6 and TCP headers: the longest frame [`frame`] makes.
pub const LONGEST: usize = 14 + 40 + TCP_HEADER;

/// A RST to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    /// What it acknowledges; `None`: it has no ACK flag.
    pub ack: Option<u32>,
}

/// The first sequence number behind a TCP packet: its data, SYN and FIN count (RFC 9293 section 3.4).
#[must_use]
pub fn end_of(packet: &[u8], headers: &Packet) -> u32 {
    let l4 = usize::from(headers.l4);
    let header = usize::from(bytes_at::<1>(packet, l4 + 12)[0] >> 4) * 4;
    let data = usize::from(headers.end).saturating_sub(l4 + header) as u32;
    let phantom = u32::from(headers.tcp_flags & TCP_FIN != 0) + u32::from(headers.tcp_flags & TCP_SYN != 0);
    be32(packet, l4 + 4).wrapping_add(data).wrapping_add(phantom)
}

/// Replaces the TCP packet in `room` (a whole frame, the packet in front) by the RST that a host without
/// the connection answers (RFC 9293 section 3.10.7.1), back out to the neighbour it came from, its tags
/// kept. Returns the length of the new packet; `None`: it was a RST itself, or does not fit.
pub fn answer(room: &mut [u8], headers: &Packet) -> Option<usize> {
    if headers.tcp_flags & TCP_RST != 0 {
        return None;
    }
    let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
    let [src, dst] = if headers.v6 {
        let tuple = V6::tuple(room, headers);
        [V6::to_ip(tuple.src), V6::to_ip(tuple.dst)]
    } else {
        let tuple = V4::tuple(room, headers);
        [V4::to_ip(tuple.src), V4::to_ip(tuple.dst)]
    };
    let (from, to) = (SocketAddr::new(dst, be16(room, l4 + 2)), SocketAddr::new(src, be16(room, l4)));
    let (seq, ack) =
        if headers.tcp_flags & TCP_ACK != 0 { (be32(room, l4 + 8), None) } else { (0, Some(end_of(room, headers))) };
    super::icmp::swap_macs(room);
    write(room, l3, &Reset { from, to, seq, ack })
}

/// A whole untagged frame; `None`: two families, or no room.
pub fn frame(room: &mut [u8], dst_mac: [u8; 6], src_mac: [u8; 6], reset: &Reset) -> Option<usize> {
    super::rewrite::set_macs(room, dst_mac, src_mac);
    let ether_type = if reset.to.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    put(room, 12, ether_type.to_be_bytes());
    write(room, 14, reset)
}

/// Writes IP and TCP headers from `l3` on; returns where they end.
fn write(room: &mut [u8], l3: usize, reset: &Reset) -> Option<usize> {
    match (reset.from.ip(), reset.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let header = room.get_mut(l3..l3 + 20)?;
            header.fill(0);
            let len = (20 + TCP_HEADER) as u16;
            put(header, 0, [0x45, 0]);
            put(header, 2, len.to_be_bytes());
            // An atomic datagram: don't fragment, and an identification that means nothing (RFC 6864).
            put(header, 6, [0x40, 0, TTL, PROTO_TCP]);
            put(header, 12, from);
            put(header, 16, to);
            let sum = Sum::default().add(header).checksum();
            put(header, 10, sum);
            write_tcp(room, l3 + 20, reset, pseudo_header(&from, &to, PROTO_TCP, TCP_HEADER))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let header = room.get_mut(l3..l3 + 40)?;
            put(header, 0, [0x60, 0, 0, 0, 0, TCP_HEADER as u8, PROTO_TCP, TTL]);
            put(header, 8, from);
            put(header, 24, to);
            write_tcp(room, l3 + 40, reset, pseudo_header(&from, &to, PROTO_TCP, TCP_HEADER))
        }
        _ => None,
    }
}

fn write_tcp(room: &mut [u8], l4: usize, reset: &Reset, pseudo: Sum) -> Option<usize> {
    let header = room.get_mut(l4..l4 + TCP_HEADER)?;
    header.fill(0);
    put(header, 0, reset.from.port().to_be_bytes());
    put(header, 2, reset.to.port().to_be_bytes());
    put(header, 4, reset.seq.to_be_bytes());
    put(header, 8, reset.ack.unwrap_or(0).to_be_bytes());
    let ack = if reset.ack.is_some() { TCP_ACK } else { 0 };
    put(header, 12, [(TCP_HEADER as u8 / 4) << 4, TCP_RST | ack]);
    let sum = pseudo.add(header).checksum();
    put(header, 16, sum);
    Some(l4 + TCP_HEADER)
}
