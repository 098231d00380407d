//! A RST in answer to a packet, built in its frame.

use super::checksum::{Sum, pseudo_header};
use super::icmp::swap_macs;
use super::{PROTO_TCP, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, be32, bytes_at, put};

/// Hop limit of what the box generates.
const TTL: u8 = 64;
const HEADER: usize = 20;

/// Turns a TCP packet in `room` (a whole frame) into the RST that a host without its connection would
/// send (RFC 9293 section 3.10.7.1): of the sequence number the packet acknowledges, or, if it
/// acknowledges none, of number 0 and acknowledging all of it. Options and extension headers are left
/// out. Returns the frame's length; `None`: it is a RST itself.
pub fn answer(room: &mut [u8], headers: &Packet) -> Option<usize> {
    if headers.protocol != PROTO_TCP || headers.tcp_flags & TCP_RST != 0 {
        return None;
    }
    let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
    let [from, to]: [[u8; 2]; 2] = [bytes_at(room, l4), bytes_at(room, l4 + 2)];
    let (seq, ack) = (be32(room, l4 + 4), be32(room, l4 + 8));
    let offset = usize::from(bytes_at::<1>(room, l4 + 12)[0] >> 4) * 4;
    let data = usize::from(headers.end).saturating_sub(l4 + offset) as u32;
    let flags = headers.tcp_flags;
    let phantoms = u32::from(flags & TCP_SYN != 0) + u32::from(flags & TCP_FIN != 0);
    let (seq, ack, flags) = if flags & TCP_ACK != 0 {
        (ack, 0, TCP_RST)
    } else {
        (0, seq.wrapping_add(data).wrapping_add(phantoms), TCP_RST | TCP_ACK)
    };
    swap_macs(room);
    let (tcp, sum) = if headers.v6 {
        let (src, dst): ([u8; 16], [u8; 16]) = (bytes_at(room, l3 + 8), bytes_at(room, l3 + 24));
        put(room, l3, [0x60, 0, 0, 0]);
        put(room, l3 + 4, (HEADER as u16).to_be_bytes());
        put(room, l3 + 6, [PROTO_TCP, TTL]);
        put(room, l3 + 8, dst);
        put(room, l3 + 24, src);
        (l3 + 40, pseudo_header(&dst, &src, PROTO_TCP, HEADER))
    } else {
        let (src, dst): ([u8; 4], [u8; 4]) = (bytes_at(room, l3 + 12), bytes_at(room, l3 + 16));
        put(room, l3, [0x45, 0]);
        put(room, l3 + 2, (20 + HEADER as u16).to_be_bytes());
        // Don't fragment.
        put(room, l3 + 4, [0, 0, 0x40, 0, TTL, PROTO_TCP, 0, 0]);
        put(room, l3 + 12, dst);
        put(room, l3 + 16, src);
        let sum = Sum::default().add(&room[l3..l3 + 20]);
        put(room, l3 + 10, sum.checksum());
        (l3 + 20, pseudo_header(&dst, &src, PROTO_TCP, HEADER))
    };
    put(room, tcp, to);
    put(room, tcp + 2, from);
    put(room, tcp + 4, seq.to_be_bytes());
    put(room, tcp + 8, ack.to_be_bytes());
    put(room, tcp + 12, [5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    let sum = sum.add(&room[tcp..tcp + HEADER]);
    put(room, tcp + 16, sum.checksum());
    Some(tcp + HEADER)
}
