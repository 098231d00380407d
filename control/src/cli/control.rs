//! `penstock-control`'s own API, as `penstock why` and `penstock status` ask it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::client::encoded;
use crate::index::ServiceKey;
use crate::serve::NO_KUBERNETES;
use crate::sync::Status;
use crate::unix_http::{self, Transport};
use crate::why::Why;

const PATIENCE: Duration = Duration::from_secs(5);
/// Control's, where the dataplane's is not at its default place either.
const SOCKET: &str = "control.sock";

#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error(
        "there is no socket at {0}: penstock-control does not run, or listens elsewhere (`socket` in control.toml, then \
         --control-socket). Start it: systemctl start penstock-control. Without it the box serves its last snapshot: \
         `penstock status` shows that"
    )]
    Absent(PathBuf),
    #[error(
        "nobody answers at {0}: penstock-control has ended without removing its socket. See journalctl -u \
         penstock-control, then systemctl restart penstock-control; the box serves its last snapshot meanwhile"
    )]
    Dead(PathBuf),
    #[error("no permission to use {0}: run as root (sudo), or as a member of the socket's group")]
    Forbidden(PathBuf),
    #[error(
        "penstock-control at {socket} did not answer within {} s; see journalctl -u penstock-control",
        PATIENCE.as_secs()
    )]
    Silent { socket: PathBuf },
    /// It answers, and serves no cluster.
    #[error(
        "penstock-control runs without a [kubernetes] table in its configuration: the services of this box come from \
         its config file; `penstock status` shows them"
    )]
    NoKubernetes,
    #[error("{socket}: {why}; is it penstock-control's socket, and of this version?")]
    Unexpected { socket: PathBuf, why: String },
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::failed(error.to_string())
    }
}

#[derive(Debug, Clone)]
pub(super) struct Control {
    socket: PathBuf,
}

impl Control {
    /// The socket that was named, else the one beside the dataplane's.
    pub(super) fn new(named: Option<&Path>, dataplane: &Path) -> Self {
        Self { socket: named.map_or_else(|| dataplane.with_file_name(SOCKET), Path::to_owned) }
    }

    pub(super) async fn status(&self) -> Result<Status, ControlError> {
        self.get("/v1/status").await
    }

    pub(super) async fn why(&self, key: &ServiceKey) -> Result<Why, ControlError> {
        self.get(&format!("/v1/why/{}/{}", encoded(&key.namespace), encoded(&key.name))).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ControlError> {
        let socket = || self.socket.clone();
        let asked = unix_http::exchange(&self.socket, Method::GET, path, Bytes::new());
        let Ok(answer) = tokio::time::timeout(PATIENCE, asked).await else {
            return Err(ControlError::Silent { socket: socket() });
        };
        let (status, body) = answer.map_err(|error| match error {
            Transport::Connect(source) => match source.kind() {
                io::ErrorKind::NotFound => ControlError::Absent(socket()),
                io::ErrorKind::PermissionDenied => ControlError::Forbidden(socket()),
                io::ErrorKind::ConnectionRefused => ControlError::Dead(socket()),
                _ => ControlError::Unexpected { socket: socket(), why: source.to_string() },
            },
            other => ControlError::Unexpected { socket: socket(), why: other.to_string() },
        })?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map_err(|error| ControlError::Unexpected { socket: socket(), why: error.to_string() }),
            StatusCode::NOT_FOUND if is_ours(&body) => Err(ControlError::NoKubernetes),
            other => Err(ControlError::Unexpected { socket: socket(), why: format!("GET {path}: {other}") }),
        }
    }
}

/// A 404 of control's own, and not of somebody who knows no such path.
fn is_ours(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|value| value["reason"] == NO_KUBERNETES)
}
