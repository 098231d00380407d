//! Small helpers on objects as JSON.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

/// One stored version of an object. Never changed: a write makes a new one.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) value: Value,
    pub(super) revision: u64,
    /// Lists and watches of many clients send the same bytes.
    json: OnceLock<Bytes>,
}

impl Object {
    pub(super) fn new(value: Value, revision: u64) -> Self {
        Self { value, revision, json: OnceLock::new() }
    }

    pub(super) fn json(&self) -> &Bytes {
        self.json.get_or_init(|| to_bytes(&self.value))
    }
}

/// A `Value` always serializes: its keys are strings.
pub(super) fn to_bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

pub(super) fn str_at<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn bool_at(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

pub(super) fn int_at(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

pub(super) fn list_at<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The object's field as a map, made where it is missing.
pub(super) fn map_of<'v>(value: &'v mut Value, field: &str) -> &'v mut Map<String, Value> {
    if !value.get(field).is_some_and(Value::is_object) {
        value[field] = json!({});
    }
    match value.get_mut(field) {
        Some(Value::Object(map)) => map,
        _ => unreachable!("made above"),
    }
}

pub(super) fn set_or_remove(map: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => map.insert(field.to_owned(), value),
        None => map.remove(field),
    };
}

pub(super) fn name(value: &Value) -> &str {
    str_at(value, "/metadata/name")
}

pub(super) fn namespace(value: &Value) -> &str {
    str_at(value, "/metadata/namespace")
}

pub(super) fn is_deleting(value: &Value) -> bool {
    value.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null())
}

pub(super) fn has_finalizers(value: &Value) -> bool {
    !list_at(value, "/metadata/finalizers").is_empty() || !list_at(value, "/spec/finalizers").is_empty()
}

pub(super) fn revision_of(value: &Value) -> &str {
    str_at(value, "/metadata/resourceVersion")
}

/// Equal but for what every write changes.
pub(super) fn same_content(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let fields = |map: &Map<String, Value>| map.keys().filter(|k| *k != "metadata").count();
    fields(a) == fields(b)
        && a.iter().all(
            |(key, value)| {
                if key == "metadata" { same_metadata(value, b.get(key)) } else { b.get(key) == Some(value) }
            },
        )
}

fn same_metadata(a: &Value, b: Option<&Value>) -> bool {
    let without = |v: &Value| {
        let mut v = v.clone();
        if let Some(map) = v.as_object_mut() {
            map.remove("resourceVersion");
            map.remove("managedFields");
        }
        v
    };
    b.is_some_and(|b| without(a) == without(b))
}

/// Now, as Kubernetes writes times.
pub(super) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seconds = i64::try_from(seconds).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// A UUID in form; unique within this server, which is all a test needs.
pub(super) fn uid(counter: u64) -> String {
    // The start time keeps the objects of two servers of one test apart.
    let salt = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() % (1 << 62)))
        .unwrap_or_default();
    let (a, b) = (mix(salt), mix(counter ^ 0x9e37_79b9_7f4a_7c15));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        counter & 0xffff_ffff_ffff
    )
}

/// The finalizer of splitmix64: spreads a counter over all bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What an API server answers where it refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub code: u16,
    /// `Conflict`, `NotFound`, …: what clients look at.
    pub reason: &'static str,
    pub message: String,
    /// Seconds, as `Retry-After`.
    pub retry_after: Option<u64>,
    pub(super) details: Value,
}

impl ApiError {
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None, details: Value::Null }
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self.details = json!({"retryAfterSeconds": seconds});
        self
    }

    /// 429 as API priority and fairness sends it.
    #[must_use]
    pub fn too_many_requests(seconds: u64) -> Self {
        Self::new(
            429,
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later",
        )
        .retry_after(seconds)
    }

    #[must_use]
    pub fn internal() -> Self {
        Self::new(500, "InternalError", "Internal error occurred: etcdserver: request timed out")
    }

    /// 410 as a compacted resourceVersion gets it.
    #[must_use]
    pub fn gone(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    #[must_use]
    pub fn conflict(resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"))
    }

    pub(super) fn not_found(resource: &str, name: &str) -> Self {
        let mut error = Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"));
        error.details = json!({"name": name, "kind": resource});
        error
    }

    pub(super) fn exists(resource: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn invalid(kind: &str, name: &str, faults: &[Fault]) -> Self {
        let list: Vec<String> = faults.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
        let text = if list.len() == 1 { list.concat() } else { format!("[{}]", list.join(", ")) };
        let mut error = Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {text}"));
        let causes: Vec<Value> = faults
            .iter()
            .map(|f| json!({"reason": "FieldValueInvalid", "field": f.field, "message": f.message}))
            .collect();
        error.details = json!({"name": name, "kind": kind, "causes": causes});
        error
    }

    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// One cause of a 422.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub(super) field: String,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}
