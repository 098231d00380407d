//! Latency of packets at a fixed rate while a snapshot comes every second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use penstock_dataplane::clock::Now;

use super::gaps::{self, Feed, Latencies, Watch};
use super::report::{Figure, Section, short};
use super::rig::{Site, Turning};
use super::snapshot::{PAUSE_US, Publisher, curve, loaded, pin_worker, sizes};
use crate::pipeline_bench::measure::Spread;
use crate::plot::{self, Labels, Limit};

/// Packets that a snapshot may hold up: those that were due from a little before it was seen to be taken up (which is
/// looked for every 64 turns) until a millisecond later. Most such stretches have no tick of the timer in them.
const BEFORE_NS: u64 = 250_000;
const BEHIND_NS: u64 = 1_000_000;
/// Without snapshots as long a stretch is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What one run saw.
struct Run {
    latencies: Latencies,
    /// The worst packet of each stretch looked at, microseconds.
    worst: Vec<f64>,
}

pub fn run(quick: bool) -> anyhow::Result<Section> {
    let (services, nodes) = sizes(quick);
    let (flows, rate) = if quick { (10_000, 100_000.0) } else { (100_000, 1_000_000.0) };
    let mut section = Section::new(
        "reload",
        format!("latency at {rate} packets/s with a snapshot of {services} services x {nodes} nodes every second"),
    );
    let mut site = Site::new(false, services, nodes);
    let latencies = Arc::new(Mutex::new(Latencies::default()));
    let mut turning = loaded(&mut site, flows, flows, Some((rate, &latencies)))?;
    let apart = pin_worker()?;
    gaps::insist();
    let (rounds, seconds) = if quick { (1, 0.5) } else { (5, 3.0) };
    let time = Duration::from_secs_f64(seconds);
    gaps::warm_up(&mut turning, Duration::from_secs_f64(0.2))?;
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("  round {round} of {rounds}: without and with a snapshot a second");
        quiet.push(measure(&mut turning, &latencies, time, Some(LOOK_EVERY))?);
        let (mailbox, stats) = (Arc::clone(&turning.mailbox), Arc::clone(&turning.stats));
        let every = Duration::from_secs_f64(if quick { 0.2 } else { 1.0 });
        let publisher = Publisher::start(site, mailbox, stats, every, apart)?;
        // What fell due while the thread came to life is not a reload's.
        gaps::warm_up(&mut turning, Duration::from_millis(50))?;
        busy.push(measure(&mut turning, &latencies, time, None)?);
        site = publisher.stop()?.0;
        gaps::warm_up(&mut turning, time / 2)?;
    }
    turning.ensure_no_drops()?;
    ensure!(busy.iter().any(|run| !run.worst.is_empty()), "no snapshot was taken up");
    add(&mut section, &quiet, &busy);
    Ok(section)
}

/// Turns for a while. The stretches looked at begin with each snapshot, or every so often.
fn measure(
    turning: &mut Turning<Feed>,
    latencies: &Mutex<Latencies>,
    time: Duration,
    every: Option<Duration>,
) -> anyhow::Result<Run> {
    let take = || std::mem::take(&mut *latencies.lock().unwrap_or_else(PoisonError::into_inner));
    take();
    let begin = Now::read().ns;
    let mut starts: Vec<u64> = match every {
        Some(every) => (begin..begin + time.as_nanos() as u64).step_by(every.as_nanos() as usize).collect(),
        None => Vec::new(),
    };
    let mut view = turning.stats.view.get();
    gaps::turn_until(turning, time, Watch::Views(1), |turning| {
        let before = std::mem::replace(&mut view, turning.stats.view.get());
        if before != view && every.is_none() {
            starts.push(Now::read().ns);
        }
        false
    })?;
    let latencies = take();
    let worst = |start: &u64| latencies.worst_due(start.saturating_sub(BEFORE_NS), start + BEHIND_NS);
    let worst = starts.iter().filter_map(worst).map(|ns| ns as f64 / 1e3).collect();
    Ok(Run { latencies, worst })
}

fn add(section: &mut Section, quiet: &[Run], busy: &[Run]) {
    let worst = |runs: &[Run]| -> Vec<f64> { runs.iter().flat_map(|run| run.worst.iter().copied()).collect() };
    let (with, without) = (worst(busy), worst(quiet));
    section.add(
        Figure::of_runs("worst packet of the millisecond behind a snapshot, median", &with, "us")
            .at_most(PAUSE_US)
            .beside(format!(
                "of {} snapshots; without, of {} milliseconds: {}",
                with.len(),
                without.len(),
                short(Spread::of(&without).median)
            )),
    );
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let at = |run: &Run| run.latencies.all.value_at_quantile(quantile) as f64 / 1e3;
        let [with, without] = [busy, quiet].map(|runs| runs.iter().map(at).collect::<Vec<_>>());
        let without = Spread::of(&without);
        section.add(Figure::of_runs(format!("{name} of all, reloading every second"), &with, "us").beside(format!(
            "without: {} ({}..{})",
            short(without.median),
            short(without.lowest),
            short(without.highest)
        )));
    }
    section.note(
        "From when a packet was due to when the turn that sent it was over, over ports in memory, by the wall clock: where \
         a machine pauses for longer than a snapshot takes, the percentiles of all are the machine's.",
    );
    let labels = Labels {
        title: "Latency while reloading every second".into(),
        subtitle: section.title.clone(),
        values: "microseconds, from when a packet was due".into(),
        along: String::new(),
    };
    let all = |runs: &[Run], name| curve(name, runs.iter().map(|run| &run.latencies.all));
    let curves = [all(quiet, "no reload"), all(busy, "a reload every second")];
    let limit = Limit { name: "50 us".into(), value: PAUSE_US };
    section.charts.push(("scale-reload-latency".into(), plot::latency(&labels, &curves, &[limit])));
}
