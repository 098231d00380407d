//! What the kernel says of a process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// What its threads have run so far, to the nanosecond; those that have ended do not count.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let directory = format!("/proc/{pid}/task");
    let mut sum = 0;
    for thread in fs::read_dir(&directory).context(directory)? {
        // Time on a core, time waiting for one, slices: Documentation/scheduler/sched-stats.rst.
        let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += stat.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(sum))
}

/// The most it ever had in memory, in bytes.
pub(super) fn peak_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kilobytes * 1024)
}
