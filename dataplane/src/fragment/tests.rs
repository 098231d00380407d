//! The table and the slots by themselves; what they do for packets is in `pipeline::tests::fragments`.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::hold::Holding;
use super::*;
use crate::clock::Now;
use crate::io::{FramePool, PacketMemory};
use crate::verdict::PortId;

fn datagram(n: u32) -> (Tuple<u32>, u64) {
    // Few buckets, so that chains are walked.
    (key(n, 1, n, 17), u64::from(n % 3))
}

fn piece(start: u16, end: u16, last: bool) -> Piece {
    Piece { identification: 0, start, end, last }
}

proptest! {
    /// The table against a map and a list: found by key, forgotten in any order, the oldest known.
    #[test]
    fn table_is_a_bounded_map_with_ages(steps in proptest::collection::vec((0_u32..20, any::<bool>()), 1..200)) {
        let mut table = Datagrams::<u32>::new(8);
        let mut model: HashMap<u32, u16> = HashMap::new();
        let mut by_age: Vec<u32> = Vec::new();
        for (step, (n, remove)) in steps.into_iter().enumerate() {
            let (key, hash) = datagram(n);
            let found = table.find(&key, hash);
            prop_assert_eq!(found, model.get(&n).copied());
            match (found, remove) {
                (Some(at), true) => {
                    table.remove(at);
                    model.remove(&n);
                    by_age.retain(|other| *other != n);
                }
                (None, false) => match table.insert(&key, hash, Now::from_secs(step as u64)) {
                    Some(at) => {
                        model.insert(n, at);
                        by_age.push(n);
                    }
                    None => prop_assert_eq!(model.len(), 8),
                },
                _ => {}
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(table.oldest(), by_age.first().map(|n| model[n]));
        }
    }

    /// Pieces against a bitmap of bytes.
    #[test]
    fn overlaps_are_seen(pieces in proptest::collection::vec((0_u16..20, 1_u16..8, any::<bool>()), 1..20)) {
        let mut table = Datagrams::<u32>::new(1);
        let at = table.insert(&datagram(1).0, 1, Now::default()).unwrap();
        let mut bytes: HashSet<u16> = HashSet::new();
        let mut exact: HashSet<(u16, u16)> = HashSet::new();
        let mut end = None;
        for (start, len, last) in pieces {
            let (start, stop) = (start * 8, (start + len) * 8);
            let got = table.add(at, &piece(start, stop, last));
            let overlap = (start..stop).any(|byte| bytes.contains(&byte))
                || end.is_some_and(|end| last || stop > end)
                || last && bytes.iter().any(|byte| *byte >= stop);
            let want = if exact.contains(&(start, stop)) { Added::Copy } else if overlap { Added::Overlap } else { Added::New };
            prop_assert_eq!(got, want);
            if got == Added::New {
                bytes.extend(start..stop);
                exact.insert((start, stop));
                end = end.or(last.then_some(stop));
            }
            prop_assert_eq!(table.is_complete(at), end.is_some_and(|end| bytes.len() == usize::from(end)));
        }
    }
}

#[test]
fn identifications_of_workers_never_meet() {
    for workers in [1_u16, 3, 8] {
        let mut seen = HashSet::new();
        let share = 65_536 / u32::from(workers);
        for worker in 0..workers {
            let mut own = Identifications::new(WorkerId(worker), workers, u64::MAX - 5);
            for _ in 0..share {
                let id = own.take(16);
                assert!(id < 65_536);
                assert!(seen.insert(id), "worker {worker} of {workers}: {id} twice");
            }
        }
    }
}

#[test]
fn gatherers_are_spread_and_do_not_depend_on_who_asks() {
    let mut counts = [0; 4];
    for id in 0..4000 {
        let owner = gatherer::<crate::wire::V4>(&key(1, 2, id, 17), 4);
        counts[usize::from(owner.0)] += 1;
    }
    assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
}

#[test]
fn slots_go_round() {
    let mut pool = FramePool::new(PacketMemory::heap(8, 2048, 256));
    let mut holding = Holding::default();
    let mut table = Datagrams::<u32>::new(4);
    let at = table.insert(&datagram(1).0, 1, Now::default()).unwrap();
    for round in 0..1000 {
        let first = holding.take(PortId(1), at, false, |slot| table.wait(at, slot)).unwrap();
        let second = holding.take(PortId(2), at, false, |slot| table.wait(at, slot)).unwrap();
        assert!(holding.keep(first, pool.take().unwrap()).is_none());
        let frame = pool.take().unwrap();
        assert!(holding.keep(second, frame).is_none());
        let stranger = holding.keep(first, pool.take().unwrap()).expect("a slot holds one frame");
        pool.give(stranger);
        assert!(holding.take_ready().is_none(), "both wait");
        assert_eq!(holding.frames(), 2);
        holding.release(table.settle(at, Fate::Kernel), Fate::Kernel);
        let mut ports = Vec::new();
        while let Some(Waiting { frame, from, fate, .. }) = holding.take_ready() {
            assert_eq!(fate, Fate::Kernel);
            ports.push(from.0);
            pool.give(frame);
        }
        ports.sort_unstable();
        assert_eq!(ports, [1, 2], "round {round}");
        pool.assert_conserved(0, 0);
    }
}

#[test]
fn the_longest_waiting_make_room() {
    let mut holding = Holding::default();
    let mut table = Datagrams::<u32>::new(1000);
    for n in 0..WAITING as u32 {
        assert!(holding.overfull().is_none());
        let at = table.insert(&datagram(n).0, u64::from(n), Now::default()).unwrap();
        holding.take(PortId(0), at, n % 2 == 1, |slot| table.wait(at, slot)).unwrap();
    }
    let first = table.find(&datagram(0).0, 0).unwrap();
    assert_eq!(holding.overfull(), Some((first, false)));
    holding.release(table.settle(first, Fate::Kernel), Fate::Kernel);
    assert_eq!(holding.overfull(), None);
}
