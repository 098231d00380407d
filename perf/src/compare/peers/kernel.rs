//! The kernel's forwarding, no NAT: clients know the node. Once as it is, where a veth's packets are forwarded on the
//! core of their sender; and once with receive packet steering (RPS) to the box's core, as AF_XDP peers have both.

use anyhow::Result;

use super::{Peer, Running, Setup, steer_to_box};
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
        steer_to_box(lab)?;
        Ok(Running::at_node(lab))
    }
}
