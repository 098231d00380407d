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
        Self { loss: 0.005, resolution: 0.02, tries: 1 }
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

/// Searches between `low` and `high` packets per second. `trial` measures at a rate: the books, and
/// whether the generator fell behind.
///
/// # Errors
/// The first of a trial.
pub fn search<E>(
    goal: Goal,
    low: f64,
    high: f64,
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
    let (mut carried_at, mut lost_at) = (0.0, high);
    let (carried, mut behind) = measure(high, &mut trials)?;
    if carried {
        return Ok(Found { rate: high, generator_limited: false, trials });
    }
    let (carried, low_behind) = measure(low, &mut trials)?;
    if !carried {
        return Ok(Found { rate: 0.0, generator_limited: low_behind, trials });
    }
    carried_at = f64::max(carried_at, low);
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
    use crate::traffic::track::Percentiles;

    fn outcome(sent: u64, lost: u64) -> Outcome {
        Outcome { sent, received: sent - lost, lost, duplicates: 0, reordered: 0, latency_us: Percentiles::default() }
    }

    /// A device that carries `limit` and loses the rest.
    fn device(limit: f64, generator: f64) -> impl FnMut(f64) -> Result<(Outcome, bool), Infallible> {
        move |rate| {
            let sent = rate.min(generator);
            Ok((outcome(sent as u64, (sent - limit).max(0.0) as u64), rate > generator))
        }
    }

    #[test]
    fn the_limit_is_found_within_the_resolution() {
        let found = search(Goal::no_drop(), 1e4, 5e6, device(1_234_567.0, 9e9)).unwrap();
        assert!(found.rate <= 1_234_567.0 && found.rate > 1_234_567.0 * 0.97, "{}", found.rate);
        assert!(!found.generator_limited);
        let partial = search(Goal::partial_drop(), 1e4, 5e6, device(1_234_567.0, 9e9)).unwrap();
        assert!(partial.rate > found.rate * 0.99, "{} {}", partial.rate, found.rate);
    }

    #[test]
    fn a_generator_that_gives_out_first_is_said() {
        let found = search(Goal::no_drop(), 1e4, 5e6, device(4e6, 2e6)).unwrap();
        assert!(found.generator_limited && found.rate <= 2e6 && found.rate > 1.9e6, "{}", found.rate);
    }

    #[test]
    fn one_stray_loss_does_not_halve_a_rate() {
        let mut strays = 0;
        let found = search(Goal::no_drop(), 1e4, 1e6, |rate| {
            strays += 1;
            Ok::<_, Infallible>((outcome(rate as u64, u64::from(strays == 1)), false))
        });
        assert_eq!(found.unwrap().rate, 1e6);
    }

    #[test]
    fn a_dead_device_is_zero() {
        let found = search(Goal::no_drop(), 1e4, 1e6, device(0.0, 9e9)).unwrap();
        assert_eq!((found.rate, found.trials.len()), (0.0, 4));
    }
}
