//! `penstock-dataplane`: the poll-mode packet path of the box.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use penstock_configs::file::{ConfigFile, Limits};
use penstock_configs::source;
use penstock_configs::validate::{BoxContext, HostFacts, port_list};
use penstock_dataplane::admin::{self, AdminHandle, Engine};
use penstock_dataplane::engine::{self, Dataplane};
use penstock_dataplane::neighbor::host;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// The packet path of the box: AF_XDP workers between clients and nodes.
///
/// Needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK and CAP_SYS_ADMIN (to mount its bpffs), or root.
/// SIGHUP reloads the file, and so does a change of it that is a second old; a bad file leaves what runs alone and says why.
#[derive(Parser)]
#[command(
    version,
    after_help = "Logs go to standard error; PENSTOCK_LOG=debug says more.\n\
                  Exit codes: 0 stopped, 1 it failed (trying again may help), 2 the config file or command line is at fault."
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The box's config file
    #[arg(long, short, default_value = "/etc/penstock/penstock.toml")]
    config: PathBuf,
    /// On a clean stop leave the XDP program in place: packets to VIPs and SNAT addresses are then
    /// dropped, not shown to the kernel, until the next start
    #[arg(long)]
    keep: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until stopped (the default)
    Run,
    /// Mount the bpffs the XDP program is pinned in, where it outlives this process: before entering a
    /// network or mount namespace, whose own mounts end with it
    Prepare {
        /// The box's run directory
        #[arg(long, default_value = "/run/penstock")]
        run_dir: PathBuf,
    },
    /// Remove what a dataplane that was killed, or stopped with --keep, left in the kernel: the XDP program and its
    /// pins; routes and neighbour entries, unless one runs
    Detach {
        /// The box's run directory
        #[arg(long, default_value = "/run/penstock")]
        run_dir: PathBuf,
    },
}

/// A file that was refused is read again so often.
const AGAIN: Duration = Duration::from_secs(10);

/// systemd starts again a tenth of a second after an end. What fails at once, and so again, is tried once a second.
const SHORTEST_RUN: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let (args, began) = (Args::parse(), Instant::now());
    let filter = tracing_subscriber::EnvFilter::try_from_env("PENSTOCK_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let result = match &args.command {
        Some(Command::Detach { run_dir }) => detach(run_dir).map(|()| ExitCode::SUCCESS),
        Some(Command::Prepare { run_dir }) => prepare(run_dir).map(|()| ExitCode::SUCCESS),
        Some(Command::Run) | None => run(&args),
    };
    result.unwrap_or_else(|error| {
        tracing::error!("{}", chain(&error));
        if matches!(args.command, Some(Command::Run) | None) {
            std::thread::sleep(SHORTEST_RUN.saturating_sub(began.elapsed()));
        }
        ExitCode::FAILURE
    })
}

/// What failed, and why; a message that names its own cause is not followed by it once more.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        told if told.contains(&cause) => text,
        told => format!("{told}: {cause}"),
    })
}

fn prepare(run_dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(run_dir).with_context(|| format!("run directory {}", run_dir.display()))?;
    if let Some(warning) = penstock_dataplane::steer::prepare(run_dir)? {
        tracing::warn!("{warning}");
    }
    Ok(())
}

fn detach(run_dir: &Path) -> anyhow::Result<()> {
    let detached = penstock_dataplane::steer::detach_all(run_dir)?;
    for what in &detached {
        println!("{what}");
    }
    let running = engine::is_running(run_dir);
    let [routes, neighbors] = if running { [0; 2] } else { engine::clear_routes_and_neighbors()? };
    for (count, what) in [(routes, "routes"), (neighbors, "neighbour entries")].iter().filter(|(count, _)| *count > 0) {
        println!("{count} {what} removed");
    }
    if detached.is_empty() && routes + neighbors == 0 {
        println!("nothing of Penstock's was there");
    }
    if running {
        tracing::warn!(
            "a penstock-dataplane runs with {} and serves nothing now: stop it (systemctl stop penstock-dataplane), or start it \
             anew to have it serve",
            run_dir.display()
        );
    }
    Ok(())
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A reload that is asked for during the start waits for its end: systemd takes us for started right away.
    let hangup = {
        let _inside = runtime.enter();
        signal(SignalKind::hangup())?
    };
    // Before it is read: what is saved during the start is news.
    let seen = look(&args.config);
    let host = host_facts()?;
    let config = match source::load_for(&args.config, Some(&host)) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return faults_of(&args.config);
        }
    };
    let mut dataplane = Dataplane::prepare(&config)?;
    let engine: Arc<dyn Engine> = Arc::<penstock_dataplane::engine::Shared>::clone(&dataplane.shared);
    let context = BoxContext::new(&config, Some(&host));
    let (admin, outcome) = AdminHandle::start(engine, &config.the_box.state_dir, context, Some(&config));
    let refused = outcome.and_then(Result::err);
    if let Some(refusal) = &refused {
        admin.file_notices(vec![format!("{}: {refusal}", args.config.display())]);
    }
    dataplane.settle(Duration::from_millis(600));
    dataplane.go()?;
    let socket = config.the_box.run_dir.join("dataplane.sock");
    let file = Watched { refused: refused.map(|_| Instant::now()), ..Watched::new(&args.config, seen, config) };
    let served = runtime.block_on(serve(socket, file, hangup, &admin, &dataplane));
    // Requests under way hold blocking threads; a stop does not wait for them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let stopped = dataplane.stop(args.keep);
    served.and(stopped).map(|()| ExitCode::SUCCESS)
}

/// 2: the file is at fault, and trying again will not mend it. What only this machine lacks now (an interface whose
/// driver is slow at boot) is an error like others, after which systemd tries again.
fn faults_of(path: &Path) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        source::load(path).is_err(),
        "{}: good by itself, but not for this machine as it is now",
        path.display()
    );
    Ok(ExitCode::from(2))
}

/// Serves the API and follows the file until a signal says stop.
async fn serve(
    socket: PathBuf,
    mut file: Watched,
    mut hangup: Signal,
    admin: &AdminHandle,
    dataplane: &Dataplane,
) -> anyhow::Result<()> {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let api = tokio::spawn(admin::serve(admin.clone(), socket.clone(), shutdown));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    // A reload may take longer than that; two looks at the file are a second apart all the same.
    every_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keeping: Option<JoinHandle<()>> = None;
    tracing::info!(api = %socket.display(), "serving");
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // Whoever asks is told, though it be once more.
                admin.file_notices(Vec::new());
                file.reload(admin).await;
            }
            _ = every_second.tick() => {
                if file.is_due(Instant::now()) {
                    file.reload(admin).await;
                }
                // Not waited for: a disk that hangs must not keep us from signals.
                if admin.has_unkept() && keeping.as_ref().is_none_or(JoinHandle::is_finished) {
                    let admin = admin.clone();
                    keeping = Some(tokio::task::spawn_blocking(move || admin.keep_again()));
                }
                end_for_more(&file.path, admin, dataplane).await?;
                anyhow::ensure!(dataplane.is_alive(), "a thread has ended; see the lines above");
                anyhow::ensure!(!api.is_finished(), "the API on {} has ended", socket.display());
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("stopping");
    let _ = stop.send(());
    api.await?.context("the API")?;
    Ok(())
}

/// An error where the next start can serve a device or a bond's member that this process can't. Not if it would fail:
/// then this one goes on with what it has, and says so.
async fn end_for_more(path: &Path, admin: &AdminHandle, dataplane: &Dataplane) -> anyhow::Result<()> {
    let Some(what) = dataplane.shared.outdated() else {
        admin.start_notice(None);
        return Ok(());
    };
    let (path, shared) = (path.to_owned(), Arc::clone(&dataplane.shared));
    let work = move || {
        let config = read(&path)?.0;
        shared.could_start(&config).map_err(|error| chain(&error))
    };
    let Err(why) = tokio::task::spawn_blocking(work).await? else {
        anyhow::bail!("{what}: ending, for the next start to serve it; flows are kept if as many workers serve then");
    };
    admin.start_notice(Some(format!(
        "{what}; it is not served, for a start would fail now, until this is mended: {why}"
    )));
    Ok(())
}

/// Which file it is (device, inode), when it was changed last, its access rights and name too (ctime, in seconds and
/// nanoseconds), and how long it is. Not its mtime, which copies keep.
type Look = Option<([u64; 3], [i64; 2])>;
/// Of the config file, and of the deny list it names.
type Seen = [Look; 2];

/// The config file, and what it looked like when it was read last.
struct Watched {
    path: PathBuf,
    seen: Seen,
    /// What it looked like a moment ago.
    last: Seen,
    /// When the last reading was refused. What was wrong may be mended beside its text: a deny list it names, an
    /// interface, another owner's VIP.
    refused: Option<Instant>,
    started_with: ConfigFile,
    running: ConfigFile,
}

impl Watched {
    /// `seen`: before the file was read. The deny list is read once more, since nobody knew then where to look.
    fn new(path: &Path, seen: Look, running: ConfigFile) -> Self {
        let seen = [seen, None];
        Self { path: path.into(), seen, last: seen, refused: None, started_with: running.clone(), running }
    }

    /// Whether it is another than was read, or was refused a while ago, and is no longer being written: the half of a
    /// file, or of a deny list, may well be a good one, and the services behind the cut would lose their flows.
    fn is_due(&mut self, now: Instant) -> bool {
        let look = self.look();
        let is_still = std::mem::replace(&mut self.last, look) == look;
        let again = self.refused.is_some_and(|at| now.saturating_duration_since(at) >= AGAIN);
        is_still && look[0].is_some() && (look != self.seen || again)
    }

    fn look(&self) -> Seen {
        [look(&self.path), look(&self.running.the_box.deny_file)]
    }

    /// Reads the file and serves what it says; a bad one changes nothing.
    async fn reload(&mut self, admin: &AdminHandle) {
        self.seen = self.look();
        let (path, said, admin) = (self.path.clone(), admin, admin.clone());
        let work = tokio::task::spawn_blocking(move || reload(&path, &admin));
        match work.await {
            Ok(Ok(config)) => {
                let restart = |what| {
                    let restart = restart_for(what, &self.started_with, &config);
                    format!("{}: `{what}` changed, which takes {restart}; what ran before goes on", self.path.display())
                };
                let notices = needs_restart(&self.started_with, &config).into_iter().map(restart).collect();
                said.file_notices(notices);
                self.refused = None;
                if config.the_box.deny_file != self.running.the_box.deny_file {
                    self.seen[1] = None;
                }
                self.running = config;
            }
            Ok(Err(why)) => {
                said.file_notices(vec![format!("{}: refused, what ran before goes on:\n{why}", self.path.display())]);
                self.refused = Some(Instant::now());
            }
            Err(error) => tracing::error!(%error, "reloading failed"),
        }
    }
}

/// Serves what the file says now, or says why not: then nothing has changed.
fn reload(path: &Path, admin: &AdminHandle) -> Result<ConfigFile, String> {
    let (config, host) = read(path)?;
    admin.apply_file(&config, BoxContext::new(&config, Some(&host))).map_err(|refusal| refusal.to_string())?;
    tracing::info!("{}: reloaded", path.display());
    Ok(config)
}

fn read(path: &Path) -> Result<(ConfigFile, HostFacts), String> {
    let host = host_facts().map_err(|error| format!("{error:#}"))?;
    let config = source::load_for(path, Some(&host)).map_err(|faults| faults.to_string())?;
    Ok((config, host))
}

fn needs_restart(old: &ConfigFile, new: &ConfigFile) -> Vec<&'static str> {
    let fixed = |file: &ConfigFile| {
        let mut ports = file.ports.clone();
        ports.iter_mut().for_each(|port| port.mss_clamp = None);
        (ports, Limits { maglev_size: 0, ..file.limits.clone() })
    };
    let ((old_ports, old_limits), (new_ports, new_limits)) = (fixed(old), fixed(new));
    let (old_box, new_box) = (&old.the_box, &new.the_box);
    let changes = [
        (old_ports != new_ports, "port"),
        (old.workers != new.workers, "workers"),
        (old_limits != new_limits, "limits"),
        (old_box.name != new_box.name, "box.name"),
        (old_box.run_dir != new_box.run_dir, "box.run_dir"),
        (old_box.state_dir != new_box.state_dir, "box.state_dir"),
        (old_box.probe != new_box.probe, "box.probe"),
    ];
    changes.into_iter().filter_map(|(changed, key)| changed.then_some(key)).collect()
}

/// What a restart costs: flow tables are taken up by as many workers of the same capacity, else all begin empty.
fn restart_for(what: &str, old: &ConfigFile, new: &ConfigFile) -> &'static str {
    let capacity = |file: &ConfigFile| (file.limits.flows_ipv4, file.limits.flows_ipv6, file.limits.embryonic);
    match what {
        "limits" if capacity(old) != capacity(new) => "a restart that takes up no flow: every connection ends",
        "port" | "workers" => "a restart (which takes up no flow if the number of workers changes)",
        _ => "a restart",
    }
}

fn look(path: &Path) -> Look {
    let metadata = std::fs::metadata(path).ok()?;
    Some(([metadata.dev(), metadata.ino(), metadata.len()], [metadata.ctime(), metadata.ctime_nsec()]))
}

/// What the kernel knows of the box, for checking that no address of the file locks somebody out.
fn host_facts() -> anyhow::Result<HostFacts> {
    let facts = host::HostFacts::read().context("the kernel's links and addresses cannot be read")?;
    Ok(HostFacts {
        addresses: facts.addresses,
        gateways: facts.gateways,
        local_port_range: facts.local_ports.map(|(first, last)| [first, last]),
        reserved_ports: port_list(&facts.reserved_ports),
        listeners: facts.listeners,
        interfaces: facts.interfaces.into_iter().map(|interface| (interface.name, interface.rx_queues)).collect(),
        cores: cores(),
    })
}

/// What this process was given: read once, because its threads leave the workers' cores alone later.
fn cores() -> u16 {
    static CORES: OnceLock<u16> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from) as u16)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = "version = 1\n[[port]]\ninterface = \"eth0\"\n";

    /// Two looks, a second apart.
    fn looks(file: &mut Watched) -> [bool; 2] {
        [(); 2].map(|()| file.is_due(Instant::now()))
    }

    #[test]
    fn a_file_is_read_when_it_has_been_still() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, deny) = (directory.path().join("lb.toml"), directory.path().join("deny.txt"));
        let text = format!("{FILE}[box]\nname = \"b\"\ndeny_file = {deny:?}\n");
        for file in [&path, &deny] {
            std::fs::write(file, "").expect("written");
        }
        let before = look(&path);
        let config = source::parse(&text, "lb.toml").expect("a good file");
        let write = |path: &Path| {
            let mut file = std::fs::File::options().append(true).open(path).expect("the file");
            file.write_all(b"# and more\n").expect("written");
        };
        // Saved between its reading and the end of the start.
        write(&path);
        let mut file = Watched::new(&path, before, config);
        assert_eq!(looks(&mut file), [false, true], "news, and then still");
        file.seen = file.look();
        assert_eq!(looks(&mut file), [false, false], "read");
        for written in [&path, &deny] {
            for _ in 0..3 {
                write(written);
                assert!(!file.is_due(Instant::now()), "{} grows", written.display());
            }
            assert!(file.is_due(Instant::now()), "{} is whole", written.display());
            file.seen = file.look();
        }
    }

    #[test]
    fn a_deny_list_is_read_once_more_after_the_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, deny) = (directory.path().join("lb.toml"), directory.path().join("deny.txt"));
        let text = format!("{FILE}[box]\nname = \"b\"\ndeny_file = {deny:?}\n");
        std::fs::write(&path, &text).expect("written");
        std::fs::write(&deny, "192.0.2.0/24\n").expect("written");
        let mut file = Watched::new(&path, look(&path), source::load(&path).expect("a good file"));
        assert_eq!(looks(&mut file), [false, true]);
        std::fs::write(&path, FILE).expect("written");
        let mut file = Watched::new(&path, look(&path), source::load(&path).expect("a good file"));
        assert_eq!(looks(&mut file), [false, false], "there is none");
    }

    #[test]
    fn a_file_of_the_same_time_and_length_or_with_other_rights_is_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let [path, beside] = ["lb.toml", "new.toml"].map(|name| directory.path().join(name));
        std::fs::write(&path, FILE).expect("written");
        let mut file = Watched::new(&path, look(&path), source::load(&path).expect("a good file"));
        assert_eq!(looks(&mut file), [false, false]);
        std::fs::write(&beside, FILE.replace("eth0", "eth1")).expect("written");
        let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("a time");
        std::fs::File::options().write(true).open(&beside).expect("it").set_modified(modified).expect("set");
        std::fs::rename(&beside, &path).expect("renamed");
        assert_eq!(looks(&mut file), [false, true]);
        file.seen = file.look();
        // Older kernels take a file's time from a clock of some milliseconds.
        let deadline = Instant::now() + Duration::from_secs(5);
        while file.look() == file.seen && Instant::now() < deadline {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
        }
        assert_eq!(looks(&mut file), [false, true]);
    }

    #[test]
    fn a_refused_file_is_read_again_after_a_while_though_it_is_the_same() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lb.toml");
        std::fs::write(&path, FILE).expect("written");
        let running = source::load(&path).expect("a good file");
        let refused = Instant::now();
        let mut file = Watched { refused: Some(refused), ..Watched::new(&path, look(&path), running) };
        assert!(!file.is_due(refused + AGAIN - Duration::from_secs(1)));
        assert!(file.is_due(refused + AGAIN));
        file.refused = None;
        assert!(!file.is_due(refused + AGAIN));
    }

    #[test]
    fn what_takes_a_restart_is_named_and_nothing_else() {
        let file = |more: &str| source::parse(&format!("{FILE}{more}"), "lb.toml").expect("a good file");
        let old = file("");
        let named = |more: &str| needs_restart(&old, &file(more));
        assert!(named("").is_empty());
        assert!(named("mss_clamp = 1360\n[limits]\nmaglev_size = 251\n[timeouts]\nudp = 200\n").is_empty());
        assert_eq!(named("queues = 1\n[workers]\ncount = 1\n[limits]\nservices = 9\n"), ["port", "workers", "limits"]);
        let the_box = "[box]\nname = \"b\"\nrun_dir = \"/run/b\"\nstate_dir = \"/srv/b\"\nprobe = \"quick\"\n";
        assert_eq!(named(the_box), ["box.name", "box.run_dir", "box.state_dir", "box.probe"]);
        let ends_flows = |more: &str| restart_for("limits", &old, &file(more)).contains("no flow");
        let more = ["services = 9", "flows_ipv4 = 2097152", "flows_ipv6 = 2097152", "embryonic = 65536"];
        assert_eq!(more.map(|more| ends_flows(&format!("[limits]\n{more}\n"))), [false, true, true, true]);
    }
}
