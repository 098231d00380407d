//! What clients ask before they ask for anything: groups, versions, resources, schemas, health.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::kinds::{Registry, Resource};

pub(super) const VERSION: &str = "1.33";

/// JSON of a path that names no resource; `None`: no such path.
pub(super) fn answer(registry: &Registry, path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    Some(match parts.as_slice() {
        ["version"] => json!({
            "major": "1", "minor": "33", "gitVersion": format!("v{VERSION}.0-penstock.test"), "gitCommit": "",
            "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        }),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["api", "v1"] => resources(registry, "", "v1"),
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(registry)}),
        ["apis", group] => groups(registry).into_iter().find(|g| g["name"] == **group)?,
        ["apis", group, version] if registry.all().any(|r| r.group == **group && r.version == **version) => {
            resources(registry, group, version)
        }
        ["openapi", "v2"] => openapi_v2(registry),
        ["openapi", "v3"] => openapi_v3_index(registry),
        ["openapi", "v3", "api", "v1"] => openapi_v3(registry, "", "v1"),
        ["openapi", "v3", "apis", group, version] => openapi_v3(registry, group, version),
        [] => json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/openapi/v2", "/openapi/v3", "/version"]}),
        _ => return None,
    })
}

pub(super) fn is_health(path: &str) -> bool {
    matches!(path.trim_end_matches('/'), "/healthz" | "/livez" | "/readyz")
}

fn groups(registry: &Registry) -> Vec<Value> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for resource in registry.all().filter(|r| !r.group.is_empty()) {
        versions.entry(&resource.group).or_default().insert(&resource.version);
    }
    let group = |(name, versions): (&str, BTreeSet<&str>)| {
        let all: Vec<Value> =
            versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
        json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": all, "preferredVersion": all[0]})
    };
    versions.into_iter().map(group).collect()
}

fn resources(registry: &Registry, group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for resource in registry.all().filter(|r| r.group == group && r.version == version) {
        list.push(json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "shortNames": resource.short, "categories": resource.categories,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }));
        if resource.status {
            list.push(json!({
                "name": format!("{}/status", resource.plural), "singularName": "", "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list})
}

fn gvk(resource: &Resource) -> Value {
    json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}])
}

/// Schemas that accept anything: clients find the kinds, and leave the checking to the server.
fn openapi_v2(registry: &Registry) -> Value {
    let definitions: serde_json::Map<String, Value> = registry
        .all()
        .map(|r| {
            let name = format!("{}.{}.{}", if r.group.is_empty() { "core" } else { &r.group }, r.version, r.kind);
            (name, json!({"type": "object", "x-kubernetes-group-version-kind": gvk(r)}))
        })
        .collect();
    json!({"swagger": "2.0", "info": {"title": "Penstock test API server", "version": VERSION}, "paths": {}, "definitions": definitions})
}

fn openapi_v3_index(registry: &Registry) -> Value {
    let paths: serde_json::Map<String, Value> = registry
        .all()
        .map(|r| {
            let path = if r.group.is_empty() { "api/v1".to_owned() } else { format!("apis/{}/{}", r.group, r.version) };
            let url = json!({"serverRelativeURL": format!("/openapi/v3/{path}")});
            (path, url)
        })
        .collect();
    json!({"paths": paths})
}

/// Enough for `kubectl` to see that the server checks fields and takes dry runs.
fn openapi_v3(registry: &Registry, group: &str, version: &str) -> Value {
    let (mut paths, mut schemas) = (serde_json::Map::new(), serde_json::Map::new());
    let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
    for r in registry.all().filter(|r| r.group == group && r.version == version) {
        let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let place = if r.namespaced { "/namespaces/{namespace}" } else { "" };
        paths.insert(
            format!("{root}{place}/{}/{{name}}", r.plural),
            json!({"patch": {
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": gvk(r)[0],
                "parameters": [parameter("dryRun"), parameter("fieldValidation"), parameter("fieldManager"), parameter("force")],
                "responses": {},
            }}),
        );
        let name = format!("{}.{}.{}", if group.is_empty() { "core" } else { group }, version, r.kind);
        schemas.insert(name, json!({"type": "object", "x-kubernetes-group-version-kind": gvk(r)}));
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Penstock test API server", "version": VERSION},
        "paths": paths, "components": {"schemas": schemas},
    })
}
