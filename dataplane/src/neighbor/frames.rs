//! The few bytes of ARP and neighbour discovery the box writes itself. Plain functions over
//! slices: the responder rewrites requests in place with them, the announcer builds whole frames.

use std::net::{Ipv4Addr, Ipv6Addr};

use arrayvec::ArrayVec;

use super::Mac;

pub(super) const ETHERNET_LEN: usize = 14;
pub(super) const ARP_LEN: usize = 28;
pub(super) const IPV6_LEN: usize = 40;
/// ICMPv6 header, flags and target: a neighbour solicitation or advertisement without options.
pub(super) const ND_LEN: usize = 24;
/// One link-layer address option.
pub(super) const LINK_OPTION_LEN: usize = 8;

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;

pub(super) const ARP_REQUEST: u16 = 1;
pub(super) const ARP_REPLY: u16 = 2;

pub(super) const NEXT_HEADER_ICMPV6: u8 = 58;
pub(super) const SOLICITATION: u8 = 135;
pub(super) const ADVERTISEMENT: u8 = 136;
pub(super) const OPTION_SOURCE_LINK: u8 = 1;
pub(super) const OPTION_TARGET_LINK: u8 = 2;

/// RFC 4861 section 4.4: the advertisement answers a solicitation.
pub(super) const SOLICITED: u8 = 0x40;
/// RFC 4861 section 4.4: replace what the cache has.
pub(super) const OVERRIDE: u8 = 0x20;

pub(super) const BROADCAST: Mac = [0xff; 6];
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Room for the longest frame built here: an advertisement with its option.
pub const FRAME_ROOM: usize = ETHERNET_LEN + IPV6_LEN + ND_LEN + LINK_OPTION_LEN;

/// A whole frame of the announcer, without checksum trailer.
pub type SmallFrame = ArrayVec<u8, FRAME_ROOM>;

/// Ethernet's shortest frame without its checksum; shorter ones are padded by whoever builds them.
const MIN_FRAME: usize = 60;

/// RFC 4291 section 2.7.1.
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// RFC 2464 section 7.
#[must_use]
pub fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// An RFC 5227 probe: who has `address`, asked by nobody.
#[must_use]
pub fn arp_probe(mac: Mac, address: Ipv4Addr) -> SmallFrame {
    arp_request(mac, Ipv4Addr::UNSPECIFIED, address)
}

/// An RFC 5227 announcement: `address` asked for by itself, so that caches that know it update.
#[must_use]
pub fn arp_announcement(mac: Mac, address: Ipv4Addr) -> SmallFrame {
    arp_request(mac, address, address)
}

fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> SmallFrame {
    let mut frame = blank(MIN_FRAME);
    let (ethernet, arp) = frame.split_at_mut(ETHERNET_LEN);
    write_ethernet(ethernet, BROADCAST, mac, ETHERTYPE_ARP);
    write_arp(arp, ARP_REQUEST, (mac, sender), ([0; 6], target));
    frame
}

/// An RFC 4862 section 5.4.2 probe: a solicitation from the unspecified address.
#[must_use]
pub fn dad_solicitation(mac: Mac, address: Ipv6Addr) -> SmallFrame {
    let group = solicited_node(address);
    let mut frame = blank(ETHERNET_LEN + IPV6_LEN + ND_LEN);
    let (ethernet, packet) = frame.split_at_mut(ETHERNET_LEN);
    write_ethernet(ethernet, multicast_mac(group), mac, ETHERTYPE_IPV6);
    let nd = Nd { kind: SOLICITATION, flags: 0, target: address, link_option: None };
    write_nd(packet, Ipv6Addr::UNSPECIFIED, group, &nd);
    frame
}

/// An RFC 4861 section 7.2.6 unsolicited advertisement to all nodes.
#[must_use]
pub fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> SmallFrame {
    let mut frame = blank(FRAME_ROOM);
    let (ethernet, packet) = frame.split_at_mut(ETHERNET_LEN);
    write_ethernet(ethernet, multicast_mac(ALL_NODES), mac, ETHERTYPE_IPV6);
    let nd = Nd { kind: ADVERTISEMENT, flags: OVERRIDE, target: address, link_option: Some((OPTION_TARGET_LINK, mac)) };
    write_nd(packet, address, ALL_NODES, &nd);
    frame
}

fn blank(len: usize) -> SmallFrame {
    std::iter::repeat_n(0, len).collect()
}

pub(super) fn write_ethernet(header: &mut [u8], destination: Mac, source: Mac, ethertype: u16) {
    header[..6].copy_from_slice(&destination);
    header[6..12].copy_from_slice(&source);
    header[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// Writes the 28 bytes of ARP over Ethernet for IPv4 (RFC 826).
pub(super) fn write_arp(arp: &mut [u8], operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) {
    arp[..2].copy_from_slice(&1_u16.to_be_bytes());
    arp[2..4].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    arp[4] = 6;
    arp[5] = 4;
    arp[6..8].copy_from_slice(&operation.to_be_bytes());
    arp[8..14].copy_from_slice(&sender.0);
    arp[14..18].copy_from_slice(&sender.1.octets());
    arp[18..24].copy_from_slice(&target.0);
    arp[24..28].copy_from_slice(&target.1.octets());
}

/// A solicitation or advertisement with at most one link-layer address option.
pub(super) struct Nd {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) target: Ipv6Addr,
    pub(super) link_option: Option<(u8, Mac)>,
}

impl Nd {
    pub(super) fn len(&self) -> usize {
        ND_LEN + if self.link_option.is_some() { LINK_OPTION_LEN } else { 0 }
    }
}

/// Writes the IPv6 header and the message, checksum included. `packet` starts at the IPv6 header
/// and has room for both.
pub(super) fn write_nd(packet: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr, nd: &Nd) {
    let len = nd.len();
    let (ip, message) = packet.split_at_mut(IPV6_LEN);
    let message = &mut message[..len];
    ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[4..6].copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
    ip[6] = NEXT_HEADER_ICMPV6;
    // RFC 4861 section 7.1: 255 proves that no router passed it on.
    ip[7] = 255;
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..40].copy_from_slice(&destination.octets());

    message[..8].copy_from_slice(&[nd.kind, 0, 0, 0, nd.flags, 0, 0, 0]);
    message[8..24].copy_from_slice(&nd.target.octets());
    if let Some((option, mac)) = nd.link_option {
        message[24] = option;
        message[25] = 1;
        message[26..32].copy_from_slice(&mac);
    }
    let checksum = !icmpv6_sum(source, destination, message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
}

/// The folded one's complement sum over pseudo header and message (RFC 8200 section 8.1): 0xffff
/// for a message whose checksum field is right.
pub(super) fn icmpv6_sum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = message.len() as u64 + u64::from(NEXT_HEADER_ICMPV6);
    for part in [&source.octets()[..], &destination.octets()[..], message] {
        let (pairs, odd) = part.as_chunks::<2>();
        sum += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
        sum += odd.first().map_or(0, |last| u64::from(*last) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded above.
    sum as u16
}
