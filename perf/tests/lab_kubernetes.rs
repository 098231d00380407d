//! The whole path of a Service in a lab: API server, control and dataplane processes, nodes that answer as kube-proxy
//! has them answer. The scenarios are upstream's e2e tests of LoadBalancer Services, at the box's side of the node.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use penstock_perf::clients::Tally;
use penstock_perf::clients::hold::Hold;
use penstock_perf::clients::http::{self, Volley};
use penstock_perf::kubelab::{self, Cluster, HEALTHZ_ANNOTATION, Pod};
use penstock_perf::lab::{Lab, Netns, Topology, plan};
use penstock_perf::privilege;
use serde_json::{Value, json};

const TCP: &str = "TCP";
const UDP: &str = "UDP";
/// Longer than an answer takes through a busy machine.
const SOON: Duration = Duration::from_secs(8);

fn cluster() -> Cluster {
    Cluster::start(Lab::builder().clients(2), "").expect("a cluster in the lab")
}

/// One ready pod per node.
fn everywhere(service: &str) -> Vec<Pod> {
    (0..3).map(|n| Pod::ready(&format!("{service}-{n}"), &format!("node{n}"))).collect()
}

fn local(service: &mut Value) {
    service["spec"]["externalTrafficPolicy"] = json!("Local");
}

/// So many connections, each answered.
#[track_caller]
fn answers(cluster: &Cluster, target: SocketAddr, connections: u64) -> Tally {
    let tally = cluster.volley(target, connections);
    assert_eq!((tally.answered(), tally.failed()), (connections, 0), "{tally:?}\n{}", cluster.dataplane.log_tail());
    tally
}

/// One connection with little patience.
fn tries(from: &Netns, target: SocketAddr) -> bool {
    let volley = Volley { timeout: Duration::from_millis(400), ..Volley::new(target, 1) };
    volley.run(from, |_| {}).answered() == 1
}

#[track_caller]
fn soon(cluster: &Cluster, what: &str, mut is: impl FnMut() -> bool) {
    cluster.until(what, || Ok(is())).unwrap();
}

/// The nodes that answered, of names `pod@node`.
fn nodes_of(tally: &Tally) -> Vec<&str> {
    let mut nodes: Vec<&str> = tally.by_node.keys().filter_map(|name| Some(name.split_once('@')?.1)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

fn serving(cluster: &Cluster, service: &str, wanted: &[&str]) {
    soon(cluster, &format!("{service} on {wanted:?}"), || cluster.serving_nodes(service).unwrap() == wanted);
}

/// "should be able to change the type and ports of a TCP service", and of a UDP service: both at once, on one port
/// number; with the finalizer, and what has no node ports.
#[test]
fn privileged_tcp_and_udp_services_change_type_and_ports() {
    if !privilege::require("privileged_tcp_and_udp_services_change_type_and_ports") {
        return;
    }
    let cluster = cluster();
    cluster.pods("dns", &everywhere("dns")).unwrap();
    cluster
        .expose("dns", &[(53, TCP), (53, UDP)], |s| {
            s["spec"]["type"] = json!("NodePort");
            s["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
        })
        .unwrap();
    cluster
        .edit("dns", |s| {
            s["spec"]["type"] = json!("LoadBalancer");
            s["spec"]["loadBalancerClass"] = json!(kubelab::CLASS);
        })
        .unwrap();
    let vip = cluster.address("dns").unwrap();
    let both = |port: u16| {
        let tally = answers(&cluster, SocketAddr::new(vip, port), 60);
        assert_eq!(nodes_of(&tally).len(), 3, "{tally:?}");
        let tally = cluster.udp(SocketAddr::new(vip, port), 30);
        assert_eq!((tally.answered(), tally.failed()), (60, 0), "{tally:?}");
    };
    both(53);

    let of = |number: &str| {
        cluster.service("dns").unwrap()["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p[number].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let before = of("nodePort");
    cluster.edit("dns", |s| (0..2).for_each(|i| s["spec"]["ports"][i]["nodePort"] = json!(31_999))).unwrap();
    assert_ne!(of("nodePort"), before);
    cluster.nodes_follow().unwrap();
    soon(&cluster, "the new node port", || tries(cluster.client(), SocketAddr::new(vip, 53)));
    both(53);

    cluster.edit("dns", |s| (0..2).for_each(|i| s["spec"]["ports"][i]["port"] = json!(5353))).unwrap();
    soon(&cluster, "the new port", || tries(cluster.client(), SocketAddr::new(vip, 5353)));
    both(5353);
    assert!(!tries(cluster.client(), SocketAddr::new(vip, 53)), "the old port");
    assert_eq!(cluster.ingress("dns"), [vip]);

    let finalizers = || cluster.service("dns").unwrap_or_default()["metadata"]["finalizers"].clone();
    assert_eq!(finalizers(), json!(["service.kubernetes.io/load-balancer-cleanup"]));
    cluster
        .edit("dns", |s| {
            s["spec"]["type"] = json!("ClusterIP");
            for port in s["spec"]["ports"].as_array_mut().unwrap() {
                port.as_object_mut().unwrap().remove("nodePort");
            }
        })
        .unwrap();
    soon(&cluster, "the load balancer goes", || finalizers().is_null() && cluster.ingress("dns").is_empty());
    assert!(!tries(cluster.client(), SocketAddr::new(vip, 5353)), "the address is nobody's");

    cluster.expose("bare", &[(80, TCP)], |s| s["spec"]["allocateLoadBalancerNodePorts"] = json!(false)).unwrap();
    soon(&cluster, "the refusal", || cluster.events("bare").iter().any(|e| e.contains("node port")));
    assert_eq!(cluster.condition("bare", "Serving").unwrap().0, "False");
    assert!(cluster.penstock(&["why", "default/bare"]).unwrap().contains("is refused"));

    cluster.delete("bare").unwrap();
    cluster.finish().unwrap();
}

/// "should have session from allowed sources only", both families, and what an exposed NodePort Service shows.
#[test]
fn privileged_source_ranges_dual_stack_and_exposed_services() {
    if !privilege::require("privileged_source_ranges_dual_stack_and_exposed_services") {
        return;
    }
    let cluster = cluster();
    cluster.pods("web", &everywhere("web")).unwrap();
    let clients = &cluster.lab.clients;
    let only =
        |index: usize| json!([format!("{}/32", clients[index].addr.v4), format!("{}/128", clients[index].addr.v6)]);
    cluster
        .expose("web", &[(80, TCP)], |s| {
            s["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
            s["spec"]["loadBalancerSourceRanges"] = only(0);
        })
        .unwrap();
    cluster.address("web").unwrap();
    let vips = cluster.ingress("web");
    assert_eq!(vips.iter().map(IpAddr::is_ipv6).collect::<Vec<_>>(), [false, true]);
    for (allowed, refused) in [(0, 1), (1, 0)] {
        cluster.edit("web", |s| s["spec"]["loadBalancerSourceRanges"] = only(allowed)).unwrap();
        for vip in &vips {
            let target = SocketAddr::new(*vip, 80);
            soon(&cluster, "who is allowed", || tries(&clients[allowed].ns, target));
            assert!(!tries(&clients[refused].ns, target), "client{refused} at {target}");
        }
    }
    cluster.edit("web", |s| s["spec"]["loadBalancerSourceRanges"] = Value::Null).unwrap();
    for vip in &vips {
        soon(&cluster, "everybody", || tries(&clients[0].ns, SocketAddr::new(*vip, 80)));
        answers(&cluster, SocketAddr::new(*vip, 80), 30);
    }

    cluster.pods("old", &everywhere("old")).unwrap();
    cluster
        .expose("old", &[(80, TCP)], |s| {
            s["spec"]["type"] = json!("NodePort");
            s["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
            s["metadata"]["annotations"] = json!({"penstock.dev/expose": "true"});
        })
        .unwrap();
    let annotation =
        || cluster.service("old").unwrap()["metadata"]["annotations"]["penstock.dev/vip"].as_str().map(str::to_owned);
    soon(&cluster, "the annotation", || annotation().is_some());
    let vip = annotation().unwrap();
    answers(&cluster, format!("{vip}:80").parse().unwrap(), 30);
    let listed = cluster.penstock(&["why"]).unwrap();
    let line = listed.lines().find(|line| line.starts_with("default/old")).expect("a line");
    assert!(line.contains("exposed") && line.contains(&vip), "{listed}");
    assert!(cluster.penstock(&["why", "old"]).unwrap().contains("default/old is served in mode nat."));
    cluster.finish().unwrap();
}

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
            let length = self.socket.recv(&mut buffer).ok()?;
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
        let rolled = AtomicBool::new(false);
        let tally = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut sum = Tally::default();
                while !rolled.load(Ordering::Relaxed) {
                    let volley = Volley { concurrency: 8, timeout: SOON, ..Volley::new(target, 100) };
                    sum.merge(volley.run(cluster.client(), |_| {}));
                }
                sum
            });
            for (position, node) in [(0, "node2"), (1, "node0")] {
                let old = std::mem::replace(&mut pods[position], Pod::starting(&format!("new{position}"), node));
                cluster.pods(name, &[&pods[..], std::slice::from_ref(&old)].concat()).unwrap();
                pods[position] = Pod::ready(&pods[position].name, node);
                cluster.pods(name, &[&pods[..], std::slice::from_ref(&old)].concat()).unwrap();
                // A new pod is known to be ready before an old one is asked to go, which then takes its time.
                std::thread::sleep(Duration::from_millis(400));
                cluster.pods(name, &[&pods[..], &[Pod::terminating(&old.name, &old.node)]].concat()).unwrap();
                std::thread::sleep(Duration::from_millis(600));
                cluster.pods(name, &pods).unwrap();
            }
            std::thread::sleep(Duration::from_millis(200));
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

/// "should preserve source IP" of `externalTrafficPolicy: Local`: in mode `dnat` the pod sees the client, in `nat` it does
/// not and the condition says so; switched live.
#[test]
fn privileged_local_in_mode_dnat_keeps_the_clients_address() {
    if !privilege::require("privileged_local_in_mode_dnat_keeps_the_clients_address") {
        return;
    }
    let cluster = cluster();
    cluster.pods("web", &[Pod::ready("a", "node0"), Pod::ready("b", "node2")]).unwrap();
    cluster
        .expose("web", &[(80, TCP)], |s| {
            local(s);
            s["metadata"]["annotations"] = json!({"penstock.dev/mode": "dnat"});
        })
        .unwrap();
    let target = SocketAddr::new(cluster.address("web").unwrap(), 80);
    let client = cluster.lab.clients[0].addr.v4.to_string();
    let seen = || http::get_text(cluster.client(), target, "/").unwrap_or_default();
    for _ in 0..20 {
        let seen = seen();
        assert!(seen.contains(&format!("sees {client}:")), "{seen}");
    }
    assert_eq!(nodes_of(&answers(&cluster, target, 60)), ["node0", "node2"]);
    let serving = || cluster.condition("web", "Serving").unwrap_or_default().1;
    assert_eq!(serving(), "Serving");
    cluster.edit("web", |s| s["metadata"]["annotations"] = json!({"penstock.dev/mode": "nat"})).unwrap();
    soon(&cluster, "the condition", || serving() == "ServingSourceNotPreserved");
    soon(&cluster, "the SNAT address", || seen().contains(&plan::snat().v4.to_string()));
    assert_eq!(cluster.ingress("web"), [target.ip()]);
    cluster.finish().unwrap();
}

/// Mode `dsr`: no node port is needed, the status says `ipMode: VIP`, kube-proxy takes the packets for its own, and the
/// pod sees the client.
#[test]
fn privileged_dsr_needs_no_node_port_and_keeps_the_clients_address() {
    if !privilege::require("privileged_dsr_needs_no_node_port_and_keeps_the_clients_address") {
        return;
    }
    let cluster = Cluster::start(Lab::builder().topology(Topology::OneArm), "").expect("a cluster in the lab");
    cluster.pods("web", &[Pod::ready("a", "node0"), Pod::ready("b", "node2")]).unwrap();
    cluster
        .expose("web", &[(80, TCP)], |s| {
            local(s);
            s["metadata"]["annotations"] = json!({"penstock.dev/mode": "dsr"});
            s["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        })
        .unwrap();
    let target = SocketAddr::new(cluster.address("web").unwrap(), 80);
    let shown = cluster.service("web").unwrap();
    assert_eq!(shown["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    assert!(shown["spec"]["ports"][0]["nodePort"].is_null(), "{shown}");
    cluster.nodes_follow().unwrap();
    soon(&cluster, "an answer", || tries(cluster.client(), target));
    let client = cluster.lab.clients[0].addr.v4.to_string();
    let seen = http::get_text(cluster.client(), target, "/").unwrap();
    assert!(seen.contains(&format!("sees {client}:")), "{seen}");
    assert_eq!(nodes_of(&answers(&cluster, target, 60)), ["node0", "node2"]);
    cluster.pods("web", &[Pod::ready("b", "node2")]).unwrap();
    serving(&cluster, "web", &["node2"]);
    assert_eq!(nodes_of(&answers(&cluster, target, 20)), ["node2"]);
    cluster.finish().unwrap();
}

/// A node that is labelled, that says 503, that is dead, and one that is the box itself.
#[test]
fn privileged_nodes_leave_and_come_back() {
    if !privilege::require("privileged_nodes_leave_and_come_back") {
        return;
    }
    let cluster = cluster();
    cluster.pods("web", &everywhere("web")).unwrap();
    cluster.expose("web", &[(80, TCP)], |_| {}).unwrap();
    let target = SocketAddr::new(cluster.address("web").unwrap(), 80);
    let all = ["node0", "node1", "node2"];
    serving(&cluster, "web", &all);

    // The box among the nodes of its own cluster.
    let own = Topology::TwoArm.interfaces()[1];
    let own_address: IpAddr = plan::NODE_NET.host(plan::BOX_HOST).v4.into();
    assert!(cluster.lab.the_box.sh(&format!("ip address show {own}")).unwrap().contains(&own_address.to_string()));
    cluster.put(&kubelab::node("the-box", &[own_address])).unwrap();
    soon(&cluster, "the box leaves itself out", || {
        cluster
            .penstock(&["why", "web"])
            .unwrap()
            .lines()
            .any(|l| l.starts_with("the-box") && l.contains("own address"))
    });
    answers(&cluster, target, 60);
    serving(&cluster, "web", &all);

    let hold = Hold::open(cluster.client(), target, 60).unwrap();
    let healthz = |answer: Value| {
        cluster.edit_node("node1", |n| n["metadata"]["annotations"] = json!({HEALTHZ_ANNOTATION: answer})).unwrap();
        cluster.nodes_follow().unwrap();
    };
    // kube-proxy says that the node is being removed: no new flows, the old ones go on.
    healthz(json!("503"));
    serving(&cluster, "web", &["node0", "node2"]);
    assert_eq!(nodes_of(&answers(&cluster, target, 60)), ["node0", "node2"]);
    assert!(hold.ask_all(SOON).unwrap().iter().all(|h| h.outcome.is_ok()));
    let why = cluster.penstock(&["why", "web"]).unwrap();
    assert!(why.lines().any(|l| l.starts_with("node1") && l.contains("503")), "{why}");
    healthz(Value::Null);
    serving(&cluster, "web", &all);
    healthz(json!("off"));
    serving(&cluster, "web", &["node0", "node2"]);
    healthz(Value::Null);
    serving(&cluster, "web", &all);
    drop(hold);

    let hold = Hold::open(cluster.client(), target, 60).unwrap();
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    cluster.edit_node("node2", |n| n["metadata"]["labels"] = json!({label: ""})).unwrap();
    serving(&cluster, "web", &["node0", "node1"]);
    assert_eq!(nodes_of(&answers(&cluster, target, 60)), ["node0", "node1"]);
    assert!(hold.ask_all(SOON).unwrap().iter().all(|h| h.outcome.is_ok()), "its flows may end in their own time");
    drop(hold);
    cluster.edit_node("node2", |n| n["metadata"]["labels"] = json!({label: "false"})).unwrap();
    serving(&cluster, "web", &all);
    cluster.finish().unwrap();
}

/// Whoever of the three is away, clients notice nothing; what was missed meanwhile is made up for.
#[test]
fn privileged_control_api_server_and_dataplane_come_and_go() {
    if !privilege::require("privileged_control_api_server_and_dataplane_come_and_go") {
        return;
    }
    let mut cluster = cluster();
    cluster.pods("web", &everywhere("web")).unwrap();
    cluster.expose("web", &[(80, TCP)], |_| {}).unwrap();
    let target = SocketAddr::new(cluster.address("web").unwrap(), 80);

    cluster.control.kill().unwrap();
    answers(&cluster, target, 60);
    assert!(cluster.penstock(&["why", "web"]).unwrap().contains("systemctl"));
    cluster.pods("late", &everywhere("late")).unwrap();
    cluster.expose("late", &[(80, TCP)], |_| {}).unwrap();
    cluster.control.start_again().unwrap();
    let late = SocketAddr::new(cluster.address("late").unwrap(), 80);
    answers(&cluster, late, 30);
    assert_eq!(cluster.ingress("web"), [target.ip()]);

    cluster.server.stop();
    soon(&cluster, "the status says it", || {
        cluster.penstock(&["status"]).unwrap().contains("API server has been unreachable")
    });
    answers(&cluster, target, 60);
    cluster.server.resume().unwrap();
    cluster.delete("late").unwrap();
    soon(&cluster, "made up for", || cluster.service("late").is_none());
    soon(&cluster, "all is well", || !cluster.penstock(&["status"]).unwrap().contains("unreachable"));

    // An upgrade of the dataplane: what it had is on its disk.
    cluster.dataplane.stop().unwrap();
    cluster.dataplane.start_again().unwrap();
    soon(&cluster, "served again", || tries(cluster.client(), target));
    answers(&cluster, target, 60);
    cluster.edit("web", |s| s["spec"]["ports"][0]["port"] = json!(8080)).unwrap();
    let moved = SocketAddr::new(target.ip(), 8080);
    soon(&cluster, "control goes on with it", || tries(cluster.client(), moved));
    cluster.finish().unwrap();
}
