//! TCP over the pipeline, in user space: repeatable, and with a wire as bad as wanted.

use super::{Impairment, MemLab, MemLabConfig};
use crate::config::without_node;

fn lab(config: &MemLabConfig) -> MemLab {
    MemLab::new(config).expect("a lab in memory")
}

#[test]
fn a_good_wire_carries_everything() {
    let mut lab = lab(&MemLabConfig::default());
    for v6 in [false, true] {
        let tally = lab.connections(v6, 300, 16, 1000);
        assert_eq!((tally.answered(), tally.failed()), (300, 0), "{tally:?}");
        assert_eq!(tally.by_node.len(), 3, "{tally:?}");
        let tally = lab.datagrams(v6, 100);
        assert_eq!((tally.answered(), tally.failed()), (100, 0), "{tally:?}");
    }
    lab.settle().expect("a balanced ledger");
}

/// Loss, doubling and overtaking on every cable; hand-offs between four workers. TCP repairs it all,
/// unless the box confuses flows or breaks a checksum.
#[test]
fn a_bad_wire_slows_but_breaks_nothing() {
    for seed in 1..=3 {
        let impairment = Impairment { lost: 20, doubled: 20, reordered: 50, ..Impairment::default() };
        let mut lab = lab(&MemLabConfig { seed, workers: 4, impairment, ..MemLabConfig::default() });
        let tally = lab.connections(seed % 2 == 0, 60, 8, 50_000);
        assert_eq!((tally.answered(), tally.failed()), (60, 0), "seed {seed}: {tally:?}");
        assert!(lab.impaired().lost > 50, "{:?}", lab.impaired());
        lab.settle().unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let impairment = Impairment { lost: 10, doubled: 10, reordered: 30, ..Impairment::default() };
        let mut lab = lab(&MemLabConfig { seed, impairment, ..MemLabConfig::default() });
        let tally = lab.connections(false, 40, 8, 5000);
        (tally, lab.impaired(), lab.totals())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).1, run(8).1);
}

#[test]
fn a_removed_node_gets_nothing_and_few_slots_move() {
    let mut lab = lab(&MemLabConfig::default());
    let before = lab.connections(false, 300, 16, 100);
    assert!(before.by_node.contains_key("node1"), "{before:?}");
    lab.reconfigure(|config| without_node(config, "node1")).expect("a config that compiles");
    let after = lab.connections(false, 300, 16, 100);
    assert_eq!((after.answered(), after.failed()), (300, 0), "{after:?}");
    assert!(!after.by_node.contains_key("node1"), "{after:?}");
    let (moved, size) = lab.slots_moved().expect("a change");
    assert!(moved * 100 < size, "{moved} of {size} slots moved");
    lab.settle().expect("a balanced ledger");
}
