//! The resources the server knows: what is built in, and what `CustomResourceDefinition`s add.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::object::{bool_at, str_at};

/// One resource at one version: what a path such as `/apis/GROUP/VERSION/PLURAL` names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resource {
    /// `group/plural`: under this name its objects are stored.
    pub(super) id: Arc<str>,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) kind: String,
    pub(super) short: Vec<String>,
    pub(super) categories: Vec<String>,
    pub(super) namespaced: bool,
    pub(super) status: bool,
    /// Defined by a CRD: its schema and printer columns.
    pub(super) custom: Option<Custom>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Custom {
    pub(super) schema: Value,
    pub(super) columns: Vec<Value>,
}

impl Resource {
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// As messages name it: `services`, `vippools.penstock.dev`.
    pub(super) fn full_name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub(super) fn is(&self, id: &str) -> bool {
        *self.id == *id
    }

    /// Whether an update may leave the resourceVersion out.
    pub(super) fn unconditional_update(&self) -> bool {
        self.custom.is_none() && !self.is(LEASES)
    }
}

pub(super) const SERVICES: &str = "/services";
pub(super) const NODES: &str = "/nodes";
pub(super) const NAMESPACES: &str = "/namespaces";
pub(super) const EVENTS: &str = "events.k8s.io/events";
pub(super) const CORE_EVENTS: &str = "/events";
pub(super) const LEASES: &str = "coordination.k8s.io/leases";
pub(super) const SLICES: &str = "discovery.k8s.io/endpointslices";
pub(super) const CRDS: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// group, version, plural, kind, short name, namespaced, status subresource
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, bool, bool);

const BUILT_IN: &[Row] = &[
    ("", "v1", "namespaces", "Namespace", "ns", false, true),
    ("", "v1", "nodes", "Node", "no", false, true),
    ("", "v1", "services", "Service", "svc", true, true),
    ("", "v1", "configmaps", "ConfigMap", "cm", true, false),
    ("", "v1", "secrets", "Secret", "", true, false),
    ("", "v1", "serviceaccounts", "ServiceAccount", "sa", true, false),
    // A view of events.k8s.io: stored there, converted on the way.
    ("", "v1", "events", "Event", "ev", true, false),
    ("events.k8s.io", "v1", "events", "Event", "ev", true, false),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", "", true, false),
    ("coordination.k8s.io", "v1", "leases", "Lease", "", true, false),
    ("apps", "v1", "daemonsets", "DaemonSet", "ds", true, true),
    ("apps", "v1", "deployments", "Deployment", "deploy", true, true),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", "", false, false),
    ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", "", false, false),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", "", true, false),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", "", true, false),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", "crd", false, true),
];

#[derive(Debug)]
pub(super) struct Registry {
    resources: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    pub(super) fn new() -> Self {
        let mut registry = Self { resources: BTreeMap::new() };
        for (group, version, plural, kind, short, namespaced, status) in BUILT_IN {
            registry.add(Resource {
                id: format!("{group}/{plural}").into(),
                group: (*group).into(),
                version: (*version).into(),
                plural: (*plural).into(),
                singular: kind.to_lowercase(),
                kind: (*kind).into(),
                short: if short.is_empty() { Vec::new() } else { vec![(*short).into()] },
                categories: if *plural == "services" { vec!["all".into()] } else { Vec::new() },
                namespaced: *namespaced,
                status: *status,
                custom: None,
            });
        }
        registry
    }

    fn add(&mut self, resource: Resource) {
        let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.resources.insert(key, Arc::new(resource));
    }

    pub(super) fn get(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.resources.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    pub(super) fn by_id(&self, id: &str) -> Option<Arc<Resource>> {
        self.resources.values().find(|r| r.is(id)).cloned()
    }

    pub(super) fn by_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.resources.values().find(|r| r.kind == kind && r.api_version() == api_version).cloned()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// Every served version of a definition.
    pub(super) fn define(&mut self, crd: &Value) {
        let (group, plural) = (str_at(crd, "/spec/group"), str_at(crd, "/spec/names/plural"));
        self.undefine(crd);
        for version in crd.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten() {
            if !bool_at(version, "/served") {
                continue;
            }
            let kind = str_at(crd, "/spec/names/kind");
            let singular = str_at(crd, "/spec/names/singular");
            self.add(Resource {
                id: format!("{group}/{plural}").into(),
                group: group.into(),
                version: str_at(version, "/name").into(),
                plural: plural.into(),
                singular: if singular.is_empty() { kind.to_lowercase() } else { singular.into() },
                kind: kind.into(),
                short: strings(crd, "/spec/names/shortNames"),
                categories: strings(crd, "/spec/names/categories"),
                namespaced: str_at(crd, "/spec/scope") == "Namespaced",
                status: version.pointer("/subresources/status").is_some(),
                custom: Some(Custom {
                    schema: version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_else(|| json!({})),
                    columns: version
                        .get("additionalPrinterColumns")
                        .and_then(Value::as_array)
                        .cloned()
                        .unwrap_or_default(),
                }),
            });
        }
    }

    pub(super) fn undefine(&mut self, crd: &Value) {
        let (group, plural) = (str_at(crd, "/spec/group"), str_at(crd, "/spec/names/plural"));
        self.resources.retain(|(g, _, p), r| r.custom.is_none() || g != group || p != plural);
    }
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// How the items of a list belong together, for patches and for field ownership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListShape {
    /// One value: replaced as a whole.
    Atomic,
    /// Scalars that different managers may own each.
    Set,
    /// Objects told apart by these fields.
    Map(Vec<String>),
}

impl ListShape {
    fn map(keys: &[&str]) -> Self {
        Self::Map(keys.iter().map(|k| (*k).to_owned()).collect())
    }
}

/// What server-side apply makes of the list at `path` (fields from the object's root; items of lists add nothing).
/// Source: the `+listType` markers of the API types, and `x-kubernetes-list-type` of a CRD's schema.
pub(super) fn apply_shape(resource: &Resource, path: &[&str]) -> ListShape {
    match path {
        ["metadata", "finalizers"] => return ListShape::Set,
        ["metadata", "ownerReferences"] => return ListShape::map(&["uid"]),
        _ => {}
    }
    if let Some(custom) = &resource.custom {
        return custom_shape(&custom.schema, path);
    }
    match (resource.kind.as_str(), path) {
        ("Service", ["spec", "ports"]) => ListShape::map(&["port", "protocol"]),
        ("Service" | "Node" | "Namespace" | "CustomResourceDefinition", ["status", "conditions"])
        | ("Node", ["status", "addresses"]) => ListShape::map(&["type"]),
        ("Node", ["spec", "podCIDRs"]) => ListShape::Set,
        _ => ListShape::Atomic,
    }
}

fn custom_shape(schema: &Value, path: &[&str]) -> ListShape {
    let mut at = schema;
    for field in path {
        let properties = at.get("items").unwrap_or(at);
        match properties.pointer("/properties").and_then(|p| p.get(*field)) {
            Some(next) => at = next,
            None => return ListShape::Atomic,
        }
    }
    match at.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListShape::Set,
        Some("map") => ListShape::Map(strings(at, "/x-kubernetes-list-map-keys")),
        _ => ListShape::Atomic,
    }
}

/// Maps that are one value for server-side apply (`+structType=atomic`).
pub(super) fn is_atomic_map(resource: &Resource, path: &[&str]) -> bool {
    matches!(
        (resource.kind.as_str(), path),
        ("Service", ["spec", "selector"]) | ("Event", ["regarding" | "related" | "involvedObject"])
    )
}

/// What a strategic merge patch makes of the list at `path`. Source: `patchStrategy` and `patchMergeKey` of the API
/// types, which differ from the list types of server-side apply: a Service's ports merge by number alone.
pub(super) fn merge_shape(resource: &Resource, path: &[&str]) -> ListShape {
    match (resource.kind.as_str(), path) {
        (_, ["metadata", "finalizers"]) | ("Node", ["spec", "podCIDRs"]) => ListShape::Set,
        (_, ["metadata", "ownerReferences"]) => ListShape::map(&["uid"]),
        ("Service", ["spec", "ports"]) => ListShape::map(&["port"]),
        ("Service" | "Node" | "Namespace", ["status", "conditions"]) | ("Node", ["status", "addresses"]) => {
            ListShape::map(&["type"])
        }
        _ => ListShape::Atomic,
    }
}
