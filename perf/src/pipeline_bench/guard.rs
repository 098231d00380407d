//! The last committed figures, and how this build compares: instructions exactly, ratios with their spread.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::measure::Spread;

/// Instructions above the baseline that are an error, as a share of it.
const TOLERANCE: f64 = 0.03;

/// What is kept with a commit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Per packet, by case: the same on every machine of an architecture.
    pub instructions: BTreeMap<String, f64>,
    /// Times the bare limit, by case: of the machine they were measured on.
    #[serde(default)]
    pub ratios: BTreeMap<String, Spread>,
}

impl Baseline {
    /// # Errors
    /// The file is not there, or no baseline.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("{}: --update writes it", path.display()))?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: is not a baseline; --update writes one", path.display()))
    }

    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("{}: can't be written", path.display()))
    }

    /// This baseline with what was measured now in place of what it had of it.
    #[must_use]
    pub fn updated(mut self, now: &Baseline) -> Self {
        // Cases that are counted no longer go; ratios of cases that were not chosen this time stay.
        self.instructions.clone_from(&now.instructions);
        self.ratios.extend(now.ratios.iter().map(|(case, ratio)| (case.clone(), *ratio)));
        self
    }

    /// Ratios to a thousandth: more digits are noise in a file people compare.
    pub fn add_ratio(&mut self, case: String, Spread { median, lowest, highest }: Spread) {
        let [median, lowest, highest] = [median, lowest, highest].map(|value| (value * 1000.0).round() / 1000.0);
        self.ratios.insert(case, Spread { median, lowest, highest });
    }
}

/// This build against the baseline.
pub struct Comparison {
    pub text: String,
    /// Cases with too many instructions, and cases of the baseline that were not counted.
    pub worse: Vec<String>,
}

/// Compares.
#[must_use]
pub fn compare(before: &Baseline, now: &Baseline) -> Comparison {
    let mut text = format!("{:<42} {:>12} {:>12} {:>8}\n", "instructions per packet", "now", "baseline", "change");
    let mut worse = Vec::new();
    let cases: BTreeSet<&String> = before.instructions.keys().chain(now.instructions.keys()).collect();
    for case in cases {
        let (old, new) = (before.instructions.get(case), now.instructions.get(case));
        let shown = |value: Option<&f64>| value.map_or("none".into(), |value| format!("{value:.1}"));
        let change = old.zip(new).map(|(old, new)| new / old - 1.0);
        let change_shown = change.map_or(String::new(), |change| format!("{:+.1} %", change * 100.0));
        // A case that vanished is no improvement; one of nothing or of no number is none to compare with.
        let is_within = |old: &f64| new.is_some_and(|new| *new <= old * (1.0 + TOLERANCE));
        let is_worse = old.is_some_and(|old| !is_within(old));
        if is_worse {
            worse.push(case.clone());
        }
        let mark = if is_worse { "  TOO MANY" } else { "" };
        text += &format!("{case:<42} {:>12} {:>12} {change_shown:>8}{mark}\n", shown(new), shown(old));
    }
    if !now.ratios.is_empty() {
        text += &format!("\n{:<42} {:>12} {:>12} {:>13}\n", "times the bare limit", "now", "baseline", "spreads");
    }
    for (case, new) in &now.ratios {
        let spread = |Spread { lowest, highest, .. }: &Spread| format!("{lowest:.2}..{highest:.2}");
        let line = match before.ratios.get(case) {
            Some(old) => {
                let spreads = format!("{}, {}", spread(new), spread(old));
                format!("{:>12.2} {:>12.2} {spreads:>25}  {}", new.median, old.median, apart(old, new))
            }
            None => format!("{:>12.2} {:>12} {:>25}", new.median, "none", spread(new)),
        };
        text += &format!("{case:<42} {line}\n");
    }
    Comparison { text, worse }
}

/// What two spreads say; another machine says nothing by either.
fn apart(old: &Spread, new: &Spread) -> &'static str {
    if new.lowest > old.highest {
        "slower"
    } else if new.highest < old.lowest {
        "faster"
    } else {
        "alike"
    }
}

/// Prints the comparison, writes the new baseline where asked to.
///
/// # Errors
/// More instructions than the baseline allows, unless it is updated.
pub fn conclude(path: &Path, before: Baseline, now: &Baseline, update: bool) -> anyhow::Result<()> {
    let Comparison { text, worse } = compare(&before, now);
    print!("\n{text}");
    if update {
        return before.updated(now).write(path);
    }
    if !worse.is_empty() {
        bail!(
            "more than 3 % more instructions than {}, or none counted: {}; if meant so, --update it",
            path.display(),
            worse.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(hit: f64, ratio: [f64; 3]) -> Baseline {
        let [median, lowest, highest] = ratio;
        let mut baseline = Baseline { instructions: BTreeMap::from([("hit".into(), hit)]), ..Baseline::default() };
        baseline.add_ratio("hit 1k".into(), Spread { median, lowest, highest });
        baseline
    }

    #[test]
    fn three_percent_more_instructions_pass_and_more_do_not() {
        let before = baseline(400.0, [1.5, 1.4, 1.6]);
        for (now, fails) in [(400.0, false), (412.0, false), (412.1, true), (380.0, false), (f64::NAN, true)] {
            let comparison = compare(&before, &baseline(now, [1.5, 1.4, 1.6]));
            assert_eq!(!comparison.worse.is_empty(), fails, "{now}: {}", comparison.text);
            assert_eq!(comparison.text.contains("TOO MANY"), fails, "{now}");
        }
    }

    #[test]
    fn a_case_that_is_counted_no_longer_fails_and_a_new_one_does_not() {
        let mut before = baseline(400.0, [1.5, 1.4, 1.6]);
        let now = before.clone();
        before.instructions.insert("gone".into(), 10.0);
        assert_eq!(compare(&before, &now).worse, ["gone"]);
        assert!(compare(&now, &before).worse.is_empty());
    }

    #[test]
    fn ratios_are_told_apart_by_their_spreads_and_fail_nothing() {
        let before = baseline(400.0, [1.5, 1.4, 1.6]);
        for (now, verdict) in [
            ([1.5, 1.3, 1.7], "alike"),
            ([1.65, 1.6, 1.7], "alike"),
            ([2.0, 1.9, 2.1], "slower"),
            ([1.2, 1.1, 1.3], "faster"),
        ] {
            let comparison = compare(&before, &baseline(400.0, now));
            assert!(comparison.text.trim_end().ends_with(verdict), "{}", comparison.text);
            assert!(comparison.worse.is_empty());
        }
    }

    #[test]
    fn a_regression_is_an_error_and_leaves_the_file_alone_unless_updated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baseline.json");
        let before = baseline(400.0, [1.5, 1.4, 1.6]);
        before.write(&path).unwrap();
        let now = baseline(500.0, [1.5, 1.4, 1.6]);
        let error = conclude(&path, Baseline::read(&path).unwrap(), &now, false).unwrap_err().to_string();
        assert!(error.contains("hit") && error.contains("baseline.json"), "{error}");
        assert_eq!(Baseline::read(&path).unwrap(), before);
        conclude(&path, Baseline::read(&path).unwrap(), &now, true).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), now);
    }

    #[test]
    fn an_update_keeps_ratios_that_were_not_measured_this_time() {
        let mut before = baseline(400.0, [1.5, 1.4, 1.6]);
        before.add_ratio("hit 1M".into(), Spread { median: 2.0, lowest: 1.9, highest: 2.1 });
        let after = before.updated(&baseline(390.0, [1.2, 1.1, 1.3]));
        assert_eq!(after.instructions["hit"], 390.0);
        assert_eq!((after.ratios["hit 1k"].median, after.ratios["hit 1M"].median), (1.2, 2.0));
    }

    #[test]
    fn the_committed_baseline_is_one_and_has_every_case() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.json");
        let baseline = Baseline::read(&path).unwrap();
        let counted: Vec<&str> = super::super::instructions::names().collect();
        assert_eq!(baseline.instructions.keys().map(String::as_str).collect::<Vec<_>>(), counted);
        assert!(!baseline.ratios.is_empty());
    }
}
