//! Counters: each written by one worker, read by housekeeping. Plain loads and stores, no locked
//! instructions: a counter has a single writer.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::io::PortStats;
use crate::neighbor::reply_check::ProbeAnswer;
use crate::verdict::{DropReason, PortId};

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's counters.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerStats {
    pub rx: Counter,
    pub tx: Counter,
    /// Packets the box made itself in place of one it dropped.
    pub generated: Counter,
    pub handoff_in: Counter,
    pub handoff_out: Counter,
    pub kernel: Counter,
    /// Frames waiting for something: a transmit ring with room.
    pub held: Counter,
    pub drops: [Counter; DropReason::COUNT],
    pub flows_created: Counter,
    pub flows_established: Counter,
    /// Of these, IPv6's.
    pub flows_established_v6: Counter,
    pub flows_embryonic: Counter,
    pub embryos_evicted: Counter,
    /// RSTs out of their receiver's window: delivered, but not believed.
    pub resets_doubted: Counter,
    /// Connections that were idle too long, and whose ends were sent RSTs.
    pub idle_resets: Counter,
    /// Clients remembered for services with affinity, and those forgotten early for want of room.
    pub affinity_entries: Counter,
    pub affinity_evicted: Counter,
    /// New flows about whose client another worker was asked.
    pub affinity_asked: Counter,
    pub turns: Counter,
    pub busy_turns: Counter,
    /// The publication this worker runs.
    pub view: Counter,
    /// The oldest tables under which it has gone through all its flows, by their serial number.
    pub swept: Counter,
    /// How often it has gone through all its flows.
    pub rounds: Counter,
    pub ports: Vec<PortCounters>,
    /// In the order of the worker's sockets, which sets them up: a port may have several.
    pub sockets: OnceLock<Vec<SocketCounters>>,
    /// By service slot.
    pub services: Vec<ServiceCounters>,
    pub frames_total: Counter,
    pub frames_free: Counter,
    pub frames_in_ports: Counter,
    /// Nanoseconds from receive to transmit of a burst now and then, for housekeeping; when full, some are missed.
    pub latency: ArrayQueue<u64>,
    /// Addresses of ours that another host claims, for housekeeping; when full, it says so again anyway.
    pub conflicts: ArrayQueue<Conflict>,
    /// What nodes answered to the reply check, for housekeeping; when full, they are asked again anyway.
    pub probe_answers: ArrayQueue<ProbeAnswer>,
}

/// Another host claims an address of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    pub port: PortId,
    pub address: IpAddr,
    pub mac: [u8; 6],
}

/// One port's part in a worker's traffic.
#[derive(Debug, Default)]
pub struct PortCounters {
    pub rx: Counter,
    pub rx_bytes: Counter,
    pub tx: Counter,
    pub tx_bytes: Counter,
}

/// One socket's own statistics: see [`PortStats`].
#[derive(Debug, Default)]
pub struct SocketCounters {
    pub rx_dropped: Counter,
    pub rx_ring_full: Counter,
    pub fill_empty: Counter,
    pub rx_invalid: Counter,
    pub tx_invalid: Counter,
    pub bad_descriptors: Counter,
    pub kick_errors: Counter,
    pub rx_chains: Counter,
    pub rx_oversize: Counter,
}

impl SocketCounters {
    /// Field by field: one that is collected is carried on.
    pub fn set(&self, stats: &PortStats) {
        let PortStats {
            rx_dropped,
            rx_ring_full,
            rx_fill_empty,
            rx_invalid,
            tx_invalid,
            bad_descriptors,
            kick_errors,
            rx_chains,
            rx_oversize,
        } = *stats;
        self.rx_dropped.set(rx_dropped);
        self.rx_ring_full.set(rx_ring_full);
        self.fill_empty.set(rx_fill_empty);
        self.rx_invalid.set(rx_invalid);
        self.tx_invalid.set(tx_invalid);
        self.bad_descriptors.set(bad_descriptors);
        self.kick_errors.set(kick_errors);
        self.rx_chains.set(rx_chains);
        self.rx_oversize.set(rx_oversize);
    }
}

#[derive(Debug, Default)]
pub struct ServiceCounters {
    pub flows: Counter,
    pub new_flows: Counter,
    /// Flows its limits did not let open.
    pub limited: Counter,
    pub packets: Counter,
    pub forward_bytes: Counter,
    pub reverse_bytes: Counter,
}

impl WorkerStats {
    #[must_use]
    pub fn new(ports: usize, services: usize) -> Self {
        Self {
            rx: Counter::default(),
            tx: Counter::default(),
            generated: Counter::default(),
            handoff_in: Counter::default(),
            handoff_out: Counter::default(),
            kernel: Counter::default(),
            held: Counter::default(),
            drops: std::array::from_fn(|_| Counter::default()),
            flows_created: Counter::default(),
            flows_established: Counter::default(),
            flows_established_v6: Counter::default(),
            flows_embryonic: Counter::default(),
            embryos_evicted: Counter::default(),
            resets_doubted: Counter::default(),
            idle_resets: Counter::default(),
            affinity_entries: Counter::default(),
            affinity_evicted: Counter::default(),
            affinity_asked: Counter::default(),
            turns: Counter::default(),
            busy_turns: Counter::default(),
            view: Counter::default(),
            swept: Counter::default(),
            rounds: Counter::default(),
            ports: (0..ports).map(|_| PortCounters::default()).collect(),
            sockets: OnceLock::new(),
            services: (0..services).map(|_| ServiceCounters::default()).collect(),
            frames_total: Counter::default(),
            frames_free: Counter::default(),
            frames_in_ports: Counter::default(),
            latency: ArrayQueue::new(256),
            conflicts: ArrayQueue::new(16),
            probe_answers: ArrayQueue::new(1024),
        }
    }

    #[inline]
    pub fn count_drop(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }

    /// Packets that came in and have not ended yet: zero between bursts.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let into = self.rx.get() + self.generated.get() + self.handoff_in.get();
        let out = self.tx.get() + self.handoff_out.get() + self.kernel.get() + self.dropped() + self.held.get();
        into as i64 - out as i64
    }
}
