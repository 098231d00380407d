//! One pipeline, stepped packet by packet.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::packets::{Seen, valid};
use super::plan::Plan;
use super::{BACK, FRONT};
use crate::clock::Now;
use crate::flow::Capacity;
use crate::io::{Burst, Frame, FramePool, PacketMemory};
use crate::persist::Store;
use crate::pipeline::{Pipeline, PipelineConfig, Released};
use crate::stats::WorkerStats;
use crate::tables::Compiler;
use crate::verdict::{DropReason, PortId, Verdict, WorkerId};

/// A pipeline's config for tests: small tables.
pub fn config(worker: u16, workers: u16) -> PipelineConfig {
    let flows = Capacity { established: 4096, embryonic: 1024 };
    PipelineConfig {
        worker: WorkerId(worker),
        workers,
        flows_v4: flows,
        flows_v6: flows,
        max_nodes: 64,
        max_services: 64,
        icmp_per_second: 100,
        max_counted: 64,
        max_affinity: 1024,
        max_sources: 1024,
    }
}

/// A box of one worker, with no ports: packets in, verdicts and packets out.
pub struct Rig {
    pub plan: Plan,
    pub compiler: Compiler,
    pub pipeline: Pipeline,
    pub pool: FramePool,
    pub now: Now,
    /// Bytes a packet has in its first frame; the rest goes into others.
    pub first: usize,
    /// What the box said of its own accord during sweeps.
    pub said: Vec<Out>,
    views: u64,
}

/// Where a packet ended, and what it was then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

impl Out {
    /// The packet, which must be valid and leave by `port`.
    #[track_caller]
    pub fn sent(&self, port: PortId) -> Seen {
        assert_eq!(self.verdict, Verdict::Tx(port));
        valid(&self.bytes)
    }

    #[track_caller]
    pub fn to_node(&self) -> Seen {
        self.sent(BACK)
    }

    #[track_caller]
    pub fn to_client(&self) -> Seen {
        self.sent(FRONT)
    }

    #[track_caller]
    pub fn dropped(&self, reason: DropReason) {
        assert_eq!(self.verdict, Verdict::Drop(reason));
    }
}

impl Rig {
    pub fn new(plan: Plan) -> Self {
        Self::with(plan, &config(0, 1))
    }

    pub fn with(plan: Plan, config: &PipelineConfig) -> Self {
        Self::over(plan, config, Store::anonymous(config.shape()).expect("memory"))
    }

    /// Over a store that may hold flows.
    pub fn over(plan: Plan, config: &PipelineConfig, store: Store) -> Self {
        let mut compiler = Compiler::default();
        let stats = Arc::new(WorkerStats::new(3, config.max_services));
        let pipeline = Pipeline::new(config, store, stats).expect("memory");
        let (v4, v6) = pipeline.snats_in_use();
        compiler.seed_snats(&v4, &v6);
        let pool = FramePool::new(PacketMemory::heap(512, 2048, 256));
        let mut rig = Self {
            plan,
            compiler,
            pipeline,
            pool,
            now: Now::from_secs(1000),
            first: usize::MAX,
            said: Vec::new(),
            views: 0,
        };
        rig.apply();
        rig
    }

    /// Packets come in frames of this size from now on, which hold `first` bytes of them before they go on in others.
    pub fn in_frames(mut self, size: u32, first: usize) -> Self {
        self.pool = FramePool::new(PacketMemory::heap(512, size, 256));
        Self { first, ..self }
    }

    /// Compiles the plan as it is now and runs on it.
    pub fn apply(&mut self) {
        self.views += 1;
        self.compiler.swept(self.pipeline.stats().swept.get());
        let tables = self.plan.compile(&mut self.compiler).expect("within the limits");
        let view = self.plan.view(tables, self.views);
        self.pipeline.adopt(Arc::new(view));
    }

    /// Changes the plan and applies it.
    pub fn change(&mut self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan);
        self.apply();
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now.ns += seconds * 1_000_000_000;
    }

    /// Lets upkeep go through every record.
    pub fn sweep(&mut self) {
        let mut quarters = 0;
        while quarters < 10 {
            if !self.upkeep() {
                self.now.ns += 250_000_000;
                quarters += 1;
            }
        }
    }

    /// One step of upkeep, and what is said because of it.
    pub fn upkeep(&mut self) -> bool {
        let due = self.pipeline.upkeep(self.now);
        while let Some((frame, port)) = self.pipeline.next_farewell(&mut self.pool) {
            let bytes = self.pool.memory().bytes(&frame).to_vec();
            self.pool.give(frame);
            self.said.push(Out { verdict: Verdict::Tx(port), bytes });
        }
        due
    }

    pub fn front(&mut self, packet: &[u8]) -> Out {
        self.send(FRONT, packet)
    }

    pub fn back(&mut self, packet: &[u8]) -> Out {
        self.send(BACK, packet)
    }

    pub fn send(&mut self, from: PortId, packet: &[u8]) -> Out {
        self.send_as(from, packet, false)
    }

    /// As if another worker had handed it over.
    pub fn handed(&mut self, from: PortId, packet: &[u8]) -> Out {
        self.send_as(from, packet, true)
    }

    #[track_caller]
    pub fn send_as(&mut self, from: PortId, packet: &[u8], handed: bool) -> Out {
        self.burst(from, &[packet], handed).pop().expect("one verdict per frame")
    }

    /// A burst; checks that the books balance: every frame one verdict, drops and generated packets counted.
    #[track_caller]
    pub fn burst(&mut self, from: PortId, packets: &[&[u8]], handed: bool) -> Vec<Out> {
        let (dropped, generated) = (self.pipeline.stats().dropped(), self.pipeline.stats().generated.get());
        let mut frames: Burst = packets.iter().map(|packet| self.frame(packet)).collect();
        let mut verdicts = ArrayVec::new();
        self.pipeline.burst(self.pool.memory(), from, handed, &mut frames, &mut verdicts, self.now);
        assert_eq!(verdicts.len(), frames.len(), "one verdict per frame");
        let drops = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Drop(_))).count() as u64;
        let (now_dropped, now_generated) = (self.pipeline.stats().dropped(), self.pipeline.stats().generated.get());
        // A generated packet takes the frame of the one it is about, which counts as dropped.
        assert_eq!(now_dropped - dropped, drops + (now_generated - generated), "{verdicts:?}");
        self.pool.collect();
        let outs: Vec<Out> =
            frames.iter().zip(verdicts).map(|(frame, verdict)| Out { verdict, bytes: self.read(frame) }).collect();
        for (frame, out) in frames.into_iter().zip(&outs) {
            self.finish(frame, out);
        }
        outs
    }

    fn frame(&mut self, packet: &[u8]) -> Frame {
        let split = packet.len() > self.first;
        let frame = if split { self.pool.take_split(packet, self.first) } else { self.pool.take_packet(packet) };
        frame.expect("free frames with room")
    }

    fn read(&self, frame: &Frame) -> Vec<u8> {
        self.pool.memory().parts(frame).flatten().copied().collect()
    }

    fn finish(&mut self, frame: Frame, out: &Out) {
        match out.verdict {
            Verdict::Held(slot) => assert!(self.pipeline.keep(slot, frame).is_none(), "slot {slot} is taken"),
            _ => self.pool.give(frame),
        }
    }

    /// Frames that were held and have a verdict now, with the port they came in by.
    pub fn released(&mut self) -> Vec<(PortId, Out)> {
        let mut outs = Vec::new();
        while let Some(Released { frame, from, verdict }) = self.pipeline.release(self.pool.memory(), self.now) {
            self.pool.collect();
            let out = Out { verdict, bytes: self.read(&frame) };
            self.finish(frame, &out);
            outs.push((from, out));
        }
        outs
    }

    /// Every frame is free or held by the pipeline.
    #[track_caller]
    pub fn conserved(&self) {
        self.pool.assert_conserved(0, self.pipeline.frames_held());
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.pipeline.stats().drops[reason as usize].get()
    }

    pub fn check(&self) {
        self.pipeline.check_invariants().expect("the flow tables are in order");
    }
}
