//! What kube-proxy and the pods are on a node, from outside: a NodePort answers where the Service's traffic policy has
//! it answer, with the name of a pod; `healthCheckNodePort` and kube-proxy's own healthz say how the node is.
//!
//! One thread follows the API server's store and tells each node's thread (inside the node's namespace) what to listen
//! on. Open connections outlive a change, as a pod's do when the rules for new ones change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::IncomingStream;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{SLICES, V1};
use crate::apiserver::ApiServer;
use crate::lab::Host;
use crate::servers::http::NODE_HEADER;

/// kube-proxy's own.
const HEALTHZ: u16 = 10_256;
/// On a Node object of the lab: `503` or `off` instead of a healthy answer there.
pub const HEALTHZ_ANNOTATION: &str = "lab.penstock.dev/healthz";
const LOOK: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Tcp,
    Udp,
}

/// What a node listens on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    /// With the name it answers by.
    ports: BTreeMap<(Transport, u16), String>,
    /// Addresses a Service shows with `ipMode: VIP`: kube-proxy takes packets to them for the node's own.
    vips: BTreeSet<IpAddr>,
    health: BTreeMap<u16, bool>,
}

/// All nodes of a lab, until dropped.
pub struct Proxies {
    ending: Arc<AtomicBool>,
    /// The API server's revision that every node follows.
    applied: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

type Told = Arc<(u64, Wanted)>;

impl Proxies {
    pub fn start(server: Arc<ApiServer>, hosts: &[Host]) -> Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let (mut senders, mut applied, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for host in hosts {
            // The box answers ARP for the VIPs, also for those a node takes for its own.
            host.ns.sysctl("net.ipv4.conf.all.arp_ignore", "1")?;
            host.ns.sysctl("net.ipv4.conf.all.arp_announce", "2")?;
            let (sender, told) = watch::channel::<Told>(Arc::default());
            let done = Arc::new(AtomicU64::new(0));
            let (namespace, reached) = (host.ns.clone(), done.clone());
            threads.push(std::thread::Builder::new().name(format!("proxy-{}", host.name)).spawn(move || {
                if let Err(error) = namespace.enter().and_then(|()| serve(told, &reached)) {
                    eprintln!("the stand-in for kube-proxy ended: {error}");
                }
            })?);
            senders.push((host.name.clone(), sender));
            applied.push(done);
        }
        let stop = ending.clone();
        threads.push(std::thread::Builder::new().name("proxies".into()).spawn(move || {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                let revision = server.revision();
                if revision != seen {
                    seen = revision;
                    for (name, sender) in &senders {
                        sender.send_replace(Arc::new((revision, wanted(&server, name))));
                    }
                }
                std::thread::sleep(LOOK);
            }
        })?);
        Ok(Self { ending, applied, threads })
    }

    /// The oldest revision of the API server that some node still follows.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.applied.iter().map(|revision| revision.load(Ordering::Acquire)).min().unwrap_or(0)
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // The nodes' threads end with their senders, which the last thread holds.
        for thread in self.threads.drain(..).rev() {
            let _ = thread.join();
        }
    }
}

fn wanted(server: &ApiServer, node: &str) -> Wanted {
    let mut wanted = Wanted::default();
    let object = server.get(V1, "Node", node).unwrap_or_default();
    match object["metadata"]["annotations"][HEALTHZ_ANNOTATION].as_str() {
        Some("off") => None,
        Some(_) => wanted.health.insert(HEALTHZ, false),
        None => wanted.health.insert(HEALTHZ, true),
    };
    let slices = server.list(SLICES, "EndpointSlice");
    for service in server.list(V1, "Service") {
        let spec = &service["spec"];
        let local = spec["externalTrafficPolicy"] == "Local";
        let (usable, ready_here) = endpoints(&slices, &service, node, local);
        let vips: Vec<IpAddr> = own_addresses(&service).collect();
        for port in spec["ports"].as_array().into_iter().flatten() {
            let transport = match port["protocol"].as_str() {
                Some("UDP") => Transport::Udp,
                // Its pods are a test's own.
                Some("SCTP") => continue,
                _ => Transport::Tcp,
            };
            if let (Some(pod), Some(number)) = (&usable, number(&port["nodePort"])) {
                wanted.ports.insert((transport, number), format!("{pod}@{node}"));
            }
            if let (Some(pod), Some(number), false) = (&usable, number(&port["port"]), vips.is_empty()) {
                wanted.ports.insert((transport, number), format!("{pod}@{node}"));
            }
        }
        wanted.vips.extend(vips);
        if let Some(port) = number(&spec["healthCheckNodePort"]).filter(|_| local) {
            wanted.health.insert(port, ready_here);
        }
    }
    wanted
}

fn own_addresses(service: &Value) -> impl Iterator<Item = IpAddr> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    ingress.filter(|i| i["ipMode"] == "VIP").filter_map(|i| i["ip"].as_str()?.parse().ok())
}

/// Whether the node has the address now.
fn own(vip: IpAddr, add: bool) {
    let (word, length) = (if add { "add" } else { "del" }, if vip.is_ipv6() { 128 } else { 32 });
    let mut command = Command::new("ip");
    command.args(["address", word, &format!("{vip}/{length}"), "dev", "lo"]);
    if vip.is_ipv6() && add {
        command.arg("nodad");
    }
    // A test that needs it fails by its own words.
    let _ = command.stderr(Stdio::null()).status();
}

/// The pod a new connection at this node gets, if any, and whether one is ready on the node itself (KEP-1669: where
/// none is ready, those that terminate and still serve).
fn endpoints(slices: &[Value], service: &Value, node: &str, local: bool) -> (Option<String>, bool) {
    let of = |slice: &&Value| {
        slice["metadata"]["namespace"] == service["metadata"]["namespace"]
            && slice["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
    };
    let all: Vec<&Value> =
        slices.iter().filter(of).flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten()).collect();
    let ready = |e: &&&Value| e["conditions"]["ready"] != false;
    let lingers = |e: &&&Value| e["conditions"]["serving"] == true && e["conditions"]["terminating"] == true;
    let here = |e: &&&Value| e["nodeName"] == node;
    let pick = |among: &dyn Fn(&&&Value) -> bool| {
        let nearby = all.iter().filter(among).find(here);
        nearby.or_else(|| all.iter().find(among).filter(|_| !local))
    };
    let chosen = pick(&ready).or_else(|| pick(&lingers));
    let name = |e: &&Value| e["targetRef"]["name"].as_str().unwrap_or("pod").to_owned();
    (chosen.map(name), all.iter().filter(ready).any(|e| here(&e)))
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0)
}

/// A bound port, and the name it answers new connections and datagrams by.
struct Listening {
    name: Name,
    task: AbortHandle,
}

type Name = Arc<Mutex<Arc<str>>>;

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        *lock(&self.name) = GONE.into();
    }
}

fn serve(mut told: watch::Receiver<Told>, reached: &AtomicU64) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ports: BTreeMap<(Transport, u16), Listening> = BTreeMap::new();
        let mut vips: BTreeSet<IpAddr> = BTreeSet::new();
        while told.changed().await.is_ok() {
            let now = told.borrow_and_update().clone();
            let (revision, wanted) = &*now;
            let mut names = wanted.ports.clone();
            names.extend(wanted.health.iter().map(|(port, ok)| {
                let name = if *ok { HEALTHY } else { UNHEALTHY };
                ((Transport::Tcp, *port), name.to_owned())
            }));
            vips.symmetric_difference(&wanted.vips).for_each(|vip| own(*vip, wanted.vips.contains(vip)));
            vips.clone_from(&wanted.vips);
            ports.retain(|key, _| names.contains_key(key));
            for (key, name) in names {
                if let Some(listening) = ports.get_mut(&key) {
                    *lock(&listening.name) = name.into();
                } else if let Some(listening) = listen(key, &name).await {
                    ports.insert(key, listening);
                }
            }
            reached.store(*revision, Ordering::Release);
        }
        Ok(())
    })
}

/// No pod has such a name.
const HEALTHY: &str = "/healthy";
const UNHEALTHY: &str = "/unhealthy";
/// A health server that has ended; its open connections do, at the next question.
const GONE: &str = "/gone";

fn lock(name: &Name) -> std::sync::MutexGuard<'_, Arc<str>> {
    name.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen((transport, port): (Transport, u16), name: &str) -> Option<Listening> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let name: Name = Arc::new(Mutex::new(name.into()));
    // A port may rest for a moment with the one who had it before.
    for _ in 0..50 {
        let task = match transport {
            Transport::Tcp => TcpListener::bind(any).await.map(|listener| {
                let listener = Named { listener, name: name.clone() };
                let service = router().into_make_service_with_connect_info::<Opened>();
                tokio::spawn(async move { drop(axum::serve(listener, service).await) }).abort_handle()
            }),
            Transport::Udp => {
                UdpSocket::bind(any).await.map(|socket| tokio::spawn(echo(socket, name.clone())).abort_handle())
            }
        };
        match task {
            Ok(task) => return Some(Listening { name, task }),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
    None
}

/// A listener whose connections keep the name they were accepted under: an open one stays with its pod. A health
/// server's answer by what is so now.
struct Named {
    listener: TcpListener,
    name: Name,
}

#[derive(Debug, Clone)]
struct Opened {
    by: Arc<str>,
    now: Name,
    peer: SocketAddr,
}

impl axum::serve::Listener for Named {
    type Io = TcpStream;
    type Addr = Opened;

    async fn accept(&mut self) -> (TcpStream, Opened) {
        let (stream, peer) = axum::serve::Listener::accept(&mut self.listener).await;
        let by = lock(&self.name).clone();
        let now = Arc::clone(&self.name);
        (stream, Opened { by, now, peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()) })
    }

    fn local_addr(&self) -> io::Result<Opened> {
        let (by, now) = (lock(&self.name).clone(), Arc::clone(&self.name));
        Ok(Opened { by, now, peer: self.listener.local_addr()? })
    }
}

impl Connected<IncomingStream<'_, Named>> for Opened {
    fn connect_info(stream: IncomingStream<'_, Named>) -> Self {
        stream.remote_addr().clone()
    }
}

fn router() -> Router {
    Router::new().fallback(get(async |ConnectInfo(opened): ConnectInfo<Opened>| match &*opened.by {
        HEALTHY | UNHEALTHY => match &**lock(&opened.now) {
            HEALTHY => StatusCode::OK.into_response(),
            GONE => (StatusCode::SERVICE_UNAVAILABLE, [(header::CONNECTION, "close")]).into_response(),
            _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        },
        pod => ([(NODE_HEADER, pod.to_owned())], format!("{pod} sees {}\n", opened.peer)).into_response(),
    }))
}

async fn echo(socket: UdpSocket, name: Name) {
    let mut buffer = vec![0_u8; 65_536];
    loop {
        // An error here is an ICMP error about an earlier answer: the client went away.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let mut answer = format!("{} ", lock(&name)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, peer).await;
    }
}
