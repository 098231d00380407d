//! When the XDP program may police new flows: not before the workers have marked the established ones, and while it
//! does their marks are turned over.

use std::time::{Duration, Instant};

use crate::pipeline::MARKED_EVERY;

/// Between two turns at least: flows that are gone fade within twice this.
const TURN: Duration = Duration::from_secs(8);

/// Rounds of the sweep after which every flow has been marked: one more than it takes, since one is under way.
const ROUNDS: u64 = MARKED_EVERY as u64 + 1;

/// What is known of the marks.
#[derive(Debug, Default)]
pub struct Policing {
    /// Since when flows are marked, or the last turn, and the slowest worker's rounds then.
    since: Option<(Instant, u64)>,
    complete: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Every flow is marked: the program may police.
    Begin,
    /// The marks are to be turned over.
    Turn,
}

impl Policing {
    /// Whether the program may police now.
    pub fn is_on(&self) -> bool {
        self.complete
    }

    /// `wanted`: policing is configured; `rounds`: those the slowest worker's sweep has made.
    pub fn step(&mut self, wanted: bool, rounds: u64, now: Instant) -> Step {
        if !wanted {
            *self = Self::default();
            return Step::Nothing;
        }
        let (since, before) = *self.since.get_or_insert((now, rounds));
        if rounds < before + ROUNDS {
            return Step::Nothing;
        }
        if !self.complete {
            self.complete = true;
            return Step::Begin;
        }
        if now.saturating_duration_since(since) < TURN {
            return Step::Nothing;
        }
        self.since = Some((now, rounds));
        Step::Turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_when_all_are_marked_and_turns_when_all_are_marked_again() {
        let (mut policing, start) = (Policing::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(policing.step(false, 100, at(0)), Step::Nothing);
        assert_eq!(policing.step(true, 100, at(1)), Step::Nothing);
        assert_eq!(policing.step(true, 104, at(5)), Step::Nothing);
        assert!(!policing.is_on());
        assert_eq!(policing.step(true, 105, at(6)), Step::Begin);
        assert_eq!(policing.step(true, 106, at(7)), Step::Nothing);
        assert_eq!(policing.step(true, 108, at(9)), Step::Turn);
        // A slow sweep: no turn before every flow is in the new generation.
        assert_eq!(policing.step(true, 112, at(30)), Step::Nothing);
        assert_eq!(policing.step(true, 113, at(31)), Step::Turn);
        assert!(policing.is_on());
        assert_eq!(policing.step(false, 120, at(40)), Step::Nothing);
        assert!(!policing.is_on());
    }
}
