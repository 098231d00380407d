//! The board with a fake clock, the probes against real listeners, and the loop with both.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::BackendHealth;
use penstock_configs::desired::BackendState::{self, Active, Down, Draining};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::board::{Board, Kind, Launch, Outcome, Rules};
use super::probe::probe;
use super::run;
use crate::config::HealthConfig;
use crate::probe::{self as seam, Check, ProbeTarget, Timing};

const INTERVAL: Duration = Duration::from_secs(2);
const RULES: Rules = Rules { budget: 1_000, panic_threshold: 0.0 };

fn target(id: &str, last: u8, group: &str) -> ProbeTarget {
    ProbeTarget {
        id: id.into(),
        address: Ipv4Addr::new(10, 0, 0, last).into(),
        check: Check::Tcp { port: 80 },
        timing: Timing { interval: INTERVAL, timeout: Duration::from_secs(1), rise: 2, fall: 3 },
        covers: vec![None],
        group: group.into(),
        unproven: true,
    }
}

/// A board with a clock that jumps from probe to probe.
struct Bench {
    board: Board,
    now: Duration,
}

impl Bench {
    fn new(rules: Rules, targets: &[ProbeTarget]) -> Self {
        let mut board = Board::new(rules, 7);
        board.set_targets(targets, Duration::ZERO);
        Self { board, now: Duration::ZERO }
    }

    fn launch(&mut self) -> Vec<Launch> {
        self.now = self.now.max(self.board.next_due().unwrap());
        self.board.due(self.now)
    }

    /// One round: as many are asked as there are targets, and `answer` says what each answers.
    fn round(&mut self, answer: impl Fn(&str) -> Kind) {
        let mut left = self.board.len();
        while left > 0 {
            for launch in self.launch() {
                let outcome = Outcome { kind: answer(&launch.id), reason: format!("{:?}", answer(&launch.id)) };
                self.board.finish(&launch, outcome, self.now);
                left = left.saturating_sub(1);
            }
        }
    }

    fn rounds(&mut self, kinds: &[Kind]) {
        for kind in kinds {
            self.round(|_| *kind);
        }
    }

    fn state(&self, id: &str) -> BackendState {
        self.board.view().targets[id].state
    }

    fn overlay(&self) -> Vec<(IpAddr, Option<u16>, BackendState)> {
        self.board.view().backends.into_iter().map(|b| (b.address, b.port, b.state)).collect()
    }
}

use Kind::{Bad, Drain, Good};

#[test]
fn rise_and_fall_count_consecutive_results() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad, Good, Bad, Bad]);
    assert_eq!(bench.state("a"), Active);
    bench.rounds(&[Bad]);
    assert_eq!(bench.state("a"), Down);
    bench.rounds(&[Good, Bad, Good]);
    assert_eq!(bench.state("a"), Down);
    bench.rounds(&[Good]);
    assert_eq!(bench.state("a"), Active);
}

#[test]
fn a_503_drains_and_refused_is_down() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Drain, Drain, Drain]);
    assert_eq!(bench.state("a"), Draining);
    bench.rounds(&[Bad, Bad]);
    assert_eq!(bench.state("a"), Draining);
    bench.rounds(&[Bad]);
    assert_eq!(bench.state("a"), Down);
    bench.rounds(&[Drain, Drain, Drain]);
    assert_eq!(bench.state("a"), Draining);
    bench.rounds(&[Good, Good]);
    assert_eq!(bench.state("a"), Active);
    // Of mixed trouble the last word counts.
    bench.rounds(&[Drain, Bad, Drain]);
    assert_eq!(bench.state("a"), Draining);
}

#[test]
fn the_first_assumption_is_in_service_and_not_settled() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g"), target("b", 2, "g")]);
    let settled = |bench: &Bench, id: &str| bench.board.view().targets[id].settled;
    assert!(!settled(&bench, "a") && bench.overlay().is_empty());
    bench.round(|id| if id == "a" { Good } else { Bad });
    assert!(settled(&bench, "a") && !settled(&bench, "b"));
}

#[test]
fn who_joins_others_that_serve_is_proven_first() {
    let names = ["a", "b", "c", "d"];
    let of = |count: usize| -> Vec<ProbeTarget> {
        names[..count].iter().zip(1..).map(|(name, last)| target(name, last, "g")).collect()
    };
    let mut bench = Bench::new(Rules { budget: 1_000, panic_threshold: 0.5 }, &of(1));
    // Nobody has been judged yet.
    bench.board.set_targets(&of(2), bench.now);
    assert!(bench.overlay().is_empty());
    bench.rounds(&[Good, Good]);
    // More join than there are; their first words are awaited all the same.
    bench.board.set_targets(&of(4), bench.now);
    let mut one = of(4);
    one[1].check = Check::Tcp { port: 81 };
    bench.board.set_targets(&one, bench.now);
    assert_eq!((bench.state("b"), bench.state("c"), bench.state("d")), (Active, Draining, Draining));
    assert!(bench.board.view().panicking.is_empty());
    assert_eq!(bench.overlay().len(), 2);
    let now = bench.now;
    while bench.state("c") == Draining || bench.state("d") == Draining {
        for launch in bench.launch() {
            let kind = if &*launch.id == "d" { Bad } else { Good };
            bench.board.finish(&launch, Outcome { kind, reason: String::new() }, bench.now);
        }
    }
    assert_eq!((bench.state("c"), bench.state("d")), (Active, Down));
    assert!(bench.now - now < INTERVAL, "{:?}", bench.now - now);
}

#[test]
fn who_joins_a_group_where_nobody_serves_is_used_at_once() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad, Bad]);
    bench.board.set_targets(&[target("a", 1, "g"), target("b", 2, "g")], bench.now);
    assert_eq!((bench.state("a"), bench.state("b")), (Down, Active));
    // And of whom somebody has said that it serves.
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Good, Good]);
    let known = ProbeTarget { unproven: false, ..target("b", 2, "g") };
    bench.board.set_targets(&[target("a", 1, "g"), known], bench.now);
    assert_eq!(bench.state("b"), Active);
}

#[test]
fn unchanged_targets_keep_their_state_and_their_streak() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad]);
    let now = bench.now;
    assert!(!bench.board.set_targets(&[target("a", 1, "g")], now));
    assert!(bench.board.set_targets(&[target("a", 1, "g"), target("b", 2, "g")], now));
    let mut moved = target("a", 1, "other");
    moved.covers = vec![Some(31_000)];
    assert!(bench.board.set_targets(&[moved, target("b", 2, "g")], now));
    bench.round(|id| if id == "a" { Bad } else { Good });
    // b, being new, was asked with it; a had two bad results before.
    while bench.state("a") == Active {
        bench.round(|id| if id == "a" { Bad } else { Good });
        assert!(bench.now < INTERVAL * 2, "a's history was lost");
    }
    assert_eq!(bench.state("b"), Active);
}

#[test]
fn another_check_keeps_the_state_as_an_assumption() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad, Bad]);
    let mut other = target("a", 1, "g");
    other.check = Check::Tcp { port: 81 };
    let late = bench.launch();
    bench.board.set_targets(&[other], bench.now);
    let view = bench.board.view();
    assert_eq!((view.targets["a"].state, view.targets["a"].settled), (Down, false));
    // The answer to the old question says nothing of the new one.
    for _ in 0..2 {
        bench.board.finish(&late[0], Outcome { kind: Good, reason: String::new() }, bench.now);
    }
    assert_eq!(bench.state("a"), Down);
    let launch = bench.launch();
    assert_eq!(launch[0].check, Check::Tcp { port: 81 });
}

#[test]
fn gone_targets_are_forgotten_even_in_flight() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    let launch = bench.launch();
    bench.board.set_targets(&[], bench.now);
    bench.board.finish(&launch[0], Outcome { kind: Bad, reason: String::new() }, bench.now);
    assert!(bench.board.view().targets.is_empty() && bench.board.next_due().is_none());
}

#[test]
fn the_budget_bounds_probes_per_second_and_nobody_starves() {
    let mut targets: Vec<ProbeTarget> = (0..100).map(|n| target(&format!("t{n}"), n, "g")).collect();
    // In doubt for ever.
    targets.iter_mut().for_each(|target| target.timing.fall = 1000);
    let mut bench = Bench::new(Rules { budget: 20, panic_threshold: 0.0 }, &targets);
    let mut asked = std::collections::HashMap::new();
    let mut count = 0u32;
    while bench.now < Duration::from_secs(20) {
        for launch in bench.launch() {
            count += 1;
            *asked.entry(launch.id.clone()).or_insert(0) += 1;
            bench.board.finish(&launch, Outcome { kind: Bad, reason: String::new() }, bench.now);
        }
    }
    // 20 a second for 20 seconds, and the first burst.
    assert!((390..=410).contains(&count), "{count}");
    assert!(asked.len() == 100 && asked.values().all(|n| (3..=5).contains(n)), "{asked:?}");
    assert!(bench.board.is_late(bench.now));
}

#[test]
fn at_rest_an_eighth_of_the_budget_is_enough_and_doubt_has_the_rest() {
    let targets: Vec<ProbeTarget> = (0..100).map(|n| target(&format!("t{n}"), n, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 50, panic_threshold: 0.0 }, &targets);
    let mut asked = Vec::new();
    while bench.now < Duration::from_secs(60) {
        for launch in bench.launch() {
            // One of them stops answering.
            let kind = if &*launch.id == "t7" && bench.now > Duration::from_secs(30) { Bad } else { Good };
            asked.push((bench.now, launch.id.clone()));
            bench.board.finish(&launch, Outcome { kind, reason: String::new() }, bench.now);
        }
    }
    let between = |from: u64, to: u64| asked.iter().filter(|(at, _)| (from..to).contains(&at.as_secs())).count();
    assert!((100..=150).contains(&between(10, 30)), "six a second: {}", between(10, 30));
    assert_eq!(bench.state("t7"), Down);
    assert!(!bench.board.is_late(bench.now));
}

#[test]
fn at_rest_many_probes_go_out_at_a_time() {
    let targets: Vec<ProbeTarget> = (0..500u16).map(|n| target(&format!("t{n}"), n as u8, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 500, panic_threshold: 0.0 }, &targets);
    let (mut times, mut probes) = (0, 0);
    while bench.now < Duration::from_secs(90) {
        // As the loop has it.
        bench.now += super::TOGETHER;
        let launches = bench.launch();
        if bench.now > Duration::from_secs(30) {
            times += 1;
            probes += launches.len();
        }
        for launch in launches {
            bench.board.finish(&launch, Outcome { kind: Good, reason: String::new() }, bench.now);
        }
    }
    assert!((3500..=4000).contains(&probes), "each every eight seconds: {probes}");
    assert!(times <= 250, "four times a second: {times}");
}

#[test]
fn intervals_differ_by_the_jitter_and_not_more() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Good]);
    let mut gaps = Vec::new();
    for _ in 0..50 {
        let before = bench.now;
        bench.rounds(&[Good]);
        gaps.push((bench.now - before).as_secs_f64() / INTERVAL.as_secs_f64());
    }
    // And by what it takes to the nearest time on the grid.
    assert!(gaps.iter().all(|g| (0.87..=1.13).contains(g)), "{gaps:?}");
    let (low, high) = gaps.iter().fold((2.0f64, 0.0f64), |(l, h), g| (l.min(*g), h.max(*g)));
    assert!(high - low > 0.05, "no jitter: {low} to {high}");
}

#[test]
fn doubt_is_settled_faster() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Good, Bad]);
    let before = bench.now;
    bench.rounds(&[Bad, Bad]);
    assert_eq!(bench.state("a"), Down);
    assert!(bench.now - before < INTERVAL, "{:?}", bench.now - before);
}

#[test]
fn below_the_threshold_everything_stays_in_service() {
    let targets: Vec<ProbeTarget> = (0..4).map(|n| target(&format!("t{n}"), n, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 1_000, panic_threshold: 0.5 }, &targets);
    let down = |names: &'static [&'static str]| move |id: &str| if names.contains(&id) { Bad } else { Good };
    for _ in 0..6 {
        bench.round(down(&["t0", "t1"]));
    }
    assert_eq!(bench.overlay().len(), 2);
    assert!(bench.board.view().panicking.is_empty());
    for _ in 0..6 {
        bench.round(down(&["t0", "t1", "t2"]));
    }
    let view = bench.board.view();
    assert_eq!(view.panicking, [Arc::from("g")]);
    // The dataplane uses all, and `penstock status` says against what.
    assert_eq!(view.backends.len(), 3);
    let is_told = |told: &BackendHealth| told.state == Active && told.reason.contains("used all the same");
    assert!(view.backends.iter().all(is_told), "{:?}", view.backends);
    // What is known of each is not hidden by it.
    assert_eq!(bench.state("t0"), Down);
}

#[test]
fn who_drains_by_his_own_word_is_kept_out_until_nobody_is_left() {
    let targets: Vec<ProbeTarget> = (0..4).map(|n| target(&format!("t{n}"), n, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 1_000, panic_threshold: 0.5 }, &targets);
    for _ in 0..12 {
        bench.round(|id| if id == "t0" { Good } else { Drain });
    }
    assert_eq!(bench.overlay().len(), 3);
    assert!(bench.overlay().iter().all(|(_, _, state)| *state == Draining));
    for _ in 0..12 {
        bench.round(|_| Drain);
    }
    assert!(bench.overlay().iter().all(|(_, _, state)| *state == Active), "{:?}", bench.overlay());
}

#[test]
fn a_port_is_told_apart_from_its_node() {
    let mut port = target("p", 1, "svc");
    port.covers = vec![Some(31_000), Some(31_001)];
    let mut worse = target("q", 1, "svc2");
    worse.covers = vec![Some(31_001)];
    let mut targets = vec![target("n", 1, "nodes"), port, worse];
    let mut bench = Bench::new(RULES, &targets);
    for _ in 0..12 {
        bench.round(|id| if id == "p" { Good } else { Bad });
    }
    let address: IpAddr = Ipv4Addr::new(10, 0, 0, 1).into();
    let told = [(address, None, Down), (address, Some(31_000), Active), (address, Some(31_001), Down)];
    assert_eq!(bench.overlay(), told);
    // One that nobody has looked at is no better than its node.
    let mut new = target("r", 1, "svc3");
    new.covers = vec![Some(31_002)];
    targets.push(new);
    bench.board.set_targets(&targets, bench.now);
    assert_eq!(bench.overlay(), told);
    for _ in 0..4 {
        bench.round(|id| if id == "p" || id == "r" { Good } else { Bad });
    }
    assert_eq!(bench.overlay()[3..], [(address, Some(31_002), Active)]);
}

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND: Duration = Duration::from_secs(1);

async fn ask(check: Check) -> (Kind, String) {
    let outcome = probe(LOCAL, &check, SECOND, None).await.0;
    (outcome.kind, outcome.reason)
}

fn http(port: u16) -> Check {
    Check::Http {
        port,
        tls: false,
        path: "/healthz".into(),
        host: None,
        expect: 200..=299,
        drain_on_503: true,
        keeps: false,
    }
}

/// Answers every connection with the same bytes and hands over what was asked.
async fn server(answer: &'static str) -> (u16, watch::Receiver<String>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, seen) = watch::channel(String::new());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0u8; 1024];
            let length = stream.read(&mut buffer).await.unwrap_or(0);
            asked.send_replace(String::from_utf8_lossy(&buffer[..length]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, seen)
}

/// A port nobody has: bound, looked at, let go.
async fn nobody() -> u16 {
    TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn tcp_is_up_where_it_is_accepted_and_down_where_refused() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(ask(Check::Tcp { port }).await.0, Good);
    let (kind, reason) = ask(Check::Tcp { port: nobody().await }).await;
    assert_eq!(kind, Bad);
    assert!(reason.ends_with("connection refused"), "{reason}");
}

#[tokio::test]
async fn http_is_judged_by_its_status() {
    let (port, seen) = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(ask(http(port)).await.0, Good);
    let asked = seen.borrow().to_lowercase();
    assert!(asked.starts_with("get /healthz http/1.1\r\n") && asked.contains("host: 127.0.0.1:"), "{asked}");
    let (port, _) = server("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(ask(http(port)).await, (Drain, format!("503 from port {port}/healthz")));
    let mut strict = http(port);
    if let Check::Http { drain_on_503, .. } = &mut strict {
        *drain_on_503 = false;
    }
    assert_eq!(ask(strict).await.0, Bad);
    let (port, _) = server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(ask(http(port)).await.0, Bad);
    let (port, _) = server("SSH-2.0-x\r\n").await;
    assert_eq!(ask(http(port)).await.0, Bad);
    assert_eq!(ask(http(nobody().await)).await.0, Bad);
}

/// Answers so many requests on each connection; how many connections there were.
async fn keeping(per_connection: usize, status: watch::Receiver<u16>) -> (u16, watch::Receiver<u32>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.send_modify(|count| *count += 1);
            let status = status.clone();
            tokio::spawn(async move {
                let mut buffer = [0u8; 1024];
                for _ in 0..per_connection {
                    if !matches!(stream.read(&mut buffer).await, Ok(length) if length > 0) {
                        return;
                    }
                    let answer = format!("HTTP/1.1 {} X\r\nContent-Length: 5\r\n\r\nhello", *status.borrow());
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (port, counted)
}

#[tokio::test]
async fn a_kept_connection_serves_until_it_ends_and_is_made_anew_without_a_word() {
    let (answers, status) = watch::channel(200);
    let (port, connections) = keeping(3, status).await;
    let mut check = http(port);
    if let Check::Http { keeps, .. } = &mut check {
        *keeps = true;
    }
    let mut kept = None;
    for round in 1..=7 {
        if round == 6 {
            answers.send_replace(503);
        }
        let (outcome, left) = probe(LOCAL, &check, SECOND, kept).await;
        assert_eq!(outcome.kind, if round < 6 { Good } else { Drain }, "round {round}: {}", outcome.reason);
        kept = left;
    }
    assert_eq!(*connections.borrow(), 3, "three answers on each");
    // Whoever is gone with the connection is found at once.
    let (port, _) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    if let Check::Http { port: asked, .. } = &mut check {
        *asked = port;
    }
    let (outcome, kept) = probe(LOCAL, &check, SECOND, None).await;
    assert_eq!(outcome.kind, Good);
    if let Check::Http { port: asked, .. } = &mut check {
        *asked = nobody().await;
    }
    let (outcome, kept) = probe(LOCAL, &check, SECOND, kept).await;
    assert_eq!(outcome.kind, Bad);
    assert!(kept.is_none() && outcome.reason.ends_with("connection refused"), "{}", outcome.reason);
}

/// A certificate of its own making, as nodes have; made for this test, worth nothing elsewhere.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBhzCCAS2gAwIBAgIUUM11C2jMj1lhrVL/Mnogk2Jis1cwCgYIKoZIzj0EAwIwGDEWMBQGA1UEAwwNcGVuc3RvY2sgdGVz
dDAgFw0yNjExMjExMzM0MzdaGA8yMTI2MTAyODEzMzQzN1owGDEWMBQGA1UEAwwNcGVuc3RvY2sgdGVzdDBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABJhOjuqVFUygq0Row2fwAEUb1fyrVnhuxS2/wriryVE6HU6PypUSecyBTq4SHflh14ZvXmsjSBwO
aM8ydtU+7COjUzBRMB0GA1UdDgQWBBQZPSDLPxP6ya5BVGdeB+LgM2twETAfBgNVHSMEGDAWgBQZPSDLPxP6ya5BVGdeB+Lg
M2twETAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCs0sTWOHUFooWLzKBst/ZIRcuQV0uyn2BH0cm56Zhx
yAIgQqQNPq8YZOoKo2SHxtPe/g2xE8+k4/s28s1sIeSjzHo=
-----END CERTIFICATE-----
";
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgwUWnBG323RfF1Ft8wgurzuu+UIIBmbW0ceTr1zLEDJ6hRANC
AASYTo7qlRVMoKtEaMNn8ABFG9X8q1Z4bsUtv8K4q8lROh1Oj8qVEnnMgU6uEh35YdeGb15rI0gcDmjPMnbVPuwj
-----END PRIVATE KEY-----
";

async fn tls_server(answer: &'static str) -> u16 {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0u8; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn https_takes_any_certificate_but_needs_tls() {
    let secure = |port: u16, host: Option<&str>| Check::Http {
        port,
        tls: true,
        path: "/".into(),
        host: host.map(Into::into),
        expect: 200..=299,
        drain_on_503: false,
        keeps: false,
    };
    let port = tls_server("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(ask(secure(port, None)).await, (Good, format!("204 from port {port}/")));
    assert_eq!(ask(secure(port, Some("example.com"))).await.0, Good);
    let (plain, _) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let (kind, reason) = ask(secure(plain, None)).await;
    assert_eq!(kind, Bad);
    assert!(reason.contains("TLS"), "{reason}");
}

#[tokio::test]
async fn silence_is_bad_after_the_timeout() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let outcome = probe(LOCAL, &http(port), Duration::from_millis(50), None).await.0;
    assert_eq!(outcome.kind, Bad);
    assert!(outcome.reason.contains("no answer"), "{}", outcome.reason);
}

#[tokio::test]
async fn udp_is_down_on_port_unreachable_and_else_by_its_answer() {
    let socket = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0u8; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if &buffer[..length] != b"quiet" {
                let _ = socket.send_to(b"pong 1", from).await;
            }
        }
    });
    let check = |port: u16, send: &str, expect: Option<&str>, silence_is_up: bool| Check::Udp {
        port,
        send: send.into(),
        expect: expect.map(Into::into),
        silence_is_up,
    };
    assert_eq!(ask(check(port, "ping", Some("pong"), false)).await.0, Good);
    assert_eq!(ask(check(port, "ping", Some("gnop"), true)).await.0, Bad);
    let short = Duration::from_millis(50);
    assert_eq!(probe(LOCAL, &check(port, "quiet", None, true), short, None).await.0.kind, Good);
    assert_eq!(probe(LOCAL, &check(port, "quiet", None, false), short, None).await.0.kind, Bad);
    let free = UdpSocket::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port();
    let (kind, reason) = ask(check(free, "ping", None, true)).await;
    assert_eq!(kind, Bad);
    assert!(reason.contains("unreachable"), "{reason}");
}

fn config() -> HealthConfig {
    HealthConfig { budget: 10_000, panic_threshold: 0.0, ..HealthConfig::default() }
}

async fn until(views: &mut watch::Receiver<Arc<seam::HealthView>>, wanted: impl Fn(&seam::HealthView) -> bool) {
    let waiting = async {
        while !wanted(&views.borrow_and_update().clone()) {
            views.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the view did not come");
}

#[tokio::test]
async fn the_loop_follows_a_server_that_goes_and_comes_back() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let place = listener.local_addr().unwrap();
    let mut one = target("a", 1, "g");
    one.address = LOCAL;
    one.check = Check::Tcp { port: place.port() };
    one.timing.interval = Duration::from_millis(20);
    let (health, checker) = seam::seam();
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(run(checker, config(), stopping));
    let mut views = health.view.clone();
    until(&mut views, |v| v.checking && v.targets.is_empty()).await;
    health.targets.send_replace(seam::Targets::all(vec![one.clone()]));
    until(&mut views, |v| v.checking && v.targets.get("a").is_some_and(|t| t.settled && t.state == Active)).await;
    drop(listener);
    until(&mut views, |v| v.backends.iter().any(|b| b.state == Down && b.reason.contains("refused"))).await;
    let listener = TcpListener::bind(place).await.unwrap();
    until(&mut views, |v| v.backends.is_empty() && v.targets["a"].state == Active).await;
    drop(listener);
    health.targets.send_replace(seam::Targets::all(Vec::new()));
    until(&mut views, |v| v.targets.is_empty()).await;
    stop.send_replace(true);
    running.await.unwrap();
}

#[tokio::test]
async fn switched_off_it_says_that_there_is_nothing() {
    let (health, checker) = seam::seam();
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(run(checker, HealthConfig { enabled: false, ..config() }, stopping));
    health.targets.send_replace(seam::Targets::all(vec![target("a", 1, "g")]));
    stop.send_replace(true);
    running.await.unwrap();
    let view = health.view.borrow().clone();
    assert!(!view.checking && view.whole && view.backends.is_empty());
}
