//! `penstock-perf pipeline` alone, until the lab's own binary has it.

use clap::Parser;
use penstock_perf::pipeline_bench::{PipelineArgs, command};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArgs,
}

fn main() -> anyhow::Result<()> {
    command(&Arguments::parse().pipeline)
}
