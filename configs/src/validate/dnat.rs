//! In `dnat` mode the node sees the client's own address and port, and its reply names neither VIP
//! nor service. If two services with different VIP or port send to one backend port, a client that
//! used one source port towards both could not be told apart on the way back: refused by name.
//!
//! Ten thousand services may share a set of 500 nodes: backends are gone through only where two
//! different lists meet on one port.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::claims::{Claim, Scope, all};
use crate::desired::{Backend, Desired, Mode, Protocol};
use crate::fault::Fault;
use crate::resolve::Resolver;

/// What services are compared within: only backends equal in all three can be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Lane {
    port: u16,
    protocol: Protocol,
    v4: bool,
}

/// A list of backends by identity: services that name one set share it.
type ListId = *const Backend;

struct Use<'a> {
    claim: Claim<'a>,
    resolver: &'a Resolver<'a>,
}

impl<'a> Use<'a> {
    fn list(&self) -> &'a [Backend] {
        self.resolver.list(self.claim.service)
    }

    fn targets(&self, lane: Lane) -> impl Iterator<Item = IpAddr> {
        self.resolver
            .backends_of(self.claim.service)
            .filter(move |backend| backend.port == lane.port)
            .map(|backend| backend.address)
    }
}

#[derive(Default)]
struct Search<'a> {
    /// By lane, the first service of each list.
    lanes: HashMap<Lane, Vec<Use<'a>>>,
    /// Lanes in the order of the documents: messages must not change from run to run.
    order: Vec<Lane>,
    first: HashMap<(ListId, Lane), Claim<'a>>,
    named_ports: HashMap<(ListId, bool), Vec<u16>>,
    /// Pairs of services told of: one fault per pair, however many backends they share.
    told: HashSet<[(&'a str, usize); 2]>,
    faults: Vec<Fault>,
}

pub(super) fn conflicts(owners: &[(&str, &Desired)], scope: Scope) -> Vec<Fault> {
    // Most documents have no such service, and need no index.
    if all(owners).all(|claim| claim.service.mode != Mode::Dnat) {
        return Vec::new();
    }
    let resolvers: HashMap<&str, Resolver> =
        owners.iter().map(|(owner, desired)| (*owner, Resolver::new(desired))).collect();
    let mut search = Search::default();
    for claim in all(owners).filter(|claim| claim.service.mode == Mode::Dnat) {
        search.add(&Use { claim, resolver: &resolvers[claim.owner] }, scope);
    }
    for lane in std::mem::take(&mut search.order) {
        search.meetings(lane, scope);
    }
    search.faults
}

impl<'a> Search<'a> {
    fn add(&mut self, new: &Use<'a>, scope: Scope) {
        let service = new.claim.service;
        let (list, v4) = (new.list(), service.vip.is_ipv4());
        let lane = |port| Lane { port, protocol: service.protocol, v4 };
        let portless = list.iter().any(|backend| backend.port.is_none());
        if let Some(port) = service.target_port.filter(|_| portless) {
            self.register(new, lane(port), scope);
        }
        let ports =
            self.named_ports.entry((list.as_ptr(), v4)).or_insert_with(|| named_ports(new.resolver, list, v4)).clone();
        for port in ports {
            // The first conflict stands for all ports of the list.
            if !self.register(new, lane(port), scope) {
                break;
            }
        }
    }

    /// False if the same list is on this lane already: a conflict at sight.
    fn register(&mut self, new: &Use<'a>, lane: Lane, scope: Scope) -> bool {
        let id = (new.list().as_ptr(), lane);
        if let Some(first) = self.first.get(&id) {
            if first.index != new.claim.index || first.owner != new.claim.owner {
                let first = *first;
                if let Some(target) = new.targets(lane).next() {
                    self.tell(&first, &new.claim, target, lane, scope);
                }
                return false;
            }
            return true;
        }
        self.first.insert(id, new.claim);
        let order = &mut self.order;
        let uses = self.lanes.entry(lane).or_insert_with(|| {
            order.push(lane);
            Vec::new()
        });
        uses.push(Use { claim: new.claim, resolver: new.resolver });
        true
    }

    /// Different lists that have an address in common.
    fn meetings(&mut self, lane: Lane, scope: Scope) {
        let uses = self.lanes.remove(&lane).unwrap_or_default();
        if uses.len() < 2 {
            return;
        }
        let mut first: HashMap<IpAddr, Claim> = HashMap::new();
        for one in &uses {
            for target in one.targets(lane) {
                let earlier = *first.entry(target).or_insert(one.claim);
                self.tell(&earlier, &one.claim, target, lane, scope);
            }
        }
    }

    fn tell(&mut self, earlier: &Claim<'a>, later: &Claim<'a>, target: IpAddr, lane: Lane, scope: Scope) {
        let (a, b) = (earlier.service, later.service);
        // One service by itself; or two that claim the same VIP and port, which is a fault of its own.
        if (a.vip, a.port) == (b.vip, b.port) {
            return;
        }
        if self.told.insert([(earlier.owner, earlier.index), (later.owner, later.index)]) {
            self.faults.push(fault(earlier, later, SocketAddr::new(target, lane.port), scope));
        }
    }
}

/// Ports that backends of the family name themselves.
fn named_ports(resolver: &Resolver, list: &[Backend], v4: bool) -> Vec<u16> {
    let mut seen = HashSet::new();
    let reachable = list.iter().filter(|backend| resolver.address_of(backend, v4).is_some());
    reachable.filter_map(|backend| backend.port).filter(|port| seen.insert(*port)).collect()
}

fn fault(earlier: &Claim, later: &Claim, target: SocketAddr, scope: Scope) -> Fault {
    let problem = format!(
        "service {:?} of owner {:?} sends to {target} in mode \"dnat\", as {} does: \
         replies to a client of both could not be told apart",
        later.service.name,
        later.owner,
        earlier.other()
    );
    Fault::new(later.path(scope), problem, "give one of them mode = \"nat\", or backend ports of its own")
}
