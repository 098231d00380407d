//! The long way: a packet no flow is known for. Whose is it, may it open one, and to where?

use std::sync::Arc;

use super::Pipeline;
use super::access::within_limits;
use super::dsr;
use super::hops::Neighbor;
use super::pick::{in_place, pick};
use super::revalidate::{Standing, revalidate};
use super::side::{Parts, Side, Sided, check_client_of, node_addr};
use crate::clock::Now;
use crate::flow::{Flags, NewFlow, State, SynInfo, Word};
use crate::nat::{self, Allocation, Guess, Towards};
use crate::rss::placement::owner_by_client;
use crate::tables::{Local, Service, ServiceKey, Tabled, Tables, View};
use crate::verdict::{DropReason, PortId, Verdict, WorkerId};
use crate::wire::{self, PROTO_TCP, Packet, Transport, Tuple, be32};
use penstock_configs::desired::Mode;

impl Pipeline {
    /// Opens a flow for a packet that has none and returns its record, or says where else the
    /// packet ends.
    #[allow(clippy::too_many_arguments, reason = "what stages hand on, once per packet; a struct would be copied")]
    #[inline(never)]
    pub(super) fn open<F: Sided + Tabled>(
        &mut self,
        bytes: &[u8],
        packet: &Packet,
        tuple: &Tuple<F::Addr>,
        hash: u64,
        from: PortId,
        handed: bool,
        now: Now,
    ) -> Result<u32, Verdict> {
        let family = F::tables(&self.view.tables);
        let Some(local) = family.locals.get(&tuple.dst) else {
            return Err(self.not_for_us::<F>(tuple, handed));
        };
        match local {
            Local::Snat { id } => Err(self.stray_reply::<F>(tuple, *id, handed)),
            Local::Vip { .. } => {
                let owner = self.owner_of_client::<F>(tuple);
                if owner != self.worker && !handed {
                    // What its owner would drop for its tuple alone is not worth a copy.
                    let worth_it = self.screen::<F>(tuple);
                    return Err(worth_it.map_or_else(Verdict::Drop, |()| Verdict::Handoff(owner)));
                }
                if let Some(adviser) = self.adviser::<F>(bytes, packet, tuple) {
                    return Err(Verdict::Ask(adviser));
                }
                self.admit::<F>(bytes, packet, tuple, hash, from, now).map_err(Verdict::Drop)
            }
        }
    }

    /// What can be said of an opening packet without its flow's owner.
    fn screen<F: Tabled>(&self, tuple: &Tuple<F::Addr>) -> Result<(), DropReason> {
        let tables = &self.view.tables;
        check_client_of::<F>(tables, tuple.src)?;
        tables.service_at::<F>(tuple.dst, tuple.dst_port, tuple.protocol).map(|_| ()).ok_or(DropReason::NoService)
    }

    /// The worker that owns a client's flow; one of a `dnat` service must be computable from its
    /// replies too, so it does not follow the NIC.
    pub(super) fn owner_of_client<F: Sided + Tabled>(&self, tuple: &Tuple<F::Addr>) -> WorkerId {
        if self.workers == 1 {
            return self.worker;
        }
        let View { tables, placement, .. } = &*self.view;
        let is_dnat = |service: &Arc<Service>| service.mode == Mode::Dnat;
        if tables.has_dnat && tables.service_at::<F>(tuple.dst, tuple.dst_port, tuple.protocol).is_some_and(is_dnat) {
            return owner_by_client::<F>(tuple, self.workers);
        }
        placement.owner::<F>(tuple, self.workers)
    }

    /// Steered here, but for none of our addresses: a reply of a `dnat` backend that another worker
    /// may know, or nothing of ours.
    fn not_for_us<F: Sided + Tabled>(&self, tuple: &Tuple<F::Addr>, handed: bool) -> Verdict {
        let key = ServiceKey { addr: tuple.src, port: tuple.src_port, protocol: tuple.protocol };
        if !self.view.tables.has_dnat || !F::tables(&self.view.tables).dnat.contains_key(&key) {
            return Verdict::Kernel;
        }
        if let Some(answer) = self.probe_answer::<F>(tuple) {
            return answer;
        }
        if handed {
            return Verdict::Kernel;
        }
        let owner = owner_by_client::<F>(&tuple.reversed(), self.workers);
        if owner == self.worker { Verdict::Kernel } else { Verdict::Handoff(owner) }
    }

    /// A packet to a SNAT address that is no flow's here.
    fn stray_reply<F: Sided + Tabled>(&self, tuple: &Tuple<F::Addr>, id: u16, handed: bool) -> Verdict {
        let family = F::tables(&self.view.tables);
        let outside = family
            .snats
            .get(usize::from(id))
            .is_some_and(|snat| snat.shared && !(snat.first_port..=snat.last_port).contains(&tuple.dst_port));
        if outside {
            return Verdict::Kernel;
        }
        let owner = F::side(self).ports.partition().owner(tuple.dst_port);
        if owner != self.worker && !handed { Verdict::Handoff(owner) } else { Verdict::Drop(DropReason::NoFlow) }
    }

    /// The owner's checks of an opening packet, the choice of a backend, the SNAT tuple, the record.
    fn admit<F: Sided + Tabled>(
        &mut self,
        bytes: &[u8],
        packet: &Packet,
        tuple: &Tuple<F::Addr>,
        hash: u64,
        from: PortId,
        now: Now,
    ) -> Result<u32, DropReason> {
        let Parts { side, view, hops, store, stats, .. } = F::parts(self);
        let tables = &view.tables;
        let family = F::tables(tables);
        check_client_of::<F>(tables, tuple.src)?;
        let foreseen = side.foresight.of(tuple);
        let service = match foreseen {
            Some(foreseen) => tables.service(foreseen.service),
            None => tables.service_at::<F>(tuple.dst, tuple.dst_port, tuple.protocol),
        };
        let service = service.ok_or(DropReason::NoService)?;
        if service.sources.as_ref().is_some_and(|sources| !F::allowed(sources, tuple.src)) {
            return Err(DropReason::SourceDenied);
        }
        if !packet.may_open() {
            return Err(DropReason::OutOfState);
        }
        if F::ttl(bytes, usize::from(packet.l3)) <= 1 {
            // It goes no further: a traceroute opens no flows.
            return Err(DropReason::TtlExceeded);
        }
        within_limits::<F>(side, service, stats, tuple.src, now)?;
        let tcp = packet.transport == Transport::Tcp;
        let (backend, load) = match foreseen {
            Some(foreseen) => in_place(service, foreseen.place),
            None => pick::<F>(side, service, tuple, now),
        }
        .ok_or(DropReason::NoBackend)?;
        let hop = view.node_hops.get(usize::from(backend.node_slot)).copied().flatten();
        let hop = hop.ok_or(DropReason::NoNeighbor)?;
        let node = node_addr::<F>(backend.address);
        dsr::check_way::<F>(family, service.mode, tuple.src, node, &hop, from)?;
        let node_port = service.port_of(backend);
        let state = match packet.transport {
            Transport::Tcp => State::SynSent,
            Transport::Sctp => State::SctpInit,
            _ => State::UdpOneWay,
        };
        let mut flow = NewFlow {
            client: tuple.src,
            vip: tuple.dst,
            node,
            client_port: tuple.src_port,
            vip_port: tuple.dst_port,
            node_port,
            snat_port: 0,
            snat: 0,
            word: Word { state, flags: Flags::default(), protocol: tuple.protocol },
            epoch: tables.epoch,
            hop: 0,
            node_slot: backend.node_slot,
            service: service.slot,
            load,
        };
        flow.word.flags = Flags::of_mode(service.mode);
        let mut reply_hash = None;
        if service.mode == Mode::Dnat {
            make_way::<F>(side, tables, &flow)?;
        } else if service.mode == Mode::Nat {
            let towards = Towards {
                node,
                node_port,
                node_slot: backend.node_slot,
                protocol: tuple.protocol,
                syn: tcp.then(|| syn_info(bytes, packet)),
                client_hash: u64::from(F::owner_hash(tuple.src, 0, 0)),
            };
            let guess = foreseen.and_then(|foreseen| foreseen.port);
            let found = leave_from::<F>(side, view, &towards, guess, hop.port, now)?;
            (flow.snat, flow.snat_port, reply_hash) = (found.snat, found.port, Some(found.hash));
        }
        flow.hop = hops.intern(0, Neighbor::of(bytes, from), |at, hop, tags| store.keep_hop(at, hop, tags));
        let record = side.flows.insert_hashed(&flow, hash, reply_hash, now)?;
        side.flows.limit_opened(record, service, now);
        stats.flows_created.add(1);
        count_new(stats, service);
        Ok(record)
    }
}

/// The SNAT tuple of a new flow: the one that was guessed, if it is free, or the next that is.
#[inline]
fn leave_from<F: Tabled>(
    side: &mut Side<F>,
    view: &View,
    towards: &Towards<F::Addr>,
    guess: Option<Guess>,
    port: PortId,
    now: Now,
) -> Result<Allocation, DropReason> {
    let Side { ports, flows, .. } = side;
    let family = F::tables(&view.tables);
    if let Some(found) = guess.and_then(|guess| ports.take(flows, &family.snats, towards, guess)) {
        return Ok(found);
    }
    let partition = *ports.partition();
    let is_home = |reply: &Tuple<F::Addr>| view.placement.is_home::<F>(port, reply, &partition);
    let timed_out = nat::timed_out(now, &view.tables);
    ports.allocate(flows, &family.snats, &family.snat_of_groups, towards, timed_out, is_home)
}

/// In mode `dnat` the reply's tuple is the client's choice. Another flow can have it only from a service
/// that is gone, since validation refuses two that could; that one is forgotten.
fn make_way<F: Tabled>(side: &mut Side<F>, tables: &Tables, flow: &NewFlow<F::Addr>) -> Result<(), DropReason> {
    let reply = Tuple {
        src: flow.node,
        dst: flow.client,
        src_port: flow.node_port,
        dst_port: flow.client_port,
        protocol: flow.word.protocol,
    };
    let Some(entry) = side.flows.find(&reply, side.flows.hash(&reply)) else { return Ok(()) };
    let record = side.flows.record_mut(entry.record);
    let Some(word) = record.word() else { return Ok(()) };
    if revalidate::<F>(record, word, tables, false).0 == Standing::Valid {
        return Err(DropReason::TupleTaken);
    }
    side.flows.remove(entry.record);
    Ok(())
}

fn count_new(stats: &crate::stats::WorkerStats, service: &Service) {
    if let Some(counters) = stats.services.get(service.slot as usize) {
        counters.new_flows.add(1);
    }
}

fn syn_info(bytes: &[u8], packet: &Packet) -> SynInfo {
    debug_assert_eq!(packet.protocol, PROTO_TCP);
    SynInfo { seq: be32(bytes, usize::from(packet.l4) + 4), timestamp: wire::parse::tcp_timestamp(bytes, packet) }
}
