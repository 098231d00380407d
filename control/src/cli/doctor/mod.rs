//! `penstock doctor`: what about this machine would keep the box from working, or from working
//! well. Each finding says what to do about it. Reads files, and the status of a dataplane that runs;
//! changes nothing.

mod host;
mod interfaces;
mod machine;
mod running;

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use penstock_configs::file::{ConfigFile, PortConfig};
use penstock_configs::source;
use penstock_configs::status::Status;

use self::machine::Machine;
use super::failure::{Failure, Outcome};
use super::screen::{Screen, Style};
use super::units::count;
use crate::client::Dataplane;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also check the interfaces, cores and SNAT addresses this config file names
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grade {
    Good,
    /// Works, and not as well as it could, or not in every case.
    Warn,
    /// Will not work.
    Bad,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    grade: Grade,
    /// What was looked at.
    subject: String,
    text: String,
    /// Empty when there is nothing to do.
    remedy: String,
}

impl Finding {
    fn good(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { grade: Grade::Good, subject: subject.into(), text: text.into(), remedy: String::new() }
    }

    fn warn(subject: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Warn, subject: subject.into(), text: text.into(), remedy: remedy.into() }
    }

    fn bad(subject: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Bad, subject: subject.into(), text: text.into(), remedy: remedy.into() }
    }

    fn render(&self, screen: Screen) -> String {
        let (word, style) = match self.grade {
            Grade::Good => ("ok  ", Style::Good),
            Grade::Warn => ("warn", Style::Warn),
            Grade::Bad => ("BAD ", Style::Bad),
        };
        let text = screen.wrap("      ", &format!("{}: {}", self.subject, self.text));
        let mut out = format!("{}{}\n", screen.paint(word, style), &text[4..]);
        if !self.remedy.is_empty() {
            out.push_str(&screen.wrap("        -> ", &self.remedy));
            out.push('\n');
        }
        out
    }
}

pub(super) async fn run(dataplane: &Dataplane, screen: &Screen, arguments: &Arguments) -> Outcome {
    let machine = Machine::this();
    let mut findings = host::check(&machine);
    // None runs before the first start, when the doctor is asked most.
    let status = dataplane.status().await.ok();
    findings.extend(status.iter().flat_map(running::check));
    if let Some(path) = &arguments.file {
        let facts = machine.facts();
        match source::load_for(path, Some(&facts)) {
            Ok(file) => findings.extend(of_file(&machine, &file, status.as_ref())),
            Err(faults) => {
                findings.extend(faults.list.iter().map(|fault| {
                    let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
                    let subject = format!("{}{line}", faults.name);
                    let path = if fault.path.is_empty() { String::new() } else { format!("{}: ", fault.path) };
                    Finding::bad(subject, format!("{path}{}", fault.problem), &fault.remedy)
                }));
                // What the file says of interfaces is still worth a look where it can be read.
                if let Ok(file) = source::load(path) {
                    findings.extend(of_file(&machine, &file, status.as_ref()));
                }
            }
        }
    }
    let mut out: String = findings.iter().map(|finding| finding.render(*screen)).collect();
    let of = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let (bad, warn) = (of(Grade::Bad), of(Grade::Warn));
    let _ = writeln!(out, "\n{}, {} in order", verdict(bad, warn), count(of(Grade::Good), "check"));
    if arguments.file.is_none() {
        out.push_str("`penstock doctor FILE` checks a config file's interfaces and addresses too\n");
    }
    screen.print(&out)?;
    if bad > 0 { Err(Failure::Told(1)) } else { Ok(()) }
}

fn of_file(machine: &Machine, file: &ConfigFile, running: Option<&Status>) -> Vec<Finding> {
    let served = |name: &str| running?.ports.iter().find(|port| port.interface == name).map(|port| port.queues);
    let of_port = |port: PortConfig| interfaces::check(machine, &port, &file.workers, served(&port.interface));
    let mut findings: Vec<Finding> =
        file.ports.iter().flat_map(|port| interfaces::served_as(machine, port)).flat_map(of_port).collect();
    findings.extend(host::check_file(machine, file));
    findings
}

fn verdict(bad: usize, warn: usize) -> String {
    match (bad, warn) {
        (0, 0) => "nothing stands in the way".to_owned(),
        (0, warn) => format!("it will work; {} to look at", count(warn, "warning")),
        (bad, warn) => format!("{} in the way, {}", count(bad, "obstacle"), count(warn, "warning")),
    }
}
