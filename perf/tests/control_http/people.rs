//! What people and their tools see: `kubectl wait`, Events that are not repeated, objects of boxes that are gone.

use std::process::Command;
use std::time::Duration;

use penstock_perf::apiserver::{ADMIN_TOKEN, Fault};
use serde_json::{Value, json};

use crate::rig::{Control, OURS, SLICES, World, a_while, node, service, until};

/// kubectl as the admin; `None` where there is none.
fn kubectl(world: &World) -> Option<(tempfile::TempDir, Command)> {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        println!("SKIPPED: no kubectl (Debian: apt-get install kubernetes-client)");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, world.server.kubeconfig(ADMIN_TOKEN)).unwrap();
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(kubeconfig).arg("--cache-dir").arg(directory.path().join("cache"));
    Some((directory, command))
}

async fn said(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// "kubectl wait works": by the condition's whole name.
#[tokio::test]
async fn kubectl_waits_for_our_conditions() {
    let world = World::for_kubectl();
    let Some((_directory, mut command)) = kubectl(&world) else { return };
    let control = Control::start(&world).await;
    world.put(&service("web"));
    command.args(["wait", "service/web", "--for=condition=penstock.dev/Serving", "--timeout=20s"]);
    assert!(said(command).await.contains("condition met"));
    assert_eq!(world.condition("web", "Serving"), "True Serving");
    control.stop().await;
}

/// The manifests as an operator would apply them; then the example Services have their addresses.
#[tokio::test]
async fn kubectl_applies_the_manifests() {
    let world = World::for_kubectl();
    let Some((_directory, mut command)) = kubectl(&world) else { return };
    world.server.delete(OURS, "VipPool", "p").unwrap();
    world.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "payments"}}));
    command.args(["apply", "--validate=false"]);
    for file in ["crds", "rbac", "kubeconfig", "box-node", "pools", "services"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/kubernetes");
        command.arg("-f").arg(format!("{path}/{file}.yaml"));
    }
    let text = said(command).await;
    for object in ["vippool.penstock.dev/public", "daemonset.apps/penstock-control", "service/broker", "secret/"] {
        assert!(text.contains(object), "{object} is missing in:\n{text}");
    }
    let control = Control::start(&world).await;
    until("addresses of the examples", 1, || world.ingress("broker").len()).await;
    let broker = world.programmed("broker").remove(0);
    assert_eq!((broker.slow_start, broker.panic_threshold), (Some(60), Some(33)));
    control.stop().await;
}

/// "deduplicated": the same again within minutes is no new Event.
#[tokio::test]
async fn the_same_thing_again_is_no_new_event() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("served", 1, || world.ingress("web").len()).await;
    for round in 0..4 {
        world.edit("web", |s| s["metadata"]["annotations"] = json!({"penstock.dev/mode": "magic"}));
        until("refused", "False NotSupported".to_owned(), || world.condition("web", "Serving")).await;
        world.edit("web", |s| s["metadata"]["annotations"] = json!({}));
        until("served again", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
        let told = || world.events("web").iter().filter(|e| e.contains("unknown variant `magic`")).count();
        until(&format!("one Event after round {round}"), 1, told).await;
    }
    a_while().await;
    let all = world.events("web");
    let mut distinct = all.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), all.len(), "{all:?}");
    control.stop().await;
}

/// "NotFound is success": a Service that is gone when the write comes is as it should be.
#[tokio::test]
async fn a_service_that_vanishes_under_a_write_is_no_failure() {
    let world = World::new();
    let control = Control::start(&world).await;
    // The write of its first condition is on its way while somebody deletes it.
    world.server.fault(Fault::on("patch", "services/status").times(1).delay(Duration::from_secs(2)));
    world.put(&service("web"));
    until("it is on its way", true, || world.server.faults_are_used_up()).await;
    world.delete("web");
    let too_late = || world.server.requests_that(|r| r.code == 409 && r.asked.resource == "services/status");
    until("the write came too late", 1, too_late).await;
    a_while().await;
    let text = control.metrics.text();
    assert!(text.contains("k8s_client_update_errors_total 0"), "{text}");
    assert!(!world.has_event("web", "SyncLoadBalancerFailed"), "{:?}", world.events("web"));
    assert_eq!(too_late(), 1, "and is not tried again");
    world.put(&service("web"));
    until("another of its name", 1, || world.ingress("web").len()).await;
    control.stop().await;
}

/// A box that is gone loses its `VipBox`; one that lives, another cluster's, and one that speaks again do not.
#[tokio::test]
async fn the_leader_collects_boxes_that_are_silent_for_long() {
    let world = World::new();
    let put = |name: &str, owner: &str| {
        world.put(&json!({"apiVersion": OURS, "kind": "VipBox", "metadata": {"name": name}, "spec": {"owner": owner},
            "status": {"lastSeen": "2026-01-01T00:00:00Z"}}));
    };
    put("dead.kubernetes", "kubernetes");
    put("alive.kubernetes", "kubernetes");
    put("dead.elsewhere", "elsewhere");
    let control = Control::start_timed(&world, "box_gone = 4").await;
    let names = || -> Vec<String> {
        let boxes = world.server.list(OURS, "VipBox");
        boxes.iter().map(|b| b["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let speak = |count: u32| {
        let alive = world.server.get(OURS, "VipBox", "alive.kubernetes").unwrap();
        world.server.put_status(&alive, json!({"lastSeen": format!("2026-01-01T00:00:{count:02}Z")})).unwrap();
    };
    let left = ["alive.kubernetes", "box-a.kubernetes", "dead.elsewhere"];
    let mut count = 0;
    until("only the dead one goes", left.map(str::to_owned).to_vec(), || {
        count += 1;
        if count % 30 == 0 {
            speak(count / 30);
        }
        names()
    })
    .await;
    // Longer than the age: whoever lives says so in time.
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        count += 30;
        speak(count / 30);
    }
    assert_eq!(names(), left);
    let refused: Vec<_> = world.server.requests().into_iter().filter(|r| r.code == 403).collect();
    assert!(refused.is_empty(), "{refused:?}");
    control.stop().await;
}

/// Control is started anew while a node that was labelled out has its time to finish.
#[tokio::test]
async fn a_drain_outlives_a_restart() {
    let world = World::new();
    world.put(&service("web"));
    let control = Control::start_timed(&world, "node_drain = 3").await;
    until("served", 1, || world.ingress("web").len()).await;
    let mut out = node("b", "10.0.0.2");
    out["metadata"]["labels"] = json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""});
    world.put(&out);
    let states =
        || world.states_of("web").into_iter().map(|(node, state)| format!("{node} {state:?}")).collect::<Vec<_>>();
    let draining = ["a Active".to_owned(), "b Draining".to_owned()].to_vec();
    until("it drains", draining.clone(), states).await;
    control.kill().await;
    let before = world.publications();
    let control = Control::start_timed(&world, "node_drain = 3").await;
    until("a snapshot of the new process", true, || world.publications() > before).await;
    assert_eq!(states(), draining);
    a_while().await;
    assert_eq!(states(), draining);
    until("its time is over", ["a Active".to_owned()].to_vec(), states).await;
    control.stop().await;
}

/// "hand-made slices without selector; nil nodeName tolerated".
#[tokio::test]
async fn slices_made_by_hand_serve_a_service_without_selector() {
    let world = World::new();
    let mut web = service("web");
    web["spec"].as_object_mut().unwrap().remove("selector");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    world.put(&web);
    world.put(&json!({"apiVersion": SLICES, "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "by-hand", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "b"}, {"addresses": ["192.0.2.7"]}],
        "ports": [{"name": "http", "port": 8080}]}));
    let control = Control::start(&world).await;
    until("served", 1, || world.ingress("web").len()).await;
    assert_eq!(world.nodes_of("web"), ["b"], "and who is nowhere is nobody's");
    let missing: Vec<Value> = world.server.list("events.k8s.io/v1", "Event");
    assert!(missing.iter().all(|e| e["type"] != "Warning"), "{missing:?}");
    control.stop().await;
}
