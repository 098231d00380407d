//! ICMP the box speaks itself: echo replies, time exceeded and too big, built in the frame of the
//! packet that caused them.

use super::checksum::{Sum, pseudo_header};
use super::{PROTO_ICMP, PROTO_ICMPV6, Packet, bytes_at, put};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// Hop limit of what the box generates.
const TTL: u8 = 64;

/// Whether an ICMP packet is an echo request.
#[must_use]
pub fn is_echo_request(packet: &[u8], headers: &Packet) -> bool {
    let [kind, code] = bytes_at(packet, usize::from(headers.l4));
    code == 0 && kind == if headers.v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST }
}

/// Whether an ICMPv6 packet is neighbour or router discovery (RFC 4861: types 133 to 137).
#[must_use]
pub fn is_neighbor_discovery(packet: &[u8], headers: &Packet) -> bool {
    let [kind] = bytes_at(packet, usize::from(headers.l4));
    headers.v6 && (133..=137).contains(&kind)
}

/// Turns an echo request into its reply. A request that came corrupt makes a corrupt reply: the
/// checksum moves by delta.
pub fn echo_reply(packet: &mut [u8], headers: &Packet) {
    swap_macs(packet);
    let l3 = usize::from(headers.l3);
    let l4 = usize::from(headers.l4);
    let old: [u8; 2] = bytes_at(packet, l4);
    let new = [if headers.v6 { ECHO_REPLY_V6 } else { ECHO_REPLY }, old[1]];
    put(packet, l4, new);
    put(packet, l4 + 2, Sum::delta(old, new).apply(bytes_at(packet, l4 + 2)));
    // Swapping the addresses changes no sum: they stand in it as before.
    if headers.v6 {
        let (src, dst): ([u8; 16], [u8; 16]) = (bytes_at(packet, l3 + 8), bytes_at(packet, l3 + 24));
        put(packet, l3 + 8, dst);
        put(packet, l3 + 24, src);
        put(packet, l3 + 7, [TTL]);
    } else {
        let (src, dst): ([u8; 4], [u8; 4]) = (bytes_at(packet, l3 + 12), bytes_at(packet, l3 + 16));
        put(packet, l3 + 12, dst);
        put(packet, l3 + 16, src);
        let old: [u8; 2] = bytes_at(packet, l3 + 8);
        let new = [TTL, old[1]];
        put(packet, l3 + 8, new);
        put(packet, l3 + 10, Sum::delta(old, new).apply(bytes_at(packet, l3 + 10)));
    }
}

/// Bytes of the offending packet an ICMP error quotes: RFC 1812 asks for as much as fits 576 bytes,
/// RFC 4443 for as much as fits the minimum MTU; a header and the first words are what receivers read.
const QUOTE_V4: usize = 576 - 20 - 8;
const QUOTE_V6: usize = 1280 - 40 - 8;

/// An ICMP error's type and code, by family, and the word behind the checksum.
#[derive(Debug, Clone, Copy)]
pub struct ErrorKind {
    v4: [u8; 2],
    v6: [u8; 2],
    word: u32,
}

/// TTL or hop limit exceeded in transit.
pub const TIME_EXCEEDED: ErrorKind = ErrorKind { v4: [11, 0], v6: [3, 0], word: 0 };

/// Nobody listens on the port.
pub const PORT_UNREACHABLE: ErrorKind = ErrorKind { v4: [3, 3], v6: [1, 4], word: 0 };

/// Fragmentation needed, or packet too big. Both have the MTU in the same word, IPv4 in its lower half
/// (RFC 1191 section 4, RFC 4443 section 3.2). Translation changes no packet's length: what fits
/// behind the box is what its sender may send.
#[must_use]
pub fn too_big(mtu: u32) -> ErrorKind {
    ErrorKind { v4: [3, 4], v6: [2, 0], word: mtu.min(0xffff) }
}

/// Replaces the packet in `room` (a whole frame, the packet in front) by an ICMP error about it,
/// sent from the address the packet was for to the address it came from, back out to the neighbour
/// it came from. Returns the length of the new packet; `None` if it does not fit.
pub fn error_about(room: &mut [u8], headers: &Packet, kind: ErrorKind) -> Option<usize> {
    let l3 = usize::from(headers.l3);
    let end = usize::from(headers.end);
    let (ip_len, quote_max) = if headers.v6 { (40, QUOTE_V6) } else { (20, QUOTE_V4) };
    let quote = (end - l3).min(quote_max);
    let shift = ip_len + 8;
    let total = l3 + shift + quote;
    if total > room.len() {
        return None;
    }
    room.copy_within(l3..l3 + quote, l3 + shift);
    swap_macs(room);
    let quoted = l3 + shift;
    let icmp = l3 + ip_len;
    if headers.v6 {
        let (src, dst): ([u8; 16], [u8; 16]) = (bytes_at(room, quoted + 8), bytes_at(room, quoted + 24));
        put(room, l3, [0x60, 0, 0, 0]);
        put(room, l3 + 4, ((8 + quote) as u16).to_be_bytes());
        put(room, l3 + 6, [PROTO_ICMPV6, TTL]);
        put(room, l3 + 8, dst);
        put(room, l3 + 24, src);
        put(room, icmp, kind.v6);
        put(room, icmp + 2, [0; 2]);
        put(room, icmp + 4, kind.word.to_be_bytes());
        let sum = pseudo_header(&dst, &src, PROTO_ICMPV6, 8 + quote).add(&room[icmp..total]);
        put(room, icmp + 2, sum.checksum());
    } else {
        let (src, dst): ([u8; 4], [u8; 4]) = (bytes_at(room, quoted + 12), bytes_at(room, quoted + 16));
        put(room, l3, [0x45, 0xc0]);
        put(room, l3 + 2, ((20 + 8 + quote) as u16).to_be_bytes());
        put(room, l3 + 4, [0, 0, 0, 0, TTL, PROTO_ICMP, 0, 0]);
        put(room, l3 + 12, dst);
        put(room, l3 + 16, src);
        let sum = Sum::default().add(&room[l3..l3 + 20]);
        put(room, l3 + 10, sum.checksum());
        put(room, icmp, kind.v4);
        put(room, icmp + 2, [0; 2]);
        put(room, icmp + 4, kind.word.to_be_bytes());
        let sum = Sum::default().add(&room[icmp..total]);
        put(room, icmp + 2, sum.checksum());
    }
    Some(total)
}

/// Sends the frame back where it came from.
pub fn swap_macs(packet: &mut [u8]) {
    let (dst, src): ([u8; 6], [u8; 6]) = (bytes_at(packet, 0), bytes_at(packet, 6));
    put(packet, 0, src);
    put(packet, 6, dst);
}
