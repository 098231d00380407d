//! What Prometheus reads. Names that users of the service controller and of MetalLB know stand beside our own.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabel {
    pub pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabel {
    pub stage: &'static str,
}

type Float = Gauge<f64, AtomicU64>;

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub syncs: Counter,
    pub node_syncs: Counter,
    pub updates: Counter,
    pub update_errors: Counter,
    pub config_loaded: Gauge,
    pub stale: Gauge,
    pub addresses: Family<PoolLabel, Gauge>,
    pub in_use: Family<PoolLabel, Gauge>,
    pub leader: Gauge,
    pub term: Gauge,
    pub generation: Gauge,
    pub unacknowledged: Gauge,
    pub snapshots: Counter,
    pub services: Family<StageLabel, Gauge>,
    pub nodes: Gauge,
    pub nodes_not_ready: Gauge,
    pub all_nodes_not_ready: Gauge,
    pub feed_failures: Family<KindLabel, Counter>,
    pub feed_rebuilds: Family<KindLabel, Counter>,
    pub feed_failing_seconds: Family<KindLabel, Float>,
    pub translate: Histogram,
    pub fights: Gauge,
    pub panicking: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            syncs: Counter::default(),
            node_syncs: Counter::default(),
            updates: Counter::default(),
            update_errors: Counter::default(),
            config_loaded: Gauge::default(),
            stale: Gauge::default(),
            addresses: Family::default(),
            in_use: Family::default(),
            leader: Gauge::default(),
            term: Gauge::default(),
            generation: Gauge::default(),
            unacknowledged: Gauge::default(),
            snapshots: Counter::default(),
            services: Family::default(),
            nodes: Gauge::default(),
            nodes_not_ready: Gauge::default(),
            all_nodes_not_ready: Gauge::default(),
            feed_failures: Family::default(),
            feed_rebuilds: Family::default(),
            feed_failing_seconds: Family::default(),
            translate: Histogram::new(exponential_buckets(0.0001, 4.0, 8)),
            fights: Gauge::default(),
            panicking: Gauge::default(),
        };
        metrics.register_known();
        metrics.register_ours();
        metrics
    }

    fn register_known(&mut self) {
        let r = &mut self.registry;
        // Counters get `_total` from the encoder.
        r.register(
            "service_controller_loadbalancer_sync",
            "Steps made to bring a Service to its state",
            self.syncs.clone(),
        );
        r.register(
            "service_controller_nodesync",
            "Snapshots made because of nodes or endpoints",
            self.node_syncs.clone(),
        );
        r.register("allocator_addresses_total", "Addresses a pool may give", self.addresses.clone());
        r.register("allocator_addresses_in_use_total", "Addresses of a pool that are recorded", self.in_use.clone());
        r.register("k8s_client_updates", "Objects seen by the watches", self.updates.clone());
        r.register("k8s_client_update_errors", "Writes to the API server that failed", self.update_errors.clone());
        r.register("k8s_client_config_loaded_bool", "Every kind of object was listed once", self.config_loaded.clone());
        r.register(
            "k8s_client_config_stale_bool",
            "A watch fails for longer than timing.stale_after",
            self.stale.clone(),
        );
    }

    fn register_ours(&mut self) {
        let r = self.registry.sub_registry_with_prefix("penstock_control");
        r.register("leader", "1 on the box that allocates and writes", self.leader.clone());
        r.register("term", "The Lease's fencing term", self.term.clone());
        r.register("snapshot_generation", "Generation the dataplane accepted last", self.generation.clone());
        r.register("snapshot_unacknowledged", "1 while the newest snapshot does not run", self.unacknowledged.clone());
        r.register("snapshots", "Snapshots accepted by the dataplane", self.snapshots.clone());
        r.register("services", "Services by stage", self.services.clone());
        r.register("nodes", "Nodes that may be backends", self.nodes.clone());
        r.register(
            "nodes_not_ready",
            "Of these, NotReady (health checks decide, not this)",
            self.nodes_not_ready.clone(),
        );
        let help = "1 while all nodes are NotReady at once: none is taken out for it (fail static)";
        r.register("all_nodes_not_ready_bool", help, self.all_nodes_not_ready.clone());
        r.register("watch_failures", "Failures of watches", self.feed_failures.clone());
        r.register("watch_rebuilds", "Watches built anew after a 410 at their start", self.feed_rebuilds.clone());
        r.register("watch_failing_seconds", "How long a watch has been failing", self.feed_failing_seconds.clone());
        r.register("translate_seconds", "Time to make a snapshot", self.translate.clone());
        r.register("status_fights", "Services whose status somebody else writes too", self.fights.clone());
        r.register(
            "panicking_sets",
            "Sets kept whole because too few of their backends are healthy",
            self.panicking.clone(),
        );
    }

    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }

    pub fn translated(&self, took: Duration) {
        self.translate.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_people_know() {
        let metrics = Metrics::new();
        metrics.syncs.inc();
        metrics.addresses.get_or_create(&PoolLabel { pool: "a".into() }).set(7);
        metrics.in_use.get_or_create(&PoolLabel { pool: "a".into() }).set(2);
        let text = metrics.text();
        for line in [
            "service_controller_loadbalancer_sync_total 1",
            "allocator_addresses_total{pool=\"a\"} 7",
            "allocator_addresses_in_use_total{pool=\"a\"} 2",
            "k8s_client_config_stale_bool 0",
            "penstock_control_leader 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
    }
}
