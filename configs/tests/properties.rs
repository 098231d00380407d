//! Whatever the text: no panic, faults that say where they are, and documents that survive a round trip.
//!
//! Seeds are fixed, so a failure is found again; what one finds becomes a named test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use penstock_configs::desired::{
    Affinity, Announce, Backend, BackendSet, BackendState, Desired, Mode, NoBackend, Node, OnIdle, Protocol, Scheduler,
    Service, ServiceTimeouts,
};
use penstock_configs::file::SnatAddress;
use penstock_configs::source::{self, Lines};
use penstock_configs::validate::{self, BoxContext};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, RngSeed, TestRng};

const EXAMPLES: [&str; 6] = [
    include_str!("../examples/one-arm.toml"),
    include_str!("../examples/two-arm.toml"),
    include_str!("../examples/dual-stack.toml"),
    include_str!("../examples/dnat.toml"),
    include_str!("../examples/dsr.toml"),
    include_str!("../examples/every-option.toml"),
];

/// Parses; every fault has words, and a line of the text, which is that of its path.
fn examine(text: &str) {
    let Err(faults) = source::parse(text, "x.toml") else { return };
    assert!(!faults.list.is_empty(), "refused without a fault");
    let last = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let lines = Lines::of_text(text);
    for fault in &faults.list {
        let line = fault.line.unwrap_or_else(|| panic!("no line: {fault}"));
        assert!((1..=last).contains(&line), "line {line} of {last}: {fault}");
        assert!(!fault.problem.is_empty() && !fault.remedy.is_empty(), "{fault:?}");
        assert!((1..=last).contains(&lines.line(&fault.path)), "{fault}");
    }
    assert_eq!(faults.to_string().lines().count(), faults.list.len(), "a fault of several lines:\n{faults}");
    assert_eq!(source::parse(text, "x.toml"), Err(faults), "not the same twice");
}

struct Dice(TestRng);

impl Dice {
    fn new(seed: u8) -> Self {
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.next_u64() % bound.max(1) as u64).expect("below a usize")
    }
}

/// Bytes flipped, cut out, doubled and put in; what is no longer UTF-8 is replaced.
#[test]
fn mutated_bytes_never_panic() {
    const TOKENS: [&str; 14] =
        ["[[", "]]", "\"", "'''", "=", "{", "}", "\\u0000", "\u{202e}", "\r\n", "\n[[service]]\n", "-1", "1e9", "."];
    for (seed, example) in (0u8..).zip(EXAMPLES) {
        let mut dice = Dice::new(seed);
        for _ in 0..300 {
            let mut bytes = example.as_bytes().to_vec();
            for _ in 0..=dice.below(4) {
                let at = dice.below(bytes.len());
                let end = (at + 1 + dice.below(40)).min(bytes.len());
                match dice.below(4) {
                    0 => bytes[at] ^= 1 << dice.below(8),
                    1 => drop(bytes.drain(at..end)),
                    2 => {
                        let copy = bytes[at..end].to_vec();
                        bytes.splice(at..at, copy);
                    }
                    _ => drop(bytes.splice(at..at, TOKENS[dice.below(TOKENS.len())].bytes())),
                }
            }
            examine(&String::from_utf8_lossy(&bytes));
        }
    }
}

/// Values exchanged and keys misspelt: most of these are TOML, so the faults are of form and meaning.
#[test]
fn mutated_settings_never_panic_and_are_mostly_named() {
    const VALUES: [&str; 16] = [
        "true",
        "-1",
        "0",
        "65536",
        "\"\"",
        "\"x\"",
        "[]",
        "{}",
        "[[]]",
        "[{}]",
        "\"127.0.0.1\"",
        "\"10.0.0.1/8\"",
        "1979-05-27",
        "1.5",
        "[1, 2]",
        "{ name = \"\\\"] .\\\\\" }",
    ];
    let mut named = 0;
    for (seed, example) in (100u8..).zip(EXAMPLES) {
        let mut dice = Dice::new(seed);
        for _ in 0..300 {
            let mut lines: Vec<String> = example.lines().map(str::to_owned).collect();
            for _ in 0..=dice.below(3) {
                let settings: Vec<usize> = (0..lines.len())
                    .filter(|index| lines[*index].contains(" = ") && !lines[*index].starts_with(['#', ' ']))
                    .collect();
                let line = &mut lines[settings[dice.below(settings.len())]];
                let (key, value) = line.split_once(" = ").expect("a setting");
                *line = match dice.below(4) {
                    0 => format!("{}x = {value}", &key[..key.len() - 1]),
                    1 => format!("# {line}"),
                    _ => format!("{key} = {}", VALUES[dice.below(VALUES.len())]),
                };
            }
            let text = lines.join("\n");
            examine(&text);
            named += usize::from(source::parse(&text, "x").is_err());
        }
    }
    assert!(named > 700, "only {named} of 1500 mutants were at fault: the mutations are too mild");
}

#[test]
fn mutated_snapshots_never_panic() {
    let file: penstock_configs::file::ConfigFile = toml::from_str(EXAMPLES[4]).expect("the example");
    let json = serde_json::to_vec(&file.desired(1)).expect("JSON");
    let context = BoxContext::new(&file, None);
    source::snapshot(&json, "k8s", &context).expect("good on the wire too");
    let mut dice = Dice::new(200);
    for _ in 0..1500 {
        let mut bytes = json.clone();
        for _ in 0..=dice.below(3) {
            let at = dice.below(bytes.len());
            match dice.below(3) {
                0 => bytes[at] ^= 1 << dice.below(8),
                1 => drop(bytes.drain(at..(at + 1 + dice.below(9)).min(bytes.len()))),
                _ => bytes.insert(at, b"\"{}[]:,0-"[dice.below(9)]),
            }
        }
        if let Err(faults) = source::snapshot(&bytes, "k8s", &context) {
            assert!(!faults.list.is_empty());
        }
    }
}

fn timeouts() -> impl Strategy<Value = ServiceTimeouts> {
    let seconds = || prop::option::of(1u32..2_592_000);
    let tcp = (seconds(), seconds(), seconds(), seconds(), seconds());
    (tcp, seconds(), seconds(), seconds()).prop_map(
        |((tcp_syn, tcp_established, tcp_fin, tcp_time_wait, tcp_rst), udp_one_way, udp, sctp_established)| {
            ServiceTimeouts {
                tcp_syn,
                tcp_established,
                tcp_fin,
                tcp_time_wait,
                tcp_rst,
                udp_one_way,
                udp,
                sctp_established,
            }
        },
    )
}

fn range() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| (IpAddr::V4(Ipv4Addr::from(bits)), len));
    let v6 = (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| (IpAddr::V6(Ipv6Addr::from(bits)), len));
    prop_oneof![v4, v6].prop_map(|(address, len)| IpNet::new(address, len).expect("a length in bounds").trunc())
}

/// A backend of node `node`, with a port, so that it fits every service.
fn backends(nodes: usize) -> impl Strategy<Value = Vec<Backend>> {
    let state = prop_oneof![Just(BackendState::Active), Just(BackendState::Draining), Just(BackendState::Down)];
    let one = (0..nodes, 1u16.., any::<u16>(), state).prop_map(|(node, port, weight, state)| Backend {
        node: Some(format!("node-{node}")),
        address: None,
        port: Some(port),
        weight,
        state,
    });
    prop::collection::vec(one, 1..6).prop_map(|mut list| {
        let mut seen = std::collections::HashSet::new();
        list.retain(|backend| seen.insert((backend.node.clone(), backend.port)));
        list
    })
}

/// Documents that keep every rule: VIPs, nodes and SNAT addresses from ranges of their own.
fn desired() -> impl Strategy<Value = Desired> {
    const NODES: usize = 4;
    let service = (
        (any::<bool>(), any::<bool>(), prop::option::of(any::<bool>()), prop::option::of(0usize..2)),
        (prop::option::of(1u16..), prop::collection::vec(range(), 0..3), prop::option::of(timeouts()), backends(NODES)),
    );
    let services = prop::collection::vec(service, 0..6);
    (any::<u32>(), prop::option::of(any::<u32>()), backends(NODES), backends(NODES), services).prop_map(
        |(generation, term, first, second, services)| {
            let node = |index: u16| Node {
                name: format!("node-{index}"),
                addresses: vec![
                    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1 + u8::try_from(index).expect("few nodes"))),
                    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1 + index)),
                ],
            };
            let set = |(index, backends)| BackendSet { name: format!("set/{index}"), backends };
            let service = |(index, (head, tail)): (u16, (_, _))| {
                let (v4, udp, announce, set): (bool, bool, Option<bool>, Option<usize>) = head;
                let (target_port, source_ranges, timeouts, inline) = tail;
                Service {
                    name: format!("ns/service-{index}:http"),
                    vip: if v4 {
                        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))
                    } else {
                        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))
                    },
                    port: 1000 + index,
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                    mode: Mode::Nat,
                    scheduler: Scheduler::Maglev,
                    backends: if set.is_some() { Vec::new() } else { inline },
                    set: set.map(|index| format!("set/{index}")),
                    target_port,
                    reply_check: true,
                    source_ranges,
                    limits: None,
                    announce: announce.map(|l2| if l2 { Announce::L2 } else { Announce::None }),
                    on_idle: if udp { OnIdle::Forget } else { OnIdle::Reset },
                    no_backend: if v4 { NoBackend::Reject } else { NoBackend::Drop },
                    timeouts,
                    on_down: Default::default(),
                    slow_start: None,
                    panic_threshold: None,
                    affinity: (!udp).then(|| Affinity { group: (!v4).then(|| "shop".into()), ..Affinity::client_ip() }),
                }
            };
            Desired {
                generation: generation.into(),
                term: term.map(u64::from),
                nodes: (0..4).map(node).collect(),
                sets: [first, second].into_iter().enumerate().map(set).collect(),
                services: (0u16..).zip(services).map(service).collect(),
            }
        },
    )
}

fn context() -> BoxContext {
    let snat =
        |text: &str| SnatAddress { address: text.parse().expect("address"), ports: [1024, 65_535], shared: false };
    BoxContext { snat: vec![snat("10.9.9.9"), snat("fd00::99")], ..BoxContext::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,200}") {
        examine(&text);
    }

    /// Text in the shape of settings: deeper into the parser than noise gets.
    #[test]
    fn any_settings_are_parsed_or_refused(text in "((\\[\\[?(port|service|box|node)\\]?\\]|[a-z_.\"]{1,9} = [-0-9a-z\"\\[\\]{},=. ]{0,20}|#.*)\n){0,12}") {
        examine(&text);
    }

    #[test]
    fn a_good_document_is_good_and_survives_both_forms(desired in desired()) {
        prop_assert_eq!(validate::desired(&desired, "k8s", &context()), vec![]);
        let json = serde_json::to_string(&desired).expect("JSON");
        prop_assert_eq!(&source::snapshot(json.as_bytes(), "k8s", &context()).expect("the same"), &desired);
        let text = toml::to_string(&desired).expect("TOML");
        prop_assert_eq!(&toml::from_str::<Desired>(&text).expect("the same"), &desired);
    }

    /// The form on the wire and in the file have the same paths for the same faults.
    #[test]
    fn a_spoilt_document_has_the_same_faults_in_both_forms(mut desired in desired(), port in 0u16..2) {
        for service in &mut desired.services {
            service.port = port;
            service.set = service.set.as_ref().map(|name| format!("{name}x"));
        }
        let faults = validate::desired(&desired, "k8s", &context());
        let json = serde_json::to_vec(&desired).expect("JSON");
        let wire = source::snapshot(&json, "k8s", &context()).err().map(|faults| faults.list).unwrap_or_default();
        prop_assert_eq!(wire, faults);
    }
}
