//! Every drop reason, by name.

use std::collections::HashSet;

use penstock_configs::desired::{BackendState, Mode};

use super::*;
use crate::flow::Capacity;
use crate::pipeline::testkit::{FRONT, Icmp, config, down};
use crate::verdict::DropReason as R;
use crate::wire::{TCP_RST, TCP_SYN};

/// Those of the worker and its ports; `worker::tests` has them.
const NOT_THE_PIPELINES: [R; 4] = [R::HandoffFull, R::TxFull, R::KernelPathFull, R::NoFrame];
/// These take more than one packet, some of them held: `fragments` reaches them.
const OF_FRAGMENTS: [R; 5] =
    [R::FragmentOverlap, R::FragmentCopy, R::FragmentOrphan, R::FragmentTimeout, R::FragmentLimit];

/// A rig and packets that end in `reason` in it.
struct Case {
    reason: R,
    rig: Rig,
    packets: Vec<Vec<u8>>,
}

fn case(reason: R, packets: Vec<Vec<u8>>) -> Case {
    Case { reason, rig: rig(), packets }
}

fn planned(reason: R, change: impl FnOnce(&mut Plan), packets: Vec<Vec<u8>>) -> Case {
    let mut plan = plan();
    change(&mut plan);
    Case { reason, rig: Rig::new(plan), packets }
}

/// One service in `dsr`.
fn dsr(plan: &mut Plan) {
    let service = plan.service(WEB);
    service.mode = Mode::Dsr;
    service.backends[0].port = None;
}

/// What the receiver of a packet complains about to its sender.
fn parameter_problem(about: &Pkt) -> Vec<u8> {
    let message = [&[12, 0, 0, 0, 20, 0, 0, 0], &about.bytes()[14..]].concat();
    Icmp::message(about.dst.ip(), about.src.ip(), &message).bytes()
}

/// A packet with bytes replaced.
fn mangled(packet: &Pkt, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = packet.bytes();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn headers() -> Vec<Case> {
    let v4 = || Pkt::syn(CLIENT, TO_WEB);
    let v6 = || Pkt::syn(CLIENT6, TO_WEB6);
    let udp = || Pkt::udp(CLIENT, TO_DNS).payload(b"data");
    vec![
        case(
            R::TruncatedEthernet,
            vec![v4().bytes()[..13].to_vec(), v4().with(|p| p.vlans = vec![1]).bytes()[..16].to_vec()],
        ),
        case(R::TooManyTags, vec![mangled(&v4().with(|p| p.vlans = vec![1, 2]), 20, &[0x81, 0])]),
        case(R::TruncatedIp, vec![v4().bytes()[..33].to_vec(), v6().bytes()[..53].to_vec()]),
        case(R::BadIpVersion, vec![mangled(&v4(), 14, &[0x65]), mangled(&v6(), 14, &[0x45])]),
        case(R::BadHeaderLength, vec![mangled(&v4(), 14, &[0x44]), mangled(&udp(), 14, &[0x4f])]),
        case(
            R::BadTotalLength,
            vec![mangled(&v4(), 16, &[0, 19]), mangled(&v4(), 16, &[0, 200]), mangled(&v6(), 18, &[1, 0])],
        ),
        case(
            R::BadExtensionHeaders,
            vec![
                extended(0, &[6, 9, 0, 0, 0, 0, 0, 0]),
                extended(60, &[6]),
                extended(43, &[6, 0, 0, 1, 0, 0, 0, 0]),
                extended(44, &[6, 0, 0]),
                // A chain without an end.
                extended(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(40)),
            ],
        ),
        case(
            R::TruncatedTransport,
            vec![
                mangled(&v4(), 16, &[0, 39]),
                mangled(&udp(), 16, &[0, 27]),
                mangled(&v6(), 18, &[0, 19]),
                Icmp::echo("198.51.100.7", VIP, b"").bytes()[..38].to_vec(),
            ]
            .into_iter()
            .enumerate()
            .map(|(n, mut frame)| {
                if n == 3 {
                    frame[16..18].copy_from_slice(&[0, 24]);
                }
                frame
            })
            .collect(),
        ),
        Case { reason: R::HeadersSplit, rig: rig().in_frames(2048, 53), packets: vec![v4().bytes(), v6().bytes()] },
        case(R::BadTcpOffset, vec![mangled(&v4(), 46, &[0x40]), mangled(&v4(), 46, &[0xf0])]),
        case(R::BadUdpLength, vec![mangled(&udp(), 38, &[0, 7]), mangled(&udp(), 38, &[0, 13])]),
        case(R::BadTcpFlags, vec![mangled(&v4(), 47, &[0]), mangled(&v4(), 47, &[0x03]), mangled(&v4(), 47, &[0x06])]),
        case(
            R::BadSctpChunk,
            vec![
                Pkt::sctp(CLIENT, TO_WEB, 7, &[3, 0, 0, 3]).bytes(),
                Pkt::sctp(CLIENT6, TO_WEB6, 0, &[3, 0, 0, 4]).bytes(),
            ],
        ),
        case(R::PortZero, vec![mangled(&v4(), 34, &[0, 0]), mangled(&udp(), 36, &[0, 0])]),
    ]
}

/// An IPv6 packet to the VIP with this behind the IP header.
fn extended(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = Icmp {
        src: "2001:db8:2::7".parse().unwrap(),
        dst: VIP6.parse().unwrap(),
        protocol: next,
        message: rest.to_vec(),
        ttl: 64,
    }
    .bytes();
    frame[20] = next;
    frame
}

fn sources() -> Vec<Case> {
    let from = |source: &str| Pkt::syn(source, TO_WEB).bytes();
    let from6 = |source: &str| Pkt::syn(source, TO_WEB6).bytes();
    vec![
        case(
            R::Martian,
            vec![
                from("0.1.2.3:1"),
                from("127.0.0.1:1"),
                from("239.1.2.3:1"),
                from("255.255.255.255:1"),
                from("240.0.0.1:1"),
                from6("[::]:1"),
                from6("[::1]:1"),
                from6("[::ffff:10.0.0.1]:1"),
                from6("[ff02::1]:1"),
            ],
        ),
        case(
            R::SpoofedSource,
            vec![from("203.0.113.10:9"), from("10.0.0.1:9"), from6("[2001:db8:1::10]:9"), from6("[fd00::1]:9")],
        ),
        planned(
            R::SourceDenied,
            |plan| {
                plan.service(WEB).source_ranges = vec!["192.0.2.0/24".parse().unwrap()];
                plan.service(WEB6).source_ranges = vec!["2001:db8:9::/48".parse().unwrap()];
            },
            vec![from(CLIENT), from6(CLIENT6)],
        ),
        planned(
            R::Denied,
            |plan| {
                plan.deny =
                    std::sync::Arc::new(vec!["198.51.100.7/32".parse().unwrap(), "2001:db8:2::/48".parse().unwrap()]);
            },
            vec![from(CLIENT), from6(CLIENT6)],
        ),
    ]
}

/// A service that has reached a limit.
fn limited(reason: R, limits: penstock_configs::desired::ServiceLimits) -> Case {
    let mut plan = plan();
    plan.service(WEB).limits = Some(limits);
    let mut rig = Rig::new(plan);
    rig.front(&Pkt::syn("198.51.100.7:1", TO_WEB).bytes()).to_node();
    Case { reason, rig, packets: vec![Pkt::syn("198.51.100.7:2", TO_WEB).bytes()] }
}

fn limits() -> Vec<Case> {
    use penstock_configs::desired::{ServiceLimits, SourceLimits};
    let one = Some(1);
    let source = |source| ServiceLimits { per_source: Some(source), ..ServiceLimits::default() };
    vec![
        limited(R::ServiceConnections, ServiceLimits { connections: one, ..ServiceLimits::default() }),
        limited(R::ServiceRate, ServiceLimits { new_per_second: one, ..ServiceLimits::default() }),
        limited(R::SourceConnections, source(SourceLimits { connections: one, ..SourceLimits::default() })),
        limited(R::SourceRate, source(SourceLimits { new_per_second: one, ..SourceLimits::default() })),
    ]
}

fn services() -> Vec<Case> {
    let syn = || Pkt::syn(CLIENT, TO_WEB).bytes();
    let part = |at: u16, len| mangled(&Pkt::udp(CLIENT, TO_DNS).payload(&vec![0; len]), 20, &at.to_be_bytes());
    let tcp_part = |at: u16| mangled(&Pkt::syn(CLIENT, TO_WEB).payload(&[0; 4]), 20, &at.to_be_bytes());
    let part6 = |field: u8, len| extended(44, &[&[17, 0, 0, field, 0, 0, 0, 1][..], &vec![0; len]].concat());
    let gre = |dst: &str| Icmp { protocol: 47, ..Icmp::echo("198.51.100.7", dst, b"") }.bytes();
    vec![
        case(
            R::FragmentMalformed,
            vec![part(0x2009, 1), part(0x1fff, 8), part6(1, 4), part6(1, 0), part6(8, 0), part6(0x41, 9)],
        ),
        case(
            R::FragmentTiny,
            vec![tcp_part(0x2001), tcp_part(0x0002), mangled(&Pkt::syn(CLIENT, TO_WEB), 16, &[0, 28, 0, 0, 0x20, 0])],
        ),
        case(R::PortZero, vec![part6(1, 8)]),
        case(R::UnsupportedProtocol, vec![gre(VIP), gre(SNAT), extended(50, &[0; 8])]),
        case(
            R::NoService,
            vec![Pkt::syn(CLIENT, "203.0.113.10:80").bytes(), Pkt::udp(CLIENT, "203.0.113.10:443").bytes()],
        ),
        planned(R::NoBackend, |plan| plan.health("10.0.0.11", BackendState::Draining), vec![syn()]),
        planned(R::NoBackend, |plan| down(&mut plan.service(WEB).backends[0]), vec![syn()]),
        planned(R::NoBackend, |plan| plan.service(WEB).backends.clear(), vec![syn()]),
        planned(R::NoBackend, |plan| plan.service(WEB).backends[0].weight = 0, vec![syn()]),
        case(
            R::OutOfState,
            [TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST, TCP_SYN | TCP_ACK]
                .map(|flags| Pkt::tcp(CLIENT, TO_WEB, flags).bytes())
                .to_vec(),
        ),
        case(R::NoFlow, vec![Pkt::tcp("10.0.0.11:31443", "10.0.0.1:2000", TCP_ACK).bytes()]),
        planned(R::NoNeighbor, |plan| plan.unknown = vec!["10.0.0.11".parse().unwrap()], vec![syn()]),
        planned(
            R::TooBig,
            |plan| plan.mtu = 1000,
            vec![Pkt::udp(CLIENT, TO_DNS).payload(&[0; 1001 - 28]).with(|pkt| pkt.dmac = [0xff; 6]).bytes()],
        ),
        planned(R::NoSnatAddress, |plan| plan.snat.clear(), vec![syn()]),
        case(
            R::IcmpUnmatched,
            vec![Icmp::message("198.51.100.7".parse().unwrap(), VIP.parse().unwrap(), &[3; 8]).bytes()],
        ),
        planned(
            R::NotAdjacent,
            |plan| {
                dsr(plan);
                plan.routed = vec!["10.0.0.11".parse().unwrap()];
            },
            vec![syn()],
        ),
        planned(R::Hairpin, dsr, vec![Pkt::syn("10.0.0.11:5555", TO_WEB).bytes()]),
        planned(
            R::ReplyProbe,
            |plan| {
                plan.service(WEB).mode = Mode::Dnat;
                plan.service(DNS).mode = Mode::Dnat;
                plan.ways.probes = vec!["192.0.2.254".parse().unwrap()];
            },
            vec![
                Pkt::tcp("10.0.0.11:31443", "192.0.2.254:40000", TCP_SYN | TCP_ACK).bytes(),
                Pkt::tcp("10.0.0.11:31443", "192.0.2.254:40000", TCP_RST | TCP_ACK).bytes(),
                parameter_problem(&Pkt::udp("192.0.2.254:40000", "10.0.0.11:31053")),
            ],
        ),
        case(R::NeighborIgnored, vec![[&[0xff; 12][..], &[8, 6], &[0; 46]].concat()]),
    ]
}

/// Reasons that only show in a box with a past.
fn pasts() -> Vec<Case> {
    let syn = |port: u16| Pkt::syn(&format!("198.51.100.7:{port}"), TO_WEB).bytes();
    let mut revoked = rig();
    let conn = Conn::open(&mut revoked, CLIENT, TO_WEB);
    let other = Conn::open(&mut revoked, "198.51.100.7:5556", TO_WEB);
    revoked.change(|plan| plan.remove(WEB));
    let revoked = Case {
        reason: R::FlowRevoked,
        rig: revoked,
        packets: vec![conn.request(TCP_ACK).bytes(), other.reply(TCP_ACK).bytes()],
    };

    let mut exhausted = plan();
    exhausted.snat.clear();
    exhausted.snat(SNAT, [2000, 2003]);
    let mut exhausted = Rig::new(exhausted);
    for port in 1..=4 {
        Conn::open(&mut exhausted, &format!("198.51.100.7:{port}"), TO_WEB);
    }
    let exhausted = Case { reason: R::SnatExhausted, rig: exhausted, packets: vec![syn(5)] };

    let small = Capacity { established: 4, embryonic: 4 };
    let mut full = Rig::with(plan(), &crate::pipeline::PipelineConfig { flows_v4: small, ..config(0, 1) });
    for port in 1..=4 {
        Conn::open(&mut full, &format!("198.51.100.7:{port}"), TO_WEB);
    }
    let fifth = full.front(&syn(5)).to_node();
    full.back(&Pkt::answer(&fifth, TCP_SYN | TCP_ACK).bytes()).to_client();
    let full = Case {
        reason: R::FlowTableFull,
        rig: full,
        packets: vec![Pkt::tcp("198.51.100.7:5", TO_WEB, TCP_ACK).bytes()],
    };

    let mut taken = plan();
    taken.service(WEB).mode = Mode::Dnat;
    taken.serve("203.0.113.11:443/tcp", &["10.0.0.11:31443"]).mode = Mode::Dnat;
    let mut taken = Rig::new(taken);
    taken.front(&syn(1)).to_node();
    let taken = Case {
        reason: R::TupleTaken,
        rig: taken,
        packets: vec![Pkt::syn("198.51.100.7:1", "203.0.113.11:443").bytes()],
    };
    vec![revoked, exhausted, full, taken]
}

#[test]
fn every_reason_is_reached_and_named() {
    let mut reached: HashSet<R> = HashSet::new();
    for mut case in headers().into_iter().chain(sources()).chain(services()).chain(limits()).chain(pasts()) {
        for (n, packet) in case.packets.iter().enumerate() {
            let before = case.rig.drops(case.reason);
            let out = case.rig.send(FRONT, packet);
            assert_eq!(
                out.verdict,
                crate::verdict::Verdict::Drop(case.reason),
                "packet {n} of the {} case: {packet:02x?}",
                case.reason.name()
            );
            assert_eq!(case.rig.drops(case.reason), before + 1);
        }
        case.rig.check();
        reached.insert(case.reason);
    }
    // These come with a packet sent, or instead of one: `icmp` and `tcp` test them.
    let mut rig = rig();
    let spent = Pkt::syn(CLIENT, TO_WEB).with(|pkt| pkt.ttl = 1).bytes();
    for _ in 0..11 {
        rig.front(&spent);
    }
    rig.wait(1);
    rig.change(|plan| plan.service(WEB).on_idle = penstock_configs::desired::OnIdle::Reset);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    rig.wait(7440);
    rig.sweep();
    conn.out(&mut rig, TCP_ACK);
    reached.extend([R::TtlExceeded, R::RateLimited, R::FlowExpired].iter().filter(|reason| rig.drops(**reason) > 0));
    let missing: Vec<&str> = R::ALL
        .iter()
        .filter(|r| !reached.contains(r) && !NOT_THE_PIPELINES.contains(r) && !OF_FRAGMENTS.contains(r))
        .map(|r| r.name())
        .collect();
    assert!(missing.is_empty(), "no packet ends in {missing:?}");
}
