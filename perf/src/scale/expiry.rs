//! A million flows that end at once, under packets and after a nap; and the first million of a fresh table.

use std::time::Duration;

use anyhow::ensure;

use super::gaps::{self, Gaps};
use super::report::{Figure, Section};
use super::rig::Site;
use super::snapshot::{add_pauses, loaded};
use crate::pipeline_bench::measure;

/// Seconds an established flow may be silent, once flows are to end.
const SILENCE: u32 = 1;

pub fn run(quick: bool) -> anyhow::Result<Section> {
    let flows = if quick { 10_000 } else { 1_000_000 };
    let fed = 1_000;
    let mut section = Section::new("expiry", format!("{flows} established flows end within a second or two"));
    let (mut quiet, mut with, mut naps) = (Vec::new(), Vec::new(), Vec::new());
    let mut ended = Vec::new();
    for round in 1..=if quick { 1 } else { 3 } {
        eprintln!("  round {round}: opening {flows} flows");
        let mut site = Site::new(false, 100, 64);
        let mut turning = loaded(&mut site, flows, fed, None)?;
        measure::pin(None)?;
        gaps::insist();
        let seconds = Duration::from_secs_f64(if quick { 0.3 } else { 2.0 });
        gaps::turn(&mut turning, seconds / 4)?;
        quiet.push(gaps::turn(&mut turning, seconds)?);
        site.timeouts.tcp_established = SILENCE;
        turning.mailbox.publish(site.compiled_view()?);
        let most = Duration::from_secs(30);
        let start = std::time::Instant::now();
        let gaps =
            gaps::turn_until(&mut turning, most, |turning| turning.stats.flows_established.get() <= u64::from(fed))?;
        with.push(gaps);
        let left = turning.stats.flows_established.get();
        ensure!(left == u64::from(fed), "{left} flows are left, not the {fed} that have packets");
        ended.push(start.elapsed().as_secs_f64());
        turning.mailbox.reap();
        turning.ensure_no_drops()?;
        eprintln!("  round {round}: the same, the worker napping");
        naps.push(after_naps(flows)?);
    }
    add_pauses(&mut section, "expiry", &quiet, &with, false);
    section.add(Figure::of_runs("from the snapshot to the last one's end", &ended, "s").beside("1 s of it silence"));
    let worst: Vec<f64> = naps.iter().map(Gaps::worst_own_us).collect();
    section.add(
        Figure::of_runs("worst turn after naps of 50 ms, own time", &worst, "us")
            .at_most(super::snapshot::PAUSE_US)
            .beside("no packets; how long one that came then would wait"),
    );
    section.note(format!("{fed} flows had packets all the time and stayed; no packet was dropped."));
    Ok(section)
}

/// A worker without packets sleeps, and catches up with its sweep when it wakes.
fn after_naps(flows: u32) -> anyhow::Result<Gaps> {
    let mut site = Site::new(false, 100, 64);
    // A packet in ten seconds: none but the first.
    let latency = std::sync::Arc::new(std::sync::Mutex::new(gaps::histogram()));
    let mut turning = loaded(&mut site, flows, 1, Some((0.2, &latency)))?;
    measure::pin(None)?;
    gaps::turn(&mut turning, Duration::from_millis(100))?;
    site.timeouts.tcp_established = SILENCE;
    turning.mailbox.publish(site.compiled_view()?);
    let mut gaps = Gaps::none();
    let start = std::time::Instant::now();
    while turning.stats.flows_established.get() > 1 && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(50));
        gaps::catch_up(&mut turning, &mut gaps);
    }
    turning.mailbox.reap();
    let left = turning.stats.flows_established.get();
    ensure!(left <= 1, "{left} flows are left");
    Ok(gaps)
}
