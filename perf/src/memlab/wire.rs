//! The cables: every frame takes its time, and some are lost, doubled or overtaken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Side;

/// What happens to frames, per thousand, and how long they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impairment {
    pub lost: u32,
    pub doubled: u32,
    /// Held back by up to `delay_us`, so that later frames overtake them.
    pub reordered: u32,
    pub latency_us: u64,
    pub delay_us: u64,
}

impl Default for Impairment {
    fn default() -> Self {
        Self { lost: 0, doubled: 0, reordered: 0, latency_us: 50, delay_us: 3000 }
    }
}

/// Counts of what was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Impaired {
    pub frames: u64,
    pub lost: u64,
    pub doubled: u64,
    pub reordered: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    due: u64,
    /// Frames due at one time arrive in the order they were sent.
    number: u64,
    side: Side,
    to_box: bool,
    frame: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Wire {
    state: u64,
    impairment: Impairment,
    pub(super) impaired: Impaired,
    under_way: BinaryHeap<Reverse<Parcel>>,
    sent: u64,
}

impl Wire {
    pub(super) fn new(seed: u64, impairment: Impairment) -> Self {
        Self { state: seed, impairment, impaired: Impaired::default(), under_way: BinaryHeap::new(), sent: 0 }
    }

    /// SplitMix64: small, and the same on every machine.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn happens(&mut self, per_thousand: u32) -> bool {
        self.random() % 1000 < u64::from(per_thousand)
    }

    /// One of `count` queues.
    pub(super) fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.random() % count as u64).unwrap_or(0)
    }

    pub(super) fn send(&mut self, now: u64, side: Side, to_box: bool, frame: Vec<u8>) {
        self.impaired.frames += 1;
        if self.happens(self.impairment.lost) {
            self.impaired.lost += 1;
            return;
        }
        if self.happens(self.impairment.doubled) {
            self.impaired.doubled += 1;
            self.put(now + self.impairment.latency_us, side, to_box, frame.clone());
        }
        let mut due = now + self.impairment.latency_us;
        if self.happens(self.impairment.reordered) {
            self.impaired.reordered += 1;
            due += self.random() % self.impairment.delay_us.max(1);
        }
        self.put(due, side, to_box, frame);
    }

    fn put(&mut self, due: u64, side: Side, to_box: bool, frame: Vec<u8>) {
        self.sent += 1;
        self.under_way.push(Reverse(Parcel { due, number: self.sent, side, to_box, frame }));
    }

    /// Frames that arrive now.
    pub(super) fn due(&mut self, now: u64) -> Vec<(Side, bool, Vec<u8>)> {
        let mut arrived = Vec::new();
        while self.next_due().is_some_and(|due| due <= now) {
            if let Some(Reverse(parcel)) = self.under_way.pop() {
                arrived.push((parcel.side, parcel.to_box, parcel.frame));
            }
        }
        arrived
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.under_way.peek().map(|Reverse(parcel)| parcel.due)
    }
}
