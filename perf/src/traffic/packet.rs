//! Packets of a load: one template per size, a few fields per packet, the checksum by sums made once.

use std::net::IpAddr;

use penstock_dataplane::clock::Now;

use super::mix::{FCS, Mix};

const ETHERNET: usize = 14;
const UDP: usize = 8;
const TCP: usize = 20;
const TCP_SYN: u8 = 0x02;
const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
/// Source ports per client address: clients as they are, and ten million flows in ten thousand addresses. The
/// generator in the kernel has the same number (`bpf/generate.bpf.c`).
const PORTS: u32 = 1000;
pub(super) const FIRST_PORT: u16 = 10_000;

/// What the packets of a load look like behind the IP header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    #[default]
    Udp,
    /// Segments with data of an open connection; nobody's window moves.
    Tcp,
    /// What opens such a connection.
    #[value(skip)]
    Syn,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Syn => "TCP SYN",
        })
    }
}

impl Transport {
    fn protocol(self) -> u8 {
        if self == Self::Udp { 17 } else { 6 }
    }

    /// The smallest packet that holds a stamp, on a wire with its frame check sequence.
    #[must_use]
    pub fn least_on_wire(self, v6: bool) -> u16 {
        let (ip, header) = (if v6 { 40 } else { 20 }, if self == Self::Udp { UDP } else { TCP });
        (ETHERNET + ip + header + Stamp::LEN + FCS) as u16
    }

    /// The header behind the ports, without lengths and checksum.
    fn rest_of_header(self) -> &'static [u8] {
        const OPEN: [u8; 16] = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, TCP_ACK | TCP_PSH, 0xff, 0xff, 0, 0, 0, 0];
        const SYN: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0x50, TCP_SYN, 0xff, 0xff, 0, 0, 0, 0];
        match self {
            Self::Udp => &[0; 4],
            Self::Tcp => &OPEN,
            Self::Syn => &SYN,
        }
    }

    /// Where the checksum is, in the header.
    fn check_at(self) -> usize {
        if self == Self::Udp { 6 } else { 16 }
    }
}

/// What every packet carries behind its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counts the packets of a run.
    pub number: u32,
    pub flow: u32,
    /// When it was due.
    pub intended: Now,
    /// It comes late by the sender's fault, or behind others that do. On the wire the highest bit of the time it was
    /// due, which would take 292 years to get there.
    pub touched: bool,
}

impl Stamp {
    /// Bytes of a stamp.
    pub const LEN: usize = 16;

    fn bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.number.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.flow.to_be_bytes());
        let due = self.intended.ns | u64::from(self.touched) << 63;
        bytes[8..].copy_from_slice(&due.to_be_bytes());
        bytes
    }

    fn of(bytes: [u8; Self::LEN]) -> Self {
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let due = u64::from(number(8)) << 32 | u64::from(number(12));
        let intended = Now { ns: due & (u64::MAX >> 1) };
        Self { number: number(0), flow: number(4), intended, touched: due >> 63 == 1 }
    }
}

/// Where a load comes from and goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub src_mac: [u8; 6],
    /// The box's.
    pub dst_mac: [u8; 6],
    /// The first client's address; the next ones follow it.
    pub first_client: IpAddr,
    pub vip: IpAddr,
    pub vip_port: u16,
}

/// Makes the packets of a load.
pub struct Maker {
    route: Route,
    mix: Mix,
    transport: Transport,
    /// Headers with everything that never changes, for the longest packet.
    headers: Vec<u8>,
    /// Where the transport header begins.
    l4: usize,
    /// Sum over what its checksum covers, but for lengths, source and stamp.
    fixed_sum: u64,
}

impl Maker {
    /// Of UDP.
    ///
    /// # Panics
    /// Client and VIP are of different families.
    #[must_use]
    pub fn new(route: Route, mix: Mix) -> Self {
        Self::of(Transport::Udp, route, mix)
    }

    /// # Panics
    /// Client and VIP are of different families.
    #[must_use]
    pub fn of(transport: Transport, route: Route, mix: Mix) -> Self {
        let protocol = transport.protocol();
        let mut headers = Vec::with_capacity(ETHERNET + 40 + TCP);
        headers.extend(route.dst_mac);
        headers.extend(route.src_mac);
        match (route.first_client, route.vip) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                headers.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
                headers.extend(client.octets());
                headers.extend(vip.octets());
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                headers.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, 64]);
                headers.extend(client.octets());
                headers.extend(vip.octets());
            }
            (client, vip) => panic!("{client} and {vip} are of different families"),
        }
        let l4 = headers.len();
        headers.extend([0, 0]);
        headers.extend(route.vip_port.to_be_bytes());
        headers.extend(transport.rest_of_header());
        let vip_sum = match route.vip {
            IpAddr::V4(vip) => sum(&vip.octets()),
            IpAddr::V6(vip) => sum(&vip.octets()),
        };
        let fixed_sum = vip_sum + u64::from(protocol) + sum(&headers[l4..]);
        Self { route, mix, transport, headers, l4, fixed_sum }
    }

    #[must_use]
    pub fn route(&self) -> &Route {
        &self.route
    }

    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    pub(super) fn mix(&self) -> &Mix {
        &self.mix
    }

    pub(super) fn headers(&self) -> &[u8] {
        &self.headers
    }

    /// Sum of the transport checksum, but for lengths, the client's address and port, and the stamp.
    pub(super) fn fixed_sum(&self) -> u64 {
        self.fixed_sum
    }

    /// The length of a packet by its number: the mix's size, or the least that holds a stamp.
    #[must_use]
    pub fn frame_len(&self, number: u64) -> usize {
        self.mix.frame_len(number).max(self.headers.len() + Stamp::LEN)
    }

    /// A flow's client.
    #[must_use]
    pub fn client(&self, flow: u32) -> (IpAddr, u16) {
        let address = match self.route.first_client {
            IpAddr::V4(first) => IpAddr::V4((u32::from(first) + flow / PORTS).into()),
            IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::from(flow / PORTS)).into()),
        };
        (address, FIRST_PORT + (flow % PORTS) as u16)
    }

    /// Writes a packet into `frame`, which is [`Self::frame_len`] long.
    #[inline]
    pub fn write(&self, frame: &mut [u8], stamp: Stamp) {
        let (l4, payload) = (self.l4, self.headers.len());
        let l4_len = (frame.len() - l4) as u16;
        frame[..self.headers.len()].copy_from_slice(&self.headers);
        let (client, port) = self.client(stamp.flow);
        let mut total = self.fixed_sum + u64::from(port) + u64::from(l4_len);
        match client {
            IpAddr::V4(client) => {
                frame[26..30].copy_from_slice(&client.octets());
                let len = (frame.len() - ETHERNET) as u16;
                frame[16..18].copy_from_slice(&len.to_be_bytes());
                let check = !fold(sum(&frame[ETHERNET..l4]));
                frame[24..26].copy_from_slice(&check.to_be_bytes());
                total += sum(&client.octets());
            }
            IpAddr::V6(client) => {
                frame[22..38].copy_from_slice(&client.octets());
                frame[18..20].copy_from_slice(&l4_len.to_be_bytes());
                total += sum(&client.octets());
            }
        }
        let bytes = stamp.bytes();
        total += sum(&bytes);
        frame[l4..l4 + 2].copy_from_slice(&port.to_be_bytes());
        if self.transport == Transport::Udp {
            frame[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes());
            total += u64::from(l4_len);
        }
        // A datagram's sum of zero is sent as its other form: zero would say "no checksum" (RFC 768).
        let check = match !fold(total) {
            0 if self.transport == Transport::Udp => 0xffff,
            check => check,
        };
        let check_at = l4 + self.transport.check_at();
        frame[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
        frame[payload..payload + Stamp::LEN].copy_from_slice(&bytes);
        frame[payload + Stamp::LEN..].fill(0);
    }
}

/// The stamp of a packet from or to `port`; `None`: it is something else.
#[inline]
#[must_use]
pub fn stamp_of(frame: &[u8], port: u16) -> Option<Stamp> {
    let (l4, header) = transport_at(frame)?;
    let ports = frame.get(l4..l4 + 4)?;
    let port = port.to_be_bytes();
    if ports[..2] != port && ports[2..] != port {
        return None;
    }
    let bytes = frame.get(l4 + header..l4 + header + Stamp::LEN)?;
    Some(Stamp::of(bytes.try_into().ok()?))
}

/// Turns a request into its answer, in place: addresses and ports change sides, which no checksum notices; a SYN
/// becomes a SYN-ACK. False: neither UDP nor TCP.
#[inline]
pub fn answer(frame: &mut [u8]) -> bool {
    let Some((l4, header)) = transport_at(frame) else { return false };
    if frame.len() < l4 + header {
        return false;
    }
    swap(frame, 0, 6);
    let (at, len) = if frame[12] == 0x08 { (26, 4) } else { (22, 16) };
    swap(frame, at, len);
    swap(frame, l4, 2);
    if header == TCP && frame[l4 + 13] & (TCP_SYN | TCP_ACK) == TCP_SYN {
        acknowledge_syn(&mut frame[l4..l4 + TCP]);
    }
    true
}

/// A load's SYN acknowledges nothing: its acknowledgement number is 0.
fn acknowledge_syn(header: &mut [u8]) {
    let acknowledged = u32::from_be_bytes([header[4], header[5], header[6], header[7]]).wrapping_add(1).to_be_bytes();
    header[8..12].copy_from_slice(&acknowledged);
    header[13] |= TCP_ACK;
    let old = !u16::from_be_bytes([header[16], header[17]]);
    let check = !fold(u64::from(old) + sum(&acknowledged) + u64::from(TCP_ACK));
    header[16..18].copy_from_slice(&check.to_be_bytes());
}

/// Swaps two neighbouring fields of `len` bytes.
fn swap(frame: &mut [u8], at: usize, len: usize) {
    let (left, right) = frame[at..at + 2 * len].split_at_mut(len);
    left.swap_with_slice(right);
}

/// Where the transport header of an untagged packet without options or extension headers is, and its length: the
/// only kind a load sends.
#[inline]
fn transport_at(frame: &[u8]) -> Option<(usize, usize)> {
    let (l4, protocol) = match frame.get(12..24)? {
        [0x08, 0x00, 0x45, .., protocol] => (34, *protocol),
        [0x86, 0xdd, _, _, _, _, _, _, protocol, ..] => (54, *protocol),
        _ => return None,
    };
    match protocol {
        17 => Some((l4, UDP)),
        6 => Some((l4, TCP)),
        _ => None,
    }
}

/// Sum of 16-bit words, not folded.
#[inline]
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const TRANSPORTS: [Transport; 3] = [Transport::Udp, Transport::Tcp, Transport::Syn];

    /// etherparse reads what was written and agrees with every checksum.
    pub(in super::super) fn check(frame: &[u8]) -> (IpAddr, u16) {
        let seen = penstock_dataplane::pipeline::testkit::valid(frame);
        (seen.src.ip(), seen.src.port())
    }

    pub(in super::super) fn route(v6: bool) -> Route {
        let (first_client, vip) = if v6 {
            ("2001:db8:100::2".parse().unwrap(), "2001:db8:203::10".parse().unwrap())
        } else {
            ("198.18.0.1".parse().unwrap(), "203.0.113.10".parse().unwrap())
        };
        Route { src_mac: [2, 0, 0, 0, 0, 1], dst_mac: [2, 0, 0, 0, 0, 2], first_client, vip, vip_port: 80 }
    }

    #[test]
    fn every_packet_is_whole_and_its_answer_too() {
        for (v6, transport) in [false, true].into_iter().flat_map(|v6| TRANSPORTS.map(|t| (v6, t))) {
            for mix in [Mix::fixed(64), Mix::fixed(65), Mix::imix(), Mix::fixed(1518)] {
                let maker = Maker::of(transport, route(v6), mix);
                for number in (0..200_000_u32).step_by(997) {
                    let intended = Now { ns: u64::from(number) << 20 };
                    let stamp = Stamp { number, flow: number * 7, intended, touched: number % 2 == 1 };
                    let mut frame = vec![0; maker.frame_len(number.into())];
                    maker.write(&mut frame, stamp);
                    assert_eq!(check(&frame), maker.client(stamp.flow));
                    assert_eq!(stamp_of(&frame, 80), Some(stamp));
                    assert_eq!(stamp_of(&frame, 81), None);
                    assert!(answer(&mut frame));
                    assert_eq!(check(&frame).1, 80);
                    assert_eq!(stamp_of(&frame, 80), Some(stamp), "the port is on the other side now");
                }
            }
        }
    }

    /// One packet in 65,536: a datagram's is written as its other form, a segment's as it is (RFC 768, RFC 9293 3.1).
    #[test]
    fn a_checksum_of_zero_is_as_its_protocol_has_it() {
        for (transport, at, written, never) in [(Transport::Udp, 40, 0xffff, 0), (Transport::Tcp, 50, 0, 0xffff)] {
            let maker = Maker::of(transport, route(false), Mix::fixed(64));
            let mut frame = vec![0; maker.frame_len(0)];
            let mut found = 0;
            for number in 0..150_000 {
                maker.write(&mut frame, Stamp { number, flow: 2, intended: Now { ns: 3 }, touched: false });
                let sum = u16::from_be_bytes([frame[at], frame[at + 1]]);
                assert_ne!(sum, never);
                if sum == written {
                    found += 1;
                    check(&frame);
                }
            }
            assert!(found > 0, "{transport}");
        }
    }

    #[test]
    fn a_syn_is_answered_by_what_opens() {
        let maker = Maker::of(Transport::Syn, route(false), Mix::fixed(64));
        let mut frame = vec![0; maker.frame_len(0).max(70)];
        maker.write(&mut frame, Stamp { number: 1, flow: 2, intended: Now { ns: 3 }, touched: false });
        assert!(answer(&mut frame));
        let packet = etherparse::SlicedPacket::from_ethernet(&frame).expect("a packet");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("TCP") };
        assert!(tcp.syn() && tcp.ack());
        assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (0, 1));
    }

    #[test]
    fn sizes_are_those_of_the_mix() {
        assert_eq!(Maker::new(route(false), Mix::fixed(64)).frame_len(0), 60);
        assert_eq!(Maker::new(route(false), Mix::fixed(1518)).frame_len(0), 1514);
        for (v6, transport) in [false, true].into_iter().flat_map(|v6| TRANSPORTS.map(|t| (v6, t))) {
            let least = transport.least_on_wire(v6);
            let maker = Maker::of(transport, route(v6), Mix::imix());
            let on_wire = |number| maker.frame_len(number) + FCS;
            assert_eq!(on_wire(0), usize::from(least).max(64), "{transport}, {v6}");
            let mean = (0..12).map(on_wire).sum::<usize>() as f64 / 12.0;
            assert!((Mix::imix().at_least(least).mean() - mean).abs() < 1e-9, "{transport}, {v6}");
        }
        assert_eq!(Transport::Udp.least_on_wire(true), 82, "IPv6 and a stamp need more");
    }

    #[test]
    fn what_is_no_answerable_packet_is_left_alone() {
        for frame in [&mut [0_u8; 60][..], &mut [0_u8; 5], &mut [0x45; 20]] {
            let before = frame.to_vec();
            assert!(!answer(frame));
            assert_eq!(frame, before);
        }
    }
}
