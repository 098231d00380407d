//! The highest rate a device carries (RFC 2544 section 26.1): halving between a rate that was lost at and one
//! that was not. On a shared machine a single stray loss is not the device's, so a rate counts as carried
//! if it was in one of a few tries.

use super::track::Outcome;

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// Share of packets that may be lost: 0 for the no-drop rate.
    pub loss: f64,
    /// Stop when the bounds are this close, as a share of the upper one.
    pub resolution: f64,
    pub tries: u32,
}

impl Goal {
    #[must_use]
    pub fn no_drop() -> Self {
        Self { loss: 0.0, resolution: 0.02, tries: 2 }
    }

    /// As CSIT's partial drop rate: half a percent.
    #[must_use]
    pub fn partial_drop() -> Self {
        Self { loss: 0.005, resolution: 0.02, tries: 2 }
    }
}

/// One measurement of a search.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Trial {
    pub rate: f64,
    pub carried: bool,
    pub outcome: Outcome,
    /// The generator itself did not reach the rate.
    pub generator_behind: bool,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Found {
    /// The highest rate that was carried; 0: none was.
    pub rate: f64,
    /// The generator gave out before the device did: the device carries at least `rate`.
    pub generator_limited: bool,
    pub trials: Vec<Trial>,
}

/// Where to search, packets per second.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub low: f64,
    pub high: f64,
    /// The lower end need not be tried: an earlier search found it carried.
    pub low_is_carried: bool,
}

/// Searches in a range. `trial` measures at a rate: the books, and
/// whether the generator fell behind.
///
/// # Errors
/// The first of a trial.
pub fn search<E>(
    goal: Goal,
    range: Range,
    mut trial: impl FnMut(f64) -> Result<(Outcome, bool), E>,
) -> Result<Found, E> {
    let mut trials = Vec::new();
    let mut measure = |rate: f64, trials: &mut Vec<Trial>| {
        for attempt in 0..goal.tries.max(1) {
            let (outcome, generator_behind) = trial(rate)?;
            let carried = !generator_behind && outcome.lost as f64 <= goal.loss * outcome.sent as f64;
            trials.push(Trial { rate, carried, outcome, generator_behind });
            if carried || attempt + 1 == goal.tries.max(1) {
                return Ok((carried, generator_behind));
            }
        }
        Ok((false, false))
    };
    let (mut carried_at, mut lost_at) = (range.low, range.high);
    let (carried, mut behind) = measure(lost_at, &mut trials)?;
    if carried {
        return Ok(Found { rate: lost_at, generator_limited: false, trials });
    }
    if !range.low_is_carried {
        let (carried, low_behind) = measure(carried_at, &mut trials)?;
        if !carried {
            return Ok(Found { rate: 0.0, generator_limited: low_behind, trials });
        }
    }
    while lost_at - carried_at > goal.resolution * lost_at {
        let rate = f64::midpoint(carried_at, lost_at);
        let (carried, generator_behind) = measure(rate, &mut trials)?;
        if carried {
            carried_at = rate;
        } else {
            (lost_at, behind) = (rate, generator_behind);
        }
    }
    Ok(Found { rate: carried_at, generator_limited: behind, trials })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn outcome(sent: u64, lost: u64) -> Outcome {
        Outcome { sent, received: sent - lost, lost, ..Outcome::default() }
    }

    /// A device that carries `limit` and loses the rest.
    fn device(limit: f64, generator: f64) -> impl FnMut(f64) -> Result<(Outcome, bool), Infallible> {
        move |rate| {
            let sent = rate.min(generator);
            Ok((outcome(sent as u64, (sent - limit).max(0.0) as u64), rate > generator))
        }
    }

    fn whole(high: f64) -> Range {
        Range { low: 1e4, high, low_is_carried: false }
    }

    #[test]
    fn the_limit_is_found_within_the_resolution() {
        let found = search(Goal::no_drop(), whole(5e6), device(1_234_567.0, 9e9)).unwrap();
        assert!(found.rate <= 1_234_567.0 && found.rate > 1_234_567.0 * 0.97, "{}", found.rate);
        assert!(!found.generator_limited);
        let partial = search(Goal::partial_drop(), whole(5e6), device(1_234_567.0, 9e9)).unwrap();
        assert!(partial.rate > found.rate * 0.99, "{} {}", partial.rate, found.rate);
    }

    /// A rate carried without loss is carried with hardly any: two figures of one box do not contradict each other.
    #[test]
    fn what_is_known_to_be_carried_is_not_tried_again() {
        let range = Range { low: 1e6, high: 5e6, low_is_carried: true };
        let found = search(Goal::partial_drop(), range, |rate| {
            assert!(rate > 1e6, "{rate} is known");
            Ok::<_, Infallible>((outcome(rate as u64, rate as u64 / 10), false))
        });
        assert_eq!(found.unwrap().rate, 1e6);
    }

    #[test]
    fn a_generator_that_gives_out_first_is_said() {
        let found = search(Goal::no_drop(), whole(5e6), device(4e6, 2e6)).unwrap();
        assert!(found.generator_limited && found.rate <= 2e6 && found.rate > 1.9e6, "{}", found.rate);
    }

    #[test]
    fn one_stray_loss_does_not_halve_a_rate() {
        let mut strays = 0;
        let found = search(Goal::no_drop(), whole(1e6), |rate| {
            strays += 1;
            Ok::<_, Infallible>((outcome(rate as u64, u64::from(strays == 1)), false))
        });
        assert_eq!(found.unwrap().rate, 1e6);
    }

    #[test]
    fn a_dead_device_is_zero() {
        let found = search(Goal::no_drop(), whole(1e6), device(0.0, 9e9)).unwrap();
        assert_eq!((found.rate, found.trials.len()), (0.0, 4));
    }
}
