//! `perf scale`: what grows, and what must not. Workers, snapshots, Maglev tables, flow tables, expiry, memory.
//!
//! Each experiment runs in a process of its own, so that memory is its own and no pause is another's. Pauses
//! are those of the worker's loop, turned on a pinned core over ports in memory ([`gaps`]): what a packet
//! waits for beyond its turn. Where other processes share the machine a wall clock shows them instead of the
//! worker, so every pause is given twice: by the wall clock, and by the thread's own processor time, which
//! stands still while another runs. The same loop without the event is measured in the same run, and its own
//! worst gaps stand beside.

mod children;
mod events;
mod expiry;
mod gaps;
mod maglev;
mod memory;
mod reload;
mod report;
mod rig;
mod snapshot;
mod table;
mod turns;
mod workers;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::figures::FiguresFile;
use crate::plot;
use report::{Report, Section};

/// Workers, snapshots, Maglev tables, flow tables, expiry, memory: figures against their targets.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// Only these experiments
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Experiment>,
    /// A hundredth of the sizes: shows that it runs, not what it reaches
    #[arg(long)]
    pub quick: bool,
    /// Also write the figures here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also draw charts (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
    /// In this process, the section as JSON: what the command runs for each experiment
    #[arg(long, hide = true, value_enum)]
    pub alone: Option<Experiment>,
    /// What runs under valgrind
    #[arg(long, hide = true)]
    pub counted: Option<String>,
    /// The same
    #[arg(long, hide = true, value_enum)]
    pub counted_turn: Option<turns::Turn>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// 1 to as many workers as there are cores
    Workers,
    /// 10,000 services over 500 nodes: compile time, memory, the pause of a publication
    Snapshot,
    /// Latency with a new snapshot every second
    Reload,
    /// 5,000 distinct sets of 20 nodes
    Maglev,
    /// Hits and insertions at 10 to 95 % of a flow table
    Table,
    /// A million flows that end at once, and timers
    Expiry,
    /// Bytes per flow
    Memory,
}

impl Experiment {
    fn run(self, quick: bool) -> anyhow::Result<Section> {
        match self {
            Self::Workers => workers::run(quick),
            Self::Snapshot => snapshot::publication(quick),
            Self::Reload => reload::run(quick),
            Self::Maglev => maglev::run(quick),
            Self::Table => table::run(quick),
            Self::Expiry => expiry::run(quick),
            Self::Memory => memory::run(quick),
        }
    }
}

/// Runs the experiments and prints their tables.
///
/// # Errors
/// An experiment could not be set up, a packet did not do what its experiment is about, a file can't be written.
pub fn command(args: &ScaleArgs) -> anyhow::Result<()> {
    if let Some(counted) = &args.counted {
        return table::run_counted(counted);
    }
    if let Some(turn) = args.counted_turn {
        return turns::run_counted(turn);
    }
    if let Some(experiment) = args.alone {
        let section = experiment.run(args.quick)?;
        println!("{}", serde_json::to_string(&section)?);
        return Ok(());
    }
    let file = args.json.as_deref().map(FiguresFile::prepare).transpose()?;
    if let Some(directory) = &args.plot {
        plot::prepare(directory)?;
    }
    let mut report = Report::new(args.quick);
    println!("{}", report.heading());
    for experiment in Experiment::value_variants() {
        if !args.only.is_empty() && !args.only.contains(experiment) {
            continue;
        }
        let mut section = children::section(*experiment, args.quick)?;
        if args.quick {
            section.judge_nothing();
        }
        println!("{section}");
        let charts = report.add(section);
        if let Some(file) = &file {
            file.keep(&report)?;
        }
        if let Some(directory) = &args.plot {
            let charts: Vec<_> = charts.iter().map(|(name, svg)| (name.as_str(), svg.clone())).collect();
            plot::write(directory, &charts)?;
        }
    }
    if report.sections.is_empty() {
        bail!("no experiment was chosen");
    }
    println!("{}", report.verdict());
    if let Some(file) = file {
        file.finish(&report)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
