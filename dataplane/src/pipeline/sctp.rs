//! What is particular to SCTP on the packet path. Its INIT, state and first fragments; all else goes the way of UDP.
//!
//! **Multi-homing** does not pass through a translator that sees one path: associations have the one they begin
//! with, and the other addresses that INIT and INIT ACK may list do not reach the other end.
//!
//! **Fragments.** The checksum is over the whole packet, so the first fragment, which bears it, waits until the
//! last has told how long the packet is; only then is it translated, and the others behind it.

use super::segment::commit;
use super::side::{Side, Sided};
use super::{Pipeline, parse};
use crate::clock::Now;
use crate::flow::{Direction, Entry, Word};
use crate::fragment::{self, Fate, Piece};
use crate::io::{Frame, PacketMemory};
use crate::stats::WorkerStats;
use crate::tables::Tabled;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::sctp::{INIT, INIT_ACK};
use crate::wire::{self, Family, Packet, Parsed, Tuple};

/// Moves an association on by one of its packets: its word before and after. A packet that opens one loses what
/// it says of other addresses.
pub(super) fn follow<F: Family>(
    side: &mut Side<F>,
    stats: &WorkerStats,
    bytes: &mut [u8],
    packet: &Packet,
    entry: Entry,
    now: Now,
) -> Result<(Word, Word), DropReason> {
    // All it says before its data is in the packet's first frame: `wire::sctp::check`.
    let end = bytes.len().min(packet.end.into());
    let sctp = bytes.get_mut(usize::from(packet.l4)..end).unwrap_or_default();
    let chunks = wire::sctp::read(sctp);
    if chunks.has(INIT) || chunks.has(INIT_ACK) {
        wire::sctp::hide_addresses(sctp);
    }
    let record = side.flows.record_mut(entry.record);
    let word = record.word().ok_or(DropReason::OutOfState)?;
    let next = crate::flow::sctp::advance(record, word, &chunks, entry.direction);
    Ok((word, commit(side, stats, entry, word, next, now)?))
}

impl Pipeline {
    /// A client that opens an association where its last one was closed gets a new one, as if it came from
    /// another port: the backend is chosen anew.
    pub(super) fn unless_reopened<F: Sided>(&mut self, found: Option<Entry>, packet: &Packet) -> Option<Entry> {
        let entry = found?;
        let flows = &mut F::side_mut(self).flows;
        let closed = flows.record(entry.record).word().is_some_and(Word::is_closed);
        if closed && entry.direction == Direction::Forward && packet.tcp_flags & wire::sctp::OPENS != 0 {
            flows.remove(entry.record);
            return None;
        }
        found
    }

    /// A fragment of a packet whose first one is not translated yet. `None`: it is the first, and the packet's
    /// length is known.
    pub(super) fn await_length<F: Sided>(&mut self, at: u16, piece: &Piece, from: PortId) -> Option<Verdict> {
        if !piece.is_first() {
            let verdict = self.wait::<F>(at, from);
            self.release_first::<F>(at);
            return Some(verdict);
        }
        if F::side(self).datagrams.total(at).is_some() {
            return None;
        }
        Some(self.hold_first::<F>(at, from))
    }

    /// The first fragment of a packet whose length is known by now.
    pub(super) fn release_sized<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        from: PortId,
        now: Now,
    ) -> Verdict {
        let parsed = parse(memory, frame);
        let bytes = memory.bytes(frame);
        let Ok(Parsed::Ip(packet)) = parsed else { return Verdict::Drop(DropReason::FragmentMalformed) };
        let Ok(piece) = Piece::read(bytes, &packet) else { return Verdict::Drop(DropReason::FragmentMalformed) };
        let Tuple { src, dst, .. } = F::tuple(bytes, &packet);
        let key = fragment::key(src, dst, piece.identification, packet.protocol);
        let side = F::side(self);
        // Forgotten in the meantime: what was to follow is dropped, so is this.
        let Some(at) = side.datagrams.find(&key, side.flows.hash(&key)) else {
            return Verdict::Drop(DropReason::FragmentTimeout);
        };
        if let Fate::Refused(reason) = side.datagrams.fate(at) {
            return Verdict::Drop(reason);
        }
        let owned = fragment::gatherer::<F>(&key, self.workers) != self.worker;
        self.first_sized::<F>(memory, frame, &packet, at, from, owned, now)
    }
}
