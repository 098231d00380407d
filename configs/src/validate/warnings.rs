//! What is allowed and seldom meant: for `penstock check` and the log, never a reason to refuse.

use std::collections::{HashMap, HashSet};

use super::item_path;
use crate::desired::{BackendState, Desired, Mode};
use crate::fault::Fault;
use crate::resolve::Resolver;

/// Services that serve nobody, sets nobody names, nodes that cannot be reached or told apart.
#[must_use]
pub fn warnings(desired: &Desired) -> Vec<Fault> {
    let mut found = Vec::new();
    services(desired, &mut found);
    let named: HashSet<&str> = desired.services.iter().filter_map(|service| service.set.as_deref()).collect();
    for (index, set) in desired.sets.iter().enumerate().filter(|(_, set)| !named.contains(set.name.as_str())) {
        let path = item_path("set", index, &set.name);
        found.push(Fault::new(path, "is named by no service", "name it, or remove it"));
    }
    let mut holders = HashMap::new();
    for (index, node) in desired.nodes.iter().enumerate() {
        let path = item_path("node", index, &node.name);
        if node.addresses.is_empty() {
            found.push(Fault::new(&path, "has no address: it gets no packets", "give it one"));
        }
        for address in &node.addresses {
            if let Some(other) = holders.insert(*address, &node.name).filter(|other| **other != node.name) {
                let problem = format!("has the address {address}, as node {other:?} does");
                found.push(Fault::new(&path, problem, "check which of them is meant"));
            }
        }
    }
    found
}

fn services(desired: &Desired, found: &mut Vec<Fault>) {
    let resolver = Resolver::new(desired);
    for (index, service) in desired.services.iter().enumerate() {
        let path = || item_path("service", index, &service.name);
        let takes_flows = |weight: u16, state: BackendState| weight > 0 && state == BackendState::Active;
        // The first that takes new flows ends the search: cheap for all services on one large set.
        if !resolver.backends_of(service).any(|backend| takes_flows(backend.weight, backend.state)) {
            let problem = "has no backend that takes new flows: clients are refused";
            found.push(Fault::new(path(), problem, "add an active backend with a weight above 0"));
        }
        if !service.reply_check {
            let problem = match service.mode {
                Mode::Dnat => "is off: a node that does not send its replies by the box blackholes its clients",
                _ => "is about mode \"dnat\" only",
            };
            found.push(Fault::new(format!("{}.reply_check", path()), problem, "leave it out"));
        }
        let allows = |net: &ipnet::IpNet| net.addr().is_ipv4() == service.vip.is_ipv4();
        if !service.source_ranges.is_empty() && !service.source_ranges.iter().any(allows) {
            let problem = "has no range of the VIP's family: every client is refused";
            found.push(Fault::new(format!("{}.source_ranges", path()), problem, "add one, or leave the key out"));
        }
    }
}
