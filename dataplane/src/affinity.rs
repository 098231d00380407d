//! Session affinity: where a client's new flows go because its last one went there.
//!
//! What is known of a client belongs to one worker: that of the hash of its prefix and its group
//! ([`owner`]). The owner of a new flow, another worker more often than not, asks it by handing it the
//! opening packet, and gets it back with the advice (`pipeline::stick`). Packets of known flows ask nobody.
//!
//! A client sticks to a node, not to a node's port: services of a group have node ports of their own.
//! How long: `timeout` from its last new flow, as with kube-proxy's iptables rules (`recent --rcheck
//! --seconds --reap`, set again by every connection). IPVS differs: there the connections under way count too.

use std::net::IpAddr;

use crate::clock::Tick;
use crate::hash::FlowHasher;
use crate::verdict::WorkerId;
use crate::wire::{Family, Tuple};

/// Entries side by side. A client may be in either of two sets (as in a two-choice hash), so in one of eight places.
const WAYS: usize = 4;

/// The part of a service that says how its clients stick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity {
    /// Services of one number know the same of a client. Never 0, never used for another group later.
    pub group: u32,
    /// Ticks.
    pub timeout: u32,
    /// Bits of the client's address that count.
    pub prefix: u8,
}

/// A backend as another worker, or another service, can find it again: its address, and its own port
/// or 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub node: IpAddr,
    pub port: u16,
}

/// Who sticks, in which group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client<A> {
    prefix: A,
    group: u32,
}

impl<A> Client<A> {
    #[inline]
    #[must_use]
    pub fn of<F: Family<Addr = A>>(addr: A, affinity: &Affinity) -> Self {
        Self { prefix: F::prefix(addr, affinity.prefix), group: affinity.group }
    }
}

/// The worker that knows a client: the same function on every worker.
#[inline]
#[must_use]
pub fn owner<F: Family>(client: &Client<F::Addr>, workers: u16) -> WorkerId {
    let hash = F::owner_hash(client.prefix, client.group as u16, (client.group >> 16) as u8);
    WorkerId(((u64::from(hash) * u64::from(workers)) >> 32) as u16)
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry<A> {
    client: A,
    node: A,
    /// 0: nobody's.
    group: u32,
    /// The client's last new flow.
    last: u32,
    /// When the entry ends, by the timeout of the service that flow was of.
    until: u32,
    port: u16,
    /// The client has come a second time: no flood of made-up addresses takes its place.
    again: bool,
}

const _: () = assert!(size_of::<Entry<u32>>() == 24 && size_of::<Entry<u128>>() == 48);

impl<A: Copy + Eq> Entry<A> {
    fn is_of(&self, client: &Client<A>) -> bool {
        self.group == client.group && self.client == client.prefix
    }

    fn stands(&self, now: Tick) -> bool {
        self.group != 0 && now.0 <= self.until
    }
}

/// One worker's clients of one family, of fixed size. Lookup and replacement touch eight places.
pub struct AffinityTable<F: Family> {
    entries: Box<[Entry<F::Addr>]>,
    hasher: FlowHasher,
    used: usize,
    evicted: u64,
    sweep_at: usize,
}

impl<F: Family> AffinityTable<F> {
    /// Room for `capacity` clients, and half as much again: so filled, two in a thousand find both sets taken (with
    /// a quarter more, one in seventy).
    #[must_use]
    pub fn new(capacity: usize, hasher: FlowHasher) -> Self {
        let sets = (capacity + capacity / 2).div_ceil(WAYS).max(1);
        let entries = vec![Entry::default(); sets * WAYS].into_boxed_slice();
        Self { entries, hasher, used: 0, evicted: 0, sweep_at: 0 }
    }

    /// Clients there are, those whose time is up but for the sweep among them.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Clients that had to make room for others before their time was up.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of_val(&*self.entries)
    }

    /// Where the client was sent by its last new flow, if that is less than `timeout` ticks ago.
    #[must_use]
    pub fn find(&self, client: &Client<F::Addr>, timeout: u32, now: Tick) -> Option<Choice> {
        let entry = &self.entries[self.place(client)?];
        let stands = entry.stands(now) && now.since(Tick(entry.last)) <= timeout;
        stands.then(|| Choice { node: F::to_ip(entry.node), port: entry.port })
    }

    /// Notes that a new flow of the client went to a node.
    pub fn keep(&mut self, client: &Client<F::Addr>, choice: Choice, timeout: u32, now: Tick) {
        let Some(node) = F::from_ip(choice.node) else { return };
        let known = self.place(client).filter(|at| self.entries[*at].stands(now));
        let at = known.unwrap_or_else(|| self.room_for(client, now));
        self.entries[at] = Entry {
            client: client.prefix,
            node,
            group: client.group,
            last: now.0,
            until: now.0.saturating_add(timeout),
            port: choice.port,
            again: known.is_some(),
        };
    }

    /// Notes what an earlier process's flow says of its client, unless something newer is known.
    pub fn recall(&mut self, client: &Client<F::Addr>, choice: Choice, timeout: u32, last: Tick, now: Tick) {
        let is_old = now.since(last) > timeout;
        let newer = self.place(client).is_some_and(|at| self.entries[at].last > last.0);
        if !is_old && !newer {
            self.keep(client, choice, timeout, last);
        }
    }

    /// Where in the table a client's two sets begin.
    fn sets(&self, client: &Client<F::Addr>) -> [usize; 2] {
        let (src_port, dst_port) = (client.group as u16, (client.group >> 16) as u16);
        let key = Tuple { src: client.prefix, dst: F::Addr::default(), src_port, dst_port, protocol: 0 };
        let hash = F::hash(&self.hasher, &key);
        let sets = (self.entries.len() / WAYS) as u64;
        [hash >> 32, hash & 0xffff_ffff].map(|half| ((half * sets) >> 32) as usize * WAYS)
    }

    fn place(&self, client: &Client<F::Addr>) -> Option<usize> {
        let sets = self.sets(client);
        sets.into_iter().flat_map(|set| set..set + WAYS).find(|at| self.entries[*at].is_of(client))
    }

    /// A place for one that has none: free in the emptier set, or else that of somebody whose time is up, who
    /// came once only, or was away longest, in this order.
    fn room_for(&mut self, client: &Client<F::Addr>, now: Tick) -> usize {
        // Not to be found twice.
        if let Some(own) = self.place(client) {
            return own;
        }
        let sets = self.sets(client);
        let taken = |set: usize| self.entries[set..set + WAYS].iter().filter(|entry| entry.stands(now)).count();
        let emptier = if taken(sets[1]) < taken(sets[0]) { sets[1] } else { sets[0] };
        let others = sets.into_iter().find(|set| *set != emptier).unwrap_or(emptier);
        let places = (emptier..emptier + WAYS).chain(others..others + WAYS);
        let least = places.min_by_key(|at| {
            let entry = &self.entries[*at];
            let worth = if entry.stands(now) { 1 + u32::from(entry.again) } else { 0 };
            (worth, if worth == 0 { 0 } else { entry.last })
        });
        let at = least.unwrap_or(emptier);
        self.evicted += u64::from(self.entries[at].stands(now));
        self.used += usize::from(self.entries[at].group == 0);
        at
    }

    /// Frees those of the next `count` places whose time is up.
    pub fn sweep(&mut self, count: usize, now: Tick) {
        for _ in 0..count.min(self.entries.len()) {
            let entry = &mut self.entries[self.sweep_at];
            if entry.group != 0 && !entry.stands(now) {
                *entry = Entry::default();
                self.used -= 1;
            }
            self.sweep_at = (self.sweep_at + 1) % self.entries.len();
        }
    }

    /// Places a sweep goes through.
    #[must_use]
    pub fn places(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests;
