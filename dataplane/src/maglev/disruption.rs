//! What a change of the set costs: how many slots, and so what share of clients, choose anew.

use std::collections::HashMap;

use super::{MaglevTable, NO_BACKEND};

/// The difference of two tables, counted in slots of the newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pub size: u32,
    /// Slots whose backend is another than before.
    pub slots: u32,
    /// Those that had to move so that each backend has as many as the newer table gives it.
    pub needed: u32,
}

impl Moved {
    /// Slots that moved for nothing: Maglev's disruption. After the removal of a backend these
    /// are the slots that surviving backends lost.
    #[must_use]
    pub fn excess(&self) -> u32 {
        self.slots - self.needed
    }

    /// The share of the table that moved, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from(self.slots) / f64::from(self.size)
    }
}

impl MaglevTable {
    /// Compares with the table that `self` replaces. Backends are matched by identity, `identities`
    /// being those of the list each table was built from. Tables of different sizes compare at
    /// the middle of each of the new table's hash ranges.
    #[must_use]
    pub fn moved_from(&self, identities: &[u64], old: &MaglevTable, old_identities: &[u64]) -> Moved {
        let mut slots = 0;
        let mut balance: HashMap<Option<u64>, i64> = HashMap::new();
        for (slot, &index) in self.slots.iter().enumerate() {
            let now = who(index, identities);
            let before = who(old.lookup(middle_of(slot, self.slots.len())), old_identities);
            if now != before {
                slots += 1;
                *balance.entry(now).or_default() += 1;
                *balance.entry(before).or_default() -= 1;
            }
        }
        let needed = balance.values().filter(|&&change| change > 0).sum::<i64>();
        Moved { size: self.size(), slots, needed: u32::try_from(needed).unwrap_or(slots) }
    }
}

fn who(index: u16, identities: &[u64]) -> Option<u64> {
    if index == NO_BACKEND { None } else { identities.get(usize::from(index)).copied() }
}

/// The hash in the middle of those that [`MaglevTable::lookup`] sends to `slot`.
#[allow(clippy::cast_possible_truncation, reason = "(slot + 1/2) / size is below 1")]
fn middle_of(slot: usize, size: usize) -> u64 {
    (((2 * slot as u128 + 1) << 63) / size as u128) as u64
}
