//! A worker's UMEM: the packet memory all its sockets share.
#![allow(unsafe_code, reason = "the packet memory is a mapping made by xsk-rs")]

use std::error::Error;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use penstock_configs::file::{HugePages, WorkersConfig};
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig as XskUmemConfig};
use xsk_rs::{FrameDesc, Umem};

use super::XskError;
use crate::io::{BURST, FramePool, PacketMemory};

/// Frames never lent to fill rings: for packets the worker makes itself (ARP, ICMP) and for hand-offs.
/// One part in this many of the memory.
const RESERVE_PART: usize = 16;

/// Fill rings take at most this share of the memory; the rest is for frames in flight and in transmit rings.
const FILL_SHARE: (usize, usize) = (3, 4);

#[derive(Debug, Clone, Copy)]
pub struct UmemConfig {
    pub frames: u32,
    /// 2048 or 4096.
    pub frame_size: u32,
    pub huge_pages: HugePages,
    /// Descriptors per receive and transmit ring; the fill and completion rings are twice as long.
    pub ring_size: u32,
}

impl From<&WorkersConfig> for UmemConfig {
    fn from(workers: &WorkersConfig) -> Self {
        let &WorkersConfig { frames, frame_size, huge_pages, ring_size, .. } = workers;
        Self { frames, frame_size, huge_pages, ring_size }
    }
}

impl UmemConfig {
    fn check(&self) -> Result<(), XskError> {
        let bad = |key, value: u32, why| Err(XskError::BadConfig { key, value: value.into(), why });
        if !matches!(self.frame_size, 2048 | 4096) {
            return bad("frame_size", self.frame_size, "must be 2048 or 4096");
        }
        if !self.ring_size.is_power_of_two() || !(64..=32_768).contains(&self.ring_size) {
            return bad("ring_size", self.ring_size, "must be a power of two from 64 to 32768");
        }
        if (self.frames as usize) < 4 * BURST {
            return bad("frames", self.frames, "must be at least 256");
        }
        // Frames are addressed by 32 bits.
        if u64::from(self.frames) * u64::from(self.frame_size) > u64::from(u32::MAX) {
            return bad("frames", self.frames, "must make up less than 4 GiB of packet memory");
        }
        Ok(())
    }
}

/// What the sockets of a UMEM have to know of each other.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    pub(super) open: AtomicUsize,
    /// Whether the first socket was bound in zero-copy mode: the kernel binds the others alike.
    pub(super) zero_copy: AtomicBool,
}

/// A worker's UMEM, from which its sockets are opened. The memory itself belongs to the pool and the
/// sockets: it stays mapped until the last of them is dropped.
pub struct WorkerUmem {
    pub(super) umem: Umem,
    /// By frame number; where descriptors come from, as xsk-rs lets nobody make one.
    pub(super) descs: Arc<[FrameDesc]>,
    pub(super) memory: u16,
    pub(super) ring_size: u32,
    pub(super) siblings: Arc<Siblings>,
    report: UmemReport,
}

/// What came of allocating the packet memory.
#[derive(Debug, Clone)]
pub struct UmemReport {
    pub frames: u32,
    pub frame_size: u32,
    pub huge_pages: bool,
    /// Why there are no huge pages, if they were wanted.
    pub note: Option<String>,
}

impl fmt::Display for UmemReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = if self.huge_pages { "huge pages" } else { "ordinary pages" };
        write!(f, "{} frames of {} bytes in {pages}", self.frames, self.frame_size)?;
        self.note.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

impl WorkerUmem {
    /// Maps the memory and registers it with the kernel; every frame of it is in the pool.
    pub fn new(config: &UmemConfig) -> Result<(Self, FramePool), XskError> {
        config.check()?;
        let (umem, descs, report) = allocate(config)?;
        let memory = packet_memory(&umem, &descs, config.frame_size)?;
        let worker = Self {
            umem,
            descs: descs.into(),
            memory: memory.id(),
            ring_size: config.ring_size,
            siblings: Arc::new(Siblings::default()),
            report,
        };
        Ok((worker, FramePool::new(memory)))
    }

    #[must_use]
    pub fn report(&self) -> &UmemReport {
        &self.report
    }
}

/// Frames a port's fill ring may hold when `ports` of them share `frames`.
pub(super) fn fill_target(frames: usize, ports: usize, ring: usize) -> usize {
    (frames * FILL_SHARE.0 / FILL_SHARE.1 / ports.max(1)).min(ring)
}

/// Free frames that filling leaves alone.
pub(super) fn reserve(frames: usize) -> usize {
    (frames / RESERVE_PART).max(BURST)
}

fn allocate(config: &UmemConfig) -> Result<(Umem, Vec<FrameDesc>, UmemReport), XskError> {
    let mut note = None;
    if config.huge_pages != HugePages::Off {
        match allocate_huge(config) {
            Ok(done) => return Ok(done),
            Err(error) if config.huge_pages == HugePages::Require => return Err(error),
            Err(error @ XskError::NoHugePages { .. }) => note = Some(no_huge_pages(&error)),
            Err(error) => return Err(error),
        }
    }
    let (umem, descs) = create(config, config.frames, false).map_err(|source| explain(config.bytes(), source))?;
    let report = UmemReport { frames: config.frames, frame_size: config.frame_size, huge_pages: false, note };
    Ok((umem, descs, report))
}

impl UmemConfig {
    fn bytes(&self) -> u64 {
        u64::from(self.frames) * u64::from(self.frame_size)
    }
}

fn no_huge_pages(error: &XskError) -> String {
    let XskError::NoHugePages { pages, free, .. } = error else { return error.to_string() };
    format!("no huge pages: {free} are free, {pages} needed (sysctl vm.nr_hugepages)")
}

/// Whole huge pages: the kernel does not unmap a part of one.
fn allocate_huge(config: &UmemConfig) -> Result<(Umem, Vec<FrameDesc>, UmemReport), XskError> {
    let (page_size, free) = huge_pages();
    let pages = config.bytes().div_ceil(page_size);
    let missing = || XskError::NoHugePages { bytes: config.bytes(), pages, free, page_size };
    let frames = u32::try_from(pages * page_size / u64::from(config.frame_size)).map_err(|_| missing())?;
    // Pages of 1 GiB would round a small memory up beyond reason, or beyond 32 bits of address.
    let fits = u64::from(frames) * u64::from(config.frame_size) <= u64::from(u32::MAX);
    if free < pages || !fits || u64::from(frames) > 4 * u64::from(config.frames) {
        return Err(missing());
    }
    match create(config, frames, true) {
        Ok((umem, descs)) => {
            let report = UmemReport { frames, frame_size: config.frame_size, huge_pages: true, note: None };
            Ok((umem, descs, report))
        }
        // Another process was quicker.
        Err(source) if source.raw_os_error() == Some(libc::ENOMEM) => Err(missing()),
        Err(source) => Err(explain(config.bytes(), source)),
    }
}

/// Size of a huge page and how many are free.
fn huge_pages() -> (u64, u64) {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    (field("Hugepagesize:").map_or(2 << 20, |kib| kib << 10), field("HugePages_Free:").unwrap_or(0))
}

fn create(config: &UmemConfig, frames: u32, huge: bool) -> io::Result<(Umem, Vec<FrameDesc>)> {
    let invalid = |error: &dyn Error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    // Twice the receive ring: with zero-copy the card holds about as many frames as the ring.
    let double = QueueSize::new(config.ring_size * 2).map_err(|error| invalid(&error))?;
    let frame_size = FrameSize::new(config.frame_size).map_err(|error| invalid(&error))?;
    let umem_config = XskUmemConfig::builder()
        .frame_size(frame_size)
        .fill_queue_size(double)
        .comp_queue_size(double)
        .build()
        .map_err(|error| invalid(&error))?;
    let count = NonZeroU32::new(frames).ok_or(io::ErrorKind::InvalidInput)?;
    Umem::new(umem_config, count, huge).map_err(|error| super::bind::os_error(&error))
}

fn explain(bytes: u64, source: io::Error) -> XskError {
    match source.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::ENOPROTOOPT) => XskError::NoAfXdp,
        Some(libc::EPERM | libc::EACCES) => XskError::Permission,
        // What the kernel says when the pinned pages would exceed the limit (xdp_umem_account_pages).
        Some(libc::ENOBUFS) => XskError::Memlock { bytes, limit: memlock_limit() },
        Some(libc::ENOMEM) => XskError::NoMemory { bytes },
        _ => XskError::Umem { bytes, source },
    }
}

fn memlock_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// The mapping of `umem` as packet memory, kept alive by a handle of the UMEM.
fn packet_memory(umem: &Umem, descs: &[FrameDesc], frame_size: u32) -> Result<PacketMemory, XskError> {
    let len = descs.len() * frame_size as usize;
    let unusable = || XskError::Umem { bytes: len as u64, source: io::ErrorKind::InvalidData.into() };
    let first = descs.first().ok_or_else(unusable)?;
    let headroom = u32::try_from(first.addr()).map_err(|_| unusable())?;
    // SAFETY: `data` wants a descriptor of this UMEM and nobody writing to the frame: it was just made
    // and no socket exists. Only the address is taken.
    let data = unsafe { umem.data(first) };
    let start = data.contents().as_ptr().addr().wrapping_sub(first.addr());
    // The mapping's pointer was exposed when xsk-rs passed it to the kernel for registration: this one
    // may reach all of it, not just the first frame.
    let base = NonNull::new(with_exposed_provenance_mut::<u8>(start)).ok_or_else(unusable)?;
    // SAFETY: `mapped` wants `len` bytes that stay mapped while the box lives: xsk-rs mapped one frame of
    // `frame_size` per descriptor, for as long as a handle of the UMEM exists. It wants nobody else
    // to touch them: xsk-rs does so only in methods given a descriptor, and descriptors stay in
    // this room, which uses them for frames it owns.
    Ok(unsafe { PacketMemory::mapped(base, len, frame_size, headroom, Box::new(umem.clone())) })
}

/// Registers a socket with its siblings, for as long as it lives.
pub(super) struct Membership(pub(super) Arc<Siblings>);

impl Membership {
    pub(super) fn new(siblings: &Arc<Siblings>) -> Self {
        siblings.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(siblings))
    }

    #[inline]
    pub(super) fn ports(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_rings_share_the_memory_and_leave_some() {
        assert_eq!(fill_target(8192, 1, 1024), 1024);
        assert_eq!(fill_target(8192, 8, 1024), 768);
        for ports in 1..32 {
            let taken = ports * fill_target(2048, ports, 1024);
            assert!(taken + reserve(2048) < 2048, "{ports} ports take {taken}");
            assert!(fill_target(2048, ports, 1024) > 0);
        }
    }

    #[test]
    fn faults_name_the_key_and_what_it_must_be() {
        let good = UmemConfig { frames: 4096, frame_size: 2048, huge_pages: HugePages::Off, ring_size: 512 };
        assert!(good.check().is_ok());
        let said = |config: UmemConfig| config.check().unwrap_err().to_string();
        assert_eq!(said(UmemConfig { frame_size: 3000, ..good }), "workers.frame_size = 3000: must be 2048 or 4096");
        assert!(said(UmemConfig { ring_size: 1000, ..good }).starts_with("workers.ring_size = 1000: must be a power"));
        assert!(said(UmemConfig { frames: 255, ..good }).contains("at least 256"));
        assert!(said(UmemConfig { frames: 1 << 21, ..good }).contains("4 GiB"));
    }
}
