//! A Kubernetes API server for tests, the demo and benchmarks: in this process, over real HTTP, with the behaviour
//! that controllers depend on, and with faults on purpose. It has no kubelet, scheduler or endpoint controller: the
//! test plays their part through [`ApiServer::put`].
//!
//! A request's way: `serve` accepts it, `http` finds what is asked (`request`), by whom (`access`), and whether a
//! `fault` befalls it; `rest` does what every kind has in common, `admission` what some have of their own, `strategic`
//! and `fields` make patches and field ownership; `store` keeps objects and history, from which `watching` serves
//! watches. `discovery` and `table` are for `kubectl`.
//!
//! Where it deviates from a real one: no protobuf, no aggregated discovery, no garbage collection of owned objects,
//! lists of built-in kinds carry kind and version in their items, and `kubectl explain` finds nothing.

mod access;
mod admission;
mod definition;
mod discovery;
mod events;
mod fault;
mod fields;
mod forms;
mod http;
mod kinds;
mod names;
mod object;
mod request;
mod rest;
mod schema;
mod selector;
mod serve;
mod service;
mod service_faults;
mod store;
mod strategic;
mod table;
mod typed;
mod watching;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

pub use access::{ADMIN_TOKEN, Grant};
pub use fault::{Fault, FaultBuilder};
pub use object::ApiError;
pub use request::Asked;

use fields::Manager;
use kinds::Resource;
use object::{has_finalizers, map_of, revision_of, str_at};
use request::Target;
use rest::{Deleted, Ownership, Writer};
use serve::Command;
use store::Store;

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// A real server sends a bookmark about once a minute.
    pub bookmark_every: Duration,
    /// Of watches that ask for none.
    pub watch_timeout: Duration,
    /// Changes kept for watches that start in the past.
    pub history: usize,
    /// Answer `sendInitialEvents` (the WatchList feature); else it is refused, and the client must list.
    pub streaming_lists: bool,
    /// A request without a token is answered 401.
    pub require_token: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bookmark_every: Duration::from_secs(1),
            watch_timeout: Duration::from_secs(1_800),
            history: 100_000,
            streaming_lists: false,
            require_token: false,
        }
    }
}

/// One request that was answered (or dropped after it was carried out).
#[derive(Debug, Clone)]
pub struct Seen {
    pub asked: Asked,
    pub code: u16,
    /// Until the answer's head was ready: of a watch, until it began.
    pub took: Duration,
    pub at: Instant,
}

/// Requests remembered; older ones are forgotten.
const LOG: usize = 200_000;

struct Inner {
    address: SocketAddr,
    settings: LiveSettings,
    store: Mutex<Store>,
    access: Mutex<access::Access>,
    faults: Mutex<fault::Faults>,
    seen: Mutex<VecDeque<Seen>>,
    /// Connections end when this changes.
    dropped: watch::Sender<u64>,
    /// Watches say nothing while this is true.
    stalled: watch::Sender<bool>,
}

struct LiveSettings {
    bookmark_every: Duration,
    watch_timeout: Duration,
    streaming_lists: bool,
    gone_by_http: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn access(&self) -> MutexGuard<'_, access::Access> {
        lock(&self.access)
    }

    fn faults(&self) -> MutexGuard<'_, fault::Faults> {
        lock(&self.faults)
    }

    fn log(&self, seen: Seen) {
        let mut log = lock(&self.seen);
        if log.len() == LOG {
            log.pop_front();
        }
        log.push_back(seen);
    }

    fn drop_connections(&self) {
        self.dropped.send_modify(|epoch| *epoch += 1);
    }
}

/// The server; it ends when this is dropped.
pub struct ApiServer {
    inner: Arc<Inner>,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// On a free port of 127.0.0.1, with the namespaces `default` and `kube-system`.
    ///
    /// # Errors
    /// When no port can be bound or no thread started.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), settings)
    }

    /// # Errors
    /// When the address cannot be bound or no thread started.
    pub fn start_at(address: SocketAddr, settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let inner = Arc::new(Inner {
            address: listener.local_addr()?,
            store: Mutex::new(Store::new(settings.history)),
            access: Mutex::new(access::Access::new(!settings.require_token)),
            faults: Mutex::default(),
            seen: Mutex::default(),
            dropped: watch::Sender::new(0),
            stalled: watch::Sender::new(false),
            settings: LiveSettings {
                bookmark_every: settings.bookmark_every,
                watch_timeout: settings.watch_timeout,
                streaming_lists: settings.streaming_lists,
                gone_by_http: AtomicBool::new(false),
            },
        });
        let (commands, receiver) = mpsc::unbounded_channel();
        let served = inner.clone();
        let thread = std::thread::Builder::new()
            .name("api-server".into())
            .spawn(move || serve::run(&served, listener, receiver))?;
        let server = Self { inner, commands: Some(commands), thread: Some(thread) };
        for name in ["default", "kube-system"] {
            server
                .put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
                .map_err(|e| std::io::Error::other(e.message))?;
        }
        Ok(server)
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// A kubeconfig for the holder of a token.
    #[must_use]
    pub fn kubeconfig(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        })
        .to_string()
    }
}

/// What a test does to the cluster, as everybody else in it would: with the server's own checks, as the admin.
impl ApiServer {
    /// Creates the object, or replaces what is there but for what the server keeps. A status in it is written too,
    /// as the second request it takes.
    ///
    /// # Errors
    /// As the API server's.
    pub fn put(&self, object: &Value) -> Result<Value, ApiError> {
        let mut store = self.inner.store();
        let target = self.target_of(&store, object)?;
        let mut main = object.clone();
        map_of(&mut main, "metadata").remove("resourceVersion");
        let written = match store.get(&target.stored, &target.key()).cloned() {
            None => rest::create(&mut store, &target, main, &writer(""))?,
            Some(old) => {
                map_of(&mut main, "metadata").insert("resourceVersion".into(), json!(revision_of(&old.value)));
                rest::update(&mut store, &target, main, &writer(""), Ownership::Note)?
            }
        };
        drop(store);
        match object.get("status") {
            Some(status) if target.stored.status => self.put_status(&written.value, status.clone()),
            _ => Ok(written.value.clone()),
        }
    }

    /// Replaces the status of the object that is there.
    ///
    /// # Errors
    /// As the API server's.
    pub fn put_status(&self, object: &Value, status: Value) -> Result<Value, ApiError> {
        let mut store = self.inner.store();
        let mut target = self.target_of(&store, object)?;
        "status".clone_into(&mut target.subresource);
        let mut new = rest::get(&store, &target)?.value.clone();
        new["status"] = status;
        let written = rest::update(&mut store, &target, new, &writer("status"), Ownership::Note)?;
        Ok(written.value.clone())
    }

    /// Changes the object that is there, status aside.
    ///
    /// # Errors
    /// As the API server's.
    pub fn edit(
        &self,
        api_version: &str,
        kind: &str,
        place: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Value, ApiError> {
        let mut store = self.inner.store();
        let target = target_at(&store, api_version, kind, place)?;
        let mut object = rest::get(&store, &target)?.value.clone();
        change(&mut object);
        let written = rest::update(&mut store, &target, object, &writer(""), Ownership::Note)?;
        Ok(written.value.clone())
    }

    /// `place` is `NAMESPACE/NAME`, of cluster-scoped kinds `NAME`.
    #[must_use]
    pub fn get(&self, api_version: &str, kind: &str, place: &str) -> Option<Value> {
        let store = self.inner.store();
        let target = target_at(&store, api_version, kind, place).ok()?;
        store.get(&target.stored, &target.key()).map(|o| o.value.clone())
    }

    #[must_use]
    pub fn list(&self, api_version: &str, kind: &str) -> Vec<Value> {
        let store = self.inner.store();
        let Some(resource) = store.registry.by_kind(api_version, kind) else { return Vec::new() };
        store.list(&resource, "").map(|o| o.value.clone()).collect()
    }

    /// Every state the object has had, as far as the history goes; oldest first.
    #[must_use]
    pub fn versions(&self, api_version: &str, kind: &str, place: &str) -> Vec<Value> {
        let store = self.inner.store();
        let Ok(target) = target_at(&store, api_version, kind, place) else { return Vec::new() };
        let (id, key) = (&target.stored.id, target.key());
        let all = store.changes(id, 0, usize::MAX).into_iter().filter_map(|change| change.new);
        let is_it = |o: &Value| object::namespace(o) == key.0 && object::name(o) == key.1;
        all.filter(|o| is_it(&o.value)).map(|o| o.value.clone()).collect()
    }

    /// How many are like that; without a copy of any.
    #[must_use]
    pub fn count_of(&self, api_version: &str, kind: &str, is: impl Fn(&Value) -> bool) -> usize {
        let store = self.inner.store();
        let Some(resource) = store.registry.by_kind(api_version, kind) else { return 0 };
        store.list(&resource, "").filter(|o| is(&o.value)).count()
    }

    /// What `kubectl get` prints of these objects.
    #[must_use]
    pub fn shown(&self, api_version: &str, kind: &str, wanted: impl Fn(&Value) -> bool) -> String {
        let store = self.inner.store();
        let Some(resource) = store.registry.by_kind(api_version, kind) else { return String::new() };
        let objects: Vec<&Value> = store.list(&resource, "").map(|o| &o.value).filter(|o| wanted(o)).collect();
        table::text(&table::table(&resource, &objects, store.revision(), true))
    }

    /// Whether it is gone at once; else its finalizers keep it.
    ///
    /// # Errors
    /// As the API server's.
    pub fn delete(&self, api_version: &str, kind: &str, place: &str) -> Result<bool, ApiError> {
        let mut store = self.inner.store();
        let target = target_at(&store, api_version, kind, place)?;
        Ok(matches!(rest::delete(&mut store, &target, &Value::Null)?, Deleted::Gone(_)))
    }

    /// Stores the object as it is, past every check: what older servers or other hands have left behind. A missing
    /// uid is filled in.
    ///
    /// # Errors
    /// When the kind is not known.
    pub fn put_raw(&self, object: &Value) -> Result<Value, ApiError> {
        let mut store = self.inner.store();
        let target = self.target_of(&store, object)?;
        let mut object = object.clone();
        if str_at(&object, "/metadata/uid").is_empty() {
            let uid = store.next_uid();
            map_of(&mut object, "metadata").insert("uid".into(), json!(uid));
        }
        debug_assert!(!object::is_deleting(&object) || has_finalizers(&object), "such an object would be gone");
        Ok(store.put(&target.stored, object).value.clone())
    }

    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.store().revision()
    }

    #[allow(clippy::unused_self, reason = "reads as the others")]
    fn target_of(&self, store: &Store, object: &Value) -> Result<Target, ApiError> {
        let (version, kind) = (str_at(object, "/apiVersion"), str_at(object, "/kind"));
        let resource = store.registry.by_kind(version, kind).ok_or_else(|| no_kind(version, kind))?;
        let namespace = match (resource.namespaced, object::namespace(object)) {
            (false, _) => "",
            (true, "") => "default",
            (true, namespace) => namespace,
        };
        Ok(target(resource.clone(), namespace, object::name(object)))
    }
}

fn no_kind(version: &str, kind: &str) -> ApiError {
    ApiError::new(404, "NotFound", format!("no matches for kind \"{kind}\" in version \"{version}\""))
}

fn target_at(store: &Store, api_version: &str, kind: &str, place: &str) -> Result<Target, ApiError> {
    let resource = store.registry.by_kind(api_version, kind).ok_or_else(|| no_kind(api_version, kind))?;
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    Ok(target(resource, namespace, name))
}

fn target(resource: Arc<Resource>, namespace: &str, name: &str) -> Target {
    Target {
        stored: resource.clone(),
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: String::new(),
    }
}

fn writer(subresource: &str) -> Writer {
    Writer { manager: Manager { name: "kubectl".into(), subresource: subresource.into() }, dry_run: false }
}

/// Trouble, and what can be asked afterwards.
impl ApiServer {
    pub fn fault(&self, fault: Fault) {
        self.inner.faults().add(fault);
    }

    pub fn clear_faults(&self) {
        self.inner.faults().clear();
    }

    /// Whether every fault with a number of times has happened that often.
    #[must_use]
    pub fn faults_are_used_up(&self) -> bool {
        self.inner.faults().are_used_up()
    }

    /// Forgets all history: a watch or an exact list from before now is answered 410. Running watches go on.
    pub fn compact(&self) {
        self.inner.store().compact();
    }

    /// A watch from a forgotten revision is answered HTTP 410 instead of HTTP 200 with an ERROR event.
    pub fn gone_by_http(&self, yes: bool) {
        self.inner.settings.gone_by_http.store(yes, Ordering::Relaxed);
    }

    /// Watches say nothing, not even that they end.
    pub fn stall_watches(&self, yes: bool) {
        self.inner.stalled.send_replace(yes);
    }

    /// Every connection ends as it stands; new ones are accepted.
    pub fn drop_connections(&self) {
        self.inner.drop_connections();
    }

    /// The port refuses connections until [`Self::resume`]. Objects stay.
    pub fn stop(&self) {
        let (done, stopped) = std::sync::mpsc::channel();
        if self.commands.as_ref().is_some_and(|c| c.send(Command::Stop(done)).is_ok()) {
            // An error means the thread is gone, and the port with it.
            let _ = stopped.recv();
        }
    }

    /// # Errors
    /// When somebody else has the port now.
    pub fn resume(&self) -> std::io::Result<()> {
        let (done, listening) = std::sync::mpsc::channel();
        let gone = || std::io::Error::other("the API server's thread has ended");
        self.commands.as_ref().ok_or_else(gone)?.send(Command::Listen(done)).map_err(|_| gone())?;
        listening.recv().map_err(|_| gone())?
    }

    /// A user who may do only what the grants say; without grants, everything.
    pub fn add_user(&self, token: &str, user: &str, grants: Option<Vec<Grant>>) {
        self.inner.access().add(token, user, grants);
    }

    /// The old token is answered 401 from now on; the new one is its user's.
    pub fn rotate_token(&self, old: &str, new: &str) {
        self.inner.access().replace_token(old, new);
    }

    /// Every request answered so far, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        lock(&self.inner.seen).iter().cloned().collect()
    }

    /// How many requests were like that.
    #[must_use]
    pub fn requests_that(&self, are: impl Fn(&Seen) -> bool) -> usize {
        lock(&self.inner.seen).iter().filter(|seen| are(seen)).count()
    }

    /// How many requests with this verb and resource; empty means any.
    #[must_use]
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        lock(&self.inner.seen).iter().filter(|s| fits(verb, s.asked.verb) && fits(resource, &s.asked.resource)).count()
    }

    pub fn forget_requests(&self) {
        lock(&self.inner.seen).clear();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own thread.
            let _ = thread.join();
        }
    }
}
