//! The API server is unwell; what was served goes on being served.

use std::time::{Duration, Instant};

use penstock_perf::apiserver::{ApiError, Fault};

use crate::rig::{Control, TOKEN, World, a_while, node, service, until};

async fn still_serves(world: &World, name: &str) {
    world.put(&service(name));
    until(name, 1, || world.ingress(name).len()).await;
}

#[tokio::test]
async fn an_expired_token_stops_writes_and_nothing_else() {
    let world = World::new();
    let control = Control::start(&world).await;
    still_serves(&world, "before").await;
    world.server.rotate_token(TOKEN, "new");
    world.server.drop_connections();
    world.server.forget_requests();
    let unauthorized = || world.server.requests_that(|r| r.code == 401);
    let began = Instant::now();
    until("refused", true, || unauthorized() > 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.programmed("before").len(), 1);
    let (asked, seconds) = (unauthorized(), began.elapsed().as_secs_f64());
    assert!((asked as f64) < 150.0 * seconds, "{asked} requests in {seconds:.1} s");
    until("the metric", true, || control.metrics.text().contains("k8s_client_config_stale_bool 1")).await;
    // A new token of the same user: the kubelet has renewed the file, here the old one is good again.
    world.server.rotate_token("new", TOKEN);
    still_serves(&world, "after").await;
    control.stop().await;
}

#[tokio::test]
async fn throttling_is_waited_out() {
    let world = World::new();
    world.server.fault(Fault::on("patch", "services/status").times(4).refuse(ApiError::too_many_requests(1)));
    world.server.fault(Fault::on("list", "nodes").times(2).refuse(ApiError::too_many_requests(1)));
    let control = Control::start(&world).await;
    still_serves(&world, "web").await;
    assert!(world.server.faults_are_used_up());
    control.stop().await;
}

#[tokio::test]
async fn errors_slowness_and_a_410_of_the_list_are_gone_over() {
    let world = World::new();
    for fault in [
        Fault::on("list", "services").times(2).gone(),
        Fault::on("list", "endpointslices").times(2).refuse(ApiError::internal()),
        Fault::on("watch", "services").times(2).refuse(ApiError::internal()),
        Fault::on("list", "vipallocations").times(1).delay(Duration::from_millis(500)),
        Fault::on("update", "leases").times(2).conflict(),
    ] {
        world.server.fault(fault);
    }
    let control = Control::start(&world).await;
    still_serves(&world, "web").await;
    control.stop().await;
}

#[tokio::test]
async fn a_watch_that_says_nothing_any_more_is_replaced() {
    let world = World::new();
    let control = Control::start(&world).await;
    still_serves(&world, "before").await;
    // Those there are stay silent for ever; new ones talk.
    world.server.stall_watches(true);
    world.server.fault(Fault::on("watch", "pods").hang());
    world.put(&service("after"));
    a_while().await;
    assert_eq!(world.ingress("after").len(), 0);
    tokio::time::sleep(Duration::from_secs(7)).await;
    world.server.forget_requests();
    world.server.stall_watches(false);
    until("after", 1, || world.ingress("after").len()).await;
    control.stop().await;
}

#[tokio::test]
async fn everything_missed_meanwhile_is_found() {
    let world = World::new();
    let control = Control::start(&world).await;
    still_serves(&world, "goes").await;
    still_serves(&world, "stays").await;
    world.server.stop();
    world.delete("goes");
    world.put(&service("comes"));
    world.put(&node("c", "10.0.0.3"));
    world.server.compact();
    world.server.resume().unwrap();
    until("comes", 1, || world.ingress("comes").len()).await;
    until("goes", serde_json::Value::Null, || world.get("goes")).await;
    until("the node", 3, || world.nodes_of("stays").len()).await;
    control.stop().await;
}

#[tokio::test]
async fn at_rest_nothing_is_asked_but_watches_and_the_lease() {
    let world = World::new();
    let control = Control::start(&world).await;
    still_serves(&world, "web").await;
    until("rest", "False Done".to_owned(), || world.condition("web", "Provisioning")).await;
    // Pools' statuses are written once a second at most: the last one may still be due, on a busy machine others.
    let mut others = Vec::new();
    for _ in 0..5 {
        world.server.forget_requests();
        let before = world.publications();
        tokio::time::sleep(Duration::from_secs(2)).await;
        others = world.server.requests();
        others.retain(|r| r.asked.verb != "watch" && r.asked.resource != "leases");
        if others.is_empty() && world.publications() == before {
            return control.stop().await;
        }
    }
    panic!("no two seconds at rest: {others:?}");
}
