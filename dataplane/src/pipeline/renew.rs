//! A burst's flows across a change of the configuration. Behind a publication nearly every packet of a turn is the first
//! of its flow under the new snapshot. Sent the long way one after the other, each waited for its service, whose lines
//! another core wrote a moment ago, and took four times the instructions of a hit: a turn of them held the next up for
//! 50 us. So they are taken together, before the first packet's turn: what they are looked up by is asked for, and those
//! that plainly stand are renewed, whose packets go the short way then. What becomes of any other is for
//! [`Pipeline::standing`] to say, in its packet's turn.

use arrayvec::ArrayVec;

use super::access;
use super::revalidate::{Standing, revalidate};
use super::side::{Parts, Sided};
use super::{Pipeline, Stage};
use crate::flow::Entry;
use crate::io::BURST;
use crate::sys::prefetch_all;
use crate::tables::Tabled;
use crate::wire::{V4, V6};

impl Pipeline {
    /// Renews what flows of a burst that are of a snapshot gone by stand under this one. `likely`: the entries their
    /// packets' hashes led to, a few of them other flows'.
    #[cold]
    pub(super) fn renew(&mut self, stages: &[Stage], likely: &[Option<Entry>]) {
        let mut bygone = ArrayVec::<(u32, bool), BURST>::new();
        let mut any = false;
        for (stage, entry) in stages.iter().zip(likely) {
            let Some(Entry { record, .. }) = *entry else { continue };
            let v6 = match stage {
                Stage::Plain4 => false,
                Stage::Plain6 => true,
                Stage::Datagram(packet) | Stage::Transit(packet) => packet.v6,
                _ => continue,
            };
            any = true;
            if if v6 { self.ask_for_service::<V6>(record) } else { self.ask_for_service::<V4>(record) } {
                bygone.push((record, v6));
            }
        }
        for &(record, v6) in &bygone {
            if v6 { self.ask_for_backend::<V6>(record) } else { self.ask_for_backend::<V4>(record) }
        }
        // There may be more in the next burst.
        self.renews = !any || !bygone.is_empty();
        for (record, v6) in bygone {
            if v6 { self.renew_flow::<V6>(record) } else { self.renew_flow::<V4>(record) }
        }
    }

    /// Whether the flow is of another snapshot; its service's lines are on their way then.
    fn ask_for_service<F: Sided>(&self, at: u32) -> bool {
        let record = F::side(self).flows.record(at);
        let is_bygone = record.epoch != self.epoch;
        if is_bygone && let Some(service) = self.view.tables.service(record.service) {
            prefetch_all(&**service);
        }
        is_bygone
    }

    fn ask_for_backend<F: Sided>(&self, at: u32) {
        let record = F::side(self).flows.record(at);
        let service = self.view.tables.service(record.service);
        if let Some((_, backend)) = service.and_then(|service| service.set.likely(record.node_slot)) {
            prefetch_all(backend);
        }
        if let Some(hop) = self.view.node_hops.get(usize::from(record.node_slot)) {
            prefetch_all(hop);
        }
    }

    /// What the first packet's [`Pipeline::standing`] comes to, of a flow that stands; nothing, of any other.
    fn renew_flow<F: Sided + Tabled>(&mut self, at: u32) {
        let epoch = self.epoch;
        let Parts { side, view, stats, .. } = F::parts(self);
        let record = side.flows.record_mut(at);
        if record.epoch == epoch {
            return;
        }
        let Some(word) = record.word() else { return };
        if let (Standing::Valid, load) = revalidate::<F>(record, word, &view.tables, false) {
            side.flows.recount(at, load);
            access::check_again(side, &view.tables, stats, at, None);
        }
    }
}
