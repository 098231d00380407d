//! Every peer of `perf compare` that needs nothing but nftables and our own programs really carries traffic: the
//! harness measures it, and what it counts it has verified. And a peer that carries none is never measured.

use std::time::Duration;

use anyhow::Result;
use penstock_perf::compare::cases::{Case, Effort, Metric};
use penstock_perf::compare::peers::{self, Peer, Running, Setup};
use penstock_perf::lab::Lab;
use penstock_perf::privilege;

/// Short: whether packets pass is the question, not how many.
const EFFORT: Effort = Effort { duration: Duration::from_millis(300), flows: 64, memory_flows: 1_000 };

fn peer(name: &str) -> &'static dyn Peer {
    peers::all().into_iter().find(|peer| peer.name() == name).expect("a peer of this name")
}

fn packets_pass(name: &str) {
    let sample = Case::Pps.measure(peer(name), &EFFORT).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(sample[&Metric::Pps] > 1_000.0, "{name}: {sample:?}");
    assert!(sample[&Metric::PpsCpu] > 10.0, "{name}: {sample:?}");
}

#[test]
fn privileged_packets_pass_through_our_own_peers() {
    if !privilege::require("privileged_packets_pass_through_our_own_peers") {
        return;
    }
    ["direct", "bare", "penstock"].into_iter().for_each(packets_pass);
}

#[test]
fn privileged_packets_pass_through_the_kernel_and_nftables() {
    if !privilege::require("privileged_packets_pass_through_the_kernel_and_nftables") {
        return;
    }
    ["kernel", "nftables"].into_iter().for_each(packets_pass);
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
    let error = Case::Pps.measure(&Deaf, &EFFORT).expect_err("no traffic passes");
    let said = format!("{error:#}");
    assert!(said.contains("deaf") && said.contains("nothing is measured"), "{said}");
}
