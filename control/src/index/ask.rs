//! What a Service asks of us, read from its fields and annotations; and why it is refused, if it is.
//! Nothing is ignored: an annotation of our domain that says nothing known is a refusal that names it.

use std::net::IpAddr;

use ipnet::IpNet;
use penstock_configs::desired::{Announce, Mode, Scheduler, ServiceLimits};

use super::kinds::{ServiceSpec, ServiceType};
use super::support;
use crate::config::KubernetesConfig;

pub const CONDITION_DOMAIN: &str = "penstock.dev/";
pub const EXPOSE: &str = "penstock.dev/expose";
/// Written by us on exposed NodePort Services.
pub const VIP: &str = "penstock.dev/vip";
pub const STICKY: &str = "penstock.dev/sticky";
pub const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const DOMAIN: &str = "penstock.dev/";
/// What a Service may say below our domain; each has an example in `configs/kubernetes/services.yaml`.
pub const ANNOTATIONS: [&str; 12] = [
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
];
const METALLB: [&str; 2] = ["metallb.io/", "metallb.universe.tf/"];

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
    spec.kind != ServiceType::LoadBalancer && spec.annotations.get(EXPOSE).is_some_and(|v| v.trim() == "true")
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
    };
    for (key, value) in &spec.annotations {
        annotation(&mut ask, spec, key, value.trim())?;
    }
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
    for port in &spec.ports {
        if support::protocol(port.transport).is_none() {
            let message =
                format!("port {}: {} is not supported yet by this dataplane", port.label(), port.transport.name());
            return Err(not_yet(message));
        }
        if port.node_port.is_none() && !support::is_dsr(ask.mode) {
            let message = format!(
                "port {} has no node port (allocateLoadBalancerNodePorts: false?), and mode {} needs one",
                port.label(),
                support::mode_name(ask.mode)
            );
            return Err(Refused::new("NoNodePort", message));
        }
    }
    Ok(())
}

fn not_yet(message: impl Into<String>) -> Refused {
    Refused::new("NotSupported", message)
}

fn annotation(ask: &mut Ask, spec: &ServiceSpec, key: &str, value: &str) -> Result<(), Refused> {
    let bad = |why: String| Refused::new("BadAnnotation", format!("{key}: {why}"));
    let Some(name) = key.strip_prefix(DOMAIN) else { return alias(ask, spec, key, value) };
    match name {
        "expose" => boolean(value).map(|_| ()).map_err(bad),
        "addresses" => addresses(value).map(|list| ask.addresses = list).map_err(bad),
        "pool" => {
            ask.pool = Some(value.to_owned());
            Ok(())
        }
        "share-key" => {
            ask.share_key = Some(value.to_owned());
            Ok(())
        }
        "mode" => support::mode(value).map(|mode| ask.mode = mode).map_err(|why| not_yet(format!("{key}: {why}"))),
        "scheduler" => support::scheduler(value)
            .map(|scheduler| ask.scheduler = scheduler)
            .map_err(|why| not_yet(format!("{key}: {why}"))),
        "idle-timeout" => seconds(value).map(|s| ask.idle_timeout = Some(s)).map_err(bad),
        "sticky" => boolean(value).map(|yes| ask.sticky = yes).map_err(bad),
        "weights" => match value {
            "endpoints" | "equal" => {
                ask.weigh_by_endpoints = value == "endpoints";
                Ok(())
            }
            _ => Err(bad(format!("`{value}` is neither `endpoints` nor `equal`"))),
        },
        "announce" => match value {
            "l2" => {
                ask.announce = Some(Announce::L2);
                Ok(())
            }
            "none" => {
                ask.announce = Some(Announce::None);
                Ok(())
            }
            _ => Err(bad(format!("`{value}` is neither `l2` nor `none`"))),
        },
        "limit-connections" | "limit-rate" => {
            let [all, source] = limit(value).map_err(bad)?;
            let limits = ask.limits.get_or_insert_default();
            let mut per_source = limits.per_source.take().unwrap_or_default();
            if name == "limit-rate" {
                (limits.new_per_second, per_source.new_per_second) = (all, source);
            } else {
                (limits.connections, per_source.connections) = (all, source);
            }
            let is_limited = per_source.connections.or(per_source.new_per_second).is_some();
            limits.per_source = is_limited.then_some(per_source);
            Ok(())
        }
        _ => Err(Refused::new("UnknownAnnotation", format!("{key} is not known to this version"))),
    }
}

/// MetalLB's annotations that ask for what we have, too. Its others (what it wrote itself, for one) are its own.
fn alias(ask: &mut Ask, spec: &ServiceSpec, key: &str, value: &str) -> Result<(), Refused> {
    let Some(name) = METALLB.iter().find_map(|domain| key.strip_prefix(domain)) else { return Ok(()) };
    let ours = match name {
        "loadBalancerIPs" => "penstock.dev/addresses",
        "address-pool" => "penstock.dev/pool",
        "allow-shared-ip" => "penstock.dev/share-key",
        _ => return Ok(()),
    };
    let clash = |other: &str| Refused::new("Conflict", format!("{key} and {other} say different things"));
    if let Some(said) = spec.annotations.get(ours) {
        return if said.trim() == value { Ok(()) } else { Err(clash(ours)) };
    }
    let twin = METALLB.iter().map(|domain| format!("{domain}{name}")).find(|other| other != key);
    if let Some(twin) = twin
        && spec.annotations.get(&twin).is_some_and(|said| said.trim() != value)
    {
        return Err(clash(&twin));
    }
    match name {
        "loadBalancerIPs" => {
            ask.addresses = addresses(value).map_err(|why| Refused::new("BadAnnotation", format!("{key}: {why}")))?;
        }
        "address-pool" => ask.pool = Some(value.to_owned()),
        _ => ask.share_key = Some(value.to_owned()),
    }
    Ok(())
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

fn addresses(value: &str) -> Result<Vec<IpAddr>, String> {
    let list: Vec<IpAddr> = value
        .split(',')
        .map(|text| text.trim().parse().map_err(|_| format!("`{}` is no address", text.trim())))
        .collect::<Result<_, _>>()?;
    if list.len() > 2 || list.len() == 2 && list[0].is_ipv4() == list[1].is_ipv4() {
        return Err("at most one address per family".into());
    }
    Ok(list)
}

fn boolean(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| format!("`{value}` is neither `true` nor `false`"))
}

/// `10000`, `10000,source=100` or `source=100`: of all clients together, and of each.
fn limit(value: &str) -> Result<[Option<u32>; 2], String> {
    let mut limits = [None; 2];
    for part in value.split(',').map(str::trim) {
        let (of, digits) = part.strip_prefix("source=").map_or((0, part), |digits| (1, digits));
        let number: Option<u32> = digits.parse().ok().filter(|number| *number > 0);
        let Some(number) = number.filter(|_| limits[of].is_none()) else {
            return Err(format!("`{value}` is no limit; write a number, `source=` and a number, or both with a comma"));
        };
        limits[of] = Some(number);
    }
    Ok(limits)
}

/// "90", "90s, "15m", "2h".
fn seconds(value: &str) -> Result<u32, String> {
    let bad = || format!("`{value}` is no time; write seconds, or a number with s, m or h");
    let (digits, factor) = match value.as_bytes().last() {
        Some(b's') => (&value[..value.len() - 1], 1),
        Some(b'm') => (&value[..value.len() - 1], 60),
        Some(b'h') => (&value[..value.len() - 1], 3600),
        _ => (value, 1),
    };
    let number: u32 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(factor).filter(|s| *s > 0).ok_or_else(bad)
}
