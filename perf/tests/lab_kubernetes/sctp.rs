//! An SCTP Service: from the API server to an association through the box.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use penstock_configs::desired::Protocol;
use penstock_dataplane::wire::sctp::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK};
use penstock_perf::lab::plan;
use penstock_perf::privilege;

use crate::raw_sctp::{CLIENT_TAG, NODE_TAG, PORT, ask, chunk, init, open, serve};
use crate::{TCP, answers, cluster, everywhere};

/// SCTP beside TCP on one port number: an address, `Serving`, and an association of the client with one node.
#[test]
fn privileged_an_sctp_service_carries_an_association() {
    if !privilege::require("privileged_an_sctp_service_carries_an_association") {
        return;
    }
    let cluster = cluster();
    cluster.pods("signal", &everywhere("signal")).unwrap();
    cluster.expose("signal", &[(PORT, "SCTP"), (PORT, TCP)], |_| {}).unwrap();
    let vip = cluster.address("signal").unwrap();
    cluster.nodes_follow().unwrap();
    let service = cluster.service("signal").unwrap();
    let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap();
    assert_eq!(service["spec"]["ports"][0]["protocol"], "SCTP");
    let programmed = cluster.dataplane.status().unwrap().services;
    assert!(programmed.iter().any(|s| s.name.starts_with("default/signal:") && s.protocol == Protocol::Sctp));

    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let pods: Vec<_> = cluster
            .lab
            .nodes
            .iter()
            .map(|node| scope.spawn(|| node.ns.run(|| serve(false, node_port, &stop))))
            .collect();
        cluster.client().run(|| {
            let socket = open(false);
            socket.connect(SocketAddr::new(vip, 0)).unwrap();
            ask(&socket, false, 0, &init(INIT, CLIENT_TAG), &[INIT_ACK]);
            ask(&socket, false, NODE_TAG, &chunk(COOKIE_ECHO, b"cookie"), &[COOKIE_ACK]);
            for len in [1, 500, 1400] {
                let data = chunk(DATA, &vec![0x5a; 12 + len]);
                assert_eq!(ask(&socket, false, NODE_TAG, &data, &data).len(), data.len());
            }
        });
        stop.store(true, Ordering::Relaxed);
        pods.into_iter().map(|pod| pod.join().unwrap()).collect::<Vec<_>>()
    });
    let answered: Vec<_> = seen.into_iter().filter(|packets| !packets.is_empty()).collect();
    assert_eq!(answered.len(), 1, "one association is of one node: {answered:?}");
    assert!(answered[0].len() >= 5 && answered[0].iter().all(|from| *from == plan::snat().ip(false)), "{answered:?}");
    let flows = cluster.dataplane.flows().unwrap();
    let flow = flows.iter().find(|flow| flow.protocol == Protocol::Sctp).expect("a flow");
    assert_eq!((flow.state.as_str(), flow.vip), ("sctp_established", SocketAddr::new(vip, PORT)));
    answers(&cluster, SocketAddr::new(vip, PORT), 30);
    cluster.finish().unwrap();
}
