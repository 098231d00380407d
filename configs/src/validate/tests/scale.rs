//! 10,000 services over one set of 500 nodes. Work that grew with services × nodes (5,000,000) would
//! take seconds here; the bound leaves room for a busy machine.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::desired::{Backend, BackendSet, BackendState, Desired, Mode, Node, Protocol, Service};
use crate::file::SnatAddress;
use crate::resolve::Resolver;
use crate::validate::{BoxContext, desired, warnings};

const BOUND: Duration = Duration::from_millis(700);

fn large(mode: Mode) -> Desired {
    let node = |index: u32| Node {
        name: format!("node-{index}"),
        addresses: vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + index))],
    };
    let backend = |index: u32| Backend {
        node: Some(format!("node-{index}")),
        weight: 1,
        state: BackendState::Active,
        ..Backend::default()
    };
    let service = |index: u16| Service {
        mode,
        set: Some("all".into()),
        target_port: Some(30_000 + index),
        ..Service::at(
            format!("namespace/service-{index}:http"),
            IpAddr::V4(Ipv4Addr::from(0xcb00_7100 + u32::from(index / 100))),
            1 + index % 100,
            Protocol::Tcp,
        )
    };
    Desired {
        generation: 1,
        term: None,
        nodes: (0..500).map(node).collect(),
        sets: vec![BackendSet { name: "all".into(), backends: (0..500).map(backend).collect() }],
        services: (0..10_000).map(service).collect(),
    }
}

fn context() -> BoxContext {
    let snat = SnatAddress { address: IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9)), ports: [1024, 65_535], shared: false };
    BoxContext { snat: vec![snat], ..BoxContext::default() }
}

/// This thread's time on a processor: what else the machine does is not the document's.
fn on_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux's account of this thread");
    let nanoseconds = stat.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("nanoseconds first"))
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let begin = on_processor();
    let result = run();
    let took = on_processor() - begin;
    assert!(took < BOUND, "{what} took {took:?}");
    result
}

#[test]
fn ten_thousand_services_over_five_hundred_nodes() {
    for mode in [Mode::Nat, Mode::Dnat] {
        let document = large(mode);
        assert_eq!(timed("validation", || desired(&document, "k", &context())), []);
        assert_eq!(timed("warnings", || warnings(&document)), []);
    }
}

#[test]
fn ten_thousand_faults_over_five_hundred_nodes() {
    // One backend port for all, and every set's name misspelt for half of them.
    let mut document = large(Mode::Dnat);
    for (index, service) in document.services.iter_mut().enumerate() {
        service.target_port = Some(80);
        if index % 2 == 1 {
            service.set = Some(format!("al{index}"));
        }
    }
    let faults = timed("validation", || desired(&document, "k", &context()));
    assert_eq!(faults.len(), 4_999 + 5_000);
}

#[test]
fn named_ports_in_a_shared_set_do_not_multiply() {
    let mut document = large(Mode::Dnat);
    for (index, backend) in document.sets[0].backends.iter_mut().enumerate() {
        backend.port = Some(20_000 + u16::try_from(index).expect("500 backends"));
    }
    let faults = timed("validation", || desired(&document, "k", &context()));
    assert_eq!(faults.len(), 9_999, "each service but the first is in conflict, once");
}

#[test]
fn resolving_reads_names_once() {
    let document = large(Mode::Nat);
    let resolver = timed("the index", || Resolver::new(&document));
    let first: usize = timed("first backends", || {
        document.services.iter().filter(|service| resolver.backends_of(service).next().is_some()).count()
    });
    assert_eq!(first, 10_000);
}
