//! Which nodes are backends.

use penstock_configs::desired::BackendState;
use serde_json::json;

use crate::rig::{Control, V1, World, a_while, node, service, until};

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

#[tokio::test]
async fn excluded_tainted_and_deleted_nodes_go_and_others_stay() {
    let world = World::new();
    world.put(&node("c", "10.0.0.3"));
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("three", names(&["a", "b", "c"]), || world.nodes_of("web")).await;
    let edit = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        world.server.edit(V1, "Node", name, |n| change(n)).unwrap();
    };
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    edit("a", &|n| n["metadata"]["labels"] = json!({label: ""}));
    until("a drains", Some(BackendState::Draining), || Some(world.states_of("web").first()?.1)).await;
    until("a is excluded", names(&["b", "c"]), || world.nodes_of("web")).await;
    edit("a", &|n| n["metadata"]["labels"] = json!({label: "false"}));
    until("unless it parses as false", names(&["a", "b", "c"]), || world.nodes_of("web")).await;
    // Cordoned and not ready: health checks decide.
    edit("b", &|n| n["spec"]["unschedulable"] = json!(true));
    let ready = json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
        "conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": ""}]});
    world.server.put_status(&node("b", ""), ready).unwrap();
    a_while().await;
    assert_eq!(world.nodes_of("web"), names(&["a", "b", "c"]));
    edit("c", &|n| n["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]));
    let is_out = || !world.backends("web").iter().any(|(n, _, s)| n == "c" && *s == BackendState::Active);
    until("c leaves", true, is_out).await;
    world.server.delete(V1, "Node", "c").unwrap();
    until("c is gone", names(&["a", "b"]), || world.nodes_of("web")).await;
    control.stop().await;
}

#[tokio::test]
async fn a_changed_address_is_followed() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    let address = || world.desired().nodes.iter().find(|n| n.name == "a").map(|n| n.addresses[0].to_string());
    until("the first", Some("10.0.0.1".to_owned()), address).await;
    world.put(&node("a", "10.0.0.77"));
    until("the second", Some("10.0.0.77".to_owned()), address).await;
    control.stop().await;
}

#[tokio::test]
async fn with_no_node_left_the_vip_stays_and_it_is_said() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("an address", 1, || world.ingress("web").len()).await;
    for name in ["a", "b"] {
        world.server.delete(V1, "Node", name).unwrap();
    }
    until("the Event", true, || world.has_event("web", "UnAvailableLoadBalancer")).await;
    until("the condition", "True NoBackends".to_owned(), || world.condition("web", "Degraded")).await;
    assert_eq!((world.ingress("web").len(), world.programmed("web").len()), (1, 1));
    world.put(&node("d", "10.0.0.4"));
    until("back", names(&["d"]), || world.nodes_of("web")).await;
    until("Serving", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
    control.stop().await;
}

#[tokio::test]
async fn all_not_ready_at_once_empties_nothing() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("two", 2, || world.nodes_of("web").len()).await;
    for (name, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let mut down = node(name, address);
        down["status"]["conditions"][0]["status"] = json!("Unknown");
        world.put(&down);
    }
    until("the metric", true, || {
        control.metrics.text().lines().any(|l| l.contains("all_nodes_not_ready") && l.ends_with(" 1"))
    })
    .await;
    assert_eq!(world.nodes_of("web").len(), 2);
    control.stop().await;
}

#[tokio::test]
async fn a_flap_makes_one_snapshot_for_all_services() {
    let world = World::empty();
    world.pool("p", &["203.0.113.0/24"]);
    for last in 1..=5 {
        world.put(&node(&format!("n{last}"), &format!("10.0.0.{last}")));
    }
    for at in 0..60 {
        world.put(&service(&format!("s{at}")));
    }
    let control = Control::start(&world).await;
    until("all", 60, || (0..60).filter(|at| !world.ingress(&format!("s{at}")).is_empty()).count()).await;
    let done = |at: &usize| world.condition(&format!("s{at}"), "Provisioning") == "False Done";
    until("rest", 60, || (0..60).filter(done).count()).await;
    a_while().await;
    let before = world.publications();
    world.server.forget_requests();
    world.server.delete(V1, "Node", "n5").unwrap();
    until("four", 4, || world.nodes_of("s0").len()).await;
    a_while().await;
    assert_eq!(world.publications() - before, 1);
    assert_eq!(world.server.count("patch", "services/status"), 0);
    control.stop().await;
}
