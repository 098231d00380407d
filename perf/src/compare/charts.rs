//! Pictures of a comparison: a chart for each thing compared, a bar for each peer.

use super::cases::Metric;
use super::report::{Figure, PeerFigures, Summary};
use crate::plot::{self, Bar, Group, Labels};

/// A chart: its file's name, its title, the axis, and a series by name for each metric in it.
type Chart = (&'static str, &'static str, &'static str, &'static [(&'static str, Metric)]);

const CHARTS: &[Chart] = &[
    (
        "compare-packets",
        "Packets per second, UDP, 64 bytes; of AF_XDP senders two good boxes show the sender's limit",
        "packets/s",
        &[("AF_XDP senders", Metric::Pps), ("live frames", Metric::LivePps)],
    ),
    ("compare-connections", "New connections per second, HTTP", "connections/s", &[("connections/s", Metric::Conn)]),
    (
        "compare-connection-time",
        "Time of an HTTP exchange on a new connection, the connect not in it",
        "milliseconds",
        &[("p50", Metric::ConnP50), ("p99", Metric::ConnP99)],
    ),
    (
        "compare-bulk",
        "TCP throughput, MTU-sized packets",
        "Gbit/s",
        &[("one stream", Metric::BulkOne), ("many", Metric::BulkMany)],
    ),
    (
        "compare-latency",
        "Latency at a half and nine tenths of each one's own maximum, p99",
        "microseconds, without the generator's own pauses",
        &[("at 50 %", Metric::HalfP99), ("at 90 %", Metric::NinetyP99)],
    ),
    (
        "compare-latency-steady",
        "The same within most thousands of packets: rare stalls, a box's own too, are not in it",
        "microseconds, median of the thousands' p99, without the generator's own pauses",
        &[("at 50 %", Metric::HalfSteadyP99), ("at 90 %", Metric::NinetySteadyP99)],
    ),
    ("compare-memory", "Memory per flow", "bytes", &[("grown", Metric::FlowBytes), ("all told", Metric::FlowAllTold)]),
];

impl From<&Figure> for Bar {
    fn from(figure: &Figure) -> Self {
        Self { value: figure.median, lowest: figure.lowest, highest: figure.highest }
    }
}

/// The charts there are figures for.
#[must_use]
pub fn of(summary: &Summary) -> Vec<(&'static str, String)> {
    CHARTS.iter().filter_map(|chart| draw(summary, chart).map(|svg| (chart.0, svg))).collect()
}

fn draw(summary: &Summary, (_, title, values, series): &Chart) -> Option<String> {
    let has_one = |peer: &&PeerFigures| series.iter().any(|(_, metric)| peer.figures.contains_key(metric));
    let group = |peer: &PeerFigures| Group {
        name: peer.name.into(),
        bars: series.iter().map(|(_, metric)| peer.figures.get(metric).map(Bar::from)).collect(),
    };
    let groups: Vec<Group> = summary.peers.iter().filter(has_one).map(group).collect();
    if groups.is_empty() {
        return None;
    }
    let labels = Labels {
        title: (*title).into(),
        subtitle: format!(
            "{}, {} cores, Linux {}; medians of {} rounds, lowest and highest",
            summary.cpu, summary.cores, summary.kernel, summary.rounds
        ),
        values: (*values).into(),
        along: String::new(),
    };
    let names: Vec<&str> = series.iter().map(|(name, _)| *name).collect();
    Some(plot::bars(&labels, &names, &groups))
}
