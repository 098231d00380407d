//! What `penstock-perf demo` shows where the lab of namespaces can't be had.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Builder, Link, Load, MemLab, Talk, Tally};

const REMOVED: &str = "node1";
const REDRAW: Duration = Duration::from_millis(100);

/// What to show.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// TCP connections before, and again after, a node is taken out; half of them IPv6.
    pub connections: u64,
    /// UDP exchanges before, and again after.
    pub udp_flows: u64,
    pub workers: u16,
    pub seed: u64,
    /// Why the real lab can't be had: shown first.
    pub reason: String,
    /// Draw a line that counts up; for terminals.
    pub progress: bool,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { connections: 3000, udp_flows: 600, workers: 2, seed: 1, reason: String::new(), progress: false }
    }
}

/// What was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub before: Tally,
    pub after: Tally,
    pub removed: String,
    /// Slots of the table that surviving nodes lost without need, and the table's size.
    pub slots_moved: Option<(u32, u32)>,
}

impl Summary {
    #[must_use]
    pub fn failed(&self) -> usize {
        self.before.failed.len() + self.after.failed.len()
    }
}

/// Runs the demo over memory ports.
///
/// # Errors
/// The lab can't be built, `out` can't be written, something did not work that must.
pub fn demo(out: &mut impl Write, options: &DemoOptions) -> Result<Summary> {
    let link = Link { loss: 10, reorder: 10, duplicate: 5, ..Link::default() };
    introduce(out, options, link)?;
    let mut lab = MemLab::builder().clients(2).workers(options.workers).link(link).seed(options.seed).build()?;

    writeln!(out, "\n2. Connections\n   Every one is a connection of its own; every byte of it is compared.")?;
    let before = traffic(out, options, &mut lab)?;
    writeln!(out, "\n3. One node less\n   {REMOVED} is taken out of the backend set while the box runs.")?;
    lab.remove_backend(REMOVED)?;
    let moved = lab.slots_moved();
    if let Some((excess, moved, size)) = moved {
        let share = f64::from(excess) * 100.0 / f64::from(size);
        writeln!(out, "     {moved} of the table's {size} slots moved; {excess} ({share:.2} %) from nodes that stay")?;
    }
    writeln!(out, "\n4. The same connections again\n   None may go to the missing node, none may fail.")?;
    let after = traffic(out, options, &mut lab)?;

    writeln!(out, "\nWhere the connections went:\n\n{}", table(&before, &after))?;
    conclude(out, &lab)?;
    let summary = Summary {
        before,
        after,
        removed: REMOVED.to_owned(),
        slots_moved: moved.map(|(excess, _, size)| (excess, size)),
    };
    ensure!(summary.failed() == 0, "{} exchanges failed: {}", summary.failed(), lab.describe());
    ensure!(!summary.after.by_node.contains_key(REMOVED), "{REMOVED} still got connections");
    Ok(summary)
}

fn introduce(out: &mut impl Write, options: &DemoOptions, link: Link) -> Result<()> {
    writeln!(out, "Penstock: a load balancer in front of three nodes, inside this one process.")?;
    if !options.reason.is_empty() {
        writeln!(out, "\nThe real lab can't be had here: {}.", options.reason)?;
    }
    writeln!(
        out,
        "What runs is the box's own code: its workers, flow tables, Maglev and NAT, over memory in place of network\n\
         cards, between user-space TCP/IP stacks (smoltcp) as clients and nodes. What this does not show, because\n\
         it takes a kernel's leave: the XDP program that steers packets, AF_XDP sockets, the kernel's own TCP, real\n\
         interfaces, and any rate: time is simulated. `make demo` as root on Linux shows those."
    )?;
    let ([v4, v6], port) = Builder::vips();
    writeln!(out, "\n1. The network")?;
    writeln!(out, "     VIP      {v4:<15} {v6}   port {port}, TCP and UDP")?;
    writeln!(out, "     2 clients, 3 nodes, {} workers; a packet arrives at any of them", options.workers)?;
    let percent = |per_mille: u32| f64::from(per_mille) / 10.0;
    writeln!(
        out,
        "     cables lose {} % of the frames, reorder {} %, double {} %",
        percent(link.loss),
        percent(link.reorder),
        percent(link.duplicate)
    )?;
    Ok(())
}

/// TCP over IPv4 and IPv6, and UDP; one sum.
fn traffic(out: &mut impl Write, options: &DemoOptions, lab: &mut MemLab) -> Result<Tally> {
    let udp = Talk::Udp { rounds: 2, size: 64 };
    let half = options.connections / 2;
    let loads = [
        ("TCP connections, IPv4", Load::new(options.connections - half, Talk::short()).at_a_time(64)),
        ("TCP connections, IPv6", Load::new(half, Talk::short()).v6().at_a_time(64)),
        ("UDP exchanges, IPv4", Load::new(options.udp_flows, udp)),
    ];
    let mut sum = Tally::default();
    for (what, load) in loads {
        let number = lab.offer(load);
        let mut drawn = Instant::now();
        let start = lab.elapsed();
        while lab.tally(number).ended() < load.connections {
            lab.pass(Duration::from_millis(20));
            ensure!(lab.elapsed() - start < Duration::from_secs(3600), "stuck: {}", lab.describe());
            if options.progress && drawn.elapsed() > REDRAW {
                drawn = Instant::now();
                write!(out, "\r     {what:<28} {} of {}", lab.tally(number).ended(), load.connections)?;
                out.flush()?;
            }
        }
        let tally = lab.tally(number);
        let start = if options.progress { "\r" } else { "" };
        let outcome = format!("{} answered, {} failed", thousands(tally.completed()), tally.failed.len());
        writeln!(out, "{start}     {what:<28} {outcome:<40}")?;
        sum = sum.with(tally);
    }
    lab.finish()?;
    lab.check()?;
    Ok(sum)
}

fn conclude(out: &mut impl Write, lab: &MemLab) -> Result<()> {
    let cables = lab.link_counters();
    writeln!(
        out,
        "     {} frames on the cables: {} lost, {} overtaken, {} doubled; every byte arrived, once and in order",
        thousands(cables.frames),
        thousands(cables.lost),
        thousands(cables.reordered),
        thousands(cables.duplicated)
    )?;
    writeln!(out, "     {} packets handed from one worker to the one that owns the flow", thousands(lab.handed_off()))?;
    writeln!(out, "     the ledger balances: every packet was sent on or dropped for a named reason")?;
    Ok(())
}

/// Lines of `node | before | share | after | share`, as the lab's own demo has them.
fn table(before: &Tally, after: &Tally) -> String {
    let mut nodes: Vec<&String> = before.by_node.keys().chain(after.by_node.keys()).collect();
    nodes.sort();
    nodes.dedup();
    let rule = "     ------+--------+---------+--------+---------\n";
    let mut text = format!("     node  | before |   share |  after |   share\n{rule}");
    for node in nodes {
        let cells = |tally: &Tally| {
            let count = tally.by_node.get(node).copied().unwrap_or(0);
            format!("{:>6} | {:>5.1} %", thousands(count), tally.share(node) * 100.0)
        };
        let note = if node == REMOVED { "   (taken out)" } else { "" };
        // Writing to a String can't fail.
        let _ = writeln!(text, "     {node:<5} | {} | {}{note}", cells(before), cells(after));
    }
    text.push_str(rule);
    let (completed, again) = (thousands(before.completed()), thousands(after.completed()));
    let _ = writeln!(text, "     total | {completed:>6} |         | {again:>6} |");
    let _ = writeln!(text, "     failed| {:>6} |         | {:>6} |", before.failed.len(), after.failed.len());
    text
}

/// 12345 as `12,345`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
