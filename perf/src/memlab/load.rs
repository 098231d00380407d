//! Loads: many connections of a kind, so many at a time, and what became of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::{Broken, Ended};
use super::plan;
use super::talk::Talk;

/// Connections to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub connections: u64,
    pub at_a_time: usize,
    pub v6: bool,
    pub talk: Talk,
    /// A connection that takes longer has failed.
    pub patience: Duration,
}

impl Load {
    #[must_use]
    pub fn new(connections: u64, talk: Talk) -> Self {
        Self { connections, at_a_time: 32, v6: false, talk, patience: Duration::from_secs(600) }
    }

    #[must_use]
    pub fn v6(self) -> Self {
        Self { v6: true, ..self }
    }

    #[must_use]
    pub fn at_a_time(self, at_a_time: usize) -> Self {
        Self { at_a_time, ..self }
    }

    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

/// A connection that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub connection: u64,
    /// Where it was, if a node had answered.
    pub node: Option<String>,
    pub why: Broken,
}

/// Where connections went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub by_node: BTreeMap<String, u64>,
    pub failed: Vec<Failed>,
}

impl Tally {
    /// Connections that completed with every byte right.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.by_node.values().sum()
    }

    #[must_use]
    pub fn ended(&self) -> u64 {
        self.completed() + self.failed.len() as u64
    }

    /// A node's share of the completed connections, 0 to 1.
    #[must_use]
    pub fn share(&self, node: &str) -> f64 {
        let count = self.by_node.get(node).copied().unwrap_or(0);
        count as f64 / self.completed().max(1) as f64
    }

    pub(super) fn add(&mut self, ended: &Ended) {
        let node = ended.node.map(plan::node_name);
        match (ended.result, node) {
            (Ok(()), Some(node)) => *self.by_node.entry(node).or_default() += 1,
            // Nothing completes before a node has spoken; a talk of no bytes at all may.
            (Ok(()), None) => *self.by_node.entry("none".to_owned()).or_default() += 1,
            (Err(why), node) => self.failed.push(Failed { connection: ended.connection, node, why }),
        }
    }

    /// Both together.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        for (node, count) in &other.by_node {
            *self.by_node.entry(node.clone()).or_default() += count;
        }
        self.failed.extend_from_slice(&other.failed);
        self
    }
}

/// A load under way.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) load: Load,
    pub(super) begun: u64,
    pub(super) tally: Tally,
}

impl Running {
    pub(super) fn new(load: Load) -> Self {
        Self { load, begun: 0, tally: Tally::default() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.tally.ended() == self.load.connections
    }

    pub(super) fn wants_another(&self) -> bool {
        let open = self.begun - self.tally.ended();
        self.begun < self.load.connections && open < self.load.at_a_time as u64
    }
}
