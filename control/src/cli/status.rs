//! `penstock status`: the box on one screen, what deserves attention first in colour.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use penstock_configs::desired::{BackendState, Mode};
use penstock_configs::status::{
    BackendStatus, OwnerStatus, PortStatus, ServiceStatus, SnatStatus, Status, StatusQuery, WorkerStatus,
};

use super::control::{Control, ControlError};
use super::failure::Outcome;
use super::screen::{Screen, Style};
use super::table::{Cell, Column, Table, styled};
use super::units::{bytes, count, duration, grouped, share, short};
use crate::client::Dataplane;

/// Backends listed without being asked for; beyond, those in trouble only.
const BACKENDS_SHOWN: usize = 24;
/// Of services asked for by name.
const BACKENDS_ASKED: usize = 1000;
/// Services listed without being asked for.
const SERVICES_SHOWN: usize = 40;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The dataplane's own JSON
    #[arg(long)]
    json: bool,
    /// Refresh, every SECONDS if given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = super::seconds)]
    watch: Option<Duration>,
    /// Only services whose name, owner or VIP contains this
    #[arg(value_name = "TEXT")]
    only: Option<String>,
    /// Every service, backend and notice
    #[arg(short, long)]
    all: bool,
}

pub(super) async fn run(dataplane: &Dataplane, control: &Control, screen: &Screen, arguments: &Arguments) -> Outcome {
    let whole = arguments.all || arguments.json;
    let query = StatusQuery {
        only: arguments.only.clone(),
        services: (!whole && arguments.only.is_none()).then_some(SERVICES_SHOWN),
        backends: (!whole).then_some(if arguments.only.is_some() { BACKENDS_ASKED } else { BACKENDS_SHOWN }),
    };
    loop {
        let status = dataplane.status_of(&query).await?;
        if arguments.json {
            screen.print(&(serde_json::to_string_pretty(&status)? + "\n"))?;
        } else {
            // A pipe gets one screen after another.
            let redraw = arguments.watch.is_some() && screen.height.is_some();
            let clear = if redraw { super::top::CLEAR } else { "" };
            let cluster = cluster(control, &status, screen).await;
            screen.print(&format!("{clear}{}", render(&status, &cluster, screen, arguments.all)))?;
        }
        let Some(period) = arguments.watch else { return Ok(()) };
        tokio::time::sleep(period).await;
    }
}

/// What control says of its cluster; its silence is worth a word only where it has something to say.
async fn cluster(control: &Control, status: &Status, screen: &Screen) -> String {
    match control.status().await {
        Ok(cluster) => super::why::summary(&cluster, screen),
        Err(ControlError::NoKubernetes) => String::new(),
        // Only a control that leads writes with a term.
        Err(ControlError::Absent(_)) if status.owners.iter().all(|owner| owner.term.is_none()) => String::new(),
        Err(error) => screen.paint(&screen.wrap("- ", &error.to_string()), Style::Warn) + "\n",
    }
}

fn render(status: &Status, cluster: &str, screen: &Screen, all: bool) -> String {
    let mut out = format!(
        "{}  penstock {}, up {}\n",
        screen.paint(&status.name, Style::Bold),
        status.version,
        duration(status.uptime_seconds)
    );
    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            let _ = write!(out, "\n{}\n{body}", screen.paint(title, Style::Bold));
        }
    };
    section("Ports", ports(&status.ports, screen));
    section("Workers", workers(&status.workers, screen));
    section("Services", services(status, screen));
    section("Access", access(status));
    section("SNAT ports, the fullest", snat(&status.snat, screen, all));
    section("Owners", owners(&status.owners, screen));
    section("Kubernetes", cluster.to_owned());
    section("Notices", notices(&status.notices, screen, all));
    out
}

fn ports(ports: &[PortStatus], screen: &Screen) -> String {
    let mut table = Table::new(&[
        ("INTERFACE", Column::Left),
        ("LINK", Column::Left),
        ("QUEUES", Column::Right),
        ("XDP", Column::Left),
        ("FRAMES", Column::Left),
        ("MTU", Column::Right),
        ("RX/s", Column::Right),
        ("TX/s", Column::Right),
    ]);
    for port in ports {
        let xdp = if port.xdp == "native" { Style::Plain } else { Style::Warn };
        table.row(vec![
            port.interface.as_str().into(),
            match (port.link, port.standby) {
                (true, _) => styled("up", Style::Good),
                (false, true) => styled("standby", Style::Warn),
                (false, false) => styled("down", Style::Bad),
            },
            port.queues.to_string().into(),
            styled(port.xdp.as_str(), xdp),
            if port.zero_copy { "zero-copy".into() } else { "copied".into() },
            port.mtu.to_string().into(),
            short(port.rx_packets_per_second).into(),
            short(port.tx_packets_per_second).into(),
        ]);
    }
    if ports.is_empty() { String::new() } else { table.render(screen) }
}

/// Who is kept out; nothing, where nobody is.
fn access(status: &Status) -> String {
    let mut out = String::new();
    if status.denied_prefixes > 0 {
        let _ = writeln!(out, "deny list: {} prefixes", grouped(status.denied_prefixes));
    }
    for service in status.services.iter().filter(|service| service.limited > 0) {
        let _ = writeln!(out, "{}: {} flows were over its limits", service.name, grouped(service.limited));
    }
    out
}

fn workers(workers: &[WorkerStatus], screen: &Screen) -> String {
    let mut table = Table::new(&[
        ("WORKER", Column::Right),
        ("CORE", Column::Right),
        ("BUSY", Column::Right),
        ("FLOWS", Column::Right),
        ("HALF-OPEN", Column::Right),
        ("RX/s", Column::Right),
        ("HANDED OVER/s", Column::Right),
    ]);
    for worker in workers {
        let busy = if worker.busy > 0.95 { Style::Warn } else { Style::Plain };
        table.row(vec![
            worker.worker.to_string().into(),
            worker.core.to_string().into(),
            styled(format!("{:.0}%", worker.busy * 100.0), busy),
            grouped(worker.flows).into(),
            grouped(worker.embryonic).into(),
            short(worker.rx_packets_per_second).into(),
            short(worker.handoff_packets_per_second).into(),
        ]);
    }
    if workers.is_empty() { String::new() } else { table.render(screen) }
}

fn services(status: &Status, screen: &Screen) -> String {
    let services = &status.services;
    if services.is_empty() && status.services_total > 0 {
        return format!("none of {} is about that\n", grouped(status.services_total));
    }
    if services.is_empty() {
        return "none; give the dataplane a config file with [[service]], or `penstock apply`\n".to_owned();
    }
    let several_owners = services.iter().any(|service| service.owner != services[0].owner);
    let wide = is_wide(screen);
    let mut columns = vec![
        ("SERVICE", Column::Name),
        ("ADDRESS", Column::Left),
        ("MODE", Column::Left),
        ("FLOWS", Column::Right),
        ("NEW/s", Column::Right),
        ("BACKENDS", Column::Right),
    ];
    if wide {
        columns.extend([
            ("SCHEDULER", Column::Left),
            ("PACKETS", Column::Right),
            ("BYTES", Column::Right),
            ("MOVED", Column::Right),
        ]);
    }
    let mut table = Table::new(&columns);
    for service in services {
        let name = if several_owners { format!("{}/{}", service.owner, service.name) } else { service.name.clone() };
        let mut cells = vec![
            name.into(),
            format!("{} {}", socket(service.vip, service.port), service.protocol.as_str()).into(),
            mode(service).into(),
            grouped(service.flows).into(),
            short(service.new_flows_per_second).into(),
            health(service),
        ];
        if wide {
            let moved = share(service.moved.into(), service.table_size.into());
            cells.push(service.scheduler.as_str().into());
            cells.extend([grouped(service.packets).into(), bytes(service.bytes).into(), moved.into()]);
        }
        table.row(cells);
    }
    let mut out = table.render(screen);
    let rest = status.services_total.saturating_sub(services.len() as u64);
    if rest > 0 {
        let _ = writeln!(out, "... and {} more; `penstock status --all`, or a name", grouped(rest));
    }
    out + &backends(services, screen)
}

fn backends(services: &[ServiceStatus], screen: &Screen) -> String {
    let pairs = || services.iter().flat_map(|service| service.backends.iter().map(move |backend| (service, backend)));
    let wide = is_wide(screen);
    let mut columns = vec![
        ("BACKEND", Column::Name),
        ("OF SERVICE", Column::Name),
        ("ADDRESS", Column::Left),
        ("FLOWS", Column::Right),
        ("SHARE", Column::Right),
        ("STATE", Column::Cut),
    ];
    if wide {
        columns.insert(3, ("WEIGHT", Column::Right));
    }
    let mut table = Table::new(&columns);
    for (service, backend) in pairs() {
        let mut cells = vec![
            backend.name.as_str().into(),
            service.name.as_str().into(),
            socket(backend.address, backend.port).into(),
            grouped(backend.flows).into(),
            share(backend.flows, flows_of(service)).into(),
            state(service, backend),
        ];
        if wide {
            cells.insert(3, backend.weight.to_string().into());
        }
        table.row(cells);
    }
    let mut out = if pairs().next().is_none() { String::new() } else { format!("\n{}", table.render(screen)) };
    let sum = |pick: fn(&ServiceStatus) -> u32| services.iter().map(|service| u64::from(pick(service))).sum::<u64>();
    let (total, up) = (sum(|service| service.backends_total), sum(|service| service.backends_up));
    let (listed, listed_up) = (pairs().count() as u64, pairs().filter(|(_, backend)| backend.is_up()).count() as u64);
    if up > listed_up {
        let rest = grouped(up - listed_up);
        let _ = writeln!(out, "{rest} backends not shown take new flows; `penstock status --all` lists them");
    }
    let troubled = (total - up).saturating_sub(listed - listed_up);
    if troubled > 0 {
        let _ = writeln!(out, "{} more do not", count(usize::try_from(troubled).unwrap_or(usize::MAX), "backend"));
    }
    out
}

/// Of all its backends, also where not all are listed.
fn flows_of(service: &ServiceStatus) -> u64 {
    let whole = service.backends.len() == service.backends_total as usize;
    if whole { service.backends.iter().map(|backend| backend.flows).sum() } else { service.flows }
}

/// From here on an occupancy deserves attention; the dataplane's own notice says what to do.
const SNAT_WARN_AT: f64 = 0.8;
/// Pairs listed without being asked for; fuller ones always.
const SNAT_SHOWN: usize = 3;

fn snat(pairs: &[SnatStatus], screen: &Screen, all: bool) -> String {
    let mut table = Table::new(&[
        ("SNAT ADDRESS", Column::Left),
        ("TOWARDS", Column::Left),
        ("USED", Column::Right),
        ("RESTING", Column::Right),
        ("OF", Column::Right),
        ("FULL", Column::Right),
        ("AT THIS RATE", Column::Left),
    ]);
    let wanted = |(at, pair): &(usize, &SnatStatus)| all || *at < SNAT_SHOWN || pair.occupancy >= SNAT_WARN_AT;
    for (_, pair) in pairs.iter().enumerate().filter(wanted) {
        let style = match pair.occupancy {
            full if full >= 1.0 => Style::Bad,
            full if full >= SNAT_WARN_AT => Style::Warn,
            _ => Style::Plain,
        };
        let forecast = match pair.full_in_seconds {
            _ if pair.occupancy >= 1.0 => "full".to_owned(),
            Some(seconds) => format!("full in {}", duration(seconds)),
            None => "-".to_owned(),
        };
        table.row(vec![
            pair.address.to_string().into(),
            format!("{} {}", pair.backend, pair.protocol.as_str()).into(),
            grouped(pair.used).into(),
            grouped(pair.resting).into(),
            grouped(pair.capacity).into(),
            styled(format!("{:.0}%", pair.occupancy * 100.0), style),
            forecast.into(),
        ]);
    }
    if pairs.is_empty() { String::new() } else { table.render(screen) }
}

/// On a narrow screen the room goes to names and states.
fn is_wide(screen: &Screen) -> bool {
    screen.width.is_none_or(|width| width >= 100)
}

fn health(service: &ServiceStatus) -> Cell {
    let style = match service.backends_up {
        0 => Style::Bad,
        _ if service.is_troubled() => Style::Warn,
        _ => Style::Good,
    };
    styled(format!("{}/{}", service.backends_up, service.backends_total), style)
}

fn state(service: &ServiceStatus, backend: &BackendStatus) -> Cell {
    let (word, style) = match backend.state {
        BackendState::Down if service.panic && backend.effective > 0 => ("down, used all the same", Style::Bad),
        BackendState::Down => ("down", Style::Bad),
        BackendState::Draining => ("draining", Style::Warn),
        BackendState::Active if !backend.reachable => ("no neighbour", Style::Bad),
        BackendState::Active if !backend.reason.is_empty() => ("active", Style::Warn),
        BackendState::Active => ("active", Style::Good),
    };
    let starts = backend.state == BackendState::Active && (1..100).contains(&backend.effective);
    let word = if starts { format!("{word}, {}% of its weight", backend.effective) } else { word.to_owned() };
    let text = if backend.reason.is_empty() { word } else { format!("{word}: {}", backend.reason) };
    styled(text, style)
}

fn mode(service: &ServiceStatus) -> &'static str {
    match (service.mode, service.affinity.is_some()) {
        (Mode::Nat, false) => "nat",
        (Mode::Nat, true) => "nat, sticky",
        (Mode::Dnat, false) => "dnat",
        (Mode::Dnat, true) => "dnat, sticky",
        (Mode::Dsr, false) => "dsr",
        (Mode::Dsr, true) => "dsr, sticky",
    }
}

pub(super) fn socket(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn owners(owners: &[OwnerStatus], screen: &Screen) -> String {
    let mut table = Table::new(&[
        ("OWNER", Column::Name),
        ("SERVICES", Column::Right),
        ("GENERATION", Column::Right),
        ("RUNNING", Column::Right),
        ("TERM", Column::Right),
        ("LAST SNAPSHOT", Column::Left),
    ]);
    let mut refusals = String::new();
    for owner in owners {
        let behind = owner.acknowledged != owner.generation;
        let last = match (&owner.refused, behind) {
            (Some(_), _) => styled("refused", Style::Bad),
            (None, true) => styled("on its way to the workers", Style::Warn),
            (None, false) => styled("running", Style::Good),
        };
        table.row(vec![
            owner.owner.as_str().into(),
            grouped(owner.services).into(),
            owner.generation.to_string().into(),
            owner.acknowledged.to_string().into(),
            owner.term.map_or_else(|| "-".to_owned(), |term| term.to_string()).into(),
            last,
        ]);
        if let Some(why) = &owner.refused {
            refusals.push_str(&screen.wrap(&format!("{}: ", owner.owner), &format!("refused: {why}")));
            refusals.push('\n');
        }
    }
    if owners.is_empty() { String::new() } else { table.render(screen) + &refusals }
}

/// Of notices that differ in names and numbers only: a lost route is one for every node behind it.
const ALIKE_SHOWN: usize = 3;

fn notices(notices: &[String], screen: &Screen, all: bool) -> String {
    // Words with a digit are what alike ones differ in: addresses, ports, counts.
    let shape = |notice: &String| -> Vec<String> {
        let words =
            notice.split_whitespace().map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "#" } else { word });
        words.map(str::to_owned).collect()
    };
    let mut left: HashMap<Vec<String>, usize> = HashMap::new();
    for notice in notices {
        *left.entry(shape(notice)).or_default() += 1;
    }
    let mut shown: HashMap<Vec<String>, usize> = HashMap::new();
    let mut out = String::new();
    for notice in notices {
        let shape = shape(notice);
        let shown = shown.entry(shape.clone()).or_default();
        *shown += 1;
        if all || *shown <= ALIKE_SHOWN {
            for (index, line) in notice.lines().enumerate() {
                out.push_str(&screen.wrap(if index == 0 { "- " } else { "  " }, line));
                out.push('\n');
            }
        } else if *shown == ALIKE_SHOWN + 1 {
            let _ = writeln!(out, "- ... and {} more like it; `penstock status --all`", left[&shape] - ALIKE_SHOWN);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_alike_are_folded_and_lines_are_kept() {
        let screen = Screen { width: Some(80), height: None, colors: false };
        let mut list: Vec<String> = (1..=200).map(|node| format!("node 10.0.0.{node} has no route")).collect();
        list.insert(100, "lb.toml: refused, what ran before goes on:\nlb.toml:3: one; mend it\nlb.toml:9: two".into());
        let expected = "\
- node 10.0.0.1 has no route
- node 10.0.0.2 has no route
- node 10.0.0.3 has no route
- ... and 197 more like it; `penstock status --all`
- lb.toml: refused, what ran before goes on:
  lb.toml:3: one; mend it
  lb.toml:9: two
";
        assert_eq!(notices(&list, &screen, false), expected);
        assert_eq!(notices(&list, &screen, true).lines().count(), 203);
    }
}
