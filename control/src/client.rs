//! The dataplane's API, typed: HTTP over its Unix socket, one connection per request.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use penstock_configs::api::{Accepted, Drain, Drains, OwnerSummary, Refused};
use penstock_configs::desired::{Desired, Health};
use penstock_configs::status::{Counters, FlowQuery, FlowStatus, Reason, Status, StatusQuery};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::unix_http::{self, Transport};

pub const DEFAULT_SOCKET: &str = "/run/penstock/dataplane.sock";

/// A dataplane that compiles a large snapshot takes its time; one that hangs must not hang us.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Error)]
pub enum ClientError {
    #[error(
        "the dataplane's socket {socket} does not answer ({source}): is penstock-dataplane running? systemctl status \
         penstock-dataplane"
    )]
    NoDataplane { socket: PathBuf, source: io::Error },
    #[error("no permission to use {socket}: run as root (sudo), or as a member of the socket's group")]
    Forbidden { socket: PathBuf },
    #[error("the dataplane closed the connection at {socket} in the middle of {request}: {source}")]
    Broken { socket: PathBuf, request: String, source: hyper::Error },
    #[error(
        "the dataplane at {socket} did not answer {request} within {seconds} s; see journalctl -u penstock-dataplane"
    )]
    Silent { socket: PathBuf, request: String, seconds: u64 },
    /// The dataplane understood, and said no.
    #[error("{}", .refused.error)]
    Refused { status: StatusCode, refused: Refused },
    #[error("the dataplane's answer to {request} is not what this build expects ({why}); are both of one version?")]
    Unexpected { request: String, why: String },
}

impl ClientError {
    /// The faults of a refused document, if that was it.
    #[must_use]
    pub fn refused(&self) -> Option<(StatusCode, &Refused)> {
        match self {
            Self::Refused { status, refused } => Some((*status, refused)),
            _ => None,
        }
    }

    /// Whether sending the same again can't help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.refused().is_some_and(|(status, _)| status.is_client_error())
    }
}

type Answer<T> = Result<T, ClientError>;

#[derive(Debug, Clone)]
pub struct Dataplane {
    socket: PathBuf,
}

impl Dataplane {
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// # Errors
    /// As every call here: no dataplane, no permission, or a refusal with its reasons.
    pub async fn status(&self) -> Answer<Status> {
        self.status_of(&StatusQuery::default()).await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn status_of(&self, query: &StatusQuery) -> Answer<Status> {
        let only = query.only.as_ref().map(|text| format!("only={}", encoded(text)));
        let services = query.services.map(|most| format!("services={most}"));
        let backends = query.backends.map(|most| format!("backends={most}"));
        let query: Vec<String> = [only, services, backends].into_iter().flatten().collect();
        let question = if query.is_empty() { "" } else { "?" };
        self.get(&format!("/v1/status{question}{}", query.join("&"))).await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn counters(&self) -> Answer<Counters> {
        self.get("/v1/counters").await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn flows(&self, query: &FlowQuery, limit: usize) -> Answer<Vec<FlowStatus>> {
        let mut path = format!("/v1/flows?limit={limit}");
        let endpoints = [("client", query.client), ("vip", query.vip), ("backend", query.backend)];
        for (name, endpoint) in endpoints {
            if let Some(endpoint) = endpoint {
                path.push_str(&format!("&{name}={}", encoded(&endpoint.to_string())));
            }
        }
        if let Some(service) = &query.service {
            path.push_str(&format!("&service={}", encoded(service)));
        }
        self.get(&path).await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn reasons(&self) -> Answer<Vec<Reason>> {
        self.get("/v1/reasons").await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn metrics(&self) -> Answer<String> {
        let bytes = self.send(Method::GET, "/metrics", Bytes::new(), PATIENCE).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn owners(&self) -> Answer<Vec<OwnerSummary>> {
        self.get("/v1/desired").await
    }

    /// The owner's snapshot as served; `None`: it has none.
    ///
    /// # Errors
    /// See [`status`](Self::status).
    pub async fn desired(&self, owner: &str) -> Answer<Option<Desired>> {
        match self.get(&format!("/v1/desired/{}", encoded(owner))).await {
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Replaces the owner's snapshot (a [`Desired`], or one that is [`Stamped`](crate::dataplane::Stamped)); with `wait`,
    /// until every worker runs it or the time is over (`acknowledged` says which).
    ///
    /// # Errors
    /// See [`status`](Self::status).
    pub async fn put_desired(&self, owner: &str, desired: &impl Serialize, wait: Option<Duration>) -> Answer<Accepted> {
        self.put(&format!("/v1/desired/{}", encoded(owner)), desired, wait).await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn delete_desired(&self, owner: &str, term: Option<u64>) -> Answer<Accepted> {
        let term = term.map(|term| format!("?term={term}")).unwrap_or_default();
        self.delete(&format!("/v1/desired/{}{term}", encoded(owner))).await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn health(&self) -> Answer<Health> {
        self.get("/v1/health").await
    }

    /// What this source said last.
    ///
    /// # Errors
    /// See [`status`](Self::status).
    pub async fn health_of(&self, source: &str) -> Answer<Health> {
        self.get(&format!("/v1/health?source={}", encoded(source))).await
    }

    /// In the place of what this source said before.
    ///
    /// # Errors
    /// See [`status`](Self::status).
    pub async fn put_health(&self, source: &str, health: &Health) -> Answer<Accepted> {
        self.put(&format!("/v1/health?source={}", encoded(source)), health, None).await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn drains(&self) -> Answer<Drains> {
        self.get("/v1/drain").await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn drain(&self, target: &str, drain: &Drain) -> Answer<Accepted> {
        self.put(&format!("/v1/drain/{}", encoded(target)), drain, Some(Duration::from_secs(2))).await
    }

    /// # Errors
    /// See [`status`](Self::status).
    pub async fn undrain(&self, target: &str) -> Answer<Accepted> {
        self.delete(&format!("/v1/drain/{}?wait=2000", encoded(target))).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        let body = self.send(Method::GET, path, Bytes::new(), PATIENCE).await?;
        parse(&Method::GET, path, &body)
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        let body = self.send(Method::DELETE, path, Bytes::new(), PATIENCE).await?;
        parse(&Method::DELETE, path, &body)
    }

    async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        document: &impl Serialize,
        wait: Option<Duration>,
    ) -> Answer<T> {
        let body = serde_json::to_vec(document)
            .map_err(|error| ClientError::Unexpected { request: format!("PUT {path}"), why: error.to_string() })?;
        let target = match wait {
            Some(wait) => format!("{path}?wait={}", wait.as_millis()),
            None => path.to_owned(),
        };
        let patience = PATIENCE + wait.unwrap_or_default();
        let answer = self.send(Method::PUT, &target, body.into(), patience).await?;
        parse(&Method::PUT, path, &answer)
    }

    async fn send(&self, method: Method, target: &str, body: Bytes, patience: Duration) -> Answer<Bytes> {
        let request = format!("{method} {}", target.split('?').next().unwrap_or(target));
        match tokio::time::timeout(patience, self.exchange(method, target, body, &request)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Silent { socket: self.socket.clone(), request, seconds: patience.as_secs() }),
        }
    }

    async fn exchange(&self, method: Method, target: &str, body: Bytes, request: &str) -> Answer<Bytes> {
        let answer = unix_http::exchange(&self.socket, method, target, body).await;
        let (status, body) = answer.map_err(|error| match error {
            Transport::Connect(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                ClientError::Forbidden { socket: self.socket.clone() }
            }
            Transport::Connect(source) => ClientError::NoDataplane { socket: self.socket.clone(), source },
            Transport::Broken(source) => {
                ClientError::Broken { socket: self.socket.clone(), request: request.into(), source }
            }
            Transport::Request(error) => ClientError::Unexpected { request: request.into(), why: error.to_string() },
        })?;
        if status.is_success() {
            return Ok(body);
        }
        let refused = serde_json::from_slice(&body).unwrap_or_else(|_| Refused {
            error: format!("{request}: {status}: {}", String::from_utf8_lossy(&body)),
            faults: Vec::new(),
        });
        Err(ClientError::Refused { status, refused })
    }
}

pub(crate) fn encoded(segment: &str) -> String {
    utf8_percent_encode(segment, NON_ALPHANUMERIC).to_string()
}

fn parse<T: DeserializeOwned>(method: &Method, path: &str, body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body)
        .map_err(|error| ClientError::Unexpected { request: format!("{method} {path}"), why: error.to_string() })
}
