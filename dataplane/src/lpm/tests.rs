//! The compiled set against a plain linear scan of the prefixes.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;
use crate::stopwatch::best_ns;

fn oracle(prefixes: &[IpNet], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(&address))
}

fn v4(address: u32, length: u8) -> IpNet {
    Ipv4Net::new(Ipv4Addr::from_bits(address), length).unwrap().into()
}

fn v6(address: u128, length: u8) -> IpNet {
    Ipv6Net::new(Ipv6Addr::from_bits(address), length).unwrap().into()
}

/// The addresses where an error by one would show: each prefix's ends and their neighbours.
fn edges(prefixes: &[IpNet]) -> Vec<IpAddr> {
    let around4 =
        |a: Ipv4Addr| [-1, 0, 1].map(|d| IpAddr::from(Ipv4Addr::from_bits(a.to_bits().wrapping_add_signed(d))));
    let around6 =
        |a: Ipv6Addr| [-1, 0, 1].map(|d| IpAddr::from(Ipv6Addr::from_bits(a.to_bits().wrapping_add_signed(d))));
    let mut edges: Vec<IpAddr> = vec![
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::BROADCAST.into(),
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv6Addr::from_bits(u128::MAX).into(),
    ];
    for prefix in prefixes {
        match prefix {
            IpNet::V4(net) => edges.extend([around4(net.network()), around4(net.broadcast())].concat()),
            IpNet::V6(net) => edges.extend([around6(net.network()), around6(net.broadcast())].concat()),
        }
    }
    edges
}

fn contains(set: &SourceSet, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => set.contains_v4(v4.to_bits()),
        IpAddr::V6(v6) => set.contains_v6(v6.to_bits()),
    }
}

#[test]
fn nothing_contains_nothing_and_everything_all() {
    let nothing = SourceSet::build(&[]);
    assert!(nothing.is_empty());
    let all = SourceSet::build(&[v4(0, 0), v6(0, 0)]);
    assert!(!all.is_empty());
    for address in edges(&[v4(0x0a00_0000, 8), v6(1 << 100, 20)]) {
        assert!(!contains(&nothing, address), "{address}");
        assert!(contains(&all, address), "{address}");
    }
    let one_family = SourceSet::build(&[v4(0, 0)]);
    assert!(!one_family.is_empty() && !one_family.contains_v6(7));
}

#[test]
fn host_bits_are_ignored() {
    let set = SourceSet::build(&["10.1.2.3/8".parse().unwrap(), "2001:db8::5/32".parse().unwrap()]);
    assert!(contains(&set, "10.0.0.0".parse().unwrap()));
    assert!(!contains(&set, "11.0.0.0".parse().unwrap()));
    assert!(contains(&set, "2001:db8:ffff::".parse().unwrap()));
    assert!(!contains(&set, "2001:db9::".parse().unwrap()));
}

/// Without and with the index, around its threshold and powers of two.
#[test]
fn every_size_of_index() {
    for n in [1, 7, 15, 16, 17, 18, 127, 128, 129, 2047, 2048, 2049, 40_000] {
        let prefixes: Vec<IpNet> =
            (0..n).flat_map(|i| [v4(0x0a00_0000 + i * 8, 30), v6(u128::from(i) << 64 | 1 << 127, 66)]).collect();
        let set = SourceSet::build(&prefixes);
        for i in 0..=n {
            let (four, six) = (0x0a00_0000 + i * 8, u128::from(i) << 64 | 1 << 127);
            for (address, inside) in
                [(four.wrapping_sub(1), false), (four, i < n), (four + 3, i < n), (four + 4, false)]
            {
                assert_eq!(set.contains_v4(address), inside, "{n} prefixes, {address:#x}");
            }
            for (address, inside) in
                [(six - 1, false), (six, i < n), (six + (1 << 62) - 1, i < n), (six + (1 << 62), false)]
            {
                assert_eq!(set.contains_v6(address), inside, "{n} prefixes, {address:#x}");
            }
        }
        assert!(!set.contains_v4(0) && !set.contains_v4(u32::MAX) && !set.contains_v6(u128::MAX));
    }
}

/// A narrow cluster with a range over several parts of the index, asked for addresses far above it:
/// (address - first) >> shift has more than 64 bits, and cut off would point into that range.
#[test]
fn far_above_a_cluster_is_outside() {
    let mut prefixes: Vec<IpNet> = (0..100).flat_map(|i| [v6(i * 4, 127), v4(i as u32 * 4, 31)]).collect();
    prefixes.extend([v6(1 << 12, 116), v4(1 << 12, 20)]);
    let set = SourceSet::build(&prefixes);
    for low in (0..1 << 13).step_by(7) {
        assert_eq!(set.contains_v6(low), set.contains_v4(low as u32), "{low}");
        assert!((13..128).all(|bit| !set.contains_v6(1 << bit | low)), "{low}");
        assert!((13..32).all(|bit| !set.contains_v4(1 << bit | low as u32)), "{low}");
    }
}

/// 10,000 services with a few ranges each must not cost more than a few megabytes.
#[test]
fn small_sets_are_small() {
    let three = SourceSet::build(&[v4(0x0a00_0000, 8), v4(0xc0a8_0000, 16), v6(0x2001_0db8 << 96, 32)]);
    assert!(three.memory_bytes() <= 512, "{} bytes", three.memory_bytes());
}

/// What a feed has: looked up like three ranges (see `nanoseconds`), in a few megabytes.
#[test]
fn a_hundred_thousand_prefixes_of_each_family() {
    let scatter = |i: u32| i.wrapping_mul(0x9e37_79b9);
    let prefixes: Vec<IpNet> = (0..100_000)
        .flat_map(|i| [v4(scatter(i), 24), v6(0x2001_u128 << 112 | u128::from(scatter(i)) << 80, 48)])
        .collect();
    let set = SourceSet::build(&prefixes);
    assert!(set.memory_bytes() < 8 << 20, "{} bytes", set.memory_bytes());
    let missing = prefixes.iter().filter(|net| !contains(&set, net.addr()) || !contains(&set, net.broadcast()));
    assert_eq!(missing.count(), 0);
    assert!(!set.contains_v6(1) && !set.contains_v6(0x2002 << 112));
}

fn prefix() -> impl Strategy<Value = IpNet> {
    // Few distinct high bits, so that prefixes nest, touch and repeat.
    let four = (0_u32..64, 2_u8..=32, 0_u32..4).prop_map(|(high, length, low)| v4(high << 26 | low, length));
    let six = (0_u128..64, 2_u8..=128, 0_u128..4).prop_map(|(high, length, low)| v6(high << 122 | low, length));
    let narrow4 = (0_u32..4096, 24_u8..=32).prop_map(|(low, length)| v4(0x0a00_0000 | low, length));
    let narrow6 = (0_u128..1 << 20, 108_u8..=128).prop_map(|(low, length)| v6(0x2001_0db8 << 96 | low, length));
    prop_oneof![1 => four, 1 => six, 8 => narrow4, 8 => narrow6]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn equals_the_linear_scan(prefixes in prop::collection::vec(prefix(), 0..200), random in any::<(u32, u128)>()) {
        let set = SourceSet::build(&prefixes);
        let mut addresses = edges(&prefixes);
        addresses.extend([Ipv4Addr::from_bits(random.0).into(), IpAddr::from(Ipv6Addr::from_bits(random.1))]);
        for address in addresses {
            prop_assert_eq!(contains(&set, address), oracle(&prefixes, address), "{}", address);
        }
    }
}

/// Beside it the simple form: binary search over the sorted places.
#[test]
#[ignore = "prints figures"]
fn nanoseconds() {
    const ROUNDS: u32 = 500_000;
    let scatter = |i: u32| i.wrapping_mul(0x9e37_79b9);
    let wide = |i: u32| 0x2001_u128 << 112 | u128::from(scatter(i)) << 80;
    for n in [10_u32, 1000, 100_000] {
        let prefixes: Vec<IpNet> = (0..n).flat_map(|i| [v4(scatter(i), 24), v6(wide(i), 48)]).collect();
        let started = Instant::now();
        let set = SourceSet::build(&prefixes);
        println!("{n} prefixes of each family: built in {:.2?}, {} bytes", started.elapsed(), set.memory_bytes());
        let mut places4: Vec<u32> =
            (0..n).flat_map(|i| [scatter(i) & !0xff, (scatter(i) | 0xff).wrapping_add(1)]).collect();
        places4.sort_unstable();
        let mut places6: Vec<u128> = (0..n).flat_map(|i| [wide(i), wide(i) + (1 << 80)]).collect();
        places6.sort_unstable();
        let time = |name: &str, inside: &dyn Fn(u32) -> bool| {
            // Each address depends on the answer before it: latency, not throughput.
            let ns = best_ns(ROUNDS, || {
                let mut address = 1_u32;
                for i in 0..ROUNDS {
                    let hit = u32::from(inside(black_box(address)));
                    address = scatter(i ^ hit << 20 ^ address);
                }
                black_box(address);
            });
            println!("  {name}: {ns:.1} ns");
        };
        time("v4 set", &|a| set.contains_v4(a));
        time("v4 binary search", &|a| places4.partition_point(|&p| p <= a) % 2 == 1);
        time("v6 set", &|a| set.contains_v6(wide(a)));
        time("v6 binary search", &|a| places6.partition_point(|&p| p <= wide(a)) % 2 == 1);
    }
}
