//! One HTTP request over a Unix socket, one connection per request: what the dataplane's and control's APIs take.

use std::io;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

#[derive(Debug, thiserror::Error)]
pub enum Transport {
    /// Nobody listens there, or not for us.
    #[error("{0}")]
    Connect(io::Error),
    #[error("{0}")]
    Broken(hyper::Error),
    #[error("{0}")]
    Request(hyper::http::Error),
}

/// # Errors
/// When no answer came; what the answer says is the caller's to judge.
pub async fn exchange(
    socket: &Path,
    method: Method,
    target: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), Transport> {
    let stream = UnixStream::connect(socket).await.map_err(Transport::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(Transport::Broken)?;
    // Ends with the request: `sender` is dropped when this function returns.
    tokio::spawn(connection);
    let message = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "penstock")
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(Transport::Request)?;
    let response = sender.send_request(message).await.map_err(Transport::Broken)?;
    let status = response.status();
    Ok((status, response.into_body().collect().await.map_err(Transport::Broken)?.to_bytes()))
}
