//! Control over real HTTP: the watches, the patches, the Lease, and what goes wrong with them. What is decided is tested
//! without a cluster (`src/index/tests.rs`, `src/sync/tests.rs`); here it is the API server's own behaviour that counts.

mod rig;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use penstock_configs::desired::Announce;
use penstock_perf::apiserver::{ApiError, ApiServer, Fault};
use serde_json::{Value, json};

use rig::{
    Control, Notes, OURS, V1, cluster, cluster_at, condition, events, get, ingress, node, records, service, until,
};

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

#[tokio::test]
async fn a_service_comes_and_goes_with_the_manifests_rights_alone() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    server.put(&service("web")).unwrap();
    until("an address", || ingress(&server, "web") == ["203.0.113.1"]).await;
    until("Serving", || condition(&server, "web", "Serving") == "True Serving").await;
    let web = get(&server, "web");
    assert_eq!(web["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(web["status"]["loadBalancer"]["ingress"][0]["ipMode"], "Proxy");
    assert_eq!(records(&server), ["203.0.113.1"]);
    let desired = control.dataplane.last();
    let node_port = web["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert_eq!(desired.services[0].target_port.map(u64::from), Some(node_port));
    assert_eq!((desired.nodes.len(), desired.sets[0].backends.len()), (2, 2));
    until("Events", || events(&server, "web").contains(&"EnsuredLoadBalancer".to_owned())).await;
    until("the pool's status", || server.get(OURS, "VipPool", "p").unwrap()["status"]["assigned"] == 1).await;
    assert!(control.why("web").await.contains("is served"));

    assert!(!server.delete(V1, "Service", "default/web").unwrap(), "the finalizer holds it");
    until("deletion", || get(&server, "web") == Value::Null).await;
    until("release", || records(&server).is_empty()).await;
    assert!(control.dataplane.last().services.is_empty());
    until("its Event", || events(&server, "web").contains(&"DeletedLoadBalancer".to_owned())).await;
    let refused: Vec<_> = server.requests().into_iter().filter(|r| r.code == 403).collect();
    assert!(refused.is_empty(), "{refused:?}");
    control.stop().await;
}

#[tokio::test]
async fn others_conditions_annotations_and_finalizers_survive() {
    let server = cluster();
    let mut web = service("web");
    web["metadata"]["annotations"] = json!({"example.com/x": "y"});
    web["metadata"]["finalizers"] = json!(["example.com/mine"]);
    web["status"] = json!({"conditions": [{"type": "example.com/Mine", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    server.put(&web).unwrap();
    let control = Control::start(&server, "box-a").await;
    until("an address", || !ingress(&server, "web").is_empty()).await;
    until("Serving", || condition(&server, "web", "Serving") == "True Serving").await;
    server
        .edit(V1, "Service", "default/web", |s| {
            s["spec"]["type"] = json!("ClusterIP");
            s["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
            s["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
        })
        .unwrap();
    until("cleanup", || condition(&server, "web", "Serving").is_empty()).await;
    let web = get(&server, "web");
    assert_eq!(condition(&server, "web", "example.com/Mine"), "True R");
    assert_eq!(web["metadata"]["annotations"]["example.com/x"], "y");
    assert_eq!(web["metadata"]["finalizers"], json!(["example.com/mine"]));
    assert!(records(&server).is_empty());
    control.stop().await;
}

#[tokio::test]
async fn an_exposed_node_port_service_has_its_vip_in_an_annotation() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    let mut web = service("web");
    web["spec"]["type"] = json!("NodePort");
    web["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
    web["metadata"]["annotations"] = json!({"penstock.dev/expose": "true"});
    server.put(&web).unwrap();
    until("the annotation", || get(&server, "web")["metadata"]["annotations"]["penstock.dev/vip"] == "203.0.113.1")
        .await;
    server.delete(V1, "Service", "default/web").unwrap();
    until("deletion", || get(&server, "web") == Value::Null).await;
    control.stop().await;
}

#[tokio::test]
async fn a_foreign_class_gets_nothing_at_all() {
    let server = cluster();
    let mut other = service("other");
    other["spec"]["loadBalancerClass"] = json!("example.com/lb");
    server.put(&other).unwrap();
    let before = get(&server, "other")["metadata"]["resourceVersion"].clone();
    let control = Control::start(&server, "box-a").await;
    server.put(&service("web")).unwrap();
    until("ours", || !ingress(&server, "web").is_empty()).await;
    assert_eq!(get(&server, "other")["metadata"]["resourceVersion"], before);
    assert!(events(&server, "other").is_empty());
    control.stop().await;
}

#[tokio::test]
async fn a_restart_writes_nothing_and_moves_nothing() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    for name in ["c", "b", "a"] {
        server.put(&service(name)).unwrap();
        until("an address", || condition(&server, name, "Serving") == "True Serving").await;
    }
    let versions = |server: &_| ["a", "b", "c"].map(|n| get(server, n)["metadata"]["resourceVersion"].clone());
    let before = versions(&server);
    let dataplane = control.dataplane.clone();
    control.kill().await;
    server.put(&service("d")).unwrap();
    let control = Control::start_with(&server, "box-a", dataplane).await;
    until("the new one", || ingress(&server, "d") == ["203.0.113.4"]).await;
    assert_eq!(versions(&server), before);
    control.stop().await;
}

// --- the API server's failures

/// Whatever happened: a Service made afterwards is served.
async fn still_serves(server: &penstock_perf::apiserver::ApiServer, name: &str) {
    server.put(&service(name)).unwrap();
    until(name, || !ingress(server, name).is_empty()).await;
}

#[tokio::test]
async fn http_410_at_the_start_of_a_watch_leads_to_a_new_list() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    server.gone_by_http(true);
    // Behind control's back, so that its resourceVersions are too old when it comes back.
    server.fault(Fault::on("watch", "").times(12).drop_connection());
    server.drop_connections();
    for i in 0..20 {
        server.put(&node(&format!("extra-{i}"), 100 + i)).unwrap();
    }
    server.compact();
    still_serves(&server, "after").await;
    until("the nodes", || control.dataplane.last().nodes.len() == 22).await;
    control.stop().await;
}

#[tokio::test]
async fn http_410_at_every_start_for_a_while_is_not_for_ever() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    server.forget_requests();
    server.fault(Fault::on("watch", "services").times(3).gone());
    server.drop_connections();
    until("the watch was refused", || server.faults_are_used_up()).await;
    still_serves(&server, "after").await;
    assert!(server.count("list", "services") >= 1, "listed anew");
    control.stop().await;
}

#[tokio::test]
async fn a_410_in_the_stream_leads_to_a_new_list() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    server.fault(Fault::on("watch", "services").times(2).gone_in_stream());
    server.drop_connections();
    still_serves(&server, "after").await;
    control.stop().await;
}

#[tokio::test]
async fn an_error_in_the_stream_that_stays_leads_to_a_new_list() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    server.forget_requests();
    // From here the watch cannot go on, however often it is begun.
    server.fault(Fault::on("watch", "services").error_in_stream(ApiError::internal()));
    server.drop_connections();
    until("the watch begins anew", || server.count("watch", "services") > 0).await;
    still_serves(&server, "after").await;
    assert!(server.count("list", "services") >= 1);
    server.clear_faults();
    control.stop().await;
}

#[tokio::test]
async fn a_cluster_restored_from_a_backup_is_listed_anew() {
    let server = cluster();
    let address = server.address();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    for i in 0..100 {
        server.put(&node("a", i)).unwrap();
    }
    until("the nodes are known", || control.dataplane.last().nodes[0].addresses[0].to_string() == "10.0.0.99").await;
    drop(server);
    let server = cluster_at(address);
    server.put(&service("after")).unwrap();
    // By its own revisions it is far behind what control has seen.
    until("an address", || !ingress(&server, "after").is_empty()).await;
    control.stop().await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_does_not_end_the_watch_of_the_others() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    server.forget_requests();
    let mut odd = node("odd", 9);
    odd["metadata"]["annotations"] = json!({"number": 1});
    server.put_raw(&odd).unwrap();
    server.put(&node("c", 3)).unwrap();
    until("the next one", || control.dataplane.last().nodes.len() == 3).await;
    assert_eq!(server.count("list", "nodes"), 0);
    control.stop().await;
}

#[tokio::test]
async fn watches_that_somebody_closes_at_once_are_no_hot_loop() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    server.fault(Fault::on("watch", "").end_at_once());
    server.drop_connections();
    server.forget_requests();
    let began = Instant::now();
    until("they go on", || server.count("watch", "") >= 6).await;
    until("and it is said", || control.metrics.text().contains("k8s_client_config_stale_bool 1")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (begun, seconds) = (server.count("watch", ""), began.elapsed().as_secs_f64());
    assert!((begun as f64) < 100.0 * seconds, "{begun} watches in {seconds:.1} s");
    server.clear_faults();
    still_serves(&server, "after").await;
    until("recovered", || control.metrics.text().contains("k8s_client_config_stale_bool 0")).await;
    control.stop().await;
}

#[tokio::test]
async fn dropped_answers_conflicts_and_throttling_are_gone_over() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    for fault in [
        Fault::on("create", "vipallocations").times(2).drop_connection(),
        Fault::on("create", "vipallocations").times(1).lose_answer(),
        Fault::on("patch", "services/status").times(3).conflict(),
        Fault::on("patch", "services/status").times(2).lose_answer(),
        Fault::on("create", "events").times(2).drop_connection(),
    ] {
        server.fault(fault);
    }
    still_serves(&server, "web").await;
    assert_eq!(records(&server).len(), 1, "a lost answer makes no second record");
    server.fault(Fault::on("delete", "vipallocations").times(1).lose_answer());
    server.delete(V1, "Service", "default/web").unwrap();
    until("deletion", || get(&server, "web") == Value::Null).await;
    until("release", || records(&server).is_empty()).await;
    control.stop().await;
}

#[tokio::test]
async fn with_the_api_server_gone_the_dataplane_keeps_what_it_has_and_no_loop_is_hot() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    until("rest", || condition(&server, "before", "Provisioning") == "False Done").await;
    let puts = control.dataplane.count();
    server.stop();
    until("it is said", || control.metrics.text().contains("k8s_client_config_stale_bool 1")).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let desired = control.dataplane.last();
    assert_eq!((desired.services.len(), desired.services[0].announce), (1, Some(Announce::L2)), "still announced");
    assert!(control.dataplane.count() <= puts + 1);
    server.forget_requests();
    server.resume().unwrap();
    let began = Instant::now();
    still_serves(&server, "after").await;
    let (asked, seconds) = (server.requests().len(), began.elapsed().as_secs_f64());
    assert!((asked as f64) < 400.0 + 100.0 * seconds, "{asked} requests in {seconds:.1} s");
    control.stop().await;
}

#[tokio::test]
async fn stalled_watches_are_noticed() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "before").await;
    server.stall_watches(true);
    server.put(&service("hidden")).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(ingress(&server, "hidden").is_empty());
    server.stall_watches(false);
    until("the hidden one", || !ingress(&server, "hidden").is_empty()).await;
    control.stop().await;
}

// --- the dataplane's failures

#[tokio::test]
async fn a_dataplane_that_is_away_is_waited_for_and_one_that_forgot_gets_the_whole() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    control.dataplane.down.store(true, Ordering::SeqCst);
    server.put(&service("web")).unwrap();
    until("a condition", || condition(&server, "web", "Provisioning").starts_with("True")).await;
    until("the reason", || condition(&server, "web", "Provisioning").contains("DataplaneFault")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(ingress(&server, "web").is_empty());
    control.dataplane.down.store(false, Ordering::SeqCst);
    until("an address", || !ingress(&server, "web").is_empty()).await;
    let puts = control.dataplane.count();
    control.dataplane.forget();
    until("the whole again", || control.dataplane.count() > puts).await;
    assert_eq!(control.dataplane.vips(), ["203.0.113.1"]);
    control.stop().await;
}

#[tokio::test]
async fn a_stuck_dataplane_does_not_hold_a_namespace() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    control.dataplane.down.store(true, Ordering::SeqCst);
    server.delete(V1, "Service", "default/web").unwrap();
    until("it goes after the bounded wait", || get(&server, "web") == Value::Null).await;
    assert_eq!(records(&server).len(), 1, "its address stays reserved");
    control.dataplane.down.store(false, Ordering::SeqCst);
    until("and is released", || records(&server).is_empty()).await;
    control.stop().await;
}

// --- several boxes

fn lease(server: &ApiServer) -> Value {
    server.get("coordination.k8s.io/v1", "Lease", "penstock-system/penstock").unwrap_or_default()
}

fn holder(server: &ApiServer) -> String {
    lease(server)["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn one_leads_all_serve_and_another_takes_over_with_a_higher_term() {
    let server = cluster();
    let first = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    let second = Control::start(&server, "box-b").await;
    until("the second serves", || second.dataplane.vips() == ["203.0.113.1"]).await;
    let announce = |control: &Control| control.dataplane.last().services[0].announce;
    assert_eq!((announce(&first), announce(&second)), (Some(Announce::L2), Some(Announce::None)));
    let term = first.dataplane.last().term.unwrap();
    until("both publish", || server.list(OURS, "VipBox").len() == 2).await;

    // Its dataplane serves on: whoever is started in its place is to lead.
    let dataplane = first.dataplane.clone();
    first.stop().await;
    assert_eq!(holder(&server), "box-a");
    let first = Control::start_with(&server, "box-a", dataplane).await;
    until("a new term", || first.dataplane.last().term.is_some_and(|now| now > term)).await;
    assert_eq!((announce(&first), announce(&second)), (Some(Announce::L2), Some(Announce::None)));
    first.stop().await;
    until("taken over", || announce(&second) == Some(Announce::L2)).await;
    assert!(second.dataplane.last().term.unwrap() > term);
    still_serves(&server, "after").await;
    // By force this time.
    second.kill().await;
    let third = Control::start(&server, "box-c").await;
    still_serves(&server, "again").await;
    assert_eq!(ingress(&server, "web"), ["203.0.113.1"], "no address moved");
    third.stop().await;
}

#[tokio::test]
async fn the_lease_is_handed_over_by_hand_there_and_back() {
    let server = cluster();
    let first = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    let second = Control::start(&server, "box-b").await;
    until("the second serves", || second.dataplane.vips() == ["203.0.113.1"]).await;
    let announces = |control: &Control| control.dataplane.last().services[0].announce == Some(Announce::L2);
    for (name, to, from) in [("box-b", &second, &first), ("box-a", &first, &second)] {
        let before = lease(&server);
        server
            .edit("coordination.k8s.io/v1", "Lease", "penstock-system/penstock", |lease| {
                lease["spec"]["holderIdentity"] = json!(name);
                // Whoever waits for it to run out waits in vain.
                lease["spec"]["leaseDurationSeconds"] = json!(3600);
            })
            .unwrap();
        until("handed over", || announces(to) && !announces(from)).await;
        let term = |of: &Value| of["spec"]["leaseTransitions"].as_u64().unwrap() + 1;
        let (now, before) = (lease(&server), term(&before));
        assert_eq!(now["spec"]["holderIdentity"], name);
        assert!(term(&now) > before);
        let seen = format!("penstock_control_term {}", term(&now));
        until("the former one has seen it", || from.metrics.text().contains(&seen)).await;
    }
    still_serves(&server, "after").await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_lease_that_somebody_deletes_fences_nobody_off_for_ever() {
    let server = cluster();
    let mut control = Control::start(&server, "box-a").await;
    for name in ["web", "more", "most"] {
        still_serves(&server, name).await;
        let dataplane = control.dataplane.clone();
        control.stop().await;
        control = Control::start_with(&server, "box-a", dataplane).await;
    }
    still_serves(&server, "last").await;
    server.delete("coordination.k8s.io/v1", "Lease", "penstock-system/penstock").unwrap();
    still_serves(&server, "after").await;
    control.stop().await;
}

#[tokio::test]
async fn who_is_alone_by_declaration_goes_on_where_the_last_who_was_elected_ended() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    let dataplane = control.dataplane.clone();
    control.stop().await;
    let control = Control::start_as(&server, "box-a", dataplane, "enabled = false").await;
    still_serves(&server, "after").await;
    control.stop().await;
}

#[tokio::test]
async fn what_waits_to_be_written_is_not_written_by_a_box_that_leads_no_longer() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    until("rest", || condition(&server, "web", "Provisioning") == "False Done").await;
    server.forget_requests();
    // As many at a time as there are permits; the rest waits for them. The elector is to look before the first has its
    // answer; the client waits for six seconds.
    let slow = Duration::from_secs(5);
    let writing = || Fault::on("patch", "services/status");
    server.fault(writing().times(1).delay(slow));
    server.fault(writing().delay(slow));
    for i in 0..100 {
        server.put(&service(&format!("s{i}"))).unwrap();
    }
    until("the first is on its way", || server.faults_are_used_up()).await;
    let first = Instant::now();
    server
        .edit("coordination.k8s.io/v1", "Lease", "penstock-system/penstock", |lease| {
            lease["spec"]["holderIdentity"] = json!("box-z");
            lease["spec"]["leaseDurationSeconds"] = json!(3600);
        })
        .unwrap();
    until("it leads no longer", || control.metrics.text().contains("penstock_control_leader 0")).await;
    // The first have their answers then, and who waited their permits.
    tokio::time::sleep(slow.saturating_sub(first.elapsed()) + Duration::from_secs(1)).await;
    let written = server.count("patch", "services/status");
    assert!((1..=32).contains(&written), "{written} patches");
    control.stop().await;
}

#[tokio::test]
async fn without_the_right_to_the_lease_it_is_said_what_is_missing() {
    let server = cluster();
    server.fault(Fault::on("get", "leases").refuse(ApiError::new(403, "Forbidden", "leases is forbidden")));
    let control = Control::start(&server, "box-a").await;
    until("asked", || server.count("get", "leases") > 1).await;
    assert!(control.notices().await.iter().any(|notice| notice.contains("Lease")), "{:?}", control.notices().await);
    server.clear_faults();
    still_serves(&server, "web").await;
    assert!(!control.notices().await.iter().any(|notice| notice.contains("Lease")));
    control.stop().await;
}

#[tokio::test]
async fn a_leader_whose_dataplane_is_gone_makes_room_for_a_box_that_serves() {
    let server = cluster();
    // What it offered in vain it keeps for ten of these.
    let start = async |name| Control::start_leased(&server, name, Notes::new(), Duration::from_secs(3)).await;
    let first = start("box-a").await;
    still_serves(&server, "web").await;
    // Alone, it goes on leading: Services must come and go all the same.
    first.dataplane.absent.store(true, Ordering::SeqCst);
    let holder = || holder(&server);
    until("offered", || holder().is_empty()).await;
    until("taken back", || holder() == "box-a").await;
    first.dataplane.absent.store(false, Ordering::SeqCst);
    still_serves(&server, "more").await;

    let second = start("box-b").await;
    until("the second serves", || second.dataplane.vips().len() == 2).await;
    let announces = |control: &Control| control.dataplane.last().services[0].announce == Some(Announce::L2);
    until("the first leads", || announces(&first) && !announces(&second)).await;
    first.dataplane.absent.store(true, Ordering::SeqCst);
    until("the second leads", || holder() == "box-b" && announces(&second)).await;
    still_serves(&server, "after").await;
    first.dataplane.absent.store(false, Ordering::SeqCst);
    until("the first serves again, silently", || first.dataplane.vips().len() == 3 && !announces(&first)).await;
    assert_eq!(holder(), "box-b");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn another_controller_on_the_same_status_is_not_fought() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    let overwrite = || {
        let web = get(&server, "web");
        let mut status = web["status"].clone();
        status["loadBalancer"] = json!({"ingress": [{"ip": "198.51.100.9"}]});
        server.put_status(&web, status).unwrap();
    };
    overwrite();
    until("set right once", || ingress(&server, "web") == ["203.0.113.1"]).await;
    overwrite();
    until("the Event", || events(&server, "web").contains(&"SyncLoadBalancerFailed".to_owned())).await;
    assert_eq!(ingress(&server, "web"), ["198.51.100.9"], "left alone");
    until("tried again later", || ingress(&server, "web") == ["203.0.113.1"]).await;
    control.stop().await;
}

#[tokio::test]
async fn a_pool_that_is_gone_has_no_gauges() {
    let server = cluster();
    let pool = json!({"apiVersion": OURS, "kind": "VipPool", "metadata": {"name": "passing"},
        "spec": {"addresses": ["198.51.100.0/28"]}});
    server.put(&pool).unwrap();
    let control = Control::start(&server, "box-a").await;
    let shown = || control.metrics.text().contains(r#"pool="passing""#);
    until("its gauges", shown).await;
    server.delete(OURS, "VipPool", "passing").unwrap();
    until("they are gone", || !shown()).await;
    assert!(control.metrics.text().contains("pool=\""), "those of others are not");
    control.stop().await;
}

#[tokio::test]
async fn records_are_locked_by_their_name() {
    let server = cluster();
    // Another cluster's controller has the first address; its record is older than any watch of ours.
    server
        .put(&json!({"apiVersion": OURS, "kind": "VipAllocation", "metadata": {"name": "203.0.113.1"},
            "spec": {"address": "203.0.113.1", "owner": "another", "pool": "p",
                "claims": [{"namespace": "default", "name": "theirs", "uid": "x"}]}}))
        .unwrap();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    assert_eq!(ingress(&server, "web"), ["203.0.113.2"]);
    assert_eq!(records(&server).len(), 2, "theirs is not collected");
    control.stop().await;
}

#[tokio::test]
async fn the_same_name_anew_gets_a_load_balancer_of_its_own() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    let uid = get(&server, "web")["metadata"]["uid"].clone();
    server.delete(V1, "Service", "default/web").unwrap();
    until("deletion", || get(&server, "web") == Value::Null).await;
    still_serves(&server, "web").await;
    assert_ne!(get(&server, "web")["metadata"]["uid"], uid);
    control.stop().await;
}

#[tokio::test]
async fn one_edit_reaches_the_dataplane_fast() {
    let server = cluster();
    let control = Control::start(&server, "box-a").await;
    still_serves(&server, "web").await;
    until("rest", || condition(&server, "web", "Provisioning") == "False Done").await;
    let mut took = Vec::new();
    for port in 81..=83 {
        // What follows from the one before, a look a second later at the latest, would have it noticed.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        let began = Instant::now();
        server.edit(V1, "Service", "default/web", |s| s["spec"]["ports"][0]["port"] = json!(port)).unwrap();
        until("the edit", || control.dataplane.last().services[0].port == port).await;
        took.push(began.elapsed());
    }
    // On a machine at rest: 15 ms. What is not noticed by itself waits for the next look at everything, 5 s: but for the
    // first, which may come just before one.
    println!("edits took {took:?}");
    assert!(took[1..].iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    control.stop().await;
}
