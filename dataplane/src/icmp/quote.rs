//! The packet an ICMP error quotes: as much of it as the router cared to send.

use crate::wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, Packet, Transport, be16, bytes_at};

/// As in [`crate::wire::parse`].
const MAX_EXTENSION_HEADERS: usize = 8;
/// The quoted headers start behind type, code, checksum and the word that depends on them.
const ICMP_HEADER: usize = 8;
/// What finds a flow, and is all that is asked for; RFC 792 promises twice as much.
const PORTS: usize = 4;

/// The headers quoted in an ICMP error; `end` is where the quote ends, or the packet in it. `None`:
/// too short to find a flow by, not TCP, UDP or SCTP, or about a later fragment.
#[must_use]
pub fn quoted(bytes: &[u8], headers: &Packet) -> Option<Packet> {
    let at = usize::from(headers.l4) + ICMP_HEADER;
    let end = usize::from(headers.end);
    let (l4, end, protocol) = if headers.v6 { quoted_v6(bytes, at, end)? } else { quoted_v4(bytes, at, end)? };
    let transport = match protocol {
        PROTO_TCP => Transport::Tcp,
        PROTO_UDP => Transport::Udp,
        PROTO_SCTP => Transport::Sctp,
        _ => return None,
    };
    if l4 + PORTS > end {
        return None;
    }
    Some(Packet { l3: at as u16, l4: l4 as u16, end: end as u16, v6: headers.v6, transport, protocol, tcp_flags: 0 })
}

fn quoted_v4(bytes: &[u8], at: usize, end: usize) -> Option<(usize, usize, u8)> {
    if at + 20 > end {
        return None;
    }
    let [version_and_len] = bytes_at(bytes, at);
    let header_len = usize::from(version_and_len & 0x0f) * 4;
    let later_fragment = be16(bytes, at + 6) & 0x1fff != 0;
    if version_and_len >> 4 != 4 || header_len < 20 || later_fragment {
        return None;
    }
    let total = usize::from(be16(bytes, at + 2));
    let [protocol] = bytes_at(bytes, at + 9);
    Some((at + header_len, end.min(at + total), protocol))
}

fn quoted_v6(bytes: &[u8], at: usize, end: usize) -> Option<(usize, usize, u8)> {
    if at + 40 > end || bytes_at::<1>(bytes, at)[0] >> 4 != 6 {
        return None;
    }
    let end = end.min(at + 40 + usize::from(be16(bytes, at + 4)));
    let [mut next] = bytes_at(bytes, at + 6);
    let mut l4 = at + 40;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        if !matches!(next, 0 | 43 | 44 | 51 | 60) {
            return Some((l4, end, next));
        }
        if l4 + 8 > end {
            return None;
        }
        let [following, len] = bytes_at(bytes, l4);
        l4 += match next {
            44 if be16(bytes, l4 + 2) & 0xfff8 != 0 => return None,
            44 => 8,
            51 => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        next = following;
    }
    None
}
