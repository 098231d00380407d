//! Several workers' counts against an exact model.

use penstock_configs::desired::{self, ServiceLimits};

use super::*;
use crate::pipeline::testkit::Plan;
use crate::schedule::Random;
use crate::tables::Compiler;
use crate::wire::PROTO_TCP;

const AT: &str = "203.0.113.10:443/tcp";

fn service(limits: ServiceLimits) -> Arc<Service> {
    let mut plan = Plan::default();
    plan.serve(AT, &["10.0.0.11:31443"]).limits = Some(limits);
    let tables = plan.compile(&mut Compiler::default()).expect("a plan");
    Arc::clone(tables.service(0).expect("the first slot"))
}

/// Workers that know one another, each with room for so many records.
fn workers(count: u16, records: usize) -> Vec<Limiter> {
    let peers = Arc::new(Peers::new(usize::from(count)));
    let shares: Vec<_> = (0..count).map(|_| Arc::new(Share::with_limits(1, Counts::new(8, 256)))).collect();
    for (worker, share) in (0..).zip(&shares) {
        peers.join(worker, Arc::clone(share), Arc::new(Share::new(1)));
    }
    let limiter = |(worker, share): (u16, Arc<Share>)| {
        let mut limiter = Limiter::new(records, share);
        limiter.meet(&peers, worker, false);
        limiter
    };
    (0..).zip(shares).map(limiter).collect()
}

/// Two services of one VIP, each at most so many connections.
fn two_services(connections: u32) -> [Arc<Service>; 2] {
    let mut plan = Plan::default();
    for at in [AT, "203.0.113.10:80/tcp"] {
        let limits = ServiceLimits { connections: Some(connections), ..ServiceLimits::default() };
        plan.serve(at, &["10.0.0.11:31443"]).limits = Some(limits);
    }
    let tables = plan.compile(&mut Compiler::default()).expect("a plan");
    [0, 1].map(|slot| Arc::clone(tables.service(slot).expect("a slot")))
}

fn word(state: State) -> Word {
    Word { state, flags: Flags::default(), protocol: PROTO_TCP }
}

fn client(last: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, last])
}

fn open(worker: &mut Limiter, at: u32, service: &Service, client: IpAddr, now: Now) -> Result<Word, DropReason> {
    worker.admits(service, client, now)?;
    let word = worker.assign(at, word(State::SynSent), service, client);
    worker.opened(at, word, now);
    Ok(word)
}

/// The bound in the module's text: what others opened within [`OLDEST_NS`], and no more.
#[test]
fn a_services_limit_is_passed_by_what_others_opened_in_a_millisecond() {
    const LIMIT: u32 = 300;
    let service = service(ServiceLimits { connections: Some(LIMIT), ..ServiceLimits::default() });
    let mut workers = workers(4, 4096);
    let (mut random, mut now, mut open_flows, mut most) = (Random::new(1), Now::from_secs(9), Vec::new(), 0);
    // 100 flows a millisecond come, of which some go again.
    for at in 0..4096_u32 {
        now.ns += 10_000;
        let by = random.below(4) as usize;
        if let Ok(word) = open(&mut workers[by], at, &service, client(1), now) {
            open_flows.push((by, at, word));
        }
        if random.below(3) == 0 && !open_flows.is_empty() {
            let (by, at, word) = open_flows.swap_remove(random.below(open_flows.len() as u64) as usize);
            workers[by].leave(at, word);
        }
        most = most.max(open_flows.len());
    }
    assert!(most >= LIMIT as usize, "{most}: the limit was reached");
    assert!(most <= LIMIT as usize + 100, "{most} of {LIMIT}");
    let counted: u32 = workers.iter().map(|worker| worker.connections(service.slot)).sum();
    assert_eq!(counted as usize, open_flows.len(), "exact, when all is read");
    now.ns += 2 * OLDEST_NS;
    for (by, at, word) in open_flows.drain(..) {
        workers[by].leave(at, word);
    }
    now.ns += 2 * OLDEST_NS;
    assert!(open(&mut workers[0], 0, &service, client(1), now).is_ok());
}

#[test]
fn a_source_is_one_over_all_workers() {
    let source = desired::SourceLimits { connections: Some(3), prefix_v4: 24, ..Default::default() };
    let service = service(ServiceLimits { per_source: Some(source), ..ServiceLimits::default() });
    let mut workers = workers(2, 16);
    let now = Now::from_secs(9);
    let first = open(&mut workers[0], 0, &service, client(1), now).expect("the first");
    for (at, by) in [(1, 1), (2, 0)] {
        open(&mut workers[by], at, &service, client(at as u8), now).expect("one of three");
    }
    for worker in &mut workers {
        assert_eq!(open(worker, 9, &service, client(77), now), Err(DropReason::SourceConnections));
        assert!(worker.admits(&service, IpAddr::from([198, 51, 101, 1]), now).is_ok(), "another prefix");
    }
    workers[0].leave(0, first);
    open(&mut workers[1], 9, &service, client(77), now).expect("room again");
}

#[test]
fn rates_are_added_up() {
    let service = service(ServiceLimits { new_per_second: Some(10), ..ServiceLimits::default() });
    let mut workers = workers(2, 64);
    let mut now = Now::from_secs(9);
    let mut opened = 0;
    for at in 0..40 {
        now.ns += 2 * OLDEST_NS;
        opened += u32::from(open(&mut workers[at as usize % 2], at, &service, client(1), now).is_ok());
    }
    assert_eq!(opened, 10);
    assert_eq!(workers[0].admits(&service, client(1), now), Err(DropReason::ServiceRate));
    now.ns += 1_500_000_000;
    assert!(workers[0].admits(&service, client(1), now).is_ok());
}

/// Limits that come, change and go meet flows that are there.
#[test]
fn flows_are_counted_where_their_service_limits_them_now() {
    let unlimited = {
        let mut plan = Plan::default();
        plan.serve(AT, &["10.0.0.11:31443"]);
        let tables = plan.compile(&mut Compiler::default()).expect("a plan");
        Arc::clone(tables.service(0).expect("the first slot"))
    };
    let all = service(ServiceLimits { connections: Some(5), ..ServiceLimits::default() });
    let by_source = |prefix_v4| {
        let source = desired::SourceLimits { connections: Some(1), prefix_v4, ..Default::default() };
        service(ServiceLimits { per_source: Some(source), ..ServiceLimits::default() })
    };
    let [mut worker] = workers(1, 4).try_into().expect("one");
    let now = Now::from_secs(9);
    let mut of = worker.assign(0, word(State::Established), &unlimited, client(1));
    assert_eq!((of, worker.connections(0)), (word(State::Established), 0));
    of = worker.assign(0, of, &all, client(1));
    of = worker.assign(0, of, &all, client(1));
    assert_eq!(worker.connections(0), 1, "once");
    for prefix in [32, 24] {
        let service = by_source(prefix);
        assert!(worker.admits(&service, client(2), now).is_ok(), "not counted by /{prefix} yet");
        of = worker.assign(0, of, &service, client(1));
        assert_eq!(worker.admits(&service, client(1), now), Err(DropReason::SourceConnections), "/{prefix}");
        assert_eq!(worker.connections(0), 1);
    }
    let resting = worker.moves(0, of, Word { state: State::TimeWait, ..of });
    assert_eq!(worker.connections(0), 0, "its port rests");
    assert!(worker.admits(&by_source(24), client(1), now).is_ok());
    worker.leave(0, resting);
    assert_eq!(worker.connections(0), 0, "and is not taken off twice");
    of = worker.moves(0, resting, of);
    of = worker.assign(0, of, &unlimited, client(1));
    assert_eq!((of, worker.connections(0)), (word(State::Established), 0));
}

/// Each service limits its sources by itself, whatever of its address, port and protocol another one shares.
#[test]
fn a_source_has_its_own_count_at_each_service() {
    let source = desired::SourceLimits { connections: Some(1), ..Default::default() };
    let limits = ServiceLimits { per_source: Some(source), ..ServiceLimits::default() };
    let at = |at: &str, node: &str| {
        let mut plan = Plan::default();
        plan.serve(at, &[node]).limits = Some(limits.clone());
        let tables = plan.compile(&mut Compiler::default()).expect("a plan");
        Arc::clone(tables.service(0).expect("the first slot"))
    };
    let [mut worker] = workers(1, 2).try_into().expect("one");
    let now = Now::from_secs(9);
    let families = [
        (client(1), "10.0.0.11:1", [AT, "203.0.113.11:443/tcp", "203.0.113.10:444/tcp", "203.0.113.10:443/udp"]),
        (
            "2001:db8::7".parse().unwrap(),
            "[fd00::11]:1",
            [
                "[2001:db8:1::1]:443/tcp",
                "[2001:db8:1::2]:443/tcp",
                "[2001:db8:1::1]:444/tcp",
                "[2001:db8:1::1]:443/udp",
            ],
        ),
    ];
    for (record, (client, node, services)) in (0..).zip(families) {
        let [first, others @ ..] = services.map(|service| at(service, node));
        open(&mut worker, record, &first, client, now).expect("the first");
        assert_eq!(worker.admits(&first, client, now), Err(DropReason::SourceConnections));
        for other in others {
            assert_eq!(worker.admits(&other, client, now), Ok(()), "{}:{}", other.vip, other.port);
        }
    }
}

#[test]
fn a_flow_counts_once_and_as_long_as_it_is_open() {
    let [one, other] = two_services(1);
    let [mut worker] = workers(1, 8).try_into().expect("one");
    let now = Now::from_secs(9);
    for state in [State::TimeWait, State::Reset, State::Expired, State::SctpClosed] {
        assert!(!counts(word(state)), "{state:?}: only its port rests");
    }
    for state in [State::SynSent, State::FinWait, State::UdpOneWay, State::SctpInit, State::SctpShutdown] {
        assert!(counts(word(state)), "{state:?}");
        // In `dsr` the node's end of a closing connection is never seen.
        let of_dsr = Word { flags: Flags::MODE, ..word(state) };
        assert_eq!(counts(of_dsr), !matches!(state, State::FinWait | State::SctpShutdown), "{state:?}");
    }
    let resting = worker.assign(0, word(State::TimeWait), &one, client(1));
    assert_eq!(worker.connections(one.slot), 0);
    // What a step makes of a word keeps that it is counted, or it would never be taken off.
    let opened = worker.moves(0, resting, word(State::SynSent));
    assert!(opened.flags.has(Flags::LIMITED));
    assert_eq!(worker.admits(&one, client(1), now), Err(DropReason::ServiceConnections));
    // Its service has another number.
    let moved = worker.assign(0, opened, &other, client(1));
    assert_eq!((worker.connections(one.slot), worker.connections(other.slot)), (0, 1));
    worker.leave(0, moved);
    assert_eq!(worker.connections(other.slot), 0);
    // One that nobody counts is in no rate.
    worker.opened(5, word(State::SynSent), now);
    let rated = service(ServiceLimits { new_per_second: Some(1), ..ServiceLimits::default() });
    assert_eq!(worker.admits(&rated, client(1), now), Ok(()));
}

#[test]
fn a_source_is_not_counted_where_sources_are_limited_no_more() {
    let source = desired::SourceLimits { connections: Some(1), ..Default::default() };
    let by_source = service(ServiceLimits { per_source: Some(source), ..ServiceLimits::default() });
    let all = service(ServiceLimits { connections: Some(5), ..ServiceLimits::default() });
    let [mut worker] = workers(1, 1).try_into().expect("one");
    let now = Now::from_secs(9);
    let of = open(&mut worker, 0, &by_source, client(1), now).expect("the first");
    let of = worker.assign(0, of, &all, client(1));
    assert_eq!((worker.admits(&by_source, client(1), now), worker.connections(0)), (Ok(()), 1));
    worker.leave(0, of);
    assert_eq!(worker.connections(0), 0);
}
