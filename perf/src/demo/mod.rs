//! `make demo`: what Penstock does, told while it happens. Each part is a module with a `run`;
//! a further part joins the list in [`run`].

mod box_in_lab;
mod kubernetes;
pub(crate) mod narrator;
mod report;

use std::io::{BufRead, IsTerminal};

use anyhow::Result;
use clap::Args;

use crate::{memlab, privilege};

#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Stay up at the end until Enter or Ctrl-C, to look around
    #[arg(long)]
    pub keep: bool,
    /// HTTP connections before, and again after, a node is taken out
    #[arg(long, default_value_t = 3000)]
    pub connections: u64,
    /// UDP flows before, and again after
    #[arg(long, default_value_t = 1000)]
    pub udp_flows: u64,
    /// Run over memory ports in user space even where namespaces are to be had
    #[arg(long)]
    pub in_memory: bool,
}

/// Runs the demo; an error if any exchange failed.
pub fn run(args: &DemoArgs) -> Result<()> {
    match privilege::missing() {
        None if !args.in_memory => {
            // The last part is what stays up.
            box_in_lab::run(&DemoArgs { keep: false, ..args.clone() })?;
            kubernetes::run(args)
        }
        reason => in_memory(reason.unwrap_or("asked for with --in-memory"), args),
    }
}

/// At a terminal until Enter; elsewhere until a signal comes.
fn wait_for_enter() -> Result<()> {
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

/// Where namespaces or AF_XDP are not to be had: the same pipeline between user-space TCP stacks.
fn in_memory(reason: &str, args: &DemoArgs) -> Result<()> {
    let options = memlab::DemoOptions {
        connections: args.connections,
        udp_flows: args.udp_flows,
        reason: reason.to_owned(),
        progress: std::io::stdout().is_terminal(),
        ..memlab::DemoOptions::default()
    };
    let summary = memlab::demo(&mut std::io::stdout(), &options)?;
    anyhow::ensure!(summary.failed() == 0, "{} connections failed", summary.failed());
    println!("\nNot shown: the box in front of Kubernetes, whose nodes are network namespaces ({reason}).");
    Ok(())
}
