//! `kill -9` at random instants of churn: a child process (this test binary again) works on a flow
//! table, the parent kills it, takes the table up, and finds every connection the child had reported
//! established, on the tuple it had. No privileges needed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use penstock_dataplane::clock::Now;
use penstock_dataplane::persist::Store;
use penstock_dataplane::pipeline::testkit::{Pkt, Plan, Rig, config, valid};
use penstock_dataplane::verdict::Verdict;
use penstock_dataplane::wire::{TCP_ACK, TCP_FIN, TCP_SYN};

const CHILD: &str = "PENSTOCK_KILL_TEST_DIR";
const ROUNDS: u32 = 1000;
/// Connections a child keeps open before it closes the oldest.
const OPEN: usize = 60;
const VIP: &str = "203.0.113.10:443";

fn plan() -> Plan {
    let mut plan = Plan { maglev_max: 251, ..Plan::default() };
    plan.serve("203.0.113.10:443/tcp", &["10.0.0.11:31443", "10.0.0.12:31443", "10.0.0.13:31443"]);
    // Few ports, so that they are used again soon.
    plan.snat("10.0.0.1", [2000, 2199]);
    plan.snat("10.0.0.2", [2000, 2199]);
    plan.timeouts.tcp_time_wait = 1;
    plan.timeouts.tcp_syn = 1;
    plan
}

fn open(dir: &Path) -> Rig {
    let config = config(0, 1);
    let store = Store::open(&dir.join("flows"), config.shape(), [1; 16], [5, 6]).expect("the store");
    assert_eq!(store.discarded, None);
    let mut rig = Rig::over(plan(), &config, store);
    rig.now = Now::read();
    rig
}

fn client(n: u32) -> String {
    format!("198.51.{}.{}:{}", n / 200 % 250, n % 200 + 1, 1024 + n % 60_000)
}

/// A client's packet. Clients are behind a few routers: a box knows some thousands of last hops, not more.
fn from_client(n: u32, flags: u8) -> Vec<u8> {
    Pkt::tcp(&client(n), VIP, flags).with(|pkt| pkt.smac = [2, 0xcc, 0, 0, 0, n as u8 % 16]).bytes()
}

/// The connections the log says are open: client number and the tuple at the node.
fn open_flows(dir: &Path) -> (BTreeMap<u32, String>, u32) {
    let mut flows = BTreeMap::new();
    let mut last = 0;
    let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    // A line cut off by the kill was not reported.
    for line in log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let mut words = line.split(' ');
        let kind = words.next();
        let Some(n) = words.next().and_then(|n| n.parse().ok()) else { panic!("log line {line:?}") };
        last = last.max(n);
        match kind {
            Some("open") => drop(flows.insert(n, words.collect::<Vec<_>>().join(" "))),
            // Said before it is done: from here on the flow may go.
            Some("close") => drop(flows.remove(&n)),
            _ => {}
        }
    }
    (flows, last)
}

fn report(log: &mut File, line: &str) {
    log.write_all(line.as_bytes()).expect("the log");
}

/// One connection: handshake, data, its report.
fn connect(rig: &mut Rig, log: &mut File, n: u32) -> Option<String> {
    let out = rig.front(&from_client(n, TCP_SYN));
    let Verdict::Tx(_) = out.verdict else { return None };
    let there = valid(&out.bytes);
    rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes());
    rig.front(&from_client(n, TCP_ACK)).to_node();
    let tuple = format!("{} {}", there.src, there.dst);
    report(log, &format!("open {n} {tuple}\n"));
    Some(tuple)
}

fn disconnect(rig: &mut Rig, log: &mut File, n: u32, tuple: &str) {
    report(log, &format!("close {n}\n"));
    let (src, dst) = tuple.split_once(' ').expect("two addresses");
    rig.front(&from_client(n, TCP_FIN | TCP_ACK));
    rig.back(&Pkt::tcp(dst, src, TCP_FIN | TCP_ACK).bytes());
}

/// Not a test by itself: what the child does until it is killed.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let dir = Path::new(&dir);
    let (mut flows, last) = open_flows(dir);
    let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log")).expect("the log");
    let mut rig = open(dir);
    println!("\nready");
    let begun = Instant::now();
    let mut n = last;
    // The parent may be gone.
    while begun.elapsed() < Duration::from_secs(20) {
        n += 1;
        rig.now = Now::read();
        // A SYN that leads to nothing between two that do.
        rig.front(&from_client(n + 30_000, TCP_SYN));
        if let Some(tuple) = connect(&mut rig, &mut log, n) {
            flows.insert(n, tuple);
        }
        if flows.len() > OPEN
            && let Some((oldest, tuple)) = flows.pop_first()
        {
            disconnect(&mut rig, &mut log, oldest, &tuple);
        }
        if n.is_multiple_of(50) {
            // The owner changes its mind: records are revalidated, SNAT lists rewritten.
            rig.apply();
        }
        rig.pipeline.upkeep(rig.now);
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts")
}

fn await_ready(child: &mut Child) {
    let out = child.stdout.take().expect("piped");
    let ready = BufReader::new(out).lines().any(|line| line.is_ok_and(|line| line == "ready"));
    assert!(ready, "the child ended before it was ready");
}

/// Takes the table up as the next process would, and looks for every reported connection.
fn examine(dir: &Path, round: u32) -> usize {
    let (flows, last) = open_flows(dir);
    let mut rig = open(dir);
    rig.pipeline.check_invariants().unwrap_or_else(|problem| panic!("round {round}: {problem}"));
    for (n, tuple) in &flows {
        let seen = rig.front(&from_client(*n, TCP_ACK));
        assert!(matches!(seen.verdict, Verdict::Tx(_)), "round {round}: connection {n} is lost: {:?}", seen.verdict);
        let seen = valid(&seen.bytes);
        assert_eq!(&format!("{} {}", seen.src, seen.dst), tuple, "round {round}: connection {n} has another tuple");
        let back = rig.back(&Pkt::answer(&seen, TCP_ACK).bytes()).to_client();
        assert_eq!((back.src.to_string(), back.dst.to_string()), (VIP.into(), client(*n)), "round {round}");
    }
    rig.check();
    // A log as short as what it says.
    let mut short = format!("last {last}\n");
    flows.iter().for_each(|(n, tuple)| short += &format!("open {n} {tuple}\n"));
    std::fs::write(dir.join("log"), short).expect("the log");
    flows.len()
}

#[test]
fn a_thousand_kills() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let begun = Instant::now();
    let mut random = 0x5eed_u64;
    let mut found = 0;
    for round in 0..ROUNDS {
        let mut child = spawn(dir.path());
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // One in eight dies while it starts and takes the table up.
        if round % 8 != 0 {
            await_ready(&mut child);
        }
        std::thread::sleep(Duration::from_micros(random >> 32 & 0xfff));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        found += examine(dir.path(), round);
    }
    let (_, connections) = open_flows(dir.path());
    println!("{ROUNDS} kills in {:.1?}: {connections} connections made, {found} looked for", begun.elapsed());
    assert!(connections > ROUNDS && found > 10 * ROUNDS as usize, "{connections} connections, {found} looked for");
}
