//! New connections: 64 HTTP clients, each connection for one short request. Nobody is pinned: clients, servers and
//! box share the cores as the scheduler likes, so at the limit of the machine the rate says what all of it costs
//! together, and the difference to `direct` what the box adds.

use anyhow::{Result, ensure};

use super::{Effort, Metric, Sample, Stage, wrk};
use crate::compare::cpu::{LabClock, busy_seconds};

const CLIENTS: usize = 64;
/// Of those that did not, so many may fail.
const FAILED: f64 = 0.001;

pub fn measure(stage: &Stage, effort: &Effort) -> Result<Sample> {
    let url = format!("http://{}/", stage.running.target);
    let client = &stage.lab.clients[0].ns;
    let clock = LabClock::new(&stage.lab)?;
    let (before, lab_before) = (busy_seconds()?, clock.seconds());
    let outcome = wrk::run(client, &url, CLIENTS, true, effort.duration)?;
    let (busy, lab) = (busy_seconds()? - before, clock.seconds() - lab_before);
    ensure!(outcome.requests > 0.0, "no request was answered: {outcome:?}");
    // A box that sheds connections is fast with the others.
    ensure!(outcome.failed <= FAILED * outcome.requests, "too many connections failed: {outcome:?}");
    Ok(Sample::from([
        (Metric::Conn, outcome.requests / outcome.seconds),
        (Metric::ConnP50, outcome.p50_ms),
        (Metric::ConnP99, outcome.p99_ms),
        (Metric::ConnFailed, outcome.failed),
        (Metric::ConnCpu, busy / outcome.requests * 1e6),
        (Metric::ConnLab, lab / outcome.requests * 1e6),
    ]))
}
