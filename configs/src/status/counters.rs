//! What is counted: the JSON of `GET /v1/counters`, and the reasons for drops.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where every packet of a worker went, since its start. Balanced at every burst:
/// rx + generated + `handoff_in` = tx + `handoff_out` + kernel + drops + held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    pub rx: u64,
    /// Packets the worker built itself: ARP, neighbour discovery, ICMP.
    pub generated: u64,
    pub handoff_in: u64,
    pub tx: u64,
    pub handoff_out: u64,
    /// Steered here, proved not ours, given back through the TAP.
    pub kernel: u64,
    /// Waiting now (for a neighbour, for a fragment): a level, not a count.
    pub held: u64,
    /// By `DropReason` name; a reason that never occurred may be missing.
    pub drops: BTreeMap<String, u64>,
}

impl Ledger {
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }

    /// What came in minus what is accounted for: 0, or a packet was lost or counted twice.
    #[must_use]
    pub fn imbalance(&self) -> i128 {
        let inward = [self.rx, self.generated, self.handoff_in];
        let outward = [self.tx, self.handoff_out, self.kernel, self.dropped(), self.held];
        inward.map(i128::from).iter().sum::<i128>() - outward.map(i128::from).iter().sum::<i128>()
    }

    pub fn add(&mut self, other: &Self) {
        self.rx += other.rx;
        self.generated += other.generated;
        self.handoff_in += other.handoff_in;
        self.tx += other.tx;
        self.handoff_out += other.handoff_out;
        self.kernel += other.kernel;
        self.held += other.held;
        for (reason, count) in &other.drops {
            *self.drops.entry(reason.clone()).or_default() += count;
        }
    }
}

/// `GET /v1/counters`: monotonic since the dataplane's start, except levels (held, frames, flows).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    pub uptime_seconds: f64,
    pub total: Ledger,
    pub workers: Vec<WorkerCounters>,
    pub ports: Vec<PortCounters>,
    /// The XDP program's own, before any worker: not part of the ledgers.
    #[serde(default)]
    pub steer: SteerCounts,
}

/// Packets as the XDP program decided about them, over all interfaces, since it was loaded first: restarts do not
/// reset them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SteerCounts {
    /// To the kernel: not ours.
    pub passed: u64,
    /// To the kernel: from queues that are not served.
    pub unserved: u64,
    /// To the kernel: headers cut short.
    pub malformed: u64,
    /// To the workers.
    pub redirected: u64,
    /// Dropped: ours, and no process had a socket.
    pub no_socket: u64,
    /// Dropped: beyond `box.new_per_vip`, and of no established flow.
    pub policed: u64,
    /// To the kernel: in several buffers, the first of which has too little of the headers to tell whose it is.
    pub split: u64,
}

impl Counters {
    /// Fills `total` from the workers.
    #[must_use]
    pub fn new(uptime_seconds: f64, workers: Vec<WorkerCounters>, ports: Vec<PortCounters>) -> Self {
        let mut total = Ledger::default();
        for worker in &workers {
            total.add(&worker.ledger);
        }
        Self { uptime_seconds, total, workers, ports, steer: SteerCounts::default() }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerCounters {
    pub worker: u16,
    pub ledger: Ledger,
    #[serde(default)]
    pub frames: FrameCounters,
    #[serde(default)]
    pub flows: FlowCounters,
    /// One per (interface, queue) the worker serves.
    #[serde(default)]
    pub sockets: Vec<SocketCounters>,
    /// Time from receive to transmit, where it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// Where the worker's frames are now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrameCounters {
    pub total: u64,
    pub free: u64,
    /// On fill, receive, transmit and completion rings, or held by the worker for something.
    pub kernel: u64,
}

/// The worker's flow tables, both families together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowCounters {
    pub established: u64,
    pub established_capacity: u64,
    pub embryonic: u64,
    pub embryonic_capacity: u64,
    pub created: u64,
    /// Embryos pushed out by newer ones: a flood, or `limits.embryonic` too small.
    pub evicted: u64,
    /// RSTs out of their receiver's window: delivered, but no flow ended by them.
    pub resets_doubted: u64,
    /// Idle connections whose ends were sent RSTs (`on_idle = "reset"`).
    pub idle_resets: u64,
    /// Clients remembered for services with affinity.
    pub affinity: u64,
    pub affinity_capacity: u64,
    /// Those forgotten early for want of room (`limits.affinity`).
    pub affinity_evicted: u64,
    /// New flows about whose client another worker was asked.
    pub affinity_asked: u64,
}

/// One `AF_XDP` socket: the kernel's own statistics (`XDP_STATISTICS`), and what the worker saw at its rings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketCounters {
    pub interface: String,
    pub queue: u16,
    pub zero_copy: bool,
    pub rx_dropped: u64,
    pub rx_invalid_descriptors: u64,
    pub tx_invalid_descriptors: u64,
    pub rx_ring_full: u64,
    pub fill_ring_empty: u64,
    /// Descriptors from the kernel that named no frame it had been given: a bug.
    pub bad_descriptors: u64,
    /// Wake-ups that failed: the link is down, or the interface is gone.
    pub kick_errors: u64,
    /// Packets received in several frames (multi-buffer), where a port's MTU is beyond one.
    pub rx_chains: u64,
    /// Dropped: packets beyond any MTU the box takes, merged by the card or the kernel (LRO, GRO).
    pub rx_oversize: u64,
}

impl SocketCounters {
    /// Packets dropped because the worker did not come round in time: no room in the receive ring, or no frame to receive into.
    #[must_use]
    pub fn overrun(&self) -> u64 {
        self.rx_ring_full + self.starved()
    }

    /// Packets the kernel dropped for another reason: larger than a frame.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.rx_dropped - self.starved()
    }

    /// In copy mode the kernel takes a frame from the fill ring for a packet at hand: none there is a packet lost, counted
    /// among the drops and again as the ring's emptiness. A card takes frames beforehand, and its tries are no packets.
    fn starved(&self) -> u64 {
        if self.zero_copy { 0 } else { self.fill_ring_empty.min(self.rx_dropped) }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortCounters {
    pub interface: String,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    pub samples: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// `GET /v1/reasons`: why packets are dropped, by name, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub name: String,
    pub help: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_packet_has_one_reason() {
        let copied =
            SocketCounters { rx_dropped: 12, fill_ring_empty: 10, rx_ring_full: 1, ..SocketCounters::default() };
        assert_eq!((copied.overrun(), copied.refused()), (11, 2));
        let by_card = SocketCounters { zero_copy: true, ..copied.clone() };
        assert_eq!((by_card.overrun(), by_card.refused()), (1, 12));
        // Read while they move.
        assert_eq!(SocketCounters { rx_dropped: 9, ..copied }.refused(), 0);
    }
}
