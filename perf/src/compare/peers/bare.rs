//! The bare AF_XDP forwarder (compare::forwarder), as a process.

use std::process::Command;

use anyhow::Result;

use super::{BOX_CORE, Peer, Running, Setup, mac_of, mac_text, node, own_vip, vip};
use crate::compare::cases::Case;
use crate::compare::process::Process;
use crate::dataplane::program;
use crate::lab::Lab;

pub struct Bare;

impl Peer for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn what(&self) -> &'static str {
        "bare AF_XDP forwarder: constant addresses written into every packet, nothing looked up"
    }

    fn cannot(&self) -> &'static str {
        "more than one node and one client host; no flows, no health, no source NAT, no ARP of its own"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        (case == Case::Memory).then_some("it keeps no flows")
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        own_vip(lab)?;
        let mac = |ns, interface| mac_of(ns, interface).map(mac_text);
        let mut command = Command::new(program("penstock-perf")?);
        command.args(["forward", "--clients", "clients0", "--nodes", "nodes0"]);
        command.args(["--client-mac", &mac(&lab.clients[0].ns, "eth0")?]);
        command.args(["--node-mac", &mac(&lab.nodes[0].ns, "eth0")?]);
        command.args(["--vip", &vip().to_string(), "--node", &node(lab, 0).to_string()]);
        if setup.pinned {
            command.args(["--core", &BOX_CORE.to_string(), "--spin"]);
        }
        let mut process = Process::start(lab, &lab.the_box, "forwarder", &mut command)?;
        process.wait_until("forwarding", || {
            let attached =
                |interface| lab.the_box.sh(&format!("ip link show {interface}")).is_ok_and(|l| l.contains("xdp"));
            attached("clients0") && attached("nodes0")
        })?;
        Ok(Running::at_vip(lab).with(process))
    }
}
