//! Flows across changes of the configuration.

use std::collections::BTreeMap;

use penstock_configs::desired::{BackendState, OnDown};

use super::*;
use crate::pipeline::PipelineConfig;
use crate::pipeline::testkit::{self, down, draining};
use crate::verdict::DropReason;
use crate::wire::TCP_RST;

/// Three nodes for one service.
fn three() -> Plan {
    let mut plan = Plan::default();
    plan.serve(WEB, &["10.0.0.11:31443", "10.0.0.12:31443", "10.0.0.13:31443"]);
    plan.snat(SNAT, [1024, 65535]);
    plan
}

/// A box that says as many errors and RSTs as there is need for.
fn outspoken() -> Rig {
    Rig::with(three(), &PipelineConfig { icmp_per_second: 1_000_000_000, ..testkit::config(0, 1) })
}

fn open_many(rig: &mut Rig, count: usize) -> Vec<Conn> {
    (0..count).map(|n| Conn::open(rig, &format!("198.51.{}.{}:{}", n / 200, n % 200 + 1, 2000 + n), TO_WEB)).collect()
}

/// Flows of `gone` end by name, the others go on with node and tuple.
fn only_its_flows_suffer(rig: &mut Rig, conns: &[Conn], gone: &str) {
    let mut lost = 0;
    for (n, conn) in conns.iter().enumerate() {
        if conn.at_node.dst.ip().to_string() == gone {
            lost += 1;
            let before = rig.pipeline.stats().drops[DropReason::FlowRevoked as usize].get();
            if n % 2 == 0 {
                let told = conn.out(rig, TCP_ACK).to_client();
                assert_eq!((told.src, told.dst), (conn.vip.parse().unwrap(), conn.client.parse().unwrap()));
                assert_eq!(told.flags, TCP_RST);
            } else {
                let told = rig.back(&conn.reply(TCP_ACK).bytes()).to_node();
                assert_eq!((told.src, told.dst, told.flags), (conn.at_node.src, conn.at_node.dst, TCP_RST));
            }
            assert_eq!(rig.pipeline.stats().drops[DropReason::FlowRevoked as usize].get(), before + 1);
            assert_eq!(conn.out(rig, TCP_ACK).to_client().flags, TCP_RST);
            let anew = rig.front(&Pkt::syn(&conn.client, &conn.vip).bytes()).to_node();
            assert_ne!(anew.dst.ip().to_string(), gone);
        } else {
            conn.to_node(rig, TCP_ACK);
            conn.to_client(rig, TCP_ACK);
        }
    }
    assert!(lost > conns.len() / 5, "{lost} flows were on {gone}");
    rig.check();
}

#[test]
fn a_backend_removed() {
    let mut rig = outspoken();
    let conns = open_many(&mut rig, 300);
    rig.change(|plan| drop(plan.service(WEB).backends.remove(1)));
    only_its_flows_suffer(&mut rig, &conns, "10.0.0.12");
}

#[test]
fn a_backend_down_by_its_checks() {
    let mut rig = outspoken();
    rig.change(|plan| plan.service(WEB).on_down = OnDown::Reset);
    let conns = open_many(&mut rig, 300);
    rig.change(|plan| plan.health("10.0.0.13", BackendState::Down));
    only_its_flows_suffer(&mut rig, &conns, "10.0.0.13");
}

#[test]
fn a_backend_down_by_its_owner() {
    let mut rig = outspoken();
    let conns = open_many(&mut rig, 300);
    rig.change(|plan| down(&mut plan.service(WEB).backends[0]));
    only_its_flows_suffer(&mut rig, &conns, "10.0.0.11");
}

#[test]
fn draining_keeps_flows_and_takes_none() {
    for by_weight in [false, true] {
        let mut rig = Rig::new(three());
        let conns = open_many(&mut rig, 100);
        rig.change(|plan| {
            let backend = &mut plan.service(WEB).backends[0];
            if by_weight { backend.weight = 0 } else { draining(backend) }
        });
        for conn in &conns {
            conn.to_node(&mut rig, TCP_ACK);
            conn.to_client(&mut rig, TCP_ACK);
        }
        for n in 0..200 {
            let there = rig.front(&Pkt::syn(&format!("192.0.2.1:{}", 5000 + n), TO_WEB).bytes()).to_node();
            assert_ne!(there.dst.ip().to_string(), "10.0.0.11");
        }
    }
}

#[test]
fn changes_elsewhere_touch_nothing() {
    let mut rig = Rig::new(three());
    let conns = open_many(&mut rig, 100);
    let slot = |rig: &Rig| rig.pipeline.flows_v4().record(0).node_slot;
    let before = slot(&rig);
    rig.change(|plan| {
        plan.services.insert(0, plan.clone().serve("203.0.113.1:80/tcp", &["10.0.0.5:80", "10.0.0.12:80"]).clone());
    });
    rig.change(|plan| plan.remove("203.0.113.1:80/tcp"));
    rig.change(|plan| {
        plan.serve("203.0.113.2:80/udp", &["10.0.0.6:80"]);
    });
    rig.sweep();
    assert_eq!(slot(&rig), before, "nodes keep their numbers");
    for conn in &conns {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    assert_eq!(rig.pipeline.flows_v4().counts().established, 100);
    rig.check();
}

#[test]
fn source_ranges_hold_for_flows_there_are() {
    let mut rig = Rig::new(three());
    let inside = Conn::open(&mut rig, "198.51.100.7:5555", TO_WEB);
    let outside = Conn::open(&mut rig, "192.0.2.7:5555", TO_WEB);
    rig.change(|plan| plan.service(WEB).source_ranges = vec!["198.51.100.0/24".parse().unwrap()]);
    inside.to_node(&mut rig, TCP_ACK);
    inside.to_client(&mut rig, TCP_ACK);
    rig.back(&outside.reply(TCP_ACK).bytes()).dropped(DropReason::FlowRevoked);
    rig.front(&Pkt::syn("192.0.2.7:5555", TO_WEB).bytes()).dropped(DropReason::SourceDenied);
}

#[test]
fn a_service_removed_and_added_again() {
    let mut rig = Rig::new(three());
    let quick = Conn::open(&mut rig, CLIENT, TO_WEB);
    let backup = rig.plan.clone();
    rig.change(|plan| plan.remove(WEB));
    rig.plan = backup.clone();
    rig.apply();
    quick.to_node(&mut rig, TCP_ACK);
    quick.to_client(&mut rig, TCP_ACK);
    rig.change(|plan| plan.remove(WEB));
    rig.sweep();
    assert_eq!(rig.pipeline.flows_v4().counts().established, 0, "the sweep forgets what has no service");
    assert_eq!(quick.out(&mut rig, TCP_ACK).verdict, crate::verdict::Verdict::Kernel, "no VIP of ours any more");
    rig.plan = backup;
    rig.apply();
    quick.out(&mut rig, TCP_ACK).dropped(DropReason::OutOfState);
    Conn::open(&mut rig, CLIENT, TO_WEB);
    rig.check();
}

#[test]
fn snat_addresses_retired_and_taken_up_again() {
    let mut plan = three();
    plan.snat("10.0.0.2", [1024, 65535]);
    let mut rig = Rig::new(plan);
    let conns = open_many(&mut rig, 100);
    let of = |conn: &Conn| conn.at_node.src.ip().to_string();
    assert!(conns.iter().any(|conn| of(conn) == SNAT) && conns.iter().any(|conn| of(conn) == "10.0.0.2"));
    rig.change(|plan| {
        plan.snat.remove(0);
    });
    for conn in &conns {
        if of(conn) == SNAT {
            conn.out(&mut rig, TCP_ACK).dropped(DropReason::FlowRevoked);
            assert_eq!(of(&Conn::open(&mut rig, &conn.client, &conn.vip)), "10.0.0.2");
        } else {
            conn.to_node(&mut rig, TCP_ACK);
            conn.to_client(&mut rig, TCP_ACK);
        }
    }
    // Back, behind one more: numbers in records still mean the same addresses.
    rig.change(|plan| {
        plan.snat.clear();
        plan.snat("10.0.0.3", [1024, 65535]);
        plan.snat(SNAT, [1024, 65535]);
        plan.snat("10.0.0.2", [1024, 65535]);
    });
    for conn in conns.iter().filter(|conn| of(conn) == "10.0.0.2") {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.check();
}

#[test]
fn epochs_wrap() {
    let mut rig = Rig::new(Plan { maglev_max: 251, ..three() });
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    for n in 0..70_000 {
        let tables = rig.plan.compile(&mut rig.compiler).unwrap();
        assert_ne!(tables.epoch, 0, "an epoch that marks recovered flows");
        if n % 10_000 < 2 {
            rig.pipeline.adopt(std::sync::Arc::new(rig.plan.view(tables, n)));
            conn.to_node(&mut rig, TCP_ACK);
            conn.to_client(&mut rig, TCP_ACK);
        }
    }
}

#[test]
fn shares_are_even_and_removal_moves_little() {
    let mut rig = Rig::with(
        three(),
        &crate::pipeline::PipelineConfig {
            flows_v4: crate::flow::Capacity { established: 16, embryonic: 12_000 },
            ..crate::pipeline::testkit::config(0, 1)
        },
    );
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for n in 0..10_000 {
        let client = format!("198.51.{}.{}:{}", n / 2000, n / 10 % 200 + 1, 32_768 + n % 10);
        let there = rig.front(&Pkt::syn(&client, TO_WEB).bytes()).to_node();
        *shares.entry(there.dst.to_string()).or_default() += 1;
    }
    assert_eq!(shares.len(), 3);
    for (node, count) in &shares {
        assert!((3133..=3533).contains(count), "{node}: {count} of 10,000, not 33 % +- 2");
    }
    rig.change(|plan| drop(plan.service(WEB).backends.remove(2)));
    let tables = rig.plan.compile(&mut rig.compiler).unwrap();
    let moved = tables.services.iter().flatten().next().unwrap().moved.expect("the set has changed");
    let excess = f64::from(moved.excess()) / f64::from(moved.size);
    println!("removal of one of three, size by default: {moved:?}, {excess:.4} without need");
    assert!(excess < 0.01 && moved.share() < 0.35, "{moved:?}");

    // At the full size, by the tables alone.
    use crate::schedule::Kind;
    use crate::tables::{Backend, BackendSet};
    let backend = |n: u8| Backend {
        address: [10, 0, 0, n].into(),
        port: 31_443,
        weight: if n == 0 { 1 } else { 300 },
        state: if n == 0 { BackendState::Down } else { BackendState::Active },
        checked: BackendState::Active,
        unwanted: false,
        ramp: 10,
        node_slot: u16::from(n),
    };
    let old = BackendSet::build((0..4).map(backend).collect(), Kind::Maglev, 65_537);
    let new = BackendSet::build((0..3).map(backend).collect(), Kind::Maglev, 65_537);
    assert_eq!(old.maglev.size(), 65_537);
    let moved = new.moved_from(&old);
    let excess = f64::from(moved.excess()) / f64::from(moved.size);
    println!("removal of one of three at 65,537: {excess:.4} of the slots moved without need");
    assert!(excess < 0.01, "{excess}");
    assert!((moved.share() - 1.0 / 3.0).abs() < 0.02, "{}", moved.share());
}

/// More addresses than there are numbers, one after the other; flows of the one that stays are never touched.
#[test]
fn snat_addresses_come_and_go_without_end() {
    let mut rig = Rig::new(three());
    let staying = open_many(&mut rig, 20);
    for turn in 0..600_u32 {
        let address = std::net::Ipv4Addr::from(0x0a09_0000 + turn).to_string();
        rig.change(|plan| {
            plan.snat.truncate(1);
            plan.snat(&address, [1024, 65535]);
        });
        let passing: Vec<Conn> = (0..4)
            .map(|n| Conn::open(&mut rig, &format!("198.51.{}.{}:{}", turn % 250, n + 1, 9000 + turn), TO_WEB))
            .collect();
        for conn in &passing {
            conn.to_client(&mut rig, TCP_ACK);
        }
        if turn % 50 == 0 {
            rig.check();
        }
        rig.sweep();
    }
    for conn in &staying {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.check();
}
