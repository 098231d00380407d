//! The pinned loop: receive a burst, let the pipeline settle it, send it on; then hand-offs, ring
//! service, upkeep; and sleep when there is nothing to do.

mod egress;
mod idle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;

use crate::clock::Now;
use crate::handoff::{Exchange, Note, Parcel};
use crate::io::{BURST, Burst, Frame, FramePool, Port};
use crate::pipeline::{Pipeline, Released};
use crate::publish::Mailbox;
use crate::stats::{SocketCounters, WorkerStats};
use crate::verdict::{DropReason, PortId, Verdict, WorkerId};
use egress::Egress;
pub use idle::IdlePolicy;

/// The time between two looks at the TAP and at the sockets' counters, each a system call for which packets wait: where
/// there is work, and where there has been none for a while.
const CHORES_NS: u64 = 1_000_000;
const IDLE_CHORES_NS: u64 = 50_000;

/// Turns between two measurements of how long a turn's packets took: a look at the clock and a push.
const LATENCY_EVERY: u32 = 64;

/// A socket of the worker, and which of the box's ports it belongs to.
pub struct Attached<P> {
    pub id: PortId,
    pub port: P,
}

/// One worker: its sockets, packet memory and pipeline.
pub struct Worker<P: Port, K: Port> {
    id: WorkerId,
    sockets: Vec<Attached<P>>,
    /// The TAP to the kernel, and its number among the ports.
    kernel: Option<Attached<K>>,
    pool: FramePool,
    pipeline: Pipeline,
    exchange: Arc<Exchange>,
    mailbox: Arc<Mailbox>,
    stats: Arc<WorkerStats>,
    egress: Egress,
    idle: IdlePolicy,
    turn: u32,
    /// When the chores were last done.
    chores: Now,
    /// Frames that the largest packet another worker can hand over takes.
    parcel_frames: usize,
}

/// What a worker is made of.
pub struct WorkerParts<P: Port, K: Port> {
    pub sockets: Vec<Attached<P>>,
    pub kernel: Option<Attached<K>>,
    pub pool: FramePool,
    pub pipeline: Pipeline,
    pub exchange: Arc<Exchange>,
    pub mailbox: Arc<Mailbox>,
    pub idle: IdlePolicy,
}

impl<P: Port, K: Port> Worker<P, K> {
    #[must_use]
    pub fn new(parts: WorkerParts<P, K>) -> Self {
        let WorkerParts { sockets, kernel, pool, mut pipeline, exchange, mailbox, idle } = parts;
        pipeline.meet(exchange.peers());
        let egress = Egress::new(&sockets.iter().map(|socket| socket.id).collect::<Vec<_>>());
        let stats = Arc::clone(pipeline.stats());
        stats.sockets.get_or_init(|| sockets.iter().map(|_| SocketCounters::default()).collect());
        let one = exchange.room() <= pool.memory().frame_size() as usize;
        let parcel_frames = if one { 1 } else { exchange.room().div_ceil(pool.memory().room()) };
        Self {
            id: pipeline.worker(),
            sockets,
            kernel,
            pool,
            pipeline,
            exchange,
            mailbox,
            stats,
            egress,
            idle,
            turn: 0,
            chores: Now::default(),
            parcel_frames,
        }
    }

    /// Turns until `stop`; then leaves nothing in flight behind.
    pub fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let now = Now::read();
            let worked = self.turn(now);
            if self.idle.should_sleep(worked, now) {
                self.publish();
                self.sleep(stop);
            }
        }
        self.flush();
    }

    /// One turn of the loop. True: there was work.
    pub fn turn(&mut self, now: Now) -> bool {
        self.turn = self.turn.wrapping_add(1);
        if let Some(view) = self.mailbox.take() {
            let old = self.pipeline.adopt(view);
            self.mailbox.give_back(old);
        }
        let mut worked = false;
        for socket in 0..self.sockets.len() {
            worked |= self.receive(socket, now);
        }
        worked |= self.receive_handoffs(now);
        let every = if self.idle.has_been_idle(IDLE_CHORES_NS, now) { IDLE_CHORES_NS } else { CHORES_NS };
        let chores = now.ns.saturating_sub(self.chores.ns) >= every;
        if chores {
            self.chores = now;
            worked |= self.receive_from_kernel(now);
        }
        self.send();
        for socket in &mut self.sockets {
            socket.port.service(&mut self.pool);
        }
        if let Some(kernel) = &mut self.kernel {
            kernel.port.service(&mut self.pool);
        }
        if worked && self.turn.is_multiple_of(LATENCY_EVERY) {
            // What came in at `now` has been handed to the kernel.
            let _ = self.stats.latency.push(Now::read().ns.saturating_sub(now.ns));
        }
        let due = self.pipeline.upkeep(now);
        if self.pipeline.has_released() {
            // Only the time-outs of fragments: they wake nobody.
            self.release(&mut None, now);
        }
        while let Some((frame, port)) = self.pipeline.next_farewell(&mut self.pool) {
            self.conclude(port, frame, Verdict::Tx(port), &mut None);
        }
        self.stats.turns.add(1);
        self.stats.busy_turns.add(u64::from(worked));
        if chores {
            self.publish();
        }
        worked || due
    }

    fn receive(&mut self, socket: usize, now: Now) -> bool {
        let mut burst = Burst::new();
        let Self { sockets, pool, .. } = self;
        let Attached { id, port } = &mut sockets[socket];
        let id = *id;
        if port.rx_burst(pool, &mut burst) == 0 {
            return false;
        }
        self.count_received(id, &burst);
        self.settle(id, false, burst, now);
        true
    }

    fn receive_from_kernel(&mut self, now: Now) -> bool {
        let mut burst = Burst::new();
        let Self { kernel, pool, .. } = self;
        let Some(Attached { id, port }) = kernel else { return false };
        let id = *id;
        if port.rx_burst(pool, &mut burst) == 0 {
            return false;
        }
        self.count_received(id, &burst);
        self.settle(id, false, burst, now);
        true
    }

    fn count_received(&self, id: PortId, burst: &Burst) {
        self.stats.rx.add(burst.len() as u64);
        if let Some(counters) = self.stats.ports.get(usize::from(id.0)) {
            counters.rx.add(burst.len() as u64);
            counters.rx_bytes.add(burst.iter().map(|frame| frame.len() as u64).sum());
        }
    }

    /// Packets other workers found to be ours, copied into frames of ours.
    fn receive_handoffs(&mut self, now: Now) -> bool {
        let mut worked = false;
        for from in (0..self.exchange.workers()).map(WorkerId) {
            if from == self.id {
                continue;
            }
            let mut burst = Burst::new();
            let mut port = PortId(0);
            let mut note = Note::Flow;
            // Without free frames they wait where they are, and the ring pushes back.
            for _ in 0..BURST {
                if self.pool.free_count() < self.parcel_frames {
                    break;
                }
                let Some(parcel) = self.exchange.receive(from, self.id) else { break };
                self.stats.handoff_in.add(1);
                worked = true;
                if parcel.note == Note::Asks {
                    self.answer(from, &parcel, now);
                    self.exchange.give_back(from, self.id, parcel);
                    continue;
                }
                if !burst.is_empty() && (parcel.port, parcel.note) != (port, note) {
                    // A burst is from one port, and one thing is said of it; the rest goes in the next.
                    self.settle_handed(port, note, std::mem::take(&mut burst), now);
                }
                (port, note) = (parcel.port, parcel.note);
                match self.pool.take_packet(parcel.bytes()) {
                    Some(frame) => burst.push(frame),
                    None => self.stats.count_drop(DropReason::NoFrame),
                }
                self.exchange.give_back(from, self.id, parcel);
            }
            if !burst.is_empty() {
                self.settle_handed(port, note, burst, now);
            }
        }
        worked
    }

    /// Sends a packet back to the worker that asks where its flow should go, with the answer.
    fn answer(&mut self, asker: WorkerId, parcel: &Parcel, now: Now) {
        let advice = Note::Advised(self.pipeline.advise(parcel.bytes(), now));
        if self.exchange.send(self.id, asker, parcel.port, advice, parcel.bytes()) {
            self.stats.handoff_out.add(1);
            self.exchange.bell(asker).ring();
        } else {
            self.stats.count_drop(DropReason::HandoffFull);
        }
    }

    fn settle_handed(&mut self, from: PortId, note: Note, burst: Burst, now: Now) {
        self.pipeline.heed(note);
        self.settle(from, true, burst, now);
        self.pipeline.heed(Note::Flow);
    }

    /// Lets the pipeline settle a burst and does what it says with each frame.
    fn settle(&mut self, from: PortId, handed: bool, mut burst: Burst, now: Now) {
        let mut verdicts = ArrayVec::new();
        self.pipeline.burst(self.pool.memory(), from, handed, &mut burst, &mut verdicts, now);
        self.pool.collect();
        let mut rung = None;
        for (frame, verdict) in burst.into_iter().zip(verdicts) {
            self.conclude(from, frame, verdict, &mut rung);
        }
        if self.pipeline.has_released() {
            self.release(&mut rung, now);
        }
        // A doorbell per run of one owner, behind the run.
        if let Some(owner) = rung {
            self.exchange.bell(owner).ring();
        }
    }

    /// Does what the verdict says.
    #[inline]
    fn conclude(&mut self, from: PortId, frame: Frame, verdict: Verdict, rung: &mut Option<WorkerId>) {
        match verdict {
            Verdict::Tx(port) if self.kernel.as_ref().is_some_and(|kernel| kernel.id == port) => {
                self.hand_to_kernel(frame, false);
            }
            Verdict::Tx(port) => self.enqueue(port, frame),
            Verdict::Kernel => self.hand_to_kernel(frame, true),
            Verdict::Handoff(owner) => self.hand_over(owner, Note::Flow, from, frame, rung),
            Verdict::Ask(adviser) => {
                self.stats.affinity_asked.add(1);
                self.hand_over(adviser, Note::Asks, from, frame, rung);
            }
            Verdict::Held(slot) => match self.pipeline.keep(slot, frame) {
                None => self.stats.held.add(1),
                Some(frame) => {
                    self.stats.count_drop(DropReason::FragmentLimit);
                    self.pool.give(frame);
                }
            },
            Verdict::Drop(_) => self.pool.give(frame),
        }
    }

    fn hand_over(&mut self, to: WorkerId, note: Note, from: PortId, frame: Frame, rung: &mut Option<WorkerId>) {
        let memory = self.pool.memory();
        let copy = |room: &mut [u8]| _ = memory.copy_out(&frame, room);
        if self.exchange.send_with(self.id, to, from, note, frame.len(), copy) {
            self.stats.handoff_out.add(1);
            if let Some(other) = rung.replace(to).filter(|other| *other != to) {
                self.exchange.bell(other).ring();
            }
        } else {
            self.stats.count_drop(DropReason::HandoffFull);
        }
        self.pool.give(frame);
    }

    /// Sends on what the pipeline held and holds no longer.
    #[cold]
    fn release(&mut self, rung: &mut Option<WorkerId>, now: Now) {
        while let Some(Released { frame, from, verdict }) = self.pipeline.release(self.pool.memory(), now) {
            self.stats.held.sub(1);
            self.pool.collect();
            self.conclude(from, frame, verdict, rung);
        }
    }

    /// Counters that are not kept packet by packet.
    fn publish(&self) {
        let mut held = self.egress.len() + self.pipeline.frames_held() + self.pool.chained();
        let counters = self.stats.sockets.get().map_or(&[][..], Vec::as_slice);
        for (at, socket) in self.sockets.iter().enumerate() {
            held += socket.port.frames_held();
            if let Some(counters) = counters.get(at) {
                counters.set(&socket.port.stats());
            }
        }
        held += self.kernel.as_ref().map_or(0, |kernel| kernel.port.frames_held());
        self.stats.frames_in_ports.set(held as u64);
        self.stats.frames_free.set(self.pool.free_count() as u64);
        self.stats.frames_total.set(self.pool.memory().frame_count() as u64);
    }

    /// Frames anywhere in this worker; equal to the packet memory's count, always.
    #[must_use]
    pub fn frames_accounted(&self) -> usize {
        let ports: usize = self.sockets.iter().map(|socket| socket.port.frames_held()).sum();
        let kernel = self.kernel.as_ref().map_or(0, |kernel| kernel.port.frames_held());
        self.pool.free_count() + self.pool.chained() + self.egress.len() + self.pipeline.frames_held() + ports + kernel
    }

    #[must_use]
    pub fn pool(&self) -> &FramePool {
        &self.pool
    }

    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// For set-up, before it turns.
    pub fn pipeline_mut(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }
}

#[cfg(test)]
mod tests;
