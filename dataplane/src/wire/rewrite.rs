//! Address and port translation in place.

use super::{Family, Packet, Transport, bytes_at, put, sctp};

/// The tuple a packet gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite<A> {
    pub src: A,
    pub dst: A,
    pub src_port: u16,
    pub dst_port: u16,
}

/// Gives a TCP, UDP or SCTP packet its new tuple, takes one from its TTL, and mends the checksums by delta.
#[inline(always)]
pub fn rewrite<F: Family>(packet: &mut [u8], headers: &Packet, to: &Rewrite<F::Addr>) {
    let addresses = F::readdress(packet, usize::from(headers.l3), to.src, to.dst);
    let l4 = usize::from(headers.l4);
    let old_ports = bytes_at::<4>(packet, l4);
    let ([s0, s1], [d0, d1]) = (to.src_port.to_be_bytes(), to.dst_port.to_be_bytes());
    let ports = [s0, s1, d0, d1];
    if headers.transport == Transport::Sctp {
        return sctp::set_ports(packet, l4, usize::from(headers.end) - l4, ports);
    }
    put(packet, l4, ports);
    let change = addresses.with(old_ports, ports);
    if headers.transport == Transport::Tcp {
        let at = l4 + 16;
        put(packet, at, change.apply(bytes_at(packet, at)));
    } else {
        let at = l4 + 6;
        let old = bytes_at(packet, at);
        // RFC 768: zero means "no checksum"; a checksum that comes out as zero is sent as all ones.
        if old != [0, 0] {
            let new = change.apply(old);
            put(packet, at, if new == [0, 0] { [0xff, 0xff] } else { new });
        }
    }
}

/// Sets the Ethernet addresses; tags and EtherType stay as they came.
#[inline(always)]
pub fn set_macs(packet: &mut [u8], dst: [u8; 6], src: [u8; 6]) {
    let [d0, d1, d2, d3, d4, d5] = dst;
    let [s0, s1, s2, s3, s4, s5] = src;
    put(packet, 0, [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]);
}
