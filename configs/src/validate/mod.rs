//! What a document means, held against itself and against the machine: pure functions, every fault
//! named by its path, each with a remedy.
//!
//! Who calls what: the file, [`file()`] (through [`crate::source`]); a snapshot from the wire,
//! [`desired`] with the box's [`BoxContext`]; and, before either takes effect, [`claims`] over all
//! owners together.
//!
//! An empty set is no fault: a cluster has no nodes at times, and its VIP stays.

mod address;
mod affinity;
mod claims;
mod dnat;
mod limits;
mod names;
mod services;
mod shared_ports;
mod the_box;
mod warnings;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::desired::{Desired, Health};
use crate::fault::Fault;
use crate::file::{ConfigFile, Limits, SnatAddress};

pub(crate) use self::address::host_bits;
pub use self::claims::{claims, claims_in_order};
pub use self::names::owner_name;
pub use self::services::MOST_SLOW_START;
pub use self::shared_ports::port_list;
pub use self::warnings::warnings;

/// The owner whose snapshot the config file is.
pub const FILE_OWNER: &str = "file";

/// What the machine is, as the dataplane finds it; unknown where a file is checked elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// (interface, address with its prefix length): everything the kernel answers for.
    pub addresses: Vec<(String, IpNet)>,
    /// Next hops of the kernel's routes.
    pub gateways: Vec<IpAddr>,
    /// `net.ipv4.ip_local_port_range`, both included; the kernel uses it for IPv6 too.
    pub local_port_range: Option<[u16; 2]>,
    /// `net.ipv4.ip_local_reserved_ports`: those of the range that the kernel does not give out.
    pub reserved_ports: Vec<[u16; 2]>,
    /// Ports something listens on, at any address but loopback.
    pub listeners: Vec<u16>,
    /// (interface, receive queues).
    pub interfaces: Vec<(String, u16)>,
    pub cores: u16,
}

/// What of the box's file and machine a snapshot from the wire is held against.
#[derive(Debug, Clone, Default)]
pub struct BoxContext {
    pub snat: Vec<SnatAddress>,
    pub limits: Limits,
    /// Addresses no VIP may be, and what each is: the box's, its gateways', the file's nodes' and backends'.
    pub bans: BTreeMap<IpAddr, String>,
    pub host: Option<HostFacts>,
}

impl BoxContext {
    #[must_use]
    pub fn new(file: &ConfigFile, host: Option<&HostFacts>) -> Self {
        let mut bans = BTreeMap::new();
        for node in &file.nodes {
            bans.extend(
                node.addresses.iter().map(|address| (*address, format!("the address of node {:?}", node.name))),
            );
        }
        bans.extend(file.the_box.reply_probe.iter().map(|address| (*address, "box.reply_probe".to_owned())));
        if let Some(host) = host {
            for (interface, net) in &host.addresses {
                bans.extend(address::reserved_in(net).map(|(address, what)| (address, format!("{what} {interface}"))));
            }
            bans.extend(host.gateways.iter().map(|address| (*address, "a gateway of the box".to_owned())));
            for (interface, net) in &host.addresses {
                bans.insert(net.addr(), format!("the box's own address on {interface}"));
            }
        }
        Self { snat: file.snat.clone(), limits: file.limits.clone(), bans, host: host.cloned() }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.host.as_ref().is_some_and(|host| host.addresses.iter().any(|(_, net)| net.addr() == address))
    }
}

/// The whole file: the box, and the services of its owner.
#[must_use]
pub fn file(file: &ConfigFile, host: Option<&HostFacts>) -> Vec<Fault> {
    let mut faults = the_box::check(file, host);
    faults.extend(desired(&file.desired(0), FILE_OWNER, &BoxContext::new(file, host)));
    faults
}

/// One owner's snapshot, by itself.
#[must_use]
pub fn desired(desired: &Desired, owner: &str, context: &BoxContext) -> Vec<Fault> {
    let mut faults: Vec<Fault> = owner_name(owner).into_iter().collect();
    faults.extend(services::check(desired, owner, context));
    faults.extend(claims::within(owner, desired));
    faults
}

/// A health overlay; an address nobody's backend has is no fault (the checker may be ahead).
#[must_use]
pub fn health(health: &Health) -> Vec<Fault> {
    let zero = |(index, backend): (usize, &crate::desired::BackendHealth)| {
        (backend.port == Some(0)).then(|| {
            Fault::new(format!("backends[{index}].port"), "is 0", "name the port, or leave it out for every port")
        })
    };
    health.backends.iter().enumerate().filter_map(zero).collect()
}

/// `service[3] "web"`.
fn item_path(list: &str, index: usize, name: &str) -> String {
    format!("{list}[{index}] {name:?}")
}

#[cfg(test)]
mod tests;
