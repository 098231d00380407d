//! Backends that come and go, as housekeeping sees it: the steps of slow starts, and a word in the log
//! when a service begins or ceases to go against its checks.

use super::Shared;
use crate::clock::Now;
use crate::tables::{Service, Tables};

impl Shared {
    /// Compiles anew when a backend that starts slowly is due to take more: at most ten times each.
    pub(super) fn step_slow_starts(&self, now: Now) {
        let mut published = self.published();
        if published.compiler.next_step().is_none_or(|due| due > now) {
            return;
        }
        let wanted = published.wanted.clone();
        let result = self.compile(&mut published, wanted);
        drop(published);
        if let Err(faults) = result {
            for fault in faults {
                self.notice(format!("a slow start stays where it is: {fault}"));
            }
        }
    }
}

/// Logs which services go against their checks from now on, and which no longer do.
pub(super) fn report(old: &Tables, new: &Tables) {
    for service in new.services.iter().flatten() {
        let before = old.service(service.slot).filter(|old| old.name == service.name && old.owner == service.owner);
        match (before.is_some_and(|old| old.panic), service.panic) {
            (false, true) => tracing::warn!("{}", notice(service)),
            (true, false) => tracing::info!("service {}: its checks are believed again", service.name),
            _ => {}
        }
    }
}

/// For the log and the operator.
pub(super) fn notice(service: &Service) -> String {
    let down = service.set.backends.iter().filter(|backend| backend.checked != backend.state).count();
    format!(
        "service {}: {down} of {} backends fail their checks, too many to be believed: all are used (panic_threshold)",
        service.name,
        service.set.backends.len()
    )
}
