//! Session affinity as kernel clients see it: one node per client over two workers, two TCP ports and UDP,
//! while nodes come and go and after the dataplane's death.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use penstock_configs::desired::{Affinity, BackendSet, Protocol, Scheduler};
use penstock_configs::file::ConfigFile;
use penstock_configs::status::FlowCounters;
use penstock_perf::clients::{run_here, uninterrupted};
use penstock_perf::config::{self, NODE_PORT};
use penstock_perf::lab::{Lab, Netns, plan};
use penstock_perf::privilege;
use penstock_perf::rig::{Rig, source};
use penstock_perf::servers::{NodePorts, NodeServer};

const PATIENCE: Duration = Duration::from_secs(10);
/// The group's second TCP port, on node ports of its own.
const ALT_PORT: u16 = 81;
const ALT_NODE_PORT: u16 = NODE_PORT + 1;
/// Clients beside the lab's own.
const CLIENTS: u16 = 40;

/// In turn, so that who does not stick is elsewhere with the next connection.
fn sticky(config: &mut ConfigFile) {
    let backends = config.nodes.iter().map(|node| config::backend(&node.name, ALT_NODE_PORT)).collect();
    config.sets.push(BackendSet { name: "alt".into(), backends });
    for v6 in [false, true] {
        let mut alt = config::service(if v6 { "alt6" } else { "alt" }, plan::vip(0).ip(v6), ALT_PORT, Protocol::Tcp);
        alt.set = Some("alt".into());
        config.services.push(alt);
    }
    for service in &mut config.services {
        service.scheduler = Scheduler::Rr;
        service.affinity = Some(Affinity { group: Some("shop".into()), ..Affinity::client_ip() });
    }
}

fn rig() -> Rig {
    let mut rig = Rig::start(Lab::builder(), sticky).expect("a lab with a dataplane");
    let servers = NodeServer::start_all(&rig.lab, &NodePorts::both([ALT_NODE_PORT])).expect("servers");
    rig.servers.extend(servers);
    assert_eq!(rig.dataplane.status().expect("a status").workers.len(), 2);
    rig.add_sources(CLIENTS).expect("addresses");
    rig
}

/// A connection from this address, answered; and the node that answered.
fn connect(ns: &Netns, from: IpAddr, to: SocketAddr) -> (TcpStream, String) {
    ns.run(|| {
        let open = async {
            let socket = if from.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
            let socket = socket.expect("a socket");
            socket.bind(SocketAddr::new(from, 0)).expect("an address of ours");
            let stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await.expect("in time").expect("an answer");
            stream.into_std().expect("a socket")
        };
        let mut stream = run_here(open);
        stream.set_nonblocking(false).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: vip\r\n\r\n").expect("sent");
        let mut answer = Vec::new();
        let mut buffer = [0; 1024];
        while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            let length = uninterrupted(|| stream.read(&mut buffer)).expect("an answer");
            assert!(length > 0, "an end instead of an answer");
            answer.extend(&buffer[..length]);
        }
        let head = String::from_utf8_lossy(&answer).to_lowercase();
        let node =
            head.lines().find_map(|line| line.strip_prefix("x-node: ")).expect("a node's name").trim().to_owned();
        (stream, node)
    })
}

fn ask_tcp(ns: &Netns, from: IpAddr, to: SocketAddr) -> String {
    connect(ns, from, to).1
}

fn ask_udp(ns: &Netns, from: IpAddr, to: SocketAddr) -> String {
    ns.run(|| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).expect("an address of ours");
        socket.connect(to).expect("a route");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        socket.send(b"who?").expect("sent");
        let mut answer = [0; 256];
        let length = uninterrupted(|| socket.recv(&mut answer)).expect("an answer");
        String::from_utf8_lossy(&answer[..length]).split(' ').next().unwrap_or_default().to_owned()
    })
}

/// The node that all of these new flows of one client go to.
#[track_caller]
fn only_node(rig: &Rig, from: IpAddr, flows: usize) -> String {
    let web = rig.vip(from.is_ipv6());
    let alt = SocketAddr::new(web.ip(), ALT_PORT);
    let mut nodes: BTreeMap<String, usize> = BTreeMap::new();
    for flow in 0..flows {
        let node = match flow % 4 {
            0 => ask_udp(rig.client(), from, web),
            1 => ask_tcp(rig.client(), from, alt),
            _ => ask_tcp(rig.client(), from, web),
        };
        *nodes.entry(node).or_default() += 1;
    }
    assert_eq!(nodes.len(), 1, "{from} goes to several nodes: {nodes:?}");
    nodes.into_keys().next().expect("one")
}

#[test]
fn privileged_affinity_holds_over_workers_ports_and_protocols() {
    if !privilege::require("privileged_affinity_holds_over_workers_ports_and_protocols") {
        return;
    }
    let rig = rig();
    for v6 in [false, true] {
        only_node(&rig, source(0, v6), 200);
        let nodes: BTreeSet<String> = (1..CLIENTS).map(|n| only_node(&rig, source(n, v6), 4)).collect();
        assert_eq!(nodes.len(), 3, "clients do not spread: {nodes:?}");
    }
    let sum = |pick: fn(&FlowCounters) -> u64| -> u64 {
        let counters = rig.settle().expect("a balanced ledger");
        counters.workers.iter().map(|worker| pick(&worker.flows)).sum()
    };
    assert!(sum(|flows| flows.affinity_asked) > 100, "hardly anybody was asked");
    // Upkeep counts the clients: a moment after the last one came.
    let deadline = Instant::now() + PATIENCE;
    while sum(|flows| flows.affinity) != 2 * u64::from(CLIENTS) {
        assert!(Instant::now() < deadline, "{} clients are remembered", sum(|flows| flows.affinity));
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = rig.dataplane.status().expect("a status");
    assert!(status.services.iter().all(|service| service.affinity == Some(10_800)));
    rig.finish().expect("a clean end");
}

/// Without it the same clients go everywhere, so what the other test shows is not chance.
#[test]
fn privileged_affinity_switched_live() {
    if !privilege::require("privileged_affinity_switched_live") {
        return;
    }
    let mut rig = rig();
    let (from, web) = (source(0, false), rig.vip(false));
    let stuck = only_node(&rig, from, 20);
    let held: Vec<(TcpStream, String)> = (0..10).map(|_| connect(rig.client(), from, web)).collect();
    let off = |config: &mut ConfigFile| config.services.iter_mut().for_each(|service| service.affinity = None);
    rig.reconfigure(off).expect("a reload");
    let loose: BTreeSet<String> = (0..12).map(|_| ask_tcp(rig.client(), from, web)).collect();
    assert_eq!(loose.len(), 3, "{loose:?}");
    // Connections of before go on.
    for (mut stream, node) in held {
        assert_eq!(node, stuck);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: vip\r\nconnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains(&stuck), "{answer}");
    }
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_affinity_when_nodes_go_and_come() {
    if !privilege::require("privileged_affinity_when_nodes_go_and_come") {
        return;
    }
    let mut rig = rig();
    for v6 in [false, true] {
        let first: Vec<String> = (0..12).map(|n| only_node(&rig, source(n, v6), 4)).collect();
        let gone = first[0].clone();
        let whole = rig.config.clone();
        rig.reconfigure(|config| config::without_node(config, &gone)).expect("a reload");
        let second: Vec<String> = (0..12).map(|n| only_node(&rig, source(n, v6), 4)).collect();
        for (before, after) in first.iter().zip(&second) {
            assert!(*after != gone && (*before == gone || before == after), "{before} became {after}");
        }
        rig.reconfigure(|config| *config = whole).expect("a reload");
        let third: Vec<String> = (0..12).map(|n| only_node(&rig, source(n, v6), 4)).collect();
        assert_eq!(second, third, "nobody goes back");
    }
    rig.settle().expect("a balanced ledger");
    rig.stop().expect("a clean stop");
}

/// What is known of clients dies with the process, but their flows do not, and these tell.
#[test]
fn privileged_affinity_is_learnt_again_after_kill_9() {
    if !privilege::require("privileged_affinity_is_learnt_again_after_kill_9") {
        return;
    }
    let mut rig = rig();
    let held: Vec<(TcpStream, String)> =
        (0..CLIENTS).map(|n| connect(rig.client(), source(n, n % 2 == 1), rig.vip(n % 2 == 1))).collect();
    // From now on one node per VIP for whoever is not known.
    rig.reconfigure(|config| config.services.iter_mut().for_each(|service| service.scheduler = Scheduler::Dh))
        .expect("a reload");
    rig.dataplane.kill().expect("a process to kill");
    rig.dataplane.start_again().expect("a second start");
    for (n, (_, node)) in (0..CLIENTS).zip(&held) {
        assert_eq!(only_node(&rig, source(n, n % 2 == 1), 4), *node, "client {n}");
    }
    drop(held);
    rig.settle().expect("a balanced ledger");
    rig.stop().expect("a clean stop");
}
