//! What a Service asks of us, read from its fields and annotations; and why it is refused, if it is.
//! Nothing is ignored: an annotation of our domain that says nothing known is a refusal that names it.

use std::net::IpAddr;

use ipnet::IpNet;
use penstock_configs::desired::{Announce, Mode, NoBackend, OnDown, OnIdle, Scheduler, ServiceLimits};

use super::annotations;
use super::kinds::{PortInfo, ServiceSpec, ServiceType};
use crate::config::KubernetesConfig;

pub const CONDITION_DOMAIN: &str = "penstock.dev/";
pub const EXPOSE: &str = "penstock.dev/expose";
/// Written by us on exposed NodePort Services.
pub const VIP: &str = "penstock.dev/vip";
pub const STICKY: &str = "penstock.dev/sticky";
pub const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const SHARE_KEYS: [&str; 3] =
    ["penstock.dev/share-key", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];
pub(super) const DOMAIN: &str = "penstock.dev/";
/// What a Service may say below our domain; each has an example in `configs/kubernetes/services.yaml`.
pub const ANNOTATIONS: [&str; 17] = [
    "expose",
    "addresses",
    "pool",
    "share-key",
    "mode",
    "scheduler",
    "idle-timeout",
    "sticky",
    "weights",
    "announce",
    "limit-connections",
    "limit-rate",
    "on-down",
    "on-idle",
    "no-backend",
    "slow-start",
    "panic-threshold",
];
pub(super) const METALLB: [&str; 2] = ["metallb.io/", "metallb.universe.tf/"];

#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub mode: Mode,
    pub scheduler: Scheduler,
    pub addresses: Vec<IpAddr>,
    pub pool: Option<String>,
    pub share_key: Option<String>,
    /// Seconds.
    pub idle_timeout: Option<u32>,
    pub sticky: bool,
    pub weigh_by_endpoints: bool,
    pub announce: Option<Announce>,
    pub source_ranges: Vec<IpNet>,
    pub limits: Option<ServiceLimits>,
    pub on_down: Option<OnDown>,
    pub on_idle: Option<OnIdle>,
    pub no_backend: Option<NoBackend>,
    /// Seconds.
    pub slow_start: Option<u32>,
    pub panic_threshold: Option<u8>,
}

/// Why a Service is not served: a reason for machines, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub reason: &'static str,
    pub message: String,
}

impl Refused {
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Whether a Service is for us to serve, as far as its type and class say.
#[must_use]
pub fn is_wanted(spec: &ServiceSpec, config: &KubernetesConfig) -> bool {
    if spec.deleting {
        return false;
    }
    match spec.kind {
        ServiceType::LoadBalancer => spec.class.as_ref().map_or(config.default_class, |class| *class == config.class),
        ServiceType::NodePort | ServiceType::ClusterIp | ServiceType::ExternalName => is_exposed(spec),
    }
}

/// A Service of another type that asked to be reachable by a VIP: it has no status of its own for it.
#[must_use]
pub fn is_exposed(spec: &ServiceSpec) -> bool {
    spec.kind != ServiceType::LoadBalancer && spec.annotations.get(EXPOSE).is_some_and(|v| v.trim() != "false")
}

/// The key under which a Service shares its address; empty: it does not.
#[must_use]
pub fn share_key(spec: &ServiceSpec) -> &str {
    let said = SHARE_KEYS.iter().find_map(|key| spec.annotations.get(*key));
    said.map_or("", |key| key.trim())
}

/// An annotation that we read.
#[must_use]
pub fn is_ours(key: &str) -> bool {
    key.starts_with(DOMAIN) || METALLB.iter().any(|domain| key.starts_with(domain))
}

/// # Errors
/// With the first reason not to serve it; a person mends one thing at a time anyway.
pub fn read(spec: &ServiceSpec, config: &KubernetesConfig) -> Result<Ask, Refused> {
    check_shape(spec)?;
    let mut ask = Ask {
        mode: config.mode,
        scheduler: Scheduler::default(),
        addresses: Vec::new(),
        pool: None,
        share_key: None,
        idle_timeout: None,
        sticky: false,
        weigh_by_endpoints: config.weigh_by_endpoints,
        announce: None,
        source_ranges: source_ranges(spec)?,
        limits: None,
        on_down: None,
        on_idle: None,
        no_backend: None,
        slow_start: None,
        panic_threshold: None,
    };
    for (key, value) in &spec.annotations {
        annotations::apply(&mut ask, spec, key, value.trim())?;
    }
    annotations::agree(&ask, spec)?;
    load_balancer_ip(&mut ask, spec)?;
    check_ports(spec, &ask)?;
    Ok(ask)
}

fn check_shape(spec: &ServiceSpec) -> Result<(), Refused> {
    if spec.kind == ServiceType::ExternalName {
        return Err(Refused::new("ExternalName", "a Service of type ExternalName has no backends to send packets to"));
    }
    if spec.headless {
        return Err(Refused::new("Headless", "a headless Service (clusterIP: None) has no node ports"));
    }
    if spec.kind == ServiceType::ClusterIp {
        return Err(Refused::new("NoNodePort", "a ClusterIP Service has no node ports: make it NodePort to expose it"));
    }
    if spec.ports.is_empty() {
        return Err(Refused::new("NoPorts", "the Service has no ports"));
    }
    Ok(())
}

fn check_ports(spec: &ServiceSpec, ask: &Ask) -> Result<(), Refused> {
    // Direct server return: the packet keeps the port it came to.
    let lacks = |port: &&PortInfo| port.node_port.is_none() && ask.mode != Mode::Dsr;
    let Some(port) = spec.ports.iter().find(lacks) else { return Ok(()) };
    let message = format!(
        "port {} has no node port (allocateLoadBalancerNodePorts: false?), and mode {} needs one",
        port.label(),
        ask.mode.as_str()
    );
    Err(Refused::new("NoNodePort", message))
}

fn load_balancer_ip(ask: &mut Ask, spec: &ServiceSpec) -> Result<(), Refused> {
    let Some(text) = &spec.load_balancer_ip else { return Ok(()) };
    let ip: IpAddr = text
        .trim()
        .parse()
        .map_err(|_| Refused::new("BadField", format!("spec.loadBalancerIP: `{text}` is no address")))?;
    if ask.addresses.is_empty() {
        ask.addresses.push(ip);
    } else if !ask.addresses.contains(&ip) {
        let message = format!("spec.loadBalancerIP {ip} is not among the addresses of the annotation");
        return Err(Refused::new("Conflict", message));
    }
    Ok(())
}

/// The field wins over the older annotation. A range that cannot be read refuses the Service: served without it, it
/// would be open to everyone.
fn source_ranges(spec: &ServiceSpec) -> Result<Vec<IpNet>, Refused> {
    let (from, texts): (&str, Vec<&str>) = if spec.source_ranges.is_empty() {
        let list = spec.annotations.get(SOURCE_RANGES).map_or("", |v| v.trim());
        (SOURCE_RANGES, if list.is_empty() { Vec::new() } else { list.split(',').collect() })
    } else {
        ("spec.loadBalancerSourceRanges", spec.source_ranges.iter().map(String::as_str).collect())
    };
    let parse = |text: &&str| {
        text.trim().parse::<IpNet>().map(|net| net.trunc()).map_err(|_| {
            let message = format!("{from}: `{}` is no CIDR; the Service is closed until it is mended", text.trim());
            Refused::new("BadSourceRange", message)
        })
    };
    texts.iter().map(parse).collect()
}
