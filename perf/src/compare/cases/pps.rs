//! Packets per second: the generator flat out on one core, the box on the other, a sink in the node's kernel. What
//! arrived is counted in the middle of the run, when flows and neighbours are known.
//!
//! An AF_XDP sender in copy mode is a host's own: each packet a socket buffer, and the box's part of the work that the kernel
//! does for a veth's sender among it. It costs about what a box costs, so that of two good boxes this shows the
//! sender's limit. Live frames come as from a NIC, several times as many as any box takes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Effort, Metric, Sample, Stage};
use crate::compare::cpu::{LabClock, busy_seconds};
use crate::compare::generator::{self, Run, Sending};
use crate::compare::sink::{Arrived, Sink, Sinking};

/// Until every ring is full.
const WARM_UP: Duration = Duration::from_millis(400);
/// Of what arrives, more than this going elsewhere is a broken peer.
const STRAYS: f64 = 0.001;
/// How much longer the generator sends than is counted: this thread may wait for its core.
const SLACK: Duration = Duration::from_secs(2);

pub fn measure(stage: &Stage, effort: &Effort) -> Result<Sample> {
    let counted = count(stage, effort, |duration| {
        let run = Run { first: 0, flows: effort.flows, rate: None, duration };
        generator::start(stage, vec![run])
    })?;
    Ok(Sample::from([
        (Metric::Pps, counted.rate),
        (Metric::PpsLost, counted.lost),
        (Metric::PpsCpu, counted.busy_ns),
        (Metric::PpsLab, counted.lab_ns),
    ]))
}

/// The same of live frames.
pub fn measure_live(stage: &Stage, effort: &Effort) -> Result<Sample> {
    // A veth takes frames that are no socket buffers only with NAPI on, which XDP or GRO bring.
    stage.lab.the_box.sh("ethtool -K clients0 gro on")?;
    let counted = count(stage, effort, |duration| generator::start_live(stage, effort.flows, duration))?;
    Ok(Sample::from([(Metric::LivePps, counted.rate), (Metric::LiveLost, counted.lost)]))
}

struct Counted {
    /// Packets per second that arrived, and the share that did not.
    rate: f64,
    lost: f64,
    /// Time per packet, of the machine and of the lab's processes.
    busy_ns: f64,
    lab_ns: f64,
}

fn count(stage: &Stage, effort: &Effort, start: impl FnOnce(Duration) -> Result<Sending>) -> Result<Counted> {
    let outlet = &stage.running.outlet;
    let clock = LabClock::new(&stage.lab)?;
    let sink = Sink::attach(&outlet.ns, outlet.interface, outlet.address, Sinking::Drop)?;
    stage.open_flows(effort.flows)?;
    let whole = WARM_UP + effort.duration + SLACK;
    let sending = start(whole)?;
    let began = Instant::now();
    std::thread::sleep(WARM_UP);
    let from = Reading::take(&sink, &clock)?;
    std::thread::sleep(effort.duration);
    let to = Reading::take(&sink, &clock)?;
    let in_time = began.elapsed() < whole;
    let sent = sending.finish()?;
    ensure!(in_time, "who counts had no core while packets were sent: the machine is busy");
    let arrived = to.arrived.since(from.arrived);
    ensure!(arrived.right > 0, "no packet arrived at {}", outlet.address);
    ensure!(
        (arrived.wrong as f64) < STRAYS * arrived.right as f64,
        "{} packets arrived at {}, and {} elsewhere",
        arrived.right,
        outlet.address,
        arrived.wrong
    );
    let rate = arrived.right as f64 / (to.at - from.at).as_secs_f64();
    let offered: f64 = sent.iter().map(|(sent, _)| sent.packets as f64 / sent.seconds).sum();
    ensure!(offered > 0.0, "the generator sent nothing");
    Ok(Counted {
        rate,
        lost: (1.0 - rate / offered).max(0.0),
        busy_ns: (to.busy - from.busy) * 1e9 / arrived.right as f64,
        lab_ns: (to.lab - from.lab) * 1e9 / arrived.right as f64,
    })
}

struct Reading {
    at: Instant,
    arrived: Arrived,
    busy: f64,
    lab: f64,
}

impl Reading {
    fn take(sink: &Sink, clock: &LabClock) -> Result<Self> {
        Ok(Self { at: Instant::now(), arrived: sink.arrived()?, busy: busy_seconds()?, lab: clock.seconds() })
    }
}
