//! The lab's own generators through a box: live frames whose books add up, connections that all complete.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_configs::file::PollMode;
use penstock_perf::churn::bench::{Churn, ChurnBench, Setup};
use penstock_perf::churn::client::Habits;
use penstock_perf::churn::drive::Until;
use penstock_perf::config;
use penstock_perf::privilege;
use penstock_perf::traffic::bench::{Bench, Spec};
use penstock_perf::traffic::ends::{Generator, How, SinkBy};
use penstock_perf::traffic::load::NodeSide;
use penstock_perf::traffic::mix::Mix;
use penstock_perf::traffic::packet::Transport;
use penstock_perf::traffic::popularity::Popularity;

const SECOND: Duration = Duration::from_secs(1);

/// Each keeps both cores busy: side by side they would measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn live(transport: Transport) -> How {
    How { generator: Generator::Live, transport, ..How::default() }
}

fn spec(v6: bool, side: NodeSide, mix: Mix) -> Spec {
    Spec { mix, v6, flows: 100, popularity: Popularity::Zipf(1.0), side, seed: 7 }
}

#[test]
fn privileged_live_frames_are_accounted_for() {
    if !privilege::require("privileged_live_frames_are_accounted_for") {
        return;
    }
    let _alone = alone();
    let bench = Bench::start(1, 1, 1000, |config| config.workers.poll = PollMode::Adaptive).expect("a box");
    for (v6, transport) in
        [(false, Transport::Udp), (true, Transport::Udp), (false, Transport::Tcp), (true, Transport::Tcp)]
    {
        bench.open_flows(transport, &spec(v6, NodeSide::Answer, Mix::fixed(64))).expect("flows");
        // At a rate any machine keeps all come back, once, in order.
        for side in [NodeSide::Answer, NodeSide::Count] {
            let spec = spec(v6, side, Mix::imix());
            let measured = bench.measure_as(live(transport), &spec, Some(2_000.0), SECOND / 2).expect("a measurement");
            let outcome = &measured.outcome;
            assert!((100..=1_001).contains(&outcome.sent), "{measured:?}");
            assert_eq!((outcome.received, outcome.duplicates, outcome.reordered), (outcome.sent, 0, 0), "{measured:?}");
            assert!(outcome.latency_us.p50 > 1.0, "{measured:?}");
        }
    }
    // Sockets send, the kernel answers and counts.
    let how = How { sink: SinkBy::Kernel, ..How::default() };
    for side in [NodeSide::Answer, NodeSide::Count] {
        let measured = bench.measure_as(how, &spec(true, side, Mix::imix()), Some(1_000.0), SECOND / 2);
        let measured = measured.expect("a measurement");
        assert_eq!((measured.outcome.received, measured.outcome.lost), (measured.sent.packets, 0), "{measured:?}");
        assert!(measured.sent.packets > 20, "{measured:?}");
    }
    // One generator that can't begin keeps no other waiting.
    let more_than_there_are = How { cores: config::cores() + 1, ..live(Transport::Udp) };
    let spec = spec(false, NodeSide::Count, Mix::fixed(64));
    let error = bench.measure_as(more_than_there_are, &spec, None, SECOND / 2).expect_err("no such core");
    assert!(format!("{error:#}").contains("can't be pinned to core"), "{error:#}");
    // Flat out far more is sent than any box takes: what did not arrive is named, to the packet.
    let measured = bench.measure_as(live(Transport::Udp), &spec, None, SECOND / 2).expect("a measurement");
    let named: u64 = measured.lost_at.iter().map(|(_, count)| count).sum();
    assert!(measured.outcome.received > 0 && measured.outcome.lost > 0, "{measured:?}");
    assert_eq!(measured.outcome.sent, measured.outcome.received + named, "{measured:?}");
}

fn setup(snat_ports: Option<u16>) -> Setup {
    Setup { nodes: 2, queues: 2, snat_ports, poll: PollMode::Adaptive }
}

fn churn(v6: bool, until: Until) -> Churn {
    // Ten seconds of patience: the machine may be busy with other things, and nothing may be lost.
    let habits = Habits { concurrency: 64, addresses: 4, bytes: 100, patience_ns: 10_000_000_000, retries: 0 };
    Churn { v6, rate: Some(1_500.0), until, habits, apart: false }
}

#[test]
fn privileged_connections_churn_without_a_failure() {
    if !privilege::require("privileged_connections_churn_without_a_failure") {
        return;
    }
    let _alone = alone();
    let bench = ChurnBench::start(setup(None), |_| {}).expect("a box");
    for v6 in [false, true] {
        let until = Until { duration: SECOND / 4, after: 2_000 };
        let measured = bench.measure(&churn(v6, until), |_, _| {}).expect("a run");
        let tally = &measured.tally;
        assert!(tally.attempted >= 2_000, "{measured:#?}");
        assert_eq!((tally.completed, tally.failures()), (tally.attempted, 0), "{measured:#?}");
        assert!(tally.by_node.iter().all(|count| *count > 500), "{measured:#?}");
        assert_eq!((measured.nodes.opened, measured.nodes.wrong_node), (tally.attempted, 0), "{measured:#?}");
        assert_eq!(tally.whole.len(), tally.completed);
    }
}

/// A hundred times and more what ports that rest their whole time allow; and every port is given out as a node that waits takes it.
#[test]
fn privileged_snat_ports_wrap_around_under_churn() {
    if !privilege::require("privileged_snat_ports_wrap_around_under_churn") {
        return;
    }
    let _alone = alone();
    let bench = ChurnBench::start(setup(Some(256)), |_| {}).expect("a box");
    let until = Until { duration: SECOND, after: 4 * bench.tuples(false) };
    let measured = bench.measure(&churn(false, until), |_, _| {}).expect("a run");
    assert_eq!((measured.tally.completed, measured.tally.failures()), (measured.tally.attempted, 0), "{measured:#?}");
    assert!(measured.nodes.ports_reused >= 3 * bench.tuples(false), "{measured:#?}");
    assert_eq!((measured.nodes.unwelcome, measured.nodes.wrong_node), (0, 0), "{measured:#?}");
    let ceiling = bench.ceiling(false);
    assert!((ceiling - 512.0 / 60.0).abs() < 0.01, "{ceiling}");
}

/// A box that has no node for them: every connection fails, where and how is said.
#[test]
fn privileged_connections_to_nowhere_fail_by_name() {
    if !privilege::require("privileged_connections_to_nowhere_fail_by_name") {
        return;
    }
    let _alone = alone();
    let bench = ChurnBench::start(setup(None), |config| config.sets[0].backends.clear()).expect("a box");
    let mut churn = churn(false, Until { duration: SECOND / 4, after: 0 });
    churn.habits.patience_ns = 200_000_000;
    let measured = bench.measure(&churn, |_, _| {}).expect("a run");
    let tally = &measured.tally;
    assert!(tally.attempted > 0 && tally.completed == 0, "{measured:#?}");
    assert_eq!(tally.failures(), tally.attempted);
    let named: Vec<String> = tally.failed.keys().map(ToString::to_string).collect();
    assert!(named.iter().all(|failure| failure.starts_with("connect: ")), "{named:?}");
    assert!(measured.drops().iter().any(|(name, _)| name == "no_backend"), "{:?}", measured.drops());
}
