//! What openings will wait for, asked for while the burst's other headers are read: the line of the index that shows
//! whether a SNAT port is free towards a node. It is in no cache, and waiting for it was half the time an opening took.
//!
//! Nothing is decided here. What follows from tables and tuple alone, service and backend, is kept for the opening,
//! later in the same burst; the port is a guess, and one that proves wrong costs a load.

use super::Pipeline;
use super::side::{Parts, Side, Sided, node_addr};
use crate::io::BURST;
use crate::nat::{Guess, Towards};
use crate::tables::{Service, Tabled};
use crate::wire::{Family, Packet, Tuple};
use arrayvec::ArrayVec;
use penstock_configs::desired::{Mode, Scheduler};

/// Where a packet's flow would go.
#[derive(Debug, Clone, Copy)]
pub struct Foreseen<A> {
    tuple: Tuple<A>,
    pub service: u32,
    /// The backend's place in the service's set.
    pub place: u16,
    pub port: Option<Guess>,
}

/// A burst's, in the order of its packets.
#[derive(Debug, Default)]
pub struct Foresight<A> {
    foreseen: ArrayVec<Foreseen<A>, BURST>,
    next: usize,
}

impl<A: Copy + PartialEq> Foresight<A> {
    /// What was foreseen of this packet, whose turn it is: those before it in the burst have had theirs.
    #[inline]
    pub fn of(&mut self, tuple: &Tuple<A>) -> Option<Foreseen<A>> {
        let ahead = self.foreseen.get(self.next..)?.iter().position(|foreseen| foreseen.tuple == *tuple)?;
        self.next += ahead + 1;
        self.foreseen.get(self.next - 1).copied()
    }

    /// The burst is over.
    #[inline]
    pub fn end_burst(&mut self) {
        self.foreseen.clear();
        self.next = 0;
    }
}

impl Pipeline {
    /// Looks where this packet's flow would go. `handed`: it was another worker's, and is ours to open.
    pub(super) fn foresee<F: Sided + Tabled>(&mut self, bytes: &[u8], packet: &Packet, handed: bool) {
        let tuple: Tuple<F::Addr> = F::tuple(bytes, packet);
        if !handed && self.owner_of_client::<F>(&tuple) != self.worker {
            return;
        }
        let Parts { side, view, .. } = F::parts(self);
        let family = F::tables(&view.tables);
        let Some(service) = view.tables.service_at::<F>(tuple.dst, tuple.dst_port, tuple.protocol) else { return };
        if !is_foreseeable(service) {
            return;
        }
        let place = service.set.maglev.lookup(F::pick_hash(&tuple));
        let Some(backend) = service.set.backends.get(usize::from(place)) else { return };
        let Some(Some(hop)) = view.node_hops.get(usize::from(backend.node_slot)) else { return };
        let towards = Towards {
            node: node_addr::<F>(backend.address),
            node_port: service.port_of(backend),
            node_slot: backend.node_slot,
            protocol: tuple.protocol,
            syn: None,
            client_hash: u64::from(F::owner_hash(tuple.src, 0, 0)),
        };
        let partition = *side.ports.partition();
        let is_home = |reply: &Tuple<F::Addr>| view.placement.is_home::<F>(hop.port, reply, &partition);
        let port = side.ports.foresee(&side.flows, &family.snats, &family.snat_of_groups, &towards, is_home);
        // A burst has no more packets than there is room for.
        let _ = side.foresight.foreseen.try_push(Foreseen { tuple, service: service.slot, place, port });
    }
}

impl<F: Family> Side<F> {
    /// A burst is settled: what was foreseen of its packets has happened, or did not.
    #[inline]
    pub(super) fn end_burst(&mut self) {
        self.ports.end_burst();
        self.foresight.end_burst();
    }
}

/// Whether a packet's backend and SNAT port follow from its tuple.
fn is_foreseeable(service: &Service) -> bool {
    service.mode == Mode::Nat && service.scheduler == Scheduler::Maglev && service.affinity.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A burst of five, of which the first was dropped, and the third was a packet of the flow the second opened.
    #[test]
    fn each_packet_has_its_own() {
        let tuple = |client: u32| Tuple { src: client, dst: 9, src_port: 5, dst_port: 443, protocol: 6 };
        let mut foresight = Foresight::default();
        for (place, client) in [1, 2, 2, 3, 2].into_iter().enumerate() {
            let foreseen = Foreseen { tuple: tuple(client), service: 0, place: place as u16, port: None };
            foresight.foreseen.push(foreseen);
        }
        let mut place_of = |client| foresight.of(&tuple(client)).map(|foreseen| foreseen.place);
        assert_eq!([place_of(2), place_of(4), place_of(3), place_of(1)], [Some(1), None, Some(3), None]);
        assert_eq!([place_of(2), place_of(2)], [Some(4), None]);
        foresight.end_burst();
        assert!(foresight.of(&tuple(2)).is_none());
    }
}
