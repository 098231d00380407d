//! The queue of embryonic flows, oldest first. Its length bounds their number: when it is full the
//! oldest embryo makes room. A flow that grows up leaves the queue at once: were its place kept,
//! the queue would fill with flows that are embryos no longer, and young embryos be evicted for room
//! there is.

/// A doubly linked list threaded through record numbers, so that leaving costs two writes.
pub struct EmbryoQueue {
    /// By record, the records before and behind it, counted from 1; 0: none. Integers, not a struct of them: zeros
    /// of these come from the kernel untouched, and are memory only as far as records are used.
    links: Box<[[u32; 2]]>,
    oldest: u32,
    newest: u32,
    len: u32,
    capacity: u32,
}

const OLDER: usize = 0;
const NEWER: usize = 1;

impl EmbryoQueue {
    /// A queue of at most `capacity` out of `records` records.
    #[must_use]
    pub fn new(capacity: u32, records: u32) -> Self {
        let links = vec![[0; 2]; records as usize].into_boxed_slice();
        Self { links, oldest: 0, newest: 0, len: 0, capacity: capacity.max(1) }
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    #[must_use]
    pub fn count(&self) -> u32 {
        self.len
    }

    #[must_use]
    pub fn memory(&self) -> usize {
        size_of_val(&*self.links)
    }

    /// This record will be appended soon.
    #[inline]
    pub fn prefetch(&self, record: u32) {
        crate::sys::prefetch(&self.links[record as usize]);
    }

    /// Appends a record that is not in the queue.
    pub fn push(&mut self, record: u32) {
        let number = record + 1;
        self.links[record as usize] = [self.newest, 0];
        match self.newest {
            0 => self.oldest = number,
            before => self.links[before as usize - 1][NEWER] = number,
        }
        self.newest = number;
        self.len += 1;
    }

    /// Takes a record out of the queue it is in.
    pub fn leave(&mut self, record: u32) {
        let [older, newer] = std::mem::take(&mut self.links[record as usize]);
        match older {
            0 => self.oldest = newer,
            older => self.links[older as usize - 1][NEWER] = newer,
        }
        match newer {
            0 => self.newest = older,
            newer => self.links[newer as usize - 1][OLDER] = older,
        }
        self.len -= 1;
    }

    /// The embryo that came after this one.
    #[must_use]
    pub fn newer(&self, record: u32) -> Option<u32> {
        self.links[record as usize][NEWER].checked_sub(1)
    }

    /// The embryo that waits longest.
    #[must_use]
    pub fn oldest(&self) -> Option<u32> {
        self.oldest.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The plain version: a list that is searched.
        #[test]
        fn as_a_plain_queue(steps in proptest::collection::vec((any::<bool>(), 0_u32..12), 0..200)) {
            let mut queue = EmbryoQueue::new(8, 12);
            let mut plain = VecDeque::new();
            for (push, record) in steps {
                let inside = plain.contains(&record);
                if push && !inside && !queue.is_full() {
                    queue.push(record);
                    plain.push_back(record);
                } else if !push && inside {
                    queue.leave(record);
                    plain.retain(|other| *other != record);
                }
                prop_assert_eq!(queue.oldest(), plain.front().copied());
                prop_assert_eq!(queue.count() as usize, plain.len());
                prop_assert_eq!(queue.is_full(), plain.len() >= 8);
            }
            while let Some(record) = queue.oldest() {
                prop_assert_eq!(plain.pop_front(), Some(record));
                queue.leave(record);
            }
            prop_assert!(plain.is_empty());
        }
    }
}
