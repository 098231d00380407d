//! TCP through the box as kernels speak it: who ends a connection, and who is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use etherparse::TcpHeader;
use penstock_configs::desired::{NoBackend, OnIdle, Protocol, Service, ServiceTimeouts};
use penstock_perf::clients::uninterrupted;
use penstock_perf::config::{self, backend};
use penstock_perf::lab::{Lab, Netns, plan};
use penstock_perf::privilege;
use penstock_perf::rig::Rig;
use rustix::process::Signal;

/// Services of these tests: one node, so that its end of a connection is known.
const PORT: u16 = 90;
const NODE_PORT: u16 = 30_100;
const PATIENCE: Duration = Duration::from_secs(10);
/// Other hosts' ARP and neighbour discovery; hand-off rings run over where many builds share two cores.
const BUSY: &[&str] = &["neighbor_ignored", "handoff_full"];

fn target(v6: bool) -> SocketAddr {
    SocketAddr::new(plan::vip(0).ip(v6), PORT)
}

/// A box with a service of each family on node0, edited by the test.
fn rig(edit: impl Fn(&mut Service)) -> Rig {
    Rig::start(Lab::builder(), |config| {
        for v6 in [false, true] {
            let mut service = config::service(&format!("t{v6}"), target(v6).ip(), PORT, Protocol::Tcp);
            (service.set, service.backends) = (None, vec![backend("node0", NODE_PORT)]);
            edit(&mut service);
            config.services.push(service);
        }
    })
    .expect("a lab with a dataplane")
}

fn listen(rig: &Rig, v6: bool) -> TcpListener {
    let node = &rig.lab.nodes[0];
    node.ns.run(|| TcpListener::bind((node.addr.ip(v6), NODE_PORT))).expect("a listener")
}

fn connect(ns: &Netns, target: SocketAddr) -> TcpStream {
    let stream = ns.run(|| TcpStream::connect_timeout(&target, PATIENCE)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// A connection, both ends in hand, that has carried something each way.
fn pair(rig: &Rig, listener: &TcpListener, v6: bool) -> (TcpStream, TcpStream) {
    let mut client = connect(rig.client(), target(v6));
    let (mut node, _) = listener.accept().expect("accepted");
    node.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    exchange(&mut client, &mut node);
    (client, node)
}

fn read(stream: &mut TcpStream) -> std::io::Result<usize> {
    uninterrupted(|| stream.read(&mut [0; 9]))
}

#[track_caller]
fn exchange(client: &mut TcpStream, node: &mut TcpStream) {
    let mut buffer = [0; 7];
    client.write_all(b"request").expect("written");
    node.read_exact(&mut buffer).expect("the request");
    node.write_all(b"answers").expect("written");
    client.read_exact(&mut buffer).expect("the answer");
}

/// The states of the flows of these tests' service.
fn states(rig: &Rig) -> Vec<String> {
    let flows = rig.dataplane.flows().expect("flows");
    flows.into_iter().filter(|flow| flow.vip.port() == PORT).map(|flow| flow.state).collect()
}

#[track_caller]
fn wait_for(rig: &Rig, what: &str, holds: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let states = states(rig);
        if holds(&states) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {states:?}\n{}", rig.dataplane.log_tail());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn privileged_idle_connections_are_reset_at_both_ends() {
    if !privilege::require("privileged_idle_connections_are_reset_at_both_ends") {
        return;
    }
    let rig = rig(|service| {
        service.on_idle = OnIdle::Reset;
        service.timeouts = Some(ServiceTimeouts { tcp_established: Some(4), ..ServiceTimeouts::default() });
    });
    for v6 in [false, true] {
        let listener = listen(&rig, v6);
        let (mut client, mut node) = pair(&rig, &listener, v6);
        for end in [&mut client, &mut node] {
            let began = Instant::now();
            let error = read(end).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{v6} after {:?}", began.elapsed());
        }
    }
    let counters = rig.settle_without_drops_except(BUSY).expect("a balanced ledger");
    assert_eq!(counters.workers.iter().map(|worker| worker.flows.idle_resets).sum::<u64>(), 2);
    rig.finish_having_reset(4).expect("a clean end, and no kernel doubted or answered the RSTs");
}

#[test]
fn privileged_clients_without_a_backend_are_refused() {
    if !privilege::require("privileged_clients_without_a_backend_are_refused") {
        return;
    }
    let mut rig = Rig::start(Lab::builder(), |config| {
        for set in &mut config.sets {
            set.backends.clear();
        }
    })
    .expect("a lab with a dataplane");
    let attempt = |target: SocketAddr, patience| {
        rig.client().run(|| TcpStream::connect_timeout(&target, patience)).expect_err("no server")
    };
    let silence = Duration::from_millis(1500);
    for v6 in [false, true] {
        assert_eq!(attempt(rig.vip(v6), PATIENCE).kind(), ErrorKind::ConnectionRefused, "TCP, {v6}");
        // No service at all is silence.
        let nobody = SocketAddr::new(rig.vip(v6).ip(), 91);
        assert_eq!(attempt(nobody, silence).kind(), ErrorKind::TimedOut, "no service, {v6}");
        let any: SocketAddr = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().expect("an address");
        let socket = rig.client().run(|| UdpSocket::bind(any)).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.connect(rig.vip(v6)).expect("an address");
        socket.send(b"anybody?").expect("sent");
        assert_eq!(
            uninterrupted(|| socket.recv(&mut [0; 9])).expect_err("no answer").kind(),
            ErrorKind::ConnectionRefused,
            "UDP, {v6}"
        );
    }
    rig.reconfigure(|config| config.services.iter_mut().for_each(|service| service.no_backend = NoBackend::Drop))
        .expect("a reload");
    let client = rig.client();
    let silent = client.run(|| TcpStream::connect_timeout(&rig.vip(false), silence));
    assert_eq!(silent.expect_err("no server").kind(), ErrorKind::TimedOut);
    rig.settle_without_drops_except(&["no_backend", "no_service", "neighbor_ignored"]).expect("drops by name");
    rig.finish().expect("a clean end");
}

/// Sends a RST in the client's name by a raw socket; its kernel builds the IP header.
fn forge_reset(ns: &Netns, from: SocketAddr, to: SocketAddr, seq: u32) {
    let mut header = TcpHeader::new(from.port(), to.port(), seq, 0);
    header.rst = true;
    header.checksum = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
        (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
        _ => panic!("two families"),
    }
    .expect("a short packet");
    let mut bytes = Vec::new();
    header.write(&mut bytes).expect("a vector takes all");
    ns.run(|| {
        use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let raw = socket(family, SocketType::RAW, Some(ipproto::TCP)).expect("a raw socket");
        sendto(&raw, &bytes, SendFlags::empty(), &SocketAddr::new(to.ip(), 0)).expect("sent");
    });
}

#[test]
fn privileged_forged_resets_kill_no_idle_connection() {
    if !privilege::require("privileged_forged_resets_kill_no_idle_connection") {
        return;
    }
    // A flow whose RST is believed is forgotten after a second.
    let rig = rig(|service| {
        service.timeouts = Some(ServiceTimeouts { tcp_rst: Some(1), ..ServiceTimeouts::default() });
    });
    for v6 in [false, true] {
        let listener = listen(&rig, v6);
        let (mut client, mut node) = pair(&rig, &listener, v6);
        let local = client.local_addr().expect("an address");
        // Three numbers a quarter of all apart: two at least are far from the right one.
        for seq in [1 << 30, 2 << 30, 3 << 30] {
            forge_reset(rig.client(), local, target(v6), seq);
        }
        std::thread::sleep(Duration::from_millis(3500));
        assert_eq!(states(&rig), ["established"], "{v6}");
        exchange(&mut client, &mut node);
        // The end's own RST, by contrast, ends it: closing with data unread sends one.
        node.write_all(b"unread").expect("written");
        uninterrupted(|| client.peek(&mut [0])).expect("it is there to be read");
        drop(client);
        assert_eq!(read(&mut node).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        wait_for(&rig, "forgotten after a RST", <[String]>::is_empty);
    }
    let counters = rig.settle_without_drops_except(BUSY).expect("nothing dropped");
    assert!(counters.workers.iter().map(|worker| worker.flows.resets_doubted).sum::<u64>() >= 4, "{counters:?}");
}

#[test]
fn privileged_half_closed_connections_carry_on() {
    if !privilege::require("privileged_half_closed_connections_carry_on") {
        return;
    }
    const BURST: usize = 1 << 20;
    let rig = rig(|service| {
        service.timeouts = Some(ServiceTimeouts { tcp_fin: Some(3), ..ServiceTimeouts::default() });
    });
    for v6 in [false, true] {
        let listener = listen(&rig, v6);
        let (mut client, mut node) = pair(&rig, &listener, v6);
        client.shutdown(Shutdown::Write).expect("half closed");
        let sending = std::thread::spawn(move || {
            assert_eq!(read(&mut node).expect("the end of the request"), 0);
            for _ in 0..5 {
                node.write_all(&vec![7; BURST]).expect("written");
                // Longer in all than a half-closed connection may be silent.
                std::thread::sleep(Duration::from_millis(900));
            }
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).expect("all of the answer");
        assert_eq!(got.len(), 5 * BURST);
        sending.join().expect("sent");
        wait_for(&rig, "both closed", |states| states.iter().all(|state| state == "time_wait"));
    }
    rig.finish().expect("a clean end");
}

/// Both ends close while the box stands still, so that the FINs cross in it.
#[test]
fn privileged_both_ends_close_at_once() {
    if !privilege::require("privileged_both_ends_close_at_once") {
        return;
    }
    let rig = rig(|_| {});
    for v6 in [false, true] {
        let listener = listen(&rig, v6);
        let (mut client, mut node) = pair(&rig, &listener, v6);
        rig.dataplane.signal(Signal::STOP).expect("a process to stop");
        client.shutdown(Shutdown::Write).expect("closed");
        node.shutdown(Shutdown::Write).expect("closed");
        std::thread::sleep(Duration::from_millis(50));
        rig.dataplane.signal(Signal::CONT).expect("a process to go on");
        assert_eq!(read(&mut client).expect("the end"), 0);
        assert_eq!(read(&mut node).expect("the end"), 0);
        wait_for(&rig, "both told", |states| states.iter().all(|state| state == "time_wait"));
    }
    rig.finish().expect("a clean end");
}

/// A connection from this port of the namespace's host.
async fn from_port(port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new("0.0.0.0".parse().expect("an address"), port))?;
    socket.connect(target(false)).await
}

/// The node closes first, so its `TIME_WAIT` meets the client's next SYN from the same port, thousands of
/// times (RFC 6191).
#[test]
fn privileged_one_client_port_again_and_again() {
    if !privilege::require("privileged_one_client_port_again_and_again") {
        return;
    }
    const TIMES: usize = 2000;
    let rig = rig(|_| {});
    let listener = listen(&rig, false);
    let serving = std::thread::spawn(move || {
        for _ in 0..TIMES {
            let (mut node, _) = listener.accept().expect("accepted");
            node.write_all(b"bye").expect("written");
            node.shutdown(Shutdown::Write).expect("closed");
            let _ = node.read(&mut [0]);
        }
    });
    let client = rig.client().clone();
    client.run(|| {
        penstock_perf::clients::run_here(async {
            use tokio::io::AsyncReadExt;
            for turn in 0..TIMES {
                let began = Instant::now();
                let mut stream = loop {
                    match tokio::time::timeout(PATIENCE, from_port(45_000)).await.expect("in time") {
                        Ok(stream) => break stream,
                        // The last one still waits for the node's ACK of its FIN.
                        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
                        Err(error) => panic!("{turn}: {error}"),
                    }
                    assert!(began.elapsed() < PATIENCE, "{turn}: the port stays taken");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                };
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.expect("all of it");
                assert_eq!(got, b"bye");
            }
        });
    });
    serving.join().expect("served");
    assert_eq!(states(&rig).len(), 1, "one tuple, one flow");
    rig.settle_without_drops_except(BUSY).expect("nothing out of state");
    rig.finish().expect("a clean end");
}
