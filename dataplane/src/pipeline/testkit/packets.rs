//! Packets built and read by etherparse.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, LinkExtSlice, LinkSlice, NetSlice, SingleVlanHeader,
    SlicedPacket, TcpHeader, TransportSlice, UdpHeader, VlanId,
};

use super::{BACK, BOX_MACS, FRONT, client_mac, node_mac};
use crate::verdict::PortId;
use crate::wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, sctp};

/// A TCP, UDP or SCTP packet to be; of the last, `seq` is the verification tag and `payload` the chunks.
#[derive(Debug, Clone)]
pub struct Pkt {
    pub smac: [u8; 6],
    pub dmac: [u8; 6],
    /// Outer first; the outer of two gets the 802.1ad TPID.
    pub vlans: Vec<u16>,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub protocol: u8,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub timestamp: Option<u32>,
    pub ttl: u8,
    pub payload: Vec<u8>,
    pub ip_options: Vec<u8>,
    /// Zero bytes behind the packet, as short frames have.
    pub padding: usize,
    /// UDP or SCTP without a checksum.
    pub unchecked: bool,
}

impl Pkt {
    /// From a client: the frame comes from its neighbour to the front port.
    pub fn tcp(src: &str, dst: &str, flags: u8) -> Self {
        Self::between(src.parse().expect("a source"), dst.parse().expect("a destination"), PROTO_TCP, flags)
    }

    /// See [`Self::tcp`].
    pub fn udp(src: &str, dst: &str) -> Self {
        Self::between(src.parse().expect("a source"), dst.parse().expect("a destination"), PROTO_UDP, 0)
    }

    /// See [`Self::tcp`].
    pub fn sctp(src: &str, dst: &str, tag: u32, chunks: &[u8]) -> Self {
        let ends = (src.parse().expect("a source"), dst.parse().expect("a destination"));
        Self::between(ends.0, ends.1, PROTO_SCTP, 0).with(|pkt| pkt.seq = tag).payload(chunks)
    }

    pub fn syn(src: &str, dst: &str) -> Self {
        Self::tcp(src, dst, TCP_SYN)
    }

    pub fn between(src: SocketAddr, dst: SocketAddr, protocol: u8, flags: u8) -> Self {
        Self {
            smac: client_mac(src.ip()),
            dmac: BOX_MACS[usize::from(FRONT.0)],
            vlans: Vec::new(),
            src,
            dst,
            protocol,
            flags,
            // Both ends begin with 1000, and nobody has said anything yet.
            seq: if flags & TCP_SYN != 0 { 1000 } else { 1001 },
            ack: if flags & TCP_ACK != 0 { 1001 } else { 0 },
            timestamp: None,
            ttl: 64,
            payload: Vec::new(),
            ip_options: Vec::new(),
            padding: 0,
            unchecked: false,
        }
    }

    /// What a node answers to a packet it got.
    pub fn answer(to: &Seen, flags: u8) -> Self {
        let phantom = u32::from(to.flags & (TCP_SYN | TCP_FIN) != 0);
        let end = to.seq.wrapping_add(to.payload.len() as u32).wrapping_add(phantom);
        Self {
            smac: node_mac(to.dst.ip()),
            dmac: BOX_MACS[usize::from(BACK.0)],
            vlans: to.vlans.clone(),
            ack: if flags & TCP_ACK != 0 { end } else { 0 },
            ..Self::between(to.dst, to.src, to.protocol, flags)
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let (v4, ip) = self.ip(transport.len());
        let ether_type = if v4 { EtherType::IPV4 } else { EtherType::IPV6 };
        let mut frame = link(self.dmac, self.smac, &self.vlans, ether_type);
        frame.extend(ip);
        frame.extend(transport);
        frame.extend(std::iter::repeat_n(0, self.padding));
        frame
    }

    fn ip(&self, len: usize) -> (bool, Vec<u8>) {
        ip(self.src.ip(), self.dst.ip(), self.protocol, self.ttl, len, &self.ip_options)
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.protocol == PROTO_SCTP {
            bytes.extend([self.src.port(), self.dst.port()].map(u16::to_be_bytes).as_flattened());
            bytes.extend(self.seq.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&self.payload);
            if !self.unchecked {
                let sum = sctp::right_checksum(&bytes);
                bytes[8..12].copy_from_slice(&sum);
            }
            return bytes;
        }
        if self.protocol == PROTO_TCP {
            let mut header = TcpHeader::new(self.src.port(), self.dst.port(), self.seq, 0xffff);
            header.acknowledgment_number = self.ack;
            header.syn = self.flags & TCP_SYN != 0;
            header.ack = self.flags & TCP_ACK != 0;
            header.fin = self.flags & TCP_FIN != 0;
            header.rst = self.flags & TCP_RST != 0;
            if let Some(stamp) = self.timestamp {
                let [a, b, c, d] = stamp.to_be_bytes();
                header.set_options_raw(&[1, 1, 8, 10, a, b, c, d, 0, 0, 0, 0]).expect("short options");
            }
            header.checksum = match (self.src.ip(), self.dst.ip()) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), &self.payload)
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &self.payload)
                }
                _ => panic!("two families in one packet"),
            }
            .expect("a short payload");
            header.write(&mut bytes).expect("a vector takes all");
        } else {
            let mut header = UdpHeader {
                source_port: self.src.port(),
                destination_port: self.dst.port(),
                length: 8 + self.payload.len() as u16,
                checksum: 0,
            };
            if !self.unchecked {
                header.checksum = udp_sum(&header, self.src.ip(), self.dst.ip(), &self.payload);
            }
            header.write(&mut bytes).expect("a vector takes all");
        }
        bytes.extend(&self.payload);
        bytes
    }
}

fn udp_sum(header: &UdpHeader, src: IpAddr, dst: IpAddr, payload: &[u8]) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload),
        (IpAddr::V6(src), IpAddr::V6(dst)) => header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload),
        _ => panic!("two families in one packet"),
    }
    .expect("a short payload")
}

fn link(destination: [u8; 6], source: [u8; 6], vlans: &[u16], last: EtherType) -> Vec<u8> {
    const TAGS: [EtherType; 2] = [EtherType::PROVIDER_BRIDGING, EtherType::VLAN_TAGGED_FRAME];
    let types: Vec<EtherType> = TAGS[2 - vlans.len()..].iter().copied().chain([last]).collect();
    let mut frame = Vec::new();
    Ethernet2Header { source, destination, ether_type: types[0] }.write(&mut frame).expect("a vector takes all");
    for (vlan, ether_type) in vlans.iter().zip(&types[1..]) {
        let vlan_id = VlanId::try_new(*vlan).expect("12 bits");
        let tag = SingleVlanHeader { vlan_id, ether_type: *ether_type, ..SingleVlanHeader::default() };
        tag.write(&mut frame).expect("a vector takes all");
    }
    frame
}

fn ip(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, len: usize, options: &[u8]) -> (bool, Vec<u8>) {
    let mut bytes = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let payload_len = len as u16;
            let mut header =
                Ipv4Header::new(payload_len, ttl, IpNumber(protocol), src.octets(), dst.octets()).expect("it fits");
            header.options = options.try_into().expect("a multiple of four");
            header.set_payload_len(len).expect("it fits");
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut bytes).expect("a vector takes all");
            (true, bytes)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = Ipv6Header {
                payload_length: len as u16,
                next_header: IpNumber(protocol),
                hop_limit: ttl,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            header.write(&mut bytes).expect("a vector takes all");
            (false, bytes)
        }
        _ => panic!("two families in one packet"),
    }
}

/// An ICMP or ICMPv6 packet, or one of any other protocol.
#[derive(Debug, Clone)]
pub struct Icmp {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    /// Type, code, checksum (mended) and the rest.
    pub message: Vec<u8>,
    pub ttl: u8,
}

impl Icmp {
    /// An echo request.
    pub fn echo(src: &str, dst: &str, data: &[u8]) -> Self {
        let src: IpAddr = src.parse().expect("an address");
        let kind = if src.is_ipv4() { 8 } else { 128 };
        Self::message(src, dst.parse().expect("an address"), &[&[kind, 0, 0, 0, 1, 2, 3, 4], data].concat())
    }

    pub fn message(src: IpAddr, dst: IpAddr, message: &[u8]) -> Self {
        let protocol = if src.is_ipv4() { 1 } else { 58 };
        Self { src, dst, protocol, message: message.to_vec(), ttl: 64 }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut message = self.message.clone();
        if matches!(self.protocol, 1 | 58) {
            message[2..4].fill(0);
            let sum = internet_sum(&pseudo(self.src, self.dst, self.protocol, message.len()), &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let (v4, header) = ip(self.src, self.dst, self.protocol, self.ttl, message.len(), &[]);
        let ether_type = if v4 { EtherType::IPV4 } else { EtherType::IPV6 };
        let mut frame = link(BOX_MACS[0], client_mac(self.src), &[], ether_type);
        frame.extend(header);
        frame.extend(message);
        frame
    }
}

/// The pseudo header of ICMPv6; nothing for ICMP.
fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            [&src.octets()[..], &dst.octets(), &(len as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
        }
        _ => Vec::new(),
    }
}

/// RFC 1071 by the letter.
pub fn internet_sum(front: &[u8], bytes: &[u8]) -> u16 {
    let add = |sum: u32, bytes: &[u8]| {
        bytes
            .chunks(2)
            .fold(sum, |sum, pair| sum + (u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))))
    };
    let mut sum = add(add(0, front), bytes);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a frame is, for comparing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub smac: [u8; 6],
    pub dmac: [u8; 6],
    pub vlans: Vec<u16>,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub protocol: u8,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub ttl: u8,
    /// Of TCP and UDP the data, of ICMP the message.
    pub payload: Vec<u8>,
    /// Checksums that are wrong: "ip", "tcp", "udp", "sctp", "icmp".
    pub wrong: Vec<&'static str>,
}

/// Reads a frame and recomputes every checksum in it.
pub fn look(frame: &[u8]) -> Result<Seen, String> {
    let sliced = SlicedPacket::from_ethernet(frame).map_err(|err| err.to_string())?;
    let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link else { return Err("no Ethernet header".into()) };
    let vlans = sliced.link_exts.iter().filter_map(|ext| match ext {
        LinkExtSlice::Vlan(vlan) => Some(vlan.vlan_identifier().value()),
        LinkExtSlice::Macsec(_) => None,
    });
    let mut wrong = Vec::new();
    let (src, dst, ttl, protocol) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            if header.header_checksum != header.calc_header_checksum() {
                wrong.push("ip");
            }
            let addresses: [IpAddr; 2] = [header.source.into(), header.destination.into()];
            (addresses[0], addresses[1], header.time_to_live, ip.payload_ip_number().0)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            let addresses: [IpAddr; 2] = [header.source.into(), header.destination.into()];
            (addresses[0], addresses[1], header.hop_limit, ip.payload().ip_number.0)
        }
        _ => return Err("no IP header".into()),
    };
    let (ports, flags, payload) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let right = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => tcp.calc_checksum_ipv4(src.octets(), dst.octets()),
                (IpAddr::V6(src), IpAddr::V6(dst)) => tcp.calc_checksum_ipv6(src.octets(), dst.octets()),
                _ => return Err("two families".into()),
            };
            if right.map_err(|err| err.to_string())? != tcp.checksum() {
                wrong.push("tcp");
            }
            ([tcp.source_port(), tcp.destination_port()], tcp.slice()[13], tcp.payload())
        }
        Some(TransportSlice::Udp(udp)) => {
            let right = udp_sum(&udp.to_header(), src, dst, udp.payload());
            if udp.checksum() != 0 && udp.checksum() != right {
                wrong.push("udp");
            }
            ([udp.source_port(), udp.destination_port()], 0, udp.payload())
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            if internet_sum(&[], icmp.slice()) != 0 {
                wrong.push("icmp");
            }
            ([0, 0], 0, icmp.slice())
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            if internet_sum(&pseudo(src, dst, 58, icmp.slice().len()), icmp.slice()) != 0 {
                wrong.push("icmp");
            }
            ([0, 0], 0, icmp.slice())
        }
        None if protocol == PROTO_SCTP => {
            let bytes = sliced.ip_payload().map_or(&[][..], |payload| payload.payload);
            let (Some([s0, s1, d0, d1, _, _, _, _, sum @ ..]), chunks) = (bytes.first_chunk::<12>(), bytes.get(12..))
            else {
                return Err("no SCTP header".into());
            };
            if *sum != [0; 4] && *sum != sctp::right_checksum(bytes) {
                wrong.push("sctp");
            }
            let ports = [u16::from_be_bytes([*s0, *s1]), u16::from_be_bytes([*d0, *d1])];
            (ports, 0, chunks.unwrap_or_default())
        }
        _ => ([0, 0], 0, sliced.ip_payload().map_or(&[][..], |payload| payload.payload)),
    };
    let (seq, ack) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.sequence_number(), tcp.acknowledgment_number()),
        _ => (0, 0),
    };
    Ok(Seen {
        smac: ethernet.source(),
        dmac: ethernet.destination(),
        vlans: vlans.collect(),
        src: SocketAddr::new(src, ports[0]),
        dst: SocketAddr::new(dst, ports[1]),
        protocol,
        flags,
        seq,
        ack,
        ttl,
        payload: payload.to_vec(),
        wrong,
    })
}

/// [`look`] at a frame that must be right in every respect.
#[track_caller]
pub fn valid(frame: &[u8]) -> Seen {
    let seen = look(frame).unwrap_or_else(|problem| panic!("{problem}: {frame:02x?}"));
    assert!(seen.wrong.is_empty(), "wrong checksums {:?}: {seen:?}", seen.wrong);
    seen
}

impl Seen {
    /// The port a node's answer to this comes in by, or a client's.
    pub fn comes_in_by(&self) -> PortId {
        if self.dmac[1] == 0xee { BACK } else { FRONT }
    }
}
