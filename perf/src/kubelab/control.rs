//! A `penstock-control` process beside the dataplane, in the box's namespace.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::dataplane::program;
use crate::lab::{Lab, Netns};

const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Seconds are long in a lab: what a cluster does in tens of them is done in tenths.
const QUICK: &str = "
[kubernetes.timing]
debounce = 0.01
status_grace = 3
retry = 0.1
retry_max = 1
teardown_wait = 10
watch = 5
stale_after = 1

[kubernetes.leader_election]
duration = 2
renew_deadline = 1.5
retry = 0.2
";

/// A running (or killed) control. Dropping it kills the process.
#[derive(Debug)]
pub struct Control {
    ns: Netns,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    pub socket: PathBuf,
    process: Option<Child>,
}

impl Control {
    /// `kubernetes`: lines of the `[kubernetes]` table.
    pub fn start(lab: &Lab, dataplane: &Path, kubeconfig: &str, kubernetes: &str) -> Result<Self> {
        let path = lab.path("kubeconfig.yaml")?;
        fs::write(&path, kubeconfig)?;
        let tables = format!("[kubernetes]\nkubeconfig = \"{}\"\n{kubernetes}\n{QUICK}", path.display());
        Self::with(lab, dataplane, &tables)
    }

    /// Health checks for the services of the dataplane's file, and nothing else.
    pub fn without_cluster(lab: &Lab, dataplane: &Path) -> Result<Self> {
        Self::with(lab, dataplane, "")
    }

    fn with(lab: &Lab, dataplane: &Path, tables: &str) -> Result<Self> {
        let (socket, config) = (dataplane.with_file_name("control.sock"), lab.path("control.toml")?);
        let text = format!(
            "version = 1\nbox = \"lab\"\ndataplane = \"{}\"\nsocket = \"{}\"\n\n[health]\ninterval = 0.3\ntimeout = 0.3\n\
             rise = 1\nfall = 2\n\n{tables}",
            dataplane.display(),
            socket.display(),
        );
        fs::write(&config, text)?;
        let mut control = Self {
            ns: lab.the_box.clone(),
            program: program("penstock-control")?,
            config,
            log: lab.path("control.log")?,
            socket,
            process: None,
        };
        control.start_again()?;
        Ok(control)
    }

    /// For the first time, or after [`kill`](Self::kill).
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A Ctrl-C at the terminal is for the lab, which ends control in its turn.
        command.process_group(0);
        self.process = Some(self.ns.spawn(&mut command).with_context(|| format!("{}", self.program.display()))?);
        Ok(())
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for a clean end: the Lease is given up.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("it does not run")?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            if let Some(status) = process.try_wait()? {
                self.process = None;
                ensure!(status.success(), "it ended with {status}\n{}", self.log_tail());
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("it does not end on SIGTERM\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The last lines it logged, for messages about failures.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("control's log ends with:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.process.is_some() && self.kill().is_err() {
            eprintln!("control could not be killed; the lab's removal tries again");
        }
    }
}
