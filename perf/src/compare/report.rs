//! The figures as a table, against the targets, and as data for others (JSON, charts).

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use super::cases::{Case, Effort, Metric, Sample};
use super::peers::Peer;

/// Everything measured, and with what.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub version: &'static str,
    pub cpu: String,
    pub cores: u16,
    pub kernel: String,
    pub seconds: f64,
    pub flows: u32,
    pub memory_flows: u32,
    pub rounds: usize,
    /// The share of the machine that others took before the start, if it was much.
    pub foreign_load: Option<f64>,
    pub peers: Vec<PeerFigures>,
    pub targets: Vec<Target>,
}

/// One peer's part.
#[derive(Debug, Clone, Serialize)]
pub struct PeerFigures {
    pub name: &'static str,
    pub what: &'static str,
    pub cannot: &'static str,
    /// Why it is not here.
    pub missing: Option<String>,
    /// Cases it is not measured in, and why.
    pub unfit: BTreeMap<String, &'static str>,
    pub figures: BTreeMap<Metric, Figure>,
    /// What a box costs beside the traffic itself: ns per packet and us per connection.
    pub box_ns_per_packet: Option<Figure>,
    pub box_us_per_connection: Option<Figure>,
    pub failures: Vec<String>,
}

/// A median over rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
    /// By round.
    pub rounds: Vec<f64>,
}

impl Figure {
    fn of(rounds: Vec<f64>) -> Option<Self> {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, lowest, highest, rounds })
    }
}

/// What shall be reached, and was or not.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    pub what: &'static str,
    pub wanted: f64,
    pub at_least: bool,
    pub ratio: Option<Figure>,
    /// `None`: not measured.
    pub met: Option<bool>,
}

/// Collects measurements.
pub struct Report {
    peers: Vec<&'static dyn Peer>,
    cases: Vec<Case>,
    effort: Effort,
    rounds: usize,
    foreign_load: Option<f64>,
    samples: BTreeMap<(&'static str, usize), Sample>,
    failures: Vec<(&'static str, String)>,
}

/// A ratio to look at: a metric of one peer by that of another.
struct Goal {
    what: &'static str,
    of: (&'static str, Column),
    to: (&'static str, Column),
    wanted: f64,
    at_least: bool,
}

/// A column of the table: measured, or what a box adds to what was measured without one.
#[derive(Debug, Clone, Copy)]
enum Column {
    Of(Metric),
    Added(Metric),
}

const BOX_PACKET: Column = Column::Added(Metric::PpsCpu);
const BOX_CONN: Column = Column::Added(Metric::ConnCpu);

#[rustfmt::skip]
const GOALS: [Goal; 13] = [
    Goal { what: "packets/s, Penstock to the bare forwarder", of: ("penstock", Column::Of(Metric::Pps)), to: ("bare", Column::Of(Metric::Pps)), wanted: 0.90, at_least: true },
    Goal { what: "packets/s, bare forwarder to testpmd", of: ("bare", Column::Of(Metric::Pps)), to: ("testpmd", Column::Of(Metric::Pps)), wanted: 0.95, at_least: true },
    Goal { what: "packets/s, Penstock to kernel forwarding without NAT", of: ("penstock", Column::Of(Metric::Pps)), to: ("kernel", Column::Of(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "packets/s, Penstock to nftables NAT", of: ("penstock", Column::Of(Metric::Pps)), to: ("nftables", Column::Of(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "packets/s, Penstock to iptables NAT", of: ("penstock", Column::Of(Metric::Pps)), to: ("iptables", Column::Of(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "packets/s, Penstock to quilkin", of: ("penstock", Column::Of(Metric::Pps)), to: ("quilkin", Column::Of(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to nftables NAT", of: ("penstock", Column::Of(Metric::Conn)), to: ("nftables", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to iptables NAT", of: ("penstock", Column::Of(Metric::Conn)), to: ("iptables", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to HAProxy", of: ("penstock", Column::Of(Metric::Conn)), to: ("haproxy", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to nginx", of: ("penstock", Column::Of(Metric::Conn)), to: ("nginx", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "the box's CPU per connection, Penstock to HAProxy", of: ("penstock", BOX_CONN), to: ("haproxy", BOX_CONN), wanted: 1.0 / 3.0, at_least: false },
    Goal { what: "p99 of HTTP requests, Penstock to nftables NAT", of: ("penstock", Column::Of(Metric::ConnP99)), to: ("nftables", Column::Of(Metric::ConnP99)), wanted: 1.0, at_least: false },
    Goal { what: "p99 at half load, Penstock to the bare forwarder", of: ("penstock", Column::Of(Metric::HalfP99)), to: ("bare", Column::Of(Metric::HalfP99)), wanted: 1.2, at_least: false },
];

impl Report {
    #[must_use]
    pub fn new(
        peers: &[&'static dyn Peer],
        cases: &[Case],
        effort: &Effort,
        rounds: usize,
        foreign_load: Option<f64>,
    ) -> Self {
        Self {
            peers: peers.to_vec(),
            cases: cases.to_vec(),
            effort: *effort,
            rounds,
            foreign_load,
            samples: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// Takes a measurement in.
    pub fn add(&mut self, round: usize, peer: &'static str, outcome: Result<Sample>) {
        match outcome {
            Ok(mut sample) => self.samples.entry((peer, round)).or_default().append(&mut sample),
            Err(error) => self.failures.push((peer, format!("round {round}: {error:#}"))),
        }
    }

    #[must_use]
    pub fn has_figures(&self) -> bool {
        !self.samples.is_empty()
    }

    /// A measurement in a few words, for progress lines.
    #[must_use]
    pub fn in_brief(sample: &Sample) -> String {
        let words: Vec<String> =
            sample.iter().map(|(metric, value)| format!("{} {}", metric.short(), number(*value))).collect();
        words.join(", ")
    }

    /// A column's value in one round.
    fn value(&self, peer: &'static str, column: Column, round: usize) -> Option<f64> {
        let of = |peer, metric| self.samples.get(&(peer, round))?.get(&metric).copied();
        match column {
            Column::Of(metric) => of(peer, metric),
            Column::Added(metric) => Some(of(peer, metric)? - of("direct", metric)?),
        }
    }

    fn figure(&self, peer: &'static str, column: Column) -> Option<Figure> {
        Figure::of((1..=self.rounds).filter_map(|round| self.value(peer, column, round)).collect())
    }

    fn target(&self, goal: &Goal) -> Target {
        let ratio = |round| {
            let (of, to) = (self.value(goal.of.0, goal.of.1, round)?, self.value(goal.to.0, goal.to.1, round)?);
            (to > 0.0).then_some(of / to)
        };
        let ratio = Figure::of((1..=self.rounds).filter_map(ratio).collect());
        let met = ratio
            .as_ref()
            .map(|ratio| if goal.at_least { ratio.median >= goal.wanted } else { ratio.median <= goal.wanted });
        Target { what: goal.what, wanted: goal.wanted, at_least: goal.at_least, ratio, met }
    }

    fn peer_figures(&self, peer: &'static dyn Peer) -> PeerFigures {
        let name = peer.name();
        let added = |column| if name == "direct" { None } else { self.figure(name, column) };
        let unfit = self.cases.iter().filter_map(|case| Some((case.to_string(), peer.unfit(*case)?)));
        PeerFigures {
            name,
            what: peer.what(),
            cannot: peer.cannot(),
            missing: peer.missing(),
            unfit: unfit.collect(),
            figures: Metric::ALL.iter().filter_map(|m| Some((*m, self.figure(name, Column::Of(*m))?))).collect(),
            box_ns_per_packet: added(BOX_PACKET),
            box_us_per_connection: added(BOX_CONN),
            failures: self.failures.iter().filter(|(of, _)| *of == name).map(|(_, why)| why.clone()).collect(),
        }
    }

    /// All of it, as data.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            version: env!("CARGO_PKG_VERSION"),
            cpu: cpu_name(),
            cores: crate::config::cores(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            seconds: self.effort.duration.as_secs_f64(),
            flows: self.effort.flows,
            memory_flows: self.effort.memory_flows,
            rounds: self.rounds,
            foreign_load: self.foreign_load,
            peers: self.peers.iter().map(|peer| self.peer_figures(*peer)).collect(),
            targets: GOALS.iter().map(|goal| self.target(goal)).collect(),
        }
    }

    /// All of it, for people.
    #[must_use]
    pub fn text(&self) -> String {
        text(&self.summary(), &self.cases)
    }
}

/// Writing to a String can't fail: results of `write!` are dropped.
fn text(summary: &Summary, cases: &[Case]) -> String {
    let Summary { cpu, cores, kernel, seconds, rounds, flows, .. } = summary;
    let mut text =
        format!("\n{cpu}, {cores} cores, Linux {kernel}; {rounds} rounds of {seconds} s, {flows} UDP flows\n");
    if let Some(load) = summary.foreign_load {
        let _ = writeln!(
            text,
            "NOTE: other work took {:.0} % of the machine before the start: rates and CPU figures are noise, ratios less so",
            load * 100.0
        );
    }
    for case in cases {
        let columns = case.columns();
        let _ = write!(text, "\n{:<11}", case.to_string());
        for (heading, _) in &columns {
            let _ = write!(text, "{heading:>24}");
        }
        text.push('\n');
        for peer in &summary.peers {
            line(&mut text, peer, *case, &columns);
        }
    }
    let _ = writeln!(text, "\ntargets");
    for target in &summary.targets {
        let Some(ratio) = &target.ratio else { continue };
        let met = if target.met == Some(true) { "met" } else { "MISSED" };
        let sign = if target.at_least { ">=" } else { "<=" };
        let spread = format!("[{:.2} .. {:.2}]", ratio.lowest, ratio.highest);
        let _ = writeln!(
            text,
            "  {:<58} {:>6.2} {spread:<16} {sign} {:.2}  {met}",
            target.what, ratio.median, target.wanted
        );
    }
    let _ = writeln!(text, "\nwhat each is, and cannot do");
    for peer in &summary.peers {
        let _ = writeln!(text, "  {:<10} {}\n  {:<10} cannot: {}", peer.name, peer.what, "", peer.cannot);
    }
    for peer in &summary.peers {
        for failure in &peer.failures {
            let _ = writeln!(text, "FAILED: {} {failure}", peer.name);
        }
    }
    text
}

fn line(text: &mut String, peer: &PeerFigures, case: Case, columns: &[(&str, Cell)]) {
    let _ = write!(text, "{:<11}", peer.name);
    if let Some(why) = &peer.missing {
        let _ = writeln!(text, "  not available: {why}");
        return;
    }
    if let Some(why) = peer.unfit.get(&case.to_string()) {
        let _ = writeln!(text, "  - ({why})");
        return;
    }
    for (_, cell) in columns {
        let figure = match cell {
            Cell::Of(metric) => peer.figures.get(metric),
            Cell::BoxPacket => peer.box_ns_per_packet.as_ref(),
            Cell::BoxConn => peer.box_us_per_connection.as_ref(),
        };
        let shown = figure.map_or("-".to_owned(), |figure| {
            format!("{} [{}..{}]", number(figure.median), number(figure.lowest), number(figure.highest))
        });
        let _ = write!(text, "{shown:>24}");
    }
    text.push('\n');
}

/// What a column of a case's table shows.
enum Cell {
    Of(Metric),
    BoxPacket,
    BoxConn,
}

impl Case {
    fn columns(self) -> Vec<(&'static str, Cell)> {
        match self {
            Self::Pps => vec![
                ("packets/s", Cell::Of(Metric::Pps)),
                ("not carried, share", Cell::Of(Metric::PpsLost)),
                ("machine ns/packet", Cell::Of(Metric::PpsCpu)),
                ("of it the box's", Cell::BoxPacket),
            ],
            Self::Conn => vec![
                ("connections/s", Cell::Of(Metric::Conn)),
                ("p50 ms", Cell::Of(Metric::ConnP50)),
                ("p99 ms", Cell::Of(Metric::ConnP99)),
                ("failed", Cell::Of(Metric::ConnFailed)),
                ("machine us/connection", Cell::Of(Metric::ConnCpu)),
                ("of it the box's", Cell::BoxConn),
            ],
            Self::Bulk => vec![
                ("1 stream Gbit/s", Cell::Of(Metric::BulkOne)),
                ("16 streams", Cell::Of(Metric::BulkMany)),
                ("1, offloads on", Cell::Of(Metric::BulkOneOffloads)),
                ("16, offloads on", Cell::Of(Metric::BulkManyOffloads)),
            ],
            Self::Latency => vec![
                ("maximum, answers/s", Cell::Of(Metric::LatencyMax)),
                ("p50 us at 50 %", Cell::Of(Metric::HalfP50)),
                ("p99 us at 50 %", Cell::Of(Metric::HalfP99)),
                ("p50 us at 90 %", Cell::Of(Metric::NinetyP50)),
                ("p99 us at 90 %", Cell::Of(Metric::NinetyP99)),
                ("lost at 90 %, share", Cell::Of(Metric::NinetyLost)),
            ],
            Self::Memory => vec![
                ("before, MB", Cell::Of(Metric::IdleMegabytes)),
                ("grown by, MB", Cell::Of(Metric::FlowMegabytes)),
                ("bytes/flow", Cell::Of(Metric::FlowBytes)),
            ],
        }
    }
}

impl Metric {
    const ALL: [Self; 21] = [
        Self::Pps,
        Self::PpsLost,
        Self::PpsCpu,
        Self::Conn,
        Self::ConnP50,
        Self::ConnP99,
        Self::ConnFailed,
        Self::ConnCpu,
        Self::BulkOne,
        Self::BulkMany,
        Self::BulkOneOffloads,
        Self::BulkManyOffloads,
        Self::LatencyMax,
        Self::HalfP50,
        Self::HalfP99,
        Self::NinetyP50,
        Self::NinetyP99,
        Self::NinetyLost,
        Self::FlowBytes,
        Self::FlowMegabytes,
        Self::IdleMegabytes,
    ];

    fn short(self) -> &'static str {
        match self {
            Self::Pps => "packets/s",
            Self::PpsLost => "lost",
            Self::PpsCpu => "machine ns",
            Self::Conn => "connections/s",
            Self::ConnP50 | Self::HalfP50 => "p50",
            Self::ConnP99 | Self::HalfP99 => "p99",
            Self::ConnFailed => "failed",
            Self::ConnCpu => "machine us",
            Self::BulkOne => "Gbit/s",
            Self::BulkMany => "many",
            Self::BulkOneOffloads => "offloads",
            Self::BulkManyOffloads => "many",
            Self::LatencyMax => "most",
            Self::NinetyP50 => "at 90 % p50",
            Self::NinetyP99 => "p99",
            Self::NinetyLost => "lost",
            Self::FlowBytes => "bytes/flow",
            Self::FlowMegabytes => "grown MB",
            Self::IdleMegabytes => "before MB",
        }
    }
}

/// Three digits that matter, thousands apart.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 10_000.0 {
        grouped(value)
    } else if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude == 0.0 {
        "0".to_owned()
    } else {
        format!("{value:.2}")
    }
}

/// 1,234,567
fn grouped(value: f64) -> String {
    let mut digits = format!("{:.0}", value.abs());
    let mut at = digits.len();
    while at > 3 {
        at -= 3;
        digits.insert(at, ',');
    }
    if value < 0.0 { format!("-{digits}") } else { digits }
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "unknown CPU".into(), |(_, name)| name.to_owned())
}
