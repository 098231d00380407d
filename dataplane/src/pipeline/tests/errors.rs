//! ICMP errors about flows, seen from both sides; packets too big; the MSS clamp.

use std::net::{IpAddr, SocketAddr};

use penstock_configs::desired::Mode;

use super::*;
use crate::pipeline::testkit::{BACK, FRONT, Icmp, config, node_mac, valid};
use crate::verdict::{DropReason, Verdict, WorkerId};
use crate::wire::TCP_RST;

const FRAGMENTATION_NEEDED: [u8; 8] = [3, 4, 0, 0, 0, 0, 5, 0x14];
const PACKET_TOO_BIG: [u8; 8] = [2, 0, 0, 0, 0, 0, 5, 0x14];
/// A router with an address of the packet's family that is neither node nor client.
const ROUTER: &str = "192.0.2.77";
const ROUTER6: &str = "2001:db8:77::1";

/// An error from `from` about a frame as it was sent to whoever noticed, with so much of it quoted.
fn error_about(from: &str, frame: &[u8], quote: usize) -> Vec<u8> {
    let about = valid(frame);
    let kind = if about.src.is_ipv4() { FRAGMENTATION_NEEDED } else { PACKET_TOO_BIG };
    let quoted = &frame[14..];
    let message = [&kind[..], &quoted[..quote.min(quoted.len())]].concat();
    Icmp::message(from.parse().unwrap(), about.src.ip(), &message).bytes()
}

/// The quoted packet's addresses and ports.
fn quoted(error: &Seen) -> (SocketAddr, SocketAddr) {
    let quote = &error.payload[8..];
    let port = |at: usize| u16::from_be_bytes([quote[at], quote[at + 1]]);
    if error.src.is_ipv4() {
        let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&quote[at..at + 4]).unwrap());
        let l4 = usize::from(quote[0] & 15) * 4;
        (SocketAddr::new(ip(12), port(l4)), SocketAddr::new(ip(16), port(l4 + 2)))
    } else {
        let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&quote[at..at + 16]).unwrap());
        (SocketAddr::new(ip(8), port(40)), SocketAddr::new(ip(24), port(42)))
    }
}

/// The quoted IP header's and the whole quoted packet's checksums, as etherparse finds them.
#[track_caller]
fn quote_is_valid(error: &Seen) {
    let ether_type = if error.src.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    valid(&[&[2; 12][..], &ether_type, &error.payload[8..]].concat());
}

fn each() -> Vec<(Pkt, &'static str)> {
    vec![
        (Pkt::syn(CLIENT, TO_WEB), ROUTER),
        (Pkt::udp(CLIENT, TO_DNS).payload(b"odd"), ROUTER),
        (Pkt::udp(CLIENT, TO_DNS).payload(b"unchecked").with(|pkt| pkt.unchecked = true), ROUTER),
        (Pkt::syn(CLIENT, TO_WEB).with(|pkt| pkt.ip_options = vec![1; 8]), ROUTER),
        (Pkt::syn(CLIENT6, TO_WEB6), ROUTER6),
        (Pkt::udp(CLIENT6, TO_DNS6).payload(b"data"), ROUTER6),
    ]
}

#[test]
fn errors_about_requests_reach_the_client() {
    for (request, router) in each() {
        let mut rig = rig();
        let there = rig.front(&request.bytes());
        let node = there.to_node().dst.ip().to_string();
        for sender in [router, &node] {
            let error = rig.back(&error_about(sender, &there.bytes, usize::MAX)).to_client();
            assert_eq!((error.src.ip(), error.dst.ip()), (request.dst.ip(), request.src.ip()), "from {sender}");
            assert_eq!(quoted(&error), (request.src, request.dst));
            assert_eq!(error.dmac, request.smac, "by the client's last hop");
            assert_eq!((error.ttl, &error.payload[4..8]), (63, &[0, 0, 5, 0x14][..]));
            quote_is_valid(&error);
        }
        rig.check();
    }
}

#[test]
fn errors_about_replies_reach_the_node() {
    for (request, router) in each() {
        let mut rig = rig();
        let there = rig.front(&request.bytes()).to_node();
        let answer = Pkt::answer(&there, TCP_SYN | TCP_ACK).payload(b"answer");
        let reply = rig.back(&answer.bytes());
        let client = request.src.ip().to_string();
        for sender in [router, &client] {
            let error = rig.front(&error_about(sender, &reply.bytes, usize::MAX)).to_node();
            assert_eq!((error.src.ip(), error.dst.ip()), (there.src.ip(), there.dst.ip()), "from {sender}");
            assert_eq!(quoted(&error), (there.dst, there.src), "the reply as the node sent it");
            assert_eq!(error.dmac, node_mac(there.dst.ip()));
            quote_is_valid(&error);
        }
    }
}

/// A UDP packet without a checksum is not given one, and eight bytes of TCP have none.
#[test]
fn quotes_as_short_as_they_come() {
    for (request, router) in each() {
        let mut rig = rig();
        let there = rig.front(&request.bytes());
        let headers = if request.src.is_ipv4() { 20 + request.ip_options.len() } else { 40 };
        for transport in [8, 7, 4] {
            let error = rig.back(&error_about(router, &there.bytes, headers + transport)).to_client();
            assert_eq!(error.payload.len(), 8 + headers + transport);
            if transport == 8 {
                assert_eq!(quoted(&error), (request.src, request.dst));
                assert_eq!(error.payload[8 + headers + 4..], request.bytes()[14 + headers + 4..][..4]);
            }
        }
        rig.back(&error_about(router, &there.bytes, headers + 3)).dropped(DropReason::IcmpUnmatched);
        rig.back(&error_about(router, &there.bytes, headers - 1)).dropped(DropReason::IcmpUnmatched);
    }
}

#[test]
fn dnat_nodes_see_the_clients_side_as_it_is() {
    let mut plan = plan();
    for service in &mut plan.services {
        service.mode = Mode::Dnat;
    }
    let mut rig = Rig::new(plan);
    for (request, router) in each() {
        let there = rig.front(&request.bytes());
        let error = rig.back(&error_about(router, &there.bytes, usize::MAX)).to_client();
        assert_eq!((error.src.ip(), quoted(&error)), (request.dst.ip(), (request.src, request.dst)));
        let node = there.to_node();
        let reply = rig.back(&Pkt::answer(&node, TCP_SYN | TCP_ACK).bytes());
        let error = rig.front(&error_about(router, &reply.bytes, usize::MAX)).to_node();
        assert_eq!((error.src.ip(), error.dst.ip()), (router.parse().unwrap(), node.dst.ip()));
        assert_eq!(quoted(&error), (node.dst, request.src));
        // About a stranger's packet that merely passes: the kernel's.
        let stranger = Pkt::between(request.src, "192.0.2.200:9".parse().unwrap(), 17, 0);
        if request.src.is_ipv4() {
            assert_eq!(rig.back(&error_about(router, &stranger.bytes(), 99)).verdict, Verdict::Kernel);
        }
    }
}

#[test]
fn only_errors_about_flows_pass() {
    let mut rig = rig();
    let there = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes());
    let good = error_about(ROUTER, &there.bytes, usize::MAX);
    rig.back(&good).to_client();
    let edited = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let quote = 14 + 20 + 8;
    rig.back(&edited(quote + 15, 9)).dropped(DropReason::IcmpUnmatched);
    rig.back(&edited(quote + 19, 99)).dropped(DropReason::IcmpUnmatched);
    rig.back(&edited(quote + 21, 9)).dropped(DropReason::IcmpUnmatched);
    rig.back(&edited(quote + 9, 1)).dropped(DropReason::IcmpUnmatched);
    rig.back(&edited(quote + 7, 1)).dropped(DropReason::IcmpUnmatched);
    for kind in [4, 5, 13] {
        rig.back(&edited(14 + 20, kind)).dropped(DropReason::IcmpUnmatched);
    }
    rig.back(&edited(14 + 8, 1)).dropped(DropReason::TtlExceeded);
    rig.back(&edited(14 + 12, 127)).dropped(DropReason::Martian);
    assert_eq!(rig.pipeline.stats().generated.get(), 0, "never an error about an error");
    // The flow's service goes, and with it the flow.
    rig.change(|plan| plan.remove(WEB));
    rig.back(&good).dropped(DropReason::IcmpUnmatched);
    rig.check();
}

#[test]
fn a_corrupt_error_stays_corrupt() {
    let mut rig = rig();
    let there = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes());
    let mut bytes = error_about(ROUTER, &there.bytes, usize::MAX);
    bytes[14 + 20 + 7] ^= 1;
    let out = rig.back(&bytes);
    assert_eq!(out.verdict, Verdict::Tx(FRONT));
    assert_eq!(crate::pipeline::testkit::look(&out.bytes).unwrap().wrong, ["icmp"]);
}

#[test]
fn errors_neither_end_nor_move_flows() {
    let mut rig = rig();
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    let reply = rig.back(&conn.reply(TCP_ACK).bytes());
    let elsewhere = error_about(ROUTER, &reply.bytes, 28);
    rig.front(&elsewhere).to_node();
    conn.to_client(&mut rig, TCP_ACK);
    conn.to_node(&mut rig, TCP_ACK);
    // A reply still leaves by the client's own last hop, not by that of the router that complained.
    assert_eq!(rig.back(&conn.reply(TCP_ACK).bytes()).to_client().dmac, conn.request(TCP_ACK).smac);
}

#[test]
fn shared_snat_addresses_keep_the_kernels_errors() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [40_000, 40_999]).shared = true;
    let mut rig = Rig::new(plan);
    let there = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes());
    rig.back(&error_about(ROUTER, &there.bytes, 28)).to_client();
    let own = Pkt::tcp("10.0.0.1:33000", "192.0.2.9:443", TCP_SYN).bytes();
    assert_eq!(rig.back(&error_about(ROUTER, &own, 28)).verdict, Verdict::Kernel);
}

/// Two workers: an error that arrives at the wrong one is handed to the flow's owner, once.
#[test]
fn errors_are_handed_to_the_flows_owner() {
    let mut plan = plan();
    for mode in [Mode::Nat, Mode::Dnat] {
        for service in &mut plan.services {
            service.mode = mode;
        }
        let mut rigs = [0, 1].map(|worker| Rig::with(plan.clone(), &config(worker, 2)));
        let mut owners = [0, 0];
        for port in 5000..5016 {
            for (client, vip, router) in [("198.51.100.7", TO_DNS, ROUTER), ("[2001:db8:2::7]", TO_DNS6, ROUTER6)] {
                let request = Pkt::udp(&format!("{client}:{port}"), vip);
                let out = rigs[0].front(&request.bytes());
                let (owner, there) = match out.verdict {
                    Verdict::Handoff(owner) => (usize::from(owner.0), rigs[1].handed(FRONT, &request.bytes())),
                    _ => (0, out),
                };
                owners[owner] += 1;
                let reply = rigs[owner].back(&Pkt::answer(&there.to_node(), 0).bytes());
                for (from, about) in [(BACK, &there.bytes), (FRONT, &reply.bytes)] {
                    let error = error_about(router, about, 48);
                    let astray = rigs[1 - owner].send(from, &error);
                    assert_eq!(astray.verdict, Verdict::Handoff(WorkerId(owner as u16)));
                    assert_eq!(astray.bytes, error, "untouched");
                    let out = rigs[owner].handed(from, &error);
                    assert!(matches!(out.verdict, Verdict::Tx(port) if port != from), "{:?}", out.verdict);
                    valid(&out.bytes);
                    // Handed over and unknown: not handed on.
                    let lost = rigs[1 - owner].handed(from, &error).verdict;
                    assert!(matches!(lost, Verdict::Kernel | Verdict::Drop(DropReason::IcmpUnmatched)), "{lost:?}");
                }
            }
        }
        assert!(owners[0] > 3 && owners[1] > 3, "{owners:?}");
    }
}

/// Anybody can have the box send more errors than it may.
#[test]
fn path_mtus_are_told_whatever_else_is_said() {
    let mut plan = plan();
    plan.node_mtu = Some(1400);
    let mut rig = Rig::new(plan);
    let dying = Pkt::syn("198.51.100.8:6666", TO_WEB).with(|pkt| pkt.ttl = 1).bytes();
    let told = (0..50).filter(|_| matches!(rig.front(&dying).verdict, Verdict::Tx(_))).count();
    assert!(told < 50, "beyond what may be said");
    let long = Pkt::udp(CLIENT, TO_DNS).payload(&[7; 1400]).bytes();
    assert_eq!(rig.front(&long).to_client().payload[..2], [3, 4]);
    let told = (0..50).filter(|_| matches!(rig.front(&long).verdict, Verdict::Tx(_))).count();
    assert!(told < 50, "nor are they without bounds");
}

#[test]
fn packets_too_big_are_answered_with_the_mtu() {
    let mut plan = plan();
    plan.node_mtu = Some(1400);
    let mut rig = Rig::new(plan);
    let long = vec![7; 1400];
    for (request, least) in [
        (Pkt::udp(CLIENT, TO_DNS).payload(&long), 28),
        (Pkt::udp(CLIENT6, TO_DNS6).payload(&long), 48),
        (Pkt::syn(CLIENT, TO_WEB).payload(&long), 40),
    ] {
        let bytes = request.bytes();
        let error = rig.front(&bytes).to_client();
        assert_eq!((error.src.ip(), error.dst.ip()), (request.dst.ip(), request.src.ip()));
        let v4 = request.src.is_ipv4();
        assert_eq!(error.payload[..2], if v4 { [3, 4] } else { [2, 0] });
        assert_eq!(error.payload[4..8], [0, 0, 0x05, 0x78]);
        let most = if v4 { 576 - 28 } else { 1280 - 48 };
        assert_eq!(error.payload[8..], bytes[14..][..most], "the packet as it came");
        let fits = request.clone().payload(&long[..1400 - least]);
        rig.front(&fits.bytes()).to_node();
    }
    assert_eq!(rig.drops(DropReason::TooBig), 3);
    assert_eq!(rig.pipeline.stats().generated.get(), 3);
    let replies = Pkt::answer(&rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node(), 0).payload(&long);
    rig.back(&replies.bytes()).to_client();
    // Within the rate: 10 at once, 3 spent.
    let big = Pkt::udp(CLIENT, TO_DNS).payload(&long).bytes();
    assert_eq!((0..20).filter(|_| matches!(rig.front(&big).verdict, Verdict::Tx(_))).count(), 7);
    assert_eq!(rig.drops(DropReason::RateLimited), 13);
}

#[test]
fn replies_too_big_are_answered_to_the_node() {
    let mut rig = rig();
    let there = rig.front(&Pkt::udp(CLIENT6, TO_DNS6).bytes()).to_node();
    let mut plan = rig.plan.clone();
    plan.mtu = 1300;
    rig.change(|old| *old = plan);
    let out = rig.back(&Pkt::answer(&there, 0).payload(&[1; 1300]).bytes());
    let error = out.sent(BACK);
    assert_eq!((error.src.ip(), error.dst.ip()), (there.src.ip(), there.dst.ip()), "from the address the node knows");
    assert_eq!((error.payload[0], &error.payload[4..8]), (2, &[0, 0, 0x05, 0x14][..]));
}

#[test]
fn no_error_about_what_was_sent_to_all() {
    let mut plan = plan();
    plan.node_mtu = Some(1400);
    let mut rig = Rig::new(plan);
    let big = Pkt::udp(CLIENT, TO_DNS).payload(&[0; 1400]).with(|pkt| pkt.dmac = [0xff; 6]);
    rig.front(&big.bytes()).dropped(DropReason::TooBig);
    assert_eq!(rig.pipeline.stats().generated.get(), 0);
}

/// The MSS of a SYN built by hand: etherparse re-validates what comes out.
fn with_mss(pkt: &Pkt, mss: u16) -> Vec<u8> {
    let mut bytes = pkt.bytes();
    let l4 = if pkt.src.is_ipv4() { 34 } else { 54 };
    let [high, low] = mss.to_be_bytes();
    bytes[l4 + 12] = 0x60;
    bytes.extend([2, 4, high, low]);
    let len = (bytes.len() - if pkt.src.is_ipv4() { 14 } else { 54 }) as u16;
    let mut sum = |at: usize, old: [u8; 2], new: [u8; 2]| {
        let mended = crate::wire::checksum::Sum::delta(old, new).apply([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&mended);
    };
    // The TCP length in the pseudo header, the data offset, the option.
    sum(l4 + 16, [0, 20], [0, 24]);
    sum(l4 + 16, [0x50, 0], [0x60, 0]);
    sum(l4 + 16, [0, 0], [2, 4]);
    sum(l4 + 16, [0, 0], [high, low]);
    if pkt.src.is_ipv4() {
        sum(24, [0, 40], len.to_be_bytes());
        bytes[16..18].copy_from_slice(&len.to_be_bytes());
    } else {
        bytes[18..20].copy_from_slice(&len.to_be_bytes());
    }
    bytes
}

#[test]
fn syns_are_clamped_on_the_ports_they_cross() {
    let mss = |frame: &[u8]| u16::from_be_bytes([frame[frame.len() - 2], frame[frame.len() - 1]]);
    for (clamps, want) in
        [([0, 0, 0], 1460), ([1360, 0, 0], 1360), ([0, 1340, 0], 1340), ([1360, 1340, 0], 1340), ([0, 0, 1300], 1460)]
    {
        let mut plan = plan();
        plan.mss_clamps = clamps;
        let mut rig = Rig::new(plan);
        for (client, vip) in [(CLIENT, TO_WEB), (CLIENT6, TO_WEB6)] {
            let syn = rig.front(&with_mss(&Pkt::syn(client, vip), 1460));
            let there = syn.to_node();
            assert_eq!(mss(&syn.bytes), want, "{clamps:?}");
            let answer = rig.back(&with_mss(&Pkt::answer(&there, TCP_SYN | TCP_ACK), 1460));
            answer.to_client();
            assert_eq!(mss(&answer.bytes), want);
            let small = rig.back(&with_mss(&Pkt::answer(&there, TCP_SYN | TCP_ACK), 1000));
            assert_eq!(mss(&small.bytes), 1000, "never raised");
            let other = rig.front(&with_mss(&Pkt::tcp(client, vip, TCP_RST), 1460));
            other.to_node();
            assert_eq!(mss(&other.bytes), 1460, "no SYN");
        }
    }
}
