//! Policing of new flows, in the program as the kernel runs it (BPF_PROG_TEST_RUN): what the workers have marked
//! passes, of all else so much a slice. Privileged.
//!
//! No socket is in the map: what passes is dropped a step later, and counted under its class.

mod steer_net;

use std::time::Duration;

use penstock_configs::file::XdpMode;
use penstock_dataplane::schedule::Random;
use penstock_dataplane::steer::{Options, SnatSteer, Steer, Steering};
use penstock_dataplane::wire::{Family, Tuple, V4, V6};
use steer_net::packets::*;
use steer_net::{Net, ok, privileged};

const VIP4: &str = "203.0.113.10";
const OTHER4: &str = "203.0.113.11";
const VIP6: &str = "2001:db8:1::10";
const SNAT4: &str = "10.0.0.1";
/// A VIP and a SNAT address at once.
const BOTH4: &str = "10.0.0.2";
const CLIENT4: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8:ffff::7";

/// A quota of one packet a slice.
fn steering(new_per_vip: u32) -> Steering {
    let address = |text: &str| text.parse().unwrap();
    let snat = |text: &str| SnatSteer { address: address(text), ports: [1024, 65535], shared: false };
    Steering {
        vips: [VIP4, OTHER4, VIP6, BOTH4].map(|vip| (address(vip), true)).to_vec(),
        snat: vec![snat(SNAT4), snat(BOTH4)],
        new_per_vip,
        ..Steering::default()
    }
}

fn quiet(tag: &str) -> (Net, Steer) {
    let net = Net::new(tag);
    ok(&format!("ip -n {} link set peer0 down", net.peer_ns));
    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    steer.sync(&steering(60)).unwrap();
    (net, steer)
}

fn v4(to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(&[], &ipv4(CLIENT4, to, protocol, 0, WHOLE, payload))
}

fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(&[], &ipv6(CLIENT6, VIP6, &[], protocol, payload))
}

const RUNS: u32 = 200;

/// How many of [`RUNS`] runs of a packet were policed, all others having passed as ours.
fn policed(steer: &mut Steer, packet: &[u8]) -> u64 {
    let before = steer.counters().unwrap();
    steer.test_run(0, packet, RUNS).unwrap();
    let after = steer.counters().unwrap();
    let policed = after.policed - before.policed;
    let ours = |counters: &penstock_dataplane::steer::SteerCounters| counters.no_socket.vip + counters.no_socket.snat;
    assert_eq!(policed + ours(&after) - ours(&before), u64::from(RUNS), "each is one or the other");
    policed
}

/// A slice's quota of one, and a run may reach into a few slices on a busy machine.
fn is_charged(policed: u64) -> bool {
    policed > u64::from(RUNS) / 2
}

#[test]
fn privileged_what_is_charged_and_what_is_free() {
    if !privileged("privileged_what_is_charged_and_what_is_free") {
        return;
    }
    let (_net, mut steer) = quiet("pol");
    let tcp = ports(5555, 443);
    let neighbor = |kind: u8, hops: u8| {
        let mut packet = v6(ICMPV6, &icmp(kind, &[0; 16]));
        packet[21] = hops;
        packet
    };
    let part = frame(&[], &ipv4(CLIENT4, VIP4, UDP, 0, FIRST, &ports(5555, 53)));
    let part6 = frame(&[], &ipv6(CLIENT6, VIP6, &[Extension::Fragmented(FIRST)], UDP, &ports(5555, 53)));
    let charged = [
        ("TCP", v4(VIP4, TCP, &tcp)),
        ("UDP", v4(VIP4, UDP, &tcp)),
        ("SCTP", v4(VIP4, 132, &tcp)),
        ("an echo request", v4(VIP4, ICMP, &icmp(8, &[]))),
        ("a fragment", part),
        ("behind tags", frame(&[STAG, CTAG], &ipv4(CLIENT4, VIP4, TCP, 0, WHOLE, &tcp))),
        ("without its ports", v4(VIP4, TCP, &tcp)[..36].to_vec()),
        ("TCP, IPv6", v6(TCP, &tcp)),
        ("an echo request, IPv6", v6(ICMPV6, &icmp(128, &[]))),
        ("a fragment, IPv6", part6),
        ("neighbour discovery from afar", neighbor(135, 64)),
        ("a chain cut short, IPv6", v6(TCP, &[])),
        ("extensions cut short, IPv6", v6(0, &[])),
    ];
    for (name, packet) in &charged {
        let count = policed(&mut steer, packet);
        assert!(is_charged(count), "{name}: {count} policed");
    }
    let free = [
        ("a reply to a SNAT address", v4(SNAT4, TCP, &tcp)),
        ("to a VIP that is a SNAT address", v4(BOTH4, TCP, &tcp)),
        ("neighbour discovery", neighbor(135, 255)),
        ("its answer", neighbor(136, 255)),
    ];
    for (name, packet) in &free {
        assert_eq!(policed(&mut steer, packet), 0, "{name}");
    }
    steer.sync(&steering(0)).unwrap();
    for (name, packet) in &charged {
        assert_eq!(policed(&mut steer, packet), 0, "{name}, not policed");
    }
    steer.detach().unwrap();
}

#[test]
fn privileged_each_vip_has_its_quota_and_it_comes_again() {
    if !privileged("privileged_each_vip_has_its_quota_and_it_comes_again") {
        return;
    }
    let (_net, mut steer) = quiet("quota");
    // 100 a slice.
    steer.sync(&steering(6_000)).unwrap();
    let packet = |to| v4(to, UDP, &ports(5555, 53));
    for to in [VIP4, OTHER4] {
        let passed = u64::from(RUNS) - policed(&mut steer, &packet(to));
        assert!((100..=200).contains(&passed), "{passed} passed to {to}");
    }
    let mut passed = 0;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(20));
        passed += u64::from(RUNS) - policed(&mut steer, &packet(VIP4));
    }
    assert!((500..=1000).contains(&passed), "{passed} passed in five slices or so");
    // What is free is not charged either: it leaves the quota to the others.
    let marks = steer.marks();
    let [client, vip] = [CLIENT4, VIP4].map(|text| V4::from_ip(text.parse().unwrap()).unwrap());
    marks.mark::<V4>(&Tuple { src: client, dst: vip, src_port: 5555, dst_port: 80, protocol: TCP });
    let behind_it = (0..10).map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(policed(&mut steer, &v4(VIP4, TCP, &ports(5555, 80))), 0);
        u64::from(RUNS) - policed(&mut steer, &packet(VIP4))
    });
    assert_eq!(behind_it.min(), Some(100), "more only where another slice begins");
    steer.detach().unwrap();
}

/// The workers' hash and the program's are one: of random tuples the marked pass, the others do not.
#[test]
fn privileged_marked_flows_pass() {
    if !privileged("privileged_marked_flows_pass") {
        return;
    }
    let (_net, mut steer) = quiet("mark");
    let marks = steer.marks();
    assert_ne!(marks.seed(), 0);
    let mut random = Random::new(1);
    let (vip4, vip6) = (V4::from_ip(VIP4.parse().unwrap()).unwrap(), V6::from_ip(VIP6.parse().unwrap()).unwrap());
    for n in 0..120 {
        let draw = random.draw();
        let [src_port, dst_port] = [1 + (draw >> 17) as u16 % 60_000, 1 + (draw >> 40) as u16 % 60_000];
        let protocol = [TCP, UDP, 132][n % 3];
        let (src4, src6) = ((draw as u32) | 0x0100_0000, u128::from(draw) << 64 | u128::from(random.draw()));
        let tuple4 = Tuple { src: src4, dst: vip4, src_port, dst_port, protocol };
        let tuple6 = Tuple { src: src6, dst: vip6, src_port, dst_port, protocol };
        let text4 = V4::to_ip(src4).to_string();
        let text6 = V6::to_ip(src6).to_string();
        let packet4 = frame(&[], &ipv4(&text4, VIP4, protocol, 0, WHOLE, &ports(src_port, dst_port)));
        let packet6 = frame(&[CTAG], &ipv6(&text6, VIP6, &[], protocol, &ports(src_port, dst_port)));
        for packet in [&packet4, &packet6] {
            let count = policed(&mut steer, packet);
            assert!(is_charged(count), "{count} of a flow not marked: {tuple4:?}");
        }
        marks.mark::<V4>(&tuple4);
        marks.mark::<V6>(&tuple6);
        assert_eq!(policed(&mut steer, &packet4), 0, "{tuple4:?}");
        assert_eq!(policed(&mut steer, &packet6), 0, "{tuple6:?}");
        // The same addresses with the ports the other way round are another flow.
        let other = frame(&[], &ipv4(&text4, VIP4, protocol, 0, WHOLE, &ports(dst_port, src_port)));
        assert!(src_port == dst_port || is_charged(policed(&mut steer, &other)));
    }
    steer.detach().unwrap();
}

/// A fragment's flow is not read: behind the first there are no ports, and who could choose what is taken for them would
/// not be policed.
#[test]
fn privileged_fragments_are_charged_whatever_their_flow() {
    if !privileged("privileged_fragments_are_charged_whatever_their_flow") {
        return;
    }
    let (_net, mut steer) = quiet("polpart");
    let marks = steer.marks();
    let (payload, src_port, dst_port, protocol) = (ports(5555, 53), 5555, 53, UDP);
    let [src, dst] = [CLIENT4, VIP4].map(|text| V4::from_ip(text.parse().unwrap()).unwrap());
    marks.mark::<V4>(&Tuple { src, dst, src_port, dst_port, protocol });
    let [src, dst] = [CLIENT6, VIP6].map(|text| V6::from_ip(text.parse().unwrap()).unwrap());
    marks.mark::<V6>(&Tuple { src, dst, src_port, dst_port, protocol });
    assert_eq!(policed(&mut steer, &v4(VIP4, UDP, &payload)) + policed(&mut steer, &v6(UDP, &payload)), 0);
    for fragment in [FIRST, LATER] {
        let four = frame(&[], &ipv4(CLIENT4, VIP4, UDP, 0, fragment, &payload));
        let six = frame(&[], &ipv6(CLIENT6, VIP6, &[Extension::Fragmented(fragment)], UDP, &payload));
        for packet in [four, six] {
            assert!(is_charged(policed(&mut steer, &packet)));
        }
    }
    steer.detach().unwrap();
}

/// Marks stand for two turns, and outlive the process with the seed they were made with.
#[test]
fn privileged_marks_fade_and_outlive_the_process() {
    if !privileged("privileged_marks_fade_and_outlive_the_process") {
        return;
    }
    let (net, mut steer) = quiet("fade");
    let vip = V4::from_ip(VIP4.parse().unwrap()).unwrap();
    let client = V4::from_ip(CLIENT4.parse().unwrap()).unwrap();
    let tuple = Tuple { src: client, dst: vip, src_port: 5555, dst_port: 443, protocol: TCP };
    let packet = v4(VIP4, TCP, &ports(5555, 443));
    let seed = steer.marks().seed();
    steer.marks().mark::<V4>(&tuple);
    steer.marks().rotate();
    // In the other generation now.
    steer.marks().mark::<V4>(&Tuple { src_port: 5556, ..tuple });
    assert_eq!(policed(&mut steer, &v4(VIP4, TCP, &ports(5556, 443))), 0);
    drop(steer);
    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    steer.sync(&steering(60)).unwrap();
    assert_eq!(steer.marks().seed(), seed);
    assert_eq!(policed(&mut steer, &packet), 0);
    steer.marks().rotate();
    steer.marks().rotate();
    assert!(is_charged(policed(&mut steer, &packet)));
    steer.detach().unwrap();
}

/// `cargo test --test steer_police -- --ignored --nocapture`: nanoseconds per packet to a VIP.
#[test]
#[ignore = "a measurement"]
fn privileged_cost_of_policing() {
    if !privileged("privileged_cost_of_policing") {
        return;
    }
    let (_net, mut steer) = quiet("pcost");
    let packets = [("IPv4", v4(VIP4, TCP, &ports(5555, 443))), ("IPv6", v6(TCP, &ports(5555, 443)))];
    let measure = |steer: &mut Steer, what: &str| {
        for (family, packet) in &packets {
            // The least of several: the kernel measures wall time, and others may have the core.
            let time = (0..20).map(|_| steer.test_run(0, packet, 100_000).unwrap().1).min().unwrap();
            println!("{what:30} {family} {} ns", time.as_nanos());
        }
    };
    steer.sync(&steering(0)).unwrap();
    measure(&mut steer, "not policed");
    steer.sync(&steering(60)).unwrap();
    measure(&mut steer, "policed, over the quota");
    steer.sync(&steering(u32::MAX)).unwrap();
    measure(&mut steer, "policed, within the quota");
    let marks = steer.marks();
    let [client, vip] = [CLIENT4, VIP4].map(|text| V4::from_ip(text.parse().unwrap()).unwrap());
    marks.mark::<V4>(&Tuple { src: client, dst: vip, src_port: 5555, dst_port: 443, protocol: TCP });
    let [client, vip] = [CLIENT6, VIP6].map(|text| V6::from_ip(text.parse().unwrap()).unwrap());
    marks.mark::<V6>(&Tuple { src: client, dst: vip, src_port: 5555, dst_port: 443, protocol: TCP });
    measure(&mut steer, "policed, of an established flow");
    steer.detach().unwrap();
}

/// Jumbo frames whose first buffer has no whole header: the flow is read all the same.
#[test]
fn privileged_packets_in_several_buffers_are_known_too() {
    if !privileged("privileged_packets_in_several_buffers_are_known_too") {
        return;
    }
    let net = Net::new("polfrag");
    ok(&format!("ip -n {} link set peer0 down", net.peer_ns));
    let mut steer =
        Steer::open_with(net.run_dir(), &[net.interface(XdpMode::Native)], Options { frags: true }).unwrap();
    steer.sync(&steering(60)).unwrap();
    let marks = steer.marks();
    let tcp = ports(5555, 443);
    for v6_too in [false, true] {
        let mut packet = if v6_too { v6(TCP, &tcp) } else { v4(VIP4, TCP, &tcp) };
        packet.resize(9014, 0);
        let mut policed = |first| {
            let before = steer.counters().unwrap().policed;
            for _ in 0..RUNS {
                steer.test_run_split(0, &packet, first).unwrap();
            }
            steer.counters().unwrap().policed - before
        };
        assert!(policed(20) > 0 && policed(1000) > 0, "not established");
        if v6_too {
            let (src, dst) =
                (CLIENT6.parse::<std::net::Ipv6Addr>().unwrap(), VIP6.parse::<std::net::Ipv6Addr>().unwrap());
            marks.mark::<V6>(&Tuple {
                src: src.to_bits(),
                dst: dst.to_bits(),
                src_port: 5555,
                dst_port: 443,
                protocol: TCP,
            });
        } else {
            let (src, dst) =
                (CLIENT4.parse::<std::net::Ipv4Addr>().unwrap(), VIP4.parse::<std::net::Ipv4Addr>().unwrap());
            marks.mark::<V4>(&Tuple {
                src: src.to_bits(),
                dst: dst.to_bits(),
                src_port: 5555,
                dst_port: 443,
                protocol: TCP,
            });
        }
        assert_eq!((policed(20), policed(1000)), (0, 0), "established");
    }
    steer.detach().unwrap();
}

/// In such packets ports are read only where they must be: what stands there in others is nobody's flow.
#[test]
fn privileged_packets_in_several_buffers_are_charged_where_ports_are_elsewhere() {
    if !privileged("privileged_packets_in_several_buffers_are_charged_where_ports_are_elsewhere") {
        return;
    }
    let net = Net::new("polodd");
    ok(&format!("ip -n {} link set peer0 down", net.peer_ns));
    let mut steer =
        Steer::open_with(net.run_dir(), &[net.interface(XdpMode::Native)], Options { frags: true }).unwrap();
    steer.sync(&steering(60)).unwrap();
    let marks = steer.marks();
    let [src, dst] = [CLIENT4, VIP4].map(|text| V4::from_ip(text.parse().unwrap()).unwrap());
    for (src_port, dst_port) in [(5555, 443), (0x0101, 0x0101)] {
        marks.mark::<V4>(&Tuple { src, dst, src_port, dst_port, protocol: TCP });
    }
    let [src, dst] = [CLIENT6, VIP6].map(|text| V6::from_ip(text.parse().unwrap()).unwrap());
    // What a fragment header has in the place of ports.
    marks.mark::<V6>(&Tuple { src, dst, src_port: u16::from(TCP) << 8, dst_port: 1, protocol: 44 });
    let tcp = ports(5555, 443);
    for (what, mut packet) in [
        ("a fragment", frame(&[], &ipv4(CLIENT4, VIP4, TCP, 0, FIRST, &tcp))),
        ("options", frame(&[], &ipv4(CLIENT4, VIP4, TCP, 4, WHOLE, &tcp))),
        ("a fragment, IPv6", frame(&[], &ipv6(CLIENT6, VIP6, &[Extension::Fragmented(FIRST)], TCP, &tcp))),
    ] {
        packet.resize(9014, 0);
        let before = steer.counters().unwrap().policed;
        for _ in 0..RUNS {
            steer.test_run_split(0, &packet, 20).unwrap();
        }
        assert!(steer.counters().unwrap().policed > before, "{what}");
    }
    steer.detach().unwrap();
}
