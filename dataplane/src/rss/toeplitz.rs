//! The Toeplitz hash of receive-side scaling (Microsoft, "RSS hashing types"): each set bit of the
//! input xors in the 32 key bits that start at its position. Input: source address, destination
//! address, then, where the type has ports, source port and destination port, all big-endian.

/// Bytes of an IPv6 tuple with ports, the longest input.
pub const MAX_INPUT: usize = 36;

/// The shortest key that covers [`MAX_INPUT`]: the last bit's window takes 32 more bits.
pub const MIN_KEY: usize = MAX_INPUT + 4;

/// The hash by its definition, bit by bit: the oracle of [`Toeplitz`], and enough for tools.
/// Key bits beyond the key's end count as zero.
#[must_use]
pub fn toeplitz_plain(key: &[u8], input: &[u8]) -> u32 {
    let mut hash = 0;
    for (position, byte) in input.iter().enumerate() {
        for bit in 0..8 {
            if byte & (0x80 >> bit) != 0 {
                hash ^= window(key, position * 8 + bit);
            }
        }
    }
    hash
}

/// The 32 key bits from bit `start` on.
fn window(key: &[u8], start: usize) -> u32 {
    let first = start / 8;
    let bytes = (first..first + 5).fold(0_u64, |acc, i| acc << 8 | u64::from(key.get(i).copied().unwrap_or(0)));
    #[allow(clippy::cast_possible_truncation, reason = "the 32 bits wanted")]
    let window = (bytes >> (8 - start % 8)) as u32;
    window
}

/// Tables per byte position: the hash is linear over xor, so a byte's whole contribution is one
/// look-up, 12 for IPv4 with ports and 36 for IPv6 in place of 96 and 288 bit tests. 36 KiB per key,
/// of which IPv4 touches 12; made once per NIC.
#[derive(Clone)]
pub struct Toeplitz {
    tables: Box<[[u32; 256]; MAX_INPUT]>,
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toeplitz").finish_non_exhaustive()
    }
}

impl Toeplitz {
    /// `None` for a key shorter than [`MIN_KEY`].
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        if key.len() < MIN_KEY {
            return None;
        }
        let mut tables = Box::new([[0_u32; 256]; MAX_INPUT]);
        for (position, table) in tables.iter_mut().enumerate() {
            for byte in 1..256_usize {
                // The value without its lowest set bit is already there.
                let bit = 7 - byte.trailing_zeros() as usize;
                table[byte] = table[byte & (byte - 1)] ^ window(key, position * 8 + bit);
            }
        }
        Some(Self { tables })
    }

    /// The hash of type IPv4; xor [`Self::ports_v4`] makes it that of TCP or UDP over IPv4.
    #[inline]
    #[must_use]
    pub fn addresses_v4(&self, src: u32, dst: u32) -> u32 {
        self.bytes::<0, 4>(src.to_be_bytes()) ^ self.bytes::<4, 4>(dst.to_be_bytes())
    }

    /// What the ports contribute, whatever the addresses.
    #[inline]
    #[must_use]
    pub fn ports_v4(&self, src_port: u16, dst_port: u16) -> u32 {
        self.bytes::<8, 2>(src_port.to_be_bytes()) ^ self.bytes::<10, 2>(dst_port.to_be_bytes())
    }

    /// The hash of type IPv6; xor [`Self::ports_v6`] makes it that of TCP or UDP over IPv6.
    #[inline]
    #[must_use]
    pub fn addresses_v6(&self, src: u128, dst: u128) -> u32 {
        self.bytes::<0, 16>(src.to_be_bytes()) ^ self.bytes::<16, 16>(dst.to_be_bytes())
    }

    #[inline]
    #[must_use]
    pub fn ports_v6(&self, src_port: u16, dst_port: u16) -> u32 {
        self.bytes::<32, 2>(src_port.to_be_bytes()) ^ self.bytes::<34, 2>(dst_port.to_be_bytes())
    }

    /// Positions and lengths are constants, so the bounds checks are gone after inlining.
    #[inline(always)]
    fn bytes<const AT: usize, const N: usize>(&self, bytes: [u8; N]) -> u32 {
        let mut hash = 0;
        let mut i = 0;
        while i < N {
            hash ^= self.tables[AT + i][bytes[i] as usize];
            i += 1;
        }
        hash
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::hint::black_box;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::stopwatch::best_ns;

    /// The key of Microsoft's "Verifying the RSS hash calculation".
    pub(crate) const MICROSOFT_KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    /// Source, its port, destination, its port, hash without and with ports.
    type Vector = (&'static str, u16, &'static str, u16, u32, u32);

    const V4: [Vector; 5] = [
        ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323e_8fc2, 0x51cc_c178),
        ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xd718_262a, 0xc626_b0ea),
        ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xd2d0_a5de, 0x5c2b_394a),
        ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x8298_9176, 0xafc7_327f),
        ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5d18_09c5, 0x10e8_28a2),
    ];

    const V6: [Vector; 3] = [
        ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2cc1_8cd5, 0x4020_7d3d),
        ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0f0c_461c, 0xdde5_1bbf),
        ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x4b61_e985, 0x02d1_feef),
    ];

    #[test]
    fn microsoft_verification_suite_v4() {
        let table = Toeplitz::new(&MICROSOFT_KEY).unwrap();
        for (src, src_port, dst, dst_port, two, four) in V4 {
            let (s, d): (Ipv4Addr, Ipv4Addr) = (src.parse().unwrap(), dst.parse().unwrap());
            let mut input = [s.octets(), d.octets()].concat();
            assert_eq!(toeplitz_plain(&MICROSOFT_KEY, &input), two, "{src}");
            input.extend([src_port.to_be_bytes(), dst_port.to_be_bytes()].concat());
            assert_eq!(toeplitz_plain(&MICROSOFT_KEY, &input), four, "{src}");
            let addresses = table.addresses_v4(s.to_bits(), d.to_bits());
            assert_eq!(addresses, two, "{src}");
            assert_eq!(addresses ^ table.ports_v4(src_port, dst_port), four, "{src}");
        }
    }

    #[test]
    fn microsoft_verification_suite_v6() {
        let table = Toeplitz::new(&MICROSOFT_KEY).unwrap();
        for (src, src_port, dst, dst_port, two, four) in V6 {
            let (s, d): (Ipv6Addr, Ipv6Addr) = (src.parse().unwrap(), dst.parse().unwrap());
            let mut input = [s.octets(), d.octets()].concat();
            assert_eq!(toeplitz_plain(&MICROSOFT_KEY, &input), two, "{src}");
            input.extend([src_port.to_be_bytes(), dst_port.to_be_bytes()].concat());
            assert_eq!(toeplitz_plain(&MICROSOFT_KEY, &input), four, "{src}");
            let addresses = table.addresses_v6(s.to_bits(), d.to_bits());
            assert_eq!(addresses, two, "{src}");
            assert_eq!(addresses ^ table.ports_v6(src_port, dst_port), four, "{src}");
        }
    }

    #[test]
    fn a_short_key_is_refused() {
        assert!(Toeplitz::new(&[1; 39]).is_none());
        assert!(Toeplitz::new(&[1; 52]).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn tables_equal_the_plain_hash(
            key in prop::collection::vec(any::<u8>(), MIN_KEY..=52),
            (src, dst) in any::<(u128, u128)>(),
            (src_port, dst_port) in any::<(u16, u16)>(),
        ) {
            let table = Toeplitz::new(&key).unwrap();
            let ports = [src_port.to_be_bytes(), dst_port.to_be_bytes()].concat();
            let v6 = [&src.to_be_bytes()[..], &dst.to_be_bytes(), &ports].concat();
            prop_assert_eq!(
                table.addresses_v6(src, dst) ^ table.ports_v6(src_port, dst_port),
                toeplitz_plain(&key, &v6)
            );
            let (src, dst) = (src as u32, dst as u32);
            let v4 = [&src.to_be_bytes()[..], &dst.to_be_bytes(), &ports].concat();
            prop_assert_eq!(
                table.addresses_v4(src, dst) ^ table.ports_v4(src_port, dst_port),
                toeplitz_plain(&key, &v4)
            );
        }
    }

    #[test]
    #[ignore = "prints figures"]
    fn nanoseconds() {
        const ROUNDS: u32 = 400_000;
        let table = Toeplitz::new(&MICROSOFT_KEY).unwrap();
        let time = |name: &str, hash: &dyn Fn(u32) -> u32| {
            let ns = best_ns(ROUNDS, || {
                black_box((0..ROUNDS).fold(0, |sum, i| sum ^ hash(black_box(i.wrapping_mul(0x9e37_79b9)))));
            });
            println!("{name}: {ns:.1} ns");
        };
        let wide = |i: u32| u128::from(i) << 96 | u128::from(i);
        time("tables v4", &|i| table.addresses_v4(i, !i) ^ table.ports_v4(i as u16, 443));
        time("tables v6", &|i| table.addresses_v6(wide(i), wide(!i)) ^ table.ports_v6(i as u16, 443));
        time("ports only v4", &|i| table.ports_v4(443, i as u16));
        time("plain v4", &|i| {
            let mut input = [0; 12];
            input[..4].copy_from_slice(&i.to_be_bytes());
            toeplitz_plain(&MICROSOFT_KEY, &input)
        });
    }
}
