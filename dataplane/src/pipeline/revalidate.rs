//! Flows across a change of the configuration: what a record caches belongs to one snapshot. The
//! first packet after a change, or the sweep, looks its service and backend up again by its tuple.

use penstock_configs::desired::BackendState;

use super::Pipeline;
use super::side::{Parts, Sided};
use crate::flow::{Flags, Record, State, Word};
use crate::tables::{Tabled, Tables};
use crate::wire::{TCP_ACK, TCP_SYN};

/// What became of a flow under the running snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Valid,
    /// Its service, backend or SNAT address is gone, or its client no longer allowed.
    Revoked,
}

impl Pipeline {
    /// Whether the flow stands under the running snapshot. One that does not is forgotten; so is a
    /// closed one that a SYN would open again towards a backend that takes no new flows.
    #[inline]
    pub(super) fn is_current<F: Sided + Tabled>(&mut self, at: u32, tcp_flags: u8) -> bool {
        let record = F::side(self).flows.record(at);
        if record.epoch == self.view.tables.epoch && tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
            return true;
        }
        self.check_again::<F>(at, tcp_flags)
    }

    #[inline(never)]
    fn check_again<F: Sided + Tabled>(&mut self, at: u32, tcp_flags: u8) -> bool {
        let Parts { side, view, .. } = F::parts(self);
        let record = side.flows.record_mut(at);
        let Some(word) = record.word() else { return false };
        let opens = tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        let at_rest = matches!(word.state, State::TimeWait | State::Reset | State::Expired);
        // Of a node that answers by itself no FIN is seen.
        let closed = at_rest || word.state == State::FinWait && word.flags.has(Flags::DSR);
        let reopens = opens && closed;
        let stands = revalidate::<F>(record, word, &view.tables, reopens) == Standing::Valid;
        if !stands {
            side.flows.remove(at);
        }
        stands
    }
}

/// Looks a record's service and backend up in `tables` and notes where they are now.
pub(super) fn revalidate<F: Tabled>(
    record: &mut Record<F::Addr>,
    word: Word,
    tables: &Tables,
    as_new: bool,
) -> Standing {
    let Some(service) = tables.service_at::<F>(record.vip, record.vip_port, word.protocol) else {
        return Standing::Revoked;
    };
    let keeps_client = word.flags.has(Flags::DNAT);
    let snat = F::tables(tables).snats.get(usize::from(record.snat));
    let of_mode = word.flags.0 & Flags::MODE.0 == Flags::of_mode(service.mode).0;
    if !of_mode || !keeps_client && snat.is_none_or(|snat| snat.retired) {
        return Standing::Revoked;
    }
    if service.sources.as_ref().is_some_and(|sources| !F::allowed(sources, record.client)) {
        return Standing::Revoked;
    }
    let Some(backend) = service.set.find(F::to_ip(record.node), record.node_port, service.target_port) else {
        return Standing::Revoked;
    };
    let takes_new = backend.state == BackendState::Active && backend.weight > 0;
    if backend.state == BackendState::Down || as_new && !takes_new {
        return Standing::Revoked;
    }
    record.service = service.slot;
    record.node_slot = backend.node_slot;
    record.epoch = tables.epoch;
    Standing::Valid
}
