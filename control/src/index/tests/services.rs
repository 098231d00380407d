//! Which Services are ours, how far each is, and what is said of it.

use super::*;

#[test]
fn our_class_is_ours_and_a_foreign_one_is_not() {
    for (class, default_class, ours) in [
        (Some("penstock.dev/box"), false, true),
        (Some("metallb.io/x"), false, false),
        (Some("metallb.io/x"), true, false),
        (None, false, false),
        (None, true, true),
    ] {
        let mut world = World::with_nodes(&format!("default_class = {default_class}"), &["a"]);
        world.service(&changed(web(), |s| s["spec"]["loadBalancerClass"] = json!(class)));
        assert_eq!(world.has_plan(), ours, "{class:?} {default_class}");
    }
}

#[test]
fn an_exposed_node_port_service_gets_an_address_with_our_own_finalizer() {
    let exposed = changed(annotated("penstock.dev/expose", "true"), |s| {
        s["spec"]["type"] = json!("NodePort");
        s["spec"]["loadBalancerClass"] = Value::Null;
    });
    let mut world = World::with_nodes("", &["a", "b", "c"]);
    world.service(&exposed);
    assert_eq!(world.plan().stage, Stage::NeedsFinalizer, "the load balancer's finalizer is no substitute");
    world.service(&changed(exposed, |s| s["metadata"]["finalizers"] = json!(["penstock.dev/cleanup"])));
    world.record("203.0.113.1", &[("web", "u1")]);
    let plan = world.plan();
    assert_eq!((plan.stage.clone(), plan.exposed), (Stage::Programmed, true));
    let said = outcome::wanted(&plan, &kinds::ServiceStatus::default(), &GOOD);
    assert_eq!((said.vip_annotation.as_deref(), said.ingress.len()), (Some("203.0.113.1"), 0));
}

#[test]
fn what_neither_exposes_nor_does_not_is_refused_by_name() {
    for value in ["yes", "True", ""] {
        let service = changed(annotated("penstock.dev/expose", value), |s| {
            s["spec"]["type"] = json!("NodePort");
            s["spec"]["loadBalancerClass"] = Value::Null;
        });
        let (reason, message) = refusal(&serving(&service).plan());
        assert!(reason == "BadAnnotation" && message.contains("penstock.dev/expose"), "{value}: {message}");
    }
}

#[test]
fn what_has_no_node_ports_is_refused_with_a_reason() {
    for (edit, reason) in [
        (json!({"type": "ExternalName"}), "ExternalName"),
        (json!({"type": "ClusterIP", "clusterIP": "None"}), "Headless"),
        (json!({"type": "ClusterIP"}), "NoNodePort"),
    ] {
        let service = changed(annotated("penstock.dev/expose", "true"), |s| {
            for (key, value) in edit.as_object().unwrap() {
                s["spec"][key] = value.clone();
            }
        });
        assert_eq!(refusal(&serving(&service).plan()).0, reason);
    }
    let without = changed(web(), |s| {
        s["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        s["spec"]["ports"][0]["nodePort"] = Value::Null;
    });
    let (reason, message) = refusal(&serving(&without).plan());
    assert!(reason == "NoNodePort" && message.contains("port http"), "{message}");
}

#[test]
fn a_flip_of_type_or_class_leaves_what_is_ours_to_be_cleaned_up() {
    for edit in [json!({"type": "ClusterIP", "loadBalancerClass": null}), json!({"loadBalancerClass": "other/lb"})] {
        let mut world = serving(&web());
        world.service(&changed(web(), |s| {
            for (key, value) in edit.as_object().unwrap() {
                s["spec"][key] = value.clone();
            }
        }));
        let translation = world.translate();
        assert_eq!(world.plan().stage, Stage::Leaving);
        assert!(translation.desired.services.is_empty());
        assert_eq!(translation.orphans.len(), 1, "its claim goes once the box has let go");
    }
}

#[test]
fn a_finalizer_that_we_did_not_add_is_not_ours_to_remove() {
    let mut world = World::with_nodes("", &["a"]);
    world.service(&changed(web(), |s| s["spec"]["loadBalancerClass"] = json!("other/lb")));
    assert!(!world.has_plan());
}

#[test]
fn a_new_service_of_the_same_name_waits_until_the_old_one_is_gone() {
    let mut world = serving(&web());
    world.service(&changed(web(), |s| s["metadata"]["uid"] = json!("u2")));
    assert_eq!(world.plan().stage, Stage::NeedsCleanup);
    let translation = world.translate();
    assert!(translation.desired.services.is_empty());
    assert_eq!(translation.orphans[0].1.uid, "u1");
}

#[test]
fn nothing_is_programmed_before_the_finalizer_and_the_record() {
    let mut world = World::with_nodes("", &["a"]);
    world.service(&changed(web(), |s| s["metadata"]["finalizers"] = json!([])));
    assert_eq!(world.plan().stage, Stage::NeedsFinalizer);
    world.service(&web());
    let plan = world.plan();
    assert_eq!((plan.stage, plan.missing), (Stage::NeedsAddress, vec![pool::Family::V4]));
    assert!(world.translate().desired.services.is_empty());
    world.record("203.0.113.1", &[("web", "u1")]);
    assert_eq!(world.plan().stage, Stage::Programmed);
}

#[test]
fn what_is_recorded_is_served_also_without_the_finalizer() {
    let mut world = serving(&web());
    let (plan, desired) = (world.plan(), world.translate().desired);
    world.service(&changed(web(), |s| s["metadata"]["finalizers"] = json!([])));
    assert_eq!((world.plan(), world.translate().desired), (plan, desired));
}

#[test]
fn a_service_being_deleted_leaves_the_snapshot_at_once_and_its_claim_after() {
    let mut world = serving(&web());
    world.service(&changed(web(), |s| s["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")));
    let translation = world.translate();
    assert!(translation.desired.services.is_empty());
    assert_eq!((world.plan().stage, translation.orphans.len()), (Stage::Leaving, 1));
}

#[test]
fn a_record_of_a_service_that_is_gone_is_an_orphan_and_another_owners_is_not() {
    let mut world = World::new("");
    world.record("203.0.113.1", &[("gone", "u9")]);
    world.record_with("203.0.113.2", &[("gone", "u9")], json!({"owner": "other-cluster"}));
    let orphans = world.translate().orphans;
    assert_eq!(orphans.len(), 1);
    assert_eq!(orphans[0].0.to_string(), "203.0.113.1");
}

#[test]
fn an_address_is_shown_only_when_acknowledged_and_healthy_or_after_the_grace() {
    let plan = serving(&web()).plan();
    let yes = vec!["203.0.113.1/Proxy".to_owned()];
    let (ingress, conditions) = said(&plan, Signals { acknowledged: false, ..GOOD });
    assert_eq!((ingress, conditions[1].clone()), (vec![], (true, "AwaitingDataplane".into())));
    let (ingress, conditions) = said(&plan, Signals { health: Health::Unsettled, ..GOOD });
    assert_eq!((ingress, conditions[1].clone()), (vec![], (true, "AwaitingHealth".into())));
    let (ingress, conditions) = said(&plan, Signals { health: Health::Bad, ..GOOD });
    assert_eq!((ingress, conditions[2].clone()), (yes.clone(), (true, "NoHealthyBackend".into())));
    let (ingress, conditions) = said(&plan, GOOD);
    assert_eq!(ingress, yes);
    assert_eq!(conditions[0], (true, "Serving".into()));
    assert_eq!(conditions[1], (false, "Done".into()));
    assert_eq!(conditions[2], (false, "AsExpected".into()));
}

#[test]
fn what_is_shown_stays_while_a_change_is_on_its_way() {
    let plan = serving(&web()).plan();
    let shown = kinds::ServiceStatus {
        ingress: outcome::wanted(&plan, &kinds::ServiceStatus::default(), &GOOD).ingress,
        ..kinds::ServiceStatus::default()
    };
    for health in [Health::Good, Health::Unsettled, Health::Bad, Health::NoBackends] {
        let wanted = outcome::wanted(&plan, &shown, &Signals { acknowledged: false, health, ..GOOD });
        assert_eq!(wanted.ingress, shown.ingress, "{health:?}");
    }
}

#[test]
fn a_status_that_says_it_already_is_not_written_again() {
    let plan = serving(&web()).plan();
    let wanted = outcome::wanted(&plan, &kinds::ServiceStatus::default(), &GOOD);
    let mut seen = kinds::ServiceStatus { ingress: wanted.ingress.clone(), ..kinds::ServiceStatus::default() };
    assert!(!outcome::is_said(&wanted, &seen, true));
    seen.conditions = wanted
        .conditions
        .iter()
        .map(|c| kinds::ConditionInfo {
            kind: c.kind.into(),
            status: c.status,
            reason: c.reason.clone(),
            message: c.message.clone(),
            since: "some other time".into(),
        })
        .collect();
    assert!(outcome::is_said(&wanted, &seen, true));
    seen.ingress[0].ip = Some("203.0.113.9".parse().unwrap());
    assert!(!outcome::is_said(&wanted, &seen, true));
}

#[test]
fn only_the_leader_announces_and_routes_let_all_serve_silently() {
    for (config, leader, announce) in [
        ("", true, Announce::L2),
        ("", false, Announce::None),
        ("announce = 'routes'", true, Announce::None),
        ("announce = 'routes'", false, Announce::None),
    ] {
        let mut world = World::with_nodes(config, &["a"]);
        world.service(&web());
        world.record("203.0.113.1", &[("web", "u1")]);
        let translation = translate(&world.index, &world.config, leader, &Quarantine::default());
        assert_eq!(translation.desired.services[0].announce, Some(announce), "{config} {leader}");
    }
}

#[test]
fn a_service_the_dataplane_refused_by_name_is_left_out_alone() {
    let mut world = serving(&web());
    let mut other = changed(web(), |s| s["metadata"]["uid"] = json!("u2"));
    other["metadata"]["name"] = json!("second");
    world.service(&other);
    world.record("203.0.113.2", &[("second", "u2")]);
    let services = HashMap::from([(ServiceKey::new("default", "web"), "claimed by owner `file`".to_owned())]);
    let quarantine = Quarantine { services, ..Quarantine::default() };
    let translation = translate(&world.index, &world.config, true, &quarantine);
    assert_eq!(translation.desired.services.len(), 1);
    assert_eq!(refusal(&translation.plans[&ServiceKey::new("default", "web")]).0, "RefusedByDataplane");
}
