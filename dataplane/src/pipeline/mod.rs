//! A packet's life in one screen: parse -> flow -> (service -> pick -> SNAT) -> rewrite -> verdict.
//!
//! A burst goes through three stages, so that memory is asked for before it is needed: headers and
//! hash; the index line; the record. Then each packet is settled: a hit costs one record, a miss
//! goes the long way ([`open`]) and comes back as a hit.

mod access;
mod budget;
mod dsr;
mod errors;
mod express;
mod farewell;
mod foresee;
mod fragments;
pub mod hops;
mod leave;
mod local;
mod open;
mod pick;
mod refuse;
mod renew;
mod reply_check;
mod revalidate;
mod sctp;
mod segment;
mod side;
mod stick;
#[doc(hidden)]
pub mod testkit;
mod upkeep;

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::clock::Now;
use crate::flow::{Direction, Entry, FlowTable, State};
use crate::fragment::{Holding, Identifications};
use crate::io::{BURST, Frame, PacketMemory};
use crate::persist::{PersistError, Store};
use crate::schedule::Peers;
use crate::stats::WorkerStats;
use crate::tables::{Hop, Tabled, View};
use crate::verdict::{DropReason, PortId, Verdict, WorkerId};
use crate::wire::{self, PROTO_TCP, PROTO_UDP, Packet, Parsed, Plain, TCP_RST, TCP_SYN, Transport, V4, V6};
use budget::Budget;
use farewell::Farewells;
use hops::{LastHops, Neighbor};
use revalidate::Standing;
use segment::follow;
use side::{Parts, Side, Sided};

pub use fragments::Released;
pub use side::PipelineConfig;
pub use stick::Recalled;
pub use upkeep::MARKED_EVERY;

/// How many packets an index line is asked for before it is read. The loads are spread over the work
/// between them: asked for all at once, they would wait for each other.
const AHEAD: usize = 32;

/// Where a packet is after the first stage.
#[derive(Clone, Copy)]
enum Stage {
    /// A plain packet of TCP, by family.
    Plain4,
    Plain6,
    /// Of UDP.
    Datagram(Packet),
    /// TCP, UDP or SCTP.
    Transit(Packet),
    Icmp(Packet),
    Fragment(Packet),
    Other(Packet),
    Arp,
    Settled(Verdict),
}

/// One worker's packet path. It knows no socket: frames come in, verdicts go out.
pub struct Pipeline {
    worker: WorkerId,
    workers: u16,
    view: Arc<View>,
    /// Of the view's tables.
    epoch: u16,
    /// The last burst with packets of flows had some of an earlier epoch, or none has come since it changed: likely the
    /// next has too.
    renews: bool,
    v4: Side<V4>,
    v6: Side<V6>,
    hops: LastHops,
    store: Store,
    stats: Arc<WorkerStats>,
    /// Of ICMP errors and refusals.
    icmp: Budget,
    /// Of those that tell path MTUs, and are caused by packets of known flows only: anybody can spend the other.
    too_big: Budget,
    /// Why the last packet that was answered in place was dropped.
    answered: DropReason,
    holding: Holding,
    identifications: Identifications,
    sweep: upkeep::SweepClock,
    farewells: Farewells,
}

impl Pipeline {
    /// A pipeline over `store`, whose flows it takes up.
    ///
    /// # Errors
    /// `Memory`.
    pub fn new(config: &PipelineConfig, mut store: Store, stats: Arc<WorkerStats>) -> Result<Self, PersistError> {
        let (v4, v6) = side::sides(config, &mut store)?;
        let store_seed = store.seed()[0];
        let mut pipeline = Self {
            worker: config.worker,
            workers: config.workers,
            view: Arc::new(View::default()),
            epoch: 0,
            renews: false,
            v4,
            v6,
            hops: LastHops::default(),
            store,
            stats,
            icmp: Budget::new(config.icmp_per_second),
            too_big: Budget::new(config.icmp_per_second),
            answered: DropReason::TtlExceeded,
            holding: Holding::default(),
            identifications: Identifications::new(config.worker, config.workers, store_seed),
            sweep: upkeep::SweepClock::default(),
            farewells: Farewells::default(),
        };
        pipeline.recover();
        Ok(pipeline)
    }

    /// Settles a burst: one verdict per frame, in order. `from` is the port it came in by; frames
    /// another worker handed over (`handed`) are never handed on.
    pub fn burst(
        &mut self,
        memory: &PacketMemory,
        from: PortId,
        handed: bool,
        frames: &mut [Frame],
        verdicts: &mut ArrayVec<Verdict, BURST>,
        now: Now,
    ) {
        let count = frames.len().min(BURST);
        let frames = &mut frames[..count];
        let mut stages = [Stage::Plain4; BURST];
        let mut hashes = [0; BURST];
        let mut likely = [None; BURST];
        for (at, frame) in frames.iter().enumerate() {
            let bytes = memory.bytes(frame);
            if V4::is_plain(bytes) {
                hashes[at] = self.v4.begin(bytes, &V4::headers::<PROTO_TCP>(bytes));
            } else if V6::is_plain(bytes) {
                stages[at] = Stage::Plain6;
                hashes[at] = self.v6.begin(bytes, &V6::headers::<PROTO_TCP>(bytes));
            } else {
                (stages[at], hashes[at]) = self.begin(bytes, frame.len());
            }
            if let Some(behind) = at.checked_sub(AHEAD) {
                likely[behind] = self.look_ahead(memory, &frames[behind], &stages[behind], hashes[behind], handed);
            }
        }
        for behind in count.saturating_sub(AHEAD)..count {
            likely[behind] = self.look_ahead(memory, &frames[behind], &stages[behind], hashes[behind], handed);
        }
        if self.renews {
            self.renew(&stages[..count], &likely[..count]);
        }
        for (((frame, stage), hash), likely) in frames.iter_mut().zip(&stages).zip(hashes).zip(likely) {
            let verdict = match *stage {
                // Nearly every packet is sent on: nothing more to be asked.
                Stage::Plain4 => match self.plain::<V4>(memory, frame, hash, likely, from, handed, now) {
                    Verdict::Tx(port) => {
                        verdicts.push(Verdict::Tx(port));
                        continue;
                    }
                    verdict => verdict,
                },
                Stage::Plain6 => match self.plain::<V6>(memory, frame, hash, likely, from, handed, now) {
                    Verdict::Tx(port) => {
                        verdicts.push(Verdict::Tx(port));
                        continue;
                    }
                    verdict => verdict,
                },
                Stage::Datagram(packet) if packet.v6 => {
                    self.plain_udp::<V6>(memory, frame, packet, hash, likely, from, handed, now)
                }
                Stage::Datagram(packet) => self.plain_udp::<V4>(memory, frame, packet, hash, likely, from, handed, now),
                Stage::Transit(packet) if packet.v6 => {
                    self.transit::<V6>(memory, frame, packet, hash, likely, from, handed, now)
                }
                Stage::Transit(packet) => self.transit::<V4>(memory, frame, packet, hash, likely, from, handed, now),
                Stage::Icmp(packet) => self.icmp(memory, frame, &packet, from, handed),
                Stage::Fragment(packet) if packet.v6 => self.fragment::<V6>(memory, frame, &packet, from, handed, now),
                Stage::Fragment(packet) => self.fragment::<V4>(memory, frame, &packet, from, handed, now),
                Stage::Other(packet) => self.other(memory.bytes(frame), &packet),
                Stage::Arp => self.neighbor(memory, frame, from),
                Stage::Settled(verdict) => verdict,
            };
            verdicts.push(self.concluded(memory, frame, verdict, from));
        }
        self.v4.end_burst();
        self.v6.end_burst();
    }

    /// The verdict of a packet that came in by `from`; drops are counted.
    fn concluded(&self, memory: &PacketMemory, frame: &Frame, verdict: Verdict, from: PortId) -> Verdict {
        let came_from_kernel = || self.view.ports.get(usize::from(from.0)).is_some_and(|port| port.is_kernel);
        let verdict = match verdict {
            // The kernel would route here again what it has routed here. What it says to groups it does not route.
            Verdict::Kernel if came_from_kernel() && !crate::icmp::is_to_group(memory.bytes(frame)) => {
                Verdict::Drop(DropReason::NoService)
            }
            verdict => verdict,
        };
        if let Verdict::Drop(reason) = verdict {
            self.stats.count_drop(reason);
        }
        verdict
    }

    /// First stage of what is not plain TCP: headers and hash; the index line is on its way. Of `whole` bytes of packet
    /// `bytes` are those of its first frame.
    #[inline(never)]
    fn begin(&self, bytes: &[u8], whole: usize) -> (Stage, u64) {
        if V4::is_plain_part::<PROTO_UDP>(bytes, whole) {
            let packet = V4::headers::<PROTO_UDP>(bytes);
            return (Stage::Datagram(packet), self.v4.begin(bytes, &packet));
        }
        if V6::is_plain_part::<PROTO_UDP>(bytes, whole) {
            let packet = V6::headers::<PROTO_UDP>(bytes);
            return (Stage::Datagram(packet), self.v6.begin(bytes, &packet));
        }
        // A packet in several frames is no less plain than one in a single one.
        if bytes.len() < whole {
            if V4::is_plain_part::<PROTO_TCP>(bytes, whole) {
                return (Stage::Plain4, self.v4.begin(bytes, &V4::headers::<PROTO_TCP>(bytes)));
            }
            if V6::is_plain_part::<PROTO_TCP>(bytes, whole) {
                return (Stage::Plain6, self.v6.begin(bytes, &V6::headers::<PROTO_TCP>(bytes)));
            }
        }
        let stage = match wire::parse_part(bytes, whole) {
            Ok(Parsed::Ip(packet)) => match packet.transport {
                Transport::Tcp | Transport::Udp | Transport::Sctp => {
                    let hash = if packet.v6 { self.v6.begin(bytes, &packet) } else { self.v4.begin(bytes, &packet) };
                    return (Stage::Transit(packet), hash);
                }
                Transport::Icmp => Stage::Icmp(packet),
                Transport::Fragment => Stage::Fragment(packet),
                Transport::Other => Stage::Other(packet),
            },
            Ok(Parsed::Arp) => Stage::Arp,
            Ok(Parsed::Foreign) => Stage::Settled(Verdict::Kernel),
            Err(reason) => Stage::Settled(Verdict::Drop(reason)),
        };
        (stage, 0)
    }

    /// Second stage: the index line is here; the record is on its way, or what the opening of a flow
    /// will want.
    #[inline(always)]
    fn look_ahead(
        &mut self,
        memory: &PacketMemory,
        frame: &Frame,
        stage: &Stage,
        hash: u64,
        handed: bool,
    ) -> Option<Entry> {
        match stage {
            Stage::Plain4 => self.v4.flows.prefetch_record(hash),
            Stage::Plain6 => self.v6.flows.prefetch_record(hash),
            Stage::Datagram(packet) | Stage::Transit(packet) if packet.v6 => {
                self.look_ahead_of::<V6>(memory, frame, packet, hash, handed)
            }
            Stage::Datagram(packet) | Stage::Transit(packet) => {
                self.look_ahead_of::<V4>(memory, frame, packet, hash, handed)
            }
            _ => None,
        }
    }

    #[inline(never)]
    fn look_ahead_of<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &Frame,
        packet: &Packet,
        hash: u64,
        handed: bool,
    ) -> Option<Entry> {
        let likely = F::side(self).flows.prefetch_record(hash);
        if likely.is_none() && packet.may_open() {
            F::side(self).flows.prefetch_insertion(hash);
            self.foresee::<F>(memory.bytes(frame), packet, handed);
        }
        likely
    }

    /// A plain packet of UDP; apart, so that TCP's way stays short.
    #[allow(clippy::too_many_arguments, reason = "what stages hand on, once per packet; a struct would be copied")]
    #[inline(never)]
    fn plain_udp<F: Sided + Tabled + Plain>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: Packet,
        hash: u64,
        likely: Option<Entry>,
        from: PortId,
        handed: bool,
        now: Now,
    ) -> Verdict {
        if let Some(entry) = likely
            && let Some(port) = self.express::<F, PROTO_UDP>(memory.bytes_mut(frame), entry, from, now)
        {
            return Verdict::Tx(port);
        }
        self.transit::<F>(memory, frame, packet, hash, likely, from, handed, now)
    }

    /// A plain packet of TCP: most often of an established flow with nothing else to be said of it.
    #[allow(clippy::too_many_arguments, reason = "what stages hand on, once per packet; a struct would be copied")]
    #[inline(always)]
    fn plain<F: Sided + Tabled + Plain>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        hash: u64,
        likely: Option<Entry>,
        from: PortId,
        handed: bool,
        now: Now,
    ) -> Verdict {
        if let Some(entry) = likely
            && let Some(port) = self.express::<F, PROTO_TCP>(memory.bytes_mut(frame), entry, from, now)
        {
            return Verdict::Tx(port);
        }
        match parse(memory, frame) {
            Ok(Parsed::Ip(packet)) => self.transit::<F>(memory, frame, packet, hash, likely, from, handed, now),
            Ok(_) => Verdict::Kernel,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// A TCP, UDP or SCTP packet: found by its tuple, or the opening of a flow.
    #[allow(clippy::too_many_arguments, reason = "what stages hand on, once per packet; a struct would be copied")]
    #[inline(never)]
    fn transit<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: Packet,
        hash: u64,
        likely: Option<Entry>,
        from: PortId,
        handed: bool,
        now: Now,
    ) -> Verdict {
        let bytes = memory.bytes_mut(frame);
        let tuple = F::tuple(bytes, &packet);
        let found = F::side(self).flows.find_likely(&tuple, hash, likely);
        let found = if packet.transport == Transport::Sctp { self.unless_reopened::<F>(found, &packet) } else { found };
        let standing = found.map(|entry| self.standing::<F>(entry.record, packet.tcp_flags, now));
        let entry = match found {
            Some(entry) if standing == Some(Standing::Valid) => entry,
            Some(_) if matches!(standing, Some(Standing::Reset | Standing::Rehome)) && !packet.may_open() => {
                return self.refuse(memory, frame, &packet, DropReason::FlowRevoked, from, now);
            }
            Some(_) if let Some(Standing::Refused(reason)) = standing => {
                return self.turn_away::<F>(memory, frame, &packet, &tuple, reason, from, now);
            }
            Some(entry) if entry.direction == Direction::Reverse || !packet.may_open() => {
                return Verdict::Drop(DropReason::FlowRevoked);
            }
            _ => match self.open::<F>(bytes, &packet, &tuple, hash, from, handed, now) {
                Ok(record) => Entry { record, direction: Direction::Forward },
                Err(Verdict::Drop(reason)) => {
                    return self.turn_away::<F>(memory, frame, &packet, &tuple, reason, from, now);
                }
                Err(verdict) => return verdict,
            },
        };
        match self.pass::<F>(bytes, &packet, entry, from, now) {
            Err(DropReason::TtlExceeded) => self.time_exceeded(memory, frame, &packet, from, now),
            Err(DropReason::TooBig) => self.too_big::<F>(memory, frame, &packet, entry, from, now),
            Err(reason @ DropReason::FlowExpired) => self.refuse(memory, frame, &packet, reason, from, now),
            Err(reason) => Verdict::Drop(reason),
            Ok(hop) => self.leave(memory, frame, &packet, &hop),
        }
    }

    /// Sends a packet of a known flow on its way.
    #[inline]
    fn pass<F: Sided + Tabled>(
        &mut self,
        bytes: &mut [u8],
        packet: &Packet,
        entry: Entry,
        from: PortId,
        now: Now,
    ) -> Result<Hop, DropReason> {
        let l3 = usize::from(packet.l3);
        if F::ttl(bytes, l3) <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        if packet.tcp_flags & TCP_RST != 0 && !self.believes_reset::<F>(bytes, packet, entry) {
            return self.pass_doubted::<F>(bytes, packet, entry);
        }
        let hop = self.next_hop::<F>(entry, bytes, from)?;
        if u32::from(packet.end - packet.l3) > hop.mtu {
            return Err(DropReason::TooBig);
        }
        let Parts { side, stats, .. } = F::parts(self);
        let (word, next) = match packet.transport {
            Transport::Sctp => sctp::follow(side, stats, bytes, packet, entry, now)?,
            _ => follow(side, stats, bytes, packet, entry, now)?,
        };
        if word.state != next.state {
            access::mark::<F>(&self.view, F::side(self), entry.record, next);
        }
        let side = F::side_mut(self);
        let record = side.flows.record_mut(entry.record);
        record.last_seen = now.tick().0;
        record.packets = record.packets.wrapping_add(1);
        let len = u32::from(packet.end - packet.l3);
        match entry.direction {
            Direction::Forward => record.forward_bytes = record.forward_bytes.saturating_add(len),
            Direction::Reverse => record.reverse_bytes = record.reverse_bytes.saturating_add(len),
        }
        let to = side.translation(entry, next);
        wire::rewrite::<F>(bytes, packet, &to);
        wire::rewrite::set_macs(bytes, hop.dst, hop.src);
        if packet.tcp_flags & TCP_SYN != 0 {
            self.clamp_mss(bytes, packet, from, hop.port);
        }
        if word.state == State::SynSent && packet.tcp_flags & TCP_RST != 0 {
            // Refused or given up before it began: neither end knows of it any more.
            F::side_mut(self).flows.remove(entry.record);
        }
        Ok(hop)
    }

    /// Towards the node: as the kernel routes it. Towards the client: back to the neighbour its
    /// packets come from, which may change with any of them.
    #[inline]
    fn next_hop<F: Sided + Tabled>(&mut self, entry: Entry, bytes: &[u8], from: PortId) -> Result<Hop, DropReason> {
        let record = F::side(self).flows.record(entry.record);
        if entry.direction == Direction::Forward {
            let slot = usize::from(record.node_slot);
            let known = record.hop;
            let hop = self.view.node_hops.get(slot).copied().flatten().ok_or(DropReason::NoNeighbor)?;
            let Self { hops, store, .. } = self;
            let last = hops.intern(known, Neighbor::of(bytes, from), |at, hop, tags| store.keep_hop(at, hop, tags));
            if last != known {
                F::side_mut(self).flows.record_mut(entry.record).hop = last;
            }
            return Ok(hop);
        }
        self.client_hop::<F>(record.hop)
    }

    /// Back to the neighbour a client's packets come from.
    #[inline]
    fn client_hop<F: Sided>(&self, hop: u16) -> Result<Hop, DropReason> {
        if let Some(Neighbor { mac, port, tags }) = self.hops.get(hop)
            && let Some(view) = self.view.ports.get(usize::from(port.0))
        {
            return Ok(Hop::new(port, mac, view.mac, view.mtu).in_tags(tags));
        }
        let default = if F::V6 { self.view.default_v6 } else { self.view.default_v4 };
        default.ok_or(DropReason::NoNeighbor)
    }

    /// Runs on another view from the next packet on; returns the one it ran on, for somebody else to free.
    pub fn adopt(&mut self, view: Arc<View>) -> Arc<View> {
        let old = std::mem::replace(&mut self.view, view);
        self.stats.view.set(self.view.number);
        self.epoch = self.view.tables.epoch;
        if !Arc::ptr_eq(&old.tables, &self.view.tables) {
            side::adopt_snats(self);
            self.renews = true;
        }
        old
    }

    /// Makes its flows' counts for schedulers known to the other workers', and reads theirs.
    pub fn meet(&mut self, peers: &Arc<Peers>) {
        let Self { worker, v4, v6, .. } = self;
        peers.join(worker.0, Arc::clone(v4.flows.share()), Arc::clone(v6.flows.share()));
        v4.scheduling.meet(Arc::clone(peers), worker.0, false);
        v6.scheduling.meet(Arc::clone(peers), worker.0, true);
        v4.flows.limits().meet(peers, worker.0, false);
        v6.flows.limits().meet(peers, worker.0, true);
    }

    #[must_use]
    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.stats
    }

    /// The link-layer address of a port.
    #[must_use]
    pub fn port_mac(&self, port: PortId) -> Option<[u8; 6]> {
        self.view.ports.get(usize::from(port.0)).map(|port| port.mac)
    }

    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// What must hold between two bursts; for tests.
    ///
    /// # Errors
    /// The sentence that does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.v4.flows.check_invariants().map_err(|problem| format!("IPv4: {problem}"))?;
        self.v6.flows.check_invariants().map_err(|problem| format!("IPv6: {problem}"))
    }

    /// The IPv4 flows, for tests and status.
    #[must_use]
    pub fn flows_v4(&self) -> &FlowTable<V4> {
        &self.v4.flows
    }

    /// The IPv6 flows.
    #[must_use]
    pub fn flows_v6(&self) -> &FlowTable<V6> {
        &self.v6.flows
    }
}

/// The headers of the packet in a frame.
#[inline]
fn parse(memory: &PacketMemory, frame: &Frame) -> Result<Parsed, DropReason> {
    wire::parse_part(memory.bytes(frame), frame.len())
}

#[cfg(test)]
mod tests;
