//! Penstock's dataplane as it is served, full NAT.

use anyhow::{Context, Result};
use penstock_configs::file::{Limits, PollMode, SnatAddress};

use super::{BOX_CORE, Peer, Running, Setup};
use crate::compare::cases::Case;
use crate::config;
use crate::dataplane::Dataplane;
use crate::lab::Lab;
use crate::rig::wait_for_addresses;

pub struct Penstock;

impl Peer for Penstock {
    fn name(&self) -> &'static str {
        "penstock"
    }

    fn what(&self) -> &'static str {
        "full NAT, weighted Maglev, one worker"
    }

    fn cannot(&self) -> &'static str {
        "read what is inside a connection (HTTP, TLS)"
    }

    fn unfit(&self, _: Case) -> Option<&'static str> {
        None
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        let mut config = config::base(lab, 1);
        config.services = config::web_services();
        config.limits = limits(setup);
        config.timeouts.udp_one_way = 300;
        if setup.pinned {
            config.workers.poll = PollMode::Busy;
            config.workers.cores = vec![u16::try_from(BOX_CORE)?];
        }
        let extra = setup.snat_addresses().into_iter().skip(1);
        config.snat.extend(extra.map(|address| SnatAddress {
            address: address.into(),
            ports: [1024, 65535],
            shared: false,
        }));
        let dataplane = Dataplane::start(lab, &config)?;
        wait_for_addresses(lab, &config).with_context(|| dataplane.log_tail())?;
        Ok(Running { dataplane: Some(dataplane), ..Running::at_vip(lab) })
    }
}

/// Room for every flow, also while it is half open; in the memory case no more than it takes.
fn limits(setup: &Setup) -> Limits {
    let flows = setup.flows.next_power_of_two();
    let limits = Limits { flows_ipv6: 1 << 12, ..Limits::default() };
    match setup.case {
        // Datagrams have three quarters of a table.
        Case::Memory => Limits { flows_ipv4: flows.div_ceil(3) * 4, ..limits },
        _ => Limits { flows_ipv4: (flows * 2).max(1 << 18), embryonic: (flows * 2).max(1 << 18), ..limits },
    }
}
