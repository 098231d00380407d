//! What annotations ask for: ours, and MetalLB's that mean the same.

use std::net::IpAddr;

use penstock_configs::desired::{Announce, OnIdle, Protocol, Scheduler};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ask::{Ask, DOMAIN, METALLB, Refused};
use super::kinds::ServiceSpec;

/// One annotation that we read ([`super::ask::is_ours`]); the value is trimmed.
pub(super) fn apply(ask: &mut Ask, spec: &ServiceSpec, key: &str, value: &str) -> Result<(), Refused> {
    let bad = |why: String| Refused::new("BadAnnotation", format!("{key}: {why}"));
    let unsupported = |why: String| Refused::new("NotSupported", format!("{key}: {why}"));
    let Some(name) = key.strip_prefix(DOMAIN) else { return alias(ask, spec, key, value) };
    match name {
        "expose" => boolean(value).map(drop).map_err(bad),
        "addresses" => addresses(value).map(|list| ask.addresses = list).map_err(bad),
        "pool" => {
            ask.pool = Some(value.to_owned());
            Ok(())
        }
        "share-key" => {
            ask.share_key = Some(value.to_owned());
            Ok(())
        }
        "mode" => word(value).map(|mode| ask.mode = mode).map_err(unsupported),
        "scheduler" => word(value).map(|scheduler| ask.scheduler = scheduler).map_err(unsupported),
        "idle-timeout" => seconds(value).map(|s| ask.idle_timeout = Some(s)).map_err(bad),
        "sticky" => boolean(value).map(|yes| ask.sticky = yes).map_err(bad),
        "weights" => match value {
            "endpoints" | "equal" => {
                ask.weigh_by_endpoints = value == "endpoints";
                Ok(())
            }
            _ => Err(bad(format!("`{value}` is neither `endpoints` nor `equal`"))),
        },
        "announce" => word::<Announce>(value).map(|how| ask.announce = Some(how)).map_err(bad),
        "limit-connections" | "limit-rate" => limits(ask, name, value).map_err(bad),
        "on-down" => word(value).map(|what| ask.on_down = Some(what)).map_err(bad),
        "on-idle" => word(value).map(|what| ask.on_idle = Some(what)).map_err(bad),
        "no-backend" => word(value).map(|what| ask.no_backend = Some(what)).map_err(bad),
        "slow-start" => slow_start(value).map(|s| ask.slow_start = Some(s)).map_err(bad),
        "panic-threshold" => percent(value).map(|p| ask.panic_threshold = Some(p)).map_err(bad),
        _ => Err(Refused::new("UnknownAnnotation", format!("{key} is not known to this version"))),
    }
}

/// What two annotations, or one and the Service's ports, say together.
pub(super) fn agree(ask: &Ask, spec: &ServiceSpec) -> Result<(), Refused> {
    let refused = |name: &str, why: String| Err(Refused::new("Conflict", format!("{DOMAIN}{name}: {why}")));
    let has = |wanted: &dyn Fn(Protocol) -> bool| spec.ports.iter().any(|port| wanted(port.protocol));
    if ask.on_down.is_some_and(|what| what != Default::default()) && !has(&|protocol| protocol != Protocol::Udp) {
        return refused("on-down", "is about connections, and the Service has UDP ports only".into());
    }
    if ask.on_idle == Some(OnIdle::Reset) && !has(&|protocol| protocol == Protocol::Tcp) {
        return refused("on-idle", "only TCP connections can be reset, and the Service has no TCP port".into());
    }
    let unweighted = matches!(ask.scheduler, Scheduler::Rr | Scheduler::Lc | Scheduler::Sh | Scheduler::Dh);
    if ask.slow_start.is_some() && unweighted {
        return refused("slow-start", format!("has no effect with the scheduler {}", ask.scheduler.as_str()));
    }
    Ok(())
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

/// One of the words the schema knows there.
fn word<T: DeserializeOwned>(value: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(value.to_owned())).map_err(|error| error.to_string())
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

fn limits(ask: &mut Ask, name: &str, value: &str) -> Result<(), String> {
    let [all, source] = limit(value)?;
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

fn slow_start(value: &str) -> Result<u32, String> {
    let most = penstock_configs::validate::MOST_SLOW_START;
    let seconds = seconds(value)?;
    if seconds > most { Err(format!("`{value}` is too long; at most {most} seconds")) } else { Ok(seconds) }
}

/// "50" or "50%".
fn percent(value: &str) -> Result<u8, String> {
    let digits = value.strip_suffix('%').unwrap_or(value).trim();
    digits.parse().ok().filter(|p| *p <= 100).ok_or_else(|| format!("`{value}` is no percentage from 0 to 100"))
}
