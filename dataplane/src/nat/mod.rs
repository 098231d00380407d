//! SNAT tuples: which address and port a flow gets towards its node.
//!
//! The flow table is the only truth about ports: a port is in use towards a backend if and only if
//! the reply's tuple is in the index. So there is no port map to fall out of step, ports are reused
//! per backend, and a restart has nothing to rebuild.

pub mod partition;

pub use partition::Partition;
use penstock_configs::desired::OnIdle;

use arrayvec::ArrayVec;

use crate::clock::Now;
use crate::flow::tcp::reopens;
use crate::flow::{FlowTable, State, SynInfo};
use crate::io::BURST;
use crate::tables::{Snat, Tables};
use crate::verdict::DropReason;
use crate::wire::{Family, PROTO_TCP, Tuple};

/// Candidates looked at per SNAT address before the next one is tried. Ports come free in about the
/// order they were given out, so the first nearly always serves. With 95 % of them taken at random,
/// one flow in 700 finds none.
const TRIES: u32 = 128;
/// Candidates next to each other, the longest unused; those after them are spread over the range.
/// Else a run of long-lived flows, opened one after the other, would look like exhaustion.
const NEAR: u32 = 16;
/// Candidates passed over in the hope of one whose replies the NIC brings to this worker.
const HOME_TRIES: u32 = 16;

/// The node's side of the tuple looked for.
#[derive(Debug, Clone, Copy)]
pub struct Towards<A> {
    pub node: A,
    pub node_port: u16,
    pub node_slot: u16,
    pub protocol: u8,
    /// The opening packet's numbers, for early reuse of a resting port (RFC 6191).
    pub syn: Option<SynInfo>,
    /// Chooses the SNAT address: clients keep theirs.
    pub client_hash: u64,
}

impl<A: Copy> Towards<A> {
    /// The tuple of the node's replies to this address and port.
    #[inline]
    fn reply(&self, snat: A, port: u16) -> Tuple<A> {
        Tuple { src: self.node, dst: snat, src_port: self.node_port, dst_port: port, protocol: self.protocol }
    }
}

/// A tuple found free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    pub snat: u16,
    pub port: u16,
    /// Of the reply's tuple.
    pub hash: u64,
}

/// A tuple that will most likely be free when its packet's turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guess {
    tuple: Allocation,
    /// Where the search goes on behind it.
    next: u32,
}

pub struct PortAllocator {
    partition: Partition,
    /// Where the search goes on, by node slot: the longest unused port is next.
    cursors: Box<[u32]>,
    /// The same beyond what this burst's packets were foreseen to take, and the slots it is set for.
    foreseen: Box<[u32]>,
    in_burst: ArrayVec<u16, BURST>,
    /// Where the first search towards a node begins.
    begin: u16,
}

/// A cursor of a node no flow has gone to yet.
const NOT_BEGUN: u32 = u32::MAX;

enum Candidate {
    Free,
    /// Rests; the node would take this SYN all the same. The record to forget.
    Resting(u32),
    /// Of a flow that is not established, which may have to make room.
    Embryo(u32),
    Taken,
}

impl PortAllocator {
    #[must_use]
    pub fn new(partition: Partition, nodes: usize) -> Self {
        let none = || vec![NOT_BEGUN; nodes.max(1)].into_boxed_slice();
        Self { partition, cursors: none(), foreseen: none(), in_burst: ArrayVec::new(), begin: 0 }
    }

    /// After a restart: searches begin in the widest gap between the ports that flows taken up have. At
    /// the range's start, where the last process began too, they would find only ports in use, and give
    /// up, or disturb one that rests while thousands were never used.
    pub fn begin_beyond(&mut self, used: impl Iterator<Item = u16>) {
        let mut used: Vec<u16> = used.collect();
        used.sort_unstable();
        let (Some(first), Some(last)) = (used.first().copied(), used.last().copied()) else { return };
        let mut widest = (u32::from(u16::MAX - last) + u32::from(first), last);
        for pair in used.windows(2) {
            widest = widest.max((u32::from(pair[1] - pair[0]), pair[0]));
        }
        self.begin = widest.1.saturating_add(1);
        self.cursors.fill(NOT_BEGUN);
    }

    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Finds a tuple of this worker's partition that is free towards the backend. `is_home` says
    /// whether the NIC would bring replies to it to this worker: a preference, not a condition.
    ///
    /// # Errors
    /// `NoSnatAddress`, `SnatExhausted`.
    pub fn allocate<F: Family>(
        &mut self,
        flows: &mut FlowTable<F>,
        snats: &[Snat<F::Addr>],
        of_groups: &[u16],
        towards: &Towards<F::Addr>,
        timed_out: impl Fn(&crate::flow::Record<F::Addr>, State) -> bool,
        is_home: impl Fn(&Tuple<F::Addr>) -> bool,
    ) -> Result<Allocation, DropReason> {
        let slot = self.slot(towards.node_slot);
        let start = address_of(of_groups, towards.client_hash);
        let mut reason = DropReason::NoSnatAddress;
        let mut embryo = None;
        for turn in 0..snats.len() {
            let id = (start + turn) % snats.len();
            let snat = &snats[id];
            let ports = self.partition.ports(snat.first_port, snat.last_port);
            if snat.retired || ports.count == 0 {
                continue;
            }
            reason = DropReason::SnatExhausted;
            if self.cursors[slot] == NOT_BEGUN {
                self.cursors[slot] = ports.from(self.begin);
            }
            let mut away = None;
            let mut resting = None;
            let mut half_open = 0;
            for attempt in 0..TRIES.min(ports.count) {
                let place = place(self.cursors[slot], attempt, ports.count);
                let reply = towards.reply(snat.addr, ports.at(place));
                let hash = flows.hash(&reply);
                match candidate(flows, &reply, hash, towards, &timed_out) {
                    Candidate::Taken => {}
                    Candidate::Embryo(record) => {
                        half_open += 1;
                        embryo = embryo.or(Some((id, reply.dst_port, record, place, hash, ports.count)));
                    }
                    Candidate::Resting(record) => resting = resting.or(Some((reply.dst_port, record, place, hash))),
                    Candidate::Free if is_home(&reply) => {
                        away = Some((reply.dst_port, place, hash));
                        break;
                    }
                    Candidate::Free => away = away.or(Some((reply.dst_port, place, hash))),
                }
                // Those near by have rested longest. Where most are half-open they are a flood's, and the first met is about
                // the oldest: to look further for each of its packets would take the time of everybody's.
                let searched = attempt >= NEAR && (resting.is_some() || half_open * 2 > attempt);
                if away.is_some() && attempt >= HOME_TRIES || searched {
                    break;
                }
            }
            let found = away.or_else(|| {
                resting.map(|(port, record, place, hash)| {
                    flows.remove(record);
                    (port, place, hash)
                })
            });
            if let Some((port, place, hash)) = found {
                self.cursors[slot] = (place + 1) % ports.count;
                return Ok(Allocation { snat: id as u16, port, hash });
            }
            // None of these: the next flow looks further on.
            self.cursors[slot] = (self.cursors[slot].wrapping_add(TRIES)) % ports.count;
        }
        // As in the pool of embryos an old one makes room, the first met: else a flood would keep everybody from opening
        // flows, for it takes a node's ports long before it fills the pool.
        let (id, port, record, place, hash, count) = embryo.ok_or(reason)?;
        flows.evict(record);
        self.cursors[slot] = (place + 1) % count;
        Ok(Allocation { snat: id as u16, port, hash })
    }

    /// The tuple that was guessed, if it is free.
    pub fn take<F: Family>(
        &mut self,
        flows: &mut FlowTable<F>,
        snats: &[Snat<F::Addr>],
        towards: &Towards<F::Addr>,
        guess: Guess,
    ) -> Option<Allocation> {
        let Allocation { snat, port, hash } = guess.tuple;
        let reply = towards.reply(snats.get(usize::from(snat))?.addr, port);
        if flows.find(&reply, hash).is_some() {
            return None;
        }
        let slot = self.slot(towards.node_slot);
        self.cursors[slot] = guess.next;
        Some(guess.tuple)
    }

    /// Guesses the tuple that [`Self::allocate`] would find for this flow, the next of its burst, and asks for
    /// the line of the index that shows whether it is free.
    pub fn foresee<F: Family>(
        &mut self,
        flows: &FlowTable<F>,
        snats: &[Snat<F::Addr>],
        of_groups: &[u16],
        towards: &Towards<F::Addr>,
        is_home: impl Fn(&Tuple<F::Addr>) -> bool,
    ) -> Option<Guess> {
        let slot = self.slot(towards.node_slot);
        let id = address_of(of_groups, towards.client_hash);
        let snat = snats.get(id).filter(|snat| !snat.retired)?;
        let ports = self.partition.ports(snat.first_port, snat.last_port);
        let mut cursor = self.foreseen[slot];
        if cursor == NOT_BEGUN {
            cursor = self.cursors[slot];
            if cursor == NOT_BEGUN || ports.count == 0 || self.in_burst.try_push(slot as u16).is_err() {
                return None;
            }
        }
        let mut near = (0..HOME_TRIES.min(ports.count)).map(|attempt| {
            let place = place(cursor, attempt, ports.count);
            (place, towards.reply(snat.addr, ports.at(place)))
        });
        let (place, reply) = near.find(|(_, reply)| is_home(reply))?;
        let next = if place + 1 < ports.count { place + 1 } else { 0 };
        self.foreseen[slot] = next;
        let hash = flows.hash(&reply);
        flows.prefetch_index(hash);
        Some(Guess { tuple: Allocation { snat: id as u16, port: reply.dst_port, hash }, next })
    }

    /// What was foreseen has happened, or did not.
    #[inline]
    pub fn end_burst(&mut self) {
        for slot in self.in_burst.drain(..) {
            self.foreseen[usize::from(slot)] = NOT_BEGUN;
        }
    }

    #[inline]
    fn slot(&self, node: u16) -> usize {
        usize::from(node) % self.cursors.len()
    }
}

/// Groups of clients that share an address to leave from: enough that addresses have even shares, few enough
/// for a table in the first-level cache.
const GROUPS: usize = 4096;

/// The address each group of clients leaves from while it has ports. By rendezvous (highest hash of group and
/// address): one more address takes its share of clients from all others and moves nobody else, and numbers
/// whose address is gone give their share to no neighbour. Made with the tables: per flow it was 25
/// instructions for each address.
#[must_use]
pub fn addresses_of_groups<F: Family>(snats: &[Snat<F::Addr>]) -> Box<[u16]> {
    let in_use: Vec<(u16, u64)> = (0..)
        .zip(snats)
        .filter(|(_, snat)| !snat.retired)
        .map(|(id, snat)| (id, u64::from(F::owner_hash(snat.addr, 0, 0)) << 32))
        .collect();
    let of_group = |group: u64| in_use.iter().max_by_key(|(_, hash)| stir(group ^ hash)).map_or(0, |(id, _)| *id);
    (0..GROUPS as u64).map(of_group).collect()
}

/// A client's address, of [`addresses_of_groups`].
#[inline]
fn address_of(of_groups: &[u16], client_hash: u64) -> usize {
    of_groups.get(stir(client_hash) as usize % GROUPS).copied().map_or(0, usize::from)
}

/// Finalizer of SplitMix64.
#[inline]
fn stir(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

/// The place in a range of `count` ports where the search looks at its `attempt`-th turn.
fn place(cursor: u32, attempt: u32, count: u32) -> u32 {
    let step = if attempt < NEAR || count <= TRIES {
        u64::from(attempt)
    } else {
        // Multiples of the golden section of the range lie evenly in it, however many there are.
        u64::from(attempt) * ((u64::from(count) * 0x9e37_79b9) >> 32)
    };
    ((u64::from(cursor) + step) % u64::from(count)) as u32
}

fn candidate<F: Family>(
    flows: &mut FlowTable<F>,
    reply: &Tuple<F::Addr>,
    hash: u64,
    towards: &Towards<F::Addr>,
    timed_out: &impl Fn(&crate::flow::Record<F::Addr>, State) -> bool,
) -> Candidate {
    let Some(entry) = flows.find(reply, hash) else { return Candidate::Free };
    let record = flows.record(entry.record);
    let Some(word) = record.word() else { return Candidate::Taken };
    if timed_out(record, word.state) {
        flows.remove(entry.record);
        return Candidate::Free;
    }
    // Nothing of an SCTP association stays at a node that has closed it: its port rests out of courtesy to
    // packets under way, whose tags are wrong by then.
    if word.state == State::SctpClosed {
        return Candidate::Resting(entry.record);
    }
    if word.state.is_embryonic() {
        return Candidate::Embryo(entry.record);
    }
    // Not before both FINs are acknowledged, or the node would still be closing and refuse the SYN.
    let reusable = word.state == State::TimeWait && towards.protocol == PROTO_TCP;
    match towards.syn {
        Some(syn) if reusable && reopens(record.seen.node_expects, record.seen.client_expects, syn) => {
            Candidate::Resting(entry.record)
        }
        _ => Candidate::Taken,
    }
}

/// Whether a flow's time is up by the timeouts of its own service: the one that looks for a port may
/// be another, with shorter ones. A record the running snapshot has not seen yet is left to the sweep.
pub fn timed_out<A>(now: Now, tables: &Tables) -> impl Fn(&crate::flow::Record<A>, State) -> bool {
    move |record, state| {
        record.epoch == tables.epoch
            && tables.service(record.service).is_some_and(|service| {
                // Ends that are to be told of it are the sweep's.
                let told = service.on_idle == OnIdle::Reset && matches!(state, State::Established | State::FinWait);
                !told && now.tick().since(record.last_seen()) > service.timeouts[state as usize]
            })
    }
}

#[cfg(test)]
mod tests;
