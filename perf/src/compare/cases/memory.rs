//! Memory with many flows: every flow sends one packet, and what the box grew by is divided by those that arrived.
//! A box's memory is its processes' resident memory (the flow table's file in it) and what the kernel's slabs grew
//! by, which is where connection tracking keeps its entries.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Effort, Metric, Sample, Stage};
use crate::compare::cpu::resident_bytes;
use crate::compare::generator::{self, Run};
use crate::compare::sink::{Sink, Sinking};
use crate::lab::Netns;

/// New flows per second: below what any peer here takes in.
const RATE: f64 = 150_000.0;
/// Of the flows sent, so many must arrive.
const CARRIED: f64 = 0.9;
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

pub fn measure(stage: &Stage, effort: &Effort) -> Result<Sample> {
    let flows = effort.memory_flows;
    let _limit = ConntrackLimit::raise(u64::from(flows) * 2)?;
    let outlet = &stage.running.outlet;
    let sink = Sink::attach(&outlet.ns, outlet.interface, outlet.address, Sinking::Drop)?;
    let before = sink.arrived()?;
    let idle = Occupied::now(stage)?;
    let duration = Duration::from_secs_f64(f64::from(flows) / RATE);
    generator::start(stage, vec![Run { flows, rate: Some(RATE), duration }])?.finish()?;
    let grown = Occupied::now(stage)?;
    let arrived = sink.arrived()?.since(before).right as f64;
    ensure!(
        arrived > CARRIED * f64::from(flows),
        "{arrived} of {flows} flows arrived: no figure of all of them (more of the generator's rate than the box takes?)"
    );
    let bytes = (grown.processes.saturating_sub(idle.processes) + grown.slabs.saturating_sub(idle.slabs)) as f64;
    Ok(Sample::from([
        (Metric::IdleMegabytes, idle.processes as f64 / 1e6),
        (Metric::FlowMegabytes, bytes / 1e6),
        (Metric::FlowBytes, bytes / arrived),
    ]))
}

struct Occupied {
    processes: u64,
    slabs: u64,
}

impl Occupied {
    fn now(stage: &Stage) -> Result<Self> {
        let processes = resident_bytes(&processes_in(&stage.lab.the_box)?);
        let memory = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let slabs = memory.lines().find_map(|line| line.strip_prefix("SUnreclaim:")).context("no SUnreclaim")?;
        let kib: u64 = slabs.split_whitespace().next().context("an empty SUnreclaim")?.parse()?;
        Ok(Self { processes, slabs: kib * 1024 })
    }
}

/// Processes that live in a namespace.
fn processes_in(ns: &Netns) -> io::Result<BTreeSet<u32>> {
    let inode = fs::metadata(Path::new("/run/netns").join(ns.name()))?.ino();
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode)).collect())
}

/// The machine's limit of tracked connections, raised; it is put back by a process that waits for the end of this
/// one, however it ends.
struct ConntrackLimit {
    restorer: Option<Child>,
}

impl ConntrackLimit {
    fn raise(wanted: u64) -> Result<Self> {
        // A kernel without connection tracking has no limit.
        let Ok(text) = fs::read_to_string(CONNTRACK_MAX) else { return Ok(Self { restorer: None }) };
        let old: u64 = text.trim().parse().with_context(|| CONNTRACK_MAX.to_owned())?;
        if old >= wanted {
            return Ok(Self { restorer: None });
        }
        let script = format!("read line; echo {old} > {CONNTRACK_MAX}");
        let mut command = Command::new("sh");
        let restorer = command.args(["-c", &script]).stdin(Stdio::piped()).process_group(0).spawn()?;
        let limit = Self { restorer: Some(restorer) };
        fs::write(CONNTRACK_MAX, wanted.to_string()).with_context(|| format!("raising {CONNTRACK_MAX}"))?;
        Ok(limit)
    }
}

impl Drop for ConntrackLimit {
    fn drop(&mut self) {
        if let Some(mut restorer) = self.restorer.take() {
            drop(restorer.stdin.take());
            let _ = restorer.wait();
        }
    }
}
