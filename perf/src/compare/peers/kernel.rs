//! The kernel's forwarding, no NAT: clients know the node. Once as it is, where a veth's packets are forwarded on the
//! core of their sender; and once with receive packet steering (RPS) to the box's core, as AF_XDP peers have both.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{BOX_CORE, Peer, Running, Setup};
use crate::compare::cases::Case;
use crate::lab::{Lab, LabBuilder};

pub struct Kernel;

/// Forwarding on the box's core.
pub struct SteeredKernel;

const CANNOT: &str = "balance: no VIP, no NAT, one node";

impl Peer for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn what(&self) -> &'static str {
        "the kernel routes, no NAT, no connection tracking; clients address the node"
    }

    fn cannot(&self) -> &'static str {
        CANNOT
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        (case == Case::Memory).then_some("it keeps no flows")
    }

    fn lab(&self, builder: LabBuilder, _: &Setup) -> LabBuilder {
        builder.box_forwarding(true)
    }

    fn takes_offloads(&self) -> bool {
        true
    }

    fn start(&self, lab: &Lab, _: &Setup) -> Result<Running> {
        Ok(Running::at_node(lab))
    }
}

impl Peer for SteeredKernel {
    fn name(&self) -> &'static str {
        "kernel-rps"
    }

    fn what(&self) -> &'static str {
        "the same, steered to the box's core (RPS)"
    }

    fn cannot(&self) -> &'static str {
        CANNOT
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        match case {
            Case::Pps | Case::Live | Case::Latency => None,
            Case::Conn | Case::Bulk => Some("nobody is pinned there"),
            Case::Memory => Some("it keeps no flows"),
        }
    }

    fn lab(&self, builder: LabBuilder, _: &Setup) -> LabBuilder {
        builder.box_forwarding(true)
    }

    fn start(&self, lab: &Lab, _: &Setup) -> Result<Running> {
        let mask = format!("{:x}", 1_u64 << BOX_CORE);
        let script = format!(
            "for interface in clients0 nodes0; do echo {mask} > /sys/class/net/$interface/queues/rx-0/rps_cpus || exit 1; done"
        );
        // `ip netns exec`, because it mounts the namespace's own /sys.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", lab.the_box.name(), "sh", "-c", &script]);
        let output = lab.the_box.output(&mut command)?;
        ensure!(output.status.success(), "setting rps_cpus: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Running::at_node(lab))
    }
}
