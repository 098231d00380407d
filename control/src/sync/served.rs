//! The controller's part about the box: what it is to serve, what it does serve, and how well.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_configs::desired::{BackendState, Desired, Node, Service};

use super::controller::{Controller, Turn};
use super::driver::{Parcel, Progress};
use crate::dataplane::Fault;
use crate::index::ServiceKey;
use crate::index::outcome::Health;
use crate::index::translate::{Dirty, Plan, Stage, View, is_same};
use crate::probe::HealthView;

/// How long what the dataplane refused by name is left out before it is tried again.
const QUARANTINE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) good: bool,
    pub(super) bad_since: Option<Instant>,
}

impl Controller {
    pub(super) fn translate(&mut self, turn: &mut Turn, now: Instant) {
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

    /// Whether every worker runs the Service as it is to be served now.
    pub(crate) fn is_acknowledged(&self, key: &ServiceKey, plan: &Plan) -> bool {
        !self.edited.contains_key(key) && self.is_held(key, plan)
    }

    /// Whether it has its addresses, if not in its last form.
    pub(crate) fn is_held(&self, key: &ServiceKey, plan: &Plan) -> bool {
        let Some(held) = self.progress.programmed.get(key) else { return false };
        plan.vips.iter().all(|vip| held.contains(vip))
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
    pub(super) fn set_apart(&mut self, content: &Desired, faults: &[Fault], now: Instant) {
        let desired = self.translation.desired.clone();
        let wanted: HashMap<&str, &Service> = desired.services.iter().map(|s| (s.name.as_str(), s)).collect();
        let stands = |refused: &&Service| wanted.get(&*refused.name).is_some_and(|now| is_same(refused, now));
        let mut found = false;
        for fault in faults {
            for key in blamed(content, fault).filter(stands).filter_map(|s| service_of(&s.name)) {
                found |= self.quarantine.services.insert(key, fault.problem.clone()).is_none();
            }
            for key in self.too_many(content.services.iter().filter(stands), &fault.path) {
                found |= self.quarantine.services.insert(key, fault.problem.clone()).is_none();
            }
            let numbered = numbered(&fault.path, "node").and_then(|i| content.nodes.get(i));
            let nodes = self.too_many_nodes(content, &fault.path).into_iter().chain(numbered);
            for node in nodes.filter(|node| desired.nodes.contains(node)) {
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

    /// What is too much for the box is no Service's fault by name, and must not keep everybody waiting. For what it
    /// serves it has room: who is new is left out; where nobody is, who grew most.
    fn too_many<'a>(&self, wanted: impl Iterator<Item = &'a Service>, path: &str) -> Vec<ServiceKey> {
        if self.progress.served.services.is_empty() || !matches!(path, "service" | "") {
            return Vec::new();
        }
        let (before, now) = (entries(self.progress.served.services.iter()), entries(wanted));
        let grown = |key: &ServiceKey| now[key].saturating_sub(before.get(key).copied().unwrap_or(0));
        let new: Vec<ServiceKey> = now.keys().filter(|key| !before.contains_key(key)).cloned().collect();
        if !new.is_empty() || path.is_empty() {
            return new;
        }
        now.keys().max_by_key(|key| grown(key)).filter(|key| grown(key) > 0).cloned().into_iter().collect()
    }

    fn too_many_nodes<'a>(&self, content: &'a Desired, path: &str) -> Vec<&'a Node> {
        let before: HashSet<&str> = self.progress.served.nodes.iter().map(|node| node.name.as_str()).collect();
        let applies = !before.is_empty() && matches!(path, "node" | "");
        content.nodes.iter().filter(|node| applies && !before.contains(node.name.as_str())).collect()
    }

    pub fn on_health(&mut self, view: Arc<HealthView>, now: Instant) {
        self.health = view;
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

/// How many each Service has.
fn entries<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeMap<ServiceKey, usize> {
    let mut entries = BTreeMap::new();
    for key in services.filter_map(|service| service_of(&service.name)) {
        *entries.entry(key).or_default() += 1;
    }
    entries
}

/// `service[3] "web".vip` is the 3 of `service`.
fn numbered(path: &str, list: &str) -> Option<usize> {
    path.strip_prefix(list)?.strip_prefix('[')?.split(']').next()?.parse().ok()
}

/// `namespace/name:port`
fn service_of(name: &str) -> Option<ServiceKey> {
    let (service, _) = name.split_once(':')?;
    let (namespace, name) = service.split_once('/')?;
    Some(ServiceKey::new(namespace, name))
}
