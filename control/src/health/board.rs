//! What is known of every target, and what is to be asked when. No I/O, no clock: `now` is the time since the start.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::{BackendHealth, BackendState};

use crate::probe::{Check, HealthView, Place, ProbeTarget, TargetState};

/// One result, with its reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub kind: Kind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Good,
    Drain,
    Bad,
}

impl Kind {
    fn state(self) -> BackendState {
        match self {
            Self::Good => BackendState::Active,
            Self::Drain => BackendState::Draining,
            Self::Bad => BackendState::Down,
        }
    }
}

/// A probe to make now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub id: Arc<str>,
    pub address: IpAddr,
    pub check: Check,
    pub timeout: Duration,
    /// A result that comes after its target was changed or set anew is about something else.
    epoch: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Probes per second of all targets.
    pub budget: u32,
    /// A group with fewer than this share in service is not believed; 0: always believed.
    pub panic_threshold: f64,
}

/// What a result changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    pub state: Option<Transition>,
    /// The view differs: a state, a reason, or that something is settled.
    pub visible: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub from: BackendState,
    pub to: BackendState,
    pub reason: String,
}

#[derive(Debug)]
struct Entry {
    target: ProbeTarget,
    epoch: u64,
    state: BackendState,
    settled: bool,
    reason: String,
    /// Consecutive results of `last`'s kind.
    same: u32,
    last: Option<Kind>,
    /// Consecutive results that were not good, of either kind.
    not_good: u32,
    due: Duration,
    in_flight: bool,
    /// Not used before its first proof, and not counted: see [`Board::add`].
    joins: bool,
}

#[derive(Debug)]
pub struct Board {
    rules: Rules,
    entries: BTreeMap<Arc<str>, Entry>,
    /// Entries to be asked, by time; those in flight are not in it.
    queue: BTreeSet<(Duration, Arc<str>)>,
    epochs: u64,
    random: u64,
    tokens: f64,
    refilled: Duration,
}

/// A target more than this late has outlived the budget, not just a burst.
const LATE: Duration = Duration::from_secs(2);
/// Intervals vary by this share either way: targets set together must not be asked together for ever.
const JITTER: f64 = 0.1;
/// The share of the budget that targets may take whose state nobody doubts: 500 nodes are asked every eight seconds by
/// default, and one that does not answer three times within the next.
const AT_REST: f64 = 0.125;
/// Targets whose state nobody doubts are asked at multiples of this: what a probe costs is mostly that it wakes a
/// process at rest. (A quarter of a second's probes at rest are less than [`burst`].) Less than the jitter, so that
/// they still change places.
const GRID: Duration = Duration::from_millis(250);
/// Between a first assumption and its proof, and while a state is in doubt, targets are asked this much more often.
const HASTE: f64 = 0.25;

impl Board {
    #[must_use]
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
            epochs: 0,
            random: seed.max(1),
            tokens: burst(rules),
            refilled: Duration::ZERO,
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn has(&self, id: &Arc<str>) -> bool {
        self.entries.contains_key(id)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Replaces the targets; whether anything changed. One that comes again with the same content keeps its history
    /// and its place in the queue. One with another check keeps its state, as an assumption to be proven anew.
    pub fn set_targets(&mut self, targets: &[ProbeTarget], now: Duration) -> bool {
        let wanted: HashMap<&Arc<str>, &ProbeTarget> = targets.iter().map(|t| (&t.id, t)).collect();
        let before = self.entries.len();
        self.entries.retain(|id, _| wanted.contains_key(id));
        let mut changed = before != self.entries.len();
        let serving: HashSet<Arc<str>> = self
            .entries
            .values()
            .filter(|entry| entry.settled && entry.state == BackendState::Active)
            .map(|entry| entry.target.group.clone())
            .collect();
        self.queue.retain(|(_, id)| wanted.contains_key(id));
        for target in wanted.into_values() {
            match self.entries.get_mut(&target.id) {
                Some(entry) if entry.target == *target => {}
                Some(entry) if is_same_question(&entry.target, target) => {
                    // Who listens, and among whom, does not change what was answered.
                    entry.target = target.clone();
                    changed = true;
                }
                known => {
                    changed = true;
                    let assumed = known.map(|e| (e.due, e.state));
                    self.add(target, assumed, serving.contains(&target.group), now);
                }
            }
        }
        changed
    }

    /// Not yet asked is not yet down: a restart of control must not empty any set. But what is unproven
    /// and joins others that are known to serve waits for its first results.
    fn add(
        &mut self,
        target: &ProbeTarget,
        assumed: Option<(Duration, BackendState)>,
        others_serve: bool,
        now: Duration,
    ) {
        if let Some((due, _)) = assumed {
            self.queue.remove(&(due, target.id.clone()));
        }
        self.epochs += 1;
        let joins = assumed.is_none() && others_serve && target.unproven;
        let first = if joins { BackendState::Draining } else { BackendState::Active };
        let entry = Entry {
            target: target.clone(),
            epoch: self.epochs,
            state: assumed.map_or(first, |(_, state)| state),
            settled: false,
            reason: "not checked yet".into(),
            same: 0,
            last: None,
            not_good: 0,
            due: now,
            in_flight: false,
            joins,
        };
        self.queue.insert((now, target.id.clone()));
        self.entries.insert(target.id.clone(), entry);
    }

    /// When [`Self::due`] will have something next.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let (due, _) = self.queue.first()?;
        let missing = (1.0 - self.tokens).max(0.0) / f64::from(self.rules.budget);
        Some((*due).max(self.refilled + Duration::from_secs_f64(missing)))
    }

    /// Whether the budget cannot keep up with the intervals.
    #[must_use]
    pub fn is_late(&self, now: Duration) -> bool {
        self.queue.first().is_some_and(|(due, _)| now.saturating_sub(*due) > LATE)
    }

    /// The probes to make now, the most overdue first, as far as the budget goes.
    pub fn due(&mut self, now: Duration) -> Vec<Launch> {
        self.refill(now);
        let mut launches = Vec::new();
        while self.tokens >= 1.0 {
            let Some((due, _)) = self.queue.first() else { break };
            if *due > now {
                break;
            }
            let Some((_, id)) = self.queue.pop_first() else { break };
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.in_flight = true;
            self.tokens -= 1.0;
            launches.push(Launch {
                id,
                address: entry.target.address,
                check: entry.target.check.clone(),
                timeout: entry.target.timing.timeout,
                epoch: entry.epoch,
            });
        }
        launches
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + passed * f64::from(self.rules.budget)).min(burst(self.rules));
        self.refilled = now;
    }

    pub fn finish(&mut self, launch: &Launch, outcome: Outcome, now: Duration) -> Changed {
        let jitter = 1.0 + JITTER * self.next_random();
        let rest = self.at_rest();
        let Some(entry) = self.entries.get_mut(&launch.id).filter(|e| e.epoch == launch.epoch && e.in_flight) else {
            return Changed::default();
        };
        entry.in_flight = false;
        let changed = entry.take(outcome);
        let interval = entry.target.timing.interval;
        let interval = if entry.is_in_doubt() { interval.mul_f64(HASTE) } else { interval.max(rest) };
        let due = now + interval.mul_f64(jitter);
        entry.due = if entry.is_in_doubt() { due } else { on_grid(due, interval) };
        self.queue.insert((entry.due, launch.id.clone()));
        changed
    }

    /// How often a target that nobody doubts is asked at the most: a large cluster at rest costs a part of the budget.
    fn at_rest(&self) -> Duration {
        let rate = f64::from(self.rules.budget) * AT_REST;
        Duration::from_secs_f64(self.entries.len() as f64 / rate)
    }

    /// Between -1 and 1. xorshift64: good enough to keep probes apart.
    fn next_random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let fraction = u32::try_from(self.random >> 32).unwrap_or(u32::MAX);
        f64::from(fraction) / f64::from(u32::MAX) * 2.0 - 1.0
    }

    /// Everything, with the panic threshold applied; whether that is the whole its caller knows.
    #[must_use]
    pub fn view(&self) -> HealthView {
        let panicking = self.panicking();
        let mut overlay: BTreeMap<Place, Shown<'_>> = BTreeMap::new();
        for entry in self.entries.values() {
            let state = entry.shown(panicking.get(&entry.target.group));
            let (doubted, settled) = (state != entry.state, entry.settled);
            let shown = Shown { state, reason: &entry.reason, doubted, settled };
            for port in &entry.target.covers {
                let place = overlay.entry((entry.target.address, *port)).or_insert(shown);
                let settled = settled && place.settled;
                // Two checks of one place: the worse one is right.
                if (severity(shown.state), shown.doubted) > (severity(place.state), place.doubted) {
                    *place = shown;
                }
                place.settled = settled;
            }
        }
        let targets = self.entries.iter().map(|(id, entry)| {
            let state = TargetState { state: entry.state, settled: entry.settled, reason: entry.reason.clone() };
            (id.clone(), state)
        });
        HealthView {
            checking: true,
            backends: worth_telling(&overlay),
            targets: targets.collect(),
            panicking: panicking.into_keys().cloned().collect(),
            judged: overlay.iter().filter(|(_, shown)| shown.settled).map(|(place, _)| *place).collect(),
            whole: false,
        }
    }

    /// Groups whose results are not believed, and whether anything at all is left in service there.
    fn panicking(&self) -> BTreeMap<&Arc<str>, Left> {
        let mut counts: BTreeMap<&Arc<str>, (u32, u32)> = BTreeMap::new();
        // Several that join one are no panic.
        for entry in self.entries.values().filter(|entry| entry.settled || !entry.joins) {
            let (active, all) = counts.entry(&entry.target.group).or_default();
            *active += u32::from(entry.state == BackendState::Active);
            *all += 1;
        }
        let threshold = self.rules.panic_threshold;
        let few = |(active, all): (u32, u32)| threshold > 0.0 && f64::from(active) < threshold * f64::from(all);
        counts
            .into_iter()
            .filter(|(_, counts)| few(*counts))
            .map(|(group, (active, _))| (group, if active == 0 { Left::None } else { Left::Some }))
            .collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    None,
    Some,
}

impl Entry {
    fn take(&mut self, outcome: Outcome) -> Changed {
        let was = (self.state, self.settled);
        let Outcome { kind, reason } = outcome;
        self.same = if self.last == Some(kind) { self.same.saturating_add(1) } else { 1 };
        self.last = Some(kind);
        self.not_good = if kind == Kind::Good { 0 } else { self.not_good.saturating_add(1) };
        let (rise, fall) = (self.target.timing.rise, self.target.timing.fall);
        let moves = match (self.state, kind) {
            // From service it takes `fall` results that are not good; the last says where to.
            (BackendState::Active, Kind::Drain | Kind::Bad) => self.not_good >= fall,
            (_, Kind::Good) => self.same >= rise,
            (_, Kind::Drain | Kind::Bad) => self.same >= fall,
        };
        if kind.state() == self.state || moves {
            self.state = kind.state();
            self.settled = true;
        }
        let visible = was != (self.state, self.settled) || self.reason != reason;
        let state = (was.0 != self.state).then(|| Transition { from: was.0, to: self.state, reason: reason.clone() });
        self.reason = reason;
        Changed { state, visible }
    }

    /// The last result speaks against the state, or nothing has spoken for it yet.
    fn is_in_doubt(&self) -> bool {
        !self.settled || self.last.is_some_and(|kind| kind.state() != self.state)
    }

    /// What the dataplane is told. In a panic what is down stays in service: more likely the checker is wrong, or
    /// alone, than half of the nodes dead. What drains is told apart, by its own word: it is kept out as long as
    /// anything is left.
    fn shown(&self, panicking: Option<&Left>) -> BackendState {
        match (panicking, self.state) {
            (None, state) => state,
            (Some(Left::Some), BackendState::Draining) => BackendState::Draining,
            (Some(_), _) => BackendState::Active,
        }
    }
}

/// The nearest time at which others are asked as well.
fn on_grid(due: Duration, interval: Duration) -> Duration {
    let grid = GRID.min(interval / 8).max(Duration::from_millis(1));
    grid.mul_f64((due.as_secs_f64() / grid.as_secs_f64()).round())
}

/// The same probe at the same pace: its past results still tell.
fn is_same_question(a: &ProbeTarget, b: &ProbeTarget) -> bool {
    (a.address, &a.check, a.timing) == (b.address, &b.check, b.timing)
}

/// A second's tenth of the budget may go at once.
fn burst(rules: Rules) -> f64 {
    (f64::from(rules.budget) / 10.0).max(1.0)
}

fn severity(state: BackendState) -> u8 {
    match state {
        BackendState::Active => 0,
        BackendState::Draining => 1,
        BackendState::Down => 2,
    }
}

/// What is told of a place, and why; doubted: its check says otherwise.
#[derive(Clone, Copy)]
struct Shown<'a> {
    state: BackendState,
    reason: &'a str,
    doubted: bool,
    /// By every check of it.
    settled: bool,
}

/// A backend that is not named is up; so only what is not, the ports that were found up while their node is not (theirs
/// comes before the node's), and for people what is used against its check.
fn worth_telling(overlay: &BTreeMap<Place, Shown<'_>>) -> Vec<BackendHealth> {
    let is_out = |place: &Shown<'_>| place.state != BackendState::Active;
    let node_is_out = |address: &IpAddr| overlay.get(&(*address, None)).is_some_and(is_out);
    let is_better = |address, place: &Shown<'_>| place.settled && node_is_out(address);
    overlay
        .iter()
        .filter(|((address, port), place)| {
            is_out(place) || place.doubted || (port.is_some() && is_better(address, place))
        })
        .map(|((address, port), place)| BackendHealth {
            address: *address,
            port: *port,
            state: place.state,
            reason: if place.doubted {
                format!("{}; used all the same, too few would be left (health.panic_threshold)", place.reason)
            } else {
                place.reason.to_owned()
            },
        })
        .collect()
}
