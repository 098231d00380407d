//! What a worker executes in one turn, counted by callgrind: the figure that repeats exactly, whatever the
//! machine does meanwhile.
//!
//! A worker with established flows is brought to where the turn comes, with time as an argument, under
//! valgrind; only [`counted`] is collected.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use penstock_dataplane::clock::Now;

use super::children;
use super::gaps::Feed;
use super::report::{Figure, Section};
use super::rig::{Site, Turning};
use super::snapshot::loaded;

/// Flows there are, and those with packets: more than a turn has.
const FLOWS: u32 = 20_000;
const FED: u32 = 1_000;
/// What a turn of a busy worker takes.
const TURN: Duration = Duration::from_micros(10);
const NAP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Turn {
    /// 128 packets of established flows.
    Quiet,
    /// The same, in the turn that takes up a new snapshot: all 128 flows are looked up anew.
    Adopting,
    /// A new snapshot and no packet: 10,000 services over 500 nodes.
    AdoptingAlone,
    /// The same with 10 services over 5 nodes.
    AdoptingFew,
    /// No packet, no snapshot.
    Idle,
    /// No packet, after a nap.
    AfterNap,
    /// The same, every flow it comes to looked up anew.
    RenewingAfterNap,
    /// The same, every flow looked up anew and forgotten, its time being up.
    EndingAfterNap,
}

impl Turn {
    fn has_packets(self) -> bool {
        matches!(self, Self::Quiet | Self::Adopting)
    }
}

/// The turn that is counted. Not inlined, so that valgrind knows where it begins.
#[inline(never)]
fn counted(turning: &mut Turning<Feed>, now: Now) {
    turning.worker.turn(now);
}

/// What runs under valgrind.
pub fn run_counted(turn: Turn) -> anyhow::Result<()> {
    let (services, nodes) = if turn == Turn::AdoptingFew { (10, 5) } else { (10_000, 500) };
    let mut now = Now::from_secs(1_000);
    let mut site = Site::new(false, services, nodes);
    site.time = Some(now);
    let fed = if turn.has_packets() { FED } else { 0 };
    let mut turning = loaded(&mut site, FLOWS, fed, None)?;
    // What the sweep is behind with, then turns as they are. Few: every 64th with packets reads the clock.
    while turning.worker.pipeline_mut().upkeep(now) {}
    let mut pass = |turning: &mut Turning<Feed>, time: Duration| {
        now.ns += time.as_nanos() as u64;
        turning.worker.turn(now);
    };
    (0..40).for_each(|_| pass(&mut turning, TURN));
    match turn {
        Turn::Adopting | Turn::AdoptingAlone | Turn::AdoptingFew => {
            site.flap(0, false);
            turning.mailbox.publish(site.compiled_view()?);
        }
        Turn::RenewingAfterNap | Turn::EndingAfterNap => {
            if turn == Turn::EndingAfterNap {
                site.timeouts.tcp_established = 1;
            }
            site.flap(0, false);
            turning.mailbox.publish(site.compiled_view()?);
            // The snapshot's own turn; in the other case the flows have been silent for longer than they may by then.
            let silence = if turn == Turn::EndingAfterNap { Duration::from_secs(3) } else { TURN };
            pass(&mut turning, silence);
        }
        Turn::Quiet | Turn::Idle | Turn::AfterNap => {}
    }
    let naps = matches!(turn, Turn::AfterNap | Turn::RenewingAfterNap | Turn::EndingAfterNap);
    now.ns += if naps { NAP } else { TURN }.as_nanos() as u64;
    let sent = turning.stats.tx.get();
    counted(&mut turning, now);
    let sent = turning.stats.tx.get() - sent;
    ensure!(sent == if turn.has_packets() { 128 } else { 0 }, "{sent} packets were sent in the turn");
    Ok(())
}

/// Adds the instructions of each kind of turn, if valgrind is there to count them.
pub fn add(section: &mut Section) -> anyhow::Result<()> {
    let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !valgrind.is_ok_and(|status| status.success()) {
        section.note("Instructions are not counted: the package valgrind is not installed.");
        return Ok(());
    }
    let mut quiet = f64::NAN;
    for turn in Turn::value_variants() {
        let value = turn.to_possible_value();
        let name = value.as_ref().map_or("", |value| value.get_name()).to_owned();
        eprintln!("  instructions of a turn: {name}");
        let mut command = Command::new("valgrind");
        command.args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*scale::turns::counted*",
        ]);
        command.arg(std::env::current_exe()?).args(children::subcommand()).args(["--counted-turn", &name]);
        let count = crate::pipeline_bench::collected(command).with_context(|| name.clone())? as f64;
        ensure!(count > 0.0, "no turn was counted: has the binary its symbols?");
        if *turn == Turn::Quiet {
            quiet = count;
        }
        section.add(
            Figure::new(format!("instructions of a turn: {}", name.replace('-', " ")), count, "")
                .beside(format!("{:.2} of a quiet turn's", count / quiet)),
        );
    }
    section.note(format!(
        "Turns counted: with {FLOWS} flows; quiet: 128 packets; adopting: those in the turn that takes up a snapshot, each \
         flow looked up anew; the others without packets. Few: 10 services over 5 nodes. After naps of {NAP:?} more is \
         due than a turn takes on; renewing: every flow it comes to is looked up anew; ending: forgotten too."
    ));
    Ok(())
}
