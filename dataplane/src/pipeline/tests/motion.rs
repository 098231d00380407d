//! Backends in motion: what happens to flows of one that goes, to the share of one that comes, and
//! whom the checks are believed about.

mod checks;
mod choice;

use std::collections::BTreeMap;

use penstock_configs::desired::{BackendState, OnDown, Scheduler};

use super::*;
use crate::clock::Now;
use crate::pipeline::PipelineConfig;
use crate::pipeline::testkit::{self, SCHEDULERS, down, draining};
use crate::tables::Service;
use crate::verdict::DropReason;
use crate::wire::TCP_RST;

/// A service of each family and protocol on three nodes.
fn three() -> Plan {
    let mut plan = Plan::default();
    for (at, nodes, port) in [
        (WEB, ["10.0.0.11", "10.0.0.12", "10.0.0.13"], 31_443),
        (DNS, ["10.0.0.11", "10.0.0.12", "10.0.0.13"], 31_053),
        (WEB6, ["[fd00::11]", "[fd00::12]", "[fd00::13]"], 31_443),
        (DNS6, ["[fd00::11]", "[fd00::12]", "[fd00::13]"], 31_053),
    ] {
        let places = nodes.map(|node| format!("{node}:{port}"));
        plan.serve(at, &places.each_ref().map(String::as_str));
    }
    plan.snat(SNAT, [1024, 65535]);
    plan.snat(SNAT6, [1024, 65535]);
    plan
}

fn outspoken() -> Rig {
    Rig::with(three(), &PipelineConfig { icmp_per_second: 1_000_000_000, ..testkit::config(0, 1) })
}

/// (VIP, service, the n-th client of the family, the first node).
type Family = (&'static str, &'static str, fn(u16) -> String, &'static str);

const TCP: [Family; 2] = [
    (TO_WEB, WEB, |n| format!("198.51.100.7:{}", 2000 + n), "10.0.0.11"),
    (TO_WEB6, WEB6, |n| format!("[2001:db8:2::7]:{}", 2000 + n), "fd00::11"),
];
const UDP: [Family; 2] = [
    (TO_DNS, DNS, |n| format!("198.51.100.7:{}", 2000 + n), "10.0.0.11"),
    (TO_DNS6, DNS6, |n| format!("[2001:db8:2::7]:{}", 2000 + n), "fd00::11"),
];

fn node(conn: &Conn) -> String {
    conn.at_node.dst.ip().to_string()
}

/// How a backend goes.
type Going = fn(&mut Plan, &str, &str);

const BY_CHECKS: Going = |plan, _, node| plan.health(node, BackendState::Down);
const BY_OWNER: Going = |plan, service, node| {
    let backends = &mut plan.service(service).backends;
    down(backends.iter_mut().find(|b| b.address == node.parse().ok()).unwrap());
};
const DRAINING: Going = |plan, service, node| {
    let backends = &mut plan.service(service).backends;
    draining(backends.iter_mut().find(|b| b.address == node.parse().ok()).unwrap());
};
const DRAINING_BY_CHECKS: Going = |plan, _, node| plan.health(node, BackendState::Draining);
const WEIGHTLESS: Going = |plan, service, node| {
    let backends = &mut plan.service(service).backends;
    backends.iter_mut().find(|b| b.address == node.parse().ok()).unwrap().weight = 0;
};
const REMOVED: Going = |plan, service, node| plan.service(service).backends.retain(|b| b.address != node.parse().ok());

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    GoesOn,
    Reset,
}

#[test]
fn tcp_of_a_backend_that_goes_by_policy() {
    let table: &[(OnDown, &str, Going, Fate)] = &[
        (OnDown::Keep, "by its checks", BY_CHECKS, Fate::GoesOn),
        (OnDown::Keep, "by its owner", BY_OWNER, Fate::Reset),
        (OnDown::Keep, "removed", REMOVED, Fate::Reset),
        (OnDown::Reset, "by its checks", BY_CHECKS, Fate::Reset),
        (OnDown::Reset, "by its owner", BY_OWNER, Fate::Reset),
        (OnDown::Reset, "draining", DRAINING, Fate::GoesOn),
        (OnDown::Rehome, "draining by its checks", DRAINING_BY_CHECKS, Fate::GoesOn),
        (OnDown::Rehome, "of weight 0", WEIGHTLESS, Fate::GoesOn),
        (OnDown::Rehome, "by its checks", BY_CHECKS, Fate::Reset),
        (OnDown::Rehome, "removed", REMOVED, Fate::Reset),
    ];
    for (policy, how, goes, fate) in table {
        for (vip, service, client, first) in TCP {
            for swept in [false, true] {
                let mut rig = outspoken();
                rig.change(|plan| plan.service(service).on_down = *policy);
                let conns: Vec<Conn> = (0..40).map(|n| Conn::open(&mut rig, &client(n), vip)).collect();
                rig.change(|plan| goes(plan, service, first));
                if swept {
                    rig.sweep();
                }
                for (n, conn) in conns.iter().enumerate() {
                    if node(conn) != first || *fate == Fate::GoesOn {
                        conn.to_node(&mut rig, TCP_ACK);
                        conn.to_client(&mut rig, TCP_ACK);
                        continue;
                    }
                    // Who speaks first is told, of the sequence number it acknowledged.
                    if n % 2 == 0 {
                        let told = conn.out(&mut rig, TCP_ACK).to_client();
                        assert_eq!((told.src, told.dst), (conn.vip.parse().unwrap(), conn.client.parse().unwrap()));
                        assert_eq!(told.flags, TCP_RST, "{policy:?} {how}");
                    } else {
                        let told = rig.back(&conn.reply(TCP_ACK).payload(b"late").bytes()).to_node();
                        assert_eq!((told.src, told.dst, told.flags), (conn.at_node.src, conn.at_node.dst, TCP_RST));
                    }
                    if *policy == OnDown::Rehome {
                        conn.out(&mut rig, TCP_ACK).dropped(DropReason::OutOfState);
                    } else {
                        assert_eq!(conn.out(&mut rig, TCP_ACK).to_client().flags, TCP_RST, "as often as asked");
                    }
                    assert_ne!(node(&Conn::open(&mut rig, &conn.client, vip)), first, "a SYN finds another");
                }
                rig.check();
            }
        }
    }
}

#[test]
fn a_rst_is_what_a_host_without_the_connection_sends() {
    for (vip, service, client, first) in TCP {
        let mut rig = outspoken();
        let conns: Vec<Conn> = (0..40).map(|n| Conn::open(&mut rig, &client(n), vip)).collect();
        rig.change(|plan| BY_OWNER(plan, service, first));
        let mut lost = conns.iter().filter(|conn| node(conn) == first);
        let l4 = |bytes: &[u8]| if bytes[12..14] == [0x86, 0xdd] { 54 } else { 34 };
        let number = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        // RFC 9293 section 3.10.7.1: of the number acknowledged, acknowledging nothing.
        let with_ack = lost.next().unwrap().request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (77, 99)).payload(b"abc");
        let out = rig.front(&with_ack.bytes());
        out.to_client();
        let tcp = l4(&out.bytes);
        assert_eq!((number(&out.bytes, tcp + 4), number(&out.bytes, tcp + 8)), (99, 0));
        assert_eq!(out.bytes.len(), tcp + 20, "no options, no data");
        // Without one: of 0, acknowledging data and FIN.
        let without = lost.next().unwrap().request(TCP_FIN).with(|pkt| pkt.seq = 500).payload(b"abc");
        let out = rig.front(&without.bytes());
        assert_eq!(out.to_client().flags, TCP_RST | TCP_ACK);
        assert_eq!((number(&out.bytes, tcp + 4), number(&out.bytes, tcp + 8)), (0, 504));
        // Never in answer to a RST.
        lost.next().unwrap().out(&mut rig, TCP_RST).dropped(DropReason::FlowRevoked);
    }
}

#[test]
fn rsts_are_limited_in_rate() {
    let mut rig = Rig::new(three());
    let conns: Vec<Conn> = (0..100).map(|n| Conn::open(&mut rig, &TCP[0].2(n), TO_WEB)).collect();
    rig.change(|plan| BY_OWNER(plan, WEB, "10.0.0.11"));
    let gone: Vec<&Conn> = conns.iter().filter(|conn| node(conn) == "10.0.0.11").collect();
    assert!(gone.len() > 20);
    let told = gone.iter().filter(|conn| matches!(conn.out(&mut rig, TCP_ACK).verdict, crate::verdict::Verdict::Tx(_)));
    let told = told.count();
    assert_eq!(told, 10, "a tenth of a second's worth at once");
    assert_eq!(rig.pipeline.stats().drops[DropReason::RateLimited as usize].get(), gone.len() as u64 - 10);
}

#[test]
fn an_unanswered_syn_goes_elsewhere() {
    for policy in [OnDown::Keep, OnDown::Reset, OnDown::Rehome] {
        let mut rig = outspoken();
        rig.change(|plan| plan.service(WEB).on_down = policy);
        let client = (0..).map(TCP[0].2).find(|client| {
            let there = rig.front(&Pkt::syn(client, TO_WEB).bytes()).to_node();
            there.dst.ip().to_string() == "10.0.0.12"
        });
        rig.change(|plan| plan.health("10.0.0.12", BackendState::Down));
        let again = rig.front(&Pkt::syn(&client.unwrap(), TO_WEB).bytes()).to_node();
        assert_ne!(again.dst.ip().to_string(), "10.0.0.12", "{policy:?}");
        rig.check();
    }
}

/// All of a flood are half-open once the node has answered.
#[test]
fn half_open_connections_stay_in_their_pool_when_the_backend_goes() {
    for (policy, goes) in [(OnDown::Keep, REMOVED), (OnDown::Keep, BY_OWNER), (OnDown::Reset, BY_CHECKS)] {
        let mut rig = outspoken();
        rig.change(|plan| plan.service(WEB).on_down = policy);
        let clients =
            (0..60).map(TCP[0].2).map(|client| (rig.front(&Pkt::syn(&client, TO_WEB).bytes()).to_node(), client));
        let conns: Vec<Conn> = clients
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(at_node, client)| Conn { client, vip: TO_WEB.into(), at_node })
            .filter(|conn| node(conn) == "10.0.0.11")
            .collect();
        for conn in &conns {
            rig.back(&conn.reply(TCP_SYN | TCP_ACK).bytes()).to_client();
        }
        rig.change(|plan| goes(plan, WEB, "10.0.0.11"));
        rig.sweep();
        rig.check();
        assert!(rig.said.is_empty(), "a flood's addresses hear nothing");
        assert_eq!(rig.pipeline.flows_v4().counts().established, 0);
        // Who was not made up is told, and finds another node.
        let told = conns[0].out(&mut rig, TCP_ACK).to_client();
        assert_eq!(told.flags, TCP_RST);
        let told = rig.back(&conns[1].reply(TCP_SYN | TCP_ACK).bytes()).to_node();
        assert_eq!((told.dst, told.flags & TCP_RST), (conns[1].at_node.dst, TCP_RST));
        assert_ne!(node(&Conn::open(&mut rig, &conns[0].client, TO_WEB)), "10.0.0.11");
        rig.check();
    }
}

/// One the node has answered is a connection already: its client is told.
#[test]
fn an_answered_syn_is_reset() {
    let mut rig = outspoken();
    rig.change(|plan| plan.service(WEB).on_down = OnDown::Reset);
    let half: Vec<Conn> = (0..20)
        .map(|n| {
            let client = TCP[0].2(n);
            let at_node = rig.front(&Pkt::syn(&client, TO_WEB).bytes()).to_node();
            rig.back(&Pkt::answer(&at_node, TCP_SYN | TCP_ACK).bytes()).to_client();
            Conn { client, vip: TO_WEB.into(), at_node }
        })
        .collect();
    rig.change(|plan| BY_CHECKS(plan, WEB, "10.0.0.11"));
    let mut gone = half.iter().filter(|conn| node(conn) == "10.0.0.11");
    let conn = gone.next().expect("one of twenty");
    assert_eq!(conn.out(&mut rig, TCP_ACK).to_client().flags, TCP_RST);
    // And is no longer one of the node's when it asks anew.
    assert_ne!(node(&Conn::open(&mut rig, &conn.client, TO_WEB)), "10.0.0.11");
    rig.check();
}

/// Half closed it is not closed: a SYN, a new one's or an old one's, is for the node to judge.
#[test]
fn a_syn_of_a_half_closed_connection_stays_where_it_is() {
    let mut rig = outspoken();
    let conn = Conn::open(&mut rig, &TCP[0].2(1), TO_WEB);
    conn.to_node(&mut rig, TCP_FIN | TCP_ACK);
    let at = node(&conn);
    rig.change(|plan| DRAINING(plan, WEB, &at));
    let again = rig.front(&Pkt::syn(&conn.client, TO_WEB).with(|pkt| pkt.seq = 500_000).bytes()).to_node();
    assert_eq!((again.src, again.dst), (conn.at_node.src, conn.at_node.dst));
    rig.check();
}

#[test]
fn udp_of_a_draining_backend_goes_on() {
    let mut rig = Rig::new(three());
    let ask = |rig: &mut Rig, n: u16| rig.front(&Pkt::udp(&UDP[0].2(n), TO_DNS).bytes()).to_node().dst;
    let before: Vec<_> = (0..20).map(|n| ask(&mut rig, n)).collect();
    rig.change(|plan| DRAINING(plan, DNS, "10.0.0.11"));
    assert_eq!((0..20).map(|n| ask(&mut rig, n)).collect::<Vec<_>>(), before);
}

#[test]
fn udp_goes_elsewhere_at_once() {
    for (how, goes) in [("by its checks", BY_CHECKS), ("by its owner", BY_OWNER), ("removed", REMOVED)] {
        for (vip, service, client, first) in UDP {
            let mut rig = Rig::new(three());
            let ask = |rig: &mut Rig, n: u16| rig.front(&Pkt::udp(&client(n), vip).payload(b"?").bytes()).to_node();
            let before: Vec<Seen> = (0..30)
                .map(|n| {
                    let seen = ask(&mut rig, n);
                    rig.back(&Pkt::answer(&seen, 0).bytes()).to_client();
                    ask(&mut rig, n)
                })
                .collect();
            rig.change(|plan| goes(plan, service, first));
            for (n, before) in (0..).zip(&before) {
                let after = ask(&mut rig, n);
                if before.dst.ip().to_string() == first {
                    assert_ne!(after.dst.ip().to_string(), first, "{how}");
                    // The old node's late answer is nobody's; the new one's arrives.
                    rig.back(&Pkt::answer(before, 0).bytes()).dropped(DropReason::NoFlow);
                    let answer = rig.back(&Pkt::answer(&after, 0).bytes()).to_client();
                    assert_eq!((answer.src, answer.dst), (vip.parse().unwrap(), client(n).parse().unwrap()));
                } else {
                    assert_eq!((after.src, after.dst), (before.src, before.dst));
                }
            }
            rig.sweep();
            let slot = rig.pipeline.view.tables.services.iter().flatten().find(|s| &*s.name == service).unwrap().slot;
            let counted = rig.pipeline.stats().services[slot as usize].packets.get();
            assert_eq!(counted, 30 * 4 + before.iter().filter(|b| b.dst.ip().to_string() == first).count() as u64);
            rig.check();
        }
    }
}

/// Shares of new flows by node.
fn shares(rig: &mut Rig, vip: &str, count: u16) -> BTreeMap<String, u16> {
    let mut shares = BTreeMap::new();
    for n in 0..count {
        let client = if vip.starts_with('[') {
            format!("[2001:db8:9::{:x}]:{}", n % 250 + 1, 3000 + n)
        } else {
            format!("192.0.2.{}:{}", n % 250 + 1, 3000 + n)
        };
        let seen = rig.front(&Pkt::syn(&client, vip).bytes()).to_node();
        *shares.entry(seen.dst.ip().to_string()).or_default() += 1;
    }
    shares
}

fn shares_from(rig: &mut Rig, vip: &str, first: u16, count: u16) -> BTreeMap<String, u16> {
    let host = if vip.starts_with('[') { "[2001:db8:8::1]" } else { "192.0.2.200" };
    let mut shares = BTreeMap::new();
    for n in first..first + count {
        let seen = rig.front(&Pkt::syn(&format!("{host}:{}", 3000 + n), vip).bytes()).to_node();
        *shares.entry(seen.dst.ip().to_string()).or_default() += 1;
    }
    shares
}

fn service_named<'a>(rig: &'a Rig, name: &str) -> &'a Service {
    rig.pipeline.view.tables.services.iter().flatten().find(|service| &*service.name == name).unwrap()
}

/// Nobody speaks, and both ends hear of it all the same; of a node that is removed only the clients.
#[test]
fn both_ends_of_an_idle_connection_are_told() {
    for (how, goes, node_told) in
        [("by its checks", BY_CHECKS, true), ("by its owner", BY_OWNER, true), ("removed", REMOVED, false)]
    {
        for (vip, service, client, first) in TCP {
            let mut rig = outspoken();
            rig.change(|plan| {
                plan.service(service).on_down = OnDown::Reset;
                plan.service(service).scheduler = Scheduler::Wlc;
            });
            let conns: Vec<Conn> = (0..60).map(|n| Conn::open(&mut rig, &client(n), vip)).collect();
            rig.change(|plan| goes(plan, service, first));
            rig.sweep();
            let mut expected: Vec<(String, String)> = Vec::new();
            for conn in conns.iter().filter(|conn| node(conn) == first) {
                expected.push((conn.vip.clone(), conn.client.clone()));
                if node_told {
                    expected.push((conn.at_node.src.to_string(), conn.at_node.dst.to_string()));
                }
            }
            let said = std::mem::take(&mut rig.said);
            let mut told: Vec<(String, String)> = said
                .iter()
                .map(|out| testkit::valid(&out.bytes))
                .map(|seen| {
                    assert_ne!(seen.flags & TCP_RST, 0);
                    (seen.src.to_string(), seen.dst.to_string())
                })
                .collect();
            expected.sort();
            told.sort();
            assert!(expected.len() >= 20);
            assert_eq!(told, expected, "{how}: each end once");
            rig.sweep();
            assert!(rig.said.is_empty(), "{how}: once is enough");
            rig.check();
            rig.wait(100);
            rig.sweep();
            let left = [rig.pipeline.v4.flows.counts().established, rig.pipeline.v6.flows.counts().established];
            assert_eq!(left.iter().sum::<u32>() as usize, 60 - conns.iter().filter(|c| node(c) == first).count());
        }
    }
}
