//! Keeps the dataplane on the newest snapshot: sends it, waits for the acknowledgement, looks after it.
//!
//! Only the newest counts: while one snapshot is on its way the next ones replace each other. A dataplane that was
//! away or came back empty gets the whole again.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_configs::desired::{BackendState, Desired, Service};
use tokio::sync::watch;
use tracing::{info, warn};

use super::backoff::Backoff;
use crate::dataplane::{Dataplane, DataplaneError, Fault, Stamped};
use crate::index::ServiceKey;

/// How long one PUT may wait for the workers.
const WAIT: Duration = Duration::from_secs(10);
/// How often a dataplane at rest is asked whether it still has what it acknowledged.
const LOOK: Duration = Duration::from_secs(3);

/// A snapshot on its way.
#[derive(Debug, Clone, Default)]
pub struct Parcel {
    /// Grows with every change of content; the controller's own count. 0: nothing to send yet.
    pub version: u64,
    pub term: Option<u64>,
    pub desired: Arc<Desired>,
    /// Made in the knowledge of [`Progress::recalled`]: no other is sent.
    pub recalls: bool,
    /// What it holds of which Service.
    pub programmed: Arc<HashMap<ServiceKey, Vec<IpAddr>>>,
}

/// What is known of the dataplane.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The newest parcel every worker runs.
    pub acknowledged: u64,
    pub programmed: Arc<HashMap<ServiceKey, Vec<IpAddr>>>,
    pub generation: u64,
    /// What it acknowledged; before that, what a former process left there.
    pub served: Arc<Desired>,
    /// Why the newest is not acknowledged, in words.
    pub trouble: Option<String>,
    /// Faults of a refused snapshot, and what their paths are about: the newest one may be another by now.
    pub refused: Option<(Arc<Desired>, Arc<Vec<Fault>>)>,
    pub fenced: bool,
    /// Nodes that were draining in the snapshot a former process left; unknown until the dataplane was asked.
    pub recalled: Option<Arc<BTreeSet<String>>>,
    /// Nobody has listened at the dataplane's socket since then.
    pub absent_since: Option<Instant>,
    /// Snapshots accepted, since the start.
    pub sent: u64,
}

impl Progress {
    fn note_presence(&mut self, error: &DataplaneError) {
        match error {
            DataplaneError::Absent(_) => drop(self.absent_since.get_or_insert_with(Instant::now)),
            _ => self.absent_since = None,
        }
    }
}

pub(super) async fn drive<D: Dataplane>(
    dataplane: Arc<D>,
    owner: String,
    mut parcels: watch::Receiver<Parcel>,
    progress: watch::Sender<Progress>,
) {
    let mut driver = Driver { dataplane, owner, progress, next: None, term: None, backoff: Backoff::new(0.1, 5.0) };
    while let Err(pause) = driver.recall().await {
        tokio::time::sleep(pause).await;
    }
    loop {
        let parcel = parcels.borrow_and_update().clone();
        if !parcel.recalls {
            if parcels.changed().await.is_err() {
                return;
            }
        } else if parcel.version > driver.progress.borrow().acknowledged
            || parcel.version > 0 && driver.progress.borrow().trouble.is_some()
        {
            let pause = driver.send(&parcel).await;
            if pause.is_zero() {
                continue;
            }
            tokio::select! {
                changed = parcels.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        } else {
            tokio::select! {
                changed = parcels.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => driver.look(parcel.version > 0).await,
            }
        }
    }
}

struct Driver<D> {
    dataplane: Arc<D>,
    owner: String,
    progress: watch::Sender<Progress>,
    /// The generation to send next; unknown until the dataplane was asked: it may hold what a former process sent.
    next: Option<u64>,
    /// The one in which a former process sent.
    term: Option<u64>,
    backoff: Backoff,
}

impl<D: Dataplane> Driver<D> {
    /// What a former process left: its generation, and who was leaving then. Else how long to wait before asking again.
    async fn recall(&mut self) -> Result<(), Duration> {
        let left = match self.dataplane.desired(&self.owner).await {
            Ok(left) => left.unwrap_or_default(),
            Err(error) => return Err(self.failed(&Parcel::default(), &error)),
        };
        self.next = Some(left.generation + 1);
        self.term = left.term;
        self.backoff.reset();
        let draining = left.sets.iter().flat_map(|set| &set.backends).filter(|b| b.state == BackendState::Draining);
        let names: BTreeSet<String> = draining.filter_map(|b| b.node.clone()).collect();
        self.progress.send_modify(|p| {
            p.recalled = Some(Arc::new(names));
            p.served = Arc::new(left);
            p.trouble = None;
            p.absent_since = None;
        });
        Ok(())
    }

    /// Sends once; how long to wait before the same is worth sending again.
    async fn send(&mut self, parcel: &Parcel) -> Duration {
        let generation = match self.next_generation().await {
            Ok(generation) => generation,
            Err(error) => return self.failed(parcel, &error),
        };
        // Who is alone by declaration goes on in the term of the last who was elected, as `penstock apply` does.
        let term = parcel.term.or(self.term);
        let desired = Stamped { generation, term, content: &parcel.desired };
        let answer = self.dataplane.put_desired(&self.owner, &desired, WAIT).await;
        match answer {
            Ok(acknowledged) => {
                self.next = Some(generation + 1);
                self.backoff.reset();
                self.accepted(parcel, generation, acknowledged);
                // Accepted and not run by every worker: sent again, so that the answer can be yes.
                if acknowledged { Duration::ZERO } else { Duration::from_secs(1) }
            }
            Err(error) => self.failed(parcel, &error),
        }
    }

    async fn next_generation(&mut self) -> Result<u64, DataplaneError> {
        if let Some(next) = self.next {
            return Ok(next);
        }
        let held = self.dataplane.generation(&self.owner).await?;
        let next = held.map_or(1, |generation| generation + 1);
        self.next = Some(next);
        Ok(next)
    }

    fn accepted(&self, parcel: &Parcel, generation: u64, acknowledged: bool) {
        self.progress.send_modify(|p| {
            p.sent += 1;
            p.generation = generation;
            p.refused = None;
            p.fenced = false;
            p.absent_since = None;
            if acknowledged {
                p.acknowledged = parcel.version;
                p.programmed = parcel.programmed.clone();
                p.served = parcel.desired.clone();
                p.trouble = None;
            } else {
                p.trouble = Some(format!("not every worker runs generation {generation} yet"));
            }
        });
    }

    fn failed(&mut self, parcel: &Parcel, error: &DataplaneError) -> Duration {
        // Whatever it was: somebody may have written meanwhile, or the process may be a new one.
        self.next = None;
        let pause = match error {
            DataplaneError::Absent(_) | DataplaneError::Unreachable(_) => self.backoff.next(),
            // The same would be refused again; conditions outside of it may change all the same.
            DataplaneError::Refused { .. } => Duration::from_secs(30),
            DataplaneError::Fenced(_) => Duration::from_secs(2),
        };
        if self.progress.borrow().trouble.as_deref() != Some(&error.to_string()) {
            warn!(version = parcel.version, "{error}");
        }
        self.progress.send_modify(|p| {
            p.trouble = Some(error.to_string());
            p.fenced = matches!(error, DataplaneError::Fenced(_));
            p.note_presence(error);
            p.refused = match error {
                DataplaneError::Refused { faults } => Some((parcel.desired.clone(), Arc::new(faults.clone()))),
                _ => None,
            };
        });
        pause
    }

    /// A dataplane that has lost what it acknowledged is sent it again.
    async fn look(&mut self, something_sent: bool) {
        if !something_sent {
            return;
        }
        let expected = self.progress.borrow().generation;
        let answer = self.dataplane.generation(&self.owner).await;
        let trouble = match &answer {
            Ok(Some(generation)) if *generation == expected => return,
            Ok(held) => {
                format!("the dataplane holds generation {held:?} and not {expected}: it is sent the whole again")
            }
            Err(error) => error.to_string(),
        };
        info!("{trouble}");
        self.next = None;
        self.progress.send_modify(|p| {
            p.trouble = Some(trouble);
            match &answer {
                Ok(_) => p.absent_since = None,
                Err(error) => p.note_presence(error),
            }
        });
    }
}

/// Equal on two boxes that serve the same, whoever announces. Walks all of it: not to be asked for each snapshot.
pub(super) fn digest(desired: &Desired) -> u64 {
    let mut sink = Hashed(DefaultHasher::new());
    // Writing to it does not fail.
    let _ = serde_json::to_writer(&mut sink, &(&desired.nodes, &desired.sets));
    for service in &desired.services {
        let _ = serde_json::to_writer(&mut sink, &Service { announce: None, ..service.clone() });
    }
    sink.0.finish()
}

struct Hashed(DefaultHasher);

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_tells_what_is_served_and_not_who_announces() {
        let with = |port: u16, announce: &str| -> Desired {
            serde_json::from_value(serde_json::json!({"generation": 1,
                "service": [{"name": "one", "vip": "203.0.113.1", "port": port, "protocol": "tcp",
                    "backends": [{"address": "10.0.0.1", "port": 80}], "announce": announce}]}))
            .unwrap()
        };
        assert_eq!(digest(&with(80, "l2")), digest(&Desired { generation: 2, ..with(80, "none") }));
        assert_ne!(digest(&with(80, "l2")), digest(&with(81, "l2")));
    }
}
