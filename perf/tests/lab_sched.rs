//! Schedulers and backends in motion, seen by kernel TCP and UDP stacks.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use penstock_configs::desired::{BackendHealth, BackendState, Health, OnDown, Scheduler};
use penstock_configs::file::ConfigFile;
use penstock_configs::status::ServiceStatus;
use penstock_control::client::Dataplane;
use penstock_perf::clients::hold::{Held, Hold};
use penstock_perf::clients::http::Volley;
use penstock_perf::clients::{run_here, uninterrupted};
use penstock_perf::lab::Lab;
use penstock_perf::privilege;
use penstock_perf::rig::{Rig, workers_follow};

const PATIENCE: Duration = Duration::from_secs(10);

/// Every service by one scheduler.
fn rig_with(edit: impl FnOnce(&mut ConfigFile)) -> Rig {
    Rig::start(Lab::builder(), edit).expect("a lab with a dataplane")
}

fn by(scheduler: Scheduler) -> impl FnOnce(&mut ConfigFile) {
    move |config| config.services.iter_mut().for_each(|service| service.scheduler = scheduler)
}

fn all_tcp(config: &mut ConfigFile, policy: OnDown) {
    let tcp = config.services.iter_mut().filter(|service| service.protocol.as_str() == "tcp");
    tcp.for_each(|service| service.on_down = policy);
}

fn set_state(config: &mut ConfigFile, node: &str, state: BackendState) {
    let backends = config.sets.iter_mut().flat_map(|set| &mut set.backends);
    backends.filter(|backend| backend.node.as_deref() == Some(node)).for_each(|backend| backend.state = state);
}

fn nodes_of(held: &[Held]) -> BTreeMap<String, u64> {
    let mut nodes = BTreeMap::new();
    for held in held {
        *nodes.entry(held.outcome.clone().expect("an answer")).or_default() += 1;
    }
    nodes
}

fn service(rig: &Rig) -> ServiceStatus {
    let status = rig.dataplane.status().expect("a status");
    status.services.into_iter().find(|service| service.name == "web").expect("the web service")
}

/// A service's three nodes get as many new connections each, exactly with one worker, to within one per
/// worker with more.
#[test]
fn privileged_sched_turns_are_exact() {
    if !privilege::require("privileged_sched_turns_are_exact") {
        return;
    }
    let mut rig = rig_with(by(Scheduler::Rr));
    let workers = rig.dataplane.status().expect("a status").workers.len() as u64;
    for v6 in [false, true] {
        let tally = Volley::new(rig.vip(v6), 600).run(rig.client(), |_| {});
        assert_eq!((tally.answered(), tally.failed()), (600, 0), "{tally:?}");
        for node in &rig.lab.nodes {
            assert!(tally.by_node[&node.name].abs_diff(200) <= workers, "{:?}", tally.by_node);
        }
    }
    rig.reconfigure(|config| {
        by(Scheduler::Wrr)(config);
        for (backend, weight) in config.sets[0].backends.iter_mut().zip([3, 2, 1]) {
            backend.weight = weight;
        }
    })
    .expect("a reload");
    let tally = Volley::new(rig.vip(false), 600).run(rig.client(), |_| {});
    for (node, share) in rig.lab.nodes.iter().zip([300_u64, 200, 100]) {
        assert!(tally.by_node[&node.name].abs_diff(share) <= 2 * workers, "{:?}", tally.by_node);
    }
    assert_eq!(service(&rig).scheduler, Scheduler::Wrr);
    assert_eq!(service(&rig).table_size, 0, "no Maglev table");
    rig.finish().expect("a clean end");
}

/// A node that comes while the others hold connections gets what comes until all hold as many.
#[test]
fn privileged_sched_wlc_evens_out() {
    if !privilege::require("privileged_sched_wlc_evens_out") {
        return;
    }
    for scheduler in [Scheduler::Wlc, Scheduler::Sed] {
        let mut rig = rig_with(|config| {
            by(scheduler)(config);
            set_state(config, "node1", BackendState::Draining);
        });
        let first = Hold::open(rig.client(), rig.vip(false), 120).expect("connections");
        let nodes = nodes_of(&first.first);
        assert!(!nodes.contains_key("node1") && nodes.values().all(|count| count.abs_diff(60) <= 3), "{nodes:?}");
        rig.reconfigure(|config| set_state(config, "node1", BackendState::Active)).expect("a reload");
        let second = Hold::open(rig.client(), rig.vip(false), 60).expect("connections");
        let nodes = nodes_of(&second.first);
        assert!(nodes["node1"] >= 57, "{scheduler:?}: {nodes:?} of those that came after");
        let third = Hold::open(rig.client(), rig.vip(false), 60).expect("connections");
        let nodes = nodes_of(&third.first);
        assert!(nodes.len() == 3 && nodes.values().all(|count| count.abs_diff(20) <= 5), "{scheduler:?}: {nodes:?}");
        let flows: Vec<u64> = service(&rig).backends.iter().map(|backend| backend.flows).collect();
        assert!(flows.iter().all(|flows| flows.abs_diff(80) <= 5), "{flows:?}");
        drop((first, second, third));
        rig.finish().expect("a clean end");
    }
}

#[test]
fn privileged_sched_draining_keeps_its_connections() {
    if !privilege::require("privileged_sched_draining_keeps_its_connections") {
        return;
    }
    let mut rig = rig_with(by(Scheduler::Lc));
    let hold = Hold::open(rig.client(), rig.vip(false), 90).expect("connections");
    rig.reconfigure(|config| set_state(config, "node2", BackendState::Draining)).expect("a reload");
    let tally = Volley::new(rig.vip(false), 100).run(rig.client(), |_| {});
    assert_eq!((tally.failed(), tally.by_node.get("node2")), (0, None), "{tally:?}");
    let again = hold.ask_all(PATIENCE).expect("answers");
    assert_eq!(nodes_of(&again), nodes_of(&hold.first), "each with the node it had");
    drop(hold);
    rig.finish().expect("a clean end");
}

/// The node answers all the while: what becomes of its connections is the box's doing.
#[test]
fn privileged_sched_down_policies() {
    if !privilege::require("privileged_sched_down_policies") {
        return;
    }
    for policy in [OnDown::Keep, OnDown::Reset, OnDown::Rehome] {
        let mut rig = rig_with(|config| all_tcp(config, policy));
        let hold = Hold::open(rig.client(), rig.vip(false), 90).expect("connections");
        let before: BTreeMap<SocketAddr, String> =
            hold.first.iter().map(|held| (held.local, held.outcome.clone().expect("an answer"))).collect();
        let down = BackendHealth {
            address: rig.lab.nodes[1].addr.v4.into(),
            port: None,
            state: BackendState::Down,
            reason: "the test says so".into(),
        };
        let api = Dataplane::new(rig.dataplane.socket());
        run_here(api.put_health("", &Health { backends: vec![down] })).expect("the overlay is taken");
        // A question that overtook it would be answered.
        workers_follow(&rig.dataplane).expect("the overlay is run");
        assert!(service(&rig).backends.iter().any(|backend| backend.state == BackendState::Down), "it has no effect");
        let again = hold.ask_all(PATIENCE).expect("answers");
        for held in &again {
            match (before[&held.local].as_str(), policy) {
                ("node1", OnDown::Reset | OnDown::Rehome) => {
                    let failure = held.outcome.as_ref().expect_err("the node is down");
                    let text = failure.to_string();
                    assert!(!text.contains("timed out"), "{policy:?}: not told, but left waiting: {text}");
                }
                (node, _) => assert_eq!(held.outcome.as_deref().ok(), Some(node), "{policy:?}"),
            }
        }
        let tally = Volley::new(rig.vip(false), 100).run(rig.client(), |_| {});
        assert_eq!((tally.failed(), tally.by_node.get("node1")), (0, None), "{policy:?}: {tally:?}");
        drop(hold);
        rig.settle().expect("a balanced ledger");
        rig.stop().expect("a clean stop");
    }
}

/// One socket per flow, asking on and on: the answer after the change is another node's, at once.
#[test]
fn privileged_sched_udp_goes_elsewhere_at_once() {
    if !privilege::require("privileged_sched_udp_goes_elsewhere_at_once") {
        return;
    }
    let mut rig = rig_with(|_| {});
    for v6 in [false, true] {
        let target = rig.vip(v6);
        let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
        let sockets: Vec<UdpSocket> = rig.client().run(|| {
            let open = |_| {
                let socket = UdpSocket::bind(any).expect("a socket");
                socket.connect(target).expect("a route");
                socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
                socket
            };
            (0..30).map(open).collect()
        });
        let ask = |socket: &UdpSocket| {
            socket.send(b"who?").expect("sent");
            let mut answer = [0; 256];
            let length = uninterrupted(|| socket.recv(&mut answer)).expect("an answer");
            String::from_utf8_lossy(&answer[..length]).split(' ').next().unwrap_or_default().to_owned()
        };
        let before: Vec<String> = sockets.iter().map(ask).collect();
        assert!(before.iter().any(|node| node == "node2"), "{before:?}");
        rig.reconfigure(|config| set_state(config, "node2", BackendState::Down)).expect("a reload");
        for (socket, before) in sockets.iter().zip(&before) {
            let after = ask(socket);
            assert_ne!(after, "node2");
            assert!(before == "node2" || after == *before, "{before} became {after}");
        }
        rig.reconfigure(|config| set_state(config, "node2", BackendState::Active)).expect("a reload");
    }
    rig.finish().expect("a clean end");
}

/// Housekeeping gives a node that comes back more and more of its share, and status says so.
#[test]
fn privileged_sched_slow_start_is_seen() {
    if !privilege::require("privileged_sched_slow_start_is_seen") {
        return;
    }
    let slowly = |seconds| {
        move |config: &mut ConfigFile| config.services.iter_mut().for_each(|service| service.slow_start = seconds)
    };
    let effective = |rig: &Rig| {
        let service = service(rig);
        service.backends.iter().find(|backend| backend.name == "node1").expect("the node").effective
    };
    let come_back = |rig: &mut Rig| {
        rig.reconfigure(|config| set_state(config, "node1", BackendState::Down)).expect("a reload");
        rig.reconfigure(|config| set_state(config, "node1", BackendState::Active)).expect("a reload");
    };
    let share = |rig: &Rig| {
        let tally = Volley::new(rig.vip(false), 400).run(rig.client(), |_| {});
        assert_eq!(tally.failed(), 0, "{tally:?}");
        tally.share("node1")
    };
    // A minute: however long a look takes, it is of the beginning.
    let mut rig = rig_with(slowly(Some(60)));
    come_back(&mut rig);
    let early = share(&rig);
    let at_most = f64::from(effective(&rig)) / 100.0;
    // Beside two nodes with all of theirs.
    let due = at_most / (2.0 + at_most);
    assert!(at_most < 0.9 && early < due + 0.07, "{early} of new connections at first, {due} are its due");

    rig.reconfigure(slowly(Some(5))).expect("a reload");
    come_back(&mut rig);
    let mut seen = vec![effective(&rig)];
    let deadline = Instant::now() + 3 * PATIENCE;
    while seen.last() != Some(&100) {
        let now = effective(&rig);
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        assert!(Instant::now() < deadline, "{seen:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(seen.is_sorted() && seen.len() >= 3, "{seen:?}");
    let late = share(&rig);
    assert!((late - 0.33).abs() < 0.1, "{late} at last");
    rig.finish().expect("a clean end");
}
