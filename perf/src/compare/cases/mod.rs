//! What is measured, each in a lab of its own. No case measures before it has seen that kernel stacks talk through
//! the peer, checksums and all; and each fails by name when what it counts did not arrive where it should.

mod bulk;
mod conn;
mod latency;
mod memory;
mod pps;
mod wrk;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::cpu::processes_in;
use super::generator::{self, Run};
use super::peers::{BOX_CORE, Peer, Running, Setup};
use super::servers::WebNodes;
use crate::clients::http::get_text;
use crate::clients::udp::UdpVolley;
use crate::config::NODE_PORT;
use crate::lab::{Lab, Netns};
use crate::servers::{NodePorts, NodeServer};
use crate::traffic::precedence::insist_for;

/// A kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// 64-byte UDP packets per second, one way, flat out
    Pps,
    /// The same, of live frames made in the kernel, which cost their sender next to nothing: the box is the limit
    Live,
    /// New TCP connections per second: short HTTP requests
    Conn,
    /// Throughput of one TCP stream and of many, MTU-sized packets and offloads
    Bulk,
    /// UDP answered by the node, at 50 % and 90 % of the peer's own maximum
    Latency,
    /// What the box's memory grows by with many flows
    Memory,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pps => "pps",
            Self::Live => "live",
            Self::Conn => "conn",
            Self::Bulk => "bulk",
            Self::Latency => "latency",
            Self::Memory => "memory",
        })
    }
}

/// A figure of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Packets per second that arrived.
    Pps,
    /// Of the packets offered, the share that did not.
    PpsLost,
    /// Busy time of the whole machine per packet that arrived, ns.
    PpsCpu,
    /// Time of the lab's processes per packet, ns.
    PpsLab,
    /// Packets per second that arrived of live frames.
    LivePps,
    /// Of those offered, the share that did not.
    LiveLost,
    /// Connections per second.
    Conn,
    /// Of the exchange: the client begins to count when the connection stands.
    ConnP50,
    ConnP99,
    ConnFailed,
    /// Segments that any host sent again, SYNs among them, per connection.
    ConnRepeated,
    /// Busy time of the whole machine per connection, us.
    ConnCpu,
    /// Time of the lab's processes per connection, us.
    ConnLab,
    /// Gbit/s of one TCP stream, MTU-sized packets.
    BulkOne,
    BulkMany,
    /// The same with the hosts' offloads.
    BulkOneOffloads,
    BulkManyOffloads,
    /// Packets per second answered, flat out.
    LatencyMax,
    /// Microseconds, at half of the maximum and at nine tenths, without packets that the generator's own pauses touched;
    /// none of a run in which they are too many.
    HalfP50,
    /// Only where next to nothing was lost: what is lost would have come last.
    HalfP99,
    /// The p99 within each thousand packets, the median.
    HalfSteadyP99,
    /// Of all packets.
    HalfAllP99,
    /// The share of packets left out, and of those unanswered for which the generator had room.
    HalfLeftOut,
    HalfLost,
    NinetyP50,
    NinetyP99,
    NinetySteadyP99,
    NinetyLeftOut,
    /// The same at nine tenths.
    NinetyLost,
    /// Bytes the box's memory grew by, per flow.
    FlowBytes,
    /// Bytes per flow, with what the box occupied before.
    FlowAllTold,
    /// The same in all, megabytes, and what it occupied before any flow.
    FlowMegabytes,
    IdleMegabytes,
}

/// One measurement's figures.
pub type Sample = BTreeMap<Metric, f64>;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub duration: Duration,
    pub flows: u32,
    /// In the memory case.
    pub memory_flows: u32,
}

/// A lab with a peer at work in it. Fields are dropped in order.
pub struct Stage {
    pub running: Running,
    web: Option<WebNodes>,
    opening_rate: f64,
    pub lab: Lab,
}

impl Case {
    /// How a peer is set up for this case.
    #[must_use]
    pub fn setup(self, effort: &Effort) -> Setup {
        let pinned = matches!(self, Self::Pps | Self::Live | Self::Latency | Self::Memory);
        let flows = if self == Self::Memory { effort.memory_flows } else { effort.flows };
        Setup { case: self, flows, pinned }
    }

    /// Measures a peer once, in a lab of its own.
    ///
    /// # Errors
    /// The peer does not start, or traffic does not go through it as it should.
    pub fn measure(self, peer: &dyn Peer, effort: &Effort) -> Result<Sample> {
        match self {
            Self::Pps => pps::measure(&Stage::up(peer, self, effort, false)?, effort),
            Self::Live => pps::measure_live(&Stage::up(peer, self, effort, false)?, effort),
            Self::Conn => conn::measure(&Stage::up(peer, self, effort, false)?, effort),
            Self::Bulk => bulk::measure(peer, effort),
            Self::Latency => latency::measure(&Stage::up(peer, self, effort, false)?, effort),
            Self::Memory => memory::measure(&Stage::up(peer, self, effort, false)?, effort),
        }
        .with_context(|| format!("{}, {self}", peer.name()))
    }
}

impl Stage {
    /// Brings up a lab and the peer, and sees traffic go through.
    ///
    /// # Errors
    /// The peer does not start, or what kernel stacks send through it is not answered.
    pub fn up(peer: &dyn Peer, case: Case, effort: &Effort, offloads: bool) -> Result<Self> {
        let setup = case.setup(effort);
        let tcp = matches!(case, Case::Conn | Case::Bulk);
        let builder = Lab::builder().clients(1).nodes(if tcp { 3 } else { 1 }).queues(1).host_offloads(offloads);
        let lab = peer.lab(builder, &setup).build()?;
        leave_bridges_alone(&lab);
        if lab.topology() == crate::lab::Topology::TwoArm {
            // Clients of the generator, as many as it likes: behind the client host.
            let via = lab.clients[0].addr.v4;
            lab.the_box.sh(&format!("ip route add {CLIENTS} via {via}"))?;
        }
        lab.clients[0].ns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        let web = if tcp { Some(WebNodes::start(&lab)?) } else { None };
        let running = peer.start(&lab, &setup).with_context(|| format!("starting {}", peer.name()))?;
        let stage = Self { running, web, opening_rate: peer.opening_rate(), lab };
        if setup.pinned {
            insist_for(&processes_in(&stage.lab.the_box)?, BOX_CORE);
        }
        let through = peer.name() != "direct" || tcp;
        if through {
            stage
                .verify()
                .with_context(|| format!("{}: traffic does not go through it, nothing is measured", peer.name()))?;
        }
        Ok(stage)
    }

    /// A sink's answers enter the box as frames; a veth takes those only with NAPI on, which XDP or GRO bring.
    fn answer_in_the_kernel(&self) -> Result<()> {
        self.lab.the_box.sh("ethtool -K nodes0 gro on").map(drop)
    }

    /// Every flow has sent a packet, no faster than the peer makes room for new ones.
    fn open_flows(&self, flows: u32) -> Result<()> {
        let rate = self.opening_rate;
        let duration = Duration::from_secs_f64(f64::from(flows) / rate);
        generator::start(self, vec![Run { first: 0, flows, rate: Some(rate), duration }])?.finish().map(drop)
    }

    /// Kernel stacks exchange something through the peer.
    fn verify(&self) -> Result<()> {
        let client = &self.lab.clients[0].ns;
        let target = SocketAddr::V4(self.running.target);
        if self.web.is_some() {
            for _ in 0..VERIFIED {
                let text = get_text(client, target, "/").map_err(|failure| anyhow::anyhow!("{failure}"))?;
                ensure!(text.starts_with("node"), "{target} answers {text:?}");
            }
            return Ok(());
        }
        let _servers = NodeServer::start_all(&self.lab, &NodePorts { tcp: Vec::new(), udp: vec![NODE_PORT] })?;
        let mut tally = UdpVolley::new(target, VERIFIED).run(client, |_| {});
        if tally.failed() > 0 {
            // A proxy that has just started may lose the first.
            tally = UdpVolley::new(target, VERIFIED).run(client, |_| {});
        }
        ensure!(tally.failed() == 0 && tally.answered() > 0, "datagrams to {target} were not all answered: {tally:?}");
        Ok(())
    }
}

/// A bridge of a kernel with br_netfilter shows its packets to iptables, which would cost all peers alike, and more
/// than some of them do.
fn leave_bridges_alone(lab: &Lab) {
    let Ok(switch) = Netns::open(&format!("{}-switch", lab.id())) else { return };
    for table in ["iptables", "ip6tables", "arptables"] {
        // Without br_netfilter there is no such setting.
        let _ = switch.sysctl(&format!("net.bridge.bridge-nf-call-{table}"), "0");
    }
}

/// Connections or flows that must succeed before anything is measured.
const VERIFIED: u64 = 20;
/// The addresses of generated clients (RFC 2544), see `traffic::bench`.
const CLIENTS: &str = "198.18.0.0/15";
