//! The populate step: backends take turns, each taking the next free slot of its own permutation.

use super::identity::mix;

/// A backend's order of preference over the slots: offset, offset + skip, ... modulo a prime size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permutation {
    pub(super) offset: u32,
    pub(super) skip: u32,
}

impl Permutation {
    #[allow(clippy::cast_possible_truncation, reason = "remainders of a u32")]
    pub(super) fn of(identity: u64, size: u32) -> Self {
        // The paper's two hashes h1, h2: one finaliser, the second over a shifted input.
        let h1 = mix(identity);
        let h2 = mix(identity.wrapping_add(0x9e37_79b9_7f4a_7c15));
        Self { offset: (h1 % u64::from(size)) as u32, skip: (h2 % u64::from(size - 1)) as u32 + 1 }
    }
}

/// The order in which backends take turns, to be repeated until the table is full.
///
/// Weights become virtual time: a backend of weight w takes its k-th turn at (k + 1/2) / w, ties by
/// index (Webster's method of apportionment: counts are the rounded quota at any moment, so shares
/// follow weights wherever the filling ends). The order depends on ratios alone, and repeats
/// after sum(w) turns. Equal weights give the paper's plain round robin.
#[allow(clippy::cast_possible_truncation, reason = "times are below 2^62")]
pub(super) fn turns(weights: &[u32], size: u32) -> Vec<u16> {
    let weights = normalised(weights, size);
    let mut order: Vec<(u64, u16)> = Vec::new();
    for (index, &weight) in (0..u16::MAX).zip(&weights) {
        // Exact: weights are below 2^21, so distinct fractions differ by more than 2^-44 and equal
        // ones have equal floors.
        let time = |k: u64| ((u128::from(2 * k + 1) << 62) / u128::from(2 * weight)) as u64;
        order.extend((0..weight).map(|k| (time(k), index)));
    }
    order.sort_unstable();
    order.into_iter().map(|(_, index)| index).collect()
}

/// Divided by their greatest common divisor; where they still add up to more turns than there are
/// slots, scaled down to the slots each is due, at least one: the table can't tell finer.
fn normalised(weights: &[u32], size: u32) -> Vec<u64> {
    let divisor = weights.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let sum = weights.iter().map(|&w| u64::from(w / divisor)).sum::<u64>();
    let size = u64::from(size);
    weights
        .iter()
        .map(|&w| u64::from(w / divisor))
        .map(|w| if sum <= size { w } else { ((w * size + sum / 2) / sum).max(1) })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Fills `size` (prime) slots with indices into `permutations`.
///
/// Walks the permutations by addition instead of materialising them (n x size entries in the
/// paper's pseudocode), and asks a bitmap which slots are taken: 8 KiB for 65,537 slots, so the
/// random probes stay in the L1 cache. The pseudocode is the oracle in the tests.
pub(super) fn populate(permutations: Vec<Permutation>, turns: &[u16], size: u32) -> Vec<u16> {
    let mut next = permutations;
    let mut slots = vec![0_u16; size as usize];
    let mut taken = vec![0_u64; (size as usize).div_ceil(64)];
    for &index in turns.iter().cycle().take(size as usize) {
        let Permutation { offset: position, skip } = &mut next[usize::from(index)];
        let slot = loop {
            let slot = *position;
            *position += *skip;
            if *position >= size {
                *position -= size;
            }
            let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
            if taken[word] & bit == 0 {
                taken[word] |= bit;
                break slot;
            }
        };
        slots[slot as usize] = index;
    }
    slots
}
