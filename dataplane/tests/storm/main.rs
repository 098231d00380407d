//! Whole boxes in a storm, by seed: packets of every kind, valid, mutated and replayed, come to workers over ports in
//! memory while the configuration changes and time runs, jumps and goes back. What must hold whatever comes:
//!
//! - nothing panics, every worker's ledger balances and no frame is lost, after every turn;
//! - what leaves is an IP packet (or ARP) from an address of the box's to a client or a backend, by the port and the
//!   neighbour it should; in `dnat` and `dsr` from the client to a backend;
//! - while all packets that come in have right checksums, so have all that go out, datagrams in fragments included;
//! - a node's answer reaches the client that it is for;
//! - what goes to the kernel goes as it came, without its tags.
//!
//! `STORM_SECONDS=600 cargo test -p penstock-dataplane --test storm` goes on for so long, from `STORM_SEED` on.

mod check;
mod judge;
mod weather;
mod world;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use check::{Checker, read};
use judge::{Judge, stamped_answer};
use penstock_configs::desired::{
    Affinity, BackendState, Mode, NoBackend, OnDown, OnIdle, ServiceLimits, ServiceTimeouts, SourceLimits,
};
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::io::fault::Faults;
use penstock_dataplane::pipeline::PipelineConfig;
use penstock_dataplane::pipeline::testkit::{
    BACK, BOX_MACS, FRONT, Farm, FarmConfig, Icmp, KERNEL, Pkt, Plan, SCHEDULERS, config, node_mac,
};
use penstock_dataplane::verdict::PortId;
use penstock_dataplane::wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, Tags, tags};
use world::{Mood, Random, plan};

/// Seeds of the normal test run: about ten seconds.
const SEEDS: u64 = 90;
const STEPS: usize = 1200;
/// Packets remembered, to be answered, complained of, replayed and mutated.
const REMEMBERED: usize = 64;

struct Storm {
    farm: Farm,
    random: Random,
    mood: Mood,
    fresh: Plan,
    /// Addresses of the box's, and of backends, at any time.
    ours: HashSet<IpAddr>,
    backends: HashSet<IpAddr>,
    /// Everybody who sent.
    senders: HashSet<IpAddr>,
    /// Frames as they came in, without their tags.
    came: HashSet<Vec<u8>>,
    inputs: VecDeque<(PortId, Vec<u8>)>,
    outputs: VecDeque<(PortId, Vec<u8>)>,
    /// Who a stamp stands for: client and VIP.
    stamps: HashMap<[u8; 8], (SocketAddr, SocketAddr)>,
    checker: Checker,
    next_id: u32,
    sent: u64,
    left: u64,
    answered: u64,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mood = [Mood::Calm, Mood::Rough, Mood::Wild][(seed % 3) as usize];
        let plan = plan();
        let workers = 1 + random.below(4) as u16;
        let few = Capacity { established: 20 + random.below(80) as u32, embryonic: 10 + random.below(60) as u32 };
        let pipeline = PipelineConfig {
            flows_v4: few,
            flows_v6: few,
            max_affinity: random.below(40),
            max_sources: random.below(20),
            max_counted: random.below(64),
            ..config(0, workers)
        };
        let faults = match random.below(3) {
            0 => Faults::default(),
            // Who sent what must be known.
            _ => Faults { corrupt: 0, ..Faults::rough() },
        };
        let first = random.one_in(4).then(|| 60 + random.below(300));
        let frames = 128 + random.below(400) as u32;
        let farm = FarmConfig { workers, frames, first, faults, seed, pipeline, ..FarmConfig::default() };
        let ours = plan.services.iter().map(|service| service.vip).chain(plan.snat.iter().map(|snat| snat.address));
        let backends = plan.services.iter().flat_map(|service| &service.backends).filter_map(|backend| backend.address);
        Self {
            ours: ours.collect(),
            backends: backends.collect(),
            fresh: plan.clone(),
            farm: Farm::new(plan, &farm),
            random,
            mood,
            senders: HashSet::new(),
            came: HashSet::new(),
            inputs: VecDeque::new(),
            outputs: VecDeque::new(),
            stamps: HashMap::new(),
            checker: Checker::default(),
            next_id: 1,
            sent: 0,
            left: 0,
            answered: 0,
        }
    }

    fn inject(&mut self, port: PortId, frame: Vec<u8>) {
        if !self.is_steered(&frame) || self.mood != Mood::Wild && Checker::default().wrong(&frame).is_some() {
            return;
        }
        let worker = self.random.below(self.farm.workers.len());
        let peer = match port {
            FRONT => &self.farm.fronts[worker],
            BACK => &self.farm.backs[worker],
            // The first worker alone reads the TAP.
            _ => &self.farm.kernels[0],
        };
        if !peer.inject(&frame) {
            return;
        }
        self.sent += 1;
        self.senders.extend(read(&frame).map(|read| read.src));
        let mut untagged = frame.clone();
        let len = tags::retag(&mut untagged, frame.len(), Tags::NONE).expect("shorter, if anything");
        untagged.truncate(len);
        self.came.insert(untagged);
        remember(&mut self.inputs, (port, frame));
    }

    /// Whether the XDP program would have the packet come here, roughly: of those not to us what backends and ICMP say.
    fn is_steered(&self, frame: &[u8]) -> bool {
        read(frame).is_none_or(|packet| {
            self.ours.contains(&packet.dst) || self.backends.contains(&packet.src) || matches!(packet.protocol, 1 | 58)
        })
    }

    fn client(&mut self, v6: bool) -> SocketAddr {
        let (n, port) = (self.random.below(12), 1024 + self.random.below(40));
        let client = if v6 { format!("[2001:db8:2::{n:x}]:{port}") } else { format!("198.51.100.{}:{port}", n + 1) };
        // A node that is a client, now and then.
        let node = if v6 { format!("[fd00::12]:{port}") } else { format!("10.0.0.12:{port}") };
        if self.random.one_in(20) { node } else { client }.parse().unwrap()
    }

    fn of_client(&mut self) -> Pkt {
        let service = &self.fresh.services[self.random.below(self.fresh.services.len())];
        let vip = SocketAddr::new(service.vip, service.port);
        let protocol = service.name.rsplit('/').next().unwrap();
        let protocol = match protocol {
            "tcp" => PROTO_TCP,
            "udp" => PROTO_UDP,
            _ => PROTO_SCTP,
        };
        let client = self.client(vip.is_ipv6());
        let mut packet = weather::of_client(&mut self.random, client, vip, protocol);
        if client.ip().is_ipv4() && client.to_string().starts_with("10.") || client.to_string().starts_with("[fd") {
            (packet.smac, packet.dmac) = (node_mac(client.ip()), BOX_MACS[1]);
        }
        if self.mood == Mood::Calm && protocol != PROTO_SCTP {
            let stamp = self.random.number().to_be_bytes();
            self.stamps.insert(stamp, (client, vip));
            packet.payload = [&b"C"[..], &stamp, &packet.payload].concat();
        }
        packet
    }

    fn open(&mut self) {
        let packet = self.of_client();
        let port = if packet.smac[1] == 0xee { BACK } else { FRONT };
        let frame = weather::extended(&mut self.random, packet.bytes());
        self.inject(port, frame);
    }

    fn answer(&mut self) {
        let Some((port, got)) = self.outputs.get(self.random.below(self.outputs.len().max(1))).cloned() else { return };
        if let Some((port, mut frame)) = weather::answer(&mut self.random, &got).filter(|_| port != KERNEL) {
            if self.mood == Mood::Calm && port == BACK {
                frame = stamped_answer(&got, frame);
            }
            let frame = if self.random.one_in(5) { self.in_pieces(port, frame) } else { Some(frame) };
            if let Some(frame) = frame {
                self.inject(port, frame);
            }
        }
    }

    /// In fragments, if it can be.
    fn in_pieces(&mut self, port: PortId, frame: Vec<u8>) -> Option<Vec<u8>> {
        self.next_id += 1;
        let pieces = weather::in_pieces(&mut self.random, &frame, self.next_id);
        if pieces.is_empty() {
            return Some(frame);
        }
        pieces.into_iter().for_each(|piece| self.inject(port, piece));
        None
    }

    fn fragments(&mut self) {
        let packet = self.of_client();
        let port = if packet.smac[1] == 0xee { BACK } else { FRONT };
        let mut payload = packet.payload.clone();
        payload.resize(payload.len() + self.random.below(500), b'f');
        if packet.protocol == PROTO_SCTP {
            payload.truncate(packet.payload.len());
        }
        if let Some(frame) = self.in_pieces(port, packet.payload(&payload).bytes()) {
            self.inject(port, frame);
        }
    }

    fn complain(&mut self) {
        let Some((_, about)) = self.outputs.get(self.random.below(self.outputs.len().max(1))).cloned() else { return };
        if let Some((port, frame)) = weather::icmp(&mut self.random, &about) {
            self.inject(port, frame);
        }
    }

    /// Something that came before, once more, or almost.
    fn replay(&mut self) {
        if self.mood == Mood::Calm {
            return;
        }
        let Some((port, mut frame)) = self.inputs.get(self.random.below(self.inputs.len().max(1))).cloned() else {
            return;
        };
        let in_pieces = read(&frame).is_none_or(|read| read.fragment.is_some());
        if self.mood == Mood::Wild || !in_pieces {
            let mended = self.mood == Mood::Rough || self.random.one_in(2);
            weather::mutate(&mut self.random, &mut frame, mended);
        }
        let port = if self.random.one_in(10) { [FRONT, BACK, KERNEL][self.random.below(3)] } else { port };
        self.inject(port, frame);
    }

    fn other(&mut self) {
        let v6 = self.random.one_in(2);
        let vip = self.fresh.services[self.random.below(self.fresh.services.len())].vip;
        let client = self.client(v6).ip();
        if vip.is_ipv6() != v6 {
            return;
        }
        let frame = match self.random.below(4) {
            0 => Icmp::echo(&client.to_string(), &vip.to_string(), b"echo, echo").bytes(),
            1 => {
                let message = self.random.number().to_be_bytes();
                Icmp { protocol: [47, 50, 89, 136][self.random.below(4)], ..Icmp::message(client, vip, &message) }
                    .bytes()
            }
            2 => match (client, vip) {
                (IpAddr::V4(client), IpAddr::V4(vip)) => {
                    let mut arp = [&[0xff; 6][..], &[2, 0xcc, 0, 0, 0, 1], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
                    arp.extend([&[2, 0xcc, 0, 0, 0, 1][..], &client.octets(), &[0; 6], &vip.octets()].concat());
                    arp
                }
                (_, IpAddr::V6(to)) => {
                    let nd = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &to.octets(), &[1, 1, 2, 0xcc, 0, 0, 0, 1]].concat();
                    Icmp { ttl: 255, ..Icmp::message(client, vip, &nd) }.bytes()
                }
                _ => return,
            },
            _ => {
                // The box as its own client.
                let frame = self.of_client().bytes();
                return self.inject(KERNEL, frame);
            }
        };
        self.inject(FRONT, frame);
    }

    fn change(&mut self) {
        if self.mood == Mood::Calm {
            self.settle();
        }
        let random = &mut self.random;
        let (plan, fresh) = (&mut self.farm.plan, &self.fresh);
        let which = random.below(fresh.services.len());
        let original = &fresh.services[which];
        let place = plan.services.iter().position(|service| service.name == original.name);
        let Some(service) = place.map(|at| &mut plan.services[at]) else {
            plan.services.push(original.clone());
            self.farm.publish();
            return;
        };
        let backend = random.below(service.backends.len());
        let coin = random.one_in(2);
        match random.below(22) {
            0 => {
                service.name.clone_into(&mut String::new());
                let name = original.name.clone();
                plan.remove(&name);
            }
            1 | 2 => *service = original.clone(),
            3 => service.backends[backend].state = BackendState::Draining,
            4 => service.backends[backend].state = BackendState::Down,
            5 => service.backends[backend].weight = random.below(3) as u16,
            6 if service.backends.len() > 1 => _ = service.backends.remove(backend),
            7 => service.scheduler = SCHEDULERS[random.below(SCHEDULERS.len())],
            8 if service.mode == Mode::Nat => {
                service.affinity =
                    coin.then(|| Affinity { timeout: 1 + random.below(60) as u32, ..Affinity::client_ip() });
            }
            9 => {
                let sources = SourceLimits { connections: Some(3), new_per_second: Some(4), ..SourceLimits::default() };
                let limits = ServiceLimits { connections: Some(6), new_per_second: Some(9), per_source: Some(sources) };
                service.limits = coin.then_some(limits);
            }
            10 => service.on_down = [OnDown::Keep, OnDown::Reset, OnDown::Rehome][random.below(3)],
            11 => service.on_idle = if coin { OnIdle::Reset } else { OnIdle::default() },
            12 => service.no_backend = if coin { NoBackend::Reject } else { NoBackend::Drop },
            13 => service.source_ranges = if coin { vec!["198.51.100.0/29".parse().unwrap()] } else { Vec::new() },
            14 => {
                let timeouts = ServiceTimeouts { tcp_established: Some(2), udp: Some(2), ..ServiceTimeouts::default() };
                service.timeouts = coin.then_some(timeouts);
            }
            15 => {
                let snat = &fresh.snat[random.below(fresh.snat.len())];
                if plan.snat.contains(snat) {
                    plan.snat.retain(|other| other != snat);
                } else {
                    plan.snat.push(snat.clone());
                }
            }
            16 => plan.deny = Arc::new(if coin { vec!["198.51.100.3/32".parse().unwrap()] } else { Vec::new() }),
            17 => {
                plan.unknown =
                    if coin { vec!["10.0.0.13".parse().unwrap(), "fd00::12".parse().unwrap()] } else { Vec::new() }
            }
            18 => plan.node_tags = [None, Some(Tags::NONE), Some(Tags::NONE.with(0x8100, 7))][random.below(3)],
            19 => plan.mtu = 1280 + random.below(221) as u32,
            20 => plan.mss_clamps = if coin { [1200, 1300, 0] } else { [0; 3] },
            _ => plan.gateway = !plan.gateway,
        }
        self.farm.publish();
    }

    fn pass_time(&mut self) {
        const MS: u64 = 1_000_000;
        let how = self.random.below(20);
        if how < 6 {
            // What is under way belongs to the time before.
            self.settle();
            self.checker.forget();
        }
        let ns = &mut self.farm.now.ns;
        match how {
            0 => *ns = ns.saturating_sub(self.random.number() % (7_200_000 * MS)),
            1 => *ns += self.random.number() % (20_000_000 * MS),
            2..6 => *ns += self.random.number() % (30_000 * MS),
            6 => *ns = ns.saturating_sub(self.random.number() % (50 * MS)),
            _ => *ns += self.random.number() % (300 * MS),
        }
    }

    /// Turns until nothing is under way.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.farm.round();
            self.collect();
        }
    }

    fn turn(&mut self) {
        for _ in 0..self.random.below(4) {
            let worker = self.random.below(self.farm.workers.len());
            self.farm.turn(worker);
        }
        self.collect();
    }

    fn collect(&mut self) {
        for worker in 0..self.farm.workers.len() {
            for (port, peers) in [(FRONT, &self.farm.fronts), (BACK, &self.farm.backs), (KERNEL, &self.farm.kernels)] {
                for frame in peers[worker].take_all() {
                    // Borrowed apart: judging changes only what has been seen.
                    self.left += 1;
                    Judge {
                        mood: self.mood,
                        ours: &self.ours,
                        backends: &self.backends,
                        senders: &self.senders,
                        came: &self.came,
                        stamps: &self.stamps,
                    }
                    .judge(port, &frame, &mut self.checker, &mut self.answered);
                    remember(&mut self.outputs, (port, frame));
                }
            }
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..28 => self.open(),
            28..62 => self.answer(),
            62..67 => self.complain(),
            67..72 => self.fragments(),
            72..84 => self.replay(),
            84..88 => self.other(),
            88..91 => self.change(),
            91..96 => self.pass_time(),
            _ => {}
        }
        self.turn();
    }
}

fn remember(list: &mut VecDeque<(PortId, Vec<u8>)>, what: (PortId, Vec<u8>)) {
    if list.len() == REMEMBERED {
        list.pop_front();
    }
    list.push_back(what);
}

fn run(seed: u64) -> Storm {
    let mut storm = Storm::new(seed);
    for _ in 0..STEPS {
        storm.step();
    }
    storm.settle();
    for worker in &storm.farm.workers {
        worker.pipeline().check_invariants().expect("flow tables in order");
    }
    storm
}

#[test]
fn a_box_in_a_storm() {
    let number = |name| std::env::var(name).ok().and_then(|value: String| value.parse::<u64>().ok());
    let (seconds, first) = (number("STORM_SECONDS"), number("STORM_SEED").unwrap_or(0));
    let begin = Instant::now();
    let (mut sent, mut left, mut answered, mut datagrams) = (0, 0, 0, 0);
    let mut seeds = 0;
    while seconds.map_or(seeds < SEEDS, |seconds| begin.elapsed() < Duration::from_secs(seconds)) {
        let seed = first + seeds;
        let storm = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|panic| {
            println!("seed {seed}");
            std::panic::resume_unwind(panic)
        });
        (sent, left) = (sent + storm.sent, left + storm.left);
        (answered, datagrams) = (answered + storm.answered, datagrams + storm.checker.datagrams);
        seeds += 1;
    }
    println!("{seeds} seeds: {sent} packets in, {left} out, {answered} answers, {datagrams} datagrams put together");
    assert!(left > seeds * 100 && answered > seeds && datagrams > 0, "a storm in a teacup");
}
