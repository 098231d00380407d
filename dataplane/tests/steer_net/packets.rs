//! Frames for the steering table: etherparse builds the headers, the odd extension headers are bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4Header, Ipv4Options, Ipv6Header};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(crate) const CTAG: u16 = 0x8100;
pub(crate) const STAG: u16 = 0x88a8;

/// An Ethernet frame with the given tags, outermost first.
pub(crate) fn ethernet(tags: &[u16], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 6];
    frame.extend([4; 6]);
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend(100u16.to_be_bytes());
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Wraps an IP packet of either version.
pub(crate) fn frame(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    ethernet(tags, if packet[0] >> 4 == 4 { IPV4 } else { IPV6 }, packet)
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Fragment {
    pub(crate) more: bool,
    /// In units of 8 bytes.
    pub(crate) offset: u16,
}

pub(crate) const WHOLE: Fragment = Fragment { more: false, offset: 0 };
pub(crate) const FIRST: Fragment = Fragment { more: true, offset: 0 };
pub(crate) const LATER: Fragment = Fragment { more: false, offset: 185 };

pub(crate) fn ipv4(from: &str, to: &str, protocol: u8, options: usize, part: Fragment, payload: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let length = u16::try_from(payload.len()).unwrap();
    let mut header = Ipv4Header::new(length, 64, protocol.into(), octets(from), octets(to)).unwrap();
    header.options = Ipv4Options::try_from(vec![1u8; options].as_slice()).unwrap();
    header.dont_fragment = false;
    header.more_fragments = part.more;
    header.fragment_offset = part.offset.try_into().unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut bytes = Vec::new();
    header.write(&mut bytes).unwrap();
    bytes.extend(payload);
    bytes
}

/// Extension headers by kind, then the payload's protocol.
#[derive(Clone, Copy)]
pub(crate) enum Extension {
    /// Hop-by-hop (0), routing (43) or destination options (60), so many times 8 bytes long.
    Options(u8, u8),
    /// RFC 4302, with an integrity value of so many 4-byte words.
    Authentication(u8),
    Fragmented(Fragment),
}

pub(crate) fn ipv6(from: &str, to: &str, extensions: &[Extension], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut chain = payload.to_vec();
    let mut next = protocol;
    for extension in extensions.iter().rev() {
        let (kind, mut header) = match *extension {
            Extension::Options(kind, units) => {
                let mut header = vec![0; usize::from(units) * 8];
                header[1] = units - 1;
                (kind, header)
            }
            Extension::Authentication(words) => {
                let mut header = vec![0; 12 + usize::from(words) * 4];
                header[1] = words + 1;
                (51, header)
            }
            Extension::Fragmented(part) => {
                let field = part.offset << 3 | u16::from(part.more);
                let mut header = vec![0; 8];
                header[2..4].copy_from_slice(&field.to_be_bytes());
                (44, header)
            }
        };
        header[0] = next;
        header.extend(&chain);
        (chain, next) = (header, kind);
    }
    let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let header = Ipv6Header {
        payload_length: u16::try_from(chain.len()).unwrap(),
        next_header: next.into(),
        hop_limit: 255,
        source: octets(from),
        destination: octets(to),
        ..Ipv6Header::default()
    };
    let mut bytes = Vec::new();
    header.write(&mut bytes).unwrap();
    bytes.extend(chain);
    bytes
}

/// The first 20 bytes of TCP, or enough of UDP.
pub(crate) fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut bytes = source.to_be_bytes().to_vec();
    bytes.extend(destination.to_be_bytes());
    bytes.extend([0x50; 16]);
    bytes
}

/// An ICMP or ICMPv6 message of the type, quoting a packet.
pub(crate) fn icmp(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(quoted);
    bytes
}

pub(crate) fn arp(tags: &[u16], operation: u16, sender: &str, target: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend([4; 6]);
    bytes.extend(octets(sender));
    bytes.extend([0; 6]);
    bytes.extend(octets(target));
    ethernet(tags, 0x0806, &bytes)
}

/// A neighbour solicitation (135) or advertisement (136) about the target.
pub(crate) fn neighbor(kind: u8, to: &str, target: &str) -> Vec<u8> {
    let IpAddr::V6(target) = target.parse().unwrap() else { panic!("an IPv6 target") };
    ipv6("fe80::2", to, &[], ICMPV6, &icmp(kind, &target.octets()))
}
