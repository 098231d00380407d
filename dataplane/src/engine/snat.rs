//! How full the SNAT ports are, towards whom, and when they will be used up.
//!
//! The flow table is the truth about ports, so they are counted from the workers' stores, which this thread maps
//! anyway: the workers spend nothing on it. A scan reads every record once; it is repeated as
//! often as it costs a fiftieth of this thread's time.
//!
//! A pair is a SNAT address and a backend. A worker only ever takes its own share of a range, so what counts is the
//! fullest worker. When an address is full towards a backend, new flows take the next one; so the warning
//! is about a backend over all addresses, and what is shown are the fullest pairs.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_configs::desired::Protocol;
use penstock_configs::status::SnatStatus;
use rustc_hash::FxHashMap;

use super::{Shared, flows, room};
use crate::flow::State;
use crate::nat::Partition;
use crate::tables::compile::protocol_of;
use crate::tables::{Snat, Tables};
use crate::verdict::WorkerId;

/// Pairs reported: `/metrics` has so many series of each kind, however many backends there are.
const REPORTED: usize = 32;
/// Pairs whose history is kept.
const FOLLOWED: usize = 256;
/// How far back a forecast looks.
const MEMORY: Duration = Duration::from_secs(60);
/// Less than this says nothing of a trend.
const LEAST_MEMORY: Duration = Duration::from_secs(5);
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// A scan's share of this thread: one in so many.
const SCAN_SHARE: u32 = 50;
/// From here on the operator is told.
pub const WARN_AT: f64 = 0.8;
/// A trend that takes longer than this to fill the ports is none.
const FAR: f64 = 7.0 * 24.0 * 3600.0;

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pair {
    pub address: IpAddr,
    pub backend: SocketAddr,
    pub protocol: u8,
}

/// Ports of a pair that one worker's flows have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    pub used: u32,
    /// Of these, closed ones whose port only rests.
    pub resting: u32,
}

/// Counts by pair, for each worker.
pub type Counts = FxHashMap<Pair, Vec<Use>>;

/// A flow that has a SNAT port.
pub struct Taken {
    pub pair: Pair,
    pub state: State,
}

pub fn count(counts: &mut Counts, worker: usize, workers: usize, taken: &Taken) {
    let by_worker = counts.entry(taken.pair).or_insert_with(|| vec![Use::default(); workers]);
    if let Some(usage) = by_worker.get_mut(worker) {
        usage.used += 1;
        usage.resting += u32::from(matches!(taken.state, State::TimeWait | State::SctpClosed));
    }
}

/// One pair's, or one backend's, ports.
#[derive(Debug, Clone, Default)]
struct Level {
    used: u64,
    resting: u64,
    capacity: u64,
    /// Of the fullest worker.
    fullest: f64,
}

impl Level {
    fn of(by_worker: &[Use], capacities: &[u64]) -> Self {
        let mut level = Self::default();
        for (usage, capacity) in by_worker.iter().zip(capacities) {
            level.used += u64::from(usage.used);
            level.resting += u64::from(usage.resting);
            level.capacity += capacity;
            if *capacity > 0 {
                level.fullest = level.fullest.max(f64::from(usage.used) / *capacity as f64);
            }
        }
        level
    }

    /// What is left of it at this growth: of the fullest worker's share, as if all grew alike.
    fn full_in(&self, per_second: f64) -> Option<f64> {
        let left = (1.0 - self.fullest).max(0.0) * self.capacity as f64;
        Some(left / per_second).filter(|seconds| per_second > 0.0 && *seconds < FAR)
    }
}

/// What was used when; the oldest first.
#[derive(Default)]
struct History(VecDeque<(Instant, u64)>);

impl History {
    fn add(&mut self, now: Instant, used: u64) {
        while self.0.len() > 1 && self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= MEMORY) {
            self.0.pop_front();
        }
        self.0.push_back((now, used));
    }

    fn per_second(&self) -> f64 {
        let (Some((first, before)), Some((last, now))) = (self.0.front(), self.0.back()) else { return 0.0 };
        let time = last.duration_since(*first);
        if time < LEAST_MEMORY { 0.0 } else { (*now as f64 - *before as f64) / time.as_secs_f64() }
    }
}

/// A backend over all addresses of its family: an address of none.
fn whole(pair: Pair) -> Pair {
    let address = if pair.address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    Pair { address, ..pair }
}

/// What is known of the fullest pairs, scan by scan.
#[derive(Default)]
pub struct Occupancy {
    next: Option<Instant>,
    history: FxHashMap<Pair, History>,
    pub pairs: Vec<SnatStatus>,
    pub warnings: Vec<String>,
}

impl Occupancy {
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// Counts the workers' flows and draws conclusions.
    pub fn scan(shared: &Shared, now: Instant) {
        let tables = std::sync::Arc::clone(&shared.published().tables);
        let mut counts = Counts::default();
        let workers = shared.workers.len();
        flows::each_taken(shared, |worker, taken| count(&mut counts, worker, workers, &taken));
        let mut occupancy = shared.occupancy();
        occupancy.next = Some(now + LEAST_INTERVAL.max(now.elapsed() * SCAN_SHARE));
        let full = room::warnings(shared, &occupancy.warnings);
        let mut newly = room::newly(&occupancy.warnings, &full);
        newly.extend(occupancy.add(now, &counts, &tables, workers));
        occupancy.warnings.extend(full);
        drop(occupancy);
        for warning in newly {
            tracing::warn!("{warning}");
        }
    }

    /// Takes up a scan; returns warnings about backends there was none about before.
    fn add(&mut self, now: Instant, counts: &Counts, tables: &Tables, workers: usize) -> Vec<String> {
        let capacities = capacities(tables, workers);
        let mut backends: FxHashMap<Pair, Vec<Use>> = FxHashMap::default();
        let mut levels: Vec<(Pair, Level)> = Vec::with_capacity(counts.len());
        for (pair, by_worker) in counts {
            // A retired address has no capacity: its flows are about to be forgotten.
            let Some(capacity) = capacities.get(&pair.address) else { continue };
            levels.push((*pair, Level::of(by_worker, capacity)));
            let sum = backends.entry(whole(*pair)).or_insert_with(|| vec![Use::default(); workers]);
            for (sum, usage) in sum.iter_mut().zip(by_worker) {
                sum.used += usage.used;
                sum.resting += usage.resting;
            }
        }
        let mut backends: Vec<(Pair, Level)> = backends
            .into_iter()
            .filter_map(|(pair, by_worker)| Some((pair, Level::of(&by_worker, capacities.get(&pair.address)?))))
            .collect();
        keep_fullest(&mut levels);
        keep_fullest(&mut backends);
        self.follow(now, levels.iter().chain(&backends));
        self.pairs = levels.iter().take(REPORTED).map(|(pair, level)| self.status(*pair, level)).collect();
        let is_full = |(pair, level): &&(Pair, Level)| {
            room::is_worth_telling(level.fullest, WARN_AT, &subject(*pair), &self.warnings)
        };
        let full = backends.iter().filter(is_full);
        let warnings: Vec<String> = full.map(|(pair, level)| self.warning(*pair, level, tables)).collect();
        let newly = room::newly(&self.warnings, &warnings);
        self.warnings = warnings;
        newly
    }

    fn follow<'a>(&mut self, now: Instant, levels: impl Iterator<Item = &'a (Pair, Level)>) {
        let mut followed = FxHashMap::default();
        for (pair, level) in levels {
            let mut history = self.history.remove(pair).unwrap_or_default();
            history.add(now, level.used);
            followed.insert(*pair, history);
        }
        self.history = followed;
    }

    fn growth(&self, pair: Pair) -> f64 {
        self.history.get(&pair).map_or(0.0, History::per_second)
    }

    fn status(&self, pair: Pair, level: &Level) -> SnatStatus {
        let growth = self.growth(pair);
        SnatStatus {
            address: pair.address,
            backend: pair.backend,
            protocol: protocol_of(pair.protocol),
            used: level.used,
            resting: level.resting,
            capacity: level.capacity,
            occupancy: level.fullest,
            growth_per_second: growth,
            full_in_seconds: level.full_in(growth),
        }
    }

    fn warning(&self, pair: Pair, level: &Level, tables: &Tables) -> String {
        let addresses = active(tables, pair.address.is_ipv4());
        let forecast = match level.full_in(self.growth(pair)) {
            _ if level.fullest >= 1.0 && level.resting > 0 => {
                "new flows get those that rest, where RFC 6191 allows, or are refused (snat_exhausted)".to_owned()
            }
            _ if level.fullest >= 1.0 => {
                "new flows take the ports of half-open ones, or are refused now (snat_exhausted)".to_owned()
            }
            Some(seconds) => format!("at the rate of the last minute full in ~{}", rounded(seconds)),
            None => "not growing".to_owned(),
        };
        let Level { used, resting, capacity, fullest } = level;
        format!(
            "{} {:.0} % in use ({used} of {capacity} ports over {addresses} [[snat]] address(es); {resting} of them \
             rest and can be used again early): {forecast}; add a [[snat]] address or widen `ports`, or shorten {}",
            subject(pair),
            fullest * 100.0,
            timeouts(pair.protocol, level)
        )
    }
}

fn subject(pair: Pair) -> String {
    format!("SNAT ports towards {}/{}:", pair.backend, protocol_of(pair.protocol).as_str())
}

/// The timeout that most of the ports wait for.
fn timeouts(protocol: u8, level: &Level) -> &'static str {
    match protocol_of(protocol) {
        Protocol::Tcp if level.resting * 2 > level.used => "timeouts.tcp_time_wait",
        Protocol::Tcp => "timeouts.tcp_established",
        Protocol::Udp => "timeouts.udp",
        Protocol::Sctp => "timeouts.sctp_established",
    }
}

fn rounded(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{} s", (s / 5.0).round().max(1.0) * 5.0),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

fn keep_fullest(levels: &mut Vec<(Pair, Level)>) {
    levels.sort_by(|(a, at_a), (b, at_b)| {
        at_b.fullest.total_cmp(&at_a.fullest).then_with(|| (a.address, a.backend).cmp(&(b.address, b.backend)))
    });
    levels.truncate(FOLLOWED);
}

fn active(tables: &Tables, v4: bool) -> usize {
    if v4 {
        tables.v4.snats.iter().filter(|snat| !snat.retired).count()
    } else {
        tables.v6.snats.iter().filter(|snat| !snat.retired).count()
    }
}

/// Ports by address and worker; under the address of none, of all addresses of the family together.
fn capacities(tables: &Tables, workers: usize) -> FxHashMap<IpAddr, Vec<u64>> {
    let mut capacities = FxHashMap::default();
    add_capacities(&mut capacities, &tables.v4.snats, workers, |addr| addr.to_be_bytes().into());
    add_capacities(&mut capacities, &tables.v6.snats, workers, |addr| addr.to_be_bytes().into());
    capacities
}

fn add_capacities<A: Copy + Default>(
    capacities: &mut FxHashMap<IpAddr, Vec<u64>>,
    snats: &[Snat<A>],
    workers: usize,
    to_ip: impl Fn(A) -> IpAddr,
) {
    let all = workers as u16;
    for snat in snats.iter().filter(|snat| !snat.retired) {
        let ports = (0..all).map(|worker| {
            let partition = Partition { worker: WorkerId(worker), workers: all };
            u64::from(partition.ports(snat.first_port, snat.last_port).count)
        });
        let ports: Vec<u64> = ports.collect();
        let sum = capacities.entry(to_ip(A::default())).or_insert_with(|| vec![0; workers]);
        sum.iter_mut().zip(&ports).for_each(|(sum, ports)| *sum += ports);
        capacities.insert(to_ip(snat.addr), ports);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(snats: &[(u32, u16, u16, bool)]) -> Tables {
        let mut tables = Tables::default();
        let snat = |(addr, first_port, last_port, retired): &(u32, u16, u16, bool)| Snat {
            addr: *addr,
            first_port: *first_port,
            last_port: *last_port,
            shared: false,
            retired: *retired,
        };
        tables.v4.snats = snats.iter().map(snat).collect();
        tables
    }

    fn pair(address: u32, port: u16) -> Pair {
        Pair { address: address.to_be_bytes().into(), backend: ([10, 0, 0, 11], port).into(), protocol: 6 }
    }

    fn used(counts: &mut Counts, pair: Pair, worker: usize, live: u32, resting: u32) {
        for n in 0..live + resting {
            let state = if n < live { State::Established } else { State::TimeWait };
            count(counts, worker, 2, &Taken { pair, state });
        }
    }

    const ONE: u32 = 0x0a00_0001;
    const TWO: u32 = 0x0a00_0002;

    #[test]
    fn the_fullest_worker_counts_and_resting_ports_are_told_apart() {
        let mut occupancy = Occupancy::default();
        let mut counts = Counts::default();
        used(&mut counts, pair(ONE, 80), 0, 20, 8);
        used(&mut counts, pair(ONE, 80), 1, 4, 0);
        used(&mut counts, pair(ONE, 443), 1, 3, 0);
        let newly = occupancy.add(Instant::now(), &counts, &tables(&[(ONE, 40_000, 40_063, false)]), 2);
        let first = &occupancy.pairs[0];
        assert_eq!((first.used, first.resting, first.capacity, first.backend.port()), (32, 8, 64, 80));
        assert!((first.occupancy - 28.0 / 32.0).abs() < 1e-9, "worker 0 has 28 of its 32: {}", first.occupancy);
        assert_eq!(occupancy.pairs.len(), 2);
        assert_eq!(occupancy.warnings.len(), 1);
        assert_eq!(newly, occupancy.warnings);
        for part in ["10.0.0.11:80/tcp", "88 % in use", "32 of 64", "1 [[snat]]", "8 of them rest", "not growing"] {
            assert!(newly[0].contains(part), "{part}: {}", newly[0]);
        }
    }

    #[test]
    fn a_full_address_beside_an_empty_one_is_no_warning() {
        let mut occupancy = Occupancy::default();
        let mut counts = Counts::default();
        used(&mut counts, pair(ONE, 80), 0, 32, 0);
        used(&mut counts, pair(ONE, 80), 1, 32, 0);
        let two = tables(&[(ONE, 40_000, 40_063, false), (TWO, 40_000, 40_063, false)]);
        occupancy.add(Instant::now(), &counts, &two, 2);
        assert!(occupancy.warnings.is_empty(), "{:?}", occupancy.warnings);
        assert!((occupancy.pairs[0].occupancy - 1.0).abs() < 1e-9);
        // Taken away again: what it could hold no longer counts, nor do its flows.
        let one = tables(&[(ONE, 40_000, 40_063, false), (TWO, 40_000, 40_063, true)]);
        used(&mut counts, pair(TWO, 80), 0, 5, 0);
        occupancy.add(Instant::now(), &counts, &one, 2);
        assert!(occupancy.warnings[0].contains("refused now (snat_exhausted)"), "{}", occupancy.warnings[0]);
        assert_eq!(occupancy.pairs.len(), 1);
        let mut counts = Counts::default();
        used(&mut counts, pair(ONE, 80), 0, 0, 32);
        occupancy.add(Instant::now(), &counts, &one, 2);
        assert!(occupancy.warnings[0].contains("get those that rest"), "{}", occupancy.warnings[0]);
    }

    #[test]
    fn the_forecast_is_the_last_minutes_rate() {
        let mut occupancy = Occupancy::default();
        let tables = tables(&[(ONE, 10_000, 19_999, false)]);
        let start = Instant::now();
        // A slow hour, then ten ports a second.
        let mut last = Vec::new();
        for second in (0..=3600).step_by(10).chain((3610..=3720).step_by(10)) {
            let mut counts = Counts::default();
            let ports = 4000 + 5 * u32::try_from((second - 3600_i32).max(0)).unwrap();
            used(&mut counts, pair(ONE, 80), 0, ports, 0);
            used(&mut counts, pair(ONE, 80), 1, ports - 100, 0);
            last = occupancy.add(start + Duration::from_secs(second.unsigned_abs().into()), &counts, &tables, 2);
            if second == 3600 {
                assert_eq!(occupancy.pairs[0].full_in_seconds, None);
            }
        }
        let first = &occupancy.pairs[0];
        assert!((first.growth_per_second - 10.0).abs() < 0.01, "{first:?}");
        // The fullest worker has 4600 of 5000: 8 % of all is left.
        assert!((first.full_in_seconds.unwrap() - 80.0).abs() < 1.0, "{first:?}");
        assert!(occupancy.warnings[0].contains("full in ~80 s"), "{}", occupancy.warnings[0]);
        assert!(last.is_empty(), "told once: {last:?}");
    }

    #[test]
    fn the_memory_and_the_report_are_bounded() {
        let mut occupancy = Occupancy::default();
        let tables = tables(&[(ONE, 10_000, 19_999, false)]);
        for turn in 0..3_u64 {
            let mut counts = Counts::default();
            for port in 0..5000 {
                used(&mut counts, pair(ONE, 1000 * u16::try_from(turn).unwrap() + port + 1), 0, 1, 0);
            }
            occupancy.add(Instant::now() + Duration::from_secs(turn), &counts, &tables, 2);
            assert_eq!(occupancy.pairs.len(), REPORTED);
            assert!(occupancy.history.len() <= 2 * FOLLOWED);
        }
    }

    #[test]
    fn times_as_people_say_them() {
        assert_eq!([3.0, 44.0, 420.0, 7300.0].map(rounded), ["5 s", "45 s", "7 min", "2 h"]);
    }
}
