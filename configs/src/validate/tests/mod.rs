//! Each rule by a document that breaks it and nothing else: exactly one fault, at the right path,
//! with a remedy.

mod claims;
mod scale;
mod services;
mod the_box;

use super::{HostFacts, file};
use crate::desired::Desired;
use crate::file::ConfigFile;

/// A good file: one interface, one SNAT address of each family, two nodes, a set and a service.
const GOOD: &str = r#"
version = 1
[box]
name = "lb1"
[[port]]
interface = "eth0"
[workers]
[limits]
[timeouts]
[[snat]]
address = "192.0.2.250"
[[snat]]
address = "2001:db8::250"
[[node]]
name = "worker-1"
addresses = ["192.0.2.101", "2001:db8::101"]
[[node]]
name = "worker-2"
addresses = ["192.0.2.102"]
[[set]]
name = "workers"
backends = [{ node = "worker-1" }, { node = "worker-2" }]
[[service]]
name = "web"
vip = "192.0.2.10"
port = 443
protocol = "tcp"
set = "workers"
target_port = 31443
"#;

fn host() -> HostFacts {
    let net = |text: &str| text.parse().expect("a network");
    HostFacts {
        addresses: vec![
            ("lo".into(), net("127.0.0.1/8")),
            ("eth0".into(), net("192.0.2.2/24")),
            ("eth0".into(), net("2001:db8::2/64")),
        ],
        gateways: vec!["192.0.2.1".parse().expect("an address"), "fe80::1".parse().expect("an address")],
        local_port_range: Some([32_768, 60_999]),
        reserved_ports: Vec::new(),
        listeners: vec![22, 6443],
        interfaces: vec![("lo".into(), 1), ("eth0".into(), 4), ("eth1".into(), 2)],
        cores: 8,
    }
}

/// [`GOOD`] with each (from, to) replaced.
fn edited(edits: &[(&str, &str)]) -> ConfigFile {
    let mut text = GOOD.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "nothing to edit: {from:?}");
        text = text.replacen(from, to, 1);
    }
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The faults of an edited file, as printed.
fn faults_of(edits: &[(&str, &str)], host: Option<&HostFacts>) -> Vec<String> {
    file(&edited(edits), host).iter().map(ToString::to_string).collect()
}

/// Exactly one fault, which contains every one of `parts` in order.
fn one_of(faults: &[String], parts: &[&str]) {
    assert_eq!(faults.len(), 1, "expected one fault with {parts:?}, found {faults:#?}");
    let mut rest = faults[0].as_str();
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not (in this order) in {:?}", faults[0]));
        rest = &rest[at + part.len()..];
    }
}

fn one(edits: &[(&str, &str)], parts: &[&str]) {
    one_of(&faults_of(edits, None), parts);
}

fn one_on_host(edits: &[(&str, &str)], parts: &[&str]) {
    one_of(&faults_of(edits, Some(&host())), parts);
}

fn snapshot(text: &str) -> Desired {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn the_good_file_is_good_here_and_there() {
    assert_eq!(faults_of(&[], None), Vec::<String>::new());
    assert_eq!(faults_of(&[], Some(&host())), Vec::<String>::new());
}
