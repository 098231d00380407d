//! Errors built by etherparse, translated, and held against errors built as translated ones must be.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{PROTO_ICMPV6, Parsed, Rewrite, Tuple, parse, put};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

type Ends = Tuple<u128>;

fn v4(address: u128) -> [u8; 4] {
    (address as u32).to_be_bytes()
}

/// A packet with these ends, from its IP header on.
fn inner(v6: bool, tcp: bool, ends: &Ends, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(MACS[0], MACS[1]);
    let ip = if v6 {
        link.ipv6(ends.src.to_be_bytes(), ends.dst.to_be_bytes(), 9)
    } else {
        link.ipv4(v4(ends.src), v4(ends.dst), 9)
    };
    let mut bytes = Vec::new();
    if tcp {
        ip.tcp(ends.src_port, ends.dst_port, 77, 1000).write(&mut bytes, payload).unwrap();
    } else {
        ip.udp(ends.src_port, ends.dst_port).write(&mut bytes, payload).unwrap();
    }
    bytes.split_off(14)
}

/// An error frame from `src` to `dst`, as its last router sent it.
fn error(v6: bool, src: u128, dst: u128, ttl: u8, quote: &[u8]) -> Vec<u8> {
    let word = [0, 0, 5, 0x78];
    let link = PacketBuilder::ethernet2(MACS[0], MACS[1]);
    let mut bytes = Vec::new();
    if v6 {
        let ip = link.ipv6(src.to_be_bytes(), dst.to_be_bytes(), ttl);
        ip.icmpv6_raw(2, 0, word).write(&mut bytes, quote).unwrap();
    } else {
        link.ipv4(v4(src), v4(dst), ttl).icmpv4_raw(3, 4, word).write(&mut bytes, quote).unwrap();
    }
    bytes
}

fn ip(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Parsed::Ip(packet)) => packet,
        other => panic!("{other:?}"),
    }
}

fn translated(mut frame: Vec<u8>, to: &Translation<u128>) -> Vec<u8> {
    let headers = ip(&frame);
    let quoted = quoted(&frame, &headers).expect("ports are quoted");
    if headers.v6 {
        translate::<V6>(&mut frame, &headers, &quoted, to);
    } else {
        let rewrite = Rewrite {
            src: to.quoted.src as u32,
            dst: to.quoted.dst as u32,
            src_port: to.quoted.src_port,
            dst_port: to.quoted.dst_port,
        };
        let to = Translation { src: to.src as u32, dst: to.dst as u32, quoted: rewrite };
        translate::<V4>(&mut frame, &headers, &quoted, &to);
    }
    frame
}

/// The ICMP checksum field, recomputed.
fn icmp_checksum_holds(frame: &[u8]) -> bool {
    let headers = ip(frame);
    let (l3, l4, end) = (usize::from(headers.l3), usize::from(headers.l4), usize::from(headers.end));
    let start = if headers.v6 {
        pseudo_header(&frame[l3 + 8..l3 + 24], &frame[l3 + 24..l3 + 40], PROTO_ICMPV6, end - l4)
    } else {
        Sum::default()
    };
    matches!(start.add(&frame[l4..end]).checksum(), [0, 0] | [0xff, 0xff])
}

fn ends() -> impl Strategy<Value = Ends> {
    // Addresses whose lower halves do for IPv4; ports that are ports.
    (any::<u128>(), any::<u128>(), 1_u16.., 1_u16..).prop_map(|(src, dst, src_port, dst_port)| Tuple {
        src,
        dst,
        src_port,
        dst_port,
        protocol: 0,
    })
}

proptest! {
    /// Translating an error about one packet is building one about the other, wherever the quote is cut.
    #[test]
    fn translation_equals_building_it_anew(
        v6: bool, tcp: bool, sent in ends(), seen in ends(), router: u128, sender: u128,
        payload in proptest::collection::vec(any::<u8>(), 0..60), cut in 0_usize..200,
    ) {
        let headers = if v6 { 40 } else { 20 };
        let (before, after) = (inner(v6, tcp, &sent, &payload), inner(v6, tcp, &seen, &payload));
        let cut = (headers + 4 + cut).min(before.len());
        // Half a checksum cannot be mended.
        let cut = if cut == headers + if tcp { 17 } else { 7 } { cut + 1 } else { cut };
        let to = Translation {
            src: sender,
            dst: seen.src,
            quoted: Rewrite { src: seen.src, dst: seen.dst, src_port: seen.src_port, dst_port: seen.dst_port },
        };
        let got = translated(error(v6, router, sent.src, 30, &before[..cut]), &to);
        let want = error(v6, sender, seen.src, 29, &after[..cut]);
        prop_assert!(icmp_checksum_holds(&got));
        // The checksums' two zeros aside: every byte.
        let same = |got: &[u8], want: &[u8]| got.iter().zip(want).filter(|(got, want)| got != want).count();
        prop_assert_eq!(got.len(), want.len());
        prop_assert!(same(&got, &want) <= 4, "{:02x?}\n{:02x?}", got, want);
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            prop_assert!(got == want || matches!((got, want), (0, 0xff) | (0xff, 0)), "byte {}", at);
        }
    }

    /// Whatever is quoted: an answer inside the frame, or none.
    #[test]
    fn any_quote_is_read_safely(v6: bool, quote in proptest::collection::vec(any::<u8>(), 0..120), ihl in 0_u8..16) {
        let mut quote = quote;
        if let Some(first) = quote.first_mut() {
            *first = if v6 { 0x60 | ihl } else { 0x40 | ihl };
        }
        for at in [6, 9] {
            if let Some(protocol) = quote.get_mut(at) {
                *protocol = [0, 6, 17, 43, 44, 51, 60][usize::from(ihl) % 7];
            }
        }
        let mut frame = error(v6, 1 << 64 | 1, 2 << 64 | 2, 30, &quote);
        let headers = ip(&frame);
        if let Some(quoted) = quoted(&frame, &headers) {
            prop_assert!(usize::from(quoted.l4) + 4 <= usize::from(quoted.end));
            prop_assert!(quoted.end <= headers.end);
            let none = Rewrite { src: 1, dst: 2, src_port: 3, dst_port: 4 };
            if v6 {
                translate::<V6>(&mut frame, &headers, &quoted, &Translation { src: 5, dst: 6, quoted: none });
            } else {
                let none = Rewrite { src: 1, dst: 2, src_port: 3, dst_port: 4 };
                translate::<V4>(&mut frame, &headers, &quoted, &Translation { src: 5, dst: 6, quoted: none });
            }
            prop_assert!(icmp_checksum_holds(&frame));
        }
    }

    /// The clamp lowers the option wherever it stands, and the TCP checksum stays right.
    #[test]
    fn clamp_at_any_offset(nops in 0_usize..9, mss: u16, most in 536_u16..9000, tail in 0_u8..4) {
        let mut options = vec![1; nops];
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
        // Sometimes the option is the last thing in the packet.
        options.extend([1, 0, 4].get(usize::from(tail)));
        while options.len() % 4 != 0 { options.push(0); }
        let build = |options: &[u8]| {
            let tcp = PacketBuilder::ethernet2(MACS[0], MACS[1]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).tcp(1, 2, 3, 4);
            let mut bytes = Vec::new();
            tcp.syn().options_raw(options).unwrap().write(&mut bytes, &[]).unwrap();
            bytes
        };
        let mut frame = build(&options);
        let headers = ip(&frame);
        mss::clamp(&mut frame, &headers, most);
        options[nops + 2..nops + 4].copy_from_slice(&mss.min(most).to_be_bytes());
        let want = build(&options);
        prop_assert_eq!(&frame[54..], &want[54..]);
        let sums = [be16(&frame, 50), be16(&want, 50)];
        prop_assert!(sums[0] == sums[1] || sums[0] % 0xffff == sums[1] % 0xffff);
    }

    #[test]
    fn clamp_reads_any_options_safely(options in proptest::collection::vec(any::<u8>(), 0..40)) {
        let tcp = PacketBuilder::ethernet2(MACS[0], MACS[1]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).tcp(1, 2, 3, 4);
        let mut frame = Vec::new();
        let mut padded = options;
        padded.resize(padded.len().next_multiple_of(4), 0);
        tcp.syn().options_raw(&padded).unwrap().write(&mut frame, &[]).unwrap();
        let headers = ip(&frame);
        mss::clamp(&mut frame, &headers, 1360);
    }
}

#[test]
fn quotes_that_find_no_flow() {
    let ends = Tuple { src: 1 << 24 | 1, dst: 1 << 24 | 2, src_port: 5, dst_port: 6, protocol: 0 };
    for v6 in [false, true] {
        let whole = inner(v6, true, &ends, &[]);
        let l4 = if v6 { 40 } else { 20 };
        let look = |quote: &[u8]| {
            let frame = error(v6, 1 << 24 | 3, 1 << 24 | 1, 30, quote);
            quoted(&frame, &ip(&frame))
        };
        assert!(look(&whole[..l4 + 4]).is_some(), "ports are enough");
        assert!(look(&whole[..l4 + 3]).is_none(), "half a port");
        assert!(look(&whole[..l4 - 1]).is_none(), "no header");
        let mut other = whole.clone();
        other[0] ^= 0x20;
        assert!(look(&other).is_none(), "the other IP version");
        let mut other = whole.clone();
        other[if v6 { 6 } else { 9 }] = 47;
        assert!(look(&other).is_none(), "GRE");
        if !v6 {
            let mut later = whole.clone();
            later[7] = 1;
            assert!(look(&later).is_none(), "a later fragment");
        }
    }
}

#[test]
fn whom_an_error_may_be_about() {
    let ends = Tuple { src: 0x0a00_0001, dst: 0x0a00_0002, src_port: 5, dst_port: 6, protocol: 0 };
    let frame = |ends: &Ends| [&MACS[0][..], &MACS[1], &[8, 0], &inner(false, false, ends, &[0; 20])].concat();
    let may = |frame: &[u8]| may_complain(frame, &ip(frame));
    assert!(may(&frame(&ends)));
    assert!(!may(&frame(&Tuple { src: 0, ..ends })), "from nobody");
    assert!(!may(&frame(&Tuple { src: 0xe000_0001, ..ends })), "from many");
    assert!(!may(&frame(&Tuple { dst: 0xffff_ffff, ..ends })), "to all");
    let mut broadcast = frame(&ends);
    broadcast[0] = 0xff;
    assert!(!may(&broadcast), "link-layer broadcast");
    let mut first = frame(&ends);
    put(&mut first, 14 + 6, [0x20, 0]);
    assert!(may(&first), "a first fragment");
    let mut later = frame(&ends);
    put(&mut later, 14 + 6, [0x20, 1]);
    assert!(!may(&later), "a later fragment");
    assert!(!may(&error(false, 0x0a00_0001, 0x0a00_0002, 9, &[0; 28])), "ICMP");
}
