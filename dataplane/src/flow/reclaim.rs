//! Room for flows that begin where there is none left: closed ones rest shorter then. nf_conntrack does the same
//! (`early_drop`); else short connections at a high rate would fill the table with what is over.

use super::{Capacity, FlowTable, Record, State, Word};
use crate::clock::{Tick, ticks};
use crate::wire::Family;

/// Records looked at for one to forget. With one in ten closed, three times in a hundred none of them is.
const LOOKED_AT: usize = 32;

/// Seconds without a packet. In `dsr` a client that said its last word may still acknowledge what it is sent.
const SILENT: u32 = 10;

impl Capacity {
    /// How many of the established flows may be such that prove nothing, however many others there are.
    #[must_use]
    fn unproved(self) -> u32 {
        self.established - self.established / 4
    }
}

impl<F: Family> FlowTable<F> {
    /// Whether one more flow may become this.
    pub(super) fn has_room(&self, to: Word) -> bool {
        self.counts.established < self.capacity.established && !self.fills_its_share(to)
    }

    /// Whether no other than a flow that proves nothing can make room for this one.
    fn fills_its_share(&self, to: Word) -> bool {
        to.proves_nothing() && self.counts.unproved >= self.capacity.unproved()
    }

    /// Forgets a closed flow, for one to become what `to` says: of the next records the one that rests longest. `last`
    /// is shown it before. False: none of them is closed, or none whose place this flow could have.
    #[cold]
    pub fn reclaim(&mut self, to: Word, now: Tick, last: impl FnOnce(&mut Record<F::Addr>)) -> bool {
        let (records, in_share) = (&self.records, self.fills_its_share(to));
        let is_closed = |at: &u32| {
            let record = &records[*at as usize];
            record.word().is_some_and(|word| {
                let is_half = matches!(word.state, State::FinWait | State::SctpShutdown);
                let is_over = word.is_closed() && (!is_half || now.since(record.last_seen()) > ticks(SILENT));
                is_over && (!in_share || word.proves_nothing())
            })
        };
        let round = (self.hand..self.high_water).chain(0..self.hand).take(LOOKED_AT);
        let closed = round.clone().filter(is_closed).min_by_key(|at| records[*at as usize].last_seen);
        self.hand = round.last().map_or(0, |at| at + 1);
        if let Some(at) = closed {
            last(&mut self.records[at as usize]);
            self.remove(at);
        }
        closed.is_some()
    }
}
