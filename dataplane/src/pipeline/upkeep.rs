//! What the worker does between bursts, a few records at a time: expiry, counters, revalidation,
//! and the taking up of an earlier process's flows.

use super::Pipeline;
use super::access;
use super::farewell;
use super::revalidate::{NO_NODE, Standing, revalidate};
use super::side::{Parts, Side, Sided};
use crate::clock::Now;
use crate::flow::{self, FIRST_EFFORT, Flags, MOST_EFFORT, Record, State, Swept, Word};
use crate::persist::MAX_SNATS;
use crate::stats::ServiceCounters;
use crate::sys::prefetch_all;
use crate::tables::Tabled;
use crate::wire::{Family, V4, V6};

/// Every record is looked at about this often.
const ROUND_NS: u64 = 1_000_000_000;
/// Between two calls of a worker that slept.
const NAP_NS: u64 = 5_000_000;
/// Every place of a client: it only keeps the counts true.
const CLIENTS_ROUND_NS: u64 = 10_000_000_000;
/// Places per call at most: a few microseconds. What is done with them is bounded by [`MOST_EFFORT`], for both
/// families together.
const MOST: u32 = 512;
/// Rounds in which every flow is marked as established once, where that is done.
pub const MARKED_EVERY: u32 = 4;
/// Services per call whose flows are told.
const COUNTS: usize = 64;
/// Records worth a call.
const LEAST: u32 = 32;

/// When each family's sweep went on last.
#[derive(Debug, Default)]
pub(super) struct SweepClock {
    v4: Now,
    v6: Now,
    /// The last call, and what it was allowed.
    call: Now,
    effort: u32,
    /// Whose sweep goes on first in the next call: the other has what effort it leaves.
    v6_first: bool,
    clients: Now,
    /// The first service whose flows, counted in the last round, are not known outside yet.
    uncounted: usize,
}

impl SweepClock {
    /// What this call may do.
    fn effort(&mut self, now: Now) -> u32 {
        let last = std::mem::replace(&mut self.call, now);
        let napped = now.ns.saturating_sub(last.ns) >= NAP_NS;
        self.effort = if napped { FIRST_EFFORT } else { (self.effort * 2).min(MOST_EFFORT) };
        self.effort
    }
}

impl Pipeline {
    /// Takes the next steps of the sweep. True: more is due already.
    pub fn upkeep(&mut self, now: Now) -> bool {
        if self.view.tables.epoch == 0 {
            // Recovered flows wait for the first snapshot: without one none of them would stand.
            return false;
        }
        self.expire_datagrams(now);
        let Self { view, v4, v6, .. } = self;
        v4.scheduling.exchange(view.tables.v4.counted, now);
        v6.scheduling.exchange(view.tables.v6.counted, now);
        let mut effort = self.sweep.effort(now);
        let v6_first = !self.sweep.v6_first;
        self.sweep.v6_first = v6_first;
        let mut records_left = v6_first && self.sweep::<V6>(now, &mut effort);
        records_left |= self.sweep::<V4>(now, &mut effort);
        records_left |= !v6_first && self.sweep::<V6>(now, &mut effort);
        let Self { hops, store, .. } = self;
        let hops_left = hops.forget(|at, hop, tags| store.keep_hop(at, hop, tags));
        let (four, six) = (self.v4.flows.counts(), self.v6.flows.counts());
        self.stats.flows_established.set(u64::from(four.established + six.established));
        self.stats.flows_established_v6.set(u64::from(six.established));
        self.stats.flows_embryonic.set(u64::from(four.embryonic + six.embryonic));
        self.stats.embryos_evicted.set(four.evicted + six.evicted);
        self.forget_clients(now);
        self.stats.rounds.set(u64::from(self.v4.rounds.min(self.v6.rounds)));
        self.stats.swept.set(self.v4.swept.min(self.v6.swept));
        let counts_left = self.publish_counts();
        records_left || hops_left || counts_left
    }

    /// Frees the places of clients whose affinity has ended, a few at a time.
    fn forget_clients(&mut self, now: Now) {
        let Self { v4, v6, sweep, stats, .. } = self;
        let places = v4.affinity.places().max(v6.affinity.places()) as u64;
        let elapsed = now.ns.saturating_sub(sweep.clients.ns).min(CLIENTS_ROUND_NS);
        let due = places * elapsed / CLIENTS_ROUND_NS;
        if due < u64::from(LEAST).min(places) {
            return;
        }
        let count = due.min(u64::from(MOST));
        v4.affinity.sweep(count as usize, now.tick());
        v6.affinity.sweep(count as usize, now.tick());
        sweep.clients = Now { ns: now.ns - elapsed + count * CLIENTS_ROUND_NS / places };
        stats.affinity_entries.set((v4.affinity.used() + v6.affinity.used()) as u64);
        stats.affinity_evicted.set(v4.affinity.evicted() + v6.affinity.evicted());
    }

    /// Sweeps as many records as are due, as far as `effort` goes. True: more is due.
    fn sweep<F: Sided + Tabled>(&mut self, now: Now, effort: &mut u32) -> bool {
        let last = if F::V6 { self.sweep.v6 } else { self.sweep.v4 };
        let Parts { side, view, hops, stats, farewells, .. } = F::parts(self);
        let records = u64::from(side.flows.swept_records().max(LEAST));
        let elapsed = now.ns.saturating_sub(last.ns).min(ROUND_NS);
        let due = (records * elapsed / ROUND_NS) as u32;
        if due < LEAST {
            return false;
        }
        let budget = due.min(MOST);
        let tables = &view.tables;
        let counting = &mut side.counting;
        let rounds = side.rounds;
        let foresee = |record: &Record<F::Addr>| {
            if let Some(service) = tables.service(record.service) {
                prefetch_all(&**service);
            }
            if let Some(counters) = stats.services.get(record.service as usize) {
                prefetch_all(counters);
            }
        };
        let (gone_over, complete) = side.flows.sweep(budget, effort, foresee, |at, record, word, tally| {
            let mut kept = Swept::Kept;
            if record.epoch != tables.epoch {
                kept = Swept::Renewed;
                let (standing, load) = revalidate::<F>(record, word, tables, false);
                if matches!(standing, Standing::Revoked | Standing::Refused(_)) {
                    return Swept::Forgotten;
                }
                // One that could not be told yet stays, uncounted and of an epoch gone by, until it can or asks.
                tally.assign(at, record, load);
                if standing == Standing::Valid
                    && let Some(service) = tables.service(record.service)
                {
                    flow::limit::<F>(tally, at, record, service);
                }
                if standing == Standing::Reset
                    && word.state != State::Expired
                    && farewells.bid(at, F::V6, record, tally, now)
                    && record.node_slot != NO_NODE
                {
                    record.epoch = tables.epoch;
                }
            }
            let Some(service) = tables.service(record.service) else { return Swept::Forgotten };
            if let Some(counters) = stats.services.get(record.service as usize) {
                collect(record, counters);
            }
            if let Some(count) = counting.get_mut(record.service as usize) {
                *count += 1;
            }
            hops.mark(record.hop);
            // A quarter of the flows a round: a bit stands for longer than four.
            if let Some(marks) = &view.marks
                && (at ^ rounds) % MARKED_EVERY == 0
                && !word.state.is_embryonic()
            {
                marks.mark::<F>(&access::client_tuple(record, word));
            }
            let overdue = now.tick().since(record.last_seen()).checked_sub(service.timeouts[word.state as usize] + 1);
            match overdue {
                None => kept,
                Some(overdue) if farewell::is_due(word, service, overdue) => {
                    farewells.bid(at, F::V6, record, tally, now);
                    kept
                }
                Some(_) => Swept::Forgotten,
            }
        });
        if complete {
            std::mem::swap(&mut side.counting, &mut side.counted);
            side.counting.fill(0);
            side.rounds = side.rounds.wrapping_add(1);
            side.swept = std::mem::replace(&mut side.round, tables.serial);
            hops.end_round(F::V6);
        }
        // Behind the end of the table there is nothing to go over.
        let gone_over = if complete { budget } else { gone_over };
        let done = Now { ns: now.ns - elapsed + u64::from(gone_over) * ROUND_NS / records };
        let done = Now { ns: done.ns.min(now.ns) };
        if complete {
            self.sweep.uncounted = 0;
        }
        *(if F::V6 { &mut self.sweep.v6 } else { &mut self.sweep.v4 }) = done;
        due > gone_over
    }

    /// Puts the flows of the next services where housekeeping reads them: a cache line each, so not all at once.
    /// True: there are more.
    fn publish_counts(&mut self) -> bool {
        let services = self.view.tables.services.len().min(self.stats.services.len());
        let next = self.sweep.uncounted.min(services);
        let counts = self.v4.counted.iter().zip(&*self.v6.counted);
        let some = self.stats.services[..services].iter().zip(counts).skip(next).take(COUNTS);
        for (counters, (v4, v6)) in some {
            counters.flows.set(u64::from(v4 + v6));
        }
        self.sweep.uncounted = next + COUNTS;
        self.sweep.uncounted < services
    }

    /// Takes up the flows in the store: indexes rebuilt, numbers checked.
    pub(super) fn recover(&mut self) {
        if !self.store.recovered {
            return;
        }
        let Self { v4, v6, store, hops, .. } = self;
        let header = store.header();
        hops.recover(&header.hops, &header.hop_tags);
        v4.flows.set_snats(header.snat_v4.iter().copied());
        v6.flows.set_snats(header.snat_v6.iter().map(|addr| u128::from_be_bytes(*addr)));
        let used = store.used_records();
        recover_family(v4, used[0]);
        recover_family(v6, used[1]);
    }

    /// SNAT addresses by number, as far as flows have them: for the first snapshot to keep the numbers.
    #[must_use]
    pub fn snats_in_use(&self) -> (Vec<Option<u32>>, Vec<Option<u128>>) {
        (snats_in_use(&self.v4), snats_in_use(&self.v6))
    }
}

fn snats_in_use<F: Family>(side: &Side<F>) -> Vec<Option<F::Addr>> {
    let mut by_number = Vec::new();
    for (record, _) in side.flows.live().filter(|(_, word)| !word.flags.has(Flags::DNAT)) {
        let at = usize::from(record.snat);
        if at >= by_number.len() {
            by_number.resize(at + 1, None);
        }
        by_number[at] = Some(side.flows.snat(record.snat));
    }
    by_number
}

fn recover_family<F: Family>(side: &mut Side<F>, used: u32) {
    let mut ports = Vec::new();
    side.flows.recover(used, |record, word| {
        let sane = usize::from(record.snat) < MAX_SNATS && record.client_port != 0 && record.node_port != 0;
        // No snapshot has epoch 0: the first packet, or the sweep, finds service and backend anew.
        record.epoch = 0;
        record.commit(Word { flags: word.flags.without(Flags::COUNTED).without(Flags::LIMITED), ..word });
        record.packets = 0;
        (record.forward_bytes, record.reverse_bytes) = (0, 0);
        if sane && record.snat_port != 0 {
            ports.push(record.snat_port);
        }
        sane
    });
    side.ports.begin_beyond(ports.into_iter());
}

/// Moves a record's counters to its service's.
pub(super) fn collect<A>(record: &mut Record<A>, counters: &ServiceCounters) {
    if record.packets != 0 {
        counters.packets.add(u64::from(record.packets));
        counters.forward_bytes.add(u64::from(record.forward_bytes));
        counters.reverse_bytes.add(u64::from(record.reverse_bytes));
        (record.packets, record.forward_bytes, record.reverse_bytes) = (0, 0, 0);
    }
}
