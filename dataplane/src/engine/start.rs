//! Set-up, in the order in which nothing is lost: the program that steers (adopted if an earlier
//! process left it), sockets, flow state, the first snapshot; only then packets.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use penstock_configs::file::{ConfigFile, PollMode, PortConfig, WorkersConfig};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::network::Network;
use super::rates::{Rates, Sample};
use super::snat::Occupancy;
use super::{Live, PortFacts, Published, Shared, SocketFacts, Wanted, WorkerHandle};
use crate::clock::Now;
use crate::flow::Capacity;
use crate::handoff::Exchange;
use crate::io::tap::{self, TapDevice, TapPort};
use crate::io::xsk::{self, UmemConfig, Want, XskConfig, XskPort};
use crate::io::{LARGEST_MTU, LARGEST_PACKET};
use crate::neighbor::bond::{self, Resolved};
use crate::neighbor::mirror::Mirror;
use crate::neighbor::routes::OwnRoutes;
use crate::persist::{self, Store};
use crate::pipeline::{Pipeline, PipelineConfig, Recalled};
use crate::publish::Mailbox;
use crate::rss::Placement;
use crate::stats::WorkerStats;
use crate::steer::{AttachMode, Interface, Options, Steer};
use crate::tables::{Compiler, Tables, Ways};
use crate::verdict::{PortId, WorkerId};
use crate::worker::{Attached, IdlePolicy, Worker, WorkerParts};

/// The device that leads back to the kernel.
const TAP_NAME: &str = "penstock0";
/// How long an adaptive worker spins after the last packet.
const SPIN_NS: u64 = 50_000;

pub type StartError = anyhow::Error;

/// The running box.
pub struct Dataplane {
    pub shared: Arc<Shared>,
    run_dir: PathBuf,
    stop: Arc<AtomicBool>,
    ready: Vec<Worker<XskPort, TapPort>>,
    threads: Vec<JoinHandle<()>>,
    sockets: Vec<(usize, u32, std::os::fd::OwnedFd)>,
    recovered: bool,
    _lock: std::fs::File,
}

impl Dataplane {
    /// Sets everything up but lets no packet in yet: the first snapshot is published in between.
    ///
    /// # Errors
    /// What could not be had, and what to do about it.
    pub fn prepare(config: &ConfigFile) -> Result<Self, StartError> {
        let run_dir = &config.the_box.run_dir;
        std::fs::create_dir_all(run_dir).with_context(|| no_run_dir(run_dir))?;
        let lock = lock(run_dir)?;
        let Resolved { ports, jumbo } = bond::resolve(&config.ports, config.workers.frame_size)?;
        let configured = config;
        let config = &ConfigFile { ports, ..config.clone() };
        let names: Vec<String> = config.ports.iter().map(|port| port.interface.clone()).collect();
        let queues = queue_counts(&config.ports)?;
        let interfaces: Vec<Interface> = config
            .ports
            .iter()
            .zip(&queues)
            .map(|(port, queues)| Interface {
                name: port.interface.clone(),
                ifindex: 0,
                queues: *queues,
                mode: port.xdp,
            })
            .collect();
        let steer = Steer::open_with(run_dir, &interfaces, Options { frags: jumbo })?;
        let mirror = Mirror::open(&names).context("the kernel's routes and neighbours cannot be read")?;
        let mirror = mirror.configured_as(configured.ports.iter().map(|port| port.interface.clone()).collect());
        let workers = worker_count(&config.workers, &queues);
        let mtu = mirror.hops().links.iter().map(|link| link.mtu).max().unwrap_or(1500).min(LARGEST_MTU);
        let (taps, tap) = open_tap(workers, mtu as u16);
        let routes = OwnRoutes::open().context("routes cannot be set")?;
        let quick = config.the_box.probe == penstock_configs::file::ProbePolicy::Quick;

        let mut setup = Setup::new(config, &queues, workers, jumbo, &steer)?;
        for (worker, tap) in (0..workers).zip(taps.into_iter().map(Some).chain(std::iter::repeat_with(|| None))) {
            setup.worker(worker, tap)?;
        }
        let Setup { handles, ready, sockets, compiler, recovered, mut notices, zero_copy, .. } = setup;
        if let Err(error) = persist::remove_beyond(workers, run_dir) {
            tracing::warn!(%error, "flows of workers that are no more stay in {}", run_dir.display());
        }
        let (mut placement, why) = Placement::read(&names, workers);
        notices.extend(why);
        notices.extend(placement.settle(&run_dir.join("placement.json"), recovered)?);
        let ifindexes: Vec<Option<u32>> = (0..queues.len()).map(|port| steer.ifindex(port)).collect();
        let network = Network::new(steer, mirror, routes, tap, Arc::new(placement), quick);
        let network = network.with_frames(config.workers.frame_size, jumbo);
        // From 100 ns to 10 s, three digits: fixed buckets, a few tens of KiB a worker.
        let histogram = || hdrhistogram::Histogram::new_with_bounds(100, 10_000_000_000, 3);
        let latency = handles.iter().map(|_| histogram()).collect::<Result<_, _>>()?;
        let shared = Shared {
            name: config.the_box.name.clone(),
            started: Instant::now(),
            limits: config.limits.clone(),
            workers: handles,
            ports: config
                .ports
                .iter()
                .zip(&queues)
                .zip(&zero_copy)
                .zip(ifindexes)
                .map(|(((port, queues), zero_copy), ifindex)| PortFacts {
                    interface: port.interface.clone(),
                    ifindex,
                    queues: *queues,
                    asked: port.queues,
                    zero_copy: *zero_copy,
                })
                .collect(),
            published: Mutex::new(Published {
                compiler,
                wanted: Wanted {
                    live: Live::from(configured),
                    owners: Default::default(),
                    health: Default::default(),
                    ways: Ways::at_start(recovered),
                },
                tables: Arc::new(Tables::default()),
                tenures: Arc::default(),
                view: 0,
                names: Default::default(),
            }),
            network: Mutex::new(network),
            rates: Mutex::new(Rates::default()),
            occupancy: Mutex::default(),
            latency: Mutex::new(latency),
            notices: Mutex::new(notices),
            outdated: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            run_dir: run_dir.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            ready,
            threads: Vec::new(),
            sockets,
            recovered,
            _lock: lock,
        })
    }

    /// Waits until the next hops of all nodes are known and all addresses claimed, or `most` is over.
    /// Where flows outlived an earlier process, addresses are answered for at once and probed for meanwhile.
    pub fn settle(&self, most: Duration) {
        if self.recovered {
            self.shared.network().resume();
        }
        let deadline = Instant::now() + most;
        while !self.shared.is_settled() && Instant::now() < deadline {
            keep_house(&self.shared);
        }
    }

    /// Lets the packets in: to be called when the first snapshot has been published.
    ///
    /// # Errors
    /// A thread or a socket could not be had.
    pub fn go(&mut self) -> Result<(), StartError> {
        self.shared.republish();
        if self.recovered {
            let tables = Arc::clone(&self.shared.published().tables);
            recall_clients(&mut self.ready, &tables);
        }
        for (at, mut worker) in self.ready.drain(..).enumerate() {
            let (stop, core) = (Arc::clone(&self.stop), self.shared.workers[at].core);
            let body = move || {
                core_affinity::set_for_current(core_affinity::CoreId { id: usize::from(core) });
                // Sockets are open and bound: from here on the worker needs no privilege.
                let _ = caps::clear(None, caps::CapSet::Effective);
                worker.run(&stop);
            };
            self.threads.push(std::thread::Builder::new().name(format!("worker-{at}")).spawn(body)?);
        }
        keep_off(&self.shared.workers.iter().map(|worker| worker.core).collect::<Vec<_>>());
        let mut network = self.shared.network();
        for (interface, queue, fd) in &self.sockets {
            use std::os::fd::AsFd;
            network.steer.set_socket(*interface, *queue, fd.as_fd())?;
        }
        drop(network);
        self.sockets.clear();
        let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&self.stop));
        let housekeeping = move || {
            while !stop.load(Ordering::Relaxed) {
                keep_house(&shared);
            }
        };
        self.threads.push(std::thread::Builder::new().name("housekeeping".into()).spawn(housekeeping)?);
        Ok(())
    }

    /// Whether every thread still runs: the workers, and the one that keeps house.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// A clean stop. Unless told to keep it, the program that steers goes too, with routes and neighbours.
    ///
    /// # Errors
    /// What could not be cleaned up.
    pub fn stop(self, keep: bool) -> Result<(), StartError> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        let mut network = self.shared.network();
        if keep {
            return Ok(());
        }
        let _ = network.mirror.release();
        let cleared = network.routes.clear().context(ROUTES_STAY);
        drop(network);
        crate::steer::detach_all(&self.run_dir)?;
        cleared.map(drop)
    }
}

const ROUTES_STAY: &str = "our routes could not be removed";

/// Removes the routes and neighbour entries an earlier process left in the kernel, by their mark: how many of each.
///
/// # Errors
/// What could not be removed.
pub fn clear_routes_and_neighbors() -> Result<[usize; 2], StartError> {
    let routes = OwnRoutes::open().and_then(|mut routes| routes.clear()).context(ROUTES_STAY)?;
    let released = Mirror::open(&[]).and_then(|mut mirror| mirror.release());
    Ok([routes, released.context("our neighbour entries could not be removed")?])
}

/// Clients whose flows outlived an earlier process stick where these go. Without a snapshot so far nobody
/// knows which do: they are learnt again from their next new flows.
fn recall_clients(workers: &mut [Worker<XskPort, TapPort>], tables: &Tables) {
    let mut recalled: Vec<Recalled> = Vec::new();
    for worker in &*workers {
        worker.pipeline().recall(tables, |one| recalled.push(one));
    }
    let now = Now::read();
    for one in &recalled {
        if let Some(worker) = workers.get_mut(usize::from(one.worker.0)) {
            worker.pipeline_mut().take_up(one, now);
        }
    }
}

/// One round of housekeeping: sleeps until the kernel has news, or a tenth of a second.
fn keep_house(shared: &Shared) {
    {
        let network = shared.network();
        let fds = network.fds();
        // The descriptors outlive the lock: they change only on this thread's own `poll`.
        let owned: Vec<_> = fds.iter().filter_map(|fd| fd.try_clone_to_owned().ok()).collect();
        drop(fds);
        drop(network);
        let mut polls: Vec<PollFd<'_>> = owned.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let _ = rustix::event::poll(&mut polls, Some(&timeout));
    }
    let now = Instant::now();
    let mut network = shared.network();
    for worker in &shared.workers {
        while let Some(conflict) = worker.stats.conflicts.pop() {
            network.announcements.on_conflict(conflict.port, conflict.address, conflict.mac);
        }
    }
    let changed = network.poll(now);
    drop(network);
    if changed {
        shared.republish();
    }
    shared.check_ways(now);
    shared.police(now);
    for worker in &shared.workers {
        worker.mailbox.reap();
    }
    shared.step_slow_starts(Now::read());
    shared.collect_latency();
    if shared.rates().is_due(now) {
        let sample = Sample::take(shared, now);
        shared.rates().add(sample);
        shared.check_steering();
    }
    let due = shared.occupancy().is_due(now);
    if due {
        Occupancy::scan(shared, now);
    }
}

/// Workers as they are put together.
struct Setup<'a> {
    config: &'a ConfigFile,
    queues: &'a [u16],
    workers: u16,
    cores: Vec<u16>,
    generic: Vec<bool>,
    /// Packets may be larger than a frame.
    jumbo: bool,
    exchange: Arc<Exchange>,
    boot_id: [u8; 16],
    handles: Vec<WorkerHandle>,
    ready: Vec<Worker<XskPort, TapPort>>,
    sockets: Vec<(usize, u32, std::os::fd::OwnedFd)>,
    compiler: Compiler,
    recovered: bool,
    notices: Vec<String>,
    zero_copy: Vec<bool>,
}

impl<'a> Setup<'a> {
    fn new(
        config: &'a ConfigFile,
        queues: &'a [u16],
        workers: u16,
        jumbo: bool,
        steer: &Steer,
    ) -> Result<Self, StartError> {
        // What a worker hands to another is copied, and lies there in one piece.
        let room = config.workers.frame_size as usize;
        let room = if jumbo { room.max(LARGEST_PACKET) } else { room };
        let generic = (0..config.ports.len()).map(|port| steer.attached(port) == Some(AttachMode::Generic)).collect();
        Ok(Self {
            config,
            queues,
            workers,
            cores: cores(&config.workers, workers),
            generic,
            jumbo,
            exchange: Arc::new(Exchange::new(workers, room)?),
            boot_id: persist::boot_id(),
            handles: Vec::new(),
            ready: Vec::new(),
            sockets: Vec::new(),
            compiler: Compiler::default(),
            recovered: false,
            notices: Vec::new(),
            zero_copy: vec![true; config.ports.len()],
        })
    }

    fn worker(&mut self, worker: u16, tap: Option<TapPort>) -> Result<(), StartError> {
        let (wants, places) = self.wants(worker);
        let opened = xsk::open_worker(&UmemConfig::from(&self.config.workers), &wants)?;
        for (report, (port, _)) in opened.reports.iter().zip(&places) {
            tracing::info!("{report}");
            self.notices.extend(report.warnings.iter().cloned());
            self.zero_copy[*port] &= report.zero_copy;
        }
        for (socket, (port, queue)) in opened.ports.iter().zip(&places) {
            self.sockets.push((*port, u32::from(*queue), socket.fd().try_clone_to_owned()?));
        }
        let facts = places.iter().zip(&opened.reports).map(|((port, queue), report)| SocketFacts {
            interface: report.interface.clone(),
            port: *port,
            queue: *queue,
            zero_copy: report.zero_copy,
        });
        let facts = facts.collect();
        let path = self.config.the_box.run_dir.join(format!("flows.{worker}"));
        let pipeline = self.pipeline(worker, &path)?;
        let stats = Arc::clone(pipeline.stats());
        let mailbox = Arc::new(Mailbox::new(Arc::clone(self.exchange.bell(WorkerId(worker)))));
        let sockets = opened.ports.into_iter().zip(&places);
        let idle = match self.config.workers.poll {
            PollMode::Busy => IdlePolicy::busy(),
            PollMode::Adaptive => IdlePolicy::adaptive(SPIN_NS),
        };
        self.ready.push(Worker::new(WorkerParts {
            sockets: sockets.map(|(port, (at, _))| Attached { id: PortId(*at as u8), port }).collect(),
            kernel: tap.map(|port| Attached { id: PortId(self.config.ports.len() as u8), port }),
            pool: opened.pool,
            pipeline,
            exchange: Arc::clone(&self.exchange),
            mailbox: Arc::clone(&mailbox),
            idle,
        }));
        let core = self.cores[usize::from(worker)];
        self.handles.push(WorkerHandle { core, mailbox, stats, store: path, sockets: facts });
        Ok(())
    }

    /// The sockets a worker wants, and which port and queue each is of: queue q is worker q mod W's.
    fn wants(&self, worker: u16) -> (Vec<Want>, Vec<(usize, u16)>) {
        let mut wants = Vec::new();
        let mut places = Vec::new();
        for (at, (port, queues)) in self.config.ports.iter().zip(self.queues).enumerate() {
            for queue in (worker..*queues).step_by(usize::from(self.workers)) {
                let config = XskConfig {
                    zero_copy: port.zero_copy,
                    generic: self.generic[at],
                    busy_poll_budget: self.config.workers.busy_poll_budget,
                    scatter: self.jumbo,
                };
                wants.push(Want { interface: port.interface.clone(), queue: u32::from(queue), config });
                places.push((at, queue));
            }
        }
        (wants, places)
    }

    fn pipeline(&mut self, worker: u16, path: &Path) -> Result<Pipeline, StartError> {
        let limits = &self.config.limits;
        let capacity = |established| Capacity { established, embryonic: limits.embryonic };
        let config = PipelineConfig {
            worker: WorkerId(worker),
            workers: self.workers,
            flows_v4: capacity(limits.flows_ipv4),
            flows_v6: capacity(limits.flows_ipv6),
            max_nodes: limits.nodes as usize,
            max_services: limits.services as usize,
            icmp_per_second: limits.icmp_per_second,
            max_counted: limits.counted_backends as usize,
            max_affinity: limits.affinity as usize,
            max_sources: limits.limited_sources as usize,
        };
        let mut store = Store::open(path, config.shape(), self.boot_id, random_seed()?)?;
        store.place_ports(self.config.ports.iter().map(|port| &*port.interface).chain([TAP_NAME]));
        if let Some(why) = &store.discarded {
            self.notices.push(format!("{}: earlier flows were not taken up: {why}", path.display()));
        }
        if store.recovered {
            self.recovered = true;
        }
        let ports = self.config.ports.len() + 1;
        let stats = Arc::new(WorkerStats::new(ports, limits.services as usize));
        let pipeline = Pipeline::new(&config, store, stats)?;
        let (v4, v6) = pipeline.snats_in_use();
        self.compiler.seed_snats(&v4, &v6);
        Ok(pipeline)
    }
}

/// Whether a dataplane holds the run directory.
#[must_use]
pub fn is_running(run_dir: &Path) -> bool {
    let taken =
        |file: &std::fs::File| rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err();
    std::fs::File::open(run_dir.join("lock")).is_ok_and(|file| taken(&file))
}

fn no_run_dir(run_dir: &Path) -> String {
    format!(
        "box.run_dir {}: run as root, or name a directory this process can write, on a file system with room",
        run_dir.display()
    )
}

fn lock(run_dir: &Path) -> Result<std::fs::File, StartError> {
    let path = run_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| no_run_dir(run_dir))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!(
            "{}: another penstock-dataplane runs with this run_dir; stop it, or give this one its own",
            path.display()
        )
    })?;
    Ok(file)
}

fn queue_counts(ports: &[PortConfig]) -> Result<Vec<u16>, StartError> {
    let facts = crate::neighbor::host::HostFacts::read().context("the kernel's links cannot be read")?;
    ports
        .iter()
        .map(|port| {
            let known = facts.interfaces.iter().find(|interface| interface.name == port.interface);
            let known = known.with_context(|| {
                format!("port {}: there is no such interface here (`ip link` lists them)", port.interface)
            })?;
            Ok(port.queues.unwrap_or(known.rx_queues).min(known.rx_queues).max(1))
        })
        .collect()
}

fn worker_count(config: &WorkersConfig, queues: &[u16]) -> u16 {
    let fewest = queues.iter().copied().min().unwrap_or(1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u16;
    config.effective_count(fewest, cores).clamp(1, fewest)
}

/// The configured cores, or the machine's last ones.
fn cores(config: &WorkersConfig, workers: u16) -> Vec<u16> {
    let mut cores = config.cores.clone();
    if cores.is_empty() {
        cores = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id as u16).collect();
        cores.reverse();
    }
    if cores.is_empty() {
        cores.push(0);
    }
    (0..usize::from(workers)).map(|worker| cores[worker % cores.len()]).collect()
}

/// This thread, and those it starts from here on, run on other cores than the workers, if there are any: what wakes
/// on a core that spins has it for milliseconds, in which the worker's packets wait.
fn keep_off(workers: &[u16]) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut others = CpuSet::new();
    for core in (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)) {
        if !workers.contains(&(core as u16)) {
            others.set(core);
        }
    }
    if others.count() > 0 {
        // Refused, they run where the kernel puts them, as they would have.
        let _ = sched_setaffinity(None, &others);
    }
}

/// The TAP; without one, packets that prove not ours are dropped by name.
fn open_tap(workers: u16, mtu: u16) -> (Vec<TapPort>, Option<TapDevice>) {
    match tap::open(TAP_NAME, workers, mtu) {
        Ok((ports, device)) => (ports, Some(device)),
        Err(error) => {
            tracing::warn!("{error}; packets that prove not ours will be dropped, and the box cannot reach its VIPs");
            (Vec::new(), None)
        }
    }
}

fn random_seed() -> Result<[u64; 2], StartError> {
    let mut bytes = [0_u8; 16];
    let mut random = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes)?;
    let (low, high) = bytes.split_at(8);
    let number = |half: &[u8]| half.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Ok([number(low), number(high)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_that_are_named_are_one_workers_each() {
        let mut config = WorkersConfig { cores: vec![0], ..WorkersConfig::default() };
        let workers = worker_count(&config, &[8, 8]);
        assert_eq!((workers, cores(&config, workers)), (1, vec![0]), "not all of a machine's on one core");
        config.cores = vec![2, 3];
        let workers = worker_count(&config, &[8, 4]);
        assert_eq!((workers, cores(&config, workers)), (2, vec![2, 3]));
        assert_eq!(worker_count(&config, &[1, 8]), 1, "a worker without a queue has no packets");
        config.count = Some(3);
        assert_eq!(worker_count(&config, &[8, 8]), 3);
    }
}
