//! The packet path of the ports allocates nothing. A test binary of its own, as it replaces the allocator.

#[path = "support/counting_allocator.rs"]
mod counting_allocator;
#[allow(dead_code, reason = "shared with the AF_XDP tests, which use more of it")]
mod io_lab;

use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use counting_allocator::calls;
use penstock_configs::file::HugePages;
use penstock_dataplane::io::fault::{FaultPort, Faults};
use penstock_dataplane::io::mem::{self, Refresh, RingPort, SinkPort};
use penstock_dataplane::io::xsk::{UmemConfig, Want, XskConfig, open_worker};
use penstock_dataplane::io::{Burst, FramePool, PacketMemory, Port};

/// Turns of a worker that sends back what it received. Returns how many packets it moved.
fn turns(port: &mut impl Port, pool: &mut FramePool, count: usize) -> usize {
    let mut burst = Burst::new();
    let mut moved = 0;
    for _ in 0..count {
        port.rx_burst(pool, &mut burst);
        moved += port.tx_burst(pool, &mut burst);
        port.service(pool);
    }
    burst.drain(..).for_each(|frame| pool.give(frame));
    moved
}

fn pool() -> FramePool {
    FramePool::new(PacketMemory::heap(1024, 2048, 256))
}

#[test]
fn the_counter_counts() {
    let before = calls();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(calls() - before, 2);
}

#[test]
fn memory_ports_allocate_nothing() {
    let mut pool = pool();
    let (mut port, peer) = mem::pair(256);
    (0..200).for_each(|n| assert!(peer.inject(&[n; 60])));
    let before = calls();
    assert_eq!(turns(&mut port, &mut pool, 10), 200);
    assert_eq!(calls() - before, 0);

    let mut ring = RingPort::new(&mut pool, &[[1; 60], [2; 60]], 256, Refresh::Copy);
    let mut sink = SinkPort::default();
    let before = calls();
    assert_eq!(turns(&mut ring, &mut pool, 100), 6400);
    let mut burst = Burst::new();
    ring.rx_burst(&mut pool, &mut burst);
    sink.tx_burst(&mut pool, &mut burst);
    ring.service(&mut pool);
    assert_eq!(calls() - before, 0);
    pool.assert_conserved(ring.frames_held(), 0);
}

#[test]
fn faults_allocate_nothing() {
    let mut pool = pool();
    let ring = RingPort::new(&mut pool, &[[1; 60]], 256, Refresh::Copy);
    let mut port = FaultPort::new(ring, Faults::rough(), 1);
    let before = calls();
    assert!(turns(&mut port, &mut pool, 1000) > 1000);
    assert_eq!(calls() - before, 0);
    pool.assert_conserved(port.frames_held(), 0);
}

#[test]
fn privileged_an_af_xdp_port_allocates_nothing() {
    let (Some(here), Some(peer)) = (io_lab::Namespace::new(), io_lab::Namespace::new()) else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let memory = UmemConfig { frames: 1024, frame_size: 2048, huge_pages: HugePages::Off, ring_size: 256 };
        let want = Want { interface: veth.name.clone(), queue: 0, config: XskConfig::default() };
        let mut program = io_lab::Redirect::attach(&veth.name, XdpMode::Driver, false);
        let mut opened = open_worker(&memory, &[want]).expect("open");
        let (port, pool) = (&mut opened.ports[0], &mut opened.pool);
        program.set(0, port.fd());
        let before = calls();
        port.service(pool);
        let (mut sent, mut moved) = (0, 0);
        let end = Instant::now() + Duration::from_secs(10);
        while moved < 1000 {
            while sent < moved + 100 {
                sent += usize::from(client.send(b"payload").is_ok());
            }
            moved += turns(port, pool, 10);
            let _ = port.stats();
            assert!(Instant::now() < end, "{moved} of {sent} moved");
        }
        assert_eq!(calls() - before, 0);
        pool.assert_conserved(port.frames_held(), 0);
    });
}
