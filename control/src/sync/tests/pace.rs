//! How much the loop does for what happens: counted, not timed.

use super::*;
use crate::sync::{Freshness, Loop, News, Seams};

/// A loop around what has come to rest, its other ends held nowhere: nothing comes in.
fn around(controller: Controller) -> Loop {
    let client = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
    let (health, _) = crate::probe::seam();
    let (done_tx, done) = tokio::sync::mpsc::channel(64);
    let role = tokio::sync::watch::channel(controller.role.clone());
    Loop {
        client: kube::Client::try_from(client).unwrap(),
        name: "box-a".into(),
        permits: Arc::new(tokio::sync::Semaphore::new(1)),
        kubernetes: controller.kubernetes.clone(),
        seams: Seams::new(health).0,
        inputs: tokio::sync::mpsc::channel(1).1,
        roles: role.1,
        role_tx: role.0,
        fit: tokio::sync::watch::channel(true).0,
        parcel_tx: tokio::sync::watch::channel(Parcel::default()).0,
        progress: tokio::sync::watch::channel(Progress::default()).1,
        notes: tokio::sync::mpsc::channel(64).0,
        done_tx,
        done,
        shutdown: tokio::sync::watch::channel(false).1,
        fresh: Freshness::default(),
        news: News::default(),
        controller,
    }
}

#[tokio::test]
async fn while_a_burst_is_waited_out_the_loop_does_not_turn_for_what_falls_due() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.edit("web", |s| s["spec"]["ports"][0]["port"] = json!(81));
    let mut now = sim.now;
    sim.controller.remind(&ServiceKey::new("default", "web"), now);
    sim.controller.translate_time = Duration::from_millis(100);
    let before = sim.controller.translations;
    let mut turner = around(sim.controller);
    turner.fresh.translated = Some(now);
    let mut rounds = 0;
    while turner.controller.translations == before && rounds < 100 {
        let wake = turner.advance(now);
        now = now.max(wake);
        rounds += 1;
    }
    assert_eq!(rounds, 2, "once to see that it is too early, once to turn");
}

#[test]
fn those_without_an_address_are_looked_at_once_a_turn_and_not_for_each_record() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['203.0.113.1']");
    for name in ["one", "two"] {
        sim.put(&service(name));
        sim.settle();
    }
    let waits = |sim: &Sim| sim.controller.work[&ServiceKey::new("default", "two")].allocate_after;
    let before = waits(&sim);
    assert!(before.is_some());
    let record: Value = json!({"metadata": {"name": "198.51.100.1", "uid": "r", "resourceVersion": "1"},
        "spec": {"address": "198.51.100.1", "owner": "another", "pool": "p"}});
    sim.feed(index::on_record(Event::Apply(serde_json::from_value(record).unwrap())));
    assert_eq!(waits(&sim), before, "nobody was walked for it");
    sim.now += Duration::from_millis(1);
    sim.settle();
    assert_ne!(waits(&sim), before, "asked again, and refused again");
    sim.delete("one");
    sim.settle();
    assert_eq!(sim.ingress("two"), ["203.0.113.1"]);
}

#[test]
fn a_snapshot_on_its_way_is_no_copy() {
    let mut sim = Sim::new();
    sim.acks = false;
    sim.put(&service("web"));
    sim.settle();
    let sent = sim.waiting.clone().unwrap();
    assert!(Arc::ptr_eq(&sent.desired, &sim.controller.translation.desired));
    sim.edit("web", |s| s["spec"]["ports"][0]["port"] = json!(81));
    sim.settle();
    assert_eq!((sent.desired.services[0].port, sim.waiting.unwrap().desired.services[0].port), (80, 81));
}

#[test]
fn endpoints_of_services_that_are_not_local_make_no_translation() {
    let mut sim = Sim::new();
    let mut local = service("local");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    sim.put(&local);
    sim.put(&service("web"));
    sim.settle();
    let translations = sim.controller.translations;
    let slice = |of: &str, node: &str| {
        json!({"metadata": {"namespace": "default", "name": format!("{of}-x"), "labels": {"kubernetes.io/service-name": of}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": node, "conditions": {"ready": true}}]})
    };
    let apply = |sim: &mut Sim, slice: Value| {
        sim.feed(index::on_slice(Event::Apply(serde_json::from_value(slice).unwrap())));
        sim.settle();
        sim.controller.translations - translations
    };
    assert_eq!(apply(&mut sim, slice("web", "a")), 0);
    assert_eq!(apply(&mut sim, slice("elsewhere", "a")), 0);
    assert_eq!(apply(&mut sim, slice("local", "a")), 1);
    assert_eq!(apply(&mut sim, slice("local", "b")), 2);
    // From one to the other: the one that was Local has lost it.
    let mut moved = slice("local", "b");
    moved["metadata"]["labels"] = json!({"kubernetes.io/service-name": "web"});
    assert_eq!(apply(&mut sim, moved), 3);
}
