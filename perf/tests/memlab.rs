//! The box's workers between user-space TCP stacks, in simulated time. Every run is repeatable: a failing
//! seed fails again.

use std::time::Duration;

use penstock_perf::memlab::{Ending, Link, Load, MemLab, Talk};

fn whole(lab: &MemLab, load: Load, tally: &penstock_perf::memlab::Tally) {
    assert_eq!(tally.failed, [], "{}", lab.describe());
    assert_eq!(tally.completed(), load.connections);
}

#[test]
fn one_connection() {
    let mut lab = MemLab::builder().build().unwrap();
    let load = Load::new(1, Talk::tcp(20_000, 30_000, Ending::NodeCloses));
    let tally = lab.run(load).unwrap();
    lab.check().unwrap();
    whole(&lab, load, &tally);
    println!("{}", lab.describe());
    assert!(lab.elapsed() < Duration::from_secs(2), "{:?}", lab.elapsed());
}

#[test]
fn thousands() {
    let started = std::time::Instant::now();
    let mut lab = MemLab::builder().clients(3).workers(3).build().unwrap();
    let load = Load::new(6000, Talk::short());
    let tally = lab.run(load).unwrap();
    lab.check().unwrap();
    whole(&lab, load, &tally);
    println!("{:?} {} {:?}", tally.by_node, lab.describe(), started.elapsed());
}

#[test]
fn lossy() {
    let started = std::time::Instant::now();
    let mut lab = MemLab::builder().clients(2).link(Link::rough(100)).build().unwrap();
    let load = Load::new(100, Talk::tcp(5000, 20_000, Ending::NodeCloses));
    let tally = lab.run(load).unwrap();
    lab.check().unwrap();
    whole(&lab, load, &tally);
    println!("{:?} {} {:?}", tally.by_node, lab.describe(), started.elapsed());
}
