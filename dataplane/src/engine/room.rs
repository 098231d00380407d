//! How full the workers' flow tables are: told before flows are refused, for more room takes a restart.

use super::Shared;

/// From here on the operator is told. Flows that prove nothing end at three quarters: see `flow::Capacity`.
const WARN_AT: f64 = 0.7;
/// So far it must fall for there to be nothing to tell: what sways about one level is told of once.
const SWAY: f64 = 0.05;

/// One worker's table of one family.
#[derive(Clone, Copy)]
struct Level {
    worker: usize,
    flows: u64,
    capacity: u32,
}

impl Level {
    fn fullness(self) -> f64 {
        self.flows as f64 / f64::from(self.capacity.max(1))
    }
}

/// About the fullest worker's table of each family; `known`: what was told last.
pub fn warnings(shared: &Shared, known: &[String]) -> Vec<String> {
    let of = |is_v6: bool, capacity| {
        let levels = shared.workers.iter().enumerate().map(move |(worker, handle)| {
            let (all, v6) = (handle.stats.flows_established.get(), handle.stats.flows_established_v6.get());
            Level { worker, flows: if is_v6 { v6 } else { all.saturating_sub(v6) }, capacity }
        });
        warning(if is_v6 { "limits.flows_ipv6" } else { "limits.flows_ipv4" }, levels, known)
    };
    [of(false, shared.limits.flows_ipv4), of(true, shared.limits.flows_ipv6)].into_iter().flatten().collect()
}

/// Whether to tell of what is so full, by the level from which on it is told.
pub fn is_worth_telling(fullness: f64, warn_at: f64, subject: &str, known: &[String]) -> bool {
    let is_known = known.iter().any(|known| known.starts_with(subject));
    fullness >= if is_known { warn_at - SWAY } else { warn_at }
}

/// Those about a table there was none about before.
pub fn newly(known: &[String], warnings: &[String]) -> Vec<String> {
    let subject = |warning: &str| warning.split_once(": ").map(|(subject, _)| format!("{subject}: "));
    let is_known = |warning: &&String| {
        subject(warning).is_some_and(|subject| known.iter().any(|known| known.starts_with(&subject)))
    };
    warnings.iter().filter(|warning| !is_known(warning)).cloned().collect()
}

fn warning(limit: &str, levels: impl Iterator<Item = Level>, known: &[String]) -> Option<String> {
    let fullest = levels.max_by(|a, b| a.fullness().total_cmp(&b.fullness()))?;
    let Level { worker, flows, capacity } = fullest;
    is_worth_telling(fullest.fullness(), WARN_AT, &format!("{limit}: "), known).then(|| {
        format!(
            "{limit}: worker {worker} has {flows} flows of {capacity} (`penstock flows` shows their states): when it is \
             full closed ones rest shorter, and where hardly any is left new flows are refused (flow_table_full); of UDP \
             and mode dsr those beyond three quarters stay half-open. Closed ones need new connections a second and \
             worker times timeouts.tcp_time_wait: a reload shortens that. To raise {limit} takes a restart that takes up \
             no flow, so every connection through this box ends"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_workers_table_is_told_of_once() {
        let about = |flows: [u64; 2], known: &[String]| {
            let levels = flows.into_iter().enumerate();
            warning("limits.flows_ipv4", levels.map(|(worker, flows)| Level { worker, flows, capacity: 1000 }), known)
        };
        assert_eq!(about([100, 699], &[]), None);
        let full = [about([100, 700], &[]).unwrap()];
        for part in ["limits.flows_ipv4: ", "worker 1 has 700 flows of 1000", "timeouts.tcp_time_wait", "no flow"] {
            assert!(full[0].contains(part), "{part}: {}", full[0]);
        }
        let more = [about([900, 700], &full).unwrap()];
        assert_eq!(newly(&[], &more), more);
        assert!(newly(&full, &more).is_empty());
        // It sways.
        assert!(about([100, 651], &full).is_some() && about([100, 649], &full).is_none());
    }
}
