//! An ICMP error rewritten in place: outer addresses, quoted addresses and ports, and every checksum that
//! covers them, by delta.

use std::net::IpAddr;

use crate::wire::checksum::Sum;
use crate::wire::{Family, Packet, Rewrite, Transport, bytes_at, put};

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
    fn icmp_only(&mut self, bytes: &mut [u8], at: usize, new: [u8; 2]) {
        self.icmp = self.icmp.with(bytes_at::<2>(bytes, at), new);
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
    changes.both(bytes, l4, to.quoted.src_port.to_be_bytes());
    changes.both(bytes, l4 + 2, to.quoted.dst_port.to_be_bytes());
    transport_checksum(bytes, quoted, &mut changes);
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
