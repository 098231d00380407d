//! The lab without a kernel: user-space TCP/IP stacks (smoltcp) as client and nodes around workers over
//! memory ports. One thread, virtual time, every random choice from one seed: a run repeats exactly,
//! with frames lost, doubled, reordered and arriving at any queue.

mod host;
mod nic;
#[cfg(test)]
mod tests;
mod the_box;
mod wire;

use std::net::IpAddr;

use anyhow::{Result, ensure};
use penstock_configs::desired::{Backend, BackendSet, Node, Protocol};
use penstock_configs::file::{ConfigFile, Limits, SCHEMA_VERSION, SnatAddress};

use crate::clients::{Failure, Tally};
use crate::config::{self, ALL_NODES, NODE_PORT};
use crate::lab::plan::{NODE_NET, Topology, VIP_NET, snat, vip};
use host::Host;
use the_box::MemBox;
pub use wire::Impairment;
use wire::Wire;

const VIP_PORT: u16 = 80;
/// The client sits on the VIPs' own network, so that it asks for them by ARP and ND.
const CLIENT_HOST: u8 = 101;
/// Virtual microseconds a run starts at: tick 0 means "never" in places.
const START: u64 = 1_000_000_000;
/// The longest step when nothing happens: workers' own timers.
const IDLE_STEP: u64 = 10_000;
/// Virtual time after which a connection counts as failed.
const PATIENCE: u64 = 120_000_000;

/// Where a frame is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Clients,
    Nodes,
}

/// What to run it with.
#[derive(Debug, Clone)]
pub struct MemLabConfig {
    pub seed: u64,
    pub workers: u16,
    pub nodes: usize,
    pub impairment: Impairment,
}

impl Default for MemLabConfig {
    fn default() -> Self {
        Self { seed: 1, workers: 2, nodes: 3, impairment: Impairment::default() }
    }
}

/// A client, the box's workers, and nodes.
pub struct MemLab {
    now: u64,
    wire: Wire,
    client: Host,
    nodes: Vec<Host>,
    the_box: MemBox,
    pub config: ConfigFile,
    next_port: u16,
}

impl MemLab {
    pub fn new(settings: &MemLabConfig) -> Result<Self> {
        let config = mem_config(settings.nodes);
        let nodes: Vec<Host> = (0..settings.nodes)
            .map(|index| Host::node(&format!("node{index}"), Topology::TwoArm.node(index), START))
            .collect();
        let mut the_box = MemBox::new(settings.workers, &config, &nodes)?;
        the_box.apply(&config)?;
        Ok(Self {
            now: START,
            wire: Wire::new(settings.seed, settings.impairment),
            client: Host::client("client0", VIP_NET.host(CLIENT_HOST), START),
            nodes,
            the_box,
            config,
            next_port: 20_000,
        })
    }

    /// Changes the config; workers run it from their next turn on.
    pub fn reconfigure(&mut self, edit: impl FnOnce(&mut ConfigFile)) -> Result<()> {
        edit(&mut self.config);
        self.the_box.apply(&self.config)
    }

    /// Slots that moved at the last change for a node that stayed, and the table's size.
    #[must_use]
    pub fn slots_moved(&self) -> Option<(u32, u32)> {
        self.the_box.slots_moved()
    }

    /// Opens `connections` TCP connections to the VIP, `concurrency` at a time; each fetches `bytes`
    /// bytes and compares them. Returns when all have ended.
    pub fn connections(&mut self, v6: bool, connections: u64, concurrency: usize, bytes: u64) -> Tally {
        let target = vip(0).ip(v6);
        let (mut tally, mut begun) = (Tally::default(), 0);
        let started = self.now;
        while tally.answered() + tally.failed() < connections {
            while begun < connections && self.client.open() < concurrency {
                begun += 1;
                let port = self.local_port();
                self.client.connect(target, VIP_PORT, port, bytes, self.now + PATIENCE);
            }
            self.step();
            for outcome in self.client.ended(self.now) {
                tally.add(outcome.map_err(Failure::Answer));
            }
        }
        tally.elapsed = std::time::Duration::from_micros(self.now - started);
        tally
    }

    /// One datagram and its answer on each of `flows` sockets.
    pub fn datagrams(&mut self, v6: bool, flows: u64) -> Tally {
        let target = vip(0).ip(v6);
        let mut tally = Tally::default();
        let started = self.now;
        for _ in 0..flows {
            let port = self.local_port();
            let deadline = self.now + 1_000_000;
            self.client.send_datagram(target, VIP_PORT, port);
            let answer = loop {
                self.step();
                if let Some(node) = self.client.datagram() {
                    break Ok(node);
                }
                if self.now > deadline {
                    break Err(Failure::TimedOut("waiting for the datagram"));
                }
            };
            tally.add(answer);
        }
        tally.elapsed = std::time::Duration::from_micros(self.now - started);
        tally
    }

    /// Lets frames under way arrive, then checks what every worker counted: the ledger balances and
    /// every frame of the packet memories is where it belongs.
    pub fn settle(&mut self) -> Result<()> {
        let until = self.now + 3_000_000;
        while self.now < until {
            self.step();
        }
        self.the_box.check()
    }

    /// Frames the wire lost, doubled and delayed.
    #[must_use]
    pub fn impaired(&self) -> wire::Impaired {
        self.wire.impaired
    }

    /// Virtual time since the start, and packets the box has sent.
    #[must_use]
    pub fn totals(&self) -> (std::time::Duration, u64) {
        (std::time::Duration::from_micros(self.now - START), self.the_box.sent())
    }

    fn local_port(&mut self) -> u16 {
        self.next_port = if self.next_port == u16::MAX { 20_000 } else { self.next_port + 1 };
        self.next_port
    }

    /// Everything due now happens; then time goes to the next event.
    fn step(&mut self) {
        for (side, to_box, frame) in self.wire.due(self.now) {
            if to_box {
                let queue = self.wire.pick(self.the_box.workers());
                self.the_box.inject(side, queue, &frame);
            } else if side == Side::Clients {
                self.client.receive(frame);
            } else {
                self.nodes.iter_mut().for_each(|node| node.receive(frame.clone()));
            }
        }
        self.the_box.turn(self.now);
        for (side, frame) in self.the_box.take() {
            self.wire.send(self.now, side, false, frame);
        }
        let mut next = self.now + IDLE_STEP;
        for (side, host) in
            std::iter::once((Side::Clients, &mut self.client)).chain(self.nodes.iter_mut().map(|n| (Side::Nodes, n)))
        {
            next = next.min(host.poll(self.now));
            for frame in host.take() {
                self.wire.send(self.now, side, true, frame);
            }
        }
        next = next.min(self.wire.next_due().unwrap_or(u64::MAX));
        self.now = next.max(self.now + 1);
    }
}

fn mem_config(nodes: usize) -> ConfigFile {
    let nodes: Vec<Node> = (0..nodes)
        .map(|index| {
            let addr = Topology::TwoArm.node(index);
            Node { name: format!("node{index}"), addresses: vec![addr.v4.into(), addr.v6.into()] }
        })
        .collect();
    let backends: Vec<Backend> = nodes.iter().map(|node| config::backend(&node.name, NODE_PORT)).collect();
    let vip = vip(0);
    let service = |name, address: IpAddr, protocol| config::service(name, address, VIP_PORT, protocol);
    ConfigFile {
        version: SCHEMA_VERSION,
        the_box: Default::default(),
        ports: Vec::new(),
        workers: Default::default(),
        snat: [snat().v4.into(), snat().v6.into()]
            .map(|address| SnatAddress { address, ports: [1024, 65_535], shared: false })
            .into(),
        limits: Limits { flows_ipv4: 1 << 14, flows_ipv6: 1 << 14, embryonic: 1 << 12, ..Limits::default() },
        timeouts: Default::default(),
        nodes,
        sets: vec![BackendSet { name: ALL_NODES.into(), backends }],
        services: vec![
            service("web", vip.v4.into(), Protocol::Tcp),
            service("web-udp", vip.v4.into(), Protocol::Udp),
            service("web6", vip.v6.into(), Protocol::Tcp),
            service("web6-udp", vip.v6.into(), Protocol::Udp),
        ],
    }
}

/// The box's own address on a side; its stacks answer nobody, but last hops need a name.
pub(crate) fn port_mac(side: Side) -> [u8; 6] {
    match side {
        Side::Clients => [2, 0, 0, 0, 0xb0, 0],
        Side::Nodes => [2, 0, 0, 0, 0xb0, 1],
    }
}

/// Checks that the plan's networks hold what this module assumes of them.
pub fn check_plan() -> Result<()> {
    ensure!(VIP_NET.host(CLIENT_HOST).v4 != vip(0).v4, "the client has the VIP's address");
    ensure!(NODE_NET.host(200).v4 == snat().v4, "the SNAT address moved out of the nodes' network");
    Ok(())
}
