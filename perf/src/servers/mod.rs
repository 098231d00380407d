//! Node servers: what answers on a node's NodePorts, with the node's own name. Each node is one
//! thread (or process: `penstock-perf node-server`) inside its namespace; TCP (HTTP/1.1) and UDP echo,
//! both families on each port.

pub mod http;
pub mod stream;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use axum::serve::ListenerExt;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::lab::{Host, Lab};
use http::Node;

/// Pending connections a listener holds: a volley must not overflow it (the kernel would drop SYNs).
const BACKLOG: u32 = 4096;

/// Ports a node listens on, in both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePorts {
    pub tcp: Vec<u16>,
    pub udp: Vec<u16>,
}

impl NodePorts {
    /// The same ports for TCP and UDP.
    #[must_use]
    pub fn both(ports: impl IntoIterator<Item = u16>) -> Self {
        let tcp: Vec<u16> = ports.into_iter().collect();
        Self { udp: tcp.clone(), tcp }
    }
}

/// A node's servers, running until dropped.
#[derive(Debug)]
pub struct NodeServer {
    node: Arc<Node>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl NodeServer {
    /// Starts the servers in the host's namespace; returns once every port is bound.
    pub fn start(host: &Host, ports: &NodePorts) -> Result<Self> {
        let node = Arc::new(Node { name: host.name.clone(), requests: AtomicU64::new(0) });
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let (for_thread, ports) = (node.clone(), ports.clone());
        let thread = host.ns.thread(&host.name, move || {
            let serving = async {
                let bound = match Bound::open(&ports) {
                    Ok(bound) => {
                        let _ = ready.send(Ok(()));
                        bound
                    }
                    Err(error) => return drop(ready.send(Err(error))),
                };
                tokio::select! {
                    () = bound.serve(for_thread) => {}
                    _ = stopped => {}
                }
            };
            match runtime() {
                Ok(runtime) => runtime.block_on(serving),
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        is_ready.recv().with_context(|| format!("{}: the server thread ended", host.name))??;
        Ok(Self { node, stop: Some(stop), thread: Some(thread) })
    }

    /// Servers on every node of a lab.
    pub fn start_all(lab: &Lab, ports: &NodePorts) -> Result<Vec<Self>> {
        lab.nodes.iter().map(|node| Self::start(node, ports)).collect()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// HTTP requests and UDP datagrams answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.node.requests.load(Ordering::Relaxed)
    }
}

impl Drop for NodeServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves in the calling thread's namespace until the process ends: `penstock-perf node-server`.
pub fn serve_forever(name: &str, ports: &NodePorts) -> Result<()> {
    let node = Arc::new(Node { name: name.to_owned(), requests: AtomicU64::new(0) });
    runtime()?.block_on(async {
        Bound::open(ports)?.serve(node).await;
        Ok(())
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Sockets that are bound and not yet served.
struct Bound {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Bound {
    fn open(ports: &NodePorts) -> io::Result<Self> {
        let named = |kind: &str, port: u16, error: io::Error| {
            io::Error::new(error.kind(), format!("listening on {kind} port {port}: {error}"))
        };
        let tcp = ports.tcp.iter().map(|&port| listen(port).map_err(|error| named("TCP", port, error)));
        let udp = ports.udp.iter().map(|&port| bind_udp(port).map_err(|error| named("UDP", port, error)));
        Ok(Self { tcp: tcp.collect::<io::Result<_>>()?, udp: udp.collect::<io::Result<_>>()? })
    }

    async fn serve(self, node: Arc<Node>) {
        let mut tasks = JoinSet::new();
        for listener in self.tcp {
            let service = http::router(node.clone()).into_make_service_with_connect_info::<SocketAddr>();
            // Pushed lines and trickled bytes must not wait for Nagle; failing to set it is harmless.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            tasks.spawn(async move { drop(axum::serve(listener, service).await) });
        }
        for socket in self.udp {
            tasks.spawn(echo(socket, node.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// One socket serves both families: Linux maps IPv4 peers into an unbound IPv6 socket.
fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind(any(port))?;
    socket.listen(BACKLOG)
}

fn bind_udp(port: u16) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(any(port))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Answers every datagram with `<node> <the datagram>`.
async fn echo(socket: UdpSocket, node: Arc<Node>) {
    let mut buffer = vec![0_u8; 65_536];
    let prefix = format!("{} ", node.name).into_bytes();
    buffer[..prefix.len()].copy_from_slice(&prefix);
    loop {
        // An error here is an ICMP error about an earlier answer: the client went away.
        let Ok((length, peer)) = socket.recv_from(&mut buffer[prefix.len()..]).await else { continue };
        node.requests.fetch_add(1, Ordering::Relaxed);
        let _ = socket.send_to(&buffer[..prefix.len() + length], peer).await;
    }
}
