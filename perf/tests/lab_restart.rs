//! The dataplane dies and comes back; the connections do not notice more than a pause.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

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

/// A driver loaded anew, a veth made again: the device comes back under its name, the sockets do not. The process ends by
/// itself, for systemd to start it again, and the next one serves the same flows. A device that is only gone ends nothing,
/// and nothing ends while the next one would refuse the file.
#[test]
fn privileged_a_device_made_anew_ends_the_process_and_the_next_serves_on_it() {
    if !privilege::require("privileged_a_device_made_anew_ends_the_process_and_the_next_serves_on_it") {
        return;
    }
    let mut rig = Rig::start(Lab::builder(), |_| {}).expect("a lab with a dataplane");
    let hold = Hold::open(rig.client(), rig.vip(false), 20).expect("connections");
    let (the_box, client) = (rig.lab.the_box.clone(), rig.lab.clients[0].clone());
    let [port, _] = rig.lab.box_interfaces()[..] else { panic!("two arms") };
    let addresses = the_box.sh(&format!("ip -o -4 address show dev {port}")).expect("addresses");
    let gateway = addresses.split_whitespace().nth(3).expect("an address").to_owned();
    let link = client.ns.sh("ip -o link show dev eth0").expect("a link");
    let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a MAC").to_owned();

    the_box.sh(&format!("ip link delete {port}")).expect("deleted");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let notices = rig.dataplane.status().expect("it goes on without").notices;
        if notices.iter().any(|notice| notice.contains("no packet is steered")) {
            break;
        }
        assert!(Instant::now() < deadline, "{notices:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let config = rig.dataplane.config_path().to_owned();
    let good = std::fs::read_to_string(&config).expect("the file");
    std::fs::write(&config, format!("{good}\nmistake = 1\n")).expect("written");
    let queues = "numrxqueues 4 numtxqueues 4";
    let made = format!(
        "ip link add {port} {queues} type veth peer name eth0 address {mac} netns {} {queues}",
        client.ns.name()
    );
    the_box.sh(&made).expect("made anew");
    the_box.sh(&format!("ip address add {gateway} dev {port}")).expect("an address");
    the_box.sh(&format!("ip link set {port} up")).expect("up");
    client.ns.sh("ethtool -K eth0 tx off").expect("no checksums left to a NIC");
    client.ns.sh(&format!("ip address add {}/24 dev eth0", client.addr.v4)).expect("an address");
    client.ns.sh("ip link set eth0 up").expect("up");
    let via = gateway.split('/').next().expect("an address");
    client.ns.sh(&format!("ip route add default via {via}")).expect("a route");

    let anew = format!("{port}: the device was made anew");
    loop {
        let notices = rig.dataplane.status().expect("it goes on: the next one would not start").notices;
        if notices.iter().any(|notice| notice.starts_with(&anew) && notice.contains("mistake")) {
            break;
        }
        assert!(Instant::now() < deadline, "{notices:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::write(&config, good).expect("mended");
    assert_eq!(rig.dataplane.ended().expect("it ends by itself").code(), Some(1));
    assert!(rig.dataplane.log_tail().contains(&format!("{anew}, and the sockets went with the old one: ending")));
    rig.dataplane.start_again().expect("a second start");
    for (held, first) in hold.ask_all(Duration::from_secs(15)).expect("answers").iter().zip(&hold.first) {
        assert_eq!(held.outcome, first.outcome, "{}", held.local);
    }
}
