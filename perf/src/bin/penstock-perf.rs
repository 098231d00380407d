//! The lab's command line.

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use penstock_perf::churn::{self, command::ChurnArgs};
use penstock_perf::cli::{self, LabArgs};
use penstock_perf::compare::command::{self as compare, CompareArgs};
use penstock_perf::compare::forwarder::{self, ForwarderArgs};
use penstock_perf::demo::{self, DemoArgs};
use penstock_perf::kube_scale;
use penstock_perf::pipeline_bench::{self, PipelineArgs};
use penstock_perf::scale::{self, ScaleArgs};
use penstock_perf::traffic::{self, command::LoadArgs, hardware_check::HardwareCheckArgs};

/// Penstock's lab: hosts made of network namespaces around one box, traffic through it, the demo.
#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what Penstock does: three nodes, a few thousand connections, one node less
    Demo(DemoArgs),
    /// Make, list, enter and remove networks of namespaces
    #[command(subcommand)]
    Lab(LabCommand),
    /// Measure the pipeline over memory, beside the bare limit of the same loop
    Pipeline(PipelineArgs),
    /// Measure what grows: workers, snapshots, tables, expiry, memory
    Scale(ScaleArgs),
    /// Send packets through a box at a rate, and say what became of each
    Load(LoadArgs),
    /// Measure control over a large cluster: its own time, an edit's way, memory, rest
    Kubernetes(kube_scale::ScaleArgs),
    /// The same traffic through Penstock, a bare AF_XDP forwarder, the kernel, nftables, HAProxy and others, in turn
    Compare(CompareArgs),
    /// The bare AF_XDP forwarder of `compare`
    #[command(hide = true)]
    Forward(ForwarderArgs),
    /// Open and close many small connections through a box, and say whether any failed
    Churn(ChurnArgs),
    /// Run what perf/hardware has for real NICs on a lab's interfaces: DPDK testpmd beside our own generators
    HardwareCheck(HardwareCheckArgs),
    /// Answer on a node's ports with the node's name, in the namespace the command runs in
    NodeServer(NodeServerArgs),
    /// Open connections to an address and count who answered
    Client(ClientArgs),
}

#[derive(Subcommand)]
enum LabCommand {
    /// Bring a lab up, with node servers running, and leave it up
    Up(LabArgs),
    /// Take a lab down: processes, namespaces, files
    Down {
        /// The lab's id as `lab list` shows it; default: the only one
        id: Option<String>,
    },
    /// Labs of this machine
    List,
    /// A shell in a host of a lab
    Shell {
        /// box, router, client0, node2, ...
        host: String,
        /// The lab's id; default: the only one
        #[arg(long)]
        lab: Option<String>,
        /// A command instead of a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Args)]
struct NodeServerArgs {
    /// The name to answer with
    #[arg(long)]
    name: String,
    /// TCP ports (HTTP/1.1): /, /bytes/N, POST /upload, /slow/N, /push/LINES/MILLISECONDS
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// UDP ports: every datagram comes back with the name in front
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
}

#[derive(Args)]
struct ClientArgs {
    /// Address and port, an IPv6 address in brackets
    target: std::net::SocketAddr,
    /// Connections (UDP: flows of two datagrams)
    #[arg(long, short = 'n', default_value_t = 1000)]
    connections: u64,
    /// At a time
    #[arg(long, short, default_value_t = 32)]
    concurrency: usize,
    /// UDP datagrams instead of HTTP connections
    #[arg(long)]
    udp: bool,
}

fn main() -> Result<()> {
    // Release builds abort on panic, so nothing is dropped: labs go before the process does.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if cfg!(panic = "abort") {
            penstock_perf::lab::cleanup::remove_all_of_this_process();
        }
    }));
    penstock_perf::lab::cleanup::outcome(run(Cli::parse().command))
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Lab(LabCommand::Up(args)) => cli::lab_up(&args),
        Command::Lab(LabCommand::Down { id }) => cli::lab_down(id.as_deref()),
        Command::Lab(LabCommand::List) => {
            cli::lab_list();
            Ok(())
        }
        Command::Lab(LabCommand::Shell { host, lab, command }) => cli::lab_shell(&host, lab.as_deref(), &command),
        Command::Pipeline(args) => pipeline_bench::command(&args),
        Command::Scale(args) => scale::command(&args),
        Command::Load(args) => traffic::command::command(&args),
        Command::Kubernetes(args) => kube_scale::command(&args),
        Command::Compare(args) => compare::command(&args),
        Command::Forward(args) => forwarder::command(&args),
        Command::Churn(args) => churn::command::command(&args),
        Command::HardwareCheck(args) => traffic::hardware_check::command(&args),
        Command::NodeServer(args) => cli::node_server(&args.name, args.tcp, args.udp),
        Command::Client(args) => cli::client(args.target, args.connections, args.concurrency, args.udp),
    }
}
