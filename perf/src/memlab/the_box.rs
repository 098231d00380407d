//! The box: the dataplane's own workers, pipelines and tables, over memory ports, driven by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use penstock_configs::desired::{Announce, Desired, Health};
use penstock_configs::file::ConfigFile;
use penstock_dataplane::rss::Placement;
use penstock_dataplane::clock::Now;
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::handoff::Exchange;
use penstock_dataplane::io::mem::{MemPeer, MemPort, pair};
use penstock_dataplane::io::{FramePool, PacketMemory};
use penstock_dataplane::persist::Store;
use penstock_dataplane::pipeline::{Pipeline, PipelineConfig};
use penstock_dataplane::publish::Mailbox;
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::tables::{Compiler, Hop, Inputs, PortView, Tables, View};
use penstock_dataplane::verdict::{PortId, WorkerId};
use penstock_dataplane::worker::{Attached, IdlePolicy, Worker, WorkerParts};
use rustc_hash::FxHashSet;

use super::host::Host;
use super::{Side, port_mac};

const FRAMES: u32 = 2048;
const FRAME_SIZE: u32 = 2048;
const HEADROOM: u32 = 256;
const RING: usize = 512;
const MTU: u32 = 1500;

pub(super) struct MemBox {
    workers: Vec<Worker<MemPort, MemPort>>,
    /// Far ends, by worker: clients' side, nodes' side.
    peers: Vec<[MemPeer; 2]>,
    mailboxes: Vec<Arc<Mailbox>>,
    stats: Vec<Arc<WorkerStats>>,
    compiler: Compiler,
    tables: Arc<Tables>,
    node_macs: BTreeMap<IpAddr, [u8; 6]>,
    publications: u64,
}

impl MemBox {
    pub(super) fn new(workers: u16, config: &ConfigFile, nodes: &[Host]) -> Result<Self> {
        let exchange = Arc::new(Exchange::new(workers, FRAME_SIZE as usize).context("hand-off rings")?);
        let mut made = Self {
            workers: Vec::new(),
            peers: Vec::new(),
            mailboxes: Vec::new(),
            stats: Vec::new(),
            compiler: Compiler::default(),
            tables: Arc::default(),
            node_macs: macs(config, nodes),
            publications: 0,
        };
        for worker in (0..workers).map(WorkerId) {
            made.add_worker(worker, workers, config, &exchange)?;
        }
        Ok(made)
    }

    fn add_worker(
        &mut self,
        worker: WorkerId,
        workers: u16,
        config: &ConfigFile,
        exchange: &Arc<Exchange>,
    ) -> Result<()> {
        let limits = &config.limits;
        let pipeline_config = PipelineConfig {
            worker,
            workers,
            flows_v4: Capacity { established: limits.flows_ipv4, embryonic: limits.embryonic },
            flows_v6: Capacity { established: limits.flows_ipv6, embryonic: limits.embryonic },
            max_nodes: limits.nodes as usize,
            max_services: limits.services as usize,
            icmp_per_second: limits.icmp_per_second,
        };
        let stats = Arc::new(WorkerStats::new(2, limits.services as usize));
        let store = Store::anonymous(pipeline_config.shape())?;
        let pipeline = Pipeline::new(&pipeline_config, store, Arc::clone(&stats))?;
        let mailbox = Arc::new(Mailbox::new(Arc::clone(exchange.bell(worker))));
        let (clients, clients_peer) = pair(RING);
        let (nodes, nodes_peer) = pair(RING);
        self.workers.push(Worker::new(WorkerParts {
            sockets: vec![Attached { id: PortId(0), port: clients }, Attached { id: PortId(1), port: nodes }],
            kernel: None,
            pool: FramePool::new(PacketMemory::heap(FRAMES, FRAME_SIZE, HEADROOM)),
            pipeline,
            exchange: Arc::clone(exchange),
            mailbox: Arc::clone(&mailbox),
            idle: IdlePolicy::busy(),
        }));
        self.peers.push([clients_peer, nodes_peer]);
        self.mailboxes.push(mailbox);
        self.stats.push(stats);
        Ok(())
    }

    /// Compiles and publishes the config's services.
    pub(super) fn apply(&mut self, config: &ConfigFile) -> Result<()> {
        self.publications += 1;
        let owners: BTreeMap<String, Arc<Desired>> =
            [("file".to_owned(), Arc::new(config.desired(self.publications)))].into();
        self.tables = self.compiler.compile(&Inputs {
            owners: &owners,
            health: &Health::default(),
            snat: &config.snat,
            timeouts: &config.timeouts,
            announce: Announce::L2,
            maglev_max: config.limits.maglev_size,
            max_services: config.limits.services as usize,
            max_nodes: config.limits.nodes as usize,
        })?;
        let hop = |dst: &[u8; 6]| Hop { port: PortId(1), dst: *dst, src: port_mac(Side::Nodes), mtu: MTU };
        let view = Arc::new(View {
            number: self.publications,
            tables: Arc::clone(&self.tables),
            placement: Arc::new(Placement::read(&[], self.mailboxes.len() as u16).0),
            node_hops: self.tables.nodes.iter().map(|node| self.node_macs.get(node).map(hop)).collect(),
            default_v4: None,
            default_v6: None,
            ports: [Side::Clients, Side::Nodes]
                .map(|side| PortView { mac: port_mac(side), mtu: MTU, is_kernel: false })
                .into(),
            claimed: Self::claimed(config),
        });
        for mailbox in &self.mailboxes {
            mailbox.publish(Arc::clone(&view));
        }
        Ok(())
    }

    /// Announced addresses on the port of their network: VIPs towards clients, SNAT towards nodes.
    fn claimed(config: &ConfigFile) -> FxHashSet<(u8, IpAddr)> {
        let vips = config.services.iter().map(|service| (0, service.vip));
        vips.chain(config.snat.iter().map(|snat| (1, snat.address))).collect()
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// A frame arrives at a queue; a full ring drops it, as a card would.
    pub(super) fn inject(&mut self, side: Side, queue: usize, frame: &[u8]) {
        self.peers[queue][side_index(side)].inject(frame);
    }

    /// Turns the workers until none has work. A hand-off needs a turn of its receiver.
    pub(super) fn turn(&mut self, now: u64) {
        let now = Now { ns: now * 1000 };
        while self.workers.iter_mut().fold(false, |worked, worker| worker.turn(now) || worked) {
            for mailbox in &self.mailboxes {
                mailbox.reap();
            }
        }
    }

    /// What the box transmitted.
    pub(super) fn take(&mut self) -> Vec<(Side, Vec<u8>)> {
        let of = |side: Side| {
            self.peers.iter().flat_map(move |peers| peers[side_index(side)].take_all()).map(move |f| (side, f))
        };
        of(Side::Clients).chain(of(Side::Nodes)).collect()
    }

    pub(super) fn sent(&self) -> u64 {
        self.stats.iter().map(|stats| stats.tx.get()).sum()
    }

    pub(super) fn slots_moved(&self) -> Option<(u32, u32)> {
        let moved = self.tables.services.iter().flatten().find_map(|service| service.moved)?;
        Some((moved.excess(), moved.size))
    }

    /// Every packet accounted for, every frame where it belongs.
    pub(super) fn check(&self) -> Result<()> {
        for (index, (worker, stats)) in self.workers.iter().zip(&self.stats).enumerate() {
            let off = stats.unaccounted();
            ensure!(off == 0, "worker {index}: the ledger is off by {off}");
            let (accounted, total) = (worker.frames_accounted(), worker.pool().memory().frame_count());
            ensure!(accounted == total, "worker {index}: {accounted} of {total} frames accounted for");
        }
        let sum = |of: fn(&WorkerStats) -> u64| self.stats.iter().map(|stats| of(stats)).sum::<u64>();
        let (out, taken) = (sum(|stats| stats.handoff_out.get()), sum(|stats| stats.handoff_in.get()));
        ensure!(out == taken, "{out} packets handed off, {taken} taken");
        Ok(())
    }
}

fn side_index(side: Side) -> usize {
    match side {
        Side::Clients => 0,
        Side::Nodes => 1,
    }
}

fn macs(config: &ConfigFile, hosts: &[Host]) -> BTreeMap<IpAddr, [u8; 6]> {
    let of = |name: &str| hosts.iter().find(|host| host.name == name).map(|host| host.mac);
    let pairs = config.nodes.iter().filter_map(|node| Some((node, of(&node.name)?)));
    pairs.flat_map(|(node, mac)| node.addresses.iter().map(move |address| (*address, mac))).collect()
}
