//! The packet path allocates and frees nothing, whatever comes: hits, misses, evictions, hand-offs,
//! drops, generated packets, a new snapshot, expiry. A test binary of its own, as it replaces the
//! allocator. That it takes no lock follows from the types: no module a turn calls has one.

#[path = "support/counting_allocator.rs"]
mod counting_allocator;

use counting_allocator::calls;
use penstock_configs::desired::{Affinity, BackendState, ServiceLimits, SourceLimits};
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::pipeline::PipelineConfig;
use penstock_dataplane::pipeline::testkit::{Farm, FarmConfig, Icmp, Pkt, Plan, SCHEDULERS, config, look};
use penstock_dataplane::steer::marks::Marks;
use penstock_dataplane::verdict::DropReason;
use penstock_dataplane::wire::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

const VIPS: [&str; 2] = ["203.0.113.10:443", "[2001:db8:1::10]:443"];

fn plan() -> Plan {
    let mut plan = Plan { maglev_max: 251, ..Plan::default() };
    for (vip, nodes) in
        VIPS.iter().zip([["10.0.0.11:31443", "10.0.0.12:31443"], ["[fd00::11]:31443", "[fd00::12]:31443"]])
    {
        plan.serve(&format!("{vip}/tcp"), &nodes);
        plan.serve(&format!("{vip}/udp"), &nodes);
    }
    plan.snat("10.0.0.1", [1024, 65535]);
    plan.snat("fd00::1", [1024, 65535]);
    plan
}

struct Watched {
    farm: Farm,
    calls: u64,
    turns: u64,
}

impl Watched {
    /// Turns of every worker, counted; then the nodes answer all that reached them, on other queues.
    fn rounds(&mut self, rounds: usize) {
        let workers = self.farm.workers.len();
        for round in 0..rounds {
            for worker in 0..workers {
                let now = self.farm.now;
                let before = calls();
                self.farm.workers[worker].turn(now);
                self.calls += calls() - before;
                self.turns += 1;
                self.farm.check(worker);
            }
            self.farm.now.ns += 3_000_000;
            for worker in 0..workers {
                for frame in self.farm.backs[worker].take_all() {
                    let Ok(seen) = look(&frame) else { continue };
                    if seen.dmac[1] != 0xee {
                        continue;
                    }
                    let flags = if seen.flags & TCP_SYN != 0 { TCP_SYN | TCP_ACK } else { seen.flags };
                    self.farm.backs[(worker + round) % workers].inject(&Pkt::answer(&seen, flags).bytes());
                }
                let _ = self.farm.fronts[worker].take_all();
                let _ = self.farm.kernels[worker].take_all();
            }
        }
    }

    fn inject(&mut self, n: usize, packet: &[u8]) {
        let workers = self.farm.workers.len();
        assert!(self.farm.fronts[n % workers].inject(packet), "the ring is large enough");
        if n % 64 == 63 {
            self.rounds(2);
        }
    }
}

fn client(n: usize, v6: bool) -> String {
    if v6 {
        format!("[2001:db8:2::{n:x}]:{}", 1024 + n)
    } else {
        format!("198.51.{}.{}:{}", n / 200, n % 200 + 1, 1024 + n)
    }
}

#[test]
fn nothing_is_allocated_on_the_packet_path() {
    let flows = Capacity { established: 700, embryonic: 64 };
    let pipeline = PipelineConfig { flows_v4: flows, flows_v6: flows, max_affinity: 32, ..config(0, 1) };
    let farm = Farm::new(plan(), &FarmConfig { workers: 2, pipeline, ..FarmConfig::default() });
    let mut watched = Watched { farm, calls: 0, turns: 0 };
    watched.rounds(3);
    // Connections: SYN, data, close or reset; more than fit; each client behind a hop of its own.
    for (n, flags) in [TCP_SYN, TCP_ACK, TCP_ACK, TCP_FIN | TCP_ACK, TCP_ACK, TCP_RST].iter().enumerate() {
        for m in 0..2000 {
            let vip = VIPS[m % 2];
            watched.inject(m + n, &Pkt::tcp(&client(m, m % 2 == 1), vip, *flags).bytes());
        }
    }
    for m in 0..1000 {
        watched.inject(m, &Pkt::udp(&client(m % 300, m % 2 == 1), VIPS[m % 2]).payload(b"query").bytes());
    }
    // Snapshots come and go under traffic, each with another scheduler.
    for change in 0..SCHEDULERS.len() as u16 {
        for service in &mut watched.farm.plan.services {
            service.scheduler = SCHEDULERS[usize::from(change)];
            service.slow_start = Some(30);
            // Of one group; more clients come than there is room for.
            let affinity = Affinity { group: Some("all".into()), ..Affinity::client_ip() };
            service.affinity = (change % 2 == 1).then_some(affinity);
        }
        // Limits come and change, clients are denied, established flows marked.
        let source = SourceLimits { connections: Some(2), new_per_second: Some(5), prefix_v4: 24, prefix_v6: 120 };
        let limits = ServiceLimits { connections: Some(300), new_per_second: Some(500), per_source: Some(source) };
        for service in &mut watched.farm.plan.services {
            service.limits = (change % 3 > 0).then(|| limits.clone());
        }
        let denied: &[&str] = if change % 2 == 0 { &[] } else { &["198.51.1.0/28", "2001:db8:2::/120"] };
        watched.farm.plan.deny = std::sync::Arc::new(denied.iter().map(|net| net.parse().expect("a prefix")).collect());
        watched.farm.plan.marks = Some(std::sync::Arc::new(Marks::heap(1)));
        // A node goes, and its connections with it.
        let gone = if change % 3 == 2 { BackendState::Down } else { BackendState::Active };
        watched.farm.plan.services[0].backends[1].state = gone;
        watched.farm.plan.services[0].backends[0].weight = 1 + change % 2;
        watched.farm.plan.services[1].backends[1].weight = change % 2;
        watched.farm.publish();
        for m in 0..200 {
            let fresh = client(3000 + usize::from(change) * 200 + m, m % 2 == 1);
            watched.inject(m, &Pkt::syn(&fresh, VIPS[m % 2]).bytes());
            watched.inject(
                m,
                &Pkt::tcp(
                    &client(m, m % 2 == 1),
                    VIPS[m % 2],
                    if (m + usize::from(change)) % 3 == 0 { TCP_SYN } else { TCP_ACK },
                )
                .bytes(),
            );
        }
    }
    // What the box drops, answers or gives back.
    let mut short = Pkt::syn(&client(1, false), VIPS[0]).bytes();
    short.truncate(30);
    let odd = [
        short,
        Pkt::syn(&client(1, false), VIPS[0]).with(|pkt| pkt.ttl = 1).bytes(),
        Pkt::syn(&client(1, true), VIPS[1]).with(|pkt| pkt.ttl = 1).bytes(),
        Pkt::syn("127.0.0.1:9", VIPS[0]).bytes(),
        Pkt::syn(&client(1, false), "203.0.113.99:443").bytes(),
        Pkt::syn(&client(1, false), "203.0.113.10:9").bytes(),
        Icmp::echo("198.51.100.7", "203.0.113.10", b"data").bytes(),
        Icmp::echo("2001:db8:2::7", "2001:db8:1::10", b"data").bytes(),
    ];
    for m in 0..800 {
        watched.inject(m, &odd[m % odd.len()]);
    }
    // Everything times out.
    watched.farm.now.ns += 8_000_000_000_000;
    watched.rounds(3000);

    let farm = &watched.farm;
    let sum = |counter: fn(&penstock_dataplane::stats::WorkerStats) -> u64| farm.sum(counter);
    assert!(sum(|stats| stats.flows_created.get()) > 2000);
    assert!(sum(|stats| stats.embryos_evicted.get()) > 100, "evictions were part of it");
    assert!(sum(|stats| stats.handoff_in.get()) > 1000, "hand-offs were part of it");
    assert!(sum(|stats| stats.affinity_asked.get()) > 100, "questions about clients were part of it");
    assert!(sum(|stats| stats.affinity_evicted.get()) > 10, "and clients forgotten");
    assert!(sum(|stats| stats.generated.get()) > 10, "generated packets were part of it");
    assert!(sum(|stats| stats.drops[DropReason::FlowRevoked as usize].get()) > 0, "flows reset were part of it");
    assert!(sum(|stats| stats.drops[DropReason::OutOfState as usize].get()) > 0);
    assert!(sum(|stats| stats.drops[DropReason::Denied as usize].get()) > 0, "the deny list was part of it");
    let limited = |stats: &penstock_dataplane::stats::WorkerStats| -> u64 {
        stats.services.iter().map(|service| service.limited.get()).sum()
    };
    assert!(sum(limited) > 0, "limits were part of it");
    assert!(
        farm.stats.iter().all(|stats| stats.view.get() == 1 + SCHEDULERS.len() as u64),
        "snapshots were part of it"
    );
    assert_eq!(sum(|stats| stats.flows_established.get() + stats.flows_embryonic.get()), 0, "expiry was part of it");
    println!(
        "{} turns, {} packets, {} calls of the allocator",
        watched.turns,
        sum(|stats| stats.rx.get()),
        watched.calls
    );
    assert_eq!(watched.calls, 0, "calls of the allocator in {} turns", watched.turns);
}
