//! Backends that come and go: a slow start for those that come, and doubt in the checks when too
//! many go.

use std::collections::HashMap;
use std::net::IpAddr;

use penstock_configs::desired::BackendState;

use super::set::WHOLE;
use super::{Backend, Service};
use crate::clock::Now;

/// Takes backends that only their checks call down for active, if too few are left otherwise. True if so.
///
/// The share is of those the owner wants used; one that drains says itself, by its owner or its check,
/// that it wants no more, and is in neither number. Whatever the threshold, the last one left is never
/// taken away: what goes to a backend that is down after all is lost either way.
pub fn panic(backends: &mut [Backend], wanted: &[BackendState], threshold: u8) -> bool {
    let is_meant = |(backend, wanted): (&Backend, &BackendState)| {
        *wanted == BackendState::Active && backend.weight > 0 && backend.checked != BackendState::Draining
    };
    let meant: Vec<bool> = backends.iter().zip(wanted).map(is_meant).collect();
    let all = meant.iter().filter(|meant| **meant).count();
    let left = backends.iter().filter(|backend| backend.takes_new()).count();
    if left == all || left > 0 && left * 100 >= all * usize::from(threshold) {
        return false;
    }
    for (backend, _) in backends.iter_mut().zip(meant).filter(|(_, meant)| *meant) {
        backend.state = BackendState::Active;
    }
    true
}

type ServiceAt = (IpAddr, u16, u8);

/// Backends that have come and are not at their whole weight yet.
#[derive(Debug, Default)]
pub struct Motion {
    now: Now,
    /// When each came. Those no service asked for since the last compilation began are forgotten.
    before: HashMap<(ServiceAt, IpAddr, u16), Now>,
    since: HashMap<(ServiceAt, IpAddr, u16), Now>,
    next_step: Option<Now>,
}

impl Motion {
    /// A compilation begins.
    pub fn begin(&mut self, now: Now) {
        self.now = now;
        self.before = std::mem::take(&mut self.since);
        self.next_step = None;
    }

    /// When the next of them is due to take more.
    pub fn next_step(&self) -> Option<Now> {
        self.next_step
    }

    /// Sets how much of its weight each backend takes: a tenth when it comes, all after `seconds`, a tenth
    /// more at a time. Where no backend was there before, or none is beside those that came, there is
    /// nobody to spare them: they take all.
    pub fn ramp(&mut self, service: ServiceAt, seconds: u32, before: Option<&Service>, backends: &mut [Backend]) {
        let Some(before) = before else { return };
        let period = u64::from(seconds.max(1)) * 1_000_000_000;
        let was_used = |backend: &Backend| {
            let known =
                before.set.backends.iter().find(|old| (old.address, old.port) == (backend.address, backend.port));
            known.is_some_and(Backend::takes_new)
        };
        let mut came = Vec::new();
        for (at, backend) in backends.iter().enumerate().filter(|(_, backend)| backend.takes_new()) {
            let key = (service, backend.address, backend.port);
            let since = match self.before.get(&key) {
                Some(since) => *since,
                // One that is used against its check has not come.
                _ if was_used(backend) || backend.checked != BackendState::Active => continue,
                _ => self.now,
            };
            if self.now.ns.saturating_sub(since.ns) < period {
                came.push((at, key, since));
            }
        }
        if came.len() == backends.iter().filter(|backend| backend.takes_new()).count() {
            return;
        }
        for (at, key, since) in came {
            let step = period / u64::from(WHOLE - 1);
            let taken = self.now.ns.saturating_sub(since.ns) / step;
            backends[at].ramp = (taken + 1) as u8;
            let next = Now { ns: since.ns + (taken + 1) * step };
            if backends[at].ramp < WHOLE {
                self.next_step = Some(self.next_step.map_or(next, |due| due.min(next)));
                self.since.insert(key, since);
            }
        }
    }
}
