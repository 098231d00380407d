//! Packets in several frames: gathered from the receive ring, and spread over the transmit ring.
#![allow(unsafe_code, reason = "the rings of xsk-rs take descriptors on trust; see each block")]

use super::socket::{SHORTEST, XskPort, salvage};
use crate::io::{BURST, Burst, Frame, FramePool, LARGEST_PACKET};

/// Of a descriptor's options (linux/if_xdp.h): the packet goes on in the next one.
const XDP_PKT_CONTD: u32 = 1;

/// A packet whose last frame has not come.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    begun: Option<Frame>,
    /// What comes up to its last frame is thrown away: a part of it was no good, or it is too large.
    spoilt: bool,
}

/// What became of a received frame.
enum Gathered {
    /// There is more to come.
    Part,
    Packet(Frame),
    Oversize,
    /// The last frame of a packet that was no good.
    Rest,
}

impl Gathering {
    /// Frames here, but for those the memory counts as chained.
    pub(super) fn held(&self) -> usize {
        usize::from(self.begun.is_some())
    }

    /// One frame; `more` of its packet follow.
    fn add(&mut self, pool: &mut FramePool, frame: Frame, more: bool) -> Gathered {
        if self.spoilt {
            pool.give(frame);
            self.spoilt = more;
            return if more { Gathered::Part } else { Gathered::Rest };
        }
        let packet = match self.begun.take() {
            None => Ok(frame),
            Some(mut begun) => match pool.memory().append(&mut begun, frame) {
                Ok(()) => Ok(begun),
                Err(frame) => Err([begun, frame]),
            },
        };
        match packet {
            Ok(packet) if packet.len() > LARGEST_PACKET => {
                pool.give(packet);
                self.spoilt = more;
                Gathered::Oversize
            }
            Ok(packet) if more => {
                self.begun = Some(packet);
                Gathered::Part
            }
            Ok(packet) => Gathered::Packet(packet),
            Err(parts) => {
                parts.into_iter().for_each(|part| pool.give(part));
                self.spoilt = more;
                Gathered::Oversize
            }
        }
    }

    /// A frame of the packet under way is lost: so is the packet.
    fn spoil(&mut self, pool: &mut FramePool, more: bool) {
        self.begun.take().into_iter().for_each(|begun| pool.give(begun));
        self.spoilt = more;
    }
}

impl XskPort {
    /// Receives, where packets may be in several frames.
    pub(super) fn gather(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        let room = out.remaining_capacity();
        // SAFETY: `consume` wants descriptors of this UMEM: it reads none of them, only overwrites them
        // with what the kernel received, which `custody` checks.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        let before = out.len();
        for desc in &self.scratch[..count] {
            let more = desc.has_more_frames();
            match self.custody.received(pool.memory(), desc.addr(), desc.lengths().data()) {
                Ok(frame) => match self.gathering.add(pool, frame, more) {
                    Gathered::Packet(packet) => {
                        self.counters.chains += u64::from(packet.is_chain());
                        out.push(packet);
                    }
                    Gathered::Oversize => self.counters.oversize += 1,
                    Gathered::Part | Gathered::Rest => {}
                },
                Err(bad) => {
                    self.counters.bad_descriptors += salvage(bad, pool);
                    self.gathering.spoil(pool, more);
                }
            }
        }
        out.len() - before
    }

    /// Transmits, where packets may be in several frames: all of a packet's, or none.
    pub(super) fn transmit(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let offered = frames.len();
        let mut at = 0;
        while let Some(frame) = frames.get_mut(at) {
            if pool.memory().bytes(frame).len() >= SHORTEST && pool.settle(frame) {
                at += 1;
            } else {
                pool.give(frames.remove(at));
                self.counters.too_short += 1;
            }
        }
        while !frames.is_empty() && self.transmit_some(pool, frames) > 0 {}
        offered - frames.len()
    }

    /// As many packets from the front as a burst of descriptors holds, and the ring has room for. Returns how many.
    fn transmit_some(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        // All or nothing: never offer more than there are slots.
        let slots = BURST.min(self.tx.nb_free(BURST as u32) as usize);
        let (mut packets, mut count) = (0, 0);
        for frame in frames.iter() {
            let many = pool.memory().frames_of(frame);
            if count + many > slots {
                break;
            }
            for (left, (number, len)) in (0..many).rev().zip(pool.memory().places(frame)) {
                let slot = &mut self.scratch[count];
                *slot = self.descs[number];
                slot.set_options(if left > 0 { XDP_PKT_CONTD } else { 0 });
                // SAFETY: `data_mut` wants a descriptor of this UMEM and nobody else using the frame: it is in
                // a packet of the burst, which is borrowed exclusively. Only the descriptor's length is set.
                let mut data = unsafe { self.umem.data_mut(slot) };
                data.cursor().set_pos(len);
                count += 1;
            }
            packets += 1;
        }
        // SAFETY: `produce` wants frames of this UMEM that are used nowhere else until they are completed:
        // those produced leave the burst right below, for `custody`'s keeping only.
        let done = unsafe { self.tx.produce(&self.scratch[..count]) };
        if done != count {
            // It is all or nothing, and there were as many slots.
            return 0;
        }
        for packet in frames.drain(..packets) {
            let mut next = Some(packet);
            while let Some(mut frame) = next {
                next = pool.memory().take_tail(&mut frame);
                self.custody.give_to_transmit(pool.memory(), frame);
            }
        }
        self.kick_owed |= done > 0;
        packets
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::{MOST_FRAMES, PacketMemory};

    fn pool() -> FramePool {
        FramePool::new(PacketMemory::heap(64, 2048, 256))
    }

    /// Feeds frames of these lengths, `true`: the packet goes on. Returns the packets' lengths.
    fn feed(pool: &mut FramePool, gathering: &mut Gathering, frames: &[(usize, bool)]) -> (Vec<usize>, u64) {
        let (mut packets, mut oversize) = (Vec::new(), 0);
        for (len, more) in frames {
            let frame = pool.take_with(&vec![7; *len]).unwrap();
            match gathering.add(pool, frame, *more) {
                Gathered::Packet(packet) => {
                    packets.push(packet.len());
                    pool.give(packet);
                }
                Gathered::Oversize => oversize += 1,
                Gathered::Part | Gathered::Rest => {}
            }
            pool.assert_conserved(gathering.held(), 0);
        }
        (packets, oversize)
    }

    #[test]
    fn frames_become_packets_whatever_call_they_come_in() {
        let (mut pool, mut gathering) = (pool(), Gathering::default());
        let (packets, oversize) = feed(&mut pool, &mut gathering, &[(60, false), (1792, true), (1792, true)]);
        assert_eq!((packets, oversize, gathering.held()), (vec![60], 0, 1));
        let (packets, oversize) = feed(&mut pool, &mut gathering, &[(100, false), (61, false)]);
        assert_eq!((packets, oversize, gathering.held()), (vec![3684, 61], 0, 0));
    }

    #[test]
    fn what_is_larger_than_any_packet_is_counted_once_and_its_rest_thrown_away() {
        let (mut pool, mut gathering) = (pool(), Gathering::default());
        let many: Vec<_> = (0..9).map(|at| (1792, at < 8)).chain([(60, false)]).collect();
        assert_eq!(feed(&mut pool, &mut gathering, &many), (vec![60], 1));
        // Of more frames than a chain may have, however short.
        let many: Vec<_> = (0..MOST_FRAMES + 3).map(|at| (20, at < MOST_FRAMES + 2)).chain([(60, false)]).collect();
        assert_eq!(feed(&mut pool, &mut gathering, &many), (vec![60], 1));
        pool.assert_conserved(0, 0);
    }

    proptest! {
        /// Frames of any length, marked as it comes, with some lost: none leaks.
        #[test]
        fn no_frame_leaks(steps in prop::collection::vec((14_usize..1792, any::<bool>(), 0_u8..10), 0..100)) {
            let (mut pool, mut gathering) = (pool(), Gathering::default());
            for (len, more, lost) in steps {
                if lost == 0 {
                    gathering.spoil(&mut pool, more);
                } else {
                    feed(&mut pool, &mut gathering, &[(len, more)]);
                }
                prop_assert_eq!(pool.missing(gathering.held(), 0), 0);
            }
        }
    }
}
