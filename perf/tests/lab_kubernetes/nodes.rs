//! Nodes, and each of the processes, away for a while.

use std::net::{IpAddr, SocketAddr};

use penstock_perf::clients::hold::Hold;
use penstock_perf::kubelab::{self, HEALTHZ_ANNOTATION};
use penstock_perf::lab::{Topology, plan};
use penstock_perf::privilege;
use serde_json::{Value, json};

use crate::{SOON, TCP, answers, cluster, everywhere, nodes_of, serving, soon, tries};

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
