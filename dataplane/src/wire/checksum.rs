//! Internet checksums by delta (RFC 1624): a packet that came corrupt leaves corrupt.
//!
//! A one's complement sum does not care about byte order as long as all its words share one
//! (RFC 1071 section 2B), so sums are taken over words as they lie in memory.

/// A running one's complement sum, not yet folded. Not a checksum as it stands on the wire:
/// [`Sum::apply`] makes one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The change from `old` to `new`, bytes as they lie in the packet.
    #[inline(always)]
    #[must_use]
    pub fn delta<const N: usize>(old: [u8; N], new: [u8; N]) -> Self {
        Self::default().with(old, new)
    }

    /// Words of 32 bits where there are any: they fold to the same 16 (RFC 1071 section 2C).
    #[inline(always)]
    #[must_use]
    pub fn with<const N: usize>(self, old: [u8; N], new: [u8; N]) -> Self {
        let mut sum = self.0;
        let ((old_words, old_rest), (new_words, new_rest)) = (old.as_chunks::<4>(), new.as_chunks::<4>());
        for (old, new) in old_words.iter().zip(new_words) {
            sum += u64::from(!u32::from_ne_bytes(*old)) + u64::from(u32::from_ne_bytes(*new));
        }
        for (old, new) in old_rest.as_chunks::<2>().0.iter().zip(new_rest.as_chunks::<2>().0) {
            sum += u64::from(!u16::from_ne_bytes(*old)) + u64::from(u16::from_ne_bytes(*new));
        }
        Self(sum)
    }

    /// Adds bytes to the sum; an odd last byte counts as followed by a zero.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "bytes are added to a sum, not sums")]
    pub fn add(self, bytes: &[u8]) -> Self {
        let (words, last) = bytes.as_chunks::<2>();
        let mut sum = self.0;
        for word in words {
            sum += u64::from(u16::from_ne_bytes(*word));
        }
        if let [byte] = last {
            sum += u64::from(u16::from_ne_bytes([*byte, 0]));
        }
        Self(sum)
    }

    /// Adding the other half, the carry of the lower half runs into the upper: the end-around carry.
    #[inline(always)]
    fn fold(self) -> u16 {
        let sum = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }

    /// The wire checksum `old` after this change: HC' = ~(~HC + ~m + m').
    #[inline(always)]
    #[must_use]
    pub fn apply(self, old: [u8; 2]) -> [u8; 2] {
        (!Self(self.0 + u64::from(!u16::from_ne_bytes(old))).fold()).to_ne_bytes()
    }

    /// The wire checksum of everything added: for packets the box generates.
    #[must_use]
    pub fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }
}

/// The sum over an IPv6 or IPv4 pseudo header: addresses as bytes, protocol and length.
#[must_use]
pub fn pseudo_header(src: &[u8], dst: &[u8], protocol: u8, len: usize) -> Sum {
    Sum::default().add(src).add(dst).add(&[0, protocol]).add(&(len as u32).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 by the letter, the oracle.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1624_worked_example() {
        // Section 4: HC 0xDD2F, word 0x5555 becomes 0x3285, the result is 0x0000.
        let sum = Sum::delta([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(sum.apply([0xdd, 0x2f]), [0, 0]);
    }

    /// The loop by the letter.
    fn fold_plainly(mut sum: u64) -> u16 {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn folds_the_largest_sums() {
        for sum in [u64::MAX, u64::MAX - 1, 0xffff_ffff_0000_0001, 0x1_0000_ffff, 0xffff, 0x1_0000, 0] {
            assert_eq!(Sum(sum).fold(), fold_plainly(sum), "{sum:#x}");
        }
    }

    proptest! {
        #[test]
        fn folding_equals_the_loop(sum: u64) {
            prop_assert_eq!(Sum(sum).fold(), fold_plainly(sum));
        }

        #[test]
        fn addresses_equal_their_words(old: [u8; 16], new: [u8; 16], before: [u8; 2]) {
            let words = (0..8).fold(Sum::default(), |sum, at| {
                sum.with([old[2 * at], old[2 * at + 1]], [new[2 * at], new[2 * at + 1]])
            });
            prop_assert_eq!(Sum::delta(old, new).apply(before), words.apply(before));
        }

        #[test]
        fn delta_equals_recomputing(mut bytes in proptest::collection::vec(any::<u8>(), 20..200), new in any::<[u8; 4]>(), at in 0_usize..8) {
            let at = at * 2;
            let before = plain(&bytes).to_be_bytes();
            let old: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            bytes[at..at + 4].copy_from_slice(&new);
            let after = Sum::delta(old, new).apply(before);
            let full = plain(&bytes).to_be_bytes();
            // +0 and -0 are the same sum.
            let same = after == full || (u16::from_ne_bytes(after).is_multiple_of(0xffff) && u16::from_ne_bytes(full).is_multiple_of(0xffff));
            prop_assert!(same, "{after:?} {full:?}");
        }

        #[test]
        fn adding_equals_recomputing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::default().add(&bytes).checksum(), plain(&bytes).to_be_bytes());
        }
    }
}
