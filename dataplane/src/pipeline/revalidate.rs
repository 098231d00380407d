//! Flows across a change of the configuration: what a record caches belongs to one snapshot. The
//! first packet after a change, or the sweep, looks its service and backend up again by its tuple.
//!
//! A flow whose backend takes no new ones any more:
//!
//! | backend | TCP, `keep` | TCP, `reset` | TCP, `rehome` | UDP |
//! | --- | --- | --- | --- | --- |
//! | draining, or of weight 0 | goes on | goes on | goes on | goes on |
//! | down by its checks | goes on | RST | RST to who sends next | another backend |
//! | down by its owner, or removed | RST | RST | RST to who sends next | another backend |
//!
//! A connection that has not been answered yet is forgotten, and so is a closed one where others get a
//! RST: the client's next SYN finds another backend.

use penstock_configs::desired::{BackendState, Mode, OnDown};

use super::Pipeline;
use super::side::{Parts, Sided};
use crate::clock::Now;
use crate::flow::{Flags, Record, State, Word};
use crate::icmp;
use crate::io::{Frame, PacketMemory};
use crate::tables::{Backend, Service, Tabled, Tables};
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::{self, PROTO_TCP, Packet, TCP_ACK, TCP_RST, TCP_SYN};

/// What became of a flow under the running snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Valid,
    /// Its service or SNAT address is gone, or its client no longer allowed; or its backend is, and
    /// another may take its place.
    Revoked,
    /// A connection whose backend is gone: whoever goes on with it is told.
    Reset,
}

impl Pipeline {
    /// Whether the flow stands under the running snapshot. One that does not is forgotten; so is a
    /// closed one that a SYN would open again towards a backend that takes no new flows.
    #[inline]
    pub(super) fn is_current<F: Sided + Tabled>(&mut self, at: u32, tcp_flags: u8) -> bool {
        self.standing::<F>(at, tcp_flags) == Standing::Valid
    }

    /// See [`Self::is_current`].
    #[inline]
    pub(super) fn standing<F: Sided + Tabled>(&mut self, at: u32, tcp_flags: u8) -> Standing {
        let record = F::side(self).flows.record(at);
        if record.epoch == self.view.tables.epoch && tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
            return Standing::Valid;
        }
        self.check_again::<F>(at, tcp_flags)
    }

    #[inline(never)]
    fn check_again<F: Sided + Tabled>(&mut self, at: u32, tcp_flags: u8) -> Standing {
        let Parts { side, view, stats, .. } = F::parts(self);
        let record = side.flows.record_mut(at);
        let Some(word) = record.word() else { return Standing::Revoked };
        let opens = tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        let reopens = opens && matches!(word.state, State::TimeWait | State::Reset);
        let (standing, load) = revalidate::<F>(record, word, &view.tables, reopens);
        if standing == Standing::Valid {
            side.flows.recount(at, load);
            return standing;
        }
        // Its bytes are its service's, whoever goes on with the client.
        if let Some(counters) = stats.services.get(record.service as usize) {
            super::upkeep::collect(record, counters);
        }
        side.flows.remove(at);
        standing
    }

    /// Answers a packet of a connection whose backend is gone with a RST to its sender.
    #[inline(never)]
    pub(super) fn reset_sender(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        from: PortId,
        now: Now,
    ) -> Verdict {
        let reason = DropReason::FlowRevoked;
        if !icmp::may_complain(memory.bytes(frame), packet) || packet.tcp_flags & TCP_RST != 0 {
            return Verdict::Drop(reason);
        }
        if !self.icmp.allows(now) {
            self.stats.count_drop(DropReason::RateLimited);
            self.stats.generated.add(1);
            return Verdict::Drop(reason);
        }
        let Some(len) = wire::reset::answer(memory.room_mut(frame), packet) else { return Verdict::Drop(reason) };
        memory.resize(frame, len);
        self.stats.count_drop(reason);
        self.stats.generated.add(1);
        Verdict::Tx(from)
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
    let Some(service) = tables.service_at::<F>(record.vip, record.vip_port, word.protocol) else { return REVOKED };
    let dnat = word.flags.has(Flags::DNAT);
    let snat = F::tables(tables).snats.get(usize::from(record.snat));
    if dnat != (service.mode == Mode::Dnat) || !dnat && snat.is_none_or(|snat| snat.retired) {
        return REVOKED;
    }
    if service.sources.as_ref().is_some_and(|sources| !F::allowed(sources, record.client)) {
        return REVOKED;
    }
    record.service = service.slot;
    let place = service.set.place(F::to_ip(record.node), record.node_port, service.target_port);
    let backend = place.and_then(|place| service.set.backends.get(usize::from(place)));
    let standing = judge(word, service, backend, as_new);
    let (Some(place), Some(backend), Standing::Valid) = (place, backend, standing) else { return (standing, 0) };
    record.node_slot = backend.node_slot;
    record.epoch = tables.epoch;
    (Standing::Valid, service.load_of(place))
}

/// By the state of a flow's backend; `None`: it is removed.
fn judge(word: Word, service: &Service, backend: Option<&Backend>, as_new: bool) -> Standing {
    match backend {
        Some(backend) if as_new && !backend.takes_new() => return Standing::Revoked,
        Some(backend) if backend.state != BackendState::Down => return Standing::Valid,
        _ => {}
    }
    // A SYN without an answer may as well go elsewhere.
    let is_answered = word.state != State::SynSent || word.flags.has(Flags::ANSWERED);
    if word.protocol != PROTO_TCP || !is_answered {
        return Standing::Revoked;
    }
    if service.on_down == OnDown::Keep && backend.is_some_and(|backend| !backend.unwanted) {
        return Standing::Valid;
    }
    let is_open = matches!(word.state, State::SynSent | State::Established | State::FinWait);
    if is_open { Standing::Reset } else { Standing::Revoked }
}
