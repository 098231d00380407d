//! Health checks for the services of the dataplane's own config file: what the checker does for Kubernetes it does for
//! them, with or without Kubernetes.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::{Backend, Desired, Service};
use penstock_configs::validate::FILE_OWNER;
use tokio::sync::watch;
use tracing::debug;

use crate::client::Dataplane;
use crate::config::{FileCheck, HealthConfig};
use crate::probe::{ProbeTarget, Targets};

/// How often the dataplane is asked whether its file's services changed.
const LOOK: Duration = Duration::from_secs(5);

/// Joins the targets of the cluster and of the file for the checker.
pub async fn gather(
    dataplane: Dataplane,
    health: HealthConfig,
    mut cluster: watch::Receiver<Targets>,
    checker: watch::Sender<Targets>,
    mut shutdown: watch::Receiver<bool>,
) {
    let checks_file = health.file_services != FileCheck::None || !health.checks.is_empty();
    let mut from_file: Vec<ProbeTarget> = Vec::new();
    let mut file_known = !checks_file;
    let mut clustered = true;
    while !*shutdown.borrow() {
        if checks_file {
            match dataplane.desired(FILE_OWNER).await {
                Ok(desired) => {
                    from_file = desired.map(|d| targets(&d, &health)).unwrap_or_default();
                    file_known = true;
                }
                // Away: what was known of its file goes on being checked.
                Err(error) => debug!("the file's services are not known: {error}"),
            }
        }
        let Targets { list, whole } = cluster.borrow_and_update().clone();
        let list = Arc::new(list.iter().chain(&from_file).cloned().collect());
        let all = Targets { list, whole: whole && file_known };
        checker.send_if_modified(|now| {
            let changed = *now != all;
            if changed {
                *now = all;
            }
            changed
        });
        tokio::select! {
            changed = cluster.changed(), if clustered => clustered = changed.is_ok(),
            () = tokio::time::sleep(LOOK) => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// One check per backend address and port, as `[[health.check]]` says; of a TCP service else a TCP check.
#[must_use]
pub fn targets(desired: &Desired, health: &HealthConfig) -> Vec<ProbeTarget> {
    let nodes: HashMap<&str, &[IpAddr]> =
        desired.nodes.iter().map(|n| (n.name.as_str(), n.addresses.as_slice())).collect();
    let sets: HashMap<&str, &[Backend]> =
        desired.sets.iter().map(|s| (s.name.as_str(), s.backends.as_slice())).collect();
    let mut targets: BTreeMap<Arc<str>, ProbeTarget> = BTreeMap::new();
    for service in &desired.services {
        let named = service.set.as_deref().and_then(|name| sets.get(name)).copied();
        let group = service.set.as_deref().unwrap_or(&service.name);
        let Some(asked) = health.check_of(group, service.protocol) else { continue };
        for backend in named.unwrap_or(&service.backends) {
            let Some((address, port)) = endpoint(backend, service, &nodes) else { continue };
            let Some(check) = asked.check(port) else { continue };
            let id: Arc<str> = format!("file/{group}/{address}:{port}").into();
            targets.entry(id.clone()).or_insert_with(|| ProbeTarget {
                id,
                address,
                check,
                timing: asked.timing(health),
                covers: vec![Some(port)],
                group: format!("file/{group}").into(),
                unproven: false,
            });
        }
    }
    targets.into_values().collect()
}

fn endpoint(backend: &Backend, service: &Service, nodes: &HashMap<&str, &[IpAddr]>) -> Option<(IpAddr, u16)> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == service.vip.is_ipv4();
    let of_node = || nodes.get(backend.node.as_deref()?)?.iter().find(of_family).copied();
    let address = backend.address.or_else(of_node)?;
    Some((address, backend.port.or(service.backend_port())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_and_port_of_a_tcp_service_once() {
        let desired: Desired = serde_json::from_value(serde_json::json!({
            "node": [{"name": "a", "addresses": ["10.0.0.1", "2001:db8::1"]}],
            "set": [{"name": "web", "backends": [{"node": "a"}, {"address": "10.0.0.2", "port": 81}]}],
            "service": [
                {"name": "one", "vip": "203.0.113.1", "port": 80, "protocol": "tcp", "set": "web", "target_port": 8080},
                {"name": "two", "vip": "203.0.113.2", "port": 80, "protocol": "tcp", "set": "web", "target_port": 8080},
                {"name": "six", "vip": "2001:db8:f::1", "port": 80, "protocol": "tcp", "backends": [{"node": "a", "port": 9}]},
                {"name": "dns", "vip": "203.0.113.1", "port": 53, "protocol": "udp", "set": "web", "target_port": 53},
            ],
        }))
        .unwrap();
        let ids: Vec<String> =
            targets(&desired, &HealthConfig::default()).iter().map(|t| format!("{} {:?}", t.id, t.covers)).collect();
        assert_eq!(
            ids,
            [
                "file/six/2001:db8::1:9 [Some(9)]",
                "file/web/10.0.0.1:8080 [Some(8080)]",
                "file/web/10.0.0.2:81 [Some(81)]",
            ]
        );
    }
}
