//! `penstock why`: why a Service is pending, or a node out, in a sentence.

use std::fmt::Write;

use clap::Args;

use super::control::Control;
use super::failure::{Failure, Outcome};
use super::screen::{Screen, Style};
use super::table::{Column, Table, styled};
use crate::index::ServiceKey;
use crate::sync::{ServiceLine, Status};
use crate::why::Why;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The Service; without a namespace, the only one of that name. None: list all with their addresses
    #[arg(value_name = "NAMESPACE/SERVICE")]
    service: Option<String>,
    /// Control's own JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(control: &Control, screen: &Screen, arguments: &Arguments) -> Outcome {
    let Some(text) = &arguments.service else {
        let status = control.status().await?;
        let text = if arguments.json { serde_json::to_string_pretty(&status)? + "\n" } else { list(&status, screen) };
        return screen.print(&text);
    };
    let key = match named(text)? {
        Named::Whole(key) => key,
        Named::Short(name) => only_one(&control.status().await?, name)?,
    };
    let why = control.why(&key).await?;
    let text = if arguments.json { serde_json::to_string_pretty(&why)? + "\n" } else { render(&why, screen) };
    screen.print(&text)
}

enum Named<'a> {
    Whole(ServiceKey),
    Short(&'a str),
}

fn named(text: &str) -> Outcome<Named<'_>> {
    // As kubectl prints and takes it.
    let text = text.strip_prefix("service/").or_else(|| text.strip_prefix("svc/")).unwrap_or(text);
    match text.split('/').collect::<Vec<_>>()[..] {
        [name] if !name.is_empty() => Ok(Named::Short(name)),
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Ok(Named::Whole(ServiceKey::new(namespace, name)))
        }
        _ => Err(Failure::input(format!("{text:?} names no Service: write NAMESPACE/SERVICE, as in shop/web"))),
    }
}

fn only_one(status: &Status, name: &str) -> Outcome<ServiceKey> {
    let whole = |line: &ServiceLine| {
        let (namespace, found) = line.service.split_once('/')?;
        (found == name).then(|| ServiceKey::new(namespace, found))
    };
    let mut found: Vec<ServiceKey> = status.services.iter().filter_map(whole).collect();
    match found.len() {
        // Not ours, or in nobody's list: control says which, of the namespace kubectl would mean.
        0 => Ok(ServiceKey::new("default", name)),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<String> = found.iter().map(ToString::to_string).collect();
            Err(Failure::input(format!("{name} is the name of several Services: {}", names.join(", "))))
        }
    }
}

fn render(why: &Why, screen: &Screen) -> String {
    let mut out = screen.wrap("", &why.sentence) + "\n";
    if !why.vips.is_empty() {
        let _ = writeln!(out, "\n{}  {}", screen.paint("Address", Style::Bold), joined(&why.vips));
    }
    if !why.nodes.is_empty() {
        let mut table = Table::new(&[("NODE WITHOUT NEW FLOWS", Column::Name), ("WHY", Column::Cut)]);
        for node in &why.nodes {
            table.row(vec![node.node.as_str().into(), node.reason.as_str().into()]);
        }
        let _ = write!(out, "\n{}", table.render(screen));
    }
    out + &notices(&why.notices, screen)
}

fn list(status: &Status, screen: &Screen) -> String {
    let mut out = String::new();
    if status.services.is_empty() {
        out.push_str("no Service of the cluster is for this load balancer\n");
    } else {
        let columns =
            [("SERVICE", Column::Name), ("TYPE", Column::Left), ("ADDRESS", Column::Left), ("STATE", Column::Cut)];
        let mut table = Table::new(&columns);
        for line in &status.services {
            let style = if line.stage == "programmed" { Style::Good } else { Style::Warn };
            table.row(vec![
                line.service.as_str().into(),
                if line.exposed { "NodePort, exposed".into() } else { "LoadBalancer".into() },
                if line.vips.is_empty() { "-".into() } else { joined(&line.vips).into() },
                styled(line.stage.replace('-', " "), style),
            ]);
        }
        out.push_str(&table.render(screen));
    }
    out + &notices(&status.notices, screen)
}

/// What `penstock status` says of the cluster.
pub(super) fn summary(status: &Status, screen: &Screen) -> String {
    let leader = match (status.leader, status.holder.as_str()) {
        (true, _) => "this box leads".to_owned(),
        (false, "") => "no leader yet".to_owned(),
        (false, holder) => format!("{holder} leads"),
    };
    let term = status.term.map(|term| format!(", term {term}")).unwrap_or_default();
    let state = if status.acknowledged { "runs" } else { "is on its way" };
    let pending = status.services.iter().filter(|line| line.stage != "programmed").count();
    let mut out = format!("{}: {leader}{term}; generation {} {state}; ", status.owner, status.generation);
    let _ = write!(out, "{} of {} Services programmed", status.services.len() - pending, status.services.len());
    if pending > 0 {
        out.push_str("; `penstock why` lists them");
    }
    out = screen.wrap("", &out) + "\n";
    // kubectl shows the others' addresses.
    for line in status.services.iter().filter(|line| line.exposed && !line.vips.is_empty()) {
        let _ = writeln!(out, "{} (NodePort, exposed) {}", line.service, joined(&line.vips));
    }
    for notice in &status.notices {
        let _ = writeln!(out, "{}", screen.paint(&screen.wrap("- ", notice), Style::Warn));
    }
    out
}

fn joined(vips: &[std::net::IpAddr]) -> String {
    vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn notices(notices: &[String], screen: &Screen) -> String {
    if notices.is_empty() {
        return String::new();
    }
    let lines: String = notices.iter().map(|notice| screen.wrap("- ", notice) + "\n").collect();
    format!("\n{}\n{lines}", screen.paint("Notices", Style::Bold))
}
