//! Brings the health checks' verdict to the dataplane.
//!
//! The overlay is whole each time, so one place sends it: on each change, and again now and then, for a dataplane that
//! has started meanwhile. `source` tells the control processes of several clusters apart, and them from people: what
//! somebody else's checker says, without a source, is left alone.
//!
//! What a former process found is still so until somebody has looked: a process that starts repeats it for each place
//! nobody has judged yet. (With the API server away nobody will for a while.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::{BackendHealth, Health};
use penstock_configs::validate::FILE_OWNER;
use tokio::sync::watch;
use tracing::warn;

use crate::dataplane::{Dataplane, DataplaneError};
use crate::probe::{HealthView, Place};

/// A dataplane that came back knows nothing of health: every backend is up there until it is told.
const AGAIN: Duration = Duration::from_secs(5);
/// So what is out is repeated this often: as long at most it gets new flows there.
const WHILE_OUT: Duration = Duration::from_secs(1);
/// One that is started anew is away for a moment.
const WHILE_ABSENT: Duration = Duration::from_millis(200);
/// The source of a control process that has no cluster: it checks that owner's services alone.
pub const NO_CLUSTER: &str = FILE_OWNER;

pub async fn push<D: Dataplane>(
    dataplane: Arc<D>,
    source: String,
    mut views: watch::Receiver<Arc<HealthView>>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut teller = Teller { dataplane, source, inherited: None, told: false };
    let mut trouble: Option<DataplaneError> = None;
    while !*shutdown.borrow() {
        let view = views.borrow_and_update().clone();
        let outcome = teller.tell(&view).await;
        let pause = pause_after(&outcome);
        let now = outcome.err();
        if now != trouble {
            if let Some(error) = &now {
                warn!("health is not told: {error}");
            }
            trouble = now;
        }
        tokio::select! {
            // Where sending fails, every change would only fail again.
            changed = views.changed(), if trouble.is_none() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
            _ = shutdown.changed() => {}
        }
    }
}

fn pause_after(outcome: &Result<bool, DataplaneError>) -> Duration {
    match outcome {
        Ok(true) => WHILE_OUT,
        Ok(false) => AGAIN,
        Err(DataplaneError::Absent(_)) => WHILE_ABSENT,
        Err(_) => Duration::from_secs(1),
    }
}

struct Teller<D> {
    dataplane: Arc<D>,
    source: String,
    /// What a former process said; none: not asked for yet.
    inherited: Option<BTreeMap<Place, BackendHealth>>,
    /// What was said before is replaced: by a former process, or before there was a cluster.
    told: bool,
}

impl<D: Dataplane> Teller<D> {
    /// Whether anything is out.
    async fn tell(&mut self, view: &HealthView) -> Result<bool, DataplaneError> {
        if self.told && !view.checking {
            // Withdrawn is withdrawn: a dataplane that is started anew has nothing of ours.
            return Ok(false);
        }
        if view.whole {
            self.inherited = Some(BTreeMap::new());
        } else if !view.checking {
            // The checker has not begun.
            return Ok(false);
        }
        let inherited = match &mut self.inherited {
            Some(inherited) => inherited,
            none => none.insert(inherit(&*self.dataplane, &self.source).await?),
        };
        inherited.retain(|place, _| view.judged.binary_search(place).is_err());
        let mut told = inherited.clone();
        for backend in &view.backends {
            told.entry((backend.address, backend.port)).or_insert_with(|| backend.clone());
        }
        let out = !told.is_empty();
        self.dataplane.put_health(&self.source, &Health { backends: told.into_values().collect() }).await?;
        if !self.told && self.source != NO_CLUSTER {
            // A process without a cluster that lives beside this one says it again in a moment.
            self.dataplane.put_health(NO_CLUSTER, &Health::default()).await?;
        }
        self.told = true;
        Ok(out)
    }
}

async fn inherit<D: Dataplane>(dataplane: &D, source: &str) -> Result<BTreeMap<Place, BackendHealth>, DataplaneError> {
    // Also from before there was a cluster; said under its own source, it goes before.
    let mut left = dataplane.health(NO_CLUSTER).await?.backends;
    left.extend(dataplane.health(source).await?.backends);
    Ok(left.into_iter().map(|backend| ((backend.address, backend.port), backend)).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use penstock_configs::desired::{BackendState, Desired};

    use super::*;
    use crate::dataplane::Stamped;

    /// A dataplane's memory of what each source said.
    #[derive(Default)]
    struct Memory(Mutex<HashMap<String, Vec<BackendHealth>>>);

    impl Dataplane for Memory {
        async fn put_desired(&self, _: &str, _: &Stamped<'_>, _: Duration) -> Result<bool, DataplaneError> {
            Ok(true)
        }

        async fn generation(&self, _: &str) -> Result<Option<u64>, DataplaneError> {
            Ok(None)
        }

        async fn desired(&self, _: &str) -> Result<Option<Desired>, DataplaneError> {
            Ok(None)
        }

        async fn health(&self, source: &str) -> Result<Health, DataplaneError> {
            Ok(Health { backends: self.0.lock().unwrap().get(source).cloned().unwrap_or_default() })
        }

        async fn put_health(&self, source: &str, health: &Health) -> Result<(), DataplaneError> {
            self.0.lock().unwrap().insert(source.to_owned(), health.backends.clone());
            Ok(())
        }
    }

    fn down(last: u8) -> BackendHealth {
        let address = [10, 0, 0, last].into();
        BackendHealth { address, port: None, state: BackendState::Down, reason: String::new() }
    }

    fn judged(last: &[u8]) -> Vec<Place> {
        last.iter().map(|last| ([10, 0, 0, *last].into(), None)).collect()
    }

    async fn told(teller: &mut Teller<Memory>, view: HealthView) -> Vec<BackendHealth> {
        teller.tell(&view).await.unwrap();
        teller.dataplane.health(&teller.source).await.unwrap().backends
    }

    fn teller(source: &str, left: &[(&str, Vec<BackendHealth>)]) -> Teller<Memory> {
        let memory =
            Memory(Mutex::new(left.iter().map(|(source, said)| ((*source).to_owned(), said.clone())).collect()));
        Teller { dataplane: Arc::new(memory), source: source.to_owned(), inherited: None, told: false }
    }

    #[tokio::test]
    async fn what_a_former_process_found_holds_until_it_is_judged_anew() {
        let mut teller = teller("k", &[("k", vec![down(1), down(2), down(3)])]);
        let checking = || HealthView { checking: true, ..HealthView::default() };
        // Before the checker has begun, and before its first result.
        assert_eq!(told(&mut teller, HealthView::default()).await.len(), 3);
        assert_eq!(told(&mut teller, checking()).await, [down(1), down(2), down(3)]);
        // One is well, one is not, and of the third nothing is known.
        let view = HealthView { judged: judged(&[1, 2]), backends: vec![down(2)], ..checking() };
        assert_eq!(told(&mut teller, view.clone()).await, [down(2), down(3)]);
        // Nobody speaks for the third any more.
        assert_eq!(told(&mut teller, HealthView { whole: true, ..view.clone() }).await, [down(2)]);
        // A new target that is not settled yet brings nothing back.
        assert_eq!(told(&mut teller, view).await, [down(2)]);
    }

    #[tokio::test]
    async fn what_is_out_is_repeated_sooner_for_a_dataplane_that_starts_anew_has_forgotten_it() {
        let mut teller = teller("k", &[]);
        let whole = || HealthView { checking: true, whole: true, ..HealthView::default() };
        assert_eq!(pause_after(&teller.tell(&whole()).await), AGAIN);
        let out = HealthView { backends: vec![down(1)], ..whole() };
        assert_eq!(pause_after(&teller.tell(&out).await), WHILE_OUT);
        assert_eq!(pause_after(&Err(DataplaneError::Absent(String::new()))), WHILE_ABSENT);
    }

    #[tokio::test]
    async fn checks_that_are_off_leave_nothing_in_force() {
        let mut teller = teller("file", &[("file", vec![down(1)])]);
        assert!(told(&mut teller, HealthView { whole: true, ..HealthView::default() }).await.is_empty());
    }

    #[tokio::test]
    async fn what_others_say_is_left_alone() {
        let off = || HealthView { whole: true, ..HealthView::default() };
        // Under the same source, where nothing is checked: a person at the API, once our own is withdrawn.
        let mut teller = teller("k", &[("k", vec![down(1)]), ("", vec![down(3)])]);
        assert!(told(&mut teller, off()).await.is_empty());
        teller.dataplane.put_health("k", &Health { backends: vec![down(2)] }).await.unwrap();
        assert_eq!(told(&mut teller, off()).await, [down(2)]);
        // And without a source, whatever we do.
        told(&mut teller, HealthView { checking: true, ..off() }).await;
        assert_eq!(teller.dataplane.health("").await.unwrap().backends, [down(3)]);
    }

    #[tokio::test]
    async fn a_cluster_takes_over_what_was_said_without_one() {
        let mut teller = teller("k", &[("file", vec![down(1), down(2)]), ("", vec![down(3)])]);
        let view = HealthView { checking: true, judged: judged(&[1]), ..HealthView::default() };
        assert_eq!(told(&mut teller, view).await, [down(2)]);
        assert!(teller.dataplane.health("file").await.unwrap().backends.is_empty());
    }
}
