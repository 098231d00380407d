//! The end of connections that were idle too long, where their service wants both ends told
//! (`on_idle = "reset"`): a RST to each, from the other's address as it knows it, with the number it
//! expects next. An end that has not acknowledged all it got finds that number too low and answers with a
//! challenge ACK (RFC 5961 section 3.2); the record stays for a while to answer that, and whatever
//! else comes, with a RST that has the right one.

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use penstock_configs::desired::OnIdle;

use super::Pipeline;
use super::budget::Budget;
use super::side::Sided;
use crate::clock::Now;
use crate::flow::{Direction, Entry, Flags, Record, State, Word};
use crate::io::{Frame, FramePool};
use crate::schedule::Tally;
use crate::tables::{Hop, Service, Tabled};
use crate::verdict::{DropReason, PortId};
use crate::wire::reset::{LONGEST, Reset, frame};
use crate::wire::{self, Rewrite, V4, V6};

/// Connections ended per turn of the worker: two frames each, half a burst.
const AT_ONCE: usize = 16;
/// Ticks (a minute) after which a connection that found no turn is forgotten in silence: a table must not
/// stay full of them when very many end together.
const PATIENCE: u32 = 894;

/// Bytes of two VLAN tags.
const MOST_TAGS: usize = 8;

/// Connections ended per second and worker.
const PER_SECOND: u32 = 5_000;

/// Connections that have just ended, and whose ends are still to be told.
#[derive(Debug)]
pub struct Farewells {
    waiting: ArrayVec<Farewell, AT_ONCE>,
    budget: Budget,
}

impl Default for Farewells {
    fn default() -> Self {
        Self { waiting: ArrayVec::new(), budget: Budget::new(PER_SECOND) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Farewell {
    record: u32,
    v6: bool,
    to_client: bool,
    to_node: bool,
}

/// Whether an idle flow's end is to be said, not kept quiet. Numbers of a flow in `dsr` are not known: the node's
/// half is not seen.
pub(super) fn is_due(word: Word, service: &Service, overdue: u32) -> bool {
    !word.flags.has(Flags::DSR)
        && service.on_idle == OnIdle::Reset
        && matches!(word.state, State::Established | State::FinWait)
        && overdue <= PATIENCE
}

impl Farewells {
    /// Notes that this connection ends. Beyond turn and rate it goes on until the sweep comes again.
    /// False: it must wait, or do without.
    pub fn bid<A>(&mut self, at: u32, v6: bool, record: &mut Record<A>, tally: &Tally, now: Now) -> bool {
        let Some(word) = record.word() else { return false };
        let bids = !self.waiting.is_full() && self.budget.allows(now);
        if bids {
            self.waiting.push(Farewell { record: at, v6, to_client: true, to_node: true });
            record.last_seen = now.tick().0;
            record.commit(tally.moves(at, word, Word { state: State::Expired, ..word }));
        }
        bids
    }
}

impl Pipeline {
    /// The next RST of those that the last upkeep made due, and the port it leaves by. To be asked for until
    /// there is none.
    #[inline]
    pub fn next_farewell(&mut self, pool: &mut FramePool) -> Option<(Frame, PortId)> {
        if self.farewells.waiting.is_empty() { None } else { self.bid_farewell(pool) }
    }

    #[cold]
    #[inline(never)]
    fn bid_farewell(&mut self, pool: &mut FramePool) -> Option<(Frame, PortId)> {
        while let Some(last) = self.farewells.waiting.last_mut() {
            let direction = if std::mem::take(&mut last.to_client) {
                Direction::Reverse
            } else if std::mem::take(&mut last.to_node) {
                Direction::Forward
            } else {
                self.farewells.waiting.pop();
                self.stats.idle_resets.add(1);
                continue;
            };
            let entry = Entry { record: last.record, direction };
            let made = if last.v6 { self.farewell::<V6>(entry) } else { self.farewell::<V4>(entry) };
            let Some((reset, hop)) = made else { continue };
            let mut room = [0; LONGEST + MOST_TAGS];
            let Some(len) = frame(&mut room, hop.dst, hop.src, &reset) else { continue };
            let tagged = match hop.tags {
                Some(tags) => wire::tags::retag(&mut room, len, tags),
                None => Some(len),
            };
            let Some(len) = tagged else { continue };
            self.stats.generated.add(1);
            match pool.take_with(&room[..len]) {
                Some(frame) => return Some((frame, hop.port)),
                None => self.stats.count_drop(DropReason::NoFrame),
            }
        }
        None
    }

    /// The RST to the end that packets in this direction reach. `None`: no way there is known.
    fn farewell<F: Sided + Tabled>(&self, entry: Entry) -> Option<(Reset, Hop)> {
        let side = F::side(self);
        let record = side.flows.record(entry.record);
        let word = record.word().filter(|word| word.state == State::Expired)?;
        let hop = self.known_hop::<F>(entry).ok()?;
        let hop = match (hop.tags, self.hops.get(record.hop)) {
            // Packets to this hop keep the tags they come in: the client's, of which none has come here.
            (None, Some(client)) if !client.tags.is_empty() => hop.in_tags(client.tags),
            _ => hop,
        };
        let Rewrite { src, dst, src_port, dst_port } = side.translation(entry, word);
        let (seq, ack) = match entry.direction {
            Direction::Forward => (record.seen.node_expects, record.seen.client_expects),
            Direction::Reverse => (record.seen.client_expects, record.seen.node_expects),
        };
        let (from, to) = (SocketAddr::new(F::to_ip(src), src_port), SocketAddr::new(F::to_ip(dst), dst_port));
        Some((Reset { from, to, seq, ack: Some(ack) }, hop))
    }
}
