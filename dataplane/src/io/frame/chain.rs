//! Chains: packets larger than one frame.
//!
//! The kernel's multi-buffer AF_XDP gives and takes such a packet in several frames. Here it stays one
//! [`Frame`]: its first, marked, with the length of the whole packet. What the others are is written down beside
//! the memory, by frame number, and no other [`Frame`] names them, so that the chain has one owner as a
//! frame has, and goes where its first frame goes. All headers must lie in that first frame: the pipeline drops
//! what does not by name (`headers_split`).
//!
//! Accounts: whoever counts frames counts a chain as one, and the memory itself counts those behind the first
//! ([`FramePool::chained`]). A port that hands a chain to the kernel takes it apart
//! ([`PacketMemory::take_tail`]) and counts each frame.
#![allow(unsafe_code, reason = "frames are slices of one shared mapping; see PacketMemory")]

use super::{Frame, FramePool, PacketMemory};

/// In a frame's memory number: the packet goes on in another frame.
pub(super) const CHAIN: u16 = 1 << 15;

/// No frame.
pub(super) const NONE: u32 = u32::MAX;

/// Frames a chain may have. The kernel sends a packet of at most `MAX_SKB_FRAGS` (17 by default) descriptors.
pub const MOST_FRAMES: usize = 16;

/// What is known of a frame that is part of a chain.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// The frame behind it.
    next: u32,
    /// Where the packet's part in it starts.
    offset: u32,
    /// Bytes of packet in it.
    len: u16,
}

impl Default for Link {
    fn default() -> Self {
        Self { next: NONE, offset: 0, len: 0 }
    }
}

impl Frame {
    /// The packet is in several frames.
    #[must_use]
    #[inline]
    pub fn is_chain(&self) -> bool {
        self.memory & CHAIN != 0
    }
}

/// The parts of a packet, one per frame, in order.
pub struct Parts<'a> {
    memory: &'a PacketMemory,
    next: Option<Link>,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let Link { next, offset, len } = self.next.take()?;
        self.next = self.memory.link(next);
        // SAFETY: the range lies inside the mapping: it is a frame's (`check_chain`) or a link's, which was written
        // of one.
        let start = unsafe { self.memory.base.add(offset as usize) };
        // SAFETY: as above; the memory lives as long as `'a`, and the first frame of the chain, by which alone
        // the bytes can be reached, is borrowed: nobody writes to them meanwhile.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), usize::from(len)) })
    }
}

impl PacketMemory {
    fn link(&self, number: u32) -> Option<Link> {
        self.links.get(number as usize).map(std::cell::Cell::get)
    }

    fn link_of(&self, frame: &Frame) -> Link {
        self.links[self.number(frame)].get()
    }

    fn set_link(&self, number: usize, link: Link) {
        self.links[number].set(link);
    }

    /// [`PacketMemory::check`] of a frame whose number is not the memory's: a chain's first.
    #[cold]
    #[inline(never)]
    pub(super) fn check_chain(&self, frame: &Frame) -> usize {
        assert!(frame.memory == self.id | CHAIN, "a frame of another packet memory");
        usize::from(self.link_of(frame).len)
    }

    /// The packet, part by part.
    pub fn parts<'a>(&'a self, frame: &'a Frame) -> Parts<'a> {
        let len = self.check(frame) as u16;
        let next = if frame.is_chain() { self.link_of(frame).next } else { NONE };
        Parts { memory: self, next: Some(Link { next, offset: frame.offset, len }) }
    }

    fn links_of<'a>(&'a self, frame: &'a Frame) -> impl Iterator<Item = (u32, Link)> + 'a {
        let len = self.check(frame) as u16;
        let next = if frame.is_chain() { self.link_of(frame).next } else { NONE };
        let first = (self.number(frame) as u32, Link { next, offset: frame.offset, len });
        std::iter::successors(Some(first), |(_, link)| self.link(link.next).map(|behind| (link.next, behind)))
    }

    /// The frames a packet is in, by number, and how many bytes of it are in each.
    pub(in crate::io) fn places<'a>(&'a self, frame: &'a Frame) -> impl Iterator<Item = (usize, usize)> + 'a {
        self.links_of(frame).map(|(number, link)| (number as usize, usize::from(link.len)))
    }

    fn starts<'a>(&'a self, frame: &'a Frame) -> impl Iterator<Item = u32> + 'a {
        self.links_of(frame).map(|(_, link)| link.offset)
    }

    /// Frames the packet is in.
    #[must_use]
    pub fn frames_of(&self, frame: &Frame) -> usize {
        if frame.is_chain() { self.links_of(frame).count() } else { 1 }
    }

    /// Copies the packet to the front of `to`, as much of it as there is room for. Returns how much.
    pub fn copy_out(&self, frame: &Frame, to: &mut [u8]) -> usize {
        let mut at = 0;
        for part in self.parts(frame) {
            let len = part.len().min(to.len() - at);
            to[at..at + len].copy_from_slice(&part[..len]);
            at += len;
        }
        at
    }

    /// The packet goes on with `tail`, a frame or a chain. Given back: it would be longer than a packet can be,
    /// or in more frames.
    pub(in crate::io) fn append(&self, frame: &mut Frame, tail: Frame) -> Result<(), Frame> {
        let (first, tail_len) = (self.check(frame) as u16, self.check(&tail) as u16);
        let Some(whole) = frame.len.checked_add(tail.len) else { return Err(tail) };
        if self.frames_of(frame) + self.frames_of(&tail) > MOST_FRAMES {
            return Err(tail);
        }
        let number = self.number(&tail);
        let behind = if tail.is_chain() { self.link_of(&tail).next } else { NONE };
        self.set_link(number, Link { next: behind, offset: tail.offset, len: tail_len });
        if !frame.is_chain() {
            self.set_link(self.number(frame), Link { next: NONE, offset: frame.offset, len: first });
            frame.memory |= CHAIN;
        }
        let mut last = self.number(frame);
        while let Some(next) = Some(self.links[last].get().next).filter(|next| *next != NONE) {
            last = next as usize;
        }
        self.set_link(last, Link { next: number as u32, ..self.links[last].get() });
        frame.len = whole;
        self.chained.set(self.chained.get() + 1);
        Ok(())
    }

    /// Takes a chain apart: the frame is left with its own part, and the rest is a packet of its own.
    pub(in crate::io) fn take_tail(&self, frame: &mut Frame) -> Option<Frame> {
        if !frame.is_chain() {
            return None;
        }
        let len = self.check_chain(frame) as u16;
        let Link { next, .. } = self.link_of(frame);
        let rest = frame.len - len;
        frame.memory = self.id;
        frame.len = len;
        let Link { next: behind, offset, .. } = self.link(next)?;
        self.chained.set(self.chained.get() - 1);
        Some(Frame { offset, len: rest, memory: if behind == NONE { self.id } else { self.id | CHAIN } })
    }

    /// Cuts off what of the packet is in further frames. They wait for [`FramePool::collect`].
    #[inline]
    pub(super) fn cut(&self, frame: &mut Frame) {
        if frame.is_chain() {
            self.cut_chain(frame);
        }
    }

    #[cold]
    #[inline(never)]
    fn cut_chain(&self, frame: &mut Frame) {
        frame.len = self.check_chain(frame) as u16;
        frame.memory = self.id;
        let first = self.link_of(frame).next;
        let mut last = first;
        while let Some(Link { next, .. }) = self.link(last).filter(|link| link.next != NONE) {
            last = next;
        }
        if let Some(link) = self.link(last) {
            self.set_link(last as usize, Link { next: self.loose.get(), ..link });
            self.loose.set(first);
        }
    }

    /// What is in the packet's first frame now has `len` bytes from where it starts; what is in further frames
    /// stays behind it. False, and nothing changed: beyond the frame.
    pub fn resize_first(&self, frame: &mut Frame, len: usize) -> bool {
        let before = self.check(frame);
        let room = (self.number(frame) + 1) * self.frame_size() as usize - frame.offset as usize;
        let whole = u16::try_from(frame.len() - before + len);
        let (Ok(whole), Ok(short)) = (whole, u16::try_from(len)) else { return false };
        if len > room {
            return false;
        }
        self.set_first(frame, short, whole);
        true
    }

    /// Gives the packet `more` bytes in front, whatever they hold. False, and nothing changed: there are not as many.
    pub fn grow_front(&self, frame: &mut Frame, more: usize) -> bool {
        let before = self.check(frame);
        let start = self.number(frame) * self.frame_size() as usize;
        let (whole, short) = (u16::try_from(frame.len() + more), u16::try_from(before + more));
        let (Ok(whole), Ok(short)) = (whole, short) else { return false };
        if (frame.offset as usize) < start + more {
            return false;
        }
        frame.offset -= more as u32;
        self.set_first(frame, short, whole);
        true
    }

    fn set_first(&self, frame: &mut Frame, len: u16, whole: u16) {
        frame.len = whole;
        if frame.is_chain() {
            let link = self.link_of(frame);
            self.set_link(self.number(frame), Link { offset: frame.offset, len, ..link });
        }
    }
}

impl FramePool {
    /// Frames that are the second or a later one of a chain, wherever its first one is.
    #[must_use]
    #[inline]
    pub fn chained(&self) -> usize {
        self.memory.chained.get()
    }

    /// A packet in as many frames as it needs. `None`: there are not so many free, or it is too long for a chain.
    #[must_use = "a frame that is dropped is lost to its pool"]
    pub fn take_packet(&mut self, packet: &[u8]) -> Option<Frame> {
        if packet.len() <= self.memory.room() {
            return self.take_with(packet);
        }
        self.take_split(packet, self.memory.room())
    }

    /// A packet whose first frame has its first `first` bytes, and the others as much as they have room for.
    #[must_use = "a frame that is dropped is lost to its pool"]
    pub fn take_split(&mut self, packet: &[u8], first: usize) -> Option<Frame> {
        let room = self.memory.room();
        let (head, tail) = packet.split_at_checked(first.min(room))?;
        if 1 + tail.len().div_ceil(room) > MOST_FRAMES {
            return None;
        }
        let frame = self.take_with(head)?;
        self.extend(frame, tail)
    }

    /// The packet goes on with `tail`, in as many frames as that needs. `None`: there are not so many, and the packet
    /// is given up.
    pub(in crate::io) fn extend(&mut self, mut frame: Frame, tail: &[u8]) -> Option<Frame> {
        for part in tail.chunks(self.memory.room()) {
            let refused = match self.take_with(part) {
                Some(next) => self.memory.append(&mut frame, next).err(),
                None => {
                    self.give(frame);
                    return None;
                }
            };
            if let Some(next) = refused {
                self.give(next);
                self.give(frame);
                return None;
            }
        }
        Some(frame)
    }

    /// Brings every part of a packet to the start of its frame's room, where descriptors point. What does not fit
    /// there, of a packet that grew in front, goes into a frame of its own. False: there is none.
    pub(in crate::io) fn settle(&mut self, frame: &mut Frame) -> bool {
        let memory = &self.memory;
        let is_settled = memory.starts(frame).all(|start| start == memory.start_in(start));
        if is_settled {
            return true;
        }
        let mut rest = self.memory.take_tail(frame);
        let mut fits = self.spill(frame);
        while let Some(mut part) = rest {
            rest = self.memory.take_tail(&mut part);
            fits &= self.spill(&mut part);
            if let Err(part) = self.memory.append(frame, part) {
                self.give(part);
                fits = false;
            }
        }
        fits
    }

    /// [`Self::settle`] of a packet in one frame.
    fn spill(&mut self, frame: &mut Frame) -> bool {
        if self.memory.align(frame) {
            return true;
        }
        let Some(mut more) = self.take() else { return false };
        let room = self.memory.room();
        let over = &self.memory.bytes(frame)[room..];
        self.memory.set_len(&mut more, over.len());
        self.memory.bytes_mut(&mut more).copy_from_slice(over);
        self.memory.resize_first(frame, room);
        self.memory.align(frame);
        self.memory.append(frame, more).map_err(|more| self.give(more)).is_ok()
    }

    /// Frames cut off from chains are free again: to be called behind whatever may cut some.
    #[inline]
    pub fn collect(&mut self) {
        if self.memory.loose.get() != NONE {
            self.collect_loose();
        }
    }

    #[cold]
    #[inline(never)]
    fn collect_loose(&mut self) {
        let first = self.memory.loose.replace(NONE);
        self.give_links(first);
    }

    #[cold]
    #[inline(never)]
    pub(super) fn give_chain(&mut self, mut frame: Frame) {
        // From here on it is a frame by itself, of which nothing lies elsewhere.
        frame.len = self.memory.check_chain(&frame) as u16;
        let next = self.memory.link_of(&frame).next;
        frame.memory = self.memory.id;
        self.free.push(frame);
        self.give_links(next);
    }

    fn give_links(&mut self, mut number: u32) {
        while let Some(link) = self.memory.link(number) {
            if let Some(frame) = self.memory.reclaim(number as usize) {
                self.free.push(frame);
                self.memory.chained.set(self.memory.chained.get() - 1);
            }
            number = link.next;
        }
    }
}

#[cfg(test)]
mod tests;
