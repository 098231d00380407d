//! The last step of the long way: the tags of the network the packet leaves to.

use super::Pipeline;
use crate::io::{Frame, PacketMemory};
use crate::tables::Hop;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{ETHERNET_HEADER, Packet, Tags, tags};

impl Pipeline {
    /// Sends a packet whose headers are done to `hop`, in its tags.
    #[inline]
    pub(super) fn leave(&self, memory: &PacketMemory, frame: &mut Frame, packet: &Packet, hop: &Hop) -> Verdict {
        match hop.tags {
            None => Verdict::Tx(hop.port),
            Some(tags) if tags.is_empty() && usize::from(packet.l3) == ETHERNET_HEADER => Verdict::Tx(hop.port),
            Some(tags) => leave_in_tags(memory, frame, tags, hop),
        }
    }
}

#[inline(never)]
fn leave_in_tags(memory: &PacketMemory, frame: &mut Frame, to: Tags, hop: &Hop) -> Verdict {
    let len = memory.bytes(frame).len();
    if let Some(len) = tags::retag(memory.room_mut(frame), len, to) {
        memory.resize_first(frame, len);
        return Verdict::Tx(hop.port);
    }
    // The frame is full to its end: what comes before the tags moves into its headroom.
    let more = tags::growth(memory.bytes(frame), to);
    if !memory.grow_front(frame, more) {
        return Verdict::Drop(DropReason::TooBig);
    }
    tags::retag_in_front(memory.bytes_mut(frame), more, to);
    Verdict::Tx(hop.port)
}
