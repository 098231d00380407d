//! Whole workers over ports in memory, stepped one turn at a time.

use std::sync::Arc;

use super::plan::Plan;
use super::{BACK, FRONT, KERNEL, config};
use crate::clock::Now;
use crate::handoff::Exchange;
use crate::io::fault::{FaultPort, Faults};
use crate::io::mem::{MemPeer, MemPort, pair};
use crate::io::{FramePool, LARGEST_PACKET, PacketMemory};
use crate::persist::Store;
use crate::pipeline::{Pipeline, PipelineConfig};
use crate::publish::Mailbox;
use crate::stats::WorkerStats;
use crate::tables::Compiler;
use crate::worker::{Attached, IdlePolicy, Worker, WorkerParts};

pub type FarmWorker = Worker<FaultPort<MemPort>, MemPort>;

/// How a farm is made.
#[derive(Debug, Clone)]
pub struct FarmConfig {
    pub workers: u16,
    /// Per worker.
    pub frames: u32,
    /// Packets each way per port.
    pub ring: usize,
    /// Packets larger than a frame come in several, the first with so many bytes of them.
    pub first: Option<usize>,
    pub faults: Faults,
    pub seed: u64,
    /// Whether there is a TAP.
    pub kernel: bool,
    pub pipeline: PipelineConfig,
    pub idle: IdlePolicy,
}

impl Default for FarmConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            frames: 512,
            ring: 256,
            first: None,
            faults: Faults::default(),
            seed: 1,
            kernel: true,
            pipeline: config(0, 1),
            idle: IdlePolicy::busy(),
        }
    }
}

/// Workers, and the far ends of their ports by worker: as with RSS, a packet comes to the worker
/// whose far end it is injected at.
pub struct Farm {
    pub workers: Vec<FarmWorker>,
    pub fronts: Vec<MemPeer>,
    pub backs: Vec<MemPeer>,
    pub kernels: Vec<MemPeer>,
    pub stats: Vec<Arc<WorkerStats>>,
    pub mailboxes: Vec<Arc<Mailbox>>,
    pub plan: Plan,
    pub compiler: Compiler,
    pub now: Now,
    views: u64,
}

impl Farm {
    pub fn new(plan: Plan, config: &FarmConfig) -> Self {
        let room = if config.first.is_some() { LARGEST_PACKET } else { 2048 };
        let exchange = Arc::new(Exchange::new(config.workers, room).expect("descriptors"));
        let mut farm = Self {
            workers: Vec::new(),
            fronts: Vec::new(),
            backs: Vec::new(),
            kernels: Vec::new(),
            stats: Vec::new(),
            mailboxes: Vec::new(),
            plan,
            compiler: Compiler::default(),
            now: Now::from_secs(1000),
            views: 0,
        };
        for worker in 0..config.workers {
            farm.add(worker, config, &exchange);
        }
        farm.publish();
        farm
    }

    fn add(&mut self, worker: u16, config: &FarmConfig, exchange: &Arc<Exchange>) {
        let pipeline =
            PipelineConfig { worker: crate::verdict::WorkerId(worker), workers: config.workers, ..config.pipeline };
        let store = Store::anonymous(pipeline.shape()).expect("memory");
        let stats = Arc::new(WorkerStats::new(3, pipeline.max_services));
        let mailbox = Arc::new(Mailbox::new(Arc::clone(exchange.bell(pipeline.worker))));
        let socket = |id: crate::verdict::PortId, peers: &mut Vec<MemPeer>| {
            let (mut port, peer) = pair(config.ring);
            if let Some(first) = config.first {
                port = port.chaining(first);
            }
            peers.push(peer);
            let seed = config.seed.wrapping_mul(31) + u64::from(worker) * 2 + u64::from(id.0);
            Attached { id, port: FaultPort::new(port, config.faults, seed) }
        };
        let sockets = vec![socket(FRONT, &mut self.fronts), socket(BACK, &mut self.backs)];
        let kernel = config.kernel.then(|| {
            let (port, peer) = pair(config.ring);
            self.kernels.push(peer);
            Attached { id: KERNEL, port }
        });
        self.workers.push(Worker::new(WorkerParts {
            sockets,
            kernel,
            pool: FramePool::new(PacketMemory::heap(config.frames, 2048, 256)),
            pipeline: Pipeline::new(&pipeline, store, Arc::clone(&stats)).expect("memory"),
            exchange: Arc::clone(exchange),
            mailbox: Arc::clone(&mailbox),
            idle: config.idle,
        }));
        self.stats.push(stats);
        self.mailboxes.push(mailbox);
    }

    /// Compiles the plan and sends it to the workers, which take it up at their next turn.
    pub fn publish(&mut self) {
        self.views += 1;
        let tables = self.plan.compile(&mut self.compiler).expect("within the limits");
        let view = Arc::new(self.plan.view(tables, self.views));
        for mailbox in &self.mailboxes {
            mailbox.publish(Arc::clone(&view));
        }
    }

    /// One turn of a worker, after which its books must balance.
    #[track_caller]
    pub fn turn(&mut self, worker: usize) -> bool {
        let worked = self.workers[worker].turn(self.now);
        self.check(worker);
        worked
    }

    /// One turn of each.
    #[track_caller]
    pub fn round(&mut self) {
        for worker in 0..self.workers.len() {
            self.turn(worker);
        }
    }

    /// No packet and no frame is lost.
    #[track_caller]
    pub fn check(&self, worker: usize) {
        let this = &self.workers[worker];
        assert_eq!(self.stats[worker].unaccounted(), 0, "worker {worker}'s ledger: {:?}", self.stats[worker]);
        assert_eq!(this.frames_accounted(), this.pool().frame_count(), "worker {worker}'s frames");
    }

    pub fn sum(&self, counter: impl Fn(&WorkerStats) -> u64) -> u64 {
        self.stats.iter().map(|stats| counter(stats)).sum()
    }
}
