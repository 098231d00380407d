//! The hash index of a flow table: two entries per flow, one for each direction.
//!
//! Buckets are one cache line of eight entries; a key has two buckets to choose from and takes the
//! first with room, so that most lookups touch one line. When both are full one entry is moved to
//! its other bucket. The index holds no keys: a 32-bit tag picks the record, the record decides.
//! It is never persisted: a restart rebuilds it by a scan of the records.

use crate::sys::{HugeArray, prefetch};

const SLOTS: usize = 8;
const EMPTY: u64 = 0;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Bucket([u64; SLOTS]);

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
    fn pack(self, tag: u32) -> u64 {
        let direction = u64::from(self.direction == Direction::Reverse);
        // Records are counted from 1 here, so that no entry is all zeros.
        u64::from(tag) << 32 | (u64::from(self.record) + 1) << 1 | direction
    }

    fn unpack(slot: u64) -> Self {
        let direction = if slot & 1 == 0 { Direction::Forward } else { Direction::Reverse };
        Self { record: (((slot & 0xffff_ffff) >> 1) - 1) as u32, direction }
    }
}

pub struct Index {
    buckets: HugeArray<Bucket>,
    used: usize,
}

impl Index {
    /// An index for `flows` flows: at most 4/5 full when the table is.
    pub fn new(flows: usize) -> std::io::Result<Self> {
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

    /// The record a lookup of `hash` will most likely compare, for prefetching.
    #[inline]
    pub fn likely(&self, hash: u64) -> Option<u32> {
        let bucket = &self.buckets[self.first(hash)].0;
        let tag = hash as u32;
        bucket
            .iter()
            .find(|slot| (**slot >> 32) as u32 == tag && **slot != EMPTY)
            .map(|slot| Entry::unpack(*slot).record)
    }

    /// The first entry of this hash that `is_it` recognises.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(Entry) -> bool) -> Option<Entry> {
        let tag = hash as u32;
        let mut search = |bucket: usize| {
            self.buckets[bucket]
                .0
                .iter()
                .filter(|slot| (**slot >> 32) as u32 == tag && **slot != EMPTY)
                .map(|slot| Entry::unpack(*slot))
                .find(|entry| is_it(*entry))
        };
        search(self.first(hash)).or_else(|| search(self.second(hash)))
    }

    /// Adds an entry. `rehash` tells the hash of an entry already in the index (from its record), to
    /// move it when both buckets are full. False: no room, nothing changed.
    pub fn insert(&mut self, hash: u64, entry: Entry, rehash: impl Fn(Entry) -> u64) -> bool {
        let slot = entry.pack(hash as u32);
        let choices = [self.first(hash), self.second(hash)];
        if choices.iter().any(|bucket| self.place(*bucket, slot)) {
            self.used += 1;
            return true;
        }
        for bucket in choices {
            for at in 0..SLOTS {
                let resident = self.buckets[bucket].0[at];
                let its_hash = rehash(Entry::unpack(resident));
                let first = self.first(its_hash);
                let other = if first == bucket { self.second(its_hash) } else { first };
                if self.place(other, resident) {
                    self.buckets[bucket].0[at] = slot;
                    self.used += 1;
                    return true;
                }
            }
        }
        false
    }

    fn place(&mut self, bucket: usize, slot: u64) -> bool {
        let free = self.buckets[bucket].0.iter_mut().find(|slot| **slot == EMPTY);
        if let Some(place) = free {
            *place = slot;
            true
        } else {
            false
        }
    }

    /// Removes the entry. False: it was not there.
    pub fn remove(&mut self, hash: u64, entry: Entry) -> bool {
        let slot = entry.pack(hash as u32);
        for bucket in [self.first(hash), self.second(hash)] {
            if let Some(place) = self.buckets[bucket].0.iter_mut().find(|place| **place == slot) {
                *place = EMPTY;
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
