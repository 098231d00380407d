//! `sessionAffinity: ClientIP`, and the limits an annotation asks for.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_perf::clients::Tally;
use penstock_perf::clients::http::Volley;
use penstock_perf::privilege;
use serde_json::json;

use crate::{TCP, UDP, answers, cluster, everywhere, nodes_of, soon, tries};

fn clientip(service: &mut serde_json::Value) {
    service["spec"]["sessionAffinity"] = json!("ClientIP");
    service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
}

/// "should have session affinity work for LoadBalancer service with ESIPP on / off" and "should be able to switch
/// session affinity for LoadBalancer service with ESIPP on / off": one node over all ports and protocols.
#[test]
fn privileged_clients_stick_and_the_switch_is_live() {
    if !privilege::require("privileged_clients_stick_and_the_switch_is_live") {
        return;
    }
    let cluster = cluster();
    for (name, policy) in [("cluster", "Cluster"), ("local", "Local")] {
        cluster.pods(name, &everywhere(name)).unwrap();
        cluster
            .expose(name, &[(80, TCP), (80, UDP), (8080, TCP)], |s| {
                s["spec"]["externalTrafficPolicy"] = json!(policy);
                clientip(s);
            })
            .unwrap();
        let vip = cluster.address(name).unwrap();
        let at = |port| SocketAddr::new(vip, port);
        let nodes = |tally: &Tally| nodes_of(tally).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
        let sticks = || {
            let mut seen = nodes(&answers(&cluster, at(80), 40));
            seen.extend(nodes(&answers(&cluster, at(8080), 40)));
            let datagrams = cluster.udp(at(80), 20);
            assert_eq!((datagrams.answered(), datagrams.failed()), (40, 0), "{datagrams:?}");
            seen.extend(nodes(&datagrams));
            assert_eq!(seen.len(), 1, "{policy}: {seen:?}");
            seen
        };
        let first = sticks();

        cluster
            .edit(name, |s| {
                s["spec"]["sessionAffinity"] = json!("None");
                s["spec"]["sessionAffinityConfig"] = json!(null);
            })
            .unwrap();
        soon(&cluster, "all nodes again", || nodes(&answers(&cluster, at(80), 40)).len() == 3);
        cluster.edit(name, clientip).unwrap();
        soon(&cluster, "one node again", || nodes(&answers(&cluster, at(80), 40)).len() == 1);
        sticks();

        if policy == "Local" {
            // Its node has no pod any more: another one, and that one from then on.
            let gone = first.first().unwrap();
            let left: Vec<_> = everywhere(name).into_iter().filter(|pod| pod.node != *gone).collect();
            cluster.pods(name, &left).unwrap();
            soon(&cluster, "a node that has a pod", || !nodes(&cluster.volley(at(80), 5)).contains(gone));
            assert!(!sticks().contains(gone));
        }
    }
    cluster.finish().unwrap();
}

/// A limit of connections to a source, as an annotation asks for it, and none once it is gone.
#[test]
fn privileged_a_source_is_limited_by_annotation() {
    if !privilege::require("privileged_a_source_is_limited_by_annotation") {
        return;
    }
    let cluster = cluster();
    cluster.pods("web", &everywhere("web")).unwrap();
    cluster
        .expose("web", &[(80, TCP)], |s| {
            s["metadata"]["annotations"] = json!({"penstock.dev/limit-rate": "source=5"});
        })
        .unwrap();
    let target = SocketAddr::new(cluster.address("web").unwrap(), 80);
    let [greedy, modest] = [0, 1].map(|client: usize| &cluster.lab.clients[client].ns);
    let (began, mut through) = (Instant::now(), 0);
    soon(&cluster, "one too many", || {
        let volley = Volley { timeout: Duration::from_millis(700), ..Volley::new(target, 20) };
        through += volley.run(greedy, |_| {}).answered();
        cluster.dataplane.counters().unwrap().total.drops.get("source_rate") > Some(&0)
    });
    // Five a second, and as many at once after a pause.
    let most = 5.0 * (began.elapsed().as_secs_f64() + 2.0);
    assert!(through as f64 <= most, "{through} of {most:.0} at most");
    assert_eq!(Volley::new(target, 3).run(modest, |_| {}).answered(), 3, "another source has its own");

    cluster.edit("web", |s| s["metadata"]["annotations"] = json!({})).unwrap();
    soon(&cluster, "no limit", || (0..10).all(|_| tries(greedy, target)));
    cluster.finish().unwrap();
}
