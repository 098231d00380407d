//! The two families' state, reached by type, and what a pipeline is made from.

use std::net::IpAddr;
use std::sync::Arc;

use super::Pipeline;
use super::farewell::Farewells;
use super::foresee::Foresight;
use super::hops::LastHops;
use crate::affinity::AffinityTable;
use crate::flow::{self, Capacity, Entry, FlowTable, Word};
use crate::fragment::{DATAGRAMS, Datagrams, Holding};
use crate::handoff::Note;
use crate::hash::FlowHasher;
use crate::limits::Counts;
use crate::nat::{Partition, PortAllocator};
use crate::persist::{PersistError, Shape, Store};
use crate::schedule::{Scheduling, Share};
use crate::stats::WorkerStats;
use crate::tables::{Local, Tabled, Tables, View};
use crate::verdict::{DropReason, WorkerId};
use crate::wire::{self, Family, Packet, Rewrite, Tuple, V4, V6};

/// Capacities and place of a pipeline; fixed for its life.
#[derive(Debug, Clone, Copy)]
pub struct PipelineConfig {
    pub worker: WorkerId,
    pub workers: u16,
    pub flows_v4: Capacity,
    pub flows_v6: Capacity,
    pub max_nodes: usize,
    pub max_services: usize,
    pub icmp_per_second: u32,
    /// Pairs of service and backend per family whose flows can be counted.
    pub max_counted: usize,
    /// Clients remembered per family for services with affinity.
    pub max_affinity: usize,
    /// Sources per family that can be counted for services' limits.
    pub max_sources: usize,
}

impl PipelineConfig {
    /// What its store must look like.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape {
            worker: self.worker.0,
            workers: self.workers,
            records_v4: self.flows_v4.records(),
            records_v6: self.flows_v6.records(),
        }
    }
}

/// One family's flows and SNAT ports.
pub struct Side<F: Family> {
    pub flows: FlowTable<F>,
    pub ports: PortAllocator,
    pub foresight: Foresight<F::Addr>,
    pub datagrams: Datagrams<F::Addr>,
    /// Flows per service slot, counted during a sweep round.
    pub counting: Box<[u32]>,
    pub counted: Box<[u32]>,
    /// The tables under which the sweep's round under way began, and the last complete one.
    pub round: u64,
    pub swept: u64,
    /// Rounds of the sweep.
    pub rounds: u32,
    pub scheduling: Scheduling,
    pub affinity: AffinityTable<F>,
    /// What came with the packets being settled.
    pub note: Note,
}

impl<F: Family> Side<F> {
    /// The hash of a packet's tuple; its index line is on its way.
    #[inline(always)]
    pub fn begin(&self, bytes: &[u8], packet: &Packet) -> u64 {
        let tuple: Tuple<F::Addr> = F::tuple(bytes, packet);
        let hash = self.flows.hash(&tuple);
        self.flows.prefetch_index(hash);
        hash
    }

    /// The tuple a packet of this flow leaves with.
    #[inline(always)]
    pub fn translation(&self, entry: Entry, word: Word) -> Rewrite<F::Addr> {
        flow::translation::<F>(self.flows.record(entry.record), word, entry.direction, self.flows.snats())
    }
}

/// Disjoint parts of a pipeline, for code generic over the family.
pub struct Parts<'a, F: Family> {
    pub side: &'a mut Side<F>,
    pub view: &'a View,
    pub hops: &'a mut LastHops,
    pub store: &'a mut Store,
    pub stats: &'a WorkerStats,
    pub farewells: &'a mut Farewells,
}

/// Picks a family's side of a pipeline.
pub trait Sided: Tabled {
    fn side(pipeline: &Pipeline) -> &Side<Self>;
    fn side_mut(pipeline: &mut Pipeline) -> &mut Side<Self>;
    fn parts(pipeline: &mut Pipeline) -> Parts<'_, Self>;
    /// Waiting frames, and the datagrams they wait for.
    fn held(pipeline: &mut Pipeline) -> (&mut Holding, &mut Datagrams<Self::Addr>);
}

macro_rules! sided {
    ($family:ty, $field:ident) => {
        impl Sided for $family {
            #[inline(always)]
            fn side(pipeline: &Pipeline) -> &Side<Self> {
                &pipeline.$field
            }

            #[inline(always)]
            fn side_mut(pipeline: &mut Pipeline) -> &mut Side<Self> {
                &mut pipeline.$field
            }

            #[inline]
            fn parts(pipeline: &mut Pipeline) -> Parts<'_, Self> {
                let Pipeline { $field: side, view, hops, store, stats, farewells, .. } = pipeline;
                Parts { side, view, hops, store, stats, farewells }
            }

            fn held(pipeline: &mut Pipeline) -> (&mut Holding, &mut Datagrams<Self::Addr>) {
                (&mut pipeline.holding, &mut pipeline.$field.datagrams)
            }
        }
    };
}

sided!(V4, v4);
sided!(V6, v6);

/// Both sides over the store's records.
pub fn sides(config: &PipelineConfig, store: &mut Store) -> Result<(Side<V4>, Side<V6>), PersistError> {
    let hasher = FlowHasher::new(store.seed());
    let partition = Partition { worker: config.worker, workers: config.workers };
    let (v4, v6) = store.records().ok_or_else(|| PersistError::Memory(std::io::Error::other("records taken twice")))?;
    let limits = || Counts::new(config.max_services, config.max_sources);
    let share = || Arc::new(Share::with_limits(config.max_counted, limits()));
    let seed = store.seed()[1];
    let scheduling = |family: u64| {
        let seed = seed ^ family << 32 ^ u64::from(config.worker.0);
        Scheduling::new(config.max_services, config.max_counted, seed)
    };
    let zeros = || vec![0; config.max_services].into_boxed_slice();
    Ok((
        Side {
            flows: FlowTable::new(v4, config.flows_v4, hasher, share()).map_err(PersistError::Memory)?,
            ports: PortAllocator::new(partition, config.max_nodes),
            foresight: Foresight::default(),
            datagrams: Datagrams::new(DATAGRAMS),
            counting: zeros(),
            counted: zeros(),
            round: 0,
            swept: 0,
            rounds: 0,
            scheduling: scheduling(4),
            affinity: AffinityTable::new(config.max_affinity, hasher),
            note: Note::Flow,
        },
        Side {
            flows: FlowTable::new(v6, config.flows_v6, hasher, share()).map_err(PersistError::Memory)?,
            ports: PortAllocator::new(partition, config.max_nodes),
            foresight: Foresight::default(),
            datagrams: Datagrams::new(DATAGRAMS),
            counting: zeros(),
            counted: zeros(),
            round: 0,
            swept: 0,
            rounds: 0,
            scheduling: scheduling(6),
            affinity: AffinityTable::new(config.max_affinity, hasher),
            note: Note::Flow,
        },
    ))
}

/// The tables' SNAT list becomes that of the flow tables, and of the store, for the next process.
pub fn adopt_snats(pipeline: &mut Pipeline) {
    let Pipeline { view, v4, v6, store, .. } = pipeline;
    let tables = &view.tables;
    let header = store.header_mut();
    for (at, snat) in tables.v4.snats.iter().enumerate() {
        header.snat_v4[at] = snat.addr;
    }
    for (at, snat) in tables.v6.snats.iter().enumerate() {
        header.snat_v6[at] = snat.addr.to_be_bytes();
    }
    v4.flows.set_snats(tables.v4.snats.iter().map(|snat| snat.addr));
    v6.flows.set_snats(tables.v6.snats.iter().map(|snat| snat.addr));
}

/// Whether a SNAT address is the kernel's too.
pub fn is_shared(tables: &Tables, v6: bool, id: u16) -> bool {
    let at = usize::from(id);
    if v6 {
        tables.v6.snats.get(at).is_some_and(|snat| snat.shared)
    } else {
        tables.v4.snats.get(at).is_some_and(|snat| snat.shared)
    }
}

/// [`check_client_of`] for a packet whose family is not known by type.
pub fn check_client(tables: &Tables, bytes: &[u8], packet: &Packet) -> Result<(), DropReason> {
    let l3 = usize::from(packet.l3);
    if packet.v6 {
        check_client_of::<V6>(tables, u128::from_be_bytes(wire::bytes_at(bytes, l3 + 8)))
    } else {
        check_client_of::<V4>(tables, wire::be32(bytes, l3 + 12))
    }
}

/// The same of a packet to a VIP, whose sender must not be denied.
pub fn check_client_of<F: Tabled>(tables: &Tables, client: F::Addr) -> Result<(), DropReason> {
    check_source_of::<F>(tables, client)?;
    if is_denied::<F>(tables, client) { Err(DropReason::Denied) } else { Ok(()) }
}

/// Whether the box's deny list has the client.
#[inline]
pub fn is_denied<F: Tabled>(tables: &Tables, client: F::Addr) -> bool {
    tables.deny.as_ref().is_some_and(|deny| F::allowed(deny, client))
}

/// Martians, and packets that claim an address of ours.
pub fn check_source_of<F: Tabled>(tables: &Tables, source: F::Addr) -> Result<(), DropReason> {
    if F::is_martian(source) {
        return Err(DropReason::Martian);
    }
    match F::tables(tables).locals.get(&source) {
        Some(Local::Vip { .. }) => Err(DropReason::SpoofedSource),
        // The box itself may be a client under an address it shares.
        Some(Local::Snat { id }) if !is_shared(tables, F::V6, *id) => Err(DropReason::SpoofedSource),
        _ => Ok(()),
    }
}

/// A node slot's address as the family's number.
pub fn node_addr<F: Family>(address: IpAddr) -> F::Addr {
    F::from_ip(address).unwrap_or_default()
}
