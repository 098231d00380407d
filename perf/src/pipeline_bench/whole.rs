//! A whole worker between two rings, and the bare limit between the same rings.

use std::sync::Arc;

use arrayvec::ArrayVec;
use penstock_dataplane::clock::Now;
use penstock_dataplane::handoff::Exchange;
use penstock_dataplane::io::mem::{Refresh, RingPort};
use penstock_dataplane::io::{BURST, Burst, FramePool, PacketMemory, Port};
use penstock_dataplane::publish::Mailbox;
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::sys::timestamp;
use penstock_dataplane::verdict::WorkerId;
use penstock_dataplane::worker::{Attached, IdlePolicy, Worker, WorkerParts};

use super::bare::Bare;
use super::measure::Clock;
use super::packets::Template;
use super::world::{CLIENT_PORT, NODE_PORT, World};

/// Frames each ring keeps going round.
const DEPTH: usize = 2 * BURST;
/// Turns between two looks at the clock; each moves a burst from either ring to the other.
const TURNS: usize = 2;

fn rings(forward: &[Template], reverse: &[Template]) -> (FramePool, [RingPort; 2]) {
    let mut pool = FramePool::new(PacketMemory::heap(4 * DEPTH as u32, 2048, 256));
    let mut ring = |packets: &[Template]| {
        let packets: Vec<&[u8]> = packets.iter().map(Template::bytes).collect();
        RingPort::new(&mut pool, &packets, DEPTH, Refresh::Copy)
    };
    let both = [ring(forward), ring(reverse)];
    (pool, both)
}

/// The worker, turned by hand.
pub struct WholeWorker {
    worker: Worker<RingPort, RingPort>,
    stats: Arc<WorkerStats>,
}

impl WholeWorker {
    pub fn new(world: World) -> anyhow::Result<Self> {
        let (pool, [client, node]) = rings(&world.forward, &world.reverse);
        let exchange = Arc::new(Exchange::new(1, 2048)?);
        let mailbox = Arc::new(Mailbox::new(Arc::clone(exchange.bell(WorkerId(0)))));
        let stats = Arc::clone(&world.stats);
        let worker = Worker::new(WorkerParts {
            sockets: vec![Attached { id: CLIENT_PORT, port: client }, Attached { id: NODE_PORT, port: node }],
            kernel: None,
            pool,
            pipeline: world.pipeline,
            exchange,
            mailbox,
            idle: IdlePolicy::busy(),
        });
        Ok(Self { worker, stats })
    }

    /// One run: ns per packet, the median of its blocks.
    pub fn run(&mut self, clock: &Clock, blocks: usize) -> anyhow::Result<f64> {
        let (received, dropped) = (self.stats.rx.get(), self.stats.dropped());
        let ns = median_block(clock, blocks, || {
            // As `Worker::run` does.
            let now = Now::read();
            self.worker.turn(now);
        });
        let expected = (blocks * TURNS * 2 * BURST) as u64;
        let received = self.stats.rx.get() - received;
        anyhow::ensure!(received == expected, "the worker received {received} packets, not {expected}");
        anyhow::ensure!(self.stats.dropped() == dropped, "the worker dropped packets");
        Ok(ns)
    }
}

/// The bare limit between the same rings.
pub struct WholeBare {
    bare: Bare,
    pool: FramePool,
    rings: [RingPort; 2],
}

impl WholeBare {
    pub fn new(bare: Bare, world: &World) -> Self {
        let (pool, rings) = rings(&world.forward, &world.reverse);
        Self { bare, pool, rings }
    }

    pub fn run(&mut self, clock: &Clock, blocks: usize) -> f64 {
        median_block(clock, blocks, || self.turn())
    }

    fn turn(&mut self) {
        let Self { bare, pool, rings } = self;
        for from in 0..2 {
            let mut burst = Burst::new();
            rings[from].rx_burst(pool, &mut burst);
            let mut verdicts = ArrayVec::new();
            bare.burst(pool.memory(), &mut burst, &mut verdicts);
            rings[1 - from].tx_burst(pool, &mut burst);
            burst.drain(..).for_each(|frame| pool.give(frame));
        }
        rings.iter_mut().for_each(|ring| ring.service(pool));
    }
}

fn median_block(clock: &Clock, blocks: usize, mut turn: impl FnMut()) -> f64 {
    let mut times: Vec<u64> = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        let start = timestamp();
        (0..TURNS).for_each(|_| turn());
        times.push(timestamp() - start);
    }
    times.sort_unstable();
    clock.ns(times[blocks / 2]) / PACKETS_PER_BLOCK as f64
}

pub const PACKETS_PER_BLOCK: usize = TURNS * 2 * BURST;
