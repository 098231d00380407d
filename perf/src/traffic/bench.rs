//! A box under load: a sender, the box and its nodes' side, each in a namespace of its own, joined by veths.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_configs::file::{ConfigFile, Limits, PollMode, SnatAddress};

use super::endpoint::Endpoint;
use super::load::{self, Load, NodeSide, Sent};
use super::mix::Mix;
use super::packet::{Maker, Route};
use super::popularity::{Draw, Popularity};
use super::track::Outcome;
use crate::config;
use crate::dataplane::Dataplane;
use crate::lab::{Lab, plan};
use crate::rig::{VIP_PORT, wait_for_addresses};

/// Flows to the one backend that a SNAT address is asked to carry: it has 64,511 ports.
const FLOWS_PER_SNAT: u32 = 40_000;
/// Clients of a load, RFC 2544's own network.
const CLIENTS_V4: [u8; 4] = [198, 18, 0, 1];

/// What to send.
#[derive(Debug, Clone)]
pub struct Spec {
    pub mix: Mix,
    pub v6: bool,
    pub flows: u32,
    pub popularity: Popularity,
    pub side: NodeSide,
    pub seed: u64,
}

/// The lab with a dataplane, ready for loads.
pub struct Bench {
    pub dataplane: Dataplane,
    pub lab: Lab,
    queues: u16,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measured {
    pub sent: Sent,
    /// Of what the sender sent: answers it got, or what the nodes' side counted.
    pub outcome: Outcome,
    /// What the nodes' own rings had no room for: loss that is not the box's.
    pub node_missed: u64,
}

impl Measured {
    /// Packets per second that arrived.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.outcome.received as f64 / self.sent.seconds
    }

    /// Whether a loss may be the lab's own: then the box carries at least this.
    #[must_use]
    pub fn lab_is_the_limit(&self) -> bool {
        self.sent.behind || self.sent.missed + self.node_missed > 0
    }
}

impl Bench {
    /// A box for loads of up to `flows` flows; `edit` changes its config.
    ///
    /// # Errors
    /// No lab here, or the dataplane does not start.
    pub fn start(queues: u16, workers: u16, flows: u32, edit: impl FnOnce(&mut ConfigFile)) -> Result<Self> {
        let lab = Lab::builder().clients(1).nodes(1).queues(queues).build()?;
        let mut config = config::base(&lab, workers);
        config.services = config::web_services();
        // Room for every flow, also where nobody answers and it stays half open.
        let room = (flows.next_power_of_two() * 2).max(1 << 16);
        config.limits = Limits { flows_ipv4: room, flows_ipv6: room, embryonic: room, ..config.limits };
        config.timeouts.udp_one_way = 300;
        config.workers.poll = PollMode::Busy;
        for extra in 1..=flows / FLOWS_PER_SNAT {
            let last = 200 + u8::try_from(extra).context("more flows than the lab has SNAT addresses for")?;
            let address = plan::NODE_NET.host(last);
            for address in [address.v4.into(), address.v6.into()] {
                config.snat.push(SnatAddress { address, ports: [1024, 65535], shared: false });
            }
        }
        edit(&mut config);
        let dataplane = Dataplane::start(&lab, &config)?;
        wait_for_addresses(&lab, &config).with_context(|| dataplane.log_tail())?;
        Ok(Self { dataplane, lab, queues })
    }

    /// The sender's path to the box.
    fn route(&self, v6: bool) -> Result<Route> {
        let first_client: IpAddr = match v6 {
            false => CLIENTS_V4.into(),
            true => plan::CLIENT_NET.host(2).v6.into(),
        };
        let vip = plan::vip(0).ip(v6);
        let src_mac = mac(&self.lab.clients[0].ns.sh("ip -br link show eth0")?)?;
        let dst_mac = mac(&self.lab.the_box.sh("ip -br link show clients0")?)?;
        Ok(Route { src_mac, dst_mac, first_client, vip, vip_port: VIP_PORT })
    }

    /// Sends a load at a rate (`None`: flat out) for a while and closes the books.
    ///
    /// # Errors
    /// No AF_XDP sockets on the ends.
    pub fn measure(&self, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Measured> {
        ensure!(spec.flows > 0, "a load has at least one flow");
        let mut load = Load {
            maker: Maker::new(self.route(spec.v6)?, spec.mix.clone()),
            draw: Draw::new(spec.popularity, spec.flows, spec.seed),
            flows: spec.flows,
            rate,
            duration,
            vip_port: VIP_PORT,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (queues, side, flows, stopped) = (self.queues, spec.side, spec.flows, Arc::clone(&stop));
        let nodes = self.lab.nodes[0].ns.thread("nodes", move || -> Result<_> {
            let opened = Endpoint::open("eth0", queues);
            let mut end = match opened {
                Ok(end) => end,
                Err(error) => {
                    drop(ready);
                    return Err(error);
                }
            };
            let _ = ready.send(());
            Ok(load::serve(&mut end, side, config::NODE_PORT, flows, &stopped))
        })?;
        let sender = self.lab.clients[0].ns.run(move || -> Result<_> {
            if is_ready.recv().is_err() {
                return Ok(None);
            }
            let mut end = Endpoint::open("eth0", queues)?;
            Ok(Some(load::run(&mut end, &mut load)))
        });
        stop.store(true, Ordering::Relaxed);
        let (track, node_missed) = nodes.join().ok().context("the nodes' side panicked")???;
        let (sent, returned) = sender?.context("the nodes' side ended early")?;
        let outcome = if spec.side == NodeSide::Answer { returned } else { track.close(sent.packets) };
        Ok(Measured { sent, outcome, node_missed })
    }
}

/// The link-layer address in a line of `ip -br link`.
pub(super) fn mac(line: &str) -> Result<[u8; 6]> {
    let word = line.split_whitespace().find(|word| word.len() == 17 && word.matches(':').count() == 5);
    let word = word.with_context(|| format!("no link-layer address in {line:?}"))?;
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(word.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    Ok(bytes)
}
