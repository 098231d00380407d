//! The health checker: asks every target again and again, and tells what is up, draining or down.
//!
//! [`board`] decides everything (when to probe, what results mean) with time and randomness passed in; [`probe`] does
//! the asking; [`run`] joins them over the seam of [`crate::probe`].
//!
//! What a result means: an answer that is expected is *good*; a 503 where the target says so is *drain* (the node
//! serves its flows and wants no new ones: kube-proxy's answer of a node that leaves or has no local endpoint);
//! refused, unreachable, silent or unexpected is *bad*.

pub mod board;
pub mod named;
pub mod probe;
mod tls;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::board::{Board, Launch, Outcome, Rules};
use self::probe::Connection;
use crate::config::HealthConfig;
use crate::probe::{CheckerSeam, HealthView, Targets};

/// Probes go out together this often: one by one, each would wake the process by itself.
const TOGETHER: Duration = Duration::from_millis(25);
/// Results closer together than this make one view.
const GATHER: Duration = Duration::from_millis(20);

impl Rules {
    #[must_use]
    pub fn of(config: &HealthConfig) -> Self {
        Self { budget: config.budget.max(1), panic_threshold: config.panic_threshold }
    }
}

/// Checks until `shutdown` becomes true or nobody sets targets any more.
pub async fn run(seam: CheckerSeam, config: HealthConfig, mut shutdown: watch::Receiver<bool>) {
    if !config.enabled {
        info!("health checks are off: every backend counts as up");
        // Also those that a former process, which checked, found down.
        seam.view.send_replace(Arc::new(HealthView { whole: true, ..HealthView::default() }));
        while !*shutdown.borrow() && shutdown.changed().await.is_ok() {}
        return;
    }
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::from(d.subsec_nanos()) | 1);
    let mut checker = Checker {
        board: Board::new(Rules::of(&config), seed),
        started: Instant::now(),
        running: JoinSet::new(),
        kept: HashMap::new(),
        launched: Instant::now(),
        view: seam.view,
        dirty_since: None,
        late: false,
        whole: false,
    };
    // That somebody checks is known before the first target: until its first result nobody is taken for healthy.
    checker.view.send_replace(Arc::new(checker.look()));
    checker.serve(seam.targets, &mut shutdown).await;
}

struct Checker {
    board: Board,
    started: Instant,
    running: JoinSet<(Launch, Outcome, Option<Connection>)>,
    /// Of targets whose check keeps theirs, while nobody asks.
    kept: HashMap<Arc<str>, Connection>,
    launched: Instant,
    view: watch::Sender<Arc<HealthView>>,
    dirty_since: Option<Instant>,
    /// Whether the budget is too small for the targets, and was said to be.
    late: bool,
    /// Every source has named its targets.
    whole: bool,
}

impl Checker {
    async fn serve(&mut self, mut targets: watch::Receiver<Targets>, shutdown: &mut watch::Receiver<bool>) {
        targets.mark_changed();
        while !*shutdown.borrow() {
            let now = self.started.elapsed();
            if self.launched.elapsed() >= TOGETHER {
                self.launch(now);
            }
            self.report_lateness(now);
            let wake = self.wake();
            tokio::select! {
                changed = targets.changed() => {
                    if changed.is_err() { return }
                    let Targets { list, whole } = targets.borrow_and_update().clone();
                    let before = std::mem::replace(&mut self.whole, whole);
                    if self.board.set_targets(&list, self.started.elapsed()) || whole != before {
                        self.dirty();
                    }
                    let board = &self.board;
                    self.kept.retain(|id, _| board.has(id));
                }
                Some(finished) = self.running.join_next() => self.finish(finished),
                () = sleep_until(wake) => {}
                _ = shutdown.changed() => {}
            }
            self.publish();
        }
    }

    fn launch(&mut self, now: Duration) {
        self.launched = Instant::now();
        for launch in self.board.due(now) {
            let kept = self.kept.remove(&launch.id);
            self.running.spawn(async move {
                let (outcome, left) = probe::probe(launch.address, &launch.check, launch.timeout, kept).await;
                (launch, outcome, left)
            });
        }
    }

    fn wake(&self) -> Option<Instant> {
        let probe = self.board.next_due().map(|due| (self.started + due).max(self.launched + TOGETHER));
        let view = self.dirty_since.map(|since| since + GATHER);
        probe.into_iter().chain(view).min()
    }

    fn finish(&mut self, finished: Result<(Launch, Outcome, Option<Connection>), tokio::task::JoinError>) {
        // A probe that panics ends the process in a release build; in a test its target is asked no more.
        let (launch, outcome, connection) = match finished {
            Ok(done) => done,
            Err(error) => return warn!("a probe failed: {error}"),
        };
        if let Some(connection) = connection.filter(|_| self.board.has(&launch.id)) {
            self.kept.insert(launch.id.clone(), connection);
        }
        let change = self.board.finish(&launch, outcome, self.started.elapsed());
        if let Some(change) = &change.state {
            info!(target = %launch.id, "{:?} -> {:?}: {}", change.from, change.to, change.reason);
        }
        if change.visible {
            self.dirty();
        }
    }

    fn dirty(&mut self) {
        self.dirty_since.get_or_insert_with(Instant::now);
    }

    fn look(&self) -> HealthView {
        let view = self.board.view();
        HealthView { whole: self.whole && view.targets.values().all(|target| target.settled), ..view }
    }

    fn publish(&mut self) {
        if self.dirty_since.is_some_and(|since| since.elapsed() >= GATHER) {
            self.dirty_since = None;
            let view = self.look();
            debug!(targets = view.targets.len(), panicking = view.panicking.len(), "health");
            for group in view.panicking.iter().filter(|group| !self.view.borrow().panicking.contains(group)) {
                warn!(
                    "{group}: so few pass their checks that these are not believed: all are used (health.panic_threshold)"
                );
            }
            self.view.send_replace(Arc::new(view));
        }
    }

    fn report_lateness(&mut self, now: Duration) {
        let late = self.board.is_late(now);
        if late && !self.late {
            warn!("health.budget is too small for {} targets: they are asked less often", self.board.len());
        }
        self.late = late;
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
