//! The hash index of a flow table: two entries per flow, one for each direction.
//!
//! Buckets are one cache line of eight entries; a key has two buckets to choose from and takes the
//! first with room, so that most lookups touch one line. When both are full one entry is moved to
//! its other bucket. The index holds no keys: a 32-bit tag picks the record, the record decides.
//! It is never persisted: a restart rebuilds it by a scan of the records.

use crate::sys::{HugeArray, equal_lanes, prefetch};

const SLOTS: usize = 8;
const EMPTY: u32 = 0;
/// In a bucket's first slot: some key that would have come here went to its second bucket instead. So
/// most lookups of a key that is not there touch one line too. Set for good: a rebuild clears it.
const OVERFLOWED: u32 = 1 << 31;
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
        self.slots[at] & !OVERFLOWED
    }

    #[inline]
    fn overflowed(&self) -> bool {
        self.slots[0] & OVERFLOWED != 0
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
        let mut slots = self.slots;
        slots[0] &= !OVERFLOWED;
        let matches = equal_lanes(&slots, value);
        (matches != 0).then(|| matches.trailing_zeros() as usize % SLOTS)
    }

    fn put(&mut self, at: usize, tag: u32, slot: u32) {
        self.tags[at] = tag;
        self.slots[at] = self.slots[at] & OVERFLOWED | slot;
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
        if !first.overflowed() {
            return None;
        }
        self.buckets[self.second(hash)].search(tag, &mut is_it)
    }

    /// Adds an entry. `rehash` tells the hash of an entry already in the index (from its record), to
    /// move it when both buckets are full. False: no room, nothing changed.
    pub fn insert(&mut self, hash: u64, entry: Entry, rehash: impl Fn(Entry) -> u64) -> bool {
        let (tag, slot) = (hash as u32, entry.pack());
        let choices = [self.first(hash), self.second(hash)];
        if self.place(choices[0], tag, slot) {
            self.used += 1;
            return true;
        }
        if self.place(choices[1], tag, slot) {
            self.overflow(choices[0]);
            self.used += 1;
            return true;
        }
        for bucket in choices {
            for at in 0..SLOTS {
                let resident = self.buckets[bucket].slot(at);
                let its_hash = rehash(Entry::unpack(resident));
                let first = self.first(its_hash);
                let other = if first == bucket { self.second(its_hash) } else { first };
                if self.place(other, its_hash as u32, resident) {
                    self.overflow(first);
                    self.overflow(choices[0]);
                    self.buckets[bucket].put(at, tag, slot);
                    self.used += 1;
                    return true;
                }
            }
        }
        false
    }

    fn overflow(&mut self, bucket: usize) {
        self.buckets[bucket].slots[0] |= OVERFLOWED;
    }

    fn place(&mut self, bucket: usize, tag: u32, slot: u32) -> bool {
        let bucket = &mut self.buckets[bucket];
        let Some(at) = bucket.slot_of(EMPTY) else { return false };
        bucket.put(at, tag, slot);
        true
    }

    /// Removes the entry. False: it was not there.
    pub fn remove(&mut self, hash: u64, entry: Entry) -> bool {
        let slot = entry.pack();
        for bucket in [self.first(hash), self.second(hash)] {
            let bucket = &mut self.buckets[bucket];
            if let Some(at) = bucket.slot_of(slot) {
                bucket.put(at, 0, EMPTY);
                self.used -= 1;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(n: u64) -> u64 {
        let n = (n ^ n >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n ^ n >> 29
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
