//! Nodes, the box, and several of them.

use super::*;

#[test]
fn what_the_dataplane_refuses_by_name_does_not_keep_the_rest_waiting() {
    let mut sim = Sim::new();
    sim.acks = false;
    sim.put(&service("good"));
    sim.put(&service("poor"));
    sim.settle();
    let parcel = sim.waiting.clone().unwrap();
    let position = parcel.desired.services.iter().position(|s| s.name.starts_with("default/poor:")).unwrap();
    let fault = Fault {
        path: format!("service[{position}] \"default/poor:80\".vip"),
        problem: "is served for owner `file` already".into(),
    };
    let refused = Progress {
        trouble: Some("refused".into()),
        refused: Some((parcel.desired.clone(), Arc::new(vec![fault]))),
        ..Progress::default()
    };
    // Meanwhile something changes: where the fault was there is another Service now.
    sim.put(&service("early"));
    sim.settle();
    assert!(sim.controller.version > parcel.version);
    sim.controller.on_progress(refused);
    sim.acks = true;
    sim.settle();
    assert_eq!((sim.ingress("early").len(), sim.ingress("good").len()), (1, 1));
    assert_eq!(sim.condition("poor", "Serving").1, "RefusedByDataplane");
    // The cause may be gone later.
    sim.after(61);
    assert_eq!(sim.ingress("poor").len(), 1);
}

#[test]
fn what_was_mended_before_the_refusal_came_is_not_left_out() {
    for translated in [true, false] {
        let mut sim = Sim::new();
        sim.acks = false;
        for name in ["deleted", "mended"] {
            sim.put(&service(name));
        }
        sim.settle();
        let parcel = sim.waiting.clone().unwrap();
        let fault = |path: &str| Fault { path: path.into(), problem: "cannot be".into() };
        let faults = vec![fault("service[0].vip"), fault("service[1].port"), fault("node[0].addresses")];
        let refused = Progress { refused: Some((parcel.desired.clone(), Arc::new(faults))), ..Progress::default() };
        sim.edit("mended", |s| s["spec"]["ports"][0]["port"] = json!(81));
        sim.delete("deleted");
        let node = json!({"metadata": {"name": "a", "resourceVersion": "9"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "10.0.0.9"}]}});
        let config = sim.controller.kubernetes.clone();
        sim.feed(index::on_node(Event::Apply(serde_json::from_value(node).unwrap()), &config));
        if translated {
            sim.settle();
        }
        sim.controller.on_progress(refused);
        sim.settle();
        assert_eq!(sim.controller.quarantine, Default::default(), "translated before: {translated}");
        assert_eq!(sim.waiting.as_ref().unwrap().desired.nodes.len(), 2);
        sim.acks = true;
        sim.settle();
        assert_eq!(sim.ingress("mended").len(), 1);
    }
}

/// What is on its way is refused by a fault that names nobody.
fn refuse_all(sim: &mut Sim, path: &str) {
    let content = sim.waiting.take().unwrap().desired;
    let fault = Fault { path: path.into(), problem: "3 services, and limits.services is 2".into() };
    let refused = Some((content, Arc::new(vec![fault])));
    sim.controller.on_progress(Progress {
        refused,
        trouble: Some("refused".into()),
        ..sim.controller.progress.clone()
    });
    sim.settle();
}

fn sent(sim: &Sim) -> Vec<&str> {
    sim.waiting.iter().flat_map(|parcel| &parcel.desired.services).map(|service| service.name.as_str()).collect()
}

#[test]
fn where_the_box_has_no_room_who_is_new_waits_and_nobody_else() {
    let mut sim = Sim::new();
    for name in ["one", "two"] {
        sim.put(&service(name));
    }
    sim.settle();
    sim.acks = false;
    sim.put(&service("much"));
    sim.settle();
    sim.delete("one");
    sim.settle();
    refuse_all(&mut sim, "service");
    assert_eq!(sent(&sim), ["default/two:80"]);
    sim.acks = true;
    sim.settle();
    assert_eq!(sim.condition("much", "Serving").1, "RefusedByDataplane");
    assert!(sim.why("much").contains("limits.services"), "{}", sim.why("much"));
    assert_eq!(sim.services.len(), 2, "and who was deleted is gone");
    sim.after(61);
    assert_eq!(sim.ingress("much").len(), 1, "room was made");
}

#[test]
fn where_nobody_is_new_who_grew_most_is_left_out() {
    let mut sim = Sim::new();
    for name in ["one", "two"] {
        sim.put(&service(name));
    }
    sim.settle();
    sim.acks = false;
    let grow = |sim: &mut Sim, name: &str, ports: u16| {
        let ports: Vec<Value> =
            (0..ports).map(|n| json!({"name": format!("p{n}"), "port": 80 + n, "nodePort": 30_000 + n})).collect();
        sim.edit(name, |s| s["spec"]["ports"] = json!(ports));
    };
    grow(&mut sim, "one", 2);
    grow(&mut sim, "two", 5);
    sim.settle();
    refuse_all(&mut sim, "service");
    assert_eq!(sent(&sim), ["default/one:p0", "default/one:p1"]);
}

#[test]
fn a_box_that_holds_nothing_yet_is_no_measure_of_who_is_new() {
    let mut sim = Sim::new();
    sim.acks = false;
    sim.put(&service("one"));
    sim.settle();
    for path in ["service", "node", ""] {
        let parcel = sim.waiting.clone();
        refuse_all(&mut sim, path);
        assert_eq!(sim.controller.quarantine, Default::default());
        sim.waiting = parcel;
    }
}

#[test]
fn nodes_that_the_box_has_no_room_for_are_left_out() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.acks = false;
    let node = json!({"metadata": {"name": "c", "resourceVersion": "9"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "10.0.0.9"}]}});
    let config = sim.controller.kubernetes.clone();
    sim.feed(index::on_node(Event::Apply(serde_json::from_value(node).unwrap()), &config));
    sim.settle();
    assert_eq!(sim.waiting.as_ref().unwrap().desired.nodes.len(), 3);
    refuse_all(&mut sim, "node");
    assert_eq!(sim.waiting.as_ref().unwrap().desired.nodes.len(), 2);
    assert_eq!(sent(&sim), ["default/web:80"]);
}

#[test]
fn who_is_left_out_is_tried_again_whoever_else_is_refused_meanwhile() {
    let mut sim = Sim::new();
    sim.acks = false;
    sim.put(&service("a"));
    sim.put(&service("b"));
    sim.settle();
    let refuse = |sim: &mut Sim, name: &str| {
        let content = sim.waiting.as_ref().unwrap().desired.clone();
        let position = content.services.iter().position(|s| s.name.starts_with(name)).unwrap();
        let fault = Fault { path: format!("service[{position}].vip"), problem: "cannot be".into() };
        let refused = Some((content, Arc::new(vec![fault])));
        sim.controller.on_progress(Progress { refused, ..Progress::default() });
        sim.settle();
    };
    refuse(&mut sim, "default/a:");
    sim.after(50);
    refuse(&mut sim, "default/b:");
    sim.acks = true;
    sim.after(11);
    assert_eq!((sim.ingress("a").len(), sim.ingress("b").len()), (1, 1));
}

#[test]
fn a_node_that_is_the_box_itself_is_left_out_when_the_dataplane_says_so() {
    let mut sim = Sim::new();
    sim.acks = false;
    sim.put(&service("web"));
    sim.settle();
    let parcel = sim.waiting.clone().unwrap();
    let fault =
        Fault { path: "node[0] \"a\".addresses[0]".into(), problem: "10.0.0.97 is the box's own address".into() };
    let refused = Progress { refused: Some((parcel.desired.clone(), Arc::new(vec![fault]))), ..Progress::default() };
    sim.controller.on_progress(refused.clone());
    sim.settle();
    let names = |sim: &Sim| -> Vec<String> {
        sim.waiting.as_ref().unwrap().desired.nodes.iter().map(|n| n.name.clone()).collect()
    };
    assert_eq!(names(&sim), ["b"]);
    let why = sim.controller.why(&ServiceKey::new("default", "web"), sim.now);
    assert!(why.nodes[0].reason.contains("own address"), "{why:?}");
    // Tried again later; the refusal that is known is no new one, whatever else is told.
    sim.after(61);
    sim.controller.on_progress(Progress { trouble: Some("busy".into()), ..refused });
    sim.settle();
    assert_eq!(names(&sim), ["a", "b"]);
}

#[test]
fn a_node_that_is_labelled_out_drains_for_a_while_and_one_that_always_was_does_not() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    let label = |sim: &mut Sim, name: &str, version: u32, labels: Value| {
        let node = json!({"metadata": {"name": name, "resourceVersion": version.to_string(), "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{}", name.as_bytes()[0])}]}});
        let config = sim.controller.kubernetes.clone();
        sim.feed(index::on_node(Event::Apply(serde_json::from_value(node).unwrap()), &config));
    };
    let out = || json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""});
    let states = |sim: &Sim| -> Vec<(String, BackendState)> {
        let sets = &sim.controller.translation.desired.sets;
        sets[0].backends.iter().map(|b| (b.node.clone().unwrap(), b.state)).collect()
    };
    let (active, draining) = (BackendState::Active, BackendState::Draining);
    label(&mut sim, "control-plane", 5, out());
    sim.settle();
    assert_eq!(states(&sim), [("a".into(), active), ("b".into(), active)]);
    label(&mut sim, "b", 6, out());
    sim.settle();
    assert_eq!(states(&sim), [("a".into(), active), ("b".into(), draining)]);
    label(&mut sim, "b", 7, json!({}));
    sim.settle();
    assert_eq!(states(&sim), [("a".into(), active), ("b".into(), active)], "back in service");
    label(&mut sim, "b", 8, out());
    sim.settle();
    let why = sim.controller.why(&ServiceKey::new("default", "web"), sim.now);
    assert!(why.nodes.iter().any(|n| n.node == "b" && n.reason.contains("keeps its flows")), "{why:?}");
    // Whatever else changes of it meanwhile.
    label(&mut sim, "b", 9, json!({"node.kubernetes.io/exclude-from-external-load-balancers": "", "x": "y"}));
    sim.after(299);
    assert_eq!(states(&sim)[1].1, draining);
    sim.after(2);
    assert_eq!(states(&sim), [("a".into(), active)]);
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
}

#[test]
fn no_node_is_a_warning_and_the_vip_stays() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    for name in ["a", "b"] {
        sim.feed(index::Update::Node(index::Change::Gone(name.into(), 0)));
    }
    sim.settle();
    assert_eq!(sim.ingress("web"), ["203.0.113.1"]);
    assert_eq!(sim.condition("web", "Degraded").1, "NoBackends");
    assert_eq!(sim.events().iter().filter(|r| **r == "UnAvailableLoadBalancer").count(), 1);
}

#[test]
fn a_node_flap_makes_one_snapshot_for_all_services() {
    let mut sim = Sim::with("[[kubernetes.pool]]\nname = 'p'\naddresses = ['198.18.0.0/16']");
    for i in 0..200 {
        sim.put(&service(&format!("s{i}")));
    }
    sim.settle();
    sim.snapshots = 0;
    sim.log.clear();
    sim.feed(index::Update::Node(index::Change::Gone("a".into(), 0)));
    sim.settle();
    assert_eq!((sim.snapshots, sim.log.len()), (1, 2), "no Service is written for it: {:?}", sim.log);
}

#[test]
fn a_box_that_does_not_lead_serves_the_same_and_writes_nothing() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    sim.controller.on_role(Role { leader: false, announces: false, term: Some(3), ..Role::alone("box-b") });
    sim.log.clear();
    sim.settle();
    assert_eq!(sim.log, ["send 1", "ack 1"], "announced by nobody now, and with the term");
    sim.put(&service("later"));
    sim.delete("web");
    sim.settle();
    sim.after(600);
    assert_eq!(sim.log[2..], ["send 0", "ack 0"]);
    assert!(sim.why("later").contains("by the leader"));
}

#[test]
fn nothing_is_sent_before_everything_was_listed() {
    let config = Arc::new(ControlConfig::parse(Path::new("t"), &format!("version = 1\n[kubernetes]\n{POOL}")).unwrap());
    let mut controller = Controller::new(config, Role::alone("box-a"));
    let kubernetes = controller.kubernetes.clone();
    for update in [index::on_service(Event::Init, &kubernetes), index::on_service(Event::InitDone, &kubernetes)] {
        controller.on_input(Input::Update(Box::new(update)), Instant::now());
    }
    let turn = controller.turn(Instant::now());
    assert!(turn.parcel.is_none() && turn.jobs.is_empty());
    assert!(controller.notices(Instant::now())[0].contains("nodes"));
}

#[test]
fn nothing_is_sent_before_the_first_election() {
    let mut sim = Sim::new();
    sim.controller = Controller::new(sim.controller.config.clone(), Role::default());
    sim.list();
    assert!(sim.turn().parcel.is_none());
}

/// The dataplane's snapshot tells a new process who was leaving; one that never served stays out.
#[test]
fn a_restart_of_control_does_not_cut_a_drain_short() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    let config = sim.controller.kubernetes.clone();
    let label = json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""});
    for (name, last) in [("b", 98), ("c", 99)] {
        let node = json!({"metadata": {"name": name, "resourceVersion": "5000", "labels": label},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{last}")}]}});
        sim.feed(index::on_node(Event::Apply(serde_json::from_value(node).unwrap()), &config));
    }
    let members = |sim: &Sim| -> Vec<(String, BackendState)> {
        let sets = &sim.controller.translation.desired.sets;
        sets[0].backends.iter().map(|b| (b.node.clone().unwrap(), b.state)).collect()
    };
    let both = [("a".to_owned(), BackendState::Active), ("b".to_owned(), BackendState::Draining)];
    sim.settle();
    assert_eq!(members(&sim), both);

    // A new process sees the labels, and not since when.
    sim.restart();
    let left = Arc::new(["b".to_owned(), "gone".to_owned()].into());
    sim.controller.on_progress(Progress { recalled: Some(left), ..Progress::default() });
    let before = sim.snapshots;
    let sent = sim.turn();
    assert_eq!((sim.snapshots, sim.waiting.as_ref().map(|p| p.recalls)), (before + 1, Some(true)));
    assert!(sent.notes.is_empty());
    sim.settle();
    assert_eq!(members(&sim), both);
    sim.after(299);
    assert_eq!(members(&sim), both);
    sim.after(2);
    assert_eq!(members(&sim), both[..1]);
}

#[test]
fn a_box_that_does_not_lead_remembers_no_names() {
    let mut sim = Sim::new();
    sim.settle();
    sim.controller.on_role(Role { leader: false, announces: false, term: Some(3), ..Role::alone("box-b") });
    for i in 0..20 {
        let name = format!("pr-{i}");
        sim.put(&service(&name));
        sim.settle();
        let key = ServiceKey::new("default", &name);
        sim.services.remove(&key);
        sim.version += 1;
        sim.feed(index::Update::Service(index::Change::Gone(key, sim.version)));
        sim.settle();
    }
    assert!(sim.controller.touched.is_empty(), "{:?}", sim.controller.touched);
}

#[test]
fn why_says_of_a_panic_only_where_it_is() {
    let mut sim = Sim::new();
    sim.put(&service("web"));
    sim.settle();
    let target = sim.controller.translation.targets[0].clone();
    let down = TargetState { state: BackendState::Down, settled: true, reason: "refused".into() };
    for (group, held) in [(target.group.clone(), true), ("nodes/IPv6".into(), false), ("local/x/y/IPv4".into(), false)]
    {
        let targets = [(target.id.clone(), down.clone())].into();
        let view = HealthView { checking: true, targets, panicking: vec![group.clone()], ..HealthView::default() };
        sim.controller.on_health(Arc::new(view), sim.now);
        let why = sim.controller.why(&ServiceKey::new("default", "web"), sim.now);
        assert_eq!(why.nodes[0].reason.contains("stays in service all the same"), held, "{group}: {why:?}");
    }
}

#[test]
fn why_says_of_a_node_what_its_nearest_check_says() {
    let mut sim = Sim::new();
    let mut local = service("local");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["spec"]["healthCheckNodePort"] = json!(32_000);
    sim.put(&local);
    sim.put(&service("web"));
    let slice = json!({"metadata": {"namespace": "default", "name": "x", "labels": {"kubernetes.io/service-name": "local"}},
        "addressType": "IPv4", "endpoints": [
            {"addresses": ["10.1.0.1"], "nodeName": "a", "conditions": {"ready": true}},
            {"addresses": ["10.1.0.2"], "nodeName": "b", "conditions": {"ready": true}}]});
    sim.feed(index::on_slice(Event::Apply(serde_json::from_value(slice).unwrap())));
    sim.settle();
    let state = |id: &str| match id.starts_with("node/") || id.contains("/b/") {
        true => TargetState { state: BackendState::Down, settled: true, reason: "refused".into() },
        false => TargetState { state: BackendState::Active, settled: true, reason: String::new() },
    };
    let targets = sim.controller.translation.targets.iter().map(|t| (t.id.clone(), state(&t.id))).collect();
    sim.controller.on_health(Arc::new(HealthView { checking: true, targets, ..HealthView::default() }), sim.now);
    let out = |name: &str| -> Vec<String> {
        let why = sim.controller.why(&ServiceKey::new("default", name), sim.now);
        why.nodes.into_iter().map(|node| node.node).collect()
    };
    assert_eq!((out("web"), out("local")), (vec!["a".into(), "b".into()], vec!["b".to_owned()]));
}
