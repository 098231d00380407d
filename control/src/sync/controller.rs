//! What to do next, decided on plain data: no API, no socket, and time is an argument.
//!
//! Everything is level-triggered: a step follows from what the Index shows and what the dataplane acknowledged, never
//! from what was done before. So a crash between two steps heals by itself at the next start.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_configs::desired::{BackendState, Desired, Service};

use super::driver::{Parcel, Progress};
use super::events::Note;
use super::feed::{FeedState, Input};
use super::job::Job;
use crate::config::{ControlConfig, KubernetesConfig};
use crate::crd::VipAllocationSpec;
use crate::dataplane::Fault;
use crate::index::kinds::{NodeInfo, Out, RecordInfo, ServiceInfo, SliceInfo};
use crate::index::outcome::{Health, Wanted};
use crate::index::table::Change;
use crate::index::translate::{Dirty, Plan, Quarantine, Stage, Translation, View, is_same, sharers};
use crate::index::{Changed, Index, ServiceKey, Update};
use crate::leader::Role;
use crate::probe::{HealthView, ProbeTarget};

/// What the loop should do after a turn.
#[derive(Debug, Default)]
pub struct Turn {
    pub parcel: Option<Parcel>,
    pub targets: Option<Arc<Vec<ProbeTarget>>>,
    pub jobs: Vec<Job>,
    pub notes: Vec<Note>,
    /// Turn again then, even if nothing happens.
    pub wake: Option<Instant>,
}

impl Turn {
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |before| before.min(at)));
    }
}

/// What is remembered of a Service besides the Index: only what may be forgotten without harm.
#[derive(Debug, Default)]
pub struct Work {
    pub uid: Arc<str>,
    /// Writes under way; the next step waits for them.
    pub in_flight: u32,
    pub failures: u32,
    pub not_before: Option<Instant>,
    /// Why the allocator gave nothing.
    pub refusal: Option<String>,
    pub allocate_after: Option<Instant>,
    pub(super) allocations_failed: u32,
    pub(super) pending_since: Option<Instant>,
    pub(super) leaving_since: Option<Instant>,
    pub(super) forced: bool,
    /// What we wrote last, and how often somebody else undid it.
    pub(super) written: Option<Wanted>,
    pub fights: u32,
    pub(super) pardoned: bool,
    /// Of the Service's own fields, as it was programmed last.
    pub(super) ensured: Option<u64>,
}

/// A record that could not be written.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) failures: u32,
    pub(super) until: Instant,
    pub(super) why: String,
}

impl Unwritten {
    /// Once is a race that was lost.
    pub(super) const TOLD: u32 = 2;
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) good: bool,
    pub(super) bad_since: Option<Instant>,
}

pub struct Controller {
    pub config: Arc<ControlConfig>,
    pub(super) kubernetes: KubernetesConfig,
    pub index: Index,
    pub translation: Translation,
    /// Of the translation's content; what the dataplane acknowledges.
    pub version: u64,
    pub progress: Progress,
    pub role: Role,
    pub quarantine: Quarantine,
    pub work: HashMap<ServiceKey, Work>,
    pub feeds: BTreeMap<&'static str, (FeedState, Instant)>,
    pub(super) health: Arc<HealthView>,
    pub(super) groups: HashMap<Arc<str>, Group>,
    pub(super) orphan_since: HashMap<(IpAddr, String), u64>,
    pub(super) records_in_flight: HashMap<IpAddr, VipAllocationSpec>,
    pub(super) record_backoff: HashMap<IpAddr, Unwritten>,
    pub(super) pools_dirty: bool,
    /// Who found nothing is to ask again.
    pub(super) capacity_news: bool,
    /// The pools' statuses are written once a second at most: each write says it all.
    pub(super) pools_after: Option<Instant>,
    quarantined_until: Option<Instant>,
    /// A refusal to be judged by what is wanted now, so after a translation.
    refused: Option<(Arc<Desired>, Arc<Vec<Fault>>)>,
    /// When nodes that were labelled out have had their time.
    drained_at: HashMap<Arc<str>, Instant>,
    /// Nodes that a former process had begun to drain; none: not known yet.
    recalled: Option<Arc<BTreeSet<String>>>,
    term: Option<u64>,
    resend: bool,
    translate_wanted: bool,
    /// Whose part of the translation may be another one now.
    dirty: Dirty,
    /// Services that ask for an address they have not.
    pub(super) lacking: BTreeSet<ServiceKey>,
    /// Whose last change the dataplane may not have acknowledged.
    unacknowledged: BTreeSet<ServiceKey>,
    /// What is served otherwise since that version, as far as it is not acknowledged.
    edited: HashMap<ServiceKey, u64>,
    pub(super) touched: BTreeSet<ServiceKey>,
    all_touched: bool,
    /// When to look at a Service again.
    timers: BTreeSet<(Instant, ServiceKey)>,
    /// How long the last translation took: what a burst may wait for the next one depends on it.
    pub translate_time: Duration,
    pub translations: u64,
}

/// How long what the dataplane refused by name is left out before it is tried again.
const QUARANTINE: Duration = Duration::from_secs(60);

impl Controller {
    #[must_use]
    pub fn new(config: Arc<ControlConfig>, role: Role) -> Self {
        Self {
            kubernetes: config.kubernetes.clone().unwrap_or_default(),
            config,
            index: Index::default(),
            translation: Translation::default(),
            version: 0,
            progress: Progress::default(),
            role,
            quarantine: Quarantine::default(),
            work: HashMap::new(),
            feeds: BTreeMap::new(),
            health: Arc::default(),
            groups: HashMap::new(),
            orphan_since: HashMap::new(),
            records_in_flight: HashMap::new(),
            record_backoff: HashMap::new(),
            pools_dirty: true,
            capacity_news: false,
            pools_after: None,
            quarantined_until: None,
            refused: None,
            drained_at: HashMap::new(),
            recalled: None,
            term: None,
            resend: false,
            translate_wanted: true,
            dirty: Dirty::All,
            lacking: BTreeSet::new(),
            unacknowledged: BTreeSet::new(),
            edited: HashMap::new(),
            touched: BTreeSet::new(),
            all_touched: true,
            timers: BTreeSet::new(),
            translate_time: Duration::ZERO,
            translations: 0,
        }
    }

    /// A snapshot may have to change: [`Self::turn`] would make a new one.
    #[must_use]
    pub fn wants_translation(&self) -> bool {
        self.translate_wanted
    }

    // --- what happens

    pub fn on_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Update(update) => self.on_update(*update, now),
            Input::Feed { kind, state } => {
                let known = self.feeds.get(kind).map(|(state, _)| state.clone());
                // The time is that of the first failure, not of the last.
                let still = matches!((&known, &state), (Some(FeedState::Failing(_)), FeedState::Failing(_)));
                let since = if still { self.feeds[kind].1 } else { now };
                self.feeds.insert(kind, (state, since));
            }
        }
    }

    pub(super) fn on_update(&mut self, update: Update, now: Instant) {
        match update {
            Update::Service(change) => self.on_service(change),
            Update::Record(change) => self.on_record(change),
            Update::Node(change) => self.on_node(change, now),
            Update::Slice(change) => self.on_slice(change),
            update => {
                let capacity = matches!(update, Update::Pool(_) | Update::Namespace(_));
                let changed = self.index.apply(update);
                if capacity && changed != Changed::Nothing {
                    self.capacity_changed();
                }
                self.translate_wanted |= changed == Changed::Desired;
            }
        }
    }

    fn on_service(&mut self, change: Change<ServiceKey, ServiceInfo>) {
        let key = change.key().cloned();
        let shown = |controller: &Self| {
            let info = key.as_ref().and_then(|key| controller.index.services.get(key));
            info.map(|info| info.status.ingress.clone()).unwrap_or_default()
        };
        let before = shown(self);
        let changed = self.index.apply(Update::Service(change));
        if changed == Changed::Nothing {
            return;
        }
        self.translate_wanted |= changed == Changed::Desired;
        // An address that a status no longer shows is free as well.
        if !before.is_empty() && shown(self) != before {
            self.capacity_changed();
        }
        let Some(key) = key else {
            // The end of a list: whatever it lacked is gone.
            self.dirty = Dirty::All;
            return;
        };
        // A mended Service is tried again at once.
        if changed == Changed::Desired {
            self.quarantine.services.remove(&key);
            if let Some(work) = self.work.get_mut(&key) {
                work.allocate_after = None;
                if work.failures > 0 {
                    work.not_before = None;
                }
            }
        }
        // The last trace of ours may be gone, and with it the plan.
        self.translate_wanted |= self.translation.plans.get(&key).is_some_and(|p| p.stage == Stage::Leaving);
        self.dirty.add(sharers(&self.index, &key));
        self.touched.insert(key);
    }

    fn on_record(&mut self, change: Change<IpAddr, RecordInfo>) {
        let address = change.key().copied();
        let mut services: Vec<ServiceKey> = Vec::new();
        let of = |controller: &Self, services: &mut Vec<ServiceKey>| {
            let record = address.and_then(|address| controller.index.records.get(&address));
            services.extend(record.into_iter().flat_map(RecordInfo::services));
        };
        of(self, &mut services);
        let ends = matches!(change, Change::End);
        let changed = self.index.apply(Update::Record(change));
        of(self, &mut services);
        self.all_touched |= ends;
        if changed != Changed::Nothing {
            if ends {
                self.dirty = Dirty::All;
            }
            self.capacity_changed();
            self.dirty.add(services.iter().cloned());
            self.translate_wanted |= changed == Changed::Desired;
        }
        // Whose claim comes or goes has a next step, whether or not its plan changes.
        self.touched.extend(services);
    }

    /// Endpoints matter to `externalTrafficPolicy: Local` alone; most slices that change are of other Services. (One
    /// that becomes Local says so itself.)
    fn on_slice(&mut self, change: Change<ServiceKey, SliceInfo>) {
        let name = change.key().cloned();
        let is_local = |controller: &Self| {
            let slice = name.as_ref().and_then(|name| controller.index.slices.get(name));
            let service = slice.and_then(|slice| controller.index.services.get(&slice.service));
            service.is_some_and(|info| info.spec.local)
        };
        let before = is_local(self);
        let changed = self.index.apply(Update::Slice(change));
        // The end of a list says of none in particular what is gone.
        self.translate_wanted |= changed == Changed::Desired && (name.is_none() || before || is_local(self));
    }

    fn on_node(&mut self, change: Change<Arc<str>, NodeInfo>, now: Instant) {
        let name = change.key().cloned();
        let served = name.as_ref().is_some_and(|name| self.index.nodes.get(name).is_some_and(NodeInfo::is_backend));
        let changed = self.index.apply(Update::Node(change));
        if let Some(name) = name {
            self.follow_node(name, served, now);
        }
        self.translate_wanted |= changed == Changed::Desired;
    }

    /// A node that is labelled out keeps its flows for a while; one that always was has none.
    fn follow_node(&mut self, name: Arc<str>, served: bool, now: Instant) {
        let out = self.index.nodes.get(&name).map(|info| info.out);
        if out != Some(Some(Out::Excluded)) {
            self.index.draining.remove(&name);
            self.drained_at.remove(&name);
        } else if served {
            self.index.draining.insert(name.clone());
            self.drained_at.insert(name, now + Duration::from_secs_f64(self.kubernetes.timing.node_drain));
        }
    }

    /// A node that was leaving when a former process ended goes on leaving; nobody knows since when, so it has its
    /// whole time again.
    fn recall_drains(&mut self, now: Instant) {
        let Some(names) = self.progress.recalled.as_ref().filter(|_| self.recalled.is_none()) else { return };
        let until = now + Duration::from_secs_f64(self.kubernetes.timing.node_drain);
        for name in names.iter() {
            let name: Arc<str> = name.as_str().into();
            let out = self.index.nodes.get(&name).and_then(|info| info.out);
            if out == Some(Out::Excluded) {
                self.drained_at.entry(name.clone()).or_insert(until);
                self.index.draining.insert(name);
            }
        }
        self.recalled = self.progress.recalled.clone();
        // Also where nothing differs: the driver waits for a snapshot made in this knowledge.
        self.translate_wanted = true;
        self.resend = true;
    }

    /// Nodes whose time to finish is over leave.
    fn end_drains(&mut self, turn: &mut Turn, now: Instant) {
        let ended: Vec<Arc<str>> =
            self.drained_at.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in ended {
            self.drained_at.remove(&name);
            self.index.draining.remove(&name);
            self.translate_wanted = true;
        }
        if let Some(at) = self.drained_at.values().min() {
            turn.wake_at(*at);
        }
    }

    /// Somebody who found nothing may find something now.
    pub(super) fn capacity_changed(&mut self) {
        self.pools_dirty = true;
        self.capacity_news = true;
    }

    pub fn on_role(&mut self, role: Role) {
        if role != self.role {
            // Who announces is in each Service's part.
            self.dirty = Dirty::All;
            self.translate_wanted = true;
            self.all_touched = true;
            self.pools_dirty = true;
            self.role = role;
        }
    }

    pub fn on_health(&mut self, view: Arc<HealthView>, now: Instant) {
        self.health = view;
        self.judge_groups(now);
    }

    pub fn on_progress(&mut self, progress: Progress) {
        let acknowledged = progress.acknowledged != self.progress.acknowledged;
        let trouble = progress.trouble != self.progress.trouble;
        let before = std::mem::replace(&mut self.progress, progress);
        self.all_touched |= trouble;
        if acknowledged {
            self.touched.extend(self.unacknowledged.iter().cloned());
            self.edited.retain(|_, version| *version > self.progress.acknowledged);
            if self.progress.acknowledged >= self.version {
                self.unacknowledged.clear();
            }
        }
        // Each refusal counts once, also when something newer is on its way: under churn something always is.
        if let Some((_, faults)) = &self.progress.refused
            && !before.refused.is_some_and(|(_, told)| Arc::ptr_eq(&told, faults))
        {
            self.refused.clone_from(&self.progress.refused);
        }
    }

    /// What the dataplane refused by name is left out, so that the rest is served; as far as it is wanted still. (What
    /// was changed meanwhile may be mended: if it is not, the next answer says so.)
    fn set_apart(&mut self, content: &Desired, faults: &[Fault], now: Instant) {
        let desired = self.translation.desired.clone();
        let wanted: HashMap<&str, &Service> = desired.services.iter().map(|s| (s.name.as_str(), s)).collect();
        let stands = |refused: &&Service| wanted.get(&*refused.name).is_some_and(|now| is_same(refused, now));
        let mut found = false;
        for fault in faults {
            for key in blamed(content, fault).filter(stands).filter_map(|s| service_of(&s.name)) {
                found |= self.quarantine.services.insert(key, fault.problem.clone()).is_none();
            }
            let node = numbered(&fault.path, "node").and_then(|i| content.nodes.get(i));
            if let Some(node) = node.filter(|node| desired.nodes.contains(node)) {
                found |= self.quarantine.nodes.insert(node.name.as_str().into(), fault.problem.clone()).is_none();
            }
        }
        if found {
            // Not put off by who comes later: somebody new each minute would keep all of them out for ever.
            self.quarantined_until.get_or_insert(now + QUARANTINE);
            self.dirty = Dirty::All;
            self.translate_wanted = true;
        }
    }

    // --- what follows

    /// One turn: a new snapshot if one is wanted, then every step that is due.
    pub fn turn(&mut self, now: Instant) -> Turn {
        let mut turn = Turn::default();
        if !self.index.synced() || !self.role.known {
            // What is not here may only not be here yet, and who announces is not known: the dataplane keeps its last
            // snapshot.
            return turn;
        }
        if self.quarantined_until.is_some_and(|until| until <= now) {
            self.quarantine = Quarantine::default();
            self.quarantined_until = None;
            self.dirty = Dirty::All;
            self.translate_wanted = true;
        }
        self.recall_drains(now);
        self.end_drains(&mut turn, now);
        if self.translate_wanted {
            self.translate(&mut turn, now);
        }
        if let Some((content, faults)) = self.refused.take() {
            self.set_apart(&content, &faults, now);
        }
        if self.translate_wanted {
            self.translate(&mut turn, now);
        }
        if let Some(until) = self.quarantined_until {
            turn.wake_at(until);
        }
        self.ring(now);
        if self.role.leader {
            self.allocate(&mut turn, now);
            self.release(&mut turn, now);
            let keys: BTreeSet<ServiceKey> = if std::mem::take(&mut self.all_touched) {
                self.touched.clear();
                self.translation.plans.keys().chain(self.work.keys()).cloned().collect()
            } else {
                std::mem::take(&mut self.touched)
            };
            for key in keys {
                self.step(&key, &mut turn, now);
            }
            self.pool_status(&mut turn, now);
            if let Some((at, _)) = self.timers.first() {
                turn.wake_at(*at);
            }
        } else {
            // Whoever leads one day looks at all of them.
            self.touched.clear();
        }
        turn
    }

    pub(super) fn touch_later(&mut self, key: ServiceKey) {
        self.touched.insert(key);
    }

    pub(super) fn remind(&mut self, key: &ServiceKey, at: Instant) {
        self.timers.insert((at, key.clone()));
    }

    fn ring(&mut self, now: Instant) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
            && let Some((_, key)) = self.timers.pop_first()
        {
            self.touched.insert(key);
        }
    }

    fn translate(&mut self, turn: &mut Turn, now: Instant) {
        self.translate_wanted = false;
        let began = Instant::now();
        let dirty = std::mem::take(&mut self.dirty);
        // What was touched since the last time may be served otherwise now, even with the same plan: a port.
        self.unacknowledged.extend(self.touched.iter().cloned());
        let (config, kubernetes) = (&self.config, &self.kubernetes);
        let (announces, quarantine) = (self.role.announces, &self.quarantine);
        let view = View { index: &self.index, config, kubernetes, announces, quarantine };
        let difference = self.translation.update(&view, &dirty);
        #[cfg(test)]
        assert_eq!(self.translation.same_as(&view), Ok(()), "something was not dirty that should have been: {dirty:?}");
        self.translations += 1;
        for key in &difference.plans {
            let lacks =
                |plan: &Plan| !plan.missing.is_empty() && matches!(plan.stage, Stage::NeedsAddress | Stage::Programmed);
            if self.translation.plans.get(key).is_some_and(lacks) {
                self.lacking.insert(key.clone());
            } else {
                self.lacking.remove(key);
            }
        }
        // Whoever's plan changed is to be looked at; a Service whose plan went needs its work forgotten.
        self.unacknowledged.extend(difference.plans.iter().cloned());
        self.touched.extend(difference.plans);
        self.all_touched |= difference.empty_sets;
        let term = self.role.term;
        let resend = std::mem::take(&mut self.resend);
        if self.version == 0 || difference.desired || self.term != term || resend {
            self.version += 1;
            self.term = term;
            turn.parcel = Some(Parcel {
                version: self.version,
                term,
                desired: self.translation.desired.clone(),
                recalls: self.recalled.is_some(),
                programmed: Arc::new(programmed(&self.translation.plans)),
            });
        }
        self.edited.extend(difference.edited.into_iter().map(|key| (key, self.version)));
        let orphaned = std::mem::take(&mut self.orphan_since);
        for (address, claim) in &self.translation.orphans {
            let id = (*address, claim.uid.clone());
            let since = orphaned.get(&id).copied().unwrap_or(self.version);
            self.orphan_since.insert(id, since);
        }
        // The first also where there are none: that is known then.
        if difference.targets || self.translations == 1 {
            turn.targets = Some(Arc::new(self.translation.targets.clone()));
        }
        self.translate_time = began.elapsed();
        self.judge_groups(now);
    }

    fn judge_groups(&mut self, now: Instant) {
        let mut good: HashMap<&Arc<str>, bool> = HashMap::new();
        for target in &self.translation.targets {
            let state = self.health.targets.get(&target.id);
            let up = state.is_some_and(|s| s.settled && s.state == BackendState::Active);
            *good.entry(&target.group).or_default() |= up;
        }
        let mut groups = HashMap::with_capacity(good.len());
        for (name, good) in good {
            let before = self.groups.get(name);
            // "Since" outlives every judgement until the group is good again.
            let bad_since = if good { None } else { before.and_then(|g| g.bad_since).or(Some(now)) };
            if before.is_none_or(|b| b.good != good) {
                self.all_touched = true;
            }
            groups.insert(name.clone(), Group { good, bad_since });
        }
        self.groups = groups;
    }

    /// And when it may change by time alone.
    pub(crate) fn health_of(&self, plan: &Plan, now: Instant) -> (Health, Option<Instant>) {
        let filled: Vec<&Arc<str>> = plan.groups.iter().filter(|g| !self.translation.empty_sets.contains(*g)).collect();
        if filled.is_empty() {
            return (Health::NoBackends, None);
        }
        if !self.health.checking {
            return (Health::Good, None);
        }
        let grace = Duration::from_secs_f64(self.kubernetes.timing.status_grace);
        let mut until = None;
        for name in filled {
            // A set that nothing probes by itself is as good as its nodes; one that nothing probes at all is good.
            let nodes = || self.groups.get(&*format!("nodes/{}", name.rsplit('/').next().unwrap_or_default()));
            let Some(group) = self.groups.get(name).or_else(nodes) else { return (Health::Good, None) };
            let Some(since) = group.bad_since else { return (Health::Good, None) };
            until = until.max(Some(since + grace));
        }
        match until {
            Some(until) if until > now => (Health::Unsettled, Some(until)),
            _ => (Health::Bad, None),
        }
    }

    /// Whether every worker runs the Service as it is to be served now.
    pub(crate) fn is_acknowledged(&self, key: &ServiceKey, plan: &Plan) -> bool {
        !self.edited.contains_key(key) && self.is_held(key, plan)
    }

    /// Whether it has its addresses, if not in its last form.
    pub(crate) fn is_held(&self, key: &ServiceKey, plan: &Plan) -> bool {
        let Some(held) = self.progress.programmed.get(key) else { return false };
        plan.vips.iter().all(|vip| held.contains(vip))
    }

    #[must_use]
    pub fn health_view(&self) -> &HealthView {
        &self.health
    }

    #[must_use]
    pub fn class(&self) -> &str {
        &self.kubernetes.class
    }

    #[must_use]
    pub fn is_stale(&self, now: Instant) -> bool {
        let after = Duration::from_secs_f64(self.kubernetes.timing.stale_after);
        self.feeds
            .values()
            .any(|(state, since)| matches!(state, FeedState::Failing(_)) && now.duration_since(*since) >= after)
    }
}

/// Those a fault is about.
fn blamed<'a>(content: &'a Desired, fault: &Fault) -> impl Iterator<Item = &'a Service> {
    let services = &content.services;
    let named = numbered(&fault.path, "service").and_then(|i| services.get(i));
    // A mode that the box lacks something for is one fault, told of the first service that has it.
    let alike = fault.path.ends_with(".mode");
    services.iter().filter(move |s| {
        named.is_some_and(|named| {
            s.name == named.name || alike && (s.mode, s.vip.is_ipv4()) == (named.mode, named.vip.is_ipv4())
        })
    })
}

fn programmed(plans: &BTreeMap<ServiceKey, Plan>) -> HashMap<ServiceKey, Vec<IpAddr>> {
    plans
        .iter()
        .filter(|(_, plan)| plan.stage == Stage::Programmed)
        .map(|(key, plan)| (key.clone(), plan.vips.clone()))
        .collect()
}

/// `service[3] "web".vip` is the 3 of `service`.
fn numbered(path: &str, list: &str) -> Option<usize> {
    path.strip_prefix(list)?.strip_prefix('[')?.split(']').next()?.parse().ok()
}

/// `namespace/name:port`
#[must_use]
pub(super) fn service_of(name: &str) -> Option<ServiceKey> {
    let (service, _) = name.split_once(':')?;
    let (namespace, name) = service.split_once('/')?;
    Some(ServiceKey::new(namespace, name))
}
