//! What TCP packets do to their flow; and RSTs that do nothing to it.

use super::Pipeline;
use super::dsr::without_room;
use super::side::{Side, Sided};
use super::upkeep::collect;
use crate::clock::Now;
use crate::flow::{Direction, Entry, Segment, State, Word, tcp};
use crate::stats::WorkerStats;
use crate::tables::{Hop, Tabled};
use crate::verdict::DropReason;
use crate::wire::{self, Family, Packet, TCP_FIN, TCP_RST, Transport, be32};

/// Moves a flow on by one of its packets: its word before and after.
#[inline]
pub(super) fn follow<F: Family>(
    side: &mut Side<F>,
    stats: &WorkerStats,
    bytes: &[u8],
    packet: &Packet,
    entry: Entry,
    now: Now,
) -> Result<(Word, Word), DropReason> {
    let record = side.flows.record(entry.record);
    let word = record.word().ok_or(DropReason::OutOfState)?;
    let mut seen = record.seen;
    let next = if packet.transport == Transport::Tcp {
        let segment = read(bytes, packet, entry.direction, word.state);
        tcp::advance(word, &mut seen, &segment, entry.direction)
    } else {
        tcp::advance(word, &mut seen, &Segment::default(), entry.direction)
    };
    if next.state == State::Expired {
        return Err(DropReason::FlowExpired);
    }
    let next = commit(side, stats, entry, word, next, now)?;
    side.flows.record_mut(entry.record).seen = seen;
    Ok((word, next))
}

/// Writes a flow's next word down: the word it has then.
#[inline]
pub(super) fn commit<F: Family>(
    side: &mut Side<F>,
    stats: &WorkerStats,
    entry: Entry,
    word: Word,
    next: Word,
    now: Now,
) -> Result<Word, DropReason> {
    if next != word && side.flows.transition(entry.record, word, next).is_err() {
        return commit_when_full(side, stats, entry, word, next, now);
    }
    Ok(next)
}

/// A closed flow makes room for this one.
#[cold]
#[inline(never)]
fn commit_when_full<F: Family>(
    side: &mut Side<F>,
    stats: &WorkerStats,
    entry: Entry,
    word: Word,
    next: Word,
    now: Now,
) -> Result<Word, DropReason> {
    // The packet's flow is of the running snapshot: what an earlier one calls a service may be another by now.
    let epoch = side.flows.record(entry.record).epoch;
    let has_room = side.flows.reclaim(next, now.tick(), |record| {
        if let Some(counters) = stats.services.get(record.service as usize)
            && record.epoch == epoch
        {
            collect(record, counters);
        }
    });
    let result =
        if has_room { side.flows.transition(entry.record, word, next) } else { Err(DropReason::FlowTableFull) };
    result.map(|()| next).or_else(|full| without_room(word).ok_or(full))
}

/// A TCP packet's numbers. Options are read only where they count: while a connection closes.
fn read(bytes: &[u8], packet: &Packet, direction: Direction, state: State) -> Segment {
    let l4 = usize::from(packet.l4);
    let mut segment =
        Segment { flags: packet.tcp_flags, seq: be32(bytes, l4 + 4), ack: be32(bytes, l4 + 8), ..Segment::default() };
    if matches!(state, State::SynSent | State::Established) && packet.tcp_flags & (TCP_FIN | TCP_RST) == 0 {
        return segment;
    }
    segment.end = wire::reset::end_of(bytes, packet);
    let [own, echoed] = wire::parse::tcp_timestamps(bytes, packet);
    segment.client_stamp = if direction == Direction::Forward { own } else { echoed };
    segment
}

impl Pipeline {
    /// Whether a RST of a known flow is in its receiver's window.
    #[cold]
    #[inline(never)]
    pub(super) fn believes_reset<F: Sided>(&self, bytes: &[u8], packet: &Packet, entry: Entry) -> bool {
        let record = F::side(self).flows.record(entry.record);
        record.word().is_none_or(|word| {
            let segment = read(bytes, packet, entry.direction, word.state);
            tcp::believes_reset(word, record.seen, &segment, entry.direction)
        })
    }

    /// Delivers a RST that is not believed. It is no sign of life, and teaches no last hop.
    pub(super) fn pass_doubted<F: Sided + Tabled>(
        &mut self,
        bytes: &mut [u8],
        packet: &Packet,
        entry: Entry,
    ) -> Result<Hop, DropReason> {
        let hop = self.known_hop::<F>(entry)?;
        if u32::from(packet.end - packet.l3) > hop.mtu {
            return Err(DropReason::TooBig);
        }
        let side = F::side(self);
        let word = side.flows.record(entry.record).word().ok_or(DropReason::OutOfState)?;
        let to = side.translation(entry, word);
        wire::rewrite::<F>(bytes, packet, &to);
        wire::rewrite::set_macs(bytes, hop.dst, hop.src);
        self.stats.resets_doubted.add(1);
        Ok(hop)
    }
}
