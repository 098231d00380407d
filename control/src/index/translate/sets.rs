//! Backend sets, the nodes in them, and who is asked for their health: what depends on nodes and endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{Backend, BackendSet, BackendState, Mode, Node, Protocol};

use super::View;
use super::part::{Part, Use, cluster_set};
use crate::config::NodeCheck;
use crate::index::kinds::{Counts, NodeInfo, Out, ServiceInfo, ServiceKey};
use crate::pool::Family;
use crate::probe::{Check, ProbeTarget};

#[derive(Debug)]
pub(super) struct Made {
    pub(super) sets: Vec<BackendSet>,
    pub(super) nodes: Vec<Node>,
    pub(super) targets: Vec<ProbeTarget>,
    /// Names of the sets that have no backend that takes new flows.
    pub(super) empty: BTreeSet<Arc<str>>,
}

pub(super) fn make(view: &View<'_>, parts: &BTreeMap<ServiceKey, Part>) -> Made {
    let mut maker =
        Maker { view, sets: BTreeMap::new(), nodes: BTreeSet::new(), probes: BTreeMap::new(), empty: BTreeSet::new() };
    for (key, part) in parts {
        for wanted in &part.sets {
            maker.set(key, wanted);
        }
    }
    maker.finish()
}

struct Maker<'a> {
    view: &'a View<'a>,
    sets: BTreeMap<Arc<str>, Vec<Backend>>,
    nodes: BTreeSet<Arc<str>>,
    probes: BTreeMap<Arc<str>, ProbeTarget>,
    empty: BTreeSet<Arc<str>>,
}

impl Maker<'_> {
    fn set(&mut self, key: &ServiceKey, wanted: &Use) {
        if wanted.local {
            let Some(info) = self.view.index.services.get(key) else { return };
            self.local(key, info, wanted);
        } else {
            self.cluster(wanted);
        }
        if self.view.kubernetes.probes.each_node_port
            && wanted.mode != Mode::Dsr
            && let Some(info) = self.view.index.services.get(key)
        {
            self.probe_each_port(key, info, wanted);
        }
    }

    /// All nodes that have an address of the family.
    fn cluster(&mut self, wanted: &Use) {
        if self.sets.contains_key(&wanted.name) {
            return;
        }
        let index = self.view.index;
        let members: Vec<(Arc<str>, Counts)> =
            index.nodes.iter().map(|(node, _)| (node.clone(), Counts { ready: 1, terminating: 0 })).collect();
        self.add(wanted, &members, false);
        self.probe_nodes(wanted);
    }

    /// The nodes that have endpoints of the Service.
    fn local(&mut self, key: &ServiceKey, info: &ServiceInfo, wanted: &Use) {
        let mut nodes: BTreeMap<Arc<str>, Counts> = BTreeMap::new();
        for slice in self.view.index.slices_of(key).filter(|s| s.family == wanted.family) {
            for (node, counts) in &slice.nodes {
                let entry = nodes.entry(node.clone()).or_default();
                *entry = entry.plus(*counts);
            }
        }
        let members: Vec<(Arc<str>, Counts)> = nodes.into_iter().collect();
        self.add(wanted, &members, wanted.weigh_by_endpoints);
        // In dsr no packet goes to a node port, and the place it does go to, the Service's own port on the node, may be
        // another Service's as well: what is said of a node port would be read by nobody, or by both.
        let speaks = self.view.kubernetes.probes.local && wanted.mode != Mode::Dsr;
        match info.spec.health_check_node_port.filter(|_| speaks) {
            Some(port) => self.probe_local(key, info, port, wanted),
            // An exposed NodePort Service has none, either: the node's own check must do.
            None => self.probe_nodes(wanted),
        }
    }

    fn add(&mut self, wanted: &Use, members: &[(Arc<str>, Counts)], weigh: bool) {
        let family = wanted.family;
        // Where nothing is ready, what still serves while it terminates is better than nothing.
        let any_ready = members.iter().any(|(node, c)| c.ready > 0 && self.is_backend(node, family));
        let mut backends = Vec::with_capacity(members.len());
        for (node, counts) in members {
            let Some(info) = self.node(node, family) else { continue };
            let drains = info.out.is_some_and(Out::drains) || self.view.index.draining.contains(node);
            if info.out.is_some() && !drains {
                continue;
            }
            let (count, leaving) = if counts.ready > 0 || any_ready {
                (counts.ready, counts.ready == 0)
            } else {
                (counts.terminating, false)
            };
            if count == 0 && counts.terminating == 0 {
                continue;
            }
            backends.push(Backend {
                node: Some(node.to_string()),
                weight: if weigh { count.max(1) } else { 1 },
                state: if drains || leaving { BackendState::Draining } else { BackendState::Active },
                ..Backend::default()
            });
            self.nodes.insert(node.clone());
        }
        if !backends.iter().any(|b| b.state == BackendState::Active) {
            self.empty.insert(wanted.name.clone());
        }
        self.sets.insert(wanted.name.clone(), backends);
    }

    fn node(&self, name: &Arc<str>, family: Family) -> Option<&NodeInfo> {
        let is_in = |info: &&NodeInfo| info.address(family).is_some() && !self.view.quarantine.nodes.contains_key(name);
        self.view.index.nodes.get(name).filter(is_in)
    }

    fn is_backend(&self, name: &Arc<str>, family: Family) -> bool {
        self.node(name, family).is_some_and(NodeInfo::is_backend)
    }

    fn members(&self, wanted: &Use) -> Vec<(Arc<str>, IpAddr)> {
        let member = |b: &Backend| {
            let node: Arc<str> = b.node.as_deref()?.into();
            let address = self.node(&node, wanted.family)?.address(wanted.family)?;
            Some((node, address))
        };
        self.sets.get(&wanted.name).into_iter().flatten().filter_map(member).collect()
    }

    /// One check per node, for every Service that has no better one.
    fn probe_nodes(&mut self, wanted: &Use) {
        let probes = &self.view.kubernetes.probes;
        let check = match probes.node {
            NodeCheck::Http => http(probes.node_port),
            NodeCheck::Tcp => Check::Tcp { port: probes.node_port },
            NodeCheck::None => return,
        };
        let group = cluster_set(wanted.family);
        // The kubelet names a node before kube-proxy forwards anything there. A ready endpoint is somebody's word, and may
        // be the only one there is.
        let unproven = !wanted.local;
        for (node, address) in self.members(wanted) {
            let covers = vec![None];
            self.probe(&format!("node/{node}/{address}"), address, check.clone(), covers, &group, unproven);
        }
    }

    fn probe_local(&mut self, key: &ServiceKey, info: &ServiceInfo, port: u16, wanted: &Use) {
        let covers: Vec<Option<u16>> = info.spec.ports.iter().map(|p| p.node_port).filter(Option::is_some).collect();
        for (node, address) in self.members(wanted) {
            let id = format!("local/{key}/{node}/{address}");
            self.probe(&id, address, http(port), covers.clone(), &wanted.name, false);
        }
    }

    /// Opt-in: it costs services times nodes.
    fn probe_each_port(&mut self, key: &ServiceKey, info: &ServiceInfo, wanted: &Use) {
        for (node, address) in self.members(wanted) {
            let tcp = info.spec.ports.iter().filter(|p| p.protocol == Protocol::Tcp).filter_map(|p| p.node_port);
            for port in tcp {
                let id = format!("port/{key}/{node}/{address}:{port}");
                self.probe(&id, address, Check::Tcp { port }, vec![Some(port)], &wanted.name, false);
            }
        }
    }

    fn probe(
        &mut self,
        id: &str,
        address: IpAddr,
        check: Check,
        covers: Vec<Option<u16>>,
        group: &Arc<str>,
        unproven: bool,
    ) {
        if self.probes.contains_key(id) {
            return;
        }
        let id: Arc<str> = id.into();
        let timing = self.view.config.health.timing();
        let group = group.clone();
        self.probes.insert(id.clone(), ProbeTarget { id, address, check, timing, covers, group, unproven });
    }

    fn finish(self) -> Made {
        let index = self.view.index;
        let node = |name: &Arc<str>| {
            let info = index.nodes.get(name)?;
            Some(Node { name: name.to_string(), addresses: info.v4.into_iter().chain(info.v6).collect() })
        };
        let sets = self.sets.into_iter().map(|(name, backends)| BackendSet { name: name.to_string(), backends });
        Made {
            nodes: self.nodes.iter().filter_map(node).collect(),
            sets: sets.collect(),
            targets: self.probes.into_values().collect(),
            empty: self.empty,
        }
    }
}

/// `/healthz` is what the service controller asks of both kube-proxy's own port and a `healthCheckNodePort`. Whether
/// the server takes new connections says nothing of the Service there: one is kept, which at 500 nodes spares most of
/// what the checks cost.
fn http(port: u16) -> Check {
    Check::Http {
        port,
        tls: false,
        path: "/healthz".into(),
        host: None,
        expect: 200..=299,
        drain_on_503: true,
        keeps: true,
    }
}
