//! Who a backend is, whatever list it stands in: the number its permutation comes from.

use std::net::IpAddr;

/// FNV-1a, 64 bit (draft-eastlake-fnv), over the address's bytes in network order (4 or 16) and the
/// port's two, then the finaliser of MurmurHash3 (FNV alone leaves the last byte in the low bits).
///
/// Part of the protocol between boxes and versions: a change moves every flow's choice. The golden
/// test pins it. `port` is 0 for a set whose services bring their own target port: those
/// services then share the set's one table.
#[must_use]
pub fn backend_identity(address: IpAddr, port: u16) -> u64 {
    let hash = match address {
        IpAddr::V4(v4) => fnv1a(FNV_OFFSET, &v4.octets()),
        IpAddr::V6(v6) => fnv1a(FNV_OFFSET, &v6.octets()),
    };
    mix(fnv1a(hash, &port.to_be_bytes()))
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

fn fnv1a(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

/// MurmurHash3's 64-bit finaliser: a bijection in which each input bit flips each output bit half the time.
pub(super) fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV's published vectors: empty, "a", "foobar".
    #[test]
    fn fnv1a_is_the_published_one() {
        assert_eq!(fnv1a(FNV_OFFSET, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(FNV_OFFSET, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(FNV_OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn identity_is_pinned() {
        let cases = [
            ("10.0.0.12", 31443, 0x998d_02ca_e43d_1e4b),
            ("10.0.0.12", 0, 0x424b_5240_d12c_0cde),
            ("2001:db8::c", 31443, 0x72bc_e7f7_cf4a_a81b),
        ];
        for (address, port, expected) in cases {
            let identity = backend_identity(address.parse().unwrap(), port);
            assert_eq!(identity, expected, "{address}:{port} is {identity:#018x}");
        }
    }
}
