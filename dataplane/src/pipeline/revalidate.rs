//! Flows across a change of the configuration: what a record caches belongs to one snapshot. The
//! first packet after a change, or the sweep, looks its service and backend up again by its tuple.
//!
//! A flow whose backend takes no new ones any more:
//!
//! | backend | TCP, `keep` | TCP, `reset` | TCP, `rehome` | UDP | SCTP, `keep` | SCTP, else |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | draining, or of weight 0 | goes on | goes on | goes on | goes on | goes on | goes on |
//! | down by its checks | goes on | RST to both ends | RST to who sends next | another backend | goes on | forgotten |
//! | down by its owner, or removed | RST to both ends | RST to both ends | RST to who sends next | another backend | forgotten | forgotten |
//!
//! A connection that has not been answered yet is forgotten, and so is a closed one where others get a
//! RST: the client's next SYN finds another backend. Of one that is half-open who sends next gets a RST.

use std::sync::Arc;

use penstock_configs::desired::{BackendState, OnDown};

use super::Pipeline;
use super::access;
use super::side::{Parts, Sided, is_denied};
use crate::clock::Now;
use crate::flow::{Flags, Record, State, Word};
use crate::tables::{Backend, Service, Snat, Tabled, Tables};
use crate::verdict::DropReason;
use crate::wire::{PROTO_TCP, PROTO_UDP, TCP_ACK, TCP_SYN};

/// In place of a node's slot, when the backend is no longer one: no next hop is ever known.
pub(super) const NO_NODE: u16 = u16::MAX;

/// What became of a flow under the running snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Valid,
    /// Its service or SNAT address is gone, or its client no longer allowed; or its backend is, and
    /// another may take its place.
    Revoked,
    /// A connection whose backend is gone: both ends are told.
    Reset,
    /// One of which only who goes on with it is told.
    Rehome,
    /// Its client is denied, or a limit keeps it from being opened again.
    Refused(DropReason),
}

impl Pipeline {
    /// See [`Self::standing`], of one that no SYN asks for.
    #[inline]
    pub(super) fn is_current<F: Sided + Tabled>(&mut self, at: u32) -> bool {
        self.standing::<F>(at, 0, Now::default()) == Standing::Valid
    }

    /// Whether the flow stands under the running snapshot. One that does not is forgotten; so is a
    /// closed one that a SYN would open again towards a backend that takes no new flows.
    #[inline]
    pub(super) fn standing<F: Sided + Tabled>(&mut self, at: u32, tcp_flags: u8, now: Now) -> Standing {
        let record = F::side(self).flows.record(at);
        if record.epoch == self.view.tables.epoch && tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
            return Standing::Valid;
        }
        self.check_again::<F>(at, tcp_flags, now)
    }

    #[inline(never)]
    fn check_again<F: Sided + Tabled>(&mut self, at: u32, tcp_flags: u8, now: Now) -> Standing {
        self.renews |= F::side(self).flows.record(at).epoch != self.epoch;
        let Parts { side, view, stats, .. } = F::parts(self);
        let record = side.flows.record_mut(at);
        let Some(word) = record.word() else { return Standing::Revoked };
        let opens = tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        let closed = word.is_closed() || word.state == State::Expired;
        let reopens = opens && closed;
        let (standing, load) = revalidate::<F>(record, word, &view.tables, reopens);
        if standing == Standing::Valid {
            side.flows.recount(at, load);
            return access::check_again(side, &view.tables, stats, at, reopens.then_some(now));
        }
        if standing == Standing::Reset && !opens {
            // It stays for the sweep to tell both ends.
            side.flows.recount(at, 0);
            return standing;
        }
        // Its bytes are its service's, whoever goes on with the client.
        if let Some(counters) = stats.services.get(record.service as usize) {
            super::upkeep::collect(record, counters);
        }
        side.flows.remove(at);
        standing
    }
}

/// Looks a record's service and backend up in `tables` and notes where they are now. With it goes
/// where the flow is counted from now on.
pub(super) fn revalidate<F: Tabled>(
    record: &mut Record<F::Addr>,
    word: Word,
    tables: &Tables,
    as_new: bool,
) -> (Standing, u32) {
    const REVOKED: (Standing, u32) = (Standing::Revoked, 0);
    // Most often it still is where it was: a service keeps its slot while it exists.
    let (vip, port) = (F::to_ip(record.vip), record.vip_port);
    let is_its = |s: &&Arc<Service>| (s.port, s.protocol) == (port, word.protocol) && s.vip == vip;
    let known = tables.service(record.service).filter(is_its);
    let Some(service) = known.or_else(|| tables.service_at::<F>(record.vip, port, word.protocol)) else {
        return REVOKED;
    };
    let keeps_client = word.flags.has(Flags::DNAT);
    let snat = F::tables(tables).snats.get(usize::from(record.snat));
    let of_mode = word.flags.0 & Flags::MODE.0 == Flags::of_mode(service.mode).0;
    // What comes to a port of a shared address that is no longer ours is the kernel's.
    let is_gone = |snat: &Snat<F::Addr>| {
        snat.retired || snat.shared && !(snat.first_port..=snat.last_port).contains(&record.snat_port)
    };
    if !of_mode || !keeps_client && snat.is_none_or(is_gone) {
        return REVOKED;
    }
    if is_denied::<F>(tables, record.client) {
        return (Standing::Refused(DropReason::Denied), 0);
    }
    if service.sources.as_ref().is_some_and(|sources| !F::allowed(sources, record.client)) {
        return REVOKED;
    }
    record.service = service.slot;
    let node = F::to_ip(record.node);
    let place = service.set.place_from(record.node_slot, node, record.node_port, service.target_port);
    let backend = place.and_then(|place| service.set.backends.get(usize::from(place)));
    let standing = judge(word, service, backend, as_new);
    // Where a RST to the node goes; none, if the node may be gone too.
    record.node_slot = backend.map_or(NO_NODE, |backend| backend.node_slot);
    let (Some(place), Standing::Valid) = (place, standing) else { return (standing, 0) };
    record.epoch = tables.epoch;
    (Standing::Valid, service.load_of(place))
}

/// By the state of a flow's backend; `None`: it is removed.
fn judge(word: Word, service: &Service, backend: Option<&Backend>, as_new: bool) -> Standing {
    if as_new && !backend.is_some_and(Backend::takes_new) {
        return Standing::Revoked;
    }
    match backend {
        // Its ends have been told; it stays to answer those who ask again, if need be without a way to the node.
        _ if word.state == State::Expired => {
            return if backend.is_some() { Standing::Valid } else { Standing::Reset };
        }
        Some(backend) if backend.state != BackendState::Down => return Standing::Valid,
        _ => {}
    }
    // A SYN without an answer, or an INIT, may as well go elsewhere.
    let is_answered = match word.state {
        State::SynSent => word.flags.has(Flags::ANSWERED),
        State::SctpInit => false,
        _ => true,
    };
    if word.protocol == PROTO_UDP || !is_answered {
        return Standing::Revoked;
    }
    if service.on_down == OnDown::Keep && backend.is_some_and(|backend| !backend.unwanted) {
        return Standing::Valid;
    }
    if word.protocol != PROTO_TCP {
        // Nobody here can write an ABORT that its ends would believe: the tags are theirs.
        return Standing::Revoked;
    }
    // In `dsr` the numbers a RST to the node would need are not known.
    let tell_who_goes_on = service.on_down == OnDown::Rehome || word.flags.has(Flags::DSR);
    match word.state {
        // Half-open still: of a flood all are, once the node has answered. No RST goes to whoever it names, and none is
        // kept among the flows that matter to answer with one.
        State::SynSent => Standing::Rehome,
        State::Established | State::FinWait if tell_who_goes_on => Standing::Rehome,
        State::Established | State::FinWait => Standing::Reset,
        _ => Standing::Revoked,
    }
}
