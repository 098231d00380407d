//! Records to be had: those given back, the last one first, since it is warm; then those that were never
//! used, in their order, so that memory is touched only as far as flows ever came.

/// A stack of records given back, over the ones that never were taken.
pub struct Free {
    /// With room for all: it never grows, and is memory only where it was written to.
    returned: Vec<u32>,
    fresh: u32,
    count: u32,
}

impl Free {
    /// Of `count` records, those from `fresh` on.
    #[must_use]
    pub fn new(count: u32, fresh: u32) -> Self {
        Self { returned: Vec::with_capacity(count as usize), fresh: fresh.min(count), count }
    }

    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        if let Some(at) = self.returned.pop() {
            return Some(at);
        }
        let at = self.fresh;
        if at == self.count {
            return None;
        }
        self.fresh += 1;
        Some(at)
    }

    /// What `take` returns when it is called so many times from now, if nothing is given back.
    #[inline]
    #[must_use]
    pub fn ahead(&self, times: usize) -> Option<u32> {
        match self.returned.len().checked_sub(times) {
            Some(at) => self.returned.get(at).copied(),
            None => Some(self.fresh + (times - self.returned.len()) as u32 - 1).filter(|at| *at < self.count),
        }
    }

    #[inline]
    pub fn give(&mut self, at: u32) {
        debug_assert!(self.returned.len() < self.returned.capacity(), "a record is given back once");
        self.returned.push(at);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.returned.len() + (self.count - self.fresh) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The plain version: a stack of all.
        #[test]
        fn as_a_plain_stack(first in 0_u32..6, steps in proptest::collection::vec(any::<Option<prop::sample::Index>>(), 0..60)) {
            let mut free = Free::new(20, first);
            let room = free.returned.capacity();
            let mut plain: Vec<u32> = (first..20).rev().collect();
            let mut taken: Vec<u32> = (0..first).collect();
            for step in steps {
                match step {
                    Some(which) if !taken.is_empty() => {
                        let at = taken.swap_remove(which.index(taken.len()));
                        free.give(at);
                        plain.push(at);
                    }
                    _ => {
                        let at = free.take();
                        prop_assert_eq!(at, plain.pop());
                        taken.extend(at);
                    }
                }
                prop_assert_eq!(free.len(), plain.len());
                for times in 1..=4 {
                    let ahead = plain.len().checked_sub(times).map(|at| plain[at]);
                    prop_assert_eq!(free.ahead(times), ahead);
                }
                prop_assert_eq!(free.returned.capacity(), room, "it never allocates");
            }
        }
    }
}
