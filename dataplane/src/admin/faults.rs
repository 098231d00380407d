//! The one place where documents are checked before the engine sees them: the schema's own rules
//! against this box, and claims across owners.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use penstock_configs::desired::{Desired, Health, Mode, Service};
use penstock_configs::fault::{Fault, Faults};
use penstock_configs::file::SnatAddress;
use penstock_configs::source;
use penstock_configs::validate::{self, BoxContext};
use serde::de::IgnoredAny;

use super::engine::Snapshots;
use super::refusal::Refusal;

/// # Errors
/// Why `owner` can be nobody's name.
pub fn check_name(owner: &str) -> Result<(), Refusal> {
    validate::owner_name(owner).map_or(Ok(()), |fault| Err(Refusal::OwnerName(Box::new(fault))))
}

/// An owner's snapshot off the wire, valid by itself.
///
/// # Errors
/// Not JSON at all, or every fault of it.
pub fn snapshot(owner: &str, json: &[u8], context: &BoxContext) -> Result<Desired, Refusal> {
    source::snapshot(json, owner, context).map_err(|faults| refusal(faults, json))
}

/// # Errors
/// As [`snapshot`]; also a backend named twice: which of the two states holds would be a matter of order.
pub fn health(json: &[u8]) -> Result<Health, Refusal> {
    let health = source::health(json).map_err(|faults| refusal(faults, json))?;
    let mut seen = HashMap::new();
    let mut faults = Vec::new();
    for (index, backend) in health.backends.iter().enumerate() {
        if let Some(first) = seen.insert((backend.address, backend.port), index) {
            let problem = format!("names the same address and port as backends[{first}]");
            faults.push(Fault::new(format!("backends[{index}]"), problem, "send one state per address and port"));
        }
    }
    all(faults).map(|()| health)
}

fn refusal(faults: Faults, json: &[u8]) -> Refusal {
    match <[Fault; 1]>::try_from(faults.list) {
        Ok([fault]) if serde_json::from_slice::<IgnoredAny>(json).is_err() => Refusal::NotJson(Box::new(fault)),
        Ok([fault]) => Refusal::Faults(vec![fault]),
        Err(list) => Refusal::Faults(list),
    }
}

/// What another owner holds already: the newcomer loses. Paths are the newcomer's own.
///
/// # Errors
/// Every claim that is taken, with its holder's name.
pub fn claims(owner: &str, desired: &Desired, others: &Snapshots) -> Result<(), Refusal> {
    let mut order: Vec<(&str, &Desired)> = others.iter().map(|(name, held)| (name.as_str(), &**held)).collect();
    order.push((owner, desired));
    let prefix = format!("{owner}: ");
    let mut faults = validate::claims_in_order(&order);
    for fault in &mut faults {
        if let Some(path) = fault.path.strip_prefix(&prefix) {
            fault.path = path.to_owned();
        }
    }
    all(faults)
}

/// For what did not come through [`snapshot`]: the config file, and snapshots kept on disk.
///
/// # Errors
/// Every fault of `desired` by itself, else every claim that is taken.
pub fn check(owner: &str, desired: &Desired, others: &Snapshots, context: &BoxContext) -> Result<(), Refusal> {
    all(validate::desired(desired, owner, context))?;
    claims(owner, desired, others)
}

/// What the box's file would take from owners that are served: a VIP for its own SNAT address, say.
///
/// # Errors
/// Every fault of the owners in the new box; paths begin with the owner's name.
pub fn others(others: &Snapshots, context: &BoxContext) -> Result<(), Refusal> {
    let of_owner = |(owner, desired): (&String, &Arc<Desired>)| {
        let faults = validate::desired(desired, owner, context).into_iter();
        faults.map(|fault| Fault { path: format!("{owner}: {}", fault.path), ..fault }).collect::<Vec<_>>()
    };
    all(others.iter().flat_map(of_owner).collect())
}

/// What of a snapshot passes [`check`], without the services and nodes that are at fault, and the faults. At a start
/// nothing goes on in the place of a snapshot refused whole: every flow of its owner would end for one service.
///
/// # Errors
/// Faults of no service or node.
pub fn fitting(
    owner: &str,
    desired: &Desired,
    others: &Snapshots,
    context: &BoxContext,
) -> Result<(Desired, Vec<Fault>), Refusal> {
    let (mut part, mut told) = (desired.clone(), Vec::new());
    while let Err(refusal) = check(owner, &part, others, context) {
        let named = |list| refusal.faults().iter().filter_map(|fault| place(&fault.path, list)).collect();
        let (services, nodes): (HashSet<usize>, HashSet<usize>) = (named("service"), named("node"));
        if services.is_empty() && nodes.is_empty() {
            return Err(refusal);
        }
        told.extend_from_slice(refusal.faults());
        // Told of the first of them alone.
        let lacks_snat = |service: &Service| {
            let of_family = |snat: &SnatAddress| snat.address.is_ipv4() == service.vip.is_ipv4();
            service.mode == Mode::Nat && !context.snat.iter().any(of_family)
        };
        let mut at = 0..;
        part.services.retain(|service| !at.next().is_some_and(|at| services.contains(&at)) && !lacks_snat(service));
        let gone: HashSet<String> = nodes.iter().filter_map(|at| Some(part.nodes.get(*at)?.name.clone())).collect();
        part.nodes.retain(|node| !gone.contains(&node.name));
        let lists = part.sets.iter_mut().map(|set| &mut set.backends);
        for list in lists.chain(part.services.iter_mut().map(|service| &mut service.backends)) {
            list.retain(|backend| !backend.node.as_ref().is_some_and(|node| gone.contains(node)));
        }
    }
    Ok((part, told))
}

/// Which of the list a path is about: `service[3] "web".vip`.
fn place(path: &str, list: &str) -> Option<usize> {
    path.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?.0.parse().ok()
}

fn all(faults: Vec<Fault>) -> Result<(), Refusal> {
    if faults.is_empty() { Ok(()) } else { Err(Refusal::Faults(faults)) }
}
