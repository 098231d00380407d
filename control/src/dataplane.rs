//! What control asks of a dataplane. [`crate::sync`] is written against this trait, so that it runs against the
//! Unix socket in production and against a record of calls in tests.

use std::future::Future;
use std::time::Duration;

use hyper::StatusCode;
use penstock_configs::desired::{Desired, Health};

use crate::client::ClientError;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataplaneError {
    /// Nobody listens at its socket: the process is gone, and with it whoever answered for the addresses.
    #[error("the dataplane is not there: {0}")]
    Absent(String),
    /// The answer did not come: worth trying again, with the whole snapshot.
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

    /// `owner`'s whole snapshot as the dataplane has it.
    fn desired(&self, owner: &str) -> impl Future<Output = Result<Option<Desired>, DataplaneError>> + Send;

    /// In the place of what this source said before.
    fn put_health(&self, source: &str, health: &Health) -> impl Future<Output = Result<(), DataplaneError>> + Send;
}

impl Dataplane for crate::client::Dataplane {
    async fn put_desired(&self, owner: &str, desired: &Desired, wait: Duration) -> Result<bool, DataplaneError> {
        let accepted = Self::put_desired(self, owner, desired, Some(wait)).await.map_err(|e| said(&e))?;
        for warning in &accepted.warnings {
            tracing::warn!(owner, "{warning}");
        }
        Ok(accepted.acknowledged)
    }

    async fn generation(&self, owner: &str) -> Result<Option<u64>, DataplaneError> {
        let owners = self.owners().await.map_err(|e| said(&e))?;
        Ok(owners.into_iter().find(|o| o.owner == owner).map(|o| o.generation))
    }

    async fn desired(&self, owner: &str) -> Result<Option<Desired>, DataplaneError> {
        Self::desired(self, owner).await.map_err(|e| said(&e))
    }

    async fn put_health(&self, source: &str, health: &Health) -> Result<(), DataplaneError> {
        Self::put_health(self, source, health).await.map(|_| ()).map_err(|e| said(&e))
    }
}

/// Nobody listens: gone, and not only busy. 409: a term, a generation. Any other refusal of the client's: the document's fault. The rest may pass.
fn said(error: &ClientError) -> DataplaneError {
    match error.refused() {
        Some((StatusCode::CONFLICT, refused)) => DataplaneError::Fenced(refused.error.clone()),
        Some((status, refused)) if status.is_client_error() => {
            let mut faults: Vec<Fault> =
                refused.faults.iter().map(|f| Fault { path: f.path.clone(), problem: f.problem.clone() }).collect();
            if faults.is_empty() {
                faults.push(Fault { path: String::new(), problem: refused.error.clone() });
            }
            DataplaneError::Refused { faults }
        }
        _ if matches!(error, ClientError::NoDataplane { .. }) => DataplaneError::Absent(error.to_string()),
        _ => DataplaneError::Unreachable(error.to_string()),
    }
}
