//! SCTP through the box: every packet's CRC32c is recomputed on its way out.

use penstock_configs::desired::{BackendState, Mode, NoBackend, OnDown, OnIdle};

use super::fragments::{every, join, pass, sent, split};
use super::*;
use crate::flow::State;
use crate::pipeline::testkit::{BACK, FRONT, Icmp, config, draining, look, node_mac, valid};
use crate::verdict::{DropReason, Verdict, WorkerId};
use crate::wire::sctp::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
};

const SIG: &str = "203.0.113.10:2905/sctp";
const SIG6: &str = "[2001:db8:1::10]:2905/sctp";
const TO_SIG: &str = "203.0.113.10:2905";
const TO_SIG6: &str = "[2001:db8:1::10]:2905";
const CLIENT_TAG: u32 = 0xc11e_0001;
const NODE_TAG: u32 = 0x40de_0001;
const HEARTBEAT: u8 = 4;

fn sctp_plan() -> Plan {
    let mut plan = plan();
    plan.serve(SIG, &["10.0.0.11:32905"]);
    plan.serve(SIG6, &["[fd00::11]:32905"]);
    plan
}

fn chunk(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let [a, b] = (4 + body.len() as u16).to_be_bytes();
    let mut bytes = [&[kind, flags, a, b], body].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An INIT or INIT ACK that lists other addresses of its sender (parameters 5 and 6), as multi-homed ends do.
fn init(kind: u8, tag: u32) -> Vec<u8> {
    let fixed = [&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]].concat();
    let v4 = [0, 5, 0, 8, 192, 0, 2, 9];
    let v6 = [&[0, 6, 0, 20][..], &[0x20; 16]].concat();
    chunk(kind, 0, &[&fixed[..], &v4, &v6].concat())
}

/// What the other end sees of these: addresses have become padding (RFC 4820).
fn seen_as(chunks: &[u8]) -> Vec<u8> {
    let mut chunks = chunks.to_vec();
    if matches!(chunks[0], INIT | INIT_ACK) {
        assert_eq!((&chunks[20..22], &chunks[28..30]), (&[0, 5][..], &[0, 6][..]));
        chunks[20..22].copy_from_slice(&[0x80, 5]);
        chunks[28..30].copy_from_slice(&[0x80, 5]);
    }
    chunks
}

fn data(len: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..12 + len).map(|n| (n * 7 % 251) as u8).collect();
    chunk(DATA, 3, &body)
}

/// ABORT, out of resource.
const REFUSED: [u8; 8] = [ABORT, 0, 0, 8, 0, 4, 0, 4];

struct Association {
    client: String,
    vip: String,
    at_node: Seen,
}

impl Association {
    #[track_caller]
    fn open(rig: &mut Rig, client: &str, vip: &str) -> Self {
        let at_node = rig.front(&Pkt::sctp(client, vip, 0, &init(INIT, CLIENT_TAG)).bytes()).to_node();
        assert_eq!(at_node.payload, seen_as(&init(INIT, CLIENT_TAG)));
        let association = Self { client: client.into(), vip: vip.into(), at_node };
        association.reply(rig, CLIENT_TAG, &init(INIT_ACK, NODE_TAG));
        association.request(rig, NODE_TAG, &[chunk(COOKIE_ECHO, 0, b"cookie"), data(5)].concat());
        association.reply(rig, CLIENT_TAG, &chunk(COOKIE_ACK, 0, &[]));
        association
    }

    fn pkt(&self, tag: u32, chunks: &[u8]) -> Pkt {
        Pkt::sctp(&self.client, &self.vip, tag, chunks)
    }

    fn answer(&self, tag: u32, chunks: &[u8]) -> Pkt {
        Pkt::answer(&self.at_node, 0).with(|pkt| pkt.seq = tag).payload(chunks)
    }

    #[track_caller]
    fn request(&self, rig: &mut Rig, tag: u32, chunks: &[u8]) -> Seen {
        let seen = rig.front(&self.pkt(tag, chunks).bytes()).to_node();
        assert_eq!((seen.src, seen.dst), (self.at_node.src, self.at_node.dst));
        assert_eq!(seen.payload, seen_as(chunks));
        seen
    }

    #[track_caller]
    fn reply(&self, rig: &mut Rig, tag: u32, chunks: &[u8]) -> Seen {
        let seen = rig.back(&self.answer(tag, chunks).bytes()).to_client();
        assert_eq!((seen.src, seen.dst), (self.vip.parse().unwrap(), self.client.parse().unwrap()));
        assert_eq!(seen.payload, seen_as(chunks));
        seen
    }
}

fn states(rig: &Rig) -> Vec<State> {
    let v4 = rig.pipeline.flows_v4().live().map(|(_, word)| word.state);
    v4.chain(rig.pipeline.flows_v6().live().map(|(_, word)| word.state)).collect()
}

#[test]
fn an_association_lives_and_ends_in_both_families_and_modes() {
    for mode in [Mode::Nat, Mode::Dnat] {
        for (client, vip) in [(CLIENT, TO_SIG), (CLIENT6, TO_SIG6)] {
            let mut plan = sctp_plan();
            plan.service(SIG).mode = mode;
            plan.service(SIG6).mode = mode;
            let mut rig = Rig::new(plan);
            let association = Association::open(&mut rig, client, vip);
            assert_eq!(association.at_node.dst.port(), 32905);
            assert_eq!(association.at_node.src == client.parse().unwrap(), mode == Mode::Dnat);
            assert_eq!(states(&rig), [State::SctpEstablished]);
            for len in [0, 1, 2, 3, 100, 1400] {
                association.request(&mut rig, NODE_TAG, &data(len));
                association.reply(&mut rig, CLIENT_TAG, &data(len));
            }
            association.request(&mut rig, NODE_TAG, &chunk(SHUTDOWN, 0, &[0; 4]));
            assert_eq!(states(&rig), [State::SctpShutdown]);
            association.reply(&mut rig, CLIENT_TAG, &chunk(SHUTDOWN_ACK, 0, &[]));
            association.request(&mut rig, NODE_TAG, &chunk(SHUTDOWN_COMPLETE, 0, &[]));
            assert_eq!(states(&rig), [State::SctpClosed]);
            rig.check();
        }
    }
}

#[test]
fn an_association_outlives_a_check_that_failed_if_it_may() {
    for (on_down, goes_on) in [(OnDown::Keep, true), (OnDown::Reset, false)] {
        let mut plan = sctp_plan();
        plan.service(SIG).on_down = on_down;
        // Where all are down the checks are not believed.
        plan.service(SIG).backends.push(Plan::backend("10.0.0.12:32905"));
        let mut rig = Rig::new(plan);
        let association = Association::open(&mut rig, CLIENT, TO_SIG);
        let node = association.at_node.dst.ip().to_string();
        rig.change(|plan| plan.health(&node, BackendState::Down));
        rig.sweep();
        if goes_on {
            association.request(&mut rig, NODE_TAG, &data(9));
            association.reply(&mut rig, CLIENT_TAG, &data(9));
        } else {
            rig.front(&association.pkt(NODE_TAG, &data(9)).bytes()).dropped(DropReason::OutOfState);
        }
        rig.change(|plan| plan.service(SIG).backends.clear());
        rig.front(&association.pkt(NODE_TAG, &data(9)).bytes());
        assert!(states(&rig).is_empty(), "its owner took the backend away");
        rig.check();
    }
}

#[test]
fn only_an_init_opens_and_only_a_cookie_establishes() {
    let mut rig = Rig::new(sctp_plan());
    for chunks in [data(3), chunk(COOKIE_ECHO, 0, b"c"), chunk(ABORT, 0, &[]), init(INIT_ACK, 7)] {
        rig.front(&Pkt::sctp(CLIENT, TO_SIG, 7, &chunks).bytes()).dropped(DropReason::OutOfState);
    }
    let there = rig.front(&Pkt::sctp(CLIENT, TO_SIG, 0, &init(INIT, CLIENT_TAG)).bytes()).to_node();
    let half = Association { client: CLIENT.into(), vip: TO_SIG.into(), at_node: there };
    half.request(&mut rig, NODE_TAG, &chunk(COOKIE_ECHO, 0, b"guessed"));
    half.reply(&mut rig, CLIENT_TAG, &init(INIT_ACK, NODE_TAG));
    half.request(&mut rig, NODE_TAG ^ 1, &chunk(COOKIE_ECHO, 0, b"guessed"));
    assert_eq!(states(&rig), [State::SctpInit]);
    half.request(&mut rig, NODE_TAG, &chunk(COOKIE_ECHO, 0, b"right"));
    assert_eq!(states(&rig), [State::SctpEstablished]);
    // Malformed ones are named, and never seen by a node.
    let bad = Pkt::sctp(CLIENT, TO_SIG, NODE_TAG, &[3, 0, 0, 2]);
    rig.front(&bad.bytes()).dropped(DropReason::BadSctpChunk);
    rig.front(&bad.payload(&init(INIT, 9)).bytes()).dropped(DropReason::BadSctpChunk);
    // The service is SCTP's: the same port of another protocol has none.
    rig.front(&Pkt::udp(CLIENT, TO_SIG).bytes()).dropped(DropReason::NoService);
    rig.check();
}

#[test]
fn who_does_not_know_the_tag_cannot_end_an_association() {
    let mut rig = Rig::new(sctp_plan());
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    // All pass, for the ends to judge by themselves; none is believed.
    association.request(&mut rig, 5, &chunk(ABORT, 0, &[]));
    association.request(&mut rig, 5, &chunk(ABORT, 1, &[]));
    association.request(&mut rig, CLIENT_TAG, &chunk(ABORT, 0, &[]));
    association.request(&mut rig, 5, &chunk(SHUTDOWN_COMPLETE, 0, &[]));
    association.request(&mut rig, 0, &init(INIT, 5));
    association.reply(&mut rig, 5, &init(INIT_ACK, 6));
    assert_eq!(states(&rig), [State::SctpEstablished]);
    // Long silent but for what ends send when idle.
    rig.wait(800);
    association.request(&mut rig, NODE_TAG, &chunk(HEARTBEAT, 0, &[0, 1, 0, 8, 1, 2, 3, 4]));
    rig.wait(800);
    rig.sweep();
    association.reply(&mut rig, CLIENT_TAG, &data(9));
    // Without a record its sender reflects the tag it was sent (T bit).
    association.request(&mut rig, CLIENT_TAG, &chunk(ABORT, 1, &[]));
    assert_eq!(states(&rig), [State::SctpClosed]);
    rig.wait(11);
    rig.sweep();
    assert!(states(&rig).is_empty());
    rig.check();
}

#[test]
fn a_closed_association_opens_anew_and_where_new_flows_go() {
    let mut rig = Rig::new(sctp_plan());
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    association.reply(&mut rig, CLIENT_TAG, &chunk(ABORT, 0, &[]));
    let again = Association::open(&mut rig, CLIENT, TO_SIG);
    assert_ne!(again.at_node.src, association.at_node.src, "as if from another port");
    assert_eq!(states(&rig), [State::SctpEstablished]);
    again.request(&mut rig, NODE_TAG, &chunk(ABORT, 0, &[]));
    rig.change(|plan| {
        let mut other = Plan::backend("10.0.0.12:32905");
        std::mem::swap(&mut other, &mut plan.service(SIG).backends[0]);
        crate::pipeline::testkit::draining(&mut other);
        plan.service(SIG).backends.push(other);
    });
    let moved = Association::open(&mut rig, CLIENT, TO_SIG);
    assert_eq!(moved.at_node.dst.to_string(), "10.0.0.12:32905");
    rig.check();
}

#[test]
fn a_port_of_a_closed_association_is_used_again_when_there_is_no_other() {
    let mut plan = sctp_plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2000]);
    plan.service(SIG).no_backend = NoBackend::Reject;
    let mut rig = Rig::new(plan);
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    let other = Pkt::sctp("198.51.100.8:1", TO_SIG, 0, &init(INIT, 5)).bytes();
    assert_eq!(rig.front(&other).to_client().payload, REFUSED);
    assert_eq!(rig.drops(DropReason::SnatExhausted), 1);
    // TCP and UDP have ports of their own.
    rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    association.request(&mut rig, NODE_TAG, &chunk(ABORT, 0, &[]));
    assert_eq!(rig.front(&other).to_node().src.port(), 2000);
    rig.check();
}

#[test]
fn what_came_corrupt_leaves_corrupt_by_as_much_and_no_checksum_stays_none() {
    let mut rig = Rig::new(sctp_plan());
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    let right = association.pkt(NODE_TAG, &data(100)).bytes();
    let whole = rig.front(&right).bytes;
    let mut wrong = right.clone();
    wrong[34 + 9] ^= 0x24;
    let out = rig.front(&wrong).bytes;
    assert_eq!(look(&out).unwrap().wrong, ["sctp"]);
    let off: Vec<u8> = out[42..46].iter().zip(&whole[42..46]).map(|(a, b)| a ^ b).collect();
    assert_eq!(off, [0, 0x24, 0, 0], "another error than before");
    let mut flipped = right;
    flipped[80] ^= 1;
    assert_eq!(look(&rig.front(&flipped).bytes).unwrap().wrong, ["sctp"]);
    // RFC 9653.
    let zero = association.pkt(NODE_TAG, &data(100)).with(|pkt| pkt.unchecked = true);
    assert_eq!(rig.front(&zero.bytes()).bytes[42..46], [0; 4]);
    let zero = association.answer(CLIENT_TAG, &data(7)).with(|pkt| pkt.unchecked = true);
    assert_eq!(rig.back(&zero.bytes()).bytes[42..46], [0; 4]);
}

/// Of a closed one only the record rests: what its ends still have to say passes, and only a client's INIT opens anew.
#[test]
fn a_closed_association_stays_closed_until_its_client_opens_one() {
    let mut rig = Rig::new(sctp_plan());
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    association.reply(&mut rig, CLIENT_TAG, &chunk(ABORT, 0, &[]));
    association.request(&mut rig, NODE_TAG, &data(7));
    association.reply(&mut rig, 0, &init(INIT, NODE_TAG));
    association.request(&mut rig, NODE_TAG, &data(8));
    assert_eq!(states(&rig), [State::SctpClosed]);
    assert_eq!(rig.pipeline.stats().flows_created.get(), 1);
    rig.check();
}

/// What Ethernet carries behind the packet is none of it.
#[test]
fn a_trailer_is_not_read() {
    let mut rig = Rig::new(sctp_plan());
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    let mut frame = association.pkt(NODE_TAG, &chunk(HEARTBEAT, 0, &[])).bytes();
    frame.extend(chunk(ABORT, 0, &[]));
    rig.front(&frame);
    assert_eq!(states(&rig), [State::SctpEstablished]);
    let mut open = Pkt::sctp("198.51.100.8:1", TO_SIG, 0, &init(INIT, 5)).bytes();
    open.extend([0; 6]);
    rig.front(&open).to_node();
}

/// In `dsr` the box sees the client's half.
#[test]
fn dsr_follows_an_association_by_the_clients_half() {
    let mut plan = plan();
    let service = plan.serve(SIG, &["10.0.0.11:2905"]);
    service.mode = Mode::Dsr;
    let mut rig = Rig::new(plan);
    let mut send = |tag, chunks: &[u8]| {
        let seen = rig.front(&Pkt::sctp(CLIENT, TO_SIG, tag, chunks).bytes()).to_node();
        assert_eq!((seen.src, seen.dst), (CLIENT.parse().unwrap(), TO_SIG.parse().unwrap()));
        states(&rig)[0]
    };
    assert_eq!(send(0, &init(INIT, CLIENT_TAG)), State::SctpInit);
    assert_eq!(send(NODE_TAG, &chunk(COOKIE_ECHO, 0, b"cookie")), State::SctpEstablished);
    assert_eq!(send(NODE_TAG, &chunk(SHUTDOWN, 0, &[0; 4])), State::SctpShutdown);
    assert_eq!(send(NODE_TAG, &chunk(SHUTDOWN_COMPLETE, 0, &[])), State::SctpClosed);
}

/// Of a shutdown that the node began the box sees the client's SHUTDOWN ACK alone.
#[test]
fn dsr_opens_an_association_anew_behind_a_shutdown_of_the_nodes() {
    let mut plan = plan();
    let service = plan.serve(SIG, &["10.0.0.11:2905", "10.0.0.12:2905"]);
    service.mode = Mode::Dsr;
    let mut rig = Rig::new(plan);
    let send = |rig: &mut Rig, tag, chunks: &[u8]| {
        let node = rig.front(&Pkt::sctp(CLIENT, TO_SIG, tag, chunks).bytes()).to_node().dmac;
        (node, states(rig))
    };
    let (old, _) = send(&mut rig, 0, &init(INIT, CLIENT_TAG));
    send(&mut rig, NODE_TAG, &chunk(COOKIE_ECHO, 0, b"cookie"));
    assert_eq!(send(&mut rig, NODE_TAG, &chunk(SHUTDOWN_ACK, 0, &[])), (old, vec![State::SctpShutdown]));
    rig.change(|plan| {
        let of_old = plan.service(SIG).backends.iter_mut().find(|backend| node_mac(backend.address.unwrap()) == old);
        draining(of_old.unwrap());
    });
    let (new, states) = send(&mut rig, 0, &init(INIT, CLIENT_TAG + 1));
    assert_ne!(new, old, "it is draining");
    assert_eq!(states, [State::SctpInit]);
    let (node, states) = send(&mut rig, NODE_TAG + 1, &chunk(COOKIE_ECHO, 0, b"cookie"));
    assert_eq!((node, states), (new, vec![State::SctpEstablished]));
    rig.check();
}

#[test]
fn fragments_are_translated_once_the_length_is_known() {
    for (client, vip) in [(CLIENT, TO_SIG), (CLIENT6, TO_SIG6)] {
        for order in 0..6 {
            let mut rig = Rig::new(sctp_plan());
            let association = Association::open(&mut rig, client, vip);
            let request = association.pkt(NODE_TAG, &[data(2000), data(1500)].concat());
            let reply = association.answer(CLIENT_TAG, &data(3001));
            for (packet, from, to) in [(request, FRONT, BACK), (reply, BACK, FRONT)] {
                let mut pieces = split(&packet.bytes(), &every(1248), 77 + order);
                assert_eq!(pieces.len(), 3);
                let [a, b, c] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order as usize];
                pieces = vec![pieces[a].clone(), pieces[b].clone(), pieces[c].clone()];
                let out: Vec<Vec<u8>> = pieces.iter().flat_map(|piece| sent(pass(&mut rig, from, piece), to)).collect();
                assert_eq!(out.len(), 3, "order {order}");
                let seen = valid(&join(&out).1);
                assert_eq!(seen.payload, packet.payload);
                assert_eq!(seen.dst, if to == BACK { association.at_node.dst } else { client.parse().unwrap() });
                assert_eq!(rig.pipeline.frames_held(), 0);
            }
            rig.check();
        }
    }
}

#[test]
fn all_fragments_in_one_burst() {
    let mut rig = Rig::new(sctp_plan());
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    let packet = association.pkt(NODE_TAG, &data(3000));
    let pieces = split(&packet.bytes(), &every(1248), 9);
    let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let now = rig.burst(FRONT, &slices, false);
    assert!(now.iter().all(|out| matches!(out.verdict, Verdict::Held(_))));
    let out = sent(rig.released().into_iter().map(|(_, out)| out).collect(), BACK);
    assert_eq!(valid(&join(&out).1).payload, packet.payload);
    rig.conserved();
}

#[test]
fn first_fragments_whose_last_never_comes_are_dropped_by_name() {
    let mut rig = Rig::new(sctp_plan());
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    let pieces = split(&association.pkt(NODE_TAG, &data(3000)).bytes(), &every(1248), 9);
    assert!(pass(&mut rig, FRONT, &pieces[0]).is_empty() && pass(&mut rig, FRONT, &pieces[1]).is_empty());
    assert_eq!(rig.pipeline.frames_held(), 2);
    rig.wait(4);
    rig.sweep();
    let dropped = rig.released();
    assert_eq!(dropped.len(), 2);
    for (_, out) in dropped {
        out.dropped(DropReason::FragmentTimeout);
    }
    // An overlap takes the first one with it, waiting or about to go.
    let pieces = split(&association.pkt(NODE_TAG, &data(3000)).bytes(), &every(1248), 10);
    let overlap = split(&association.pkt(NODE_TAG, &data(3000)).bytes(), &every(1000), 10);
    rig.burst(FRONT, &[&pieces[0], &pieces[2], &overlap[1]], false);
    let dropped = rig.released();
    assert_eq!(dropped.len(), 2);
    for (_, out) in dropped {
        out.dropped(DropReason::FragmentOverlap);
    }
    rig.conserved();
}

/// With several workers: gathered by one, translated by another, which waits for the length too.
#[test]
fn fragments_find_the_worker_that_knows_the_association() {
    let workers = 3;
    let mut rigs: Vec<Rig> = (0..workers).map(|worker| Rig::with(sctp_plan(), &config(worker, workers))).collect();
    let (mut elsewhere, mut opened) = (0, 0);
    for n in 0..12 {
        let client = format!("198.51.100.{}:7000", n + 1);
        let open = Pkt::sctp(&client, TO_SIG, 0, &init(INIT, CLIENT_TAG)).bytes();
        let out = rigs[0].front(&open);
        let (owner, there) = match out.verdict {
            Verdict::Handoff(WorkerId(owner)) => (owner, rigs[usize::from(owner)].handed(FRONT, &open).to_node()),
            _ => (0, out.to_node()),
        };
        opened += 1;
        let answer = Pkt::answer(&there, 0).with(|pkt| pkt.seq = CLIENT_TAG).payload(&data(3000));
        let mut gone = Vec::new();
        // (worker, frame, handed over), until all have left.
        let mut ways: std::collections::VecDeque<(u16, Vec<u8>, bool)> =
            split(&answer.bytes(), &every(1248), n).into_iter().map(|piece| (0, piece, false)).collect();
        while let Some((worker, frame, handed)) = ways.pop_front() {
            let rig = &mut rigs[usize::from(worker)];
            let out = rig.send_as(BACK, &frame, handed);
            let outs = [out].into_iter().chain(rig.released().into_iter().map(|(_, out)| out)).collect::<Vec<_>>();
            for out in outs {
                match out.verdict {
                    Verdict::Handoff(WorkerId(to)) => ways.push_back((to, out.bytes, true)),
                    Verdict::Held(_) => {}
                    Verdict::Tx(_) => {
                        assert_eq!(worker, owner);
                        elsewhere += u32::from(handed);
                        gone.push(out.bytes);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(valid(&join(&gone).1).payload, answer.payload, "client {n}");
    }
    assert!(elsewhere > 0 && opened == 12);
    for rig in &rigs {
        rig.conserved();
    }
}

#[test]
fn icmp_errors_about_sctp_are_translated_with_its_checksum() {
    for (client, vip, router) in [(CLIENT, TO_SIG, "192.0.2.77"), (CLIENT6, TO_SIG6, "2001:db8:77::1")] {
        let mut rig = Rig::new(sctp_plan());
        let association = Association::open(&mut rig, client, vip);
        let sent = association.pkt(NODE_TAG, &data(500));
        let there = rig.front(&sent.bytes());
        let kind: [u8; 8] = if client == CLIENT { [3, 4, 0, 0, 0, 0, 5, 0x14] } else { [2, 0, 0, 0, 0, 0, 5, 0x14] };
        let ip = if client == CLIENT { 20 } else { 40 };
        for quote in [there.bytes.len() - 14, ip + 12, ip + 8] {
            let message = [&kind[..], &there.bytes[14..14 + quote]].concat();
            let snat = association.at_node.src.ip();
            let error = Icmp::message(router.parse().unwrap(), snat, &message).bytes();
            let error = rig.back(&error).to_client();
            let quoted = &error.payload[8..];
            assert_eq!(quoted[ip..], sent.bytes()[14 + ip..14 + quote], "ports and checksum, {quote} bytes quoted");
        }
        rig.check();
    }
}

#[test]
fn a_flood_of_inits_evicts_no_association() {
    let flows = crate::flow::Capacity { established: 100, embryonic: 64 };
    let mut rig = Rig::with(sctp_plan(), &crate::pipeline::PipelineConfig { flows_v4: flows, ..config(0, 1) });
    let association = Association::open(&mut rig, CLIENT, TO_SIG);
    for n in 0..2000_u32 {
        let client = format!("100.64.{}.{}:9", n / 250, n % 250 + 1);
        let there = rig.front(&Pkt::sctp(&client, TO_SIG, 0, &init(INIT, n + 1)).bytes()).to_node();
        // The node refuses some.
        let refuse = Pkt::answer(&there, 0).with(|pkt| pkt.seq = n + 1).payload(&chunk(ABORT, 0, &[]));
        rig.back(&refuse.bytes()).to_client();
    }
    let counts = rig.pipeline.flows_v4().counts();
    assert_eq!((counts.established, counts.embryonic), (1, 64));
    association.request(&mut rig, NODE_TAG, &data(1));
    rig.check();
}

#[test]
fn an_init_nobody_can_take_is_refused_by_an_abort_its_sender_believes() {
    for (client, vip, service) in [(CLIENT, TO_SIG, SIG), (CLIENT6, TO_SIG6, SIG6)] {
        let mut plan = sctp_plan();
        plan.service(service).backends.iter_mut().for_each(crate::pipeline::testkit::down);
        plan.service(service).no_backend = NoBackend::Reject;
        let mut rig = Rig::new(plan);
        let request = Pkt::sctp(client, vip, 0, &init(INIT, CLIENT_TAG)).with(|pkt| pkt.vlans = vec![7]);
        let out = rig.front(&request.bytes());
        let seen = out.to_client();
        assert_eq!((seen.src, seen.dst, seen.dmac), (request.dst, request.src, request.smac));
        assert_eq!((&seen.payload[..], &seen.vlans[..]), (&REFUSED[..], &[7][..]));
        let l4 = if client == CLIENT { 18 + 20 } else { 18 + 40 };
        assert_eq!(out.bytes[l4 + 4..l4 + 8], CLIENT_TAG.to_be_bytes(), "under the tag it asked for");
        assert_eq!(rig.drops(DropReason::NoBackend), 1);
        // Nothing else is answered, and a flood only as far as the budget goes.
        rig.change(|plan| plan.service(service).on_idle = OnIdle::Reset);
        rig.front(&Pkt::sctp(client, vip, 7, &chunk(ABORT, 0, &[])).bytes()).dropped(DropReason::OutOfState);
        let answered = (0..500).filter(|_| rig.front(&request.bytes()).verdict != Verdict::Drop(DropReason::NoBackend));
        assert!((5..20).contains(&answered.count()));
        rig.now.ns += 1_000_000_000;
        rig.change(|plan| plan.service(service).no_backend = NoBackend::Drop);
        rig.front(&request.bytes()).dropped(DropReason::NoBackend);
        rig.check();
    }
}
