//! MTU 9000 through real kernels and real AF_XDP sockets: packets larger than a frame of packet memory, in several.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use penstock_configs::file::{ConfigFile, VlanTags};
use penstock_configs::status::Counters;
use penstock_perf::clients::udp::UdpVolley;
use penstock_perf::clients::{http, icmp};
use penstock_perf::lab::{Lab, LabBuilder, Tags, Topology};
use penstock_perf::privilege;
use penstock_perf::rig::{Rig, source};

const MTU: u32 = 9000;
/// Largest UDP payload of an IPv4 packet of that size; in IPv6 it makes two fragments.
const DATAGRAM: usize = 8972;
const LENGTH: u64 = 10_000_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Other hosts' ARP and neighbour discovery; hand-off rings run over where many builds share two cores, and TCP
/// sends again.
const BUSY: &[&str] = &["neighbor_ignored", "handoff_full"];

fn rig(builder: LabBuilder, edit: impl FnOnce(&mut ConfigFile)) -> Rig {
    Rig::start(builder.mtu(MTU), edit).expect("a lab with a dataplane")
}

/// Packets received in several frames.
fn chains(counters: &Counters) -> u64 {
    counters.workers.iter().flat_map(|worker| &worker.sockets).map(|socket| socket.rx_chains).sum()
}

/// Bulk TCP both ways, compared by hash, and datagrams of a whole MTU, in both families.
fn traffic(rig: &Rig, v6: bool) {
    http::download(rig.client(), rig.vip(v6), LENGTH, PATIENCE).expect("a whole download");
    http::upload(rig.client(), rig.vip(v6), LENGTH, PATIENCE).expect("a whole upload");
    icmp::ping(rig.client(), rig.vip(v6).ip(), 3, 8900).expect("an echo reply");
    for size in [1, 1700, 3800, 5000, DATAGRAM] {
        // What a page-wise buffer of the kernel costs a receiver's socket for six frames is several times the
        // packet: of more at a time a node's would run over.
        let volley = UdpVolley { size, concurrency: 4, ..UdpVolley::new(rig.vip(v6), 40) };
        let tally = volley.run(rig.client(), |_| {});
        assert_eq!(
            (tally.answered(), tally.failed()),
            (80, 0),
            "{size} bytes: {tally:?}\n{}",
            rig.dataplane.log_tail()
        );
    }
}

/// What TCP has sent was in packets beyond one frame: LENGTH both ways, 8,948 bytes each, in each family.
fn check(rig: Rig, families: u64) {
    let counters = rig.settle_without_drops_except(BUSY).expect("nothing dropped");
    let least = families * 2 * LENGTH / 8948;
    assert!(chains(&counters) > least, "{} packets in several frames, at least {least} were sent", chains(&counters));
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_jumbo_frames_by_either_size_of_frame() {
    if !privilege::require("privileged_jumbo_frames_by_either_size_of_frame") {
        return;
    }
    for frame_size in [2048, 4096] {
        let rig = rig(Lab::builder().queues(1), |config| config.workers.frame_size = frame_size);
        [false, true].into_iter().for_each(|v6| traffic(&rig, v6));
        check(rig, 2);
    }
}

/// Four queues and two workers: a flow's packets come by any queue, and are handed to its owner whole.
#[test]
fn privileged_jumbo_frames_handed_from_worker_to_worker() {
    if !privilege::require("privileged_jumbo_frames_handed_from_worker_to_worker") {
        return;
    }
    for topology in [Topology::TwoArm, Topology::OneArm] {
        let rig = rig(Lab::builder().topology(topology).queues(4).clients(2), |_| {});
        [false, true].into_iter().for_each(|v6| traffic(&rig, v6));
        let counters = rig.settle().expect("a balanced ledger");
        assert!(counters.total.handoff_out > 1000, "hand-offs: {}", counters.total.handoff_out);
        check(rig, 2);
    }
}

#[test]
fn privileged_jumbo_frames_in_vlans() {
    if !privilege::require("privileged_jumbo_frames_in_vlans") {
        return;
    }
    // Tags that stay, and tags put on and taken off, which move a full first frame's end.
    for (tags, how) in [(Tags::Vlan, VlanTags::Auto), (Tags::Vlan, VlanTags::Route)] {
        let builder = Lab::builder().client_tags(tags);
        let builder = if how == VlanTags::Auto { builder.node_tags(tags) } else { builder };
        let rig = rig(builder, |config| config.the_box.vlan_tags = how);
        [false, true].into_iter().for_each(|v6| traffic(&rig, v6));
        check(rig, 2);
    }
}

/// Clients of 9000, nodes of 1500: what does not fit is answered with the MTU, and comes again smaller.
#[test]
fn privileged_jumbo_clients_find_the_nodes_mtu() {
    if !privilege::require("privileged_jumbo_clients_find_the_nodes_mtu") {
        return;
    }
    let rig = rig(Lab::builder(), |_| {});
    // The nodes offer segments as large as before: only the box's word stands between them and the clients.
    rig.lab.the_box.sh("ip link set nodes0 mtu 1500").expect("another MTU");
    std::thread::sleep(Duration::from_secs(1));
    for v6 in [false, true] {
        http::upload(rig.client(), rig.vip(v6), LENGTH, PATIENCE).expect("a whole upload");
    }
    let counters = rig.settle().expect("a balanced ledger");
    assert!(counters.total.drops.get("too_big").is_some_and(|count| *count >= 2), "{:?}", counters.total.drops);
    assert!(chains(&counters) >= 2, "what was too big came in several frames");
    rig.add_sources(4).expect("addresses");
    // And then the nodes as they should be.
    for node in &rig.lab.nodes {
        node.ns.sh("ip link set eth0 mtu 1500").expect("another MTU");
    }
    for v6 in [false, true] {
        http::download(rig.client(), rig.vip(v6), LENGTH, PATIENCE).expect("a whole download");
        // The first datagrams are lost to the discovery; by then the client's kernel knows, and sends fragments.
        let sources: Vec<IpAddr> = (0..4).map(|n| source(n, v6)).collect();
        let datagrams = |flows| UdpVolley {
            size: DATAGRAM,
            concurrency: 4,
            sources: sources.clone(),
            ..UdpVolley::new(rig.vip(v6), flows)
        };
        let learning = UdpVolley { timeout: Duration::from_millis(500), ..datagrams(8) };
        let deadline = Instant::now() + PATIENCE;
        while learning.run(rig.client(), |_| {}).failed() > 0 {
            assert!(Instant::now() < deadline, "the client's kernel never learns");
        }
        let tally = datagrams(40).run(rig.client(), |_| {});
        assert_eq!((tally.answered(), tally.failed()), (80, 0), "{tally:?}");
    }
    rig.finish().expect("a clean end");
}

/// The other way round: nodes of 9000 and clients of 1500.
#[test]
fn privileged_jumbo_nodes_find_the_clients_mtu() {
    if !privilege::require("privileged_jumbo_nodes_find_the_clients_mtu") {
        return;
    }
    let rig = rig(Lab::builder(), |_| {});
    rig.lab.the_box.sh("ip link set clients0 mtu 1500").expect("another MTU");
    std::thread::sleep(Duration::from_secs(1));
    for v6 in [false, true] {
        http::download(rig.client(), rig.vip(v6), LENGTH, PATIENCE).expect("a whole download");
    }
    let counters = rig.settle().expect("a balanced ledger");
    assert!(counters.total.drops.get("too_big").is_some_and(|count| *count >= 2), "{:?}", counters.total.drops);
    assert!(chains(&counters) >= 2, "what was too big came in several frames");
    rig.finish().expect("a clean end");
}

/// Of the box's own connections: by the TAP, in and out.
#[test]
fn privileged_the_box_itself_speaks_jumbo_to_its_vips() {
    if !privilege::require("privileged_the_box_itself_speaks_jumbo_to_its_vips") {
        return;
    }
    let rig = rig(Lab::builder(), |_| {});
    for v6 in [false, true] {
        http::download(&rig.lab.the_box, rig.vip(v6), LENGTH, PATIENCE).expect("a whole download");
        http::upload(&rig.lab.the_box, rig.vip(v6), LENGTH, PATIENCE).expect("a whole upload");
    }
    rig.settle_without_drops_except(&["neighbor_ignored", "handoff_full", "kernel_path_full"])
        .expect("nothing dropped");
    rig.finish().expect("a clean end");
}

#[test]
fn privileged_what_is_larger_than_jumbo_is_refused_with_the_largest() {
    if !privilege::require("privileged_what_is_larger_than_jumbo_is_refused_with_the_largest") {
        return;
    }
    let error = format!("{:#}", Rig::start(Lab::builder().mtu(9217), |_| {}).expect_err("a refusal"));
    for words in ["clients0", "MTU is 9217", "9216 at most", "ip link set clients0 mtu 9216"] {
        assert!(error.contains(words), "{error}");
    }
}
