//! Two boxes of one cluster: two dataplanes, two controls, one Lease.

use std::net::SocketAddr;

use penstock_configs::desired::{Announce, Desired};
use penstock_control::client::ClientError;
use penstock_control::client::Dataplane as Api;
use penstock_perf::clients::run_here;
use penstock_perf::kubelab::Cluster;
use penstock_perf::lab::{Lab, Topology};
use penstock_perf::privilege;
use serde_json::Value;

use crate::{TCP, answers, everywhere, soon, tries};

const OWNER: &str = "kubernetes";

fn desired(api: &Api) -> Desired {
    run_here(api.desired(OWNER)).unwrap().unwrap_or_default()
}

/// The Services of a snapshot, and whether its box answers for their addresses.
fn programmed(api: &Api) -> Vec<(String, bool)> {
    let services = desired(api).services.into_iter();
    services
        .map(|s| (s.name.split(':').next().unwrap_or_default().to_owned(), s.announce == Some(Announce::L2)))
        .collect()
}

fn holder(cluster: &Cluster) -> String {
    let lease = cluster.server.get("coordination.k8s.io/v1", "Lease", "penstock-system/penstock").unwrap_or_default();
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

/// Both serve all, one allocates and writes; it is killed, the other takes over, and no address moves.
#[test]
fn privileged_two_boxes_serve_all_and_one_leads() {
    if !privilege::require("privileged_two_boxes_serve_all_and_one_leads") {
        return;
    }
    let lab = Lab::builder().topology(Topology::OneArm).clients(2);
    let mut cluster = Cluster::start(lab, "").expect("a cluster in the lab");
    cluster.pods("web", &everywhere("web")).unwrap();
    cluster.expose("web", &[(80, TCP)], |_| {}).unwrap();
    let web = SocketAddr::new(cluster.address("web").unwrap(), 80);
    soon(&cluster, "the first box leads", || holder(&cluster) == "lab");

    // The second box is a node of the cluster, and leaves itself out.
    let second = cluster.another_box(&cluster.lab.clients[1], "other", "own_node = \"node2\"").expect("a second box");
    let (first_api, other_api) = (cluster.dataplane.api().clone(), second.dataplane.api().clone());
    soon(&cluster, "both serve, one answers for the address", || {
        programmed(&first_api) == [("default/web".to_owned(), true)]
            && programmed(&other_api) == [("default/web".to_owned(), false)]
    });
    let members = |api: &Api| -> Vec<String> {
        let snapshot = desired(api);
        snapshot.sets[0].backends.iter().filter_map(|backend| backend.node.clone()).collect()
    };
    assert_eq!(members(&first_api), ["node0", "node1", "node2"]);
    assert_eq!(members(&other_api), ["node0", "node1"], "the box that is node2");
    let why = second.penstock(&["why", "web"]).unwrap();
    assert!(why.lines().any(|line| line.starts_with("node2") && line.contains("the box itself")), "{why}");
    soon(&cluster, "each says what it runs", || {
        let boxes = cluster.server.list("penstock.dev/v1alpha1", "VipBox");
        let runs = |b: &Value| b["status"]["acknowledged"].as_u64() > Some(0) && b["status"]["services"] == 1;
        boxes.len() == 2 && boxes.iter().all(runs)
    });
    answers(&cluster, web, 40);

    let term = desired(&first_api).term.unwrap();
    cluster.control.kill().unwrap();
    cluster.pods("late", &everywhere("late")).unwrap();
    cluster.expose("late", &[(80, TCP)], |_| {}).unwrap();
    let late = SocketAddr::new(cluster.address("late").unwrap(), 80);
    assert_eq!(holder(&cluster), "other");
    assert_eq!(cluster.ingress("web"), [web.ip()], "no address moves");
    soon(&cluster, "it answers for both", || {
        programmed(&other_api) == [("default/late".to_owned(), true), ("default/web".to_owned(), true)]
    });
    // The first box has no control and serves what it had; the second has everything.
    soon(&cluster, "the new Service answers", || tries(cluster.client(), late));
    answers(&cluster, late, 30);
    answers(&cluster, web, 30);

    // Whoever still believes to lead in the old term is refused, and nothing changes.
    let held = desired(&other_api);
    assert!(held.term.unwrap() > term);
    let stale = Desired { generation: held.generation + 100, term: Some(term), ..Desired::default() };
    match run_here(other_api.put_desired(OWNER, &stale, None)) {
        Err(ClientError::Refused { refused, .. }) => {
            assert!(refused.error.contains(&format!("term {term}")), "{}", refused.error);
        }
        answer => panic!("a stale leader was not refused: {answer:?}"),
    }
    assert_eq!(desired(&other_api), held);

    // Back, the first one follows.
    cluster.control.start_again().unwrap();
    soon(&cluster, "both serve all, the second answers for it", || {
        programmed(&first_api) == [("default/late".to_owned(), false), ("default/web".to_owned(), false)]
    });
    assert_eq!(holder(&cluster), "other");
    assert_eq!((cluster.ingress("web"), cluster.ingress("late")), (vec![web.ip()], vec![late.ip()]));
    answers(&cluster, web, 30);
    second.finish().unwrap();
    cluster.finish().unwrap();
}
