//! What a change of the set costs: how many slots, and so what share of clients, choose anew.

use rustc_hash::FxHashMap;

use super::MaglevTable;

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
    ///
    /// Compiling 5,000 changed sets compares 5,000 tables: so backends are numbered once, not looked up slot by
    /// slot, and of tables of one size no hash is computed. The plain version is the oracle in the tests.
    #[must_use]
    pub fn moved_from(&self, identities: &[u64], old: &MaglevTable, old_identities: &[u64]) -> Moved {
        let mut numbers = Numbers::default();
        let now: Vec<usize> = identities.iter().map(|identity| numbers.of(*identity)).collect();
        let before: Vec<usize> = old_identities.iter().map(|identity| numbers.of(*identity)).collect();
        let number = |numbers: &[usize], index: u16| numbers.get(usize::from(index)).copied().unwrap_or(NOBODY);
        let same_size = self.slots.len() == old.slots.len();
        let mut slots = 0;
        let mut balance = vec![0_i64; numbers.0.len() + 1];
        for (slot, &index) in self.slots.iter().enumerate() {
            let old_index = if same_size { old.slots[slot] } else { old.lookup(middle_of(slot, self.slots.len())) };
            let (now, before) = (number(&now, index), number(&before, old_index));
            if now != before {
                slots += 1;
                balance[now] += 1;
                balance[before] -= 1;
            }
        }
        let needed = balance.iter().filter(|&&change| change > 0).sum::<i64>();
        Moved { size: self.size(), slots, needed: u32::try_from(needed).unwrap_or(slots) }
    }
}

/// The number of no backend.
const NOBODY: usize = 0;

/// Backends of both tables by identity, counted from 1. [`super::NO_BACKEND`] is no place in a list: those have
/// at most so many.
#[derive(Default)]
struct Numbers(FxHashMap<u64, usize>);

impl Numbers {
    fn of(&mut self, identity: u64) -> usize {
        let next = self.0.len() + 1;
        *self.0.entry(identity).or_insert(next)
    }
}

/// The hash in the middle of those that [`MaglevTable::lookup`] sends to `slot`.
#[allow(clippy::cast_possible_truncation, reason = "(slot + 1/2) / size is below 1")]
pub(super) fn middle_of(slot: usize, size: usize) -> u64 {
    (((2 * slot as u128 + 1) << 63) / size as u128) as u64
}
