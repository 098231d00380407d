//! Who may have flows, and how many: the deny list and limits.

use std::sync::Arc;

use ipnet::IpNet;
use penstock_configs::desired::{NoBackend, ServiceLimits, SourceLimits};

use super::*;
use crate::pipeline::testkit::{Icmp, config};
use crate::verdict::{DropReason, Verdict};
use crate::wire::TCP_RST;

const FAMILIES: [(&str, &str, &str, &str); 2] =
    [(CLIENT, "198.51.100.0/24", WEB, TO_WEB), (CLIENT6, "2001:db8:2::/48", WEB6, TO_WEB6)];

fn denied(net: &str) -> Arc<Vec<IpNet>> {
    Arc::new(vec![net.parse().unwrap()])
}

/// The nth client of a family: addresses that are one /24, or one /64 each.
fn client(to: &str, n: u16) -> String {
    if to == TO_WEB { format!("198.51.100.{n}:5000") } else { format!("[2001:db8:2:{n:x}::7]:5000") }
}

fn limited(at: &str, limits: ServiceLimits) -> Rig {
    let mut plan = plan();
    plan.service(at).limits = Some(limits);
    Rig::new(plan)
}

#[test]
fn a_denied_client_gets_nothing() {
    for (client, net, _, vip) in FAMILIES {
        let mut plan = plan();
        plan.deny = denied(net);
        let mut rig = Rig::new(plan);
        rig.front(&Pkt::syn(client, vip).bytes()).dropped(DropReason::Denied);
        rig.front(&Pkt::tcp(client, vip, TCP_ACK).bytes()).dropped(DropReason::Denied);
        let dns = vip.replace(":443", ":53");
        rig.front(&Pkt::udp(client, &dns).bytes()).dropped(DropReason::Denied);
        let (address, at) = (client.rsplit_once(':').unwrap().0, vip.rsplit_once(':').unwrap().0);
        let [address, at] = [address, at].map(|text| text.trim_matches(['[', ']']));
        rig.front(&Icmp::echo(address, at, b"ping").bytes()).dropped(DropReason::Denied);
        assert_eq!(rig.pipeline.stats().generated.get(), 0, "no answer of any kind");
        let other = if vip == TO_WEB { "192.0.2.7:5555" } else { "[2001:db8:3::7]:5555" };
        Conn::open(&mut rig, other, vip);
        rig.check();
    }
}

#[test]
fn what_a_denied_client_had_open_is_dropped_by_name() {
    for (client, net, _, vip) in FAMILIES {
        for from_node in [false, true] {
            let mut rig = rig();
            let conn = Conn::open(&mut rig, client, vip);
            let other = Conn::open(&mut rig, if vip == TO_WEB { "192.0.2.7:5" } else { "[2001:db8:3::7]:5" }, vip);
            rig.change(|plan| plan.deny = denied(net));
            if from_node {
                rig.back(&conn.reply(TCP_ACK).bytes()).dropped(DropReason::Denied);
            } else {
                conn.out(&mut rig, TCP_ACK).dropped(DropReason::Denied);
            }
            conn.out(&mut rig, TCP_ACK).dropped(DropReason::Denied);
            other.to_node(&mut rig, TCP_ACK);
            other.to_client(&mut rig, TCP_ACK);
            rig.change(|plan| plan.deny = Arc::default());
            conn.out(&mut rig, TCP_ACK).dropped(DropReason::OutOfState);
            Conn::open(&mut rig, client, vip);
            rig.check();
        }
    }
}

/// Also of clients that say nothing.
#[test]
fn the_sweep_forgets_denied_flows() {
    let mut rig = rig();
    Conn::open(&mut rig, CLIENT, TO_WEB);
    Conn::open(&mut rig, "192.0.2.7:5555", TO_WEB);
    rig.change(|plan| plan.deny = denied("198.51.100.0/24"));
    rig.sweep();
    assert_eq!(rig.pipeline.flows_v4().counts().established, 1);
}

/// A node on the list is no client: its replies pass.
#[test]
fn replies_of_a_denied_node_pass() {
    let mut plan = plan();
    plan.deny = denied("10.0.0.0/24");
    let mut rig = Rig::new(plan);
    Conn::open(&mut rig, CLIENT, TO_WEB).to_client(&mut rig, TCP_ACK);
}

#[test]
fn a_service_has_so_many_connections() {
    for (_, _, at, vip) in FAMILIES {
        let mut rig = limited(at, ServiceLimits { connections: Some(3), ..ServiceLimits::default() });
        let conns: Vec<Conn> = (1..=2).map(|n| Conn::open(&mut rig, &client(vip, n), vip)).collect();
        // A half-open one counts.
        rig.front(&Pkt::syn(&client(vip, 3), vip).bytes()).to_node();
        let syn = Pkt::syn(&client(vip, 4), vip).bytes();
        rig.front(&syn).dropped(DropReason::ServiceConnections);
        rig.front(&Pkt::syn(&client(vip, 3), vip).bytes()).to_node();
        conns[0].to_node(&mut rig, TCP_ACK);
        conns[0].to_client(&mut rig, TCP_ACK);
        // One that has closed does not.
        conns[1].close(&mut rig);
        rig.front(&syn).to_node();
        rig.front(&Pkt::syn(&client(vip, 5), vip).bytes()).dropped(DropReason::ServiceConnections);
        // Nor what is forgotten.
        rig.wait(16);
        rig.sweep();
        rig.front(&Pkt::syn(&client(vip, 5), vip).bytes()).to_node();
        let slot = rig.pipeline.stats().services.iter().map(|service| service.limited.get()).sum::<u64>();
        assert_eq!(slot, 2, "counted for the service");
        rig.check();
    }
}

#[test]
fn a_service_opens_so_many_a_second() {
    for (_, _, at, vip) in FAMILIES {
        let mut rig = limited(at, ServiceLimits { new_per_second: Some(5), ..ServiceLimits::default() });
        let opened = |rig: &mut Rig, from: u16| {
            let syn = |n| Pkt::syn(&client(vip, n), vip).bytes();
            (from..from + 20).filter(|n| matches!(rig.front(&syn(*n)).verdict, Verdict::Tx(_))).count()
        };
        assert_eq!(opened(&mut rig, 1), 5);
        assert_eq!(rig.drops(DropReason::ServiceRate), 15);
        // A retransmission opens nothing.
        rig.front(&Pkt::syn(&client(vip, 1), vip).bytes()).to_node();
        rig.now.ns += 1_500_000_000;
        assert_eq!(opened(&mut rig, 40), 3, "half of the second before still counts");
        rig.wait(2);
        assert_eq!(opened(&mut rig, 80), 5);
    }
}

#[test]
fn a_source_has_and_opens_so_many() {
    for (_, _, at, vip) in FAMILIES {
        let of = |n: u16, port: u16| client(vip, n).replace("5000", &port.to_string());
        let source = SourceLimits { connections: Some(2), ..SourceLimits::default() };
        let mut rig = limited(at, ServiceLimits { per_source: Some(source), ..ServiceLimits::default() });
        for port in [1, 2] {
            Conn::open(&mut rig, &of(1, port), vip);
        }
        rig.front(&Pkt::syn(&of(1, 3), vip).bytes()).dropped(DropReason::SourceConnections);
        if vip == TO_WEB6 {
            let neighbor = "[2001:db8:2:1::99]:1";
            rig.front(&Pkt::syn(neighbor, vip).bytes()).dropped(DropReason::SourceConnections);
        }
        Conn::open(&mut rig, &of(2, 1), vip);

        let source = SourceLimits { new_per_second: Some(2), prefix_v4: 24, prefix_v6: 40, ..SourceLimits::default() };
        let mut rig = limited(at, ServiceLimits { per_source: Some(source), ..ServiceLimits::default() });
        for n in [1, 2] {
            rig.front(&Pkt::syn(&of(n, 1), vip).bytes()).to_node();
        }
        rig.front(&Pkt::syn(&of(3, 1), vip).bytes()).dropped(DropReason::SourceRate);
        let elsewhere = if vip == TO_WEB { "192.0.2.7:1" } else { "[2001:db9::7]:1" };
        rig.front(&Pkt::syn(elsewhere, vip).bytes()).to_node();
        rig.check();
    }
}

/// Connections are refused as `no_backend` says, rates always in silence.
#[test]
fn who_is_over_a_limit_hears_what_the_service_says() {
    let source = SourceLimits { connections: Some(1), ..SourceLimits::default() };
    for (limits, answered) in [
        (ServiceLimits { connections: Some(1), ..ServiceLimits::default() }, true),
        (ServiceLimits { per_source: Some(source), ..ServiceLimits::default() }, true),
        (ServiceLimits { new_per_second: Some(1), ..ServiceLimits::default() }, false),
    ] {
        let mut rig = limited(WEB, limits);
        rig.change(|plan| plan.service(WEB).no_backend = NoBackend::Reject);
        Conn::open(&mut rig, CLIENT, TO_WEB);
        let out = rig.front(&Pkt::syn("198.51.100.7:5556", TO_WEB).bytes());
        if answered {
            assert_eq!(out.to_client().flags, TCP_RST | TCP_ACK);
        } else {
            out.dropped(DropReason::ServiceRate);
        }
    }
}

/// A client that opens the same tuple again and again is rated like any other.
#[test]
fn a_closed_flow_opened_again_is_a_new_one() {
    let mut rig = limited(WEB, ServiceLimits { new_per_second: Some(2), ..ServiceLimits::default() });
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    conn.close(&mut rig);
    let again = |seq: u32| Pkt::syn(CLIENT, TO_WEB).with(|pkt| pkt.seq = seq).bytes();
    rig.front(&again(500_000)).to_node();
    rig.front(&Pkt::syn("198.51.100.8:1", TO_WEB).bytes()).dropped(DropReason::ServiceRate);

    let mut rig = limited(WEB, ServiceLimits { new_per_second: Some(1), ..ServiceLimits::default() });
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    conn.close(&mut rig);
    rig.front(&again(500_000)).dropped(DropReason::ServiceRate);
    rig.wait(2);
    rig.front(&again(500_000)).to_node();
    rig.check();
}

/// A limit that comes ends nothing, and counts what is there.
#[test]
fn a_limit_leaves_flows_there_are_alone() {
    let mut rig = rig();
    let conns: Vec<Conn> = (1..=5).map(|n| Conn::open(&mut rig, &client(TO_WEB, n), TO_WEB)).collect();
    let limits = ServiceLimits { connections: Some(3), ..ServiceLimits::default() };
    rig.change(|plan| plan.service(WEB).limits = Some(limits));
    rig.sweep();
    rig.front(&Pkt::syn(&client(TO_WEB, 9), TO_WEB).bytes()).dropped(DropReason::ServiceConnections);
    for conn in &conns {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    for conn in &conns[..3] {
        conn.close(&mut rig);
    }
    rig.front(&Pkt::syn(&client(TO_WEB, 9), TO_WEB).bytes()).to_node();
    rig.change(|plan| plan.service(WEB).limits = None);
    rig.sweep();
    for n in 20..30 {
        Conn::open(&mut rig, &client(TO_WEB, n), TO_WEB);
    }
    rig.check();
}

/// By their own packets, too: before the sweep has come.
#[test]
fn a_limit_counts_who_goes_on() {
    let mut rig = rig();
    let conns: Vec<Conn> = (1..=3).map(|n| Conn::open(&mut rig, &client(TO_WEB, n), TO_WEB)).collect();
    let limits = ServiceLimits { connections: Some(3), ..ServiceLimits::default() };
    rig.change(|plan| plan.service(WEB).limits = Some(limits));
    for conn in &conns {
        conn.to_node(&mut rig, TCP_ACK);
    }
    rig.front(&Pkt::syn(&client(TO_WEB, 9), TO_WEB).bytes()).dropped(DropReason::ServiceConnections);
}

/// Its own connections to its VIPs come from an address it shares with the dataplane.
#[test]
fn the_box_itself_may_be_a_client() {
    for shared in [true, false] {
        let mut plan = plan();
        plan.snat.clear();
        plan.snat(SNAT, [40_000, 40_999]).shared = shared;
        let mut rig = Rig::new(plan);
        let out = rig.front(&Pkt::syn(&format!("{SNAT}:5000"), TO_WEB).bytes());
        if shared { drop(out.to_node()) } else { out.dropped(DropReason::SpoofedSource) }
    }
}

/// Not worth a copy to the worker that would say no.
#[test]
fn a_denied_client_is_not_handed_over() {
    let mut plan = plan();
    plan.deny = denied("198.51.100.0/24");
    let mut rig = Rig::with(plan, &config(0, 2));
    for port in 5000..5020 {
        rig.front(&Pkt::syn(&format!("198.51.100.7:{port}"), TO_WEB).bytes()).dropped(DropReason::Denied);
    }
}

/// A flood of sources fills the table of them; who comes then is not limited by source, and none of the flows there
/// are is touched.
#[test]
fn a_spoofed_flood_locks_nobody_out() {
    let source = SourceLimits { connections: Some(2), ..SourceLimits::default() };
    let mut plan = plan();
    plan.service(WEB).limits = Some(ServiceLimits { per_source: Some(source), ..ServiceLimits::default() });
    let small = crate::pipeline::PipelineConfig { max_sources: 16, ..config(0, 1) };
    let mut rig = Rig::with(plan, &small);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    for n in 0..3000_u32 {
        let [.., a, b] = n.to_be_bytes();
        rig.front(&Pkt::syn(&format!("192.0.{a}.{b}:1"), TO_WEB).bytes());
    }
    conn.to_node(&mut rig, TCP_ACK);
    conn.to_client(&mut rig, TCP_ACK);
    Conn::open(&mut rig, "203.0.114.1:1", TO_WEB);
    assert_eq!(rig.drops(DropReason::SourceConnections), 0);
    assert_eq!(rig.pipeline.flows_v4().counts().established, 2);
    rig.check();
}

/// One list is one set, and a change of something else compiles none anew.
#[test]
fn services_with_one_list_share_one_set() {
    let mut rig = rig();
    let list: Vec<IpNet> = vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:2::/48".parse().unwrap()];
    rig.change(|plan| {
        for at in [WEB, DNS, WEB6] {
            plan.service(at).source_ranges = list.clone();
        }
    });
    let sets = |rig: &mut Rig| {
        let tables = rig.plan.compile(&mut rig.compiler).unwrap();
        tables.services.iter().flatten().filter_map(|service| service.sources.clone()).collect::<Vec<_>>()
    };
    let before = sets(&mut rig);
    assert_eq!(before.len(), 3);
    assert!(before.iter().all(|set| Arc::ptr_eq(set, &before[0])));
    rig.plan.service(DNS).backends[0].weight = 0;
    assert!(sets(&mut rig).iter().all(|set| Arc::ptr_eq(set, &before[0])));
}

/// What the XDP program lets pass while it polices: flows from the packet on that establishes them, as long as they
/// are swept; half-open ones not.
#[test]
fn established_flows_are_marked() {
    use crate::pipeline::MARKED_EVERY;
    use crate::steer::marks::Marks;
    use crate::wire::{Family, PROTO_TCP, PROTO_UDP, Tuple, V4, V6};

    fn tuple<F: Family>(client: &str, vip: &str, protocol: u8) -> Tuple<F::Addr> {
        let [src, dst] = [client, vip].map(|text| text.parse::<std::net::SocketAddr>().unwrap());
        let [from, to] = [src, dst].map(|at| F::from_ip(at.ip()).unwrap());
        Tuple { src: from, dst: to, src_port: src.port(), dst_port: dst.port(), protocol }
    }
    let marks = Arc::new(Marks::heap(1));
    let mut plan = plan();
    plan.marks = Some(Arc::clone(&marks));
    let mut rig = Rig::new(plan);
    let (web, web6) = (tuple::<V4>(CLIENT, TO_WEB, PROTO_TCP), tuple::<V6>(CLIENT6, TO_WEB6, PROTO_TCP));
    let dns = tuple::<V4>(CLIENT, TO_DNS, PROTO_UDP);

    let at_node = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    rig.back(&Pkt::answer(&at_node, TCP_SYN | TCP_ACK).bytes()).to_client();
    let query = rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node();
    rig.back(&Pkt::answer(&query, 0).bytes()).to_client();
    assert!(!marks.is_marked::<V4>(&web) && !marks.is_marked::<V4>(&dns), "a node's answer makes no client real");
    let ack = Pkt::tcp(CLIENT, TO_WEB, TCP_ACK).with(|pkt| pkt.seq = at_node.seq.wrapping_add(1));
    rig.front(&ack.bytes()).to_node();
    rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node();
    Conn::open(&mut rig, CLIENT6, TO_WEB6);
    let all = |marks: &Marks| [marks.is_marked::<V4>(&web), marks.is_marked::<V4>(&dns), marks.is_marked::<V6>(&web6)];
    assert_eq!(all(&marks), [true; 3]);

    // Silent for as long as they are known: each turn finds them marked again by the sweep.
    for _ in 0..4 {
        let rounds = rig.pipeline.stats().rounds.get();
        while rig.pipeline.stats().rounds.get() < rounds + u64::from(MARKED_EVERY) {
            rig.sweep();
        }
        marks.rotate();
        assert_eq!(all(&marks), [true; 3]);
    }
    // One that a SYN opens again is half-open.
    let conn = Conn::open(&mut rig, "198.51.100.8:1", TO_WEB);
    conn.close(&mut rig);
    marks.rotate();
    marks.rotate();
    rig.front(&Pkt::syn("198.51.100.8:1", TO_WEB).with(|pkt| pkt.seq = 500_000).bytes()).to_node();
    assert!(!marks.is_marked::<V4>(&tuple::<V4>("198.51.100.8:1", TO_WEB, PROTO_TCP)));
    for _ in 0..MARKED_EVERY {
        rig.sweep();
    }
    rig.change(|plan| plan.remove(WEB));
    for _ in 0..2 {
        rig.sweep();
        rig.sweep();
        marks.rotate();
    }
    assert_eq!(all(&marks), [false, true, true], "who is gone fades");
}
