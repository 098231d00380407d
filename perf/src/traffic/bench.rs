//! A box under load: a sender, the box and its nodes' side, each in a namespace of its own, joined by veths.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use penstock_configs::file::{ConfigFile, Limits, PollMode, SnatAddress};

use super::books::Books;
use super::ends::{Ends, How};
use super::load::{NodeSide, Sent};
use super::mix::Mix;
use super::packet::Transport;
use super::popularity::Popularity;
use super::precedence::insist_for;
use super::track::Outcome;
use crate::compare::cpu::processes_in;
use crate::config;
use crate::dataplane::Dataplane;
use crate::lab::{Lab, plan};
use crate::rig::wait_for_addresses;

/// Flows to the one backend that a SNAT address is asked to carry: it has 64,511 ports.
const FLOWS_PER_SNAT: u32 = 40_000;
/// Packets per second that open flows. Where some did not, the lab's own rings may have been full: then slower.
const OPENING: [f64; 3] = [50_000.0, 25_000.0, 12_500.0];

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
    /// Where packets were lost on the way, by name.
    pub lost_at: Vec<(String, u64)>,
}

impl Measured {
    /// Packets per second that arrived.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.outcome.received as f64 / self.sent.seconds
    }

    /// What was lost in the rings of the lab's own ends: not by the box.
    #[must_use]
    pub fn lab_lost(&self) -> u64 {
        self.sent.missed + self.node_missed
    }

    /// What was lost and is named nowhere.
    #[must_use]
    pub fn unexplained(&self) -> u64 {
        let named: u64 = self.lost_at.iter().map(|(_, count)| count).sum();
        self.outcome.lost.saturating_sub(named + self.lab_lost())
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
            let address = plan::NODE_NET.host(snat_host(extra)?);
            for address in [address.v4.into(), address.v6.into()] {
                config.snat.push(SnatAddress { address, ports: [1024, 65535], shared: false });
            }
        }
        edit(&mut config);
        let dataplane = Dataplane::start(&lab, &config)?;
        wait_for_addresses(&lab, &config).with_context(|| dataplane.log_tail())?;
        // The last cores are the workers'.
        let processes = processes_in(&lab.the_box)?;
        let cores = usize::from(config::cores());
        (cores.saturating_sub(workers.into())..cores).for_each(|core| insist_for(&processes, core));
        Ok(Self { dataplane, lab, queues })
    }

    /// Sends a load by AF_XDP at a rate (`None`: flat out) for a while and closes the books.
    ///
    /// # Errors
    /// No AF_XDP sockets on the ends.
    pub fn measure(&self, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Measured> {
        self.measure_as(How::default(), spec, rate, duration)
    }

    /// The same, by another generator or of another protocol.
    ///
    /// # Errors
    /// No AF_XDP sockets, or no live frames, on the ends.
    pub fn measure_as(&self, how: How, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Measured> {
        let before = Books::read(&self.dataplane, &self.lab)?;
        let measured = self.ends()?.measure(how, spec, rate, duration)?;
        let lost_at = Books::read(&self.dataplane, &self.lab)?.since(&before);
        Ok(Measured { lost_at, ..measured })
    }

    /// The client's and the node's interface.
    ///
    /// # Errors
    /// The lab's interfaces are not as expected.
    pub fn ends(&self) -> Result<Ends> {
        Ends::through(&self.lab, config::NODE_PORT, self.queues)
    }

    /// Opens every flow, so that a measurement has no first packets in it: those are another case.
    ///
    /// # Errors
    /// As [`measure`](Self::measure); a flow of TCP does not open.
    pub fn open_flows(&self, transport: Transport, spec: &Spec) -> Result<()> {
        // Each flow has its turn.
        let spec = Spec { popularity: Popularity::Uniform, mix: Mix::fixed(64), ..spec.clone() };
        let mut shut: Vec<u32> = (0..spec.flows).collect();
        for rate in OPENING {
            if transport != Transport::Udp {
                self.open_at(rate, Transport::Syn, &Spec { side: NodeSide::Answer, ..spec.clone() })?;
            }
            silent_again(&mut shut, &self.open_at(rate, transport, &spec)?.outcome.silent);
            // A datagram opens its flow whenever it comes; a connection whose SYN was lost loses all that follows.
            if transport == Transport::Udp || shut.is_empty() {
                return Ok(());
            }
        }
        bail!(
            "{} of {} flows do not open: nothing of them comes through, not even at {} a second",
            shut.len(),
            spec.flows,
            OPENING[2]
        )
    }

    /// A packet of each flow, and some more.
    fn open_at(&self, rate: f64, transport: Transport, spec: &Spec) -> Result<Measured> {
        let all = Duration::from_secs_f64(1.25 * f64::from(spec.flows) / rate + 0.2);
        self.measure_as(How { transport, ..How::default() }, spec, Some(rate), all)
    }
}

/// A flow of which anything ever came is open: of the few packets each has in a pass any may be lost, in a pause of the lab's.
fn silent_again(shut: &mut Vec<u32>, silent: &[u32]) {
    shut.retain(|flow| silent.binary_search(flow).is_ok());
}

/// The host part of one more SNAT address.
fn snat_host(extra: u32) -> Result<u8> {
    // 255 is the broadcast address.
    let host = u8::try_from(200 + extra).ok().filter(|host| *host < 255);
    host.with_context(|| format!("the lab has SNAT addresses for fewer than {} flows", 55 * FLOWS_PER_SNAT))
}

/// The link-layer address in a line of `ip -br link`.
pub(crate) fn mac(line: &str) -> Result<[u8; 6]> {
    let word = line.split_whitespace().find(|word| word.len() == 17 && word.matches(':').count() == 5);
    let word = word.with_context(|| format!("no link-layer address in {line:?}"))?;
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(word.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_heard_once_is_open() {
        let mut shut = (0..5).collect();
        for (silent, left) in [(vec![0, 1, 4], vec![0, 1, 4]), (vec![1, 2, 3, 4], vec![1, 4]), (vec![0, 2, 3], vec![])]
        {
            silent_again(&mut shut, &silent);
            assert_eq!(shut, left);
        }
    }

    #[test]
    fn no_flow_has_an_address_of_somebody_elses() {
        assert_eq!([1, 54].map(|extra| snat_host(extra).ok()), [Some(201), Some(254)]);
        for extra in [55, 56, 57, 256, 100_000] {
            let error = snat_host(extra).expect_err("none is left");
            assert!(error.to_string().contains("fewer than 2200000 flows"), "{error}");
        }
    }
}
