//! Objects of one kind by key, fed by a watch.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

/// What a mutation changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    #[default]
    Nothing,
    /// Something that is shown or compared, but that no snapshot depends on: a status, a node's readiness.
    Detail,
    /// Something a snapshot may depend on.
    Desired,
}

impl Changed {
    /// By the part that a snapshot may depend on, and by the rest.
    #[must_use]
    pub fn by(desired: bool, detail: bool) -> Self {
        match (desired, detail) {
            (true, _) => Self::Desired,
            (_, true) => Self::Detail,
            _ => Self::Nothing,
        }
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.max(other)
    }
}

/// An object's extract.
pub trait Content {
    fn difference(&self, newer: &Self) -> Changed;

    /// The object's resourceVersion as a number, where it is one: what we wrote ourselves may be here before the
    /// watch tells of an older state.
    fn version(&self) -> u64 {
        0
    }
}

#[derive(Debug, Clone)]
pub enum Change<K, V> {
    /// A list begins.
    Begin,
    /// One of the list.
    Seen(K, V),
    /// The list is complete: what it did not have is gone.
    End,
    Put(K, V),
    /// The answer to a write of ours. It races with the watch: what the watch has passed already is no news, and
    /// must not bring back an object that was deleted since.
    Wrote(K, V),
    /// With the version it had then, 0 where unknown: what was created anew since is not gone.
    Gone(K, u64),
}

impl<K, V> Change<K, V> {
    /// What it is about; none where it is about the whole list.
    pub fn key(&self) -> Option<&K> {
        match self {
            Self::Seen(key, _) | Self::Put(key, _) | Self::Wrote(key, _) | Self::Gone(key, _) => Some(key),
            Self::Begin | Self::End => None,
        }
    }
}

#[derive(Debug)]
pub struct Table<K, V> {
    rows: BTreeMap<K, V>,
    seen: Option<HashSet<K>>,
    /// A list was complete once.
    pub synced: bool,
    /// The newest version that the watch has told of; versions of one kind are comparable (KEP-5504).
    heard: u64,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), seen: None, synced: false, heard: 0 }
    }
}

impl<K: Ord + Hash + Clone, V: Content> Table<K, V> {
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// `on_row` sees each replaced, added or removed row, to keep secondary keys.
    pub fn apply(&mut self, change: Change<K, V>, mut on_row: impl FnMut(&K, Option<&V>, Option<&V>)) -> Changed {
        match change {
            Change::Begin => {
                self.seen = Some(HashSet::new());
                // A cluster restored from a backup counts from where it was then.
                self.heard = 0;
                Changed::Nothing
            }
            Change::Seen(key, value) => {
                if let Some(seen) = &mut self.seen {
                    seen.insert(key.clone());
                }
                self.heard = self.heard.max(value.version());
                self.put(key, value, &mut on_row)
            }
            Change::Put(key, value) => {
                self.heard = self.heard.max(value.version());
                self.newer(key, value, &mut on_row)
            }
            Change::Wrote(key, value) => {
                if value.version() > 0 && value.version() <= self.heard {
                    return Changed::Nothing;
                }
                self.newer(key, value, &mut on_row)
            }
            Change::Gone(key, version) => {
                self.heard = self.heard.max(version);
                let known = self.rows.get(&key).map_or(0, Content::version);
                if version > 0 && known > version {
                    return Changed::Nothing;
                }
                self.remove(&key, &mut on_row)
            }
            Change::End => {
                let first = !std::mem::replace(&mut self.synced, true);
                let seen = self.seen.take().unwrap_or_default();
                let gone: Vec<K> = self.rows.keys().filter(|key| !seen.contains(*key)).cloned().collect();
                let removed = gone.iter().map(|key| self.remove(key, &mut on_row)).fold(Changed::Nothing, Changed::and);
                // An empty list is news, too: the first snapshot waits for it.
                if first { Changed::Desired } else { removed }
            }
        }
    }

    fn newer(&mut self, key: K, value: V, on_row: &mut impl FnMut(&K, Option<&V>, Option<&V>)) -> Changed {
        // Equal numbers too: that is our own write, told again.
        let known = self.rows.get(&key).map_or(0, Content::version);
        if known > 0 && value.version() > 0 && value.version() <= known {
            return Changed::Nothing;
        }
        self.put(key, value, on_row)
    }

    fn put(&mut self, key: K, value: V, on_row: &mut impl FnMut(&K, Option<&V>, Option<&V>)) -> Changed {
        let changed = self.rows.get(&key).map_or(Changed::Desired, |old| old.difference(&value));
        on_row(&key, self.rows.get(&key), Some(&value));
        // Also where nothing changed: the version did.
        self.rows.insert(key, value);
        changed
    }

    fn remove(&mut self, key: &K, on_row: &mut impl FnMut(&K, Option<&V>, Option<&V>)) -> Changed {
        if let Some(seen) = &mut self.seen {
            seen.remove(key);
        }
        match self.rows.remove(key) {
            Some(old) => {
                on_row(key, Some(&old), None);
                Changed::Desired
            }
            None => Changed::Nothing,
        }
    }
}
