//! One watch of one kind of object, kept alive whatever the API server does.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::backoff::Backoff;
use crate::index::Update;

/// Starts that fail alike before the watcher is built anew: kube's own tries the same resourceVersion for ever when a
/// watch is refused with HTTP 410 (it lists again only when the 410 comes inside the stream).
const SAME_FAILURES: u32 = 3;
/// A watch that has not failed for this long after a failure is running again: longer than connecting may take.
const SETTLED: Duration = Duration::from_secs(35);

/// For one page of a list.
const LISTING: Duration = Duration::from_secs(60);

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
    /// Built anew after starts that failed alike.
    Rebuilt,
}

/// Runs until `out` is closed.
pub(super) async fn feed<K>(
    api: Api<K>,
    kind: &'static str,
    watch_seconds: u32,
    retry: (f64, f64),
    out: mpsc::Sender<Input>,
    convert: impl Fn(Event<K>) -> Update,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut backoff = Backoff::new(retry.0, retry.1);
    let mut failing = false;
    'build: loop {
        let mut stream = pin!(watcher(api.clone(), watcher::Config::default().timeout(watch_seconds)));
        let mut refused = 0u32;
        let mut listing = true;
        loop {
            let next = if listing {
                // A server that accepts and says nothing would be waited for, for ever.
                let Ok(next) = timeout(LISTING, stream.next()).await else {
                    let state = FeedState::Failing(format!("list: no answer in {} s", LISTING.as_secs()));
                    failing = true;
                    if out.send(Input::Feed { kind, state }).await.is_err() {
                        return;
                    }
                    continue 'build;
                };
                next
            } else if failing {
                let Ok(next) = timeout(SETTLED, stream.next()).await else {
                    failing = false;
                    refused = 0;
                    backoff.reset();
                    if out.send(Input::Feed { kind, state: FeedState::Running }).await.is_err() {
                        return;
                    }
                    continue;
                };
                next
            } else {
                stream.next().await
            };
            match next {
                Some(Ok(event)) => {
                    listing = matches!(&event, Event::Init | Event::InitApply(_));
                    // `Init` only says that a list will be tried.
                    if failing && !matches!(event, Event::Init) {
                        failing = false;
                        backoff.reset();
                        if out.send(Input::Feed { kind, state: FeedState::Running }).await.is_err() {
                            return;
                        }
                    }
                    if !matches!(event, Event::Init) {
                        refused = 0;
                    }
                    if out.send(Input::Update(Box::new(convert(event)))).await.is_err() {
                        return;
                    }
                }
                Some(Err(error)) => {
                    failing = true;
                    refused = if is_gone_at_start(&error) { refused + 1 } else { 0 };
                    let pause = backoff.next();
                    debug!(kind, ?pause, "{error}");
                    let state = FeedState::Failing(short(&error));
                    if out.send(Input::Feed { kind, state }).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    if refused >= SAME_FAILURES {
                        warn!(kind, "{refused} starts of the watch were refused with 410 Gone: listing anew");
                        if out.send(Input::Feed { kind, state: FeedState::Rebuilt }).await.is_err() {
                            return;
                        }
                        continue 'build;
                    }
                }
                None => continue 'build,
            }
        }
    }
}

fn is_gone_at_start(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// kube's own text repeats itself in debug form.
fn short(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(e) => format!("list: {}", api_error(e)),
        watcher::Error::WatchStartFailed(e) => format!("watch: {}", api_error(e)),
        watcher::Error::WatchFailed(e) => format!("watch broke: {}", api_error(e)),
        watcher::Error::WatchError(status) => format!("watch: {} {}", status.code, status.message),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
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
