//! quilkin, a UDP proxy in Rust: from crates.io, if somebody has built it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Peer, Running, Setup, node, own_vip, vip};
use crate::compare::cases::Case;
use crate::compare::process::{Process, find};
use crate::lab::Lab;

/// Where `cargo install quilkin --locked --root` puts it for the lab.
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
        "quilkin, UDP proxy"
    }

    fn cannot(&self) -> &'static str {
        "TCP and SCTP; a port per session towards the node, the client's address is lost"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        match case {
            Case::Pps | Case::Latency => None,
            Case::Memory => Some("a port towards the node per session"),
            Case::Conn | Case::Bulk => Some("no TCP"),
        }
    }

    fn missing(&self) -> Option<String> {
        // One of its dependencies (gxhash) does not compile without AES instructions asked for.
        let remedy =
            || format!("not built (RUSTFLAGS=\"-C target-feature=+aes\" cargo install quilkin --locked --root {ROOT})");
        program().is_none().then(remedy)
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        own_vip(lab)?;
        let mut command = Command::new(program().context("quilkin is not built")?);
        command.args(["--log-format", "plain", "--admin.enabled", "false", "--service.udp"]);
        command.args(["--service.udp.port", &vip().port().to_string()]);
        command.args(["--service.udp.workers", &setup.workers().to_string()]);
        command.args(["--provider.static.endpoints", &node(lab, 0).to_string()]);
        let mut process = Process::start(lab, &lab.the_box, "quilkin", &mut command)?;
        let wanted = format!(":{:04X} ", vip().port());
        process.wait_until("listening", || {
            ["udp", "udp6"].iter().any(|file| lab.the_box.proc_net(file).is_ok_and(|text| text.contains(&wanted)))
        })?;
        Ok(Running::at_vip(lab).with(process))
    }
}
