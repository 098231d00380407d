//! A box under churn: its clients on one veth, its nodes, as many addresses, on another.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use penstock_configs::desired::Node;
use penstock_configs::file::{ConfigFile, Limits, PollMode};
use penstock_configs::status::Counters;

use super::client::{Clients, Habits};
use super::drive::{ClientEnd, NodeEnd, Ran, Until, run};
use super::responder::Responder;
use super::tally::{NodeTally, Tally};
use crate::config::{self, NODE_PORT};
use crate::dataplane::Dataplane;
use crate::lab::{Lab, Topology, plan};
use crate::rig::{VIP_PORT, wait_for_addresses};
use crate::traffic::bench::mac;
use crate::traffic::endpoint::Endpoint;
use crate::traffic::packet::Route;

/// Clients, RFC 2544's own network.
const CLIENTS_V4: [u8; 4] = [198, 18, 0, 1];
const CLIENTS_V6: u8 = 2;

/// The lab with a dataplane, ready for churn.
pub struct ChurnBench {
    pub dataplane: Dataplane,
    pub lab: Lab,
    pub config: ConfigFile,
    nodes: usize,
    queues: u16,
}

/// The box's side of it.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub nodes: usize,
    pub queues: u16,
    /// SNAT ports; `None`: all there are.
    pub snat_ports: Option<u16>,
    pub poll: PollMode,
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Churn {
    pub v6: bool,
    /// Conversations per second; `None`: flat out.
    pub rate: Option<f64>,
    pub until: Until,
    pub habits: Habits,
    /// The nodes have a core of their own.
    pub apart: bool,
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct Measured {
    pub ran: Ran,
    pub tally: Tally,
    pub nodes: NodeTally,
    /// What the nodes' rings had no room for.
    pub node_missed: u64,
    /// What the box did meanwhile.
    pub before: Counters,
    pub after: Counters,
}

impl Measured {
    /// The box's drops by name, those of this run.
    #[must_use]
    pub fn drops(&self) -> Vec<(String, u64)> {
        let before = |name: &str| self.before.total.drops.get(name).copied().unwrap_or_default();
        let drops = self.after.total.drops.iter().map(|(name, count)| (name.clone(), count - before(name)));
        drops.filter(|(_, count)| *count > 0).collect()
    }
}

impl ChurnBench {
    /// # Errors
    /// No lab here, or the dataplane does not start.
    pub fn start(setup: Setup, edit: impl FnOnce(&mut ConfigFile)) -> Result<Self> {
        ensure!((1..=plan::MAX_HOSTS).contains(&setup.nodes), "1 to {} nodes", plan::MAX_HOSTS);
        let lab = Lab::builder().clients(1).nodes(1).queues(setup.queues).build()?;
        let nodes: Vec<Node> = (0..setup.nodes).map(node).collect();
        for node in nodes.iter().skip(1) {
            for address in &node.addresses {
                let (len, nodad) = if address.is_ipv4() { (24, "") } else { (64, "nodad") };
                lab.nodes[0].ns.sh(&format!("ip address add {address}/{len} dev eth0 {nodad}"))?;
            }
        }
        let mut config = config::base(&lab, setup.queues);
        config.sets[0].backends = nodes.iter().map(|node| config::backend(&node.name, NODE_PORT)).collect();
        config.nodes = nodes;
        config.services = config::web_services();
        config.workers.poll = setup.poll;
        if let Some(ports) = setup.snat_ports {
            ensure!(ports > 0 && ports < 25_000, "1 to 24,999 SNAT ports, or all of them");
            config.snat.iter_mut().for_each(|snat| snat.ports = [40_000, 40_000 + ports - 1]);
        }
        edit(&mut config);
        // Ports that rest have flows that rest; and some are open.
        let per_family = ceiling_ports(&config, false) * config.nodes.len() as u64;
        let room = u32::try_from((per_family + per_family / 4).next_power_of_two()).unwrap_or(1 << 24).max(1 << 16);
        config.limits = Limits { flows_ipv4: room, flows_ipv6: room, embryonic: 1 << 16, ..config.limits };
        let dataplane = Dataplane::start(&lab, &config)?;
        wait_for_addresses(&lab, &config).with_context(|| dataplane.log_tail())?;
        Ok(Self { dataplane, lab, config, nodes: setup.nodes, queues: setup.queues })
    }

    /// SNAT ports by addresses by backends: connections that one rest time allows, if no port is used again early.
    #[must_use]
    pub fn tuples(&self, v6: bool) -> u64 {
        ceiling_ports(&self.config, v6) * self.nodes as u64
    }

    /// Connections per second that ports which rest their whole time allow.
    #[must_use]
    pub fn ceiling(&self, v6: bool) -> f64 {
        self.tuples(v6) as f64 / f64::from(self.config.timeouts.tcp_time_wait)
    }

    /// Runs conversations and waits for the last.
    ///
    /// # Errors
    /// No AF_XDP sockets on the ends, or the dataplane is gone.
    pub fn measure(&self, churn: &Churn, progress: impl FnMut(&Clients, f64) + Send) -> Result<Measured> {
        let before = self.dataplane.counters()?;
        let route = self.route(churn.v6)?;
        let addresses: Vec<IpAddr> = (0..self.nodes).map(|index| Topology::TwoArm.node(index).ip(churn.v6)).collect();
        let clients = Clients::new(route, churn.habits, self.nodes);
        let responder = Responder::new(addresses, NODE_PORT, clients.payload());
        let (ran, tally, nodes, node_missed) = if churn.apart {
            self.apart(churn, clients, responder, progress)?
        } else {
            self.on_one_core(churn, clients, responder, progress)?
        };
        let after = self.dataplane.counters()?;
        Ok(Measured { ran, tally, nodes, node_missed, before, after })
    }

    fn on_one_core(
        &self,
        churn: &Churn,
        clients: Clients,
        responder: Responder,
        progress: impl FnMut(&Clients, f64) + Send,
    ) -> Result<Ends> {
        let (queues, nodes) = (self.queues, &self.lab.nodes[0].ns);
        self.lab.clients[0].ns.run(|| {
            pin(0);
            // Sockets stay in the namespace they were opened in.
            nodes.enter()?;
            let end = Endpoint::open("eth0", queues)?;
            let mut nodes = NodeEnd { end, responder, refused: 0 };
            self.lab.clients[0].ns.enter()?;
            let mut client = ClientEnd::new(Endpoint::open("eth0", queues)?, clients);
            let ran = run(&mut client, Some(&mut nodes), churn.rate, churn.until, progress);
            Ok((ran, client.clients.tally, nodes.responder.tally, nodes.end.missed() + nodes.refused))
        })
    }

    fn apart(
        &self,
        churn: &Churn,
        clients: Clients,
        responder: Responder,
        progress: impl FnMut(&Clients, f64) + Send,
    ) -> Result<Ends> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (queues, stopped) = (self.queues, Arc::clone(&stop));
        let serving = self.lab.nodes[0].ns.thread("nodes", move || -> Result<_> {
            pin(1);
            let end = Endpoint::open("eth0", queues)?;
            let _ = ready.send(());
            let mut nodes = NodeEnd { end, responder, refused: 0 };
            nodes.serve(&stopped);
            Ok((nodes.responder.tally, nodes.end.missed() + nodes.refused))
        })?;
        let ran = self.lab.clients[0].ns.run(move || -> Result<_> {
            pin(0);
            // An error if the nodes' side ended before it began: its own says why.
            if is_ready.recv().is_err() {
                return Ok(None);
            }
            let mut client = ClientEnd::new(Endpoint::open("eth0", queues)?, clients);
            let ran = run(&mut client, None, churn.rate, churn.until, progress);
            Ok(Some((ran, client.clients.tally)))
        });
        stop.store(true, Ordering::Relaxed);
        let (nodes, missed) = serving.join().ok().context("the nodes' side panicked")???;
        let (ran, tally) = ran?.context("the nodes' side ended early")?;
        Ok((ran, tally, nodes, missed))
    }

    fn route(&self, v6: bool) -> Result<Route> {
        let first_client: IpAddr = match v6 {
            false => CLIENTS_V4.into(),
            true => plan::CLIENT_NET.host(CLIENTS_V6).v6.into(),
        };
        let [interface, _] = self.lab.topology().interfaces();
        Ok(Route {
            src_mac: mac(&self.lab.clients[0].ns.sh("ip -br link show eth0")?)?,
            dst_mac: mac(&self.lab.the_box.sh(&format!("ip -br link show {interface}"))?)?,
            first_client,
            vip: plan::vip(0).ip(v6),
            vip_port: VIP_PORT,
        })
    }
}

/// The run, the clients' books, the nodes', and what the nodes' rings missed.
type Ends = (Ran, Tally, NodeTally, u64);

fn node(index: usize) -> Node {
    let address = Topology::TwoArm.node(index);
    Node { name: format!("node{index}"), addresses: vec![address.v4.into(), address.v6.into()] }
}

/// SNAT ports of all addresses of a family.
fn ceiling_ports(config: &ConfigFile, v6: bool) -> u64 {
    let of_family = config.snat.iter().filter(|snat| snat.address.is_ipv6() == v6);
    of_family.map(|snat| u64::from(snat.ports[1] - snat.ports[0]) + 1).sum()
}

/// The worker has the machine's last core.
fn pin(core: usize) {
    if let Some(core) = core_affinity::get_core_ids().and_then(|cores| cores.get(core).copied()) {
        core_affinity::set_for_current(core);
    }
}
