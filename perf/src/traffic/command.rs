//! `penstock-perf load`: a load through a box in a lab, as a table or JSON.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::bench::{Bench, Measured, Spec};
use super::charts;
use super::load::NodeSide;
use super::mix::Mix;
use super::popularity::Popularity;
use super::search::{Found, Goal, search};
use crate::plot;
use crate::privilege;

/// The lowest rate a search tries.
const LOWEST: f64 = 1_000.0;
/// More than any generator here sends.
const HIGHEST: f64 = 4e6;

#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Bytes on the wire (64 to 1518, the frame check sequence included), or imix
    #[arg(long, default_value = "64")]
    size: Mix,
    /// IPv6
    #[arg(long, short = '6')]
    v6: bool,
    #[arg(long, default_value_t = 1000)]
    flows: u32,
    /// uniform, zipf or zipf:S
    #[arg(long, default_value = "uniform")]
    popularity: Popularity,
    /// Packets per second; default: flat out
    #[arg(long, conflicts_with = "search")]
    rate: Option<f64>,
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

/// # Errors
/// No lab can be made here, or the box does not start.
pub fn command(args: &LoadArgs) -> Result<()> {
    if let Some(reason) = privilege::missing() {
        bail!("{reason}");
    }
    let spec = Spec {
        mix: args.size.clone(),
        v6: args.v6,
        flows: args.flows,
        popularity: args.popularity,
        side: if args.one_way { NodeSide::Count } else { NodeSide::Answer },
        seed: 1,
    };
    let bench = Bench::start(args.queues, args.queues, args.flows, |_| {})?;
    let duration = Duration::from_secs_f64(args.seconds);
    // The first packets of each flow are another case (`penstock-perf pipeline`): not in these figures.
    bench.measure(&spec, Some(50_000.0), Duration::from_secs_f64(f64::from(args.flows) / 40_000.0 + 0.2))?;
    if args.search {
        let found = [Goal::no_drop(), Goal::partial_drop()]
            .map(|goal| search(goal, LOWEST, HIGHEST, |rate| trial(&bench, &spec, rate, duration)));
        let [no_drop, partial] = found;
        let (no_drop, partial) = (no_drop?, partial?);
        if let Some(directory) = &args.plot {
            plot::write(directory, &charts::of_search(&what(args), &no_drop, &partial))?;
        }
        return report_search(args, &no_drop, &partial);
    }
    let mut runs = Vec::new();
    for run in 1..=args.runs.max(1) {
        eprintln!("run {run} of {}, {} s", args.runs.max(1), args.seconds);
        runs.push(bench.measure(&spec, args.rate, duration)?);
    }
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    if let Some(directory) = &args.plot {
        plot::write(directory, &charts::of_runs(&what(args), &runs))?;
    }
    report(args, &runs)
}

fn trial(bench: &Bench, spec: &Spec, rate: f64, duration: Duration) -> Result<(super::track::Outcome, bool)> {
    let measured = bench.measure(spec, Some(rate), duration)?;
    eprintln!(
        "  {:>9.0} packets/s: {} of {} lost{}",
        rate,
        measured.outcome.lost,
        measured.outcome.sent,
        if measured.sent.behind { ", the generator fell behind" } else { "" }
    );
    Ok((measured.outcome.clone(), measured.sent.behind))
}

fn what(args: &LoadArgs) -> String {
    format!(
        "UDP over IPv{}, {} bytes, {} flows ({}), {}, {} worker(s)",
        if args.v6 { 6 } else { 4 },
        args.size,
        args.flows,
        args.popularity,
        if args.one_way { "one way" } else { "answered" },
        args.queues
    )
}

fn report(args: &LoadArgs, runs: &[Measured]) -> Result<()> {
    let median = &runs[runs.len() / 2];
    if args.json {
        println!("{}", serde_json::to_string_pretty(runs)?);
        return Ok(());
    }
    let (lowest, highest) = (&runs[0], &runs[runs.len() - 1]);
    let Measured { sent, outcome, node_missed } = median;
    println!("{}", what(args));
    println!("  sent        {:>12.0} packets/s", sent.packets as f64 / sent.seconds);
    println!("  arrived     {:>12.0} packets/s   [{:.0} .. {:.0}]", median.rate(), lowest.rate(), highest.rate());
    println!("  on a wire   {:>12.3} Gbit/s", args.size.wire_bits(median.rate()) / 1e9);
    let share = 100.0 * outcome.lost as f64 / (outcome.sent as f64).max(1.0);
    println!("  lost        {:>12}   {share:.3} %", outcome.lost);
    println!("  duplicates  {:>12}", outcome.duplicates);
    println!("  reordered   {:>12}", outcome.reordered);
    let latency = outcome.latency_us;
    println!(
        "  latency us  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}, from when a packet was due",
        latency.p50, latency.p90, latency.p99, latency.p999, latency.max
    );
    if sent.behind {
        println!("  The generator fell behind by {:.0} us: these are its figures, not the box's.", sent.latest_us);
    }
    if sent.missed + node_missed > 0 {
        println!(
            "  {} packets were lost in the rings of the lab's own ends, not in the box.",
            sent.missed + node_missed
        );
    }
    Ok(())
}

fn report_search(args: &LoadArgs, no_drop: &Found, partial: &Found) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(&[no_drop, partial])?);
        return Ok(());
    }
    println!("{}", what(args));
    for (name, found) in [("no drop", no_drop), ("at most 0.5 % dropped", partial)] {
        let limit = if found.generator_limited { "; beyond it the generator gives out, not the box" } else { "" };
        println!("  {name:<22} {:>10.0} packets/s, {} trials{limit}", found.rate, found.trials.len());
    }
    Ok(())
}
