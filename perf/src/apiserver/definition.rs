//! What a real server asks of a `CustomResourceDefinition`: above all that its schema is structural.
//! Source: `apiextensions-apiserver/pkg/apis/apiextensions/validation` and `pkg/apiserver/schema`.

use serde_json::Value;

use super::object::{Fault, bool_at, list_at, name, str_at};
use super::schema;

pub(super) fn faults(crd: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let (plural, group) = (str_at(crd, "/spec/names/plural"), str_at(crd, "/spec/group"));
    if name(crd) != format!("{plural}.{group}") {
        faults.push(Fault::new("metadata.name", "Invalid value: must be spec.names.plural+\".\"+spec.group"));
    }
    let versions = list_at(crd, "/spec/versions");
    if versions.iter().filter(|v| bool_at(v, "/storage")).count() != 1 {
        faults.push(Fault::new("spec.versions", "Invalid value: must have exactly one version marked as storage"));
    }
    for (at, version) in versions.iter().enumerate() {
        let place = format!("spec.versions[{at}]");
        match version.pointer("/schema/openAPIV3Schema") {
            None => faults.push(Fault::new(format!("{place}.schema.openAPIV3Schema"), "Required value")),
            Some(schema) => structural(schema, &format!("{place}.schema.openAPIV3Schema"), &mut faults),
        }
        for (at, column) in list_at(version, "/additionalPrinterColumns").iter().enumerate() {
            let place = format!("{place}.additionalPrinterColumns[{at}]");
            if !matches!(str_at(column, "/type"), "integer" | "number" | "string" | "boolean" | "date") {
                faults.push(Fault::new(format!("{place}.type"), "Invalid value"));
            }
            if str_at(column, "/name").is_empty() || !str_at(column, "/jsonPath").starts_with('.') {
                faults.push(Fault::new(format!("{place}.jsonPath"), "Invalid value: must be a simple json path"));
            }
        }
    }
    faults
}

const FORBIDDEN: [&str; 12] = [
    "$ref",
    "$schema",
    "additionalItems",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
];
const KNOWN: [&str; 36] = [
    "type",
    "format",
    "title",
    "description",
    "default",
    "nullable",
    "enum",
    "example",
    "externalDocs",
    "items",
    "properties",
    "additionalProperties",
    "required",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
];

fn structural(schema: &Value, place: &str, faults: &mut Vec<Fault>) {
    let Some(map) = schema.as_object() else {
        faults.push(Fault::new(place, "Invalid value: must be an object"));
        return;
    };
    for field in map.keys() {
        if FORBIDDEN.contains(&field.as_str()) {
            faults.push(Fault::new(format!("{place}.{field}"), "Forbidden: not supported in a structural schema"));
        } else if !KNOWN.contains(&field.as_str()) {
            faults.push(Fault::new(format!("{place}.{field}"), "unknown field"));
        }
    }
    let open =
        ["/x-kubernetes-int-or-string", "/x-kubernetes-preserve-unknown-fields"].iter().any(|f| bool_at(schema, f));
    let kind = str_at(schema, "/type");
    if !open && !matches!(kind, "object" | "array" | "string" | "integer" | "number" | "boolean") {
        faults.push(Fault::new(format!("{place}.type"), "Required value: must not be empty for specified fields"));
    }
    if bool_at(schema, "/uniqueItems") {
        faults.push(Fault::new(format!("{place}.uniqueItems"), "Forbidden: uniqueItems cannot be set to true"));
    }
    if kind == "array" && schema.get("items").is_none() {
        faults.push(Fault::new(format!("{place}.items"), "Required value: must be specified"));
    }
    let additional = schema.get("additionalProperties");
    if additional.is_some() && schema.get("properties").is_some() {
        faults.push(Fault::new(format!("{place}.additionalProperties"), "Forbidden: mutual exclusive with properties"));
    }
    if additional == Some(&Value::Bool(false)) {
        faults.push(Fault::new(format!("{place}.additionalProperties"), "Forbidden: cannot be set to false"));
    }
    if str_at(schema, "/x-kubernetes-list-type") == "map" && list_at(schema, "/x-kubernetes-list-map-keys").is_empty() {
        faults.push(Fault::new(format!("{place}.x-kubernetes-list-map-keys"), "Required value"));
    }
    if let Some(default) = schema.get("default") {
        faults.extend(schema::value_faults(schema, &mut default.clone(), &format!("{place}.default")));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (field, inner) in properties.into_iter().flatten() {
        structural(inner, &format!("{place}.properties[{field}]"), faults);
    }
    for (field, inner) in [("items", schema.get("items")), ("additionalProperties", additional)] {
        if let Some(inner) = inner.filter(|inner| inner.is_object()) {
            structural(inner, &format!("{place}.{field}"), faults);
        }
    }
    junctors(schema, place, faults);
}

/// Below them nothing may say what a value is, only what it must be.
fn junctors(schema: &Value, place: &str, faults: &mut Vec<Fault>) {
    let lists = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| list_at(schema, &format!("/{name}")).iter());
    for inner in lists.chain(schema.get("not")) {
        for field in ["type", "description", "title", "default", "nullable", "additionalProperties"] {
            if inner.get(field).is_some() && !bool_at(schema, "/x-kubernetes-int-or-string") {
                faults.push(Fault::new(format!("{place}.{field}"), "Forbidden: must be empty to be structural"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(schema: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        structural(schema, "s", &mut faults);
        faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn what_is_not_structural_is_named() {
        let of = |inner: Value| fields(&json!({"type": "object", "properties": {"x": inner}}));
        assert!(of(json!({"type": "string", "nullable": true, "format": "uint64"})).is_empty());
        assert_eq!(of(json!({"description": "no type"})), ["s.properties[x].type"]);
        assert_eq!(of(json!({"type": ["string", "null"]})), ["s.properties[x].type"]);
        assert_eq!(of(json!({"type": "array"})), ["s.properties[x].items"]);
        assert_eq!(of(json!({"$ref": "#/definitions/y", "type": "object"})), ["s.properties[x].$ref"]);
        assert_eq!(
            of(json!({"type": "object", "additionalProperties": false})),
            ["s.properties[x].additionalProperties"]
        );
        assert_eq!(of(json!({"type": "integer", "default": "one"})), ["s.properties[x].default"]);
        assert_eq!(of(json!({"type": "string", "const": "a"})), ["s.properties[x].const"]);
        assert_eq!(of(json!({"type": "string", "anyOf": [{"type": "string"}]})), ["s.properties[x].type"]);
    }
}
