//! What one Service contributes: its plan, and its ports in the snapshot.

use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{Affinity, Announce, Mode, Protocol, Service, ServiceTimeouts};

use super::{Plan, Stage, View, is_marked};
use crate::config::AnnounceBy;
use crate::index::ask::{self, Ask, Refused};
use crate::index::kinds::{PortInfo, RecordInfo, ServiceInfo, ServiceKey, ServiceType};
use crate::pool::Family;

/// What the snapshot gets of a Service.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) services: Vec<Service>,
    /// The backend set of each family it has an address of.
    pub(super) sets: Vec<Use>,
}

#[derive(Debug)]
pub(super) struct Use {
    pub(super) name: Arc<str>,
    pub(super) family: Family,
    pub(super) mode: Mode,
    /// Only nodes with endpoints of the Service.
    pub(super) local: bool,
    pub(super) weigh_by_endpoints: bool,
}

/// The set of all nodes that have an address of the family.
pub(super) fn cluster_set(family: Family) -> Arc<str> {
    match family {
        Family::V4 => "nodes/IPv4".into(),
        Family::V6 => "nodes/IPv6".into(),
    }
}

/// None for a Service that is not for us and has nothing of ours left on it.
pub(super) fn make(view: &View<'_>, key: &ServiceKey, info: &ServiceInfo) -> Option<(Plan, Part)> {
    let maker = Maker { view, key, info };
    if !ask::is_wanted(&info.spec, view.kubernetes) {
        return Some((maker.leaving()?, Part::default()));
    }
    Some(match (ask::read(&info.spec, view.kubernetes), view.quarantine.services.get(key)) {
        (Err(refused), _) => (maker.refused(refused), Part::default()),
        (Ok(_), Some(why)) => (maker.refused(Refused::new("RefusedByDataplane", why.clone())), Part::default()),
        (Ok(ask), None) => maker.wanted(&ask),
    })
}

struct Maker<'a> {
    view: &'a View<'a>,
    key: &'a ServiceKey,
    info: &'a ServiceInfo,
}

impl<'a> Maker<'a> {
    fn plan(&self, stage: Stage, mode: Mode) -> Plan {
        Plan {
            stage,
            uid: self.info.spec.uid.clone(),
            exposed: ask::is_exposed(&self.info.spec),
            ip_mode: if mode == Mode::Dsr { "VIP" } else { "Proxy" },
            mode,
            vips: Vec::new(),
            missing: Vec::new(),
            surplus: Vec::new(),
            groups: Vec::new(),
            source_lost: false,
            sticky: false,
        }
    }

    fn leaving(&self) -> Option<Plan> {
        let (spec, kubernetes) = (&self.info.spec, self.view.kubernetes);
        // A Service being deleted with our class still on it is ours even if nothing else was written yet.
        let deleted_ours = spec.deleting
            && spec.finalizer
            && spec.kind == ServiceType::LoadBalancer
            && spec.class.as_ref().map_or(kubernetes.default_class, |c| *c == kubernetes.class);
        if !deleted_ours && !is_marked(self.view.index, self.key, self.info, &kubernetes.owner) {
            return None;
        }
        let mut plan = self.plan(Stage::Leaving, kubernetes.mode);
        // Only the Service's own end keeps its address for the next one of its name.
        plan.sticky = spec.deleting && spec.annotations.get(ask::STICKY).is_some_and(|v| v.trim() == "true");
        plan.exposed = spec.kind != ServiceType::LoadBalancer;
        Some(plan)
    }

    /// A refused Service keeps the addresses it has, so that mending it brings them back.
    fn refused(&self, refused: Refused) -> Plan {
        let mut plan = self.plan(Stage::Refused(refused), self.view.kubernetes.mode);
        plan.vips = self.own_records().map(|r| r.address).collect();
        plan
    }

    fn own_records(&self) -> impl Iterator<Item = &'a RecordInfo> {
        let (owner, uid) = (&self.view.kubernetes.owner, &self.info.spec.uid);
        self.view.index.records_of(self.key).filter(move |r| r.owner == *owner && r.claimed_by(uid))
    }

    fn wanted(&self, ask: &Ask) -> (Plan, Part) {
        let spec = &self.info.spec;
        let mut plan = self.plan(Stage::Programmed, ask.mode);
        plan.sticky = ask.sticky;
        plan.source_lost = spec.local && ask.mode == Mode::Nat;
        if let Some(stage) = self.waits(&plan) {
            plan.stage = stage;
            return (plan, Part::default());
        }
        self.addresses(ask, &mut plan);
        if plan.vips.is_empty() {
            plan.stage = Stage::NeedsAddress;
            return (plan, Part::default());
        }
        if let Some(refused) = self.port_conflict(&plan.vips) {
            plan.stage = Stage::Refused(refused);
            return (plan, Part::default());
        }
        let part = self.program(ask, &plan.vips);
        plan.groups = part.sets.iter().map(|set| set.name.clone()).collect();
        (plan, part)
    }

    /// What comes before an address.
    fn waits(&self, plan: &Plan) -> Option<Stage> {
        let (spec, key) = (&self.info.spec, self.key);
        // Where somebody's PUT took it off again, what is recorded is served all the same while it is put back.
        if !plan.has_finalizer(self.info) && self.own_records().next().is_none() {
            return Some(Stage::NeedsFinalizer);
        }
        let former = |r: &RecordInfo| {
            r.claims.iter().any(|c| *c.name == *key.name && *c.namespace == *key.namespace && *c.uid != *spec.uid)
        };
        let owner = &self.view.kubernetes.owner;
        self.view.index.records_of(key).any(|r| r.owner == *owner && former(r)).then_some(Stage::NeedsCleanup)
    }

    /// Splits the recorded addresses into those that answer what is asked for and the surplus.
    fn addresses(&self, ask: &Ask, plan: &mut Plan) {
        let mut recorded: Vec<&RecordInfo> = self.own_records().collect();
        // Of two that fit, the one that clients know.
        recorded.sort_by_key(|r| !self.info.status.ingress.iter().any(|i| i.ip == Some(r.address)));
        for family in &self.info.spec.families {
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
    fn port_conflict(&self, vips: &[IpAddr]) -> Option<Refused> {
        let (index, spec) = (self.view.index, &self.info.spec);
        for vip in vips {
            let record = index.records.get(vip)?;
            for claim in record.claims.iter().take_while(|c| *c.uid != *spec.uid) {
                let other = ServiceKey::new(&claim.namespace, &claim.name);
                let Some(ports) = index.services.get(&other).map(|i| &i.spec.ports) else { continue };
                let clash = |p: &&PortInfo| ports.iter().any(|o| (o.protocol, o.port) == (p.protocol, p.port));
                if let Some(port) = spec.ports.iter().find(clash) {
                    let (port, protocol, key) = (port.port, port.protocol_name(), self.key);
                    let message =
                        format!("{vip} port {port}/{protocol} is used by Service {other}, which shares it with {key}");
                    return Some(Refused::new("PortConflict", message));
                }
            }
        }
        None
    }

    fn program(&self, ask: &Ask, vips: &[IpAddr]) -> Part {
        let spec = &self.info.spec;
        let mut part = Part::default();
        for (position, vip) in vips.iter().enumerate() {
            let family = Family::of(*vip);
            let name = if spec.local { format!("local/{}/{family}", self.key).into() } else { cluster_set(family) };
            // The second family's entries need names of their own; the first keeps its own when one is added.
            let suffix = if position == 0 { String::new() } else { format!("/{family}") };
            part.services.extend(spec.ports.iter().map(|port| self.entry(ask, port, *vip, &name, &suffix)));
            let (mode, weigh_by_endpoints) = (ask.mode, ask.weigh_by_endpoints);
            part.sets.push(Use { name, family, mode, local: spec.local, weigh_by_endpoints });
        }
        part
    }

    fn entry(&self, ask: &Ask, port: &PortInfo, vip: IpAddr, set: &Arc<str>, suffix: &str) -> Service {
        let key = self.key;
        // What is about connections is no fault of a datagram port beside them.
        let of = |applies: bool| applies.then_some(());
        Service {
            mode: ask.mode,
            scheduler: ask.scheduler,
            set: Some(set.to_string()),
            target_port: if ask.mode == Mode::Dsr { Some(port.port) } else { port.node_port },
            source_ranges: ask.source_ranges.clone(),
            limits: ask.limits.clone(),
            announce: Some(self.announce(ask)),
            timeouts: ask.idle_timeout.map(|seconds| ServiceTimeouts {
                tcp_established: Some(seconds),
                udp: Some(seconds),
                sctp_established: Some(seconds),
                ..ServiceTimeouts::default()
            }),
            on_down: of(port.protocol != Protocol::Udp).and(ask.on_down).unwrap_or_default(),
            on_idle: of(port.protocol == Protocol::Tcp).and(ask.on_idle).unwrap_or_default(),
            no_backend: ask.no_backend.unwrap_or_default(),
            slow_start: ask.slow_start,
            panic_threshold: ask.panic_threshold,
            // All ports of the Service, as one: its clients mean one peer by it.
            affinity: self.info.spec.affinity.map(|timeout| Affinity {
                timeout,
                group: Some(key.to_string()),
                ..Affinity::client_ip()
            }),
            ..Service::at(format!("{key}:{}{suffix}", port.label()), vip, port.port, port.protocol)
        }
    }

    fn announce(&self, ask: &Ask) -> Announce {
        match (ask.announce, self.view.kubernetes.announce) {
            (Some(Announce::None), _) | (None, AnnounceBy::Routes) => Announce::None,
            _ if self.view.announces => Announce::L2,
            _ => Announce::None,
        }
    }
}

/// Whether a recorded address is what is asked for (now).
fn answers(record: &RecordInfo, ask: &Ask) -> bool {
    let explicit = ask.addresses.iter().any(|a| Family::of(*a) == Family::of(record.address));
    let address = !explicit || ask.addresses.contains(&record.address);
    // One that was made by hand may name no pool: it stays wherever it is.
    let pool = ask.pool.as_ref().is_none_or(|pool| record.pool.is_empty() || **pool == *record.pool);
    let sharing = record.claims.len() < 2 || ask.share_key.as_deref().unwrap_or_default() == record.share_key;
    address && pool && sharing
}
