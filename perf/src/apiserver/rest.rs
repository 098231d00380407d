//! The verbs on objects, between a parsed request and the store: what every API server does for every kind.
//! Source: `apiserver/pkg/registry/generic/registry/store.go` and `rest/{create,update,delete}.go`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::admission::prepare;
use super::fields::{self, Manager};
use super::kinds::{CRDS, NAMESPACES, Resource, SERVICES};
use super::object::{
    ApiError, Fault, Object, has_finalizers, int_at, is_deleting, list_at, map_of, name, namespace, now, revision_of,
    same_content, set_or_remove, str_at,
};
use super::request::Target;
use super::store::{Key, Store};
use super::{names, service, service_faults, strategic, typed};

/// The writer, and whether it only wants to know what would happen.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) manager: Manager,
    pub(super) dry_run: bool,
}

impl Target {
    pub(super) fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

pub(super) fn get(store: &Store, target: &Target) -> Result<Arc<Object>, ApiError> {
    let found = store.get(&target.stored, &target.key()).cloned();
    found.ok_or_else(|| ApiError::not_found(&target.resource.full_name(), &target.name))
}

pub(super) fn create(
    store: &mut Store,
    target: &Target,
    mut object: Value,
    writer: &Writer,
) -> Result<Arc<Object>, ApiError> {
    let resource = target.stored.clone();
    if !object.is_object() {
        return Err(ApiError::bad_request("the body must be an object"));
    }
    check_kind(&target.stored, &object)?;
    if !revision_of(&object).is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    name_it(store, target, &mut object)?;
    check_namespace(store, target)?;
    let key = (namespace(&object).to_owned(), name(&object).to_owned());
    if store.get(&resource, &key).is_some() {
        return Err(ApiError::exists(&target.resource.full_name(), &key.1));
    }
    // A Node comes with its status: the kubelet registers it so.
    if resource.status && resource.kind != "Node" {
        map_of(&mut object, "status");
        object.as_object_mut().map(|o| o.remove("status"));
    }
    let uid = store.next_uid();
    let metadata = map_of(&mut object, "metadata");
    metadata.insert("uid".into(), json!(uid));
    metadata.insert("creationTimestamp".into(), json!(now()));
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"] {
        metadata.remove(field);
    }
    if resource.custom.is_some() || resource.is(CRDS) || resource.kind == "Deployment" {
        metadata.insert("generation".into(), json!(1));
    }
    tidy(&resource, &mut object);
    typed::decode(&resource, &mut object)?;
    let mut faults = names::faults(&resource, &object);
    faults.extend(prepare(store, &resource, &mut object, None)?);
    refuse(&resource, &key.1, &faults)?;
    if !has_apply_entry(&object) {
        fields::note_update(&resource, &Value::Null, &mut object, &writer.manager);
    }
    Ok(if writer.dry_run { Arc::new(Object::new(object, store.revision())) } else { store.put(&resource, object) })
}

/// A created object that came by server-side apply knows its owner already.
fn has_apply_entry(object: &Value) -> bool {
    list_at(object, "/metadata/managedFields").iter().any(|e| str_at(e, "/operation") == "Apply")
}

fn check_kind(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let (kind, version) = (str_at(object, "/kind"), str_at(object, "/apiVersion"));
    let fits = (kind.is_empty() || kind == resource.kind) && (version.is_empty() || version == resource.api_version());
    if fits {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {}: the object provided is unrecognized",
        resource.kind
    )))
}

fn name_it(store: &mut Store, target: &Target, object: &mut Value) -> Result<(), ApiError> {
    let kind = target.resource.kind.clone();
    let body_namespace = namespace(object).to_owned();
    if !body_namespace.is_empty() && body_namespace != target.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if name(object).is_empty() {
        let prefix = str_at(object, "/metadata/generateName").to_owned();
        if prefix.is_empty() {
            let fault = Fault::new("metadata.name", "Required value: name or generateName is required");
            return Err(ApiError::invalid(&kind, "", &[fault]));
        }
        let uid = store.next_uid();
        let suffix: String = uid.chars().filter(char::is_ascii_alphanumeric).rev().take(5).collect();
        map_of(object, "metadata").insert("name".into(), json!(format!("{prefix}{suffix}")));
    }
    if target.resource.namespaced {
        map_of(object, "metadata").insert("namespace".into(), json!(target.namespace));
    }
    Ok(())
}

fn check_namespace(store: &Store, target: &Target) -> Result<(), ApiError> {
    if !target.resource.namespaced {
        return Ok(());
    }
    let Some(namespaces) = store.registry.by_id(NAMESPACES) else { return Ok(()) };
    match store.namespace_is_leaving(&namespaces, &target.namespace) {
        Some(false) => Ok(()),
        None => Err(ApiError::not_found("namespaces", &target.namespace)),
        Some(true) => Err(ApiError::new(
            403,
            "Forbidden",
            format!(
                "{} is forbidden: unable to create new content in namespace {} because it is being terminated",
                target.resource.full_name(),
                target.namespace
            ),
        )),
    }
}

/// Nulls in metadata mean "not there"; kind and version are the resource's own.
fn tidy(resource: &Resource, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), json!(resource.api_version()));
        map.insert("kind".into(), json!(resource.kind));
    }
    let metadata = map_of(object, "metadata");
    let empty = |v: &Value| {
        v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty) || v.as_array().is_some_and(Vec::is_empty)
    };
    metadata.retain(|_, value| !empty(value));
}

fn refuse(resource: &Resource, named: &str, faults: &[Fault]) -> Result<(), ApiError> {
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(&resource.kind, named, faults)) }
}

/// What owns the fields after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    /// The writer, where it changed something.
    Note,
    /// The object says so already (server-side apply).
    Noted,
}

/// PUT, or the outcome of a patch.
pub(super) fn update(
    store: &mut Store,
    target: &Target,
    mut new: Value,
    writer: &Writer,
    ownership: Ownership,
) -> Result<Arc<Object>, ApiError> {
    let resource = target.stored.clone();
    let old = get(store, target)?;
    check_kind(&resource, &new)?;
    if !name(&new).is_empty() && name(&new) != target.name {
        return Err(ApiError::bad_request("the name of the object does not match the name on the URL"));
    }
    check_preconditions(target, &old.value, &new)?;
    keep_identity(&old.value, &mut new);
    tidy(&resource, &mut new);
    let mut new = only_the_subresource(target, &old.value, new);
    typed::decode(&resource, &mut new)?;
    let mut faults = names::faults(&resource, &new);
    faults.extend(match target.subresource.as_str() {
        "status" if resource.is(SERVICES) => {
            service::default_ip_mode(&mut new);
            service_faults::status_faults(&new)
        }
        "status" if resource.custom.is_none() => Vec::new(),
        _ => prepare(store, &resource, &mut new, Some(&old.value))?,
    });
    refuse(&resource, &target.name, &faults)?;
    check_finalizers(&resource, target, &old.value, &new)?;
    let same = same_content(&old.value, &new);
    let owners = |v: &Value| v.pointer("/metadata/managedFields").cloned();
    if same && (ownership == Ownership::Note || owners(&old.value) == owners(&new)) {
        return Ok(old);
    }
    bump_generation(&old.value, &mut new);
    if ownership == Ownership::Note {
        fields::note_update(&resource, &old.value, &mut new, &writer.manager);
    }
    if writer.dry_run {
        return Ok(Arc::new(Object::new(new, store.revision())));
    }
    if is_deleting(&new) && !has_finalizers(&new) {
        return Ok(remove(store, &resource, &target.key(), Some(new)).unwrap_or(old));
    }
    Ok(store.put(&resource, new))
}

fn check_preconditions(target: &Target, old: &Value, new: &Value) -> Result<(), ApiError> {
    let (asked, current) = (revision_of(new), revision_of(old));
    if asked.is_empty() && !target.stored.unconditional_update() {
        let fault = Fault::new("metadata.resourceVersion", "Invalid value: 0x0: must be specified for an update");
        return Err(ApiError::invalid(&target.resource.kind, &target.name, &[fault]));
    }
    let uid = str_at(new, "/metadata/uid");
    if (!asked.is_empty() && asked != current) || (!uid.is_empty() && uid != str_at(old, "/metadata/uid")) {
        return Err(ApiError::conflict(&target.resource.full_name(), &target.name));
    }
    Ok(())
}

/// A uid in a PUT is a precondition; in a patch it would change what is immutable. (What controllers patch by uid
/// take for "another one of the name": `controller_ref_manager.go`.)
fn same_uid(target: &Target, old: &Value, new: &Value) -> Result<(), ApiError> {
    let (uid, is) = (str_at(new, "/metadata/uid"), str_at(old, "/metadata/uid"));
    if uid.is_empty() || uid == is {
        return Ok(());
    }
    let fault = Fault::new("metadata.uid", format!("Invalid value: \"{uid}\": field is immutable"));
    Err(ApiError::invalid(&target.resource.kind, &target.name, &[fault]))
}

fn keep_identity(old: &Value, new: &mut Value) {
    let metadata = map_of(new, "metadata");
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        set_or_remove(metadata, field, old["metadata"].get(field).cloned());
    }
    // A client that sends none back does not thereby disown everybody.
    if !metadata.contains_key("managedFields") {
        set_or_remove(metadata, "managedFields", old["metadata"].get("managedFields").cloned());
    }
}

/// The main resource does not write the status, and the status subresource nothing but it. On built-in kinds both
/// write metadata: this is what lets a finalizer be added with no right to write the main resource.
fn only_the_subresource(target: &Target, old: &Value, mut new: Value) -> Value {
    let keep = |from: &Value, into: &mut Value, field: &str| {
        if let Some(map) = into.as_object_mut() {
            set_or_remove(map, field, from.get(field).cloned());
        }
    };
    match (target.subresource.as_str(), target.stored.custom.is_some()) {
        ("status", true) => {
            let mut kept = old.clone();
            keep(&new, &mut kept, "status");
            let owners = new.pointer("/metadata/managedFields").cloned();
            set_or_remove(map_of(&mut kept, "metadata"), "managedFields", owners);
            kept
        }
        ("status", false) => {
            keep(old, &mut new, "spec");
            new
        }
        ("finalize", _) => {
            let mut kept = old.clone();
            keep(&new, &mut kept, "spec");
            kept
        }
        _ => {
            if target.stored.status {
                keep(old, &mut new, "status");
            }
            new
        }
    }
}

fn check_finalizers(resource: &Resource, target: &Target, old: &Value, new: &Value) -> Result<(), ApiError> {
    let before = list_at(old, "/metadata/finalizers");
    let added: Vec<String> =
        list_at(new, "/metadata/finalizers").iter().filter(|f| !before.contains(f)).map(ToString::to_string).collect();
    if is_deleting(old) && !added.is_empty() {
        let why = "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers";
        let fault = Fault::new("metadata.finalizers", format!("{why} {added:?}"));
        return Err(ApiError::invalid(&resource.kind, &target.name, &[fault]));
    }
    Ok(())
}

fn bump_generation(old: &Value, new: &mut Value) {
    let generation = int_at(old, "/metadata/generation");
    let spec = |v: &Value| v.get("spec").cloned();
    if generation > 0 && (spec(old) != spec(new) || is_deleting(old) != is_deleting(new)) {
        map_of(new, "metadata").insert("generation".into(), json!(generation + 1));
    }
}

/// The kinds of patch, by content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply { force: bool },
}

/// Whether it was created, and the object.
pub(super) fn patch(
    store: &mut Store,
    target: &Target,
    kind: PatchKind,
    patch: &Value,
    writer: &Writer,
) -> Result<(bool, Arc<Object>), ApiError> {
    if let PatchKind::Apply { force } = kind {
        return apply(store, target, patch, force, writer);
    }
    let old = get(store, target)?;
    let mut new = old.value.clone();
    match kind {
        PatchKind::Merge => json_patch::merge(&mut new, patch),
        PatchKind::Json => {
            let patch: json_patch::Patch =
                serde_json::from_value(patch.clone()).map_err(|e| ApiError::bad_request(e.to_string()))?;
            json_patch::patch(&mut new, &patch).map_err(|e| {
                let why = format!("the server rejected our request due to an error in our request: {e}");
                ApiError::new(422, "Invalid", why)
            })?;
        }
        _ if target.stored.custom.is_some() => {
            let why = "the body of the request was in an unknown format - accepted media types include: \
                       application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
            return Err(ApiError::new(415, "UnsupportedMediaType", why));
        }
        _ => strategic::merge(&target.stored, &mut new, patch)?,
    }
    same_uid(target, &old.value, &new)?;
    Ok((false, update(store, target, new, writer, Ownership::Note)?))
}

fn apply(
    store: &mut Store,
    target: &Target,
    config: &Value,
    force: bool,
    writer: &Writer,
) -> Result<(bool, Arc<Object>), ApiError> {
    if writer.manager.name.is_empty() {
        return Err(ApiError::new(
            422,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    if str_at(config, "/kind").is_empty() || str_at(config, "/apiVersion").is_empty() {
        return Err(ApiError::bad_request("apiVersion and kind must be set in an apply configuration"));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    check_kind(&target.stored, config)?;
    let Some(old) = store.get(&target.stored, &target.key()).cloned() else {
        // Only Services may be created by an update, and the check comes before the one that there is no status yet.
        if (target.subresource.is_empty() || target.stored.is(SERVICES)) && !str_at(config, "/metadata/uid").is_empty()
        {
            let why = format!(
                "Operation cannot be fulfilled on {} \"{}\": uid mismatch: the provided object specified uid {}, and no \
                 existing object was found",
                target.resource.full_name(),
                target.name,
                str_at(config, "/metadata/uid")
            );
            return Err(ApiError::new(409, "Conflict", why));
        }
        if !target.subresource.is_empty() {
            return Err(ApiError::not_found(&target.resource.full_name(), &target.name));
        }
        let mut new = fields::apply(&target.stored, &json!({}), config, &writer.manager, force)?;
        map_of(&mut new, "metadata").insert("name".into(), json!(target.name));
        return Ok((true, create(store, target, new, writer)?));
    };
    let new = fields::apply(&target.stored, &old.value, config, &writer.manager, force)?;
    same_uid(target, &old.value, &new)?;
    Ok((false, update(store, target, new, writer, Ownership::Noted)?))
}

/// What is left of a deleted object.
#[derive(Debug)]
pub(super) enum Deleted {
    /// Its finalizers keep it for now.
    Waits(Arc<Object>),
    Gone(Arc<Object>),
}

pub(super) fn delete(store: &mut Store, target: &Target, options: &Value) -> Result<Deleted, ApiError> {
    let old = get(store, target)?;
    for (field, is) in [("uid", str_at(&old.value, "/metadata/uid")), ("resourceVersion", revision_of(&old.value))] {
        let wanted = str_at(options, &format!("/preconditions/{field}"));
        if !wanted.is_empty() && wanted != is {
            let resource = target.resource.full_name();
            let why = format!(
                "Operation cannot be fulfilled on {resource} \"{}\": Precondition failed: {field} in precondition: \
                 {wanted}, {field} in object meta: {is}",
                target.name
            );
            return Err(ApiError::new(409, "Conflict", why));
        }
    }
    if !list_at(options, "/dryRun").is_empty() {
        return Ok(Deleted::Waits(old));
    }
    Ok(delete_key(store, &target.stored, &target.key(), &old))
}

fn delete_key(store: &mut Store, resource: &Resource, key: &Key, old: &Arc<Object>) -> Deleted {
    if !has_finalizers(&old.value) {
        return Deleted::Gone(remove(store, resource, key, None).unwrap_or_else(|| old.clone()));
    }
    if is_deleting(&old.value) {
        return Deleted::Waits(old.clone());
    }
    let mut new = old.value.clone();
    let metadata = map_of(&mut new, "metadata");
    metadata.insert("deletionTimestamp".into(), json!(now()));
    metadata.insert("deletionGracePeriodSeconds".into(), json!(0));
    bump_generation(&old.value, &mut new);
    if resource.is(NAMESPACES) {
        new["status"]["phase"] = json!("Terminating");
    }
    let written = store.put(resource, new);
    if resource.is(NAMESPACES) {
        empty_namespace(store, &key.1);
    }
    Deleted::Waits(written)
}

fn remove(store: &mut Store, resource: &Resource, key: &Key, last: Option<Value>) -> Option<Arc<Object>> {
    let removed = store.remove(resource, key, last)?;
    if resource.is(CRDS) {
        let (group, plural) = (str_at(&removed.value, "/spec/group"), str_at(&removed.value, "/spec/names/plural"));
        store.forget_all(&format!("{group}/{plural}"));
    }
    finish_namespace(store, &key.0);
    Some(removed)
}

/// What the namespace controller does: everything in it is deleted, and it goes when nothing is left.
fn empty_namespace(store: &mut Store, of: &str) {
    for (id, key) in store.in_namespace(of) {
        let Some(resource) = store.registry.by_id(&id) else { continue };
        if let Some(object) = store.get(&resource, &key).cloned() {
            delete_key(store, &resource, &key, &object);
        }
    }
    finish_namespace(store, of);
}

fn finish_namespace(store: &mut Store, of: &str) {
    let Some(namespaces) = store.registry.by_id(NAMESPACES).filter(|_| !of.is_empty()) else { return };
    if store.namespace_is_leaving(&namespaces, of) == Some(true) && store.in_namespace(of).is_empty() {
        store.remove(&namespaces, &(String::new(), of.to_owned()), None);
    }
}
