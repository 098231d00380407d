use super::*;
use crate::wire::{V4, V6};

const HOUR: u32 = 3600 * 15;

fn affinity(prefix: u8) -> Affinity {
    Affinity { group: 1, timeout: HOUR, prefix }
}

fn choice(node: &str) -> Choice {
    Choice { node: node.parse().expect("an address"), port: 0 }
}

fn table(capacity: usize) -> AffinityTable<V4> {
    AffinityTable::new(capacity, FlowHasher::new([7, 9]))
}

fn client(n: u32) -> Client<u32> {
    Client::of::<V4>(0xc633_0000 + n, &affinity(32))
}
