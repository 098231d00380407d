//! New connections: 64 HTTP clients, each connection for one short request. Nobody is pinned: clients, servers and
//! box share the cores as the scheduler likes, so at the limit of the machine the rate says what all of it costs
//! together, and the difference to `direct` what the box adds.
//!
//! wrk counts a request's time from when its connection stands, so the times are of the exchange without the connect: of
//! a proxy the connection to the node is in it, of a NAT box it is not. A SYN that was lost shows in what was sent again.

use anyhow::{Result, ensure};

use super::memory::ConntrackLimit;
use super::{Effort, Metric, Sample, Stage, wrk};
use crate::compare::cpu::{LabClock, busy_seconds};

const CLIENTS: usize = 64;
/// Of those that did not, so many may fail.
const FAILED: f64 = 0.001;
/// Connections the kernel may track: one rests for two minutes when it is over, and a full table drops SYNs. Any NAT box has
/// its limit raised.
const TRACKED: u64 = 4 << 20;

pub fn measure(stage: &Stage, effort: &Effort) -> Result<Sample> {
    let _limit = ConntrackLimit::raise(TRACKED)?;
    let url = format!("http://{}/", stage.running.target);
    let client = &stage.lab.clients[0].ns;
    let clock = LabClock::new(&stage.lab)?;
    let tcp_before = stage.lab.tcp_counters()?;
    let (before, lab_before) = (busy_seconds()?, clock.seconds());
    let outcome = wrk::run(client, &url, CLIENTS, true, effort.duration)?;
    let (busy, lab) = (busy_seconds()? - before, clock.seconds() - lab_before);
    let repeated = stage.lab.tcp_counters()?.since(&tcp_before).retransmitted as f64;
    ensure!(outcome.requests > 0.0, "no request was answered: {outcome:?}");
    // A box that sheds connections is fast with the others.
    ensure!(outcome.failed <= FAILED * outcome.requests, "too many connections failed: {outcome:?}");
    Ok(Sample::from([
        (Metric::Conn, outcome.requests / outcome.seconds),
        (Metric::ConnP50, outcome.p50_ms),
        (Metric::ConnP99, outcome.p99_ms),
        (Metric::ConnFailed, outcome.failed),
        (Metric::ConnRepeated, repeated / outcome.requests),
        (Metric::ConnCpu, busy / outcome.requests * 1e6),
        (Metric::ConnLab, lab / outcome.requests * 1e6),
    ]))
}
