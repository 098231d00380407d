//! The compiled hit. A packet's way has three lengths: a plain packet of an established connection
//! goes this one, at fixed offsets and without a branch that is ever taken twice differently; any other
//! packet of a known flow goes through [`Pipeline::transit`]; a packet of no flow on to `open`.
//!
//! Nothing is changed before everything is known to be plain, so a packet can always be sent the
//! long way instead, which is also what the tests compare this one with.

use super::Pipeline;
use super::side::Sided;
use crate::clock::Now;
use crate::flow::{Direction, Entry};
use crate::tables::Tabled;
use crate::verdict::PortId;
use crate::wire::{self, Plain, be32};

impl Pipeline {
    /// Sends a plain packet of the flow `entry` on; `None`: nothing was done, take the long way.
    #[inline(always)]
    pub(super) fn express<F: Sided + Tabled + Plain>(
        &mut self,
        bytes: &mut [u8],
        entry: Entry,
        from: PortId,
        now: Now,
    ) -> Option<PortId> {
        let bytes = bytes.get_mut(..F::HEADERS)?;
        let packet = F::headers(bytes);
        let len = F::ip_len(bytes) as u32;
        let flows = &F::side(self).flows;
        let record = flows.record(entry.record);
        let word = record.established()?;
        if record.epoch != self.epoch || !flows.names(entry, word, &F::tuple(bytes, &packet)) {
            return None;
        }
        let Short { port, dst, src, mtu } = self.express_hop::<F>(entry, bytes, from)?;
        if len > mtu {
            return None;
        }
        let side = F::side_mut(self);
        let to = side.translation(entry, word);
        let record = side.flows.record_mut(entry.record);
        record.last_seen = now.tick().0;
        record.packets = record.packets.wrapping_add(1);
        let (bytes_so_far, expects) = match entry.direction {
            Direction::Forward => (&mut record.forward_bytes, &mut record.seen.client_expects),
            Direction::Reverse => (&mut record.reverse_bytes, &mut record.seen.node_expects),
        };
        *bytes_so_far = bytes_so_far.saturating_add(len);
        // What its sender expects next: by this a RST from the other end is judged (see `tcp::Positions`).
        *expects = be32(bytes, F::L4 + 8);
        wire::rewrite::<F>(bytes, &packet, &to);
        wire::rewrite::set_macs(bytes, dst, src);
        Some(port)
    }

    /// The next hop, if it is known and the client's last hop is what it was.
    #[inline(always)]
    fn express_hop<F: Sided + Tabled>(&self, entry: Entry, bytes: &[u8], from: PortId) -> Option<Short> {
        let record = F::side(self).flows.record(entry.record);
        match entry.direction {
            Direction::Forward => {
                if !self.hops.is(record.hop, wire::bytes_at(bytes, 6), from) {
                    return None;
                }
                let hop = self.view.node_hops.get(usize::from(record.node_slot))?.as_ref()?;
                Some(Short { port: hop.port, dst: hop.dst, src: hop.src, mtu: hop.plain_mtu.into() })
            }
            Direction::Reverse => {
                let (dst, port) = self.hops.plain(record.hop)?;
                let view = self.view.ports.get(usize::from(port.0))?;
                Some(Short { port, dst, src: view.mac, mtu: view.mtu })
            }
        }
    }
}

/// Of a [`Hop`](crate::tables::Hop) what the short way needs: four registers, where the whole would be copied.
struct Short {
    port: PortId,
    dst: [u8; 6],
    src: [u8; 6],
    mtu: u32,
}
