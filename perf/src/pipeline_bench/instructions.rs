//! Instructions per packet, counted by callgrind: the figure that repeats exactly.
//!
//! The benchmark runs itself under valgrind twice per case: once settling the packets, once only
//! copying them into the frames. All else (building the tables, opening the flows) is the same, so the
//! difference is what the pipeline executed. That needs no macros in the code measured, no symbol that
//! inlining may take away, and no other harness than valgrind itself.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Context;
use clap::ValueEnum;
use penstock_configs::desired::{Mode, Protocol};

use super::churn::Opening;
use super::hits::{Hits, Way};
use super::measure::{BLOCK, Bench, Clock, Target, Traffic, Verdicts};
use super::world::{Plan, World};
use penstock_dataplane::io::{Frame, PacketMemory};
use penstock_dataplane::verdict::{PortId, Verdict};

/// Packets counted.
const PACKETS: usize = 400 * BLOCK;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Counted {
    Hit4,
    Hit4Copy,
    Hit6,
    Hit6Copy,
    HitUdp4,
    HitUdp4Copy,
    New4,
    New4Copy,
    Renewed4,
    Renewed4Copy,
}

/// Name in the baseline, the run that settles, the run that only copies.
const PAIRS: [(&str, Counted, Counted); 5] = [
    ("hit_nat4", Counted::Hit4, Counted::Hit4Copy),
    ("hit_nat6", Counted::Hit6, Counted::Hit6Copy),
    ("hit_udp_nat4", Counted::HitUdp4, Counted::HitUdp4Copy),
    ("new_nat4", Counted::New4, Counted::New4Copy),
    // The first packet of each flow under new tables.
    ("renewed_nat4", Counted::Renewed4, Counted::Renewed4Copy),
];

/// The cases counted, in the order of their names.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    PAIRS.iter().map(|(name, ..)| *name)
}

/// What runs under valgrind.
pub fn run_counted(counted: Counted, packets: usize) -> anyhow::Result<()> {
    let v6 = matches!(counted, Counted::Hit6 | Counted::Hit6Copy);
    let is_udp = matches!(counted, Counted::HitUdp4 | Counted::HitUdp4Copy);
    let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
    let renewed = matches!(counted, Counted::Renewed4 | Counted::Renewed4Copy);
    let flows = if renewed { packets as u32 } else { 1000 };
    let mut world = World::build(Plan { v6, protocol, mode: Mode::Nat, flows, services: 100 }, None)?;
    if renewed {
        world.publish()?;
    }
    let blocks = packets / BLOCK;
    match counted {
        Counted::Hit4 | Counted::Hit6 | Counted::HitUdp4 | Counted::Renewed4 => {
            let mut hits = Hits::of(&mut world, Way::Both);
            run(blocks, &mut world, &mut hits)
        }
        Counted::Hit4Copy | Counted::Hit6Copy | Counted::HitUdp4Copy | Counted::Renewed4Copy => {
            let mut hits = Hits::of(&mut world, Way::Both);
            run(blocks, &mut Nothing, &mut hits)
        }
        Counted::New4 => {
            let mut opening = Opening::of(&world);
            run(blocks, &mut world, &mut opening)
        }
        Counted::New4Copy => {
            let mut opening = Opening::of(&world);
            run(blocks, &mut Nothing, &mut opening)
        }
    }
}

fn run(blocks: usize, target: &mut impl Target, traffic: &mut impl Traffic) -> anyhow::Result<()> {
    let clock = Clock::none();
    Bench::new()?.run(&clock, blocks, target, traffic, false)?;
    Ok(())
}

/// Sends everything without a look at it.
struct Nothing;

impl Target for Nothing {
    fn burst(&mut self, _: &PacketMemory, from: PortId, frames: &mut [Frame], verdicts: &mut Verdicts) {
        verdicts.extend(frames.iter().map(|_| Verdict::Tx(from)));
    }
}

/// Instructions per packet of each case, to a tenth.
pub fn count() -> anyhow::Result<BTreeMap<String, f64>> {
    let per_packet = |(name, whole, copy): &(&str, Counted, Counted)| -> anyhow::Result<(String, f64)> {
        eprintln!("counting instructions: {name}");
        let difference = instructions(*whole)?.saturating_sub(instructions(*copy)?);
        Ok(((*name).to_owned(), (difference as f64 / PACKETS as f64 * 10.0).round() / 10.0))
    };
    PAIRS.iter().map(per_packet).collect()
}

fn instructions(counted: Counted) -> anyhow::Result<u64> {
    let name = counted.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        // The arguments up to here name the subcommand, however the binary calls it.
        .args(std::env::args().skip(1).take_while(|arg| !arg.starts_with("--")))
        .args(["--counted", &name, "--packets", &PACKETS.to_string()]);
    collected(command)
}

/// Instructions a program executed under callgrind.
pub fn collected(mut command: Command) -> anyhow::Result<u64> {
    let output = command.output().context("valgrind: is the package `valgrind` installed?")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let total = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    total.with_context(|| format!("valgrind counted nothing:\n{text}"))
}
