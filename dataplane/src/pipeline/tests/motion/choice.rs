//! Schedulers: who gets new flows, and what they count.

use super::*;

#[test]
fn no_scheduler_gives_new_flows_to_who_takes_none() {
    for scheduler in SCHEDULERS {
        for (vip, service, client, _) in TCP {
            let mut rig = Rig::new(three());
            rig.change(|plan| plan.service(service).scheduler = scheduler);
            let conns: Vec<Conn> = (0..20).map(|n| Conn::open(&mut rig, &client(n), vip)).collect();
            rig.change(|plan| {
                let backends = &mut plan.service(service).backends;
                draining(&mut backends[0]);
                backends[1].weight = 0;
            });
            for conn in &conns {
                conn.to_node(&mut rig, TCP_ACK);
                conn.to_client(&mut rig, TCP_ACK);
            }
            let shares = shares(&mut rig, vip, 60);
            assert!(shares.len() == 1 && shares.keys().all(|node| node.ends_with("13")), "{scheduler:?}: {shares:?}");
            rig.check();
        }
    }
}

#[test]
fn turns_are_exact_and_go_on_across_reloads() {
    for (vip, service, ..) in TCP {
        for (scheduler, weights, expected) in
            [(Scheduler::Rr, [1, 5, 1], [60, 60, 60]), (Scheduler::Wrr, [3, 2, 1], [90, 60, 30])]
        {
            let mut rig = Rig::new(three());
            rig.change(|plan| {
                let service = plan.service(service);
                service.scheduler = scheduler;
                service.backends.iter_mut().zip(weights).for_each(|(backend, weight)| backend.weight = weight);
            });
            let mut sum = BTreeMap::<String, u16>::new();
            for part in 0..10 {
                for (node, count) in shares_from(&mut rig, vip, part * 18, 18) {
                    *sum.entry(node).or_default() += count;
                }
                rig.change(|_| {});
            }
            let sum: Vec<u16> = sum.into_values().collect();
            for (count, expected) in sum.iter().zip(expected) {
                // Where it began may be in the middle of a round.
                assert!(count.abs_diff(expected) <= 1, "{scheduler:?}: {sum:?}");
            }
        }
    }
}

/// Long-held connections on one node: the others get what comes until all have as many, through
/// transitions, closings, evictions, expiry, reloads and a change of scheduler.
#[test]
fn counts_follow_every_way_a_flow_can_go() {
    for (vip, service, client, first) in TCP {
        let mut rig = Rig::new(three());
        let counts = |rig: &Rig| {
            let service = service_named(rig, service);
            let share =
                if vip.starts_with('[') { rig.pipeline.v6.flows.share() } else { rig.pipeline.v4.flows.share() };
            let load = |slot: &u32| (share.load(*slot).active, share.load(*slot).inactive);
            service.loads.iter().map(load).collect::<Vec<_>>()
        };
        let conns: Vec<Conn> = (0..30).map(|n| Conn::open(&mut rig, &client(n), vip)).collect();
        rig.change(|plan| plan.service(service).scheduler = Scheduler::Wlc);
        rig.sweep();
        let on = |n: usize| conns.iter().filter(|conn| node(conn).ends_with(&format!("1{}", n + 1))).count() as u32;
        assert_eq!(counts(&rig), [(on(0), 0), (on(1), 0), (on(2), 0)], "flows there were are counted in a round");
        rig.check();
        // Another service comes first: slots stay.
        rig.change(|plan| {
            plan.serve("203.0.113.1:80/tcp", &["10.0.0.5:80"]).scheduler = Scheduler::Lc;
            plan.services.rotate_right(1);
        });
        assert_eq!(counts(&rig), [(on(0), 0), (on(1), 0), (on(2), 0)]);
        // Closing flows are inactive, closed and expired ones are none.
        let closing: Vec<&Conn> = conns.iter().filter(|conn| node(conn) == first).take(3).collect();
        closing.iter().for_each(|conn| conn.close(&mut rig));
        assert_eq!(counts(&rig)[0], (on(0) - 3, 3));
        rig.check();
        // A SYN opens a closed one again: an active one.
        rig.front(&Pkt::syn(&closing[0].client, vip).with(|pkt| pkt.seq = 900_000).bytes()).to_node();
        assert_eq!(counts(&rig)[0], (on(0) - 2, 2));
        rig.wait(70);
        rig.sweep();
        assert_eq!(counts(&rig)[0], (on(0) - 3, 0), "time wait and the half-open one are over");
        // A flood of SYNs evicts its own.
        shares(&mut rig, vip, 2500);
        let sum: u32 = counts(&rig).iter().map(|(active, _)| active).sum();
        assert_eq!(sum, 27 + 1024, "as many half-open ones as the pool has");
        let least = counts(&rig).iter().map(|(active, _)| *active).min().unwrap();
        let most = counts(&rig).iter().map(|(active, _)| *active).max().unwrap();
        assert!(most - least <= 2, "evened out: {:?}", counts(&rig));
        rig.check();
        // Revoked with their backend, uncounted with their scheduler.
        rig.change(|plan| BY_OWNER(plan, service, first));
        rig.sweep();
        assert_eq!(counts(&rig)[0], (0, 0));
        rig.change(|plan| plan.service(service).scheduler = Scheduler::Maglev);
        rig.sweep();
        rig.check();
        let share = if vip.starts_with('[') { rig.pipeline.v6.flows.share() } else { rig.pipeline.v4.flows.share() };
        let left: u32 = (1..=share.slots()).map(|slot| share.load(slot).active + share.load(slot).inactive).sum();
        assert_eq!(left, 0, "nothing is left behind");
    }
}

/// A set that services use by different schedulers has one Maglev table, not one for each of them.
#[test]
fn sets_are_shared_by_what_schedulers_need() {
    let mut rig = Rig::new(three());
    rig.change(|plan| {
        for (n, scheduler) in SCHEDULERS.into_iter().enumerate() {
            let backends = plan.service(WEB).backends.clone();
            let service = plan.serve(&format!("203.0.113.{}:80/tcp", 20 + n), &[]);
            (service.backends, service.scheduler) = (backends, scheduler);
        }
    });
    let set = |n: usize| &service_named(&rig, &format!("203.0.113.{}:80/tcp", 20 + n)).set;
    assert!(std::sync::Arc::ptr_eq(set(0), &service_named(&rig, WEB).set), "one table for all who hash");
    for n in [1, 2, 3, 4, 7, 8, 9] {
        assert!(std::sync::Arc::ptr_eq(set(1), set(n)), "one list for all who need no more");
        assert!(set(n).maglev.is_none(), "{:?} needs no table", SCHEDULERS[n]);
    }
    let moved = |rig: &Rig, n: usize| service_named(rig, &format!("203.0.113.{}:80/tcp", 20 + n)).moved;
    rig.change(|plan| plan.health("10.0.0.12", BackendState::Down));
    assert!(moved(&rig, 0).is_some_and(|moved| moved.slots > 0));
    assert!((1..10).all(|n| moved(&rig, n).is_none()), "what moves without a table is not known");
    // To another scheduler and back: tables that are not each other's successors are not compared.
    rig.change(|plan| plan.service("203.0.113.20:80/tcp").scheduler = Scheduler::Rr);
    assert!(moved(&rig, 0).is_none());
    rig.change(|plan| plan.service("203.0.113.20:80/tcp").scheduler = Scheduler::Maglev);
    assert!(moved(&rig, 0).is_none());
}

#[test]
fn more_to_count_than_there_is_room_for_is_refused() {
    let places: Vec<String> = (1..=30).map(|n| format!("10.0.1.{n}:80")).collect();
    let compile = |n: usize| {
        let mut plan = three();
        plan.service(WEB).scheduler = Scheduler::Sed;
        plan.service(DNS).scheduler = Scheduler::Nq;
        let places: Vec<&str> = places[..n].iter().map(String::as_str).collect();
        plan.serve("203.0.113.50:80/tcp", &places).scheduler = Scheduler::Lc;
        plan.serve("203.0.113.51:80/tcp", &places).scheduler = Scheduler::RandomTwoChoices;
        plan.serve("203.0.113.52:80/tcp", &places);
        // Those of the other family have room of their own.
        plan.service(WEB6).scheduler = Scheduler::Wlc;
        plan.compile(&mut crate::tables::Compiler::default()).map(drop)
    };
    let refused = compile(30).unwrap_err();
    assert_eq!(refused, crate::tables::compile::CompileError::TooManyCounted { wanted: 66, limit: 64 });
    assert!(refused.to_string().contains("limits.counted_backends"));
    assert_eq!(compile(29), Ok(()));
}

/// The next process counts the flows it finds, once each, in one round of its sweep.
#[test]
fn counts_outlive_the_process() {
    use crate::persist::Store;
    let dir = tempfile::tempdir().unwrap();
    let config = testkit::config(0, 1);
    let open = || Store::open(&dir.path().join("flows.0"), config.shape(), [7; 16], [1, 2]).unwrap();
    let mut plan = three();
    plan.service(WEB).scheduler = Scheduler::Wlc;
    let counts = |rig: &Rig| {
        let share = rig.pipeline.v4.flows.share();
        service_named(rig, WEB).loads.iter().map(|slot| share.load(*slot)).collect::<Vec<_>>()
    };
    let mut rig = Rig::over(plan.clone(), &config, open());
    let conns: Vec<Conn> = (0..30).map(|n| Conn::open(&mut rig, &TCP[0].2(n), TO_WEB)).collect();
    conns.iter().take(6).for_each(|conn| conn.close(&mut rig));
    let before = counts(&rig);
    assert_eq!(
        before.iter().map(|load| (load.active, load.inactive)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (24, 6)
    );
    drop(rig);
    let mut rig = Rig::over(plan, &config, open());
    conns[7].to_node(&mut rig, TCP_ACK);
    rig.check();
    rig.sweep();
    assert_eq!(counts(&rig), before);
    rig.check();
}

/// Two whole workers, packets coming in by either: each service's flows even out over both, though each
/// worker chooses for itself.
#[test]
fn workers_see_each_others_flows() {
    use crate::pipeline::testkit::{Farm, FarmConfig};
    for scheduler in [Scheduler::Wlc, Scheduler::Lc, Scheduler::Sed, Scheduler::Nq, Scheduler::RandomTwoChoices] {
        let mut plan = three();
        for service in &mut plan.services {
            service.scheduler = scheduler;
            draining(&mut service.backends[0]);
        }
        let mut farm = Farm::new(plan, &FarmConfig { workers: 2, ..FarmConfig::default() });
        let open = |farm: &mut Farm, first: usize, count: usize| {
            let mut nodes = BTreeMap::<String, usize>::new();
            for n in first..first + count {
                let (client, vip) = if n % 2 == 0 {
                    (format!("198.51.100.7:{}", 2000 + n), TO_WEB)
                } else {
                    (format!("[2001:db8:2::7]:{}", 2000 + n), TO_WEB6)
                };
                farm.fronts[n % 2].inject(&Pkt::syn(&client, vip).bytes());
                farm.now.ns += 3_000_000;
                farm.round();
                farm.round();
                for frame in farm.backs.iter_mut().flat_map(|back| back.take_all()) {
                    let Ok(seen) = testkit::look(&frame) else { continue };
                    if seen.flags == TCP_SYN {
                        *nodes.entry(seen.dst.ip().to_string()).or_default() += 1;
                    }
                }
                farm.fronts.iter_mut().for_each(|front| drop(front.take_all()));
            }
            nodes
        };
        let before = open(&mut farm, 0, 80);
        assert!(before.values().all(|count| count.abs_diff(20) <= 4) && before.len() == 4, "{scheduler:?}: {before:?}");
        // What comes new gets what comes, whichever worker it comes to.
        farm.plan.services.iter_mut().for_each(|service| service.backends[0].state = BackendState::Active);
        farm.publish();
        farm.round();
        let after = open(&mut farm, 80, 36);
        let new = after.get("10.0.0.11").unwrap_or(&0) + after.get("fd00::11").unwrap_or(&0);
        let least = if scheduler == Scheduler::RandomTwoChoices { 17 } else { 34 };
        assert!(new >= least, "{scheduler:?}: {after:?}");
    }
}

/// Whoever has no port of its own goes by the service's: what goes to the old one goes to nobody.
#[test]
fn another_target_port_is_another_backend() {
    let mut plan = three();
    let service = plan.service(WEB);
    service.target_port = Some(8080);
    service.backends.iter_mut().for_each(|backend| backend.port = None);
    let mut rig = Rig::new(plan);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    assert_eq!(conn.at_node.dst.port(), 8080);
    rig.change(|plan| plan.service(WEB).target_port = Some(9090));
    assert_eq!(conn.out(&mut rig, TCP_ACK).to_client().flags, TCP_RST);
    assert_eq!(Conn::open(&mut rig, "198.51.100.9:1", TO_WEB).at_node.dst.port(), 9090);
}

/// A node more or less must not resize a small set's table, which would move most of its clients.
#[test]
fn small_sets_have_tables_of_one_size() {
    let size = |nodes| {
        let mut plan = three();
        plan.service(WEB).backends.truncate(nodes);
        service_named(&Rig::new(plan), WEB).set.maglev.size()
    };
    assert_eq!((size(1), size(2)), (size(3), size(3)));
}
