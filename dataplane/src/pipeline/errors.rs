//! Errors on the packet path: ICMP errors about flows translated and sent on, and those the box says
//! itself; with them the MSS clamp, which is for paths that swallow them.

use super::Pipeline;
use super::side::{self, Sided};
use crate::clock::Now;
use crate::flow::{Direction, Entry, Flags};
use crate::icmp::{self, Translation};
use crate::io::{Frame, PacketMemory};
use crate::rss::placement::owner_by_client;
use crate::tables::{Hop, Local, ServiceKey, Tabled};
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::icmp::{ErrorKind, TIME_EXCEEDED};
use crate::wire::{self, Packet, Rewrite, Tuple};

/// What IPv6 asks of every link (RFC 8200 section 5): no error may name less.
const LEAST_MTU_V6: u32 = 1280;
/// What IPv4 asks of every link (RFC 791 section 3.2).
const LEAST_MTU_V4: u32 = 68;

/// Bytes of an ICMP error, from its header on, that are read or changed at most, in any that a router would send: the
/// headers it quotes, with IPv4's options, or a few of IPv6's, and TCP's up to the checksum.
const QUOTED: usize = 8 + 40 + 8 * 8 + 20;

impl Pipeline {
    /// An ICMP error that may be about a packet the box translated: see [`crate::icmp`].
    #[inline(never)]
    pub(super) fn icmp_error<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        handed: bool,
    ) -> Verdict {
        let bytes = memory.bytes_mut(frame);
        let outer = F::tuple(bytes, packet);
        let local = F::tables(&self.view.tables).locals.get(&outer.dst).copied();
        if bytes.len() < usize::from(packet.end).min(usize::from(packet.l4) + QUOTED) {
            return Verdict::Drop(DropReason::HeadersSplit);
        }
        let Some(quoted) = icmp::quoted(bytes, packet) else { return self.unmatched(local, packet) };
        let about = F::tuple(bytes, &quoted);
        // An error goes to whoever sent what it is about.
        if about.src != outer.dst {
            return self.unmatched(local, packet);
        }
        if let Err(reason) = side::check_source_of::<F>(&self.view.tables, outer.src) {
            return Verdict::Drop(reason);
        }
        let key = about.reversed();
        let flows = &F::side(self).flows;
        match flows.find(&key, flows.hash(&key)) {
            Some(entry) if self.is_current::<F>(entry.record) => {
                match self.pass_error::<F>(bytes, packet, &quoted, entry) {
                    Ok(hop) => self.leave(memory, frame, packet, &hop),
                    Err(reason) => Verdict::Drop(reason),
                }
            }
            _ => self.error_elsewhere::<F>(local, packet, &key, handed),
        }
    }

    /// No flow here: the owner of the quoted tuple may know one.
    fn error_elsewhere<F: Sided + Tabled>(
        &self,
        local: Option<Local>,
        packet: &Packet,
        key: &Tuple<F::Addr>,
        handed: bool,
    ) -> Verdict {
        let owner = match local {
            Some(Local::Vip { .. }) => self.owner_of_client::<F>(key),
            Some(Local::Snat { .. }) => F::side(self).ports.partition().owner(key.dst_port),
            // Steered here for what it quotes: a client's packet to a `dnat` backend.
            None => {
                let backend = ServiceKey { addr: key.src, port: key.src_port, protocol: key.protocol };
                if !F::tables(&self.view.tables).dnat.contains_key(&backend) {
                    return Verdict::Kernel;
                }
                if let Some(answer) = self.probe_answer::<F>(key) {
                    return answer;
                }
                owner_by_client::<F>(&key.reversed(), self.workers)
            }
        };
        if owner == self.worker || handed { self.unmatched(local, packet) } else { Verdict::Handoff(owner) }
    }

    /// An ICMP packet about nothing the box knows: for the kernel, where the address is its too.
    pub(super) fn unmatched(&self, local: Option<Local>, packet: &Packet) -> Verdict {
        match local {
            None => Verdict::Kernel,
            Some(Local::Snat { id }) if side::is_shared(&self.view.tables, packet.v6, id) => Verdict::Kernel,
            Some(_) => Verdict::Drop(DropReason::IcmpUnmatched),
        }
    }

    /// Sends an error about a flow's packets to their sender.
    fn pass_error<F: Sided + Tabled>(
        &mut self,
        bytes: &mut [u8],
        packet: &Packet,
        quoted: &Packet,
        entry: Entry,
    ) -> Result<Hop, DropReason> {
        let l3 = usize::from(packet.l3);
        if F::ttl(bytes, l3) <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        let hop = self.known_hop::<F>(entry)?;
        if u32::from(packet.end - packet.l3) > hop.mtu {
            return Err(DropReason::TooBig);
        }
        let side = F::side(self);
        let word = side.flows.record(entry.record).word().ok_or(DropReason::IcmpUnmatched)?;
        // How the flow's own packets look that go the error's way; what they answer is what is quoted.
        let Rewrite { src, dst, src_port, dst_port } = side.translation(entry, word);
        let stays = entry.direction == Direction::Forward && word.flags.has(Flags::DNAT);
        let to = Translation {
            src: if stays { F::tuple(bytes, packet).src } else { src },
            dst,
            quoted: Rewrite { src: dst, dst: src, src_port: dst_port, dst_port: src_port },
        };
        icmp::translate::<F>(bytes, packet, quoted, &to);
        wire::rewrite::set_macs(bytes, hop.dst, hop.src);
        Ok(hop)
    }

    /// The next hop of a flow's packets in this direction, nothing learnt: an error may come from
    /// another neighbour than its client's packets do.
    pub(super) fn known_hop<F: Sided>(&self, entry: Entry) -> Result<Hop, DropReason> {
        let record = F::side(self).flows.record(entry.record);
        match entry.direction {
            Direction::Forward => {
                let hop = self.view.node_hops.get(usize::from(record.node_slot)).copied().flatten();
                hop.ok_or(DropReason::NoNeighbor)
            }
            Direction::Reverse => self.client_hop::<F>(record.hop),
        }
    }

    pub(super) fn time_exceeded(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        from: PortId,
        now: Now,
    ) -> Verdict {
        self.complain(memory, frame, packet, TIME_EXCEEDED, DropReason::TtlExceeded, from, now)
    }

    /// A packet larger than its next hop takes: dropped, and its sender told the MTU. The box does not
    /// fragment: an IPv4 sender that does not set DF is told all the same, and may do it itself.
    #[inline(never)]
    pub(super) fn too_big<F: Sided>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        entry: Entry,
        from: PortId,
        now: Now,
    ) -> Verdict {
        let Ok(hop) = self.known_hop::<F>(entry) else { return Verdict::Drop(DropReason::TooBig) };
        let mtu = hop.mtu.max(if F::V6 { LEAST_MTU_V6 } else { LEAST_MTU_V4 });
        self.complain(memory, frame, packet, wire::icmp::too_big(mtu), DropReason::TooBig, from, now)
    }

    /// Drops a packet, and makes of it an error to its sender if rules and rate allow.
    #[allow(clippy::too_many_arguments, reason = "what a verdict needs, and what the error says")]
    pub(super) fn complain(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        kind: ErrorKind,
        reason: DropReason,
        from: PortId,
        now: Now,
    ) -> Verdict {
        if !icmp::may_complain(memory.bytes(frame), packet) {
            return Verdict::Drop(reason);
        }
        let budget = if reason == DropReason::TooBig { &mut self.too_big } else { &mut self.icmp };
        if !budget.allows(now) {
            self.stats.count_drop(DropReason::RateLimited);
            self.stats.generated.add(1);
            return Verdict::Drop(reason);
        }
        // Of a packet in several frames the first one's part is quoted.
        let here = memory.bytes(frame).len() as u16;
        let packet = &Packet { end: packet.end.min(here), ..*packet };
        let Some(len) = wire::icmp::error_about(memory.room_mut(frame), packet, kind) else {
            return Verdict::Drop(reason);
        };
        memory.resize(frame, len);
        self.answered = reason;
        self.stats.count_drop(reason);
        self.stats.generated.add(1);
        Verdict::Tx(from)
    }

    /// Clamps the MSS of a SYN or SYN-ACK to what the ports it crosses allow: what one end announces bounds
    /// what the other sends back the same way.
    #[cold]
    #[inline(never)]
    pub(super) fn clamp_mss(&self, bytes: &mut [u8], packet: &Packet, from: PortId, to: PortId) {
        let clamp = |port: PortId| self.view.ports.get(usize::from(port.0)).map_or(0, |view| view.mss_clamp);
        let least = [clamp(from), clamp(to)].into_iter().filter(|clamp| *clamp != 0).min();
        if let Some(most) = least {
            icmp::mss::clamp(bytes, packet, most);
        }
    }
}
