//! Snapshots to the workers and back. A worker swaps between two bursts and returns the old one;
//! no hot core ever frees a snapshot.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::handoff::Doorbell;
use crate::tables::View;

/// One worker's mailbox.
pub struct Mailbox {
    /// At most one view waits; a newer one replaces it.
    inbox: ArrayQueue<Arc<View>>,
    returned: ArrayQueue<Arc<View>>,
    bell: Arc<Doorbell>,
}

impl Mailbox {
    #[must_use]
    pub fn new(bell: Arc<Doorbell>) -> Self {
        Self { inbox: ArrayQueue::new(1), returned: ArrayQueue::new(4), bell }
    }

    /// Housekeeping: sends a view, frees what came back.
    pub fn publish(&self, view: Arc<View>) {
        self.inbox.force_push(view);
        self.bell.ring();
        self.reap();
    }

    /// Housekeeping: frees the views the worker is done with.
    pub fn reap(&self) {
        while self.returned.pop().is_some() {}
    }

    /// The worker: the view to run from now on, if there is a new one and room to return the old.
    #[inline]
    #[must_use]
    pub fn take(&self) -> Option<Arc<View>> {
        if self.inbox.is_empty() || self.returned.is_full() { None } else { self.inbox.pop() }
    }

    /// The worker: what it ran before.
    pub fn give_back(&self, old: Arc<View>) {
        // `take` saw room, and only this worker fills it. Should that ever be wrong, leaking one
        // snapshot is better than freeing it here.
        if let Err(old) = self.returned.push(old) {
            std::mem::forget(old);
        }
    }

    #[must_use]
    pub fn waiting(&self) -> bool {
        !self.inbox.is_empty()
    }
}
