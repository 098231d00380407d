//! `penstock check`: every fault of a config file, or what it would serve. Needs no dataplane.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use penstock_configs::fault::Fault;
use penstock_configs::file::ConfigFile;
use penstock_configs::resolve::Resolver;
use penstock_configs::{source, validate};

use super::failure::{Failure, Outcome};
use super::screen::{Screen, Style};
use super::status::socket;
use super::table::{Column, Table};
use super::units::count;

/// Services listed of a file that is good.
const SERVICES_SHOWN: usize = 40;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A config file (TOML), as `penstock-dataplane --config` takes
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Nothing but faults
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(screen: &Screen, arguments: &Arguments) -> Outcome {
    let name = arguments.file.display().to_string();
    let file = match source::load(&arguments.file) {
        Ok(file) => file,
        Err(faults) => {
            let mut out = String::new();
            for fault in &faults.list {
                out.push_str(&tell(screen, &faults.name, fault, Style::Bad));
            }
            let _ = writeln!(out, "{}: {}", faults.name, count(faults.list.len(), "fault"));
            screen.print(&out)?;
            return Err(Failure::Told(2));
        }
    };
    let mut out = String::new();
    let warnings = validate::warnings(&file.desired(0));
    for warning in &warnings {
        out.push_str(&tell(screen, &name, warning, Style::Warn));
    }
    if !arguments.quiet {
        out.push_str(&serves(screen, &name, &file, warnings.len()));
    }
    screen.print(&out)
}

/// `lb.toml:14: service[3] "web".vip: what is wrong` and the remedy below it.
fn tell(screen: &Screen, name: &str, fault: &Fault, style: Style) -> String {
    let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
    let path = if fault.path.is_empty() { String::new() } else { format!("{}: ", fault.path) };
    let place = screen.paint(&format!("{name}{line}:"), Style::Bold);
    let problem = screen.paint(&fault.problem, style);
    format!("{place} {path}{problem}\n{}\n", screen.wrap("    remedy: ", &fault.remedy))
}

fn serves(screen: &Screen, name: &str, file: &ConfigFile, warnings: usize) -> String {
    let desired = file.desired(0);
    let interfaces: Vec<&str> = file.ports.iter().map(|port| port.interface.as_str()).collect();
    let good = screen.paint("good", Style::Good);
    let warned = if warnings == 0 { String::new() } else { format!(", with {}", count(warnings, "warning")) };
    let mut out = format!(
        "{name}: {good}{warned}\nbox {:?} on {} would serve {} over {}\n",
        file.the_box.name,
        interfaces.join(" and "),
        count(desired.services.len(), "service"),
        count(desired.nodes.len(), "node"),
    );
    let resolver = Resolver::new(&desired);
    let mut table = Table::new(&[("SERVICE", Column::Name), ("ADDRESS", Column::Left), ("BACKENDS", Column::Cut)]);
    for service in desired.services.iter().take(SERVICES_SHOWN) {
        let backends: Vec<String> = resolver
            .backends_of(service)
            .take(8)
            .map(|backend| format!("{} {}", backend.name, socket(backend.address, backend.port)))
            .collect();
        let more = resolver.backends_of(service).count().saturating_sub(backends.len());
        let more = if more == 0 { String::new() } else { format!(", {more} more") };
        let address = format!("{} {}", socket(service.vip, service.port), service.protocol.as_str());
        table.row(vec![service.name.as_str().into(), address.into(), (backends.join(", ") + &more).into()]);
    }
    if !desired.services.is_empty() {
        let _ = write!(out, "\n{}", table.render(screen));
    }
    if desired.services.len() > SERVICES_SHOWN {
        let _ = writeln!(out, "... and {} more", desired.services.len() - SERVICES_SHOWN);
    }
    out
}
