//! What became of the conversations.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;

use crate::traffic::track::Percentiles;

/// How far a conversation had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A SYN was sent.
    Connect,
    /// The request was sent.
    Answer,
    /// FIN was sent.
    Close,
}

/// Why one failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    TimedOut(Stage),
    Reset(Stage),
    /// Another's answer, or numbers of another connection.
    Foreign(Stage),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Answer => "answer",
            Self::Close => "close",
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(stage) => write!(f, "{stage}: timed out"),
            Self::Reset(stage) => write!(f, "{stage}: reset"),
            Self::Foreign(stage) => write!(f, "{stage}: another connection's answer"),
        }
    }
}

/// The client's side of it.
#[derive(Debug, Clone)]
pub struct Tally {
    pub attempted: u64,
    pub completed: u64,
    pub failed: BTreeMap<Failure, u64>,
    /// Segments sent once more.
    pub repeated: u64,
    /// Conversations that could not start when due: all were in use, or the next tuple was.
    pub held_back: u64,
    /// The longest the clients themselves stood still, which is nobody's failure.
    pub longest_pause_ns: u64,
    /// Completed conversations of each node.
    pub by_node: Vec<u64>,
    /// Nanoseconds.
    pub handshake: Histogram<u64>,
    pub whole: Histogram<u64>,
}

impl Tally {
    /// # Panics
    /// Never: the histograms' bounds are constants that fit.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constants");
        Self {
            attempted: 0,
            completed: 0,
            failed: BTreeMap::new(),
            repeated: 0,
            held_back: 0,
            longest_pause_ns: 0,
            by_node: vec![0; nodes],
            handshake: histogram(),
            whole: histogram(),
        }
    }

    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    pub fn fail(&mut self, failure: Failure) {
        *self.failed.entry(failure).or_default() += 1;
    }

    #[must_use]
    pub fn handshake_us(&self) -> Percentiles {
        Percentiles::of(&self.handshake)
    }

    #[must_use]
    pub fn whole_us(&self) -> Percentiles {
        Percentiles::of(&self.whole)
    }
}

/// The nodes' side of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodeTally {
    pub opened: u64,
    /// Segments of a connection that this node never opened: a box that changed its mind.
    pub wrong_node: u64,
    pub resets_seen: u64,
    /// SYNs from an address and port that the same node had a connection with before.
    pub ports_reused: u64,
    /// Of these, SYNs that a node which had closed first, and still waited, would not have taken as new ones
    /// (RFC 6191): a connect that would have hung.
    pub unwelcome: u64,
    /// The shortest time between two of these.
    pub soonest_reuse_ms: Option<u64>,
}
