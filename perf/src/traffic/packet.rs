//! Packets of a load: one template per size, a few fields per packet, the checksum by sums made once.

use std::net::IpAddr;

use penstock_dataplane::clock::Now;

use super::mix::{FCS, Mix};

const ETHERNET: usize = 14;
const UDP: usize = 8;
/// Source ports per client address: clients as they are, and ten million flows in ten thousand addresses.
const PORTS: u32 = 1000;
const FIRST_PORT: u16 = 10_000;

/// What every packet carries behind its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counts the packets of a run.
    pub number: u32,
    pub flow: u32,
    /// When it was due.
    pub intended: Now,
}

impl Stamp {
    /// Bytes of a stamp.
    pub const LEN: usize = 16;

    fn bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.number.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.flow.to_be_bytes());
        bytes[8..].copy_from_slice(&self.intended.ns.to_be_bytes());
        bytes
    }

    fn of(bytes: [u8; Self::LEN]) -> Self {
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let ns = u64::from(number(8)) << 32 | u64::from(number(12));
        Self { number: number(0), flow: number(4), intended: Now { ns } }
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
    /// Headers with everything that never changes, for the longest packet.
    headers: Vec<u8>,
    /// Sum over what the UDP checksum covers, but for lengths, source and stamp.
    fixed_sum: u64,
}

impl Maker {
    /// # Panics
    /// Client and VIP are of different families.
    #[must_use]
    pub fn new(route: Route, mix: Mix) -> Self {
        let mut headers = Vec::with_capacity(ETHERNET + 40 + UDP);
        headers.extend(route.dst_mac);
        headers.extend(route.src_mac);
        match (route.first_client, route.vip) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                headers.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
                headers.extend(client.octets());
                headers.extend(vip.octets());
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                headers.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
                headers.extend(client.octets());
                headers.extend(vip.octets());
            }
            (client, vip) => panic!("{client} and {vip} are of different families"),
        }
        headers.extend([0, 0]);
        headers.extend(route.vip_port.to_be_bytes());
        headers.extend([0; 4]);
        let vip_sum = match route.vip {
            IpAddr::V4(vip) => sum(&vip.octets()),
            IpAddr::V6(vip) => sum(&vip.octets()),
        };
        let fixed_sum = vip_sum + 17 + u64::from(route.vip_port);
        Self { route, mix, headers, fixed_sum }
    }

    /// The length of a packet by its number: the mix's size, or the least that holds a stamp.
    #[must_use]
    pub fn frame_len(&self, number: u64) -> usize {
        self.mix.frame_len(number).max(self.headers.len() + Stamp::LEN)
    }

    /// The smallest packet of this load on a wire, with its frame check sequence.
    #[must_use]
    pub fn smallest_on_wire(&self) -> usize {
        (usize::from(self.mix.smallest())).max(self.headers.len() + Stamp::LEN + FCS)
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
        let l4 = self.headers.len() - UDP;
        let udp_len = (frame.len() - l4) as u16;
        frame[..self.headers.len()].copy_from_slice(&self.headers);
        let (client, port) = self.client(stamp.flow);
        let mut total = self.fixed_sum + u64::from(port) + 2 * u64::from(udp_len);
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
                frame[18..20].copy_from_slice(&udp_len.to_be_bytes());
                total += sum(&client.octets());
            }
        }
        let bytes = stamp.bytes();
        total += sum(&bytes);
        frame[l4..l4 + 2].copy_from_slice(&port.to_be_bytes());
        frame[l4 + 4..l4 + 6].copy_from_slice(&udp_len.to_be_bytes());
        // A sum of zero is sent as its other form: zero would say "no checksum" (RFC 768).
        let check = match !fold(total) {
            0 => 0xffff,
            check => check,
        };
        frame[l4 + 6..l4 + 8].copy_from_slice(&check.to_be_bytes());
        frame[l4 + UDP..l4 + UDP + Stamp::LEN].copy_from_slice(&bytes);
        frame[l4 + UDP + Stamp::LEN..].fill(0);
    }
}

/// The stamp of a UDP packet from or to `port`; `None`: it is something else.
#[inline]
#[must_use]
pub fn stamp_of(frame: &[u8], port: u16) -> Option<Stamp> {
    let l4 = udp_at(frame)?;
    let ports = frame.get(l4..l4 + 4)?;
    let port = port.to_be_bytes();
    if ports[..2] != port && ports[2..] != port {
        return None;
    }
    let bytes = frame.get(l4 + UDP..l4 + UDP + Stamp::LEN)?;
    Some(Stamp::of(bytes.try_into().ok()?))
}

/// Turns a request into its answer, in place: addresses and ports change sides, which no checksum notices.
/// False: not UDP.
#[inline]
pub fn answer(frame: &mut [u8]) -> bool {
    let Some(l4) = udp_at(frame) else { return false };
    if frame.len() < l4 + UDP {
        return false;
    }
    swap(frame, 0, 6);
    let (at, len) = if frame[12] == 0x08 { (26, 4) } else { (22, 16) };
    swap(frame, at, len);
    swap(frame, l4, 2);
    true
}

/// Swaps two neighbouring fields of `len` bytes.
fn swap(frame: &mut [u8], at: usize, len: usize) {
    let (left, right) = frame[at..at + 2 * len].split_at_mut(len);
    left.swap_with_slice(right);
}

/// Where the UDP header of an untagged packet without options or extension headers is: the only kind a load sends.
#[inline]
fn udp_at(frame: &[u8]) -> Option<usize> {
    match frame.get(12..24)? {
        [0x08, 0x00, 0x45, _, _, _, _, _, _, _, _, 17] => Some(34),
        [0x86, 0xdd, _, _, _, _, _, _, 17, ..] => Some(54),
        _ => None,
    }
}

/// Sum of 16-bit words, not folded.
#[inline]
pub(super) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(v6: bool) -> Route {
        let (first_client, vip) = if v6 {
            ("2001:db8:100::2".parse().unwrap(), "2001:db8:203::10".parse().unwrap())
        } else {
            ("198.18.0.1".parse().unwrap(), "203.0.113.10".parse().unwrap())
        };
        Route { src_mac: [2, 0, 0, 0, 0, 1], dst_mac: [2, 0, 0, 0, 0, 2], first_client, vip, vip_port: 80 }
    }

    /// etherparse reads what was written and agrees with both checksums.
    fn check(frame: &[u8]) -> (IpAddr, u16) {
        let packet = etherparse::SlicedPacket::from_ethernet(frame).expect("a packet");
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("UDP") };
        let header = udp.to_header();
        let (source, whole) = match packet.net {
            Some(etherparse::NetSlice::Ipv4(ip)) => {
                let ip_header = ip.header().to_header();
                assert_eq!(ip_header.header_checksum, ip_header.calc_header_checksum());
                (ip.header().source_addr().into(), header.calc_checksum_ipv4(&ip_header, udp.payload()).unwrap())
            }
            Some(etherparse::NetSlice::Ipv6(ip)) => {
                let ip_header = ip.header().to_header();
                (ip.header().source_addr().into(), header.calc_checksum_ipv6(&ip_header, udp.payload()).unwrap())
            }
            _ => panic!("IP"),
        };
        assert_eq!(header.checksum, whole);
        (source, header.source_port)
    }

    #[test]
    fn every_packet_is_whole_and_its_answer_too() {
        for v6 in [false, true] {
            for mix in [Mix::fixed(64), Mix::fixed(65), Mix::imix(), Mix::fixed(1518)] {
                let maker = Maker::new(route(v6), mix);
                for number in (0..200_000_u32).step_by(997) {
                    let stamp = Stamp { number, flow: number * 7, intended: Now { ns: u64::from(number) << 20 } };
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

    #[test]
    fn sizes_are_those_of_the_mix() {
        assert_eq!(Maker::new(route(false), Mix::fixed(64)).frame_len(0), 60);
        assert_eq!(Maker::new(route(false), Mix::fixed(1518)).frame_len(0), 1514);
        assert_eq!(Maker::new(route(true), Mix::fixed(64)).smallest_on_wire(), 82, "IPv6 and a stamp need more");
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
