//! `penstock-control`: Kubernetes and health checks for the box. See the crate's documentation for the journey.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use penstock_control::client::Dataplane;
use penstock_control::config::{ControlConfig, KubernetesConfig};
use penstock_control::metrics::Metrics;
use penstock_control::probe::{self, HealthSeam, Targets};
use penstock_control::sync::{self, Query, Seams};
use penstock_control::{cluster, crd, file_services, health, overlay, serve};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

#[derive(Debug, Parser)]
#[command(version, about = "Kubernetes Services and health checks for a Penstock box")]
#[command(after_help = "Logs go to standard error; PENSTOCK_LOG=debug says more.\n\
                        Exit codes: 0 stopped, 1 it failed, 2 the configuration or command line is at fault.")]
struct Arguments {
    /// The configuration; a missing file at the default place means: no Kubernetes, defaults for the rest
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says whether the configuration is good, with every fault
    Check,
    /// Prints the definitions of our objects, for `kubectl apply -f -`
    Crds,
}

/// The client logs each failed request as an error without its cause; ours name the cause, once.
const LOGGED: &str = "info,kube_client::client::builder=off";
const OWN_NODE: &str = "PENSTOCK_OWN_NODE";
const DEFAULT_CONFIG: &str = "/etc/penstock/control.toml";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("PENSTOCK_LOG").unwrap_or_else(|_| LOGGED.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // As `penstock check`: 2 says that the file is at fault. Its error names its cause itself.
            if fault.is::<penstock_control::config::ConfigError>() {
                error!("{fault}");
                return ExitCode::from(2);
            }
            error!("{fault:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> anyhow::Result<()> {
    if matches!(arguments.command, Some(Command::Crds)) {
        print!("{}", crd::manifest()?);
        return Ok(());
    }
    let config = load(&arguments.config)?;
    if matches!(arguments.command, Some(Command::Check)) {
        println!("{}: good", arguments.config.display());
        return Ok(());
    }
    // One thread: control waits nearly always, and the box's cores belong to the dataplane.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(serve(Arc::new(config)))
}

fn load(path: &Path) -> anyhow::Result<ControlConfig> {
    let mut config = if path == Path::new(DEFAULT_CONFIG) && !path.exists() {
        ControlConfig::parse(path, "version = 1")?
    } else {
        ControlConfig::load(path)?
    };
    if config.box_name.is_empty() {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        config.box_name = if name.trim().is_empty() { "penstock".into() } else { name.trim().to_lowercase() };
    }
    if let Some(kubernetes) = &mut config.kubernetes
        && kubernetes.own_node.is_none()
    {
        // How a pod of a DaemonSet learns its node.
        kubernetes.own_node = std::env::var(OWN_NODE).ok().filter(|name| !name.is_empty());
    }
    Ok(config)
}

async fn serve(config: Arc<ControlConfig>) -> anyhow::Result<()> {
    let (shutdown_tx, shutdown) = watch::channel(false);
    let dataplane = Dataplane::new(&config.dataplane);
    let metrics = Arc::new(Metrics::new());
    // Without a cluster all of its targets are known.
    let whole = config.kubernetes.is_none();
    let (cluster_targets, from_cluster) = watch::channel(Targets { whole, ..Targets::default() });
    let (health, checker) = probe::seam();
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();

    let gather =
        file_services::gather(dataplane.clone(), config.health.clone(), from_cluster, health.targets, shutdown.clone());
    tasks.spawn(async move {
        gather.await;
        Ok(())
    });
    let source = config.kubernetes.as_ref().map_or(overlay::NO_CLUSTER, |kubernetes| &kubernetes.owner).to_owned();
    let push = overlay::push(Arc::new(dataplane.clone()), source, health.view.clone(), shutdown.clone());
    tasks.spawn(async move {
        push.await;
        Ok(())
    });
    let check = health::run(checker, config.health.clone(), shutdown.clone());
    tasks.spawn(async move {
        check.await;
        Ok(())
    });

    let queries = config.kubernetes.is_some().then(|| mpsc::channel::<Query>(16));
    let (asks, answers) = queries.map_or((None, None), |(asks, answers)| (Some(asks), Some(answers)));
    let api = serve::Api { metrics: metrics.clone(), queries: asks };
    let (socket, ending) = (config.socket.clone(), shutdown.clone());
    let router = serve::router(api.clone());
    tasks.spawn(async move { Ok(serve::on_socket(&socket, router, ending).await?) });
    if let Some(address) = config.metrics {
        let ending = shutdown.clone();
        tasks.spawn(async move { Ok(serve::on_tcp(address, serve::metrics_router(api), ending).await?) });
    }
    if let (Some(kubernetes), Some(answers)) = (config.kubernetes.clone(), answers) {
        let (config, view, ending) = (config.clone(), health.view, shutdown.clone());
        let dataplane = Arc::new(dataplane);
        let context = Cluster { config, kubernetes, dataplane, targets: cluster_targets, view, metrics };
        tasks.spawn(async move {
            follow_cluster(context, answers, ending).await;
            Ok(())
        });
    } else {
        info!("no [kubernetes] table: health checks only");
    }

    let outcome = tokio::select! {
        () = asked_to_end() => Ok(()),
        Some(ended) = tasks.join_next() => ended.context("a task died").and_then(|result| result),
    };
    shutdown_tx.send_replace(true);
    // What has begun may end in this time; a dataplane needs no farewell, it keeps what it has.
    let _ = tokio::time::timeout(Duration::from_secs(5), async { while tasks.join_next().await.is_some() {} }).await;
    outcome
}

struct Cluster {
    config: Arc<ControlConfig>,
    kubernetes: KubernetesConfig,
    dataplane: Arc<Dataplane>,
    targets: watch::Sender<Targets>,
    view: watch::Receiver<Arc<probe::HealthView>>,
    metrics: Arc<Metrics>,
}

/// Runs against the cluster; anew, with a new client, whenever the credentials have changed.
async fn follow_cluster(context: Cluster, mut queries: mpsc::Receiver<Query>, mut shutdown: watch::Receiver<bool>) {
    let every = Duration::from_secs_f64(context.kubernetes.timing.credentials);
    let mut next = None;
    while !*shutdown.borrow() {
        let made = match next.take() {
            Some(connection) => Ok(connection),
            None => cluster::connect(&context.kubernetes).await,
        };
        let (client, used) = match made {
            Ok(connection) => connection,
            Err(problem) => {
                let trouble = format!("{problem}; trying again in {} s", every.as_secs());
                warn!("{trouble}");
                if !wait_answering(&mut queries, &context.kubernetes.owner, &trouble, every, &mut shutdown).await {
                    return;
                }
                continue;
            }
        };
        let (ask, asked) = mpsc::channel(16);
        let (end, ending) = watch::channel(false);
        let health = HealthSeam { targets: context.targets.clone(), view: context.view.clone() };
        let (trouble, notice) = watch::channel(None);
        let seams = Seams { health, queries: asked, metrics: context.metrics.clone(), notice };
        let mut run = tokio::spawn(sync::run(client, context.dataplane.clone(), context.config.clone(), seams, ending));
        let mut look = tokio::time::interval(every);
        let mut tries = JoinSet::new();
        loop {
            tokio::select! {
                _ = &mut run => break,
                Some(query) = queries.recv() => { let _ = ask.send(query).await; }
                _ = look.tick() => {
                    if cluster::fingerprint(&context.kubernetes) == used {
                        tries.abort_all();
                        say(&trouble, None);
                    } else if tries.is_empty() {
                        // At each look until it works: why it does not may lie in none of the files, as a token does.
                        let kubernetes = context.kubernetes.clone();
                        tries.spawn(async move { cluster::connect_proven(&kubernetes).await });
                    }
                }
                Some(Ok(tried)) = tries.join_next() => match tried {
                    Ok(connection) => {
                        info!("the credentials have changed: connecting anew");
                        next = Some(connection);
                        // No farewell: the Lease is kept, and with it the addresses; the next run takes it over.
                        run.abort();
                    }
                    // Half written, or wrong: what is there may still be good, and the Lease with it.
                    Err(problem) => say(&trouble, Some(format!(
                        "the credentials have changed and cannot be used, the former stay: {problem}"
                    ))),
                },
                _ = shutdown.changed() => { end.send_replace(true); }
            }
        }
    }
}

/// Once, however often it is found.
fn say(trouble: &watch::Sender<Option<String>>, now: Option<String>) {
    let news = trouble.send_if_modified(|said| std::mem::replace(said, now.clone()) != now);
    if let Some(text) = now.filter(|_| news) {
        warn!("{text}");
    }
}

/// Whoever asks meanwhile hears why there is no answer; `false`: it is the end.
async fn wait_answering(
    queries: &mut mpsc::Receiver<Query>,
    owner: &str,
    trouble: &str,
    patience: Duration,
    shutdown: &mut watch::Receiver<bool>,
) -> bool {
    let until = tokio::time::Instant::now() + patience;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return true,
            Some(query) = queries.recv() => query.unanswered(owner, trouble),
            _ = shutdown.changed() => return false,
        }
    }
}

async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ending; the dataplane goes on with its last snapshot");
}
