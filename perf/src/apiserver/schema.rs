//! Custom objects against their CRD's schema: unknown fields pruned, defaults filled in, the rest checked.

use serde_json::{Map, Value};

use super::object::Fault;

/// Prunes and defaults in place; returns what is wrong.
pub(super) fn admit(schema: &Value, object: &mut Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let properties = schema.get("properties").and_then(Value::as_object);
    if let Value::Object(map) = object {
        for (field, value) in map.iter_mut().filter(|(f, _)| !is_meta(f)) {
            if let Some(inner) = properties.and_then(|p| p.get(field)) {
                check(inner, value, field, &mut faults);
            }
        }
        map.retain(|field, _| is_meta(field) || properties.is_some_and(|p| p.contains_key(field)));
        required(schema, map, "", &mut faults);
    }
    faults
}

/// What is wrong with one value; prunes and defaults in place.
pub(super) fn value_faults(schema: &Value, value: &mut Value, path: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    check(schema, value, path, &mut faults);
    faults
}

fn is_meta(field: &str) -> bool {
    matches!(field, "apiVersion" | "kind" | "metadata")
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn check(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<Fault>) {
    if value.is_null() {
        if !flag(schema, "nullable") {
            faults.push(Fault::new(path, "Invalid value: \"null\""));
        }
        return;
    }
    if flag(schema, "x-kubernetes-int-or-string") {
        return;
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let fits = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => true,
    };
    if !fits {
        faults.push(Fault::new(path, format!("Invalid value: {value}: must be of type {kind}")));
        return;
    }
    match value {
        Value::Object(map) => check_map(schema, map, path, faults),
        Value::Array(items) => check_list(schema, items, path, faults),
        _ => {}
    }
    limits(schema, value, path, faults);
}

fn check_map(schema: &Value, map: &mut Map<String, Value>, path: &str, faults: &mut Vec<Fault>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (field, inner) in properties {
            if let (false, Some(default)) = (map.contains_key(field), inner.get("default")) {
                map.insert(field.clone(), default.clone());
            }
            if let Some(value) = map.get_mut(field) {
                check(inner, value, &format!("{path}.{field}"), faults);
            }
        }
        if !flag(schema, "x-kubernetes-preserve-unknown-fields") {
            map.retain(|field, _| properties.contains_key(field));
        }
    } else if let Some(inner) = schema.get("additionalProperties").filter(|a| a.is_object()) {
        for (field, value) in map.iter_mut() {
            check(inner, value, &format!("{path}.{field}"), faults);
        }
    }
    required(schema, map, path, faults);
}

fn required(schema: &Value, map: &Map<String, Value>, path: &str, faults: &mut Vec<Fault>) {
    let fields = schema.get("required").and_then(Value::as_array);
    for field in fields.into_iter().flatten().filter_map(Value::as_str).filter(|f| !map.contains_key(*f)) {
        let dot = if path.is_empty() { "" } else { "." };
        faults.push(Fault::new(format!("{path}{dot}{field}"), "Required value"));
    }
}

fn check_list(schema: &Value, items: &mut [Value], path: &str, faults: &mut Vec<Fault>) {
    if let Some(inner) = schema.get("items") {
        for (at, item) in items.iter_mut().enumerate() {
            check(inner, item, &format!("{path}[{at}]"), faults);
        }
    }
    let count = u64::try_from(items.len()).unwrap_or(u64::MAX);
    if schema.get("minItems").and_then(Value::as_u64).is_some_and(|least| count < least) {
        faults.push(Fault::new(path, format!("Invalid value: {count}: should have more items")));
    }
    if schema.get("maxItems").and_then(Value::as_u64).is_some_and(|most| count > most) {
        faults.push(Fault::new(path, format!("Too many: {count}")));
    }
}

fn limits(schema: &Value, value: &Value, path: &str, faults: &mut Vec<Fault>) {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let list = allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        faults.push(Fault::new(path, format!("Unsupported value: {value}: supported values: {list}")));
    }
    let Some(number) = value.as_f64() else { return };
    if schema.get("minimum").and_then(Value::as_f64).is_some_and(|least| number < least) {
        faults
            .push(Fault::new(path, format!("Invalid value: {value}: should be greater than or equal to the minimum")));
    }
    if schema.get("maximum").and_then(Value::as_f64).is_some_and(|most| number > most) {
        faults.push(Fault::new(path, format!("Invalid value: {value}: should be less than or equal to the maximum")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "required": ["spec"], "properties": {
            "spec": {"type": "object", "required": ["addresses"], "properties": {
                "addresses": {"type": "array", "items": {"type": "string"}},
                "autoAssign": {"type": "boolean", "default": true},
                "operator": {"type": "string", "enum": ["In", "NotIn"]},
                "priority": {"type": "integer", "minimum": 0}}}}})
    }

    #[test]
    fn defaults_are_filled_in_and_the_unknown_is_pruned() {
        let mut object = json!({"kind": "X", "metadata": {"name": "a"}, "other": 1, "spec": {"addresses": [], "x": 1}});
        assert_eq!(admit(&schema(), &mut object), []);
        assert_eq!(
            object,
            json!({"kind": "X", "metadata": {"name": "a"}, "spec": {"addresses": [], "autoAssign": true}})
        );
    }

    #[test]
    fn what_does_not_fit_is_named_by_its_path() {
        let fields = |mut object: Value| admit(&schema(), &mut object).into_iter().map(|f| f.field).collect::<Vec<_>>();
        assert_eq!(fields(json!({})), ["spec"]);
        assert_eq!(fields(json!({"spec": {}})), ["spec.addresses"]);
        assert_eq!(fields(json!({"spec": {"addresses": [1]}})), ["spec.addresses[0]"]);
        assert_eq!(fields(json!({"spec": {"addresses": [], "operator": "Is", "priority": -1}})).len(), 2);
    }
}
