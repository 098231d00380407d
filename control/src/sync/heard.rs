//! The controller's part about what the API server says: from the watches to the Index, and who is to be looked at.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::controller::{Controller, Turn};
use super::feed::{FeedState, Input};
use crate::index::kinds::{NodeInfo, Out, RecordInfo, ServiceInfo, SliceInfo};
use crate::index::table::Change;
use crate::index::translate::{Dirty, Stage, sharers};
use crate::index::{Changed, ServiceKey, Update};

impl Controller {
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
                work.not_before = None;
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
    pub(super) fn recall_drains(&mut self, now: Instant) {
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
    pub(super) fn end_drains(&mut self, turn: &mut Turn, now: Instant) {
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
}
