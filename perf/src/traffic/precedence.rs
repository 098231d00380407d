//! Settings of the kernel's that a measurement changes, and puts back; the generator's precedence on its core.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Once;

use rustix::process::{Pid, setpriority_process};
use rustix::thread::sched_getaffinity;

/// Puts a setting back when it is dropped or this process ends, however it ends: a process waits for that.
#[derive(Debug)]
pub struct Restorer(Child);

impl Restorer {
    /// # Errors
    /// No process.
    pub fn new(path: &str, value: &str) -> io::Result<Self> {
        let script = format!("read line; echo {value} > {path}");
        // A Ctrl-C at the terminal is not for it.
        Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).process_group(0).spawn().map(Self)
    }
}

impl Drop for Restorer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A kernel that groups processes by session (sched_autogroup) weighs a thread's priority within its session only.
const SESSION: &str = "/proc/self/autogroup";

/// This session, box and generator alike, goes before others and before the kernel's own threads, until dropped: on
/// real hardware both would have cores of their own. Nothing where the kernel does not group by session.
#[derive(Debug)]
pub struct Precedence {
    _restorer: Option<Restorer>,
}

impl Precedence {
    #[must_use]
    pub fn take() -> Self {
        Self { _restorer: Self::of_session() }
    }

    fn of_session() -> Option<Restorer> {
        let text = std::fs::read_to_string(SESSION).ok()?;
        let old: i32 = text.split_whitespace().last()?.parse().ok()?;
        let restorer = Restorer::new(SESSION, &old.to_string()).ok()?;
        if let Err(error) = std::fs::write(SESSION, "-20") {
            refused(&error);
        }
        Some(restorer)
    }
}

pub(super) const NICE: i32 = -20;

/// The calling thread, a generator's, goes before others of its core.
pub fn insist() {
    // Of the thread, not of the process: that is what Linux does for "the caller".
    if let Err(error) = setpriority_process(None, NICE) {
        refused(&error.into());
    }
}

/// So do the threads of these processes that have the core for themselves, whoever's they are: else a generator would have
/// all of the session's precedence, which the kernel deals out among the cores by what the threads on them have.
pub fn insist_for(processes: &BTreeSet<u32>, core: usize) {
    for thread in pinned(processes, core) {
        if let Err(error) = setpriority_process(Some(thread), NICE) {
            refused(&error.into());
        }
    }
}

/// Threads of these processes that run on this core only.
fn pinned(processes: &BTreeSet<u32>, core: usize) -> impl Iterator<Item = Pid> {
    let only = move |thread: &Pid| sched_getaffinity(Some(*thread)).is_ok_and(|at| at.count() == 1 && at.is_set(core));
    processes.iter().flat_map(threads).filter(only)
}

/// Of a process that may have ended.
fn threads(process: &u32) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

fn refused(error: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| eprintln!("note: no precedence on the generator's core ({error}): it will pause more often"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_put_back() {
        let path = std::env::temp_dir().join(format!("penstock-restorer-{}", std::process::id()));
        std::fs::write(&path, "old").expect("a file");
        let restorer = Restorer::new(path.to_str().expect("a path"), "old").expect("a process");
        std::fs::write(&path, "new").expect("a file");
        drop(restorer);
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), "old\n");
        std::fs::remove_file(&path).expect("a file");
    }
}
