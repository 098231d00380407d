//! What is computed once per set, off the hot path, for the schedulers that are not Maglev.

use std::net::IpAddr;

use penstock_configs::desired::Scheduler;

use super::Random;
use crate::tables::Backend;

/// `IP_VS_SH_TAB_BITS`, `IP_VS_DH_TAB_BITS`: 256 buckets.
const BITS: u32 = 8;
/// The most a set's weights may ask for.
const MOST_BITS: u32 = 16;

/// Which tables a set must have for a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Maglev,
    /// The list of backends that take new flows.
    List,
    Source,
    Destination,
}

impl From<Scheduler> for Kind {
    fn from(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::Maglev => Self::Maglev,
            Scheduler::Sh => Self::Source,
            Scheduler::Dh => Self::Destination,
            _ => Self::List,
        }
    }
}

/// A backend that takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the set.
    pub index: u16,
    /// Never 0.
    pub weight: u32,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// By rising index.
    pub usable: Box<[Candidate]>,
    /// The largest weight, and the greatest common divisor of all.
    pub largest: u32,
    pub divisor: u32,
    /// Sums of weights up to and with each of `usable`.
    reach: Box<[u64]>,
    /// Of `sh` and `dh`; a power of two, or none.
    buckets: Box<[u16]>,
}

impl Plan {
    /// `shares`: what each backend weighs now, 0 for those that take no new flows.
    #[must_use]
    pub fn build(backends: &[Backend], shares: &[u32], kind: Kind) -> Self {
        if kind == Kind::Maglev {
            return Self::default();
        }
        let usable: Box<[Candidate]> = (0..u16::MAX)
            .zip(shares)
            .filter(|(_, share)| **share > 0)
            .map(|(index, share)| Candidate { index, weight: *share })
            .collect();
        let mut sum = 0;
        let reach = usable.iter().map(|candidate| {
            sum += u64::from(candidate.weight);
            sum
        });
        let reach = reach.collect();
        // Buckets follow the weights as configured, not the backends' states: who goes moves only its own clients.
        let configured: Vec<Candidate> = (0..u16::MAX)
            .zip(backends)
            .filter(|(_, backend)| backend.weight > 0)
            .map(|(index, backend)| Candidate { index, weight: u32::from(backend.weight) })
            .collect();
        let buckets = match kind {
            Kind::Source => by_weight(&configured),
            Kind::Destination => {
                configured.iter().map(|c| c.index).cycle().take(full_size(&configured, BITS)).collect()
            }
            Kind::Maglev | Kind::List => Box::default(),
        };
        Self {
            largest: usable.iter().map(|candidate| candidate.weight).max().unwrap_or(0),
            divisor: usable.iter().fold(0, |divisor, candidate| common_divisor(divisor, candidate.weight)).max(1),
            usable,
            reach,
            buckets,
        }
    }

    /// The candidates in turn, from the first behind the place `at` in the set.
    pub fn after(&self, at: u32) -> impl Iterator<Item = Candidate> + Clone {
        let first = self.usable.partition_point(|candidate| u32::from(candidate.index) <= at);
        let (before, behind) = self.usable.split_at(first);
        behind.iter().chain(before).copied()
    }

    /// The bucket of the client's address, or the next one along whose backend takes new flows.
    #[must_use]
    pub fn by_source(&self, client: IpAddr, backends: &[Backend]) -> Option<u16> {
        let bits = self.buckets.len().checked_ilog2()?;
        // `hash_32`: the high bits of a product with 2^32 less the golden ratio's part.
        let hash = (fold(client).wrapping_mul(0x61c8_8647) >> (32 - bits)) as usize;
        // IPVS hashes again with an offset that grows from the hash itself.
        let others = (0..self.buckets.len()).map(|offset| hash + (offset + hash) % self.buckets.len());
        self.first_usable(std::iter::once(hash).chain(others), backends)
    }

    /// The bucket of the VIP, or the next one along.
    #[must_use]
    pub fn by_destination(&self, vip: IpAddr, backends: &[Backend]) -> Option<u16> {
        let hash = fold(vip).wrapping_mul(2_654_435_761) as usize % self.buckets.len().max(1);
        self.first_usable((0..self.buckets.len()).map(|offset| hash + offset), backends)
    }

    fn first_usable(&self, places: impl Iterator<Item = usize>, backends: &[Backend]) -> Option<u16> {
        let mask = self.buckets.len().wrapping_sub(1);
        let mut found = places.filter_map(|place| self.buckets.get(place & mask).copied());
        found.find(|index| backends.get(usize::from(*index)).is_some_and(Backend::takes_new))
    }

    /// Two different candidates, each drawn by weight; the same twice if there is only one.
    #[must_use]
    pub fn draw_two(&self, random: &mut Random) -> (Candidate, Candidate) {
        let total = self.reach.last().copied().unwrap_or(0);
        let at = |point: u64| self.reach.partition_point(|reach| *reach <= point).min(self.usable.len() - 1);
        let one = at(random.below(total));
        let (begin, weight) = (self.reach[one] - u64::from(self.usable[one].weight), self.usable[one].weight);
        let rest = total - u64::from(weight);
        if rest == 0 {
            return (self.usable[one], self.usable[one]);
        }
        // Of what the first leaves: points behind its stretch are moved beyond it.
        let point = random.below(rest);
        let other = at(if point < begin { point } else { point + u64::from(weight) });
        (self.usable[one], self.usable[other])
    }
}

/// As many buckets in a row as each one's weight, round and round; weights divided by what they share.
fn by_weight(configured: &[Candidate]) -> Box<[u16]> {
    let divisor = configured.iter().fold(0, |divisor, candidate| common_divisor(divisor, candidate.weight)).max(1);
    let units: u64 = configured.iter().map(|candidate| u64::from(candidate.weight / divisor)).sum();
    let bits = u64::BITS - units.saturating_sub(1).leading_zeros();
    let runs = configured.iter().flat_map(|c| std::iter::repeat_n(c.index, (c.weight / divisor) as usize));
    runs.cycle().take(full_size(configured, bits.clamp(BITS, MOST_BITS))).collect()
}

fn full_size(configured: &[Candidate], bits: u32) -> usize {
    if configured.is_empty() { 0 } else { 1 << bits }
}

/// An address as IPVS folds it: IPv6's four words xored.
fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32
        }
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}
