//! Fragments on the packet path: gathered, held until the first one has come, translated like it. The
//! scheme is [`crate::fragment`]'s.

use super::side::{self, Sided};
use super::{Pipeline, parse};
use crate::clock::Now;
use crate::flow::Direction;
use crate::fragment::{self, Added, Datagrams, Fate, Piece, TIMEOUT_NS, Waiting, set_identification};
use crate::handoff::Note;
use crate::io::{Frame, PacketMemory};
use crate::tables::{Hop, Local, Tabled};
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::{self, PROTO_SCTP, PROTO_TCP, PROTO_UDP, Packet, Parsed, Transport, Tuple, V4, V6, be16};

/// Datagrams forgotten per call of upkeep at most.
const EXPIRED_AT_ONCE: usize = 64;

/// A frame that no longer waits, and where it goes.
pub struct Released {
    pub frame: Frame,
    pub from: PortId,
    pub verdict: Verdict,
}

/// Where a fragment came from.
#[derive(Clone, Copy)]
struct Arrival {
    from: PortId,
    handed: bool,
    now: Now,
}

impl Pipeline {
    /// A fragment, first or not.
    #[inline(never)]
    pub(super) fn fragment<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        from: PortId,
        handed: bool,
        now: Now,
    ) -> Verdict {
        match self.gather::<F>(memory, frame, packet, Arrival { from, handed, now }) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn gather<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        arrival: Arrival,
    ) -> Result<Verdict, DropReason> {
        let bytes = memory.bytes(frame);
        let Tuple { src, dst, .. } = F::tuple(bytes, packet);
        let tables = &self.view.tables;
        let local = F::tables(tables).locals.get(&dst).copied();
        match local {
            // Steered here for its source: perhaps a reply of a `dnat` backend.
            None if !tables.has_dnat => return Ok(Verdict::Kernel),
            Some(Local::Snat { id }) if side::is_shared(tables, F::V6, id) => return Ok(Verdict::Kernel),
            _ => {}
        }
        if !matches!(packet.protocol, PROTO_TCP | PROTO_UDP | PROTO_SCTP) {
            return local.map_or(Ok(Verdict::Kernel), |_| Err(DropReason::UnsupportedProtocol));
        }
        match local {
            Some(Local::Vip { .. }) => side::check_client_of::<F>(tables, src)?,
            _ => side::check_source_of::<F>(tables, src)?,
        }
        let piece = Piece::read(bytes, packet)?;
        let key = fragment::key(src, dst, piece.identification, packet.protocol);
        let gatherer = fragment::gatherer::<F>(&key, self.workers);
        if gatherer != self.worker && !arrival.handed {
            return Ok(Verdict::Handoff(gatherer));
        }
        // Handed here by the gatherer: the flow is ours, and so the first fragment's verdict is final.
        let owned = gatherer != self.worker;
        let at = self.datagram::<F>(&key, &piece, owned, arrival.now)?;
        let known = F::side(self).datagrams.fate(at);
        if let Fate::Refused(reason) = known {
            return Err(reason);
        }
        match F::side_mut(self).datagrams.add(at, &piece) {
            Added::New => {}
            // Back from the worker that was asked about it.
            Added::Copy if piece.is_first() && F::side(self).note != Note::Flow => {}
            Added::Copy => return Err(DropReason::FragmentCopy),
            Added::Overlap => return Err(self.give_up::<F>(at, DropReason::FragmentOverlap)),
            Added::TooMany => return Err(self.give_up::<F>(at, DropReason::FragmentLimit)),
        }
        let waits = match known {
            Fate::Unknown if packet.protocol == PROTO_SCTP => self.await_length::<F>(at, &piece, arrival.from),
            _ => None,
        };
        let verdict = if let Some(verdict) = waits {
            verdict
        } else if piece.is_first() {
            self.first::<F>(memory, frame, packet, at, Arrival { handed: owned, ..arrival })
        } else {
            match known {
                Fate::Unknown => self.wait::<F>(at, arrival.from),
                fate => self.follow::<F>(memory, frame, packet, fate, arrival.from, arrival.now),
            }
        };
        let datagrams = &mut F::side_mut(self).datagrams;
        if datagrams.is_complete(at) && !matches!(datagrams.fate(at), Fate::Unknown) {
            datagrams.remove(at);
        }
        Ok(verdict)
    }

    /// The datagram a fragment belongs to; a new one if need be, for which the oldest makes room.
    fn datagram<F: Sided>(
        &mut self,
        key: &Tuple<F::Addr>,
        piece: &Piece,
        owned: bool,
        now: Now,
    ) -> Result<u16, DropReason> {
        let side = F::side_mut(self);
        let hash = side.flows.hash(key);
        if let Some(at) = side.datagrams.find(key, hash) {
            return Ok(at);
        }
        if owned && !piece.is_first() {
            return Err(DropReason::FragmentOrphan);
        }
        if let Some(at) = side.datagrams.insert(key, hash, now) {
            return Ok(at);
        }
        if let Some(oldest) = side.datagrams.oldest() {
            self.forget::<F>(oldest, DropReason::FragmentLimit);
        }
        F::side_mut(self).datagrams.insert(key, hash, now).ok_or(DropReason::FragmentLimit)
    }

    /// The first fragment: a packet with ports like any other, whose verdict is the datagram's.
    fn first<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        at: u16,
        arrival: Arrival,
    ) -> Verdict {
        let Arrival { from, handed, now } = arrival;
        let bytes = memory.bytes(frame);
        let whole = match as_transport(bytes, packet) {
            Ok(whole) => whole,
            Err(reason) => return Verdict::Drop(self.give_up::<F>(at, reason)),
        };
        let tuple = F::tuple(bytes, &whole);
        let came_with = wire::sctp::checksum(bytes, usize::from(packet.l4));
        let hash = F::side(self).flows.hash(&tuple);
        let verdict = self.transit::<F>(memory, frame, whole, hash, None, from, handed, now);
        let fate = match (verdict, fragment_in(memory, frame)) {
            (Verdict::Tx(_), Some(sent)) => {
                let identification = self.identifications.take(if F::V6 { 32 } else { 16 });
                let bytes = memory.bytes_mut(frame);
                set_identification(bytes, &sent, identification);
                if whole.transport == Transport::Sctp {
                    let all = F::side(self).datagrams.total(at).map_or(0, usize::from);
                    let more = all.saturating_sub(usize::from(packet.end - packet.l4));
                    wire::sctp::lengthen(bytes, usize::from(sent.l4), came_with, more);
                }
                Fate::Flow { src_port: tuple.src_port, dst_port: tuple.dst_port, identification }
            }
            // An answer took its place.
            (Verdict::Tx(_), None) => Fate::Refused(self.answered),
            // It will be back, and known then; the rest waits.
            (Verdict::Ask(_), _) => return verdict,
            (Verdict::Handoff(owner), _) => Fate::Handoff(owner),
            (Verdict::Kernel, _) => Fate::Kernel,
            (Verdict::Drop(reason), _) => Fate::Refused(reason),
            (Verdict::Held(_), _) => Fate::Refused(DropReason::FragmentLimit),
        };
        self.settle_datagram::<F>(at, fate);
        verdict
    }

    /// A later fragment before the first: it waits, if need be in place of those that wait longest.
    pub(super) fn wait<F: Sided>(&mut self, at: u16, from: PortId) -> Verdict {
        self.hold::<F>(at, from, Datagrams::wait)
    }

    /// The first one, where it waits for the datagram's length.
    pub(super) fn hold_first<F: Sided>(&mut self, at: u16, from: PortId) -> Verdict {
        self.hold::<F>(at, from, Datagrams::hold_first)
    }

    /// It waits no longer if the length is known.
    pub(super) fn release_first<F: Sided>(&mut self, at: u16) {
        let (holding, datagrams) = F::held(self);
        if datagrams.total(at).is_some() {
            holding.release(datagrams.take_first(at), Fate::Sized);
        }
    }

    fn hold<F: Sided>(
        &mut self,
        at: u16,
        from: PortId,
        place: impl FnOnce(&mut Datagrams<F::Addr>, u16, u16) -> u16,
    ) -> Verdict {
        if let Some((oldest, v6)) = self.holding.overfull() {
            if v6 {
                self.give_up::<V6>(oldest, DropReason::FragmentLimit);
            } else {
                self.give_up::<V4>(oldest, DropReason::FragmentLimit);
            }
            // It may have been this one's own datagram.
            if let Fate::Refused(reason) = F::side(self).datagrams.fate(at) {
                return Verdict::Drop(reason);
            }
        }
        let (holding, datagrams) = F::held(self);
        match holding.take(from, at, F::V6, |slot| place(datagrams, at, slot)) {
            Some(slot) => Verdict::Held(slot),
            None => Verdict::Drop(DropReason::FragmentLimit),
        }
    }

    /// A later fragment, after the first.
    fn follow<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        fate: Fate,
        from: PortId,
        now: Now,
    ) -> Verdict {
        match fate {
            Fate::Flow { src_port, dst_port, identification } => {
                let bytes = memory.bytes_mut(frame);
                let tuple = Tuple { src_port, dst_port, ..F::tuple(bytes, packet) };
                match self.pass_later::<F>(bytes, packet, &tuple, identification, from, now) {
                    Ok(hop) => self.leave(memory, frame, packet, &hop),
                    Err(reason) => Verdict::Drop(reason),
                }
            }
            Fate::Handoff(owner) => Verdict::Handoff(owner),
            Fate::Kernel => Verdict::Kernel,
            Fate::Refused(reason) => Verdict::Drop(reason),
            Fate::Unknown | Fate::Sized => Verdict::Drop(DropReason::FragmentOrphan),
        }
    }

    /// [`Self::first`] of a packet whose length is known, and what becomes of its datagram.
    #[allow(clippy::too_many_arguments, reason = "an arrival, put together from what was kept of it")]
    pub(super) fn first_sized<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        at: u16,
        from: PortId,
        handed: bool,
        now: Now,
    ) -> Verdict {
        let verdict = self.first::<F>(memory, frame, packet, at, Arrival { from, handed, now });
        let datagrams = &mut F::side_mut(self).datagrams;
        if datagrams.is_complete(at) {
            datagrams.remove(at);
        }
        verdict
    }

    /// Sends a later fragment the way of its flow. No error is ever sent about one.
    fn pass_later<F: Sided + Tabled>(
        &mut self,
        bytes: &mut [u8],
        packet: &Packet,
        tuple: &Tuple<F::Addr>,
        identification: u32,
        from: PortId,
        now: Now,
    ) -> Result<Hop, DropReason> {
        let l3 = usize::from(packet.l3);
        let flows = &F::side(self).flows;
        let entry = flows.find(tuple, flows.hash(tuple)).ok_or(DropReason::NoFlow)?;
        if !self.is_current::<F>(entry.record) {
            return Err(DropReason::FlowRevoked);
        }
        if F::ttl(bytes, l3) <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        let hop = self.next_hop::<F>(entry, bytes, from)?;
        let len = u32::from(packet.end - packet.l3);
        if len > hop.mtu {
            return Err(DropReason::TooBig);
        }
        let side = F::side_mut(self);
        let record = side.flows.record_mut(entry.record);
        let word = record.word().ok_or(DropReason::NoFlow)?;
        record.last_seen = now.tick().0;
        record.packets = record.packets.wrapping_add(1);
        match entry.direction {
            Direction::Forward => record.forward_bytes = record.forward_bytes.saturating_add(len),
            Direction::Reverse => record.reverse_bytes = record.reverse_bytes.saturating_add(len),
        }
        let to = side.translation(entry, word);
        F::readdress(bytes, l3, to.src, to.dst);
        set_identification(bytes, packet, identification);
        wire::rewrite::set_macs(bytes, hop.dst, hop.src);
        Ok(hop)
    }

    /// What becomes of a datagram is known: what waits for it waits no longer.
    fn settle_datagram<F: Sided>(&mut self, at: u16, fate: Fate) {
        let (holding, datagrams) = F::held(self);
        holding.release(datagrams.take_first(at), fate);
        holding.release(datagrams.settle(at, fate), fate);
    }

    /// Drops what waits for a datagram and what of it is still to come.
    fn give_up<F: Sided>(&mut self, at: u16, reason: DropReason) -> DropReason {
        self.settle_datagram::<F>(at, Fate::Refused(reason));
        reason
    }

    fn forget<F: Sided>(&mut self, at: u16, reason: DropReason) {
        self.give_up::<F>(at, reason);
        F::side_mut(self).datagrams.remove(at);
    }

    /// Forgets datagrams that stay incomplete.
    pub(super) fn expire_datagrams(&mut self, now: Now) {
        self.expire::<V4>(now);
        self.expire::<V6>(now);
    }

    fn expire<F: Sided>(&mut self, now: Now) {
        for _ in 0..EXPIRED_AT_ONCE {
            let Some(at) = F::side(self).datagrams.expired(now, TIMEOUT_NS) else { return };
            self.forget::<F>(at, DropReason::FragmentTimeout);
        }
    }

    /// Takes a frame whose verdict was [`Verdict::Held`]. Given back: that was not one.
    #[must_use]
    pub fn keep(&mut self, slot: u16, frame: Frame) -> Option<Frame> {
        self.holding.keep(slot, frame)
    }

    /// Whether held frames have a verdict: to be asked for behind every burst and upkeep.
    #[inline]
    #[must_use]
    pub fn has_released(&self) -> bool {
        self.holding.has_ready()
    }

    /// The next held frame that has got a verdict.
    pub fn release(&mut self, memory: &PacketMemory, now: Now) -> Option<Released> {
        let Waiting { mut frame, from, fate, v6 } = self.holding.take_ready()?;
        let verdict = match fate {
            Fate::Sized if v6 => self.release_sized::<V6>(memory, &mut frame, from, now),
            Fate::Sized => self.release_sized::<V4>(memory, &mut frame, from, now),
            fate => self.follow_held(memory, &mut frame, fate, from, now),
        };
        let verdict = self.concluded(memory, &frame, verdict, from);
        Some(Released { frame, from, verdict })
    }

    fn follow_held(&mut self, memory: &PacketMemory, frame: &mut Frame, fate: Fate, from: PortId, now: Now) -> Verdict {
        // It was parsed when it came, and nobody has touched it since.
        match parse(memory, frame) {
            Ok(Parsed::Ip(packet)) if packet.v6 => self.follow::<V6>(memory, frame, &packet, fate, from, now),
            Ok(Parsed::Ip(packet)) => self.follow::<V4>(memory, frame, &packet, fate, from, now),
            _ => Verdict::Drop(DropReason::FragmentMalformed),
        }
    }

    /// Any held frame: to be given back to the pool at the end.
    pub fn abandon(&mut self) -> Option<Frame> {
        self.holding.abandon()
    }

    /// Frames held here.
    #[must_use]
    pub fn frames_held(&self) -> usize {
        self.holding.frames()
    }
}

/// The first fragment as the packet it begins. What `parse` asks of a whole one is asked here.
fn as_transport(bytes: &[u8], packet: &Packet) -> Result<Packet, DropReason> {
    let l4 = usize::from(packet.l4);
    if be16(bytes, l4) == 0 || be16(bytes, l4 + 2) == 0 {
        return Err(DropReason::PortZero);
    }
    match packet.protocol {
        PROTO_TCP => {}
        PROTO_SCTP => return sctp_begins(bytes, packet),
        _ => return Ok(Packet { transport: Transport::Udp, ..*packet }),
    }
    let [tcp_flags] = wire::bytes_at(bytes, l4 + 13);
    wire::parse::check_tcp_flags(tcp_flags)?;
    Ok(Packet { transport: Transport::Tcp, tcp_flags, ..*packet })
}

/// An INIT in fragments opens nothing: it is alone in a packet of a few dozen bytes.
fn sctp_begins(bytes: &[u8], packet: &Packet) -> Result<Packet, DropReason> {
    let [tag @ .., _, _, _, _] = wire::bytes_at::<8>(bytes, usize::from(packet.l4) + 4);
    if tag == [0; 4] {
        return Err(DropReason::BadSctpChunk);
    }
    Ok(Packet { transport: Transport::Sctp, ..*packet })
}

/// The headers of a frame that holds a fragment: tags may have moved them.
fn fragment_in(memory: &PacketMemory, frame: &Frame) -> Option<Packet> {
    match parse(memory, frame) {
        Ok(Parsed::Ip(packet)) if packet.transport == Transport::Fragment => Some(packet),
        _ => None,
    }
}
