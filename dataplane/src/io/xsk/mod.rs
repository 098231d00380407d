//! AF_XDP sockets: frames to and from a network interface without the kernel's stack.
//!
//! One [`WorkerUmem`] per worker is its packet memory; every [`XskPort`] (one per interface and queue)
//! has rings of its own over that memory, so a frame received on one port leaves on another in place.
//!
//! AF_XDP has pitfalls, and each has its place here:
//!
//! | pitfall | where it is handled |
//! | --- | --- |
//! | filling and transmitting are all-or-nothing when the ring lacks a slot | both clamp to the free slots |
//! | a received frame shows up before the fill ring's slot is free again | `refill` counts frames, not slots, and asks the ring |
//! | the pool is shared: one port's fill ring could swallow it | [`WorkerUmem`]: a fair share per port, a reserve for generated packets |
//! | `sendto` moves some 32 frames and says `EAGAIN`; a tail would strand | `kick` loops while frames move, and remembers what is owed ([`Port::tx_pending`](super::Port::tx_pending)) |
//! | completions pile up on an idle link and block the next burst | [`Port::service`](super::Port::service) reaps on every turn |
//! | a consumed completion loses its lengths | only the frame's number is read from it |
//! | `FrameDesc` is `Copy` | it never leaves this room; outside there are [`Frame`](super::Frame)s |
//! | the kernel's descriptors | `custody`: a frame comes back only from the ring it was given to |
//! | a packet in several descriptors (`XDP_USE_SG`) is whole only with its last | `gather` keeps what a ring's end has cut for the next burst; `transmit` offers all of a packet's or none |
//! | the kernel takes `XDP_USE_SG` from the first socket of a UMEM only | [`XskConfig::scatter`] is one for all ports of a worker |
//! | the kernel drops an invalid transmit descriptor without completing it: its frame would be lost | `tx_burst` refuses what the kernel would (shorter than an Ethernet header) |
//! | after a close the queue stays busy for some 20 ms | [`XskPort::open`] retries for a second |
//! | each mapped ring keeps its socket open | an [`XskPort`] owns all four and drops them together |
//! | the first socket's descriptor is the UMEM's own | to bind the first queue again, drop ports, pool and UMEM, and open anew |
//! | sockets on one UMEM are all zero-copy or all copying | [`open_worker`] falls back for all of them |

mod bind;
mod chains;
mod custody;
mod socket;
mod sockopt;
mod umem;

use std::fmt;
use std::time::Duration;

use penstock_configs::file::ZeroCopy;

pub use socket::{Counters, XskPort};
pub use sockopt::kernel_scatters;
pub use umem::{UmemConfig, UmemReport, WorkerUmem};

use super::FramePool;

/// How to open one socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct XskConfig {
    pub zero_copy: ZeroCopy,
    /// The XDP program is attached in generic mode, where there is no zero-copy.
    pub generic: bool,
    /// Packets per kernel busy-poll call; 0: no busy polling.
    pub busy_poll_budget: u16,
    /// Packets may come and go in several frames (multi-buffer, `XDP_USE_SG`). The kernel has one answer for all
    /// sockets of a UMEM, that of the first.
    pub scatter: bool,
}

/// What came of opening a socket.
#[derive(Debug, Clone)]
pub struct Report {
    pub interface: String,
    pub queue: u32,
    /// As the kernel says, not as was asked for.
    pub zero_copy: bool,
    pub busy_poll: bool,
    /// How long another socket held the queue.
    pub waited: Duration,
    /// What was asked for and is not there, for the operator.
    pub warnings: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copy = if self.zero_copy { "zero-copy" } else { "copy mode" };
        write!(f, "{} queue {}: {copy}", self.interface, self.queue)?;
        if self.busy_poll {
            write!(f, ", busy polling")?;
        }
        if !self.waited.is_zero() {
            write!(f, ", waited {} ms for the queue", self.waited.as_millis())?;
        }
        self.warnings.iter().try_for_each(|warning| write!(f, "; {warning}"))
    }
}

/// Why a UMEM or a socket could not be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    #[error("workers.{key} = {value}: {why}")]
    BadConfig { key: &'static str, value: u64, why: &'static str },
    #[error("this kernel has no AF_XDP (CONFIG_XDP_SOCKETS): use a kernel of 5.10 or newer that has it")]
    NoAfXdp,
    #[error("no permission for AF_XDP: run as root, or give the service CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF")]
    Permission,
    #[error(
        "the kernel will not lock {bytes} bytes of packet memory (limit {limit} bytes): give the service CAP_IPC_LOCK, \
         set LimitMEMLOCK=infinity in its unit, or lower workers.frames"
    )]
    Memlock { bytes: u64, limit: u64 },
    #[error(
        "workers.huge_pages = \"require\", but {bytes} bytes of huge pages are not free: \
         sysctl vm.nr_hugepages={pages} (now {free} free of {page_size} bytes each)"
    )]
    NoHugePages { bytes: u64, pages: u64, free: u64, page_size: u64 },
    #[error("not enough memory for {bytes} bytes of packet memory: lower workers.frames")]
    NoMemory { bytes: u64 },
    #[error("port {interface}: there is no such interface here (`ip link` lists them)")]
    NoInterface { interface: String },
    #[error(
        "port {interface} queue {queue}: another AF_XDP socket has held the queue for {waited_ms} ms; \
         is another dataplane running? (`ss --xdp` or `bpftool net` may tell)"
    )]
    QueueBusy { interface: String, queue: u32, waited_ms: u128 },
    #[error(
        "port {interface}: no receive queue {queue}; `ethtool -l {interface}` shows how many there are, `ethtool -L {interface} combined N` sets it"
    )]
    NoQueue { interface: String, queue: u32 },
    #[error(
        "port {interface} queue {queue}: zero_copy = \"require\", but the driver has no zero-copy AF_XDP for this queue{}; \
         use zero_copy = \"auto\" to run in copy mode", if *scatter { ", or none for packets of several frames (a port's MTU is beyond one)" } else { "" }
    )]
    ZeroCopyUnsupported { interface: String, queue: u32, scatter: bool },
    #[error(
        "port {interface} queue {queue}: zero_copy = \"require\", but its XDP program is attached in generic mode, which copies"
    )]
    ZeroCopyGeneric { interface: String, queue: u32 },
    #[error(
        "port {interface} queue {queue} has no zero-copy, but another port of its worker is open in zero-copy mode, and \
         they share packet memory: set zero_copy = \"off\" for the port that has it"
    )]
    MixedZeroCopy { interface: String, queue: u32 },
    #[error("port {interface} queue {queue}: {what}: {source}")]
    Socket { interface: String, queue: u32, what: &'static str, source: std::io::Error },
    #[error("packet memory of {bytes} bytes: {source}")]
    Umem { bytes: u64, source: std::io::Error },
}

/// One socket a worker wants.
#[derive(Debug, Clone)]
pub struct Want {
    pub interface: String,
    pub queue: u32,
    pub config: XskConfig,
}

/// A worker's packet memory and sockets, opened together.
pub struct Opened {
    pub umem: WorkerUmem,
    pub pool: FramePool,
    /// In the order of the wants.
    pub ports: Vec<XskPort>,
    pub reports: Vec<Report>,
}

/// Opens a worker's packet memory and all its sockets. Where interfaces differ in zero-copy and none
/// requires it, all of them copy: the kernel binds a UMEM's sockets in one mode.
pub fn open_worker(memory: &UmemConfig, wants: &[Want]) -> Result<Opened, XskError> {
    match open_all(memory, wants) {
        Err(XskError::MixedZeroCopy { interface, queue }) => {
            if wants.iter().any(|want| want.config.zero_copy == ZeroCopy::Require) {
                return Err(XskError::MixedZeroCopy { interface, queue });
            }
            let mut copying = wants.to_vec();
            copying.iter_mut().for_each(|want| want.config.zero_copy = ZeroCopy::Off);
            let mut opened = open_all(memory, &copying)?;
            let warning = format!("copying on every port of the worker, because {interface} has no zero-copy");
            opened.reports.iter_mut().for_each(|report| report.warnings.push(warning.clone()));
            Ok(opened)
        }
        other => other,
    }
}

fn open_all(memory: &UmemConfig, wants: &[Want]) -> Result<Opened, XskError> {
    let (umem, pool) = WorkerUmem::new(memory)?;
    let mut opened = Opened { umem, pool, ports: Vec::new(), reports: Vec::new() };
    for want in wants {
        let (port, report) = XskPort::open(&opened.umem, &want.interface, want.queue, &want.config)?;
        opened.ports.push(port);
        opened.reports.push(report);
    }
    Ok(opened)
}
