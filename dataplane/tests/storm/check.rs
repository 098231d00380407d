//! What a packet is, read by code of its own, and whether its checksums are right: chains of extension headers
//! included, which etherparse does not follow to the end, and datagrams put together from their fragments.

use std::collections::HashMap;
use std::net::IpAddr;

use penstock_dataplane::pipeline::testkit::internet_sum;
use penstock_dataplane::wire::sctp;

/// A packet's headers.
#[derive(Debug, Clone)]
pub struct Read {
    pub l3: usize,
    pub l4: usize,
    pub end: usize,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    /// Identification, offset, whether more follow; `None`: a whole packet.
    pub fragment: Option<(u32, usize, bool)>,
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// `None`: no IP packet, or one whose headers do not hold together.
pub fn read(frame: &[u8]) -> Option<Read> {
    let mut l3 = 14;
    while frame.len() >= l3 && matches!(be16(frame, l3 - 2), 0x8100 | 0x88a8) && l3 < 22 {
        l3 += 4;
    }
    match be16(frame.get(..l3)?, l3 - 2) {
        0x0800 => read4(frame, l3),
        0x86dd => read6(frame, l3),
        _ => None,
    }
}

fn read4(frame: &[u8], l3: usize) -> Option<Read> {
    let ip = frame.get(l3..)?;
    if ip.len() < 20 || ip[0] >> 4 != 4 {
        return None;
    }
    let (l4, end) = (l3 + usize::from(ip[0] & 15) * 4, l3 + be16(ip, 2));
    if l4 < l3 + 20 || end < l4 || end > frame.len() {
        return None;
    }
    let (offset, more) = ((be16(ip, 6) & 0x1fff) * 8, be16(ip, 6) & 0x2000 != 0);
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
    Some(Read {
        l3,
        l4,
        end,
        src: address(12),
        dst: address(16),
        protocol: ip[9],
        ttl: ip[8],
        fragment: (offset != 0 || more).then_some((be16(ip, 4) as u32, offset, more)),
    })
}

fn read6(frame: &[u8], l3: usize) -> Option<Read> {
    let ip = frame.get(l3..)?;
    if ip.len() < 40 || ip[0] >> 4 != 6 {
        return None;
    }
    let end = l3 + 40 + be16(ip, 4);
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
    let mut read =
        Read { l3, l4: l3 + 40, end, src: address(8), dst: address(24), protocol: ip[6], ttl: ip[7], fragment: None };
    let packet = frame.get(..end)?;
    while matches!(read.protocol, 0 | 43 | 44 | 51 | 60) {
        let header = packet.get(read.l4..read.l4 + 8)?;
        let len = match read.protocol {
            44 => 8,
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        let is_fragment = read.protocol == 44;
        (read.protocol, read.l4) = (header[0], read.l4 + len);
        if is_fragment && be16(header, 2) & 0xfff9 != 0 {
            let id = u32::from_be_bytes(header[4..8].try_into().unwrap());
            read.fragment = Some((id, be16(header, 2) & 0xfff8, be16(header, 2) & 1 != 0));
            break;
        }
    }
    (read.l4 <= end).then_some(read)
}

fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            [&src.octets()[..], &dst.octets(), &[0, protocol], &(len as u16).to_be_bytes()].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            [&src.octets()[..], &dst.octets(), &(len as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
        }
        _ => Vec::new(),
    }
}

/// Where the checksum of a transport stands, and over how many bytes it goes. `None`: there is none to check.
fn covered(read: &Read, transport: &[u8]) -> Option<(usize, usize)> {
    let (at, len) = match read.protocol {
        6 => (16, transport.len()),
        17 => (6, be16(transport.get(..8)?, 4)),
        1 if read.src.is_ipv4() => (2, transport.len()),
        58 if read.src.is_ipv6() => (2, transport.len()),
        _ => return None,
    };
    (len >= at + 2 && len <= transport.len()).then_some((at, len))
}

fn front(read: &Read, len: usize) -> Vec<u8> {
    if read.protocol == 1 { Vec::new() } else { pseudo(read.src, read.dst, read.protocol, len) }
}

/// What is wrong with a transport's checksum.
fn wrong_transport(read: &Read, transport: &[u8]) -> Option<String> {
    if read.protocol == 132 && transport.len() >= 12 {
        let (sum, right) = (&transport[8..12], sctp::right_checksum(transport));
        return (sum != [0; 4] && sum != right).then(|| format!("SCTP checksum {sum:02x?} instead of {right:02x?}"));
    }
    let (at, len) = covered(read, transport)?;
    if read.protocol == 17 && transport[at..at + 2] == [0, 0] {
        return None;
    }
    let sum = internet_sum(&front(read, len), &transport[..len]);
    (sum != 0).then(|| format!("the checksum of protocol {} is off by {sum:#x}", read.protocol))
}

/// Source, destination, identification, protocol.
type Datagram = (IpAddr, IpAddr, u32, u8);
/// Offset, whether more follow, bytes.
type Piece = (usize, bool, Vec<u8>);

/// Datagrams of which fragments have been seen.
#[derive(Default)]
pub struct Checker {
    pieces: HashMap<Datagram, Vec<Piece>>,
    pub datagrams: usize,
}

impl Checker {
    /// What is wrong with a packet's checksums, as far as they can be told.
    pub fn wrong(&mut self, frame: &[u8]) -> Option<String> {
        let read = read(frame)?;
        if read.src.is_ipv4() && internet_sum(&[], &frame[read.l3..read.l4]) != 0 {
            return Some("the IP header's checksum".into());
        }
        let transport = &frame[read.l4..read.end];
        match read.fragment {
            None => wrong_transport(&read, transport),
            Some((id, offset, more)) => self.wrong_whole(&read, id, (offset, more, transport.to_vec())),
        }
    }

    fn wrong_whole(&mut self, read: &Read, id: u32, piece: Piece) -> Option<String> {
        let key = (read.src, read.dst, id, read.protocol);
        let pieces = self.pieces.entry(key).or_default();
        if !pieces.iter().any(|(offset, ..)| *offset == piece.0) {
            pieces.push(piece);
        }
        pieces.sort();
        let mut whole = Vec::new();
        for (offset, _, bytes) in pieces.iter() {
            if *offset != whole.len() {
                return None;
            }
            whole.extend(bytes);
        }
        if pieces.last()?.1 {
            return None;
        }
        self.pieces.remove(&key);
        self.datagrams += 1;
        wrong_transport(read, &whole).map(|problem| format!("put together: {problem}"))
    }

    /// After a long time nobody waits for the rest of anything.
    pub fn forget(&mut self) {
        self.pieces.clear();
    }
}

/// Makes every checksum of a packet right that it has.
pub fn mend(frame: &mut [u8]) {
    let Some(read) = read(frame) else { return };
    if read.src.is_ipv4() {
        frame[read.l3 + 10..read.l3 + 12].fill(0);
        let sum = internet_sum(&[], &frame[read.l3..read.l4]);
        frame[read.l3 + 10..read.l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    if read.fragment.is_some() {
        return;
    }
    let transport = &mut frame[read.l4..read.end];
    if read.protocol == 132 && transport.len() >= 12 {
        let sum = sctp::right_checksum(transport);
        transport[8..12].copy_from_slice(&sum);
    }
    if let Some((at, len)) = covered(&read, transport) {
        transport[at..at + 2].fill(0);
        let sum = internet_sum(&front(&read, len), &transport[..len]);
        let sum = if read.protocol == 17 && sum == 0 { 0xffff } else { sum };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A whole IP packet in fragments of at most `size` bytes of payload, in order.
pub fn split(frame: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    let Some(whole) = read(frame).filter(|read| read.fragment.is_none()) else { return Vec::new() };
    let payload = &frame[whole.l4..whole.end];
    let count = payload.len().div_ceil(size);
    let piece = |(n, part): (usize, &[u8])| {
        let mut piece = frame[..whole.l4].to_vec();
        let (offset, more) = (n * size, n + 1 < count);
        if whole.src.is_ipv4() {
            let len = (whole.l4 - whole.l3 + part.len()) as u16;
            piece[whole.l3 + 2..whole.l3 + 4].copy_from_slice(&len.to_be_bytes());
            piece[whole.l3 + 4..whole.l3 + 6].copy_from_slice(&(id as u16).to_be_bytes());
            let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            piece[whole.l3 + 6..whole.l3 + 8].copy_from_slice(&field.to_be_bytes());
        } else {
            // Only in front of packets without other extension headers: see the caller.
            let field = offset as u16 | u16::from(more);
            piece[whole.l3 + 6] = 44;
            piece.extend([whole.protocol, 0]);
            piece.extend(field.to_be_bytes());
            piece.extend(id.to_be_bytes());
            let len = (piece.len() - whole.l3 - 40 + part.len()) as u16;
            piece[whole.l3 + 4..whole.l3 + 6].copy_from_slice(&len.to_be_bytes());
        }
        piece.extend(part);
        mend(&mut piece);
        piece
    };
    payload.chunks(size).enumerate().map(piece).collect()
}
