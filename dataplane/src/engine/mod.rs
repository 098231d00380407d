//! The box put together: snapshots compiled and published to the workers, next hops mirrored from
//! the kernel, addresses steered and announced. Runs beside the workers, never on their cores' time.

mod flows;
mod motion;
mod network;
mod policing;
mod rates;
mod room;
mod snat;
mod start;
mod status;
mod tenure;
mod ways;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use penstock_configs::desired::{Announce, Health};
use penstock_configs::fault::Fault;
use penstock_configs::file::{ConfigFile, Limits, SnatAddress, Timeouts, VlanTags};
use penstock_configs::status::{Counters, FlowQuery, FlowStatus, Status, StatusQuery};

use crate::admin::Engine;
use crate::admin::engine::Snapshots;
use crate::clock::Now;
use crate::neighbor::bond;
use crate::neighbor::raw::rx_queues;
use crate::publish::Mailbox;
use crate::stats::WorkerStats;
use crate::tables::{Compiler, Inputs, Tables, View, Ways};
use network::Network;
use policing::Step;
use rates::Rates;
use snat::Occupancy;
use tenure::Tenures;

pub use start::{Dataplane, StartError, clear_routes_and_neighbors, is_running};

/// What of the config file can change while the box runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    pub snat: Vec<SnatAddress>,
    pub timeouts: Timeouts,
    pub announce: Announce,
    pub vip_ranges: Vec<ipnet::IpNet>,
    pub maglev_size: u32,
    pub vlan_tags: VlanTags,
    pub reply_probe: Vec<IpAddr>,
    /// By interface as configured; 0: none.
    pub mss_clamps: Vec<(String, u16)>,
    pub panic_threshold: u8,
    pub deny: Arc<Vec<ipnet::IpNet>>,
    /// Packets per second; 0: no policing.
    pub new_per_vip: u32,
}

impl From<&ConfigFile> for Live {
    fn from(file: &ConfigFile) -> Self {
        Self {
            snat: file.snat.clone(),
            timeouts: file.timeouts.clone(),
            announce: file.the_box.announce,
            vip_ranges: file.the_box.vip_ranges.clone(),
            maglev_size: file.limits.maglev_size,
            vlan_tags: file.the_box.vlan_tags,
            reply_probe: file.the_box.reply_probe.clone(),
            mss_clamps: file.ports.iter().map(|port| (port.interface.clone(), port.mss_clamp.unwrap_or(0))).collect(),
            panic_threshold: file.the_box.panic_threshold,
            deny: Arc::new(file.the_box.denied().copied().collect()),
            new_per_vip: file.the_box.new_per_vip,
        }
    }
}

// Locks are taken in this order: `published`, `network`, `rates`, `notices`; `latency`, `occupancy` and
// `outdated` alone.

/// What the workers and the API see of the box.
pub struct Shared {
    name: String,
    started: Instant,
    limits: Limits,
    workers: Vec<WorkerHandle>,
    ports: Vec<PortFacts>,
    published: Mutex<Published>,
    network: Mutex<Network>,
    rates: Mutex<Rates>,
    occupancy: Mutex<Occupancy>,
    /// By worker: nanoseconds from receive to transmit, sampled.
    latency: Mutex<Vec<Histogram<u64>>>,
    notices: Mutex<Vec<String>>,
    /// What this process can not serve and the next one could: a device made anew, a bond's new member.
    outdated: Mutex<Vec<String>>,
}

/// One worker, from outside.
pub struct WorkerHandle {
    pub core: u16,
    pub mailbox: Arc<Mailbox>,
    pub stats: Arc<WorkerStats>,
    /// Where its flow records lie.
    pub store: std::path::PathBuf,
    pub sockets: Vec<SocketFacts>,
}

pub struct SocketFacts {
    pub interface: String,
    pub port: usize,
    pub queue: u16,
    pub zero_copy: bool,
}

/// A port as it was set up.
pub struct PortFacts {
    pub interface: String,
    pub ifindex: Option<u32>,
    /// Served; and how many the file asks for, if not for all.
    pub queues: u16,
    pub asked: Option<u16>,
    pub zero_copy: bool,
}

impl PortFacts {
    /// What every notice about added queues begins with.
    fn of_added_queues(&self) -> String {
        format!("{}: of its receive queues {} are served", self.interface, self.queues)
    }

    /// Queues that were added since the start (`ethtool -L`), so that the card brings packets where nobody reads them.
    fn added_queues(&self, now: u16) -> Option<String> {
        let Self { interface, queues, .. } = self;
        (now.min(self.asked.unwrap_or(u16::MAX)) > *queues).then(|| {
            format!(
                "{}, as at the start, and there are {now} now: what comes by the others reaches the kernel, packets to \
                 VIPs too; restart the dataplane, or `ethtool -L {interface} combined {queues}`",
                self.of_added_queues()
            )
        })
    }
}

/// What is served, and of what it is compiled.
#[derive(Clone)]
struct Wanted {
    live: Live,
    owners: Snapshots,
    health: Health,
    /// What the network says against backends.
    ways: Ways,
}

/// What was published last, and from what.
struct Published {
    compiler: Compiler,
    wanted: Wanted,
    tables: Arc<Tables>,
    tenures: Arc<Tenures>,
    view: u64,
    /// Names of nodes by address, for people.
    names: BTreeMap<IpAddr, String>,
}

impl Shared {
    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what the workers measured since.
    fn collect_latency(&self) {
        let mut histograms = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        for (histogram, worker) in histograms.iter_mut().zip(&self.workers) {
            while let Some(nanoseconds) = worker.stats.latency.pop() {
                histogram.saturating_record(nanoseconds);
            }
        }
    }

    fn is_settled(&self) -> bool {
        let tables = Arc::clone(&self.published().tables);
        let network = self.network();
        let hops = network.mirror.hops();
        let known = |node: &IpAddr| hops.targets.get(node).copied().flatten().is_some();
        network.has_claimed_all() && tables.nodes.iter().all(known)
    }

    fn occupancy(&self) -> MutexGuard<'_, Occupancy> {
        self.occupancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the program still steers on every port, and attaches it again where a device came back. The
    /// sockets died with one that was made anew, and a bond's new member never had any: those are for the next start.
    fn check_steering(&self) {
        let unsteered = self.network().unsteered.is_some();
        if unsteered {
            self.republish();
        }
        let mut outdated = Vec::new();
        for (at, port) in self.ports.iter().enumerate() {
            self.check_queues(port);
            let mut network = self.network();
            let result = match network.steer.check(at) {
                Err(_) => continue,
                Ok(true) => None,
                Ok(false) => Some(network.steer.attach_interface(at)),
            };
            let made_anew = network.steer.ifindex(at) != port.ifindex;
            drop(network);
            let unsteered = format!("{}: no packet is steered: ", port.interface);
            self.notices().retain(|notice| !notice.starts_with(&unsteered) || matches!(result, Some(Err(_))));
            match result {
                Some(Err(error)) => self.notice(unsteered + &error.to_string()),
                _ if made_anew => outdated.push(format!(
                    "{}: the device was made anew, and the sockets went with the old one",
                    port.interface
                )),
                None => {}
                Some(Ok(mode)) => self.notice(format!(
                    "{}: the XDP program had gone from the interface and runs again ({})",
                    port.interface,
                    mode.name()
                )),
            }
        }
        let added = self.network().mirror.unserved_members();
        let added = added.iter().map(|(bond, member)| format!("{member}: it is a member of {bond} since the start"));
        outdated.extend(added);
        *self.outdated.lock().unwrap_or_else(PoisonError::into_inner) = outdated;
    }

    /// What this process can not serve, and the next one could; `None`: there is no such thing.
    #[must_use]
    pub fn outdated(&self) -> Option<String> {
        let outdated = self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        (!outdated.is_empty()).then(|| outdated.join("; "))
    }

    /// Whether a start with this file would find ports it can serve.
    ///
    /// # Errors
    /// Why it would not.
    pub fn could_start(&self, config: &ConfigFile) -> Result<(), StartError> {
        let resolved = bond::resolve(&config.ports, config.workers.frame_size)?;
        let added = resolved.ports.iter().filter(|port| self.ports.iter().all(|own| own.interface != port.interface));
        for port in added {
            self.network().steer.try_on(&port.interface, port.xdp)?;
        }
        Ok(())
    }

    fn check_queues(&self, port: &PortFacts) {
        let added = rx_queues(&port.interface).and_then(|now| port.added_queues(now));
        let about = port.of_added_queues();
        self.notices().retain(|notice| !notice.starts_with(&about) || Some(notice) == added.as_ref());
        if let Some(added) = added {
            self.notice(added);
        }
    }

    /// Compiles and publishes; on failure what ran before goes on. What is wanted was read under the same guard: a
    /// copy from before would bring back what another call has replaced.
    fn compile(&self, published: &mut Published, mut wanted: Wanted) -> Result<u64, Vec<Fault>> {
        let swept = self.workers.iter().map(|worker| worker.stats.swept.get()).min();
        published.compiler.swept(swept.unwrap_or_default());
        wanted.ways.probes.clone_from(&wanted.live.reply_probe);
        let Wanted { live, owners, health, ways } = &wanted;
        let inputs = Inputs {
            owners,
            health,
            ways,
            snat: &live.snat,
            timeouts: &live.timeouts,
            announce: live.announce,
            maglev_max: live.maglev_size,
            max_services: self.limits.services as usize,
            max_nodes: self.limits.nodes as usize,
            max_counted: self.limits.counted_backends as usize,
            panic_threshold: live.panic_threshold,
            deny: &live.deny,
            now: Now::read(),
        };
        let tables = published
            .compiler
            .compile(&inputs)
            .map_err(|error| vec![Fault::new("", error.to_string(), "the last good snapshot goes on being served")])?;
        motion::report(&published.tables, &tables);
        Arc::make_mut(&mut published.tenures).follow(&tables, || tenure::stats(&self.workers));
        published.names = names(owners);
        published.tables = Arc::clone(&tables);
        published.wanted = wanted;
        let live = &published.wanted.live;
        let mut network = self.network();
        network.want(&tables, live);
        // The workers know new addresses before packets to them are steered here, and no longer
        // know old ones when those are steered to the kernel again.
        let number = self.publish(published, &network);
        network.steer(&tables, &published.wanted.live);
        Ok(number)
    }

    /// Asks nodes what is to be asked of them, hears what they answered, and compiles what follows from it.
    fn check_ways(&self, now: Instant) {
        let mut published = self.published();
        let mut network = self.network();
        let Network { ways: watch, mirror, .. } = &mut *network;
        for worker in &self.workers {
            while let Some(answer) = worker.stats.probe_answers.pop() {
                watch.answered(answer, now);
            }
        }
        if !watch.poll(mirror, now) {
            return;
        }
        let ways = watch.ways(&published.wanted.live.reply_probe);
        drop(network);
        if ways == published.wanted.ways {
            return;
        }
        let wanted = Wanted { ways, ..published.wanted.clone() };
        if let Err(faults) = self.compile(&mut published, wanted) {
            faults.into_iter().for_each(|fault| self.notice(fault.to_string()));
        }
    }

    /// Next hops or claimed addresses changed: the same tables in a new view.
    fn republish(&self) {
        let mut published = self.published();
        let mut network = self.network();
        self.publish(&mut published, &network);
        let (tables, live) = (Arc::clone(&published.tables), published.wanted.live.clone());
        network.steer(&tables, &live);
    }

    /// Goes on with the marks the XDP program polices by.
    fn police(&self, now: Instant) {
        let rounds = self.workers.iter().map(|worker| worker.stats.rounds.get()).min().unwrap_or(0);
        let wanted = self.published().wanted.live.new_per_vip > 0;
        let step = {
            let mut network = self.network();
            let step = network.policing.step(wanted, rounds, now);
            if step == Step::Turn {
                network.steer.marks().rotate();
            }
            step
        };
        if step == Step::Begin {
            self.republish();
        }
    }

    fn publish(&self, published: &mut Published, network: &Network) -> u64 {
        published.view += 1;
        let view: Arc<View> = Arc::new(network.view(published.view, &published.tables, &published.wanted.live));
        for worker in &self.workers {
            worker.mailbox.publish(Arc::clone(&view));
        }
        published.view
    }

    /// Something the operator should see in `penstock status`; logged when it is news.
    pub fn notice(&self, text: String) {
        let mut notices = self.notices();
        if !notices.contains(&text) {
            tracing::warn!("{text}");
            notices.push(text);
        }
    }

    fn notices(&self) -> MutexGuard<'_, Vec<String>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn names(owners: &Snapshots) -> BTreeMap<IpAddr, String> {
    let nodes = owners.values().flat_map(|desired| &desired.nodes);
    nodes.flat_map(|node| node.addresses.iter().map(|address| (*address, node.name.clone()))).collect()
}

impl Engine for Shared {
    fn apply(&self, file: Option<&ConfigFile>, owners: &Snapshots, health: &Health) -> Result<u64, Vec<Fault>> {
        let mut published = self.published();
        let Wanted { live, ways, .. } = published.wanted.clone();
        let live = file.map_or(live, Live::from);
        self.compile(&mut published, Wanted { live, ways, owners: owners.clone(), health: health.clone() })
    }

    fn acknowledged(&self) -> u64 {
        self.workers.iter().map(|worker| worker.stats.view.get()).min().unwrap_or(0)
    }

    fn status(&self, query: &StatusQuery) -> Status {
        status::status(self, query)
    }

    fn flows(&self, query: &FlowQuery, limit: usize) -> Vec<FlowStatus> {
        flows::list(self, query, limit)
    }

    fn counters(&self) -> Counters {
        status::counters(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_added_after_the_start_are_told_of_unless_the_file_wants_no_more() {
        let port = |asked| PortFacts { interface: "eth0".into(), ifindex: None, queues: 4, asked, zero_copy: true };
        for (asked, now, told) in [
            (None, 8, true),
            (None, 4, false),
            (None, 2, false),
            (Some(4), 8, false),
            (Some(8), 4, false),
            (Some(8), 6, true),
        ] {
            let notice = port(asked).added_queues(now);
            assert_eq!(notice.is_some(), told, "{asked:?}, {now}");
            if let Some(notice) = notice {
                assert!(notice.starts_with(&port(None).of_added_queues()), "withdrawn by that: {notice}");
                assert!(notice.contains("ethtool -L eth0 combined 4"), "{notice}");
            }
        }
    }
}
