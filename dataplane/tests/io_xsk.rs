//! AF_XDP ports over real sockets on veths, between namespaces without names. Needs root; without it
//! each test prints why it was skipped.

mod io_lab;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use io_lab::{Namespace, Redirect, Veth};
use penstock_configs::file::{HugePages, ZeroCopy};
use penstock_dataplane::io::xsk::{UmemConfig, Want, WorkerUmem, XskConfig, XskError, XskPort, open_worker};
use penstock_dataplane::io::{BURST, Burst, FramePool, Port};

const MEMORY: UmemConfig = UmemConfig { frames: 2048, frame_size: 2048, huge_pages: HugePages::Off, ring_size: 256 };

/// The box's side: ports and the pool they share.
struct Rig {
    pool: FramePool,
    ports: Vec<XskPort>,
    _programs: Vec<Redirect>,
}

impl Rig {
    /// One port per queue of each interface, in the namespace of the calling thread.
    fn open(veths: &[&Veth], queues: u32, mode: XdpMode) -> Self {
        Self::open_for(veths, queues, mode, XskConfig::default())
    }

    fn open_for(veths: &[&Veth], queues: u32, mode: XdpMode, config: XskConfig) -> Self {
        let attach = |veth: &&Veth| Redirect::attach(&veth.name, mode, config.scatter);
        let mut programs: Vec<Redirect> = veths.iter().map(attach).collect();
        let mut wants = Vec::new();
        for veth in veths {
            wants.extend((0..queues).map(|queue| Want { config, ..want(&veth.name, queue) }));
        }
        let opened = open_worker(&MEMORY, &wants).expect("open");
        for (want, (port, report)) in wants.iter().zip(opened.ports.iter().zip(&opened.reports)) {
            let place = veths.iter().position(|veth| veth.name == want.interface).expect("its veth");
            programs[place].set(want.queue, port.fd());
            assert!(!report.zero_copy, "veth has no zero-copy: {report}");
        }
        let mut rig = Self { pool: opened.pool, ports: opened.ports, _programs: programs };
        rig.service();
        rig
    }

    fn service(&mut self) {
        self.ports.iter_mut().for_each(|port| port.service(&mut self.pool));
    }

    fn held(&self) -> usize {
        self.ports.iter().map(XskPort::frames_held).sum()
    }

    fn assert_conserved(&self, in_hand: usize) {
        self.pool.assert_conserved(self.held(), in_hand);
        for port in &self.ports {
            assert_eq!(port.counters().bad_descriptors, 0);
        }
    }

    /// One turn of a worker: what `from` received leaves through `to`, changed by `rewrite`.
    fn turn(&mut self, from: usize, to: usize, rewrite: impl Fn(&mut [u8])) -> usize {
        let mut burst = Burst::new();
        let count = self.ports[from].rx_burst(&mut self.pool, &mut burst);
        for frame in &mut burst {
            rewrite(self.pool.memory().bytes_mut(frame));
        }
        while !burst.is_empty() {
            self.ports[to].tx_burst(&mut self.pool, &mut burst);
            self.service();
            self.assert_conserved(burst.len());
        }
        self.service();
        self.assert_conserved(0);
        count
    }

    /// Idle turns until nothing is on its way out.
    fn drain(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.ports.iter().any(|port| port.held().1 > 0 || port.tx_pending()) {
            assert!(Instant::now() < end, "frames stuck in transmission: {:?}", self.ports[0].held());
            self.service();
            std::thread::yield_now();
        }
        self.assert_conserved(0);
    }
}

fn want(interface: &str, queue: u32) -> Want {
    Want { interface: interface.into(), queue, config: XskConfig::default() }
}

/// Back to the sender: addresses and ports swap places, so checksums stay right.
fn echo(packet: &mut [u8]) {
    swap(packet, 0, 6, 6);
    swap(packet, 26, 30, 4);
    swap(packet, 34, 36, 2);
}

fn swap(packet: &mut [u8], one: usize, other: usize, len: usize) {
    for index in 0..len {
        packet.swap(one + index, other + index);
    }
}

/// A UDP packet from the box to the peer's port 9, with a number for its payload. No UDP checksum.
fn udp_to_peer(veth: &Veth, number: u32) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(veth.mac(), veth.peer_mac())
        .ipv4([10, 9, veth.net, 1], [10, 9, veth.net, 2], 64)
        .udp(7, 9);
    let mut packet = Vec::new();
    builder.write(&mut packet, &number.to_be_bytes()).expect("in memory");
    packet
}

fn send(client: &UdpSocket, number: u32) {
    assert_eq!(client.send(&number.to_be_bytes()).expect("send"), 4);
}

fn spaces<const N: usize>() -> Option<[Namespace; N]> {
    let spaces: Option<Vec<Namespace>> = (0..N).map(|_| Namespace::new()).collect();
    spaces?.try_into().ok()
}

fn echoes_all(mode: XdpMode) {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, mode);
        let (total, window) = (3000_u32, 50);
        let mut received = 0;
        for start in (0..total).step_by(window) {
            let numbers = start..start + window as u32;
            numbers.clone().for_each(|n| send(&client, n));
            let end = Instant::now() + Duration::from_secs(5);
            while received < numbers.end as usize {
                received += rig.turn(0, 0, echo);
                assert!(Instant::now() < end, "{received} of {} arrived, {:?}", numbers.end, rig.ports[0].stats());
            }
            rig.drain();
            for number in numbers {
                let mut reply = [0; 8];
                assert_eq!(client.recv(&mut reply).expect("an echo"), 4);
                assert_eq!(reply[..4], number.to_be_bytes());
            }
        }
        let stats = rig.ports[0].stats();
        assert_eq!((stats.rx_dropped, stats.rx_ring_full, stats.tx_invalid), (0, 0, 0));
    });
}

#[test]
fn privileged_echo_between_a_kernel_sender_and_a_port() {
    echoes_all(XdpMode::Driver);
}

#[test]
fn privileged_echo_in_generic_mode() {
    echoes_all(XdpMode::Skb);
}

#[test]
fn privileged_a_frame_received_on_one_interface_leaves_on_another() {
    let Some([here, left, right]) = spaces() else { return };
    let (one, two) = (here.veth(&left, 1, 1), here.veth(&right, 2, 1));
    left.run(|| io_lab::sh("ip route add 10.9.2.0/24 via 10.9.1.1"));
    right.run(|| io_lab::sh("ip route add 10.9.1.0/24 via 10.9.2.1"));
    let (sender, receiver) = (one.client(&left, 6000), two.client(&right, 7));
    sender.connect("10.9.2.2:7").unwrap();
    receiver.connect("10.9.1.2:6000").unwrap();
    here.run(|| {
        let mut rig = Rig::open(&[&one, &two], 1, XdpMode::Driver);
        let mut forwarded = 0;
        for number in 0..500_u32 {
            sender.send(&number.to_be_bytes()).unwrap();
            let end = Instant::now() + Duration::from_secs(5);
            while forwarded <= number as usize {
                assert!(Instant::now() < end, "packet {number} did not arrive");
                forwarded += rig.turn(0, 1, |packet| {
                    packet[..6].copy_from_slice(&two.peer_mac());
                    packet[6..12].copy_from_slice(&two.mac());
                });
            }
            let mut reply = [0; 8];
            assert_eq!(receiver.recv(&mut reply).expect("forwarded"), 4);
            assert_eq!(reply[..4], number.to_be_bytes());
        }
        rig.drain();
    });
}

#[test]
fn privileged_four_queues_of_one_interface() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 4);
    let clients: Vec<_> = (0..64).map(|n| veth.client(&peer, 7000 + n)).collect();
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 4, XdpMode::Driver);
        let mut per_queue = [0; 4];
        for round in 0..20_u32 {
            clients.iter().for_each(|client| send(client, round));
            let before: usize = per_queue.iter().sum();
            let end = Instant::now() + Duration::from_secs(5);
            while per_queue.iter().sum::<usize>() < before + clients.len() {
                assert!(Instant::now() < end, "round {round}: {per_queue:?}");
                for (queue, count) in per_queue.iter_mut().enumerate() {
                    *count += rig.turn(queue, queue, echo);
                }
            }
            rig.drain();
            for client in &clients {
                let mut reply = [0; 8];
                assert_eq!(client.recv(&mut reply).expect("an echo"), 4);
            }
        }
        assert!(per_queue.iter().filter(|&&count| count > 0).count() > 1, "one queue only: {per_queue:?}");
    });
}

#[test]
fn privileged_no_tail_of_a_burst_strands() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let sink = veth.client(&peer, 9);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        let mut number = 0_u32;
        for size in 1..=200 {
            let first = number;
            let mut left = size;
            while left > 0 {
                let mut burst = Burst::new();
                for _ in 0..left.min(BURST) {
                    burst.push(rig.pool.take_with(&udp_to_peer(&veth, number)).expect("a frame"));
                    number += 1;
                }
                left -= burst.len();
                while !burst.is_empty() {
                    rig.ports[0].tx_burst(&mut rig.pool, &mut burst);
                    rig.assert_conserved(burst.len());
                }
            }
            // What a worker does before it sleeps, and nothing more.
            let mut turns = 0;
            while rig.ports[0].tx_pending() {
                rig.service();
                turns += 1;
                assert!(turns < 50, "{size} frames still pending after {turns} turns");
            }
            for expected in first..number {
                let mut packet = [0; 8];
                let len = sink.recv(&mut packet).unwrap_or_else(|error| panic!("burst of {size}: {error}"));
                assert_eq!((len, &packet[..4]), (4, expected.to_be_bytes().as_slice()), "burst of {size}");
            }
            rig.drain();
        }
    });
}

#[test]
fn privileged_idle_turns_reap_every_completion() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        // More than the ring takes: the rest stays in the burst and goes later.
        for round in 0..10 {
            let mut burst = Burst::new();
            let mut sent = 0;
            while sent < 300 {
                // Ten, then whole bursts: the last does not fit as a whole.
                let size = if sent == 0 { 10 } else { BURST };
                while burst.len() < size {
                    burst.push(rig.pool.take_with(&udp_to_peer(&veth, round)).expect("a frame"));
                }
                let taken = rig.ports[0].tx_burst(&mut rig.pool, &mut burst);
                rig.assert_conserved(burst.len());
                if taken == 0 {
                    break;
                }
                sent += taken;
            }
            assert_eq!(sent, 256, "a ring full, and all-or-nothing handled");
            burst.drain(..).for_each(|frame| rig.pool.give(frame));
            assert_eq!(rig.ports[0].held().1, 256);
            rig.drain();
        }
    });
}

#[test]
fn privileged_runts_are_dropped_here_and_cost_no_frame() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let sink = veth.client(&peer, 9);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        let mut burst = Burst::new();
        burst.push(rig.pool.take().unwrap());
        burst.push(rig.pool.take_with(&[0; 13]).unwrap());
        burst.push(rig.pool.take_with(&udp_to_peer(&veth, 77)).unwrap());
        burst.push(rig.pool.take_with(&[0; 1]).unwrap());
        assert_eq!(rig.ports[0].tx_burst(&mut rig.pool, &mut burst), 4);
        rig.drain();
        let mut packet = [0; 8];
        assert_eq!(sink.recv(&mut packet).unwrap(), 4);
        assert_eq!(packet[..4], 77_u32.to_be_bytes());
        assert_eq!(rig.ports[0].stats().tx_invalid, 3);
        assert_eq!(rig.ports[0].held(), (256, 0));
    });
}

#[test]
fn privileged_a_flood_beyond_the_rings_is_counted_and_leaks_nothing() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        let mut received = 0;
        for _ in 0..5 {
            // Nobody serves the port meanwhile: 256 fill descriptors are all there are.
            (0..1000).for_each(|n| send(&client, n));
            let end = Instant::now() + Duration::from_millis(200);
            while Instant::now() < end {
                received += rig.turn(0, 0, echo);
            }
        }
        rig.drain();
        let stats = rig.ports[0].stats();
        let lost = 5000 - received as u64;
        assert!(received >= 5 * 256, "{received} {stats:?}");
        assert!(stats.rx_fill_empty + stats.rx_ring_full + stats.rx_dropped >= lost, "{lost} lost, told {stats:?}");
        // Still receiving.
        client.send(b"last").unwrap();
        let end = Instant::now() + Duration::from_secs(2);
        while rig.turn(0, 0, echo) == 0 {
            assert!(Instant::now() < end, "the port is stuck: {:?}", rig.ports[0].held());
        }
    });
}

#[test]
fn privileged_a_link_that_goes_down_and_comes_back() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let sink = veth.client(&peer, 9);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        io_lab::sh(&format!("ip link set {} down", veth.name));
        let mut burst = Burst::new();
        burst.push(rig.pool.take_with(&udp_to_peer(&veth, 5)).unwrap());
        rig.ports[0].tx_burst(&mut rig.pool, &mut burst);
        rig.service();
        assert!(rig.ports[0].stats().kick_errors > 0);
        assert!(!rig.ports[0].tx_pending(), "nothing to stay awake for on a dead link");
        assert_eq!(rig.ports[0].held().1, 1);
        rig.assert_conserved(0);
        io_lab::sh(&format!("ip link set {} up", veth.name));
        rig.drain();
        let mut packet = [0; 8];
        assert_eq!(sink.recv(&mut packet).unwrap(), 4);
    });
}

#[test]
fn privileged_a_closed_queue_is_bound_again_within_a_second() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 2);
    here.run(|| {
        for _ in 0..3 {
            drop(Rig::open(&[&veth], 2, XdpMode::Driver));
            let rig = Rig::open(&[&veth], 2, XdpMode::Driver);
            rig.assert_conserved(0);
        }
    });
}

#[test]
fn privileged_one_socket_of_a_umem_closes_and_opens_again() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 2);
    here.run(|| {
        let (umem, mut pool) = WorkerUmem::new(&MEMORY).unwrap();
        let config = XskConfig::default();
        let (mut first, _) = XskPort::open(&umem, &veth.name, 0, &config).unwrap();
        let (second, _) = XskPort::open(&umem, &veth.name, 1, &config).unwrap();
        drop(second);
        let (mut again, _) = XskPort::open(&umem, &veth.name, 1, &config).unwrap();
        first.service(&mut pool);
        again.service(&mut pool);
        pool.assert_conserved(first.frames_held() + again.frames_held(), 0);
    });
}

#[test]
fn privileged_a_queue_in_use_is_refused_by_name() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    here.run(|| {
        let (umem, _pool) = WorkerUmem::new(&MEMORY).unwrap();
        let _port = XskPort::open(&umem, &veth.name, 0, &XskConfig::default()).unwrap();
        let error = XskPort::open(&umem, &veth.name, 0, &XskConfig::default()).err().unwrap();
        assert!(matches!(error, XskError::QueueBusy { .. }), "the worker's own: {error}");
        let (other, _pool) = WorkerUmem::new(&MEMORY).unwrap();
        let started = Instant::now();
        let error = XskPort::open(&other, &veth.name, 0, &XskConfig::default()).err().unwrap();
        assert!(matches!(error, XskError::QueueBusy { .. }), "{error}");
        assert!(error.to_string().contains("port pio1 queue 0: another AF_XDP socket"), "{error}");
        assert!((5..8).contains(&started.elapsed().as_secs()), "tried for five seconds");
    });
}

#[test]
fn privileged_faults_name_the_port_and_the_remedy() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    here.run(|| {
        let open = |interface: &str, queue, zero_copy, generic| {
            let (umem, _pool) = WorkerUmem::new(&MEMORY).unwrap();
            let config = XskConfig { zero_copy, generic, ..XskConfig::default() };
            XskPort::open(&umem, interface, queue, &config).err().unwrap()
        };
        let error = open(&veth.name, 0, ZeroCopy::Require, false);
        assert!(matches!(error, XskError::ZeroCopyUnsupported { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "port pio1 queue 0: zero_copy = \"require\", but the driver has no zero-copy AF_XDP for this queue; \
             use zero_copy = \"auto\" to run in copy mode"
        );
        let error = open(&veth.name, 0, ZeroCopy::Require, true);
        assert!(matches!(error, XskError::ZeroCopyGeneric { .. }), "{error}");
        let error = open("pio_none", 0, ZeroCopy::Auto, false);
        assert!(matches!(error, XskError::NoInterface { .. }), "{error}");
        let error = open(&veth.name, 5, ZeroCopy::Auto, false);
        assert!(matches!(error, XskError::NoQueue { .. }), "{error}");
        assert!(error.to_string().contains("ethtool -l pio1"), "{error}");
    });
}

#[test]
fn privileged_missing_capabilities_are_explained() {
    let Some([here]) = spaces() else { return };
    // Capabilities are of the thread, which ends with the closure.
    here.run(|| {
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_IPC_LOCK).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        let large = UmemConfig { frames: 65_536, ..MEMORY };
        match (limit, WorkerUmem::new(&large)) {
            (Some(limit), Err(error)) if limit < 128 << 20 => {
                assert!(matches!(error, XskError::Memlock { .. }), "{error}");
                assert!(error.to_string().contains("CAP_IPC_LOCK"), "{error}");
            }
            (limit, made) => assert!(made.is_ok(), "limit {limit:?}"),
        }
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_RAW).unwrap();
        let error = WorkerUmem::new(&MEMORY).err().unwrap();
        assert!(matches!(error, XskError::Permission), "{error}");
    });
}

#[test]
fn privileged_busy_polling_still_echoes() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        rig.ports.clear();
        let mut program = rig._programs.pop().unwrap();
        drop(rig);
        let config = XskConfig { busy_poll_budget: 64, ..XskConfig::default() };
        let wants = [Want { config, ..want(&veth.name, 0) }];
        let opened = open_worker(&MEMORY, &wants).unwrap();
        assert!(opened.reports[0].busy_poll, "{}", opened.reports[0]);
        program.set(0, opened.ports[0].fd());
        let mut rig = Rig { pool: opened.pool, ports: opened.ports, _programs: vec![program] };
        rig.service();
        for number in 0..100_u32 {
            client.send(&number.to_be_bytes()).unwrap();
            let end = Instant::now() + Duration::from_secs(5);
            while rig.turn(0, 0, echo) == 0 {
                assert!(Instant::now() < end);
            }
            rig.drain();
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 4);
        }
    });
}

#[test]
fn privileged_a_sleeper_wakes_on_a_packet() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        let slept = |rig: &Rig, limit: Duration| {
            let fd = rig.ports[0].poll_fd().expect("a descriptor");
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec::try_from(limit).unwrap();
            rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 0
        };
        assert!(slept(&rig, Duration::from_millis(20)), "nothing came, nothing is pending");
        for number in 0..20 {
            send(&client, number);
            assert!(!slept(&rig, Duration::from_secs(2)), "packet {number} woke nobody");
            assert_eq!(rig.turn(0, 0, echo), 1);
            rig.drain();
        }
    });
}

#[test]
fn privileged_frames_of_4096_bytes_take_larger_packets() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    for (space, name) in [(&here, "pio1"), (&peer, "pio1p")] {
        space.run(|| io_lab::sh(&format!("ip link set {name} mtu 3400")));
    }
    for (frame_size, fits) in [(2048, false), (4096, true)] {
        here.run(|| {
            let mut program = Redirect::attach(&veth.name, XdpMode::Driver, false);
            let opened = open_worker(&UmemConfig { frame_size, ..MEMORY }, &[want(&veth.name, 0)]).expect("open");
            program.set(0, opened.ports[0].fd());
            let mut rig = Rig { pool: opened.pool, ports: opened.ports, _programs: vec![program] };
            rig.service();
            assert_eq!(client.send(&[9; 3000]).unwrap(), 3000);
            send(&client, 1);
            let end = Instant::now() + Duration::from_secs(2);
            let mut received = 0;
            while received < 1 + usize::from(fits) {
                received += rig.turn(0, 0, echo);
                assert!(Instant::now() < end, "{received} received, {:?}", rig.ports[0].stats());
            }
            assert_eq!(rig.ports[0].stats().rx_dropped, u64::from(!fits));
            rig.drain();
            let mut reply = [0; 4000];
            if fits {
                assert_eq!(client.recv(&mut reply).unwrap(), 3000);
            }
            assert_eq!(client.recv(&mut reply).unwrap(), 4);
        });
    }
}

#[test]
fn privileged_huge_pages_are_used_where_there_are_some_and_reported_where_not() {
    let Some([here]) = spaces() else { return };
    here.run(|| {
        let auto = UmemConfig { huge_pages: HugePages::Auto, ..MEMORY };
        let require = UmemConfig { huge_pages: HugePages::Require, ..MEMORY };
        let (umem, _pool) = WorkerUmem::new(&auto).unwrap();
        let report = umem.report().clone();
        match WorkerUmem::new(&require) {
            // The memory of `auto`, still mapped, may have used the last.
            Ok((umem, pool)) => {
                assert!(umem.report().huge_pages && report.huge_pages);
                assert_eq!(pool.frame_count() as u32, umem.report().frames);
                assert!(pool.frame_count() >= 2048, "rounded up to whole pages");
            }
            Err(error) => {
                assert!(matches!(error, XskError::NoHugePages { .. }), "{error}");
                assert!(error.to_string().contains("sysctl vm.nr_hugepages="), "{error}");
                assert_eq!(report.huge_pages, report.note.is_none());
            }
        }
    });
}

/// Datagrams of every size up to a jumbo frame's, through ports whose frames hold 1,792 bytes: between a kernel and a
/// port, from one interface to another, and back.
fn jumbo(mode: XdpMode) {
    let Some([here, left, right]) = spaces() else { return };
    let (one, two) = (here.veth(&left, 1, 1), here.veth(&right, 2, 1));
    let mtu = |space: &Namespace, name: &str| space.run(|| io_lab::sh(&format!("ip link set {name} mtu 9000")));
    for (veth, far) in [(&one, &left), (&two, &right)] {
        mtu(&here, &veth.name);
        mtu(far, &format!("{}p", veth.name));
    }
    left.run(|| io_lab::sh("ip route add 10.9.2.0/24 via 10.9.1.1"));
    right.run(|| io_lab::sh("ip route add 10.9.1.0/24 via 10.9.2.1"));
    let (sender, receiver) = (one.client(&left, 6000), two.client(&right, 7));
    sender.connect("10.9.2.2:7").unwrap();
    receiver.connect("10.9.1.2:6000").unwrap();
    let pass_on = |rig: &mut Rig, from: usize, to: usize, veth: &Veth| {
        let end = Instant::now() + Duration::from_secs(5);
        let onwards = |packet: &mut [u8]| {
            packet[..6].copy_from_slice(&veth.peer_mac());
            packet[6..12].copy_from_slice(&veth.mac());
        };
        while rig.turn(from, to, onwards) == 0 {
            assert!(Instant::now() < end, "nothing came: {:?}", rig.ports[from].stats());
        }
    };
    here.run(|| {
        let config = XskConfig { scatter: true, ..XskConfig::default() };
        let mut rig = Rig::open_for(&[&one, &two], 1, mode, config);
        let mut reply = vec![0; 10_000];
        let mut chains = 0;
        // Headers are 42 bytes. Around the ends of frames, and steps between.
        let edges = (1..6).flat_map(|frames| frames * 1792 - 44..frames * 1792 - 40);
        for size in edges.chain((1..8972).step_by(331)).chain([8972]) {
            let sent: Vec<u8> = (0..size).map(|at| (at * 7 + at / 251) as u8).collect();
            chains += u64::from(42 + size > 1792);
            for (from, to, ends, veth) in [(0, 1, [&sender, &receiver], &two), (1, 0, [&receiver, &sender], &one)] {
                ends[0].send(&sent).unwrap();
                pass_on(&mut rig, from, to, veth);
                let len = ends[1].recv(&mut reply).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
                assert!(reply[..len] == sent, "{size} bytes became {len}, or others");
            }
        }
        rig.drain();
        for port in &rig.ports {
            let stats = port.stats();
            assert_eq!((stats.rx_chains, stats.rx_oversize, stats.rx_dropped, stats.tx_invalid), (chains, 0, 0, 0));
        }
    });
}

#[test]
fn privileged_jumbo_frames_in_several_frames() {
    jumbo(XdpMode::Driver);
}

#[test]
fn privileged_jumbo_frames_in_generic_mode() {
    jumbo(XdpMode::Skb);
}

/// A ring with room for some of a packet's frames takes none of them; and a burst of jumbo packets leaves whole.
#[test]
fn privileged_a_packet_is_sent_whole_or_not_at_all() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    peer.run(|| io_lab::sh("ip link set pio1p mtu 9000"));
    here.run(|| io_lab::sh("ip link set pio1 mtu 9000"));
    let sink = veth.client(&peer, 9);
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&sink, 8 << 20).unwrap();
    here.run(|| {
        let config = XskConfig { scatter: true, ..XskConfig::default() };
        let mut rig = Rig::open_for(&[&veth], 1, XdpMode::Driver, config);
        let mut number = 0_u32;
        let packet = |number: u32| {
            let builder = etherparse::PacketBuilder::ethernet2(veth.mac(), veth.peer_mac());
            let builder = builder.ipv4([10, 9, 1, 1], [10, 9, 1, 2], 64).udp(7, 9);
            let mut packet = Vec::new();
            builder
                .write(&mut packet, &[&number.to_be_bytes()[..], &[number as u8; 4996]].concat())
                .expect("in memory");
            packet
        };
        for _ in 0..5 {
            let first = number;
            let mut burst = Burst::new();
            // Three frames each: the ring of 256 takes 85 packets, and one slot is left.
            loop {
                while !burst.is_full() {
                    burst.push(rig.pool.take_packet(&packet(number)).expect("frames"));
                    number += 1;
                }
                let before = burst.len();
                let sent = rig.ports[0].tx_burst(&mut rig.pool, &mut burst);
                rig.assert_conserved(burst.len());
                assert_eq!(before - burst.len(), sent);
                if sent == 0 {
                    break;
                }
            }
            assert_eq!(rig.ports[0].held().1, 255);
            let left = burst.len() as u32;
            burst.drain(..).for_each(|frame| rig.pool.give(frame));
            let mut buffer = [0; 6000];
            for expected in first..number - left {
                rig.service();
                let len = sink.recv(&mut buffer).expect("a datagram");
                assert_eq!((len, &buffer[..4]), (5000, &expected.to_be_bytes()[..]));
                assert!(buffer[4..len].iter().all(|byte| *byte == expected as u8));
            }
            rig.drain();
        }
    });
}
