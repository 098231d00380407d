//! Forwarding modes on real stacks: replies that bypass the box, a way back that is proved before it is used, nodes
//! that are clients, networks with tags of their own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use penstock_configs::desired::{BackendState, Mode, Protocol};
use penstock_configs::file::{ConfigFile, VlanTags};
use penstock_configs::status::BackendStatus;
use penstock_perf::clients::hold::Hold;
use penstock_perf::clients::http::{self, Volley};
use penstock_perf::clients::icmp;
use penstock_perf::clients::udp::UdpVolley;
use penstock_perf::config::{self, NODE_PORT};
use penstock_perf::lab::{Lab, Netns, Tags, Topology, plan};
use penstock_perf::privilege;
use penstock_perf::rig::Rig;

const HARMLESS: &[&str] = &["neighbor_ignored", "reply_probe"];
/// After bulk transfers: hand-off rings run over where a worker waits for its core, and TCP sends again.
const BUSY: &[&str] = &["neighbor_ignored", "reply_probe", "handoff_full"];
const PATIENCE: Duration = Duration::from_secs(60);

/// TCP and UDP from `ns` to the VIP.
fn traffic(rig: &Rig, ns: &Netns, v6: bool, count: u64) -> BTreeMap<String, u64> {
    let tally = Volley::new(rig.vip(v6), count).run(ns, |_| {});
    assert_eq!((tally.answered(), tally.failed()), (count, 0), "{tally:?}\n{}", rig.dataplane.log_tail());
    let udp = UdpVolley::new(rig.vip(v6), count / 2).run(ns, |_| {});
    assert_eq!((udp.answered(), udp.failed()), (count / 2 * 2, 0), "{udp:?}");
    tally.by_node.into_iter().collect()
}

fn in_mode(config: &mut ConfigFile, mode: Mode) {
    for service in &mut config.services {
        service.mode = mode;
    }
}

/// Waits until a service's backends are as wanted; returns them by name.
fn backends(rig: &Rig, service: &str, wanted: impl Fn(&[BackendStatus]) -> bool) -> BTreeMap<String, BackendStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = rig.dataplane.status().expect("a status");
        let found = status.services.into_iter().find(|known| known.name == service).expect("the service");
        if wanted(&found.backends) {
            return found.backends.into_iter().map(|backend| (backend.name.clone(), backend)).collect();
        }
        assert!(Instant::now() < deadline, "{:#?}\n{:?}", found.backends, status.notices);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn checked(backends: &[BackendStatus]) -> bool {
    backends.iter().all(|backend| backend.reply_check.as_deref().is_some_and(|word| word != "unchecked"))
}

fn all_passed(backends: &[BackendStatus]) -> bool {
    backends.iter().all(|backend| backend.reply_check.as_deref() == Some("passed"))
}

/// The VIP on every node's loopback, and no answer to ARP for it: what kube-proxy's IPVS mode, or an operator of
/// direct server return, sets up.
fn take_vip(rig: &Rig) {
    for node in &rig.lab.nodes {
        node.ns.sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("a sysctl");
        node.ns.sysctl("net.ipv4.conf.all.arp_announce", "2").expect("a sysctl");
        node.ns.sh(&format!("ip address add {}/32 dev lo", plan::vip(0).v4)).expect("an address");
        node.ns.sh(&format!("ip address add {}/128 dev lo nodad", plan::vip(0).v6)).expect("an address");
        // A UDP server on the wildcard address answers from whichever address the route says.
        let client = &rig.lab.clients[0].addr;
        for v6 in [false, true] {
            let (client, vip) = (client.ip(v6), plan::vip(0).ip(v6));
            node.ns.sh(&format!("ip route add {client} dev eth0 src {vip}")).expect("a route");
        }
    }
}

#[test]
fn privileged_dsr_replies_bypass_the_box() {
    if !privilege::require("privileged_dsr_replies_bypass_the_box") {
        return;
    }
    const LENGTH: u64 = 20_000_000;
    let rig = Rig::start(Lab::builder().topology(Topology::OneArm), |config| {
        config.snat.clear();
        in_mode(config, Mode::Dsr);
        config.sets[0].backends.iter_mut().for_each(|backend| backend.port = None);
        config.services.iter_mut().for_each(|service| service.port = NODE_PORT);
    })
    .expect("a lab with a dataplane");
    take_vip(&rig);
    for v6 in [false, true] {
        let vip = std::net::SocketAddr::new(plan::vip(0).ip(v6), NODE_PORT);
        let tally = Volley::new(vip, 200).run(rig.client(), |_| {});
        assert_eq!((tally.answered(), tally.failed()), (200, 0), "{tally:?}\n{}", rig.dataplane.log_tail());
        assert_eq!(tally.by_node.len(), rig.lab.nodes.len(), "{tally:?}");
        let tally = UdpVolley::new(vip, 100).run(rig.client(), |_| {});
        assert_eq!((tally.answered(), tally.failed()), (200, 0), "{tally:?}");
        icmp::ping(rig.client(), vip.ip(), 3, 56).expect("the box answers for the VIP");

        let sent = |rig: &Rig| rig.settle().expect("counters").ports.iter().map(|port| port.tx_bytes).sum::<u64>();
        let before = sent(&rig);
        http::download(rig.client(), vip, LENGTH, PATIENCE).expect("a whole download");
        let forwarded = sent(&rig) - before;
        assert!(forwarded > 0, "the client's half goes by the box");
        assert!(forwarded < LENGTH / 5, "{forwarded} bytes went through the box for a reply of {LENGTH}");
        let before = sent(&rig);
        http::upload(rig.client(), vip, LENGTH, PATIENCE).expect("a whole upload");
        assert!(sent(&rig) - before > LENGTH, "what the client sends goes by the box");
        let seen = http::get_text(rig.client(), vip, "/").expect("an answer");
        assert!(seen.contains(&rig.lab.clients[0].addr.ip(v6).to_string()), "{seen}: the node should see the client");
    }
    rig.settle_without_drops_except(BUSY).expect("nothing dropped");
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_dnat_waits_until_replies_come_back() {
    if !privilege::require("privileged_dnat_waits_until_replies_come_back") {
        return;
    }
    let mut rig = Rig::start(Lab::builder(), |config| {
        config.snat.clear();
        in_mode(config, Mode::Dnat);
    })
    .expect("a lab with a dataplane");
    for (service, v6) in [("web", false), ("web-udp", false), ("web6", true), ("web6-udp", true)] {
        backends(&rig, service, all_passed);
        if service.ends_with("udp") {
            assert_eq!(traffic(&rig, rig.client(), v6, 200).len(), rig.lab.nodes.len());
        }
        let seen = http::get_text(rig.client(), rig.vip(v6), "/").expect("an answer");
        assert!(seen.contains(&rig.lab.clients[0].addr.ip(v6).to_string()), "{seen}: the node should see the client");
    }

    // What was proved is believed over a restart: nobody is refused until it is proved again.
    rig.dataplane.kill().expect("a process to kill");
    rig.dataplane.start_again().expect("a second start");
    traffic(&rig, rig.client(), false, 200);
    backends(&rig, "web", all_passed);

    // A node that sends its replies elsewhere takes no flows of a service that is new to it.
    let node = rig.lab.nodes[1].clone();
    rig.reconfigure(|config| config.services.retain(|service| service.protocol == Protocol::Tcp)).expect("a reload");
    let gateway = plan::NODE_NET.host(plan::BOX_HOST).v4;
    node.ns.sh("ip route del default").expect("a route");
    let broken = |config: &mut ConfigFile| {
        for (name, protocol) in [("late", Protocol::Tcp), ("late-udp", Protocol::Udp)] {
            let mut service = config::service(name, plan::vip(1).v4.into(), 80, protocol);
            service.mode = Mode::Dnat;
            service.set = None;
            // Nobody listens there: a RST shows the way back as well as a SYN-ACK does.
            service.backends = (0..3).map(|n| config::backend(&format!("node{n}"), NODE_PORT + 1)).collect();
            config.services.push(service);
        }
    };
    rig.reconfigure(broken).expect("a reload");
    for service in ["late", "late-udp"] {
        let by_name = backends(&rig, service, checked);
        for (name, backend) in &by_name {
            let wanted =
                if *name == node.name { ("failed", BackendState::Draining) } else { ("passed", BackendState::Active) };
            assert_eq!(
                (backend.reply_check.as_deref(), backend.state),
                (Some(wanted.0), wanted.1),
                "{service} {backend:?}"
            );
        }
        assert!(by_name[&node.name].reason.contains("192.0.2.254"), "{:?}", by_name[&node.name]);
    }
    assert_eq!(backends(&rig, "web", |_| true)[&node.name].state, BackendState::Active, "one silent round is none");
    let notices = rig.dataplane.status().expect("a status").notices.join("\n");
    assert!(notices.contains(&node.addr.v4.to_string()) && notices.contains("default route"), "{notices}");
    assert!(notices.contains(&format!("to {gateway},")), "the gateway to set is named: {notices}");

    // Mended, it is found by the next round.
    node.ns.sh(&format!("ip route add default via {gateway}")).expect("a route");
    backends(&rig, "late", all_passed);
    rig.settle_without_drops_except(HARMLESS).expect("nothing dropped");
    rig.stop().expect("a clean end");
}

#[test]
fn privileged_nodes_reach_vips_they_serve() {
    if !privilege::require("privileged_nodes_reach_vips_they_serve") {
        return;
    }
    for topology in [Topology::TwoArm, Topology::OneArm] {
        let rig = Rig::start(Lab::builder().topology(topology), |_| {}).expect("a lab with a dataplane");
        for node in &rig.lab.nodes {
            if topology == Topology::OneArm {
                for v6 in [false, true] {
                    node.ns.sh(&format!("ip route add {} dev eth0", plan::vip(0).ip(v6))).expect("a route");
                }
            }
            for v6 in [false, true] {
                let by_node = traffic(&rig, &node.ns, v6, 60);
                assert_eq!(by_node.len(), rig.lab.nodes.len(), "itself and its neighbours: {by_node:?}");
            }
        }
        traffic(&rig, rig.client(), false, 60);
        rig.settle_without_drops_except(HARMLESS).expect("nothing dropped");
        rig.finish().unwrap_or_else(|error| panic!("{topology:?}: {error:#}"));
    }
}

#[test]
fn privileged_vips_that_share_node_ports_do_not_collide() {
    if !privilege::require("privileged_vips_that_share_node_ports_do_not_collide") {
        return;
    }
    let rig = Rig::start(Lab::builder(), |config| {
        // Few enough SNAT ports that two services without regard for each other would meet.
        config.snat[0].ports = [40_000, 40_199];
        config.services.push(config::service("other", plan::vip(1).v4.into(), 80, Protocol::Tcp));
    })
    .expect("a lab with a dataplane");
    let other = std::net::SocketAddr::new(plan::vip(1).v4.into(), 80);
    let holds = [rig.vip(false), other].map(|vip| Hold::open(rig.client(), vip, 150).expect("connections"));
    for hold in &holds {
        let first: BTreeMap<_, _> = hold.first.iter().map(|held| (held.local, &held.outcome)).collect();
        for held in hold.ask_all(PATIENCE).expect("answers") {
            assert!(held.outcome.is_ok(), "{held:?}");
            assert_eq!(&held.outcome, first[&held.local], "the same node as before");
        }
    }
    drop(holds);
    rig.finish().expect("a clean end");
}

/// Clients in a VLAN, nodes in none: the box takes the tags off, and puts them back on for the client.
#[test]
fn privileged_tags_of_one_side_stay_there() {
    if !privilege::require("privileged_tags_of_one_side_stay_there") {
        return;
    }
    for tags in [Tags::Vlan, Tags::QinQ] {
        let rig = Rig::start(Lab::builder().client_tags(tags), |config| config.the_box.vlan_tags = VlanTags::Route)
            .expect("a lab with a dataplane");
        for v6 in [false, true] {
            traffic(&rig, rig.client(), v6, 200);
            icmp::ping(rig.client(), rig.vip(v6).ip(), 3, 1400).expect("an echo reply");
            // Whole segments in one tag; a veth carries no second one beside a full MTU.
            if tags == Tags::Vlan {
                http::download(rig.client(), rig.vip(v6), 3_000_000, PATIENCE).expect("a whole download");
            }
        }
        rig.settle_without_drops_except(BUSY).expect("nothing dropped");
        rig.finish().unwrap_or_else(|error| panic!("{tags:?}: {error:#}"));
    }
}

/// 3,000 bytes are two frames of 2,048, or one of 4,096.
#[test]
fn privileged_an_mtu_beyond_the_frame_is_held_by_two_or_by_a_larger_one() {
    if !privilege::require("privileged_an_mtu_beyond_the_frame_is_held_by_two_or_by_a_larger_one") {
        return;
    }
    for frame_size in [2048, 4096] {
        let edit = |config: &mut ConfigFile| config.workers.frame_size = frame_size;
        let rig = Rig::start(Lab::builder().mtu(3000), edit).expect("a lab with a dataplane");
        for v6 in [false, true] {
            icmp::ping(rig.client(), rig.vip(v6).ip(), 3, 2900).expect("an echo reply");
            http::download(rig.client(), rig.vip(v6), 10_000_000, PATIENCE).expect("a whole download");
            http::upload(rig.client(), rig.vip(v6), 10_000_000, PATIENCE).expect("a whole upload");
        }
        let counters = rig.settle_without_drops_except(BUSY).expect("nothing dropped");
        let chains: u64 =
            counters.workers.iter().flat_map(|worker| &worker.sockets).map(|socket| socket.rx_chains).sum();
        assert_eq!(chains > 0, frame_size == 2048, "{chains}");
        rig.finish().expect("a clean end");
    }
}
