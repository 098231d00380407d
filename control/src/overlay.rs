//! Brings the health checks' verdict to the dataplane.
//!
//! The overlay is whole each time, so one place sends it: on each change, and again now and then, for a dataplane that
//! has started meanwhile. `source` tells the control processes of several clusters apart.

use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::Health;
use tokio::sync::watch;
use tracing::warn;

use crate::dataplane::{Dataplane, DataplaneError};
use crate::probe::HealthView;

/// A dataplane that came back knows nothing of health: every backend is up there until it is told.
const AGAIN: Duration = Duration::from_secs(5);

pub async fn push<D: Dataplane>(
    dataplane: Arc<D>,
    source: String,
    mut views: watch::Receiver<Arc<HealthView>>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut trouble: Option<DataplaneError> = None;
    while !*shutdown.borrow() {
        let view = views.borrow_and_update().clone();
        let pause = if view.checking {
            let answer = dataplane.put_health(&source, &Health { backends: view.backends.clone() }).await;
            let now = answer.err();
            if now != trouble {
                if let Some(error) = &now {
                    warn!("health is not told: {error}");
                }
                trouble = now;
            }
            if trouble.is_some() { Duration::from_secs(1) } else { AGAIN }
        } else {
            AGAIN
        };
        tokio::select! {
            // Where sending fails, every change would only fail again.
            changed = views.changed(), if trouble.is_none() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
            _ = shutdown.changed() => {}
        }
    }
}
