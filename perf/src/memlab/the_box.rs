//! The box: real workers over memory ports, their snapshots from the real compiler, their flow state
//! in real files. Its process can be killed and started again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use penstock_configs::desired::{Announce, Desired, Health};
use penstock_configs::file::{SnatAddress, Timeouts};
use penstock_dataplane::clock::Now;
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::handoff::Exchange;
use penstock_dataplane::io::fault::{FaultPort, Faults};
use penstock_dataplane::io::mem::{MemPeer, MemPort, pair};
use penstock_dataplane::io::{FramePool, PacketMemory};
use penstock_dataplane::persist::{Store, Viewer};
use penstock_dataplane::pipeline::{Pipeline, PipelineConfig};
use penstock_dataplane::publish::Mailbox;
use penstock_dataplane::rss::Placement;
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::tables::{Compiler, Hop, Inputs, PortView, Tables, View};
use penstock_dataplane::verdict::{DropReason, PortId, WorkerId};
use penstock_dataplane::worker::{Attached, IdlePolicy, Worker, WorkerParts};

use super::random::Random;

pub(super) const MTU: u32 = 1500;
/// Packets a port's ring takes between two turns.
const RING: usize = 2048;
const FRAMES: u32 = 4096;
const FRAME_SIZE: u32 = 2048;
const HEADROOM: u32 = 256;
/// Rounds of all workers at one instant: more means that packets go round in circles.
const MOST_ROUNDS: u32 = 10_000;
const MAX_SERVICES: usize = 16;
const MAX_NODES: usize = 64;
/// All runs share a boot: the files of one are never another's.
const BOOT: [u8; 16] = *b"memlab, one boot";

type LabWorker = Worker<FaultPort<MemPort>, MemPort>;

/// What does not change while the lab stands.
pub(super) struct BoxPlan {
    pub(super) workers: u16,
    /// By port: its link-layer address.
    pub(super) ports: Vec<[u8; 6]>,
    /// The port nodes are reached by.
    pub(super) node_port: u8,
    pub(super) node_macs: BTreeMap<IpAddr, [u8; 6]>,
    pub(super) snat: Vec<SnatAddress>,
    pub(super) timeouts: Timeouts,
    pub(super) faults: Faults,
    pub(super) maglev_max: u32,
    pub(super) capacity: Capacity,
    pub(super) seed: u64,
}

pub(super) struct TheBox {
    pub(super) plan: BoxPlan,
    /// Where flow state lies; gone with the lab.
    directory: tempfile::TempDir,
    running: Option<Running>,
    compiler: Compiler,
    pub(super) tables: Arc<Tables>,
    publications: u64,
    starts: u64,
    /// Frames that found no process to take them.
    pub(super) missed: u64,
    /// Frames that went to the kernel behind the box.
    pub(super) to_kernel: u64,
}

/// The process: everything that a kill takes away.
struct Running {
    workers: Vec<LabWorker>,
    /// By worker and port.
    peers: Vec<Vec<MemPeer>>,
    kernel: Vec<MemPeer>,
    mailboxes: Vec<Arc<Mailbox>>,
    stats: Vec<Arc<WorkerStats>>,
}

impl TheBox {
    /// A box that does not run yet.
    pub(super) fn new(plan: BoxPlan) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("penstock-memlab-")
            .tempdir()
            .context("a directory for flow state: is there room in the directory for temporary files (TMPDIR)?")?;
        Ok(Self {
            plan,
            directory,
            running: None,
            compiler: Compiler::default(),
            tables: Arc::default(),
            publications: 0,
            starts: 0,
            missed: 0,
            to_kernel: 0,
        })
    }

    fn store_path(&self, worker: usize) -> PathBuf {
        self.directory.path().join(format!("flows.{worker}"))
    }

    /// Starts the process, which takes up what flow state it finds, and gives it its first snapshot.
    pub(super) fn start(&mut self, desired: &Desired) -> Result<()> {
        ensure!(self.running.is_none(), "the box runs already");
        self.starts += 1;
        let exchange = Arc::new(Exchange::new(self.plan.workers, FRAME_SIZE as usize)?);
        let mut running = Running {
            workers: Vec::new(),
            peers: Vec::new(),
            kernel: Vec::new(),
            mailboxes: Vec::new(),
            stats: Vec::new(),
        };
        self.compiler = Compiler::default();
        for worker in 0..self.plan.workers {
            self.add_worker(worker, &exchange, &mut running)?;
        }
        self.running = Some(running);
        self.publish(desired)
    }

    fn add_worker(&mut self, worker: u16, exchange: &Arc<Exchange>, running: &mut Running) -> Result<()> {
        let config = PipelineConfig {
            worker: WorkerId(worker),
            workers: self.plan.workers,
            flows_v4: self.plan.capacity,
            flows_v6: self.plan.capacity,
            max_nodes: MAX_NODES,
            max_services: MAX_SERVICES,
            icmp_per_second: 1000,
            max_counted: 64,
            max_affinity: 1024,
            max_sources: 1024,
        };
        let seed = self.plan.seed ^ u64::from(worker);
        let store = Store::open(&self.store_path(usize::from(worker)), config.shape(), BOOT, [seed, !seed])?;
        ensure!(store.discarded.is_none(), "flow state of this very lab was discarded: {:?}", store.discarded);
        ensure!(store.recovered == (self.starts > 1), "flow state was not taken up");
        let ports = self.plan.ports.len();
        let stats = Arc::new(WorkerStats::new(ports + 1, MAX_SERVICES));
        let pipeline = Pipeline::new(&config, store, Arc::clone(&stats))?;
        let (snat_v4, snat_v6) = pipeline.snats_in_use();
        self.compiler.seed_snats(&snat_v4, &snat_v6);
        let mailbox = Arc::new(Mailbox::new(Arc::clone(exchange.bell(WorkerId(worker)))));
        let (sockets, peers): (Vec<_>, Vec<_>) = (0..ports as u8)
            .map(|id| {
                let (port, peer) = pair(RING);
                let fault_seed = self.plan.seed ^ (self.starts << 32) ^ (u64::from(worker) << 8) ^ u64::from(id);
                (Attached { id: PortId(id), port: FaultPort::new(port, self.plan.faults, fault_seed) }, peer)
            })
            .unzip();
        let (kernel, kernel_peer) = pair(RING);
        running.workers.push(Worker::new(WorkerParts {
            sockets,
            kernel: Some(Attached { id: PortId(ports as u8), port: kernel }),
            pool: FramePool::new(PacketMemory::heap(FRAMES, FRAME_SIZE, HEADROOM)),
            pipeline,
            exchange: Arc::clone(exchange),
            mailbox: Arc::clone(&mailbox),
            idle: IdlePolicy::busy(),
        }));
        running.peers.push(peers);
        running.kernel.push(kernel_peer);
        running.mailboxes.push(mailbox);
        running.stats.push(stats);
        Ok(())
    }

    /// `kill -9`: nothing is flushed, said or cleaned up. What was in its rings is lost.
    pub(super) fn kill(&mut self) {
        self.running = None;
    }

    /// Compiles a snapshot and gives it to the workers, who run it from their next turn on.
    pub(super) fn publish(&mut self, desired: &Desired) -> Result<()> {
        let owners: BTreeMap<String, Arc<Desired>> = [("file".to_owned(), Arc::new(desired.clone()))].into();
        self.tables = self.compiler.compile(&Inputs {
            owners: &owners,
            ways: &Default::default(),
            health: &Health::default(),
            snat: &self.plan.snat,
            timeouts: &self.plan.timeouts,
            announce: Announce::L2,
            maglev_max: self.plan.maglev_max,
            max_services: MAX_SERVICES,
            max_nodes: MAX_NODES,
            max_counted: 64,
            panic_threshold: 0,
            deny: &Arc::default(),
            now: Now::default(),
        })?;
        self.publications += 1;
        let plan = &self.plan;
        let src = plan.ports[usize::from(plan.node_port)];
        let hop = |dst: &[u8; 6]| Hop::new(PortId(plan.node_port), *dst, src, MTU);
        let mut ports: Vec<_> =
            plan.ports.iter().map(|mac| PortView { mac: *mac, mtu: MTU, is_kernel: false, mss_clamp: 0 }).collect();
        ports.push(PortView { mac: [2, 0, 0, 0, 0, 0xff], mtu: MTU, is_kernel: true, mss_clamp: 0 });
        let vips = desired.services.iter().map(|service| (0, service.vip));
        let snats = plan.snat.iter().map(|snat| (plan.node_port, snat.address));
        let view = Arc::new(View {
            marks: None,
            number: self.publications,
            tables: Arc::clone(&self.tables),
            placement: Arc::new(Placement::read(&[], plan.workers).0),
            node_hops: self.tables.nodes.iter().map(|node| plan.node_macs.get(node).map(hop)).collect(),
            default_v4: None,
            default_v6: None,
            ports,
            claimed: vips.chain(snats).collect(),
        });
        for mailbox in self.running.iter().flat_map(|running| &running.mailboxes) {
            mailbox.publish(Arc::clone(&view));
        }
        Ok(())
    }

    /// A frame arrives at a port, at any worker's queue; a full ring drops it, as a card would.
    pub(super) fn inject(&mut self, port: u8, frame: &[u8], random: &mut Random) {
        let Some(running) = &self.running else {
            self.missed += 1;
            return;
        };
        let queue = random.below(running.peers.len());
        running.peers[queue][usize::from(port)].inject(frame);
    }

    /// Turns the workers, in any order, until none has work.
    pub(super) fn turn(&mut self, now: u64, random: &mut Random) {
        let Some(running) = &mut self.running else { return };
        let now = Now { ns: now * 1000 };
        for _ in 0..MOST_ROUNDS {
            let first = random.below(running.workers.len());
            let (later, sooner) = running.workers.split_at_mut(first);
            let mut worked = false;
            for worker in sooner.iter_mut().chain(later) {
                worked |= worker.turn(now);
            }
            for mailbox in &running.mailboxes {
                mailbox.reap();
            }
            if !worked {
                break;
            }
        }
        for kernel in &running.kernel {
            self.to_kernel += kernel.take_all().len() as u64;
        }
    }

    /// What the box has transmitted, and by which port.
    pub(super) fn take(&mut self) -> Vec<(u8, Vec<u8>)> {
        let Some(running) = &self.running else { return Vec::new() };
        let of_worker = |peers: &Vec<MemPeer>| {
            let ports = peers.iter().zip(0_u8..);
            ports
                .flat_map(|(peer, port)| peer.take_all().into_iter().map(move |frame| (port, frame)))
                .collect::<Vec<_>>()
        };
        running.peers.iter().flat_map(of_worker).collect()
    }

    /// Frames that wait inside the box for another turn.
    pub(super) fn is_holding(&self) -> bool {
        let memory = FRAMES as usize;
        self.running.iter().flat_map(|running| &running.workers).any(|worker| worker.pool().free_count() < memory)
    }

    /// By worker.
    pub(super) fn stats(&self) -> &[Arc<WorkerStats>] {
        self.running.as_ref().map_or(&[], |running| &running.stats)
    }

    pub(super) fn drops(&self) -> BTreeMap<&'static str, u64> {
        let mut drops = BTreeMap::new();
        for reason in DropReason::ALL {
            let count: u64 = self.stats().iter().map(|stats| stats.drops[*reason as usize].get()).sum();
            if count > 0 {
                drops.insert(reason.name(), count);
            }
        }
        drops
    }

    /// A look into each worker's flow state, as the API's.
    pub(super) fn viewers(&self) -> Result<Vec<Viewer>> {
        (0..usize::from(self.plan.workers))
            .map(|worker| {
                let path = self.store_path(worker);
                Viewer::open(&path).with_context(|| path.display().to_string())
            })
            .collect()
    }

    /// What must hold between two instants: every packet accounted for, every frame where it belongs,
    /// every flow table in order.
    pub(super) fn check(&self) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        for (at, (worker, stats)) in running.workers.iter().zip(&running.stats).enumerate() {
            let off = stats.unaccounted();
            ensure!(off == 0, "worker {at}: the ledger is off by {off}");
            let (accounted, total) = (worker.frames_accounted(), worker.pool().frame_count());
            ensure!(accounted == total, "worker {at}: {accounted} of {total} frames accounted for");
            worker.pipeline().check_invariants().map_err(|what| anyhow::anyhow!("worker {at}: {what}"))?;
        }
        let sum = |of: fn(&WorkerStats) -> u64| running.stats.iter().map(|stats| of(stats)).sum::<u64>();
        let (out, taken) = (sum(|stats| stats.handoff_out.get()), sum(|stats| stats.handoff_in.get()));
        ensure!(out == taken, "{out} packets handed off, {taken} taken");
        Ok(())
    }
}
