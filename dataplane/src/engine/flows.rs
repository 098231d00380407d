//! Flow records as the API shows them: read from the workers' stores without asking the workers.

use std::net::{IpAddr, SocketAddr};

use penstock_configs::status::{FlowQuery, FlowStatus};

use super::snat::{Pair, Taken};
use super::{Shared, status::FlowCounts};
use crate::clock::{Now, seconds};
use crate::flow::{Flags, Record};
use crate::persist::Viewer;
use crate::tables::{Tabled, Tables, compile::protocol_of};
use crate::wire::{Family, V4, V6};

/// At most `limit` flows that match.
pub fn list(shared: &Shared, query: &FlowQuery, limit: usize) -> Vec<FlowStatus> {
    let tables = std::sync::Arc::clone(&shared.published().tables);
    let now = Now::read();
    let mut list = Vec::new();
    each(shared, |worker, record| {
        if list.len() < limit
            && let Some(flow) = record.describe(worker, &tables, now)
            && query.matches(&flow)
        {
            list.push(flow);
        }
    });
    list
}

/// Flows by service and backend.
pub fn count_by_backend(shared: &Shared) -> FlowCounts {
    let tables = std::sync::Arc::clone(&shared.published().tables);
    let mut counts = FlowCounts::new();
    each(shared, |_, record| {
        if let Some(key) = record.backend(&tables) {
            *counts.entry(key).or_default() += 1;
        }
    });
    counts
}

/// Flows that have a SNAT port, with their worker.
pub fn each_taken(shared: &Shared, mut visit: impl FnMut(usize, Taken)) {
    for (at, worker) in shared.workers.iter().enumerate() {
        let Ok(viewer) = Viewer::open(&worker.store) else { continue };
        let header = viewer.header();
        viewer.each_v4(|record| {
            let snat = header.snat_v4.get(usize::from(record.snat)).copied().unwrap_or_default();
            if let Some(taken) = taken::<V4>(record, snat) {
                visit(at, taken);
            }
        });
        viewer.each_v6(|record| {
            let snat = header.snat_v6.get(usize::from(record.snat)).copied().unwrap_or_default();
            if let Some(taken) = taken::<V6>(record, u128::from_be_bytes(snat)) {
                visit(at, taken);
            }
        });
    }
}

fn taken<F: Family>(record: &Record<F::Addr>, snat: F::Addr) -> Option<Taken> {
    let word = record.word().filter(|word| !word.flags.has(Flags::DNAT))?;
    let backend = SocketAddr::new(F::to_ip(record.node), record.node_port);
    Some(Taken { pair: Pair { address: F::to_ip(snat), backend, protocol: word.protocol }, state: word.state })
}

fn each(shared: &Shared, mut visit: impl FnMut(u16, AnyRecord<'_>)) {
    for (at, worker) in shared.workers.iter().enumerate() {
        let Ok(viewer) = Viewer::open(&worker.store) else { continue };
        viewer.each_v4(|record| visit(at as u16, AnyRecord::V4(record, &viewer)));
        viewer.each_v6(|record| visit(at as u16, AnyRecord::V6(record, &viewer)));
    }
}

enum AnyRecord<'a> {
    V4(&'a Record<u32>, &'a Viewer),
    V6(&'a Record<u128>, &'a Viewer),
}

impl AnyRecord<'_> {
    fn describe(&self, worker: u16, tables: &Tables, now: Now) -> Option<FlowStatus> {
        match self {
            Self::V4(record, viewer) => {
                let snat = viewer.header().snat_v4.get(usize::from(record.snat)).copied()?;
                describe::<V4>(record, snat, worker, tables, now)
            }
            Self::V6(record, viewer) => {
                let snat = viewer.header().snat_v6.get(usize::from(record.snat)).copied()?;
                describe::<V6>(record, u128::from_be_bytes(snat), worker, tables, now)
            }
        }
    }

    fn backend(&self, tables: &Tables) -> Option<(u32, IpAddr, u16)> {
        match self {
            Self::V4(record, _) => backend::<V4>(record, tables),
            Self::V6(record, _) => backend::<V6>(record, tables),
        }
    }
}

fn backend<F: Tabled>(record: &Record<F::Addr>, tables: &Tables) -> Option<(u32, IpAddr, u16)> {
    let service = tables.service_at::<F>(record.vip, record.vip_port, record.word()?.protocol)?;
    Some((service.slot, F::to_ip(record.node), record.node_port))
}

fn describe<F: Tabled>(
    record: &Record<F::Addr>,
    snat: F::Addr,
    worker: u16,
    tables: &Tables,
    now: Now,
) -> Option<FlowStatus> {
    let word = record.word()?;
    let service = tables.service_at::<F>(record.vip, record.vip_port, word.protocol);
    let idle = now.tick().since(record.last_seen());
    let timeout = service.map_or(0, |service| service.timeouts[word.state as usize]);
    let at = |address: F::Addr, port: u16| SocketAddr::new(F::to_ip(address), port);
    Some(FlowStatus {
        worker,
        protocol: protocol_of(word.protocol),
        client: at(record.client, record.client_port),
        vip: at(record.vip, record.vip_port),
        snat: (!word.flags.has(Flags::DNAT)).then(|| at(snat, record.snat_port)),
        backend: at(record.node, record.node_port),
        state: word.state.name().into(),
        service: service.map(|service| service.name.to_string()).unwrap_or_default(),
        idle_seconds: seconds(idle),
        expires_seconds: seconds(timeout.saturating_sub(idle)),
    })
}
