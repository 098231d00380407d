//! The load generator against a box: at a rate any machine keeps, every packet comes back once; what a box
//! does not serve is counted as lost.

use std::time::Duration;

use penstock_configs::file::PollMode;
use penstock_perf::config::without_node;
use penstock_perf::privilege;
use penstock_perf::traffic::bench::{Bench, Spec};
use penstock_perf::traffic::load::NodeSide;
use penstock_perf::traffic::mix::Mix;
use penstock_perf::traffic::popularity::Popularity;

const SECOND: Duration = Duration::from_secs(1);

fn spec(v6: bool, side: NodeSide) -> Spec {
    Spec { mix: Mix::imix(), v6, flows: 200, popularity: Popularity::Zipf(1.0), side, seed: 7 }
}

#[test]
fn privileged_every_packet_comes_back_once() {
    if !privilege::require("privileged_every_packet_comes_back_once") {
        return;
    }
    let bench = Bench::start(2, 2, 1000, |config| config.workers.poll = PollMode::Adaptive).expect("a box");
    let mut passed = 0;
    for v6 in [false, true] {
        for side in [NodeSide::Answer, NodeSide::Count] {
            let measured = bench.measure(&spec(v6, side), Some(2_000.0), SECOND).expect("a measurement");
            let outcome = &measured.outcome;
            assert!((100..=2_001).contains(&outcome.sent), "{measured:?}");
            assert_eq!((outcome.lost, outcome.duplicates, outcome.reordered), (0, 0, 0), "{measured:?}");
            assert!(outcome.latency_us.p50 > 1.0, "{measured:?}");
            // Answered packets pass twice.
            passed += if side == NodeSide::Answer { 2 * outcome.sent } else { outcome.sent };
        }
    }
    let counters = bench.dataplane.counters().expect("counters");
    assert!(counters.total.tx >= passed, "{:?}", counters.total);
}

#[test]
fn privileged_what_is_not_served_is_lost_and_counted() {
    if !privilege::require("privileged_what_is_not_served_is_lost_and_counted") {
        return;
    }
    let bench = Bench::start(1, 1, 1000, |config| {
        config.workers.poll = PollMode::Adaptive;
        without_node(config, "node0");
    })
    .expect("a box");
    let measured = bench.measure(&spec(false, NodeSide::Answer), Some(1_000.0), SECOND).expect("a measurement");
    assert_eq!((measured.outcome.received, measured.outcome.lost), (0, measured.sent.packets), "{measured:?}");
    let drops = bench.dataplane.counters().expect("counters").total.drops;
    assert!(drops.get("no_backend").is_some_and(|&count| count >= measured.sent.packets), "{drops:?}");
}
