//! The speed that is asked of the pipeline, judged by the figures of one run.

use std::fmt;

use serde::Serialize;

use super::report::Row;

/// A figure that is asked for: met, missed, or of cases that were not chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    pub what: String,
    pub wanted: f64,
    pub at_least: bool,
    /// `None`: not measured.
    pub value: Option<f64>,
    pub met: Option<bool>,
}

impl Target {
    fn at_most(what: &str, wanted: f64, value: Option<f64>) -> Self {
        Self { what: what.into(), wanted, at_least: false, value, met: value.map(|value| value <= wanted) }
    }

    fn at_least(what: &str, wanted: f64, value: Option<f64>) -> Self {
        Self { what: what.into(), wanted, at_least: true, value, met: value.map(|value| value >= wanted) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, wanted, at_least, value, met } = self;
        let Some(value) = value else { return write!(f, "  {what:<58} not measured") };
        let sign = if *at_least { ">=" } else { "<=" };
        let met = if *met == Some(true) { "met" } else { "MISSED" };
        write!(f, "  {what:<58} {value:>7.2}  {sign} {wanted:<5}  {met}")
    }
}

/// All of them, by the medians of the rows there are.
#[must_use]
pub fn targets(rows: &[Row]) -> Vec<Target> {
    let row = |case: &str| rows.iter().find(|row| row.case == case);
    let ratio = |case: &str| row(case).map(|row| row.ratio.median);
    let rate = |case: &str| row(case).map(|row| row.mpps);
    let times = |one: &str, other: &str| Some(row(one)?.ns.median / row(other)?.ns.median);
    let mut targets = vec![
        Target::at_most("TCP hit, times the bare limit, 1M flows", 1.5, ratio("hit nat4 1M flows 100 services")),
        Target::at_most("TCP hit, times the bare limit, 1k flows", 2.0, ratio("hit nat4 1k flows 100 services")),
        Target::at_least("TCP hit, Mpps a core, 1k flows", 20.0, rate("hit nat4 1k flows 100 services")),
        Target::at_least("TCP hit, Mpps a core, 1M flows", 10.0, rate("hit nat4 1M flows 100 services")),
    ];
    for flows in ["1k", "1M"] {
        let case = |kind: &str, services: u32| format!("{kind} {flows} flows {services} services");
        let new = rate(&case("new nat4", 100));
        targets.push(Target::at_least(&format!("new flows, M/s a core, {flows} flows"), 3.0, new));
        let families = times(&case("hit nat6", 100), &case("hit nat4", 100));
        targets.push(Target::at_most(&format!("IPv6 hit, times IPv4's, {flows} flows"), 1.3, families));
        let services = times(&case("hit nat4", 10_000), &case("hit nat4", 1));
        targets.push(Target::at_most(&format!("hit with 10,000 services, times 1's, {flows} flows"), 1.1, services));
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::super::cases;
    use super::super::measure::Spread;
    use super::*;

    fn row(case: &str, ns: f64, bare: f64) -> Row {
        let of = |value| Spread::of(&[value]);
        let mpps = 1000.0 / ns;
        Row { case: case.into(), ns: of(ns), mpps, ticks: ns, bare_ns: of(bare), ratio: of(ns / bare), work: None }
    }

    #[test]
    fn every_target_is_of_cases_there_are() {
        let rows: Vec<Row> =
            cases::list(&[1_000, 1_000_000]).iter().map(|case| row(&case.name(), 20.0, 15.0)).collect();
        let targets = targets(&rows);
        assert!(targets.iter().all(|target| target.met == Some(true)), "{targets:#?}");
        let slow: Vec<Row> = rows.iter().map(|row| super::tests::row(&row.case, 500.0, 15.0)).collect();
        let missed = super::targets(&slow).iter().filter(|target| target.met == Some(false)).count();
        // Not what compares the pipeline with itself.
        assert_eq!((targets.len(), missed), (10, 6));
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let rows = [row("hit nat4 1k flows 100 services", 17.0, 2.7), row("hit nat6 1k flows 100 services", 24.0, 3.0)];
        let lines: Vec<String> = targets(&rows).iter().map(ToString::to_string).collect();
        assert!(lines[0].ends_with("not measured") && lines[1].ends_with("<= 2      MISSED"), "{lines:#?}");
        assert!(lines[2].contains("58.82  >= 20     met") && lines[5].contains("1.41  <= 1.3    MISSED"), "{lines:#?}");
    }
}
