//! Who gets which address: the allocator's table.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::Protocol;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Allocator, Family, Outcome, Pool, Request, Usage, mark_overlaps};

fn pool(name: &str, spec: Value) -> Pool {
    Pool::new(name, Arc::new(serde_json::from_value(spec).unwrap()))
}

fn request<'a>(name: &'a str, families: &[Family]) -> Request<'a> {
    Request {
        namespace: "default",
        name,
        uid: name,
        families: families.to_vec(),
        ports: vec![(Protocol::Tcp, 80)],
        ..Request::default()
    }
}

fn given(outcome: &Outcome) -> Vec<String> {
    outcome.grants.iter().map(|g| format!("{} {}", g.pool, g.address)).collect()
}

const V4: &[Family] = &[Family::V4];
const BOTH: &[Family] = &[Family::V4, Family::V6];

#[test]
fn pools_by_priority_then_order_and_only_those_that_give_automatically() {
    let pools = [
        pool("low", json!({"addresses": ["192.0.2.0/30"], "priority": -1})),
        pool("named", json!({"addresses": ["192.0.2.8/30"], "autoAssign": false, "priority": 9})),
        pool("high", json!({"addresses": ["192.0.2.4"], "priority": 5})),
        pool("plain", json!({"addresses": ["192.0.2.12"]})),
    ];
    let mut allocator = Allocator::new(&pools);
    let order: Vec<String> = ["a", "b", "c"].iter().flat_map(|n| given(&allocator.allocate(&request(n, V4)))).collect();
    assert_eq!(order, ["high 192.0.2.4", "plain 192.0.2.12", "low 192.0.2.0"]);
    let named = Request { pool: Some("named"), ..request("d", V4) };
    assert_eq!(given(&allocator.allocate(&named)), ["named 192.0.2.8"]);
    let explicit = Request { addresses: vec!["192.0.2.9".parse().unwrap()], ..request("e", V4) };
    assert_eq!(given(&allocator.allocate(&explicit)), ["named 192.0.2.9"]);
}

#[test]
fn selectors_admit_by_namespace_and_by_labels() {
    let spec = json!({"addresses": ["192.0.2.0/24"], "namespaces": ["shop"],
        "namespaceSelector": {"matchLabels": {"team": "pay"}},
        "serviceSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["edge"]}]}});
    let pool = pool("p", spec);
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let edge = labels("tier", "edge");
    assert!(pool.admits("shop", &BTreeMap::new(), &edge));
    assert!(pool.admits("other", &labels("team", "pay"), &edge), "either way in is enough");
    assert!(!pool.admits("other", &BTreeMap::new(), &edge));
    assert!(!pool.admits("shop", &BTreeMap::new(), &labels("tier", "core")));
}

#[test]
fn avoided_and_reserved_addresses_are_not_given_nor_counted() {
    let spec = json!({"addresses": ["192.0.2.0/30", "192.0.2.254-192.0.3.1"], "avoidBuggyIps": true,
        "reserved": ["192.0.2.1"]});
    let pools = [pool("p", spec)];
    assert_eq!(pools[0].total(), 4, ".2 .3 .254 of the one and .1 of the other");
    let mut allocator = Allocator::new(&pools);
    let mut order = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        order.extend(given(&allocator.allocate(&request(name, V4))));
    }
    assert_eq!(order, ["p 192.0.2.2", "p 192.0.2.3", "p 192.0.2.254", "p 192.0.3.1"]);
    let reserved = Request { addresses: vec!["192.0.2.1".parse().unwrap()], ..request("f", V4) };
    assert!(allocator.allocate(&reserved).refusals[0].to_string().contains("in no pool"));
}

#[test]
fn refusals_say_why() {
    let pools = [
        pool("full", json!({"addresses": ["192.0.2.1"], "autoAssign": false})),
        pool("theirs", json!({"addresses": ["192.0.2.2"], "namespaces": ["other"]})),
        pool("bad", json!({"addresses": ["192.0.2.300"]})),
    ];
    let mut allocator = Allocator::new(&pools);
    allocator.seed("192.0.2.1".parse().unwrap(), "", vec![usage("first", "u1", 80)], None);
    allocator.seed_foreign("192.0.2.9".parse().unwrap(), "x/y");
    let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
    let cases: [(Request<'_>, &str); 7] = [
        (Request { pool: Some("full"), ..request("a", V4) }, "`full` has no free IPv4"),
        (Request { pool: Some("nope"), ..request("a", V4) }, "no pool `nope`"),
        (Request { pool: Some("bad"), ..request("a", V4) }, "192.0.2.300"),
        (Request { addresses: ip("192.0.2.2"), ..request("a", V4) }, "does not select"),
        (Request { addresses: ip("192.0.2.1"), ..request("a", V4) }, "default/first"),
        (Request { addresses: ip("198.51.100.1"), ..request("a", V4) }, "in no pool"),
        (request("a", V4), "no pool has a free IPv4"),
    ];
    for (request, part) in cases {
        let outcome = allocator.allocate(&request);
        assert!(outcome.grants.is_empty());
        assert!(outcome.refusals[0].to_string().contains(part), "{part}: {}", outcome.refusals[0]);
    }
}

fn usage(name: &str, uid: &str, port: u16) -> Usage {
    Usage { namespace: "default".into(), name: name.into(), uid: uid.into(), ports: vec![(Protocol::Tcp, port)] }
}

#[test]
fn sharing_asks_for_the_same_key_and_other_ports_or_protocols() {
    let pools = [pool("p", json!({"addresses": ["192.0.2.1"]}))];
    let shared = |ports: Vec<(Protocol, u16)>, key| {
        let mut allocator = Allocator::new(&pools);
        allocator.seed("192.0.2.1".parse().unwrap(), "k", vec![usage("first", "u1", 80)], None);
        let outcome = allocator.allocate(&Request { share_key: key, ports, ..request("a", V4) });
        outcome.refusals.first().map(ToString::to_string).unwrap_or_default()
    };
    assert_eq!(shared(vec![(Protocol::Tcp, 443)], Some("k")), "");
    assert_eq!(shared(vec![(Protocol::Udp, 80)], Some("k")), "", "the same number on another protocol");
    for (ports, key) in
        [((Protocol::Tcp, 80), Some("k")), ((Protocol::Tcp, 443), Some("j")), ((Protocol::Tcp, 443), None)]
    {
        assert!(!shared(vec![ports], key).is_empty(), "{ports:?} {key:?}");
    }
}

#[test]
fn dual_stack_by_family_all_or_none_where_required() {
    let pools = [pool("p", json!({"addresses": ["192.0.2.1", "192.0.2.2", "2001:db8::1"]}))];
    let mut allocator = Allocator::new(&pools);
    assert_eq!(given(&allocator.allocate(&request("a", BOTH))), ["p 192.0.2.1", "p 2001:db8::1"]);
    let required = allocator.allocate(&Request { all_or_none: true, ..request("b", BOTH) });
    assert!(required.grants.is_empty() && required.refusals.len() == 1);
    let mut allocator = Allocator::new(&pools[..]);
    allocator.seed("2001:db8::1".parse().unwrap(), "", vec![usage("x", "x", 1)], None);
    let preferred = allocator.allocate(&request("c", BOTH));
    assert_eq!((given(&preferred), preferred.refusals.len()), (vec!["p 192.0.2.1".to_owned()], 1));
}

#[test]
fn overlaps_are_the_later_pools_fault() {
    let mut pools = [
        pool("a", json!({"addresses": ["192.0.2.0/24"]})),
        pool("b", json!({"addresses": ["192.0.2.128-192.0.3.4"]})),
        pool("c", json!({"addresses": ["192.0.3.0/30"]})),
    ];
    mark_overlaps(&mut pools);
    assert!(pools[0].fault.is_none());
    assert!(pools[1].fault.as_ref().unwrap().contains("192.0.2.128-192.0.2.255"));
    assert!(pools[2].fault.is_none(), "a pool that is not used itself stands in nobody's way");
}

proptest! {
    /// Whatever is asked in whatever order: no address twice (but shared), none from outside its pool, none reserved,
    /// and what is refused as exhausted is exhausted.
    #[test]
    fn no_address_is_given_twice(
        first in 0u8..200, size in 1u8..20, reserved in 0u8..220, buggy: bool, asks in proptest::collection::vec(0u8..250, 1..40)
    ) {
        let last = first + size;
        let spec = json!({"addresses": [format!("192.0.2.{first}-192.0.2.{last}")], "reserved": [format!("192.0.2.{reserved}")],
            "avoidBuggyIps": buggy});
        let pools = [pool("p", spec)];
        let mut allocator = Allocator::new(&pools);
        let names: Vec<String> = (0..asks.len()).map(|i| format!("s{i}")).collect();
        let mut given = std::collections::BTreeSet::new();
        for (name, ask) in names.iter().zip(&asks) {
            // Some ask for a certain one.
            let addresses = if ask % 3 == 0 { vec![IpAddr::from([192, 0, 2, *ask])] } else { Vec::new() };
            let explicit = !addresses.is_empty();
            let outcome = allocator.allocate(&Request { addresses, ..request(name, V4) });
            match outcome.grants.first() {
                Some(grant) => {
                    prop_assert!(pools[0].contains(grant.address));
                    prop_assert!(grant.address != IpAddr::from([192, 0, 2, reserved]));
                    prop_assert!(given.insert(grant.address), "{} twice", grant.address);
                }
                None if !explicit => {
                    let free = (first..=last)
                        .filter(|n| *n != reserved && !(buggy && matches!(n, 0 | 255)))
                        .filter(|n| !given.contains(&IpAddr::from([192, 0, 2, *n])))
                        .count();
                    prop_assert_eq!(free, 0);
                }
                None => {}
            }
        }
    }
}
