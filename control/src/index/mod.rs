//! What we know of the cluster, as plain data.
//!
//! Watch events only mutate an [`Index`], and each mutation answers whether anything that matters changed: a
//! resync that brings nothing new is silent. Nothing here is async, and no object of the API is kept: only the
//! fields that the rest reads ([`extract`]).

mod annotations;
pub mod ask;
pub mod extract;
pub mod kinds;
pub mod outcome;
pub mod table;
pub mod translate;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

pub use kinds::{Counts, NamespaceInfo, NodeInfo, Out, PoolInfo, RecordInfo, ServiceInfo, ServiceKey, SliceInfo};
pub use table::{Change, Changed, Table};

use crate::config::KubernetesConfig;
use crate::crd::{VipAllocation, VipPool};
use crate::pool::{self, Pool};

/// One watch event of one kind.
#[derive(Debug, Clone)]
pub enum Update {
    Service(Change<ServiceKey, ServiceInfo>),
    Node(Change<Arc<str>, NodeInfo>),
    Slice(Change<ServiceKey, SliceInfo>),
    Namespace(Change<Arc<str>, NamespaceInfo>),
    Pool(Change<Arc<str>, PoolInfo>),
    Record(Change<IpAddr, RecordInfo>),
}

#[derive(Debug, Default)]
pub struct Index {
    pub services: Table<ServiceKey, ServiceInfo>,
    pub nodes: Table<Arc<str>, NodeInfo>,
    /// By the slice's own namespace and name.
    pub slices: Table<ServiceKey, SliceInfo>,
    pub namespaces: Table<Arc<str>, NamespaceInfo>,
    pub pools: Table<Arc<str>, PoolInfo>,
    pub records: Table<IpAddr, RecordInfo>,
    /// Nodes that were labelled out a while ago: they keep their flows. Time is the controller's.
    pub draining: HashSet<Arc<str>>,
    slices_of: HashMap<ServiceKey, BTreeSet<ServiceKey>>,
    claims_of: HashMap<ServiceKey, BTreeSet<IpAddr>>,
    names: HashSet<Arc<str>>,
}

impl Index {
    pub fn apply(&mut self, update: Update) -> Changed {
        match update {
            Update::Service(change) => self.services.apply(change, |_, _, _| {}),
            Update::Node(change) => self.nodes.apply(change, |_, _, _| {}),
            Update::Namespace(change) => self.namespaces.apply(change, |_, _, _| {}),
            Update::Pool(change) => self.pools.apply(change, |_, _, _| {}),
            Update::Slice(change) => self.apply_slice(change),
            Update::Record(change) => {
                let claims_of = &mut self.claims_of;
                self.records.apply(change, |address, old, new| {
                    for key in old.iter().flat_map(|r| r.services()) {
                        if let Some(addresses) = claims_of.get_mut(&key) {
                            addresses.remove(address);
                            if addresses.is_empty() {
                                claims_of.remove(&key);
                            }
                        }
                    }
                    for key in new.iter().flat_map(|r| r.services()) {
                        claims_of.entry(key).or_default().insert(*address);
                    }
                })
            }
        }
    }

    fn apply_slice(&mut self, mut change: Change<ServiceKey, SliceInfo>) -> Changed {
        if let Change::Seen(_, slice) | Change::Put(_, slice) | Change::Wrote(_, slice) = &mut change {
            for (node, _) in &mut slice.nodes {
                *node = intern(&mut self.names, node);
            }
        }
        let slices_of = &mut self.slices_of;
        self.slices.apply(change, |name, old, new| {
            if let Some(old) = old
                && let Some(names) = slices_of.get_mut(&old.service)
            {
                names.remove(name);
                if names.is_empty() {
                    slices_of.remove(&old.service);
                }
            }
            if let Some(new) = new {
                slices_of.entry(new.service.clone()).or_default().insert(name.clone());
            }
        })
    }

    /// Whether each kind has been listed once: before that, an object that is not here may only not be here *yet*.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.unsynced().is_empty()
    }

    /// The kinds not yet listed, for people.
    #[must_use]
    pub fn unsynced(&self) -> Vec<&'static str> {
        [
            ("services", self.services.synced),
            ("nodes", self.nodes.synced),
            ("endpointslices", self.slices.synced),
            ("namespaces", self.namespaces.synced),
            ("vippools", self.pools.synced),
            ("vipallocations", self.records.synced),
        ]
        .into_iter()
        .filter_map(|(name, synced)| (!synced).then_some(name))
        .collect()
    }

    pub fn slices_of(&self, service: &ServiceKey) -> impl Iterator<Item = &SliceInfo> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// The records that claim an address for a Service of this name, whatever its UID.
    pub fn records_of(&self, service: &ServiceKey) -> impl Iterator<Item = &RecordInfo> {
        self.claims_of.get(service).into_iter().flatten().filter_map(|address| self.records.get(address))
    }

    /// Pools of the file first, then those of the cluster, oldest first: of two that overlap the later is at fault.
    #[must_use]
    pub fn all_pools(&self, config: &KubernetesConfig) -> Vec<Pool> {
        let mut pools: Vec<Pool> = config.pools.iter().map(|p| Pool::new(&p.name, Arc::new(p.spec()))).collect();
        let mut cluster: Vec<(&Arc<str>, &PoolInfo)> = self.pools.iter().collect();
        cluster.sort_by_key(|(name, pool)| (pool.created, (*name).clone()));
        for (name, info) in cluster {
            let mut pool = Pool::new(name, info.spec.clone());
            if config.pools.iter().any(|p| *p.name == **name) {
                pool.fault = Some("a pool of the box's file has this name".into());
            }
            pools.push(pool);
        }
        pool::mark_overlaps(&mut pools);
        pools
    }
}

fn intern(names: &mut HashSet<Arc<str>>, name: &Arc<str>) -> Arc<str> {
    if let Some(known) = names.get(name) {
        return known.clone();
    }
    if names.len() == names.capacity() {
        // Rather than grow: nodes come and go.
        names.retain(|name| Arc::strong_count(name) > 1);
    }
    names.insert(name.clone());
    name.clone()
}

/// Turns a watcher's event into a change of one table. An object that concerns nobody (`None`) counts as gone.
fn change<K: ResourceExt, Key, Value>(
    event: Event<K>,
    extract: impl Fn(&K) -> (Key, Option<Value>),
) -> Change<Key, Value> {
    let version = |object: &K| object.resource_version().and_then(|v| v.parse().ok()).unwrap_or(0);
    match event {
        Event::Init => Change::Begin,
        Event::InitDone => Change::End,
        Event::InitApply(object) => match extract(&object) {
            (key, Some(value)) => Change::Seen(key, value),
            (key, None) => Change::Gone(key, version(&object)),
        },
        Event::Apply(object) => match extract(&object) {
            (key, Some(value)) => Change::Put(key, value),
            (key, None) => Change::Gone(key, version(&object)),
        },
        Event::Delete(object) => Change::Gone(extract(&object).0, version(&object)),
    }
}

#[must_use]
pub fn on_service(event: Event<Service>, config: &KubernetesConfig) -> Update {
    Update::Service(change(event, |object| (extract::key(&object.metadata), extract::service(object, config))))
}

/// The answer to a write of ours.
#[must_use]
pub fn wrote_service(object: Service, config: &KubernetesConfig) -> Update {
    match on_service(Event::Apply(object), config) {
        Update::Service(Change::Put(key, info)) => Update::Service(Change::Wrote(key, info)),
        other => other,
    }
}

#[must_use]
pub fn on_node(event: Event<Node>, config: &KubernetesConfig) -> Update {
    Update::Node(change(event, |object| (extract::name(&object.metadata), Some(extract::node(object, config)))))
}

#[must_use]
pub fn on_slice(event: Event<EndpointSlice>) -> Update {
    Update::Slice(change(event, |object| (extract::key(&object.metadata), extract::slice(object))))
}

#[must_use]
pub fn on_namespace(event: Event<Namespace>) -> Update {
    Update::Namespace(change(event, |object| {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        (extract::name(&object.metadata), Some(NamespaceInfo { labels }))
    }))
}

#[must_use]
pub fn on_pool(event: Event<VipPool>) -> Update {
    Update::Pool(change(event, |object| (extract::name(&object.metadata), Some(extract::pool(object)))))
}

#[must_use]
pub fn on_record(event: Event<VipAllocation>) -> Update {
    Update::Record(change(event, |object| {
        let record = extract::record(object);
        (record.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |r| r.address), record)
    }))
}
