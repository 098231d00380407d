//! Address pools and the allocator, as plain data: no clock, no API.

mod allocator;
pub mod range;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use allocator::{Allocator, Grant, Outcome, Port, Refusal, Request, Usage};
pub use range::{Family, Range};

use crate::config::FilePool;
use crate::crd::VipPoolSpec;

/// A pool as the allocator uses it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub name: Arc<str>,
    /// What may be given: the pool's addresses without the reserved ones; ascending.
    pub usable: Vec<Range>,
    pub spec: Arc<VipPoolSpec>,
    /// Why the pool is not used for new addresses. Addresses it gave stay.
    pub fault: Option<String>,
}

impl Pool {
    /// A spec that cannot be read makes a pool with a fault, not none: its status says so.
    #[must_use]
    pub fn new(name: &str, spec: Arc<VipPoolSpec>) -> Self {
        let (usable, fault) = match usable(&spec) {
            Ok(usable) => (usable, None),
            Err(fault) => (Vec::new(), Some(fault)),
        };
        Self { name: name.into(), usable, spec, fault }
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.usable.iter().any(|range| range.contains(address))
    }

    /// Whether a Service with these labels, in a namespace with these, may have an address of the pool.
    #[must_use]
    pub fn admits(
        &self,
        namespace: &str,
        namespace_labels: &BTreeMap<String, String>,
        service_labels: &BTreeMap<String, String>,
    ) -> bool {
        let spec = &self.spec;
        let by_name = spec.namespaces.is_empty() && spec.namespace_selector.is_none()
            || spec.namespaces.iter().any(|n| n == namespace)
            || spec.namespace_selector.as_ref().is_some_and(|s| s.matches(namespace_labels));
        by_name && spec.service_selector.as_ref().is_none_or(|s| s.matches(service_labels))
    }

    /// Addresses that may be given.
    #[must_use]
    pub fn total(&self) -> u128 {
        let buggy = |range: &Range| if self.spec.avoid_buggy_ips { range.buggy() } else { 0 };
        self.usable.iter().fold(0, |sum, range| sum.saturating_add(range.len() - buggy(range)))
    }
}

fn usable(spec: &VipPoolSpec) -> Result<Vec<Range>, String> {
    if spec.addresses.is_empty() {
        return Err("addresses: empty".into());
    }
    let parse = |texts: &[String]| texts.iter().map(|t| range::parse(t)).collect::<Result<Vec<_>, _>>();
    let ranges = parse(&spec.addresses)?;
    let reserved = parse(&spec.reserved)?;
    for (i, one) in ranges.iter().enumerate() {
        if let Some(both) = ranges[i + 1..].iter().find_map(|other| one.overlap(other)) {
            return Err(format!("addresses: {both} is listed twice"));
        }
    }
    Ok(range::subtract(&ranges, &reserved))
}

/// Pools in the order of their right to an address: of two that overlap the later one gets a fault and is not used.
pub fn mark_overlaps(pools: &mut [Pool]) {
    for i in 1..pools.len() {
        let (earlier, rest) = pools.split_at_mut(i);
        let pool = &mut rest[0];
        if pool.fault.is_some() {
            continue;
        }
        pool.fault = earlier.iter().filter(|other| other.fault.is_none()).find_map(|other| {
            let both = pool.usable.iter().find_map(|r| other.usable.iter().find_map(|o| r.overlap(o)))?;
            Some(format!("{both} belongs to pool `{}` already", other.name))
        });
    }
}

/// The faults of the config file's pools, with their path.
#[must_use]
pub fn faults_of_file(pools: &[FilePool]) -> Vec<String> {
    let mut built: Vec<Pool> = pools.iter().map(|p| Pool::new(&p.name, Arc::new(p.spec()))).collect();
    mark_overlaps(&mut built);
    let mut faults: Vec<String> = built
        .iter()
        .filter_map(|p| p.fault.as_ref().map(|fault| format!("kubernetes.pool `{}`: {fault}", p.name)))
        .collect();
    for (i, pool) in pools.iter().enumerate() {
        if pools[..i].iter().any(|other| other.name == pool.name) {
            faults.push(format!("kubernetes.pool `{}`: the name is used twice", pool.name));
        }
    }
    faults
}
