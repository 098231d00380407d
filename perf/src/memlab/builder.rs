//! How a lab is put together.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use penstock_configs::desired::Mode;
use penstock_configs::file::Timeouts;
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::io::fault::Faults;

use super::client::Client;
use super::host::{Host, Role};
use super::link::{Cables, Link};
use super::node::Node;
use super::random::{Random, mix};
use super::the_box::{BoxPlan, TheBox};
use super::{MemLab, START, check_sizes, plan};

/// How long ended connections answer what comes late: over perfect cables nothing does.
const LINGER: Duration = Duration::from_millis(50);
const LINGER_ROUGH: Duration = Duration::from_secs(5);

/// What a lab is to be like. By default: one client, three nodes, two workers, two arms, perfect cables.
#[derive(Debug, Clone)]
#[must_use = "a lab is built by `build`"]
pub struct Builder {
    clients: u8,
    nodes: u8,
    workers: u16,
    link: Link,
    seed: u64,
    one_arm: bool,
    routed: bool,
    mode: Mode,
    faults: Faults,
    timeouts: Timeouts,
    capacity: Capacity,
    snat_ports: [u16; 2],
    maglev_max: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            clients: 1,
            nodes: 3,
            workers: 2,
            link: Link::default(),
            seed: 1,
            one_arm: false,
            routed: false,
            mode: Mode::Nat,
            faults: Faults::default(),
            timeouts: Timeouts::default(),
            capacity: Capacity { established: 16_384, embryonic: 1024 },
            snat_ports: [1024, 65_535],
            maglev_max: 65_537,
        }
    }
}

impl Builder {
    pub fn clients(self, clients: u8) -> Self {
        Self { clients, ..self }
    }

    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    pub fn workers(self, workers: u16) -> Self {
        Self { workers, ..self }
    }

    pub fn link(self, link: Link) -> Self {
        Self { link, ..self }
    }

    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Clients and nodes on one network; the box has one port.
    pub fn one_arm(self) -> Self {
        Self { one_arm: true, ..self }
    }

    /// Clients behind a router: to the box they all have one link-layer address.
    pub fn routed(self) -> Self {
        Self { routed: true, ..self }
    }

    pub fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Bad days of the box's own rings: short bursts, full rings, late completions.
    pub fn faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    pub fn timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Flows per worker and family.
    pub fn capacity(self, established: u32, embryonic: u32) -> Self {
        Self { capacity: Capacity { established, embryonic }, ..self }
    }

    /// The ports of the SNAT addresses, both ends included.
    pub fn snat_ports(self, first: u16, last: u16) -> Self {
        Self { snat_ports: [first, last], ..self }
    }

    /// The largest Maglev table.
    pub fn maglev_max(self, maglev_max: u32) -> Self {
        Self { maglev_max, ..self }
    }

    /// Builds the lab and starts the box.
    ///
    /// # Errors
    /// No client, node or worker; no room for flow state.
    pub fn build(self) -> Result<MemLab> {
        check_sizes(self.clients, self.nodes, self.workers)?;
        let desired = plan::desired(self.nodes, self.mode);
        let node_port = u8::from(!self.one_arm);
        let mut the_box = TheBox::new(BoxPlan {
            workers: self.workers,
            ports: (0..=node_port).map(plan::box_mac).collect(),
            node_port,
            node_macs: plan::node_macs(self.nodes),
            snat: plan::snat(self.snat_ports),
            timeouts: self.timeouts.clone(),
            faults: self.faults,
            maglev_max: self.maglev_max,
            capacity: self.capacity,
            seed: mix(self.seed),
        })?;
        the_box.start(&desired)?;
        Ok(MemLab {
            now: START,
            seed: self.seed,
            random: Random::new(mix(self.seed ^ 0x626f_78)),
            cables: Cables::new(mix(self.seed ^ 0x6361_626c_6573), self.link),
            hosts: self.hosts(),
            clients: self.clients,
            nodes: self.nodes,
            one_arm: self.one_arm,
            the_box,
            desired,
            loads: Vec::new(),
            load_of: std::collections::BTreeMap::new(),
            opened: 0,
            stray: 0,
        })
    }

    fn hosts(&self) -> Vec<Host> {
        let linger = if self.link.is_perfect() { LINGER } else { LINGER_ROUGH };
        let linger = u64::try_from(linger.as_micros()).unwrap_or(u64::MAX);
        let host = |mac: [u8; 6], address, role| {
            Host::new(
                mac,
                address,
                role,
                mix(self.seed ^ u64::from_be_bytes([0, 0, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]])),
                START,
            )
        };
        let client =
            |index| host(plan::client_mac(index), plan::client(index, self.routed), Role::Client(Client::new(linger)));
        let node = |index| {
            let role = Role::Node(Node::new(index, plan::NODE_PORT, linger));
            host(plan::node_mac(index), plan::node(index), role)
        };
        let mut hosts: Vec<Host> = (0..self.clients).map(client).chain((0..self.nodes).map(node)).collect();
        if self.routed {
            hosts.push(host(plan::ROUTER_MAC, plan::router(), Role::Router));
        }
        hosts
    }

    /// The VIPs of a lab, IPv4 and IPv6, with the port of their services.
    #[must_use]
    pub fn vips() -> ([IpAddr; 2], u16) {
        ([plan::VIP_V4.into(), plan::VIP_V6.into()], plan::VIP_PORT)
    }
}
