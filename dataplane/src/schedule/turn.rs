//! `rr` and `wrr`: whose turn it is.

use super::Plan;

/// Where a worker is in one service's list. It outlives the list: a place, not a backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    /// The place in the set of the backend taken last.
    pub at: u32,
    /// `wrr`: the weight a backend must have for its turn. 0: never used.
    level: u32,
}

impl Cursor {
    #[must_use]
    pub fn is_fresh(self) -> bool {
        self.level == 0
    }

    /// Begins anywhere: workers, and services on one set, must not all begin with the same backend.
    pub fn begin(&mut self, plan: &Plan, anywhere: usize) {
        self.at = plan.usable.get(anywhere).map_or(0, |candidate| u32::from(candidate.index));
        self.level = plan.largest;
    }

    /// The next one. The plan has a candidate.
    pub fn next(&mut self, plan: &Plan) -> u16 {
        let next = plan.after(self.at).next().map_or(0, |candidate| candidate.index);
        self.at = u32::from(next);
        next
    }

    /// The next one whose weight is up to the level, which falls a step with every time round. The
    /// plan has a candidate.
    pub fn next_weighted(&mut self, plan: &Plan) -> u16 {
        let step = plan.divisor;
        // Weights may have changed.
        self.level = self.level.min(plan.largest);
        let first = plan.usable.partition_point(|candidate| u32::from(candidate.index) <= self.at);
        let next = plan.usable[first..].iter().find(|candidate| candidate.weight >= self.level);
        let next = next.or_else(|| {
            self.level = if self.level > step { self.level - step } else { plan.largest };
            plan.usable.iter().find(|candidate| candidate.weight >= self.level)
        });
        let next = next.map_or(0, |candidate| candidate.index);
        self.at = u32::from(next);
        next
    }
}
