//! The lab without a kernel: the box's own workers over memory ports, between user-space TCP/IP stacks
//! (smoltcp) as clients and nodes. It needs no privilege. One thread, simulated time, every random
//! choice from one seed: a run repeats exactly, with frames lost, doubled, overtaken and spoiled, arriving
//! at any worker, with snapshots changing and the box's process killed in the middle.
//!
//! | module | what |
//! | --- | --- |
//! | `link` | the cables between hosts and box |
//! | `host`, `nic`, `fin_guard` | a host: a smoltcp stack on a card |
//! | `client`, `node`, `talk` | what runs on them, and what they say to each other |
//! | `router` | a router between clients and box |
//! | `the_box`, `flows` | the workers, their snapshots, their flow state |
//! | `builder`, `plan` | how a lab is put together |
//! | `load` | many connections and their ends |
//! | `demo` | what `penstock-perf demo` shows where the real lab can't be had |

mod builder;
mod client;
pub mod demo;
mod fin_guard;
mod flows;
mod host;
mod link;
mod load;
mod nic;
mod node;
mod plan;
mod random;
mod router;
mod talk;
mod the_box;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use penstock_configs::desired::{BackendState, Desired};

pub use builder::Builder;
pub use client::{Broken, Ended};
pub use demo::{DemoOptions, Summary, demo};
pub use flows::Flow;
pub use link::{Link, LinkCounters};
pub use load::{Failed, Load, Tally};
pub use node::NodeReport;
pub use talk::{Ending, Pace, Talk};

use client::Opening;
use host::Host;
use link::{Cables, Place};
use load::Running;
use random::{Random, mix};
use the_box::TheBox;

/// Simulated microseconds a lab starts at: a box is never up for no time at all.
const START: u64 = 1_000_000_000;
/// The longest step while packets wait inside the box, and while nothing happens at all: flow tables
/// are swept in steps of their own.
const STEP_HOLDING: u64 = 1_000;
const STEP_IDLE: u64 = 1_000_000;

/// Clients, the box, nodes, and the cables between them.
pub struct MemLab {
    now: u64,
    seed: u64,
    random: Random,
    cables: Cables,
    /// Clients first, then nodes, then the router if there is one.
    hosts: Vec<Host>,
    clients: u8,
    nodes: u8,
    /// Clients and nodes are on one network, the box has one port.
    one_arm: bool,
    the_box: TheBox,
    desired: Desired,
    loads: Vec<Running>,
    /// Which load a connection belongs to.
    load_of: BTreeMap<u64, usize>,
    opened: u64,
    /// Frames to a link-layer address nobody has.
    stray: u64,
}

impl MemLab {
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Simulated time since the lab was built.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.now - START)
    }

    /// Begins a load; it runs while time is made to pass. Returns its number for [`Self::tally`].
    pub fn offer(&mut self, load: Load) -> usize {
        self.loads.push(Running::new(load));
        self.loads.len() - 1
    }

    /// What became of a load's connections so far.
    #[must_use]
    pub fn tally(&self, load: usize) -> &Tally {
        &self.loads[load].tally
    }

    /// Lets time pass until `done`; an error if that takes longer than `limit`.
    ///
    /// # Errors
    /// It does; and what the box itself reports.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let deadline = self.after(limit);
        while !done(self) {
            ensure!(self.now < deadline, "not done after {limit:?}: {}", self.describe());
            self.step(deadline);
        }
        Ok(())
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let deadline = self.after(time);
        while self.now < deadline {
            self.step(deadline);
        }
    }

    /// Lets time pass until every load is over, and the last packet has found its end.
    ///
    /// # Errors
    /// That takes more than a simulated hour.
    pub fn finish(&mut self) -> Result<()> {
        self.run_until(Duration::from_secs(3600), |lab| lab.loads.iter().all(Running::is_over))?;
        self.run_until(Duration::from_secs(60), |lab| lab.cables.next_due().is_none() && !lab.the_box.is_holding())
    }

    /// A load from begin to end.
    ///
    /// # Errors
    /// It does not end.
    pub fn run(&mut self, load: Load) -> Result<Tally> {
        let number = self.offer(load);
        self.finish()?;
        Ok(self.tally(number).clone())
    }

    /// Connections under way on which a node has spoken: number of the connection, and node.
    #[must_use]
    pub fn answered(&self) -> BTreeMap<u64, String> {
        let clients = self.hosts.iter().filter_map(|host| match &host.role {
            host::Role::Client(client) => Some(client),
            host::Role::Node(_) | host::Role::Router => None,
        });
        clients
            .flat_map(client::Client::answered)
            .map(|(connection, node)| (connection, plan::node_name(node)))
            .collect()
    }

    /// Changes what the box is asked to serve; workers run it from their next turn on.
    ///
    /// # Errors
    /// What the compiler has against it; nothing changed then.
    pub fn reconfigure(&mut self, edit: impl FnOnce(&mut Desired)) -> Result<()> {
        let mut desired = self.desired.clone();
        edit(&mut desired);
        desired.generation += 1;
        self.the_box.publish(&desired)?;
        self.desired = desired;
        Ok(())
    }

    /// Takes a node out of the set.
    ///
    /// # Errors
    /// See [`Self::reconfigure`].
    pub fn remove_backend(&mut self, node: &str) -> Result<()> {
        self.reconfigure(|desired| {
            let sets = desired.sets.iter_mut().filter(|set| set.name == plan::SET);
            sets.for_each(|set| set.backends.retain(|backend| backend.node.as_deref() != Some(node)));
        })
    }

    /// Puts a node into the set (again).
    ///
    /// # Errors
    /// See [`Self::reconfigure`].
    pub fn add_backend(&mut self, node: &str) -> Result<()> {
        let index = (0..self.nodes).find(|index| plan::node_name(*index) == node);
        let index = index.with_context(|| format!("there is no node {node} in this lab"))?;
        self.reconfigure(|desired| {
            let sets = desired.sets.iter_mut().filter(|set| set.name == plan::SET);
            sets.for_each(|set| set.backends.push(plan::backend(index)));
        })
    }

    /// Drains a node, takes it down, or back up.
    ///
    /// # Errors
    /// See [`Self::reconfigure`].
    pub fn set_state(&mut self, node: &str, state: BackendState) -> Result<()> {
        self.reconfigure(|desired| {
            let backends = desired.sets.iter_mut().flat_map(|set| &mut set.backends);
            backends.filter(|backend| backend.node.as_deref() == Some(node)).for_each(|backend| backend.state = state);
        })
    }

    /// What the last change of the set moved, in slots of the table: those that survivors lost without
    /// need, all that moved, and the table's size.
    #[must_use]
    pub fn slots_moved(&self) -> Option<(u32, u32, u32)> {
        let moved = self.the_box.tables.services.iter().flatten().find_map(|service| service.moved)?;
        Some((moved.excess(), moved.slots, moved.size))
    }

    /// `kill -9` to the box's process, between two turns of its workers.
    pub fn kill(&mut self) {
        self.the_box.kill();
    }

    /// Starts the process again over the flow state the last one left.
    ///
    /// # Errors
    /// It runs already, or can't be started.
    pub fn restart(&mut self) -> Result<()> {
        self.the_box.start(&self.desired)
    }

    /// Changes what the cables do from now on.
    pub fn set_link(&mut self, link: Link) {
        self.cables.set_link(link);
    }

    #[must_use]
    pub fn link_counters(&self) -> LinkCounters {
        self.cables.counters
    }

    /// Every flow record of every worker.
    ///
    /// # Errors
    /// The flow state can't be read.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        flows::list(&self.the_box)
    }

    /// How many flow records lead to each node.
    ///
    /// # Errors
    /// The flow state can't be read.
    pub fn flows_by_node(&self) -> Result<BTreeMap<String, u64>> {
        Ok(flows::by_node(&self.flows()?, self.nodes))
    }

    /// What each node has seen.
    #[must_use]
    pub fn node_reports(&self) -> BTreeMap<String, NodeReport> {
        let nodes = self.hosts.iter().filter_map(Host::node);
        nodes.zip(0..).map(|(node, index)| (plan::node_name(index), node.report.clone())).collect()
    }

    /// Connections nodes still hold.
    #[must_use]
    pub fn held_by_nodes(&self) -> usize {
        self.hosts.iter().filter_map(Host::node).map(node::Node::connections).sum()
    }

    /// Drops of the box by reason, those that happened.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        self.the_box.drops()
    }

    /// Packets handed from one worker to another.
    #[must_use]
    pub fn handed_off(&self) -> u64 {
        self.the_box.stats().iter().map(|stats| stats.handoff_out.get()).sum()
    }

    /// Packets the box has transmitted, by worker.
    #[must_use]
    pub fn transmitted(&self) -> Vec<u64> {
        self.the_box.stats().iter().map(|stats| stats.tx.get()).collect()
    }

    /// What must hold at any instant: the ledger balances, frames are conserved, flow tables are in order
    /// and agree with each other, and no byte reached a node that its client had not sent.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<()> {
        self.the_box.check()?;
        flows::check(&self.flows()?, self.the_box.plan.workers)?;
        for (node, report) in self.node_reports() {
            ensure!(report.wrong == 0, "{node} got wrong bytes on {} connections", report.wrong);
        }
        Ok(())
    }

    /// A line for whoever wonders what goes on.
    #[must_use]
    pub fn describe(&self) -> String {
        let loads: Vec<String> = self
            .loads
            .iter()
            .map(|running| {
                let (load, tally) = (&running.load, &running.tally);
                format!("{}/{} ended, {} failed", tally.ended(), load.connections, tally.failed.len())
            })
            .collect();
        format!(
            "{:?} after start, loads [{}], drops {:?}, cables {:?}, {} frames missed the box, {} to its kernel, {} to nobody",
            self.elapsed(),
            loads.join("; "),
            self.drops(),
            self.cables.counters,
            self.the_box.missed,
            self.the_box.to_kernel,
            self.stray
        )
    }

    fn after(&self, time: Duration) -> u64 {
        self.now.saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    /// Everything that happens now; then time moves on to what happens next.
    fn step(&mut self, deadline: u64) {
        while let Some((to, frame)) = self.cables.arrived(self.now) {
            match to {
                Place::Box(port) => self.the_box.inject(port, &frame, &mut self.random),
                Place::Host(host) => self.arrive(host, frame),
            }
        }
        self.the_box.turn(self.now, &mut self.random);
        for (port, frame) in self.the_box.take() {
            self.transmit(Place::Box(port), frame);
        }
        self.open_connections();
        for host in 0..self.hosts.len() {
            if self.hosts[host].is_due(self.now) {
                self.hosts[host].poll(self.now);
                for frame in self.hosts[host].take_sent() {
                    self.transmit(Place::Host(host), frame);
                }
                self.collect(host);
            }
        }
        let idle = if self.the_box.is_holding() { STEP_HOLDING } else { STEP_IDLE };
        let hosts = self.hosts.iter().map(|host| host.wakes_at).min().unwrap_or(u64::MAX);
        let next = hosts.min(self.cables.next_due().unwrap_or(u64::MAX)).min(self.now + idle);
        self.now = next.max(self.now + 1).min(deadline.max(self.now + 1));
    }

    fn arrive(&mut self, host: usize, frame: Vec<u8>) {
        let router = &self.hosts[host];
        if !matches!(router.role, host::Role::Router) || router::is_for_itself(&frame, |address| router.has(address)) {
            self.hosts[host].deliver(frame);
            return;
        }
        let client = |to: IpAddr| self.hosts.iter().position(|host| host.has(to));
        let to = router::destination(&frame).and_then(client);
        // What is for none of the clients goes to the box, as a static route says.
        let place = to.map_or(Place::Box(0), Place::Host);
        let mac = to.map_or(plan::box_mac(0), |host| self.hosts[host].mac);
        if let Some(frame) = router::forward(frame, plan::ROUTER_MAC, mac) {
            self.cables.send(self.now, place, frame);
        }
    }

    /// A switch: to the port the address is at, or to all of the network.
    fn transmit(&mut self, from: Place, frame: Vec<u8>) {
        let Some(to) = frame.first_chunk::<6>().copied() else { return };
        let network = self.network_of(from);
        let members: Vec<(Place, [u8; 6])> = self.members(network).filter(|(place, _)| *place != from).collect();
        if to[0] & 1 == 1 {
            for (place, _) in members {
                self.cables.send(self.now, place, frame.clone());
            }
        } else if let Some((place, _)) = members.iter().find(|(_, mac)| *mac == to) {
            self.cables.send(self.now, *place, frame);
        } else {
            self.stray += 1;
        }
    }

    fn is_node(&self, host: usize) -> bool {
        let first = usize::from(self.clients);
        (first..first + usize::from(self.nodes)).contains(&host)
    }

    /// Network 0 has the clients, network 1 the nodes; on one arm it is one.
    fn network_of(&self, place: Place) -> u8 {
        match place {
            Place::Box(port) => port,
            Place::Host(host) => u8::from(!self.one_arm && self.is_node(host)),
        }
    }

    fn members(&self, network: u8) -> impl Iterator<Item = (Place, [u8; 6])> {
        let hosts = self.hosts.iter().enumerate().map(|(index, host)| (Place::Host(index), host.mac));
        let box_port = (Place::Box(network), plan::box_mac(network));
        hosts.filter(move |(place, _)| self.network_of(*place) == network).chain([box_port])
    }

    fn open_connections(&mut self) {
        for load in 0..self.loads.len() {
            while self.loads[load].wants_another() {
                self.loads[load].begun += 1;
                self.open(load);
            }
        }
    }

    fn open(&mut self, number: usize) {
        let load = self.loads[number].load;
        self.opened += 1;
        self.load_of.insert(self.opened, number);
        let opening = Opening {
            connection: self.opened,
            target: if load.v6 { plan::VIP_V6.into() } else { plan::VIP_V4.into() },
            port: plan::VIP_PORT,
            talk: load.talk,
            seed: mix(self.seed ^ self.opened),
            deadline: self.after(load.patience),
        };
        let host = &mut self.hosts[(self.opened % u64::from(self.clients)) as usize];
        if let Some((client, stack, sockets)) = host.client() {
            client.open(stack, sockets, &opening);
        }
        host.wakes_at = self.now;
    }

    fn collect(&mut self, host: usize) {
        let Some((client, _, _)) = self.hosts[host].client() else { return };
        for ended in client.take_ended() {
            if let Some(load) = self.load_of.remove(&ended.connection) {
                self.loads[load].tally.add(&ended);
            }
        }
    }
}

/// Labs that make no sense are refused when they are built.
fn check_sizes(clients: u8, nodes: u8, workers: u16) -> Result<()> {
    if clients == 0 || nodes == 0 || workers == 0 {
        bail!("a lab needs a client, a node and a worker at least");
    }
    ensure!(clients <= 100 && nodes <= 50, "at most 100 clients and 50 nodes: there are no more addresses");
    Ok(())
}
