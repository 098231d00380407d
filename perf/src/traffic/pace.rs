//! When packets are due. A packet's intended time is on an even grid from the start, whether or not the
//! generator keeps up: latency counted from it includes the time a late packet waited to be sent
//! (coordinated omission), and how late the generator runs is known.

use penstock_dataplane::clock::Now;

/// The grid of intended times.
#[derive(Debug, Clone)]
pub struct Pace {
    start: Now,
    /// `None`: flat out; a packet is due when it is sent.
    nanos_each: Option<f64>,
    sent: u64,
    /// Furthest behind the grid.
    latest_ns: u64,
}

/// Further behind than this, a generator is not sending what it was asked to.
pub(super) const BEHIND_NS: u64 = 2_000_000;

impl Pace {
    #[must_use]
    pub fn new(start: Now, packets_per_second: Option<f64>) -> Self {
        Self { start, nanos_each: packets_per_second.map(|rate| 1e9 / rate), sent: 0, latest_ns: 0 }
    }

    /// How many packets are due by `now`, at most `most`.
    #[inline]
    #[must_use]
    pub fn due(&self, now: Now, most: usize) -> usize {
        let Some(each) = self.nanos_each else { return most };
        let by_now = ((now.ns.saturating_sub(self.start.ns)) as f64 / each) as u64 + 1;
        by_now.saturating_sub(self.sent).min(most as u64) as usize
    }

    /// The intended time of the next packet, which is being sent at `now`.
    #[inline]
    pub fn next(&mut self, now: Now) -> Now {
        let intended = match self.nanos_each {
            None => now,
            Some(each) => Now { ns: self.start.ns + (self.sent as f64 * each) as u64 },
        };
        self.sent += 1;
        self.latest_ns = self.latest_ns.max(now.ns.saturating_sub(intended.ns));
        intended
    }

    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// How late the latest packet was sent.
    #[must_use]
    pub fn latest_ns(&self) -> u64 {
        self.latest_ns
    }

    /// Whether the generator itself could not keep up by `end`: then a figure is the generator's.
    #[must_use]
    pub fn fell_behind(&self, end: Now) -> bool {
        self.due(end, usize::MAX) as f64 * self.nanos_each.unwrap_or(0.0) > BEHIND_NS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> Now {
        Now { ns: 1_000_000 + ns }
    }

    #[test]
    fn a_late_packet_keeps_its_intended_time() {
        let mut pace = Pace::new(at(0), Some(1e6));
        assert_eq!(pace.due(at(0), 64), 1);
        assert_eq!(pace.next(at(0)), at(0));
        assert_eq!(pace.due(at(500), 64), 0);
        assert_eq!(pace.due(at(5_000), 64), 5);
        assert_eq!(pace.next(at(5_000)), at(1_000), "4 microseconds late, and it shows");
        assert_eq!(pace.latest_ns(), 4_000);
        assert_eq!(pace.due(at(500_000), 64), 64, "a burst at most");
        assert!(!pace.fell_behind(at(5_000)));
        assert!(pace.fell_behind(at(3_000_000)));
    }

    #[test]
    fn flat_out_is_always_due_and_never_late() {
        let mut pace = Pace::new(at(0), None);
        assert_eq!(pace.due(at(7), 64), 64);
        assert_eq!(pace.next(at(7)), at(7));
        assert!(!pace.fell_behind(at(1_000_000_000)));
    }

    #[test]
    fn the_rate_is_the_rate() {
        let mut pace = Pace::new(at(0), Some(333_333.0));
        let (mut now, mut sent) = (0, 0);
        while now < 1_000_000_000 {
            for _ in 0..pace.due(at(now), 64) {
                pace.next(at(now));
                sent += 1;
            }
            now += 1_700;
        }
        assert!((333_330..=333_336).contains(&sent), "{sent}");
    }
}
