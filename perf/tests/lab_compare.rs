//! Every peer of `perf compare` that needs nothing but nftables and our own programs really carries traffic: the
//! harness measures it, and what it counts it has verified. And a peer that carries none is never measured.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use penstock_perf::compare::cases::{Case, Effort, Metric, Sample};
use penstock_perf::compare::peers::{self, Peer, Running, Setup};
use penstock_perf::lab::Lab;
use penstock_perf::privilege;

/// Short: whether packets pass is the question, not how many.
const EFFORT: Effort = Effort { duration: Duration::from_millis(300), flows: 64, memory_flows: 1_000 };

/// Senders and boxes are pinned and go first: two measurements at a time would starve each other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn peer(name: &str) -> &'static dyn Peer {
    peers::all().into_iter().find(|peer| peer.name() == name).expect("a peer of this name")
}

/// Measures once more where this process had no core when it was to count.
fn sample(case: Case, name: &str) -> Sample {
    let tries = (0..5).map(|_| case.measure(peer(name), &EFFORT).map_err(|error| format!("{error:#}")));
    let mut tries = tries.skip_while(|tried| tried.as_ref().is_err_and(|why| why.contains("the machine is busy")));
    tries.next().expect("a machine less busy").unwrap_or_else(|error| panic!("{error}"))
}

fn packets_pass(name: &str) {
    let sample = sample(Case::Pps, name);
    assert!(sample[&Metric::Pps] > 1_000.0, "{name}: {sample:?}");
    assert!(sample[&Metric::PpsCpu] > 10.0, "{name}: {sample:?}");
}

/// What is only asked of one peer: live frames, and answers at the peer's own pace.
#[test]
fn privileged_live_frames_and_answers_pass_through_penstock() {
    if !privilege::require("privileged_live_frames_and_answers_pass_through_penstock") {
        return;
    }
    let _alone = alone();
    let live = sample(Case::Live, "penstock");
    assert!(live[&Metric::LivePps] > 1_000.0 && live.contains_key(&Metric::LiveLost), "{live:?}");
    let latency = sample(Case::Latency, "penstock");
    assert!(latency[&Metric::LatencyMax] > 100.0 && latency[&Metric::HalfAllP99] > 0.0, "{latency:?}");
    assert!(latency.contains_key(&Metric::NinetyLost), "{latency:?}");
}

#[test]
fn privileged_packets_pass_through_our_own_peers() {
    if !privilege::require("privileged_packets_pass_through_our_own_peers") {
        return;
    }
    let _alone = alone();
    ["direct", "bare", "penstock"].into_iter().for_each(packets_pass);
}

#[test]
fn privileged_packets_pass_through_the_kernel_and_nftables() {
    if !privilege::require("privileged_packets_pass_through_the_kernel_and_nftables") {
        return;
    }
    let _alone = alone();
    ["kernel", "nftables", "nftables-rps"].into_iter().for_each(packets_pass);
}

/// A box that does nothing at all.
struct Deaf;

impl Peer for Deaf {
    fn name(&self) -> &'static str {
        "deaf"
    }

    fn what(&self) -> &'static str {
        "forwards nothing"
    }

    fn cannot(&self) -> &'static str {
        "anything"
    }

    fn unfit(&self, _: Case) -> Option<&'static str> {
        None
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        // Set up as the kernel's forwarding is, in a lab whose box does not forward.
        peer("kernel").start(lab, setup)
    }
}

#[test]
fn privileged_a_peer_that_carries_nothing_is_not_measured() {
    if !privilege::require("privileged_a_peer_that_carries_nothing_is_not_measured") {
        return;
    }
    let _alone = alone();
    let error = Case::Pps.measure(&Deaf, &EFFORT).expect_err("no traffic passes");
    let said = format!("{error:#}");
    assert!(said.contains("deaf") && said.contains("nothing is measured"), "{said}");
}
