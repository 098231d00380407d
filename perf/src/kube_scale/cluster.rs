//! A large cluster as its API server knows it, and a lab whose one node answers for all of its nodes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::get;
use penstock_control::crd;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::ScaleArgs;
use crate::apiserver::{ApiError, ApiServer, Settings};
use crate::clients::run_here;
use crate::demo::narrator::Narrator;
use crate::kubelab::{self, OURS, SLICES, TOKEN, V1};
use crate::lab::{Lab, Netns};

/// The nodes' addresses: 10.64.0.0/16, all behind the lab's one node.
const NODES: &str = "10.64.0.0/16";
/// RFC 2544's block for benchmarks.
const VIPS: &str = "198.18.0.0/15";
/// kube-proxy's healthz.
const HEALTHZ: u16 = 10_256;

pub(super) fn lab() -> Result<Lab> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = &lab.nodes[0];
    // Every address of the block is the node's own; the box finds it there.
    node.ns.sh(&format!("ip route add local {NODES} dev lo"))?;
    lab.the_box.sh(&format!("ip route add {NODES} via {}", node.addr.v4))?;
    node.ns.thread("healthz", healthz)?;
    Ok(lab)
}

/// "200" to whoever asks, on connections that stay as kube-proxy's do, until the process ends.
fn healthz() {
    let serve = async {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HEALTHZ)).await?;
        axum::serve(listener, Router::new().route("/healthz", get(|| async { "{}" }))).await
    };
    if let Err(error) = run_here(serve) {
        eprintln!("the node's healthz ended: {error}");
    }
}

pub(super) fn server(ns: &Netns, args: &ScaleArgs, narrator: &Narrator) -> Result<Arc<ApiServer>> {
    let settings = Settings { require_token: true, bookmark_every: Duration::from_secs(60), ..Settings::default() };
    let server = Arc::new(ns.run(|| ApiServer::start(settings))?);
    kubelab::admit_control(&server)?;
    for definition in crd::definitions() {
        answered(server.put(&serde_json::to_value(definition)?))?;
    }
    answered(server.put(&json!({"apiVersion": OURS, "kind": "VipPool", "metadata": {"name": "big"},
        "spec": {"addresses": [VIPS], "avoidBuggyIps": true}})))?;
    for index in 0..args.nodes {
        answered(server.put(&kubelab::node(&node_name(index), &[node_address(index)])))?;
    }
    let progress = narrator.progress("Services and their EndpointSlices", args.services as u64);
    for index in 0..args.services {
        let service = service(index, index < args.local);
        answered(server.put_raw(&service))?;
        answered(server.put_raw(&slice(index, args.nodes)))?;
        progress.at(index as u64 + 1);
    }
    progress.done("are there");
    Ok(server)
}

pub(super) fn node_name(index: usize) -> String {
    format!("node-{index:03}")
}

pub(super) fn service_name(index: usize) -> String {
    format!("service-{index:04}")
}

fn node_address(index: usize) -> IpAddr {
    let [high, low] = u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes();
    Ipv4Addr::new(10, 64, high, low).into()
}

/// As the API server would have made it, past its checks: its own range of node ports is the usual one, of 2,768, and
/// a cluster of this size has a wider one.
fn service(index: usize, local: bool) -> Value {
    let name = service_name(index);
    let mut service = kubelab::service(&name, &[(80, "TCP")]);
    let number = u16::try_from(index % 30_000).unwrap_or_default();
    service["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    service["metadata"]["labels"] = json!({"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"});
    let spec = &mut service["spec"];
    spec["ports"][0]["nodePort"] = json!(30_000 + number);
    spec["clusterIP"] = json!(format!("10.96.{}.{}", index / 250, index % 250 + 1));
    spec["clusterIPs"] = json!([spec["clusterIP"]]);
    spec["ipFamilies"] = json!(["IPv4"]);
    spec["ipFamilyPolicy"] = json!("SingleStack");
    spec["sessionAffinity"] = json!("None");
    spec["internalTrafficPolicy"] = json!("Cluster");
    spec["allocateLoadBalancerNodePorts"] = json!(true);
    spec["externalTrafficPolicy"] = json!(if local { "Local" } else { "Cluster" });
    if local {
        spec["healthCheckNodePort"] = json!(HEALTHZ);
    }
    service["status"] = json!({"loadBalancer": {}});
    service
}

/// Three pods on three nodes.
fn slice(index: usize, nodes: usize) -> Value {
    let endpoint = |pod: usize| {
        json!({"addresses": [format!("10.244.{}.{}", index % 250, pod + 1)], "nodeName": node_name((index * 7 + pod) % nodes),
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("{}-{pod}", service_name(index))}})
    };
    let endpoints: Vec<Value> = (0..3).map(endpoint).collect();
    json!({"apiVersion": SLICES, "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": format!("{}-x", service_name(index)),
            "labels": {"kubernetes.io/service-name": service_name(index)}},
        "endpoints": endpoints, "ports": [{"name": "p80-tcp", "port": 8080, "protocol": "TCP"}]})
}

/// Served and told so.
pub(super) fn is_done(service: &Value) -> bool {
    let shown = service.pointer("/status/loadBalancer/ingress/0/ip").is_some();
    let condition = |kind: &str, status: &str| {
        let list = service.pointer("/status/conditions").and_then(Value::as_array);
        list.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == status)
    };
    shown && condition("penstock.dev/Serving", "True") && condition("penstock.dev/Provisioning", "False")
}

/// A change of the object as it is stored.
pub(super) fn edit(server: &ApiServer, kind: &str, place: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut object = server.get(V1, kind, place).with_context(|| format!("{kind} {place}"))?;
    change(&mut object);
    answered(server.put_raw(&object)).map(|_| ())
}

pub(super) fn token() -> &'static str {
    TOKEN
}

fn answered<T>(answer: Result<T, ApiError>) -> Result<T> {
    answer.map_err(|error| anyhow::anyhow!("the API server refused: {error:?}"))
}
