//! The dataplane dies and comes back; the connections do not notice more than a pause.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use penstock_configs::status::FlowStatus;
use penstock_perf::clients::hold::Hold;
use penstock_perf::clients::http::Volley;
use penstock_perf::clients::sessions::Plan;
use penstock_perf::lab::Lab;
use penstock_perf::privilege;
use penstock_perf::rig::{Rig, meanwhile};

const DEAD_FOR: Duration = Duration::from_secs(3);

/// SNAT address and port towards a backend, by client.
fn snat_of(flows: &[FlowStatus]) -> HashMap<SocketAddr, (Option<SocketAddr>, SocketAddr)> {
    flows.iter().map(|flow| (flow.client, (flow.snat, flow.backend))).collect()
}

/// 200 connections (idle, bulk both ways, node-pushing) over a kill -9 and three seconds without a
/// process. Connections begun meanwhile wait for the box and then succeed.
#[test]
fn privileged_kill_9_breaks_no_connection() {
    if !privilege::require("privileged_kill_9_breaks_no_connection") {
        return;
    }
    let mut rig = Rig::start(Lab::builder(), |_| {}).expect("a lab with a dataplane");
    let lasting = Plan::new(rig.vip(false), 50, Duration::from_secs(6));
    let sessions = lasting.start(rig.client()).expect("sessions");
    std::thread::sleep(Duration::from_millis(500));
    let before = snat_of(&rig.dataplane.flows().expect("flows"));
    assert!(sessions.locals.iter().all(|local| before.contains_key(local)), "every session has a flow");

    rig.dataplane.kill().expect("a process to kill");
    let (client, target) = (rig.client().clone(), rig.vip(false));
    let patient = Volley { timeout: Duration::from_secs(30), ..Volley::new(target, 10) };
    let (meantime, ()) = meanwhile(
        || patient.run(&client, |_| {}),
        || {
            std::thread::sleep(DEAD_FOR);
            rig.dataplane.start_again()
        },
    )
    .expect("a second start");
    assert_eq!((meantime.answered(), meantime.failed()), (10, 0), "begun while it was dead: {meantime:?}");

    let hold = Hold::open(rig.client(), rig.vip(false), 300).expect("new connections");
    let after = snat_of(&rig.dataplane.flows().expect("flows"));
    for local in &sessions.locals {
        if let Some(now) = after.get(local) {
            assert_eq!(now, &before[local], "{local} got another port or backend");
        }
    }
    for held in &hold.first {
        let tuple = &after[&held.local];
        let owner = before.iter().find(|(client, before)| sessions.locals.contains(client) && *before == tuple);
        assert!(owner.is_none(), "{tuple:?} of {owner:?} was issued again to {}", held.local);
    }

    let report = sessions.finish().expect("a report");
    assert_eq!(report.completed(), 200, "{:?}", report.failures);
    assert_eq!(rig.resets_sent().expect("counters"), 0);
    drop(hold);
    rig.finish().expect("a clean end");
}

/// A clean stop and start is an upgrade: flows survive it as well.
#[test]
fn privileged_a_clean_restart_keeps_flows() {
    if !privilege::require("privileged_a_clean_restart_keeps_flows") {
        return;
    }
    let mut rig = Rig::start(Lab::builder(), |_| {}).expect("a lab with a dataplane");
    let hold = Hold::open(rig.client(), rig.vip(true), 50).expect("connections");
    rig.stop().expect("a clean stop");
    rig.dataplane.start_again().expect("a second start");
    for (held, first) in hold.ask_all(Duration::from_secs(15)).expect("answers").iter().zip(&hold.first) {
        assert_eq!(held.outcome, first.outcome, "{}", held.local);
    }
    drop(hold);
    rig.finish().expect("a clean end");
}
