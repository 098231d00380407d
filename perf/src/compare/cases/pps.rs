//! Packets per second: the generator flat out on one core, the box on the other, a sink in the node's kernel. What
//! arrived is counted in the middle of the run, when flows and neighbours are known.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Effort, Metric, Sample, Stage};
use crate::compare::cpu::{LabClock, busy_seconds};
use crate::compare::generator::{self, Run};
use crate::compare::sink::{Arrived, Sink, Sinking};

/// Until every ring is full.
const WARM_UP: Duration = Duration::from_millis(400);
/// Of what arrives, more than this going elsewhere is a broken peer.
const STRAYS: f64 = 0.001;

pub fn measure(stage: &Stage, effort: &Effort) -> Result<Sample> {
    let outlet = &stage.running.outlet;
    let clock = LabClock::new(&stage.lab)?;
    let sink = Sink::attach(&outlet.ns, outlet.interface, outlet.address, Sinking::Drop)?;
    stage.open_flows(effort.flows)?;
    let run = Run { first: 0, flows: effort.flows, rate: None, duration: effort.duration + 2 * WARM_UP };
    let sending = generator::start(stage, vec![run])?;
    std::thread::sleep(WARM_UP);
    let from = Reading::take(&sink, &clock)?;
    std::thread::sleep(effort.duration);
    ensure!(!sending.is_over(), "the generator ended early: {:?}", sending.finish().err());
    let to = Reading::take(&sink, &clock)?;
    let sent = sending.finish()?;
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
    Ok(Sample::from([
        (Metric::Pps, rate),
        (Metric::PpsLost, (1.0 - rate / offered).max(0.0)),
        (Metric::PpsCpu, (to.busy - from.busy) * 1e9 / arrived.right as f64),
        (Metric::PpsLab, (to.lab - from.lab) * 1e9 / arrived.right as f64),
    ]))
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
