//! Pictures of loads: latency by percentile of each run, and what a search found on its way.

use super::bench::Measured;
use super::search::{Found, Trial};
use super::track::{Outcome, Percentiles};
use crate::plot::{self, Curve, Labels, Limit, Line, Scale};

fn labels(title: &str, subtitle: &str, values: &str, along: &str) -> Labels {
    Labels { title: title.into(), subtitle: subtitle.into(), values: values.into(), along: along.into() }
}

/// A run's percentiles as a curve.
#[must_use]
pub fn curve(name: String, latency: &Percentiles) -> Curve {
    let Percentiles { p50, p90, p99, p999, .. } = *latency;
    Curve { name, points: vec![(0.5, p50), (0.9, p90), (0.99, p99), (0.999, p999)] }
}

/// What a run says of the box: without the generator's own pauses, as far as that leaves enough.
fn of_the_box(run: &Outcome) -> (&Percentiles, &'static str) {
    if run.decides() { (&run.undisturbed_us, "") } else { (&run.latency_us, ", with the generator's pauses") }
}

/// Latency of every run.
#[must_use]
pub fn of_runs(what: &str, runs: &[Measured]) -> Vec<(&'static str, String)> {
    let named = |run: &Measured| {
        let (latency, but) = of_the_box(&run.outcome);
        curve(format!("{:.0} packets/s{but}", run.rate()), latency)
    };
    let curves: Vec<Curve> = runs.iter().map(named).collect();
    let labels = labels("Latency through the box", what, "microseconds, from when a packet was due", "");
    vec![("load-latency", plot::latency(&labels, &curves, &[]))]
}

/// Loss and latency at every rate that was tried, worst of its tries.
#[must_use]
pub fn of_search(what: &str, no_drop: &Found, partial: &Found) -> Vec<(&'static str, String)> {
    let mut trials: Vec<_> =
        no_drop.trials.iter().chain(&partial.trials).filter(|t| !t.measured.generator_behind).collect();
    let lost_first = |a: &Trial, b: &Trial| b.measured.outcome.lost.cmp(&a.measured.outcome.lost);
    trials.sort_by(|a, b| a.rate.total_cmp(&b.rate).then_with(|| lost_first(a, b)));
    trials.dedup_by(|a, b| a.rate == b.rate);
    let loss = |lost: u64, sent: u64| 100.0 * lost as f64 / (sent as f64).max(1.0);
    let lost = trials.iter().map(|t| (t.rate, loss(t.measured.outcome.lost, t.measured.outcome.sent))).collect();
    let limit = Limit { name: "0.5 %: the partial-drop rate".into(), value: 0.5 };
    let losses = [Line { name: "lost".into(), points: lost }];
    let at = |name: &str, value: fn(&Percentiles) -> f64| Line {
        name: name.into(),
        points: trials.iter().map(|t| (t.rate, value(of_the_box(&t.measured.outcome).0))).collect(),
    };
    let latency = [at("p50", |l| l.p50), at("p99", |l| l.p99), at("p99.9", |l| l.p999)];
    let rate = "packets per second offered";
    let us = "microseconds, from when a packet was due";
    vec![
        (
            "load-loss",
            plot::lines(&labels("Loss by rate", what, "% lost", rate), Scale::Log, Scale::Linear, &losses, &[limit]),
        ),
        (
            "load-latency",
            plot::lines(&labels("Latency by rate", what, us, rate), Scale::Log, Scale::Log, &latency, &[]),
        ),
    ]
}
