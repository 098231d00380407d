//! What a service has counted since it has its slot: the workers count by slot, without an end, and slots are used
//! again. What flows of the service before had still to report (a round of the sweep) goes to the one after it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::stats::{ServiceCounters, WorkerStats};
use crate::tables::Tables;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub limited: u64,
    pub packets: u64,
    pub bytes: u64,
}

impl Counts {
    fn of<'a>(workers: impl Iterator<Item = &'a WorkerStats>, slot: usize) -> Self {
        workers.filter_map(|stats| stats.services.get(slot)).fold(Self::default(), |sum, counters| {
            let ServiceCounters { limited, packets, forward_bytes, reverse_bytes, .. } = counters;
            Self {
                limited: sum.limited + limited.get(),
                packets: sum.packets + packets.get(),
                bytes: sum.bytes + forward_bytes.get() + reverse_bytes.get(),
            }
        })
    }
}

/// By slot: who has it, and what its counters said when it got it.
#[derive(Debug, Clone, Default)]
pub struct Tenures(Vec<Option<Tenure>>);

type Tenure = ((IpAddr, u16, u8), Counts);

impl Tenures {
    /// Other tables are about to be published.
    pub fn follow<'a, W>(&mut self, tables: &Tables, workers: impl Fn() -> W)
    where
        W: Iterator<Item = &'a WorkerStats>,
    {
        self.0.resize(tables.services.len().max(self.0.len()), None);
        for (slot, (held, service)) in self.0.iter_mut().zip(&tables.services).enumerate() {
            let Some(service) = service else { continue };
            let key = (service.vip, service.port, service.protocol);
            if held.is_none_or(|(holder, _)| holder != key) {
                *held = Some((key, Counts::of(workers(), slot)));
            }
        }
    }

    /// Of the service that has the slot.
    pub fn counts<'a>(&self, workers: impl Iterator<Item = &'a WorkerStats>, slot: usize) -> Counts {
        let now = Counts::of(workers, slot);
        let before = self.0.get(slot).copied().flatten().map_or_else(Counts::default, |(_, counts)| counts);
        Counts {
            limited: now.limited.saturating_sub(before.limited),
            packets: now.packets.saturating_sub(before.packets),
            bytes: now.bytes.saturating_sub(before.bytes),
        }
    }
}

/// The workers' counters.
pub fn stats(workers: &[super::WorkerHandle]) -> impl Iterator<Item = &WorkerStats> {
    workers.iter().map(|worker| Arc::as_ref(&worker.stats))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testkit::Plan;
    use crate::tables::Compiler;

    #[test]
    fn a_service_in_a_used_slot_begins_at_nothing_and_one_that_stays_goes_on() {
        let (mut plan, mut compiler, mut tenures) = (Plan::default(), Compiler::default(), Tenures::default());
        let workers = [WorkerStats::new(1, 4), WorkerStats::new(1, 4)];
        let count = |slot: usize| {
            for stats in &workers {
                let counters = &stats.services[slot];
                counters.packets.add(3);
                counters.limited.add(1);
                counters.forward_bytes.add(100);
                counters.reverse_bytes.add(50);
            }
        };
        let mut publish = |plan: &Plan| {
            let tables = plan.compile(&mut compiler).expect("tables");
            tenures.follow(&tables, || workers.iter());
            [0, 1].map(|slot| tenures.counts(workers.iter(), slot))
        };
        plan.serve("203.0.113.1:80/tcp", &["10.0.0.1:80"]);
        plan.serve("203.0.113.2:80/tcp", &["10.0.0.1:80"]);
        assert_eq!(publish(&plan), [Counts::default(); 2]);
        count(0);
        count(1);
        let six = Counts { limited: 2, packets: 6, bytes: 300 };
        assert_eq!(publish(&plan), [six; 2]);
        plan.remove("203.0.113.1:80/tcp");
        plan.serve("203.0.113.3:80/tcp", &["10.0.0.1:80"]);
        assert_eq!(publish(&plan), [Counts::default(), six]);
        count(0);
        assert_eq!(publish(&plan), [six; 2]);
    }
}
