//! The whole box: kernel TCP and UDP stacks on both sides, AF_XDP workers between them. Every test
//! ends with a balanced ledger and no RST sent by anybody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_configs::desired::Protocol;
use penstock_configs::file::ConfigFile;
use penstock_perf::clients::hold::Hold;
use penstock_perf::clients::http::{self, Volley};
use penstock_perf::clients::icmp;
use penstock_perf::clients::sessions::Plan;
use penstock_perf::clients::udp::UdpVolley;
use penstock_perf::config;
use penstock_perf::lab::{DualAddr, Host, Lab, LabBuilder, Tags, Topology, plan};
use penstock_perf::privilege;
use penstock_perf::rig::{Rig, meanwhile};
use penstock_perf::servers::{NodePorts, NodeServer};

/// What may be dropped in a healthy lab: other hosts' ARP and neighbour discovery.
const HARMLESS: &[&str] = &["neighbor_ignored"];
const PATIENCE: Duration = Duration::from_secs(60);

fn rig(builder: LabBuilder) -> Rig {
    Rig::start(builder, |_| {}).expect("a lab with a dataplane")
}

/// TCP and UDP through the VIP, of one family; all three nodes get some.
fn traffic(rig: &Rig, v6: bool, connections: u64) {
    let tally = Volley::new(rig.vip(v6), connections).run(rig.client(), |_| {});
    assert_eq!((tally.answered(), tally.failed()), (connections, 0), "{tally:?}\n{}", rig.dataplane.log_tail());
    assert_eq!(tally.by_node.len(), rig.lab.nodes.len(), "{tally:?}");
    let tally = UdpVolley::new(rig.vip(v6), connections / 2).run(rig.client(), |_| {});
    assert_eq!((tally.answered(), tally.failed()), (connections / 2 * 2, 0), "{tally:?}");
}

#[test]
fn privileged_two_arm_tcp_udp_icmp() {
    if !privilege::require("privileged_two_arm_tcp_udp_icmp") {
        return;
    }
    let rig = rig(Lab::builder().clients(2));
    for v6 in [false, true] {
        traffic(&rig, v6, 600);
        for size in [0, 56, 1400] {
            icmp::ping(rig.client(), rig.vip(v6).ip(), 3, size).expect("an echo reply");
        }
    }
    let seen = http::get_text(rig.client(), rig.vip(false), "/").expect("an answer");
    assert!(seen.contains(&plan::snat().v4.to_string()), "{seen}: the node should see the SNAT address");
    rig.settle_without_drops_except(HARMLESS).expect("nothing dropped");
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_100_mb_both_ways_by_hash() {
    if !privilege::require("privileged_100_mb_both_ways_by_hash") {
        return;
    }
    let rig = rig(Lab::builder());
    for v6 in [false, true] {
        http::download(rig.client(), rig.vip(v6), 100_000_000, PATIENCE).expect("a whole download");
        http::upload(rig.client(), rig.vip(v6), 100_000_000, PATIENCE).expect("a whole upload");
    }
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_one_arm() {
    if !privilege::require("privileged_one_arm") {
        return;
    }
    let rig = rig(Lab::builder().topology(Topology::OneArm));
    for v6 in [false, true] {
        traffic(&rig, v6, 300);
        icmp::ping(rig.client(), rig.vip(v6).ip(), 3, 56).expect("an echo reply");
    }
    rig.settle_without_drops_except(HARMLESS).expect("nothing dropped");
    http::download(rig.client(), rig.vip(false), 10_000_000, PATIENCE).expect("a whole download");
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_clients_behind_a_router() {
    if !privilege::require("privileged_clients_behind_a_router") {
        return;
    }
    let rig = rig(Lab::builder().router(true).clients(2));
    for v6 in [false, true] {
        traffic(&rig, v6, 300);
        icmp::ping(rig.client(), rig.vip(v6).ip(), 3, 56).expect("an echo reply");
    }
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_vlan_and_qinq() {
    if !privilege::require("privileged_vlan_and_qinq") {
        return;
    }
    for tags in [Tags::Vlan, Tags::QinQ] {
        // The box keeps a packet's tags, so both segments are of one VLAN.
        let rig = rig(Lab::builder().client_tags(tags).node_tags(tags));
        for v6 in [false, true] {
            traffic(&rig, v6, 200);
            icmp::ping(rig.client(), rig.vip(v6).ip(), 3, 56).expect("an echo reply");
        }
        rig.finish().unwrap_or_else(|error| panic!("{tags:?}: {error:#}"));
    }
}

/// Retransmitted SYNs may change queue (txrehash), return packets land on any: still each flow has one
/// record in one worker's table.
#[test]
fn privileged_four_queues_each_flow_in_one_table() {
    if !privilege::require("privileged_four_queues_each_flow_in_one_table") {
        return;
    }
    const FLOWS: usize = 1000;
    let rig = rig(Lab::builder().queues(4).txrehash(true));
    let hold = Hold::open(rig.client(), rig.vip(false), FLOWS).expect("connections");
    let again = hold.ask_all(PATIENCE).expect("answers");
    let by_local: HashMap<_, _> = hold.first.iter().map(|held| (held.local, &held.outcome)).collect();
    for held in &again {
        assert!(held.outcome.is_ok(), "{held:?}");
        assert_eq!(&held.outcome, by_local[&held.local], "the same node as before");
    }

    let flows = rig.dataplane.flows().expect("flows");
    let mut records: BTreeMap<SocketAddr, Vec<u16>> = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow.vip == rig.vip(false)) {
        records.entry(flow.client).or_default().push(flow.worker);
    }
    for held in &again {
        assert_eq!(records.get(&held.local).map(Vec::len), Some(1), "{}: {:?}", held.local, records.get(&held.local));
    }
    let workers: HashSet<u16> = records.values().flatten().copied().collect();
    assert_eq!(workers.len(), usize::from(config::cores().min(4)), "flows are spread over all workers");
    drop(hold);
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_reloads_under_load_break_nothing() {
    if !privilege::require("privileged_reloads_under_load_break_nothing") {
        return;
    }
    let mut rig = rig(Lab::builder());
    let sessions = Plan::new(rig.vip(false), 10, Duration::from_secs(3)).start(rig.client()).expect("sessions");
    let (client, target) = (rig.client().clone(), rig.vip(false));
    let (tally, ()) = meanwhile(
        || Volley::new(target, 5000).run(&client, |_| {}),
        || {
            for round in 0..10 {
                rig.reconfigure(|config| {
                    let vip = plan::vip(1 + round % 3).v4.into();
                    config.services.retain(|service| service.name != "extra");
                    config.services.push(config::service("extra", vip, 8080, Protocol::Tcp));
                })?;
            }
            Ok(())
        },
    )
    .expect("ten reloads");
    assert_eq!((tally.answered(), tally.failed()), (5000, 0), "{tally:?}");
    let report = sessions.finish().expect("a report");
    assert_eq!(report.completed(), 40, "{:?}", report.failures);
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_a_bad_config_leaves_the_running_one_alone() {
    if !privilege::require("privileged_a_bad_config_leaves_the_running_one_alone") {
        return;
    }
    let mut rig = rig(Lab::builder());
    let refused = rig.reconfigure(|config| config.services[0].set = Some("no-such-set".into()));
    let message = format!("{:#}", refused.expect_err("a refusal"));
    assert!(message.contains("no-such-set"), "{message}");
    traffic(&rig, false, 100);
    let said_of_it = |rig: &Rig| {
        let notices = rig.dataplane.status().expect("a status").notices;
        notices.into_iter().find(|notice| notice.contains("penstock.toml"))
    };
    assert!(said_of_it(&rig).is_some_and(|notice| notice.contains("refused")), "{:?}", said_of_it(&rig));

    // Put back as it was, by an editor that sends no signal: nothing new to serve, nothing left to say.
    rig.config.services[0].set = rig.config.services[1].set.clone();
    std::fs::write(rig.dataplane.config_path(), toml::to_string(&rig.config).unwrap()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Some(notice) = said_of_it(&rig) {
        assert!(Instant::now() < deadline, "{notice}");
        std::thread::sleep(Duration::from_millis(50));
    }
    rig.finish().expect("a clean end");
}

/// Without one of three nodes, the connections of the other two go on, and hardly a slot of theirs moves.
#[test]
fn privileged_backend_removal_hurts_only_its_own_flows() {
    if !privilege::require("privileged_backend_removal_hurts_only_its_own_flows") {
        return;
    }
    let mut rig = rig(Lab::builder());
    let hold = Hold::open(rig.client(), rig.vip(false), 300).expect("connections");
    let remove = |config: &mut ConfigFile| {
        config::without_node(config, "node1");
        config.nodes.retain(|node| node.name != "node1");
    };
    rig.reconfigure(remove).expect("a reload");
    let status = rig.dataplane.status().expect("a status");
    let service = status.services.iter().find(|service| service.name == "web").expect("the web service");
    let (lost, size) = (service.disrupted, service.table_size);
    assert!(lost * 100 < size, "the nodes that stayed lost {lost} of {size} slots");

    let before: HashMap<SocketAddr, String> =
        hold.first.iter().map(|held| (held.local, held.outcome.clone().expect("an answer"))).collect();
    let mut survivors = 0;
    for held in hold.ask_all(Duration::from_secs(10)).expect("answers") {
        let node = &before[&held.local];
        if node != "node1" {
            survivors += 1;
            assert_eq!(held.outcome.as_ref().ok(), Some(node), "{held:?}");
        }
    }
    assert!(survivors > 150, "{survivors} connections on the other nodes");
    let tally = Volley::new(rig.vip(false), 300).run(rig.client(), |_| {});
    assert_eq!((tally.answered(), tally.failed()), (300, 0), "{tally:?}");
    assert!(!tally.by_node.contains_key("node1"), "{tally:?}");
    let notices = rig.dataplane.status().expect("a status").notices;
    assert!(!notices.iter().any(|notice| notice.contains("node ")), "nothing is amiss with a node: {notices:?}");
    drop(hold);
    rig.settle().expect("a balanced ledger");
}

/// The box's own services on the same interfaces belong to its kernel: SSH, BGP, the Kubernetes API.
#[test]
fn privileged_the_boxs_own_address_is_left_to_the_kernel() {
    if !privilege::require("privileged_the_boxs_own_address_is_left_to_the_kernel") {
        return;
    }
    let rig = rig(Lab::builder());
    let own = Topology::TwoArm.client_net().host(plan::BOX_HOST);
    let the_box = Host { name: "box".into(), ns: rig.lab.the_box.clone(), addr: own };
    let _ssh = NodeServer::start(&the_box, &NodePorts::both([22])).expect("a listener in the box");
    let background = Volley::new(rig.vip(false), 1000);
    let (load, ()) = meanwhile(
        || background.run(rig.client(), |_| {}),
        || {
            for v6 in [false, true] {
                own_address_works(&rig, own, v6);
            }
            Ok(())
        },
    )
    .expect("both");
    assert_eq!(load.failed(), 0, "{load:?}");
    rig.finish().expect("a clean end");
}

fn own_address_works(rig: &Rig, own: DualAddr, v6: bool) {
    let target = SocketAddr::new(own.ip(v6), 22);
    let tally = Volley::new(target, 200).run(rig.client(), |_| {});
    assert_eq!(tally.by_node.get("box"), Some(&200), "{tally:?}");
    http::download(rig.client(), target, 1_000_000, PATIENCE).expect("a transfer from the box itself");
    icmp::ping(rig.client(), own.ip(v6), 3, 56).expect("the kernel's echo reply");
}

/// `curl http://VIP/` typed on the box itself.
#[test]
fn privileged_the_box_itself_reaches_its_vips() {
    if !privilege::require("privileged_the_box_itself_reaches_its_vips") {
        return;
    }
    let rig = rig(Lab::builder());
    let volleys = || {
        for v6 in [false, true] {
            let tally = Volley::new(rig.vip(v6), 100).run(&rig.lab.the_box, |_| {});
            assert_eq!((tally.answered(), tally.failed()), (100, 0), "{tally:?}\n{}", rig.dataplane.log_tail());
        }
    };
    volleys();
    // As systemd-networkd does with routes it does not know.
    let shown =
        || ["-4", "-6"].map(|family| rig.lab.the_box.sh(&format!("ip {family} route show proto 112")).expect("ip"));
    let before = shown();
    for family in ["-4", "-6"] {
        rig.lab.the_box.sh(&format!("ip {family} route flush proto 112")).expect("ip");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while shown() != before {
        assert!(Instant::now() < deadline, "{before:?}\n{}", rig.dataplane.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }
    volleys();
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_10_000_of_10_000_shared_equally() {
    if !privilege::require("privileged_10_000_of_10_000_shared_equally") {
        return;
    }
    let rig = rig(Lab::builder());
    let tally = Volley::new(rig.vip(false), 10_000).run(rig.client(), |_| {});
    assert_eq!((tally.answered(), tally.failed()), (10_000, 0), "{tally:?}");
    for node in &rig.lab.nodes {
        let share = tally.share(&node.name) * 100.0;
        assert!((share - 33.3).abs() <= 2.0, "{} got {share:.1} %: {tally:?}", node.name);
    }
    rig.settle_without_drops_except(HARMLESS).expect("nothing dropped");
    rig.finish().expect("a clean end");
}

/// Ports without a service, closed ports, other protocols: silence or the named answer, never a loop,
/// never the kernel's RST.
#[test]
fn privileged_a_vip_port_without_a_service_is_dropped_by_name() {
    if !privilege::require("privileged_a_vip_port_without_a_service_is_dropped_by_name") {
        return;
    }
    let rig = rig(Lab::builder());
    let nobody = SocketAddr::new(rig.vip(false).ip(), 81);
    let volley = Volley { timeout: Duration::from_millis(300), ..Volley::new(nobody, 3) };
    let tally = volley.run(rig.client(), |_| {});
    assert_eq!((tally.answered(), tally.failed()), (0, 3), "{tally:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let drops = rig.settle().expect("a balanced ledger").total.drops;
        if drops.get("no_service").is_some_and(|&count| count >= 3) {
            break;
        }
        assert!(Instant::now() < deadline, "{drops:?}");
    }
    rig.finish().expect("a clean end");
}

/// What wakes on a worker's core would have it for milliseconds.
#[test]
fn privileged_other_threads_leave_the_workers_core_alone() {
    if !privilege::require("privileged_other_threads_leave_the_workers_core_alone") {
        return;
    }
    if penstock_perf::config::cores() < 2 {
        println!("SKIPPED: privileged_other_threads_leave_the_workers_core_alone: there is one core");
        return;
    }
    let rig = Rig::start(Lab::builder().queues(1), |_| {}).expect("a lab with a dataplane");
    let pid = rig.dataplane.pid().expect("it runs");
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let threads: Vec<(String, String)> = tasks
        .map(|task| {
            let status = std::fs::read_to_string(task.expect("a thread").path().join("status")).expect("its status");
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                line.trim().to_owned()
            };
            (field("Name:"), field("Cpus_allowed_list:"))
        })
        .collect();
    let of = |name: &str| threads.iter().find(|thread| thread.0 == name).map(|thread| thread.1.clone());
    let core: u16 = of("worker-0").expect("a worker").parse().expect("one core");
    for (name, cores) in threads.iter().filter(|thread| !thread.0.starts_with("worker-")) {
        let within = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse::<u16>().unwrap()..=last.parse().unwrap()).contains(&core)
        };
        assert!(!cores.split(',').any(within), "{name} may run on {cores}, the worker's core is {core}");
    }
    assert!(of("housekeeping").is_some(), "{threads:?}");
    rig.finish().expect("a clean end");
}
