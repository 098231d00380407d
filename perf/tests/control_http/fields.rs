//! What a Service's fields and annotations become, and what is refused.

use std::collections::BTreeSet;

use penstock_configs::desired::{Affinity, BackendState, Protocol};
use penstock_perf::apiserver::ApiServer;
use serde_json::{Value, json};

use crate::rig::{Control, SLICES, V1, World, a_while, service, slice, until};

#[tokio::test]
async fn ports_and_protocols_come_and_go_and_the_address_stays() {
    let world = World::new();
    let control = Control::start(&world).await;
    world.put(&service("dns"));
    until("an address", vec!["203.0.113.1".to_owned()], || world.ingress("dns")).await;
    world.edit("dns", |s| {
        s["spec"]["ports"] = json!([{"name": "tcp", "port": 53, "protocol": "TCP"},
            {"name": "udp", "port": 53, "protocol": "UDP"}]);
    });
    let seen = || -> BTreeSet<(u16, String)> {
        world.programmed("dns").iter().map(|s| (s.port, format!("{:?}", s.protocol))).collect()
    };
    until("both protocols", [(53, "Tcp".to_owned()), (53, "Udp".to_owned())].into(), seen).await;
    let ports: BTreeSet<Option<u16>> = world.programmed("dns").iter().map(|s| s.target_port).collect();
    assert_eq!(ports.len(), 1, "one node port number on two protocols");
    world.edit("dns", |s| {
        s["spec"]["ports"] = json!([{"name": "udp", "port": 5353, "protocol": "UDP", "nodePort": 32_000}]);
    });
    until("one", vec![(5353, Protocol::Udp, Some(32_000))], || {
        world.programmed("dns").iter().map(|s| (s.port, s.protocol, s.target_port)).collect()
    })
    .await;
    assert_eq!(world.ingress("dns"), ["203.0.113.1"]);
    until("UpdatedLoadBalancer", true, || world.has_event("dns", "UpdatedLoadBalancer")).await;
    control.stop().await;
}

#[tokio::test]
async fn local_serves_by_the_nodes_that_have_endpoints_and_switches_live() {
    let world = World::new();
    let control = Control::start(&world).await;
    let mut web = service("web");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    world.put(&slice("web", &[("a", true, true, false), ("a", true, true, false), ("b", false, false, false)]));
    world.put(&web);
    until("only a", vec![("a".to_owned(), 2, BackendState::Active)], || world.backends("web")).await;
    until("an address", 1, || world.ingress("web").len()).await;
    until("the source is lost in mode nat", "True ServingSourceNotPreserved".to_owned(), || {
        world.condition("web", "Serving")
    })
    .await;
    // The pod moves: a terminates and serves still, b is ready.
    world.put(&slice("web", &[("a", false, true, true), ("b", true, true, false)]));
    let moved = vec![("a".to_owned(), BackendState::Draining), ("b".to_owned(), BackendState::Active)];
    let states = || world.backends("web").into_iter().map(|(node, _, state)| (node, state)).collect::<Vec<_>>();
    until("a drains", moved, states).await;
    // None is ready: what terminates and serves is taken.
    world.put(&slice("web", &[("a", false, true, true)]));
    until("the fallback", vec![("a".to_owned(), BackendState::Active)], states).await;
    let address = world.ingress("web");
    world.edit("web", |s| s["spec"]["externalTrafficPolicy"] = json!("Cluster"));
    until("all nodes", vec!["a".to_owned(), "b".to_owned()], || world.nodes_of("web")).await;
    world.edit("web", |s| s["spec"]["externalTrafficPolicy"] = json!("Local"));
    until("a alone", vec!["a".to_owned()], || world.nodes_of("web")).await;
    assert_eq!(world.ingress("web"), address);
    world.server.delete(SLICES, "EndpointSlice", "default/web-x").unwrap();
    until("none", Vec::<String>::new(), || world.nodes_of("web")).await;
    assert_eq!(world.ingress("web"), address, "the VIP stays");
    control.stop().await;
}

/// All ports of the Service as one, for as long as it says; refused by no event any more.
#[tokio::test]
async fn session_affinity_is_passed_on_and_switched_live() {
    let world = World::new();
    let control = Control::start(&world).await;
    let mut sticky = service("sticky");
    sticky["spec"]["sessionAffinity"] = json!("ClientIP");
    sticky["spec"]["ports"] = json!([{"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    world.put(&sticky);
    until("an address", vec!["203.0.113.1".to_owned()], || world.ingress("sticky")).await;
    let seen = || world.programmed("sticky").iter().map(|s| s.affinity.clone()).collect::<Vec<_>>();
    let wanted = |timeout| Some(Affinity { timeout, group: Some("default/sticky".into()), ..Affinity::client_ip() });
    until("Kubernetes' three hours", vec![wanted(10_800); 2], seen).await;
    world.edit("sticky", |s| s["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = json!(90));
    until("another time", vec![wanted(90); 2], seen).await;
    world.edit("sticky", |s| {
        s["spec"]["sessionAffinity"] = json!("None");
        s["spec"]["sessionAffinityConfig"] = json!(null);
    });
    until("off", vec![None; 2], seen).await;
    assert_eq!(world.ingress("sticky"), ["203.0.113.1"]);
    control.stop().await;
}

fn dual(name: &str, policy: &str) -> Value {
    let mut service = service(name);
    service["spec"]["ipFamilyPolicy"] = json!(policy);
    service
}

#[tokio::test]
async fn dual_stack_has_an_entry_per_family_and_the_second_leaves_the_first_alone() {
    let world = World::new();
    world.put(&json!({"apiVersion": V1, "kind": "Node", "metadata": {"name": "a"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "2001:db8::1"}]}}));
    let control = Control::start(&world).await;
    world.put(&service("web"));
    until("one", vec!["203.0.113.1".to_owned()], || world.ingress("web")).await;
    world.edit("web", |s| s["spec"]["ipFamilyPolicy"] = json!("RequireDualStack"));
    let both = vec!["203.0.113.1".to_owned(), "2001:db8:f::1".to_owned()];
    until("both", both, || world.ingress("web")).await;
    world.edit("web", |s| s["spec"]["ipFamilyPolicy"] = json!("SingleStack"));
    until("one again", vec!["203.0.113.1".to_owned()], || world.ingress("web")).await;
    until("release", vec!["203.0.113.1".to_owned()], || world.records()).await;
    control.stop().await;
}

#[tokio::test]
async fn a_missing_family_fails_or_degrades_visibly() {
    let world = World::empty();
    world.put(&crate::rig::node("a", "10.0.0.1"));
    world.pool("four", &["203.0.113.1-203.0.113.4"]);
    let control = Control::start(&world).await;
    world.put(&dual("prefers", "PreferDualStack"));
    until("what there is", vec!["203.0.113.1".to_owned()], || world.ingress("prefers")).await;
    until("Degraded", "True MissingAddress".to_owned(), || world.condition("prefers", "Degraded")).await;
    world.put(&dual("requires", "RequireDualStack"));
    until("the Event", true, || world.has_event("requires", "AllocationFailed")).await;
    assert_eq!(world.ingress("requires").len(), 0);
    assert_eq!(world.records().len(), 1);
    control.stop().await;
}

/// What the annotations or fields of a Service are refused for.
async fn refused(world: &World, name: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut bad = service(name);
    change(&mut bad);
    world.put(&bad);
    until("an Event", true, || world.has_event(name, "SyncLoadBalancerFailed")).await;
    until("a condition", true, || world.condition(name, "Serving").starts_with("False")).await;
    assert_eq!((world.ingress(name).len(), world.programmed(name).len()), (0, 0), "{name}");
    world.message(name, "Serving")
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name_and_mended_live() {
    let world = World::new();
    let control = Control::start(&world).await;
    let annotate = |key: &'static str, value: &'static str| {
        move |s: &mut Value| s["metadata"]["annotations"] = json!({key: value})
    };
    for (name, key, value) in [
        ("unknown", "penstock.dev/colour", "blue"),
        ("scheduler", "penstock.dev/scheduler", "fortune"),
        ("limits", "penstock.dev/limit-rate", "5 a second"),
        ("alias", "metallb.io/loadBalancerIPs", "no-address"),
    ] {
        let message = refused(&world, name, annotate(key, value)).await;
        assert!(message.contains(key), "{name}: {message}");
    }
    let message = refused(&world, "portless", |s| s["spec"]["allocateLoadBalancerNodePorts"] = json!(false)).await;
    assert!(message.contains("node port"), "{message}");
    let conflict = |s: &mut Value| {
        s["metadata"]["annotations"] = json!({"penstock.dev/addresses": "203.0.113.2"});
        s["spec"]["loadBalancerIP"] = json!("203.0.113.3");
    };
    assert!(refused(&world, "conflict", conflict).await.contains("203.0.113.3"));
    world.edit("unknown", |s| s["metadata"]["annotations"] = json!({}));
    until("mended", 1, || world.ingress("unknown").len()).await;
    control.stop().await;
}

#[tokio::test]
async fn a_bad_source_range_closes_the_service() {
    let world = World::new();
    let control = Control::start(&world).await;
    let mut web = service("web");
    web["spec"]["loadBalancerSourceRanges"] = json!([" 10.0.0.0/8 "]);
    web["metadata"]["annotations"] = json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "192.0.2.0/24"});
    world.put(&web);
    let ranges = || {
        world.programmed("web").iter().flat_map(|s| s.source_ranges.clone()).map(|n| n.to_string()).collect::<Vec<_>>()
    };
    until("the field wins, without its white space", vec!["10.0.0.0/8".to_owned()], ranges).await;
    until("an address", 1, || world.ingress("web").len()).await;
    // What an older server let through.
    let put_raw = |server: &ApiServer, mut object: Value, range: &str| {
        object["spec"]["loadBalancerSourceRanges"] = json!([range]);
        server.put_raw(&object).unwrap();
    };
    put_raw(&world.server, world.get("web"), "10.0.0.0/33");
    until("closed", 0, || world.programmed("web").len()).await;
    until("said", true, || world.message("web", "Serving").contains("10.0.0.0/33")).await;
    put_raw(&world.server, world.get("web"), "10.0.0.0/24");
    until("open again", vec!["10.0.0.0/24".to_owned()], ranges).await;
    control.stop().await;
}

#[tokio::test]
async fn two_that_share_an_address_by_key_and_one_that_may_not() {
    let world = World::new();
    let control = Control::start(&world).await;
    let sharing = |name: &str, port: u16, key: &str| {
        let mut s = service(name);
        s["metadata"]["annotations"] = json!({"penstock.dev/share-key": key, "penstock.dev/addresses": "203.0.113.2"});
        s["spec"]["ports"] = json!([{"name": "x", "port": port}]);
        s
    };
    world.put(&sharing("one", 80, "k"));
    until("the first", vec!["203.0.113.2".to_owned()], || world.ingress("one")).await;
    world.put(&sharing("two", 81, "k"));
    until("shared", vec!["203.0.113.2".to_owned()], || world.ingress("two")).await;
    world.put(&sharing("three", 82, "other"));
    until("the Event", true, || {
        world.events("three").iter().any(|e| e.contains("default/one") || e.contains("default/two"))
    })
    .await;
    world.delete("one");
    until("deletion", Value::Null, || world.get("one")).await;
    a_while().await;
    assert_eq!(world.ingress("two"), ["203.0.113.2"]);
    assert_eq!(world.programmed("two").len(), 1);
    control.stop().await;
}
