//! The contract with no cluster: objects in, snapshot and plans out. Each test is one line of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use kube::runtime::watcher::Event;
use penstock_configs::desired::{Affinity, Announce, BackendState, Mode, Protocol};
use serde_json::{Value, json};

use super::outcome::{self, Health, Signals};
use super::translate::{Plan, Quarantine, Stage, Translation, translate};
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

// --- which Services

#[test]
fn our_class_is_ours_and_a_foreign_one_is_not() {
    for (class, default_class, ours) in [
        (Some("penstock.dev/box"), false, true),
        (Some("metallb.io/x"), false, false),
        (Some("metallb.io/x"), true, false),
        (None, false, false),
        (None, true, true),
    ] {
        let mut world = World::with_nodes(&format!("default_class = {default_class}"), &["a"]);
        world.service(&changed(web(), |s| s["spec"]["loadBalancerClass"] = json!(class)));
        assert_eq!(world.has_plan(), ours, "{class:?} {default_class}");
    }
}

#[test]
fn an_exposed_node_port_service_gets_an_address_with_our_own_finalizer() {
    let exposed = changed(annotated("penstock.dev/expose", "true"), |s| {
        s["spec"]["type"] = json!("NodePort");
        s["spec"]["loadBalancerClass"] = Value::Null;
    });
    let mut world = serving(&exposed);
    assert_eq!(world.plan().stage, Stage::NeedsFinalizer, "the load balancer's finalizer is no substitute");
    world.service(&changed(exposed, |s| s["metadata"]["finalizers"] = json!(["penstock.dev/cleanup"])));
    let plan = world.plan();
    assert_eq!((plan.stage.clone(), plan.exposed), (Stage::Programmed, true));
    let said = outcome::wanted(&plan, &kinds::ServiceStatus::default(), &GOOD);
    assert_eq!((said.vip_annotation.as_deref(), said.ingress.len()), (Some("203.0.113.1"), 0));
}

#[test]
fn what_has_no_node_ports_is_refused_with_a_reason() {
    for (edit, reason) in [
        (json!({"type": "ExternalName"}), "ExternalName"),
        (json!({"type": "ClusterIP", "clusterIP": "None"}), "Headless"),
        (json!({"type": "ClusterIP"}), "NoNodePort"),
    ] {
        let service = changed(annotated("penstock.dev/expose", "true"), |s| {
            for (key, value) in edit.as_object().unwrap() {
                s["spec"][key] = value.clone();
            }
        });
        assert_eq!(refusal(&serving(&service).plan()).0, reason);
    }
    let without = changed(web(), |s| {
        s["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        s["spec"]["ports"][0]["nodePort"] = Value::Null;
    });
    let (reason, message) = refusal(&serving(&without).plan());
    assert!(reason == "NoNodePort" && message.contains("port http"), "{message}");
}

#[test]
fn a_flip_of_type_or_class_leaves_what_is_ours_to_be_cleaned_up() {
    for edit in [json!({"type": "ClusterIP", "loadBalancerClass": null}), json!({"loadBalancerClass": "other/lb"})] {
        let mut world = serving(&web());
        world.service(&changed(web(), |s| {
            for (key, value) in edit.as_object().unwrap() {
                s["spec"][key] = value.clone();
            }
        }));
        let translation = world.translate();
        assert_eq!(world.plan().stage, Stage::Leaving);
        assert!(translation.desired.services.is_empty());
        assert_eq!(translation.orphans.len(), 1, "its claim goes once the box has let go");
    }
}

#[test]
fn a_finalizer_that_we_did_not_add_is_not_ours_to_remove() {
    let mut world = World::with_nodes("", &["a"]);
    world.service(&changed(web(), |s| s["spec"]["loadBalancerClass"] = json!("other/lb")));
    assert!(!world.has_plan());
}

#[test]
fn a_new_service_of_the_same_name_waits_until_the_old_one_is_gone() {
    let mut world = serving(&web());
    world.service(&changed(web(), |s| s["metadata"]["uid"] = json!("u2")));
    assert_eq!(world.plan().stage, Stage::NeedsCleanup);
    let translation = world.translate();
    assert!(translation.desired.services.is_empty());
    assert_eq!(translation.orphans[0].1.uid, "u1");
}

// --- life cycle

#[test]
fn nothing_is_programmed_before_the_finalizer_and_the_record() {
    let mut world = World::with_nodes("", &["a"]);
    world.service(&changed(web(), |s| s["metadata"]["finalizers"] = json!([])));
    assert_eq!(world.plan().stage, Stage::NeedsFinalizer);
    world.service(&web());
    let plan = world.plan();
    assert_eq!((plan.stage, plan.missing), (Stage::NeedsAddress, vec![pool::Family::V4]));
    assert!(world.translate().desired.services.is_empty());
    world.record("203.0.113.1", &[("web", "u1")]);
    assert_eq!(world.plan().stage, Stage::Programmed);
}

#[test]
fn a_service_being_deleted_leaves_the_snapshot_at_once_and_its_claim_after() {
    let mut world = serving(&web());
    world.service(&changed(web(), |s| s["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")));
    let translation = world.translate();
    assert!(translation.desired.services.is_empty());
    assert_eq!((world.plan().stage, translation.orphans.len()), (Stage::Leaving, 1));
}

#[test]
fn a_record_of_a_service_that_is_gone_is_an_orphan_and_another_owners_is_not() {
    let mut world = World::new("");
    world.record("203.0.113.1", &[("gone", "u9")]);
    world.record_with("203.0.113.2", &[("gone", "u9")], json!({"owner": "other-cluster"}));
    let orphans = world.translate().orphans;
    assert_eq!(orphans.len(), 1);
    assert_eq!(orphans[0].0.to_string(), "203.0.113.1");
}

// --- status

const GOOD: Signals<'_> = Signals { acknowledged: true, health: Health::Good, allocation: None, dataplane: None };

fn said(plan: &Plan, signals: Signals<'_>) -> (Vec<String>, Vec<(bool, String)>) {
    let wanted = outcome::wanted(plan, &kinds::ServiceStatus::default(), &signals);
    let ingress =
        wanted.ingress.iter().map(|i| format!("{}/{}", i.ip.unwrap(), i.ip_mode.as_deref().unwrap())).collect();
    (ingress, wanted.conditions.into_iter().map(|c| (c.status, c.reason)).collect())
}

#[test]
fn an_address_is_shown_only_when_acknowledged_and_healthy_or_after_the_grace() {
    let plan = serving(&web()).plan();
    let yes = vec!["203.0.113.1/Proxy".to_owned()];
    let (ingress, conditions) = said(&plan, Signals { acknowledged: false, ..GOOD });
    assert_eq!((ingress, conditions[1].clone()), (vec![], (true, "AwaitingDataplane".into())));
    let (ingress, conditions) = said(&plan, Signals { health: Health::Unsettled, ..GOOD });
    assert_eq!((ingress, conditions[1].clone()), (vec![], (true, "AwaitingHealth".into())));
    let (ingress, conditions) = said(&plan, Signals { health: Health::Bad, ..GOOD });
    assert_eq!((ingress, conditions[2].clone()), (yes.clone(), (true, "NoHealthyBackend".into())));
    let (ingress, conditions) = said(&plan, GOOD);
    assert_eq!(ingress, yes);
    assert_eq!(conditions[0], (true, "Serving".into()));
    assert_eq!(conditions[1], (false, "Done".into()));
    assert_eq!(conditions[2], (false, "AsExpected".into()));
}

#[test]
fn what_is_shown_stays_while_a_change_is_on_its_way() {
    let plan = serving(&web()).plan();
    let shown = kinds::ServiceStatus {
        ingress: outcome::wanted(&plan, &kinds::ServiceStatus::default(), &GOOD).ingress,
        ..kinds::ServiceStatus::default()
    };
    for health in [Health::Good, Health::Unsettled, Health::Bad, Health::NoBackends] {
        let wanted = outcome::wanted(&plan, &shown, &Signals { acknowledged: false, health, ..GOOD });
        assert_eq!(wanted.ingress, shown.ingress, "{health:?}");
    }
}

#[test]
fn a_status_that_says_it_already_is_not_written_again() {
    let plan = serving(&web()).plan();
    let wanted = outcome::wanted(&plan, &kinds::ServiceStatus::default(), &GOOD);
    let mut seen = kinds::ServiceStatus { ingress: wanted.ingress.clone(), ..kinds::ServiceStatus::default() };
    assert!(!outcome::is_said(&wanted, &seen, true));
    seen.conditions = wanted
        .conditions
        .iter()
        .map(|c| kinds::ConditionInfo {
            kind: c.kind.into(),
            status: c.status,
            reason: c.reason.clone(),
            message: c.message.clone(),
            since: "some other time".into(),
        })
        .collect();
    assert!(outcome::is_said(&wanted, &seen, true));
    seen.ingress[0].ip = Some("203.0.113.9".parse().unwrap());
    assert!(!outcome::is_said(&wanted, &seen, true));
}

// --- nodes

#[test]
fn nodes_that_are_excluded_leaving_or_the_box_itself_take_no_flows() {
    let cases = [
        (json!({}), json!({}), "a=1"),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}), json!({}), ""),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": "true"}}), json!({}), ""),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": "false"}}), json!({}), "a=1"),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": "no"}}), json!({}), ""),
        (json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({}), "a=1/draining"),
        (
            json!({}),
            json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}),
            "a=1/draining",
        ),
        (json!({}), json!({"unschedulable": true}), "a=1"),
    ];
    for (meta, spec, expected) in cases {
        let mut world = World::new("own_node = 'box'");
        world.service(&web());
        world.record("203.0.113.1", &[("web", "u1")]);
        world.node("box", json!({}), json!({}), &["10.0.0.9"]);
        world.node("a", meta.clone(), spec.clone(), &["10.0.0.1"]);
        assert_eq!(world.backends().join(" "), expected, "{meta} {spec}");
    }
}

#[test]
fn not_ready_alone_changes_no_snapshot() {
    let mut world = serving(&web());
    let before = world.translate().desired;
    for name in ["a", "b", "c"] {
        let i = name.as_bytes()[0] - b'a' + 1;
        let change = world.raw_node(json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": format!("10.0.0.{i}")},
                          {"type": "InternalIP", "address": format!("2001:db8::{i}")}],
            "conditions": [{"type": "Ready", "status": "False"}]}}));
        assert_eq!(change, Changed::Detail);
    }
    assert_eq!(world.translate().desired, before);
}

#[test]
fn a_nodes_address_is_chosen_by_family_type_and_cidr_and_followed() {
    let node = |external: &str| {
        json!({"metadata": {"name": "a"}, "status": {"addresses": [
            {"type": "Hostname", "address": "a"},
            {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "192.168.0.1"},
            {"type": "ExternalIP", "address": external}, {"type": "InternalIP", "address": "2001:db8::1"}]}})
    };
    let cases = [
        ("", "10.0.0.1 2001:db8::1"),
        ("node_address = { cidrs = ['192.168.0.0/16'] }", "192.168.0.1"),
        ("node_address = { type = 'ExternalIP' }", "198.51.100.1"),
    ];
    for (config, expected) in cases {
        let mut world = World::new(config);
        world.service(&web());
        world.record("203.0.113.1", &[("web", "u1")]);
        world.raw_node(node("198.51.100.1"));
        let addresses = |w: &World| {
            w.translate().desired.nodes[0].addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(addresses(&world), expected);
        if config.contains("External") {
            assert_eq!(world.raw_node(node("198.51.100.2")), Changed::Desired);
            assert_eq!(addresses(&world), "198.51.100.2");
        }
    }
}

#[test]
fn with_no_node_at_all_the_vip_stays() {
    let mut world = World::new("");
    world.service(&web());
    world.record("203.0.113.1", &[("web", "u1")]);
    let translation = world.translate();
    assert_eq!(translation.desired.services[0].vip.to_string(), "203.0.113.1");
    assert_eq!(translation.empty_sets.len(), 1);
    let (ingress, conditions) = said(&world.plan(), Signals { health: Health::NoBackends, ..GOOD });
    assert_eq!((ingress.len(), conditions[2].clone()), (1, (true, "NoBackends".into())));
}

// --- fields

#[test]
fn several_ports_and_one_number_on_two_protocols() {
    let service = changed(web(), |s| {
        s["spec"]["ports"] = json!([
            {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
            {"name": "dns-tcp", "protocol": "TCP", "port": 53, "nodePort": 30053},
            {"name": "web", "protocol": "TCP", "port": 443, "nodePort": 30443}]);
    });
    let services = serving(&service).translate().desired.services;
    let got: Vec<_> = services.iter().map(|s| (s.name.as_str(), s.port, s.protocol, s.target_port.unwrap())).collect();
    assert_eq!(
        got,
        [
            ("default/web:dns", 53, Protocol::Udp, 30053),
            ("default/web:dns-tcp", 53, Protocol::Tcp, 30053),
            ("default/web:web", 443, Protocol::Tcp, 30443),
        ]
    );
}

#[test]
fn port_and_node_port_edits_keep_the_vip() {
    let mut world = serving(&web());
    world.service(&changed(web(), |s| {
        s["spec"]["ports"][0]["port"] = json!(81);
        s["spec"]["ports"][0]["nodePort"] = json!(30081);
    }));
    let service = &world.translate().desired.services[0];
    assert_eq!((service.vip.to_string().as_str(), service.port, service.target_port), ("203.0.113.1", 81, Some(30081)));
}

#[test]
fn session_affinity_holds_over_the_ports_of_a_service() {
    assert!(serving(&web()).translate().desired.services.iter().all(|service| service.affinity.is_none()));
    let sticky = |config: Value| {
        changed(web(), |s| {
            s["spec"]["sessionAffinity"] = json!("ClientIP");
            s["spec"]["sessionAffinityConfig"] = config;
            s["spec"]["ports"] = json!([
                {"name": "web", "protocol": "TCP", "port": 80, "nodePort": 30080},
                {"name": "alt", "protocol": "UDP", "port": 80, "nodePort": 30081}]);
        })
    };
    for (config, timeout) in [(json!(null), 10_800), (json!({"clientIP": {"timeoutSeconds": 60}}), 60)] {
        let services = serving(&sticky(config)).translate().desired.services;
        let wanted = Affinity { timeout, group: Some("default/web".into()), ..Affinity::client_ip() };
        assert_eq!(services.len(), 2);
        assert!(services.iter().all(|service| service.affinity.as_ref() == Some(&wanted)), "{services:?}");
    }
}

#[test]
fn limits_are_of_all_clients_and_of_each() {
    use penstock_configs::desired::{ServiceLimits, SourceLimits};
    let both = |connections: &str, rate: Option<&str>| {
        let mut service = annotated("penstock.dev/limit-connections", connections);
        if let Some(rate) = rate {
            service["metadata"]["annotations"]["penstock.dev/limit-rate"] = json!(rate);
        }
        serving(&service).translate().desired.services[0].limits.clone().expect("limits")
    };
    let all = ServiceLimits { connections: Some(10_000), ..ServiceLimits::default() };
    assert_eq!(both("10000", None), all);
    let source = SourceLimits { connections: Some(100), ..SourceLimits::default() };
    assert_eq!(both("10000, source=100", None), ServiceLimits { per_source: Some(source.clone()), ..all.clone() });
    assert_eq!(
        both("source=100,10000", Some("500,source=5")),
        ServiceLimits {
            new_per_second: Some(500),
            per_source: Some(SourceLimits { new_per_second: Some(5), ..source }),
            ..all
        }
    );
    assert_eq!(serving(&web()).translate().desired.services[0].limits, None);
    for bad in ["0", "many", "1,2", "source=", "source=0", "", "1,source=2,source=3"] {
        let (reason, message) = refusal(&serving(&annotated("penstock.dev/limit-rate", bad)).plan());
        assert!(reason == "BadAnnotation" && message.contains("is no limit"), "{bad}: {reason}: {message}");
    }
}

#[test]
fn unknown_and_unreadable_annotations_are_refused_by_name() {
    for (key, value) in [
        ("penstock.dev/adresses", "203.0.113.7"),
        ("penstock.dev/addresses", "203.0.113"),
        ("penstock.dev/addresses", "203.0.113.7,203.0.113.8"),
        ("penstock.dev/mode", "magic"),
        ("penstock.dev/idle-timeout", "soon"),
        ("penstock.dev/sticky", "yes"),
        ("penstock.dev/weights", "some"),
        ("metallb.io/loadBalancerIPs", "x"),
    ] {
        let (_, message) = refusal(&serving(&annotated(key, value)).plan());
        assert!(message.contains(key), "{message}");
    }
}

fn local(nodes: Value) -> World {
    let mut world = serving(&changed(web(), |s| {
        s["spec"]["externalTrafficPolicy"] = json!("Local");
        s["spec"]["healthCheckNodePort"] = json!(31000);
    }));
    world.slice("web", nodes);
    world
}

fn endpoint(node: &str, ready: Value, serving: Value, terminating: Value) -> Value {
    json!({"addresses": ["10.1.0.1"], "nodeName": node,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

#[test]
fn local_uses_only_nodes_with_endpoints_by_their_number() {
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    let world = local(json!([ready("a"), ready("a"), ready("b"), {"addresses": ["10.1.0.9"]}]));
    assert_eq!(world.backends(), ["a=2", "b=1"]);
    let mut world = local(json!([ready("a"), ready("a"), ready("b")]));
    world.service(&changed(annotated("penstock.dev/weights", "equal"), |s| {
        s["spec"]["externalTrafficPolicy"] = json!("Local");
    }));
    assert_eq!(world.backends(), ["a=1", "b=1"]);
}

#[test]
fn local_reads_unset_conditions_as_the_api_says() {
    let cases = [
        (endpoint("a", Value::Null, Value::Null, Value::Null), vec!["a=1"]),
        (json!({"addresses": ["10.1.0.1"], "nodeName": "a"}), vec!["a=1"]),
        (endpoint("a", json!(false), Value::Null, json!(true)), vec![]),
        (endpoint("a", json!(false), json!(true), json!(true)), vec!["a=1"]),
        (endpoint("a", json!(false), json!(true), json!(false)), vec![]),
    ];
    for (endpoint, expected) in cases {
        assert_eq!(local(json!([endpoint])).backends(), expected, "{endpoint}");
    }
}

#[test]
fn terminating_endpoints_drain_while_others_are_ready_and_serve_when_none_is() {
    let gone = |node| endpoint(node, json!(false), json!(true), json!(true));
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    assert_eq!(local(json!([gone("a"), ready("b")])).backends(), ["a=1/draining", "b=1"]);
    assert_eq!(local(json!([gone("a"), gone("b")])).backends(), ["a=1", "b=1"]);
    // A ready endpoint on a node that is itself no backend helps nobody.
    let mut world = local(json!([gone("a"), ready("b")]));
    world.node(
        "b",
        json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}),
        json!({}),
        &["10.0.0.2"],
    );
    assert_eq!(world.backends(), ["a=1"]);
}

#[test]
fn endpoints_of_several_slices_add_up_and_leave_with_them() {
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    let mut world = local(json!([ready("a")]));
    world.slice_named("hand-made", "web", json!([ready("a"), ready("c")]));
    assert_eq!(world.backends(), ["a=2", "c=1"]);
    world.index.apply(Update::Slice(Change::Gone(ServiceKey::new("default", "hand-made"), 0)));
    assert_eq!(world.backends(), ["a=1"]);
}

#[test]
fn live_switching_of_the_policy_both_ways() {
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    let mut world = local(json!([ready("a")]));
    assert_eq!(world.backends(), ["a=1"]);
    world.service(&web());
    assert_eq!(world.backends(), ["a=1", "b=1", "c=1"]);
    world.service(&changed(web(), |s| s["spec"]["externalTrafficPolicy"] = json!("Local")));
    assert_eq!(world.backends(), ["a=1"]);
    assert_eq!(world.plan().vips[0].to_string(), "203.0.113.1");
}

#[test]
fn local_in_nat_mode_says_that_the_source_is_lost_and_dnat_does_not() {
    for (mode, reason) in [("nat", "ServingSourceNotPreserved"), ("dnat", "Serving")] {
        let service =
            changed(annotated("penstock.dev/mode", mode), |s| s["spec"]["externalTrafficPolicy"] = json!("Local"));
        let plan = serving(&service).plan();
        assert_eq!(said(&plan, GOOD).1[0], (true, reason.to_owned()));
    }
}

#[test]
fn local_is_checked_by_its_health_check_node_port_and_cluster_by_the_nodes() {
    let world = local(json!([endpoint("a", json!(true), json!(true), json!(false))]));
    let targets = world.translate().targets;
    assert_eq!(targets.len(), 1);
    assert_eq!(&*targets[0].id, "local/default/web/a/10.0.0.1");
    assert_eq!(targets[0].covers, [Some(30080)]);
    assert!(
        matches!(&targets[0].check, Check::Http { port: 31000, path, drain_on_503: true, .. } if path == "/healthz")
    );

    let mut world = serving(&web());
    let mut other = changed(web(), |s| s["metadata"]["uid"] = json!("u2"));
    other["metadata"]["name"] = json!("second");
    world.service(&other);
    world.record("203.0.113.2", &[("second", "u2")]);
    let targets = world.translate().targets;
    assert_eq!(targets.len(), 3, "one per node, not per Service");
    assert!(targets.iter().all(|t| matches!(t.check, Check::Http { port: 10256, .. }) && t.covers == [None]));
}

#[test]
fn probing_each_node_port_is_opt_in() {
    let mut world = World::with_nodes("probes = { each_node_port = true, node = 'none' }", &["a", "b"]);
    world.service(&web());
    world.record("203.0.113.1", &[("web", "u1")]);
    let targets = world.translate().targets;
    assert_eq!(targets.len(), 2);
    assert!(targets.iter().all(|t| t.check == Check::Tcp { port: 30080 } && t.covers == [Some(30080)]));
}

#[test]
fn source_ranges_come_from_the_field_then_the_annotation_and_fail_closed() {
    let old = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let ranges = |service: &Value| {
        let world = serving(service);
        let services = world.translate().desired.services;
        services[0].source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let field = |s: &mut Value| s["spec"]["loadBalancerSourceRanges"] = json!([" 10.0.0.0/8 ", "192.0.2.7/24"]);
    assert_eq!(ranges(&annotated(old, " 10.0.0.0/8, 2001:db8::/32")), ["10.0.0.0/8", "2001:db8::/32"]);
    assert_eq!(ranges(&annotated(old, "  ")), Vec::<String>::new());
    assert_eq!(ranges(&changed(annotated(old, "172.16.0.0/12"), field)), ["10.0.0.0/8", "192.0.2.0/24"]);
    let bad = serving(&annotated(old, "10.0.0.0/8,10.0.0.1/99"));
    assert_eq!(refusal(&bad.plan()).0, "BadSourceRange");
    assert!(bad.translate().desired.services.is_empty(), "closed, not open");
    assert_eq!(bad.plan().vips.len(), 1, "and the address is kept");
    assert!(bad.translate().orphans.is_empty());
}

#[test]
fn load_balancer_ip_is_a_request_and_must_not_contradict_the_annotation() {
    let with = |s: Value, ip: &str| changed(s, |s| s["spec"]["loadBalancerIP"] = json!(ip));
    assert_eq!(serving(&with(web(), "203.0.113.1")).plan().stage, Stage::Programmed);
    let plan = serving(&with(web(), "203.0.113.7")).plan();
    assert_eq!(
        (plan.missing.len(), plan.vips[0].to_string()),
        (1, "203.0.113.1".into()),
        "the old one serves meanwhile"
    );
    let both = with(annotated("penstock.dev/addresses", "203.0.113.8"), "203.0.113.7");
    assert_eq!(refusal(&serving(&both).plan()).0, "Conflict");
}

#[test]
fn metallbs_annotations_are_aliases() {
    for domain in ["metallb.io", "metallb.universe.tf"] {
        let service = changed(annotated(&format!("{domain}/loadBalancerIPs"), "203.0.113.1"), |s| {
            s["metadata"]["annotations"][format!("{domain}/address-pool")] = json!("p");
            s["metadata"]["annotations"][format!("{domain}/allow-shared-ip")] = json!("k");
            s["metadata"]["annotations"][format!("{domain}/ip-allocated-from-pool")] = json!("old");
        });
        let world = serving(&service);
        assert_eq!(world.plan().stage, Stage::Programmed);
        let info = world.index.services.get(&ServiceKey::new("default", "web")).unwrap();
        let ask = ask::read(&info.spec, &world.kubernetes()).unwrap();
        assert_eq!((ask.pool.as_deref(), ask.share_key.as_deref(), ask.addresses.len()), (Some("p"), Some("k"), 1));
    }
    let twice = changed(annotated("metallb.io/address-pool", "x"), |s| {
        s["metadata"]["annotations"]["penstock.dev/pool"] = json!("y");
    });
    assert_eq!(refusal(&serving(&twice).plan()).0, "Conflict");
}

#[test]
fn dual_stack_has_one_address_per_family_and_changes_leave_the_first_alone() {
    let dual = changed(web(), |s| s["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]));
    let mut world = serving(&dual);
    let plan = world.plan();
    assert_eq!((plan.stage.clone(), plan.missing.as_slice()), (Stage::Programmed, [pool::Family::V6].as_slice()));
    assert_eq!(said(&plan, GOOD).1[2], (true, "MissingAddress".into()), "degrades visibly");
    let first = world.translate().desired.services[0].clone();

    world.record("2001:db8:f::1", &[("web", "u1")]);
    let translation = world.translate();
    assert_eq!(translation.desired.services[0], first);
    assert_eq!(translation.desired.services[1].name, "default/web:http/IPv6");
    assert_eq!(translation.desired.services[1].set.as_deref(), Some("nodes/IPv6"));
    assert_eq!(said(&world.plan(), GOOD).0, ["203.0.113.1/Proxy", "2001:db8:f::1/Proxy"]);

    world.service(&web());
    let translation = world.translate();
    assert_eq!(translation.desired.services, [first]);
    assert_eq!(world.plan().surplus, ["2001:db8:f::1".parse::<IpAddr>().unwrap()]);
    assert_eq!(translation.orphans.len(), 1);
}

#[test]
fn on_a_shared_address_the_first_claim_has_the_port() {
    let mut world = serving(&web());
    let mut other = changed(web(), |s| s["metadata"]["uid"] = json!("u2"));
    other["metadata"]["name"] = json!("aaa");
    world.service(&other);
    world.record_with("203.0.113.1", &[("web", "u1"), ("aaa", "u2")], json!({"shareKey": "k"}));
    for service in [&web(), &other] {
        world.service(&changed(service.clone(), |s| {
            s["metadata"]["annotations"]["penstock.dev/share-key"] = json!("k");
        }));
    }
    let translation = world.translate();
    let (reason, message) = refusal(&translation.plans[&ServiceKey::new("default", "aaa")]);
    assert_eq!(reason, "PortConflict");
    assert!(message.contains("default/web") && message.contains("80/TCP"), "{message}");
    assert_eq!(world.plan().stage, Stage::Programmed);
    assert_eq!(translation.desired.services.len(), 1);
}

// --- several boxes

#[test]
fn only_the_leader_announces_and_routes_let_all_serve_silently() {
    for (config, leader, announce) in [
        ("", true, Announce::L2),
        ("", false, Announce::None),
        ("announce = 'routes'", true, Announce::None),
        ("announce = 'routes'", false, Announce::None),
    ] {
        let mut world = World::with_nodes(config, &["a"]);
        world.service(&web());
        world.record("203.0.113.1", &[("web", "u1")]);
        let translation = translate(&world.index, &world.config, leader, &Quarantine::default());
        assert_eq!(translation.desired.services[0].announce, Some(announce), "{config} {leader}");
    }
}

#[test]
fn a_service_the_dataplane_refused_by_name_is_left_out_alone() {
    let mut world = serving(&web());
    let mut other = changed(web(), |s| s["metadata"]["uid"] = json!("u2"));
    other["metadata"]["name"] = json!("second");
    world.service(&other);
    world.record("203.0.113.2", &[("second", "u2")]);
    let services = HashMap::from([(ServiceKey::new("default", "web"), "claimed by owner `file`".to_owned())]);
    let quarantine = Quarantine { services, ..Quarantine::default() };
    let translation = translate(&world.index, &world.config, true, &quarantine);
    assert_eq!(translation.desired.services.len(), 1);
    assert_eq!(refusal(&translation.plans[&ServiceKey::new("default", "web")]).0, "RefusedByDataplane");
}

// --- the index itself

#[test]
fn a_resync_that_changes_nothing_is_silent_and_one_that_lacks_something_is_not() {
    let mut world = serving(&web());
    let config = world.kubernetes();
    let resync = |world: &mut World, services: &[Value]| {
        let mut changed = world.index.apply(on_service(Event::Init, &config));
        for value in services {
            let object = world.object(value.clone());
            changed = changed.and(world.index.apply(on_service(Event::InitApply(object), &config)));
        }
        changed.and(world.index.apply(on_service(Event::InitDone, &config)))
    };
    assert_eq!(resync(&mut world, &[web()]), Changed::Desired, "the first list is news");
    assert_eq!(resync(&mut world, &[web()]), Changed::Nothing);
    assert_eq!(resync(&mut world, &[]), Changed::Desired);
    assert!(world.index.services.is_empty());
}

#[test]
fn an_older_state_told_late_does_not_undo_what_we_wrote() {
    let mut world = serving(&web());
    let config = world.kubernetes();
    let mut late = changed(web(), |s| s["metadata"]["finalizers"] = json!([]));
    late["metadata"]["resourceVersion"] = json!("7");
    let object: Service = serde_json::from_value(late).unwrap();
    assert_eq!(world.index.apply(on_service(Event::Apply(object.clone()), &config)), Changed::Nothing);
    assert_eq!(world.index.apply(on_service(Event::Delete(object), &config)), Changed::Nothing);
    assert_eq!(world.plan().stage, Stage::Programmed);
}

#[test]
fn services_that_concern_nobody_are_not_kept() {
    let mut world = World::new("");
    for kind in ["ClusterIP", "NodePort"] {
        world.service(&json!({"metadata": {"namespace": "default", "name": "x", "uid": "u"}, "spec": {"type": kind}}));
    }
    assert!(world.index.services.is_empty());
}

#[test]
fn five_thousand_services_on_five_hundred_nodes_translate_in_a_blink() {
    let names: Vec<String> = (0..500).map(|i| format!("node-{i}")).collect();
    let mut world = World::new("");
    for (i, name) in names.iter().enumerate() {
        world.node(name, json!({}), json!({}), &[&format!("10.1.{}.{}", i / 250, i % 250 + 1)]);
    }
    for i in 0..5000 {
        let name: Arc<str> = format!("s{i}").into();
        let mut service = web();
        service["metadata"]["name"] = json!(&*name);
        service["metadata"]["uid"] = json!(format!("u{i}"));
        world.service(&service);
        let address = format!("198.18.{}.{}", i / 250, i % 250);
        world.record(&address, &[(&name, &format!("u{i}"))]);
    }
    let start = std::time::Instant::now();
    let translation = world.translate();
    let took = start.elapsed();
    println!("translated in {took:?}");
    assert_eq!((translation.desired.services.len(), translation.desired.sets.len()), (5000, 1));
    assert_eq!(translation.targets.len(), 500);
    // Ten times what it takes: a quadratic step would take minutes.
    assert!(took < std::time::Duration::from_millis(1000), "{took:?}");
}

#[test]
fn modes_reach_the_snapshot() {
    let services = serving(&annotated("penstock.dev/mode", "dnat")).translate().desired.services;
    assert_eq!(services[0].mode, Mode::Dnat);
    let services = serving(&annotated("penstock.dev/idle-timeout", "15m")).translate().desired.services;
    assert_eq!(services[0].timeouts.as_ref().unwrap().udp, Some(900));
}
