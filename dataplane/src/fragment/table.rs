//! Datagrams under way, by key. Of fixed capacity: entries, hash chains and the list by age are numbers
//! in arrays made beforehand.

use arrayvec::ArrayVec;

use super::{Fate, PIECES, Piece};
use crate::clock::Now;
use crate::wire::Tuple;

/// No entry.
pub const NONE: u16 = u16::MAX;

struct Datagram<A> {
    key: Tuple<A>,
    fate: Fate,
    since: Now,
    pieces: ArrayVec<(u16, u16), PIECES>,
    /// Where the last fragment ends; 0: it has not come.
    total: u16,
    covered: u32,
    /// The first of the slots that wait here.
    waiting: u16,
    /// The slot of the first fragment, where that waits too.
    first: u16,
    bucket: u16,
    /// The next of the same hash bucket.
    chain: u16,
    older: u16,
    newer: u16,
}

/// What a fragment was to its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    New,
    /// An exact copy of one seen before.
    Copy,
    /// It overlaps another, or contradicts the datagram's length.
    Overlap,
    TooMany,
}

pub struct Datagrams<A> {
    entries: Box<[Datagram<A>]>,
    heads: Box<[u16]>,
    free: Vec<u16>,
    oldest: u16,
    newest: u16,
}

impl<A: Copy + Eq + Default> Datagrams<A> {
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        debug_assert!(capacity < usize::from(NONE));
        let none = A::default();
        let key = Tuple { src: none, dst: none, src_port: 0, dst_port: 0, protocol: 0 };
        let blank = || Datagram {
            key,
            fate: Fate::Unknown,
            since: Now::default(),
            pieces: ArrayVec::new(),
            total: 0,
            covered: 0,
            waiting: NONE,
            first: NONE,
            bucket: 0,
            chain: NONE,
            older: NONE,
            newer: NONE,
        };
        Self {
            entries: (0..capacity).map(|_| blank()).collect(),
            heads: vec![NONE; (capacity * 2).next_power_of_two()].into(),
            free: (0..capacity as u16).rev().collect(),
            oldest: NONE,
            newest: NONE,
        }
    }

    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    #[must_use]
    pub fn find(&self, key: &Tuple<A>, hash: u64) -> Option<u16> {
        let mut at = self.heads[self.bucket(hash)];
        while at != NONE {
            let entry = &self.entries[usize::from(at)];
            if entry.key == *key {
                return Some(at);
            }
            at = entry.chain;
        }
        None
    }

    /// A new datagram. `None`: the table is full, the [`Self::oldest`] must go first.
    pub fn insert(&mut self, key: &Tuple<A>, hash: u64, now: Now) -> Option<u16> {
        let at = self.free.pop()?;
        let bucket = self.bucket(hash);
        let (chain, older) = (self.heads[bucket], self.newest);
        let entry = &mut self.entries[usize::from(at)];
        (entry.key, entry.fate, entry.since) = (*key, Fate::Unknown, now);
        entry.pieces.clear();
        (entry.total, entry.covered) = (0, 0);
        (entry.waiting, entry.first) = (NONE, NONE);
        (entry.bucket, entry.chain, entry.older, entry.newer) = (bucket as u16, chain, older, NONE);
        self.heads[bucket] = at;
        match older {
            NONE => self.oldest = at,
            older => self.entries[usize::from(older)].newer = at,
        }
        self.newest = at;
        Some(at)
    }

    /// Forgets a datagram. Nothing may wait there.
    pub fn remove(&mut self, at: u16) {
        let Datagram { bucket, chain, older, newer, waiting, .. } = self.entries[usize::from(at)];
        debug_assert_eq!(waiting, NONE);
        let bucket = usize::from(bucket);
        if self.heads[bucket] == at {
            self.heads[bucket] = chain;
        } else {
            let mut before = self.heads[bucket];
            while before != NONE && self.entries[usize::from(before)].chain != at {
                before = self.entries[usize::from(before)].chain;
            }
            if before != NONE {
                self.entries[usize::from(before)].chain = chain;
            }
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[usize::from(older)].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[usize::from(newer)].older = older,
        }
        self.free.push(at);
    }

    #[must_use]
    pub fn oldest(&self) -> Option<u16> {
        Some(self.oldest).filter(|at| *at != NONE)
    }

    /// The oldest datagram, if it began at least `age` ns ago.
    #[must_use]
    pub fn expired(&self, now: Now, age: u64) -> Option<u16> {
        self.oldest().filter(|at| now.ns.saturating_sub(self.entries[usize::from(*at)].since.ns) >= age)
    }

    /// Notes a fragment.
    pub fn add(&mut self, at: u16, piece: &Piece) -> Added {
        let entry = &mut self.entries[usize::from(at)];
        if entry.pieces.contains(&(piece.start, piece.end)) {
            return Added::Copy;
        }
        let overlaps = entry.pieces.iter().any(|(start, end)| piece.start < *end && *start < piece.end);
        let beyond = entry.total != 0 && (piece.last || piece.end > entry.total);
        let before = piece.last && entry.pieces.iter().any(|(_, end)| *end > piece.end);
        if overlaps || beyond || before {
            return Added::Overlap;
        }
        if entry.pieces.try_push((piece.start, piece.end)).is_err() {
            return Added::TooMany;
        }
        entry.covered += u32::from(piece.end - piece.start);
        if piece.last {
            entry.total = piece.end;
        }
        Added::New
    }

    /// Whether every fragment has come.
    #[must_use]
    pub fn is_complete(&self, at: u16) -> bool {
        let entry = &self.entries[usize::from(at)];
        entry.total != 0 && entry.covered == u32::from(entry.total)
    }

    #[must_use]
    pub fn fate(&self, at: u16) -> Fate {
        self.entries[usize::from(at)].fate
    }

    /// Settles what becomes of a datagram; returns the first slot that waited for it.
    pub fn settle(&mut self, at: u16, fate: Fate) -> u16 {
        let entry = &mut self.entries[usize::from(at)];
        entry.fate = fate;
        std::mem::replace(&mut entry.waiting, NONE)
    }

    /// How long the datagram is, once its last fragment has come.
    #[must_use]
    pub fn total(&self, at: u16) -> Option<u16> {
        Some(self.entries[usize::from(at)].total).filter(|total| *total != 0)
    }

    /// The slot of the first fragment; there is none behind it.
    pub fn hold_first(&mut self, at: u16, slot: u16) -> u16 {
        self.entries[usize::from(at)].first = slot;
        NONE
    }

    /// The slot of the first fragment, which waits no longer.
    pub fn take_first(&mut self, at: u16) -> u16 {
        std::mem::replace(&mut self.entries[usize::from(at)].first, NONE)
    }

    /// Puts a slot in front of those that wait; returns the one behind it.
    pub fn wait(&mut self, at: u16, slot: u16) -> u16 {
        std::mem::replace(&mut self.entries[usize::from(at)].waiting, slot)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
