use std::collections::BTreeMap;

use super::{one_of, snapshot};
use crate::desired::Desired;
use crate::validate::{BoxContext, claims, desired};

fn service(name: &str, vip: &str, port: u16, protocol: &str, more: &str) -> String {
    format!("[[service]]\nname = {name:?}\nvip = {vip:?}\nport = {port}\nprotocol = {protocol:?}\n{more}\n")
}

fn among(owners: &[(&str, String)]) -> Vec<String> {
    let owners: BTreeMap<String, Desired> =
        owners.iter().map(|(owner, text)| ((*owner).to_owned(), snapshot(text))).collect();
    claims(&owners).iter().map(ToString::to_string).collect()
}

/// The faults within one owner; `dnat` needs no SNAT address.
fn within(text: &str) -> Vec<String> {
    desired(&snapshot(text), "file", &BoxContext::default()).iter().map(ToString::to_string).collect()
}

const DNAT: &str = "mode = \"dnat\"\nbackends = [{ address = \"10.0.0.1\", port = 80 }]";

#[test]
fn a_vip_and_port_claimed_by_two_owners_names_both() {
    let a = ("cluster-a", service("web", "192.0.2.1", 80, "tcp", ""));
    let b = ("cluster-b", service("shop", "192.0.2.1", 80, "tcp", ""));
    one_of(
        &among(&[a.clone(), b]),
        &[
            "cluster-b: service[0] \"shop\".vip: 192.0.2.1:80 tcp of service \"shop\" of owner \"cluster-b\"",
            "is claimed by service \"web\" of owner \"cluster-a\"",
            "another VIP or port",
        ],
    );
    for other in [("192.0.2.1", 81, "tcp"), ("192.0.2.1", 80, "udp"), ("192.0.2.2", 80, "tcp")] {
        let b = ("cluster-b", service("shop", other.0, other.1, other.2, ""));
        assert_eq!(among(&[a.clone(), b]), Vec::<String>::new(), "{other:?}");
    }
}

#[test]
fn a_vip_and_port_claimed_twice_by_one_owner() {
    let text = service("a", "2001:db8::1", 53, "udp", DNAT.replace("10.0.0.1", "fd00::1").as_str())
        + &service("b", "2001:db8::1", 53, "udp", DNAT.replace("10.0.0.1", "fd00::2").as_str());
    one_of(&within(&text), &["service[1] \"b\".vip: [2001:db8::1]:53 udp", "service \"a\" of owner \"file\""]);
    one_of(&among(&[("x", text)]), &["x: service[1] \"b\".vip:"]);
}

#[test]
fn a_vip_that_is_another_owners_node() {
    let node = "[[node]]\nname = \"n\"\naddresses = [\"192.0.2.1\"]\n".to_owned();
    let web = service("web", "192.0.2.1", 80, "tcp", "");
    one_of(
        &among(&[("a", web), ("b", node)]),
        &["a: service[0] \"web\".vip: 192.0.2.1 is the address of node \"n\" of owner \"b\""],
    );
}

#[test]
fn dnat_services_on_one_backend_port_are_refused_by_name() {
    let text = service("a", "192.0.2.1", 80, "tcp", DNAT) + &service("b", "192.0.2.2", 80, "tcp", DNAT);
    one_of(
        &within(&text),
        &["service[1] \"b\": service \"b\" of owner \"file\" sends to 10.0.0.1:80", "service \"a\"", "mode = \"nat\""],
    );
    // Another port of the same VIP is as bad; across owners too.
    let (a, b) = (service("a", "192.0.2.1", 80, "tcp", DNAT), service("b", "192.0.2.1", 81, "tcp", DNAT));
    one_of(&within(&(a.clone() + &b)), &["service[1] \"b\":"]);
    one_of(&among(&[("x", a), ("y", b)]), &["y: service[0] \"b\":", "service \"a\" of owner \"x\""]);
}

#[test]
fn dnat_services_that_can_be_told_apart_are_fine() {
    let a = service("a", "192.0.2.1", 80, "tcp", DNAT);
    for b in [
        service("b", "192.0.2.2", 80, "udp", DNAT),
        service("b", "192.0.2.2", 80, "tcp", &DNAT.replace("port = 80", "port = 81")),
        service("b", "192.0.2.2", 80, "tcp", &DNAT.replace("10.0.0.1", "10.0.0.2")),
    ] {
        assert_eq!(within(&(a.clone() + &b)), Vec::<String>::new());
    }
    let nat = service("b", "192.0.2.2", 80, "tcp", &DNAT.replace("dnat", "nat"));
    assert_eq!(among(&[("x", a + &nat)]), Vec::<String>::new());
}

#[test]
fn dnat_lists_meet_by_node_set_and_address_alike() {
    let shared = "[[node]]\nname = \"n\"\naddresses = [\"10.0.0.1\", \"fd00::1\"]\n\
                  [[set]]\nname = \"s\"\nbackends = [{ node = \"n\" }, { address = \"10.0.0.9\", port = 99 }]\n";
    let set = |name: &str, vip: &str, target: u16| {
        service(name, vip, 80, "tcp", &format!("mode = \"dnat\"\nset = \"s\"\ntarget_port = {target}"))
    };
    // One set, one target port.
    let both = format!("{shared}{}{}", set("a", "192.0.2.1", 80), set("b", "192.0.2.2", 80));
    let found = within(&both);
    assert!(found.iter().any(|fault| fault.contains("sends to 10.0.0.1:80")), "{found:#?}");
    // Different target ports: the backend with a port of its own is still shared.
    let own = format!("{shared}{}{}", set("a", "192.0.2.1", 80), set("b", "192.0.2.2", 81));
    one_of(&within(&own), &["service[1] \"b\":", "sends to 10.0.0.9:99"]);
    // The families' addresses are different backends.
    let families = format!("{shared}{}{}", set("a", "192.0.2.1", 80), set("b", "2001:db8::2", 80));
    assert_eq!(within(&families), Vec::<String>::new());
    // A list inline meets the set, by the node's address.
    let inline = format!("{shared}{}{}", set("a", "192.0.2.1", 80), service("b", "192.0.2.2", 80, "tcp", DNAT));
    one_of(&within(&inline), &["service[1] \"b\":", "sends to 10.0.0.1:80", "service \"a\""]);
}

#[test]
fn two_ports_of_one_backend_list_are_one_service() {
    let more = "mode = \"dnat\"\ntarget_port = 80\n\
                backends = [{ address = \"10.0.0.1\" }, { address = \"10.0.0.1\", port = 80 }]";
    assert_eq!(within(&service("a", "192.0.2.1", 80, "tcp", more)), Vec::<String>::new());
}

mod against_the_plain_version {
    //! The search that skips what cannot meet, against the one that compares all with all.

    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::snapshot;
    use crate::desired::{Desired, Mode};
    use crate::resolve::backends_of;
    use crate::validate::claims::Scope;
    use crate::validate::dnat;

    /// Services that share a backend with an earlier one of other VIP or port.
    fn plain(desired: &Desired) -> BTreeSet<usize> {
        let targets: Vec<BTreeSet<SocketAddr>> = desired
            .services
            .iter()
            .map(|service| backends_of(desired, service).map(|b| SocketAddr::new(b.address, b.port)).collect())
            .collect();
        let conflicts = |a: usize, b: usize| {
            let (x, y) = (&desired.services[a], &desired.services[b]);
            x.mode == Mode::Dnat
                && y.mode == Mode::Dnat
                && x.protocol == y.protocol
                && (x.vip, x.port) != (y.vip, y.port)
                && !targets[a].is_disjoint(&targets[b])
        };
        (0..desired.services.len()).filter(|later| (0..*later).any(|earlier| conflicts(earlier, *later))).collect()
    }

    fn backend() -> impl Strategy<Value = String> {
        let target = prop_oneof![
            (0..3).prop_map(|node| format!("node = \"n{node}\"")),
            (1..4).prop_map(|host| format!("address = \"10.0.0.{host}\"")),
        ];
        (target, prop::option::of(80..83)).prop_map(|(target, port)| match port {
            Some(port) => format!("{{ {target}, port = {port} }}"),
            None => format!("{{ {target} }}"),
        })
    }

    fn list() -> impl Strategy<Value = String> {
        prop::collection::vec(backend(), 0..4).prop_map(|items| format!("backends = [{}]", items.join(", ")))
    }

    fn service() -> impl Strategy<Value = String> {
        let targets = prop_oneof![(0..2).prop_map(|set| format!("set = \"s{set}\"")), list()];
        let vip = prop_oneof![(1..4).prop_map(|host| format!("192.0.2.{host}")), Just("2001:db8::1".to_owned())];
        let port =
            prop::option::of(80..83).prop_map(|port| port.map_or(String::new(), |p| format!("target_port = {p}")));
        let mode = prop_oneof![4 => Just("dnat"), 1 => Just("nat")];
        (vip, prop_oneof![3 => Just("tcp"), 1 => Just("udp")], mode, targets, port).prop_map(
            |(vip, protocol, mode, targets, target_port)| {
                format!(
                    "[[service]]\nname = \"x\"\nvip = \"{vip}\"\nport = PORT\nprotocol = \"{protocol}\"\n\
                     mode = \"{mode}\"\n{targets}\n{target_port}\n"
                )
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]
        #[test]
        fn the_same_services_are_refused(
            sets in prop::collection::vec(list(), 2),
            services in prop::collection::vec(service(), 0..8),
        ) {
            let mut text = String::new();
            for node in 0..3 {
                text += &format!("[[node]]\nname = \"n{node}\"\naddresses = [\"10.0.0.{node}\", \"fd00::{node}\"]\n");
            }
            for (index, list) in sets.iter().enumerate() {
                text += &format!("[[set]]\nname = \"s{index}\"\n{list}\n");
            }
            // A VIP and port claimed twice is a fault of its own.
            for (port, service) in (1..).zip(&services) {
                text += &service.replace("PORT", &format!("{port}"));
            }
            let desired = snapshot(&text);
            let found: BTreeSet<usize> = dnat::conflicts(&[("x", &desired)], Scope::One)
                .iter()
                .map(|fault| {
                    let index = fault.path.strip_prefix("service[").and_then(|rest| rest.split_once(']'));
                    index.expect("a service's path").0.parse().expect("an index")
                })
                .collect();
            prop_assert_eq!(found, plain(&desired), "{}", text);
        }
    }
}
