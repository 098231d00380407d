//! Workers over ports in memory: every flow has one home whatever queue its packets come in by, no
//! packet and no frame is lost, whatever the ports do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::handoff::PARCELS;
use crate::io::fault::Faults;
use crate::pipeline::testkit::{Farm, FarmConfig, Icmp, Pkt, Plan, Seen, look, valid};
use crate::wire::{PROTO_TCP, TCP_ACK, TCP_SYN, Tuple};

const VIP: &str = "203.0.113.10:443";
const ROUND_TRIPS: u32 = 5;

fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.serve("203.0.113.10:443/tcp", &["10.0.0.11:31443", "10.0.0.12:31443", "10.0.0.13:31443"]);
    plan.snat("10.0.0.1", [1024, 65535]);
    plan
}

fn client(n: u32) -> String {
    format!("198.51.{}.{}:{}", n / 200, n % 200 + 1, 2000 + n)
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Clients that open a connection, ask a few times and stay; nodes that echo. Each packet carries its
/// client's number.
struct Ends {
    random: Random,
    /// Round trips each client has made, the handshake among them, and when it last sent.
    progress: Vec<(u32, u32)>,
    /// As the nodes see each client: one source, one node, for ever.
    tuples: HashMap<u32, (SocketAddr, SocketAddr)>,
    time: u32,
    /// Bytes of data behind its client's number, times one to four.
    data: usize,
}

impl Ends {
    fn new(clients: u32, seed: u64) -> Self {
        Self {
            random: Random(seed),
            progress: vec![(0, 0); clients as usize],
            tuples: HashMap::new(),
            time: 100,
            data: 0,
        }
    }

    fn done(&self) -> bool {
        self.progress.iter().all(|(trips, _)| *trips > ROUND_TRIPS)
    }

    /// One step of all ends.
    fn act(&mut self, farm: &Farm) {
        self.time += 1;
        let queues = farm.fronts.len();
        for n in 0..queues {
            for frame in farm.backs[n].take_all() {
                self.at_node(&valid(&frame), farm);
            }
            for frame in farm.fronts[n].take_all() {
                self.at_client(&valid(&frame));
            }
        }
        for n in 0..self.progress.len() {
            let (trips, sent) = self.progress[n];
            if trips > ROUND_TRIPS || self.time - sent < 12 {
                continue;
            }
            self.progress[n].1 = self.time;
            let mut payload = [(n as u32).to_be_bytes(), trips.to_be_bytes()].concat();
            payload.resize(8 + self.data * (1 + n % 4), n as u8);
            let flags = if trips == 0 { TCP_SYN } else { TCP_ACK };
            let packet = Pkt::tcp(&client(n as u32), VIP, flags).payload(&payload);
            farm.fronts[self.random.below(queues)].inject(&packet.bytes());
        }
    }

    fn at_node(&mut self, seen: &Seen, farm: &Farm) {
        let n = u32::from_be_bytes(seen.payload[..4].try_into().unwrap());
        let before = *self.tuples.entry(n).or_insert((seen.src, seen.dst));
        assert_eq!(before, (seen.src, seen.dst), "client {n} reached a second node or came by another tuple");
        let flags = if seen.flags & TCP_SYN != 0 { TCP_SYN | TCP_ACK } else { TCP_ACK };
        let answer = Pkt::answer(seen, flags).payload(&seen.payload);
        let queue = self.random.below(farm.backs.len());
        farm.backs[queue].inject(&answer.bytes());
    }

    fn at_client(&mut self, seen: &Seen) {
        let n = u32::from_be_bytes(seen.payload[..4].try_into().unwrap());
        assert_eq!((seen.src.to_string(), seen.dst.to_string()), (VIP.into(), client(n)), "somebody else's reply");
        let trip = u32::from_be_bytes(seen.payload[4..8].try_into().unwrap());
        let (trips, sent) = &mut self.progress[n as usize];
        if trip == *trips {
            *trips += 1;
            *sent = 0;
        }
    }
}

/// The workers that know the client's flow.
fn homes(farm: &Farm, n: u32) -> Vec<usize> {
    let source: SocketAddr = client(n).parse().unwrap();
    let std::net::IpAddr::V4(src) = source.ip() else { panic!("IPv4") };
    let tuple =
        Tuple { src: src.to_bits(), dst: 0xcb00_710a, src_port: source.port(), dst_port: 443, protocol: PROTO_TCP };
    let knows = |worker: &usize| {
        let flows = farm.workers[*worker].pipeline().flows_v4();
        flows.find(&tuple, flows.hash(&tuple)).is_some()
    };
    (0..farm.workers.len()).filter(knows).collect()
}

fn run(workers: u16, faults: Faults, seed: u64) -> Farm {
    run_with(plan(), &FarmConfig { workers, faults, seed, ..FarmConfig::default() }, 0)
}

fn run_with(plan: Plan, config: &FarmConfig, data: usize) -> Farm {
    const CLIENTS: u32 = 300;
    let mut farm = Farm::new(plan, config);
    let mut ends = Ends { data, ..Ends::new(CLIENTS, config.seed) };
    let mut rounds = 0;
    while !ends.done() {
        ends.act(&farm);
        for _ in 0..farm.workers.len() {
            let worker = ends.random.below(farm.workers.len());
            farm.turn(worker);
        }
        farm.now.ns += 1_000_000;
        rounds += 1;
        assert!(rounds < 5_000, "stuck: {:?}", farm.stats);
    }
    for n in 0..CLIENTS {
        assert_eq!(homes(&farm, n).len(), 1, "client {n} is known to workers {:?}", homes(&farm, n));
    }
    for worker in &farm.workers {
        worker.pipeline().check_invariants().unwrap();
    }
    farm
}

#[test]
fn flows_have_one_home_whatever_queue_their_packets_come_by() {
    for workers in [1, 2, 4] {
        let farm = run(workers, Faults::default(), u64::from(workers));
        let handed = farm.sum(|stats| stats.handoff_out.get());
        let share = handed as f64 / farm.sum(|stats| stats.rx.get()) as f64;
        assert_eq!(handed, farm.sum(|stats| stats.handoff_in.get()), "all that was handed over arrived");
        let chance = 1.0 - 1.0 / f64::from(workers);
        assert!((share - chance).abs() < 0.05, "{workers} workers handed over {share:.2}");
        assert_eq!(farm.sum(WorkerStats::dropped), 0);
    }
}

#[test]
fn and_through_ports_with_faults() {
    let faults = Faults { corrupt: 0, ..Faults::rough() };
    for (workers, seed) in [(1, 11), (2, 12), (2, 13), (4, 14), (4, 15)] {
        run(workers, faults, seed);
    }
}

/// Packets of up to 8,800 bytes in frames of 2,048, handed over, sent twice, late and not at all: whole or not, and no
/// frame lost. Every packet is checked by its checksum, over all of it.
#[test]
fn and_in_several_frames() {
    let plan = || Plan { mtu: 9000, ..plan() };
    let faults = Faults { corrupt: 0, ..Faults::rough() };
    for (workers, faults, seed, first) in
        [(1, Faults::default(), 21, 1792), (2, Faults::default(), 22, 200), (2, faults, 23, 1792), (3, faults, 24, 300)]
    {
        let config = FarmConfig { workers, faults, seed, frames: 4096, first: Some(first), ..FarmConfig::default() };
        let farm = run_with(plan(), &config, 2_180);
        assert_eq!(farm.sum(|stats| stats.drops[DropReason::NoFrame as usize].get()), 0);
        assert_eq!(farm.sum(|stats| stats.handoff_out.get()), farm.sum(|stats| stats.handoff_in.get()));
        // By the end all is given back.
        for mut worker in farm.workers {
            worker.flush();
            worker.sockets.iter_mut().for_each(|socket| {
                socket.port.set_faults(Faults::default());
                socket.port.service(&mut worker.pool);
            });
            assert_eq!(worker.frames_accounted(), worker.pool.frame_count());
        }
    }
}

/// A lack of frames and full rings: packets are dropped by name, and the books balance.
#[test]
fn chains_are_dropped_by_name_too() {
    let config = FarmConfig { workers: 2, frames: 48, ring: 8, first: Some(1792), ..FarmConfig::default() };
    let mut farm = Farm::new(Plan { mtu: 9000, ..plan() }, &config);
    for n in 0..500 {
        let packet = Pkt::syn(&client(n), if n % 3 == 0 { "203.0.113.99:443" } else { VIP }).payload(&[7; 8000]);
        farm.fronts[(n % 2) as usize].inject(&packet.bytes());
        farm.round();
        if n % 100 > 80 {
            farm.backs.iter().for_each(|peer| drop(peer.take_all()));
            farm.kernels.iter().for_each(|peer| drop(peer.take_all()));
        }
    }
    let count = |reason: DropReason| farm.sum(|stats| stats.drops[reason as usize].get());
    assert!(count(DropReason::KernelPathFull) > 0 && farm.sum(|stats| stats.tx.get()) > 50, "{:?}", farm.stats);
}

#[test]
fn corrupt_packets_upset_no_books() {
    let faults = Faults { corrupt: 300, ..Faults::rough() };
    let mut farm = Farm::new(plan(), &FarmConfig { workers: 2, faults, seed: 5, ..FarmConfig::default() });
    let mut random = Random(5);
    for step in 0..3000_u32 {
        let packet = match step % 4 {
            0 => Pkt::syn(&client(step % 500), VIP).bytes(),
            1 => Pkt::tcp(&client(step % 500), VIP, TCP_ACK).payload(b"data").bytes(),
            2 => Icmp::echo("198.51.100.7", "203.0.113.10", b"data").bytes(),
            _ => Pkt::syn(&client(step % 500), VIP).with(|pkt| pkt.ttl = 1).bytes(),
        };
        farm.fronts[random.below(2)].inject(&packet);
        farm.turn(random.below(2));
        for peer in farm.backs.iter().chain(&farm.fronts) {
            for frame in peer.take_all() {
                if let Ok(seen) = look(&frame)
                    && seen.flags & TCP_SYN != 0
                {
                    peer.inject(&Pkt::answer(&seen, TCP_SYN | TCP_ACK).bytes());
                }
            }
        }
        farm.kernels.iter().for_each(|peer| drop(peer.take_all()));
        farm.now.ns += 10_000_000;
    }
    farm.workers.iter().for_each(|worker| worker.pipeline().check_invariants().unwrap());
}

#[test]
fn what_is_not_ours_goes_to_the_kernel_and_its_own_packets_come_from_there() {
    let mut farm = Farm::new(plan(), &FarmConfig::default());
    let foreign = Pkt::syn(&client(1), "203.0.113.99:443").bytes();
    farm.fronts[0].inject(&foreign);
    farm.round();
    assert_eq!(farm.kernels[0].take_all(), [foreign]);
    assert_eq!(farm.stats[0].kernel.get(), 1);
    // A connection of the box itself.
    farm.kernels[0].inject(&Pkt::syn("192.0.2.1:40000", VIP).with(|pkt| pkt.smac = [2, 1, 1, 1, 1, 1]).bytes());
    farm.round();
    assert!(farm.backs[0].take().is_none(), "a look at the TAP costs a system call: not in every turn");
    farm.now.ns += super::CHORES_NS;
    farm.round();
    let there = valid(&farm.backs[0].take().expect("the SYN went to a node"));
    farm.backs[0].inject(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes());
    farm.round();
    let back = valid(&farm.kernels[0].take().expect("the answer went to the kernel"));
    assert_eq!((back.dst.to_string().as_str(), back.dmac), ("192.0.2.1:40000", [2, 1, 1, 1, 1, 1]));
    assert_eq!(farm.stats[0].kernel.get(), 1, "sent, not given back");
}

/// The kernel takes a frame in a VLAN that its device is not in for another host's.
#[test]
fn what_goes_to_the_kernel_is_in_no_vlan() {
    let mut farm = Farm::new(plan(), &FarmConfig::default());
    let foreign = Pkt::syn(&client(1), "203.0.113.99:443");
    for vlans in [vec![], vec![100], vec![200, 7]] {
        farm.fronts[0].inject(&foreign.clone().with(|pkt| pkt.vlans = vlans).bytes());
        farm.round();
        assert_eq!(farm.kernels[0].take_all(), [foreign.bytes()]);
    }
    // To a client of the box itself, from a node in another network.
    farm.kernels[0].inject(&Pkt::syn("192.0.2.1:40000", VIP).bytes());
    farm.now.ns += super::CHORES_NS;
    farm.round();
    let there = valid(&farm.backs[0].take().expect("the SYN went to a node"));
    farm.backs[0].inject(&Pkt::answer(&there, TCP_SYN | TCP_ACK).with(|pkt| pkt.vlans = vec![100]).bytes());
    farm.round();
    assert!(valid(&farm.kernels[0].take().expect("the answer went to the kernel")).vlans.is_empty());
}

#[test]
fn full_rings_drop_by_name() {
    let small = FarmConfig { ring: 8, kernel: false, ..FarmConfig::default() };
    let mut farm = Farm::new(plan(), &small);
    let count = |farm: &Farm, reason: DropReason| farm.sum(|stats| stats.drops[reason as usize].get());
    farm.fronts[0].inject(&Pkt::syn(&client(1), "203.0.113.99:443").bytes());
    farm.round();
    assert_eq!(count(&farm, DropReason::KernelPathFull), 1);

    // Nobody takes what the box sends: its ring fills, then the frames that wait, then it drops.
    for n in 0..200 {
        farm.fronts[0].inject(&Pkt::syn(&client(n), VIP).bytes());
        farm.round();
    }
    assert_eq!(farm.stats[0].tx.get(), 8);
    assert_eq!(farm.stats[0].held.get(), 64);
    assert_eq!(count(&farm, DropReason::TxFull), 200 - 72);
    // They take it up again.
    for _ in 0..20 {
        let _ = farm.backs[0].take_all();
        farm.round();
    }
    assert_eq!((farm.stats[0].tx.get(), farm.stats[0].held.get()), (72, 0));
}

#[test]
fn a_full_hand_off_ring_drops_by_name_and_a_lack_of_frames_only_delays() {
    let mut farm = Farm::new(plan(), &FarmConfig { workers: 2, frames: 32, ..FarmConfig::default() });
    let count = |farm: &Farm, reason: DropReason| farm.sum(|stats| stats.drops[reason as usize].get());
    farm.round();
    // Worker 1 sleeps.
    for n in 0..4000 {
        farm.fronts[0].inject(&Pkt::syn(&client(n % 600), VIP).bytes());
        farm.turn(0);
        let _ = farm.backs[0].take_all();
    }
    let handed = farm.stats[0].handoff_out.get();
    assert_eq!(handed, PARCELS as u64, "parcels between two workers");
    assert!(count(&farm, DropReason::HandoffFull) > 100);
    // It wakes to more than its memory holds.
    for _ in 0..64 {
        farm.turn(1);
        let _ = farm.backs[1].take_all();
    }
    assert_eq!((farm.stats[1].handoff_in.get(), farm.stats[1].tx.get()), (handed, handed));
    assert_eq!(count(&farm, DropReason::NoFrame), 0);
}

#[test]
fn a_new_view_is_taken_up_between_bursts_and_the_old_one_comes_back() {
    let mut farm = Farm::new(plan(), &FarmConfig::default());
    farm.round();
    for number in 2..20 {
        farm.publish();
        farm.round();
        assert_eq!(farm.stats[0].view.get(), number);
    }
    // A worker that has nowhere to return views takes no more, and frees none.
    let waiting = Mailbox::new(Arc::clone(&Arc::new(crate::handoff::Doorbell::new().unwrap())));
    let view = Arc::new(crate::tables::View::default());
    for _ in 0..4 {
        waiting.give_back(Arc::clone(&view));
    }
    let _ = waiting.take();
    assert_eq!(Arc::strong_count(&view), 5);
    waiting.reap();
    assert_eq!(Arc::strong_count(&view), 1);
}

/// The real loop, with its naps: threads, doorbells, a stop.
#[test]
fn workers_in_threads() {
    let idle = IdlePolicy::adaptive(200_000);
    let mut farm = Farm::new(plan(), &FarmConfig { workers: 2, idle, ..FarmConfig::default() });
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = std::mem::take(&mut farm.workers)
        .into_iter()
        .map(|mut worker| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                worker.run(&stop);
                worker
            })
        })
        .collect();
    let mut ends = Ends::new(100, 3);
    let begun = Instant::now();
    while !ends.done() && begun.elapsed() < Duration::from_secs(30) {
        ends.act(&farm);
        // Far beyond a nap before anything is sent twice: nothing is lost here.
        std::thread::sleep(Duration::from_millis(10));
    }
    stop.store(true, Ordering::Relaxed);
    farm.workers = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(ends.done(), "stuck: {:?}", farm.stats);
    for worker in 0..2 {
        farm.check(worker);
        assert_eq!(farm.stats[worker].held.get(), 0);
    }
    for n in 0..100 {
        assert_eq!(homes(&farm, n).len(), 1);
    }
}
