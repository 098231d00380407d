//! What the API server makes of a Service before it is stored: defaults, cluster addresses, node ports, and what it
//! refuses. Source: `pkg/registry/core/service` and `pkg/apis/core/validation` of Kubernetes 1.33.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::object::{ApiError, Fault, int_at, list_at, map_of, name, namespace, str_at};
use super::store::Key;

/// `--service-node-port-range`
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Numbers given to Services. A node port belongs to one Service whatever the protocol; inside of a Service two
/// protocols may share it.
#[derive(Debug, Default)]
pub(super) struct Allocations {
    node_ports: BTreeMap<i64, Key>,
    addresses: BTreeMap<String, Key>,
    of: BTreeMap<Key, (Vec<i64>, Vec<String>)>,
    next_port: i64,
    next_address: u32,
}

impl Allocations {
    pub(super) fn note(&mut self, key: &Key, service: &Value) {
        self.forget(key);
        let mut ports: Vec<i64> = list_at(service, "/spec/ports").iter().map(|p| int_at(p, "/nodePort")).collect();
        ports.push(int_at(service, "/spec/healthCheckNodePort"));
        ports.retain(|p| *p != 0);
        let addresses: Vec<String> = list_at(service, "/spec/clusterIPs")
            .iter()
            .filter_map(|a| a.as_str().filter(|a| *a != "None").map(str::to_owned))
            .collect();
        self.node_ports.extend(ports.iter().map(|p| (*p, key.clone())));
        self.addresses.extend(addresses.iter().map(|a| (a.clone(), key.clone())));
        self.of.insert(key.clone(), (ports, addresses));
    }

    pub(super) fn forget(&mut self, key: &Key) {
        let (ports, addresses) = self.of.remove(key).unwrap_or_default();
        self.node_ports.retain(|port, _| !ports.contains(port));
        for address in addresses {
            self.addresses.remove(&address);
        }
    }

    fn port_is_free(&self, port: i64, key: &Key) -> bool {
        self.node_ports.get(&port).is_none_or(|owner| owner == key)
    }

    fn free_port(&mut self, taken: &BTreeSet<i64>) -> Option<i64> {
        let (first, count) = (*NODE_PORTS.start(), NODE_PORTS.end() - NODE_PORTS.start() + 1);
        for step in 0..count {
            let port = first + (self.next_port + step) % count;
            if !self.node_ports.contains_key(&port) && !taken.contains(&port) {
                self.next_port = port - first + 1;
                return Some(port);
            }
        }
        None
    }

    fn free_address(&mut self, family: &str) -> String {
        loop {
            self.next_address += 1;
            let n = self.next_address;
            let address = if family == "IPv6" {
                format!("fd00:10:96::{n:x}")
            } else {
                format!("10.{}.{}.{}", 96 + (n >> 16), (n >> 8) & 0xff, n & 0xff)
            };
            if !self.addresses.contains_key(&address) {
                return address;
            }
        }
    }
}

/// What is carried over from the stored Service where the request leaves it out, then defaults and allocations.
///
/// # Errors
/// 422 where a wanted number cannot be had.
pub(super) fn prepare(service: &mut Value, old: Option<&Value>, allocations: &mut Allocations) -> Result<(), ApiError> {
    let key: Key = (namespace(service).to_owned(), name(service).to_owned());
    if let Some(old) = old {
        drop_what_the_type_no_longer_has(service, old);
        carry_over(service, old);
    }
    let spec = map_of(service, "spec");
    default_fields(spec);
    default_families(spec, allocations);
    let kind = text(spec, "type");
    let has_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    if has_ports {
        let wants = kind == "NodePort" || spec.get("allocateLoadBalancerNodePorts") != Some(&json!(false));
        node_ports(spec, &key, wants, allocations)?;
    }
    let local = kind == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local";
    if local && spec.get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0) == 0 {
        let port = allocations.free_port(&used(spec)).ok_or_else(no_port)?;
        spec.insert("healthCheckNodePort".into(), json!(port));
    }
    if kind != "LoadBalancer" {
        // Since 1.29 the status of a Service that is no LoadBalancer (any more) is emptied.
        let status = map_of(service, "status");
        status.insert("loadBalancer".into(), json!({}));
    } else if service.pointer("/status/loadBalancer").is_none() {
        map_of(service, "status").insert("loadBalancer".into(), json!({}));
    }
    default_ip_mode(service);
    Ok(())
}

fn text(map: &Map<String, Value>, field: &str) -> String {
    map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn default(map: &mut Map<String, Value>, field: &str, value: Value) {
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), value);
    }
}

fn default_fields(spec: &mut Map<String, Value>) {
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    let kind = text(spec, "type");
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if text(spec, "sessionAffinity") == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10_800}}));
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            default(port, "protocol", json!("TCP"));
            let number = port.get("port").cloned().unwrap_or(json!(0));
            if port.get("targetPort").is_none_or(|t| t.is_null() || *t == json!(0) || *t == json!("")) {
                port.insert("targetPort".into(), number);
            }
        }
    }
}

/// The server here is dual-stack with IPv4 first.
fn default_families(spec: &mut Map<String, Value>, allocations: &mut Allocations) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let mut families: Vec<String> = listed(spec, "ipFamilies");
    let mut addresses: Vec<String> = listed(spec, "clusterIPs");
    if addresses.is_empty() && !text(spec, "clusterIP").is_empty() {
        addresses.push(text(spec, "clusterIP"));
    }
    let headless = addresses.first().is_some_and(|a| a == "None");
    if families.is_empty() {
        families = addresses.iter().filter_map(|a| a.parse().ok()).map(|a| family_of(a).to_owned()).collect();
    }
    if families.is_empty() {
        families.push("IPv4".into());
    }
    let implied = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    default(spec, "ipFamilyPolicy", json!(implied));
    let dual = text(spec, "ipFamilyPolicy") != "SingleStack";
    if dual && families.len() == 1 {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.into());
    }
    if !dual {
        families.truncate(1);
        addresses.truncate(1);
    }
    if !headless {
        for family in families.iter().skip(addresses.len()) {
            addresses.push(allocations.free_address(family));
        }
    }
    spec.insert("clusterIP".into(), json!(addresses.first().cloned().unwrap_or_default()));
    spec.insert("clusterIPs".into(), json!(addresses));
    spec.insert("ipFamilies".into(), json!(families));
}

fn listed(spec: &Map<String, Value>, field: &str) -> Vec<String> {
    let list = spec.get(field).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned)).collect()
}

fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn used(spec: &Map<String, Value>) -> BTreeSet<i64> {
    let ports = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
    ports.map(|p| int_at(p, "/nodePort")).chain(spec.get("healthCheckNodePort").and_then(Value::as_i64)).collect()
}

fn node_ports(
    spec: &mut Map<String, Value>,
    key: &Key,
    allocate: bool,
    allocations: &mut Allocations,
) -> Result<(), ApiError> {
    let mut taken = used(spec);
    // One number on two protocols gets one node port, where none is asked for.
    let mut of_number: BTreeMap<i64, BTreeMap<String, i64>> = BTreeMap::new();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let (number, wanted) = (int_at(port, "/port"), int_at(port, "/nodePort"));
        let protocol = str_at(port, "/protocol").to_owned();
        let siblings = of_number.entry(number).or_default();
        let chosen = if wanted != 0 {
            if !allocations.port_is_free(wanted, key) {
                let fault = Fault::new(
                    "spec.ports[0].nodePort",
                    format!("Invalid value: {wanted}: provided port is already allocated"),
                );
                return Err(ApiError::invalid("Service", &key.1, &[fault]));
            }
            wanted
        } else if !allocate {
            continue;
        } else if let Some(same) = siblings.iter().find(|(p, _)| **p != protocol).map(|(_, port)| *port) {
            same
        } else {
            allocations.free_port(&taken).ok_or_else(no_port)?
        };
        siblings.insert(protocol, chosen);
        taken.insert(chosen);
        port["nodePort"] = json!(chosen);
    }
    Ok(())
}

fn no_port() -> ApiError {
    ApiError::new(500, "InternalError", "Internal error occurred: failed to allocate a nodePort: range is full")
}

/// An update that does not speak of what was allocated keeps it.
fn carry_over(service: &mut Value, old: &Value) {
    let kind = str_at(service, "/spec/type").to_owned();
    let spec = map_of(service, "spec");
    if kind != "ExternalName" && str_at(old, "/spec/type") != "ExternalName" {
        if text(spec, "clusterIP").is_empty() && listed(spec, "clusterIPs").is_empty() {
            default(spec, "clusterIP", old["spec"]["clusterIP"].clone());
            default(spec, "clusterIPs", old["spec"]["clusterIPs"].clone());
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old["spec"].get(field) {
                default(spec, field, value.clone());
            }
        }
    }
    if !matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        return;
    }
    let former: BTreeMap<(i64, &str), i64> = list_at(old, "/spec/ports")
        .iter()
        .filter(|p| int_at(p, "/nodePort") != 0)
        .map(|p| ((int_at(p, "/port"), str_at(p, "/protocol")), int_at(p, "/nodePort")))
        .collect();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let protocol = Some(str_at(port, "/protocol")).filter(|p| !p.is_empty()).unwrap_or("TCP");
        let known = former.get(&(int_at(port, "/port"), protocol)).copied();
        if let (0, Some(known)) = (int_at(port, "/nodePort"), known) {
            port["nodePort"] = json!(known);
        }
    }
    let health = int_at(old, "/spec/healthCheckNodePort");
    let still_local = kind == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local";
    if still_local && health != 0 {
        default(spec, "healthCheckNodePort", json!(health));
    }
}

/// `dropTypeDependentFields`: what only the former type has goes, if the writer has left it as it was.
fn drop_what_the_type_no_longer_has(service: &mut Value, old: &Value) {
    let kind = Some(str_at(service, "/spec/type")).filter(|t| !t.is_empty()).unwrap_or("ClusterIP").to_owned();
    let was = str_at(old, "/spec/type").to_owned();
    let has_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    let local = |service: &Value| {
        str_at(service, "/spec/type") == "LoadBalancer" && str_at(service, "/spec/externalTrafficPolicy") == "Local"
    };
    let (was_local, is_local) = (local(old), local(service));
    let same_ports = list_at(service, "/spec/ports").iter().all(|p| {
        let port = int_at(p, "/nodePort");
        port == 0 || list_at(old, "/spec/ports").iter().any(|o| int_at(o, "/nodePort") == port)
    });
    let spec = map_of(service, "spec");
    let mut drop = |field: &str, goes: bool| {
        if goes && spec.get(field) == old["spec"].get(field) {
            spec.remove(field);
        }
    };
    drop("healthCheckNodePort", was_local && !is_local);
    drop("externalTrafficPolicy", has_ports(&was) && !has_ports(&kind));
    for field in ["loadBalancerClass", "allocateLoadBalancerNodePorts"] {
        drop(field, was == "LoadBalancer" && kind != "LoadBalancer");
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
        drop(field, was != "ExternalName" && kind == "ExternalName");
    }
    if has_ports(&was) && !has_ports(&kind) && same_ports {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
}

pub(super) fn default_ip_mode(service: &mut Value) {
    let ingress = service.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
    for entry in ingress.into_iter().flatten().filter_map(Value::as_object_mut) {
        if entry.contains_key("ip") {
            default(entry, "ipMode", json!("VIP"));
        }
    }
}

/// What is wrong with the Service; `old` on an update.
pub(super) fn faults(service: &Value, old: Option<&Value>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let kind = str_at(service, "/spec/type");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        faults.push(Fault::new("spec.type", format!("Unsupported value: \"{kind}\"")));
    }
    port_faults(service, kind, &mut faults);
    if kind == "LoadBalancer" && str_at(service, "/spec/clusterIP") == "None" {
        faults.push(Fault::new(
            "spec.clusterIPs[0]",
            "Invalid value: \"None\": may not be set to 'None' for LoadBalancer services",
        ));
    }
    let policy = str_at(service, "/spec/externalTrafficPolicy");
    if !policy.is_empty()
        && !matches!(kind, "NodePort" | "LoadBalancer")
        && list_at(service, "/spec/externalIPs").is_empty()
    {
        let why = "Invalid value: may only be set for externally-accessible services";
        faults.push(Fault::new("spec.externalTrafficPolicy", why));
    }
    if !matches!(policy, "" | "Cluster" | "Local") {
        faults.push(Fault::new("spec.externalTrafficPolicy", format!("Unsupported value: \"{policy}\"")));
    }
    let affinity = str_at(service, "/spec/sessionAffinity");
    if !matches!(affinity, "None" | "ClientIP") {
        faults.push(Fault::new("spec.sessionAffinity", format!("Unsupported value: \"{affinity}\"")));
    }
    let timeout = service.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds").and_then(Value::as_i64);
    if timeout.is_some_and(|t| !(1..=86_400).contains(&t)) {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        faults.push(Fault::new(field, "Invalid value: must be greater than 0 and at most 86400"));
    }
    class_faults(service, old, kind, &mut faults);
    source_faults(service, kind, &mut faults);
    faults.extend(status_faults(service));
    if let Some(old) = old {
        immutable_faults(service, old, kind, &mut faults);
    }
    faults
}

fn port_faults(service: &Value, kind: &str, faults: &mut Vec<Fault>) {
    let ports = list_at(service, "/spec/ports");
    if ports.is_empty() && kind != "ExternalName" && str_at(service, "/spec/clusterIP") != "None" {
        faults.push(Fault::new("spec.ports", "Required value"));
    }
    let (mut seen, mut names, mut node) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (at, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{at}]");
        let (number, protocol, label) = (int_at(port, "/port"), str_at(port, "/protocol"), str_at(port, "/name"));
        if !(1..=65_535).contains(&number) {
            faults.push(Fault::new(
                format!("{field}.port"),
                format!("Invalid value: {number}: must be between 1 and 65535, inclusive"),
            ));
        }
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            faults.push(Fault::new(format!("{field}.protocol"), format!("Unsupported value: \"{protocol}\"")));
        }
        if label.is_empty() && ports.len() > 1 {
            faults.push(Fault::new(format!("{field}.name"), "Required value"));
        }
        if !label.is_empty() && !names.insert(label) {
            faults.push(Fault::new(format!("{field}.name"), format!("Duplicate value: \"{label}\"")));
        }
        if !seen.insert((number, protocol)) {
            faults.push(Fault::new(field.clone(), format!("Duplicate value: {number}/{protocol}")));
        }
        let node_port = int_at(port, "/nodePort");
        if node_port != 0 && !matches!(kind, "NodePort" | "LoadBalancer") {
            faults
                .push(Fault::new(format!("{field}.nodePort"), "Forbidden: may not be used when `type` is 'ClusterIP'"));
        }
        if node_port != 0 && !NODE_PORTS.contains(&node_port) {
            let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
            faults.push(Fault::new(format!("{field}.nodePort"), format!("Invalid value: {node_port}: {why}")));
        }
        if node_port != 0 && !node.insert((node_port, protocol)) {
            faults.push(Fault::new(format!("{field}.nodePort"), format!("Duplicate value: {node_port}")));
        }
    }
}

fn class_faults(service: &Value, old: Option<&Value>, kind: &str, faults: &mut Vec<Fault>) {
    let class = service.pointer("/spec/loadBalancerClass").filter(|c| !c.is_null());
    if kind != "LoadBalancer" && class.is_some() {
        faults.push(Fault::new("spec.loadBalancerClass", "Forbidden: may only be used when `type` is 'LoadBalancer'"));
    }
    let Some(old) = old.filter(|old| str_at(old, "/spec/type") == "LoadBalancer" && kind == "LoadBalancer") else {
        return;
    };
    if old.pointer("/spec/loadBalancerClass").filter(|c| !c.is_null()) != class {
        faults.push(Fault::new("spec.loadBalancerClass", "Invalid value: may not change once set"));
    }
}

fn source_faults(service: &Value, kind: &str, faults: &mut Vec<Fault>) {
    let field = list_at(service, "/spec/loadBalancerSourceRanges");
    let annotation =
        service.pointer("/metadata/annotations").and_then(|a| a.get(SOURCE_RANGES)).and_then(Value::as_str);
    let (place, ranges): (&str, Vec<&str>) = match (field, annotation) {
        ([], None) => return,
        ([], Some(text)) => (
            "metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]",
            text.split(',').filter(|_| !text.trim().is_empty()).collect(),
        ),
        (list, _) => ("spec.LoadBalancerSourceRanges", list.iter().filter_map(Value::as_str).collect()),
    };
    if kind != "LoadBalancer" {
        faults.push(Fault::new(place, "Forbidden: may only be used when `type` is 'LoadBalancer'"));
    }
    for range in ranges {
        if range.trim().parse::<IpNet>().is_err() {
            faults.push(Fault::new(
                place,
                format!("Invalid value: \"{range}\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            ));
        }
    }
}

/// Of the status alone: its subresource does not look at what else an older server has let through.
pub(super) fn status_faults(service: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let kind = str_at(service, "/spec/type");
    let ingress = list_at(service, "/status/loadBalancer/ingress");
    if !ingress.is_empty() && kind != "LoadBalancer" {
        faults.push(Fault::new(
            "status.loadBalancer.ingress",
            "Forbidden: may only be used when `spec.type` is \"LoadBalancer\"",
        ));
    }
    for (at, entry) in ingress.iter().enumerate() {
        let (field, ip, mode) =
            (format!("status.loadBalancer.ingress[{at}]"), str_at(entry, "/ip"), str_at(entry, "/ipMode"));
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            faults.push(Fault::new(
                format!("{field}.ip"),
                format!("Invalid value: \"{ip}\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            ));
        }
        if ip.is_empty() && !mode.is_empty() {
            faults.push(Fault::new(format!("{field}.ipMode"), "Forbidden: may not be specified when `ip` is not set"));
        }
        if !matches!(mode, "" | "VIP" | "Proxy") {
            faults.push(Fault::new(format!("{field}.ipMode"), format!("Unsupported value: \"{mode}\"")));
        }
    }
    let mut seen = BTreeSet::new();
    for (at, condition) in list_at(service, "/status/conditions").iter().enumerate() {
        let field = format!("status.conditions[{at}]");
        let kind = str_at(condition, "/type");
        if kind.is_empty() || !seen.insert(kind) {
            faults.push(Fault::new(format!("{field}.type"), format!("Invalid value: \"{kind}\": required and unique")));
        }
        if !matches!(str_at(condition, "/status"), "True" | "False" | "Unknown") {
            faults.push(Fault::new(format!("{field}.status"), "Unsupported value"));
        }
        if str_at(condition, "/lastTransitionTime").is_empty() {
            faults.push(Fault::new(format!("{field}.lastTransitionTime"), "Required value: must be set"));
        }
        let reason = str_at(condition, "/reason");
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':');
        if !reason.starts_with(|c: char| c.is_ascii_alphabetic()) || !reason.chars().all(letters) || reason.len() > 1024
        {
            faults.push(Fault::new(
                format!("{field}.reason"),
                format!("Invalid value: \"{reason}\": a condition reason must start with alphabetic character"),
            ));
        }
        if str_at(condition, "/message").len() > 32_768 {
            faults.push(Fault::new(format!("{field}.message"), "Too long: may not be more than 32768 bytes"));
        }
    }
    faults
}

fn immutable_faults(service: &Value, old: &Value, kind: &str, faults: &mut Vec<Fault>) {
    let (now, was) = (str_at(service, "/spec/clusterIP"), str_at(old, "/spec/clusterIP"));
    if now != was && !was.is_empty() && kind != "ExternalName" {
        faults.push(Fault::new("spec.clusterIPs[0]", format!("Invalid value: \"{now}\": may not change once set")));
    }
    let (now, was) = (int_at(service, "/spec/healthCheckNodePort"), int_at(old, "/spec/healthCheckNodePort"));
    if now != was && now != 0 && was != 0 {
        faults.push(Fault::new("spec.healthCheckNodePort", "Forbidden: field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"namespace": "a", "name": "s"}, "spec": spec})
    }

    fn prepared(spec: Value, allocations: &mut Allocations) -> Value {
        let mut service = service(spec);
        prepare(&mut service, None, allocations).unwrap();
        assert_eq!(faults(&service, None), []);
        service
    }

    #[test]
    fn a_load_balancer_gets_what_a_real_one_gets() {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        let service = prepared(spec, &mut Allocations::default());
        let spec = &service["spec"];
        assert_eq!(spec["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30_000}));
        assert_eq!(spec["healthCheckNodePort"], 30_001);
        assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
        assert_eq!(spec["clusterIP"], spec["clusterIPs"][0]);
        assert_eq!(spec["allocateLoadBalancerNodePorts"], true);
    }

    #[test]
    fn one_number_on_two_protocols_may_share_a_node_port() {
        let ports = json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]);
        let service = prepared(json!({"type": "NodePort", "ports": ports}), &mut Allocations::default());
        assert_eq!(service["spec"]["ports"][0]["nodePort"], service["spec"]["ports"][1]["nodePort"]);
    }

    #[test]
    fn leaving_the_type_takes_its_fields_and_its_status() {
        let mut allocations = Allocations::default();
        let spec = json!({"type": "LoadBalancer", "loadBalancerClass": "x.dev/y", "ports": [{"port": 80}]});
        let mut old = prepared(spec, &mut allocations);
        old["status"]["loadBalancer"] = json!({"ingress": [{"ip": "203.0.113.1"}]});
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        prepare(&mut new, Some(&old), &mut allocations).unwrap();
        assert_eq!(faults(&new, Some(&old)), []);
        assert_eq!(new["spec"].get("loadBalancerClass"), None);
        assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(new["status"]["loadBalancer"], json!({}));
    }

    #[test]
    fn an_update_that_does_not_speak_of_node_ports_keeps_them() {
        let mut allocations = Allocations::default();
        let old = prepared(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}), &mut allocations);
        allocations.note(&("a".into(), "s".into()), &old);
        let mut new = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}, {"name": "x", "port": 81}]}));
        prepare(&mut new, Some(&old), &mut allocations).unwrap();
        assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        assert_ne!(new["spec"]["ports"][1]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    }

    #[test]
    fn what_a_real_one_refuses_is_refused() {
        let base = || json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        let refused = |change: &dyn Fn(&mut Value), field: &str| {
            let mut service = service(base());
            prepare(&mut service, None, &mut Allocations::default()).unwrap();
            let old = service.clone();
            change(&mut service);
            let found = faults(&service, Some(&old));
            assert!(found.iter().any(|f| f.field.contains(field)), "{field}: {found:?}");
        };
        refused(&|s| s["spec"]["ports"] = json!([]), "spec.ports");
        refused(&|s| s["spec"]["ports"][0]["port"] = json!(70_000), "port");
        refused(&|s| s["spec"]["loadBalancerClass"] = json!("a/b"), "loadBalancerClass");
        refused(&|s| s["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/33"]), "SourceRanges");
        refused(&|s| s["status"]["loadBalancer"] = json!({"ingress": [{"ip": "x"}]}), "ingress[0].ip");
        refused(&|s| s["status"]["conditions"] = json!([{"type": "A", "status": "True"}]), "lastTransitionTime");
        refused(&|s| s["spec"]["clusterIP"] = json!("10.96.9.9"), "clusterIPs");
    }
}
