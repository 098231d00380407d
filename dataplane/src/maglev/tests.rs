//! Golden vectors, the paper's pseudocode as oracle, and the properties an operator counts on.

use proptest::prelude::*;

use super::populate::{Permutation, populate, turns};
use super::*;

/// Section 3.4's pseudocode over whole permutations, with turn-taking by its definition: next is who
/// has the least (turns taken + 1/2) / weight, the first of the list among equals.
fn oracle(permutations: &[Vec<u32>], weights: &[u32], size: u32) -> Vec<u16> {
    let mut next = vec![0_usize; permutations.len()];
    let mut taken = vec![0_u64; permutations.len()];
    let mut entry = vec![NO_BACKEND; size as usize];
    for _ in 0..size {
        let i = (0..permutations.len())
            .min_by(|&a, &b| {
                let time = |x: usize, y: usize| u128::from(2 * taken[x] + 1) * u128::from(weights[y]);
                time(a, b).cmp(&time(b, a))
            })
            .unwrap();
        taken[i] += 1;
        while entry[permutations[i][next[i]] as usize] != NO_BACKEND {
            next[i] += 1;
        }
        entry[permutations[i][next[i]] as usize] = u16::try_from(i).unwrap();
    }
    entry
}

fn whole(p: Permutation, size: u32) -> Vec<u32> {
    (0..u64::from(size)).map(|j| ((u64::from(p.offset) + j * u64::from(p.skip)) % u64::from(size)) as u32).collect()
}

fn nodes(n: u16) -> Vec<(u64, u32)> {
    (0..n).map(|i| (backend_identity(std::net::Ipv4Addr::from(0x0a00_000a + u32::from(i)).into(), 31443), 1)).collect()
}

fn identities(backends: &[(u64, u32)]) -> Vec<u64> {
    backends.iter().map(|b| b.0).collect()
}

const NSDI: [Permutation; 3] =
    [Permutation { offset: 3, skip: 4 }, Permutation { offset: 0, skip: 2 }, Permutation { offset: 3, skip: 1 }];

/// Table 1 of the paper.
#[test]
fn nsdi16_worked_example() {
    let permutations: Vec<Vec<u32>> = NSDI.iter().map(|&p| whole(p, 7)).collect();
    assert_eq!(permutations, [[3, 0, 4, 1, 5, 2, 6], [0, 2, 4, 6, 1, 3, 5], [3, 4, 5, 6, 0, 1, 2]]);
    assert_eq!(oracle(&permutations, &[1, 1, 1], 7), [1, 0, 1, 0, 2, 2, 0]);
    assert_eq!(populate(NSDI.to_vec(), &turns(&[1, 1, 1], 7), 7), [1, 0, 1, 0, 2, 2, 0]);
}

#[test]
fn nsdi16_example_without_the_second_backend() {
    let left = vec![NSDI[0], NSDI[2]];
    let permutations: Vec<Vec<u32>> = left.iter().map(|&p| whole(p, 7)).collect();
    let table = populate(left, &turns(&[1, 1], 7), 7);
    assert_eq!(table, oracle(&permutations, &[1, 1], 7));
    // The paper's B0 keeps 4 slots, B2 has 3; only slot 6 moved between survivors.
    assert_eq!(table, [0, 0, 0, 0, 1, 1, 1]);
}

/// Pins the whole of it: identity, permutations, turns (the values come from a second implementation,
/// the pseudocode over exact fractions). A failure means that boxes of two versions
/// would choose differently: that is a breaking change.
#[test]
fn tables_are_the_same_on_every_box_and_version() {
    let checksum = |backends: &[(u64, u32)], size| {
        let table = MaglevTable::build(backends, size);
        table.slots().iter().fold(0_u64, |sum, &s| sum.wrapping_mul(31).wrapping_add(u64::from(s)))
    };
    let mut weighted = nodes(20);
    weighted.iter_mut().zip([1, 2, 3, 100].iter().cycle()).for_each(|(b, &w)| b.1 = w);
    assert_eq!(checksum(&nodes(3), 65_537), 0x36ac_1544_0903_acf0);
    assert_eq!(checksum(&nodes(100), 65_537), 0x0c5c_f2c6_2b35_2e82);
    assert_eq!(checksum(&weighted, 8191), 0xf335_c1e1_df5d_0716);
}

#[test]
fn equal_backends_get_equal_shares() {
    for n in [3, 4, 5, 7, 10, 16, 33, 64, 100, 250, 500] {
        let counts = MaglevTable::build(&nodes(n), 65_537).slot_counts(usize::from(n));
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 1, "{n} backends have {least} to {most} slots");
    }
}

#[test]
fn removing_a_backend_barely_moves_the_others() {
    println!("backends  moved  needed  excess (share of the table)");
    for n in [3, 4, 5, 8, 10, 20, 50, 100] {
        let before = nodes(n);
        let old = MaglevTable::build(&before, 65_537);
        let mut worst: Option<Moved> = None;
        for gone in (0..usize::from(n)).step_by(usize::from(n).div_ceil(5)) {
            let mut after = before.clone();
            after.remove(gone);
            let new = MaglevTable::build(&after, 65_537);
            let moved = new.moved_from(&identities(&after), &old, &identities(&before));
            if worst.is_none_or(|w| moved.excess() > w.excess()) {
                worst = Some(moved);
            }
        }
        let moved = worst.unwrap();
        let share = f64::from(moved.excess()) / f64::from(moved.size);
        println!("{n:8}  {:5}  {:6}  {:6} ({:.3} %)", moved.slots, moved.needed, moved.excess(), share * 100.0);
        assert!(share < 0.01, "{n} backends, one removed: {share} of the table moved between survivors");
    }
}

#[test]
fn a_changed_weight_moves_little_more_than_it_must() {
    let before: Vec<_> = nodes(20).into_iter().map(|(id, _)| (id, 100)).collect();
    let old = MaglevTable::build(&before, 65_537);
    for weight in [1, 50, 99, 101, 110, 200] {
        let mut after = before.clone();
        after[7].1 = weight;
        let new = MaglevTable::build(&after, 65_537);
        let moved = new.moved_from(&identities(&after), &old, &identities(&before));
        let share = f64::from(moved.excess()) / f64::from(moved.size);
        println!("weight 100 -> {weight}: {moved:?}, excess {:.3} %", share * 100.0);
        assert!(share < 0.02, "weight 100 -> {weight}: {moved:?}");
    }
}

#[test]
fn shares_follow_weights() {
    for weights in [
        vec![1, 2, 3],
        vec![10, 20, 30, 40],
        vec![1, 100],
        vec![65_535, 65_535, 32_768, 7],
        vec![4_000_000_000, 1_000_000_000, 3],
    ] {
        let backends: Vec<_> = nodes(100).into_iter().zip(&weights).map(|((id, _), &weight)| (id, weight)).collect();
        let counts = MaglevTable::build(&backends, 65_537).slot_counts(weights.len());
        let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for (&weight, &count) in weights.iter().zip(&counts) {
            let due = f64::from(weight) / sum * 65_537.0;
            // Within 1 % of the due slots, or within the one slot that is the table's grain.
            assert!((f64::from(count) - due).abs() <= (due * 0.01).max(1.0), "{weights:?}: {count} slots, {due} due");
        }
    }
}

#[test]
fn weight_zero_takes_nothing_and_the_empty_set_says_none() {
    let mut backends = nodes(3);
    backends[1].1 = 0;
    let table = MaglevTable::build(&backends, 251);
    assert_eq!(table.slot_counts(3)[1], 0);
    assert!(!table.is_none());
    for empty in [vec![], vec![(1, 0), (2, 0)]] {
        let table = MaglevTable::build(&empty, 65_537);
        assert!(table.is_none());
        assert_eq!(table.size(), 1);
        assert!([0, 1, u64::MAX / 2, u64::MAX].iter().all(|&hash| table.lookup(hash) == NO_BACKEND));
    }
}

#[test]
fn moved_counts_an_emptied_and_a_resized_table() {
    let three = nodes(3);
    let table = MaglevTable::build(&three, 1021);
    let emptied = MaglevTable::none().moved_from(&[], &table, &identities(&three));
    assert_eq!((emptied.slots, emptied.needed), (1, 1));
    let refilled = table.moved_from(&identities(&three), &MaglevTable::none(), &[]);
    assert_eq!((refilled.slots, refilled.needed, refilled.share()), (1021, 1021, 1.0));
    let same = table.moved_from(&identities(&three), &table, &identities(&three));
    assert_eq!(same.slots, 0);
    let resized = MaglevTable::build(&three, 2039).moved_from(&identities(&three), &table, &identities(&three));
    assert!(resized.share() > 0.5 && resized.share() < 0.8, "a new size redraws two of three: {resized:?}");
}

#[test]
fn one_of_three_may_go_without_a_new_size() {
    assert_eq!(size_for(3, DEFAULT_MAX_SIZE), size_for(2, DEFAULT_MAX_SIZE));
    let three = nodes(3);
    let size = size_for(3, DEFAULT_MAX_SIZE);
    let table = MaglevTable::build(&three, size);
    for gone in 0..3 {
        let two: Vec<_> =
            three.iter().copied().enumerate().filter(|(at, _)| *at != gone).map(|(_, node)| node).collect();
        let moved = MaglevTable::build(&two, size).moved_from(&identities(&two), &table, &identities(&three));
        assert!(moved.excess() * 100 < size, "without {gone}: {moved:?}");
    }
}

#[test]
fn sizes_are_primes_about_a_hundred_times_the_set() {
    for size in SIZES {
        assert_eq!(next_prime(size), size);
    }
    assert_eq!(size_for(0, DEFAULT_MAX_SIZE), 4093);
    assert_eq!(size_for(40, DEFAULT_MAX_SIZE), 4093);
    assert_eq!(size_for(41, DEFAULT_MAX_SIZE), 8191);
    assert_eq!(size_for(20, 2039), 2039);
    assert_eq!(size_for(500, DEFAULT_MAX_SIZE), 65_537);
    assert_eq!(size_for(500, 4096), 4093);
    assert_eq!(size_for(500, 10), 251);
    assert_eq!(size_for(u64::MAX, u32::MAX), 1_310_719);
    assert_eq!(weight_units([100, 100, 0, 100].into_iter()), 3);
    assert_eq!(weight_units([999, 1].into_iter()), 1000);
    assert_eq!(weight_units(std::iter::empty()), 0);
}

#[test]
fn a_composite_size_is_raised_to_a_prime() {
    for (size, prime) in [(0, 2), (4, 5), (256, 257), (2040, 2053), (u32::MAX, 1_310_719)] {
        assert_eq!(MaglevTable::build(&nodes(3), size).size(), prime);
    }
}

#[test]
fn lookup_covers_every_slot_in_order() {
    let table = MaglevTable::build(&nodes(3), 251);
    assert_eq!(slot_of(0, 251), 0);
    assert_eq!(slot_of(u64::MAX, 251), 250);
    assert_eq!(table.lookup(u64::MAX), table.slots()[250]);
    let picked: Vec<u16> = (0..251_u64).map(|s| table.lookup(u64::MAX / 251 * s + u64::MAX / 502)).collect();
    assert_eq!(picked, table.slots());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn populate_equals_the_pseudocode(
        weights in prop::collection::vec(1_u32..12, 1..24),
        seed in any::<u64>(),
        size in prop::sample::select(vec![251_u32, 509, 1021]),
    ) {
        let permutations: Vec<Permutation> = (0..weights.len())
            .map(|i| Permutation::of(seed.wrapping_add(i as u64), size))
            .collect();
        let plain: Vec<Vec<u32>> = permutations.iter().map(|&p| whole(p, size)).collect();
        let fast = populate(permutations, &turns(&weights, size), size);
        prop_assert_eq!(fast, oracle(&plain, &weights, size));
    }

    #[test]
    fn input_order_leaves_no_trace(
        backends in prop::collection::vec((any::<u64>(), 0_u32..5), 1..20),
        rotate in 0_usize..20,
    ) {
        let mut other = backends.clone();
        other.rotate_left(rotate % backends.len());
        other.reverse();
        let (a, b) = (MaglevTable::build(&backends, 509), MaglevTable::build(&other, 509));
        let who = |table: &MaglevTable, list: &[(u64, u32)]| -> Vec<Option<u64>> {
            table.slots().iter().map(|&s| list.get(usize::from(s)).map(|b| b.0)).collect()
        };
        prop_assert_eq!(who(&a, &backends), who(&b, &other));
    }

    #[test]
    fn scaling_all_weights_changes_nothing(weights in prop::collection::vec(0_u32..9, 1..12), factor in 1_u32..1000) {
        let build = |factor: u32| {
            let list: Vec<_> = nodes(12).iter().zip(&weights).map(|(b, &w)| (b.0, w * factor)).collect();
            MaglevTable::build(&list, 1021)
        };
        prop_assert_eq!(build(1), build(factor));
    }
}

/// What [`MaglevTable::moved_from`] must say, found slot by slot.
fn moved_plainly(new: &MaglevTable, identities: &[u64], old: &MaglevTable, old_identities: &[u64]) -> Moved {
    let who = |index: u16, identities: &[u64]| {
        if index == NO_BACKEND { None } else { identities.get(usize::from(index)).copied() }
    };
    let mut slots = 0;
    let mut balance = std::collections::HashMap::<Option<u64>, i64>::new();
    for (slot, &index) in new.slots.iter().enumerate() {
        let now = who(index, identities);
        let before = who(old.lookup(disruption::middle_of(slot, new.slots.len())), old_identities);
        if now != before {
            slots += 1;
            *balance.entry(now).or_default() += 1;
            *balance.entry(before).or_default() -= 1;
        }
    }
    let needed: i64 = balance.values().filter(|&&change| change > 0).sum();
    Moved { size: new.size(), slots, needed: u32::try_from(needed).unwrap() }
}

proptest! {
    #[test]
    fn what_moved_is_what_the_plain_count_says(
        old in proptest::collection::vec((0_u64..12, 0_u32..4), 0..8),
        new in proptest::collection::vec((0_u64..12, 0_u32..4), 0..8),
        sizes in (0_usize..2, 0_usize..2),
    ) {
        let table = |backends: &[(u64, u32)], size: usize| MaglevTable::build(backends, [251, 509][size]);
        let (before, after) = (table(&old, sizes.0), table(&new, sizes.1));
        let identities = |backends: &[(u64, u32)]| backends.iter().map(|backend| backend.0).collect::<Vec<_>>();
        let (of_new, of_old) = (identities(&new), identities(&old));
        prop_assert_eq!(
            after.moved_from(&of_new, &before, &of_old),
            moved_plainly(&after, &of_new, &before, &of_old)
        );
    }
}
