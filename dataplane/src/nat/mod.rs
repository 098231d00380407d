//! SNAT tuples: which address and port a flow gets towards its node.
//!
//! The flow table is the only truth about ports: a port is in use towards a backend if and only if
//! the reply's tuple is in the index. So there is no port map to fall out of step, ports are reused
//! per backend, and a restart has nothing to rebuild.

pub mod partition;

pub use partition::Partition;

use crate::clock::Now;
use crate::flow::tcp::reopens;
use crate::flow::{FlowTable, State, SynInfo};
use crate::tables::Snat;
use crate::verdict::DropReason;
use crate::wire::{Family, PROTO_TCP, Tuple};

/// Candidates looked at per SNAT address before the next one is tried. Ports come free in about the
/// order they were given out, so the first nearly always serves.
const TRIES: u32 = 32;
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

/// A tuple found free. If a resting flow had it, that flow is to be forgotten first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    pub snat: u16,
    pub port: u16,
}

pub struct PortAllocator {
    partition: Partition,
    /// Where the search goes on, by node slot: the longest unused port is next.
    cursors: Box<[u32]>,
}

enum Candidate {
    Free,
    /// Rests; the node would take this SYN all the same. The record to forget.
    Resting(u32),
    Taken,
}

impl PortAllocator {
    #[must_use]
    pub fn new(partition: Partition, nodes: usize) -> Self {
        Self { partition, cursors: vec![0; nodes.max(1)].into_boxed_slice() }
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
        towards: &Towards<F::Addr>,
        timed_out: impl Fn(&crate::flow::Record<F::Addr>, State) -> bool,
        is_home: impl Fn(F::Addr, u16) -> bool,
    ) -> Result<Allocation, DropReason> {
        let slot = usize::from(towards.node_slot) % self.cursors.len();
        let start = (towards.client_hash % snats.len().max(1) as u64) as usize;
        let mut reason = DropReason::NoSnatAddress;
        for turn in 0..snats.len() {
            let id = (start + turn) % snats.len();
            let snat = &snats[id];
            let ports = self.partition.ports(snat.first_port, snat.last_port);
            if snat.retired || ports.count == 0 {
                continue;
            }
            reason = DropReason::SnatExhausted;
            let mut away = None;
            let mut resting = None;
            for attempt in 0..TRIES.min(ports.count) {
                let port = ports.at(self.cursors[slot].wrapping_add(attempt) % ports.count);
                match candidate(flows, snat.addr, port, towards, &timed_out) {
                    Candidate::Taken => {}
                    Candidate::Resting(record) => resting = resting.or(Some((port, record, attempt))),
                    Candidate::Free if is_home(snat.addr, port) => {
                        away = Some((port, attempt));
                        break;
                    }
                    Candidate::Free => {
                        away = away.or(Some((port, attempt)));
                        if attempt >= HOME_TRIES {
                            break;
                        }
                    }
                }
            }
            let found = away.or_else(|| {
                resting.map(|(port, record, attempt)| {
                    flows.remove(record);
                    (port, attempt)
                })
            });
            if let Some((port, attempt)) = found {
                self.cursors[slot] = (self.cursors[slot].wrapping_add(attempt + 1)) % ports.count;
                return Ok(Allocation { snat: id as u16, port });
            }
            // None of these: the next flow looks further on.
            self.cursors[slot] = (self.cursors[slot].wrapping_add(TRIES)) % ports.count;
        }
        Err(reason)
    }
}

fn candidate<F: Family>(
    flows: &mut FlowTable<F>,
    snat: F::Addr,
    port: u16,
    towards: &Towards<F::Addr>,
    timed_out: &impl Fn(&crate::flow::Record<F::Addr>, State) -> bool,
) -> Candidate {
    let reply =
        Tuple { src: towards.node, dst: snat, src_port: towards.node_port, dst_port: port, protocol: towards.protocol };
    let Some(entry) = flows.find(&reply, flows.hash(&reply)) else { return Candidate::Free };
    let record = flows.record(entry.record);
    let Some(word) = record.word() else { return Candidate::Taken };
    if timed_out(record, word.state) {
        flows.remove(entry.record);
        return Candidate::Free;
    }
    let reusable = word.state == State::TimeWait && towards.protocol == PROTO_TCP && record.last_seq != 0;
    match towards.syn {
        Some(syn) if reusable && reopens(record.last_seq, record.last_timestamp, syn) => {
            Candidate::Resting(entry.record)
        }
        _ => Candidate::Taken,
    }
}

/// What the caller knows of time, as a predicate over records.
pub fn older_than<A>(now: Now, timeouts: &[u32; State::COUNT]) -> impl Fn(&crate::flow::Record<A>, State) -> bool {
    move |record, state| now.tick().since(record.last_seen()) > timeouts[state as usize]
}
