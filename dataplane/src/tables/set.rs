//! A compiled backend set: shared by every service that ends up with the same backends.

use std::net::IpAddr;

use penstock_configs::desired::BackendState;
use rustc_hash::FxHashMap;

use crate::maglev::{self, MaglevTable, Moved};

/// A place packets can go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backend {
    pub address: IpAddr,
    /// Its own port; 0: the service's target port.
    pub port: u16,
    pub weight: u16,
    pub state: BackendState,
    /// The address's place in the list of nodes.
    pub node_slot: u16,
}

/// Sets up to this size (of backends of the least weight) share the smallest table, so that adding
/// or removing one of a small cluster's nodes does not resize it, which would move most new flows:
/// three nodes and two made 509 and 251 slots, and 63 % moved where a third had to. 8 KiB a table.
const SMALLEST_UNITS: u64 = 40;

pub struct BackendSet {
    pub backends: Vec<Backend>,
    pub maglev: MaglevTable,
    by_address: FxHashMap<(IpAddr, u16), u16>,
}

impl BackendSet {
    /// Compiles a set. Draining and down backends, and those of weight 0, take no slots.
    #[must_use]
    pub fn build(backends: Vec<Backend>, maglev_max: u32) -> Self {
        let weights: Vec<(u64, u32)> = backends
            .iter()
            .map(|backend| {
                let weight = if backend.state == BackendState::Active { u32::from(backend.weight) } else { 0 };
                (maglev::backend_identity(backend.address, backend.port), weight)
            })
            .collect();
        // The size follows the set as configured, not its health: a flap must not resize the table.
        let units = maglev::weight_units(backends.iter().map(|backend| u32::from(backend.weight)));
        let size = maglev::size_for(units.max(SMALLEST_UNITS), maglev_max);
        let by_address = backends.iter().zip(0..).map(|(backend, at)| ((backend.address, backend.port), at)).collect();
        Self { maglev: MaglevTable::build(&weights, size), backends, by_address }
    }

    /// The backend a new flow goes to.
    #[inline]
    #[must_use]
    pub fn pick(&self, hash: u64) -> Option<&Backend> {
        self.backends.get(usize::from(self.maglev.lookup(hash)))
    }

    /// The backend at an address; `port` is the one packets go to, `target_port` the service's.
    #[must_use]
    pub fn find(&self, address: IpAddr, port: u16, target_port: u16) -> Option<&Backend> {
        let own = self.by_address.get(&(address, port));
        let by_target = || if port == target_port { self.by_address.get(&(address, 0)) } else { None };
        own.or_else(by_target).and_then(|at| self.backends.get(usize::from(*at)))
    }

    /// What the change from `old` to this set moved.
    #[must_use]
    pub fn moved_from(&self, old: &Self) -> Moved {
        self.maglev.moved_from(&self.identities(), &old.maglev, &old.identities())
    }

    fn identities(&self) -> Vec<u64> {
        self.backends.iter().map(|backend| maglev::backend_identity(backend.address, backend.port)).collect()
    }
}
