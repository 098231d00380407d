//! What the operator drained, combined with what the checker knows: the worse state wins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use penstock_configs::api::Drains;
use penstock_configs::desired::{Backend, BackendHealth, BackendState, Health};

use super::engine::Snapshots;
use super::refusal::Refusal;

/// Closest name worth proposing: more edits are another word.
const NEAR: f64 = 0.7;

#[must_use]
pub fn worse(a: BackendState, b: BackendState) -> BackendState {
    let rank = |state| match state {
        BackendState::Active => 0,
        BackendState::Draining => 1,
        BackendState::Down => 2,
    };
    if rank(b) > rank(a) { b } else { a }
}

/// The addresses `target` stands for: itself if it is one, else those of the nodes so named.
#[must_use]
pub fn resolve(target: &str, owners: &Snapshots) -> Vec<IpAddr> {
    if let Ok(address) = target.parse() {
        return vec![address];
    }
    let named = owners.values().flat_map(|desired| &desired.nodes).filter(|node| node.name == target);
    let addresses: BTreeSet<IpAddr> = named.flat_map(|node| node.addresses.iter().copied()).collect();
    addresses.into_iter().collect()
}

/// Whether an operator can have meant `target`: some owner knows it, and all mean the same machine.
///
/// # Errors
/// Unknown, with the nearest name there is; or different nodes of one name.
pub fn check_target(target: &str, owners: &Snapshots) -> Result<(), Refusal> {
    let mut holders: BTreeMap<BTreeSet<IpAddr>, Vec<&str>> = BTreeMap::new();
    for (owner, desired) in owners {
        for node in desired.nodes.iter().filter(|node| node.name == target) {
            holders.entry(node.addresses.iter().copied().collect()).or_default().push(owner);
        }
    }
    if holders.len() > 1 {
        let owners: Vec<&str> = holders.into_values().flatten().collect();
        return Err(Refusal::AmbiguousTarget { target: target.into(), owners: owners.join(", ") });
    }
    let known = holders.len() == 1 || target.parse().is_ok_and(|address| is_known(address, owners));
    if known { Ok(()) } else { Err(Refusal::UnknownTarget { target: target.into(), nearest: nearest(target, owners) }) }
}

fn is_known(address: IpAddr, owners: &Snapshots) -> bool {
    let mut nodes = owners.values().flat_map(|desired| &desired.nodes).flat_map(|node| &node.addresses);
    nodes.any(|&known| known == address) || backends(owners).any(|backend| backend.address == Some(address))
}

fn backends(owners: &Snapshots) -> impl Iterator<Item = &Backend> {
    owners.values().flat_map(|desired| {
        let sets = desired.sets.iter().flat_map(|set| &set.backends);
        sets.chain(desired.services.iter().flat_map(|service| &service.backends))
    })
}

fn nearest(target: &str, owners: &Snapshots) -> Option<String> {
    let names = owners.values().flat_map(|desired| &desired.nodes).map(|node| node.name.as_str());
    let scored = names.map(|name| (strsim::normalized_damerau_levenshtein(target, name), name));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= NEAR).then(|| best.1.to_owned())
}

/// What several checkers say, as one: of two verdicts on the same the worse. To a verdict on one port of a node a checker
/// that speaks of the node alone has its say too.
#[must_use]
pub fn merged<'a>(sources: impl ExactSizeIterator<Item = &'a Health>) -> Health {
    let sources: Vec<&Health> = sources.collect();
    if let [only] = *sources {
        return only.clone();
    }
    let mut known: BTreeMap<(IpAddr, Option<u16>), BackendHealth> = BTreeMap::new();
    for verdict in sources.iter().flat_map(|health| &health.backends) {
        worsen(known.entry((verdict.address, verdict.port)).or_insert_with(|| verdict.clone()), verdict);
    }
    for health in sources {
        let own: BTreeSet<_> = health.backends.iter().map(|verdict| (verdict.address, verdict.port)).collect();
        for verdict in health.backends.iter().filter(|verdict| verdict.port.is_none()) {
            let ports = known.range_mut((verdict.address, Some(0))..=(verdict.address, Some(u16::MAX)));
            ports.filter(|(place, _)| !own.contains(place)).for_each(|(_, known)| worsen(known, verdict));
        }
    }
    Health { backends: known.into_values().collect() }
}

/// The worse of two verdicts, with its reason.
fn worsen(known: &mut BackendHealth, verdict: &BackendHealth) {
    if worse(known.state, verdict.state) != known.state {
        known.state = verdict.state;
        known.reason.clone_from(&verdict.reason);
    }
}

/// Health as the engine gets it. An entry for one port of a drained address is made worse too, so
/// that the result reads the same whether the more specific or the worse entry is preferred.
#[must_use]
pub fn effective(health: &Health, drains: &Drains, owners: &Snapshots) -> Health {
    let mut drained: BTreeMap<IpAddr, (BackendState, String)> = BTreeMap::new();
    for (target, drain) in drains {
        let why = if drain.reason.is_empty() { "drained by the operator" } else { drain.reason.as_str() };
        for address in resolve(target, owners) {
            let entry = drained.entry(address).or_insert_with(|| (drain.state, why.to_owned()));
            entry.0 = worse(entry.0, drain.state);
        }
    }
    let mut backends = health.backends.clone();
    let mut whole = BTreeSet::new();
    for backend in &mut backends {
        let Some((state, why)) = drained.get(&backend.address) else { continue };
        if backend.port.is_none() {
            whole.insert(backend.address);
        }
        if worse(backend.state, *state) != backend.state {
            backend.state = *state;
            backend.reason.clone_from(why);
        }
    }
    let missing = drained.into_iter().filter(|(address, _)| !whole.contains(address));
    backends.extend(missing.map(|(address, (state, reason))| BackendHealth { address, port: None, state, reason }));
    Health { backends }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use penstock_configs::api::Drain;
    use penstock_configs::desired::{Desired, Node};

    use super::*;

    #[test]
    fn of_several_checkers_the_worse_verdict_holds() {
        let says = |address: &str, state| BackendHealth {
            address: address.parse().expect("an address"),
            port: None,
            state,
            reason: String::new(),
        };
        let one =
            Health { backends: vec![says("10.0.0.1", BackendState::Down), says("10.0.0.2", BackendState::Active)] };
        let two =
            Health { backends: vec![says("10.0.0.2", BackendState::Draining), says("10.0.0.1", BackendState::Active)] };
        let both = vec![says("10.0.0.1", BackendState::Down), says("10.0.0.2", BackendState::Draining)];
        assert_eq!(merged([&one, &two].into_iter()).backends, both);
        assert_eq!(merged([&two, &one].into_iter()).backends, both);
        assert_eq!(merged([&two].into_iter()), two);
        assert_eq!(merged([].into_iter()), Health::default());
    }

    #[test]
    fn who_speaks_of_a_node_alone_speaks_of_each_of_its_ports() {
        use BackendState::{Active, Down};
        let control = Health {
            backends: vec![entry("10.0.0.1", None, Down, "8080: refused"), entry("10.0.0.1", Some(80), Active, "")],
        };
        let person = Health { backends: vec![entry("10.0.0.1", None, Down, "its disk fails")] };
        let port = |health: &Health| {
            let of_port = health.backends.iter().find(|verdict| verdict.port == Some(80)).cloned();
            of_port.expect("a verdict on the port")
        };
        assert_eq!(port(&merged([&control].into_iter())).state, Active, "of one checker its own word on a port holds");
        for both in [[&control, &person], [&person, &control]] {
            assert_eq!(port(&merged(both.into_iter())), entry("10.0.0.1", Some(80), Down, "its disk fails"));
        }
        let other =
            Health { backends: vec![entry("10.0.0.1", Some(80), Active, ""), entry("10.0.0.2", None, Down, "")] };
        assert_eq!(port(&merged([&other, &control].into_iter())).state, Active);
        assert_eq!(
            port(&merged([&other, &person].into_iter())).state,
            Down,
            "nobody takes a node's word back by a port"
        );
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn owner(nodes: &[(&str, &[&str])]) -> Arc<Desired> {
        let node = |&(name, addresses): &(&str, &[&str])| Node {
            name: name.into(),
            addresses: addresses.iter().map(|address| ip(address)).collect(),
        };
        Arc::new(Desired { nodes: nodes.iter().map(node).collect(), ..Desired::default() })
    }

    fn cluster() -> Snapshots {
        Snapshots::from([
            ("a".to_owned(), owner(&[("node-1", &["10.0.0.1", "fd00::1"]), ("node-2", &["10.0.0.2"])])),
            ("b".to_owned(), owner(&[("node-2", &["10.9.0.2"]), ("edge", &["10.9.0.3"])])),
        ])
    }

    fn entry(address: &str, port: Option<u16>, state: BackendState, reason: &str) -> BackendHealth {
        BackendHealth { address: ip(address), port, state, reason: reason.into() }
    }

    fn drained(target: &str, state: BackendState) -> Drains {
        Drains::from([(target.to_owned(), Drain { state, ..Drain::default() })])
    }

    #[test]
    fn a_drained_node_drains_in_both_families_and_only_it() {
        let result = effective(&Health::default(), &drained("node-1", BackendState::Draining), &cluster());
        let why = "drained by the operator";
        let expected =
            [entry("10.0.0.1", None, BackendState::Draining, why), entry("fd00::1", None, BackendState::Draining, why)];
        assert_eq!(result.backends, expected);
    }

    #[test]
    fn the_worse_state_wins_in_both_directions() {
        let health = Health {
            backends: vec![
                entry("10.0.0.1", None, BackendState::Down, "no answer"),
                entry("10.0.0.1", Some(80), BackendState::Active, "200"),
                entry("10.0.0.2", None, BackendState::Active, ""),
            ],
        };
        let result = effective(&health, &drained("10.0.0.1", BackendState::Draining), &cluster());
        let expected = [
            entry("10.0.0.1", None, BackendState::Down, "no answer"),
            entry("10.0.0.1", Some(80), BackendState::Draining, "drained by the operator"),
            entry("10.0.0.2", None, BackendState::Active, ""),
        ];
        assert_eq!(result.backends, expected);
        let result = effective(&health, &drained("10.0.0.1", BackendState::Down), &cluster());
        assert_eq!(result.backends[1].state, BackendState::Down);
    }

    #[test]
    fn a_drain_of_a_node_that_is_gone_is_harmless() {
        let result = effective(&Health::default(), &drained("node-9", BackendState::Down), &cluster());
        assert_eq!(result, Health::default());
    }

    #[test]
    fn targets_are_known_unknown_or_ambiguous() {
        let owners = cluster();
        for good in ["node-1", "edge", "10.0.0.1", "fd00::1", "10.9.0.2"] {
            assert_eq!(check_target(good, &owners), Ok(()), "{good}");
        }
        let unknown = check_target("node1", &owners);
        assert_eq!(unknown, Err(Refusal::UnknownTarget { target: "node1".into(), nearest: Some("node-1".into()) }));
        assert!(matches!(check_target("node-2", &owners), Err(Refusal::AmbiguousTarget { .. })));
        assert!(matches!(check_target("10.0.0.99", &owners), Err(Refusal::UnknownTarget { nearest: None, .. })));
    }
}
