//! What the box is to serve, written shortly.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use penstock_configs::desired::{
    Announce, Backend, BackendHealth, BackendState, Desired, Health, NoBackend, Protocol, Scheduler, Service,
};
use penstock_configs::file::{SnatAddress, Timeouts};

use super::{BACK, BOX_MACS, FRONT, KERNEL};
use crate::clock::Now;
use crate::steer::marks::Marks;
use crate::tables::compile::CompileError;
use crate::tables::{Compiler, Hop, Inputs, PortView, Tables, View, Ways};
use crate::wire::Tags;

/// Every scheduler.
pub const SCHEDULERS: [Scheduler; 10] = [
    Scheduler::Maglev,
    Scheduler::Rr,
    Scheduler::Wrr,
    Scheduler::Lc,
    Scheduler::Wlc,
    Scheduler::Sh,
    Scheduler::Dh,
    Scheduler::Sed,
    Scheduler::Nq,
    Scheduler::RandomTwoChoices,
];

/// Services, SNAT addresses and what else the tables are compiled from.
#[derive(Debug, Clone)]
pub struct Plan {
    pub services: Vec<Service>,
    pub snat: Vec<SnatAddress>,
    pub timeouts: Timeouts,
    pub health: Health,
    pub ways: Ways,
    /// Nodes the kernel knows no neighbour for.
    pub unknown: Vec<IpAddr>,
    /// Nodes behind a router.
    pub routed: Vec<IpAddr>,
    /// The tags of the nodes' network; `None`: packets keep theirs.
    pub node_tags: Option<Tags>,
    /// Whether there is a default next hop towards clients.
    pub gateway: bool,
    pub mtu: u32,
    /// Towards nodes, where it differs.
    pub node_mtu: Option<u32>,
    /// By port; 0: none.
    pub mss_clamps: [u16; 3],
    pub maglev_max: u32,
    /// Where flows are marked as established.
    pub marks: Option<Arc<Marks>>,
    /// The box's deny list.
    pub deny: Arc<Vec<IpNet>>,
    /// What the compiler takes for now.
    pub now: Now,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            services: Vec::new(),
            snat: Vec::new(),
            timeouts: Timeouts::default(),
            health: Health::default(),
            ways: Ways::default(),
            unknown: Vec::new(),
            routed: Vec::new(),
            node_tags: None,
            gateway: false,
            mtu: 1500,
            node_mtu: None,
            mss_clamps: [0; 3],
            maglev_max: 65_537,
            marks: None,
            deny: Arc::default(),
            now: Now::default(),
        }
    }
}

impl Plan {
    /// Adds the service `203.0.113.10:443/tcp` over backends `10.0.0.11:31443`.
    pub fn serve(&mut self, at: &str, backends: &[&str]) -> &mut Service {
        let (place, protocol) = at.split_once('/').expect("address:port/protocol");
        let place: SocketAddr = place.parse().expect("address:port");
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => panic!("protocol {other}"),
        };
        self.services.push(Service {
            backends: backends.iter().map(|backend| Self::backend(backend)).collect(),
            // A drop is what most tables look for; those of the answer ask for it.
            no_backend: NoBackend::Drop,
            ..Service::at(at, place.ip(), place.port(), protocol)
        });
        self.services.last_mut().expect("just added")
    }

    pub fn backend(place: &str) -> Backend {
        let place: SocketAddr = place.parse().expect("address:port");
        Backend { address: Some(place.ip()), port: Some(place.port()), weight: 1, ..Backend::default() }
    }

    /// Adds a dedicated SNAT address.
    pub fn snat(&mut self, address: &str, ports: [u16; 2]) -> &mut SnatAddress {
        self.snat.push(SnatAddress { address: address.parse().expect("an address"), ports, shared: false });
        self.snat.last_mut().expect("just added")
    }

    /// The service added as `at`.
    pub fn service(&mut self, at: &str) -> &mut Service {
        self.services.iter_mut().find(|service| service.name == at).expect("a service of that name")
    }

    pub fn remove(&mut self, at: &str) {
        self.services.retain(|service| service.name != at);
    }

    /// What the checks say of a node.
    pub fn health(&mut self, node: &str, state: BackendState) {
        let address: IpAddr = node.parse().expect("an address");
        self.health.backends.retain(|backend| backend.address != address);
        self.health.backends.push(BackendHealth { address, port: None, state, reason: String::new() });
    }

    pub fn compile(&self, compiler: &mut Compiler) -> Result<Arc<Tables>, CompileError> {
        let desired = Desired { services: self.services.clone(), ..Desired::default() };
        let owners = BTreeMap::from([("file".to_owned(), Arc::new(desired))]);
        compiler.compile(&Inputs {
            owners: &owners,
            health: &self.health,
            ways: &self.ways,
            snat: &self.snat,
            timeouts: &self.timeouts,
            announce: Announce::L2,
            maglev_max: self.maglev_max,
            max_services: 64,
            max_nodes: 64,
            max_counted: 64,
            panic_threshold: 0,
            deny: &self.deny,
            now: self.now,
        })
    }

    /// The tables with next hops: nodes behind [`BACK`], each with the address [`node_mac`] says.
    pub fn view(&self, tables: Arc<Tables>, number: u64) -> View {
        let hop = |address: &IpAddr| {
            let hop = Hop::new(BACK, node_mac(*address), BOX_MACS[1], self.node_mtu.unwrap_or(self.mtu));
            let hop = if self.routed.contains(address) { hop.of_router() } else { hop };
            self.node_tags.map_or(hop, |tags| hop.in_tags(tags))
        };
        let known = |address: &&IpAddr| !self.unknown.contains(address);
        let default = self.gateway.then_some(Hop::new(FRONT, [2, 0x99, 0, 0, 0, 1], BOX_MACS[0], self.mtu));
        let ours = tables.v4.locals.keys().map(|addr| IpAddr::from(addr.to_be_bytes()));
        let ours: Vec<IpAddr> = ours.chain(tables.v6.locals.keys().map(|addr| addr.to_be_bytes().into())).collect();
        let port = |id: usize| PortView {
            mac: BOX_MACS[id],
            mtu: self.mtu,
            is_kernel: id == usize::from(KERNEL.0),
            mss_clamp: self.mss_clamps[id],
        };
        View {
            number,
            placement: Arc::default(),
            marks: self.marks.clone(),
            node_hops: tables.nodes.iter().map(|node| Some(node).filter(known).map(hop)).collect(),
            tables,
            default_v4: default,
            default_v6: default,
            ports: (0..3).map(port).collect(),
            claimed: ours.iter().flat_map(|addr| [(FRONT.0, *addr), (BACK.0, *addr)]).collect(),
        }
    }
}

pub fn draining(backend: &mut Backend) {
    backend.state = BackendState::Draining;
}

pub fn down(backend: &mut Backend) {
    backend.state = BackendState::Down;
}

/// A node's link-layer address in the made-up network.
pub fn node_mac(address: IpAddr) -> [u8; 6] {
    mac_of(0xee, address)
}

/// A client's.
pub fn client_mac(address: IpAddr) -> [u8; 6] {
    mac_of(0xcc, address)
}

fn mac_of(kind: u8, address: IpAddr) -> [u8; 6] {
    let [.., a, b, c, d] = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()).to_be_bytes(),
        IpAddr::V6(address) => address.octets(),
    };
    [2, kind, a, b, c, d]
}
