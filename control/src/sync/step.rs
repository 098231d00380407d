//! The controller's part about one Service: finalizer, status, and the way out.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::controller::{Controller, Turn, Work};
use super::events::Note;
use super::job::{Job, ServiceJob, Step};
use crate::index::ServiceKey;
use crate::index::extract::{FINALIZER, OWN_FINALIZER};
use crate::index::kinds::{ServiceInfo, ServiceStatus};
use crate::index::outcome::{self, DEGRADED, PROVISIONING, SERVING, Signals, Wanted};
use crate::index::translate::{Plan, Stage};

/// A state that lasts less than this is not worth a write.
const PASSING: Duration = Duration::from_secs(1);
/// A dataplane that starts with the box is there by then; of what is shown and served on, nothing else is news.
const STARTING: Duration = Duration::from_secs(10);

impl Controller {
    /// The one next step of a Service, if one is due.
    pub(super) fn step(&mut self, key: &ServiceKey, turn: &mut Turn, now: Instant) {
        let (Some(plan), Some(info)) =
            (self.translation.plans.get(key).cloned(), self.index.services.get(key).cloned())
        else {
            self.forget(key);
            return;
        };
        let work = self.work.entry(key.clone()).or_default();
        if work.uid != plan.uid {
            *work = Work { uid: plan.uid.clone(), in_flight: work.in_flight, ..Work::default() };
        }
        if plan.stage != Stage::Leaving {
            // It may leave and come back: the next farewell has its whole time again.
            work.leaving_since = None;
            work.forced = false;
        }
        if work.in_flight > 0 {
            return;
        }
        if let Some(at) = work.not_before.filter(|at| *at > now) {
            self.remind(key, at);
            return;
        }
        match plan.stage {
            Stage::Leaving => self.leave(key, &plan, &info, turn, now),
            // Marked first: a finalizer without a sign that it is ours could strand the Service.
            Stage::NeedsFinalizer | Stage::NeedsAddress | Stage::Programmed
                if !plan.has_finalizer(&info) && !info.status.conditions.is_empty() =>
            {
                let finalizer = if plan.exposed { OWN_FINALIZER } else { FINALIZER };
                self.order_step(key, &info, Step::AddFinalizer(finalizer), Vec::new(), turn);
            }
            _ => self.say(key, &plan, &info, turn, now),
        }
    }

    fn forget(&mut self, key: &ServiceKey) {
        if self.work.get(key).is_some_and(|work| work.in_flight == 0) {
            self.work.remove(key);
        }
    }

    fn order_step(&mut self, key: &ServiceKey, info: &ServiceInfo, step: Step, notes: Vec<Note>, turn: &mut Turn) {
        if let Some(work) = self.work.get_mut(key) {
            work.in_flight += 1;
        }
        turn.jobs.push(Job::Service(ServiceJob {
            key: key.clone(),
            uid: info.spec.uid.clone(),
            step,
            before: info.status.clone(),
            notes,
        }));
    }

    /// Brings the status to what is true.
    fn say(&mut self, key: &ServiceKey, plan: &Plan, info: &ServiceInfo, turn: &mut Turn, now: Instant) {
        let acknowledged = self.is_acknowledged(key, plan);
        let (health, settles) = self.health_of(plan, now);
        if let Some(at) = settles {
            self.remind(key, at);
        }
        let refusal = self.work.get(key).and_then(|w| w.refusal.clone());
        let signals = Signals {
            acknowledged,
            health,
            allocation: refusal.as_deref(),
            dataplane: if acknowledged { None } else { self.progress.trouble.as_deref() },
        };
        let wanted = outcome::wanted(plan, &info.status, &signals);
        if wanted.vip_annotation.as_deref().unwrap_or("") != info.status.vip_annotation.as_deref().unwrap_or("") {
            self.order_step(
                key,
                info,
                Step::Annotate(wanted.vip_annotation.filter(|v| !v.is_empty())),
                Vec::new(),
                turn,
            );
            return;
        }
        self.tell_updates(key, plan, info, acknowledged, turn);
        if outcome::is_said(&wanted, &info.status, shows_ours(plan, &info.status)) {
            self.stands(key, now);
            return;
        }
        if self.is_passing(key, &wanted, info, now) || self.is_fought_over(key, plan, &wanted, info, turn, now) {
            return;
        }
        let notes = notes_of(key, plan, &wanted, &info.status);
        self.order_step(key, info, Step::Status(wanted), notes, turn);
    }

    /// Waiting for a moment is not written at once: on the way to serving it would cost a write per step.
    fn is_passing(&mut self, key: &ServiceKey, wanted: &Wanted, info: &ServiceInfo, now: Instant) -> bool {
        let Some(work) = self.work.get_mut(key) else { return false };
        let waits = wanted.conditions.iter().any(|c| c.status && c.reason.starts_with("Awaiting"));
        let is = |kind: &str| wanted.conditions.iter().any(|c| c.kind == kind && c.reason == "DataplaneFault");
        let starts = is(PROVISIONING) && !is(SERVING);
        if !waits && !starts || info.status.conditions.is_empty() {
            work.pending_since = None;
            return false;
        }
        let since = *work.pending_since.get_or_insert(now);
        let until = since + if starts { STARTING } else { PASSING };
        if until > now {
            self.remind(key, until);
            return true;
        }
        false
    }

    /// What has stood for as long as it was left alone is nobody else's any more.
    fn stands(&mut self, key: &ServiceKey, now: Instant) {
        let first = self.kubernetes.timing.fight_backoff;
        let Some(work) = self.work.get_mut(key) else { return };
        work.pending_since = None;
        if work.fights == 0 {
            return;
        }
        let peace = *work.peace.get_or_insert_with(|| now + pause_after(work.fights, first));
        if peace > now {
            self.remind(key, peace);
        } else {
            work.fights = 0;
            work.peace = None;
        }
    }

    /// A status that somebody else changes back is left alone for a while, longer each time.
    fn is_fought_over(
        &mut self,
        key: &ServiceKey,
        plan: &Plan,
        wanted: &Wanted,
        info: &ServiceInfo,
        turn: &mut Turn,
        now: Instant,
    ) -> bool {
        let first = self.kubernetes.timing.fight_backoff;
        let Some(work) = self.work.get_mut(key) else { return false };
        work.peace = None;
        if work.written.as_ref() != Some(wanted) {
            work.fights = 0;
            work.left_alone = None;
            return false;
        }
        if let Some(at) = work.left_alone.filter(|at| *at > now) {
            self.remind(key, at);
            return true;
        }
        // After a pause, and after a write that failed, the next try is no new fight.
        if std::mem::take(&mut work.pardoned) {
            return false;
        }
        work.fights += 1;
        // Once may be an accident.
        if work.fights < 2 {
            return false;
        }
        let pause = pause_after(work.fights, first);
        work.left_alone = Some(now + pause);
        work.pardoned = true;
        self.remind(key, now + pause);
        let others: Vec<String> =
            info.status.ingress.iter().filter_map(|i| i.ip.map(|ip| ip.to_string()).or(i.hostname.clone())).collect();
        let message = format!(
            "another controller writes this Service's status (it shows [{}]): it is left alone for {} s",
            others.join(", "),
            pause.as_secs()
        );
        turn.notes.push(Note::warning(key, &plan.uid, "SyncLoadBalancerFailed", message));
        true
    }

    /// A change of fields that is served now.
    fn tell_updates(&mut self, key: &ServiceKey, plan: &Plan, info: &ServiceInfo, acknowledged: bool, turn: &mut Turn) {
        if plan.stage != Stage::Programmed || !acknowledged || self.progress.acknowledged < self.version {
            return;
        }
        let fields = fingerprint(plan, info);
        let Some(work) = self.work.get_mut(key) else { return };
        if work.ensured.replace(fields).is_some_and(|before| before != fields) {
            turn.notes.push(Note::normal(
                key,
                &plan.uid,
                "UpdatedLoadBalancer",
                "Updated load balancer with the new settings",
            ));
        }
    }

    fn leave(&mut self, key: &ServiceKey, plan: &Plan, info: &ServiceInfo, turn: &mut Turn, now: Instant) {
        let owner = self.kubernetes.owner.clone();
        let finalizers: Vec<&'static str> =
            [(info.spec.finalizer, FINALIZER), (info.spec.own_finalizer, OWN_FINALIZER)]
                .into_iter()
                .filter_map(|(there, name)| there.then_some(name))
                .collect();
        let Some(work) = self.work.get_mut(key) else { return };
        if work.leaving_since.is_none() && !finalizers.is_empty() {
            turn.notes.push(Note::normal(key, &plan.uid, "DeletingLoadBalancer", "Deleting load balancer"));
        }
        let since = *work.leaving_since.get_or_insert(now);
        let claimed = self.index.records_of(key).any(|r| r.owner == owner && r.claimed_by(&plan.uid));
        if claimed && !finalizers.is_empty() {
            let until = since + Duration::from_secs_f64(self.kubernetes.timing.teardown_wait);
            if until > now {
                self.remind(key, until);
                return;
            }
            // The Service is let go; its address stays recorded until the box has let go of it, too.
            if !std::mem::replace(&mut work.forced, true) {
                let trouble = self.progress.trouble.as_deref().unwrap_or("it has not acknowledged");
                let message =
                    format!("the Service goes although the box still serves it: {trouble}; its address stays reserved");
                turn.notes.push(Note::warning(key, &plan.uid, "SyncLoadBalancerFailed", message));
            }
        }
        if !finalizers.is_empty() {
            let notes = vec![Note::normal(key, &plan.uid, "DeletedLoadBalancer", "Deleted load balancer")];
            self.order_step(key, info, Step::RemoveFinalizers(finalizers), notes, turn);
        } else if info.spec.deleting || claimed {
            // Nothing more to write: it is about to be gone, or its claim is.
        } else if info.status.vip_annotation.is_some() {
            self.order_step(key, info, Step::Annotate(None), Vec::new(), turn);
        } else if !info.status.conditions.is_empty() {
            // After the finalizer: until then the conditions are the sign that it is ours.
            self.order_step(key, info, Step::Status(Wanted::default()), Vec::new(), turn);
        }
    }
}

/// Longer with each time that somebody else undid what was written.
fn pause_after(fights: u32, first: f64) -> Duration {
    super::backoff::after(fights.saturating_sub(2), first, first * 32.0)
}

fn shows_ours(plan: &Plan, seen: &ServiceStatus) -> bool {
    seen.ingress.iter().any(|i| i.ip.is_some_and(|ip| plan.vips.contains(&ip)))
}

fn fingerprint(plan: &Plan, info: &ServiceInfo) -> u64 {
    let mut hasher = DefaultHasher::new();
    info.spec.ports.hash(&mut hasher);
    info.spec.source_ranges.hash(&mut hasher);
    info.spec.annotations.hash(&mut hasher);
    (info.spec.local, info.spec.affinity, &plan.vips).hash(&mut hasher);
    hasher.finish()
}

/// The Events that go with a change of status.
fn notes_of(key: &ServiceKey, plan: &Plan, wanted: &Wanted, before: &ServiceStatus) -> Vec<Note> {
    let uid: &Arc<str> = &plan.uid;
    let mut notes = Vec::new();
    let was = |kind: &str| before.conditions.iter().find(|c| c.kind == kind);
    let is = |kind: &str| wanted.conditions.iter().find(|c| c.kind == kind);
    let changed = |kind: &str| match (was(kind), is(kind)) {
        (Some(was), Some(is)) => (&was.reason, &was.message) != (&is.reason, &is.message),
        (None, Some(_)) => true,
        _ => false,
    };
    let reason = is(SERVING).map_or("", |c| c.reason.as_str());
    let message = is(SERVING).map_or("", |c| c.message.as_str());
    if let Stage::Refused(refused) = &plan.stage {
        if changed(SERVING) {
            notes.push(Note::warning(
                key,
                uid,
                "SyncLoadBalancerFailed",
                format!("{}: {}", refused.reason, refused.message),
            ));
        }
        return notes;
    }
    if before.conditions.is_empty() {
        notes.push(Note::normal(key, uid, "EnsuringLoadBalancer", "Ensuring load balancer"));
    }
    let missing = is(DEGRADED).is_some_and(|c| c.status && c.reason == "MissingAddress");
    if reason == "AllocationFailed" && changed(SERVING) {
        notes.push(Note::warning(key, uid, "AllocationFailed", message));
    } else if missing && changed(DEGRADED) {
        notes.push(Note::warning(key, uid, "AllocationFailed", is(DEGRADED).map_or("", |c| c.message.as_str())));
    }
    let shown = |status: &[crate::index::kinds::IngressInfo]| status.iter().filter_map(|i| i.ip).collect::<Vec<_>>();
    let (old, new) = (shown(&before.ingress), shown(&wanted.ingress));
    let first = was(SERVING).is_none_or(|c| c.reason.starts_with("Awaiting") || c.reason == "AllocationFailed");
    if !new.is_empty() && old.is_empty() || plan.exposed && first && reason.starts_with("Serving") {
        notes.push(Note::normal(key, uid, "EnsuredLoadBalancer", "Ensured load balancer"));
    } else if !new.is_empty() && new != old {
        let list: Vec<String> = new.iter().map(ToString::to_string).collect();
        notes.push(Note::normal(
            key,
            uid,
            "UpdatedLoadBalancer",
            format!("Load balancer's addresses: {}", list.join(", ")),
        ));
    }
    if reason == "NoBackends" && changed(SERVING) {
        let message = "There are no available nodes for LoadBalancer";
        notes.push(Note::warning(key, uid, "UnAvailableLoadBalancer", message));
    }
    notes
}
