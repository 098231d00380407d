//! `perf kubernetes`: control over a large cluster.
//!
//! Method. The test API server runs in this process, control and dataplane are processes of their own in a lab, with
//! the settings a box comes with (health checks included: one node of the lab answers for all). What is said of
//! control is its own: CPU time of its process (user and system, `/proc/PID/task/*/schedstat`), its peak of resident memory
//! (`VmHWM`). Times to an effect are by the clock and end at the dataplane's answer, asked every millisecond; so they
//! contain what API server and dataplane take, too, and what else the machine does.
//!
//! "The first full sync" begins with a cluster in which nothing is ours yet, the worst case: each Service needs its
//! finalizer, an address record, a place in the snapshot, its status and its Events. It ends when control is at rest.

mod cluster;
mod process;
mod report;
mod run;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::demo::narrator::Narrator;
use crate::figures::FiguresFile;
use crate::plot;
use crate::privilege;

/// A cluster of this size, and what it costs control.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    #[arg(long, default_value_t = 5000)]
    pub services: usize,
    #[arg(long, default_value_t = 500)]
    pub nodes: usize,
    /// So many of the Services with externalTrafficPolicy: Local, on three nodes each
    #[arg(long, default_value_t = 0)]
    pub local: usize,
    /// Edits whose way to the dataplane is timed
    #[arg(long, default_value_t = 21)]
    pub edits: usize,
    /// Seconds of rest that are measured
    #[arg(long, default_value_t = 30)]
    pub rest: u64,
    /// Also write the figures here
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Also draw a chart (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

/// Runs the benchmark and prints its table.
///
/// # Errors
/// Without the privileges of a lab; when something does not come about in time; when a target is missed.
pub fn command(args: &ScaleArgs) -> Result<()> {
    if let Some(reason) = privilege::missing() {
        bail!("{reason}");
    }
    ensure!(args.local <= args.services, "--local {} of {} Services", args.local, args.services);
    ensure!(args.nodes >= 4 && args.edits > 0, "at least 4 nodes and one edit");
    let file = args.json.as_deref().map(FiguresFile::prepare).transpose()?;
    if let Some(directory) = &args.plot {
        plot::prepare(directory)?;
    }
    let narrator = Narrator::default();
    let report = run::run(args, &narrator)?;
    print!("{}", report.table());
    if let Some(file) = file {
        file.finish(&report)?;
    }
    if let Some(directory) = &args.plot {
        plot::write(directory, &[("kubernetes", report.chart())])?;
    }
    let missed = report.missed();
    ensure!(missed.is_empty(), "missed: {}", missed.join(", "));
    Ok(())
}
