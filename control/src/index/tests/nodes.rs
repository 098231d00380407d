//! Nodes and endpoints: who takes flows, how many, and who is asked for health.

use super::*;

#[test]
fn nodes_that_are_excluded_leaving_or_the_box_itself_take_no_flows() {
    let cases = [
        (json!({}), json!({}), "a=1"),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}), json!({}), ""),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": "true"}}), json!({}), ""),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": "false"}}), json!({}), "a=1"),
        (json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": "no"}}), json!({}), ""),
        (json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({}), "a=1/draining"),
        (
            json!({}),
            json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}),
            "a=1/draining",
        ),
        (json!({}), json!({"unschedulable": true}), "a=1"),
    ];
    for (meta, spec, expected) in cases {
        let mut world = World::new("own_node = 'box'");
        world.service(&web());
        world.record("203.0.113.1", &[("web", "u1")]);
        world.node("box", json!({}), json!({}), &["10.0.0.9"]);
        world.node("a", meta.clone(), spec.clone(), &["10.0.0.1"]);
        assert_eq!(world.backends().join(" "), expected, "{meta} {spec}");
    }
}

#[test]
fn not_ready_alone_changes_no_snapshot() {
    let mut world = serving(&web());
    let before = world.translate().desired;
    for name in ["a", "b", "c"] {
        let i = name.as_bytes()[0] - b'a' + 1;
        let change = world.raw_node(json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": format!("10.0.0.{i}")},
                          {"type": "InternalIP", "address": format!("2001:db8::{i}")}],
            "conditions": [{"type": "Ready", "status": "False"}]}}));
        assert_eq!(change, Changed::Detail);
    }
    assert_eq!(world.translate().desired, before);
}

#[test]
fn a_nodes_address_is_chosen_by_family_type_and_cidr_and_followed() {
    let node = |external: &str| {
        json!({"metadata": {"name": "a"}, "status": {"addresses": [
            {"type": "Hostname", "address": "a"},
            {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "192.168.0.1"},
            {"type": "ExternalIP", "address": external}, {"type": "InternalIP", "address": "2001:db8::1"}]}})
    };
    let cases = [
        ("", "10.0.0.1 2001:db8::1"),
        ("node_address = { cidrs = ['192.168.0.0/16'] }", "192.168.0.1"),
        ("node_address = { type = 'ExternalIP' }", "198.51.100.1"),
    ];
    for (config, expected) in cases {
        let mut world = World::new(config);
        world.service(&web());
        world.record("203.0.113.1", &[("web", "u1")]);
        world.raw_node(node("198.51.100.1"));
        let addresses = |w: &World| {
            w.translate().desired.nodes[0].addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(addresses(&world), expected);
        if config.contains("External") {
            assert_eq!(world.raw_node(node("198.51.100.2")), Changed::Desired);
            assert_eq!(addresses(&world), "198.51.100.2");
        }
    }
}

#[test]
fn with_no_node_at_all_the_vip_stays() {
    let mut world = World::new("");
    world.service(&web());
    world.record("203.0.113.1", &[("web", "u1")]);
    let translation = world.translate();
    assert_eq!(translation.desired.services[0].vip.to_string(), "203.0.113.1");
    assert_eq!(translation.empty_sets.len(), 1);
    let (ingress, conditions) = said(&world.plan(), Signals { health: Health::NoBackends, ..GOOD });
    assert_eq!((ingress.len(), conditions[2].clone()), (1, (true, "NoBackends".into())));
}

fn local(nodes: Value) -> World {
    let mut world = serving(&changed(web(), |s| {
        s["spec"]["externalTrafficPolicy"] = json!("Local");
        s["spec"]["healthCheckNodePort"] = json!(31000);
    }));
    world.slice("web", nodes);
    world
}

fn endpoint(node: &str, ready: Value, serving: Value, terminating: Value) -> Value {
    json!({"addresses": ["10.1.0.1"], "nodeName": node,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

#[test]
fn local_uses_only_nodes_with_endpoints_by_their_number() {
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    let world = local(json!([ready("a"), ready("a"), ready("b"), {"addresses": ["10.1.0.9"]}]));
    assert_eq!(world.backends(), ["a=2", "b=1"]);
    let mut world = local(json!([ready("a"), ready("a"), ready("b")]));
    world.service(&changed(annotated("penstock.dev/weights", "equal"), |s| {
        s["spec"]["externalTrafficPolicy"] = json!("Local");
    }));
    assert_eq!(world.backends(), ["a=1", "b=1"]);
}

#[test]
fn local_reads_unset_conditions_as_the_api_says() {
    let cases = [
        (endpoint("a", Value::Null, Value::Null, Value::Null), vec!["a=1"]),
        (json!({"addresses": ["10.1.0.1"], "nodeName": "a"}), vec!["a=1"]),
        (endpoint("a", json!(false), Value::Null, json!(true)), vec![]),
        (endpoint("a", json!(false), json!(true), json!(true)), vec!["a=1"]),
        (endpoint("a", json!(false), json!(true), json!(false)), vec![]),
    ];
    for (endpoint, expected) in cases {
        assert_eq!(local(json!([endpoint])).backends(), expected, "{endpoint}");
    }
}

#[test]
fn terminating_endpoints_drain_while_others_are_ready_and_serve_when_none_is() {
    let gone = |node| endpoint(node, json!(false), json!(true), json!(true));
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    assert_eq!(local(json!([gone("a"), ready("b")])).backends(), ["a=1/draining", "b=1"]);
    assert_eq!(local(json!([gone("a"), gone("b")])).backends(), ["a=1", "b=1"]);
    // A ready endpoint on a node that is itself no backend helps nobody.
    let mut world = local(json!([gone("a"), ready("b")]));
    world.node(
        "b",
        json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}),
        json!({}),
        &["10.0.0.2"],
    );
    assert_eq!(world.backends(), ["a=1"]);
}

#[test]
fn endpoints_of_several_slices_add_up_and_leave_with_them() {
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    let mut world = local(json!([ready("a")]));
    world.slice_named("hand-made", "web", json!([ready("a"), ready("c")]));
    assert_eq!(world.backends(), ["a=2", "c=1"]);
    world.index.apply(Update::Slice(Change::Gone(ServiceKey::new("default", "hand-made"), 0)));
    assert_eq!(world.backends(), ["a=1"]);
}

#[test]
fn live_switching_of_the_policy_both_ways() {
    let ready = |node| endpoint(node, json!(true), json!(true), json!(false));
    let mut world = local(json!([ready("a")]));
    assert_eq!(world.backends(), ["a=1"]);
    world.service(&web());
    assert_eq!(world.backends(), ["a=1", "b=1", "c=1"]);
    world.service(&changed(web(), |s| s["spec"]["externalTrafficPolicy"] = json!("Local")));
    assert_eq!(world.backends(), ["a=1"]);
    assert_eq!(world.plan().vips[0].to_string(), "203.0.113.1");
}

#[test]
fn local_in_nat_mode_says_that_the_source_is_lost_and_dnat_does_not() {
    for (mode, reason) in [("nat", "ServingSourceNotPreserved"), ("dnat", "Serving")] {
        let service =
            changed(annotated("penstock.dev/mode", mode), |s| s["spec"]["externalTrafficPolicy"] = json!("Local"));
        let plan = serving(&service).plan();
        assert_eq!(said(&plan, GOOD).1[0], (true, reason.to_owned()));
    }
}

#[test]
fn local_is_checked_by_its_health_check_node_port_and_cluster_by_the_nodes() {
    let world = local(json!([endpoint("a", json!(true), json!(true), json!(false))]));
    let targets = world.translate().targets;
    assert_eq!(targets.len(), 1);
    assert_eq!(&*targets[0].id, "local/default/web/a/10.0.0.1");
    assert_eq!(targets[0].covers, [Some(30080)]);
    assert!(
        matches!(&targets[0].check, Check::Http { port: 31000, path, drain_on_503: true, .. } if path == "/healthz")
    );

    let mut world = serving(&web());
    let mut other = changed(web(), |s| s["metadata"]["uid"] = json!("u2"));
    other["metadata"]["name"] = json!("second");
    world.service(&other);
    world.record("203.0.113.2", &[("second", "u2")]);
    let targets = world.translate().targets;
    assert_eq!(targets.len(), 3, "one per node, not per Service");
    assert!(targets.iter().all(|t| matches!(t.check, Check::Http { port: 10256, .. }) && t.covers == [None]));
    assert!(targets.iter().all(|t| t.unproven));
}

#[test]
fn in_dsr_the_nodes_are_checked_whose_ports_nobody_uses() {
    let mut world = World::with_nodes("probes = { each_node_port = true }", &["a", "b"]);
    let dsr = annotated("penstock.dev/mode", "dsr");
    world.service(&changed(dsr, |s| {
        s["spec"]["externalTrafficPolicy"] = json!("Local");
        s["spec"]["healthCheckNodePort"] = json!(31000);
    }));
    world.record("203.0.113.1", &[("web", "u1")]);
    world.slice("web", json!([endpoint("a", json!(true), json!(true), json!(false))]));
    let targets = world.translate().targets;
    assert_eq!(targets.len(), 1, "{targets:?}");
    assert_eq!((&*targets[0].id, &targets[0].covers[..]), ("node/a/10.0.0.1", &[None][..]));
    assert!(!targets[0].unproven, "its endpoint is ready");
}

#[test]
fn probing_each_node_port_is_opt_in() {
    let mut world = World::with_nodes("probes = { each_node_port = true, node = 'none' }", &["a", "b"]);
    world.service(&web());
    world.record("203.0.113.1", &[("web", "u1")]);
    let targets = world.translate().targets;
    assert_eq!(targets.len(), 2);
    assert!(targets.iter().all(|t| t.check == Check::Tcp { port: 30080 } && t.covers == [Some(30080)]));
}
