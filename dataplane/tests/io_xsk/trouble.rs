//! What goes wrong: bad frames, floods, links that go, queues in use, missing rights and memory.

use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use penstock_configs::file::{HugePages, ZeroCopy};
use penstock_dataplane::io::xsk::{UmemConfig, WorkerUmem, XskConfig, XskError, XskPort};
use penstock_dataplane::io::{Burst, Port};

use crate::io_lab;
use crate::rig::{MEMORY, Rig, echo, send, spaces, udp_to_peer};

const PATIENCE: Duration = Duration::from_secs(10);

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
        for round in 1..=5 {
            // Nobody serves the port meanwhile: 256 fill descriptors are all there are.
            (0..1000).for_each(|n| send(&client, n));
            let end = Instant::now() + PATIENCE;
            while received < round * 256 {
                received += rig.turn(0, 0, echo);
                assert!(Instant::now() < end, "{received} {:?}", rig.ports[0].stats());
            }
        }
        // What did not come is told, once: with room in the receive ring for every frame in the fill ring it is always the
        // fill ring that is empty first, which the kernel counts as a drop, and beside the drops.
        let end = Instant::now() + PATIENCE;
        loop {
            received += rig.turn(0, 0, echo);
            let stats = rig.ports[0].stats();
            if received as u64 + stats.rx_dropped >= 5000 {
                assert_eq!((stats.rx_fill_empty, stats.rx_ring_full), (stats.rx_dropped, 0));
                break;
            }
            assert!(Instant::now() < end, "{received} of 5000 received, told {stats:?}");
        }
        rig.drain();
        // Still receiving.
        client.send(b"last").unwrap();
        let end = Instant::now() + PATIENCE;
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
        assert!(started.elapsed() >= Duration::from_secs(5), "tried for five seconds");
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
