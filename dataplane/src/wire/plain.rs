//! Plain packets: what nearly all of an established connection's packets are, recognised by a few
//! comparisons at fixed offsets. Untagged, no IP options or extension headers, not a fragment, TTL to spare; TCP with
//! ACK and none of SYN, FIN and RST, or UDP. A plain packet is one that [`super::parse()`] accepts
//! too, but for ports of zero in TCP, which no flow has.

use super::{
    ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, PROTO_TCP, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
    Transport, V4, V6, be16, be32,
};

const L3: usize = ETHERNET_HEADER;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// A family's plain packets.
pub trait Plain: Family {
    /// Where their transport header starts.
    const L4: usize;

    /// Ethernet, IP and transport headers without options: all that is read or written of a plain packet.
    #[inline(always)]
    #[must_use]
    fn room<const PROTOCOL: u8>() -> usize {
        Self::L4 + least::<PROTOCOL>()
    }

    /// Whether the frame holds a plain packet of TCP.
    #[inline(always)]
    fn is_plain(frame: &[u8]) -> bool {
        Self::is_plain_part::<PROTO_TCP>(frame, frame.len())
    }

    /// Whether a packet of `whole` bytes is plain, of which `frame` has the first.
    fn is_plain_part<const PROTOCOL: u8>(frame: &[u8], whole: usize) -> bool;

    /// Bytes of IP packet, of a plain packet.
    fn ip_len(headers: &[u8]) -> usize;

    /// What `parse` would say of a plain packet; the flags are not needed.
    #[inline(always)]
    fn headers<const PROTOCOL: u8>(bytes: &[u8]) -> Packet {
        let (transport, tcp_flags) =
            if PROTOCOL == PROTO_TCP { (Transport::Tcp, TCP_ACK) } else { (Transport::Udp, 0) };
        Packet {
            l3: L3 as u16,
            l4: Self::L4 as u16,
            end: (L3 + Self::ip_len(bytes)) as u16,
            v6: Self::V6,
            transport,
            protocol: PROTOCOL,
            tcp_flags,
        }
    }
}

/// A transport header without options.
#[inline(always)]
fn least<const PROTOCOL: u8>() -> usize {
    if PROTOCOL == PROTO_TCP { TCP_HEADER } else { UDP_HEADER }
}

/// Whether the transport header of a plain packet stands at `l4`, with `len` bytes from there on.
#[inline(always)]
fn is_plain_transport<const PROTOCOL: u8>(headers: &[u8], l4: usize, len: usize) -> bool {
    if PROTOCOL != PROTO_TCP {
        let has_ports = be16(headers, l4) != 0 && be16(headers, l4 + 2) != 0;
        return has_ports && usize::from(be16(headers, l4 + 4)) == len;
    }
    let offset_and_flags = be16(headers, l4 + 12);
    let data = usize::from(offset_and_flags >> 12) * 4;
    let flags = offset_and_flags & u16::from(TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK);
    flags == u16::from(TCP_ACK) && data >= TCP_HEADER && data <= len
}

impl Plain for V4 {
    const L4: usize = L3 + 20;

    #[inline(always)]
    fn is_plain_part<const PROTOCOL: u8>(frame: &[u8], whole: usize) -> bool {
        let Some(headers) = frame.get(..Self::room::<PROTOCOL>()) else { return false };
        // EtherType, version and header length; fragment fields, TTL, protocol.
        let start = be32(headers, 12) >> 8;
        let middle = be32(headers, L3 + 6);
        let total = Self::ip_len(headers);
        start == u32::from(ETHERTYPE_IPV4) << 8 | 0x45
            && middle & 0x3fff_00ff == u32::from(PROTOCOL)
            && middle & 0xff00 > 0x0100
            && L3 + total <= whole
            && total >= 20 + least::<PROTOCOL>()
            && is_plain_transport::<PROTOCOL>(headers, Self::L4, total - 20)
    }

    #[inline(always)]
    fn ip_len(headers: &[u8]) -> usize {
        usize::from(be16(headers, L3 + 2))
    }
}

impl Plain for V6 {
    const L4: usize = L3 + 40;

    #[inline(always)]
    fn is_plain_part<const PROTOCOL: u8>(frame: &[u8], whole: usize) -> bool {
        let Some(headers) = frame.get(..Self::room::<PROTOCOL>()) else { return false };
        let start = be32(headers, 12) >> 12;
        let next_and_hops = be16(headers, L3 + 6);
        let total = Self::ip_len(headers);
        start == u32::from(ETHERTYPE_IPV6) << 4 | 6
            && next_and_hops >> 8 == u16::from(PROTOCOL)
            && next_and_hops & 0xff > 1
            && L3 + total <= whole
            && total >= 40 + least::<PROTOCOL>()
            && is_plain_transport::<PROTOCOL>(headers, Self::L4, total - 40)
    }

    #[inline(always)]
    fn ip_len(headers: &[u8]) -> usize {
        40 + usize::from(be16(headers, L3 + 4))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PROTO_UDP, Parsed, parse};
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

    fn datagram(v6: bool, ttl: u8, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if v6 { ethernet.ipv6([7; 16], [8; 16], ttl) } else { ethernet.ipv4([9; 4], [10; 4], ttl) };
        let mut bytes = Vec::new();
        ip.udp(1234, 443).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn agrees<F: Plain, const PROTOCOL: u8>(frame: &[u8]) {
        if !F::is_plain_part::<PROTOCOL>(frame, frame.len()) {
            return;
        }
        let ours = F::headers::<PROTOCOL>(frame);
        match parse(frame) {
            Ok(Parsed::Ip(packet)) => assert_eq!(Packet { tcp_flags: ours.tcp_flags, ..packet }, ours),
            other => assert_eq!((PROTOCOL, other), (PROTO_TCP, Err(crate::verdict::DropReason::PortZero))),
        }
    }

    #[test]
    fn datagrams_are_plain_but_for_a_length_of_their_own() {
        let is_plain = |frame: &[u8]| {
            (V4::is_plain_part::<PROTO_UDP>(frame, frame.len()), V6::is_plain_part::<PROTO_UDP>(frame, frame.len()))
        };
        assert_eq!(is_plain(&datagram(false, 2, b"")), (true, false));
        assert_eq!(is_plain(&datagram(true, 2, b"data")), (false, true));
        assert_eq!(is_plain(&datagram(false, 1, b"")), (false, false), "TTL runs out");
        assert_eq!(is_plain(&packet(false, 64, b"GET")), (false, false), "TCP");
        for (at, bit) in [(39, 1), (20, 0x20), (21, 1), (14, 1), (23, 1)] {
            let mut changed = datagram(false, 64, b"data");
            changed[at] ^= bit;
            assert_eq!(is_plain(&changed), (false, false), "byte {at}, bit {bit:#x}");
        }
        for (v6, port) in [(false, 34), (false, 36), (true, 54), (true, 56)] {
            let mut changed = datagram(v6, 64, b"data");
            changed[port..port + 2].fill(0);
            assert_eq!(is_plain(&changed), (false, false), "a port of zero");
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
        fn plain_is_what_parse_says(v6: bool, udp: bool, cut in 0_usize..90, changes in prop::collection::vec((0_usize..80, any::<u8>()), 0..3)) {
            let mut frame = if udp { datagram(v6, 64, b"0123456789") } else { packet(v6, 64, b"0123456789") };
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            frame.truncate(cut.max(14));
            agrees::<V4, PROTO_TCP>(&frame);
            agrees::<V6, PROTO_TCP>(&frame);
            agrees::<V4, PROTO_UDP>(&frame);
            agrees::<V6, PROTO_UDP>(&frame);
        }
    }
}
