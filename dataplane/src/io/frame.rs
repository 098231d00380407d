//! Packet memory and the ownership of its frames.
//!
//! A [`Frame`] is neither `Clone` nor `Copy`, can only be made by the pool of its memory and carries
//! that memory's number, so a frame is in exactly one place: the pool, a burst, a ring. That makes
//! handing out `&mut [u8]` for a frame sound, and lets tests count that none leaked.
//!
//! A packet larger than one frame is a chain of them, and one [`Frame`] in everybody's hands all the same: see
//! [`chain`].
#![allow(unsafe_code, reason = "frames are slices of one shared mapping; see PacketMemory")]

mod chain;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use chain::{CHAIN, Link, NONE};
pub use chain::{MOST_FRAMES, Parts};

/// One packet, owned: `len` bytes, which start `offset` bytes into the memory. All of them do, unless the packet
/// is a chain: then its first ones, the headers.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a frame that is dropped is lost to its pool: transmit it or give it back"]
pub struct Frame {
    offset: u32,
    len: u16,
    /// The memory it belongs to. Without it a frame of one pool, shown to another's memory, would
    /// be a second name for bytes that pool has lent out. With [`CHAIN`] in it, the packet goes on in other
    /// frames: no plain packet pays for that, as the number is compared anyway.
    memory: u16,
}

// Bursts and rings are arrays of these: eight to a cache line.
const _: () = assert!(size_of::<Frame>() == 8);

/// Numbers packet memories. Wraps after 32,768: a process has one per worker, a test run some thousands.
static MEMORIES: AtomicU16 = AtomicU16::new(0);

/// Page aligned, like a UMEM.
const HEAP_ALIGN: usize = 4096;

impl Frame {
    /// Bytes of packet, in all the frames it is in.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a frame is a buffer, not a collection")]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Where the packet starts, from the start of the memory: the address in an AF_XDP descriptor.
    #[must_use]
    pub fn offset(&self) -> u32 {
        self.offset
    }
}

/// The mapping that frames are slices of. The owner of the mapping (an xsk-rs `Umem`, a heap
/// block) is kept alive by `keep`.
pub struct PacketMemory {
    base: NonNull<u8>,
    len: usize,
    /// Frames are a power of two (2048 or 4096 bytes), so a frame is found by shifts, not divisions.
    frame_shift: u32,
    headroom: u32,
    id: u16,
    /// By frame number: what a frame of a chain is followed by.
    links: Box<[Cell<Link>]>,
    /// Frames that are the second or a later one of a chain.
    chained: Cell<usize>,
    /// Those of them that were cut off, for the pool to collect: the first one's number.
    loose: Cell<u32>,
    _keep: Box<dyn Send>,
}

// SAFETY: the mapping is plain memory, reached only through frames, each of which has one owner.
unsafe impl Send for PacketMemory {}

/// A heap block known by pointer only: a moved `Box` would claim its bytes for itself and so
/// invalidate the pointer that frames are made from.
struct HeapBlock {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the block is freed once, by whichever thread drops it; nothing else is reached through it.
unsafe impl Send for HeapBlock {}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: `dealloc` wants a block of the global allocator with the layout it was allocated
        // with, freed once: `heap` allocated it so, and this is its only owner.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl PacketMemory {
    /// Packet memory of `frames` frames of `frame_size` bytes on the heap: for ports without a kernel.
    ///
    /// # Panics
    /// On no frames at all, and as [`Self::mapped`].
    #[must_use]
    pub fn heap(frames: u32, frame_size: u32, headroom: u32) -> Self {
        let len = frames as usize * frame_size as usize;
        assert!(len > 0, "packet memory needs at least one frame");
        let layout = Layout::from_size_align(len, HEAP_ALIGN).expect("less than 4 GiB");
        // SAFETY: `alloc_zeroed` wants a layout of non-zero size: `len` was asserted.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(start) else { handle_alloc_error(layout) };
        let keep = Box::new(HeapBlock { start: base, layout });
        // SAFETY: `mapped` wants `len` writable bytes at `base` while `keep` lives, touched by nobody
        // else: just allocated, owned by `keep`, and the pointer is given to nothing else.
        unsafe { Self::mapped(base, len, frame_size, headroom, keep) }
    }

    /// Packet memory over a mapping that `keep` owns.
    ///
    /// # Safety
    /// `base..base + len` must stay mapped and writable while `keep` lives, and nothing but frames
    /// of the returned memory (and the kernel, for frames given to it) may touch it.
    ///
    /// # Panics
    /// If `frame_size` is no power of two, or so large that a packet's length would not fit a [`Frame`]'s
    /// 16 bits or an offset its 32, or if `headroom` leaves no room.
    #[must_use]
    pub unsafe fn mapped(base: NonNull<u8>, len: usize, frame_size: u32, headroom: u32, keep: Box<dyn Send>) -> Self {
        assert!(frame_size.is_power_of_two(), "frames of {frame_size} bytes: not a power of two");
        assert!(headroom < frame_size, "a headroom of {headroom} leaves no room in frames of {frame_size} bytes");
        assert!(frame_size - headroom <= u32::from(u16::MAX), "frames of {frame_size} bytes are beyond 64 KiB");
        assert!(u32::try_from(len).is_ok(), "packet memory of {len} bytes is beyond 4 GiB");
        let id = MEMORIES.fetch_add(1, Ordering::Relaxed) & !CHAIN;
        Self {
            base,
            len,
            frame_shift: frame_size.trailing_zeros(),
            headroom,
            id,
            links: vec![Cell::new(Link::default()); len / frame_size as usize].into(),
            chained: Cell::new(0),
            loose: Cell::new(NONE),
            _keep: keep,
        }
    }

    #[must_use]
    pub fn frame_size(&self) -> u32 {
        1 << self.frame_shift
    }

    /// Bytes a packet may have in a frame.
    #[must_use]
    pub fn room(&self) -> usize {
        (self.frame_size() - self.headroom) as usize
    }

    #[must_use]
    pub fn frame_count(&self) -> usize {
        self.len >> self.frame_shift
    }

    /// The packet in the frame; of a chain what is in its first frame, the headers among it.
    #[must_use]
    #[inline]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let len = self.check(frame);
        // SAFETY: `check` proved the range to lie inside the mapping, which lives as long as `self`.
        let start = unsafe { self.base.add(frame.offset as usize) };
        // SAFETY: as above, and the frame is borrowed: nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// [`Self::bytes`], writable.
    #[must_use]
    #[inline]
    #[allow(clippy::mut_from_ref, reason = "the exclusive borrow is the frame's, which owns its bytes")]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let len = self.check(frame);
        // SAFETY: `check` proved the range to lie inside the mapping, which lives as long as `self`.
        let start = unsafe { self.base.add(frame.offset as usize) };
        // SAFETY: as above, and the frame, the only name of these bytes, is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// Resets the frame to `len` bytes of packet at the start of its room. What bytes it has then
    /// is left over from before. Returns false, and changes nothing, if there is no room for them.
    pub fn set_len(&self, frame: &mut Frame, len: usize) -> bool {
        self.check(frame);
        let Ok(short) = u16::try_from(len) else { return false };
        if len > self.room() {
            return false;
        }
        self.cut(frame);
        frame.offset = self.start_of(frame);
        frame.len = short;
        true
    }

    /// The frame from where its packet starts to its end: for a packet that grows in place, followed
    /// by [`Self::resize`].
    #[must_use]
    #[allow(clippy::mut_from_ref, reason = "the exclusive borrow is the frame's, which owns its bytes")]
    pub fn room_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.check(frame);
        let end = (self.number(frame) + 1) * self.frame_size() as usize;
        // SAFETY: frames lie inside the mapping (see `check`), which lives as long as `self`.
        let start = unsafe { self.base.add(frame.offset as usize) };
        // SAFETY: the range ends with the frame, and the frame is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), end - frame.offset as usize) }
    }

    /// The packet now has `len` bytes from where it starts, and what was in further frames is no longer part of it.
    /// False, and nothing changed: beyond the frame.
    pub fn resize(&self, frame: &mut Frame, len: usize) -> bool {
        self.check(frame);
        let room = (self.number(frame) + 1) * self.frame_size() as usize - frame.offset as usize;
        let Ok(short) = u16::try_from(len) else { return false };
        if len > room {
            return false;
        }
        self.cut(frame);
        frame.len = short;
        true
    }

    /// Tells memories apart: a port over a UMEM serves the pool over that UMEM only.
    #[must_use]
    #[inline]
    pub(in crate::io) fn id(&self) -> u16 {
        self.id
    }

    /// The number of the frame that this offset lies in; there may be no such frame.
    #[must_use]
    #[inline]
    pub(in crate::io) fn number_at(&self, offset: usize) -> usize {
        offset >> self.frame_shift
    }

    /// Which of the memory's frames it is, counted from 0.
    #[must_use]
    #[inline]
    pub fn number(&self, frame: &Frame) -> usize {
        self.number_at(frame.offset as usize)
    }

    /// Where a packet set by [`Self::set_len`] starts in this frame.
    #[must_use]
    #[inline]
    pub(in crate::io) fn start_of(&self, frame: &Frame) -> u32 {
        self.start_in(frame.offset)
    }

    /// Where a packet starts in the frame that this offset lies in.
    #[inline]
    fn start_in(&self, offset: u32) -> u32 {
        (offset >> self.frame_shift << self.frame_shift) + self.headroom
    }

    /// Moves the packet to the start of its frame's room, unless it is there. False: it has no room there.
    pub(in crate::io) fn align(&self, frame: &mut Frame) -> bool {
        let start = self.start_of(frame);
        if frame.offset == start {
            return true;
        }
        let len = self.check(frame);
        if len > self.room() {
            return false;
        }
        // SAFETY: `add` wants the result inside the mapping: `check` says so of the packet where it is.
        let from = unsafe { self.base.add(frame.offset as usize) };
        // SAFETY: as above: `start` is the start of the frame's room, `room()` bytes from its end.
        let to = unsafe { self.base.add(start as usize) };
        // SAFETY: `copy` wants `len` bytes readable at `from` and writable at `to`, and may overlap: both
        // ranges lie in this frame, which is borrowed exclusively.
        unsafe { std::ptr::copy(from.as_ptr(), to.as_ptr(), len) };
        frame.offset = start;
        true
    }

    /// Gives the frame up to the kernel: only its number is left of it. A chain goes frame by frame
    /// ([`Self::take_tail`]).
    #[inline]
    #[allow(clippy::needless_pass_by_value, reason = "consuming the frame is what the method is for")]
    pub(in crate::io) fn surrender(&self, frame: Frame) -> usize {
        assert!(frame.memory == self.id, "a chain, or a frame of another packet memory");
        self.number(&frame)
    }

    /// The frame of this number, with no packet in it. The caller (a port) vouches that it owns the frame:
    /// it gave it to the kernel, and the kernel has given it up.
    pub(in crate::io) fn reclaim(&self, number: usize) -> Option<Frame> {
        if number >= self.frame_count() {
            return None;
        }
        let offset = (u32::try_from(number).ok()? << self.frame_shift) + self.headroom;
        Some(Frame { offset, len: 0, memory: self.id })
    }

    /// A received descriptor as a frame. The caller (a port) vouches that the kernel gave the frame up.
    /// Returns `None` if the kernel's numbers point outside a frame of this memory.
    pub(in crate::io) fn adopt(&self, offset: u64, len: u32) -> Option<Frame> {
        let end = offset.checked_add(u64::from(len))?;
        if offset >= self.len as u64 {
            return None;
        }
        let frame_end = ((offset >> self.frame_shift) + 1) << self.frame_shift;
        if end > frame_end || frame_end > self.len as u64 {
            return None;
        }
        Some(Frame { offset: u32::try_from(offset).ok()?, len: u16::try_from(len).ok()?, memory: self.id })
    }

    /// Frames of this memory lie inside it, by construction: [`Self::adopt`], [`Self::set_len`] and the
    /// pool make no others. So the number is what there is to check. Returns how many bytes of packet are in it.
    #[inline]
    fn check(&self, frame: &Frame) -> usize {
        if frame.memory == self.id {
            debug_assert!(frame.offset as usize + frame.len() <= self.len);
            return frame.len();
        }
        self.check_chain(frame)
    }
}

/// A worker's packet memory and its free frames, last used first: the warmest in the cache.
pub struct FramePool {
    memory: PacketMemory,
    free: Vec<Frame>,
}

impl FramePool {
    #[must_use]
    pub fn new(memory: PacketMemory) -> Self {
        // Downwards, so that the first frames taken are the first of the memory.
        let free = (0..memory.frame_count()).rev().filter_map(|number| memory.reclaim(number)).collect();
        Self { memory, free }
    }

    #[must_use]
    #[inline]
    pub fn memory(&self) -> &PacketMemory {
        &self.memory
    }

    #[must_use = "a frame that is dropped is lost to its pool"]
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// A frame with a copy of `packet`. `None`: no free frame, or no frame has room for it.
    #[must_use = "a frame that is dropped is lost to its pool"]
    pub fn take_with(&mut self, packet: &[u8]) -> Option<Frame> {
        if packet.len() > self.memory.room() {
            return None;
        }
        let mut frame = self.free.pop()?;
        self.memory.set_len(&mut frame, packet.len());
        self.memory.bytes_mut(&mut frame).copy_from_slice(packet);
        Some(frame)
    }

    /// Takes a frame back, with all that hangs on it. Never allocates: the list has had room for every frame
    /// from the start.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        if frame.memory != self.memory.id {
            return self.give_chain(frame);
        }
        debug_assert!(self.free.len() < self.memory.frame_count(), "more frames given than the memory has");
        self.free.push(frame);
    }

    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Frames there are, wherever they are now.
    #[must_use]
    pub fn frame_count(&self) -> usize {
        self.memory.frame_count()
    }

    /// Frames neither free, nor held by a port, nor in hand: 0, or something leaked. Below 0 something
    /// is counted twice. Of a chain in hand the first frame counts as such; the others are counted here.
    #[must_use]
    pub fn missing(&self, held: usize, in_hand: usize) -> isize {
        let known = self.free.len() + self.chained() + held + in_hand;
        self.frame_count().cast_signed() - known.cast_signed()
    }

    /// For tests, after every step: every frame is accounted for.
    ///
    /// # Panics
    /// If one is not.
    #[track_caller]
    pub fn assert_conserved(&self, held: usize, in_hand: usize) {
        let (free, chained, count) = (self.free.len(), self.chained(), self.frame_count());
        assert!(
            free + chained + held + in_hand == count,
            "{free} free + {chained} chained + {held} held + {in_hand} in hand of {count} frames"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADROOM: u32 = 256;

    fn pool(frames: u32) -> FramePool {
        FramePool::new(PacketMemory::heap(frames, 2048, HEADROOM))
    }

    #[test]
    fn adopts_only_what_lies_inside_one_frame() {
        let memory = PacketMemory::heap(4, 2048, HEADROOM);
        assert!(memory.adopt(256, 1792).is_some());
        assert!(memory.adopt(0, 2048).is_some());
        assert!(memory.adopt(3 * 2048 + 256, 1792).is_some());
        assert!(memory.adopt(256, 1793).is_none(), "runs into the next frame");
        assert!(memory.adopt(4 * 2048, 0).is_none(), "beyond the memory");
        assert!(memory.adopt(4 * 2048 - 1, 2).is_none(), "ends beyond the memory");
        assert!(memory.adopt(u64::MAX, 1).is_none());
        assert!(memory.adopt(u64::MAX - 4096, u32::MAX).is_none());
    }

    #[test]
    fn set_len_goes_back_to_the_start_and_refuses_too_much() {
        let memory = PacketMemory::heap(4, 2048, HEADROOM);
        let mut frame = memory.adopt(2048 + 300, 100).unwrap();
        assert!(!memory.set_len(&mut frame, 1793));
        assert_eq!((frame.offset(), frame.len()), (2048 + 300, 100));
        assert!(memory.set_len(&mut frame, 1792));
        assert_eq!((frame.offset(), frame.len()), (2048 + 256, 1792));
    }

    #[test]
    fn align_moves_a_packet_that_starts_elsewhere() {
        let memory = PacketMemory::heap(2, 2048, HEADROOM);
        let mut frame = memory.adopt(2048 + 300, 100).unwrap();
        for (n, byte) in (0..).zip(memory.bytes_mut(&mut frame)) {
            *byte = n;
        }
        assert!(memory.align(&mut frame));
        assert_eq!(frame.offset(), 2048 + HEADROOM);
        assert!(memory.bytes(&frame).iter().copied().eq(0..100));
        let mut whole = memory.adopt(0, 2048).unwrap();
        assert!(!memory.align(&mut whole), "2048 bytes do not fit behind the headroom");
        assert_eq!(memory.surrender(whole), 0);
        assert_eq!(memory.reclaim(1).map(|frame| frame.offset()), Some(2048 + HEADROOM));
        assert!(memory.reclaim(2).is_none());
    }

    #[test]
    fn frames_do_not_overlap_and_survive_a_move_of_the_pool() {
        let mut pool = Box::new(pool(8));
        let frames: Vec<Frame> = (0..8_u8).map(|n| pool.take_with(&[n; 1792]).unwrap()).collect();
        assert!(pool.take().is_none());
        let mut pool = *pool;
        for (n, frame) in (0..8_u8).zip(frames) {
            assert!(pool.memory().bytes(&frame).iter().all(|&byte| byte == n));
            pool.give(frame);
        }
        pool.assert_conserved(0, 0);
    }

    #[test]
    #[should_panic(expected = "another packet memory")]
    fn a_frame_of_another_memory_opens_nothing() {
        let (mut one, other) = (pool(2), pool(2));
        let frame = one.take().unwrap();
        let _ = other.memory().bytes(&frame);
    }

    #[test]
    fn a_lost_frame_is_missed() {
        let mut pool = pool(4);
        let lost = pool.take();
        assert_eq!(pool.missing(0, usize::from(lost.is_some())), 0);
        assert_eq!(pool.missing(0, 0), 1);
    }
}
