//! Modes that keep the client's address.

use std::net::SocketAddr;

use penstock_perf::clients::http;
use penstock_perf::kubelab::{Cluster, Pod};
use penstock_perf::lab::{Lab, Topology, plan};
use penstock_perf::privilege;
use serde_json::json;

use crate::{TCP, answers, cluster, local, nodes_of, serving, soon, tries};

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
    // A node takes flows once its way back is proved.
    let both = ["node0", "node2"];
    soon(&cluster, "both take flows", || nodes_of(&cluster.volley(target, 60)) == both);
    let seen = || http::get_text(cluster.client(), target, "/").unwrap_or_default();
    for _ in 0..20 {
        let seen = seen();
        assert!(seen.contains(&format!("sees {client}:")), "{seen}");
    }
    assert_eq!(nodes_of(&answers(&cluster, target, 60)), both);
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
