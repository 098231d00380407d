//! Processor time. The kernel's part of forwarding runs in whatever process a packet's softirq interrupts, and
//! the box's process knows nothing of it; so the whole machine's busy time is taken, per packet or connection, and what
//! the same traffic costs without a box is taken off (the peer `direct`). That is what the box adds to the machine,
//! wherever it runs. It needs a machine with nothing else to do: [`foreign_load`] says whether it has.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::Netns;

/// Of /proc/stat's: USER_HZ, 100 on every architecture Linux has left.
const TICKS_PER_SECOND: f64 = 100.0;
/// With less, a figure is the machine's other work.
const QUIET: f64 = 0.10;

/// The busy time of all cores so far, in seconds.
///
/// # Errors
/// /proc/stat is not what it should be.
pub fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse_busy(&stat).context("/proc/stat has no cpu line")
}

/// user, nice, system, idle, iowait, irq, softirq, steal, ...: all but idle, iowait and steal.
fn parse_busy(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].iter().map(|&index| ticks.get(index)).sum::<Option<f64>>()?;
    Some(busy / TICKS_PER_SECOND)
}

/// Processes that live in a namespace.
///
/// # Errors
/// /proc or the namespace can't be read.
pub fn processes_in(ns: &Netns) -> io::Result<BTreeSet<u32>> {
    let inode = fs::metadata(Path::new("/run/netns").join(ns.name()))?.ino();
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode)).collect())
}

/// The time these processes have used in user and kernel mode, in seconds.
#[must_use]
pub fn process_seconds(pids: &BTreeSet<u32>) -> f64 {
    let of = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_process(&stat)
    };
    pids.iter().filter_map(of).sum()
}

/// Fields 14 and 15, behind the name in parentheses, which may hold blanks.
fn parse_process(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// Resident memory of these processes, in bytes.
#[must_use]
pub fn resident_bytes(pids: &BTreeSet<u32>) -> u64 {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    pids.iter().filter_map(of).sum()
}

/// The share of its cores the machine spends on others, before anything of ours runs; `None`: next to nothing.
///
/// # Errors
/// As [`busy_seconds`].
pub fn foreign_load() -> Result<Option<f64>> {
    let cores = f64::from(crate::config::cores());
    let (start, before) = (Instant::now(), busy_seconds()?);
    std::thread::sleep(Duration::from_secs(1));
    let share = (busy_seconds()? - before) / start.elapsed().as_secs_f64() / cores;
    Ok((share > QUIET).then_some(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_all_but_waiting() {
        let stat = "cpu  100 10 200 5000 700 3 40 900 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n";
        assert_eq!(parse_busy(stat), Some(3.53));
        assert_eq!(parse_busy("intr 1 2 3\n"), None);
    }

    #[test]
    fn a_process_may_be_called_anything() {
        let stat = "17 (a) R b) S 1 17 17 0 -1 4194560 5 0 0 0 250 50 0 0 20 0 1 0 9 9 9";
        assert_eq!(parse_process(stat), Some(3.0));
    }

    #[test]
    fn work_is_seen() {
        let own = BTreeSet::from([std::process::id()]);
        let (before, all_before) = (process_seconds(&own), busy_seconds().expect("/proc/stat"));
        let end = Instant::now() + Duration::from_millis(100);
        while Instant::now() < end {}
        assert!(process_seconds(&own) >= before + 0.03);
        assert!(busy_seconds().expect("/proc/stat") >= all_before + 0.03);
        assert!(resident_bytes(&own) > 1 << 20);
    }
}
