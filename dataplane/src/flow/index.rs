//! The hash index of a flow table: two entries per flow, one for each direction.
//!
//! Buckets are one cache line of eight entries; a key has two buckets to choose from and takes the
//! first with room, so that most lookups touch one line. When both are full one entry is moved to
//! its other bucket; if there is no room either, one of that bucket's is moved before. The index holds no
//! keys: a 32-bit tag picks the record, the record decides. It is never persisted: a restart rebuilds it by a
//! scan of the records.

use crate::sys::{HugeArray, equal_lanes, prefetch, top_bits};

const SLOTS: usize = 8;
const EMPTY: u32 = 0;
/// The top bits of a bucket's slots, the first slot's the lowest, are a number: how many keys that would have
/// come here are in their second bucket. While there are none, a lookup of a key that is not there touches
/// one line too.
const TOP: u32 = 1 << 31;
/// What eight bits can count. A bucket that got so far is not counted down any more.
const MOST_STRAYS: u32 = (1 << SLOTS) - 1;
/// Entries moved for one insertion.
const MOST_MOVES: u32 = 2;
/// What a slot's other bits can count.
const MAX_RECORDS: usize = (1 << 30) - 1;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Bucket {
    tags: [u32; SLOTS],
    slots: [u32; SLOTS],
}

impl Bucket {
    /// Slots with this tag, one bit each, empty ones possibly among them: no branch per slot.
    #[inline(always)]
    fn matches(&self, tag: u32) -> u32 {
        equal_lanes(&self.tags, tag)
    }

    #[inline(always)]
    fn slot(&self, at: usize) -> u32 {
        self.slots[at] & !TOP
    }

    /// Keys of this bucket that are in their second one.
    #[inline(always)]
    fn strays(&self) -> u32 {
        top_bits(&self.slots)
    }

    fn set_strays(&mut self, strays: u32) {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            *slot = *slot & !TOP | (strays >> at & 1) << 31;
        }
    }

    fn gain_stray(&mut self) {
        self.set_strays((self.strays() + 1).min(MOST_STRAYS));
    }

    fn lose_stray(&mut self) {
        let strays = self.strays();
        if strays != MOST_STRAYS {
            debug_assert!(strays > 0, "a key in its second bucket was counted in its first");
            self.set_strays(strays.saturating_sub(1));
        }
    }

    /// The first entry of this tag that `is_it` recognises.
    #[inline(always)]
    fn search(&self, tag: u32, is_it: &mut impl FnMut(Entry) -> bool) -> Option<Entry> {
        let mut matches = self.matches(tag);
        while matches != 0 {
            let slot = self.slot(matches.trailing_zeros() as usize % SLOTS);
            if slot != EMPTY {
                let entry = Entry::unpack(slot);
                if is_it(entry) {
                    return Some(entry);
                }
            }
            matches &= matches - 1;
        }
        None
    }

    /// The first slot with this value.
    #[inline]
    fn slot_of(&self, value: u32) -> Option<usize> {
        let matches = equal_lanes(&self.slots.map(|slot| slot & !TOP), value);
        (matches != 0).then(|| matches.trailing_zeros() as usize % SLOTS)
    }

    fn put(&mut self, at: usize, tag: u32, slot: u32) {
        self.tags[at] = tag;
        self.slots[at] = self.slots[at] & TOP | slot;
    }
}

/// Which way a packet of a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the VIP.
    Forward,
    /// From the node back.
    Reverse,
}

/// A record of the table and the direction in which the key looked up names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub record: u32,
    pub direction: Direction,
}

impl Entry {
    #[inline(always)]
    fn pack(self) -> u32 {
        let direction = u32::from(self.direction == Direction::Reverse);
        // Records are counted from 1 here, so that no entry is all zeros.
        (self.record + 1) << 1 | direction
    }

    #[inline(always)]
    fn unpack(slot: u32) -> Self {
        let direction = if slot & 1 == 0 { Direction::Forward } else { Direction::Reverse };
        Self { record: (slot >> 1).wrapping_sub(1), direction }
    }
}

pub struct Index {
    buckets: HugeArray<Bucket>,
    used: usize,
}

impl Index {
    /// An index for `flows` flows: at most 4/5 full when the table is.
    pub fn new(flows: usize) -> std::io::Result<Self> {
        if flows > MAX_RECORDS {
            return Err(std::io::Error::other(format!("{flows} flows are beyond the {MAX_RECORDS} an index counts")));
        }
        let buckets = (flows * 2 * 5 / 4).div_ceil(SLOTS).max(2);
        Ok(Self { buckets: HugeArray::zeroed(buckets)?, used: 0 })
    }

    /// Entries in use.
    pub fn used(&self) -> usize {
        self.used
    }

    #[must_use]
    pub fn memory(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    #[inline]
    fn first(&self, hash: u64) -> usize {
        (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn second(&self, hash: u64) -> usize {
        // Other bits of the hash than the first bucket's, stirred so that keys which share the
        // first bucket do not share the second.
        let stirred = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let bucket = ((stirred * self.buckets.len() as u64) >> 32) as usize;
        if bucket == self.first(hash) { (bucket + 1) % self.buckets.len() } else { bucket }
    }

    /// Starts the loads a lookup of `hash` will wait for.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[self.first(hash)]);
    }

    /// For a key that is not in its first bucket, whose line is here by now: starts the load of the second
    /// one where a lookup or an insertion will go on to it.
    #[inline]
    pub fn prefetch_second(&self, hash: u64) {
        let first = &self.buckets[self.first(hash)];
        if first.strays() != 0 || first.slot_of(EMPTY).is_none() {
            prefetch(&self.buckets[self.second(hash)]);
        }
    }

    /// The entry a lookup of `hash` will most likely compare: its record is worth prefetching.
    #[inline(always)]
    pub fn likely(&self, hash: u64) -> Option<Entry> {
        let bucket = &self.buckets[self.first(hash)];
        let matches = bucket.matches(hash as u32);
        // With no match this reads a slot it does not use, instead of branching.
        let slot = bucket.slot(matches.trailing_zeros() as usize % SLOTS);
        (matches != 0 && slot != EMPTY).then(|| Entry::unpack(slot))
    }

    /// The first entry of this hash that `is_it` recognises.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(Entry) -> bool) -> Option<Entry> {
        let tag = hash as u32;
        let first = &self.buckets[self.first(hash)];
        if let Some(entry) = first.search(tag, &mut is_it) {
            return Some(entry);
        }
        if first.strays() == 0 {
            return None;
        }
        self.buckets[self.second(hash)].search(tag, &mut is_it)
    }

    /// Adds an entry. `rehash` tells the hash of an entry already in the index (from its record), to
    /// move it when both buckets are full. False: no room, nothing changed.
    pub fn insert(&mut self, hash: u64, entry: Entry, rehash: impl Fn(Entry) -> u64) -> bool {
        let choices = [self.first(hash), self.second(hash)];
        let empty = choices.into_iter().find_map(|bucket| Some((bucket, self.buckets[bucket].slot_of(EMPTY)?)));
        let Some((bucket, at)) = empty.or_else(|| self.make_room(choices, &rehash)) else { return false };
        self.buckets[bucket].put(at, hash as u32, entry.pack());
        if bucket != choices[0] {
            self.buckets[choices[0]].gain_stray();
        }
        self.used += 1;
        true
    }

    /// A bucket of two full ones, and its slot whose entry was moved away.
    #[cold]
    fn make_room(&mut self, full: [usize; 2], rehash: &impl Fn(Entry) -> u64) -> Option<(usize, usize)> {
        // One move is enough but for one insertion in ten million, where the index is 4/5 full.
        let mut ways = (1..=MOST_MOVES).flat_map(|moves| full.map(|bucket| (bucket, moves)));
        ways.find_map(|(bucket, moves)| Some((bucket, self.free_slot(bucket, moves, rehash)?)))
    }

    /// A slot of this bucket that is empty, or whose entry has its place elsewhere by now, after so many moves at
    /// most. The caller writes to it at once: until then the bucket is full, and no other move ends there.
    fn free_slot(&mut self, bucket: usize, moves: u32, rehash: &impl Fn(Entry) -> u64) -> Option<usize> {
        let empty = self.buckets[bucket].slot_of(EMPTY);
        if empty.is_some() || moves == 0 {
            return empty;
        }
        for at in 0..SLOTS {
            let slot = self.buckets[bucket].slot(at);
            let hash = rehash(Entry::unpack(slot));
            let [first, second] = [self.first(hash), self.second(hash)];
            let other = if bucket == first { second } else { first };
            let Some(to) = self.free_slot(other, moves - 1, rehash) else { continue };
            self.buckets[other].put(to, hash as u32, slot);
            if bucket == first {
                self.buckets[first].gain_stray();
            } else {
                self.buckets[first].lose_stray();
            }
            return Some(at);
        }
        None
    }

    /// Removes the entry. False: it was not there.
    pub fn remove(&mut self, hash: u64, entry: Entry) -> bool {
        let slot = entry.pack();
        let first = self.first(hash);
        let mut bucket = first;
        let mut found = self.buckets[first].slot_of(slot);
        if found.is_none() && self.buckets[first].strays() != 0 {
            bucket = self.second(hash);
            found = self.buckets[bucket].slot_of(slot);
        }
        let Some(at) = found else { return false };
        self.buckets[bucket].put(at, 0, EMPTY);
        if bucket != first {
            self.buckets[first].lose_stray();
        }
        self.used -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::FlowHasher;

    /// As random as a flow table's: one that spreads numbers in a row evenly would fill an index too well.
    fn mix(n: u64) -> u64 {
        FlowHasher::new([0x5eed, 0xf10e]).v4((n >> 32) as u32, n as u32, 0, 0, 0)
    }

    fn entry(record: u32) -> Entry {
        Entry { record, direction: if record.is_multiple_of(2) { Direction::Forward } else { Direction::Reverse } }
    }

    #[test]
    fn holds_all_its_flows_and_forgets_removed_ones() {
        let flows = 20_000;
        let mut index = Index::new(flows).unwrap();
        let hash = |n: u32| mix(u64::from(n) + 1);
        for n in 0..2 * flows as u32 {
            assert!(index.insert(hash(n), entry(n), |e| hash(e.record)), "no room for entry {n}");
        }
        assert_eq!(index.used(), 2 * flows);
        for n in 0..2 * flows as u32 {
            assert_eq!(index.find(hash(n), |e| e.record == n), Some(entry(n)));
        }
        for n in (0..2 * flows as u32).step_by(2) {
            assert!(index.remove(hash(n), entry(n)));
            assert!(!index.remove(hash(n), entry(n)));
        }
        for n in 0..2 * flows as u32 {
            assert_eq!(index.find(hash(n), |e| e.record == n).is_some(), n % 2 == 1);
        }
    }

    /// Each bucket's strays, counted anew.
    fn check_strays(index: &Index, hash: impl Fn(u32) -> u64) {
        let mut strays = vec![0; index.buckets.len()];
        for bucket in 0..index.buckets.len() {
            let slots = (0..SLOTS).map(|at| index.buckets[bucket].slot(at)).filter(|slot| *slot != EMPTY);
            for first in slots.map(|slot| index.first(hash(Entry::unpack(slot).record))) {
                strays[first] += u32::from(first != bucket);
            }
        }
        for (bucket, strays) in index.buckets.iter().zip(strays) {
            assert_eq!(bucket.strays(), strays);
        }
    }

    /// Entries come and go for long, in a table as full as they get: what is left behind is nothing.
    #[test]
    fn strays_are_known_and_forgotten() {
        let flows = 2_000;
        let mut index = Index::new(flows).unwrap();
        let hash = |n: u32| mix(u64::from(n) + 7);
        let mut known = std::collections::VecDeque::new();
        let mut seen = 0;
        for n in 0..20 * flows as u32 {
            assert!(index.insert(hash(n), entry(n), |e| hash(e.record)));
            known.push_back(n);
            if known.len() == 2 * flows {
                // Not in the order they came.
                known.rotate_left(n as usize % 100);
                let gone = known.pop_front().unwrap();
                assert!(index.remove(hash(gone), entry(gone)));
            }
            if n % 1_000 == 0 {
                check_strays(&index, hash);
                seen += index.buckets.iter().map(Bucket::strays).sum::<u32>();
            }
        }
        assert!(seen > 0, "none ever strayed: nothing was tested");
        for n in known {
            assert_eq!(index.find(hash(n), |e| e.record == n), Some(entry(n)));
            assert!(index.remove(hash(n), entry(n)));
        }
        assert!(index.used() == 0 && index.buckets.iter().all(|bucket| bucket.strays() == 0));
    }

    /// More keys for two buckets than eight bits count: no key is lost, nor believed gone.
    #[test]
    fn a_count_at_its_end_stays_there() {
        let mut bucket = Bucket { tags: [0; SLOTS], slots: [5; SLOTS] };
        for strays in 1..=MOST_STRAYS {
            bucket.gain_stray();
            assert_eq!(bucket.strays(), strays);
        }
        bucket.gain_stray();
        bucket.lose_stray();
        assert_eq!(bucket.strays(), MOST_STRAYS);
        assert!((0..SLOTS).all(|at| bucket.slot(at) == 5));
    }

    /// What is measured here as a share is, at ten million flows, whether the last of them find a place.
    #[test]
    fn takes_far_more_than_its_flows_need() {
        let mut index = Index::new(100_000).unwrap();
        let slots = index.buckets.len() * SLOTS;
        let hash = |n: u32| mix(u64::from(n) + 3);
        let fitted = (0..).take_while(|n| index.insert(hash(*n), entry(*n), |e| hash(e.record))).count();
        assert!(fitted * 100 >= slots * 95, "the first refused was entry {fitted} of {slots} slots");
        check_strays(&index, hash);
        assert!((0..fitted as u32).all(|n| index.find(hash(n), |e| e.record == n) == Some(entry(n))));
    }

    #[test]
    fn says_when_it_is_full() {
        let mut index = Index::new(4).unwrap();
        let hash = |n: u32| mix(u64::from(n) + 1);
        let fitted = (0..100).take_while(|n| index.insert(hash(*n), entry(*n), |e| hash(e.record))).count();
        assert!((8..=16).contains(&fitted), "{fitted}");
        for n in 0..fitted as u32 {
            assert!(index.find(hash(n), |e| e.record == n).is_some());
        }
    }
}
