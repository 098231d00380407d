//! `penstock drain`, `undrain` and `detach`: what an operator does before working on a node, and
//! when the box is to stop being a load balancer.

use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use penstock_configs::api::Drain;
use penstock_configs::desired::BackendState;
use penstock_configs::status::Status;

use super::failure::{Failure, Outcome};
use super::screen::{Screen, Style};
use super::table::{Column, Table, styled};
use super::units::{count, grouped};
use crate::client::Dataplane;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The node's name or an address; none: list what is drained
    #[arg(value_name = "NODE|ADDRESS")]
    target: Option<String>,
    /// End its flows at once instead of letting them finish
    #[arg(long)]
    now: bool,
    /// Why, for those who look at `penstock status`
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct UndrainArguments {
    /// As it was named to `penstock drain`
    #[arg(value_name = "NODE|ADDRESS")]
    target: String,
}

#[derive(Debug, Args)]
pub(super) struct DetachArguments {
    /// As `penstock-dataplane detach` takes them: --run-dir DIR, where box.run_dir is not /run/penstock
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(super) async fn run(dataplane: &Dataplane, screen: &Screen, arguments: &Arguments) -> Outcome {
    let Some(target) = &arguments.target else { return list(dataplane, screen).await };
    let state = if arguments.now { BackendState::Down } else { BackendState::Draining };
    let drain = Drain { state, reason: arguments.reason.clone(), ..Drain::default() };
    let accepted = dataplane.drain(target, &drain).await?;
    let addresses = dataplane.drains().await?.remove(target).unwrap_or_default().addresses;
    let left = flows_on(&dataplane.status().await?, &addresses);
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut out = if arguments.now {
        format!("{target} ({}) is out of service; its flows end\n", addresses.join(", "))
    } else {
        format!(
            "{target} ({}) gets no new flows; {} left on it end in their own time. Put it back: penstock undrain {target}\n",
            addresses.join(", "),
            grouped(left)
        )
    };
    if !accepted.acknowledged {
        out.push_str("not every worker has taken it up yet; see `penstock status`\n");
    }
    for warning in &accepted.warnings {
        let _ = writeln!(out, "{}", screen.wrap("warning: ", warning));
    }
    screen.print(&out)
}

async fn list(dataplane: &Dataplane, screen: &Screen) -> Outcome {
    let drains = dataplane.drains().await?;
    if drains.is_empty() {
        return screen.print("nothing is drained\n");
    }
    let status = dataplane.status().await?;
    let mut table = Table::new(&[
        ("DRAINED", Column::Cut),
        ("ADDRESSES", Column::Cut),
        ("FLOWS LEFT", Column::Right),
        ("STATE", Column::Left),
        ("REASON", Column::Cut),
    ]);
    for (target, drain) in &drains {
        let addresses: Vec<String> = drain.addresses.iter().map(ToString::to_string).collect();
        let (word, style) = match drain.state {
            BackendState::Down => ("down", Style::Bad),
            BackendState::Draining => ("draining", Style::Warn),
            BackendState::Active => ("active", Style::Good),
        };
        table.row(vec![
            target.as_str().into(),
            addresses.join(" ").into(),
            grouped(flows_on(&status, &drain.addresses)).into(),
            styled(word, style),
            drain.reason.as_str().into(),
        ]);
    }
    screen.print(&table.render(screen))
}

fn flows_on(status: &Status, addresses: &[std::net::IpAddr]) -> u64 {
    let backends = status.services.iter().flat_map(|service| &service.backends);
    backends.filter(|backend| addresses.contains(&backend.address)).map(|backend| backend.flows).sum()
}

pub(super) async fn undrain(dataplane: &Dataplane, screen: &Screen, arguments: &UndrainArguments) -> Outcome {
    let target = &arguments.target;
    dataplane.undrain(target).await?;
    let left = dataplane.drains().await?.len();
    let rest = if left == 0 { String::new() } else { format!("; {} still in place", count(left, "drain")) };
    screen.print(&format!("{target} gets new flows again, health permitting{rest}\n"))
}

/// The program and its pins belong to the dataplane's own loader: it lies beside this binary.
pub(super) fn detach(arguments: &DetachArguments) -> Outcome {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("penstock-dataplane")));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("penstock-dataplane"));
    let error = Command::new(&program).arg("detach").args(&arguments.rest).exec();
    Err(Failure::failed(format!("{}: cannot be run: {error}; install penstock-dataplane", program.display())))
}
