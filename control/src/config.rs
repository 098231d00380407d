//! `penstock-control`'s own file. The dataplane's file says what the box is; this one says where its services
//! come from besides that file, and how they are checked.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use penstock_configs::desired::Mode;
use serde::{Deserialize, Serialize};

use crate::crd::VipPoolSpec;

/// The version this build reads.
pub const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// toml's message carries the line, the column and the known keys.
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path}: {}", faults.join("; "))]
    Invalid { path: PathBuf, faults: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    pub version: u32,
    /// This box among several: the Lease's holder, the `VipBox` object's name. Default: the host's name.
    #[serde(default, rename = "box")]
    pub box_name: String,
    /// The dataplane's Unix socket.
    #[serde(default = "default_dataplane")]
    pub dataplane: PathBuf,
    /// Our own Unix socket, for `penstock why` and `penstock status`.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Where Prometheus reads; missing: nowhere but on the Unix socket.
    #[serde(default)]
    pub metrics: Option<std::net::SocketAddr>,
    #[serde(default)]
    pub health: HealthConfig,
    /// Missing: no Kubernetes, only health checks for the services of the dataplane's file.
    #[serde(default)]
    pub kubernetes: Option<KubernetesConfig>,
}

/// Health checks; times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    pub enabled: bool,
    pub interval: f64,
    pub timeout: f64,
    /// Consecutive good results until up.
    pub rise: u32,
    /// Consecutive bad results until down.
    pub fall: u32,
    /// Probes per second of the whole box.
    pub budget: u32,
    /// Where fewer than this share of a set would be left in service, all of it stays (fail static).
    pub panic_threshold: f64,
    /// The check of services from the config file: `tcp` connects to the backend's port, `none` checks nothing.
    pub file_services: FileCheck,
    /// Other checks than that, by set.
    #[serde(rename = "check")]
    pub checks: Vec<crate::health::named::NamedCheck>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileCheck {
    #[default]
    Tcp,
    None,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: 2.0,
            timeout: 1.0,
            rise: 2,
            fall: 3,
            budget: 500,
            panic_threshold: 0.5,
            file_services: FileCheck::Tcp,
            checks: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// The cluster's name on the box: the owner of its services there, and of its address records here.
    pub owner: String,
    /// Missing: `KUBECONFIG`, then `~/.kube/config`, then the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    /// Services with this `loadBalancerClass` are ours.
    pub class: String,
    /// Also those without any class.
    pub default_class: bool,
    /// Of Services that don't say.
    pub mode: Mode,
    /// Who answers for the addresses: the leader by ARP/ND, or nobody (BGP, static routes; then every box serves).
    pub announce: AnnounceBy,
    pub node_address: NodeAddress,
    /// The node this box is itself, if it is one.
    pub own_node: Option<String>,
    /// Where the Lease lives.
    pub namespace: String,
    pub leader_election: LeaderConfig,
    pub timing: TimingConfig,
    pub probes: ProbeConfig,
    #[serde(rename = "pool")]
    pub pools: Vec<FilePool>,
    /// `local` Services get more flows on nodes with more ready endpoints.
    pub weigh_by_endpoints: bool,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            owner: "kubernetes".into(),
            kubeconfig: None,
            context: None,
            class: "penstock.dev/box".into(),
            default_class: false,
            mode: Mode::Nat,
            announce: AnnounceBy::Leader,
            node_address: NodeAddress::default(),
            own_node: None,
            namespace: "penstock-system".into(),
            leader_election: LeaderConfig::default(),
            timing: TimingConfig::default(),
            probes: ProbeConfig::default(),
            pools: Vec::new(),
            weigh_by_endpoints: true,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnnounceBy {
    /// L2: one box at a time answers ARP and neighbour discovery, the leader.
    #[default]
    Leader,
    /// Routed: the network brings packets to whichever boxes it likes.
    Routes,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: AddressType,
    /// Only addresses in one of these; empty: any.
    pub cidrs: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AddressType {
    #[default]
    #[serde(rename = "InternalIP")]
    Internal,
    #[serde(rename = "ExternalIP")]
    External,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaderConfig {
    pub enabled: bool,
    pub lease: String,
    /// Seconds a silent leader is believed.
    pub duration: f64,
    /// Seconds after which a leader that could not renew stops acting.
    pub renew_deadline: f64,
    /// Seconds between two tries.
    pub retry: f64,
}

impl Default for LeaderConfig {
    fn default() -> Self {
        // client-go's defaults: 15, 10, 2.
        Self { enabled: true, lease: "penstock".into(), duration: 15.0, renew_deadline: 10.0, retry: 2.0 }
    }
}

/// Seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingConfig {
    /// Events closer together than this make one snapshot.
    pub debounce: f64,
    /// An address is shown in status after this time even if no backend is healthy, with condition Degraded.
    pub status_grace: f64,
    /// A Service being deleted is let go after this time even if the dataplane has not acknowledged.
    pub teardown_wait: f64,
    /// A node that was labelled out of load balancers keeps its flows for this long, and takes no new ones.
    pub node_drain: f64,
    /// How often the kubeconfig, its certificates and the CA are looked at for a change.
    pub credentials: f64,
    /// How long a watch lasts before it is renewed; also when a dead connection is noticed.
    pub watch: u32,
    /// Watches silent for longer than this are stale, in metrics and status.
    pub stale_after: f64,
    /// A failed step is tried again after `retry`, twice as long each time, at most `retry_max`.
    pub retry: f64,
    pub retry_max: f64,
    /// A status that another controller overwrote is left alone for this long, twice as long each time.
    pub fight_backoff: f64,
    /// The `VipBox` of a box that has said nothing for so long is removed by the leader; a box speaks every minute.
    pub box_gone: f64,
    /// API writes in flight at once.
    pub writes: usize,
}

impl Default for TimingConfig {
    fn default() -> Self {
        Self {
            debounce: 0.01,
            status_grace: 30.0,
            teardown_wait: 120.0,
            node_drain: 300.0,
            credentials: 30.0,
            watch: 240,
            stale_after: 300.0,
            retry: 0.5,
            retry_max: 60.0,
            fight_backoff: 30.0,
            box_gone: 3600.0,
            writes: 32,
        }
    }
}

/// What is asked of nodes and of Services with `externalTrafficPolicy: Local`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeConfig {
    /// One check per node for all `Cluster` Services.
    pub node: NodeCheck,
    /// Its port: kube-proxy's healthz.
    pub node_port: u16,
    /// Also connect to each TCP node port of each Service on each node.
    pub each_node_port: bool,
    /// `healthCheckNodePort` of `Local` Services.
    pub local: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeCheck {
    /// GET /healthz
    #[default]
    Http,
    Tcp,
    None,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { node: NodeCheck::Http, node_port: 10256, each_node_port: false, local: true }
    }
}

/// A pool in the file: what `VipPool` is in the cluster, and a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePool {
    pub name: String,
    pub addresses: Vec<String>,
    #[serde(default = "yes")]
    pub auto_assign: bool,
    #[serde(default)]
    pub priority: i64,
    #[serde(default)]
    pub namespaces: Vec<String>,
    #[serde(default)]
    pub namespace_selector: Option<crate::crd::Selector>,
    #[serde(default)]
    pub service_selector: Option<crate::crd::Selector>,
    #[serde(default)]
    pub avoid_buggy_ips: bool,
    #[serde(default)]
    pub reserved: Vec<String>,
}

fn yes() -> bool {
    true
}

impl FilePool {
    #[must_use]
    pub fn spec(&self) -> VipPoolSpec {
        VipPoolSpec {
            addresses: self.addresses.clone(),
            auto_assign: self.auto_assign,
            priority: self.priority,
            namespaces: self.namespaces.clone(),
            namespace_selector: self.namespace_selector.clone(),
            service_selector: self.service_selector.clone(),
            avoid_buggy_ips: self.avoid_buggy_ips,
            reserved: self.reserved.clone(),
        }
    }
}

impl NodeAddress {
    #[must_use]
    pub fn wants(&self, kind: AddressType, address: IpAddr) -> bool {
        kind == self.kind && (self.cidrs.is_empty() || self.cidrs.iter().any(|net| net.contains(&address)))
    }
}

impl HealthConfig {
    #[must_use]
    pub fn timing(&self) -> crate::probe::Timing {
        crate::probe::Timing {
            interval: Duration::from_secs_f64(self.interval),
            timeout: Duration::from_secs_f64(self.timeout),
            rise: self.rise,
            fall: self.fall,
        }
    }
}

impl ControlConfig {
    /// # Errors
    /// When the file cannot be read or has faults; all are named.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// # Errors
    /// As [`Self::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let faults = config.faults();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { path: path.to_owned(), faults }) }
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.version != VERSION {
            faults.push(format!("version: {} is not known; this build reads {VERSION}", self.version));
        }
        let health = &self.health;
        for (key, seconds) in [("interval", health.interval), ("timeout", health.timeout)] {
            check_seconds(&mut faults, &format!("health.{key}"), seconds);
        }
        if health.rise == 0 || health.fall == 0 {
            faults.push("health.rise and health.fall: at least 1".into());
        }
        if !(0.0..=1.0).contains(&health.panic_threshold) {
            faults.push("health.panic_threshold: a share between 0 and 1".into());
        }
        for (at, check) in health.checks.iter().enumerate() {
            check.faults(at, &mut faults);
        }
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.faults(&mut faults);
        }
        faults
    }
}

impl KubernetesConfig {
    fn faults(&self, faults: &mut Vec<String>) {
        if self.owner.is_empty() || self.owner == "file" {
            faults.push("kubernetes.owner: a name of the cluster's own; `file` is the config file's".into());
        }
        let leader = &self.leader_election;
        if !(leader.retry < leader.renew_deadline && leader.renew_deadline < leader.duration && leader.retry > 0.0) {
            faults.push("kubernetes.leader_election: retry < renew_deadline < duration is needed".into());
        }
        let timing = &self.timing;
        let named = [
            ("debounce", timing.debounce),
            ("status_grace", timing.status_grace),
            ("teardown_wait", timing.teardown_wait),
            ("node_drain", timing.node_drain),
            ("credentials", timing.credentials),
            ("stale_after", timing.stale_after),
            ("retry", timing.retry),
            ("retry_max", timing.retry_max),
            ("fight_backoff", timing.fight_backoff),
            ("box_gone", timing.box_gone),
        ];
        for (key, seconds) in named {
            check_seconds(faults, &format!("kubernetes.timing.{key}"), seconds);
        }
        // A box speaks once a minute; a lost word or two is no death.
        if timing.box_gone < 1.0 {
            faults
                .push("kubernetes.timing.box_gone: at least 1; boxes speak once a minute, so minutes are meant".into());
        }
        // kube refuses to ask for more; an API server reads 0 as half an hour or more.
        if !(1..295).contains(&timing.watch) {
            faults.push(format!("kubernetes.timing.watch: {} is no number of seconds between 1 and 294", timing.watch));
        }
        if timing.writes == 0 {
            faults.push("kubernetes.timing.writes: at least 1".into());
        }
        faults.extend(crate::pool::faults_of_file(&self.pools));
    }
}

fn check_seconds(faults: &mut Vec<String>, key: &str, seconds: f64) {
    // The upper bound keeps `Duration::from_secs_f64` from overflowing.
    if !(0.0..=1e7).contains(&seconds) {
        faults.push(format!("{key}: {seconds} is no number of seconds between 0 and 10000000"));
    }
}

fn default_dataplane() -> PathBuf {
    "/run/penstock/dataplane.sock".into()
}

fn default_socket() -> PathBuf {
    "/run/penstock/control.sock".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ControlConfig, String> {
        ControlConfig::parse(Path::new("control.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_version_alone_is_enough_and_means_no_kubernetes() {
        let config = parse("version = 1").unwrap();
        assert!(config.kubernetes.is_none());
        assert!(config.health.enabled);
    }

    #[test]
    fn the_default_class_is_ours_and_nobody_elses() {
        let kubernetes = parse("version = 1\n[kubernetes]").unwrap().kubernetes.unwrap();
        assert_eq!(kubernetes.class, "penstock.dev/box");
        assert!(!kubernetes.default_class);
    }

    #[test]
    fn unknown_keys_are_faults_with_a_line() {
        let error = parse("version = 1\n[kubernetes]\nclas = 'x'").unwrap_err();
        assert!(error.contains("clas") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn every_fault_is_named() {
        let error = parse(
            "version = 2\n[health]\nrise = 0\n[kubernetes]\nowner = 'file'\n[kubernetes.leader_election]\nretry = 20\n\
             [kubernetes.timing]\nwatch = 300\n[[kubernetes.pool]]\nname = 'a'\naddresses = ['203.0.113.0/33']",
        )
        .unwrap_err();
        for part in ["version", "timing.watch", "health.rise", "kubernetes.owner", "leader_election", "203.0.113.0/33"]
        {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn overlapping_pools_are_faults() {
        let error = parse(
            "version = 1\n[[kubernetes.pool]]\nname = 'a'\naddresses = ['203.0.113.0/24']\n\
             [[kubernetes.pool]]\nname = 'b'\naddresses = ['203.0.113.200-203.0.114.3']",
        )
        .unwrap_err();
        assert!(error.contains("`a`") && error.contains("`b`"), "{error}");
    }
}
