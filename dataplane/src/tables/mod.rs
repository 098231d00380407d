//! The immutable snapshot every worker reads: compiled off the hot cores from what the owners
//! want, the box's own config and the checks' results.

mod capacity;
pub mod compile;
mod groups;
mod motion;
pub mod set;
mod slots;
pub mod snats;
pub mod view;
pub mod ways;

use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{Mode, NoBackend, OnDown, OnIdle, Scheduler};
use rustc_hash::{FxHashMap, FxHashSet};

pub use compile::{Compiler, Inputs};
pub use set::{Backend, BackendSet};
pub use view::{Hop, PortView, View};
pub use ways::Ways;

use crate::affinity::Affinity;
use crate::flow::State;
use crate::limits::Limits;
use crate::lpm::SourceSet;
use crate::maglev::Moved;
use crate::wire::{Family, V4, V6};

/// Everything that is true between two changes of the configuration.
#[derive(Default)]
pub struct Tables {
    /// Which snapshot this is; cached numbers in flow records are valid for one epoch. Never 0.
    pub epoch: u16,
    /// Counts the snapshots of this process, and does not wrap.
    pub serial: u64,
    /// By slot; a service keeps its slot while it exists, so that its counters go on.
    pub services: Vec<Option<Arc<Service>>>,
    pub v4: FamilyTables<u32>,
    pub v6: FamilyTables<u128>,
    /// Node addresses by slot, to which next hops are resolved.
    pub nodes: Vec<IpAddr>,
    pub has_dnat: bool,
    /// Some service has session affinity.
    pub has_affinity: bool,
    /// Clients the whole box denies, if any.
    pub deny: Option<Arc<SourceSet>>,
}

/// What is looked up by address, per family.
#[derive(Default)]
pub struct FamilyTables<A> {
    pub services: FxHashMap<ServiceKey<A>, u32>,
    pub locals: FxHashMap<A, Local>,
    /// Backends of `dnat` services by address, port and protocol: packets from there are replies.
    pub dnat: FxHashMap<ServiceKey<A>, ()>,
    /// Addresses of those backends.
    pub dnat_nodes: FxHashSet<A>,
    /// What they answer to this address is an answer to the reply check.
    pub probe: Option<A>,
    pub snats: Vec<Snat<A>>,
    /// Which of them clients leave from: [`crate::nat::addresses_of_groups`].
    pub snat_of_groups: Box<[u16]>,
    /// Slots of counted backends in use: all are below this.
    pub counted: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceKey<A> {
    pub addr: A,
    pub port: u16,
    pub protocol: u8,
}

/// An address of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    Vip {
        /// Answered by ARP and neighbour discovery.
        announce: bool,
    },
    Snat {
        /// Its place in the list of SNAT addresses.
        id: u16,
    },
}

/// An address packets to nodes leave from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snat<A> {
    pub addr: A,
    pub first_port: u16,
    pub last_port: u16,
    /// The kernel's address too: what is not ours goes back to it.
    pub shared: bool,
    /// No longer configured: kept for its number, takes no new flows.
    pub retired: bool,
}

pub struct Service {
    pub slot: u32,
    pub owner: Arc<str>,
    pub name: Arc<str>,
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: u8,
    pub mode: Mode,
    /// Mode `dnat`: backends wait until their replies were seen to come back.
    pub reply_check: bool,
    pub set: Arc<BackendSet>,
    /// The port of backends that have none of their own.
    pub target_port: u16,
    /// `None`: every client may come.
    pub sources: Option<Arc<SourceSet>>,
    pub limits: Option<Limits>,
    /// Ticks without a packet until a flow is forgotten, by state.
    pub timeouts: [u32; State::COUNT],
    pub on_idle: OnIdle,
    pub no_backend: NoBackend,
    /// What the set's last change moved; of schedulers other than Maglev nothing is known.
    pub moved: Option<Moved>,
    pub scheduler: Scheduler,
    /// Where each backend's flows are counted, in the set's order; empty: the scheduler does not ask.
    pub loads: Box<[u32]>,
    pub on_down: OnDown,
    /// The checks left too few backends, and are not believed.
    pub panic: bool,
    /// How clients stick to nodes, if they do.
    pub affinity: Option<Affinity>,
}

impl Service {
    /// The port packets to this backend go to.
    #[must_use]
    #[inline]
    pub fn port_of(&self, backend: &Backend) -> u16 {
        if backend.port == 0 { self.target_port } else { backend.port }
    }
}

impl Service {
    /// Where flows to this backend, by its place in the set, are counted; 0: nowhere.
    #[must_use]
    #[inline]
    pub fn load_of(&self, backend: u16) -> u32 {
        self.loads.get(usize::from(backend)).copied().unwrap_or(0)
    }
}

impl Tables {
    #[inline]
    #[must_use]
    pub fn service(&self, slot: u32) -> Option<&Arc<Service>> {
        self.services.get(slot as usize).and_then(Option::as_ref)
    }

    /// The service at a VIP, port and protocol.
    #[inline]
    #[must_use]
    pub fn service_at<F: Tabled>(&self, addr: F::Addr, port: u16, protocol: u8) -> Option<&Arc<Service>> {
        let slot = F::tables(self).services.get(&ServiceKey { addr, port, protocol })?;
        self.service(*slot)
    }

    /// Whether an address is a VIP or SNAT address of ours.
    #[must_use]
    pub fn local(&self, addr: IpAddr) -> Option<Local> {
        match addr {
            IpAddr::V4(addr) => self.v4.locals.get(&addr.into()).copied(),
            IpAddr::V6(addr) => self.v6.locals.get(&addr.into()).copied(),
        }
    }
}

/// Picks a family's part of the tables.
pub trait Tabled: Family {
    fn tables(tables: &Tables) -> &FamilyTables<Self::Addr>;
    /// Whether a set of source ranges has the address.
    fn allowed(sources: &SourceSet, addr: Self::Addr) -> bool;
}

impl Tabled for V4 {
    #[inline]
    fn tables(tables: &Tables) -> &FamilyTables<u32> {
        &tables.v4
    }

    fn allowed(sources: &SourceSet, addr: u32) -> bool {
        sources.contains_v4(addr)
    }
}

impl Tabled for V6 {
    #[inline]
    fn tables(tables: &Tables) -> &FamilyTables<u128> {
        &tables.v6
    }

    fn allowed(sources: &SourceSet, addr: u128) -> bool {
        sources.contains_v6(addr)
    }
}
