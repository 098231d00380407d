//! `penstock`, the operator's hand on a running dataplane.
//!
//! Every command is a function from the API's answers to text; what a command prints goes through
//! [`screen`], so that it fits the terminal, or is plain where there is none.

mod apply;
mod check;
mod control;
mod counters;
mod doctor;
mod drain;
mod failure;
mod flows;
mod plan;
mod screen;
mod status;
mod table;
mod top;
mod units;
mod why;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use self::control::Control;
use self::failure::{Failure, Outcome};
use self::screen::Screen;
use crate::client::{DEFAULT_SOCKET, Dataplane};

#[derive(Debug, Parser)]
#[command(name = "penstock", version, about = "Look at and steer the load balancer on this box")]
#[command(after_help = "Exit codes: 0 done, 1 it failed, 2 what you gave is at fault.")]
struct Arguments {
    /// The dataplane's socket
    #[arg(long, global = true, env = "PENSTOCK_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// penstock-control's socket; default: control.sock beside the dataplane's
    #[arg(long, global = true, env = "PENSTOCK_CONTROL_SOCKET", value_name = "PATH")]
    control_socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ports, workers, services, backends, owners and what deserves attention
    Status(status::Arguments),
    /// Why a Service of the cluster is pending, or a node out of it; without a name, all Services
    Why(why::Arguments),
    /// Check a config file: every fault with its line and remedy
    Check(check::Arguments),
    /// What would change if FILE were served
    Plan(plan::Arguments),
    /// Serve a snapshot (JSON) or the services of a config file (TOML) as an owner of its own
    Apply(apply::Arguments),
    /// List flows
    Flows(flows::Arguments),
    /// Where packets went, and why those that were dropped were
    Counters(counters::Arguments),
    /// Rates, refreshed
    Top(top::Arguments),
    /// Take a node out of service: it keeps its flows and gets no new ones
    Drain(drain::Arguments),
    /// Put a drained node back
    Undrain(drain::UndrainArguments),
    /// Remove the XDP program and its pins, routes and neighbour entries: the kernel sees all packets again
    Detach(drain::DetachArguments),
    /// What a drop reason means
    Explain(counters::ExplainArguments),
    /// Check the machine: kernel, limits, interfaces, sysctls
    Doctor(doctor::Arguments),
}

/// Parses the command line, runs, and reports.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told(code)) => ExitCode::from(code),
        Err(failure) => {
            // Nothing more can be done where not even standard error takes a line.
            let _ = writeln!(std::io::stderr(), "penstock: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

async fn run(arguments: Arguments) -> Outcome {
    let dataplane = Dataplane::new(&arguments.socket);
    let control = Control::new(arguments.control_socket.as_deref(), &arguments.socket);
    let screen = Screen::of_stdout();
    match arguments.command {
        Command::Status(arguments) => status::run(&dataplane, &control, &screen, &arguments).await,
        Command::Why(arguments) => why::run(&control, &screen, &arguments).await,
        Command::Check(arguments) => check::run(&screen, &arguments),
        Command::Plan(arguments) => plan::run(&dataplane, &screen, &arguments).await,
        Command::Apply(arguments) => apply::run(&dataplane, &screen, &arguments).await,
        Command::Flows(arguments) => flows::run(&dataplane, &screen, &arguments).await,
        Command::Counters(arguments) => counters::run(&dataplane, &screen, &arguments).await,
        Command::Top(arguments) => top::run(&dataplane, &screen, &arguments).await,
        Command::Drain(arguments) => drain::run(&dataplane, &screen, &arguments).await,
        Command::Undrain(arguments) => drain::undrain(&dataplane, &screen, &arguments).await,
        Command::Detach(arguments) => drain::detach(&arguments),
        Command::Explain(arguments) => counters::explain(&dataplane, &screen, &arguments).await,
        Command::Doctor(arguments) => doctor::run(&dataplane, &screen, &arguments).await,
    }
}

/// `2`, `0.5`: seconds between refreshes.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("between 0.1 and 3600 seconds".to_owned())
    }
}
