//! The files of `configs/kubernetes` are what the code reads, makes and needs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use penstock_control::config::ControlConfig;
use penstock_control::crd::{self, VipPool};
use penstock_control::index::{ask, extract};
use penstock_control::pool::Pool;
use serde_json::{Value, json};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes").join(name)
}

fn documents(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path(name)).expect(name);
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn the_definitions_are_those_of_the_types() {
    let made = crd::manifest().expect("YAML");
    let kept = std::fs::read_to_string(path("crds.yaml")).expect("crds.yaml");
    assert!(made == kept, "run: penstock-control crds > configs/kubernetes/crds.yaml");
}

#[test]
fn no_definition_has_what_the_api_server_refuses() {
    // "additionalProperties may not be false" beside properties, in a structural schema.
    assert!(!crd::manifest().expect("YAML").contains("additionalProperties: false"));
}

#[test]
fn every_manifest_is_yaml_with_a_kind() {
    for entry in std::fs::read_dir(path(".")).expect("configs/kubernetes") {
        let name = entry.expect("entry").file_name().into_string().expect("name");
        if name.ends_with(".yaml") {
            for document in documents(&name) {
                assert!(document["kind"].is_string() && document["metadata"]["name"].is_string(), "{name}: {document}");
            }
        }
    }
}

#[test]
fn the_example_configurations_are_good() {
    let file = path("control.toml");
    let config = ControlConfig::load(&file).expect("control.toml");
    let kubernetes = config.kubernetes.expect("[kubernetes]");
    let defaults = penstock_control::config::KubernetesConfig::default();
    assert_eq!((&kubernetes.timing, &kubernetes.probes), (&defaults.timing, &defaults.probes), "says the defaults");
    assert_eq!(config.health, penstock_control::config::HealthConfig::default());
    let pod = documents("box-node.yaml").remove(0);
    let text = pod["data"]["control.toml"].as_str().expect("text");
    ControlConfig::parse(&file, text).expect("the ConfigMap's");
}

#[test]
fn the_example_services_are_served_by_the_example_pools() {
    let config = ControlConfig::load(&path("control.toml")).expect("control.toml").kubernetes.expect("[kubernetes]");
    let pools: Vec<Pool> = documents("pools.yaml")
        .into_iter()
        .map(|value| {
            let pool: VipPool = serde_json::from_value(value).expect("VipPool");
            Pool::new(pool.metadata.name.as_deref().expect("name"), pool.spec.into())
        })
        .collect();
    assert!(pools.iter().all(|p| p.fault.is_none()));
    for mut value in documents("services.yaml") {
        // The API server's part.
        value["spec"]["clusterIP"] = json!("10.96.0.1");
        for (i, port) in value["spec"]["ports"].as_array_mut().expect("ports").iter_mut().enumerate() {
            port["nodePort"] = json!(30000 + i);
        }
        let service = serde_json::from_value(value).expect("Service");
        let info = extract::service(&service, &config).expect("ours");
        assert!(ask::is_wanted(&info.spec, &config));
        let asked = ask::read(&info.spec, &config).expect("served");
        for address in &asked.addresses {
            assert!(pools.iter().any(|p| p.contains(*address)), "{address}");
        }
        if let Some(name) = &asked.pool {
            let pool = pools.iter().find(|p| *p.name == **name).expect("a pool of the example");
            let namespace = service.metadata.namespace.as_deref().expect("namespace");
            assert!(pool.admits(namespace, &std::collections::BTreeMap::new(), &info.spec.labels));
        }
    }
}

#[test]
fn every_annotation_has_an_example_and_a_line_of_text() {
    let said: BTreeSet<String> = documents("services.yaml")
        .iter()
        .flat_map(|service| service["metadata"]["annotations"].as_object().cloned().unwrap_or_default())
        .map(|(key, _)| key)
        .collect();
    let text = std::fs::read_to_string(path("README.md")).expect("README.md");
    let aliases = ["metallb.io/loadBalancerIPs", "metallb.io/address-pool", "metallb.universe.tf/allow-shared-ip"];
    let ours = ask::ANNOTATIONS.map(|name| format!("penstock.dev/{name}"));
    for key in ours.iter().map(String::as_str).chain(aliases).chain([ask::SOURCE_RANGES]) {
        assert!(said.contains(key), "no example of {key}");
    }
    for key in ask::ANNOTATIONS {
        assert!(text.contains(key), "README.md does not tell of {key}");
    }
}

#[test]
fn every_alert_asks_for_metrics_that_there_are() {
    let metrics = penstock_control::metrics::Metrics::new();
    // A family without members is not told of.
    let pool = penstock_control::metrics::PoolLabel { pool: "p".into() };
    metrics.addresses.get_or_create(&pool).set(1);
    metrics.in_use.get_or_create(&pool).set(1);
    let metrics = metrics.text();
    let mut alerts = 0;
    for document in documents("servicemonitor.yaml").iter().filter(|d| d["kind"] == "PrometheusRule") {
        let groups = document["spec"]["groups"].as_array().expect("groups");
        for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")) {
            let words = rule["expr"].as_str().expect("text").split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in words.filter(|word| word.contains('_')) {
                alerts += 1;
                let described = format!("# TYPE {name} ");
                assert!(metrics.contains(&described), "{}: there is no metric {name}\n{metrics}", rule["alert"]);
            }
        }
    }
    assert!(alerts >= 4);
}

#[test]
fn the_rights_are_those_that_are_used_and_no_more() {
    let mut granted = BTreeSet::new();
    for document in documents("rbac.yaml") {
        for rule in document["rules"].as_array().into_iter().flatten() {
            let list = |field: &str| {
                let values = rule[field].as_array().expect("list").iter();
                values.map(|v| v.as_str().expect("text").to_owned()).collect::<Vec<_>>()
            };
            for resource in list("resources") {
                for verb in list("verbs") {
                    granted.insert(format!("{verb} {resource}"));
                }
            }
        }
    }
    let used = [
        ("services nodes namespaces endpointslices vippools vipallocations", "get list watch"),
        ("services/status vippools/status vipboxes/status", "patch"),
        ("events", "create patch"),
        ("vipallocations", "create update delete"),
        ("vipboxes", "list create delete"),
        ("leases", "create get update"),
    ];
    let used: BTreeSet<String> = used
        .iter()
        .flat_map(|(resources, verbs)| {
            resources.split(' ').flat_map(move |r| verbs.split(' ').map(move |v| format!("{v} {r}")))
        })
        .collect();
    assert_eq!(granted, used);
}
