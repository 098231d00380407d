//! The Index itself: what counts as a change, and at what size.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_resync_that_changes_nothing_is_silent_and_one_that_lacks_something_is_not() {
    let mut world = serving(&web());
    let config = world.kubernetes();
    let resync = |world: &mut World, services: &[Value]| {
        let mut changed = world.index.apply(on_service(Event::Init, &config));
        for value in services {
            let object = world.object(value.clone());
            changed = changed.and(world.index.apply(on_service(Event::InitApply(object), &config)));
        }
        changed.and(world.index.apply(on_service(Event::InitDone, &config)))
    };
    assert_eq!(resync(&mut world, &[web()]), Changed::Desired, "the first list is news");
    assert_eq!(resync(&mut world, &[web()]), Changed::Nothing);
    assert_eq!(resync(&mut world, &[]), Changed::Desired);
    assert!(world.index.services.is_empty());
}

#[test]
fn an_older_state_told_late_does_not_undo_what_we_wrote() {
    let mut world = serving(&web());
    let config = world.kubernetes();
    let mut late = changed(web(), |s| s["metadata"]["finalizers"] = json!([]));
    late["metadata"]["resourceVersion"] = json!("7");
    let object: Service = serde_json::from_value(late).unwrap();
    assert_eq!(world.index.apply(on_service(Event::Apply(object.clone()), &config)), Changed::Nothing);
    assert_eq!(world.index.apply(on_service(Event::Delete(object), &config)), Changed::Nothing);
    assert_eq!(world.plan().stage, Stage::Programmed);
}

#[test]
fn services_that_concern_nobody_are_not_kept() {
    let mut world = World::new("");
    for kind in ["ClusterIP", "NodePort"] {
        world.service(&json!({"metadata": {"namespace": "default", "name": "x", "uid": "u"}, "spec": {"type": kind}}));
    }
    assert!(world.index.services.is_empty());
}

fn world_of(services: usize, nodes: usize) -> World {
    let mut world = World::new("");
    for i in 0..nodes {
        world.node(&format!("node-{i}"), json!({}), json!({}), &[&format!("10.1.{}.{}", i / 250, i % 250 + 1)]);
    }
    for i in 0..services {
        let name: Arc<str> = format!("s{i}").into();
        let mut service = web();
        service["metadata"]["name"] = json!(&*name);
        service["metadata"]["uid"] = json!(format!("u{i}"));
        world.service(&service);
        let address = format!("198.18.{}.{}", i / 250, i % 250);
        world.record(&address, &[(&name, &format!("u{i}"))]);
    }
    world
}

#[test]
fn ten_times_the_services_and_nodes_take_ten_times_as_long_to_translate() {
    let (few, many) = (world_of(500, 50), world_of(5000, 500));
    let translation = many.translate();
    assert_eq!((translation.desired.services.len(), translation.desired.sets.len()), (5000, 1));
    assert_eq!(translation.targets.len(), 500);
    let time = |world: &World| {
        let start = Instant::now();
        world.translate();
        start.elapsed()
    };
    // The quickest of a few tries: on a machine that does something else meanwhile both may take longer.
    let (mut small, mut large) = (Duration::MAX, Duration::MAX);
    for _ in 0..10 {
        (small, large) = (small.min(time(&few)), large.min(time(&many)));
        // Where each looks at every other, a hundred times.
        if large < 30 * small {
            println!("{small:?} and {large:?}");
            return;
        }
    }
    panic!("{small:?} and {large:?}");
}

/// An update of what is dirty gives what a whole translation gives, over a random history.
#[test]
fn an_updated_translation_is_the_whole_one() {
    let mut world = World::with_nodes("", &["a", "b", "c"]);
    let mut kept = Translation::default();
    let mut most = 0;
    let mut dice = 7u64;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    for step in 0..400 {
        let name = format!("s{}", roll(4));
        let key = ServiceKey::new("default", &name);
        let mut dirty = Dirty::default();
        match roll(5) {
            0 | 1 => {
                let (port, local) = (80 + roll(2), roll(2) == 0);
                let service = changed(web(), |s| {
                    s["metadata"]["name"] = json!(name);
                    s["metadata"]["uid"] = json!(format!("uid-{name}"));
                    s["metadata"]["annotations"] = json!({"penstock.dev/share-key": "k"});
                    s["spec"]["ports"][0]["port"] = json!(port);
                    s["spec"]["externalTrafficPolicy"] = json!(if local { "Local" } else { "Cluster" });
                });
                world.service(&service);
            }
            2 => drop(world.index.apply(Update::Service(Change::Gone(key.clone(), 0)))),
            3 => {
                let others: Vec<(String, String)> =
                    (0..roll(4)).map(|n| (format!("s{n}"), format!("uid-s{n}"))).collect();
                let claims: Vec<(&str, &str)> = others.iter().map(|(n, u)| (n.as_str(), u.as_str())).collect();
                let before: Vec<ServiceKey> =
                    world.index.records.values().flat_map(super::super::kinds::RecordInfo::services).collect();
                world.record_with("203.0.113.1", &claims, json!({"shareKey": "k"}));
                dirty.add(
                    before
                        .into_iter()
                        .chain(world.index.records.values().flat_map(super::super::kinds::RecordInfo::services)),
                );
            }
            _ => {
                let node = ["a", "b", "c"][usize::try_from(roll(3)).unwrap()];
                world.slice(&name, json!([{"addresses": ["10.1.0.1"], "nodeName": node}]));
            }
        }
        dirty.add(sharers(&world.index, &key));
        let (config, kubernetes, quarantine) = (&world.config, world.kubernetes(), Quarantine::default());
        let view =
            View { index: &world.index, config, kubernetes: &kubernetes, announces: true, quarantine: &quarantine };
        kept.update(&view, &dirty);
        assert_eq!(kept.same_as(&view), Ok(()), "step {step}");
        most = most.max(kept.desired.services.len());
    }
    assert!(most > 1, "a history in which Services share an address");
}

#[test]
fn the_names_of_nodes_that_are_gone_are_forgotten() {
    let mut world = World::new("");
    for node in 0..1000 {
        // One slice whose endpoint moves from node to node.
        world.slice("web", json!([{"addresses": ["10.1.0.1"], "nodeName": format!("node-{node}")}]));
    }
    assert!(world.index.names.len() < 100, "{}", world.index.names.len());
}
