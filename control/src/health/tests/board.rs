//! Verdicts from outcomes, by a fake clock.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::BackendHealth;
use penstock_configs::desired::BackendState::{self, Active, Down, Draining};

use super::{INTERVAL, target};
use crate::health::board::Kind::{self, Bad, Drain, Good};
use crate::health::board::{Board, Launch, Outcome, Rules};
use crate::probe::{Check, ProbeTarget};

const RULES: Rules = Rules { budget: 1_000, panic_threshold: 0.0 };

/// A board with a clock that jumps from probe to probe.
struct Bench {
    board: Board,
    now: Duration,
}

impl Bench {
    fn new(rules: Rules, targets: &[ProbeTarget]) -> Self {
        let mut board = Board::new(rules, 7);
        board.set_targets(targets, Duration::ZERO);
        Self { board, now: Duration::ZERO }
    }

    fn launch(&mut self) -> Vec<Launch> {
        self.now = self.now.max(self.board.next_due().unwrap());
        self.board.due(self.now)
    }

    /// One round: as many are asked as there are targets, and `answer` says what each answers.
    fn round(&mut self, answer: impl Fn(&str) -> Kind) {
        let mut left = self.board.len();
        while left > 0 {
            for launch in self.launch() {
                let outcome = Outcome { kind: answer(&launch.id), reason: format!("{:?}", answer(&launch.id)) };
                self.board.finish(&launch, outcome, self.now);
                left = left.saturating_sub(1);
            }
        }
    }

    fn rounds(&mut self, kinds: &[Kind]) {
        for kind in kinds {
            self.round(|_| *kind);
        }
    }

    fn state(&self, id: &str) -> BackendState {
        self.board.view().targets[id].state
    }

    fn overlay(&self) -> Vec<(IpAddr, Option<u16>, BackendState)> {
        self.board.view().backends.into_iter().map(|b| (b.address, b.port, b.state)).collect()
    }
}

#[test]
fn rise_and_fall_count_consecutive_results() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad, Good, Bad, Bad]);
    assert_eq!(bench.state("a"), Active);
    bench.rounds(&[Bad]);
    assert_eq!(bench.state("a"), Down);
    bench.rounds(&[Good, Bad, Good]);
    assert_eq!(bench.state("a"), Down);
    bench.rounds(&[Good]);
    assert_eq!(bench.state("a"), Active);
}

#[test]
fn a_503_drains_and_refused_is_down() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Drain, Drain, Drain]);
    assert_eq!(bench.state("a"), Draining);
    bench.rounds(&[Bad, Bad]);
    assert_eq!(bench.state("a"), Draining);
    bench.rounds(&[Bad]);
    assert_eq!(bench.state("a"), Down);
    bench.rounds(&[Drain, Drain, Drain]);
    assert_eq!(bench.state("a"), Draining);
    bench.rounds(&[Good, Good]);
    assert_eq!(bench.state("a"), Active);
    // Of mixed trouble the last word counts.
    bench.rounds(&[Drain, Bad, Drain]);
    assert_eq!(bench.state("a"), Draining);
}

#[test]
fn the_first_assumption_is_in_service_and_not_settled() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g"), target("b", 2, "g")]);
    let settled = |bench: &Bench, id: &str| bench.board.view().targets[id].settled;
    assert!(!settled(&bench, "a") && bench.overlay().is_empty());
    bench.round(|id| if id == "a" { Good } else { Bad });
    assert!(settled(&bench, "a") && !settled(&bench, "b"));
}

#[test]
fn who_joins_others_that_serve_is_proven_first() {
    let names = ["a", "b", "c", "d"];
    let of = |count: usize| -> Vec<ProbeTarget> {
        names[..count].iter().zip(1..).map(|(name, last)| target(name, last, "g")).collect()
    };
    let mut bench = Bench::new(Rules { budget: 1_000, panic_threshold: 0.5 }, &of(1));
    // Nobody has been judged yet.
    bench.board.set_targets(&of(2), bench.now);
    assert!(bench.overlay().is_empty());
    bench.rounds(&[Good, Good]);
    // More join than there are; their first words are awaited all the same.
    bench.board.set_targets(&of(4), bench.now);
    let mut one = of(4);
    one[1].check = Check::Tcp { port: 81 };
    bench.board.set_targets(&one, bench.now);
    assert_eq!((bench.state("b"), bench.state("c"), bench.state("d")), (Active, Draining, Draining));
    assert!(bench.board.view().panicking.is_empty());
    assert_eq!(bench.overlay().len(), 2);
    let now = bench.now;
    while bench.state("c") == Draining || bench.state("d") == Draining {
        for launch in bench.launch() {
            let kind = if &*launch.id == "d" { Bad } else { Good };
            bench.board.finish(&launch, Outcome { kind, reason: String::new() }, bench.now);
        }
    }
    assert_eq!((bench.state("c"), bench.state("d")), (Active, Down));
    assert!(bench.now - now < INTERVAL, "{:?}", bench.now - now);
}

#[test]
fn who_joins_a_group_where_nobody_serves_is_used_at_once() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad, Bad]);
    bench.board.set_targets(&[target("a", 1, "g"), target("b", 2, "g")], bench.now);
    assert_eq!((bench.state("a"), bench.state("b")), (Down, Active));
    // And of whom somebody has said that it serves.
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Good, Good]);
    let known = ProbeTarget { unproven: false, ..target("b", 2, "g") };
    bench.board.set_targets(&[target("a", 1, "g"), known], bench.now);
    assert_eq!(bench.state("b"), Active);
}

#[test]
fn unchanged_targets_keep_their_state_and_their_streak() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad]);
    let now = bench.now;
    assert!(!bench.board.set_targets(&[target("a", 1, "g")], now));
    assert!(bench.board.set_targets(&[target("a", 1, "g"), target("b", 2, "g")], now));
    let mut moved = target("a", 1, "other");
    moved.covers = vec![Some(31_000)];
    assert!(bench.board.set_targets(&[moved, target("b", 2, "g")], now));
    bench.round(|id| if id == "a" { Bad } else { Good });
    // b, being new, was asked with it; a had two bad results before.
    while bench.state("a") == Active {
        bench.round(|id| if id == "a" { Bad } else { Good });
        assert!(bench.now < INTERVAL * 2, "a's history was lost");
    }
    assert_eq!(bench.state("b"), Active);
}

#[test]
fn another_check_keeps_the_state_as_an_assumption() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Bad, Bad, Bad]);
    let mut other = target("a", 1, "g");
    other.check = Check::Tcp { port: 81 };
    let late = bench.launch();
    bench.board.set_targets(&[other], bench.now);
    let view = bench.board.view();
    assert_eq!((view.targets["a"].state, view.targets["a"].settled), (Down, false));
    // The answer to the old question says nothing of the new one.
    for _ in 0..2 {
        bench.board.finish(&late[0], Outcome { kind: Good, reason: String::new() }, bench.now);
    }
    assert_eq!(bench.state("a"), Down);
    let launch = bench.launch();
    assert_eq!(launch[0].check, Check::Tcp { port: 81 });
}

#[test]
fn gone_targets_are_forgotten_even_in_flight() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    let launch = bench.launch();
    bench.board.set_targets(&[], bench.now);
    bench.board.finish(&launch[0], Outcome { kind: Bad, reason: String::new() }, bench.now);
    assert!(bench.board.view().targets.is_empty() && bench.board.next_due().is_none());
}

#[test]
fn the_budget_bounds_probes_per_second_and_nobody_starves() {
    let mut targets: Vec<ProbeTarget> = (0..100).map(|n| target(&format!("t{n}"), n, "g")).collect();
    // In doubt for ever.
    targets.iter_mut().for_each(|target| target.timing.fall = 1000);
    let mut bench = Bench::new(Rules { budget: 20, panic_threshold: 0.0 }, &targets);
    let mut asked = std::collections::HashMap::new();
    let mut count = 0u32;
    while bench.now < Duration::from_secs(20) {
        for launch in bench.launch() {
            count += 1;
            *asked.entry(launch.id.clone()).or_insert(0) += 1;
            bench.board.finish(&launch, Outcome { kind: Bad, reason: String::new() }, bench.now);
        }
    }
    // 20 a second for 20 seconds, and the first burst.
    assert!((390..=410).contains(&count), "{count}");
    assert!(asked.len() == 100 && asked.values().all(|n| (3..=5).contains(n)), "{asked:?}");
    assert!(bench.board.is_late(bench.now));
}

#[test]
fn at_rest_an_eighth_of_the_budget_is_enough_and_doubt_has_the_rest() {
    let targets: Vec<ProbeTarget> = (0..100).map(|n| target(&format!("t{n}"), n, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 50, panic_threshold: 0.0 }, &targets);
    let mut asked = Vec::new();
    while bench.now < Duration::from_secs(60) {
        for launch in bench.launch() {
            // One of them stops answering.
            let kind = if &*launch.id == "t7" && bench.now > Duration::from_secs(30) { Bad } else { Good };
            asked.push((bench.now, launch.id.clone()));
            bench.board.finish(&launch, Outcome { kind, reason: String::new() }, bench.now);
        }
    }
    let between = |from: u64, to: u64| asked.iter().filter(|(at, _)| (from..to).contains(&at.as_secs())).count();
    assert!((100..=150).contains(&between(10, 30)), "six a second: {}", between(10, 30));
    assert_eq!(bench.state("t7"), Down);
    assert!(!bench.board.is_late(bench.now));
}

#[test]
fn at_rest_many_probes_go_out_at_a_time() {
    let targets: Vec<ProbeTarget> = (0..500u16).map(|n| target(&format!("t{n}"), n as u8, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 500, panic_threshold: 0.0 }, &targets);
    let (mut times, mut probes) = (0, 0);
    while bench.now < Duration::from_secs(90) {
        // As the loop has it.
        bench.now += crate::health::TOGETHER;
        let launches = bench.launch();
        if bench.now > Duration::from_secs(30) {
            times += 1;
            probes += launches.len();
        }
        for launch in launches {
            bench.board.finish(&launch, Outcome { kind: Good, reason: String::new() }, bench.now);
        }
    }
    assert!((3500..=4000).contains(&probes), "each every eight seconds: {probes}");
    assert!(times <= 250, "four times a second: {times}");
}

#[test]
fn intervals_differ_by_the_jitter_and_not_more() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Good]);
    let mut gaps = Vec::new();
    for _ in 0..50 {
        let before = bench.now;
        bench.rounds(&[Good]);
        gaps.push((bench.now - before).as_secs_f64() / INTERVAL.as_secs_f64());
    }
    // And by what it takes to the nearest time on the grid.
    assert!(gaps.iter().all(|g| (0.87..=1.13).contains(g)), "{gaps:?}");
    let (low, high) = gaps.iter().fold((2.0f64, 0.0f64), |(l, h), g| (l.min(*g), h.max(*g)));
    assert!(high - low > 0.05, "no jitter: {low} to {high}");
}

#[test]
fn doubt_is_settled_faster() {
    let mut bench = Bench::new(RULES, &[target("a", 1, "g")]);
    bench.rounds(&[Good, Bad]);
    let before = bench.now;
    bench.rounds(&[Bad, Bad]);
    assert_eq!(bench.state("a"), Down);
    assert!(bench.now - before < INTERVAL, "{:?}", bench.now - before);
}

#[test]
fn below_the_threshold_everything_stays_in_service() {
    let targets: Vec<ProbeTarget> = (0..4).map(|n| target(&format!("t{n}"), n, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 1_000, panic_threshold: 0.5 }, &targets);
    let down = |names: &'static [&'static str]| move |id: &str| if names.contains(&id) { Bad } else { Good };
    for _ in 0..6 {
        bench.round(down(&["t0", "t1"]));
    }
    assert_eq!(bench.overlay().len(), 2);
    assert!(bench.board.view().panicking.is_empty());
    for _ in 0..6 {
        bench.round(down(&["t0", "t1", "t2"]));
    }
    let view = bench.board.view();
    assert_eq!(view.panicking, [Arc::from("g")]);
    // The dataplane uses all, and `penstock status` says against what.
    assert_eq!(view.backends.len(), 3);
    let is_told = |told: &BackendHealth| told.state == Active && told.reason.contains("used all the same");
    assert!(view.backends.iter().all(is_told), "{:?}", view.backends);
    // What is known of each is not hidden by it.
    assert_eq!(bench.state("t0"), Down);
}

#[test]
fn who_drains_by_his_own_word_is_kept_out_until_nobody_is_left() {
    let targets: Vec<ProbeTarget> = (0..4).map(|n| target(&format!("t{n}"), n, "g")).collect();
    let mut bench = Bench::new(Rules { budget: 1_000, panic_threshold: 0.5 }, &targets);
    for _ in 0..12 {
        bench.round(|id| if id == "t0" { Good } else { Drain });
    }
    assert_eq!(bench.overlay().len(), 3);
    assert!(bench.overlay().iter().all(|(_, _, state)| *state == Draining));
    for _ in 0..12 {
        bench.round(|_| Drain);
    }
    assert!(bench.overlay().iter().all(|(_, _, state)| *state == Active), "{:?}", bench.overlay());
}

#[test]
fn a_port_is_told_apart_from_its_node() {
    let mut port = target("p", 1, "svc");
    port.covers = vec![Some(31_000), Some(31_001)];
    let mut worse = target("q", 1, "svc2");
    worse.covers = vec![Some(31_001)];
    let mut targets = vec![target("n", 1, "nodes"), port, worse];
    let mut bench = Bench::new(RULES, &targets);
    for _ in 0..12 {
        bench.round(|id| if id == "p" { Good } else { Bad });
    }
    let address: IpAddr = Ipv4Addr::new(10, 0, 0, 1).into();
    let told = [(address, None, Down), (address, Some(31_000), Active), (address, Some(31_001), Down)];
    assert_eq!(bench.overlay(), told);
    // One that nobody has looked at is no better than its node.
    let mut new = target("r", 1, "svc3");
    new.covers = vec![Some(31_002)];
    targets.push(new);
    bench.board.set_targets(&targets, bench.now);
    assert_eq!(bench.overlay(), told);
    for _ in 0..4 {
        bench.round(|id| if id == "p" || id == "r" { Good } else { Bad });
    }
    assert_eq!(bench.overlay()[3..], [(address, Some(31_002), Active)]);
}
