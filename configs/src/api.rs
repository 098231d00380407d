//! The requests and answers of the dataplane's Unix-socket API that are neither the desired state
//! nor the status: what both ends of the socket must agree on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::desired::BackendState;

/// The answer to a `PUT` or `DELETE`: what was published, and whether every worker runs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The owner's generation; missing where the request had none (health, drain, delete).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    pub epoch: u64,
    pub acknowledged: bool,
    /// Accepted and served all the same: a snapshot that could not be written to disk, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub error: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<ApiFault>,
}

/// A fault on the wire: a path into the document that was sent, never a line of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiFault {
    pub path: String,
    pub problem: String,
    pub remedy: String,
}

/// `GET /v1/drain`, by what the operator named.
pub type Drains = BTreeMap<String, Drain>;

/// A node or address an operator took out of service by hand. It outlives restarts, and combines
/// with health: the worse state wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    #[serde(default = "draining")]
    pub state: BackendState,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Filled by the dataplane: the addresses the name stands for now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { state: BackendState::Draining, reason: String::new(), addresses: Vec::new() }
    }
}

fn draining() -> BackendState {
    BackendState::Draining
}

/// One line of `GET /v1/desired`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSummary {
    pub owner: String,
    pub generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    pub nodes: u64,
    pub sets: u64,
    pub services: u64,
}
