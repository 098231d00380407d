//! The table, and the same figures as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::plot::{self, Bar, Group, Labels};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    services: usize,
    nodes: usize,
    local: usize,
    figures: Vec<Figure>,
}

#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    /// At most this much; none: shown for the rest to be understood.
    target: Option<f64>,
    met: Option<bool>,
}

impl Report {
    pub(super) fn new(services: usize, nodes: usize, local: usize) -> Self {
        Self { version: env!("CARGO_PKG_VERSION"), services, nodes, local, figures: Vec::new() }
    }

    pub(super) fn target(&mut self, name: &'static str, value: f64, unit: &'static str, target: f64) {
        self.figures.push(Figure { name, value, unit, target: Some(target), met: Some(value <= target) });
    }

    pub(super) fn beside(&mut self, name: &'static str, value: f64, unit: &'static str) {
        self.figures.push(Figure { name, value, unit, target: None, met: None });
    }

    pub(super) fn missed(&self) -> Vec<&'static str> {
        self.figures.iter().filter(|figure| figure.met == Some(false)).map(|figure| figure.name).collect()
    }

    pub(super) fn table(&self) -> String {
        let Self { services, nodes, local, .. } = self;
        let mut text = format!("\n{services} Services ({local} of policy Local) over {nodes} nodes\n\n");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<58} {:>10} {:<3} {:>8}  met", "figure", "", "", "target");
        for Figure { name, value, unit, target, met } in &self.figures {
            let digits = if value.fract() == 0.0 { 0 } else { 2 };
            let target = target.map_or(String::new(), |target| format!("{target}"));
            let met = met.map_or("", |met| if met { "yes" } else { "NO" });
            let _ = writeln!(text, "{name:<58} {value:>10.digits$} {unit:<3} {target:>8}  {met}");
        }
        text
    }

    /// Each target's figure, as a share of what it may be: their units differ.
    pub(super) fn chart(&self) -> String {
        let Self { services, nodes, local, .. } = self;
        let labels = Labels {
            title: "Control over a large cluster".into(),
            subtitle: format!("{services} Services ({local} of policy Local) over {nodes} nodes"),
            values: "per cent of the target".into(),
            along: String::new(),
        };
        let group = |figure: &Figure| {
            // Of none at all there is no share.
            let target = figure.target.filter(|target| *target > 0.0)?;
            let share = Bar::exact(figure.value / target * 100.0);
            Some(Group { name: figure.name.into(), bars: vec![Some(share)] })
        };
        let groups: Vec<Group> = self.figures.iter().filter_map(group).collect();
        plot::bars(&labels, &["figure"], &groups)
    }
}

/// Of an odd number the one in the middle.
pub(super) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_above_its_target_is_missed_and_named() {
        let mut report = Report::new(5000, 500, 0);
        report.target("an edit", 99.5, "ms", 100.0);
        report.target("memory", 513.0, "MB", 512.0);
        report.beside("snapshots", 7.0, "");
        assert_eq!(report.missed(), ["memory"]);
        let table = report.table();
        assert!(table.lines().any(|line| line.starts_with("memory") && line.ends_with("NO")), "{table}");
        assert!(table.lines().any(|line| line.contains("99.50 ms") && line.ends_with("yes")), "{table}");
        let chart = report.chart();
        assert!(chart.contains("an edit") && !chart.contains("snapshots"), "{chart}");
    }
}
