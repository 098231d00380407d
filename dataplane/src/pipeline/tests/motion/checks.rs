//! Whom the checks are believed about, and how a backend that comes takes up its share.

use super::*;

#[test]
fn the_last_ones_stay_whatever_the_checks_say() {
    for scheduler in SCHEDULERS {
        let mut rig = Rig::new(three());
        rig.change(|plan| plan.service(WEB).scheduler = scheduler);
        let conns: Vec<Conn> = (0..20).map(|n| Conn::open(&mut rig, &TCP[0].2(n), TO_WEB)).collect();
        for node in ["10.0.0.11", "10.0.0.12"] {
            rig.change(|plan| plan.health(node, BackendState::Down));
            assert!(!service_named(&rig, WEB).panic, "one is left");
        }
        assert_eq!(shares_from(&mut rig, TO_WEB, 0, 30).len(), 1, "{scheduler:?}");
        rig.change(|plan| plan.health("10.0.0.13", BackendState::Down));
        assert!(service_named(&rig, WEB).panic);
        assert!(service_named(&rig, WEB).set.backends.iter().all(|b| b.checked == BackendState::Down), "still said");
        // By the VIP there is one, whoever asks; by the client's address as many as there are addresses.
        let seen = shares(&mut rig, TO_WEB, 200).len();
        assert_eq!(seen, if scheduler == Scheduler::Dh { 1 } else { 3 }, "{scheduler:?}");
        conns.iter().for_each(|conn| drop(conn.to_node(&mut rig, TCP_ACK)));
        rig.change(|plan| plan.health("10.0.0.12", BackendState::Active));
        assert!(!service_named(&rig, WEB).panic, "believed again");
    }
}

#[test]
fn the_panic_threshold_is_of_those_the_owner_wants() {
    let panics = |threshold: u8, down_by_checks: usize, drained: usize| {
        let mut plan = Plan::default();
        let places: Vec<String> = (1..=10).map(|n| format!("10.0.0.{n}:80")).collect();
        let service = plan.serve(WEB, &places.iter().map(String::as_str).collect::<Vec<_>>());
        service.panic_threshold = Some(threshold);
        // One more that its owner wants down is never used.
        service.backends.push(Plan::backend("10.0.0.99:80"));
        down(service.backends.last_mut().unwrap());
        plan.snat(SNAT, [1024, 65535]);
        for n in 1..=down_by_checks {
            plan.health(&format!("10.0.0.{n}"), BackendState::Down);
        }
        for n in 0..drained {
            plan.health(&format!("10.0.0.{}", 10 - n), BackendState::Draining);
        }
        let rig = Rig::new(plan);
        let service = service_named(&rig, WEB);
        assert!(!service.set.backends[10].takes_new(), "the owner's wish is not the checks'");
        assert!((0..drained).all(|n| !service.set.backends[9 - n].takes_new()), "who drains says so itself");
        (service.panic, service.set.backends.iter().filter(|backend| backend.takes_new()).count())
    };
    let table = [
        (50, 0, 0, (false, 10)),
        (50, 5, 0, (false, 5)),
        (50, 6, 0, (true, 10)),
        (0, 9, 0, (false, 1)),
        (0, 10, 0, (true, 10)),
        (100, 1, 0, (true, 10)),
        // Of eight that do not drain five are down.
        (50, 4, 2, (false, 4)),
        (50, 5, 2, (true, 8)),
        (50, 0, 10, (false, 0)),
    ];
    for (threshold, down, drained, expected) in table {
        assert_eq!(panics(threshold, down, drained), expected, "{threshold} %, {down} down, {drained} draining");
    }
}

/// Tenths of their weights the backends of WEB take.
fn ramps(rig: &Rig) -> Vec<u8> {
    service_named(rig, WEB).set.backends.iter().map(|backend| backend.ramp).collect()
}

fn at(rig: &mut Rig, seconds: u64) {
    rig.plan.now = Now::from_secs(seconds);
    rig.apply();
}

#[test]
fn a_backend_that_comes_starts_slowly() {
    for scheduler in [Scheduler::Maglev, Scheduler::Wrr] {
        let mut rig = Rig::with(
            three(),
            &PipelineConfig {
                flows_v4: crate::flow::Capacity { established: 16, embryonic: 30_000 },
                ..testkit::config(0, 1)
            },
        );
        rig.change(|plan| {
            plan.service(WEB).scheduler = scheduler;
            plan.service(WEB).slow_start = Some(20);
        });
        assert_eq!(ramps(&rig), [10; 3], "a service as it first comes");
        rig.plan.health("10.0.0.12", BackendState::Down);
        at(&mut rig, 100);
        rig.plan.health("10.0.0.12", BackendState::Active);
        at(&mut rig, 110);
        let (mut steps, mut worst) = (Vec::new(), 0.0_f64);
        loop {
            let mut got = shares(&mut rig, TO_WEB, 2000);
            rig.wait(20);
            rig.sweep();
            let ramp = f64::from(ramps(&rig)[1]) / 10.0;
            let expected = 2000.0 * ramp / (2.0 + ramp);
            let got = f64::from(got.remove("10.0.0.12").unwrap_or(0));
            assert!((got - expected).abs() < 100.0, "{scheduler:?}: {got} at {ramp}, not {expected}");
            steps.push(ramps(&rig)[1]);
            let Some(due) = rig.compiler.next_step() else { break };
            assert!(steps.len() <= 10, "bounded");
            rig.plan.now = due;
            rig.apply();
            if let Some(moved) = service_named(&rig, WEB).moved {
                worst = worst.max(f64::from(moved.excess()) / f64::from(moved.size));
                assert!(moved.share() < 0.06, "{moved:?}: a step is a tenth of a third");
            }
        }
        assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "{scheduler:?}");
        println!("{scheduler:?}: {worst:.4} of the slots moved for nothing in the worst step");
        assert!(worst < 0.02);
    }
}

#[test]
fn a_slow_start_survives_changes_and_needs_others() {
    let mut rig = Rig::new(three());
    rig.change(|plan| plan.service(WEB).slow_start = Some(100));
    at(&mut rig, 1000);
    // One that is new.
    rig.plan.service(WEB).backends.push(Plan::backend("10.0.0.14:31443"));
    at(&mut rig, 1001);
    assert_eq!(ramps(&rig), [10, 10, 10, 1]);
    // A change of something else does not begin it anew; time does not pass by itself.
    rig.change(|plan| plan.service(DNS).backends.truncate(1));
    assert_eq!(ramps(&rig), [10, 10, 10, 1]);
    at(&mut rig, 1041);
    assert_eq!(ramps(&rig), [10, 10, 10, 4]);
    // Down and back: from the start.
    rig.plan.health("10.0.0.14", BackendState::Down);
    at(&mut rig, 1042);
    rig.plan.health("10.0.0.14", BackendState::Active);
    at(&mut rig, 1043);
    assert_eq!(ramps(&rig), [10, 10, 10, 1]);
    // The others go: it takes all there is.
    for node in ["10.0.0.11", "10.0.0.12", "10.0.0.13"] {
        rig.plan.health(node, BackendState::Down);
    }
    at(&mut rig, 1044);
    assert_eq!(ramps(&rig)[3], 10);
    assert_eq!(rig.compiler.next_step(), None);
    // And is believed warm when they come back, which start slowly themselves.
    rig.plan.health("10.0.0.11", BackendState::Active);
    at(&mut rig, 1045);
    assert_eq!((ramps(&rig)[0], ramps(&rig)[3]), (1, 10));
}

/// Each by its own time, and by its own port.
#[test]
fn several_that_start_slowly() {
    let mut plan = three();
    let service = plan.service(WEB);
    service.slow_start = Some(90);
    service.backends.truncate(1);
    let mut rig = Rig::new(plan);
    at(&mut rig, 1000);
    rig.plan.service(WEB).backends.push(Plan::backend("10.0.0.11:31444"));
    at(&mut rig, 1001);
    assert_eq!(ramps(&rig), [10, 1], "another port of the same node is another backend");
    rig.plan.service(WEB).backends.push(Plan::backend("10.0.0.13:31443"));
    at(&mut rig, 1005);
    assert_eq!(rig.compiler.next_step(), Some(Now::from_secs(1011)), "the first that is due");
    at(&mut rig, 1012);
    assert_eq!((ramps(&rig), rig.compiler.next_step()), (vec![10, 2, 1], Some(Now::from_secs(1015))));
}

/// One of weight 0 is none of those that are left, nor of those that are meant.
#[test]
fn who_weighs_nothing_does_not_count_for_the_threshold() {
    let mut plan = three();
    let service = plan.service(WEB);
    service.panic_threshold = Some(60);
    service.backends[1].weight = 0;
    service.backends[2].weight = 0;
    let mut rig = Rig::new(plan);
    assert!(!service_named(&rig, WEB).panic);
    rig.change(|plan| plan.health("10.0.0.12", BackendState::Down));
    assert!(!service_named(&rig, WEB).panic);
    rig.change(|plan| plan.health("10.0.0.11", BackendState::Down));
    assert!(service_named(&rig, WEB).panic);
}

/// A backend that is used because its check is not believed has not come: it takes all it took before.
#[test]
fn who_is_used_against_its_check_does_not_start_slowly() {
    let mut plan = three();
    let service = plan.service(WEB);
    service.slow_start = Some(90);
    service.panic_threshold = Some(100);
    down(&mut service.backends[2]);
    let mut rig = Rig::new(plan);
    rig.change(|plan| plan.service(WEB).panic_threshold = Some(0));
    rig.change(|plan| plan.health("10.0.0.12", BackendState::Down));
    rig.change(|plan| plan.service(WEB).panic_threshold = Some(100));
    assert!(service_named(&rig, WEB).panic);
    assert_eq!(ramps(&rig), [10, 10, 10]);
}
