//! TCP segments as the churn's ends send them: no IP options, the timestamp option in every segment (RFC 7323), the
//! maximum segment size in a SYN.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::traffic::packet::{fold, sum};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

const ETHERNET: usize = 14;
const TCP: usize = 20;
const MSS: [u8; 4] = [2, 4, 0x05, 0xb4];
/// Two NOPs, kind, length, value, echo.
const STAMPS: usize = 12;
const WINDOW: u16 = 0xffff;

/// An address and its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct End<A> {
    pub address: A,
    pub port: u16,
}

/// Both ends of a segment. The family is fixed for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ends {
    V4 { src: End<Ipv4Addr>, dst: End<Ipv4Addr> },
    V6 { src: End<Ipv6Addr>, dst: End<Ipv6Addr> },
}

impl Ends {
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        match self {
            Self::V4 { src, dst } => (src.port, dst.port),
            Self::V6 { src, dst } => (src.port, dst.port),
        }
    }
}

/// What a segment says, its payload aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub ends: Ends,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// The sender's timestamp, and the one it echoes.
    pub stamp: u32,
    pub echo: u32,
}

impl Segment {
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn header_len(flags: u8) -> usize {
        TCP + STAMPS + if flags & SYN != 0 { MSS.len() } else { 0 }
    }

    /// Length of the frame with so much payload.
    #[must_use]
    pub fn frame_len(ends: &Ends, flags: u8, payload: usize) -> usize {
        let ip = if matches!(ends, Ends::V4 { .. }) { 20 } else { 40 };
        ETHERNET + ip + Self::header_len(flags) + payload
    }

    /// Writes it into a frame of at least [`Self::frame_len`]; what is behind that is padding.
    pub fn write(&self, frame: &mut [u8], dst_mac: [u8; 6], src_mac: [u8; 6], payload: &[u8]) {
        frame[..6].copy_from_slice(&dst_mac);
        frame[6..12].copy_from_slice(&src_mac);
        let l4_len = (Self::header_len(self.flags) + payload.len()) as u16;
        let (l4, addresses) = match self.ends {
            Ends::V4 { src, dst } => {
                let [high, low] = (20 + l4_len).to_be_bytes();
                frame[12..26].copy_from_slice(&[8, 0, 0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0]);
                frame[26..30].copy_from_slice(&src.address.octets());
                frame[30..34].copy_from_slice(&dst.address.octets());
                let check = !fold(sum(&frame[14..34]));
                frame[24..26].copy_from_slice(&check.to_be_bytes());
                (34, sum(&frame[26..34]))
            }
            Ends::V6 { src, dst } => {
                let [high, low] = l4_len.to_be_bytes();
                frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, high, low, 6, 64]);
                frame[22..38].copy_from_slice(&src.address.octets());
                frame[38..54].copy_from_slice(&dst.address.octets());
                (54, sum(&frame[22..54]))
            }
        };
        let segment = &mut frame[l4..l4 + usize::from(l4_len)];
        self.write_header(segment);
        let header = Self::header_len(self.flags);
        segment[header..].copy_from_slice(payload);
        // A checksum covers an odd last byte as the high half of a word.
        let odd = segment.chunks_exact(2).remainder().first().map_or(0, |byte| u64::from(*byte) << 8);
        let check = !fold(addresses + 6 + u64::from(l4_len) + sum(segment) + odd);
        segment[16..18].copy_from_slice(&check.to_be_bytes());
    }

    fn write_header(&self, segment: &mut [u8]) {
        let header = Self::header_len(self.flags);
        let (src, dst) = self.ends.ports();
        segment[..2].copy_from_slice(&src.to_be_bytes());
        segment[2..4].copy_from_slice(&dst.to_be_bytes());
        segment[4..8].copy_from_slice(&self.seq.to_be_bytes());
        segment[8..12].copy_from_slice(&self.ack.to_be_bytes());
        segment[12..14].copy_from_slice(&[(header as u8 / 4) << 4, self.flags]);
        segment[14..16].copy_from_slice(&WINDOW.to_be_bytes());
        segment[16..20].fill(0);
        let mut at = TCP;
        if self.has(SYN) {
            segment[at..at + MSS.len()].copy_from_slice(&MSS);
            at += MSS.len();
        }
        segment[at..at + 4].copy_from_slice(&[1, 1, 8, 10]);
        segment[at + 4..at + 8].copy_from_slice(&self.stamp.to_be_bytes());
        segment[at + 8..at + STAMPS].copy_from_slice(&self.echo.to_be_bytes());
    }

    /// Reads a frame; the payload is the rest of it. `None`: no TCP segment that these ends could have sent.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (ends, rest) = read_ends(frame)?;
        let header = usize::from(rest.get(12)? >> 4) * 4;
        let flags = *rest.get(13)?;
        let (options, payload) = (rest.get(TCP..header)?, rest.get(header..)?);
        let number = |at: usize| Some(u32::from_be_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (stamp, echo) = stamps(options).unwrap_or_default();
        Some((Self { ends, seq: number(4)?, ack: number(8)?, flags, stamp, echo }, payload))
    }
}

fn read_ends(frame: &[u8]) -> Option<(Ends, &[u8])> {
    let port = |l4: &[u8], at: usize| Some(u16::from_be_bytes([*l4.get(at)?, *l4.get(at + 1)?]));
    match frame.get(12..24)? {
        [0x08, 0x00, 0x45, _, high, low, .., 6] => {
            let l4 = frame.get(34..ETHERNET + usize::from(u16::from_be_bytes([*high, *low])))?;
            let end = |at: usize, port| {
                let octets: [u8; 4] = frame[at..at + 4].try_into().ok()?;
                Some(End { address: octets.into(), port })
            };
            Some((Ends::V4 { src: end(26, port(l4, 0)?)?, dst: end(30, port(l4, 2)?)? }, l4))
        }
        [0x86, 0xdd, _, _, _, _, high, low, 6, ..] => {
            let l4 = frame.get(54..54 + usize::from(u16::from_be_bytes([*high, *low])))?;
            let end = |at: usize, port| {
                let octets: [u8; 16] = frame[at..at + 16].try_into().ok()?;
                Some(End { address: octets.into(), port })
            };
            Some((Ends::V6 { src: end(22, port(l4, 0)?)?, dst: end(38, port(l4, 2)?)? }, l4))
        }
        _ => None,
    }
}

/// The timestamp option, where these ends put it.
fn stamps(options: &[u8]) -> Option<(u32, u32)> {
    let options = options.strip_prefix(&MSS[..2]).map_or(options, |rest| &rest[2..]);
    let values = options.strip_prefix(&[1, 1, 8, 10])?;
    let number = |at: usize| Some(u32::from_be_bytes(values.get(at..at + 4)?.try_into().ok()?));
    Some((number(0)?, number(4)?))
}

#[cfg(test)]
pub(super) mod tests {
    use penstock_dataplane::pipeline::testkit;

    use super::*;

    pub(in super::super) fn ends(v6: bool) -> Ends {
        if v6 {
            let end = |text: &str, port| End { address: text.parse().expect("an address"), port };
            Ends::V6 { src: end("2001:db8:100::2", 40_000), dst: end("2001:db8:203::10", 80) }
        } else {
            let end = |text: &str, port| End { address: text.parse().expect("an address"), port };
            Ends::V4 { src: end("198.18.0.1", 40_000), dst: end("203.0.113.10", 80) }
        }
    }

    #[test]
    fn what_is_written_is_valid_and_is_read_again() {
        for v6 in [false, true] {
            for flags in [SYN, SYN | ACK, ACK | PSH, FIN | ACK, RST, ACK] {
                for payload in [&b""[..], b"x", b"sixteen bytes...", &[0xff; 999]] {
                    let segment = Segment { ends: ends(v6), seq: 0xffff_fff0, ack: 7, flags, stamp: 9, echo: 10 };
                    // With padding, as short frames have.
                    let mut frame = vec![0xee; Segment::frame_len(&segment.ends, flags, payload.len()) + 3];
                    segment.write(&mut frame, [2; 6], [4; 6], payload);
                    let seen = testkit::valid(&frame);
                    assert_eq!((seen.seq, seen.ack, seen.flags), (0xffff_fff0, 7, flags));
                    assert_eq!(seen.payload, payload);
                    assert_eq!(Segment::read(&frame), Some((segment, payload)));
                }
            }
        }
    }

    #[test]
    fn what_is_no_segment_is_not_read() {
        let segment = Segment { ends: ends(false), seq: 1, ack: 2, flags: ACK, stamp: 0, echo: 0 };
        let mut frame = vec![0; Segment::frame_len(&segment.ends, ACK, 0)];
        segment.write(&mut frame, [2; 6], [4; 6], b"");
        for len in 0..frame.len() {
            assert_eq!(Segment::read(&frame[..len]), None, "cut at {len}");
        }
        frame[23] = 17;
        assert_eq!(Segment::read(&frame), None);
    }
}
