//! From the Index to one whole snapshot, and of each Service how far it is.
//!
//! Pure: the same Index gives the same snapshot on every box, but for who announces the addresses. What a Service
//! contributes ([`part`]) depends on little: itself, its records, and those it shares an address with. So a
//! [`Translation`] is brought up to date by looking at those alone ([`Dirty`]); what depends on nodes and endpoints
//! ([`sets`]) is made anew each time. [`translate`] makes the whole at once, and is what an update is tested against.

mod part;
mod sets;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{Desired, Mode, Service};

use self::part::Part;
use super::Index;
use super::ask::Refused;
use super::kinds::{RecordInfo, ServiceInfo, ServiceKey};
use crate::config::{ControlConfig, KubernetesConfig};
use crate::crd::Claim;
use crate::pool::Family;
use crate::probe::ProbeTarget;

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
    pub desired: Arc<Desired>,
    /// Every Service that is ours, or has something of ours left on it.
    pub plans: BTreeMap<ServiceKey, Plan>,
    /// Claims of Services that are no more, or no longer ours: to be released once the dataplane is rid of them.
    pub orphans: Vec<(IpAddr, Claim)>,
    pub targets: Vec<ProbeTarget>,
    /// Names of the sets that have no backend that takes new flows.
    pub empty_sets: BTreeSet<Arc<str>>,
    /// What each Service contributes besides its plan.
    parts: BTreeMap<ServiceKey, Part>,
}

/// Which Services may contribute something else than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dirty {
    All,
    Only(BTreeSet<ServiceKey>),
}

impl Default for Dirty {
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

impl Dirty {
    pub fn add(&mut self, keys: impl IntoIterator<Item = ServiceKey>) {
        if let Self::Only(known) = self {
            known.extend(keys);
        }
    }
}

/// What an update changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Services whose plan is another one, or gone.
    pub plans: BTreeSet<ServiceKey>,
    /// Services that are served otherwise than before, whoever announces them.
    pub edited: Vec<ServiceKey>,
    pub desired: bool,
    pub targets: bool,
    pub empty_sets: bool,
}

/// All that a translation depends on but for what is dirty.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub index: &'a Index,
    pub config: &'a ControlConfig,
    pub kubernetes: &'a KubernetesConfig,
    pub announces: bool,
    pub quarantine: &'a Quarantine,
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

impl Plan {
    /// The one that keeps the Service until the box has let go of it.
    #[must_use]
    pub fn has_finalizer(&self, info: &ServiceInfo) -> bool {
        if self.exposed { info.spec.own_finalizer } else { info.spec.finalizer }
    }
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

/// The whole at once.
#[must_use]
pub fn translate(index: &Index, config: &ControlConfig, announces: bool, quarantine: &Quarantine) -> Translation {
    let mut whole = Translation::default();
    if let Some(kubernetes) = &config.kubernetes {
        whole.update(&View { index, config, kubernetes, announces, quarantine }, &Dirty::All);
    }
    whole
}

/// Whether a Service bears traces of ours: what tells a finalizer that we added from anybody else's.
#[must_use]
pub fn is_marked(index: &Index, key: &ServiceKey, info: &ServiceInfo, owner: &str) -> bool {
    info.spec.own_finalizer
        || !info.status.conditions.is_empty()
        || info.status.vip_annotation.is_some()
        || index.records_of(key).any(|r| r.owner == owner && r.claimed_by(&info.spec.uid))
}

impl Translation {
    /// Brings it up to date with the view. What is not dirty must not have changed: [`Dirty`] is the caller's duty.
    pub fn update(&mut self, view: &View<'_>, dirty: &Dirty) -> Difference {
        let mut difference = Difference::default();
        let mut programs = false;
        match dirty {
            Dirty::All => {
                let gone: Vec<ServiceKey> =
                    self.plans.keys().filter(|key| view.index.services.get(key).is_none()).cloned().collect();
                for key in gone.iter().chain(view.index.services.iter().map(|(key, _)| key)) {
                    programs |= self.update_service(view, key, &mut difference);
                }
            }
            Dirty::Only(keys) => {
                for key in keys {
                    programs |= self.update_service(view, key, &mut difference);
                }
            }
        }
        let made = sets::make(view, &self.parts);
        difference.empty_sets = made.empty != self.empty_sets;
        difference.targets = made.targets != self.targets;
        difference.desired = programs || made.sets != self.desired.sets || made.nodes != self.desired.nodes;
        self.empty_sets = made.empty;
        self.targets = made.targets;
        if difference.desired {
            // A new one: what was sent keeps the old.
            let services = match programs {
                true => self.parts.values().flat_map(|part| &part.services).cloned().collect(),
                false => self.desired.services.clone(),
            };
            let (nodes, sets) = (made.nodes, made.sets);
            self.desired = Arc::new(Desired { nodes, sets, services, ..Desired::default() });
        }
        self.orphans = orphans(view, &self.plans);
        difference
    }

    /// The plain way as the oracle of the quick one: where the two differ.
    #[cfg(test)]
    pub(crate) fn same_as(&self, view: &View<'_>) -> Result<(), String> {
        let whole = translate(view.index, view.config, view.announces, view.quarantine);
        let same = [
            ("plans", self.plans == whole.plans),
            ("services", self.desired.services == whole.desired.services),
            ("sets", self.desired == whole.desired),
            ("orphans", self.orphans == whole.orphans),
            ("targets", self.targets == whole.targets),
            ("empty sets", self.empty_sets == whole.empty_sets),
        ];
        let differ: Vec<&str> = same.iter().filter(|(_, same)| !same).map(|(what, _)| *what).collect();
        if differ.is_empty() { Ok(()) } else { Err(differ.join(", ")) }
    }

    /// Whether it contributes other services to the snapshot.
    fn update_service(&mut self, view: &View<'_>, key: &ServiceKey, difference: &mut Difference) -> bool {
        let made = view.index.services.get(key).and_then(|info| part::make(view, key, info));
        let (plan, part) = made.unzip();
        if self.plans.get(key) != plan.as_ref() {
            difference.plans.insert(key.clone());
            match plan {
                Some(plan) => drop(self.plans.insert(key.clone(), plan)),
                None => drop(self.plans.remove(key)),
            }
        }
        let part = part.filter(|part| !part.services.is_empty());
        let before = self.parts.get(key);
        let before = before.map_or(&[][..], |p| &p.services);
        let now = part.as_ref().map_or(&[][..], |p: &Part| &p.services);
        let differs = before != now;
        if differs && is_edit(before, now) {
            difference.edited.push(key.clone());
        }
        match part {
            Some(part) => drop(self.parts.insert(key.clone(), part)),
            None => drop(self.parts.remove(key)),
        }
        differs
    }
}

fn is_edit(before: &[Service], now: &[Service]) -> bool {
    before.len() != now.len() || !before.iter().zip(now).all(|(before, now)| is_same(before, now))
}

/// Served alike, whoever announces.
#[must_use]
pub fn is_same(a: &Service, b: &Service) -> bool {
    a == b || *a == Service { announce: a.announce, ..b.clone() }
}

/// Claims in our records that no plan stands for.
fn orphans(view: &View<'_>, plans: &BTreeMap<ServiceKey, Plan>) -> Vec<(IpAddr, Claim)> {
    let mut orphans = Vec::new();
    for record in view.index.records.values().filter(|r| r.owner == view.kubernetes.owner) {
        for (claim, key) in record.claims.iter().zip(record.services()) {
            let plan = plans.get(&key).filter(|plan| *plan.uid == *claim.uid);
            let keeps = plan.is_some_and(|p| p.stage != Stage::Leaving && !p.surplus.contains(&record.address));
            if !keeps {
                orphans.push((record.address, claim.clone()));
            }
        }
    }
    orphans
}

/// The Services whose part may depend on this one: those that share an address with it, and itself.
pub fn sharers<'a>(index: &'a Index, key: &'a ServiceKey) -> impl Iterator<Item = ServiceKey> + 'a {
    let own = std::iter::once(key.clone());
    own.chain(index.records_of(key).flat_map(RecordInfo::services))
}
