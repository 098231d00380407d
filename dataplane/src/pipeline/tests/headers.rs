//! What translation has no business with stays as it is, bit by bit: DSCP and ECN, the flow label, IPv4 options, IPv6
//! extension headers, in both directions, on errors, and in what errors quote.

use penstock_configs::desired::Mode;

use super::*;
use crate::pipeline::testkit::{Icmp, valid};
use crate::wire::{Parsed, parse};

const L3: usize = 14;

/// DSCP EF, ECN congestion experienced.
const MARKS: u8 = 0xbb;
const FLOW_LABEL: [u8; 3] = [0x0c, 0xaf, 0xfe];

/// A frame as its sender marks it.
fn marked(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        frame[L3 + 1] = MARKS;
        // The don't-fragment flag, and an identification.
        frame[L3 + 4..L3 + 8].copy_from_slice(&[0xab, 0xcd, 0x40, 0]);
        let len = usize::from(frame[L3] & 15) * 4;
        frame[L3 + 10..L3 + 12].fill(0);
        let sum = crate::pipeline::testkit::internet_sum(&[], &frame[L3..L3 + len]);
        frame[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[L3] = 0x60 | MARKS >> 4;
        frame[L3 + 1..L3 + 4].copy_from_slice(&FLOW_LABEL);
        frame[L3 + 1] |= MARKS << 4;
    }
    frame
}

/// The packet with extension headers between IPv6 and transport: each a type and what it holds.
fn extended(mut frame: Vec<u8>, headers: &[(u8, [u8; 7])]) -> Vec<u8> {
    let transport = frame[L3 + 6];
    let mut chain = Vec::new();
    for (at, (_, rest)) in headers.iter().enumerate() {
        chain.push(headers.get(at + 1).map_or(transport, |(next, _)| *next));
        chain.extend(rest);
    }
    frame[L3 + 6] = headers[0].0;
    let len = u16::from_be_bytes([frame[L3 + 4], frame[L3 + 5]]) + chain.len() as u16;
    frame[L3 + 4..L3 + 6].copy_from_slice(&len.to_be_bytes());
    frame.splice(L3 + 40..L3 + 40, chain);
    frame
}

/// Where the two differ beyond link-layer addresses, TTL, IP addresses, ports and checksums.
#[track_caller]
fn foreign_changes(before: &[u8], after: &[u8]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    let Ok(Parsed::Ip(packet)) = parse(before) else { panic!("no packet: {before:02x?}") };
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let mut ours: Vec<usize> = (0..12).chain(l4..l4 + 4).collect();
    ours.extend(if packet.v6 { l3 + 8..l3 + 40 } else { l3 + 12..l3 + 20 });
    ours.extend(if packet.v6 { vec![l3 + 7] } else { vec![l3 + 8, l3 + 10, l3 + 11] });
    let sum = l4 + if packet.protocol == 6 { 16 } else { 6 };
    ours.extend([sum, sum + 1]);
    (0..before.len()).filter(|at| before[*at] != after[*at] && !ours.contains(at)).collect()
}

type Shape = fn(Vec<u8>) -> Vec<u8>;

/// Frames of both families and protocols in every shape.
fn shapes() -> Vec<(&'static str, bool, Shape)> {
    vec![
        ("marked", false, marked),
        ("marked", true, marked),
        ("hop-by-hop", true, |frame| extended(marked(frame), &[(0, [0, 5, 2, 0, 0, 1, 0])])),
        ("destination options", true, |frame| extended(marked(frame), &[(60, [0, 1, 4, 0, 0, 0, 0])])),
        ("routing, none left", true, |frame| extended(marked(frame), &[(43, [0, 0, 0, 0, 0, 0, 0])])),
        ("atomic fragment", true, |frame| extended(marked(frame), &[(44, [0, 0, 0, 1, 2, 3, 4])])),
        ("atomic fragment, then options", true, |frame| {
            extended(marked(frame), &[(44, [0, 0, 0, 1, 2, 3, 4]), (60, [0, 1, 4, 0, 0, 0, 0])])
        }),
        ("three of them", true, |frame| {
            let (hop, destination) = ([0, 1, 4, 0, 0, 0, 0], [0, 1, 4, 9, 9, 9, 9]);
            extended(marked(frame), &[(0, hop), (43, [0; 7]), (60, destination)])
        }),
    ]
}

#[test]
fn both_directions_keep_what_is_not_theirs() {
    for mode in [Mode::Nat, Mode::Dnat] {
        for (what, v6, shape) in shapes() {
            let mut plan = plan();
            plan.services.iter_mut().for_each(|service| service.mode = mode);
            let mut rig = Rig::new(plan);
            let requests = if v6 {
                [Pkt::syn(CLIENT6, TO_WEB6), Pkt::udp(CLIENT6, TO_DNS6)]
            } else {
                [Pkt::syn(CLIENT, TO_WEB), Pkt::udp(CLIENT, TO_DNS)].map(|pkt| {
                    // Router alert and padding.
                    pkt.with(|pkt| pkt.ip_options = vec![0x94, 4, 0, 0, 1, 1, 1, 0])
                })
            };
            for request in requests {
                let request = request.payload(b"request");
                let there = rig.front(&request.bytes()).to_node();
                let options = request.ip_options.clone();
                let answer = move |flags| Pkt::answer(&there, flags).with(|pkt| pkt.ip_options.clone_from(&options));
                let (ack, syn_ack) = if request.flags == 0 { (0, 0) } else { (TCP_ACK, TCP_SYN | TCP_ACK) };
                rig.back(&answer(syn_ack).bytes()).to_client();
                for _ in 0..3 {
                    let more = request.clone().with(|pkt| (pkt.flags, pkt.seq) = (ack, 1001));
                    for (sent, front) in [(shape(more.bytes()), true), (shape(answer(ack).bytes()), false)] {
                        let out = if front { rig.front(&sent) } else { rig.back(&sent) };
                        valid(&out.bytes);
                        assert!(matches!(out.verdict, crate::verdict::Verdict::Tx(_)), "{what}: {:?}", out.verdict);
                        assert_eq!(foreign_changes(&sent, &out.bytes), [0_usize; 0], "{what}, v6 {v6}, front {front}");
                    }
                }
            }
            rig.check();
        }
    }
}

#[test]
fn errors_and_what_they_quote_keep_it_too() {
    let mut rig = rig();
    let cases = [
        (Pkt::syn(CLIENT, TO_WEB), "192.0.2.77", [3, 4, 0, 0, 0, 0, 5, 0x14]),
        (Pkt::syn(CLIENT6, TO_WEB6), "2001:db8:77::1", [2, 0, 0, 0, 0, 0, 5, 0x14]),
    ];
    for (request, router, kind) in cases {
        let options = if request.src.is_ipv4() { vec![0x94, 4, 0, 0] } else { Vec::new() };
        let request = request.with(|pkt| pkt.ip_options = options).payload(b"request");
        let sent = marked(request.bytes());
        let there = rig.front(&sent);
        let at_node = there.to_node();
        let answer = marked(Pkt::answer(&at_node, TCP_SYN | TCP_ACK).bytes());
        let back = rig.back(&answer);
        back.to_client();
        // About a request, to the box's SNAT address; about a reply, to the VIP.
        let about = [(&there.bytes, at_node.src.ip(), &sent, false), (&back.bytes, request.dst.ip(), &answer, true)];
        for (quoted, to, original, front) in about {
            let message = [&kind[..], &quoted[L3..]].concat();
            let error = marked(Icmp::message(router.parse().unwrap(), to, &message).bytes());
            let out = if front { rig.front(&error) } else { rig.back(&error) };
            let v4 = to.is_ipv4();
            // The error's own marks, label and identification.
            let own: &[usize] = if v4 { &[1, 4, 5, 6, 7] } else { &[0, 1, 2, 3] };
            assert!(own.iter().all(|at| out.bytes[L3 + at] == error[L3 + at]), "{out:02x?}");
            // The quote is the packet as its sender knows it, but for the TTL it had on its way.
            let quote = L3 + if v4 { 20 } else { 40 } + 8;
            let (as_sent, as_quoted) = (&original[L3..], &out.bytes[quote..]);
            let ttl: &[usize] = if v4 { &[8, 10, 11] } else { &[7] };
            let differ: Vec<usize> = (0..as_sent.len()).filter(|at| as_sent[*at] != as_quoted[*at]).collect();
            assert!(differ.iter().all(|at| ttl.contains(at)), "bytes {differ:?} of the quote");
        }
    }
    rig.check();
}
