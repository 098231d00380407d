//! quilkin, a UDP proxy in Rust: from crates.io, built by `make quilkin`. Over io_uring: its XDP mode sends every packet
//! back by the interface it came by, to the router it came from (0.10.0 swaps the MACs), which this topology has not.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{BOX_CORE, Peer, Running, Setup, node};
use crate::compare::cases::Case;
use crate::compare::process::{Process, find};
use crate::lab::{Lab, plan};
use crate::rig::VIP_PORT;

/// Where `make quilkin` puts it.
const ROOT: &str = "/var/cache/penstock-lab/quilkin";

pub struct Quilkin;

fn program() -> Option<PathBuf> {
    let built = PathBuf::from(ROOT).join("bin/quilkin");
    if built.is_file() { Some(built) } else { find("quilkin") }
}

impl Peer for Quilkin {
    fn name(&self) -> &'static str {
        "quilkin"
    }

    fn what(&self) -> &'static str {
        "quilkin, UDP proxy over io_uring (its XDP mode wants a router on the one interface it uses)"
    }

    fn cannot(&self) -> &'static str {
        "TCP and SCTP; VIPs that are not its interface's own address; a port per session towards the node"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        match case {
            Case::Pps | Case::Live | Case::Latency => None,
            Case::Memory => Some("a port towards the node per session"),
            Case::Conn | Case::Bulk => Some("no TCP"),
        }
    }

    fn missing(&self) -> Option<String> {
        program().is_none().then(|| format!("not built: `make quilkin` does that (ten minutes or so), into {ROOT}"))
    }

    fn opening_rate(&self) -> f64 {
        // A socket each, and a thread's work.
        1_000.0
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        let program = program().context("quilkin is not built")?;
        let mut command = if setup.pinned {
            let mut pinned = Command::new("taskset");
            pinned.args(["--cpu-list", &BOX_CORE.to_string()]).arg(program);
            pinned
        } else {
            Command::new(program)
        };
        command.args(["--log-format", "plain", "--admin.enabled", "false", "--service.udp"]);
        command.args(["--service.udp.port", &VIP_PORT.to_string()]);
        command.args(["--service.udp.workers", &setup.workers().to_string()]);
        command.args(["--provider.static.endpoints", &node(lab, 0).to_string()]);
        let mut process = Process::start(lab, &lab.the_box, "quilkin", &mut command)?;
        let wanted = format!(":{VIP_PORT:04X} ");
        process.wait_until("listening", || {
            ["udp", "udp6"].iter().any(|file| lab.the_box.proc_net(file).is_ok_and(|text| text.contains(&wanted)))
        })?;
        // It answers from the address of the interface, whatever address it was asked at.
        let target = SocketAddrV4::new(plan::CLIENT_NET.host(plan::BOX_HOST).v4, VIP_PORT);
        Ok(Running { target, ..Running::at_node(lab) }.with(process))
    }
}
