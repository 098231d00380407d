//! New flows of services with session affinity ([`crate::affinity`]): to the node the client's last one went
//! to, as the worker that knows the client says.
//!
//! A flow's owner hands the opening packet to that worker and gets it back with the advice:
//!
//! ```text
//! owner of the flow:   open   -> Verdict::Ask(worker that knows the client)
//! that worker:         advise -> the same packet back, Note::Advised
//! owner of the flow:   heed   -> open, to the node advised
//! ```
//!
//! Nothing waits meanwhile: a parcel that is lost is a SYN that is lost, and a parcel with advice is never
//! handed on again. Where the scheduler chooses, it does so for the client, not for the flow: with Maglev,
//! boxes that know nothing of each other, and a box that has forgotten, choose alike.
//!
//! A node that takes no new flows (removed, down, draining, of weight 0) is left at once, as kube-proxy does
//! in both its modes (IPVS with `expire_quiescent_template`); the client stays with the one it is sent to then.

use super::Pipeline;
use super::pick::by_scheduler;
use super::side::{Parts, Side, Sided, check_client_of};
use crate::affinity::{Affinity, Choice, Client, owner};
use crate::clock::{Now, Tick};
use crate::handoff::Note;
use crate::tables::{Backend, Service, Tabled, Tables};
use crate::verdict::WorkerId;
use crate::wire::{self, Packet, Parsed, Transport, Tuple, V4, V6};

/// What a flow taken up after a restart says of its client, and to whom.
#[derive(Debug, Clone, Copy)]
pub struct Recalled {
    pub worker: WorkerId,
    affinity: Affinity,
    client: std::net::IpAddr,
    choice: Choice,
    last: Tick,
}

/// The backend for a new flow of a service with affinity, and where its flows are counted: as advised, or as
/// known here.
pub(super) fn pick<'a, F: Tabled>(
    side: &mut Side<F>,
    service: &'a Service,
    affinity: &Affinity,
    tuple: &Tuple<F::Addr>,
    now: Now,
) -> Option<(&'a Backend, u32)> {
    let place = if let Note::Advised(advice) = side.note {
        let advised = advice.and_then(|choice| service.set.on_node(choice.node, choice.port));
        advised.or_else(|| fresh(side, service, affinity, tuple, now))
    } else {
        known(side, service, affinity, tuple, now)
    }?;
    Some((service.set.backends.get(usize::from(place))?, service.load_of(place)))
}

/// Where the client goes as far as this worker knows, which knows it from now on.
fn known<F: Tabled>(
    side: &mut Side<F>,
    service: &Service,
    affinity: &Affinity,
    tuple: &Tuple<F::Addr>,
    now: Now,
) -> Option<u16> {
    let client = Client::of::<F>(tuple.src, affinity);
    let stuck = side.affinity.find(&client, affinity.timeout, now.tick());
    let place = stuck
        .and_then(|choice| service.set.on_node(choice.node, choice.port))
        .or_else(|| fresh(side, service, affinity, tuple, now))?;
    let backend = service.set.backends.get(usize::from(place))?;
    let choice = Choice { node: backend.address, port: backend.port };
    side.affinity.keep(&client, choice, affinity.timeout, now.tick());
    Some(place)
}

/// What the scheduler says of the client, whatever port it comes from or to.
fn fresh<F: Tabled>(
    side: &mut Side<F>,
    service: &Service,
    affinity: &Affinity,
    tuple: &Tuple<F::Addr>,
    now: Now,
) -> Option<u16> {
    let src = F::prefix(tuple.src, affinity.prefix);
    by_scheduler(side, service, &Tuple { src, dst: tuple.dst, src_port: 0, dst_port: 0, protocol: 0 }, now)
}

impl Pipeline {
    /// The worker to be asked where the flow that a packet would open here goes; `None`: there is nothing to ask.
    pub(super) fn adviser<F: Sided + Tabled>(
        &self,
        bytes: &[u8],
        packet: &Packet,
        tuple: &Tuple<F::Addr>,
    ) -> Option<WorkerId> {
        let tables = &self.view.tables;
        if self.workers == 1 || !tables.has_affinity || F::side(self).note != Note::Flow {
            return None;
        }
        let service = tables.service_at::<F>(tuple.dst, tuple.dst_port, tuple.protocol)?;
        let client = Client::of::<F>(tuple.src, service.affinity.as_ref()?);
        // What admission will refuse anyway is not worth two copies.
        let refused = !packet.may_open()
            || F::ttl(bytes, usize::from(packet.l3)) <= 1
            || service.sources.as_ref().is_some_and(|sources| !F::allowed(sources, tuple.src))
            || check_client_of::<F>(tables, tuple.src).is_err();
        let adviser = owner::<F>(&client, self.workers);
        (!refused && adviser != self.worker).then_some(adviser)
    }

    /// Answers another worker that asks where the flow opened by this packet should go. `None`: let it decide.
    pub fn advise(&mut self, bytes: &[u8], now: Now) -> Option<Choice> {
        match wire::parse(bytes) {
            Ok(Parsed::Ip(packet)) if matches!(packet.transport, Transport::Icmp | Transport::Other) => None,
            Ok(Parsed::Ip(packet)) if packet.v6 => self.advise_client::<V6>(bytes, &packet, now),
            Ok(Parsed::Ip(packet)) => self.advise_client::<V4>(bytes, &packet, now),
            _ => None,
        }
    }

    fn advise_client<F: Sided + Tabled>(&mut self, bytes: &[u8], packet: &Packet, now: Now) -> Option<Choice> {
        let (worker, workers) = (self.worker, self.workers);
        let Parts { side, view, .. } = F::parts(self);
        let tuple = F::tuple(bytes, packet);
        let service = view.tables.service_at::<F>(tuple.dst, tuple.dst_port, tuple.protocol)?;
        let affinity = service.affinity.as_ref()?;
        // It may be that only one of us has taken up a new snapshot.
        if owner::<F>(&Client::of::<F>(tuple.src, affinity), workers) != worker {
            return None;
        }
        let place = known(side, service, affinity, &tuple, now)?;
        let backend = service.set.backends.get(usize::from(place))?;
        Some(Choice { node: backend.address, port: backend.port })
    }

    /// What a parcel's sender says of the packets settled next; [`Note::Flow`] again behind them.
    pub fn heed(&mut self, note: Note) {
        self.v4.note = note;
        self.v6.note = note;
    }

    /// What the flows here say of their clients, for the workers that are to know: after a restart.
    pub fn recall(&self, tables: &Tables, mut tell: impl FnMut(Recalled)) {
        if !tables.has_affinity {
            return;
        }
        self.recall_family::<V4>(tables, &mut tell);
        self.recall_family::<V6>(tables, &mut tell);
    }

    fn recall_family<F: Sided + Tabled>(&self, tables: &Tables, tell: &mut impl FnMut(Recalled)) {
        for (record, word) in F::side(self).flows.live() {
            let service = tables.service_at::<F>(record.vip, record.vip_port, word.protocol);
            let Some((service, affinity)) = service.and_then(|service| Some((service, service.affinity?))) else {
                continue;
            };
            // Unanswered, it may be of a flood.
            let node = F::to_ip(record.node);
            let Some(backend) = service.set.find(node, record.node_port, service.target_port) else { continue };
            if word.state.is_embryonic() {
                continue;
            }
            tell(Recalled {
                worker: owner::<F>(&Client::of::<F>(record.client, &affinity), self.workers),
                affinity,
                client: F::to_ip(record.client),
                choice: Choice { node, port: backend.port },
                last: record.last_seen(),
            });
        }
    }

    /// Takes up what [`Self::recall`] told of.
    pub fn take_up(&mut self, recalled: &Recalled, now: Now) {
        fn take_up<F: Tabled>(side: &mut Side<F>, recalled: &Recalled, now: Now) {
            let Recalled { affinity, client, choice, last, .. } = recalled;
            let Some(addr) = F::from_ip(*client) else { return };
            side.affinity.recall(&Client::of::<F>(addr, affinity), *choice, affinity.timeout, *last, now.tick());
        }
        if recalled.client.is_ipv4() {
            take_up(&mut self.v4, recalled, now);
        } else {
            take_up(&mut self.v6, recalled, now);
        }
    }
}
