//! Whatever is done to chains, every frame of the memory is in one place, and the packet's bytes are what they were.

#![allow(clippy::collapsible_match, reason = "a guard could not change what it looks at")]

use proptest::prelude::*;

use super::*;

const FRAMES: u32 = 24;
const ROOM: usize = 1792;

fn pool() -> FramePool {
    FramePool::new(PacketMemory::heap(FRAMES, 2048, 256))
}

fn packet(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

fn read(pool: &FramePool, frame: &Frame) -> Vec<u8> {
    pool.memory().parts(frame).flatten().copied().collect()
}

#[test]
fn a_packet_is_one_frame_or_as_many_as_it_needs() {
    let mut pool = pool();
    for (len, frames) in [(60, 1), (ROOM, 1), (ROOM + 1, 2), (2 * ROOM, 2), (9018, 6)] {
        let bytes = packet(len);
        let frame = pool.take_packet(&bytes).unwrap();
        assert_eq!((frame.len(), pool.memory().frames_of(&frame), frame.is_chain()), (len, frames, frames > 1));
        assert_eq!(pool.memory().bytes(&frame), &bytes[..len.min(ROOM)]);
        assert_eq!(read(&pool, &frame), bytes);
        let mut out = vec![0; len];
        assert_eq!((pool.memory().copy_out(&frame, &mut out), &out), (len, &bytes));
        assert_eq!(pool.chained(), frames - 1);
        pool.assert_conserved(0, 1);
        pool.give(frame);
        pool.assert_conserved(0, 0);
    }
    assert!(pool.take_packet(&packet(ROOM * MOST_FRAMES + 1)).is_none(), "of more frames than the kernel sends");
    let most = pool.take_packet(&packet(ROOM * 12)).unwrap();
    assert!(pool.take_packet(&packet(ROOM * 13)).is_none(), "the frames are used up");
    pool.assert_conserved(0, 1);
    pool.give(most);
    pool.assert_conserved(0, 0);
}

#[test]
fn what_is_cut_off_is_free_again() {
    let mut pool = pool();
    for cut in [PacketMemory::set_len, PacketMemory::resize] {
        let mut frames: Vec<Frame> = (0..3).map(|_| pool.take_packet(&packet(5000)).unwrap()).collect();
        assert_eq!(pool.free_count(), FRAMES as usize - 9);
        for frame in &mut frames {
            assert!(!cut(pool.memory(), frame, ROOM + 1) && frame.len() == 5000, "nothing changed");
            assert!(cut(pool.memory(), frame, 60));
            assert_eq!((frame.len(), frame.is_chain()), (60, false));
        }
        pool.assert_conserved(0, 3);
        pool.collect();
        assert_eq!((pool.chained(), pool.free_count()), (0, FRAMES as usize - 3));
        frames.into_iter().for_each(|frame| pool.give(frame));
        pool.assert_conserved(0, 0);
    }
}

#[test]
fn the_first_part_grows_and_shrinks_before_the_others() {
    let mut pool = pool();
    let bytes = packet(4000);
    let mut frame = pool.take_packet(&bytes).unwrap();
    assert!(!pool.memory().resize_first(&mut frame, ROOM + 1));
    assert!(pool.memory().resize_first(&mut frame, ROOM - 8));
    assert_eq!(read(&pool, &frame), [&bytes[..ROOM - 8], &bytes[ROOM..]].concat());
    assert!(pool.memory().resize_first(&mut frame, ROOM) && pool.memory().grow_front(&mut frame, 256));
    assert!(!pool.memory().grow_front(&mut frame, 1), "into the frame before");
    assert_eq!(frame.len(), 4256);
    assert_eq!(read(&pool, &frame)[256..], bytes);
    pool.memory().bytes_mut(&mut frame)[..256].fill(9);
    // To where descriptors point: a frame more for what does not fit there.
    assert!(pool.settle(&mut frame));
    assert_eq!(pool.memory().places(&frame).map(|(_, len)| len).collect::<Vec<_>>(), [ROOM, 256, ROOM, 416]);
    assert_eq!(read(&pool, &frame), [&[9; 256][..], &bytes].concat());
    assert!(pool.memory().starts(&frame).all(|start| start % 2048 == 256));
    pool.assert_conserved(0, 1);
    pool.give(frame);
    let mut full = pool.take_packet(&packet(ROOM)).unwrap();
    assert!(pool.memory().grow_front(&mut full, 4) && pool.settle(&mut full));
    assert_eq!(pool.memory().places(&full).map(|(_, len)| len).collect::<Vec<_>>(), [ROOM, 4]);
    pool.give(full);
    pool.assert_conserved(0, 0);
}

#[test]
fn a_chain_is_taken_apart_and_put_together() {
    let mut pool = pool();
    let bytes = packet(6000);
    let mut frame = pool.take_split(&bytes, 100).unwrap();
    let mut parts = Vec::new();
    while let Some(tail) = pool.memory().take_tail(&mut frame) {
        assert_eq!(frame.len(), pool.memory().bytes(&frame).len());
        parts.push(std::mem::replace(&mut frame, tail));
    }
    parts.push(frame);
    assert_eq!(parts.iter().map(Frame::len).collect::<Vec<_>>(), [100, ROOM, ROOM, ROOM, 6000 - 100 - 3 * ROOM]);
    pool.assert_conserved(0, parts.len());
    // From behind: a chain appended is a chain too.
    let mut whole = parts.pop().unwrap();
    while let Some(mut before) = parts.pop() {
        pool.memory().append(&mut before, whole).unwrap();
        whole = before;
        pool.assert_conserved(0, 1 + parts.len());
    }
    assert_eq!(read(&pool, &whole), bytes);
    pool.give(whole);
    pool.assert_conserved(0, 0);
}

#[test]
#[should_panic(expected = "another packet memory")]
fn a_chain_of_another_memory_opens_nothing() {
    let (mut one, other) = (pool(), pool());
    let frame = one.take_packet(&packet(5000)).unwrap();
    let _ = other.memory().bytes(&frame);
}

proptest! {
    /// Packets taken, cut, grown, settled, taken apart, given back, in any order.
    #[test]
    fn no_frame_leaks(steps in prop::collection::vec((0_u8..8, 0_usize..9300, any::<usize>()), 0..200)) {
        let mut pool = pool();
        let mut hands: Vec<(Frame, Vec<u8>)> = Vec::new();
        for (step, len, which) in steps {
            let at = which % hands.len().max(1);
            match (step, hands.get_mut(at)) {
                (0 | 1, _) => {
                    let bytes = packet(len);
                    let first = 14 + which % ROOM;
                    let taken = if step == 0 { pool.take_packet(&bytes) } else { pool.take_split(&bytes, first.min(len)) };
                    hands.extend(taken.map(|frame| (frame, bytes)));
                }
                (2, Some((frame, bytes))) => {
                    if pool.memory().resize(frame, len % 100) {
                        *bytes = pool.memory().bytes(frame).to_vec();
                    }
                }
                (3, Some((frame, bytes))) => {
                    if pool.memory().grow_front(frame, len % 9) {
                        bytes.splice(..0, pool.memory().bytes(frame)[..len % 9].to_vec());
                    }
                }
                (4, Some((frame, bytes))) => {
                    // Without a free frame the packet is spoilt, and given back by whoever wanted it settled.
                    if !pool.settle(frame) {
                        *bytes = read(&pool, frame);
                    }
                }
                (5, Some(_)) => {
                    let (mut frame, mut bytes) = hands.swap_remove(at);
                    if let Some(tail) = pool.memory().take_tail(&mut frame) {
                        let rest = bytes.split_off(frame.len());
                        hands.push((tail, rest));
                    }
                    hands.push((frame, bytes));
                }
                (6, _) => pool.collect(),
                (7, Some(_)) => pool.give(hands.swap_remove(at).0),
                _ => {}
            }
            prop_assert_eq!(pool.missing(0, hands.len()), 0);
            for (frame, bytes) in &hands {
                prop_assert_eq!(&read(&pool, frame), bytes);
                prop_assert_eq!(frame.len(), bytes.len());
            }
        }
        hands.into_iter().for_each(|(frame, _)| pool.give(frame));
        pool.collect();
        prop_assert_eq!((pool.free_count(), pool.chained()), (FRAMES as usize, 0));
    }
}
