//! The kernel's forwarding, no NAT: clients know the node.

use anyhow::Result;

use super::{Peer, Running, Setup};
use crate::compare::cases::Case;
use crate::lab::{Lab, LabBuilder};

pub struct Kernel;

impl Peer for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn what(&self) -> &'static str {
        "the kernel routes, no NAT, no connection tracking; clients address the node"
    }

    fn cannot(&self) -> &'static str {
        "balance: no VIP, no NAT, one node"
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
