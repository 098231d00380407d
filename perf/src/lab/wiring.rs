//! Commands per namespace, collected and then run in batches: one `ip` process a namespace, all
//! namespaces at once.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::netns::Netns;

/// What is to be done inside one namespace.
#[derive(Debug, Default)]
pub(super) struct Script {
    sysctls: Vec<(String, String)>,
    ip: Vec<String>,
    tools: Vec<String>,
}

impl Script {
    /// Written before anything else: settings new interfaces inherit.
    pub(super) fn sysctl(&mut self, key: &str, value: u8) {
        self.sysctls.push((key.to_owned(), value.to_string()));
    }

    /// A line for `ip -batch`.
    pub(super) fn ip(&mut self, line: impl Into<String>) {
        self.ip.push(line.into());
    }

    /// A command line of another tool, run after the `ip` batch.
    pub(super) fn tool(&mut self, line: impl Into<String>) {
        self.tools.push(line.into());
    }

    pub(super) fn run(&self, ns: &Netns) -> Result<()> {
        for (key, value) in &self.sysctls {
            ns.sysctl(key, value)?;
        }
        ns.run(|| ip_batch(&self.ip)).with_context(|| format!("in namespace {}", ns.name()))?;
        for line in &self.tools {
            ns.sh(line)?;
        }
        Ok(())
    }
}

/// Feeds lines to one `ip -batch` process in the calling thread's namespace.
pub(super) fn ip_batch(lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        // A Ctrl-C at the terminal is for this process, which cleans up.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `ip` (Debian: apt-get install iproute2)")?;
    let mut input = ip.stdin.take().context("the pipe to ip")?;
    // A refused batch closes the pipe early; its message, read below, says more than EPIPE.
    let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
    drop(input);
    let output = ip.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip refused: {}\nbatch:\n{}",
        String::from_utf8_lossy(&output.stderr).trim(),
        lines.join("\n")
    );
    Ok(())
}
