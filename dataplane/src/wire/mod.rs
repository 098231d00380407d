//! Validated header views, rewriting, checksum deltas.
//!
//! [`parse`](parse::parse) checks every length a later step relies on, once; what it returns are
//! offsets, so that the rest of the pipeline reads fixed-size arrays at them.

pub mod checksum;
pub mod family;
pub mod icmp;
pub mod parse;
pub mod plain;
pub mod reset;
pub mod rewrite;
pub mod sctp;
pub mod tags;

pub use family::{Family, Tuple, V4, V6};
pub use parse::{Packet, Parsed, Transport, parse, parse_part};
pub use plain::Plain;
pub use rewrite::{Rewrite, rewrite};
pub use tags::Tags;

pub const ETHERNET_HEADER: usize = 14;
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const PROTO_ICMP: u8 = 1;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;
pub const PROTO_ICMPV6: u8 = 58;
pub const PROTO_SCTP: u8 = 132;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// Reads `N` bytes at `at`. Callers ask within what `parse` proved to be there; beyond it the
/// answer is zeros, never a panic.
#[inline(always)]
#[must_use]
pub fn bytes_at<const N: usize>(packet: &[u8], at: usize) -> [u8; N] {
    packet.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

#[inline(always)]
#[must_use]
pub fn be16(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes_at(packet, at))
}

#[inline(always)]
#[must_use]
pub fn be32(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(packet, at))
}

/// Writes `value` at `at`, if there is room.
#[inline(always)]
pub fn put<const N: usize>(packet: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = packet.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *place = value;
    }
}
