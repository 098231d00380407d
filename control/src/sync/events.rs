//! Events on Services, with the service controller's reasons.
//!
//! The same thing said again within a few minutes counts in the Event's series instead of making a new one, and a
//! Service that says too much is cut short: Events are for people.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

use crate::index::ServiceKey;
use crate::index::outcome::shortened;

/// As upstream's correlator: the same Event within this time is one series.
const SAME: Duration = Duration::from_secs(600);
/// Writes of one series: the first, then at most one in this time.
const QUIET: Duration = Duration::from_secs(30);
const KEPT: usize = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Note {
    pub key: ServiceKey,
    pub uid: Arc<str>,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Note {
    #[must_use]
    pub fn normal(key: &ServiceKey, uid: &Arc<str>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { key: key.clone(), uid: uid.clone(), warning: false, reason, message: message.into() }
    }

    #[must_use]
    pub fn warning(key: &ServiceKey, uid: &Arc<str>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { key: key.clone(), uid: uid.clone(), warning: true, reason, message: message.into() }
    }
}

struct Series {
    name: String,
    count: i32,
    last: Instant,
    written: Instant,
}

/// Writes what comes, one after the other; Events never hold anything up and may be lost.
pub(super) async fn record(client: kube::Client, instance: String, mut notes: mpsc::Receiver<Note>) {
    let mut series: HashMap<Note, Series> = HashMap::new();
    while let Some(note) = notes.recv().await {
        let now = Instant::now();
        if series.len() >= KEPT {
            series.retain(|_, s| now.duration_since(s.last) < SAME);
            if series.len() >= KEPT {
                series.clear();
            }
        }
        let api: Api<Event> = Api::namespaced(client.clone(), &note.key.namespace);
        let known = series.get_mut(&note).filter(|s| now.duration_since(s.last) < SAME);
        let result = if let Some(known) = known {
            known.count += 1;
            known.last = now;
            if now.duration_since(known.written) < QUIET {
                continue;
            }
            known.written = now;
            let patch = json!({"series": {"count": known.count, "lastObservedTime": MicroTime(Timestamp::now())}});
            api.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
        } else {
            let event = event(&note, &instance);
            let name = event.metadata.name.clone().unwrap_or_default();
            series.insert(note.clone(), Series { name, count: 1, last: now, written: now });
            api.create(&PostParams::default(), &event).await.map(|_| ())
        };
        if let Err(error) = result {
            debug!(reason = note.reason, service = %note.key, "Event not written: {error}");
            series.remove(&note);
        }
    }
}

fn event(note: &Note, instance: &str) -> Event {
    let now = Timestamp::now();
    Event {
        // Unique as upstream makes it: the object's name and the time.
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", note.key.name, now.as_nanosecond())),
            namespace: Some(note.key.namespace.to_string()),
            ..ObjectMeta::default()
        },
        action: Some(note.reason.to_owned()),
        reason: Some(note.reason.to_owned()),
        note: Some(shortened(&note.message).to_owned()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(note.key.namespace.to_string()),
            name: Some(note.key.name.to_string()),
            uid: Some(note.uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("penstock.dev/control".into()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}
