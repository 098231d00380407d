//! Networks made of namespaces: client hosts, the box, node hosts, joined by veths as in a rack.
//!
//! ```text
//!  two-arm   client0 ─┐                                 ┌─ node0
//!            client1 ─┤ bridge ── clients0 box nodes0 ── bridge ├─ node1
//!                                                        └─ node2
//!  one-arm   client0, node0, node1 ... ── bridge ── lan0 box
//! ```
//!
//! A segment with a single host has no bridge: the host's veth is the box's peer. Bridges live in a
//! namespace of their own. Dropping the [`Lab`] takes everything down.

mod builder;
pub mod cleanup;
mod counters;
mod netns;
pub mod plan;
mod wiring;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

pub use builder::LabBuilder;
pub use cleanup::Manifest;
pub use counters::TcpCounters;
pub use netns::Netns;
pub use plan::{DualAddr, Tags, Topology};

/// A machine of the lab.
#[derive(Debug, Clone)]
pub struct Host {
    /// `client0`, `node2`: what servers answer with and reports show.
    pub name: String,
    pub ns: Netns,
    pub addr: DualAddr,
}

/// A network that lives until it is dropped (or for good, after [`Lab::keep`]).
#[derive(Debug)]
pub struct Lab {
    manifest: Manifest,
    pub the_box: Netns,
    /// The router between clients and box, if asked for.
    pub router: Option<Netns>,
    pub clients: Vec<Host>,
    pub nodes: Vec<Host>,
    bring_up: Duration,
    kept: bool,
}

impl Lab {
    /// A two-arm lab with one client and three nodes unless told otherwise.
    #[must_use]
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// The prefix of every namespace's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    #[must_use]
    pub fn topology(&self) -> Topology {
        self.manifest.topology
    }

    /// A directory that goes with the lab: configs, run and state directories.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Manifest::dir(self.id())
    }

    /// How long it took to come up.
    #[must_use]
    pub fn bring_up(&self) -> Duration {
        self.bring_up
    }

    /// The box's interfaces, each once.
    #[must_use]
    pub fn box_interfaces(&self) -> Vec<&'static str> {
        let mut names = self.topology().interfaces().to_vec();
        names.dedup();
        names
    }

    /// Every namespace that has a TCP stack in use: box, router, clients, nodes.
    pub fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        let hosts = self.clients.iter().chain(&self.nodes).map(|host| &host.ns);
        std::iter::once(&self.the_box).chain(&self.router).chain(hosts)
    }

    /// The TCP counters of all hosts and the box together.
    pub fn tcp_counters(&self) -> Result<TcpCounters> {
        let mut sum = TcpCounters::default();
        for ns in self.namespaces() {
            sum = sum.plus(&ns.tcp_counters()?);
        }
        Ok(sum)
    }

    /// RSTs the kernels of all hosts and the box have sent so far.
    pub fn resets_sent(&self) -> Result<u64> {
        Ok(self.tcp_counters()?.resets_sent)
    }

    /// Leaves the lab running after this process, until [`cleanup::remove`].
    pub fn keep(mut self) -> Result<Manifest> {
        self.manifest.owner = None;
        self.manifest.write()?;
        self.kept = true;
        cleanup::forget(self.id());
        Ok(self.manifest.clone())
    }

    /// A lab another process left running.
    pub fn attach(id: &str) -> Result<Self> {
        let manifest = Manifest::read(id)?;
        let host = |kind: &str, index: usize, addr| -> Result<Host> {
            let name = format!("{kind}{index}");
            Ok(Host { ns: Netns::open(&format!("{id}-{name}"))?, name, addr })
        };
        let topology = manifest.topology;
        Ok(Self {
            the_box: Netns::open(&format!("{id}-box"))?,
            router: Netns::open(&format!("{id}-router")).ok(),
            clients: (0..manifest.clients).map(|i| host("client", i, topology.client(i))).collect::<Result<_>>()?,
            nodes: (0..manifest.nodes).map(|i| host("node", i, topology.node(i))).collect::<Result<_>>()?,
            manifest,
            bring_up: Duration::ZERO,
            kept: true,
        })
    }

    /// A path below the lab's directory, its parent directories made.
    pub fn path(&self, below: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.dir().join(below);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(path)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept {
            cleanup::forget(self.id());
            cleanup::remove(self.id());
        }
    }
}
