//! Several clusters on one box: an owner each, and nobody's services, addresses or health are another's to change.

use penstock_configs::desired::BackendState;
use serde_json::{Value, json};

use crate::rig::{Control, OURS, World, a_while, node, service, until};

const SECOND: &str = "[health]\nenabled = false\n[kubernetes]\nowner = 'second'\n";

#[tokio::test]
async fn two_clusters_share_a_box_and_neither_takes_the_others() {
    let world = World::new();
    let other = World::empty();
    other.put(&node("x", "10.9.0.1"));
    other.pool("theirs", &["198.51.100.1-198.51.100.4"]);
    let first = Control::start(&world).await;
    let second = Control::start_on(&other, &world.the_box, SECOND, "").await;
    world.put(&service("web"));
    other.put(&service("web"));
    until("of the first", vec!["203.0.113.1".to_owned()], || world.ingress("web")).await;
    until("of the second", vec!["198.51.100.1".to_owned()], || other.ingress("web")).await;
    let served = || (world.desired().services.len(), world.desired_of("second").services.len());
    assert_eq!(served(), (1, 1));

    // The same address twice: refused by name, the rest is served.
    other.pool("overlap", &["203.0.113.1"]);
    let mut late = service("late");
    late["metadata"]["annotations"] = json!({"penstock.dev/addresses": "203.0.113.1"});
    other.put(&late);
    until("refused", true, || other.condition("late", "Serving").contains("RefusedByDataplane")).await;
    let message = other.message("late", "Serving");
    assert!(message.contains("kubernetes"), "names the other owner: {message}");
    assert_eq!((other.ingress("late").len(), other.ingress("web").len()), (0, 1));

    other.delete("web");
    until("gone", Value::Null, || other.get("web")).await;
    a_while().await;
    assert_eq!((world.ingress("web").len(), world.desired().services.len()), (1, 1));
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_record_of_another_clusters_owner_is_neither_used_nor_collected() {
    let world = World::new();
    // Two clusters' controllers with one API server for their records, as a fleet has it.
    let foreign = json!({"apiVersion": OURS, "kind": "VipAllocation", "metadata": {"name": "203.0.113.1"},
        "spec": {"address": "203.0.113.1", "pool": "p", "owner": "second", "shareKey": "",
            "claims": [{"namespace": "default", "name": "gone", "uid": "u"}]}});
    world.put(&foreign);
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("the next address", vec!["203.0.113.2".to_owned()], || world.ingress("web")).await;
    a_while().await;
    assert!(world.records().contains(&"203.0.113.1".to_owned()), "an orphan of ours would be collected");
    control.stop().await;
}

#[tokio::test]
async fn one_clusters_health_checks_leave_the_others_verdicts_alone() {
    let world = World::new();
    let dataplane = penstock_control::client::Dataplane::new(&world.the_box.socket);
    let down = |address: &str| penstock_configs::desired::Health {
        backends: vec![penstock_configs::desired::BackendHealth {
            address: address.parse().unwrap(),
            port: None,
            state: BackendState::Down,
            reason: "refused".into(),
        }],
    };
    dataplane.put_health("kubernetes", &down("10.0.0.1")).await.unwrap();
    dataplane.put_health("second", &down("10.9.0.1")).await.unwrap();
    let state = |address: &str| world.health_of(address.parse().unwrap(), None);
    assert_eq!((state("10.0.0.1"), state("10.9.0.1")), (BackendState::Down, BackendState::Down));
    dataplane.put_health("second", &Default::default()).await.unwrap();
    assert_eq!((state("10.0.0.1"), state("10.9.0.1")), (BackendState::Down, BackendState::Active));
}
