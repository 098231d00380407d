//! The lab itself, with no dataplane: the box's kernel routes. What fails here is the lab's fault.

use std::net::SocketAddr;
use std::time::Duration;

use penstock_perf::clients::http::{self, Volley};
use penstock_perf::clients::sessions::Plan;
use penstock_perf::clients::udp::UdpVolley;
use penstock_perf::lab::{Lab, LabBuilder, Tags, TcpCounters, Topology};
use penstock_perf::privilege;
use penstock_perf::rig::check_resets;
use penstock_perf::servers::{NodePorts, NodeServer};

const PORT: u16 = 30080;

/// Every client reaches every node through the box's kernel, in both families.
fn routed_lab_works(builder: LabBuilder) -> Lab {
    let lab = builder.box_forwarding(true).build().expect("a lab");
    let servers = NodeServer::start_all(&lab, &NodePorts::both([PORT])).expect("node servers");
    for client in &lab.clients {
        for node in &lab.nodes {
            for v6 in [false, true] {
                let target = SocketAddr::new(node.addr.ip(v6), PORT);
                let text = http::get_text(&client.ns, target, "/").expect("an answer");
                assert_eq!(text, format!("{} sees {}", node.name, text.rsplit(' ').next().expect("words")));
                assert!(text.contains(&client.addr.ip(v6).to_string()), "{text}: not the client's address");
            }
        }
    }
    assert!(servers.iter().all(|server| server.requests() > 0));
    lab
}

#[test]
fn privileged_two_arm_routes_tcp_and_udp() {
    if !privilege::require("privileged_two_arm_routes_tcp_and_udp") {
        return;
    }
    let lab = routed_lab_works(Lab::builder().clients(2));
    println!("bring-up took {:?}", lab.bring_up());
    let client = &lab.clients[0].ns;
    for v6 in [false, true] {
        let target = SocketAddr::new(lab.nodes[1].addr.ip(v6), PORT);
        let _server = NodeServer::start(&lab.nodes[1], &NodePorts::both([PORT])).expect("a server");
        let volley = Volley::new(target, 500).run(client, |_| {});
        assert_eq!((volley.answered(), volley.failed()), (500, 0), "{volley:?}");
        assert_eq!(volley.by_node["node1"], 500);
        let datagrams = UdpVolley::new(target, 200).run(client, |_| {});
        assert_eq!((datagrams.answered(), datagrams.failed()), (400, 0), "{datagrams:?}");
        http::download(client, target, 10_000_000, Duration::from_secs(20)).expect("a download");
        http::upload(client, target, 10_000_000, Duration::from_secs(20)).expect("an upload");
    }
    check_resets(&lab, &TcpCounters::default(), 0).expect("no connection was reset");
}

#[test]
fn privileged_sessions_last_and_end_without_a_reset() {
    if !privilege::require("privileged_sessions_last_and_end_without_a_reset") {
        return;
    }
    let lab = Lab::builder().nodes(1).box_forwarding(true).build().expect("a lab");
    let _servers = NodeServer::start_all(&lab, &NodePorts::both([PORT])).expect("node servers");
    let target = SocketAddr::new(lab.nodes[0].addr.ip(false), PORT);
    let sessions = Plan::new(target, 5, Duration::from_secs(1)).start(&lab.clients[0].ns).expect("sessions");
    assert_eq!(sessions.locals.len(), 20);
    let report = sessions.finish().expect("a report");
    assert_eq!(report.completed(), 20, "{:?}", report.failures);
    check_resets(&lab, &TcpCounters::default(), 0).expect("no connection was reset");
}

#[test]
fn privileged_a_closed_port_is_a_failure_with_a_reason() {
    if !privilege::require("privileged_a_closed_port_is_a_failure_with_a_reason") {
        return;
    }
    let lab = Lab::builder().nodes(1).box_forwarding(true).build().expect("a lab");
    let target = SocketAddr::new(lab.nodes[0].addr.ip(false), PORT);
    let tally = Volley::new(target, 3).run(&lab.clients[0].ns, |_| {});
    assert_eq!(tally.failures["connecting: connection refused"], 3);
    assert_eq!(lab.resets_sent().expect("counters"), 3, "the node's refusals are counted");
}

#[test]
fn privileged_one_arm_and_router_and_single_hosts_work() {
    if !privilege::require("privileged_one_arm_and_router_and_single_hosts_work") {
        return;
    }
    drop(routed_lab_works(Lab::builder().topology(Topology::OneArm).clients(2).nodes(2)));
    drop(routed_lab_works(Lab::builder().router(true).queues(4)));
    drop(routed_lab_works(Lab::builder().nodes(1)));
}

/// The far end drops what is not tagged as it tags itself, so a box that untags with the same
/// programs is reached, and one that does not is not.
#[test]
fn privileged_tags_are_on_the_wire() {
    if !privilege::require("privileged_tags_are_on_the_wire") {
        return;
    }
    for (tags, kind) in [(Tags::Vlan, "vlan"), (Tags::QinQ, "qinq")] {
        let lab = Lab::builder().nodes(1).box_forwarding(true).client_tags(tags).build().expect("a lab");
        let _servers = NodeServer::start_all(&lab, &NodePorts::both([PORT])).expect("node servers");
        let target = SocketAddr::new(lab.nodes[0].addr.ip(false), PORT);
        let ask = |timeout| {
            let volley = Volley { timeout, ..Volley::new(target, 1) };
            volley.run(&lab.clients[0].ns, |_| {}).answered()
        };
        assert_eq!(ask(Duration::from_millis(300)), 0, "an untagged box got through a {kind} segment");

        let object = lab.dir().join("tags.bpf.o").display().to_string();
        lab.the_box.sh("tc qdisc add dev clients0 clsact").expect("clsact");
        for (hook, action) in [("egress", "push"), ("ingress", "pop")] {
            let filter = format!("tc filter add dev clients0 {hook} bpf da obj {object} sec tc/{action}_{kind}");
            lab.the_box.sh(&filter).expect("a filter");
        }
        lab.clients[0].ns.sh("ip neigh flush dev eth0").expect("a fresh start for ARP");
        assert_eq!(ask(Duration::from_secs(10)), 1, "a box that speaks {kind}");
    }
}

#[test]
fn privileged_nothing_stays_behind() {
    if !privilege::require("privileged_nothing_stays_behind") {
        return;
    }
    let lab = Lab::builder().nodes(1).build().expect("a lab");
    let (id, dir) = (lab.id().to_owned(), lab.dir());
    let mut sleeper =
        lab.the_box.spawn(std::process::Command::new("sleep").arg("600")).expect("a process in the namespace");
    assert!(namespaces().contains(&id) && dir.exists());
    drop(lab);
    assert!(!namespaces().contains(&id) && !dir.exists());
    let ended = sleeper.wait().expect("the process's end");
    assert!(!ended.success(), "killed with its namespace");
}

#[test]
fn privileged_a_panic_takes_the_lab_down() {
    if !privilege::require("privileged_a_panic_takes_the_lab_down") {
        return;
    }
    let (sender, id) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = Lab::builder().nodes(1).build().expect("a lab");
        sender.send(lab.id().to_owned()).expect("a receiver");
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(!namespaces().contains(&id.recv().expect("the lab's id")));
}

fn namespaces() -> String {
    std::fs::read_dir("/run/netns")
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned() + " ").collect())
        .unwrap_or_default()
}
