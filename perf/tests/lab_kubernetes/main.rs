//! The whole path of a Service in a lab: API server, control and dataplane processes, nodes that answer as kube-proxy
//! has them answer. The scenarios are upstream's e2e tests of LoadBalancer Services, at the box's side of the node.

mod affinity;
mod boxes;
mod modes;
mod nodes;
mod pods;
#[path = "../raw_sctp/mod.rs"]
mod raw_sctp;
mod sctp;
mod services;

use std::net::SocketAddr;
use std::time::Duration;

use penstock_perf::clients::Tally;
use penstock_perf::clients::http::Volley;
use penstock_perf::kubelab::{Cluster, Pod};
use penstock_perf::lab::{Lab, Netns};
use penstock_perf::rig::workers_follow;
use serde_json::{Value, json};

const TCP: &str = "TCP";
const UDP: &str = "UDP";
/// Longer than an answer takes through a busy machine.
const SOON: Duration = Duration::from_secs(20);

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

/// What status or one connection showed, every worker runs from then on.
#[track_caller]
fn soon(cluster: &Cluster, what: &str, mut is: impl FnMut() -> bool) {
    cluster.until(what, || Ok(is())).unwrap();
    workers_follow(&cluster.dataplane).unwrap();
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
