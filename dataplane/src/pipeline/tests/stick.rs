//! Session affinity: clients stick to nodes, across ports, changes, workers and restarts.

mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use penstock_configs::desired::{Affinity, Mode, Scheduler};

use super::fragments::split;
use super::*;
use crate::affinity::Choice;
use crate::handoff::Note;
use crate::io::mem::MemPeer;
use crate::persist::Store;
use crate::pipeline::PipelineConfig;
use crate::pipeline::testkit::{BACK, FRONT, Farm, FarmConfig, config, draining, look};
use crate::stats::WorkerStats;
use crate::tables::Compiler;
use crate::verdict::{DropReason, Verdict, WorkerId};
use crate::wire::sctp;

const ALT: &str = "203.0.113.10:8443/tcp";
const TO_ALT: &str = "203.0.113.10:8443";
const ALT6: &str = "[2001:db8:1::10]:8443/tcp";
const TO_ALT6: &str = "[2001:db8:1::10]:8443";
const NODES: [&str; 5] = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14", "10.0.0.15"];
const NODES6: [&str; 5] = ["fd00::11", "fd00::12", "fd00::13", "fd00::14", "fd00::15"];

fn shop() -> Affinity {
    Affinity { timeout: 600, group: Some("shop".into()), ..Affinity::client_ip() }
}

/// One group of TCP and UDP ports per family, each with node ports of its own; in turn, so that whoever does
/// not stick is sent elsewhere at once.
fn sticky() -> Plan {
    let mut plan = Plan::default();
    for (at, port) in [(WEB, 31443), (ALT, 31843), (DNS, 31053)] {
        let backends: Vec<String> = NODES.iter().map(|node| format!("{node}:{port}")).collect();
        plan.serve(at, &backends.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for (at, port) in [(WEB6, 31443), (ALT6, 31843), (DNS6, 31053)] {
        let backends: Vec<String> = NODES6.iter().map(|node| format!("[{node}]:{port}")).collect();
        plan.serve(at, &backends.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for service in &mut plan.services {
        service.affinity = Some(shop());
        service.scheduler = Scheduler::Rr;
    }
    plan.snat(SNAT, [1024, 65535]);
    plan.snat(SNAT6, [1024, 65535]);
    plan
}

/// The node a new flow goes to.
#[track_caller]
fn node(rig: &mut Rig, packet: &Pkt) -> IpAddr {
    rig.front(&packet.bytes()).to_node().dst.ip()
}

#[track_caller]
fn tcp(rig: &mut Rig, client: &str, vip: &str) -> IpAddr {
    node(rig, &Pkt::syn(client, vip))
}

/// `host:port`, however the host is written.
fn from(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

const FAMILIES: [(&str, [&str; 3]); 2] =
    [("198.51.100.7", [TO_WEB, TO_ALT, TO_DNS]), ("2001:db8:2::7", [TO_WEB6, TO_ALT6, TO_DNS6])];

#[test]
fn a_client_stays_with_its_node_on_every_port_of_the_group() {
    for (host, [web, alt, dns]) in FAMILIES {
        let mut rig = Rig::new(sticky());
        let first = tcp(&mut rig, &from(host, 5000), web);
        for port in 5001..5040 {
            assert_eq!(tcp(&mut rig, &from(host, port), web), first);
            assert_eq!(tcp(&mut rig, &from(host, port), alt), first, "another port of the group");
            assert_eq!(node(&mut rig, &Pkt::udp(&from(host, port), dns)), first, "another protocol");
        }
        // With its own node port on each.
        let alt_port = rig.front(&Pkt::syn(&from(host, 6000), alt).bytes()).to_node().dst.port();
        assert_eq!(alt_port, 31843);
        // Others go elsewhere.
        let others: BTreeSet<IpAddr> = (1..20)
            .map(|n| {
                tcp(
                    &mut rig,
                    &from(&host.replace(".7", &format!(".{}", 20 + n)).replace("::7", &format!("::a{n}")), 5000),
                    web,
                )
            })
            .collect();
        assert_eq!(others.len(), 5, "{others:?}");
        rig.check();
    }
}

#[test]
fn without_affinity_or_in_another_group_it_goes_elsewhere() {
    let mut plan = sticky();
    plan.service(WEB).affinity = None;
    plan.service(ALT).affinity = Some(Affinity { group: None, ..shop() });
    let mut rig = Rig::new(plan);
    let web: BTreeSet<IpAddr> = (0..10).map(|n| tcp(&mut rig, &from("198.51.100.7", 5000 + n), TO_WEB)).collect();
    assert_eq!(web.len(), 5, "in turn");
    let alt: BTreeSet<IpAddr> = (0..10).map(|n| tcp(&mut rig, &from("198.51.100.7", 5000 + n), TO_ALT)).collect();
    assert_eq!(alt.len(), 1);
    // Not what the other service knows.
    let clients = (1..40).map(|n| format!("198.51.100.{n}"));
    let apart = clients.filter(|host| {
        let alt = tcp(&mut rig, &from(host, 7000), TO_ALT);
        node(&mut rig, &Pkt::udp(&from(host, 7000), TO_DNS)) != alt
    });
    assert!(apart.count() > 0, "two groups agree on everybody");
}

/// Time counts from the last new flow, whatever the flows under way do.
#[test]
fn it_ends_with_time_since_the_last_new_flow() {
    for (host, [web, alt, _]) in FAMILIES {
        let mut rig = Rig::new(sticky());
        let first = tcp(&mut rig, &from(host, 5000), web);
        for turn in 0..3 {
            rig.wait(590);
            assert_eq!(tcp(&mut rig, &from(host, 5001 + turn), if turn == 1 { alt } else { web }), first);
        }
        rig.wait(601);
        assert_ne!(tcp(&mut rig, &from(host, 6000), web), first, "the next in turn");
        rig.wait(5000);
        rig.sweep();
        for _ in 0..200 {
            rig.now.ns += 100_000_000;
            rig.pipeline.upkeep(rig.now);
        }
        assert_eq!(rig.pipeline.stats().affinity_entries.get(), 0);
    }
}

/// As kube-proxy: who takes no new flows is left at once, and nobody goes back for it.
#[test]
fn a_node_that_takes_no_new_flows_is_left_for_good() {
    type Change = fn(&mut Plan, usize);
    let changes: [(&str, Change); 4] = [
        ("removed", |plan, at| plan.services.iter_mut().take(3).for_each(|service| drop(service.backends.remove(at)))),
        ("draining", |plan, at| plan.services.iter_mut().for_each(|service| draining(&mut service.backends[at]))),
        ("weight 0", |plan, at| plan.services.iter_mut().for_each(|service| service.backends[at].weight = 0)),
        ("down", |plan, at| plan.health(NODES[at], penstock_configs::desired::BackendState::Down)),
    ];
    for (name, change) in changes {
        let mut rig = Rig::new(sticky());
        let first = tcp(&mut rig, CLIENT, TO_WEB);
        let at = NODES.iter().position(|node| node.parse::<IpAddr>().unwrap() == first).unwrap();
        // A change elsewhere moves nobody.
        let bystander = (at + 1) % 5;
        rig.change(|plan| plan.services[0].backends[bystander].weight = 7);
        assert_eq!(tcp(&mut rig, &from("198.51.100.7", 5600), TO_WEB), first, "{name}");
        rig.change(|plan| change(plan, at));
        let second = tcp(&mut rig, &from("198.51.100.7", 5601), TO_WEB);
        assert_ne!(second, first, "{name}");
        assert_eq!(tcp(&mut rig, &from("198.51.100.7", 5602), TO_ALT), second, "{name}");
        rig.change(|plan| *plan = sticky());
        for port in 5603..5613 {
            assert_eq!(tcp(&mut rig, &from("198.51.100.7", port), TO_WEB), second, "{name}: it came back");
        }
    }
    // While it was away the client was, too: nothing was to be decided.
    let mut rig = Rig::new(sticky());
    let first = tcp(&mut rig, CLIENT, TO_WEB);
    rig.change(|plan| {
        plan.services.iter_mut().take(3).for_each(|service| service.backends.retain(|b| b.address != Some(first)));
    });
    rig.change(|plan| *plan = sticky());
    assert_eq!(tcp(&mut rig, &from("198.51.100.7", 5601), TO_WEB), first);
}

#[test]
fn no_backend_is_no_backend() {
    let mut rig = Rig::new(sticky());
    tcp(&mut rig, CLIENT, TO_WEB);
    rig.change(|plan| plan.service(WEB).backends.clear());
    rig.front(&Pkt::syn(&from("198.51.100.7", 5601), TO_WEB).bytes()).dropped(DropReason::NoBackend);
}

/// Established flows are left alone by the switch, both ways; what was known before is not believed after.
#[test]
fn a_live_switch_leaves_flows_alone() {
    let off = |plan: &mut Plan| plan.services.iter_mut().for_each(|service| service.affinity = None);
    let mut plan = sticky();
    off(&mut plan);
    let mut rig = Rig::new(plan);
    let before: Vec<Conn> = (0..8).map(|n| Conn::open(&mut rig, &from("198.51.100.7", 5000 + n), TO_WEB)).collect();
    assert!(before.iter().map(|conn| conn.at_node.dst).collect::<BTreeSet<_>>().len() == 5);
    rig.change(|plan| *plan = sticky());
    let stuck: Vec<Conn> = (0..8).map(|n| Conn::open(&mut rig, &from("198.51.100.7", 6000 + n), TO_WEB)).collect();
    assert!(stuck.iter().all(|conn| conn.at_node.dst == stuck[0].at_node.dst));
    for conn in before.iter().chain(&stuck) {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    rig.change(off);
    for conn in before.iter().chain(&stuck) {
        conn.to_node(&mut rig, TCP_ACK);
        conn.to_client(&mut rig, TCP_ACK);
    }
    let loose: BTreeSet<IpAddr> = (0..8).map(|n| tcp(&mut rig, &from("198.51.100.7", 7000 + n), TO_WEB)).collect();
    assert_eq!(loose.len(), 5);
    let again = |rig: &mut Rig, port| {
        rig.change(|plan| *plan = sticky());
        let node = tcp(rig, &from("198.51.100.7", port), TO_WEB);
        rig.change(off);
        node
    };
    let ages: BTreeSet<IpAddr> = (0..8).map(|n| again(&mut rig, 8000 + n)).collect();
    assert!(ages.len() > 1, "each time on is a beginning");
    rig.check();
}

/// A box that has forgotten, or another one, says the same of all a prefix's clients on all ports of the group, where
/// these are on one set of nodes.
#[test]
fn maglev_chooses_for_the_prefix_and_the_group() {
    let mut plan = sticky();
    for service in &mut plan.services {
        service.affinity = Some(Affinity { prefix_v4: 24, ..shop() });
        service.scheduler = Scheduler::Maglev;
        service.target_port = service.backends[0].port;
        service.backends.iter_mut().for_each(|backend| backend.port = None);
    }
    for n in 1..10 {
        let mut on_each = [(TO_WEB, 7), (TO_WEB, 8), (TO_ALT, 7)]
            .map(|(vip, host)| tcp(&mut Rig::new(plan.clone()), &from(&format!("198.51.{n}.{host}"), 5000), vip));
        on_each.sort_unstable();
        let by_udp = node(&mut Rig::new(plan.clone()), &Pkt::udp(&from(&format!("198.51.{n}.9"), 9), TO_DNS));
        assert_eq!((on_each[0], on_each[2]), (by_udp, by_udp), "prefix {n}");
    }
}

#[test]
fn clients_of_one_prefix_are_one() {
    let mut plan = sticky();
    for service in &mut plan.services {
        service.affinity = Some(Affinity { prefix_v4: 24, prefix_v6: 64, ..shop() });
    }
    let mut rig = Rig::new(plan);
    let first = tcp(&mut rig, "[2001:db8:2:1::7]:5000", TO_WEB6);
    let same: BTreeSet<IpAddr> =
        (1..30).map(|n| tcp(&mut rig, &format!("[2001:db8:2:1:{n:x}:{n}::9]:5000"), TO_ALT6)).collect();
    assert_eq!(same, BTreeSet::from([first]));
    let others: BTreeSet<IpAddr> =
        (2..30).map(|n| tcp(&mut rig, &format!("[2001:db8:2:{n:x}::7]:5000"), TO_WEB6)).collect();
    assert_eq!(others.len(), 5);
    let first = tcp(&mut rig, "198.51.100.7:5000", TO_WEB);
    assert!((1..30).all(|n| tcp(&mut rig, &format!("198.51.100.{n}:6000"), TO_WEB) == first));
    let others: BTreeSet<IpAddr> = (1..30).map(|n| tcp(&mut rig, &format!("198.51.{n}.7:5000"), TO_WEB)).collect();
    assert_eq!(others.len(), 5);
}

/// The scheduler's word counts once per client; with Maglev it is the client's own, whatever its port, so a
/// box that has forgotten says the same.
#[test]
fn every_scheduler_and_mode_sticks() {
    use Scheduler::{Dh, Lc, Maglev, Nq, RandomTwoChoices, Rr, Sed, Sh, Wlc, Wrr};
    for mode in [Mode::Nat, Mode::Dnat, Mode::Dsr] {
        for scheduler in [Maglev, Rr, Wrr, Lc, Wlc, Sh, Dh, Sed, Nq, RandomTwoChoices] {
            let mut plan = sticky();
            for service in &mut plan.services {
                (service.scheduler, service.mode) = (scheduler, mode);
                if mode == Mode::Dsr {
                    let port = service.port;
                    service.backends.iter_mut().for_each(|backend| backend.port = Some(port));
                }
                service.reply_check = false;
            }
            let mut rig = Rig::new(plan.clone());
            let way = |rig: &mut Rig, port| {
                let out = rig.front(&Pkt::syn(&from("198.51.100.7", port), TO_WEB).bytes());
                assert_eq!(out.verdict, Verdict::Tx(BACK), "{mode:?} {scheduler:?}");
                look(&out.bytes).unwrap().dmac
            };
            let first = way(&mut rig, 5000);
            assert!((5001..5020).all(|port| way(&mut rig, port) == first), "{mode:?} {scheduler:?}");
            if scheduler == Maglev {
                let mut fresh = Rig::new(plan);
                assert!((5001..5020).all(|port| way(&mut fresh, port) == first), "a box that knows nothing");
            }
        }
    }
}

#[test]
fn sctp_sticks_with_the_rest() {
    let mut plan = sticky();
    let nodes: Vec<String> = NODES.iter().map(|node| format!("{node}:31900")).collect();
    let service = plan.serve("203.0.113.10:3868/sctp", &nodes.iter().map(String::as_str).collect::<Vec<_>>());
    (service.affinity, service.scheduler) = (Some(shop()), Scheduler::Rr);
    let mut rig = Rig::new(plan);
    let first = tcp(&mut rig, CLIENT, TO_WEB);
    for port in 5000..5010 {
        let init =
            [&[sctp::INIT, 0, 0, 20, 0, 0, 0, port as u8 + 1][..], &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat();
        let init = Pkt::sctp(&from("198.51.100.7", port), "203.0.113.10:3868", 0, &init);
        assert_eq!(node(&mut rig, &init), first);
    }
}

/// In mode `nat` nodes see SNAT addresses: a node's own ClientIP affinity spreads and sticks because a client
/// keeps its address, whatever worker its flows belong to.
#[test]
fn a_client_keeps_its_snat_address_and_clients_spread() {
    let mut plan = sticky();
    for last in 2..=4 {
        plan.snat(&format!("10.0.0.{last}"), [1024, 65535]);
    }
    let mut rigs: Vec<Rig> = (0..2).map(|worker| Rig::with(plan.clone(), &config(worker, 2))).collect();
    let mut clients: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for n in 1..=200 {
        let host = format!("198.51.100.{n}");
        let mut seen = BTreeSet::new();
        for port in 5000..5010 {
            for rig in &mut rigs {
                seen.insert(decided(rig, &Pkt::syn(&from(&host, port), TO_WEB)).src.ip());
            }
        }
        assert_eq!(seen.len(), 1, "{host}");
        *clients.entry(*seen.first().unwrap()).or_default() += 1;
    }
    assert!(clients.len() == 4 && clients.values().all(|count| (25..75).contains(count)), "{clients:?}");
}

/// When its address has no port left towards a node, the client goes by another rather than nowhere.
#[test]
fn a_full_snat_address_gives_way() {
    let mut plan = sticky();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2009]);
    plan.snat("10.0.0.2", [2000, 2009]);
    let mut rig = Rig::new(plan);
    let addresses: Vec<IpAddr> = (0..15)
        .map(|n| rig.front(&Pkt::syn(&from("198.51.100.7", 5000 + n), TO_WEB).bytes()).to_node().src.ip())
        .collect();
    assert!(addresses[..10].iter().all(|address| *address == addresses[0]), "{addresses:?}");
    assert!(addresses[10..].iter().all(|address| *address != addresses[0]), "{addresses:?}");
}

/// A flow opened without asking another worker.
#[track_caller]
fn decided(rig: &mut Rig, packet: &Pkt) -> Seen {
    rig.pipeline.heed(Note::Advised(None));
    let seen = rig.handed(FRONT, &packet.bytes()).to_node();
    rig.pipeline.heed(Note::Flow);
    seen
}

/// What a restart leaves: flows say where their clients go, to the worker that is to know.
#[test]
fn clients_with_living_flows_stick_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let rigs = |plan: &Plan| -> Vec<Rig> {
        let over = |worker| {
            let (path, config) = (dir.path().join(format!("flows.{worker}")), config(worker, 2));
            Rig::over(plan.clone(), &config, Store::open(&path, config.shape(), [1; 16], [3, 4]).expect("a store"))
        };
        (0..2).map(over).collect()
    };
    let mut plan = sticky();
    let mut nodes = BTreeMap::new();
    let mut before = rigs(&plan);
    for n in 1..=100_u16 {
        for (host, vip) in [(format!("198.51.100.{n}"), TO_WEB), (format!("2001:db8:2::{n:x}"), TO_WEB6)] {
            let rig = &mut before[usize::from(n % 2)];
            let client = from(&host, 5000);
            let conn = Conn { at_node: decided(rig, &Pkt::syn(&client, vip)), client, vip: vip.into() };
            rig.handed(BACK, &conn.reply(TCP_SYN | TCP_ACK).bytes()).to_client();
            rig.handed(FRONT, &conn.request(TCP_ACK).bytes()).to_node();
            nodes.insert(host, conn.at_node.dst.ip());
        }
    }
    // A SYN nobody answered says nothing.
    decided(&mut before[0], &Pkt::syn("198.51.100.200:5000", TO_WEB));
    let now = before[0].now;
    drop(before);
    // Whoever is not remembered goes to one node now.
    plan.services.iter_mut().for_each(|service| service.scheduler = Scheduler::Dh);
    let mut after = rigs(&plan);
    let mut recalled = Vec::new();
    for rig in &after {
        let tables = plan.compile(&mut Compiler::default()).expect("tables");
        rig.pipeline.recall(&tables, |one| recalled.push(one));
    }
    assert_eq!(recalled.len(), 200);
    for one in &recalled {
        after[usize::from(one.worker.0)].pipeline.take_up(one, now);
    }
    for (host, node) in &nodes {
        let (vip, client) = (if host.contains(':') { TO_ALT6 } else { TO_ALT }, from(host, 6000));
        let syn = Pkt::syn(&client, vip).bytes();
        let advice: Vec<_> = after.iter_mut().filter_map(|rig| rig.pipeline.advise(&syn, now)).collect();
        assert!(advice.len() == 1 && advice[0].node == *node, "{host} to {node}: {advice:?}");
    }
    let spread = nodes.values().collect::<BTreeSet<_>>().len();
    assert_eq!(spread, 10, "five nodes of each family");
}
