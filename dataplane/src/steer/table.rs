//! A kernel hash map and what it holds, so that a change costs its difference only.

use std::collections::BTreeMap;
use std::fmt::Debug;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};

use super::error::describe;
use super::{Changes, SteerError};

pub(super) struct Table<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    held: BTreeMap<K, V>,
}

impl<K: Pod + Ord + Debug, V: Pod + Eq> Table<K, V> {
    /// Reads what an adopted map holds; a new one holds nothing.
    pub(super) fn adopt(name: &'static str, map: Map) -> Result<Self, SteerError> {
        let fault = |error: MapError| SteerError::Map { map: name, reason: describe(&error) };
        let map: HashMap<MapData, K, V> = HashMap::try_from(map).map_err(fault)?;
        let held = map.iter().collect::<Result<BTreeMap<K, V>, MapError>>().map_err(fault)?;
        Ok(Self { name, map, held })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn add(&mut self, wanted: &BTreeMap<K, V>, changes: &mut Changes) -> Result<(), SteerError> {
        for (key, value) in wanted {
            let old = self.held.get(key);
            if old == Some(value) {
                continue;
            }
            self.map.insert(key, value, 0).map_err(|error| self.fault(&error))?;
            match self.held.insert(*key, *value) {
                None => changes.added += 1,
                Some(_) => changes.changed += 1,
            }
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, wanted: &BTreeMap<K, V>, changes: &mut Changes) -> Result<(), SteerError> {
        let gone: Vec<K> = self.held.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(self.fault(&error)),
            }
            self.held.remove(&key);
            changes.removed += 1;
        }
        Ok(())
    }

    fn fault(&self, error: &MapError) -> SteerError {
        SteerError::Map { map: self.name, reason: describe(error) }
    }
}
