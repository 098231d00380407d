//! Control's own small API: `penstock why` over the Unix socket, `/metrics` there and, where wanted, over TCP.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Path as Segments, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};

use crate::index::ServiceKey;
use crate::metrics::Metrics;
use crate::sync::Query;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{path}: cannot listen: {source}; is another penstock-control running?")]
    Socket { path: std::path::PathBuf, source: std::io::Error },
    #[error("metrics = \"{address}\": cannot listen: {source}")]
    Metrics { address: std::net::SocketAddr, source: std::io::Error },
    #[error("serving ended: {0}")]
    Ended(#[from] std::io::Error),
}

/// The reason of an answer that there is no cluster to ask about.
pub const NO_KUBERNETES: &str = "NoKubernetes";

#[derive(Debug, Clone)]
pub struct Api {
    pub metrics: Arc<Metrics>,
    /// Missing: no Kubernetes.
    pub queries: Option<mpsc::Sender<Query>>,
}

/// `GET /v1/why/{namespace}/{service}`, `GET /v1/status`, `GET /metrics`.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/why/{namespace}/{service}", get(why))
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(api)
}

async fn why(State(api): State<Api>, Segments((namespace, service)): Segments<(String, String)>) -> Response {
    let key = ServiceKey::new(&namespace, &service);
    answer(ask(&api, |reply| Query::Why { key, reply }).await)
}

async fn status(State(api): State<Api>) -> Response {
    answer(ask(&api, |reply| Query::Status { reply }).await)
}

async fn metrics(State(api): State<Api>) -> Response {
    let kind = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, api.metrics.text()).into_response()
}

async fn ask<T>(api: &Api, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    api.queries.as_ref()?.send(query(reply)).await.ok()?;
    answer.await.ok()
}

fn answer<T: serde::Serialize>(answer: Option<T>) -> Response {
    match answer {
        Some(answer) => Json(answer).into_response(),
        None => {
            let error = serde_json::json!({"error": "penstock-control runs without a [kubernetes] table, or is ending", "reason": NO_KUBERNETES});
            (StatusCode::NOT_FOUND, Json(error)).into_response()
        }
    }
}

/// Listens on the socket until `shutdown`; a socket left behind by a former process is replaced.
///
/// # Errors
/// When it cannot listen.
pub async fn on_socket(path: &Path, router: Router, shutdown: watch::Receiver<bool>) -> Result<(), ServeError> {
    let failed = |source| ServeError::Socket { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    // Somebody who answers is alive; whoever does not has left its socket behind.
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(failed(std::io::ErrorKind::AddrInUse.into()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    restrict(path).map_err(failed)?;
    axum::serve(listener, router).with_graceful_shutdown(ended(shutdown)).await?;
    // What is left is only a name.
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// The owner and the group may talk to it, as to the dataplane's.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
}

/// # Errors
/// When it cannot listen.
pub async fn on_tcp(
    address: std::net::SocketAddr,
    router: Router,
    shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Metrics { address, source })?;
    axum::serve(listener, router).with_graceful_shutdown(ended(shutdown)).await?;
    Ok(())
}

/// Of the API, only what Prometheus reads.
pub fn metrics_router(api: Api) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(api)
}

async fn ended(mut shutdown: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = shutdown.wait_for(|ended| *ended).await;
}
