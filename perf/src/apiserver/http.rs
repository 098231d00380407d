//! From an HTTP request to an answer: access, faults, then the verb.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::fault::Act;
use super::fields::Manager;
use super::forms::Form;
use super::kinds::CORE_EVENTS;
use super::object::{ApiError, Object, list_at};
use super::request::{self, Asked, Query, Target, is_true};
use super::rest::{self, Deleted, Ownership, PatchKind, Writer};
use super::selector::Selector;
use super::watching::{Start, Watching, error_line};
use super::{Inner, Seen, discovery, events};

pub(super) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// The connection is to end without an answer.
#[derive(Debug, thiserror::Error)]
#[error("dropped on purpose")]
pub(super) struct Dropped;

/// What came besides path and body.
struct Head {
    method: hyper::Method,
    query: Query,
    content_type: String,
    form: Form,
    agent: String,
}

pub(super) async fn handle(inner: Arc<Inner>, http: Request<Incoming>) -> Result<Response<Body>, Dropped> {
    let started = Instant::now();
    let (parts, body) = http.into_parts();
    let header = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let head = Head {
        method: parts.method.clone(),
        query: request::query(parts.uri.query()),
        content_type: header(CONTENT_TYPE).to_owned(),
        form: Form::from_accept(header(ACCEPT)),
        agent: header(USER_AGENT).to_owned(),
    };
    let path = parts.uri.path().to_owned();
    let target = request::target(&inner.store().registry, &path);
    let asked = match &target {
        Some(Ok(target)) => Some(target.asked(&head.method, &head.query)),
        _ => None,
    };
    let authorization = parts.headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    if let Err(error) = inner.access().check(authorization, asked.as_ref()) {
        inner.note(asked, error.code, started);
        return Ok(refused(&error));
    }
    let (Some(target), Some(asked)) = (target, asked.clone()) else {
        return Ok(without_resource(&inner, &path));
    };
    let bytes = body.collect().await.map_err(|_| Dropped)?.to_bytes();
    let act = inner.faults().take(&asked);
    let lose_answer = act == Some(Act::DropAfter);
    if let Some(answer) = befall(&inner, act, &asked).await? {
        inner.note(Some(asked), answer.status().as_u16(), started);
        return Ok(answer);
    }
    let answer = target
        .and_then(|target| Call { inner: &inner, target, head: &head, asked: &asked }.run(&bytes))
        .unwrap_or_else(|error| refused(&error));
    inner.note(Some(asked), answer.status().as_u16(), started);
    if lose_answer { Err(Dropped) } else { Ok(answer) }
}

/// What a fault does in place of the request; `None` where the request goes on.
async fn befall(inner: &Arc<Inner>, act: Option<Act>, asked: &Asked) -> Result<Option<Response<Body>>, Dropped> {
    match act {
        None | Some(Act::DropAfter) => Ok(None),
        Some(Act::Drop) => Err(Dropped),
        Some(Act::Hang) => std::future::pending().await,
        Some(Act::Delay(by)) => {
            tokio::time::sleep(by).await;
            Ok(None)
        }
        Some(Act::Refuse(error)) => Ok(Some(refused(&error))),
        Some(Act::Gone) => Ok(Some(refused(&gone(inner)))),
        Some(Act::GoneInStream) if asked.verb == "watch" => {
            Ok(Some(respond(StatusCode::OK, full(error_line(&gone(inner))))))
        }
        Some(Act::ErrorInStream(error)) if asked.verb == "watch" => {
            Ok(Some(respond(StatusCode::OK, full(error_line(&error)))))
        }
        Some(Act::EndAtOnce) if asked.verb == "watch" => Ok(Some(respond(StatusCode::OK, full(Bytes::new())))),
        Some(Act::GoneInStream | Act::ErrorInStream(_) | Act::EndAtOnce) => Ok(None),
    }
}

fn gone(inner: &Inner) -> ApiError {
    let revision = inner.store().revision();
    ApiError::gone(1, revision)
}

fn without_resource(inner: &Inner, path: &str) -> Response<Body> {
    if discovery::is_health(path) {
        return respond(StatusCode::OK, full(Bytes::from_static(b"ok")));
    }
    let answer = discovery::answer(&inner.store().registry, path);
    match answer {
        Some(json) => respond(StatusCode::OK, full(json.to_string().into())),
        None => refused(&ApiError::new(404, "NotFound", "the server could not find the requested resource")),
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

fn respond(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

fn refused(error: &ApiError) -> Response<Body> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(code, full(error.status().to_string().into()));
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

struct Call<'a> {
    inner: &'a Arc<Inner>,
    target: Target,
    head: &'a Head,
    asked: &'a Asked,
}

impl Call<'_> {
    fn run(self, bytes: &[u8]) -> Result<Response<Body>, ApiError> {
        match self.asked.verb {
            "get" => {
                let object = rest::get(&self.inner.store(), &self.target)?;
                Ok(self.shown(StatusCode::OK, &object))
            }
            "list" => self.list(),
            "watch" => self.watch(),
            "create" => {
                let object = self.incoming(bytes)?;
                let created = rest::create(&mut self.inner.store(), &self.target, object, &self.writer())?;
                Ok(self.shown(StatusCode::CREATED, &created))
            }
            "update" => self.update(bytes),
            "patch" => self.patch(bytes),
            "delete" => self.delete(bytes),
            "deletecollection" => self.delete_collection(bytes),
            _ => Err(ApiError::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )),
        }
    }

    fn parameter(&self, name: &str) -> &str {
        self.head.query.get(name).map_or("", String::as_str)
    }

    /// Without a name of its own a client manages fields under that of its program.
    fn writer(&self) -> Writer {
        let program = self.head.agent.split('/').next().unwrap_or_default();
        let manager = match self.parameter("fieldManager") {
            "" => {
                if program.is_empty() {
                    "unknown"
                } else {
                    program
                }
            }
            name => name,
        };
        Writer {
            manager: Manager { name: manager.to_owned(), subresource: self.target.subresource.clone() },
            dry_run: !self.parameter("dryRun").is_empty(),
        }
    }

    fn incoming(&self, bytes: &[u8]) -> Result<Value, ApiError> {
        let body = request::body(bytes)?;
        Ok(if self.target.resource.is(CORE_EVENTS) { events::from_core(&body) } else { body })
    }

    fn shown(&self, code: StatusCode, object: &Arc<Object>) -> Response<Body> {
        respond(code, full(self.head.form.object(&self.target, object, true)))
    }

    fn selector(&self) -> Result<Selector, ApiError> {
        Selector::parse(&self.target.stored, self.parameter("labelSelector"), self.parameter("fieldSelector"))
    }

    fn revision_parameter(&self) -> Result<Option<u64>, ApiError> {
        match self.parameter("resourceVersion") {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| ApiError::bad_request(format!("Invalid value: \"{text}\": resourceVersion"))),
        }
    }

    fn list(&self) -> Result<Response<Body>, ApiError> {
        let selector = self.selector()?;
        let limit: usize = self.parameter("limit").parse().unwrap_or(0);
        let mut store = self.inner.store();
        let (revision, objects) = match self.parameter("continue") {
            "" => self.listed(&store)?,
            token => store.page(token)?,
        };
        let mut objects: Vec<Arc<Object>> =
            objects.into_iter().filter(|o| selector.is_all() || selector.matches(&o.value)).collect();
        let mut meta = json!({"resourceVersion": revision.to_string()});
        if limit > 0 && objects.len() > limit {
            let rest = objects.split_off(limit);
            if selector.is_all() {
                meta["remainingItemCount"] = json!(rest.len());
            }
            meta["continue"] = json!(store.keep_page(revision, rest));
        }
        drop(store);
        Ok(respond(StatusCode::OK, full(self.head.form.list(&self.target, &objects, &meta))))
    }

    /// What a list without `continue` shows, by the rules for resourceVersion and resourceVersionMatch.
    fn listed(&self, store: &super::store::Store) -> Result<(u64, Vec<Arc<Object>>), ApiError> {
        let exact = self.parameter("resourceVersionMatch") == "Exact";
        let asked = self.revision_parameter()?;
        if exact && asked.unwrap_or(0) == 0 {
            return Err(ApiError::bad_request(
                "resourceVersionMatch Exact is forbidden unless resourceVersion is provided",
            ));
        }
        let asked = asked.unwrap_or(0);
        if asked > store.revision() {
            return Err(too_large(asked, store.revision()));
        }
        let (resource, namespace) = (&self.target.stored, &self.target.namespace);
        if exact {
            return Ok((asked, store.at(resource, namespace, asked)?));
        }
        Ok((store.revision(), store.list(resource, namespace).cloned().collect()))
    }

    fn watch(self) -> Result<Response<Body>, ApiError> {
        let selector = self.selector()?;
        let asked = self.revision_parameter()?;
        let initial_events = is_true(&self.head.query, "sendInitialEvents");
        if initial_events && !self.inner.settings.streaming_lists {
            let why = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is \
                       forbidden for watch unless the WatchList feature gate is enabled";
            return Err(ApiError::new(422, "Invalid", why));
        }
        let seconds: u64 = self.parameter("timeoutSeconds").parse().unwrap_or(0);
        let timeout = if seconds > 0 { Duration::from_secs(seconds) } else { self.inner.settings.watch_timeout };
        let store = self.inner.store();
        let after = asked.filter(|revision| *revision > 0 && !initial_events);
        // No revision: what there is comes first, as additions.
        let initial = match after {
            Some(_) => Vec::new(),
            None => store
                .list(&self.target.stored, &self.target.namespace)
                .filter(|o| selector.matches(&o.value))
                .cloned()
                .collect(),
        };
        let (revision, compacted) = (store.revision(), store.compacted());
        drop(store);
        if let Some(after) = after.filter(|after| *after < compacted) {
            let error = ApiError::gone(after, compacted);
            return if self.inner.settings.gone_by_http.load(Ordering::Relaxed) {
                Err(error)
            } else {
                Ok(respond(StatusCode::OK, full(error_line(&error))))
            };
        }
        let start = Start {
            selector,
            form: self.head.form,
            bookmarks: is_true(&self.head.query, "allowWatchBookmarks"),
            timeout,
            after: after.unwrap_or(revision),
            initial,
            mark_initial_end: initial_events,
            target: self.target,
        };
        let watching = Watching::new(self.inner.clone(), start);
        let lines = stream::unfold(watching, async |watching| {
            watching.next().await.map(|(line, next)| (Ok::<_, std::convert::Infallible>(Frame::data(line)), next))
        });
        Ok(respond(StatusCode::OK, StreamBody::new(lines).boxed_unsync()))
    }

    fn update(&self, bytes: &[u8]) -> Result<Response<Body>, ApiError> {
        let object = self.incoming(bytes)?;
        let written = rest::update(&mut self.inner.store(), &self.target, object, &self.writer(), Ownership::Note)?;
        Ok(self.shown(StatusCode::OK, &written))
    }

    fn patch(&self, bytes: &[u8]) -> Result<Response<Body>, ApiError> {
        let kind = match self.head.content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => PatchKind::Json,
            "application/merge-patch+json" => PatchKind::Merge,
            "application/strategic-merge-patch+json" => PatchKind::Strategic,
            "application/apply-patch+yaml" => PatchKind::Apply { force: is_true(&self.head.query, "force") },
            other => {
                let why = format!("the body of the request was in an unknown format: {other}");
                return Err(ApiError::new(415, "UnsupportedMediaType", why));
            }
        };
        let apply = matches!(kind, PatchKind::Apply { .. });
        if apply && self.parameter("fieldManager").is_empty() {
            let why =
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            return Err(ApiError::new(422, "Invalid", why));
        }
        let body = if kind == PatchKind::Json { request::body(bytes)? } else { self.incoming_patch(bytes)? };
        let (created, object) = rest::patch(&mut self.inner.store(), &self.target, kind, &body, &self.writer())?;
        Ok(self.shown(if created { StatusCode::CREATED } else { StatusCode::OK }, &object))
    }

    fn incoming_patch(&self, bytes: &[u8]) -> Result<Value, ApiError> {
        let mut body = request::body(bytes)?;
        if self.target.resource.is(CORE_EVENTS) {
            body = events::from_core(&body);
        }
        if body.is_object() { Ok(body) } else { Err(ApiError::bad_request("a patch is an object")) }
    }

    fn delete(&self, bytes: &[u8]) -> Result<Response<Body>, ApiError> {
        let mut options = request::body(bytes)?;
        if !self.parameter("dryRun").is_empty() {
            options = json!({"dryRun": ["All"]});
        }
        match rest::delete(&mut self.inner.store(), &self.target, &options)? {
            Deleted::Waits(object) => Ok(self.shown(StatusCode::OK, &object)),
            Deleted::Gone(object) => {
                let details = json!({
                    "name": self.target.name, "kind": self.target.resource.plural,
                    "group": self.target.resource.group, "uid": object.value["metadata"]["uid"],
                });
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
                Ok(respond(StatusCode::OK, full(status.to_string().into())))
            }
        }
    }

    fn delete_collection(&self, bytes: &[u8]) -> Result<Response<Body>, ApiError> {
        let (selector, options) = (self.selector()?, request::body(bytes)?);
        let mut store = self.inner.store();
        let chosen: Vec<Arc<Object>> = store
            .list(&self.target.stored, &self.target.namespace)
            .filter(|o| selector.matches(&o.value))
            .cloned()
            .collect();
        if list_at(&options, "/dryRun").is_empty() {
            for object in &chosen {
                let mut one = self.target.clone();
                super::object::namespace(&object.value).clone_into(&mut one.namespace);
                super::object::name(&object.value).clone_into(&mut one.name);
                rest::delete(&mut store, &one, &Value::Null)?;
            }
        }
        let meta = json!({"resourceVersion": store.revision().to_string()});
        drop(store);
        Ok(respond(StatusCode::OK, full(self.head.form.list(&self.target, &chosen, &meta))))
    }
}

fn too_large(asked: u64, current: u64) -> ApiError {
    let why = format!("Too large resource version: {asked}, current: {current}");
    ApiError::new(504, "Timeout", why).retry_after(1)
}

impl Inner {
    fn note(&self, asked: Option<Asked>, code: u16, started: Instant) {
        if let Some(asked) = asked {
            self.log(Seen { asked, code, took: started.elapsed(), at: started });
        }
    }
}
