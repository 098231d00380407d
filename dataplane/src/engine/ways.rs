//! Ways to nodes and back, beside the next hops: who is behind a router, and the reply check driven on real ports.
//! Questions leave by packet sockets as announcements do, past the workers; answers come in like any packet.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use penstock_configs::desired::Mode;
use rustix::net::SendFlags;

use super::network::tagged_hop;
use crate::neighbor::mirror::{Hops, Mirror};
use crate::neighbor::raw;
use crate::neighbor::reply_check::{Probe, ProbeAnswer, ReplyChecks, Standing};
use crate::neighbor::reply_frames;
use crate::tables::ways::Source;
use crate::tables::{Tables, Ways};
use crate::wire::PROTO_TCP;

/// Notices about single backends; more of them say the same.
const MOST_NOTICES: usize = 8;

pub struct WayWatch {
    checks: ReplyChecks,
    /// By port: the link it is for, and a socket that sends there.
    senders: BTreeMap<u8, (u32, OwnedFd)>,
    /// Nodes of `dsr` services.
    direct: HashSet<IpAddr>,
    hops: Arc<Hops>,
    /// Backends as they stood when it was last told.
    told: BTreeMap<Source, Standing>,
    changed: bool,
    /// By port.
    faults: BTreeMap<u8, String>,
}

impl WayWatch {
    pub fn new() -> Self {
        Self {
            checks: ReplyChecks::default(),
            senders: BTreeMap::new(),
            direct: HashSet::new(),
            hops: Arc::default(),
            told: BTreeMap::new(),
            changed: false,
            faults: BTreeMap::new(),
        }
    }

    /// Follows what the tables name.
    pub fn want(&mut self, tables: &Tables, probes: &[IpAddr], now: Instant) {
        self.direct.clear();
        let mut sources = BTreeSet::new();
        for service in tables.services.iter().flatten() {
            let backends = service.set.backends.iter();
            match service.mode {
                Mode::Dsr => self.direct.extend(backends.map(|backend| backend.address)),
                Mode::Dnat if service.reply_check => {
                    sources
                        .extend(backends.map(|backend| (backend.address, service.port_of(backend), service.protocol)));
                }
                Mode::Dnat | Mode::Nat => {}
            }
        }
        self.checks.set_probes(probes, now);
        self.checks.want(&sources, now);
        if sources.is_empty() {
            self.faults.clear();
        }
        self.told.retain(|source, _| sources.contains(source));
        for source in sources {
            self.told.entry(source).or_insert(Standing::Unchecked);
        }
        self.changed = true;
    }

    /// An earlier process served what is wanted now.
    pub fn resume(&mut self) {
        self.checks.believe();
    }

    /// A worker heard an answer.
    pub fn answered(&mut self, answer: ProbeAnswer, now: Instant) {
        if let Some(dismissal) = self.checks.answered(answer, now) {
            self.send(&dismissal);
        }
    }

    /// Asks what is due. True: what [`Self::ways`] says may be new.
    pub fn poll(&mut self, mirror: &Mirror, now: Instant) -> bool {
        let hops = mirror.hops();
        if !Arc::ptr_eq(&hops, &self.hops) {
            self.senders.retain(|port, (ifindex, _)| {
                hops.links.iter().any(|link| link.port.0 == *port && link.ifindex == *ifindex)
            });
            // A port that is asked by no more; the others' are replaced by the next question.
            self.faults.retain(|port, _| hops.targets.values().flatten().any(|hop| hop.port.0 == *port));
            self.hops = hops;
            self.changed = true;
        }
        let Self { checks, hops, .. } = self;
        let due = checks.poll(now, |node| hops.targets.get(&node).is_some_and(Option::is_some));
        for probe in &due {
            self.send(probe);
        }
        self.tell(mirror);
        std::mem::take(&mut self.changed)
    }

    /// What the tables are to know.
    pub fn ways(&self, probes: &[IpAddr]) -> Ways {
        let routed = |node: &&IpAddr| self.hops.targets.get(*node).copied().flatten().is_some_and(|hop| !hop.adjacent);
        Ways {
            behind_router: self.direct.iter().filter(routed).copied().collect(),
            replies: Some(self.checks.proved()),
            probes: probes.to_vec(),
        }
    }

    fn send(&mut self, probe: &Probe) {
        let Some(hop) = self.hops.targets.get(&probe.to.ip()).copied().flatten() else { return };
        let Some(link) = self.hops.links.iter().find(|link| link.port == hop.port) else { return };
        let Some(frame) =
            reply_frames::frame(probe.question, probe.from, probe.to, probe.protocol, &tagged_hop(hop, true))
        else {
            return;
        };
        let result = match self.senders.entry(hop.port.0) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(place) => {
                raw::packet_socket(link.ifindex, 0).map(|socket| place.insert((link.ifindex, socket)))
            }
        };
        let result = result.and_then(|(_, socket)| Ok(rustix::net::send(socket, &frame, SendFlags::empty())?));
        match result {
            Ok(_) => self.faults.remove(&hop.port.0),
            Err(error) => self.faults.insert(hop.port.0, format!("nodes cannot be asked by {}: {error}", link.name)),
        };
    }

    /// Logs what has changed, and marks it for the tables.
    fn tell(&mut self, mirror: &Mirror) {
        let Self { checks, told, changed, .. } = self;
        for (source, before) in told.iter_mut() {
            let now = checks.standing(source).unwrap_or(Standing::Unchecked);
            if now == *before {
                continue;
            }
            *before = now;
            *changed = true;
            let (address, port, _) = source;
            match now {
                Standing::Passed => tracing::info!(%address, port, "replies come back through the box"),
                Standing::Failed => tracing::warn!("{}", remedy(checks, mirror, source)),
                Standing::Unchecked => {}
            }
        }
    }

    /// How a backend stands, in a word and, if it takes no flows, in words why.
    pub fn status(&self, source: &Source) -> Option<(&'static str, String)> {
        let probe = || self.checks.probe(source.0.is_ipv6()).map_or_else(|| "?".to_owned(), |probe| probe.to_string());
        Some(match self.checks.standing(source)? {
            Standing::Passed => ("passed", String::new()),
            Standing::Unchecked if self.checks.probe(source.0.is_ipv6()).is_none() => {
                ("unchecked", "box.reply_probe has no address of its family to ask from".into())
            }
            Standing::Unchecked if self.checks.is_proved(source) => ("unchecked", String::new()),
            Standing::Unchecked => ("unchecked", format!("asked whether it answers {} through this box", probe())),
            Standing::Failed => ("failed", format!("does not answer {} through this box", probe())),
        })
    }

    /// Whether `dsr` cannot reach the node.
    pub fn is_behind_router(&self, node: IpAddr) -> bool {
        self.direct.contains(&node) && self.hops.targets.get(&node).copied().flatten().is_some_and(|hop| !hop.adjacent)
    }

    pub fn notices(&self, mirror: &Mirror) -> Vec<String> {
        let failed: Vec<&Source> =
            self.told.iter().filter(|(_, standing)| **standing == Standing::Failed).map(|(source, _)| source).collect();
        let mut notices: Vec<String> =
            failed.iter().take(MOST_NOTICES).map(|source| remedy(&self.checks, mirror, source)).collect();
        if failed.len() > MOST_NOTICES {
            notices.push(format!("... and {} more `dnat` backends", failed.len() - MOST_NOTICES));
        }
        let mut routed: Vec<&IpAddr> = self.direct.iter().filter(|node| self.is_behind_router(**node)).collect();
        routed.sort();
        notices.extend(routed.iter().take(MOST_NOTICES).map(|node| {
            format!(
                "node {node} is behind a router, and mode \"dsr\" reaches its neighbours only: put a port of the box \
                 on the node's link, or use mode \"nat\""
            )
        }));
        notices.extend(self.faults.values().cloned());
        notices
    }
}

fn remedy(checks: &ReplyChecks, mirror: &Mirror, source: &Source) -> String {
    let (node, port, protocol) = source;
    let probe = checks.probe(node.is_ipv6()).map_or_else(|| "clients".to_owned(), |probe| probe.to_string());
    let gateway = mirror.address_towards(*node).map_or_else(|| "this box".to_owned(), |address| address.to_string());
    let what = if *protocol == PROTO_TCP { "nor firewall it" } else { "nor suppress ICMP parameter problems" };
    format!(
        "node {node} does not route replies of port {port} to {probe} through this box, and takes no flows of mode \
         \"dnat\": set its default route (or the routes to its clients) to {gateway}, {what}; or use mode \"nat\", or \
         reply_check = false"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_ends_with_the_questions_and_with_its_port() {
        let (now, mirror) = (Instant::now(), Mirror::open(&[]).expect("the kernel's links"));
        let faulty = || WayWatch { faults: [(0, "no route".to_owned())].into(), ..WayWatch::new() };
        assert_eq!(faulty().notices(&mirror), ["no route"]);
        let mut nothing_to_ask = faulty();
        nothing_to_ask.want(&Tables::default(), &[], now);
        assert!(nothing_to_ask.notices(&mirror).is_empty());
        let mut no_node_there = faulty();
        no_node_there.poll(&mirror, now);
        assert!(no_node_there.notices(&mirror).is_empty());
    }
}
