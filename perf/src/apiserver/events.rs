//! Events are stored once, in the form of `events.k8s.io/v1`; `/api/v1/…/events` shows them in the core form, which is
//! what `kubectl describe` reads. Source: `pkg/apis/events/v1/conversion.go`.

use serde_json::{Map, Value, json};

/// Stored name, core name.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

pub(super) fn to_core(event: &Value) -> Value {
    let mut core = renamed(event, |(stored, core)| (stored, core));
    core.insert("apiVersion".into(), json!("v1"));
    // An Event of the new form has a time and a series where the old one has two times and a count.
    let series = event.get("series").cloned().unwrap_or(Value::Null);
    let time = event.get("eventTime").cloned().unwrap_or(Value::Null);
    if core.get("firstTimestamp").is_none_or(Value::is_null) {
        core.insert("firstTimestamp".into(), time.clone());
        core.insert("lastTimestamp".into(), series.get("lastObservedTime").cloned().unwrap_or(time));
    }
    if let Some(count) = series.get("count") {
        core.insert("count".into(), count.clone());
    }
    if core.get("source").is_none_or(Value::is_null) {
        core.insert("source".into(), json!({"component": event.get("reportingController")}));
    }
    Value::Object(core)
}

pub(super) fn from_core(event: &Value) -> Value {
    let mut stored = renamed(event, |(stored, core)| (core, stored));
    stored.insert("apiVersion".into(), json!("events.k8s.io/v1"));
    Value::Object(stored)
}

fn renamed(
    event: &Value,
    direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Map<String, Value> {
    let mut map = event.as_object().cloned().unwrap_or_default();
    for pair in RENAMED {
        let (from, to) = direction(*pair);
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_form_names_things_its_own_way() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "note": "hello", "regarding": {"name": "s"},
            "eventTime": "t1", "reportingController": "penstock", "series": {"count": 3, "lastObservedTime": "t2"}});
        let core = to_core(&event);
        assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("hello"), &json!("s")));
        assert_eq!(
            (&core["firstTimestamp"], &core["lastTimestamp"], &core["count"]),
            (&json!("t1"), &json!("t2"), &json!(3))
        );
        assert_eq!(from_core(&core)["note"], "hello");
    }
}
