//! What a node answers over HTTP: its name, streams, hashes of uploads, things sent slowly.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};

use super::stream::{Digest, Pattern};

/// The header that names the node, on every answer.
pub const NODE_HEADER: HeaderName = HeaderName::from_static("x-node");

/// Shared by all requests of a node.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub requests: AtomicU64,
}

/// The routes; `GET /` lists them for people.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/", get(who))
        .route("/bytes/{length}", get(bytes))
        .route("/upload", post(upload))
        .route("/slow/{bytes}", get(slow))
        .route("/push/{lines}/{interval_ms}", get(push))
        .layer(axum::middleware::from_fn_with_state(node.clone(), sign))
        .with_state(node)
}

async fn sign(
    State(node): State<Arc<Node>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    node.requests.fetch_add(1, Ordering::Relaxed);
    let mut response = next.run(request).await;
    if let Ok(name) = HeaderValue::from_str(&node.name) {
        response.headers_mut().insert(NODE_HEADER, name);
    }
    response
}

/// The node and the peer it sees: in `nat` mode the SNAT address, in `dnat` mode the client.
async fn who(State(node): State<Arc<Node>>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> String {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    format!("{} sees {peer}\n", node.name)
}

async fn bytes(Path(length): Path<u64>) -> Response {
    Body::new(Pattern::new(length)).into_response()
}

/// Answers `<digest> <bytes>` of what was sent.
async fn upload(mut body: Body) -> Response {
    let mut digest = Digest::default();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frame.data_ref().into_iter().for_each(|data| digest.update(data)),
            Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        }
    }
    format!("{:016x} {}\n", digest.value(), digest.length()).into_response()
}

/// One byte every 100 ms.
async fn slow(Path(bytes): Path<u64>) -> Response {
    Body::new(Trickle::new(bytes, Duration::from_millis(100), |_| Bytes::from_static(b"."))).into_response()
}

/// Numbered lines the node sends by itself, one per interval.
async fn push(Path((lines, interval_ms)): Path<(u64, u64)>) -> Response {
    let line = |number: u64| Bytes::from(format!("{number}\n"));
    Body::new(Trickle::new(lines, Duration::from_millis(interval_ms.max(1)), line)).into_response()
}

/// A body that gives one piece per tick.
struct Trickle {
    next: u64,
    count: u64,
    ticks: tokio::time::Interval,
    piece: fn(u64) -> Bytes,
}

impl Trickle {
    fn new(count: u64, interval: Duration, piece: fn(u64) -> Bytes) -> Self {
        let mut ticks = tokio::time::interval(interval);
        // A stalled connection goes on at the same pace instead of catching up in a burst.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self { next: 0, count, ticks, piece }
    }
}

impl hyper::body::Body for Trickle {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.next == self.count {
            return Poll::Ready(None);
        }
        ready!(self.ticks.poll_tick(context));
        let piece = (self.piece)(self.next);
        self.next += 1;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.next == self.count
    }
}
