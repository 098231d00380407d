//! A service's limits of connections and rates.

use crate::desired::{Service, SourceLimits};
use crate::fault::Fault;

/// Rates are counted in 22 bits.
const LARGEST_RATE: u32 = (1 << 22) - 1;

/// Of service `within` a path.
pub(super) fn check(within: &dyn Fn(&str) -> String, service: &Service) -> Vec<Fault> {
    let Some(limits) = &service.limits else { return Vec::new() };
    let mut faults = Vec::new();
    let mut fault = |key: &str, problem: String, remedy: &str| {
        let dot = if key.is_empty() { "" } else { "." };
        faults.push(Fault::new(format!("{}{dot}{key}", within("limits")), problem, remedy));
    };
    if limits.connections.is_none() && limits.new_per_second.is_none() && limits.per_source.is_none() {
        fault("", "limits nothing".into(), "write connections, new_per_second or per_source, or leave it out");
    }
    numbers("", limits.connections, limits.new_per_second, &mut fault);
    let Some(source) = &limits.per_source else { return faults };
    let SourceLimits { connections, new_per_second, prefix_v4, prefix_v6 } = *source;
    numbers("per_source.", connections, new_per_second, &mut fault);
    if connections.is_none() && new_per_second.is_none() {
        fault("per_source", "limits nothing".into(), "write connections or new_per_second, or leave it out");
    }
    for (key, length, most) in [("prefix_v4", prefix_v4, 32), ("prefix_v6", prefix_v6, 128)] {
        if !(1..=most).contains(&length) {
            let remedy = format!("write 1 to {most}; for all clients together the service's own limits are meant");
            fault(&format!("per_source.{key}"), format!("is {length}"), &remedy);
        }
    }
    for (key, of_source, of_service) in
        [("connections", connections, limits.connections), ("new_per_second", new_per_second, limits.new_per_second)]
    {
        if let (Some(source), Some(service)) = (of_source, of_service)
            && source > service
        {
            let problem = format!("is {source}, more than the whole service may have ({service})");
            fault(&format!("per_source.{key}"), problem, "lower it, or raise the service's");
        }
    }
    faults
}

fn numbers(
    prefix: &str,
    connections: Option<u32>,
    new_per_second: Option<u32>,
    fault: &mut impl FnMut(&str, String, &str),
) {
    let none = "write at least 1; to serve nobody, take the backends away";
    if connections == Some(0) {
        fault(&format!("{prefix}connections"), "is 0".into(), none);
    }
    match new_per_second {
        Some(0) => fault(&format!("{prefix}new_per_second"), "is 0".into(), none),
        Some(rate) if rate > LARGEST_RATE => {
            let remedy = format!("write at most {LARGEST_RATE}, or leave it out");
            fault(&format!("{prefix}new_per_second"), format!("is {rate}"), &remedy);
        }
        _ => {}
    }
}
