//! Memory with many flows: every flow sends and is answered three times, so that the box takes it for established, a
//! hundred thousand flows at a time; what the box grew by is divided by the number of flows it says it knows.
//! A box's memory is its processes' resident memory (the flow table's file in it) and what the kernel's slabs grew
//! by, which is where connection tracking keeps its entries.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Effort, Metric, Sample, Stage};
use crate::compare::cpu::{processes_in, resident_bytes};
use crate::compare::generator::{self, Run};
use crate::compare::sink::{Sink, Sinking};
use crate::traffic::precedence::Restorer;

/// Packets per second: below what any peer here takes in.
const RATE: f64 = 100_000.0;
/// Of the flows sent, so many must be known to the box.
const KNOWN: f64 = 0.9;
/// Flows that are new at a time: fewer than boxes have room for half-open ones.
const AT_A_TIME: u32 = 100_000;
const TIMES: usize = 3;
/// How long the slabs may take to come to rest, in steps, and what may change in a step at rest.
const REST_STEPS: u32 = 40;
const REST_STEP: Duration = Duration::from_millis(500);
const STILL: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

pub fn measure(stage: &Stage, effort: &Effort) -> Result<Sample> {
    let flows = effort.memory_flows;
    let _limit = ConntrackLimit::raise(u64::from(flows) * 2)?;
    stage.answer_in_the_kernel()?;
    let outlet = &stage.running.outlet;
    let _sink = Sink::attach(&outlet.ns, outlet.interface, outlet.address, Sinking::Answer)?;
    wait_for_earlier_labs(flows)?;
    let (idle, known_before) = (Occupied::at_rest(stage)?, known(stage)?);
    let duration = |flows: u32| Duration::from_secs_f64(f64::from(flows) / RATE);
    let group = |first| {
        let flows = AT_A_TIME.min(flows - first);
        [Run { first, flows, rate: Some(RATE), duration: duration(flows) }; TIMES]
    };
    let runs = (0..flows).step_by(AT_A_TIME as usize).flat_map(group).collect();
    generator::start(stage, runs)?.finish()?;
    let count = known(stage)?.saturating_sub(known_before) as f64;
    ensure!(count >= KNOWN * f64::from(flows), "of {flows} flows that sent {TIMES} times the box knows {count}");
    let grown = Occupied::now(stage)?;
    let bytes = (grown.processes.saturating_sub(idle.processes) + grown.slabs.saturating_sub(idle.slabs)) as f64;
    Ok(Sample::from([
        (Metric::IdleMegabytes, idle.processes as f64 / 1e6),
        (Metric::FlowMegabytes, bytes / 1e6),
        (Metric::FlowBytes, bytes / count),
        (Metric::FlowAllTold, (idle.processes as f64 + bytes) / count),
    ]))
}

/// Flows the box has now.
fn known(stage: &Stage) -> Result<u64> {
    if let Some(dataplane) = &stage.running.dataplane {
        let workers = dataplane.counters()?.workers;
        return Ok(workers.iter().map(|worker| worker.flows.established + worker.flows.embryonic).sum());
    }
    let count = stage.lab.the_box.sh("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
    count.trim().parse().context("nf_conntrack_count")
}

/// The kernel frees a namespace's connections some time after the namespace: slabs that shrink meanwhile would hide
/// what grows.
fn wait_for_earlier_labs(flows: u32) -> Result<()> {
    let left = || {
        let slabs = fs::read_to_string("/proc/slabinfo").ok()?;
        let line = slabs.lines().find_map(|line| line.strip_prefix("nf_conntrack "))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    let deadline = Instant::now() + PATIENCE;
    // A kernel without connection tracking has none to wait for.
    while left().is_some_and(|left| left > flows / 20) {
        ensure!(Instant::now() < deadline, "connections of an earlier lab are still tracked after {PATIENCE:?}");
        std::thread::sleep(REST_STEP);
    }
    Ok(())
}

struct Occupied {
    processes: u64,
    slabs: u64,
}

impl Occupied {
    /// Once the kernel has freed what labs before this one left in its slabs.
    fn at_rest(stage: &Stage) -> Result<Self> {
        let mut last = Self::now(stage)?;
        for _ in 0..REST_STEPS {
            std::thread::sleep(REST_STEP);
            let now = Self::now(stage)?;
            if now.slabs.abs_diff(last.slabs) < STILL {
                return Ok(now);
            }
            last = now;
        }
        Ok(last)
    }

    fn now(stage: &Stage) -> Result<Self> {
        let processes = resident_bytes(&processes_in(&stage.lab.the_box)?);
        let memory = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let slabs = memory.lines().find_map(|line| line.strip_prefix("SUnreclaim:")).context("no SUnreclaim")?;
        let kib: u64 = slabs.split_whitespace().next().context("an empty SUnreclaim")?.parse()?;
        Ok(Self { processes, slabs: kib * 1024 })
    }
}

/// The machine's limit of tracked connections, raised until this is dropped or this process ends.
pub(super) struct ConntrackLimit {
    _restorer: Option<Restorer>,
}

impl ConntrackLimit {
    pub(super) fn raise(wanted: u64) -> Result<Self> {
        // A kernel without connection tracking has no limit.
        let Ok(text) = fs::read_to_string(CONNTRACK_MAX) else { return Ok(Self { _restorer: None }) };
        let old: u64 = text.trim().parse().with_context(|| CONNTRACK_MAX.to_owned())?;
        if old >= wanted {
            return Ok(Self { _restorer: None });
        }
        let restorer = Restorer::new(CONNTRACK_MAX, &old.to_string())?;
        fs::write(CONNTRACK_MAX, wanted.to_string()).with_context(|| format!("raising {CONNTRACK_MAX}"))?;
        Ok(Self { _restorer: Some(restorer) })
    }
}
