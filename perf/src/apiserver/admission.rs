//! What each kind adds to the common rules: defaults, allocations, validation.

use serde_json::{Value, json};

use super::kinds::{CRDS, EVENTS, LEASES, NAMESPACES, Resource, SERVICES};
use super::object::{ApiError, Fault, int_at, list_at, map_of, name, namespace, now, str_at};
use super::store::Store;
use super::{definition, names, schema, service, service_faults};

/// Defaults, allocations and validation of a kind.
pub(super) fn prepare(
    store: &mut Store,
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Vec<Fault>, ApiError> {
    if let Some(custom) = &resource.custom {
        return Ok(schema::admit(&custom.schema, object));
    }
    match &*resource.id {
        SERVICES => {
            service::prepare(object, old, &mut store.allocations)?;
            Ok(service_faults::faults(object, old))
        }
        NAMESPACES => {
            let label = name(object).to_owned();
            let metadata = map_of(object, "metadata");
            let mut labels = metadata.remove("labels").unwrap_or_else(|| json!({}));
            labels["kubernetes.io/metadata.name"] = json!(label);
            metadata.insert("labels".into(), labels);
            if old.is_none() {
                object["spec"] = json!({"finalizers": ["kubernetes"]});
                object["status"] = json!({"phase": "Active"});
            }
            Ok(Vec::new())
        }
        CRDS => {
            if old.is_none() {
                establish(object);
            }
            Ok(definition::faults(object))
        }
        EVENTS => Ok(event_faults(object, old)),
        LEASES => Ok(lease_faults(object)),
        _ => Ok(Vec::new()),
    }
}

/// What the apiextensions controllers write a moment later.
fn establish(crd: &mut Value) {
    let names = crd.pointer("/spec/names").cloned().unwrap_or_default();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "InitialNamesAccepted", "message": "the initial names have been accepted", "lastTransitionTime": now()});
    crd["status"] = json!({
        "acceptedNames": names,
        "conditions": [condition("NamesAccepted"), condition("Established")],
        "storedVersions": list_at(crd, "/spec/versions").iter().filter_map(|v| v.get("name")).collect::<Vec<_>>(),
    });
}

/// Source: `pkg/apis/core/validation/events.go`, of the new form.
fn event_faults(event: &Value, old: Option<&Value>) -> Vec<Fault> {
    let mut faults = Vec::new();
    // Events in the old form have no eventTime and are checked less.
    if event.get("eventTime").is_none_or(Value::is_null) {
        return faults;
    }
    for field in ["reportingController", "reportingInstance", "action", "reason"] {
        if str_at(event, &format!("/{field}")).is_empty() {
            faults.push(Fault::new(field, "Required value"));
        }
    }
    for (field, most) in [("note", 1024), ("reason", 128), ("action", 128), ("reportingInstance", 128)] {
        if str_at(event, &format!("/{field}")).len() > most {
            faults.push(Fault::new(field, format!("Invalid value: can have at most {most} characters")));
        }
    }
    if !matches!(str_at(event, "/type"), "Normal" | "Warning") {
        faults.push(Fault::new("type", "Invalid value: must be Normal or Warning"));
    }
    let place = str_at(event, "/regarding/namespace");
    let here = namespace(event);
    if place != here && !(place.is_empty() && here == "default") {
        faults.push(Fault::new("regarding.namespace", "Invalid value: does not match event.namespace"));
    }
    let controller = str_at(event, "/reportingController");
    if !names::is_qualified(controller.split_once('/').map_or(controller, |(_, name)| name)) {
        faults.push(Fault::new("reportingController", "Invalid value: a qualified name is needed"));
    }
    for field in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource"] {
        // What Go makes of nothing at all is no value.
        if event.get(field).is_some_and(|v| !v.is_null() && *v != json!(0) && *v != json!({})) {
            faults.push(Fault::new(field, "Invalid value: needs to be unset"));
        }
    }
    if event.get("series").is_some_and(|series| !series.is_null()) {
        if int_at(event, "/series/count") < 2 {
            faults.push(Fault::new("series.count", "Invalid value: should be at least 2"));
        }
        if str_at(event, "/series/lastObservedTime").is_empty() {
            faults.push(Fault::new("series.lastObservedTime", "Required value"));
        }
    }
    let fixed = [
        "regarding",
        "reason",
        "note",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingController",
        "reportingInstance",
    ];
    for field in fixed.iter().filter(|field| old.is_some_and(|old| old.get(**field) != event.get(**field))) {
        faults.push(Fault::new(*field, "Invalid value: field is immutable"));
    }
    faults
}

/// Source: `pkg/apis/coordination/validation`.
fn lease_faults(lease: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    if lease.pointer("/spec/leaseDurationSeconds").is_some_and(|seconds| seconds.as_i64().is_none_or(|s| s <= 0)) {
        faults.push(Fault::new("spec.leaseDurationSeconds", "Invalid value: must be greater than 0"));
    }
    if int_at(lease, "/spec/leaseTransitions") < 0 {
        faults.push(Fault::new("spec.leaseTransitions", "Invalid value: must be greater than or equal to 0"));
    }
    faults
}
