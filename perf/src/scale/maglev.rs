//! Maglev tables: many distinct sets, and a node that fails in all of them.

use penstock_configs::desired::BackendSet;

use super::report::{Figure, Section};
use super::rig::{self, Cost, Site, backend};

const SETS: u32 = 5_000;
const NODES: u32 = 500;
const MEMBERS: u32 = 20;
const MEBI: f64 = 1024.0 * 1024.0;

/// The n-th set: the first node, and others that no other set has all of.
fn set(n: u32) -> BackendSet {
    let mut members = vec![0];
    let mut random = u64::from(n) + 1;
    while members.len() < MEMBERS as usize {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let node = 1 + ((random >> 33) % u64::from(NODES - 1)) as u32;
        if !members.contains(&node) {
            members.push(node);
        }
    }
    BackendSet { name: format!("set-{n}"), backends: members.into_iter().map(|node| backend(false, node)).collect() }
}

pub fn run(quick: bool) -> anyhow::Result<Section> {
    let sets = if quick { SETS / 100 } else { SETS };
    let mut section = Section::new("maglev", format!("{sets} services, each over a set of its own of {MEMBERS} nodes"));
    let mut site = Site::with_sets(false, sets, NODES, (0..sets).map(set).collect());
    let before = rig::resident()?;
    let (tables, cost) = rig::timed(|| site.compile())?;
    section.add(Cost::figure("compile, from nothing", &[cost]));
    let memory = rig::resident()?.saturating_sub(before) as f64 / MEBI;
    let distinct: std::collections::BTreeSet<_> =
        tables.services.iter().flatten().map(|service| std::sync::Arc::as_ptr(&service.set)).collect();
    anyhow::ensure!(distinct.len() == sets as usize, "{} tables for {sets} sets", distinct.len());
    let slots = tables.services.iter().flatten().map(|service| service.set.maglev.memory_bytes()).sum::<usize>();
    section.add(
        Figure::new("memory of the snapshot", memory, "MiB")
            .at_most(256.0)
            .beside(format!("of it {:.1} MiB slots", slots as f64 / MEBI)),
    );
    let (mut all, mut one) = (Vec::new(), Vec::new());
    for run in 0..if quick { 2 } else { 6 } {
        eprintln!("  flap {}", run + 1);
        site.flap(0, run % 2 == 1);
        all.push(rig::timed(|| site.compile())?.1);
    }
    let most = rig::resident()?.saturating_sub(before) as f64 / MEBI;
    for run in 0..if quick { 2 } else { 6 } {
        site.flap(1 + run / 2, run % 2 == 1);
        one.push(rig::timed(|| site.compile())?.1);
    }
    section.add(Figure::new("memory, old and new", most, "MiB").at_most(256.0).beside("after flaps, both held"));
    section.add(Cost::figure("a node's flap, in all sets", &all).at_most(1000.0));
    section.add(Cost::figure("a node's flap, in 4 % of the sets", &one).at_most(1000.0));
    Ok(section)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_distinct_of_distinct_nodes_and_have_the_first_in_common() {
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..SETS {
            let mut members: Vec<_> = set(n).backends.into_iter().filter_map(|backend| backend.address).collect();
            assert!(members.contains(&crate::pipeline_bench::packets::node(false, 0)));
            members.sort_unstable();
            members.dedup();
            assert_eq!(members.len(), MEMBERS as usize);
            assert!(seen.insert(members), "set {n} is another's");
        }
    }
}
