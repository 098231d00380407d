//! The whole path of a Service in a lab: API server, control and dataplane processes, nodes that answer as kube-proxy
//! has them answer. The scenarios are upstream's e2e tests of LoadBalancer Services, at the box's side of the node.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_perf::clients::Tally;
use penstock_perf::clients::hold::Hold;
use penstock_perf::kubelab::{Cluster, HEALTHZ_ANNOTATION, Pod};
use penstock_perf::lab::Lab;
use penstock_perf::privilege;
use penstock_perf::rig::meanwhile;
use serde_json::{Value, json};

const TCP: &str = "TCP";
const UDP: &str = "UDP";

fn cluster() -> Cluster {
    Cluster::start(Lab::builder().clients(2), "").expect("a cluster in the lab")
}

/// One ready pod per node.
fn everywhere(service: &str) -> Vec<Pod> {
    (0..3).map(|n| Pod::ready(&format!("{service}-{n}"), &format!("node{n}"))).collect()
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn local(service: &mut Value) {
    service["spec"]["externalTrafficPolicy"] = json!("Local");
}

fn all_answered(tally: &Tally, count: u64) -> Result<()> {
    ensure!((tally.answered(), tally.failed()) == (count, 0), "{tally:?}");
    Ok(())
}

/// "should be able to change the type and ports of a TCP service", and of a UDP service, both at once and on the same
/// port number; finalizer and refusal on the way.
fn type_and_port_changes(cluster: &Cluster) -> Result<()> {
    cluster.pods("dns", &everywhere("dns"))?;
    cluster.expose("dns", &[(53, TCP), (53, UDP)], |s| s["spec"]["type"] = json!("NodePort"))?;
    Ok(())
}

#[test]
fn privileged_tcp_and_udp_services_change_type_and_ports() {
    if !privilege::require("privileged_tcp_and_udp_services_change_type_and_ports") {
        return;
    }
    let cluster = cluster();
    cluster.pods("dns", &everywhere("dns")).unwrap();
    cluster.expose("dns", &[(53, TCP), (53, UDP)], |_| {}).unwrap();
    let vip = cluster.address("dns").unwrap();
    all_answered(&cluster.volley(at(vip, 53), 60), 60).unwrap();
    all_answered(&cluster.udp(at(vip, 53), 30), 60).unwrap();
    cluster.finish().unwrap();
}
