//! What only one may have: a VIP:port:protocol, and the way back from a `dnat` backend port. Looked
//! at within one owner, and across all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::{dnat, item_path};
use crate::desired::{Desired, Protocol, Service};
use crate::fault::Fault;

/// A service with where it stands.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) owner: &'a str,
    pub(super) index: usize,
    pub(super) service: &'a Service,
}

/// How claims are told of: within one owner by the paths of its document, among several with the
/// owner before the path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    One,
    Several,
}

impl Claim<'_> {
    pub(super) fn path(&self, scope: Scope) -> String {
        let path = item_path("service", self.index, &self.service.name);
        match scope {
            Scope::One => path,
            Scope::Several => format!("{}: {path}", self.owner),
        }
    }

    /// For the problem's text: the other party.
    pub(super) fn other(&self) -> String {
        format!("service {:?} of owner {:?}", self.service.name, self.owner)
    }
}

/// Everything two of the owners, or one of them twice, claim: a VIP:port:protocol, a VIP that is
/// another's node, a `dnat` backend port. A fault's path begins with the later owner's name.
#[must_use]
pub fn claims(owners: &BTreeMap<String, Desired>) -> Vec<Fault> {
    let owners: Vec<(&str, &Desired)> = owners.iter().map(|(owner, desired)| (owner.as_str(), desired)).collect();
    claims_in_order(&owners)
}

/// [`claims`] where who came first matters: a fault's path begins with the later one's name.
#[must_use]
pub fn claims_in_order(owners: &[(&str, &Desired)]) -> Vec<Fault> {
    let mut faults = vips(owners, Scope::Several);
    faults.extend(vips_that_are_nodes(owners));
    faults.extend(dnat::conflicts(owners, Scope::Several));
    faults
}

pub(super) fn within(owner: &str, desired: &Desired) -> Vec<Fault> {
    let owners = [(owner, desired)];
    let mut faults = vips(&owners, Scope::One);
    faults.extend(dnat::conflicts(&owners, Scope::One));
    faults
}

pub(super) fn all<'a>(owners: &'a [(&'a str, &'a Desired)]) -> impl Iterator<Item = Claim<'a>> {
    owners.iter().flat_map(|(owner, desired)| {
        desired.services.iter().enumerate().map(move |(index, service)| Claim { owner, index, service })
    })
}

fn vips(owners: &[(&str, &Desired)], scope: Scope) -> Vec<Fault> {
    let mut first: HashMap<(IpAddr, u16, Protocol), Claim> = HashMap::new();
    let mut faults = Vec::new();
    for claim in all(owners) {
        let Service { vip, port, protocol, .. } = claim.service;
        if let Some(earlier) = first.get(&(*vip, *port, *protocol)) {
            let what = format!("{} {}", std::net::SocketAddr::new(*vip, *port), protocol.as_str());
            let problem = format!(
                "{what} of service {:?} of owner {:?} is claimed by {} already",
                claim.service.name,
                claim.owner,
                earlier.other()
            );
            let path = format!("{}.vip", claim.path(scope));
            faults.push(Fault::new(path, problem, "give one of them another VIP or port"));
        } else {
            first.insert((*vip, *port, *protocol), claim);
        }
    }
    faults
}

/// Within one owner the services' own check sees this.
fn vips_that_are_nodes(owners: &[(&str, &Desired)]) -> Vec<Fault> {
    let mut holders: HashMap<IpAddr, Vec<(&str, &str)>> = HashMap::new();
    for (owner, desired) in owners {
        for node in &desired.nodes {
            for address in &node.addresses {
                holders.entry(*address).or_default().push((owner, &node.name));
            }
        }
    }
    let clash = |claim: Claim| {
        let (owner, node) = holders.get(&claim.service.vip)?.iter().find(|(owner, _)| *owner != claim.owner)?;
        Some(Fault::new(
            format!("{}.vip", claim.path(Scope::Several)),
            format!("{} is the address of node {node:?} of owner {owner:?}", claim.service.vip),
            "choose an address nothing else uses",
        ))
    };
    all(owners).filter_map(clash).collect()
}
