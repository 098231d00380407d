//! How full the workers' flow tables are: told before flows are refused, for more room takes a restart.

use super::Shared;

/// From here on the operator is told. Flows that proved nothing end at three quarters: see `FlowTable::transition`.
const WARN_AT: f64 = 0.7;

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

/// About the fullest worker's table of each family.
pub fn warnings(shared: &Shared) -> Vec<String> {
    let of = |is_v6: bool, capacity| {
        let levels = shared.workers.iter().enumerate().map(move |(worker, handle)| {
            let (all, v6) = (handle.stats.flows_established.get(), handle.stats.flows_established_v6.get());
            Level { worker, flows: if is_v6 { v6 } else { all.saturating_sub(v6) }, capacity }
        });
        warning(if is_v6 { "limits.flows_ipv6" } else { "limits.flows_ipv4" }, levels)
    };
    [of(false, shared.limits.flows_ipv4), of(true, shared.limits.flows_ipv6)].into_iter().flatten().collect()
}

/// Those about a table there was none about before.
pub fn newly(known: &[String], warnings: &[String]) -> Vec<String> {
    let subject = |warning: &str| warning.split_once(": ").map(|(subject, _)| format!("{subject}: "));
    let is_known = |warning: &&String| {
        subject(warning).is_some_and(|subject| known.iter().any(|known| known.starts_with(&subject)))
    };
    warnings.iter().filter(|warning| !is_known(warning)).cloned().collect()
}

fn warning(limit: &str, levels: impl Iterator<Item = Level>) -> Option<String> {
    let fullest = levels.max_by(|a, b| a.fullness().total_cmp(&b.fullness()))?;
    let Level { worker, flows, capacity } = fullest;
    (fullest.fullness() >= WARN_AT).then(|| {
        format!(
            "{limit}: worker {worker} has {flows} flows of {capacity}, closed ones among them: when it is full closed \
             ones rest shorter, and where none is left new flows are refused (flow_table_full); raise {limit} (takes a \
             restart), to more than new connections a second and worker times timeouts.tcp_time_wait, or shorten that"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_workers_table_is_told_of_once() {
        let about = |flows: [u64; 2]| {
            let levels = flows.into_iter().enumerate();
            warning("limits.flows_ipv4", levels.map(|(worker, flows)| Level { worker, flows, capacity: 1000 }))
        };
        assert_eq!(about([100, 699]), None);
        let full = about([100, 700]).unwrap();
        for part in ["limits.flows_ipv4: ", "worker 1 has 700 flows of 1000", "timeouts.tcp_time_wait"] {
            assert!(full.contains(part), "{part}: {full}");
        }
        let more = [about([900, 700]).unwrap()];
        assert_eq!(newly(&[], &more), more);
        assert!(newly(&[full], &more).is_empty());
    }
}
