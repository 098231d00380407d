//! What the dataplane says of itself: the JSON of `GET /v1/status`, `/v1/counters` and `/v1/flows`.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::desired::{BackendState, Mode, Protocol};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub version: String,
    pub uptime_seconds: f64,
    pub owners: Vec<OwnerStatus>,
    pub ports: Vec<PortStatus>,
    pub workers: Vec<WorkerStatus>,
    pub services: Vec<ServiceStatus>,
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
    pub packets: u64,
    pub bytes: u64,
    /// Table slots that changed backend at the last change, of how many.
    pub moved: u32,
    pub table_size: u32,
    pub backends: Vec<BackendStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    pub state: BackendState,
    pub reason: String,
    pub flows: u64,
    /// The node's link-layer address is known.
    pub reachable: bool,
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
