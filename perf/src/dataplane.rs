//! A `penstock-dataplane` process in the box's namespace: started, reloaded, killed, asked.

use std::fs::{self, File};
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use penstock_configs::file::ConfigFile;
use penstock_configs::status::{Counters, FlowQuery, FlowStatus, Status};
use penstock_control::client::{ClientError, Dataplane as Api};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, Netns};

/// The owner whose snapshot the config file is.
const FILE_OWNER: &str = "file";
/// Names another binary than the one beside this program.
const PROGRAM: &str = "PENSTOCK_DATAPLANE";
const START_PATIENCE: Duration = Duration::from_secs(60);
const RELOAD_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// More than any test opens.
const ALL_FLOWS: usize = 1_000_000;

/// A running (or killed) dataplane. Dropping it kills the process; what it left on the interfaces
/// goes with the lab.
#[derive(Debug)]
pub struct Dataplane {
    ns: Netns,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    api: Api,
    process: Option<Child>,
}

impl Dataplane {
    /// Writes the config into the lab's directory, starts the process and waits until it serves.
    pub fn start(lab: &Lab, config: &ConfigFile) -> Result<Self> {
        Self::start_in(&lab.the_box, &lab.dir(), config)
    }

    /// A second box of a lab, in another host's namespace and with a directory of its own.
    pub fn start_in(ns: &Netns, dir: &Path, config: &ConfigFile) -> Result<Self> {
        let mut dataplane = Self {
            ns: ns.clone(),
            program: program("penstock-dataplane")?,
            config: dir.join("penstock.toml"),
            log: dir.join("dataplane.log"),
            api: Api::new(config.the_box.run_dir.join("dataplane.sock")),
            process: None,
        };
        fs::create_dir_all(dir)?;
        for dir in [&config.the_box.run_dir, &config.the_box.state_dir] {
            fs::create_dir_all(dir)?;
        }
        dataplane.write(config)?;
        dataplane.start_again()?;
        Ok(dataplane)
    }

    fn write(&self, config: &ConfigFile) -> Result<()> {
        let text = toml::to_string(config).context("the config as TOML")?;
        fs::write(&self.config, text).with_context(|| format!("writing {}", self.config.display()))
    }

    /// Starts the process, for the first time or after [`kill`](Self::kill), and waits until it serves.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A Ctrl-C at the terminal is for the lab, which ends the dataplane in its turn.
        command.process_group(0);
        self.process = Some(self.ns.spawn(&mut command).with_context(|| format!("{}", self.program.display()))?);
        self.wait_until("serving", START_PATIENCE, |status| {
            let up = status.owners.iter().any(|owner| owner.owner == FILE_OWNER && owner.is_running());
            Ok(up)
        })
    }

    /// Replaces the config file, sends SIGHUP and waits until every worker runs the new services.
    pub fn reload(&mut self, config: &ConfigFile) -> Result<()> {
        let status = self.status()?;
        let (before, known) = (status.file_generation(), status.notices);
        self.write(config)?;
        self.signal(Signal::HUP)?;
        self.wait_until("running the new config", RELOAD_PATIENCE, |status| {
            let news = |notice: &&String| notice.contains("refused") && !known.contains(notice);
            if let Some(why) = status.notices.iter().find(news) {
                bail!("the new config was refused: {why}");
            }
            let Some(owner) = status.owners.iter().find(|owner| owner.owner == FILE_OWNER) else { return Ok(false) };
            Ok(owner.generation > before && owner.is_running())
        })
    }

    /// SIGKILL, as a crash or the out-of-memory killer would.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended()
    }

    /// Waits for an end it was asked for, or has reason for.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + STOP_PATIENCE;
        let process = self.process.as_mut().context("it does not run")?;
        loop {
            if let Some(status) = process.try_wait()? {
                self.process = None;
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it does not end\n{}", self.log_tail());
            std::thread::sleep(POLL);
        }
    }

    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// For what is not asked here.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("it does not run")?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    pub fn status(&self) -> Result<Status> {
        self.ask(self.api.status())
    }

    pub fn counters(&self) -> Result<Counters> {
        self.ask(self.api.counters())
    }

    pub fn flows(&self) -> Result<Vec<FlowStatus>> {
        self.ask(self.api.flows(&FlowQuery::default(), ALL_FLOWS))
    }

    fn ask<T: Send>(&self, request: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
        crate::clients::run_here(request).with_context(|| self.log_tail())
    }

    /// The socket `penstock --socket` wants.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.api.socket()
    }

    #[must_use]
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// The last lines it logged, for messages about its failures.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!("the dataplane's log ends with:\n{}", last.join("\n"))
    }

    fn wait_until(&mut self, what: &str, patience: Duration, done: impl Fn(&Status) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                self.process = None;
                bail!("the dataplane ended ({status}) instead of {what}\n{}", self.log_tail());
            }
            let answer = crate::clients::run_here(self.api.status());
            if let Ok(status) = &answer
                && done(status).with_context(|| self.log_tail())?
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let last = answer.map_or_else(|error| error.to_string(), |status| format!("{:?}", status.owners));
                bail!("the dataplane is not {what} after {patience:?}: {last}\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        if self.process.is_some() && self.kill().is_err() {
            eprintln!("the dataplane could not be killed; the lab's removal tries again");
        }
    }
}

trait Acknowledged {
    fn is_running(&self) -> bool;
}

impl Acknowledged for penstock_configs::status::OwnerStatus {
    /// Every worker runs what was accepted last.
    fn is_running(&self) -> bool {
        self.generation > 0 && self.acknowledged == self.generation
    }
}

trait FileGeneration {
    fn file_generation(&self) -> u64;
}

impl FileGeneration for Status {
    fn file_generation(&self) -> u64 {
        self.owners.iter().find(|owner| owner.owner == FILE_OWNER).map_or(0, |owner| owner.generation)
    }
}

/// A program of the workspace: beside this one, or beside the directory test binaries are in.
pub fn program(name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(PROGRAM).filter(|_| name == "penstock-dataplane") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("finding this program's own file")?;
    let candidates = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let found = candidates.clone().find(|path| path.is_file());
    found.with_context(|| {
        let tried: Vec<_> = candidates.map(|path| path.display().to_string()).collect();
        format!("{name} is not built (looked at {}): cargo build --workspace --bins", tried.join(", "))
    })
}
