//! Processor time. The kernel's part of forwarding runs in softirqs, in whatever process sends a packet: a client's, a
//! server's; and what a box sends is received by client and server stacks in the box's process. So no process alone says
//! what a box costs. Two sums do, per packet or connection, less the same for the same traffic without a box (the
//! peer `direct`):
//!
//! - the *machine's* busy time (/proc/stat), which wants a machine with nothing else to do: [`foreign_load`] says;
//! - the *lab's* time: of all processes in its namespaces, of this one (the generator) with the clients it has run, and of
//!   the kernel's softirq threads. A kernel that counts by ticks (CONFIG_TICK_CPU_ACCOUNTING) books a softirq to the
//!   process it interrupts, so that other work on the machine is not in this sum. (Where interrupts are counted apart,
//!   CONFIG_IRQ_TIME_ACCOUNTING, the machine's is the one to look at.)
//!
//! A worker that always spins uses all of its core: its time per packet means something at its limit only.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::{Lab, Netns};

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
    Ok(all_processes()?
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode))
        .collect())
}

/// The processes of a lab, whose time is added up.
#[derive(Debug, Clone)]
pub struct LabClock(BTreeSet<u32>);

impl LabClock {
    /// Of those that run now; what this process starts later is counted once it has ended.
    ///
    /// # Errors
    /// /proc can't be read.
    pub fn new(lab: &Lab) -> Result<Self> {
        let mut pids = softirq_threads()?;
        for ns in lab.namespaces() {
            pids.append(&mut processes_in(ns)?);
        }
        Ok(Self(pids))
    }

    /// Seconds in user and kernel mode so far.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        let others = self.0.iter().filter_map(|pid| parse_process(&stat(&pid.to_string())?, false));
        let own = stat("self").and_then(|stat| parse_process(&stat, true));
        others.chain(own).sum()
    }
}

/// ksoftirqd of every core.
fn softirq_threads() -> io::Result<BTreeSet<u32>> {
    let is_one =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"));
    Ok(all_processes()?.filter(is_one).collect())
}

fn all_processes() -> io::Result<impl Iterator<Item = u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// Fields 14 and 15, and of children that have ended 16 and 17, behind the name in parentheses, which may hold blanks.
fn parse_process(stat: &str, children: bool) -> Option<f64> {
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    let counted = ticks.get(..if children { 4 } else { 2 })?;
    Some(counted.iter().sum::<f64>() / TICKS_PER_SECOND)
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
        let stat = "17 (a) R b) S 1 17 17 0 -1 4194560 5 0 0 0 250 50 30 20 20 0 1 0 9 9 9";
        assert_eq!((parse_process(stat, false), parse_process(stat, true)), (Some(3.0), Some(3.5)));
    }

    #[test]
    fn work_is_seen() {
        let clock = LabClock(BTreeSet::new());
        let (before, all_before) = (clock.seconds(), busy_seconds().expect("/proc/stat"));
        let end = Instant::now() + Duration::from_secs(5);
        // As long as it takes to get some of a busy machine.
        while clock.seconds() < before + 0.05 && Instant::now() < end {}
        assert!(clock.seconds() >= before + 0.05);
        assert!(busy_seconds().expect("/proc/stat") >= all_before + 0.03);
        assert!(resident_bytes(&BTreeSet::from([std::process::id()])) > 1 << 20);
    }
}
