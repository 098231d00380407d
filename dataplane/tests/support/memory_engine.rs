//! An engine without workers: it keeps what was published and answers from a script.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard};

use penstock_configs::desired::{Backend, BackendState, Desired, Health, Service};
use penstock_configs::fault::Fault;
use penstock_configs::file::ConfigFile;
use penstock_configs::status::{
    BackendStatus, Counters, FlowCounters, FlowQuery, FlowStatus, FrameCounters, Ledger, PortCounters, PortStatus,
    ServiceStatus, SocketCounters, Status, StatusQuery, WorkerCounters, WorkerStatus,
};
use penstock_dataplane::admin::engine::{Engine, Snapshots};

#[derive(Default)]
pub(crate) struct MemoryEngine {
    published: Mutex<Published>,
    epoch: AtomicU64,
    acknowledged: AtomicU64,
    /// Workers stand still: nothing is acknowledged until they are freed.
    pub(crate) stuck: AtomicBool,
    pub(crate) flows: Mutex<Vec<FlowStatus>>,
    /// For the next publication: told as it begins, and what it then waits for.
    paused: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

#[derive(Default, Clone)]
pub(crate) struct Published {
    pub(crate) owners: Snapshots,
    pub(crate) health: Health,
    /// Of the box, if its file came after the start.
    pub(crate) snat: Vec<IpAddr>,
    /// How often `apply` succeeded.
    pub(crate) times: u64,
}

impl MemoryEngine {
    pub(crate) fn published(&self) -> Published {
        self.lock().clone()
    }

    pub(crate) fn free_workers(&self) {
        self.stuck.store(false, Ordering::SeqCst);
        self.acknowledged.store(self.epoch.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// The next publication tells the one as it begins, and waits for the other.
    #[allow(dead_code, reason = "for the file's tests")]
    pub(crate) fn pause(&self) -> (Receiver<()>, Sender<()>) {
        let ((begins, begun), (go, goes)) = (channel(), channel());
        *self.paused.lock().expect("no test panics while it holds it") = Some((begins, goes));
        (begun, go)
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        self.published.lock().expect("no test panics while it holds the engine")
    }
}

impl Engine for MemoryEngine {
    /// Refuses what no compiler would take: a service named `uncompilable`.
    fn apply(&self, file: Option<&ConfigFile>, owners: &Snapshots, health: &Health) -> Result<u64, Vec<Fault>> {
        let refuse = |(index, service): (usize, &Service)| {
            (service.name == "uncompilable")
                .then(|| Fault::new(format!("service[{index}]"), "can not be compiled", "give it another name"))
        };
        let faults: Vec<Fault> =
            owners.values().flat_map(|d| d.services.iter().enumerate().filter_map(refuse)).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let paused = self.paused.lock().expect("no test panics while it holds it").take();
        if let Some((begins, goes)) = paused {
            begins.send(()).expect("somebody waits for it");
            goes.recv().expect("somebody lets it go on");
        }
        let mut published = self.lock();
        published.owners = owners.clone();
        published.health = health.clone();
        if let Some(file) = file {
            published.snat = file.snat.iter().map(|snat| snat.address).collect();
        }
        published.times += 1;
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        if !self.stuck.load(Ordering::SeqCst) {
            self.acknowledged.store(epoch, Ordering::SeqCst);
        }
        Ok(epoch)
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn status(&self, query: &StatusQuery) -> Status {
        let published = self.published();
        let services = published.owners.iter().flat_map(|(owner, desired)| {
            desired.services.iter().map(|service| service_status(owner, desired, service, &published.health))
        });
        let mut services: Vec<ServiceStatus> = services.collect();
        let services_total = services.len() as u64;
        services.retain(|service| query.is_about(&service.owner, &service.name, service.vip));
        query.choose(&mut services);
        let mut listing = query.listing(&services);
        for service in &mut services {
            service.backends.retain(|backend| listing.takes(backend.is_up()));
        }
        Status {
            name: "lb-1".into(),
            version: "0.1.0".into(),
            uptime_seconds: 273_845.0,
            owners: Vec::new(),
            ports: vec![port("eth0", 4, true), port("eth1", 2, false)],
            workers: (0..2).map(worker).collect(),
            services,
            services_total,
            snat: vec![penstock_configs::status::SnatStatus {
                address: [10, 0, 0, 1].into(),
                backend: ([10, 0, 0, 11], 31_443).into(),
                protocol: penstock_configs::desired::Protocol::Tcp,
                used: 54_000,
                resting: 9_000,
                capacity: 64_512,
                occupancy: 0.84,
                growth_per_second: 25.0,
                full_in_seconds: Some(412.0),
            }],
            denied_prefixes: 0,
            notices: vec!["eth1: the driver has no zero-copy; packets are copied (about 400 ns each)".into()],
        }
    }

    fn flows(&self, query: &FlowQuery, limit: usize) -> Vec<FlowStatus> {
        let flows = self.flows.lock().expect("no test panics while it holds the flows");
        flows.iter().filter(|flow| query.matches(flow)).take(limit).cloned().collect()
    }

    fn counters(&self) -> Counters {
        let ledger = |worker: u64| Ledger {
            rx: 1_000_000 + worker,
            generated: 10,
            handoff_in: 500,
            tx: 990_000 + worker,
            handoff_out: 500,
            kernel: 10,
            held: 0,
            drops: [("no_service".to_owned(), 9_000), ("out_of_state".to_owned(), 1_000)].into(),
        };
        let counters = |worker: u16| WorkerCounters {
            worker,
            ledger: ledger(worker.into()),
            frames: FrameCounters { total: 8192, free: 6000, kernel: 2192 },
            flows: FlowCounters {
                established: 1234,
                established_capacity: 1 << 20,
                embryonic: 5,
                embryonic_capacity: 1 << 17,
                created: 90_000,
                evicted: 0,
                ..FlowCounters::default()
            },
            sockets: vec![SocketCounters {
                interface: "eth0".into(),
                queue: worker,
                rx_ring_full: 3,
                bad_descriptors: 4,
                kick_errors: 5,
                ..SocketCounters::default()
            }],
            latency: None,
        };
        let ports = vec![PortCounters {
            interface: "eth0".into(),
            rx_packets: 2_000_001,
            rx_bytes: 1_280_000_640,
            tx_packets: 1_980_001,
            tx_bytes: 1_267_200_640,
        }];
        Counters::new(273_845.0, vec![counters(0), counters(1)], ports)
    }
}

fn port(interface: &str, queues: u16, zero_copy: bool) -> PortStatus {
    PortStatus {
        interface: interface.into(),
        queues,
        xdp: "native".into(),
        zero_copy,
        link: zero_copy,
        bond: None,
        standby: false,
        mtu: 1500,
        rx_packets_per_second: 1_234_567.0,
        tx_packets_per_second: 999.4,
    }
}

fn worker(index: u16) -> WorkerStatus {
    WorkerStatus {
        worker: index,
        core: index + 2,
        flows: 12_345,
        embryonic: 67,
        rx_packets_per_second: 617_283.0,
        handoff_packets_per_second: 1_020.0,
        busy: 0.734,
    }
}

fn service_status(owner: &str, desired: &Desired, service: &Service, health: &Health) -> ServiceStatus {
    let nodes: HashMap<&str, &[IpAddr]> =
        desired.nodes.iter().map(|node| (node.name.as_str(), node.addresses.as_slice())).collect();
    let set = desired.sets.iter().find(|set| Some(&set.name) == service.set.as_ref());
    let backends = set.map_or(service.backends.as_slice(), |set| set.backends.as_slice());
    let status = |backend: &Backend| {
        let named = backend.node.as_deref().and_then(|node| nodes.get(node)).and_then(|found| found.first()).copied();
        let address = backend.address.or(named).unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let port = backend.port.or(service.target_port).unwrap_or(service.port);
        let known = health.backends.iter().find(|h| h.address == address && h.port.is_none_or(|p| p == port));
        BackendStatus {
            name: backend.node.clone().unwrap_or_else(|| SocketAddr::new(address, port).to_string()),
            address,
            port,
            weight: backend.weight,
            effective: 100,
            state: known.map_or(BackendState::Active, |health| health.state),
            reason: known.map(|health| health.reason.clone()).unwrap_or_default(),
            flows: 411,
            reply_check: None,
            reachable: true,
        }
    };
    let backends: Vec<BackendStatus> = backends.iter().map(status).collect();
    ServiceStatus {
        owner: owner.into(),
        name: service.name.clone(),
        vip: service.vip,
        port: service.port,
        protocol: service.protocol,
        mode: service.mode,
        flows: 1234,
        new_flows_per_second: 56.7,
        limited: 0,
        packets: 9_876_543,
        bytes: 6_543_210_987,
        moved: 12,
        table_size: 65_537,
        disrupted: 0,
        scheduler: service.scheduler,
        panic: false,
        affinity: None,
        backends_total: u32::try_from(backends.len()).expect("few backends"),
        backends_up: u32::try_from(backends.iter().filter(|b| b.is_up()).count()).expect("few backends"),
        backends,
    }
}
