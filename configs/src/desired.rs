//! What an owner wants served: nodes and backend sets named once, services that refer to them.
//! The config file is one owner, each Kubernetes cluster another. A snapshot is always whole.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One owner's whole wish. `PUT /v1/desired/{owner}` carries it as JSON; the config file carries
/// the same tables as TOML.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Desired {
    /// Grows with every change the owner makes; the dataplane acknowledges it by this number.
    pub generation: u64,
    /// Where leaders are elected: the leader's term. A snapshot of an older term is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    #[serde(rename = "node", skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    #[serde(rename = "set", skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<BackendSet>,
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
}

/// A cluster node: a name and at most one address per family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

/// A named list of backends, shared by every service that names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSet {
    pub name: String,
    pub backends: Vec<Backend>,
}

/// Where packets can go: a node by name, or an address. The port is the backend's own or, where it
/// has none, the service's `target_port`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Share of new flows relative to the others of the set; 0 takes none.
    #[serde(default = "default_weight", skip_serializing_if = "is_default_weight")]
    pub weight: u16,
    #[serde(default, skip_serializing_if = "BackendState::is_active")]
    pub state: BackendState,
}

/// What the owner wants of a backend; health is an overlay of its own ([`Health`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    #[default]
    Active,
    /// Keeps its flows, takes no new ones.
    Draining,
    /// Takes no new flows; for those it had see [`OnDown`].
    Down,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// For people and metrics; unique within the owner. Kubernetes: `namespace/name:port-name`.
    pub name: String,
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default)]
    pub scheduler: Scheduler,
    /// A set by name, or `backends` inline, never both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// The port of backends that name none: in Kubernetes the nodePort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Mode `dnat`: whether a backend takes flows only once a probe has shown that its replies come back through
    /// the box.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub reply_check: bool,
    /// Clients allowed; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<IpNet>,
    /// How many flows clients may have and open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ServiceLimits>,
    /// Whether the box answers ARP/ND for the VIP; default: `box.announce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<Announce>,
    /// Overrides of `[timeouts]` for this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<ServiceTimeouts>,
    /// What becomes of the connections of a backend that its checks find down.
    #[serde(default, skip_serializing_if = "OnDown::is_default")]
    pub on_down: OnDown,
    /// Seconds in which a backend that comes (new, or back from down) gets to its whole weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<u32>,
    /// Percent; default: `box.panic_threshold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<u8>,
    /// What becomes of a TCP connection that is idle for too long.
    #[serde(default, skip_serializing_if = "OnIdle::is_default")]
    pub on_idle: OnIdle,
    /// What a client hears when there is no backend for it, no SNAT port, or no room in a limit of connections.
    #[serde(default, skip_serializing_if = "NoBackend::is_default")]
    pub no_backend: NoBackend,
    /// A client's new flows go where its last one went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

impl Service {
    /// A service with nothing else said: what a document that leaves all other keys out means.
    #[must_use]
    pub fn at(name: impl Into<String>, vip: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            vip,
            port,
            protocol,
            mode: Mode::default(),
            scheduler: Scheduler::default(),
            set: None,
            backends: Vec::new(),
            target_port: None,
            reply_check: true,
            source_ranges: Vec::new(),
            limits: None,
            announce: None,
            timeouts: None,
            on_down: OnDown::default(),
            slow_start: None,
            panic_threshold: None,
            on_idle: OnIdle::default(),
            no_backend: NoBackend::default(),
            affinity: None,
        }
    }

    /// The port of backends that name none; in `dsr` the packet keeps the one it came to.
    #[must_use]
    pub fn backend_port(&self) -> Option<u16> {
        if self.mode == Mode::Dsr { Some(self.port) } else { self.target_port }
    }
}

/// Session affinity: `affinity = { by = "client-ip" }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    pub by: AffinityBy,
    /// Seconds since the client's last new flow, after which it may be sent elsewhere.
    #[serde(default = "Affinity::default_timeout")]
    pub timeout: u32,
    /// Clients whose addresses agree in so many leading bits count as one.
    #[serde(default = "Affinity::whole_v4")]
    pub prefix_v4: u8,
    #[serde(default = "Affinity::whole_v6")]
    pub prefix_v6: u8,
    /// Services of one group (and owner) share what they know of a client: the ports of one Kubernetes Service, for
    /// one. Default: the service alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// What a client is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AffinityBy {
    ClientIp,
}

impl Affinity {
    /// By the whole address, for as long as in Kubernetes.
    #[must_use]
    pub fn client_ip() -> Self {
        Self {
            by: AffinityBy::ClientIp,
            timeout: Self::default_timeout(),
            prefix_v4: Self::whole_v4(),
            prefix_v6: Self::whole_v6(),
            group: None,
        }
    }

    /// Kubernetes' own, three hours.
    fn default_timeout() -> u32 {
        10_800
    }

    fn whole_v4() -> u8 {
        32
    }

    fn whole_v6() -> u8 {
        128
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    /// One path: multi-homing does not pass through a translator.
    Sctp,
}

impl Protocol {
    /// As in the document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// How a packet reaches the node and its reply the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Full NAT: the node sees a SNAT address and answers to the box. Needs nothing of the nodes.
    #[default]
    Nat,
    /// The node sees the client; it must route its replies through the box.
    Dnat,
    /// Direct server return: the node gets the packet as the client sent it, by its link-layer address alone, and
    /// answers the client itself. It must be on a link of the box and take the VIP for its own.
    Dsr,
}

impl Mode {
    /// As in the document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dnat => "dnat",
            Self::Dsr => "dsr",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// Weighted Maglev (NSDI'16): every box with the same snapshot makes the same choice.
    #[default]
    Maglev,
    /// Each in turn, weights aside (0 takes none), as in IPVS.
    Rr,
    /// Each in turn, as often as its weight says.
    Wrr,
    /// The fewest connections: 256 times the active ones plus the closing ones.
    Lc,
    /// The fewest connections for its weight.
    Wlc,
    /// By the client's address.
    Sh,
    /// By the VIP.
    Dh,
    /// The shortest expected delay: active connections, the new one included, for its weight.
    Sed,
    /// One that has no active connection, else as `sed`.
    Nq,
    /// The less loaded of two, drawn by weight.
    RandomTwoChoices,
}

impl Scheduler {
    /// As in the document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Maglev => "maglev",
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::RandomTwoChoices => "random-two-choices",
        }
    }

    /// Whether it asks how many flows each backend has.
    #[must_use]
    pub fn counts(self) -> bool {
        matches!(self, Self::Lc | Self::Wlc | Self::Sed | Self::Nq | Self::RandomTwoChoices)
    }
}

/// What becomes of the connections of a backend that is down: of TCP, and of SCTP as far as they are kept or forgotten. UDP
/// flows always go to another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// They go on, in case the check is wrong or only new work must stay away (a node whose pods
    /// finish what they have). A backend that its owner calls down, or takes away, has them reset.
    #[default]
    Keep,
    /// Both ends get a RST.
    Reset,
    /// They are forgotten: the client's next packet is answered with a RST, its next SYN goes elsewhere.
    Rehome,
}

impl OnDown {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Announce {
    /// Answer ARP and neighbour solicitations for the VIP on every port.
    #[default]
    L2,
    /// Somebody else routes the VIP here (BGP, a static route).
    None,
}

/// At the end of `tcp_established` or `tcp_fin` seconds without a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnIdle {
    /// The box forgets it in silence, as a router that reboots would: what either end still sends is
    /// dropped. Linux NAT and IPVS do this; an end that never speaks again need not know.
    #[default]
    Forget,
    /// Both ends are sent a RST, and who speaks later is answered with one: an application finds out at
    /// once instead of by its own timeout. What F5 and HAProxy do, and cloud balancers on request.
    Reset,
}

/// A new TCP connection or UDP packet that no backend can take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoBackend {
    /// A RST, or ICMP port unreachable for UDP, within `limits.icmp_per_second`. The default: the client
    /// fails at once and may try its next address, where silence would cost it a minute or more of SYNs
    /// (RFC 1122 section 4.2.3.5). kube-proxy answers so for a Service without endpoints, and IPVS with
    /// ICMP port unreachable.
    #[default]
    Reject,
    /// Silence: scanners learn nothing, and a client's own retries bridge a short outage.
    Drop,
}

impl OnIdle {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl NoBackend {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a service's clients may have together, and each of them. A missing field limits nothing. Flows that are
/// there stay, whatever a change of these says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceLimits {
    /// Flows at a time: half-open ones count, closed ones whose port rests do not. In `dsr` the client's FIN closes one,
    /// true or not, since the node's word on it is not seen: there `new_per_second` holds who cheats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Flows opened in a second; as many again may come at once after a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_per_second: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_source: Option<SourceLimits>,
}

/// The same for all clients of one prefix together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_per_second: Option<u32>,
    /// How many leading bits of the address make one source.
    pub prefix_v4: u8,
    /// 64: what one IPv6 subscriber has at least (RFC 6177).
    pub prefix_v6: u8,
}

impl Default for SourceLimits {
    fn default() -> Self {
        Self { connections: None, new_per_second: None, prefix_v4: 32, prefix_v6: 64 }
    }
}

/// Seconds; a missing field takes the box's `[timeouts]`, where each is explained.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceTimeouts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_syn: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_fin: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_time_wait: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_rst: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_one_way: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp_established: Option<u32>,
}

impl ServiceTimeouts {
    /// Each by its key, as written.
    #[must_use]
    pub fn by_key(&self) -> [(&'static str, Option<u32>); 8] {
        [
            ("tcp_syn", self.tcp_syn),
            ("tcp_established", self.tcp_established),
            ("tcp_fin", self.tcp_fin),
            ("tcp_time_wait", self.tcp_time_wait),
            ("tcp_rst", self.tcp_rst),
            ("udp_one_way", self.udp_one_way),
            ("udp", self.udp),
            ("sctp_established", self.sctp_established),
        ]
    }
}

/// `PUT /v1/health`: what the checker knows, for every owner's backends. A backend not named is up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    pub backends: Vec<BackendHealth>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendHealth {
    pub address: IpAddr,
    /// Missing: every port of the address that nothing is said of by itself, in other words the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub state: BackendState,
    /// Last result in words, shown by `penstock status`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

fn default_weight() -> u16 {
    1
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_yes(value: &bool) -> bool {
    *value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_default_weight(weight: &u16) -> bool {
    *weight == 1
}

impl BackendState {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_active(&self) -> bool {
        *self == Self::Active
    }
}
