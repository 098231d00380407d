//! What a host says that takes no new associations.

use super::{ABORT, CHECKSUM_AT, HEADER, read, right_checksum};
use crate::wire::checksum::Sum;
use crate::wire::{PROTO_SCTP, Packet, be16, bytes_at, icmp, put};

/// Hop limit of what the box generates.
const TTL: u8 = 64;
/// ABORT with the cause "out of resource" (RFC 9260 section 3.3.10.4).
const CHUNK: [u8; 8] = [ABORT, 0, 0, 8, 0, 4, 0, 4];
const LEN: usize = HEADER + CHUNK.len();

/// Replaces the INIT in `room` (a whole frame, the packet in front) by the ABORT that refuses it (RFC 9260 section
/// 5.1): under the tag it asks for, so that its sender believes it, back out to the neighbour it came
/// from, its VLAN tags kept. Returns the length of the new packet; `None`: it does not fit.
pub fn refuse(room: &mut [u8], headers: &Packet) -> Option<usize> {
    let (l3, l4) = (usize::from(headers.l3), usize::from(headers.l4));
    let tag = read(room.get(l4..usize::from(headers.end))?).initiate_tag;
    let (from, to) = (be16(room, l4 + 2), be16(room, l4));
    icmp::swap_macs(room);
    let at = if headers.v6 {
        let (src, dst) = (bytes_at::<16>(room, l3 + 8), bytes_at::<16>(room, l3 + 24));
        let header = room.get_mut(l3..l3 + 40)?;
        put(header, 0, [0x60, 0, 0, 0, 0, LEN as u8, PROTO_SCTP, TTL]);
        put(header, 8, dst);
        put(header, 24, src);
        l3 + 40
    } else {
        let (src, dst) = (bytes_at::<4>(room, l3 + 12), bytes_at::<4>(room, l3 + 16));
        let header = room.get_mut(l3..l3 + 20)?;
        header.fill(0);
        put(header, 0, [0x45, 0, 0, (20 + LEN) as u8]);
        // An atomic datagram: don't fragment, and an identification that means nothing (RFC 6864).
        put(header, 6, [0x40, 0, TTL, PROTO_SCTP]);
        put(header, 12, dst);
        put(header, 16, src);
        let sum = Sum::default().add(header).checksum();
        put(header, 10, sum);
        l3 + 20
    };
    let packet = room.get_mut(at..at + LEN)?;
    put(packet, 0, from.to_be_bytes());
    put(packet, 2, to.to_be_bytes());
    put(packet, 4, tag.to_be_bytes());
    put(packet, HEADER, CHUNK);
    let sum = right_checksum(packet);
    put(packet, CHECKSUM_AT, sum);
    Some(at + LEN)
}
