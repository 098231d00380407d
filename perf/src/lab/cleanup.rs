//! Nothing stays behind: labs are taken down when dropped, on a signal, and, when their process
//! was killed, by the next lab's sweep. Every lab has a directory with a manifest that names its owner.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::plan::Topology;

/// Directories of all labs of the machine. A tmpfs: flow state wants one.
pub const ROOT: &str = "/run/penstock-lab";
const NETNS_DIR: &str = "/run/netns";
/// How long a killed process may take to leave its namespace.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What another process needs to know of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub id: String,
    /// The process that takes the lab down; `None` for one that `lab up` left running.
    pub owner: Option<Owner>,
    pub topology: Topology,
    pub clients: usize,
    pub nodes: usize,
}

/// A process, told from a later one with the same id by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pid: u32,
    /// Clock ticks after boot, from /proc/PID/stat.
    started: u64,
}

impl Owner {
    /// This process.
    pub fn current() -> Result<Self> {
        let pid = std::process::id();
        Ok(Self { pid, started: start_time(pid).context("/proc/self/stat has no start time")? })
    }

    fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold blanks and parentheses; after it come fields 3 (state), 4, ...; 22 is wanted.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A killed process that its parent has not collected yet is dead all the same.
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

impl Manifest {
    /// Where a lab of this id keeps its files.
    #[must_use]
    pub fn dir(id: &str) -> PathBuf {
        Path::new(ROOT).join(id)
    }

    pub fn write(&self) -> Result<()> {
        let dir = Self::dir(&self.id);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        // Renamed into place: a sweep never reads half a manifest.
        let partial = dir.join("lab.json.partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&partial, dir.join("lab.json"))?;
        Ok(())
    }

    pub fn read(id: &str) -> Result<Self> {
        let path = Self::dir(id).join("lab.json");
        let text = fs::read(&path).with_context(|| format!("{}: no such lab", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{}: not a lab's manifest", path.display()))
    }

    /// Every lab of the machine.
    #[must_use]
    pub fn all() -> Vec<Self> {
        lab_ids().iter().filter_map(|id| Self::read(id).ok()).collect()
    }
}

fn lab_ids() -> Vec<String> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("pl"))
        .collect()
}

/// Labs of this process, for the signal handler.
static LIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

pub(super) fn register(id: &str) {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
}

pub(super) fn forget(id: &str) {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
}

/// Takes down every lab this process made: from the signal handler and from a binary's panic hook
/// (release builds abort on panic, so nothing is dropped).
pub fn remove_all_of_this_process() {
    let ids = std::mem::take(&mut *LIVE.lock().unwrap_or_else(PoisonError::into_inner));
    for id in ids {
        remove(&id);
    }
}

/// Held to read while a lab is drawn up or a process started in one. The signal handler takes it to write, and keeps it: `ip`,
/// which need not have got the signal, would go on making namespaces after they were removed, and nobody would know of
/// them; nor of a process in one.
static DRAWING: RwLock<()> = RwLock::new(());

pub(super) fn drawing() -> RwLockReadGuard<'static, ()> {
    DRAWING.read().unwrap_or_else(PoisonError::into_inner)
}

/// A signal is taking the labs down.
static ENDING: AtomicBool = AtomicBool::new(false);

/// What a command ends with. One that fails because a signal took its lab away has nothing to report:
/// the process ends once the lab is gone.
pub fn outcome<T>(result: T) -> T {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
    result
}

/// Ctrl-C, SIGTERM and a closed terminal take this process's labs down before it ends.
pub(super) fn install_signal_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let started = std::thread::Builder::new().name("lab-signals".into()).spawn(|| {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
            if let Some(code) = runtime.block_on(termination()) {
                ENDING.store(true, Ordering::SeqCst);
                let _nothing_more = DRAWING.write().unwrap_or_else(PoisonError::into_inner);
                remove_all_of_this_process();
                eprintln!("Interrupted: the lab is taken down.");
                std::process::exit(code);
            }
        });
        if let Err(error) = started {
            eprintln!("no signal handler, a Ctrl-C would leave the lab to the next sweep: {error}");
        }
    });
}

/// Waits for a signal that ends the process; returns the exit code a shell expects for it.
async fn termination() -> Option<i32> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).ok()?;
    let mut terminate = signal(SignalKind::terminate()).ok()?;
    let mut hangup = signal(SignalKind::hangup()).ok()?;
    tokio::select! {
        _ = interrupt.recv() => Some(130),
        _ = terminate.recv() => Some(143),
        _ = hangup.recv() => Some(129),
    }
}

/// Removes labs whose process is gone. Returns their ids.
pub fn sweep() -> Vec<String> {
    let mut removed = Vec::new();
    for id in lab_ids() {
        let stale = match Manifest::read(&id) {
            Ok(manifest) => manifest.owner.is_some_and(|owner| !owner.is_alive()),
            // Its maker died, or is, between creating the directory and writing the manifest.
            Err(_) => older_than(&Manifest::dir(&id), Duration::from_secs(60)),
        };
        if stale {
            remove(&id);
            removed.push(id);
        }
    }
    removed
}

fn older_than(path: &Path, age: Duration) -> bool {
    let modified = path.metadata().and_then(|meta| meta.modified()).ok();
    modified.and_then(|time| SystemTime::now().duration_since(time).ok()).is_some_and(|passed| passed > age)
}

/// Takes a lab down by its id: processes, mounts, namespaces (their veths with them), files. What
/// can't be removed is said and skipped, so that the rest still goes.
pub fn remove(id: &str) {
    // One after the other: a signal's thread and the one that was building the lab may both be here.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let namespaces = namespaces_of(id);
    kill_inside(&namespaces);
    let dir = Manifest::dir(id);
    unmount_below(&dir);
    for name in &namespaces {
        run_quietly(Command::new("ip").args(["netns", "del", name]));
    }
    if let Err(error) = fs::remove_dir_all(&dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("lab {id}: {} stays behind: {error}", dir.display());
    }
    // Only the last lab's removal succeeds here.
    let _ = fs::remove_dir(ROOT);
}

fn namespaces_of(id: &str) -> Vec<String> {
    let prefix = format!("{id}-");
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// Kills what still runs in the namespaces: a dataplane, servers, a forgotten shell.
fn kill_inside(namespaces: &[String]) {
    let inodes: BTreeSet<u64> =
        namespaces.iter().filter_map(|name| Some(fs::metadata(Path::new(NETNS_DIR).join(name)).ok()?.ino())).collect();
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        let pids = processes_in(&inodes);
        if pids.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            eprintln!("processes {pids:?} do not leave their namespace");
            return;
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes_in(inodes: &BTreeSet<u64>) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        // A zombie's link can't be read any more: it counts as gone.
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino())))
        .collect()
}

/// The dataplane mounts a bpffs below its run directory; it outlives the process by design.
fn unmount_below(dir: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return };
    let points =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(dir));
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        run_quietly(Command::new("umount").args(["--lazy", point]));
    }
}

fn run_quietly(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => eprintln!("{command:?}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::PoisonError;
    use std::time::Duration;

    use super::{DRAWING, Owner, start_time};
    use crate::lab::Lab;
    use crate::privilege;

    #[test]
    fn this_process_is_alive_and_an_impostor_is_not() {
        let owner = Owner::current().expect("a readable /proc");
        assert!(owner.is_alive());
        assert!(!Owner { started: owner.started + 1, ..owner }.is_alive());
    }

    #[test]
    fn a_killed_process_is_dead_before_its_parent_collects_it() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("a process");
        let owner = Owner { pid: child.id(), started: start_time(child.id()).expect("it runs") };
        assert!(owner.is_alive());
        child.kill().expect("a process to kill");
        while owner.is_alive() {
            std::thread::yield_now();
        }
        child.wait().expect("a child");
    }

    /// As a signal's thread holds it until the process ends.
    #[test]
    fn privileged_nothing_is_started_in_a_lab_that_is_taken_down() {
        if !privilege::require("privileged_nothing_is_started_in_a_lab_that_is_taken_down") {
            return;
        }
        let lab = Lab::builder().clients(1).nodes(1).build().expect("a lab");
        let taken_down = DRAWING.write().unwrap_or_else(PoisonError::into_inner);
        let ns = lab.the_box.clone();
        let starting = std::thread::spawn(move || ns.spawn(&mut Command::new("true")));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!starting.is_finished());
        drop(taken_down);
        starting.join().expect("a thread").expect("a process").wait().expect("a child");
    }

    #[test]
    fn a_process_that_never_was_has_no_start_time() {
        assert_eq!(start_time(u32::MAX), None);
    }
}
