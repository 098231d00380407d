//! Numbers that outlive snapshots.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// Stable small numbers for keys. Numbers of keys that are gone come free before new keys ask, so
/// there are never more of them than keys at a time; the one free longest is used again first.
pub(super) struct Slots<K> {
    by_key: HashMap<K, u32>,
    pub(super) keys: Vec<Option<K>>,
    free: VecDeque<u32>,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), keys: Vec::new(), free: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash> Slots<K> {
    /// Frees the numbers of all other keys.
    pub(super) fn retain(&mut self, wanted: &HashSet<K>) {
        for (slot, key) in self.keys.iter_mut().enumerate() {
            if let Some(gone) = key.take_if(|key| !wanted.contains(key)) {
                self.by_key.remove(&gone);
                self.free.push_back(slot as u32);
            }
        }
    }

    pub(super) fn slot(&mut self, key: K) -> u32 {
        let Self { by_key, keys, free } = self;
        *by_key.entry(key).or_insert_with(|| match free.pop_front() {
            Some(slot) => {
                keys[slot as usize] = Some(key);
                slot
            }
            None => {
                keys.push(Some(key));
                keys.len() as u32 - 1
            }
        })
    }
}
