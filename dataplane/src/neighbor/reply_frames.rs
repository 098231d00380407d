//! What the reply check asks nodes, as frames. Each question makes a node's kernel answer by itself, from the
//! backend's port or about it, so that the answer is steered to the box like any reply of the backend.
//!
//! * TCP: a SYN. Whatever comes back, SYN-ACK or RST, takes the way replies take; a RST of ours ends it.
//! * Others: a packet no kernel delivers, so that no server ever sees it: IPv4 with an option of impossible
//!   length (RFC 1122 section 3.2.2.5), IPv6 with a destination option of a type that must be complained about (RFC
//!   8200 section 4.2). The parameter problem quotes the ports.

use std::net::{IpAddr, SocketAddr};

use crate::tables::Hop;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, PROTO_UDP, TCP_RST, TCP_SYN};

const TTL: u8 = 64;
/// The first sequence number of every SYN here: nobody connects.
const SEQUENCE: u32 = 0x7065_6e00;
const DESTINATION_OPTIONS: u8 = 60;

/// What is sent to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Answer me.
    Ask,
    /// TCP only: never mind.
    Dismiss,
}

/// A question as a frame, from the probe's address and port to a backend's. `None`: the families differ.
#[must_use]
pub fn frame(question: Question, from: SocketAddr, to: SocketAddr, protocol: u8, hop: &Hop) -> Option<Vec<u8>> {
    let transport = match protocol {
        PROTO_TCP => tcp(question, from.port(), to.port()),
        _ => datagram(from.port(), to.port()),
    };
    let mut bytes = [hop.dst, hop.src].concat();
    for tag in hop.tags.iter().flat_map(|tags| tags.0).filter(|tag| *tag != 0) {
        bytes.extend(tag.to_be_bytes());
    }
    match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes.extend(ETHERTYPE_IPV4.to_be_bytes());
            let transport = summed(transport, &src.octets(), &dst.octets(), protocol);
            bytes.extend(ipv4(src.octets(), dst.octets(), protocol, transport.len()));
            bytes.extend(transport);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend(ETHERTYPE_IPV6.to_be_bytes());
            let transport = summed(transport, &src.octets(), &dst.octets(), protocol);
            bytes.extend(ipv6(src.octets(), dst.octets(), protocol, transport.len()));
            bytes.extend(transport);
        }
        _ => return None,
    }
    Some(bytes)
}

fn tcp(question: Question, from: u16, to: u16) -> Vec<u8> {
    let (sequence, flags) = match question {
        Question::Ask => (SEQUENCE, TCP_SYN),
        Question::Dismiss => (SEQUENCE + 1, TCP_RST),
    };
    let [f0, f1, t0, t1] = ports(from, to);
    let [s0, s1, s2, s3] = sequence.to_be_bytes();
    // No acknowledgment, a header of five words, a window of 1024.
    vec![f0, f1, t0, t1, s0, s1, s2, s3, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0]
}

fn datagram(from: u16, to: u16) -> Vec<u8> {
    let [f0, f1, t0, t1] = ports(from, to);
    vec![f0, f1, t0, t1, 0, 8, 0, 0]
}

fn ports(from: u16, to: u16) -> [u8; 4] {
    let ([f0, f1], [t0, t1]) = (from.to_be_bytes(), to.to_be_bytes());
    [f0, f1, t0, t1]
}

fn summed(mut transport: Vec<u8>, src: &[u8], dst: &[u8], protocol: u8) -> Vec<u8> {
    let at = match protocol {
        PROTO_TCP => 16,
        PROTO_UDP => 6,
        // Never read: the packet is complained about before.
        _ => return transport,
    };
    let sum = pseudo_header(src, dst, protocol, transport.len()).add(&transport).checksum();
    transport[at..at + 2].copy_from_slice(&sum);
    transport
}

fn ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, len: usize) -> Vec<u8> {
    // A record-route option that would end before it begins.
    let options: &[u8] = if protocol == PROTO_TCP { &[] } else { &[7, 1, 0, 0] };
    let header_len = 20 + options.len();
    let [l0, l1] = ((header_len + len) as u16).to_be_bytes();
    let mut header = vec![0x40 | (header_len / 4) as u8, 0, l0, l1, 0, 0, 0x40, 0, TTL, protocol, 0, 0];
    header.extend(src);
    header.extend(dst);
    header.extend(options);
    let sum = Sum::default().add(&header).checksum();
    header[10..12].copy_from_slice(&sum);
    header
}

fn ipv6(src: [u8; 16], dst: [u8; 16], protocol: u8, len: usize) -> Vec<u8> {
    // An experimental option (RFC 4727) whose type says: discard, and complain.
    let options: &[u8] = if protocol == PROTO_TCP { &[] } else { &[protocol, 0, 0x9e, 4, 0, 0, 0, 0] };
    let next = if options.is_empty() { protocol } else { DESTINATION_OPTIONS };
    let [l0, l1] = ((options.len() + len) as u16).to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, l0, l1, next, TTL];
    header.extend(src);
    header.extend(dst);
    header.extend(options);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::PortId;
    use crate::wire::{Parsed, Tags, Transport, parse};

    #[test]
    fn questions_are_whole_packets() {
        let hop = Hop::new(PortId(0), [2; 6], [4; 6], 1500);
        for (from, to) in [("192.0.2.254:777", "10.0.0.11:80"), ("[2001:db8::1]:777", "[fd00::11]:80")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for (protocol, transport) in [(PROTO_TCP, Transport::Tcp), (PROTO_UDP, Transport::Udp)] {
                for hop in [hop, hop.in_tags(Tags::NONE.with(0x8100, 7))] {
                    let bytes = frame(Question::Ask, from, to, protocol, &hop).unwrap();
                    let Ok(Parsed::Ip(packet)) = parse(&bytes) else { panic!("{bytes:02x?}") };
                    assert_eq!((packet.transport, usize::from(packet.end)), (transport, bytes.len()));
                    let l4 = usize::from(packet.l4);
                    assert_eq!(bytes[l4..l4 + 4], ports(777, 80));
                    assert_eq!(Tags::of(&bytes), hop.tags.unwrap_or_default());
                }
            }
        }
        let mixed = ("192.0.2.254:777".parse().unwrap(), "[fd00::11]:80".parse().unwrap());
        assert_eq!(frame(Question::Ask, mixed.0, mixed.1, PROTO_TCP, &hop), None);
    }
}
