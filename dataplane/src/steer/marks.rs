//! Which flows are established, as the XDP program sees it: a bit for each, in memory both share.
//!
//! Two generations of 2^24 bits. A worker sets the bit of a flow in the current one when the flow becomes
//! established, and again while it lives; housekeeping clears the other one now and then, which becomes current. A
//! bit stands in either: a living flow's is never missing, one that is gone fades within two turns.
//!
//! Bits are shared by chance: with n flows a packet of none finds one set with probability n / 2^23 at most, and is
//! let through where it should have been charged. With a million flows that is one in eight.
#![allow(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions};

use crate::wire::{Family, Tuple};

/// As `bpf/maps.h` has it.
const GENERATION_WORDS: usize = 1 << 18;
const WORDS: usize = 2 * GENERATION_WORDS;

#[derive(Debug)]
enum Memory {
    /// The map's own.
    Map(MmapMut),
    /// Where there is no program.
    Heap(Box<[AtomicU64]>),
}

#[derive(Debug)]
pub struct Marks {
    memory: Memory,
    seed: u64,
    /// The generation bits are set in.
    current: AtomicU32,
}

impl Marks {
    /// Marks nobody else sees.
    #[must_use]
    pub fn heap(seed: u64) -> Self {
        let words = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { memory: Memory::Heap(words), seed, current: AtomicU32::new(0) }
    }

    /// Those of the program's map.
    pub(super) fn map(fd: BorrowedFd<'_>, seed: u64) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.len(WORDS * size_of::<u64>());
        // SAFETY: `map_mut` asks that nobody truncates what is mapped, or changes it behind a Rust reference to it. A BPF
        // array keeps its size for its life, and the mapping keeps the map alive; it is looked at only as atomics, by
        // `words`, and the program changes none of it.
        let map = unsafe { options.map_mut(fd.as_raw_fd())? };
        Ok(Self { memory: Memory::Map(map), seed, current: AtomicU32::new(0) })
    }

    fn words(&self) -> &[AtomicU64] {
        match &self.memory {
            Memory::Heap(words) => words,
            Memory::Map(map) => {
                // SAFETY: the mapping has WORDS * 8 bytes (the length it was asked for with), begins at a page, so is
                // aligned for u64, lives as long as `self`, and is never handed out as anything but these atomics, which
                // have the layout of u64 and may change by others' hands.
                unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<AtomicU64>(), WORDS) }
            }
        }
    }

    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Marks the flow whose client's packets to the VIP have this tuple.
    #[inline]
    pub fn mark<F: Family>(&self, tuple: &Tuple<F::Addr>) {
        let (at, bit) = place(self.hash::<F>(tuple));
        let generation = self.current.load(Ordering::Relaxed) as usize & 1;
        if let Some(word) = self.words().get(generation * GENERATION_WORDS + at)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// What the program would find.
    #[must_use]
    pub fn is_marked<F: Family>(&self, tuple: &Tuple<F::Addr>) -> bool {
        let (at, bit) = place(self.hash::<F>(tuple));
        let words = self.words();
        [at, at + GENERATION_WORDS]
            .iter()
            .any(|at| words.get(*at).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0))
    }

    /// Clears the older generation and makes it the current one. Called when every living flow has been marked in
    /// the one that is current now.
    pub fn rotate(&self) {
        let next = (self.current.load(Ordering::Relaxed) + 1) & 1;
        let begin = next as usize * GENERATION_WORDS;
        for word in self.words().iter().skip(begin).take(GENERATION_WORDS) {
            word.store(0, Ordering::Relaxed);
        }
        self.current.store(next, Ordering::Release);
    }

    /// As `bpf/police.h` does it.
    #[inline]
    fn hash<F: Family>(&self, tuple: &Tuple<F::Addr>) -> u64 {
        let Tuple { src, dst, src_port, dst_port, protocol } = *tuple;
        let addresses = match (F::to_ip(src), F::to_ip(dst)) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let [src, dst] = [src, dst].map(|address| u64::from(u32::from_ne_bytes(address.octets())));
                mix(self.seed, src << 32 | dst)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                [src, dst].iter().flat_map(|address| halves(address.octets())).fold(self.seed, mix)
            }
            // A tuple has one family.
            _ => self.seed,
        };
        let [from, to] = [src_port, dst_port].map(|port| u64::from(port.to_be()));
        let hash = mix(addresses, from << 32 | to << 16 | u64::from(protocol)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^ hash >> 32
    }
}

#[inline]
fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}

/// Two words of two 32-bit words each, as the machine reads them in the packet.
fn halves(octets: [u8; 16]) -> [u64; 2] {
    let word = |at: usize| u64::from(u32::from_ne_bytes(crate::wire::bytes_at(&octets, at)));
    [word(0) << 32 | word(4), word(8) << 32 | word(12)]
}

/// Its word in a generation, and its bit there.
#[inline]
fn place(hash: u64) -> (usize, u64) {
    ((hash >> 6) as usize & (GENERATION_WORDS - 1), 1 << (hash & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{V4, V6};

    fn tuple(n: u32) -> Tuple<u32> {
        Tuple { src: 0xc633_6400 + n, dst: 0xcb00_710a, src_port: 1000, dst_port: 443, protocol: 6 }
    }

    #[test]
    fn marks_stand_for_two_turns() {
        let marks = Marks::heap(7);
        assert!(!marks.is_marked::<V4>(&tuple(1)));
        marks.mark::<V4>(&tuple(1));
        marks.rotate();
        assert!(marks.is_marked::<V4>(&tuple(1)), "in the other generation now");
        marks.mark::<V4>(&tuple(2));
        marks.rotate();
        assert!(!marks.is_marked::<V4>(&tuple(1)), "not marked again, so gone");
        assert!(marks.is_marked::<V4>(&tuple(2)));
    }

    /// A hash that folds flows together would let floods through.
    #[test]
    fn few_flows_share_a_bit() {
        let marks = Marks::heap(0x1234_5678_9abc_def1);
        let v6 = |n: u32| Tuple { src: u128::from(n), dst: 1 << 127, src_port: 1, dst_port: 2, protocol: 17 };
        for n in 0..50_000 {
            marks.mark::<V4>(&tuple(n));
            marks.mark::<V6>(&v6(n));
        }
        let found = (50_000..100_000)
            .map(|n| u32::from(marks.is_marked::<V4>(&tuple(n))) + u32::from(marks.is_marked::<V6>(&v6(n))))
            .sum::<u32>();
        // 100,000 of 2^24 bits are set: 0.6 %.
        assert!((300..900).contains(&found), "{found} of 100,000");
        let set: u32 = marks.words().iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
        assert!(set > 99_000, "{set} bits for 100,000 flows");
    }
}
