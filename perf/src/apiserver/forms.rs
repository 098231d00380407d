//! The forms a client can ask for in `Accept`: the objects, only their metadata, or a table for people.

use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Value, json};

use super::kinds::CORE_EVENTS;
use super::object::{Object, to_bytes};
use super::request::Target;
use super::{events, table};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Metadata,
    Table,
}

impl Form {
    /// The first one we have; other media types (protobuf) fall back to JSON, which every client accepts.
    pub(super) fn from_accept(accept: &str) -> Self {
        for wish in accept.split(',').filter(|w| w.contains("json")) {
            if wish.contains("as=Table") {
                return Self::Table;
            }
            if wish.contains("as=PartialObjectMetadata") {
                return Self::Metadata;
            }
            return Self::Plain;
        }
        Self::Plain
    }

    pub(super) fn object(self, target: &Target, object: &Arc<Object>, with_header: bool) -> Bytes {
        match self {
            Self::Plain if target.resource.is(CORE_EVENTS) => to_bytes(&events::to_core(&object.value)),
            Self::Plain => object.json().clone(),
            Self::Metadata => to_bytes(&metadata(&object.value)),
            Self::Table => to_bytes(&table::table(&target.resource, &[&object.value], object.revision, with_header)),
        }
    }

    pub(super) fn list(self, target: &Target, objects: &[Arc<Object>], meta: &Value) -> Bytes {
        let resource = &target.resource;
        if self == Self::Table {
            let values: Vec<&Value> = objects.iter().map(|o| &o.value).collect();
            let mut table = table::table(resource, &values, 0, true);
            table["metadata"] = meta.clone();
            return to_bytes(&table);
        }
        let (kind, version) = match self {
            Self::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
            _ => (format!("{}List", resource.kind), resource.api_version()),
        };
        let size: usize = objects.iter().map(|o| o.json().len() + 1).sum();
        let mut bytes = Vec::with_capacity(size + 256);
        let head = json!({"kind": kind, "apiVersion": version, "metadata": meta}).to_string();
        // The items go in before the head's closing brace.
        bytes.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
        bytes.extend_from_slice(b",\"items\":[");
        for (at, object) in objects.iter().enumerate() {
            if at > 0 {
                bytes.push(b',');
            }
            bytes.extend_from_slice(&self.object(target, object, false));
        }
        bytes.extend_from_slice(b"]}");
        bytes.into()
    }
}

fn metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}
