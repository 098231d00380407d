//! Connections that last: what a restart of the box must not break.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::Failure;
use super::http::{Connection, broken, compare, compare_upload, node_of, text_of, within};
use crate::lab::Netns;
use crate::servers::stream::{Digest, Pattern};

/// What a session does while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Asks, is silent, asks again on the same connection.
    Idle,
    /// Receives steadily.
    Download,
    /// Sends steadily.
    Upload,
    /// The node sends a line now and then, the client nothing.
    NodePush,
}

pub const ALL_KINDS: [Kind; 4] = [Kind::Idle, Kind::Download, Kind::Upload, Kind::NodePush];

/// How many sessions of each kind, and how long they last.
#[derive(Debug, Clone)]
pub struct Plan {
    pub target: SocketAddr,
    pub each: usize,
    pub duration: Duration,
    /// On top of the duration, for recovery from losses.
    pub patience: Duration,
    /// Bytes a bulk session moves over the duration.
    pub bulk: u64,
}

impl Plan {
    #[must_use]
    pub fn new(target: SocketAddr, each: usize, duration: Duration) -> Self {
        Self { target, each, duration, patience: Duration::from_secs(30), bulk: 2 << 20 }
    }

    /// Opens every session and returns once all are established.
    pub fn start(&self, ns: &Netns) -> Result<Running> {
        let (plan, (ready, established)) = (self.clone(), std::sync::mpsc::channel());
        let thread = ns.thread("sessions", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("an epoll instance and a timer").block_on(plan.run(ready))
        })?;
        let total = self.each * ALL_KINDS.len();
        let mut locals = Vec::new();
        for _ in 0..total {
            let opened = established.recv_timeout(Duration::from_secs(20)).context("sessions do not come up")?;
            locals.push(opened.map_err(|failure| anyhow::anyhow!("opening a session: {failure}"))?);
        }
        Ok(Running { thread, locals })
    }

    async fn run(self, ready: std::sync::mpsc::Sender<Result<SocketAddr, Failure>>) -> Report {
        let mut sessions = tokio::task::JoinSet::new();
        for kind in ALL_KINDS {
            for _ in 0..self.each {
                let (plan, ready) = (self.clone(), ready.clone());
                sessions.spawn(async move { (kind, plan.session(kind, &ready).await) });
            }
        }
        drop(ready);
        let mut report = Report::default();
        while let Some(ended) = sessions.join_next().await {
            match ended {
                Ok((kind, Ok(()))) => *report.completed.entry(kind).or_default() += 1,
                Ok((kind, Err(failure))) => report.failures.push((kind, failure)),
                Err(error) => report.failures.push((Kind::Idle, Failure::Answer(error.to_string()))),
            }
        }
        report
    }

    async fn session(
        &self,
        kind: Kind,
        ready: &std::sync::mpsc::Sender<Result<SocketAddr, Failure>>,
    ) -> Result<(), Failure> {
        let opened = within(Duration::from_secs(15), "connecting", Connection::open(self.target)).await;
        let connection = match opened {
            Ok(connection) => connection,
            Err(failure) => {
                let _ = ready.send(Err(failure.clone()));
                return Err(failure);
            }
        };
        let _ = ready.send(Ok(connection.local));
        let limit = self.duration + self.patience;
        match kind {
            Kind::Idle => within(limit, "in an idle session", self.idle(connection)).await,
            Kind::Download => within(limit, "downloading", self.download(connection)).await,
            Kind::Upload => within(limit, "uploading", self.upload(connection)).await,
            Kind::NodePush => within(limit, "waiting for pushed lines", self.pushed(connection)).await,
        }
    }

    async fn idle(&self, mut connection: Connection) -> Result<(), Failure> {
        let first = connection.get("/").await?;
        let node = node_of(&first)?;
        text_of(first.into_body()).await?;
        tokio::time::sleep(self.duration).await;
        let second = connection.get("/").await?;
        let again = node_of(&second)?;
        text_of(second.into_body()).await?;
        connection.close().await;
        if node == again { Ok(()) } else { Err(Failure::Answer(format!("first {node}, then {again}"))) }
    }

    async fn download(&self, mut connection: Connection) -> Result<(), Failure> {
        let response = connection.get(&format!("/bytes/{}", self.bulk)).await?;
        let started = tokio::time::Instant::now();
        let mut body = response.into_body();
        let mut digest = Digest::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            frame.data_ref().into_iter().for_each(|data| digest.update(data));
            tokio::time::sleep_until(started + self.due(digest.length())).await;
        }
        connection.close().await;
        compare(&digest, self.bulk)
    }

    async fn upload(&self, mut connection: Connection) -> Result<(), Failure> {
        let body = Paced { pattern: Pattern::new(self.bulk), sent: 0, plan: self.clone(), wait: None, started: None };
        let response = connection.post("/upload", body).await?;
        let answer = text_of(response.into_body()).await?;
        connection.close().await;
        compare_upload(&answer, self.bulk)
    }

    async fn pushed(&self, mut connection: Connection) -> Result<(), Failure> {
        const INTERVAL_MS: u128 = 100;
        let lines = (self.duration.as_millis() / INTERVAL_MS).max(2);
        let path = format!("/push/{lines}/{INTERVAL_MS}");
        let response = connection.get(&path).await?;
        let text = text_of(response.into_body()).await?;
        connection.close().await;
        let numbers = text.lines().map(str::parse::<u128>);
        if numbers.eq((0..lines).map(Ok)) { Ok(()) } else { Err(Failure::Answer(format!("lines missing in {text:?}"))) }
    }

    /// When the byte at `offset` is due so that the whole takes the session's duration.
    fn due(&self, offset: u64) -> Duration {
        let share = offset.min(self.bulk) * 1000 / self.bulk.max(1);
        self.duration * u32::try_from(share).unwrap_or(1000) / 1000
    }
}

/// An upload that takes the session's duration.
struct Paced {
    pattern: Pattern,
    sent: u64,
    plan: Plan,
    started: Option<tokio::time::Instant>,
    wait: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(context));
        }
        let piece = self.pattern.chunk();
        if piece.is_empty() {
            return Poll::Ready(None);
        }
        self.sent += piece.len() as u64;
        let started = *self.started.get_or_insert_with(tokio::time::Instant::now);
        let due = started + self.plan.due(self.sent);
        self.wait = Some(Box::pin(tokio::time::sleep_until(due)));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pattern.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.pattern.size_hint()
    }
}

/// Sessions under way.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<std::io::Result<Report>>,
    /// The clients' ends.
    pub locals: Vec<SocketAddr>,
}

impl Running {
    /// Waits for the sessions' ends.
    ///
    /// # Panics
    /// If the client thread panicked.
    pub fn finish(self) -> Result<Report> {
        Ok(self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

/// How the sessions ended.
#[derive(Debug, Default)]
pub struct Report {
    pub completed: BTreeMap<Kind, usize>,
    pub failures: Vec<(Kind, Failure)>,
}

impl Report {
    #[must_use]
    pub fn completed(&self) -> usize {
        self.completed.values().sum()
    }
}
