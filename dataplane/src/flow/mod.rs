//! The flow table: one per worker and address family, of fixed capacity, found by either direction.
//!
//! Records live in memory that outlives the process ([`crate::persist`]); index, free list and
//! embryo queue are rebuilt from them by [`FlowTable::recover`].

mod dsr;
pub mod embryo;
mod free;
pub mod index;
mod invariants;
mod reclaim;
pub mod record;
pub mod sctp;
pub mod tcp;
mod tuples;

pub use index::{Direction, Entry};
pub use record::{Flags, Record, Word};
pub use tcp::{Positions, Segment, State, SynInfo};
pub use tuples::{key, translation};

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::clock::Now;
use crate::hash::FlowHasher;
use crate::limits::Limiter;
use crate::persist::{MAX_SNATS, Records};
use crate::schedule::{Share, Tally};
use crate::sys::prefetch;
use crate::tables::Service;
use crate::verdict::DropReason;
use crate::wire::{Family, Tuple};
use embryo::EmbryoQueue;
use free::Free;
use index::Index;

/// The free record this many insertions from now is asked for: a burst of SYNs would wait for each otherwise.
const SOON: usize = 4;

/// The same of the record the sweep visits so many from now.
const VISITED_SOON: u32 = 16;

/// What sweeps may do between two bursts: no packet waits for more of it.
pub const MOST_EFFORT: u32 = 256;

/// And behind a nap, after which neither flows nor code are in any cache: twice as much from one time to the next.
pub const FIRST_EFFORT: u32 = 64;

/// What became of a record that the sweep came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    Kept,
    /// Kept, its service and backend found anew under new tables.
    Renewed,
    /// Removed.
    Forgotten,
}

impl Swept {
    /// In looks at a record that stays: those come in a row, while what a removal touches lies anywhere.
    #[must_use]
    pub const fn effort(self) -> u32 {
        match self {
            Self::Kept => 1,
            Self::Renewed => 4,
            Self::Forgotten => 8,
        }
    }
}

/// Flows a table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub established: u32,
    pub embryonic: u32,
}

impl Capacity {
    #[must_use]
    pub fn records(self) -> u32 {
        self.established + self.embryonic
    }
}

/// Counts a record towards the limits its service has now.
pub fn limit<F: Family>(tally: &mut Tally, at: u32, record: &Record<F::Addr>, service: &Service) {
    let Some(word) = record.word() else { return };
    // Most services have none: nothing but the flag was looked at.
    if service.limits.is_none() && !word.flags.has(Flags::LIMITED) {
        return;
    }
    record.commit(tally.limits.assign(at, word, service, F::to_ip(record.client)));
}

/// What a new flow is; the table adds the rest.
#[derive(Debug, Clone, Copy)]
pub struct NewFlow<A> {
    pub client: A,
    pub vip: A,
    pub node: A,
    pub client_port: u16,
    pub vip_port: u16,
    pub node_port: u16,
    pub snat_port: u16,
    pub snat: u16,
    pub word: Word,
    pub epoch: u16,
    pub hop: u16,
    pub node_slot: u16,
    pub service: u32,
    /// Where it is counted for a scheduler; 0: nowhere.
    pub load: u32,
}

/// A record, and the SNAT addresses by the number it may name one with.
pub type WithSnats<'a, A> = (&'a mut Record<A>, &'a [A]);

pub struct FlowTable<F: Family> {
    records: Records<F::Addr>,
    index: Index,
    free: Free,
    embryos: EmbryoQueue,
    hasher: FlowHasher,
    capacity: Capacity,
    counts: Counts,
    tally: Tally,
    /// SNAT addresses by the number records name them with.
    snats: Vec<F::Addr>,
    /// Records beyond this one were never used.
    high_water: u32,
    sweep_at: u32,
    /// Where the search for a closed flow that makes room goes on.
    hand: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub established: u32,
    /// Of these, flows of which [`Word::proves_nothing`].
    pub unproved: u32,
    pub embryonic: u32,
    /// Embryos that had to make room for newer ones.
    pub evicted: u64,
}

impl<F: Family> FlowTable<F> {
    /// A table over `records`, which may hold flows: call [`Self::recover`] before use.
    ///
    /// # Errors
    /// The index does not fit in memory.
    pub fn new(
        records: Records<F::Addr>,
        capacity: Capacity,
        hasher: FlowHasher,
        share: Arc<Share>,
    ) -> std::io::Result<Self> {
        let count = capacity.records();
        assert!(records.len() >= count as usize, "the mapping was made for this capacity");
        Ok(Self {
            records,
            index: Index::new(count as usize)?,
            free: Free::new(count, 0),
            embryos: EmbryoQueue::new(capacity.embryonic, count),
            hasher,
            capacity,
            counts: Counts::default(),
            tally: Tally::new(count as usize, share),
            snats: Vec::with_capacity(MAX_SNATS),
            high_water: 0,
            sweep_at: 0,
            hand: 0,
        })
    }

    /// Replaces the list records' `snat` numbers point into. Numbers in use must keep their address.
    pub fn set_snats(&mut self, snats: impl Iterator<Item = F::Addr>) {
        self.snats.clear();
        self.snats.extend(snats.take(MAX_SNATS));
    }

    /// The SNAT addresses by number.
    #[inline(always)]
    #[must_use]
    pub fn snats(&self) -> &[F::Addr] {
        &self.snats
    }

    /// The SNAT address of a number.
    #[inline(always)]
    #[must_use]
    pub fn snat(&self, id: u16) -> F::Addr {
        self.snats.get(usize::from(id)).copied().unwrap_or_default()
    }

    /// Takes up the flows that the first `used` records hold after a restart; those behind were never
    /// touched. `adopt` may mend a record's references or refuse it. Returns how many flows were kept.
    pub fn recover(&mut self, used: u32, mut adopt: impl FnMut(&mut Record<F::Addr>, Word) -> bool) -> usize {
        let count = self.capacity.records();
        self.free = Free::new(count, used);
        let mut kept = 0;
        let mut free_below = Vec::new();
        for at in 0..used.min(count) {
            let record = &mut self.records[at as usize];
            let wanted = record.word().is_some_and(|word| adopt(record, word));
            if wanted && self.enter(at) {
                self.high_water = at + 1;
                kept += 1;
            } else {
                self.records[at as usize].clear();
                free_below.push(at);
            }
        }
        free_below.into_iter().rev().for_each(|at| self.free.give(at));
        kept
    }

    /// Indexes a committed record. False: another one has a key of it, or there is no room.
    fn enter(&mut self, at: u32) -> bool {
        let record = &self.records[at as usize];
        let Some(word) = record.word() else { return false };
        let keys = self.keys(record, word);
        let hashes = keys.map(|key| F::hash(&self.hasher, &key));
        if keys.iter().zip(hashes).any(|(key, hash)| self.find(key, hash).is_some()) {
            return false;
        }
        if word.state.is_embryonic() && self.embryos.is_full() {
            return false;
        }
        if !self.insert_keys(at, hashes) {
            return false;
        }
        self.count(word, at);
        true
    }

    fn count(&mut self, word: Word, at: u32) {
        if word.state.is_embryonic() {
            self.counts.embryonic += 1;
            self.embryos.push(at);
        } else {
            self.counts.established += 1;
            self.counts.unproved += u32::from(word.proves_nothing());
        }
    }

    fn uncount(&mut self, word: Word, at: u32) {
        if word.state.is_embryonic() {
            self.counts.embryonic -= 1;
            self.embryos.leave(at);
        } else {
            self.counts.established -= 1;
            self.counts.unproved -= u32::from(word.proves_nothing());
        }
    }

    fn insert_keys(&mut self, at: u32, hashes: [u64; 2]) -> bool {
        let entries = [Direction::Forward, Direction::Reverse].map(|direction| Entry { record: at, direction });
        let Self { index, records, hasher, snats, .. } = self;
        let rehash = |entry: Entry| {
            let record = &records[entry.record as usize];
            record.word().map_or(0, |word| F::hash(hasher, &key::<F>(record, word, entry.direction, snats)))
        };
        if !index.insert(hashes[0], entries[0], rehash) {
            return false;
        }
        if !index.insert(hashes[1], entries[1], rehash) {
            index.remove(hashes[0], entries[0]);
            return false;
        }
        true
    }

    /// The tuples of packets from the client and from the node.
    fn keys(&self, record: &Record<F::Addr>, word: Word) -> [Tuple<F::Addr>; 2] {
        [Direction::Forward, Direction::Reverse].map(|direction| key::<F>(record, word, direction, &self.snats))
    }

    #[inline]
    #[must_use]
    pub fn hash(&self, tuple: &Tuple<F::Addr>) -> u64 {
        F::hash(&self.hasher, tuple)
    }

    /// First stage of a burst: the index lines.
    #[inline]
    pub fn prefetch_index(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Second stage of a tuple no record has: what the opening of a flow will look at beside its index line.
    #[inline]
    pub fn prefetch_insertion(&self, hash: u64) {
        self.index.prefetch_second(hash);
    }

    /// Second stage: the entry that the third will most likely want; its record is on its way.
    #[inline(always)]
    #[must_use]
    pub fn prefetch_record(&self, hash: u64) -> Option<Entry> {
        let entry = self.index.likely(hash)?;
        let record = self.records.get(entry.record as usize)?;
        prefetch(record);
        if F::V6 {
            // 96 bytes from a multiple of 32: the addresses are in the first line, the rest in the next.
            prefetch(&record.seen);
        }
        Some(entry)
    }

    /// The flow whose packets in one direction have this tuple; `likely` is what
    /// [`Self::prefetch_record`] said, and may be wrong by now.
    #[inline(always)]
    #[must_use]
    pub fn find_likely(&self, tuple: &Tuple<F::Addr>, hash: u64, likely: Option<Entry>) -> Option<Entry> {
        match likely {
            Some(entry) if self.is(entry, tuple) => Some(entry),
            _ => self.find(tuple, hash),
        }
    }

    /// The flow whose packets in one direction have this tuple.
    #[must_use]
    pub fn find(&self, tuple: &Tuple<F::Addr>, hash: u64) -> Option<Entry> {
        self.index.find(hash, |entry| self.is(entry, tuple))
    }

    /// Whether this is the tuple of a record in use, in that direction.
    #[inline(always)]
    fn is(&self, entry: Entry, tuple: &Tuple<F::Addr>) -> bool {
        self.records[entry.record as usize].word().is_some_and(|word| self.names(entry, word, tuple))
    }

    /// Whether this is the tuple of a record whose word is known, in that direction.
    #[inline(always)]
    #[must_use]
    pub fn names(&self, entry: Entry, word: Word, tuple: &Tuple<F::Addr>) -> bool {
        key::<F>(&self.records[entry.record as usize], word, entry.direction, &self.snats).is(tuple)
    }

    #[inline(always)]
    #[must_use]
    pub fn record(&self, at: u32) -> &Record<F::Addr> {
        &self.records[at as usize]
    }

    /// The record, for everything but its state: that goes through [`Self::transition`].
    #[inline(always)]
    #[must_use]
    pub fn record_mut(&mut self, at: u32) -> &mut Record<F::Addr> {
        &mut self.records[at as usize]
    }

    /// A record, and the SNAT addresses it may name.
    #[inline(always)]
    pub fn hit(&mut self, at: u32) -> Option<WithSnats<'_, F::Addr>> {
        Some((self.records.get_mut(at as usize)?, &self.snats))
    }

    /// Moves a flow to another state, and between the pools where the state asks for it.
    ///
    /// # Errors
    /// `FlowTableFull`: the flow would be established and there is no room for one more; see [`Self::reclaim`].
    pub fn transition(&mut self, at: u32, from: Word, to: Word) -> Result<(), DropReason> {
        match (from.state.is_embryonic(), to.state.is_embryonic()) {
            (true, false) if !self.has_room(to) => return Err(DropReason::FlowTableFull),
            (false, true) => self.make_room_for_embryo(),
            _ => {}
        }
        if from.state.is_embryonic() != to.state.is_embryonic() {
            self.uncount(from, at);
            self.count(to, at);
        }
        self.records[at as usize].commit(self.tally.moves(at, from, to));
        Ok(())
    }

    /// Counts a flow in another place for its scheduler; 0: nowhere.
    pub fn recount(&mut self, at: u32, load: u32) {
        self.tally.assign(at, &self.records[at as usize], load);
    }

    /// Counts a flow where its service has limits now, and nowhere else.
    pub fn limit(&mut self, at: u32, service: &Service) {
        limit::<F>(&mut self.tally, at, &self.records[at as usize], service);
    }

    /// Counts a flow towards its service's limits, and as opened now.
    pub fn limit_opened(&mut self, at: u32, service: &Service, now: Now) {
        self.limit(at, service);
        if let Some(word) = self.records[at as usize].word() {
            self.tally.limits.opened(at, word, now);
        }
    }

    /// What limits are held against.
    pub fn limits(&mut self) -> &mut Limiter {
        &mut self.tally.limits
    }

    /// The counts for schedulers.
    #[must_use]
    pub fn share(&self) -> &Arc<Share> {
        self.tally.share()
    }

    /// Adds a flow, in an embryonic state; the oldest embryo makes room if need be.
    ///
    /// # Errors
    /// `FlowTableFull`.
    pub fn insert(&mut self, flow: &NewFlow<F::Addr>, now: Now) -> Result<u32, DropReason> {
        let (dst, dst_port) = (flow.vip, flow.vip_port);
        let key = Tuple { src: flow.client, dst, src_port: flow.client_port, dst_port, protocol: flow.word.protocol };
        self.insert_hashed(flow, self.hash(&key), None, now)
    }

    /// The same, when the hash of its client's packets is known, and perhaps that of its node's.
    ///
    /// # Errors
    /// `FlowTableFull`.
    pub fn insert_hashed(
        &mut self,
        flow: &NewFlow<F::Addr>,
        forward: u64,
        reverse: Option<u64>,
        now: Now,
    ) -> Result<u32, DropReason> {
        debug_assert!(flow.word.state.is_embryonic());
        self.make_room_for_embryo();
        let at = self.free.take().ok_or(DropReason::FlowTableFull)?;
        if let Some(soon) = self.free.ahead(SOON) {
            prefetch(&self.records[soon as usize]);
            self.embryos.prefetch(soon);
        }
        let record = &mut self.records[at as usize];
        record.client = flow.client;
        record.vip = flow.vip;
        record.node = flow.node;
        record.client_port = flow.client_port;
        record.vip_port = flow.vip_port;
        record.node_port = flow.node_port;
        record.snat_port = flow.snat_port;
        record.snat = flow.snat;
        record.epoch = flow.epoch;
        record.hop = flow.hop;
        record.node_slot = flow.node_slot;
        record.service = flow.service;
        record.last_seen = now.tick().0;
        record.packets = 0;
        record.forward_bytes = 0;
        record.reverse_bytes = 0;
        record.seen = Positions::default();
        record.commit(flow.word);
        let reverse = reverse.unwrap_or_else(|| {
            self.hash(&key::<F>(&self.records[at as usize], flow.word, Direction::Reverse, &self.snats))
        });
        let hashes = [forward, reverse];
        debug_assert_eq!(hashes, self.keys(&self.records[at as usize], flow.word).map(|key| self.hash(&key)));
        if !self.insert_keys(at, hashes) {
            self.records[at as usize].clear();
            self.free.give(at);
            return Err(DropReason::FlowTableFull);
        }
        self.count(flow.word, at);
        if flow.load != 0 {
            self.recount(at, flow.load);
        }
        self.high_water = self.high_water.max(at + 1);
        Ok(at)
    }

    fn make_room_for_embryo(&mut self) {
        if self.embryos.is_full()
            && let Some(oldest) = self.embryos.oldest()
        {
            self.evict(oldest);
            self.prepare_eviction();
        }
    }

    /// Forgets an embryo because others need its room.
    pub fn evict(&mut self, at: u32) {
        self.counts.evicted += 1;
        self.remove(at);
    }

    /// Under a flood of openings each evicts one. What the next eviction will touch is in no cache: its
    /// record was asked for at the last one, so that its index lines can be asked for now.
    fn prepare_eviction(&self) {
        let Some(next) = self.embryos.oldest() else { return };
        self.prefetch_removal(next);
        if let Some(then) = self.embryos.newer(next) {
            prefetch(&self.records[then as usize]);
        }
    }

    /// Asks for the index lines that forgetting a flow will touch.
    fn prefetch_removal(&self, at: u32) {
        let record = &self.records[at as usize];
        if let Some(word) = record.word() {
            for key in self.keys(record, word) {
                self.index.prefetch(self.hash(&key));
            }
        }
    }

    /// Forgets a flow.
    pub fn remove(&mut self, at: u32) {
        let record = &self.records[at as usize];
        let Some(word) = record.word() else { return };
        let keys = self.keys(record, word);
        for (key, direction) in keys.iter().zip([Direction::Forward, Direction::Reverse]) {
            let hash = F::hash(&self.hasher, key);
            self.index.remove(hash, Entry { record: at, direction });
        }
        self.tally.leave(at, word);
        self.records[at as usize].clear();
        self.free.give(at);
        self.uncount(word, at);
    }

    /// Shows up to `budget` records to `visit`, going on where the last call stopped, and forgets those it
    /// says so of. Stops early where no `effort` is left. Some records before its turn each is shown to `foresee`,
    /// to ask for the memory that its visit will want. Returns how many it has gone over, and whether the round
    /// through the table is complete.
    pub fn sweep(
        &mut self,
        budget: u32,
        effort: &mut u32,
        foresee: impl Fn(&Record<F::Addr>),
        mut visit: impl FnMut(u32, &mut Record<F::Addr>, Word, &mut Tally) -> Swept,
    ) -> (u32, bool) {
        let start = self.sweep_at;
        let end = (start + budget).min(self.high_water);
        // Their index lines lie anywhere: asked for while the others are visited, not waited for one after the other.
        let mut forgotten = ArrayVec::<u32, { (MOST_EFFORT / Swept::Forgotten.effort()) as usize }>::new();
        let mut at = start;
        while at < end && *effort > 0 && !forgotten.is_full() {
            if let Some(record) = self.records.get((at + VISITED_SOON) as usize) {
                foresee(record);
            }
            let record = &mut self.records[at as usize];
            let swept = match record.word() {
                Some(word) => visit(at, record, word, &mut self.tally),
                None => Swept::Kept,
            };
            if swept == Swept::Forgotten {
                self.prefetch_removal(at);
                forgotten.push(at);
            }
            *effort = effort.saturating_sub(swept.effort());
            at += 1;
        }
        forgotten.into_iter().for_each(|at| self.remove(at));
        let round = at >= self.high_water;
        self.sweep_at = if round { 0 } else { at };
        (at - start, round)
    }

    /// The flows there are: a walk through the table, for start and tests.
    pub fn live(&self) -> impl Iterator<Item = (&Record<F::Addr>, Word)> {
        let records = self.records.iter().take(self.high_water as usize);
        records.filter_map(|record| Some((record, record.word()?)))
    }

    /// Records a sweep goes through.
    #[must_use]
    pub fn swept_records(&self) -> u32 {
        self.high_water
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes of records and index per flow of capacity.
    #[must_use]
    pub fn memory_per_flow(&self) -> f64 {
        let records = self.capacity.records() as usize;
        let other = size_of::<u32>() * records + self.embryos.memory();
        (records * size_of::<Record<F::Addr>>() + self.index.memory() + other) as f64 / records as f64
    }
}

#[cfg(test)]
mod tests;
