//! What the opening of a flow will wait for, asked for while the burst's other headers are read. The line
//! of the index that shows whether a SNAT port is free towards a node is in no cache: waiting for it was
//! half the time an opening took.
//!
//! Nothing is decided here. A guess that proves wrong costs a load.

use super::Pipeline;
use super::side::{Parts, Sided, node_addr};
use crate::nat::Towards;
use crate::tables::{Service, Tabled};
use crate::wire::{Packet, Tuple};
use penstock_configs::desired::{Mode, Scheduler};

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
        let _ = side.ports.foresee(&side.flows, &family.snats, &family.snat_of_groups, &towards, is_home);
    }
}

/// Whether a packet's backend and SNAT port follow from its tuple.
fn is_foreseeable(service: &Service) -> bool {
    service.mode == Mode::Nat && service.scheduler == Scheduler::Maglev && service.affinity.is_none()
}
