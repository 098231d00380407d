//! The MSS clamp: both ends of a connection are told of a segment size that fits a path on which errors
//! do not come through (tunnels, filtered ICMP).

use crate::wire::checksum::Sum;
use crate::wire::{Packet, be16, bytes_at, put};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;

/// Lowers the MSS option of a SYN or SYN-ACK to `most`. One without the option is left alone: its sender
/// takes 536 bytes (RFC 9293 section 3.7.1), or 1220 over IPv6.
pub fn clamp(bytes: &mut [u8], headers: &Packet, most: u16) {
    let Some(at) = value_offset(bytes, headers) else { return };
    if be16(bytes, at) <= most {
        return;
    }
    // Checksums go by words from the header's start. Behind a lone NOP the value lies across two of
    // them: then one more byte follows, for the header's length is even.
    let l4 = usize::from(headers.l4);
    let change = if (at - l4).is_multiple_of(2) {
        let old = bytes_at::<2>(bytes, at);
        put(bytes, at, most.to_be_bytes());
        Sum::delta(old, most.to_be_bytes())
    } else {
        let old = bytes_at::<4>(bytes, at - 1);
        put(bytes, at, most.to_be_bytes());
        Sum::delta(old, bytes_at::<4>(bytes, at - 1))
    };
    let sum = change.apply(bytes_at(bytes, l4 + 16));
    put(bytes, l4 + 16, sum);
}

/// Where the value of the MSS option is.
fn value_offset(bytes: &[u8], headers: &Packet) -> Option<usize> {
    let l4 = usize::from(headers.l4);
    let end = l4 + usize::from(bytes.get(l4 + 12)? >> 4) * 4;
    let mut at = l4 + 20;
    // Each turn takes at least one byte, so a loop of options ends.
    while at < end {
        match *bytes.get(at)? {
            END => return None,
            NOP => at += 1,
            kind => {
                let len = usize::from(*bytes.get(at + 1)?);
                if kind == MSS && len == 4 && at + 4 <= end {
                    return Some(at + 2);
                }
                if len < 2 {
                    return None;
                }
                at += len;
            }
        }
    }
    None
}
