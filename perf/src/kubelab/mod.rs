//! A cluster in the lab: the test API server, control and dataplane in the box's namespace, nodes that answer on their
//! NodePorts as kube-proxy has them answer. What a person would do with kubectl is done through [`Cluster`].

mod another;
mod control;
mod proxy;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use penstock_control::crd;
use serde_json::{Value, json};

pub use self::another::AnotherBox;
pub use self::control::{Control, Place};
pub use self::proxy::{HEALTHZ_ANNOTATION, Proxies};
use crate::apiserver::{ADMIN_TOKEN, ApiError, ApiServer, Grant, Settings};
use crate::clients::http::{self, Volley};
use crate::clients::udp::UdpVolley;
use crate::clients::{Failure, Tally};
use crate::config;
use crate::dataplane::{Dataplane, program};
use crate::lab::{Lab, LabBuilder, Netns, plan};
use crate::rig::{settle, wait_for_addresses};

pub const V1: &str = "v1";
pub const SLICES: &str = "discovery.k8s.io/v1";
pub const EVENTS: &str = "events.k8s.io/v1";
pub const CLASS: &str = "penstock.dev/box";
pub const OURS: &str = "penstock.dev/v1alpha1";
/// Control may do what its manifest says, and nothing else.
const RBAC: &str = include_str!("../../../configs/kubernetes/rbac.yaml");
pub(crate) const TOKEN: &str = "control";
/// Generous: a test machine builds something else meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fields are dropped in order: processes, nodes, API server, network.
pub struct Cluster {
    pub control: Control,
    pub dataplane: Dataplane,
    pub proxies: Proxies,
    pub server: Arc<ApiServer>,
    pub lab: Lab,
}

/// An endpoint of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub node: String,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

impl Pod {
    #[must_use]
    pub fn ready(name: &str, node: &str) -> Self {
        Self { name: name.into(), node: node.into(), ready: true, serving: true, terminating: false }
    }

    /// Deleted, and still answering what it has.
    #[must_use]
    pub fn terminating(name: &str, node: &str) -> Self {
        Self { ready: false, terminating: true, ..Self::ready(name, node) }
    }

    /// Started, and not yet answering.
    #[must_use]
    pub fn starting(name: &str, node: &str) -> Self {
        Self { ready: false, serving: false, ..Self::ready(name, node) }
    }

    fn endpoint(&self, index: usize) -> Value {
        json!({"addresses": [format!("10.244.0.{}", index + 1)], "nodeName": self.node,
            "targetRef": {"kind": "Pod", "name": self.name, "namespace": "default"},
            "conditions": {"ready": self.ready, "serving": self.serving, "terminating": self.terminating}})
    }
}

impl Cluster {
    /// A pool of the lab's VIPs; nodes and control with the rights of its manifest. `kubernetes`: lines of
    /// control's `[kubernetes]` table.
    pub fn start(builder: LabBuilder, kubernetes: &str) -> Result<Self> {
        let queues = builder.queue_count();
        let lab = builder.build()?;
        let settings =
            Settings { require_token: true, bookmark_every: Duration::from_millis(500), ..Settings::default() };
        // In the box's namespace, where its thread stays; also other boxes on the nodes' segment find it there.
        let address = (plan::NODE_NET.host(plan::BOX_HOST).v4, 0).into();
        let server = Arc::new(lab.the_box.run(|| ApiServer::start_at(address, settings))?);
        furnish(&server, &lab)?;
        let proxies = Proxies::start(server.clone(), &lab.nodes)?;
        let mut config = config::base(&lab, queues);
        config.nodes.clear();
        config.sets.clear();
        let dataplane = Dataplane::start(&lab, &config)?;
        wait_for_addresses(&lab, &config).with_context(|| dataplane.log_tail())?;
        let control = Control::start(&lab, dataplane.socket(), &server.kubeconfig(TOKEN), kubernetes)?;
        Ok(Self { control, dataplane, proxies, server, lab })
    }

    #[must_use]
    pub fn client(&self) -> &Netns {
        &self.lab.clients[0].ns
    }

    // --- as with kubectl

    pub fn put(&self, object: &Value) -> Result<()> {
        answered(self.server.put(object)).map(|_| ())
    }

    /// A LoadBalancer Service of ours with these ports: `(port, "TCP")`.
    pub fn expose(&self, name: &str, ports: &[(u16, &str)], change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut service = service(name, ports);
        change(&mut service);
        self.put(&service)?;
        self.nodes_follow()
    }

    /// Nodes follow before this returns, as with all that is changed here.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        answered(self.server.edit(V1, "Service", &format!("default/{name}"), change))?;
        self.nodes_follow()
    }

    pub fn edit_node(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        answered(self.server.edit(V1, "Node", name, change))?;
        self.nodes_follow()
    }

    pub fn delete(&self, name: &str) -> Result<()> {
        answered(self.server.delete(V1, "Service", &format!("default/{name}"))).map(|_| ())
    }

    #[must_use]
    pub fn service(&self, name: &str) -> Option<Value> {
        self.server.get(V1, "Service", &format!("default/{name}"))
    }

    /// The pods of a Service, all of them; nodes follow before this returns.
    pub fn pods(&self, service: &str, pods: &[Pod]) -> Result<()> {
        let endpoints: Vec<Value> = pods.iter().enumerate().map(|(index, pod)| pod.endpoint(index)).collect();
        self.put(&json!({"apiVersion": SLICES, "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "default", "name": format!("{service}-x"),
                "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints, "ports": [{"name": "p", "port": 8080}]}))?;
        self.nodes_follow()
    }

    /// Until every node listens as the API server says.
    pub fn nodes_follow(&self) -> Result<()> {
        let revision = self.server.revision();
        self.until("the nodes follow", || Ok(self.proxies.reached() >= revision))
    }

    #[must_use]
    pub fn ingress(&self, name: &str) -> Vec<IpAddr> {
        let service = self.service(name).unwrap_or_default();
        let list = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|i| i["ip"].as_str()?.parse().ok()).collect()
    }

    /// The first address, once the Service shows one.
    pub fn address(&self, name: &str) -> Result<IpAddr> {
        self.until(&format!("an address of {name}"), || Ok(!self.ingress(name).is_empty()))?;
        self.ingress(name).first().copied().context("an address")
    }

    /// `(status, reason, message)` of one of our conditions.
    #[must_use]
    pub fn condition(&self, name: &str, kind: &str) -> Option<(String, String, String)> {
        let service = self.service(name)?;
        let wanted = format!("penstock.dev/{kind}");
        let found = service["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == *wanted)?.clone();
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// `Reason: note` of each Event of a Service, oldest first.
    #[must_use]
    pub fn events(&self, name: &str) -> Vec<String> {
        let mut events = self.server.list(EVENTS, "Event");
        events.retain(|e| e["regarding"]["name"] == name);
        events.sort_by_key(|e| e["eventTime"].as_str().unwrap_or_default().to_owned());
        let text = |e: &Value| {
            format!("{}: {}", e["reason"].as_str().unwrap_or_default(), e["note"].as_str().unwrap_or_default())
        };
        events.iter().map(text).collect()
    }

    /// The backends the dataplane gives new flows for this VIP's port, by node name; empty where it serves nothing.
    pub fn serving_nodes(&self, name: &str) -> Result<Vec<String>> {
        let prefix = format!("default/{name}:");
        let status = self.dataplane.status()?;
        let service = status.services.iter().find(|s| s.name.starts_with(&prefix));
        let active = service
            .into_iter()
            .flat_map(|s| &s.backends)
            .filter(|b| b.state == penstock_configs::desired::BackendState::Active && b.weight > 0);
        let names = active.filter_map(|b| self.lab.nodes.iter().find(|n| b.address == n.addr.ip(b.address.is_ipv6())));
        let mut names: Vec<String> = names.map(|host| host.name.clone()).collect();
        names.sort();
        Ok(names)
    }

    // --- as a client

    /// Who answers one connection: `pod@node`.
    pub fn ask(&self, target: SocketAddr) -> Result<String, Failure> {
        let text = http::get_text(self.client(), target, "/")?;
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }

    pub fn volley(&self, target: SocketAddr, connections: u64) -> Tally {
        Volley::new(target, connections).run(self.client(), |_| {})
    }

    pub fn udp(&self, target: SocketAddr, flows: u64) -> Tally {
        UdpVolley::new(target, flows).run(self.client(), |_| {})
    }

    /// Whether nobody answers there any more.
    #[must_use]
    pub fn silent(&self, target: SocketAddr) -> bool {
        let volley = Volley { timeout: Duration::from_millis(500), ..Volley::new(target, 1) };
        volley.run(self.client(), |_| {}).answered() == 0
    }

    /// For kubectl inside the box's namespace, with every right.
    pub fn admin_kubeconfig(&self) -> Result<PathBuf> {
        let path = self.lab.path("admin.yaml")?;
        std::fs::write(&path, self.server.kubeconfig(ADMIN_TOKEN))?;
        Ok(path)
    }

    /// The operator's CLI on this box: what it prints, well or badly ended.
    pub fn penstock(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("penstock")?);
        command.arg("--socket").arg(self.dataplane.socket()).args(arguments).env("COLUMNS", "160");
        let output = self.lab.the_box.output(&mut command)?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    pub fn until(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is()? {
            if Instant::now() > deadline {
                bail!("waited in vain: {what}\n{}\n{}", self.control.log_tail(), self.dataplane.log_tail());
            }
            std::thread::sleep(Duration::from_millis(15));
        }
        Ok(())
    }

    /// Ends both processes cleanly; no frame is lost.
    pub fn finish(mut self) -> Result<()> {
        self.control.stop()?;
        settle(&self.dataplane)?;
        let status = self.dataplane.stop()?;
        ensure!(status.success(), "it ended with {status}\n{}", self.dataplane.log_tail());
        Ok(())
    }
}

fn furnish(server: &ApiServer, lab: &Lab) -> Result<()> {
    let put = |object: &Value| answered(server.put(object)).map(|_| ());
    admit_control(server)?;
    for definition in crd::definitions() {
        put(&serde_json::to_value(definition)?)?;
    }
    let (first, last) = (plan::vip(0), plan::vip(plan::MAX_HOSTS - 1));
    let addresses = [false, true].map(|v6| format!("{}-{}", first.ip(v6), last.ip(v6)));
    put(&json!({"apiVersion": OURS, "kind": "VipPool", "metadata": {"name": "lab"},
        "spec": {"addresses": addresses}}))?;
    for host in &lab.nodes {
        put(&node(&host.name, &[host.addr.ip(false), host.addr.ip(true)]))?;
    }
    Ok(())
}

/// Control's namespace and rights.
pub(crate) fn admit_control(server: &ApiServer) -> Result<()> {
    answered(server.put(&json!({"apiVersion": V1, "kind": "Namespace", "metadata": {"name": "penstock-system"}})))?;
    let grants = Grant::from_manifest(RBAC).map_err(|error| anyhow::anyhow!("rbac.yaml: {error}"))?;
    server.add_user(TOKEN, "system:serviceaccount:penstock-system:penstock-control", Some(grants));
    Ok(())
}

#[must_use]
pub fn node(name: &str, addresses: &[IpAddr]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    json!({"apiVersion": V1, "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]}})
}

#[must_use]
pub fn service(name: &str, ports: &[(u16, &str)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(port, protocol)| {
            let name = format!("p{port}-{}", protocol.to_lowercase());
            json!({"name": name, "port": port, "protocol": protocol, "targetPort": 8080})
        })
        .collect();
    json!({"apiVersion": V1, "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": CLASS, "selector": {"app": name}, "ports": ports}})
}

fn answered<T>(answer: Result<T, ApiError>) -> Result<T> {
    answer.map_err(|error| anyhow::anyhow!("the API server refused: {error:?}"))
}
