//! The box in front of a cluster: a Service of type LoadBalancer is created, gets its address, answers, scales, is
//! deleted. API server, control and dataplane are real processes or servers; kubelets are played by the demo.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::DemoArgs;
use super::narrator::Narrator;
use super::report;
use crate::clients::Tally;
use crate::kubelab::{Cluster, EVENTS, Pod, SLICES, V1};
use crate::lab::Lab;

const QUEUES: u16 = 2;
const NAME: &str = "web";
const OURS: &str = "penstock.dev/v1alpha1";
/// One after another, to show who answers.
const SHOWN: usize = 3;

pub fn run(args: &DemoArgs) -> Result<()> {
    println!("\n\nThe same box in front of Kubernetes: a Service asks for an address and gets one.");
    let narrator = Narrator::default();
    let cluster = bring_up(&narrator)?;

    let target = create(&narrator, &cluster)?;
    let one = answers(&narrator, &cluster, target, args.connections / 6)?;
    let three = scale(&narrator, &cluster, target, args.connections / 2)?;
    look_around(&cluster, target, args.keep)?;
    delete(&narrator, &cluster, target)?;
    let failed = one.failed() + three.failed();
    cluster.finish()?;
    ensure!(failed == 0, "{failed} connections failed: {:?} {:?}", one.failures, three.failures);
    Ok(())
}

fn bring_up(narrator: &Narrator) -> Result<Cluster> {
    narrator.step(
        "The cluster",
        "An API server over HTTP, made for the lab; penstock-control and penstock-dataplane as on a box of yours;
         three nodes whose NodePorts answer as kube-proxy has them answer.",
    );
    let started = Instant::now();
    let cluster = Cluster::start(Lab::builder().queues(QUEUES), "")?;
    cluster.until("control leads", || Ok(cluster.penstock(&["status"])?.contains("this box leads")))?;
    typed(narrator, "kubectl get nodes", &cluster.server.shown(V1, "Node", |_| true));
    typed(narrator, "kubectl get vippools", &cluster.server.shown(OURS, "VipPool", |_| true));
    println!();
    narrator.say(format!("up after {} ms", started.elapsed().as_millis()));
    Ok(cluster)
}

fn create(narrator: &Narrator, cluster: &Cluster) -> Result<SocketAddr> {
    narrator.step(
        "A Service of type LoadBalancer",
        "externalTrafficPolicy: Local, so that only nodes with a pod get connections; one pod, on node0.",
    );
    cluster.pods(NAME, &pods(1))?;
    let applied = Instant::now();
    cluster.expose(NAME, &[(80, "TCP")], |service| service["spec"]["externalTrafficPolicy"] = json!("Local"))?;
    typed(narrator, "kubectl apply -f web.yaml; kubectl get service web", &services(cluster));
    let address = cluster.address(NAME)?;
    let took = applied.elapsed().as_millis();
    typed(narrator, &format!("kubectl get service web        # {took} ms later"), &services(cluster));
    Ok(SocketAddr::new(address, 80))
}

fn answers(narrator: &Narrator, cluster: &Cluster, target: SocketAddr, count: u64) -> Result<Tally> {
    narrator.step("It answers", "Each curl is a connection of its own, through the box's AF_XDP workers.");
    println!();
    for _ in 0..SHOWN {
        let name = cluster.ask(target).map_err(|failure| anyhow::anyhow!("{failure}"))?;
        narrator.say(format!("$ curl http://{}/      {name}", target.ip()));
    }
    let tally = volley(narrator, cluster, target, count.max(1));
    cluster.until("the answer", || Ok(cluster.penstock(&["why", NAME])?.contains("is served")))?;
    typed(narrator, "penstock why web", &cluster.penstock(&["why", NAME])?);
    Ok(tally)
}

fn scale(narrator: &Narrator, cluster: &Cluster, target: SocketAddr, count: u64) -> Result<Tally> {
    narrator.step(
        "It scales",
        "Two more pods, on the other nodes: their EndpointSlice changes, and the box follows. The address stays.",
    );
    let scaled = Instant::now();
    cluster.pods(NAME, &pods(3))?;
    cluster.until("three nodes", || Ok(cluster.serving_nodes(NAME)?.len() == 3))?;
    let took = scaled.elapsed().as_millis();
    typed(
        narrator,
        &format!(
            "kubectl scale deployment web --replicas=3; kubectl get endpointslices        # on the box after {took} ms"
        ),
        &cluster.server.shown(SLICES, "EndpointSlice", |_| true),
    );
    let tally = volley(narrator, cluster, target, count.max(3));
    for (name, answered) in &tally.by_node {
        narrator.say(format!("{name:<28} {answered}"));
    }
    ensure!(tally.by_node.len() == 3, "not every pod got connections: {tally:?}");
    Ok(tally)
}

fn delete(narrator: &Narrator, cluster: &Cluster, target: SocketAddr) -> Result<()> {
    narrator.step(
        "It is deleted",
        "The finalizer holds it until every worker has let go of the address; then the address is free again.",
    );
    let deleted = Instant::now();
    cluster.delete(NAME)?;
    cluster.until("the Service is gone", || Ok(cluster.service(NAME).is_none()))?;
    let took = deleted.elapsed().as_millis();
    let about = |event: &Value| event["regarding"]["name"] == NAME;
    cluster
        .until("the last Event", || Ok(cluster.events(NAME).iter().any(|e| e.starts_with("DeletedLoadBalancer"))))?;
    typed(
        narrator,
        &format!("kubectl delete service web        # gone after {took} ms"),
        &cluster.server.shown(EVENTS, "Event", about),
    );
    cluster.until("the address is free", || Ok(cluster.server.list(OURS, "VipAllocation").is_empty()))?;
    typed(narrator, "kubectl get vippools", &cluster.server.shown(OURS, "VipPool", |_| true));
    let silent = cluster.silent(target);
    println!();
    narrator.say(format!("$ curl http://{}/      {}", target.ip(), if silent { "no answer" } else { "still answers" }));
    ensure!(silent, "{target} still answers");
    Ok(())
}

/// The first on node0, the second on node1, ...
fn pods(count: usize) -> Vec<Pod> {
    (0..count).map(|n| Pod::ready(&format!("{NAME}-{n}"), &format!("node{n}"))).collect()
}

fn services(cluster: &Cluster) -> String {
    cluster.server.shown(V1, "Service", |service| service["metadata"]["name"] == NAME)
}

fn volley(narrator: &Narrator, cluster: &Cluster, target: SocketAddr, count: u64) -> Tally {
    println!();
    let progress = narrator.progress("connections", count);
    let tally = cluster.volley(target, count);
    progress.done(&report::outcome(&tally, "connections", "second"));
    tally
}

/// A command and what it prints.
fn typed(narrator: &Narrator, command: &str, output: &str) {
    println!();
    narrator.say(format!("$ {command}"));
    for line in output.lines() {
        if line.is_empty() { println!() } else { narrator.say(line) }
    }
}

fn look_around(cluster: &Cluster, target: SocketAddr, keep: bool) -> Result<()> {
    if !keep {
        return Ok(());
    }
    let id = cluster.lab.id();
    let kubeconfig = cluster.admin_kubeconfig().context("a kubeconfig to look around with")?;
    let penstock =
        crate::dataplane::program("penstock").map_or_else(|_| "penstock".into(), |p| p.display().to_string());
    let socket = cluster.dataplane.socket().display();
    println!("\nIt stays up. In another terminal, as root:");
    println!("  ip netns exec {id}-client0 curl http://{}/", target.ip());
    println!("  ip netns exec {id}-box kubectl --kubeconfig {} get services", kubeconfig.display());
    println!("  {penstock} --socket {socket} status");
    println!("  {penstock} --socket {socket} why");
    println!("Enter takes the Service and then everything down; Ctrl-C everything at once.");
    super::wait_for_enter()
}
