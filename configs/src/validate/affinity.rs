//! Session affinity: each service's own, and that services of one group mean the same by it.

use std::collections::HashMap;

use super::{item_path, names};
use crate::desired::{Affinity, Desired};
use crate::fault::Fault;

/// Kubernetes' own limit: a day.
const LONGEST: u32 = 86_400;

pub(super) fn check(desired: &Desired) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut groups: HashMap<&str, (usize, &Affinity)> = HashMap::new();
    for (index, service) in desired.services.iter().enumerate() {
        let Some(affinity) = &service.affinity else { continue };
        let path = || format!("{}.affinity", item_path("service", index, &service.name));
        own(&path, affinity, &mut faults);
        let Some(group) = &affinity.group else { continue };
        if let Some((problem, remedy)) = names::problem(group, names::NAME, names::MARKS) {
            faults.push(Fault::new(format!("{}.group", path()), problem, remedy));
            continue;
        }
        let (first, other) = *groups.entry(group).or_insert((index, affinity));
        for (key, ours, theirs) in [
            ("timeout", affinity.timeout, other.timeout),
            ("prefix_v4", affinity.prefix_v4.into(), other.prefix_v4.into()),
            ("prefix_v6", affinity.prefix_v6.into(), other.prefix_v6.into()),
        ] {
            if ours != theirs {
                let other = item_path("service", first, &desired.services[first].name);
                let problem = format!("is {ours}, and {other} of the same group {group:?} has {theirs}");
                let remedy = "write the same in all services of a group";
                faults.push(Fault::new(format!("{}.{key}", path()), problem, remedy));
            }
        }
    }
    faults
}

fn own(path: &dyn Fn() -> String, affinity: &Affinity, faults: &mut Vec<Fault>) {
    for (key, value, most, what) in [
        ("timeout", affinity.timeout, LONGEST, "seconds, a day at most"),
        ("prefix_v4", affinity.prefix_v4.into(), 32, "bits"),
        ("prefix_v6", affinity.prefix_v6.into(), 128, "bits"),
    ] {
        if !(1..=most).contains(&value) {
            let remedy = format!("write 1 to {most} {what}, or leave it out");
            faults.push(Fault::new(format!("{}.{key}", path()), format!("is {value}"), remedy));
        }
    }
}
