//! The steering program as the kernel runs it (BPF_PROG_TEST_RUN): packet in, decision and counter out. Privileged.
//!
//! No socket is in the map, so what would be redirected is dropped and counted under its class: that also proves
//! what happens to our packets while no process runs.

mod steer_net;

use std::fmt::Write as _;
use std::os::fd::AsFd;

use penstock_configs::file::XdpMode;
use penstock_dataplane::steer::{ClassCounters, Decision, Options, SnatSteer, Steer, SteerCounters, Steering};
use steer_net::packets::*;
use steer_net::{Net, ok, privileged};

const VIP4: &str = "203.0.113.10";
const VIP6: &str = "2001:db8:1::10";
/// Routed to the box by somebody else: no ARP, no neighbour discovery.
const ROUTED4: &str = "203.0.113.11";
const ROUTED6: &str = "2001:db8:1::11";
const SNAT4: &str = "10.0.0.1";
const SNAT6: &str = "2001:db8:2::1";
/// Also the kernel's: only ports 40000 to 49999. Its last two bytes read as port 45000, for headers that lie about
/// their length.
const SHARED4: &str = "10.0.175.200";
const SHARED6: &str = "2001:db8:2::2";
/// A dnat backend on TCP 31443.
const NODE4: &str = "10.0.0.12";
const NODE6: &str = "2001:db8:2::12";
/// Another on SCTP 32905.
const SIGNAL4: &str = "10.0.0.13";
const SCTP: u8 = 132;
const CLIENT4: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8:ffff::7";
const HOST4: &str = "10.0.0.250";
const HOST6: &str = "2001:db8:2::250";

fn steering() -> Steering {
    let address = |text: &str| text.parse().unwrap();
    let snat = |text: &str, ports, shared| SnatSteer { address: address(text), ports, shared };
    Steering {
        vips: vec![(address(VIP4), true), (address(VIP6), true), (address(ROUTED4), false), (address(ROUTED6), false)],
        snat: vec![
            snat(SNAT4, [1024, 65535], false),
            snat(SNAT6, [1024, 65535], false),
            snat(SHARED4, [40_000, 49_999], true),
            snat(SHARED6, [40_000, 49_999], true),
        ],
        dnat: vec![(address(NODE4), 31_443, TCP), (address(NODE6), 31_443, TCP), (address(SIGNAL4), 32_905, SCTP)],
        new_per_vip: 0,
    }
}

/// What the program did: the counter it raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Malformed,
    Unserved,
    Split,
    Vip,
    Snat,
    Shared,
    Dnat,
    Neighbor,
}
use Outcome::*;

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    expected: Outcome,
    /// For packets that are ours: the bytes the decision rests on. Any shorter frame must pass.
    needed: usize,
}

fn case(name: &'static str, frame: Vec<u8>, expected: Outcome, needed: usize) -> Case {
    Case { name, frame, expected, needed }
}

fn passes(name: &'static str, frame: Vec<u8>) -> Case {
    Case { name, frame, expected: Passed, needed: 0 }
}

fn v4(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(&[], &ipv4(from, to, protocol, 0, WHOLE, payload))
}

fn v6(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(&[], &ipv6(from, to, &[], protocol, payload))
}

fn vip_cases() -> Vec<Case> {
    let syn = ports(5555, 443);
    let tagged = |tags: &[u16]| frame(tags, &ipv4(CLIENT4, VIP4, TCP, 0, WHOLE, &ports(5555, 443)));
    let tagged6 = |tags: &[u16]| frame(tags, &ipv6(CLIENT6, VIP6, &[], UDP, &ports(5555, 53)));
    let options = |bytes| frame(&[], &ipv4(CLIENT4, VIP4, TCP, bytes, WHOLE, &ports(5555, 443)));
    let part = |part| frame(&[], &ipv4(CLIENT4, VIP4, UDP, 0, part, &ports(5555, 53)));
    let part6 = |part| frame(&[], &ipv6(CLIENT6, VIP6, &[Extension::Fragmented(part)], UDP, &ports(5555, 53)));
    vec![
        case("TCP to a VIP", v4(CLIENT4, VIP4, TCP, &syn), Vip, 34),
        case("UDP to a VIP", v4(CLIENT4, VIP4, UDP, &syn), Vip, 34),
        case("ICMP echo to a VIP", v4(CLIENT4, VIP4, ICMP, &icmp(8, &[])), Vip, 34),
        case("ICMP error to a VIP", v4(CLIENT4, VIP4, ICMP, &icmp(3, &[0; 28])), Vip, 34),
        case("SCTP to a VIP", v4(CLIENT4, VIP4, 132, &syn), Vip, 34),
        case("TCP to a VIP, IPv6", v6(CLIENT6, VIP6, TCP, &syn), Vip, 54),
        case("ICMPv6 echo to a VIP", v6(CLIENT6, VIP6, ICMPV6, &icmp(128, &[])), Vip, 54),
        case("to a VIP that is not announced", v4(CLIENT4, ROUTED4, TCP, &syn), Vip, 34),
        case("to a VIP that is not announced, IPv6", v6(CLIENT6, ROUTED6, TCP, &syn), Vip, 54),
        case("802.1Q", tagged(&[CTAG]), Vip, 38),
        case("802.1ad", tagged(&[STAG]), Vip, 38),
        case("QinQ", tagged(&[STAG, CTAG]), Vip, 42),
        case("two C-tags", tagged(&[CTAG, CTAG]), Vip, 42),
        case("QinQ, IPv6", tagged6(&[STAG, CTAG]), Vip, 62),
        passes("three tags", tagged(&[STAG, CTAG, CTAG])),
        case("one option word", options(4), Vip, 34),
        case("all the options there can be", options(40), Vip, 34),
        case("a first fragment", part(FIRST), Vip, 34),
        case("a later fragment", part(LATER), Vip, 34),
        case("a first fragment, IPv6", part6(FIRST), Vip, 54),
        case("a later fragment, IPv6", part6(LATER), Vip, 54),
        passes("from a VIP to the host", v4(VIP4, HOST4, TCP, &syn)),
        passes("to the host", v4(CLIENT4, HOST4, TCP, &ports(5555, 22))),
        passes("to the host, IPv6", v6(CLIENT6, HOST6, TCP, &ports(5555, 22))),
        passes("to an address one beside a VIP", v4(CLIENT4, "203.0.113.12", TCP, &syn)),
    ]
}

fn snat_cases() -> Vec<Case> {
    let reply = ports(31_443, 45_000);
    let quote = |source: &str, port| ipv4(source, NODE4, TCP, 0, WHOLE, &ports(port, 31_443)[..8]);
    let quote6 = |source: &str, port| ipv6(source, NODE6, &[], TCP, &ports(port, 31_443)[..8]);
    let error = |quoted: &[u8], kind| v4("10.0.0.254", SHARED4, ICMP, &icmp(kind, quoted));
    let error6 = |quoted: &[u8], kind| v6("2001:db8:2::fe", SHARED6, ICMPV6, &icmp(kind, quoted));
    let part = |part, port| frame(&[], &ipv4(NODE4, SHARED4, UDP, 0, part, &ports(31_443, port)));
    let part6 = |part| frame(&[], &ipv6(NODE6, SHARED6, &[Extension::Fragmented(part)], UDP, &ports(1, 45_000)));
    let chain = |extensions: &[Extension]| frame(&[], &ipv6(NODE6, SHARED6, extensions, TCP, &ports(1, 45_000)));
    let option = Extension::Options(60, 1);
    vec![
        case("TCP to a SNAT address", v4(NODE4, SNAT4, TCP, &reply), Snat, 34),
        case("echo to a SNAT address", v4(NODE4, SNAT4, ICMP, &icmp(8, &[])), Snat, 34),
        case("UDP to a SNAT address, IPv6", v6(NODE6, SNAT6, UDP, &reply), Snat, 54),
        case("shared: in range", v4(NODE4, SHARED4, TCP, &reply), Shared, 38),
        case("shared: UDP, first port", v4(NODE4, SHARED4, UDP, &ports(1, 40_000)), Shared, 38),
        case("shared: last port", v4(NODE4, SHARED4, TCP, &ports(1, 49_999)), Shared, 38),
        passes("shared: one below", v4(NODE4, SHARED4, TCP, &ports(1, 39_999))),
        passes("shared: one above", v4(NODE4, SHARED4, TCP, &ports(1, 50_000))),
        passes("shared: source port in range", v4(CLIENT4, SHARED4, TCP, &ports(45_000, 22))),
        case("shared: SCTP", v4(NODE4, SHARED4, SCTP, &reply), Shared, 38),
        case("shared: SCTP, IPv6", v6(NODE6, SHARED6, SCTP, &ports(1, 45_000)), Shared, 58),
        passes("shared: SCTP, not in range", v4(NODE4, SHARED4, SCTP, &ports(1, 22))),
        passes("shared: a protocol without ports", v4(NODE4, SHARED4, 47, &reply)),
        case(
            "shared: unreachable about SCTP",
            error(&ipv4(SHARED4, NODE4, SCTP, 0, WHOLE, &ports(45_000, 31_443)[..8]), 3),
            Shared,
            66,
        ),
        case("SCTP to a SNAT address", v4(NODE4, SNAT4, SCTP, &reply), Snat, 34),
        passes("shared: echo", v4(NODE4, SHARED4, ICMP, &icmp(8, &[0; 40]))),
        // A health check of the box's own, answered by a dnat backend.
        passes("shared: from a dnat backend, not in range", v4(NODE4, SHARED4, TCP, &ports(31_443, 33_000))),
        case(
            "shared: behind 40 bytes of options",
            frame(&[], &ipv4(NODE4, SHARED4, TCP, 40, WHOLE, &reply)),
            Shared,
            78,
        ),
        case("shared: unreachable", error(&quote(SHARED4, 45_000), 3), Shared, 66),
        case("shared: time exceeded", error(&quote(SHARED4, 45_000), 11), Shared, 66),
        case("shared: parameter problem", error(&quote(SHARED4, 45_000), 12), Shared, 66),
        case(
            "shared: quoted with options",
            error(&ipv4(SHARED4, NODE4, UDP, 12, WHOLE, &ports(45_000, 53)), 3),
            Shared,
            78,
        ),
        passes("shared: redirect", error(&quote(SHARED4, 45_000), 5)),
        passes("shared: quoted port not in range", error(&quote(SHARED4, 33_000), 3)),
        passes("shared: quoted source is another's", error(&quote(HOST4, 45_000), 3)),
        passes("shared: quoted later fragment", error(&ipv4(SHARED4, NODE4, UDP, 0, LATER, &ports(45_000, 53)), 3)),
        case("shared: a first fragment", part(FIRST, 45_000), Shared, 38),
        passes("shared: a later fragment", part(LATER, 45_000)),
        case("shared: IPv6", v6(NODE6, SHARED6, TCP, &reply), Shared, 58),
        passes("shared: IPv6, not in range", v6(NODE6, SHARED6, TCP, &ports(1, 22))),
        case("shared: too big, IPv6", error6(&quote6(SHARED6, 45_000), 2), Shared, 106),
        passes("shared: informational, IPv6", error6(&quote6(SHARED6, 45_000), 129)),
        passes("shared: quoted source is another's, IPv6", error6(&quote6(HOST6, 45_000), 1)),
        case("shared: an atomic fragment", part6(WHOLE), Shared, 66),
        case("shared: a first fragment, IPv6", part6(FIRST), Shared, 66),
        passes("shared: a later fragment, IPv6", part6(LATER)),
        case("shared: hop-by-hop", chain(&[Extension::Options(0, 1)]), Shared, 66),
        case("shared: a routing header of 24 bytes", chain(&[Extension::Options(43, 3)]), Shared, 82),
        case("shared: AH", chain(&[Extension::Authentication(3)]), Shared, 82),
        case(
            "shared: all kinds",
            {
                chain(&[
                    Extension::Options(0, 2),
                    option,
                    Extension::Options(43, 1),
                    Extension::Fragmented(WHOLE),
                    Extension::Authentication(3),
                    option,
                ])
            },
            Shared,
            130,
        ),
        case("shared: eight headers", chain(&[option; 8]), Shared, 122),
        passes("shared: more headers than any packet needs", chain(&[option; 9])),
    ]
}

fn dnat_cases() -> Vec<Case> {
    let reply = ports(31_443, 5555);
    let quote = |port| ipv4(CLIENT4, NODE4, TCP, 0, WHOLE, &ports(5555, port)[..8]);
    let quote6 = |port| ipv6(CLIENT6, NODE6, &[], TCP, &ports(5555, port)[..8]);
    let part = |from, part| frame(&[], &ipv4(from, CLIENT4, UDP, 0, part, &ports(1, 2)));
    let part6 = |part| frame(&[], &ipv6(NODE6, CLIENT6, &[Extension::Fragmented(part)], UDP, &ports(1, 2)));
    vec![
        case("a dnat reply", v4(NODE4, CLIENT4, TCP, &reply), Dnat, 38),
        case("a dnat reply, IPv6", v6(NODE6, CLIENT6, TCP, &reply), Dnat, 58),
        case("a dnat reply with options", frame(&[], &ipv4(NODE4, CLIENT4, TCP, 8, WHOLE, &reply)), Dnat, 46),
        case("a dnat reply in a VLAN", frame(&[CTAG], &ipv4(NODE4, CLIENT4, TCP, 0, WHOLE, &reply)), Dnat, 42),
        case("a dnat reply of SCTP", v4(SIGNAL4, CLIENT4, SCTP, &ports(32_905, 5555)), Dnat, 38),
        passes("the SCTP backend's port on TCP", v4(SIGNAL4, CLIENT4, TCP, &ports(32_905, 5555))),
        passes("the SCTP backend's other port", v4(SIGNAL4, CLIENT4, SCTP, &ports(22, 5555))),
        passes("the backend's SSH", v4(NODE4, CLIENT4, TCP, &ports(22, 5555))),
        passes("the backend's port on UDP", v4(NODE4, CLIENT4, UDP, &reply)),
        passes("the backend's port as destination", v4(CLIENT4, NODE4, TCP, &ports(5555, 31_443))),
        passes("another node's same port", v4("10.0.0.14", CLIENT4, TCP, &reply)),
        case("unreachable, sent by the node", v4(NODE4, CLIENT4, ICMP, &icmp(3, &quote(31_443))), Dnat, 66),
        case("time exceeded, sent by a router", v4("10.9.9.9", CLIENT4, ICMP, &icmp(11, &quote(31_443))), Dnat, 66),
        passes("unreachable about another port", v4(NODE4, CLIENT4, ICMP, &icmp(3, &quote(80)))),
        passes("the node's echo", v4(NODE4, CLIENT4, ICMP, &icmp(8, &quote(31_443)))),
        case("too big, IPv6", v6("fe80::9", CLIENT6, ICMPV6, &icmp(2, &quote6(31_443))), Dnat, 106),
        passes("too big about another port, IPv6", v6("fe80::9", CLIENT6, ICMPV6, &icmp(2, &quote6(80)))),
        case("a backend's first fragment", part(NODE4, FIRST), Dnat, 34),
        case("a backend's later fragment", part(NODE4, LATER), Dnat, 34),
        passes("another node's fragment", part("10.0.0.14", LATER)),
        case("a backend's first fragment, IPv6", part6(FIRST), Dnat, 62),
        case("a backend's later fragment, IPv6", part6(LATER), Dnat, 62),
    ]
}

fn neighbor_cases() -> Vec<Case> {
    let group = "ff02::1:ff00:10";
    let nd = |kind, to, target| frame(&[], &neighbor(kind, to, target));
    vec![
        case("ARP request for a VIP", arp(&[], 1, HOST4, VIP4), Neighbor, 42),
        case("ARP probe for a VIP", arp(&[], 1, "0.0.0.0", VIP4), Neighbor, 42),
        case("ARP request for a SNAT address", arp(&[], 1, HOST4, SNAT4), Neighbor, 42),
        case("ARP request in a VLAN", arp(&[CTAG], 1, HOST4, VIP4), Neighbor, 46),
        case("ARP request in QinQ", arp(&[STAG, CTAG], 1, HOST4, VIP4), Neighbor, 50),
        case("ARP reply that claims a VIP", arp(&[], 2, VIP4, HOST4), Neighbor, 42),
        passes("ARP request for a VIP that is not announced", arp(&[], 1, HOST4, ROUTED4)),
        passes("ARP request for a shared address", arp(&[], 1, NODE4, SHARED4)),
        passes("ARP request for the host", arp(&[], 1, NODE4, HOST4)),
        passes("ARP reply to the host", arp(&[], 2, NODE4, HOST4)),
        case("solicitation for a VIP", nd(135, group, VIP6), Neighbor, 78),
        case("solicitation for a SNAT address", nd(135, "ff02::1:ff00:1", SNAT6), Neighbor, 78),
        case("solicitation in QinQ", frame(&[STAG, CTAG], &neighbor(135, group, VIP6)), Neighbor, 86),
        case("advertisement that claims a VIP", nd(136, "ff02::1", VIP6), Neighbor, 78),
        case("solicitation by unicast", nd(135, VIP6, VIP6), Vip, 54),
        passes("solicitation for a VIP that is not announced", nd(135, "ff02::1:ff00:11", ROUTED6)),
        passes("solicitation for a shared address", nd(135, "ff02::1:ff00:2", SHARED6)),
        passes("solicitation for the host", nd(135, "ff02::1:ff00:250", HOST6)),
        passes("router solicitation", nd(133, "ff02::2", VIP6)),
        passes("multicast UDP", v6(CLIENT6, "ff02::fb", UDP, &ports(5353, 5353))),
    ]
}

fn malformed_cases() -> Vec<Case> {
    let with = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    let arp_with = |at, byte| with(arp(&[], 1, HOST4, VIP4), at, byte);
    let syn = ports(5555, 443);
    vec![
        case("IPv4 that says version 6", with(v4(CLIENT4, VIP4, TCP, &syn), 14, 0x65), Malformed, 0),
        case("IPv6 that says version 4", with(v6(CLIENT6, VIP6, TCP, &syn), 14, 0x40), Malformed, 0),
        // To a VIP, so it is ours to drop by name.
        case("header length 4 to a VIP", with(v4(CLIENT4, VIP4, TCP, &syn), 14, 0x41), Vip, 34),
        passes("header length 16 to a shared address", with(v4(NODE4, SHARED4, TCP, &ports(1, 45_000)), 14, 0x44)),
        passes("header length 0 from a backend", with(v4(NODE4, CLIENT4, TCP, &ports(31_443, 1)), 14, 0x40)),
        passes("ARP of another hardware", arp_with(15, 6)),
        passes("ARP of another protocol", arp_with(16, 9)),
        passes("ARP of another length", arp_with(19, 16)),
        passes("an 802.3 length", ethernet(&[], 60, &[0xaa; 46])),
        passes("an unknown ethertype", ethernet(&[], 0x88cc, &[0; 46])),
    ]
}

fn all_cases() -> Vec<Case> {
    [vip_cases(), snat_cases(), dnat_cases(), neighbor_cases(), malformed_cases()].into_iter().flatten().collect()
}

/// The one counter that moved.
fn moved(before: &SteerCounters, after: &SteerCounters) -> Outcome {
    let classes = |c: &ClassCounters| [c.vip, c.snat, c.snat_shared, c.dnat, c.neighbor];
    let all = |c: &SteerCounters| {
        let mut all = vec![c.passed, c.malformed, c.unserved, c.split];
        all.extend(classes(&c.no_socket));
        all
    };
    assert_eq!(classes(&before.redirected), classes(&after.redirected));
    let outcomes = [Passed, Malformed, Unserved, Split, Vip, Snat, Shared, Dnat, Neighbor];
    let raised: Vec<Outcome> = outcomes
        .into_iter()
        .zip(all(before).into_iter().zip(all(after)))
        .filter_map(|(outcome, (before, after))| (after == before + 1).then_some(outcome))
        .collect();
    assert_eq!(raised.len(), 1, "one packet, one counter: {raised:?}");
    raised[0]
}

fn decide(steer: &mut Steer, frame: &[u8]) -> Outcome {
    decide_by(steer, |steer| steer.test_run(0, frame, 1).unwrap().0)
}

fn decide_by(steer: &mut Steer, run: impl FnOnce(&mut Steer) -> Decision) -> Outcome {
    let before = steer.counters().unwrap();
    let decision = run(steer);
    let outcome = moved(&before, &steer.counters().unwrap());
    let ours = !matches!(outcome, Passed | Malformed | Unserved | Split);
    assert_eq!(decision, if ours { Decision::Drop } else { Decision::Pass }, "{outcome:?}");
    outcome
}

/// A box whose cable is down: no packet but the tests' own runs through the program.
fn quiet(tag: &str) -> (Net, Steer) {
    quiet_for(tag, Options::default())
}

fn quiet_for(tag: &str, options: Options) -> (Net, Steer) {
    let net = Net::new(tag);
    ok(&format!("ip -n {} link set peer0 down", net.peer_ns));
    let mut steer = Steer::open_with(net.run_dir(), &[net.interface(XdpMode::Native)], options).unwrap();
    steer.sync(&steering()).unwrap();
    (net, steer)
}

#[test]
fn privileged_each_packet_goes_where_it_belongs() {
    if !privileged("privileged_each_packet_goes_where_it_belongs") {
        return;
    }
    let (_net, mut steer) = quiet("table");
    let mut wrong = String::new();
    for case in all_cases() {
        let outcome = decide(&mut steer, &case.frame);
        if outcome != case.expected {
            writeln!(wrong, "{}: {outcome:?}, expected {:?}", case.name, case.expected).unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    steer.detach().unwrap();
}

/// Cut at every byte: below what the decision needs a packet passes, from there on it is ours.
#[test]
fn privileged_every_truncation_passes_or_is_still_ours() {
    if !privileged("privileged_every_truncation_passes_or_is_still_ours") {
        return;
    }
    let (_net, mut steer) = quiet("cut");
    let mut wrong = String::new();
    for case in all_cases() {
        // 14: the kernel's own minimum for a test run.
        for length in 14..case.frame.len() {
            let outcome = decide(&mut steer, &case.frame[..length]);
            let passed = matches!(outcome, Passed | Malformed);
            let ours = !matches!(case.expected, Passed | Malformed) && length >= case.needed;
            if passed == ours || (ours && outcome != case.expected) {
                writeln!(wrong, "{} cut to {length}: {outcome:?}", case.name).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    steer.detach().unwrap();
}

/// Jumbo frames in several buffers: the first as a driver fills it decides like a whole packet; and however short it
/// is, the decision is the same, or there is none and it is counted.
#[test]
fn privileged_packets_in_several_buffers_go_where_they_belong() {
    if !privileged("privileged_packets_in_several_buffers_go_where_they_belong") {
        return;
    }
    let (_net, mut steer) = quiet_for("frags", Options { frags: true });
    let mut wrong = String::new();
    let mut decided: Vec<Outcome> = Vec::new();
    for case in all_cases() {
        let mut frame = case.frame;
        frame.resize(9014, 0);
        let whole = decide(&mut steer, &frame);
        for first in (14..150).chain([255, 256, 2000]) {
            let outcome = decide_by(&mut steer, |steer| steer.test_run_split(0, &frame, first).unwrap());
            let must = matches!(whole, Vip | Snat) || first >= 256;
            if outcome != whole && (must || outcome != Split) {
                writeln!(wrong, "{}, {first} bytes in the first buffer: {outcome:?}, not {whole:?}", case.name)
                    .unwrap();
            }
            decided.extend((first == 14).then_some(outcome));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    for class in [Vip, Snat, Shared, Dnat, Passed] {
        assert!(decided.iter().filter(|outcome| **outcome == class).count() >= 2, "undecided: {class:?}");
    }
    steer.detach().unwrap();
}

#[test]
fn privileged_a_socket_takes_the_packets_until_it_closes() {
    if !privileged("privileged_a_socket_takes_the_packets_until_it_closes") {
        return;
    }
    let (_net, mut steer) = quiet("sock");
    let packet = v4(CLIENT4, VIP4, TCP, &ports(5555, 443));
    let family = rustix::net::AddressFamily::from_raw(44);
    let socket = rustix::net::socket(family, rustix::net::SocketType::RAW, None).unwrap();
    steer.set_socket(0, 0, socket.as_fd()).unwrap();
    assert_eq!(steer.test_run(0, &packet, 1).unwrap().0, Decision::Redirect);
    assert_eq!(steer.counters().unwrap().redirected.vip, 1);
    let error = steer.set_socket(0, 2, socket.as_fd()).unwrap_err().to_string();
    assert!(error.contains("no queue 2"), "{error}");
    drop(socket);
    assert_eq!(steer.test_run(0, &packet, 1).unwrap().0, Decision::Drop);
    assert_eq!(steer.counters().unwrap().no_socket.vip, 1);
    steer.detach().unwrap();
}

#[test]
fn privileged_queues_that_are_not_served_pass_everything() {
    if !privileged("privileged_queues_that_are_not_served_pass_everything") {
        return;
    }
    let net = Net::new("queue");
    ok(&format!("ip -n {} link set peer0 down", net.peer_ns));
    // The test run comes by queue 0, here the first one not served.
    let interface = penstock_dataplane::steer::Interface { queues: 0, ..net.interface(XdpMode::Native) };
    let mut steer = Steer::open(net.run_dir(), &[interface]).unwrap();
    steer.sync(&steering()).unwrap();
    assert_eq!(decide(&mut steer, &v4(CLIENT4, VIP4, TCP, &ports(1, 443))), Unserved);
    steer.detach().unwrap();
}

/// `cargo test --test steer -- --ignored --nocapture`: nanoseconds per packet, dnat lookup off and on.
#[test]
#[ignore = "a measurement"]
fn privileged_cost_per_packet() {
    if !privileged("privileged_cost_per_packet") {
        return;
    }
    let (_net, mut steer) = quiet("cost");
    let syn = ports(5555, 443);
    let error = icmp(3, &ipv4(SHARED4, NODE4, TCP, 0, WHOLE, &ports(45_000, 31_443)));
    let cases = [
        ("no lookup at all", ethernet(&[], 0x88cc, &[0; 46])),
        ("pass, IPv4", v4(CLIENT4, HOST4, TCP, &syn)),
        ("pass, IPv6", v6(CLIENT6, HOST6, TCP, &syn)),
        ("VIP, IPv4", v4(CLIENT4, VIP4, TCP, &syn)),
        ("VIP, IPv4, QinQ", frame(&[STAG, CTAG], &ipv4(CLIENT4, VIP4, TCP, 0, WHOLE, &syn))),
        ("VIP, IPv6", v6(CLIENT6, VIP6, TCP, &syn)),
        ("SNAT, IPv4", v4(NODE4, SNAT4, TCP, &ports(31_443, 45_000))),
        ("SNAT shared, IPv4", v4(NODE4, SHARED4, TCP, &ports(31_443, 45_000))),
        ("SNAT shared, ICMP error", v4(NODE4, SHARED4, ICMP, &error)),
        ("dnat reply, IPv4", v4(NODE4, CLIENT4, TCP, &ports(31_443, 5555))),
        ("ARP for a VIP", arp(&[], 1, HOST4, VIP4)),
    ];
    let family = rustix::net::AddressFamily::from_raw(44);
    let socket = rustix::net::socket(family, rustix::net::SocketType::RAW, None).unwrap();
    steer.set_socket(0, 0, socket.as_fd()).unwrap();
    for dnat in [true, false] {
        let wanted = if dnat { steering() } else { Steering { dnat: Vec::new(), ..steering() } };
        steer.sync(&wanted).unwrap();
        for (name, packet) in &cases {
            // The least of several: the kernel measures wall time, and others may have the core.
            let (decision, time) =
                (0..20).map(|_| steer.test_run(0, packet, 100_000).unwrap()).min_by_key(|(_, time)| *time).unwrap();
            println!("dnat {dnat:5} {name:24} {decision:?} {} ns", time.as_nanos());
        }
    }
    steer.detach().unwrap();
}
