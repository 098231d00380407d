//! SCTP (RFC 9260): chunks read as far as a middlebox needs them, and CRC32c mended by delta.
//!
//! CRC32c is linear: flipping bits of a message flips bits of its CRC that depend on nothing but those bits
//! and their distance from the end. So the ports are rewritten without reading the packet: the change, as
//! a polynomial, is multiplied by x^(8n) modulo the generator, n bytes being from the change to the end. A
//! packet that came corrupt leaves corrupt. The addresses do not matter: SCTP has no pseudo header.
//!
//! **Zero checksums** (RFC 9653) stay zero: two ends that agreed on another means of detecting errors send
//! them, and what the box would make of one is a wrong CRC, which they would not take. A true CRC that
//! happens to be zero (one in 2^32) is then wrong behind the box; the packet is retransmitted in
//! another bundle. INIT and COOKIE ECHO always carry a CRC (RFC 9653 section 5.2).

mod refusal;

pub use refusal::refuse;

use super::{be16, be32, bytes_at, put};
use crate::verdict::DropReason;

/// Ports, verification tag, checksum.
pub const HEADER: usize = 12;
const CHECKSUM_AT: usize = 8;
const CHUNK_HEADER: usize = 4;
/// INIT and INIT ACK up to their parameters.
const INIT_HEADER: usize = 20;
/// Control chunks looked at. A sane packet has two or three, and they come before all data
/// (RFC 9260 section 6.10).
const MAX_CHUNKS: usize = 16;

pub const DATA: u8 = 0;
pub const INIT: u8 = 1;
pub const INIT_ACK: u8 = 2;
pub const ABORT: u8 = 6;
pub const SHUTDOWN: u8 = 7;
pub const SHUTDOWN_ACK: u8 = 8;
pub const COOKIE_ECHO: u8 = 10;
pub const COOKIE_ACK: u8 = 11;
pub const SHUTDOWN_COMPLETE: u8 = 14;
/// RFC 8260.
const I_DATA: u8 = 64;

/// In place of TCP flags in [`super::Packet`]: the packet is an INIT. None of the bits TCP's states are made of.
pub const OPENS: u8 = 0x80;

/// What a packet says of its association.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chunks {
    /// Bits by chunk type, of the types below 16.
    seen: u16,
    /// The verification tag: the receiver's, as it chose it.
    pub tag: u32,
    /// T bit of an ABORT or SHUTDOWN COMPLETE: the tag is not the receiver's but the sender's own.
    pub reflected: bool,
    /// Of INIT and INIT ACK: the tag the sender wants to see.
    pub initiate_tag: u32,
}

impl Chunks {
    #[must_use]
    pub fn has(&self, kind: u8) -> bool {
        kind < 16 && self.seen >> kind & 1 != 0
    }
}

/// Checks a packet of `whole` bytes from its SCTP header on, of which its first are at hand, and says whether it
/// [`OPENS`] an association.
///
/// # Errors
/// `TruncatedTransport`, `PortZero`, `BadSctpChunk`, `HeadersSplit`.
pub fn check(packet: &[u8], whole: usize) -> Result<u8, DropReason> {
    if packet.len() < HEADER {
        return Err(if whole < HEADER { DropReason::TruncatedTransport } else { DropReason::HeadersSplit });
    }
    if be16(packet, 0) == 0 || be16(packet, 2) == 0 {
        return Err(DropReason::PortZero);
    }
    let chunks = walk(packet, whole)?;
    if chunks.seen == 0 && whole < HEADER + CHUNK_HEADER {
        return Err(DropReason::BadSctpChunk);
    }
    // Section 8.5: tag 0 goes with INIT, and with nothing else.
    if chunks.has(INIT) != (chunks.tag == 0) {
        return Err(DropReason::BadSctpChunk);
    }
    Ok(if chunks.has(INIT) { OPENS } else { 0 })
}

/// What a packet, or the first fragment of one, says; from its SCTP header on.
#[must_use]
pub fn read(packet: &[u8]) -> Chunks {
    match walk(packet, packet.len()) {
        Ok(chunks) => chunks,
        // A fragment cuts a chunk short; the tag is there.
        Err(_) => Chunks { tag: be32(packet, 4), ..Chunks::default() },
    }
}

/// All chunks before the data must be at hand: what they say counts, and what INIT says is changed.
fn walk(packet: &[u8], whole: usize) -> Result<Chunks, DropReason> {
    let mut chunks = Chunks { tag: be32(packet, 4), ..Chunks::default() };
    let mut at = HEADER;
    for _ in 0..MAX_CHUNKS {
        if at + CHUNK_HEADER > whole {
            break;
        }
        if at + CHUNK_HEADER > packet.len() {
            return Err(DropReason::HeadersSplit);
        }
        let [kind, flags] = bytes_at(packet, at);
        let len = usize::from(be16(packet, at + 2));
        if matches!(kind, DATA | I_DATA) {
            chunks.seen |= 1;
            break;
        }
        if len < CHUNK_HEADER || at + len > whole {
            return Err(DropReason::BadSctpChunk);
        }
        if at + len > packet.len() {
            return Err(DropReason::HeadersSplit);
        }
        let next = at + len.next_multiple_of(4);
        match kind {
            INIT | INIT_ACK => {
                chunks.initiate_tag = be32(packet, at + 4);
                // Section 3.3.2: alone in its packet; section 3.3.3: a tag of 0 is none.
                let alone = at == HEADER && next >= whole;
                if !alone || len < INIT_HEADER || chunks.initiate_tag == 0 {
                    return Err(DropReason::BadSctpChunk);
                }
            }
            ABORT | SHUTDOWN_COMPLETE => chunks.reflected = flags & 1 != 0,
            _ => {}
        }
        chunks.seen |= if kind < 16 { 1 << kind } else { 0 };
        at = next;
    }
    Ok(chunks)
}

/// Gives a packet of `len` bytes from its SCTP header at `l4` on other ports, and mends its checksum. The bytes
/// beyond the header need not be there: a quote, or a fragment.
pub fn set_ports(bytes: &mut [u8], l4: usize, len: usize, ports: [u8; 4]) {
    let old = bytes_at::<4>(bytes, l4);
    put(bytes, l4, ports);
    let sum = bytes_at::<4>(bytes, l4 + CHECKSUM_AT);
    if sum != [0; 4] {
        put(bytes, l4 + CHECKSUM_AT, mend(sum, old, ports, len));
    }
}

/// The checksum as it stands in the packet after `old` became `new`, `from_end` bytes from the end of the packet
/// (the changed ones included).
#[must_use]
pub fn mend(sum: [u8; 4], old: [u8; 4], new: [u8; 4], from_end: usize) -> [u8; 4] {
    let change = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    (u32::from_le_bytes(sum) ^ shift(change, from_end)).to_le_bytes()
}

/// The first fragment was translated as if the packet ended with it; `more` bytes follow. `before` is the
/// checksum it came with.
pub fn lengthen(bytes: &mut [u8], l4: usize, before: [u8; 4], more: usize) {
    let at = l4 + CHECKSUM_AT;
    let change = u32::from_le_bytes(before) ^ u32::from_le_bytes(bytes_at(bytes, at));
    put(bytes, at, (u32::from_le_bytes(before) ^ shift(change, more)).to_le_bytes());
}

/// Of INIT and INIT ACK: other addresses of the sender (section 3.3.2.1).
const ADDRESSES: [u16; 2] = [5, 6];
/// RFC 4820: ignored by its receiver; one who does not know it skips it, as its highest bits ask.
const PADDING: u16 = 0x8005;
/// Parameters looked at.
const MAX_PARAMETERS: usize = 64;

/// Makes padding of the addresses an INIT or INIT ACK lists, in a packet from its SCTP header on. Through a translator
/// they are wrong: who probed one would be answered by an ABORT from an end that does not know the prober's
/// own address, and the association would be lost. Whatever else the packet is stays as it is.
pub fn hide_addresses(packet: &mut [u8]) {
    let mut at = HEADER + INIT_HEADER;
    for _ in 0..MAX_PARAMETERS {
        // Behind the end all reads as 0.
        let len = usize::from(be16(packet, at + 2));
        if len < CHUNK_HEADER {
            return;
        }
        if ADDRESSES.contains(&be16(packet, at)) {
            let old = bytes_at::<4>(packet, at);
            put(packet, at, PADDING.to_be_bytes());
            let sum = checksum(packet, 0);
            if sum != [0; 4] {
                let new = mend(sum, old, bytes_at(packet, at), packet.len() - at);
                put(packet, CHECKSUM_AT, new);
            }
        }
        at += len.next_multiple_of(4);
    }
}

/// Where the checksum of a packet stands.
#[must_use]
pub fn checksum(bytes: &[u8], l4: usize) -> [u8; 4] {
    bytes_at(bytes, l4 + CHECKSUM_AT)
}

/// The generator (RFC 9260 appendix A: 0x1EDC6F41), bits turned round, as all polynomials here: the highest bit
/// is the coefficient of x^0.
const GENERATOR: u32 = 0x82f6_3b78;

const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        // No branches: the bits are as good as random.
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = b >> 1 ^ GENERATOR & (b & 1).wrapping_neg();
    }
    product
}

/// Powers of x^(8 * `bytes`).
const fn powers(bytes: u32) -> [u32; 256] {
    let mut step = 1 << 31;
    let mut n = 0;
    while n < bytes {
        step = multiply(step, 1 << 23);
        n += 1;
    }
    let mut table = [1 << 31; 256];
    let mut n = 1;
    while n < 256 {
        table[n] = multiply(table[n - 1], step);
        n += 1;
    }
    table
}

/// x^(8n) modulo the generator is one of each: any length an IP packet can have, in 2 KiB.
static LOW: [u32; 256] = powers(1);
static HIGH: [u32; 256] = powers(256);

/// `value` times x^(8 * `bytes`).
fn shift(value: u32, bytes: usize) -> u32 {
    multiply(multiply(value, LOW[bytes % 256]), HIGH[bytes / 256 % 256])
}

/// CRC32c of parts one behind the other, read in full: what the box generates, and the oracle of its deltas.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    !parts.iter().flat_map(|part| part.iter()).fold(!0, |crc, byte| {
        let low = crc ^ u32::from(*byte);
        (0..8).fold(low, |crc, _| crc >> 1 ^ GENERATOR & (crc & 1).wrapping_neg())
    })
}

/// The checksum an SCTP packet should have, its own field counted as zero (appendix A).
#[must_use]
pub fn right_checksum(packet: &[u8]) -> [u8; 4] {
    let (front, behind) = packet.split_at(packet.len().min(CHECKSUM_AT));
    crc32c(&[front, &[0; 4], behind.get(4..).unwrap_or_default()]).to_le_bytes()
}

#[cfg(test)]
mod tests;
