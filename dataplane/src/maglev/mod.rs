//! Weighted Maglev hashing (Eisenbud et al., NSDI'16, section 3.4): a lookup table that spreads
//! flows evenly, that every box builds alike from the same set, and that barely moves when the
//! set changes. Built off the hot path, one table per distinct backend set, immutable.

#[cfg(test)]
mod bench;
mod disruption;
mod identity;
mod populate;
#[cfg(test)]
mod tests;

pub use disruption::Moved;
pub use identity::backend_identity;

/// What [`MaglevTable::lookup`] says when no backend takes new flows.
pub const NO_BACKEND: u16 = u16::MAX;

/// The largest table unless the config says otherwise: the paper's small size.
pub const DEFAULT_MAX_SIZE: u32 = 65_537;

/// Slots per backend (of the least weight) below which shares get uneven: section 5.3 of the paper.
const SLOTS_PER_UNIT: u64 = 100;

/// Small sets get a table this large all the same (8 KiB): a set of three that loses a backend stays
/// at its size, and the slots its survivors lose are 0.15 % of the table (1.8 % of one of 509).
const LEAST_SIZE: u64 = 4093;

/// Primes to choose from, about a doubling apart: a set that grows changes its table's size (and so
/// moves nearly every new flow's choice) only once per doubling.
const SIZES: [u32; 13] =
    [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_537, 131_071, 262_139, 655_373, 1_310_719];

/// Slots to backend indices (those of the list it was built from).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaglevTable {
    /// Never empty: a table of no backend has one slot of [`NO_BACKEND`], so `lookup` has no branch for it.
    slots: Box<[u16]>,
}

impl MaglevTable {
    /// Builds the table of `backends`: (identity, weight) in any order, see [`backend_identity`].
    /// Weight 0 takes no slot; every other backend takes at least one while slots last.
    ///
    /// `size` is raised to the next prime where it is none: with a composite size a backend's
    /// permutation would miss slots; 1,310,719 is the most. Backends beyond the 65,535th are left out (slots are `u16`).
    #[must_use]
    pub fn build(backends: &[(u64, u32)], size: u32) -> Self {
        let size = next_prime(size.clamp(2, SIZES[SIZES.len() - 1]));
        // Turns are taken in the order of identities, so the order of the list leaves no trace.
        let mut active: Vec<(u64, u32, u16)> = backends
            .iter()
            .zip(0..NO_BACKEND)
            .filter(|((_, weight), _)| *weight > 0)
            .map(|(&(identity, weight), index)| (identity, weight, index))
            .collect();
        active.sort_unstable();
        if active.is_empty() {
            return Self::none();
        }
        let permutations: Vec<_> =
            active.iter().map(|&(identity, ..)| populate::Permutation::of(identity, size)).collect();
        let weights: Vec<u32> = active.iter().map(|&(_, weight, _)| weight).collect();
        let turns = populate::turns(&weights, size);
        let mut slots = populate::populate(permutations, &turns, size);
        for slot in &mut slots {
            *slot = active[usize::from(*slot)].2;
        }
        Self { slots: slots.into_boxed_slice() }
    }

    /// The table of an empty set.
    #[must_use]
    pub fn none() -> Self {
        Self { slots: Box::new([NO_BACKEND]) }
    }

    /// The backend for a flow's hash ([`crate::hash::pick_hash_v4`]), or [`NO_BACKEND`].
    ///
    /// Multiply-shift in place of a remainder: the slot depends on the hash's high bits and the
    /// size alone, so every box agrees.
    #[inline]
    #[must_use]
    pub fn lookup(&self, hash: u64) -> u16 {
        let slot = slot_of(hash, self.slots.len());
        // Always within; `get` spares the packet path a panic branch.
        self.slots.get(slot).copied().unwrap_or(NO_BACKEND)
    }

    /// Slots; 1 for an empty set.
    #[must_use]
    pub fn size(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        self.slots[0] == NO_BACKEND
    }

    #[must_use]
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// Slots of each of the `backends` first indices.
    #[must_use]
    pub fn slot_counts(&self, backends: usize) -> Vec<u32> {
        let mut counts = vec![0; backends];
        for &slot in &self.slots {
            if let Some(count) = counts.get_mut(usize::from(slot)) {
                *count += 1;
            }
        }
        counts
    }

    /// For capacity reports.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.slots)
    }
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the product's high half is below `size`")]
fn slot_of(hash: u64, size: usize) -> usize {
    ((u128::from(hash) * size as u128) >> 64) as usize
}

/// The table size for a set: the smallest of a few primes that is at least 100 times `units` (and
/// not below [`LEAST_SIZE`]), at most `max` (or the smallest prime, should `max` be below it).
#[must_use]
pub fn size_for(units: u64, max: u32) -> u32 {
    let wanted = units.saturating_mul(SLOTS_PER_UNIT).max(LEAST_SIZE);
    let allowed = SIZES.iter().rposition(|&size| size <= max).unwrap_or(0);
    SIZES[..=allowed].iter().copied().find(|&size| u64::from(size) >= wanted).unwrap_or(SIZES[allowed])
}

/// How many backends of the least weight the set would make: what [`size_for`] takes so that the
/// lightest backend still gets about 100 slots. Equal weights: the number of backends.
#[must_use]
pub fn weight_units(weights: impl Iterator<Item = u32>) -> u64 {
    let (sum, least) = weights
        .filter(|&weight| weight > 0)
        .fold((0_u64, u32::MAX), |(sum, least), weight| (sum + u64::from(weight), least.min(weight)));
    sum.div_ceil(u64::from(least))
}

fn next_prime(from: u32) -> u32 {
    let is_prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (from..).find(|&n| is_prime(n)).unwrap_or(DEFAULT_MAX_SIZE)
}
