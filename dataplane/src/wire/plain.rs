//! Plain packets: what nearly all of an established connection's packets are, recognised by a few
//! comparisons at fixed offsets. Untagged, no IP options or extension headers, not a fragment, TCP with
//! ACK and none of SYN, FIN and RST, TTL to spare. A plain packet is one that [`super::parse()`] accepts
//! too, but for ports of zero, which no flow has.

use super::{
    ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, PROTO_TCP, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
    Transport, V4, V6, be16, be32,
};

const L3: usize = ETHERNET_HEADER;
const TCP_HEADER: usize = 20;

/// A family's plain packets.
pub trait Plain: Family {
    /// Where their transport header starts.
    const L4: usize;
    /// Ethernet, IP and TCP headers without options: all that is read or written of a plain packet.
    const HEADERS: usize = Self::L4 + TCP_HEADER;

    /// Whether the frame holds a plain packet.
    #[inline(always)]
    fn is_plain(frame: &[u8]) -> bool {
        Self::is_plain_part(frame, frame.len())
    }

    /// Whether a packet of `whole` bytes is plain, of which `frame` has the first.
    fn is_plain_part(frame: &[u8], whole: usize) -> bool;

    /// Bytes of IP packet, of a plain packet.
    fn ip_len(headers: &[u8]) -> usize;

    /// What `parse` would say of a plain packet; the flags are not needed.
    #[inline(always)]
    fn headers(bytes: &[u8]) -> Packet {
        Packet {
            l3: L3 as u16,
            l4: Self::L4 as u16,
            end: (L3 + Self::ip_len(bytes)) as u16,
            v6: Self::V6,
            transport: Transport::Tcp,
            protocol: PROTO_TCP,
            tcp_flags: TCP_ACK,
        }
    }
}

/// Whether a TCP header of a plain packet stands at `l4`, with `len` bytes of TCP.
#[inline(always)]
fn is_plain_tcp(headers: &[u8], l4: usize, len: usize) -> bool {
    let offset_and_flags = be16(headers, l4 + 12);
    let data = usize::from(offset_and_flags >> 12) * 4;
    let flags = offset_and_flags & u16::from(TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK);
    flags == u16::from(TCP_ACK) && data >= TCP_HEADER && data <= len
}

impl Plain for V4 {
    const L4: usize = L3 + 20;

    #[inline(always)]
    fn is_plain_part(frame: &[u8], whole: usize) -> bool {
        let Some(headers) = frame.get(..Self::HEADERS) else { return false };
        // EtherType, version and header length; fragment fields, TTL, protocol.
        let start = be32(headers, 12) >> 8;
        let middle = be32(headers, L3 + 6);
        let total = Self::ip_len(headers);
        start == u32::from(ETHERTYPE_IPV4) << 8 | 0x45
            && middle & 0x3fff_00ff == u32::from(PROTO_TCP)
            && middle & 0xff00 > 0x0100
            && L3 + total <= whole
            && total >= 20 + TCP_HEADER
            && is_plain_tcp(headers, Self::L4, total - 20)
    }

    #[inline(always)]
    fn ip_len(headers: &[u8]) -> usize {
        usize::from(be16(headers, L3 + 2))
    }
}

impl Plain for V6 {
    const L4: usize = L3 + 40;

    #[inline(always)]
    fn is_plain_part(frame: &[u8], whole: usize) -> bool {
        let Some(headers) = frame.get(..Self::HEADERS) else { return false };
        let start = be32(headers, 12) >> 12;
        let next_and_hops = be16(headers, L3 + 6);
        let total = Self::ip_len(headers);
        start == u32::from(ETHERTYPE_IPV6) << 4 | 6
            && next_and_hops >> 8 == u16::from(PROTO_TCP)
            && next_and_hops & 0xff > 1
            && L3 + total <= whole
            && total >= 40 + TCP_HEADER
            && is_plain_tcp(headers, Self::L4, total - 40)
    }

    #[inline(always)]
    fn ip_len(headers: &[u8]) -> usize {
        40 + usize::from(be16(headers, L3 + 4))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Parsed, parse};
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn packet(v6: bool, ttl: u8, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if v6 { ethernet.ipv6([7; 16], [8; 16], ttl) } else { ethernet.ipv4([9; 4], [10; 4], ttl) };
        let mut bytes = Vec::new();
        ip.tcp(1234, 443, 5, 6).ack(7).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn agrees<F: Plain>(frame: &[u8]) {
        if !F::is_plain(frame) {
            return;
        }
        let ours = F::headers(frame);
        match parse(frame) {
            Ok(Parsed::Ip(packet)) => assert_eq!(Packet { tcp_flags: TCP_ACK, ..packet }, ours),
            other => assert_eq!(other, Err(crate::verdict::DropReason::PortZero)),
        }
    }

    #[test]
    fn data_and_acks_are_plain_the_rest_is_not() {
        assert!(V4::is_plain(&packet(false, 2, b"")) && V4::is_plain(&packet(false, 64, b"GET")));
        assert!(V6::is_plain(&packet(true, 2, b"")) && V6::is_plain(&packet(true, 64, b"GET")));
        assert!(!V4::is_plain(&packet(false, 1, b"")) && !V6::is_plain(&packet(true, 1, b"")), "TTL runs out");
        assert!(!V4::is_plain(&packet(true, 64, b"")) && !V6::is_plain(&packet(false, 64, b"")));
        for (at, bit) in [(47, TCP_SYN), (47, TCP_FIN), (47, TCP_RST), (47, TCP_ACK), (20, 0x20), (21, 1), (14, 1)] {
            let mut changed = packet(false, 64, b"data");
            changed[at] ^= bit;
            assert!(!V4::is_plain(&changed), "byte {at}, bit {bit:#x}");
        }
    }

    proptest! {
        /// Any byte changed, any length cut: what is plain, `parse` sees the same way.
        #[test]
        fn plain_is_what_parse_says(v6: bool, cut in 0_usize..90, changes in prop::collection::vec((0_usize..80, any::<u8>()), 0..3)) {
            let mut frame = packet(v6, 64, b"0123456789");
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            frame.truncate(cut.max(14));
            agrees::<V4>(&frame);
            agrees::<V6>(&frame);
        }
    }
}
