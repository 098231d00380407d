//! A worker's loop turned by hand and timed: how long packets wait from one turn to the next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use penstock_dataplane::clock::Now;
use penstock_dataplane::handoff::Exchange;
use penstock_dataplane::io::{BURST, Burst, FramePool, Port};
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::verdict::WorkerId;
use rustix::time::{ClockId, clock_gettime};

use super::rig::Turning;
use crate::counters::Interrupts;
use crate::pipeline_bench::packets::Template;

/// Packets of established flows, for ever, and back to the pool what is sent: never full, never dry. Of no packets
/// none come.
pub struct Feed {
    packets: Arc<[Template]>,
    next: usize,
    pace: Option<Pace>,
    held_back: Option<(Arc<Exchange>, WorkerId)>,
}

/// Packets that are due at set times; how late each left.
pub struct Pace {
    interval_ns: f64,
    start: Option<u64>,
    received: u64,
    /// Due at this packet's time and later, not yet sent.
    unsent_from: u64,
    latency: Arc<Mutex<Latencies>>,
}

/// Latencies of paced packets, nanoseconds.
pub struct Latencies {
    pub all: Histogram<u64>,
    /// The worst of those due in each [`SLOT_NS`], from this one on.
    first: u64,
    slots: Vec<u64>,
}

const SLOT_NS: u64 = 250_000;

impl Default for Latencies {
    fn default() -> Self {
        Self { all: histogram(), first: 0, slots: Vec::new() }
    }
}

impl Latencies {
    pub fn add(&mut self, due: u64, latency: u64) {
        self.all.saturating_record(latency);
        let slot = due / SLOT_NS;
        if self.slots.is_empty() {
            self.first = slot;
        }
        // Ports are paced each for itself: one may be a little behind the other.
        let at = slot.saturating_sub(self.first) as usize;
        if at >= self.slots.len() {
            self.slots.resize(at + 1, 0);
        }
        self.slots[at] = self.slots[at].max(latency);
    }

    /// The worst of the packets due from one time to another, to a slot; `None`: the run had not begun, or was over.
    pub fn worst_due(&self, from: u64, to: u64) -> Option<u64> {
        let at = |time: u64| (time / SLOT_NS).checked_sub(self.first).map(|at| at as usize);
        self.slots.get(at(from)?..=at(to)?)?.iter().max().copied()
    }
}

/// Of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    // Three digits up to ten seconds: a valid pair of arguments.
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds of an HdrHistogram")
}

impl Feed {
    pub fn new(packets: Arc<[Template]>, first: usize) -> Self {
        let next = first % packets.len().max(1);
        Self { packets, next, pace: None, held_back: None }
    }

    /// Packets a second; `latency` takes up how long after they were due they were sent.
    pub fn paced(self, per_second: f64, latency: Arc<Mutex<Latencies>>) -> Self {
        let pace = Pace { interval_ns: 1e9 / per_second, start: None, received: 0, unsent_from: 0, latency };
        Self { pace: Some(pace), ..self }
    }

    /// Holds packets back while a ring from this worker to another has no room for a burst, as senders do who
    /// go no faster than what arrives.
    pub fn held_back(self, exchange: &Arc<Exchange>, worker: WorkerId) -> Self {
        Self { held_back: Some((Arc::clone(exchange), worker)), ..self }
    }
}

impl Pace {
    /// Packets due by now that were not received yet.
    fn due(&mut self) -> usize {
        let now = Now::read().ns;
        let start = *self.start.get_or_insert(now);
        ((now - start) as f64 / self.interval_ns) as usize - self.received as usize
    }

    /// The worker is through with what it received.
    fn sent(&mut self) {
        if self.unsent_from == self.received {
            return;
        }
        let now = Now::read().ns;
        let start = self.start.unwrap_or(now);
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        for packet in self.unsent_from..self.received {
            let due = start + (packet as f64 * self.interval_ns) as u64;
            latency.add(due, now.saturating_sub(due).max(1));
        }
        self.unsent_from = self.received;
    }
}

impl Port for Feed {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        if self.held_back.as_ref().is_some_and(|(exchange, worker)| exchange.room_from(*worker) < BURST) {
            return 0;
        }
        let wanted = self.pace.as_mut().map_or(usize::MAX, Pace::due).min(out.remaining_capacity());
        let mut taken = 0;
        while taken < wanted {
            let Some(packet) = self.packets.get(self.next) else { break };
            let Some(frame) = pool.take_with(packet.bytes()) else { break };
            self.next = if self.next + 1 == self.packets.len() { 0 } else { self.next + 1 };
            out.push(frame);
            taken += 1;
        }
        if let Some(pace) = &mut self.pace {
            pace.received += taken as u64;
        }
        taken
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let count = frames.len();
        frames.drain(..).for_each(|frame| pool.give(frame));
        count
    }

    fn service(&mut self, _: &mut FramePool) {
        if let Some(pace) = &mut self.pace {
            pace.sent();
        }
    }

    fn frames_held(&self) -> usize {
        0
    }
}

/// How long the loop's turns took, nanoseconds.
pub struct Gaps {
    /// By the wall clock: from the end of one turn to the end of the next.
    pub wall: Histogram<u64>,
    /// By the thread's own processor time, of turns that kept their core and were not among the [`WARMING`]
    /// after one that lost it: the switch and the cold caches behind it are not the event's.
    pub own: Histogram<u64>,
    /// The worst of [`Self::own`] in each window of turns looked at, windows with all their turns only.
    pub windows: Histogram<u64>,
    /// Windows that are left out, as a turn of theirs lost its core, or all were interrupted.
    pub broken: u64,
    /// Turns that lost their core.
    pub interrupted: u64,
    /// Turns in which their core was interrupted by its timer or a device: of a virtual machine's the timer takes tens
    /// of microseconds, every four milliseconds. They do not count in [`Self::own`].
    pub ticked: u64,
    /// Times the thread gave its core up by itself: for a lock, the kernel's of its memory map among them.
    pub slept: u64,
    warming: u32,
    ticked_before: bool,
}

impl Gaps {
    pub fn none() -> Self {
        Self {
            wall: histogram(),
            own: histogram(),
            windows: histogram(),
            broken: 0,
            interrupted: 0,
            ticked: 0,
            slept: 0,
            warming: 0,
            ticked_before: false,
        }
    }

    pub fn worst_own_us(&self) -> f64 {
        self.own.max() as f64 / 1e3
    }

    pub fn worst_wall_us(&self) -> f64 {
        self.wall.max() as f64 / 1e3
    }

    /// Takes a turn up.
    fn add(&mut self, before: Instants, after: Instants) -> Seen {
        let (wall, own) = (after.wall - before.wall, after.own - before.own);
        self.wall.saturating_record(wall);
        if wall > own + SWITCH_NS {
            self.interrupted += 1;
            self.warming = WARMING;
            return Seen::Lost;
        }
        if self.warming > 0 {
            self.warming -= 1;
            return Seen::Lost;
        }
        let ticked = after.interrupts != before.interrupts;
        // One that fell between two readings is counted in the turn before the one it took the time of.
        let before_it = std::mem::replace(&mut self.ticked_before, ticked);
        if ticked || before_it {
            self.ticked += 1;
            return Seen::Ticked;
        }
        self.own.saturating_record(own);
        Seen::Whole(own)
    }

    fn close(&mut self, window: Window) {
        match window.worst {
            Some(worst) if worst > 0 => self.windows.saturating_record(worst),
            _ => self.broken += 1,
        }
    }
}

/// What a turn's own time is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    Whole(u64),
    /// The kernel took some of it for itself. The window goes on without this turn.
    Ticked,
    /// Another process had its core.
    Lost,
}

/// Turns until caches are warm again.
const WARMING: u32 = 32;

/// What the two clocks may differ by in a turn that kept its core: they are not read at one instant.
const SWITCH_NS: u64 = 2_000;

#[derive(Clone, Copy)]
struct Instants {
    wall: u64,
    own: u64,
    interrupts: u64,
}

/// What turns are timed with.
pub struct Clocks {
    /// Where the kernel tells them.
    interrupts: Option<Interrupts>,
}

impl Clocks {
    /// Of the core this thread is pinned to.
    pub fn of_this_core() -> Self {
        Self { interrupts: Interrupts::of_core(rustix::thread::sched_getcpu()).ok() }
    }

    fn read(&mut self) -> Instants {
        let own = clock_gettime(ClockId::ThreadCPUTime);
        let wall = Now::read().ns;
        let interrupts = self.interrupts.as_mut().and_then(|interrupts| interrupts.read().ok()).unwrap_or(0);
        Instants { wall, own: own.tv_sec as u64 * 1_000_000_000 + own.tv_nsec as u64, interrupts }
    }
}

/// Which turns are looked at closely.
#[derive(Debug, Clone, Copy)]
pub enum Watch {
    /// So many from the one on that takes up a new view.
    Views(u32),
    /// Each in which flows end.
    Ends,
    /// So many at a time, from one anywhere in the loop on: what an event's are held against. Every so often,
    /// on the average.
    Anywhere(u32, Duration),
}

/// Turns of one event, or of none.
struct Window {
    left: u32,
    /// `None`: a turn among them does not count.
    worst: Option<u64>,
}

impl Window {
    fn see(&mut self, seen: Seen) {
        self.left = self.left.saturating_sub(1);
        self.worst = match seen {
            Seen::Whole(own) => self.worst.map(|worst| worst.max(own)),
            Seen::Ticked => self.worst,
            Seen::Lost => None,
        };
    }
}

struct Watcher {
    watch: Watch,
    /// The view, or the flows there are.
    last: u64,
    /// When the next window anywhere begins.
    next: u64,
    random: u64,
    open: Option<Window>,
}

impl Watcher {
    fn new(watch: Watch, stats: &WorkerStats, now: u64) -> Self {
        let mut watcher = Self { watch, last: 0, next: 0, random: now, open: None };
        watcher.begins(stats, now);
        watcher
    }

    /// How many turns are to be looked at from this one on, if it is an event's first.
    fn begins(&mut self, stats: &WorkerStats, now: u64) -> Option<u32> {
        match self.watch {
            Watch::Views(turns) => {
                let before = std::mem::replace(&mut self.last, stats.view.get());
                (self.last != before).then_some(turns)
            }
            Watch::Ends => {
                let before = std::mem::replace(&mut self.last, stats.flows_established.get());
                (self.last < before).then_some(1)
            }
            Watch::Anywhere(turns, every) => {
                if now < self.next {
                    return None;
                }
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                self.next = now + (self.random >> 32) * 2 * every.as_nanos() as u64 / (1 << 32);
                self.open.is_none().then_some(turns)
            }
        }
    }

    fn see(&mut self, gaps: &mut Gaps, seen: Seen, stats: &WorkerStats, now: u64) {
        if let Some(turns) = self.begins(stats, now) {
            let before = self.open.replace(Window { left: turns, worst: Some(0) });
            // Cut short by the next event: what it saw of its own counts.
            before.into_iter().for_each(|window| gaps.close(window));
        }
        let Some(window) = &mut self.open else { return };
        window.see(seen);
        if window.left == 0 {
            self.open.take().into_iter().for_each(|window| gaps.close(window));
        }
    }
}

/// Prefers this thread to others on its core, where it may: a worker of a box has a core for itself.
pub fn insist() {
    let _ = rustix::process::setpriority_process(None, -15);
}

/// Is as others are again.
pub fn yield_to_others() {
    let _ = rustix::process::setpriority_process(None, 0);
}

/// How often this thread went to sleep: a worker that waits for a lock does.
pub fn sleeps() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/status").context("/proc/thread-self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).context("no voluntary_ctxt_switches in the thread's status")
}

/// Turns a worker for a while as [`penstock_dataplane::worker::Worker::run`] does, on this thread.
///
/// # Errors
/// The kernel does not say how often the thread slept.
pub fn turn<P: Port>(turning: &mut Turning<P>, duration: Duration, watch: Watch) -> anyhow::Result<Gaps> {
    turn_until(turning, duration, watch, |_| false)
}

/// The same, with an eye on nothing.
///
/// # Errors
/// As of [`turn`].
pub fn warm_up<P: Port>(turning: &mut Turning<P>, duration: Duration) -> anyhow::Result<()> {
    turn(turning, duration, Watch::Views(1)).map(drop)
}

/// The same as [`turn`], and no longer than `done` says no, which is asked every 64 turns.
///
/// # Errors
/// As of [`turn`].
pub fn turn_until<P: Port>(
    turning: &mut Turning<P>,
    duration: Duration,
    watch: Watch,
    mut done: impl FnMut(&Turning<P>) -> bool,
) -> anyhow::Result<Gaps> {
    let mut gaps = Gaps::none();
    let slept = sleeps()?;
    let mut clocks = Clocks::of_this_core();
    let mut last = clocks.read();
    let until = last.wall + duration.as_nanos() as u64;
    let mut watcher = Watcher::new(watch, &turning.stats, last.wall);
    for turn in 1_u64.. {
        turning.worker.turn(Now { ns: last.wall });
        let now = clocks.read();
        let seen = gaps.add(last, now);
        watcher.see(&mut gaps, seen, &turning.stats, now.wall);
        last = now;
        if now.wall >= until || turn.is_multiple_of(64) && done(turning) {
            break;
        }
    }
    gaps.slept = sleeps()? - slept;
    Ok(gaps)
}

/// The first turns of a worker that slept: one window, of those that kept their core.
pub fn wake_up<P: Port>(turning: &mut Turning<P>, gaps: &mut Gaps, clocks: &mut Clocks, turns: u32) {
    let mut window = Window { left: turns, worst: Some(0) };
    while window.left > 0 {
        let before = clocks.read();
        turning.worker.turn(Now { ns: before.wall });
        // Cold caches are part of it: whoever naps wakes to them.
        gaps.warming = 0;
        window.see(gaps.add(before, clocks.read()));
    }
    gaps.close(window);
}
