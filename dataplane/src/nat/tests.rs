use std::cell::Cell;

use super::*;
use crate::flow::{Capacity, Flags, NewFlow, Record, Word};
use crate::persist::{Shape, Store};
use crate::wire::V4;

fn table(capacity: Capacity) -> FlowTable<V4> {
    let mut store =
        Store::anonymous(Shape { worker: 0, workers: 1, records_v4: capacity.records(), records_v6: 1 }).unwrap();
    let (records, _) = store.records().unwrap();
    let share = std::sync::Arc::new(crate::schedule::Share::new(1));
    FlowTable::new(records, capacity, crate::hash::FlowHasher::new([3, 4]), share).unwrap()
}

fn towards(client: u32, nodes: u32) -> Towards<u32> {
    Towards {
        node: 0x0a00_0010 + client % nodes,
        node_port: 31_443,
        node_slot: (client % nodes) as u16,
        protocol: PROTO_TCP,
        syn: None,
        client_hash: u64::from(client / 5),
    }
}

/// A client's SYN, on the port it was given.
fn open(flows: &mut FlowTable<V4>, client: u32, towards: &Towards<u32>, found: Allocation) -> u32 {
    let flow = NewFlow {
        client,
        vip: 9,
        node: towards.node,
        client_port: 5,
        vip_port: 443,
        node_port: towards.node_port,
        snat_port: found.port,
        snat: found.snat,
        word: Word { state: State::SynSent, flags: Flags::default(), protocol: PROTO_TCP },
        epoch: 1,
        hop: 0,
        node_slot: towards.node_slot,
        service: 0,
        load: 0,
    };
    flows.insert(&flow, Now::from_secs(1)).unwrap()
}

#[test]
fn one_more_address_takes_its_share_and_moves_nobody_else() {
    let snat = |addr: u32, retired| Snat { addr, first_port: 1024, last_port: 65535, shared: false, retired };
    let two = [snat(0, true), snat(0x0a00_0001, false), snat(0, true), snat(0x0a00_0002, false)];
    let three = [snat(0x0a00_0003, false), two[1], two[2], two[3]];
    let (two, three) = (addresses_of_groups::<V4>(&two), addresses_of_groups::<V4>(&three));
    let mut shares = [0; 4];
    let mut moved = 0;
    for client in 0..30_000 {
        let hash = u64::from(V4::owner_hash(0xc633_0000 + client, 0, 0));
        let (before, after) = (address_of(&two, hash), address_of(&three, hash));
        assert!(before == after || after == 0, "from one old address to another");
        shares[before] += 1;
        moved += u32::from(after == 0);
    }
    assert!(shares[0] == 0 && shares[2] == 0, "{shares:?}");
    assert!((14_000..16_000).contains(&shares[1]), "{shares:?}");
    assert!((9_300..10_700).contains(&moved), "{moved}");
}

/// A burst's openings towards three nodes, half of the ports elsewhere's; every other one takes what was
/// guessed, the others look for themselves, and come to the same.
#[test]
fn what_is_foreseen_is_what_is_allocated() {
    let mut flows = table(Capacity { established: 1000, embryonic: 1000 });
    let snat = |addr: u32| Snat { addr, first_port: 1024, last_port: 2000, shared: false, retired: false };
    let snats = [snat(0x0a00_0001), snat(0x0a00_0002)];
    flows.set_snats(snats.iter().map(|snat| snat.addr));
    let of_groups = addresses_of_groups::<V4>(&snats);
    let mut ports = PortAllocator::new(Partition { worker: crate::verdict::WorkerId(0), workers: 1 }, 3);
    let towards = |client| towards(client, 3);
    let is_home = |reply: &Tuple<u32>| reply.dst_port.is_multiple_of(2);
    let mut right = 0;
    for burst in 0..20 {
        let clients = (burst * 30)..(burst * 30 + 30);
        let foreseen: Vec<Option<Guess>> = clients
            .clone()
            .map(|client| ports.foresee(&flows, &snats, &of_groups, &towards(client), is_home))
            .collect();
        ports.end_burst();
        for (client, guess) in clients.zip(foreseen) {
            let towards = towards(client);
            let never = |_: &Record<u32>, _| false;
            let guessed = guess.filter(|_| client % 2 == 0);
            let taken = guessed.and_then(|guess| ports.take(&mut flows, &snats, &towards, guess));
            let found = taken
                .unwrap_or_else(|| ports.allocate(&mut flows, &snats, &of_groups, &towards, never, is_home).unwrap());
            right += usize::from(guess.is_some_and(|guess| guess.tuple == found));
            open(&mut flows, client, &towards, found);
        }
    }
    // All but the first burst's, when no search had begun: they went round the ports once and no further.
    assert_eq!(right, 19 * 30);
}

#[test]
fn a_small_range_is_searched_whole_and_a_large_one_all_over() {
    for count in [1, 2, 16, 17, 100, 128] {
        let mut seen: Vec<u32> = (0..count).map(|attempt| place(count / 3, attempt, count)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..count).collect::<Vec<_>>());
    }
    for count in [129, 1000, 16_128, 64_512] {
        let seen: Vec<u32> = (0..TRIES).map(|attempt| place(count - 1, attempt, count)).collect();
        assert_eq!(seen[..3], [count - 1, 0, 1], "the longest unused first");
        // No tenth of the range goes without a look.
        for tenth in 0..10 {
            assert!(seen.iter().any(|place| place * 10 / count == tenth), "{count}: {seen:?}");
        }
    }
}

/// Half-open flows have nine of ten ports, others the tenth.
#[test]
fn a_search_ends_early_where_a_flood_has_most_of_the_ports() {
    let mut flows = table(Capacity { established: 1000, embryonic: 1000 });
    let snats = [Snat { addr: 0x0a00_0001, first_port: 2000, last_port: 2199, shared: false, retired: false }];
    flows.set_snats(snats.iter().map(|snat| snat.addr));
    let of_groups = addresses_of_groups::<V4>(&snats);
    let mut ports = PortAllocator::new(Partition { worker: crate::verdict::WorkerId(0), workers: 1 }, 1);
    // Of every candidate that is not free it is asked.
    let looked_at = Cell::new(0);
    let never = |_: &Record<u32>, _| {
        looked_at.set(looked_at.get() + 1);
        false
    };
    for client in 0..2000 {
        looked_at.set(0);
        let towards = towards(client, 1);
        let found = ports.allocate(&mut flows, &snats, &of_groups, &towards, never, |_| true).unwrap();
        assert!(looked_at.get() < 40, "{} ports were looked at for client {client}", looked_at.get());
        let at = open(&mut flows, client, &towards, found);
        if client < 200 && client % 10 == 0 {
            let word = flows.record(at).word().unwrap();
            flows.transition(at, word, Word { state: State::Established, ..word }).unwrap();
        }
    }
    let counts = flows.counts();
    assert_eq!((counts.established, counts.embryonic, counts.evicted), (20, 180, 1800));
}
