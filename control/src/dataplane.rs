//! What control asks of a dataplane. [`crate::sync`] is written against this trait, so that it runs against the
//! Unix socket in production and against a record of calls in tests.

use std::future::Future;
use std::time::Duration;

use penstock_configs::desired::{Desired, Health};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataplaneError {
    /// Nobody listens, or the answer did not come: worth trying again, with the whole snapshot.
    #[error("the dataplane does not answer: {0}")]
    Unreachable(String),
    /// The snapshot has faults. The same snapshot would be refused again.
    #[error("the dataplane refused the snapshot: {}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused { faults: Vec<Fault> },
    /// Somebody with a newer term or generation has written.
    #[error("the dataplane has a newer snapshot of this owner: {0}")]
    Fenced(String),
}

/// A fault by its path in the snapshot: `service[3] "web".vip`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    pub path: String,
    pub problem: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() { f.write_str(&self.problem) } else { write!(f, "{}: {}", self.path, self.problem) }
    }
}

pub trait Dataplane: Send + Sync + 'static {
    /// Replaces `owner`'s snapshot and waits at most `wait` until every worker runs it: `true` if they do.
    fn put_desired(
        &self,
        owner: &str,
        desired: &Desired,
        wait: Duration,
    ) -> impl Future<Output = Result<bool, DataplaneError>> + Send;

    /// The generation of `owner`'s snapshot; none where it has none (a dataplane that has lost its state). Cheap:
    /// it is asked every few seconds.
    fn generation(&self, owner: &str) -> impl Future<Output = Result<Option<u64>, DataplaneError>> + Send;

    fn put_health(&self, health: &Health) -> impl Future<Output = Result<(), DataplaneError>> + Send;
}
