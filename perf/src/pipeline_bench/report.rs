//! The table, and the same figures as JSON.

use serde::Serialize;

use super::PipelineArgs;
use super::goals::{Target, targets};
use super::measure::{Clock, Spread};
use crate::counters::{Processor, Work};
use crate::plot::{self, Bar, Group, Labels};

#[derive(Debug, Serialize)]
pub struct Report {
    version: &'static str,
    cpu: String,
    core: usize,
    ticks_per_ns: f64,
    core_ghz: f64,
    runs: usize,
    packets_per_run: usize,
    pub rows: Vec<Row>,
    pub targets: Vec<Target>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub case: String,
    pub ns: Spread,
    pub mpps: f64,
    /// Of the time-stamp counter.
    pub ticks: f64,
    pub bare_ns: Spread,
    pub ratio: Spread,
    /// Per packet, where the machine has counters.
    pub work: Option<Work>,
}

impl Row {
    pub fn line(&self) -> String {
        let Self { case, ns, mpps, ticks, bare_ns, ratio, work } = self;
        let counted = |work: &Work| format!(" {:7.0} {:6.2}", work.instructions, work.cache_misses);
        format!(
            "{case:<42} {:7.1} {:>13} {mpps:7.2} {ticks:7.0} {:8.1} {:6.2} {:>11}{}",
            ns.median,
            format!("{:.1}..{:.1}", ns.lowest, ns.highest),
            bare_ns.median,
            ratio.median,
            format!("{:.2}..{:.2}", ratio.lowest, ratio.highest),
            work.as_ref().map_or(String::new(), counted),
        )
    }
}

impl Report {
    pub fn new(core: usize, clock: &Clock, args: &PipelineArgs) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            cpu: cpu_name(),
            core,
            ticks_per_ns: clock.ticks_per_ns,
            core_ghz: clock.core_ghz,
            runs: args.runs,
            packets_per_run: args.packets,
            rows: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Holds what was measured against what is asked for.
    pub fn judge(&mut self) {
        self.targets = targets(&self.rows);
    }

    pub fn heading(&self) -> String {
        let Self { cpu, core, ticks_per_ns, core_ghz, runs, packets_per_run, .. } = self;
        let counters = match Processor::of_this_thread() {
            Ok(_) => "instructions and last-level cache misses per packet by the processor's counters".to_owned(),
            Err(problem) => format!(
                "instructions and cache misses are not counted: the processor's counters are not to be had ({problem}), \
                 as in most virtual machines; `--instructions` counts under valgrind"
            ),
        };
        format!(
            "{cpu}, core {core} at {core_ghz:.1} GHz (time-stamp counter {ticks_per_ns:.2} GHz); \
             {runs} runs of {packets_per_run} packets\n{counters}\n\
             {:<42} {:>7} {:>13} {:>7} {:>7} {:>8} {:>6} {:>11}  instr. misses",
            "case", "ns", "spread", "Mpps", "ticks", "bare ns", "ratio", "spread"
        )
    }

    /// Each case beside the limit, and how many times it: two pictures.
    pub fn charts(&self) -> Vec<(&'static str, String)> {
        let Self { cpu, core, core_ghz, runs, packets_per_run, .. } = self;
        let subtitle = format!(
            "{cpu}, core {core} at {core_ghz:.1} GHz; medians of {runs} runs of {packets_per_run} packets, marks from the \
             lowest to the highest"
        );
        let labels = |title: &str, values: &str| Labels {
            title: title.into(),
            subtitle: subtitle.clone(),
            values: values.into(),
            along: String::new(),
        };
        let groups = |bars: fn(&Row) -> Vec<Option<Bar>>| -> Vec<Group> {
            self.rows.iter().map(|row| Group { name: row.case.clone(), bars: bars(row) }).collect()
        };
        let times = groups(|row| vec![Some(row.ns.into()), Some(row.bare_ns.into())]);
        let ratios = groups(|row| vec![Some(row.ratio.into())]);
        let (ns, times_the_limit) = ("ns per packet (less is better)", "times the bare limit (less is better)");
        vec![
            ("pipeline", plot::bars(&labels("The pipeline over memory", ns), &["pipeline", "bare limit"], &times)),
            (
                "pipeline-ratio",
                plot::bars(&labels("The pipeline against the bare limit", times_the_limit), &["ratio"], &ratios),
            ),
        ]
    }
}

impl From<Spread> for Bar {
    fn from(Spread { median, lowest, highest }: Spread) -> Self {
        Self { value: median, lowest, highest }
    }
}

pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "unknown CPU".into(), |(_, name)| name.to_owned())
}
