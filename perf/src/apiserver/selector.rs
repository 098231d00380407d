//! Label and field selectors of lists and watches.

use serde_json::Value;

use super::kinds::{EVENTS, NAMESPACES, NODES, Resource, SERVICES};
use super::object::{ApiError, str_at};

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Selector {
    labels: Vec<Label>,
    fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq)]
enum Label {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

#[derive(Debug, Clone, PartialEq)]
struct Field {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// # Errors
    /// 400 for what cannot be read, and for fields this kind has no selector for.
    pub(super) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split(labels).into_iter().map(label).collect::<Result<_, _>>()?;
        let fields = split(fields).into_iter().map(|text| field(resource, text)).collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(super) fn is_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.pointer("/metadata/labels").and_then(|l| l.get(key)).and_then(Value::as_str);
        let labels = self.labels.iter().all(|rule| match rule {
            Label::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Label::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Label::Exists(key) => label(key).is_some(),
            Label::Missing(key) => label(key).is_none(),
        });
        labels && self.fields.iter().all(|rule| (text_of(object, &rule.path) == rule.value) == rule.equal)
    }
}

fn text_of(object: &Value, path: &str) -> String {
    let pointer = format!("/{}", path.replace('.', "/"));
    match object.pointer(&pointer) {
        Some(Value::Bool(flag)) => flag.to_string(),
        // An unset boolean is false to a selector.
        None if path == "spec.unschedulable" => "false".into(),
        _ => str_at(object, &pointer).to_owned(),
    }
}

/// Splits at the commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|p| !p.is_empty()).collect()
}

fn label(text: &str) -> Result<Label, ApiError> {
    let owned = |s: &str| s.trim().to_owned();
    if let Some((key, values)) = text.split_once(" notin ") {
        return Ok(Label::NotIn(owned(key), values_in(values)?));
    }
    if let Some((key, values)) = text.split_once(" in ") {
        return Ok(Label::In(owned(key), values_in(values)?));
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(Label::NotIn(owned(key), vec![owned(value)]));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Label::In(owned(key), vec![owned(value)]));
    }
    match text.strip_prefix('!') {
        Some(key) => Ok(Label::Missing(owned(key))),
        None if text.contains([' ', '(', ')']) => Err(unreadable(text)),
        None => Ok(Label::Exists(owned(text))),
    }
}

fn values_in(text: &str) -> Result<Vec<String>, ApiError> {
    let inner = text.trim().strip_prefix('(').and_then(|t| t.strip_suffix(')')).ok_or_else(|| unreadable(text))?;
    Ok(inner.split(',').map(|v| v.trim().to_owned()).collect())
}

fn field(resource: &Resource, text: &str) -> Result<Field, ApiError> {
    let (path, value, equal) = match (text.split_once("!="), text.split_once("=="), text.split_once('=')) {
        (Some((path, value)), _, _) => (path, value, false),
        (_, Some((path, value)), _) | (_, _, Some((path, value))) => (path, value, true),
        _ => return Err(unreadable(text)),
    };
    // The core view of events names what it is about otherwise than the stored form.
    let path = path.trim().replace("involvedObject.", "regarding.");
    if !is_supported(resource, &path) {
        return Err(ApiError::bad_request(format!(
            "Unable to find \"{}\" that match label selector \"\", field selector \"{text}\": \
             field label not supported: {path}",
            resource.full_name()
        )));
    }
    Ok(Field { path, value: value.trim().to_owned(), equal })
}

fn is_supported(resource: &Resource, path: &str) -> bool {
    if path == "metadata.name" || (resource.namespaced && path == "metadata.namespace") {
        return true;
    }
    match &*resource.id {
        SERVICES => matches!(path, "spec.clusterIP" | "spec.type"),
        NODES => path == "spec.unschedulable",
        NAMESPACES => path == "status.phase",
        EVENTS => path.starts_with("regarding.") || matches!(path, "reason" | "type" | "reportingController"),
        _ => false,
    }
}

fn unreadable(text: &str) -> ApiError {
    ApiError::bad_request(format!("unable to parse requirement: {text}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::Registry;
    use super::*;

    fn selects(labels: &str, fields: &str, object: &Value) -> bool {
        let services = Registry::new().by_id(SERVICES).unwrap();
        Selector::parse(&services, labels, fields).unwrap().matches(object)
    }

    #[test]
    fn labels_as_the_api_reads_them() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        for yes in ["app=web", "app==web,tier", "app in (web, api)", "app notin (db)", "!gone", "gone!=x", "tier,app"] {
            assert!(selects(yes, "", &object), "{yes}");
        }
        for no in ["app=db", "app!=web", "gone", "!app", "gone in (a)", "app in (db),tier"] {
            assert!(!selects(no, "", &object), "{no}");
        }
    }

    #[test]
    fn fields_as_the_api_reads_them() {
        let object = json!({"metadata": {"name": "a"}, "spec": {"type": "LoadBalancer"}});
        assert!(selects("", "metadata.name=a,spec.type!=NodePort", &object));
        assert!(!selects("", "metadata.name!=a", &object));
        let services = Registry::new().by_id(SERVICES).unwrap();
        assert_eq!(Selector::parse(&services, "", "spec.externalTrafficPolicy=Local").unwrap_err().code, 400);
    }
}
