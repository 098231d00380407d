//! The deny list and limits, as kernel stacks meet them.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use penstock_configs::desired::{NoBackend, ServiceLimits, SourceLimits};
use penstock_perf::clients::http::Volley;
use penstock_perf::clients::sessions::Plan;
use penstock_perf::lab::Lab;
use penstock_perf::privilege;
use penstock_perf::rig::Rig;

const PATIENCE: Duration = Duration::from_secs(10);

fn drops(rig: &Rig, reason: &str) -> u64 {
    rig.dataplane.counters().expect("counters").total.drops.get(reason).copied().unwrap_or(0)
}

fn denied_prefixes(rig: &Rig) -> u64 {
    rig.dataplane.status().expect("a status").denied_prefixes
}

fn connect_within(limit: Duration, rig: &Rig, to: SocketAddr) -> std::io::Result<TcpStream> {
    rig.client().run(move || TcpStream::connect_timeout(&to, limit))
}

/// Where somebody should answer, be it a RST: longer than a busy machine takes.
fn connect(rig: &Rig, to: SocketAddr) -> std::io::Result<TcpStream> {
    connect_within(PATIENCE, rig, to)
}

/// Where nobody should.
fn silence(rig: &Rig, to: SocketAddr) -> std::io::Result<TcpStream> {
    connect_within(Duration::from_millis(700), rig, to)
}

#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A list from a file: who is on it gets nothing, what it had open ends; others go on. A change of the file is
/// found without being told.
#[test]
fn privileged_access_deny_file() {
    if !privilege::require("privileged_access_deny_file") {
        return;
    }
    let mut rig = Rig::start(Lab::builder().clients(2).nodes(2), |_| {}).expect("a lab with a dataplane");
    let list = rig.lab.dir().join("deny.txt");
    let client = |index: usize, v6: bool| rig.lab.topology().client(index).ip(v6);
    let first = [client(0, false), client(0, true)];
    std::fs::write(&list, format!("# a feed\n{}\n{}\n", first[0], first[1])).expect("a list");
    let open = connect(&rig, rig.vip(false)).expect("nothing is denied yet");
    let sessions =
        Plan::new(rig.vip(false), 1, Duration::from_secs(4)).start(&rig.lab.clients[1].ns).expect("sessions");
    rig.reconfigure(|config| {
        config.the_box.deny_file = list.clone();
        // A reload is known by its snapshot's number: something of that changes too.
        config.services[3].no_backend = NoBackend::Drop;
    })
    .expect("a reload");
    assert_eq!(denied_prefixes(&rig), 2);
    for v6 in [false, true] {
        let error = silence(&rig, rig.vip(v6)).expect_err("denied");
        assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "silence: {error}");
        let tally = Volley::new(rig.vip(v6), 5).run(&rig.lab.clients[1].ns, |_| {});
        assert_eq!((tally.answered(), tally.failed()), (5, 0), "others go on: {tally:?}");
    }
    let before = drops(&rig, "denied");
    assert!(before > 0);
    drop(open);
    until("a FIN of a flow from before is denied", || drops(&rig, "denied") > before);
    std::fs::write(&list, "").expect("an empty list");
    until("the change of the file is seen", || denied_prefixes(&rig) == 0);
    connect(&rig, rig.vip(false)).expect("nobody is denied any more");
    let report = sessions.finish().expect("sessions");
    assert!(report.failures.is_empty(), "{report:?}");
    rig.settle().expect("a balanced ledger");
    rig.stop().expect("a clean stop");
}

/// So many connections of one client, the next is refused with a RST; rates in silence.
#[test]
fn privileged_access_limits() {
    if !privilege::require("privileged_access_limits") {
        return;
    }
    let source = |connections, new_per_second| SourceLimits { connections, new_per_second, ..SourceLimits::default() };
    let set = |rig: &mut Rig, source: SourceLimits| {
        let limits = ServiceLimits { per_source: Some(source), ..ServiceLimits::default() };
        rig.reconfigure(|config| config.services.iter_mut().for_each(|service| service.limits = Some(limits.clone())))
            .expect("a reload");
    };
    let mut rig = Rig::start(Lab::builder().queues(2), |_| {}).expect("a lab with a dataplane");
    for v6 in [false, true] {
        set(&mut rig, source(Some(10), None));
        let held: Vec<TcpStream> = (0..10).map(|_| connect(&rig, rig.vip(v6)).expect("one of ten")).collect();
        let error = connect(&rig, rig.vip(v6)).expect_err("the eleventh");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        drop(held);
        set(&mut rig, source(None, Some(5)));
        std::thread::sleep(Duration::from_secs(2));
        let (began, before, mut opened) = (Instant::now(), drops(&rig, "source_rate"), 0);
        until("one too many", || {
            let volley = Volley { timeout: Duration::from_millis(700), ..Volley::new(rig.vip(v6), 20) };
            opened += volley.run(rig.client(), |_| {}).answered();
            drops(&rig, "source_rate") > before
        });
        let most = 5.0 * (began.elapsed().as_secs_f64() + 2.0);
        assert!(opened as f64 <= most, "{opened} opened, {most:.0} at most could");
        connect(&rig, rig.vip(v6)).expect("one that asks on, in its turn");
        set(&mut rig, source(Some(1000), None));
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(drops(&rig, "source_connections") >= 2 && drops(&rig, "source_rate") >= 2);
    let status = rig.dataplane.status().expect("a status");
    let of = |name: &str| status.services.iter().find(|service| service.name == name).map(|service| service.limited);
    assert!(of("web") > Some(0) && of("web6") > Some(0) && of("web-udp") == Some(0));
    rig.settle().expect("a balanced ledger");
    rig.stop().expect("a clean stop");
}
