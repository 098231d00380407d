//! The queue of embryonic flows, oldest first. Its length bounds their number: when it is full the
//! oldest embryo makes room. Flows that grew up leave their place in the queue empty-handed.

/// A ring of record numbers.
pub struct EmbryoQueue {
    ring: Box<[u32]>,
    head: usize,
    len: usize,
}

impl EmbryoQueue {
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { ring: vec![0; capacity.max(1)].into_boxed_slice(), head: 0, len: 0 }
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.ring.len()
    }

    /// Appends a record; the queue must not be full.
    pub fn push(&mut self, record: u32) {
        debug_assert!(!self.is_full());
        let at = (self.head + self.len) % self.ring.len();
        self.ring[at] = record;
        self.len = (self.len + 1).min(self.ring.len());
    }

    /// The oldest entry: an embryo, or a record that is one no longer.
    pub fn pop(&mut self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let record = self.ring[self.head];
        self.head = (self.head + 1) % self.ring.len();
        self.len -= 1;
        Some(record)
    }
}
