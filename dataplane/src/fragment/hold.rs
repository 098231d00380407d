//! Frames that wait for their datagram's first fragment.

use std::collections::VecDeque;

use super::table::NONE;
use super::{Fate, WAITING};
use crate::io::{BURST, Frame};
use crate::verdict::PortId;

/// A frame no longer waiting: where it came in, and what becomes of it.
pub struct Waiting {
    pub frame: Frame,
    pub from: PortId,
    pub fate: Fate,
    pub v6: bool,
}

struct Slot {
    /// `None` for the rest of the burst in which the slot was taken: the worker has the frame until then.
    frame: Option<Frame>,
    from: PortId,
    fate: Fate,
    v6: bool,
    /// The datagram it waits for.
    datagram: u16,
    /// The next one that waits for it.
    behind: u16,
    older: u16,
    newer: u16,
}

/// Slots for frames; `WAITING` of them wait at most, and those a burst lets go are emptied behind it.
pub struct Holding {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    ready: VecDeque<u16>,
    waiting: usize,
    oldest: u16,
    newest: u16,
}

impl Default for Holding {
    fn default() -> Self {
        // A burst takes at most so many slots before the ones it frees are emptied.
        let count = WAITING + BURST;
        let blank = || Slot {
            frame: None,
            from: PortId(0),
            fate: Fate::Unknown,
            v6: false,
            datagram: NONE,
            behind: NONE,
            older: NONE,
            newer: NONE,
        };
        Self {
            slots: (0..count).map(|_| blank()).collect(),
            free: (0..count as u16).rev().collect(),
            ready: VecDeque::with_capacity(count),
            waiting: 0,
            oldest: NONE,
            newest: NONE,
        }
    }
}

impl Holding {
    /// The datagram (and whether it is IPv6) whose frames must go before one more can wait.
    #[must_use]
    pub fn overfull(&self) -> Option<(u16, bool)> {
        if self.waiting < WAITING {
            return None;
        }
        let oldest = self.slots.get(usize::from(self.oldest))?;
        Some((oldest.datagram, oldest.v6))
    }

    /// A slot for a frame that the worker is to [`Self::keep`]; `link` says which slot of the same
    /// datagram is behind it.
    pub fn take(&mut self, from: PortId, datagram: u16, v6: bool, link: impl FnOnce(u16) -> u16) -> Option<u16> {
        let at = self.free.pop()?;
        let behind = link(at);
        let older = self.newest;
        self.slots[usize::from(at)] =
            Slot { frame: None, from, fate: Fate::Unknown, v6, datagram, behind, older, newer: NONE };
        match older {
            NONE => self.oldest = at,
            older => self.slots[usize::from(older)].newer = at,
        }
        self.newest = at;
        self.waiting += 1;
        Some(at)
    }

    /// The frame of a slot. Given back: there is no such slot.
    #[must_use]
    pub fn keep(&mut self, slot: u16, frame: Frame) -> Option<Frame> {
        match self.slots.get_mut(usize::from(slot)) {
            Some(slot) if slot.frame.is_none() => {
                slot.frame = Some(frame);
                None
            }
            _ => Some(frame),
        }
    }

    /// Lets the frames that wait in `slot` and behind it go.
    pub fn release(&mut self, mut slot: u16, fate: Fate) {
        while slot != NONE {
            let Slot { behind, older, newer, .. } = self.slots[usize::from(slot)];
            match older {
                NONE => self.oldest = newer,
                older => self.slots[usize::from(older)].newer = newer,
            }
            match newer {
                NONE => self.newest = older,
                newer => self.slots[usize::from(newer)].older = older,
            }
            self.slots[usize::from(slot)].fate = fate;
            self.ready.push_back(slot);
            self.waiting -= 1;
            slot = behind;
        }
    }

    #[inline]
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next frame that waits no longer.
    pub fn take_ready(&mut self) -> Option<Waiting> {
        while let Some(at) = self.ready.pop_front() {
            let slot = &mut self.slots[usize::from(at)];
            let (frame, from, fate, v6) = (slot.frame.take(), slot.from, slot.fate, slot.v6);
            self.free.push(at);
            if let Some(frame) = frame {
                return Some(Waiting { frame, from, fate, v6 });
            }
        }
        None
    }

    /// Any frame at all, to empty the slots at the end.
    pub fn abandon(&mut self) -> Option<Frame> {
        self.slots.iter_mut().find_map(|slot| slot.frame.take())
    }

    /// Frames here.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.slots.iter().filter(|slot| slot.frame.is_some()).count()
    }
}
