//! Path MTU and fragments through real kernels: without translated ICMP errors the transfers below hang,
//! since no host here probes for its path MTU.

use std::process::Command;
use std::time::Duration;

use penstock_configs::desired::{Backend, Protocol};
use penstock_perf::clients::http;
use penstock_perf::clients::udp::UdpVolley;
use penstock_perf::config::{self, NODE_PORT};
use penstock_perf::lab::{DualAddr, Host, Lab, LabBuilder, Netns, plan};
use penstock_perf::privilege;
use penstock_perf::rig::{Rig, VIP_PORT, source};
use penstock_perf::servers::{NodePorts, NodeServer};

/// Other hosts' ARP and neighbour discovery.
const HARMLESS: &[&str] = &["neighbor_ignored"];
/// Hand-off rings run over where many builds share two cores; TCP sends again.
const BUSY: &[&str] = &["neighbor_ignored", "handoff_full"];
const LENGTH: u64 = 5_000_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Datagrams of six fragments. Of more, where a worker waits for its core, over 64 from one source may come between two of
/// one datagram, which Linux then gives up (`ipfrag_max_dist`), or a node's receive buffer runs over.
const AT_ONCE: u16 = 6;
/// Behind node0, where a small MTU begins.
const FAR: DualAddr =
    DualAddr { v4: std::net::Ipv4Addr::new(10, 9, 0, 2), v6: std::net::Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2) };

fn rig(builder: LabBuilder) -> Rig {
    Rig::start(builder, |_| {}).expect("a lab with a dataplane")
}

fn sh(ns: &Netns, lines: &[&str]) {
    for line in lines {
        ns.sh(line).expect(line);
    }
}

#[test]
fn privileged_small_mtu_in_front_of_the_box() {
    if !privilege::require("privileged_small_mtu_in_front_of_the_box") {
        return;
    }
    let rig = rig(Lab::builder().router(true));
    let router = rig.lab.router.as_ref().expect("a router");
    let [v4, v6] = plan::CLIENT_NET.cidrs();
    // The kernel forwards by a route's MTU only where it is locked.
    sh(
        router,
        &[
            &format!("ip route del {v4} dev inside"),
            &format!("ip route add {v4} dev inside mtu lock 1400"),
            &format!("ip -6 route del {v6} dev inside"),
            &format!("ip -6 route add {v6} dev inside mtu lock 1400"),
        ],
    );
    for v6 in [false, true] {
        http::download(rig.client(), rig.vip(v6), LENGTH, PATIENCE).expect("a whole download");
    }
    rig.settle_without_drops_except(BUSY).expect("every error found its flow");
    rig.finish().expect("a clean end");
}

/// A network behind node0, with a server in it; the box reaches it through node0.
fn far_host(lab: &Lab) -> NodeServer {
    let (id, node0) = (lab.id(), &lab.nodes[0].ns);
    let root = |line: String| {
        let status = Command::new("ip").args(line.split_whitespace()).status().expect("ip");
        assert!(status.success(), "ip {line}");
    };
    root(format!("netns add {id}-far"));
    root(format!("link add far0 netns {id}-node0 type veth peer name eth0 netns {id}-far"));
    let far = Netns::open(&format!("{id}-far")).expect("the namespace");
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        node0.sysctl(key, "1").expect(key);
    }
    sh(
        &far,
        &[
            "ip link set lo up",
            "ip link set eth0 up",
            "ethtool -K eth0 tx off",
            "ip addr add 10.9.0.2/24 dev eth0",
            "ip addr add fd00:9::2/64 dev eth0 nodad",
            "ip route add default via 10.9.0.1",
            "ip -6 route add default via fd00:9::1",
        ],
    );
    sh(
        node0,
        &[
            "ip link set far0 up",
            "ethtool -K far0 tx off",
            "ip addr add 10.9.0.1/32 dev far0",
            "ip addr add fd00:9::1/128 dev far0 nodad",
            "ip route add 10.9.0.0/24 dev far0 mtu lock 1400",
            "ip -6 route add fd00:9::/64 dev far0 mtu lock 1400",
        ],
    );
    let node = lab.nodes[0].addr;
    sh(
        &lab.the_box,
        &[
            &format!("ip route add 10.9.0.0/24 via {} dev nodes0", node.v4),
            &format!("ip -6 route add fd00:9::/64 via {} dev nodes0", node.v6),
        ],
    );
    let host = Host { name: "far".into(), ns: far, addr: FAR };
    NodeServer::start(&host, &NodePorts::both([NODE_PORT])).expect("a server")
}

#[test]
fn privileged_small_mtu_behind_the_box() {
    if !privilege::require("privileged_small_mtu_behind_the_box") {
        return;
    }
    let mut rig = rig(Lab::builder());
    let server = far_host(&rig.lab);
    let vip = plan::vip(1);
    rig.reconfigure(|config| {
        for v6 in [false, true] {
            let backend = Backend { address: Some(FAR.ip(v6)), port: Some(NODE_PORT), weight: 1, ..Backend::default() };
            let mut service = config::service(if v6 { "far6" } else { "far" }, vip.ip(v6), VIP_PORT, Protocol::Tcp);
            (service.set, service.backends) = (None, vec![backend]);
            config.services.push(service);
        }
    })
    .expect("a reload");
    penstock_perf::rig::wait_for_addresses(&rig.lab, &rig.config).expect("the new VIP answers");
    for v6 in [false, true] {
        let target = std::net::SocketAddr::new(vip.ip(v6), VIP_PORT);
        http::upload(rig.client(), target, LENGTH, PATIENCE).expect("a whole upload");
    }
    assert!(server.requests() >= 2);
    rig.settle_without_drops_except(BUSY).expect("every error found its flow");
    drop(server);
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_box_says_what_does_not_fit() {
    if !privilege::require("privileged_box_says_what_does_not_fit") {
        return;
    }
    let rig = rig(Lab::builder());
    rig.lab.the_box.sh("ip link set nodes0 mtu 1400").expect("another MTU");
    std::thread::sleep(Duration::from_secs(1));
    for v6 in [false, true] {
        http::upload(rig.client(), rig.vip(v6), LENGTH, PATIENCE).expect("a whole upload");
    }
    let counters = rig.settle().expect("a balanced ledger");
    assert!(counters.total.drops.get("too_big").is_some_and(|count| *count > 0), "{:?}", counters.total.drops);
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_eight_kilobyte_datagrams() {
    if !privilege::require("privileged_eight_kilobyte_datagrams") {
        return;
    }
    let rig = rig(Lab::builder().clients(2));
    rig.add_sources(AT_ONCE).expect("addresses");
    for v6 in [false, true] {
        let (concurrency, sources) = (usize::from(AT_ONCE), (0..AT_ONCE).map(|n| source(n, v6)).collect());
        let volley = UdpVolley { size: 8000, concurrency, sources, ..UdpVolley::new(rig.vip(v6), 200) };
        let tally = volley.run(rig.client(), |_| {});
        assert_eq!((tally.answered(), tally.failed()), (400, 0), "{tally:?}\n{}", rig.dataplane.log_tail());
    }
    rig.settle_without_drops_except(HARMLESS).expect("nothing dropped");
    rig.finish().expect("a clean end");
}
