//! Figures, not checks: `cargo test --release -p penstock-dataplane --lib maglev::bench -- --ignored --nocapture`.

use std::hint::black_box;

use super::*;
use crate::stopwatch::best_ns;

fn set(first: u32, n: u32, weight: impl Fn(u32) -> u32) -> Vec<(u64, u32)> {
    (0..n)
        .map(|i| (backend_identity(std::net::Ipv4Addr::from(0x0a00_0000 + first + i).into(), 30_000), weight(i)))
        .collect()
}

#[test]
#[ignore = "prints figures"]
fn build_and_lookup() {
    for (name, sets, n, spread) in [
        ("5,000 sets of 20, equal", 5000, 20, 1),
        ("5,000 sets of 20, weights 1-5", 5000, 20, 5),
        ("1 set of 500, equal", 1, 500, 1),
        ("1 set of 500, weights 1-100", 1, 500, 100),
        ("1 set of 3 at 65537", 1, 3, 1),
    ] {
        let mut tables: Vec<MaglevTable> = Vec::new();
        let ns = best_ns(1, || {
            tables = (0..sets)
                .map(|s| {
                    let backends = set(s * n, n, |i| 1 + i % spread);
                    let units = if sets == 1 { 500 } else { weight_units(backends.iter().map(|b| b.1)) };
                    MaglevTable::build(&backends, size_for(units, DEFAULT_MAX_SIZE))
                })
                .collect();
        });
        let bytes: usize = tables.iter().map(MaglevTable::memory_bytes).sum();
        println!("{name}: size {}, {:.2} ms, {:.1} MB", tables[0].size(), ns / 1e6, bytes as f64 / 1e6);
    }
    for size in [2039, 65_537] {
        let table = MaglevTable::build(&set(0, 20, |_| 1), size);
        let ns = best_ns(1_000_000, || {
            let mut hash = 1_u64;
            for _ in 0..1_000_000 {
                hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(black_box(&table).lookup(hash)));
            }
            black_box(hash);
        });
        println!("lookup, dependent, size {size}: {ns:.2} ns");
    }
}
