//! Our own objects in the API server.
//!
//! All are cluster-scoped. Addresses belong to the cluster, not to a namespace, and a `VipAllocation` is named after
//! its address: the API server itself then refuses a second record of one address, which is the lock that makes
//! "recorded first" safe against two controllers without any other coordination.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses Services may get.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "VipPool",
    plural = "vippools",
    status = "VipPoolStatus",
    derive = "Default",
    derive = "PartialEq",
    category = "penstock",
    printcolumn = r#"{"name":"Auto","type":"boolean","jsonPath":".spec.autoAssign"}"#,
    printcolumn = r#"{"name":"Total","type":"integer","jsonPath":".status.total"}"#,
    printcolumn = r#"{"name":"Assigned","type":"integer","jsonPath":".status.assigned"}"#,
    printcolumn = r#"{"name":"Available","type":"integer","jsonPath":".status.available"}"#,
    printcolumn = r#"{"name":"Fault","type":"string","jsonPath":".status.fault"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VipPoolSpec {
    /// CIDRs ("203.0.113.0/24", "2001:db8::/120"), ranges ("203.0.113.10-203.0.113.40") or single addresses.
    pub addresses: Vec<String>,
    /// Whether a Service that names no pool may get an address of this one.
    #[serde(default = "yes")]
    #[schemars(default = "yes")]
    pub auto_assign: bool,
    /// The pool with the highest number is tried first.
    // An API server does not hold `int32` to its bounds: one number beyond them would end the watch of all pools.
    #[serde(default)]
    pub priority: i64,
    /// Namespaces by name; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Namespaces by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<Selector>,
    /// Services by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<Selector>,
    /// Leaves out IPv4 addresses that end in .0 or .255: some old equipment drops them.
    #[serde(default)]
    pub avoid_buggy_ips: bool,
    /// Addresses, ranges or CIDRs inside the pool that are never given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<String>,
}

fn yes() -> bool {
    true
}

/// A label selector, as elsewhere in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            // As in Kubernetes, a label that is not there is "not in" every list.
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VipPoolStatus {
    /// Addresses that may be given.
    pub total: i64,
    pub assigned: i64,
    pub available: i64,
    /// Why the pool is not used, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// One address in use, and by whom. Written before the address is programmed, deleted after the dataplane has
/// acknowledged that it is gone.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "VipAllocation",
    plural = "vipallocations",
    derive = "PartialEq",
    category = "penstock",
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".spec.address"}"#,
    printcolumn = r#"{"name":"Pool","type":"string","jsonPath":".spec.pool"}"#,
    printcolumn = r#"{"name":"Owner","type":"string","jsonPath":".spec.owner"}"#,
    printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.claims[0].namespace"}"#,
    printcolumn = r#"{"name":"Service","type":"string","jsonPath":".spec.claims[0].name"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VipAllocationSpec {
    /// Text, and read leniently: one bad object made by hand must not stop the watch of all.
    pub address: String,
    /// The pool it came from; empty where it was made by hand.
    #[serde(default)]
    pub pool: String,
    /// The cluster's owner tag on the box: records of another owner are left alone.
    pub owner: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub share_key: String,
    /// The Services that use it: several where they share it by key. Empty: kept for `heldFor`.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// A deleted Service that asked to find its address again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_for: Option<HeldFor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    /// A Service of the same name that was created anew is another Service.
    pub uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct HeldFor {
    pub namespace: String,
    pub name: String,
}

/// A load-balancer box as the cluster sees it: what its dataplane runs.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "VipBox",
    plural = "vipboxes",
    status = "VipBoxStatus",
    derive = "Default",
    derive = "PartialEq",
    category = "penstock",
    printcolumn = r#"{"name":"Leader","type":"boolean","jsonPath":".status.leader"}"#,
    printcolumn = r#"{"name":"Services","type":"integer","jsonPath":".status.services"}"#,
    printcolumn = r#"{"name":"Generation","type":"integer","jsonPath":".status.generation"}"#,
    printcolumn = r#"{"name":"Acknowledged","type":"integer","jsonPath":".status.acknowledged"}"#,
    printcolumn = r#"{"name":"Fault","type":"string","jsonPath":".status.fault"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VipBoxSpec {
    /// The cluster's owner tag.
    pub owner: String,
    /// The Kubernetes node the box itself is, if it is one: left out of the backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VipBoxStatus {
    pub leader: bool,
    pub term: u64,
    /// Sent to the dataplane last.
    pub generation: u64,
    /// Run by every worker of it.
    pub acknowledged: u64,
    /// Fingerprint of the acknowledged content: equal on two boxes that serve the same.
    pub digest: String,
    pub services: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// RFC 3339; a box that has not said anything for some minutes is gone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_seen: String,
}

impl VipAllocation {
    /// The record's name: the address itself where it is a valid object name, else its groups in full.
    #[must_use]
    pub fn name_of(address: IpAddr) -> String {
        match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => v6.segments().map(|s| format!("{s:04x}")).join("-"),
        }
    }
}

impl VipBox {
    /// Of the box's and the owner's names what an object's name may have: lower case, digits, `-` and `.` inside.
    #[must_use]
    pub fn name_of(name: &str, owner: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let label = |text: &str| text.chars().map(plain).collect::<String>().trim_matches('-').to_owned();
        let labels = name.split('.').chain(owner.split('.')).map(label);
        labels.filter(|label| !label.is_empty()).collect::<Vec<_>>().join(".")
    }
}

/// The definitions, in the order of the manifest.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![VipPool::crd(), VipAllocation::crd(), VipBox::crd()]
}

/// The definitions as one YAML document stream: `configs/kubernetes/crds.yaml`.
///
/// # Errors
/// When they cannot be written as YAML.
pub fn manifest() -> Result<String, serde_saphyr::SerializeError> {
    let mut text = String::from("# Made by `penstock-control crds`; a test compares.\n");
    for definition in definitions() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&definition)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boxs_object_has_a_name_that_the_api_server_takes() {
        assert_eq!(VipBox::name_of("lb-1.example", "kubernetes"), "lb-1.example.kubernetes");
        assert_eq!(VipBox::name_of("LB_1", "Prod_EU"), "lb-1.prod-eu");
        assert_eq!(VipBox::name_of("_a-.", "k"), "a.k");
    }
}
