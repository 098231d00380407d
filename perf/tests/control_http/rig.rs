//! A cluster, control with the rights of its manifest and the health checker, and the dataplane's own API on a Unix
//! socket, over an engine in memory.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use penstock_configs::desired::{BackendHealth, BackendState, Desired, Service};
use penstock_control::client::Dataplane;
use penstock_control::config::ControlConfig;
use penstock_control::index::ServiceKey;
use penstock_control::metrics::Metrics;
use penstock_control::sync::{self, Query, Seams};
use penstock_control::{crd, health, overlay, probe};
use penstock_perf::apiserver::{ApiServer, Grant, Settings};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::api_server::ApiServer as TheBox;

/// Long enough for a machine that builds something else meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const V1: &str = "v1";
pub(crate) const OURS: &str = "penstock.dev/v1alpha1";
pub(crate) const SLICES: &str = "discovery.k8s.io/v1";
pub(crate) const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
pub(crate) const TOKEN: &str = "control";

/// No probes, unless the test brings listeners.
pub(crate) const UNPROBED: &str = "[health]\nenabled = false\n";

/// Tenths of what a box comes with.
const TIMING: &str = "debounce = 0.005\nstatus_grace = 2\nretry = 0.05\nretry_max = 0.5\nfight_backoff = 1\n\
                      teardown_wait = 4\nnode_drain = 1\nwatch = 1\nstale_after = 0.5";

pub(crate) struct World {
    pub(crate) server: ApiServer,
    pub(crate) the_box: TheBox,
}

impl World {
    /// Two nodes and a pool of four addresses of each family.
    pub(crate) fn new() -> Self {
        Self::empty().furnished()
    }

    /// kubectl sends no token without TLS: who brings none is the admin.
    pub(crate) fn for_kubectl() -> Self {
        Self::with(false).furnished()
    }

    fn furnished(self) -> Self {
        let world = self;
        world.pool("p", &["203.0.113.1-203.0.113.4", "2001:db8:f::1-2001:db8:f::4"]);
        for (name, last) in [("a", 1), ("b", 2)] {
            world.put(&node(name, &format!("10.0.0.{last}")));
        }
        world
    }

    pub(crate) fn empty() -> Self {
        Self::with(true)
    }

    fn with(require_token: bool) -> Self {
        let bookmark_every = Duration::from_millis(300);
        let server = ApiServer::start(Settings { require_token, bookmark_every, ..Settings::default() }).unwrap();
        let world = Self { server, the_box: TheBox::start() };
        world.put(&json!({"apiVersion": V1, "kind": "Namespace", "metadata": {"name": "penstock-system"}}));
        for definition in crd::definitions() {
            world.put(&serde_json::to_value(definition).unwrap());
        }
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes/rbac.yaml");
        let grants = Grant::from_manifest(&std::fs::read_to_string(manifest).unwrap()).unwrap();
        world.server.add_user(TOKEN, "system:serviceaccount:penstock-system:penstock-control", Some(grants));
        world
    }

    pub(crate) fn put(&self, object: &Value) -> Value {
        self.server.put(object).unwrap()
    }

    pub(crate) fn pool(&self, name: &str, addresses: &[&str]) {
        self.put(&json!({"apiVersion": OURS, "kind": "VipPool", "metadata": {"name": name},
            "spec": {"addresses": addresses}}));
    }

    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.server.edit(V1, "Service", &format!("default/{name}"), change).unwrap();
    }

    pub(crate) fn get(&self, name: &str) -> Value {
        self.server.get(V1, "Service", &format!("default/{name}")).unwrap_or_default()
    }

    pub(crate) fn delete(&self, name: &str) {
        self.server.delete(V1, "Service", &format!("default/{name}")).unwrap();
    }

    pub(crate) fn ingress(&self, name: &str) -> Vec<String> {
        let service = self.get(name);
        let list = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        list.iter().map(|i| i["ip"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// `True Serving`; empty where there is none.
    pub(crate) fn condition(&self, name: &str, kind: &str) -> String {
        let said = self.said(name, kind);
        said.map_or(String::new(), |c| format!("{} {}", c["status"].as_str().unwrap(), c["reason"].as_str().unwrap()))
    }

    pub(crate) fn message(&self, name: &str, kind: &str) -> String {
        self.said(name, kind).map_or(String::new(), |c| c["message"].as_str().unwrap().to_owned())
    }

    fn said(&self, name: &str, kind: &str) -> Option<Value> {
        let service = self.get(name);
        let list = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        list.into_iter().find(|c| c["type"] == format!("penstock.dev/{kind}"))
    }

    pub(crate) fn records(&self) -> Vec<String> {
        let all = self.server.list(OURS, "VipAllocation");
        all.iter().map(|r| r["spec"]["address"].as_str().unwrap().to_owned()).collect()
    }

    /// `Reason: message` of each Event on the Service.
    pub(crate) fn events(&self, name: &str) -> Vec<String> {
        let all = self.server.list("events.k8s.io/v1", "Event");
        let text = |e: &Value| format!("{}: {}", e["reason"].as_str().unwrap(), e["note"].as_str().unwrap());
        all.iter().filter(|e| e["regarding"]["name"] == name).map(text).collect()
    }

    pub(crate) fn has_event(&self, name: &str, reason: &str) -> bool {
        self.events(name).iter().any(|e| e.starts_with(reason))
    }

    /// What the workers were given of our owner.
    pub(crate) fn desired(&self) -> Desired {
        self.desired_of("kubernetes")
    }

    pub(crate) fn desired_of(&self, owner: &str) -> Desired {
        let published = self.the_box.engine.published();
        published.owners.get(owner).map(|d| Desired::clone(d)).unwrap_or_default()
    }

    /// The entries of one Service.
    pub(crate) fn programmed(&self, name: &str) -> Vec<Service> {
        let prefix = format!("default/{name}:");
        self.desired().services.into_iter().filter(|s| s.name.starts_with(&prefix)).collect()
    }

    /// Node, weight and state of the backends of a Service.
    pub(crate) fn backends(&self, name: &str) -> Vec<(String, u16, BackendState)> {
        let desired = self.desired();
        let set = self.programmed(name).first().and_then(|s| s.set.clone());
        let set = desired.sets.into_iter().find(|s| Some(&s.name) == set.as_ref());
        let backends = set.map(|s| s.backends).unwrap_or_default();
        backends.into_iter().map(|b| (b.node.unwrap_or_default(), b.weight, b.state)).collect()
    }

    pub(crate) fn nodes_of(&self, name: &str) -> Vec<String> {
        self.backends(name).into_iter().map(|(node, _, _)| node).collect()
    }

    pub(crate) fn overlay(&self) -> Vec<BackendHealth> {
        self.the_box.engine.published().health.backends
    }

    pub(crate) fn health_of(&self, address: IpAddr, port: Option<u16>) -> BackendState {
        let overlay = self.overlay();
        let found = overlay.iter().find(|b| b.address == address && b.port == port);
        found.map_or(BackendState::Active, |b| b.state)
    }

    pub(crate) fn publications(&self) -> u64 {
        self.the_box.engine.published().times
    }

    /// As [`Self::backends`], without their weights.
    pub(crate) fn states_of(&self, name: &str) -> Vec<(String, BackendState)> {
        self.backends(name).into_iter().map(|(node, _, state)| (node, state)).collect()
    }

    /// Workers that stand still acknowledge nothing.
    pub(crate) fn stick(&self) {
        self.the_box.engine.stuck.store(true, Ordering::SeqCst);
    }
}

pub(crate) fn node(name: &str, address: &str) -> Value {
    json!({"apiVersion": V1, "kind": "Node", "metadata": {"name": name}, "status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]}})
}

pub(crate) fn service(name: &str) -> Value {
    json!({"apiVersion": V1, "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "penstock.dev/box", "selector": {"app": name},
            "ports": [{"name": "http", "port": 80}]}})
}

/// A slice of a Service; `(node, ready, serving, terminating)` of each endpoint.
pub(crate) fn slice(service: &str, endpoints: &[(&str, bool, bool, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .enumerate()
        .map(|(at, (node, ready, serving, terminating))| {
            json!({"addresses": [format!("10.1.0.{at}")], "nodeName": node,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        })
        .collect();
    json!({"apiVersion": SLICES, "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": format!("{service}-x"),
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]})
}

pub(crate) struct Control {
    pub(crate) metrics: Arc<Metrics>,
    queries: mpsc::Sender<Query>,
    shutdown: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Control {
    pub(crate) async fn start(world: &World) -> Self {
        Self::start_with(world, UNPROBED).await
    }

    /// `more`: tables of the configuration beside the test's own times.
    pub(crate) async fn start_with(world: &World, more: &str) -> Self {
        Self::start_on(world, &world.the_box, more, "").await
    }

    /// `timing`: a line of that table, in the place of the test's own.
    pub(crate) async fn start_timed(world: &World, timing: &str) -> Self {
        Self::start_on(world, &world.the_box, UNPROBED, timing).await
    }

    /// For a box that is another world's.
    pub(crate) async fn start_on(world: &World, the_box: &TheBox, more: &str, timing: &str) -> Self {
        let own = timing.split(' ').next().unwrap_or_default();
        let times: Vec<&str> = TIMING.lines().filter(|line| line.split(' ').next() != Some(own)).collect();
        let text = format!(
            "version = 1\nbox = 'box-a'\n{more}\n[kubernetes.timing]\n{}\n{timing}\n\
             [kubernetes.leader_election]\nduration = 6\nrenew_deadline = 5\nretry = 0.1\n",
            times.join("\n")
        );
        let config = Arc::new(ControlConfig::parse(Path::new("test.toml"), &text).unwrap());
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&world.server.kubeconfig(TOKEN)).unwrap();
        let mut client = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        client.read_timeout = Some(Duration::from_secs(10));
        let client = kube::Client::try_from(client).unwrap();
        let dataplane = Arc::new(Dataplane::new(&the_box.socket));
        let (seam, checker) = probe::seam();
        let (shutdown, ending) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(health::run(checker, config.health.clone(), ending.clone()));
        let owner = config.kubernetes.clone().unwrap_or_default().owner;
        tasks.spawn(overlay::push(dataplane.clone(), owner, seam.view.clone(), ending.clone()));
        let (seams, queries) = Seams::new(seam);
        let metrics = seams.metrics.clone();
        let run = sync::run(client, dataplane, config, seams, ending);
        tasks.spawn(async move { run.await.unwrap() });
        Self { metrics, queries, shutdown, tasks }
    }

    /// As SIGTERM does.
    pub(crate) async fn stop(mut self) {
        self.shutdown.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// As `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    pub(crate) async fn why(&self, name: &str) -> String {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.queries.send(Query::Why { key: ServiceKey::new("default", name), reply }).await.unwrap();
        answer.await.unwrap().sentence
    }
}

/// Until it is so; what is waited for, and what is instead, is named in the failure.
pub(crate) async fn until<T: std::fmt::Debug + PartialEq>(what: &str, wanted: T, mut is: impl FnMut() -> T) {
    let start = Instant::now();
    loop {
        let now = is();
        if now == wanted {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}: {now:?} and not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// For what must *not* happen; as long as it takes to happen where it does.
pub(crate) async fn a_while() {
    tokio::time::sleep(Duration::from_millis(400)).await;
}
