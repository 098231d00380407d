//! Datagrams in pieces: each leaves as a piece of the datagram that leaves whole.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use penstock_configs::desired::Mode;
use proptest::prelude::*;

use super::*;
use crate::fragment::{DATAGRAMS, PIECES, WAITING};
use crate::pipeline::testkit::{BACK, FRONT, Icmp, config, internet_sum, valid};
use crate::verdict::{DropReason, PortId, Verdict};

/// Cuts a frame's IP payload at these offsets, all multiples of eight.
pub(super) fn split(frame: &[u8], cuts: &[usize], id: u32) -> Vec<Vec<u8>> {
    let v4 = frame[12] == 8;
    let l4 = if v4 { 34 } else { 54 };
    let payload = &frame[l4..];
    let ends: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < payload.len()).chain([payload.len()]).collect();
    let mut start = 0;
    let mut pieces = Vec::new();
    for end in ends {
        let more = end < payload.len();
        let mut piece = frame[..l4].to_vec();
        if v4 {
            let field = (start / 8) as u16 | if more { 0x2000 } else { 0 };
            piece[16..18].copy_from_slice(&((20 + end - start) as u16).to_be_bytes());
            piece[18..20].copy_from_slice(&(id as u16).to_be_bytes());
            piece[20..22].copy_from_slice(&field.to_be_bytes());
            piece[24..26].fill(0);
            let sum = internet_sum(&[], &piece[14..34]);
            piece[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            let field = start as u16 | u16::from(more);
            let protocol = std::mem::replace(&mut piece[20], 44);
            piece[18..20].copy_from_slice(&((8 + end - start) as u16).to_be_bytes());
            piece.extend([protocol, 0]);
            piece.extend(field.to_be_bytes());
            piece.extend(id.to_be_bytes());
        }
        piece.extend(&payload[start..end]);
        pieces.push(piece);
        start = end;
    }
    pieces
}

/// Puts pieces together as an end system does, and returns the identification and the whole.
pub(super) fn join(pieces: &[Vec<u8>]) -> (u32, Vec<u8>) {
    let mut parts: BTreeMap<usize, &[u8]> = BTreeMap::new();
    let mut heads: Vec<(u32, Vec<u8>)> = Vec::new();
    for piece in pieces {
        let word = |at: usize| u16::from_be_bytes([piece[at], piece[at + 1]]);
        if piece[12] == 8 {
            assert_eq!(internet_sum(&[], &piece[14..34]), 0, "IP header checksum");
            parts.insert(usize::from(word(20) & 0x1fff) * 8, &piece[34..14 + usize::from(word(16))]);
            heads.push((u32::from(word(18)), piece[..34].to_vec()));
        } else {
            let id = u32::from_be_bytes(piece[58..62].try_into().unwrap());
            parts.insert(usize::from(word(56) & 0xfff8), &piece[62..]);
            let mut head = piece[..54].to_vec();
            head[20] = piece[54];
            heads.push((id, head));
        }
    }
    let (id, mut whole) = heads[0].clone();
    assert!(heads.iter().all(|(other, head)| *other == id && head[26..34] == whole[26..34]), "one datagram");
    let mut at = 0;
    for (start, part) in parts {
        assert_eq!(start, at, "a hole, or an overlap");
        whole.extend(part);
        at += part.len();
    }
    if whole[12] == 8 {
        whole[16..18].copy_from_slice(&((20 + at) as u16).to_be_bytes());
        whole[20..22].fill(0);
        whole[24..26].fill(0);
        let sum = internet_sum(&[], &whole[14..34]);
        whole[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        whole[18..20].copy_from_slice(&(at as u16).to_be_bytes());
    }
    (id, whole)
}

/// All that leaves when a frame comes in.
pub(super) fn pass(rig: &mut Rig, from: PortId, frame: &[u8]) -> Vec<Out> {
    let out = rig.send(from, frame);
    let mut outs: Vec<Out> = [out].into_iter().filter(|out| !matches!(out.verdict, Verdict::Held(_))).collect();
    outs.extend(rig.released().into_iter().map(|(_, out)| out));
    rig.conserved();
    outs
}

#[track_caller]
pub(super) fn sent(outs: Vec<Out>, port: PortId) -> Vec<Vec<u8>> {
    outs.into_iter()
        .map(|out| {
            assert_eq!(out.verdict, Verdict::Tx(port));
            out.bytes
        })
        .collect()
}

pub(super) fn every(step: usize) -> Vec<usize> {
    (1..100).map(|n| n * step).collect()
}

fn datagram(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 % 251) as u8).collect()
}

#[test]
fn eight_kilobytes_both_ways_in_and_out_of_order() {
    for (client, vip) in [(CLIENT, TO_DNS), (CLIENT6, TO_DNS6)] {
        for reversed in [false, true] {
            let mut rig = rig();
            let request = Pkt::udp(client, vip).payload(&datagram(8000));
            let mut pieces = split(&request.bytes(), &every(1448), 77);
            assert_eq!(pieces.len(), 6);
            if reversed {
                pieces.reverse();
            }
            let there: Vec<Vec<u8>> =
                pieces.iter().flat_map(|piece| sent(pass(&mut rig, FRONT, piece), BACK)).collect();
            assert_eq!(there.len(), 6);
            let seen = valid(&join(&there).1);
            assert_eq!(seen.payload, request.payload);
            assert_eq!((seen.dst.port(), seen.ttl), (31053, 63));
            let answer = Pkt::answer(&seen, 0).payload(&datagram(7999));
            let mut pieces = split(&answer.bytes(), &every(1448), 78);
            if reversed {
                pieces.reverse();
            }
            let back: Vec<Vec<u8>> = pieces.iter().flat_map(|piece| sent(pass(&mut rig, BACK, piece), FRONT)).collect();
            let seen = valid(&join(&back).1);
            assert_eq!((seen.src, seen.dst, &seen.payload), (request.dst, request.src, &answer.payload));
            assert_eq!(rig.pipeline.stats().flows_created.get(), 1);
            assert_eq!(rig.pipeline.frames_held(), 0);
        }
    }
}

#[test]
fn within_one_burst() {
    let mut rig = rig();
    let request = Pkt::udp(CLIENT, TO_DNS).payload(&datagram(4000));
    let mut pieces = split(&request.bytes(), &every(800), 1);
    pieces.swap(0, 2);
    let frames: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let outs = rig.burst(FRONT, &frames, false);
    let held = outs.iter().filter(|out| matches!(out.verdict, Verdict::Held(_))).count();
    assert_eq!(held, 2);
    let mut there: Vec<Vec<u8>> =
        outs.into_iter().filter(|out| out.verdict == Verdict::Tx(BACK)).map(|out| out.bytes).collect();
    there.extend(rig.released().into_iter().map(|(_, out)| out.bytes));
    assert_eq!(valid(&join(&there).1).payload, request.payload);
    rig.conserved();
}

/// Two clients' datagrams with one identification share the SNAT address: they leave with two.
#[test]
fn identifications_do_not_meet_behind_one_address() {
    let mut rig = rig();
    let mut ids = Vec::new();
    for client in ["198.51.100.7:1000", "198.51.100.8:1000", "198.51.100.9:1000"] {
        let request = Pkt::udp(client, TO_DNS).payload(&datagram(2000));
        let there: Vec<Vec<u8>> = split(&request.bytes(), &[1200], 4242)
            .iter()
            .flat_map(|piece| sent(pass(&mut rig, FRONT, piece), BACK))
            .collect();
        ids.push(join(&there).0);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

#[test]
fn tcp_and_dnat_fragments_pass() {
    let mut plan = plan();
    for service in &mut plan.services {
        service.mode = Mode::Dnat;
    }
    let mut rig = Rig::new(plan);
    let request = Pkt::syn(CLIENT, TO_WEB).payload(&datagram(1000));
    let there: Vec<Vec<u8>> = split(&request.bytes(), &every(400), 5)
        .iter()
        .flat_map(|piece| sent(pass(&mut rig, FRONT, piece), BACK))
        .collect();
    let seen = valid(&join(&there).1);
    assert_eq!((seen.src, &seen.payload, seen.flags), (request.src, &request.payload, TCP_SYN));
    let answer = Pkt::answer(&seen, TCP_SYN | TCP_ACK).payload(&datagram(900));
    let mut pieces = split(&answer.bytes(), &every(400), 6);
    pieces.reverse();
    let back: Vec<Vec<u8>> = pieces.iter().flat_map(|piece| sent(pass(&mut rig, BACK, piece), FRONT)).collect();
    let seen = valid(&join(&back).1);
    assert_eq!((seen.src, seen.dst), (request.dst, request.src));
    // The backend's own business on another port is the kernel's, all of it.
    let own = Pkt::between("10.0.0.11:5353".parse().unwrap(), "198.51.100.9:53".parse().unwrap(), 17, 0);
    let mut pieces = split(&own.payload(&datagram(900)).bytes(), &every(400), 7);
    pieces.reverse();
    let outs: Vec<Out> = pieces.iter().flat_map(|piece| pass(&mut rig, BACK, piece)).collect();
    assert!(outs.len() == 3 && outs.iter().all(|out| out.verdict == Verdict::Kernel));
}

#[test]
fn the_fate_of_the_first_is_that_of_all() {
    let refused = |plan: Plan, request: &Pkt, reason: DropReason, order: &[usize]| {
        let mut rig = Rig::new(plan);
        let pieces = split(&request.bytes(), &every(800), 9);
        let outs: Vec<Out> = order.iter().flat_map(|at| pass(&mut rig, FRONT, &pieces[*at])).collect();
        assert_eq!(outs.len(), order.len());
        assert!(outs.iter().all(|out| out.verdict == Verdict::Drop(reason)), "{reason:?}: {outs:?}");
        assert_eq!(rig.drops(reason), order.len() as u64);
    };
    let long = datagram(2000);
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let to_nobody = Pkt::udp(CLIENT, "203.0.113.10:99").payload(&long);
        refused(plan(), &to_nobody, DropReason::NoService, &order);
        refused(plan(), &Pkt::tcp(CLIENT, TO_WEB, TCP_ACK).payload(&long), DropReason::OutOfState, &order);
        refused(plan(), &Pkt::udp("198.51.100.7:0", TO_DNS).payload(&long), DropReason::PortZero, &order);
        refused(plan(), &Pkt::udp("127.0.0.1:9", TO_DNS).payload(&long), DropReason::Martian, &order);
    }
    let mut shared = plan();
    shared.snat.clear();
    shared.snat(SNAT, [40_000, 40_999]).shared = true;
    let mut rig = Rig::new(shared);
    let reply = Pkt::between("10.0.0.11:31053".parse().unwrap(), "10.0.0.1:40001".parse().unwrap(), 17, 0);
    for piece in split(&reply.payload(&long).bytes(), &every(800), 9) {
        assert_eq!(rig.back(&piece).verdict, Verdict::Kernel, "a shared address's fragments");
    }
    for piece in split(&Icmp::echo("198.51.100.7", VIP, &long).bytes(), &every(800), 9) {
        rig.front(&piece).dropped(DropReason::UnsupportedProtocol);
    }
}

#[test]
fn overlaps_end_the_datagram_and_copies_do_not() {
    let request = Pkt::udp(CLIENT, TO_DNS).payload(&datagram(4000));
    let good = split(&request.bytes(), &every(800), 3);
    let crossing = split(&request.bytes(), &[792, 2400], 3);
    let mut rig = rig();
    assert_eq!(sent(pass(&mut rig, FRONT, &good[0]), BACK).len(), 1);
    rig.front(&good[0]).dropped(DropReason::FragmentCopy);
    assert_eq!(sent(pass(&mut rig, FRONT, &good[1]), BACK).len(), 1);
    rig.front(&good[1]).dropped(DropReason::FragmentCopy);
    rig.front(&crossing[1]).dropped(DropReason::FragmentOverlap);
    rig.front(&good[3]).dropped(DropReason::FragmentOverlap);
    // What waits goes with it.
    let other = |pieces: &[Vec<u8>], at: usize| {
        let mut piece = pieces[at].clone();
        piece[19] = 4;
        piece
    };
    assert!(pass(&mut rig, FRONT, &other(&good, 2)).is_empty());
    let outs = pass(&mut rig, FRONT, &other(&crossing, 1));
    assert_eq!(outs.len(), 2);
    assert!(outs.iter().all(|out| out.verdict == Verdict::Drop(DropReason::FragmentOverlap)));
    rig.front(&other(&good, 0)).dropped(DropReason::FragmentOverlap);
    assert_eq!(rig.drops(DropReason::FragmentOverlap), 5);
    // A second end, and an end before what has come.
    for (first, second) in [(4, 2), (3, 2)] {
        let mut rig = self::rig();
        let short = Pkt::udp(CLIENT, TO_DNS).payload(&datagram(1800));
        let short = split(&short.bytes(), &every(800), 3);
        rig.front(&good[0]).to_node_piece();
        rig.front(&good[first]).to_node_piece();
        rig.front(&short[second]).dropped(DropReason::FragmentOverlap);
    }
}

impl Out {
    #[track_caller]
    fn to_node_piece(&self) {
        assert_eq!(self.verdict, Verdict::Tx(BACK));
    }
}

#[test]
fn completed_datagrams_leave_their_identification_free() {
    let mut rig = rig();
    for _ in 0..3 {
        let request = Pkt::udp(CLIENT, TO_DNS).payload(&datagram(2000));
        for piece in split(&request.bytes(), &every(800), 3) {
            rig.front(&piece).to_node_piece();
        }
    }
}

#[test]
fn what_waits_in_vain_is_dropped_in_time() {
    for (client, vip) in [(CLIENT, TO_DNS), (CLIENT6, TO_DNS6)] {
        let mut rig = rig();
        let pieces = split(&Pkt::udp(client, vip).payload(&datagram(4000)).bytes(), &every(800), 3);
        assert!(pass(&mut rig, FRONT, &pieces[1]).is_empty());
        assert!(pass(&mut rig, FRONT, &pieces[3]).is_empty());
        assert_eq!(rig.pipeline.frames_held(), 2);
        rig.wait(2);
        rig.pipeline.upkeep(rig.now);
        assert!(rig.released().is_empty(), "not yet");
        rig.wait(1);
        rig.pipeline.upkeep(rig.now);
        let outs = rig.released();
        assert_eq!(outs.len(), 2);
        assert!(
            outs.iter().all(|(from, out)| *from == FRONT && out.verdict == Verdict::Drop(DropReason::FragmentTimeout))
        );
        assert_eq!((rig.drops(DropReason::FragmentTimeout), rig.pipeline.frames_held()), (2, 0));
        rig.conserved();
        // The first alone is no reason to forget nothing: it may begin anew.
        rig.front(&pieces[0]).to_node_piece();
    }
}

#[test]
fn floods_of_fragments_are_bounded() {
    let mut rig = rig();
    let pieces = |id| split(&Pkt::udp(CLIENT, TO_DNS).payload(&datagram(2000)).bytes(), &every(800), id);
    // Later ones only: the longest waiting make room.
    for id in 0..2000 {
        pass(&mut rig, FRONT, &pieces(id)[1]);
        assert!(rig.pipeline.frames_held() <= WAITING);
    }
    assert_eq!(rig.pipeline.frames_held(), WAITING);
    assert_eq!(rig.drops(DropReason::FragmentLimit), 2000 - WAITING as u64);
    // Behind the flood a datagram passes in any order.
    let mut honest = pieces(60_000);
    honest.reverse();
    let there: Vec<Vec<u8>> = honest
        .iter()
        .flat_map(|piece| pass(&mut rig, FRONT, piece))
        .filter(|out| out.verdict == Verdict::Tx(BACK))
        .map(|out| out.bytes)
        .collect();
    assert_eq!(valid(&join(&there).1).payload, datagram(2000));
    // First ones only: the oldest datagrams make room, those that wait are dropped with them.
    for id in 10_000..10_000 + 2 * DATAGRAMS as u32 {
        pass(&mut rig, FRONT, &pieces(id)[0]);
    }
    assert_eq!(rig.pipeline.frames_held(), 0);
    rig.conserved();
    // Very small pieces.
    let mut rig = self::rig();
    let tiny = split(&Pkt::udp(CLIENT, TO_DNS).payload(&datagram(1000)).bytes(), &every(8), 1);
    for piece in &tiny[..PIECES] {
        rig.front(piece).to_node_piece();
    }
    rig.front(&tiny[PIECES]).dropped(DropReason::FragmentLimit);
}

/// An error about a fragment: for the first one only.
#[test]
fn too_big_and_time_exceeded_for_the_first_only() {
    let mut plan = plan();
    plan.node_mtu = Some(1300);
    let mut rig = Rig::new(plan);
    for (client, vip) in [(CLIENT, TO_DNS), (CLIENT6, TO_DNS6)] {
        let request = Pkt::udp(client, vip).payload(&datagram(4000));
        for order in [[0, 1, 2], [2, 1, 0]] {
            let pieces = split(&request.bytes(), &every(1400), order[0] as u32);
            let outs: Vec<Out> = order.iter().flat_map(|at| pass(&mut rig, FRONT, &pieces[*at])).collect();
            let errors: Vec<&Out> = outs.iter().filter(|out| out.verdict == Verdict::Tx(FRONT)).collect();
            assert_eq!((outs.len(), errors.len()), (3, 1));
            assert_eq!(valid(&errors[0].bytes).payload[4..8], [0, 0, 5, 0x14]);
        }
        let dying = split(&request.with(|pkt| pkt.ttl = 1).bytes(), &every(1200), 9);
        let outs: Vec<Out> = dying.iter().flat_map(|piece| pass(&mut rig, FRONT, piece)).collect();
        assert_eq!(valid(&outs[0].bytes).payload[0], if client == CLIENT { 11 } else { 3 });
        assert!(outs[1..].iter().all(|out| out.verdict == Verdict::Drop(DropReason::TtlExceeded)));
    }
}

/// The answer to who cannot be served is about the first one too, and the rest are named for the same reason.
#[test]
fn no_backend_is_said_of_the_first_only() {
    let mut plan = plan();
    for service in &mut plan.services {
        service.backends.clear();
        service.no_backend = penstock_configs::desired::NoBackend::Reject;
    }
    let mut rig = Rig::new(plan);
    for (client, vip, kind) in [(CLIENT, TO_DNS, [3, 3]), (CLIENT6, TO_DNS6, [1, 4])] {
        let pieces = split(&Pkt::udp(client, vip).payload(&datagram(4000)).bytes(), &every(1400), 9);
        let outs: Vec<Out> = [1, 0, 2].iter().flat_map(|at| pass(&mut rig, FRONT, &pieces[*at])).collect();
        let (answers, drops): (Vec<&Out>, Vec<&Out>) = outs.iter().partition(|out| out.verdict == Verdict::Tx(FRONT));
        assert_eq!(answers.iter().map(|out| valid(&out.bytes).payload[..2].to_vec()).collect::<Vec<_>>(), [kind]);
        assert!(drops.len() == 2 && drops.iter().all(|out| out.verdict == Verdict::Drop(DropReason::NoBackend)));
    }
}

/// Frames between two workers, with the ports they came in by.
type Lane = VecDeque<(PortId, Vec<u8>)>;

/// Several workers with rings between them that keep their order and deliver when chance has it.
struct Cluster {
    rigs: Vec<Rig>,
    lanes: BTreeMap<(usize, usize), Lane>,
    out: Vec<Out>,
    handoffs: usize,
}

impl Cluster {
    fn new(workers: u16, plan: &Plan) -> Self {
        let rigs = (0..workers).map(|worker| Rig::with(plan.clone(), &config(worker, workers))).collect();
        Self { rigs, lanes: BTreeMap::new(), out: Vec::new(), handoffs: 0 }
    }

    fn arrive(&mut self, worker: usize, from: PortId, frame: &[u8], handed: bool) {
        let rig = &mut self.rigs[worker];
        let out = if handed { rig.handed(from, frame) } else { rig.send(from, frame) };
        let outs: Vec<(PortId, Out)> = std::iter::once((from, out)).chain(rig.released()).collect();
        rig.conserved();
        for (from, out) in outs {
            match out.verdict {
                Verdict::Held(_) => {}
                Verdict::Handoff(owner) => {
                    let owner = usize::from(owner.0);
                    assert_ne!(owner, worker);
                    self.handoffs += 1;
                    self.lanes.entry((worker, owner)).or_default().push_back((from, out.bytes));
                }
                _ => self.out.push(out),
            }
        }
    }

    /// Delivers one hand-off, if any waits, from a lane of `dice`'s choice.
    fn step(&mut self, dice: usize) -> bool {
        let full: Vec<(usize, usize)> =
            self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(lane, _)| *lane).collect();
        let Some(lane) = full.get(dice % full.len().max(1)) else { return false };
        let Some((from, frame)) = self.lanes.get_mut(lane).and_then(VecDeque::pop_front) else { return false };
        self.arrive(lane.1, from, &frame, true);
        true
    }

    fn settle(&mut self) -> Vec<Out> {
        while self.step(self.handoffs) {}
        std::mem::take(&mut self.out)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Any datagram, cut anywhere, in any order, at any worker's queue: what leaves is the NATed
    /// datagram in pieces, and nothing else.
    #[test]
    fn any_datagram_in_any_order_at_any_worker(
        v6: bool, workers in 1_u16..5, len in 100_usize..8000, cuts in proptest::collection::vec(3_usize..180, 1..12),
        dice in proptest::collection::vec(any::<usize>(), 64), client_port in 1024_u16..,
    ) {
        let (client, vip) = if v6 { ("2001:db8:2::7", TO_DNS6) } else { ("198.51.100.7", TO_DNS) };
        let client = SocketAddr::new(client.parse::<IpAddr>().unwrap(), client_port);
        let mut cluster = Cluster::new(workers, &plan());
        let request = Pkt::between(client, vip.parse().unwrap(), 17, 0).payload(&datagram(len));
        let there = scatter(&mut cluster, FRONT, &request, &cuts, &dice);
        prop_assert!(there.iter().all(|out| out.verdict == Verdict::Tx(BACK)), "{:?}", there.iter().map(|out| out.verdict).collect::<Vec<_>>());
        let seen = valid(&join(&there.iter().map(|out| out.bytes.clone()).collect::<Vec<_>>()).1);
        prop_assert_eq!(&seen.payload, &request.payload);

        let answer = Pkt::answer(&seen, 0).payload(&datagram(len + 9));
        let back = scatter(&mut cluster, BACK, &answer, &cuts, &dice);
        prop_assert!(back.iter().all(|out| out.verdict == Verdict::Tx(FRONT)));
        let seen = valid(&join(&back.iter().map(|out| out.bytes.clone()).collect::<Vec<_>>()).1);
        prop_assert_eq!((seen.src, seen.dst, &seen.payload), (request.dst, request.src, &answer.payload));
        prop_assert_eq!(cluster.rigs.iter().map(|rig| rig.pipeline.stats().flows_created.get()).sum::<u64>(), 1);
        prop_assert_eq!(cluster.rigs.iter().map(|rig| rig.pipeline.frames_held()).sum::<usize>(), 0);
    }

    /// Anything at all that looks like a fragment: a verdict, and every frame accounted for.
    #[test]
    fn hostile_fragments(
        v6: bool,
        fields in proptest::collection::vec((0_u16..40, any::<bool>(), 0_usize..64, 0_u32..3, any::<u8>()), 1..60),
    ) {
        let mut rig = rig();
        for (offset, more, len, id, noise) in fields {
            let (client, vip) = if v6 { (CLIENT6, TO_WEB6) } else { (CLIENT, TO_WEB) };
            let mut whole = Pkt::syn(client, vip).payload(&[noise; 64]).bytes();
            let l4 = if v6 { 54 } else { 34 };
            whole[l4 + usize::from(noise) % 20] ^= noise;
            whole.truncate(l4 + len);
            let mut piece = split(&whole, &[], id).remove(0);
            let at = if v6 { 56 } else { 20 };
            let field = if v6 { (offset * 8) | u16::from(more) } else { offset | if more { 0x2000 } else { 0 } };
            piece[at..at + 2].copy_from_slice(&field.to_be_bytes());
            pass(&mut rig, FRONT, &piece);
        }
        rig.check();
        rig.wait(4);
        rig.pipeline.upkeep(rig.now);
        rig.released();
        rig.conserved();
        prop_assert_eq!(rig.pipeline.frames_held(), 0);
    }
}

/// Cuts a packet, shuffles the pieces over the workers, and returns all that comes out.
fn scatter(cluster: &mut Cluster, from: PortId, pkt: &Pkt, cuts: &[usize], dice: &[usize]) -> Vec<Out> {
    let mut at = 0;
    // What small cuts leave goes in pieces that fit the MTU.
    let sizes = cuts.iter().copied().cycle().take(40).chain(std::iter::repeat_n(180, 10));
    let cuts: Vec<usize> = sizes
        .map(|size| {
            at += size * 8;
            at
        })
        .collect();
    let mut pieces = split(&pkt.bytes(), &cuts, 999);
    let mut thrown = dice.iter().cycle();
    let mut throw = || thrown.next().copied().unwrap_or(0);
    let count = pieces.len();
    for at in (1..count).rev() {
        pieces.swap(at, throw() % (at + 1));
    }
    let workers = cluster.rigs.len();
    for piece in &pieces {
        cluster.arrive(throw() % workers, from, piece, false);
        if throw().is_multiple_of(3) {
            cluster.step(throw());
        }
    }
    let before = cluster.handoffs;
    let outs = cluster.settle();
    assert!(cluster.handoffs - before <= 2 * count, "no circles");
    assert_eq!(outs.len(), count, "nothing is lost and nothing invented");
    outs
}

/// The owner gets a later fragment whose first one a full ring has swallowed.
#[test]
fn orphans_are_named() {
    let mut cluster = Cluster::new(2, &plan());
    let mut seen = 0;
    for id in 0..40 {
        let client = format!("198.51.100.7:{}", 2000 + id);
        let pieces = split(&Pkt::udp(&client, TO_DNS).payload(&datagram(2000)).bytes(), &every(800), id);
        cluster.arrive(0, FRONT, &pieces[0], false);
        cluster.arrive(0, FRONT, &pieces[1], false);
        // Handed from the gatherer to the owner, where those differ: the first is lost.
        for ((from, to), lane) in &mut cluster.lanes {
            let first = lane.pop_front().expect("both go the same way");
            let second = lane.pop_front().expect("both go the same way");
            assert!(lane.is_empty());
            let out = cluster.rigs[*to].handed(FRONT, &second.1);
            if out.verdict == Verdict::Drop(DropReason::FragmentOrphan) {
                seen += 1;
            } else {
                assert!(matches!(out.verdict, Verdict::Held(_) | Verdict::Handoff(_)), "{from}: {:?}", out.verdict);
            }
            drop(first);
        }
        cluster.lanes.clear();
        cluster.out.clear();
    }
    assert!(seen > 3, "{seen}");
}
