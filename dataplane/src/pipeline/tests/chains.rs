//! Packets in several frames: each ends as it would in one. The oracle is the same box with frames that hold any
//! packet whole.

use penstock_configs::desired::{Mode, NoBackend};

use super::fragments::{every, pass, sent, split};
use super::*;
use crate::flow::State;
use crate::pipeline::testkit::{BACK, FRONT, Icmp, config, valid};
use crate::verdict::{DropReason, PortId, Verdict, WorkerId};
use crate::wire::{self, TCP_RST, Tags};

/// What a frame of 2,048 bytes has room for.
const ROOM: usize = 1792;
/// Headers, and hardly anything behind them.
const HEADERS: usize = 128;

fn jumbo() -> Plan {
    let mut plan = plan();
    plan.mtu = 9000;
    plan
}

/// The same box three times: packets whole, in full frames, and with little in the first.
struct Trio([Rig; 3]);

impl Trio {
    fn new(plan: impl Fn() -> Plan) -> Self {
        Self(
            [(16384, usize::MAX), (2048, ROOM), (2048, HEADERS)]
                .map(|(size, first)| Rig::new(plan()).in_frames(size, first)),
        )
    }

    /// A packet to each: one verdict and one packet out, whatever the frames.
    #[track_caller]
    fn send(&mut self, from: PortId, packet: &[u8]) -> Out {
        let [whole, full, short] = &mut self.0;
        let out = whole.send(from, packet);
        for rig in [full, short] {
            let other = rig.send(from, packet);
            assert_eq!(other.verdict, out.verdict, "{} bytes, {} in the first frame", packet.len(), rig.first);
            assert!(other.bytes == out.bytes, "{} bytes, {} in the first frame", packet.len(), rig.first);
            rig.conserved();
            rig.check();
            assert_eq!(states(rig), states(whole));
        }
        out
    }

    #[track_caller]
    fn front(&mut self, packet: &[u8]) -> Out {
        self.send(FRONT, packet)
    }

    fn each(&mut self, mut act: impl FnMut(&mut Rig)) {
        self.0.iter_mut().for_each(&mut act);
    }
}

/// What the packets so far have made of the flows.
fn states(rig: &Rig) -> Vec<State> {
    let v6 = rig.pipeline.flows_v6().live().map(|(_, word)| word.state);
    rig.pipeline.flows_v4().live().map(|(_, word)| word.state).chain(v6).collect()
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 % 251) as u8).collect()
}

/// Around the ends of frames.
const SIZES: [usize; 8] = [1700, 1740, 1800, 3530, 3600, 5400, 8900, 8948];

#[test]
fn tcp_both_ways_by_the_short_way_and_the_long() {
    for (client, vip) in [(CLIENT, TO_WEB), (CLIENT6, TO_WEB6)] {
        let mut trio = Trio::new(jumbo);
        let at_node = trio.front(&Pkt::syn(client, vip).bytes()).to_node();
        trio.send(BACK, &Pkt::answer(&at_node, TCP_SYN | TCP_ACK).bytes()).to_client();
        for len in SIZES.map(|len| len - 20) {
            // Plain, and with an option of TCP's, which only the long way knows.
            for timestamp in [None, Some(7)] {
                let request = Pkt::tcp(client, vip, TCP_ACK).payload(&data(len - 12)).with(|p| p.timestamp = timestamp);
                let seen = trio.front(&request.bytes()).to_node();
                assert_eq!((seen.src, seen.dst, seen.ttl), (at_node.src, at_node.dst, 63));
                assert!(seen.payload == data(len - 12));
                let reply = Pkt::answer(&at_node, TCP_ACK).payload(&data(len - 12)).with(|p| p.timestamp = timestamp);
                let seen = trio.send(BACK, &reply.bytes()).to_client();
                assert_eq!(seen.src.to_string(), vip);
                assert!(seen.payload == data(len - 12));
            }
        }
        // Bytes are the whole packets'.
        let bytes = trio.0.each_ref().map(|rig| {
            let v4 = rig.pipeline.flows_v4().live().map(|(r, _)| (r.forward_bytes, r.reverse_bytes));
            let v6 = rig.pipeline.flows_v6().live().map(|(r, _)| (r.forward_bytes, r.reverse_bytes));
            v4.chain(v6).next().expect("a flow")
        });
        assert!(bytes.iter().all(|one| *one == bytes[0] && one.0 > 60_000), "{bytes:?}");
    }
}

#[test]
fn udp_sctp_and_echoes() {
    for (client, vip) in [(CLIENT, TO_DNS), (CLIENT6, TO_DNS6)] {
        let mut trio = Trio::new(jumbo);
        for len in SIZES {
            let seen = trio.front(&Pkt::udp(client, vip).payload(&data(len)).bytes()).to_node();
            trio.send(BACK, &Pkt::answer(&seen, 0).payload(&data(len)).bytes()).to_client();
            let unchecked = Pkt::udp(client, vip).payload(&data(len)).with(|pkt| pkt.unchecked = true);
            trio.front(&unchecked.bytes()).to_node();
        }
    }
    for (client, vip) in [("198.51.100.7", VIP), ("2001:db8:2::7", VIP6)] {
        let mut trio = Trio::new(jumbo);
        let out = trio.front(&Icmp::echo(client, vip, &data(8900)).bytes());
        assert_eq!(out.verdict, Verdict::Tx(FRONT));
        assert!(valid(&out.bytes).payload[8..] == data(8900));
    }
    // A CRC over all of it, mended by how far the ports are from the packet's end.
    let sctp = |at: &Pkt, len: usize| {
        let chunk = [&[0, 3][..], &(16 + len as u16).to_be_bytes(), &[0; 12], &data(len)].concat();
        at.clone().payload(&chunk).bytes()
    };
    let mut trio = Trio::new(|| {
        let mut plan = jumbo();
        plan.serve("203.0.113.10:9/sctp", &["10.0.0.11:31009"]);
        plan
    });
    let init = [&[1, 0, 0, 20, 0, 0, 0, 5, 0, 0, 1, 0, 0, 1, 0, 1][..], &[0; 4]].concat();
    let at_node = trio.front(&Pkt::sctp(CLIENT, "203.0.113.10:9", 0, &init).bytes()).to_node();
    let init_ack = [&[2, 0, 0, 20, 0, 0, 0, 9][..], &init[8..]].concat();
    trio.send(BACK, &Pkt::answer(&at_node, 0).with(|pkt| pkt.seq = 5).payload(&init_ack).bytes()).to_client();
    // With the first data behind them, as stacks do.
    for kind in [wire::sctp::COOKIE_ECHO, wire::sctp::SHUTDOWN] {
        let before = states(&trio.0[0]);
        let chunks = [&[kind, 0, 0, 4, 0, 3][..], &(16 + 5000_u16).to_be_bytes(), &[0; 12], &data(5000)].concat();
        trio.front(&Pkt::sctp(CLIENT, "203.0.113.10:9", 9, &chunks).bytes()).to_node();
        assert_ne!(states(&trio.0[0]), before, "chunk {kind}");
    }
    for len in [1800, 5400, 8900] {
        let seen = trio.front(&sctp(&Pkt::sctp(CLIENT, "203.0.113.10:9", 9, &[]), len)).to_node();
        assert!(seen.payload[16..] == data(len));
    }
}

#[test]
fn what_does_not_fit_or_may_not_pass_is_answered_from_its_first_frame() {
    for (client, udp, tcp) in [(CLIENT, TO_DNS, TO_WEB), (CLIENT6, TO_DNS6, TO_WEB6)] {
        let mut trio = Trio::new(|| {
            let mut plan = jumbo();
            plan.node_mtu = Some(1500);
            plan
        });
        let verdict = |out: Out| (out.verdict, out.bytes.len());
        // Whole frames have more to quote than a first frame of headers.
        trio.0[2].first = 1400;
        for packet in [Pkt::udp(client, udp), Pkt::syn(client, tcp)] {
            let (too_big, len) = verdict(trio.front(&packet.payload(&data(8000)).bytes()));
            assert_eq!(too_big, Verdict::Tx(FRONT), "too big, and said so");
            assert!((400..1300).contains(&len), "{len}");
        }
        trio.each(|rig| assert_eq!(rig.drops(DropReason::TooBig), 2));
        // TTL.
        let spent = Pkt::udp(client, udp).payload(&data(8000)).with(|pkt| pkt.ttl = 1);
        assert_eq!(trio.front(&spent.bytes()).verdict, Verdict::Tx(FRONT));
        trio.each(|rig| assert_eq!(rig.drops(DropReason::TtlExceeded), 1));
        // Nobody to serve it.
        trio.each(|rig| {
            rig.change(|plan| {
                for name in [WEB, WEB6, DNS, DNS6] {
                    plan.service(name).backends.iter_mut().for_each(crate::pipeline::testkit::down);
                    plan.service(name).no_backend = NoBackend::Reject;
                }
            });
        });
        let rst = trio.front(&Pkt::syn("198.51.100.9:1", TO_WEB).payload(&data(5000)).bytes());
        let seen = valid(&rst.bytes);
        assert_eq!((rst.verdict, seen.flags & TCP_RST, seen.ack), (Verdict::Tx(FRONT), TCP_RST, 6001));
        trio.front(&Pkt::tcp("198.51.100.9:2", TO_WEB, TCP_ACK).payload(&data(5000)).bytes())
            .dropped(DropReason::OutOfState);
        trio.front(
            &Pkt::udp(client, "203.0.113.10:99").with(|p| p.src = CLIENT.parse().unwrap()).payload(&data(5000)).bytes(),
        )
        .dropped(DropReason::NoService);
    }
}

#[test]
fn an_answer_quotes_no_more_than_there_is() {
    let mut rig = Rig::new(jumbo()).in_frames(2048, HEADERS);
    let spent = Pkt::udp(CLIENT, TO_DNS).payload(&data(8000)).with(|pkt| pkt.ttl = 1);
    let out = rig.front(&spent.bytes());
    assert_eq!(out.verdict, Verdict::Tx(FRONT));
    // Ethernet, IP and ICMP headers, and the 114 bytes of IP packet in the first frame.
    assert_eq!(out.bytes.len(), 14 + 20 + 8 + HEADERS - 14);
    assert_eq!(out.bytes[42..], spent.bytes()[14..HEADERS]);
    valid(&out.bytes);
    rig.conserved();
}

#[test]
fn tags_are_exchanged_however_full_the_first_frame_is() {
    let tags = [Tags::NONE, Tags::NONE.with(0x8100, 20), Tags::NONE.with(0x88a8, 30).with(0x8100, 20)];
    for vlans in [vec![], vec![7], vec![8, 7]] {
        for to in tags {
            let mut trio = Trio::new(|| {
                let mut plan = jumbo();
                plan.node_tags = Some(to);
                plan
            });
            for len in SIZES {
                let request = Pkt::udp(CLIENT, TO_DNS).payload(&data(len)).with(|pkt| pkt.vlans.clone_from(&vlans));
                let seen = trio.front(&request.bytes()).to_node();
                let expected: &[u16] = [&[][..], &[20], &[30, 20]][to.count()];
                assert_eq!(seen.vlans, expected);
                let reply = Pkt::answer(&seen, 0).payload(&data(len));
                assert_eq!(trio.send(BACK, &reply.bytes()).to_client().vlans, vlans);
            }
        }
    }
}

#[test]
fn a_dsr_service_and_packets_for_others() {
    let mut trio = Trio::new(|| {
        let mut plan = jumbo();
        let service = plan.service(DNS);
        service.mode = Mode::Dsr;
        service.backends[0].port = None;
        plan
    });
    let seen = trio.front(&Pkt::udp(CLIENT, TO_DNS).payload(&data(8900)).bytes()).to_node();
    assert_eq!(seen.dst.to_string(), TO_DNS);
    let foreign = Pkt::udp(CLIENT, "203.0.113.99:53").payload(&data(8900)).bytes();
    let out = trio.front(&foreign);
    assert_eq!(out.verdict, Verdict::Kernel);
    assert!(out.bytes == foreign, "untouched");
}

#[test]
fn another_workers_packets_are_handed_over() {
    let mut trio = Trio(
        [(16384, usize::MAX), (2048, ROOM), (2048, HEADERS)]
            .map(|(size, first)| Rig::with(jumbo(), &config(0, 2)).in_frames(size, first)),
    );
    let mut handed = 0;
    for port in 1..40 {
        let packet = Pkt::udp(&format!("198.51.100.7:{port}"), TO_DNS).payload(&data(8900)).bytes();
        let out = trio.front(&packet);
        if out.verdict == Verdict::Handoff(WorkerId(1)) {
            assert!(out.bytes == packet, "untouched");
            handed += 1;
        } else {
            out.to_node();
        }
    }
    assert!((5..35).contains(&handed), "{handed}");
}

/// Fragments themselves larger than a frame, in order and not.
#[test]
fn large_fragments_wait_and_pass() {
    for (client, vip) in [(CLIENT, TO_DNS), (CLIENT6, TO_DNS6)] {
        for first in [usize::MAX, ROOM, HEADERS] {
            for reversed in [false, true] {
                let mut rig = Rig::new(jumbo()).in_frames(if first == usize::MAX { 16384 } else { 2048 }, first);
                let request = Pkt::udp(client, vip).payload(&data(30_000));
                let mut pieces = split(&request.bytes(), &every(8000), 77);
                if reversed {
                    pieces.reverse();
                }
                let mut out = Vec::new();
                for piece in &pieces {
                    let sent = sent(pass(&mut rig, FRONT, piece), BACK);
                    assert!(sent.iter().all(|bytes| bytes.len() > 5000));
                    out.extend(sent);
                }
                assert_eq!(out.len(), pieces.len());
                let whole = valid(&super::fragments::join(&out).1);
                assert!(whole.payload == data(30_000));
                rig.conserved();
            }
        }
    }
}

/// Errors about jumbo packets: small themselves, and such that come in several frames.
#[test]
fn errors_are_translated_or_dropped_by_name() {
    let mut trio = Trio::new(jumbo);
    let request = Pkt::udp(CLIENT, TO_DNS).payload(&data(8900)).bytes();
    let at_node = trio.front(&request).bytes;
    let quote = |len: usize| {
        let message = [&[3, 4, 0, 0, 0, 0, 0x05, 0xdc][..], &at_node[14..14 + len]].concat();
        let (src, dst) = ("10.0.0.11".parse().unwrap(), SNAT.parse().unwrap());
        Icmp::message(src, dst, &message).bytes()
    };
    for len in [28, 528, 5000] {
        // A quote that goes on in the second frame has its headers in the first, if that is full.
        trio.0[2].first = 200;
        trio.send(BACK, &quote(len)).to_client();
    }
    let mut rig = Rig::new(jumbo()).in_frames(2048, HEADERS);
    rig.front(&request).to_node();
    for first in [43, 60, 63, 70] {
        rig.first = first;
        rig.back(&quote(5000)).dropped(DropReason::HeadersSplit);
        rig.conserved();
    }
}

/// Whatever is cut through the headers: dropped by name, never passed on by a guess; and malformed packets are what
/// they are in one frame.
#[test]
fn headers_must_be_in_the_first_frame() {
    let option = |flags| Pkt::tcp(CLIENT, TO_WEB, flags).with(|pkt| pkt.timestamp = Some(9)).payload(&data(3000));
    let packets = [
        (option(TCP_SYN).bytes(), 66),
        (option(TCP_ACK).with(|pkt| pkt.ip_options = vec![1; 8]).bytes(), 74),
        (option(TCP_ACK).with(|pkt| pkt.vlans = vec![5, 6]).bytes(), 74),
        (Pkt::tcp(CLIENT6, TO_WEB6, TCP_SYN).payload(&data(3000)).bytes(), 74),
        (Pkt::udp(CLIENT, TO_DNS).payload(&data(3000)).bytes(), 42),
        (Pkt::udp(CLIENT6, TO_DNS6).payload(&data(3000)).bytes(), 62),
        (Icmp::echo("198.51.100.7", VIP, &data(3000)).bytes(), 42),
        (split(&Pkt::udp(CLIENT, TO_DNS).payload(&data(6000)).bytes(), &[3000], 7)[0].clone(), 94),
        (Pkt::sctp(CLIENT, TO_WEB, 0, &[&[1, 0, 11, 192, 0, 0, 0, 5][..], &data(3000)].concat()).bytes(), 3054),
    ];
    for (packet, headers) in packets {
        let mut whole = Rig::new(jumbo()).in_frames(16384, usize::MAX);
        let expected = whole.front(&packet);
        for first in 14..headers.min(200) {
            let mut rig = Rig::new(jumbo()).in_frames(2048, first);
            rig.front(&packet).dropped(DropReason::HeadersSplit);
            rig.conserved();
        }
        if headers < 200 {
            let out = Rig::new(jumbo()).in_frames(2048, headers).front(&packet);
            assert_eq!(out.verdict, expected.verdict, "{headers} bytes of headers");
        }
        // Longer by its own word than it is.
        let mut short = packet.clone();
        short.truncate(2500);
        let drop = |first| Rig::new(jumbo()).in_frames(if first > ROOM { 16384 } else { 2048 }, first).front(&short);
        assert_eq!(drop(headers.min(ROOM)).verdict, drop(usize::MAX).verdict);
        assert!(matches!(drop(usize::MAX).verdict, Verdict::Drop(DropReason::BadTotalLength)));
    }
}
