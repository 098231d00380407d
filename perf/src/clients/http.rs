//! HTTP over connections of our own making: one connection per request, as curl does it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Failure, Tally, run_in};
use crate::lab::Netns;
use crate::servers::http::NODE_HEADER;
use crate::servers::stream::{Digest, Pattern};

/// An open connection to a node.
pub struct Connection {
    sender: SendRequest<RequestBody>,
    target: SocketAddr,
    /// The client's own end, to find the flow in the dataplane's list.
    pub local: SocketAddr,
    driver: tokio::task::JoinHandle<hyper::Result<()>>,
}

/// What a request carries.
pub type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

impl Connection {
    pub async fn open(target: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(target).await.map_err(|error| Failure::Connect(reason(&error)))?;
        let local = stream.local_addr().map_err(|error| Failure::Connect(error.to_string()))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        Ok(Self { sender, target, local, driver: tokio::spawn(connection) })
    }

    pub async fn get(&mut self, path: &str) -> Result<Response<Incoming>, Failure> {
        self.request(Method::GET, path, Empty::new().boxed_unsync()).await
    }

    pub async fn post<B>(&mut self, path: &str, body: B) -> Result<Response<Incoming>, Failure>
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        self.request(Method::POST, path, body.boxed_unsync()).await
    }

    async fn request(&mut self, method: Method, path: &str, body: RequestBody) -> Result<Response<Incoming>, Failure> {
        self.sender.ready().await.map_err(|error| broken(&error))?;
        let request = Request::builder().method(method).uri(path).header("host", self.target.to_string());
        let request = request.body(body).map_err(|error| Failure::Answer(error.to_string()))?;
        let response = self.sender.send_request(request).await.map_err(|error| broken(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(Failure::Answer(response.status().to_string())) }
    }

    /// Closes from the client's side, with a FIN, and waits until the socket is closed.
    pub async fn close(self) {
        drop(self.sender);
        let _ = self.driver.await;
    }
}

/// The node that answered.
pub(super) fn node_of<T>(response: &Response<T>) -> Result<String, Failure> {
    let name = response.headers().get(NODE_HEADER).and_then(|value| value.to_str().ok());
    name.map(str::to_owned).ok_or_else(|| Failure::Answer("no x-node header".into()))
}

/// Reads a body to its end.
pub(super) async fn digest_of(mut body: Incoming) -> Result<Digest, Failure> {
    let mut digest = Digest::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        frame.data_ref().into_iter().for_each(|data| digest.update(data));
    }
    Ok(digest)
}

pub(super) async fn text_of(body: Incoming) -> Result<String, Failure> {
    let bytes = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
    String::from_utf8(bytes.into()).map_err(|error| Failure::Answer(error.to_string()))
}

/// The innermost cause: "connection reset by peer" says more than "error reading a body".
pub(super) fn broken(error: &hyper::Error) -> Failure {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<io::Error>() {
        Some(error) => Failure::Broken(reason(error)),
        None => Failure::Broken(error.to_string()),
    }
}

/// Without the number of the file descriptor or address, so that equal causes count together.
fn reason(error: &io::Error) -> String {
    error.kind().to_string()
}

/// Gives an exchange a time limit.
pub(super) async fn within<T>(
    limit: Duration,
    stage: &'static str,
    exchange: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(Failure::TimedOut(stage)))
}

/// Connections opened one after another by `concurrency` clients, each asking once.
#[derive(Debug, Clone)]
pub struct Volley {
    pub target: SocketAddr,
    pub connections: u64,
    pub concurrency: usize,
    /// Per connection, from SYN to the last byte.
    pub timeout: Duration,
}

impl Volley {
    #[must_use]
    pub fn new(target: SocketAddr, connections: u64) -> Self {
        Self { target, connections, concurrency: 32, timeout: Duration::from_secs(10) }
    }

    /// Runs the volley in a client's namespace. `progress` is told how many are done, now and then.
    pub fn run(&self, ns: &Netns, progress: impl Fn(u64) + Send) -> Tally {
        run_in(ns, || self.fire(progress))
    }

    /// Runs it in the calling thread's namespace.
    pub fn run_here(&self, progress: impl Fn(u64)) -> Tally {
        super::run_here(self.fire(progress))
    }

    async fn fire(&self, progress: impl Fn(u64)) -> Tally {
        let started = Instant::now();
        let tally = RefCell::new(Tally::default());
        let begun = Cell::new(0_u64);
        let client = || async {
            while begun.get() < self.connections {
                begun.set(begun.get() + 1);
                let outcome = within(self.timeout, "waiting for the answer", ask(self.target)).await;
                tally.borrow_mut().add(outcome);
                if begun.get().is_multiple_of(50) {
                    progress(begun.get());
                }
            }
        };
        join_all((0..self.concurrency).map(|_| client())).await;
        let mut tally = tally.into_inner();
        tally.elapsed = started.elapsed();
        tally
    }
}

/// Awaits futures that borrow from the caller, on the caller's task.
pub(super) async fn join_all<F: Future>(futures: impl Iterator<Item = F>) {
    let mut running: Vec<_> = futures.map(|future| Some(Box::pin(future))).collect();
    std::future::poll_fn(|context| {
        for slot in &mut running {
            if slot.as_mut().is_some_and(|future| future.as_mut().poll(context).is_ready()) {
                *slot = None;
            }
        }
        if running.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// `curl http://target/`: returns the node's name.
pub async fn ask(target: SocketAddr) -> Result<String, Failure> {
    let mut connection = Connection::open(target).await?;
    let response = connection.get("/").await?;
    let node = node_of(&response)?;
    let text = text_of(response.into_body()).await?;
    connection.close().await;
    if text.starts_with(&node) { Ok(node) } else { Err(Failure::Answer(format!("{node} says {text:?}"))) }
}

/// One request, its text returned: who answered and what peer it saw.
pub fn get_text(ns: &Netns, target: SocketAddr, path: &str) -> Result<String, Failure> {
    run_in(ns, || {
        within(Duration::from_secs(10), "waiting for the answer", async {
            let mut connection = Connection::open(target).await?;
            let response = connection.get(path).await?;
            let text = text_of(response.into_body()).await?;
            connection.close().await;
            Ok(text)
        })
    })
}

/// Fetches `length` bytes and compares their hash.
pub fn download(ns: &Netns, target: SocketAddr, length: u64, timeout: Duration) -> Result<(), Failure> {
    run_in(ns, || {
        within(timeout, "downloading", async {
            let mut connection = Connection::open(target).await?;
            let response = connection.get(&format!("/bytes/{length}")).await?;
            let digest = digest_of(response.into_body()).await?;
            connection.close().await;
            compare(&digest, length)
        })
    })
}

/// Sends `length` bytes; the node's hash of what it received must be ours.
pub fn upload(ns: &Netns, target: SocketAddr, length: u64, timeout: Duration) -> Result<(), Failure> {
    run_in(ns, || {
        within(timeout, "uploading", async {
            let mut connection = Connection::open(target).await?;
            let response = connection.post("/upload", Pattern::new(length)).await?;
            let text = text_of(response.into_body()).await?;
            connection.close().await;
            compare_upload(&text, length)
        })
    })
}

pub(super) fn compare(digest: &Digest, length: u64) -> Result<(), Failure> {
    if digest.length() == length && digest.value() == Pattern::digest(length) {
        return Ok(());
    }
    Err(Failure::Answer(format!("{} of {length} bytes came, or their hash differs", digest.length())))
}

pub(super) fn compare_upload(answer: &str, length: u64) -> Result<(), Failure> {
    let expected = format!("{:016x} {length}", Pattern::digest(length));
    if answer.trim() == expected {
        Ok(())
    } else {
        Err(Failure::Answer(format!("node says {answer:?}, not {expected}")))
    }
}
