//! A compiled backend set: shared by every service that ends up with the same backends.

use std::net::IpAddr;

use penstock_configs::desired::BackendState;
use rustc_hash::FxHashMap;

use crate::maglev::{self, MaglevTable, Moved};
use crate::schedule::{Kind, Plan};

/// [`Backend::ramp`] of one that has started.
pub const WHOLE: u8 = 10;

/// A place packets can go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backend {
    pub address: IpAddr,
    /// Its own port; 0: the service's target port.
    pub port: u16,
    pub weight: u16,
    /// What it is taken for: the worst of what its owner wants and its checks found, unless those are not
    /// believed.
    pub state: BackendState,
    /// The worst of the two.
    pub checked: BackendState,
    /// Down because its owner says so.
    pub unwanted: bool,
    /// Tenths of its weight it takes new flows by: 10, or less while it starts slowly.
    pub ramp: u8,
    /// The address's place in the list of nodes.
    pub node_slot: u16,
}

/// Sets up to this size (of backends of the least weight) share the smallest table, so that adding
/// or removing one of a small cluster's nodes does not resize it, which would move most new flows:
/// three nodes and two made 509 and 251 slots, and 63 % moved where a third had to. 8 KiB a table.
const SMALLEST_UNITS: u64 = 40;

impl Backend {
    #[must_use]
    #[inline]
    pub fn takes_new(&self) -> bool {
        self.state == BackendState::Active && self.weight > 0
    }
}

/// A set, with the tables its services' schedulers choose by.
pub struct BackendSet {
    pub backends: Vec<Backend>,
    /// Of one slot, where no scheduler asks for it.
    pub maglev: MaglevTable,
    /// Empty, where Maglev chooses.
    pub plan: Plan,
    by_address: FxHashMap<(IpAddr, u16), u16>,
    /// Places by address, then by place.
    by_node: Box<[u16]>,
    /// Where the only backend on a node likely is, by the last bits of the node's slot.
    likely: Box<[u16]>,
}

impl BackendSet {
    /// Compiles a set for schedulers of a kind. Draining and down backends, and those of weight 0, take no slots.
    #[must_use]
    pub fn build(backends: Vec<Backend>, kind: Kind, maglev_max: u32) -> Self {
        let shares = shares(&backends);
        let by_address = backends.iter().zip(0..).map(|(backend, at)| ((backend.address, backend.port), at)).collect();
        let plan = Plan::build(&backends, &shares, kind);
        let maglev = if kind == Kind::Maglev { maglev(&backends, &shares, maglev_max) } else { MaglevTable::none() };
        let mut by_node: Box<[u16]> = (0..backends.len() as u16).collect();
        by_node.sort_by_key(|at| backends[usize::from(*at)].address);
        let likely = likely(&backends, &by_node);
        Self { maglev, plan, backends, by_address, by_node, likely }
    }

    /// The backend that a flow to this node most likely goes to: a guess, in fewer lines of memory than a look-up.
    #[inline]
    #[must_use]
    pub fn likely(&self, node_slot: u16) -> Option<(u16, &Backend)> {
        let place = *self.likely.get(usize::from(node_slot) & self.likely.len().wrapping_sub(1))?;
        Some((place, self.backends.get(usize::from(place))?))
    }

    /// See [`Self::place`], of a flow whose node was in this slot.
    #[must_use]
    pub fn place_from(&self, node_slot: u16, address: IpAddr, port: u16, target_port: u16) -> Option<u16> {
        let is_its = |backend: &Backend| {
            let own_port = if backend.port == 0 { target_port } else { backend.port };
            backend.address == address && own_port == port
        };
        match self.likely(node_slot) {
            Some((place, backend)) if is_its(backend) => Some(place),
            _ => self.place(address, port, target_port),
        }
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
        self.place(address, port, target_port).and_then(|at| self.backends.get(usize::from(at)))
    }

    /// See [`Self::find`]: its place in the set.
    #[must_use]
    pub fn place(&self, address: IpAddr, port: u16, target_port: u16) -> Option<u16> {
        let own = self.by_address.get(&(address, port));
        let by_target = || if port == target_port { self.by_address.get(&(address, 0)) } else { None };
        own.or_else(by_target).copied()
    }

    /// The place of a backend on a node that takes new flows: that of this own port (0: the service's) if it does,
    /// else any.
    #[must_use]
    pub fn on_node(&self, address: IpAddr, port: u16) -> Option<u16> {
        let takes_new = |at: &u16| self.backends.get(usize::from(*at)).is_some_and(Backend::takes_new);
        let own = self.by_address.get(&(address, port)).copied();
        own.filter(takes_new).or_else(|| {
            let address_of = |at: &u16| self.backends.get(usize::from(*at)).map(|backend| backend.address);
            let first = self.by_node.partition_point(|at| address_of(at) < Some(address));
            let of_node = self.by_node[first..].iter().take_while(|at| address_of(at) == Some(address));
            of_node.copied().find(takes_new)
        })
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

/// See [`BackendSet::likely`]. Of several backends on a node the port decides, and there is none; of two nodes in one
/// place the later one's.
fn likely(backends: &[Backend], by_node: &[u16]) -> Box<[u16]> {
    let address = |at: &u16| backends[usize::from(*at)].address;
    let mut likely = vec![u16::MAX; backends.len().next_power_of_two()];
    let last = likely.len() - 1;
    for of_node in by_node.chunk_by(|a, b| address(a) == address(b)) {
        if let [only] = of_node {
            likely[usize::from(backends[usize::from(*only)].node_slot) & last] = *only;
        }
    }
    likely.into()
}

/// What each backend weighs now. In tenths only while one of them starts slowly, so that weights as they
/// are configured make the tables they always made.
fn shares(backends: &[Backend]) -> Vec<u32> {
    let is_ramping = backends.iter().any(|backend| backend.ramp < WHOLE);
    let weight = |backend: &Backend| {
        let tenths = if is_ramping { u32::from(backend.ramp) } else { 1 };
        if backend.takes_new() { u32::from(backend.weight) * tenths } else { 0 }
    };
    backends.iter().map(weight).collect()
}

fn maglev(backends: &[Backend], shares: &[u32], max: u32) -> MaglevTable {
    let identity = |backend: &Backend| maglev::backend_identity(backend.address, backend.port);
    let weights: Vec<(u64, u32)> = backends.iter().map(identity).zip(shares.iter().copied()).collect();
    // The size follows the set as configured, not its health: a flap must not resize the table.
    let units = maglev::weight_units(backends.iter().map(|backend| u32::from(backend.weight)));
    MaglevTable::build(&weights, maglev::size_for(units.max(SMALLEST_UNITS), max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_changes_no_answer() {
        let backend = |(host, port, node_slot): (u8, u16, u16)| Backend {
            address: IpAddr::from([10, 0, 0, host]),
            port,
            weight: 1,
            state: BackendState::Active,
            checked: BackendState::Active,
            unwanted: false,
            ramp: WHOLE,
            node_slot,
        };
        // One by the service's port, one by its own, a node with both, and one whose slot ends like another's.
        let backends = [(1, 0, 0), (2, 8080, 1), (3, 0, 2), (3, 8080, 2), (4, 0, 9)].map(backend).to_vec();
        let set = BackendSet::build(backends, Kind::Maglev, 251);
        for (slot, host, port) in (0..20)
            .chain([u16::MAX])
            .flat_map(|slot| (0..6).flat_map(move |host| [0, 443, 8080].map(|p| (slot, host, p))))
        {
            let address = IpAddr::from([10, 0, 0, host]);
            assert_eq!(set.place_from(slot, address, port, 443), set.place(address, port, 443), "{slot} {host} {port}");
        }
        assert_eq!([0, 9].map(|slot| set.likely(slot).map(|(place, _)| place)), [Some(0), Some(4)]);
        assert!(set.likely(2).is_none(), "the port decides");
    }
}
