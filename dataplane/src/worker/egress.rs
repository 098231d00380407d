//! Frames on their way out, per port: sent a burst at a time, held back while a ring is full.

use super::{Attached, Worker};
use crate::io::{Burst, Frame, Port};
use crate::verdict::{DropReason, PortId};
use crate::wire::{Tags, tags};

/// Frames waiting for each socket that sends for a port.
pub struct Egress {
    /// By port: the socket that sends for it; the first of the worker's on that port.
    socket_of: Vec<Option<usize>>,
    waiting: Vec<Burst>,
}

impl Egress {
    pub fn new(sockets: &[PortId]) -> Self {
        let ports = sockets.iter().map(|id| usize::from(id.0) + 1).max().unwrap_or(0);
        let mut socket_of = vec![None; ports];
        for (at, id) in sockets.iter().enumerate().rev() {
            socket_of[usize::from(id.0)] = Some(at);
        }
        Self { socket_of, waiting: sockets.iter().map(|_| Burst::new()).collect() }
    }

    pub fn len(&self) -> usize {
        self.waiting.iter().map(arrayvec::ArrayVec::len).sum()
    }
}

impl<P: Port, K: Port> Worker<P, K> {
    /// Queues a frame for a port; a full burst is sent at once.
    pub(super) fn enqueue(&mut self, port: PortId, frame: Frame) {
        let socket = self.egress.socket_of.get(usize::from(port.0)).copied().flatten();
        let Some(socket) = socket else {
            self.stats.count_drop(DropReason::NoNeighbor);
            self.pool.give(frame);
            return;
        };
        if self.egress.waiting[socket].is_full() {
            self.send_from(socket);
        }
        match self.egress.waiting[socket].try_push(frame) {
            Ok(()) => self.stats.held.add(1),
            Err(full) => {
                self.stats.count_drop(DropReason::TxFull);
                self.pool.give(full.element());
            }
        }
    }

    /// Sends what waits on every socket.
    pub(super) fn send(&mut self) {
        for socket in 0..self.sockets.len() {
            if !self.egress.waiting[socket].is_empty() {
                self.send_from(socket);
            }
        }
    }

    fn send_from(&mut self, socket: usize) {
        let waiting = &mut self.egress.waiting[socket];
        let Attached { id, port } = &mut self.sockets[socket];
        let bytes_before: u64 = waiting.iter().map(|frame| frame.len() as u64).sum();
        let mut sent = port.tx_burst(&mut self.pool, waiting) as u64;
        if !waiting.is_empty() {
            // The ring is full: let the kernel take its turn, then once more.
            port.service(&mut self.pool);
            sent += port.tx_burst(&mut self.pool, waiting) as u64;
        }
        let bytes_after: u64 = waiting.iter().map(|frame| frame.len() as u64).sum();
        self.stats.held.sub(sent);
        self.stats.tx.add(sent);
        if let Some(counters) = self.stats.ports.get(usize::from(id.0)) {
            counters.tx.add(sent);
            counters.tx_bytes.add(bytes_before - bytes_after);
        }
    }

    /// Writes a frame to the TAP: given back (`returned`), or addressed to a client behind it.
    pub(super) fn hand_to_kernel(&mut self, mut frame: Frame, returned: bool) {
        let Some(Attached { id, port }) = &mut self.kernel else {
            self.stats.count_drop(DropReason::KernelPathFull);
            self.pool.give(frame);
            return;
        };
        // The TAP is in no VLAN: what came in one would be for another host, to the kernel.
        let memory = self.pool.memory();
        let whole = memory.bytes(&frame).len();
        if let Some(len) = tags::retag(memory.bytes_mut(&mut frame), whole, Tags::NONE) {
            memory.resize_first(&mut frame, len);
        }
        let len = frame.len() as u64;
        let mut burst = Burst::new();
        burst.push(frame);
        port.tx_burst(&mut self.pool, &mut burst);
        if burst.is_empty() {
            if returned {
                self.stats.kernel.add(1);
            } else {
                self.stats.tx.add(1);
            }
            if let Some(counters) = self.stats.ports.get(usize::from(id.0)) {
                counters.tx.add(1);
                counters.tx_bytes.add(len);
            }
        }
        for frame in burst {
            self.stats.count_drop(DropReason::KernelPathFull);
            self.pool.give(frame);
        }
    }

    /// Before the end: what waits is sent or dropped, by name.
    pub(super) fn flush(&mut self) {
        while let Some(frame) = self.pipeline.abandon() {
            self.stats.held.sub(1);
            self.stats.count_drop(DropReason::FragmentTimeout);
            self.pool.give(frame);
        }
        for _ in 0..64 {
            self.send();
            for socket in &mut self.sockets {
                socket.port.service(&mut self.pool);
            }
            if self.egress.len() == 0 {
                break;
            }
        }
        for waiting in &mut self.egress.waiting {
            for frame in waiting.drain(..) {
                self.stats.held.sub(1);
                self.stats.count_drop(DropReason::TxFull);
                self.pool.give(frame);
            }
        }
    }
}
