//! One watch of one kind of object, kept alive whatever the API server does.
//!
//! kube's own watcher does the same, but for three things that a box cannot have: it begins a watch that ended at once
//! again at once (behind a proxy that closes every watch, thousands of times a second), it tries a resourceVersion that
//! is refused with HTTP 410 for ever, and after any other error that the server sends in the stream it goes on from
//! where the error was, for ever.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::backoff::Backoff;
use crate::index::Update;

/// A watch that has not failed for this long after a failure is running again.
const SETTLED: Duration = Duration::from_secs(5);
/// For one page of a list, and for a watch to begin.
const PATIENCE: Duration = Duration::from_secs(60);
/// A watch that ends sooner, and without a word, was closed by somebody in between (as client-go has it).
const SHORT: Duration = Duration::from_secs(1);
/// How much longer than it should last a watch is listened to.
const MARGIN: Duration = Duration::from_secs(10);
/// Objects to a page of a list (client-go's number).
const PAGE: u32 = 500;

#[derive(Debug)]
pub enum Input {
    Update(Box<Update>),
    Feed { kind: &'static str, state: FeedState },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedState {
    Running,
    /// In words.
    Failing(String),
    /// To be listed anew: where the watch was is forgotten, or it cannot get past it.
    Rebuilt,
}

/// Runs until `out` is closed.
pub(super) async fn feed<K, C>(
    api: Api<K>,
    kind: &'static str,
    watch_seconds: u32,
    retry: (f64, f64),
    out: mpsc::Sender<Input>,
    convert: C,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    C: Fn(Event<K>) -> Update,
{
    let backoff = Backoff::new(retry.0, retry.1);
    let mut feed = Feed { api, kind, watch_seconds, out, convert, backoff, failing: false };
    let Err(Closed) = feed.run().await;
}

struct Feed<K, C> {
    api: Api<K>,
    kind: &'static str,
    watch_seconds: u32,
    out: mpsc::Sender<Input>,
    convert: C,
    backoff: Backoff,
    failing: bool,
}

/// Nobody listens any more.
struct Closed;

/// Why there is nothing more to be had, and the version to watch from next; none: to be listed first.
struct Trouble {
    why: String,
    from: Option<String>,
}

/// Where a list or a watch has got to.
type Outcome = Result<Result<String, Trouble>, Closed>;

impl<K, C> Feed<K, C>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    C: Fn(Event<K>) -> Update,
{
    async fn run(&mut self) -> Result<Infallible, Closed> {
        let mut from = None;
        loop {
            let watched = from.is_some();
            let outcome = match from {
                None => self.list().await?,
                Some(version) => self.watch(version).await?,
            };
            from = match outcome {
                Ok(version) => Some(version),
                Err(trouble) => {
                    self.fails(&trouble.why).await?;
                    tokio::time::sleep(self.backoff.next()).await;
                    if watched && trouble.from.is_none() {
                        warn!(self.kind, "{}: listing anew", trouble.why);
                        self.say(FeedState::Rebuilt).await?;
                    }
                    trouble.from
                }
            };
        }
    }

    async fn list(&mut self) -> Outcome {
        self.send(Event::Init).await?;
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = match timeout(PATIENCE, self.api.list(&page)).await {
                Ok(Ok(listed)) => listed,
                Ok(Err(error)) => return Ok(Err(Trouble { why: format!("list: {}", api_error(&error)), from: None })),
                Err(_) => {
                    let why = format!("list: no answer in {} s", PATIENCE.as_secs());
                    return Ok(Err(Trouble { why, from: None }));
                }
            };
            for object in listed.items {
                self.send(Event::InitApply(object)).await?;
            }
            page.continue_token = listed.metadata.continue_.filter(|token| !token.is_empty());
            if page.continue_token.is_none() {
                self.send(Event::InitDone).await?;
                // Not `proven`: a server whose every watch fails is not to be listed at full speed.
                self.runs().await?;
                return Ok(Ok(listed.metadata.resource_version.unwrap_or_default()));
            }
        }
    }

    async fn watch(&mut self, mut version: String) -> Outcome {
        let began = Instant::now();
        let params = WatchParams::default().timeout(self.watch_seconds);
        let stream = match timeout(PATIENCE, self.api.watch(&params, &version)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let is_gone = matches!(&error, kube::Error::Api(status) if status.code == 410);
                let why = format!("watch: {}", api_error(&error));
                return Ok(Err(Trouble { why, from: (!is_gone).then_some(version) }));
            }
            Err(_) => {
                let why = format!("watch: no answer in {} s", PATIENCE.as_secs());
                return Ok(Err(Trouble { why, from: Some(version) }));
            }
        };
        let mut stream = pin!(stream);
        let longest = Duration::from_secs(self.watch_seconds.into()) + MARGIN;
        let mut silent = true;
        loop {
            let patience = if self.failing { SETTLED } else { longest };
            let event = match timeout(patience, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                // One object that cannot be read: the others go on.
                Ok(Some(Err(error))) if is_unreadable(&error) => {
                    self.fails(&format!("watch: {}", api_error(&error))).await?;
                    continue;
                }
                Ok(Some(Err(error))) => {
                    return Ok(Err(Trouble {
                        why: format!("watch broke: {}", api_error(&error)),
                        from: Some(version),
                    }));
                }
                Ok(None) if silent && began.elapsed() < SHORT => {
                    return Ok(Err(Trouble { why: "watch: closed as soon as it began".into(), from: Some(version) }));
                }
                Ok(None) => return Ok(Ok(version)),
                Err(_) if self.failing => {
                    self.is_proven().await?;
                    continue;
                }
                Err(_) => {
                    let why = format!("watch: silent for {} s", longest.as_secs());
                    return Ok(Err(Trouble { why, from: Some(version) }));
                }
            };
            let told = match event {
                // 410 or not: there is no getting past it from here.
                WatchEvent::Error(status) => {
                    let why = format!("watch: {} {}", status.code, status.message);
                    return Ok(Err(Trouble { why, from: None }));
                }
                WatchEvent::Bookmark(mark) => {
                    let marked = mark.metadata.resource_version;
                    if is_before(&marked, &version) {
                        let why = format!("watch: the API server went back from {version} to {marked}");
                        return Ok(Err(Trouble { why, from: None }));
                    }
                    version = marked;
                    None
                }
                WatchEvent::Added(object) | WatchEvent::Modified(object) => Some(Event::Apply(object)),
                WatchEvent::Deleted(object) => Some(Event::Delete(object)),
            };
            silent = false;
            self.is_proven().await?;
            if let Some(event) = told {
                if let Event::Apply(object) | Event::Delete(object) = &event {
                    version = object.resource_version().unwrap_or(version);
                }
                self.send(event).await?;
            }
        }
    }

    async fn send(&self, event: Event<K>) -> Result<(), Closed> {
        let update = Box::new((self.convert)(event));
        self.out.send(Input::Update(update)).await.map_err(|_| Closed)
    }

    async fn say(&self, state: FeedState) -> Result<(), Closed> {
        self.out.send(Input::Feed { kind: self.kind, state }).await.map_err(|_| Closed)
    }

    async fn fails(&mut self, why: &str) -> Result<(), Closed> {
        debug!(self.kind, "{why}");
        self.failing = true;
        self.say(FeedState::Failing(why.to_owned())).await
    }

    async fn runs(&mut self) -> Result<(), Closed> {
        if std::mem::take(&mut self.failing) {
            self.say(FeedState::Running).await?;
        }
        Ok(())
    }

    async fn is_proven(&mut self) -> Result<(), Closed> {
        self.backoff.reset();
        self.runs().await
    }
}

/// A line of the stream that is no event of the kind. kube takes whatever is an object for a Status, an empty one then.
fn is_unreadable(error: &kube::Error) -> bool {
    match error {
        kube::Error::SerdeError(_) => true,
        kube::Error::Api(status) => status.code == 0,
        _ => false,
    }
}

/// As after a restore from a backup: until the server has come to where it was, its watches keep quiet about all of it.
/// (Versions of one kind are comparable: KEP-5504.)
fn is_before(marked: &str, version: &str) -> bool {
    matches!((marked.parse::<u64>(), version.parse::<u64>()), (Ok(marked), Ok(version)) if marked < version)
}

#[must_use]
pub fn api_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            text
        }
    }
}
