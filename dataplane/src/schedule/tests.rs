//! Each scheduler against its rule written the plain way: lists searched from the front, quotients as
//! fractions, no state but what the rule names.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use penstock_configs::desired::{BackendState, OnDown, Protocol};
use proptest::prelude::*;

use super::share::{OLDEST_NS, Others, ROUND_NS, is_active};
use super::*;
use crate::flow::{Flags, State, Word};
use crate::pipeline::testkit::SCHEDULERS;
use crate::tables::{Backend, BackendSet};
use crate::wire::{PROTO_TCP, PROTO_UDP};

fn backend(n: u16, weight: u16) -> Backend {
    Backend {
        address: IpAddr::from([10, 0, (n >> 8) as u8, n as u8]),
        port: 80,
        weight,
        state: BackendState::Active,
        checked: BackendState::Active,
        unwanted: false,
        ramp: 10,
        node_slot: n,
    }
}

fn service(scheduler: Scheduler, backends: Vec<Backend>) -> Service {
    let loads = if scheduler.counts() { (1..=backends.len() as u32).collect() } else { Box::default() };
    Service {
        slot: 3,
        owner: "test".into(),
        name: "test".into(),
        vip: IpAddr::from([203, 0, 113, 10]),
        port: 80,
        protocol: if Protocol::Tcp.as_str() == "tcp" { PROTO_TCP } else { PROTO_UDP },
        mode: Default::default(),
        reply_check: true,
        set: Arc::new(BackendSet::build(backends, Kind::from(scheduler), 251)),
        target_port: 0,
        sources: None,
        timeouts: [0; State::COUNT],
        moved: None,
        scheduler,
        loads,
        on_down: OnDown::Keep,
        panic: false,
        on_idle: Default::default(),
        limits: None,
        no_backend: Default::default(),
        affinity: None,
    }
}

fn weighted(scheduler: Scheduler, weights: &[u16]) -> Service {
    service(scheduler, weights.iter().zip(0..).map(|(weight, n)| backend(n, *weight)).collect())
}

/// A worker alone.
struct Bench {
    scheduling: Scheduling,
    tally: Tally,
    records: u32,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let share = Arc::new(Share::new(100));
        Self { scheduling: Scheduling::new(8, 100, seed), tally: Tally::new(100_000, share), records: 0 }
    }

    fn pick_for(&mut self, service: &Service, client: IpAddr) -> Option<u16> {
        let asked = Asked { client, vip: service.vip, now: Now::from_secs(1) };
        self.scheduling.pick(service, self.tally.share(), &asked)
    }

    fn pick(&mut self, service: &Service) -> Option<u16> {
        self.pick_for(service, IpAddr::from([198, 51, 100, 7]))
    }

    /// Flows on a backend.
    fn load(&mut self, service: &Service, index: u16, load: Load) {
        for (count, state) in [(load.active, State::Established), (load.inactive, State::FinWait)] {
            for _ in 0..count {
                let word = Word { state, flags: Flags::default(), protocol: PROTO_TCP };
                let _ = self.tally.enter(self.records, word, service.load_of(index));
                self.records += 1;
            }
        }
    }
}

#[test]
fn nobody_takes_what_nobody_may() {
    // All but Maglev, which needs no plan.
    for scheduler in SCHEDULERS.into_iter().skip(1) {
        assert_eq!(Bench::new(1).pick(&service(scheduler, Vec::new())), None, "{scheduler:?}: no backend");
        assert_eq!(Bench::new(1).pick(&weighted(scheduler, &[0, 0])), None, "{scheduler:?}: of weight 0");
        let mut gone = vec![backend(0, 1), backend(1, 1)];
        gone[0].state = BackendState::Draining;
        gone[1].state = BackendState::Down;
        assert_eq!(Bench::new(1).pick(&service(scheduler, gone.clone())), None, "{scheduler:?}: draining, down");
        gone.insert(1, backend(7, 5));
        gone.push(backend(8, 0));
        let one = service(scheduler, gone);
        let mut bench = Bench::new(1);
        for n in 0..300_u32 {
            let client = IpAddr::from((0xc633_6400 + n * 7919).to_be_bytes());
            assert_eq!(bench.pick_for(&one, client), Some(1), "{scheduler:?}: the only one");
        }
    }
}

proptest! {
    /// Any stretch as long as the list has each usable one once.
    #[test]
    fn rr_gives_each_its_turn(weights in prop::collection::vec(0_u16..3, 1..20), seed: u64) {
        let service = weighted(Scheduler::Rr, &weights);
        let usable: Vec<u16> = (0..).zip(&weights).filter(|(_, w)| **w > 0).map(|(n, _)| n).collect();
        let mut bench = Bench::new(seed);
        let picks: Vec<u16> = (0..usable.len() * 3).filter_map(|_| bench.pick(&service)).collect();
        for turn in picks.windows(usable.len().max(1)) {
            let mut turn = turn.to_vec();
            turn.sort_unstable();
            prop_assert_eq!(&turn, &usable);
        }
    }

    /// The classic sequence as the kernel's documentation gives it: the level from the largest weight down,
    /// at each level everyone who is up to it, in the list's order.
    #[test]
    fn wrr_is_the_classic_sequence(weights in prop::collection::vec(0_u16..12, 1..8), seed: u64) {
        let service = weighted(Scheduler::Wrr, &weights);
        let divisor = weights.iter().filter(|w| **w > 0).fold(0, |a, b| gcd(a, *b)).max(1);
        let largest = weights.iter().copied().max().unwrap_or(0);
        let mut cycle = Vec::new();
        let mut level = largest;
        while level > 0 {
            cycle.extend((0..).zip(&weights).filter(|(_, w)| **w >= level).map(|(n, _)| n as u16));
            level -= divisor;
        }
        let mut bench = Bench::new(seed);
        let picks: Vec<u16> = (0..cycle.len() * 3).filter_map(|_| bench.pick(&service)).collect();
        // It begins anywhere; from its first whole round on it is the cycle.
        let is_rotation = (0..cycle.len().max(1)).any(|by| {
            picks[cycle.len()..].iter().enumerate().all(|(n, pick)| *pick == cycle[(n + by) % cycle.len()])
        });
        prop_assert!(is_rotation, "{weights:?}: {picks:?} is not {cycle:?}");
    }

    /// Nobody has less, by the rule as a fraction.
    #[test]
    fn counting_schedulers_take_a_least_one(
        loads in prop::collection::vec((0_u16..5, 0_u32..20, 0_u32..600), 1..10),
        seed: u64,
    ) {
        for scheduler in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
            let service = weighted(scheduler, &loads.iter().map(|load| load.0).collect::<Vec<_>>());
            let mut bench = Bench::new(seed);
            for (n, (_, active, inactive)) in (0..).zip(&loads) {
                bench.load(&service, n, Load { active: *active, inactive: *inactive });
            }
            let cost = |(weight, active, inactive): &(u16, u32, u32)| {
                let (active, inactive, weight) = (f64::from(*active), f64::from(*inactive), f64::from(*weight));
                match scheduler {
                    Scheduler::Lc => active * 256.0 + inactive,
                    Scheduler::Wlc => (active * 256.0 + inactive) / weight,
                    Scheduler::Nq if active == 0.0 => -1.0,
                    _ => (active + 1.0) / weight,
                }
            };
            let usable = loads.iter().filter(|load| load.0 > 0);
            let least = usable.map(cost).fold(f64::INFINITY, f64::min);
            match bench.pick(&service) {
                Some(pick) => {
                    let load = &loads[usize::from(pick)];
                    prop_assert!(load.0 > 0, "{scheduler:?} took one of weight 0");
                    prop_assert!((cost(load) - least).abs() < 1e-9, "{scheduler:?}: {pick} of {loads:?}");
                }
                None => prop_assert!(loads.iter().all(|load| load.0 == 0)),
            }
        }
    }

    /// The kernel's table, built bucket by bucket, and its walk.
    #[test]
    fn sh_is_the_kernels_table(weights in prop::collection::vec(1_u16..6, 1..12), down: u16, clients in prop::collection::vec(any::<u32>(), 50)) {
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b));
        let mut buckets = Vec::new();
        let (mut at, mut filled) = (0, 0);
        while buckets.len() < 256 {
            buckets.push(at as u16);
            filled += 1;
            if filled >= weights[at] / divisor {
                (at, filled) = ((at + 1) % weights.len(), 0);
            }
        }
        let gone = down as usize % weights.len();
        let mut backends: Vec<Backend> = weights.iter().zip(0..).map(|(weight, n)| backend(n, *weight)).collect();
        let whole = service(Scheduler::Sh, backends.clone());
        backends[gone].state = BackendState::Down;
        let less = service(Scheduler::Sh, backends);
        for client in clients {
            let hash = (client.wrapping_mul(0x61c8_8647) >> 24) as usize;
            let address = IpAddr::from(Ipv4Addr::from_bits(client));
            prop_assert_eq!(Bench::new(1).pick_for(&whole, address), Some(buckets[hash]));
            let expected = (0..=256_usize).map(|step| {
                if step == 0 { buckets[hash] } else { buckets[(hash + (step - 1 + hash) % 256) % 256] }
            });
            let expected = expected.into_iter().find(|n| usize::from(*n) != gone);
            prop_assert_eq!(Bench::new(1).pick_for(&less, address), expected);
            if usize::from(buckets[hash]) != gone {
                prop_assert_eq!(expected, Some(buckets[hash]), "who is not the gone one's stays");
            }
        }
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn the_kernels_own_example_of_wrr() {
    // Documented with ipvsadm: weights 4, 3, 2 make AABABCABC.
    let service = weighted(Scheduler::Wrr, &[4, 3, 2]);
    let mut bench = Bench::new(5);
    let picks: String = (0..27).filter_map(|_| bench.pick(&service)).map(|n| ['A', 'B', 'C'][usize::from(n)]).collect();
    assert!(picks[9..].contains("AABABCABC"), "{picks}");
}

#[test]
fn turns_go_on_across_changes() {
    let mut bench = Bench::new(9);
    let four = weighted(Scheduler::Rr, &[1, 1, 1, 1]);
    while bench.pick(&four) != Some(1) {}
    // Another snapshot, in which the third is down: the fourth's turn, not the first's.
    let mut backends = four.set.backends.clone();
    backends[2].state = BackendState::Down;
    assert_eq!(bench.pick(&service(Scheduler::Rr, backends)), Some(3));
    // Weights that no longer have the level it was at.
    let mut bench = Bench::new(9);
    let heavy = weighted(Scheduler::Wrr, &[70, 30]);
    (0..5).for_each(|_| assert!(bench.pick(&heavy).is_some()));
    let light = weighted(Scheduler::Wrr, &[2, 1]);
    let picks: Vec<u16> = (0..300).filter_map(|_| bench.pick(&light)).collect();
    let first = picks.iter().filter(|n| **n == 0).count();
    assert!((199..=201).contains(&first), "{first} of 300");
}

#[test]
fn ties_are_taken_in_turn() {
    for scheduler in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
        let service = weighted(scheduler, &[1; 5]);
        let mut bench = Bench::new(2);
        let mut picks: Vec<u16> = (0..5).filter_map(|_| bench.pick(&service)).collect();
        picks.sort_unstable();
        assert_eq!(picks, [0, 1, 2, 3, 4], "{scheduler:?}");
    }
}

#[test]
fn workers_and_services_begin_apart() {
    let service = weighted(Scheduler::Rr, &[1; 8]);
    let firsts: std::collections::BTreeSet<_> = (0..64).map(|seed| Bench::new(seed).pick(&service)).collect();
    assert!(firsts.len() >= 6, "64 workers begin with {firsts:?} only");
}

#[test]
fn dh_goes_by_the_vip_and_on_when_it_must() {
    let mut backends: Vec<Backend> = (0..5).map(|n| backend(n, n + 1)).collect();
    let mut service = service(Scheduler::Dh, backends.clone());
    let hash = u32::from_be_bytes([203, 0, 113, 10]).wrapping_mul(2_654_435_761) % 256;
    let home = (hash % 5) as u16;
    for client in 0..50_u8 {
        assert_eq!(Bench::new(1).pick_for(&service, IpAddr::from([198, 51, 100, client])), Some(home));
    }
    backends[usize::from(home)].state = BackendState::Draining;
    let next = ((hash + 1) % 256 % 5) as u16;
    service.set = Arc::new(BackendSet::build(backends, Kind::Destination, 251));
    assert_eq!(Bench::new(1).pick(&service), Some(next));
}

#[test]
fn sh_folds_ipv6_and_grows_with_its_weights() {
    let service = weighted(Scheduler::Sh, &[1; 4]);
    let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
    let folded = 0x2001_0db8_u32 ^ 7;
    let expected = (folded.wrapping_mul(0x61c8_8647) >> 24) % 4;
    assert_eq!(Bench::new(1).pick_for(&service, address.into()), Some(expected as u16));
    // 600 of weight 1 do not fit 256 buckets: each has one all the same.
    let many = weighted(Scheduler::Sh, &[1; 600]);
    let mut bench = Bench::new(1);
    let mut random = Random::new(4);
    let seen: std::collections::HashSet<_> =
        (0..40_000).map(|_| bench.pick_for(&many, IpAddr::from((random.draw() as u32).to_be_bytes()))).collect();
    assert_eq!(seen.len(), 600);
}

#[test]
fn two_are_drawn_by_weight_and_the_less_loaded_taken() {
    // Nobody loaded: the first drawn, so shares are the weights.
    let service = weighted(Scheduler::RandomTwoChoices, &[6, 3, 1, 0]);
    let plan = &service.set.plan;
    let mut random = Random::new(7);
    let mut firsts = BTreeMap::<u16, f64>::new();
    let mut pairs = HashMap::<(u16, u16), f64>::new();
    for _ in 0..100_000 {
        let (one, other) = plan.draw_two(&mut random);
        assert_ne!(one.index, other.index);
        *firsts.entry(one.index).or_default() += 1e-5;
        *pairs.entry((one.index, other.index)).or_default() += 1e-5;
    }
    for (index, share) in [(0, 0.6), (1, 0.3), (2, 0.1)] {
        assert!((firsts[&index] - share).abs() < 0.01, "{firsts:?}");
    }
    // The second by the weights the first leaves: after the middle one 6 of 7 and 1 of 7.
    for (pair, share) in
        [((1, 0), 0.3 * 6.0 / 7.0), ((1, 2), 0.3 / 7.0), ((0, 1), 0.6 * 0.75), ((2, 0), 0.1 * 6.0 / 9.0)]
    {
        assert!((pairs[&pair] - share).abs() < 0.01, "{pair:?}: {pairs:?}");
    }
    // Of two there are only those two: the longer queue for its weight gets none.
    let two = weighted(Scheduler::RandomTwoChoices, &[1, 3]);
    let mut bench = Bench::new(3);
    bench.load(&two, 0, Load { active: 2, inactive: 0 });
    bench.load(&two, 1, Load { active: 7, inactive: 900 });
    assert!((0..200).all(|_| bench.pick(&two) == Some(1)), "3 for weight 1 is more than 8 for weight 3");
    bench.load(&two, 1, Load { active: 2, inactive: 0 });
    assert!((0..200).all(|_| bench.pick(&two) == Some(0)), "3 for weight 1 is less than 10 for weight 3");
}

/// Workers with flows that come and go, each reading the others' counts as its turns come.
struct World {
    tallies: Vec<Tally>,
    others: Vec<Others>,
    /// Records in use, by worker.
    live: Vec<Vec<(u32, u32)>>,
    next: Vec<u32>,
    /// (time, worker, slot) of every flow that began or ended.
    changes: Vec<(u64, usize, u32)>,
}

const SLOTS: u32 = 40;

impl World {
    fn new(workers: usize) -> Self {
        let peers = Arc::new(Peers::new(workers));
        let shares: Vec<_> = (0..workers).map(|_| Arc::new(Share::new(SLOTS as usize))).collect();
        for (worker, share) in (0..).zip(&shares) {
            peers.join(worker, Arc::clone(share), Arc::new(Share::new(1)));
        }
        let others = (0..workers).map(|worker| {
            let mut others = Others::new(SLOTS as usize);
            others.meet(Arc::clone(&peers), worker as u16, false);
            others
        });
        Self {
            others: others.collect(),
            tallies: shares.into_iter().map(|share| Tally::new(20_000, share)).collect(),
            live: vec![Vec::new(); workers],
            next: vec![0; workers],
            changes: Vec::new(),
        }
    }

    fn word(tally: &Tally, at: u32) -> Word {
        let word = Word { state: State::Established, flags: Flags::default(), protocol: PROTO_TCP };
        let _ = (tally, at);
        Word { flags: word.flags.with(Flags::COUNTED), ..word }
    }

    fn change(&mut self, worker: usize, now: u64, random: &mut Random) {
        let ends = !self.live[worker].is_empty() && random.below(5) < 2;
        let slot = if ends {
            let which = random.below(self.live[worker].len() as u64) as usize;
            let (at, slot) = self.live[worker].swap_remove(which);
            let word = Self::word(&self.tallies[worker], at);
            self.tallies[worker].leave(at, word);
            slot
        } else {
            let (at, slot) = (self.next[worker], random.below(u64::from(SLOTS)) as u32 + 1);
            self.next[worker] += 1;
            let word = Word { state: State::SynSent, flags: Flags::default(), protocol: PROTO_TCP };
            let word = self.tallies[worker].enter(at, word, slot);
            assert!(word.flags.has(Flags::COUNTED));
            self.live[worker].push((at, slot));
            slot
        };
        self.changes.push((now, worker, slot));
    }

    fn truth(&self, slot: u32) -> u32 {
        self.live.iter().flatten().filter(|(_, of)| *of == slot).count() as u32
    }
}

/// At any moment, whatever the workers' turns are like: what a worker sees of a slot is off by at most
/// what began or ended there at other workers within [`OLDEST_NS`].
#[test]
fn what_is_seen_is_off_by_what_came_in_a_period() {
    for (seed, workers) in [(1, 2), (2, 4), (3, 7)] {
        let mut random = Random::new(seed);
        let mut world = World::new(workers);
        let (mut now, mut looked, mut worst, mut wrong) = (1_000_000_000_u64, 0, 0, 0);
        let mut asleep = vec![0_u64; workers];
        while looked < 3000 {
            now += random.below(60_000);
            let worker = random.below(workers as u64) as usize;
            if now < asleep[worker] {
                continue;
            }
            if random.below(400) == 0 {
                // Longer than numbers may be old.
                asleep[worker] = now + 3 * OLDEST_NS;
                continue;
            }
            world.change(worker, now, &mut random);
            if random.below(3) == 0 {
                world.others[worker].exchange(SLOTS + 1, Now { ns: now });
            }
            if random.below(4) == 0 {
                looked += 1;
                let slot = random.below(u64::from(SLOTS)) as u32 + 1;
                if world.others[worker].is_stale(Now { ns: now }) {
                    world.others[worker].read(&[slot]);
                }
                let seen = (world.tallies[worker].share().load(slot) + world.others[worker].load(slot)).active;
                let off = seen.abs_diff(world.truth(slot));
                let recent = world.changes.iter().rev().take_while(|(then, ..)| now - then <= OLDEST_NS);
                let bound = recent.filter(|(_, by, of)| *by != worker && *of == slot).count() as u32;
                assert!(off <= bound, "worker {worker} sees {seen}, off by {off}; {bound} changes in a period");
                worst = worst.max(off);
                wrong += u32::from(off > 0);
            }
        }
        println!("{workers} workers: {wrong} of {looked} looks off, by {worst} at most");
        assert!(wrong > 0, "the bound was never put to the test");
        // At rest everybody sees the truth within two rounds.
        for later in [ROUND_NS, 2 * ROUND_NS, 3 * ROUND_NS] {
            for others in &mut world.others {
                others.exchange(SLOTS + 1, Now { ns: now + later });
            }
        }
        for worker in 0..workers {
            for slot in 1..=SLOTS {
                let seen = world.tallies[worker].share().load(slot) + world.others[worker].load(slot);
                assert_eq!(seen.active, world.truth(slot), "at rest");
            }
        }
    }
}

/// The more workers there are, the fewer slots are read at a time: each costs a line of every other worker's.
#[test]
fn a_call_reads_so_many_counts_whatever_the_number_of_workers() {
    const SLOTS: u32 = 2_000;
    for workers in [2, 9, 100] {
        let peers = Arc::new(Peers::new(workers));
        let word = Word { state: State::Established, flags: Flags::default(), protocol: PROTO_TCP };
        for worker in 0..workers {
            let share = Arc::new(Share::new(SLOTS as usize));
            let mut tally = Tally::new(1, Arc::clone(&share));
            (1..=SLOTS).for_each(|slot| _ = tally.enter(0, word, slot));
            peers.join(worker as u16, Arc::clone(&share), share);
        }
        let mut others = Others::new(SLOTS as usize);
        others.meet(peers, 0, false);
        let known = |others: &Others| (1..=SLOTS).filter(|slot| others.load(*slot).active > 0).count();
        let mut worst = 0;
        for nap in 1..=250 {
            let before = known(&others);
            others.exchange(SLOTS + 1, Now::from_secs(nap));
            worst = worst.max(known(&others) - before);
        }
        assert!(worst > 0 && worst * workers <= 1024, "{worst} slots of {workers} workers");
        assert_eq!(known(&others), SLOTS as usize);
    }
}

/// Four workers with one service by `wlc`, each choosing by what it sees: the shares are what the weights
/// say, off by little more than what came in a period.
#[test]
fn wlc_over_four_workers_is_as_even_as_its_counts_are_fresh() {
    let service = weighted(Scheduler::Wlc, &[1, 1, 2]);
    let peers = Arc::new(Peers::new(4));
    let mut workers: Vec<_> = (0..4_u16)
        .map(|worker| {
            let share = Arc::new(Share::new(8));
            peers.join(worker, Arc::clone(&share), Arc::new(Share::new(1)));
            let mut scheduling = Scheduling::new(8, 8, u64::from(worker));
            scheduling.meet(Arc::clone(&peers), worker, false);
            (scheduling, Tally::new(10_000, share))
        })
        .collect();
    let mut random = Random::new(11);
    let (mut now, mut counts) = (Now::from_secs(1), [0_u32; 3]);
    for n in 0..8000 {
        // 100,000 a second: 400 in a period.
        now.ns += 10_000;
        let (scheduling, tally) = &mut workers[random.below(4) as usize];
        let asked = Asked { client: service.vip, vip: service.vip, now };
        let pick = scheduling.pick(&service, tally.share(), &asked).unwrap();
        let word = Word { state: State::SynSent, flags: Flags::default(), protocol: PROTO_TCP };
        let _ = tally.enter(n, word, service.load_of(pick));
        counts[usize::from(pick)] += 1;
        for (scheduling, _) in &mut workers {
            scheduling.exchange(4, now);
        }
    }
    for (count, share) in counts.iter().zip([2000_u32, 2000, 4000]) {
        assert!(count.abs_diff(share) <= 300, "{counts:?}");
    }
}

/// With equal delays the first drawn stays; a backend ten times as heavy has a tenth of the delay.
#[test]
fn the_less_loaded_of_two_is_the_one_with_the_shorter_delay() {
    let of = |index, weight| Candidate { index, weight };
    let least = |weights: [u32; 2], active: [u32; 2]| {
        let seen = |index: u16| Load { active: active[usize::from(index)], inactive: 0 };
        least::of_two(of(0, weights[0]), of(1, weights[1]), seen).index
    };
    assert_eq!([least([1, 1], [3, 3]), least([1, 1], [3, 2]), least([1, 1], [2, 3])], [0, 1, 0]);
    assert_eq!([least([1, 10], [0, 8]), least([1, 10], [0, 9]), least([10, 1], [8, 0])], [1, 0, 0]);
}

/// What tells `nq` from `sed`: somebody idle is taken, however slow.
#[test]
fn sed_leaves_the_idle_alone_where_the_busy_are_faster() {
    for (scheduler, wanted) in [(Scheduler::Sed, 1), (Scheduler::Nq, 0)] {
        let service = weighted(scheduler, &[1, 10]);
        let mut bench = Bench::new(1);
        bench.load(&service, 1, Load { active: 1, inactive: 0 });
        assert_eq!(bench.pick(&service), Some(wanted), "{scheduler:?}");
    }
}

/// A worker that was held up chooses by what the others' counts are now.
#[test]
fn a_worker_that_slept_asks_again() {
    let service = weighted(Scheduler::Lc, &[1, 1]);
    let peers = Arc::new(Peers::new(2));
    let other = Arc::new(Share::new(100));
    peers.join(1, Arc::clone(&other), Arc::new(Share::new(1)));
    let mut bench = Bench::new(1);
    bench.scheduling.meet(peers, 0, false);
    let mut tally = Tally::new(8, other);
    let word = Word { state: State::Established, flags: Flags::default(), protocol: PROTO_TCP };
    for record in 0..8 {
        let _ = tally.enter(record, word, service.load_of(0));
    }
    assert!((0..4).all(|_| bench.pick(&service) == Some(1)), "all of the other worker's are on the first");
}

/// Who is to take nothing has no part of the VIPs either, that its neighbour in the list would take over.
#[test]
fn dh_spreads_vips_over_those_that_weigh_anything() {
    let mut service = weighted(Scheduler::Dh, &[1, 0, 1]);
    let mut taken = [0; 3];
    for n in 0..400_u32 {
        service.vip = Ipv4Addr::from(0xcb00_7100 + n * 7919).into();
        taken[usize::from(Bench::new(1).pick(&service).expect("one"))] += 1;
    }
    assert!(taken[0] > 150 && taken[1] == 0 && taken[2] > 150, "{taken:?}");
}

#[test]
fn flows_that_begin_and_live_are_active_and_closing_ones_are_not() {
    let of = |states: &[State]| states.iter().map(|state| is_active(*state)).collect::<Vec<_>>();
    let live = [
        State::SynSent,
        State::Established,
        State::UdpOneWay,
        State::UdpStream,
        State::SctpInit,
        State::SctpEstablished,
    ];
    assert_eq!(of(&live), [true; 6]);
    let closing =
        [State::FinWait, State::TimeWait, State::Reset, State::Expired, State::SctpShutdown, State::SctpClosed];
    assert_eq!(of(&closing), [false; 6]);
}
