//! `lc`, `wlc`, `sed`, `nq` and the comparison of `random-two-choices`: by counts.

use super::Candidate;
use super::share::Load;

/// What is to be least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Connections,
    WeightedConnections,
    Delay,
    NeverQueue,
}

/// IPVS's `ip_vs_dest_conn_overhead`: an active connection costs as much as 256 that are closing.
fn overhead(load: Load) -> u64 {
    (u64::from(load.active) << 8) + u64::from(load.inactive)
}

/// IPVS's `ip_vs_sed_dest_overhead`: with the one that is to come.
fn delay(load: Load) -> u64 {
    u64::from(load.active) + 1
}

/// The first of `candidates` with the least measure.
pub fn least(
    candidates: impl Iterator<Item = Candidate>,
    measure: Measure,
    seen: impl Fn(u16) -> Load,
) -> Option<Candidate> {
    let mut best: Option<(Candidate, u64)> = None;
    for candidate in candidates {
        let load = seen(candidate.index);
        if measure == Measure::NeverQueue && load.active == 0 {
            return Some(candidate);
        }
        let cost = match measure {
            Measure::Connections | Measure::WeightedConnections => overhead(load),
            Measure::Delay | Measure::NeverQueue => delay(load),
        };
        let weighs = measure != Measure::Connections;
        // Quotients compared crosswise: below 2^41 times 2^20.
        let is_less = |(other, least): &(Candidate, u64)| {
            if weighs { cost * u64::from(other.weight) < least * u64::from(candidate.weight) } else { cost < *least }
        };
        if best.as_ref().is_none_or(is_less) {
            best = Some((candidate, cost));
        }
    }
    best.map(|(candidate, _)| candidate)
}

/// The one with the shorter expected delay, the first if they are equal.
pub fn of_two(one: Candidate, other: Candidate, seen: impl Fn(u16) -> Load) -> Candidate {
    let cost = |candidate: Candidate| delay(seen(candidate.index));
    if cost(other) * u64::from(one.weight) < cost(one) * u64::from(other.weight) { other } else { one }
}
