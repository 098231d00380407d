//! The small unsafe edge: prefetch, anonymous huge mappings, clocks.
#![allow(unsafe_code, reason = "intrinsics and mappings; each block says why it holds")]

pub mod ethtool;

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Asks the CPU to load the cache line at `place`; a hint, without effect on what the program computes.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    prefetch_at(std::ptr::from_ref(place).cast());
}

/// The same for every cache line of `place`.
#[inline]
pub fn prefetch_all<T>(place: &T) {
    const LINE: usize = 64;
    let first = std::ptr::from_ref(place).cast::<u8>();
    for offset in (0..size_of::<T>()).step_by(LINE) {
        prefetch_at(first.wrapping_add(offset));
    }
    // What does not begin with a line ends in one more.
    prefetch_at(first.wrapping_add(size_of::<T>().saturating_sub(1)));
}

#[inline(always)]
fn prefetch_at(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetch reads nothing the program can see and faults on no address; SSE is part of x86_64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Which of eight numbers are `wanted`: bit n for the n-th. Compilers make a shift and an or of each
/// comparison; SSE2, which every x86_64 has, needs nine instructions in all.
#[inline(always)]
#[must_use]
pub fn equal_lanes(lanes: &[u32; 8], wanted: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_cmpeq_epi32, _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32, _mm_set_epi32, _mm_set1_epi32,
        };
        let [a, b, c, d, e, f, g, h] = lanes.map(u32::cast_signed);
        // SAFETY: these work on registers alone, and SSE2 is part of x86_64.
        #[allow(unused_unsafe, clippy::multiple_unsafe_ops_per_block, reason = "one computation, without memory")]
        unsafe {
            let wanted = _mm_set1_epi32(wanted.cast_signed());
            let low = _mm_cmpeq_epi32(_mm_set_epi32(d, c, b, a), wanted);
            let high = _mm_cmpeq_epi32(_mm_set_epi32(h, g, f, e), wanted);
            let words = _mm_packs_epi32(low, high);
            _mm_movemask_epi8(_mm_packs_epi16(words, words)).cast_unsigned() & 0xff
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    equal_lanes_plainly(lanes, wanted)
}

/// [`equal_lanes`] by the letter.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn equal_lanes_plainly(lanes: &[u32; 8], wanted: u32) -> u32 {
    lanes.iter().zip(0..).fold(0, |mask, (lane, at)| mask | u32::from(*lane == wanted) << at)
}

/// The top bits of eight numbers: bit n is the n-th's.
#[inline(always)]
#[must_use]
pub fn top_bits(lanes: &[u32; 8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_castsi128_ps, _mm_movemask_ps, _mm_set_epi32};
        let [a, b, c, d, e, f, g, h] = lanes.map(u32::cast_signed);
        // SAFETY: these work on registers alone, and SSE2 is part of x86_64.
        #[allow(unused_unsafe, clippy::multiple_unsafe_ops_per_block, reason = "one computation, without memory")]
        unsafe {
            let low = _mm_movemask_ps(_mm_castsi128_ps(_mm_set_epi32(d, c, b, a)));
            let high = _mm_movemask_ps(_mm_castsi128_ps(_mm_set_epi32(h, g, f, e)));
            (low | high << 4).cast_unsigned()
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    top_bits_plainly(lanes)
}

/// [`top_bits`] by the letter.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn top_bits_plainly(lanes: &[u32; 8]) -> u32 {
    lanes.iter().zip(0..).fold(0, |mask, (lane, at)| mask | (lane >> 31) << at)
}

/// Ticks of the time-stamp counter, for benchmarks. What comes before is finished when it is read,
/// what comes after not begun. Its rate is fixed, whatever the core's.
#[must_use]
pub fn timestamp() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both read and write nothing but registers; the fence is SSE2 and rdtsc older: part of x86_64.
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "fence, read, fence are one measurement")]
    unsafe {
        use std::arch::x86_64::{_mm_lfence, _rdtsc};
        _mm_lfence();
        let ticks = _rdtsc();
        _mm_lfence();
        ticks
    }
    #[cfg(not(target_arch = "x86_64"))]
    crate::clock::Now::read().ns
}

/// Plain numbers: every bit pattern is a value, all zeros among them.
///
/// # Safety
/// The type must have no padding-dependent meaning, no pointers, and accept any bytes.
pub unsafe trait Plain: Sized {}

// SAFETY: an array of integers.
unsafe impl Plain for crate::flow::index::Bucket {}

/// A zeroed array in a mapping of its own, on huge pages where the kernel gives them: a table of
/// millions of entries would miss the TLB on nearly every access otherwise.
pub struct HugeArray<T: Plain> {
    map: memmap2::MmapMut,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain> HugeArray<T> {
    pub fn zeroed(len: usize) -> std::io::Result<Self> {
        assert!(align_of::<T>() <= 4096, "mappings are aligned to pages");
        let mut map = memmap2::MmapMut::map_anon((len * size_of::<T>()).max(1))?;
        // Without transparent huge pages the kernel says no; small pages serve as well.
        let _ = map.advise(memmap2::Advice::HugePage);
        // Who touches a page first waits for it to be cleared: some 100 us for a huge one, and entries lie
        // anywhere, so that the first packets would wait for each page in turn. Here nobody does.
        if map.advise(memmap2::Advice::PopulateWrite).is_err() {
            // Before Linux 5.14.
            map.iter_mut().step_by(4096).for_each(|byte| *byte = 0);
        }
        Ok(Self { map, len, of: PhantomData })
    }
}

impl<T: Plain> Deref for HugeArray<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has at least `len * size_of::<T>()` bytes, is page-aligned, zeroed and
        // only written as `T`; `T: Plain` accepts all-zero bytes.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for HugeArray<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and the array is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equal_lanes_equals_the_loop(lanes in proptest::array::uniform8(prop_oneof![0_u32..3, Just(u32::MAX), any::<u32>()]), wanted in prop_oneof![0_u32..3, Just(u32::MAX)]) {
            prop_assert_eq!(equal_lanes(&lanes, wanted), equal_lanes_plainly(&lanes, wanted));
            prop_assert_eq!(top_bits(&lanes), top_bits_plainly(&lanes));
        }
    }
}
