//! The two ends of a load, each a loop on a thread of its own: packets out at a pace and what comes back into
//! the books; and the nodes' side, which answers or only counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_dataplane::clock::Now;
use penstock_dataplane::io::Burst;

use super::endpoint::Endpoint;
use super::pace::Pace;
use super::packet::{Maker, Stamp, answer, stamp_of};
use super::pauses::{Pauses, own_ns};
use super::popularity::Draw;
use super::precedence::insist;
use super::track::{Outcome, Track};

/// Packets that have a number of their own, and a next one: a stamp's has 32 bits. A run ends before they come round.
pub const NUMBERS: u64 = u32::MAX as u64;
/// How long the next packet may take to come in once all were sent: a worker may wait for its core, on a busy machine.
const SILENCE: Duration = Duration::from_secs(1);
/// The same where none ever came: nobody answers.
const NOBODY: Duration = Duration::from_millis(200);

/// Waits for packets that are on their way after the last was sent.
#[derive(Debug)]
pub(super) struct Drain {
    sent: u64,
    received: u64,
    /// When one last came, or all were sent.
    since: Now,
}

impl Drain {
    pub(super) fn new(sent: u64, now: Now) -> Self {
        Self { sent, received: 0, since: now }
    }

    /// Whether more may come, of which so many are there now.
    pub(super) fn goes_on(&mut self, received: u64, now: Now) -> bool {
        if received != self.received {
            (self.received, self.since) = (received, now);
        }
        let patience = if received == 0 { NOBODY } else { SILENCE };
        received < self.sent && now.ns - self.since.ns < patience.as_nanos() as u64
    }
}

/// What a sender sends.
pub struct Load {
    pub maker: Maker,
    pub draw: Draw,
    pub flows: u32,
    /// Packets per second; `None`: flat out.
    pub rate: Option<f64>,
    pub duration: Duration,
    pub vip_port: u16,
}

/// What a sender did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Sent {
    pub packets: u64,
    pub seconds: f64,
    /// The rate asked for was not reached: the figures are the generator's.
    pub behind: bool,
    /// How late the latest packet was.
    pub latest_us: f64,
    /// How often the sender lost its core, and for how long in all.
    pub pauses: u64,
    pub paused_us: f64,
    /// Answers that the sender's own rings had no room for.
    pub missed: u64,
}

/// Sends a load and keeps the books of what comes back to it.
pub fn run(end: &mut Endpoint, load: &mut Load) -> (Sent, Outcome) {
    insist();
    let mut track = Track::new(load.flows);
    let missed_before = end.missed();
    let start = Now::read();
    let until = Now { ns: start.ns + load.duration.as_nanos() as u64 };
    let mut pace = Pace::new(start, load.rate);
    let mut pauses = Pauses::new(start, own_ns());
    let mut bursts: Vec<Burst> = (0..end.queues()).map(|_| Burst::new()).collect();
    let mut packets = 0;
    let mut now = start;
    while now < until && pace.sent() < NUMBERS {
        let room = bursts.iter().map(arrayvec::ArrayVec::remaining_capacity).min().unwrap_or(0);
        let due = pace.due(now, room);
        for _ in 0..due {
            let number = pace.sent();
            let Some(mut frame) = end.frame(load.maker.frame_len(number)) else { break };
            let (flow, touched) = (load.draw.flow(), pauses.disturbed());
            let stamp = Stamp { number: number as u32, flow, intended: pace.next(now), touched };
            load.maker.write(end.pool.memory().bytes_mut(&mut frame), stamp);
            let queue = stamp.flow as usize % bursts.len();
            bursts[queue].push(frame);
        }
        for (queue, burst) in bursts.iter_mut().enumerate().filter(|(_, burst)| !burst.is_empty()) {
            packets += end.send(queue, burst) as u64;
        }
        let behind = load.rate.is_some() && (due == room || bursts.iter().any(|burst| !burst.is_empty()));
        collect(end, load, &mut track, &mut pauses, behind, pace.sent());
        end.service();
        now = Now::read();
    }
    let behind = pace.fell_behind(now) || load.rate.is_some() && bursts.iter().any(|burst| !burst.is_empty());
    bursts.into_iter().flatten().for_each(|frame| end.pool.give(frame));
    let seconds = (now.ns - start.ns) as f64 / 1e9;
    let mut drain = Drain::new(packets, now);
    while drain.goes_on(track.received, Now::read()) {
        collect(end, load, &mut track, &mut pauses, false, pace.sent());
        end.service();
    }
    let sent = Sent {
        packets,
        seconds,
        behind,
        latest_us: pace.latest_ns() as f64 / 1e3,
        pauses: pauses.count,
        paused_us: pauses.total_ns as f64 / 1e3,
        missed: end.missed() - missed_before,
    };
    (sent, track.close(packets))
}

/// Takes in what came back. A pause is seen here, before anything that waited in it is looked at.
fn collect(end: &mut Endpoint, load: &Load, track: &mut Track, pauses: &mut Pauses, behind: bool, sent: u64) {
    let now = Now::read();
    pauses.turned(now, own_ns, behind, sent.saturating_sub(track.highest()));
    end.receive(|packet| {
        if let Some(stamp) = stamp_of(packet, load.vip_port) {
            track.arrived(stamp, packet.len(), now, stamp.touched || pauses.touched(stamp.intended));
        }
        false
    });
}

/// What the nodes' side does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeSide {
    /// Sends it back: both directions are loaded, the sender keeps the books.
    Answer,
    /// Only takes it: one direction, and its books are here.
    Count,
}

/// As the number sent, while it is not known.
pub const STILL_SENDING: u64 = u64::MAX;

/// The nodes' side, until so many were sent, and counted or given up. The books of `Count`; the answers its rings refused or
/// lost.
pub fn serve(end: &mut Endpoint, side: NodeSide, port: u16, flows: u32, sent: &AtomicU64) -> (Track, u64) {
    let mut track = Track::new(if side == NodeSide::Count { flows } else { 0 });
    let (mut refused, missed_before) = (0, end.missed());
    insist();
    let mut pauses = Pauses::new(Now::read(), own_ns());
    let mut drain: Option<Drain> = None;
    loop {
        let now = Now::read();
        let sent = sent.load(Ordering::Relaxed);
        if sent != STILL_SENDING {
            // The sender has waited for its answers.
            if side == NodeSide::Answer || !drain.get_or_insert(Drain::new(sent, now)).goes_on(track.received, now) {
                break;
            }
        }
        // What waited here while this loop did not turn; nothing is sent late from here.
        pauses.turned(now, own_ns, false, 0);
        refused += end.receive(|packet| match side {
            NodeSide::Answer => answer(packet),
            NodeSide::Count => {
                if let Some(stamp) = stamp_of(packet, port) {
                    track.arrived(stamp, packet.len(), now, stamp.touched || pauses.touched(stamp.intended));
                }
                false
            }
        });
        end.service();
    }
    (track, refused + end.missed() - missed_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Now {
        Now { ns: ms * 1_000_000 }
    }

    #[test]
    fn packets_are_waited_for_while_they_come() {
        let mut drain = Drain::new(10, at_ms(0));
        // A worker that gets its core back only now and then.
        for (received, ms) in [(3, 150), (3, 900), (8, 1_100), (9, 2_000), (9, 2_900)] {
            assert!(drain.goes_on(received, at_ms(ms)), "{received} at {ms} ms");
        }
        assert!(!drain.goes_on(10, at_ms(2_901)), "all are there");
        let mut drain = Drain::new(10, at_ms(0));
        assert!(drain.goes_on(9, at_ms(1)) && !drain.goes_on(9, at_ms(1_001)), "the last is lost");
        let mut drain = Drain::new(10, at_ms(0));
        assert!(drain.goes_on(0, at_ms(199)) && !drain.goes_on(0, at_ms(200)), "nobody answers");
    }
}
