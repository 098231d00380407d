//! Floods of sources that do not exist, from AF_XDP, against connections of kernel stacks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use penstock_configs::file::ConfigFile;
use penstock_configs::status::Counters;
use penstock_perf::clients::sessions::{ALL_KINDS, Plan};
use penstock_perf::lab::Lab;
use penstock_perf::privilege;
use penstock_perf::rig::Rig;
use penstock_perf::traffic::flood::{Flood, Kind};

const QUEUES: u16 = 2;
/// Few, so that a flood pushes them out by the thousand.
const EMBRYOS: u32 = 1024;

/// Two clients: one that lives here, one that floods.
fn rig(edit: impl FnOnce(&mut ConfigFile)) -> Rig {
    let builder = Lab::builder().clients(2).nodes(2).queues(QUEUES);
    Rig::start(builder, |config| {
        config.limits.embryonic = EMBRYOS;
        edit(config);
    })
    .expect("a lab with a dataplane")
}

fn flood(kind: Kind, target: SocketAddr, rate: Option<f64>) -> Flood {
    Flood { kind, target, rate, queues: 1 }
}

/// Two sessions of each kind, that last so many seconds, and longer where two cores have the flood to carry as well.
fn patient(target: SocketAddr, seconds: u64) -> Plan {
    Plan { patience: Duration::from_secs(120), ..Plan::new(target, 2, Duration::from_secs(seconds)) }
}

fn counters(rig: &Rig) -> Counters {
    rig.dataplane.counters().expect("counters")
}

fn evicted(counters: &Counters) -> u64 {
    counters.workers.iter().map(|worker| worker.flows.evicted).sum()
}

/// Packets the kernel had no room for in the workers' rings.
fn missed(counters: &Counters) -> u64 {
    let sockets = counters.workers.iter().flat_map(|worker| &worker.sockets);
    sockets.map(|socket| socket.rx_dropped + socket.rx_ring_full).sum()
}

/// Waits until new flows are policed: the workers have marked those there are.
fn wait_for_policing(rig: &Rig, target: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while counters(rig).steer.policed == 0 {
        assert!(Instant::now() < deadline, "policing does not begin\n{}", rig.dataplane.log_tail());
        let flooding = flood(Kind::Udp, target, Some(20_000.0)).start(&rig.lab, 1).expect("a flood");
        std::thread::sleep(Duration::from_millis(300));
        flooding.finish().expect("a flood");
    }
}

/// Half-open flows are pushed out by thousands; of the connections there are none is lost or reset.
#[test]
fn privileged_flood_takes_no_established_flow() {
    if !privilege::require("privileged_flood_takes_no_established_flow") {
        return;
    }
    let rig = rig(|_| {});
    for v6 in [false, true] {
        for kind in [Kind::Syn, Kind::Udp] {
            let sessions = patient(rig.vip(v6), 2).start(rig.client()).expect("sessions");
            let before = evicted(&counters(&rig));
            let flooding = flood(kind, rig.vip(v6), Some(4_000.0)).start(&rig.lab, 1).expect("a flood");
            let report = sessions.finish().expect("sessions");
            let deadline = Instant::now() + Duration::from_secs(20);
            while (flooding.sent() <= 2000 || evicted(&counters(&rig)) - before <= 500) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
            let sent = flooding.finish().expect("a flood");
            let evicted = evicted(&counters(&rig)) - before;
            assert!(report.failures.is_empty(), "{kind:?} v6 {v6}: {report:?}");
            assert_eq!(report.completed(), 2 * ALL_KINDS.len(), "{kind:?} v6 {v6}");
            assert!(sent > 2000 && evicted > 500, "{kind:?} v6 {v6}: {evicted} embryos of {sent} packets pushed out");
        }
    }
    rig.finish().expect("a clean end, without a RST");
}

/// A flood as fast as the sender goes, of which the program lets through what was configured.
#[test]
fn privileged_flood_beyond_the_quota_ends_in_the_program() {
    if !privilege::require("privileged_flood_beyond_the_quota_ends_in_the_program") {
        return;
    }
    // Low: also a sender that shares its core is a flood to it.
    const QUOTA: u32 = 1_000;
    let rig = rig(|config| config.the_box.new_per_vip = QUOTA);
    wait_for_policing(&rig, rig.vip(false));
    for (v6, kind) in [(false, Kind::Syn), (true, Kind::Udp)] {
        let there = established(&rig);
        let sessions = patient(rig.vip(v6), 3).start(rig.client()).expect("sessions");
        // Whose handshake a flood meets in the middle is one of those that want to be let in.
        let deadline = Instant::now() + Duration::from_secs(5);
        while established(&rig) < there + 2 * ALL_KINDS.len() as u64 {
            assert!(Instant::now() < deadline, "sessions are not established");
            std::thread::sleep(Duration::from_millis(20));
        }
        let before = counters(&rig);
        let (began, flooding) = (Instant::now(), flood(kind, rig.vip(v6), None).start(&rig.lab, 1).expect("a flood"));
        let report = sessions.finish().expect("sessions");
        let notices = rig.dataplane.status().expect("a status").notices;
        assert!(notices.iter().any(|notice| notice.contains("beyond box.new_per_vip")), "{notices:?}");
        let (sent, seconds) = (flooding.finish().expect("a flood"), began.elapsed().as_secs_f64());
        let after = counters(&rig);
        assert!(report.failures.is_empty(), "{kind:?} v6 {v6}: {report:?}");
        let policed = after.steer.policed - before.steer.policed;
        let created = |counters: &Counters| counters.workers.iter().map(|worker| worker.flows.created).sum::<u64>();
        let opened = created(&after) - created(&before);
        let rate = sent as f64 / seconds;
        assert!(rate > 3.0 * f64::from(QUOTA), "{rate:.0} a second is no flood");
        assert!(policed > sent / 4, "{policed} policed of {sent}");
        assert!((opened as f64) < 1.5 * f64::from(QUOTA) * (seconds + 1.0), "{opened} flows in {seconds:.1} s");
    }
    rig.finish().expect("a clean end, without a RST");
}

fn established(rig: &Rig) -> u64 {
    counters(rig).workers.iter().map(|worker| worker.flows.established).sum()
}

/// What connections that were there before received, in slices of time.
struct Goodput {
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<std::io::Result<std::io::Result<()>>>>,
}

impl Goodput {
    /// Downloads at a pace, so that what they get is theirs to lose.
    fn start(rig: &Rig, connections: usize, per_second: u64) -> Self {
        let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..connections).map(|_| {
            let (bytes, stop, vip) = (Arc::clone(&bytes), Arc::clone(&stop), rig.vip(false));
            let each = per_second / connections as u64;
            rig.client().thread("download", move || download(vip, each, &bytes, &stop)).expect("a thread")
        });
        Self { threads: threads.collect(), bytes, stop }
    }

    /// Bytes per second in slices of half a second, the median.
    fn measure(&self, slices: usize) -> f64 {
        let mut rates: Vec<f64> = (0..slices)
            .map(|_| {
                let (before, began) = (self.bytes.load(Ordering::Relaxed), Instant::now());
                std::thread::sleep(Duration::from_millis(500));
                (self.bytes.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        rates[slices / 2]
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no panic").expect("a namespace").expect("a connection that lasts");
        }
    }
}

fn download(vip: SocketAddr, per_second: u64, bytes: &AtomicU64, stop: &AtomicBool) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(vip)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET /bytes/{} HTTP/1.1\r\nhost: lab\r\n\r\n", 1_u64 << 40)?;
    let (began, mut received, mut buffer) = (Instant::now(), 0, vec![0; 64 << 10]);
    // Behind its pace it may catch up for a tenth of a second, no more: goodput lost is lost.
    let mut allowance = began;
    while !stop.load(Ordering::Relaxed) {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        received += length as u64;
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        allowance += Duration::from_nanos(length as u64 * 1_000_000_000 / per_second);
        let now = Instant::now();
        allowance = allowance.max(now.checked_sub(Duration::from_millis(100)).unwrap_or(now));
        std::thread::sleep(allowance.saturating_duration_since(now));
    }
    assert!(received > 0);
    Ok(())
}

/// `cargo test --test lab_flood -- --ignored --nocapture`: the goodput of established connections, with and without
/// a flood, in one run.
#[test]
#[ignore = "prints figures"]
fn privileged_goodput_under_floods() {
    if !privilege::require("privileged_goodput_under_floods") {
        return;
    }
    for quota in [0, 2_000] {
        let rig = rig(|config| config.the_box.new_per_vip = quota);
        if quota > 0 {
            wait_for_policing(&rig, rig.vip(false));
        }
        for (kind, rate) in [
            (Kind::Syn, Some(20_000.0)),
            (Kind::Udp, Some(20_000.0)),
            (Kind::Syn, Some(100_000.0)),
            (Kind::Syn, None),
            (Kind::Udp, None),
        ] {
            let goodput = Goodput::start(&rig, 4, 20_000_000);
            std::thread::sleep(Duration::from_secs(1));
            let alone = goodput.measure(5);
            let flooding = flood(kind, rig.vip(false), rate).start(&rig.lab, 1).expect("a flood");
            std::thread::sleep(Duration::from_millis(500));
            let (before, began) = (flooding.sent(), Instant::now());
            let flooded = goodput.measure(7);
            let per_second = (flooding.sent() - before) as f64 / began.elapsed().as_secs_f64();
            flooding.finish().expect("a flood");
            goodput.finish();
            let now = counters(&rig);
            println!(
                "new_per_vip {quota:5}: {kind:?} flood of {per_second:8.0}/s: {:.1} of {:.1} MB/s, {:.0} % (so far policed {}, not fetched {}, dropped {:?})",
                flooded / 1e6,
                alone / 1e6,
                100.0 * flooded / alone,
                now.steer.policed,
                missed(&now),
                now.total.drops
            );
        }
        rig.settle().expect("a balanced ledger");
    }
}
