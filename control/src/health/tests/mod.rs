//! The board with a fake clock, the probes against real listeners, and the loop with both.

mod board;
mod probe;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::BackendState::{Active, Down};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::run;
use crate::config::HealthConfig;
use crate::probe::{self as seam, Check, ProbeTarget, Timing};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const INTERVAL: Duration = Duration::from_secs(2);

fn target(id: &str, last: u8, group: &str) -> ProbeTarget {
    ProbeTarget {
        id: id.into(),
        address: Ipv4Addr::new(10, 0, 0, last).into(),
        check: Check::Tcp { port: 80 },
        timing: Timing { interval: INTERVAL, timeout: Duration::from_secs(1), rise: 2, fall: 3 },
        covers: vec![None],
        group: group.into(),
        unproven: true,
    }
}

fn config() -> HealthConfig {
    HealthConfig { budget: 10_000, panic_threshold: 0.0, ..HealthConfig::default() }
}

async fn until(views: &mut watch::Receiver<Arc<seam::HealthView>>, wanted: impl Fn(&seam::HealthView) -> bool) {
    let waiting = async {
        while !wanted(&views.borrow_and_update().clone()) {
            views.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the view did not come");
}

#[tokio::test]
async fn the_loop_follows_a_server_that_goes_and_comes_back() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let place = listener.local_addr().unwrap();
    let mut one = target("a", 1, "g");
    one.address = LOCAL;
    one.check = Check::Tcp { port: place.port() };
    one.timing.interval = Duration::from_millis(20);
    let (health, checker) = seam::seam();
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(run(checker, config(), stopping));
    let mut views = health.view.clone();
    until(&mut views, |v| v.checking && v.targets.is_empty()).await;
    health.targets.send_replace(seam::Targets::all(vec![one.clone()]));
    until(&mut views, |v| v.checking && v.targets.get("a").is_some_and(|t| t.settled && t.state == Active)).await;
    drop(listener);
    until(&mut views, |v| v.backends.iter().any(|b| b.state == Down && b.reason.contains("refused"))).await;
    let listener = TcpListener::bind(place).await.unwrap();
    until(&mut views, |v| v.backends.is_empty() && v.targets["a"].state == Active).await;
    drop(listener);
    health.targets.send_replace(seam::Targets::all(Vec::new()));
    until(&mut views, |v| v.targets.is_empty()).await;
    stop.send_replace(true);
    running.await.unwrap();
}

#[tokio::test]
async fn switched_off_it_says_that_there_is_nothing() {
    let (health, checker) = seam::seam();
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(run(checker, HealthConfig { enabled: false, ..config() }, stopping));
    health.targets.send_replace(seam::Targets::all(vec![target("a", 1, "g")]));
    stop.send_replace(true);
    running.await.unwrap();
    let view = health.view.borrow().clone();
    assert!(!view.checking && view.whole && view.backends.is_empty());
}
