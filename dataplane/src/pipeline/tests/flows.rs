//! Flows over time: expiry, ports that rest, floods, owners.

use std::collections::HashSet;

use super::*;
use crate::flow::Capacity;
use crate::pipeline::PipelineConfig;
use crate::pipeline::testkit::{FRONT, config};
use crate::verdict::{DropReason, Verdict, WorkerId};
use crate::wire::{TCP_RST, TCP_SYN};

fn flows(rig: &Rig) -> u32 {
    let (v4, v6) = (rig.pipeline.flows_v4().counts(), rig.pipeline.flows_v6().counts());
    v4.established + v4.embryonic + v6.established + v6.embryonic
}

#[test]
fn each_state_has_its_time() {
    type Story = fn(&mut Rig);
    let open: Story = |rig| {
        Conn::open(rig, CLIENT, TO_WEB);
    };
    let cases: [(&str, u64, Story); 8] = [
        ("SYN", 15, |rig| {
            rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
        }),
        ("SYN answered", 15, |rig| {
            let there = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
            rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
        }),
        ("established", 7440, open),
        ("half closed", 240, |rig| {
            Conn::open(rig, CLIENT6, TO_WEB6).to_node(rig, TCP_FIN | TCP_ACK);
        }),
        ("closed", 60, |rig| Conn::open(rig, CLIENT6, TO_WEB6).close(rig)),
        ("reset", 10, |rig| {
            Conn::open(rig, CLIENT, TO_WEB).to_node(rig, TCP_RST);
        }),
        ("UDP request", 15, |rig| {
            let there = rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node();
            rig.back(&Pkt::answer(&there, 0).bytes()).to_client();
        }),
        ("UDP stream", 300, |rig| {
            let there = rig.front(&Pkt::udp(CLIENT6, TO_DNS6).bytes()).to_node();
            rig.back(&Pkt::answer(&there, 0).bytes()).to_client();
            rig.front(&Pkt::udp(CLIENT6, TO_DNS6).bytes()).to_node();
        }),
    ];
    for (what, seconds, story) in cases {
        let mut rig = rig();
        story(&mut rig);
        assert_eq!(flows(&rig), 1, "{what}");
        // A whole sweep takes 2.5 s of the rig's time.
        rig.wait(seconds - 4);
        rig.sweep();
        assert_eq!(flows(&rig), 1, "{what}: forgotten before its {seconds} s");
        rig.wait(4);
        rig.sweep();
        assert_eq!(flows(&rig), 0, "{what}: still there after {seconds} s");
        rig.check();
    }
}

#[test]
fn a_packet_begins_the_time_anew() {
    let mut rig = rig();
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    for _ in 0..4 {
        rig.wait(7000);
        rig.sweep();
        conn.to_client(&mut rig, TCP_ACK);
    }
}

/// One SNAT port only.
fn one_port() -> Rig {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2000]);
    plan.serve("203.0.113.12:443/tcp", &["10.0.0.12:31443"]);
    Rig::new(plan)
}

const OTHER: &str = "198.51.100.8:6666";

#[test]
fn ports_rest_after_both_ends_have_closed() {
    let mut rig = one_port();
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    let syn = |seq: u32, stamp| Pkt::syn(OTHER, TO_WEB).with(|pkt| (pkt.seq, pkt.timestamp) = (seq, stamp)).bytes();
    rig.front(&syn(9000, None)).dropped(DropReason::SnatExhausted);
    // Towards another backend the same port is another tuple.
    let elsewhere = rig.front(&Pkt::syn(OTHER, "203.0.113.12:443").bytes()).to_node();
    assert_eq!(elsewhere.src.port(), 2000);
    conn.close(&mut rig);
    // The node's TIME_WAIT would not take these (RFC 6191): not later than the client's last 1002.
    for seq in [1002, 1001, 0, 1002_u32.wrapping_add(1 << 31)] {
        rig.front(&syn(seq, None)).dropped(DropReason::SnatExhausted);
    }
    rig.wait(58);
    rig.sweep();
    rig.wait(4);
    rig.sweep();
    assert_eq!(rig.front(&syn(5, None)).to_node().src.port(), 2000, "rested long enough");
    rig.check();
}

#[test]
fn a_resting_port_serves_a_syn_its_node_will_take() {
    for (closing, syn_seq, syn_stamp, taken) in [
        (None, 1003, None, true),
        (None, 1003, Some(1), true),
        (Some(500), 7, Some(501), true),
        (Some(500), 7, Some(500), false),
        (Some(500), 9000, Some(499), false),
        (Some(500), 9000, None, true),
    ] {
        let mut rig = one_port();
        let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
        rig.front(&conn.request(TCP_FIN | TCP_ACK).with(|pkt| pkt.timestamp = closing).bytes()).to_node();
        rig.back(&conn.reply(TCP_FIN | TCP_ACK).with(|pkt| pkt.ack = 1002).bytes()).to_client();
        let last = conn.request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack, pkt.timestamp) = (1002, 1002, closing));
        rig.front(&last.bytes()).to_node();
        let syn = Pkt::syn(OTHER, TO_WEB).with(|pkt| (pkt.seq, pkt.timestamp) = (syn_seq, syn_stamp));
        let out = rig.front(&syn.bytes());
        if taken {
            assert_eq!(out.to_node().src.port(), 2000);
            rig.front(&last.bytes()).dropped(DropReason::OutOfState);
        } else {
            out.dropped(DropReason::SnatExhausted);
        }
        rig.check();
    }
}

#[test]
fn the_clients_own_port_opens_anew_on_the_same_tuple() {
    let mut rig = rig();
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    conn.close(&mut rig);
    let again = Conn::open(&mut rig, CLIENT, TO_WEB);
    assert_eq!(again.at_node.src, conn.at_node.src);
    assert_eq!(flows(&rig), 1);
    // Not towards a backend that takes no new flows.
    again.close(&mut rig);
    rig.change(|plan| {
        let mut other = Plan::backend("10.0.0.12:31443");
        std::mem::swap(&mut other, &mut plan.service(WEB).backends[0]);
        crate::pipeline::testkit::draining(&mut other);
        plan.service(WEB).backends.push(other);
    });
    let moved = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    assert_eq!(moved.dst.to_string(), "10.0.0.12:31443");
    rig.check();
}

#[test]
fn a_service_with_short_timeouts_takes_no_ports_of_living_flows() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2000]);
    let quick = plan.serve("203.0.113.12:443/tcp", &["10.0.0.11:31443"]);
    quick.timeouts =
        Some(penstock_configs::desired::ServiceTimeouts { tcp_established: Some(60), ..Default::default() });
    let mut rig = Rig::new(plan);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    rig.wait(600);
    rig.front(&Pkt::syn(OTHER, "203.0.113.12:443").bytes()).dropped(DropReason::SnatExhausted);
    conn.to_client(&mut rig, TCP_ACK);
}

#[test]
fn a_million_syns_evict_no_established_flow() {
    let flows = Capacity { established: 1000, embryonic: 512 };
    let mut rig = Rig::with(plan(), &PipelineConfig { flows_v4: flows, ..config(0, 1) });
    let conns: Vec<Conn> = (0..1000)
        .map(|n| Conn::open(&mut rig, &format!("198.51.{}.{}:{}", n / 200, n % 200 + 1, 2000 + n), TO_WEB))
        .collect();
    let template = Pkt::syn("100.64.0.1:1", TO_WEB).bytes();
    for round in 0..1_000_000_u32 / 64 {
        let burst: Vec<Vec<u8>> = (0..64_u32)
            .map(|n| {
                let mut packet = template.clone();
                packet[26..30].copy_from_slice(&(0x6440_0000 + (round * 64 + n) / 60_000).to_be_bytes());
                packet[34..36].copy_from_slice(&(((round * 64 + n) % 60_000 + 1) as u16).to_be_bytes());
                packet
            })
            .collect();
        let slices: Vec<&[u8]> = burst.iter().map(Vec::as_slice).collect();
        let outs = rig.burst(FRONT, &slices, false);
        assert!(outs.iter().all(|out| matches!(out.verdict, Verdict::Tx(_))), "round {round}");
        // Some are followed by a RST, which must not make them matter.
        let mut reset = burst[0].clone();
        reset[47] = TCP_RST;
        rig.front(&reset);
        rig.now.ns += 30_000;
        rig.pipeline.upkeep(rig.now);
    }
    let counts = rig.pipeline.flows_v4().counts();
    assert_eq!((counts.established, counts.embryonic), (1000, 512));
    assert!(counts.evicted > 990_000, "{}", counts.evicted);
    for conn in &conns {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.check();
}

#[test]
fn young_embryos_stay_while_there_is_room() {
    let flows = Capacity { established: 1000, embryonic: 16 };
    let mut rig = Rig::with(plan(), &PipelineConfig { flows_v4: flows, ..config(0, 1) });
    let waiting = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    for n in 0..200 {
        Conn::open(&mut rig, &format!("198.51.100.9:{}", 3000 + n), TO_WEB);
    }
    assert_eq!(rig.pipeline.flows_v4().counts().evicted, 0);
    rig.back(&Pkt::answer(&waiting, TCP_SYN | TCP_ACK).bytes()).to_client();
}

#[test]
fn exhaustion_is_per_backend_and_ends_when_flows_do() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2099]);
    plan.snat("10.0.0.2", [3000, 3019]);
    let mut rig = Rig::new(plan);
    let stream = |rig: &mut Rig, host: u8, n: u16| {
        let ask = Pkt::udp(&format!("198.51.100.{host}:{}", 100 + n), TO_DNS).bytes();
        let there = rig.front(&ask).to_node();
        rig.back(&Pkt::answer(&there, 0).bytes()).to_client();
        rig.front(&ask).to_node();
        there.src
    };
    let mut used = HashSet::new();
    for n in 0..120 {
        let port = stream(&mut rig, 7, n);
        assert!(used.insert(port), "{port} issued twice");
    }
    rig.front(&Pkt::udp("198.51.100.7:99", TO_DNS).bytes()).dropped(DropReason::SnatExhausted);
    // The TCP service's ports are others.
    rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    rig.wait(301);
    // Timed out, though not swept yet: good enough for whoever needs a port.
    let mut again = HashSet::new();
    for n in 0..120 {
        assert!(again.insert(stream(&mut rig, 8, n)));
    }
    rig.check();
}

#[test]
fn closed_connections_make_room_for_those_that_begin() {
    let flows = Capacity { established: 24, embryonic: 8 };
    let mut rig = Rig::with(plan(), &PipelineConfig { flows_v4: flows, ..config(0, 1) });
    let open = |rig: &mut Rig, n: u32| Conn::open(rig, &format!("198.51.100.9:{}", 3000 + n), TO_WEB);
    let living: Vec<Conn> = (0..12).map(|n| open(&mut rig, n)).collect();
    // Four times what there is room for, all closed within tcp_time_wait.
    for n in 100..260 {
        open(&mut rig, n).close(&mut rig);
    }
    let counts = rig.pipeline.flows_v4().counts();
    assert_eq!((counts.established, counts.embryonic, counts.evicted), (24, 0, 0));
    for conn in &living {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    // With living ones alone it is full after all.
    (300..312).for_each(|n| drop(open(&mut rig, n)));
    let there = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
    rig.front(&Pkt::tcp(CLIENT, TO_WEB, TCP_ACK).bytes()).dropped(DropReason::FlowTableFull);
    rig.sweep();
    let service = &rig.pipeline.stats().services[0];
    assert_eq!(
        service.packets.get(),
        12 * 5 + 160 * 6 + 12 * 3 + 2,
        "what was forgotten early is counted all the same"
    );
    rig.check();
}

/// Of datagrams two are enough, and the sender may be forged.
#[test]
fn datagrams_go_on_without_room_and_leave_some_to_connections() {
    let flows = Capacity { established: 40, embryonic: 64 };
    let mut rig = Rig::with(plan(), &PipelineConfig { flows_v4: flows, ..config(0, 1) });
    let ask = |n: u32| Pkt::udp(&format!("198.51.100.8:{}", 100 + n), TO_DNS).bytes();
    for n in 0..50 {
        let there = rig.front(&ask(n)).to_node();
        rig.back(&Pkt::answer(&there, 0).bytes()).to_client();
        for _ in 0..3 {
            assert_eq!(rig.front(&ask(n)).to_node().src, there.src, "another flow");
            rig.back(&Pkt::answer(&there, 0).bytes()).to_client();
        }
    }
    let counts = rig.pipeline.flows_v4().counts();
    assert_eq!((counts.established, counts.embryonic, counts.evicted), (30, 20, 0));
    let open = |rig: &mut Rig, n: u32| Conn::open(rig, &format!("198.51.100.9:{}", 3000 + n), TO_WEB);
    let conns: Vec<Conn> = (0..10).map(|n| open(&mut rig, n)).collect();
    (0..50).for_each(|n| drop(rig.front(&ask(n)).to_node()));
    conns.iter().for_each(|conn| drop(conn.to_node(&mut rig, TCP_ACK)));
    rig.check();
}

/// A flood has a node's ports long before it fills the pool of embryos.
#[test]
fn a_flood_of_openings_keeps_nobody_from_a_port() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2099]);
    plan.snat("10.0.0.2", [3000, 3099]);
    let mut rig = Rig::new(plan);
    let mut conns: Vec<Conn> =
        (0..50).map(|n| Conn::open(&mut rig, &format!("198.51.100.7:{}", 3000 + n), TO_WEB)).collect();
    for n in 0..2000_u16 {
        rig.front(&Pkt::syn(&format!("100.64.{}.{}:77", n / 200, n % 200), TO_WEB).bytes()).to_node();
        rig.front(&Pkt::udp(&format!("100.64.{}.{}:77", n / 200, n % 200), TO_DNS).bytes()).to_node();
        if n % 40 == 0 {
            conns.push(Conn::open(&mut rig, &format!("198.51.100.8:{}", 3000 + n), TO_WEB));
        }
    }
    let counts = rig.pipeline.flows_v4().counts();
    assert_eq!((counts.established, counts.embryonic), (100, 100 + 200), "as many as there are ports");
    assert_eq!(counts.evicted, 2000 - 100 + 2000 - 200);
    for conn in &conns {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.check();
}

/// Long-lived flows where the search begins, a half-open one among them; most other ports are free.
#[test]
fn one_half_open_flow_is_not_evicted_while_ports_are_free() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2199]);
    let mut rig = Rig::new(plan);
    let open = |rig: &mut Rig, n: u32| Conn::open(rig, &format!("198.51.100.7:{}", 3000 + n), TO_WEB);
    (0..10).for_each(|n| drop(open(&mut rig, n)));
    let waiting = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    (10..20).for_each(|n| drop(open(&mut rig, n)));
    for n in 21..200 {
        let conn = open(&mut rig, n);
        // Port 2168 is looked at first behind the nearest ones.
        if conn.at_node.src.port() != 2168 {
            conn.to_node(&mut rig, TCP_RST);
        }
    }
    // The search has come round; what was reset has rested, and nothing has swept.
    rig.wait(12);
    for n in 200..210 {
        open(&mut rig, n);
    }
    assert_eq!(rig.pipeline.flows_v4().counts().evicted, 0);
    rig.back(&Pkt::answer(&waiting, TCP_SYN | TCP_ACK).bytes()).to_client();
    rig.check();
}

#[test]
fn each_worker_issues_ports_of_its_own_and_hands_over_what_it_does_not_own() {
    let mut rigs: Vec<Rig> = (0..4).map(|worker| Rig::with(plan(), &config(worker, 4))).collect();
    let mut owned = [0_u32; 4];
    for n in 0..400 {
        let syn = Pkt::syn(&format!("198.51.100.{}:{}", n % 200 + 1, 5000 + n), TO_WEB).bytes();
        let arrived = n % 4;
        let out = rigs[arrived].front(&syn);
        let (owner, there) = match out.verdict {
            Verdict::Handoff(WorkerId(owner)) => {
                assert_eq!(out.bytes, syn, "handed over as it came");
                (usize::from(owner), rigs[usize::from(owner)].handed(FRONT, &syn).to_node())
            }
            _ => (arrived, out.to_node()),
        };
        owned[owner] += 1;
        assert_eq!(usize::from(there.src.port()) % 4, owner, "a port of another worker's");
        // Whatever queue the reply comes in by, it finds home.
        let reply = Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes();
        let elsewhere = (owner + 1 + n % 3) % 4;
        let out = rigs[elsewhere].back(&reply);
        assert_eq!(out.verdict, Verdict::Handoff(WorkerId(owner as u16)));
        rigs[owner].handed(crate::pipeline::testkit::BACK, &reply).to_client();
    }
    assert!(owned.iter().all(|count| (60..140).contains(count)), "{owned:?}");
    // To no service: not worth handing over.
    for n in 0..16 {
        let syn = Pkt::syn(&format!("198.51.100.7:{}", 5000 + n), "203.0.113.10:80").bytes();
        rigs[0].front(&syn).dropped(DropReason::NoService);
    }
}

/// A full range from warning to recovery: nobody who has a port is touched, one more address serves at once.
#[test]
fn a_second_snat_address_ends_exhaustion_and_moves_nobody() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [40_000, 40_063]);
    let mut rig = Rig::new(plan);
    let open = |rig: &mut Rig, n: usize| Conn::open(rig, &format!("198.51.100.{}:{}", n % 200 + 1, 3000 + n), TO_WEB);
    let conns: Vec<Conn> = (0..64).map(|n| open(&mut rig, n)).collect();
    for n in 64..80 {
        let syn = Pkt::syn(&format!("198.51.100.{}:{}", n % 200 + 1, 3000 + n), TO_WEB);
        rig.front(&syn.bytes()).dropped(DropReason::SnatExhausted);
    }
    assert_eq!(rig.drops(DropReason::SnatExhausted), 16);
    rig.change(|plan| {
        plan.snat("10.0.0.2", [40_000, 40_063]);
    });
    let more: Vec<Conn> = (64..128).map(|n| open(&mut rig, n)).collect();
    assert!(more.iter().all(|conn| conn.at_node.src.ip().to_string() == "10.0.0.2"));
    for conn in conns.iter().chain(&more) {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.front(&Pkt::syn(OTHER, TO_WEB).bytes()).dropped(DropReason::SnatExhausted);
    // One ends and has rested: one more fits.
    conns[7].close(&mut rig);
    rig.wait(61);
    for conn in conns.iter().chain(&more).filter(|conn| conn.client != conns[7].client) {
        conn.to_node(&mut rig, TCP_ACK);
    }
    let there = rig.front(&Pkt::syn(OTHER, TO_WEB).bytes()).to_node();
    assert_eq!(there.src, conns[7].at_node.src);
    rig.check();
}

/// Twenty times round a range whose every port rests, by clients whose clocks and sequence numbers have nothing
/// to do with each other: each finds one that the node would take (RFC 6191), and never a living one's.
#[test]
fn every_port_resting_and_no_connection_fails() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [40_000, 40_255]);
    let mut rig = Rig::new(plan);
    let living: Vec<Conn> =
        (0..32).map(|n| Conn::open(&mut rig, &format!("198.51.101.9:{}", 3000 + n), TO_WEB)).collect();
    // Numbers as arbitrary as real ones, and the same in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut any = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    let mut last: std::collections::HashMap<u16, (u32, u32)> = std::collections::HashMap::new();
    let mut early = 0;
    for n in 0..20 * 256_u32 {
        let client = format!("198.51.{}.{}:{}", 102 + n / 200 % 100, n % 200 + 1, 1024 + n);
        let (seq, stamp) = (any(), if n % 7 == 0 { None } else { Some(any().max(1)) });
        let with = |pkt: Pkt| pkt.with(|pkt| (pkt.seq, pkt.timestamp) = (seq, stamp));
        let there = rig.front(&with(Pkt::syn(&client, TO_WEB)).bytes()).to_node();
        // The oracle is the node's rule: a later timestamp, or without two of them a later sequence number.
        if let Some((old_seq, old_stamp)) = last.get(&there.src.port()) {
            early += 1;
            let later = |new: u32, old: u32| (new.wrapping_sub(old) as i32) > 0;
            let taken = match stamp.filter(|_| *old_stamp != 0) {
                Some(stamp) => later(stamp, *old_stamp) || stamp == *old_stamp && later(seq, *old_seq),
                None => later(seq, *old_seq),
            };
            assert!(taken, "{n}: the node would refuse");
        }
        rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
        let next = |pkt: Pkt, by: u32| pkt.with(|pkt| (pkt.seq, pkt.timestamp) = (seq.wrapping_add(by), stamp));
        let fin = rig.front(&next(Pkt::tcp(&client, TO_WEB, TCP_FIN | TCP_ACK), 1).bytes()).to_node();
        rig.back(&Pkt::answer(&fin, TCP_FIN | TCP_ACK).with(|pkt| pkt.seq = 1001).bytes()).to_client();
        let last_ack = Pkt::tcp(&client, TO_WEB, TCP_ACK).with(|pkt| pkt.ack = 1002);
        rig.front(&next(last_ack, 2).bytes()).to_node();
        last.insert(there.src.port(), (seq.wrapping_add(2), stamp.unwrap_or_default()));
        rig.now.ns += 1_000_000;
    }
    assert_eq!(rig.drops(DropReason::SnatExhausted), 0);
    assert_eq!(early, 20 * 256 - (256 - 32), "after the first round every port rests");
    for conn in &living {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.check();
}
