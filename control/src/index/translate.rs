//! From the Index to one whole snapshot, and of each Service how far it is.
//!
//! Pure: the same Index gives the same snapshot on every box, but for who announces the addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{
    Affinity, Announce, Backend, BackendSet, BackendState, Desired, Mode, Node, Service, ServiceTimeouts,
};

use super::ask::{self, Ask, Refused};
use super::kinds::{Counts, NodeInfo, Out, PortInfo, RecordInfo, ServiceInfo, ServiceKey, ServiceType, Transport};
use super::{Index, support};
use crate::config::{AnnounceBy, ControlConfig, KubernetesConfig, NodeCheck};
use crate::crd::Claim;
use crate::pool::Family;
use crate::probe::{Check, ProbeTarget};

/// What the dataplane refused by name, and why: left out, so that it does not keep the rest waiting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quarantine {
    pub services: HashMap<ServiceKey, String>,
    /// A node that is the box itself, for one.
    pub nodes: HashMap<Arc<str>, String>,
}

#[derive(Debug, Default)]
pub struct Translation {
    /// Generation and term are the sender's.
    pub desired: Desired,
    /// Every Service that is ours, or has something of ours left on it.
    pub plans: BTreeMap<ServiceKey, Plan>,
    /// Claims of Services that are no more, or no longer ours: to be released once the dataplane is rid of them.
    pub orphans: Vec<(IpAddr, Claim)>,
    pub targets: Vec<ProbeTarget>,
    /// Names of the sets that have no backend that takes new flows.
    pub empty_sets: BTreeSet<Arc<str>>,
}

/// How far a Service is, and what it gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub stage: Stage,
    pub uid: Arc<str>,
    /// Not of type LoadBalancer: the VIP goes to an annotation.
    pub exposed: bool,
    /// `ipMode`
    pub ip_mode: &'static str,
    pub mode: Mode,
    /// In the order of the Service's families; only those recorded.
    pub vips: Vec<IpAddr>,
    /// Families asked for and not recorded yet.
    pub missing: Vec<Family>,
    /// Recorded addresses that the Service does not ask for (any more).
    pub surplus: Vec<IpAddr>,
    /// The sets its ports use, as they are named in the snapshot; also the probes' groups.
    pub groups: Vec<Arc<str>>,
    /// The client's address is lost although `externalTrafficPolicy: Local` was chosen.
    pub source_lost: bool,
    pub sticky: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// Ours, but it asks for what cannot be.
    Refused(Refused),
    /// The finalizer comes before anything else.
    NeedsFinalizer,
    /// A former Service of this name holds addresses still; they go first.
    NeedsCleanup,
    NeedsAddress,
    /// In the snapshot.
    Programmed,
    /// Ours no longer: out of the snapshot, to be cleaned up.
    Leaving,
}

#[must_use]
pub fn translate(index: &Index, config: &ControlConfig, announces: bool, quarantine: &Quarantine) -> Translation {
    let Some(kubernetes) = &config.kubernetes else { return Translation::default() };
    let mut builder = Builder {
        index,
        config,
        kubernetes,
        announces,
        quarantine,
        out: Translation::default(),
        sets: BTreeMap::new(),
        used_nodes: BTreeSet::new(),
        probes: BTreeMap::new(),
    };
    for (key, info) in index.services.iter() {
        builder.service(key, info);
    }
    builder.orphans();
    builder.finish()
}

/// Whether a Service bears traces of ours: what tells a finalizer that we added from anybody else's.
#[must_use]
pub fn is_marked(index: &Index, key: &ServiceKey, info: &ServiceInfo, owner: &str) -> bool {
    info.spec.own_finalizer
        || !info.status.conditions.is_empty()
        || info.status.vip_annotation.is_some()
        || index.records_of(key).any(|r| r.owner == owner && r.claimed_by(&info.spec.uid))
}

struct Builder<'a> {
    index: &'a Index,
    config: &'a ControlConfig,
    kubernetes: &'a KubernetesConfig,
    announces: bool,
    quarantine: &'a Quarantine,
    out: Translation,
    sets: BTreeMap<Arc<str>, Vec<Backend>>,
    used_nodes: BTreeSet<Arc<str>>,
    probes: BTreeMap<Arc<str>, ProbeTarget>,
}

impl Builder<'_> {
    fn service(&mut self, key: &ServiceKey, info: &ServiceInfo) {
        if !ask::is_wanted(&info.spec, self.kubernetes) {
            // A Service being deleted with our class still on it is ours even if nothing else was written yet.
            let deleted_ours = info.spec.deleting
                && info.spec.finalizer
                && info.spec.kind == ServiceType::LoadBalancer
                && info.spec.class.as_ref().map_or(self.kubernetes.default_class, |c| *c == self.kubernetes.class);
            if deleted_ours || is_marked(self.index, key, info, &self.kubernetes.owner) {
                let mut plan = self.plan(info, Stage::Leaving, self.kubernetes.mode);
                // Only the Service's own end keeps its address for the next one of its name.
                plan.sticky =
                    info.spec.deleting && info.spec.annotations.get(ask::STICKY).is_some_and(|v| v.trim() == "true");
                plan.exposed = info.spec.kind != ServiceType::LoadBalancer;
                self.out.plans.insert(key.clone(), plan);
            }
            return;
        }
        let read = ask::read(&info.spec, self.kubernetes);
        let plan = match (read, self.quarantine.services.get(key)) {
            (Err(refused), _) => self.refused(key, info, refused),
            (Ok(_), Some(why)) => self.refused(key, info, Refused::new("RefusedByDataplane", why.clone())),
            (Ok(ask), None) => self.wanted(key, info, &ask),
        };
        self.out.plans.insert(key.clone(), plan);
    }

    fn plan(&self, info: &ServiceInfo, stage: Stage, mode: Mode) -> Plan {
        Plan {
            stage,
            uid: info.spec.uid.clone(),
            exposed: ask::is_exposed(&info.spec),
            ip_mode: if support::is_dsr(mode) { "VIP" } else { "Proxy" },
            mode,
            vips: Vec::new(),
            missing: Vec::new(),
            surplus: Vec::new(),
            groups: Vec::new(),
            source_lost: false,
            sticky: false,
        }
    }

    /// A refused Service keeps the addresses it has, so that mending it brings them back.
    fn refused(&self, key: &ServiceKey, info: &ServiceInfo, refused: Refused) -> Plan {
        let mut plan = self.plan(info, Stage::Refused(refused), self.kubernetes.mode);
        plan.vips = self.own_records(key, info).map(|r| r.address).collect();
        plan
    }

    fn own_records<'s>(&'s self, key: &ServiceKey, info: &'s ServiceInfo) -> impl Iterator<Item = &'s RecordInfo> {
        let owner = &self.kubernetes.owner;
        self.index.records_of(key).filter(move |r| r.owner == *owner && r.claimed_by(&info.spec.uid))
    }

    fn wanted(&mut self, key: &ServiceKey, info: &ServiceInfo, ask: &Ask) -> Plan {
        let mut plan = self.plan(info, Stage::Programmed, ask.mode);
        plan.sticky = ask.sticky;
        plan.source_lost = info.spec.local && ask.mode == Mode::Nat;
        let finalized = if plan.exposed { info.spec.own_finalizer } else { info.spec.finalizer };
        if !finalized {
            plan.stage = Stage::NeedsFinalizer;
            return plan;
        }
        let former = |r: &RecordInfo| {
            r.claims.iter().any(|c| *c.name == *key.name && *c.namespace == *key.namespace && *c.uid != *info.spec.uid)
        };
        if self.index.records_of(key).any(|r| r.owner == self.kubernetes.owner && former(r)) {
            plan.stage = Stage::NeedsCleanup;
            return plan;
        }
        self.addresses(key, info, ask, &mut plan);
        if plan.vips.is_empty() {
            plan.stage = Stage::NeedsAddress;
            return plan;
        }
        if let Some(refused) = self.port_conflict(key, info, &plan.vips) {
            plan.stage = Stage::Refused(refused);
            return plan;
        }
        for (position, vip) in plan.vips.clone().into_iter().enumerate() {
            self.program(key, info, ask, vip, position, &mut plan);
        }
        plan
    }

    /// Splits the recorded addresses into those that answer what is asked for and the surplus.
    fn addresses(&self, key: &ServiceKey, info: &ServiceInfo, ask: &Ask, plan: &mut Plan) {
        let mut recorded: Vec<&RecordInfo> = self.own_records(key, info).collect();
        for family in &info.spec.families {
            let of_family = |r: &&RecordInfo| Family::of(r.address) == *family;
            let fits = |r: &&RecordInfo| of_family(r) && answers(r, ask);
            // Until a better one is recorded the old one serves: a request that cannot be met takes nothing away.
            let found = recorded.iter().position(&fits).or_else(|| {
                plan.missing.push(*family);
                recorded.iter().position(of_family)
            });
            if let Some(position) = found {
                plan.vips.push(recorded.swap_remove(position).address);
            }
        }
        plan.surplus = recorded.iter().map(|r| r.address).collect();
    }

    /// On a shared address the Service that claimed it first has the port.
    fn port_conflict(&self, key: &ServiceKey, info: &ServiceInfo, vips: &[IpAddr]) -> Option<Refused> {
        for vip in vips {
            let record = self.index.records.get(vip)?;
            for claim in record.claims.iter().take_while(|c| *c.uid != *info.spec.uid) {
                let other = ServiceKey::new(&claim.namespace, &claim.name);
                let Some(ports) = self.index.services.get(&other).map(|i| &i.spec.ports) else { continue };
                let clash = |p: &&PortInfo| ports.iter().any(|o| (o.transport, o.port) == (p.transport, p.port));
                if let Some(port) = info.spec.ports.iter().find(clash) {
                    let (port, transport) = (port.port, port.transport.name());
                    let message =
                        format!("{vip} port {port}/{transport} is used by Service {other}, which shares it with {key}");
                    return Some(Refused::new("PortConflict", message));
                }
            }
        }
        None
    }

    fn program(
        &mut self,
        key: &ServiceKey,
        info: &ServiceInfo,
        ask: &Ask,
        vip: IpAddr,
        position: usize,
        plan: &mut Plan,
    ) {
        let family = Family::of(vip);
        let set = if info.spec.local { self.local_set(key, info, ask, family) } else { self.cluster_set(family) };
        let announce = match (ask.announce, self.kubernetes.announce) {
            (Some(Announce::None), _) | (None, AnnounceBy::Routes) => Announce::None,
            _ if self.announces => Announce::L2,
            _ => Announce::None,
        };
        // The second family's entries need names of their own; the first keeps its own when one is added.
        let suffix = if position == 0 { String::new() } else { format!("/{family}") };
        let dsr = support::is_dsr(ask.mode);
        for port in &info.spec.ports {
            let Some(protocol) = support::protocol(port.transport) else { continue };
            self.out.desired.services.push(Service {
                mode: ask.mode,
                scheduler: ask.scheduler,
                set: Some(set.to_string()),
                target_port: if dsr { Some(port.port) } else { port.node_port },
                source_ranges: ask.source_ranges.clone(),
                limits: ask.limits.clone(),
                announce: Some(announce),
                timeouts: ask.idle_timeout.map(|seconds| ServiceTimeouts {
                    tcp_established: Some(seconds),
                    udp: Some(seconds),
                    sctp_established: Some(seconds),
                    ..ServiceTimeouts::default()
                }),
                // All ports of the Service, as one: its clients mean one peer by it.
                affinity: info.spec.affinity.map(|timeout| Affinity {
                    timeout,
                    group: Some(key.to_string()),
                    ..Affinity::client_ip()
                }),
                ..Service::at(format!("{key}:{}{suffix}", port.label()), vip, port.port, protocol)
            });
        }
        if self.kubernetes.probes.each_node_port {
            self.probe_each_port(key, info, &set, family);
        }
        plan.groups.push(set);
    }

    /// All nodes that have an address of the family.
    fn cluster_set(&mut self, family: Family) -> Arc<str> {
        let name: Arc<str> = format!("nodes/{family}").into();
        if !self.sets.contains_key(&name) {
            let index = self.index;
            let members: Vec<(Arc<str>, Counts)> =
                index.nodes.iter().map(|(node, _)| (node.clone(), Counts { ready: 1, terminating: 0 })).collect();
            self.add_set(&name, family, &members, false);
            self.probe_nodes(&name, family);
        }
        name
    }

    /// The nodes that have endpoints of the Service.
    fn local_set(&mut self, key: &ServiceKey, info: &ServiceInfo, ask: &Ask, family: Family) -> Arc<str> {
        let name: Arc<str> = format!("local/{key}/{family}").into();
        let mut nodes: BTreeMap<Arc<str>, Counts> = BTreeMap::new();
        for slice in self.index.slices_of(key).filter(|s| s.family == family) {
            for (node, counts) in &slice.nodes {
                let entry = nodes.entry(node.clone()).or_default();
                *entry = entry.plus(*counts);
            }
        }
        let members: Vec<(Arc<str>, Counts)> = nodes.into_iter().collect();
        self.add_set(&name, family, &members, ask.weigh_by_endpoints);
        match info.spec.health_check_node_port.filter(|_| self.kubernetes.probes.local) {
            Some(port) => self.probe_local(key, info, port, &name, family),
            // An exposed NodePort Service has none: the node's own check must do.
            None => self.probe_nodes(&name, family),
        }
        name
    }

    fn add_set(&mut self, name: &Arc<str>, family: Family, members: &[(Arc<str>, Counts)], weigh: bool) {
        // Where nothing is ready, what still serves while it terminates is better than nothing.
        let any_ready = members.iter().any(|(node, c)| c.ready > 0 && self.is_backend(node, family));
        let mut backends = Vec::with_capacity(members.len());
        for (node, counts) in members {
            let Some(info) = self.node(node, family) else { continue };
            let drains = info.out.is_some_and(Out::drains) || self.index.draining.contains(node);
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
            self.used_nodes.insert(node.clone());
        }
        if !backends.iter().any(|b| b.state == BackendState::Active) {
            self.out.empty_sets.insert(name.clone());
        }
        self.sets.insert(name.clone(), backends);
    }

    fn node(&self, name: &Arc<str>, family: Family) -> Option<&NodeInfo> {
        self.index
            .nodes
            .get(name)
            .filter(|info| info.address(family).is_some() && !self.quarantine.nodes.contains_key(name))
    }

    fn is_backend(&self, name: &Arc<str>, family: Family) -> bool {
        self.node(name, family).is_some_and(NodeInfo::is_backend)
    }

    fn members(&self, set: &Arc<str>, family: Family) -> Vec<(Arc<str>, IpAddr)> {
        let member = |b: &Backend| {
            let node: Arc<str> = b.node.as_deref()?.into();
            let address = self.node(&node, family)?.address(family)?;
            Some((node, address))
        };
        self.sets.get(set).into_iter().flatten().filter_map(member).collect()
    }

    /// One check per node, for every Service that has no better one.
    fn probe_nodes(&mut self, set: &Arc<str>, family: Family) {
        let probes = &self.kubernetes.probes;
        let check = match probes.node {
            NodeCheck::Http => http(probes.node_port),
            NodeCheck::Tcp => Check::Tcp { port: probes.node_port },
            NodeCheck::None => return,
        };
        let group: Arc<str> = format!("nodes/{family}").into();
        for (node, address) in self.members(set, family) {
            self.probe(&format!("node/{node}/{address}"), address, check.clone(), vec![None], &group);
        }
    }

    fn probe_local(&mut self, key: &ServiceKey, info: &ServiceInfo, port: u16, set: &Arc<str>, family: Family) {
        let covers: Vec<Option<u16>> = info.spec.ports.iter().map(|p| p.node_port).filter(Option::is_some).collect();
        for (node, address) in self.members(set, family) {
            self.probe(&format!("local/{key}/{node}/{address}"), address, http(port), covers.clone(), set);
        }
    }

    /// Opt-in: it costs services times nodes.
    fn probe_each_port(&mut self, key: &ServiceKey, info: &ServiceInfo, set: &Arc<str>, family: Family) {
        for (node, address) in self.members(set, family) {
            let tcp = info.spec.ports.iter().filter(|p| p.transport == Transport::Tcp).filter_map(|p| p.node_port);
            for port in tcp {
                let id = format!("port/{key}/{node}/{address}:{port}");
                self.probe(&id, address, Check::Tcp { port }, vec![Some(port)], set);
            }
        }
    }

    fn probe(&mut self, id: &str, address: IpAddr, check: Check, covers: Vec<Option<u16>>, group: &Arc<str>) {
        if self.probes.contains_key(id) {
            return;
        }
        let id: Arc<str> = id.into();
        let timing = self.config.health.timing();
        self.probes.insert(id.clone(), ProbeTarget { id, address, check, timing, covers, group: group.clone() });
    }

    /// Claims in our records that no plan stands for.
    fn orphans(&mut self) {
        for record in self.index.records.values().filter(|r| r.owner == self.kubernetes.owner) {
            for claim in &record.claims {
                let key = ServiceKey::new(&claim.namespace, &claim.name);
                let plan = self.out.plans.get(&key).filter(|plan| *plan.uid == *claim.uid);
                let keeps = plan.is_some_and(|p| p.stage != Stage::Leaving && !p.surplus.contains(&record.address));
                if !keeps {
                    self.out.orphans.push((record.address, claim.clone()));
                }
            }
        }
    }

    fn finish(mut self) -> Translation {
        let index = self.index;
        let node = |name: &Arc<str>| {
            let info = index.nodes.get(name)?;
            Some(Node { name: name.to_string(), addresses: info.v4.into_iter().chain(info.v6).collect() })
        };
        self.out.desired.nodes = self.used_nodes.iter().filter_map(node).collect();
        self.out.desired.sets =
            self.sets.into_iter().map(|(name, backends)| BackendSet { name: name.to_string(), backends }).collect();
        self.out.targets = self.probes.into_values().collect();
        self.out
    }
}

/// Whether a recorded address is what is asked for (now).
fn answers(record: &RecordInfo, ask: &Ask) -> bool {
    let explicit = ask.addresses.iter().any(|a| Family::of(*a) == Family::of(record.address));
    let address = !explicit || ask.addresses.contains(&record.address);
    // A record of no pool is an address taken over from a status: it stays wherever it is.
    let pool = ask.pool.as_ref().is_none_or(|pool| record.pool.is_empty() || **pool == *record.pool);
    let sharing = record.claims.len() < 2 || ask.share_key.as_deref().unwrap_or_default() == record.share_key;
    address && pool && sharing
}

/// `/healthz` is what the service controller asks of both kube-proxy's own port and a `healthCheckNodePort`.
fn http(port: u16) -> Check {
    Check::Http { port, tls: false, path: "/healthz".into(), host: None, expect: 200..=299, drain_on_503: true }
}
