//! From an HTTP request to what is asked of which resource.

use std::collections::HashMap;
use std::sync::Arc;

use hyper::Method;
use serde_json::Value;

use super::kinds::{CORE_EVENTS, EVENTS, Registry, Resource};
use super::object::ApiError;

/// A path under `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Target {
    pub(super) resource: Arc<Resource>,
    /// Where it is stored: the core view of events has no store of its own.
    pub(super) stored: Arc<Resource>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) subresource: String,
}

/// What access control, faults and the request log see.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Asked {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: &'static str,
    pub group: String,
    /// With its subresource: `services/status`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

pub(super) type Query = HashMap<String, String>;

/// `None` for paths that name no resource (discovery, health).
pub(super) fn target(registry: &Registry, path: &str) -> Option<Result<Target, ApiError>> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        _ => ("", rest),
    };
    let (plural, name, subresource) = match *rest {
        [plural] => (plural, "", ""),
        [plural, name] => (plural, name, ""),
        [plural, name, subresource] => (plural, name, subresource),
        _ => return Some(Err(no_such_page())),
    };
    let Some(resource) = registry.get(group, version, plural) else { return Some(Err(no_such_page())) };
    let known = match subresource {
        "" => true,
        "status" => resource.status,
        "finalize" => resource.kind == "Namespace",
        _ => false,
    };
    // A namespaced object has an address in its namespace only.
    if !known || (resource.namespaced && namespace.is_empty() && !name.is_empty()) {
        return Some(Err(no_such_page()));
    }
    let stored = if resource.is(CORE_EVENTS) { registry.by_id(EVENTS) } else { None };
    Some(Ok(Target {
        stored: stored.unwrap_or_else(|| resource.clone()),
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    }))
}

fn no_such_page() -> ApiError {
    ApiError::new(404, "NotFound", "the server could not find the requested resource")
}

impl Target {
    pub(super) fn asked(&self, method: &Method, query: &Query) -> Asked {
        let slash = if self.subresource.is_empty() { "" } else { "/" };
        let verb = match (method, self.name.is_empty()) {
            (&Method::GET, true) if is_true(query, "watch") => "watch",
            (&Method::GET, true) => "list",
            (&Method::GET, false) => "get",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, true) => "deletecollection",
            (&Method::DELETE, false) => "delete",
            _ => "",
        };
        Asked {
            verb,
            group: self.resource.group.clone(),
            resource: format!("{}{slash}{}", self.resource.plural, self.subresource),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

pub(super) fn is_true(query: &Query, key: &str) -> bool {
    query.get(key).is_some_and(|v| v == "true" || v == "1")
}

pub(super) fn query(text: Option<&str>) -> Query {
    let pairs = text.unwrap_or_default().split('&').filter(|p| !p.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Percent-decoding of a query's part.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => {
                std::str::from_utf8(&[*high, *low]).ok().and_then(|h| u8::from_str_radix(h, 16).ok())
            }
            _ => None,
        };
        rest = if escaped.is_some() { &tail[2..] } else { tail };
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A body as JSON; as YAML where it is not.
///
/// # Errors
/// 400 where it is neither.
pub(super) fn body(bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).or_else(|_| {
        let text = std::str::from_utf8(bytes).map_err(|e| ApiError::bad_request(e.to_string()))?;
        serde_saphyr::from_str(text).map_err(|e| ApiError::bad_request(format!("error decoding the body: {e}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Target {
        target(&Registry::new(), path).unwrap().unwrap()
    }

    #[test]
    fn paths_name_resources() {
        let service = parsed("/api/v1/namespaces/shop/services/web/status");
        assert_eq!((&*service.namespace, &*service.name, &*service.subresource), ("shop", "web", "status"));
        assert_eq!(service.resource.kind, "Service");
        let namespace = parsed("/api/v1/namespaces/shop");
        assert_eq!((&*namespace.resource.kind, &*namespace.name, &*namespace.namespace), ("Namespace", "shop", ""));
        assert_eq!(parsed("/apis/discovery.k8s.io/v1/endpointslices").resource.kind, "EndpointSlice");
        assert!(target(&Registry::new(), "/api/v1/services/web").unwrap().is_err());
        assert!(target(&Registry::new(), "/api/v1/namespaces/a/leases/b/status").unwrap().is_err());
        assert!(target(&Registry::new(), "/apis/apps/v1").is_none());
    }

    #[test]
    fn the_core_view_of_events_is_stored_elsewhere() {
        let events = parsed("/api/v1/namespaces/a/events");
        assert_eq!((events.resource.group.as_str(), events.stored.group.as_str()), ("", "events.k8s.io"));
    }

    #[test]
    fn queries_are_decoded() {
        let query = query(Some("labelSelector=a%3Db%2Cc&watch=true&x=1+2"));
        assert_eq!(query["labelSelector"], "a=b,c");
        assert_eq!(query["x"], "1 2");
        assert!(is_true(&query, "watch"));
    }
}
