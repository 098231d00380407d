//! Services: types, ports, protocols, source ranges, families.

use std::net::{IpAddr, SocketAddr};

use penstock_perf::{kubelab, privilege};
use serde_json::{Value, json};

use crate::{TCP, UDP, answers, cluster, everywhere, nodes_of, soon, tries};

/// "should be able to change the type and ports of a TCP service", and of a UDP service: both at once, on one port
/// number; with the finalizer, and what has no node ports.
#[test]
fn privileged_tcp_and_udp_services_change_type_and_ports() {
    if !privilege::require("privileged_tcp_and_udp_services_change_type_and_ports") {
        return;
    }
    let cluster = cluster();
    cluster.pods("dns", &everywhere("dns")).unwrap();
    cluster
        .expose("dns", &[(53, TCP), (53, UDP)], |s| {
            s["spec"]["type"] = json!("NodePort");
            s["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
        })
        .unwrap();
    cluster
        .edit("dns", |s| {
            s["spec"]["type"] = json!("LoadBalancer");
            s["spec"]["loadBalancerClass"] = json!(kubelab::CLASS);
        })
        .unwrap();
    let vip = cluster.address("dns").unwrap();
    let both = |port: u16| {
        let tally = answers(&cluster, SocketAddr::new(vip, port), 60);
        assert_eq!(nodes_of(&tally).len(), 3, "{tally:?}");
        let tally = cluster.udp(SocketAddr::new(vip, port), 30);
        assert_eq!((tally.answered(), tally.failed()), (60, 0), "{tally:?}");
    };
    both(53);

    let of = |number: &str| {
        cluster.service("dns").unwrap()["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p[number].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let before = of("nodePort");
    cluster.edit("dns", |s| (0..2).for_each(|i| s["spec"]["ports"][i]["nodePort"] = json!(31_999))).unwrap();
    assert_ne!(of("nodePort"), before);
    soon(&cluster, "the new node port", || tries(cluster.client(), SocketAddr::new(vip, 53)));
    both(53);

    cluster.edit("dns", |s| (0..2).for_each(|i| s["spec"]["ports"][i]["port"] = json!(5353))).unwrap();
    soon(&cluster, "the new port", || tries(cluster.client(), SocketAddr::new(vip, 5353)));
    both(5353);
    assert!(!tries(cluster.client(), SocketAddr::new(vip, 53)), "the old port");
    assert_eq!(cluster.ingress("dns"), [vip]);

    let finalizers = || cluster.service("dns").unwrap_or_default()["metadata"]["finalizers"].clone();
    assert_eq!(finalizers(), json!(["service.kubernetes.io/load-balancer-cleanup"]));
    cluster
        .edit("dns", |s| {
            s["spec"]["type"] = json!("ClusterIP");
            for port in s["spec"]["ports"].as_array_mut().unwrap() {
                port.as_object_mut().unwrap().remove("nodePort");
            }
        })
        .unwrap();
    soon(&cluster, "the load balancer goes", || finalizers().is_null() && cluster.ingress("dns").is_empty());
    assert!(!tries(cluster.client(), SocketAddr::new(vip, 5353)), "the address is nobody's");

    cluster.expose("bare", &[(80, TCP)], |s| s["spec"]["allocateLoadBalancerNodePorts"] = json!(false)).unwrap();
    soon(&cluster, "the refusal", || cluster.events("bare").iter().any(|e| e.contains("node port")));
    assert_eq!(cluster.condition("bare", "Serving").unwrap().0, "False");
    assert!(cluster.penstock(&["why", "default/bare"]).unwrap().contains("is refused"));

    cluster.delete("bare").unwrap();
    cluster.finish().unwrap();
}

/// "should have session from allowed sources only", both families, and what an exposed NodePort Service shows.
#[test]
fn privileged_source_ranges_dual_stack_and_exposed_services() {
    if !privilege::require("privileged_source_ranges_dual_stack_and_exposed_services") {
        return;
    }
    let cluster = cluster();
    cluster.pods("web", &everywhere("web")).unwrap();
    let clients = &cluster.lab.clients;
    let only =
        |index: usize| json!([format!("{}/32", clients[index].addr.v4), format!("{}/128", clients[index].addr.v6)]);
    cluster
        .expose("web", &[(80, TCP)], |s| {
            s["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
            s["spec"]["loadBalancerSourceRanges"] = only(0);
        })
        .unwrap();
    cluster.address("web").unwrap();
    let vips = cluster.ingress("web");
    assert_eq!(vips.iter().map(IpAddr::is_ipv6).collect::<Vec<_>>(), [false, true]);
    for (allowed, refused) in [(0, 1), (1, 0)] {
        cluster.edit("web", |s| s["spec"]["loadBalancerSourceRanges"] = only(allowed)).unwrap();
        for vip in &vips {
            let target = SocketAddr::new(*vip, 80);
            soon(&cluster, "who is allowed", || tries(&clients[allowed].ns, target));
            assert!(!tries(&clients[refused].ns, target), "client{refused} at {target}");
        }
    }
    cluster.edit("web", |s| s["spec"]["loadBalancerSourceRanges"] = Value::Null).unwrap();
    for vip in &vips {
        soon(&cluster, "everybody", || tries(&clients[0].ns, SocketAddr::new(*vip, 80)));
        answers(&cluster, SocketAddr::new(*vip, 80), 30);
    }

    cluster.pods("old", &everywhere("old")).unwrap();
    cluster
        .expose("old", &[(80, TCP)], |s| {
            s["spec"]["type"] = json!("NodePort");
            s["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
            s["metadata"]["annotations"] = json!({"penstock.dev/expose": "true"});
        })
        .unwrap();
    let annotation =
        || cluster.service("old").unwrap()["metadata"]["annotations"]["penstock.dev/vip"].as_str().map(str::to_owned);
    soon(&cluster, "the annotation", || annotation().is_some());
    let vip = annotation().unwrap();
    answers(&cluster, format!("{vip}:80").parse().unwrap(), 30);
    let listed = cluster.penstock(&["why"]).unwrap();
    let line = listed.lines().find(|line| line.starts_with("default/old")).expect("a line");
    assert!(line.contains("exposed") && line.contains(&vip), "{listed}");
    assert!(cluster.penstock(&["why", "old"]).unwrap().contains("default/old is served in mode nat."));
    cluster.finish().unwrap();
}
