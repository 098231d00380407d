//! Virtual reassembly: fragments pass one by one, translated as the datagram they are parts of.
//!
//! Only the first fragment carries ports, so what it turned out to be is remembered by
//! (source, destination, identification, protocol) for those that follow; those that come before it
//! wait. Nothing is put together: addresses are rewritten in each, ports and checksum in the first.
//!
//! **Whose fragments.** NICs spread fragments by their addresses or not at all, and the flow's owner
//! is unknown without ports. So the fragments of one datagram gather at one worker, chosen by a hash of
//! that key which every worker computes alike: the *gatherer* G. The first fragment shows it the flow's
//! owner O, as any packet with ports does, and if O is another, G hands on that fragment and, behind it,
//! the others. O learns the ports from the first one: the ring between two workers keeps
//! the order. A worker knows which of the two it is for a fragment that was handed to it without being
//! told: it is G if the hash says so; if not, G has sent it, for nobody else hands a fragment to anybody but G.
//! Hence at most two hand-offs, and no circle. O holds nothing: what comes without its first one was
//! separated from it by a full ring.
//!
//! **SCTP's** checksum covers the whole packet and depends on its length, so there the first fragment itself waits
//! for the last, with the worker that translates it.
//!
//! **What is refused.** Overlaps, whole datagrams with them (RFC 5722, RFC 8200 section 4.5; exact
//! copies are only dropped); first fragments without a whole transport header and later ones that
//! would overwrite it (RFC 1858, RFC 3128, RFC 7112); lengths that do not add up. Datagrams, fragments
//! of each, and waiting frames are bounded; the oldest make room, since honest datagrams are complete
//! within milliseconds. Those incomplete after [`TIMEOUT_NS`] are forgotten.
//!
//! **Identifications** are rewritten too: behind one SNAT address, or one VIP, datagrams of several
//! senders would meet under the same one and be mixed at reassembly (RFC 6864 section 5.3.1). Each
//! worker numbers from its own share of the range.
//!
//! Fragments to a SNAT address shared with the kernel are the kernel's: without ports in the later ones
//! the XDP program cannot tell them apart. Services whose replies come in fragments need a dedicated one.

mod hold;
mod piece;
mod table;

pub use hold::{Holding, Waiting};
pub use piece::{Piece, set_identification};
pub use table::{Added, Datagrams};

use crate::verdict::{DropReason, WorkerId};
use crate::wire::{Family, Tuple};

/// Datagrams a worker follows at a time, per family.
pub const DATAGRAMS: usize = 1024;
/// Fragments of one datagram: 64 KiB over any MTU from 1100 on.
pub const PIECES: usize = 64;
/// Frames that wait for their first fragment at a time, per worker.
pub const WAITING: usize = 256;
/// Less than the 15 s and 60 s end systems wait (RFC 1122 section 3.3.2, RFC 8200 section 4.5): frames
/// are dearer here, and identifications come round.
pub const TIMEOUT_NS: u64 = 3_000_000_000;

/// What becomes of a datagram's fragments: of all what became of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The first one has not come.
    Unknown,
    /// The first one is no longer waiting for the datagram's length: it can be translated.
    Sized,
    /// Translated like the flow with these ports, under another identification.
    Flow {
        src_port: u16,
        dst_port: u16,
        identification: u32,
    },
    /// The flow is this worker's.
    Handoff(WorkerId),
    Kernel,
    Refused(DropReason),
}

/// What fragments of one datagram have in common: the identification is where ports would be.
#[must_use]
pub fn key<A>(src: A, dst: A, identification: u32, protocol: u8) -> Tuple<A> {
    Tuple { src, dst, src_port: (identification >> 16) as u16, dst_port: identification as u16, protocol }
}

/// The worker at which a datagram's fragments gather.
#[must_use]
pub fn gatherer<F: Family>(key: &Tuple<F::Addr>, workers: u16) -> WorkerId {
    let hash = F::pick_hash(key) >> 32;
    WorkerId(((hash * u64::from(workers)) >> 32) as u16)
}

/// A worker's share of the identifications, in turn.
#[derive(Debug, Clone, Copy)]
pub struct Identifications {
    worker: u32,
    workers: u32,
    next: u32,
}

impl Identifications {
    /// Begins anywhere: who has not seen one cannot guess the next (RFC 7739).
    #[must_use]
    pub fn new(worker: WorkerId, workers: u16, seed: u64) -> Self {
        Self { worker: u32::from(worker.0), workers: u32::from(workers.max(1)), next: (seed >> 32) as u32 }
    }

    /// The next one of `bits` bits: 16 in IPv4, 32 in IPv6.
    pub fn take(&mut self, bits: u32) -> u32 {
        self.next = self.next.wrapping_add(1);
        let share = ((1_u64 << bits) / u64::from(self.workers)).max(1);
        ((u64::from(self.next) % share) * u64::from(self.workers) + u64::from(self.worker)) as u32
    }
}

#[cfg(test)]
mod tests;
