//! A box with services and established flows, and the packets of those flows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use arrayvec::ArrayVec;
use penstock_configs::desired::Service;
use penstock_configs::desired::{Announce, Backend, BackendSet, Desired, Health, Mode, Protocol};
use penstock_configs::file::{SnatAddress, Timeouts};
use penstock_dataplane::clock::Now;
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::io::{BURST, Burst, FramePool, PacketMemory};
use penstock_dataplane::persist::{Shape, Store};
use penstock_dataplane::pipeline::{Pipeline, PipelineConfig};
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::tables::{Compiler, Hop, Inputs, PortView, Tables, View};
use penstock_dataplane::verdict::{PortId, Verdict, WorkerId};

use super::packets::{self, BOX_MACS, CLIENT_MAC, Endpoints, NODE_MAC, TcpFlags, Template};

pub const CLIENT_PORT: PortId = PortId(0);
pub const NODE_PORT: PortId = PortId(1);

/// Nodes behind every service.
const NODES: u32 = 64;
/// Each has 64,000 ports towards each node: room for any number of flows measured here.
const SNATS: u32 = 8;
/// Flows opened between two rounds of expiry in the cases that open flows.
pub const EMBRYOS: u32 = 1 << 17;
const MTU: u32 = 1500;

/// What a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub v6: bool,
    /// UDP: of IPv4.
    pub protocol: Protocol,
    /// In DSR nothing comes back through the box.
    pub mode: Mode,
    pub flows: u32,
    pub services: u32,
}

/// A pipeline with its established flows.
pub struct World {
    pub plan: Plan,
    compiler: Compiler,
    pub pipeline: Pipeline,
    pub stats: Arc<WorkerStats>,
    pub now: Now,
    /// Packets of the established flows from the client, and from the node, in one random order.
    pub forward: Vec<Template>,
    pub reverse: Vec<Template>,
}

impl World {
    /// `flow_file`: the directory of its flow file; none: records are in memory of this process's own.
    pub fn build(plan: Plan, flow_file: Option<&Path>) -> anyhow::Result<Self> {
        // Flows whose clients prove nothing have three quarters of a table.
        let proves_nothing = plan.protocol == Protocol::Udp || plan.mode == Mode::Dsr;
        let room = if proves_nothing { plan.flows.div_ceil(3) * 4 } else { plan.flows };
        let flows = Capacity { established: room + EMBRYOS, embryonic: EMBRYOS };
        let none = Capacity { established: 1, embryonic: 1 };
        let config = PipelineConfig {
            worker: WorkerId(0),
            workers: 1,
            flows_v4: if plan.v6 { none } else { flows },
            flows_v6: if plan.v6 { flows } else { none },
            max_nodes: NODES as usize,
            max_services: plan.services as usize,
            icmp_per_second: 1000,
            max_counted: 64,
            max_affinity: 1024,
            max_sources: 1024,
        };
        let stats = Arc::new(WorkerStats::new(2, plan.services as usize));
        let mut pipeline = Pipeline::new(&config, store(config.shape(), flow_file)?, Arc::clone(&stats))?;
        let mut compiler = Compiler::default();
        pipeline.adopt(Arc::new(view(plan, &mut compiler)?));
        let (forward, reverse) = (Vec::new(), Vec::new());
        let mut world = Self { plan, compiler, pipeline, stats, now: Now::from_secs(1000), forward, reverse };
        world.establish()?;
        world.shuffle();
        Ok(world)
    }

    /// The same tables, compiled and published once more: every flow's next packet looks it up anew.
    ///
    /// # Errors
    /// The tables were refused.
    pub fn publish(&mut self) -> anyhow::Result<()> {
        let view = view(self.plan, &mut self.compiler)?;
        self.pipeline.adopt(Arc::new(view));
        Ok(())
    }

    /// Where the n-th client's packets come from and go to.
    pub fn client(&self, n: u64) -> Endpoints {
        let Plan { v6, services, .. } = self.plan;
        let (src, src_port) = packets::client(v6, n);
        let dst = packets::vip(v6, (n % u64::from(services)) as u32);
        Endpoints { src, dst, src_port, dst_port: 443 }
    }

    /// Packets of these flows from their clients; of UDP without the flags.
    fn clients_send(&self, flows: &[u32], flags: TcpFlags) -> anyhow::Result<Vec<Template>> {
        let packet = |flow: &u32| match (self.plan.protocol, self.client(u64::from(*flow))) {
            (Protocol::Udp, ends) => packets::datagram_from_client(ends, *flow),
            (_, ends) => packets::from_client(ends, flags, *flow),
        };
        flows.iter().map(packet).collect()
    }

    /// The same from their nodes, to which packets went with these addresses.
    fn nodes_answer(&self, sent: &[Endpoints], flows: &[u32], flags: TcpFlags) -> anyhow::Result<Vec<Template>> {
        let packet = |(ends, flow): (&Endpoints, &u32)| match self.plan.protocol {
            Protocol::Udp => packets::datagram_from_node(ends.reversed(), *flow),
            _ => packets::from_node(ends.reversed(), flags, *flow),
        };
        sent.iter().zip(flows).map(packet).collect()
    }

    fn establish(&mut self) -> anyhow::Result<()> {
        let mut pool = FramePool::new(PacketMemory::heap(BURST as u32, 2048, 256));
        let all: Vec<u32> = (0..self.plan.flows).collect();
        self.forward.reserve_exact(all.len());
        self.reverse.reserve_exact(all.len());
        for flows in all.chunks(BURST) {
            let openings = self.clients_send(flows, TcpFlags::Syn)?;
            let data = self.clients_send(flows, TcpFlags::Ack)?;
            let towards_node = self.send(&mut pool, CLIENT_PORT, &openings)?;
            if self.plan.mode != Mode::Dsr {
                let answers = self.nodes_answer(&towards_node, flows, TcpFlags::SynAck)?;
                let replies = self.nodes_answer(&towards_node, flows, TcpFlags::Ack)?;
                self.send(&mut pool, NODE_PORT, &answers)?;
                self.reverse.extend(replies);
            }
            self.send(&mut pool, CLIENT_PORT, &data)?;
            self.forward.extend(data);
        }
        Ok(())
    }

    /// Sends packets through; returns the addresses they left with.
    fn send(&mut self, pool: &mut FramePool, from: PortId, packets: &[Template]) -> anyhow::Result<Vec<Endpoints>> {
        let mut burst: Burst = packets.iter().filter_map(|packet| pool.take_with(packet.bytes())).collect();
        let mut verdicts = ArrayVec::new();
        self.pipeline.burst(pool.memory(), from, false, &mut burst, &mut verdicts, self.now);
        let mut ends = Vec::with_capacity(burst.len());
        for (frame, verdict) in burst.into_iter().zip(verdicts) {
            if !matches!(verdict, Verdict::Tx(_)) {
                bail!("a packet of a handshake ended as {verdict:?}");
            }
            ends.push(packets::endpoints(pool.memory().bytes(&frame))?);
            pool.give(frame);
        }
        Ok(ends)
    }

    /// Both lists in the same random order (Fisher and Yates).
    fn shuffle(&mut self) {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for last in (1..self.forward.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let other = (((random >> 32) * (last as u64 + 1)) >> 32) as usize;
            self.forward.swap(last, other);
            if !self.reverse.is_empty() {
                self.reverse.swap(last, other);
            }
        }
    }

    /// Forgets what has timed out, with time moved on so that everything but the established has.
    pub fn expire(&mut self) {
        let rounds = 2 * (self.plan.flows + 2 * EMBRYOS) / 512 + 4;
        self.now.ns += 120_000_000_000;
        for _ in 0..rounds {
            self.now.ns += 2_000_000;
            self.pipeline.upkeep(self.now);
        }
    }
}

fn view(plan: Plan, compiler: &mut Compiler) -> anyhow::Result<View> {
    let tables = tables(plan, compiler)?;
    let hop = |address: &IpAddr| {
        let known = (0..NODES).any(|n| packets::node(plan.v6, n) == *address);
        known.then_some(Hop::new(NODE_PORT, NODE_MAC, BOX_MACS[1], MTU))
    };
    let default = Some(Hop::new(CLIENT_PORT, CLIENT_MAC, BOX_MACS[0], MTU));
    let port = |mac| PortView { mac, mtu: MTU, is_kernel: false, mss_clamp: 0 };
    Ok(View {
        marks: None,
        number: 1,
        node_hops: tables.nodes.iter().map(hop).collect(),
        default_v4: default,
        default_v6: default,
        ports: BOX_MACS.into_iter().map(port).collect(),
        tables,
        ..View::default()
    })
}

fn tables(plan: Plan, compiler: &mut Compiler) -> anyhow::Result<Arc<Tables>> {
    let backend = |n| Backend { address: Some(packets::node(plan.v6, n)), weight: 1, ..Backend::default() };
    let set = BackendSet { name: "nodes".into(), backends: (0..NODES).map(backend).collect() };
    let service = |n| Service {
        mode: plan.mode,
        set: Some(set.name.clone()),
        target_port: (plan.mode != Mode::Dsr).then_some(30_000 + (n % 2_767) as u16),
        ..Service::at(format!("service-{n}"), packets::vip(plan.v6, n), 443, plan.protocol)
    };
    let desired = Desired {
        generation: 1,
        services: (0..plan.services).map(service).collect(),
        sets: vec![set.clone()],
        ..Desired::default()
    };
    let snat = |n| SnatAddress { address: packets::snat(plan.v6, n), ports: [1024, 65_535], shared: false };
    let owners = BTreeMap::from([("bench".to_owned(), Arc::new(desired))]);
    let inputs = Inputs {
        owners: &owners,
        health: &Health::default(),
        ways: &Default::default(),
        snat: &(0..SNATS).map(snat).collect::<Vec<_>>(),
        // The established ones stay, however far `expire` moves the clock.
        timeouts: &Timeouts { tcp_established: 10_000_000, ..Timeouts::default() },
        announce: Announce::L2,
        maglev_max: 65_537,
        max_services: plan.services as usize,
        max_nodes: NODES as usize,
        max_counted: 64,
        panic_threshold: 0,
        deny: &Arc::default(),
        now: Now::default(),
    };
    compiler.compile(&inputs).context("the benchmark's own tables")
}

fn store(shape: Shape, flow_file: Option<&Path>) -> anyhow::Result<Store> {
    let Some(directory) = flow_file else { return Ok(Store::anonymous(shape)?) };
    let path = directory.join(format!("penstock-perf.{}.flows", std::process::id()));
    let store = Store::open(&path, shape, [0; 16], [0x5eed, 0xf10e])?;
    // Nobody is to take these flows up.
    std::fs::remove_file(path)?;
    Ok(store)
}
