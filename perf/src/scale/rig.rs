//! A box over memory, as large as one likes: services and nodes, snapshots compiled one after the other,
//! a pipeline with its established flows, a worker to turn.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrayvec::ArrayVec;
use penstock_configs::desired::{
    Announce, Backend, BackendHealth, BackendSet, BackendState, Desired, Health, Protocol, Service,
};
use penstock_configs::file::{SnatAddress, Timeouts};
use penstock_dataplane::clock::Now;
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::handoff::Exchange;
use penstock_dataplane::io::{BURST, Burst, FramePool, PacketMemory, Port};
use penstock_dataplane::persist::Store;
use penstock_dataplane::pipeline::{Pipeline, PipelineConfig};
use penstock_dataplane::publish::Mailbox;
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::tables::{Compiler, Hop, Inputs, PortView, Tables, View};
use penstock_dataplane::verdict::{PortId, Verdict, WorkerId};
use penstock_dataplane::worker::{Attached, IdlePolicy, Worker, WorkerParts};

use super::report::{self, Figure};
use crate::pipeline_bench::measure::Spread;
use crate::pipeline_bench::packets::{self, BOX_MACS, CLIENT_MAC, Endpoints, NODE_MAC, TcpFlags, Template};

pub const CLIENT_PORT: PortId = PortId(0);
pub const NODE_PORT: PortId = PortId(1);
const MTU: u32 = 1500;
/// Each has 64,000 ports towards each node.
const SNATS: u32 = 8;

/// What a box is asked for, and the compiler that makes tables of it.
pub struct Site {
    pub v6: bool,
    pub services: u32,
    pub nodes: u32,
    pub owners: BTreeMap<String, Arc<Desired>>,
    pub health: Health,
    pub timeouts: Timeouts,
    /// The time it is, where the clock is not to be read: under valgrind it can't be.
    pub time: Option<Now>,
    compiler: Compiler,
    views: u64,
}

impl Site {
    /// Services over one set of all nodes.
    pub fn new(v6: bool, services: u32, nodes: u32) -> Self {
        let set = BackendSet { name: "nodes".into(), backends: (0..nodes).map(|n| backend(v6, n)).collect() };
        Self::with_sets(v6, services, nodes, vec![set])
    }

    /// Services over these sets in turn.
    pub fn with_sets(v6: bool, services: u32, nodes: u32, sets: Vec<BackendSet>) -> Self {
        let service = |n: u32| Service {
            set: Some(sets[n as usize % sets.len()].name.clone()),
            target_port: Some(30_000 + (n % 2_767) as u16),
            ..Service::at(format!("service-{n}"), packets::vip(v6, n), 443, Protocol::Tcp)
        };
        let services_wanted = (0..services).map(service).collect();
        let desired = Desired { generation: 1, services: services_wanted, sets, ..Desired::default() };
        Self {
            v6,
            services,
            nodes,
            owners: BTreeMap::from([("scale".to_owned(), Arc::new(desired))]),
            health: Health::default(),
            timeouts: Timeouts::default(),
            time: None,
            compiler: Compiler::default(),
            views: 0,
        }
    }

    /// A node fails, or is back.
    pub fn flap(&mut self, node: u32, is_up: bool) {
        let state = if is_up { BackendState::Active } else { BackendState::Down };
        let address = packets::node(self.v6, node);
        self.health = Health { backends: vec![BackendHealth { address, port: None, state, reason: String::new() }] };
    }

    pub fn compile(&mut self) -> anyhow::Result<Arc<Tables>> {
        let snat = |n| SnatAddress { address: packets::snat(self.v6, n), ports: [1024, 65_535], shared: false };
        let inputs = Inputs {
            owners: &self.owners,
            health: &self.health,
            ways: &Default::default(),
            snat: &(0..SNATS).map(snat).collect::<Vec<_>>(),
            timeouts: &self.timeouts,
            announce: Announce::L2,
            maglev_max: 65_537,
            max_services: self.services as usize,
            max_nodes: self.nodes as usize,
            max_counted: 64,
            panic_threshold: 0,
            deny: &Arc::default(),
            now: self.time.unwrap_or_else(Now::read),
        };
        self.compiler.compile(&inputs).context("the experiment's own tables")
    }

    /// Tables as a worker sees them.
    pub fn view(&mut self, tables: Arc<Tables>) -> Arc<View> {
        self.views += 1;
        let hop = |address: &IpAddr| {
            let known = address.is_ipv6() == self.v6 && *address != IpAddr::from([0, 0, 0, 0]);
            known.then_some(Hop::new(NODE_PORT, NODE_MAC, BOX_MACS[1], MTU))
        };
        let default = Some(Hop::new(CLIENT_PORT, CLIENT_MAC, BOX_MACS[0], MTU));
        let port = |mac| PortView { mac, mtu: MTU, is_kernel: false, mss_clamp: 0 };
        Arc::new(View {
            number: self.views,
            node_hops: tables.nodes.iter().map(hop).collect(),
            default_v4: default,
            default_v6: default,
            ports: BOX_MACS.into_iter().map(port).collect(),
            tables,
            ..View::default()
        })
    }

    pub fn compiled_view(&mut self) -> anyhow::Result<Arc<View>> {
        let tables = self.compile()?;
        Ok(self.view(tables))
    }
}

pub fn backend(v6: bool, node: u32) -> Backend {
    Backend { address: Some(packets::node(v6, node)), weight: 1, ..Backend::default() }
}

/// One worker's share of a box.
pub struct Member {
    pub pipeline: Pipeline,
    pub stats: Arc<WorkerStats>,
    pub worker: WorkerId,
    v6: bool,
    services: u32,
    time: Option<Now>,
    /// The records' file, as a box has one; gone with this.
    _state: tempfile::TempDir,
}

impl Member {
    /// A pipeline with room for so many flows, its records in a file as a box's are.
    pub fn new(site: &Site, room: Capacity, worker: u16, workers: u16) -> anyhow::Result<Self> {
        let none = Capacity { established: 1, embryonic: 1 };
        let config = PipelineConfig {
            worker: WorkerId(worker),
            workers,
            flows_v4: if site.v6 { none } else { room },
            flows_v6: if site.v6 { room } else { none },
            max_nodes: site.nodes as usize,
            max_services: site.services as usize,
            icmp_per_second: 1000,
            max_counted: 64,
            max_affinity: 1024,
            max_sources: 1024,
        };
        let stats = Arc::new(WorkerStats::new(2, site.services as usize));
        // Memory, where there is a file system in memory: a run directory is one.
        let memory = std::path::Path::new("/dev/shm");
        let state = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
        let store = Store::open(&state.path().join("flows"), config.shape(), [1; 16], [0x5eed, 0xf10e])?;
        let pipeline = Pipeline::new(&config, store, Arc::clone(&stats))?;
        let Site { v6, services, time, .. } = *site;
        Ok(Self { pipeline, stats, worker: WorkerId(worker), v6, services, time, _state: state })
    }

    /// Where the n-th client's packets come from and go to.
    pub fn client(&self, n: u64) -> Endpoints {
        let (src, src_port) = packets::client(self.v6, n);
        let dst = packets::vip(self.v6, (n % u64::from(self.services)) as u32);
        Endpoints { src, dst, src_port, dst_port: 443 }
    }

    /// Opens and establishes connections of these clients; those another worker owns are left out. Each one's
    /// packets, from the client and from the node, are shown to `keep`.
    pub fn establish(
        &mut self,
        clients: std::ops::Range<u64>,
        mut keep: impl FnMut(u64, Template, Template),
    ) -> anyhow::Result<()> {
        let mut pool = FramePool::new(PacketMemory::heap(BURST as u32, 2048, 256));
        for first in clients.clone().step_by(BURST) {
            let clients: Vec<u64> = (first..clients.end.min(first + BURST as u64)).collect();
            let packet = |n: &u64, flags| packets::from_client(self.client(*n), flags, *n as u32);
            let syns = clients.iter().map(|n| packet(n, TcpFlags::Syn)).collect::<Result<Vec<_>, _>>()?;
            let opened = self.send(&mut pool, CLIENT_PORT, &syns)?;
            let own: Vec<(u64, Endpoints)> =
                clients.iter().zip(opened).filter_map(|(n, ends)| Some((*n, ends?.reversed()))).collect();
            let answer = |(n, ends): &(u64, Endpoints), flags| packets::from_node(*ends, flags, *n as u32);
            let answers = own.iter().map(|flow| answer(flow, TcpFlags::SynAck)).collect::<Result<Vec<_>, _>>()?;
            self.send(&mut pool, NODE_PORT, &answers)?;
            let packet = |n: &u64, flags| packets::from_client(self.client(*n), flags, *n as u32);
            let acks = own.iter().map(|(n, _)| packet(n, TcpFlags::Ack)).collect::<Result<Vec<_>, _>>()?;
            self.send(&mut pool, CLIENT_PORT, &acks)?;
            for (flow, ack) in own.iter().zip(acks) {
                keep(flow.0, ack, answer(flow, TcpFlags::Ack)?);
            }
        }
        Ok(())
    }

    /// Half-open connections of these clients.
    pub fn open(&mut self, clients: std::ops::Range<u64>) -> anyhow::Result<()> {
        let mut pool = FramePool::new(PacketMemory::heap(BURST as u32, 2048, 256));
        for n in clients {
            let syn = packets::from_client(self.client(n), TcpFlags::Syn, n as u32)?;
            self.send(&mut pool, CLIENT_PORT, &[syn])?;
        }
        Ok(())
    }

    /// Sends packets through; returns the addresses they left with, `None` for another worker's.
    fn send(
        &mut self,
        pool: &mut FramePool,
        from: PortId,
        packets: &[Template],
    ) -> anyhow::Result<Vec<Option<Endpoints>>> {
        let mut burst: Burst = packets.iter().filter_map(|packet| pool.take_with(packet.bytes())).collect();
        let mut verdicts = ArrayVec::new();
        let now = self.time.unwrap_or_else(Now::read);
        self.pipeline.burst(pool.memory(), from, false, &mut burst, &mut verdicts, now);
        let mut ends = Vec::with_capacity(burst.len());
        for (frame, verdict) in burst.into_iter().zip(verdicts) {
            ends.push(match verdict {
                Verdict::Tx(_) => Some(packets::endpoints(pool.memory().bytes(&frame))?),
                Verdict::Handoff(_) => None,
                other => anyhow::bail!("a packet of a handshake ended as {other:?}"),
            });
            pool.give(frame);
        }
        Ok(ends)
    }

    /// What the two families' tables hold.
    pub fn flows(&self) -> u32 {
        let counts = [self.pipeline.flows_v4().counts(), self.pipeline.flows_v6().counts()];
        counts.iter().map(|counts| counts.established + counts.embryonic).sum()
    }
}

/// A worker with what it is reached by.
pub struct Turning<P: Port> {
    pub worker: Worker<P, P>,
    pub mailbox: Arc<Mailbox>,
    pub stats: Arc<WorkerStats>,
    _state: tempfile::TempDir,
}

impl<P: Port> Turning<P> {
    /// A worker around a member, its sockets the clients' and the nodes' side.
    pub fn new(member: Member, exchange: &Arc<Exchange>, pool: FramePool, ports: [P; 2]) -> Self {
        let Member { pipeline, stats, worker: id, _state, .. } = member;
        let mailbox = Arc::new(Mailbox::new(Arc::clone(exchange.bell(id))));
        let [client, node] = ports;
        let worker = Worker::new(WorkerParts {
            sockets: vec![Attached { id: CLIENT_PORT, port: client }, Attached { id: NODE_PORT, port: node }],
            kernel: None,
            pool,
            pipeline,
            exchange: Arc::clone(exchange),
            mailbox: Arc::clone(&mailbox),
            idle: IdlePolicy::busy(),
        });
        Self { worker, mailbox, stats, _state }
    }

    /// A worker alone.
    pub fn alone(member: Member, pool: FramePool, ports: [P; 2]) -> anyhow::Result<Self> {
        Ok(Self::new(member, &Arc::new(Exchange::new(1, 2048)?), pool, ports))
    }

    /// Every packet was sent on, to where it should.
    pub fn ensure_no_drops(&self) -> anyhow::Result<()> {
        ensure!(self.stats.dropped() == 0, "the worker dropped {} packets", self.stats.dropped());
        Ok(())
    }
}

/// Frames for a worker of these experiments.
pub fn pool() -> FramePool {
    FramePool::new(PacketMemory::heap(16 * BURST as u32, 2048, 256))
}

/// Resident memory of this process, bytes.
pub fn resident() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").context("/proc/self/smaps_rollup")?;
    let line = text.lines().find(|line| line.starts_with("Rss:")).context("no Rss in smaps_rollup")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no figure in Rss")?.parse()?;
    Ok(kilobytes * 1024)
}

/// What something took, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// This thread's processor time.
    pub own: f64,
    pub wall: f64,
}

/// Does something and times it.
pub fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Cost)> {
    let own_time = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
    };
    let (start, own) = (std::time::Instant::now(), own_time());
    let done = work()?;
    Ok((done, Cost { own: own_time() - own, wall: start.elapsed().as_secs_f64() * 1e3 }))
}

impl Cost {
    /// Costs of runs as a figure: the thread's own time, the wall clock's beside.
    pub fn figure(what: &str, runs: &[Cost]) -> Figure {
        let of = |of: fn(&Cost) -> f64| runs.iter().map(of).collect::<Vec<_>>();
        let wall = Spread::of(&of(|cost| cost.wall)).median;
        let figure = match runs {
            [one] => Figure::new(what, one.own, "ms"),
            _ => Figure::of_runs(what, &of(|cost| cost.own), "ms"),
        };
        figure.beside(format!("wall clock: {}", report::short(wall)))
    }
}
