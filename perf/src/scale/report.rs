//! Figures against their targets, as tables and JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pipeline_bench::measure::Spread;
use crate::pipeline_bench::report::cpu_name;

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    /// Lowest and highest of several runs, where there were.
    #[serde(default)]
    pub spread: Option<(f64, f64)>,
    pub unit: String,
    /// At most this, where something is asked of it.
    #[serde(default)]
    pub target: Option<f64>,
    /// What it is to be seen with.
    #[serde(default)]
    pub beside: String,
}

impl Figure {
    pub fn new(what: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { what: what.into(), value, spread: None, unit: unit.into(), target: None, beside: String::new() }
    }

    pub fn of_runs(what: impl Into<String>, runs: &[f64], unit: &str) -> Self {
        let Spread { median, lowest, highest } = Spread::of(runs);
        Self { spread: Some((lowest, highest)), ..Self::new(what, median, unit) }
    }

    pub fn at_most(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }

    pub fn beside(self, beside: impl Into<String>) -> Self {
        Self { beside: beside.into(), ..self }
    }

    /// `None`: nothing is asked of it.
    pub fn met(&self) -> Option<bool> {
        self.target.map(|target| self.value <= target)
    }
}

/// What one experiment found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Section {
    pub name: String,
    pub title: String,
    pub figures: Vec<Figure>,
    /// How it was measured, and what to make of it.
    pub notes: Vec<String>,
    /// Name and SVG.
    pub charts: Vec<(String, String)>,
}

impl Section {
    pub fn new(name: &str, title: impl Into<String>) -> Self {
        Self { name: name.into(), title: title.into(), ..Self::default() }
    }

    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Takes the targets away: at other sizes than theirs they would be met by nothing that was done for them.
    pub fn judge_nothing(&mut self) {
        self.figures.iter_mut().for_each(|figure| figure.target = None);
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}: {}", self.name, self.title)?;
        let wide = self.figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0).max(20);
        writeln!(f, "  {:<wide$} {:>10} {:>17} {:>9}  {:<4} ", "", "figure", "spread", "target", "met")?;
        for figure in &self.figures {
            let Figure { what, value, spread, unit, target, beside } = figure;
            let spread = spread.map_or(String::new(), |(low, high)| format!("{}..{}", short(low), short(high)));
            let target = target.map_or(String::new(), short);
            let met = figure.met().map_or("", |met| if met { "yes" } else { "NO" });
            let line =
                format!("  {what:<wide$} {:>10} {spread:>17} {target:>9}  {met:<4} {unit}  {beside}", short(*value));
            writeln!(f, "{}", line.trim_end())?;
        }
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        Ok(())
    }
}

/// Three digits and more where there are.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    version: &'static str,
    cpu: String,
    cores: usize,
    quick: bool,
    pub sections: Vec<Section>,
}

impl Report {
    pub fn new(quick: bool) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { version: env!("CARGO_PKG_VERSION"), cpu: cpu_name(), cores, quick, sections: Vec::new() }
    }

    pub fn heading(&self) -> String {
        let Self { cpu, cores, quick, .. } = self;
        format!("{cpu}, {cores} cores{}", if *quick { "; --quick: a hundredth of the sizes" } else { "" })
    }

    fn asked(&self) -> impl Iterator<Item = (&Figure, bool)> {
        let figures = self.sections.iter().flat_map(|section| &section.figures);
        figures.filter_map(|figure| Some((figure, figure.met()?)))
    }

    /// Takes a section in, and gives its pictures back, which have files of their own.
    pub fn add(&mut self, mut section: Section) -> Vec<(String, String)> {
        let charts = std::mem::take(&mut section.charts);
        self.sections.push(section);
        charts
    }

    pub fn verdict(&self) -> String {
        let missed: Vec<&str> = self.asked().filter(|(_, met)| !met).map(|(figure, _)| figure.what.as_str()).collect();
        let all = self.asked().count();
        let met = all - missed.len();
        if self.quick {
            return "no target is held against so small sizes".into();
        }
        if missed.is_empty() {
            format!("{met} of {all} targets met")
        } else {
            format!("{met} of {all} targets met; missed: {}", missed.join("; "))
        }
    }
}
