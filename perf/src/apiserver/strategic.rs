//! Strategic merge patch: lists merge by key where the API type says so.
//! Source: `apimachinery/pkg/util/strategicpatch` and the API types' `patchStrategy` tags.

use serde_json::{Map, Value};

use super::kinds::{ListShape, Resource, merge_shape};
use super::object::ApiError;

const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";
const DIRECTIVE: &str = "$patch";

/// # Errors
/// 400 where the patch's form does not fit the object's.
pub(super) fn merge(resource: &Resource, object: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err(ApiError::bad_request("a strategic merge patch is an object"));
    };
    Merger { resource, path: Vec::new() }.maps(object, patch)
}

struct Merger<'a> {
    resource: &'a Resource,
    path: Vec<String>,
}

impl Merger<'_> {
    fn maps(&mut self, object: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), ApiError> {
        match patch.get(DIRECTIVE).and_then(Value::as_str) {
            Some("replace") => {
                object.clear();
                object.extend(plain(patch));
                return Ok(());
            }
            Some("delete") => {
                object.clear();
                return Ok(());
            }
            _ => {}
        }
        // Deletions from a list come before additions to it, whatever the order of the keys.
        for (key, value) in patch {
            if let Some(field) = key.strip_prefix(DELETE_FROM) {
                delete_primitives(object, field, value)?;
            }
        }
        for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
            self.path.push(key.clone());
            let result = self.field(object, key, value);
            self.path.pop();
            result?;
        }
        for (key, value) in patch {
            if let (Some(field), Value::Array(order)) = (key.strip_prefix(ORDER), value) {
                self.path.push(field.to_owned());
                self.order(object, field, order);
                self.path.pop();
            }
        }
        Ok(())
    }

    fn field(&mut self, object: &mut Map<String, Value>, key: &str, value: &Value) -> Result<(), ApiError> {
        match (value, object.get_mut(key)) {
            (Value::Null, _) => {
                object.remove(key);
            }
            (Value::Object(patch), Some(Value::Object(inner))) => self.maps(inner, patch)?,
            (Value::Object(patch), _) => {
                let mut inner = Map::new();
                self.maps(&mut inner, patch)?;
                object.insert(key.to_owned(), Value::Object(inner));
            }
            (Value::Array(patch), old) => {
                let old = match old {
                    Some(Value::Array(old)) => std::mem::take(old),
                    _ => Vec::new(),
                };
                let merged = self.lists(old, patch)?;
                object.insert(key.to_owned(), Value::Array(merged));
            }
            (scalar, _) => {
                object.insert(key.to_owned(), scalar.clone());
            }
        }
        Ok(())
    }

    fn shape(&self) -> ListShape {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        merge_shape(self.resource, &path)
    }

    fn lists(&mut self, mut old: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, ApiError> {
        match self.shape() {
            ListShape::Atomic => Ok(patch.to_vec()),
            ListShape::Set => {
                for value in patch {
                    if !old.contains(value) {
                        old.push(value.clone());
                    }
                }
                Ok(old)
            }
            ListShape::Map(keys) => self.items(old, patch, keys.first().map_or("", String::as_str)),
        }
    }

    fn items(&mut self, mut old: Vec<Value>, patch: &[Value], key: &str) -> Result<Vec<Value>, ApiError> {
        if patch.iter().any(|i| i.get(DIRECTIVE).and_then(Value::as_str) == Some("replace")) {
            return Ok(patch.iter().filter(|i| i.get(DIRECTIVE).is_none()).cloned().collect());
        }
        for item in patch {
            let (Value::Object(fields), Some(id)) = (item, item.get(key)) else {
                let path = self.path.join(".");
                return Err(ApiError::bad_request(format!(
                    "map: {item} does not contain declared merge key: {key} (in {path})"
                )));
            };
            let found = old.iter().position(|o| o.get(key) == Some(id));
            let deletes = item.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
            match (found, deletes) {
                (Some(at), true) => {
                    old.remove(at);
                }
                (Some(at), false) => {
                    if let Some(target) = old[at].as_object_mut() {
                        self.maps(target, fields)?;
                    }
                }
                (None, true) => {}
                (None, false) => {
                    let mut new = Map::new();
                    self.maps(&mut new, fields)?;
                    old.push(Value::Object(new));
                }
            }
        }
        Ok(old)
    }

    /// `$setElementOrder`: what it names comes in its order, what it does not name keeps its place after.
    fn order(&self, object: &mut Map<String, Value>, field: &str, order: &[Value]) {
        let Some(Value::Array(list)) = object.get_mut(field) else { return };
        let key = match self.shape() {
            ListShape::Map(keys) => keys.first().cloned().unwrap_or_default(),
            _ => String::new(),
        };
        let rank = |item: &Value| {
            let same = |o: &Value| if key.is_empty() { o == item } else { o.get(&key) == item.get(&key) };
            order.iter().position(same).unwrap_or(usize::MAX)
        };
        list.sort_by_key(rank);
    }
}

fn delete_primitives(object: &mut Map<String, Value>, field: &str, values: &Value) -> Result<(), ApiError> {
    let Value::Array(values) = values else {
        return Err(ApiError::bad_request(format!("{DELETE_FROM}{field}: a list is needed")));
    };
    if let Some(Value::Array(list)) = object.get_mut(field) {
        list.retain(|v| !values.contains(v));
    }
    Ok(())
}

fn plain(patch: &Map<String, Value>) -> impl Iterator<Item = (String, Value)> + '_ {
    patch.iter().filter(|(k, _)| !k.starts_with('$')).map(|(k, v)| (k.clone(), v.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::{Registry, SERVICES};
    use super::*;

    fn patched(mut object: Value, patch: &Value) -> Value {
        let resource = Registry::new().by_id(SERVICES).unwrap();
        merge(&resource, &mut object, patch).unwrap();
        object
    }

    #[test]
    fn conditions_merge_by_type() {
        let old = json!({"status": {"conditions": [{"type": "a", "status": "True", "x": 1}, {"type": "b"}]}});
        let new = patched(old, &json!({"status": {"conditions": [{"type": "a", "status": "False"}, {"type": "c"}]}}));
        assert_eq!(
            new["status"]["conditions"],
            json!([{"type": "a", "status": "False", "x": 1}, {"type": "b"}, {"type": "c"}])
        );
    }

    #[test]
    fn a_condition_is_deleted_by_directive() {
        let old = json!({"status": {"conditions": [{"type": "a"}, {"type": "b"}]}});
        let new = patched(old, &json!({"status": {"conditions": [{"type": "a", "$patch": "delete"}]}}));
        assert_eq!(new["status"]["conditions"], json!([{"type": "b"}]));
    }

    #[test]
    fn finalizers_are_a_set() {
        let old = json!({"metadata": {"finalizers": ["x", "y"]}});
        let added = patched(old.clone(), &json!({"metadata": {"finalizers": ["y", "z"]}}));
        assert_eq!(added["metadata"]["finalizers"], json!(["x", "y", "z"]));
        let removed = patched(old, &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}));
        assert_eq!(removed["metadata"]["finalizers"], json!(["y"]));
    }

    #[test]
    fn ingress_is_replaced_as_a_whole_and_null_removes() {
        let old = json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}]}}});
        let new = patched(old.clone(), &json!({"status": {"loadBalancer": {"ingress": [{"ip": "3.3.3.3"}]}}}));
        assert_eq!(new["status"]["loadBalancer"]["ingress"], json!([{"ip": "3.3.3.3"}]));
        let gone = patched(old, &json!({"status": {"loadBalancer": {"ingress": null}}}));
        assert_eq!(gone["status"]["loadBalancer"], json!({}));
    }

    #[test]
    fn order_is_kept_as_said() {
        let old = json!({"spec": {"ports": [{"port": 80}, {"port": 443}]}});
        let patch = json!({"spec": {"$setElementOrder/ports": [{"port": 443}, {"port": 81}, {"port": 80}],
            "ports": [{"port": 81}]}});
        assert_eq!(patched(old, &patch)["spec"]["ports"], json!([{"port": 443}, {"port": 81}, {"port": 80}]));
    }

    #[test]
    fn an_item_without_its_key_is_refused() {
        let resource = Registry::new().by_id(SERVICES).unwrap();
        let mut object = json!({});
        assert!(merge(&resource, &mut object, &json!({"status": {"conditions": [{"status": "True"}]}})).is_err());
    }
}
