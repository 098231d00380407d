//! `penstock top`: rates between two looks at the counters, redrawn in place.

use std::fmt::Write;
use std::time::{Duration, Instant};

use clap::Args;
use penstock_configs::status::{Counters, Ledger, Status, StatusQuery};

use super::failure::Outcome;
use super::screen::{Screen, Style};
use super::status::socket;
use super::table::{Column, Table, styled};
use super::units::{duration, grouped, short};
use crate::client::Dataplane;

/// Cursor home, then clear to the end: less flicker than clearing first.
pub(super) const CLEAR: &str = "\x1b[H\x1b[J";

/// Lines above and between the lists of services and drops.
const FRAME_LINES: usize = 12;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Time between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = super::seconds)]
    interval: Duration,
    /// Stop after this many screens
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
}

pub(super) async fn run(dataplane: &Dataplane, screen: &Screen, arguments: &Arguments) -> Outcome {
    let mut before = (Instant::now(), dataplane.counters().await?);
    let mut shown = 0;
    while arguments.count.is_none_or(|count| shown < count) {
        tokio::time::sleep(arguments.interval).await;
        let now = (Instant::now(), dataplane.counters().await?);
        let status = dataplane.status_of(&StatusQuery { backends: Some(0), ..StatusQuery::default() }).await?;
        let elapsed = now.0.duration_since(before.0).as_secs_f64();
        // A pipe gets one screen after another; a terminal sees one.
        let clear = if screen.height.is_some() { CLEAR } else { "" };
        screen.print(&format!("{clear}{}", render(&before.1, &now.1, elapsed, &status, *screen)))?;
        before = now;
        shown += 1;
    }
    Ok(())
}

/// Per second; a counter that went back means the dataplane was restarted.
#[allow(clippy::cast_precision_loss, reason = "rates are shown with three digits")]
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

fn render(before: &Counters, now: &Counters, seconds: f64, status: &Status, screen: Screen) -> String {
    let mut out = format!(
        "{}  penstock {}, up {}\n\n",
        screen.paint(&status.name, Style::Bold),
        status.version,
        duration(status.uptime_seconds)
    );
    out.push_str(&workers(before, now, seconds, status, screen));
    let drops = drops(&before.total, &now.total, seconds);
    let room = screen
        .height
        .map_or(20, |height| height.saturating_sub(FRAME_LINES + now.workers.len() + drops.len().min(5)).max(3));
    let _ = write!(out, "\n{}", services(status, room, screen));
    let mut table = Table::new(&[("DROPS/s", Column::Right), ("REASON", Column::Left)]);
    for (reason, rate) in drops.iter().take(5) {
        table.row(vec![short(*rate).into(), reason.as_str().into()]);
    }
    out.push('\n');
    out.push_str(&if drops.is_empty() { "no drops\n".to_owned() } else { table.render(&screen) });
    out
}

fn workers(before: &Counters, now: &Counters, seconds: f64, status: &Status, screen: Screen) -> String {
    let mut table = Table::new(&[
        ("WORKER", Column::Left),
        ("BUSY", Column::Right),
        ("RX/s", Column::Right),
        ("TX/s", Column::Right),
        ("DROP/s", Column::Right),
        ("KERNEL/s", Column::Right),
        ("HANDED/s", Column::Right),
        ("FLOWS", Column::Right),
    ]);
    let none = Ledger::default();
    for worker in &now.workers {
        let earlier = before.workers.iter().find(|earlier| earlier.worker == worker.worker);
        let earlier = earlier.map_or(&none, |earlier| &earlier.ledger);
        let seen = status.workers.iter().find(|seen| seen.worker == worker.worker);
        let name = worker.worker.to_string();
        let busy = seen.map_or_else(|| "-".to_owned(), |seen| format!("{:.0}%", seen.busy * 100.0));
        table.row(worker_row(name, busy, earlier, &worker.ledger, seconds, worker.flows.established));
    }
    let flows = now.workers.iter().map(|worker| worker.flows.established).sum();
    table.row(worker_row("all".into(), String::new(), &before.total, &now.total, seconds, flows));
    table.render(&screen)
}

fn worker_row(
    name: String,
    busy: String,
    before: &Ledger,
    now: &Ledger,
    seconds: f64,
    flows: u64,
) -> Vec<super::table::Cell> {
    let dropped = rate(before.dropped(), now.dropped(), seconds);
    let style = if dropped > 0.0 { Style::Warn } else { Style::Plain };
    vec![
        name.into(),
        busy.into(),
        short(rate(before.rx, now.rx, seconds)).into(),
        short(rate(before.tx, now.tx, seconds)).into(),
        styled(short(dropped), style),
        short(rate(before.kernel, now.kernel, seconds)).into(),
        short(rate(before.handoff_out, now.handoff_out, seconds)).into(),
        grouped(flows).into(),
    ]
}

fn services(status: &Status, room: usize, screen: Screen) -> String {
    let mut services: Vec<_> = status.services.iter().collect();
    services.sort_by(|a, b| b.new_flows_per_second.total_cmp(&a.new_flows_per_second).then(b.flows.cmp(&a.flows)));
    let mut table = Table::new(&[
        ("SERVICE", Column::Name),
        ("ADDRESS", Column::Left),
        ("NEW/s", Column::Right),
        ("FLOWS", Column::Right),
    ]);
    for service in services.iter().take(room) {
        table.row(vec![
            service.name.as_str().into(),
            format!("{} {}", socket(service.vip, service.port), service.protocol.as_str()).into(),
            short(service.new_flows_per_second).into(),
            grouped(service.flows).into(),
        ]);
    }
    table.render(&screen)
}

fn drops(before: &Ledger, now: &Ledger, seconds: f64) -> Vec<(String, f64)> {
    let since = |reason: &String| before.drops.get(reason).copied().unwrap_or(0);
    let mut drops: Vec<(String, f64)> =
        now.drops.iter().map(|(reason, count)| (reason.clone(), rate(since(reason), *count, seconds))).collect();
    drops.retain(|(_, rate)| *rate > 0.0);
    drops.sort_by(|a, b| b.1.total_cmp(&a.1));
    drops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_survive_restarts_and_a_clock_that_did_not_move() {
        assert!((rate(10, 30, 2.0) - 10.0).abs() < 1e-9);
        assert!(rate(30, 10, 2.0).abs() < 1e-9, "counters went back: restarted");
        assert!(rate(0, 10, 0.0).abs() < 1e-9);
        let ledger =
            |count| Ledger { drops: [("a".to_owned(), count), ("b".to_owned(), 1)].into(), ..Ledger::default() };
        let drops = drops(&ledger(1), &ledger(5), 2.0);
        assert_eq!(drops.len(), 1, "what did not move is not listed");
        assert!((drops[0].1 - 2.0).abs() < 1e-9);
    }
}
