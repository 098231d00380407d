//! `GET /metrics`: a collector over one snapshot of counters and one of status, so that the series
//! of a scrape belong together. Metrics are not registered one by one: services come and go.

use std::fmt;

use penstock_configs::api::Drains;
use penstock_configs::desired::BackendState;
use penstock_configs::status::{
    BackendStatus, Counters, FlowCounters, Latency, ServiceStatus, SnatStatus, Status, StatusQuery, WorkerCounters,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::handle::AdminHandle;
use crate::verdict::DropReason;

/// What `prometheus-client` writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Beyond this many (service, backend) pairs only the services' own series are shown: 5,000
/// services over 500 nodes would be millions, and no Prometheus survives that.
const BACKEND_SERIES: usize = 20_000;

/// # Errors
/// Never in practice: the text goes to a `String`.
pub fn render(admin: AdminHandle) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let query = StatusQuery { backends: Some(BACKEND_SERIES), ..StatusQuery::default() };
    let snapshot =
        Snapshot { status: admin.status(&query), counters: admin.engine().counters(), drains: admin.drains() };
    drop(admin);
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    status: Status,
    counters: Counters,
    drains: Drains,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.process(&mut encoder)?;
        self.workers(&mut encoder)?;
        self.steer(&mut encoder)?;
        self.sockets(&mut encoder)?;
        self.latency(&mut encoder)?;
        self.ports(&mut encoder)?;
        self.owners(&mut encoder)?;
        self.services(&mut encoder)?;
        self.backends(&mut encoder)?;
        self.snat(&mut encoder)
    }
}

type Label = (&'static str, String);
type Labels = Vec<Label>;

fn counters(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Counts are far below 2^53, where an f64 stops being exact.
#[allow(clippy::cast_precision_loss, reason = "OpenMetrics gauges are f64")]
fn level(count: u64) -> f64 {
    count as f64
}

fn truth(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

#[allow(clippy::needless_pass_by_value, reason = "numbers and references to strings alike")]
fn label(name: &'static str, value: impl fmt::Display) -> Label {
    (name, value.to_string())
}

impl Snapshot {
    fn process(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let build = vec![label("version", &self.status.version), label("name", &self.status.name)];
        gauges(encoder, "penstock_build_info", "Version of the dataplane; always 1", [(build, 1.0)])?;
        let uptime = self.status.uptime_seconds;
        gauges(encoder, "penstock_uptime_seconds", "Seconds since the dataplane started", [(Vec::new(), uptime)])?;
        let notices = level(self.status.notices.len() as u64);
        gauges(encoder, "penstock_notices", "Notices `penstock status` shows", [(Vec::new(), notices)])?;
        let denied = level(self.status.denied_prefixes);
        let help = "Prefixes on the box's deny list";
        gauges(encoder, "penstock_denied_prefixes", help, [(Vec::new(), denied)])?;
        let drains = level(self.drains.len() as u64);
        gauges(encoder, "penstock_drains", "Nodes and addresses drained by the operator", [(Vec::new(), drains)])
    }

    /// One family from each worker's counters.
    fn per_worker<'a, I>(&'a self, series: impl Fn(&'a WorkerCounters) -> I) -> impl Iterator<Item = (Labels, u64)>
    where
        I: IntoIterator<Item = (Option<Label>, u64)>,
    {
        self.counters.workers.iter().flat_map(move |worker| {
            series(worker).into_iter().map(|(extra, value)| {
                let labels = std::iter::once(label("worker", worker.worker)).chain(extra);
                (labels.collect(), value)
            })
        })
    }

    fn workers(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let packets = self.per_worker(|worker| {
            let ledger = &worker.ledger;
            [
                ("rx", ledger.rx),
                ("tx", ledger.tx),
                ("generated", ledger.generated),
                ("handoff_in", ledger.handoff_in),
                ("handoff_out", ledger.handoff_out),
                ("kernel", ledger.kernel),
            ]
            .map(|(direction, count)| (Some(label("direction", direction)), count))
        });
        counters(encoder, "penstock_packets", "Packets by where they came from or went; see penstock_drops", packets)?;
        let drops = self.per_worker(|worker| {
            // Every reason, zero or not: a series that appears with its first drop has no rate.
            DropReason::ALL.iter().map(|reason| {
                let count = worker.ledger.drops.get(reason.name()).copied().unwrap_or(0);
                (Some(label("reason", reason.name())), count)
            })
        });
        counters(encoder, "penstock_drops", "Packets dropped, by reason; `penstock explain REASON`", drops)?;
        let held = self.per_worker(|worker| [(None, worker.ledger.held)]).map(|(labels, value)| (labels, level(value)));
        gauges(encoder, "penstock_held_packets", "Packets waiting for a neighbour or a fragment", held)?;
        let imbalance = self.counters.workers.iter().map(|worker| {
            #[allow(clippy::cast_precision_loss, reason = "0, or wrong by a few packets")]
            let value = worker.ledger.imbalance() as f64;
            (vec![label("worker", worker.worker)], value)
        });
        gauges(encoder, "penstock_ledger_imbalance", "Packets in minus packets accounted for; 0 when idle", imbalance)?;
        self.flow_tables(encoder)
    }

    fn flow_tables(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let flows = self.per_worker(|worker| {
            let flows = &worker.flows;
            [("established", flows.established), ("embryonic", flows.embryonic)]
                .map(|(state, count)| (Some(label("state", state)), count))
        });
        let flows = flows.map(|(labels, value)| (labels, level(value)));
        gauges(encoder, "penstock_flows", "Flows in the worker's tables", flows)?;
        let capacity = self.per_worker(|worker| {
            [("established", worker.flows.established_capacity), ("embryonic", worker.flows.embryonic_capacity)]
                .map(|(state, count)| (Some(label("state", state)), count))
        });
        let capacity = capacity.map(|(labels, value)| (labels, level(value)));
        gauges(encoder, "penstock_flow_capacity", "Flows the worker's tables can hold", capacity)?;
        let events = self.per_worker(|worker| {
            let flows = &worker.flows;
            [
                ("created", flows.created),
                ("evicted", flows.evicted),
                ("idle_reset", flows.idle_resets),
                ("reset_doubted", flows.resets_doubted),
            ]
            .map(|(event, count)| (Some(label("event", event)), count))
        });
        counters(
            encoder,
            "penstock_flow_events",
            "Flows created, evicted as embryos, reset when idle; RSTs out of window, which ended none",
            events,
        )?;
        self.affinity(encoder)?;
        let frames = self.per_worker(|worker| {
            let frames = &worker.frames;
            [("free", frames.free), ("kernel", frames.kernel), ("total", frames.total)]
                .map(|(place, count)| (Some(label("place", place)), count))
        });
        let frames = frames.map(|(labels, value)| (labels, level(value)));
        gauges(encoder, "penstock_frames", "Frames of packet memory, by where they are", frames)
    }

    fn affinity(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let levels = |pick: fn(&FlowCounters) -> u64| {
            self.per_worker(move |worker| [(None, pick(&worker.flows))]).map(|(labels, count)| (labels, level(count)))
        };
        let entries = levels(|flows| flows.affinity);
        gauges(encoder, "penstock_affinity_entries", "Clients remembered for services with affinity", entries)?;
        let capacity = levels(|flows| flows.affinity_capacity);
        gauges(encoder, "penstock_affinity_capacity", "Clients the worker can remember (limits.affinity)", capacity)?;
        let events = self.per_worker(|worker| {
            [("evicted", worker.flows.affinity_evicted), ("asked", worker.flows.affinity_asked)]
                .map(|(event, count)| (Some(label("event", event)), count))
        });
        let help = "Clients forgotten early for want of room; new flows another worker was asked about";
        counters(encoder, "penstock_affinity_events", help, events)
    }

    fn steer(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let steer = &self.counters.steer;
        let decisions = [
            ("passed", steer.passed),
            ("unserved", steer.unserved),
            ("malformed", steer.malformed),
            ("redirected", steer.redirected),
            ("no_socket", steer.no_socket),
            ("policed", steer.policed),
            ("split", steer.split),
        ];
        let decisions = decisions.map(|(decision, count)| (vec![label("decision", decision)], count));
        let help = "Packets by what the XDP program decided; policed: dropped beyond box.new_per_vip; split: passed, as headers are not in the first of several buffers";
        counters(encoder, "penstock_steered", help, decisions)
    }

    fn sockets(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let sockets = self.counters.workers.iter().flat_map(|worker| {
            worker.sockets.iter().flat_map(move |socket| {
                [
                    ("rx_dropped", socket.rx_dropped),
                    ("rx_invalid_descriptors", socket.rx_invalid_descriptors),
                    ("tx_invalid_descriptors", socket.tx_invalid_descriptors),
                    ("rx_ring_full", socket.rx_ring_full),
                    ("fill_ring_empty", socket.fill_ring_empty),
                    ("bad_descriptors", socket.bad_descriptors),
                    ("kick_errors", socket.kick_errors),
                    ("rx_multi_frame", socket.rx_chains),
                    ("rx_oversize", socket.rx_oversize),
                ]
                .map(|(event, count)| {
                    let labels = vec![
                        label("worker", worker.worker),
                        label("interface", &socket.interface),
                        label("queue", socket.queue),
                        label("event", event),
                    ];
                    (labels, count)
                })
            })
        });
        counters(encoder, "penstock_socket_events", "The kernel's statistics of each AF_XDP socket", sockets)
    }

    fn latency(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let measured = |pick: fn(&Latency) -> [(&'static str, u64); 5]| {
            self.counters.workers.iter().flat_map(move |worker| {
                worker.latency.iter().flat_map(pick).map(|(quantile, nanoseconds)| {
                    let labels = vec![label("worker", worker.worker), label("quantile", quantile)];
                    (labels, level(nanoseconds) / 1e9)
                })
            })
        };
        let latency =
            measured(|at| [("0.5", at.p50), ("0.9", at.p90), ("0.99", at.p99), ("0.999", at.p999), ("1", at.max)]);
        gauges(encoder, "penstock_latency_seconds", "Receive to transmit, by quantile, where measured", latency)
    }

    fn ports(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let directions = |rx: u64, tx: u64| [("rx", rx), ("tx", tx)];
        let packets = self.counters.ports.iter().flat_map(|port| {
            directions(port.rx_packets, port.tx_packets).map(|(direction, count)| {
                (vec![label("interface", &port.interface), label("direction", direction)], count)
            })
        });
        counters(encoder, "penstock_port_packets", "Packets through each interface's sockets", packets)?;
        let bytes = self.counters.ports.iter().flat_map(|port| {
            directions(port.rx_bytes, port.tx_bytes).map(|(direction, count)| {
                (vec![label("interface", &port.interface), label("direction", direction)], count)
            })
        });
        counters(encoder, "penstock_port_bytes", "Bytes through each interface's sockets", bytes)?;
        let link = self.status.ports.iter().map(|port| {
            let mode = if port.zero_copy { "zero-copy" } else { "copy" };
            (vec![label("interface", &port.interface), label("xdp", &port.xdp), label("mode", mode)], truth(port.link))
        });
        gauges(encoder, "penstock_port_up", "Whether the interface has a link", link)
    }

    fn owners(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let owners = &self.status.owners;
        let by_owner = |value: fn(&penstock_configs::status::OwnerStatus) -> f64| {
            owners.iter().map(move |owner| (vec![label("owner", &owner.owner)], value(owner)))
        };
        let generation = by_owner(|owner| level(owner.generation));
        gauges(encoder, "penstock_owner_generation", "Generation accepted last", generation)?;
        let acknowledged = by_owner(|owner| level(owner.acknowledged));
        gauges(encoder, "penstock_owner_acknowledged", "Generation every worker runs", acknowledged)?;
        let refused = by_owner(|owner| truth(owner.refused.is_some()));
        gauges(encoder, "penstock_owner_refused", "Whether the owner's last snapshot was refused", refused)?;
        let services = by_owner(|owner| level(owner.services));
        gauges(encoder, "penstock_owner_services", "Services of the owner", services)
    }

    fn services(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let services = &self.status.services;
        let packets = services.iter().map(|service| (service_labels(service), service.packets));
        counters(encoder, "penstock_service_packets", "Packets of the service, both directions", packets)?;
        let bytes = services.iter().map(|service| (service_labels(service), service.bytes));
        counters(encoder, "penstock_service_bytes", "Bytes of the service, both directions", bytes)?;
        let flows = services.iter().map(|service| (service_labels(service), level(service.flows)));
        gauges(encoder, "penstock_service_flows", "Flows of the service now", flows)?;
        let rate = services.iter().map(|service| (service_labels(service), service.new_flows_per_second));
        gauges(encoder, "penstock_service_new_flows_per_second", "Flows opened per second", rate)?;
        let limited = services.iter().map(|service| (service_labels(service), service.limited));
        let help = "Flows the service's limits did not let open; penstock_drops says which limit";
        counters(encoder, "penstock_service_limited", help, limited)?;
        let able = services.iter().map(|service| (service_labels(service), level(service.backends_up.into())));
        gauges(encoder, "penstock_service_backends_up", "Backends that take new flows", able)?;
        let panic = services.iter().map(|service| (service_labels(service), truth(service.panic)));
        let help = "1 while its checks leave too few backends to be believed, and all are used";
        gauges(encoder, "penstock_service_panic", help, panic)?;
        let hashed = services.iter().filter(|service| service.table_size > 0);
        let moved =
            hashed.map(|service| (service_labels(service), f64::from(service.moved) / f64::from(service.table_size)));
        gauges(encoder, "penstock_service_moved_ratio", "Share of the Maglev table its last change moved", moved)
    }

    fn backends(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let total: usize = self.status.services.iter().map(|service| service.backends_total as usize).sum();
        let shown = total <= BACKEND_SERIES;
        let omitted = if shown { 0.0 } else { level(total as u64) };
        gauges(
            encoder,
            "penstock_backend_series_omitted",
            "Backends left out of penstock_backend_* because they are too many",
            [(Vec::new(), omitted)],
        )?;
        if !shown {
            return Ok(());
        }
        let each =
            || self.status.services.iter().flat_map(|service| service.backends.iter().map(move |b| (service, b)));
        let flows = each().map(|(service, backend)| (backend_labels(service, backend), level(backend.flows)));
        gauges(encoder, "penstock_backend_flows", "Flows of the backend now", flows)?;
        let up = each().map(|(service, backend)| {
            let value = match backend.state {
                BackendState::Active => 1.0,
                BackendState::Draining => 0.5,
                BackendState::Down => 0.0,
            };
            (backend_labels(service, backend), value)
        });
        gauges(encoder, "penstock_backend_up", "1 takes new flows, 0.5 draining, 0 down", up)?;
        let weight = each().map(|(service, backend)| {
            let effective = f64::from(backend.weight) * f64::from(backend.effective) / 100.0;
            (backend_labels(service, backend), effective)
        });
        gauges(
            encoder,
            "penstock_backend_weight",
            "What it weighs now, its slow start included; 0 takes none",
            weight,
        )?;
        let reachable = each().map(|(service, backend)| (backend_labels(service, backend), truth(backend.reachable)));
        gauges(encoder, "penstock_backend_reachable", "Whether the node's link-layer address is known", reachable)?;
        let checked = each().filter_map(|(service, backend)| {
            let passed = backend.reply_check.as_deref()? == "passed";
            Some((backend_labels(service, backend), truth(passed)))
        });
        let help = "Mode dnat: whether the backend's replies were seen to come back through the box";
        gauges(encoder, "penstock_backend_reply_check", help, checked)
    }
}

impl Snapshot {
    /// The fullest pairs only: status lists a fixed number, whatever the cluster's size.
    fn snat(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let pairs = &self.status.snat;
        let ports = pairs.iter().flat_map(|pair| {
            [("live", pair.used - pair.resting.min(pair.used)), ("resting", pair.resting)].map(|(state, count)| {
                let mut labels = snat_labels(pair);
                labels.push(label("state", state));
                (labels, level(count))
            })
        });
        gauges(
            encoder,
            "penstock_snat_ports",
            "SNAT ports in use, of the fullest pairs of address and backend",
            ports,
        )?;
        let capacity = pairs.iter().map(|pair| (snat_labels(pair), level(pair.capacity)));
        gauges(encoder, "penstock_snat_port_capacity", "SNAT ports there are for the pair", capacity)?;
        let occupancy = pairs.iter().map(|pair| (snat_labels(pair), pair.occupancy));
        gauges(
            encoder,
            "penstock_snat_occupancy_ratio",
            "In use, of the fullest worker's share; 1 is full",
            occupancy,
        )?;
        let forecast = pairs.iter().filter_map(|pair| Some((snat_labels(pair), pair.full_in_seconds?)));
        gauges(encoder, "penstock_snat_full_in_seconds", "At the rate of the last minute, where it grows", forecast)
    }
}

fn snat_labels(pair: &SnatStatus) -> Labels {
    vec![label("address", pair.address), label("backend", pair.backend), label("protocol", pair.protocol.as_str())]
}

fn service_labels(service: &ServiceStatus) -> Labels {
    vec![
        label("owner", &service.owner),
        label("service", &service.name),
        label("vip", service.vip),
        label("port", service.port),
        label("protocol", service.protocol.as_str()),
    ]
}

fn backend_labels<'a>(service: &'a ServiceStatus, backend: &'a BackendStatus) -> Labels {
    vec![
        label("owner", &service.owner),
        label("service", &service.name),
        label("backend", &backend.name),
        label("address", backend.address),
        label("port", backend.port),
    ]
}
