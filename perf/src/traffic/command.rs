//! `penstock-perf load`: a load through a box in a lab, as a table or JSON.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::bench::{Bench, Measured, Spec};
use super::charts;
use super::ends::{self, Generator, How, SinkBy};
use super::load::{NUMBERS, NodeSide};
use super::mix::Mix;
use super::packet::Transport;
use super::popularity::Popularity;
use super::precedence::Precedence;
use super::search::{Found, Goal, Range, Tried, search};
use super::track::Percentiles;
use crate::config;
use crate::plot;
use crate::privilege;

/// The lowest rate a search tries.
const LOWEST: f64 = 1_000.0;
/// The highest, by what the ends do by themselves.
const HIGHEST: f64 = 1.5;
/// How long the ends are tried by themselves.
const ALONE: Duration = Duration::from_millis(500);
/// Above this share of what the ends do by themselves, a figure is as much theirs as the box's.
const SUSPECT: f64 = 0.9;

#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Bytes on the wire (64 to 1518, the frame check sequence included), or imix
    #[arg(long, default_value = "64")]
    size: Mix,
    /// UDP, or data of TCP connections that stay open
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// IPv6
    #[arg(long, short = '6')]
    v6: bool,
    #[arg(long, default_value_t = 1000)]
    flows: u32,
    /// uniform, zipf or zipf:S
    #[arg(long, default_value = "uniform")]
    popularity: Popularity,
    /// What makes and takes the packets: AF_XDP sockets, or live frames and a counting program in the kernel
    #[arg(long, value_enum, default_value_t = Generator::Live)]
    generator: Generator,
    /// What counts or answers behind AF_XDP senders: sockets of its own, which want a core, or the kernel
    #[arg(long, value_enum, default_value_t = SinkBy::Kernel)]
    sink: SinkBy,
    /// Cores that make live frames, from core 0 on; a veth takes each one's packets to a queue of its own
    #[arg(long, default_value_t = 1)]
    generator_cores: u16,
    /// Packets per second; default: flat out
    #[arg(long, conflicts_with = "search")]
    rate: Option<f64>,
    /// At this share of the highest rate with at most 0.5 % of loss, which is looked for first: 50%
    #[arg(long, conflicts_with_all = ["search", "rate"])]
    at: Option<Percent>,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Nodes only take packets: one direction, and flows stay unanswered
    #[arg(long)]
    one_way: bool,
    /// Look for the highest rate without loss, and with at most 0.5 % (RFC 2544 section 26.1)
    #[arg(long)]
    search: bool,
    /// Receive queues of each of the box's interfaces, and its workers
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// Runs of each measurement; the median by rate is shown, with the lowest and the highest
    #[arg(long, default_value_t = 3)]
    runs: usize,
    #[arg(long)]
    json: bool,
    /// Also draw charts (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

/// Part of a hundred, above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Percent(f64);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
        let share = number.filter(|percent: &f64| *percent > 0.0 && *percent <= 100.0).map(Self);
        share.ok_or_else(|| format!("{text:?} is no share of the maximum: 50%"))
    }
}

/// What a command found, for `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    load: String,
    generator: Generator,
    /// Packets per second of the ends with nothing between them.
    ends_alone: f64,
    /// What its figures are not, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// Of `--search` and `--at`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    found: Vec<&'a Found>,
    /// By rate, the lowest first.
    #[serde(skip_serializing_if = "<[Measured]>::is_empty")]
    runs: &'a [Measured],
}

/// # Errors
/// No lab can be made here, or the box does not start.
pub fn command(args: &LoadArgs) -> Result<()> {
    if let Some(reason) = privilege::missing() {
        bail!("{reason}");
    }
    if let Some(directory) = &args.plot {
        plot::prepare(directory)?;
    }
    args.numbers_last(args.rate.unwrap_or(0.0))?;
    if let Some(note) = args.shared_cores(config::cores()) {
        eprintln!("{note}");
    }
    let _precedence = Precedence::take();
    let spec = args.spec();
    eprintln!("the ends by themselves, {} s", ALONE.as_secs_f64());
    let alone = ends::by_themselves(args.how(), &spec, args.queues, ALONE)?.rate();
    let searched = args.search || args.at.is_some();
    args.numbers_last(args.rate.unwrap_or(if searched { HIGHEST * alone } else { alone }))?;
    let bench = Bench::start(args.queues, args.queues, args.flows, |_| {})?;
    eprintln!("opening {} flows", args.flows);
    bench.open_flows(args.transport, &spec)?;
    let duration = Duration::from_secs_f64(args.seconds);
    let look = |goal, carried: f64| {
        let range = Range { low: carried.max(LOWEST), high: HIGHEST * alone, low_is_carried: carried > 0.0 };
        search(goal, range, |rate| trial(args, &bench, &spec, rate, duration))
    };
    if args.search {
        let no_drop = look(Goal::no_drop(), 0.0)?;
        let partial = look(Goal::partial_drop(), no_drop.rate)?;
        args.report_search(alone, &no_drop, &partial)?;
        if let Some(directory) = &args.plot {
            plot::write(directory, &charts::of_search(&args.what(), &no_drop, &partial))?;
        }
        return Ok(());
    }
    let found = args.at.map(|_| look(Goal::partial_drop(), 0.0)).transpose()?;
    if let Some(found) = &found {
        ensure!(
            found.rate > 0.0,
            "not even {LOWEST} packets/s are carried with at most 0.5 % of loss: nothing to take a share of"
        );
    }
    let rate = match (&found, args.at) {
        (Some(found), Some(Percent(percent))) => Some(found.rate * percent / 100.0),
        _ => args.rate,
    };
    let mut runs = Vec::new();
    for run in 1..=args.runs.max(1) {
        eprintln!("run {run} of {}, {} s", args.runs.max(1), args.seconds);
        runs.push(bench.measure_as(args.how(), &spec, rate, duration)?);
    }
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    args.report(alone, found.as_ref(), &runs)?;
    if let Some(directory) = &args.plot {
        plot::write(directory, &charts::of_runs(&args.what(), &runs))?;
    }
    Ok(())
}

fn trial(args: &LoadArgs, bench: &Bench, spec: &Spec, rate: f64, duration: Duration) -> Result<Tried> {
    let measured = bench.measure_as(args.how(), spec, Some(rate), duration)?;
    let (generator_behind, lab_lost) = (measured.sent.behind, measured.lab_lost());
    let outcome = measured.outcome;
    let behind = if generator_behind { ", the generator fell behind" } else { "" };
    let by_lab = if lab_lost > 0 { format!(", {lab_lost} in the lab's own rings") } else { String::new() };
    eprintln!("  {rate:>9.0} packets/s: {} of {} lost{by_lab}{behind}", outcome.lost, outcome.sent);
    Ok(Tried { outcome, generator_behind, lab_lost })
}

/// Where the lab's ends gave out first.
fn limit(found: &Found) -> &'static str {
    if found.lab_limited { "; beyond it the lab's own ends give out, not the box" } else { "" }
}

/// Said of a rate that may be the ends' as much as the box's.
fn suspicion(rate: f64, alone: f64) -> Option<&'static str> {
    (rate > SUSPECT * alone).then_some("  The ends alone carry hardly more: the box may carry more than they can show.")
}

fn percentiles(us: &Percentiles) -> String {
    let Percentiles { p50, p90, p99, p999, max } = us;
    format!("p50 {p50:.1}  p90 {p90:.1}  p99 {p99:.1}  p99.9 {p999:.1}  max {max:.1}")
}

impl LoadArgs {
    fn spec(&self) -> Spec {
        Spec {
            mix: self.size.clone(),
            v6: self.v6,
            flows: self.flows,
            popularity: self.popularity,
            side: if self.one_way { NodeSide::Count } else { NodeSide::Answer },
            seed: 1,
        }
    }

    /// A packet's number must not come round: it would be a duplicate of another's.
    fn numbers_last(&self, rate: f64) -> Result<()> {
        let most = NUMBERS as f64 / rate;
        ensure!(self.seconds < most, "at {rate:.0} packets/s their numbers (32 bits) last for {most:.0} s: --seconds");
        Ok(())
    }

    /// Said where senders and workers are not on cores of their own.
    fn shared_cores(&self, cores: u16) -> Option<String> {
        let senders = if self.generator == Generator::Live { self.generator_cores.max(1) } else { 1 };
        let (workers, most) = (self.queues, u32::from(cores));
        let shared = u32::from(senders) + u32::from(workers) > most;
        shared.then(|| {
            format!("NOTE: {senders} sender(s) and {workers} worker(s) share {cores} cores: these are no figures of the box alone")
        })
    }

    fn how(&self) -> How {
        How { generator: self.generator, transport: self.transport, sink: self.sink, cores: self.generator_cores }
    }

    /// As it is on the wire, where every packet holds a stamp.
    fn on_wire(&self) -> Mix {
        self.size.at_least(self.transport.least_on_wire(self.v6))
    }

    fn what(&self) -> String {
        format!(
            "{} over IPv{}, {} bytes, {} flows ({}), {}, {} worker(s), by {}",
            self.transport,
            if self.v6 { 6 } else { 4 },
            self.on_wire(),
            self.flows,
            self.popularity,
            if self.one_way { "one way" } else { "answered" },
            self.queues,
            self.generator,
        )
    }

    fn json(&self, alone: f64, found: Vec<&Found>, runs: &[Measured]) -> Result<()> {
        let note = self.shared_cores(config::cores());
        let report = Report { load: self.what(), generator: self.generator, ends_alone: alone, note, found, runs };
        println!("{}", serde_json::to_string_pretty(&report)?);
        Ok(())
    }

    fn report(&self, alone: f64, found: Option<&Found>, runs: &[Measured]) -> Result<()> {
        if self.json {
            return self.json(alone, found.into_iter().collect(), runs);
        }
        let median = &runs[runs.len() / 2];
        let (lowest, highest) = (&runs[0], &runs[runs.len() - 1]);
        let Measured { sent, outcome, lost_at, .. } = median;
        println!("{}", self.what());
        if let Some(note) = self.shared_cores(config::cores()) {
            println!("  {note}");
        }
        if let (Some(found), Some(Percent(percent))) = (found, self.at) {
            let limit = limit(found);
            println!("  at {percent} % of {:.0} packets/s, the most with at most 0.5 % dropped{limit}", found.rate);
        }
        println!("  sent        {:>12.0} packets/s", sent.packets as f64 / sent.seconds);
        println!("  arrived     {:>12.0} packets/s   [{:.0} .. {:.0}]", median.rate(), lowest.rate(), highest.rate());
        println!("  on a wire   {:>12.3} Gbit/s", self.on_wire().wire_bits(median.rate()) / 1e9);
        let share = 100.0 * outcome.lost as f64 / (outcome.sent as f64).max(1.0);
        println!("  lost        {:>12}   {share:.3} %", outcome.lost);
        for (name, count) in lost_at {
            println!("    {name:<32} {count:>12}");
        }
        if median.unexplained() > 0 {
            println!("    {:<32} {:>12}", "nobody knows where", median.unexplained());
        }
        let of =
            |what| if outcome.one_in > 1 { format!("   (of 1 {what} in {})", outcome.one_in) } else { String::new() };
        println!("  duplicates  {:>12}{}", outcome.duplicates, of("packet"));
        println!("  reordered   {:>12}{}", outcome.reordered, of("flow"));
        println!("  latency us  {}, from when a packet was due{}", percentiles(&outcome.latency_us), of("packet"));
        if sent.pauses > 0 {
            println!(
                "  undisturbed {}, without {:.2} % that {} pause(s) of the generator touched ({:.1} ms)",
                percentiles(&outcome.undisturbed_us),
                outcome.disturbed * 100.0,
                sent.pauses,
                sent.paused_us / 1e3
            );
        }
        if self.rate.or(self.at.map(|at| at.0)).is_some() {
            println!("  on time     {:>12.1} us late at most: the generator's own pace", sent.latest_us);
        }
        println!("  ends alone  {alone:>12.0} packets/s, with nothing between them");
        Self::self_check(alone, median);
        Ok(())
    }

    /// Says when a figure may be the lab's.
    fn self_check(alone: f64, median: &Measured) {
        let sent = &median.sent;
        if sent.behind {
            println!("  The generator fell behind by {:.0} us: these are its figures, not the box's.", sent.latest_us);
        }
        if !median.outcome.decides() {
            println!("  Pauses of the generator touched too many packets: the latency decides nothing.");
        }
        if median.lab_lost() > 0 {
            println!("  {} packets were lost in the rings of the lab's own ends, not in the box.", median.lab_lost());
        }
        if let Some(suspicion) = suspicion(median.rate(), alone) {
            println!("{suspicion}");
        }
    }

    fn report_search(&self, alone: f64, no_drop: &Found, partial: &Found) -> Result<()> {
        if self.json {
            return self.json(alone, vec![no_drop, partial], &[]);
        }
        self.of_search(alone, no_drop, partial).iter().for_each(|line| println!("{line}"));
        Ok(())
    }

    fn of_search(&self, alone: f64, no_drop: &Found, partial: &Found) -> Vec<String> {
        let mut lines = vec![self.what()];
        lines.extend(self.shared_cores(config::cores()));
        for (name, found) in [("no drop", no_drop), ("at most 0.5 % dropped", partial)] {
            let (trials, limit) = (found.trials.len(), limit(found));
            lines.push(format!("  {name:<22} {:>10.0} packets/s, {trials} trials{limit}", found.rate));
        }
        lines.push(format!("  {:<22} {alone:>10.0} packets/s, with nothing between them", "the ends alone"));
        lines.extend(suspicion(partial.rate.max(no_drop.rate), alone).map(String::from));
        lines
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Load {
        #[command(flatten)]
        args: LoadArgs,
    }

    fn args(line: &str) -> LoadArgs {
        Load::parse_from(std::iter::once("load").chain(line.split_whitespace())).args
    }

    #[test]
    fn sizes_are_said_as_they_are_sent() {
        for (line, what) in [
            ("", "UDP over IPv4, 64 bytes,"),
            ("-6", "UDP over IPv6, 64 (at least 82) bytes,"),
            ("-6 --transport tcp --size imix", "TCP over IPv6, imix (at least 94) bytes,"),
            ("--transport tcp --size 1518", "TCP over IPv4, 1518 bytes,"),
        ] {
            assert!(args(line).what().starts_with(what), "{}", args(line).what());
        }
        // 82 bytes and 20 of the wire's own.
        assert!((args("-6").on_wire().wire_bits(1e6) - 816e6).abs() < 1.0);
    }

    #[test]
    fn a_run_ends_before_its_numbers_do() {
        let lasts = |line: &str, rate| args(line).numbers_last(rate).is_ok();
        assert!(lasts("--seconds 4294", 1e6) && !lasts("--seconds 4295", 1e6));
        assert!(!lasts("--seconds 600", 9e6) && lasts("--seconds 600", 0.0));
    }

    #[test]
    fn cores_that_are_shared_are_said() {
        assert_eq!(args("").shared_cores(2), None);
        assert_eq!(args("--queues 2 --generator-cores 2").shared_cores(4), None);
        // By sockets one sender sends, whatever is said of live ones.
        assert_eq!(args("--generator af-xdp --generator-cores 2").shared_cores(2), None);
        let note = args("--queues 2").shared_cores(2).expect("three on two");
        assert!(note.contains("1 sender(s) and 2 worker(s) share 2 cores"), "{note}");
    }

    #[test]
    fn a_search_says_where_the_lab_was_the_limit() {
        let found = |rate, lab_limited| Found { rate, lab_limited, trials: Vec::new() };
        let lines = args("--search").of_search(1e6, &found(8e4, true), &found(5e5, false));
        assert!(lines[1].ends_with("the lab's own ends give out, not the box"), "{lines:?}");
        assert!(lines[2].ends_with("0 trials") && lines.len() == 4, "{lines:?}");
        let lines = args("--search").of_search(1e6, &found(8e4, false), &found(9.5e5, false));
        assert!(lines[4].contains("The ends alone carry hardly more"), "{lines:?}");
    }
}
