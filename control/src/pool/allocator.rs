//! Who gets which address.
//!
//! An `Allocator` is built from the pools, the records and every Service's status whenever an address is asked for,
//! and thrown away after: it has no state that could drift from what the API server knows.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::Protocol;

use super::Pool;
use super::range::{self, Family, Range};

/// A service's port as the outside sees it.
pub type Port = (Protocol, u16);

/// What a Service asks for.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
    pub namespace_labels: Option<&'a BTreeMap<String, String>>,
    /// The families wanted, the first one first.
    pub families: Vec<Family>,
    /// A missing family means none at all (`RequireDualStack`).
    pub all_or_none: bool,
    pub addresses: Vec<IpAddr>,
    pub pool: Option<&'a str>,
    pub share_key: Option<&'a str>,
    pub ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub address: IpAddr,
    pub pool: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no pool has a free {0} address for it: pools are exhausted, not auto-assigned or select other Services")]
    Exhausted(Family),
    #[error("pool `{0}` has no free {1} address")]
    PoolExhausted(String, Family),
    #[error("there is no pool `{0}`")]
    NoPool(String),
    #[error("pool `{0}` cannot be used: {1}")]
    PoolFault(String, String),
    #[error("pool `{0}` does not select this Service")]
    NotSelected(String),
    #[error("{0} is in no pool")]
    NotInPool(IpAddr),
    #[error("{address} is used by Service {other}, and the two share no key")]
    NotShareable { address: IpAddr, other: String },
    #[error("{address} port {port}/{protocol} is used by Service {other}")]
    PortConflict { address: IpAddr, other: String, port: u16, protocol: &'static str },
    #[error("{address} is kept for Service {other}")]
    Held { address: IpAddr, other: String },
    #[error("{address} is in the status of Service {other}, which is not ours")]
    Foreign { address: IpAddr, other: String },
}

/// Per family: what was given, or why not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub grants: Vec<Grant>,
    pub refusals: Vec<Refusal>,
}

/// Somebody's use of an address.
#[derive(Debug, Clone)]
pub struct Usage {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub ports: Vec<Port>,
}

impl Usage {
    fn service(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, Default)]
struct InUse {
    share_key: String,
    users: Vec<Usage>,
    held_for: Option<(String, String)>,
    /// A Service that is not ours shows it.
    foreign: Option<String>,
}

#[derive(Debug)]
pub struct Allocator<'a> {
    pools: Vec<&'a Pool>,
    in_use: HashMap<IpAddr, InUse>,
    /// Per (pool, range): everything below is known to be taken, so that filling a pool costs no second look.
    next: HashMap<(usize, usize), u128>,
}

impl<'a> Allocator<'a> {
    #[must_use]
    pub fn new(pools: &'a [Pool]) -> Self {
        let mut pools: Vec<&Pool> = pools.iter().collect();
        // Stable: pools of one priority stay in the given order.
        pools.sort_by_key(|p| std::cmp::Reverse(p.spec.priority));
        Self { pools, in_use: HashMap::new(), next: HashMap::new() }
    }

    /// An address that is recorded as used, by nobody (`users` empty, perhaps held) or several.
    pub fn seed(&mut self, address: IpAddr, share_key: &str, users: Vec<Usage>, held_for: Option<(String, String)>) {
        let entry = self.in_use.entry(address).or_default();
        share_key.clone_into(&mut entry.share_key);
        entry.users.extend(users);
        entry.held_for = held_for;
    }

    /// An address that a Service of somebody else shows in its status.
    pub fn seed_foreign(&mut self, address: IpAddr, service: &str) {
        let entry = self.in_use.entry(address).or_default();
        // A record of ours is the better witness: the status is then what we once wrote.
        if entry.users.is_empty() {
            entry.foreign = Some(service.to_owned());
        }
    }

    pub fn allocate(&mut self, request: &Request<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        for family in &request.families {
            match self.choose(request, *family) {
                Ok(grant) => outcome.grants.push(grant),
                Err(refusal) => outcome.refusals.push(refusal),
            }
        }
        if request.all_or_none && !outcome.refusals.is_empty() {
            outcome.grants.clear();
        }
        for grant in &outcome.grants {
            self.take(grant.address, request);
        }
        outcome
    }

    fn take(&mut self, address: IpAddr, request: &Request<'_>) {
        let entry = self.in_use.entry(address).or_default();
        if let Some(key) = request.share_key {
            key.clone_into(&mut entry.share_key);
        }
        entry.held_for = None;
        entry.users.push(Usage {
            namespace: request.namespace.to_owned(),
            name: request.name.to_owned(),
            uid: request.uid.to_owned(),
            ports: request.ports.clone(),
        });
    }

    fn choose(&mut self, request: &Request<'_>, family: Family) -> Result<Grant, Refusal> {
        let explicit: Vec<IpAddr> = request.addresses.iter().copied().filter(|a| Family::of(*a) == family).collect();
        if !explicit.is_empty() {
            let mut refusal = None;
            for address in explicit {
                match self.explicit(request, address) {
                    Ok(grant) => return Ok(grant),
                    Err(why) => refusal = refusal.or(Some(why)),
                }
            }
            return Err(refusal.unwrap_or(Refusal::Exhausted(family)));
        }
        // An address that was kept for exactly this Service comes first; then one it may share.
        if let Some(grant) = self.held(request, family).or_else(|| self.shared(request, family)) {
            return Ok(grant);
        }
        if let Some(name) = request.pool {
            return self.named_pool(request, name, family);
        }
        let free = (0..self.pools.len())
            .filter(|i| self.pools[*i].fault.is_none() && self.pools[*i].spec.auto_assign)
            .filter(|i| admits(self.pools[*i], request))
            .collect::<Vec<_>>()
            .into_iter()
            .find_map(|i| self.free_in(i, family));
        free.ok_or(Refusal::Exhausted(family))
    }

    /// Whether it would, if `address` were asked for.
    #[must_use]
    pub fn would_grant(&self, request: &Request<'_>, address: IpAddr) -> bool {
        self.explicit(request, address).is_ok()
    }

    fn explicit(&self, request: &Request<'_>, address: IpAddr) -> Result<Grant, Refusal> {
        let in_range = |p: &&&Pool| p.contains(address) && request.pool.is_none_or(|name| *p.name == *name);
        let pool = self.pools.iter().find(in_range).ok_or(Refusal::NotInPool(address))?;
        if let Some(fault) = &pool.fault {
            return Err(Refusal::PoolFault(pool.name.to_string(), fault.clone()));
        }
        if !admits(pool, request) {
            return Err(Refusal::NotSelected(pool.name.to_string()));
        }
        self.may_use(request, address)?;
        Ok(Grant { address, pool: pool.name.clone() })
    }

    /// Whether `address` is free, or may be shared.
    fn may_use(&self, request: &Request<'_>, address: IpAddr) -> Result<(), Refusal> {
        let Some(entry) = self.in_use.get(&address) else { return Ok(()) };
        if let Some(other) = &entry.foreign {
            return Err(Refusal::Foreign { address, other: other.clone() });
        }
        if let Some((namespace, name)) = &entry.held_for
            && (namespace.as_str(), name.as_str()) != (request.namespace, request.name)
        {
            return Err(Refusal::Held { address, other: format!("{namespace}/{name}") });
        }
        let others = || entry.users.iter().filter(|u| u.uid != request.uid);
        if let Some(other) = others().next()
            && request.share_key.is_none_or(|key| key.is_empty() || key != entry.share_key)
        {
            return Err(Refusal::NotShareable { address, other: other.service() });
        }
        for other in others() {
            if let Some((protocol, port)) = other.ports.iter().find(|p| request.ports.contains(p)) {
                let (port, protocol) = (*port, protocol_name(*protocol));
                return Err(Refusal::PortConflict { address, other: other.service(), port, protocol });
            }
        }
        Ok(())
    }

    fn held(&self, request: &Request<'_>, family: Family) -> Option<Grant> {
        let mine = (request.namespace.to_owned(), request.name.to_owned());
        let address = self
            .in_use
            .iter()
            .filter(|(a, u)| Family::of(**a) == family && u.held_for.as_ref() == Some(&mine))
            .map(|(a, _)| *a)
            .min()?;
        self.explicit(request, address).ok()
    }

    fn shared(&self, request: &Request<'_>, family: Family) -> Option<Grant> {
        let key = request.share_key.filter(|k| !k.is_empty())?;
        let mut candidates: Vec<IpAddr> = self
            .in_use
            .iter()
            .filter(|(a, u)| Family::of(**a) == family && u.share_key == key)
            .map(|(a, _)| *a)
            .collect();
        candidates.sort();
        candidates.into_iter().find_map(|address| self.explicit(request, address).ok())
    }

    fn named_pool(&mut self, request: &Request<'_>, name: &str, family: Family) -> Result<Grant, Refusal> {
        let i = self.pools.iter().position(|p| *p.name == *name).ok_or_else(|| Refusal::NoPool(name.to_owned()))?;
        if let Some(fault) = &self.pools[i].fault {
            return Err(Refusal::PoolFault(name.to_owned(), fault.clone()));
        }
        if !admits(self.pools[i], request) {
            return Err(Refusal::NotSelected(name.to_owned()));
        }
        self.free_in(i, family).ok_or_else(|| Refusal::PoolExhausted(name.to_owned(), family))
    }

    fn free_in(&mut self, pool: usize, family: Family) -> Option<Grant> {
        let source = self.pools[pool];
        for (i, range) in source.usable.iter().enumerate().filter(|(_, r)| r.family == family) {
            let from = self.next.get(&(pool, i)).copied().unwrap_or(range.first);
            let found = first_free(range, from, source.spec.avoid_buggy_ips, &self.in_use);
            // Whoever asks takes what is found, or finds nothing below it next time either.
            self.next.insert((pool, i), found.unwrap_or(range.last.saturating_add(1)));
            if let Some(number) = found {
                return Some(Grant { address: range::address(family, number), pool: source.name.clone() });
            }
        }
        None
    }
}

fn first_free(range: &Range, from: u128, avoid_buggy: bool, in_use: &HashMap<IpAddr, InUse>) -> Option<u128> {
    (from..=range.last).find(|number| {
        let address = range::address(range.family, *number);
        let avoided = avoid_buggy && range::is_buggy(address);
        !avoided && !in_use.contains_key(&address)
    })
}

fn admits(pool: &Pool, request: &Request<'_>) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    pool.admits(request.namespace, request.namespace_labels.unwrap_or(&NONE), request.labels.unwrap_or(&NONE))
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}
