//! For the tests that print figures: CPU time of the fastest of several runs, which a busy machine
//! disturbs less than the wall clock.

use rustix::time::{ClockId, clock_gettime};

fn cpu_nanoseconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Nanoseconds per operation, `work` doing `operations` of them.
pub(crate) fn best_ns(operations: u32, mut work: impl FnMut()) -> f64 {
    let run = |_| {
        let started = cpu_nanoseconds();
        work();
        cpu_nanoseconds() - started
    };
    (0..7).map(run).fold(f64::INFINITY, f64::min) / f64::from(operations)
}
