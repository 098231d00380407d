//! Collects the `VipBox` of a box that is gone for good. The leader does, of its own owner tag.
//!
//! A box says that it lives once a minute at least. One that has said nothing for `timing.box_gone` *by the leader's
//! clock* (no time of the box's is compared with any of ours) loses its object, and only in the state in which it was
//! seen: a word in between wins. A box that was only cut off makes its object anew.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use tokio::sync::watch;
use tracing::{debug, info};

use super::feed::api_error;
use crate::crd::VipBox;
use crate::leader::Role;

/// Objects as they were seen last, and since when they have been so.
#[derive(Debug, Default)]
struct Seen(HashMap<String, (String, Instant)>);

impl Seen {
    /// The ones that have not changed for so long, by name and version.
    fn silent(&mut self, now: Instant, boxes: &[(String, String)], age: Duration) -> Vec<(String, String)> {
        self.0.retain(|name, _| boxes.iter().any(|(there, _)| there == name));
        let mut silent = Vec::new();
        for (name, version) in boxes {
            let seen = self.0.entry(name.clone()).or_insert_with(|| (version.clone(), now));
            if seen.0 != *version {
                *seen = (version.clone(), now);
            }
            if now.duration_since(seen.1) >= age {
                silent.push((name.clone(), version.clone()));
            }
        }
        silent
    }
}

pub(super) async fn collect(client: kube::Client, owner: String, age: Duration, mut roles: watch::Receiver<Role>) {
    let api: Api<VipBox> = Api::all(client);
    let mut seen = Seen::default();
    loop {
        if !roles.borrow_and_update().leader {
            // Who led before has looked; whoever leads now begins with eyes of its own.
            seen = Seen::default();
            if roles.changed().await.is_err() {
                return;
            }
            continue;
        }
        if let Err(error) = round(&api, &owner, &mut seen, age).await {
            debug!("VipBoxes: {}", api_error(&error));
        }
        tokio::select! {
            () = tokio::time::sleep(age / 6) => {}
            changed = roles.changed() => if changed.is_err() { return },
        }
    }
}

async fn round(api: &Api<VipBox>, owner: &str, seen: &mut Seen, age: Duration) -> Result<(), kube::Error> {
    let boxes = api.list(&ListParams::default()).await?.items.into_iter().filter(|b| b.spec.owner == owner);
    let boxes: Vec<(String, String)> =
        boxes.filter_map(|b| Some((b.metadata.name?, b.metadata.resource_version?))).collect();
    for (name, version) in seen.silent(Instant::now(), &boxes, age) {
        let preconditions = Preconditions { resource_version: Some(version), uid: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&name, &params).await {
            Ok(_) => info!("VipBox {name}: silent for {} s, removed", age.as_secs()),
            // It has just spoken, or somebody else was faster.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_silent_for_the_whole_age_is_gone() {
        let (start, age) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| start + Duration::from_secs(seconds);
        let boxes = |a: &str, b: &str| [("a", a), ("b", b)].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let mut seen = Seen::default();
        assert!(seen.silent(at(0), &boxes("1", "2"), age).is_empty(), "however old it is: that was before our time");
        assert!(seen.silent(at(59), &boxes("1", "3"), age).is_empty());
        assert_eq!(seen.silent(at(61), &boxes("1", "3"), age), [("a".to_owned(), "1".to_owned())]);
        assert!(seen.silent(at(62), &boxes("1", "3")[1..], age).is_empty());
        assert!(seen.silent(at(63), &boxes("1", "3"), age).is_empty(), "another one of the name begins anew");
    }
}
