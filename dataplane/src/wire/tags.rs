//! VLAN tags (IEEE 802.1Q): read off a frame, and exchanged for others in place.

use super::{be16, put};

const TPIDS: [u16; 2] = [0x8100, 0x88a8];
/// Where the first tag, or the EtherType, stands: behind the addresses.
const TAGS_AT: usize = 12;
const TAG: usize = 4;
/// Priority and drop eligibility, beside the VLAN id.
const PRIORITY: u16 = 0xf000;

/// The tags of a frame, outermost first, without their priority: two networks' frames differ in them, two
/// packets of one flow do not. Each is its TPID and VLAN id as one number; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tags(pub [u32; 2]);

impl Tags {
    pub const NONE: Self = Self([0; 2]);

    /// One tag: its TPID and VLAN id.
    #[must_use]
    pub fn with(mut self, tpid: u16, id: u16) -> Self {
        let tag = u32::from(tpid) << 16 | u32::from(id & !PRIORITY);
        if let Some(free) = self.0.iter_mut().find(|tag| **tag == 0) {
            *free = tag;
        }
        self
    }

    /// Those of a frame whose headers have been read.
    #[inline]
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let mut tags = Self::NONE;
        for (at, tag) in tags.0.iter_mut().enumerate() {
            let at = TAGS_AT + TAG * at;
            if frame.len() < at + TAG || !TPIDS.contains(&be16(frame, at)) {
                break;
            }
            *tag = u32::from(be16(frame, at)) << 16 | u32::from(be16(frame, at + 2) & !PRIORITY);
        }
        tags
    }

    #[inline]
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0[0] == 0
    }

    #[must_use]
    pub fn count(self) -> usize {
        self.0.iter().take_while(|tag| **tag != 0).count()
    }
}

/// Exchanges the tags of the `len` bytes of frame at the start of `room`; a priority is kept as far as there
/// is a tag to keep it in. Returns the new length; `None`, and nothing done: there is no room.
pub fn retag(room: &mut [u8], len: usize, to: Tags) -> Option<usize> {
    let from = Tags::of(room.get(..len)?);
    if from == to {
        return Some(len);
    }
    let priorities = priorities(room, from);
    let (old, new) = (TAGS_AT + TAG * from.count(), TAGS_AT + TAG * to.count());
    let new_len = len - old + new;
    if new_len > room.len() {
        return None;
    }
    room.copy_within(old..len, new);
    write(room, to, priorities);
    Some(new_len)
}

/// Bytes by which tags longer than a frame's own make it longer.
#[must_use]
pub fn growth(frame: &[u8], to: Tags) -> usize {
    TAG * to.count().saturating_sub(Tags::of(frame).count())
}

/// [`retag`] where the frame cannot grow behind: the first `more` bytes ([`growth`]) are free.
pub fn retag_in_front(bytes: &mut [u8], more: usize, to: Tags) {
    let Some(frame) = bytes.get(more..) else { return };
    let from = Tags::of(frame);
    let priorities = priorities(frame, from);
    bytes.copy_within(more..more + TAGS_AT, 0);
    write(bytes, to, priorities);
}

fn priorities(frame: &[u8], tags: Tags) -> [u16; 2] {
    let mut priorities = [0; 2];
    for at in 0..tags.count() {
        // An inner tag that had none before gets that of the tag it was pushed under.
        priorities[at..].fill(be16(frame, TAGS_AT + TAG * at + 2) & PRIORITY);
    }
    priorities
}

fn write(frame: &mut [u8], to: Tags, priorities: [u16; 2]) {
    for (at, (tag, priority)) in to.0.iter().zip(priorities).take(to.count()).enumerate() {
        let tag = tag | u32::from(priority);
        put(frame, TAGS_AT + TAG * at, tag.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[[u8; 4]]) -> Vec<u8> {
        let mut frame: Vec<u8> = (1..=12).collect();
        frame.extend(tags.concat());
        frame.extend([8, 0, 0x45, 0, 0, 20]);
        frame
    }

    #[test]
    fn any_tags_become_any_others() {
        let none = Tags::NONE;
        let vlan = none.with(0x8100, 100);
        let qinq = none.with(0x88a8, 200).with(0x8100, 7);
        let bytes = [
            (none, frame(&[])),
            (vlan, frame(&[[0x81, 0, 0, 100]])),
            (qinq, frame(&[[0x88, 0xa8, 0, 200], [0x81, 0, 0, 7]])),
        ];
        for (from, before) in &bytes {
            assert_eq!(Tags::of(before), *from);
            for (to, after) in &bytes {
                let mut room = before.clone();
                room.resize(64, 0xff);
                let len = retag(&mut room, before.len(), *to).unwrap();
                assert_eq!(&room[..len], after, "{from:?} to {to:?}");
            }
        }
        let mut tight = frame(&[]);
        let len = tight.len();
        assert_eq!(retag(&mut tight, len, vlan), None);
        assert_eq!(tight, frame(&[]), "nothing done");
    }

    #[test]
    fn priority_is_kept_where_there_is_a_tag_for_it() {
        let mut room = frame(&[[0x81, 0, 0xa0, 5]]);
        let len = room.len();
        room.resize(64, 0);
        assert_eq!(Tags::of(&room), Tags::NONE.with(0x8100, 5), "priority does not tell networks apart");
        let len = retag(&mut room, len, Tags::NONE.with(0x88a8, 9).with(0x8100, 10)).unwrap();
        assert_eq!(&room[..len], frame(&[[0x88, 0xa8, 0xa0, 9], [0x81, 0, 0xa0, 10]]));
    }
}
