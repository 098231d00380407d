//! Translation both ways.

use std::net::SocketAddr;

use penstock_configs::desired::Mode;

use super::*;
use crate::pipeline::testkit::{BOX_MACS, FRONT, KERNEL, client_mac, look, node_mac};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{TCP_RST, TCP_SYN};

/// Client, VIP and the VIP's service, one per family and protocol.
fn each() -> Vec<(Pkt, &'static str)> {
    vec![
        (Pkt::syn(CLIENT, TO_WEB), WEB),
        (Pkt::udp(CLIENT, TO_DNS), DNS),
        (Pkt::syn(CLIENT6, TO_WEB6), WEB6),
        (Pkt::udp(CLIENT6, TO_DNS6), DNS6),
    ]
}

fn node_of(plan: &Plan, service: &str) -> SocketAddr {
    let service = plan.services.iter().find(|s| s.name == service).unwrap();
    let backend = &service.backends[0];
    SocketAddr::new(backend.address.unwrap(), backend.port.unwrap())
}

#[test]
fn full_nat_both_ways() {
    let mut rig = rig();
    for (request, service) in each() {
        let node = node_of(&rig.plan, service);
        let snat = if node.is_ipv4() { SNAT } else { SNAT6 };
        let request = request.payload(b"odd");
        let there = rig.front(&request.bytes()).to_node();
        assert_eq!(there.dst, node, "{service}");
        assert_eq!(there.src.ip().to_string(), snat);
        assert_eq!((there.smac, there.dmac), (BOX_MACS[1], node_mac(node.ip())));
        assert_eq!((there.ttl, there.payload.as_slice(), there.flags), (63, &b"odd"[..], request.flags));

        let answer = Pkt::answer(&there, TCP_SYN | TCP_ACK).payload(b"the answer");
        let back = rig.back(&answer.bytes()).to_client();
        assert_eq!((back.src, back.dst), (request.dst, request.src), "{service}");
        assert_eq!((back.smac, back.dmac), (BOX_MACS[0], client_mac(request.src.ip())));
        assert_eq!((back.ttl, back.payload.as_slice()), (63, &b"the answer"[..]));
    }
    assert_eq!(rig.pipeline.stats().flows_created.get(), 4);
    rig.check();
}

#[test]
fn dnat_keeps_the_client() {
    let mut plan = plan();
    for service in &mut plan.services {
        service.mode = Mode::Dnat;
    }
    plan.snat.clear();
    let mut rig = Rig::new(plan);
    for (request, service) in each() {
        let node = node_of(&rig.plan, service);
        let there = rig.front(&request.bytes()).to_node();
        assert_eq!((there.src, there.dst), (request.src, node), "{service}");
        let back = rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
        assert_eq!((back.src, back.dst), (request.dst, request.src), "{service}");
        // What a backend sends to a stranger is the kernel's to route.
        let stranger = Pkt::answer(&there, TCP_ACK).with(|pkt| pkt.dst.set_port(9));
        assert_eq!(rig.back(&stranger.bytes()).verdict, Verdict::Kernel);
    }
    rig.check();
}

#[test]
fn a_dnat_tuple_of_a_service_that_is_gone_is_free_again() {
    let other = "203.0.113.11:443";
    let mut plan = plan();
    plan.service(WEB).mode = Mode::Dnat;
    plan.serve("203.0.113.11:443/tcp", &["10.0.0.11:31443"]).mode = Mode::Dnat;
    let mut rig = Rig::new(plan);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    // Validation refuses such a config; should one come through, the flow that was first stands.
    rig.front(&Pkt::syn(CLIENT, other).bytes()).dropped(DropReason::TupleTaken);
    conn.to_client(&mut rig, TCP_ACK);
    rig.change(|plan| plan.remove(WEB));
    let there = rig.front(&Pkt::syn(CLIENT, other).bytes()).to_node();
    let back = rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
    assert_eq!(back.src.to_string(), other);
    rig.check();
}

#[test]
fn tags_padding_options_and_odd_lengths_survive() {
    let mut rig = rig();
    for (n, vlans) in [vec![], vec![10], vec![10, 4094]].into_iter().enumerate() {
        for (m, (request, _)) in each().into_iter().enumerate() {
            for len in [0_usize, 1, 2, 3, 17, 1400] {
                let request = request.clone().payload(&vec![0xa5; len]).with(|pkt| {
                    pkt.vlans.clone_from(&vlans);
                    pkt.src.set_port(10_000 + (n * 100 + m * 10 + len % 7) as u16);
                    pkt.padding = 60_usize.saturating_sub(54 + len);
                    pkt.timestamp = Some(77);
                    if pkt.src.is_ipv4() {
                        pkt.ip_options = vec![1, 1, 1, 0];
                    }
                });
                let bytes = request.bytes();
                let there = rig.front(&bytes);
                assert_eq!(there.bytes.len(), bytes.len(), "the padding stays");
                let there = there.to_node();
                assert_eq!((&there.vlans, there.payload.len()), (&vlans, len));
                let answer = Pkt::answer(&there, TCP_SYN | TCP_ACK).payload(&vec![0x5a; len]);
                let back = rig.back(&answer.bytes()).to_client();
                assert_eq!((&back.vlans, back.payload.len()), (&vlans, len));
            }
        }
    }
}

#[test]
fn udp_without_a_checksum_gets_none_and_none_comes_out_as_zero() {
    let mut rig = rig();
    let request = Pkt::udp(CLIENT, TO_DNS).with(|pkt| pkt.unchecked = true).payload(b"q");
    let out = rig.front(&request.bytes());
    assert_eq!(out.bytes[40..42], [0, 0], "no checksum stays none");
    let there = out.to_node();
    let answer = Pkt::answer(&there, 0).with(|pkt| pkt.unchecked = true);
    assert_eq!(rig.back(&answer.bytes()).bytes[40..42], [0, 0]);

    // Every value of one payload word: one of them makes the translated sum zero, sent as all ones.
    let mut ones = 0;
    for word in 0..=u16::MAX {
        let packet = Pkt::udp(CLIENT, TO_DNS).payload(&word.to_be_bytes());
        let out = rig.front(&packet.bytes());
        assert_ne!(out.bytes[40..42], [0, 0], "a checksum became none for {word:04x}");
        ones += usize::from(out.bytes[40..42] == [0xff, 0xff]);
        if word % 97 == 0 || out.bytes[40..42] == [0xff, 0xff] {
            out.to_node();
        }
    }
    assert!(ones >= 1, "the case never came up");
}

#[test]
fn what_came_corrupt_leaves_corrupt_by_as_much() {
    let mut rig = rig();
    for (request, service) in each() {
        let right = request.payload(b"payload").bytes();
        let l3 = 14;
        let v4 = right[12..14] == [8, 0];
        let tcp = service.ends_with("tcp");
        let l4 = l3 + if v4 { 20 } else { 40 };
        let at = l4 + if tcp { 16 } else { 6 };
        let whole = rig.front(&right);
        whole.to_node();
        let mut wrong = right.clone();
        wrong[at + 1] ^= 0x40;
        if v4 {
            wrong[l3 + 10] ^= 0x01;
        }
        let out = rig.front(&wrong);
        let seen = look(&out.bytes).unwrap();
        let transport = if tcp { "tcp" } else { "udp" };
        assert_eq!(seen.wrong, if v4 { vec!["ip", transport] } else { vec![transport] }, "{service}");
        let off = |bytes: &[u8], right: &[u8], at: usize| {
            let word = |bytes: &[u8]| i32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            (word(bytes) - word(right)).rem_euclid(0xffff)
        };
        assert_eq!(off(&out.bytes, &whole.bytes, at), off(&wrong, &right, at), "{service}: another error than before");
        if v4 {
            assert_eq!(off(&out.bytes, &whole.bytes, l3 + 10), off(&wrong, &right, l3 + 10), "{service}: IP header");
        }
    }
}

#[test]
fn replies_follow_the_clients_last_hop() {
    let mut rig = rig();
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    assert_eq!(conn.to_client(&mut rig, TCP_ACK).dmac, client_mac("198.51.100.7".parse().unwrap()));
    // The client's router fails over: its next packet comes from another neighbour.
    let other = [2, 0x77, 0, 0, 0, 9];
    rig.front(&conn.request(TCP_ACK).with(|pkt| pkt.smac = other).bytes()).to_node();
    assert_eq!(conn.to_client(&mut rig, TCP_ACK).dmac, other);
    // The same neighbour seen behind another port is another hop.
    let moved = conn.request(TCP_ACK).with(|pkt| pkt.smac = other);
    rig.back(&moved.bytes()).to_node();
    let back = rig.back(&conn.reply(TCP_ACK).bytes());
    assert_eq!(back.verdict, Verdict::Tx(crate::pipeline::testkit::BACK));
    assert_eq!(valid_smac(&back), BOX_MACS[1]);
    // No host sends from a group address: replies are not spread over the segment.
    rig.plan.gateway = true;
    rig.apply();
    rig.front(&conn.request(TCP_ACK).with(|pkt| pkt.smac = [0xff; 6]).bytes()).to_node();
    assert_eq!(conn.to_client(&mut rig, TCP_ACK).dmac, [2, 0x99, 0, 0, 0, 1], "by the default route");
}

fn valid_smac(out: &Out) -> [u8; 6] {
    crate::pipeline::testkit::valid(&out.bytes).smac
}

/// Sweeps of the two families end at different times; hops in use must outlive any number of them.
#[test]
fn last_hops_in_use_are_never_forgotten() {
    let mut rig = rig();
    let conns: Vec<Conn> =
        (0..600).map(|n| Conn::open(&mut rig, &format!("198.51.{}.{}:7000", n / 200, n % 200 + 1), TO_WEB)).collect();
    for n in 0..1000 {
        Conn::open(&mut rig, &format!("[2001:db8:2::1:{n:x}]:7000"), TO_WEB6);
    }
    // A minute: at this pace a round of the thousand takes 1 s, of the six hundred 1.04 s.
    for turn in 0..1500 {
        rig.now.ns += 40_000_000;
        rig.pipeline.upkeep(rig.now);
        // Other clients come and go, so that a freed number would be taken at once.
        let passing = Pkt::syn(&format!("[2001:db8:2::2:{turn:x}]:9"), TO_WEB6);
        rig.front(&passing.bytes()).to_node();
        for conn in conns.iter().skip(turn % 20).step_by(20) {
            let mac = client_mac(conn.client.parse::<SocketAddr>().unwrap().ip());
            assert_eq!(conn.to_client(&mut rig, TCP_ACK).dmac, mac, "turn {turn}");
        }
    }
}

#[test]
fn ttl_is_taken_from_and_runs_out() {
    let mut rig = rig();
    for (request, service) in each() {
        let at = |ttl: u8| request.clone().with(|pkt| pkt.ttl = ttl).bytes();
        assert_eq!(rig.front(&at(2)).to_node().ttl, 1, "{service}");
        assert_eq!(rig.front(&at(255)).to_node().ttl, 254, "{service}");
    }
}

#[test]
fn a_shared_snat_address_gives_back_what_is_the_kernels() {
    let mut plan = plan();
    plan.snat(SNAT, [40_000, 40_999]).shared = true;
    plan.snat.remove(0);
    let mut rig = Rig::new(plan);
    let there = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    assert!((40_000..41_000).contains(&there.src.port()));
    rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
    let stray = |port| Pkt::answer(&there, TCP_SYN | TCP_ACK).with(|pkt| pkt.dst.set_port(port)).bytes();
    assert_eq!(rig.back(&stray(22)).verdict, Verdict::Kernel);
    assert_eq!(rig.back(&stray(41_000)).verdict, Verdict::Kernel);
    rig.back(&stray(40_999)).dropped(DropReason::NoFlow);
    // The box as a client under its shared address is no spoof.
    let own = Pkt::syn("10.0.0.1:30000", TO_DNS).with(|pkt| pkt.protocol = 17);
    rig.send(KERNEL, &own.bytes()).to_node();
}

#[test]
fn a_port_that_is_the_kernels_again_keeps_no_flow() {
    let mut plan = plan();
    plan.snat(SNAT, [40_000, 40_003]).shared = true;
    plan.snat.remove(0);
    let mut rig = Rig::new(plan);
    let conns: Vec<_> = (1..5).map(|n| Conn::open(&mut rig, &format!("198.51.100.{n}:5000"), TO_WEB)).collect();
    rig.change(|plan| plan.snat[1].ports = [40_002, 40_003]);
    let stays = |conn: &&Conn| conn.at_node.src.port() >= 40_002;
    assert_eq!(conns.iter().filter(stays).count(), 2);
    for conn in &conns {
        if stays(&conn) {
            conn.to_node(&mut rig, TCP_ACK);
        } else {
            conn.out(&mut rig, TCP_ACK).dropped(DropReason::FlowRevoked);
        }
    }
    rig.check();
}

#[test]
fn packets_for_nobody_go_back_to_the_kernel_unchanged() {
    let mut rig = rig();
    for packet in [
        Pkt::syn(CLIENT, "203.0.113.99:443"),
        Pkt::udp(CLIENT, "203.0.113.99:53"),
        Pkt::syn(CLIENT6, "[2001:db8:1::99]:443"),
        Pkt::tcp(CLIENT, "203.0.113.99:443", TCP_RST),
    ] {
        let bytes = packet.bytes();
        let out = rig.send(FRONT, &bytes);
        assert_eq!((out.verdict, &out.bytes), (Verdict::Kernel, &bytes));
    }
    let mut foreign = Pkt::syn(CLIENT, TO_WEB).bytes();
    foreign[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(rig.front(&foreign).verdict, Verdict::Kernel, "LLDP");
}
