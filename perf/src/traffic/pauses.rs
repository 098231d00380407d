//! The lab's own pauses. A generator that loses its core (to a kernel thread, to another program, to the hypervisor)
//! sends late what was due meanwhile and looks late at what came back, and the burst with which it catches up queues in
//! the box. That time is in the latency of these packets and is not the box's. The generator knows when it happens, so
//! packets so touched can be told from the others; a pause of the box touches packets just as much, and is not known
//! here: it stays in.

use penstock_dataplane::clock::Now;
use rustix::time::{ClockId, clock_gettime};

/// A loop that did not turn for so long is looked at. An undisturbed turn takes 1 to 10 us, one that sends a whole burst
/// through a kernel that forwards in the sender's system call some 150: so a long turn alone is no pause, but one
/// in which the thread had no processor for as long.
const PAUSE_NS: u64 = 100_000;
/// The thread's own clock is read at least so often, that a pause is not the sum of many short moments. A reading costs
/// a microsecond.
const READING_NS: u64 = 1_000_000;
/// How fast what is usual on the way follows what is, per turn: some milliseconds.
const FOLLOW: f64 = 1.0 / 1024.0;

/// Watches the turns of a loop that sends and receives, or only receives.
#[derive(Debug)]
pub struct Pauses {
    last_turn: Now,
    /// When the thread's own clock was read, and what it said.
    read_at: Now,
    own_ns: u64,
    /// Packets on the way while nothing disturbs.
    usual: f64,
    /// Packets due from here on are not touched; `None`: what a pause began is not over.
    calm_since: Option<Now>,
    pub count: u64,
    pub total_ns: u64,
}

impl Pauses {
    #[must_use]
    pub fn new(now: Now, own_ns: u64) -> Self {
        let calm_since = Some(Now::default());
        Self { last_turn: now, read_at: now, own_ns, usual: 0.0, calm_since, count: 0, total_ns: 0 }
    }

    /// The loop has come round. `own_ns` reads the processor time this thread has had. Whether packets that are due
    /// have not been sent yet, and how many are on the way, say when the effect of a pause is over: when the sender is
    /// back on its grid and what it sent to get there has left the box.
    #[inline]
    pub fn turned(&mut self, now: Now, own_ns: impl FnOnce() -> u64, behind: bool, on_the_way: u64) {
        let turn_ns = now.ns.saturating_sub(self.last_turn.ns);
        self.last_turn = now;
        let shall_look = turn_ns > PAUSE_NS || now.ns.saturating_sub(self.read_at.ns) > READING_NS;
        if shall_look && self.paused(now, own_ns(), turn_ns) {
            // What `behind` says is of before it.
            self.calm_since = None;
            return;
        }
        match self.calm_since {
            Some(_) => self.usual += (on_the_way as f64 - self.usual) * FOLLOW,
            None if !behind && on_the_way as f64 <= self.usual.max(1.0) => self.calm_since = Some(now),
            None => {}
        }
    }

    fn paused(&mut self, now: Now, own_ns: u64, turn_ns: u64) -> bool {
        let without = (now.ns - self.read_at.ns).saturating_sub(own_ns.saturating_sub(self.own_ns)).min(turn_ns);
        (self.read_at, self.own_ns) = (now, own_ns);
        if without <= PAUSE_NS {
            return false;
        }
        self.count += 1;
        self.total_ns += without;
        true
    }

    /// Whether a packet that arrives now was due, or on the way, when this loop or its effect disturbed it.
    #[inline]
    #[must_use]
    pub fn touched(&self, intended: Now) -> bool {
        self.calm_since.is_none_or(|since| intended < since)
    }

    /// Whether what is sent now comes late or meets others that do.
    #[inline]
    #[must_use]
    pub fn disturbed(&self) -> bool {
        self.calm_since.is_none()
    }
}

/// The processor time the calling thread has had. Time the hypervisor took is not in it, where it tells.
#[must_use]
pub fn own_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use super::*;
    use crate::traffic::pace::Pace;
    use crate::traffic::packet::Stamp;
    use crate::traffic::track::{Outcome, Track};

    const BURST: usize = 64;
    const TURN_NS: u64 = 2_000;
    /// A box that takes so long for each packet, one after the other: 500,000 packets/s.
    const SERVICE_NS: u64 = 2_000;
    const LENGTH_NS: u64 = 100_000_000;

    /// From, for how long, and whether the thread lost its core (else it was busy itself).
    type Pause = (u64, u64, bool);

    struct Run {
        outcome: Outcome,
        pauses: u64,
        /// By number: what each packet took, and whether it was put aside.
        packets: BTreeMap<u32, (u64, bool)>,
    }

    fn simulate(rate: f64, pauses: &[Pause], box_pause: Option<(u64, u64)>) -> Run {
        simulate_far(rate, pauses, box_pause, 0)
    }

    /// The loop of `load::run` with a box in a simulated time, `far` away; the box stands still in `box_pause`.
    fn simulate_far(rate: f64, pauses: &[Pause], box_pause: Option<(u64, u64)>, far: u64) -> Run {
        let at = |ns: u64| Now { ns: 1_000_000_000 + ns };
        let (mut now, mut own) = (0, 0);
        let mut pace = Pace::new(at(0), Some(rate));
        let mut watch = Pauses::new(at(0), 0);
        let mut track = Track::new(1);
        let mut in_box: VecDeque<(u64, Stamp)> = VecDeque::new();
        let (mut box_free, mut packets) = (0, BTreeMap::new());
        let mut pauses = pauses.iter().peekable();
        while now < LENGTH_NS || !in_box.is_empty() {
            let due = if now < LENGTH_NS { pace.due(at(now), BURST) } else { 0 };
            for _ in 0..due {
                let stamp = Stamp {
                    number: pace.sent() as u32,
                    flow: 0,
                    intended: pace.next(at(now)),
                    touched: watch.disturbed(),
                };
                let mut start = now.max(box_free);
                if let Some((from, length)) = box_pause.filter(|(from, length)| (*from..from + length).contains(&start))
                {
                    start = from + length;
                }
                box_free = start + SERVICE_NS;
                in_box.push_back((box_free + far, stamp));
            }
            now += TURN_NS;
            own += TURN_NS;
            if let Some((_, length, lost_core)) = pauses.next_if(|(from, ..)| *from <= now) {
                now += length;
                own += if *lost_core { 0 } else { *length };
            }
            let behind = due == BURST;
            watch.turned(at(now), || own, behind, pace.sent() - track.highest());
            while let Some((_, stamp)) = in_box.pop_front_if(|(out, _)| *out <= now) {
                let touched = stamp.touched || watch.touched(stamp.intended);
                track.arrived(stamp, 60, at(now), touched);
                packets.insert(stamp.number, (at(now).ns - stamp.intended.ns, touched));
            }
        }
        Run { outcome: track.close(pace.sent()), pauses: watch.count, packets }
    }

    /// What an undisturbed packet takes at most: its turn, the box, the turn it is seen in.
    const USUAL_NS: u64 = 3 * TURN_NS + SERVICE_NS;

    #[test]
    fn without_pauses_both_are_equal() {
        for rate in [10_000.0, 250_000.0, 450_000.0] {
            let run = simulate(rate, &[], None);
            assert_eq!((run.pauses, run.outcome.disturbed), (0, 0.0));
            assert_eq!(run.outcome.latency_us, run.outcome.undisturbed_us);
            assert!(run.outcome.latency_us.max > 0.0 && run.outcome.lost == 0);
        }
    }

    #[test]
    fn what_a_pause_touches_is_put_aside_and_nothing_else() {
        // At half its rate the box needs as long again to work off what a pause held back; at 0.9 nine times. One that
        // is far away has many packets on the way all the time.
        for (rate, length, far, longest) in [
            (250_000.0, 4_000_000, 0, 2.1),
            (250_000.0, 150_000, 0, 2.3),
            (450_000.0, 2_000_000, 0, 10.5),
            (250_000.0, 4_000_000, 1_000_000, 2.8),
        ] {
            let run = simulate_far(rate, &[(50_000_000, length, true)], None, far);
            assert_eq!(run.pauses, 1);
            let usual = USUAL_NS + far;
            for (number, (nanos, touched)) in &run.packets {
                assert!(*touched || *nanos <= usual, "{rate} {length} {far}: packet {number} took {nanos} ns");
            }
            let apart = run.packets.values().filter(|(_, touched)| *touched).count() as f64;
            let in_pause = rate * length as f64 / 1e9;
            assert!(
                apart >= in_pause && apart <= longest * in_pause + 10.0,
                "{rate} {length} {far}: {apart} of {in_pause}"
            );
            assert_eq!(run.outcome.disturbed, apart / run.packets.len() as f64);
            assert!(run.outcome.latency_us.max >= length as f64 / 1e3);
            assert!(run.outcome.undisturbed_us.max <= usual as f64 * 1.01 / 1e3, "{:?}", run.outcome);
        }
    }

    #[test]
    fn a_pause_of_the_box_stays_in() {
        let run = simulate(250_000.0, &[], Some((50_000_000, 4_000_000)));
        assert_eq!((run.pauses, run.outcome.disturbed), (0, 0.0));
        assert!(run.outcome.undisturbed_us.max >= 3_900.0);
        // Also when the generator's own comes at another time.
        let run = simulate(250_000.0, &[(10_000_000, 1_000_000, true)], Some((50_000_000, 4_000_000)));
        assert_eq!(run.pauses, 1);
        assert!(run.outcome.disturbed > 0.0 && run.outcome.undisturbed_us.max >= 3_900.0, "{:?}", run.outcome);
    }

    /// A receiver sends nothing and knows of nothing on the way; it takes what waited a burst at a time.
    #[test]
    fn what_waited_at_a_receiver_is_touched() {
        let at = |us: u64| Now { ns: 1_000_000_000 + us * 1_000 };
        let mut watch = Pauses::new(at(0), 0);
        watch.turned(at(10), || 10_000, false, 0);
        assert!(!watch.touched(at(9)));
        watch.turned(at(510), || 10_000, false, 0);
        assert!(watch.touched(at(300)));
        watch.turned(at(512), || 12_000, false, 0);
        assert!(watch.touched(at(300)) && watch.touched(at(511)), "the next burst of them");
        assert!(!watch.touched(at(512)) && !watch.disturbed());
        assert_eq!((watch.count, watch.total_ns), (1, 500_000));
    }

    #[test]
    fn a_long_turn_on_its_own_core_is_no_pause() {
        let run = simulate(250_000.0, &[(50_000_000, 300_000, false)], None);
        assert_eq!((run.pauses, run.outcome.disturbed), (0, 0.0), "the kernel did the box's work in it");
    }

    #[test]
    fn many_short_moments_are_no_pause() {
        let short: Vec<Pause> = (1..900).map(|at| (at * 100_000, 20_000, true)).collect();
        assert_eq!(simulate(100_000.0, &short, None).pauses, 0);
    }
}
