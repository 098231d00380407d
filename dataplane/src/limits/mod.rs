//! How many flows a service's clients have and open, over all workers, and whether one more may come.
//!
//! Each worker counts its own flows in [`Counts`] only it writes, when a record is made, begins or ends
//! to rest, or goes. Whoever opens a flow adds the other workers' counts to its own:
//!
//! - **of a service** as they were at most [`OLDEST_NS`] = T ago, so that under a flood no line is fetched from
//!   another core more than once in T. With r flows a second opened by other workers, a limit is passed by r * T
//!   at most: at r = 100,000 by 100. One worker is exact.
//! - **of a source** as they are. Two workers that open flows of one source in the same few hundred
//!   nanoseconds may both find room for the last one: W - 1 too many at most.
//!
//! Rates are [`rate::Window`]s: at most twice the limit in any second, as with a token bucket of the limit's
//! depth. The table of sources is bounded; for who is not in it see [`sources`].
//!
//! Half-open flows count, since they hold what the limit is to protect. Flows that are there are never ended
//! by a limit, and count as soon as the sweep has seen them after a limit came or the process was restarted: a
//! second at most.

pub mod rate;
pub mod sources;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use penstock_configs::desired::ServiceLimits;

use crate::clock::Now;
use crate::flow::{Flags, State, Word};
use crate::hash::FlowHasher;
use crate::schedule::{Peers, Share};
use crate::tables::Service;
use crate::verdict::DropReason;
use rate::Window;
use sources::Sources;

/// No count of another worker's that a service's limit is held against is older.
pub const OLDEST_NS: u64 = 1_000_000;

/// A service's limits; what is not limited is `u32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub connections: u32,
    pub new_per_second: u32,
    pub source: Option<SourceLimits>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceLimits {
    pub connections: u32,
    pub new_per_second: u32,
    pub prefix_v4: u8,
    pub prefix_v6: u8,
}

impl From<&ServiceLimits> for Limits {
    fn from(wanted: &ServiceLimits) -> Self {
        let most = |limit: Option<u32>| limit.unwrap_or(u32::MAX);
        Self {
            connections: most(wanted.connections),
            new_per_second: most(wanted.new_per_second),
            source: wanted.per_source.as_ref().map(|source| SourceLimits {
                connections: most(source.connections),
                new_per_second: most(source.new_per_second),
                prefix_v4: source.prefix_v4,
                prefix_v6: source.prefix_v6,
            }),
        }
    }
}

/// Whether a flow counts against limits: closed ones, of which only the port rests, do not.
#[must_use]
pub fn counts(word: Word) -> bool {
    !word.is_closed() && word.state != State::Expired
}

#[derive(Debug, Default)]
struct Cell {
    connections: AtomicU32,
    window: AtomicU64,
}

impl Cell {
    fn seen(&self, now: Now) -> [u32; 2] {
        let window = Window(self.window.load(Ordering::Relaxed));
        [self.connections.load(Ordering::Relaxed), window.recent(now)]
    }
}

const PER_LINE: usize = 8;

/// Two cache lines, which processors fetch together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([Cell; PER_LINE]);

/// One worker's counts: by service slot, and by source. One writer.
#[derive(Debug)]
pub struct Counts {
    services: Box<[Line]>,
    sources: Sources,
}

impl Counts {
    #[must_use]
    pub fn new(services: usize, sources: usize) -> Self {
        Self {
            services: (0..services.div_ceil(PER_LINE)).map(|_| Line::default()).collect(),
            sources: Sources::new(sources),
        }
    }

    #[inline]
    fn service(&self, slot: u32) -> Option<&Cell> {
        let slot = slot as usize;
        self.services.get(slot / PER_LINE).map(|line| &line.0[slot % PER_LINE])
    }

    #[inline]
    fn change(&self, entry: Entry, by: u32) {
        if let Some(cell) = self.service(entry.service) {
            cell.connections.store(cell.connections.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
        self.sources.change(entry.source, by);
    }

    fn opened(&self, entry: Entry, now: Now) {
        if let Some(cell) = self.service(entry.service) {
            cell.window.store(Window(cell.window.load(Ordering::Relaxed)).count(now).0, Ordering::Relaxed);
        }
        self.sources.opened(entry.source, now);
    }
}

/// Where a record is counted; meant only where its word has [`Flags::LIMITED`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Entry {
    service: u32,
    /// Its place among the sources; 0: none.
    source: u32,
}

/// The other workers' counts of a service, as they were when they were read.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    connections: u32,
    recent: u32,
    at: Now,
}

/// One worker's limiting of one family's services; of fixed size.
#[derive(Debug)]
pub struct Limiter {
    share: Arc<Share>,
    peers: Option<(Arc<Peers>, usize, bool)>,
    hasher: FlowHasher,
    /// By service slot.
    others: Box<[Seen]>,
    /// By record: service and source. Integers, whose zeros are no memory before they are written to: most boxes
    /// have no limits.
    entries: Box<[[u32; 2]]>,
}

const LESS: u32 = 1_u32.wrapping_neg();

impl Limiter {
    #[must_use]
    pub fn new(records: usize, share: Arc<Share>) -> Self {
        let services = share.limits.services.len() * PER_LINE;
        Self {
            peers: None,
            hasher: FlowHasher::new([0; 2]),
            others: vec![Seen::default(); services].into(),
            entries: vec![[0; 2]; records].into(),
            share,
        }
    }

    /// Other workers' counts are added from now on. Before any flow is counted: sources get another key.
    pub fn meet(&mut self, peers: &Arc<Peers>, worker: u16, v6: bool) {
        self.hasher = FlowHasher::new(peers.seed());
        self.peers = (peers.workers() > 1).then(|| (Arc::clone(peers), usize::from(worker), v6));
    }

    #[inline]
    fn entry(&self, at: u32) -> Entry {
        let [service, source] = self.entries[at as usize];
        Entry { service, source }
    }

    /// Whether a client may open one more flow of a service.
    ///
    /// # Errors
    /// Which limit forbids it.
    pub fn admits(&mut self, service: &Service, client: IpAddr, now: Now) -> Result<(), DropReason> {
        let Some(limits) = &service.limits else { return Ok(()) };
        if let Some(source) = &limits.source {
            let hash = self.source(source, service, client);
            let mut sum = self.share.limits.sources.seen(hash, now);
            if let Some((peers, worker, v6)) = &self.peers {
                for share in peers.others(*worker, *v6) {
                    sum = add(sum, share.limits.sources.seen(hash, now));
                }
            }
            if sum[0] >= source.connections {
                return Err(DropReason::SourceConnections);
            }
            if sum[1] >= source.new_per_second {
                return Err(DropReason::SourceRate);
            }
        }
        let own = self.share.limits.service(service.slot).map_or([0; 2], |cell| cell.seen(now));
        let sum = add(own, self.others(service.slot, now));
        if sum[0] >= limits.connections {
            return Err(DropReason::ServiceConnections);
        }
        if sum[1] >= limits.new_per_second {
            return Err(DropReason::ServiceRate);
        }
        Ok(())
    }

    fn others(&mut self, slot: u32, now: Now) -> [u32; 2] {
        let Some((peers, worker, v6)) = &self.peers else { return [0; 2] };
        let Some(seen) = self.others.get_mut(slot as usize) else { return [0; 2] };
        if now.ns.saturating_sub(seen.at.ns) > OLDEST_NS {
            let cells = peers.others(*worker, *v6).filter_map(|share| share.limits.service(slot));
            let [connections, recent] = cells.fold([0; 2], |sum, cell| add(sum, cell.seen(now)));
            *seen = Seen { connections, recent, at: now };
        }
        [seen.connections, seen.recent]
    }

    /// The hash a source is known by.
    fn source(&self, limits: &SourceLimits, service: &Service, client: IpAddr) -> u64 {
        let (port, protocol) = (service.port, service.protocol);
        match (client, service.vip) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                self.hasher.v4(first_bits_v4(client, limits.prefix_v4), vip.to_bits(), 0, port, protocol)
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                self.hasher.v6(first_bits_v6(client, limits.prefix_v6), vip.to_bits(), 0, port, protocol)
            }
            // No client reaches a VIP of the other family.
            _ => 0,
        }
    }

    /// Counts a record where its service has limits now, and nowhere else. Returns the word it is to have.
    #[must_use]
    pub fn assign(&mut self, at: u32, word: Word, service: &Service, client: IpAddr) -> Word {
        let Some(limits) = &service.limits else {
            self.leave(at, word);
            return Word { flags: word.flags.without(Flags::LIMITED), ..word };
        };
        let hash = limits.source.as_ref().map(|source| self.source(source, service, client));
        let sources = &self.share.limits.sources;
        if word.flags.has(Flags::LIMITED) {
            let entry = self.entry(at);
            let same_source = match hash {
                Some(hash) => sources.is_at(entry.source, hash),
                None => entry.source == 0,
            };
            if same_source && entry.service == service.slot {
                return word;
            }
            self.leave(at, word);
        }
        // It has a place among the sources even if it does not count now: it may be opened again.
        let entry = Entry { service: service.slot, source: hash.map_or(0, |hash| sources.place(hash)) };
        if counts(word) {
            self.share.limits.change(entry, 1);
        }
        self.entries[at as usize] = [entry.service, entry.source];
        Word { flags: word.flags.with(Flags::LIMITED), ..word }
    }

    /// The flow of a record was opened now: it counts towards the rates.
    pub fn opened(&self, at: u32, word: Word, now: Now) {
        if word.flags.has(Flags::LIMITED) {
            self.share.limits.opened(self.entry(at), now);
        }
    }

    /// The record goes.
    #[inline]
    pub fn leave(&self, at: u32, word: Word) {
        if word.flags.has(Flags::LIMITED) && counts(word) {
            self.share.limits.change(self.entry(at), LESS);
        }
    }

    /// The record's state changes. Returns the word it is to have: one once counted stays so.
    #[inline]
    #[must_use]
    pub fn moves(&self, at: u32, from: Word, to: Word) -> Word {
        if !from.flags.has(Flags::LIMITED) {
            return to;
        }
        match (counts(from), counts(to)) {
            (true, false) => self.share.limits.change(self.entry(at), LESS),
            (false, true) => self.share.limits.change(self.entry(at), 1),
            _ => {}
        }
        Word { flags: to.flags.with(Flags::LIMITED), ..to }
    }

    /// Flows of a service here, as they count against its limits.
    #[must_use]
    pub fn connections(&self, slot: u32) -> u32 {
        self.share.limits.service(slot).map_or(0, |cell| cell.connections.load(Ordering::Relaxed))
    }
}

fn add(a: [u32; 2], b: [u32; 2]) -> [u32; 2] {
    [a[0].saturating_add(b[0]), a[1].saturating_add(b[1])]
}

fn first_bits_v4(address: Ipv4Addr, length: u8) -> u32 {
    address.to_bits() & u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)
}

fn first_bits_v6(address: Ipv6Addr, length: u8) -> u128 {
    address.to_bits() & u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}
