//! How much the box may say of its own accord.

use crate::clock::Now;

/// So many per second, spent at most a tenth of a second's worth at once.
#[derive(Debug)]
pub struct Budget {
    per_second: u64,
    tokens_ns: u64,
    last: Now,
}

impl Budget {
    pub fn new(per_second: u32) -> Self {
        Self { per_second: u64::from(per_second), tokens_ns: 100_000_000, last: Now::default() }
    }

    pub fn allows(&mut self, now: Now) -> bool {
        let Some(cost) = 1_000_000_000_u64.checked_div(self.per_second) else { return false };
        let burst = 100_000_000.max(cost);
        self.tokens_ns = (self.tokens_ns + now.ns.saturating_sub(self.last.ns)).min(burst);
        self.last = now;
        if self.tokens_ns < cost {
            return false;
        }
        self.tokens_ns -= cost;
        true
    }
}
