//! The box's side of the tests: ports, the pool they share, and what a worker does with them.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use penstock_configs::file::HugePages;
use penstock_dataplane::io::xsk::{UmemConfig, Want, XskConfig, XskPort, open_worker};
use penstock_dataplane::io::{Burst, FramePool, Port};

use crate::io_lab::{Namespace, Redirect, Veth};

pub(crate) const MEMORY: UmemConfig =
    UmemConfig { frames: 2048, frame_size: 2048, huge_pages: HugePages::Off, ring_size: 256 };

/// The box's side: ports and the pool they share.
pub(crate) struct Rig {
    pub(crate) pool: FramePool,
    pub(crate) ports: Vec<XskPort>,
    pub(crate) programs: Vec<Redirect>,
}

impl Rig {
    /// One port per queue of each interface, in the namespace of the calling thread.
    pub(crate) fn open(veths: &[&Veth], queues: u32, mode: XdpMode) -> Self {
        Self::open_for(veths, queues, mode, XskConfig::default())
    }

    pub(crate) fn open_for(veths: &[&Veth], queues: u32, mode: XdpMode, config: XskConfig) -> Self {
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
        let mut rig = Self { pool: opened.pool, ports: opened.ports, programs };
        rig.service();
        rig
    }

    pub(crate) fn service(&mut self) {
        self.ports.iter_mut().for_each(|port| port.service(&mut self.pool));
    }

    pub(crate) fn held(&self) -> usize {
        self.ports.iter().map(XskPort::frames_held).sum()
    }

    pub(crate) fn assert_conserved(&self, in_hand: usize) {
        self.pool.assert_conserved(self.held(), in_hand);
        for port in &self.ports {
            assert_eq!(port.counters().bad_descriptors, 0);
        }
    }

    /// One turn of a worker: what `from` received leaves through `to`, changed by `rewrite`.
    pub(crate) fn turn(&mut self, from: usize, to: usize, rewrite: impl Fn(&mut [u8])) -> usize {
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
    pub(crate) fn drain(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.ports.iter().any(|port| port.held().1 > 0 || port.tx_pending()) {
            assert!(Instant::now() < end, "frames stuck in transmission: {:?}", self.ports[0].held());
            self.service();
            std::thread::yield_now();
        }
        self.assert_conserved(0);
    }
}

pub(crate) fn want(interface: &str, queue: u32) -> Want {
    Want { interface: interface.into(), queue, config: XskConfig::default() }
}

/// Back to the sender: addresses and ports swap places, so checksums stay right.
pub(crate) fn echo(packet: &mut [u8]) {
    swap(packet, 0, 6, 6);
    swap(packet, 26, 30, 4);
    swap(packet, 34, 36, 2);
}

pub(crate) fn swap(packet: &mut [u8], one: usize, other: usize, len: usize) {
    for index in 0..len {
        packet.swap(one + index, other + index);
    }
}

/// A UDP packet from the box to the peer's port 9, with a number for its payload. No UDP checksum.
pub(crate) fn udp_to_peer(veth: &Veth, number: u32) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(veth.mac(), veth.peer_mac())
        .ipv4([10, 9, veth.net, 1], [10, 9, veth.net, 2], 64)
        .udp(7, 9);
    let mut packet = Vec::new();
    builder.write(&mut packet, &number.to_be_bytes()).expect("in memory");
    packet
}

pub(crate) fn send(client: &UdpSocket, number: u32) {
    assert_eq!(client.send(&number.to_be_bytes()).expect("send"), 4);
}

pub(crate) fn spaces<const N: usize>() -> Option<[Namespace; N]> {
    let spaces: Option<Vec<Namespace>> = (0..N).map(|_| Namespace::new()).collect();
    spaces?.try_into().ok()
}
