//! The life of a Service against an API server that is two maps, with time as an argument: what is written, in which
//! order, and what heals when it stops in the middle.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::runtime::watcher::Event;
use penstock_configs::desired::BackendState;
use serde_json::{Value, json};

use super::controller::{Controller, Turn};
use super::driver::{Parcel, Progress};
use super::events::Note;
use super::feed::Input;
use super::job::{Done, Job, RecordJob, RecordWrite, ServiceJob, Step, status_body};
use crate::config::ControlConfig;
use crate::dataplane::Fault;
use crate::index::{self, ServiceKey};
use crate::leader::Role;
use crate::probe::{HealthView, TargetState};

struct Sim {
    controller: Controller,
    now: Instant,
    services: BTreeMap<ServiceKey, Value>,
    records: BTreeMap<IpAddr, Value>,
    version: u64,
    /// Whether the dataplane acknowledges what it is sent.
    acks: bool,
    waiting: Option<Parcel>,
    log: Vec<String>,
    notes: Vec<Note>,
    snapshots: usize,
    pool_status: Vec<(String, i64)>,
    /// The watch tells of a write before its answer comes, and the controller turns between the two.
    watch_first: bool,
    /// What those turns ordered.
    ordered: Vec<Job>,
}

const POOL: &str =
    "[[kubernetes.pool]]\nname = 'p'\naddresses = ['203.0.113.1-203.0.113.4', '2001:db8:f::1-2001:db8:f::4']";

impl Sim {
    fn new() -> Self {
        Self::with(POOL)
    }

    fn with(kubernetes: &str) -> Self {
        let text = format!("version = 1\n[kubernetes]\n{kubernetes}");
        let config = Arc::new(ControlConfig::parse(Path::new("test.toml"), &text).unwrap());
        let mut sim = Self {
            controller: Controller::new(config, Role::alone("box-a")),
            now: Instant::now(),
            services: BTreeMap::new(),
            records: BTreeMap::new(),
            version: 1000,
            acks: true,
            waiting: None,
            log: Vec::new(),
            notes: Vec::new(),
            snapshots: 0,
            pool_status: Vec::new(),
            watch_first: false,
            ordered: Vec::new(),
        };
        sim.list();
        for name in ["a", "b"] {
            let address = format!("10.0.0.{}", name.as_bytes()[0]);
            let node = json!({"metadata": {"name": name, "resourceVersion": "1"}, "status": {"addresses": [
                {"type": "InternalIP", "address": address}, {"type": "InternalIP", "address": format!("2001:db8::{name}")}]}});
            let config = sim.controller.kubernetes.clone();
            sim.feed(index::on_node(Event::Apply(serde_json::from_value(node).unwrap()), &config));
        }
        sim
    }

    /// What a fresh process sees first.
    fn list(&mut self) {
        let config = self.controller.kubernetes.clone();
        let services: Vec<Value> = self.services.values().cloned().collect();
        self.feed(index::on_service(Event::Init, &config));
        for service in services {
            self.feed(index::on_service(Event::InitApply(serde_json::from_value(service).unwrap()), &config));
        }
        self.feed(index::on_service(Event::InitDone, &config));
        let records: Vec<Value> = self.records.values().cloned().collect();
        self.feed(index::on_record(Event::Init));
        for record in records {
            self.feed(index::on_record(Event::InitApply(serde_json::from_value(record).unwrap())));
        }
        self.feed(index::on_record(Event::InitDone));
        self.feed(index::on_slice(Event::Init));
        self.feed(index::on_slice(Event::InitDone));
        self.feed(index::on_namespace(Event::Init));
        self.feed(index::on_namespace(Event::InitDone));
        self.feed(index::on_pool(Event::Init));
        self.feed(index::on_pool(Event::InitDone));
        self.feed(index::on_node(Event::Init, &config));
        self.feed(index::on_node(Event::InitDone, &config));
    }

    /// A process that died and came back: only the API server and the dataplane remember.
    fn restart(&mut self) {
        let nodes: Vec<_> = self.controller.index.nodes.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        self.controller = Controller::new(self.controller.config.clone(), Role::alone("box-a"));
        self.list();
        for (name, info) in nodes {
            self.feed(index::Update::Node(index::Change::Put(name, info)));
        }
    }

    fn feed(&mut self, update: index::Update) {
        self.controller.on_input(Input::Update(Box::new(update)), self.now);
    }

    fn put(&mut self, value: &Value) {
        let mut value = value.clone();
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let key = key_of(&value);
        self.services.insert(key, value.clone());
        let config = self.controller.kubernetes.clone();
        self.feed(index::on_service(Event::Apply(serde_json::from_value(value).unwrap()), &config));
    }

    fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = self.services[&ServiceKey::new("default", name)].clone();
        edit(&mut value);
        self.put(&value);
    }

    /// `kubectl delete`: gone once the finalizers are.
    fn delete(&mut self, name: &str) {
        self.edit(name, |s| s["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    }

    fn turn(&mut self) -> Turn {
        let mut turn = self.controller.turn(self.now);
        if let Some(parcel) = turn.parcel.take() {
            self.snapshots += 1;
            self.log.push(format!("send {}", parcel.desired.services.len()));
            self.waiting = Some(parcel);
        }
        self.notes.append(&mut turn.notes);
        turn
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let mut turn = self.turn();
            turn.jobs.append(&mut self.ordered);
            let acked = self.acks && self.acknowledge();
            let idle = turn.jobs.is_empty() && !acked;
            for job in turn.jobs {
                let done = self.perform(job);
                if self.watch_first {
                    let turn = self.turn();
                    self.ordered.extend(turn.jobs);
                }
                let mut notes = Vec::new();
                self.controller.on_done(done, self.now, &mut notes);
                self.notes.append(&mut notes);
            }
            if idle && !self.controller.wants_translation() {
                return;
            }
        }
        panic!("it never comes to rest: {:#?}", &self.log[self.log.len().saturating_sub(20)..]);
    }

    fn acknowledge(&mut self) -> bool {
        let Some(parcel) = self.waiting.take() else { return false };
        self.log.push(format!("ack {}", parcel.desired.services.len()));
        let progress = Progress {
            acknowledged: parcel.version,
            programmed: parcel.programmed,
            generation: parcel.version,
            ..Progress::default()
        };
        self.controller.on_progress(progress, self.now);
        true
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.settle();
    }

    fn perform(&mut self, job: Job) -> Done {
        match job {
            Job::Service(job) => {
                let result = self.perform_service(&job);
                Done::Service { job, result: Ok(result.map(|v| Box::new(serde_json::from_value(v).unwrap()))) }
            }
            Job::Record(job) => self.perform_record(job),
            Job::PoolStatus { name, status } => {
                self.pool_status.push((name.to_string(), status.assigned));
                Done::PoolStatus { name, result: Ok(()) }
            }
            Job::Box { .. } => Done::Box { result: Ok(()) },
        }
    }

    fn perform_service(&mut self, job: &ServiceJob) -> Option<Value> {
        let mut value = self.services.get(&job.key)?.clone();
        if value["metadata"]["uid"] != json!(&*job.uid) {
            panic!("written to another Service");
        }
        let what = match &job.step {
            Step::Status(wanted) => {
                let body = status_body(job, wanted);
                let others: Vec<Value> = value["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|c| !c["type"].as_str().unwrap().starts_with("penstock.dev/"))
                    .cloned()
                    .collect();
                let ours = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let serving = ours.iter().find(|c| c["type"] == "penstock.dev/Serving");
                let what = serving.map_or("cleared".into(), |c| c["reason"].as_str().unwrap().to_owned());
                value["status"]["conditions"] = [others, ours].concat().into();
                value["status"]["loadBalancer"] = body["status"].get("loadBalancer").cloned().unwrap_or_default();
                format!("status {what}")
            }
            Step::AddFinalizer(name) => {
                value["metadata"]["finalizers"] = json!([name]);
                format!("finalizer {name}")
            }
            Step::RemoveFinalizers(_) => {
                value["metadata"]["finalizers"] = json!([]);
                "finalizer removed".into()
            }
            Step::Annotate(vip) => {
                value["metadata"]["annotations"]["penstock.dev/vip"] = json!(vip);
                if vip.is_none() {
                    value["metadata"]["annotations"].as_object_mut().unwrap().remove("penstock.dev/vip");
                }
                format!("annotate {vip:?}")
            }
        };
        self.log.push(format!("{} {what}", job.key.name));
        let gone = !value["metadata"]["deletionTimestamp"].is_null()
            && value["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if gone {
            self.services.remove(&job.key);
            self.feed(index::Update::Service(index::Change::Gone(job.key.clone(), self.version)));
            // The answer to the write that let it go is the object as it was, with the version of the deletion.
            return Some(value);
        }
        self.services.insert(job.key.clone(), value.clone());
        if self.watch_first {
            let config = self.controller.kubernetes.clone();
            self.feed(index::on_service(Event::Apply(serde_json::from_value(value.clone()).unwrap()), &config));
        }
        Some(value)
    }

    fn perform_record(&mut self, job: RecordJob) -> Done {
        self.version += 1;
        let version = self.version.to_string();
        let known =
            self.records.get(&job.address).map(|r| r["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
        let result = match (&job.write, known) {
            (RecordWrite::Create(spec), None) => Ok(Some(spec.clone())),
            (RecordWrite::Replace { spec, resource_version }, Some(known)) if *resource_version == known => {
                Ok(Some(spec.clone()))
            }
            (RecordWrite::Delete { resource_version, .. }, Some(known)) if *resource_version == known => Ok(None),
            _ => Err(conflict()),
        };
        let result = result.map(|spec| match spec {
            Some(spec) => {
                let names: Vec<&str> = spec.claims.iter().map(|c| c.name.as_str()).collect();
                self.log.push(format!("record {} {}", job.address, names.join("+")));
                let value = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "VipAllocation",
                    "metadata": {"name": "x", "uid": "r", "resourceVersion": version}, "spec": spec});
                self.records.insert(job.address, value.clone());
                if self.watch_first {
                    self.feed(index::on_record(Event::Apply(serde_json::from_value(value.clone()).unwrap())));
                }
                Some(Box::new(serde_json::from_value(value).unwrap()))
            }
            None => {
                self.log.push(format!("release {}", job.address));
                self.records.remove(&job.address);
                if self.watch_first {
                    self.feed(index::Update::Record(index::Change::Gone(job.address, self.version)));
                }
                None
            }
        });
        Done::Record { job, result }
    }

    fn ingress(&self, name: &str) -> Vec<String> {
        let service = &self.services[&ServiceKey::new("default", name)];
        let list = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        list.iter().map(|i| i["ip"].as_str().unwrap().to_owned()).collect()
    }

    fn condition(&self, name: &str, kind: &str) -> (String, String) {
        let service = &self.services[&ServiceKey::new("default", name)];
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|c| c["type"] == format!("penstock.dev/{kind}"));
        let text = |field: &str| found.map_or(String::new(), |c| c[field].as_str().unwrap().to_owned());
        (text("status"), text("reason"))
    }

    fn events(&self) -> Vec<&'static str> {
        self.notes.iter().map(|n| n.reason).collect()
    }

    fn why(&self, name: &str) -> String {
        self.controller.why(&ServiceKey::new("default", name), self.now).sentence
    }
}

fn conflict() -> kube::Error {
    kube::Error::Api(Box::new(kube::core::Status::failure("changed meanwhile", "Conflict").with_code(409)))
}

fn key_of(value: &Value) -> ServiceKey {
    let meta = |field: &str| value["metadata"][field].as_str().unwrap().to_owned();
    ServiceKey::new(&meta("namespace"), &meta("name"))
}

fn service(name: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "annotations": {}},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "penstock.dev/box", "clusterIP": "10.96.0.1",
            "ipFamilies": ["IPv4"], "ports": [{"port": 80, "nodePort": 30080}]},
    })
}

fn annotated(name: &str, annotations: Value) -> Value {
    let mut value = service(name);
    value["metadata"]["annotations"] = annotations;
    value
}

#[test]
fn from_nothing_to_serving_in_the_order_of_the_contract() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    assert_eq!(
        sim.log,
        [
            "send 0",
            "ack 0",
            "web status AwaitingFinalizer",
            "web finalizer service.kubernetes.io/load-balancer-cleanup",
            "record 203.0.113.1 web",
            "send 1",
            "ack 1",
            "web status Serving",
        ]
    );
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Provisioning"), ("False".into(), "Done".into()));
    assert_eq!(sim.events(), ["EnsuringLoadBalancer", "IPAllocated", "EnsuredLoadBalancer"]);
    assert!(sim.why("web").contains("is served in mode nat"), "{}", sim.why("web"));
}

#[test]
fn status_waits_for_the_acknowledgement() {
    let mut sim = Sim::new();
    sim.settle();
    sim.acks = false;
    sim.put(&service("web"));
    sim.settle();
    sim.after(5);
    assert!(sim.ingress("web").is_empty());
    assert_eq!(sim.condition("web", "Provisioning").1, "AwaitingDataplane");
    assert!(sim.why("web").contains("not acknowledged"));
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn status_waits_for_a_healthy_backend_or_the_grace() {
    let mut sim = Sim::new();
    sim.controller.on_health(Arc::new(HealthView { checking: true, ..HealthView::default() }), sim.now);
    sim.put(&service("web"));
    sim.settle();
    sim.after(29);
    assert!(sim.ingress("web").is_empty());
    assert_eq!(sim.condition("web", "Provisioning").1, "AwaitingHealth");
    sim.after(2);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Degraded"), ("True".into(), "NoHealthyBackend".into()));

    let up = TargetState { state: BackendState::Active, settled: true, reason: String::new() };
    let id: Arc<str> = sim.controller.translation.targets[0].id.clone();
    let view = HealthView { checking: true, targets: [(id, up)].into(), ..HealthView::default() };
    sim.controller.on_health(Arc::new(view), sim.now);
    sim.settle();
    assert_eq!(sim.condition("web", "Degraded").0, "False");
    assert_eq!(sim.condition("web", "Serving").0, "True");
}

#[test]
fn deletion_lets_go_only_after_the_dataplane_did() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.acks = false;
    sim.log.clear();
    sim.delete("web");
    sim.settle();
    assert_eq!(sim.log, ["send 0"], "neither the record nor the finalizer goes before the acknowledgement");
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.log, ["send 0", "ack 0", "release 203.0.113.1", "web finalizer removed"]);
    assert!(sim.services.is_empty() && sim.records.is_empty());
    assert!(sim.events().ends_with(&["DeletingLoadBalancer", "DeletedLoadBalancer"]), "{:?}", sim.events());
}

#[test]
fn a_stuck_box_does_not_strand_a_namespace_and_its_address_stays_reserved() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.acks = false;
    sim.delete("web");
    sim.settle();
    sim.after(119);
    assert_eq!(sim.services.len(), 1);
    sim.after(2);
    assert!(sim.services.is_empty());
    assert_eq!(sim.records.len(), 1, "the box may still serve it");
    assert!(sim.events().contains(&"SyncLoadBalancerFailed"));
    sim.acks = true;
    sim.settle();
    assert!(sim.records.is_empty());
}

#[test]
fn a_type_flip_cleans_up_and_leaves_others_conditions_alone() {
    let mut sim = Sim::new();
    let mut web = service("web");
    web["status"]["conditions"] = json!([{"type": "example.com/Mine", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    sim.put(&web);
    sim.settle();
    sim.log.clear();
    sim.edit("web", |s| {
        s["spec"]["type"] = json!("ClusterIP");
        s["spec"]["loadBalancerClass"] = Value::Null;
    });
    sim.settle();
    assert_eq!(sim.log, ["send 0", "ack 0", "release 203.0.113.1", "web finalizer removed", "web status cleared"]);
    let left = &sim.services[&ServiceKey::new("default", "web")];
    assert_eq!(left["status"]["conditions"].as_array().unwrap().len(), 1);
    assert!(sim.ingress("web").is_empty());
    assert!(sim.controller.translation.plans.is_empty());
}

#[test]
fn a_crash_after_any_step_heals_at_the_next_start() {
    for steps in 0..14 {
        let mut sim = Sim::new();
        sim.put(&service("web"));
        sim.put(&service("old"));
        sim.settle();
        sim.edit("old", |s| {
            s["spec"]["type"] = json!("ClusterIP");
            s["spec"]["loadBalancerClass"] = Value::Null;
        });
        sim.put(&service("new"));
        sim.delete("web");
        // Some turns of life, one job each; then the process dies.
        for _ in 0..steps {
            let turn = sim.turn();
            sim.acknowledge();
            if let Some(job) = turn.jobs.into_iter().next() {
                let done = sim.perform(job);
                sim.controller.on_done(done, sim.now, &mut Vec::new());
            }
        }
        sim.restart();
        sim.settle();
        assert_eq!(sim.services.len(), 2, "after {steps}: {:?}", sim.log);
        assert_eq!(sim.records.len(), 1, "after {steps}: {:?}", sim.log);
        assert_eq!(sim.ingress("new").len(), 1, "after {steps}: {:?}", sim.log);
        let old = &sim.services[&ServiceKey::new("default", "old")];
        assert_eq!(old["metadata"]["finalizers"], json!([]), "after {steps}");
        assert!(old["status"]["conditions"].as_array().unwrap().is_empty(), "after {steps}");
    }
}

#[test]
fn a_restart_moves_no_vip_writes_nothing_and_says_nothing() {
    let mut sim = Sim::new();
    sim.put(&service("b"));
    sim.settle();
    sim.put(&service("a"));
    sim.settle();
    assert_eq!((sim.ingress("a"), sim.ingress("b")), (vec!["203.0.113.2".into()], vec!["203.0.113.1".into()]));
    sim.restart();
    sim.log.clear();
    sim.notes.clear();
    sim.settle();
    assert_eq!(sim.log, ["send 2", "ack 2"]);
    assert!(sim.notes.is_empty(), "{:?}", sim.notes);
}

#[test]
fn statuses_seed_the_allocator_when_records_are_lost() {
    let mut sim = Sim::new();
    for name in ["b", "a"] {
        sim.put(&service(name));
        sim.settle();
    }
    sim.records.clear();
    sim.restart();
    sim.put(&service("c"));
    sim.settle();
    assert_eq!((sim.ingress("b"), sim.ingress("a")), (vec!["203.0.113.1".into()], vec!["203.0.113.2".into()]));
    assert_eq!(sim.ingress("c"), ["203.0.113.3"]);
}

#[test]
fn an_address_in_a_foreign_services_status_is_not_given() {
    let mut sim = Sim::new();
    let mut other = service("other");
    other["spec"]["loadBalancerClass"] = json!("other/lb");
    other["status"]["loadBalancer"] = json!({"ingress": [{"ip": "203.0.113.1"}]});
    sim.put(&other);
    sim.put(&service("web"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
    assert!(sim.log.iter().all(|line| !line.starts_with("other")), "no write to it: {:?}", sim.log);
    assert!(sim.notes.iter().all(|n| &*n.key.name != "other"), "no Event either");
}

#[test]
fn an_explicit_address_that_is_taken_is_refused_by_the_others_name() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.put(&annotated("late", json!({"penstock.dev/addresses": "203.0.113.1"})));
    sim.settle();
    assert_eq!(sim.condition("late", "Serving"), ("False".into(), "AllocationFailed".into()));
    let note = sim.notes.iter().find(|n| n.reason == "AllocationFailed").unwrap();
    assert!(note.message.contains("default/web"), "{}", note.message);
    assert!(sim.why("late").contains("default/web"));
    sim.delete("web");
    sim.settle();
    assert_eq!(sim.ingress("late"), ["203.0.113.1"], "tried again when something was released");
}

#[test]
fn sharing_needs_the_key_and_free_ports() {
    let mut sim = Sim::new();
    let shared = |name: &str, port: u16| {
        let mut value = annotated(name, json!({"penstock.dev/share-key": "k"}));
        value["spec"]["ports"][0]["port"] = json!(port);
        value
    };
    for value in [shared("a", 80), shared("b", 443), shared("c", 80)] {
        sim.put(&value);
        sim.settle();
    }
    assert_eq!((sim.ingress("a"), sim.ingress("b")), (vec!["203.0.113.1".into()], vec!["203.0.113.1".into()]));
    assert_eq!(sim.ingress("c"), ["203.0.113.2"], "the port is taken on the first");
    sim.edit("c", |s| s["metadata"]["annotations"]["penstock.dev/addresses"] = json!("203.0.113.1"));
    sim.settle();
    assert_eq!(sim.ingress("c"), ["203.0.113.2"], "what it has serves on");
    assert_eq!(sim.condition("c", "Degraded").1, "MissingAddress");
    let note = sim.notes.iter().rfind(|n| n.reason == "AllocationFailed").unwrap();
    assert!(note.message.contains("default/a") && note.message.contains("80"), "{}", note.message);
    sim.delete("a");
    sim.settle();
    assert_eq!(sim.ingress("c"), ["203.0.113.1"]);
    assert_eq!(sim.records.len(), 1, "and the old one was given back: {:?}", sim.log);
}

#[test]
fn an_exhausted_pool_says_so_and_recovers() {
    let mut sim = Sim::new();
    for i in 0..5 {
        sim.put(&service(&format!("s{i}")));
    }
    sim.settle();
    assert_eq!(sim.condition("s4", "Serving").1, "AllocationFailed");
    sim.delete("s0");
    sim.settle();
    assert_eq!(sim.ingress("s4"), ["203.0.113.1"]);
}

#[test]
fn a_freed_address_is_taken_whatever_comes_first_the_watch_or_the_answer() {
    for watch_first in [false, true] {
        let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['203.0.113.1']");
        sim.watch_first = watch_first;
        sim.put(&service("one"));
        sim.settle();
        sim.put(&service("two"));
        sim.settle();
        assert_eq!(sim.condition("two", "Serving").1, "AllocationFailed");
        sim.delete("one");
        sim.settle();
        assert_eq!(
            sim.controller.index.services.len(),
            1,
            "a deleted Service must not come back (watch first: {watch_first})"
        );
        assert_eq!(sim.ingress("two"), ["203.0.113.1"], "watch first: {watch_first}: {:?}", sim.log);
    }
}

#[test]
fn an_address_whose_record_the_watch_ends_while_its_deletion_is_under_way_is_taken_at_once() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['203.0.113.1']");
    sim.watch_first = true;
    // Shows its address in no status: only the record says that it is taken.
    let mut one = annotated("one", json!({"penstock.dev/expose": "true"}));
    one["spec"]["type"] = json!("NodePort");
    one["spec"]["loadBalancerClass"] = Value::Null;
    sim.put(&one);
    sim.settle();
    sim.put(&service("two"));
    sim.settle();
    assert_eq!(sim.condition("two", "Serving").1, "AllocationFailed");
    sim.delete("one");
    sim.settle();
    assert_eq!(sim.ingress("two"), ["203.0.113.1"], "{:?}", sim.log);
}

#[test]
fn a_sticky_service_finds_its_address_again() {
    let mut sim = Sim::new();
    sim.put(&annotated("web", json!({"penstock.dev/sticky": "true"})));
    sim.settle();
    sim.delete("web");
    sim.settle();
    assert_eq!(sim.records.len(), 1, "kept");
    sim.put(&service("other"));
    sim.settle();
    assert_eq!(sim.ingress("other"), ["203.0.113.2"]);
    let mut again = annotated("web", json!({"penstock.dev/sticky": "true"}));
    again["metadata"]["uid"] = json!("another-uid");
    sim.put(&again);
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn require_dual_stack_gets_both_or_nothing() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'v4'\naddresses = ['203.0.113.1']");
    let mut web = service("web");
    web["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    web["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    sim.put(&web);
    sim.settle();
    assert!(sim.records.is_empty());
    assert_eq!(sim.condition("web", "Serving").1, "AllocationFailed");
    sim.edit("web", |s| s["spec"]["ipFamilyPolicy"] = json!("PreferDualStack"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Degraded"), ("True".into(), "MissingAddress".into()));
}

#[test]
fn both_families_are_recorded_and_shown() {
    let mut sim = Sim::new();
    let mut web = service("web");
    web["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
    sim.put(&web);
    sim.settle();
    assert_eq!(sim.ingress("web"), ["2001:db8:f::1", "203.0.113.1"]);
    sim.edit("web", |s| s["spec"]["ipFamilies"] = json!(["IPv6"]));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["2001:db8:f::1"]);
    assert_eq!(sim.records.len(), 1);
}

#[test]
fn the_same_name_with_a_new_uid_gets_its_own_lb_after_the_old_one_is_gone() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    // Deleted by force, behind our back, and created anew.
    let mut again = service("web");
    again["metadata"]["uid"] = json!("new");
    sim.log.clear();
    sim.acks = false;
    sim.put(&again);
    sim.settle();
    assert!(!sim.log.iter().any(|l| l.starts_with("record") || l.starts_with("release")), "{:?}", sim.log);
    sim.acks = true;
    sim.settle();
    let release = sim.log.iter().position(|l| l.starts_with("release")).unwrap();
    let record = sim.log.iter().position(|l| l.starts_with("record")).unwrap();
    assert!(release < record, "{:?}", sim.log);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn a_refused_service_gets_a_condition_and_one_event_and_nothing_else() {
    let mut sim = Sim::new();
    sim.put(&annotated("web", json!({"penstock.dev/mode": "magic"})));
    sim.settle();
    sim.after(60);
    assert_eq!(sim.log, ["send 0", "ack 0", "web status NotSupported"]);
    assert_eq!(sim.events(), ["SyncLoadBalancerFailed"]);
    assert!(sim.why("web").contains("magic"));
}

#[test]
fn a_served_service_that_becomes_unreadable_keeps_its_address_and_comes_back() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.put(&service("other"));
    sim.settle();
    let before = sim.ingress("web");
    sim.edit("web", |s| s["metadata"]["annotations"]["penstock.dev/mode"] = json!("magic"));
    sim.settle();
    assert!(sim.ingress("web").is_empty());
    assert_eq!((sim.records.len(), sim.ingress("other").len()), (2, 1));
    sim.edit("web", |s| s["metadata"]["annotations"] = json!({}));
    sim.settle();
    assert_eq!(sim.ingress("web"), before);
}

#[test]
fn an_exposed_node_port_service_shows_its_vip_in_an_annotation() {
    let mut sim = Sim::new();
    let mut web = annotated("web", json!({"penstock.dev/expose": "true"}));
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["loadBalancerClass"] = Value::Null;
    sim.put(&web);
    sim.settle();
    let annotation = |sim: &Sim| {
        sim.services[&ServiceKey::new("default", "web")]["metadata"]["annotations"]["penstock.dev/vip"].clone()
    };
    assert_eq!(annotation(&sim), "203.0.113.1");
    assert!(sim.ingress("web").is_empty());
    assert!(sim.log.contains(&"web finalizer penstock.dev/cleanup".to_owned()));
    assert!(sim.events().contains(&"EnsuredLoadBalancer"));
    sim.edit("web", |s| s["metadata"]["annotations"]["penstock.dev/expose"] = json!("false"));
    sim.settle();
    assert_eq!(annotation(&sim), Value::Null);
    assert!(sim.records.is_empty() && sim.controller.translation.plans.is_empty());
}

#[test]
fn a_status_somebody_else_writes_is_left_alone_longer_each_time() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    let overwrite = |sim: &mut Sim| {
        sim.edit("web", |s| s["status"]["loadBalancer"] = json!({"ingress": [{"ip": "198.51.100.9"}]}));
        sim.log.clear();
        sim.settle();
        sim.log.len()
    };
    assert_eq!(overwrite(&mut sim), 1, "once may be an accident");
    assert_eq!(overwrite(&mut sim), 0);
    assert!(sim.notes.iter().any(|n| n.message.contains("another controller") && n.message.contains("198.51.100.9")));
    sim.after(31);
    assert_eq!(sim.log.len(), 1, "tried again after the pause: {:?}", sim.log);
    assert_eq!(overwrite(&mut sim), 0);
    // The pause has grown: at least half of the doubled one.
    sim.after(15);
    assert!(sim.log.is_empty());
    assert!(sim.why("web").contains("another controller"));
}

#[test]
fn what_the_dataplane_refuses_by_name_does_not_keep_the_rest_waiting() {
    let mut sim = Sim::new();
    sim.acks = false;
    sim.put(&service("good"));
    sim.put(&service("poor"));
    sim.settle();
    let parcel = sim.waiting.clone().unwrap();
    let position = parcel.desired.services.iter().position(|s| s.name.starts_with("default/poor:")).unwrap();
    let fault = Fault {
        path: format!("service[{position}] \"default/poor:80\".vip"),
        problem: "is served for owner `file` already".into(),
    };
    let refused = Progress {
        trouble: Some("refused".into()),
        refused: Some((parcel.version, Arc::new(vec![fault]))),
        ..Progress::default()
    };
    sim.controller.on_progress(refused, sim.now);
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.ingress("good").len(), 1);
    assert_eq!(sim.condition("poor", "Serving").1, "RefusedByDataplane");
    // The cause may be gone later.
    sim.after(61);
    assert_eq!(sim.ingress("poor").len(), 1);
}

#[test]
fn a_node_that_is_the_box_itself_is_left_out_when_the_dataplane_says_so() {
    let mut sim = Sim::new();
    sim.acks = false;
    sim.put(&service("web"));
    sim.settle();
    let parcel = sim.waiting.clone().unwrap();
    let fault =
        Fault { path: "node[0] \"a\".addresses[0]".into(), problem: "10.0.0.97 is the box's own address".into() };
    let refused = Progress { refused: Some((parcel.version, Arc::new(vec![fault]))), ..Progress::default() };
    sim.controller.on_progress(refused, sim.now);
    sim.settle();
    let names: Vec<String> = sim.waiting.as_ref().unwrap().desired.nodes.iter().map(|n| n.name.clone()).collect();
    assert_eq!(names, ["b"]);
    let why = sim.controller.why(&ServiceKey::new("default", "web"), sim.now);
    assert!(why.nodes[0].reason.contains("own address"), "{why:?}");
}

#[test]
fn a_node_that_is_labelled_out_drains_for_a_while_and_one_that_always_was_does_not() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    let label = |sim: &mut Sim, name: &str, version: u32, labels: Value| {
        let node = json!({"metadata": {"name": name, "resourceVersion": version.to_string(), "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{}", name.as_bytes()[0])}]}});
        let config = sim.controller.kubernetes.clone();
        sim.feed(index::on_node(Event::Apply(serde_json::from_value(node).unwrap()), &config));
    };
    let out = || json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""});
    let states = |sim: &Sim| -> Vec<(String, BackendState)> {
        let sets = &sim.controller.translation.desired.sets;
        sets[0].backends.iter().map(|b| (b.node.clone().unwrap(), b.state)).collect()
    };
    let (active, draining) = (BackendState::Active, BackendState::Draining);
    label(&mut sim, "control-plane", 5, out());
    sim.settle();
    assert_eq!(states(&sim), [("a".into(), active), ("b".into(), active)]);
    label(&mut sim, "b", 6, out());
    sim.settle();
    assert_eq!(states(&sim), [("a".into(), active), ("b".into(), draining)]);
    label(&mut sim, "b", 7, json!({}));
    sim.settle();
    assert_eq!(states(&sim), [("a".into(), active), ("b".into(), active)], "back in service");
    label(&mut sim, "b", 8, out());
    sim.settle();
    let why = sim.controller.why(&ServiceKey::new("default", "web"), sim.now);
    assert!(why.nodes.iter().any(|n| n.node == "b" && n.reason.contains("keeps its flows")), "{why:?}");
    // Whatever else changes of it meanwhile.
    label(&mut sim, "b", 9, json!({"node.kubernetes.io/exclude-from-external-load-balancers": "", "x": "y"}));
    sim.after(299);
    assert_eq!(states(&sim)[1].1, draining);
    sim.after(2);
    assert_eq!(states(&sim), [("a".into(), active)]);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn no_node_is_a_warning_and_the_vip_stays() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    for name in ["a", "b"] {
        sim.feed(index::Update::Node(index::Change::Gone(name.into(), 0)));
    }
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Degraded").1, "NoBackends");
    assert_eq!(sim.events().iter().filter(|r| **r == "UnAvailableLoadBalancer").count(), 1);
}

#[test]
fn a_node_flap_makes_one_snapshot_for_all_services() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['198.18.0.0/16']");
    for i in 0..200 {
        sim.put(&service(&format!("s{i}")));
    }
    sim.settle();
    sim.snapshots = 0;
    sim.log.clear();
    sim.feed(index::Update::Node(index::Change::Gone("a".into(), 0)));
    sim.settle();
    assert_eq!((sim.snapshots, sim.log.len()), (1, 2), "no Service is written for it: {:?}", sim.log);
}

#[test]
fn a_box_that_does_not_lead_serves_the_same_and_writes_nothing() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.controller.on_role(Role { leader: false, announces: false, term: Some(3), ..Role::alone("box-b") });
    sim.log.clear();
    sim.settle();
    assert_eq!(sim.log, ["send 1", "ack 1"], "announced by nobody now, and with the term");
    sim.put(&service("later"));
    sim.delete("web");
    sim.settle();
    sim.after(600);
    assert_eq!(sim.log[2..], ["send 0", "ack 0"]);
    assert!(sim.why("later").contains("by the leader"));
}

#[test]
fn nothing_is_sent_before_everything_was_listed() {
    let config = Arc::new(ControlConfig::parse(Path::new("t"), &format!("version = 1\n[kubernetes]\n{POOL}")).unwrap());
    let mut controller = Controller::new(config, Role::alone("box-a"));
    let kubernetes = controller.kubernetes.clone();
    for update in [index::on_service(Event::Init, &kubernetes), index::on_service(Event::InitDone, &kubernetes)] {
        controller.on_input(Input::Update(Box::new(update)), Instant::now());
    }
    let turn = controller.turn(Instant::now());
    assert!(turn.parcel.is_none() && turn.jobs.is_empty());
    assert!(controller.notices(Instant::now())[0].contains("nodes"));
}

#[test]
fn nothing_is_sent_before_the_first_election() {
    let mut sim = Sim::new();
    sim.controller = Controller::new(sim.controller.config.clone(), Role::default());
    sim.list();
    assert!(sim.turn().parcel.is_none());
}

#[test]
fn a_change_that_is_served_is_told() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.edit("web", |s| s["spec"]["ports"][0]["nodePort"] = json!(30081));
    sim.settle();
    assert_eq!(*sim.events().last().unwrap(), "UpdatedLoadBalancer");
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn a_lost_race_for_an_address_ends_with_another_one() {
    let mut sim = Sim::new();
    sim.settle();
    // Another cluster's controller took it a moment ago; our watch has not heard.
    let taken = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "VipAllocation",
        "metadata": {"name": "203.0.113.1", "uid": "x", "resourceVersion": "999"},
        "spec": {"address": "203.0.113.1", "owner": "other", "claims": []}});
    sim.records.insert("203.0.113.1".parse().unwrap(), taken.clone());
    sim.put(&service("web"));
    sim.settle();
    assert!(sim.ingress("web").is_empty());
    sim.feed(index::on_record(Event::Apply(serde_json::from_value(taken).unwrap())));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
}

#[test]
fn pools_of_the_cluster_say_how_full_they_are_and_faults() {
    let mut sim = Sim::with("owner = 'c'");
    let pool = |name: &str, addresses: &[&str], version: &str| {
        let value = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "VipPool",
            "metadata": {"name": name, "uid": name, "resourceVersion": version, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"addresses": addresses}});
        index::on_pool(Event::Apply(serde_json::from_value(value).unwrap()))
    };
    sim.feed(pool("p", &["203.0.113.0/30"], "5"));
    sim.feed(pool("q", &["203.0.113.2"], "6"));
    sim.put(&service("web"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.0"]);
    sim.after(2);
    assert!(sim.pool_status.contains(&("q".to_owned(), 0)));
    assert!(sim.pool_status.contains(&("p".to_owned(), 1)));
    let usage = sim.controller.usage_of_pools();
    assert_eq!((usage[0].1.total, usage[0].1.available), (4, 3));
    assert!(usage[1].1.fault.as_ref().unwrap().contains("`p`"));
    // An edit of the pool moves nothing.
    sim.feed(pool("p", &["198.51.100.0/30"], "2000"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.0"]);
}
