//! `penstock counters` and `penstock explain`: where packets went, and what each drop reason means.

use std::collections::HashMap;
use std::fmt::Write;

use clap::Args;
use penstock_configs::status::{Counters, Ledger, Reason, SocketCounters};

use super::failure::{Failure, Outcome};
use super::screen::{Screen, Style};
use super::table::{Column, Table, styled};
use super::units::{bytes, duration, grouped, share};
use crate::client::Dataplane;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The dataplane's own JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    /// A drop reason, as `penstock counters` and the metrics name it
    #[arg(required_unless_present = "list")]
    reason: Option<String>,
    /// Every reason
    #[arg(long)]
    list: bool,
}

pub(super) async fn run(dataplane: &Dataplane, screen: &Screen, arguments: &Arguments) -> Outcome {
    let counters = dataplane.counters().await?;
    if arguments.json {
        return screen.print(&(serde_json::to_string_pretty(&counters)? + "\n"));
    }
    let reasons = dataplane.reasons().await?;
    screen.print(&render(&counters, &reasons, screen))
}

fn render(counters: &Counters, reasons: &[Reason], screen: &Screen) -> String {
    let mut out = format!("since the start, {} ago\n\n", duration(counters.uptime_seconds));
    out.push_str(&ledgers(counters, screen));
    let imbalance = counters.total.imbalance();
    if imbalance != 0 {
        let text = format!(
            "{imbalance} packets are not accounted for. While packets flow, workers are read one after another and a \
             few may be between two of them; a number that stays is a bug"
        );
        let _ = write!(out, "{}", screen.paint(&(screen.wrap("", &text) + "\n"), Style::Warn));
    }
    let _ = write!(out, "\n{}\n{}", screen.paint("Drops", Style::Bold), drops(&counters.total, reasons, screen));
    let _ = write!(out, "\n{}\n{}", screen.paint("Flows and frames", Style::Bold), tables(counters, screen));
    let _ = write!(out, "\n{}\n{}", screen.paint("Before the workers (XDP program)", Style::Bold), steer(counters));
    if !counters.ports.is_empty() {
        let _ = write!(out, "\n{}\n{}", screen.paint("Ports", Style::Bold), ports(counters, screen));
    }
    let troubled = sockets(counters, screen);
    if !troubled.is_empty() {
        let _ = write!(out, "\n{}\n{troubled}", screen.paint("Sockets with trouble", Style::Bold));
    }
    out
}

/// What the XDP program kept from the workers.
fn steer(counters: &Counters) -> String {
    let steer = &counters.steer;
    let parts = [
        ("to the workers", steer.redirected),
        ("to the kernel, not ours", steer.passed + steer.malformed),
        ("to the kernel, ours or not, by receive queues not served", steer.unserved),
        ("to the kernel, headers not in the first of several buffers", steer.split),
        ("dropped, no process had a socket", steer.no_socket),
        ("dropped, policed (box.new_per_vip)", steer.policed),
    ];
    parts.iter().map(|(name, count)| format!("{:>15}  {name}\n", grouped(*count))).collect()
}

/// A number of the ledger.
type Part = fn(&Ledger) -> u64;

fn ledgers(counters: &Counters, screen: &Screen) -> String {
    let mut columns = vec![("PACKETS", Column::Left), ("TOTAL", Column::Right)];
    let names: Vec<String> = counters.workers.iter().map(|worker| format!("WORKER {}", worker.worker)).collect();
    // More workers than fit: their sum is enough here, and --json has each.
    let each = screen.width.is_none_or(|width| 34 + 16 * names.len() <= width);
    if each {
        columns.extend(names.iter().map(|name| (name.as_str(), Column::Right)));
    }
    let mut table = Table::new(&columns);
    let parts: [(&str, Part); 8] = [
        ("received", |ledger| ledger.rx),
        ("generated", |ledger| ledger.generated),
        ("handed over, in", |ledger| ledger.handoff_in),
        ("sent", |ledger| ledger.tx),
        ("handed over, out", |ledger| ledger.handoff_out),
        ("to the kernel", |ledger| ledger.kernel),
        ("dropped", Ledger::dropped),
        ("held now", |ledger| ledger.held),
    ];
    for (name, part) in parts {
        let mut cells = vec![name.into(), grouped(part(&counters.total)).into()];
        if each {
            cells.extend(counters.workers.iter().map(|worker| grouped(part(&worker.ledger)).into()));
        }
        table.row(cells);
    }
    table.render(screen)
}

fn drops(total: &Ledger, reasons: &[Reason], screen: &Screen) -> String {
    let help: HashMap<&str, &str> = reasons.iter().map(|reason| (reason.name.as_str(), reason.help.as_str())).collect();
    let mut drops: Vec<(&String, u64)> = total.drops.iter().map(|(name, count)| (name, *count)).collect();
    drops.retain(|(_, count)| *count > 0);
    drops.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    if drops.is_empty() {
        return "none\n".to_owned();
    }
    let all = total.dropped();
    let mut out = String::new();
    for (name, count) in drops {
        let first = format!("{:>15}  {:>4}  ", grouped(count), share(count, all));
        let meaning = help.get(name.as_str()).copied().unwrap_or("a reason this build does not know");
        out.push_str(&screen.wrap(&first, &format!("{name}: {meaning}")));
        out.push('\n');
    }
    out
}

fn tables(counters: &Counters, screen: &Screen) -> String {
    let mut table = Table::new(&[
        ("WORKER", Column::Right),
        ("FLOWS", Column::Right),
        ("FULL", Column::Right),
        ("HALF-OPEN", Column::Right),
        ("FULL", Column::Right),
        ("EVICTED", Column::Right),
        ("FRAMES FREE", Column::Right),
        ("OF", Column::Right),
    ]);
    for worker in &counters.workers {
        let (flows, frames) = (&worker.flows, &worker.frames);
        let evicted = if flows.evicted > 0 { Style::Warn } else { Style::Plain };
        table.row(vec![
            worker.worker.to_string().into(),
            grouped(flows.established).into(),
            share(flows.established, flows.established_capacity).into(),
            grouped(flows.embryonic).into(),
            share(flows.embryonic, flows.embryonic_capacity).into(),
            styled(grouped(flows.evicted), evicted),
            grouped(frames.free).into(),
            grouped(frames.total).into(),
        ]);
    }
    table.render(screen) + "\n" + &resets_and_clients(counters, screen)
}

/// How flows ended by the box's word, and the clients of services with affinity.
fn resets_and_clients(counters: &Counters, screen: &Screen) -> String {
    let mut table = Table::new(&[
        ("WORKER", Column::Right),
        ("IDLE RESET", Column::Right),
        ("RST DOUBTED", Column::Right),
        ("STICKY CLIENTS", Column::Right),
        ("FULL", Column::Right),
        ("EVICTED", Column::Right),
        ("ASKED", Column::Right),
    ]);
    for worker in &counters.workers {
        let flows = &worker.flows;
        let evicted = if flows.affinity_evicted > 0 { Style::Warn } else { Style::Plain };
        table.row(vec![
            worker.worker.to_string().into(),
            grouped(flows.idle_resets).into(),
            grouped(flows.resets_doubted).into(),
            grouped(flows.affinity).into(),
            share(flows.affinity, flows.affinity_capacity).into(),
            styled(grouped(flows.affinity_evicted), evicted),
            grouped(flows.affinity_asked).into(),
        ]);
    }
    table.render(screen)
}

fn ports(counters: &Counters, screen: &Screen) -> String {
    let mut table = Table::new(&[
        ("INTERFACE", Column::Left),
        ("RECEIVED", Column::Right),
        ("BYTES", Column::Right),
        ("SENT", Column::Right),
        ("BYTES", Column::Right),
    ]);
    for port in &counters.ports {
        table.row(vec![
            port.interface.as_str().into(),
            grouped(port.rx_packets).into(),
            bytes(port.rx_bytes).into(),
            grouped(port.tx_packets).into(),
            bytes(port.tx_bytes).into(),
        ]);
    }
    table.render(screen)
}

fn sockets(counters: &Counters, screen: &Screen) -> String {
    let mut out = String::new();
    for socket in counters.workers.iter().flat_map(|worker| &worker.sockets) {
        for (count, meaning) in troubles(socket).into_iter().filter(|(count, _)| *count > 0) {
            let first = format!("{:>15}  {} queue {}: ", grouped(count), socket.interface, socket.queue);
            out.push_str(&screen.wrap(&first, meaning));
            out.push('\n');
        }
    }
    out
}

/// In the order of the kernel's `xdp_statistics`, then our own.
fn troubles(socket: &SocketCounters) -> [(u64, &'static str); 6] {
    [
        (
            socket.refused(),
            "dropped by the kernel: larger than a frame (workers.frame_size), or than the frames that were free",
        ),
        (
            socket.rx_invalid_descriptors + socket.tx_invalid_descriptors + socket.bad_descriptors,
            "invalid descriptors: a bug, please report",
        ),
        (
            socket.overrun(),
            "dropped because the worker was too slow: more workers or queues, or workers.ring_size; workers.frames where few \
             frames are free",
        ),
        (
            if socket.zero_copy { socket.fill_ring_empty } else { 0 },
            "times the card found no free frame: of harm only where it drops packets too (ethtool -S)",
        ),
        (
            socket.rx_oversize,
            "dropped, larger than any MTU here: merged on the way; ethtool -K IF lro off rx-gro-hw off",
        ),
        (socket.kick_errors, "times the kernel would not be woken: the link is down, or the interface gone"),
    ]
}

pub(super) async fn explain(dataplane: &Dataplane, screen: &Screen, arguments: &ExplainArguments) -> Outcome {
    let reasons = dataplane.reasons().await?;
    let Some(wanted) = arguments.reason.as_deref().filter(|_| !arguments.list) else {
        let mut table = Table::new(&[("REASON", Column::Left), ("MEANING", Column::Left)]);
        if screen.width.is_none() {
            reasons.iter().for_each(|reason| table.row(vec![reason.name.as_str().into(), reason.help.as_str().into()]));
            return screen.print(&table.render(screen));
        }
        let width = reasons.iter().map(|reason| reason.name.len()).max().unwrap_or(0);
        let line = |reason: &Reason| screen.wrap(&format!("{:width$}  ", reason.name), &reason.help) + "\n";
        return screen.print(&reasons.iter().map(line).collect::<String>());
    };
    let spelt = wanted.to_ascii_lowercase().replace('-', "_");
    let Some(reason) = reasons.iter().find(|reason| reason.name == spelt) else {
        return Err(Failure::input(format!("no drop reason `{wanted}`; `penstock explain --list` has them all")));
    };
    let seen = dataplane.counters().await?.total.drops.get(&reason.name).copied().unwrap_or(0);
    let seen = format!("{} packets since the start", grouped(seen));
    screen.print(&format!("{}\n{seen}\n", screen.wrap(&format!("{}: ", reason.name), &reason.help)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_by_queues_that_are_not_served_have_their_own_line() {
        let mut counters = Counters::default();
        (counters.steer.passed, counters.steer.unserved, counters.steer.malformed) = (5, 70, 1);
        let said = steer(&counters);
        let count =
            |what: &str| said.lines().find(|line| line.contains(what)).map(|line| line.trim().split(' ').next());
        assert_eq!(count("not ours"), Some(Some("6")), "{said}");
        assert_eq!(count("queues not served"), Some(Some("70")), "{said}");
    }

    /// As the kernel counts what a worker in copy mode did not fetch in time.
    #[test]
    fn a_slow_worker_is_not_told_to_have_larger_frames() {
        let socket = SocketCounters { rx_dropped: 7, fill_ring_empty: 7, ..SocketCounters::default() };
        let said: Vec<_> = troubles(&socket).into_iter().filter(|(count, _)| *count > 0).collect();
        assert!(
            matches!(said[..], [(7, why)] if why.starts_with("dropped because the worker was too slow")),
            "{said:?}"
        );
        let socket = SocketCounters { rx_dropped: 7, ..SocketCounters::default() };
        let said: Vec<_> = troubles(&socket).into_iter().filter(|(count, _)| *count > 0).collect();
        assert!(matches!(said[..], [(7, why)] if why.contains("workers.frame_size")), "{said:?}");
        let socket = SocketCounters { fill_ring_empty: 7, zero_copy: true, ..SocketCounters::default() };
        let said: Vec<_> = troubles(&socket).into_iter().filter(|(count, _)| *count > 0).collect();
        assert!(matches!(said[..], [(7, why)] if why.contains("the card")), "{said:?}");
    }
}
