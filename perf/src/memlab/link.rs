//! The cables: every frame takes its time, and some are lost, doubled, overtaken or spoiled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::random::Random;

/// What a cable does to frames, in a thousand each, and how long they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub loss: u32,
    /// Held back by up to ten times `delay`, so that later frames overtake them.
    pub reorder: u32,
    pub duplicate: u32,
    /// One bit behind the Ethernet header is flipped. ARP is spared: it has no checksum of its own,
    /// and on a real wire the frame check sequence stands for it.
    pub corrupt: u32,
    pub delay: Duration,
}

impl Default for Link {
    fn default() -> Self {
        Self { loss: 0, reorder: 0, duplicate: 0, corrupt: 0, delay: Duration::from_micros(50) }
    }
}

impl Link {
    /// Loses, reorders and doubles this share of the frames, in a thousand.
    #[must_use]
    pub fn rough(per_mille: u32) -> Self {
        Self { loss: per_mille, reorder: per_mille, duplicate: per_mille, ..Self::default() }
    }

    pub(super) fn is_perfect(self) -> bool {
        self.loss == 0 && self.reorder == 0 && self.corrupt == 0
    }
}

/// What was done to frames so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub frames: u64,
    pub lost: u64,
    pub reordered: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    /// A hash over all frames and their times: two runs are the same if theirs are.
    pub digest: u64,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A host, by its number.
    Host(usize),
    /// A port of the box.
    Box(u8),
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    due: u64,
    /// Frames due at one time arrive in the order they were sent.
    number: u64,
    to: Place,
    frame: Vec<u8>,
}

/// All cables: frames under way by the time they arrive.
#[derive(Debug)]
pub(super) struct Cables {
    random: Random,
    link: Link,
    pub(super) counters: LinkCounters,
    under_way: BinaryHeap<Reverse<Parcel>>,
    put: u64,
}

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERNET_HEADER: usize = 14;

impl Cables {
    pub(super) fn new(seed: u64, link: Link) -> Self {
        Self {
            random: Random::new(seed),
            link,
            counters: LinkCounters::default(),
            under_way: BinaryHeap::new(),
            put: 0,
        }
    }

    pub(super) fn set_link(&mut self, link: Link) {
        self.link = link;
    }

    pub(super) fn send(&mut self, now: u64, to: Place, mut frame: Vec<u8>) {
        let delay = u64::try_from(self.link.delay.as_micros()).unwrap_or(u64::MAX).max(1);
        self.note(now, &frame);
        if self.random.happens(self.link.loss) {
            self.counters.lost += 1;
            return;
        }
        if self.random.happens(self.link.duplicate) {
            self.counters.duplicated += 1;
            self.put(now + delay, to, frame.clone());
        }
        if self.random.happens(self.link.corrupt) && frame.len() > ETHERNET_HEADER && frame[12..14] != ETHERTYPE_ARP {
            let at = ETHERNET_HEADER + self.random.below(frame.len() - ETHERNET_HEADER);
            frame[at] ^= 1 << self.random.below(8);
            self.counters.corrupted += 1;
        }
        let mut due = now + delay;
        if self.random.happens(self.link.reorder) {
            self.counters.reordered += 1;
            due += 1 + self.random.next() % (10 * delay);
        }
        self.put(due, to, frame);
    }

    fn note(&mut self, now: u64, frame: &[u8]) {
        self.counters.frames += 1;
        let mut digest = self.counters.digest ^ now;
        for byte in frame {
            // FNV-1a's step.
            digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.counters.digest = digest;
    }

    fn put(&mut self, due: u64, to: Place, frame: Vec<u8>) {
        self.put += 1;
        let number = self.put;
        self.under_way.push(Reverse(Parcel { due, number, to, frame }));
    }

    /// The next frame that has arrived by now.
    pub(super) fn arrived(&mut self, now: u64) -> Option<(Place, Vec<u8>)> {
        if self.next_due()? > now {
            return None;
        }
        self.under_way.pop().map(|Reverse(parcel)| (parcel.to, parcel.frame))
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.under_way.peek().map(|Reverse(parcel)| parcel.due)
    }
}
