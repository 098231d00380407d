//! A set of integers as the sorted places where membership changes, with a first step by index.
//!
//! Merged, the ranges [a, b], [c, d] ... are the strictly rising list a, b+1, c, d+1 ...: an address is
//! inside when an odd number of places is at or below it. Up to [`PLAIN`] places that number is a
//! binary search (std's has no branch to mispredict). Larger sets cut the span between the first and the last
//! place into about half as many equal parts as there are places and keep where each part starts:
//! one look-up leaves a few places to search where prefixes are spread, and at worst all of them.
//!
//! Tried and dropped: a static tree of 16-key blocks, no faster than the plain binary search without AVX2.

use std::fmt::Debug;

/// Places that fit a few cache lines, where an index would only add a miss.
const PLAIN: usize = 32;

pub(super) trait Key: Copy + Ord + Debug {
    const BITS: u32;
    fn successor(self) -> Option<Self>;
    /// `(self - base) >> shift` for `base <= self`, or the greatest number where that is too much.
    fn part(self, base: Self, shift: u32) -> usize;
    fn leading_zeros_from(self, base: Self) -> u32;
}

macro_rules! key {
    ($type:ty) => {
        impl Key for $type {
            const BITS: u32 = <$type>::BITS;
            #[inline]
            fn successor(self) -> Option<Self> {
                self.checked_add(1)
            }
            #[inline]
            fn part(self, base: Self, shift: u32) -> usize {
                usize::try_from(self.wrapping_sub(base) >> shift).unwrap_or(usize::MAX)
            }
            fn leading_zeros_from(self, base: Self) -> u32 {
                (self - base).leading_zeros()
            }
        }
    };
}

key!(u32);
key!(u128);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds<K> {
    places: Box<[K]>,
    /// `starts[p]..starts[p + 1]` are the places in part `p` of the span; empty: search them all.
    starts: Box<[u32]>,
    shift: u32,
}

impl<K> Default for Bounds<K> {
    fn default() -> Self {
        Self { places: Box::default(), starts: Box::default(), shift: 0 }
    }
}

impl<K: Key> Bounds<K> {
    /// Ranges are inclusive, in any order, and may overlap.
    pub(super) fn build(ranges: Vec<(K, K)>) -> Self {
        let places = places(ranges).into_boxed_slice();
        if places.len() <= PLAIN {
            return Self { places, ..Self::default() };
        }
        let (first, last) = (places[0], places[places.len() - 1]);
        let span_bits = K::BITS - last.leading_zeros_from(first);
        let shift = span_bits.saturating_sub(places.len().ilog2() - 1);
        let parts = last.part(first, shift) + 1;
        let mut starts = Vec::with_capacity(parts + 1);
        for (at, place) in (0_u32..).zip(&places) {
            // Parts up to this place's start here, unless an earlier place started them.
            starts.resize(starts.len().max(place.part(first, shift) + 1), at);
        }
        starts.push(u32::try_from(places.len()).expect("fewer than 2^32 prefixes fit in memory"));
        Self { places, starts: starts.into_boxed_slice(), shift }
    }

    #[inline]
    pub(super) fn contains(&self, key: K) -> bool {
        if self.starts.is_empty() {
            return at_or_below(&self.places, key) % 2 == 1;
        }
        let Some(&first) = self.places.first() else { return false };
        if key < first {
            return false;
        }
        // Beyond the last part: all places are below.
        let Some(&[start, end, ..]) = self.starts.get(key.part(first, self.shift)..) else {
            return self.places.len() % 2 == 1;
        };
        let Some(within) = self.places.get(start as usize..end as usize) else { return false };
        (start as usize + at_or_below(within, key)) % 2 == 1
    }

    pub(super) fn heap_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.places) + std::mem::size_of_val(&*self.starts)
    }
}

#[inline]
fn at_or_below<K: Key>(places: &[K], key: K) -> usize {
    places.partition_point(|&place| place <= key)
}

/// Where membership changes, rising. An odd number of places: the set reaches to the greatest key.
fn places<K: Key>(mut ranges: Vec<(K, K)>) -> Vec<K> {
    ranges.sort_unstable();
    let mut places: Vec<K> = Vec::with_capacity(ranges.len() * 2);
    for (first, last) in ranges {
        match places.last().copied() {
            // The last range has no end: it covers the rest.
            Some(_) if places.len() % 2 == 1 => break,
            // Touches or overlaps: `end` is the first key outside.
            Some(end) if first <= end => {
                let end = last.successor().map(|next| next.max(end));
                places.pop();
                places.extend(end);
            }
            _ => {
                places.push(first);
                places.extend(last.successor());
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    type Case = (&'static [(u32, u32)], &'static [u32]);

    #[test]
    fn ranges_merge_into_rising_places() {
        let cases: [Case; 7] = [
            (&[], &[]),
            (&[(5, 9), (1, 2)], &[1, 3, 5, 10]),
            (&[(1, 4), (5, 9)], &[1, 10]),
            (&[(1, 9), (2, 3), (2, 3)], &[1, 10]),
            (&[(0, u32::MAX)], &[0]),
            (&[(7, u32::MAX), (9, 12), (u32::MAX, u32::MAX)], &[7]),
            (&[(1, 2), (2, u32::MAX)], &[1]),
        ];
        for (ranges, expected) in cases {
            assert_eq!(places(ranges.to_vec()), expected, "{ranges:?}");
        }
    }
}
