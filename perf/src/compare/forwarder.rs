//! The bare AF_XDP forwarder: the limit a load balancer over AF_XDP can come near to. Receive a burst, rewrite
//! addresses (to one node and back, known beforehand: nothing is looked up), transmit; rings serviced once a
//! turn, as every worker must. It runs over the dataplane's own ports, so the difference is what Penstock adds.

use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::XskMap;
use aya::programs::{Xdp, XdpMode};
use clap::Args;
use penstock_configs::file::{HugePages, WorkersConfig};
use penstock_dataplane::clock::Now;
use penstock_dataplane::io::xsk::{UmemConfig, Want, XskConfig, XskPort, open_worker};
use penstock_dataplane::io::{Burst, FramePool, Port};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// UDP and TCP to the socket of their queue, the rest (ARP) to the kernel.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/load.bpf.o"));

const NAP: Duration = Duration::from_millis(50);

/// Forwards between two interfaces of the namespace it runs in, until it is killed.
#[derive(Debug, Clone, Args)]
pub struct ForwarderArgs {
    /// Towards the client
    #[arg(long)]
    clients: String,
    /// Towards the node
    #[arg(long)]
    nodes: String,
    #[arg(long, value_parser = mac)]
    client_mac: [u8; 6],
    #[arg(long, value_parser = mac)]
    node_mac: [u8; 6],
    /// What clients send to
    #[arg(long)]
    vip: SocketAddrV4,
    /// What it becomes
    #[arg(long)]
    node: SocketAddrV4,
    #[arg(long)]
    core: Option<usize>,
    /// Never sleep
    #[arg(long)]
    spin: bool,
    /// Else sleep after so many microseconds without a packet, as an adaptive worker does
    #[arg(long, default_value_t = 50)]
    idle: u64,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| format!("{text:?} is no link-layer address"))
}

/// What to write into every packet of one direction.
#[derive(Debug, Clone, Copy)]
pub struct Rewrite {
    /// Destination and source, as they are in the frame.
    macs: [u8; 12],
    /// Where the IPv4 address is: 26 source, 30 destination.
    address_at: usize,
    /// Where the port is: 34 source, 36 destination.
    port_at: usize,
    to: SocketAddrV4,
    /// What address and port change the checksums by, in ones' complement (RFC 1624, equation 3).
    address_delta: u32,
    both_delta: u32,
}

impl Rewrite {
    /// Packets towards the node (`towards`), or back from it.
    #[must_use]
    pub fn new(towards: bool, to_mac: [u8; 6], own_mac: [u8; 6], from: SocketAddrV4, to: SocketAddrV4) -> Self {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&to_mac);
        macs[6..].copy_from_slice(&own_mac);
        let (address_at, port_at) = if towards { (30, 36) } else { (26, 34) };
        let address_delta = change(from.ip().octets(), to.ip().octets());
        let both_delta = address_delta + (u32::from(!from.port()) + u32::from(to.port()));
        Self { macs, address_at, port_at, to, address_delta, both_delta }
    }

    /// Rewrites a packet; one that is neither TCP nor UDP over plain IPv4 gets its MACs only.
    #[inline]
    pub fn apply(&self, packet: &mut [u8]) {
        let len = packet.len().min(54);
        let header = &mut packet[..len];
        if len < 42 {
            return;
        }
        header[..12].copy_from_slice(&self.macs);
        let l4_check = match (header[14], header[23]) {
            (0x45, 17) => 40,
            (0x45, 6) if len >= 52 => 50,
            _ => return,
        };
        header[self.address_at..self.address_at + 4].copy_from_slice(&self.to.ip().octets());
        header[self.port_at..self.port_at + 2].copy_from_slice(&self.to.port().to_be_bytes());
        adjust(header, 24, self.address_delta);
        // Zero says that a datagram has no checksum (RFC 768): it stays so, and a sum of zero is sent as its other form.
        if l4_check == 50 || header[40..42] != [0, 0] {
            adjust(header, l4_check, self.both_delta);
            if header[l4_check..l4_check + 2] == [0, 0] {
                header[l4_check..l4_check + 2].fill(0xff);
            }
        }
    }
}

/// Old words complemented plus new words.
fn change(from: [u8; 4], to: [u8; 4]) -> u32 {
    let words = |bytes: [u8; 4]| [u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])];
    let old: u32 = words(from).map(|word| u32::from(!word)).iter().sum();
    old + words(to).map(u32::from).iter().sum::<u32>()
}

#[inline]
fn adjust(packet: &mut [u8], at: usize, delta: u32) {
    let mut sum = u32::from(!u16::from_be_bytes([packet[at], packet[at + 1]])) + delta;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    packet[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// A socket, and what becomes of its packets.
struct Side {
    port: XskPort,
    rewrite: Rewrite,
    _program: Ebpf,
}

/// Runs the forwarder in its process's namespace, until that is killed.
///
/// # Errors
/// No AF_XDP there, or somebody else's XDP program on an interface.
pub fn command(args: &ForwarderArgs) -> Result<()> {
    if let Some(core) = args.core {
        ensure!(core_affinity::set_for_current(core_affinity::CoreId { id: core }), "core {core} can't be pinned to");
    }
    // Memory and rings as the dataplane has them by default.
    let workers = WorkersConfig::default();
    let memory = UmemConfig {
        frames: workers.frames,
        frame_size: workers.frame_size,
        huge_pages: HugePages::Auto,
        ring_size: workers.ring_size,
    };
    let want = |interface: &String| Want { interface: interface.clone(), queue: 0, config: XskConfig::default() };
    let mut opened = open_worker(&memory, &[want(&args.clients), want(&args.nodes)])?;
    let (Some(nodes), Some(clients)) = (opened.ports.pop(), opened.ports.pop()) else {
        anyhow::bail!("two sockets were asked for");
    };
    let towards = Rewrite::new(true, args.node_mac, own_mac(&args.nodes)?, args.vip, args.node);
    let back = Rewrite::new(false, args.client_mac, own_mac(&args.clients)?, args.node, args.vip);
    let mut sides = [
        Side { _program: attach(&args.clients, &clients)?, port: clients, rewrite: towards },
        Side { _program: attach(&args.nodes, &nodes)?, port: nodes, rewrite: back },
    ];
    forward(&mut sides, &mut opened.pool, args)
}

fn attach(interface: &str, port: &XskPort) -> Result<Ebpf> {
    let mut program = Ebpf::load(OBJECT).context("the forwarder's XDP program")?;
    let xdp: &mut Xdp = program.program_mut("load").context("load.bpf.o has no program")?.try_into()?;
    xdp.load()?;
    xdp.attach(interface, XdpMode::Driver).with_context(|| format!("an XDP program on {interface}"))?;
    let mut sockets: XskMap<_> = program.map_mut("sockets").context("load.bpf.o has no map")?.try_into()?;
    sockets.set(0, port.fd().as_raw_fd(), 0).context("entering a socket")?;
    Ok(program)
}

fn own_mac(interface: &str) -> Result<[u8; 6]> {
    let output = std::process::Command::new("ip").args(["-br", "link", "show", interface]).output()?;
    mac_in(&String::from_utf8_lossy(&output.stdout))
}

/// The link-layer address in a line of `ip -br link`.
///
/// # Errors
/// There is none.
pub fn mac_in(line: &str) -> Result<[u8; 6]> {
    let found = line.split_whitespace().find_map(|word| mac(word).ok());
    found.with_context(|| format!("no link-layer address in {line:?}"))
}

/// The loop itself.
fn forward(sides: &mut [Side; 2], pool: &mut FramePool, args: &ForwarderArgs) -> ! {
    sides.iter_mut().for_each(|side| side.port.service(pool));
    let mut idle_since = None;
    loop {
        let mut worked = false;
        for from in 0..2 {
            let mut burst = Burst::new();
            if sides[from].port.rx_burst(pool, &mut burst) == 0 {
                continue;
            }
            worked = true;
            for frame in &mut burst {
                sides[from].rewrite.apply(pool.memory().bytes_mut(frame));
            }
            let out = &mut sides[1 - from].port;
            out.tx_burst(pool, &mut burst);
            if !burst.is_empty() {
                // The ring is full: the kernel takes its turn, then once more.
                out.service(pool);
                out.tx_burst(pool, &mut burst);
            }
            burst.into_iter().for_each(|frame| pool.give(frame));
        }
        sides.iter_mut().for_each(|side| side.port.service(pool));
        if worked || args.spin {
            idle_since = None;
            continue;
        }
        let now = Now::read();
        let since = *idle_since.get_or_insert(now);
        if now.ns.saturating_sub(since.ns) > args.idle * 1_000 && !sides.iter().any(|side| side.port.tx_pending()) {
            sleep(sides);
        }
    }
}

fn sleep(sides: &[Side; 2]) {
    let mut fds: Vec<PollFd<'_>> =
        sides.iter().filter_map(|side| Some(PollFd::from_borrowed_fd(side.port.poll_fd()?, PollFlags::IN))).collect();
    let nap = Timespec { tv_sec: 0, tv_nsec: i64::from(NAP.subsec_nanos()) };
    // An interrupted sleep is a short one.
    let _ = poll(&mut fds, Some(&nap));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 101), 5555);
    const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 80);
    const NODE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 11), 30_000);

    fn packet(tcp: bool, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let ip = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(from.ip().octets(), to.ip().octets(), 64);
        let mut packet = Vec::new();
        if tcp {
            ip.tcp(from.port(), to.port(), 7, 100).write(&mut packet, payload).expect("a packet");
        } else {
            ip.udp(from.port(), to.port()).write(&mut packet, payload).expect("a packet");
        }
        packet
    }

    /// What etherparse makes of addresses, ports and checksums.
    fn check(packet: &[u8], from: SocketAddrV4, to: SocketAddrV4) {
        let sliced = SlicedPacket::from_ethernet(packet).expect("a packet");
        let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("IPv4") };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        let (ports, sum, right) = match sliced.transport {
            Some(TransportSlice::Udp(udp)) => {
                let l4 = udp.to_header();
                let right = l4.calc_checksum_ipv4(&header, udp.payload()).expect("a sum");
                ((l4.source_port, l4.destination_port), l4.checksum, right)
            }
            Some(TransportSlice::Tcp(tcp)) => {
                let l4 = tcp.to_header();
                let right = l4.calc_checksum_ipv4(&header, tcp.payload()).expect("a sum");
                ((l4.source_port, l4.destination_port), l4.checksum, right)
            }
            _ => panic!("TCP or UDP"),
        };
        assert_eq!(sum, right);
        assert_eq!((Ipv4Addr::from(header.source), ports.0), (*from.ip(), from.port()));
        assert_eq!((Ipv4Addr::from(header.destination), ports.1), (*to.ip(), to.port()));
    }

    #[test]
    fn a_packet_is_whole_on_both_sides() {
        let towards = Rewrite::new(true, [3; 6], [4; 6], VIP, NODE);
        let back = Rewrite::new(false, [5; 6], [6; 6], NODE, VIP);
        for tcp in [false, true] {
            for length in 0..300_usize {
                let payload: Vec<u8> = (0..length).map(|at| (at * length) as u8).collect();
                let mut there = packet(tcp, CLIENT, VIP, &payload);
                towards.apply(&mut there);
                check(&there, CLIENT, NODE);
                assert_eq!(there[..12], [3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4]);
                let mut home = packet(tcp, NODE, CLIENT, &payload);
                back.apply(&mut home);
                check(&home, VIP, CLIENT);
            }
        }
    }

    #[test]
    fn no_checksum_stays_none() {
        let mut there = packet(false, CLIENT, VIP, b"abc");
        there[40..42].fill(0);
        Rewrite::new(true, [3; 6], [4; 6], VIP, NODE).apply(&mut there);
        assert_eq!(there[40..42], [0, 0]);
    }

    #[test]
    fn what_is_cut_short_stays_as_it_is() {
        let whole = packet(true, CLIENT, VIP, b"");
        for length in 0..42 {
            let mut cut = whole[..length].to_vec();
            Rewrite::new(true, [3; 6], [4; 6], VIP, NODE).apply(&mut cut);
            assert_eq!(cut, whole[..length]);
        }
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(mac("02:00:00:00:c1:0a"), Ok([2, 0, 0, 0, 0xc1, 10]));
        assert!(mac("02:00:00:00:c1").is_err() && mac("02:00:00:00:c1:zz").is_err());
        assert_eq!(mac_in("eth0@if4  UP  02:00:00:00:0d:00 <UP>").expect("one"), [2, 0, 0, 0, 13, 0]);
    }
}
