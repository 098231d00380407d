//! Who allocates and writes: one box, by a Lease.
//!
//! The rules are client-go's (a silent leader is believed for the lease's duration by the *observer's* clock; writes
//! are made only with the resourceVersion that was read). Some things are our own:
//!
//! - `leaseTransitions` is the fencing term. It goes with every snapshot, and a dataplane refuses an older one. So it
//!   must not begin anew where somebody deletes the Lease: it never falls behind the clock ([`next_transitions`]).
//! - The identity is the box's name. A restarted process takes its own Lease over at once, with a new term that fences
//!   off the process before it: a restart must not leave the addresses without an answer for a lease's duration.
//! - A leader that cannot renew stops writing to the API, but goes on announcing until it sees another holder: when
//!   the API server is gone nobody can take over, and the addresses must not go with it.
//! - Whoever names another box in the Lease hands it over: that box takes it at once, the former one sees it and no longer
//!   announces.
//! - A leader whose dataplane process is gone gives the Lease up, so that a
//!   box that can serve answers for the addresses. Where nobody takes it for a lease's duration it is taken back:
//!   somebody must write statuses and let Services go. Until another has it, the dataplane, if it comes back meanwhile,
//!   goes on answering: to let go of an address and probe for it anew takes seconds.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::LeaderConfig;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// The first round is over: before it nothing can be said.
    pub known: bool,
    /// May allocate and write.
    pub leader: bool,
    /// Answers for the addresses in L2 mode.
    pub announces: bool,
    /// Of the Lease as seen last; none without leader election.
    pub term: Option<u64>,
    pub holder: String,
}

impl Role {
    /// Of a box that is alone.
    #[must_use]
    pub fn alone(name: &str) -> Self {
        Self { known: true, leader: true, announces: true, term: None, holder: name.to_owned() }
    }
}

/// What a look at the Lease, and the time, say should be done. Pure: see [`Candidate::judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Create,
    /// It is ours in this term: say that we live.
    Renew,
    /// Nobody's any more, or our own from a former life: a new term begins.
    Take,
    /// It is ours, and another box should have it.
    Yield,
    /// Somebody else's.
    Follow,
}

/// Lease durations that a leader without a dataplane keeps what nobody else took, before it offers it again.
const KEEPS: u32 = 10;

#[derive(Debug)]
struct Candidate {
    name: String,
    /// The last term this process led in; none: it never did.
    led: Option<u64>,
    /// The last term in which another box was seen to hold the Lease.
    of_another: Option<u64>,
    /// The Lease as seen last, and when it was first seen so.
    observed: Option<(String, Instant)>,
    /// There is a dataplane to serve with.
    fit: bool,
    yielded: Option<Instant>,
    /// The most transitions seen: the next term is above it, whatever becomes of the Lease.
    newest: i32,
}

impl Candidate {
    fn judge(&mut self, lease: Option<&Lease>, now: Instant) -> Move {
        let Some(lease) = lease else { return Move::Create };
        let spec = lease.spec.clone().unwrap_or_default();
        let record = format!("{:?} {:?} {:?}", spec.holder_identity, spec.renew_time, spec.lease_transitions);
        if self.observed.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.observed = Some((record, now));
        }
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let duration = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(15)).unwrap_or(15));
        let silent = self.observed.as_ref().map_or(Duration::ZERO, |(_, since)| now.duration_since(*since));
        if holder.is_empty() {
            // First those that can serve.
            return if self.fit || silent > duration { Move::Take } else { Move::Follow };
        }
        if holder != self.name {
            self.of_another = Some(term_of(lease));
        } else if self.of_another == Some(term_of(lease)) {
            // Nobody takes it but in a new term: it was written there by hand.
            return Move::Take;
        } else {
            let kept = self.yielded.is_none_or(|at| now.duration_since(at) > duration * KEEPS);
            match self.led {
                Some(term) if term == term_of(lease) && !self.fit && kept => return Move::Yield,
                // Older than what was seen since: restored from a backup. The dataplanes have the newer term.
                Some(term) if term == term_of(lease) && spec.lease_transitions.unwrap_or(0) < self.newest => {
                    return Move::Take;
                }
                Some(term) if term == term_of(lease) => return Move::Renew,
                // A process of this box that is no more: we are its successor.
                None => return Move::Take,
                // Our own successor: two processes that took turns would never end.
                Some(_) => {}
            }
        }
        if silent > duration { Move::Take } else { Move::Follow }
    }
}

/// Never 0: a term in a snapshot means that leaders are elected.
fn term_of(lease: &Lease) -> u64 {
    let transitions = lease.spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or(0);
    u64::try_from(transitions).unwrap_or(0) + 1
}

/// One more, and at least the seconds since 2020: more than a Lease before it that nobody remembers can have come to,
/// unless leaders changed every second, so that dataplanes take a new Lease's leader for what it is. (An `i32` of them
/// lasts until 2088.)
fn next_transitions(before: i32, now: Timestamp) -> i32 {
    const YEAR_2020: i64 = 1_577_836_800;
    let seconds = i32::try_from(now.as_second() - YEAR_2020).unwrap_or(0);
    before.saturating_add(1).max(seconds)
}

/// Runs until `shutdown`; without a dataplane it gives the Lease up then, so that another box need not wait.
pub async fn elect(
    client: kube::Client,
    namespace: String,
    config: LeaderConfig,
    name: String,
    roles: watch::Sender<Role>,
    fit: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
) {
    let api: Api<Lease> = Api::namespaced(client, &namespace);
    let retry = Duration::from_secs_f64(config.retry);
    let deadline = Duration::from_secs_f64(config.renew_deadline);
    let mut candidate =
        Candidate { name, led: None, of_another: None, observed: None, fit: true, yielded: None, newest: 0 };
    let mut renewed = Instant::now();
    let mut said = String::new();
    while !*shutdown.borrow() {
        let began = Instant::now();
        candidate.fit = *fit.borrow();
        // A request that hangs must not outlast the deadline: stepping down is this loop's duty.
        let left = deadline.saturating_sub(renewed.elapsed()).max(retry);
        match tokio::time::timeout(left, round(&api, &config, &mut candidate)).await {
            Ok(Ok(lease)) => {
                // From before the request: the server may have written it as early as that.
                renewed = began;
                said.clear();
                publish(&roles, &candidate, &lease);
            }
            Ok(Err(error)) => {
                let why = crate::sync::api_error(&error);
                // Without it nothing is written or sent: who leads is not known. A conflict is somebody faster.
                if why != said && !matches!(&error, kube::Error::Api(status) if status.code == 409) {
                    warn!("the Lease {namespace}/{}: {why}", config.lease);
                    said = why;
                }
                step_down(&roles, renewed, deadline);
            }
            Err(_) => step_down(&roles, renewed, deadline),
        }
        let pause = retry.saturating_sub(began.elapsed()).max(Duration::from_millis(50));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = shutdown.changed() => {}
        }
    }
    // Its dataplane goes on answering for the addresses: a Lease that is given up would promise them to a box that
    // cannot have them yet, and to a process that is only started anew it would be lost.
    if candidate.led.is_some() && !*fit.borrow() {
        // Whoever cannot be told waits for the lease to run out.
        let _ = tokio::time::timeout(Duration::from_secs(2), release(&api, &config.lease, &candidate)).await;
    }
}

async fn round(api: &Api<Lease>, config: &LeaderConfig, candidate: &mut Candidate) -> Result<Lease, kube::Error> {
    let lease = api.get_opt(&config.lease).await?;
    let transitions = lease.as_ref().and_then(|lease| lease.spec.as_ref()?.lease_transitions);
    candidate.newest = candidate.newest.max(transitions.unwrap_or(0));
    let now = MicroTime(Timestamp::now());
    // Whole seconds in the API; never 0.
    let seconds = (config.duration.ceil() as i32).max(1);
    match (candidate.judge(lease.as_ref(), Instant::now()), lease) {
        (Move::Follow, Some(lease)) => Ok(lease),
        (Move::Renew, Some(mut lease)) => {
            let spec = lease.spec.get_or_insert_default();
            spec.renew_time = Some(now);
            spec.lease_duration_seconds = Some(seconds);
            api.replace(&config.lease, &PostParams::default(), &lease).await
        }
        (Move::Yield, Some(mut lease)) => {
            warn!("the dataplane is not there: another box may lead");
            lease.spec.get_or_insert_default().holder_identity = Some(String::new());
            let given = api.replace(&config.lease, &PostParams::default(), &lease).await?;
            candidate.yielded = Some(Instant::now());
            Ok(given)
        }
        (Move::Take, Some(mut lease)) => {
            let spec = lease.spec.get_or_insert_default();
            spec.lease_transitions = Some(next_transitions(candidate.newest, now.0));
            spec.holder_identity = Some(candidate.name.clone());
            spec.acquire_time = Some(now.clone());
            spec.renew_time = Some(now);
            spec.lease_duration_seconds = Some(seconds);
            let taken = api.replace(&config.lease, &PostParams::default(), &lease).await?;
            candidate.led = Some(term_of(&taken));
            Ok(taken)
        }
        (_, None) | (Move::Create, _) => {
            let spec = LeaseSpec {
                holder_identity: Some(candidate.name.clone()),
                lease_transitions: Some(next_transitions(candidate.newest, now.0)),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_duration_seconds: Some(seconds),
                ..LeaseSpec::default()
            };
            let metadata = ObjectMeta { name: Some(config.lease.clone()), ..ObjectMeta::default() };
            let made = api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await?;
            candidate.led = Some(term_of(&made));
            Ok(made)
        }
    }
}

fn publish(roles: &watch::Sender<Role>, candidate: &Candidate, lease: &Lease) {
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
    let term = term_of(lease);
    let leader = holder == candidate.name && candidate.led == Some(term);
    // Nobody is no other holder.
    let announces = leader || holder.is_empty() && roles.borrow().announces;
    let role = Role { known: true, leader, announces, term: Some(term), holder };
    let changed = roles.send_if_modified(|now| {
        let changed = *now != role;
        now.clone_from(&role);
        changed
    });
    if changed {
        info!(leader, term, holder = role.holder, "leadership");
    }
}

fn step_down(roles: &watch::Sender<Role>, renewed: Instant, deadline: Duration) {
    if renewed.elapsed() < deadline || !roles.borrow().leader {
        return;
    }
    warn!(
        "the Lease could not be renewed for {} s: no longer writing to the API, still announcing",
        deadline.as_secs()
    );
    roles.send_modify(|role| role.leader = false);
}

async fn release(api: &Api<Lease>, name: &str, candidate: &Candidate) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(name).await? else { return Ok(()) };
    let term = term_of(&lease);
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_ref() == Some(&candidate.name) && candidate.led == Some(term) {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        api.replace(name, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, transitions: i32, renewed: i64) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_transitions: Some(transitions),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    fn candidate(led: Option<u64>) -> Candidate {
        Candidate { name: "box-a".into(), led, of_another: None, observed: None, fit: true, yielded: None, newest: 0 }
    }

    #[test]
    fn a_silent_leader_is_believed_for_the_leases_duration_by_our_clock() {
        let start = Instant::now();
        let mut a = candidate(None);
        let other = lease("box-b", 3, 0);
        assert_eq!(a.judge(Some(&other), start), Move::Follow, "however old its own time says it is");
        assert_eq!(a.judge(Some(&other), start + Duration::from_secs(14)), Move::Follow);
        assert_eq!(a.judge(Some(&lease("box-b", 3, 14)), start + Duration::from_secs(14)), Move::Follow);
        assert_eq!(a.judge(Some(&lease("box-b", 3, 14)), start + Duration::from_secs(28)), Move::Follow);
        assert_eq!(a.judge(Some(&lease("box-b", 3, 14)), start + Duration::from_secs(30)), Move::Take);
    }

    #[test]
    fn our_own_lease_is_renewed_in_its_term_and_taken_anew_after_a_restart() {
        let now = Instant::now();
        assert_eq!(candidate(Some(4)).judge(Some(&lease("box-a", 3, 0)), now), Move::Renew);
        assert_eq!(candidate(None).judge(Some(&lease("box-a", 3, 0)), now), Move::Take, "another process of this box");
        assert_eq!(candidate(Some(4)).judge(Some(&lease("box-a", 4, 0)), now), Move::Follow, "our own successor");
    }

    #[test]
    fn a_lease_that_somebody_hands_over_is_taken_at_once_also_by_who_led_before() {
        let now = Instant::now();
        let mut a = candidate(Some(4));
        assert_eq!(a.judge(Some(&lease("box-b", 7, 0)), now), Move::Follow);
        assert_eq!(a.judge(Some(&lease("box-a", 7, 0)), now), Move::Take);
        assert_eq!(a.judge(Some(&lease("box-a", 7, 0)), now), Move::Take, "also where somebody else wrote meanwhile");
        a.led = Some(9);
        assert_eq!(a.judge(Some(&lease("box-a", 8, 0)), now), Move::Renew);
        assert_eq!(a.judge(Some(&lease("box-b", 8, 0)), now), Move::Follow, "and given away");
    }

    #[test]
    fn our_own_lease_from_a_backup_is_taken_in_a_new_term() {
        let mut b = Candidate { newest: 9, ..candidate(Some(4)) };
        assert_eq!(b.judge(Some(&lease("box-a", 3, 0)), Instant::now()), Move::Take);
        b.led = Some(11);
        assert_eq!(b.judge(Some(&lease("box-a", 10, 0)), Instant::now()), Move::Renew);
    }

    #[test]
    fn a_box_without_a_dataplane_offers_the_lease_and_takes_it_back_where_nobody_wants_it() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut a = Candidate { fit: false, ..candidate(Some(4)) };
        assert_eq!(a.judge(Some(&lease("box-a", 3, 0)), start), Move::Yield);
        a.yielded = Some(start);
        assert_eq!(a.judge(Some(&lease("", 3, 0)), after(1)), Move::Follow, "others first");
        assert_eq!(a.judge(Some(&lease("", 3, 0)), after(17)), Move::Take, "somebody must");
        a.led = Some(5);
        assert_eq!(a.judge(Some(&lease("box-a", 4, 17)), after(18)), Move::Renew);
        assert_eq!(a.judge(Some(&lease("box-a", 4, 18)), after(149)), Move::Renew);
        assert_eq!(a.judge(Some(&lease("box-a", 4, 19)), after(151)), Move::Yield, "offered again");
        a.fit = true;
        assert_eq!(a.judge(Some(&lease("box-a", 4, 20)), after(152)), Move::Renew);
        assert_eq!(candidate(None).judge(Some(&lease("", 3, 0)), start), Move::Take, "who can serve takes it at once");
    }

    #[test]
    fn a_new_lease_begins_after_any_that_nobody_remembers() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let deleted = (0..60).fold(0, |before, _| next_transitions(before, at("2026-01-01T00:00:00Z")));
        assert!(next_transitions(0, at("2026-01-01T00:01:01Z")) > deleted);
        assert_eq!(next_transitions(deleted, at("2020-01-01T00:00:00Z")), deleted + 1, "whatever the clock says");
        assert_eq!(next_transitions(7, at("1970-01-01T00:00:00Z")), 8);
    }

    #[test]
    fn a_released_or_missing_lease_is_taken_at_once() {
        assert_eq!(candidate(None).judge(Some(&lease("", 3, 0)), Instant::now()), Move::Take);
        assert_eq!(candidate(None).judge(None, Instant::now()), Move::Create);
    }

    #[test]
    fn an_unreachable_api_ends_writing_but_not_announcing() {
        let (roles, seen) = watch::channel(Role { leader: true, announces: true, ..Role::alone("box-a") });
        let renewed = Instant::now().checked_sub(Duration::from_secs(11)).unwrap();
        step_down(&roles, renewed, Duration::from_secs(10));
        assert!(!seen.borrow().leader && seen.borrow().announces);
        publish(&roles, &candidate(None), &lease("box-b", 7, 0));
        assert!(!seen.borrow().announces);
        assert_eq!(seen.borrow().term, Some(8));
    }

    #[test]
    fn an_offered_lease_ends_leading_and_not_announcing_until_another_has_it() {
        let (roles, seen) = watch::channel(Role::default());
        let mut a = candidate(None);
        publish(&roles, &a, &lease("", 7, 0));
        assert!(!seen.borrow().announces, "it never did");
        a.led = Some(9);
        publish(&roles, &a, &lease("box-a", 8, 0));
        publish(&roles, &a, &lease("", 8, 0));
        assert!(!seen.borrow().leader && seen.borrow().announces);
        publish(&roles, &a, &lease("box-b", 9, 0));
        assert!(!seen.borrow().announces);
        publish(&roles, &a, &lease("", 9, 0));
        assert!(!seen.borrow().announces, "the other one does");
    }
}
