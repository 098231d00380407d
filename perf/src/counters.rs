//! What the kernel counts for whoever asks (perf_event_open): interrupts of a core, and, where the machine has such
//! counters, what the processor does.

use std::fs::File;
use std::io;
use std::ops::{Add, Mul, Sub};
use std::os::fd::{AsFd, OwnedFd};

use perf_event::events::{Event, Hardware, Tracepoint};
use perf_event::{Builder, Counter, Group};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The timer's, and devices'. Not those one core sends another: they may be a consequence of what is measured.
const INTERRUPTS: [&str; 2] = ["irq_vectors/local_timer_entry", "irq/irq_handler_entry"];

/// Interrupts of one core, by its timer and by devices, since this was made.
pub struct Interrupts(Vec<Counter>);

impl Interrupts {
    /// # Errors
    /// Not root, or a kernel without trace points.
    pub fn of_core(core: usize) -> io::Result<Self> {
        let mut counters = Vec::new();
        let list = trace_points()?;
        for name in INTERRUPTS {
            // Each architecture has its own, and kernels are built without some.
            let Ok(id) = trace_point(&list, name) else { continue };
            // Not in a group: a core's trace points stand still in one (seen on Linux 6.18).
            let mut counter = Builder::new(Tracepoint::with_id(id)).any_pid().one_cpu(core).include_kernel().build()?;
            counter.enable()?;
            counters.push(counter);
        }
        if counters.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no trace points of interrupts"));
        }
        Ok(Self(counters))
    }

    /// # Errors
    /// The kernel gives the counters up.
    pub fn read(&mut self) -> io::Result<u64> {
        self.0.iter_mut().map(Counter::read).sum()
    }
}

/// The kernel's list of trace points, mounted for this process alone: not every machine has it at its place.
fn trace_points() -> io::Result<OwnedFd> {
    let list = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(list.as_fd())?;
    Ok(fsmount(list.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn trace_point(list: &OwnedFd, name: &str) -> io::Result<u64> {
    let file = openat(list, format!("events/{name}/id"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::read_to_string(File::from(file))?.trim().parse().map_err(io::Error::other)
}

/// What this thread makes the processor do.
pub struct Processor(Counts);

/// Of some work.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Work {
    pub cycles: f64,
    pub instructions: f64,
    /// Of the last level of caches.
    pub cache_misses: f64,
}

impl Processor {
    /// # Errors
    /// Most often: the machine has no such counters, as virtual ones.
    pub fn of_this_thread() -> io::Result<Self> {
        Counts::of_this_thread(&[Hardware::CPU_CYCLES, Hardware::INSTRUCTIONS, Hardware::CACHE_MISSES]).map(Self)
    }

    /// # Errors
    /// The kernel gives the counters up.
    pub fn read(&mut self) -> io::Result<Work> {
        let counts = self.0.read()?;
        let at = |n: usize| counts.get(n).map_or(f64::NAN, |count| *count as f64);
        Ok(Work { cycles: at(0), instructions: at(1), cache_misses: at(2) })
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cycles: self.cycles + other.cycles,
            instructions: self.instructions + other.instructions,
            cache_misses: self.cache_misses + other.cache_misses,
        }
    }
}

impl Sub for Work {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Work {
    type Output = Self;

    fn mul(self, by: f64) -> Self {
        Self { cycles: self.cycles * by, instructions: self.instructions * by, cache_misses: self.cache_misses * by }
    }
}

struct Counts {
    group: Group,
    counters: Vec<Counter>,
}

impl Counts {
    fn of_this_thread<E: Event + Copy>(events: &[E]) -> io::Result<Self> {
        let mut group = Group::new()?;
        let counters = events.iter().map(|event| group.add(&Builder::new(*event))).collect::<Result<_, _>>()?;
        group.enable()?;
        Ok(Self { group, counters })
    }

    fn read(&mut self) -> io::Result<Vec<u64>> {
        let counts = self.group.read()?;
        Ok(self.counters.iter().map(|counter| counts[counter]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_bench::measure;
    use crate::privilege;
    use perf_event::events::Software;

    /// The processor's own counters are had by few virtual machines; the kernel's are read the same way.
    #[test]
    fn privileged_counts_are_of_what_was_done_between_two_readings() {
        // Debian's kernel lets only root ask (perf_event_paranoid 3).
        if !privilege::require("privileged_counts_are_of_what_was_done_between_two_readings") {
            return;
        }
        let mut counts = Counts::of_this_thread(&[Software::PAGE_FAULTS, Software::CONTEXT_SWITCHES]).unwrap();
        let before = counts.read().unwrap();
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = counts.read().unwrap();
        assert!(after[0] > before[0], "{} bytes were touched for the first time", touched.len());
        assert_eq!(before.len(), 2);
    }

    #[test]
    fn work_of_packets_adds_up() {
        let of = |n: f64| Work { cycles: n, instructions: 2.0 * n, cache_misses: 3.0 * n };
        assert_eq!((of(5.0) - of(1.0) + of(2.0)) * 0.5, of(3.0));
    }

    #[test]
    fn privileged_a_core_that_spins_is_interrupted_by_its_timer() {
        const NAME: &str = "privileged_a_core_that_spins_is_interrupted_by_its_timer";
        if !privilege::require(NAME) {
            return;
        }
        // A container's root may not, nor has each kernel any.
        if let Err(error) = trace_points() {
            println!("SKIPPED: {NAME}: no trace points: {error}");
            return;
        }
        let core = measure::pin(None).unwrap();
        let mut interrupts = Interrupts::of_core(core).unwrap();
        let start = std::time::Instant::now();
        let before = interrupts.read().unwrap();
        while interrupts.read().unwrap() == before {
            assert!(start.elapsed().as_secs() < 10, "no interrupt in ten seconds");
        }
    }
}
