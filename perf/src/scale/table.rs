//! A flow table as it fills: what a hit and an insertion cost at 10 to 95 %, and what happens when it is full.

use std::hint::black_box;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrayvec::ArrayVec;
use penstock_dataplane::clock::Now;
use penstock_dataplane::flow::{Capacity, Entry, Flags, FlowTable, NewFlow, State, Word};
use penstock_dataplane::hash::FlowHasher;
use penstock_dataplane::io::{BURST, Burst, FramePool, PacketMemory};
use penstock_dataplane::persist::{Shape, Store};
use penstock_dataplane::schedule::Share;
use penstock_dataplane::sys::timestamp;
use penstock_dataplane::verdict::{DropReason, Verdict};
use penstock_dataplane::wire::{PROTO_TCP, Tuple, V4};

use super::children;
use super::report::{Figure, Section};
use super::rig::{CLIENT_PORT, Member, Site};
use crate::pipeline_bench::measure::{self, Clock};
use crate::pipeline_bench::packets::{self, TcpFlags};
use crate::plot::{self, Labels, Line, Scale};

/// Percent of the established flows there is room for.
const OCCUPANCIES: [u32; 8] = [10, 25, 50, 60, 70, 80, 90, 95];
/// Those instructions are counted at.
const COUNTED: [u32; 3] = [10, 50, 95];
/// Under valgrind: a smaller table, as full.
const COUNTED_FLOWS: u32 = 100_000;
const COUNTED_OPERATIONS: u32 = 4_096;

const PORTS: u32 = 64_000;
const SNATS: u32 = 4;

struct Table {
    flows: FlowTable<V4>,
    capacity: u32,
    filled: u32,
    refused: u64,
}

impl Table {
    fn new(capacity: u32) -> anyhow::Result<Self> {
        let room = Capacity { established: capacity, embryonic: 1 << 12 };
        let shape = Shape { worker: 0, workers: 1, records_v4: room.records(), records_v6: 1 };
        let mut store = Store::anonymous(shape)?;
        let (records, _) = store.records().context("records are taken once")?;
        let mut flows = FlowTable::new(records, room, FlowHasher::new(store.seed()), Arc::new(Share::new(1)))?;
        flows.set_snats((0..SNATS).map(|n| 0x0a02_0001 + n));
        Ok(Self { flows, capacity, filled: 0, refused: 0 })
    }

    /// The n-th flow's tuple, as packets of its client have it.
    fn tuple(n: u32) -> Tuple<u32> {
        Tuple { src: 0x6440_0000 + n, dst: 0x0ac8_0000, src_port: 5555, dst_port: 443, protocol: PROTO_TCP }
    }

    fn flow(n: u32) -> NewFlow<u32> {
        let Tuple { src, dst, src_port, dst_port, protocol } = Self::tuple(n);
        NewFlow {
            client: src,
            vip: dst,
            node: 0x0a01_0001 + n / (PORTS * SNATS),
            client_port: src_port,
            vip_port: dst_port,
            node_port: 30_000,
            snat_port: 1_024 + (n % PORTS) as u16,
            snat: (n / PORTS % SNATS) as u16,
            word: Word { state: State::SynSent, flags: Flags::default(), protocol },
            epoch: 1,
            hop: 0,
            node_slot: 0,
            service: 0,
            load: 0,
        }
    }

    /// Opens and establishes the next flow.
    #[inline]
    fn add(&mut self, now: Now) {
        let flow = Self::flow(self.filled);
        let added = self.flows.insert(&flow, now).and_then(|at| {
            let established = Word { state: State::Established, ..flow.word };
            self.flows.transition(at, flow.word, established)
        });
        match added {
            Ok(()) => self.filled += 1,
            Err(_) => self.refused += 1,
        }
    }

    fn fill(&mut self, percent: u32) {
        let wanted = (u64::from(self.capacity) * u64::from(percent) / 100) as u32;
        while self.filled < wanted && self.refused == 0 {
            self.add(Now::from_secs(1));
        }
    }

    /// Finds a burst of flows as the pipeline does: hashes and index lines first, then records, then the match.
    #[inline(never)]
    fn hit(&mut self, flows: &[u32]) -> u32 {
        let mut hashes = ArrayVec::<(Tuple<u32>, u64), BURST>::new();
        for n in flows {
            let tuple = Self::tuple(*n);
            let hash = self.flows.hash(&tuple);
            self.flows.prefetch_index(hash);
            hashes.push((tuple, hash));
        }
        let mut likely = ArrayVec::<Option<Entry>, BURST>::new();
        likely.extend(hashes.iter().map(|(_, hash)| self.flows.prefetch_record(*hash)));
        let mut found = 0;
        for ((tuple, hash), likely) in hashes.iter().zip(likely) {
            if let Some(entry) = self.flows.find_likely(tuple, *hash, likely) {
                let record = self.flows.record_mut(entry.record);
                record.packets = record.packets.wrapping_add(1);
                found += 1;
            }
        }
        found
    }
}

/// A random flow of those there are.
fn random(state: &mut u64, below: u32) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (((*state >> 32) * u64::from(below)) >> 32) as u32
}

fn hits(table: &mut Table, bursts: usize, clock: &Clock) -> anyhow::Result<f64> {
    let mut state = 7;
    let mut times = Vec::with_capacity(bursts);
    let mut found = 0;
    for _ in 0..bursts {
        let flows: [u32; BURST] = std::array::from_fn(|_| random(&mut state, table.filled));
        let start = timestamp();
        found += black_box(table.hit(&flows));
        times.push(timestamp() - start);
    }
    ensure!(found as usize == bursts * BURST, "{found} of {} flows were found", bursts * BURST);
    times.sort_unstable();
    Ok(clock.ns(times[bursts / 2]) / BURST as f64)
}

/// ns per insertion, the last before the table is this full: medians of blocks.
fn insertions(table: &mut Table, percent: u32, clock: &Clock) -> f64 {
    let wanted = (u64::from(table.capacity) * u64::from(percent) / 100) as u32;
    let mut times = Vec::new();
    while table.filled + (BURST as u32) < wanted && table.refused == 0 {
        let start = timestamp();
        for _ in 0..BURST {
            table.add(Now::from_secs(1));
        }
        times.push(timestamp() - start);
    }
    let last = times.split_off(times.len().saturating_sub(500));
    let mut last = last;
    last.sort_unstable();
    last.get(last.len() / 2).map_or(f64::NAN, |ticks| clock.ns(*ticks) / BURST as f64)
}

pub fn run(quick: bool) -> anyhow::Result<Section> {
    let capacity = if quick { 20_000 } else { 1_000_000 };
    let mut section = Section::new("table", format!("a table of {capacity} established flows as it fills"));
    measure::pin(None)?;
    let clock = Clock::calibrate();
    let (mut hit_lines, mut insert_lines) = (Vec::new(), Vec::new());
    let mut refused = 0;
    let bursts = if quick { 100 } else { 3_000 };
    for run in 0..if quick { 1 } else { 5 } {
        eprintln!("  filling a table, run {}", run + 1);
        let mut table = Table::new(capacity)?;
        let (mut hit, mut insert) = (Vec::new(), Vec::new());
        for percent in OCCUPANCIES {
            insert.push(insertions(&mut table, percent, &clock));
            table.fill(percent);
            hit.push(hits(&mut table, bursts, &clock)?);
        }
        hit_lines.push(hit);
        insert_lines.push(insert);
        refused += table.refused;
    }
    let column = |runs: &[Vec<f64>], at: usize| runs.iter().map(|run| run[at]).collect::<Vec<_>>();
    let counted = if quick { None } else { instructions(&mut section)? };
    let of = |kind: usize, percent: u32| {
        let at = COUNTED.iter().position(|counted| *counted == percent)?;
        let instructions = counted.as_ref()?[kind][at];
        Some(format!("{instructions:.0} instructions"))
    };
    let (mut hits, mut inserts) = (Vec::new(), Vec::new());
    for (at, percent) in OCCUPANCIES.into_iter().enumerate() {
        for (kind, name, runs, line) in
            [(0, "hit", &hit_lines, &mut hits), (1, "insertion", &insert_lines, &mut inserts)]
        {
            let figure = Figure::of_runs(format!("{name} at {percent} %"), &column(runs, at), "ns");
            line.push((f64::from(percent), figure.value));
            section.add(figure.beside(of(kind, percent).unwrap_or_default()));
        }
    }
    section.add(Figure::new("insertions refused up to 95 %", refused as f64, "").at_most(0.0));
    when_full(&mut section)?;
    let labels = Labels {
        title: "The flow table as it fills".into(),
        subtitle: format!("{}; in bursts of {BURST}, random flows", section.title),
        values: "ns per operation".into(),
        along: "% of the established flows there is room for".into(),
    };
    let lines = [Line { name: "hit".into(), points: hits }, Line { name: "insertion".into(), points: inserts }];
    section.charts.push(("scale-table".into(), plot::lines(&labels, Scale::Linear, Scale::Linear, &lines, &[])));
    Ok(section)
}

/// More SYNs than embryos fit, more connections than flows fit: what is counted, and that no established flow goes.
fn when_full(section: &mut Section) -> anyhow::Result<()> {
    const ROOM: Capacity = Capacity { established: 1_024, embryonic: 256 };
    let mut site = Site::new(false, 10, 4);
    let mut member = Member::new(&site, ROOM, 0, 1)?;
    drop(member.pipeline.adopt(site.compiled_view()?));
    member.establish(0..u64::from(ROOM.established), |_, _, _| {})?;
    let mut pool = FramePool::new(PacketMemory::heap(BURST as u32, 2048, 256));
    let mut send = |member: &mut Member, clients: std::ops::Range<u64>, flags| -> anyhow::Result<u64> {
        let mut dropped = 0;
        for n in clients {
            let packet = packets::from_client(member.client(n), flags, n as u32)?;
            let mut burst: Burst = pool.take_with(packet.bytes()).into_iter().collect();
            let mut verdicts = ArrayVec::new();
            member.pipeline.burst(pool.memory(), CLIENT_PORT, false, &mut burst, &mut verdicts, Now::read());
            dropped += u64::from(verdicts.first() == Some(&Verdict::Drop(DropReason::FlowTableFull)));
            burst.into_iter().for_each(|frame| pool.give(frame));
        }
        Ok(dropped)
    };
    // A flood of three times the embryos there is room for.
    let flood = 3 * u64::from(ROOM.embryonic);
    let first = u64::from(ROOM.established);
    send(&mut member, first..first + flood, TcpFlags::Syn)?;
    let counts = member.pipeline.flows_v4().counts();
    ensure!(counts.established == ROOM.established, "a flood took {} flows", ROOM.established - counts.established);
    section.add(
        Figure::new(format!("{flood} SYNs into a full table: embryos evicted"), counts.evicted as f64, "")
            .beside("counter embryos_evicted; no established flow is"),
    );
    let refused = refused_when_full(&mut member, first + flood)?;
    section.add(
        Figure::new("16 connections more: packets refused", refused as f64, "").beside("drop reason flow_table_full"),
    );
    member.pipeline.check_invariants().map_err(anyhow::Error::msg)
}

/// Handshakes beyond the established flows there is room for: the packet that would establish one is refused.
fn refused_when_full(member: &mut Member, first: u64) -> anyhow::Result<u64> {
    let full = |member: &Member| member.stats.drops[DropReason::FlowTableFull as usize].get();
    let before = full(member);
    // `establish` minds packets that are not sent on: here some are not.
    for n in first..first + 16 {
        let _ = member.establish(n..n + 1, |_, _, _| {});
    }
    Ok(full(member) - before)
}

/// Instructions per hit and insertion at [`COUNTED`], from callgrind; `None` without valgrind.
fn instructions(section: &mut Section) -> anyhow::Result<Option<[Vec<f64>; 2]>> {
    let valgrind = std::process::Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !valgrind.is_ok_and(|status| status.success()) {
        section.note("Instructions are not counted: the package valgrind is not installed.");
        return Ok(None);
    }
    let mut counted = [Vec::new(), Vec::new()];
    for (kind, name) in ["hit", "insertion"].into_iter().enumerate() {
        for percent in COUNTED {
            eprintln!("  instructions per {name} at {percent} %");
            let run = |operations: u32| -> anyhow::Result<u64> {
                let mut command = std::process::Command::new("valgrind");
                command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
                command.arg(std::env::current_exe()?).args(children::subcommand());
                command.args(["--counted", &format!("{name}:{percent}:{operations}")]);
                crate::pipeline_bench::collected(command)
            };
            let difference = run(COUNTED_OPERATIONS)?.saturating_sub(run(0)?);
            counted[kind].push(difference as f64 / f64::from(COUNTED_OPERATIONS));
        }
    }
    Ok(Some(counted))
}

/// What runs under valgrind: a table filled so far, and so many operations on it.
pub fn run_counted(counted: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = counted.split(':').collect();
    let [kind, percent, operations] = words[..] else { anyhow::bail!("{counted}: not KIND:PERCENT:OPERATIONS") };
    let (percent, operations): (u32, u32) = (percent.parse()?, operations.parse()?);
    let mut table = Table::new(COUNTED_FLOWS)?;
    // Insertions end at this occupancy, hits begin there.
    let room = if kind == "insertion" { COUNTED_OPERATIONS } else { 0 };
    let wanted = COUNTED_FLOWS * percent / 100 - room;
    while table.filled < wanted {
        table.add(Now::from_secs(1));
    }
    let mut state = 7;
    for _ in 0..operations.div_ceil(BURST as u32) {
        if kind == "insertion" {
            (0..BURST).for_each(|_| table.add(Now::from_secs(1)));
        } else {
            let flows: [u32; BURST] = std::array::from_fn(|_| random(&mut state, table.filled));
            black_box(table.hit(&flows));
        }
    }
    ensure!(table.refused == 0, "{} flows were refused", table.refused);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_all_it_has_room_for_and_finds_them() {
        let mut table = Table::new(5_000).unwrap();
        table.fill(100);
        assert_eq!((table.filled, table.refused), (5_000, 0));
        let flows: [u32; BURST] = std::array::from_fn(|n| n as u32 * 78);
        assert_eq!(table.hit(&flows), BURST as u32);
        let strangers: [u32; BURST] = std::array::from_fn(|n| 5_000 + n as u32);
        assert_eq!(table.hit(&strangers), 0);
        table.flows.check_invariants().unwrap();
        table.add(Now::from_secs(1));
        assert_eq!((table.filled, table.refused), (5_000, 1), "full is full");
    }

    #[test]
    fn a_full_table_evicts_embryos_only_and_says_so() {
        let mut section = Section::new("table", "");
        when_full(&mut section).unwrap();
        let [evicted, refused] = &section.figures[..] else { panic!("{section}") };
        assert_eq!(evicted.value, 512.0, "all but what there is room for");
        assert!(refused.value >= 16.0, "{section}");
    }
}
