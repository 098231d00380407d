//! Packets to an address of ours that are no flow's: ICMP, neighbour discovery, protocols the box does not balance.

use super::Pipeline;
use super::side;
use crate::io::{Frame, PacketMemory};
use crate::neighbor::responder::{self, Answer};
use crate::stats::Conflict;
use crate::tables::Local;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::{self, Packet, V4, V6, be32};

impl Pipeline {
    /// ICMP for an address of ours: echo answered, neighbour discovery answered, errors translated.
    pub(super) fn icmp(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        from: PortId,
        handed: bool,
    ) -> Verdict {
        let bytes = memory.bytes(frame);
        if wire::icmp::is_neighbor_discovery(bytes, packet) {
            let local = self.local_destination(bytes, packet);
            return match self.neighbor(memory, frame, from) {
                Verdict::Kernel => self.unmatched(local, packet),
                verdict => verdict,
            };
        }
        if crate::icmp::is_error(bytes, packet) {
            return if packet.v6 {
                self.icmp_error::<V6>(memory, frame, packet, handed)
            } else {
                self.icmp_error::<V4>(memory, frame, packet, handed)
            };
        }
        match self.local_destination(bytes, packet) {
            None => Verdict::Kernel,
            Some(Local::Snat { id }) if side::is_shared(&self.view.tables, packet.v6, id) => Verdict::Kernel,
            Some(_) if wire::icmp::is_echo_request(bytes, packet) && crate::icmp::may_answer(bytes) => {
                if let Err(reason) = side::check_client(&self.view.tables, bytes, packet) {
                    return Verdict::Drop(reason);
                }
                wire::icmp::echo_reply(memory.bytes_mut(frame), packet);
                Verdict::Tx(from)
            }
            Some(_) => Verdict::Drop(DropReason::IcmpUnmatched),
        }
    }

    /// Protocols the box does not balance.
    pub(super) fn other(&self, bytes: &[u8], packet: &Packet) -> Verdict {
        match self.local_destination(bytes, packet) {
            None => Verdict::Kernel,
            Some(Local::Snat { id }) if side::is_shared(&self.view.tables, packet.v6, id) => Verdict::Kernel,
            Some(_) => Verdict::Drop(DropReason::UnsupportedProtocol),
        }
    }

    fn local_destination(&self, bytes: &[u8], packet: &Packet) -> Option<Local> {
        let l3 = usize::from(packet.l3);
        if packet.v6 {
            let addr = u128::from_be_bytes(wire::bytes_at(bytes, l3 + 24));
            self.view.tables.v6.locals.get(&addr).copied()
        } else {
            self.view.tables.v4.locals.get(&be32(bytes, l3 + 16)).copied()
        }
    }

    pub(super) fn neighbor(&mut self, memory: &PacketMemory, frame: &mut Frame, from: PortId) -> Verdict {
        let Some(port) = self.view.ports.get(usize::from(from.0)) else {
            return Verdict::Drop(DropReason::NeighborIgnored);
        };
        let view = &self.view;
        // The kernel behind the TAP may ask for every VIP; others only for what was claimed on their port.
        let ours = |addr| {
            if port.is_kernel { view.tables.local(addr).is_some() } else { view.claimed.contains(&(from.0, addr)) }
        };
        if frame.is_chain() {
            // Such packets are a few dozen bytes long.
            return Verdict::Drop(DropReason::NeighborIgnored);
        }
        let len = frame.len();
        match responder::answer(memory.room_mut(frame), len, port.mac, ours) {
            Answer::Reply(len) => {
                memory.resize(frame, len);
                Verdict::Tx(from)
            }
            Answer::Kernel => {
                // What answers a probe on this port is steered here as soon as the address is held on another.
                let claim = responder::claim(&memory.room_mut(frame)[..len]);
                if let Some(claim) = claim.filter(|claim| !port.is_kernel && view.tables.local(claim.address).is_some())
                {
                    let _ = self.stats.conflicts.push(Conflict { port: from, address: claim.address, mac: claim.mac });
                }
                Verdict::Kernel
            }
            Answer::Conflict { address, mac } => {
                let _ = self.stats.conflicts.push(Conflict { port: from, address, mac });
                Verdict::Drop(DropReason::NeighborIgnored)
            }
            Answer::Drop(reason) => Verdict::Drop(reason),
        }
    }
}
