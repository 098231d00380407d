//! How fast a bare forwarder over the ports is: not a test of anything, a number to compare with.
//! `cargo test -p penstock-dataplane --release --test io_rate -- --ignored --nocapture`

#[allow(dead_code, reason = "shared with the AF_XDP tests, which use more of it")]
mod io_lab;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use io_lab::{Namespace, Redirect, Veth};
use penstock_configs::file::HugePages;
use penstock_dataplane::io::mem::{Refresh, RingPort};
use penstock_dataplane::io::xsk::{UmemConfig, Want, XskConfig, XskPort, open_worker};
use penstock_dataplane::io::{Burst, FramePool, PacketMemory, Port};

const SECONDS: u64 = 2;

fn open(name: &str, ring_size: u32) -> (FramePool, XskPort) {
    let memory = UmemConfig { frames: 8192, frame_size: 2048, huge_pages: HugePages::Auto, ring_size };
    let want = Want { interface: name.into(), queue: 0, config: XskConfig::default() };
    let mut opened = open_worker(&memory, &[want]).expect("open");
    (opened.pool, opened.ports.remove(0))
}

/// Sends the same packet until told to stop. Returns how many.
fn generate(veth: &Veth, stop: &AtomicBool) -> u64 {
    let (mut pool, mut port) = open(&format!("{}p", veth.name), 512);
    let mut packet = [0; 60];
    packet[..6].copy_from_slice(&veth.mac());
    packet[6..12].copy_from_slice(&veth.peer_mac());
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    let (mut sent, mut burst) = (0, Burst::new());
    while !stop.load(Ordering::Relaxed) {
        while !burst.is_full() {
            let Some(frame) = pool.take_with(&packet) else { break };
            burst.push(frame);
        }
        sent += port.tx_burst(&mut pool, &mut burst) as u64;
        port.service(&mut pool);
    }
    sent
}

/// Processor time of the calling thread: other work on the machine spoils the rate, not this.
fn thread_nanos() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Swaps the addresses of what comes and sends it back. Returns packets and received-but-dropped.
fn forward(port: &mut XskPort, pool: &mut FramePool, reply: bool) -> (u64, u64) {
    let (mut moved, mut dropped, mut burst) = (0, 0, Burst::new());
    let end = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < end {
        for _ in 0..64 {
            port.rx_burst(pool, &mut burst);
            if reply {
                for frame in &mut burst {
                    let packet = pool.memory().bytes_mut(frame);
                    let (to, from) = packet[..12].split_at_mut(6);
                    to.swap_with_slice(from);
                }
                moved += port.tx_burst(pool, &mut burst) as u64;
                dropped += burst.len() as u64;
            } else {
                moved += burst.len() as u64;
            }
            burst.drain(..).for_each(|frame| pool.give(frame));
            port.service(pool);
        }
    }
    pool.assert_conserved(port.frames_held(), 0);
    (moved, dropped)
}

#[test]
#[ignore = "a measurement, of some seconds on two whole cores"]
fn privileged_rate_of_a_bare_forwarder() {
    let (Some(here), Some(peer)) = (Namespace::new(), Namespace::new()) else { return };
    let veth = here.veth(&peer, 1, 1);
    for (what, ring_size, reply) in
        [("receive and drop", 512, false), ("MAC swap, same port", 512, true), ("MAC swap, rings of 1024", 1024, true)]
    {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let generator = scope.spawn(|| {
                core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
                peer.run(|| generate(&veth, &stop))
            });
            here.run(|| {
                core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
                let mut program = Redirect::attach(&veth.name, XdpMode::Driver, false);
                let (mut pool, mut port) = open(&veth.name, ring_size);
                program.set(0, port.fd());
                let before = thread_nanos();
                let (moved, dropped) = forward(&mut port, &mut pool, reply);
                let nanos = (thread_nanos() - before) / moved as f64;
                let rate = moved as f64 / SECONDS as f64 / 1e6;
                println!(
                    "{what}: {rate:.2} Mpps, {nanos:.0} ns each; {dropped} dropped; {:?}; {:?}",
                    port.counters(),
                    port.stats()
                );
            });
            stop.store(true, Ordering::Relaxed);
            let sent = generator.join().expect("no panic in there");
            println!("  generator: {:.2} Mpps", sent as f64 / SECONDS as f64 / 1e6);
        });
    }
}

/// What a packet costs the worker's thread, on a machine that is busy with other things: one thread sends
/// a load, and then forwards it, and only the second is counted.
#[test]
#[ignore = "a measurement"]
fn privileged_cost_of_a_forwarded_packet() {
    let (Some(here), Some(peer)) = (Namespace::new(), Namespace::new()) else { return };
    let veth = here.veth(&peer, 1, 1);
    let (mut far_pool, mut far) = peer.run(|| open(&format!("{}p", veth.name), 512));
    here.run(|| {
        core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
        let mut program = Redirect::attach(&veth.name, XdpMode::Driver, false);
        let (mut pool, mut port) = open(&veth.name, 512);
        program.set(0, port.fd());
        port.service(&mut pool);
        let mut packet = [0; 60];
        packet[..6].copy_from_slice(&veth.mac());
        packet[6..12].copy_from_slice(&veth.peer_mac());
        let mut spent = [0.0; 4];
        let (mut moved, mut burst) = (0_usize, Burst::new());
        for _ in 0..2000 {
            for _ in 0..4 {
                while !burst.is_full() {
                    burst.push(far_pool.take_with(&packet).expect("a frame"));
                }
                far.tx_burst(&mut far_pool, &mut burst);
                burst.drain(..).for_each(|frame| far_pool.give(frame));
                far.service(&mut far_pool);
            }
            loop {
                let times: [f64; 5] = {
                    let start = thread_nanos();
                    port.rx_burst(&mut pool, &mut burst);
                    let received = thread_nanos();
                    for frame in &mut burst {
                        let bytes = pool.memory().bytes_mut(frame);
                        let (to, from) = bytes[..12].split_at_mut(6);
                        to.swap_with_slice(from);
                    }
                    let swapped = thread_nanos();
                    let count = port.tx_burst(&mut pool, &mut burst);
                    let given = thread_nanos();
                    port.service(&mut pool);
                    moved += count;
                    if count == 0 {
                        break;
                    }
                    [start, received, swapped, given, thread_nanos()]
                };
                spent.iter_mut().zip(times.windows(2)).for_each(|(sum, pair)| *sum += pair[1] - pair[0]);
            }
        }
        let [receive, swap, transmit, service] = spent.map(|sum| sum / moved as f64);
        println!("{moved} packets, ns each: receive {receive:.0}, swap {swap:.0}, transmit {transmit:.0}, service {service:.0}; {:?}", port.counters());
    });
}

#[test]
#[ignore = "a measurement"]
fn rate_of_the_memory_ring() {
    for refresh in [Refresh::Keep, Refresh::Copy] {
        let mut pool = FramePool::new(PacketMemory::heap(1024, 2048, 256));
        let mut port = RingPort::new(&mut pool, &[[7; 60]], 512, refresh);
        let mut burst = Burst::new();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            for _ in 0..1000 {
                port.rx_burst(&mut pool, &mut burst);
                port.tx_burst(&mut pool, &mut burst);
            }
        }
        let nanos = start.elapsed().as_nanos() as f64 / port.transmitted() as f64;
        println!("ring, {refresh:?}: {nanos:.1} ns a packet");
    }
}
