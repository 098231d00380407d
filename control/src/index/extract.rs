//! From API objects to extracts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use penstock_configs::desired::Protocol;

use super::ask::{self, CONDITION_DOMAIN, EXPOSE, SOURCE_RANGES, VIP};
use super::kinds::{
    ConditionInfo, Counts, IngressInfo, NodeInfo, Out, PoolInfo, PortInfo, RecordInfo, ServiceInfo, ServiceKey,
    ServiceSpec, ServiceStatus, ServiceType, SliceInfo,
};
use crate::config::{AddressType, KubernetesConfig};
use crate::crd::{VipAllocation, VipPool};
use crate::pool::Family;

pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
pub const OWN_FINALIZER: &str = "penstock.dev/cleanup";
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[must_use]
pub fn key(meta: &ObjectMeta) -> ServiceKey {
    ServiceKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

#[must_use]
pub fn name(meta: &ObjectMeta) -> Arc<str> {
    meta.name.as_deref().unwrap_or_default().into()
}

/// `None` for a Service that concerns nobody here: no LoadBalancer, not exposed, and nothing of ours left on it.
#[must_use]
pub fn service(object: &Service, _config: &KubernetesConfig) -> Option<ServiceInfo> {
    let status = service_status(object);
    let spec = service_spec(object);
    let wanted = spec.kind == ServiceType::LoadBalancer || spec.annotations.contains_key(EXPOSE);
    let left = spec.finalizer || spec.own_finalizer || !status.conditions.is_empty() || status.vip_annotation.is_some();
    let version = object.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    (wanted || left).then_some(ServiceInfo { version, spec, status })
}

fn service_spec(object: &Service) -> ServiceSpec {
    let meta = &object.metadata;
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    let mut info = ServiceSpec {
        uid: meta.uid.as_deref().unwrap_or_default().into(),
        deleting: meta.deletion_timestamp.is_some(),
        finalizer: finalizers.iter().any(|f| f == FINALIZER),
        own_finalizer: finalizers.iter().any(|f| f == OWN_FINALIZER),
        annotations: relevant(meta.annotations.as_ref()),
        labels: meta.labels.clone().unwrap_or_default(),
        ..ServiceSpec::default()
    };
    let Some(spec) = &object.spec else { return info };
    info.kind = match spec.type_.as_deref() {
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("NodePort") => ServiceType::NodePort,
        Some("ExternalName") => ServiceType::ExternalName,
        _ => ServiceType::ClusterIp,
    };
    info.class.clone_from(&spec.load_balancer_class);
    info.headless = spec.cluster_ip.as_deref() == Some("None");
    info.ports = spec.ports.iter().flatten().filter_map(port).collect();
    info.local = spec.external_traffic_policy.as_deref() == Some("Local");
    info.health_check_node_port = spec.health_check_node_port.and_then(number);
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let timeout = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        // The API's own default.
        info.affinity = Some(timeout.and_then(|t| u32::try_from(t).ok()).unwrap_or(10_800));
    }
    info.source_ranges = spec.load_balancer_source_ranges.clone().unwrap_or_default();
    info.load_balancer_ip = spec.load_balancer_ip.clone().filter(|ip| !ip.is_empty());
    info.families = families(spec.ip_families.as_deref(), spec.cluster_ip.as_deref());
    info.require_dual_stack = spec.ip_family_policy.as_deref() == Some("RequireDualStack");
    info.has_selector = spec.selector.as_ref().is_some_and(|s| !s.is_empty());
    info
}

fn number(n: i32) -> Option<u16> {
    u16::try_from(n).ok().filter(|n| *n > 0)
}

fn port(port: &ServicePort) -> Option<PortInfo> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP" | "") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        // The API server accepts no other.
        Some(_) => return None,
    };
    Some(PortInfo {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        port: number(port.port)?,
        node_port: port.node_port.and_then(number),
    })
}

fn families(listed: Option<&[String]>, cluster_ip: Option<&str>) -> Vec<Family> {
    let listed: Vec<Family> = listed
        .unwrap_or_default()
        .iter()
        .filter_map(|f| match f.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if !listed.is_empty() {
        return listed;
    }
    let from_ip = cluster_ip.and_then(|ip| ip.parse::<IpAddr>().ok()).map_or(Family::V4, Family::of);
    vec![from_ip]
}

fn relevant(annotations: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let wanted = |key: &str| key != VIP && (ask::is_ours(key) || key == SOURCE_RANGES);
    annotations.into_iter().flatten().filter(|(k, _)| wanted(k)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn service_status(object: &Service) -> ServiceStatus {
    let vip_annotation = object.metadata.annotations.as_ref().and_then(|a| a.get(VIP).cloned());
    let Some(status) = &object.status else { return ServiceStatus { vip_annotation, ..ServiceStatus::default() } };
    let ingress = status.load_balancer.iter().flat_map(|lb| lb.ingress.iter().flatten());
    let conditions = status.conditions.iter().flatten().filter(|c| c.type_.starts_with(CONDITION_DOMAIN));
    ServiceStatus {
        ingress: ingress
            .map(|i| IngressInfo {
                ip: i.ip.as_deref().and_then(|ip| ip.parse().ok()),
                hostname: i.hostname.clone(),
                ip_mode: i.ip_mode.clone(),
            })
            .collect(),
        conditions: conditions
            .map(|c| ConditionInfo {
                kind: c.type_.clone(),
                status: c.status == "True",
                reason: c.reason.clone(),
                message: c.message.clone(),
                since: c.last_transition_time.0.to_string(),
            })
            .collect(),
        vip_annotation,
    }
}

#[must_use]
pub fn node(object: &Node, config: &KubernetesConfig) -> NodeInfo {
    let meta = &object.metadata;
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let mut info = NodeInfo {
        cordoned: spec.and_then(|s| s.unschedulable).unwrap_or(false),
        ready: status
            .and_then(|s| s.conditions.as_ref())
            .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True")),
        ..NodeInfo::default()
    };
    let excluded = meta.labels.as_ref().and_then(|l| l.get(EXCLUDE)).is_some_and(|value| !is_false(value));
    let tainted = spec.and_then(|s| s.taints.as_ref()).is_some_and(|t| t.iter().any(|t| t.key == AUTOSCALER_TAINT));
    info.out = if config.own_node.is_some() && config.own_node == meta.name {
        Some(Out::OwnBox)
    } else if excluded {
        Some(Out::Excluded)
    } else if meta.deletion_timestamp.is_some() {
        Some(Out::Deleting)
    } else {
        tainted.then_some(Out::ToBeDeleted)
    };
    for address in status.and_then(|s| s.addresses.as_deref()).unwrap_or_default() {
        let kind = match address.type_.as_str() {
            "InternalIP" => AddressType::Internal,
            "ExternalIP" => AddressType::External,
            _ => continue,
        };
        let Ok(ip) = address.address.parse::<IpAddr>() else { continue };
        let slot = if ip.is_ipv4() { &mut info.v4 } else { &mut info.v6 };
        // The first one listed is the node's own preference.
        if slot.is_none() && config.node_address.wants(kind, ip) {
            *slot = Some(ip);
        }
    }
    info
}

/// What Go's `strconv.ParseBool` reads as false: the service controller's own rule for the label.
fn is_false(value: &str) -> bool {
    matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

#[must_use]
pub fn slice(object: &EndpointSlice) -> Option<SliceInfo> {
    let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let mut nodes: BTreeMap<&str, Counts> = BTreeMap::new();
    let mut unplaced = 0u16;
    for endpoint in &object.endpoints {
        let Some(counts) = count(endpoint) else { continue };
        match endpoint.node_name.as_deref() {
            Some(node) => {
                let entry = nodes.entry(node).or_default();
                *entry = entry.plus(counts);
            }
            None => unplaced = unplaced.saturating_add(1),
        }
    }
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    Some(SliceInfo {
        service: ServiceKey::new(namespace, service),
        family,
        nodes: nodes.into_iter().map(|(node, counts)| (node.into(), counts)).collect(),
        unplaced,
    })
}

/// `ready` unset counts as true, `serving` unset as `ready`: the API says so.
fn count(endpoint: &Endpoint) -> Option<Counts> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    if ready {
        Some(Counts { ready: 1, terminating: 0 })
    } else {
        (serving && terminating).then_some(Counts { ready: 0, terminating: 1 })
    }
}

#[must_use]
pub fn pool(object: &VipPool) -> PoolInfo {
    PoolInfo {
        spec: Arc::new(object.spec.clone()),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
        status: object.status.clone().unwrap_or_default(),
    }
}

#[must_use]
pub fn record(object: &VipAllocation) -> Option<RecordInfo> {
    let spec = &object.spec;
    Some(RecordInfo {
        address: spec.address.parse().ok()?,
        pool: spec.pool.as_str().into(),
        owner: spec.owner.clone(),
        share_key: spec.share_key.clone(),
        claims: spec.claims.clone(),
        held_for: spec.held_for.clone(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
    })
}
