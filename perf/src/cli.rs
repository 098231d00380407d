//! What the subcommands of `penstock-perf` do.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::clients::Tally;
use crate::clients::http::Volley;
use crate::clients::udp::UdpVolley;
use crate::lab::{Lab, LabBuilder, Manifest, Netns, Tags, Topology, cleanup};
use crate::privilege;
use crate::servers::{self, NodePorts};

/// The port node servers of a kept lab listen on: the first NodePort Kubernetes gives out.
const NODE_PORT: u16 = 30000;

/// The shape of a lab, on a command line.
#[derive(Debug, Clone, Args)]
pub struct LabArgs {
    /// One interface for clients and nodes instead of one each
    #[arg(long)]
    one_arm: bool,
    #[arg(long, default_value_t = 1)]
    clients: usize,
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Receive queues of each of the box's interfaces
    #[arg(long, default_value_t = 2)]
    queues: u16,
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// A router between clients and box
    #[arg(long)]
    router: bool,
    /// Tag the clients' side: VLAN 100
    #[arg(long, conflicts_with = "qinq")]
    vlan: bool,
    /// Tag the clients' side twice: VLAN 200 outside, 100 inside
    #[arg(long)]
    qinq: bool,
    /// Let the box's kernel forward between its interfaces
    #[arg(long)]
    forward: bool,
}

impl LabArgs {
    fn builder(&self) -> LabBuilder {
        let tags = match (self.vlan, self.qinq) {
            (true, _) => Tags::Vlan,
            (_, true) => Tags::QinQ,
            _ => Tags::None,
        };
        Lab::builder()
            .topology(if self.one_arm { Topology::OneArm } else { Topology::TwoArm })
            .clients(self.clients)
            .nodes(self.nodes)
            .queues(self.queues)
            .mtu(self.mtu)
            .router(self.router)
            .client_tags(tags)
            .box_forwarding(self.forward)
    }
}

pub fn lab_up(args: &LabArgs) -> Result<()> {
    if let Some(reason) = privilege::missing() {
        bail!("{reason}");
    }
    let lab = args.builder().build()?;
    let program = std::env::current_exe().context("finding this program's own file")?;
    for node in &lab.nodes {
        let mut server = Command::new(&program);
        server.args(["node-server", "--name", &node.name, "--tcp", &NODE_PORT.to_string()]);
        server.args(["--udp", &NODE_PORT.to_string()]);
        node.ns.spawn(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    }
    println!("lab {} is up ({} ms)", lab.id(), lab.bring_up().as_millis());
    println!("  box     interfaces {}", lab.box_interfaces().join(", "));
    for host in lab.clients.iter().chain(&lab.nodes) {
        println!("  {:<8}{}, {}", host.name, host.addr.v4, host.addr.v6);
    }
    println!("node servers answer on port {NODE_PORT} (TCP, UDP)");
    let manifest = lab.keep()?;
    println!("  penstock-perf lab shell client0 --lab {id}\n  penstock-perf lab down {id}", id = manifest.id);
    Ok(())
}

pub fn lab_down(id: Option<&str>) -> Result<()> {
    let manifest = find(id)?;
    ensure!(manifest.owner.is_none(), "lab {} belongs to a running process: end that one", manifest.id);
    cleanup::remove(&manifest.id);
    println!("lab {} is gone", manifest.id);
    Ok(())
}

pub fn lab_list() {
    for id in cleanup::sweep() {
        println!("{id}: its process was killed; removed");
    }
    let labs = Manifest::all();
    if labs.is_empty() {
        println!("no lab is up");
    }
    for lab in labs {
        let kept = if lab.owner.is_some() { "owned by a running process" } else { "kept" };
        println!("{}  {:?}, {} clients, {} nodes, {kept}", lab.id, lab.topology, lab.clients, lab.nodes);
    }
}

pub fn lab_shell(host: &str, lab: Option<&str>, command: &[String]) -> Result<()> {
    let id = find(lab)?.id;
    let ns = Netns::open(&format!("{id}-{host}"))?;
    let default = vec![std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into())];
    let words = if command.is_empty() { &default } else { command };
    let (program, arguments) = words.split_first().context("an empty command")?;
    let mut shell = ns.spawn(Command::new(program).args(arguments)).with_context(|| format!("starting {program}"))?;
    let status = shell.wait()?;
    std::process::exit(status.code().unwrap_or(1));
}

/// The lab of this id, or the only one there is.
fn find(id: Option<&str>) -> Result<Manifest> {
    if let Some(id) = id {
        return Manifest::read(id);
    }
    let mut labs = Manifest::all();
    match labs.len() {
        0 => bail!("no lab is up; `penstock-perf lab up` brings one up"),
        1 => Ok(labs.remove(0)),
        _ => bail!("which one? {}", labs.iter().map(|lab| lab.id.as_str()).collect::<Vec<_>>().join(", ")),
    }
}

pub fn node_server(name: &str, tcp: Vec<u16>, udp: Vec<u16>) -> Result<()> {
    ensure!(!tcp.is_empty() || !udp.is_empty(), "no port to listen on: give --tcp or --udp");
    servers::serve_forever(name, &NodePorts { tcp, udp })
}

/// Runs in the caller's own namespace, so that it also serves inside `lab shell`.
pub fn client(target: SocketAddr, connections: u64, concurrency: usize, udp: bool) -> Result<()> {
    let tally = if udp {
        let volley = UdpVolley { concurrency, ..UdpVolley::new(target, connections) };
        volley.run_here(|_| {})
    } else {
        let volley = Volley { concurrency, ..Volley::new(target, connections) };
        volley.run_here(|_| {})
    };
    print_tally(&tally);
    ensure!(tally.failed() == 0, "{} exchanges failed", tally.failed());
    Ok(())
}

fn print_tally(tally: &Tally) {
    for (node, count) in &tally.by_node {
        println!("{node:<10} {count:>8}  {:>5.1} %", tally.share(node) * 100.0);
    }
    for (reason, count) in &tally.failures {
        println!("failed     {count:>8}  {reason}");
    }
    let seconds = tally.elapsed.as_secs_f64();
    println!("{} in {seconds:.2} s", tally.answered() + tally.failed());
}
