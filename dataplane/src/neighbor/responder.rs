//! Answers ARP requests and neighbour solicitations for the box's own addresses, in the packet
//! path: the request is rewritten in place into its answer. Pure and allocation free.
//!
//! Sources: RFC 826 and 5227 (ARP, probes, conflicts), RFC 4861 sections 7.1 and 7.2 (validity and
//! answers), RFC 4862 section 5.4 (duplicate address detection).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Mac;
use super::frames::{
    ADVERTISEMENT, ALL_NODES, ARP_LEN, ARP_REPLY, ARP_REQUEST, BROADCAST, ETHERNET_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4,
    ETHERTYPE_IPV6, IPV6_LEN, ND_LEN, NEXT_HEADER_ICMPV6, Nd, OPTION_SOURCE_LINK, OPTION_TARGET_LINK, OVERRIDE,
    SOLICITATION, SOLICITED, icmpv6_sum, multicast_mac, solicited_node, write_arp, write_nd,
};
use crate::verdict::DropReason;

/// What becomes of an ARP or neighbour-discovery packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The buffer holds the answer, so many bytes long, for the port the request came in by.
    Reply(usize),
    /// Not about our addresses: the kernel's business.
    Kernel,
    /// Another host claims one of our addresses. Drop it (as [`DropReason::NeighborIgnored`]) and
    /// tell housekeeping, which knows whether `mac` is another port of this very box.
    Conflict {
        address: IpAddr,
        mac: Mac,
    },
    Drop(DropReason),
}

const IGNORED: Answer = Answer::Drop(DropReason::NeighborIgnored);

/// Answers the `len` bytes of frame at the start of `buf`, which is the frame's whole room: an
/// advertisement may be longer than the solicitation. `mac` is the port's, `ours` says which
/// addresses the box answers for.
#[must_use]
pub fn answer(buf: &mut [u8], len: usize, mac: Mac, ours: impl Fn(IpAddr) -> bool) -> Answer {
    let Some(frame) = buf.get(..len) else { return Answer::Drop(DropReason::TruncatedEthernet) };
    let (l2_len, ethertype) = match ethernet(frame) {
        Ok(found) => found,
        Err(reason) => return Answer::Drop(reason),
    };
    let destination = mac_at(frame, 0);
    if destination != mac && !is_group(destination) {
        // A switch that floods, or a port in promiscuous mode.
        return IGNORED;
    }
    match ethertype {
        ETHERTYPE_ARP => answer_arp(buf, len, l2_len, mac, ours),
        ETHERTYPE_IPV6 => answer_nd(buf, len, l2_len, mac, ours),
        _ => Answer::Kernel,
    }
}

/// Length of the Ethernet header with its tags, and the EtherType behind them.
fn ethernet(frame: &[u8]) -> Result<(usize, u16), DropReason> {
    const MAX_TAGS: usize = 2;
    let mut at = ETHERNET_LEN - 2;
    for tags in 0..=MAX_TAGS {
        let bytes = frame.get(at..at + 2).ok_or(DropReason::TruncatedEthernet)?;
        match u16::from_be_bytes([bytes[0], bytes[1]]) {
            0x8100 | 0x88a8 if tags == MAX_TAGS => return Err(DropReason::TooManyTags),
            0x8100 | 0x88a8 => at += 4,
            ethertype => return Ok((at + 2, ethertype)),
        }
    }
    Err(DropReason::TooManyTags)
}

/// An address some host has or, while it probes, is about to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub address: IpAddr,
    pub mac: Mac,
    pub probe: bool,
}

/// Whose address the frame claims, for the announcer, which listens to other hosts.
#[must_use]
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let (l2_len, ethertype) = ethernet(frame).ok()?;
    match ethertype {
        ETHERTYPE_ARP => {
            let arp = Arp::read(frame.get(l2_len..)?)?;
            let probe = arp.sender.is_unspecified() && arp.operation == ARP_REQUEST;
            let address = if probe { arp.target } else { arp.sender };
            Some(Claim { address: address.into(), mac: arp.sender_mac, probe })
        }
        ETHERTYPE_IPV6 => {
            let message = message(&frame[l2_len..]).ok()??;
            let probe = message.kind == SOLICITATION && message.source.is_unspecified();
            let address = if message.kind == ADVERTISEMENT || probe { message.target } else { message.source };
            Some(Claim { address: address.into(), mac: message.link.unwrap_or(mac_at(frame, 6)), probe })
        }
        _ => None,
    }
}

/// What an ARP packet for IPv4 over Ethernet says, once its fixed fields are right.
struct Arp {
    operation: u16,
    sender_mac: Mac,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl Arp {
    fn read(packet: &[u8]) -> Option<Self> {
        let arp = packet.get(..ARP_LEN)?;
        // Ethernet, IPv4, address lengths 6 and 4: the only ARP there is on our ports.
        if arp[..2] != [0, 1] || arp[2..4] != ETHERTYPE_IPV4.to_be_bytes() || arp[4..6] != [6, 4] {
            return None;
        }
        let read = Self {
            operation: u16::from_be_bytes([arp[6], arp[7]]),
            sender_mac: mac_at(arp, 8),
            sender: ipv4_at(arp, 14),
            target: ipv4_at(arp, 24),
        };
        let no_host = is_group(read.sender_mac)
            || read.sender_mac == [0; 6]
            || read.sender.is_multicast()
            || read.sender.is_broadcast();
        (!no_host).then_some(read)
    }
}

fn answer_arp(buf: &mut [u8], len: usize, l2_len: usize, mac: Mac, ours: impl Fn(IpAddr) -> bool) -> Answer {
    let Some(arp) = Arp::read(&buf[l2_len..len]) else { return IGNORED };
    if ours(arp.sender.into()) {
        // RFC 5227 section 2.4: whoever sends from our address conflicts with us, unless it is us.
        let conflict = Answer::Conflict { address: arp.sender.into(), mac: arp.sender_mac };
        return if arp.sender_mac == mac { IGNORED } else { conflict };
    }
    if arp.operation != ARP_REQUEST || !ours(arp.target.into()) {
        return Answer::Kernel;
    }
    // A probe (sender 0.0.0.0) is answered like any request: that defends the address.
    write_link_addresses(buf, arp.sender_mac, mac);
    write_arp(&mut buf[l2_len..], ARP_REPLY, (mac, arp.target), (arp.sender_mac, arp.sender));
    Answer::Reply(len)
}

/// A neighbour-discovery message that passed every check of RFC 4861 section 7.1.
struct Message {
    kind: u8,
    source: Ipv6Addr,
    target: Ipv6Addr,
    /// The sender's address from its link-layer option.
    link: Option<Mac>,
}

fn answer_nd(buf: &mut [u8], len: usize, l2_len: usize, mac: Mac, ours: impl Fn(IpAddr) -> bool) -> Answer {
    let frame = &buf[..len];
    let ethernet_source = mac_at(frame, 6);
    let message = match message(&frame[l2_len..]) {
        Ok(Some(message)) => message,
        Ok(None) => return Answer::Kernel,
        Err(reason) => return Answer::Drop(reason),
    };
    let sender_mac = message.link.unwrap_or(ethernet_source);
    if is_group(sender_mac) || sender_mac == [0; 6] {
        return IGNORED;
    }
    let claimed = if message.kind == ADVERTISEMENT { message.target } else { message.source };
    if ours(claimed.into()) {
        let conflict = Answer::Conflict { address: claimed.into(), mac: sender_mac };
        return if sender_mac == mac { IGNORED } else { conflict };
    }
    if message.kind != SOLICITATION || !ours(message.target.into()) {
        return Answer::Kernel;
    }
    if message.source.is_unspecified() && ethernet_source == mac {
        // Our own probe, looped back: answering would make us our own conflict.
        return IGNORED;
    }
    advertise(buf, l2_len, mac, sender_mac, &message)
}

/// Rewrites the solicitation into its advertisement (RFC 4861 section 7.2.4).
fn advertise(buf: &mut [u8], l2_len: usize, mac: Mac, sender_mac: Mac, solicitation: &Message) -> Answer {
    let nd = |flags| Nd {
        kind: ADVERTISEMENT,
        flags,
        target: solicitation.target,
        link_option: Some((OPTION_TARGET_LINK, mac)),
    };
    // Someone detecting duplicates has no address yet to be answered at.
    let (nd, to, to_mac) = if solicitation.source.is_unspecified() {
        (nd(OVERRIDE), ALL_NODES, multicast_mac(ALL_NODES))
    } else {
        (nd(OVERRIDE | SOLICITED), solicitation.source, sender_mac)
    };
    let len = l2_len + IPV6_LEN + nd.len();
    if len > buf.len() {
        return Answer::Drop(DropReason::NoFrame);
    }
    write_link_addresses(buf, to_mac, mac);
    write_nd(&mut buf[l2_len..], solicitation.target, to, &nd);
    Answer::Reply(len)
}

/// Reads a solicitation or advertisement; `None` for any other packet.
fn message(packet: &[u8]) -> Result<Option<Message>, DropReason> {
    let ip = packet.get(..IPV6_LEN).ok_or(DropReason::TruncatedIp)?;
    if ip[0] >> 4 != 6 {
        return Err(DropReason::BadIpVersion);
    }
    if ip[6] != NEXT_HEADER_ICMPV6 {
        return Ok(None);
    }
    let payload_len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let body = packet[IPV6_LEN..].get(..payload_len).ok_or(DropReason::BadTotalLength)?;
    let kind = *body.first().ok_or(DropReason::TruncatedTransport)?;
    if kind != SOLICITATION && kind != ADVERTISEMENT {
        return Ok(None);
    }
    if body.len() < ND_LEN {
        return Err(DropReason::TruncatedTransport);
    }
    let source = ipv6_at(ip, 8);
    let destination = ipv6_at(ip, 24);
    let target = ipv6_at(body, 8);
    let (code, hop_limit) = (body[1], ip[7]);
    let valid = hop_limit == 255
        && code == 0
        && !target.is_multicast()
        && !source.is_multicast()
        && !source.is_loopback()
        && icmpv6_sum(source, destination, body) == 0xffff;
    if !valid {
        return Err(DropReason::NeighborIgnored);
    }
    let wanted = if kind == SOLICITATION { OPTION_SOURCE_LINK } else { OPTION_TARGET_LINK };
    let link = link_option(&body[ND_LEN..], wanted)?;
    if !kind_rules_hold(kind, body[4] & SOLICITED != 0, source, destination, target, link) {
        return Err(DropReason::NeighborIgnored);
    }
    Ok(Some(Message { kind, source, target, link }))
}

/// What RFC 4861 section 7.1.1 asks of solicitations and 7.1.2 of advertisements alone.
fn kind_rules_hold(
    kind: u8,
    solicited: bool,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    target: Ipv6Addr,
    link: Option<Mac>,
) -> bool {
    match kind {
        SOLICITATION if source.is_unspecified() => destination == solicited_node(target) && link.is_none(),
        SOLICITATION => true,
        _ if source.is_unspecified() => false,
        _ => !solicited || !destination.is_multicast(),
    }
}

/// The address in the first `wanted` option. Every option must have a length and lie in the packet,
/// whether it is read or not.
fn link_option(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while !options.is_empty() {
        let units = *options.get(1).ok_or(DropReason::NeighborIgnored)?;
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            return Err(DropReason::NeighborIgnored);
        }
        if options[0] == wanted && found.is_none() {
            found = Some(mac_at(options, 2));
        }
        options = &options[len..];
    }
    Ok(found)
}

fn write_link_addresses(buf: &mut [u8], destination: Mac, source: Mac) {
    buf[..6].copy_from_slice(&destination);
    buf[6..12].copy_from_slice(&source);
}

/// Broadcast and multicast addresses: no host has one as its own.
fn is_group(mac: Mac) -> bool {
    mac == BROADCAST || mac[0] & 1 == 1
}

fn mac_at(bytes: &[u8], at: usize) -> Mac {
    array_at(bytes, at)
}

fn ipv4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    array_at::<4>(bytes, at).into()
}

fn ipv6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    array_at::<16>(bytes, at).into()
}

/// Callers have checked the length; zeroes stand in for what a mistake of theirs would leave out.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}
