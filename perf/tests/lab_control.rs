//! `penstock-control` without a cluster: the services of the dataplane's own file are checked all the same.

use std::time::{Duration, Instant};

use penstock_configs::desired::BackendState;
use penstock_configs::status::BackendStatus;
use penstock_perf::clients::http::Volley;
use penstock_perf::config::NODE_PORT;
use penstock_perf::kubelab::Control;
use penstock_perf::lab::Lab;
use penstock_perf::privilege;
use penstock_perf::rig::{Rig, workers_follow};
use penstock_perf::servers::{NodePorts, NodeServer};

const PATIENCE: Duration = Duration::from_secs(20);

fn until(rig: &Rig, control: &Control, what: &str, wanted: impl Fn(&BackendStatus) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = rig.dataplane.status().expect("a status");
        let web = status.services.into_iter().find(|service| service.name == "web").expect("the service");
        let node1 = web.backends.into_iter().find(|backend| backend.name == "node1").expect("its second node");
        if wanted(&node1) {
            return workers_follow(&rig.dataplane).expect("every worker runs it");
        }
        assert!(Instant::now() < deadline, "{what}: {node1:?}\n{}", control.log_tail());
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn privileged_services_of_the_file_are_checked_without_a_cluster() {
    if !privilege::require("privileged_services_of_the_file_are_checked_without_a_cluster") {
        return;
    }
    let mut rig = Rig::start(Lab::builder(), |_| {}).expect("a lab with a dataplane");
    let mut control = Control::without_cluster(&rig.lab, rig.dataplane.socket()).expect("control");
    let volley = |rig: &Rig| {
        let tally = Volley::new(rig.vip(false), 90).run(rig.client(), |_| {});
        assert_eq!((tally.answered(), tally.failed()), (90, 0), "{tally:?}");
        tally.by_node.len()
    };
    assert_eq!(volley(&rig), 3);
    drop(rig.servers.remove(1));
    until(&rig, &control, "found down, and why", |b| b.state == BackendState::Down && b.reason.contains("refused"));
    assert_eq!(volley(&rig), 2);
    // The last verdict holds while nobody checks.
    control.kill().expect("killed");
    assert_eq!(volley(&rig), 2);
    // Nor has the next one judged anything when it starts.
    control.start_again().expect("started");
    for _ in 0..3 {
        assert_eq!(volley(&rig), 2);
    }
    rig.servers.push(NodeServer::start(&rig.lab.nodes[1], &NodePorts::both([NODE_PORT])).expect("a server"));
    until(&rig, &control, "up again", |b| b.state == BackendState::Active && b.reachable);
    assert_eq!(volley(&rig), 3);
    control.stop().expect("a clean end");
    rig.settle().expect("a balanced ledger");
    rig.stop().expect("a clean end");
}
