//! Rates: differences of counters over about a second.

use std::time::{Duration, Instant};

use super::Shared;

const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Rates {
    last: Option<Sample>,
    pub worker_rx: Vec<f64>,
    pub worker_handoff: Vec<f64>,
    pub worker_busy: Vec<f64>,
    pub port_rx: Vec<f64>,
    pub port_tx: Vec<f64>,
    /// By service slot.
    pub new_flows: Vec<f64>,
    policed: f64,
}

pub struct Sample {
    at: Instant,
    worker_rx: Vec<u64>,
    worker_handoff: Vec<u64>,
    worker_turns: Vec<u64>,
    worker_busy: Vec<u64>,
    port_rx: Vec<u64>,
    port_tx: Vec<u64>,
    new_flows: Vec<u64>,
    /// Dropped by the XDP program; `None`: it could not be asked.
    policed: Option<u64>,
}

impl Sample {
    pub fn take(shared: &Shared, at: Instant) -> Self {
        let stats = || shared.workers.iter().map(|worker| &worker.stats);
        let ports = shared.ports.len();
        let of_port = |port: usize, pick: fn(&crate::stats::PortCounters) -> u64| -> u64 {
            stats().filter_map(|stats| stats.ports.get(port)).map(pick).sum()
        };
        let services = shared.published().tables.services.len();
        Self {
            at,
            worker_rx: stats().map(|stats| stats.rx.get()).collect(),
            worker_handoff: stats().map(|stats| stats.handoff_in.get()).collect(),
            worker_turns: stats().map(|stats| stats.turns.get()).collect(),
            worker_busy: stats().map(|stats| stats.busy_turns.get()).collect(),
            port_rx: (0..ports).map(|port| of_port(port, |counters| counters.rx.get())).collect(),
            port_tx: (0..ports).map(|port| of_port(port, |counters| counters.tx.get())).collect(),
            new_flows: (0..services)
                .map(|slot| stats().filter_map(|s| s.services.get(slot)).map(|s| s.new_flows.get()).sum())
                .collect(),
            policed: shared.network().steer.counters().ok().map(|counters| counters.policed),
        }
    }
}

impl Rates {
    /// Whether it is time for another sample.
    pub fn is_due(&self, now: Instant) -> bool {
        self.last.as_ref().is_none_or(|last| now.duration_since(last.at) >= INTERVAL)
    }

    /// Takes up a sample, which was made before these rates were locked: it locks other things.
    pub fn add(&mut self, new: Sample) {
        let now = new.at;
        if let Some(old) = &self.last {
            let seconds = now.duration_since(old.at).as_secs_f64();
            let per_second = |new: &[u64], old: &[u64]| -> Vec<f64> {
                let old = old.iter().chain(std::iter::repeat(&0));
                new.iter().zip(old).map(|(new, old)| new.saturating_sub(*old) as f64 / seconds).collect()
            };
            self.worker_rx = per_second(&new.worker_rx, &old.worker_rx);
            self.worker_handoff = per_second(&new.worker_handoff, &old.worker_handoff);
            self.port_rx = per_second(&new.port_rx, &old.port_rx);
            self.port_tx = per_second(&new.port_tx, &old.port_tx);
            self.new_flows = per_second(&new.new_flows, &old.new_flows);
            let policed = new.policed.zip(old.policed).map_or(0, |(new, old)| new.saturating_sub(old));
            self.policed = policed as f64 / seconds;
            let turns = per_second(&new.worker_turns, &old.worker_turns);
            let busy = per_second(&new.worker_busy, &old.worker_busy);
            self.worker_busy = busy.iter().zip(&turns).map(|(busy, turns)| busy / turns.max(1.0)).collect();
        }
        self.last = Some(new);
    }

    /// Said while it lasts: what is dropped so shows nowhere else but in the counters.
    pub fn policing_notice(&self) -> Option<String> {
        (self.policed > 0.0).then(|| {
            format!(
                "{:.0} packets a second beyond box.new_per_vip are dropped: a flood, or it is too small; fragments, and \
                 datagrams that are never answered, count as new flows do",
                self.policed.ceil()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policing_is_noticed_while_it_drops() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        let mut after = |seconds: u64, policed: Option<u64>| {
            rates.add(Sample {
                at: now + Duration::from_secs(seconds),
                worker_rx: Vec::new(),
                worker_handoff: Vec::new(),
                worker_turns: Vec::new(),
                worker_busy: Vec::new(),
                port_rx: Vec::new(),
                port_tx: Vec::new(),
                new_flows: Vec::new(),
                policed,
            });
            rates.policing_notice()
        };
        assert_eq!(after(0, Some(5_000)), None, "of an earlier process");
        assert!(after(2, Some(5_400)).is_some_and(|notice| notice.starts_with("200 packets a second")));
        assert_eq!(after(3, Some(5_400)), None, "it is over");
        assert_eq!([after(4, None), after(5, Some(6_000))], [None, None], "nobody knows");
        assert!(after(6, Some(6_001)).is_some());
    }
}
