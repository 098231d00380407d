use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_dataplane::flow::Capacity;
use penstock_dataplane::io::{Burst, Port};

use super::gaps::{Feed, Latencies};
use super::report::{Figure, Report, Section};
use super::rig::{self, Member, Site};
use crate::pipeline_bench::packets::{TcpFlags, from_client};

#[test]
fn a_figure_meets_its_target_or_does_not() {
    let of = |value: f64| Figure::new("pause", value, "us").at_most(50.0).met();
    assert_eq!((of(50.0), of(50.1), of(f64::NAN)), (Some(true), Some(false), Some(false)));
    assert_eq!(Figure::new("pause", 1.0, "us").met(), None, "nothing is asked of it");
    let runs = Figure::of_runs("pause", &[3.0, 1.0, 2.0], "us");
    assert_eq!((runs.value, runs.spread), (2.0, Some((1.0, 3.0))));
}

#[test]
fn the_report_adds_up_and_names_what_was_missed() {
    let mut report = Report::new(false);
    let mut section = Section::new("expiry", "flows end");
    section.add(Figure::new("gap", 20.0, "us").at_most(50.0).beside("without: 11"));
    section.add(Figure::new("nap", 80.0, "us").at_most(50.0));
    section.add(Figure::new("seconds", 1.0, "s"));
    let text = section.to_string();
    let line = |what: &str| text.lines().find(|line| line.trim_start().starts_with(what)).unwrap().to_owned();
    assert!(line("gap").contains("yes") && line("gap").contains("without: 11"), "{text}");
    assert!(line("nap").contains("NO"), "{text}");
    assert!(!line("seconds").contains("yes") && !line("seconds").contains("NO"), "{text}");
    let mut small = section.clone();
    small.judge_nothing();
    assert!(!small.to_string().contains("yes") && !small.to_string().contains("NO"), "{small}");
    section.charts.push(("picture".into(), "<svg/>".into()));
    assert_eq!(report.add(section), [("picture".into(), "<svg/>".into())]);
    assert_eq!(report.verdict(), "1 of 2 targets met; missed: nap");
    let written = serde_json::to_value(&report).unwrap();
    assert_eq!(written["sections"][0]["figures"][1]["value"], 80.0);
    assert!(written["sections"][0]["charts"].as_array().unwrap().is_empty(), "pictures have files of their own");
}

#[test]
fn a_section_survives_its_way_from_a_process_of_its_own() {
    let mut section = Section::new("memory", "bytes");
    section.add(Figure::of_runs("per flow", &[96.0, 97.5, 99.0], "bytes").at_most(128.0));
    let back: Section = serde_json::from_str(&serde_json::to_string(&section).unwrap()).unwrap();
    assert_eq!(back.to_string(), section.to_string());
}

#[test]
fn a_site_is_as_large_as_it_says_and_a_flap_changes_its_tables() {
    let mut site = Site::new(false, 30, 7);
    let before = site.compile().unwrap();
    assert_eq!(before.services.iter().flatten().count(), 30);
    let set = |tables: &penstock_dataplane::tables::Tables| Arc::clone(&tables.services[0].as_ref().unwrap().set);
    assert_eq!(set(&before).backends.len(), 7);
    assert!(Arc::ptr_eq(&set(&before), &set(&site.compile().unwrap())), "nothing changed, nothing is built");
    site.flap(3, false);
    let down = site.compile().unwrap();
    assert!(!Arc::ptr_eq(&set(&before), &set(&down)));
    assert_eq!(set(&down).backends.iter().filter(|backend| backend.takes_new()).count(), 6);
    site.flap(3, true);
    assert_eq!(set(&site.compile().unwrap()).backends.iter().filter(|backend| backend.takes_new()).count(), 7);
}

#[test]
fn members_of_a_box_own_every_flow_once() {
    let mut site = Site::new(false, 5, 4);
    let view = site.compiled_view().unwrap();
    let mut owned = Vec::new();
    for worker in 0..3 {
        let mut member = Member::new(&site, Capacity { established: 400, embryonic: 64 }, worker, 3).unwrap();
        drop(member.pipeline.adopt(Arc::clone(&view)));
        let before = owned.len();
        member.establish(0..300, |n, _, _| owned.push(n)).unwrap();
        assert_eq!(member.flows() as usize, owned.len() - before);
        assert!(owned.len() > before, "worker {worker} owns nothing");
    }
    owned.sort_unstable();
    assert_eq!(owned, (0..300).collect::<Vec<_>>());
}

fn feed() -> Feed {
    let ends = crate::pipeline_bench::packets::Endpoints {
        src: [198, 51, 100, 7].into(),
        dst: [203, 0, 113, 10].into(),
        src_port: 5555,
        dst_port: 443,
    };
    let packets: Vec<_> = (0..3).map(|n| from_client(ends, TcpFlags::Ack, n).unwrap()).collect();
    Feed::new(packets.into(), 1)
}

#[test]
fn a_feed_never_runs_dry_and_loses_no_frame() {
    let mut pool = rig::pool();
    let all = pool.free_count();
    let mut feed = feed();
    for _ in 0..100 {
        let mut burst = Burst::new();
        assert_eq!(feed.rx_burst(&mut pool, &mut burst), 64);
        assert_eq!(feed.tx_burst(&mut pool, &mut burst), 64);
        feed.service(&mut pool);
        assert_eq!(pool.free_count(), all);
    }
}

#[test]
fn the_worst_of_a_stretch_is_of_packets_due_in_it() {
    let mut latencies = Latencies::default();
    for (due, latency) in [(1_000_000, 5), (1_100_000, 9), (1_260_000, 7), (2_600_000, 3), (990_000, 11)] {
        latencies.add(due, latency);
    }
    let worst = |from, to| latencies.worst_due(from, to);
    assert_eq!(worst(1_000_000, 1_200_000), Some(11), "one of the other port, a little behind the first");
    assert_eq!([worst(1_250_000, 2_400_000), worst(2_500_000, 2_600_000)], [Some(7), Some(3)]);
    assert_eq!([worst(900_000, 1_000_000), worst(2_600_000, 2_800_000)], [None, None], "the run's ends");
}

#[test]
fn a_paced_feed_counts_from_when_a_packet_was_due() {
    let latency = Arc::new(Mutex::new(Latencies::default()));
    let mut pool = rig::pool();
    let mut feed = feed().paced(10_000.0, Arc::clone(&latency));
    let mut burst = Burst::new();
    assert_eq!(feed.rx_burst(&mut pool, &mut burst), 0, "none is due yet");
    std::thread::sleep(Duration::from_millis(3));
    let due = feed.rx_burst(&mut pool, &mut burst);
    assert!(due >= 30, "{due} after 3 ms at 10 a millisecond");
    feed.tx_burst(&mut pool, &mut burst);
    feed.service(&mut pool);
    let seen = latency.lock().unwrap();
    assert_eq!(seen.all.len(), due as u64);
    assert!(seen.all.max() >= 2_900_000, "the first waited for the whole sleep: {}", seen.all.max());
    drop(seen);
    feed.service(&mut pool);
    assert_eq!(latency.lock().unwrap().all.len(), due as u64, "none is counted twice");
}
