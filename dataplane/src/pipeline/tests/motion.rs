//! Backends in motion: what happens to flows of one that goes, to the share of one that comes, and
//! whom the checks are believed about.

use std::collections::BTreeMap;

use penstock_configs::desired::{BackendState, OnDown, Scheduler};

use super::*;
use crate::clock::Now;
use crate::pipeline::PipelineConfig;
use crate::pipeline::testkit::{self, down, draining};
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

const SCHEDULERS: [Scheduler; 10] = [
    Scheduler::Maglev,
    Scheduler::Rr,
    Scheduler::Wrr,
    Scheduler::Lc,
    Scheduler::Wlc,
    Scheduler::Sh,
    Scheduler::Dh,
    Scheduler::Sed,
    Scheduler::Nq,
    Scheduler::RandomTwoChoices,
];

#[test]
fn no_scheduler_gives_new_flows_to_who_takes_none() {
    for scheduler in SCHEDULERS {
        for (vip, service, client, _) in TCP {
            let mut rig = Rig::new(three());
            rig.change(|plan| plan.service(service).scheduler = scheduler);
            let conns: Vec<Conn> = (0..20).map(|n| Conn::open(&mut rig, &client(n), vip)).collect();
            rig.change(|plan| {
                let backends = &mut plan.service(service).backends;
                draining(&mut backends[0]);
                backends[1].weight = 0;
            });
            for conn in &conns {
                conn.to_node(&mut rig, TCP_ACK);
                conn.to_client(&mut rig, TCP_ACK);
            }
            let shares = shares(&mut rig, vip, 60);
            assert!(shares.len() == 1 && shares.keys().all(|node| node.ends_with("13")), "{scheduler:?}: {shares:?}");
            rig.check();
        }
    }
}

#[test]
fn turns_are_exact_and_go_on_across_reloads() {
    for (vip, service, ..) in TCP {
        for (scheduler, weights, expected) in
            [(Scheduler::Rr, [1, 5, 1], [60, 60, 60]), (Scheduler::Wrr, [3, 2, 1], [90, 60, 30])]
        {
            let mut rig = Rig::new(three());
            rig.change(|plan| {
                let service = plan.service(service);
                service.scheduler = scheduler;
                service.backends.iter_mut().zip(weights).for_each(|(backend, weight)| backend.weight = weight);
            });
            let mut sum = BTreeMap::<String, u16>::new();
            for part in 0..10 {
                for (node, count) in shares_from(&mut rig, vip, part * 18, 18) {
                    *sum.entry(node).or_default() += count;
                }
                rig.change(|_| {});
            }
            let sum: Vec<u16> = sum.into_values().collect();
            for (count, expected) in sum.iter().zip(expected) {
                // Where it began may be in the middle of a round.
                assert!(count.abs_diff(expected) <= 1, "{scheduler:?}: {sum:?}");
            }
        }
    }
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

/// Long-held connections on one node: the others get what comes until all have as many, through
/// transitions, closings, evictions, expiry, reloads and a change of scheduler.
#[test]
fn counts_follow_every_way_a_flow_can_go() {
    for (vip, service, client, first) in TCP {
        let mut rig = Rig::new(three());
        let counts = |rig: &Rig| {
            let service = service_named(rig, service);
            let share =
                if vip.starts_with('[') { rig.pipeline.v6.flows.share() } else { rig.pipeline.v4.flows.share() };
            let load = |slot: &u32| (share.load(*slot).active, share.load(*slot).inactive);
            service.loads.iter().map(load).collect::<Vec<_>>()
        };
        let conns: Vec<Conn> = (0..30).map(|n| Conn::open(&mut rig, &client(n), vip)).collect();
        rig.change(|plan| plan.service(service).scheduler = Scheduler::Wlc);
        rig.sweep();
        let on = |n: usize| conns.iter().filter(|conn| node(conn).ends_with(&format!("1{}", n + 1))).count() as u32;
        assert_eq!(counts(&rig), [(on(0), 0), (on(1), 0), (on(2), 0)], "flows there were are counted in a round");
        rig.check();
        // Another service comes first: slots stay.
        rig.change(|plan| {
            plan.serve("203.0.113.1:80/tcp", &["10.0.0.5:80"]).scheduler = Scheduler::Lc;
            plan.services.rotate_right(1);
        });
        assert_eq!(counts(&rig), [(on(0), 0), (on(1), 0), (on(2), 0)]);
        // Closing flows are inactive, closed and expired ones are none.
        let closing: Vec<&Conn> = conns.iter().filter(|conn| node(conn) == first).take(3).collect();
        closing.iter().for_each(|conn| conn.close(&mut rig));
        assert_eq!(counts(&rig)[0], (on(0) - 3, 3));
        rig.check();
        // A SYN opens a closed one again: an active one.
        rig.front(&Pkt::syn(&closing[0].client, vip).with(|pkt| pkt.seq = 900_000).bytes()).to_node();
        assert_eq!(counts(&rig)[0], (on(0) - 2, 2));
        rig.wait(70);
        rig.sweep();
        assert_eq!(counts(&rig)[0], (on(0) - 3, 0), "time wait and the half-open one are over");
        // A flood of SYNs evicts its own.
        shares(&mut rig, vip, 2500);
        let sum: u32 = counts(&rig).iter().map(|(active, _)| active).sum();
        assert_eq!(sum, 27 + 1024, "as many half-open ones as the pool has");
        let least = counts(&rig).iter().map(|(active, _)| *active).min().unwrap();
        let most = counts(&rig).iter().map(|(active, _)| *active).max().unwrap();
        assert!(most - least <= 2, "evened out: {:?}", counts(&rig));
        rig.check();
        // Revoked with their backend, uncounted with their scheduler.
        rig.change(|plan| BY_OWNER(plan, service, first));
        rig.sweep();
        assert_eq!(counts(&rig)[0], (0, 0));
        rig.change(|plan| plan.service(service).scheduler = Scheduler::Maglev);
        rig.sweep();
        rig.check();
        let share = if vip.starts_with('[') { rig.pipeline.v6.flows.share() } else { rig.pipeline.v4.flows.share() };
        let left: u32 = (1..=share.slots()).map(|slot| share.load(slot).active + share.load(slot).inactive).sum();
        assert_eq!(left, 0, "nothing is left behind");
    }
}

fn service_named<'a>(rig: &'a Rig, name: &str) -> &'a Service {
    rig.pipeline.view.tables.services.iter().flatten().find(|service| &*service.name == name).unwrap()
}

#[test]
fn the_last_ones_stay_whatever_the_checks_say() {
    for scheduler in SCHEDULERS {
        let mut rig = Rig::new(three());
        rig.change(|plan| plan.service(WEB).scheduler = scheduler);
        let conns: Vec<Conn> = (0..20).map(|n| Conn::open(&mut rig, &TCP[0].2(n), TO_WEB)).collect();
        for node in ["10.0.0.11", "10.0.0.12"] {
            rig.change(|plan| plan.health(node, BackendState::Down));
            assert!(!service_named(&rig, WEB).panic, "one is left");
        }
        assert_eq!(shares_from(&mut rig, TO_WEB, 0, 30).len(), 1, "{scheduler:?}");
        rig.change(|plan| plan.health("10.0.0.13", BackendState::Down));
        assert!(service_named(&rig, WEB).panic);
        assert!(service_named(&rig, WEB).set.backends.iter().all(|b| b.checked == BackendState::Down), "still said");
        // By the VIP there is one, whoever asks; by the client's address as many as there are addresses.
        let seen = shares(&mut rig, TO_WEB, 200).len();
        assert_eq!(seen, if scheduler == Scheduler::Dh { 1 } else { 3 }, "{scheduler:?}");
        conns.iter().for_each(|conn| drop(conn.to_node(&mut rig, TCP_ACK)));
        rig.change(|plan| plan.health("10.0.0.12", BackendState::Active));
        assert!(!service_named(&rig, WEB).panic, "believed again");
    }
}

#[test]
fn the_panic_threshold_is_of_those_the_owner_wants() {
    let panics = |threshold: u8, down_by_checks: usize, drained: usize| {
        let mut plan = Plan::default();
        let places: Vec<String> = (1..=10).map(|n| format!("10.0.0.{n}:80")).collect();
        let service = plan.serve(WEB, &places.iter().map(String::as_str).collect::<Vec<_>>());
        service.panic_threshold = Some(threshold);
        // One more that its owner wants down is never used.
        service.backends.push(Plan::backend("10.0.0.99:80"));
        down(service.backends.last_mut().unwrap());
        plan.snat(SNAT, [1024, 65535]);
        for n in 1..=down_by_checks {
            plan.health(&format!("10.0.0.{n}"), BackendState::Down);
        }
        for n in 0..drained {
            plan.health(&format!("10.0.0.{}", 10 - n), BackendState::Draining);
        }
        let rig = Rig::new(plan);
        let service = service_named(&rig, WEB);
        assert!(!service.set.backends[10].takes_new(), "the owner's wish is not the checks'");
        assert!((0..drained).all(|n| !service.set.backends[9 - n].takes_new()), "who drains says so itself");
        (service.panic, service.set.backends.iter().filter(|backend| backend.takes_new()).count())
    };
    let table = [
        (50, 0, 0, (false, 10)),
        (50, 5, 0, (false, 5)),
        (50, 6, 0, (true, 10)),
        (0, 9, 0, (false, 1)),
        (0, 10, 0, (true, 10)),
        (100, 1, 0, (true, 10)),
        // Of eight that do not drain five are down.
        (50, 4, 2, (false, 4)),
        (50, 5, 2, (true, 8)),
        (50, 0, 10, (false, 0)),
    ];
    for (threshold, down, drained, expected) in table {
        assert_eq!(panics(threshold, down, drained), expected, "{threshold} %, {down} down, {drained} draining");
    }
}

/// Tenths of their weights the backends of WEB take.
fn ramps(rig: &Rig) -> Vec<u8> {
    service_named(rig, WEB).set.backends.iter().map(|backend| backend.ramp).collect()
}

fn at(rig: &mut Rig, seconds: u64) {
    rig.plan.now = Now::from_secs(seconds);
    rig.apply();
}

#[test]
fn a_backend_that_comes_starts_slowly() {
    for scheduler in [Scheduler::Maglev, Scheduler::Wrr] {
        let mut rig = Rig::with(
            three(),
            &PipelineConfig {
                flows_v4: crate::flow::Capacity { established: 16, embryonic: 30_000 },
                ..testkit::config(0, 1)
            },
        );
        rig.change(|plan| {
            plan.service(WEB).scheduler = scheduler;
            plan.service(WEB).slow_start = Some(20);
        });
        assert_eq!(ramps(&rig), [10; 3], "a service as it first comes");
        rig.plan.health("10.0.0.12", BackendState::Down);
        at(&mut rig, 100);
        rig.plan.health("10.0.0.12", BackendState::Active);
        at(&mut rig, 110);
        let (mut steps, mut worst) = (Vec::new(), 0.0_f64);
        loop {
            let mut got = shares(&mut rig, TO_WEB, 2000);
            rig.wait(20);
            rig.sweep();
            let ramp = f64::from(ramps(&rig)[1]) / 10.0;
            let expected = 2000.0 * ramp / (2.0 + ramp);
            let got = f64::from(got.remove("10.0.0.12").unwrap_or(0));
            assert!((got - expected).abs() < 100.0, "{scheduler:?}: {got} at {ramp}, not {expected}");
            steps.push(ramps(&rig)[1]);
            let Some(due) = rig.compiler.next_step() else { break };
            assert!(steps.len() <= 10, "bounded");
            rig.plan.now = due;
            rig.apply();
            if let Some(moved) = service_named(&rig, WEB).moved {
                worst = worst.max(f64::from(moved.excess()) / f64::from(moved.size));
                assert!(moved.share() < 0.06, "{moved:?}: a step is a tenth of a third");
            }
        }
        assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "{scheduler:?}");
        println!("{scheduler:?}: {worst:.4} of the slots moved for nothing in the worst step");
        assert!(worst < 0.02);
    }
}

#[test]
fn a_slow_start_survives_changes_and_needs_others() {
    let mut rig = Rig::new(three());
    rig.change(|plan| plan.service(WEB).slow_start = Some(100));
    at(&mut rig, 1000);
    // One that is new.
    rig.plan.service(WEB).backends.push(Plan::backend("10.0.0.14:31443"));
    at(&mut rig, 1001);
    assert_eq!(ramps(&rig), [10, 10, 10, 1]);
    // A change of something else does not begin it anew; time does not pass by itself.
    rig.change(|plan| plan.service(DNS).backends.truncate(1));
    assert_eq!(ramps(&rig), [10, 10, 10, 1]);
    at(&mut rig, 1041);
    assert_eq!(ramps(&rig), [10, 10, 10, 4]);
    // Down and back: from the start.
    rig.plan.health("10.0.0.14", BackendState::Down);
    at(&mut rig, 1042);
    rig.plan.health("10.0.0.14", BackendState::Active);
    at(&mut rig, 1043);
    assert_eq!(ramps(&rig), [10, 10, 10, 1]);
    // The others go: it takes all there is.
    for node in ["10.0.0.11", "10.0.0.12", "10.0.0.13"] {
        rig.plan.health(node, BackendState::Down);
    }
    at(&mut rig, 1044);
    assert_eq!(ramps(&rig)[3], 10);
    assert_eq!(rig.compiler.next_step(), None);
    // And is believed warm when they come back, which start slowly themselves.
    rig.plan.health("10.0.0.11", BackendState::Active);
    at(&mut rig, 1045);
    assert_eq!((ramps(&rig)[0], ramps(&rig)[3]), (1, 10));
}

/// A set that services use by different schedulers has one Maglev table, not one for each of them.
#[test]
fn sets_are_shared_by_what_schedulers_need() {
    let mut rig = Rig::new(three());
    rig.change(|plan| {
        for (n, scheduler) in SCHEDULERS.into_iter().enumerate() {
            let backends = plan.service(WEB).backends.clone();
            let service = plan.serve(&format!("203.0.113.{}:80/tcp", 20 + n), &[]);
            (service.backends, service.scheduler) = (backends, scheduler);
        }
    });
    let set = |n: usize| &service_named(&rig, &format!("203.0.113.{}:80/tcp", 20 + n)).set;
    assert!(std::sync::Arc::ptr_eq(set(0), &service_named(&rig, WEB).set), "one table for all who hash");
    for n in [1, 2, 3, 4, 7, 8, 9] {
        assert!(std::sync::Arc::ptr_eq(set(1), set(n)), "one list for all who need no more");
        assert!(set(n).maglev.is_none(), "{:?} needs no table", SCHEDULERS[n]);
    }
    let moved = |rig: &Rig, n: usize| service_named(rig, &format!("203.0.113.{}:80/tcp", 20 + n)).moved;
    rig.change(|plan| plan.health("10.0.0.12", BackendState::Down));
    assert!(moved(&rig, 0).is_some_and(|moved| moved.slots > 0));
    assert!((1..10).all(|n| moved(&rig, n).is_none()), "what moves without a table is not known");
    // To another scheduler and back: tables that are not each other's successors are not compared.
    rig.change(|plan| plan.service("203.0.113.20:80/tcp").scheduler = Scheduler::Rr);
    assert!(moved(&rig, 0).is_none());
    rig.change(|plan| plan.service("203.0.113.20:80/tcp").scheduler = Scheduler::Maglev);
    assert!(moved(&rig, 0).is_none());
}

#[test]
fn more_to_count_than_there_is_room_for_is_refused() {
    let places: Vec<String> = (1..=30).map(|n| format!("10.0.1.{n}:80")).collect();
    let compile = |n: usize| {
        let mut plan = three();
        plan.service(WEB).scheduler = Scheduler::Sed;
        plan.service(DNS).scheduler = Scheduler::Nq;
        let places: Vec<&str> = places[..n].iter().map(String::as_str).collect();
        plan.serve("203.0.113.50:80/tcp", &places).scheduler = Scheduler::Lc;
        plan.serve("203.0.113.51:80/tcp", &places).scheduler = Scheduler::RandomTwoChoices;
        plan.serve("203.0.113.52:80/tcp", &places);
        // Those of the other family have room of their own.
        plan.service(WEB6).scheduler = Scheduler::Wlc;
        plan.compile(&mut crate::tables::Compiler::default()).map(drop)
    };
    let refused = compile(30).unwrap_err();
    assert_eq!(refused, crate::tables::compile::CompileError::TooManyCounted { wanted: 66, limit: 64 });
    assert!(refused.to_string().contains("limits.counted_backends"));
    assert_eq!(compile(29), Ok(()));
}

/// The next process counts the flows it finds, once each, in one round of its sweep.
#[test]
fn counts_outlive_the_process() {
    use crate::persist::Store;
    let dir = tempfile::tempdir().unwrap();
    let config = testkit::config(0, 1);
    let open = || Store::open(&dir.path().join("flows.0"), config.shape(), [7; 16], [1, 2]).unwrap();
    let mut plan = three();
    plan.service(WEB).scheduler = Scheduler::Wlc;
    let counts = |rig: &Rig| {
        let share = rig.pipeline.v4.flows.share();
        service_named(rig, WEB).loads.iter().map(|slot| share.load(*slot)).collect::<Vec<_>>()
    };
    let mut rig = Rig::over(plan.clone(), &config, open());
    let conns: Vec<Conn> = (0..30).map(|n| Conn::open(&mut rig, &TCP[0].2(n), TO_WEB)).collect();
    conns.iter().take(6).for_each(|conn| conn.close(&mut rig));
    let before = counts(&rig);
    assert_eq!(
        before.iter().map(|load| (load.active, load.inactive)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (24, 6)
    );
    drop(rig);
    let mut rig = Rig::over(plan, &config, open());
    conns[7].to_node(&mut rig, TCP_ACK);
    rig.check();
    rig.sweep();
    assert_eq!(counts(&rig), before);
    rig.check();
}

/// Two whole workers, packets coming in by either: each service's flows even out over both, though each
/// worker chooses for itself.
#[test]
fn workers_see_each_others_flows() {
    use crate::pipeline::testkit::{Farm, FarmConfig};
    for scheduler in [Scheduler::Wlc, Scheduler::Lc, Scheduler::Sed, Scheduler::Nq, Scheduler::RandomTwoChoices] {
        let mut plan = three();
        for service in &mut plan.services {
            service.scheduler = scheduler;
            draining(&mut service.backends[0]);
        }
        let mut farm = Farm::new(plan, &FarmConfig { workers: 2, ..FarmConfig::default() });
        let open = |farm: &mut Farm, first: usize, count: usize| {
            let mut nodes = BTreeMap::<String, usize>::new();
            for n in first..first + count {
                let (client, vip) = if n % 2 == 0 {
                    (format!("198.51.100.7:{}", 2000 + n), TO_WEB)
                } else {
                    (format!("[2001:db8:2::7]:{}", 2000 + n), TO_WEB6)
                };
                farm.fronts[n % 2].inject(&Pkt::syn(&client, vip).bytes());
                farm.now.ns += 3_000_000;
                farm.round();
                farm.round();
                for frame in farm.backs.iter_mut().flat_map(|back| back.take_all()) {
                    let Ok(seen) = testkit::look(&frame) else { continue };
                    if seen.flags == TCP_SYN {
                        *nodes.entry(seen.dst.ip().to_string()).or_default() += 1;
                    }
                }
                farm.fronts.iter_mut().for_each(|front| drop(front.take_all()));
            }
            nodes
        };
        let before = open(&mut farm, 0, 80);
        assert!(before.values().all(|count| count.abs_diff(20) <= 4) && before.len() == 4, "{scheduler:?}: {before:?}");
        // What comes new gets what comes, whichever worker it comes to.
        farm.plan.services.iter_mut().for_each(|service| service.backends[0].state = BackendState::Active);
        farm.publish();
        farm.round();
        let after = open(&mut farm, 80, 36);
        let new = after.get("10.0.0.11").unwrap_or(&0) + after.get("fd00::11").unwrap_or(&0);
        let least = if scheduler == Scheduler::RandomTwoChoices { 17 } else { 34 };
        assert!(new >= least, "{scheduler:?}: {after:?}");
    }
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
