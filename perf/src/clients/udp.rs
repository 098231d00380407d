//! UDP requests and answers, each numbered: a lost, doubled or foreign answer is seen.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use super::http::join_all;
use super::{Failure, Tally, run_in};
use crate::lab::Netns;

/// Flows of datagrams: each flow is a socket that sends `per_flow` requests one after another.
#[derive(Debug, Clone)]
pub struct UdpVolley {
    pub target: SocketAddr,
    pub flows: u64,
    pub per_flow: u64,
    /// Flows at a time.
    pub concurrency: usize,
    /// Bytes of payload, at least the few the sequence number takes.
    pub size: usize,
    pub timeout: Duration,
    /// An address for each of the flows at a time, instead of one for all: datagrams in IPv4 fragments are told
    /// apart by addresses and a number of 16 bits, which Linux begins anywhere with every connected socket.
    pub sources: Vec<IpAddr>,
}

impl UdpVolley {
    #[must_use]
    pub fn new(target: SocketAddr, flows: u64) -> Self {
        Self {
            target,
            flows,
            per_flow: 2,
            concurrency: 16,
            size: 64,
            // A lost one is not asked for again: longer than a busy machine takes.
            timeout: Duration::from_secs(5),
            sources: Vec::new(),
        }
    }

    /// Runs the volley. Every exchange counts once; all of a flow must be answered by one node.
    pub fn run(&self, ns: &Netns, progress: impl Fn(u64) + Send) -> Tally {
        run_in(ns, || self.fire(progress))
    }

    /// Runs it in the calling thread's namespace.
    pub fn run_here(&self, progress: impl Fn(u64)) -> Tally {
        super::run_here(self.fire(progress))
    }

    async fn fire(&self, progress: impl Fn(u64)) -> Tally {
        let started = Instant::now();
        let (begun, tally) = (&Cell::new(0_u64), &RefCell::new(Tally::default()));
        let client = async |source: Option<IpAddr>| {
            while begun.get() < self.flows {
                let flow = begun.get();
                begun.set(flow + 1);
                self.flow(flow, source, tally).await;
                if (flow + 1).is_multiple_of(50) {
                    progress(flow + 1);
                }
            }
        };
        join_all((0..self.concurrency).map(|at| client(self.sources.get(at).copied()))).await;
        let mut tally = tally.take();
        tally.elapsed = started.elapsed();
        tally
    }

    async fn flow(&self, flow: u64, source: Option<IpAddr>, tally: &RefCell<Tally>) {
        let mut first_node = None;
        let socket = match self.socket(source).await {
            Ok(socket) => socket,
            Err(error) => return tally.borrow_mut().add(Err(Failure::Connect(error.kind().to_string()))),
        };
        for number in 0..self.per_flow {
            let outcome = self.exchange(&socket, &format!("{flow}.{number}.")).await.and_then(|node| {
                let expected = first_node.get_or_insert_with(|| node.clone());
                if *expected == node {
                    Ok(node)
                } else {
                    Err(Failure::Answer(format!("{node} in a flow of {expected}")))
                }
            });
            tally.borrow_mut().add(outcome);
        }
    }

    async fn socket(&self, source: Option<IpAddr>) -> std::io::Result<UdpSocket> {
        let any: IpAddr =
            if self.target.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(source.unwrap_or(any), 0)).await?;
        // Connected: an answer from another address than the VIP never arrives, and counts as lost.
        socket.connect(self.target).await?;
        Ok(socket)
    }

    async fn exchange(&self, socket: &UdpSocket, sequence: &str) -> Result<String, Failure> {
        let mut request = sequence.as_bytes().to_vec();
        request.resize(self.size.max(request.len()), b'x');
        socket.send(&request).await.map_err(|error| Failure::Broken(error.kind().to_string()))?;
        let mut answer = vec![0; request.len() + 256];
        let received = tokio::time::timeout(self.timeout, socket.recv(&mut answer)).await;
        let length = received
            .map_err(|_| Failure::TimedOut("waiting for the datagram"))?
            .map_err(|error| Failure::Broken(error.kind().to_string()))?;
        let answer = &answer[..length];
        let blank = answer.iter().position(|&byte| byte == b' ').unwrap_or(0);
        if answer.get(blank + 1..) != Some(&request[..]) {
            return Err(Failure::Answer(format!("request {sequence} got {}", String::from_utf8_lossy(answer))));
        }
        Ok(String::from_utf8_lossy(&answer[..blank]).into_owned())
    }
}
