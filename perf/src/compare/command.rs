//! `penstock-perf compare`: rounds of measurements, and the report.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::cases::{Case, Effort};
use super::charts;
use super::cpu::foreign_load;
use super::peers::{self, Peer};
use super::report::Report;
use super::table::in_brief;
use crate::figures::FiguresFile;
use crate::plot;
use crate::privilege;
use crate::traffic::precedence::Precedence;

/// The same traffic through Penstock and others, in turn.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// Only these, by name; default: all that are here
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// What to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Case::Pps, Case::Live, Case::Conn, Case::Bulk, Case::Latency, Case::Memory])]
    cases: Vec<Case>,
    /// Times each is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Of each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// UDP flows; the memory case has 1,000,000 unless told otherwise
    #[arg(long)]
    flows: Option<u32>,
    /// About two minutes: packets and connections of the peers that matter most
    #[arg(long, conflicts_with_all = ["peers", "cases", "rounds", "seconds"])]
    quick: bool,
    /// Also write the figures here, every round's; after each round to FILE.partial
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw charts (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// List peers and what is here
    #[arg(long)]
    list: bool,
}

const QUICK: [&str; 7] = ["direct", "bare", "penstock", "kernel", "nftables", "nftables-rps", "haproxy"];
const FLOWS: u32 = 4096;
const MEMORY_FLOWS: u32 = 1_000_000;

/// # Errors
/// No lab can be made here, an unknown peer, or not one measurement succeeded.
pub fn command(args: &CompareArgs) -> Result<()> {
    let args = if args.quick { &quick(args) } else { args };
    let chosen = choose(&args.peers)?;
    if args.list {
        for peer in chosen {
            println!(
                "{:<12} {}{}",
                peer.name(),
                peer.what(),
                peer.missing().map_or(String::new(), |why| format!("  NOT HERE: {why}"))
            );
        }
        return Ok(());
    }
    if let Some(reason) = privilege::missing() {
        bail!("{reason}");
    }
    ensure!(args.seconds >= 1.0, "less than a second says nothing: --seconds {}", args.seconds);
    ensure!(crate::config::cores() >= 2, "generator and box want a core each");
    let effort = Effort {
        duration: Duration::from_secs_f64(args.seconds),
        flows: args.flows.unwrap_or(FLOWS),
        memory_flows: args.flows.unwrap_or(MEMORY_FLOWS),
    };
    let file = args.json.as_deref().map(FiguresFile::prepare).transpose()?;
    if let Some(directory) = &args.plot {
        plot::prepare(directory)?;
    }
    let _precedence = Precedence::take();
    let mut report = Report::new(&chosen, &args.cases, &effort, args.rounds, foreign_load()?);
    measure_all(&mut report, &chosen, &args.cases, &effort, args.rounds, |report| {
        // A full disk is no reason to end a run of an hour.
        if let Some(Err(error)) = file.as_ref().map(|file| file.keep(&report.summary())) {
            eprintln!("{error:#}");
        }
    });
    println!("{}", report.text());
    if let Some(file) = file {
        file.finish(&report.summary())?;
    }
    if let Some(directory) = &args.plot {
        plot::write(directory, &charts::of(&report.summary()))?;
    }
    ensure!(report.has_figures(), "not one measurement succeeded");
    Ok(())
}

fn quick(args: &CompareArgs) -> CompareArgs {
    CompareArgs {
        peers: QUICK.map(str::to_owned).into(),
        cases: vec![Case::Pps, Case::Conn],
        rounds: 3,
        seconds: 2.0,
        ..args.clone()
    }
}

fn choose(names: &[String]) -> Result<Vec<&'static dyn Peer>> {
    let all = peers::all();
    if names.is_empty() {
        return Ok(all);
    }
    for name in names {
        let known: Vec<_> = all.iter().map(|peer| peer.name()).collect();
        ensure!(known.contains(&name.as_str()), "no peer {name:?}; there are {}", known.join(", "));
    }
    Ok(all.into_iter().filter(|peer| names.iter().any(|name| name == peer.name())).collect())
}

/// Round after round, peer after peer, in an order of the round's own. A failure costs its own figure, and is said.
fn measure_all(
    report: &mut Report,
    chosen: &[&'static dyn Peer],
    cases: &[Case],
    effort: &Effort,
    rounds: usize,
    after_round: impl Fn(&Report),
) {
    let started = Instant::now();
    let here: Vec<_> = chosen.iter().filter(|peer| peer.missing().is_none()).collect();
    let fit = |case: Case| here.iter().filter(move |peer| peer.unfit(case).is_none());
    let total = rounds * cases.iter().map(|case| fit(*case).count()).sum::<usize>();
    let mut done = 0;
    for round in 1..=rounds {
        for case in cases {
            let peers: Vec<_> = fit(*case).collect();
            for peer in order(round, peers.len()).map(|place| peers[place]) {
                done += 1;
                let outcome = case.measure(**peer, effort);
                let said = match &outcome {
                    Ok(sample) => in_brief(sample),
                    Err(error) => format!("FAILED: {error:#}"),
                };
                let elapsed = started.elapsed().as_secs();
                eprintln!("{elapsed:>5}s  {done}/{total}  round {round}, {case}, {:<12} {said}", peer.name());
                report.add(round, peer.name(), outcome);
            }
        }
        after_round(report);
    }
}

/// The order of a round, the first of which is 1: what a peer leaves behind for a while (connection tracking, freed in the
/// background) shall not always meet the same. A Latin square balanced for what comes before (Williams 1949): over as many
/// rounds as there are of them, twice as many if their number is odd, each comes behind each other one equally often.
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    // An odd number's square is balanced only together with its mirror image.
    let (row, mirrored) =
        if count.is_multiple_of(2) { (round - 1, false) } else { ((round - 1) / 2, round.is_multiple_of(2)) };
    (0..count).map(move |place| {
        let place = if mirrored { count - 1 - place } else { place };
        // 0, 1, -1, 2, -2 and so on.
        let step = if place.is_multiple_of(2) { count - place / 2 } else { place.div_ceil(2) };
        (row + step) % count
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::order;

    #[test]
    fn each_comes_behind_each_other_equally_often() {
        for count in 1..=12 {
            let (all, often) = if count % 2 == 0 { (count, 1) } else { (2 * count, 2) };
            let mut behind: BTreeMap<_, usize> = BTreeMap::new();
            for round in 1..=all {
                let order: Vec<_> = order(round, count).collect();
                assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), count, "{order:?}");
                order.windows(2).for_each(|pair| *behind.entry((pair[0], pair[1])).or_default() += 1);
            }
            assert_eq!(behind.len(), count * (count - 1), "{count} peers");
            assert!(behind.values().all(|times| *times == often), "{behind:?}");
        }
        assert_eq!(order(1, 0).count(), 0);
    }

    /// Also in the few rounds that are run, of eight peers never the same, of seven hardly.
    #[test]
    fn nobody_follows_the_same_one_in_every_round() {
        for (count, rounds) in [(8, 5), (7, 5), (8, 3), (3, 3), (2, 2)] {
            for peer in 0..count {
                let before = (1..=rounds).map(|round| {
                    let order: Vec<_> = order(round, count).collect();
                    order
                        .iter()
                        .position(|one| *one == peer)
                        .and_then(|place| order.get(place.wrapping_sub(1)))
                        .copied()
                });
                let before: Vec<_> = before.collect();
                let different = before.iter().collect::<BTreeSet<_>>().len();
                assert!(different >= if count % 2 == 0 { rounds } else { 2 }, "{peer} of {count} behind {before:?}");
            }
        }
    }
}
