//! The extracts: what is kept of each kind of object.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::Protocol;

use super::table::{Changed, Content};
use crate::crd::{Claim, HeldFor, VipPoolSpec, VipPoolStatus};
use crate::pool::Family;

/// Namespace and name: of a Service, and of other namespaced objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceKey {
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortInfo {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

impl PortInfo {
    /// The name, or the number where there is none.
    #[must_use]
    pub fn label(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub fn protocol_name(&self) -> String {
        self.protocol.as_str().to_uppercase()
    }
}

/// What a snapshot can depend on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceSpec {
    pub uid: Arc<str>,
    pub deleting: bool,
    /// `service.kubernetes.io/load-balancer-cleanup`
    pub finalizer: bool,
    /// `penstock.dev/cleanup`, of exposed NodePort Services: the other one on a Service that is no LoadBalancer
    /// would be taken off by any cloud controller around.
    pub own_finalizer: bool,
    pub kind: ServiceType,
    pub class: Option<String>,
    pub headless: bool,
    pub ports: Vec<PortInfo>,
    pub local: bool,
    pub health_check_node_port: Option<u16>,
    /// Seconds of `sessionAffinity: ClientIP`.
    pub affinity: Option<u32>,
    pub source_ranges: Vec<String>,
    pub load_balancer_ip: Option<String>,
    pub families: Vec<Family>,
    pub require_dual_stack: bool,
    pub has_selector: bool,
    /// Of our domain, MetalLB's, and the older source range annotation.
    pub annotations: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IngressInfo {
    pub ip: Option<IpAddr>,
    pub hostname: Option<String>,
    pub ip_mode: Option<String>,
}

/// A condition of ours as it stands in the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionInfo {
    pub kind: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
    /// As text: it is only ever handed back.
    pub since: String,
}

/// What others may write too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    pub ingress: Vec<IngressInfo>,
    pub conditions: Vec<ConditionInfo>,
    /// `penstock.dev/vip`
    pub vip_annotation: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct ServiceInfo {
    pub version: u64,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}

impl Content for ServiceInfo {
    fn difference(&self, newer: &Self) -> Changed {
        Changed::by(self.spec != newer.spec, self.status != newer.status)
    }

    fn version(&self) -> u64 {
        self.version
    }
}

/// Why a node is no backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Out {
    /// Its object is being deleted: it keeps its flows and takes no new ones.
    Deleting,
    /// `ToBeDeletedByClusterAutoscaler`: likewise.
    ToBeDeleted,
    /// `node.kubernetes.io/exclude-from-external-load-balancers`
    Excluded,
    /// The box itself.
    OwnBox,
}

impl Out {
    #[must_use]
    pub fn drains(self) -> bool {
        matches!(self, Self::Deleting | Self::ToBeDeleted)
    }

    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deleting => "its Node object is being deleted (keeps its flows, takes no new ones)",
            Self::ToBeDeleted => {
                "the cluster autoscaler is about to delete it, taint ToBeDeletedByClusterAutoscaler (keeps its flows, \
                 takes no new ones)"
            }
            Self::Excluded => "it is labelled node.kubernetes.io/exclude-from-external-load-balancers",
            Self::OwnBox => "it is the box itself: AF_XDP cannot deliver locally",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
    pub out: Option<Out>,
    /// The Ready condition: shown and counted, never a reason to take a node out.
    pub ready: bool,
    pub cordoned: bool,
}

impl NodeInfo {
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    #[must_use]
    pub fn is_backend(&self) -> bool {
        self.out.is_none()
    }
}

impl Content for NodeInfo {
    fn difference(&self, newer: &Self) -> Changed {
        Changed::by((self.v4, self.v6, self.out) != (newer.v4, newer.v6, newer.out), self != newer)
    }
}

/// Endpoints of one slice on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub ready: u16,
    /// Not ready, but serving while they terminate: used when nothing is ready.
    pub terminating: u16,
}

impl Counts {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            ready: self.ready.saturating_add(other.ready),
            terminating: self.terminating.saturating_add(other.terminating),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceInfo {
    pub service: ServiceKey,
    pub family: Family,
    pub nodes: Vec<(Arc<str>, Counts)>,
    /// Endpoints that name no node: nobody can say where they are.
    pub unplaced: u16,
}

impl Content for SliceInfo {
    fn difference(&self, newer: &Self) -> Changed {
        Changed::by(self != newer, false)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceInfo {
    pub labels: BTreeMap<String, String>,
}

impl Content for NamespaceInfo {
    fn difference(&self, newer: &Self) -> Changed {
        // Labels decide which pool gives an address; no address given changes by them.
        Changed::by(self != newer, false)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct PoolInfo {
    pub spec: Arc<VipPoolSpec>,
    /// Seconds since 1970.
    pub created: i64,
    pub status: VipPoolStatus,
}

impl Content for PoolInfo {
    fn difference(&self, newer: &Self) -> Changed {
        Changed::by(self.spec != newer.spec, self.status != newer.status)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordInfo {
    pub address: IpAddr,
    pub pool: Arc<str>,
    pub owner: String,
    pub share_key: String,
    pub claims: Vec<Claim>,
    pub held_for: Option<HeldFor>,
    pub uid: String,
    /// As the API server gave it, for optimistic locking.
    pub resource_version: String,
}

impl RecordInfo {
    pub fn services(&self) -> impl Iterator<Item = ServiceKey> + '_ {
        self.claims.iter().map(|claim| ServiceKey::new(&claim.namespace, &claim.name))
    }

    #[must_use]
    pub fn claimed_by(&self, uid: &str) -> bool {
        self.claims.iter().any(|claim| claim.uid == uid)
    }
}

impl Content for RecordInfo {
    fn difference(&self, newer: &Self) -> Changed {
        let content = |r: &Self| (r.pool.clone(), r.owner.clone(), r.share_key.clone(), r.held_for.clone());
        Changed::by(self.claims != newer.claims || content(self) != content(newer), self.uid != newer.uid)
    }

    fn version(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }
}
