//! What the dataplane says of itself: the JSON of `GET /v1/status`, `/v1/counters` and `/v1/flows`.

mod counters;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use counters::*;

use crate::desired::{BackendState, Mode, Protocol, Scheduler};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub version: String,
    pub uptime_seconds: f64,
    pub owners: Vec<OwnerStatus>,
    pub ports: Vec<PortStatus>,
    pub workers: Vec<WorkerStatus>,
    pub services: Vec<ServiceStatus>,
    /// How many services are served, whether or not they are listed here.
    #[serde(default)]
    pub services_total: u64,
    /// The fullest pairs of SNAT address and backend, the fullest first; not all there are.
    #[serde(default)]
    pub snat: Vec<SnatStatus>,
    /// Prefixes on the box's deny list.
    #[serde(default)]
    pub denied_prefixes: u64,
    /// Things an operator should know, newest last: a refused file, a queue in copy mode.
    pub notices: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnerStatus {
    pub owner: String,
    /// Accepted last.
    pub generation: u64,
    /// Run by every worker.
    pub acknowledged: u64,
    pub term: Option<u64>,
    pub services: u64,
    /// Why the last snapshot was refused, if it was.
    pub refused: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    pub interface: String,
    pub queues: u16,
    /// `native` or `generic`.
    pub xdp: String,
    pub zero_copy: bool,
    pub link: bool,
    /// The bond it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<String>,
    /// A member its bond does not use now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    pub mtu: u32,
    pub rx_packets_per_second: f64,
    pub tx_packets_per_second: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub worker: u16,
    pub core: u16,
    pub flows: u64,
    pub embryonic: u64,
    pub rx_packets_per_second: f64,
    pub handoff_packets_per_second: f64,
    /// Share of loop turns that found work.
    pub busy: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub owner: String,
    pub name: String,
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub mode: Mode,
    pub flows: u64,
    pub new_flows_per_second: f64,
    /// Flows its limits did not let open, since the start.
    #[serde(default)]
    pub limited: u64,
    pub packets: u64,
    pub bytes: u64,
    /// Table slots that changed backend at the last change, of how many.
    pub moved: u32,
    pub table_size: u32,
    /// Of the slots moved, those that surviving backends lost: Maglev's disruption.
    #[serde(default)]
    pub disrupted: u32,
    #[serde(default)]
    pub scheduler: Scheduler,
    /// The checks left too few backends, and are not believed.
    #[serde(default)]
    pub panic: bool,
    /// How many backends there are, and how many of them take new flows, whether or not they are listed here.
    #[serde(default)]
    pub backends_total: u32,
    #[serde(default)]
    pub backends_up: u32,
    /// Seconds its clients stick to a node, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
    pub backends: Vec<BackendStatus>,
}

impl ServiceStatus {
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        self.backends_total == 0 || self.backends_up < self.backends_total
    }
}

impl BackendStatus {
    /// Takes new flows.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == BackendState::Active && self.reachable && self.weight > 0
    }
}

/// The query of `GET /v1/status`: 5,000 services over 500 nodes have millions of backends, and nobody reads them all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusQuery {
    /// Only services whose name, owner or VIP contains this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// List at most so many services, those in trouble first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<usize>,
    /// Where the services listed have more backends than this, list only those in trouble, and at most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<usize>,
}

impl StatusQuery {
    #[must_use]
    pub fn is_about(&self, owner: &str, name: &str, vip: IpAddr) -> bool {
        let Some(text) = &self.only else { return true };
        owner.contains(text) || name.contains(text) || vip.to_string().contains(text)
    }

    /// Leaves out what is not to be listed.
    pub fn choose(&self, services: &mut Vec<ServiceStatus>) {
        if let Some(most) = self.services.filter(|most| *most < services.len()) {
            services.sort_by_key(|service| !service.is_troubled());
            services.truncate(most);
        }
    }

    #[must_use]
    pub fn listing(&self, services: &[ServiceStatus]) -> Listing {
        let total: usize = services.iter().map(|service| service.backends_total as usize).sum();
        let most = self.backends.unwrap_or(usize::MAX);
        Listing { all: total <= most, left: most }
    }
}

/// Which backends are still to be listed.
#[derive(Debug)]
pub struct Listing {
    all: bool,
    left: usize,
}

impl Listing {
    pub fn takes(&mut self, up: bool) -> bool {
        let takes = self.all || !up && self.left > 0;
        self.left = self.left.saturating_sub(usize::from(takes));
        takes
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    /// Percent of its weight it takes new flows by: 100, less while it starts slowly, 0 when it takes none.
    #[serde(default = "whole")]
    pub effective: u8,
    pub state: BackendState,
    pub reason: String,
    /// Mode `dnat`, where it is checked: `unchecked`, `passed` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_check: Option<String>,
    pub flows: u64,
    /// The node's link-layer address is known.
    pub reachable: bool,
}

/// How full the ports of a SNAT address are towards one backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnatStatus {
    pub address: IpAddr,
    pub backend: SocketAddr,
    pub protocol: Protocol,
    /// Ports that flows have, closed ones whose port rests among them.
    pub used: u64,
    /// Of these, ports that rest: used again early where the node takes it.
    pub resting: u64,
    pub capacity: u64,
    /// From 0 to 1, of the worker whose share of the ports is fullest.
    pub occupancy: f64,
    /// Ports taken less ports given back, over the last minute.
    pub growth_per_second: f64,
    /// At that rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_in_seconds: Option<f64>,
}

fn whole() -> u8 {
    100
}

/// One record of `GET /v1/flows`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowStatus {
    pub worker: u16,
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub snat: Option<SocketAddr>,
    pub backend: SocketAddr,
    pub state: String,
    pub service: String,
    pub idle_seconds: f64,
    pub expires_seconds: f64,
}

/// Which flows to list; an empty query lists all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowQuery {
    pub client: Option<Endpoint>,
    pub vip: Option<Endpoint>,
    pub backend: Option<Endpoint>,
    pub service: Option<String>,
}

impl FlowQuery {
    #[must_use]
    pub fn matches(&self, flow: &FlowStatus) -> bool {
        let at = |wanted: Option<Endpoint>, seen: SocketAddr| wanted.is_none_or(|endpoint| endpoint.matches(seen));
        at(self.client, flow.client)
            && at(self.vip, flow.vip)
            && at(self.backend, flow.backend)
            && self.service.as_ref().is_none_or(|name| *name == flow.service)
    }
}

/// An address, or an address and a port: `10.0.0.1`, `10.0.0.1:80`, `fd00::1`, `[fd00::1]:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl Endpoint {
    #[must_use]
    pub fn matches(self, seen: SocketAddr) -> bool {
        self.address == seen.ip() && self.port.is_none_or(|port| port == seen.port())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { address, port: None });
        }
        let socket: SocketAddr =
            text.parse().map_err(|_| format!("`{text}` is neither ADDRESS nor ADDRESS:PORT (IPv6: [ADDRESS]:PORT)"))?;
        Ok(Self { address: socket.ip(), port: Some(socket.port()) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ups: &[bool]) -> ServiceStatus {
        let backend = |up: &bool| BackendStatus {
            name: "n".into(),
            address: "10.0.0.1".parse().expect("an address"),
            port: 80,
            weight: 1,
            effective: 100,
            reply_check: None,
            state: if *up { BackendState::Active } else { BackendState::Down },
            reason: String::new(),
            flows: 0,
            reachable: true,
        };
        let up = u32::try_from(ups.iter().filter(|up| **up).count()).expect("few");
        ServiceStatus {
            owner: "o".into(),
            name: name.into(),
            vip: "203.0.113.1".parse().expect("an address"),
            port: 80,
            protocol: Protocol::Tcp,
            mode: Mode::default(),
            flows: 0,
            new_flows_per_second: 0.0,
            packets: 0,
            bytes: 0,
            moved: 0,
            table_size: 0,
            disrupted: 0,
            scheduler: Scheduler::default(),
            panic: false,
            limited: 0,
            affinity: None,
            backends_total: u32::try_from(ups.len()).expect("few"),
            backends_up: up,
            backends: ups.iter().map(backend).collect(),
        }
    }

    #[test]
    fn a_query_lists_the_troubled_first_and_no_more_than_is_asked_for() {
        let all = || vec![service("a", &[true, true]), service("b", &[true, false]), service("c", &[])];
        let names = |query: &StatusQuery| {
            let mut services = all();
            query.choose(&mut services);
            services.iter().map(|s| s.name.clone()).collect::<Vec<_>>()
        };
        let most = |services: usize| StatusQuery { services: Some(services), ..StatusQuery::default() };
        assert_eq!(names(&StatusQuery::default()), ["a", "b", "c"]);
        assert_eq!(names(&most(3)), ["a", "b", "c"], "in the order served where nothing is cut");
        assert_eq!(names(&most(2)), ["b", "c"]);
        let listed = |backends: Option<usize>| {
            let services = all();
            let mut listing = StatusQuery { backends, ..StatusQuery::default() }.listing(&services);
            let backends = services.iter().flat_map(|s| &s.backends);
            backends.filter(|b| listing.takes(b.is_up())).map(BackendStatus::is_up).collect::<Vec<_>>()
        };
        assert_eq!(listed(None).len(), 4);
        assert_eq!(listed(Some(4)).len(), 4);
        assert_eq!(listed(Some(3)), [false]);
        assert_eq!(listed(Some(0)), Vec::<bool>::new());
    }
}
