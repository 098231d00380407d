//! The box in the words of the API.

use std::collections::HashMap;
use std::net::IpAddr;

use penstock_configs::desired::{BackendHealth, BackendState, Mode, Scheduler};
use penstock_configs::status::{
    BackendStatus, Counters, FlowCounters, FrameCounters, Latency, Ledger, PortCounters, PortStatus, ServiceStatus,
    SocketCounters, Status, StatusQuery, SteerCounts, WorkerCounters, WorkerStatus,
};

use super::ways::WayWatch;
use super::{PortFacts, Shared, WorkerHandle, flows, motion, tenure};
use crate::stats::WorkerStats;
use crate::steer::{ClassCounters, SteerCounters};
use crate::tables::{Backend, BackendSet, Service, Tables, compile::protocol_of};
use crate::verdict::DropReason;

pub fn status(shared: &Shared, query: &StatusQuery) -> Status {
    let network = shared.network();
    let ports = shared.ports.iter().enumerate().map(|(at, port)| port_status(shared, &network, at, port)).collect();
    let mut notices = shared.notices().clone();
    notices.extend(network.notices());
    drop(network);
    notices.extend(shared.rates().policing_notice());
    let (services, services_total) = services(shared, query);
    let (tables, denied) = {
        let published = shared.published();
        (std::sync::Arc::clone(&published.tables), published.wanted.live.deny.len())
    };
    notices.extend(
        tables.services.iter().flatten().filter(|service| service.panic).map(|service| motion::notice(service)),
    );
    let snat = {
        let occupancy = shared.occupancy();
        notices.extend(occupancy.warnings.iter().cloned());
        occupancy.pairs.clone()
    };
    Status {
        name: shared.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_seconds: shared.started.elapsed().as_secs_f64(),
        owners: Vec::new(),
        ports,
        workers: shared.workers.iter().enumerate().map(|(at, worker)| worker_status(shared, at, worker)).collect(),
        services,
        services_total,
        snat,
        denied_prefixes: denied as u64,
        notices,
    }
}

fn port_status(shared: &Shared, network: &super::Network, at: usize, port: &PortFacts) -> PortStatus {
    let link = network.links().iter().find(|link| usize::from(link.port.0) == at);
    let rates = shared.rates();
    PortStatus {
        interface: port.interface.clone(),
        queues: port.queues,
        xdp: network.steer.attached(at).map_or("detached", |mode| mode.name()).into(),
        zero_copy: port.zero_copy,
        link: link.is_some_and(|link| link.up),
        bond: link.and_then(|link| link.bond.clone()),
        standby: link.is_some_and(|link| link.standby),
        mtu: link.map_or(0, |link| link.mtu),
        rx_packets_per_second: rates.port_rx.get(at).copied().unwrap_or_default(),
        tx_packets_per_second: rates.port_tx.get(at).copied().unwrap_or_default(),
    }
}

fn worker_status(shared: &Shared, at: usize, worker: &WorkerHandle) -> WorkerStatus {
    let rates = shared.rates();
    let rate = |list: &[f64]| list.get(at).copied().unwrap_or_default();
    WorkerStatus {
        worker: at as u16,
        core: worker.core,
        flows: worker.stats.flows_established.get(),
        embryonic: worker.stats.flows_embryonic.get(),
        rx_packets_per_second: rate(&rates.worker_rx),
        handoff_packets_per_second: rate(&rates.worker_handoff),
        busy: rate(&rates.worker_busy),
    }
}

/// Flows of a service by backend.
pub type FlowCounts = HashMap<(u32, IpAddr, u16), u64>;

/// What of the way to a backend, or back, is worth telling.
struct BackendWay {
    reply_check: Option<&'static str>,
    why: String,
}

/// By service and backend, of modes that ask more of the way.
fn backend_ways(tables: &Tables, watch: &WayWatch) -> HashMap<(u32, IpAddr, u16), BackendWay> {
    let mut ways = HashMap::new();
    for service in tables.services.iter().flatten().filter(|service| service.mode != Mode::Nat) {
        for backend in &service.set.backends {
            let port = service.port_of(backend);
            let source = (backend.address, port, service.protocol);
            let way = match service.mode {
                Mode::Dnat if service.reply_check => watch.status(&source).map(|(word, why)| (Some(word), why)),
                Mode::Dsr if watch.is_behind_router(backend.address) => Some((None, "behind a router".into())),
                _ => None,
            };
            if let Some((reply_check, why)) = way {
                ways.insert((service.slot, backend.address, port), BackendWay { reply_check, why });
            }
        }
    }
    ways
}

/// Those that are asked for, and how many there are. With many, what is not listed is not built either.
fn services(shared: &Shared, query: &StatusQuery) -> (Vec<ServiceStatus>, u64) {
    let counts = flows::count_by_backend(shared);
    let (tables, tenures, names, health, hops, ways) = {
        let published = shared.published();
        let network = shared.network();
        (
            std::sync::Arc::clone(&published.tables),
            std::sync::Arc::clone(&published.tenures),
            published.names.clone(),
            published.wanted.health.clone(),
            network.mirror.hops(),
            backend_ways(&published.tables, &network.ways),
        )
    };
    let rates = shared.rates();
    let mut verdicts: HashMap<IpAddr, Vec<&BackendHealth>> = HashMap::new();
    for verdict in &health.backends {
        verdicts.entry(verdict.address).or_default().push(verdict);
    }
    let reason = |address: IpAddr, port: u16| {
        // As the tables do: the port's own before the node's.
        let said = verdicts.get(&address).into_iter().flatten().filter(|b| b.port.is_none_or(|own| own == port));
        said.max_by_key(|b| b.port).map(|backend| backend.reason.clone()).unwrap_or_default()
    };
    let reachable = |address: &IpAddr| hops.targets.get(address).is_some_and(Option::is_some);
    // Many services share a set.
    let mut up_of: HashMap<*const BackendSet, u32> = HashMap::new();
    let mut up = |set: &std::sync::Arc<BackendSet>| {
        *up_of.entry(std::sync::Arc::as_ptr(set)).or_insert_with(|| {
            let is_up = |b: &&Backend| b.checked == BackendState::Active && b.weight > 0 && reachable(&b.address);
            set.backends.iter().filter(is_up).count() as u32
        })
    };
    let mut of_service = |service: &Service| {
        let slot = service.slot as usize;
        let of_workers = tenure::stats(&shared.workers).filter_map(|stats| stats.services.get(slot));
        let counts = tenures.counts(tenure::stats(&shared.workers), slot);
        ServiceStatus {
            owner: service.owner.to_string(),
            name: service.name.to_string(),
            vip: service.vip,
            port: service.port,
            protocol: protocol_of(service.protocol),
            mode: service.mode,
            flows: of_workers.map(|counters| counters.flows.get()).sum(),
            new_flows_per_second: rates.new_flows.get(service.slot as usize).copied().unwrap_or_default(),
            limited: counts.limited,
            packets: counts.packets,
            bytes: counts.bytes,
            moved: service.moved.map_or(0, |moved| moved.slots),
            table_size: if service.scheduler == Scheduler::Maglev { service.set.maglev.size() } else { 0 },
            disrupted: service.moved.map_or(0, |moved| moved.excess()),
            scheduler: service.scheduler,
            panic: service.panic,
            affinity: service.affinity.map(|affinity| crate::clock::seconds(affinity.timeout) as u32),
            backends_total: service.set.backends.len() as u32,
            backends_up: up(&service.set),
            backends: Vec::new(),
        }
    };
    let about = |service: &&Service| query.is_about(&service.owner, &service.name, service.vip);
    let matching = || tables.services.iter().flatten().map(|service| &**service).filter(about);
    let mut list: Vec<ServiceStatus> = matching().map(&mut of_service).collect();
    query.choose(&mut list);
    let total = tables.services.iter().flatten().count() as u64;
    let mut listing = query.listing(&list);
    let by_name: HashMap<(&str, &str), &Service> = matching().map(|s| ((&*s.owner, &*s.name), s)).collect();
    for status in &mut list {
        let Some(service) = by_name.get(&(status.owner.as_str(), status.name.as_str())) else { continue };
        let backends = service.set.backends.iter().filter_map(|backend| {
            let reachable = reachable(&backend.address);
            let is_up = backend.checked == BackendState::Active && backend.weight > 0 && reachable;
            if !listing.takes(is_up) {
                return None;
            }
            let port = service.port_of(backend);
            let way = ways.get(&(service.slot, backend.address, port));
            Some(BackendStatus {
                name: names.get(&backend.address).cloned().unwrap_or_else(|| backend.address.to_string()),
                address: backend.address,
                port,
                weight: backend.weight,
                effective: if backend.takes_new() { backend.ramp * 10 } else { 0 },
                state: backend.checked,
                reason: match way {
                    Some(BackendWay { why, .. }) if !why.is_empty() => why.clone(),
                    _ => reason(backend.address, port),
                },
                reply_check: way.and_then(|way| way.reply_check).map(str::to_owned),
                flows: counts.get(&(service.slot, backend.address, port)).copied().unwrap_or_default(),
                reachable,
            })
        });
        status.backends = backends.collect();
    }
    (list, total)
}

pub fn counters(shared: &Shared) -> Counters {
    let workers = shared.workers.iter().enumerate().map(|(at, worker)| worker_counters(shared, at, worker)).collect();
    let ports = shared.ports.iter().enumerate().map(|(at, port)| {
        let sum = |pick: fn(&crate::stats::PortCounters) -> u64| -> u64 {
            shared.workers.iter().filter_map(|worker| worker.stats.ports.get(at)).map(pick).sum()
        };
        PortCounters {
            interface: port.interface.clone(),
            rx_packets: sum(|counters| counters.rx.get()),
            rx_bytes: sum(|counters| counters.rx_bytes.get()),
            tx_packets: sum(|counters| counters.tx.get()),
            tx_bytes: sum(|counters| counters.tx_bytes.get()),
        }
    });
    let steer = shared.network().steer.counters().map(|counters| steer_counts(&counters)).unwrap_or_default();
    Counters { steer, ..Counters::new(shared.started.elapsed().as_secs_f64(), workers, ports.collect()) }
}

fn steer_counts(counters: &SteerCounters) -> SteerCounts {
    let sum = |class: &ClassCounters| class.vip + class.snat + class.snat_shared + class.dnat + class.neighbor;
    SteerCounts {
        passed: counters.passed,
        unserved: counters.unserved,
        malformed: counters.malformed,
        redirected: sum(&counters.redirected),
        no_socket: sum(&counters.no_socket),
        policed: counters.policed,
        split: counters.split,
    }
}

/// The ledger as of one moment: read again while the worker counts on.
fn ledger(stats: &WorkerStats) -> Ledger {
    let read = || Ledger {
        rx: stats.rx.get(),
        generated: stats.generated.get(),
        handoff_in: stats.handoff_in.get(),
        tx: stats.tx.get(),
        handoff_out: stats.handoff_out.get(),
        kernel: stats.kernel.get(),
        held: stats.held.get(),
        drops: DropReason::ALL
            .iter()
            .map(|reason| (reason.name().to_owned(), stats.drops[*reason as usize].get()))
            .filter(|(_, count)| *count > 0)
            .collect(),
    };
    let mut ledger = read();
    for _ in 0..64 {
        let again = read();
        if again == ledger && again.imbalance() == 0 {
            break;
        }
        ledger = again;
        std::thread::yield_now();
    }
    ledger
}

/// Receive to transmit, as sampled since the start.
fn latency(shared: &Shared, worker: usize) -> Option<Latency> {
    let histograms = shared.latency.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let histogram = histograms.get(worker).filter(|histogram| !histogram.is_empty())?;
    Some(Latency {
        samples: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p90: histogram.value_at_quantile(0.9),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    })
}

fn worker_counters(shared: &Shared, at: usize, worker: &WorkerHandle) -> WorkerCounters {
    let stats = &worker.stats;
    let limits = &shared.limits;
    let kept = stats.sockets.get().map_or(&[][..], Vec::as_slice);
    let sockets = worker.sockets.iter().enumerate().map(|(at, socket)| {
        let counters = kept.get(at);
        let get = |pick: fn(&crate::stats::SocketCounters) -> u64| counters.map(pick).unwrap_or_default();
        SocketCounters {
            interface: socket.interface.clone(),
            queue: socket.queue,
            zero_copy: socket.zero_copy,
            rx_dropped: get(|c| c.rx_dropped.get()),
            rx_ring_full: get(|c| c.rx_ring_full.get()),
            fill_ring_empty: get(|c| c.fill_empty.get()),
            rx_invalid_descriptors: get(|c| c.rx_invalid.get()),
            tx_invalid_descriptors: get(|c| c.tx_invalid.get()),
            bad_descriptors: get(|c| c.bad_descriptors.get()),
            kick_errors: get(|c| c.kick_errors.get()),
            rx_chains: get(|c| c.rx_chains.get()),
            rx_oversize: get(|c| c.rx_oversize.get()),
        }
    });
    let (total, free) = (stats.frames_total.get(), stats.frames_free.get());
    WorkerCounters {
        worker: at as u16,
        ledger: ledger(stats),
        frames: FrameCounters { total, free, kernel: stats.frames_in_ports.get() },
        flows: FlowCounters {
            established: stats.flows_established.get(),
            established_capacity: u64::from(limits.flows_ipv4) + u64::from(limits.flows_ipv6),
            embryonic: stats.flows_embryonic.get(),
            embryonic_capacity: 2 * u64::from(limits.embryonic),
            created: stats.flows_created.get(),
            evicted: stats.embryos_evicted.get(),
            resets_doubted: stats.resets_doubted.get(),
            idle_resets: stats.idle_resets.get(),
            affinity: stats.affinity_entries.get(),
            affinity_capacity: 2 * u64::from(limits.affinity),
            affinity_evicted: stats.affinity_evicted.get(),
            affinity_asked: stats.affinity_asked.get(),
        },
        sockets: sockets.collect(),
        latency: latency(shared, at),
    }
}
