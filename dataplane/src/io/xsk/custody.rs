//! Which frames a socket has given to the kernel, and by which ring.
//!
//! What the kernel writes into the receive and completion rings is checked against this: a frame comes
//! back only if it was given, only once, and only from the side it was given to. So even a wrong
//! descriptor cannot make two owners of one frame.

use crate::io::{Frame, PacketMemory};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Place {
    /// Not with this socket.
    Elsewhere,
    /// In the fill ring, with the driver, or in the receive ring.
    Receive,
    /// In the transmit ring, with the driver, or in the completion ring.
    Transmit,
}

/// A returned frame whose descriptor was wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// The frame is ours again, what the descriptor said of its packet is not to be used.
    Recovered(Frame),
    /// The descriptor names no frame the socket gave away: nothing comes back.
    Unknown,
}

pub(super) struct Custody {
    /// By frame number.
    places: Box<[Place]>,
    receiving: usize,
    transmitting: usize,
}

impl Custody {
    pub(super) fn new(frames: usize) -> Self {
        Self { places: vec![Place::Elsewhere; frames].into(), receiving: 0, transmitting: 0 }
    }

    #[inline]
    pub(super) fn receiving(&self) -> usize {
        self.receiving
    }

    #[inline]
    pub(super) fn transmitting(&self) -> usize {
        self.transmitting
    }

    /// The frame goes into the fill ring. Returns its number.
    #[inline]
    pub(super) fn give_to_receive(&mut self, memory: &PacketMemory, frame: Frame) -> usize {
        let number = memory.surrender(frame);
        self.places[number] = Place::Receive;
        self.receiving += 1;
        number
    }

    /// The frame goes into the transmit ring.
    #[inline]
    pub(super) fn give_to_transmit(&mut self, memory: &PacketMemory, frame: Frame) {
        let number = memory.surrender(frame);
        self.places[number] = Place::Transmit;
        self.transmitting += 1;
    }

    /// A descriptor of the receive ring: `len` bytes of packet at `address`.
    #[inline]
    pub(super) fn received(&mut self, memory: &PacketMemory, address: usize, len: usize) -> Result<Frame, Bad> {
        let number = self.release(memory, address, Place::Receive)?;
        self.receiving -= 1;
        let packet = u32::try_from(len).ok().and_then(|len| memory.adopt(address as u64, len));
        packet.ok_or_else(|| memory.reclaim(number).map_or(Bad::Unknown, Bad::Recovered))
    }

    /// A descriptor of the completion ring.
    #[inline]
    pub(super) fn transmitted(&mut self, memory: &PacketMemory, address: usize) -> Result<Frame, Bad> {
        let number = self.release(memory, address, Place::Transmit)?;
        self.transmitting -= 1;
        memory.reclaim(number).ok_or(Bad::Unknown)
    }

    #[inline]
    fn release(&mut self, memory: &PacketMemory, address: usize, expected: Place) -> Result<usize, Bad> {
        let number = memory.number_at(address);
        match self.places.get_mut(number) {
            Some(place) if *place == expected => {
                *place = Place::Elsewhere;
                Ok(number)
            }
            _ => Err(Bad::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::FramePool;

    fn rig() -> (FramePool, Custody) {
        let pool = FramePool::new(PacketMemory::heap(8, 2048, 256));
        let custody = Custody::new(pool.frame_count());
        (pool, custody)
    }

    #[test]
    fn a_frame_comes_back_once_and_from_its_own_side() {
        let (mut pool, mut custody) = rig();
        let frame = pool.take().unwrap();
        let address = frame.offset() as usize;
        custody.give_to_receive(pool.memory(), frame);
        assert_eq!(custody.transmitted(pool.memory(), address), Err(Bad::Unknown));
        let frame = custody.received(pool.memory(), address, 60).unwrap();
        assert_eq!(frame.len(), 60);
        assert_eq!(custody.received(pool.memory(), address, 60), Err(Bad::Unknown), "a second name for the frame");
        pool.give(frame);
        pool.assert_conserved(custody.receiving() + custody.transmitting(), 0);
    }

    #[test]
    fn an_impossible_length_costs_the_packet_not_the_frame() {
        let (mut pool, mut custody) = rig();
        let frame = pool.take().unwrap();
        let address = frame.offset() as usize;
        custody.give_to_receive(pool.memory(), frame);
        let Err(Bad::Recovered(frame)) = custody.received(pool.memory(), address, 4000) else {
            panic!("4000 bytes fit no frame")
        };
        assert_eq!(frame.len(), 0);
        pool.give(frame);
        pool.assert_conserved(custody.receiving(), 0);
    }

    proptest! {
        /// Whatever the kernel writes, no frame is doubled and none vanishes from the books.
        #[test]
        fn hostile_descriptors_conserve_frames(
            steps in prop::collection::vec((0..4_u8, prop_oneof![0..10_usize * 2048, any::<usize>()], 0..5000_usize), 0..200),
        ) {
            let (mut pool, mut custody) = rig();
            for (step, address, len) in steps {
                match step {
                    0 => if let Some(frame) = pool.take() { custody.give_to_receive(pool.memory(), frame); },
                    1 => if let Some(frame) = pool.take() { custody.give_to_transmit(pool.memory(), frame); },
                    2 => match custody.received(pool.memory(), address, len) {
                        Ok(frame) | Err(Bad::Recovered(frame)) => pool.give(frame),
                        Err(Bad::Unknown) => {}
                    },
                    _ => match custody.transmitted(pool.memory(), address) {
                        Ok(frame) | Err(Bad::Recovered(frame)) => pool.give(frame),
                        Err(Bad::Unknown) => {}
                    },
                }
                prop_assert_eq!(pool.missing(custody.receiving() + custody.transmitting(), 0), 0);
            }
        }
    }
}
