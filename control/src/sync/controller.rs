//! What to do next, decided on plain data: no API, no socket, and time is an argument.
//!
//! Everything is level-triggered: a step follows from what the Index shows and what the dataplane acknowledged, never
//! from what was done before. So a crash between two steps heals by itself at the next start.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_configs::desired::Desired;

use super::driver::{Parcel, Progress};
use super::events::Note;
use super::feed::FeedState;
use super::job::Job;
use super::served::Group;
use crate::config::{ControlConfig, KubernetesConfig};
use crate::crd::VipAllocationSpec;
use crate::dataplane::Fault;
use crate::index::outcome::Wanted;
use crate::index::translate::{Dirty, Quarantine, Translation};
use crate::index::{Index, ServiceKey};
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
    /// The status alone: whatever else is to be done is done.
    pub(super) left_alone: Option<Instant>,
    /// When a status that stands has stood for long enough.
    pub(super) peace: Option<Instant>,
    /// Of the Service's own fields, as it was programmed last.
    pub(super) ensured: Option<u64>,
}

/// A record that could not be written.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) failures: u32,
    pub(super) until: Instant,
    pub(super) why: String,
    /// There is one of its name, which the index does not show: made by hand, and not readable.
    pub(super) exists: bool,
}

impl Unwritten {
    /// Once is a race that was lost.
    pub(super) const TOLD: u32 = 2;
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
    pub(super) quarantined_until: Option<Instant>,
    /// A refusal to be judged by what is wanted now, so after a translation.
    pub(super) refused: Option<(Arc<Desired>, Arc<Vec<Fault>>)>,
    /// When nodes that were labelled out have had their time.
    pub(super) drained_at: HashMap<Arc<str>, Instant>,
    /// Nodes that a former process had begun to drain; none: not known yet.
    pub(super) recalled: Option<Arc<BTreeSet<String>>>,
    pub(super) term: Option<u64>,
    pub(super) resend: bool,
    pub(super) translate_wanted: bool,
    /// Whose part of the translation may be another one now.
    pub(super) dirty: Dirty,
    /// Services that ask for an address they have not.
    pub(super) lacking: BTreeSet<ServiceKey>,
    /// Whose last change the dataplane may not have acknowledged.
    pub(super) unacknowledged: BTreeSet<ServiceKey>,
    /// What is served otherwise since that version, as far as it is not acknowledged.
    pub(super) edited: HashMap<ServiceKey, u64>,
    pub(super) touched: BTreeSet<ServiceKey>,
    pub(super) all_touched: bool,
    /// When to look at a Service again.
    timers: BTreeSet<(Instant, ServiceKey)>,
    /// How long the last translation took: what a burst may wait for the next one depends on it.
    pub translate_time: Duration,
    pub translations: u64,
}

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
