//! Waiting longer each time, never in step with others.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: f64,
    most: f64,
    failures: u32,
}

impl Backoff {
    /// Seconds.
    #[must_use]
    pub(super) fn new(first: f64, most: f64) -> Self {
        Self { first, most, failures: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = after(self.failures, self.first, self.most);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

/// The pause after so many failures before: `first`, doubled each time up to `most`, of which a random half is taken off.
#[must_use]
pub(super) fn after(failures: u32, first: f64, most: f64) -> Duration {
    let doubled = first * 2f64.powi(i32::try_from(failures.min(30)).unwrap_or(30));
    // A RandomState is seeded anew each time: enough randomness to keep two boxes out of step.
    let random = RandomState::new().build_hasher().finish() % 1024;
    let share = 0.5 + f64::from(u16::try_from(random).unwrap_or(0)) / 2048.0;
    Duration::from_secs_f64(doubled.min(most).max(0.0) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_stays_within_bounds() {
        for failures in 0..100 {
            let pause = after(failures, 0.5, 60.0).as_secs_f64();
            let full = (0.5 * 2f64.powi(i32::try_from(failures).unwrap())).min(60.0);
            assert!((full / 2.0..=full).contains(&pause), "{failures}: {pause}");
        }
    }
}
