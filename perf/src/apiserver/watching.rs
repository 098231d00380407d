//! One watch: changes after a revision as JSON lines, bookmarks, the end by time, and the 410 of what was missed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Inner;
use super::forms::Form;
use super::object::{ApiError, Object};
use super::request::Target;
use super::selector::Selector;
use super::store::Change;

/// Changes taken from the history at a time.
const BATCH: usize = 500;

pub(super) struct Start {
    pub(super) target: Target,
    pub(super) selector: Selector,
    pub(super) form: Form,
    pub(super) bookmarks: bool,
    pub(super) timeout: Duration,
    /// Changes after this revision.
    pub(super) after: u64,
    /// Shown first, as additions.
    pub(super) initial: Vec<Arc<Object>>,
    /// The client asked to be told where the initial ones end.
    pub(super) mark_initial_end: bool,
}

pub(super) struct Watching {
    inner: Arc<Inner>,
    start: Start,
    seen: u64,
    lines: VecDeque<Bytes>,
    revisions: watch::Receiver<u64>,
    stalled: watch::Receiver<bool>,
    deadline: Instant,
    next_bookmark: Instant,
    ended: bool,
    first_line: bool,
}

impl Watching {
    pub(super) fn new(inner: Arc<Inner>, start: Start) -> Self {
        let (revisions, bookmark_every) = (inner.store().subscribe(), inner.settings.bookmark_every);
        let now = Instant::now();
        let mut watching = Self {
            stalled: inner.stalled.subscribe(),
            seen: start.after,
            lines: VecDeque::new(),
            revisions,
            deadline: now + start.timeout,
            next_bookmark: now + bookmark_every,
            ended: false,
            first_line: true,
            inner,
            start,
        };
        for object in std::mem::take(&mut watching.start.initial) {
            watching.push("ADDED", &object);
        }
        if watching.start.mark_initial_end {
            watching.push_bookmark(true);
        }
        watching
    }

    /// The next line; `None` ends the stream.
    pub(super) async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            // A stalled watch is a connection that lives and says nothing, not even its end.
            if *self.stalled.borrow_and_update() {
                self.stalled.changed().await.ok()?;
                continue;
            }
            if let Some(line) = self.lines.pop_front() {
                return Some((line, self));
            }
            if self.ended {
                return None;
            }
            self.revisions.borrow_and_update();
            self.take_changes();
            if !self.lines.is_empty() {
                continue;
            }
            let wake = if self.start.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            tokio::select! {
                changed = self.revisions.changed() => changed.ok()?,
                _ = self.stalled.changed() => {}
                () = tokio::time::sleep_until(wake) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.ended = now >= self.deadline;
        if self.start.bookmarks {
            self.next_bookmark = now + self.inner.settings.bookmark_every;
            self.push_bookmark(false);
        }
    }

    fn take_changes(&mut self) {
        let inner = self.inner.clone();
        let store = inner.store();
        if store.has_missed(self.seen) {
            let error = ApiError::gone(self.seen, store.compacted());
            drop(store);
            self.lines.push_back(error_line(&error));
            self.ended = true;
            return;
        }
        // From a revision that is yet to come nothing is told until it has: what a restore from a backup does to clients.
        let after = self.seen.max(self.start.after);
        let changes = store.changes(&self.start.target.stored.id, after, BATCH);
        self.seen = if changes.len() < BATCH { store.revision() } else { changes[BATCH - 1].revision };
        drop(store);
        for change in &changes {
            self.push_change(change);
        }
    }

    /// A change as this watch sees it: what comes into the selection is added, what leaves it is deleted.
    fn push_change(&mut self, change: &Change) {
        let namespace = &self.start.target.namespace;
        let selects = |object: &Arc<Object>| {
            let here = namespace.is_empty() || super::object::namespace(&object.value) == namespace;
            let name = &self.start.target.name;
            let named = name.is_empty() || super::object::name(&object.value) == name;
            here && named && self.start.selector.matches(&object.value)
        };
        let before = change.old.as_ref().is_some_and(selects);
        let after = change.new.as_ref().is_some_and(selects);
        match (before, after) {
            (false, false) => {}
            (false, true) => self.push_option("ADDED", change.new.as_ref()),
            (true, true) => self.push_option("MODIFIED", change.new.as_ref()),
            (true, false) => {
                // Of an object that leaves the selection its last selected form, at the revision of the change.
                let shown = match (&change.last, &change.old) {
                    (Some(last), _) => last.clone(),
                    (None, Some(old)) => {
                        let mut value = old.value.clone();
                        value["metadata"]["resourceVersion"] = json!(change.revision.to_string());
                        Arc::new(Object::new(value, change.revision))
                    }
                    (None, None) => return,
                };
                self.push("DELETED", &shown);
            }
        }
    }

    fn push_option(&mut self, kind: &str, object: Option<&Arc<Object>>) {
        if let Some(object) = object {
            self.push(kind, object);
        }
    }

    fn push(&mut self, kind: &str, object: &Arc<Object>) {
        let body = self.start.form.object(&self.start.target, object, self.first_line);
        self.first_line = false;
        self.lines.push_back(line(kind, &body));
    }

    fn push_bookmark(&mut self, initial_end: bool) {
        let resource = &self.start.target.resource;
        let mut object = json!({
            "kind": resource.kind, "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": self.seen.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.start.form == Form::Table {
            let revision = self.seen;
            object = super::table::table(resource, &[], revision, false);
        }
        self.lines.push_back(line("BOOKMARK", &object.to_string().into()));
    }
}

fn line(kind: &str, object: &Bytes) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(kind.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

/// An ERROR event.
pub(super) fn error_line(error: &ApiError) -> Bytes {
    let status: Value = error.status();
    line("ERROR", &status.to_string().into())
}
