//! The table against a plain model: a list of flows that is searched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::clock::Tick;
use crate::persist::{Shape, Store};
use crate::wire::{PROTO_TCP, PROTO_UDP, V4, V6};

const CAPACITY: Capacity = Capacity { established: 40, embryonic: 12 };
const CONNECTION: Word = Word { state: State::Established, flags: Flags(0), protocol: PROTO_TCP };
/// Places flows are counted in.
const LOADS: usize = 5;
const SHAPE: Shape = Shape { worker: 0, workers: 1, records_v4: 52, records_v6: 52 };

fn address<F: Family>(n: u32) -> F::Addr {
    let v6 = u128::from(n) | 0x2001_0db8 << 96;
    F::from_ip(if F::V6 { IpAddr::V6(Ipv6Addr::from(v6)) } else { IpAddr::V4(Ipv4Addr::from(n)) }).unwrap()
}

/// A flow of client `n`: its port towards the node is `port`.
fn flow<F: Family>(n: u32, port: u16, udp: bool, dnat: bool) -> NewFlow<F::Addr> {
    NewFlow {
        client: address::<F>(0xc633_6400 + n),
        vip: address::<F>(0xcb00_710a),
        node: address::<F>(0x0a00_000b),
        client_port: 5000,
        vip_port: 443,
        node_port: 31_443,
        snat_port: port,
        snat: 0,
        word: Word {
            state: if udp { State::UdpOneWay } else { State::SynSent },
            flags: if dnat { Flags::DNAT } else { Flags::default() },
            protocol: if udp { PROTO_UDP } else { PROTO_TCP },
        },
        epoch: 1,
        hop: 0,
        node_slot: 0,
        service: 0,
        // Some are not counted.
        load: n % (LOADS as u32 + 1),
    }
}

fn tuples<F: Family>(flow: &NewFlow<F::Addr>) -> [Tuple<F::Addr>; 2] {
    let protocol = flow.word.protocol;
    let there =
        Tuple { src: flow.client, dst: flow.vip, src_port: flow.client_port, dst_port: flow.vip_port, protocol };
    let (dst, dst_port) = if flow.word.flags.has(Flags::DNAT) {
        (flow.client, flow.client_port)
    } else {
        (address::<F>(0x0a00_0001), flow.snat_port)
    };
    [there, Tuple { src: flow.node, dst, src_port: flow.node_port, dst_port, protocol }]
}

#[derive(Debug, Clone)]
enum Step {
    Insert { client: u32, port: u16, udp: bool, dnat: bool },
    Transition { which: prop::sample::Index, to: u8 },
    Remove { which: prop::sample::Index },
    Touch { which: prop::sample::Index },
    Sweep { seconds: u64 },
    Recover,
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        8 => (0_u32..90, 1024_u16..1110, any::<bool>(), any::<bool>())
            .prop_map(|(client, port, udp, dnat)| Step::Insert { client, port, udp, dnat }),
        8 => (which(), 1_u8..8).prop_map(|(which, to)| Step::Transition { which, to }),
        2 => which().prop_map(|which| Step::Remove { which }),
        2 => which().prop_map(|which| Step::Touch { which }),
        1 => (0_u64..40).prop_map(|seconds| Step::Sweep { seconds }),
        1 => Just(Step::Recover),
    ]
}

struct Live<A> {
    at: u32,
    flow: NewFlow<A>,
    state: State,
    seen: Now,
}

/// The table and its model: live flows, and embryos in the order they came.
struct Pair<F: Family> {
    store: Store,
    table: Option<FlowTable<F>>,
    take: fn(&mut Store) -> Records<F::Addr>,
    live: Vec<Live<F::Addr>>,
    embryos: Vec<u32>,
    now: Now,
    refused: usize,
}

impl<F: Family> Pair<F> {
    fn new(take: fn(&mut Store) -> Records<F::Addr>) -> Self {
        let mut store = Store::anonymous(SHAPE).unwrap();
        let table = Some(Self::table_over(take(&mut store)));
        Self { store, table, take, live: Vec::new(), embryos: Vec::new(), now: Now::from_secs(100), refused: 0 }
    }

    fn table_over(records: Records<F::Addr>) -> FlowTable<F> {
        let mut table =
            FlowTable::new(records, CAPACITY, FlowHasher::new([1, 2]), Arc::new(Share::new(LOADS))).unwrap();
        table.set_snats([address::<F>(0x0a00_0001)].into_iter());
        table
    }

    fn forget(&mut self, at: u32) {
        self.live.retain(|live| live.at != at);
        self.embryos.retain(|embryo| *embryo != at);
    }

    /// The model's side of making room for an embryo.
    fn make_room(&mut self) {
        if self.embryos.len() == CAPACITY.embryonic as usize {
            self.forget(self.embryos[0]);
        }
    }

    fn established(&self) -> usize {
        self.live.len() - self.embryos.len()
    }

    fn take_step(&mut self, step: &Step) {
        let now = self.now;
        let Some(mut table) = self.table.take() else { return };
        match step {
            Step::Insert { client, port, udp, dnat } => {
                let flow = flow::<F>(*client, *port, *udp, *dnat);
                let new = tuples::<F>(&flow);
                let clash = self.live.iter().any(|live| {
                    let old = tuples::<F>(&live.flow);
                    old[0] == new[0] || old[1] == new[1]
                });
                if !clash {
                    self.make_room();
                    match table.insert(&flow, now) {
                        Ok(at) => {
                            assert!(self.live.iter().all(|live| live.at != at), "record {at} given twice");
                            self.live.push(Live { at, flow, state: flow.word.state, seen: now });
                            self.embryos.push(at);
                        }
                        // An index this small may be full in one place.
                        Err(reason) => {
                            assert_eq!(reason, DropReason::FlowTableFull);
                            self.refused += 1;
                        }
                    }
                }
            }
            Step::Transition { which, to } if !self.live.is_empty() => {
                let live = which.index(self.live.len());
                let (at, from) = (self.live[live].at, self.live[live].state);
                let to = State::from_bits(*to).unwrap();
                let word = table.record(at).word().unwrap();
                assert_eq!(word.state, from);
                let is_stream =
                    |live: &&Live<F::Addr>| live.flow.word.protocol == PROTO_UDP && !live.state.is_embryonic();
                let full = self.established() >= CAPACITY.established as usize
                    || word.protocol == PROTO_UDP && self.live.iter().filter(is_stream).count() >= 30;
                let result = table.transition(at, word, Word { state: to, ..word });
                match (from.is_embryonic(), to.is_embryonic()) {
                    (true, false) if full => assert_eq!(result, Err(DropReason::FlowTableFull)),
                    (was, is) => {
                        assert_eq!(result, Ok(()));
                        if was && !is {
                            self.embryos.retain(|embryo| *embryo != at);
                        } else if !was && is {
                            self.make_room();
                            self.embryos.push(at);
                        }
                        self.live.iter_mut().find(|live| live.at == at).unwrap().state = to;
                    }
                }
            }
            Step::Remove { which } if !self.live.is_empty() => {
                let at = self.live[which.index(self.live.len())].at;
                table.remove(at);
                table.remove(at);
                self.forget(at);
            }
            Step::Touch { which } if !self.live.is_empty() => {
                let live = which.index(self.live.len());
                table.record_mut(self.live[live].at).last_seen = now.tick().0;
                self.live[live].seen = now;
            }
            Step::Sweep { seconds } => {
                self.now.ns += seconds * 1_000_000_000;
                let limit = |state: State| crate::clock::ticks(10 * state as u32);
                let now = self.now.tick();
                let keep = |_: u32, record: &mut Record<F::Addr>, word: Word, _: &mut Tally| {
                    let is_over = now.since(record.last_seen()) > limit(word.state);
                    if is_over { Swept::Forgotten } else { Swept::Kept }
                };
                while !table.sweep(7, &mut MOST_EFFORT.clone(), |_| {}, keep).1 {}
                let gone: Vec<u32> = self
                    .live
                    .iter()
                    .filter(|live| now.since(live.seen.tick()) > limit(live.state))
                    .map(|live| live.at)
                    .collect();
                gone.into_iter().for_each(|at| self.forget(at));
            }
            Step::Recover => {
                drop(table);
                table = Self::table_over((self.take)(&mut self.store));
                let kept = table.recover(CAPACITY.records(), |_, _| true);
                assert_eq!(kept, self.live.len(), "flows lost");
                // Who came first is not stored.
                self.embryos.sort_unstable();
            }
            _ => {}
        }
        self.table = Some(table);
    }

    fn compare(&self) {
        let table = self.table.as_ref().unwrap();
        table.check_invariants().unwrap();
        assert_eq!(table.counts().embryonic as usize, self.embryos.len());
        assert_eq!(table.counts().established as usize, self.established());
        for n in 0..90 {
            for (udp, dnat) in [(false, false), (true, false), (false, true), (true, true)] {
                let tuple = tuples::<F>(&flow::<F>(n, 0, udp, dnat))[0];
                let ours = self.live.iter().find(|live| tuples::<F>(&live.flow)[0] == tuple).map(|live| live.at);
                let found = table.find(&tuple, table.hash(&tuple));
                assert_eq!(found, ours.map(|record| Entry { record, direction: Direction::Forward }));
            }
        }
        for live in &self.live {
            let reply = tuples::<F>(&live.flow)[1];
            let entry = Entry { record: live.at, direction: Direction::Reverse };
            assert_eq!(table.find(&reply, table.hash(&reply)), Some(entry));
        }
    }
}

fn run<F: Family>(steps: &[Step], take: fn(&mut Store) -> Records<F::Addr>) {
    let mut pair = Pair::<F>::new(take);
    for step in steps {
        pair.take_step(step);
        pair.compare();
    }
    assert!(pair.refused * 20 <= steps.len(), "{} of {} refused", pair.refused, steps.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn as_the_plain_model(steps in proptest::collection::vec(step(), 1..250)) {
        run::<V4>(&steps, |store| store.records().unwrap().0);
        run::<V6>(&steps, |store| store.records().unwrap().1);
    }
}

fn big<F: Family>(capacity: Capacity, take: fn(&mut Store) -> Records<F::Addr>) -> FlowTable<F> {
    let records = capacity.records();
    let mut store =
        Store::anonymous(Shape { worker: 0, workers: 1, records_v4: records, records_v6: records }).unwrap();
    let mut table =
        FlowTable::new(take(&mut store), capacity, FlowHasher::new([3, 4]), Arc::new(Share::new(LOADS))).unwrap();
    table.set_snats([address::<F>(0x0a00_0001)].into_iter());
    table
}

fn establish<F: Family>(table: &mut FlowTable<F>, n: u32) -> Result<u32, DropReason> {
    let at = table.insert(&flow::<F>(n, 0, false, true), Now::from_secs(1))?;
    let word = table.record(at).word().unwrap();
    table.transition(at, word, Word { state: State::Established, ..word }).map(|()| at)
}

#[test]
fn full_to_the_last_flow() {
    let capacity = Capacity { established: 60_000, embryonic: 500 };
    let mut table = big::<V4>(capacity, |store| store.records().unwrap().0);
    for n in 0..60_000 {
        establish(&mut table, n).unwrap_or_else(|reason| panic!("flow {n}: {reason:?}"));
    }
    // One more stays an embryo, and goes to the next.
    let at = table.insert(&flow::<V4>(60_001, 0, false, true), Now::from_secs(1)).unwrap();
    let word = table.record(at).word().unwrap();
    let grown = Word { state: State::Established, ..word };
    assert_eq!(table.transition(at, word, grown), Err(DropReason::FlowTableFull));
    for n in 60_002..62_000 {
        table.insert(&flow::<V4>(n, 0, false, true), Now::from_secs(1)).unwrap();
    }
    assert_eq!(table.counts(), Counts { established: 60_000, unproved: 0, embryonic: 500, evicted: 1_499 });
    table.check_invariants().unwrap();
    for n in 0..60_000 {
        let tuple = tuples::<V4>(&flow::<V4>(n, 0, false, true))[0];
        assert!(table.find(&tuple, table.hash(&tuple)).is_some(), "established flow {n} is gone");
    }
    // Emptied and filled again, in another order.
    for at in 0..capacity.records() {
        table.remove(at);
    }
    assert_eq!((table.counts().established, table.counts().embryonic), (0, 0));
    for n in (0..60_000).rev() {
        establish(&mut table, n).unwrap();
    }
    table.check_invariants().unwrap();
}

#[test]
fn closed_flows_make_room_and_no_others() {
    let capacity = Capacity { established: 1000, embryonic: 10 };
    let mut table = big::<V4>(capacity, |store| store.records().unwrap().0);
    let moved = |table: &mut FlowTable<V4>, at: u32, state| {
        let word = table.record(at).word().unwrap();
        table.transition(at, word, Word { state, ..word }).unwrap();
    };
    let rest = [State::TimeWait, State::Reset, State::SctpClosed];
    for n in 0..1000 {
        let at = establish(&mut table, n).unwrap();
        table.record_mut(at).last_seen = n;
        match n % 10 {
            0 => moved(&mut table, at, rest[n as usize / 10 % 3]),
            1 => moved(&mut table, at, State::FinWait),
            2 => moved(&mut table, at, State::Expired),
            _ => {}
        }
    }
    for n in 1000..1100 {
        assert_eq!(establish(&mut table, n + 1000), Err(DropReason::FlowTableFull));
        let mut oldest = u32::MAX;
        // A few records at a time, until the hand has gone round.
        assert!((0..32).any(|_| table.reclaim(CONNECTION, Tick(1000), |record| oldest = record.last_seen)), "flow {n}");
        assert!(oldest.is_multiple_of(10), "{oldest} is not closed");
        establish(&mut table, n).unwrap();
        table.check_invariants().unwrap();
    }
    assert!((0..32).all(|_| !table.reclaim(CONNECTION, Tick(1000), |_| panic!("of a flow that goes on"))));
    let left = table.live().filter(|(_, word)| matches!(word.state, State::FinWait | State::Expired)).count();
    assert_eq!((table.counts().established, left), (1000, 200));
}

#[test]
fn of_closed_flows_the_one_that_rests_longest_goes_first() {
    let mut table = big::<V4>(Capacity { established: 8, embryonic: 8 }, |store| store.records().unwrap().0);
    for (n, seen) in [5, 3, 1, 4, 2].into_iter().enumerate() {
        let at = establish(&mut table, n as u32).unwrap();
        let word = table.record(at).word().unwrap();
        table.transition(at, word, Word { state: State::TimeWait, ..word }).unwrap();
        table.record_mut(at).last_seen = seen;
    }
    let mut gone = Vec::new();
    while table.reclaim(CONNECTION, Tick(1000), |record| gone.push(record.last_seen)) {}
    assert_eq!(gone, [1, 2, 3, 4, 5]);
}

#[test]
fn recovery_refuses_what_contradicts() {
    let mut pair = Pair::<V4>::new(|store| store.records().unwrap().0);
    let table = pair.table.as_mut().unwrap();
    let first = table.insert(&flow::<V4>(1, 2000, false, false), pair.now).unwrap();
    let second = table.insert(&flow::<V4>(2, 2001, false, false), pair.now).unwrap();
    let third = table.insert(&flow::<V4>(3, 2002, false, false), pair.now).unwrap();
    // As garbage in the file would have it: two flows on one SNAT port, and one nobody wants.
    table.record_mut(second).snat_port = 2000;
    pair.table = None;
    let mut table = Pair::<V4>::table_over((pair.take)(&mut pair.store));
    let kept = table.recover(CAPACITY.records(), |record, _| record.client != address::<V4>(0xc633_6403));
    assert_eq!(kept, 1);
    assert!(table.record(first).word().is_some());
    assert!(table.record(second).word().is_none() && table.record(third).word().is_none());
    table.check_invariants().unwrap();
}

#[test]
fn records_take_a_cache_line_each_and_tables_say_what_they_take() {
    let table = big::<V4>(Capacity { established: 10_000, embryonic: 100 }, |store| store.records().unwrap().0);
    let per_flow = table.memory_per_flow();
    assert!((96.0..110.0).contains(&per_flow), "{per_flow}");
}
