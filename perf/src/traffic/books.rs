//! Where packets of a load were lost: the box's drops by name, its sockets', and the veths' own. With these the
//! books of a run add up: what was sent arrived, or is named here.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_configs::status::{Counters, Ledger};

use crate::dataplane::Dataplane;
use crate::lab::{Lab, Netns};

/// The workers publish their counters a few times a second.
const SETTLE: Duration = Duration::from_millis(100);
const TRIES: usize = 100;
/// Drops of a lab's ARP and neighbour discovery: none of a load's packets is among them.
const NEIGHBORS: [&str; 2] = ["neighbor_ignored", "reply_probe"];

/// Counters before or after a run.
#[derive(Debug, Clone)]
pub struct Books {
    counters: Counters,
    /// Packets that found the other end's ring full, by veth.
    wires: Vec<(String, u64)>,
}

impl Books {
    /// Reads them once the box has come to rest.
    ///
    /// # Errors
    /// The dataplane is gone, or has packets to work on all the time.
    pub fn read(dataplane: &Dataplane, lab: &Lab) -> Result<Self> {
        let mut counters = dataplane.counters()?;
        let mut tries = 0;
        loop {
            std::thread::sleep(SETTLE);
            let next = dataplane.counters()?;
            let still = at_rest(&counters, &next);
            counters = next;
            if still {
                break;
            }
            tries += 1;
            ensure!(tries < TRIES, "the box does not come to rest, books would be wrong: {:?}", counters.total);
        }
        let [clients, nodes] = lab.topology().interfaces();
        let ends = [
            ("client to box", &lab.clients[0].ns, "eth0"),
            ("box to client", &lab.the_box, clients),
            ("box to node", &lab.the_box, nodes),
            ("node to box", &lab.nodes[0].ns, "eth0"),
        ];
        let wires = ends.map(|(name, ns, dev)| Ok((format!("wire full, {name}"), sending_dropped(ns, dev)?)));
        Ok(Self { counters, wires: wires.into_iter().collect::<Result<_>>()? })
    }

    /// What was lost since `before`, by name; nothing that did not happen.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<(String, u64)> {
        let mut lost: Vec<(String, u64)> = Vec::new();
        for ((name, count), (_, old)) in self.wires.iter().zip(&before.wires) {
            lost.push((name.clone(), count - old));
        }
        let (sockets, old) = (socket_losses(&self.counters), socket_losses(&before.counters));
        lost.push(("socket's rings full".into(), sockets.0 - old.0));
        lost.push(("larger than a frame".into(), sockets.1 - old.1));
        lost.push(("policed".into(), self.counters.steer.policed - before.counters.steer.policed));
        let old = &before.counters.total;
        let drops = self.counters.total.drops.iter().filter(|(name, _)| !NEIGHBORS.contains(&name.as_str()));
        lost.extend(drops.map(|(name, count)| (name.clone(), count - dropped(old, name))));
        lost.retain(|(_, count)| *count > 0);
        lost
    }
}

/// Whether nothing went on between two readings; the sockets' counters, which `since` uses too, are published apart.
fn at_rest(before: &Counters, now: &Counters) -> bool {
    now.total == before.total
        && socket_losses(now) == socket_losses(before)
        && now.total.imbalance() == 0
        && now.total.held == 0
}

fn dropped(ledger: &Ledger, name: &str) -> u64 {
    ledger.drops.get(name).copied().unwrap_or_default()
}

/// What the worker did not fetch in time, and what the kernel dropped besides.
fn socket_losses(counters: &Counters) -> (u64, u64) {
    let sockets = counters.workers.iter().flat_map(|worker| &worker.sockets);
    sockets.fold((0, 0), |(full, other), socket| (full + socket.overrun(), other + socket.refused()))
}

/// Packets a veth could not hand to its other end.
fn sending_dropped(ns: &Netns, dev: &str) -> Result<u64> {
    let text = ns.proc_net("dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(dev)?.strip_prefix(':'));
    let line = line.with_context(|| format!("/proc/net/dev of {} has no {dev}", ns.name()))?;
    // Eight columns of received packets, then bytes, packets, errors, dropped.
    let column = line.split_whitespace().nth(11);
    column.and_then(|word| word.parse().ok()).with_context(|| format!("/proc/net/dev of {}: {line:?}", ns.name()))
}

#[cfg(test)]
mod tests {
    use penstock_configs::status::{SocketCounters, WorkerCounters};

    use super::*;

    fn counters(drops: &[(&str, u64)], ring_full: u64) -> Counters {
        let sum = drops.iter().map(|(_, count)| count).sum();
        let drops = drops.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let socket = SocketCounters { rx_ring_full: ring_full, ..SocketCounters::default() };
        Counters {
            total: Ledger { rx: sum, drops, ..Ledger::default() },
            workers: vec![WorkerCounters { sockets: vec![socket], ..WorkerCounters::default() }],
            ..Counters::default()
        }
    }

    #[test]
    fn what_was_lost_is_the_loads() {
        let books = |counters| Books { counters, wires: vec![("wire full, client to box".into(), 0)] };
        let before = books(counters(&[("no_backend", 5)], 2));
        let after = books(counters(&[("no_backend", 7), ("neighbor_ignored", 1), ("reply_probe", 3)], 6));
        assert_eq!(after.since(&before), [("socket's rings full".into(), 4), ("no_backend".into(), 2)]);
    }

    #[test]
    fn a_box_at_rest_has_published_everything() {
        let at = counters(&[("no_backend", 5)], 2);
        assert!(at_rest(&at, &at));
        assert!(!at_rest(&at, &counters(&[("no_backend", 5)], 3)), "its sockets' counters come later");
        assert!(!at_rest(&at, &counters(&[("no_backend", 6)], 2)));
        let mut holding = at.clone();
        (holding.total.rx, holding.total.held) = (6, 1);
        assert!(!at_rest(&holding, &holding));
    }
}
