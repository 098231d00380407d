//! What the loader is told and what it tells.

use std::net::IpAddr;

use penstock_configs::file::XdpMode;

/// An interface to steer from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// Filled in by [`Steer::open`](super::Steer::open), from the name.
    pub ifindex: u32,
    /// Receive queues that get a socket, from 0 on.
    pub queues: u16,
    pub mode: XdpMode,
}

/// A SNAT address. `ports` (both included) matter where it is shared with the kernel: only TCP and UDP to these
/// ports, and ICMP errors about them, are ours then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnatSteer {
    pub address: IpAddr,
    pub ports: [u16; 2],
    pub shared: bool,
}

/// Everything the program should recognise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steering {
    /// With whether ARP and neighbour discovery for it are ours.
    pub vips: Vec<(IpAddr, bool)>,
    pub snat: Vec<SnatSteer>,
    /// Backends of `dnat` services: address, port, protocol number.
    pub dnat: Vec<(IpAddr, u16, u8)>,
    /// Packets per second to one VIP that belong to no established flow; 0: all pass. Not of VIPs that are SNAT
    /// addresses too.
    pub new_per_vip: u32,
}

/// Map entries a [`Steer::sync`](super::Steer::sync) touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, before a socket buffer exists.
    Native,
    /// In the network stack, with any driver, at about half the speed.
    Generic,
}

impl AttachMode {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Take packets in several buffers (jumbo frames).
    pub frags: bool,
}

/// Packets since the maps were made, over all interfaces; they survive restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteerCounters {
    /// To the kernel: not ours.
    pub passed: u64,
    /// To the kernel unlooked at: the queue is not served.
    pub unserved: u64,
    /// To the kernel: headers cut short or contradicting themselves.
    pub malformed: u64,
    /// Dropped: to a VIP beyond [`Steering::new_per_vip`], and of no established flow.
    pub policed: u64,
    /// To the kernel: in several buffers, the first of which has too little of the headers to tell whose it is.
    pub split: u64,
    pub redirected: ClassCounters,
    /// Ours, but no process had a socket on the queue: dropped.
    pub no_socket: ClassCounters,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassCounters {
    pub vip: u64,
    pub snat: u64,
    pub snat_shared: u64,
    pub dnat: u64,
    /// ARP and neighbour discovery.
    pub neighbor: u64,
}

/// What the program in the kernel decides about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Pass,
    Redirect,
    /// Ours, but the queue has no socket.
    Drop,
    /// A value the program never returns.
    Other(u32),
}
