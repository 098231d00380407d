//! What the API server refuses of a Service.
//! Source: `ValidateService`, `ValidateServiceUpdate` and `ValidateLoadBalancerStatus` of Kubernetes 1.33.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::object::{Fault, int_at, list_at, str_at};
use super::service::NODE_PORTS;

const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

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
