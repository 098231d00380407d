//! The compiled hit. A packet's way has three lengths: a plain packet of an established connection, or of a flow of
//! datagrams, goes this one, at fixed offsets and without a branch that is ever taken twice differently; any other
//! packet of a known flow goes through [`Pipeline::transit`]; a packet of no flow on to `open`.
//!
//! Nothing is changed before everything is known to be plain, so a packet can always be sent the
//! long way instead, which is also what the tests compare this one with.

use super::Pipeline;
use super::side::{Parts, Sided};
use crate::clock::Now;
use crate::flow::{self, Direction, Entry, Record, Word};
use crate::tables::Tabled;
use crate::verdict::PortId;
use crate::wire::{self, PROTO_TCP, Plain, be32};

impl Pipeline {
    /// Sends a plain packet of the flow `entry` on; `None`: nothing was done, take the long way.
    #[inline(always)]
    pub(super) fn express<F: Sided + Tabled + Plain, const PROTOCOL: u8>(
        &mut self,
        bytes: &mut [u8],
        entry: Entry,
        from: PortId,
        now: Now,
    ) -> Option<PortId> {
        // The direction is known to the compiler in each: what is chosen by it costs nothing.
        match entry.direction {
            Direction::Forward => self.forward::<F, PROTOCOL>(bytes, entry.record, from, now),
            Direction::Reverse => self.reverse::<F, PROTOCOL>(bytes, entry.record, now),
        }
    }

    /// From the client to its node.
    #[inline(always)]
    fn forward<F: Sided + Tabled + Plain, const PROTOCOL: u8>(
        &mut self,
        bytes: &mut [u8],
        record: u32,
        from: PortId,
        now: Now,
    ) -> Option<PortId> {
        let epoch = self.epoch;
        let Parts { side, view, hops, .. } = F::parts(self);
        let (record, snats) = side.flows.hit(record)?;
        let (packet, bytes) = Hit::of::<F, PROTOCOL>(bytes, record, snats, epoch, Direction::Forward)?;
        let hop = view.node_hops.get(usize::from(record.node_slot))?.as_ref()?;
        // The client's last hop must be what it was.
        if packet.len > hop.plain_mtu.into() || !hops.is(record.hop, wire::bytes_at(bytes, 6), from) {
            return None;
        }
        record.forward_bytes = record.forward_bytes.saturating_add(packet.len);
        if PROTOCOL == PROTO_TCP {
            record.seen.client_expects = packet.expects;
        }
        packet.send::<F, PROTOCOL>(bytes, record, snats, Direction::Forward, now);
        wire::put(bytes, 0, hop.dst);
        wire::put(bytes, 6, hop.src);
        Some(hop.port)
    }

    /// From the node back.
    #[inline(always)]
    fn reverse<F: Sided + Tabled + Plain, const PROTOCOL: u8>(
        &mut self,
        bytes: &mut [u8],
        record: u32,
        now: Now,
    ) -> Option<PortId> {
        let epoch = self.epoch;
        let Parts { side, view, hops, .. } = F::parts(self);
        let (record, snats) = side.flows.hit(record)?;
        let (packet, bytes) = Hit::of::<F, PROTOCOL>(bytes, record, snats, epoch, Direction::Reverse)?;
        let (client, port) = hops.plain(record.hop)?;
        let out = view.ports.get(usize::from(port.0))?;
        if packet.len > out.mtu {
            return None;
        }
        record.reverse_bytes = record.reverse_bytes.saturating_add(packet.len);
        if PROTOCOL == PROTO_TCP {
            record.seen.node_expects = packet.expects;
        }
        packet.send::<F, PROTOCOL>(bytes, record, snats, Direction::Reverse, now);
        wire::put(bytes, 0, client);
        wire::put(bytes, 6, out.mac);
        Some(port)
    }
}

/// A plain packet of an established connection, or of a flow of datagrams.
struct Hit {
    word: Word,
    /// Bytes of IP packet.
    len: u32,
    /// What its sender expects next: by this a RST from the other end is judged (see `tcp::Positions`). Of TCP only.
    expects: u32,
}

impl Hit {
    /// The packet and its headers, if the record is that of its connection and needs no second look.
    #[inline(always)]
    fn of<'a, F: Plain, const PROTOCOL: u8>(
        bytes: &'a mut [u8],
        record: &Record<F::Addr>,
        snats: &[F::Addr],
        epoch: u16,
        direction: Direction,
    ) -> Option<(Self, &'a mut [u8])> {
        let bytes = bytes.get_mut(..F::room::<PROTOCOL>())?;
        let word = if PROTOCOL == PROTO_TCP { record.established()? } else { record.streaming(direction)? };
        let key = flow::key::<F>(record, word, direction, snats);
        if record.epoch != epoch || !key.is(&F::tuple(bytes, &F::headers::<PROTOCOL>(bytes))) {
            return None;
        }
        let expects = if PROTOCOL == PROTO_TCP { be32(bytes, F::L4 + 8) } else { 0 };
        let len = F::ip_len(bytes) as u32;
        Some((Self { word, len, expects }, bytes))
    }

    /// Counts it and gives it its new tuple.
    #[inline(always)]
    fn send<F: Plain, const PROTOCOL: u8>(
        &self,
        bytes: &mut [u8],
        record: &mut Record<F::Addr>,
        snats: &[F::Addr],
        direction: Direction,
        now: Now,
    ) {
        record.last_seen = now.tick().0;
        record.packets = record.packets.wrapping_add(1);
        let to = flow::translation::<F>(record, self.word, direction, snats);
        wire::rewrite::<F>(bytes, &F::headers::<PROTOCOL>(bytes), &to);
    }
}
