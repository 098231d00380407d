//! The figures of all rounds: medians, what the box adds, ratios against the targets; as data for others (JSON, charts).

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::cases::{Case, Effort, Metric, Sample};
use super::goals::{BOX_CONN, BOX_PACKET, Column, GOALS, Goal};
use super::peers::Peer;
use super::table;

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
    /// The round furthest from the median, as a share of it.
    #[must_use]
    pub fn spread(&self) -> f64 {
        let furthest = (self.highest - self.median).max(self.median - self.lowest);
        if self.median == 0.0 { 0.0 } else { (furthest / self.median).abs() }
    }

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
    /// Measured, but too much was left out of every round to say.
    pub undecided: bool,
    pub case: Case,
    /// Those of the two that have no figure.
    pub without: Vec<&'static str>,
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

    /// A column's value in one round.
    fn value(&self, peer: &'static str, column: Column, round: usize) -> Option<f64> {
        let of = |peer, metric| self.samples.get(&(peer, round))?.get(&metric).copied();
        match column {
            Column::Of(metric) => of(peer, metric),
            Column::Best(metric) => {
                let is_twin = |name: &&str| *name == peer || name.strip_suffix("-rps") == Some(peer);
                let twins = self.peers.iter().map(|peer| peer.name()).filter(is_twin);
                // Of two that were to be measured one alone is not known to be the better.
                let values: Option<Vec<f64>> = twins.map(|twin| of(twin, metric)).collect();
                values?.into_iter().reduce(f64::max)
            }
            Column::Added(metric) => Some(of(peer, metric)? - of("direct", metric)?),
        }
    }

    fn figure(&self, peer: &'static str, column: Column) -> Option<Figure> {
        Figure::of((1..=self.rounds).filter_map(|round| self.value(peer, column, round)).collect())
    }

    fn target(&self, goal: &Goal) -> Target {
        let ratio = |round| {
            let (of, to) = (self.value(goal.of.0, goal.of.1, round)?, self.value(goal.to.0, goal.to.1, round)?);
            // What a box adds may come out at less than nothing: that is noise, not a good ratio.
            (of > 0.0 && to > 0.0).then_some(of / to)
        };
        let ratio = Figure::of((1..=self.rounds).filter_map(ratio).collect());
        let met = ratio
            .as_ref()
            .map(|ratio| if goal.at_least { ratio.median >= goal.wanted } else { ratio.median <= goal.wanted });
        let disturbed = |(peer, column): (&'static str, Column)| match column {
            Column::Of(Metric::HalfP99 | Metric::HalfSteadyP99) => {
                self.figure(peer, Column::Of(Metric::HalfLeftOut)).is_some()
            }
            _ => false,
        };
        let undecided = ratio.is_none() && disturbed(goal.of) && disturbed(goal.to);
        let without = [goal.of, goal.to].into_iter().filter(|(peer, column)| self.figure(peer, *column).is_none());
        let (without, case) = (without.map(|(peer, _)| peer).collect(), goal.of.1.metric().case());
        Target { what: goal.what, wanted: goal.wanted, at_least: goal.at_least, ratio, met, undecided, case, without }
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
        table::text(&self.summary(), &self.cases)
    }
}

impl Metric {
    const ALL: [Self; 33] = [
        Self::Pps,
        Self::PpsLost,
        Self::PpsCpu,
        Self::PpsLab,
        Self::LivePps,
        Self::LiveLost,
        Self::Conn,
        Self::ConnP50,
        Self::ConnP99,
        Self::ConnFailed,
        Self::ConnRepeated,
        Self::ConnCpu,
        Self::ConnLab,
        Self::BulkOne,
        Self::BulkMany,
        Self::BulkOneOffloads,
        Self::BulkManyOffloads,
        Self::LatencyMax,
        Self::HalfP50,
        Self::HalfP99,
        Self::HalfSteadyP99,
        Self::HalfAllP99,
        Self::HalfLeftOut,
        Self::HalfLost,
        Self::NinetyP50,
        Self::NinetyP99,
        Self::NinetySteadyP99,
        Self::NinetyLeftOut,
        Self::NinetyLost,
        Self::FlowBytes,
        Self::FlowAllTold,
        Self::FlowMegabytes,
        Self::IdleMegabytes,
    ];
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "unknown CPU".into(), |(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::compare::peers;

    fn report(rounds: &[[(&'static str, f64, f64); 3]]) -> Report {
        let effort = Effort { duration: Duration::from_secs(1), flows: 64, memory_flows: 64 };
        let mut report = Report::new(&peers::all(), &[Case::Pps, Case::Conn], &effort, rounds.len(), None);
        for (round, peers) in (1..).zip(rounds) {
            for (peer, rate, cpu) in peers {
                report.add(round, peer, Ok(Sample::from([(Metric::Pps, *rate), (Metric::PpsLab, *cpu)])));
            }
        }
        report
    }

    fn peer<'a>(summary: &'a Summary, name: &str) -> &'a PeerFigures {
        summary.peers.iter().find(|peer| peer.name == name).expect("a peer")
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        // A machine that halves its speed in the second round changes no ratio.
        let summary = report(&[
            [("direct", 4e6, 200.0), ("bare", 2e6, 500.0), ("penstock", 1.8e6, 550.0)],
            [("direct", 2e6, 400.0), ("bare", 1e6, 1000.0), ("penstock", 0.95e6, 1100.0)],
            [("direct", 4e6, 200.0), ("bare", 2e6, 500.0), ("penstock", 1.6e6, 600.0)],
        ])
        .summary();
        let target = summary
            .targets
            .iter()
            .find(|target| target.what.starts_with("packets/s, Penstock to the bare"))
            .expect("a target");
        let ratio = target.ratio.as_ref().expect("a ratio");
        assert_eq!((ratio.lowest, ratio.median, ratio.highest), (0.8, 0.9, 0.95));
        assert_eq!(target.met, Some(true));
        let added = peer(&summary, "penstock").box_ns_per_packet.as_ref().expect("a figure");
        assert_eq!(added.rounds, [350.0, 700.0, 400.0]);
        assert!(peer(&summary, "direct").box_ns_per_packet.is_none());
    }

    #[test]
    fn nat_is_compared_by_the_better_of_its_twins() {
        let one = [("direct", 4e6, 200.0), ("nftables", 4e5, 900.0), ("penstock", 6e5, 500.0)];
        let mut report = report(&[one, one]);
        let to_nftables = |report: &Report| {
            report
                .summary()
                .targets
                .into_iter()
                .find(|t| t.what.starts_with("packets/s, Penstock to nftables"))
                .unwrap()
        };
        assert!(to_nftables(&report).ratio.is_none(), "the other of the two was to be measured");
        for (round, rate) in [(1, 8e5), (2, 3e5)] {
            report.add(round, "nftables-rps", Ok(Sample::from([(Metric::Pps, rate)])));
        }
        assert_eq!(to_nftables(&report).ratio.expect("a ratio").rounds, [0.75, 1.5]);
        report.peers.retain(|peer| peer.name() != "nftables-rps");
        assert_eq!(to_nftables(&report).ratio.expect("a ratio").rounds, [1.5, 1.5]);
    }

    #[test]
    fn what_was_left_out_of_every_round_is_not_decided() {
        let mut report = report(&[]);
        report.rounds = 2;
        report.cases.push(Case::Latency);
        for (round, peer, p99) in [(1, "bare", Some(10.0)), (1, "penstock", None), (2, "bare", None)] {
            let p99 = p99.map(|p99| (Metric::HalfP99, p99));
            report.add(round, peer, Ok(p99.into_iter().chain([(Metric::HalfLeftOut, 0.3)]).collect()));
        }
        let half = |report: &Report| {
            report.summary().targets.into_iter().find(|t| t.what.starts_with("p99 at half load")).unwrap()
        };
        assert!(half(&report).undecided && report.text().contains("NOT DECIDED"), "{}", report.text());
        let calm = Sample::from([(Metric::HalfP99, 11.0), (Metric::HalfLeftOut, 0.01)]);
        report.add(2, "penstock", Ok(calm.clone()));
        assert!(half(&report).undecided, "no round has both");
        report.add(2, "bare", Ok(calm));
        assert_eq!((half(&report).undecided, half(&report).met), (false, Some(true)));
        assert!(report.text().contains("of 1 round(s) only"), "{}", report.text());
    }

    #[test]
    fn what_costs_less_than_nothing_meets_no_target() {
        let mut report = report(&[]);
        report.rounds = 1;
        for (peer, us) in [("direct", 50.0), ("penstock", 49.0), ("haproxy", 80.0)] {
            report.add(1, peer, Ok(Sample::from([(Metric::ConnLab, us)])));
        }
        let summary = report.summary();
        let target = summary.targets.iter().find(|target| target.what.contains("CPU per connection")).unwrap();
        assert_eq!(
            (target.met, peer(&summary, "penstock").box_us_per_connection.as_ref().unwrap().median),
            (None, -1.0)
        );
        let text = report.text();
        let line = text.lines().find(|line| line.contains("CPU per connection")).expect("a line");
        assert!(line.ends_with("not measured: no round has both figures above 0"), "{line}");
    }

    #[test]
    fn what_failed_is_no_figure() {
        let mut report = report(&[[("direct", 4e6, 200.0), ("kernel", 1e6, 500.0), ("bare", 2e6, 500.0)]]);
        report.add(1, "penstock", Err(anyhow::anyhow!("it does not start")));
        let summary = report.summary();
        assert!(peer(&summary, "penstock").figures.is_empty());
        assert_eq!(summary.targets.iter().filter(|target| target.met.is_some()).count(), 0);
        let text = report.text();
        assert!(text.contains("FAILED: penstock round 1: it does not start"), "{text}");
        // Each target of the two cases has its line.
        let lines: Vec<_> = text.lines().filter(|line| line.contains("not measured: ")).collect();
        let asked = GOALS.iter().filter(|goal| [Case::Pps, Case::Conn].contains(&goal.of.1.metric().case()));
        assert_eq!(lines.len(), asked.count(), "{text}");
        let kernel = lines.iter().find(|line| line.contains("kernel forwarding")).expect("a line");
        assert!(kernel.ends_with("not measured: no figure of penstock"), "{kernel}");
        serde_json::to_string(&summary).expect("figures by name");
    }

    #[test]
    fn a_median_of_an_even_number_is_between() {
        let figure = Figure::of(vec![3.0, 1.0, 2.0, 10.0]).expect("figures");
        assert_eq!((figure.lowest, figure.median, figure.highest), (1.0, 2.5, 10.0));
        assert_eq!(figure.spread(), 3.0);
        assert_eq!(Figure::of(Vec::new()), None);
    }
}
