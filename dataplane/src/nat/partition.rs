//! Which worker a SNAT port belongs to. The owner of a reply is computed from its destination port
//! alone, so ports are dealt out to the workers in turn.

use crate::verdict::WorkerId;

/// A worker's share of every port range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub worker: WorkerId,
    pub workers: u16,
}

/// Ports of a range that belong to one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    step: u16,
    pub count: u32,
}

impl Ports {
    /// The `n`-th of them; `n` must be below `count`.
    #[inline]
    #[must_use]
    pub fn at(self, n: u32) -> u16 {
        self.first.wrapping_add((n as u16).wrapping_mul(self.step))
    }

    /// Which of them is the first from `port` on; 0 if there is none.
    #[must_use]
    pub fn from(self, port: u16) -> u32 {
        let n = u32::from(port.saturating_sub(self.first)).div_ceil(u32::from(self.step));
        if n < self.count { n } else { 0 }
    }
}

impl Partition {
    /// The worker that owns replies to a SNAT port.
    #[inline]
    #[must_use]
    pub fn owner(&self, port: u16) -> WorkerId {
        WorkerId(port % self.workers)
    }

    /// This worker's ports of a range, both ends included.
    #[must_use]
    pub fn ports(&self, first: u16, last: u16) -> Ports {
        let ahead = (self.worker.0 + self.workers - first % self.workers) % self.workers;
        let own_first = u32::from(first) + u32::from(ahead);
        if own_first > u32::from(last) {
            return Ports { first, step: self.workers, count: 0 };
        }
        let count = (u32::from(last) - own_first) / u32::from(self.workers) + 1;
        Ports { first: own_first as u16, step: self.workers, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_port_from_a_port_on() {
        let ports = Partition { worker: WorkerId(1), workers: 3 }.ports(1000, 1010);
        let all: Vec<u16> = (0..ports.count).map(|n| ports.at(n)).collect();
        assert_eq!(all, [1000, 1003, 1006, 1009]);
        let from = |port| ports.at(ports.from(port));
        assert_eq!([0, 1000, 1001, 1003, 1008, 1009, 1010].map(from), [1000, 1000, 1003, 1003, 1009, 1009, 1000]);
    }

    proptest! {
        #[test]
        fn every_port_of_a_range_has_one_owner(workers in 1_u16..40, first in 1_u16.., len in 0_u16..2000) {
            let last = first.saturating_add(len);
            let mut seen: Vec<u16> = Vec::new();
            for worker in 0..workers {
                let partition = Partition { worker: WorkerId(worker), workers };
                let ports = partition.ports(first, last);
                for n in 0..ports.count {
                    let port = ports.at(n);
                    prop_assert_eq!(partition.owner(port), WorkerId(worker));
                    seen.push(port);
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (first..=last).collect::<Vec<_>>());
        }
    }
}
