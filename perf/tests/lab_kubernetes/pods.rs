//! Pods that come, go, move and terminate.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use penstock_perf::clients::hold::Hold;
use penstock_perf::clients::http::Volley;
use penstock_perf::clients::{Tally, uninterrupted};
use penstock_perf::kubelab::Pod;
use penstock_perf::lab::Netns;
use penstock_perf::privilege;
use serde_json::json;

use crate::{SOON, TCP, UDP, answers, cluster, local, nodes_of, serving, soon, tries};

/// One UDP flow: a socket that keeps its port, as a resolver's or a game's does.
struct Flow {
    socket: UdpSocket,
    asked: u32,
}

impl Flow {
    fn open(from: &Netns, target: SocketAddr) -> Self {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(target).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        Self { socket, asked: 0 }
    }

    /// Who answers the next datagram, if somebody does: `name number`.
    fn ask(&mut self) -> Option<String> {
        self.asked += 1;
        let number = self.asked.to_string();
        let mut buffer = [0; 256];
        // A refused datagram is an error of the next call.
        self.socket.send(number.as_bytes()).ok()?;
        loop {
            let length = uninterrupted(|| self.socket.recv(&mut buffer)).ok()?;
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            // Those to earlier ones may come late.
            if let Some((name, same)) = answer.split_once(' ')
                && same == number
            {
                return Some(name.to_owned());
            }
        }
    }

    #[track_caller]
    fn reaches(&mut self, wanted: &str) {
        let start = Instant::now();
        let mut last = None;
        while start.elapsed() < SOON {
            last = self.ask();
            if last.as_deref().is_some_and(|name| name.starts_with(wanted)) {
                return;
            }
        }
        panic!("the flow never reaches {wanted}: {last:?}");
    }
}

/// "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on the same / different
/// nodes".
#[test]
fn privileged_a_udp_flow_follows_a_pod_that_cycles() {
    if !privilege::require("privileged_a_udp_flow_follows_a_pod_that_cycles") {
        return;
    }
    let cluster = cluster();
    for (name, policy) in [("cluster", "Cluster"), ("local", "Local")] {
        cluster.pods(name, &[Pod::ready("first", "node0")]).unwrap();
        cluster.expose(name, &[(9000, UDP)], |s| s["spec"]["externalTrafficPolicy"] = json!(policy)).unwrap();
        let mut flow = Flow::open(cluster.client(), SocketAddr::new(cluster.address(name).unwrap(), 9000));
        flow.reaches("first@");
        cluster.pods(name, &[Pod::terminating("first", "node0"), Pod::ready("second", "node0")]).unwrap();
        cluster.pods(name, &[Pod::ready("second", "node0")]).unwrap();
        flow.reaches("second@");
        cluster.pods(name, &[Pod::terminating("second", "node0"), Pod::ready("third", "node1")]).unwrap();
        cluster.pods(name, &[Pod::ready("third", "node1")]).unwrap();
        flow.reaches(if policy == "Local" { "third@node1" } else { "third@" });
        // Away altogether, and back elsewhere.
        cluster.pods(name, &[]).unwrap();
        assert_eq!(flow.ask(), None);
        cluster.pods(name, &[Pod::ready("fourth", "node2")]).unwrap();
        flow.reaches(if policy == "Local" { "fourth@node2" } else { "fourth@" });
    }
    cluster.finish().unwrap();
}

/// "should implement rolling updates without disruption", under both policies: connections all the time, none fails.
#[test]
fn privileged_rolling_updates_disrupt_nothing() {
    if !privilege::require("privileged_rolling_updates_disrupt_nothing") {
        return;
    }
    let cluster = cluster();
    for (name, policy) in [("cluster", "Cluster"), ("local", "Local")] {
        let mut pods = vec![Pod::ready("old0", "node0"), Pod::ready("old1", "node1")];
        cluster.pods(name, &pods).unwrap();
        cluster.expose(name, &[(80, TCP)], |s| s["spec"]["externalTrafficPolicy"] = json!(policy)).unwrap();
        let target = SocketAddr::new(cluster.address(name).unwrap(), 80);
        answers(&cluster, target, 20);
        let (rolled, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        let deadline = Instant::now() + 10 * SOON;
        // All connections begun before have ended, and a hundred more.
        let load_goes_on = || {
            let now = rounds.load(Ordering::Relaxed);
            soon(&cluster, "two rounds of connections", || rounds.load(Ordering::Relaxed) >= now + 2);
        };
        let tally = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut sum = Tally::default();
                while !rolled.load(Ordering::Relaxed) && Instant::now() < deadline {
                    let volley = Volley { concurrency: 8, timeout: SOON, ..Volley::new(target, 100) };
                    sum.merge(volley.run(cluster.client(), |_| {}));
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                sum
            });
            for (position, node) in [(0, "node2"), (1, "node0")] {
                let old = std::mem::replace(&mut pods[position], Pod::starting(&format!("new{position}"), node));
                cluster.pods(name, &[&pods[..], std::slice::from_ref(&old)].concat()).unwrap();
                pods[position] = Pod::ready(&pods[position].name, node);
                cluster.pods(name, &[&pods[..], std::slice::from_ref(&old)].concat()).unwrap();
                // A new pod is known to be ready before an old one is asked to go, which then takes its time.
                serving(&cluster, name, &["node0", "node1", "node2"]);
                load_goes_on();
                cluster.pods(name, &[&pods[..], &[Pod::terminating(&old.name, &old.node)]].concat()).unwrap();
                if policy == "Local" {
                    let mut left: Vec<&str> = pods.iter().map(|pod| &*pod.node).collect();
                    left.sort_unstable();
                    serving(&cluster, name, &left);
                }
                load_goes_on();
                cluster.pods(name, &pods).unwrap();
                load_goes_on();
            }
            rolled.store(true, Ordering::Relaxed);
            load.join().unwrap()
        });
        assert_eq!(tally.failed(), 0, "{policy}: {tally:?}");
        assert!(tally.answered() > 200, "{policy}: {tally:?}");
        let after = answers(&cluster, target, 40);
        assert!(after.by_node.keys().all(|pod| pod.starts_with("new")), "{after:?}");
    }
    cluster.finish().unwrap();
}

/// "should only target nodes with endpoints", "should work when the policy is updated", and terminating endpoints.
#[test]
fn privileged_local_targets_nodes_with_endpoints_and_drains_terminating_ones() {
    if !privilege::require("privileged_local_targets_nodes_with_endpoints_and_drains_terminating_ones") {
        return;
    }
    let cluster = cluster();
    cluster.pods("web", &[Pod::ready("a", "node1")]).unwrap();
    cluster.expose("web", &[(80, TCP)], local).unwrap();
    let target = SocketAddr::new(cluster.address("web").unwrap(), 80);
    for node in ["node1", "node2", "node0"] {
        cluster.pods("web", &[Pod::ready("a", node)]).unwrap();
        serving(&cluster, "web", &[node]);
        assert_eq!(nodes_of(&answers(&cluster, target, 20)), [node]);
    }
    let policy = |policy: &str| {
        cluster.edit("web", |s| s["spec"]["externalTrafficPolicy"] = json!(policy)).unwrap();
        cluster.nodes_follow().unwrap();
    };
    policy("Cluster");
    serving(&cluster, "web", &["node0", "node1", "node2"]);
    assert_eq!(nodes_of(&answers(&cluster, target, 60)), ["node0", "node1", "node2"]);
    policy("Local");
    serving(&cluster, "web", &["node0"]);
    assert_eq!(nodes_of(&answers(&cluster, target, 20)), ["node0"]);
    let why = cluster.penstock(&["why", "web"]).unwrap();
    assert!(why.contains("node2") && why.contains("no ready endpoint"), "{why}");

    cluster.pods("web", &[Pod::ready("a", "node0"), Pod::ready("b", "node1")]).unwrap();
    serving(&cluster, "web", &["node0", "node1"]);
    let hold = Hold::open(cluster.client(), target, 40).unwrap();
    let held: Vec<String> = hold.first.iter().map(|h| h.outcome.clone().unwrap()).collect();
    assert!(held.contains(&"a@node0".to_owned()) && held.contains(&"b@node1".to_owned()), "{held:?}");
    cluster.pods("web", &[Pod::terminating("a", "node0"), Pod::ready("b", "node1")]).unwrap();
    serving(&cluster, "web", &["node1"]);
    assert_eq!(nodes_of(&answers(&cluster, target, 40)), ["node1"], "a node that drains takes no new flows");
    let again: Vec<String> = hold.ask_all(SOON).unwrap().into_iter().map(|h| h.outcome.unwrap()).collect();
    assert_eq!(again, held, "and keeps those it has");
    // Nothing is ready any more: what terminates and serves is better than nothing.
    cluster.pods("web", &[Pod::terminating("a", "node0"), Pod::terminating("b", "node1")]).unwrap();
    soon(&cluster, "the fallback", || tries(cluster.client(), target));
    drop(hold);
    cluster.finish().unwrap();
}
