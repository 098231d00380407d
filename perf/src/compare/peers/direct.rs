//! No box at all: what generator, clients and servers cost by themselves.

use anyhow::Result;

use super::{Outlet, Peer, Running, Setup, vip};
use crate::compare::cases::Case;
use crate::lab::{Lab, LabBuilder, Topology};

pub struct Direct;

impl Peer for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn what(&self) -> &'static str {
        "no box: packets end where they would enter it, clients and nodes share a segment"
    }

    fn cannot(&self) -> &'static str {
        "anything: it is what the lab itself costs"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        matches!(case, Case::Live | Case::Memory).then_some("there is nothing to measure")
    }

    fn lab(&self, builder: LabBuilder, setup: &Setup) -> LabBuilder {
        if generated(setup) { builder } else { builder.topology(Topology::OneArm) }
    }

    fn takes_offloads(&self) -> bool {
        true
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        let mut running = Running::at_node(lab);
        if generated(setup) {
            running.target = vip();
            running.outlet = Outlet { ns: lab.the_box.clone(), interface: "clients0", address: vip() };
        }
        Ok(running)
    }
}

/// Whether packets come from the lab's generator, which wants no host at the other end.
fn generated(setup: &Setup) -> bool {
    matches!(setup.case, Case::Pps | Case::Live | Case::Latency)
}
