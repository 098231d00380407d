//! A host's interface as a load's end: AF_XDP sockets on all its queues, ARP left to the kernel.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::XskMap;
use aya::programs::{Xdp, XdpMode};
use penstock_configs::file::HugePages;
use penstock_dataplane::io::xsk::{UmemConfig, Want, WorkerUmem, XskConfig, XskPort, open_worker};
use penstock_dataplane::io::{Burst, Frame, FramePool, Port, PortStats};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/load.bpf.o"));

/// Received packets go into the same memory as those to be sent.
const FRAMES: u32 = 8192;
/// More costs cache (18 % under overload with 4,096).
const RING: u32 = 512;

/// Sockets on every queue of one interface. Fields are dropped in order: sockets before their memory.
pub struct Endpoint {
    ports: Vec<XskPort>,
    pub pool: FramePool,
    _program: Ebpf,
    _umem: WorkerUmem,
}

impl Endpoint {
    /// Opens the interface, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No AF_XDP here, or somebody else's XDP program on the interface.
    pub fn open(interface: &str, queues: u16) -> Result<Self> {
        let memory = UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: HugePages::Auto, ring_size: RING };
        let want = |queue| Want { interface: interface.into(), queue, config: XskConfig::default() };
        let opened = open_worker(&memory, &(0..u32::from(queues)).map(want).collect::<Vec<_>>())?;
        let mut program = Ebpf::load(OBJECT).context("the load's XDP program")?;
        let xdp: &mut Xdp = program.program_mut("load").context("load.bpf.o has no program")?.try_into()?;
        xdp.load()?;
        // A generic program would see packets only after the kernel made buffers of them.
        xdp.attach(interface, XdpMode::Driver)
            .or_else(|_| xdp.attach(interface, XdpMode::Skb))
            .with_context(|| format!("an XDP program on {interface}"))?;
        let mut sockets: XskMap<_> = program.map_mut("sockets").context("load.bpf.o has no map")?.try_into()?;
        for (queue, port) in (0..).zip(&opened.ports) {
            sockets.set(queue, port.fd().as_raw_fd(), 0).context("entering a socket")?;
        }
        let mut endpoint = Self { ports: opened.ports, pool: opened.pool, _program: program, _umem: opened.umem };
        endpoint.service();
        Ok(endpoint)
    }

    /// Sends what it can of a burst by one queue; the rest stays in it. A flow's packets belong on one
    /// queue: others overtake them.
    pub fn send(&mut self, queue: usize, burst: &mut Burst) -> usize {
        self.ports[queue].tx_burst(&mut self.pool, burst)
    }

    #[must_use]
    pub fn queues(&self) -> usize {
        self.ports.len()
    }

    /// Shows every packet that came to `look`; those it keeps are sent back by the queue they came by. Returns how
    /// many of them the ring did not take.
    pub fn receive(&mut self, mut look: impl FnMut(&mut [u8]) -> bool) -> u64 {
        let mut refused = 0;
        for port in &mut self.ports {
            let (mut came, mut back) = (Burst::new(), Burst::new());
            port.rx_burst(&mut self.pool, &mut came);
            for mut frame in came {
                if look(self.pool.memory().bytes_mut(&mut frame)) {
                    back.push(frame);
                } else {
                    self.pool.give(frame);
                }
            }
            if !back.is_empty() {
                port.tx_burst(&mut self.pool, &mut back);
                refused += back.len() as u64;
                back.into_iter().for_each(|frame| self.pool.give(frame));
            }
        }
        refused
    }

    /// A free frame of this length.
    pub fn frame(&mut self, len: usize) -> Option<Frame> {
        let mut frame = self.pool.take()?;
        if self.pool.memory().set_len(&mut frame, len) {
            return Some(frame);
        }
        self.pool.give(frame);
        None
    }

    /// Once per turn: completions, fill rings, wake-ups.
    pub fn service(&mut self) {
        for port in &mut self.ports {
            port.service(&mut self.pool);
        }
    }

    /// Packets the kernel had no room for in the rings of this end: loss that is not the box's.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.ports.iter().map(|port| missed(&port.stats())).sum()
    }
}

/// Where the fill ring is empty in copy mode, one packet moves two counters: it is dropped, and that ring was empty.
fn missed(stats: &PortStats) -> u64 {
    stats.rx_dropped + stats.rx_ring_full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_packet_is_one() {
        let stats = PortStats { rx_dropped: 400, rx_fill_empty: 400, rx_ring_full: 3, ..PortStats::default() };
        assert_eq!(missed(&stats), 403);
    }
}
