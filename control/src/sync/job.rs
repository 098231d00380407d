//! The writes to the API server: each a small job that the controller orders and hears the result of.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Map, Value, json};

use super::events::Note;
use crate::crd::{VipAllocation, VipAllocationSpec, VipBox, VipBoxSpec, VipBoxStatus, VipPool, VipPoolStatus};
use crate::index::ServiceKey;
use crate::index::ask::VIP;
use crate::index::kinds::ServiceStatus;
use crate::index::outcome::Wanted;

/// Our name as the owner of fields.
pub(super) const MANAGER: &str = "penstock";

#[derive(Debug, Clone)]
pub enum Job {
    Service(ServiceJob),
    Record(RecordJob),
    PoolStatus { name: Arc<str>, status: VipPoolStatus },
    Box { name: String, spec: VipBoxSpec, status: VipBoxStatus },
}

#[derive(Debug, Clone)]
pub struct ServiceJob {
    pub key: ServiceKey,
    /// A precondition: the write is for this Service and not for one that took its name.
    pub uid: Arc<str>,
    pub step: Step,
    /// The status as it was: for the conditions' times.
    pub before: ServiceStatus,
    /// Told when it is done.
    pub notes: Vec<Note>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Status(Wanted),
    AddFinalizer(&'static str),
    RemoveFinalizers(Vec<&'static str>),
    Annotate(Option<String>),
}

#[derive(Debug, Clone)]
pub struct RecordJob {
    pub address: IpAddr,
    pub write: RecordWrite,
    /// The Service that waits for it, if one does.
    pub service: Option<ServiceKey>,
    pub notes: Vec<Note>,
}

#[derive(Debug, Clone)]
pub enum RecordWrite {
    Create(VipAllocationSpec),
    Replace { spec: VipAllocationSpec, resource_version: String },
    Delete { uid: String, resource_version: String },
}

/// What came of a job.
#[derive(Debug)]
pub enum Done {
    /// `None`: the Service is gone, which is as good.
    Service {
        job: ServiceJob,
        result: Result<Option<Box<Service>>, kube::Error>,
    },
    Record {
        job: RecordJob,
        result: Result<Option<Box<VipAllocation>>, kube::Error>,
    },
    PoolStatus {
        name: Arc<str>,
        result: Result<(), kube::Error>,
    },
    Box {
        result: Result<(), kube::Error>,
    },
}

pub(super) async fn perform(client: kube::Client, job: Job) -> Done {
    match job {
        Job::Service(job) => {
            let result = service(client, &job).await;
            Done::Service { result: or_gone(result), job }
        }
        Job::Record(job) => {
            let result = record(client, &job).await;
            Done::Record { result, job }
        }
        Job::PoolStatus { name, status } => {
            let api: Api<VipPool> = Api::all(client);
            let patch = Patch::Merge(json!({"status": nulls(&status)}));
            let result = api.patch_status(&name, &params(), &patch).await;
            Done::PoolStatus { name, result: or_gone(result.map(|_| ())).map(|_| ()) }
        }
        Job::Box { name, spec, status } => Done::Box { result: the_box(client, &name, spec, &status).await },
    }
}

/// NotFound is success: what should be changed is not there to be wrong.
fn or_gone<T>(result: Result<T, kube::Error>) -> Result<Option<Box<T>>, kube::Error> {
    match result {
        Ok(object) => Ok(Some(Box::new(object))),
        Err(kube::Error::Api(status)) if status.code == 404 || is_anothers(&status) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A patch whose uid is not the object's is no conflict for the API server: it would change what is immutable. An apply
/// that names a uid where there is no object is one, and not NotFound.
fn is_anothers(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| &details.causes);
    status.code == 422 && causes.into_iter().flatten().any(|cause| cause.field == "metadata.uid")
        || status.code == 409 && status.message.contains("uid mismatch")
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// All through the status subresource: `services/status` patch is the only write permission needed.
async fn service(client: kube::Client, job: &ServiceJob) -> Result<Service, kube::Error> {
    let api: Api<Service> = Api::namespaced(client, &job.key.namespace);
    let name = &*job.key.name;
    match &job.step {
        Step::Status(wanted) => {
            let params = PatchParams { force: true, ..params() };
            api.patch_status(name, &params, &Patch::Apply(status_body(job, wanted))).await
        }
        Step::AddFinalizer(finalizer) => {
            let patch = json!({"metadata": {"uid": &*job.uid, "finalizers": [finalizer]}});
            api.patch_status(name, &params(), &Patch::Strategic(patch)).await
        }
        Step::RemoveFinalizers(finalizers) => {
            let patch = json!({"metadata": {"uid": &*job.uid, "$deleteFromPrimitiveList/finalizers": finalizers}});
            api.patch_status(name, &params(), &Patch::Strategic(patch)).await
        }
        Step::Annotate(value) => {
            let patch = json!({"metadata": {"uid": &*job.uid, "annotations": {VIP: value}}});
            api.patch_status(name, &params(), &Patch::Merge(patch)).await
        }
    }
}

/// The whole of what we own: what an apply leaves out, it takes away.
pub(super) fn status_body(job: &ServiceJob, wanted: &Wanted) -> Value {
    let now = Timestamp::now();
    let condition = |c: &crate::index::outcome::Condition| {
        let seen = job.before.conditions.iter().find(|s| s.kind == c.kind && s.status == c.status);
        let since = seen.map_or_else(|| whole_seconds(now), |s| s.since.clone());
        json!({"type": c.kind, "status": if c.status { "True" } else { "False" }, "reason": c.reason,
            "message": c.message, "lastTransitionTime": since})
    };
    let mut status = Map::new();
    if !wanted.conditions.is_empty() {
        status.insert("conditions".into(), wanted.conditions.iter().map(condition).collect());
    }
    if !wanted.ingress.is_empty() {
        let ingress: Vec<Value> =
            wanted.ingress.iter().map(|i| json!({"ip": i.ip.map(|ip| ip.to_string()), "ipMode": i.ip_mode})).collect();
        status.insert("loadBalancer".into(), json!({"ingress": ingress}));
    }
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": &*job.key.name, "namespace": &*job.key.namespace, "uid": &*job.uid}, "status": status})
}

/// `metav1.Time` has no fractions.
fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

async fn record(client: kube::Client, job: &RecordJob) -> Result<Option<Box<VipAllocation>>, kube::Error> {
    let api: Api<VipAllocation> = Api::all(client);
    let name = VipAllocation::name_of(job.address);
    match &job.write {
        RecordWrite::Create(spec) => {
            let object = VipAllocation::new(&name, spec.clone());
            api.create(&post(), &object).await.map(|o| Some(Box::new(o)))
        }
        RecordWrite::Replace { spec, resource_version } => {
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                resource_version: Some(resource_version.clone()),
                ..ObjectMeta::default()
            };
            let object = VipAllocation { metadata, spec: spec.clone() };
            api.replace(&name, &post(), &object).await.map(|o| Some(Box::new(o)))
        }
        RecordWrite::Delete { uid, resource_version } => {
            let preconditions = Preconditions {
                uid: (!uid.is_empty()).then(|| uid.clone()),
                resource_version: (!resource_version.is_empty()).then(|| resource_version.clone()),
            };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match api.delete(&name, &params).await {
                Ok(_) => Ok(None),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                Err(error) => Err(error),
            }
        }
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

async fn the_box(client: kube::Client, name: &str, spec: VipBoxSpec, status: &VipBoxStatus) -> Result<(), kube::Error> {
    let api: Api<VipBox> = Api::all(client);
    let patch = Patch::Merge(json!({"status": nulls(status)}));
    match api.patch_status(name, &params(), &patch).await {
        Err(kube::Error::Api(gone)) if gone.code == 404 => {
            api.create(&post(), &VipBox::new(name, spec)).await?;
            api.patch_status(name, &params(), &patch).await.map(|_| ())
        }
        answer => answer.map(|_| ()),
    }
}

/// In a merge patch a field that should go must be said to be null.
fn nulls(status: &impl serde::Serialize) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.entry("fault").or_insert(Value::Null);
    }
    value
}

impl Job {
    /// As if it had failed: whether the server did it after all, the watch will tell.
    #[must_use]
    pub fn given_up(self, why: &str) -> Done {
        let late = || kube::Error::Service(why.into());
        match self {
            Self::Service(job) => Done::Service { job, result: Err(late()) },
            Self::Record(job) => Done::Record { job, result: Err(late()) },
            Self::PoolStatus { name, .. } => Done::PoolStatus { name, result: Err(late()) },
            Self::Box { .. } => Done::Box { result: Err(late()) },
        }
    }
}
