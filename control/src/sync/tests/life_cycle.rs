//! From nothing to serving and back: order, acknowledgements, what heals.

use super::*;

#[test]
fn from_nothing_to_serving_in_the_order_of_the_contract() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    assert_eq!(
        sim.log,
        [
            "send 0",
            "ack 0",
            "web status AwaitingFinalizer",
            "web finalizer service.kubernetes.io/load-balancer-cleanup",
            "record 203.0.113.1 web",
            "send 1",
            "ack 1",
            "web status Serving",
        ]
    );
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Provisioning"), ("False".into(), "Done".into()));
    assert_eq!(sim.events(), ["EnsuringLoadBalancer", "IPAllocated", "EnsuredLoadBalancer"]);
    assert!(sim.why("web").contains("is served in mode nat"), "{}", sim.why("web"));
}

#[test]
fn status_waits_for_the_acknowledgement() {
    let mut sim = Sim::new();
    sim.settle();
    sim.acks = false;
    sim.put(&service("web"));
    sim.settle();
    sim.after(5);
    assert!(sim.ingress("web").is_empty());
    assert_eq!(sim.condition("web", "Provisioning").1, "AwaitingDataplane");
    assert!(sim.why("web").contains("not acknowledged"));
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn an_edit_is_done_when_the_dataplane_serves_it() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    let ip_mode = |sim: &Sim| {
        let web = &sim.services[&ServiceKey::new("default", "web")];
        web["status"]["loadBalancer"]["ingress"][0]["ipMode"].as_str().map(str::to_owned)
    };
    let pending = ("True".to_owned(), "AwaitingDataplane".to_owned());
    assert_eq!((ip_mode(&sim).as_deref(), sim.condition("web", "Provisioning").1.as_str()), (Some("Proxy"), "Done"));
    sim.acks = false;
    sim.edit("web", |s| s["metadata"]["annotations"] = json!({"penstock.dev/mode": "dsr"}));
    sim.settle();
    sim.after(3);
    assert_eq!(sim.condition("web", "Provisioning"), pending);
    assert_eq!(ip_mode(&sim).as_deref(), Some("Proxy"), "the box sends no other packets yet");
    assert!(sim.why("web").contains("is served as it was before its last change"), "{}", sim.why("web"));
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    sim.acks = true;
    sim.settle();
    assert_eq!((ip_mode(&sim).as_deref(), sim.condition("web", "Provisioning").1.as_str()), (Some("VIP"), "Done"));
    // A port as well.
    sim.acks = false;
    sim.edit("web", |s| s["spec"]["ports"][0]["port"] = json!(81));
    sim.settle();
    sim.after(3);
    assert_eq!(sim.condition("web", "Provisioning"), pending);
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.condition("web", "Provisioning").1, "Done");
    // Who announces is nobody's edit: 5,000 statuses would say so.
    sim.acks = false;
    sim.log.clear();
    sim.controller.on_role(Role { announces: false, ..Role::alone("box-a") });
    sim.settle();
    sim.after(3);
    assert_eq!(sim.log, ["send 1"]);
}

#[test]
fn status_waits_for_a_healthy_backend_or_the_grace() {
    let mut sim = Sim::new();
    sim.controller.on_health(Arc::new(HealthView { checking: true, ..HealthView::default() }), sim.now);
    sim.put(&service("web"));
    sim.settle();
    sim.after(29);
    assert!(sim.ingress("web").is_empty());
    assert_eq!(sim.condition("web", "Provisioning").1, "AwaitingHealth");
    sim.after(2);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Degraded"), ("True".into(), "NoHealthyBackend".into()));

    let up = TargetState { state: BackendState::Active, settled: true, reason: String::new() };
    let id: Arc<str> = sim.controller.translation.targets[0].id.clone();
    let view = HealthView { checking: true, targets: [(id, up)].into(), ..HealthView::default() };
    sim.controller.on_health(Arc::new(view), sim.now);
    sim.settle();
    assert_eq!(sim.condition("web", "Degraded").0, "False");
    assert_eq!(sim.condition("web", "Serving").0, "True");
}

#[test]
fn deletion_lets_go_only_after_the_dataplane_did() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.acks = false;
    sim.log.clear();
    sim.delete("web");
    sim.settle();
    assert_eq!(sim.log, ["send 0"], "neither the record nor the finalizer goes before the acknowledgement");
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.log, ["send 0", "ack 0", "release 203.0.113.1", "web finalizer removed"]);
    assert!(sim.services.is_empty() && sim.records.is_empty());
    assert!(sim.events().ends_with(&["DeletingLoadBalancer", "DeletedLoadBalancer"]), "{:?}", sim.events());
}

#[test]
fn a_stuck_box_does_not_strand_a_namespace_and_its_address_stays_reserved() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.acks = false;
    sim.delete("web");
    sim.settle();
    sim.after(119);
    assert_eq!(sim.services.len(), 1);
    sim.after(2);
    assert!(sim.services.is_empty());
    assert_eq!(sim.records.len(), 1, "the box may still serve it");
    assert!(sim.events().contains(&"SyncLoadBalancerFailed"));
    sim.acks = true;
    sim.settle();
    assert!(sim.records.is_empty());
}

#[test]
fn a_type_flip_cleans_up_and_leaves_others_conditions_alone() {
    let mut sim = Sim::new();
    let mut web = service("web");
    web["status"]["conditions"] = json!([{"type": "example.com/Mine", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    sim.put(&web);
    sim.settle();
    sim.log.clear();
    sim.edit("web", |s| {
        s["spec"]["type"] = json!("ClusterIP");
        s["spec"]["loadBalancerClass"] = Value::Null;
    });
    sim.settle();
    assert_eq!(sim.log, ["send 0", "ack 0", "release 203.0.113.1", "web finalizer removed", "web status cleared"]);
    let left = &sim.services[&ServiceKey::new("default", "web")];
    assert_eq!(left["status"]["conditions"].as_array().unwrap().len(), 1);
    assert!(sim.ingress("web").is_empty());
    assert!(sim.controller.translation.plans.is_empty());
}

#[test]
fn a_crash_after_any_step_heals_at_the_next_start() {
    for steps in 0..14 {
        let mut sim = Sim::new();
        sim.put(&service("web"));
        sim.put(&service("old"));
        sim.settle();
        sim.edit("old", |s| {
            s["spec"]["type"] = json!("ClusterIP");
            s["spec"]["loadBalancerClass"] = Value::Null;
        });
        sim.put(&service("new"));
        sim.delete("web");
        // Some turns of life, one job each; then the process dies.
        for _ in 0..steps {
            let turn = sim.turn();
            sim.acknowledge();
            if let Some(job) = turn.jobs.into_iter().next() {
                let done = sim.perform(job);
                sim.controller.on_done(done, sim.now, &mut Vec::new());
            }
        }
        sim.restart();
        sim.settle();
        assert_eq!(sim.services.len(), 2, "after {steps}: {:?}", sim.log);
        assert_eq!(sim.records.len(), 1, "after {steps}: {:?}", sim.log);
        assert_eq!(sim.ingress("new").len(), 1, "after {steps}: {:?}", sim.log);
        let old = &sim.services[&ServiceKey::new("default", "old")];
        assert_eq!(old["metadata"]["finalizers"], json!([]), "after {steps}");
        assert!(old["status"]["conditions"].as_array().unwrap().is_empty(), "after {steps}");
    }
}

#[test]
fn a_restart_moves_no_vip_writes_nothing_and_says_nothing() {
    let mut sim = Sim::new();
    sim.put(&service("b"));
    sim.settle();
    sim.put(&service("a"));
    sim.settle();
    assert_eq!((sim.ingress("a"), sim.ingress("b")), (vec!["203.0.113.2".into()], vec!["203.0.113.1".into()]));
    sim.restart();
    sim.log.clear();
    sim.notes.clear();
    sim.settle();
    assert_eq!(sim.log, ["send 2", "ack 2"]);
    assert!(sim.notes.is_empty(), "{:?}", sim.notes);
}

#[test]
fn the_same_name_with_a_new_uid_gets_its_own_lb_after_the_old_one_is_gone() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    // Deleted by force, behind our back, and created anew.
    let mut again = service("web");
    again["metadata"]["uid"] = json!("new");
    sim.log.clear();
    sim.acks = false;
    sim.put(&again);
    sim.settle();
    assert!(!sim.log.iter().any(|l| l.starts_with("record") || l.starts_with("release")), "{:?}", sim.log);
    sim.acks = true;
    sim.settle();
    let release = sim.log.iter().position(|l| l.starts_with("release")).unwrap();
    let record = sim.log.iter().position(|l| l.starts_with("record")).unwrap();
    assert!(release < record, "{:?}", sim.log);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn a_refused_service_gets_a_condition_and_one_event_and_nothing_else() {
    let mut sim = Sim::new();
    sim.put(&annotated("web", json!({"penstock.dev/mode": "magic"})));
    sim.settle();
    sim.after(60);
    assert_eq!(sim.log, ["send 0", "ack 0", "web status NotSupported"]);
    assert_eq!(sim.events(), ["SyncLoadBalancerFailed"]);
    assert!(sim.why("web").contains("magic"));
}

#[test]
fn a_served_service_that_becomes_unreadable_keeps_its_address_and_comes_back() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.put(&service("other"));
    sim.settle();
    let before = sim.ingress("web");
    sim.edit("web", |s| s["metadata"]["annotations"]["penstock.dev/mode"] = json!("magic"));
    sim.settle();
    assert!(sim.ingress("web").is_empty());
    assert_eq!((sim.records.len(), sim.ingress("other").len()), (2, 1));
    sim.edit("web", |s| s["metadata"]["annotations"] = json!({}));
    sim.settle();
    assert_eq!(sim.ingress("web"), before);
}

#[test]
fn an_exposed_node_port_service_shows_its_vip_in_an_annotation() {
    let mut sim = Sim::new();
    let mut web = annotated("web", json!({"penstock.dev/expose": "true"}));
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["loadBalancerClass"] = Value::Null;
    sim.put(&web);
    sim.settle();
    let annotation = |sim: &Sim| {
        sim.services[&ServiceKey::new("default", "web")]["metadata"]["annotations"]["penstock.dev/vip"].clone()
    };
    assert_eq!(annotation(&sim), "203.0.113.1");
    assert!(sim.ingress("web").is_empty());
    assert!(sim.log.contains(&"web finalizer penstock.dev/cleanup".to_owned()));
    assert!(sim.events().contains(&"EnsuredLoadBalancer"));
    // What is served is shown all the time: through an edit the box has not acknowledged, and through a restart.
    assert_eq!(sim.condition("web", "Provisioning").1, "Done");
    sim.acks = false;
    sim.log.clear();
    sim.edit("web", |s| s["spec"]["ports"][0]["port"] = json!(81));
    sim.settle();
    sim.after(3);
    assert_eq!(annotation(&sim), "203.0.113.1");
    assert_eq!(sim.condition("web", "Provisioning"), ("True".into(), "AwaitingDataplane".into()));
    assert_eq!(sim.condition("web", "Serving"), ("True".into(), "Serving".into()));
    sim.restart();
    sim.settle();
    sim.after(3);
    assert!(!sim.log.iter().any(|line| line.contains("annotate")), "{:?}", sim.log);
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.condition("web", "Provisioning").1, "Done");
    sim.edit("web", |s| s["metadata"]["annotations"]["penstock.dev/expose"] = json!("false"));
    sim.settle();
    assert_eq!(annotation(&sim), Value::Null);
    assert!(sim.records.is_empty() && sim.controller.translation.plans.is_empty());
}

#[test]
fn a_status_somebody_else_writes_is_left_alone_longer_each_time() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    assert_eq!(overwrite(&mut sim), 1, "once may be an accident");
    assert_eq!(overwrite(&mut sim), 0);
    assert!(sim.notes.iter().any(|n| n.message.contains("another controller") && n.message.contains("198.51.100.9")));
    sim.after(31);
    assert_eq!(sim.log.len(), 1, "tried again after the pause: {:?}", sim.log);
    assert_eq!(overwrite(&mut sim), 0);
    // The pause has grown: at least half of the doubled one.
    sim.after(15);
    assert!(sim.log.is_empty());
    assert!(sim.why("web").contains("another controller"));
}

#[test]
fn a_dataplane_that_is_not_there_yet_is_no_news_of_what_is_shown() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    // The box is started anew.
    sim.restart();
    sim.acks = false;
    sim.put(&service("new"));
    let away = Progress { trouble: Some("the dataplane is not there".into()), ..Progress::default() };
    sim.controller.on_progress(away);
    sim.settle();
    sim.log.clear();
    sim.after(5);
    assert_eq!(sim.condition("new", "Provisioning").1, "DataplaneFault");
    assert_eq!(sim.condition("web", "Provisioning").1, "Done");
    sim.after(6);
    assert_eq!(sim.condition("web", "Provisioning"), ("True".into(), "DataplaneFault".into()));
    sim.controller.on_progress(Progress::default());
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.condition("web", "Provisioning").1, "Done");
}

/// Another controller's write, and how many of ours follow.
fn overwrite(sim: &mut Sim) -> usize {
    sim.edit("web", |s| s["status"]["loadBalancer"] = json!({"ingress": [{"ip": "198.51.100.9"}]}));
    sim.log.clear();
    sim.settle();
    sim.log.len()
}

#[test]
fn a_service_that_is_fought_over_goes_at_once() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    assert_eq!((overwrite(&mut sim), overwrite(&mut sim)), (1, 0));
    sim.delete("web");
    sim.settle();
    assert!(sim.services.is_empty(), "{:?}", sim.log);
}

#[test]
fn news_of_a_service_that_is_fought_over_is_told_at_once() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    assert_eq!((overwrite(&mut sim), overwrite(&mut sim)), (1, 0));
    sim.edit("web", |s| s["metadata"]["annotations"]["penstock.dev/mode"] = json!("magic"));
    sim.settle();
    assert_eq!(sim.condition("web", "Serving").1, "NotSupported");
}

#[test]
fn a_fight_ends_when_ours_has_stood_for_a_while() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    assert_eq!((overwrite(&mut sim), overwrite(&mut sim)), (1, 0));
    sim.after(31);
    assert!(sim.why("web").contains("another controller"), "it may be at it still");
    sim.after(31);
    assert!(!sim.why("web").contains("another controller"), "{}", sim.why("web"));
    // And the next one begins anew.
    assert_eq!((overwrite(&mut sim), overwrite(&mut sim)), (1, 0));
    sim.after(31);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn a_finalizer_that_somebodys_put_took_off_is_put_back_and_the_box_hears_nothing() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.log.clear();
    sim.edit("web", |s| s["metadata"]["finalizers"] = json!([]));
    sim.settle();
    assert_eq!(sim.log, ["web finalizer service.kubernetes.io/load-balancer-cleanup"]);
}

#[test]
fn a_change_that_is_served_is_told() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.edit("web", |s| s["spec"]["ports"][0]["nodePort"] = json!(30081));
    sim.settle();
    assert_eq!(*sim.events().last().unwrap(), "UpdatedLoadBalancer");
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

fn is_type(sim: &mut Sim, name: &str, kind: &str) {
    let class = if kind == "LoadBalancer" { json!("penstock.dev/box") } else { Value::Null };
    sim.edit(name, |s| {
        s["spec"]["type"] = json!(kind);
        s["spec"]["loadBalancerClass"] = class;
    });
}

#[test]
fn a_service_that_left_and_came_back_has_its_whole_time_at_the_next_farewell() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.acks = false;
    is_type(&mut sim, "web", "ClusterIP");
    sim.settle();
    is_type(&mut sim, "web", "LoadBalancer");
    sim.settle();
    sim.acks = true;
    sim.after(3600);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    sim.acks = false;
    sim.notes.clear();
    sim.delete("web");
    sim.settle();
    assert_eq!(sim.services.len(), 1, "the box serves it still: {:?}", sim.log);
    assert_eq!(sim.events(), ["DeletingLoadBalancer"]);
}

fn refused_with(code: u16, field: &str) -> kube::Error {
    let status = json!({"code": code, "reason": "Invalid", "message": "is invalid", "status": "Failure",
        "details": {"causes": [{"reason": "FieldValueInvalid", "field": field, "message": "m"}]}});
    kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
}

#[test]
fn a_refused_write_to_a_former_service_does_not_hold_up_the_one_that_has_its_name_now() {
    // The API server refuses a patch that names another uid as invalid, not as a conflict.
    let mut sim = Sim::new();
    sim.put(&service("web"));
    let Some(Job::Service(job)) = sim.turn().jobs.pop() else { panic!("a condition comes first") };
    let mut again = service("web");
    again["metadata"]["uid"] = json!("new");
    sim.put(&again);
    sim.turn();
    let late = Done::Service { job, result: Err(refused_with(422, "metadata.uid")) };
    let mut notes = Vec::new();
    sim.controller.on_done(late, sim.now, &mut notes);
    assert_eq!(notes, []);
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"], "without a pause: {:?}", sim.log);
}

#[test]
fn what_the_api_server_refused_is_tried_again_as_soon_as_it_is_mended() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    let Some(Job::Service(job)) = sim.turn().jobs.pop() else { panic!("a condition comes first") };
    sim.controller.on_done(Done::Service { job, result: Err(refused_with(422, "x")) }, sim.now, &mut Vec::new());
    sim.settle();
    assert!(sim.ingress("web").is_empty(), "the same would be refused again");
    sim.edit("web", |s| s["metadata"]["annotations"] = json!({"penstock.dev/sticky": "true"}));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn however_long_the_garbage_is_the_condition_that_names_it_is_accepted() {
    let mut sim = Sim::new();
    sim.put(&annotated("web", json!({"penstock.dev/addresses": "\u{fffd}".repeat(30_000)})));
    sim.settle();
    let web = &sim.services[&ServiceKey::new("default", "web")];
    let message = web["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("penstock.dev/addresses") && message.len() <= 1000, "{} bytes", message.len());
    assert_eq!(sim.condition("web", "Serving").1, "BadAnnotation");
    sim.log.clear();
    sim.settle();
    assert!(sim.log.is_empty(), "and said once: {:?}", sim.log);
}
