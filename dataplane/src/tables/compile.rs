//! From documents to tables: resolves names, interns what is shared, keeps slots stable.
//!
//! Validation has happened; what does not resolve here (a set member without an address of the
//! VIP's family) is left out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_configs::desired::{
    Announce, Backend as WantedBackend, BackendState, Desired, Health, Mode, Protocol, Scheduler,
    Service as WantedService,
};
use penstock_configs::file::{SnatAddress, Timeouts};
use rustc_hash::FxHashMap;

use super::capacity;
use super::groups::Groups;
use super::motion::{self, Motion};
use super::set::WHOLE;
use super::slots::Slots;
use super::snats::SnatIds;
use super::{Backend, BackendSet, FamilyTables, Local, Service, ServiceKey, Snat, Tables, Ways};
use crate::clock::{Now, ticks};
use crate::flow::State;
use crate::limits::Limits;
use crate::lpm::Interner;
use crate::maglev::Moved;
use crate::schedule::Kind;
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
    /// Pairs of service and backend that can be counted, per family.
    pub max_counted: usize,
    /// Default of the services' own.
    pub panic_threshold: u8,
    /// The box's deny list.
    pub deny: &'a Arc<Vec<IpNet>>,
    /// When this is: what backends that start slowly go by.
    pub now: Now,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    #[error("{wanted} services are wanted, limits.services is {limit}: raise it and restart the dataplane")]
    TooManyServices { wanted: usize, limit: usize },
    #[error("{wanted} node addresses are wanted, limits.nodes is {limit}: raise it and restart the dataplane")]
    TooManyNodes { wanted: usize, limit: usize },
    #[error(
        "{wanted} pairs of service and backend are to be counted for their schedulers, limits.counted_backends is {limit}: \
         raise it and restart the dataplane, or let services with many backends use maglev, rr or wrr"
    )]
    TooManyCounted { wanted: usize, limit: usize },
    #[error(
        "{wanted} VIPs and SNAT addresses of a family are wanted, and the XDP program knows {limit}: spread the services over \
         several boxes"
    )]
    TooManyAddresses { wanted: usize, limit: usize },
    #[error(
        "backends of services in mode `dnat` come to more than the {limit} that the XDP program knows of a family, each by \
         its address and once more by each of its ports: fewer such services or backends (mode `nat` needs no entry)"
    )]
    TooManySteered { limit: usize },
    #[error(
        "more than {0} SNAT addresses of a family, counting those taken away whose flows are not forgotten yet: \
         list fewer, or try again in a few seconds"
    )]
    TooManySnats(usize),
}

/// Sets by what they are made of. Services whose schedulers need other tables do not share one.
type Sets = HashMap<(Vec<Backend>, Kind), Arc<BackendSet>>;

/// What is counted: flows of a service to a backend, by its own port or 0.
type Counted = ((IpAddr, u16, u8), IpAddr, u16);

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
    sets: Sets,
    counted: [Slots<Counted>; 2],
    motion: Motion,
    groups: Groups,
    sources: Interner,
    /// By the places of the sets, of the snapshot under way: both live that long.
    moves: FxHashMap<[usize; 2], Moved>,
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
        capacity::check(inputs)?;
        let serial = self.serial + 1;
        let snat_v4 = self.snat_v4.merged::<V4>(inputs.snat, serial, self.swept)?;
        let snat_v6 = self.snat_v6.merged::<V6>(inputs.snat, serial, self.swept)?;
        (self.snat_v4, self.snat_v6, self.serial) = (snat_v4, snat_v6, serial);
        self.epoch = if self.epoch == u16::MAX { 1 } else { self.epoch + 1 };

        let deny = self.sources.deny(inputs.deny);
        let mut tables = Tables { epoch: self.epoch, serial, deny, ..Tables::default() };
        let mut sets = HashMap::new();
        let health = HealthIndex::new(inputs.health);
        self.services.retain(&inputs.services().collect());
        self.nodes.retain(&inputs.addresses());
        self.motion.begin(inputs.now);
        self.groups.begin();
        let mut services = Vec::new();
        for (owner, desired) in inputs.owners {
            let owner: Arc<str> = owner.as_str().into();
            let mut resolved = Resolved::new(desired, &health, inputs.ways);
            for wanted in &desired.services {
                let service = self.service(&owner, wanted, &mut resolved, &mut sets, inputs);
                services.push((service, wanted.announce.unwrap_or(inputs.announce)));
            }
        }
        self.count(services.iter_mut().map(|(service, _)| service));
        for (service, announce) in services {
            insert(&mut tables, service, announce);
        }
        self.sets = sets;
        self.moves.clear();
        [tables.v4.counted, tables.v6.counted] = [0, 1].map(|at: usize| self.counted[at].keys.len() as u32 + 1);
        tables.nodes = self.nodes.keys.iter().map(|key| key.unwrap_or(IpAddr::from([0, 0, 0, 0]))).collect();
        add_snats::<V4>(&mut tables.v4, self.snat_v4.list());
        add_snats::<V6>(&mut tables.v6, self.snat_v6.list());
        tables.v4.probe = inputs.ways.probes.iter().find_map(|probe| V4::from_ip(*probe));
        tables.v6.probe = inputs.ways.probes.iter().find_map(|probe| V6::from_ip(*probe));
        let tables = Arc::new(tables);
        self.sources.forget_unused();
        self.previous = Arc::clone(&tables);
        Ok(tables)
    }

    fn service(
        &mut self,
        owner: &Arc<str>,
        wanted: &WantedService,
        resolved: &mut Resolved<'_>,
        sets: &mut Sets,
        inputs: &Inputs<'_>,
    ) -> Service {
        let protocol = protocol_number(wanted.protocol);
        let slot = self.services.slot((wanted.vip, wanted.port, protocol));
        let before = self
            .previous
            .service(slot)
            .filter(|old| (old.vip, old.port, old.protocol) == (wanted.vip, wanted.port, protocol))
            .cloned();
        let (set, panic) = self.set(wanted, before.as_deref(), resolved, sets, inputs);
        let both_maglev = |old: &Service| [old.scheduler, wanted.scheduler] == [Scheduler::Maglev; 2];
        let moved = before
            .filter(|old| both_maglev(old))
            .and_then(|old| if Arc::ptr_eq(&old.set, &set) { old.moved } else { Some(self.moved(&old.set, &set)) });
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
            sources: (!wanted.source_ranges.is_empty()).then(|| self.sources.intern(&wanted.source_ranges)),
            limits: wanted.limits.as_ref().map(Limits::from),
            timeouts: timeouts(inputs.timeouts, wanted),
            on_idle: wanted.on_idle,
            no_backend: wanted.no_backend,
            moved,
            scheduler: wanted.scheduler,
            loads: Box::default(),
            on_down: wanted.on_down,
            panic,
            affinity: self.groups.affinity(owner, wanted),
        }
    }

    /// What the change from one set to another moved: counted once for all services that have them.
    fn moved(&mut self, old: &Arc<BackendSet>, new: &Arc<BackendSet>) -> Moved {
        *self.moves.entry([old, new].map(|set| Arc::as_ptr(set).addr())).or_insert_with(|| new.moved_from(old))
    }

    /// When backends that start slowly are due to take more; `None`: none does.
    #[must_use]
    pub fn next_step(&self) -> Option<Now> {
        self.motion.next_step()
    }
}

impl Compiler {
    /// Gives the backends of services whose schedulers count their slots.
    fn count<'a>(&mut self, services: impl Iterator<Item = &'a mut Service>) {
        let mut services: Vec<_> = services.filter(|service| service.scheduler.counts()).collect();
        fn keys(service: &Service) -> impl Iterator<Item = Counted> {
            let key = (service.vip, service.port, service.protocol);
            service.set.backends.iter().map(move |backend| (key, backend.address, backend.port))
        }
        for (family, slots) in self.counted.iter_mut().enumerate() {
            let mut own: Vec<_> =
                services.iter_mut().filter(|service| service.vip.is_ipv6() == (family == 1)).collect();
            slots.retain(&own.iter().flat_map(|service| keys(service)).collect());
            for service in &mut own {
                service.loads = keys(service).map(|key| slots.slot(key) + 1).collect();
            }
        }
    }

    /// The compiled set of a service: that of a service before it, of the last snapshot, or a new one;
    /// and whether it goes against its checks.
    fn set(
        &mut self,
        wanted: &WantedService,
        before: Option<&Service>,
        resolved: &mut Resolved<'_>,
        sets: &mut Sets,
        inputs: &Inputs<'_>,
    ) -> (Arc<BackendSet>, bool) {
        let threshold = wanted.panic_threshold.unwrap_or(inputs.panic_threshold);
        let name = resolved.cache_key(wanted, threshold);
        if let Some((set, panic)) = name.as_ref().and_then(|name| resolved.compiled.get(name)) {
            return (Arc::clone(set), *panic);
        }
        let (mut backends, wanted_states) = resolved.backends(wanted);
        let panic = motion::panic(&mut backends, &wanted_states, threshold);
        for backend in &mut backends {
            backend.node_slot = self.nodes.slot(backend.address) as u16;
        }
        if let Some(seconds) = wanted.slow_start {
            let key = (wanted.vip, wanted.port, protocol_number(wanted.protocol));
            self.motion.ramp(key, seconds, before, &mut backends);
        }
        let key = (backends, Kind::from(wanted.scheduler));
        let set = match sets.get(&key).or_else(|| self.sets.get(&key)) {
            Some(set) => Arc::clone(set),
            None => Arc::new(BackendSet::build(key.0.clone(), key.1, inputs.maglev_max)),
        };
        sets.insert(key, Arc::clone(&set));
        if let Some(name) = name {
            resolved.compiled.insert(name, (Arc::clone(&set), panic));
        }
        (set, panic)
    }
}

impl Inputs<'_> {
    /// Every service by its key.
    pub(super) fn services(&self) -> impl Iterator<Item = (IpAddr, u16, u8)> {
        let all = self.owners.values().flat_map(|desired| &desired.services);
        all.map(|service| (service.vip, service.port, protocol_number(service.protocol)))
    }

    /// Every address a backend may have, used or not.
    pub(super) fn addresses(&self) -> HashSet<IpAddr> {
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
    tables.has_affinity |= service.affinity.is_some();
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

fn add_snats<F: Family>(family: &mut FamilyTables<F::Addr>, snats: &[Snat<F::Addr>]) {
    family.snats = snats.to_vec();
    family.snat_of_groups = crate::nat::addresses_of_groups::<F>(snats);
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

    /// The worse of what the owner wants and the checks found. A port's own check knows more of it than the node's: a
    /// node without the one may serve the other.
    fn state(&self, address: IpAddr, port: u16, wanted: BackendState) -> BackendState {
        let found = self.by_port.get(&(address, port)).or_else(|| self.by_address.get(&address));
        found.map_or(wanted, |&found| worse(wanted, found))
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
    compiled: FxHashMap<SetUse, (Arc<BackendSet>, bool)>,
}

/// What the compiled form of a named set depends on beside the set: the VIP's family, the target port
/// where some check's result is about a port, the panic threshold, and the scheduler's tables.
type SetUse = (String, bool, u16, u8, Kind);

impl<'a> Resolved<'a> {
    fn new(desired: &'a Desired, health: &'a HealthIndex, ways: &'a Ways) -> Self {
        let nodes = desired.nodes.iter().map(|node| (node.name.as_str(), node.addresses.as_slice())).collect();
        let sets = desired.sets.iter().map(|set| (set.name.as_str(), set.backends.as_slice())).collect();
        Self { nodes, sets, health, ways, compiled: FxHashMap::default() }
    }

    /// `None`: the set is the service's own, or its own in time.
    fn cache_key(&self, service: &WantedService, threshold: u8) -> Option<SetUse> {
        if service.mode != Mode::Nat {
            // The ways there and back are the service's own.
            return None;
        }
        let port = if self.health.by_port.is_empty() { 0 } else { service.target_port.unwrap_or(0) };
        let name = service.set.clone().filter(|_| service.slow_start.is_none())?;
        Some((name, service.vip.is_ipv4(), port, threshold, Kind::from(service.scheduler)))
    }

    /// A service's backends as checked, and what their owner wants of each.
    fn backends(&self, service: &WantedService) -> (Vec<Backend>, Vec<BackendState>) {
        let members = match &service.set {
            Some(name) => self.sets.get(name.as_str()).copied().unwrap_or_default(),
            None => &service.backends,
        };
        let target_port = service.backend_port().unwrap_or(0);
        let mut backends = Vec::with_capacity(members.len());
        let mut wanted = Vec::with_capacity(members.len());
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
            let own = worse(member.state, way);
            let state = self.health.state(address, checked, own);
            let unwanted = own == BackendState::Down;
            let weight = member.weight;
            backends.push(Backend {
                address,
                port,
                weight,
                state,
                checked: state,
                unwanted,
                ramp: WHOLE,
                node_slot: 0,
            });
            wanted.push(own);
        }
        (backends, wanted)
    }
}

#[cfg(test)]
mod tests {
    use penstock_configs::desired::BackendHealth;

    use super::*;

    #[test]
    fn a_ports_own_result_comes_before_its_nodes_and_what_the_owner_wants_is_never_bettered() {
        use BackendState::{Active, Down, Draining};
        let address = IpAddr::from([10, 0, 0, 1]);
        for (node, port, wanted, want) in [
            (None, None, Active, Active),
            (Some(Down), None, Active, Down),
            (None, Some(Down), Active, Down),
            (Some(Down), Some(Active), Active, Active),
            (Some(Draining), Some(Active), Active, Active),
            (Some(Active), Some(Down), Active, Down),
            (Some(Down), Some(Draining), Active, Draining),
            (Some(Down), Some(Active), Draining, Draining),
            (Some(Active), Some(Active), Down, Down),
            (Some(Draining), None, Down, Down),
        ] {
            let said = |port, state: Option<_>| {
                state.map(|state| BackendHealth { address, port, state, reason: String::new() })
            };
            let health = Health { backends: said(None, node).into_iter().chain(said(Some(80), port)).collect() };
            let index = HealthIndex::new(&health);
            let what = format!("{node:?} {port:?} {wanted:?}");
            assert_eq!(index.state(address, 80, wanted), want, "{what}");
            // Of another port only the node's check says anything.
            let other = node.map_or(wanted, |node| worse(wanted, node));
            assert_eq!(index.state(address, 81, wanted), other, "{what}");
        }
    }
}
