//! `penstock-perf hardware-check`: the tools of `perf/hardware` that run on virtual interfaces, run on a lab's, beside
//! our own. Who takes the lab to real NICs knows then what each tool's figure is worth.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::bench::{Bench, Spec};
use super::ends::{Ends, Generator, How};
use super::load::NodeSide;
use super::mix::Mix;
use super::packet::Transport;
use super::popularity::Popularity;
use super::sink::Sink;
use super::testpmd::{self, Job, Testpmd};
use crate::config::NODE_PORT;
use crate::lab::Lab;
use crate::plot::{self, Bar, Group, Labels};
use crate::privilege;
use crate::rig::VIP_PORT;

#[derive(Debug, Clone, Args)]
pub struct HardwareCheckArgs {
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[arg(long)]
    json: bool,
    /// Also draw a chart (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

/// One line of the table, in packets per second.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub what: String,
    pub sent: f64,
    pub arrived: f64,
}

/// # Errors
/// No lab here. A testpmd that can't be had is said, and the rest is run.
pub fn command(args: &HardwareCheckArgs) -> Result<()> {
    if let Some(reason) = privilege::missing() {
        bail!("{reason}");
    }
    if let Some(directory) = &args.plot {
        plot::prepare(directory)?;
    }
    let duration = Duration::from_secs_f64(args.seconds);
    let mut rows = ours(duration)?;
    match testpmd::require() {
        Ok(()) => rows.extend(with_testpmd(duration)?),
        Err(why) => eprintln!("{why:#}; the rest is shown"),
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{:<58} {:>12} {:>12}", "60-byte UDP, one way, packets/s", "sent", "arrived");
        for Row { what, sent, arrived } in &rows {
            println!("{what:<58} {sent:>12.0} {arrived:>12.0}");
        }
    }
    if let Some(directory) = &args.plot {
        plot::write(directory, &[("hardware-check", chart(&rows, args.seconds))])?;
    }
    Ok(())
}

fn chart(rows: &[Row], seconds: f64) -> String {
    let labels = Labels {
        title: "Tools for real hardware, on virtual interfaces".into(),
        subtitle: format!("60-byte UDP, one way, {seconds} s each"),
        values: "packets per second".into(),
        along: String::new(),
    };
    let bars = |row: &Row| [row.sent, row.arrived].map(|rate| Some(Bar::exact(rate))).to_vec();
    let groups: Vec<Group> = rows.iter().map(|row| Group { name: row.what.clone(), bars: bars(row) }).collect();
    plot::bars(&labels, &["sent", "arrived"], &groups)
}

fn spec() -> Spec {
    let (mix, popularity) = (Mix::fixed(64), Popularity::Uniform);
    Spec { mix, v6: false, flows: 256, popularity, side: NodeSide::Count, seed: 1 }
}

fn how(generator: Generator) -> How {
    How { generator, ..How::default() }
}

fn lab() -> Result<Lab> {
    Lab::builder().clients(1).nodes(1).queues(1).build()
}

/// Our generators straight into our sinks.
fn ours(duration: Duration) -> Result<Vec<Row>> {
    let lab = lab()?;
    let ends = Ends::straight(&lab, 1)?;
    let row = |generator: Generator| -> Result<Row> {
        let what = format!("{generator}, straight into our sink");
        eprintln!("{what}");
        let measured = ends.measure(how(generator), &spec(), None, duration)?;
        let sent = measured.sent.packets as f64 / measured.sent.seconds;
        Ok(Row { what, sent, arrived: measured.rate() })
    };
    Ok(vec![row(Generator::AfXdp)?, row(Generator::Live)?])
}

fn with_testpmd(duration: Duration) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    {
        let lab = lab()?;
        let ends = Ends::straight(&lab, 1)?;
        rows.push(generate(&ends, "testpmd txonly, straight into our sink", duration)?);
        rows.push(into_testpmd(&lab, &ends, Generator::Live, duration)?);
    }
    {
        let lab = lab()?;
        for generator in [Generator::AfXdp, Generator::Live] {
            rows.push(through_testpmd(&lab, generator, duration)?);
        }
    }
    let bench = Bench::start(1, 1, 1000, |_| {})?;
    let row = generate(&bench.ends()?, "testpmd txonly, through Penstock", duration)?;
    rows.push(row);
    for generator in [Generator::AfXdp, Generator::Live] {
        let what = format!("{generator}, through Penstock");
        eprintln!("{what}");
        bench.open_flows(Transport::Udp, &spec())?;
        let measured = bench.measure_as(how(generator), &spec(), None, duration)?;
        let sent = measured.sent.packets as f64 / measured.sent.seconds;
        rows.push(Row { what, sent, arrived: measured.rate() });
    }
    Ok(rows)
}

/// testpmd sends; what arrives is counted in the kernel. It stamps nothing: only the count is looked at.
fn generate(ends: &Ends, what: &str, duration: Duration) -> Result<Row> {
    eprintln!("{what}");
    let sink = ends.sink.run(|| Sink::attach(&ends.sink_interface, ends.sink_port, NodeSide::Count, 1, None))?;
    let route = ends.route(false);
    let job = Job::Generate { route: &route, frame_len: 60 };
    // Both on core 0: on the last a worker spins, which lets nobody start there.
    let testpmd = Testpmd::start(&ends.sender, job, &[&ends.sender_interface], &[0, 0])?;
    let (from, before) = (Instant::now(), sink.packets()?);
    std::thread::sleep(duration);
    // On a busy machine it was longer.
    let arrived = (sink.packets()? - before) as f64 / from.elapsed().as_secs_f64();
    let counted = testpmd.stop()?;
    let sent = counted.sent.iter().sum::<u64>() as f64 / counted.seconds;
    Ok(Row { what: what.into(), sent, arrived })
}

/// Our generator, and testpmd as the sink.
fn into_testpmd(lab: &Lab, ends: &Ends, generator: Generator, duration: Duration) -> Result<Row> {
    let what = format!("{generator}, into testpmd rxonly");
    eprintln!("{what}");
    let [interface, _] = lab.topology().interfaces();
    let testpmd = Testpmd::start(&lab.the_box, Job::Sink, &[interface], &[0, 1])?;
    let sent = ends.send(how(generator), &spec(), None, duration)?;
    let counted = testpmd.stop()?;
    let rate = |packets: u64| packets as f64 / sent.seconds;
    Ok(Row { what, sent: rate(sent.packets), arrived: rate(counted.received.iter().sum()) })
}

/// testpmd in the box's place.
fn through_testpmd(lab: &Lab, generator: Generator, duration: Duration) -> Result<Row> {
    let what = format!("{generator}, through testpmd macswap");
    eprintln!("{what}");
    let interfaces = lab.topology().interfaces();
    let testpmd = Testpmd::start(&lab.the_box, Job::Forward, &interfaces, &[0, 1])?;
    // It changes no port: what arrives has the VIP's.
    let ends = Ends { sink_port: VIP_PORT, ..Ends::through(lab, NODE_PORT, 1)? };
    let measured = ends.measure(how(generator), &spec(), None, duration)?;
    testpmd.stop()?;
    let sent = measured.sent.packets as f64 / measured.sent.seconds;
    Ok(Row { what, sent, arrived: measured.rate() })
}
