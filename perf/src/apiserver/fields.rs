//! Field ownership: who manages which field, and server-side apply on top of it.
//! Source: the structured-merge-diff specification and `managedFields` in the API concepts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::kinds::{ListShape, Resource, apply_shape, is_atomic_map};
use super::object::{ApiError, list_at, map_of, now, str_at};

/// A field's place, in the notation of `fieldsV1`: `f:NAME`, `k:{KEYS}`, `v:VALUE`.
type Path = Vec<String>;
type Fields = BTreeSet<Path>;

/// Who writes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) subresource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    name: String,
    operation: &'static str,
    subresource: String,
}

type Owners = BTreeMap<Entry, Fields>;

const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

/// Fields the server itself keeps: owned by nobody.
const SERVERS_OWN: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generateName",
    "selfLink",
];

/// Notes who owns what after an ordinary write: the changed fields are the writer's, and nobody else's any more.
pub(super) fn note_update(resource: &Resource, old: &Value, new: &mut Value, manager: &Manager) {
    let (before, after) = (leaves(resource, old), leaves(resource, new));
    let changed: Fields =
        after.iter().filter(|(path, value)| before.get(*path) != Some(value)).map(|(path, _)| path.clone()).collect();
    let mut owners = read(old);
    for fields in owners.values_mut() {
        fields.retain(|path| after.contains_key(path) && !changed.contains(path));
    }
    if !changed.is_empty() {
        let entry = Entry { name: manager.name.clone(), operation: UPDATE, subresource: manager.subresource.clone() };
        owners.entry(entry).or_default().extend(changed);
    }
    write(resource, new, owners, old);
}

/// What `live` becomes when `manager` applies `applied`.
///
/// # Errors
/// 409 naming each field that another manager owns with another value, unless forced.
pub(super) fn apply(
    resource: &Resource,
    live: &Value,
    applied: &Value,
    manager: &Manager,
    force: bool,
) -> Result<Value, ApiError> {
    let entry = Entry { name: manager.name.clone(), operation: APPLY, subresource: manager.subresource.clone() };
    let wanted: BTreeMap<Path, Value> = leaves(resource, applied);
    let live_leaves = leaves(resource, live);
    let mut owners = read(live);
    let conflicts = conflicts(&owners, &entry, &wanted, &live_leaves);
    if !conflicts.is_empty() && !force {
        return Err(conflict_error(&conflicts));
    }
    for (other, path) in conflicts {
        if let Some(fields) = owners.get_mut(&other) {
            fields.remove(&path);
        }
    }
    let mut new = live.clone();
    merge(resource, &mut new, applied, &mut Vec::new());
    let former = owners.insert(entry.clone(), wanted.keys().cloned().collect()).unwrap_or_default();
    // The longest first: an item's fields go before the item itself.
    let mut dropped: Vec<&Path> = former.iter().filter(|path| !wanted.contains_key(*path)).collect();
    dropped.sort_by_key(|path| std::cmp::Reverse(path.len()));
    for path in dropped {
        if !owners.values().any(|fields| owns_below(fields, path)) {
            remove(&mut new, path);
        }
    }
    let present = leaves(resource, &new);
    for fields in owners.values_mut() {
        fields.retain(|path| present.contains_key(path));
    }
    write(resource, &mut new, owners, live);
    Ok(new)
}

fn conflicts(
    owners: &Owners,
    own: &Entry,
    wanted: &BTreeMap<Path, Value>,
    live: &BTreeMap<Path, Value>,
) -> Vec<(Entry, Path)> {
    let mut found = Vec::new();
    for (entry, fields) in owners.iter().filter(|(entry, _)| *entry != own) {
        for path in fields.iter().filter(|path| wanted.contains_key(*path)) {
            if live.get(path) != wanted.get(path) {
                found.push((entry.clone(), path.clone()));
            }
        }
    }
    found
}

fn conflict_error(conflicts: &[(Entry, Path)]) -> ApiError {
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(entry, path)| {
            let message = format!("conflict with \"{}\"", entry.name);
            json!({"reason": "FieldManagerConflict", "message": message, "field": dotted(path)})
        })
        .collect();
    let (first, path) = &conflicts[0];
    let count = conflicts.len();
    let plural = if count == 1 { "conflict" } else { "conflicts" };
    let message = format!("Apply failed with {count} {plural}: {plural} with \"{}\": {}", first.name, dotted(path));
    let mut error = ApiError::new(409, "Conflict", message);
    error.details = json!({"causes": causes});
    error
}

fn dotted(path: &Path) -> String {
    path.iter()
        .map(|part| match part.split_once(':') {
            Some(("f", name)) => format!(".{name}"),
            Some((_, key)) => format!("[{key}]"),
            None => String::new(),
        })
        .collect()
}

/// Every field an owner can have, with its value: scalars, atomic lists and maps, items of sets, and of keyed lists
/// the items themselves beside their fields.
fn leaves(resource: &Resource, object: &Value) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    if let Value::Object(map) = object {
        for (field, value) in map.iter().filter(|(f, _)| *f != "apiVersion" && *f != "kind") {
            collect(resource, value, &mut vec![format!("f:{field}")], &mut vec![field.clone()], &mut found);
        }
    }
    found
}

fn collect(
    resource: &Resource,
    value: &Value,
    path: &mut Path,
    names: &mut Vec<String>,
    found: &mut BTreeMap<Path, Value>,
) {
    let plain: Vec<&str> = names.iter().map(String::as_str).collect();
    match value {
        Value::Object(map) if !map.is_empty() && !is_atomic_map(resource, &plain) => {
            let top = plain == ["metadata"];
            for (field, value) in map.iter().filter(|(f, _)| !top || !SERVERS_OWN.contains(&f.as_str())) {
                path.push(format!("f:{field}"));
                names.push(field.clone());
                collect(resource, value, path, names, found);
                names.pop();
                path.pop();
            }
        }
        Value::Array(items) => match apply_shape(resource, &plain) {
            ListShape::Atomic => {
                found.insert(path.clone(), value.clone());
            }
            ListShape::Set => {
                for item in items {
                    path.push(format!("v:{item}"));
                    found.insert(path.clone(), item.clone());
                    path.pop();
                }
            }
            ListShape::Map(keys) => {
                for item in items {
                    path.push(format!("k:{}", item_key(item, &keys)));
                    found.insert(path.clone(), Value::Null);
                    collect(resource, item, path, names, found);
                    path.pop();
                }
            }
        },
        other => {
            found.insert(path.clone(), other.clone());
        }
    }
}

fn item_key(item: &Value, keys: &[String]) -> String {
    let mut key = Map::new();
    for name in keys {
        // The API's own default: a port that names no protocol is TCP.
        let default = if name == "protocol" { json!("TCP") } else { Value::Null };
        key.insert(name.clone(), item.get(name).cloned().unwrap_or(default));
    }
    Value::Object(key).to_string()
}

fn merge(resource: &Resource, live: &mut Value, applied: &Value, names: &mut Vec<String>) {
    let plain: Vec<&str> = names.iter().map(String::as_str).collect();
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if !is_atomic_map(resource, &plain) => {
            for (field, value) in applied {
                names.push(field.clone());
                match live.get_mut(field) {
                    Some(old) if !old.is_null() => merge(resource, old, value, names),
                    _ => {
                        live.insert(field.clone(), value.clone());
                    }
                }
                names.pop();
            }
        }
        (Value::Array(live), Value::Array(applied)) => match apply_shape(resource, &plain) {
            ListShape::Atomic => live.clone_from(applied),
            ListShape::Set => {
                for item in applied {
                    if !live.contains(item) {
                        live.push(item.clone());
                    }
                }
            }
            ListShape::Map(keys) => {
                for item in applied {
                    let key = item_key(item, &keys);
                    match live.iter_mut().find(|old| item_key(old, &keys) == key) {
                        Some(old) => merge(resource, old, item, names),
                        None => live.push(item.clone()),
                    }
                }
            }
        },
        (live, applied) => *live = applied.clone(),
    }
}

/// Whether the field itself or, of an item, anything in it is owned.
fn owns_below(fields: &Fields, path: &Path) -> bool {
    fields.range(path.clone()..).next().is_some_and(|next| next.starts_with(path))
}

/// Removes the field and what it leaves empty.
fn remove(value: &mut Value, path: &[String]) {
    let Some((part, rest)) = path.split_first() else { return };
    match (part.split_once(':'), &mut *value) {
        (Some(("f", name)), Value::Object(map)) => {
            if rest.is_empty() {
                map.remove(name);
            } else if let Some(inner) = map.get_mut(name) {
                remove(inner, rest);
                if is_empty(inner) {
                    map.remove(name);
                }
            }
        }
        (Some(("v", text)), Value::Array(items)) => items.retain(|item| item.to_string() != text),
        (Some(("k", text)), Value::Array(items)) => {
            let Ok(Value::Object(key)) = serde_json::from_str::<Value>(text) else { return };
            let matches = |item: &Value| key.iter().all(|(k, v)| item.get(k).unwrap_or(&Value::Null) == v);
            if rest.is_empty() {
                items.retain(|item| !matches(item));
            } else if let Some(item) = items.iter_mut().find(|item| matches(item)) {
                // The key's own fields stay as long as the item does.
                if !matches!(rest, [only] if only.strip_prefix("f:").is_some_and(|f| key.contains_key(f))) {
                    remove(item, rest);
                }
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

fn read(object: &Value) -> Owners {
    let mut owners = Owners::new();
    for entry in list_at(object, "/metadata/managedFields") {
        let mut fields = Fields::new();
        if let Some(trie) = entry.get("fieldsV1") {
            from_trie(trie, &mut Vec::new(), &mut fields);
        }
        let key = Entry {
            name: str_at(entry, "/manager").to_owned(),
            operation: if str_at(entry, "/operation") == APPLY { APPLY } else { UPDATE },
            subresource: str_at(entry, "/subresource").to_owned(),
        };
        owners.entry(key).or_default().extend(fields);
    }
    owners
}

/// Writes `managedFields`; an entry that did not change keeps its time.
fn write(resource: &Resource, new: &mut Value, owners: Owners, old: &Value) {
    let before = list_at(old, "/metadata/managedFields");
    let mut entries = Vec::new();
    for (entry, fields) in owners.into_iter().filter(|(_, fields)| !fields.is_empty()) {
        let mut json = json!({
            "manager": entry.name,
            "operation": entry.operation,
            "apiVersion": resource.api_version(),
            "fieldsType": "FieldsV1",
            "fieldsV1": to_trie(&fields),
        });
        if !entry.subresource.is_empty() {
            json["subresource"] = json!(entry.subresource);
        }
        let same = |b: &&Value| {
            let mut b = (*b).clone();
            b.as_object_mut().map(|b| b.remove("time"));
            b == json
        };
        let time = before.iter().find(same).and_then(|b| b.get("time").cloned());
        json["time"] = time.unwrap_or_else(|| json!(now()));
        entries.push(json);
    }
    let metadata = map_of(new, "metadata");
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), Value::Array(entries));
    }
}

fn to_trie(fields: &Fields) -> Value {
    let mut root = Map::new();
    for path in fields {
        let mut at = &mut root;
        // An item that is owned beside its fields says so.
        let itself = path.last().filter(|p| p.starts_with("k:")).map(|_| ".".to_owned());
        for part in path.iter().cloned().chain(itself) {
            let slot = at.entry(part).or_insert_with(|| json!({}));
            let Value::Object(next) = slot else { break };
            at = next;
        }
    }
    Value::Object(root)
}

fn from_trie(trie: &Value, path: &mut Path, fields: &mut Fields) {
    let Value::Object(map) = trie else { return };
    if map.is_empty() && !path.is_empty() {
        fields.insert(path.clone());
    }
    for (part, inner) in map {
        if part == "." {
            fields.insert(path.clone());
            continue;
        }
        path.push(part.clone());
        from_trie(inner, path, fields);
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{Registry, SERVICES};
    use super::*;

    fn services() -> std::sync::Arc<Resource> {
        Registry::new().by_id(SERVICES).unwrap()
    }

    fn manager(name: &str) -> Manager {
        Manager { name: name.into(), subresource: "status".into() }
    }

    fn condition(kind: &str, status: &str) -> Value {
        json!({"type": kind, "status": status})
    }

    fn conditions(list: &[Value]) -> Value {
        json!({"status": {"conditions": list}})
    }

    fn applied(live: &Value, by: &str, config: &Value) -> Value {
        apply(&services(), live, config, &manager(by), true).unwrap()
    }

    #[test]
    fn leaving_out_an_own_condition_deletes_it_and_only_it() {
        let live = applied(&json!({}), "us", &conditions(&[condition("a", "True"), condition("b", "True")]));
        let live = applied(&live, "them", &conditions(&[condition("c", "True")]));
        let live = applied(&live, "us", &conditions(&[condition("a", "False")]));
        assert_eq!(live["status"]["conditions"], json!([condition("a", "False"), condition("c", "True")]));
    }

    #[test]
    fn a_shared_condition_survives_until_its_last_owner_leaves_it_out() {
        let live = applied(&json!({}), "us", &conditions(&[condition("a", "True")]));
        let live = applied(&live, "them", &conditions(&[condition("a", "True")]));
        let live = applied(&live, "us", &conditions(&[]));
        assert_eq!(live["status"]["conditions"], json!([condition("a", "True")]));
        let live = applied(&live, "them", &json!({}));
        assert_eq!(live.get("status"), None);
    }

    #[test]
    fn another_value_of_anothers_field_is_a_conflict() {
        let live = applied(&json!({}), "them", &conditions(&[condition("a", "True")]));
        let change = conditions(&[condition("a", "False")]);
        let error = apply(&services(), &live, &change, &manager("us"), false).unwrap_err();
        assert_eq!((error.code, error.reason), (409, "Conflict"));
        assert!(error.message.contains("them") && error.message.contains(".status.conditions"), "{}", error.message);
        assert!(apply(&services(), &live, &conditions(&[condition("a", "True")]), &manager("us"), false).is_ok());
    }

    #[test]
    fn an_update_takes_the_field_from_its_applier() {
        let live = applied(&json!({}), "us", &conditions(&[condition("a", "True")]));
        let mut new = live.clone();
        new["status"]["conditions"][0]["status"] = json!("False");
        note_update(&services(), &live, &mut new, &manager("them"));
        let error = apply(&services(), &new, &conditions(&[condition("a", "True")]), &manager("us"), false);
        assert_eq!(error.unwrap_err().code, 409);
    }

    #[test]
    fn the_notation_survives_a_round_trip() {
        let live = applied(&json!({}), "us", &conditions(&[condition("a", "True")]));
        let again = applied(&live, "us", &conditions(&[condition("a", "True")]));
        assert_eq!(live, again);
        let key = r#"k:{"type":"a"}"#;
        let fields = &live["metadata"]["managedFields"][0]["fieldsV1"]["f:status"]["f:conditions"][key];
        assert_eq!(*fields, json!({".": {}, "f:status": {}, "f:type": {}}));
    }
}
