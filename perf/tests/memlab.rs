//! The box's workers between user-space TCP stacks, in simulated time and with no privilege. Every run is
//! repeatable: a failing seed fails again. What holds in each: every packet accounted for, every frame where
//! it belongs, flow tables in order ([`MemLab::check`]).

use std::time::Duration;

use penstock_configs::desired::{BackendState, Mode};
use penstock_dataplane::flow::State;
use penstock_dataplane::io::fault::Faults;
use penstock_perf::memlab::{Broken, Builder, DemoOptions, Ending, Link, Load, MemLab, Talk, Tally, demo};

/// Longer than any timeout of a flow that is not established.
const ALL_TIMEOUTS: Duration = Duration::from_secs(500);
const LONG: Duration = Duration::from_secs(3000);

#[track_caller]
fn assert_whole(lab: &MemLab, load: &Load, tally: &Tally) {
    assert_eq!(tally.failed, [], "{}", lab.describe());
    assert_eq!(tally.completed(), load.connections, "{}", lab.describe());
    lab.check().unwrap();
}

#[track_caller]
fn run_whole(lab: &mut MemLab, load: Load) -> Tally {
    let tally = lab.run(load).unwrap();
    assert_whole(lab, &load, &tally);
    tally
}

/// Every flow ended: after their timeouts no record is left.
#[track_caller]
fn assert_empties(lab: &mut MemLab) {
    lab.pass(ALL_TIMEOUTS);
    assert_eq!(lab.flows().unwrap(), [], "{}", lab.describe());
    lab.check().unwrap();
}

fn built(builder: Builder) -> MemLab {
    builder.build().unwrap()
}

#[test]
fn thousands_of_short_connections_spread_evenly() {
    let mut lab = built(MemLab::builder().clients(3).workers(3));
    let tally = run_whole(&mut lab, Load::new(6000, Talk::short()).at_a_time(64));
    for node in ["node0", "node1", "node2"] {
        let share = tally.share(node);
        assert!((share - 1.0 / 3.0).abs() < 0.02, "{node} got {share:.3}: {:?}", tally.by_node);
    }
    // Packets arrive at any worker: two of three are somebody else's, and every worker has its share.
    assert!(lab.handed_off() > 6000, "{} handed off", lab.handed_off());
    assert!(lab.transmitted().iter().all(|sent| *sent > 6000), "{:?}", lab.transmitted());
    let flows = lab.flows_by_node().unwrap();
    assert_eq!(flows, tally.by_node, "resting flows by node are the connections there were");
    assert_eq!(lab.drops().keys().copied().collect::<Vec<_>>(), Vec::<&str>::new());
    assert_empties(&mut lab);
    assert_eq!(lab.held_by_nodes(), 0);
}

#[test]
fn a_worker_alone_hands_nothing_off() {
    let mut lab = built(MemLab::builder().workers(1));
    run_whole(&mut lab, Load::new(500, Talk::short()));
    assert_eq!(lab.handed_off(), 0);
    assert_empties(&mut lab);
}

#[test]
fn every_byte_arrives_whatever_is_lost_overtaken_or_doubled() {
    for (per_mille, connections) in [(10, 100), (50, 60), (100, 40), (200, 20)] {
        let mut lab = built(MemLab::builder().clients(2).link(Link::rough(per_mille)).seed(u64::from(per_mille)));
        let talk = Talk::tcp(5_000, 20_000, Ending::NodeCloses);
        run_whole(&mut lab, Load::new(connections, talk).patience(LONG));
        let done = lab.link_counters();
        assert!(done.lost > 0 && done.reordered > 0 && done.duplicated > 0, "{done:?}");
        assert_empties(&mut lab);
    }
}

#[test]
fn spoiled_packets_deliver_no_wrong_byte() {
    let link = Link { corrupt: 50, loss: 10, ..Link::default() };
    for seed in 1..=4 {
        let mut lab = built(MemLab::builder().clients(2).link(link).seed(seed));
        let talk = Talk::tcp(3_000, 15_000, Ending::ClientCloses);
        for load in [Load::new(30, talk), Load::new(30, talk).v6()] {
            let tally = lab.run(load.patience(LONG)).unwrap();
            let wrong = tally.failed.iter().filter(|failed| failed.why == Broken::WrongBytes).count();
            assert_eq!(wrong, 0, "seed {seed}: {}", lab.describe());
            assert_whole(&lab, &load, &tally);
        }
        assert!(lab.link_counters().corrupted > 100, "{}", lab.describe());
    }
}

#[test]
fn rings_on_a_bad_day_lose_nothing() {
    let faults = Faults { short_burst: 300, full_tx: 300, lazy_service: 300, ..Faults::default() };
    let mut lab = built(MemLab::builder().workers(3).faults(faults));
    run_whole(&mut lab, Load::new(400, Talk::short()));
    assert_eq!(lab.drops().get("tx_full"), None, "{:?}", lab.drops());
    assert_empties(&mut lab);
}

/// Steady connections, all of them answered; the load's number and which node each is at.
fn steady(lab: &mut MemLab, connections: u64, lasting: Duration) -> (usize, std::collections::BTreeMap<u64, String>) {
    let load = Load::new(connections, Talk::steady(lasting)).at_a_time(connections as usize);
    let number = lab.offer(load.patience(lasting + Duration::from_secs(60)));
    lab.run_until(Duration::from_secs(3), |lab| lab.answered().len() as u64 == connections).unwrap();
    (number, lab.answered())
}

#[test]
fn removing_a_backend_breaks_its_flows_only() {
    let mut lab = built(MemLab::builder().clients(2).workers(2).maglev_max(65_537));
    let (number, nodes) = steady(&mut lab, 150, Duration::from_secs(10));
    lab.remove_backend("node1").unwrap();
    lab.finish().unwrap();
    lab.check().unwrap();
    let broken: Vec<u64> = lab.tally(number).failed.iter().map(|failed| failed.connection).collect();
    let mut expected: Vec<u64> = nodes.iter().filter(|(_, node)| *node == "node1").map(|(id, _)| *id).collect();
    let mut sorted = broken.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected, "{}", lab.describe());
    assert!(expected.len() > 30, "node1 had {} of 150", expected.len());
    let (needless, _, size) = lab.slots_moved().unwrap();
    assert!(needless * 100 < size, "{needless} of {size} slots moved from nodes that stay");
    let after = run_whole(&mut lab, Load::new(300, Talk::short()));
    assert_eq!(after.by_node.get("node1"), None, "{:?}", after.by_node);
}

#[test]
fn a_drained_backend_keeps_its_flows_and_gets_no_new_ones() {
    let mut lab = built(MemLab::builder().clients(2));
    let (number, nodes) = steady(&mut lab, 60, Duration::from_secs(5));
    lab.set_state("node2", BackendState::Draining).unwrap();
    let after = lab.offer(Load::new(200, Talk::short()));
    lab.finish().unwrap();
    lab.check().unwrap();
    assert_eq!(lab.tally(number).failed, [], "{}", lab.describe());
    let at_node2 = nodes.values().filter(|node| *node == "node2").count() as u64;
    assert_eq!(lab.tally(number).by_node.get("node2"), Some(&at_node2));
    assert_eq!((lab.tally(after).completed(), lab.tally(after).by_node.get("node2")), (200, None));
    lab.set_state("node2", BackendState::Active).unwrap();
    let again = run_whole(&mut lab, Load::new(200, Talk::short()));
    assert!(again.by_node["node2"] > 30, "{:?}", again.by_node);
}

#[test]
fn adding_a_backend_breaks_nothing() {
    let mut lab = built(MemLab::builder().clients(2).nodes(4));
    lab.remove_backend("node3").unwrap();
    let (number, nodes) = steady(&mut lab, 100, Duration::from_secs(5));
    assert!(!nodes.values().any(|node| node == "node3"));
    lab.add_backend("node3").unwrap();
    let after = run_whole(&mut lab, Load::new(400, Talk::short()));
    assert!(after.share("node3") > 0.2, "{:?}", after.by_node);
    lab.finish().unwrap();
    assert_eq!(lab.tally(number).failed, [], "{}", lab.describe());
}

#[test]
fn a_killed_box_keeps_every_connection() {
    let mut lab = built(MemLab::builder().clients(2).workers(2));
    let (paced, nodes) = steady(&mut lab, 150, Duration::from_secs(10));
    let bulk = Load::new(20, Talk::tcp(200_000, 200_000, Ending::NodeCloses)).at_a_time(20);
    let bulk_number = lab.offer(bulk);
    let half_closed = lab.offer(Load::new(10, Talk::tcp(300_000, 100_000, Ending::HalfClose)).at_a_time(10));
    lab.pass(Duration::from_millis(20));
    let before = lab.flows().unwrap();
    lab.kill();
    lab.pass(Duration::from_secs(3));
    lab.restart().unwrap();
    assert_eq!(lab.flows().unwrap().len(), before.len(), "flows taken up");
    let fresh = lab.offer(Load::new(500, Talk::short()));
    lab.finish().unwrap();
    lab.check().unwrap();
    for number in [paced, bulk_number, half_closed, fresh] {
        assert_eq!(lab.tally(number).failed, [], "{}", lab.describe());
    }
    assert!(nodes.len() == 150 && lab.tally(fresh).completed() == 500);
    let resets: u64 = lab.node_reports().values().map(|report| report.reset).sum();
    assert_eq!(resets, 0, "no RST was sent");
    assert_empties(&mut lab);
}

/// Kills at odd instants of churn: connections that are opening, talking and closing all live on.
#[test]
fn a_box_killed_again_and_again_keeps_every_connection() {
    for seed in 1..=6_u64 {
        let mut lab = built(MemLab::builder().clients(2).workers(3).seed(seed).link(Link::rough(5)));
        let steady = lab.offer(Load::new(40, Talk::steady(Duration::from_secs(8))).at_a_time(40));
        let churn = lab.offer(Load::new(600, Talk::short()).at_a_time(24));
        let mixed = lab.offer(Load::new(30, Talk::tcp(40_000, 40_000, Ending::HalfClose)).v6().at_a_time(6));
        for kill in 0..10_u64 {
            lab.pass(Duration::from_micros(1_000 + (seed * 7919 + kill * 104_729) % 400_000));
            lab.check().unwrap();
            lab.kill();
            lab.pass(Duration::from_millis(10 + kill * 20));
            lab.restart().unwrap();
            lab.check().unwrap();
        }
        lab.finish().unwrap();
        lab.check().unwrap();
        for number in [steady, churn, mixed] {
            assert_eq!(lab.tally(number).failed, [], "seed {seed}: {}", lab.describe());
        }
    }
}

#[test]
fn every_way_to_end_a_connection() {
    let mut lab = built(MemLab::builder().clients(2));
    let closes = [Ending::NodeCloses, Ending::ClientCloses, Ending::HalfClose, Ending::NodeResets];
    for ending in closes {
        for load in [Load::new(50, Talk::tcp(4_000, 9_000, ending)), Load::new(50, Talk::tcp(0, 0, ending)).v6()] {
            run_whole(&mut lab, load);
        }
    }
    let resets = |lab: &MemLab| lab.node_reports().values().map(|report| report.reset).sum::<u64>();
    assert_eq!(resets(&lab), 0);
    run_whole(&mut lab, Load::new(50, Talk::tcp(4_000, 9_000, Ending::ClientResets)));
    assert_eq!(resets(&lab), 50, "every RST of a client's arrived: {:?}", lab.node_reports());
    assert_eq!(lab.held_by_nodes(), 0);
    assert_empties(&mut lab);
}

/// Whatever the link does to the packets that say so: a connection both ends have closed holds no port for
/// the hours an open one may, and none is taken for closed that is not.
#[test]
fn the_box_knows_what_has_closed() {
    for (per_mille, seed) in [(0, 1), (20, 2), (100, 3)] {
        for ending in [Ending::NodeCloses, Ending::ClientCloses, Ending::HalfClose] {
            let mut lab = built(MemLab::builder().clients(2).workers(2).link(Link::rough(per_mille)).seed(seed));
            let open = lab.offer(Load::new(10, Talk::steady(Duration::from_secs(30))).at_a_time(10).patience(LONG));
            let load = Load::new(40, Talk::tcp(3_000, 9_000, ending)).patience(LONG);
            let number = lab.offer(load);
            lab.run_until(LONG, |lab| lab.tally(number).ended() == load.connections).unwrap();
            // The last ACKs; less than a closed flow rests for.
            lab.pass(Duration::from_secs(8));
            let states: Vec<State> = lab.flows().unwrap().into_iter().map(|flow| flow.state).collect();
            let count = |state: State| states.iter().filter(|known| **known == state).count();
            if lab.tally(open).ended() == 0 {
                assert_eq!(count(State::Established), 10, "{per_mille} {ending:?}: {states:?}");
            }
            // Where the last ACK is lost, a stack that has forgotten the connection answers the next FIN with a RST.
            if per_mille == 0 {
                assert_eq!(count(State::TimeWait), 40, "{ending:?}: {states:?}");
            }
            lab.finish().unwrap();
            assert_eq!((lab.tally(number).failed.len(), lab.tally(open).failed.len()), (0, 0), "{}", lab.describe());
            assert_empties(&mut lab);
        }
    }
}

#[test]
fn datagrams_and_their_answers() {
    let mut lab = built(MemLab::builder().clients(2).workers(2).link(Link::rough(20)));
    for load in
        [Load::new(300, Talk::Udp { rounds: 3, size: 100 }), Load::new(300, Talk::Udp { rounds: 3, size: 1000 }).v6()]
    {
        let tally = run_whole(&mut lab, load);
        assert!(tally.by_node.values().all(|count| *count > 60), "{:?}", tally.by_node);
    }
    assert_empties(&mut lab);
}

#[test]
fn ipv6_like_ipv4() {
    let mut lab = built(MemLab::builder().clients(2).workers(3));
    let tally = run_whole(&mut lab, Load::new(1500, Talk::short()).v6());
    assert!(tally.by_node.values().all(|count| (400..600).contains(count)), "{:?}", tally.by_node);
    lab.set_link(Link::rough(50));
    run_whole(&mut lab, Load::new(30, Talk::tcp(5_000, 20_000, Ending::HalfClose)).v6().patience(LONG));
    assert_empties(&mut lab);
}

#[test]
fn one_arm_and_clients_behind_a_router() {
    for builder in [MemLab::builder().one_arm(), MemLab::builder().routed(), MemLab::builder().one_arm().routed()] {
        let mut lab = built(builder.clients(3).workers(2).link(Link::rough(10)));
        run_whole(&mut lab, Load::new(200, Talk::short()).patience(LONG));
        run_whole(&mut lab, Load::new(100, Talk::short()).v6().patience(LONG));
        run_whole(&mut lab, Load::new(50, Talk::Udp { rounds: 2, size: 50 }));
        assert_empties(&mut lab);
    }
}

#[test]
fn dnat_finds_its_way_back() {
    let mut lab = built(MemLab::builder().mode(Mode::Dnat).clients(3).workers(3));
    run_whole(&mut lab, Load::new(600, Talk::short()));
    run_whole(&mut lab, Load::new(300, Talk::short()).v6());
    run_whole(&mut lab, Load::new(100, Talk::Udp { rounds: 2, size: 50 }));
    let flows = lab.flows().unwrap();
    assert!(!flows.is_empty() && flows.iter().all(|flow| flow.snat.is_none()));
    assert_empties(&mut lab);
}

/// 40 ports for 400 connections: resting ports come free by time, or early where RFC 6191 allows it, and
/// none is given out twice.
#[test]
fn few_snat_ports_serve_many_connections() {
    let mut lab = built(MemLab::builder().workers(2).snat_ports(2000, 2039));
    let load = Load::new(400, Talk::short()).at_a_time(20).patience(LONG);
    let number = lab.offer(load);
    lab.run_until(LONG, |lab| {
        lab.check().unwrap();
        lab.tally(number).ended() == load.connections
    })
    .unwrap();
    assert_whole(&lab, &load, lab.tally(number));
    assert_empties(&mut lab);
}

#[test]
fn many_seeds() {
    for seed in 100..140_u64 {
        let rough = (seed * 37 % 80) as u32;
        let link = Link { corrupt: rough / 4, ..Link::rough(rough) };
        let faults = Faults { short_burst: rough * 3, full_tx: rough, lazy_service: rough * 3, ..Faults::default() };
        let workers = (1 + seed % 4) as u16;
        let mut lab = built(MemLab::builder().seed(seed).workers(workers).link(link).faults(faults).clients(2));
        let endings = [Ending::NodeCloses, Ending::ClientCloses, Ending::HalfClose];
        let ending = endings[(seed % 3) as usize];
        let loads = [
            Load::new(15, Talk::tcp(2_000, 6_000, ending)),
            Load::new(10, Talk::tcp(500, 3_000, ending)).v6(),
            Load::new(10, Talk::Udp { rounds: 2, size: 80 }),
        ];
        let numbers = loads.map(|load| lab.offer(load.patience(LONG)));
        lab.finish().unwrap();
        lab.check().unwrap();
        for number in numbers {
            assert_eq!(lab.tally(number).failed, [], "seed {seed}: {}", lab.describe());
        }
    }
}

#[test]
fn a_seed_repeats_a_run() {
    let run = |seed| {
        let mut lab = built(MemLab::builder().seed(seed).clients(2).workers(3).link(Link::rough(50)));
        let tally = run_whole(&mut lab, Load::new(30, Talk::short()).patience(LONG));
        (lab.link_counters(), lab.elapsed(), lab.handed_off(), tally)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).0.digest, run(8).0.digest);
}

#[test]
fn the_demo_shows_where_connections_went() {
    let mut out = Vec::new();
    let options = DemoOptions {
        connections: 600,
        udp_flows: 100,
        reason: "no right to make network namespaces (CAP_SYS_ADMIN)".into(),
        ..DemoOptions::default()
    };
    let summary = demo(&mut out, &options).unwrap();
    let text = String::from_utf8(out).unwrap();
    println!("{text}");
    assert_eq!((summary.before.completed(), summary.after.completed(), summary.failed()), (700, 700, 0));
    assert!(summary.before.by_node.len() == 3 && summary.after.by_node.len() == 2);
    for said in
        ["CAP_SYS_ADMIN", "does not show", "AF_XDP", "node  | before |   share |  after |   share", "(taken out)"]
    {
        assert!(text.contains(said), "{said:?} is missing in:\n{text}");
    }
}

#[test]
fn labs_of_nothing_are_refused() {
    for builder in [MemLab::builder().clients(0), MemLab::builder().nodes(0), MemLab::builder().workers(0)] {
        assert!(builder.build().is_err());
    }
}
