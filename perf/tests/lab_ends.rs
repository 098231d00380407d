//! What a load says of flows that do not open.

use penstock_configs::file::PollMode;
use penstock_perf::config::without_node;
use penstock_perf::privilege;
use penstock_perf::traffic::bench::{Bench, Spec};
use penstock_perf::traffic::load::NodeSide;
use penstock_perf::traffic::mix::Mix;
use penstock_perf::traffic::packet::Transport;
use penstock_perf::traffic::popularity::Popularity;

fn spec() -> Spec {
    Spec { mix: Mix::fixed(64), v6: false, flows: 50, popularity: Popularity::Uniform, side: NodeSide::Answer, seed: 7 }
}

#[test]
fn privileged_flows_that_do_not_open_are_an_error() {
    if !privilege::require("privileged_flows_that_do_not_open_are_an_error") {
        return;
    }
    let bench = Bench::start(1, 1, 1000, |config| {
        config.workers.poll = PollMode::Adaptive;
        without_node(config, "node0");
    })
    .expect("a box");
    let error = bench.open_flows(Transport::Tcp, &spec()).expect_err("nobody answers a SYN");
    assert!(error.to_string().starts_with("50 of 50 flows do not open"), "{error:#}");
}
