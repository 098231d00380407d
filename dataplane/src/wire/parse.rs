//! One pass over the headers of a frame: everything that could be wrong with a length is found here.

use super::{
    ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP,
    PROTO_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, be16, sctp,
};
use crate::verdict::DropReason;

/// What the frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    Ip(Packet),
    Arp,
    /// Neither IP nor ARP.
    Foreign,
}

/// An IP packet whose headers lie inside the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// End of the IP packet; what follows in the frame is Ethernet padding.
    pub end: u16,
    pub v6: bool,
    pub transport: Transport,
    /// The protocol of the transport header as it stands in the packet.
    pub protocol: u8,
    /// Of SCTP [`sctp::OPENS`], or nothing.
    pub tcp_flags: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
    /// ICMP or ICMPv6, by the packet's family.
    Icmp,
    /// A fragment, first or not: `l4` is where its payload starts.
    Fragment,
    Other,
}

impl Packet {
    /// Whether it may be the first of a flow: UDP, a SYN alone, or an SCTP INIT.
    #[inline]
    #[must_use]
    pub fn may_open(&self) -> bool {
        match self.transport {
            Transport::Tcp => self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN,
            Transport::Sctp => self.tcp_flags & sctp::OPENS != 0,
            _ => true,
        }
    }
}

const VLAN_TPIDS: [u16; 2] = [0x8100, 0x88a8];
const MAX_TAGS: usize = 2;
/// More extension headers than any sane packet has (RFC 8504 section 5.3 lets a node limit them).
const MAX_EXTENSION_HEADERS: usize = 8;

/// Finds the headers of an Ethernet frame.
///
/// # Errors
/// The drop reason that names what is malformed.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Parsed, DropReason> {
    parse_part(frame, frame.len())
}

/// [`parse`] of a packet of `whole` bytes, of which `frame` has the first: all headers must be in it, with TCP's
/// options and what an SCTP packet says before its data.
///
/// # Errors
/// As [`parse`]; and `HeadersSplit`.
#[inline]
pub fn parse_part(frame: &[u8], whole: usize) -> Result<Parsed, DropReason> {
    let mut ethertype_at = 12;
    for _ in 0..=MAX_TAGS {
        if frame.len() < ethertype_at + 2 {
            return Err(missing(ethertype_at + 2, whole, DropReason::TruncatedEthernet));
        }
        let l3 = ethertype_at + 2;
        match be16(frame, ethertype_at) {
            ETHERTYPE_IPV4 => return ipv4(frame, whole, l3),
            ETHERTYPE_IPV6 => return ipv6(frame, whole, l3),
            ETHERTYPE_ARP => return Ok(Parsed::Arp),
            tpid if VLAN_TPIDS.contains(&tpid) => ethertype_at += 4,
            _ => return Ok(Parsed::Foreign),
        }
    }
    Err(DropReason::TooManyTags)
}

/// Where the IP header starts: behind the Ethernet header and its tags. For frames `parse` accepted.
#[must_use]
pub fn l3_offset(frame: &[u8]) -> usize {
    let tags = (0..MAX_TAGS).take_while(|tag| VLAN_TPIDS.contains(&be16(frame, 12 + 4 * tag))).count();
    ETHERNET_HEADER + 4 * tags
}

#[inline]
fn ipv4(frame: &[u8], whole: usize, l3: usize) -> Result<Parsed, DropReason> {
    let Some(header) = frame.get(l3..).and_then(|rest| rest.first_chunk::<20>()) else {
        return Err(missing(l3 + 20, whole, DropReason::TruncatedIp));
    };
    if header[0] >> 4 != 4 {
        return Err(DropReason::BadIpVersion);
    }
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header_len < 20 || l3 + header_len > frame.len() {
        let split = header_len >= 20 && l3 + header_len <= whole;
        return Err(if split { DropReason::HeadersSplit } else { DropReason::BadHeaderLength });
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total < header_len || l3 + total > whole {
        return Err(DropReason::BadTotalLength);
    }
    // More-fragments flag or a fragment offset.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    transport(frame, l3, l3 + header_len, l3 + total, false, header[9], fragment)
}

#[inline]
fn ipv6(frame: &[u8], whole: usize, l3: usize) -> Result<Parsed, DropReason> {
    let Some(header) = frame.get(l3..).and_then(|rest| rest.first_chunk::<40>()) else {
        return Err(missing(l3 + 40, whole, DropReason::TruncatedIp));
    };
    if header[0] >> 4 != 6 {
        return Err(DropReason::BadIpVersion);
    }
    let end = l3 + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if end > whole {
        return Err(DropReason::BadTotalLength);
    }
    let mut next = header[6];
    let mut at = l3 + 40;
    // RFC 8200 section 4: hop-by-hop, routing, fragment, destination options, authentication.
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let len = match next {
            0 | 43 | 60 => (usize::from(byte_before(frame, at + 1, end)?) + 1) * 8,
            51 => match byte_before(frame, at + 1, end)? {
                // Its fixed part alone takes three words (RFC 4302 section 2.2).
                0 => return Err(DropReason::BadExtensionHeaders),
                words => (usize::from(words) + 2) * 4,
            },
            44 => {
                byte_before(frame, at + 7, end)?;
                // An "atomic" fragment (RFC 6946) is a whole packet: other headers may follow.
                if be16(frame, at + 2) & 0xfff9 != 0 {
                    return transport(frame, l3, at + 8, end, true, byte_before(frame, at, end)?, true);
                }
                8
            }
            _ => return transport(frame, l3, at, end, true, next, false),
        };
        if at + len > end {
            return Err(DropReason::BadExtensionHeaders);
        }
        // Section 4.1: hop-by-hop options come first or not at all.
        if next == 0 && at != l3 + 40 {
            return Err(DropReason::BadExtensionHeaders);
        }
        // A routing header with segments left: the destination is not the last one, which the checksum
        // is over (RFC 8200 section 8.1), and no router has asked this box to stand in (RFC 5095).
        if next == 43 && byte_before(frame, at + 3, end)? != 0 {
            return Err(DropReason::BadExtensionHeaders);
        }
        next = byte_before(frame, at, end)?;
        at += len;
    }
    Err(DropReason::BadExtensionHeaders)
}

fn byte_before(frame: &[u8], at: usize, end: usize) -> Result<u8, DropReason> {
    if at >= end {
        return Err(DropReason::BadExtensionHeaders);
    }
    frame.get(at).copied().ok_or(DropReason::HeadersSplit)
}

/// What is wrong where a header that ends at `end` is not in the first part of a packet.
#[cold]
fn missing(end: usize, whole: usize, reason: DropReason) -> DropReason {
    if end <= whole { DropReason::HeadersSplit } else { reason }
}

/// Longer than any transport header that is read of a fragment: TCP's with all its options.
const TRANSPORT_HEADER: usize = 60;

#[inline]
fn transport(
    frame: &[u8],
    l3: usize,
    l4: usize,
    end: usize,
    v6: bool,
    protocol: u8,
    fragment: bool,
) -> Result<Parsed, DropReason> {
    let mut packet = Packet {
        // A packet is at most 64 KiB long: its offsets fit.
        l3: l3 as u16,
        l4: l4 as u16,
        end: end as u16,
        v6,
        transport: Transport::Other,
        protocol,
        tcp_flags: 0,
    };
    let len = end - l4;
    let here = frame.get(l4..end.min(frame.len())).unwrap_or_default();
    match protocol {
        _ if fragment && here.len() < len.min(TRANSPORT_HEADER) => return Err(DropReason::HeadersSplit),
        _ if fragment => packet.transport = Transport::Fragment,
        PROTO_TCP => {
            let Some(header) = here.first_chunk::<20>() else {
                return Err(missing(20, len, DropReason::TruncatedTransport));
            };
            let data = usize::from(header[12] >> 4) * 4;
            if data < 20 || data > len {
                return Err(DropReason::BadTcpOffset);
            }
            if data > here.len() {
                return Err(DropReason::HeadersSplit);
            }
            packet.tcp_flags = header[13];
            check_tcp_flags(packet.tcp_flags)?;
            check_ports(header[0..4].try_into().unwrap_or([0; 4]))?;
            packet.transport = Transport::Tcp;
        }
        PROTO_UDP => {
            let Some(header) = here.first_chunk::<8>() else {
                return Err(missing(8, len, DropReason::TruncatedTransport));
            };
            let udp_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            if udp_len < 8 || udp_len > len {
                return Err(DropReason::BadUdpLength);
            }
            check_ports(header[0..4].try_into().unwrap_or([0; 4]))?;
            packet.transport = Transport::Udp;
        }
        PROTO_SCTP => {
            packet.tcp_flags = sctp::check(here, len)?;
            packet.transport = Transport::Sctp;
        }
        PROTO_ICMP if !v6 => packet.transport = icmp(here.len(), len)?,
        PROTO_ICMPV6 if v6 => packet.transport = icmp(here.len(), len)?,
        _ => {}
    }
    Ok(Parsed::Ip(packet))
}

fn icmp(here: usize, len: usize) -> Result<Transport, DropReason> {
    if here < 8 { Err(missing(8, len, DropReason::TruncatedTransport)) } else { Ok(Transport::Icmp) }
}

#[inline]
pub(crate) fn check_tcp_flags(flags: u8) -> Result<(), DropReason> {
    let contradictory = flags & TCP_SYN != 0 && flags & (TCP_FIN | TCP_RST) != 0;
    if contradictory || flags & 0x3f == 0 { Err(DropReason::BadTcpFlags) } else { Ok(()) }
}

#[inline]
fn check_ports(ports: [u8; 4]) -> Result<(), DropReason> {
    let [s0, s1, d0, d1] = ports;
    if s0 | s1 == 0 || d0 | d1 == 0 { Err(DropReason::PortZero) } else { Ok(()) }
}

/// The value of a TCP timestamp option (RFC 7323); 0: there is none.
#[must_use]
pub fn tcp_timestamp(frame: &[u8], packet: &Packet) -> u32 {
    tcp_timestamps(frame, packet)[0]
}

/// The value of a TCP timestamp option, and the one it echoes; zeros: there is none.
#[must_use]
pub fn tcp_timestamps(frame: &[u8], packet: &Packet) -> [u32; 2] {
    let l4 = usize::from(packet.l4);
    let end = l4 + usize::from(frame.get(l4 + 12).copied().unwrap_or(0) >> 4) * 4;
    let Some(options) = frame.get(l4 + 20..end) else { return [0; 2] };
    let mut rest = options;
    // Each turn takes at least one byte, so a loop of options ends.
    while let [kind, tail @ ..] = rest {
        rest = match (kind, tail) {
            (0, _) => return [0; 2],
            (1, tail) => tail,
            (8, [10, a, b, c, d, e, f, g, h, ..]) => {
                return [u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h])];
            }
            (_, [len, ..]) if *len >= 2 => rest.get(usize::from(*len)..).unwrap_or_default(),
            _ => return [0; 2],
        };
    }
    [0; 2]
}
