//! Clients' last hops: the link-layer neighbours packets came from, by number. Kept beside the
//! flow records, which name them, so that they too outlive the process.

use rustc_hash::FxHashMap;

use crate::persist::{MAX_HOPS, StoredHop};
use crate::verdict::PortId;
use crate::wire::{self, Tags};

/// Who sent a frame, and in which tags: where replies go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Neighbor {
    pub mac: [u8; 6],
    pub port: PortId,
    pub tags: Tags,
}

impl Neighbor {
    /// The sender of a frame that came in by `port`.
    #[inline]
    #[must_use]
    pub fn of(frame: &[u8], port: PortId) -> Self {
        Self { mac: wire::bytes_at(frame, 6), port, tags: Tags::of(frame) }
    }

    fn stored(self) -> StoredHop {
        let used = if self.tags.is_empty() { PLAIN } else { TAGGED };
        StoredHop { mac: self.mac, port: self.port.0, used }
    }
}

/// Values of [`StoredHop::used`].
const PLAIN: u8 = 1;
const TAGGED: u8 = 2;

/// No last hop: the number a record has when its client's is not known.
pub const UNKNOWN: u16 = 0;

/// Hops a call of [`LastHops::forget`] looks at.
const AT_ONCE: usize = 64;

pub struct LastHops {
    hops: Vec<StoredHop>,
    /// Of those whose frames have some; apart, so that a plain packet's hop is eight bytes.
    tags: Vec<Tags>,
    by_neighbor: FxHashMap<Neighbor, u16>,
    /// Seen in a record during the current sweep round, or added in it.
    marked: Vec<bool>,
    /// The last one looked up: new flows come from few neighbours, often one router.
    recent: u16,
    next: usize,
    rounds: Rounds,
    /// Where clearing the marks is; [`MAX_HOPS`]: it is done.
    clearing: usize,
}

/// How far each family's sweep is since marks were last cleared. Marks count only if every record
/// had its turn after that: one whole round of each family, begun later.
#[derive(Debug, Clone, Copy, Default)]
struct Rounds([u8; 2]);

impl Rounds {
    /// A family's round is complete. True: so is one of both.
    fn complete(&mut self, family: usize) -> bool {
        // The first end after clearing is that of a round under way then.
        self.0[family] = (self.0[family] + 1).min(2);
        let both = self.0 == [2, 2];
        if both {
            *self = Self::default();
        }
        both
    }
}

impl Default for LastHops {
    fn default() -> Self {
        let mut by_neighbor = FxHashMap::default();
        // Twice the room: a map more than half full of live entries may grow for the sake of removed
        // ones; one that is not cleans up in place.
        by_neighbor.reserve(2 * MAX_HOPS);
        let (hops, marked) = (vec![StoredHop::default(); MAX_HOPS], vec![false; MAX_HOPS]);
        Self {
            hops,
            tags: vec![Tags::NONE; MAX_HOPS],
            by_neighbor,
            marked,
            recent: UNKNOWN,
            next: 1,
            rounds: Rounds::default(),
            clearing: MAX_HOPS,
        }
    }
}

impl LastHops {
    /// Takes up what an earlier process stored.
    pub fn recover(&mut self, stored: &[StoredHop], tags: &[[u32; 2]]) {
        for (at, (hop, tags)) in stored.iter().zip(tags).enumerate().skip(1).take(MAX_HOPS - 1) {
            if hop.used != 0 {
                let neighbor = Neighbor { mac: hop.mac, port: PortId(hop.port), tags: Tags(*tags) };
                self.hops[at] = neighbor.stored();
                self.tags[at] = neighbor.tags;
                self.by_neighbor.insert(neighbor, at as u16);
                self.marked[at] = true;
            }
        }
    }

    /// Whether this number is that neighbour's, of which an untagged frame came.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, hop: u16, mac: [u8; 6], port: PortId) -> bool {
        let wanted = StoredHop { mac, port: port.0, used: PLAIN };
        self.hops.get(usize::from(hop)).is_some_and(|known| known.bits() == wanted.bits())
    }

    /// The neighbour of this number, if frames to it have no tags.
    #[inline(always)]
    #[must_use]
    pub fn plain(&self, hop: u16) -> Option<([u8; 6], PortId)> {
        let stored = self.hops.get(usize::from(hop)).filter(|stored| stored.used == PLAIN)?;
        Some((stored.mac, PortId(stored.port)))
    }

    #[inline]
    #[must_use]
    pub fn get(&self, hop: u16) -> Option<Neighbor> {
        let stored = self.hops.get(usize::from(hop)).filter(|stored| stored.used != 0)?;
        let tags = if stored.used == PLAIN { Tags::NONE } else { self.tags[usize::from(hop)] };
        Some(Neighbor { mac: stored.mac, port: PortId(stored.port), tags })
    }

    /// The number of a neighbour; `current` is the one its flow has now, most often still right.
    /// `store` keeps what is new. [`UNKNOWN`] when the list is full.
    #[inline]
    pub fn intern(&mut self, current: u16, neighbor: Neighbor, store: impl FnOnce(u16, StoredHop, Tags)) -> u16 {
        let at = usize::from(current) % MAX_HOPS;
        if self.hops[at] == neighbor.stored() && (neighbor.tags.is_empty() || self.tags[at] == neighbor.tags) {
            return current;
        }
        self.look_up(neighbor, store)
    }

    fn look_up(&mut self, neighbor: Neighbor, store: impl FnOnce(u16, StoredHop, Tags)) -> u16 {
        let known = if self.get(self.recent) == Some(neighbor) {
            Some(self.recent)
        } else {
            self.by_neighbor.get(&neighbor).copied()
        };
        if let Some(at) = known {
            self.marked[usize::from(at)] = true;
            self.recent = at;
            return at;
        }
        // Full (number 0 is nobody's): not searched again for every packet. And nobody has a group's
        // address: a client that sends from one would have its replies spread over the segment.
        if self.by_neighbor.len() >= MAX_HOPS - 1 || neighbor.mac[0] & 1 != 0 {
            return UNKNOWN;
        }
        let free =
            (0..MAX_HOPS - 1).map(|n| (self.next + n - 1) % (MAX_HOPS - 1) + 1).find(|at| self.hops[*at].used == 0);
        let Some(at) = free else { return UNKNOWN };
        self.hops[at] = neighbor.stored();
        self.tags[at] = neighbor.tags;
        self.marked[at] = true;
        self.by_neighbor.insert(neighbor, at as u16);
        self.next = at + 1;
        store(at as u16, neighbor.stored(), neighbor.tags);
        at as u16
    }

    /// A flow refers to this hop.
    #[inline]
    pub fn mark(&mut self, hop: u16) {
        if let Some(mark) = self.marked.get_mut(usize::from(hop)) {
            *mark = true;
        }
    }

    /// A round through a family's flows is complete. Once that is so of both, hops that no flow
    /// refers to are [forgotten](Self::forget).
    pub fn end_round(&mut self, v6: bool) {
        // A round that ends while marks are cleared says nothing of those cleared before its end.
        if self.clearing == MAX_HOPS && self.rounds.complete(usize::from(v6)) {
            self.clearing = 1;
        }
    }

    /// Forgets the next few of the hops that no flow refers to, if it is time. True: there are more.
    pub fn forget(&mut self, mut store: impl FnMut(u16, StoredHop, Tags)) -> bool {
        let end = (self.clearing + AT_ONCE).min(MAX_HOPS);
        for at in self.clearing..end {
            if !self.marked[at]
                && let Some(neighbor) = self.get(at as u16)
            {
                self.by_neighbor.remove(&neighbor);
                self.hops[at] = StoredHop::default();
                store(at as u16, StoredHop::default(), Tags::NONE);
            }
            self.marked[at] = false;
        }
        self.clearing = end;
        end < MAX_HOPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_goes_only_after_a_whole_round_of_both_families_without_it() {
        let mut hops = LastHops::default();
        let neighbor = Neighbor { mac: [2, 0, 0, 0, 0, 1], port: PortId(0), tags: Tags::NONE };
        let hop = hops.intern(UNKNOWN, neighbor, |_, _, _| {});
        let ends = |hops: &mut LastHops, families: &[bool]| {
            for v6 in families {
                hops.end_round(*v6);
                while hops.forget(|_, _, _| {}) {}
            }
        };
        // New hops count as seen. Two ends of each family: one whole round since, and marks are cleared.
        ends(&mut hops, &[false, true, false, true]);
        assert!(hops.get(hop).is_some());
        // A flow names it, but its record was passed before the marks were cleared: the round that ends
        // next says nothing, the one after it does.
        ends(&mut hops, &[true, false, true]);
        hops.mark(hop);
        ends(&mut hops, &[false]);
        assert!(hops.get(hop).is_some(), "forgotten on the word of half a round");
        ends(&mut hops, &[true, false, true, false]);
        assert!(hops.get(hop).is_none(), "nobody named it for a whole round");
    }

    fn neighbor(n: usize) -> Neighbor {
        Neighbor { mac: [2, 0, 0, 0, (n >> 8) as u8, n as u8], port: PortId(0), tags: Tags::NONE }
    }

    #[test]
    fn hops_that_are_forgotten_together_go_a_few_at_a_time() {
        let mut hops = LastHops::default();
        let numbers: Vec<u16> = (1..MAX_HOPS).map(|n| hops.intern(UNKNOWN, neighbor(n), |_, _, _| {})).collect();
        let known = |hops: &LastHops| numbers.iter().filter(|hop| hops.get(**hop).is_some()).count();
        // Those just come count as seen; the next whole round finds that nobody names them.
        for gone in [0, numbers.len()] {
            for v6 in [false, true, false, true] {
                hops.end_round(v6);
            }
            for call in 1.. {
                let before = known(&hops);
                let more = hops.forget(|_, _, _| {});
                assert!(before - known(&hops) <= AT_ONCE, "{} in one call", before - known(&hops));
                if !more {
                    assert_eq!((numbers.len() - known(&hops), call), (gone, numbers.len().div_ceil(AT_ONCE)));
                    break;
                }
            }
        }
        assert!(hops.by_neighbor.is_empty());
    }

    #[test]
    fn rounds_that_end_while_marks_are_cleared_do_not_count() {
        let mut hops = LastHops::default();
        let early = hops.intern(UNKNOWN, neighbor(1), |_, _, _| {});
        let ends = |hops: &mut LastHops, times| {
            for _ in 0..times {
                hops.end_round(false);
                hops.end_round(true);
            }
        };
        ends(&mut hops, 2);
        assert!(hops.forget(|_, _, _| {}), "its mark is cleared, others' are not");
        ends(&mut hops, 9);
        while hops.forget(|_, _, _| {}) {}
        assert!(hops.get(early).is_some());
        // The round under way, and a whole one.
        ends(&mut hops, 1);
        assert!(!hops.forget(|_, _, _| {}) && hops.get(early).is_some());
        hops.mark(early);
        ends(&mut hops, 1);
        while hops.forget(|_, _, _| {}) {}
        assert!(hops.get(early).is_some(), "a flow names it");
    }
}
