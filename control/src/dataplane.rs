//! What control asks of a dataplane. [`crate::sync`] is written against this trait, so that it runs against the
//! Unix socket in production and against a record of calls in tests.

use std::future::Future;

use penstock_configs::desired::{Desired, Health};
use penstock_configs::status::Status;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataplaneError {
    /// Nobody listens, or the answer did not come: worth trying again, with the whole snapshot.
    #[error("the dataplane does not answer: {0}")]
    Unreachable(String),
    /// The snapshot has faults; each names its path. The same snapshot would be refused again.
    #[error("the dataplane refused the snapshot: {}", faults.join("; "))]
    Refused { faults: Vec<String> },
    /// Somebody with a newer term has written: we are no longer the leader.
    #[error("the dataplane has seen a newer leader's term: {0}")]
    Fenced(String),
}

pub trait Dataplane: Send + Sync + 'static {
    /// Replaces `owner`'s snapshot. Returns once it is accepted; every worker runs it when [`Self::acknowledged`]
    /// has reached its generation.
    fn put_desired(&self, owner: &str, desired: &Desired) -> impl Future<Output = Result<(), DataplaneError>> + Send;

    /// The generation of `owner` that every worker runs; none where the owner is unknown (a dataplane that has
    /// lost its state).
    fn acknowledged(&self, owner: &str) -> impl Future<Output = Result<Option<u64>, DataplaneError>> + Send;

    fn put_health(&self, health: &Health) -> impl Future<Output = Result<(), DataplaneError>> + Send;

    fn status(&self) -> impl Future<Output = Result<Status, DataplaneError>> + Send;
}
