//! Keeps the dataplane and the cluster in step.
//!
//! ```text
//! feed (one per kind) --Input--> loop: Controller::turn --Parcel--> driver --PUT--> dataplane
//!                                  |  ^                                |
//!                     Job, Note ---+  +---- Done, Progress, health ----+
//! ```
//!
//! The loop owns all state and does no I/O; whatever waits runs in tasks that answer by message.

mod allocate;
mod answers;
mod backoff;
mod boxes;
mod controller;
mod driver;
mod events;
mod feed;
mod heard;
mod job;
mod served;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Api;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use self::controller::Controller;
pub use self::driver::{Parcel, Progress};
pub use self::feed::{FeedState, api_error};

use self::driver::{digest, drive};
use self::feed::{Input, feed};
use self::job::Done;
use crate::config::{ControlConfig, KubernetesConfig};
use crate::crd::{VipBox, VipBoxSpec, VipBoxStatus};
use crate::dataplane::Dataplane;
use crate::index;
use crate::leader::{Role, elect};
use crate::metrics::{KindLabel, Metrics, PoolLabel, StageLabel};
use crate::probe::{HealthSeam, Targets};
use crate::why::{Why, stage_name};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("there is no [kubernetes] table in the configuration")]
    NotConfigured,
}

/// What others may ask of the running loop.
#[derive(Debug)]
pub enum Query {
    Why { key: index::ServiceKey, reply: oneshot::Sender<Why> },
    Status { reply: oneshot::Sender<Status> },
}

impl Query {
    /// While nothing runs that could answer: why not.
    pub fn unanswered(self, owner: &str, problem: &str) {
        match self {
            Self::Why { key, reply } => drop(reply.send(Why::unknown(&key, problem))),
            Self::Status { reply } => {
                let notices = vec![problem.to_owned()];
                drop(reply.send(Status { owner: owner.to_owned(), notices, ..Status::default() }));
            }
        }
    }
}

/// `GET /v1/status` of control.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    pub owner: String,
    pub leader: bool,
    pub holder: String,
    pub term: Option<u64>,
    pub generation: u64,
    pub acknowledged: bool,
    pub services: Vec<ServiceLine>,
    pub notices: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ServiceLine {
    pub service: String,
    pub stage: String,
    /// Of type NodePort, with an address by annotation: `kubectl get services` does not show it.
    #[serde(default)]
    pub exposed: bool,
    pub vips: Vec<std::net::IpAddr>,
}

/// The loop's connections to the rest of the process.
#[derive(Debug)]
pub struct Seams {
    pub health: HealthSeam,
    pub queries: mpsc::Receiver<Query>,
    pub metrics: Arc<Metrics>,
    /// What is wrong outside of the loop, for people.
    pub notice: watch::Receiver<Option<String>>,
}

impl Seams {
    /// With a checker's seam and nobody who asks.
    #[must_use]
    pub fn new(health: HealthSeam) -> (Self, mpsc::Sender<Query>) {
        let (asks, queries) = mpsc::channel(16);
        let notice = watch::channel(None).1;
        (Self { health, queries, metrics: Arc::new(Metrics::new()), notice }, asks)
    }
}

/// Serves one cluster until `shutdown` becomes true. Nothing the API server or the dataplane does ends it.
///
/// # Errors
/// When the configuration has no `[kubernetes]` table.
pub async fn run<D: Dataplane>(
    client: kube::Client,
    dataplane: Arc<D>,
    config: Arc<ControlConfig>,
    seams: Seams,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let kubernetes = config.kubernetes.clone().ok_or(RunError::NotConfigured)?;
    let mut tasks = JoinSet::new();
    let (input_tx, inputs) = mpsc::channel(1024);
    spawn_feeds(&mut tasks, &client, &kubernetes, &input_tx);
    // The feeds hold the others.
    drop(input_tx);

    let name = if config.box_name.is_empty() { "penstock".to_owned() } else { config.box_name.clone() };
    let election = kubernetes.leader_election.clone();
    let first = if election.enabled { Role::default() } else { Role::alone(&name) };
    let (role_tx, roles) = watch::channel(first.clone());
    let (fit, is_fit) = watch::channel(true);
    // A set of its own: it ends after the rest, and with `run` if that is dropped.
    let mut elector = JoinSet::new();
    if election.enabled {
        let lease_in = kubernetes.namespace.clone();
        let (roles, ending) = (role_tx.clone(), shutdown.clone());
        elector.spawn(elect(client.clone(), lease_in, election, name.clone(), roles, is_fit, ending));
    }

    let (parcel_tx, parcels) = watch::channel(Parcel::default());
    let (progress_tx, progress) = watch::channel(Progress::default());
    tasks.spawn(drive(dataplane, kubernetes.owner.clone(), parcels, progress_tx));
    let (notes, note_rx) = mpsc::channel(20_000);
    tasks.spawn(events::record(client.clone(), name.clone(), note_rx));
    let age = Duration::from_secs_f64(kubernetes.timing.box_gone);
    tasks.spawn(boxes::collect(client.clone(), kubernetes.owner.clone(), age, roles.clone()));
    let (done_tx, done) = mpsc::channel(1024);

    let turner = Loop {
        controller: Controller::new(config.clone(), first),
        client,
        name,
        permits: Arc::new(Semaphore::new(kubernetes.timing.writes)),
        kubernetes,
        seams,
        inputs,
        roles,
        role_tx,
        fit,
        parcel_tx,
        progress,
        notes,
        done_tx,
        done,
        shutdown,
        fresh: Freshness::default(),
        news: News { role: true, progress: true, health: true },
    };
    turner.run().await;
    tasks.shutdown().await;
    // Without a dataplane it gives the Lease up first.
    while elector.join_next().await.is_some() {}
    Ok(())
}

/// Kinds that are watched.
pub(crate) const FEEDS: usize = 6;

fn spawn_feeds(
    tasks: &mut JoinSet<()>,
    client: &kube::Client,
    kubernetes: &KubernetesConfig,
    out: &mpsc::Sender<Input>,
) {
    let watch = kubernetes.timing.watch;
    let retry = (kubernetes.timing.retry, kubernetes.timing.retry_max.min(30.0));
    let all = || client.clone();
    let (for_services, for_nodes) = (kubernetes.clone(), kubernetes.clone());
    let services = move |event| index::on_service(event, &for_services);
    let nodes = move |event| index::on_node(event, &for_nodes);
    tasks.spawn(feed(Api::all(all()), "services", watch, retry, out.clone(), services));
    tasks.spawn(feed(Api::all(all()), "nodes", watch, retry, out.clone(), nodes));
    tasks.spawn(feed(Api::all(all()), "endpointslices", watch, retry, out.clone(), index::on_slice));
    tasks.spawn(feed(Api::all(all()), "namespaces", watch, retry, out.clone(), index::on_namespace));
    tasks.spawn(feed(Api::all(all()), "vippools", watch, retry, out.clone(), index::on_pool));
    tasks.spawn(feed(Api::all(all()), "vipallocations", watch, retry, out.clone(), index::on_record));
}

/// What was published last, and when.
#[derive(Debug, Default)]
struct Freshness {
    the_box: Option<(VipBoxStatus, Instant)>,
    /// Of what the dataplane acknowledged, by version: it is dear, and told every few seconds at most.
    digest: Option<(u64, String)>,
    metrics: Option<Instant>,
    translations: u64,
    sent: u64,
    burst_since: Option<Instant>,
    translated: Option<Instant>,
}

struct Loop {
    controller: Controller,
    client: kube::Client,
    name: String,
    kubernetes: KubernetesConfig,
    seams: Seams,
    inputs: mpsc::Receiver<Input>,
    roles: watch::Receiver<Role>,
    /// Kept so that `roles` never closes where there is no election.
    #[allow(dead_code, reason = "held, not used")]
    role_tx: watch::Sender<Role>,
    /// Whether this box should lead; for the elector.
    fit: watch::Sender<bool>,
    parcel_tx: watch::Sender<Parcel>,
    progress: watch::Receiver<Progress>,
    notes: mpsc::Sender<events::Note>,
    done_tx: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
    permits: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
    fresh: Freshness,
    news: News,
}

/// Which of the `watch` channels have something new.
#[derive(Debug, Default)]
struct News {
    role: bool,
    progress: bool,
    health: bool,
}

/// A turn at least this often: metrics, timers that were missed.
const BEAT: Duration = Duration::from_secs(5);
/// A snapshot so soon after another is one of a burst.
const BURST: Duration = Duration::from_secs(1);
/// Messages taken before the loop turns.
const BATCH: usize = 4096;

impl Loop {
    async fn run(mut self) {
        let mut wake = Instant::now() + BEAT;
        let mut asking = true;
        let mut viewing = true;
        while !*self.shutdown.borrow() {
            tokio::select! {
                Some(input) = self.inputs.recv() => self.take(input),
                Some(done) = self.done.recv() => self.finish(done),
                Ok(()) = self.progress.changed() => self.news.progress = true,
                Ok(()) = self.roles.changed() => self.news.role = true,
                changed = self.seams.health.view.changed(), if viewing => {
                    viewing = changed.is_ok();
                    self.news.health = true;
                }
                query = self.seams.queries.recv(), if asking => match query {
                    Some(query) => { self.answer(query); continue; }
                    None => asking = false,
                },
                _ = self.shutdown.changed() => break,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            self.drain();
            wake = self.advance(Instant::now());
        }
    }

    /// When to be here again at the latest, in the place of what was said before. While a burst is waited out no turn is
    /// made, so what else falls due waits with it: a time that has passed would bring the loop back at once, again and
    /// again.
    fn advance(&mut self, now: Instant) -> Instant {
        self.hold_back(now).unwrap_or_else(|| self.turn(now))
    }

    /// Everything that has come meanwhile.
    fn drain(&mut self) {
        for _ in 0..BATCH {
            match self.inputs.try_recv() {
                Ok(input) => self.take(input),
                Err(_) => break,
            }
        }
        for _ in 0..BATCH {
            match self.done.try_recv() {
                Ok(done) => self.finish(done),
                Err(_) => break,
            }
        }
        let now = Instant::now();
        let news = std::mem::take(&mut self.news);
        if news.role {
            let role = self.roles.borrow_and_update().clone();
            self.controller.on_role(role);
        }
        if news.progress {
            let progress = self.progress.borrow_and_update().clone();
            self.controller.on_progress(progress);
        }
        if news.health {
            let view = self.seams.health.view.borrow_and_update().clone();
            self.controller.on_health(view, now);
        }
    }

    fn take(&mut self, input: Input) {
        let now = Instant::now();
        match &input {
            Input::Update(_) => {
                self.seams.metrics.updates.inc();
            }
            Input::Feed { kind, state } => {
                let label = KindLabel { kind: (*kind).to_owned() };
                match state {
                    FeedState::Failing(why) => {
                        self.seams.metrics.feed_failures.get_or_create(&label).inc();
                        tracing::warn!(kind, "{why}");
                    }
                    FeedState::Rebuilt => {
                        self.seams.metrics.feed_rebuilds.get_or_create(&label).inc();
                    }
                    FeedState::Running => tracing::info!(kind, "the watch runs again"),
                }
            }
        }
        self.controller.on_input(input, now);
    }

    fn finish(&mut self, done: Done) {
        let failed = match &done {
            Done::Service { result, .. } => result.is_err(),
            Done::Record { result, .. } => result.is_err(),
            Done::PoolStatus { result, .. } | Done::Box { result } => result.is_err(),
        };
        if failed {
            self.seams.metrics.update_errors.inc();
        }
        self.seams.metrics.syncs.inc();
        let mut notes = Vec::new();
        self.controller.on_done(done, Instant::now(), &mut notes);
        self.tell(notes);
    }

    fn tell(&self, notes: Vec<events::Note>) {
        for note in notes {
            // A full queue loses Events, never time.
            let _ = self.notes.try_send(note);
        }
    }

    /// Bursts make one snapshot: wait for quiet, but not for ever, and longer where a snapshot takes long.
    fn hold_back(&mut self, now: Instant) -> Option<Instant> {
        if !self.controller.wants_translation() {
            self.fresh.burst_since = None;
            return None;
        }
        let quiet = Duration::from_secs_f64(self.kubernetes.timing.debounce);
        let since = *self.fresh.burst_since.get_or_insert(now);
        // A single edit waits for quiet alone; in a burst, making snapshots may take a fifth of the time at most, and
        // sending them, which costs several times as much, is paced by the dataplane's answers.
        let busy = self.fresh.translated.is_some_and(|at| now.duration_since(at) < BURST);
        let least = if busy { (quiet + self.controller.translate_time * 4).min(BURST) } else { quiet };
        let until = since + least;
        if until > now {
            return Some(until);
        }
        self.fresh.burst_since = None;
        None
    }

    /// When to turn again at the latest.
    fn turn(&mut self, now: Instant) -> Instant {
        let turn = self.controller.turn(now);
        if let Some(parcel) = turn.parcel {
            self.parcel_tx.send_replace(parcel);
        }
        if let Some(targets) = turn.targets {
            self.seams.health.targets.send_replace(Targets { list: targets, whole: true });
        }
        for job in turn.jobs {
            self.spawn(job);
        }
        self.tell(turn.notes);
        self.judge_fitness(now);
        self.publish_box(now);
        self.publish_metrics(now);
        // Never at once: whatever the reason, this loop must not spin.
        let beat = BEAT.min(self.heartbeat());
        turn.wake.unwrap_or(now + beat).clamp(now + Duration::from_millis(1), now + beat)
    }

    fn spawn(&self, job: job::Job) {
        let (client, permits, done) = (self.client.clone(), self.permits.clone(), self.done_tx.clone());
        let patience = Duration::from_secs(30);
        let backup = job.clone();
        let roles = self.roles.clone();
        tokio::spawn(async move {
            let Ok(_permit) = permits.acquire().await else { return };
            // It may have waited for longer than this box has led.
            if !roles.borrow().leader && !matches!(job, job::Job::Box { .. }) {
                let _ = done.send(backup.given_up("this box leads no longer")).await;
                return;
            }
            let result = match tokio::time::timeout(patience, job::perform(client, job)).await {
                Ok(result) => result,
                Err(_) => backup.given_up("no answer in time"),
            };
            let _ = done.send(result).await;
        });
    }

    /// A dataplane that is started anew is back in seconds; one that stays away serves nobody.
    fn judge_fitness(&self, now: Instant) {
        let patience = Duration::from_secs_f64(self.kubernetes.leader_election.renew_deadline);
        let absent = self.controller.progress.absent_since.is_some_and(|since| now.duration_since(since) >= patience);
        self.fit.send_if_modified(|fit| std::mem::replace(fit, !absent) == absent);
    }

    /// How often the box says that it lives: several times in what makes it count as gone.
    fn heartbeat(&self) -> Duration {
        Duration::from_secs(60).min(Duration::from_secs_f64(self.kubernetes.timing.box_gone) / 6)
    }

    fn publish_box(&mut self, now: Instant) {
        let heartbeat = self.heartbeat();
        let age = self.fresh.the_box.as_ref().map(|(_, at)| now.duration_since(*at));
        if self.controller.version == 0 || age.is_some_and(|age| age < BEAT.min(heartbeat)) {
            return;
        }
        let progress = &self.controller.progress;
        if self.fresh.digest.as_ref().is_none_or(|(of, _)| *of != progress.acknowledged) {
            self.fresh.digest = Some((progress.acknowledged, format!("{:016x}", digest(&progress.served))));
        }
        let mut status = VipBoxStatus {
            leader: self.controller.role.leader,
            term: self.controller.role.term.unwrap_or(0),
            generation: progress.generation,
            acknowledged: if progress.trouble.is_none() { progress.generation } else { 0 },
            digest: self.fresh.digest.as_ref().map(|(_, digest)| digest.clone()).unwrap_or_default(),
            services: progress.programmed.len() as u64,
            fault: progress.trouble.as_deref().map(|trouble| index::outcome::shortened(trouble).to_owned()),
            last_seen: String::new(),
        };
        let says_more = self.fresh.the_box.as_ref().is_none_or(|(before, _)| *before != status);
        if age.is_some_and(|age| age < heartbeat) && !says_more {
            return;
        }
        self.fresh.the_box = Some((status.clone(), now));
        let seconds = k8s_openapi::jiff::Timestamp::now().as_second();
        status.last_seen = k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string();
        let spec = VipBoxSpec { owner: self.kubernetes.owner.clone(), node: self.kubernetes.own_node.clone() };
        self.spawn(job::Job::Box { name: VipBox::name_of(&self.name, &self.kubernetes.owner), spec, status });
    }

    fn publish_metrics(&mut self, now: Instant) {
        let metrics = &self.seams.metrics;
        let controller = &self.controller;
        if controller.translations != self.fresh.translations {
            self.fresh.translations = controller.translations;
            self.fresh.translated = Some(now);
            metrics.translated(controller.translate_time);
            metrics.node_syncs.inc();
        }
        let progress = &controller.progress;
        metrics.snapshots.inc_by(progress.sent.saturating_sub(self.fresh.sent));
        self.fresh.sent = progress.sent;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.generation.set(number(progress.generation));
        metrics.unacknowledged.set(i64::from(progress.acknowledged < controller.version));
        metrics.leader.set(i64::from(controller.role.leader));
        metrics.term.set(number(controller.role.term.unwrap_or(0)));
        metrics.config_loaded.set(i64::from(controller.index.synced()));
        metrics.stale.set(i64::from(controller.is_stale(now)));
        if self.fresh.metrics.is_some_and(|at| now.duration_since(at) < Duration::from_secs(1)) {
            return;
        }
        self.fresh.metrics = Some(now);
        self.publish_slow_metrics(now);
    }

    /// Those that walk tables.
    fn publish_slow_metrics(&self, now: Instant) {
        let (metrics, controller) = (&self.seams.metrics, &self.controller);
        // Also those of pools that are no more.
        metrics.addresses.clear();
        metrics.in_use.clear();
        for (pool, usage) in controller.usage_of_pools() {
            let label = PoolLabel { pool: pool.name.to_string() };
            metrics.addresses.get_or_create(&label).set(usage.total);
            metrics.in_use.get_or_create(&label).set(usage.assigned);
        }
        for stage in ["refused", "needs-finalizer", "needs-cleanup", "needs-address", "programmed", "leaving"] {
            let count = controller.translation.plans.values().filter(|p| stage_name(&p.stage) == stage).count();
            metrics.services.get_or_create(&StageLabel { stage }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let nodes: Vec<_> = controller.index.nodes.values().filter(|n| n.is_backend()).collect();
        let not_ready = nodes.iter().filter(|n| !n.ready).count();
        metrics.nodes.set(i64::try_from(nodes.len()).unwrap_or(i64::MAX));
        metrics.nodes_not_ready.set(i64::try_from(not_ready).unwrap_or(i64::MAX));
        metrics.all_nodes_not_ready.set(i64::from(!nodes.is_empty() && not_ready == nodes.len()));
        for (kind, (state, since)) in &controller.feeds {
            let failing =
                if matches!(state, FeedState::Failing(_)) { now.duration_since(*since).as_secs_f64() } else { 0.0 };
            metrics.feed_failing_seconds.get_or_create(&KindLabel { kind: (*kind).to_owned() }).set(failing);
        }
        let fights = controller.work.values().filter(|w| w.fights > 1).count();
        metrics.fights.set(i64::try_from(fights).unwrap_or(i64::MAX));
        metrics.panicking.set(i64::try_from(controller.health_view().panicking.len()).unwrap_or(i64::MAX));
    }

    fn answer(&self, query: Query) {
        // Whoever asked may have gone.
        match query {
            Query::Why { key, reply } => {
                let mut why = self.controller.why(&key, Instant::now());
                why.notices.extend(self.seams.notice.borrow().clone());
                drop(reply.send(why));
            }
            Query::Status { reply } => drop(reply.send(self.status())),
        }
    }

    fn status(&self) -> Status {
        let controller = &self.controller;
        let line = |(key, plan): (&index::ServiceKey, &index::translate::Plan)| ServiceLine {
            service: key.to_string(),
            stage: stage_name(&plan.stage).to_owned(),
            exposed: plan.exposed,
            vips: plan.vips.clone(),
        };
        let notice = self.seams.notice.borrow().clone();
        Status {
            owner: self.kubernetes.owner.clone(),
            leader: controller.role.leader,
            holder: controller.role.holder.clone(),
            term: controller.role.term,
            generation: controller.progress.generation,
            acknowledged: controller.version > 0 && controller.progress.acknowledged == controller.version,
            services: controller.translation.plans.iter().map(line).collect(),
            notices: controller.notices(Instant::now()).into_iter().chain(notice).collect(),
        }
    }
}
