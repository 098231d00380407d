//! Both ends in one loop on one core: the box has the others. Where cores abound the nodes may have one of their own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use penstock_dataplane::clock::Now;
use penstock_dataplane::io::Burst;

use super::client::{Clients, MARK};
use super::responder::Responder;
use super::segment::Segment;
use crate::traffic::endpoint::Endpoint;
use crate::traffic::pace::Pace;

/// How often conversations are looked through for those that wait too long.
const SWEEP_NS: u64 = 10_000_000;
/// A turn longer than this is none: the machine gave the core to somebody else.
const PAUSE_NS: u64 = 10_000_000;
/// Starts per turn: a turn's other work does not wait for more.
const STARTS: usize = 64;

/// When to stop starting conversations.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    pub duration: Duration,
    /// Not before so many were started, and `duration` after that.
    pub after: u64,
}

/// What a run was like, from the clients' side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ran {
    /// While conversations were started.
    pub seconds: f64,
    /// Until so many were started as `Until::after` says.
    pub wrapped_after: Option<f64>,
    /// The rate asked for was not reached.
    pub behind: bool,
    pub latest_us: f64,
    /// What the rings of this end had no room for.
    pub missed: u64,
}

/// The clients' end.
pub struct ClientEnd {
    pub end: Endpoint,
    pub clients: Clients,
    bursts: Vec<Burst>,
    payload: Vec<u8>,
}

impl ClientEnd {
    #[must_use]
    pub fn new(end: Endpoint, clients: Clients) -> Self {
        let bursts = (0..end.queues()).map(|_| Burst::new()).collect();
        let payload = vec![0; clients.payload()];
        Self { end, clients, bursts, payload }
    }

    /// Sends what the conversations have to say, as far as there is room.
    fn flush(&mut self) {
        while let Some(out) = self.clients.next_out() {
            let (_, queue) = (out.segment.ends.ports(), usize::from(out.segment.ends.ports().0) % self.bursts.len());
            let payload = match &out.mark {
                Some(mark) => {
                    self.payload[..MARK].copy_from_slice(mark);
                    &self.payload[..]
                }
                None => &[],
            };
            let len = Segment::frame_len(&out.segment.ends, out.segment.flags, payload.len());
            let full = self.bursts[queue].is_full();
            let Some(mut frame) = (!full).then(|| self.end.frame(len)).flatten() else {
                self.clients.put_back(out);
                break;
            };
            let (dst, src) = self.clients.macs();
            out.segment.write(self.end.pool.memory().bytes_mut(&mut frame), dst, src, payload);
            self.bursts[queue].push(frame);
        }
        for (queue, burst) in self.bursts.iter_mut().enumerate().filter(|(_, burst)| !burst.is_empty()) {
            self.end.send(queue, burst);
        }
    }

    fn collect(&mut self, now: Now) {
        let clients = &mut self.clients;
        self.end.receive(|frame| {
            if let Some((segment, payload)) = Segment::read(frame) {
                clients.take(&segment, payload, now);
            }
            false
        });
    }
}

/// The nodes' end.
pub struct NodeEnd {
    pub end: Endpoint,
    pub responder: Responder,
    pub refused: u64,
}

impl NodeEnd {
    pub fn turn(&mut self, now: Now) {
        let responder = &mut self.responder;
        self.refused += self.end.receive(|frame| responder.answer(frame, now));
        self.end.service();
    }

    /// Answers until `stop`.
    pub fn serve(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.turn(Now::read());
        }
    }
}

/// Conversations at a rate (`None`: as many as there is room for) until they are over. `nodes` are served here if
/// nobody else does. `progress` is told once a second.
pub fn run(
    client: &mut ClientEnd,
    mut nodes: Option<&mut NodeEnd>,
    rate: Option<f64>,
    until: Until,
    mut progress: impl FnMut(&Clients, f64),
) -> Ran {
    let missed_before = client.end.missed();
    let start = Now::read();
    let mut pace = Pace::new(start, rate);
    let since_start = |now: Now| (now.ns - start.ns) as f64 / 1e9;
    let (mut wrapped, mut swept, mut told) = ((until.after == 0).then_some(start), start, start);
    let mut now = start;
    loop {
        if wrapped.is_none() && client.clients.tally.attempted >= until.after {
            wrapped = Some(now);
        }
        if wrapped.is_some_and(|wrapped| now.ns - wrapped.ns >= until.duration.as_nanos() as u64) {
            break;
        }
        for _ in 0..pace.due(now, client.clients.room().min(STARTS)) {
            let intended = pace.next(now);
            // The tuple's successor, then: one of two is free.
            let _ = client.clients.start(intended, now) || client.clients.start(intended, now);
        }
        turn(client, nodes.as_deref_mut(), now, &mut swept);
        if now.ns - told.ns >= 1_000_000_000 {
            told = now;
            progress(&client.clients, since_start(now));
        }
        now = next_turn(client, now);
    }
    let (seconds, behind) = (since_start(now), pace.fell_behind(now));
    while client.clients.open() > 0 {
        turn(client, nodes.as_deref_mut(), now, &mut swept);
        now = next_turn(client, now);
    }
    // The last ACK is still to be sent.
    turn(client, nodes, Now::read(), &mut swept);
    Ran {
        seconds,
        wrapped_after: wrapped.filter(|_| until.after > 0).map(since_start),
        behind,
        latest_us: pace.latest_ns() as f64 / 1e3,
        missed: client.end.missed() - missed_before,
    }
}

/// When the next turn begins.
fn next_turn(client: &mut ClientEnd, last: Now) -> Now {
    let now = Now::read();
    let took = now.ns - last.ns;
    if took > PAUSE_NS {
        client.clients.paused(took);
    }
    now
}

fn turn(client: &mut ClientEnd, nodes: Option<&mut NodeEnd>, now: Now, swept: &mut Now) {
    client.flush();
    client.end.service();
    if let Some(nodes) = nodes {
        nodes.turn(now);
    }
    // Conversations are timed by when their answers are looked at, not by when the turn began.
    client.collect(Now::read());
    if now.ns - swept.ns >= SWEEP_NS {
        *swept = now;
        client.clients.sweep(now);
    }
}
