//! The clients' side: conversations, each a few bytes of state, moved by the segments that come for them.

use std::collections::VecDeque;
use std::net::IpAddr;

use penstock_dataplane::clock::Now;

use super::segment::{ACK, End, Ends, FIN, PSH, RST, SYN, Segment};
use super::tally::{Failure, Stage, Tally};
use crate::traffic::packet::Route;

/// Linux's ephemeral ports.
const FIRST_PORT: u16 = 32_768;
const PORTS: u32 = 28_232;
/// What a request carries, and its answer echoes: the conversation's tuple and its turn. The answer has the node's
/// number behind it.
pub const MARK: usize = 12;

/// What clients do.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Conversations at a time.
    pub concurrency: usize,
    /// Client addresses; each has Linux's ephemeral ports, used in turn.
    pub addresses: u32,
    /// Bytes of a request and of its answer.
    pub bytes: usize,
    /// How long a segment may stay unanswered.
    pub patience_ns: u64,
    /// How often one is sent again then; 0: at once a failure.
    pub retries: u8,
}

/// State of one conversation.
#[derive(Debug, Clone, Copy)]
struct Talk {
    /// `None`: nobody's.
    stage: Option<Stage>,
    tries: u8,
    tuple: u32,
    /// Which use of the tuple it is: answers to an earlier one are none.
    turn: u32,
    first: u32,
    /// The node's next sequence number.
    node_next: u32,
    /// The node's timestamp, to be echoed.
    node_stamp: u32,
    node: u32,
    intended: Now,
    deadline: u64,
}

const NOBODY: Talk = Talk {
    stage: None,
    tries: 0,
    tuple: 0,
    turn: 0,
    first: 0,
    node_next: 0,
    node_stamp: 0,
    node: 0,
    intended: Now { ns: 0 },
    deadline: 0,
};

/// A segment to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    pub segment: Segment,
    /// Payload of a request.
    pub mark: Option<[u8; MARK]>,
}

/// All clients of a run.
pub struct Clients {
    route: Route,
    habits: Habits,
    /// By tuple, modulo their count: tuples are used in turn, so neighbours in time are neighbours here.
    talks: Vec<Talk>,
    open: usize,
    /// Tuples used so far.
    started: u64,
    out: VecDeque<Out>,
    /// How long the clients themselves stood still, in all: their patience stood still with them.
    paused_ns: u64,
    pub tally: Tally,
}

impl Clients {
    #[must_use]
    pub fn new(route: Route, habits: Habits, nodes: usize) -> Self {
        // Room for those that take longer than the ones behind them.
        let talks = (habits.concurrency * 4).next_power_of_two();
        let tally = Tally::new(nodes);
        Self {
            route,
            habits,
            talks: vec![NOBODY; talks],
            open: 0,
            started: 0,
            out: VecDeque::new(),
            paused_ns: 0,
            tally,
        }
    }

    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// How many more may be open.
    #[must_use]
    pub fn room(&self) -> usize {
        self.habits.concurrency.saturating_sub(self.open)
    }

    /// Different client tuples.
    #[must_use]
    pub fn tuples(&self) -> u64 {
        u64::from(self.habits.addresses) * u64::from(PORTS)
    }

    /// The longest payload of a segment.
    #[must_use]
    pub fn payload(&self) -> usize {
        self.habits.bytes.max(MARK)
    }

    /// Segments to be sent, the oldest first.
    pub fn next_out(&mut self) -> Option<Out> {
        self.out.pop_front()
    }

    pub fn put_back(&mut self, out: Out) {
        self.out.push_front(out);
    }

    /// Starts the conversation that was due at `intended`. False: the next tuple is still in use.
    pub fn start(&mut self, intended: Now, now: Now) -> bool {
        let tuple = (self.started % self.tuples()) as u32;
        let at = tuple as usize & (self.talks.len() - 1);
        if self.talks[at].stage.is_some() {
            // One that hangs must not hold up the others: its tuple's successor is as good.
            self.started += 1;
            self.tally.held_back += 1;
            return false;
        }
        let turn = (self.started / self.tuples()) as u32;
        self.started += 1;
        let first = number_of(tuple, now);
        self.talks[at] = Talk { stage: Some(Stage::Connect), tuple, turn, first, intended, ..NOBODY };
        self.open += 1;
        self.tally.attempted += 1;
        self.say(at, now);
        true
    }

    /// Queues the segment of a conversation's stage.
    fn say(&mut self, at: usize, now: Now) {
        let talk = &mut self.talks[at];
        let Some(stage) = talk.stage else { return };
        talk.deadline = now.ns.saturating_sub(self.paused_ns) + self.habits.patience_ns;
        let talk = self.talks[at];
        let asked = self.payload() as u32;
        let after_syn = talk.first.wrapping_add(1);
        let (seq, ack, flags) = match stage {
            Stage::Connect => (talk.first, 0, SYN),
            Stage::Answer => (after_syn, talk.node_next, ACK | PSH),
            Stage::Close => (after_syn.wrapping_add(asked), talk.node_next, FIN | ACK),
        };
        let mark = (stage == Stage::Answer).then(|| mark_of(talk.tuple, talk.turn));
        self.push(&talk, seq, ack, flags, mark, now);
    }

    fn push(&mut self, talk: &Talk, seq: u32, ack: u32, flags: u8, mark: Option<[u8; MARK]>, now: Now) {
        let (stamp, echo) = (stamp_of(talk.tuple, now), talk.node_stamp);
        let segment = Segment { ends: self.ends(talk.tuple), seq, ack, flags, stamp, echo };
        self.out.push_back(Out { segment, mark });
    }

    /// A segment has come in.
    pub fn take(&mut self, segment: &Segment, payload: &[u8], now: Now) {
        let Some(at) = self.find(&segment.ends) else { return };
        let talk = self.talks[at];
        let Some(stage) = talk.stage else { return };
        if segment.has(RST) {
            return self.end(at, Failure::Reset(stage));
        }
        let asked = self.payload() as u32;
        let acknowledged = segment.ack.wrapping_sub(talk.first);
        match stage {
            Stage::Connect if segment.has(SYN) && segment.has(ACK) => {
                if acknowledged != 1 {
                    // To an earlier SYN from this tuple.
                    return;
                }
                self.tally.handshake.saturating_record(since(talk.intended, now));
                let node_next = segment.seq.wrapping_add(1);
                self.advance(at, Stage::Answer, Talk { node_next, node_stamp: segment.stamp, ..talk }, now);
            }
            Stage::Answer if !payload.is_empty() && segment.seq == talk.node_next => {
                let whose = payload.get(..MARK - 4) == Some(&mark_of(talk.tuple, talk.turn)[..MARK - 4]);
                let node = payload.get(MARK - 4..MARK).and_then(|node| node.try_into().ok());
                let (true, Some(node), true) = (whose, node, payload.len() == asked as usize) else {
                    return self.end(at, Failure::Foreign(stage));
                };
                let node_next = segment.seq.wrapping_add(asked);
                let node = u32::from_be_bytes(node);
                self.advance(at, Stage::Close, Talk { node_next, node_stamp: segment.stamp, node, ..talk }, now);
            }
            Stage::Close if segment.has(FIN) && segment.seq == talk.node_next => {
                if acknowledged != asked + 2 {
                    return self.end(at, Failure::Foreign(stage));
                }
                let last = Talk { node_stamp: segment.stamp, ..talk };
                let seq = talk.first.wrapping_add(asked + 2);
                self.push(&last, seq, segment.seq.wrapping_add(1), ACK, None, now);
                self.tally.whole.saturating_record(since(talk.intended, now));
                self.tally.completed += 1;
                if let Some(count) = self.tally.by_node.get_mut(talk.node as usize) {
                    *count += 1;
                }
                self.forget(at);
            }
            // Something sent twice, or of an earlier use of the tuple.
            _ => {}
        }
    }

    fn advance(&mut self, at: usize, stage: Stage, talk: Talk, now: Now) {
        self.talks[at] = Talk { stage: Some(stage), tries: 0, ..talk };
        self.say(at, now);
    }

    fn end(&mut self, at: usize, failure: Failure) {
        self.tally.fail(failure);
        self.forget(at);
    }

    fn forget(&mut self, at: usize) {
        self.talks[at].stage = None;
        self.open -= 1;
    }

    /// The clients did not run for so long: answers may have come meanwhile, and nobody has looked.
    pub fn paused(&mut self, nanos: u64) {
        self.paused_ns += nanos;
        self.tally.longest_pause_ns = self.tally.longest_pause_ns.max(nanos);
    }

    /// Repeats or gives up what has waited too long. Looks at every conversation: for every few milliseconds.
    pub fn sweep(&mut self, now: Now) {
        let awake_ns = now.ns.saturating_sub(self.paused_ns);
        for at in 0..self.talks.len() {
            let talk = self.talks[at];
            let Some(stage) = talk.stage.filter(|_| talk.deadline <= awake_ns) else { continue };
            if talk.tries < self.habits.retries {
                self.talks[at].tries += 1;
                self.tally.repeated += 1;
                self.say(at, now);
            } else {
                self.end(at, Failure::TimedOut(stage));
            }
        }
    }

    /// Gives up whatever is still open.
    pub fn abandon(&mut self) {
        for at in 0..self.talks.len() {
            if let Some(stage) = self.talks[at].stage {
                self.end(at, Failure::TimedOut(stage));
            }
        }
    }

    /// The conversation an answer with these ends is for.
    fn find(&self, ends: &Ends) -> Option<usize> {
        let (from, to, port) = match ends {
            Ends::V4 { src, dst } => ((src.address.into(), src.port), IpAddr::from(dst.address), dst.port),
            Ends::V6 { src, dst } => ((src.address.into(), src.port), IpAddr::from(dst.address), dst.port),
        };
        if from != (self.route.vip, self.route.vip_port) {
            return None;
        }
        let address = match (self.route.first_client, to) {
            (IpAddr::V4(first), IpAddr::V4(to)) => u32::from(to).checked_sub(u32::from(first))?,
            (IpAddr::V6(first), IpAddr::V6(to)) => {
                u128::from(to).checked_sub(u128::from(first)).and_then(|address| u32::try_from(address).ok())?
            }
            _ => return None,
        };
        let port = u32::from(port.checked_sub(FIRST_PORT)?);
        if address >= self.habits.addresses || port >= PORTS {
            return None;
        }
        let tuple = address * PORTS + port;
        let at = tuple as usize & (self.talks.len() - 1);
        (self.talks[at].stage.is_some() && self.talks[at].tuple == tuple).then_some(at)
    }

    fn ends(&self, tuple: u32) -> Ends {
        let (address, port) = (tuple / PORTS, FIRST_PORT + (tuple % PORTS) as u16);
        match (self.route.first_client, self.route.vip) {
            (IpAddr::V4(first), IpAddr::V4(vip)) => Ends::V4 {
                src: End { address: (u32::from(first) + address).into(), port },
                dst: End { address: vip, port: self.route.vip_port },
            },
            (IpAddr::V6(first), IpAddr::V6(vip)) => Ends::V6 {
                src: End { address: (u128::from(first) + u128::from(address)).into(), port },
                dst: End { address: vip, port: self.route.vip_port },
            },
            (client, vip) => unreachable!("a bench's route has one family: {client}, {vip}"),
        }
    }

    #[must_use]
    pub fn macs(&self) -> ([u8; 6], [u8; 6]) {
        (self.route.dst_mac, self.route.src_mac)
    }
}

fn since(intended: Now, now: Now) -> u64 {
    now.ns.saturating_sub(intended.ns).max(1)
}

fn stir(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

/// The first sequence number as Linux makes it (RFC 6528): a clock of 64 ns and an offset of the tuple's own. A
/// tuple's numbers only grow; those of two tuples that a box gives one port to have nothing to do with each other.
fn number_of(tuple: u32, now: Now) -> u32 {
    ((now.ns >> 6) as u32).wrapping_add(stir(u64::from(tuple)) as u32)
}

/// Timestamps in milliseconds with an offset of the tuple's own, as Linux has them.
fn stamp_of(tuple: u32, now: Now) -> u32 {
    ((now.ns / 1_000_000) as u32).wrapping_add((stir(u64::from(tuple)) >> 32) as u32)
}

/// The payload's beginning; the node puts its number behind.
fn mark_of(tuple: u32, turn: u32) -> [u8; MARK] {
    let mut mark = [0; MARK];
    mark[..4].copy_from_slice(&tuple.to_be_bytes());
    mark[4..8].copy_from_slice(&turn.to_be_bytes());
    mark
}
