//! Latency: the node's kernel sends every packet back at once; the generator, on a core of its own, keeps the books,
//! counting from when a packet was due. First the peer's own maximum, flat out; then half of it and nine tenths. Packets
//! that a pause of the generator's own touched are told apart (`traffic::pauses`); what the peer does for a packet in
//! the generator's system calls, as the kernel's forwarding does on a veth, is the peer's and no pause.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Effort, Metric, Sample, Stage};
use crate::compare::generator::{self, Run};
use crate::compare::sink::{Sink, Sinking};
use crate::traffic::load::Sent;
use crate::traffic::track::Outcome;

/// With more packets lost there is no p99: what is lost in a pause of the box would have come last.
const MOST_LOST: f64 = 0.005;
const WARM_UP: Duration = Duration::from_millis(300);

pub fn measure(stage: &Stage, effort: &Effort) -> Result<Sample> {
    stage.answer_in_the_kernel()?;
    let outlet = &stage.running.outlet;
    let _sink = Sink::attach(&outlet.ns, outlet.interface, outlet.address, Sinking::Answer)?;
    stage.open_flows(effort.flows)?;
    let flat_out = |duration| Run { first: 0, flows: effort.flows, rate: None, duration };
    let flat = generator::start(stage, vec![flat_out(WARM_UP), flat_out(effort.duration / 2)])?.finish()?;
    let most = flat.last().map_or(0.0, |(sent, outcome)| outcome.received as f64 / sent.seconds);
    ensure!(most > 0.0, "no packet was answered");
    let at = |share: f64| Run { first: 0, flows: effort.flows, rate: Some(most * share), duration: effort.duration };
    let paced = generator::start(stage, vec![at(0.5), at(0.9)])?.finish()?;
    let [half, ninety] = &paced[..] else { anyhow::bail!("two runs were asked for") };
    answered("half", half)?;
    let mut sample = Sample::from([
        (Metric::LatencyMax, most),
        (Metric::HalfAllP99, half.1.latency_us.p99),
        (Metric::HalfLeftOut, half.1.disturbed),
        (Metric::NinetyLeftOut, ninety.1.disturbed),
        (Metric::HalfLost, lost(half)),
        (Metric::NinetyLost, lost(ninety)),
    ]);
    for (run, [p50, p99, steady]) in [
        (half, [Metric::HalfP50, Metric::HalfP99, Metric::HalfSteadyP99]),
        (ninety, [Metric::NinetyP50, Metric::NinetyP99, Metric::NinetySteadyP99]),
    ] {
        let outcome = &run.1;
        if outcome.decides() {
            sample.insert(p50, outcome.undisturbed_us.p50);
        }
        if outcome.decides() && lost(run) < MOST_LOST {
            sample.insert(p99, outcome.undisturbed_us.p99);
            sample.insert(steady, outcome.steady_p99_us);
        }
    }
    Ok(sample)
}

/// At half its maximum a peer that works loses next to nothing.
fn answered(what: &str, (sent, outcome): &(Sent, Outcome)) -> Result<()> {
    ensure!(
        outcome.received * 10 > outcome.sent * 9,
        "at {what} of its maximum {} of {} packets were answered ({sent:?})",
        outcome.received,
        outcome.sent
    );
    Ok(())
}

/// The share the peer lost: not what the generator's own rings had no room for.
fn lost((sent, outcome): &(Sent, Outcome)) -> f64 {
    outcome.lost.saturating_sub(sent.missed) as f64 / (outcome.sent as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_generator_lost_is_not_the_peers() {
        let of = |missed| {
            let sent =
                Sent { packets: 1_000, seconds: 1.0, behind: false, latest_us: 0.0, pauses: 0, paused_us: 0.0, missed };
            lost(&(sent, Outcome { sent: 1_000, lost: 10, ..Outcome::default() }))
        };
        assert_eq!([of(0), of(8), of(11)], [0.01, 0.002, 0.0]);
    }
}
