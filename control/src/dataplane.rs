//! What control asks of a dataplane. [`crate::sync`] is written against this trait, so that it runs against the
//! Unix socket in production and against a record of calls in tests.

use std::future::Future;
use std::time::Duration;

use hyper::StatusCode;
use penstock_configs::desired::{Desired, Health};
use serde::ser::{Serialize, SerializeStruct, Serializer};

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

/// A snapshot as it is sent: its content is shared with who made it, what the sender says of it is not part of it.
#[derive(Debug, Clone, Copy)]
pub struct Stamped<'a> {
    pub generation: u64,
    pub term: Option<u64>,
    /// Its own generation and term are nobody's.
    pub content: &'a Desired,
}

impl Serialize for Stamped<'_> {
    /// As [`Desired`] with this generation and term, without a copy of 5,000 services for the two.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Desired { generation: _, term: _, nodes, sets, services } = self.content;
        let mut wire = serializer.serialize_struct("Desired", 5)?;
        wire.serialize_field("generation", &self.generation)?;
        wire.serialize_field("term", &self.term)?;
        wire.serialize_field("node", nodes)?;
        wire.serialize_field("set", sets)?;
        wire.serialize_field("service", services)?;
        wire.end()
    }
}

pub trait Dataplane: Send + Sync + 'static {
    /// Replaces `owner`'s snapshot and waits at most `wait` until every worker runs it: `true` if they do.
    fn put_desired(
        &self,
        owner: &str,
        desired: &Stamped<'_>,
        wait: Duration,
    ) -> impl Future<Output = Result<bool, DataplaneError>> + Send;

    /// The generation of `owner`'s snapshot; none where it has none (a dataplane that has lost its state). Cheap:
    /// it is asked every few seconds.
    fn generation(&self, owner: &str) -> impl Future<Output = Result<Option<u64>, DataplaneError>> + Send;

    /// `owner`'s whole snapshot as the dataplane has it.
    fn desired(&self, owner: &str) -> impl Future<Output = Result<Option<Desired>, DataplaneError>> + Send;

    /// What this source said last, in this process or one before it.
    fn health(&self, source: &str) -> impl Future<Output = Result<Health, DataplaneError>> + Send;

    /// In the place of what this source said before.
    fn put_health(&self, source: &str, health: &Health) -> impl Future<Output = Result<(), DataplaneError>> + Send;
}

impl Dataplane for crate::client::Dataplane {
    async fn put_desired(&self, owner: &str, desired: &Stamped<'_>, wait: Duration) -> Result<bool, DataplaneError> {
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

    async fn health(&self, source: &str) -> Result<Health, DataplaneError> {
        self.health_of(source).await.map_err(|e| said(&e))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_reads_as_the_snapshot_with_its_generation_and_term() {
        let content = serde_json::json!({
            "generation": 0,
            "node": [{"name": "a", "addresses": ["10.0.0.1"]}],
            "set": [{"name": "web", "backends": [{"node": "a"}]}],
            "service": [{"name": "one", "vip": "203.0.113.1", "port": 80, "protocol": "tcp", "set": "web",
                "target_port": 8080}],
        });
        let content: Desired = serde_json::from_value(content).unwrap();
        for (content, term) in [(&content, Some(7)), (&content, None), (&Desired::default(), None)] {
            let sent = serde_json::to_vec(&Stamped { generation: 3, term, content }).unwrap();
            let read: Desired = serde_json::from_slice(&sent).unwrap();
            assert_eq!(read, Desired { generation: 3, term, ..content.clone() });
        }
    }
}
