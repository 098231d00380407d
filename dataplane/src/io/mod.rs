//! Ports: where frames come from and go to. The worker owns the ports, the pipeline never sees
//! them, so it runs the same over AF_XDP, memory rings, a pcap file and a fault injector.
//!
//! | module | what |
//! | --- | --- |
//! | [`frame`] | packet memory, and who owns which frame of it |
//! | [`xsk`] | AF_XDP sockets; the pitfalls of AF_XDP, and where each is handled |
//! | [`tap`] | back to the kernel: what was steered to us and proves not ours |
//! | [`mem`] | rings in memory, for tests and benchmarks |
//! | [`pcap`] | replay a capture file, capture what passes |
//! | [`fault`] | any port on a bad day, by a seed |
//!
//! What a worker owes its ports: one [`Port::service`] per port and turn, the first before any
//! packet can come; what a port did not take is dropped by the worker, given back to the pool and
//! counted; no sleep while a port is [`Port::tx_pending`], and otherwise on all of [`Port::poll_fd`].
//! At any time `pool.free_count()`, every port's [`Port::frames_held`] and the frames in the worker's hands
//! make up the whole memory ([`FramePool::assert_conserved`]).

pub mod fault;
pub mod frame;
pub mod mem;
pub mod pcap;
pub mod tap;
pub mod xsk;

pub use frame::{Frame, FramePool, MOST_FRAMES, PacketMemory, Parts};

/// Frames moved per burst: large enough to hide memory latency behind prefetches, small enough
/// that a burst of metadata stays in the L1 cache.
pub const BURST: usize = 64;

/// The largest MTU a port may have: what switches mean by jumbo frames.
pub const LARGEST_MTU: u32 = 9216;

/// Bytes of the largest packet: with an Ethernet header and two tags.
pub const LARGEST_PACKET: usize = LARGEST_MTU as usize + 22;

/// A burst of frames on its way through the pipeline.
pub type Burst = arrayvec::ArrayVec<Frame, BURST>;

/// Counters of a port's sockets as the kernel keeps them, beside the worker's ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames the kernel dropped before the receive ring (no fill descriptor, too large).
    pub rx_dropped: u64,
    pub rx_ring_full: u64,
    pub rx_fill_empty: u64,
    /// Fill descriptors the kernel refused.
    pub rx_invalid: u64,
    /// Frames no wire would take: shorter than an Ethernet header.
    pub tx_invalid: u64,
    /// Descriptors from the kernel that named no frame the port had given it.
    pub bad_descriptors: u64,
    /// Wake-ups that failed: the link is down or the interface is gone.
    pub kick_errors: u64,
    /// Packets received in several frames.
    pub rx_chains: u64,
    /// Packets beyond [`LARGEST_PACKET`]: what a card or the kernel has merged (LRO, GRO).
    pub rx_oversize: u64,
}

/// One receive and transmit queue. Implementations: [`xsk`], [`mem`], [`pcap`], [`fault`], [`tap`].
///
/// A packet larger than a frame is a chain of frames ([`frame`]), and one [`Frame`] here: it is sent whole or not at
/// all. Ports that were not made for chains neither give any nor are given any.
///
/// Frames are owned: what `rx_burst` hands out the worker must give to some port's `tx_burst` or
/// back to the pool; what `tx_burst` did not take stays in the burst.
pub trait Port {
    /// Appends received frames to `out`, at most its remaining room. Returns how many.
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize;

    /// Takes frames from the front of `frames` for transmission; those left did not fit the ring.
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize;

    /// Per loop turn, also on idle ones: reap completions into the pool, refill the fill ring from
    /// it, wake the kernel if it asked for it.
    fn service(&mut self, pool: &mut FramePool);

    /// Frames the port (its rings and the kernel behind them) holds now; with the pool's free
    /// frames and those in flight in the worker they make up the whole packet memory.
    fn frames_held(&self) -> usize;

    /// Frames wait for another [`Port::service`] before the kernel transmits them. A worker that is
    /// about to sleep must not: nothing would wake it, and the tail of a burst would strand.
    fn tx_pending(&self) -> bool {
        false
    }

    /// The descriptor to sleep on when idle; `None`: this port needs no sleeping.
    fn poll_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    fn stats(&self) -> PortStats {
        PortStats::default()
    }
}
