//! What should be said of a Service: the ingress it shows and its conditions. Pure, and stable: messages carry no
//! counts, or every flap of a node would rewrite every Service.

use std::net::IpAddr;

use super::kinds::{ConditionInfo, IngressInfo, ServiceStatus};
use super::translate::{Plan, Stage};

pub const SERVING: &str = "penstock.dev/Serving";
pub const PROVISIONING: &str = "penstock.dev/Provisioning";
pub const DEGRADED: &str = "penstock.dev/Degraded";

/// What the translation cannot know.
#[derive(Debug, Clone, Copy)]
pub struct Signals<'a> {
    /// Every worker runs the Service as the plan has it.
    pub acknowledged: bool,
    pub health: Health,
    /// Why an address is missing, if the allocator said so.
    pub allocation: Option<&'a str>,
    /// Why the dataplane does not acknowledge, if it said so.
    pub dataplane: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Good,
    /// No backend is known to be healthy, but that is recent.
    Unsettled,
    Bad,
    /// There is none to be healthy.
    NoBackends,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub kind: &'static str,
    pub status: bool,
    pub reason: String,
    pub message: String,
}

/// The whole of what we own in a Service's status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub ingress: Vec<IngressInfo>,
    pub conditions: Vec<Condition>,
    /// For Services that are no LoadBalancer.
    pub vip_annotation: Option<String>,
}

#[must_use]
pub fn wanted(plan: &Plan, seen: &ServiceStatus, signals: &Signals<'_>) -> Wanted {
    match &plan.stage {
        Stage::Leaving => Wanted::default(),
        Stage::Refused(refused) => Wanted {
            conditions: three(
                (false, refused.reason, &refused.message),
                (false, refused.reason, &refused.message),
                (false, "Refused", ""),
            ),
            ..Wanted::default()
        },
        Stage::NeedsFinalizer => pending("AwaitingFinalizer", "the cleanup finalizer comes first"),
        Stage::NeedsCleanup => {
            pending("AwaitingCleanup", "a former Service of this name holds its address until the box has let go of it")
        }
        Stage::NeedsAddress => match signals.allocation {
            Some(why) => pending("AllocationFailed", why),
            None => pending("AwaitingAddress", "an address is being recorded"),
        },
        Stage::Programmed => programmed(plan, seen, signals),
    }
}

fn pending(reason: &'static str, message: &str) -> Wanted {
    Wanted {
        conditions: three((false, reason, message), (true, reason, message), (false, "NotServing", "")),
        ..Wanted::default()
    }
}

fn programmed(plan: &Plan, seen: &ServiceStatus, signals: &Signals<'_>) -> Wanted {
    let shown = plan.vips.iter().any(|vip| is_shown(plan, seen, vip));
    if !signals.acknowledged && !shown {
        return match signals.dataplane {
            Some(why) => pending("DataplaneFault", why),
            None => pending("AwaitingDataplane", "the box has not acknowledged the Service yet"),
        };
    }
    if !shown && signals.health == Health::Unsettled {
        return pending("AwaitingHealth", "no backend is known to be healthy yet");
    }
    let (serving, degraded) = judge(plan, signals);
    let provisioning = match (signals.acknowledged, signals.dataplane) {
        (true, _) => (false, "Done", ""),
        (false, Some(why)) => (true, "DataplaneFault", why),
        (false, None) => (true, "AwaitingDataplane", "the box has not acknowledged the last change yet"),
    };
    // What is acknowledged is shown; until then, only what was shown before, and as it was: by `ipMode` kube-proxy
    // decides whether the nodes take packets to the address.
    let as_before = |vip: &IpAddr| seen.ingress.iter().find(|shown| shown.ip == Some(*vip));
    let visible: Vec<IpAddr> =
        plan.vips.iter().copied().filter(|vip| signals.acknowledged || is_shown(plan, seen, vip)).collect();
    let ingress = visible.iter().map(|vip| IngressInfo {
        ip: Some(*vip),
        hostname: None,
        ip_mode: match as_before(vip).filter(|_| !signals.acknowledged) {
            Some(shown) => shown.ip_mode.clone(),
            None => Some(plan.ip_mode.to_owned()),
        },
    });
    Wanted {
        ingress: if plan.exposed { Vec::new() } else { ingress.collect() },
        vip_annotation: plan.exposed.then(|| join(&visible)),
        conditions: three((serving.0, serving.1, &serving.2), provisioning, (degraded.0, degraded.1, &degraded.2)),
    }
}

type Said = (bool, &'static str, String);

fn judge(plan: &Plan, signals: &Signals<'_>) -> (Said, Said) {
    let source = if plan.source_lost {
        "externalTrafficPolicy: Local is kept, but the client's source address is not preserved in mode nat; \
         dnat and dsr preserve it"
    } else {
        ""
    };
    let good = if plan.source_lost { "ServingSourceNotPreserved" } else { "Serving" };
    let serving: Said = match signals.health {
        Health::Good | Health::Unsettled => (true, good, source.to_owned()),
        Health::Bad => (false, "NoHealthyBackend", "the address answers, but no backend is healthy".into()),
        Health::NoBackends => {
            (false, "NoBackends", "the address answers, but there is no node to send packets to".into())
        }
    };
    let degraded: Said = match (signals.health, plan.missing.is_empty()) {
        (Health::Bad, _) => (true, "NoHealthyBackend", "no backend is healthy".into()),
        (Health::NoBackends, _) => (true, "NoBackends", "no node is a backend".into()),
        (_, false) => {
            let families: Vec<&str> = plan.missing.iter().map(|f| f.name()).collect();
            let why = signals.allocation.unwrap_or("it is being recorded");
            (true, "MissingAddress", format!("the {} address asked for is missing: {why}", families.join(" and ")))
        }
        (_, true) => (false, "AsExpected", String::new()),
    };
    (serving, degraded)
}

fn is_shown(plan: &Plan, seen: &ServiceStatus, vip: &IpAddr) -> bool {
    if plan.exposed {
        let list = seen.vip_annotation.as_deref().unwrap_or_default();
        return list.split(',').any(|text| text.trim().parse() == Ok(*vip));
    }
    seen.ingress.iter().any(|i| i.ip == Some(*vip))
}

fn join(vips: &[IpAddr]) -> String {
    vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn three(
    serving: (bool, &str, &str),
    provisioning: (bool, &str, &str),
    degraded: (bool, &str, &str),
) -> Vec<Condition> {
    let condition = |kind, (status, reason, message): (bool, &str, &str)| Condition {
        kind,
        status,
        reason: reason.to_owned(),
        message: shortened(message).to_owned(),
    };
    vec![condition(SERVING, serving), condition(PROVISIONING, provisioning), condition(DEGRADED, degraded)]
}

/// A person's annotation and a refusal's faults may be longer than what the API takes: 32,768 bytes in a condition,
/// 1,024 in an Event's note; one text too long would cost all of the status.
#[must_use]
pub fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(1000)]
}

/// Whether the status already says it. Times are no difference.
#[must_use]
pub fn is_said(wanted: &Wanted, seen: &ServiceStatus, ever_shown: bool) -> bool {
    let same = |c: &Condition, s: &ConditionInfo| {
        (c.kind, c.status, &c.reason, &c.message) == (s.kind.as_str(), s.status, &s.reason, &s.message)
    };
    let conditions = wanted.conditions.len() == seen.conditions.len()
        && wanted.conditions.iter().all(|c| seen.conditions.iter().any(|s| same(c, s)));
    // What others left in the ingress is theirs as long as we have nothing to show and never had.
    let ingress = wanted.ingress == seen.ingress || (wanted.ingress.is_empty() && !ever_shown);
    conditions
        && ingress
        && wanted.vip_annotation.as_deref().unwrap_or("") == seen.vip_annotation.as_deref().unwrap_or("")
}
