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
    #[serde(flatten)]
    pub measured: Tried,
}

/// What a trial measured: the books, and what the lab's own ends had a part in.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Tried {
    pub outcome: Outcome,
    /// The generator itself did not reach the rate.
    pub generator_behind: bool,
    /// What the rings of the lab's ends had no room for.
    pub lab_lost: u64,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Found {
    /// The highest rate that was carried; 0: none was.
    pub rate: f64,
    /// The lab's ends gave out before the device did: the device carries at least `rate`.
    pub lab_limited: bool,
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

/// Searches in a range; `trial` measures at a rate.
///
/// # Errors
/// The first of a trial.
pub fn search<E>(goal: Goal, range: Range, mut trial: impl FnMut(f64) -> Result<Tried, E>) -> Result<Found, E> {
    let mut trials = Vec::new();
    // Whether a rate was carried, and if not, whether that may be the lab's fault: then nothing is known of the device.
    let mut measure = |rate: f64, trials: &mut Vec<Trial>| {
        let mut by_lab = false;
        for _ in 0..goal.tries.max(1) {
            let measured = trial(rate)?;
            let Tried { ref outcome, generator_behind, lab_lost } = measured;
            let carried = !generator_behind && outcome.lost as f64 <= goal.loss * outcome.sent as f64;
            by_lab |= generator_behind || lab_lost > 0;
            trials.push(Trial { rate, carried, measured });
            if carried {
                return Ok((true, false));
            }
        }
        Ok((false, by_lab))
    };
    let (mut carried_at, mut lost_at) = (range.low, range.high);
    let (carried, mut lab_limited) = measure(lost_at, &mut trials)?;
    if carried {
        return Ok(Found { rate: lost_at, lab_limited: false, trials });
    }
    if !range.low_is_carried {
        let (carried, lab_limited) = measure(carried_at, &mut trials)?;
        if !carried {
            return Ok(Found { rate: 0.0, lab_limited, trials });
        }
    }
    while lost_at - carried_at > goal.resolution * lost_at {
        let rate = f64::midpoint(carried_at, lost_at);
        let (carried, by_lab) = measure(rate, &mut trials)?;
        if carried {
            carried_at = rate;
        } else {
            (lost_at, lab_limited) = (rate, by_lab);
        }
    }
    Ok(Found { rate: carried_at, lab_limited, trials })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn tried(sent: u64, lost: u64) -> Tried {
        Tried { outcome: Outcome { sent, received: sent - lost, lost, ..Outcome::default() }, ..Tried::default() }
    }

    /// A device that carries `limit` and loses the rest.
    fn device(limit: f64, generator: f64) -> impl FnMut(f64) -> Result<Tried, Infallible> {
        move |rate| {
            let sent = rate.min(generator);
            let measured = tried(sent as u64, (sent - limit).max(0.0) as u64);
            Ok(Tried { generator_behind: rate > generator, ..measured })
        }
    }

    fn whole(high: f64) -> Range {
        Range { low: 1e4, high, low_is_carried: false }
    }

    #[test]
    fn the_limit_is_found_within_the_resolution() {
        let found = search(Goal::no_drop(), whole(5e6), device(1_234_567.0, 9e9)).unwrap();
        assert!(found.rate <= 1_234_567.0 && found.rate > 1_234_567.0 * 0.97, "{}", found.rate);
        assert!(!found.lab_limited);
        let partial = search(Goal::partial_drop(), whole(5e6), device(1_234_567.0, 9e9)).unwrap();
        assert!(partial.rate > found.rate * 0.99, "{} {}", partial.rate, found.rate);
    }

    /// A rate carried without loss is carried with hardly any: two figures of one box do not contradict each other.
    #[test]
    fn what_is_known_to_be_carried_is_not_tried_again() {
        let range = Range { low: 1e6, high: 5e6, low_is_carried: true };
        let found = search(Goal::partial_drop(), range, |rate| {
            assert!(rate > 1e6, "{rate} is known");
            Ok::<_, Infallible>(tried(rate as u64, rate as u64 / 10))
        });
        assert_eq!(found.unwrap().rate, 1e6);
    }

    #[test]
    fn a_generator_that_gives_out_first_is_said() {
        let found = search(Goal::no_drop(), whole(5e6), device(4e6, 2e6)).unwrap();
        assert!(found.lab_limited && found.rate <= 2e6 && found.rate > 1.9e6, "{}", found.rate);
    }

    /// Above 2 Mpps the sender's own ring loses an answer each time; the device nothing.
    fn ring_of_the_sender(rate: f64) -> Result<Tried, Infallible> {
        let lost = u64::from(rate > 2e6);
        Ok(Tried { lab_lost: lost, ..tried(rate as u64, lost) })
    }

    #[test]
    fn what_the_labs_own_rings_lose_is_not_said_of_the_device() {
        let found = search(Goal::no_drop(), whole(5e6), ring_of_the_sender).unwrap();
        assert!(found.lab_limited && found.rate <= 2e6, "{} {}", found.rate, found.lab_limited);
        // A rate that is carried all the same is carried.
        let found = search(Goal::partial_drop(), whole(5e6), ring_of_the_sender).unwrap();
        assert_eq!((found.rate, found.lab_limited), (5e6, false));
        // Nor is it where the next try, without it, fails: one stray loss is not the device's.
        let mut tries = 0;
        let found = search(Goal::no_drop(), whole(1e6), |rate| {
            tries += 1;
            let lost = u64::from(rate > 5e5);
            Ok::<_, Infallible>(Tried { lab_lost: if tries % 2 == 1 { lost } else { 0 }, ..tried(rate as u64, lost) })
        });
        assert!(found.unwrap().lab_limited);
    }

    #[test]
    fn one_stray_loss_does_not_halve_a_rate() {
        let mut strays = 0;
        let found = search(Goal::no_drop(), whole(1e6), |rate| {
            strays += 1;
            Ok::<_, Infallible>(tried(rate as u64, u64::from(strays == 1)))
        });
        assert_eq!(found.unwrap().rate, 1e6);
    }

    #[test]
    fn a_dead_device_is_zero() {
        let found = search(Goal::no_drop(), whole(1e6), device(0.0, 9e9)).unwrap();
        assert_eq!((found.rate, found.trials.len()), (0.0, 4));
    }
}
