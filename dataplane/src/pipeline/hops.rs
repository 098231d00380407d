//! Clients' last hops: the link-layer neighbours packets came from, by number. Kept beside the
//! flow records, which name them, so that they too outlive the process.

use rustc_hash::FxHashMap;

use crate::persist::{MAX_HOPS, StoredHop};
use crate::verdict::PortId;

/// No last hop: the number a record has when its client's is not known.
pub const UNKNOWN: u16 = 0;

pub struct LastHops {
    hops: Vec<StoredHop>,
    by_mac: FxHashMap<([u8; 6], u8), u16>,
    /// Seen in a record during the current sweep round, or added in it.
    marked: Vec<bool>,
    next: usize,
}

impl Default for LastHops {
    fn default() -> Self {
        let mut by_mac = FxHashMap::default();
        by_mac.reserve(MAX_HOPS);
        Self { hops: vec![StoredHop::default(); MAX_HOPS], by_mac, marked: vec![false; MAX_HOPS], next: 1 }
    }
}

impl LastHops {
    /// Takes up what an earlier process stored.
    pub fn recover(&mut self, stored: &[StoredHop]) {
        for (at, hop) in stored.iter().enumerate().skip(1).take(MAX_HOPS - 1) {
            if hop.used != 0 {
                self.hops[at] = *hop;
                self.by_mac.insert((hop.mac, hop.port), at as u16);
                self.marked[at] = true;
            }
        }
    }

    /// Whether this number is that neighbour's.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, hop: u16, mac: [u8; 6], port: PortId) -> bool {
        self.hops.get(usize::from(hop)).is_some_and(|known| *known == StoredHop { mac, port: port.0, used: 1 })
    }

    #[inline]
    #[must_use]
    pub fn get(&self, hop: u16) -> Option<([u8; 6], PortId)> {
        let stored = self.hops.get(usize::from(hop)).filter(|stored| stored.used != 0)?;
        Some((stored.mac, PortId(stored.port)))
    }

    /// The number of a neighbour; `current` is the one its flow has now, most often still right.
    /// `store` keeps what is new. [`UNKNOWN`] when the list is full.
    #[inline]
    pub fn intern(&mut self, current: u16, mac: [u8; 6], port: PortId, store: impl FnOnce(u16, StoredHop)) -> u16 {
        let known = &self.hops[usize::from(current) % MAX_HOPS];
        if known.used != 0 && known.mac == mac && known.port == port.0 {
            return current;
        }
        self.look_up(mac, port, store)
    }

    fn look_up(&mut self, mac: [u8; 6], port: PortId, store: impl FnOnce(u16, StoredHop)) -> u16 {
        if let Some(at) = self.by_mac.get(&(mac, port.0)) {
            self.marked[usize::from(*at)] = true;
            return *at;
        }
        let free =
            (0..MAX_HOPS - 1).map(|n| (self.next + n - 1) % (MAX_HOPS - 1) + 1).find(|at| self.hops[*at].used == 0);
        let Some(at) = free else { return UNKNOWN };
        let hop = StoredHop { mac, port: port.0, used: 1 };
        self.hops[at] = hop;
        self.marked[at] = true;
        self.by_mac.insert((mac, port.0), at as u16);
        self.next = at + 1;
        store(at as u16, hop);
        at as u16
    }

    /// A flow refers to this hop.
    #[inline]
    pub fn mark(&mut self, hop: u16) {
        if let Some(mark) = self.marked.get_mut(usize::from(hop)) {
            *mark = true;
        }
    }

    /// A round through all flows is complete: hops that none refers to are forgotten.
    pub fn end_round(&mut self, mut store: impl FnMut(u16, StoredHop)) {
        for at in 1..MAX_HOPS {
            if self.hops[at].used != 0 && !self.marked[at] {
                self.by_mac.remove(&(self.hops[at].mac, self.hops[at].port));
                self.hops[at] = StoredHop::default();
                store(at as u16, StoredHop::default());
            }
            self.marked[at] = false;
        }
    }
}
