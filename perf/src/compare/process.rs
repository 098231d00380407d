//! Programs of a comparison: started in a namespace of the lab, their output in the lab's directory, ended with
//! their handle. (Those a killed or interrupted run leaves end with the lab: it kills what is in its namespaces.)

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, Netns};

/// testpmd waits nine seconds for links.
const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(10);

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program; its output goes to `<name>.log` in the lab's directory. Root's tools are found also where
    /// a user's PATH lacks their directories.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(lab: &Lab, ns: &Netns, name: &str, command: &mut Command) -> Result<Self> {
        let log = lab.path(format!("{name}.log"))?;
        let file = File::create(&log).with_context(|| format!("{}", log.display()))?;
        if command.get_current_dir().is_none() {
            command.current_dir(lab.dir());
        }
        // A Ctrl-C at the terminal is for the lab, which ends this in its turn.
        command.process_group(0).stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let child = ns.spawn(command).with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    /// Waits until `ready`; an early end is an error that carries what the program said.
    ///
    /// # Errors
    /// It ended, or took too long.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + START;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it was {what}: {}", self.name, self.said());
            }
            ensure!(Instant::now() < deadline, "{} is not {what} after {START:?}: {}", self.name, self.said());
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// The end of its output.
    #[must_use]
    pub fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gently first: nginx and HAProxy end their workers themselves.
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP;
        while !matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(STEP);
        }
    }
}

/// Where a program is, in PATH or root's directories.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let root: [PathBuf; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(root).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Where a program is, or which package has it.
///
/// # Errors
/// It is nowhere.
pub fn need(program: &str, package: &str) -> Result<PathBuf> {
    find(program).with_context(|| format!("no `{program}` here (Debian: apt-get install {package})"))
}

/// Writes a file into the lab's directory.
///
/// # Errors
/// It can't be written.
pub fn write(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.path(Path::new(name))?;
    fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
    Ok(path)
}

/// Whether something listens on a TCP port of a namespace.
#[must_use]
pub fn listens(ns: &Netns, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    // Local address in the second column, state 0A (LISTEN) in the fourth.
    let is_listener = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|local| local.ends_with(&wanted)) && fields.get(3) == Some(&"0A")
    };
    ["tcp", "tcp6"].iter().any(|file| ns.proc_net(file).is_ok_and(|text| text.lines().any(is_listener)))
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("no-such-program-here"), None);
    }
}
