use super::*;
use crate::wire::{V4, V6};

const TIMEOUT: u32 = 100;

fn affinity(prefix: u8) -> Affinity {
    Affinity { group: 1, timeout: TIMEOUT, prefix }
}

fn node(n: u32) -> Choice {
    Choice { node: V4::to_ip(0x0a00_0000 + n), port: n as u16 }
}

fn table(capacity: usize) -> AffinityTable<V4> {
    AffinityTable::new(capacity, FlowHasher::new([7, 9]))
}

fn client(n: u32) -> Client<u32> {
    Client::of::<V4>(0xc633_0000 + n, &affinity(32))
}

impl AffinityTable<V4> {
    fn check(&self) {
        assert_eq!(self.entries.iter().filter(|entry| entry.group != 0).count(), self.used);
        for (at, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.group != 0) {
            let client = Client { prefix: entry.client, group: entry.group };
            assert_eq!(self.place(&client), Some(at), "in two places");
        }
    }
}

#[test]
fn time_counts_from_the_last_new_flow() {
    let mut table = table(16);
    assert_eq!(table.find(&client(1), TIMEOUT, Tick(1000)), None);
    table.keep(&client(1), node(1), TIMEOUT, Tick(1000));
    assert_eq!(table.find(&client(1), TIMEOUT, Tick(1100)), Some(node(1)));
    assert_eq!(table.find(&client(1), TIMEOUT, Tick(1101)), None);
    table.keep(&client(1), node(1), TIMEOUT, Tick(1100));
    assert_eq!(table.find(&client(1), TIMEOUT, Tick(1200)), Some(node(1)));
    // A shorter time-out holds at once, a longer one from the next flow.
    assert_eq!(table.find(&client(1), 50, Tick(1151)), None);
    assert_eq!(table.find(&client(1), 1000, Tick(1201)), None);
    table.check();
}

#[test]
fn clients_and_groups_are_apart() {
    // All in one set.
    let mut table = table(1);
    table.keep(&client(1), node(1), TIMEOUT, Tick(10));
    let other_group = Client::of::<V4>(0xc633_0001, &Affinity { group: 2, ..affinity(32) });
    assert_eq!(table.find(&other_group, TIMEOUT, Tick(10)), None);
    assert_eq!(table.find(&client(2), TIMEOUT, Tick(10)), None);
    table.keep(&other_group, node(2), TIMEOUT, Tick(10));
    assert_eq!(table.find(&client(1), TIMEOUT, Tick(10)), Some(node(1)));
    assert_eq!(table.find(&other_group, TIMEOUT, Tick(10)), Some(node(2)));
    assert_eq!(table.used(), 2);
}

#[test]
fn a_prefix_is_one_client() {
    let of = |addr: &str, bits| Client::of::<V6>(addr.parse::<std::net::Ipv6Addr>().unwrap().into(), &affinity(bits));
    assert_eq!(of("2001:db8:0:1::7", 64), of("2001:db8:0:1:ffff::9", 64));
    assert_ne!(of("2001:db8:0:1::7", 64), of("2001:db8:0:2::7", 64));
    assert_ne!(of("2001:db8:0:1::7", 128), of("2001:db8:0:1::8", 128));
    let v4 = |addr, bits| Client::of::<V4>(addr, &affinity(bits));
    assert_eq!(v4(0xc633_6407, 24), v4(0xc633_64ff, 24));
    assert_ne!(v4(0xc633_6407, 24), v4(0xc633_6507, 24));
    assert_eq!([V4::prefix(u32::MAX, 0), V4::prefix(u32::MAX, 32), V4::prefix(u32::MAX, 1)], [0, u32::MAX, 1 << 31]);
}

#[test]
fn who_comes_back_too_late_begins_anew_where_it_was() {
    let mut table = table(1);
    for (n, tick) in [(1, 10), (2, 10), (2, 20)] {
        table.keep(&client(n), node(n), TIMEOUT, Tick(tick));
    }
    let again = |table: &AffinityTable<V4>| table.entries[table.place(&client(2)).unwrap()].again;
    assert!(again(&table));
    table.keep(&client(2), node(2), TIMEOUT, Tick(1000));
    assert!(!again(&table), "it is as good as new");
    assert_eq!((table.used(), table.evicted()), (2, 0));
    table.check();
}

#[test]
fn who_has_to_make_room() {
    let comes = client(7);
    let sets = table(16).sets(&comes);
    assert_ne!(sets[0], sets[1]);
    let full = |worth: &dyn Fn(usize) -> (bool, u32)| {
        let mut table = table(16);
        for (n, at) in sets.into_iter().flat_map(|set| set..set + WAYS).enumerate() {
            let (again, last) = worth(n);
            table.entries[at] =
                Entry { client: n as u32, node: 0, group: 9, last, until: last + TIMEOUT, port: 0, again };
            table.used += 1;
        }
        table.keep(&comes, node(1), TIMEOUT, Tick(50));
        assert_eq!((table.used(), table.evicted()), (2 * WAYS, 1));
        let at = table.place(&comes).expect("a place");
        sets.into_iter().flat_map(|set| set..set + WAYS).position(|place| place == at)
    };
    assert_eq!(full(&|n| (n != 6, 10)), Some(6), "who came once, in either set");
    assert_eq!(full(&|n| (true, 40 - n as u32)), Some(7), "who was away longest");
}

#[test]
fn every_worker_has_its_share_of_clients() {
    for workers in [1, 2, 3, 8] {
        let mut shares = vec![0_u32; usize::from(workers)];
        for n in 0..8000 {
            shares[usize::from(owner::<V4>(&client(n), workers).0)] += 1;
        }
        let due = 8000 / u32::from(workers);
        assert!(shares.iter().all(|share| share.abs_diff(due) < due / 8 + 1), "{shares:?}");
    }
}

#[test]
fn it_holds_as_many_as_it_says() {
    let mut table = table(10_000);
    for n in 0..10_000 {
        table.keep(&client(n), node(n % 7), TIMEOUT, Tick(1));
    }
    table.check();
    let kept = (0..10_000).filter(|n| table.find(&client(*n), TIMEOUT, Tick(1)) == Some(node(n % 7))).count();
    assert_eq!((kept + table.evicted() as usize, table.used()), (10_000, kept));
    assert!(table.evicted() <= 30, "{} of 10,000 found both their sets taken", table.evicted());
    assert_eq!(table.memory(), 15_000 * 24);
}

/// One address after the other, each once: those who came back keep their places.
#[test]
fn a_flood_of_addresses_drives_nobody_out_who_came_twice() {
    let mut table = table(1000);
    for round in 0..2 {
        for n in 0..300 {
            table.keep(&client(n), node(n % 7), TIMEOUT * 100, Tick(round));
        }
    }
    for n in 1000..200_000 {
        table.keep(&client(n), node(0), TIMEOUT * 100, Tick(2 + n / 1000));
    }
    table.check();
    assert!(table.evicted() > 190_000);
    let kept = (0..300).filter(|n| table.find(&client(*n), TIMEOUT * 100, Tick(300)) == Some(node(n % 7))).count();
    assert_eq!(kept, 300);
    // Nor does it grow.
    assert!(table.used() <= table.places());
}

#[test]
fn those_whose_time_is_up_make_room_first_then_the_oldest() {
    // One set only: four places.
    let mut table = AffinityTable::<V4>::new(2, FlowHasher::new([7, 9]));
    assert_eq!(table.places(), 4);
    for n in 0..4 {
        table.keep(&client(n), node(n), if n == 2 { 10 } else { TIMEOUT }, Tick(n));
    }
    table.keep(&client(10), node(10), TIMEOUT, Tick(50));
    assert_eq!((table.find(&client(2), TIMEOUT, Tick(50)), table.evicted()), (None, 0));
    table.keep(&client(11), node(11), TIMEOUT, Tick(51));
    assert_eq!((table.find(&client(0), TIMEOUT, Tick(51)), table.evicted()), (None, 1));
    for n in [1, 3, 10, 11] {
        assert_eq!(table.find(&client(n), TIMEOUT, Tick(51)), Some(node(n)));
    }
    assert_eq!(table.used(), 4);
    table.sweep(4, Tick(102));
    assert_eq!(table.used(), 3, "1's time is up");
    table.sweep(4, Tick(1000));
    assert_eq!(table.used(), 0);
    table.check();
}

#[test]
fn what_is_recalled_is_the_newest() {
    let mut table = table(16);
    table.recall(&client(1), node(1), TIMEOUT, Tick(950), Tick(1000));
    table.recall(&client(1), node(2), TIMEOUT, Tick(970), Tick(1000));
    table.recall(&client(1), node(3), TIMEOUT, Tick(960), Tick(1000));
    table.recall(&client(2), node(4), TIMEOUT, Tick(899), Tick(1000));
    assert_eq!(table.used(), 1, "one too old takes no place");
    assert_eq!(table.find(&client(1), TIMEOUT, Tick(1070)), Some(node(2)));
    assert_eq!(table.find(&client(1), TIMEOUT, Tick(1071)), None);
    assert_eq!(table.find(&client(2), TIMEOUT, Tick(1000)), None);
    table.check();
}
