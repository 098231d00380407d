//! Config files for the box of a lab.

use std::net::IpAddr;

use penstock_configs::desired::{Backend, BackendSet, Node, Protocol, Service};
use penstock_configs::file::{
    BoxConfig, ConfigFile, Limits, PortConfig, ProbePolicy, SCHEMA_VERSION, SnatAddress, WorkersConfig,
};

use crate::lab::{Lab, plan};

/// The port every node server of the lab listens on: the first NodePort Kubernetes gives out.
pub const NODE_PORT: u16 = 30000;
/// The set that holds all nodes.
pub const ALL_NODES: &str = "nodes";
/// Flows per worker and family: the lab's boxes share a small tmpfs.
const FLOWS: u32 = 1 << 16;

/// A box in this lab: its interfaces, a SNAT address of each family, the nodes in one set, and no
/// service yet. At most `workers` workers: each has a core of its own.
#[must_use]
pub fn base(lab: &Lab, workers: u16) -> ConfigFile {
    let nodes: Vec<Node> = lab
        .nodes
        .iter()
        .map(|host| Node { name: host.name.clone(), addresses: vec![host.addr.v4.into(), host.addr.v6.into()] })
        .collect();
    let backends = nodes.iter().map(|node| backend(&node.name, NODE_PORT)).collect();
    let workers = workers.min(cores());
    ConfigFile {
        version: SCHEMA_VERSION,
        the_box: BoxConfig {
            name: "lab".into(),
            run_dir: lab.dir().join("run"),
            state_dir: lab.dir().join("state"),
            probe: ProbePolicy::Quick,
            ..BoxConfig::default()
        },
        ports: lab.box_interfaces().into_iter().map(port).collect(),
        workers: WorkersConfig { count: Some(workers), ..WorkersConfig::default() },
        snat: [plan::snat().v4.into(), plan::snat().v6.into()].map(snat).into(),
        limits: Limits { flows_ipv4: FLOWS, flows_ipv6: FLOWS, embryonic: FLOWS / 4, ..Limits::default() },
        timeouts: Default::default(),
        nodes,
        sets: vec![BackendSet { name: ALL_NODES.into(), backends }],
        services: Vec::new(),
    }
}

/// Cores of this machine.
#[must_use]
pub fn cores() -> u16 {
    std::thread::available_parallelism().map_or(1, |count| u16::try_from(count.get()).unwrap_or(u16::MAX))
}

#[must_use]
pub fn backend(node: &str, port: u16) -> Backend {
    Backend { node: Some(node.into()), port: Some(port), weight: 1, ..Backend::default() }
}

/// A service on all nodes.
#[must_use]
pub fn service(name: &str, vip: IpAddr, port: u16, protocol: Protocol) -> Service {
    Service { set: Some(ALL_NODES.into()), ..Service::at(name, vip, port, protocol) }
}

/// The first VIP on port 80, TCP and UDP, both families: what most tests and the demo use.
#[must_use]
pub fn web_services() -> Vec<Service> {
    let vip = plan::vip(0);
    vec![
        service("web", vip.v4.into(), 80, Protocol::Tcp),
        service("web-udp", vip.v4.into(), 80, Protocol::Udp),
        service("web6", vip.v6.into(), 80, Protocol::Tcp),
        service("web6-udp", vip.v6.into(), 80, Protocol::Udp),
    ]
}

/// Takes a node out of the set of all nodes.
pub fn without_node(config: &mut ConfigFile, node: &str) {
    for set in &mut config.sets {
        set.backends.retain(|backend| backend.node.as_deref() != Some(node));
    }
}

fn port(interface: &str) -> PortConfig {
    PortConfig {
        interface: interface.into(),
        queues: None,
        xdp: Default::default(),
        zero_copy: Default::default(),
        mss_clamp: None,
    }
}

fn snat(address: IpAddr) -> SnatAddress {
    SnatAddress { address, ports: [1024, 65535], shared: false }
}
