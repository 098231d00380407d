//! When to sleep. A busy worker always spins; an adaptive one sleeps in `poll` after a while
//! without work, so that a small machine has its cores for others.

use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::Worker;
use crate::clock::Now;
use crate::io::Port;

/// Longest sleep: upkeep goes on when no packet comes.
const NAP_MS: i64 = 50;
/// Sockets a worker can sleep on at once, beside its doorbell and TAP.
const MAX_FDS: usize = 34;

#[derive(Debug, Clone, Copy)]
pub struct IdlePolicy {
    /// `None`: never sleep.
    spin_ns: Option<u64>,
    idle_since: Option<Now>,
}

impl IdlePolicy {
    /// Spins always: lowest latency, a whole core.
    #[must_use]
    pub fn busy() -> Self {
        Self { spin_ns: None, idle_since: None }
    }

    /// Spins this long after the last work, then sleeps.
    #[must_use]
    pub fn adaptive(spin_ns: u64) -> Self {
        Self { spin_ns: Some(spin_ns), idle_since: None }
    }

    /// Whether it is time to sleep, after a turn that found work or none.
    #[inline]
    pub fn should_sleep(&mut self, worked: bool, now: Now) -> bool {
        if worked {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        self.spin_ns.is_some_and(|spin| now.ns.saturating_sub(since.ns) >= spin)
    }

    #[inline]
    #[must_use]
    pub fn has_been_idle(&self, ns: u64, now: Now) -> bool {
        self.idle_since.is_some_and(|since| now.ns.saturating_sub(since.ns) >= ns)
    }
}

impl<P: Port, K: Port> Worker<P, K> {
    /// Sleeps until a packet, a hand-off, a new view, or the end of the nap.
    pub(super) fn sleep(&mut self, stop: &AtomicBool) {
        let bell = self.exchange.bell(self.id).clone();
        bell.about_to_sleep();
        let something = self.mailbox.waiting() || self.exchange.waiting_for(self.id) || stop.load(Ordering::Relaxed);
        let owed = self.egress.len() > 0 || self.sockets.iter().any(|socket| socket.port.tx_pending());
        if !something && !owed {
            let mut fds = ArrayVec::<PollFd<'_>, MAX_FDS>::new();
            fds.push(PollFd::from_borrowed_fd(bell.fd(), PollFlags::IN));
            let sockets = self.sockets.iter().filter_map(|socket| socket.port.poll_fd());
            let kernel = self.kernel.as_ref().and_then(|kernel| kernel.port.poll_fd());
            for fd in sockets.chain(kernel) {
                if fds.try_push(PollFd::from_borrowed_fd(fd, PollFlags::IN)).is_err() {
                    break;
                }
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: NAP_MS * 1_000_000 };
            // An interrupted or failed poll means a short nap: the loop looks at every ring anyway.
            let _ = rustix::event::poll(&mut fds, Some(&timeout));
        }
        bell.awake();
    }
}
