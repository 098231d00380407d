//! A million flows that end at once, under packets and after a nap; and the first million of a fresh table.

use std::time::Duration;

use anyhow::ensure;
use penstock_dataplane::flow::{FIRST_EFFORT, MOST_EFFORT, Swept};

use super::events;
use super::gaps::{self, Clocks, Gaps, Watch};
use super::report::{Figure, Section};
use super::rig::Site;
use super::snapshot::{add_pauses, loaded};
use crate::pipeline_bench::measure;

/// Seconds an established flow may be silent, once flows are to end.
const SILENCE: u32 = 1;
/// Long enough for more to be due than a turn takes on, and for the core to be somebody else's.
const NAP: Duration = Duration::from_millis(20);
/// Turns after it that packets might come in.
const WAKING_TURNS: u32 = 4;

pub fn run(quick: bool) -> anyhow::Result<Section> {
    let flows = if quick { 10_000 } else { 1_000_000 };
    let fed = 1_000;
    let mut section = Section::new("expiry", format!("{flows} established flows end within a second or two"));
    let (mut quiet, mut with) = (Vec::new(), Vec::new());
    let (mut quiet_naps, mut naps) = (Vec::new(), Vec::new());
    let mut ended = Vec::new();
    for round in 1..=if quick { 1 } else { 3 } {
        eprintln!("  round {round}: opening {flows} flows");
        let mut site = Site::new(false, 100, 64);
        let mut turning = loaded(&mut site, flows, fed, None)?;
        measure::pin(None)?;
        gaps::insist();
        let seconds = Duration::from_secs_f64(if quick { 0.3 } else { 2.0 });
        gaps::warm_up(&mut turning, seconds / 4)?;
        // About as many turns as flows end in, spread over the run.
        let turns = u64::from(flows) * u64::from(Swept::Forgotten.effort()) / u64::from(MOST_EFFORT);
        let every = Duration::from_nanos(seconds.as_nanos() as u64 / turns.max(1));
        quiet.push(gaps::turn(&mut turning, seconds, Watch::Anywhere(1, every))?);
        site.timeouts.tcp_established = SILENCE;
        turning.mailbox.publish(site.compiled_view()?);
        let most = Duration::from_secs(30);
        let start = std::time::Instant::now();
        with.push(gaps::turn_until(&mut turning, most, Watch::Ends, |turning| {
            turning.stats.flows_established.get() <= u64::from(fed)
        })?);
        let left = turning.stats.flows_established.get();
        ensure!(left == u64::from(fed), "{left} flows are left, not the {fed} that have packets");
        ended.push(start.elapsed().as_secs_f64());
        turning.mailbox.reap();
        turning.ensure_no_drops()?;
        eprintln!("  round {round}: the same, the worker napping");
        let (quiet, with) = after_naps(flows, if quick { 20 } else { 150 })?;
        quiet_naps.push(quiet);
        naps.push(with);
    }
    events::add(&mut section, "turns that end flows", "turns", &with, &quiet);
    events::add(
        &mut section,
        "naps that flows end after",
        &format!("{WAKING_TURNS} turns after naps"),
        &naps,
        &quiet_naps,
    );
    add_pauses(&mut section, "expiry", &quiet, &with);
    section.add(Figure::of_runs("from the snapshot to the last one's end", &ended, "s").beside("1 s of it silence"));
    section.note(format!(
        "{fed} flows had packets all the time and stayed; no packet was dropped. Of naps ({NAP:?}, no packets) the \
         {WAKING_TURNS} turns after each are looked at: what a packet that came then would have waited."
    ));
    Ok(section)
}

/// A worker without packets sleeps, and has more to do than a turn takes on when it wakes: naps in which no
/// flow's time is up, and naps after which each turn ends as many as it can.
fn after_naps(flows: u32, naps: u32) -> anyhow::Result<(Gaps, Gaps)> {
    let mut site = Site::new(false, 100, 64);
    let mut turning = loaded(&mut site, flows, 0, None)?;
    measure::pin(None)?;
    gaps::warm_up(&mut turning, Duration::from_millis(100))?;
    let (mut quiet, mut with) = (Gaps::none(), Gaps::none());
    let mut clocks = Clocks::of_this_core();
    let mut nap = |turning: &mut _, gaps: &mut Gaps| {
        std::thread::sleep(NAP);
        gaps::wake_up(turning, gaps, &mut clocks, WAKING_TURNS);
    };
    (0..naps).for_each(|_| nap(&mut turning, &mut quiet));
    site.timeouts.tcp_established = SILENCE;
    turning.mailbox.publish(site.compiled_view()?);
    std::thread::sleep(Duration::from_secs(2 * u64::from(SILENCE)));
    let before = turning.stats.flows_established.get();
    (0..naps).for_each(|_| nap(&mut turning, &mut with));
    turning.mailbox.reap();
    let ended = before - turning.stats.flows_established.get();
    let of_turn = |turn: u32| (FIRST_EFFORT << turn).min(MOST_EFFORT) / Swept::Forgotten.effort();
    let most = u64::from(naps) * (0..WAKING_TURNS).map(|turn| u64::from(of_turn(turn))).sum::<u64>();
    ensure!(ended == most.min(u64::from(flows)), "{ended} flows ended in {naps} naps, not {most}");
    Ok((quiet, with))
}
