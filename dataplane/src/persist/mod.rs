//! Flow state that outlives the process: a file-backed shared mapping under the run directory.
//!
//! The file holds a header and the records of one worker, nothing else: indexes, free lists and
//! port maps are rebuilt by a scan. `kill -9` between any two stores leaves each record either
//! committed or free, because its state word is the last thing written and the first thing cleared.
#![allow(unsafe_code, reason = "a mapping seen as typed records; each block says why it holds")]

mod mapping;

use std::fs::{File, OpenOptions};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapRaw;

use crate::flow::Record;
use crate::wire::Tags;
use mapping::Mapping;

const MAGIC: u64 = u64::from_be_bytes(*b"penstock");
/// Grows with every change of `Header` or `Record`.
const LAYOUT: u32 = 2;
/// SNAT addresses per family, last hops: what records name by number.
pub const MAX_SNATS: usize = 256;
pub const MAX_HOPS: usize = 8192;

/// Ports whose interfaces are stored by name.
const MAX_PORTS: usize = 128;
/// The place of a port that is no more: replies go by the default route then.
const NO_PORT: u8 = u8::MAX;

/// A client's last hop as it is stored: `port` is a place in the config, its interface in [`Header::ports`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct StoredHop {
    pub mac: [u8; 6],
    pub port: u8,
    /// 0: free; 1: its frames have no tags; 2: their tags are in `Header::hop_tags`.
    pub used: u8,
}

impl StoredHop {
    /// All of it, to compare in one step.
    #[inline(always)]
    #[must_use]
    pub fn bits(&self) -> u64 {
        let [a, b, c, d, e, f] = self.mac;
        u64::from_ne_bytes([a, b, c, d, e, f, self.port, self.used])
    }
}

/// The first pages of the file. Integers only: any bytes are a value.
#[repr(C)]
pub struct Header {
    magic: u64,
    layout: u32,
    worker: u16,
    workers: u16,
    boot_id: [u8; 16],
    seed: [u64; 2],
    records_v4: u32,
    records_v6: u32,
    pub snat_v4: [u32; MAX_SNATS],
    pub snat_v6: [[u8; 16]; MAX_SNATS],
    pub hops: [StoredHop; MAX_HOPS],
    pub hop_tags: [[u32; 2]; MAX_HOPS],
    /// The interface in each place. Zeroes in files of builds that did not store them.
    ports: [[u8; 16]; MAX_PORTS],
}

// `ports` lies in what was padding before the records: such files are taken up, and take this build's up.
const _: () = assert!(Shape::records_at() == 34 * 4096);

/// What a worker's store must look like to be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub worker: u16,
    pub workers: u16,
    pub records_v4: u32,
    pub records_v6: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { worker, workers, records_v4, records_v6 } = self;
        write!(
            f,
            "worker {worker} of {workers}, {records_v4} IPv4 and {records_v6} IPv6 flows (half-open ones included)"
        )
    }
}

impl Shape {
    const fn records_at() -> usize {
        size_of::<Header>().next_multiple_of(4096)
    }

    fn v6_at(self) -> usize {
        (Self::records_at() + self.records_v4 as usize * size_of::<Record<u32>>()).next_multiple_of(4096)
    }

    fn len(self) -> usize {
        self.v6_at() + self.records_v6 as usize * size_of::<Record<u128>>()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    #[error("{path}: {source}; the run directory must be on a writable tmpfs with room for {needed} MiB of flow state")]
    File { path: PathBuf, needed: usize, source: std::io::Error },
    #[error("{path} is locked by another process: is a penstock-dataplane running already?")]
    Locked { path: PathBuf },
    #[error("no memory for the flow state: {0}; lower limits.flows_ipv4, limits.flows_ipv6 or limits.embryonic")]
    Memory(std::io::Error),
}

/// The mapping of one worker's flow state.
pub struct Store {
    mapping: Arc<Mapping>,
    shape: Shape,
    /// Why earlier flows could not be taken up, if there were any.
    pub discarded: Option<String>,
    /// The records hold flows of an earlier process.
    pub recovered: bool,
}

impl Store {
    /// A store no other process sees and that ends with this one: tests and benchmarks.
    ///
    /// # Errors
    /// `Memory`.
    pub fn anonymous(shape: Shape) -> Result<Self, PersistError> {
        let mapping = Arc::new(Mapping::anonymous(shape.len()).map_err(PersistError::Memory)?);
        let mut store = Self { mapping, shape, discarded: None, recovered: false };
        store.write_header([0; 16], [0x5eed, 0xf10e]);
        Ok(store)
    }

    /// Opens or creates the store at `path`. Flows of an earlier process are kept if it ran in this
    /// boot with the same shape and layout; `fresh_seed` is used otherwise.
    ///
    /// # Errors
    /// Any of [`PersistError`].
    pub fn open(path: &Path, shape: Shape, boot_id: [u8; 16], fresh_seed: [u64; 2]) -> Result<Self, PersistError> {
        let fail = |source| PersistError::File { path: path.into(), needed: shape.len() >> 20, source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| PersistError::Locked { path: path.into() })?;
        let len = file.metadata().map_err(fail)?.len();
        let mismatch =
            if len == 0 { Some(String::new()) } else { mismatch(&file, len, shape, boot_id).map_err(fail)? };
        let recovered = mismatch.is_none();
        // A file whose maker was killed before it was complete held no flows: nothing to tell.
        let discarded = mismatch.filter(|why| !why.is_empty());
        if !recovered {
            file.set_len(0).map_err(fail)?;
            file.set_len(shape.len() as u64).map_err(fail)?;
            reserve(&file, shape.len() as u64).map_err(fail)?;
        }
        let mapping = Arc::new(Mapping::shared(file, shape.len(), !recovered).map_err(fail)?);
        let mut store = Self { mapping, shape, discarded, recovered };
        if !recovered {
            store.write_header(boot_id, fresh_seed);
        }
        Ok(store)
    }

    fn write_header(&mut self, boot_id: [u8; 16], seed: [u64; 2]) {
        let Shape { worker, workers, records_v4, records_v6 } = self.shape;
        let header = self.header_mut();
        header.layout = LAYOUT;
        (header.worker, header.workers) = (worker, workers);
        (header.boot_id, header.seed) = (boot_id, seed);
        (header.records_v4, header.records_v6) = (records_v4, records_v6);
        // Last: without it the rest is not looked at.
        header.magic = MAGIC;
    }

    /// How many records of each family an earlier process can have written to: the file has holes
    /// where nothing was ever written, and reading a hole would fill it.
    #[must_use]
    pub fn used_records(&self) -> [u32; 2] {
        let (v4_at, v6_at) = (Shape::records_at() as u64, self.shape.v6_at() as u64);
        let Some(file) = &self.mapping.file else { return [self.shape.records_v4, self.shape.records_v6] };
        let v4 = data_end(file, v4_at, v6_at).div_ceil(size_of::<Record<u32>>() as u64);
        let v6 = data_end(file, v6_at, self.shape.len() as u64).div_ceil(size_of::<Record<u128>>() as u64);
        [(v4 as u32).min(self.shape.records_v4), (v6 as u32).min(self.shape.records_v6)]
    }

    /// The hash seed of this table: part of its identity, so that a restart hashes the same way.
    #[must_use]
    pub fn seed(&self) -> [u64; 2] {
        self.header().seed
    }

    /// Says which interface is in which place now: the last hops that an earlier process stored follow theirs. A kill
    /// in the middle leaves some where they were, until their clients' next packets.
    pub fn place_ports<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let mut now = [[0; 16]; MAX_PORTS];
        for (place, name) in now.iter_mut().zip(names) {
            let len = name.len().min(place.len());
            place[..len].copy_from_slice(&name.as_bytes()[..len]);
        }
        let Header { ports, hops, .. } = self.header_mut();
        if *ports != now {
            for hop in hops.iter_mut().filter(|hop| hop.used != 0) {
                if let Some(name) = ports.get(usize::from(hop.port)).filter(|name| **name != [0; 16]) {
                    let place = now.iter().position(|placed| placed == name);
                    hop.port = place.map_or(NO_PORT, |place| place as u8);
                }
            }
            *ports = now;
        }
    }

    /// Keeps a client's last hop for the next process.
    pub fn keep_hop(&mut self, at: u16, hop: StoredHop, tags: Tags) {
        let header = self.header_mut();
        let at = usize::from(at);
        if let (Some(stored), Some(place)) = (header.hops.get_mut(at), header.hop_tags.get_mut(at)) {
            (*stored, *place) = (hop, tags.0);
        }
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, longer than a `Header` and mapped while `self` lives;
        // a `Header`'s integers take any bytes; writing needs `&mut self`.
        unsafe { &*self.mapping.base().cast_const().cast::<Header>() }
    }

    #[must_use]
    pub fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as for `header`, and `self` is borrowed exclusively. The records that share the
        // mapping start behind the header.
        unsafe { &mut *self.mapping.base().cast::<Header>() }
    }

    /// The records, to be taken once each: a second taking would alias the first.
    #[must_use]
    pub fn records(&mut self) -> Option<(Records<u32>, Records<u128>)> {
        if Arc::strong_count(&self.mapping) > 1 {
            return None;
        }
        let at = |offset: usize| {
            // SAFETY: `Shape::len` bytes are mapped, and both offsets lie within.
            unsafe { self.mapping.base().add(offset) }
        };
        let v4 = Records::new(at(Shape::records_at()), self.shape.records_v4, &self.mapping);
        let v6 = Records::new(at(self.shape.v6_at()), self.shape.records_v6, &self.mapping);
        Some((v4, v6))
    }
}

/// A look at another thread's store, for status: records are copied while their worker goes on, so
/// one may be caught half-way between two flows. Good for showing, never for deciding.
pub struct Viewer {
    store: Store,
}

impl Viewer {
    /// Opens the store at `path` for looking.
    ///
    /// # Errors
    /// It is not there, or not a store.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        if len < size_of::<Header>() as u64 {
            return Err(std::io::Error::other("shorter than its header"));
        }
        let mapping = Arc::new(Mapping::read_only(file)?);
        let none = Shape { worker: 0, workers: 0, records_v4: 0, records_v6: 0 };
        let mut store = Store { mapping, shape: none, discarded: None, recovered: false };
        let header = store.header();
        let shape = Shape {
            worker: header.worker,
            workers: header.workers,
            records_v4: header.records_v4,
            records_v6: header.records_v6,
        };
        if header.magic != MAGIC || header.layout != LAYOUT || shape.len() as u64 != len {
            return Err(std::io::Error::other("not a flow table of this build"));
        }
        store.shape = shape;
        Ok(Self { store })
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        self.store.header()
    }

    /// Shows a copy of every record in use.
    pub fn each_v4(&self, visit: impl FnMut(&Record<u32>)) {
        self.each(Shape::records_at(), self.store.used_records()[0], visit);
    }

    /// See [`Self::each_v4`].
    pub fn each_v6(&self, visit: impl FnMut(&Record<u128>)) {
        self.each(self.store.shape.v6_at(), self.store.used_records()[1], visit);
    }

    fn each<A>(&self, at: usize, count: u32, mut visit: impl FnMut(&Record<A>)) {
        for record in 0..count as usize {
            let offset = at + record * size_of::<Record<A>>();
            // SAFETY: `used_records` keeps within the shape, whose length is the mapping's.
            let place = unsafe { self.store.mapping.base().cast_const().add(offset) };
            // SAFETY: aligned as in the worker's own mapping; any bytes are a record; the copy is
            // volatile because the worker writes meanwhile, and dropping a copy does nothing.
            let copy = unsafe { place.cast::<Record<A>>().read_volatile() };
            if !copy.is_free() {
                visit(&copy);
            }
        }
    }
}

/// Why the file's flows cannot be taken up; `None`: they can.
fn mismatch(file: &File, len: u64, shape: Shape, boot_id: [u8; 16]) -> std::io::Result<Option<String>> {
    if len < size_of::<Header>() as u64 {
        return Ok(Some("the file is shorter than its header".into()));
    }
    let map = MmapRaw::map_raw(file)?;
    // SAFETY: the mapping is page-aligned and, by the check above, longer than a `Header`, whose
    // integers take any bytes; this process holds the file's lock, so nobody writes to it.
    let header = unsafe { &*map.as_ptr().cast::<Header>() };
    let found = Shape {
        worker: header.worker,
        workers: header.workers,
        records_v4: header.records_v4,
        records_v6: header.records_v6,
    };
    Ok(if header.magic == 0 {
        Some(String::new())
    } else if header.magic != MAGIC {
        Some("it is not a flow table of Penstock".into())
    } else if header.layout != LAYOUT {
        Some(format!("its layout is {}, this build's is {LAYOUT}", header.layout))
    } else if header.boot_id != boot_id {
        Some("the machine was booted since".into())
    } else if found != shape {
        Some(format!("workers or limits changed: it was made for {found}; the config asks for {shape}"))
    } else if len != shape.len() as u64 {
        Some(format!("the file has {len} bytes, not {}", shape.len()))
    } else {
        None
    })
}

/// Removes the stores of workers beyond the first `workers`: nobody takes them up, and each would hold its memory until
/// the machine is booted.
///
/// # Errors
/// The directory cannot be read, or a file not removed.
pub fn remove_beyond(workers: u16, run_dir: &Path) -> std::io::Result<()> {
    for entry in run_dir.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_prefix("flows."));
        if name.and_then(|number| number.parse().ok()).is_some_and(|worker: u16| worker >= workers) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Asks for the file's pages now: on a full tmpfs the first packet to need one would end the process
/// (SIGBUS). Reserved pages nobody wrote to still count as holes.
fn reserve(file: &File, len: u64) -> std::io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => {
            let _ = file.set_len(0);
            Err(error.into())
        }
    }
}

/// How far behind `start` the file's data reaches, up to `end`.
fn data_end(file: &File, start: u64, end: u64) -> u64 {
    let mut at = start;
    let mut reached = start;
    while at < end {
        let Ok(data) = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) else { break };
        if data >= end {
            break;
        }
        let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)).unwrap_or(end);
        reached = hole.min(end);
        at = hole;
    }
    reached - start
}

/// This boot's id, from the kernel.
#[must_use]
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter_map(|c| (c as char).to_digit(16)).map(|d| d as u8).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    id
}

/// The records of one family: a slice of the mapping.
pub struct Records<A> {
    base: NonNull<Record<A>>,
    len: usize,
    _mapping: Arc<Mapping>,
    of: PhantomData<Record<A>>,
}

// SAFETY: the slice is plain memory that this value alone reaches.
unsafe impl<A: Send> Send for Records<A> {}

impl<A> Records<A> {
    fn new(base: *mut u8, len: u32, mapping: &Arc<Mapping>) -> Self {
        let base = NonNull::new(base.cast()).unwrap_or(NonNull::dangling());
        Self { base, len: len as usize, _mapping: Arc::clone(mapping), of: PhantomData }
    }
}

impl<A> Deref for Records<A> {
    type Target = [Record<A>];

    #[inline(always)]
    fn deref(&self) -> &[Record<A>] {
        // SAFETY: `Store::records` made `base` point at `len` records inside the mapping, aligned to a
        // page, and hands each range out once; a record's integers take any bytes.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<A> DerefMut for Records<A> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [Record<A>] {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests;
