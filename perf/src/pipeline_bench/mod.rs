//! `perf pipeline`: the pipeline over packet memory, no kernel, one pinned core.
//!
//! Method. Every case builds a pipeline with that many established flows (by sending it handshakes)
//! and a table of packets, one per flow and direction, in random order. A run goes block by block: the
//! next packets are copied into the block's frames, then the time-stamp counter is read, the bursts
//! are settled, and it is read again. So the copying is not measured, neither here nor for the *bare
//! limit* ([`bare`]), which takes the same frames, packets and blocks in the same order, its runs
//! alternating with the pipeline's. A run's figure is the median of its blocks (a block that another
//! process interrupted does not count), a case's the median of its runs, with the lowest and
//! highest run beside it. Frames are warm in the cache, as a NIC with direct cache access leaves them.
//!
//! `worker` cases turn a whole [`penstock_dataplane::worker::Worker`] between two rings; there the
//! rings' copying in of each packet is part of the figure, for the bare limit too.

mod bare;
mod cases;
mod churn;
mod goals;
mod guard;
mod hits;
mod instructions;
pub(crate) mod measure;
pub(crate) mod packets;
pub(crate) mod report;
mod whole;
mod world;

pub(crate) use instructions::collected;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::figures::FiguresFile;
use crate::plot;
use guard::Baseline;

/// The pipeline over memory: ns, cycles and packets per second, beside a bare limit.
#[derive(Debug, Clone, Args)]
pub struct PipelineArgs {
    /// Numbers of flows; 10000000 needs 4 GB.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000])]
    pub flows: Vec<u32>,
    /// Only cases whose name contains one of these, for instance `nat4` or `new`.
    #[arg(long, value_delimiter = ',')]
    pub case: Vec<String>,
    /// Runs of each case, the bare limit's in between.
    #[arg(long, default_value_t = 9)]
    pub runs: usize,
    /// Packets per run.
    #[arg(long, default_value_t = 400_000)]
    pub packets: usize,
    /// Core to pin to; default: the last one.
    #[arg(long)]
    pub core: Option<usize>,
    /// Keep the flow records in a file of this directory, as the dataplane does, instead of memory of the
    /// process's own; the directory should be on a tmpfs.
    #[arg(long, value_name = "DIRECTORY")]
    pub flow_file: Option<PathBuf>,
    /// Also write the figures here.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Also draw charts (SVG) into this directory.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
    /// Also count instructions per packet under valgrind, and compare them and the ratios with this file:
    /// more than 3 % more instructions are an error.
    #[arg(long, value_name = "BASELINE")]
    pub instructions: Option<PathBuf>,
    /// Write what was counted and measured to the baseline file.
    #[arg(long, requires = "instructions")]
    pub update: bool,
    /// What `--instructions` runs under valgrind.
    #[arg(long, hide = true, value_enum)]
    pub counted: Option<instructions::Counted>,
}

/// Runs the benchmark and prints its table.
///
/// # Errors
/// A case did not do what it says (a packet was dropped), valgrind is missing, a file can't be written.
pub fn command(args: &PipelineArgs) -> anyhow::Result<()> {
    if let Some(counted) = args.counted {
        return instructions::run_counted(counted, args.packets);
    }
    let baseline = match &args.instructions {
        // A file that is not there or no baseline is found out before minutes of measuring.
        Some(path) => {
            Some((path, if args.update { Baseline::read(path).unwrap_or_default() } else { Baseline::read(path)? }))
        }
        None => None,
    };
    let file = args.json.as_deref().map(FiguresFile::prepare).transpose()?;
    if let Some(directory) = &args.plot {
        plot::prepare(directory)?;
    }
    let core = measure::pin(args.core)?;
    let clock = measure::Clock::calibrate();
    let mut report = report::Report::new(core, &clock, args);
    println!("{}", report.heading());
    for case in cases::list(&args.flows) {
        if !args.case.is_empty() && !args.case.iter().any(|wanted| case.name().contains(wanted.as_str())) {
            continue;
        }
        let row = cases::run(&case, args, &clock).with_context(|| case.name())?;
        println!("{}", row.line());
        report.rows.push(row);
        if let Some(file) = &file {
            file.keep(&report)?;
        }
    }
    report.judge();
    println!("\nthe speed that is asked for");
    report.targets.iter().for_each(|target| println!("{target}"));
    if let Some(file) = file {
        file.finish(&report)?;
    }
    if let Some(directory) = &args.plot {
        plot::write(directory, &report.charts())?;
    }
    if let Some((path, before)) = baseline {
        let mut now = Baseline { instructions: instructions::count()?, ..Baseline::default() };
        report.rows.into_iter().for_each(|row| now.add_ratio(row.case, row.ratio));
        return guard::conclude(path, before, &now, args.update);
    }
    Ok(())
}
