//! What the box says itself: echo replies, time exceeded, ARP and neighbour discovery.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, NetSlice, SlicedPacket};

use super::*;
use crate::pipeline::testkit::{BOX_MACS, FRONT, Icmp, KERNEL, client_mac, valid};
use crate::verdict::{DropReason, Verdict};

#[test]
fn echo_is_answered_where_it_came_from() {
    let mut rig = rig();
    for (client, ours) in [
        ("198.51.100.7", VIP),
        ("198.51.100.7", SNAT),
        ("2001:db8:2::7", VIP6),
        ("2001:db8:2::7", SNAT6),
        ("fe80::7", VIP6),
    ] {
        for data in [&b""[..], b"odd", b"abcdefgh"] {
            let request = Icmp::echo(client, ours, data);
            let reply = rig.front(&request.bytes()).to_client();
            assert_eq!((reply.src.ip(), reply.dst.ip()), (request.dst, request.src));
            assert_eq!((reply.smac, reply.dmac), (BOX_MACS[0], client_mac(request.src)));
            assert_eq!(reply.payload[0], if request.src.is_ipv4() { 0 } else { 129 });
            assert_eq!(reply.payload[4..], request.message[4..]);
            assert_eq!(reply.ttl, 64);
        }
    }
    assert_eq!(rig.front(&Icmp::echo("198.51.100.7", "203.0.113.99", b"").bytes()).verdict, Verdict::Kernel);
    assert_eq!(rig.pipeline.stats().generated.get(), 0, "a reply takes the place of its request");
}

/// A reply would go to the whole segment, or come from its broadcast address.
#[test]
fn echo_by_way_of_a_groups_link_layer_address_is_not_answered() {
    let mut rig = rig();
    for (client, ours) in [("198.51.100.7", VIP), ("2001:db8:2::7", VIP6)] {
        for at in [0, 6] {
            let mut request = Icmp::echo(client, ours, b"").bytes();
            request[at..at + 6].fill(0xff);
            rig.front(&request).dropped(DropReason::IcmpUnmatched);
        }
    }
}

#[test]
fn a_corrupt_echo_request_makes_a_corrupt_reply() {
    let mut bytes = Icmp::echo("198.51.100.7", VIP, b"data").bytes();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let out = rig().front(&bytes);
    assert_eq!(crate::pipeline::testkit::look(&out.bytes).unwrap().wrong, ["icmp"]);
}

#[test]
fn echo_requests_from_impossible_sources_are_dropped() {
    let mut rig = rig();
    for (source, reason) in [
        ("127.0.0.1", DropReason::Martian),
        ("224.0.0.1", DropReason::Martian),
        ("255.255.255.255", DropReason::Martian),
        (VIP, DropReason::SpoofedSource),
        (SNAT, DropReason::SpoofedSource),
    ] {
        rig.front(&Icmp::echo(source, VIP, b"").bytes()).dropped(reason);
    }
    for (source, reason) in
        [("::1", DropReason::Martian), ("ff02::1", DropReason::Martian), (SNAT6, DropReason::SpoofedSource)]
    {
        rig.front(&Icmp::echo(source, VIP6, b"").bytes()).dropped(reason);
    }
}

#[test]
fn other_icmp_is_dropped_by_name_or_the_kernels() {
    let mut plan = plan();
    plan.snat("10.0.0.2", [40_000, 40_999]).shared = true;
    let mut rig = Rig::new(plan);
    let from: IpAddr = "198.51.100.7".parse().unwrap();
    let unreachable = [3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 0];
    rig.front(&Icmp::message(from, VIP.parse().unwrap(), &unreachable).bytes()).dropped(DropReason::IcmpUnmatched);
    let shared: IpAddr = "10.0.0.2".parse().unwrap();
    assert_eq!(rig.front(&Icmp::message(from, shared, &unreachable).bytes()).verdict, Verdict::Kernel);
    assert_eq!(rig.front(&Icmp::echo("198.51.100.7", "10.0.0.2", b"").bytes()).verdict, Verdict::Kernel);
}

#[test]
fn time_exceeded_quotes_what_it_is_about() {
    let mut rig = rig();
    let long = vec![0x55; 1200];
    for (packet, us) in [
        (Pkt::syn(CLIENT, TO_WEB), VIP),
        (Pkt::udp(CLIENT, TO_DNS).payload(&long), VIP),
        (Pkt::syn(CLIENT6, TO_WEB6), VIP6),
        (Pkt::udp(CLIENT6, TO_DNS6).payload(&long), VIP6),
        (Pkt::syn(CLIENT, TO_WEB).with(|pkt| pkt.vlans = vec![7, 8]), VIP),
    ] {
        for ttl in [0, 1] {
            let bytes = packet.clone().with(|pkt| pkt.ttl = ttl).bytes();
            let error = rig.front(&bytes).to_client();
            assert_eq!((error.src.ip(), error.dst.ip()), (us.parse().unwrap(), packet.src.ip()));
            assert_eq!((error.smac, error.dmac), (packet.dmac, packet.smac));
            assert_eq!(error.vlans, packet.vlans);
            let v4 = packet.src.is_ipv4();
            assert_eq!(error.payload[..2], if v4 { [11, 0] } else { [3, 0] });
            let l3 = 14 + 4 * packet.vlans.len();
            let most = if v4 { 576 - 28 } else { 1280 - 48 };
            let quoted = &bytes[l3..bytes.len().min(l3 + most)];
            assert_eq!(&error.payload[8..], quoted, "the packet as it came");
        }
    }
    assert_eq!(rig.drops(DropReason::TtlExceeded), 10);
    assert_eq!(rig.pipeline.stats().generated.get(), 10);
    assert_eq!(rig.pipeline.stats().flows_created.get(), 0, "a traceroute opens no flow");
}

#[test]
fn time_exceeded_on_the_way_back_and_within_its_rate() {
    let mut rig = rig();
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    let late = conn.reply(TCP_ACK).with(|pkt| pkt.ttl = 1).bytes();
    let error = rig.back(&late);
    assert_eq!(error.verdict, Verdict::Tx(crate::pipeline::testkit::BACK));
    assert_eq!(valid(&error.bytes).dst, std::net::SocketAddr::new(conn.at_node.dst.ip(), 0));
    // 100 a second, a tenth of a second's worth at once; one was spent.
    let sent = (0..50).filter(|_| matches!(rig.back(&late).verdict, Verdict::Tx(_))).count();
    assert_eq!(sent, 9);
    assert_eq!(rig.drops(DropReason::RateLimited), 41);
    rig.now.ns += 50_000_000;
    let sent = (0..50).filter(|_| matches!(rig.back(&late).verdict, Verdict::Tx(_))).count();
    assert_eq!(sent, 5, "50 ms later");
}

fn arp_request(target: &str) -> Vec<u8> {
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: client_mac("198.51.100.7".parse().unwrap()),
        sender_ipv4: [198, 51, 100, 7],
        target_mac: [0; 6],
        target_ipv4: target.parse::<std::net::Ipv4Addr>().unwrap().octets(),
    };
    let mut frame = [&[0xff; 6][..], &arp.sender_mac, &[8, 6]].concat();
    frame.extend(ArpPacket::from(arp).to_bytes());
    frame.extend([0; 18]);
    frame
}

#[test]
fn arp_for_our_addresses_is_answered() {
    let mut rig = rig();
    for ours in [VIP, SNAT] {
        let out = rig.front(&arp_request(ours));
        assert_eq!(out.verdict, Verdict::Tx(FRONT));
        let sliced = SlicedPacket::from_ethernet(&out.bytes).unwrap();
        let Some(NetSlice::Arp(arp)) = sliced.net else { panic!("no ARP") };
        let arp = arp.to_packet().try_eth_ipv4().unwrap();
        assert_eq!(arp.operation, ArpOperation::REPLY);
        assert_eq!(
            (arp.sender_mac, arp.sender_ipv4),
            (BOX_MACS[0], ours.parse::<std::net::Ipv4Addr>().unwrap().octets())
        );
        assert_eq!(arp.target_ipv4, [198, 51, 100, 7]);
    }
    assert_eq!(rig.front(&arp_request("203.0.113.99")).verdict, Verdict::Kernel);
    rig.front(&arp_request(VIP)[..30]).dropped(DropReason::NeighborIgnored);
}

/// A VIP held on one port and probed for on another: who has it there must be heard, or it is taken from them.
#[test]
fn an_answer_to_a_probe_is_a_conflict_on_its_port() {
    let mut rig = rig();
    let vip: IpAddr = VIP.parse().unwrap();
    let mut answer = arp_request("0.0.0.0");
    answer[..6].copy_from_slice(&BOX_MACS[0]);
    answer[21] = 2;
    answer[28..32].copy_from_slice(&[203, 0, 113, 10]);
    let mac = client_mac("198.51.100.7".parse().unwrap());
    std::sync::Arc::get_mut(&mut rig.pipeline.view).expect("the rig's own").claimed.remove(&(FRONT.0, vip));
    assert_eq!(rig.front(&answer).verdict, Verdict::Kernel);
    let heard = rig.pipeline.stats().conflicts.pop().expect("told to housekeeping");
    assert_eq!((heard.port, heard.address, heard.mac), (FRONT, vip, mac));
    // Who asks for it does not claim it.
    assert_eq!(rig.front(&arp_request(VIP)).verdict, Verdict::Kernel);
    assert!(rig.pipeline.stats().conflicts.pop().is_none());
}

#[test]
fn neighbour_solicitations_for_our_addresses_are_answered() {
    let mut rig = rig();
    let client: IpAddr = "2001:db8:2::7".parse().unwrap();
    let ask = |target: &str| {
        let target: Ipv6Addr = target.parse().unwrap();
        let option = [&[1, 1][..], &client_mac(client)].concat();
        let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &option].concat();
        Icmp { ttl: 255, ..Icmp::message(client, target.into(), &message) }.bytes()
    };
    for ours in [VIP6, SNAT6] {
        let answer = rig.front(&ask(ours)).to_client();
        assert_eq!((answer.payload[0], answer.src.ip(), answer.ttl), (136, ours.parse().unwrap(), 255));
        assert_eq!(answer.payload[26..32], BOX_MACS[0]);
    }
    assert_eq!(rig.front(&ask("2001:db8:1::99")).verdict, Verdict::Kernel);
}

/// The kernel forwards what is for a VIP to the TAP, that is, here: one packet from afar would go round until its hop
/// limit ends.
#[test]
fn neighbour_discovery_to_our_addresses_is_never_the_kernels() {
    let mut plan = plan();
    plan.snat("fd00::2", [40_000, 40_999]).shared = true;
    let mut rig = Rig::new(plan);
    let client: IpAddr = "2001:db8:2::7".parse().unwrap();
    let elsewhere = "2001:db8:1::99".parse::<Ipv6Addr>().unwrap().octets();
    for kind in 133..=137 {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &elsewhere, &[0; 16]].concat();
        let message = &message[..24];
        for ours in [VIP6, SNAT6] {
            let packet = Icmp { ttl: 255, ..Icmp::message(client, ours.parse().unwrap(), message) }.bytes();
            rig.front(&packet).dropped(DropReason::IcmpUnmatched);
            // Behind a header of options.
            let mut behind = packet[..54].to_vec();
            (behind[19], behind[20]) = (32, 0);
            behind.extend([58, 0, 1, 4, 0, 0, 0, 0]);
            behind.extend(&packet[54..]);
            rig.front(&behind).dropped(DropReason::IcmpUnmatched);
        }
        let shared = Icmp { ttl: 255, ..Icmp::message(client, "fd00::2".parse().unwrap(), message) };
        assert_eq!(rig.front(&shared.bytes()).verdict, Verdict::Kernel);
    }
}

#[test]
fn what_the_kernel_sent_is_not_given_back_to_it() {
    let mut rig = rig();
    for to in ["203.0.113.99:443", "[2001:db8:1::99]:443"] {
        let from = if to.starts_with('[') { CLIENT6 } else { CLIENT };
        assert_eq!(rig.front(&Pkt::syn(from, to).bytes()).verdict, Verdict::Kernel);
        rig.send(KERNEL, &Pkt::syn(from, to).bytes()).dropped(DropReason::NoService);
    }
    let mut foreign = vec![2; 60];
    foreign[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(rig.front(&foreign).verdict, Verdict::Kernel);
    rig.send(KERNEL, &foreign).dropped(DropReason::NoService);
    // What it tells its neighbours (MLD, router solicitations) is no packet that lost its way.
    foreign[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 2]);
    assert_eq!(rig.send(KERNEL, &foreign).verdict, Verdict::Kernel);
}
