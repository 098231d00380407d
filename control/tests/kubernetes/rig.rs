//! Control against the test API server, with the rights of the manifest, and a dataplane that only takes notes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use penstock_configs::desired::{Desired, Health};
use penstock_control::config::ControlConfig;
use penstock_control::crd;
use penstock_control::dataplane::{Dataplane, DataplaneError, Stamped};
use penstock_control::metrics::Metrics;
use penstock_control::probe;
use penstock_control::sync::{self, Query, Seams};
use penstock_perf::apiserver::{ApiServer, Grant, Settings};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Long enough for a machine that builds something else meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than such a machine stands still: nobody takes over unasked.
pub const LEASE: Duration = Duration::from_secs(8);
pub const V1: &str = "v1";
pub const OURS: &str = "penstock.dev/v1alpha1";
pub const CLASS: &str = "penstock.dev/box";

#[derive(Debug, Default)]
pub struct Notes {
    pub puts: Mutex<Vec<Desired>>,
    pub down: AtomicBool,
    /// Its process is gone.
    pub absent: AtomicBool,
    pub acks: AtomicBool,
    generation: AtomicU64,
}

impl Notes {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { acks: AtomicBool::new(true), ..Self::default() })
    }

    pub fn last(&self) -> Desired {
        self.puts.lock().unwrap().last().cloned().unwrap_or_default()
    }

    pub fn count(&self) -> usize {
        self.puts.lock().unwrap().len()
    }

    /// A dataplane that was started anew and has lost its state.
    pub fn forget(&self) {
        self.generation.store(0, Ordering::SeqCst);
    }

    pub fn vips(&self) -> Vec<String> {
        self.last().services.iter().map(|s| s.vip.to_string()).collect()
    }
}

impl Notes {
    fn is_there(&self) -> Result<(), DataplaneError> {
        if self.absent.load(Ordering::SeqCst) { Err(DataplaneError::Absent("killed".into())) } else { Ok(()) }
    }
}

impl Dataplane for Notes {
    async fn put_desired(&self, _: &str, desired: &Stamped<'_>, _: Duration) -> Result<bool, DataplaneError> {
        self.is_there()?;
        if self.down.load(Ordering::SeqCst) {
            return Err(DataplaneError::Unreachable("switched off".into()));
        }
        if let Some(held) = self.last().term
            && desired.term.is_none_or(|term| term < held)
        {
            return Err(DataplaneError::Fenced(format!("term {held} leads")));
        }
        self.generation.store(desired.generation, Ordering::SeqCst);
        let Stamped { generation, term, content } = *desired;
        self.puts.lock().unwrap().push(Desired { generation, term, ..content.clone() });
        Ok(self.acks.load(Ordering::SeqCst))
    }

    async fn generation(&self, _: &str) -> Result<Option<u64>, DataplaneError> {
        self.is_there()?;
        if self.down.load(Ordering::SeqCst) {
            return Err(DataplaneError::Unreachable("switched off".into()));
        }
        Ok(Some(self.generation.load(Ordering::SeqCst)).filter(|g| *g > 0))
    }

    async fn desired(&self, owner: &str) -> Result<Option<Desired>, DataplaneError> {
        Ok(self.generation(owner).await?.map(|_| self.last()))
    }

    async fn health(&self, _: &str) -> Result<Health, DataplaneError> {
        Ok(Health::default())
    }

    async fn put_health(&self, _: &str, _: &Health) -> Result<(), DataplaneError> {
        Ok(())
    }
}

/// A cluster with our objects, our rights, a pool and two nodes.
pub fn cluster() -> ApiServer {
    cluster_at(([127, 0, 0, 1], 0).into())
}

pub fn cluster_at(address: std::net::SocketAddr) -> ApiServer {
    let settings = Settings { require_token: true, bookmark_every: Duration::from_millis(200), ..Settings::default() };
    let server = ApiServer::start_at(address, settings).unwrap();
    server.put(&json!({"apiVersion": V1, "kind": "Namespace", "metadata": {"name": "penstock-system"}})).unwrap();
    for definition in crd::definitions() {
        server.put(&serde_json::to_value(definition).unwrap()).unwrap();
    }
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes/rbac.yaml");
    let grants = Grant::from_manifest(&std::fs::read_to_string(manifest).unwrap()).unwrap();
    server.add_user("control", "system:serviceaccount:penstock-system:penstock-control", Some(grants));
    server
        .put(&json!({"apiVersion": OURS, "kind": "VipPool", "metadata": {"name": "p"},
            "spec": {"addresses": ["203.0.113.1-203.0.113.20", "2001:db8:f::1-2001:db8:f::20"]}}))
        .unwrap();
    for (name, last) in [("a", 1), ("b", 2)] {
        server.put(&node(name, last)).unwrap();
    }
    server
}

pub fn node(name: &str, last: u8) -> Value {
    json!({"apiVersion": V1, "kind": "Node", "metadata": {"name": name}, "status": {
        "addresses": [{"type": "InternalIP", "address": format!("10.0.0.{last}")},
                      {"type": "InternalIP", "address": format!("2001:db8::{last}")}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]}})
}

pub fn service(name: &str) -> Value {
    json!({"apiVersion": V1, "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": CLASS, "selector": {"app": name},
            "ports": [{"name": "http", "port": 80}]}})
}

pub struct Control {
    pub dataplane: Arc<Notes>,
    pub queries: mpsc::Sender<Query>,
    pub metrics: Arc<Metrics>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<()>,
    // The checker's end, kept open.
    _checker: probe::CheckerSeam,
}

impl Control {
    pub async fn start(server: &ApiServer, name: &str) -> Self {
        Self::start_with(server, name, Notes::new()).await
    }

    pub async fn start_with(server: &ApiServer, name: &str, dataplane: Arc<Notes>) -> Self {
        Self::start_leased(server, name, dataplane, LEASE).await
    }

    pub async fn start_leased(server: &ApiServer, name: &str, dataplane: Arc<Notes>, lease: Duration) -> Self {
        let (duration, renew) = (lease.as_secs_f64(), lease.as_secs_f64() * 0.75);
        let election = format!("duration = {duration}\nrenew_deadline = {renew}\nretry = 0.1");
        Self::start_as(server, name, dataplane, &election).await
    }

    /// `election`: that table.
    pub async fn start_as(server: &ApiServer, name: &str, dataplane: Arc<Notes>, election: &str) -> Self {
        let text = format!(
            "version = 1\nbox = '{name}'\n[kubernetes]\n[kubernetes.timing]\ndebounce = 0.005\nstatus_grace = 2\n\
             retry = 0.05\nretry_max = 0.5\nfight_backoff = 1\nteardown_wait = 3\nwatch = 5\nstale_after = 0.5\n\
             [kubernetes.leader_election]\n{election}\n"
        );
        let config = Arc::new(ControlConfig::parse(std::path::Path::new("test.toml"), &text).unwrap());
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&server.kubeconfig("control")).unwrap();
        let mut client = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        client.read_timeout = Some(Duration::from_secs(6));
        let client = kube::Client::try_from(client).unwrap();
        let (health, checker) = probe::seam();
        let (seams, queries) = Seams::new(health);
        let metrics = seams.metrics.clone();
        let (shutdown, ending) = watch::channel(false);
        let run = sync::run(client, dataplane.clone(), config, seams, ending);
        let task = tokio::spawn(async move { run.await.unwrap() });
        Self { dataplane, queries, metrics, shutdown, task, _checker: checker }
    }

    /// As SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        self.task.await.unwrap();
    }

    /// As `kill -9`.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn notices(&self) -> Vec<String> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.queries.send(Query::Status { reply }).await.unwrap();
        answer.await.unwrap().notices
    }

    pub async fn why(&self, name: &str) -> String {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let key = penstock_control::index::ServiceKey::new("default", name);
        self.queries.send(Query::Why { key, reply }).await.unwrap();
        answer.await.unwrap().sentence
    }
}

/// Until it is so; what is waited for is named in the failure.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn get(server: &ApiServer, name: &str) -> Value {
    server.get(V1, "Service", &format!("default/{name}")).unwrap_or_default()
}

pub fn ingress(server: &ApiServer, name: &str) -> Vec<String> {
    let service = get(server, name);
    let list = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    list.iter().map(|i| i["ip"].as_str().unwrap_or_default().to_owned()).collect()
}

pub fn condition(server: &ApiServer, name: &str, kind: &str) -> String {
    let service = get(server, name);
    let list = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = list.iter().find(|c| c["type"] == kind || c["type"] == format!("penstock.dev/{kind}"));
    found.map_or(String::new(), |c| format!("{} {}", c["status"].as_str().unwrap(), c["reason"].as_str().unwrap()))
}

pub fn records(server: &ApiServer) -> Vec<String> {
    server.list(OURS, "VipAllocation").iter().map(|r| r["spec"]["address"].as_str().unwrap().to_owned()).collect()
}

pub fn events(server: &ApiServer, name: &str) -> Vec<String> {
    server
        .list("events.k8s.io/v1", "Event")
        .iter()
        .filter(|e| e["regarding"]["name"] == name)
        .map(|e| e["reason"].as_str().unwrap().to_owned())
        .collect()
}
