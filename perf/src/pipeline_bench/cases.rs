//! The cases, and how one is run.

use arrayvec::ArrayVec;
use penstock_configs::desired::{Mode, Protocol};
use penstock_dataplane::io::{BURST, Frame, PacketMemory};
use penstock_dataplane::verdict::{PortId, Verdict};

use super::PipelineArgs;
use super::bare::Bare;
use super::churn::{Churn, Opening};
use super::hits::{Hits, Way};
use super::measure::{BLOCK, Bench, Clock, Spread, Target, Traffic};
use super::report::Row;
use super::whole::{self, WholeBare, WholeWorker};
use super::world::{Plan, World};

/// What a case's packets do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Hit(Way),
    /// New flows, the pool of embryos never full.
    New,
    /// New flows, each evicting the oldest embryo.
    Flood,
    Churn,
    Worker,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub kind: Kind,
    pub plan: Plan,
}

impl Case {
    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Hit(Way::Forward) => "hit-forward",
            Kind::Hit(Way::Reverse) => "hit-reverse",
            Kind::Hit(Way::Both) => "hit",
            Kind::New => "new",
            Kind::Flood => "flood",
            Kind::Churn => "churn",
            Kind::Worker => "worker",
        };
        let Plan { v6, protocol, mode, flows, services } = self.plan;
        let mode = match mode {
            Mode::Nat => "nat",
            Mode::Dnat => "dnat",
            Mode::Dsr => "dsr",
        };
        let udp = if protocol == Protocol::Udp { "-udp" } else { "" };
        format!("{kind}{udp} {mode}{} {} flows {services} services", if v6 { 6 } else { 4 }, short(flows))
    }
}

fn short(n: u32) -> String {
    match n {
        _ if n >= 1_000_000 && n.is_multiple_of(1_000_000) => format!("{}M", n / 1_000_000),
        _ if n >= 1_000 && n.is_multiple_of(1_000) => format!("{}k", n / 1_000),
        _ => n.to_string(),
    }
}

/// Services where their number is not what is looked at.
const SERVICES: u32 = 100;

pub fn list(flows: &[u32]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add_of = |kind, protocol, v6, mode, flows, services| {
        cases.push(Case { kind, plan: Plan { v6, protocol, mode, flows, services } });
    };
    for &flows in flows {
        add_of(Kind::Hit(Way::Both), Protocol::Udp, false, Mode::Nat, flows, SERVICES);
        let mut add = |kind, v6, mode, flows, services| add_of(kind, Protocol::Tcp, v6, mode, flows, services);
        for way in [Way::Forward, Way::Reverse, Way::Both] {
            add(Kind::Hit(way), false, Mode::Nat, flows, SERVICES);
        }
        add(Kind::Hit(Way::Both), true, Mode::Nat, flows, SERVICES);
        add(Kind::Hit(Way::Both), false, Mode::Dnat, flows, SERVICES);
        add(Kind::Hit(Way::Forward), false, Mode::Dsr, flows, SERVICES);
        for services in [1, 10_000] {
            add(Kind::Hit(Way::Both), false, Mode::Nat, flows, services);
        }
        add(Kind::New, false, Mode::Nat, flows, SERVICES);
        add(Kind::New, true, Mode::Nat, flows, SERVICES);
        add(Kind::New, false, Mode::Dnat, flows, SERVICES);
        add(Kind::New, false, Mode::Nat, flows, 10_000);
        add(Kind::Flood, false, Mode::Nat, flows, SERVICES);
        add(Kind::Churn, false, Mode::Nat, flows, SERVICES);
        add(Kind::Worker, false, Mode::Nat, flows, SERVICES);
    }
    cases
}

/// Runs a case: the pipeline and the limit in turn.
pub fn run(case: &Case, args: &PipelineArgs, clock: &Clock) -> anyhow::Result<Row> {
    let mut world = World::build(case.plan, args.flow_file.as_deref())?;
    let mut bare = Limit(Bare::new(case.plan)?);
    let blocks = (args.packets / BLOCK).max(1);
    match case.kind {
        Kind::Hit(way) => {
            let mut hits = Hits::of(&mut world, way);
            measure(case, args.runs, clock, blocks, &mut world, &mut bare, &mut hits, None)
        }
        Kind::New => {
            let mut opening = Opening::of(&world);
            let blocks = blocks.min(Opening::BLOCKS);
            measure(case, args.runs, clock, blocks, &mut world, &mut bare, &mut opening, Some(World::expire))
        }
        Kind::Flood => {
            let mut opening = Opening::of(&world);
            Bench::new()?.run(clock, Opening::BLOCKS + 2, &mut world, &mut opening, true)?;
            measure(case, args.runs, clock, blocks, &mut world, &mut bare, &mut opening, None)
        }
        Kind::Churn => {
            let mut churn = Churn::of(&mut world);
            let blocks = blocks.min(Churn::BLOCKS);
            measure(case, args.runs, clock, blocks, &mut world, &mut bare, &mut churn, Some(World::expire))
        }
        Kind::Worker => measure_worker(case, args, clock, world, bare.0),
    }
}

#[allow(clippy::too_many_arguments, reason = "one call site per kind of case")]
fn measure(
    case: &Case,
    runs: usize,
    clock: &Clock,
    blocks: usize,
    world: &mut World,
    bare: &mut Limit,
    traffic: &mut impl Traffic,
    forget: Option<fn(&mut World)>,
) -> anyhow::Result<Row> {
    let mut bench = Bench::new()?;
    let (mut ours, mut limits) = (Vec::new(), Vec::new());
    // The first run of each warms up.
    for run in 0..=runs {
        let limit = bench.run(clock, blocks, bare, traffic, false)?;
        let own = bench.run(clock, blocks, world, traffic, true)?;
        if let Some(forget) = forget {
            forget(world);
            traffic.expired();
        }
        if run > 0 {
            limits.push(limit);
            ours.push(own);
        }
    }
    // The last run is the pipeline's.
    Ok(Row { work: bench.work, ..row(case, &ours, &limits, clock) })
}

fn measure_worker(case: &Case, args: &PipelineArgs, clock: &Clock, world: World, bare: Bare) -> anyhow::Result<Row> {
    let blocks = (args.packets / whole::PACKETS_PER_BLOCK).max(1);
    let mut bare = WholeBare::new(bare, &world);
    let mut worker = WholeWorker::new(world)?;
    let (mut ours, mut limits) = (Vec::new(), Vec::new());
    for run in 0..=args.runs {
        let (limit, own) = (bare.run(clock, blocks), worker.run(clock, blocks)?);
        if run > 0 {
            limits.push(limit);
            ours.push(own);
        }
    }
    Ok(row(case, &ours, &limits, clock))
}

fn row(case: &Case, ours: &[f64], limits: &[f64], clock: &Clock) -> Row {
    let ratios: Vec<f64> = ours.iter().zip(limits).map(|(own, limit)| own / limit).collect();
    let ns = Spread::of(ours);
    Row {
        case: case.name(),
        ns,
        mpps: 1000.0 / ns.median,
        ticks: ns.median * clock.ticks_per_ns,
        bare_ns: Spread::of(limits),
        ratio: Spread::of(&ratios),
        work: None,
    }
}

impl Target for World {
    #[inline]
    fn burst(
        &mut self,
        memory: &PacketMemory,
        from: PortId,
        frames: &mut [Frame],
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        self.pipeline.burst(memory, from, false, frames, verdicts, self.now);
    }
}

struct Limit(Bare);

impl Target for Limit {
    #[inline]
    fn burst(
        &mut self,
        memory: &PacketMemory,
        _: PortId,
        frames: &mut [Frame],
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        self.0.burst(memory, frames, verdicts);
    }
}
