//! An SCTP association through the box between real kernels, which route, fragment and reassemble; the
//! two ends are this test's, on raw sockets: this kernel has no SCTP of its own.

mod raw_sctp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use penstock_configs::desired::{Protocol, ServiceTimeouts};
use penstock_dataplane::wire::sctp::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK};
use penstock_perf::config;
use penstock_perf::lab::{Lab, plan};
use penstock_perf::privilege;
use penstock_perf::rig::Rig;

use raw_sctp::{CLIENT_TAG, NODE_TAG, PORT, ask, chunk, init, open, serve};

#[test]
fn privileged_an_association_of_two_stacks_on_raw_sockets() {
    if !privilege::require("privileged_an_association_of_two_stacks_on_raw_sockets") {
        return;
    }
    let rig = Rig::start(Lab::builder(), |config| {
        config.sets[0].backends.truncate(1);
        for v6 in [false, true] {
            let name = if v6 { "signal6" } else { "signal" };
            let mut service = config::service(name, plan::vip(0).ip(v6), PORT, Protocol::Sctp);
            service.timeouts = Some(ServiceTimeouts { sctp_established: Some(600), ..ServiceTimeouts::default() });
            config.services.push(service);
        }
    })
    .expect("a lab with a dataplane");
    let stop = AtomicBool::new(false);
    let node = &rig.lab.nodes[0].ns;
    std::thread::scope(|scope| {
        let servers = [false, true].map(|v6| {
            let stop = &stop;
            (v6, scope.spawn(move || node.run(|| serve(v6, config::NODE_PORT, stop))))
        });
        for v6 in [false, true] {
            rig.client().run(|| {
                let socket = open(v6);
                socket.connect(SocketAddr::new(plan::vip(0).ip(v6), 0)).expect("a route");
                // Its second half is the other end's to answer: INIT, cookie, data, and data in fragments.
                ask(&socket, v6, 0, &init(INIT, CLIENT_TAG), &[INIT_ACK]);
                ask(&socket, v6, NODE_TAG, &chunk(COOKIE_ECHO, b"cookie"), &[COOKIE_ACK]);
                for len in [1, 500, 1400, 3000, 8000] {
                    let data = chunk(DATA, &vec![0x5a; 12 + len]);
                    assert_eq!(ask(&socket, v6, NODE_TAG, &data, &data).len(), data.len());
                }
            });
            let flows = rig.dataplane.flows().expect("flows");
            let flow = flows.iter().find(|flow| flow.protocol == Protocol::Sctp && flow.client.is_ipv6() == v6);
            assert_eq!(flow.expect("a flow").state, "sctp_established");
            rig.client().run(|| {
                let socket = open(v6);
                socket.connect(SocketAddr::new(plan::vip(0).ip(v6), 0)).expect("a route");
                ask(&socket, v6, NODE_TAG, &chunk(SHUTDOWN, &[0; 4]), &[SHUTDOWN_ACK]);
            });
        }
        stop.store(true, Ordering::Relaxed);
        for (v6, server) in servers {
            let seen = server.join().expect("the server ends");
            assert!(seen.len() >= 8 && seen.iter().all(|from| *from == plan::snat().ip(v6)), "{seen:?}");
        }
    });
    let states: Vec<String> = rig.dataplane.flows().expect("flows").into_iter().map(|flow| flow.state).collect();
    assert!(states.iter().filter(|state| *state == "sctp_shutdown").count() == 2, "{states:?}");
    rig.settle_without_drops_except(&["neighbor_ignored"]).expect("nothing was dropped");
}
