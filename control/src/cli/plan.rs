//! `penstock plan`: what would change if a file were served, said before it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use penstock_configs::desired::{BackendState, Desired, Service};
use penstock_configs::resolve::Resolver;
use penstock_configs::validate::FILE_OWNER;

use super::apply;
use super::failure::Outcome;
use super::screen::{Screen, Style};
use super::status::socket;
use super::units::count;
use crate::client::Dataplane;

/// Backends named in one line of the plan.
const NAMED: usize = 6;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A config file (TOML) or a snapshot (JSON); - reads standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Whose snapshot to compare with
    #[arg(long, value_name = "NAME", default_value = FILE_OWNER)]
    owner: String,
}

pub(super) async fn run(dataplane: &Dataplane, screen: &Screen, arguments: &Arguments) -> Outcome {
    let document = apply::read(&arguments.file)?;
    let served = dataplane.desired(&arguments.owner).await?;
    let mut out = String::new();
    if served.is_none() {
        let _ = writeln!(out, "owner `{}` serves nothing now", arguments.owner);
    }
    let changes = changes(&served.unwrap_or_default(), &document.desired);
    for change in &changes {
        out.push_str(&change.render(screen));
    }
    out.push_str(&summary(&changes));
    if document.has_box && arguments.owner == FILE_OWNER {
        let note = "[box], [[port]], [workers], [[snat]], [limits] and [timeouts] are not compared: most of them take a \
                    restart of penstock-dataplane, which keeps flows unless limits.flows_*, limits.embryonic or the \
                    number of workers change: then every connection ends";
        out.push_str(&screen.wrap("note: ", note));
        out.push('\n');
    }
    screen.print(&out)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Added,
    Removed,
    Changed,
}

#[derive(Debug, PartialEq, Eq)]
struct Change {
    kind: Kind,
    service: String,
    /// One line each, without the mark.
    details: Vec<String>,
}

impl Change {
    fn render(&self, screen: &Screen) -> String {
        let (mark, style) = match self.kind {
            Kind::Added => ("+", Style::Good),
            Kind::Removed => ("-", Style::Bad),
            Kind::Changed => ("~", Style::Warn),
        };
        let mut out = screen.paint(&format!("{mark} service {}", self.service), style) + "\n";
        for detail in &self.details {
            out.push_str(&screen.wrap("    ", detail));
            out.push('\n');
        }
        out
    }
}

fn summary(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "no service changes\n".to_owned();
    }
    let of = |kind| changes.iter().filter(|change| change.kind == kind).count();
    format!(
        "{} added, {} changed, {} removed\n",
        count(of(Kind::Added), "service"),
        of(Kind::Changed),
        of(Kind::Removed)
    )
}

/// Compared as packets would see it: a set renamed, or nodes listed otherwise, is no change.
fn changes(old: &Desired, new: &Desired) -> Vec<Change> {
    let (old_names, new_names) = (Resolver::new(old), Resolver::new(new));
    let old_services: BTreeMap<&str, &Service> = by_name(old);
    let new_services: BTreeMap<&str, &Service> = by_name(new);
    let names: BTreeSet<&str> = old_services.keys().chain(new_services.keys()).copied().collect();
    let change = |name: &str| match (old_services.get(name), new_services.get(name)) {
        (None, Some(new)) => Some((Kind::Added, vec![address(new), listed(&backends(&new_names, new))])),
        (Some(old), None) => Some((Kind::Removed, vec![format!("{}; its flows end", address(old))])),
        (Some(old), Some(new)) => {
            let mut details = settings(old, new);
            details.extend(moved_backends(&backends(&old_names, old), &backends(&new_names, new)));
            (!details.is_empty()).then_some((Kind::Changed, details))
        }
        (None, None) => None,
    };
    let described = names
        .into_iter()
        .filter_map(|name| change(name).map(|(kind, details)| Change { kind, service: name.to_owned(), details }));
    described.collect()
}

fn by_name(desired: &Desired) -> BTreeMap<&str, &Service> {
    desired.services.iter().map(|service| (service.name.as_str(), service)).collect()
}

fn address(service: &Service) -> String {
    format!("{} {}", socket(service.vip, service.port), service.protocol.as_str())
}

/// Differences a JSON of both shows, but for the backends.
fn settings(old: &Service, new: &Service) -> Vec<String> {
    let mut details = Vec::new();
    if address(old) != address(new) {
        details.push(format!("address {} -> {}; its flows end", address(old), address(new)));
    }
    let plain = |service: &Service| match serde_json::to_value(service) {
        Ok(serde_json::Value::Object(mut fields)) => {
            for field in ["vip", "port", "protocol", "set", "backends", "target_port"] {
                fields.remove(field);
            }
            fields
        }
        _ => serde_json::Map::new(),
    };
    let (before, after) = (plain(old), plain(new));
    let fields: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for field in fields {
        if before.get(field) != after.get(field) {
            details.push(format!("{field} {} -> {}", shown(before.get(field)), shown(after.get(field))));
        }
    }
    details
}

fn shown(value: Option<&serde_json::Value>) -> String {
    match value {
        None => "default".to_owned(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Address and port to (name, weight, state).
type Backends = BTreeMap<String, (String, u16, BackendState)>;

fn backends(names: &Resolver, service: &Service) -> Backends {
    let entry = |backend: penstock_configs::resolve::ResolvedBackend| {
        (socket(backend.address, backend.port), (backend.name.into_owned(), backend.weight, backend.state))
    };
    names.backends_of(service).map(entry).collect()
}

fn moved_backends(old: &Backends, new: &Backends) -> Vec<String> {
    let only = |these: &Backends, those: &Backends| -> Backends {
        these
            .iter()
            .filter(|(key, _)| !those.contains_key(*key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let (gained, lost) = (only(new, old), only(old, new));
    let mut details = Vec::new();
    if !gained.is_empty() {
        details.push(format!("+ {}", listed(&gained)));
    }
    if !lost.is_empty() {
        details.push(format!("- {}; flows on {} end", listed(&lost), if lost.len() == 1 { "it" } else { "them" }));
    }
    for (key, (name, weight, state)) in new {
        let Some((_, old_weight, old_state)) = old.get(key) else { continue };
        if weight != old_weight {
            details.push(format!("{name} {key}: weight {old_weight} -> {weight}"));
        }
        if state != old_state {
            details.push(format!("{name} {key}: {} -> {}", state_name(*old_state), state_name(*state)));
        }
    }
    details
}

fn listed(backends: &Backends) -> String {
    let named: Vec<String> = backends.iter().take(NAMED).map(|(key, (name, ..))| named(name, key)).collect();
    let more = backends.len() - named.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}: {}{more}", count(backends.len(), "backend"), named.join(", "))
}

/// An address that is its own name is said once.
fn named(name: &str, key: &str) -> String {
    if key.contains(name) { key.to_owned() } else { format!("{name} ({key})") }
}

fn state_name(state: BackendState) -> &'static str {
    match state {
        BackendState::Active => "active",
        BackendState::Draining => "draining",
        BackendState::Down => "down",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn desired(value: serde_json::Value) -> Desired {
        serde_json::from_value(value).expect("the schema")
    }

    fn one(set: &str, backends: &serde_json::Value, service: &serde_json::Value) -> Desired {
        let mut whole = json!({"name": "web", "vip": "203.0.113.1", "port": 80, "protocol": "tcp", "set": set});
        for (key, value) in service.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        desired(json!({"set": [{"name": set, "backends": backends}], "service": [whole]}))
    }

    fn details(old: &Desired, new: &Desired) -> Vec<String> {
        changes(old, new).into_iter().flat_map(|change| change.details).collect()
    }

    #[test]
    fn what_packets_can_not_tell_apart_is_no_change() {
        let backends = json!([{"address": "10.0.0.1", "port": 1}, {"address": "10.0.0.2", "port": 1}]);
        let turned = json!([{"address": "10.0.0.2", "port": 1}, {"address": "10.0.0.1"}]);
        let old = one("a", &backends, &json!({}));
        let new = one("b", &turned, &json!({"target_port": 1}));
        assert_eq!(changes(&old, &new), []);
    }

    #[test]
    fn backends_and_settings_are_compared() {
        let old =
            one("a", &json!([{"address": "10.0.0.1", "port": 1}, {"address": "10.0.0.2", "port": 1}]), &json!({}));
        let new = one(
            "a",
            &json!([{"address": "10.0.0.1", "port": 1, "weight": 5, "state": "draining"}, {"address": "10.0.0.3", "port": 1}]),
            &json!({"mode": "dnat", "source_ranges": ["10.0.0.0/8"]}),
        );
        assert_eq!(
            details(&old, &new),
            [
                "mode nat -> dnat",
                r#"source_ranges default -> ["10.0.0.0/8"]"#,
                "+ 1 backend: 10.0.0.3:1",
                "- 1 backend: 10.0.0.2:1; flows on it end",
                "10.0.0.1 10.0.0.1:1: weight 1 -> 5",
                "10.0.0.1 10.0.0.1:1: active -> draining",
            ]
        );
        assert_eq!(
            details(
                &old,
                &one(
                    "a",
                    &json!([{"address": "10.0.0.1", "port": 1}, {"address": "10.0.0.2", "port": 1}]),
                    &json!({"port": 81})
                )
            ),
            ["address 203.0.113.1:80 tcp -> 203.0.113.1:81 tcp; its flows end"]
        );
    }

    #[test]
    fn services_come_and_go() {
        let new = one("a", &json!([{"address": "10.0.0.1", "port": 1}]), &json!({}));
        let added = changes(&Desired::default(), &new);
        assert_eq!((added[0].kind, added[0].service.as_str()), (Kind::Added, "web"));
        assert_eq!(changes(&new, &Desired::default())[0].kind, Kind::Removed);
        assert_eq!(summary(&added), "1 service added, 0 changed, 0 removed\n");
        assert_eq!(summary(&[]), "no service changes\n");
    }
}
