//! How often something happened lately: a window that slides over two fixed seconds.
//!
//! The count of the second before, by how much of it the window still covers, plus this second's. What a
//! limit of N lets through in any one second is at most 2 N, as with a token bucket of N tokens: N at the
//! end of one second and N in the next. Unlike a bucket's level, counts of several workers can be added up.

use crate::clock::Now;

const SECOND_NS: u64 = 1_000_000_000;
const COUNT_BITS: u32 = 22;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
/// Twelve days until a second has the number of one before.
const SECONDS: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

/// In one word, so that another worker never reads half of a change: which second, the count of the one before it, and its
/// own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window(pub u64);

impl Window {
    /// Once more, now.
    #[inline]
    #[must_use]
    pub fn count(self, now: Now) -> Self {
        let [before, current] = self.counts(now);
        Self(second(now) << (2 * COUNT_BITS) | before << COUNT_BITS | (current + 1).min(COUNT))
    }

    /// How often within the last second.
    #[inline]
    #[must_use]
    pub fn recent(self, now: Now) -> u32 {
        let [before, current] = self.counts(now);
        let still = SECOND_NS - now.ns % SECOND_NS;
        (before * still / SECOND_NS + current) as u32
    }

    /// When it was last added to, to compare with others.
    #[inline]
    #[must_use]
    pub fn second(self) -> u64 {
        self.0 >> (2 * COUNT_BITS)
    }

    /// Of the second before and of this one.
    #[inline]
    fn counts(self, now: Now) -> [u64; 2] {
        let [before, current] = [self.0 >> COUNT_BITS & COUNT, self.0 & COUNT];
        match second(now).wrapping_sub(self.second()) & SECONDS {
            0 => [before, current],
            1 => [current, 0],
            _ => [0, 0],
        }
    }
}

#[inline]
fn second(now: Now) -> u64 {
    (now.ns / SECOND_NS) & SECONDS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_slides_and_forgets() {
        let at = |ms: u64| Now { ns: 5_000_000_000 + ms * 1_000_000 };
        let mut window = Window::default();
        for _ in 0..100 {
            window = window.count(at(900));
        }
        for (ms, wanted) in [(900, 100), (1000, 100), (1250, 75), (1999, 0), (2000, 0), (70_000, 0)] {
            assert_eq!(window.recent(at(ms)), wanted, "{ms} ms");
        }
        assert_eq!(window.count(at(1500)).recent(at(1500)), 51);
        assert_eq!(window.count(at(3000)).recent(at(3000)), 1);
        let full = Window(second(at(0)) << (2 * COUNT_BITS) | COUNT);
        assert_eq!(full.count(at(0)).recent(at(0)), COUNT as u32, "it stays where it is");
    }

    proptest! {
        /// Whatever comes and when: never more than twice the limit within a second.
        #[test]
        fn twice_the_limit_at_most(limit in 1_u32..50, steps in prop::collection::vec(0_u64..60_000_000, 1..400)) {
            let (mut window, mut now, mut admitted) = (Window::default(), Now { ns: 1 }, Vec::new());
            for step in steps {
                now.ns += step;
                if window.recent(now) < limit {
                    window = window.count(now);
                    admitted.push(now.ns);
                }
                let lately = admitted.iter().filter(|ns| **ns + SECOND_NS > now.ns).count();
                prop_assert!(lately <= 2 * limit as usize, "{lately} of {limit}");
            }
        }
    }
}
