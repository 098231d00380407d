//! Ports in memory: the pipeline without a kernel.
//!
//! [`pair`] connects a worker with a test (or another thread): packets go in and come out as bytes, and
//! the rings are bounded and complete late, as a socket's do. [`RingPort`] is for benchmarks: it hands
//! out preloaded frames for ever.
//!
//! Neither port allocates per packet, so that a counting allocator may watch a worker over them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::{Burst, Frame, FramePool, Port, PortStats};

/// Buffers are made this large beforehand; a longer packet makes its buffer grow once.
const BUFFER: usize = 2048;

/// What the two ends of a pair share.
struct Wire {
    to_port: ArrayQueue<Vec<u8>>,
    from_port: ArrayQueue<Vec<u8>>,
    /// Empty buffers, so that the port's side neither allocates nor frees: it returns those it read
    /// from and writes into those the peer left.
    read: ArrayQueue<Vec<u8>>,
    blank: ArrayQueue<Vec<u8>>,
    /// Packets the peer could not inject.
    refused: AtomicU64,
}

/// A port whose other end is a [`MemPeer`].
pub struct MemPort {
    wire: Arc<Wire>,
    /// Transmitted, not completed yet: given back by [`Port::service`], as a kernel would.
    sent: Vec<Frame>,
    capacity: usize,
    too_large: u64,
    /// Bytes a packet has in its first frame, if it is received in several.
    first: Option<usize>,
    chains: u64,
}

/// The far end of a [`MemPort`]: what it injects the port receives. May be used by another thread and cloned.
#[derive(Clone)]
pub struct MemPeer {
    wire: Arc<Wire>,
}

/// A port and its far end, with room for `capacity` packets each way.
///
/// # Panics
/// If `capacity` is 0.
#[must_use]
pub fn pair(capacity: usize) -> (MemPort, MemPeer) {
    let blank = ArrayQueue::new(capacity);
    while blank.push(Vec::with_capacity(BUFFER)).is_ok() {}
    let wire = Arc::new(Wire {
        to_port: ArrayQueue::new(capacity),
        from_port: ArrayQueue::new(capacity),
        read: ArrayQueue::new(capacity),
        blank,
        refused: AtomicU64::new(0),
    });
    let peer = MemPeer { wire: Arc::clone(&wire) };
    (MemPort { wire, sent: Vec::with_capacity(capacity), capacity, too_large: 0, first: None, chains: 0 }, peer)
}

impl MemPeer {
    /// Queues a packet for the port to receive. False: the ring is full, the packet is dropped and
    /// counts as the port's `rx_ring_full`.
    pub fn inject(&self, packet: &[u8]) -> bool {
        let mut buffer = self.wire.read.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER));
        buffer.clear();
        buffer.extend_from_slice(packet);
        match self.wire.to_port.push(buffer) {
            Ok(()) => true,
            Err(buffer) => {
                self.wire.refused.fetch_add(1, Ordering::Relaxed);
                // Full again means only that a buffer is freed here, on the peer's side.
                let _ = self.wire.read.push(buffer);
                false
            }
        }
    }

    /// The next packet the port transmitted.
    #[must_use]
    pub fn take(&self) -> Option<Vec<u8>> {
        let packet = self.wire.from_port.pop()?;
        let _ = self.wire.blank.push(Vec::with_capacity(BUFFER));
        Some(packet)
    }

    /// All packets the port has transmitted so far.
    #[must_use]
    pub fn take_all(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Packets injected that the port has not received yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.wire.to_port.len()
    }
}

impl MemPort {
    /// Another handle of the far end.
    #[must_use]
    pub fn peer(&self) -> MemPeer {
        MemPeer { wire: Arc::clone(&self.wire) }
    }

    /// Receives packets of more than `first` bytes in several frames, the first with so many of them.
    #[must_use]
    pub fn chaining(self, first: usize) -> Self {
        Self { first: Some(first), ..self }
    }

    /// [`MemPeer::inject`], for single-threaded tests.
    pub fn inject(&self, packet: &[u8]) -> bool {
        self.peer().inject(packet)
    }
}

impl Port for MemPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        let before = out.len();
        // With no free frame the packets wait, as they do on an empty fill ring.
        while !out.is_full() && pool.free_count() > 0 {
            let Some(packet) = self.wire.to_port.pop() else { break };
            let frame = match self.first {
                Some(first) if packet.len() > first => pool.take_split(&packet, first),
                _ => pool.take_with(&packet),
            };
            match frame {
                Some(frame) => {
                    self.chains += u64::from(frame.is_chain());
                    out.push(frame);
                }
                None => self.too_large += 1,
            }
            let _ = self.wire.read.push(packet);
        }
        out.len() - before
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let mut taken = 0;
        while taken < frames.len() && self.sent.len() + taken < self.capacity {
            let Some(mut packet) = self.wire.blank.pop() else { break };
            packet.clear();
            pool.memory().parts(&frames[taken]).for_each(|part| packet.extend_from_slice(part));
            if let Err(packet) = self.wire.from_port.push(packet) {
                let _ = self.wire.blank.push(packet);
                break;
            }
            taken += 1;
        }
        self.sent.extend(frames.drain(..taken));
        taken
    }

    fn service(&mut self, pool: &mut FramePool) {
        self.sent.drain(..).for_each(|frame| pool.give(frame));
    }

    fn frames_held(&self) -> usize {
        self.sent.len()
    }

    fn stats(&self) -> PortStats {
        PortStats {
            rx_dropped: self.too_large,
            rx_ring_full: self.wire.refused.load(Ordering::Relaxed),
            rx_chains: self.chains,
            ..PortStats::default()
        }
    }
}

/// What a [`RingPort`] does to a frame before it hands it out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Nothing: it comes back as the pipeline left it, with no byte touched.
    Keep,
    /// Copies the next packet of the list into it: a generator whose packets do not wear out.
    Copy,
}

/// A ring of frames that never runs dry, for benchmarks: what is transmitted is received again.
/// Frames the worker dropped are replaced from the pool by [`Port::service`].
pub struct RingPort {
    ready: VecDeque<Frame>,
    packets: Vec<Vec<u8>>,
    next: usize,
    depth: usize,
    refresh: Refresh,
    received: u64,
    transmitted: u64,
}

impl RingPort {
    /// A ring of at most `depth` frames, loaded from `pool` with `packets` in turn.
    ///
    /// # Panics
    /// If there are no packets, or one has no room in a frame.
    #[must_use]
    pub fn new(pool: &mut FramePool, packets: &[impl AsRef<[u8]>], depth: usize, refresh: Refresh) -> Self {
        let packets: Vec<Vec<u8>> = packets.iter().map(|packet| packet.as_ref().to_vec()).collect();
        assert!(!packets.is_empty(), "a ring of no packets delivers nothing");
        assert!(packets.iter().all(|packet| packet.len() <= pool.memory().room()), "a packet larger than a frame");
        let ready = VecDeque::with_capacity(depth);
        let mut port = Self { ready, packets, next: 0, depth, refresh, received: 0, transmitted: 0 };
        port.service(pool);
        port
    }

    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    #[must_use]
    pub fn transmitted(&self) -> u64 {
        self.transmitted
    }

    fn next_packet(&mut self) -> usize {
        let now = self.next;
        self.next = if now + 1 == self.packets.len() { 0 } else { now + 1 };
        now
    }
}

impl Port for RingPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        let count = out.remaining_capacity().min(self.ready.len());
        for _ in 0..count {
            let Some(mut frame) = self.ready.pop_front() else { break };
            if self.refresh == Refresh::Copy {
                let now = self.next_packet();
                let packet = &self.packets[now];
                pool.memory().set_len(&mut frame, packet.len());
                pool.memory().bytes_mut(&mut frame).copy_from_slice(packet);
            }
            out.push(frame);
        }
        self.received += count as u64;
        count
    }

    fn tx_burst(&mut self, _pool: &mut FramePool, frames: &mut Burst) -> usize {
        let count = frames.len().min(self.depth - self.ready.len());
        self.ready.extend(frames.drain(..count));
        self.transmitted += count as u64;
        count
    }

    fn service(&mut self, pool: &mut FramePool) {
        while self.ready.len() < self.depth {
            let packet = self.next;
            let Some(frame) = pool.take_with(&self.packets[packet]) else { break };
            self.next_packet();
            self.ready.push_back(frame);
        }
    }

    fn frames_held(&self) -> usize {
        self.ready.len()
    }
}

/// Takes every frame and gives it straight back to the pool: the far side of a one-way benchmark.
#[derive(Debug, Default)]
pub struct SinkPort {
    pub transmitted: u64,
    pub bytes: u64,
}

impl Port for SinkPort {
    fn rx_burst(&mut self, _pool: &mut FramePool, _out: &mut Burst) -> usize {
        0
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let count = frames.len();
        for frame in frames.drain(..) {
            self.bytes += frame.len() as u64;
            pool.give(frame);
        }
        self.transmitted += count as u64;
        count
    }

    fn service(&mut self, _pool: &mut FramePool) {}

    fn frames_held(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::PacketMemory;

    fn pool(frames: u32) -> FramePool {
        FramePool::new(PacketMemory::heap(frames, 2048, 256))
    }

    #[test]
    fn bytes_go_in_and_come_out() {
        let (mut port, peer) = pair(8);
        let mut pool = pool(16);
        let mut burst = Burst::new();
        assert!(peer.inject(b"one"));
        assert!(port.inject(b"two"));
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 2);
        assert_eq!(pool.memory().bytes(&burst[1]), b"two");
        pool.memory().bytes_mut(&mut burst[0])[0] = b'O';
        pool.assert_conserved(port.frames_held(), burst.len());
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 2);
        assert_eq!(peer.take_all(), [b"One".to_vec(), b"two".to_vec()]);
        pool.assert_conserved(2, 0);
        assert_eq!(port.frames_held(), 2, "not completed before service");
        port.service(&mut pool);
        pool.assert_conserved(0, 0);
    }

    #[test]
    fn full_rings_refuse_and_leave_the_rest() {
        let (mut port, peer) = pair(4);
        let mut pool = pool(16);
        let accepted = (0..6).filter(|n| peer.inject(&[*n])).count();
        assert_eq!((accepted, port.stats().rx_ring_full), (4, 2));
        let mut burst = Burst::new();
        port.rx_burst(&mut pool, &mut burst);
        burst.push(pool.take_with(b"fifth").unwrap());
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 4);
        assert_eq!(pool.memory().bytes(&burst[0]), b"fifth");
        port.service(&mut pool);
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 0, "nobody took the packets");
        assert_eq!(peer.take().unwrap(), [0]);
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
        pool.assert_conserved(port.frames_held(), 0);
    }

    #[test]
    fn without_free_frames_packets_wait() {
        let (mut port, peer) = pair(4);
        let mut pool = pool(1);
        let mut burst = Burst::new();
        peer.inject(b"a");
        peer.inject(b"b");
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
        assert_eq!(peer.waiting(), 1);
        pool.give(burst.remove(0));
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
        assert_eq!(pool.memory().bytes(&burst[0]), b"b");
    }

    #[test]
    fn a_packet_larger_than_a_frame_is_counted_and_costs_no_frame() {
        let (mut port, peer) = pair(4);
        let mut pool = pool(2);
        let mut burst = Burst::new();
        peer.inject(&[0; 1793]);
        peer.inject(&[0; 1792]);
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
        assert_eq!(port.stats().rx_dropped, 1);
        pool.assert_conserved(port.frames_held(), burst.len());
    }

    #[test]
    fn a_peer_drives_a_port_in_another_thread() {
        const PACKETS: u32 = 20_000;
        let (mut port, peer) = pair(64);
        let worker = std::thread::spawn(move || {
            let mut pool = pool(128);
            let mut burst = Burst::new();
            let mut moved = 0;
            while moved < PACKETS as usize {
                port.rx_burst(&mut pool, &mut burst);
                moved += port.tx_burst(&mut pool, &mut burst);
                port.service(&mut pool);
                pool.assert_conserved(port.frames_held(), burst.len());
                std::thread::yield_now();
            }
        });
        let (mut sent, mut seen) = (0, 0);
        while seen < PACKETS {
            while sent < PACKETS && peer.inject(&sent.to_be_bytes()) {
                sent += 1;
            }
            while let Some(packet) = peer.take() {
                assert_eq!(packet, seen.to_be_bytes(), "in order, none lost");
                seen += 1;
            }
            std::thread::yield_now();
        }
        worker.join().unwrap();
    }

    #[test]
    fn a_ring_turns_for_ever_and_makes_up_for_drops() {
        let mut pool = pool(64);
        let mut port = RingPort::new(&mut pool, &[b"ab", b"cd"], 32, Refresh::Keep);
        let mut burst = Burst::new();
        for turn in 0..1000 {
            port.rx_burst(&mut pool, &mut burst);
            assert_eq!(burst.len(), 32);
            if turn % 7 == 0 {
                pool.give(burst.remove(3));
            }
            port.tx_burst(&mut pool, &mut burst);
            assert!(burst.is_empty());
            port.service(&mut pool);
            pool.assert_conserved(port.frames_held(), 0);
        }
        assert_eq!(port.frames_held(), 32);
    }

    #[test]
    fn a_refreshed_ring_delivers_its_packets_in_turn() {
        let mut pool = pool(64);
        let mut port = RingPort::new(&mut pool, &[b"ab", b"cd"], 2, Refresh::Copy);
        let mut burst = Burst::new();
        for _ in 0..3 {
            port.rx_burst(&mut pool, &mut burst);
            assert_eq!(pool.memory().bytes(&burst[0]), b"ab");
            assert_eq!(pool.memory().bytes(&burst[1]), b"cd");
            pool.memory().bytes_mut(&mut burst[0])[0] = b'x';
            pool.memory().set_len(&mut burst[1], 1);
            port.tx_burst(&mut pool, &mut burst);
        }
    }
}
