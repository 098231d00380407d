//! Clients: volleys of connections counted by the node that answered, transfers checked by hash,
//! sessions that last, UDP exchanges. All run on one thread inside a client's namespace.

pub mod hold;
pub mod http;
pub mod icmp;
pub mod sessions;
pub mod udp;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use crate::lab::Netns;

/// Where exchanges ended: per node, and how many failed for what reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub by_node: BTreeMap<String, u64>,
    pub failures: BTreeMap<String, u64>,
    pub elapsed: Duration,
}

impl Tally {
    pub fn add(&mut self, outcome: Result<String, Failure>) {
        match outcome {
            Ok(node) => *self.by_node.entry(node).or_default() += 1,
            Err(failure) => *self.failures.entry(failure.to_string()).or_default() += 1,
        }
    }

    /// Counts another tally's exchanges here too.
    pub fn merge(&mut self, other: Self) {
        for (node, count) in other.by_node {
            *self.by_node.entry(node).or_default() += count;
        }
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
        self.elapsed += other.elapsed;
    }

    #[must_use]
    pub fn answered(&self) -> u64 {
        self.by_node.values().sum()
    }

    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// A node's part of what was answered, 0 to 1.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^52")]
    pub fn share(&self, node: &str) -> f64 {
        self.by_node.get(node).map_or(0.0, |&count| count as f64 / self.answered() as f64)
    }
}

/// Why an exchange failed, by the stage it got to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    Connect(String),
    /// The connection broke; a reset reads "connection reset".
    Broken(String),
    TimedOut(&'static str),
    Answer(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(why) => write!(f, "connecting: {why}"),
            Self::Broken(why) => write!(f, "connection broke: {why}"),
            Self::TimedOut(stage) => write!(f, "timed out {stage}"),
            Self::Answer(what) => write!(f, "wrong answer: {what}"),
        }
    }
}

/// A blocking call once more, if a signal to the process came between (a socket with a time limit is not restarted).
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Runs a client on a thread inside the namespace, with a runtime of its own.
pub fn run_in<T: Send, F: Future<Output = T>>(ns: &Netns, client: impl FnOnce() -> F + Send) -> T {
    ns.run(|| run_here(client()))
}

/// Runs a client in the calling thread's namespace.
///
/// # Panics
/// If the system has no epoll instance left.
pub fn run_here<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("an epoll instance and a timer").block_on(client)
}
