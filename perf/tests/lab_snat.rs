//! SNAT ports used up on purpose: the warning before it happens, a named drop when it does, nobody else hurt, and
//! the remedies: waiting, and one more address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use penstock_configs::desired::ServiceTimeouts;
use penstock_configs::file::SnatAddress;
use penstock_configs::status::{SnatStatus, Status};
use penstock_perf::clients::hold::Hold;
use penstock_perf::clients::http;
use penstock_perf::config::NODE_PORT;
use penstock_perf::lab::{Lab, plan};
use penstock_perf::privilege;
use penstock_perf::rig::Rig;

const PORTS: [u16; 2] = [40_000, 40_063];
const PATIENCE: Duration = Duration::from_secs(30);

/// The box scans its flows about once a second.
fn wait_for(rig: &Rig, what: &str, mut holds: impl FnMut(&Status) -> bool) -> Status {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = rig.dataplane.status().expect("a status");
        if holds(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: {:#?} {:#?}", status.snat, status.notices);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn warnings(status: &Status) -> Vec<&String> {
    status.notices.iter().filter(|notice| notice.starts_with("SNAT ports towards")).collect()
}

fn used(status: &Status) -> u64 {
    status.snat.iter().map(|pair| pair.used).sum()
}

fn fullest(status: &Status) -> &SnatStatus {
    status.snat.first().expect("a pair")
}

fn exhausted(rig: &Rig) -> u64 {
    let counters = rig.dataplane.counters().expect("counters");
    counters.total.drops.get("snat_exhausted").copied().unwrap_or_default()
}

/// One node and 64 ports over two workers.
fn small() -> Rig {
    Rig::start(Lab::builder(), |config| {
        config.snat.retain(|snat| snat.address.is_ipv4());
        config.snat[0].ports = PORTS;
        config.services.retain(|service| service.vip.is_ipv4());
        config.sets[0].backends.truncate(1);
        config.timeouts.tcp_time_wait = 8;
        config.timeouts.tcp_syn = 3;
        config.timeouts.tcp_rst = 2;
    })
    .expect("a lab with a dataplane")
}

#[test]
fn privileged_snat_exhaustion_is_seen_before_it_happens() {
    if !privilege::require("privileged_snat_exhaustion_is_seen_before_it_happens") {
        return;
    }
    let mut rig = small();
    let node = SocketAddr::new(rig.lab.nodes[0].addr.ip(false), NODE_PORT);
    // Few enough that no worker with its 32 is near its end, however the hash of clients deals them out.
    let first = Hold::open(rig.client(), rig.vip(false), 30).expect("30 of 64");
    let status = wait_for(&rig, "ports are counted", |status| used(status) >= 30);
    let pair = fullest(&status);
    assert_eq!((pair.address, pair.backend, pair.capacity), (plan::snat().v4.into(), node, 64));
    assert!(warnings(&status).is_empty(), "{:?}", status.notices);

    // The hash of clients deals flows out unevenly: fill until the fullest worker is near its end.
    let mut held = vec![first];
    let warned = loop {
        held.push(Hold::open(rig.client(), rig.vip(false), 3).expect("there is room"));
        let opened: usize = held.iter().map(|hold| hold.first.len()).sum();
        let status = wait_for(&rig, "all are counted", |status| used(status) >= opened as u64);
        if fullest(&status).occupancy >= 0.8 {
            break wait_for(&rig, "a warning", |status| !warnings(status).is_empty());
        }
    };
    assert!(fullest(&warned).occupancy < 1.0, "warned before it happens: {:?}", warned.snat);
    assert_eq!(exhausted(&rig), 0, "nobody was refused before the warning");
    let text = warnings(&warned)[0];
    assert!(text.contains(&node.to_string()) && text.contains("add a [[snat]] address"), "{text}");

    // Beyond: refused by name; whoever has a port keeps it.
    let mut more_clients = Vec::new();
    wait_for(&rig, "no port is left", |_| {
        more_clients.extend(rig.client().run(|| connect_many(rig.vip(false), 80)));
        exhausted(&rig) > 0
    });
    assert!(more_clients.len() < 64, "{} more over 64 ports", more_clients.len());
    for hold in &held {
        for answer in hold.ask_all(PATIENCE).expect("answers") {
            answer.outcome.expect("established flows are unharmed");
        }
    }
    let full = wait_for(&rig, "full", |status| fullest(status).occupancy >= 0.95);
    assert_eq!(fullest(&full).capacity, 64);

    // One more address, by reload: new flows at once, and the old ones keep theirs.
    let before = flows(&rig);
    let more: IpAddr = second().into();
    rig.reconfigure(|config| {
        config.snat.push(SnatAddress { address: more, ports: PORTS, shared: false });
        // A change that the reload can be told by: the services' own snapshot is else the same.
        config.services[0].timeouts =
            Some(ServiceTimeouts { tcp_established: Some(7000), ..ServiceTimeouts::default() });
    })
    .expect("reloaded");
    let new = Hold::open(rig.client(), rig.vip(false), 10).expect("new flows work at once");
    new.first.iter().for_each(|held| drop(held.outcome.clone().expect("an answer")));
    let after = flows(&rig);
    for hold in held.iter().flat_map(|hold| &hold.first) {
        assert_eq!(before.get(&hold.local), after.get(&hold.local), "{} keeps its address and port", hold.local);
    }
    assert!(after.values().any(|snat| snat.ip() == more), "{after:?}");
    for hold in &held {
        hold.ask_all(PATIENCE).expect("answers").into_iter().for_each(|held| drop(held.outcome.expect("unharmed")));
    }
    let status = wait_for(&rig, "the warning ends", |status| warnings(status).is_empty());
    assert!(status.snat.iter().any(|pair| pair.address == more));
    drop(new);

    // Closed, they rest, and then all is free.
    drop((held, more_clients));
    wait_for(&rig, "resting ports are told apart", |status| status.snat.iter().any(|pair| pair.resting > 0));
    wait_for(&rig, "ports come free", |status| used(status) <= 12);
    rig.settle().expect("the ledger balances");
    rig.stop().expect("a clean stop");
}

/// Three short connections per port within the time one rests: early reuse (RFC 6191) lets none fail.
#[test]
fn privileged_snat_ports_wrap_around_without_a_failed_connection() {
    if !privilege::require("privileged_snat_ports_wrap_around_without_a_failed_connection") {
        return;
    }
    let rig = Rig::start(Lab::builder(), |config| {
        config.snat[0].ports = [40_000, 40_255];
        config.sets[0].backends.truncate(1);
        config.services.retain(|service| service.vip.is_ipv4());
    })
    .expect("a lab with a dataplane");
    let tally = http::Volley::new(rig.vip(false), 800).run(rig.client(), |_| {});
    assert_eq!((tally.answered(), tally.failed()), (800, 0), "{tally:?}");
    assert_eq!(exhausted(&rig), 0);
    let status = wait_for(&rig, "all ports rest", |status| status.snat.first().is_some_and(|pair| pair.resting > 200));
    assert!(fullest(&status).used <= fullest(&status).capacity);
    rig.settle().expect("the ledger balances");
}

fn second() -> Ipv4Addr {
    let first = plan::snat().v4;
    Ipv4Addr::from(u32::from(first) + 1)
}

/// All at once; those that connect within one SYN's time.
fn connect_many(target: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = || TcpStream::connect_timeout(&target, Duration::from_millis(500)).ok();
    std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..count).map(|_| scope.spawn(connect)).collect();
        attempts.into_iter().filter_map(|attempt| attempt.join().ok().flatten()).collect()
    })
}

/// SNAT address and port by client.
fn flows(rig: &Rig) -> std::collections::HashMap<SocketAddr, SocketAddr> {
    let flows = rig.dataplane.flows().expect("flows");
    let seen: HashSet<_> = flows.iter().filter_map(|flow| flow.snat).collect();
    assert_eq!(seen.len(), flows.len(), "no port is given out twice towards one backend");
    flows.into_iter().filter_map(|flow| Some((flow.client, flow.snat?))).collect()
}
