//! The packet path's hashes. Addresses are the integers of their big-endian bytes
//! (`u32::from_be_bytes`, `u128::from_be_bytes`), ports and protocols plain numbers.
//!
//! Each is a chain of folded multiplies (64 x 64 bits, high half xored into the low, as in wyhash):
//! two for v4, four for v6, a few nanoseconds, of which a burst's loop overlaps most.
//! [`FlowHasher`] takes a secret seed, so that no sender can aim at one bucket. The choices that
//! boxes and versions must share ([`pick_hash_v4`], [`owner_hash_v4`]) use fixed seeds: whoever knows them can
//! aim at one backend or worker, which costs what a flood from chosen ports always could.

/// Odd constants of high entropy: the fraction digits of pi, as Blowfish takes them.
const PI: [u64; 6] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7345,
    0xa409_3822_299f_31d1,
    0x082e_fa98_ec4e_6c89,
    0x4528_21e6_38d0_1377,
    0xbe54_66cf_34e9_0c6d,
];

/// Hash of flow keys for the tables of one box, seeded at their creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowHasher {
    pub seed: [u64; 2],
}

impl FlowHasher {
    #[must_use]
    pub const fn new(seed: [u64; 2]) -> Self {
        Self { seed }
    }

    #[inline]
    #[must_use]
    pub const fn v4(&self, src: u32, dst: u32, src_port: u16, dst_port: u16, protocol: u8) -> u64 {
        let addresses = (src as u64) << 32 | dst as u64;
        let h = fold(addresses ^ self.seed[0] ^ PI[0], rest(src_port, dst_port, protocol) ^ self.seed[1] ^ PI[1]);
        fold(h ^ self.seed[0], PI[5])
    }

    #[inline]
    #[must_use]
    pub const fn v6(&self, src: u128, dst: u128, src_port: u16, dst_port: u16, protocol: u8) -> u64 {
        // Each half has a key of its own, so neither swapped addresses nor equal ones cancel out.
        let s = fold(high(src) ^ self.seed[0] ^ PI[0], low(src) ^ self.seed[1] ^ PI[1]);
        let d = fold(high(dst) ^ self.seed[0] ^ PI[2], low(dst) ^ self.seed[1] ^ PI[3]);
        let h = fold(s ^ self.seed[1] ^ rest(src_port, dst_port, protocol), d ^ self.seed[0] ^ PI[4]);
        fold(h ^ self.seed[0], PI[5])
    }
}

/// The fixed seeds are names of the two uses. Changing them, or the functions above, moves flows
/// between backends when boxes of two versions meet: the golden tests pin them.
const PICK: FlowHasher = FlowHasher::new([u64::from_be_bytes(*b"penstock"), u64::from_be_bytes(*b"maglev 1")]);
const OWNER: FlowHasher = FlowHasher::new([u64::from_be_bytes(*b"penstock"), u64::from_be_bytes(*b"owner  1")]);

/// The hash for [`crate::maglev::MaglevTable::lookup`], the same on every box.
#[inline]
#[must_use]
pub const fn pick_hash_v4(client: u32, client_port: u16, vip: u32, port: u16, protocol: u8) -> u64 {
    PICK.v4(client, vip, client_port, port, protocol)
}

/// See [`pick_hash_v4`].
#[inline]
#[must_use]
pub const fn pick_hash_v6(client: u128, client_port: u16, vip: u128, port: u16, protocol: u8) -> u64 {
    PICK.v6(client, vip, client_port, port, protocol)
}

/// The owner of a flow where it must be computable from both directions (mode `dnat`): of the
/// client's side alone. Reduce it by multiply-shift or remainder; all 32 bits are good.
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "half of a 64-bit hash")]
pub const fn owner_hash_v4(client: u32, client_port: u16, protocol: u8) -> u32 {
    (OWNER.v4(client, 0, client_port, 0, protocol) >> 32) as u32
}

/// See [`owner_hash_v4`].
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "half of a 64-bit hash")]
pub const fn owner_hash_v6(client: u128, client_port: u16, protocol: u8) -> u32 {
    (OWNER.v6(client, 0, client_port, 0, protocol) >> 32) as u32
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the two halves of a product")]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[inline]
const fn rest(src_port: u16, dst_port: u16, protocol: u8) -> u64 {
    (src_port as u64) << 32 | (dst_port as u64) << 16 | protocol as u64
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "one half")]
const fn high(address: u128) -> u64 {
    (address >> 64) as u64
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "one half")]
const fn low(address: u128) -> u64 {
    address as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hint::black_box;

    use super::*;
    use crate::stopwatch::best_ns;

    type Key = (u128, u128, u16, u16, u8);

    const SEEDS: [[u64; 2]; 3] = [[0, 0], [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], [u64::MAX, 1]];

    fn v4(hasher: FlowHasher, (src, dst, src_port, dst_port, protocol): Key) -> u64 {
        hasher.v4(src as u32, dst as u32, src_port, dst_port, protocol)
    }

    fn v6(hasher: FlowHasher, (src, dst, src_port, dst_port, protocol): Key) -> u64 {
        hasher.v6(src, dst, src_port, dst_port, protocol)
    }

    /// Client tuples as a network makes them: few addresses, sequential ports, one VIP.
    fn sequential(n: u32) -> impl Iterator<Item = Key> {
        let (src, dst) = (0x2001_0db8_0000_0000_0000_0000_c633_6401_u128, 0x2001_0db8_0000_0001_0000_0000_cb00_710a);
        (0..n).map(move |i| (src + u128::from(i / 1000), dst, 10_000 + (i % 1000) as u16, 443, 6))
    }

    /// Flipping any input bit must flip each output bit about half the time.
    #[test]
    fn avalanche() {
        const ROUNDS: u32 = 4000;
        let bits = |key: Key, bit: u32| -> Key {
            let (mut s, mut d, mut sp, mut dp, mut p) = key;
            match bit {
                0..32 => s ^= 1 << bit,
                32..64 => d ^= 1 << (bit - 32),
                64..80 => sp ^= 1 << (bit - 64),
                80..96 => dp ^= 1 << (bit - 80),
                96..104 => p ^= 1 << (bit - 96),
                104..200 => s ^= 1 << (bit - 104 + 32),
                _ => d ^= 1 << (bit - 200 + 32),
            }
            (s, d, sp, dp, p)
        };
        for (name, hash, inputs) in [("v4", v4 as fn(FlowHasher, Key) -> u64, 104), ("v6", v6, 296)] {
            let hasher = FlowHasher::new(SEEDS[1]);
            let mut worst = 0.0_f64;
            for bit in 0..inputs {
                let mut flips = [0_u32; 64];
                for key in sequential(ROUNDS) {
                    let difference = hash(hasher, key) ^ hash(hasher, bits(key, bit));
                    flips.iter_mut().enumerate().for_each(|(i, f)| *f += (difference >> i & 1) as u32);
                }
                for flipped in flips {
                    worst = worst.max((f64::from(flipped) / f64::from(ROUNDS) - 0.5).abs());
                }
            }
            println!("{name}: worst bias of {inputs} x 64 bit pairs {worst:.3}");
            // 5 standard deviations of a fair coin over 4000 throws are 0.04.
            assert!(worst < 0.05, "{name}: an output bit follows an input bit: bias {worst}");
        }
    }

    /// Chi-squared over buckets taken from the low, the high and the middle bits.
    #[test]
    fn buckets_are_even_over_sequential_tuples() {
        const KEYS: u32 = 1 << 18;
        const BUCKETS: usize = 1 << 12;
        for seed in SEEDS {
            for (name, hash) in [("v4", v4 as fn(FlowHasher, Key) -> u64), ("v6", v6)] {
                for shift in [0, 26, 52] {
                    let mut counts = vec![0_u32; BUCKETS];
                    for key in sequential(KEYS) {
                        counts[(hash(FlowHasher::new(seed), key) >> shift) as usize % BUCKETS] += 1;
                    }
                    let due = f64::from(KEYS) / BUCKETS as f64;
                    let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - due).powi(2) / due).sum();
                    // 4095 degrees of freedom: mean 4095, standard deviation 90. Too even is as suspect.
                    assert!((3500.0..4700.0).contains(&chi2), "{name} >> {shift}, seed {seed:x?}: chi2 {chi2:.0}");
                }
            }
        }
    }

    #[test]
    fn collisions_of_32_bits_are_as_many_as_chance_makes() {
        const KEYS: u32 = 1 << 18;
        // n(n-1)/2 pairs over 2^32: 8.
        for seed in SEEDS {
            for (name, hash) in [("v4", v4 as fn(FlowHasher, Key) -> u64), ("v6", v6)] {
                for half in [0, 32] {
                    let hash32 = |key| (hash(FlowHasher::new(seed), key) >> half) as u32;
                    let distinct = sequential(KEYS).map(hash32).collect::<HashSet<u32>>().len();
                    let collisions = KEYS as usize - distinct;
                    assert!(collisions < 30, "{name} >> {half}, seed {seed:x?}: {collisions} collisions");
                }
            }
        }
    }

    #[test]
    fn every_field_and_the_direction_count() {
        let key: Key = (1, 2, 3, 4, 6);
        for hash in [v4 as fn(FlowHasher, Key) -> u64, v6] {
            let of = |key| hash(FlowHasher::new(SEEDS[1]), key);
            let others = [(2, 1, 3, 4, 6), (1, 2, 4, 3, 6), (2, 1, 4, 3, 6), (1, 2, 3, 4, 17), (1, 1, 3, 4, 6)];
            assert!(others.iter().all(|&other| of(other) != of(key)));
            assert_ne!(hash(FlowHasher::new(SEEDS[0]), key), of(key));
            assert_ne!(hash(FlowHasher::new([SEEDS[1][0], 0]), key), of(key));
        }
    }

    /// From a second implementation. A failure: boxes of two versions would disagree.
    #[test]
    fn choices_are_pinned() {
        let (client, vip) = (0xc633_6407, 0xcb00_710a);
        let client6 = 0x2001_0db8_0000_0000_0000_0000_0000_0007_u128;
        let vip6 = 0x2001_0db8_0000_0000_0000_0000_0000_010a_u128;
        assert_eq!(pick_hash_v4(client, 5555, vip, 443, 6), 0x709b_2f91_97a3_d0b5);
        assert_eq!(pick_hash_v6(client6, 5555, vip6, 443, 6), 0xa721_8485_829e_b352);
        assert_eq!(owner_hash_v4(client, 5555, 6), 0x4002_9bf7);
        assert_eq!(owner_hash_v6(client6, 5555, 17), 0xb402_1ef4);
    }

    #[test]
    #[ignore = "prints figures"]
    fn nanoseconds() {
        let hasher = FlowHasher::new(black_box(SEEDS[1]));
        let keys: Vec<Key> = sequential(4096).collect();
        let time = |name: &str, hash: &dyn Fn(&Key) -> u64| {
            let ns = best_ns(4096 * 100, || {
                for _ in 0..100 {
                    black_box(keys.iter().fold(0, |sum: u64, key| sum ^ hash(black_box(key))));
                }
            });
            println!("{name}: {ns:.2} ns");
        };
        time("flow v4", &|&key| v4(hasher, key));
        time("flow v6", &|&key| v6(hasher, key));
        time("pick v4", &|&(s, d, sp, dp, p)| pick_hash_v4(s as u32, sp, d as u32, dp, p));
        time("owner v4", &|&(s, _, sp, _, p)| u64::from(owner_hash_v4(s as u32, sp, p)));
    }
}
