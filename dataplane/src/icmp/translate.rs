//! An ICMP error rewritten in place: outer addresses, quoted addresses and ports, and every checksum that
//! covers them, by delta.

use std::net::IpAddr;

use crate::wire::checksum::Sum;
use crate::wire::{Family, Packet, Rewrite, Transport, be16, bytes_at, put, sctp};

/// What an error is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation<A> {
    pub src: A,
    pub dst: A,
    /// The tuple of the quoted packet.
    pub quoted: Rewrite<A>,
}

/// What changed, as two checksums see it.
struct Changes {
    /// The quoted transport's: pseudo header and ports.
    transport: Sum,
    /// ICMP's: all of the quote that changes.
    icmp: Sum,
}

impl Changes {
    /// Writes `new` at `at`; both checksums cover it.
    fn both<const N: usize>(&mut self, bytes: &mut [u8], at: usize, new: [u8; N]) {
        let old = bytes_at::<N>(bytes, at);
        self.transport = self.transport.with(old, new);
        self.icmp = self.icmp.with(old, new);
        put(bytes, at, new);
    }

    /// Writes a checksum inside the quote, which only ICMP's covers.
    fn icmp_only<const N: usize>(&mut self, bytes: &mut [u8], at: usize, new: [u8; N]) {
        self.icmp = self.icmp.with(bytes_at::<N>(bytes, at), new);
        put(bytes, at, new);
    }

    fn address(&mut self, bytes: &mut [u8], at: usize, new: IpAddr) {
        match new {
            IpAddr::V4(new) => self.both(bytes, at, new.octets()),
            IpAddr::V6(new) => self.both(bytes, at, new.octets()),
        }
    }
}

/// Translates an ICMP error about the packet quoted at `quoted`; takes one from its TTL.
pub fn translate<F: Family>(bytes: &mut [u8], headers: &Packet, quoted: &Packet, to: &Translation<F::Addr>) {
    let outer = F::readdress(bytes, usize::from(headers.l3), to.src, to.dst);
    // ICMPv6 sums its pseudo header, ICMP has none.
    let icmp = if F::V6 { outer } else { Sum::default() };
    let mut changes = Changes { transport: Sum::default(), icmp };
    let (l3, l4) = (usize::from(quoted.l3), usize::from(quoted.l4));
    let (src_at, dst_at) = if F::V6 { (l3 + 8, l3 + 24) } else { (l3 + 12, l3 + 16) };
    changes.address(bytes, src_at, F::to_ip(to.quoted.src));
    changes.address(bytes, dst_at, F::to_ip(to.quoted.dst));
    if !F::V6 {
        let new = changes.transport.apply(bytes_at(bytes, l3 + 10));
        changes.icmp_only(bytes, l3 + 10, new);
    }
    let ports = bytes_at(bytes, l4);
    changes.both(bytes, l4, to.quoted.src_port.to_be_bytes());
    changes.both(bytes, l4 + 2, to.quoted.dst_port.to_be_bytes());
    if quoted.transport == Transport::Sctp {
        sctp_checksum(bytes, quoted, ports, &mut changes);
    } else {
        transport_checksum(bytes, quoted, &mut changes);
    }
    let at = usize::from(headers.l4) + 2;
    let new = changes.icmp.apply(bytes_at(bytes, at));
    put(bytes, at, new);
}

/// The quoted packet's own checksum, if the quote reaches that far: senders may compare what is quoted
/// with what they sent.
fn transport_checksum(bytes: &mut [u8], quoted: &Packet, changes: &mut Changes) {
    let tcp = quoted.transport == Transport::Tcp;
    let at = usize::from(quoted.l4) + if tcp { 16 } else { 6 };
    if at + 2 > usize::from(quoted.end) {
        return;
    }
    let old = bytes_at(bytes, at);
    // RFC 768: zero means "no checksum", and is never the sum itself.
    if !tcp && old == [0, 0] {
        return;
    }
    let new = match changes.transport.apply(old) {
        [0, 0] if !tcp => [0xff, 0xff],
        new => new,
    };
    changes.icmp_only(bytes, at, new);
}

/// CRC32c of a quoted SCTP packet: how far its ports are from its end, its IP header says, however much of it is
/// quoted. Of a first fragment nobody can say.
fn sctp_checksum(bytes: &mut [u8], quoted: &Packet, old_ports: [u8; 4], changes: &mut Changes) {
    let (l3, l4) = (usize::from(quoted.l3), usize::from(quoted.l4));
    let fragment = if quoted.v6 {
        // A fragment header would stand right before the ports.
        bytes_at::<1>(bytes, l3 + 6) != [quoted.protocol]
    } else {
        be16(bytes, l3 + 6) & 0x3fff != 0
    };
    let total = if quoted.v6 { 40 + usize::from(be16(bytes, l3 + 4)) } else { usize::from(be16(bytes, l3 + 2)) };
    let Some(len) = total.checked_sub(l4 - l3).filter(|len| *len >= sctp::HEADER && !fragment) else { return };
    let old = sctp::checksum(bytes, l4);
    if l4 + sctp::HEADER <= usize::from(quoted.end) && old != [0; 4] {
        changes.icmp_only(bytes, l4 + 8, sctp::mend(old, old_ports, bytes_at(bytes, l4), len));
    }
}
