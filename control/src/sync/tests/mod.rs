//! The life of a Service against an API server that is two maps, with time as an argument: what is written, in which
//! order, and what heals when it stops in the middle.

mod addresses;
mod boxes;
mod life_cycle;
mod pace;

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
    /// A right is missing.
    no_records: bool,
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
            no_records: false,
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
            served: parcel.desired,
            generation: parcel.version,
            ..Progress::default()
        };
        self.controller.on_progress(progress);
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
            _ if self.no_records => {
                let status = kube::core::Status::failure("vipallocations is forbidden", "Forbidden").with_code(403);
                Err(kube::Error::Api(Box::new(status)))
            }
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
