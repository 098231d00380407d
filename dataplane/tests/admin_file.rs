//! The config file as an owner: at start, on reload, and against what others hold.

#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "support/memory_engine.rs"]
mod memory_engine;

use std::path::Path;
use std::sync::Arc;

use memory_engine::MemoryEngine;
use penstock_configs::api::Accepted;
use penstock_configs::file::ConfigFile;
use penstock_configs::source;
use penstock_configs::status::StatusQuery;
use penstock_configs::validate::BoxContext;
use penstock_dataplane::admin::{AdminHandle, Refusal};

fn file(vip: &str, name: &str) -> ConfigFile {
    let text = format!(
        r#"
        version = 1
        [[port]]
        interface = "eth0"
        [[snat]]
        address = "10.0.0.250"
        [[service]]
        name = "{name}"
        vip = "{vip}"
        port = 80
        protocol = "tcp"
        target_port = 30080
        backends = [{{ address = "10.0.0.11" }}]
        "#
    );
    source::parse(&text, "test.toml").expect("a good file")
}

fn start(
    state: &Path,
    file: Option<&ConfigFile>,
) -> (Arc<MemoryEngine>, AdminHandle, Option<Result<Accepted, Refusal>>) {
    let engine = Arc::new(MemoryEngine::default());
    let context = file.map(|file| BoxContext::new(file, None)).unwrap_or_default();
    let (admin, outcome) = AdminHandle::start(Arc::clone(&engine) as Arc<_>, state, context, file);
    (engine, admin, outcome)
}

fn apply(admin: &AdminHandle, file: &ConfigFile) -> Result<Accepted, Refusal> {
    admin.apply_file(file, BoxContext::new(file, None))
}

/// What another owner puts on `vip`.
fn other(vip: &str) -> String {
    format!(
        r#"{{"generation": 1, "service": [{{"name": "web", "vip": "{vip}", "port": 80, "protocol": "tcp",
            "backends": [{{"address": "10.0.0.12", "port": 30080}}]}}]}}"#
    )
}

#[test]
fn the_file_counts_its_own_generations_and_only_when_it_changed() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, outcome) = start(state.path(), Some(&file("203.0.113.1", "web")));
    assert_eq!(outcome.expect("a file was given").expect("accepted").generation, Some(1));
    assert_eq!(engine.published().times, 1, "one publication at start");
    assert_eq!(apply(&admin, &file("203.0.113.1", "web")).expect("accepted").generation, Some(1));
    assert_eq!(engine.published().times, 1, "a touched file is no change");
    assert_eq!(apply(&admin, &file("203.0.113.2", "web")).expect("accepted").generation, Some(2));
    let (engine, _, outcome) = start(state.path(), Some(&file("203.0.113.2", "web")));
    assert_eq!(outcome.expect("given").expect("accepted").generation, Some(2), "counted on over a restart");
    assert_eq!(engine.published().times, 1);
    let (_, _, outcome) = start(state.path(), Some(&file("203.0.113.3", "web")));
    assert_eq!(outcome.expect("given").expect("accepted").generation, Some(3));
}

#[test]
fn a_bad_file_leaves_the_running_one_alone_and_says_so() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    let refused = apply(&admin, &file("203.0.113.1", "uncompilable"));
    assert!(matches!(refused, Err(Refusal::Faults(_))), "{refused:?}");
    assert_eq!(engine.published().owners["file"].services[0].name, "web");
    let status = admin.status(&StatusQuery::default());
    assert!(status.owners[0].refused.as_ref().is_some_and(|why| why.contains("can not be compiled")), "{status:?}");
    let (engine, admin, outcome) = start(state.path(), Some(&file("203.0.113.1", "uncompilable")));
    assert!(outcome.expect("given").is_err());
    assert_eq!(engine.published().owners["file"].services[0].name, "web", "the stored file serves at start");
    assert!(admin.status(&StatusQuery::default()).owners[0].refused.is_some());
}

#[test]
fn file_and_cluster_can_not_take_each_others_vips() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    assert!(admin.put("prod", other("203.0.113.1").as_bytes()).is_err());
    admin.put("prod", other("203.0.113.2").as_bytes()).expect("a VIP of its own");
    let refused = apply(&admin, &file("203.0.113.2", "web")).expect_err("prod has it");
    assert!(refused.to_string().contains("prod"), "{refused}");
    assert_eq!(engine.published().owners["file"].services[0].vip.to_string(), "203.0.113.1");
    let (engine, _, outcome) = start(state.path(), Some(&file("203.0.113.2", "web")));
    assert!(outcome.expect("given").is_err());
    assert_eq!(engine.published().times, 1, "the stored file is in the first publication");
    let owners = engine.published().owners;
    let vips: Vec<String> = owners.values().map(|desired| desired.services[0].vip.to_string()).collect();
    assert_eq!(vips.len(), 2, "both serve: {vips:?}");
    assert_ne!(vips[0], vips[1]);
    assert_eq!(owners["prod"].services[0].vip.to_string(), "203.0.113.2", "who held it keeps it over a restart");
}

#[test]
fn a_wire_snapshot_is_held_against_the_box_of_the_file() {
    let state = tempfile::tempdir().expect("a directory");
    let (_, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    let refused = admin.put("prod", other("10.0.0.250").as_bytes()).expect_err("a SNAT address is no VIP");
    assert!(refused.to_string().contains("10.0.0.250"), "{refused}");
    let v6 = other("2001:db8::1").replace("10.0.0.12", "fd00::12");
    assert!(admin.put("prod", v6.as_bytes()).is_err(), "no SNAT address of that family");
}

#[test]
fn with_no_file_what_is_stored_serves() {
    let state = tempfile::tempdir().expect("a directory");
    drop(start(state.path(), Some(&file("203.0.113.1", "web"))));
    let (engine, _, outcome) = start(state.path(), None);
    assert!(outcome.is_none());
    // No [[snat]] is known without a file, so a `nat` service can not be served, and is said to be so.
    assert!(engine.published().owners.is_empty());
}
