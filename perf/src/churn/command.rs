//! `penstock-perf churn`: new connections per second, and whether any fails.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use penstock_configs::file::PollMode;
use serde::Serialize;

use super::bench::{Churn, ChurnBench, Measured, Setup};
use super::client::{Clients, Habits};
use super::drive::Until;
use super::tally::NodeTally;
use crate::plot::{self, Labels};
use crate::privilege;
use crate::traffic::charts::curve;
use crate::traffic::track::Percentiles;

#[derive(Debug, Clone, Args)]
pub struct ChurnArgs {
    /// Connections per second
    #[arg(long, required_unless_present = "flat_out")]
    rate: Option<f64>,
    /// As many as there is room for
    #[arg(long, conflicts_with = "rate")]
    flat_out: bool,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Connections open at a time
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// IPv6
    #[arg(long, short = '6')]
    v6: bool,
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Client addresses, each with 28,232 ports that are used in turn
    #[arg(long, default_value_t = 16)]
    addresses: u32,
    /// Bytes of a request, and of its answer
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Seconds a segment may stay unanswered
    #[arg(long, default_value_t = 1.0)]
    patience: f64,
    /// How often it is sent again before that is a failure
    #[arg(long, default_value_t = 0)]
    retries: u8,
    /// Run until so many SNAT ports towards each node were all used, and for --seconds past that
    #[arg(long, value_name = "PORTS")]
    wrap: Option<u16>,
    /// Receive queues of each of the box's interfaces, and its workers
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// The nodes on a core of their own; for machines with more than two
    #[arg(long)]
    apart: bool,
    /// Workers that sleep when idle, not spin
    #[arg(long)]
    adaptive: bool,
    #[arg(long)]
    json: bool,
    /// Also draw a chart (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    family: u8,
    nodes: usize,
    workers: u16,
    seconds: f64,
    attempted: u64,
    attempted_per_second: f64,
    completed: u64,
    completed_per_second: f64,
    failed: u64,
    failed_by: Vec<(String, u64)>,
    repeated: u64,
    held_back: u64,
    by_node: Vec<u64>,
    handshake_us: Percentiles,
    whole_us: Percentiles,
    at_the_nodes: NodeTally,
    wrapped_after: Option<f64>,
    snat_tuples: u64,
    /// Connections per second if every port rested its whole time.
    snat_ceiling: f64,
    box_drops: Vec<(String, u64)>,
    behind: bool,
    latest_us: f64,
    longest_pause_us: f64,
    lost_in_the_ends: u64,
}

/// # Errors
/// No lab can be made here, or the box does not start.
pub fn command(args: &ChurnArgs) -> Result<()> {
    if let Some(reason) = privilege::missing() {
        bail!("{reason}");
    }
    ensure!(args.concurrency > 0 && args.addresses > 0, "at least one connection and one client address");
    ensure!((12..=1400).contains(&args.bytes), "12 to 1400 bytes: a request says whose it is, and is one segment");
    ensure!(args.rate.is_none_or(|rate| rate > 0.0), "a rate above 0");
    if let Some(directory) = &args.plot {
        plot::prepare(directory)?;
    }
    let poll = if args.adaptive { PollMode::Adaptive } else { PollMode::Busy };
    let setup = Setup { nodes: args.nodes, queues: args.queues, snat_ports: args.wrap, poll };
    let bench = ChurnBench::start(setup, |_| {})?;
    let until = Until {
        duration: Duration::from_secs_f64(args.seconds),
        after: if args.wrap.is_some() { bench.tuples(args.v6) } else { 0 },
    };
    let habits = Habits {
        concurrency: args.concurrency,
        addresses: args.addresses,
        bytes: args.bytes,
        patience_ns: (args.patience * 1e9) as u64,
        retries: args.retries,
    };
    let churn = Churn { v6: args.v6, rate: args.rate, until, habits, apart: args.apart };
    let measured = bench.measure(&churn, tell)?;
    let report = report(args, &bench, &measured);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(args, &report);
    }
    if let Some(directory) = &args.plot {
        plot::write(directory, &[("churn-latency", chart(args, &report))])?;
    }
    ensure!(report.failed == 0, "{} of {} connections failed", report.failed, report.attempted);
    Ok(())
}

fn tell(clients: &Clients, seconds: f64) {
    let tally = &clients.tally;
    eprintln!(
        "  {seconds:>4.0} s: {} attempted, {} completed, {} failed, {} open",
        tally.attempted,
        tally.completed,
        tally.failures(),
        clients.open()
    );
}

fn report(args: &ChurnArgs, bench: &ChurnBench, measured: &Measured) -> Report {
    let Measured { ran, tally, nodes, node_missed, .. } = measured;
    Report {
        family: if args.v6 { 6 } else { 4 },
        nodes: args.nodes,
        workers: args.queues,
        seconds: ran.seconds,
        attempted: tally.attempted,
        attempted_per_second: tally.attempted as f64 / ran.seconds,
        completed: tally.completed,
        completed_per_second: tally.completed as f64 / ran.seconds,
        failed: tally.failures(),
        failed_by: tally.failed.iter().map(|(failure, count)| (failure.to_string(), *count)).collect(),
        repeated: tally.repeated,
        held_back: tally.held_back,
        by_node: tally.by_node.clone(),
        handshake_us: tally.handshake_us(),
        whole_us: tally.whole_us(),
        at_the_nodes: nodes.clone(),
        wrapped_after: ran.wrapped_after,
        snat_tuples: bench.tuples(args.v6),
        snat_ceiling: bench.ceiling(args.v6),
        box_drops: measured.drops(),
        behind: ran.behind,
        latest_us: ran.latest_us,
        longest_pause_us: tally.longest_pause_ns as f64 / 1e3,
        lost_in_the_ends: ran.missed + node_missed,
    }
}

/// What was asked for, in a line.
fn what(args: &ChurnArgs, report: &Report) -> String {
    let pace = args.rate.map_or("flat out".into(), |rate| format!("{rate}/s"));
    format!(
        "TCP over IPv{}, {pace}, {} bytes each way, at most {} open, {} nodes, {} worker(s)",
        report.family, args.bytes, args.concurrency, report.nodes, report.workers
    )
}

/// How long handshakes and whole connections took, by percentile.
fn chart(args: &ChurnArgs, report: &Report) -> String {
    let labels = Labels {
        title: format!("Connections through the box, {:.0}/s", report.completed_per_second),
        subtitle: what(args, report),
        values: "microseconds, from when the SYN was due".into(),
        along: String::new(),
    };
    let curves = [("handshake", &report.handshake_us), ("whole", &report.whole_us)];
    plot::latency(&labels, &curves.map(|(name, times)| curve(name.into(), times)), &[])
}

fn print(args: &ChurnArgs, report: &Report) {
    println!("{}", what(args, report));
    println!("  attempted   {:>10}   {:>10.0} /s", report.attempted, report.attempted_per_second);
    println!("  completed   {:>10}   {:>10.0} /s", report.completed, report.completed_per_second);
    println!("  failed      {:>10}", report.failed);
    for (failure, count) in &report.failed_by {
        println!("    {failure:<34} {count:>8}");
    }
    println!("  repeated    {:>10}   segments", report.repeated);
    for (name, latency) in [("handshake", &report.handshake_us), ("whole", &report.whole_us)] {
        println!(
            "  {name:<11} us  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            latency.p50, latency.p90, latency.p99, latency.p999, latency.max
        );
    }
    println!("  by node     {}", report.by_node.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    let nodes = &report.at_the_nodes;
    println!("  wrong node  {:>10}   segments;  {} RSTs seen by nodes", nodes.wrong_node, nodes.resets_seen);
    let soonest = nodes.soonest_reuse_ms.map_or(String::new(), |ms| format!(", the soonest after {ms} ms"));
    println!(
        "  SNAT ports  {:>10}   used again{soonest}; {} that a node in TIME_WAIT would not take",
        nodes.ports_reused, nodes.unwelcome
    );
    if let Some(after) = report.wrapped_after {
        println!("  wrapped     after {after:.1} s, and {:.1} s beyond", report.seconds - after);
    }
    println!(
        "  ceiling     {:>10.0} /s, if each of {} ports (times addresses, times nodes) rested its whole time",
        report.snat_ceiling, report.snat_tuples
    );
    for (name, count) in &report.box_drops {
        println!("  the box dropped {count} packets: {name}");
    }
    if report.behind {
        println!(
            "  The clients fell behind by {:.0} us, with {} connections open: raise --concurrency, or these are the ends' figures.",
            report.latest_us, args.concurrency
        );
    }
    if report.longest_pause_us > 0.0 {
        println!(
            "  The machine kept the ends from running, for up to {:.0} us at a time: latencies have that in them.",
            report.longest_pause_us
        );
    }
    if report.lost_in_the_ends > 0 {
        println!("  {} packets were lost in the rings of the lab's own ends, not in the box.", report.lost_in_the_ends);
    }
}
