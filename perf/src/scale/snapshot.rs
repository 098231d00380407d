//! Snapshots of 10,000 services over 500 nodes: what one costs to compile and to keep, and what packets wait
//! for when it comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use core_affinity::CoreId;
use hdrhistogram::Histogram;
use penstock_configs::desired::{Protocol, Service};
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::publish::Mailbox;
use penstock_dataplane::stats::WorkerStats;

use super::events;
use super::gaps::{self, Feed, Gaps, Latencies, Watch};
use super::report::{Figure, Section};
use super::rig::{self, Cost, Member, Site, Turning};
use super::turns;
use crate::pipeline_bench::measure;
use crate::pipeline_bench::packets;
use crate::plot::{self, Curve, Labels, Limit};

const SERVICES: u32 = 10_000;
const NODES: u32 = 500;
const MEBI: f64 = 1024.0 * 1024.0;
/// What no packet may wait longer than for a publication, expiry or a timer.
pub const PAUSE_US: f64 = 50.0;

pub fn sizes(quick: bool) -> (u32, u32) {
    if quick { (SERVICES / 100, NODES / 100) } else { (SERVICES, NODES) }
}

/// Compile time, memory, and the pause of a publication.
pub fn publication(quick: bool) -> anyhow::Result<Section> {
    let (services, nodes) = sizes(quick);
    let mut section = Section::new("snapshot", format!("{services} services over one set of {nodes} nodes"));
    let mut site = Site::new(false, services, nodes);
    compile_costs(&mut section, &mut site, quick)?;
    let flows = if quick { 10_000 } else { 1_000_000 };
    pauses(&mut section, site, flows, quick)?;
    if !quick {
        turns::add(&mut section)?;
    }
    Ok(section)
}

fn compile_costs(section: &mut Section, site: &mut Site, quick: bool) -> anyhow::Result<()> {
    let before = rig::resident()?;
    let (first, cost) = rig::timed(|| site.compile())?;
    let one = rig::resident()?.saturating_sub(before) as f64 / MEBI;
    section.add(Cost::figure("compile, from nothing", &[cost]));
    let repeat = if quick { 1 } else { 5 };
    let (mut unchanged, mut flap) = (Vec::new(), Vec::new());
    let mut most: f64 = 0.0;
    for run in 0..repeat {
        unchanged.push(rig::timed(|| site.compile())?.1);
        site.flap(run, false);
        let (tables, cost) = rig::timed(|| site.compile())?;
        flap.push(cost);
        // The first is still held, as workers hold theirs.
        most = most.max(rig::resident()?.saturating_sub(before) as f64 / MEBI);
        drop(tables);
    }
    section.add(Cost::figure("compile, nothing changed", &unchanged));
    section.add(Cost::figure("compile, one node's flap", &flap));
    let mut desired = site.owners["scale"].as_ref().clone();
    let new = Service::at("one-more", packets::vip(site.v6, site.services), 443, Protocol::Tcp);
    desired.services.push(Service { set: Some(desired.sets[0].name.clone()), target_port: Some(30_000), ..new });
    site.services += 1;
    site.owners.insert("scale".into(), Arc::new(desired));
    section.add(Cost::figure("compile, one service more", &[rig::timed(|| site.compile())?.1]));
    section
        .add(Figure::new("memory of a snapshot", one, "MiB").at_most(64.0).beside("resident, with the compiler's own"));
    section.add(Figure::new("memory, old and new", most, "MiB").beside("while workers still run the old one"));
    drop(first);
    Ok(())
}

/// A worker with established flows, its sockets fed with packets of some of them.
pub fn loaded(
    site: &mut Site,
    flows: u32,
    fed: u32,
    pace: Option<(f64, &Arc<Mutex<Latencies>>)>,
) -> anyhow::Result<Turning<Feed>> {
    let room = Capacity { established: flows, embryonic: 1 << 14 };
    let mut member = Member::new(site, room, 0, 1)?;
    drop(member.pipeline.adopt(site.compiled_view()?));
    let (mut forward, mut reverse) = (Vec::new(), Vec::new());
    member.establish(0..u64::from(flows), |n, from_client, from_node| {
        if n < u64::from(fed) {
            forward.push(from_client);
            reverse.push(from_node);
        }
    })?;
    ensure!(member.flows() == flows, "{} flows were opened instead of {flows}", member.flows());
    // A flow's packets do not come in one turn from both its ends: as many flows as packets are touched.
    let ports = [(forward, 0), (reverse, fed as usize / 2)].map(|(packets, first)| {
        let feed = Feed::new(packets.into(), first);
        match pace {
            Some((per_second, latency)) => feed.paced(per_second / 2.0, Arc::clone(latency)),
            None => feed,
        }
    });
    Turning::alone(member, rig::pool(), ports)
}

/// Publishes a snapshot every `every`, a node down and up in turn, from a thread of its own that is kept off the
/// worker's core, as the dataplane's housekeeping is.
pub struct Publisher {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<(Site, u32)>>,
}

impl Publisher {
    /// Returns when the thread is where it stays: it comes to life on this thread's core, with its priority, and
    /// would have its slice there.
    ///
    /// # Errors
    /// The thread ended at once.
    pub fn start(
        site: Site,
        mailbox: Arc<Mailbox>,
        stats: Arc<WorkerStats>,
        every: Duration,
        core: CoreId,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (settled, is_settled) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            ensure!(core_affinity::set_for_current(core), "core {} can't be pinned to", core.id);
            gaps::yield_to_others();
            let _ = settled.send(());
            Self::publish(site, &mailbox, &stats, every, &stopped)
        });
        is_settled.recv().context("the publisher can't be kept off the worker's core")?;
        Ok(Self { stop, thread })
    }

    fn publish(
        mut site: Site,
        mailbox: &Mailbox,
        stats: &WorkerStats,
        every: Duration,
        stopped: &AtomicBool,
    ) -> anyhow::Result<(Site, u32)> {
        let mut published = 0;
        let mut next = Instant::now() + every / 2;
        while !stopped.load(Ordering::Relaxed) {
            if Instant::now() >= next {
                site.flap(published % site.nodes, published % 2 == 1);
                let view = site.compiled_view()?;
                let number = view.number;
                mailbox.publish(view);
                while stats.view.get() != number && !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_micros(200));
                }
                published += 1;
                next += every;
            }
            mailbox.reap();
            std::thread::sleep(Duration::from_millis(5));
        }
        mailbox.reap();
        Ok((site, published))
    }

    /// The site again, and how many snapshots there were.
    pub fn stop(self) -> anyhow::Result<(Site, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the publisher panicked")?
    }
}

/// Pins this thread, the worker's, to the last core. Returns the first, for what is not the worker: threads this one
/// starts are born to its core, and see no other.
pub fn pin_worker() -> anyhow::Result<CoreId> {
    let cores = core_affinity::get_core_ids().context("the kernel does not say which cores there are")?;
    let first = *cores.first().context("no cores")?;
    measure::pin(None)?;
    Ok(first)
}

/// Turns that a publication counts as touching: the first packets of tens of thousands of flows come in them,
/// each of which is looked up anew.
const TOUCHED_TURNS: u32 = 256;

fn pauses(section: &mut Section, mut site: Site, flows: u32, quick: bool) -> anyhow::Result<()> {
    eprintln!("  opening {flows} flows");
    let mut turning = loaded(&mut site, flows, flows.min(100_000), None)?;
    let apart = pin_worker()?;
    gaps::insist();
    let (rounds, seconds, every) = if quick { (1, 0.5, 0.02) } else { (5, 10.0, 0.1) };
    let (round_time, every) = (Duration::from_secs_f64(seconds), Duration::from_secs_f64(every));
    gaps::warm_up(&mut turning, round_time / 4)?;
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    let mut snapshots = 0;
    for round in 1..=rounds {
        eprintln!("  round {round} of {rounds}: without snapshots, and with one every {every:?}");
        quiet.push(gaps::turn(&mut turning, round_time, Watch::Anywhere(TOUCHED_TURNS, every))?);
        let (mailbox, stats) = (Arc::clone(&turning.mailbox), Arc::clone(&turning.stats));
        let publisher = Publisher::start(site, mailbox, stats, every, apart)?;
        busy.push(gaps::turn(&mut turning, round_time, Watch::Views(TOUCHED_TURNS))?);
        let published;
        (site, published) = publisher.stop()?;
        snapshots += published;
        // What came last is taken up before the next quiet run, and its round of the sweep is over.
        gaps::warm_up(&mut turning, Duration::from_secs_f64(if quick { 0.1 } else { 2.0 }))?;
    }
    turning.ensure_no_drops()?;
    ensure!(snapshots > 0, "no snapshot was published");
    events::add(section, "publications", &format!("{TOUCHED_TURNS} turns"), &busy, &quiet);
    add_pauses(section, "publications", &quiet, &busy);
    section.note(format!(
        "The worker turned with {flows} flows and packets of established ones; {snapshots} snapshots came, a node down \
         or up in each, so that every service changed and every flow was looked at anew. Of each the \
         {TOUCHED_TURNS} turns from the one that takes it up on are looked at."
    ));
    Ok(())
}

/// The gaps of runs with an event, those of runs without it beside: what the machine makes of them.
pub fn add_pauses(section: &mut Section, events: &str, quiet: &[Gaps], with: &[Gaps]) {
    let worst = |gaps: &[Gaps], of: fn(&Gaps) -> f64| gaps.iter().map(of).collect::<Vec<_>>();
    let [own, own_quiet] = [with, quiet].map(|gaps| worst(gaps, Gaps::worst_own_us));
    let [wall, wall_quiet] = [with, quiet].map(|gaps| worst(gaps, Gaps::worst_wall_us));
    let median = |values: &[f64]| super::report::short(measure::Spread::of(values).median);
    for (clock, with, without) in [("own time", own, own_quiet), ("wall clock", wall, wall_quiet)] {
        section.add(
            Figure::of_runs(format!("worst gap of any turn with {events}, {clock}"), &with, "us")
                .beside(format!("without: {}", median(&without))),
        );
    }
    let interrupted: u64 = with.iter().chain(quiet).map(|gaps| gaps.interrupted).sum();
    let ticked: u64 = with.iter().chain(quiet).map(|gaps| gaps.ticked).sum();
    let slept: u64 = with.iter().chain(quiet).map(|gaps| gaps.slept).sum();
    let turns: u64 = with.iter().chain(quiet).map(|gaps| gaps.wall.len()).sum();
    let ticks = match ticked {
        0 => "Interrupts were not counted here (that takes root, and a kernel with trace points): their time is among the \
              worker's own."
            .to_owned(),
        _ => format!(
            "So are {ticked} in or just before which the core was interrupted (by the timer mostly), and which kept it \
             otherwise."
        ),
    };
    section.note(format!(
        "Of {turns} turns {interrupted} lost their core to another process: those, and the few after each that found cold \
         caches, are in the wall clock's figures only. {ticks} The thread slept {slept} times by itself."
    ));
    let at = |gaps: &[Gaps], quantile: f64| {
        let values: Vec<f64> = gaps.iter().map(|g| g.own.value_at_quantile(quantile) as f64 / 1e3).collect();
        measure::Spread::of(&values).median
    };
    section.add(
        Figure::new(format!("99.99 % of gaps with {events}, own time"), at(with, 0.9999), "us")
            .beside(format!("without: {}", super::report::short(at(quiet, 0.9999)))),
    );
    let labels = Labels {
        title: format!("Gaps between two turns of a worker: {events}"),
        subtitle: format!("{}; the worker's own time, {} runs each", section.title, with.len()),
        values: "microseconds".into(),
        along: String::new(),
    };
    let curves = [
        curve("without, all turns", quiet.iter().map(|gaps| &gaps.own)),
        curve(&format!("with {events}, all turns"), with.iter().map(|gaps| &gaps.own)),
        curve("worst of each window without", quiet.iter().map(|gaps| &gaps.windows)),
        curve(&format!("worst of each of the {events}"), with.iter().map(|gaps| &gaps.windows)),
    ];
    let limit = Limit { name: format!("target: {PAUSE_US} us"), value: PAUSE_US };
    section.charts.push((format!("scale-{}-gaps", section.name), plot::latency(&labels, &curves, &[limit])));
}

/// Percentiles of several runs taken together, microseconds, as far as there are values to tell them by.
pub fn curve<'a>(name: &str, runs: impl Iterator<Item = &'a Histogram<u64>>) -> Curve {
    let all = events::all(runs);
    let quantiles = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999];
    let told = quantiles.into_iter().filter(|quantile| (1.0 - quantile) * all.len() as f64 >= 1.0);
    Curve { name: name.into(), points: told.map(|q| (q, all.value_at_quantile(q) as f64 / 1e3)).collect() }
}
