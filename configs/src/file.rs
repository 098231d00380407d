//! The config file: the box itself, and the services of the owner `file`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::desired::{Announce, BackendSet, Desired, Node, Service};

/// The version this build reads and writes.
pub const SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    pub version: u32,
    #[serde(default, rename = "box")]
    pub the_box: BoxConfig,
    /// Network interfaces the workers serve.
    #[serde(rename = "port")]
    pub ports: Vec<PortConfig>,
    #[serde(default)]
    pub workers: WorkersConfig,
    #[serde(default, rename = "snat")]
    pub snat: Vec<SnatAddress>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default, rename = "node")]
    pub nodes: Vec<Node>,
    #[serde(default, rename = "set")]
    pub sets: Vec<BackendSet>,
    #[serde(default, rename = "service")]
    pub services: Vec<Service>,
}

impl ConfigFile {
    /// The part of the file that is a snapshot of the owner `file`.
    #[must_use]
    pub fn desired(&self, generation: u64) -> Desired {
        Desired {
            generation,
            term: None,
            nodes: self.nodes.clone(),
            sets: self.sets.clone(),
            services: self.services.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoxConfig {
    /// Shown in status and metrics.
    pub name: String,
    /// Sockets, flow state and the pinned XDP program; on a tmpfs.
    pub run_dir: PathBuf,
    /// The last good snapshot of each owner; on a disk.
    pub state_dir: PathBuf,
    /// Default of each service's `announce`.
    pub announce: Announce,
    /// How carefully an address is probed for before it is claimed on a network.
    pub probe: ProbePolicy,
    /// Routed ranges VIPs come from: an address of them that no service uses is unreachable,
    /// instead of circling between the box and its gateway.
    pub vip_ranges: Vec<IpNet>,
    /// In which VLAN tags packets leave.
    pub vlan_tags: VlanTags,
    /// Mode `dnat`: the addresses nodes are asked from whether their replies come back through the box, one of each
    /// family at most. They stand for clients everywhere: no host has them, the nodes' routes to clients cover them.
    pub reply_probe: Vec<IpAddr>,
    /// Default of each service's `panic_threshold`: when the checks leave less than this percentage of a
    /// service's backends, it is the checks that are not believed, and all are used. With 0 that happens
    /// only when they would leave none.
    pub panic_threshold: u8,
    /// Clients no service takes: nothing of theirs is opened, what they had open is dropped.
    pub deny: Vec<IpNet>,
    /// More of them, one prefix a line (`#` begins a comment); empty: none.
    pub deny_file: PathBuf,
    /// What `deny_file` held when this was read.
    #[serde(skip)]
    pub deny_feed: Arc<Vec<IpNet>>,
    /// Packets per second to one VIP that belong to no established flow, as fragments and datagrams that are never
    /// answered do not; what is beyond is dropped before it reaches a worker. 0: all come through.
    pub new_per_vip: u32,
}

impl BoxConfig {
    /// Both lists of denied prefixes.
    pub fn denied(&self) -> impl Iterator<Item = &IpNet> {
        self.deny.iter().chain(self.deny_feed.iter())
    }
}

impl Default for BoxConfig {
    fn default() -> Self {
        Self {
            name: "penstock".into(),
            run_dir: "/run/penstock".into(),
            state_dir: "/var/lib/penstock".into(),
            announce: Announce::L2,
            probe: ProbePolicy::Full,
            vip_ranges: Vec::new(),
            vlan_tags: VlanTags::Auto,
            // Of the documentation ranges (RFC 5737, RFC 3849): nobody's, and on no node more specific than a default.
            reply_probe: vec![
                Ipv4Addr::new(192, 0, 2, 254).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xfffe).into(),
            ],
            panic_threshold: 0,
            deny: Vec::new(),
            deny_file: PathBuf::new(),
            deny_feed: Arc::default(),
            new_per_vip: 0,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VlanTags {
    /// `route` where the kernel has a VLAN sub-interface on any port, else `keep`.
    #[default]
    Auto,
    /// Inline: in those they came in, wherever the route to their next hop names none.
    Keep,
    /// In those of their next hop: of the VLAN sub-interface the route to the node leaves by, and of the packets
    /// the client sent. Any others are taken off.
    Route,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbePolicy {
    /// The times of RFC 5227 and RFC 4862: up to seven seconds.
    #[default]
    Full,
    /// The same steps in a fraction of a second: labs, and networks with nobody else's addresses.
    Quick,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    pub interface: String,
    /// Receive queues to serve; default: all the interface has. Packets of the rest pass to the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    #[serde(default)]
    pub xdp: XdpMode,
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// Largest TCP segment size in SYNs that enter or leave by this port, for both families: where a
    /// path behind it has a smaller MTU and ICMP does not come through. Default: as the ends say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_clamp: Option<u16>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, and generic with a warning where the driver has no XDP.
    #[default]
    Auto,
    Native,
    Generic,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroCopy {
    /// Where the driver has it; the outcome is reported.
    #[default]
    Auto,
    Require,
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersConfig {
    /// Default: one per queue of the port with the fewest queues, at most one per core.
    pub count: Option<u16>,
    /// Cores to pin to, one per worker; default: the last ones of the machine.
    pub cores: Vec<u16>,
    pub poll: PollMode,
    /// Frames of packet memory per worker.
    pub frames: u32,
    /// 2048 or 4096 bytes.
    pub frame_size: u32,
    pub huge_pages: HugePages,
    /// Descriptors per receive and transmit ring; a power of two.
    pub ring_size: u32,
    /// Kernel busy polling (`SO_PREFER_BUSY_POLL`) budget per call; 0: off.
    pub busy_poll_budget: u16,
}

impl Default for WorkersConfig {
    fn default() -> Self {
        Self {
            count: None,
            cores: Vec::new(),
            poll: PollMode::Adaptive,
            frames: 8192,
            frame_size: 2048,
            huge_pages: HugePages::Auto,
            ring_size: 1024,
            busy_poll_budget: 0,
        }
    }
}

impl WorkersConfig {
    /// How many workers to run: as asked for, else one per core named, else one per queue of the port
    /// with the fewest, at most one per core of the machine.
    #[must_use]
    pub fn effective_count(&self, fewest_queues: u16, cores: u16) -> u16 {
        let named = u16::try_from(self.cores.len()).ok().filter(|count| *count > 0);
        self.count.or(named).unwrap_or(fewest_queues.min(cores)).max(1)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PollMode {
    /// Spins while packets come, sleeps when they don't.
    #[default]
    Adaptive,
    /// Always spins: lowest latency, a whole core.
    Busy,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    #[default]
    Auto,
    Require,
    Off,
}

/// An address packets to nodes leave from in `nat` mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnatAddress {
    pub address: IpAddr,
    /// First and last port, both included.
    #[serde(default = "all_ports")]
    pub ports: [u16; 2],
    /// The address is also one of the kernel's: only `ports` of it come to the dataplane, and they
    /// must be disjoint from `net.ipv4.ip_local_port_range` (but for `ip_local_reserved_ports`) and every listener.
    #[serde(default)]
    pub shared: bool,
}

fn all_ports() -> [u16; 2] {
    [1024, 65535]
}

/// Capacities, fixed at start: nothing is allocated on the packet path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Established flows per worker, IPv4. Closed ones count until their time is up (`tcp_time_wait` times new
    /// connections a second), but rest shorter where this many are reached: they make room for those that begin.
    /// Of flows of UDP and in mode `dsr`, where forged packets look like a client's, three quarters of it are established
    /// at most.
    pub flows_ipv4: u32,
    /// The same of IPv6.
    pub flows_ipv6: u32,
    /// Embryonic flows per worker and family (SYN seen, no answer yet; one-way UDP).
    pub embryonic: u32,
    pub services: u32,
    pub nodes: u32,
    /// Largest Maglev table; a prime.
    pub maglev_size: u32,
    /// ICMP errors the box generates, per second and worker; as many again that tell a path's MTU.
    pub icmp_per_second: u32,
    /// Pairs of service and backend, per family, whose flows are counted for the schedulers that ask.
    pub counted_backends: u32,
    /// Clients remembered for services with `affinity`, per worker and family.
    pub affinity: u32,
    /// Sources per worker and family whose flows are counted for `per_source` limits; 16 bytes each.
    pub limited_sources: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows_ipv4: 1 << 20,
            flows_ipv6: 1 << 18,
            embryonic: 1 << 17,
            services: 16_384,
            nodes: 8_192,
            maglev_size: 65_537,
            icmp_per_second: 1_000,
            counted_backends: 65_536,
            affinity: 1 << 17,
            limited_sources: 131_072,
        }
    }
}

/// Seconds without a packet until a flow is forgotten; each may be another for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// SYN seen, the client's ACK of the node's answer not yet.
    pub tcp_syn: u32,
    /// Open, and silent; see a service's `on_idle`.
    pub tcp_established: u32,
    /// One side has sent FIN, or both, and one of them is not acknowledged yet.
    pub tcp_fin: u32,
    /// Both ends have closed: the SNAT port rests this long, shorter where the flow table is full.
    pub tcp_time_wait: u32,
    /// A RST was believed, or the box sent one at the end of an idle connection: late packets of it are
    /// still known for what they are.
    pub tcp_rst: u32,
    /// Only the client has spoken, or the node answered its first packet.
    pub udp_one_way: u32,
    /// Both have, the client twice.
    pub udp: u32,
    /// INIT seen, the client's cookie not yet.
    pub sctp_init: u32,
    pub sctp_established: u32,
    /// One side has said SHUTDOWN.
    pub sctp_shutdown: u32,
    /// Shut down or aborted: the SNAT port rests this long, shorter where the flow table is full.
    pub sctp_closed: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn: 15,
            // RFC 5382: not less than 2 hours 4 minutes.
            tcp_established: 7_440,
            tcp_fin: 240,
            tcp_time_wait: 60,
            tcp_rst: 10,
            udp_one_way: 15,
            // RFC 4787: not less than 2 minutes, 5 recommended.
            udp: 300,
            sctp_init: 15,
            // RFC 9260 section 16: an idle end probes every 30 s and RTO (60 s at most), and gives up after 10.
            sctp_established: 900,
            // One RTO.Max: whoever waits for an answer repeats itself within.
            sctp_shutdown: 60,
            sctp_closed: 10,
        }
    }
}
