//! Throughput: a large file over one connection and over many. With MTU-sized packets, as they come from a wire;
//! and once more with the hosts' segmentation and checksum offloads, for peers that can take those.

use anyhow::{Result, ensure};

use super::{Case, Effort, Metric, Sample, Stage, wrk};
use crate::compare::peers::Peer;
use crate::compare::servers::BULK_PATH;

const MANY: usize = 16;

pub fn measure(peer: &dyn Peer, effort: &Effort) -> Result<Sample> {
    let mut sample =
        streams(&Stage::up(peer, Case::Bulk, effort, false)?, effort, [Metric::BulkOne, Metric::BulkMany])?;
    if peer.takes_offloads() {
        let stage = Stage::up(peer, Case::Bulk, effort, true)?;
        sample.append(&mut streams(&stage, effort, [Metric::BulkOneOffloads, Metric::BulkManyOffloads])?);
    }
    Ok(sample)
}

fn streams(stage: &Stage, effort: &Effort, metrics: [Metric; 2]) -> Result<Sample> {
    let url = format!("http://{}{BULK_PATH}", stage.running.target);
    let mut sample = Sample::new();
    for (metric, connections) in metrics.into_iter().zip([1, MANY]) {
        let outcome = wrk::run(&stage.lab.clients[0].ns, &url, connections, false, effort.duration)?;
        ensure!(outcome.bytes_per_second > 1e6 && outcome.failed == 0.0, "{url}, {connections} at a time: {outcome:?}");
        sample.insert(metric, outcome.bytes_per_second * 8.0 / 1e9);
    }
    Ok(sample)
}
