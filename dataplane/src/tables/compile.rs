//! From documents to tables: resolves names, interns what is shared, keeps slots stable.
//!
//! Validation has happened; what does not resolve here (a set member without an address of the
//! VIP's family) is left out.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{
    Announce, Backend as WantedBackend, BackendState, Desired, Health, Mode, Protocol, Service as WantedService,
};
use penstock_configs::file::{SnatAddress, Timeouts};
use rustc_hash::FxHashMap;

use super::snats::SnatIds;
use super::{Backend, BackendSet, FamilyTables, Local, Service, ServiceKey, Snat, Tables, Ways};
use crate::clock::ticks;
use crate::flow::State;
use crate::lpm::SourceSet;
use crate::wire::{Family, PROTO_SCTP, PROTO_TCP, PROTO_UDP, V4, V6};

/// What the tables are compiled from.
pub struct Inputs<'a> {
    pub owners: &'a BTreeMap<String, Arc<Desired>>,
    pub health: &'a Health,
    pub ways: &'a Ways,
    pub snat: &'a [SnatAddress],
    pub timeouts: &'a Timeouts,
    pub announce: Announce,
    pub maglev_max: u32,
    pub max_services: usize,
    pub max_nodes: usize,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    #[error("{wanted} services are wanted, limits.services is {limit}: raise it and restart the dataplane")]
    TooManyServices { wanted: usize, limit: usize },
    #[error("{wanted} node addresses are wanted, limits.nodes is {limit}: raise it and restart the dataplane")]
    TooManyNodes { wanted: usize, limit: usize },
    #[error(
        "more than {0} SNAT addresses of a family, counting those taken away whose flows are not forgotten yet: \
         list fewer, or try again in a few seconds"
    )]
    TooManySnats(usize),
}

/// Compiles snapshots one after the other; what they share goes on being shared.
#[derive(Default)]
pub struct Compiler {
    epoch: u16,
    services: Slots<(IpAddr, u16, u8)>,
    nodes: Slots<IpAddr>,
    snat_v4: SnatIds<u32>,
    snat_v6: SnatIds<u128>,
    serial: u64,
    swept: u64,
    sets: HashMap<Vec<Backend>, Arc<BackendSet>>,
    previous: Arc<Tables>,
}

impl Compiler {
    /// Starts with the SNAT numbers that an earlier process's flow records have: once for each worker.
    pub fn seed_snats(&mut self, v4: &[Option<u32>], v6: &[Option<u128>]) {
        self.snat_v4.seed(v4);
        self.snat_v6.seed(v6);
    }

    /// Every worker has gone through all its flows under tables no older than these ([`Tables::serial`]):
    /// SNAT numbers retired by then are free.
    pub fn swept(&mut self, serial: u64) {
        self.swept = serial;
    }

    /// Compiles the union of all owners' snapshots.
    ///
    /// # Errors
    /// A capacity fixed at start is exceeded; nothing has changed then.
    pub fn compile(&mut self, inputs: &Inputs<'_>) -> Result<Arc<Tables>, CompileError> {
        check_capacity(inputs)?;
        let serial = self.serial + 1;
        let snat_v4 = self.snat_v4.merged::<V4>(inputs.snat, serial, self.swept)?;
        let snat_v6 = self.snat_v6.merged::<V6>(inputs.snat, serial, self.swept)?;
        (self.snat_v4, self.snat_v6, self.serial) = (snat_v4, snat_v6, serial);
        self.epoch = if self.epoch == u16::MAX { 1 } else { self.epoch + 1 };

        let mut tables = Tables { epoch: self.epoch, serial, ..Tables::default() };
        let mut sets = HashMap::new();
        let health = HealthIndex::new(inputs.health);
        self.services.retain(&inputs.services().collect());
        self.nodes.retain(&inputs.addresses());
        for (owner, desired) in inputs.owners {
            let owner: Arc<str> = owner.as_str().into();
            let mut resolved = Resolved::new(desired, &health, inputs.ways);
            for wanted in &desired.services {
                let service = self.service(&owner, wanted, &mut resolved, &mut sets, inputs);
                insert(&mut tables, service, wanted.announce.unwrap_or(inputs.announce));
            }
        }
        self.sets = sets;
        tables.nodes = self.nodes.keys.iter().map(|key| key.unwrap_or(IpAddr::from([0, 0, 0, 0]))).collect();
        add_snats(&mut tables.v4, self.snat_v4.list());
        add_snats(&mut tables.v6, self.snat_v6.list());
        tables.v4.probe = inputs.ways.probes.iter().find_map(|probe| V4::from_ip(*probe));
        tables.v6.probe = inputs.ways.probes.iter().find_map(|probe| V6::from_ip(*probe));
        let tables = Arc::new(tables);
        self.previous = Arc::clone(&tables);
        Ok(tables)
    }

    fn service(
        &mut self,
        owner: &Arc<str>,
        wanted: &WantedService,
        resolved: &mut Resolved<'_>,
        sets: &mut HashMap<Vec<Backend>, Arc<BackendSet>>,
        inputs: &Inputs<'_>,
    ) -> Service {
        let protocol = protocol_number(wanted.protocol);
        let slot = self.services.slot((wanted.vip, wanted.port, protocol));
        let set = self.set(wanted, resolved, sets, inputs);
        let before = self
            .previous
            .service(slot)
            .filter(|old| (old.vip, old.port, old.protocol) == (wanted.vip, wanted.port, protocol));
        let moved =
            before.and_then(|old| if Arc::ptr_eq(&old.set, &set) { old.moved } else { Some(set.moved_from(&old.set)) });
        Service {
            slot,
            owner: Arc::clone(owner),
            name: wanted.name.as_str().into(),
            vip: wanted.vip,
            port: wanted.port,
            protocol,
            mode: wanted.mode,
            reply_check: wanted.reply_check,
            set,
            target_port: wanted.backend_port().unwrap_or(0),
            sources: (!wanted.source_ranges.is_empty()).then(|| SourceSet::build(&wanted.source_ranges)),
            timeouts: timeouts(inputs.timeouts, wanted),
            on_idle: wanted.on_idle,
            no_backend: wanted.no_backend,
            moved,
        }
    }
}

impl Compiler {
    /// The compiled set of a service: that of a service before it, of the last snapshot, or a new one.
    fn set(
        &mut self,
        wanted: &WantedService,
        resolved: &mut Resolved<'_>,
        sets: &mut HashMap<Vec<Backend>, Arc<BackendSet>>,
        inputs: &Inputs<'_>,
    ) -> Arc<BackendSet> {
        let name = resolved.cache_key(wanted);
        if let Some(set) = name.as_ref().and_then(|name| resolved.compiled.get(name)) {
            return Arc::clone(set);
        }
        let mut backends = resolved.backends(wanted);
        for backend in &mut backends {
            backend.node_slot = self.nodes.slot(backend.address) as u16;
        }
        let set = match sets.get(&backends).or_else(|| self.sets.get(&backends)) {
            Some(set) => Arc::clone(set),
            None => Arc::new(BackendSet::build(backends.clone(), inputs.maglev_max)),
        };
        sets.insert(backends, Arc::clone(&set));
        if let Some(name) = name {
            resolved.compiled.insert(name, Arc::clone(&set));
        }
        set
    }
}

fn check_capacity(inputs: &Inputs<'_>) -> Result<(), CompileError> {
    let wanted = inputs.services().count();
    if wanted > inputs.max_services {
        return Err(CompileError::TooManyServices { wanted, limit: inputs.max_services });
    }
    let wanted = inputs.addresses().len();
    if wanted > inputs.max_nodes {
        return Err(CompileError::TooManyNodes { wanted, limit: inputs.max_nodes });
    }
    Ok(())
}

impl Inputs<'_> {
    /// Every service by its key.
    fn services(&self) -> impl Iterator<Item = (IpAddr, u16, u8)> {
        let all = self.owners.values().flat_map(|desired| &desired.services);
        all.map(|service| (service.vip, service.port, protocol_number(service.protocol)))
    }

    /// Every address a backend may have, used or not.
    fn addresses(&self) -> HashSet<IpAddr> {
        let mut addresses = HashSet::new();
        for desired in self.owners.values() {
            addresses.extend(desired.nodes.iter().flat_map(|node| node.addresses.iter().copied()));
            let inline = desired.services.iter().flat_map(|service| &service.backends);
            let members = desired.sets.iter().flat_map(|set| &set.backends);
            addresses.extend(inline.chain(members).filter_map(|backend| backend.address));
        }
        addresses
    }
}

/// The wire's number for a protocol.
#[must_use]
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTO_TCP,
        Protocol::Udp => PROTO_UDP,
        Protocol::Sctp => PROTO_SCTP,
    }
}

/// The protocol of a service or a flow.
#[must_use]
pub fn protocol_of(number: u8) -> Protocol {
    match number {
        PROTO_UDP => Protocol::Udp,
        PROTO_SCTP => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn timeouts(defaults: &Timeouts, service: &WantedService) -> [u32; State::COUNT] {
    let own = service.timeouts.clone().unwrap_or_default();
    let mut by_state = [0; State::COUNT];
    by_state[State::SynSent as usize] = ticks(own.tcp_syn.unwrap_or(defaults.tcp_syn));
    by_state[State::Established as usize] = ticks(own.tcp_established.unwrap_or(defaults.tcp_established));
    by_state[State::FinWait as usize] = ticks(own.tcp_fin.unwrap_or(defaults.tcp_fin));
    by_state[State::TimeWait as usize] = ticks(own.tcp_time_wait.unwrap_or(defaults.tcp_time_wait));
    by_state[State::Reset as usize] = ticks(own.tcp_rst.unwrap_or(defaults.tcp_rst));
    by_state[State::Expired as usize] = by_state[State::Reset as usize];
    by_state[State::UdpOneWay as usize] = ticks(own.udp_one_way.unwrap_or(defaults.udp_one_way));
    by_state[State::UdpStream as usize] = ticks(own.udp.unwrap_or(defaults.udp));
    by_state[State::SctpInit as usize] = ticks(defaults.sctp_init);
    by_state[State::SctpEstablished as usize] = ticks(own.sctp_established.unwrap_or(defaults.sctp_established));
    by_state[State::SctpShutdown as usize] = ticks(defaults.sctp_shutdown);
    by_state[State::SctpClosed as usize] = ticks(defaults.sctp_closed);
    by_state
}

fn insert(tables: &mut Tables, service: Service, announce: Announce) {
    match service.vip {
        IpAddr::V4(vip) => insert_family(&mut tables.v4, vip.into(), &service, announce, V4::from_ip),
        IpAddr::V6(vip) => insert_family(&mut tables.v6, vip.into(), &service, announce, V6::from_ip),
    }
    tables.has_dnat |= service.mode == Mode::Dnat;
    let slot = service.slot as usize;
    if tables.services.len() <= slot {
        tables.services.resize_with(slot + 1, || None);
    }
    tables.services[slot] = Some(Arc::new(service));
}

fn insert_family<A: Copy + Eq + Hash>(
    family: &mut FamilyTables<A>,
    vip: A,
    service: &Service,
    announce: Announce,
    number: impl Fn(IpAddr) -> Option<A>,
) {
    let key = ServiceKey { addr: vip, port: service.port, protocol: service.protocol };
    family.services.insert(key, service.slot);
    let announce = announce == Announce::L2;
    // One service that wants its VIP announced is enough.
    let local = family.locals.entry(vip).or_insert(Local::Vip { announce });
    if announce {
        *local = Local::Vip { announce };
    }
    if service.mode == Mode::Dnat {
        for backend in &service.set.backends {
            if let Some(addr) = number(backend.address) {
                let key = ServiceKey { addr, port: service.port_of(backend), protocol: service.protocol };
                family.dnat.insert(key, ());
                family.dnat_nodes.insert(addr);
            }
        }
    }
}

fn add_snats<A: Copy + Eq + Hash>(family: &mut FamilyTables<A>, snats: &[Snat<A>]) {
    family.snats = snats.to_vec();
    for (id, snat) in snats.iter().enumerate().filter(|(_, snat)| !snat.retired) {
        family.locals.insert(snat.addr, Local::Snat { id: id as u16 });
    }
}

/// The checks' results by address.
struct HealthIndex {
    by_port: FxHashMap<(IpAddr, u16), BackendState>,
    by_address: FxHashMap<IpAddr, BackendState>,
}

impl HealthIndex {
    fn new(health: &Health) -> Self {
        let mut index = Self { by_port: FxHashMap::default(), by_address: FxHashMap::default() };
        for backend in &health.backends {
            match backend.port {
                Some(port) => index.by_port.insert((backend.address, port), backend.state),
                None => index.by_address.insert(backend.address, backend.state),
            };
        }
        index
    }

    /// The worst of what the owner wants and the checks found.
    fn state(&self, address: IpAddr, port: u16, wanted: BackendState) -> BackendState {
        let found = [self.by_address.get(&address), self.by_port.get(&(address, port))];
        found.into_iter().flatten().copied().fold(wanted, worse)
    }
}

fn worse(one: BackendState, other: BackendState) -> BackendState {
    let rank = |state: &BackendState| match state {
        BackendState::Active => 0,
        BackendState::Draining => 1,
        BackendState::Down => 2,
    };
    std::cmp::max_by_key(one, other, rank)
}

/// One owner's names, resolved.
struct Resolved<'a> {
    nodes: FxHashMap<&'a str, &'a [IpAddr]>,
    sets: FxHashMap<&'a str, &'a [WantedBackend]>,
    health: &'a HealthIndex,
    ways: &'a Ways,
    /// Sets compiled for earlier services of this owner.
    compiled: FxHashMap<SetUse, Arc<BackendSet>>,
}

/// What the compiled form of a named set depends on beside the set: the VIP's family, and the target
/// port where some check's result is about a port.
type SetUse = (String, bool, u16);

impl<'a> Resolved<'a> {
    fn new(desired: &'a Desired, health: &'a HealthIndex, ways: &'a Ways) -> Self {
        let nodes = desired.nodes.iter().map(|node| (node.name.as_str(), node.addresses.as_slice())).collect();
        let sets = desired.sets.iter().map(|set| (set.name.as_str(), set.backends.as_slice())).collect();
        Self { nodes, sets, health, ways, compiled: FxHashMap::default() }
    }

    fn cache_key(&self, service: &WantedService) -> Option<SetUse> {
        if service.mode != Mode::Nat {
            // The ways there and back are the service's own.
            return None;
        }
        let port = if self.health.by_port.is_empty() { 0 } else { service.target_port.unwrap_or(0) };
        Some((service.set.clone()?, service.vip.is_ipv4(), port))
    }

    fn backends(&self, service: &WantedService) -> Vec<Backend> {
        let members = match &service.set {
            Some(name) => self.sets.get(name.as_str()).copied().unwrap_or_default(),
            None => &service.backends,
        };
        let target_port = service.backend_port().unwrap_or(0);
        let mut backends = Vec::with_capacity(members.len());
        for member in members {
            let of_node = || {
                let addresses = self.nodes.get(member.node.as_deref()?)?;
                addresses.iter().copied().find(|addr| addr.is_ipv4() == service.vip.is_ipv4())
            };
            let Some(address) = member.address.or_else(of_node) else { continue };
            if address.is_ipv4() != service.vip.is_ipv4() {
                continue;
            }
            let port = member.port.unwrap_or(0);
            let checked = if port == 0 { target_port } else { port };
            let way = self.ways.state(service, (address, checked, protocol_number(service.protocol)));
            let state = self.health.state(address, checked, worse(member.state, way));
            backends.push(Backend { address, port, weight: member.weight, state, node_slot: 0 });
        }
        backends
    }
}

/// Stable small numbers for keys. Numbers of keys that are gone come free before new keys ask, so
/// there are never more of them than keys at a time; the one free longest is used again first.
struct Slots<K> {
    by_key: HashMap<K, u32>,
    keys: Vec<Option<K>>,
    free: VecDeque<u32>,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), keys: Vec::new(), free: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash> Slots<K> {
    /// Frees the numbers of all other keys.
    fn retain(&mut self, wanted: &HashSet<K>) {
        for (slot, key) in self.keys.iter_mut().enumerate() {
            if let Some(gone) = key.take_if(|key| !wanted.contains(key)) {
                self.by_key.remove(&gone);
                self.free.push_back(slot as u32);
            }
        }
    }

    fn slot(&mut self, key: K) -> u32 {
        let Self { by_key, keys, free } = self;
        *by_key.entry(key).or_insert_with(|| match free.pop_front() {
            Some(slot) => {
                keys[slot as usize] = Some(key);
                slot
            }
            None => {
                keys.push(Some(key));
                keys.len() as u32 - 1
            }
        })
    }
}
