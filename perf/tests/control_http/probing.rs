//! Health, from a node's listener to the dataplane's overlay and the Service's status.
//!
//! Nodes need addresses that are no loopback addresses and have listeners: these tests run again in a network namespace
//! of their own, where the whole of 10.77.0.0/24 is local. That needs root; they are skipped without.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use penstock_configs::desired::BackendState::{Active, Down, Draining};
use penstock_perf::apiserver::{ApiError, Fault};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::rig::{Control, V1, World, a_while, node, service, slice, until};

const INSIDE: &str = "PENSTOCK_TEST_INSIDE";
const FAST: &str = "[health]\ninterval = 0.1\ntimeout = 0.5\nrise = 2\nfall = 2\npanic_threshold = 0.3\n";

/// Runs the test again inside, unless this is inside already.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !penstock_perf::privilege::require(test) {
        return false;
    }
    let script = "ip link set lo up && ip addr add 10.77.0.1/24 dev lo && exec \"$0\" \"$@\"";
    let me = std::env::current_exe().unwrap();
    let output = std::process::Command::new("unshare")
        .args(["-n", "sh", "-c", script])
        .arg(me)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare(1)");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// kube-proxy's healthz of a node, with a status that can be set.
struct Healthz {
    status: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

impl Healthz {
    async fn at(address: IpAddr, port: u16) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(address, port)).await.unwrap();
        let status = Arc::new(AtomicU16::new(200));
        let said = status.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0u8; 1024];
                let _ = stream.read(&mut buffer).await;
                let answer = format!("HTTP/1.1 {} X\r\nContent-Length: 0\r\n\r\n", said.load(Ordering::SeqCst));
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { status, task }
    }

    fn say(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    async fn die(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 77, 0, last])
}

/// Three nodes with a healthz each.
async fn cluster() -> (World, Vec<Healthz>) {
    let world = World::empty();
    world.pool("p", &["203.0.113.1-203.0.113.9"]);
    let mut healthz = Vec::new();
    for last in 11..=13 {
        world.put(&node(&format!("n{last}"), &address(last).to_string()));
        healthz.push(Healthz::at(address(last), 10_256).await);
    }
    (world, healthz)
}

#[tokio::test]
async fn one_probe_per_node_serves_all_services_503_drains_refused_is_down() {
    if !is_inside("probing::one_probe_per_node_serves_all_services_503_drains_refused_is_down") {
        return;
    }
    let (world, mut healthz) = cluster().await;
    let control = Control::start_with(&world, FAST).await;
    for name in ["one", "two"] {
        world.put(&service(name));
        until("Serving", "True Serving".to_owned(), || world.condition(name, "Serving")).await;
    }
    assert_eq!(world.overlay(), []);
    healthz[0].say(503);
    until("drains", Draining, || world.health_of(address(11), None)).await;
    healthz.remove(1).die().await;
    until("down", Down, || world.health_of(address(12), None)).await;
    let reason = world.overlay().into_iter().find(|b| b.address == address(12)).unwrap().reason;
    assert!(reason.contains("refused"), "{reason}");
    healthz[0].say(200);
    until("back", Active, || world.health_of(address(11), None)).await;
    // Nobody is left: more likely the box is cut off than that all are dead at once.
    for one in healthz {
        one.die().await;
    }
    until("nobody is believed", 0, || world.overlay().iter().filter(|b| b.state != Active).count()).await;
    let told = world.overlay().into_iter().find(|b| b.address == address(11)).unwrap().reason;
    assert!(told.contains("used all the same"), "{told}");
    assert_eq!(world.condition("one", "Serving"), "True Serving");
    control.stop().await;
}

#[tokio::test]
async fn what_was_found_outlives_a_restart_of_control_and_not_the_checks() {
    if !is_inside("probing::what_was_found_outlives_a_restart_of_control_and_not_the_checks") {
        return;
    }
    let (world, mut healthz) = cluster().await;
    let control = Control::start_with(&world, FAST).await;
    world.put(&service("web"));
    until("Serving", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
    healthz.remove(1).die().await;
    until("down", Down, || world.health_of(address(12), None)).await;
    control.kill().await;
    // Nobody can say what is to be checked.
    world.server.fault(Fault::on("list", "nodes").refuse(ApiError::internal()));
    world.server.forget_requests();
    let published = world.publications();
    let control = Control::start_with(&world, FAST).await;
    until("asked again", true, || world.server.count("list", "nodes") > 3).await;
    a_while().await;
    assert_eq!((world.health_of(address(12), None), world.publications()), (Down, published));
    world.server.clear_faults();
    until("judged", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
    a_while().await;
    assert_eq!(world.health_of(address(12), None), Down);
    let back = Healthz::at(address(12), 10_256).await;
    until("up again", Active, || world.health_of(address(12), None)).await;
    back.die().await;
    until("down again", Down, || world.health_of(address(12), None)).await;
    control.stop().await;
    let control = Control::start(&world).await;
    until("nobody checks", Active, || world.health_of(address(12), None)).await;
    control.stop().await;
}

#[tokio::test]
async fn the_status_waits_for_a_healthy_backend_or_the_grace_period() {
    if !is_inside("probing::the_status_waits_for_a_healthy_backend_or_the_grace_period") {
        return;
    }
    let (world, healthz) = cluster().await;
    for one in healthz {
        one.die().await;
    }
    let control = Control::start_with(&world, FAST).await;
    world.put(&service("web"));
    until("the snapshot", 1, || world.programmed("web").len()).await;
    a_while().await;
    assert_eq!(world.ingress("web").len(), 0);
    until("after the grace period", 1, || world.ingress("web").len()).await;
    until("Degraded", "True NoHealthyBackend".to_owned(), || world.condition("web", "Degraded")).await;
    let back = Healthz::at(address(11), 10_256).await;
    until("Serving", "True Serving".to_owned(), || world.condition("web", "Serving")).await;
    assert_eq!(world.condition("web", "Degraded"), "False AsExpected");
    // From now on there is one: the next Service does not wait.
    world.put(&service("next"));
    until("at once", 1, || world.ingress("next").len()).await;
    drop(back);
    control.stop().await;
}

#[tokio::test]
async fn local_is_probed_at_its_health_check_node_port() {
    if !is_inside("probing::local_is_probed_at_its_health_check_node_port") {
        return;
    }
    let (world, _healthz) = cluster().await;
    let control = Control::start_with(&world, FAST).await;
    world.put(&slice("web", &[("n11", true, true, false), ("n12", true, true, false)]));
    let mut web = service("web");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    let web = world.put(&web);
    let port = u16::try_from(web["spec"]["healthCheckNodePort"].as_u64().unwrap()).unwrap();
    let node_port = u16::try_from(web["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap();
    let one = Healthz::at(address(11), port).await;
    let two = Healthz::at(address(12), port).await;
    until("Serving", true, || world.condition("web", "Serving").starts_with("True")).await;
    until("both", (Active, Active), || {
        (world.health_of(address(11), Some(node_port)), world.health_of(address(12), Some(node_port)))
    })
    .await;
    two.say(503);
    until("drains", Draining, || world.health_of(address(12), Some(node_port))).await;
    assert_eq!(world.health_of(address(12), None), Active, "the node itself is well");
    two.say(200);
    until("back", Active, || world.health_of(address(12), Some(node_port))).await;
    drop(one);
    world.server.delete(V1, "Service", "default/web").unwrap();
    until("deletion", serde_json::Value::Null, || world.get("web")).await;
    control.stop().await;
}
