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

const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Seconds are long in a lab: what a cluster does in tens of them is done in tenths. But a machine that stands still for one
/// or two hands no lead over.
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
duration = 6
renew_deadline = 5
retry = 0.2
";

const HASTY: &str = "[health]\ninterval = 0.3\ntimeout = 0.3\nrise = 1\nfall = 2\n\n";

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

/// What is not the same for every control.
#[derive(Debug)]
pub struct Place<'a> {
    pub ns: &'a Netns,
    /// Config, log and sockets go here.
    pub dir: PathBuf,
    pub box_name: &'a str,
    pub dataplane: &'a Path,
}

impl Control {
    /// `kubernetes`: lines of the `[kubernetes]` table.
    pub fn start(lab: &Lab, dataplane: &Path, kubeconfig: &str, kubernetes: &str) -> Result<Self> {
        let place = Place { ns: &lab.the_box, dir: lab.dir(), box_name: "lab", dataplane };
        Self::quick(&place, kubeconfig, kubernetes)
    }

    /// Of one box among several.
    pub fn quick(place: &Place<'_>, kubeconfig: &str, kubernetes: &str) -> Result<Self> {
        fs::create_dir_all(&place.dir)?;
        let path = place.dir.join("kubeconfig.yaml");
        fs::write(&path, kubeconfig)?;
        let table = format!("[kubernetes]\nkubeconfig = \"{}\"\n{kubernetes}", path.display());
        Self::with(place, &format!("{HASTY}{table}\n{QUICK}"))
    }

    /// Health checks for the services of the dataplane's file, and nothing else.
    pub fn without_cluster(lab: &Lab, dataplane: &Path) -> Result<Self> {
        Self::with(&Place { ns: &lab.the_box, dir: lab.dir(), box_name: "lab", dataplane }, HASTY)
    }

    /// With these tables and everything else as it comes.
    pub fn with(place: &Place<'_>, tables: &str) -> Result<Self> {
        let (socket, config) = (place.dataplane.with_file_name("control.sock"), place.dir.join("control.toml"));
        let text = format!(
            "version = 1\nbox = \"{}\"\ndataplane = \"{}\"\nsocket = \"{}\"\n\n{tables}",
            place.box_name,
            place.dataplane.display(),
            socket.display(),
        );
        fs::create_dir_all(&place.dir)?;
        fs::write(&config, text)?;
        let mut control = Self {
            ns: place.ns.clone(),
            program: program("penstock-control")?,
            config,
            log: place.dir.join("control.log"),
            socket,
            process: None,
        };
        control.start_again()?;
        Ok(control)
    }

    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
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

    /// SIGTERM, and waits for a clean end.
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
