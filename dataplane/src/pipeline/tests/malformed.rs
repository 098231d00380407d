//! Hostile bytes: whatever comes, each packet ends in a named drop, goes back to the kernel, or is
//! answered with a valid packet; nothing panics, and the flow tables stay in order.

use proptest::prelude::*;

use super::*;
use crate::pipeline::testkit::{FRONT, Icmp, look};
use crate::verdict::Verdict;
use crate::wire::{Parsed, parse};

/// Valid packets of every kind the box reads.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let extended = |chain: &[(u8, &[u8])], last: u8, transport: &[u8]| {
        let mut frame = Pkt::udp(CLIENT6, TO_DNS6).bytes()[..54].to_vec();
        frame[20] = chain.first().map_or(last, |(kind, _)| *kind);
        for (n, (_, header)) in chain.iter().enumerate() {
            let mut header = header.to_vec();
            header[0] = chain.get(n + 1).map_or(last, |(kind, _)| *kind);
            frame.extend(header);
        }
        frame.extend(transport);
        let len = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame
    };
    let tcp6 = Pkt::syn(CLIENT6, TO_WEB6).bytes()[54..].to_vec();
    let udp6 = Pkt::udp(CLIENT6, TO_DNS6).payload(b"data").bytes()[54..].to_vec();
    let options: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    let long_options: &[u8] = &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing: &[u8] = &[0, 0, 4, 0, 0, 0, 0, 0];
    let atomic: &[u8] = &[0, 0, 0, 0, 1, 2, 3, 4];
    let auth: &[u8] = &[0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    let mut arp = [&[0xff; 6][..], &[2, 0xcc, 0, 0, 0, 1], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    arp.extend([2, 0xcc, 0, 0, 0, 1, 198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 203, 0, 113, 10]);
    let nd = [
        &[135, 0, 0, 0, 0, 0, 0, 0][..],
        &VIP6.parse::<std::net::Ipv6Addr>().unwrap().octets(),
        &[1, 1, 2, 0xcc, 0, 0, 0, 1],
    ];
    let nd = Icmp { ttl: 255, ..Icmp::message("2001:db8:2::7".parse().unwrap(), VIP6.parse().unwrap(), &nd.concat()) };
    vec![
        ("tcp", Pkt::syn(CLIENT, TO_WEB).payload(b"data").bytes()),
        ("tcp with options", Pkt::syn(CLIENT, TO_WEB).with(|p| p.timestamp = Some(5)).bytes()),
        ("ip options", Pkt::syn(CLIENT, TO_WEB).with(|p| p.ip_options = vec![7, 7, 4, 0, 0, 0, 0, 0]).bytes()),
        ("udp", Pkt::udp(CLIENT, TO_DNS).payload(b"odd").bytes()),
        ("tcp6", Pkt::syn(CLIENT6, TO_WEB6).payload(b"data").bytes()),
        ("udp6", Pkt::udp(CLIENT6, TO_DNS6).payload(b"data").bytes()),
        ("vlan", Pkt::syn(CLIENT, TO_WEB).with(|p| p.vlans = vec![9]).bytes()),
        ("qinq", Pkt::udp(CLIENT6, TO_DNS6).with(|p| p.vlans = vec![9, 10]).bytes()),
        ("hop by hop", extended(&[(0, options)], 6, &tcp6)),
        ("long options", extended(&[(60, long_options)], 6, &tcp6)),
        ("routing", extended(&[(43, routing)], 17, &udp6)),
        ("atomic fragment", extended(&[(44, atomic)], 17, &udp6)),
        ("authentication", extended(&[(51, auth)], 17, &udp6)),
        (
            "all of them",
            extended(&[(0, options), (60, long_options), (43, routing), (51, auth), (44, atomic)], 6, &tcp6),
        ),
        ("echo", Icmp::echo("198.51.100.7", VIP, b"data").bytes()),
        ("echo6", Icmp::echo("2001:db8:2::7", VIP6, b"data").bytes()),
        ("arp", arp),
        ("solicitation", nd.bytes()),
        ("snat", Pkt::tcp("10.0.0.11:31443", "10.0.0.1:2000", TCP_ACK).bytes()),
    ]
}

/// Sends it; whatever leaves must be a packet etherparse reads.
fn survives(rig: &mut Rig, packet: &[u8]) -> Verdict {
    let out = rig.send(FRONT, packet);
    if matches!(out.verdict, Verdict::Tx(_)) && !matches!(parse(&out.bytes), Ok(Parsed::Arp)) {
        look(&out.bytes).unwrap_or_else(|problem| panic!("sent {:02x?}: {problem}", out.bytes));
    }
    if out.verdict == Verdict::Kernel {
        assert_eq!(out.bytes, packet, "given back as it came");
    }
    out.verdict
}

#[test]
fn the_corpus_passes_whole() {
    let mut rig = rig();
    for (what, packet) in corpus() {
        let verdict = survives(&mut rig, &packet);
        let expected = what == "snat";
        assert_eq!(matches!(verdict, Verdict::Drop(_)), expected, "{what}: {verdict:?}");
    }
}

#[test]
fn extension_headers_are_passed_over_and_kept() {
    let mut rig = rig();
    for (what, packet) in
        corpus().into_iter().filter(|(_, p)| p[12..14] == [0x86, 0xdd] && [0, 43, 44, 51, 60].contains(&p[20]))
    {
        let out = rig.front(&packet);
        assert_eq!(out.verdict, Verdict::Tx(crate::pipeline::testkit::BACK), "{what}");
        assert_eq!(out.bytes.len(), packet.len());
        let seen = look(&out.bytes).unwrap();
        // etherparse does not look behind every chain; where it does, checksums must be right.
        assert!(seen.wrong.is_empty(), "{what}: {seen:?}");
    }
}

#[test]
fn every_truncation_ends_by_name() {
    let mut rig = rig();
    for (what, packet) in corpus() {
        for len in 0..packet.len() {
            let cut = &packet[..len];
            match survives(&mut rig, cut) {
                Verdict::Drop(_) | Verdict::Kernel => {}
                // What is cut off may be padding, or lie behind what an answer needs.
                verdict => assert!(
                    ["arp"].contains(&what) && len >= 42,
                    "{what} cut to {len} bytes of {}: {verdict:?}",
                    packet.len()
                ),
            }
        }
        // Cut with lengths made to fit: the transport header itself is short.
        for len in 34..packet.len().min(100) {
            let mut cut = packet[..len].to_vec();
            match cut[12..14] {
                [8, 0] => cut[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes()),
                [0x86, 0xdd] if len >= 54 => cut[18..20].copy_from_slice(&((len - 54) as u16).to_be_bytes()),
                _ => continue,
            }
            survives(&mut rig, &cut);
        }
        rig.check();
    }
}

#[test]
fn every_value_of_every_header_byte() {
    let mut rig = rig();
    for (_, packet) in corpus() {
        for at in 12..packet.len().min(110) {
            let mut changed = packet.clone();
            for value in [0, 1, 2, 0x0f, 0x2c, 0x33, 0x3c, 0x40, 0x45, 0x4f, 0x60, 0x7f, 0x80, 0xf0, 0xfe, 0xff] {
                changed[at] = value;
                survives(&mut rig, &changed);
            }
        }
    }
    rig.check();
}

#[test]
fn tcp_options_of_any_kind_end() {
    let base = Pkt::syn(CLIENT, TO_WEB).with(|p| p.timestamp = Some(0xabcd_ef01)).bytes();
    let stamp_of = |frame: &[u8]| match parse(frame) {
        Ok(Parsed::Ip(packet)) => crate::wire::parse::tcp_timestamp(frame, &packet),
        other => panic!("{other:?}"),
    };
    assert_eq!(stamp_of(&base), 0xabcd_ef01);
    let with = |options: [u8; 12]| {
        let mut frame = base.clone();
        frame[54..66].copy_from_slice(&options);
        stamp_of(&frame)
    };
    assert_eq!(with([2, 4, 5, 180, 8, 10, 0, 0, 0, 7, 0, 0]), 0, "the option is longer than the header");
    assert_eq!(with([8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 1]), 7);
    assert_eq!(with([0, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0]), 0, "behind the end of options");
    assert_eq!(with([3, 0, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0]), 0, "an option of no length");
    assert_eq!(with([3, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0]), 0, "an option shorter than itself");
    assert_eq!(with([3, 255, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0]), 0, "an option beyond the header");
    assert_eq!(with([1; 12]), 0);
    assert_eq!(with([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8]), 0, "a kind and nothing more");
    assert_eq!(with([8, 9, 0, 0, 0, 7, 0, 0, 0, 1, 1, 1]), 0, "a timestamp of another length");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), ether_type in prop::sample::select(vec![[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]]), dst in prop::sample::select(vec![[203, 0, 113, 10], [10, 0, 0, 1]])) {
        let mut rig = small_rig();
        let mut frame = bytes;
        survives(&mut rig, &frame);
        // And with what leads deeper.
        if frame.len() > 34 {
            frame[12..14].copy_from_slice(&ether_type);
            frame[14] = if ether_type == [8, 0] { 0x45 | frame[14] & 0x07 } else { 0x60 };
            let len = (frame.len() - 14) as u16;
            if ether_type == [8, 0] {
                frame[16..18].copy_from_slice(&len.to_be_bytes());
                frame[20..22].fill(0);
                frame[30..34].copy_from_slice(&dst);
            } else if frame.len() > 54 {
                frame[18..20].copy_from_slice(&(len - 40).to_be_bytes());
                frame[38..54].copy_from_slice(&VIP6.parse::<std::net::Ipv6Addr>().unwrap().octets());
            }
            survives(&mut rig, &frame);
        }
        prop_assert!(rig.pipeline.check_invariants().is_ok());
    }

    #[test]
    fn mutated_packets(which in any::<prop::sample::Index>(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
        let mut rig = small_rig();
        let corpus = corpus();
        let mut packet = corpus[which.index(corpus.len())].1.clone();
        for (at, value) in changes {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        if cuts {
            packet.truncate(cut.index(packet.len()));
        }
        // Twice: the second may be of the flow the first has opened.
        survives(&mut rig, &packet);
        survives(&mut rig, &packet);
        prop_assert!(rig.pipeline.check_invariants().is_ok());
    }
}

/// Cheap to make: thousands are.
fn small_rig() -> Rig {
    let few = crate::flow::Capacity { established: 8, embryonic: 8 };
    let config =
        crate::pipeline::PipelineConfig { flows_v4: few, flows_v6: few, ..crate::pipeline::testkit::config(0, 1) };
    Rig::with(Plan { maglev_max: 251, ..plan() }, &config)
}
