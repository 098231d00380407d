//! Direct server return, hairpins, shared node ports, and the tags of either side.

use std::net::IpAddr;

use penstock_configs::desired::{BackendState, Mode, OnDown};

use super::*;
use crate::flow::State;
use crate::pipeline::testkit::{BACK, BOX_MACS, FRONT, client_mac, node_mac};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{TCP_RST, Tags};

pub fn dsr() -> Plan {
    let mut plan = plan();
    for (at, port) in [(WEB, 443), (DNS, 53), (WEB6, 443), (DNS6, 53)] {
        let service = plan.service(at);
        service.mode = Mode::Dsr;
        service.backends[0].port = Some(port).filter(|port| *port == 53);
    }
    plan.snat.clear();
    plan
}

fn each() -> [Pkt; 4] {
    [Pkt::syn(CLIENT, TO_WEB), Pkt::udp(CLIENT, TO_DNS), Pkt::syn(CLIENT6, TO_WEB6), Pkt::udp(CLIENT6, TO_DNS6)]
}

/// The state of the only flow of a family.
fn state(rig: &Rig) -> Option<State> {
    rig.pipeline.flows_v4().record(0).word().map(|word| word.state)
}

#[test]
fn dsr_changes_link_layer_addresses_and_ttl_alone() {
    let mut rig = Rig::new(dsr());
    for request in each() {
        let request = request.payload(b"as it was");
        let before = request.bytes();
        let out = rig.front(&before);
        let there = out.to_node();
        let node: IpAddr = if request.src.is_ipv4() { "10.0.0.11" } else { "fd00::11" }.parse().unwrap();
        assert_eq!((there.src, there.dst, there.ttl), (request.src, request.dst, 63));
        assert_eq!((there.smac, there.dmac), (BOX_MACS[1], node_mac(node)));
        // Beside them only the TTL, and IPv4's checksum over it.
        let differ: Vec<usize> = (12..before.len()).filter(|at| before[*at] != out.bytes[*at]).collect();
        let allowed: &[usize] = if node.is_ipv4() { &[22, 24, 25] } else { &[21] };
        assert!(differ.iter().all(|at| allowed.contains(at)), "bytes {differ:?} changed");
        // The same again, now as a hit.
        assert_eq!(rig.front(&before).to_node().dst, request.dst);
    }
    assert_eq!(rig.pipeline.stats().flows_created.get(), 4);
    rig.check();
}

#[test]
fn dsr_follows_a_connection_by_the_clients_half() {
    let mut rig = Rig::new(dsr());
    let send = |rig: &mut Rig, flags| rig.front(&Pkt::tcp(CLIENT, TO_WEB, flags).bytes());
    send(&mut rig, TCP_ACK).dropped(DropReason::OutOfState);
    let life = [
        (TCP_SYN, State::SynSent),
        (TCP_ACK, State::Established),
        (TCP_ACK, State::Established),
        (TCP_FIN | TCP_ACK, State::FinWait),
        (TCP_ACK, State::FinWait),
        (TCP_SYN, State::SynSent),
        (TCP_ACK, State::Established),
        (TCP_RST, State::Reset),
    ];
    for (flags, want) in life {
        send(&mut rig, flags).to_node();
        assert_eq!(state(&rig), Some(want), "after {flags:#x}");
    }
    assert_eq!(rig.pipeline.stats().flows_created.get(), 1);
    rig.check();
}

#[test]
fn dsr_flows_of_many_vips_meet_on_one_node_and_port() {
    let mut plan = dsr();
    let vips: Vec<String> = (0..5).map(|n| format!("203.0.113.{}:443", 20 + n)).collect();
    for vip in &vips {
        plan.serve(&format!("{vip}/tcp"), &["10.0.0.11:443"]).mode = Mode::Dsr;
    }
    let mut rig = Rig::new(plan);
    for flags in [TCP_SYN, TCP_ACK, TCP_ACK] {
        for vip in &vips {
            // One client port towards all of them: by the node's address they would be one tuple.
            assert_eq!(rig.front(&Pkt::tcp(CLIENT, vip, flags).bytes()).to_node().dst, vip.parse().unwrap());
        }
    }
    assert_eq!(rig.pipeline.stats().flows_created.get(), 5);
    rig.check();
}

#[test]
fn dsr_sticks_to_its_node_as_long_as_that_is_there() {
    let mut plan = dsr();
    plan.service(WEB).backends = (11..21).map(|n| Plan::backend(&format!("10.0.0.{n}:443"))).collect();
    let mut rig = Rig::new(plan);
    let clients: Vec<String> = (0..50).map(|n| format!("198.51.100.{}:{}", n + 1, 7000 + n)).collect();
    let send = |rig: &mut Rig, client: &str, flags| rig.front(&Pkt::tcp(client, TO_WEB, flags).bytes());
    let macs: Vec<_> = clients
        .iter()
        .map(|client| {
            let mac = send(&mut rig, client, TCP_SYN).to_node().dmac;
            send(&mut rig, client, TCP_ACK).to_node();
            mac
        })
        .collect();
    // Another half of the nodes: the table moves, flows do not.
    rig.change(|plan| plan.service(WEB).backends.extend((31..41).map(|n| Plan::backend(&format!("10.0.0.{n}:443")))));
    for (client, mac) in clients.iter().zip(&macs) {
        assert_eq!(send(&mut rig, client, TCP_ACK).to_node().dmac, *mac);
    }
    // Behind a router from now on: beyond reach, for flows too.
    rig.change(|plan| {
        plan.routed = (11..21).map(|n| format!("10.0.0.{n}").parse().unwrap()).collect();
        plan.ways.behind_router = plan.routed.iter().copied().collect();
    });
    for client in &clients {
        rig.now.ns += 1_000_000_000;
        assert_eq!(send(&mut rig, client, TCP_ACK).to_client().flags, TCP_RST, "its connection cannot go on");
        let there = send(&mut rig, client, TCP_SYN).to_node();
        assert!((31..41).any(|n| there.dmac == node_mac(format!("10.0.0.{n}").parse().unwrap())));
    }
    rig.check();
}

/// Of what the node says nothing is known: no RST could have a number it takes, so only a client that goes on is told.
#[test]
fn dsr_of_a_backend_that_goes() {
    let mut plan = dsr();
    plan.service(WEB).backends = ["10.0.0.11:443", "10.0.0.12:443"].map(Plan::backend).to_vec();
    plan.service(WEB).on_down = OnDown::Reset;
    let mut rig = Rig::new(plan);
    let send = |rig: &mut Rig, flags| rig.front(&Pkt::tcp(CLIENT, TO_WEB, flags).bytes());
    let going = |rig: &mut Rig, mac, state| {
        let mut backends = rig.plan.service(WEB).backends.iter_mut();
        backends.find(|b| node_mac(b.address.unwrap()) == mac).unwrap().state = state;
        rig.apply();
    };
    let first = send(&mut rig, TCP_SYN).to_node().dmac;
    send(&mut rig, TCP_ACK).to_node();
    // The client has closed, as far as is seen: its next connection is a new one, and goes where new ones go.
    send(&mut rig, TCP_FIN | TCP_ACK).to_node();
    going(&mut rig, first, BackendState::Draining);
    let second = send(&mut rig, TCP_SYN).to_node().dmac;
    assert_ne!(second, first);
    send(&mut rig, TCP_ACK).to_node();
    going(&mut rig, first, BackendState::Active);
    going(&mut rig, second, BackendState::Down);
    rig.sweep();
    assert!(rig.said.is_empty(), "a RST of numbers made up");
    assert_eq!(send(&mut rig, TCP_ACK).to_client().flags, TCP_RST);
    assert_eq!(send(&mut rig, TCP_SYN).to_node().dmac, first);
    rig.check();
}

#[test]
fn dsr_needs_the_node_on_its_link() {
    let mut rig = Rig::new(dsr());
    rig.change(|plan| plan.routed.push("10.0.0.11".parse().unwrap()));
    rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).dropped(DropReason::NotAdjacent);
    rig.front(&Pkt::syn(CLIENT6, TO_WEB6).bytes()).to_node();
    // In the other modes a router on the way is nothing special.
    rig.change(|plan| {
        plan.service(WEB).mode = Mode::Dnat;
        plan.service(WEB).target_port = Some(443);
    });
    rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    rig.check();
}

/// A router between client and node finds the node's reply too big: its error goes to the VIP, and so comes here.
#[test]
fn dsr_errors_about_replies_reach_the_node_of_the_flow() {
    let mut plan = dsr();
    plan.service(WEB).backends = (11..31).map(|n| Plan::backend(&format!("10.0.0.{n}:443"))).collect();
    let mut rig = Rig::new(plan);
    let error = |about: &Pkt, kind: [u8; 8], router: &str| {
        let message = [&kind[..], &about.bytes()[14..]].concat();
        crate::pipeline::testkit::Icmp::message(router.parse().unwrap(), about.src.ip(), &message).bytes()
    };
    for (client, vip, router, kind) in [
        (CLIENT, TO_WEB, "192.0.2.77", [3, 4, 0, 0, 0, 0, 5, 0x14]),
        (CLIENT6, TO_WEB6, "2001:db8:77::1", [2, 0, 0, 0, 0, 0, 5, 0x14]),
    ] {
        let node = rig.front(&Pkt::syn(client, vip).bytes()).to_node().dmac;
        let reply = Pkt::tcp(vip, client, TCP_ACK).payload(&[7; 600]);
        let sent = error(&reply, kind, router);
        let out = rig.front(&sent);
        let there = out.to_node();
        assert_eq!((there.dmac, there.src.ip(), there.dst.ip()), (node, router.parse().unwrap(), reply.src.ip()));
        assert_eq!(out.bytes[34 + 20..], sent[34 + 20..], "the quote is the node's own packet already");
        let stray = error(&Pkt::tcp(vip, client, TCP_ACK).with(|pkt| pkt.dst.set_port(9)), kind, router);
        rig.front(&stray).dropped(DropReason::IcmpUnmatched);
    }
    rig.check();
}

#[test]
fn dsr_fragments_go_where_their_first_one_went() {
    let mut plan = dsr();
    plan.service(DNS).backends = (11..31).map(|n| Plan::backend(&format!("10.0.0.{n}:53"))).collect();
    let mut rig = Rig::new(plan);
    let whole = Pkt::udp(CLIENT, TO_DNS).payload(&[7; 1000]).bytes();
    let piece = |from: usize, to: usize, more: bool| {
        let mut frame = whole[..34].to_vec();
        frame.extend(&whole[34 + from..34 + to]);
        frame[16..18].copy_from_slice(&((20 + to - from) as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&[0x12, 0x34]);
        let fields = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&fields.to_be_bytes());
        frame[24..26].fill(0);
        let sum = crate::pipeline::testkit::internet_sum(&[], &frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    // The last one comes first, and waits.
    let early = rig.front(&piece(800, 1008, false));
    assert!(matches!(early.verdict, Verdict::Held(_)), "{early:?}");
    let first = rig.front(&piece(0, 400, true));
    assert_eq!(first.verdict, Verdict::Tx(BACK));
    let middle = rig.front(&piece(400, 800, true));
    let released = rig.released();
    assert_eq!(released.len(), 1);
    for later in [&middle, &released[0].1] {
        assert_eq!(later.verdict, Verdict::Tx(BACK));
        assert_eq!(later.bytes[..12], first.bytes[..12], "another node");
        assert_eq!(later.bytes[18..20], first.bytes[18..20], "of one datagram");
        assert_eq!(later.bytes[26..34], first.bytes[26..34]);
    }
    assert_eq!(first.bytes[26..38], whole[26..38], "addresses and ports as they were");
    rig.conserved();
}

#[test]
fn dsr_under_a_flood_forwards_what_it_cannot_keep() {
    let mut config = crate::pipeline::testkit::config(0, 1);
    config.flows_v4 = crate::flow::Capacity { established: 2, embryonic: 64 };
    let mut rig = Rig::with(dsr(), &config);
    for n in 0..20 {
        let client = format!("198.51.100.7:{}", 7000 + n);
        for flags in [TCP_SYN, TCP_ACK, TCP_ACK] {
            rig.front(&Pkt::tcp(&client, TO_WEB, flags).bytes()).to_node();
        }
    }
    assert_eq!(rig.pipeline.flows_v4().counts().established, 2);
    rig.check();
}

#[test]
fn forged_pairs_to_dsr_leave_room_to_connections_that_are_answered() {
    let mut plan = dsr();
    plan.serve("203.0.113.11:443/tcp", &["10.0.0.11:31443"]);
    plan.snat(SNAT, [1024, 65535]);
    let mut config = crate::pipeline::testkit::config(0, 1);
    config.flows_v4 = crate::flow::Capacity { established: 40, embryonic: 16 };
    let mut rig = Rig::with(plan, &config);
    let forge = |rig: &mut Rig, range: std::ops::Range<u32>| {
        for n in range {
            for flags in [TCP_SYN, TCP_ACK] {
                rig.front(&Pkt::tcp(&format!("198.51.100.7:{}", 7000 + n), TO_WEB, flags).bytes()).to_node();
            }
        }
    };
    forge(&mut rig, 0..200);
    assert_eq!(rig.pipeline.flows_v4().counts().established, 30);
    let open = |rig: &mut Rig, n: u32| Conn::open(rig, &format!("198.51.100.8:{}", 7000 + n), "203.0.113.11:443");
    let conns: Vec<Conn> = (0..10).map(|n| open(&mut rig, n)).collect();
    forge(&mut rig, 200..400);
    for conn in &conns {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.check();
}

/// Three quarters are for such as prove nothing, whatever else there is; closed connections give them room, and are
/// not forgotten in vain.
#[test]
fn connections_take_no_room_from_datagrams_and_dsr_before_the_table_is_full() {
    const TO_OTHER: &str = "203.0.113.11:443";
    let (living, closed) = (35, 40);
    for (connections, closes) in [(living, false), (closed, true)] {
        let mut plan = plan();
        plan.serve("203.0.113.11:443/tcp", &["10.0.0.11:443"]).mode = Mode::Dsr;
        let mut config = crate::pipeline::testkit::config(0, 1);
        config.flows_v4 = crate::flow::Capacity { established: 40, embryonic: 64 };
        let mut rig = Rig::with(plan, &config);
        for n in 0..connections {
            let conn = Conn::open(&mut rig, &format!("198.51.100.8:{}", 7000 + n), TO_WEB);
            if closes {
                conn.close(&mut rig);
            }
        }
        let count = |rig: &Rig, state| rig.pipeline.flows_v4().live().filter(|(_, word)| word.state == state).count();
        let ask = |rig: &mut Rig, n: u32| {
            for _ in 0..3 {
                let there = rig.front(&Pkt::udp(&format!("198.51.100.9:{}", 100 + n), TO_DNS).bytes()).to_node();
                rig.back(&Pkt::answer(&there, 0).bytes()).to_client();
            }
        };
        ask(&mut rig, 0);
        assert_eq!(count(&rig, State::UdpStream), 1, "closed: {closes}");
        for flags in [TCP_SYN, TCP_ACK] {
            rig.front(&Pkt::tcp(CLIENT, TO_OTHER, flags).bytes()).to_node();
        }
        let opened = connections * u32::from(!closes) + 1;
        assert_eq!(count(&rig, State::Established), opened as usize, "closed: {closes}");
        if closes {
            (1..60).for_each(|n| ask(&mut rig, n));
            assert_eq!((count(&rig, State::UdpStream), count(&rig, State::TimeWait)), (29, 10), "one in vain");
        }
        rig.check();
    }
}

/// What the box sees last of a connection in `dsr` is the client's FIN.
#[test]
fn dsr_flows_that_were_closed_make_room() {
    let mut config = crate::pipeline::testkit::config(0, 1);
    config.flows_v4 = crate::flow::Capacity { established: 20, embryonic: 8 };
    let mut rig = Rig::with(dsr(), &config);
    for n in 0..100 {
        for flags in [TCP_SYN, TCP_ACK, TCP_FIN | TCP_ACK] {
            rig.front(&Pkt::tcp(&format!("198.51.100.7:{}", 7000 + n), TO_WEB, flags).bytes()).to_node();
        }
        rig.wait(1);
    }
    assert!(rig.pipeline.flows_v4().live().all(|(_, word)| word.state == State::FinWait), "one found no room");
    assert_eq!(rig.pipeline.flows_v4().counts().established, 15);
    rig.check();
}

/// A client that has said its last word may be listening still.
#[test]
fn dsr_flows_half_closed_make_no_room_while_their_client_speaks() {
    let mut config = crate::pipeline::testkit::config(0, 1);
    config.flows_v4 = crate::flow::Capacity { established: 4, embryonic: 8 };
    let mut rig = Rig::with(dsr(), &config);
    let send = |rig: &mut Rig, n: u32, flags: &[u8]| {
        for flags in flags {
            rig.front(&Pkt::tcp(&format!("198.51.100.7:{}", 7000 + n), TO_WEB, *flags).bytes()).to_node();
        }
        let count = |state| rig.pipeline.flows_v4().live().filter(|(_, word)| word.state == state).count();
        [State::FinWait, State::Established].map(count)
    };
    for n in 0..3 {
        send(&mut rig, n, &[TCP_SYN, TCP_ACK, TCP_FIN | TCP_ACK]);
    }
    rig.wait(5);
    assert_eq!(send(&mut rig, 3, &[TCP_SYN, TCP_ACK]), [3, 0], "one was forgotten");
    rig.wait(6);
    send(&mut rig, 0, &[TCP_ACK]);
    for n in 4..8 {
        send(&mut rig, n, &[TCP_SYN, TCP_ACK]);
    }
    assert_eq!(send(&mut rig, 0, &[TCP_ACK]), [1, 2], "the silent ones make room, and no others");
    rig.check();
}

#[test]
fn a_change_of_mode_revokes_what_was_opened_in_the_other() {
    for (from, to) in [(Mode::Dsr, Mode::Dnat), (Mode::Dnat, Mode::Dsr), (Mode::Dsr, Mode::Nat), (Mode::Nat, Mode::Dsr)]
    {
        let mut plan = plan();
        plan.service(WEB).mode = from;
        plan.service(WEB).backends[0].port = Some(443);
        let mut rig = Rig::new(plan);
        for flags in [TCP_SYN, TCP_ACK] {
            rig.front(&Pkt::tcp(CLIENT, TO_WEB, flags).bytes()).to_node();
        }
        rig.change(|plan| plan.service(WEB).mode = to);
        rig.front(&Pkt::tcp(CLIENT, TO_WEB, TCP_ACK).bytes()).dropped(DropReason::FlowRevoked);
        rig.check();
    }
}

#[test]
fn a_node_reaches_a_vip_it_serves_in_nat() {
    let mut plan = plan();
    plan.service(WEB).backends.push(Plan::backend("10.0.0.12:31443"));
    plan.service(WEB6).backends.push(Plan::backend("[fd00::12]:31443"));
    let mut rig = Rig::new(plan);
    for (node, vip) in [("10.0.0.11", TO_WEB), ("[fd00::11]", TO_WEB6)] {
        let (mut itself, mut neighbour) = (0, 0);
        for port in 5000..5040 {
            let client = format!("{node}:{port}");
            let syn = Pkt::syn(&client, vip);
            let there = rig.back(&syn.bytes()).to_node();
            assert_ne!(there.src, syn.src, "it would be its own peer");
            *(if there.dst.ip() == syn.src.ip() { &mut itself } else { &mut neighbour }) += 1;
            let back = rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).sent(BACK);
            assert_eq!((back.src, back.dst), (vip.parse().unwrap(), syn.src));
            assert_eq!(back.dmac, client_mac(syn.src.ip()), "to where the SYN came from");
        }
        assert!(itself > 0 && neighbour > 0, "{itself} to itself, {neighbour} to the other");
    }
    rig.check();
}

#[test]
fn hairpins_that_cannot_work_are_dropped_by_name() {
    let mut plan = plan();
    let service = plan.service(WEB);
    service.mode = Mode::Dnat;
    service.backends.push(Plan::backend("10.0.0.12:31443"));
    let mut rig = Rig::new(plan);
    for port in 5000..5010 {
        rig.back(&Pkt::syn(&format!("10.0.0.11:{port}"), TO_WEB).bytes()).dropped(DropReason::Hairpin);
    }
    // Not a node, or a node that is no neighbour of the others'.
    rig.back(&Pkt::syn("10.0.0.99:5000", TO_WEB).bytes()).to_node();
    let mut rig = Rig::new(dsr());
    rig.back(&Pkt::syn("10.0.0.11:5000", TO_WEB).bytes()).dropped(DropReason::Hairpin);
    // The neighbour answers by itself, and so it can.
    rig.back(&Pkt::syn("10.0.0.12:5000", TO_WEB).bytes()).to_node();
}

#[test]
fn services_that_share_a_node_port_never_collide() {
    let mut plan = plan();
    let other = "203.0.113.11:443";
    plan.serve("203.0.113.11:443/tcp", &["10.0.0.11:31443"]);
    // So few SNAT ports that the two would meet if they could.
    plan.snat = Vec::new();
    plan.snat(SNAT, [40_000, 40_063]);
    let mut rig = Rig::new(plan);
    let mut seen = std::collections::HashSet::new();
    let mut opened = Vec::new();
    for n in 0..32 {
        let client = format!("198.51.100.7:{}", 5000 + n);
        for vip in [TO_WEB, other] {
            let conn = Conn::open(&mut rig, &client, vip);
            assert!(seen.insert((conn.at_node.src, conn.at_node.dst)), "one tuple for two flows");
            opened.push(conn);
        }
    }
    for conn in &opened {
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.front(&Pkt::syn("198.51.100.8:1", other).bytes()).dropped(DropReason::SnatExhausted);
    rig.check();
}

fn vlan(id: u16) -> Tags {
    Tags::NONE.with(0x8100, id)
}

#[test]
fn each_side_has_its_own_tags() {
    let none: &[u16] = &[];
    let sides: [(&[u16], Option<Tags>, &[u16]); 7] = [
        (none, Some(Tags::NONE), none),
        (&[10], Some(Tags::NONE), none),
        (none, Some(vlan(20)), &[20]),
        (&[10], Some(vlan(20)), &[20]),
        (&[10, 11], Some(vlan(20)), &[20]),
        (&[10], Some(Tags::NONE.with(0x88a8, 20).with(0x8100, 21)), &[20, 21]),
        (&[10, 11], None, &[10, 11]),
    ];
    for (client, tags, at_node) in sides {
        for mode in [Mode::Nat, Mode::Dnat] {
            let mut plan = plan();
            plan.node_tags = tags;
            plan.services.iter_mut().for_each(|service| service.mode = mode);
            let mut rig = Rig::new(plan);
            for request in each() {
                let request = request.payload(b"request").with(|pkt| pkt.vlans = client.to_vec());
                let flags = if request.flags == 0 { 0 } else { TCP_ACK };
                let there = rig.front(&request.bytes()).to_node();
                assert_eq!((there.vlans.as_slice(), there.payload.as_slice()), (at_node, &b"request"[..]));
                // The handshake, then packets that would go the short way if they were untagged.
                for reply in [flags | request.flags, flags, flags] {
                    let answer = Pkt::answer(&there, reply).payload(b"the reply").with(|pkt| pkt.ack = 1001);
                    let back = rig.back(&answer.bytes()).to_client();
                    assert_eq!((back.vlans.as_slice(), back.payload.as_slice()), (client, &b"the reply"[..]));
                    let more = request.clone().with(|pkt| (pkt.flags, pkt.seq) = (flags, 1001));
                    assert_eq!(rig.front(&more.bytes()).to_node().vlans, at_node, "{client:?} {tags:?}");
                }
            }
            rig.check();
            rig.conserved();
        }
    }
}

#[test]
fn a_client_that_changes_its_vlan_gets_replies_there() {
    let mut plan = plan();
    plan.node_tags = Some(Tags::NONE);
    let mut rig = Rig::new(plan);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    for vlans in [vec![], vec![10], vec![11], vec![10, 12], vec![]] {
        rig.front(&conn.request(TCP_ACK).with(|pkt| pkt.vlans.clone_from(&vlans)).bytes()).to_node();
        let back = rig.back(&conn.reply(TCP_ACK).bytes()).to_client();
        assert_eq!(back.vlans, vlans);
    }
    // The two networks' clients may have one address and one router: still two hops.
    rig.check();
}

#[test]
fn a_tag_finds_room_in_a_full_frame() {
    let mut plan = plan();
    plan.node_tags = Some(vlan(20));
    plan.mtu = 2000;
    let mut rig = Rig::new(plan);
    let fits = |len: usize| Pkt::udp(CLIENT, TO_DNS).payload(&vec![7; len - 42]).bytes();
    // Frames have 1792 bytes of room here.
    for len in [1788, 1789, 1792] {
        let seen = rig.front(&fits(len)).to_node();
        assert_eq!((seen.vlans, seen.payload), (vec![20], vec![7; len - 42]));
    }
    rig.conserved();
}

#[test]
fn a_dnat_backend_takes_flows_when_its_way_back_is_proved() {
    let source = ("10.0.0.11".parse().unwrap(), 31443, 6);
    let mut plan = plan();
    plan.service(WEB).mode = Mode::Dnat;
    plan.ways.replies = Some([(source, true)].into());
    let mut rig = Rig::new(plan);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    for unproved in [Some([(source, false)].into()), Some([].into())] {
        rig.change(|plan| plan.ways.replies = unproved);
        // Its flows show that replies came back: they stay; new ones wait.
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
        rig.front(&Pkt::syn("198.51.100.8:1", TO_WEB).bytes()).dropped(DropReason::NoBackend);
    }
    // Neither mode nat nor a service that waives the check asks for it.
    Conn::open(&mut rig, CLIENT6, TO_WEB6);
    rig.change(|plan| plan.service(WEB).reply_check = false);
    Conn::open(&mut rig, "198.51.100.8:1", TO_WEB);
    // Health still counts.
    rig.change(|plan| plan.health("10.0.0.11", BackendState::Draining));
    rig.front(&Pkt::syn("198.51.100.9:1", TO_WEB).bytes()).dropped(DropReason::NoBackend);
    assert_eq!(rig.send(FRONT, &Pkt::tcp("10.0.0.77:1", "203.0.113.99:443", TCP_RST).bytes()).verdict, Verdict::Kernel);
}
