//! A port with a bad day: short bursts, full rings, lost, doubled, corrupted and late packets. Seeded,
//! so that a failing run can be run again, and no frame is lost by it, whatever happens to packets.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use super::{BURST, Burst, FramePool, Port, PortStats};

/// Frames the injector holds back at most.
const QUEUE: usize = 4 * BURST;

/// How often each fault happens, in a thousand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// A receive call hands out fewer packets than there are.
    pub short_burst: u32,
    /// A transmit call takes only some of the burst.
    pub full_tx: u32,
    /// A service call does nothing: completions come late.
    pub lazy_service: u32,
    /// A received packet is dropped.
    pub drop: u32,
    /// A received packet comes twice.
    pub duplicate: u32,
    /// One byte of a received packet is changed.
    pub corrupt: u32,
    /// A received packet is overtaken by others, of later bursts too.
    pub reorder: u32,
}

impl Faults {
    /// A bit of everything.
    #[must_use]
    pub fn rough() -> Self {
        Self { short_burst: 200, full_tx: 100, lazy_service: 100, drop: 20, duplicate: 20, corrupt: 10, reorder: 50 }
    }
}

/// What was done to packets so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub short_bursts: u64,
    pub full_tx: u64,
    pub dropped: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub reordered: u64,
}

/// `inner`, with faults.
pub struct FaultPort<P> {
    inner: P,
    faults: Faults,
    random: SplitMix,
    /// Received and not handed out yet.
    ready: VecDeque<super::Frame>,
    /// Being overtaken.
    late: Vec<super::Frame>,
    /// Where a packet lies in one piece while it is copied.
    copy: Box<[u8]>,
    done: Done,
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for choosing faults.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or_default()
    }

    fn happens(&mut self, in_a_thousand: u32) -> bool {
        self.next() % 1000 < u64::from(in_a_thousand)
    }
}

impl<P: Port> FaultPort<P> {
    #[must_use]
    pub fn new(inner: P, faults: Faults, seed: u64) -> Self {
        Self {
            inner,
            faults,
            random: SplitMix(seed),
            ready: VecDeque::with_capacity(QUEUE),
            late: Vec::with_capacity(QUEUE),
            copy: vec![0; usize::from(u16::MAX)].into(),
            done: Done::default(),
        }
    }

    /// Changes the faults from now on; no faults make the port well again.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    #[must_use]
    pub fn done(&self) -> Done {
        self.done
    }

    #[must_use]
    pub fn inner(&self) -> &P {
        &self.inner
    }

    pub fn inner_mut(&mut self) -> &mut P {
        &mut self.inner
    }

    /// Receives from the inner port, and lets happen what happens.
    fn arrive(&mut self, pool: &mut FramePool) {
        // Every packet may come twice.
        if self.ready.len() + self.late.len() + 2 * BURST > QUEUE {
            return;
        }
        let mut burst = Burst::new();
        self.inner.rx_burst(pool, &mut burst);
        for mut frame in burst {
            if self.random.happens(self.faults.drop) {
                self.done.dropped += 1;
                pool.give(frame);
                continue;
            }
            // Of a chain its first part: the headers are there.
            let first = pool.memory().bytes(&frame).len();
            if self.random.happens(self.faults.corrupt) && first > 0 {
                let place = self.random.below(first);
                let change = 1 << self.random.below(8);
                pool.memory().bytes_mut(&mut frame)[place] ^= change;
                self.done.corrupted += 1;
            }
            if self.random.happens(self.faults.duplicate)
                && let Some(twin) = twin(pool, &frame, &mut self.copy)
            {
                self.done.duplicated += 1;
                self.ready.push_back(twin);
            }
            if self.random.happens(self.faults.reorder) {
                self.done.reordered += 1;
                self.late.push(frame);
            } else {
                self.ready.push_back(frame);
            }
        }
    }

    /// Late packets come after all, each with even odds, so none waits for ever.
    fn catch_up(&mut self) {
        for index in (0..self.late.len()).rev() {
            if self.random.happens(500) {
                self.ready.push_back(self.late.swap_remove(index));
            }
        }
    }
}

/// The same packet in other frames, if they are free.
fn twin(pool: &mut FramePool, frame: &super::Frame, copy: &mut [u8]) -> Option<super::Frame> {
    let len = pool.memory().copy_out(frame, copy);
    let first = pool.memory().bytes(frame).len();
    pool.take_split(copy.get(..len)?, first)
}

impl<P: Port> Port for FaultPort<P> {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        self.catch_up();
        self.arrive(pool);
        let mut room = out.remaining_capacity().min(self.ready.len());
        if room > 0 && self.random.happens(self.faults.short_burst) {
            self.done.short_bursts += 1;
            room = self.random.below(room);
        }
        out.extend(self.ready.drain(..room));
        room
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        if !self.random.happens(self.faults.full_tx) {
            return self.inner.tx_burst(pool, frames);
        }
        self.done.full_tx += 1;
        let some = self.random.below(frames.len() + 1);
        let mut first: Burst = frames.drain(..some).collect();
        let taken = self.inner.tx_burst(pool, &mut first);
        first.extend(frames.drain(..));
        *frames = first;
        taken
    }

    fn service(&mut self, pool: &mut FramePool) {
        if !self.random.happens(self.faults.lazy_service) {
            self.inner.service(pool);
        }
    }

    fn frames_held(&self) -> usize {
        self.inner.frames_held() + self.ready.len() + self.late.len()
    }

    fn tx_pending(&self) -> bool {
        // What is held back here has no descriptor to wake a sleeper, either.
        self.inner.tx_pending() || !self.ready.is_empty() || !self.late.is_empty()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.poll_fd()
    }

    fn stats(&self) -> PortStats {
        self.inner.stats()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::PacketMemory;
    use crate::io::mem::{MemPeer, MemPort, pair};

    /// Echoes `count` numbered packets through a faulty port, and returns what came back.
    fn echo(faults: Faults, seed: u64, count: u32) -> (Vec<Vec<u8>>, Done) {
        let (port, peer): (MemPort, MemPeer) = pair(64);
        let mut port = FaultPort::new(port, faults, seed);
        let mut pool = FramePool::new(PacketMemory::heap(512, 2048, 256));
        let (mut burst, mut seen, mut next) = (Burst::new(), Vec::new(), 0);
        for _ in 0..10_000 {
            while next < count && peer.inject(&next.to_be_bytes()) {
                next += 1;
            }
            port.rx_burst(&mut pool, &mut burst);
            pool.assert_conserved(port.frames_held(), burst.len());
            port.tx_burst(&mut pool, &mut burst);
            port.service(&mut pool);
            pool.assert_conserved(port.frames_held(), burst.len());
            seen.extend(peer.take_all());
            if next == count && peer.waiting() == 0 && port.frames_held() == 0 && burst.is_empty() {
                pool.assert_conserved(0, 0);
                return (seen, port.done());
            }
        }
        panic!("packets are stuck: {} held, {} in hand", port.frames_held(), burst.len());
    }

    fn numbers(count: u32) -> Vec<Vec<u8>> {
        (0..count).map(|number| number.to_be_bytes().to_vec()).collect()
    }

    #[test]
    fn without_faults_nothing_changes() {
        let (seen, done) = echo(Faults::default(), 1, 500);
        assert_eq!(seen, numbers(500));
        assert_eq!(done, Done::default());
    }

    #[test]
    fn each_fault_does_what_it_says() {
        let none = Faults::default();
        let (seen, done) = echo(Faults { drop: 300, ..none }, 2, 500);
        assert!(done.dropped > 50 && seen.len() as u64 == 500 - done.dropped, "{done:?}");

        let (seen, done) = echo(Faults { duplicate: 300, ..none }, 3, 500);
        assert!(done.duplicated > 50 && seen.len() as u64 == 500 + done.duplicated, "{done:?}");
        let mut once = seen.clone();
        once.dedup();
        assert_eq!(once, numbers(500));

        let (seen, done) = echo(Faults { corrupt: 300, ..none }, 4, 500);
        let changed = seen.iter().zip(numbers(500)).filter(|(seen, sent)| *seen != sent).count() as u64;
        assert!(done.corrupted > 50 && changed == done.corrupted, "{done:?}");

        let (mut seen, done) = echo(Faults { reorder: 300, ..none }, 5, 500);
        assert!(done.reordered > 50 && seen != numbers(500), "{done:?}");
        seen.sort();
        assert_eq!(seen, numbers(500));

        let (seen, done) = echo(Faults { short_burst: 700, full_tx: 700, lazy_service: 700, ..none }, 6, 500);
        assert!(done.short_bursts > 5 && done.full_tx > 5, "{done:?}");
        assert_eq!(seen, numbers(500), "late, but all and in order");
    }

    #[test]
    fn a_seed_repeats_a_run() {
        assert_eq!(echo(Faults::rough(), 7, 300), echo(Faults::rough(), 7, 300));
        assert_ne!(echo(Faults::rough(), 7, 300), echo(Faults::rough(), 8, 300));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// `echo` asserts conservation on every step; here only the books of packets are left to check.
        #[test]
        fn frames_are_conserved_whatever_happens(
            rates in prop::array::uniform7(0..900_u32), seed in any::<u64>(), count in 0..300_u32,
        ) {
            let [short_burst, full_tx, lazy_service, drop, duplicate, corrupt, reorder] = rates;
            let faults = Faults { short_burst, full_tx, lazy_service, drop, duplicate, corrupt, reorder };
            let (seen, done) = echo(faults, seed, count);
            prop_assert_eq!(seen.len() as u64, u64::from(count) - done.dropped + done.duplicated);
        }
    }
}
