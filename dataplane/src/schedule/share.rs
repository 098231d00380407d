//! How many flows each backend of a service has, over all workers.
//!
//! Each worker counts its own flows exactly, in a [`Share`] only it writes, by plain stores: plus one
//! when a record is made, minus one when it goes (closed, expired, evicted, revoked), from active to
//! inactive when it begins to close. The others read it a stretch at a time, a whole round every
//! [`ROUND_NS`], into numbers of their own ([`Others`]), and choose by those: between two rounds no
//! line of memory is touched by two workers.
//!
//! # How wrong a count may be
//! What a worker chooses by is its own count as it is now, and each other worker's as it was at most
//! [`OLDEST_NS`] = T ago: a round takes T/2, so a number is read again within T, and a worker that
//! slept, or was held up, finds its numbers older and reads those of the service afresh before it
//! chooses. So the sum is off by at most the flows that began and ended at *other* workers within T: with
//! r flows a second that begin or end, and W workers sharing them evenly, at most r * T * (W - 1) / W
//! on average; at r = 100,000 and two workers 200. Nothing adds up over time, since levels are
//! exchanged, not changes. `tests::what_is_seen_is_off_by_what_came_in_a_period` holds the bound
//! against an exact model.
//!
//! # Slots
//! A slot is a (service, backend) pair's for as long as both exist, whatever snapshots come between.
//! Flows of a pair that is gone count in its slot until the sweep meets them, a second at most; a pair
//! that got the slot in the meantime sees them for as long. Slot 0 is nobody's. After a restart flows
//! are counted as they are found again: all within one round of the sweep.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::clock::Now;
use crate::flow::{Flags, Record, State, Word};
use crate::limits::{Counts, Limiter};

/// No number a worker chooses by is older.
pub const OLDEST_NS: u64 = 4_000_000;
/// A round through all slots.
pub const ROUND_NS: u64 = OLDEST_NS / 2;
/// Slots read per call at most, times workers: some ten microseconds, each line being another core's.
const MOST: u64 = 1024;

/// Flows of one backend of a service, as IPVS tells them apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub active: u32,
    pub inactive: u32,
}

/// IPVS's `tcp_state_active_table`: half-open ones are active, closing ones are not. UDP always is.
#[must_use]
pub fn is_active(state: State) -> bool {
    match state {
        State::SynSent | State::Established | State::UdpOneWay | State::UdpStream => true,
        State::SctpInit | State::SctpEstablished => true,
        State::FinWait | State::TimeWait | State::Reset | State::Expired => false,
        State::SctpShutdown | State::SctpClosed => false,
    }
}

#[derive(Debug, Default)]
struct Cell {
    active: AtomicU32,
    inactive: AtomicU32,
}

const PER_LINE: usize = 16;

/// Two cache lines, which processors fetch together: no cell shares one with another worker's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([Cell; PER_LINE]);

/// One worker's counts, by slot. One writer.
#[derive(Debug)]
pub struct Share {
    lines: Box<[Line]>,
    /// Those that services' limits are held against.
    pub limits: Counts,
}

impl Share {
    /// With room for slots 1 to `most`.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self::with_limits(most, Counts::new(0, 1))
    }

    /// The same, with what is counted for limits.
    #[must_use]
    pub fn with_limits(most: usize, limits: Counts) -> Self {
        Self { lines: (0..(most + 1).div_ceil(PER_LINE)).map(|_| Line::default()).collect(), limits }
    }

    /// The last slot there is.
    #[must_use]
    pub fn slots(&self) -> u32 {
        (self.lines.len() * PER_LINE - 1) as u32
    }

    #[inline]
    fn cell(&self, slot: u32) -> Option<&Cell> {
        let slot = slot as usize;
        self.lines.get(slot / PER_LINE).map(|line| &line.0[slot % PER_LINE])
    }

    /// Nothing, for a slot there is not.
    #[inline]
    #[must_use]
    pub fn load(&self, slot: u32) -> Load {
        self.cell(slot).map_or(Load::default(), |cell| Load {
            active: cell.active.load(Ordering::Relaxed),
            inactive: cell.inactive.load(Ordering::Relaxed),
        })
    }

    fn change(&self, slot: u32, active: bool, by: u32) {
        if let Some(cell) = self.cell(slot) {
            let count = if active { &cell.active } else { &cell.inactive };
            count.store(count.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }
}

/// Which slot each record of a flow table counts in.
#[derive(Debug)]
pub struct Tally {
    share: Arc<Share>,
    /// By record; meant only where the record's word has [`Flags::COUNTED`].
    slots: Box<[u32]>,
    /// The same records, as services' limits count them.
    pub limits: Limiter,
}

impl Tally {
    #[must_use]
    pub fn new(records: usize, share: Arc<Share>) -> Self {
        Self { limits: Limiter::new(records, Arc::clone(&share)), share, slots: vec![0; records].into() }
    }

    #[must_use]
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Counts a record that is not counted yet in `slot`; 0: nowhere. Returns the word it is to have.
    #[inline]
    pub fn enter(&mut self, at: u32, word: Word, slot: u32) -> Word {
        if slot == 0 {
            return word;
        }
        self.slots[at as usize] = slot;
        self.share.change(slot, is_active(word.state), 1);
        Word { flags: word.flags.with(Flags::COUNTED), ..word }
    }

    /// The record goes.
    #[inline]
    pub fn leave(&mut self, at: u32, word: Word) {
        self.uncount(at, word);
        self.limits.leave(at, word);
    }

    #[inline]
    fn uncount(&mut self, at: u32, word: Word) {
        if word.flags.has(Flags::COUNTED) {
            self.share.change(self.slots[at as usize], is_active(word.state), 1_u32.wrapping_neg());
        }
    }

    /// The record's state changes. Returns the word it is to have: one once counted stays so.
    #[inline]
    #[must_use]
    pub fn moves(&self, at: u32, from: Word, to: Word) -> Word {
        let to = self.limits.moves(at, from, to);
        if !from.flags.has(Flags::COUNTED) {
            return to;
        }
        let (was, is) = (is_active(from.state), is_active(to.state));
        if was != is {
            let slot = self.slots[at as usize];
            self.share.change(slot, was, 1_u32.wrapping_neg());
            self.share.change(slot, is, 1);
        }
        Word { flags: to.flags.with(Flags::COUNTED), ..to }
    }

    /// Counts the record in `slot`, 0 being nowhere, instead of where it was counted.
    #[inline]
    pub fn assign<A>(&mut self, at: u32, record: &Record<A>, slot: u32) {
        let Some(word) = record.word() else { return };
        if self.slot(at, word) == slot {
            return;
        }
        self.uncount(at, word);
        let plain = Word { flags: word.flags.without(Flags::COUNTED), ..word };
        record.commit(self.enter(at, plain, slot));
    }

    /// Where a record with this word is counted; 0: nowhere.
    #[inline]
    #[must_use]
    pub fn slot(&self, at: u32, word: Word) -> u32 {
        if word.flags.has(Flags::COUNTED) { self.slots[at as usize] } else { 0 }
    }
}

/// Every worker's counts, of both families. A worker's are missing until it is set up.
#[derive(Debug)]
pub struct Peers {
    shares: Box<[[OnceLock<Arc<Share>>; 2]]>,
    /// What sources are hashed with, alike by all.
    seed: [u64; 2],
}

impl Peers {
    #[must_use]
    pub fn new(workers: usize) -> Self {
        use std::hash::BuildHasher;
        // std's keys are the one source of randomness that cannot fail.
        let seed = [0, 1].map(|at: u64| std::hash::RandomState::new().hash_one(at));
        Self { shares: (0..workers).map(|_| Default::default()).collect(), seed }
    }

    #[must_use]
    pub fn seed(&self) -> [u64; 2] {
        self.seed
    }

    #[must_use]
    pub fn workers(&self) -> usize {
        self.shares.len()
    }

    /// Makes a worker's counts known.
    pub fn join(&self, worker: u16, v4: Arc<Share>, v6: Arc<Share>) {
        if let Some([four, six]) = self.shares.get(usize::from(worker)) {
            let _ = four.set(v4);
            let _ = six.set(v6);
        }
    }

    /// The counts of all workers but one.
    pub fn others(&self, worker: usize, v6: bool) -> impl Iterator<Item = &Arc<Share>> {
        let others = self.shares.iter().enumerate().filter(move |(at, _)| *at != worker);
        others.filter_map(move |(_, shares)| shares[usize::from(v6)].get())
    }
}

/// The other workers' counts together, as they were a moment ago.
pub struct Others {
    peers: Option<Arc<Peers>>,
    worker: usize,
    v6: bool,
    seen: Box<[Load]>,
    /// Where the round is.
    at: usize,
    /// When this round began, when its last stretch was read, and when the round before it began.
    began: Now,
    last: Now,
    complete_since: Now,
}

impl Others {
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            peers: None,
            worker: 0,
            v6: false,
            seen: vec![Load::default(); most + 1].into(),
            at: 0,
            began: Now::default(),
            last: Now::default(),
            complete_since: Now::default(),
        }
    }

    pub fn meet(&mut self, peers: Arc<Peers>, worker: u16, v6: bool) {
        // A worker alone has nobody to ask.
        self.peers = (peers.workers() > 1).then_some(peers);
        (self.worker, self.v6) = (usize::from(worker), v6);
    }

    #[inline]
    #[must_use]
    pub fn load(&self, slot: u32) -> Load {
        self.seen.get(slot as usize).copied().unwrap_or_default()
    }

    /// Whether numbers may be older than [`OLDEST_NS`].
    #[must_use]
    pub fn is_stale(&self, now: Now) -> bool {
        self.peers.is_some() && now.ns.saturating_sub(self.complete_since.ns) > OLDEST_NS
    }

    /// Reads these slots now.
    pub fn read(&mut self, slots: &[u32]) {
        let Some(peers) = &self.peers else { return };
        for slot in slots {
            if let Some(seen) = self.seen.get_mut(*slot as usize) {
                *seen = sum(peers, self.worker, self.v6, *slot);
            }
        }
    }

    /// Goes on with the round through the first `used` slots, as far as is due.
    pub fn exchange(&mut self, used: u32, now: Now) {
        let Some(peers) = &self.peers else { return };
        let used = (used as usize).min(self.seen.len());
        let elapsed = now.ns.saturating_sub(self.last.ns);
        let due = (used as u64 * elapsed).div_ceil(ROUND_NS).min((MOST / peers.workers() as u64).max(1)) as usize;
        if self.at == 0 {
            if now.ns.saturating_sub(self.began.ns) < ROUND_NS {
                return;
            }
            self.began = now;
        }
        let end = (self.at + due).min(used);
        for slot in self.at..end {
            self.seen[slot] = sum(peers, self.worker, self.v6, slot as u32);
        }
        self.last = now;
        self.at = end;
        if end >= used {
            self.at = 0;
            self.complete_since = self.began;
        }
    }
}

fn sum(peers: &Peers, worker: usize, v6: bool, slot: u32) -> Load {
    peers.others(worker, v6).fold(Load::default(), |sum, share| sum + share.load(slot))
}
