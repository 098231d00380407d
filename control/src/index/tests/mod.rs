//! The contract with no cluster: objects in, snapshot and plans out. Each test is one line of it.

mod fields;
mod nodes;
mod services;
mod table;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use kube::runtime::watcher::Event;
use penstock_configs::desired::{Affinity, Announce, BackendState, Desired, Mode, NoBackend, OnDown, OnIdle, Protocol};
use serde_json::{Value, json};

use super::outcome::{self, Health, Signals};
use super::translate::{Dirty, Plan, Quarantine, Stage, Translation, View, sharers, translate};
use super::*;
use crate::config::ControlConfig;
use crate::probe::Check;

struct World {
    index: Index,
    config: ControlConfig,
    version: u64,
}

impl World {
    fn new(kubernetes: &str) -> Self {
        let text = format!("version = 1\n[kubernetes]\n{kubernetes}");
        let config = ControlConfig::parse(std::path::Path::new("test.toml"), &text).unwrap();
        Self { index: Index::default(), config, version: 100 }
    }

    fn with_nodes(kubernetes: &str, names: &[&str]) -> Self {
        let mut world = Self::new(kubernetes);
        for (i, name) in names.iter().enumerate() {
            world.node(name, json!({}), json!({}), &[&format!("10.0.0.{}", i + 1), &format!("2001:db8::{}", i + 1)]);
        }
        world
    }

    fn kubernetes(&self) -> KubernetesConfig {
        self.config.kubernetes.clone().unwrap()
    }

    fn object<K: serde::de::DeserializeOwned>(&mut self, mut value: Value) -> K {
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        serde_json::from_value(value).unwrap()
    }

    fn node(&mut self, name: &str, meta: Value, spec: Value, addresses: &[&str]) -> Changed {
        let addresses: Vec<Value> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        let mut value = json!({"metadata": meta, "spec": spec, "status": {"addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True"}]}});
        value["metadata"]["name"] = json!(name);
        self.raw_node(value)
    }

    fn raw_node(&mut self, value: Value) -> Changed {
        let node = self.object(value);
        let config = self.kubernetes();
        self.index.apply(on_node(Event::Apply(node), &config))
    }

    fn service(&mut self, value: &Value) -> Changed {
        let service = self.object(value.clone());
        let config = self.kubernetes();
        self.index.apply(on_service(Event::Apply(service), &config))
    }

    fn record(&mut self, address: &str, claims: &[(&str, &str)]) -> Changed {
        self.record_with(address, claims, json!({}))
    }

    fn record_with(&mut self, address: &str, claims: &[(&str, &str)], extra: Value) -> Changed {
        let claims: Vec<Value> =
            claims.iter().map(|(name, uid)| json!({"namespace": "default", "name": name, "uid": uid})).collect();
        let mut value = json!({"metadata": {"name": address}, "spec":
            {"address": address, "pool": "p", "owner": "kubernetes", "claims": claims}});
        for (key, field) in extra.as_object().unwrap() {
            value["spec"][key] = field.clone();
        }
        let record = self.object(value);
        self.index.apply(on_record(Event::Apply(record)))
    }

    fn slice(&mut self, service: &str, endpoints: Value) -> Changed {
        self.slice_named(&format!("{service}-1"), service, endpoints)
    }

    fn slice_named(&mut self, name: &str, service: &str, endpoints: Value) -> Changed {
        let slice = self.object(json!({"metadata": {"name": name, "namespace": "default",
            "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4", "endpoints": endpoints}));
        self.index.apply(on_slice(Event::Apply(slice)))
    }

    fn translate(&self) -> Translation {
        translate(&self.index, &self.config, true, &Quarantine::default())
    }

    fn plan(&self) -> Plan {
        self.translate().plans[&ServiceKey::new("default", "web")].clone()
    }

    fn has_plan(&self) -> bool {
        self.translate().plans.contains_key(&ServiceKey::new("default", "web"))
    }

    /// `node=weight/state`, of the set that the first service uses.
    fn backends(&self) -> Vec<String> {
        let translation = self.translate();
        let set = translation.desired.services[0].set.clone().unwrap();
        let set = translation.desired.sets.iter().find(|s| s.name == set).unwrap();
        set.backends
            .iter()
            .map(|b| {
                format!(
                    "{}={}{}",
                    b.node.as_deref().unwrap(),
                    b.weight,
                    match b.state {
                        BackendState::Active => "",
                        BackendState::Draining => "/draining",
                        BackendState::Down => "/down",
                    }
                )
            })
            .collect()
    }
}

/// A Service of ours that has come as far as its finalizer.
fn web() -> Value {
    json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "u1", "annotations": {},
            "finalizers": ["service.kubernetes.io/load-balancer-cleanup"]},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "penstock.dev/box", "clusterIP": "10.96.0.1",
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]},
    })
}

fn changed(mut service: Value, edit: impl FnOnce(&mut Value)) -> Value {
    edit(&mut service);
    service
}

fn annotated(key: &str, value: &str) -> Value {
    changed(web(), |s| s["metadata"]["annotations"][key] = json!(value))
}

/// A world where `web` is programmed on three nodes.
fn serving(service: &Value) -> World {
    let mut world = World::with_nodes("", &["a", "b", "c"]);
    world.service(service);
    world.record("203.0.113.1", &[("web", "u1")]);
    world
}

fn refusal(plan: &Plan) -> (&'static str, String) {
    match &plan.stage {
        Stage::Refused(refused) => (refused.reason, refused.message.clone()),
        other => panic!("not refused but {other:?}"),
    }
}

const GOOD: Signals<'_> = Signals { acknowledged: true, health: Health::Good, allocation: None, dataplane: None };

fn said(plan: &Plan, signals: Signals<'_>) -> (Vec<String>, Vec<(bool, String)>) {
    let wanted = outcome::wanted(plan, &kinds::ServiceStatus::default(), &signals);
    let ingress =
        wanted.ingress.iter().map(|i| format!("{}/{}", i.ip.unwrap(), i.ip_mode.as_deref().unwrap())).collect();
    (ingress, wanted.conditions.into_iter().map(|c| (c.status, c.reason)).collect())
}
