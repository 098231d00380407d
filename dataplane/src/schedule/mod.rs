//! Schedulers beside weighted Maglev, asked once per new flow. Their rules are those of the kernel's
//! IPVS (`net/netfilter/ipvs/ip_vs_*.c`, described, not copied), so that an operator who knows
//! `ipvsadm -s wlc` knows what happens here:
//!
//! | scheduler | takes |
//! | --- | --- |
//! | `rr` | the next one; weights only say 0 or not |
//! | `wrr` | classic weighted round robin: a level falls from the largest weight by the weights' greatest common divisor, and the next backend of at least that weight is taken |
//! | `lc` | the least `256 * active + inactive` |
//! | `wlc` | the least `(256 * active + inactive) / weight` |
//! | `sed` | the least `(active + 1) / weight` |
//! | `nq` | one without an active flow, else as `sed` |
//! | `sh`, `dh` | by the client's address, by the VIP |
//! | `random-two-choices` | of two drawn by weight, the less `(active + 1) / weight` |
//!
//! Where the box differs, and why:
//! - Ties of `lc`, `wlc`, `sed` and `nq` are taken in turn. IPVS takes the first in its list; with one
//!   table per worker, idle services would all begin with the same backend, once per worker.
//! - `sh` and `dh` go on to another backend when theirs takes no new flows, as IPVS does with its flag
//!   `sh-fallback` only; without it a drained node's clients are refused until somebody edits the list.
//! - `sh`'s table has 256 buckets as in IPVS, or more where the weights would not fit.
//!
//! State is each worker's own: a place in the list per service slot, so a reload resets nothing, and
//! `rr` over W workers spreads new flows to within W of even. Active and inactive flows are counted
//! by [`share`], where the bound on what other workers' counts may be off by stands.

pub mod least;
pub mod plan;
pub mod share;
pub mod turn;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::Scheduler;

use crate::clock::Now;
use crate::tables::Service;
use least::Measure;
pub use plan::{Candidate, Kind, Plan};
use share::{Load, Others};
pub use share::{Peers, Share, Tally};
pub use turn::Cursor;

/// What a choice may depend on.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub client: IpAddr,
    pub vip: IpAddr,
    pub now: Now,
}

/// One worker's scheduling of one family's services; of fixed size.
pub struct Scheduling {
    /// By service slot.
    cursors: Box<[Cursor]>,
    others: Others,
    random: Random,
}

impl Scheduling {
    #[must_use]
    pub fn new(services: usize, counted: usize, seed: u64) -> Self {
        Self { cursors: vec![Cursor::default(); services].into(), others: Others::new(counted), random: Random(seed) }
    }

    /// Other workers' counts are read from `peers` from now on.
    pub fn meet(&mut self, peers: Arc<Peers>, worker: u16, v6: bool) {
        self.others.meet(peers, worker, v6);
    }

    /// Reads on through other workers' counts, of which there are `used`.
    #[inline]
    pub fn exchange(&mut self, used: u32, now: Now) {
        self.others.exchange(used, now);
    }

    /// The backend a new flow of the service goes to, by its place in the set.
    #[must_use]
    pub fn pick(&mut self, service: &Service, own: &Share, asked: &Asked) -> Option<u16> {
        let plan = &service.set.plan;
        if plan.usable.is_empty() {
            return None;
        }
        let Self { cursors, others, random } = self;
        let cursor = cursors.get_mut(service.slot as usize)?;
        if cursor.is_fresh() {
            cursor.begin(plan, random.below(plan.usable.len() as u64) as usize);
        }
        let loads = &service.loads;
        if service.scheduler.counts() && others.is_stale(asked.now) {
            others.read(loads);
        }
        let seen = |index: u16| {
            let slot = loads.get(usize::from(index)).copied().unwrap_or(0);
            own.load(slot) + others.load(slot)
        };
        let measure = match service.scheduler {
            Scheduler::Maglev => return None,
            Scheduler::Rr => return Some(cursor.next(plan)),
            Scheduler::Wrr => return Some(cursor.next_weighted(plan)),
            Scheduler::Sh => return plan.by_source(asked.client, &service.set.backends),
            Scheduler::Dh => return plan.by_destination(asked.vip, &service.set.backends),
            Scheduler::RandomTwoChoices => {
                let (one, other) = plan.draw_two(random);
                return Some(least::of_two(one, other, seen).index);
            }
            Scheduler::Lc => Measure::Connections,
            Scheduler::Wlc => Measure::WeightedConnections,
            Scheduler::Sed => Measure::Delay,
            Scheduler::Nq => Measure::NeverQueue,
        };
        let chosen = least::least(plan.after(cursor.at), measure, seen)?;
        cursor.at = u32::from(chosen.index);
        Some(chosen.index)
    }
}

/// Splitmix64 (Steele et al., 2014): for draws nobody gains by guessing.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `limit`, by multiply-shift: off from even by less than `limit` in 2^64.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(limit)) >> 64) as u64
    }
}

impl std::ops::Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            active: self.active.saturating_add(other.active),
            inactive: self.inactive.saturating_add(other.inactive),
        }
    }
}
