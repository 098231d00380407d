//! Who gets which address, and when it is free again.

use super::*;

#[test]
fn statuses_seed_the_allocator_when_records_are_lost() {
    let mut sim = Sim::new();
    for name in ["b", "a"] {
        sim.put(&service(name));
        sim.settle();
    }
    sim.records.clear();
    sim.restart();
    sim.put(&service("c"));
    sim.settle();
    assert_eq!((sim.ingress("b"), sim.ingress("a")), (vec!["203.0.113.1".into()], vec!["203.0.113.2".into()]));
    assert_eq!(sim.ingress("c"), ["203.0.113.3"]);
}

#[test]
fn of_two_families_the_one_that_is_shown_is_kept() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['203.0.113.1-203.0.113.4']");
    for name in ["other", "web"] {
        let mut value = service(name);
        value["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        value["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
        sim.put(&value);
        sim.settle();
    }
    assert_eq!(
        (sim.ingress("web"), sim.condition("web", "Degraded").1),
        (vec!["203.0.113.2".into()], "MissingAddress".into())
    );
    sim.records.clear();
    // The other's address is free now.
    sim.services.remove(&ServiceKey::new("default", "other"));
    sim.restart();
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
    assert!(sim.records.contains_key(&"203.0.113.2".parse().unwrap()), "{:?}", sim.records.keys());
}

#[test]
fn an_address_in_a_foreign_services_status_is_not_given() {
    let mut sim = Sim::new();
    let mut other = service("other");
    other["spec"]["loadBalancerClass"] = json!("other/lb");
    other["status"]["loadBalancer"] = json!({"ingress": [{"ip": "203.0.113.1"}]});
    sim.put(&other);
    sim.put(&service("web"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
    assert!(sim.log.iter().all(|line| !line.starts_with("other")), "no write to it: {:?}", sim.log);
    assert!(sim.notes.iter().all(|n| &*n.key.name != "other"), "no Event either");
}

#[test]
fn an_explicit_address_that_is_taken_is_refused_by_the_others_name() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.put(&annotated("late", json!({"penstock.dev/addresses": "203.0.113.1"})));
    sim.settle();
    assert_eq!(sim.condition("late", "Serving"), ("False".into(), "AllocationFailed".into()));
    let note = sim.notes.iter().find(|n| n.reason == "AllocationFailed").unwrap();
    assert!(note.message.contains("default/web"), "{}", note.message);
    assert!(sim.why("late").contains("default/web"));
    sim.delete("web");
    sim.settle();
    assert_eq!(sim.ingress("late"), ["203.0.113.1"], "tried again when something was released");
}

#[test]
fn sharing_needs_the_key_and_free_ports() {
    let mut sim = Sim::new();
    let shared = |name: &str, port: u16| {
        let mut value = annotated(name, json!({"penstock.dev/share-key": "k"}));
        value["spec"]["ports"][0]["port"] = json!(port);
        value
    };
    for value in [shared("a", 80), shared("b", 443), shared("c", 80)] {
        sim.put(&value);
        sim.settle();
    }
    assert_eq!((sim.ingress("a"), sim.ingress("b")), (vec!["203.0.113.1".into()], vec!["203.0.113.1".into()]));
    assert_eq!(sim.ingress("c"), ["203.0.113.2"], "the port is taken on the first");
    sim.edit("c", |s| s["metadata"]["annotations"]["penstock.dev/addresses"] = json!("203.0.113.1"));
    sim.settle();
    assert_eq!(sim.ingress("c"), ["203.0.113.2"], "what it has serves on");
    assert_eq!(sim.condition("c", "Degraded").1, "MissingAddress");
    let note = sim.notes.iter().rfind(|n| n.reason == "AllocationFailed").unwrap();
    assert!(note.message.contains("default/a") && note.message.contains("80"), "{}", note.message);
    sim.delete("a");
    sim.settle();
    assert_eq!(sim.ingress("c"), ["203.0.113.1"]);
    assert_eq!(sim.records.len(), 1, "and the old one was given back: {:?}", sim.log);
}

#[test]
fn an_exhausted_pool_says_so_and_recovers() {
    let mut sim = Sim::new();
    for i in 0..5 {
        sim.put(&service(&format!("s{i}")));
    }
    sim.settle();
    assert_eq!(sim.condition("s4", "Serving").1, "AllocationFailed");
    sim.delete("s0");
    sim.settle();
    assert_eq!(sim.ingress("s4"), ["203.0.113.1"]);
}

#[test]
fn a_freed_address_is_taken_whatever_comes_first_the_watch_or_the_answer() {
    for watch_first in [false, true] {
        let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['203.0.113.1']");
        sim.watch_first = watch_first;
        sim.put(&service("one"));
        sim.settle();
        sim.put(&service("two"));
        sim.settle();
        assert_eq!(sim.condition("two", "Serving").1, "AllocationFailed");
        sim.delete("one");
        sim.settle();
        assert_eq!(
            sim.controller.index.services.len(),
            1,
            "a deleted Service must not come back (watch first: {watch_first})"
        );
        assert_eq!(sim.ingress("two"), ["203.0.113.1"], "watch first: {watch_first}: {:?}", sim.log);
    }
}

#[test]
fn an_address_whose_record_the_watch_ends_while_its_deletion_is_under_way_is_taken_at_once() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['203.0.113.1']");
    sim.watch_first = true;
    // Shows its address in no status: only the record says that it is taken.
    let mut one = annotated("one", json!({"penstock.dev/expose": "true"}));
    one["spec"]["type"] = json!("NodePort");
    one["spec"]["loadBalancerClass"] = Value::Null;
    sim.put(&one);
    sim.settle();
    sim.put(&service("two"));
    sim.settle();
    assert_eq!(sim.condition("two", "Serving").1, "AllocationFailed");
    sim.delete("one");
    sim.settle();
    assert_eq!(sim.ingress("two"), ["203.0.113.1"], "{:?}", sim.log);
}

#[test]
fn a_sticky_service_finds_its_address_again() {
    let mut sim = Sim::new();
    sim.put(&annotated("web", json!({"penstock.dev/sticky": "true"})));
    sim.settle();
    sim.delete("web");
    sim.settle();
    assert_eq!(sim.records.len(), 1, "kept");
    sim.put(&service("other"));
    sim.settle();
    assert_eq!(sim.ingress("other"), ["203.0.113.2"]);
    let mut again = annotated("web", json!({"penstock.dev/sticky": "true"}));
    again["metadata"]["uid"] = json!("another-uid");
    sim.put(&again);
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn require_dual_stack_gets_both_or_nothing() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'v4'\naddresses = ['203.0.113.1']");
    let mut web = service("web");
    web["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    web["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    sim.put(&web);
    sim.settle();
    assert!(sim.records.is_empty());
    assert_eq!(sim.condition("web", "Serving").1, "AllocationFailed");
    sim.edit("web", |s| s["spec"]["ipFamilyPolicy"] = json!("PreferDualStack"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Degraded"), ("True".into(), "MissingAddress".into()));
}

#[test]
fn both_families_are_recorded_and_shown() {
    let mut sim = Sim::new();
    let mut web = service("web");
    web["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
    sim.put(&web);
    sim.settle();
    assert_eq!(sim.ingress("web"), ["2001:db8:f::1", "203.0.113.1"]);
    sim.edit("web", |s| s["spec"]["ipFamilies"] = json!(["IPv6"]));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["2001:db8:f::1"]);
    assert_eq!(sim.records.len(), 1);
}

#[test]
fn a_lost_race_for_an_address_ends_with_another_one() {
    let mut sim = Sim::new();
    sim.settle();
    // Another cluster's controller took it a moment ago; our watch has not heard.
    let taken = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "VipAllocation",
        "metadata": {"name": "203.0.113.1", "uid": "x", "resourceVersion": "999"},
        "spec": {"address": "203.0.113.1", "owner": "other", "claims": []}});
    sim.records.insert("203.0.113.1".parse().unwrap(), taken.clone());
    sim.put(&service("web"));
    sim.settle();
    assert!(sim.ingress("web").is_empty());
    sim.feed(index::on_record(Event::Apply(serde_json::from_value(taken).unwrap())));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
}

#[test]
fn pools_of_the_cluster_say_how_full_they_are_and_faults() {
    let mut sim = Sim::with("owner = 'c'");
    let pool = |name: &str, addresses: &[&str], version: &str| {
        let value = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "VipPool",
            "metadata": {"name": name, "uid": name, "resourceVersion": version, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"addresses": addresses}});
        index::on_pool(Event::Apply(serde_json::from_value(value).unwrap()))
    };
    sim.feed(pool("p", &["203.0.113.0/30"], "5"));
    sim.feed(pool("q", &["203.0.113.2"], "6"));
    sim.put(&service("web"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.0"]);
    sim.after(2);
    assert!(sim.pool_status.contains(&("q".to_owned(), 0)));
    assert!(sim.pool_status.contains(&("p".to_owned(), 1)));
    let usage = sim.controller.usage_of_pools();
    assert_eq!((usage[0].1.total, usage[0].1.available), (4, 3));
    assert!(usage[1].1.fault.as_ref().unwrap().contains("`p`"));
    // An edit of the pool moves nothing.
    sim.feed(pool("p", &["198.51.100.0/30"], "2000"));
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.0"]);
}

fn sharing(name: &str, port: u16, key: &str) -> Value {
    let mut value = annotated(name, json!({"penstock.dev/share-key": key}));
    value["spec"]["ports"][0]["port"] = json!(port);
    value
}

#[test]
fn an_address_is_shared_by_what_its_service_says_now_not_by_what_it_said_once() {
    let mut sim = Sim::new();
    sim.put(&sharing("a", 80, "k"));
    sim.settle();
    sim.edit("a", |s| s["metadata"]["annotations"] = json!({}));
    sim.settle();
    sim.put(&sharing("b", 443, "k"));
    sim.settle();
    assert_eq!((sim.ingress("a"), sim.ingress("b")), (vec!["203.0.113.1".into()], vec!["203.0.113.2".into()]));
    // The other way round: it allows sharing only now.
    sim.edit("a", |s| s["metadata"]["annotations"] = json!({"metallb.io/allow-shared-ip": "later"}));
    sim.settle();
    sim.put(&sharing("c", 443, "later"));
    sim.settle();
    assert_eq!((sim.ingress("a"), sim.ingress("c")), (vec!["203.0.113.1".into()], vec!["203.0.113.1".into()]));
}

#[test]
fn of_two_records_of_one_service_the_one_that_clients_know_stays() {
    // A leader that was cut off recorded another address meanwhile.
    let mut sim = Sim::new();
    sim.put(&service("first"));
    sim.put(&service("web"));
    sim.settle();
    sim.delete("first");
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
    let mut stray = sim.records[&"203.0.113.2".parse::<IpAddr>().unwrap()].clone();
    stray["spec"]["address"] = json!("203.0.113.1");
    sim.records.insert("203.0.113.1".parse().unwrap(), stray);
    sim.restart();
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
    assert_eq!(sim.records.len(), 1, "the stray one is given back");
}

#[test]
fn an_address_whose_record_cannot_be_written_is_said_to_be_so() {
    let mut sim = Sim::new();
    sim.no_records = true;
    sim.put(&service("web"));
    sim.settle();
    assert_ne!(sim.condition("web", "Serving").1, "AllocationFailed", "once may be a race that was lost");
    sim.after(2);
    assert_eq!(sim.condition("web", "Serving").1, "AllocationFailed");
    assert!(sim.why("web").contains("203.0.113.1 cannot be written: 403 Forbidden"), "{}", sim.why("web"));
    assert!(sim.events().contains(&"AllocationFailed"));
    let written = sim.log.len();
    sim.after(90);
    sim.after(90);
    assert_eq!(sim.log.len(), written, "said once: {:?}", sim.log);
    // Nobody asks the allocator before the record may be tried again.
    assert!(sim.controller.work[&ServiceKey::new("default", "web")].allocate_after > Some(sim.now));
    sim.no_records = false;
    sim.after(90);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Serving").1, "Serving");
}

#[test]
fn a_record_that_nobody_can_read_costs_its_address_and_nothing_else() {
    let mut sim = Sim::new();
    let unreadable = json!({"metadata": {"name": "203.0.113.1", "resourceVersion": "9"}, "spec":
        {"address": "203.0.113.1/32", "pool": "", "owner": "", "claims": []}});
    sim.records.insert("203.0.113.1".parse().unwrap(), unreadable);
    sim.put(&service("web"));
    sim.settle();
    sim.after(1);
    sim.after(2);
    assert_eq!(sim.ingress("web"), ["203.0.113.2"]);
    // Who asks for it by name hears why.
    sim.put(&annotated("named", json!({"penstock.dev/addresses": "203.0.113.1"})));
    sim.settle();
    sim.after(3);
    assert!(sim.why("named").contains("203.0.113.1 cannot be written"), "{}", sim.why("named"));
}
