//! The endpoints. Each is short: read the request, ask the handle, answer JSON.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use penstock_configs::api::{Accepted, Drain};
use penstock_configs::fault::Fault;
use penstock_configs::status::{Endpoint, FlowQuery, Reason, StatusQuery};
use serde::Deserialize;

use super::handle::AdminHandle;
use super::refusal::Refusal;
use super::{metrics, socket};
use crate::verdict::DropReason;

/// A thousand times the snapshot of a large cluster.
const BODY_MEGABYTES: usize = 64;
const BODY_BYTES: usize = BODY_MEGABYTES * 1024 * 1024;
const FLOWS_DEFAULT: usize = 1_000;
const FLOWS_MOST: usize = 1_000_000;
/// Longest `?wait=`; a worker that took longer is stuck.
const WAIT_MOST: Duration = Duration::from_secs(60);
/// How often an acknowledgement is looked for: workers pick a publication up at their next burst.
const WAIT_STEP: Duration = Duration::from_millis(2);
/// Time for requests under way at shutdown.
const GRACE: Duration = Duration::from_secs(2);

type Answer<T> = Result<T, Refusal>;
type Body = Result<Bytes, BytesRejection>;

/// Serves until `shutdown` completes.
///
/// # Errors
/// The socket could not be had.
pub async fn serve(
    admin: AdminHandle,
    path: PathBuf,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), socket::SocketError> {
    let (listener, _bound) = socket::bind(&path)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let begin = async move {
        shutdown.await;
        let _ = stop.send(());
    };
    let server = axum::serve(listener, router(admin)).with_graceful_shutdown(begin).into_future();
    let deadline = async move {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result.map_err(|source| socket::SocketError::Io { path, source }),
        () = deadline => Ok(()),
    }
}

pub fn router(admin: AdminHandle) -> Router {
    Router::new()
        .route("/v1/desired", get(list_desired))
        .route("/v1/desired/{owner}", get(get_desired).put(put_desired).delete(delete_desired))
        .route("/v1/health", get(get_health).put(put_health))
        .route("/v1/drain", get(list_drains))
        .route("/v1/drain/{target}", put(put_drain).delete(delete_drain))
        .route("/v1/status", get(get_status))
        .route("/v1/counters", get(get_counters))
        .route("/v1/flows", get(get_flows))
        .route("/v1/reasons", get(get_reasons))
        .route("/metrics", get(get_metrics))
        .fallback(async |uri: Uri| Refusal::NoEndpoint(uri.path().to_owned()))
        .method_not_allowed_fallback(async |uri: Uri| Refusal::Method(uri.path().to_owned()))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(from_fn(announced_size))
        .with_state(admin)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ChangeQuery {
    /// Milliseconds to wait until every worker runs the change.
    wait: Option<u64>,
    /// Of `DELETE /v1/desired/{owner}`: the leader's term.
    term: Option<u64>,
    /// Of `PUT /v1/health`: whose verdicts these are.
    source: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HealthQuery {
    /// Only what this one said.
    source: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FlowsQuery {
    vip: Option<Endpoint>,
    client: Option<Endpoint>,
    backend: Option<Endpoint>,
    service: Option<String>,
    limit: Option<usize>,
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
    query.map(|Query(query)| query).map_err(|rejection| Refusal::Query(rejection.body_text()))
}

fn bytes(body: Body) -> Answer<Bytes> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge { limit: BODY_MEGABYTES },
        _ => Refusal::Body(rejection.body_text()),
    })
}

/// Refuses a body that says it is too large before a byte of it was sent.
async fn announced_size(request: Request, next: Next) -> Response {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > BODY_BYTES as u64) {
        return Refusal::TooLarge { limit: BODY_MEGABYTES }.into_response();
    }
    next.run(request).await
}

/// The body of a drain, all of whose fields may be missing.
fn drain_of(body: &[u8]) -> Answer<Drain> {
    if body.is_empty() {
        return Ok(Drain::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        let problem = format!("is no drain: {error}");
        Refusal::NotJson(Box::new(Fault::new("", problem, "send nothing, or an object with state and reason")))
    })
}

/// A change on a blocking thread (tables are compiled, the disk is waited for), then, if asked,
/// until the workers run it. 202: published, and some worker has yet to take it up.
async fn change(
    admin: AdminHandle,
    wait: Option<u64>,
    work: impl FnOnce(&AdminHandle) -> Answer<Accepted> + Send + 'static,
) -> Answer<Response> {
    let worker = admin.clone();
    let mut accepted = tokio::task::spawn_blocking(move || work(&worker))
        .await
        .map_err(|error| Refusal::Internal(error.to_string()))??;
    let deadline = Instant::now() + Duration::from_millis(wait.unwrap_or(0)).min(WAIT_MOST);
    loop {
        accepted.acknowledged = admin.engine().acknowledged() >= accepted.epoch;
        if accepted.acknowledged || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(WAIT_STEP).await;
    }
    let status = if accepted.acknowledged { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(accepted)).into_response())
}

/// A look at the engine on a blocking thread: with many flows or services it takes a while.
async fn look<T: Send + 'static>(
    admin: AdminHandle,
    work: impl FnOnce(&AdminHandle) -> T + Send + 'static,
) -> Answer<T> {
    tokio::task::spawn_blocking(move || work(&admin)).await.map_err(|error| Refusal::Internal(error.to_string()))
}

async fn list_desired(State(admin): State<AdminHandle>) -> impl IntoResponse {
    Json(admin.summaries())
}

async fn get_desired(State(admin): State<AdminHandle>, Path(owner): Path<String>) -> Answer<Response> {
    let desired = admin.desired(&owner).ok_or(Refusal::UnknownOwner(owner))?;
    Ok(Json(&*desired).into_response())
}

async fn put_desired(
    State(admin): State<AdminHandle>,
    Path(owner): Path<String>,
    options: Result<Query<ChangeQuery>, QueryRejection>,
    body: Body,
) -> Answer<Response> {
    let options = query(options)?;
    let body = bytes(body)?;
    change(admin, options.wait, move |admin| admin.put(&owner, &body)).await
}

async fn delete_desired(
    State(admin): State<AdminHandle>,
    Path(owner): Path<String>,
    options: Result<Query<ChangeQuery>, QueryRejection>,
) -> Answer<Response> {
    let options = query(options)?;
    change(admin, options.wait, move |admin| admin.delete(&owner, options.term)).await
}

async fn get_health(
    State(admin): State<AdminHandle>,
    options: Result<Query<HealthQuery>, QueryRejection>,
) -> Answer<Response> {
    let options = query(options)?;
    Ok(Json(admin.health(options.source.as_deref())).into_response())
}

async fn put_health(
    State(admin): State<AdminHandle>,
    options: Result<Query<ChangeQuery>, QueryRejection>,
    body: Body,
) -> Answer<Response> {
    let options = query(options)?;
    let body = bytes(body)?;
    let source = options.source.unwrap_or_default();
    change(admin, options.wait, move |admin| admin.put_health(&source, &body)).await
}

async fn list_drains(State(admin): State<AdminHandle>) -> impl IntoResponse {
    Json(admin.drains())
}

async fn put_drain(
    State(admin): State<AdminHandle>,
    Path(target): Path<String>,
    options: Result<Query<ChangeQuery>, QueryRejection>,
    body: Body,
) -> Answer<Response> {
    let options = query(options)?;
    let body = bytes(body)?;
    let drain = drain_of(&body)?;
    change(admin, options.wait, move |admin| admin.drain(&target, drain)).await
}

async fn delete_drain(
    State(admin): State<AdminHandle>,
    Path(target): Path<String>,
    options: Result<Query<ChangeQuery>, QueryRejection>,
) -> Answer<Response> {
    let options = query(options)?;
    change(admin, options.wait, move |admin| admin.undrain(&target)).await
}

async fn get_status(
    State(admin): State<AdminHandle>,
    options: Result<Query<StatusQuery>, QueryRejection>,
) -> Answer<impl IntoResponse> {
    let wanted = query(options)?;
    look(admin, move |admin| Json(admin.status(&wanted))).await
}

async fn get_counters(State(admin): State<AdminHandle>) -> Answer<impl IntoResponse> {
    look(admin, |admin| Json(admin.engine().counters())).await
}

async fn get_flows(
    State(admin): State<AdminHandle>,
    options: Result<Query<FlowsQuery>, QueryRejection>,
) -> Answer<impl IntoResponse> {
    let FlowsQuery { vip, client, backend, service, limit } = query(options)?;
    let wanted = FlowQuery { client, vip, backend, service };
    let limit = limit.unwrap_or(FLOWS_DEFAULT).min(FLOWS_MOST);
    look(admin, move |admin| Json(admin.engine().flows(&wanted, limit))).await
}

async fn get_reasons() -> impl IntoResponse {
    let reason = |reason: &DropReason| Reason { name: reason.name().into(), help: reason.help().into() };
    Json(DropReason::ALL.iter().map(reason).collect::<Vec<_>>())
}

async fn get_metrics(State(admin): State<AdminHandle>) -> Answer<Response> {
    let text = look(admin, |admin| metrics::render(admin.clone())).await?;
    let text = text.map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
