//! Finalizer, record, snapshot, acknowledgement, status; and the way back.

use penstock_perf::apiserver::Fault;
use serde_json::{Value, json};

use crate::rig::{Control, FINALIZER, OURS, UNPROBED, V1, World, a_while, service, until};

#[tokio::test]
async fn the_finalizer_comes_before_anything_is_provisioned() {
    let world = World::new();
    // Neither finalizer nor conditions can be written.
    world.server.fault(Fault::on("patch", "services/status").conflict());
    let control = Control::start(&world).await;
    world.put(&service("web"));
    a_while().await;
    assert_eq!((world.records().len(), world.programmed("web").len()), (0, 0));
    world.server.clear_faults();
    until("an address", vec!["203.0.113.1".to_owned()], || world.ingress("web")).await;
    assert_eq!(world.get("web")["metadata"]["finalizers"], json!([FINALIZER]));
    control.stop().await;
}

#[tokio::test]
async fn an_address_is_recorded_before_it_is_programmed() {
    let world = World::new();
    world.server.fault(Fault::on("create", "vipallocations").refuse(penstock_perf::apiserver::ApiError::internal()));
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("the finalizer", json!([FINALIZER]), || world.get("web")["metadata"]["finalizers"].clone()).await;
    a_while().await;
    assert_eq!(world.programmed("web").len(), 0);
    world.server.clear_faults();
    until("an address", 1, || world.ingress("web").len()).await;
    control.stop().await;
}

#[tokio::test]
async fn the_status_waits_for_every_worker() {
    let world = World::new();
    let control = Control::start(&world).await;
    until("leading", true, || {
        world.server.get("coordination.k8s.io/v1", "Lease", "penstock-system/penstock").is_some()
    })
    .await;
    world.stick();
    world.put(&service("web"));
    until("the snapshot", 1, || world.programmed("web").len()).await;
    a_while().await;
    let mut why = control.why("web").await;
    for _ in 0..50 {
        if why.contains("acknowledge") {
            break;
        }
        a_while().await;
        why = control.why("web").await;
    }
    assert!(why.contains("acknowledge"), "{why}");
    assert_eq!(world.ingress("web").len(), 0);
    world.the_box.engine.free_workers();
    until("an address", 1, || world.ingress("web").len()).await;
    until("Serving", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
    control.stop().await;
}

#[tokio::test]
async fn the_finalizer_goes_only_after_the_teardown_was_acknowledged() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("Serving", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
    world.stick();
    world.delete("web");
    until("the teardown", 0, || world.programmed("web").len()).await;
    a_while().await;
    assert_eq!(world.get("web")["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(world.records().len(), 1, "the address is not free before nobody answers for it");
    world.the_box.engine.free_workers();
    until("deletion", Value::Null, || world.get("web")).await;
    until("release", 0, || world.records().len()).await;
    control.stop().await;
}

#[tokio::test]
async fn a_crash_in_the_middle_of_either_heals() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.server.fault(Fault::on("create", "vipallocations").hang());
    world.put(&service("web"));
    until("the finalizer", json!([FINALIZER]), || world.get("web")["metadata"]["finalizers"].clone()).await;
    control.kill().await;
    world.server.clear_faults();
    let control = Control::start(&world).await;
    until("an address", 1, || world.ingress("web").len()).await;

    world.stick();
    world.delete("web");
    until("the teardown", 0, || world.programmed("web").len()).await;
    control.kill().await;
    world.the_box.engine.free_workers();
    let control = Control::start(&world).await;
    until("deletion", Value::Null, || world.get("web")).await;
    until("release", 0, || world.records().len()).await;
    control.stop().await;
}

#[tokio::test]
async fn deleted_while_nobody_ran() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    world.put(&service("kept"));
    until("addresses", (1, 1), || (world.ingress("web").len(), world.ingress("kept").len())).await;
    let kept = world.ingress("kept");
    control.kill().await;
    world.delete("web");
    let control = Control::start(&world).await;
    until("deletion", Value::Null, || world.get("web")).await;
    until("release", kept.clone(), || world.records()).await;
    assert_eq!(world.ingress("kept"), kept);
    control.stop().await;
}

#[tokio::test]
async fn another_type_or_class_takes_the_load_balancer_away_first() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("an address", 1, || world.ingress("web").len()).await;
    // The class may only change by way of another type.
    world.edit("web", |s| s["spec"]["type"] = json!("NodePort"));
    until("the teardown", 0, || world.programmed("web").len()).await;
    until("nothing of ours", Value::Null, || world.get("web")["metadata"]["finalizers"].clone()).await;
    until("no condition", String::new(), || world.condition("web", "Serving")).await;
    until("release", 0, || world.records().len()).await;
    world.edit("web", |s| {
        s["spec"]["type"] = json!("LoadBalancer");
        s["spec"]["loadBalancerClass"] = json!("example.com/other");
    });
    a_while().await;
    let web = world.get("web");
    assert_eq!((&web["metadata"]["finalizers"], &web["status"]["conditions"]), (&Value::Null, &Value::Null));
    world.edit("web", |s| s["spec"]["type"] = json!("ClusterIP"));
    world.edit("web", |s| {
        s["spec"]["type"] = json!("LoadBalancer");
        s["spec"]["loadBalancerClass"] = json!("penstock.dev/box");
    });
    until("ours again", 1, || world.ingress("web").len()).await;
    control.stop().await;
}

#[tokio::test]
async fn without_a_class_only_where_we_are_the_default() {
    let world = World::new();
    let mut plain = service("plain");
    plain["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
    world.put(&plain);
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("ours", 1, || world.ingress("web").len()).await;
    assert_eq!(world.get("plain")["metadata"]["finalizers"], Value::Null);
    control.stop().await;
    let control = Control::start_with(&world, &format!("{UNPROBED}[kubernetes]\ndefault_class = true\n")).await;
    until("as the default", 1, || world.ingress("plain").len()).await;
    control.stop().await;
}

#[tokio::test]
async fn a_namespace_goes_with_its_services() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&json!({"apiVersion": V1, "kind": "Namespace", "metadata": {"name": "shop"}}));
    let mut web = service("web");
    web["metadata"]["namespace"] = json!("shop");
    world.put(&web);
    let shown =
        || world.server.get(V1, "Service", "shop/web").unwrap_or_default()["status"]["loadBalancer"]["ingress"].clone();
    until("an address", true, || shown().is_array()).await;
    world.server.delete(V1, "Namespace", "shop").unwrap();
    until("the namespace is gone", None, || world.server.get(V1, "Namespace", "shop")).await;
    until("release", 0, || world.records().len()).await;
    control.stop().await;
}

#[tokio::test]
async fn writes_happen_on_a_difference_only() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("Serving", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
    until("rest", "False Done".to_owned(), || world.condition("web", "Provisioning")).await;
    a_while().await;
    world.server.forget_requests();
    let version = world.get("web")["metadata"]["resourceVersion"].clone();
    // What does not concern it: a label, an annotation of somebody else's.
    world.edit("web", |s| s["metadata"]["labels"] = json!({"x": "y"}));
    let after = world.get("web")["metadata"]["resourceVersion"].clone();
    assert_ne!(version, after);
    a_while().await;
    assert_eq!(world.get("web")["metadata"]["resourceVersion"], after);
    assert_eq!(world.server.count("patch", "services/status"), 0);
    control.stop().await;
}

#[tokio::test]
async fn an_exhausted_pool_is_said_and_the_next_free_address_taken() {
    let world = World::empty();
    world.put(&crate::rig::node("a", "10.0.0.1"));
    world.pool("small", &["203.0.113.9"]);
    let control = Control::start(&world).await;
    world.put(&service("one"));
    until("an address", 1, || world.ingress("one").len()).await;
    world.put(&service("two"));
    until("the Event", true, || world.has_event("two", "AllocationFailed")).await;
    until("the condition", true, || world.condition("two", "Provisioning").ends_with("AllocationFailed")).await;
    world.delete("one");
    until("the freed address", vec!["203.0.113.9".to_owned()], || world.ingress("two")).await;
    control.stop().await;
}

#[tokio::test]
async fn a_pool_edit_moves_nothing() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("an address", vec!["203.0.113.1".to_owned()], || world.ingress("web")).await;
    world.pool("p", &["203.0.113.64/28"]);
    world.put(&service("next"));
    until("of the new pool", true, || {
        world.ingress("next").first().is_some_and(|ip| ip.starts_with("203.0.113.6") || ip.starts_with("203.0.113.7"))
    })
    .await;
    assert_eq!(world.ingress("web"), ["203.0.113.1"]);
    assert_eq!(world.programmed("web").len(), 1);
    // Of pools of one second the later name is at fault.
    world.pool("z-overlap", &["203.0.113.70-203.0.113.90"]);
    let fault = || world.server.get(OURS, "VipPool", "z-overlap").unwrap()["status"]["fault"].clone();
    until("the fault", true, || fault().is_string()).await;
    control.stop().await;
}

#[tokio::test]
async fn a_lost_record_is_written_again_for_the_address_in_the_status() {
    let world = World::new();
    let control = Control::start(&world).await;
    for name in ["one", "two"] {
        world.put(&service(name));
        until("an address", 1, || world.ingress(name).len()).await;
    }
    let before = (world.ingress("one"), world.ingress("two"));
    control.kill().await;
    for record in world.server.list(OURS, "VipAllocation") {
        world.server.delete(OURS, "VipAllocation", record["metadata"]["name"].as_str().unwrap()).unwrap();
    }
    world.put(&service("a-third"));
    let control = Control::start(&world).await;
    until("all three", 3, || world.records().len()).await;
    until("the third", vec!["203.0.113.3".to_owned()], || world.ingress("a-third")).await;
    assert_eq!((world.ingress("one"), world.ingress("two")), before);
    control.stop().await;
}
