//! The config file as an owner: at start, on reload, and against what others hold.

#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "support/memory_engine.rs"]
mod memory_engine;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use memory_engine::MemoryEngine;
use penstock_configs::api::Accepted;
use penstock_configs::file::ConfigFile;
use penstock_configs::source;
use penstock_configs::status::StatusQuery;
use penstock_configs::validate::BoxContext;
use penstock_dataplane::admin::{AdminHandle, Refusal};
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(20);

fn file(vip: &str, name: &str) -> ConfigFile {
    file_with("10.0.0.250", vip, name)
}

fn file_with(snat: &str, vip: &str, name: &str) -> ConfigFile {
    let text = format!(
        r#"
        version = 1
        [[port]]
        interface = "eth0"
        [[snat]]
        address = "{snat}"
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
    others(1, &[("web", vip)])
}

/// A generation of another owner's services, by name and VIP.
fn others(generation: u64, services: &[(&str, &str)]) -> String {
    let service = |(name, vip): &(&str, &str)| {
        format!(
            r#"{{"name": "{name}", "vip": "{vip}", "port": 80, "protocol": "tcp",
                "backends": [{{"address": "10.0.0.12", "port": 30080}}]}}"#
        )
    };
    let services: Vec<String> = services.iter().map(service).collect();
    format!(r#"{{"generation": {generation}, "service": [{}]}}"#, services.join(", "))
}

fn vips(engine: &MemoryEngine, owner: &str) -> Vec<String> {
    engine.published().owners[owner].services.iter().map(|service| service.vip.to_string()).collect()
}

fn snat(engine: &MemoryEngine) -> Vec<String> {
    engine.published().snat.iter().map(ToString::to_string).collect()
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

#[test]
fn the_box_and_its_services_are_one_publication() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    apply(&admin, &file_with("10.0.0.251", "203.0.113.3", "web")).expect("a good file");
    assert_eq!((engine.published().times, snat(&engine)), (2, vec!["10.0.0.251".to_owned()]));
    let accepted = apply(&admin, &file_with("10.0.0.252", "203.0.113.3", "web")).expect("a good file");
    assert_eq!((engine.published().times, snat(&engine)), (3, vec!["10.0.0.252".to_owned()]), "the box alone");
    assert_eq!((accepted.generation, accepted.epoch), (Some(2), 3));
    apply(&admin, &file_with("10.0.0.252", "203.0.113.3", "web")).expect("a good file");
    assert_eq!(engine.published().times, 3, "nothing changed");
}

#[test]
fn a_refused_file_reaches_no_worker_and_is_not_what_others_are_held_against() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    admin.put("prod", other("203.0.113.2").as_bytes()).expect("a VIP of its own");
    // Another SNAT address, and a VIP that is taken.
    apply(&admin, &file_with("10.0.0.251", "203.0.113.2", "web")).expect_err("prod has the VIP");
    assert_eq!((engine.published().times, snat(&engine)), (2, Vec::new()), "nothing was published");
    let put = |generation, vip| admin.put("prod", others(generation, &[("web", vip)]).as_bytes());
    put(2, "10.0.0.250").expect_err("the running box's SNAT address");
    put(2, "10.0.0.251").expect("no SNAT address of the running box");
}

#[test]
fn a_reload_takes_no_address_from_other_owners() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    admin.put("prod", other("203.0.113.2").as_bytes()).expect("a VIP of its own");
    let refused = apply(&admin, &file_with("203.0.113.2", "203.0.113.1", "web")).expect_err("it is prod's VIP");
    let told = refused.to_string();
    assert!(told.contains("prod: service[0] \"web\".vip: 203.0.113.2 is a SNAT address of the box"), "{told}");
    let mut without = file("203.0.113.1", "web");
    without.snat.clear();
    without.services.clear();
    let refused = apply(&admin, &without).expect_err("prod is served in mode nat");
    assert!(refused.to_string().contains("prod: service[0] \"web\".mode"), "{refused}");
    assert_eq!(engine.published().times, 2);
    let status = admin.status(&StatusQuery::default());
    assert!(status.owners[0].refused.as_ref().is_some_and(|why| why.contains("prod")), "{status:?}");
}

#[test]
fn at_a_start_in_another_box_only_what_is_at_fault_is_left_out() {
    let state = tempfile::tempdir().expect("a directory");
    let (_, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    let whole = others(7, &[("web", "203.0.113.2"), ("mail", "203.0.113.3"), ("dns", "203.0.113.4")]);
    admin.put("prod", whole.as_bytes()).expect("VIPs of its own");
    let changed = file_with("203.0.113.3", "203.0.113.1", "web");
    let (engine, admin, outcome) = start(state.path(), Some(&changed));
    outcome.expect("given").expect("what it takes was left out");
    assert_eq!(vips(&engine, "prod"), ["203.0.113.2", "203.0.113.4"]);
    assert_eq!(engine.published().times, 1, "in the first publication");
    let notices = admin.status(&StatusQuery::default()).notices.join("\n");
    assert!(notices.contains("service[1] \"mail\".vip: 203.0.113.3 is a SNAT address"), "{notices}");
    // Who sent it sees that it is not served whole, and sending it again is judged anew.
    assert_eq!(admin.desired("prod").expect("an owner").generation, 6);
    let refused = admin.put("prod", whole.as_bytes()).expect_err("the service is at fault still");
    assert!(matches!(&refused, Refusal::Faults(faults) if faults[0].path.starts_with("service[1]")), "{refused}");
    let notices = || admin.status(&StatusQuery::default()).notices;
    assert!(notices().iter().any(|notice| notice.contains("left out at this start")), "{:?}", notices());
    let mended = others(7, &[("web", "203.0.113.2"), ("mail", "203.0.113.5")]);
    assert_eq!(start(state.path(), Some(&file("203.0.113.1", "web"))).0.published().owners["prod"].services.len(), 3);
    admin.put("prod", mended.as_bytes()).expect("good in this box");
    assert!(!notices().iter().any(|notice| notice.contains("left out")), "{:?}", notices());
}

#[test]
fn at_a_start_a_family_without_snat_and_a_node_that_became_the_box_cost_no_more_than_themselves() {
    let state = tempfile::tempdir().expect("a directory");
    let v6 = "[[snat]]\naddress = \"fd00::250\"\n";
    let text = "version = 1\n[[port]]\ninterface = \"eth0\"\n[[snat]]\naddress = \"10.0.0.250\"\n";
    let file = |text: &str| source::parse(text, "test.toml").expect("a good file");
    let (_, admin, _) = start(state.path(), Some(&file(&format!("{text}{v6}"))));
    let set = r#"[{"name": "s", "backends": [{"node": "a"}, {"node": "b"}]}]"#;
    let nodes = r#"[{"name": "a", "addresses": ["10.0.0.11", "fd00::11"]}, {"name": "b", "addresses": ["10.0.0.12"]}]"#;
    let service = |name, vip| {
        format!(
            r#"{{"name": "{name}", "vip": "{vip}", "port": 80, "protocol": "tcp", "target_port": 30080, "set": "s"}}"#
        )
    };
    let services = [service("a", "2001:db8::1"), service("b", "203.0.113.2"), service("c", "2001:db8::2")].join(", ");
    let whole = format!(r#"{{"generation": 7, "node": {nodes}, "set": {set}, "service": [{services}]}}"#);
    admin.put("prod", whole.as_bytes()).expect("a good snapshot");
    let (engine, ..) = start(state.path(), Some(&file(&text.replace("10.0.0.250", "10.0.0.12"))));
    assert_eq!(vips(&engine, "prod"), ["203.0.113.2"]);
    let prod = engine.published().owners["prod"].clone();
    let backends: Vec<&str> = prod.sets[0].backends.iter().filter_map(|backend| backend.node.as_deref()).collect();
    assert_eq!((prod.nodes.len(), backends), (1, vec!["a"]));
}

#[test]
fn a_snapshot_judged_before_a_reload_is_judged_by_what_came_of_it() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    let (begun, go) = engine.pause();
    std::thread::scope(|threads| {
        let reload = threads.spawn(|| apply(&admin, &file_with("203.0.113.2", "203.0.113.1", "web")));
        begun.recv_timeout(DEADLINE).expect("the reload publishes");
        let put = threads.spawn(|| admin.put("prod", other("203.0.113.2").as_bytes()));
        // Time to be judged by the file of before; without it this could pass by luck, and never fail by it.
        std::thread::sleep(Duration::from_millis(100));
        go.send(()).expect("the reload waits");
        reload.join().expect("no panic").expect("nobody held the address then");
        put.join().expect("no panic").expect_err("it is a SNAT address by now");
    });
}

#[test]
fn a_disk_that_hangs_does_not_hold_health_back() {
    let state = tempfile::tempdir().expect("a directory");
    let (engine, admin, _) = start(state.path(), Some(&file("203.0.113.1", "web")));
    // Nobody reads it: the write of the snapshot hangs as it is opened.
    let hanging = state.path().join("owners/prod.json.tmp");
    assert!(Command::new("mkfifo").arg(&hanging).status().expect("coreutils").success());
    std::thread::scope(|threads| {
        let put = threads.spawn(|| admin.put("prod", other("203.0.113.2").as_bytes()));
        let deadline = Instant::now() + DEADLINE;
        while engine.published().times < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (done, is_done) = channel();
        let health = threads.spawn({
            let admin = admin.clone();
            move || {
                let down = r#"{"backends": [{"address": "10.0.0.12", "state": "down"}]}"#;
                let _ = done.send(admin.put_health("", down.as_bytes()));
            }
        });
        let heard = is_done.recv_timeout(DEADLINE);
        let waiting = !put.is_finished();
        let mut reader = std::fs::File::open(&hanging).expect("the other end");
        std::io::copy(&mut reader, &mut std::io::sink()).expect("read");
        heard.expect("it does not wait for the disk").expect("good health");
        assert!(waiting, "the snapshot does");
        assert_eq!(put.join().expect("no panic").expect("served").warnings.len(), 1, "a pipe cannot be synced");
        health.join().expect("no panic");
    });
    assert_eq!(engine.published().health.backends.len(), 1);
}

#[test]
fn a_reload_asked_for_during_the_start_does_not_end_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("penstock.toml");
    assert!(Command::new("mkfifo").arg(&path).status().expect("coreutils").success());
    let mut child = Command::new(env!("CARGO_BIN_EXE_penstock-dataplane"))
        .arg("--config")
        .arg(&path)
        .stderr(Stdio::null())
        .spawn()
        .expect("the dataplane");
    let pid = Pid::from_child(&child);
    let deadline = Instant::now() + DEADLINE;
    let mut wait = |what: &str| {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{what}");
        }
        std::thread::sleep(Duration::from_millis(5));
        child.try_wait().expect("a child")
    };
    // It cannot be opened for writing before the child reads it.
    let mut file = loop {
        match File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) => break file,
            Err(_) => assert_eq!(wait("it reads its file"), None),
        }
    };
    let bad = "version = 99\n";
    let beside = directory.path().join("bad.toml");
    std::fs::write(&beside, bad).expect("written");
    std::fs::rename(&beside, &path).expect("put in its place, for it is read again to tell what is at fault");
    kill_process(pid, Signal::HUP).expect("a process");
    file.write_all(bad.as_bytes()).expect("the child reads");
    drop(file);
    let ended = loop {
        if let Some(ended) = wait("it ends by its file") {
            break ended;
        }
    };
    assert_eq!(ended.code(), Some(2), "{ended}");
}
