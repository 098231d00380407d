//! "Why is it pending?" and "why is this node out?", each in a sentence.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use penstock_configs::desired::BackendState;
use serde::{Deserialize, Serialize};

use crate::index::ServiceKey;
use crate::index::outcome::Health;
use crate::index::translate::{Plan, Stage};
use crate::pool::Family;
use crate::sync::{Controller, FEEDS, FeedState};

/// `GET /v1/why/{namespace}/{service}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The answer.
    pub sentence: String,
    pub vips: Vec<std::net::IpAddr>,
    pub stage: String,
    /// Of each node that gets no new flows, why.
    pub nodes: Vec<NodeWhy>,
    /// Things that are true of everything.
    pub notices: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWhy {
    pub node: String,
    pub reason: String,
}

impl Why {
    #[must_use]
    pub fn unknown(key: &ServiceKey, problem: &str) -> Self {
        let sentence = format!("What becomes of {key} is not known: {problem}.");
        Self { sentence, vips: Vec::new(), stage: "unknown".into(), nodes: Vec::new(), notices: Vec::new() }
    }
}

impl Controller {
    #[must_use]
    pub fn why(&self, key: &ServiceKey, now: Instant) -> Why {
        let notices = self.notices(now);
        let Some(plan) = self.translation.plans.get(key) else {
            let sentence = self.why_not_ours(key);
            return Why { sentence, vips: Vec::new(), stage: "none".into(), nodes: Vec::new(), notices };
        };
        Why {
            sentence: format!("{key} {}.", self.why_stage(key, plan, now)),
            vips: plan.vips.clone(),
            stage: stage_name(&plan.stage).to_owned(),
            nodes: self.nodes_out(key, plan),
            notices,
        }
    }

    fn why_not_ours(&self, key: &ServiceKey) -> String {
        if !self.index.services.synced {
            return format!("{key}: Services have not been listed yet.");
        }
        match self.index.services.get(key) {
            None => format!(
                "{key} is not for this load balancer: there is no such Service, or it is neither of type LoadBalancer nor \
                 annotated with penstock.dev/expose: \"true\"."
            ),
            Some(info) => match &info.spec.class {
                Some(class) => {
                    format!("{key} is for another load balancer: its class is {class}, ours is {}.", self.class())
                }
                None => {
                    format!("{key} names no loadBalancerClass; ours is {}, and default_class is off.", self.class())
                }
            },
        }
    }

    fn why_stage(&self, key: &ServiceKey, plan: &Plan, now: Instant) -> String {
        match &plan.stage {
            Stage::Refused(refused) => format!("is refused: {} ({})", refused.message, refused.reason),
            Stage::NeedsFinalizer => format!("is pending: {}", self.writer("its cleanup finalizer is added first")),
            Stage::NeedsCleanup => {
                "is pending: a former Service of this name holds its address until the box has let go of it".into()
            }
            Stage::NeedsAddress => match self.work.get(key).and_then(|w| w.refusal.as_ref()) {
                Some(why) => format!("is pending: it gets no address: {why}"),
                None => format!("is pending: {}", self.writer("an address is being recorded for it")),
            },
            Stage::Leaving => "is being taken down: its address goes when the box has acknowledged".into(),
            Stage::Programmed => self.why_programmed(key, plan, now),
        }
    }

    fn why_programmed(&self, key: &ServiceKey, plan: &Plan, now: Instant) -> String {
        if !self.is_acknowledged(key, plan) {
            let why = self.progress.trouble.as_deref().unwrap_or("the snapshot is on its way");
            return match self.is_held(key, plan) {
                true => {
                    format!("is served as it was before its last change, which the box has not acknowledged: {why}")
                }
                false => format!("is pending: the box has not acknowledged it: {why}"),
            };
        }
        let mut text = match self.health_of(plan, now).0 {
            Health::Good => format!("is served in mode {}", plan.mode.as_str()),
            Health::Unsettled => "is pending: no backend is known to be healthy yet".into(),
            Health::Bad => "has its address, but no backend is healthy".into(),
            Health::NoBackends => "has its address, but no node is a backend".into(),
        };
        if !plan.missing.is_empty() {
            let families: Vec<&str> = plan.missing.iter().map(|f| f.name()).collect();
            let why = self.work.get(key).and_then(|w| w.refusal.as_deref()).unwrap_or("it is being recorded");
            let _ = write!(text, "; its {} address is missing: {why}", families.join(" and "));
        }
        if self.work.get(key).is_some_and(|w| w.fights > 1) {
            text.push_str("; another controller writes its status, which is left alone for a while");
        }
        text
    }

    fn writer(&self, what: &str) -> String {
        if self.role.leader { what.to_owned() } else { format!("{what}, by the leader ({})", self.role.holder) }
    }

    fn nodes_out(&self, key: &ServiceKey, plan: &Plan) -> Vec<NodeWhy> {
        let families: Vec<Family> = plan.vips.iter().map(|vip| Family::of(*vip)).collect();
        let mut out = Vec::new();
        for (name, info) in self.index.nodes.iter() {
            let reason = info
                .out
                .map(|out| {
                    let drains = self.index.draining.contains(name);
                    let note = if drains { " (keeps its flows for a while, takes no new ones)" } else { "" };
                    format!("{}{note}", out.reason())
                })
                .or_else(|| self.quarantine.nodes.get(name).map(|why| format!("the box refuses it: {why}")))
                .or_else(|| {
                    let lacks = families.iter().find(|f| info.address(**f).is_none())?;
                    Some(format!("it has no {lacks} address of the kind that is used"))
                })
                .or_else(|| self.no_endpoint(key, plan, name))
                .or_else(|| self.unhealthy(key, name));
            if let Some(reason) = reason {
                out.push(NodeWhy { node: name.to_string(), reason });
            }
        }
        out
    }

    fn no_endpoint(&self, key: &ServiceKey, plan: &Plan, node: &Arc<str>) -> Option<String> {
        let sets = &self.translation.desired.sets;
        let set = plan.groups.iter().find(|g| g.starts_with("local/"))?;
        let set = sets.iter().find(|s| *s.name == **set)?;
        let backend = set.backends.iter().find(|b| b.node.as_deref() == Some(&**node));
        match backend {
            None if self.index.services.get(key)?.spec.local => {
                Some("no ready endpoint of the Service runs on it (externalTrafficPolicy: Local)".into())
            }
            Some(b) if b.state == BackendState::Draining => {
                Some("its endpoints are terminating (keeps its flows, takes no new ones)".into())
            }
            _ => None,
        }
    }

    fn unhealthy(&self, key: &ServiceKey, node: &Arc<str>) -> Option<String> {
        let health = self.health_view();
        let prefixes = [format!("local/{key}/{node}/"), format!("port/{key}/{node}/"), format!("node/{node}/")];
        let known = |prefix: &String| -> Vec<_> {
            let targets = self.translation.targets.iter().filter(|t| t.id.starts_with(prefix.as_str()));
            targets.filter_map(|t| Some((t, health.targets.get(&t.id)?))).collect()
        };
        // The nearest check decides, as it does in the dataplane: a port's before the node's.
        let nearest = prefixes.iter().map(known).find(|known| !known.is_empty())?;
        let (target, state) = nearest.into_iter().find(|(_, s)| s.state != BackendState::Active)?;
        let verb = if state.state == BackendState::Draining { "drains" } else { "is down" };
        let held = health.panicking.contains(&target.group);
        let note = if held { "; it stays in service all the same: too few are healthy" } else { "" };
        Some(format!("it {verb} by its health check: {}{note}", state.reason))
    }

    /// What `penstock status` says of the Kubernetes side.
    #[must_use]
    pub fn notices(&self, now: Instant) -> Vec<String> {
        let mut notices = Vec::new();
        let unsynced = self.index.unsynced();
        if !unsynced.is_empty() {
            notices.push(format!("not listed yet: {}; the dataplane keeps its last snapshot", unsynced.join(", ")));
        }
        if !self.role.known {
            let why = "who leads is not known: the Lease cannot be had (the log says why); the dataplane keeps its last \
                       snapshot";
            notices.push(why.into());
        }
        notices.extend(self.failing_feeds(now));
        if let Some(trouble) = &self.progress.trouble {
            notices.push(trouble.clone());
        }
        for (key, why) in &self.quarantine.services {
            notices.push(format!("left out, because the box refuses it: Service {key}: {why}"));
        }
        for (node, why) in &self.quarantine.nodes {
            notices.push(format!("left out, because the box refuses it: node {node}: {why}"));
        }
        let backends: Vec<_> = self.index.nodes.values().filter(|n| n.is_backend()).collect();
        if !backends.is_empty() && backends.iter().all(|n| !n.ready) {
            notices.push("all nodes are NotReady: none is taken out for it, health checks decide".into());
        }
        notices
    }
}

impl Controller {
    /// Where every watch fails, it is the API server and not a watch.
    fn failing_feeds(&self, now: Instant) -> Vec<String> {
        let seconds = |since: &Instant| now.duration_since(*since).as_secs();
        let failing = self.feeds.iter().filter_map(|(kind, (state, since))| match state {
            FeedState::Failing(why) => Some((kind, why, since)),
            _ => None,
        });
        let failing: Vec<_> = failing.collect();
        match failing.iter().min_by_key(|(_, _, since)| *since) {
            Some((_, why, since)) if failing.len() == FEEDS => vec![format!(
                "the API server has been unreachable for {} s ({why}): the dataplane keeps its last snapshot",
                seconds(since)
            )],
            _ => failing
                .into_iter()
                .map(|(kind, why, since)| format!("watching {kind} has failed for {} s: {why}", seconds(since)))
                .collect(),
        }
    }
}

#[must_use]
pub fn stage_name(stage: &Stage) -> &'static str {
    match stage {
        Stage::Refused(_) => "refused",
        Stage::NeedsFinalizer => "needs-finalizer",
        Stage::NeedsCleanup => "needs-cleanup",
        Stage::NeedsAddress => "needs-address",
        Stage::Programmed => "programmed",
        Stage::Leaving => "leaving",
    }
}
