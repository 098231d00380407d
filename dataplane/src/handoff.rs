//! Packets that another worker owns. One bounded ring per ordered pair of workers carries copies;
//! empty parcels go back by a ring of their own, so that neither end allocates or frees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::affinity::Choice;
use crate::schedule::Peers;
use crate::verdict::{PortId, WorkerId};

/// Parcels in flight per pair of workers: what a worker that lost its core for a moment finds waiting. With
/// 256, a 10 MB transfer on two shared cores lost hundreds of packets here.
pub const PARCELS: usize = 1024;

/// What a worker says of a packet it hands over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Note {
    /// Its flow is the receiver's.
    #[default]
    Flow,
    /// It opens a flow of the sender's, whose client the receiver knows: back with it, and with advice.
    Asks,
    /// The answer; `None`: decide for yourself. Such a packet is handed to nobody again.
    Advised(Option<Choice>),
}

/// Parcels of a pair of workers that questions and answers leave alone: a flood of SYNs to a service with
/// affinity loses SYNs, not the packets of connections on the same way.
const RESERVED: usize = PARCELS / 2;

/// A copied packet.
pub struct Parcel {
    pub port: PortId,
    pub note: Note,
    len: usize,
    bytes: Box<[u8]>,
}

impl Parcel {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

struct Lane {
    full: ArrayQueue<Box<Parcel>>,
    empty: ArrayQueue<Box<Parcel>>,
}

/// Wakes a worker that sleeps in `poll`.
pub struct Doorbell {
    asleep: AtomicBool,
    event: std::os::fd::OwnedFd,
}

impl Doorbell {
    /// # Errors
    /// The kernel has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
        Ok(Self { asleep: AtomicBool::new(false), event: rustix::event::eventfd(0, flags)? })
    }

    /// Rings, if the worker sleeps: a system call only then.
    #[inline]
    pub fn ring(&self) {
        // Orders the queue push before the look at `asleep`; the sleeper orders the other way round.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Says that the worker is about to sleep; it must look at its queues once more after this.
    pub fn about_to_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
    }

    #[must_use]
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.event.as_fd()
    }
}

/// The rings between all workers.
pub struct Exchange {
    workers: usize,
    room: usize,
    lanes: Vec<Lane>,
    bells: Vec<Arc<Doorbell>>,
    peers: Arc<Peers>,
}

impl Exchange {
    /// Rings for `workers` workers and packets of up to `room` bytes.
    ///
    /// # Errors
    /// The kernel has no descriptor left for the doorbells.
    pub fn new(workers: u16, room: usize) -> std::io::Result<Self> {
        let workers = usize::from(workers);
        let lanes = (0..workers * workers)
            .map(|lane| {
                // A worker hands nothing to itself.
                let parcels = if lane / workers == lane % workers { 1 } else { PARCELS };
                let empty = ArrayQueue::new(parcels);
                for _ in 0..parcels {
                    let _ = empty.push(Box::new(Parcel {
                        port: PortId(0),
                        note: Note::Flow,
                        len: 0,
                        bytes: vec![0; room].into(),
                    }));
                }
                Lane { full: ArrayQueue::new(parcels), empty }
            })
            .collect();
        let bells = (0..workers).map(|_| Doorbell::new().map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Self { workers, room, lanes, bells, peers: Arc::new(Peers::new(workers)) })
    }

    /// Bytes of the largest packet that can be handed over.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// What the workers tell each other beside packets: how many flows each backend has.
    #[must_use]
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    fn lane(&self, from: WorkerId, to: WorkerId) -> Option<&Lane> {
        self.lanes.get(usize::from(from.0) * self.workers + usize::from(to.0))
    }

    /// Copies a packet to another worker. False: the ring is full.
    #[must_use]
    pub fn send(&self, from: WorkerId, to: WorkerId, port: PortId, note: Note, packet: &[u8]) -> bool {
        self.send_with(from, to, port, note, packet.len(), |room| room.copy_from_slice(packet))
    }

    /// [`Self::send`] of a packet of `len` bytes, which `copy` writes.
    #[must_use]
    #[inline]
    pub fn send_with(
        &self,
        from: WorkerId,
        to: WorkerId,
        port: PortId,
        note: Note,
        len: usize,
        copy: impl FnOnce(&mut [u8]),
    ) -> bool {
        let Some(lane) = self.lane(from, to) else { return false };
        if note != Note::Flow && lane.empty.len() <= RESERVED {
            return false;
        }
        let Some(mut parcel) = lane.empty.pop() else { return false };
        let fits = len <= parcel.bytes.len();
        if fits {
            copy(&mut parcel.bytes[..len]);
            (parcel.len, parcel.port, parcel.note) = (len, port, note);
        }
        // There are as many places as parcels: neither push can fail.
        let _ = if fits { lane.full.push(parcel) } else { lane.empty.push(parcel) };
        fits
    }

    /// The next parcel for `to` from `from`.
    #[must_use]
    pub fn receive(&self, from: WorkerId, to: WorkerId) -> Option<Box<Parcel>> {
        self.lane(from, to)?.full.pop()
    }

    /// Gives an empty parcel back.
    pub fn give_back(&self, from: WorkerId, to: WorkerId, parcel: Box<Parcel>) {
        if let Some(lane) = self.lane(from, to) {
            let _ = lane.empty.push(parcel);
        }
    }

    /// Packets that `from` can hand to any of the others before one is refused.
    #[must_use]
    pub fn room_from(&self, from: WorkerId) -> usize {
        let others = (0..self.workers).map(|to| WorkerId(to as u16)).filter(|to| *to != from);
        others.filter_map(|to| Some(self.lane(from, to)?.empty.len())).min().unwrap_or(usize::MAX)
    }

    /// Whether anything waits for `to`.
    #[must_use]
    pub fn waiting_for(&self, to: WorkerId) -> bool {
        (0..self.workers).any(|from| self.lane(WorkerId(from as u16), to).is_some_and(|lane| !lane.full.is_empty()))
    }

    #[must_use]
    pub fn bell(&self, worker: WorkerId) -> &Arc<Doorbell> {
        &self.bells[usize::from(worker.0)]
    }

    #[must_use]
    pub fn workers(&self) -> u16 {
        self.workers as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_leave_room_for_packets_of_flows() {
        let exchange = Exchange::new(2, 64).expect("descriptors");
        let (here, there) = (WorkerId(0), WorkerId(1));
        let send = |note| exchange.send(here, there, PortId(3), note, b"packet");
        let advised = Note::Advised(Some(Choice { node: "10.0.0.1".parse().expect("an address"), port: 7 }));
        let sent = (0..PARCELS).filter(|n| send(if n % 2 == 0 { Note::Asks } else { advised })).count();
        assert_eq!(sent, PARCELS - RESERVED);
        assert_eq!((0..PARCELS).filter(|_| send(Note::Flow)).count(), RESERVED);
        for n in 0..PARCELS {
            let parcel = exchange.receive(here, there).expect("a parcel");
            let wanted = if n >= PARCELS - RESERVED { Note::Flow } else { [Note::Asks, advised][n % 2] };
            assert_eq!((parcel.port, parcel.note, parcel.bytes()), (PortId(3), wanted, &b"packet"[..]));
            exchange.give_back(here, there, parcel);
        }
        assert!(!exchange.waiting_for(there) && send(Note::Asks));
        assert_eq!((exchange.room_from(here), exchange.room_from(there)), (PARCELS - 1, PARCELS));
    }
}
