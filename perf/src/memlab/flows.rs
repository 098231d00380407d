//! The workers' flow records as the lab sees them: read from their files, beside the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use penstock_dataplane::flow::{Flags, Record, State};
use penstock_dataplane::wire::{Family, V4, V6};

use super::plan;
use super::the_box::TheBox;

/// A flow record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub worker: u16,
    pub protocol: u8,
    pub state: State,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub node: SocketAddr,
    /// None in `dnat`.
    pub snat: Option<SocketAddr>,
}

pub(super) fn list(the_box: &TheBox) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for (viewer, worker) in the_box.viewers()?.iter().zip(0..) {
        viewer.each_v4(|record| {
            let snat = viewer.header().snat_v4[usize::from(record.snat)];
            flows.extend(read::<V4>(worker, record, snat));
        });
        viewer.each_v6(|record| {
            let snat = viewer.header().snat_v6[usize::from(record.snat)];
            flows.extend(read::<V6>(worker, record, u128::from_be_bytes(snat)));
        });
    }
    Ok(flows)
}

fn read<F: Family>(worker: u16, record: &Record<F::Addr>, snat: F::Addr) -> Option<Flow> {
    let word = record.word()?;
    let at = |address: F::Addr, port: u16| SocketAddr::new(F::to_ip(address), port);
    Some(Flow {
        worker,
        protocol: word.protocol,
        state: word.state,
        client: at(record.client, record.client_port),
        vip: at(record.vip, record.vip_port),
        node: at(record.node, record.node_port),
        snat: (!word.flags.has(Flags::DNAT)).then(|| at(snat, record.snat_port)),
    })
}

/// What must hold across workers: a flow is in one table, and no reply tuple is given out twice.
pub(super) fn check(flows: &[Flow], workers: u16) -> Result<()> {
    let (mut clients, mut replies) = (BTreeSet::new(), BTreeSet::new());
    for flow in flows {
        ensure!(clients.insert((flow.protocol, flow.client, flow.vip)), "in two tables: {flow:?}");
        if let Some(snat) = flow.snat {
            ensure!(replies.insert((flow.protocol, flow.node, snat)), "a SNAT tuple given out twice: {flow:?}");
            ensure!(snat.port() % workers == flow.worker, "a SNAT port of another worker's: {flow:?}");
        }
    }
    Ok(())
}

/// How many flows lead to each node.
pub(super) fn by_node(flows: &[Flow], nodes: u8) -> BTreeMap<String, u64> {
    let names: BTreeMap<IpAddr, String> = (0..nodes)
        .flat_map(|index| {
            let address = plan::node(index);
            [(address.v4.into(), plan::node_name(index)), (address.v6.into(), plan::node_name(index))]
        })
        .collect();
    let mut counts: BTreeMap<String, u64> = names.values().map(|name| (name.clone(), 0)).collect();
    for flow in flows {
        if let Some(name) = names.get(&flow.node.ip()) {
            *counts.entry(name.clone()).or_default() += 1;
        }
    }
    counts
}
