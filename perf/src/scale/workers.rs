//! One worker, two, as many as there are cores: packets per second, and the share handed from one to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use penstock_dataplane::flow::Capacity;
use penstock_dataplane::handoff::Exchange;
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::verdict::DropReason;

use super::gaps::Feed;
use super::report::{Figure, Section};
use super::rig::{self, Member, Site, Turning};
use crate::pipeline_bench::measure;
use crate::pipeline_bench::packets::Template;
use crate::plot::{self, Labels, Line, Scale};

/// How packets come to workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// A NIC whose hash the box knows: every packet comes to its owner.
    Home,
    /// Queues that know nothing of owners, as on veth. As many packets as nothing is lost of.
    Blind,
    /// The same, as many as the workers take: what another worker has no room for is dropped, by name.
    Flood,
}

const SPREADS: [(Spread, &str); 3] = [
    (Spread::Home, "every packet comes to its owner"),
    (Spread::Blind, "queues know nothing of owners"),
    (Spread::Flood, "the same, flat out"),
];

/// What a run came to.
struct Run {
    mpps: f64,
    /// Packets handed over, of those received; and dropped, as another worker had no room.
    handed: f64,
    full: f64,
}

pub fn run(quick: bool) -> anyhow::Result<Section> {
    let cores = core_affinity::get_core_ids().context("the kernel does not say which cores there are")?;
    let flows = if quick { 2_000 } else { 100_000 };
    let mut section =
        Section::new("workers", format!("packets of {flows} established flows, 1 to {} workers", cores.len()));
    let counts: Vec<usize> = (0..).map(|n| 1 << n).take_while(|n| *n < cores.len()).chain([cores.len()]).collect();
    let rounds = if quick { 1 } else { 5 };
    let mut lines = SPREADS.map(|(_, name)| (name, Vec::new()));
    let mut single = f64::NAN;
    for &workers in &counts {
        // Each in turn, so that what else the machine does is in all of them.
        let mut runs = SPREADS.map(|_| Vec::new());
        for round in 1..=rounds {
            eprintln!("  {workers} workers, round {round} of {rounds}");
            for ((spread, _), runs) in SPREADS.into_iter().zip(&mut runs) {
                // A worker alone owns every flow.
                if workers > 1 || spread == Spread::Home {
                    runs.push(once(workers, spread, flows, quick)?);
                }
            }
        }
        for (((_, line), (_, name)), runs) in lines.iter_mut().zip(SPREADS).zip(&runs) {
            if runs.is_empty() {
                line.push((1.0, single));
                continue;
            }
            let of = |of: fn(&Run) -> f64| runs.iter().map(of).collect::<Vec<_>>();
            let mpps = of(|run| run.mpps);
            let median = measure::Spread::of(&mpps).median;
            if workers == 1 {
                single = median;
            }
            let [handed, full] = [of(|run| run.handed), of(|run| run.full)].map(|r| measure::Spread::of(&r).median);
            let each = median / single / workers as f64;
            let beside = format!(
                "{each:.2} of one worker's each; {:.1} % handed over, {:.1} % dropped as handoff_full",
                handed * 100.0,
                full * 100.0
            );
            let plural = if workers == 1 { "" } else { "s" };
            section.add(Figure::of_runs(format!("{workers} worker{plural}, {name}"), &mpps, "Mpps").beside(beside));
            line.push((workers as f64, median));
        }
    }
    let labels = Labels {
        title: "Packets per second by workers".into(),
        subtitle: section.title.clone(),
        values: "million packets per second sent on, all workers".into(),
        along: "workers".into(),
    };
    let lines = lines.map(|(name, points)| Line { name: name.into(), points });
    section.charts.push(("scale-workers".into(), plot::lines(&labels, Scale::Log, Scale::Linear, &lines, &[])));
    section.note(
        "Every packet comes to its owner: a NIC whose RSS the box knows. Queues know nothing of owners: packets come to \
         any worker, and are held back while a ring between workers is full, as by senders who wait for answers; flat \
         out nobody waits.",
    );
    Ok(section)
}

fn once(workers: usize, spread: Spread, flows: u32, quick: bool) -> anyhow::Result<Run> {
    let mut site = Site::new(false, 100, 64);
    let view = site.compiled_view()?;
    let room = Capacity { established: flows, embryonic: 1 << 12 };
    let mut members = Vec::new();
    let (mut forward, mut reverse): (Vec<Vec<Template>>, Vec<Vec<Template>>) = (Vec::new(), Vec::new());
    for worker in 0..workers as u16 {
        let mut member = Member::new(&site, room, worker, workers as u16)?;
        drop(member.pipeline.adopt(Arc::clone(&view)));
        let (mut from_clients, mut from_nodes) = (Vec::new(), Vec::new());
        member.establish(0..u64::from(flows), |_, from_client, from_node| {
            from_clients.push(from_client);
            from_nodes.push(from_node);
        })?;
        forward.push(from_clients);
        reverse.push(from_nodes);
        members.push(member);
    }
    let opened: usize = forward.iter().map(Vec::len).sum();
    ensure!(opened == flows as usize, "{opened} flows have owners, not {flows}");
    if spread != Spread::Home {
        for packets in [&mut forward, &mut reverse] {
            *packets = dealt(packets);
        }
    }
    let exchange = Arc::new(Exchange::new(workers as u16, 2048)?);
    let cores = core_affinity::get_core_ids().context("no cores")?;
    // The last cores: interrupts and everybody else like the first.
    let cores = &cores[cores.len() - workers..];
    let stop = Arc::new(AtomicBool::new(false));
    let stats: Vec<Arc<WorkerStats>> = members.iter().map(|member| Arc::clone(&member.stats)).collect();
    let mut threads = Vec::new();
    for (((member, core), forward), reverse) in members.into_iter().zip(cores).zip(forward).zip(reverse) {
        let id = member.worker;
        let ports = [forward, reverse].map(|packets| match Feed::new(packets.into(), 0) {
            feed if spread == Spread::Blind => feed.held_back(&exchange, id),
            feed => feed,
        });
        let mut turning = Turning::new(member, &exchange, rig::pool(), ports);
        let (stop, core) = (Arc::clone(&stop), *core);
        threads.push(std::thread::spawn(move || {
            core_affinity::set_for_current(core);
            turning.worker.run(&stop);
        }));
    }
    let seen = |counter: fn(&WorkerStats) -> u64| stats.iter().map(|stats| counter(stats)).sum::<u64>() as f64;
    let full = |stats: &WorkerStats| stats.drops[DropReason::HandoffFull as usize].get();
    let all = || [seen(|s| s.tx.get()), seen(|s| s.handoff_out.get()), seen(full), seen(|s| s.rx.get())];
    std::thread::sleep(Duration::from_millis(if quick { 50 } else { 300 }));
    let (before, start) = (all(), Instant::now());
    std::thread::sleep(Duration::from_millis(if quick { 100 } else { 1000 }));
    let (after, seconds) = (all(), start.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        ensure!(thread.join().is_ok(), "a worker panicked");
    }
    let [sent, handed, refused, received] = std::array::from_fn(|at| after[at] - before[at]);
    ensure!(spread == Spread::Flood || seen(full) == 0.0, "{} packets found a ring full", seen(full));
    let other = seen(WorkerStats::dropped) - seen(full);
    ensure!(other == 0.0, "{other} packets were dropped, not for a full ring");
    Ok(Run { mpps: sent / seconds / 1e6, handed: handed / received.max(1.0), full: refused / received.max(1.0) })
}

/// Packets of all in turn to each: a queue has of every owner's.
fn dealt(owned: &[Vec<Template>]) -> Vec<Vec<Template>> {
    let workers = owned.len();
    let mut queues = vec![Vec::new(); workers];
    let longest = owned.iter().map(Vec::len).max().unwrap_or(0);
    for at in 0..longest {
        for (owner, packets) in owned.iter().enumerate() {
            if let Some(packet) = packets.get(at) {
                queues[(at + owner) % workers].push(*packet);
            }
        }
    }
    queues
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_bench::packets::{Endpoints, TcpFlags, from_client};

    #[test]
    fn queues_that_know_nothing_of_owners_have_of_everyones() {
        let packet = |owner: u16, n: u32| {
            let ends = Endpoints { src: [10, 0, 0, 1].into(), dst: [10, 0, 0, 2].into(), src_port: owner, dst_port: 1 };
            from_client(ends, TcpFlags::Ack, n).unwrap()
        };
        let owned: Vec<Vec<Template>> = (0..3).map(|owner| (0..30).map(|n| packet(owner, n)).collect()).collect();
        let queues = dealt(&owned);
        assert_eq!(queues.iter().map(Vec::len).sum::<usize>(), 90);
        for queue in &queues {
            let of = |owner: u16| queue.iter().filter(|p| p.bytes()[34..36] == owner.to_be_bytes()).count();
            assert_eq!([of(0), of(1), of(2)], [10, 10, 10]);
        }
    }
}
