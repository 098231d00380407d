//! Fields and annotations, as they reach the snapshot.

use super::*;

#[test]
fn several_ports_and_one_number_on_two_protocols() {
    let service = changed(web(), |s| {
        s["spec"]["ports"] = json!([
            {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
            {"name": "dns-tcp", "protocol": "TCP", "port": 53, "nodePort": 30053},
            {"name": "web", "protocol": "TCP", "port": 443, "nodePort": 30443}]);
    });
    let services = serving(&service).translate().desired.services.clone();
    let got: Vec<_> = services.iter().map(|s| (s.name.as_str(), s.port, s.protocol, s.target_port.unwrap())).collect();
    assert_eq!(
        got,
        [
            ("default/web:dns", 53, Protocol::Udp, 30053),
            ("default/web:dns-tcp", 53, Protocol::Tcp, 30053),
            ("default/web:web", 443, Protocol::Tcp, 30443),
        ]
    );
}

#[test]
fn port_and_node_port_edits_keep_the_vip() {
    let mut world = serving(&web());
    world.service(&changed(web(), |s| {
        s["spec"]["ports"][0]["port"] = json!(81);
        s["spec"]["ports"][0]["nodePort"] = json!(30081);
    }));
    let service = &world.translate().desired.services[0];
    assert_eq!((service.vip.to_string().as_str(), service.port, service.target_port), ("203.0.113.1", 81, Some(30081)));
}

#[test]
fn session_affinity_holds_over_the_ports_of_a_service() {
    assert!(serving(&web()).translate().desired.services.iter().all(|service| service.affinity.is_none()));
    let sticky = |config: Value| {
        changed(web(), |s| {
            s["spec"]["sessionAffinity"] = json!("ClientIP");
            s["spec"]["sessionAffinityConfig"] = config;
            s["spec"]["ports"] = json!([
                {"name": "web", "protocol": "TCP", "port": 80, "nodePort": 30080},
                {"name": "alt", "protocol": "UDP", "port": 80, "nodePort": 30081}]);
        })
    };
    for (config, timeout) in [(json!(null), 10_800), (json!({"clientIP": {"timeoutSeconds": 60}}), 60)] {
        let services = serving(&sticky(config)).translate().desired.services.clone();
        let wanted = Affinity { timeout, group: Some("default/web".into()), ..Affinity::client_ip() };
        assert_eq!(services.len(), 2);
        assert!(services.iter().all(|service| service.affinity.as_ref() == Some(&wanted)), "{services:?}");
    }
}

#[test]
fn limits_are_of_all_clients_and_of_each() {
    use penstock_configs::desired::{ServiceLimits, SourceLimits};
    let both = |connections: &str, rate: Option<&str>| {
        let mut service = annotated("penstock.dev/limit-connections", connections);
        if let Some(rate) = rate {
            service["metadata"]["annotations"]["penstock.dev/limit-rate"] = json!(rate);
        }
        serving(&service).translate().desired.services[0].limits.clone().expect("limits")
    };
    let all = ServiceLimits { connections: Some(10_000), ..ServiceLimits::default() };
    assert_eq!(both("10000", None), all);
    let source = SourceLimits { connections: Some(100), ..SourceLimits::default() };
    assert_eq!(both("10000, source=100", None), ServiceLimits { per_source: Some(source.clone()), ..all.clone() });
    assert_eq!(
        both("source=100,10000", Some("500,source=5")),
        ServiceLimits {
            new_per_second: Some(500),
            per_source: Some(SourceLimits { new_per_second: Some(5), ..source }),
            ..all
        }
    );
    assert_eq!(serving(&web()).translate().desired.services[0].limits, None);
    for bad in ["0", "many", "1,2", "source=", "source=0", "", "1,source=2,source=3"] {
        let (reason, message) = refusal(&serving(&annotated("penstock.dev/limit-rate", bad)).plan());
        assert!(reason == "BadAnnotation" && message.contains("is no limit"), "{bad}: {reason}: {message}");
    }
}

#[test]
fn unknown_and_unreadable_annotations_are_refused_by_name() {
    for (key, value) in [
        ("penstock.dev/adresses", "203.0.113.7"),
        ("penstock.dev/addresses", "203.0.113"),
        ("penstock.dev/addresses", "203.0.113.7,203.0.113.8"),
        ("penstock.dev/mode", "magic"),
        ("penstock.dev/idle-timeout", "soon"),
        ("penstock.dev/sticky", "yes"),
        ("penstock.dev/weights", "some"),
        ("metallb.io/loadBalancerIPs", "x"),
    ] {
        let (_, message) = refusal(&serving(&annotated(key, value)).plan());
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn source_ranges_come_from_the_field_then_the_annotation_and_fail_closed() {
    let old = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let ranges = |service: &Value| {
        let world = serving(service);
        let services = world.translate().desired.services.clone();
        services[0].source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let field = |s: &mut Value| s["spec"]["loadBalancerSourceRanges"] = json!([" 10.0.0.0/8 ", "192.0.2.7/24"]);
    assert_eq!(ranges(&annotated(old, " 10.0.0.0/8, 2001:db8::/32")), ["10.0.0.0/8", "2001:db8::/32"]);
    assert_eq!(ranges(&annotated(old, "  ")), Vec::<String>::new());
    assert_eq!(ranges(&changed(annotated(old, "172.16.0.0/12"), field)), ["10.0.0.0/8", "192.0.2.0/24"]);
    let bad = serving(&annotated(old, "10.0.0.0/8,10.0.0.1/99"));
    assert_eq!(refusal(&bad.plan()).0, "BadSourceRange");
    assert!(bad.translate().desired.services.is_empty(), "closed, not open");
    assert_eq!(bad.plan().vips.len(), 1, "and the address is kept");
    assert!(bad.translate().orphans.is_empty());
}

#[test]
fn load_balancer_ip_is_a_request_and_must_not_contradict_the_annotation() {
    let with = |s: Value, ip: &str| changed(s, |s| s["spec"]["loadBalancerIP"] = json!(ip));
    assert_eq!(serving(&with(web(), "203.0.113.1")).plan().stage, Stage::Programmed);
    let plan = serving(&with(web(), "203.0.113.7")).plan();
    assert_eq!(
        (plan.missing.len(), plan.vips[0].to_string()),
        (1, "203.0.113.1".into()),
        "the old one serves meanwhile"
    );
    let both = with(annotated("penstock.dev/addresses", "203.0.113.8"), "203.0.113.7");
    assert_eq!(refusal(&serving(&both).plan()).0, "Conflict");
}

#[test]
fn metallbs_annotations_are_aliases() {
    for domain in ["metallb.io", "metallb.universe.tf"] {
        let service = changed(annotated(&format!("{domain}/loadBalancerIPs"), "203.0.113.1"), |s| {
            s["metadata"]["annotations"][format!("{domain}/address-pool")] = json!("p");
            s["metadata"]["annotations"][format!("{domain}/allow-shared-ip")] = json!("k");
            s["metadata"]["annotations"][format!("{domain}/ip-allocated-from-pool")] = json!("old");
        });
        let world = serving(&service);
        assert_eq!(world.plan().stage, Stage::Programmed);
        let info = world.index.services.get(&ServiceKey::new("default", "web")).unwrap();
        let ask = ask::read(&info.spec, &world.kubernetes()).unwrap();
        assert_eq!((ask.pool.as_deref(), ask.share_key.as_deref(), ask.addresses.len()), (Some("p"), Some("k"), 1));
    }
    let twice = changed(annotated("metallb.io/address-pool", "x"), |s| {
        s["metadata"]["annotations"]["penstock.dev/pool"] = json!("y");
    });
    assert_eq!(refusal(&serving(&twice).plan()).0, "Conflict");
}

#[test]
fn dual_stack_has_one_address_per_family_and_changes_leave_the_first_alone() {
    let dual = changed(web(), |s| s["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]));
    let mut world = serving(&dual);
    let plan = world.plan();
    assert_eq!((plan.stage.clone(), plan.missing.as_slice()), (Stage::Programmed, [pool::Family::V6].as_slice()));
    assert_eq!(said(&plan, GOOD).1[2], (true, "MissingAddress".into()), "degrades visibly");
    let first = world.translate().desired.services[0].clone();

    world.record("2001:db8:f::1", &[("web", "u1")]);
    let translation = world.translate();
    assert_eq!(translation.desired.services[0], first);
    assert_eq!(translation.desired.services[1].name, "default/web:http/IPv6");
    assert_eq!(translation.desired.services[1].set.as_deref(), Some("nodes/IPv6"));
    assert_eq!(said(&world.plan(), GOOD).0, ["203.0.113.1/Proxy", "2001:db8:f::1/Proxy"]);

    world.service(&web());
    let translation = world.translate();
    assert_eq!(translation.desired.services, [first]);
    assert_eq!(world.plan().surplus, ["2001:db8:f::1".parse::<IpAddr>().unwrap()]);
    assert_eq!(translation.orphans.len(), 1);
}

#[test]
fn on_a_shared_address_the_first_claim_has_the_port() {
    let mut world = serving(&web());
    let mut other = changed(web(), |s| s["metadata"]["uid"] = json!("u2"));
    other["metadata"]["name"] = json!("aaa");
    world.service(&other);
    world.record_with("203.0.113.1", &[("web", "u1"), ("aaa", "u2")], json!({"shareKey": "k"}));
    for service in [&web(), &other] {
        world.service(&changed(service.clone(), |s| {
            s["metadata"]["annotations"]["penstock.dev/share-key"] = json!("k");
        }));
    }
    let translation = world.translate();
    let (reason, message) = refusal(&translation.plans[&ServiceKey::new("default", "aaa")]);
    assert_eq!(reason, "PortConflict");
    assert!(message.contains("default/web") && message.contains("80/TCP"), "{message}");
    assert_eq!(world.plan().stage, Stage::Programmed);
    assert_eq!(translation.desired.services.len(), 1);
}

#[test]
fn modes_reach_the_snapshot() {
    let services = serving(&annotated("penstock.dev/mode", "dnat")).translate().desired.services.clone();
    assert_eq!(services[0].mode, Mode::Dnat);
    let services = serving(&annotated("penstock.dev/idle-timeout", "15m")).translate().desired.services.clone();
    assert_eq!(services[0].timeouts.as_ref().unwrap().udp, Some(900));
}

#[test]
fn what_becomes_of_connections_is_the_services_own_word() {
    let mut service = annotated("penstock.dev/on-down", "reset");
    for (key, value) in [("on-idle", "reset"), ("no-backend", "drop"), ("slow-start", "2m"), ("panic-threshold", "30%")]
    {
        service["metadata"]["annotations"][format!("penstock.dev/{key}")] = json!(value);
    }
    for (number, protocol) in [(53, "UDP"), (38412, "SCTP")] {
        service["spec"]["ports"].as_array_mut().unwrap().push(
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": number, "nodePort": 30_000 + number % 1000}),
        );
    }
    let services = serving(&service).translate().desired.services.clone();
    let [tcp, udp, sctp] = &services[..] else { panic!("{services:?}") };
    for service in &services {
        assert_eq!(
            (service.no_backend, service.slow_start, service.panic_threshold),
            (NoBackend::Drop, Some(120), Some(30))
        );
    }
    // What has no connections, or cannot be reset, is not asked to.
    assert_eq!((tcp.on_down, tcp.on_idle), (OnDown::Reset, OnIdle::Reset));
    assert_eq!((udp.on_down, udp.on_idle), (OnDown::Keep, OnIdle::Forget));
    assert_eq!((sctp.on_down, sctp.on_idle), (OnDown::Reset, OnIdle::Forget));
    let snapshot = Desired {
        generation: 1,
        services,
        sets: serving(&service).translate().desired.sets.clone(),
        ..Desired::default()
    };
    let nodes = serving(&service).translate().desired.nodes.clone();
    let faults = penstock_configs::validate::desired(&Desired { nodes, ..snapshot }, "kubernetes", &Default::default());
    // But for what the box lacks that nobody described.
    assert!(faults.iter().all(|fault| fault.problem.contains("SNAT address")), "{faults:?}");
}

#[test]
fn what_a_service_cannot_have_is_refused_by_name() {
    let datagrams =
        |key: &str, value: &str| changed(annotated(key, value), |s| s["spec"]["ports"][0]["protocol"] = json!("UDP"));
    let unweighted = changed(annotated("penstock.dev/slow-start", "30"), |s| {
        s["metadata"]["annotations"]["penstock.dev/scheduler"] = json!("rr");
    });
    for (service, part) in [
        (annotated("penstock.dev/on-down", "explode"), "expected one of `keep`, `reset`, `rehome`"),
        (annotated("penstock.dev/on-idle", ""), "unknown variant"),
        (annotated("penstock.dev/no-backend", "cry"), "expected `reject` or `drop`"),
        (annotated("penstock.dev/slow-start", "2h"), "at most 3600 seconds"),
        (annotated("penstock.dev/panic-threshold", "101"), "no percentage"),
        (annotated("penstock.dev/scheduler", "best"), "unknown variant `best`"),
        (datagrams("penstock.dev/on-down", "rehome"), "UDP ports only"),
        (datagrams("penstock.dev/on-idle", "reset"), "no TCP port"),
        (unweighted, "has no effect with the scheduler rr"),
    ] {
        let (reason, message) = refusal(&serving(&service).plan());
        assert!(message.contains(part) && message.contains("penstock.dev/"), "{reason}: {message}");
    }
}
