//! Packet memory and the ownership of its frames.
//!
//! A [`Frame`] is neither `Clone` nor `Copy` and can only be made by the pool of its memory, so a
//! frame is in exactly one place: the pool, a burst, a ring. That makes handing out `&mut [u8]` for
//! a frame sound, and lets tests count that none leaked.
#![allow(unsafe_code, reason = "frames are slices of one shared mapping; see PacketMemory")]

use std::ptr::NonNull;

/// One packet buffer, owned. `len` bytes of packet start `offset` bytes into the memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    offset: u32,
    len: u16,
}

impl Frame {
    /// Bytes of packet in the frame.
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

/// The mapping that frames are slices of. The owner of the mapping (an xsk-rs `Umem`, a boxed
/// slice) is kept alive by `keep`.
pub struct PacketMemory {
    base: NonNull<u8>,
    len: usize,
    frame_size: u32,
    headroom: u32,
    _keep: Box<dyn Send>,
}

// SAFETY: the mapping is plain memory, reached only through frames, each of which has one owner.
unsafe impl Send for PacketMemory {}

impl PacketMemory {
    /// Packet memory of `frames` frames of `frame_size` bytes on the heap: for ports without a kernel.
    #[must_use]
    pub fn heap(frames: u32, frame_size: u32, headroom: u32) -> Self {
        let len = frames as usize * frame_size as usize;
        let mut bytes = vec![0_u8; len].into_boxed_slice();
        let base = NonNull::new(bytes.as_mut_ptr()).unwrap_or(NonNull::dangling());
        // The box is moved, its heap block is not: `base` stays valid while `_keep` lives.
        Self { base, len, frame_size, headroom, _keep: Box::new(bytes) }
    }

    /// Packet memory over a mapping that `keep` owns.
    ///
    /// # Safety
    /// `base..base + len` must stay mapped and writable while `keep` lives, and nothing but frames
    /// of the returned memory (and the kernel, for frames given to it) may touch it.
    #[must_use]
    pub unsafe fn mapped(base: NonNull<u8>, len: usize, frame_size: u32, headroom: u32, keep: Box<dyn Send>) -> Self {
        Self { base, len, frame_size, headroom, _keep: keep }
    }

    #[must_use]
    pub fn frame_size(&self) -> u32 {
        self.frame_size
    }

    /// Bytes a packet may have in a frame.
    #[must_use]
    pub fn room(&self) -> usize {
        (self.frame_size - self.headroom) as usize
    }

    #[must_use]
    pub fn frame_count(&self) -> usize {
        self.len / self.frame_size as usize
    }

    /// The packet in the frame.
    #[must_use]
    #[inline]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.check(frame);
        // SAFETY: `check` proved the range to lie inside the mapping, which lives as long as `self`.
        let start = unsafe { self.base.add(frame.offset as usize) };
        // SAFETY: as above, and the frame is borrowed: nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), frame.len()) }
    }

    /// The packet in the frame, writable.
    #[must_use]
    #[inline]
    #[allow(clippy::mut_from_ref, reason = "the exclusive borrow is the frame's, which owns its bytes")]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.check(frame);
        // SAFETY: `check` proved the range to lie inside the mapping, which lives as long as `self`.
        let start = unsafe { self.base.add(frame.offset as usize) };
        // SAFETY: as above, and the frame, the only name of these bytes, is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), frame.len()) }
    }

    /// Resets the frame to `len` bytes of packet at the start of its room. What bytes it has then
    /// is left over from before. Returns false, and changes nothing, if there is no room for them.
    pub fn set_len(&self, frame: &mut Frame, len: usize) -> bool {
        if len > self.room() {
            return false;
        }
        frame.offset = frame.offset / self.frame_size * self.frame_size + self.headroom;
        frame.len = u16::try_from(len).unwrap_or(u16::MAX);
        true
    }

    /// A received descriptor as a frame. The caller (a port) vouches that the kernel gave the frame up.
    /// Returns `None` if the kernel's numbers point outside a frame of this memory.
    pub(in crate::io) fn adopt(&self, offset: u64, len: u32) -> Option<Frame> {
        let frame_size = u64::from(self.frame_size);
        let end = offset.checked_add(u64::from(len))?;
        let frame_end = (offset / frame_size + 1) * frame_size;
        if end > frame_end || frame_end > self.len as u64 {
            return None;
        }
        Some(Frame { offset: u32::try_from(offset).ok()?, len: u16::try_from(len).ok()? })
    }

    #[inline]
    fn check(&self, frame: &Frame) {
        assert!(frame.offset as usize + frame.len() <= self.len, "a frame of another packet memory");
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
        let frame_size = memory.frame_size;
        let count = u32::try_from(memory.frame_count()).unwrap_or(u32::MAX);
        let free = (0..count).map(|n| Frame { offset: n * frame_size + memory.headroom, len: 0 }).collect();
        Self { memory, free }
    }

    #[must_use]
    #[inline]
    pub fn memory(&self) -> &PacketMemory {
        &self.memory
    }

    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    #[inline]
    pub fn give(&mut self, frame: Frame) {
        self.free.push(frame);
    }

    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }
}
