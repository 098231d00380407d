//! The mapping under a store: where the kernel can put huge pages, at a multiple of their size.
//!
//! Records are read in no order. On pages of 4 KiB nearly every one costs a walk through the page tables as
//! well: at a million flows a hit took 50 ns instead of 36 (`penstock-perf pipeline --flow-file`).

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

/// A huge page, on x86_64 and on arm64 with pages of 4 KiB.
pub const HUGE: usize = 2 << 20;

pub struct Mapping {
    /// A huge page more than is used; dropped, it takes with it what was mapped over it.
    area: MmapRaw,
    start: usize,
    /// Holds the lock.
    pub file: Option<File>,
}

impl Mapping {
    /// Memory that ends with the process.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let area = MmapRaw::from(MmapOptions::new().len(len + HUGE).map_anon()?);
        // Without transparent huge pages the kernel says no; small pages serve as well.
        let _ = area.advise(memmap2::Advice::HugePage);
        let start = area.as_ptr().align_offset(HUGE);
        Ok(Self { area, start, file: None })
    }

    /// The first `len` bytes of a file. Of one that is `fresh` the pages are made huge where they can be; they
    /// stay so for the process that maps it next.
    pub fn shared(file: File, len: usize, fresh: bool) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};

        let mut mapping = Self::anonymous(len)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        let start = mapping.base();
        // SAFETY: with FIXED `mmap` replaces what is mapped in `start..start + len`: a part of `area`, which
        // nobody else knows of and nothing was read from; it is of that size from `start` on by construction.
        unsafe { mmap(start.cast(), len, protection, flags, &file, 0) }?;
        if fresh {
            // SAFETY: `madvise` wants mapped pages from a page's start on, and MADV_COLLAPSE changes no byte.
            // An error (a kernel before 6.1, no tmpfs, no huge page free) leaves small pages, which serve as well.
            let _ = unsafe { libc::madvise(start.cast(), len - len % HUGE, libc::MADV_COLLAPSE) };
        }
        mapping.file = Some(file);
        Ok(mapping)
    }

    /// A file to look into: writing to it is a fault.
    pub fn read_only(file: File) -> io::Result<Self> {
        let area = MmapOptions::new().map_raw_read_only(&file)?;
        Ok(Self { area, start: 0, file: Some(file) })
    }

    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.area.as_mut_ptr().wrapping_add(self.start)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_is_mapped_at_a_huge_pages_start_and_written_through() {
        let file = tempfile::tempfile().unwrap();
        let len = 2 * HUGE + 4096;
        file.set_len(len as u64).unwrap();
        for fresh in [true, false] {
            let mapping = Mapping::shared(file.try_clone().unwrap(), len, fresh).unwrap();
            assert!(mapping.base().cast::<[u8; HUGE]>().addr().is_multiple_of(HUGE));
            let place = mapping.base().wrapping_add(len - 1);
            // SAFETY: the mapping's last byte, which only this test writes.
            unsafe { place.write(7 + u8::from(fresh)) };
            let mut last = [0];
            file.read_exact_at(&mut last, len as u64 - 1).unwrap();
            assert_eq!(last, [7 + u8::from(fresh)]);
        }
    }
}
