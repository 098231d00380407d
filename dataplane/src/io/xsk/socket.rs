//! One AF_XDP socket as a port.
#![allow(unsafe_code, reason = "the rings of xsk-rs take descriptors on trust; see each block")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use penstock_configs::file::ZeroCopy;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, Umem};

use super::bind::{Rings, bind};
use super::chains::Gathering;
use super::custody::{Bad, Custody};
use super::umem::{Membership, WorkerUmem, fill_target, reserve};
use super::{Report, XskConfig, XskError, sockopt};
use crate::io::{BURST, Burst, FramePool, Port, PortStats};

/// Wake-ups per service call. Each moves 32 frames, a turn of the worker brings a burst or two: this
/// keeps up, and a long queue does not keep the worker from receiving. (Kernel 6.17 can be told to move more at
/// once, `XDP_MAX_TX_SKB_BUDGET`; half the calls made no difference that could be measured.)
const KICKS: u32 = 4;

/// An Ethernet header: the kernel drops anything shorter, and never completes it.
pub(super) const SHORTEST: usize = 14;

/// What the socket has been through, beside the kernel's statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Descriptors from the kernel that name no frame of ours, or no packet inside one.
    pub bad_descriptors: u64,
    /// Packets too short to be put on a wire.
    pub too_short: u64,
    /// Wake-ups for transmission.
    pub kicks: u64,
    /// Wake-ups that failed: the link is down or the interface is gone.
    pub kick_errors: u64,
    /// Packets received in several frames.
    pub chains: u64,
    /// Packets larger than any the box takes, and dropped for it.
    pub oversize: u64,
}

/// An AF_XDP socket on one queue of an interface.
///
/// Dropping it closes all four rings. The frames the kernel had then are lost to the pool: drop the pool too.
pub struct XskPort {
    pub(super) rx: RxQueue,
    pub(super) tx: TxQueue,
    fill: FillQueue,
    comp: CompQueue,
    pub(super) umem: Umem,
    pub(super) descs: Arc<[FrameDesc]>,
    siblings: Membership,
    pub(super) custody: Custody,
    /// The packet memory the descriptors are of.
    memory: u16,
    ring_size: usize,
    fill_ring: usize,
    /// The kernel may have frames in the transmit ring that it will not send unasked.
    pub(super) kick_owed: bool,
    /// The last wake-up failed: the link is down.
    link_down: bool,
    busy_poll: bool,
    /// Bound for packets in several frames.
    scatter: bool,
    pub(super) gathering: Gathering,
    pub(super) counters: Counters,
    pub(super) scratch: Box<[FrameDesc; BURST]>,
}

impl XskPort {
    /// Opens a socket on `queue` of `interface`; waits up to a second for a queue that is just being closed.
    /// Open all ports of a worker before serving the first: they share the memory evenly.
    pub fn open(
        worker: &WorkerUmem,
        interface: &str,
        queue: u32,
        config: &XskConfig,
    ) -> Result<(Self, Report), XskError> {
        let place = || (interface.to_owned(), queue);
        if config.generic && config.zero_copy == ZeroCopy::Require {
            let (interface, queue) = place();
            return Err(XskError::ZeroCopyGeneric { interface, queue });
        }
        let started = Instant::now();
        let (rings, retried) = bind(worker, interface, queue, config)?;
        let waited = if retried { started.elapsed() } else { Duration::ZERO };
        let mut port = Self::new(worker, rings);
        port.scatter = config.scatter;
        let report = port.settle(worker, interface, queue, config, waited)?;
        Ok((port, report))
    }

    fn new(worker: &WorkerUmem, (tx, rx, fill, comp): Rings) -> Self {
        Self {
            rx,
            tx,
            fill,
            comp,
            umem: worker.umem.clone(),
            descs: Arc::clone(&worker.descs),
            siblings: Membership::new(&worker.siblings),
            custody: Custody::new(worker.descs.len()),
            memory: worker.memory,
            ring_size: worker.ring_size as usize,
            fill_ring: worker.ring_size as usize,
            kick_owed: false,
            link_down: false,
            busy_poll: false,
            scatter: false,
            gathering: Gathering::default(),
            counters: Counters::default(),
            scratch: Box::new([FrameDesc::default(); BURST]),
        }
    }

    /// Asks the kernel what it made of the socket, and sets what may be set afterwards.
    fn settle(
        &mut self,
        worker: &WorkerUmem,
        interface: &str,
        queue: u32,
        config: &XskConfig,
        waited: Duration,
    ) -> Result<Report, XskError> {
        let named = |what, source| XskError::Socket { interface: interface.into(), queue, what, source };
        let mut warnings = Vec::new();
        let zero_copy = sockopt::is_zero_copy(self.as_fd()).map_err(|error| named("reading XDP_OPTIONS", error))?;
        if config.zero_copy == ZeroCopy::Require && !zero_copy {
            let scatter = config.scatter;
            return Err(XskError::ZeroCopyUnsupported { interface: interface.into(), queue, scatter });
        }
        if config.zero_copy == ZeroCopy::Off && zero_copy {
            warnings.push("zero-copy all the same, as the worker's first port".to_owned());
        }
        if self.siblings.ports() == 1 {
            worker.siblings.zero_copy.store(zero_copy, Ordering::Relaxed);
        }
        if zero_copy {
            // The card takes a ring full of frames beforehand; the receive ring wants its own.
            self.fill_ring = self.ring_size * 2;
        }
        if config.busy_poll_budget > 0 {
            match sockopt::prefer_busy_poll(self.as_fd(), config.busy_poll_budget) {
                Ok(()) => self.busy_poll = true,
                Err(error) => warnings.push(format!("no busy polling: {error} (needs kernel 5.11 and CAP_NET_ADMIN)")),
            }
        }
        let fair = fill_target(self.descs.len(), self.siblings.ports(), self.fill_ring);
        if fair < 2 * BURST {
            let ports = self.siblings.ports();
            warnings.push(format!("{ports} sockets leave {fair} receive frames for each: raise workers.frames"));
        }
        let interface = interface.into();
        Ok(Report { interface, queue, zero_copy, busy_poll: self.busy_poll, waited, warnings })
    }

    /// The socket, for the XSK map of the steering program.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Frames with the kernel for reception, and for transmission.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.custody.receiving(), self.custody.transmitting())
    }

    /// Another pool's frames have the same numbers as ours: mixing them up would give a frame to the
    /// kernel that somebody owns.
    #[inline]
    fn check(&self, pool: &FramePool) {
        assert!(pool.memory().id() == self.memory, "an AF_XDP port with a pool that is not over its UMEM");
    }

    /// Takes completed frames back.
    fn reap(&mut self, pool: &mut FramePool) {
        while self.custody.transmitting() > 0 {
            // SAFETY: `consume` wants descriptors of this UMEM: it reads none of them, only overwrites
            // them with what the kernel completed, which `custody` checks.
            let count = unsafe { self.comp.consume(&mut self.scratch[..]) };
            for desc in &self.scratch[..count] {
                match self.custody.transmitted(pool.memory(), desc.addr()) {
                    Ok(frame) => pool.give(frame),
                    Err(bad) => self.counters.bad_descriptors += salvage(bad, pool),
                }
            }
            if count < BURST {
                return;
            }
        }
    }

    /// Keeps the kernel in frames to receive into, as many as the port's fair share of the memory.
    fn refill(&mut self, pool: &mut FramePool) {
        let frames = self.descs.len();
        let target = fill_target(frames, self.siblings.ports(), self.fill_ring);
        let reserve = reserve(frames);
        loop {
            let spare = pool.free_count().saturating_sub(reserve);
            let want = target.saturating_sub(self.custody.receiving()).min(spare).min(BURST);
            if want == 0 {
                return;
            }
            // All or nothing: never ask for more slots than there are.
            let slots = want.min(self.fill.nb_free(want as u32) as usize);
            if slots == 0 || self.fill_some(pool, slots) == 0 {
                return;
            }
        }
    }

    fn fill_some(&mut self, pool: &mut FramePool, slots: usize) -> usize {
        let mut count = 0;
        for _ in 0..slots {
            let Some(frame) = pool.take() else { break };
            let number = self.custody.give_to_receive(pool.memory(), frame);
            self.scratch[count] = self.descs[number];
            count += 1;
        }
        // SAFETY: `produce` wants frames of this UMEM that are used nowhere else until they are received:
        // each was a frame of the pool over this UMEM, and is now in `custody`'s keeping only.
        let done = unsafe { self.fill.produce(&self.scratch[..count]) };
        // None is left over, as the slots were free; were it otherwise, the frames come back.
        for desc in &self.scratch[done..count] {
            match self.custody.received(pool.memory(), desc.addr(), 0) {
                Ok(frame) | Err(Bad::Recovered(frame)) => pool.give(frame),
                Err(Bad::Unknown) => {}
            }
        }
        done
    }

    /// Frames in the transmit ring that the kernel has not looked at.
    fn unsent(&mut self) -> usize {
        self.ring_size.saturating_sub(self.tx.nb_free_exact() as usize)
    }

    /// Makes the kernel transmit. One call moves a limited number of frames and says `EAGAIN`, or
    /// `ENOBUFS` and `EBUSY` where the device is full, so it goes on while frames move; what is left after
    /// [`KICKS`] stays owed.
    fn kick(&mut self, pool: &mut FramePool) {
        if !self.kick_owed {
            return;
        }
        let mut left = self.unsent();
        for _ in 0..KICKS {
            // With zero-copy the driver may be at it already, and says so by this flag.
            if left == 0 || !self.tx.needs_wakeup() {
                break;
            }
            self.counters.kicks += 1;
            match rustix::net::send(self.as_fd(), &[], SendFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => self.link_down = false,
                Err(_) => {
                    self.counters.kick_errors += 1;
                    self.link_down = true;
                    return;
                }
            }
            let now = self.unsent();
            if now == left {
                // Nothing moved: room in the completion ring may be what is missing.
                self.reap(pool);
            }
            left = now;
        }
        self.kick_owed = left > 0;
    }

    /// Lets the kernel receive, where it asked to be woken or is polled by us.
    fn wake_receive(&self) {
        if self.busy_poll || self.fill.needs_wakeup() {
            // Its result tells nothing: there is no data to read here, only the queue to be polled.
            let _ = rustix::net::recv(self.as_fd(), &mut [] as &mut [u8], RecvFlags::DONTWAIT);
        }
    }

    /// Drops packets the kernel would swallow without completing them, and moves those that start where
    /// no descriptor points. Returns how many were dropped.
    fn weed(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let mut index = 0;
        let mut dropped = 0;
        while let Some(frame) = frames.get_mut(index) {
            if frame.len() >= SHORTEST && pool.memory().align(frame) {
                index += 1;
            } else {
                pool.give(frames.remove(index));
                dropped += 1;
            }
        }
        self.counters.too_short += dropped as u64;
        dropped
    }
}

/// Gives a recovered frame back to the pool. Returns 1, to count.
pub(super) fn salvage(bad: Bad, pool: &mut FramePool) -> u64 {
    if let Bad::Recovered(frame) = bad {
        pool.give(frame);
    }
    1
}

impl Port for XskPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        self.check(pool);
        if self.scatter {
            return self.gather(pool, out);
        }
        let room = out.remaining_capacity();
        // SAFETY: `consume` wants descriptors of this UMEM: it reads none of them, only overwrites them
        // with what the kernel received, which `custody` checks.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        let before = out.len();
        for desc in &self.scratch[..count] {
            match self.custody.received(pool.memory(), desc.addr(), desc.lengths().data()) {
                // A part of a packet in several frames: the socket did not ask for those (XDP_USE_SG).
                Ok(frame) if desc.has_more_frames() => {
                    self.counters.bad_descriptors += salvage(Bad::Recovered(frame), pool);
                }
                Ok(frame) => out.push(frame),
                Err(bad) => self.counters.bad_descriptors += salvage(bad, pool),
            }
        }
        out.len() - before
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        self.check(pool);
        if self.scatter {
            return self.transmit(pool, frames);
        }
        let dropped = self.weed(pool, frames);
        let want = frames.len();
        // All or nothing: never offer more than there are slots.
        let slots = want.min(self.tx.nb_free(want as u32) as usize);
        for (slot, frame) in self.scratch.iter_mut().zip(&frames[..slots]) {
            *slot = self.descs[pool.memory().number(frame)];
            // SAFETY: `data_mut` wants a descriptor of this UMEM and nobody else using the frame: it is in
            // the burst, which is borrowed exclusively. Only the descriptor's length is set.
            let mut data = unsafe { self.umem.data_mut(slot) };
            data.cursor().set_pos(frame.len());
        }
        // SAFETY: `produce` wants frames of this UMEM that are used nowhere else until they are completed:
        // those produced leave the burst right below, for `custody`'s keeping only.
        let done = unsafe { self.tx.produce(&self.scratch[..slots]) };
        for frame in frames.drain(..done) {
            self.custody.give_to_transmit(pool.memory(), frame);
        }
        self.kick_owed |= done > 0;
        done + dropped
    }

    fn service(&mut self, pool: &mut FramePool) {
        self.check(pool);
        self.reap(pool);
        self.refill(pool);
        self.kick(pool);
        self.wake_receive();
    }

    fn frames_held(&self) -> usize {
        self.custody.receiving() + self.custody.transmitting() + self.gathering.held()
    }

    fn tx_pending(&self) -> bool {
        // On a link that is down there is nothing to stay awake for.
        self.kick_owed && !self.link_down
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn stats(&self) -> PortStats {
        let kernel = self.rx.fd().xdp_statistics().unwrap_or_default();
        PortStats {
            rx_dropped: kernel.rx_dropped(),
            rx_ring_full: kernel.rx_ring_full(),
            rx_fill_empty: kernel.rx_fill_ring_empty_descs(),
            rx_invalid: kernel.rx_invalid_descs(),
            tx_invalid: kernel.tx_invalid_descs() + self.counters.too_short,
            bad_descriptors: self.counters.bad_descriptors,
            kick_errors: self.counters.kick_errors,
            rx_chains: self.counters.chains,
            rx_oversize: self.counters.oversize,
        }
    }
}

impl AsFd for XskPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `borrow_raw` wants the descriptor open while it is borrowed: the socket closes when the
        // last of its queues is dropped, and `self` owns them.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

/// A port moves to its worker's thread.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<XskPort>();
    is_send::<WorkerUmem>();
};
