//! One fragment's place in its datagram.

use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::{PROTO_SCTP, PROTO_TCP, Packet, be16, be32, bytes_at, put, sctp};

const MORE_V4: u16 = 0x2000;
const OFFSET_V4: u16 = 0x1fff;
const MORE_V6: u16 = 1;
const OFFSET_V6: u16 = 0xfff8;
/// IPv6: the fragment header lies right before the fragment.
const HEADER_V6: usize = 8;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Bytes `start..end` of a datagram's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub identification: u32,
    pub start: u16,
    pub end: u16,
    /// The datagram ends with it.
    pub last: bool,
}

impl Piece {
    /// Reads a fragment of TCP, UDP or SCTP that `parse` accepted.
    ///
    /// # Errors
    /// `FragmentMalformed`, `FragmentTiny`.
    pub fn read(bytes: &[u8], packet: &Packet) -> Result<Self, DropReason> {
        let (l3, l4, end) = (usize::from(packet.l3), usize::from(packet.l4), usize::from(packet.end));
        let len = end - l4;
        let (identification, start, more, headers) = if packet.v6 {
            let field = be16(bytes, l4 - HEADER_V6 + 2);
            let identification = be32(bytes, l4 - HEADER_V6 + 4);
            (identification, field & OFFSET_V6, field & MORE_V6 != 0, l4 - l3 - 40 - HEADER_V6)
        } else {
            let field = be16(bytes, l3 + 6);
            (u32::from(be16(bytes, l3 + 4)), (field & OFFSET_V4) * 8, field & MORE_V4 != 0, l4 - l3)
        };
        // All but the last end on a multiple of eight, and no datagram is longer than its length field says.
        let total = headers + usize::from(start) + len;
        if len == 0 || more && !len.is_multiple_of(8) || total > usize::from(u16::MAX) {
            return Err(DropReason::FragmentMalformed);
        }
        let tcp = packet.protocol == PROTO_TCP;
        let header = match packet.protocol {
            PROTO_TCP => TCP_HEADER,
            PROTO_SCTP => sctp::HEADER,
            _ => UDP_HEADER,
        };
        if start == 0 {
            let data_offset = usize::from(bytes_at::<1>(bytes, l4 + 12)[0] >> 4) * 4;
            if len < header || tcp && len < data_offset {
                return Err(DropReason::FragmentTiny);
            }
            if tcp && data_offset < TCP_HEADER {
                return Err(DropReason::BadTcpOffset);
            }
        } else if usize::from(start) < header {
            return Err(DropReason::FragmentTiny);
        }
        Ok(Self { identification, start, end: start + len as u16, last: !more })
    }

    #[must_use]
    pub fn is_first(&self) -> bool {
        self.start == 0
    }
}

/// Gives a fragment another identification.
pub fn set_identification(bytes: &mut [u8], packet: &Packet, identification: u32) {
    if packet.v6 {
        put(bytes, usize::from(packet.l4) - HEADER_V6 + 4, identification.to_be_bytes());
        return;
    }
    let l3 = usize::from(packet.l3);
    let new = (identification as u16).to_be_bytes();
    let sum = Sum::delta(bytes_at::<2>(bytes, l3 + 4), new).apply(bytes_at(bytes, l3 + 10));
    put(bytes, l3 + 4, new);
    put(bytes, l3 + 10, sum);
}
