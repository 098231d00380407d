//! A lab with node servers and a running dataplane: what whole-box tests start from and end with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use penstock_configs::desired::Health;
use penstock_configs::file::ConfigFile;
use penstock_configs::status::Counters;

use crate::clients::{icmp, run_here};
use crate::config::{self, NODE_PORT};
use crate::dataplane::Dataplane;
use crate::lab::{Lab, LabBuilder, Netns, TcpCounters, plan};
use crate::servers::{NodePorts, NodeServer};

/// How long probing for the box's addresses may take.
const CLAIM: Duration = Duration::from_secs(30);
/// How long packets in flight may take to come to rest.
const SETTLE: Duration = Duration::from_secs(10);
/// The port of the first VIP's services.
pub const VIP_PORT: u16 = 80;

/// Fields are dropped in order: process, servers, network.
#[derive(Debug)]
pub struct Rig {
    pub dataplane: Dataplane,
    pub servers: Vec<NodeServer>,
    pub config: ConfigFile,
    pub lab: Lab,
    /// When the rig came up.
    before: TcpCounters,
}

impl Rig {
    /// Web services on all nodes, one worker per queue; `edit` changes the config before the start.
    pub fn start(builder: LabBuilder, edit: impl FnOnce(&mut ConfigFile)) -> Result<Self> {
        let queues = builder.queue_count();
        let lab = builder.build()?;
        let servers = NodeServer::start_all(&lab, &NodePorts::both([NODE_PORT]))?;
        let mut config = config::base(&lab, queues);
        config.services = config::web_services();
        edit(&mut config);
        let dataplane = Dataplane::start(&lab, &config)?;
        wait_for_addresses(&lab, &config).with_context(|| dataplane.log_tail())?;
        let before = lab.tcp_counters()?;
        Ok(Self { dataplane, servers, config, lab, before })
    }

    #[must_use]
    pub fn client(&self) -> &Netns {
        &self.lab.clients[0].ns
    }

    /// Gives the first client more addresses, each another client to the box: [`source`] 0 to `count`, of both families.
    pub fn add_sources(&self, count: u16) -> Result<()> {
        for n in 0..count {
            self.client().sh(&format!("ip addr add {}/32 dev lo", source(n, false)))?;
            self.client().sh(&format!("ip addr add {}/128 dev lo nodad", source(n, true)))?;
        }
        Ok(())
    }

    /// The web VIP, port 80.
    #[must_use]
    pub fn vip(&self, v6: bool) -> SocketAddr {
        SocketAddr::new(plan::vip(0).ip(v6), VIP_PORT)
    }

    /// Changes the config and reloads it.
    pub fn reconfigure(&mut self, edit: impl FnOnce(&mut ConfigFile)) -> Result<()> {
        edit(&mut self.config);
        self.dataplane.reload(&self.config)
    }

    /// Waits for packets in flight, then checks the ledger: every packet accounted for, in every
    /// worker; what one worker handed off another took; no frame lost.
    pub fn settle(&self) -> Result<Counters> {
        settle(&self.dataplane)
    }

    /// Settles, and nothing was dropped but for the reasons named.
    pub fn settle_without_drops_except(&self, allowed: &[&str]) -> Result<Counters> {
        let counters = self.settle()?;
        let unexpected: Vec<_> = counters
            .total
            .drops
            .iter()
            .filter(|(name, count)| **count > 0 && !allowed.contains(&name.as_str()))
            .collect();
        ensure!(unexpected.is_empty(), "packets were dropped: {unexpected:?}\n{}", self.dataplane.log_tail());
        Ok(counters)
    }

    /// The end of a test: ledger, a clean stop, and no connection was reset.
    pub fn finish(self) -> Result<()> {
        self.finish_having_reset(0)
    }

    /// The same, of a test that had so many ends of connections reset.
    pub fn finish_having_reset(mut self, ends: u64) -> Result<()> {
        self.settle()?;
        self.stop()?;
        check_resets(&self.lab, &self.before, ends)
    }

    /// A clean stop takes the XDP program off the interfaces.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.dataplane.stop()?;
        ensure!(status.success(), "it ended with {status}\n{}", self.dataplane.log_tail());
        // The kernel lets go of a link in a work queue: a moment after the process has ended.
        let deadline = Instant::now() + CLAIM;
        for interface in self.lab.box_interfaces() {
            loop {
                let link = self.lab.the_box.sh(&format!("ip -details link show {interface}"))?;
                if !link.contains("prog/xdp") {
                    break;
                }
                ensure!(Instant::now() < deadline, "an XDP program stayed on {interface}: {link}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

/// Waits until the box has claimed its addresses (it probes for them first, as a host does): VIPs as
/// the clients see them, SNAT addresses as the nodes do.
pub fn wait_for_addresses(lab: &Lab, config: &ConfigFile) -> Result<()> {
    let deadline = Instant::now() + CLAIM;
    let mut vips: Vec<_> = config.services.iter().map(|service| service.vip).collect();
    vips.dedup();
    let vips = vips.into_iter().map(|vip| (&lab.clients[0].ns, vip));
    for (ns, address) in vips.chain(config.snat.iter().map(|snat| (&lab.nodes[0].ns, snat.address))) {
        while let Err(error) = icmp::probe(ns, address) {
            ensure!(Instant::now() < deadline, "{address} does not answer {}: {error:#}", ns.name());
        }
    }
    Ok(())
}

/// See [`Rig::settle`].
pub fn settle(dataplane: &Dataplane) -> Result<Counters> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let counters = dataplane.counters()?;
        match unbalanced(&counters) {
            None => return Ok(counters),
            Some(why) if Instant::now() > deadline => bail!("{why}\n{counters:#?}"),
            Some(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Waits until every worker runs what owners and checkers said so far; the status shows it before.
pub fn workers_follow(dataplane: &Dataplane) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    // Nothing new, of a source that says nothing: not published again, and told apart from what is not yet run.
    while !run_here(dataplane.api().put_health("lab", &Health::default()))?.acknowledged {
        ensure!(Instant::now() < deadline, "some worker does not take its tables up\n{}", dataplane.log_tail());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Since `before` no other ends of connections were reset than the test wanted, and no RST sent but those that a machine too
/// busy for its retransmission timers explains: a node whose FIN was acknowledged late repeats it, is acknowledged twice,
/// and answers the second ACK, of a connection it no longer knows, with a RST. Each of these has a retransmission of its own;
/// not so an ACK that went by the other queue and worker and came after the last one: of these, one in a hundred connections.
pub fn check_resets(lab: &Lab, before: &TcpCounters, wanted: u64) -> Result<()> {
    let now = lab.tcp_counters()?.since(before);
    let by_host: Result<Vec<String>> =
        lab.namespaces().map(|ns| Ok(format!("{} {}", ns.name(), ns.tcp_counters()?.resets_sent))).collect();
    ensure!(
        now.established_resets == wanted && now.resets_sent <= now.retransmitted + 2 + now.active_opens / 100,
        "{} ends of connections were reset, not {wanted}; {} RSTs sent, {} segments repeated; RSTs by each host since its start: {}",
        now.established_resets,
        now.resets_sent,
        now.retransmitted,
        by_host?.join(", ")
    );
    Ok(())
}

/// What does not add up, in words.
fn unbalanced(counters: &Counters) -> Option<String> {
    for worker in &counters.workers {
        let ledger = &worker.ledger;
        if ledger.imbalance() != 0 {
            return Some(format!("worker {}: the ledger is off by {}", worker.worker, ledger.imbalance()));
        }
        if ledger.held != 0 {
            return Some(format!("worker {} holds {} packets", worker.worker, ledger.held));
        }
        let frames = &worker.frames;
        if frames.total != frames.free + frames.kernel {
            return Some(format!("worker {}: frames are missing or doubled: {frames:?}", worker.worker));
        }
    }
    let total = &counters.total;
    let (out, taken) = (total.handoff_out, total.handoff_in);
    (out != taken).then(|| format!("{out} packets handed off, {taken} taken"))
}

/// One of the addresses of [`Rig::add_sources`].
#[must_use]
pub fn source(n: u16, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, n + 1).into()
    } else {
        Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 7, 1).to_bits() + u32::from(n)).into()
    }
}

/// Runs `work` while something else goes on in a thread.
pub fn meanwhile<T: Send, U>(
    background: impl FnOnce() -> T + Send,
    work: impl FnOnce() -> Result<U>,
) -> Result<(T, U)> {
    std::thread::scope(|scope| {
        let running = scope.spawn(background);
        let outcome = work();
        let background = running.join().ok().context("the background thread panicked")?;
        Ok((background, outcome?))
    })
}
