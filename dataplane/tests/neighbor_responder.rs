//! ARP and neighbour discovery, packet in, answer out. Guards against answering what is malformed
//! (a broken frame must end in a named drop), and against answers other stacks would not accept:
//! they are read back with etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpEthIpv4Packet, ArpOperation, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use penstock_dataplane::neighbor::responder::{Answer, Claim, answer, claim};
use penstock_dataplane::neighbor::{Mac, frames};
use penstock_dataplane::verdict::DropReason;
use proptest::prelude::*;

const PORT: Mac = [0x02, 0, 0, 0, 0, 0x01];
const PEER: Mac = [0x02, 0, 0, 0, 0, 0x99];
const BROADCAST: Mac = [0xff; 6];
const VIP4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const PEER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
const IGNORED: Answer = Answer::Drop(DropReason::NeighborIgnored);

fn ours(address: IpAddr) -> bool {
    address == IpAddr::from(VIP4) || address == IpAddr::from(VIP6)
}

/// Runs the frame through the responder in a frame's room; returns the answer and the bytes.
fn run(frame: &[u8]) -> (Answer, Vec<u8>) {
    let mut room = vec![0xaa; 1792];
    room[..frame.len()].copy_from_slice(frame);
    let answer = answer(&mut room, frame.len(), PORT, ours);
    let len = if let Answer::Reply(len) = answer { len } else { frame.len() };
    room.truncate(len);
    (answer, room)
}

fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation(operation),
        sender_mac: sender.0,
        sender_ipv4: sender.1.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(sender.0, BROADCAST).arp(packet.into()).write(&mut frame).unwrap();
    frame.resize(60, 0);
    frame
}

fn who_has(target: Ipv4Addr) -> Vec<u8> {
    arp(1, (PEER, PEER4), target)
}

/// A message with `rest` behind the first eight ICMPv6 bytes (target, options).
fn icmpv6(kind: Icmpv6Type, source: Ipv6Addr, destination: Ipv6Addr, rest: &[u8]) -> Vec<u8> {
    let mac = if destination.is_multicast() { frames::multicast_mac(destination) } else { PORT };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER, mac)
        .ipv6(source.octets(), destination.octets(), 255)
        .icmpv6(kind)
        .write(&mut frame, rest)
        .unwrap();
    frame
}

fn solicitation(source: Ipv6Addr, destination: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let rest = [&target.octets()[..], options].concat();
    icmpv6(Icmpv6Type::NeighborSolicitation, source, destination, &rest)
}

fn advertisement(flags: u8, source: Ipv6Addr, destination: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let rest = [&target.octets()[..], options].concat();
    let kind = Icmpv6Type::Unknown { type_u8: 136, code_u8: 0, bytes5to8: [flags, 0, 0, 0] };
    icmpv6(kind, source, destination, &rest)
}

fn link_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

fn group() -> Ipv6Addr {
    frames::solicited_node(VIP6)
}

fn good_solicitation() -> Vec<u8> {
    solicitation(PEER6, group(), VIP6, &link_option(1, PEER))
}

fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

/// Overwrites a byte at `at` of the IPv6 packet and puts the ICMPv6 checksum right again.
fn patched(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[14 + at] = value;
    frame[56..58].fill(0);
    let header = etherparse::Icmpv6Header::from_slice(&frame[54..]).unwrap();
    let source: [u8; 16] = frame[22..38].try_into().unwrap();
    let destination: [u8; 16] = frame[38..54].try_into().unwrap();
    let checksum = header.0.icmp_type.calc_checksum(source, destination, header.1).unwrap();
    frame[56..58].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The advertisement as etherparse reads it: addresses, flags, target, option bytes.
fn read_advertisement(frame: &[u8]) -> (Mac, Ipv6Addr, Ipv6Addr, u8, Ipv6Addr, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv6(ip)) = sliced.net else { panic!("not IPv6") };
    let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("not ICMPv6") };
    let header = ip.header();
    assert!(icmp.is_checksum_valid(header.source(), header.destination()), "checksum");
    assert_eq!((icmp.type_u8(), icmp.code_u8(), header.hop_limit()), (136, 0, 255));
    let bytes = icmp.slice();
    let target: [u8; 16] = bytes[8..24].try_into().unwrap();
    let destination_mac = frame[..6].try_into().unwrap();
    (destination_mac, header.source_addr(), header.destination_addr(), bytes[4], target.into(), bytes[24..].to_vec())
}

#[test]
fn arp_request_is_answered_by_the_port() {
    let (answer, frame) = run(&who_has(VIP4));
    assert_eq!(answer, Answer::Reply(60));
    assert_eq!((&frame[..6], &frame[6..12]), (&PEER[..], &PORT[..]));
    let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(NetSlice::Arp(reply)) = sliced.net else { panic!("not ARP") };
    assert_eq!(reply.operation(), ArpOperation::REPLY);
    assert_eq!((reply.sender_hw_addr(), reply.sender_protocol_addr()), (&PORT[..], &VIP4.octets()[..]));
    assert_eq!((reply.target_hw_addr(), reply.target_protocol_addr()), (&PEER[..], &PEER4.octets()[..]));
}

#[test]
fn arp_probe_is_answered_which_defends_the_address() {
    let (answer, frame) = run(&arp(1, (PEER, Ipv4Addr::UNSPECIFIED), VIP4));
    assert_eq!(answer, Answer::Reply(60));
    assert_eq!(frame[38..42], [0, 0, 0, 0], "the reply goes to the unspecified address");
    assert_eq!(frame[28..32], VIP4.octets());
}

#[test]
fn tags_are_kept_and_a_third_is_dropped() {
    let outer = [0x88, 0xa8, 0x60, 7];
    let inner = [0x81, 0x00, 0x20, 9];
    for request in [who_has(VIP4), good_solicitation()] {
        for tags in [&[inner][..], &[outer, inner]] {
            let (answer, frame) = run(&tagged(&request, tags));
            assert!(matches!(answer, Answer::Reply(_)), "{answer:?}");
            assert_eq!(frame[12..12 + 4 * tags.len()], tags.concat());
        }
        let (answer, _) = run(&tagged(&request, &[outer, outer, inner]));
        assert_eq!(answer, Answer::Drop(DropReason::TooManyTags));
    }
}

#[test]
fn arp_for_others_goes_to_the_kernel() {
    assert_eq!(run(&who_has(PEER4)).0, Answer::Kernel);
    assert_eq!(run(&arp(2, (PEER, PEER4), VIP4)).0, Answer::Kernel, "a reply is never ours to answer");
}

#[test]
fn arp_conflicts_name_the_other_host() {
    let conflict = Answer::Conflict { address: VIP4.into(), mac: PEER };
    assert_eq!(run(&arp(1, (PEER, VIP4), VIP4)).0, conflict, "gratuitous request");
    assert_eq!(run(&arp(2, (PEER, VIP4), VIP4)).0, conflict, "gratuitous reply");
    assert_eq!(run(&arp(1, (PEER, VIP4), PEER4)).0, conflict, "it asks for someone else in our name");
    assert_eq!(run(&arp(1, (PORT, VIP4), VIP4)).0, IGNORED, "our own announcement, looped back");
}

#[test]
fn malformed_arp_is_dropped() {
    let good = who_has(VIP4);
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    let cases = [
        ("hardware type", with(15, 6)),
        ("protocol type", with(16, 0x86)),
        ("hardware length", with(18, 8)),
        ("protocol length", with(19, 16)),
        ("sender MAC is a group", with(22, 0x01)),
        ("sender is multicast", with(28, 224)),
        ("for another station", with(0, 0x06)),
        ("truncated", good[..41].to_vec()),
        ("sender is broadcast", arp(1, (PEER, Ipv4Addr::BROADCAST), VIP4)),
        ("sender MAC is zero", arp(1, ([0; 6], PEER4), VIP4)),
    ];
    for (name, frame) in cases {
        assert_eq!(run(&frame).0, IGNORED, "{name}");
    }
    for len in 0..14 {
        assert_eq!(run(&good[..len]).0, Answer::Drop(DropReason::TruncatedEthernet), "{len} bytes");
    }
    let tagged = tagged(&good, &[[0x81, 0, 0, 1]]);
    assert_eq!(run(&tagged[..17]).0, Answer::Drop(DropReason::TruncatedEthernet));
}

#[test]
fn solicitation_is_answered_to_its_sender() {
    let (answer, frame) = run(&good_solicitation());
    assert_eq!(answer, Answer::Reply(86));
    let (mac, source, destination, flags, target, option) = read_advertisement(&frame);
    assert_eq!((mac, source, destination, target), (PEER, VIP6, PEER6, VIP6));
    assert_eq!(flags, 0x60, "solicited, override");
    assert_eq!(option, link_option(2, PORT));
}

#[test]
fn unicast_solicitation_without_option_is_answered_to_the_ethernet_source() {
    let (answer, frame) = run(&solicitation(PEER6, VIP6, VIP6, &[]));
    assert_eq!(answer, Answer::Reply(86), "the answer is longer than the question");
    let (mac, _, destination, flags, _, option) = read_advertisement(&frame);
    assert_eq!((mac, destination, flags), (PEER, PEER6, 0x60));
    assert_eq!(option, link_option(2, PORT));
}

#[test]
fn longer_options_shrink_into_one() {
    // A nonce (RFC 3971) before the address, as Linux sends them.
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let request = solicitation(PEER6, group(), VIP6, &[&nonce[..], &link_option(1, PEER)].concat());
    let (answer, frame) = run(&request);
    assert_eq!((answer, request.len()), (Answer::Reply(86), 94));
    read_advertisement(&frame);
}

#[test]
fn duplicate_detection_is_answered_to_all_nodes() {
    let (answer, frame) = run(&solicitation(Ipv6Addr::UNSPECIFIED, group(), VIP6, &[]));
    assert_eq!(answer, Answer::Reply(86));
    let (mac, source, destination, flags, target, option) = read_advertisement(&frame);
    assert_eq!(mac, [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!((source, target), (VIP6, VIP6));
    assert_eq!(destination, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    assert_eq!(flags, 0x20, "override, not solicited");
    assert_eq!(option, link_option(2, PORT));
}

#[test]
fn nd_conflicts_and_the_kernels_packets() {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let conflict = Answer::Conflict { address: VIP6.into(), mac: PEER };
    let option = link_option(2, PEER);
    assert_eq!(run(&advertisement(0x20, VIP6, all_nodes, VIP6, &option)).0, conflict);
    assert_eq!(run(&solicitation(VIP6, frames::solicited_node(PEER6), PEER6, &link_option(1, PEER))).0, conflict);
    let own = advertisement(0x20, VIP6, all_nodes, VIP6, &link_option(2, PORT));
    assert_eq!(run(&own).0, IGNORED, "our own announcement, looped back");
    assert_eq!(run(&advertisement(0x20, PEER6, all_nodes, PEER6, &option)).0, Answer::Kernel);
    assert_eq!(run(&solicitation(PEER6, group(), PEER6, &[])).0, Answer::Kernel, "not our target");
    let echo = Icmpv6Type::Unknown { type_u8: 128, code_u8: 0, bytes5to8: [0; 4] };
    assert_eq!(run(&icmpv6(echo, PEER6, VIP6, &[])).0, Answer::Kernel);
}

#[test]
fn malformed_solicitations_are_dropped() {
    let good = good_solicitation();
    let mut bad_checksum = good.clone();
    bad_checksum[70] ^= 1;
    let ip_header = 14;
    let mut version = good.clone();
    version[ip_header] = 0x50;
    let mut beyond = good.clone();
    beyond[ip_header + 5] += 1;
    let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 5);
    let dad = |destination, options: &[u8]| solicitation(Ipv6Addr::UNSPECIFIED, destination, VIP6, options);
    let cases = [
        ("checksum", bad_checksum, DropReason::NeighborIgnored),
        ("version", version, DropReason::BadIpVersion),
        ("payload length beyond the frame", beyond, DropReason::BadTotalLength),
        ("hop limit", patched(good.clone(), 7, 254), DropReason::NeighborIgnored),
        ("code", patched(good.clone(), 41, 1), DropReason::NeighborIgnored),
        ("option of length zero", patched(good.clone(), 65, 0), DropReason::NeighborIgnored),
        ("option beyond the packet", patched(good.clone(), 65, 2), DropReason::NeighborIgnored),
        ("half an option", solicitation(PEER6, group(), VIP6, &[1]), DropReason::NeighborIgnored),
        ("multicast target", solicitation(PEER6, group(), multicast, &[]), DropReason::NeighborIgnored),
        ("multicast source", solicitation(multicast, group(), VIP6, &[]), DropReason::NeighborIgnored),
        ("loopback source", solicitation(Ipv6Addr::LOCALHOST, group(), VIP6, &[]), DropReason::NeighborIgnored),
        ("detection to a unicast address", dad(VIP6, &[]), DropReason::NeighborIgnored),
        ("detection with an option", dad(group(), &link_option(1, PEER)), DropReason::NeighborIgnored),
        ("group as sender", patched(good.clone(), 66, 0x33), DropReason::NeighborIgnored),
        (
            "solicited to a group",
            advertisement(0x60, PEER6, multicast, VIP6, &link_option(2, PEER)),
            DropReason::NeighborIgnored,
        ),
        ("no IP header", good[..53].to_vec(), DropReason::TruncatedIp),
    ];
    for (name, frame, reason) in cases {
        assert_eq!(run(&frame).0, Answer::Drop(reason), "{name}");
    }
    for body in 0..24_u8 {
        let mut short = good[..54 + usize::from(body)].to_vec();
        short[ip_header + 5] = body;
        assert_eq!(run(&short).0, Answer::Drop(DropReason::TruncatedTransport), "{body} bytes of message");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_not_written() {
    let mut exact = solicitation(PEER6, VIP6, VIP6, &[]);
    let before = exact.clone();
    let len = exact.len();
    assert_eq!(answer(&mut exact, len, PORT, ours), Answer::Drop(DropReason::NoFrame));
    assert_eq!(exact, before);
    assert_eq!(answer(&mut exact, len + 1, PORT, ours), Answer::Drop(DropReason::TruncatedEthernet));
}

#[test]
fn our_own_frames_are_understood_by_others() {
    let probe = frames::arp_probe(PEER, VIP4);
    assert_eq!(claim(&probe), Some(Claim { address: VIP4.into(), mac: PEER, probe: true }));
    let announcement = frames::arp_announcement(PEER, VIP4);
    assert_eq!(claim(&announcement), Some(Claim { address: VIP4.into(), mac: PEER, probe: false }));
    let sliced = SlicedPacket::from_ethernet(&announcement).unwrap();
    let Some(NetSlice::Arp(arp)) = sliced.net else { panic!("not ARP") };
    assert_eq!(arp.operation(), ArpOperation::REQUEST);
    assert_eq!((arp.sender_protocol_addr(), arp.target_protocol_addr()), (&VIP4.octets()[..], &VIP4.octets()[..]));

    let dad = frames::dad_solicitation(PEER, VIP6);
    assert_eq!(claim(&dad), Some(Claim { address: VIP6.into(), mac: PEER, probe: true }));
    assert_eq!(run(&dad).0, Answer::Reply(86), "detection by another box of ours is answered");
    let advertised = frames::unsolicited_advertisement(PEER, VIP6);
    assert_eq!(claim(&advertised), Some(Claim { address: VIP6.into(), mac: PEER, probe: false }));
    let (_, source, _, flags, target, option) = read_advertisement(&advertised);
    assert_eq!((source, target, flags), (VIP6, VIP6, 0x20));
    assert_eq!(option, link_option(2, PEER));
}

#[test]
fn solicited_node_groups_match_the_rfcs() {
    // The example of RFC 4291 section 2.7.1.
    let address: Ipv6Addr = "4037::01:800:200e:8c6c".parse().unwrap();
    let group: Ipv6Addr = "ff02::1:ff0e:8c6c".parse().unwrap();
    assert_eq!(frames::solicited_node(address), group);
    assert_eq!(frames::multicast_mac(group), [0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (answer, _) = run(&bytes);
        prop_assert!(!matches!(answer, Answer::Reply(len) if len > 1792));
        let _ = claim(&bytes);
    }

    /// A good packet with a few bytes changed: an answer is only given with a right checksum.
    #[test]
    fn damaged_requests_never_panic(
        nd in any::<bool>(),
        cut in 0_usize..100,
        damage in proptest::collection::vec((0_usize..90, any::<u8>()), 0..4),
    ) {
        let mut frame = if nd { good_solicitation() } else { who_has(VIP4) };
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(frame.len().saturating_sub(cut).max(frame.len() / 4));
        let (answer, bytes) = run(&frame);
        if matches!(answer, Answer::Reply(_)) && bytes[12..14] == [0x86, 0xdd] {
            read_advertisement(&bytes);
        }
    }
}
