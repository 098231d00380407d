//! The desired state by owner, as plain data: which snapshot of whom is served, whether a new one
//! may take its place, and how far the workers have followed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_configs::api::OwnerSummary;
use penstock_configs::desired::Desired;
use penstock_configs::status::OwnerStatus;

use super::engine::Snapshots;
use super::refusal::Refusal;

/// Publications an owner may be ahead of the workers before the middle ones are no longer told apart.
const PENDING: usize = 64;
/// Newcomers whose refusal is remembered: names come from outside.
const REFUSED_NEWCOMERS: usize = 32;
/// Deleted owners whose last term is remembered, likewise.
const DELETED: usize = 32;

/// Many times the longest lease that anybody would configure.
const ENDED: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub struct Owners {
    served: BTreeMap<String, Owner>,
    /// Why an owner with nothing served was refused.
    newcomers: BTreeMap<String, String>,
    /// The last terms of deleted owners, the latest last: a leader of before must not bring its owner back. For
    /// [`ENDED`] and in memory only. A stale leader hears of its end within a lease's duration, seconds; if a restart
    /// lets it in all the same, the rightful one looks every few seconds and takes its owner back by its higher term.
    /// For ever would be wrong: a cluster built anew under the old name begins with term 1.
    deleted: VecDeque<(String, u64, Instant)>,
}

#[derive(Debug)]
struct Owner {
    desired: Arc<Desired>,
    /// The publication that first carried `desired`.
    epoch: u64,
    acknowledged: u64,
    /// Generations published and not yet run by every worker, as (epoch, generation).
    pending: VecDeque<(u64, u64)>,
    refused: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// What is served already, published at this epoch.
    Unchanged {
        epoch: u64,
    },
    Replaces,
}

impl Owners {
    /// Whether `offered` may follow what `owner` has. A higher term starts its generations anew;
    /// within a term they never go backwards, and one generation has one content.
    ///
    /// # Errors
    /// The history that stands against it.
    pub fn judge(&self, owner: &str, offered: &Desired) -> Result<Judgement, Refusal> {
        let Some(current) = self.served.get(owner) else { return self.judge_newcomer(owner, offered) };
        let held = &current.desired;
        match (offered.term, held.term) {
            (Some(offered), Some(held)) if offered < held => {
                return Err(Refusal::StaleTerm { owner: owner.into(), offered, held });
            }
            (None, Some(held)) => return Err(Refusal::MissingTerm { owner: owner.into(), held }),
            (offered, held) if offered > held => return Ok(Judgement::Replaces),
            _ => {}
        }
        if offered.generation < held.generation {
            return Err(Refusal::StaleGeneration {
                owner: owner.into(),
                offered: offered.generation,
                held: held.generation,
            });
        }
        if offered.generation > held.generation {
            return Ok(Judgement::Replaces);
        }
        if *offered == **held {
            Ok(Judgement::Unchanged { epoch: current.epoch })
        } else {
            Err(Refusal::Conflict { owner: owner.into(), generation: held.generation })
        }
    }

    fn judge_newcomer(&self, owner: &str, offered: &Desired) -> Result<Judgement, Refusal> {
        let held = self.deleted.iter().find(|(name, ..)| name == owner).map(|(_, term, _)| *term);
        match (offered.term, held) {
            (Some(offered), Some(held)) if offered < held => {
                Err(Refusal::StaleTerm { owner: owner.into(), offered, held })
            }
            // Without a term it is the operator who begins anew.
            _ => Ok(Judgement::Replaces),
        }
    }

    #[must_use]
    pub fn get(&self, owner: &str) -> Option<&Arc<Desired>> {
        self.served.get(owner).map(|owner| &owner.desired)
    }

    #[must_use]
    pub fn epoch(&self, owner: &str) -> Option<u64> {
        self.served.get(owner).map(|owner| owner.epoch)
    }

    #[must_use]
    pub fn snapshots(&self) -> Snapshots {
        self.served.iter().map(|(name, owner)| (name.clone(), Arc::clone(&owner.desired))).collect()
    }

    /// `desired` was published at `epoch`.
    pub fn accept(&mut self, name: &str, desired: Arc<Desired>, epoch: u64) {
        self.newcomers.remove(name);
        let generation = desired.generation;
        let owner = self.served.entry(name.to_owned()).or_insert_with(|| Owner {
            desired: Arc::clone(&desired),
            epoch,
            acknowledged: 0,
            pending: VecDeque::new(),
            refused: None,
        });
        owner.desired = desired;
        owner.epoch = epoch;
        owner.refused = None;
        if owner.pending.len() >= PENDING {
            owner.pending.pop_back();
        }
        owner.pending.push_back((epoch, generation));
    }

    /// The owner repeated what is served: an earlier refusal is history.
    pub fn confirm(&mut self, name: &str) {
        if let Some(owner) = self.served.get_mut(name) {
            owner.refused = None;
        }
    }

    /// Remembers why the last snapshot was refused; what is served stays. True: that is news.
    pub fn refuse(&mut self, name: &str, why: String) -> bool {
        let before = if let Some(owner) = self.served.get_mut(name) {
            owner.refused.replace(why.clone())
        } else if self.newcomers.len() < REFUSED_NEWCOMERS || self.newcomers.contains_key(name) {
            self.newcomers.insert(name.to_owned(), why.clone())
        } else {
            None
        };
        before.is_none_or(|before| before != why)
    }

    /// `term`: its last one, if only on disk because it was left out.
    pub fn remove(&mut self, name: &str, term: Option<u64>, now: Instant) {
        self.served.remove(name);
        if let Some(term) = term {
            self.deleted.retain(|(known, ..)| known != name);
            if self.deleted.len() >= DELETED {
                self.deleted.pop_front();
            }
            self.deleted.push_back((name.to_owned(), term, now));
        }
        self.newcomers.remove(name);
    }

    /// Terms that ended long ago fence nobody off any more.
    pub fn forget_ended(&mut self, now: Instant) {
        self.deleted.retain(|(_, _, at)| now.duration_since(*at) < ENDED);
    }

    /// Every worker runs `epoch`.
    pub fn settle(&mut self, epoch: u64) {
        for owner in self.served.values_mut() {
            while let Some(&(published, generation)) = owner.pending.front() {
                if published > epoch {
                    break;
                }
                owner.acknowledged = generation;
                owner.pending.pop_front();
            }
        }
    }

    #[must_use]
    pub fn status(&self) -> Vec<OwnerStatus> {
        let served = self.served.iter().map(|(name, owner)| OwnerStatus {
            owner: name.clone(),
            generation: owner.desired.generation,
            acknowledged: owner.acknowledged,
            term: owner.desired.term,
            services: owner.desired.services.len() as u64,
            refused: owner.refused.clone(),
        });
        let newcomers = self.newcomers.iter().map(|(name, why)| OwnerStatus {
            owner: name.clone(),
            refused: Some(why.clone()),
            ..OwnerStatus::default()
        });
        served.chain(newcomers).collect()
    }

    #[must_use]
    pub fn summaries(&self) -> Vec<OwnerSummary> {
        let summary = |(name, owner): (&String, &Owner)| OwnerSummary {
            owner: name.clone(),
            generation: owner.desired.generation,
            term: owner.desired.term,
            nodes: owner.desired.nodes.len() as u64,
            sets: owner.desired.sets.len() as u64,
            services: owner.desired.services.len() as u64,
        };
        self.served.iter().map(summary).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(generation: u64, term: Option<u64>) -> Desired {
        Desired { generation, term, ..Desired::default() }
    }

    fn with_node(mut desired: Desired, name: &str) -> Desired {
        desired.nodes.push(penstock_configs::desired::Node { name: name.into(), addresses: Vec::new() });
        desired
    }

    fn owners(held: Desired) -> Owners {
        let mut owners = Owners::default();
        owners.accept("a", Arc::new(held), 5);
        owners
    }

    #[test]
    fn a_generation_has_one_content_and_never_goes_back() {
        let owners = owners(snapshot(7, None));
        let judge = |desired: &Desired| owners.judge("a", desired);
        assert_eq!(judge(&snapshot(8, None)), Ok(Judgement::Replaces));
        assert_eq!(judge(&snapshot(7, None)), Ok(Judgement::Unchanged { epoch: 5 }));
        assert_eq!(
            judge(&with_node(snapshot(7, None), "n")),
            Err(Refusal::Conflict { owner: "a".into(), generation: 7 })
        );
        assert_eq!(judge(&snapshot(6, None)), Err(Refusal::StaleGeneration { owner: "a".into(), offered: 6, held: 7 }));
        assert_eq!(owners.judge("b", &snapshot(0, None)), Ok(Judgement::Replaces));
    }

    #[test]
    fn a_term_fences_off_the_leaders_before_it() {
        let owners = owners(snapshot(7, Some(3)));
        let judge = |desired: &Desired| owners.judge("a", desired);
        assert_eq!(judge(&snapshot(900, Some(2))), Err(Refusal::StaleTerm { owner: "a".into(), offered: 2, held: 3 }));
        assert_eq!(judge(&snapshot(900, None)), Err(Refusal::MissingTerm { owner: "a".into(), held: 3 }));
        assert_eq!(judge(&snapshot(1, Some(4))), Ok(Judgement::Replaces), "a new term counts anew");
        assert_eq!(judge(&snapshot(7, Some(3))), Ok(Judgement::Unchanged { epoch: 5 }));
        assert!(judge(&snapshot(6, Some(3))).is_err());
        let message = judge(&snapshot(900, Some(2))).map_err(|refusal| refusal.to_string());
        assert!(message.is_err_and(|text| text.contains("term 2") && text.contains("term 3")));
    }

    #[test]
    fn a_deleted_owner_is_not_brought_back_by_a_leader_of_before() {
        let mut owners = owners(snapshot(7, Some(3)));
        let now = Instant::now();
        owners.remove("a", Some(3), now);
        owners.forget_ended(now + ENDED / 2);
        let stale = Err(Refusal::StaleTerm { owner: "a".into(), offered: 2, held: 3 });
        assert_eq!(owners.judge("a", &snapshot(900, Some(2))), stale);
        assert_eq!(owners.judge("a", &snapshot(1, Some(3))), Ok(Judgement::Replaces), "the leader of then leads still");
        assert_eq!(owners.judge("a", &snapshot(1, Some(4))), Ok(Judgement::Replaces));
        assert_eq!(owners.judge("a", &snapshot(1, None)), Ok(Judgement::Replaces), "the operator");
        owners.forget_ended(now + ENDED);
        assert_eq!(owners.judge("a", &snapshot(1, Some(1))), Ok(Judgement::Replaces), "a cluster built anew");
        for stranger in 0..1_000 {
            let name = format!("s{stranger}");
            owners.accept(&name, Arc::new(snapshot(1, Some(1))), 6);
            owners.remove(&name, Some(1), now);
        }
        assert!(owners.deleted.len() <= DELETED);
    }

    #[test]
    fn an_owner_without_terms_may_begin_to_elect() {
        assert_eq!(owners(snapshot(7, None)).judge("a", &snapshot(1, Some(1))), Ok(Judgement::Replaces));
    }

    #[test]
    fn acknowledgement_follows_the_workers_and_not_the_sender() {
        let mut owners = Owners::default();
        owners.accept("a", Arc::new(snapshot(1, None)), 10);
        owners.accept("a", Arc::new(snapshot(2, None)), 11);
        owners.settle(9);
        assert_eq!((owners.status()[0].generation, owners.status()[0].acknowledged), (2, 0));
        owners.settle(10);
        assert_eq!(owners.status()[0].acknowledged, 1);
        owners.settle(50);
        assert_eq!(owners.status()[0].acknowledged, 2);
    }

    #[test]
    fn workers_that_stand_still_cost_no_memory_and_the_last_generation_is_known() {
        let mut owners = Owners::default();
        for generation in 0..10_000 {
            owners.accept("a", Arc::new(snapshot(generation, None)), generation);
        }
        assert!(owners.served["a"].pending.len() <= PENDING);
        owners.settle(10_000);
        assert_eq!(owners.status()[0].acknowledged, 9_999);
    }

    #[test]
    fn a_refusal_is_remembered_and_changes_nothing_else() {
        let mut owners = owners(snapshot(7, None));
        assert!(owners.refuse("new", "bad".into()));
        for name in ["a", "new"] {
            let news = ["bad", "bad", "worse"].map(|why| owners.refuse(name, why.into()));
            assert_eq!(news, [name == "a", false, true]);
        }
        assert_eq!(owners.get("a").map(|desired| desired.generation), Some(7));
        assert_eq!(owners.get("new"), None);
        let status = owners.status();
        assert_eq!(status[0].refused.as_deref(), Some("worse"));
        assert_eq!((status[1].owner.as_str(), status[1].refused.as_deref()), ("new", Some("worse")));
        owners.confirm("a");
        assert_eq!(owners.status()[0].refused, None);
        for stranger in 0..1_000 {
            owners.refuse(&format!("s{stranger}"), "no".into());
        }
        assert!(owners.status().len() <= 1 + REFUSED_NEWCOMERS);
    }
}
