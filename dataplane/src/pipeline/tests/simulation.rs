//! A box of several workers, its clients and nodes under a churn of snapshots, by seed. What must
//! hold whatever comes: a flow has one node and one tuple as long as it stands, replies come back
//! exactly, no two living flows share a tuple, and a flow that should stand does.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::*;
use crate::pipeline::testkit::{BACK, FRONT, config, valid};
use crate::verdict::{DropReason, PortId, Verdict, WorkerId};
use crate::wire::TCP_RST;

const SEEDS: u64 = 60;
const STEPS: usize = 1500;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound as u64) as usize
    }
}

struct World {
    rigs: Vec<Rig>,
    conns: Vec<Conn>,
    random: Random,
    next_client: usize,
    delivered: usize,
    revoked: usize,
}

const VIPS: [&str; 4] = ["203.0.113.10:443", "203.0.113.10:80", "203.0.113.11:443", "[2001:db8:1::10]:443"];
const V4_NODES: [&str; 4] = ["10.0.0.11:31443", "10.0.0.12:31443", "10.0.0.13:31443", "10.0.0.14:31443"];
const V6_NODES: [&str; 4] = ["[fd00::11]:31443", "[fd00::12]:31443", "[fd00::13]:31443", "[fd00::14]:31443"];

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let workers = 1 + random.below(4) as u16;
        let mut plan = Plan { maglev_max: 509, ..Plan::default() };
        for vip in VIPS {
            plan.serve(&format!("{vip}/tcp"), if vip.starts_with('[') { &V6_NODES } else { &V4_NODES });
        }
        // Few ports: exhaustion, reuse and rest all happen.
        plan.snat(SNAT, [2000, 2047]);
        plan.snat("10.0.0.2", [3000, 3063]);
        plan.snat(SNAT6, [2000, 2127]);
        plan.timeouts.tcp_time_wait = 20;
        let rigs = (0..workers).map(|worker| Rig::with(plan.clone(), &config(worker, workers))).collect();
        Self { rigs, conns: Vec::new(), random, next_client: 0, delivered: 0, revoked: 0 }
    }

    /// To a worker as chance will have it, and on to the owner.
    fn send(&mut self, from: PortId, packet: &[u8]) -> Out {
        let arrived = self.random.below(self.rigs.len());
        let out = self.rigs[arrived].send(from, packet);
        match out.verdict {
            Verdict::Handoff(WorkerId(owner)) => {
                assert_ne!(usize::from(owner), arrived, "handed to itself");
                self.rigs[usize::from(owner)].handed(from, packet)
            }
            _ => out,
        }
    }

    fn open(&mut self) {
        let vip = VIPS[self.random.below(VIPS.len())];
        self.next_client += 1;
        let n = self.next_client;
        let client = if vip.starts_with('[') {
            format!("[2001:db8:2::{n:x}]:{}", 1024 + n)
        } else {
            format!("198.51.{}.{}:{}", n / 250, n % 250 + 1, 1024 + n)
        };
        let seq = self.random.below(1 << 20) as u32;
        let out = self.send(FRONT, &Pkt::syn(&client, vip).with(|pkt| pkt.seq = seq).bytes());
        if let Verdict::Drop(reason) = out.verdict {
            let fine = [
                DropReason::NoService,
                DropReason::NoBackend,
                DropReason::SnatExhausted,
                DropReason::NoSnatAddress,
                DropReason::SourceDenied,
            ];
            assert!(fine.contains(&reason), "{client} to {vip}: {reason:?}");
            return;
        }
        if out.verdict == Verdict::Kernel {
            return;
        }
        let conn = Conn { at_node: out.to_node(), client, vip: vip.into() };
        assert!(self.backend_state(&conn) == Some(0), "a new flow to {}", conn.at_node.dst);
        self.send(BACK, &conn.reply(TCP_SYN | TCP_ACK).bytes()).to_client();
        self.send(FRONT, &conn.request(TCP_ACK).bytes()).to_node();
        for other in &self.conns {
            let same = (other.at_node.src, other.at_node.dst) == (conn.at_node.src, conn.at_node.dst);
            assert!(!same, "{} and {} share {} -> {}", conn.client, other.client, conn.at_node.src, conn.at_node.dst);
        }
        self.conns.push(conn);
    }

    /// What the plan says of a flow's backend: 0 active, 1 draining; `None`: the flow must end.
    fn backend_state(&self, conn: &Conn) -> Option<u8> {
        use penstock_configs::desired::BackendState;
        let plan = &self.rigs[0].plan;
        let service = plan.services.iter().find(|service| service.name == format!("{}/tcp", conn.vip))?;
        let client: SocketAddr = conn.client.parse().ok()?;
        if !service.source_ranges.is_empty() && !service.source_ranges.iter().any(|net| net.contains(&client.ip())) {
            return None;
        }
        plan.snat.iter().find(|snat| snat.address == conn.at_node.src.ip())?;
        let node = conn.at_node.dst;
        let backend = service.backends.iter().find(|b| (b.address, b.port) == (Some(node.ip()), Some(node.port())))?;
        match backend.state {
            BackendState::Active => Some(u8::from(backend.weight == 0)),
            BackendState::Draining => Some(1),
            BackendState::Down => None,
        }
    }

    /// A packet of an open flow, one way or the other.
    fn talk(&mut self) {
        if self.conns.is_empty() {
            return;
        }
        let which = self.random.below(self.conns.len());
        let stands = self.backend_state(&self.conns[which]).is_some();
        let forward = self.random.below(2) == 0;
        let conn = &self.conns[which];
        let (packet, from) =
            if forward { (conn.request(TCP_ACK), FRONT) } else { (conn.reply(TCP_ACK).payload(b"data"), BACK) };
        let out = self.send(from, &packet.bytes());
        let conn = &self.conns[which];
        if stands {
            let seen = if forward { out.to_node() } else { out.to_client() };
            let expected = if forward {
                (conn.at_node.src, conn.at_node.dst)
            } else {
                (conn.vip.parse().unwrap(), conn.client.parse().unwrap())
            };
            assert_eq!((seen.src, seen.dst), expected);
            self.delivered += 1;
        } else {
            let ended = matches!(
                out.verdict,
                Verdict::Drop(
                    DropReason::FlowRevoked
                        | DropReason::NoService
                        | DropReason::OutOfState
                        | DropReason::NoFlow
                        | DropReason::SourceDenied
                ) | Verdict::Kernel
            );
            assert!(ended, "a flow that must end: {:?}", out.verdict);
            self.revoked += 1;
            self.conns.swap_remove(which);
        }
    }

    fn close(&mut self) {
        if self.conns.is_empty() {
            return;
        }
        let which = self.random.below(self.conns.len());
        let conn = self.conns.swap_remove(which);
        if self.backend_state(&conn).is_some() {
            self.send(FRONT, &conn.request(TCP_FIN | TCP_ACK).bytes()).to_node();
            self.send(BACK, &conn.reply(TCP_FIN | TCP_ACK).bytes()).to_client();
        }
    }

    fn change(&mut self) {
        use penstock_configs::desired::BackendState;
        let (vip, which, how) = (self.random.below(VIPS.len()), self.random.below(4), self.random.below(9));
        let fresh = World::new(0).rigs.swap_remove(0).plan;
        for rig in &mut self.rigs {
            rig.change(|plan| {
                let name = format!("{}/tcp", VIPS[vip]);
                let service = plan.services.iter_mut().find(|service| service.name == name);
                let snat = fresh.snat[which % fresh.snat.len()].clone();
                match (how, service) {
                    (0, Some(_)) => plan.remove(&name),
                    (1.., None) => plan.services.push(fresh.services[vip].clone()),
                    (1, Some(service)) => service.backends[which % 4].state = BackendState::Draining,
                    (2, Some(service)) => service.backends[which % 4].state = BackendState::Down,
                    (3..6, Some(service)) => *service = fresh.services[vip].clone(),
                    (6, Some(service)) => service.backends[which % 4].port = Some(31_000 + which as u16),
                    (7, Some(service)) => service.source_ranges = vec!["198.51.1.0/24".parse().unwrap()],
                    (8, _) if plan.snat.contains(&snat) && plan.snat.len() > 1 => plan.snat.retain(|s| *s != snat),
                    (8, _) if !plan.snat.contains(&snat) => plan.snat.push(snat),
                    _ => {}
                }
            });
        }
        // Flows that must end by this are over even if they never speak again under it.
        let gone: Vec<usize> =
            (0..self.conns.len()).filter(|n| self.backend_state(&self.conns[*n]).is_none()).collect();
        for which in gone.into_iter().rev() {
            let conn = self.conns.swap_remove(which);
            let out = self.send(BACK, &conn.reply(TCP_ACK).bytes());
            let is_reset = out.verdict == Verdict::Tx(BACK) && valid(&out.bytes).flags == TCP_RST;
            assert!(is_reset || !matches!(out.verdict, Verdict::Tx(_)), "a reply of a flow that must end was sent on");
            self.revoked += 1;
        }
    }

    fn pass_time(&mut self) {
        let ns = self.random.below(1_500_000_000) as u64;
        for rig in &mut self.rigs {
            rig.now.ns += ns;
            while rig.pipeline.upkeep(rig.now) {}
        }
    }

    fn check(&self) {
        let mut owners: HashMap<(SocketAddr, SocketAddr), usize> = HashMap::new();
        for (worker, rig) in self.rigs.iter().enumerate() {
            rig.check();
            for conn in &self.conns {
                let (client, vip): (SocketAddr, SocketAddr) = (conn.client.parse().unwrap(), conn.vip.parse().unwrap());
                if knows(rig, client, vip) {
                    let before = owners.insert((client, vip), worker);
                    assert_eq!(before, None, "{client} is in two workers' tables");
                }
            }
        }
        assert_eq!(owners.len(), self.conns.len(), "open flows nobody knows");
    }
}

fn knows(rig: &Rig, client: SocketAddr, vip: SocketAddr) -> bool {
    use crate::wire::Tuple;
    let ports = (client.port(), vip.port());
    match (client.ip(), vip.ip()) {
        (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => {
            let tuple =
                Tuple { src: src.to_bits(), dst: dst.to_bits(), src_port: ports.0, dst_port: ports.1, protocol: 6 };
            let flows = rig.pipeline.flows_v4();
            flows.find(&tuple, flows.hash(&tuple)).is_some()
        }
        (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => {
            let tuple =
                Tuple { src: src.to_bits(), dst: dst.to_bits(), src_port: ports.0, dst_port: ports.1, protocol: 6 };
            let flows = rig.pipeline.flows_v6();
            flows.find(&tuple, flows.hash(&tuple)).is_some()
        }
        _ => false,
    }
}

#[test]
fn a_box_under_churn() {
    let (mut delivered, mut revoked) = (0, 0);
    for seed in 1..=SEEDS {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for step in 0..STEPS {
                match world.random.below(100) {
                    0..22 => world.open(),
                    22..84 => world.talk(),
                    84..94 => world.close(),
                    94..96 => world.change(),
                    _ => world.pass_time(),
                }
                if step % 50 == 0 {
                    world.check();
                }
            }
            world.check();
            (world.delivered, world.revoked)
        });
        let (sent, ended) = outcome.unwrap_or_else(|panic| {
            println!("seed {seed}");
            std::panic::resume_unwind(panic)
        });
        delivered += sent;
        revoked += ended;
    }
    println!("{SEEDS} seeds: {delivered} packets delivered, {revoked} flows revoked");
    assert!(delivered > 10_000 && revoked > 500, "{delivered} delivered, {revoked} revoked");
}
