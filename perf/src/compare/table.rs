//! The figures for people.

use std::fmt::Write;

use super::cases::{Case, Metric, Sample};
use super::report::{PeerFigures, Summary, Target};
use crate::traffic::track::MOST_DISTURBED;

/// Writing to a String can't fail: results of `write!` are dropped.
pub fn text(summary: &Summary, cases: &[Case]) -> String {
    let Summary { cpu, cores, kernel, seconds, rounds, flows, .. } = summary;
    let mut text =
        format!("\n{cpu}, {cores} cores, Linux {kernel}; {rounds} rounds of {seconds} s, {flows} UDP flows\n");
    if let Some(load) = summary.foreign_load {
        let _ = writeln!(
            text,
            "NOTE: other work took {:.0} % of the machine before the start: rates and the machine's times are noise, ratios and the lab's times less so",
            load * 100.0
        );
    }
    for case in cases {
        let columns = case.columns();
        let _ = write!(text, "\n{:<13}", case.to_string());
        for (heading, _) in &columns {
            let _ = write!(text, "{heading:>18}");
        }
        text.push('\n');
        if matches!(case, Case::Pps | Case::Live) {
            let _ = writeln!(
                text,
                "  (the kernel's peers work on their sender's core, with RPS on the box's; all others on both)"
            );
        }
        for peer in &summary.peers {
            line(&mut text, peer, *case, &columns);
        }
    }
    let _ = writeln!(text, "\ntargets");
    for target in summary.targets.iter().filter(|target| cases.contains(&target.case)) {
        target_line(&mut text, target, *rounds);
    }
    let _ = writeln!(text, "\nwhat each is, and cannot do");
    for peer in &summary.peers {
        let _ = writeln!(text, "  {:<12} {}\n  {:<12} cannot: {}", peer.name, peer.what, "", peer.cannot);
    }
    for peer in &summary.peers {
        for failure in &peer.failures {
            let _ = writeln!(text, "FAILED: {} {failure}", peer.name);
        }
    }
    text
}

fn target_line(text: &mut String, target: &Target, rounds: usize) {
    let sign = if target.at_least { ">=" } else { "<=" };
    let Some(ratio) = &target.ratio else {
        if target.undecided {
            let most = MOST_DISTURBED * 100.0;
            let why = format!(
                "NOT DECIDED: pauses of the generator touched more than {most:.0} % of the packets, or too many were lost"
            );
            let _ = writeln!(text, "  {:<58} {why}", target.what);
        } else {
            let why = match &target.without[..] {
                [] => "no round has both figures above 0".to_owned(),
                without => format!("no figure of {}", without.join(" and ")),
            };
            let _ = writeln!(text, "  {:<58} not measured: {why}", target.what);
        }
        return;
    };
    let met = if target.met == Some(true) { "met" } else { "MISSED" };
    let between = ratio.lowest < target.wanted && target.wanted < ratio.highest;
    let but = if between { ", not in every round" } else { "" };
    let of = ratio.rounds.len();
    let fewer = if of < rounds { format!(", of {of} round(s) only") } else { String::new() };
    let spread = format!("[{:.2} .. {:.2}]", ratio.lowest, ratio.highest);
    let _ = writeln!(
        text,
        "  {:<58} {:>6.2} {spread:<16} {sign} {:.2}  {met}{but}{fewer}",
        target.what, ratio.median, target.wanted
    );
}

fn line(text: &mut String, peer: &PeerFigures, case: Case, columns: &[(&str, Cell)]) {
    let _ = write!(text, "{:<13}", peer.name);
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
        let shown = figure
            .map_or("-".to_owned(), |figure| format!("{} ±{:.0}%", number(figure.median), figure.spread() * 100.0));
        let _ = write!(text, "{shown:>18}");
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
                ("lost, share", Cell::Of(Metric::PpsLost)),
                ("machine ns/packet", Cell::Of(Metric::PpsCpu)),
                ("lab's ns/packet", Cell::Of(Metric::PpsLab)),
                ("of it the box's", Cell::BoxPacket),
            ],
            Self::Live => vec![("packets/s", Cell::Of(Metric::LivePps)), ("lost, share", Cell::Of(Metric::LiveLost))],
            Self::Conn => vec![
                ("connections/s", Cell::Of(Metric::Conn)),
                ("p50 ms", Cell::Of(Metric::ConnP50)),
                ("p99 ms", Cell::Of(Metric::ConnP99)),
                ("failed", Cell::Of(Metric::ConnFailed)),
                ("sent again/conn", Cell::Of(Metric::ConnRepeated)),
                ("machine us/conn", Cell::Of(Metric::ConnCpu)),
                ("lab's us/conn", Cell::Of(Metric::ConnLab)),
                ("of it the box's", Cell::BoxConn),
            ],
            Self::Bulk => vec![
                ("1 stream Gbit/s", Cell::Of(Metric::BulkOne)),
                ("16 streams", Cell::Of(Metric::BulkMany)),
                ("1, offloads on", Cell::Of(Metric::BulkOneOffloads)),
                ("16, offloads on", Cell::Of(Metric::BulkManyOffloads)),
            ],
            Self::Latency => vec![
                ("most answers/s", Cell::Of(Metric::LatencyMax)),
                ("p50 us at 50 %", Cell::Of(Metric::HalfP50)),
                ("p99 of 1000s", Cell::Of(Metric::HalfSteadyP99)),
                ("p99 us at 50 %", Cell::Of(Metric::HalfP99)),
                ("left out, share", Cell::Of(Metric::HalfLeftOut)),
                ("lost, share", Cell::Of(Metric::HalfLost)),
                ("p99 of all", Cell::Of(Metric::HalfAllP99)),
                ("p50 us at 90 %", Cell::Of(Metric::NinetyP50)),
                ("p99 of 1000s", Cell::Of(Metric::NinetySteadyP99)),
                ("p99 us at 90 %", Cell::Of(Metric::NinetyP99)),
                ("left out, share", Cell::Of(Metric::NinetyLeftOut)),
                ("lost, share", Cell::Of(Metric::NinetyLost)),
            ],
            Self::Memory => vec![
                ("before, MB", Cell::Of(Metric::IdleMegabytes)),
                ("grown by, MB", Cell::Of(Metric::FlowMegabytes)),
                ("bytes/flow", Cell::Of(Metric::FlowBytes)),
                ("all told", Cell::Of(Metric::FlowAllTold)),
            ],
        }
    }
}

impl Metric {
    /// Where it is measured.
    pub fn case(self) -> Case {
        match self {
            Self::Pps | Self::PpsLost | Self::PpsCpu | Self::PpsLab => Case::Pps,
            Self::LivePps | Self::LiveLost => Case::Live,
            Self::Conn
            | Self::ConnP50
            | Self::ConnP99
            | Self::ConnFailed
            | Self::ConnRepeated
            | Self::ConnCpu
            | Self::ConnLab => Case::Conn,
            Self::BulkOne | Self::BulkMany | Self::BulkOneOffloads | Self::BulkManyOffloads => Case::Bulk,
            Self::FlowBytes | Self::FlowAllTold | Self::FlowMegabytes | Self::IdleMegabytes => Case::Memory,
            _ => Case::Latency,
        }
    }

    /// For progress lines.
    pub fn short(self) -> &'static str {
        match self {
            Self::Pps | Self::LivePps => "packets/s",
            Self::PpsLost | Self::LiveLost | Self::HalfLost | Self::NinetyLost => "lost",
            Self::PpsCpu => "machine ns",
            Self::PpsLab => "lab's ns",
            Self::Conn => "connections/s",
            Self::ConnP50 | Self::HalfP50 => "p50",
            Self::ConnP99 | Self::HalfP99 => "p99",
            Self::ConnFailed => "failed",
            Self::ConnRepeated => "sent again",
            Self::ConnCpu => "machine us",
            Self::ConnLab => "lab's us",
            Self::BulkOne => "Gbit/s",
            Self::BulkMany => "many",
            Self::BulkOneOffloads => "offloads",
            Self::BulkManyOffloads => "many",
            Self::HalfSteadyP99 | Self::NinetySteadyP99 => "p99 of 1000s",
            Self::HalfAllP99 => "all's p99",
            Self::HalfLeftOut | Self::NinetyLeftOut => "left out",
            Self::LatencyMax => "most",
            Self::NinetyP50 => "at 90 % p50",
            Self::NinetyP99 => "p99",
            Self::FlowBytes => "bytes/flow",
            Self::FlowAllTold => "all told",
            Self::FlowMegabytes => "grown MB",
            Self::IdleMegabytes => "before MB",
        }
    }
}

/// A measurement in a few words, for progress lines.
#[must_use]
pub fn in_brief(sample: &Sample) -> String {
    let words: Vec<String> =
        sample.iter().map(|(metric, value)| format!("{} {}", metric.short(), number(*value))).collect();
    words.join(", ")
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

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.1234, 12.34, 123.4, 9999.0, 1_234_567.8, -20_000.0].map(number);
        assert_eq!(shown, ["0", "0.12", "12.3", "123", "9999", "1,234,568", "-20,000"]);
    }
}
