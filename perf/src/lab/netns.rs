//! A named network namespace, entered by threads: whatever a thread opens or starts while inside
//! belongs to the namespace. Only `setns` is used, never `ip netns exec`, which would remount /sys
//! and hide a bpffs from the process.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cleanup;
use super::counters::TcpCounters;

/// A handle on a namespace made with `ip netns add`.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
    link: Arc<File>,
}

impl Netns {
    /// Opens the namespace of this name.
    pub fn open(name: &str) -> Result<Self> {
        let path = PathBuf::from("/run/netns").join(name);
        let link = File::open(&path).with_context(|| format!("{}: no such namespace", path.display()))?;
        Ok(Self { name: name.to_owned(), link: Arc::new(link) })
    }

    /// The name `ip netns list` shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace, for good: for threads that live there.
    pub fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.link.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter().unwrap_or_else(|error| panic!("entering namespace {}: {error}", self.name));
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that lives in the namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<io::Result<T>>> {
        let namespace = self.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            namespace.enter()?;
            Ok(work())
        })
    }

    /// Starts a process in the namespace; it sees the mounts of this process. Not while a signal takes labs down: that sees it, or
    /// it is never started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let _drawing = cleanup::drawing();
        self.run(|| command.spawn())
    }

    /// Runs a command in the namespace to its end and collects what it printed. A Ctrl-C at the terminal
    /// is for this process, which cleans up.
    pub fn output(&self, command: &mut Command) -> io::Result<Output> {
        command.process_group(0);
        self.run(|| command.output())
    }

    /// Runs a command line (words split at blanks) and returns its standard output, or an error that
    /// carries its standard error.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        let output = self.output(Command::new(program).args(words)).with_context(|| format!("starting `{line}`"))?;
        anyhow::ensure!(
            output.status.success(),
            "`{line}` in {} failed: {}{}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim(),
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a sysctl of the namespace: `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys").join(key.replace('.', "/"));
        self.run(|| std::fs::write(&path, value)).with_context(|| format!("{}: setting {key} = {value}", self.name))
    }

    /// A file of /proc/net as the namespace has it. (/proc/net itself shows the main thread's.)
    pub fn proc_net(&self, file: &str) -> Result<String> {
        let path = PathBuf::from("/proc/thread-self/net").join(file);
        self.run(|| std::fs::read_to_string(&path)).with_context(|| format!("{}: {}", self.name, path.display()))
    }

    /// The kernel's TCP counters of the namespace.
    pub fn tcp_counters(&self) -> Result<TcpCounters> {
        TcpCounters::parse(&self.proc_net("snmp")?)
    }
}
