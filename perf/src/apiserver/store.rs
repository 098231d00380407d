//! Objects, one revision for all of them, and the history that watches are served from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::kinds::{CRDS, Registry, Resource, SERVICES};
use super::object::{ApiError, Object, is_deleting, map_of, name, namespace, uid};
use super::service::Allocations;

/// Namespace (empty for cluster-scoped objects) and name.
pub(super) type Key = (String, String);

#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) resource: Arc<str>,
    /// What was there before.
    pub(super) old: Option<Arc<Object>>,
    /// What is there now; of a deletion nothing.
    pub(super) new: Option<Arc<Object>>,
    /// The deleted object at the revision of its deletion.
    pub(super) last: Option<Arc<Object>>,
}

#[derive(Debug)]
pub(super) struct Store {
    pub(super) registry: Registry,
    objects: BTreeMap<Arc<str>, BTreeMap<Key, Arc<Object>>>,
    revision: u64,
    /// Revisions up to this one are forgotten: a watch cannot start from before it.
    compacted: u64,
    /// The last change that is forgotten: a running watch that has not seen it has missed it.
    forgotten: u64,
    history: VecDeque<Change>,
    history_limit: usize,
    /// Pages of lists that were begun, by their token: a continued list shows the revision it began at.
    pages: BTreeMap<u64, (u64, Vec<Arc<Object>>)>,
    uids: u64,
    revisions: watch::Sender<u64>,
    /// Cluster addresses and node ports of Services.
    pub(super) allocations: Allocations,
}

/// Lists begun and never continued are forgotten beyond this number.
const OPEN_LISTS: usize = 64;

impl Store {
    pub(super) fn new(history_limit: usize) -> Self {
        // Not from 1: code that compares revisions as text shall fail in tests.
        let revision = 990;
        Self {
            registry: Registry::new(),
            objects: BTreeMap::new(),
            revision,
            compacted: revision,
            forgotten: revision,
            history: VecDeque::new(),
            history_limit,
            pages: BTreeMap::new(),
            uids: 0,
            revisions: watch::Sender::new(revision),
            allocations: Allocations::default(),
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(super) fn has_missed(&self, seen: u64) -> bool {
        seen < self.forgotten
    }

    /// Told of every new revision.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revisions.subscribe()
    }

    pub(super) fn get(&self, resource: &Resource, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(&resource.id)?.get(key)
    }

    /// In the order of their keys; an empty namespace means all.
    pub(super) fn list<'s>(&'s self, resource: &Resource, of: &'s str) -> impl Iterator<Item = &'s Arc<Object>> + 's {
        let all = self.objects.get(&resource.id).into_iter().flatten();
        all.filter(move |((ns, _), _)| of.is_empty() || ns == of).map(|(_, object)| object)
    }

    /// Every object of a namespace, of whatever kind.
    pub(super) fn in_namespace(&self, of: &str) -> Vec<(Arc<str>, Key)> {
        let all = self.objects.iter().flat_map(|(id, objects)| objects.keys().map(move |key| (id, key)));
        all.filter(|(_, (ns, _))| ns == of).map(|(id, key)| (id.clone(), key.clone())).collect()
    }

    pub(super) fn next_uid(&mut self) -> String {
        self.uids += 1;
        uid(self.uids)
    }

    /// Stores the object under its own name.
    pub(super) fn put(&mut self, resource: &Resource, mut value: Value) -> Arc<Object> {
        let revision = self.next_revision();
        map_of(&mut value, "metadata").insert("resourceVersion".into(), json!(revision.to_string()));
        if resource.is(CRDS) {
            self.registry.define(&value);
        }
        let key = (namespace(&value).to_owned(), name(&value).to_owned());
        if resource.is(SERVICES) {
            self.allocations.note(&key, &value);
        }
        let object = Arc::new(Object::new(value, revision));
        let objects = self.objects.entry(resource.id.clone()).or_default();
        let old = objects.insert(key, object.clone());
        self.record(Change { revision, resource: resource.id.clone(), old, new: Some(object.clone()), last: None });
        object
    }

    /// `last` is what the deletion shows, where it is not what is stored: a write that took the last finalizer.
    pub(super) fn remove(&mut self, resource: &Resource, key: &Key, last: Option<Value>) -> Option<Arc<Object>> {
        let old = self.objects.get_mut(&resource.id)?.remove(key)?;
        let revision = self.next_revision();
        let mut value = last.unwrap_or_else(|| old.value.clone());
        map_of(&mut value, "metadata").insert("resourceVersion".into(), json!(revision.to_string()));
        if resource.is(CRDS) {
            self.registry.undefine(&value);
        }
        if resource.is(SERVICES) {
            self.allocations.forget(key);
        }
        let last = Arc::new(Object::new(value, revision));
        let resource = resource.id.clone();
        self.record(Change { revision, resource, old: Some(old), new: None, last: Some(last.clone()) });
        Some(last)
    }

    /// The objects of a kind that is defined no longer.
    pub(super) fn forget_all(&mut self, id: &str) {
        self.objects.remove(id);
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn record(&mut self, change: Change) {
        self.history.push_back(change);
        while self.history.len() > self.history_limit {
            if let Some(forgotten) = self.history.pop_front() {
                self.compacted = forgotten.revision;
                self.forgotten = forgotten.revision;
            }
        }
        self.revisions.send_replace(self.revision);
    }

    /// Forgets the past: watches and lists that start before now are answered 410. The revision moves on first, so
    /// that even a client that has seen everything starts from a forgotten one.
    pub(super) fn compact(&mut self) {
        let revision = self.next_revision();
        self.compacted = revision;
        self.forgotten = self.history.back().map_or(self.forgotten, |c| c.revision);
        self.history.clear();
        self.pages.clear();
        self.revisions.send_replace(revision);
    }

    /// Changes of a resource after a revision, oldest first, at most `limit`.
    pub(super) fn changes(&self, id: &str, after: u64, limit: usize) -> Vec<Change> {
        let first = self.history.partition_point(|c| c.revision <= after);
        self.history.range(first..).filter(|c| *c.resource == *id).take(limit).cloned().collect()
    }

    /// The objects of a resource as they were at a revision of the history.
    ///
    /// # Errors
    /// 410 where it is forgotten.
    pub(super) fn at(&self, resource: &Resource, of: &str, revision: u64) -> Result<Vec<Arc<Object>>, ApiError> {
        if revision < self.compacted {
            return Err(ApiError::gone(revision, self.compacted));
        }
        let empty = BTreeMap::new();
        let mut objects = self.objects.get(&resource.id).unwrap_or(&empty).clone();
        for change in self.history.iter().rev().take_while(|c| c.revision > revision) {
            if *change.resource != *resource.id {
                continue;
            }
            if let Some(object) = change.new.as_ref().or(change.last.as_ref()) {
                let key = (namespace(&object.value).to_owned(), name(&object.value).to_owned());
                match &change.old {
                    Some(old) => objects.insert(key, old.clone()),
                    None => objects.remove(&key),
                };
            }
        }
        Ok(objects.into_iter().filter(|((ns, _), _)| of.is_empty() || ns == of).map(|(_, o)| o).collect())
    }

    /// Keeps the rest of a list; the token continues it.
    pub(super) fn keep_page(&mut self, revision: u64, rest: Vec<Arc<Object>>) -> String {
        self.uids += 1;
        let token = self.uids;
        self.pages.insert(token, (revision, rest));
        while self.pages.len() > OPEN_LISTS {
            self.pages.pop_first();
        }
        format!("page-{token}")
    }

    /// # Errors
    /// 410 where the list it continues is forgotten.
    pub(super) fn page(&mut self, token: &str) -> Result<(u64, Vec<Arc<Object>>), ApiError> {
        let number = token.strip_prefix("page-").and_then(|n| n.parse().ok());
        let number: u64 = number.ok_or_else(|| ApiError::bad_request("continue key is not valid: cannot be read"))?;
        // Not removed: a client may ask for the same page again after a lost answer.
        self.pages.get(&number).cloned().ok_or_else(|| {
            let why = "The provided continue parameter is too old to display a consistent list result. You must start \
                       a new list without the continue parameter.";
            ApiError::new(410, "Expired", why)
        })
    }

    pub(super) fn namespace_is_leaving(&self, namespaces: &Resource, name: &str) -> Option<bool> {
        self.get(namespaces, &(String::new(), name.to_owned())).map(|object| is_deleting(&object.value))
    }
}
