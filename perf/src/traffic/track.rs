//! What became of the packets: each carries a number, so that what is lost, doubled or overtaken is counted,
//! not guessed; and when it was due, so that latency is counted from then.

use hdrhistogram::Histogram;
use penstock_dataplane::clock::Now;

use super::packet::Stamp;

/// Packets the duplicate window covers: at 10 Mpps some 1.6 s.
const WINDOW: u64 = 1 << 24;

/// The receiving end's books.
pub struct Track {
    /// One bit per number, of the last `WINDOW`.
    seen: Vec<u64>,
    /// Numbers below this one and outside the window are not looked at again.
    highest: u64,
    /// The number last seen of each flow, plus one.
    flows: Vec<u32>,
    pub received: u64,
    pub bytes: u64,
    pub duplicates: u64,
    /// Came after a later packet of its own flow.
    pub reordered: u64,
    /// Came so late that its number's place was taken: could be either.
    pub too_late: u64,
    /// Of packets no pause of the lab's touched, and of those one did.
    calm: Histogram<u64>,
    touched: Histogram<u64>,
    steady: Steady,
}

/// The p99 of each thousand packets: the machine's pauses, some dozens of milliseconds each in a run of seconds, are in a few of
/// these, but decide the p99 of all from a hundredth of the time on.
#[derive(Debug, Default)]
struct Steady {
    nanos: Vec<u64>,
    p99s: Vec<u64>,
}

impl Steady {
    #[inline]
    fn record(&mut self, nanos: u64) {
        self.nanos.push(nanos);
        if self.nanos.len() == THOUSAND {
            let (_, p99, _) = self.nanos.select_nth_unstable(THOUSAND * 99 / 100 - 1);
            self.p99s.push(*p99);
            self.nanos.clear();
        }
    }

    /// The median, microseconds; 0 if there were not a thousand.
    fn p99_us(&self) -> f64 {
        let mut p99s = self.p99s.clone();
        p99s.sort_unstable();
        p99s.get(p99s.len() / 2).map_or(0.0, |nanos| *nanos as f64 / 1e3)
    }
}

const THOUSAND: usize = 1_000;

/// The books of one run, closed.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Outcome {
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub reordered: u64,
    /// One packet in so many was looked at for duplicates and latency, one flow in so many for order: the figures are estimates
    /// if it is more than 1.
    pub one_in: u64,
    /// Flows of which nothing arrived, in order; where sockets take the packets.
    #[serde(skip)]
    pub silent: Vec<u32>,
    /// Of all packets, from when each was due.
    pub latency_us: Percentiles,
    /// The same without packets that the lab's own pauses touched (see [`pauses`](super::pauses)); zeros if none is left.
    pub undisturbed_us: Percentiles,
    /// The share of packets those are.
    pub disturbed: f64,
    /// The p99 within each thousand packets that no pause touched, the median of these; 0 if there were not a thousand.
    pub steady_p99_us: f64,
}

/// With a larger share than this left out, what is left may be a choice: it decides nothing.
pub const MOST_DISTURBED: f64 = 0.2;

impl Outcome {
    /// Whether [`undisturbed_us`](Self::undisturbed_us) can be relied on.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.disturbed <= MOST_DISTURBED
    }
}

/// Microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Percentiles {
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() as f64 / 1e3 }
    }
}

impl Outcome {
    /// The times of packets, of those no pause of the lab's touched and of those one did; no books yet.
    ///
    /// # Panics
    /// Never: the histograms have the same bounds.
    #[must_use]
    pub fn of(calm: &Histogram<u64>, touched: &Histogram<u64>) -> Self {
        let mut all = calm.clone();
        all.add(touched).expect("the same bounds");
        Self {
            latency_us: Percentiles::of(&all),
            undisturbed_us: Percentiles::of(calm),
            disturbed: touched.len() as f64 / (all.len() as f64).max(1.0),
            ..Self::default()
        }
    }
}

/// Up to a minute, three digits.
///
/// # Panics
/// Never: the bounds are constants that fit.
#[must_use]
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constants")
}

impl Track {
    #[must_use]
    pub fn new(flows: u32) -> Self {
        Self {
            seen: vec![0; (WINDOW / 64) as usize],
            highest: 0,
            flows: vec![0; flows as usize],
            received: 0,
            bytes: 0,
            duplicates: 0,
            reordered: 0,
            too_late: 0,
            calm: latencies(),
            touched: latencies(),
            steady: Steady::default(),
        }
    }

    /// One more than the highest number that has arrived.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// A stamped packet has arrived; `touched`: a pause of the lab's is in the time it took.
    #[inline]
    pub fn arrived(&mut self, stamp: Stamp, len: usize, now: Now, touched: bool) {
        let number = u64::from(stamp.number);
        if number >= self.highest {
            self.forget(self.highest, number + 1);
            self.highest = number + 1;
        } else if self.highest - number > WINDOW {
            self.too_late += 1;
            return;
        }
        let (word, bit) = ((number % WINDOW / 64) as usize, 1 << (number % 64));
        if self.seen[word] & bit != 0 {
            self.duplicates += 1;
            return;
        }
        self.seen[word] |= bit;
        self.received += 1;
        self.bytes += len as u64;
        if let Some(last) = self.flows.get_mut(stamp.flow as usize) {
            if stamp.number < *last {
                self.reordered += 1;
            } else {
                *last = stamp.number + 1;
            }
        }
        let nanos = now.ns.saturating_sub(stamp.intended.ns).max(1);
        if touched {
            self.touched.saturating_record(nanos);
        } else {
            self.calm.saturating_record(nanos);
            self.steady.record(nanos);
        }
    }

    /// Clears the places of numbers from `from` to before `to`, which numbers a window ago had.
    fn forget(&mut self, from: u64, to: u64) {
        if to - from >= WINDOW {
            self.seen.fill(0);
            return;
        }
        for number in from..to {
            self.seen[(number % WINDOW / 64) as usize] &= !(1 << (number % 64));
        }
    }

    /// Closes the books: of `sent` packets, what did not arrive is lost.
    #[must_use]
    pub fn close(&self, sent: u64) -> Outcome {
        Outcome {
            sent,
            received: self.received,
            lost: sent.saturating_sub(self.received),
            duplicates: self.duplicates,
            reordered: self.reordered,
            one_in: 1,
            silent: (0..).zip(&self.flows).filter(|(_, last)| **last == 0).map(|(flow, _)| flow).collect(),
            steady_p99_us: self.steady.p99_us(),
            ..Outcome::of(&self.calm, &self.touched)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(number: u32, flow: u32) -> Stamp {
        Stamp { number, flow, intended: Now { ns: 1_000 }, touched: false }
    }

    fn run(numbers: &[(u32, u32)]) -> Track {
        let mut track = Track::new(4);
        for (number, flow) in numbers {
            track.arrived(stamp(*number, *flow), 60, Now { ns: 6_000 }, false);
        }
        track
    }

    #[test]
    fn loss_duplicates_and_order_are_told_apart() {
        let track = run(&[(0, 0), (1, 1), (3, 1), (2, 0), (2, 0), (5, 1), (4, 1)]);
        let outcome = track.close(8);
        assert_eq!((outcome.received, outcome.lost, outcome.duplicates), (6, 2, 1));
        assert_eq!(outcome.reordered, 1, "4 behind 5 of one flow; 2 behind 3 is of another");
        assert_eq!(outcome.silent, [2, 3]);
    }

    #[test]
    fn latency_is_from_the_intended_time() {
        let track = run(&[(0, 0), (1, 0)]);
        assert!((track.close(2).latency_us.p50 - 5.0).abs() < 0.01);
    }

    #[test]
    fn a_pause_is_in_the_p99_of_all_and_not_in_that_of_most_thousands() {
        let mut track = Track::new(1);
        for number in 0..10_000_u32 {
            // Of every hundred one takes 9 us, and two hundred in a row a millisecond.
            let us = match number {
                4_000..4_200 => 1_000,
                _ if number.is_multiple_of(100) => 9,
                _ => 5,
            };
            track.arrived(stamp(number, 0), 60, Now { ns: 1_000 + us * 1_000 }, false);
        }
        let outcome = track.close(10_000);
        assert_eq!((outcome.latency_us.p99.round(), outcome.steady_p99_us), (1_000.0, 5.0));
        // One more in a hundred: the p99 is among them.
        let mut track = Track::new(1);
        for number in 0..1_000 {
            let us = if number < 11 { 9 } else { 5 };
            track.arrived(stamp(number, 0), 60, Now { ns: 1_000 + us * 1_000 }, false);
        }
        assert_eq!(track.close(1_000).steady_p99_us, 9.0);
        assert_eq!(run(&[(0, 0)]).close(1).steady_p99_us, 0.0);
    }

    #[test]
    fn a_number_comes_round_without_being_a_duplicate() {
        let window = WINDOW as u32;
        let track = run(&[(0, 0), (window, 0), (window, 0), (window + 1, 0), (5, 1)]);
        assert_eq!((track.received, track.duplicates, track.too_late), (4, 1, 0));
        let track = run(&[(0, 0), (3 * window, 0), (window, 0)]);
        assert_eq!((track.received, track.too_late), (2, 1));
    }
}
