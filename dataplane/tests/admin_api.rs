//! The Unix-socket API as a person with curl sees it: real socket, real HTTP, an engine in memory.

#[path = "support/api_server.rs"]
mod api_server;
#[path = "support/memory_engine.rs"]
mod memory_engine;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api_server::ApiServer;
use penstock_configs::desired::{Desired, Protocol};
use penstock_configs::status::FlowStatus;
use serde_json::{Value, json};

fn raw(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("the API listens");
    // A refusal may come, and the connection close, before a large body was read.
    let _ = stream.write_all(request);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn call_text(server: &ApiServer, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = raw(&server.socket, &[head.as_bytes(), body].concat());
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

fn call(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let (status, text) = call_text(server, method, path, &bytes);
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    call(server, "GET", path, &Value::Null)
}

/// One service on `vip`, over two nodes.
fn snapshot(generation: u64, vip: &str) -> Value {
    json!({
        "generation": generation,
        "node": [
            {"name": "node-1", "addresses": ["10.0.0.11"]},
            {"name": "node-2", "addresses": ["10.0.0.12"]},
        ],
        "set": [{"name": "all", "backends": [{"node": "node-1"}, {"node": "node-2"}]}],
        "service": [
            {"name": "web", "vip": vip, "port": 80, "protocol": "tcp", "set": "all", "target_port": 30080},
        ],
    })
}

fn with_term(mut snapshot: Value, term: u64) -> Value {
    snapshot["term"] = json!(term);
    snapshot
}

#[test]
fn a_snapshot_is_published_acknowledged_and_read_back() {
    let server = ApiServer::start();
    let (status, answer) = call(&server, "PUT", "/v1/desired/prod", &snapshot(3, "203.0.113.1"));
    assert_eq!((status, answer), (200, json!({"generation": 3, "epoch": 1, "acknowledged": true})));
    let (_, back) = get(&server, "/v1/desired/prod");
    let desired = |value: Value| serde_json::from_value::<Desired>(value).expect("the schema");
    assert_eq!(desired(back), desired(snapshot(3, "203.0.113.1")));
    let (_, list) = get(&server, "/v1/desired");
    assert_eq!(list, json!([{"owner": "prod", "generation": 3, "nodes": 2, "sets": 1, "services": 1}]));
    let (_, status) = get(&server, "/v1/status");
    assert_eq!(status["owners"][0]["acknowledged"], 3);
    assert_eq!(status["services"][0]["backends"][1]["address"], "10.0.0.12");
    assert_eq!(server.engine.published().owners["prod"].generation, 3);
}

#[test]
fn the_status_tells_what_is_asked_for() {
    let server = ApiServer::start();
    let service = |at: u8| {
        json!({"name": format!("s{at}"), "vip": format!("203.0.113.{at}"), "port": 80, "protocol": "tcp",
            "backends": [{"address": "10.0.0.1", "port": 80}, {"address": format!("10.0.0.{}", at + 2), "port": 80}]})
    };
    let services: Vec<Value> = (0..3).map(service).collect();
    assert_eq!(call(&server, "PUT", "/v1/desired/a", &json!({"generation": 1, "service": services})).0, 200);
    let down = json!({"backends": [{"address": "10.0.0.4", "state": "down", "reason": "refused"}]});
    assert_eq!(call(&server, "PUT", "/v1/health", &down).0, 200);
    let told = |query: &str| {
        let (code, status) = get(&server, &format!("/v1/status?{query}"));
        assert_eq!((code, &status["services_total"]), (200, &json!(3)), "{status}");
        let services = status["services"].as_array().expect("a list").clone();
        let line = |s: &Value| {
            let listed = s["backends"].as_array().expect("a list").len();
            format!("{} {}/{} {listed}", s["name"].as_str().expect("text"), s["backends_up"], s["backends_total"])
        };
        services.iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(told(""), ["s0 2/2 2", "s1 2/2 2", "s2 1/2 2"]);
    assert_eq!(told("only=s1"), ["s1 2/2 2"]);
    assert_eq!(told("only=203.0.113.2"), ["s2 1/2 2"]);
    assert_eq!(told("services=1"), ["s2 1/2 2"], "the troubled first");
    assert_eq!(told("backends=5"), ["s0 2/2 0", "s1 2/2 0", "s2 1/2 1"]);
    assert_eq!(get(&server, "/v1/status?colour=blue").0, 400);
}

#[test]
fn a_repetition_is_welcome_and_publishes_nothing() {
    let server = ApiServer::start();
    for _ in 0..3 {
        let (status, answer) = call(&server, "PUT", "/v1/desired/prod", &snapshot(3, "203.0.113.1"));
        assert_eq!((status, &answer["epoch"]), (200, &json!(1)));
    }
    assert_eq!(server.engine.published().times, 1);
}

#[test]
fn stale_generations_and_terms_are_conflicts_that_change_nothing() {
    let server = ApiServer::start();
    let first = with_term(snapshot(7, "203.0.113.1"), 5);
    assert_eq!(call(&server, "PUT", "/v1/desired/prod", &first).0, 200);
    let refused = [
        (with_term(snapshot(6, "203.0.113.1"), 5), "generation 6"),
        (with_term(snapshot(7, "203.0.113.2"), 5), "other content"),
        (with_term(snapshot(99, "203.0.113.1"), 4), "term 4"),
        (snapshot(99, "203.0.113.1"), "carries no term"),
    ];
    for (document, why) in refused {
        let (status, answer) = call(&server, "PUT", "/v1/desired/prod", &document);
        let error = answer["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(status, 409, "{answer}");
        assert!(error.contains(why), "{error}");
        let (_, state) = get(&server, "/v1/status");
        assert_eq!(state["owners"][0]["refused"], error);
        assert_eq!(state["owners"][0]["generation"], 7);
    }
    let (_, answer) = call(&server, "PUT", "/v1/desired/prod", &with_term(snapshot(99, "203.0.113.1"), 4));
    assert!(answer["error"].as_str().is_some_and(|text| text.contains("term 4") && text.contains("term 5")));
    assert_eq!(call(&server, "DELETE", "/v1/desired/prod?term=4", &Value::Null).0, 409);
    assert_eq!(server.engine.published().times, 1);
    let next = with_term(snapshot(1, "203.0.113.2"), 6);
    assert_eq!(call(&server, "PUT", "/v1/desired/prod", &next).0, 200, "a new term counts anew");
    let (_, state) = get(&server, "/v1/status");
    assert_eq!(state["owners"][0]["refused"], Value::Null);
}

#[test]
fn wait_answers_when_the_workers_run_it_and_says_when_they_do_not() {
    let server = ApiServer::start();
    server.engine.stuck.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let (status, answer) = call(&server, "PUT", "/v1/desired/prod?wait=50", &snapshot(1, "203.0.113.1"));
    assert_eq!((status, &answer["acknowledged"]), (202, &json!(false)));
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert_eq!(get(&server, "/v1/status").1["owners"][0]["acknowledged"], 0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| call(&server, "PUT", "/v1/desired/prod?wait=20000", &snapshot(2, "203.0.113.1")));
        while server.engine.published().times < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(get(&server, "/v1/status").0, 200, "the API answers while a request waits");
        server.engine.free_workers();
        let (status, answer) = waiting.join().expect("no panic");
        assert_eq!((status, &answer["acknowledged"]), (200, &json!(true)));
    });
    assert_eq!(get(&server, "/v1/status").1["owners"][0]["acknowledged"], 2);
}

#[test]
fn what_the_engine_can_not_compile_is_refused_whole_with_its_faults() {
    let server = ApiServer::start();
    assert_eq!(call(&server, "PUT", "/v1/desired/prod", &snapshot(1, "203.0.113.1")).0, 200);
    let mut bad = snapshot(2, "203.0.113.1");
    bad["service"][0]["name"] = json!("uncompilable");
    let (status, answer) = call(&server, "PUT", "/v1/desired/prod", &bad);
    assert_eq!(status, 422);
    assert_eq!(
        answer["faults"],
        json!([{"path": "service[0]", "problem": "can not be compiled", "remedy": "give it another name"}])
    );
    assert_eq!(get(&server, "/v1/desired/prod").1["generation"], 1);
    assert!(get(&server, "/v1/status").1["owners"][0]["refused"].is_string());
    assert_eq!(call(&server, "PUT", "/v1/desired/new", &bad).0, 422);
    assert_eq!(get(&server, "/v1/desired/new").0, 404);
    assert!(get(&server, "/v1/status").1["owners"].to_string().contains("\"new\""), "a newcomer's refusal is seen");
}

#[test]
fn every_error_is_json_with_the_right_status() {
    let server = ApiServer::start();
    let cases: &[(&str, &str, &str, u16)] = &[
        ("PUT", "/v1/desired/prod", "{", 400),
        ("PUT", "/v1/desired/prod", "\u{0}", 400),
        ("PUT", "/v1/desired/..%2F..%2Fetc", "{}", 400),
        ("PUT", "/v1/desired/two%20words", "{}", 400),
        ("PUT", "/v1/desired/prod?wait=soon", "{}", 400),
        ("PUT", "/v1/desired/prod?weight=1", "{}", 400),
        ("PUT", "/v1/desired/file", "{}", 409),
        ("DELETE", "/v1/desired/file", "", 409),
        ("DELETE", "/v1/desired/nobody", "", 404),
        ("GET", "/v1/desired/nobody", "", 404),
        ("GET", "/v2/status", "", 404),
        ("GET", "/", "", 404),
        ("POST", "/v1/status", "", 405),
        ("PUT", "/v1/health", "[]", 422),
        ("GET", "/v1/flows?vip=nonsense", "", 400),
        ("GET", "/v1/flows?vpi=10.0.0.1", "", 400),
        ("PUT", "/v1/drain/nobody", "", 404),
        ("DELETE", "/v1/drain/nobody", "", 404),
    ];
    for &(method, path, body, expected) in cases {
        let (status, text) = call_text(&server, method, path, body.as_bytes());
        assert_eq!(status, expected, "{method} {path}: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: no JSON: {text}"));
        assert!(answer["error"].as_str().is_some_and(|error| error.len() > 10), "{method} {path}: {answer}");
    }
    assert_eq!(server.engine.published().times, 0);
}

#[test]
fn unknown_fields_are_refused_by_path() {
    let server = ApiServer::start();
    let mut bad = snapshot(1, "203.0.113.1");
    bad["service"][0]["vipp"] = json!("203.0.113.1");
    let (status, answer) = call(&server, "PUT", "/v1/desired/prod", &bad);
    assert_eq!(status, 422, "{answer}");
    assert!(answer["faults"][0]["path"].as_str().is_some_and(|path| path.contains("service[0]")), "{answer}");
    assert!(answer.to_string().contains("vipp"), "{answer}");
}

#[test]
fn a_vip_another_owner_holds_is_refused_to_the_newcomer_by_name() {
    let server = ApiServer::start();
    assert_eq!(call(&server, "PUT", "/v1/desired/b-first", &snapshot(1, "203.0.113.1")).0, 200);
    let (status, answer) = call(&server, "PUT", "/v1/desired/a-later", &snapshot(1, "203.0.113.1"));
    assert_eq!(status, 422);
    assert_eq!(answer["faults"][0]["path"], r#"service[0] "web".vip"#, "{answer}");
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("b-first")), "{answer}");
    assert_eq!(server.engine.published().owners.keys().collect::<Vec<_>>(), ["b-first"]);
    let (status, answer) = call(&server, "PUT", "/v1/desired/a-later", &snapshot(1, "203.0.113.2"));
    assert_eq!(status, 200, "{answer}");
    let (status, _) = call(&server, "PUT", "/v1/desired/b-first", &snapshot(2, "203.0.113.2"));
    assert_eq!(status, 422, "an old owner is a newcomer where the VIP is another's");
    assert_eq!(get(&server, "/v1/desired/b-first").1["generation"], 1);
    assert_eq!(call(&server, "DELETE", "/v1/desired/a-later", &Value::Null).0, 200);
    let (status, _) = call(&server, "PUT", "/v1/desired/b-first", &snapshot(2, "203.0.113.2"));
    assert_eq!(status, 200, "a VIP is free again once its owner lets go");
}

#[test]
fn a_body_beyond_the_limit_is_413() {
    let server = ApiServer::start();
    let head = "PUT /v1/desired/prod HTTP/1.1\r\nhost: x\r\ncontent-length: 70000000\r\nconnection: close\r\n\r\n";
    let answer = raw(&server.socket, head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("64 MB"), "{answer}");
}

#[test]
fn a_delete_forgets_on_disk_too() {
    let server = ApiServer::start();
    call(&server, "PUT", "/v1/desired/prod", &snapshot(3, "203.0.113.1"));
    assert!(server.state_dir().join("owners/prod.json").exists());
    assert_eq!(call(&server, "DELETE", "/v1/desired/prod", &Value::Null).0, 200);
    assert!(!server.state_dir().join("owners/prod.json").exists());
    assert!(server.engine.published().owners.is_empty());
    assert_eq!(get(&server, "/v1/desired/prod").0, 404);
    let (status, _) = call(&server, "PUT", "/v1/desired/prod", &snapshot(1, "203.0.113.1"));
    assert_eq!(status, 200, "after a delete, generations begin anew");
}

#[test]
fn a_restart_serves_what_was_accepted_last_in_one_publication() {
    let server = ApiServer::start();
    call(&server, "PUT", "/v1/desired/a", &snapshot(3, "203.0.113.1"));
    call(&server, "PUT", "/v1/desired/b", &with_term(snapshot(4, "203.0.113.2"), 9));
    call(&server, "PUT", "/v1/drain/10.0.0.11", &json!({"state": "down", "reason": "fan"}));
    call(&server, "PUT", "/v1/health", &json!({"backends": [{"address": "10.0.0.12", "state": "down"}]}));
    let server = server.restart();
    let published = server.engine.published();
    assert_eq!(published.times, 1, "no intermediate publication that would revoke flows");
    assert_eq!((published.owners["a"].generation, published.owners["b"].generation), (3, 4));
    assert_eq!(published.health.backends.len(), 1, "drains persist, health does not");
    assert_eq!(published.health.backends[0].reason, "fan");
    let stale = with_term(snapshot(99, "203.0.113.2"), 8);
    assert_eq!(call(&server, "PUT", "/v1/desired/b", &stale).0, 409, "fencing outlives the process");
}

#[test]
fn a_corrupt_file_is_set_aside_and_the_others_are_served() {
    let server = ApiServer::start();
    call(&server, "PUT", "/v1/desired/a", &snapshot(3, "203.0.113.1"));
    call(&server, "PUT", "/v1/desired/b", &snapshot(4, "203.0.113.2"));
    let directory = server.stop();
    let path = directory.path().join("state/owners/a.json");
    let text = fs::read_to_string(&path).expect("kept");
    fs::write(&path, text.replace("10.0.0.11", "10.0.0.99")).expect("tampered with");
    let server = ApiServer::in_directory(directory);
    assert_eq!(server.engine.published().owners.keys().collect::<Vec<_>>(), ["b"]);
    assert!(server.state_dir().join("owners/a.json.bad").exists());
    let (_, status) = get(&server, "/v1/status");
    assert!(status["notices"].to_string().contains("a.json.bad"), "{status}");
    assert_eq!(call(&server, "PUT", "/v1/desired/a", &snapshot(3, "203.0.113.1")).0, 200);
    let (_, status) = get(&server, "/v1/status");
    assert!(!status["notices"].to_string().contains("a.json.bad"), "it came again, whole: {status}");
}

#[test]
fn a_stored_snapshot_this_build_can_not_serve_does_not_stop_the_others() {
    let server = ApiServer::start();
    call(&server, "PUT", "/v1/desired/a", &snapshot(3, "203.0.113.1"));
    call(&server, "PUT", "/v1/desired/b", &snapshot(4, "203.0.113.2"));
    let mut other = with_term(snapshot(4, "203.0.113.2"), 9);
    other["service"][0]["name"] = json!("uncompilable");
    let desired = serde_json::from_value(other).expect("the schema");
    let directory = server.stop();
    let store = penstock_dataplane::admin::store::Store::new(&directory.path().join("state"));
    store.save_owner("b", &desired).expect("saved");
    let server = ApiServer::in_directory(directory);
    assert_eq!(server.engine.published().owners.keys().collect::<Vec<_>>(), ["a"]);
    let (_, status) = get(&server, "/v1/status");
    assert!(status["owners"][1]["refused"].as_str().is_some_and(|why| why.contains("can not be compiled")), "{status}");
    assert!(server.state_dir().join("owners/b.json").exists(), "kept for a build that can");
    // Until somebody says that it is over.
    assert_eq!(call(&server, "DELETE", "/v1/desired/b?term=8", &Value::Null).0, 409, "an old leader does not");
    assert_eq!(call(&server, "DELETE", "/v1/desired/b", &Value::Null).0, 200);
    assert!(!server.state_dir().join("owners/b.json").exists());
    assert_eq!(server.engine.published().owners.keys().collect::<Vec<_>>(), ["a"]);
    let (_, status) = get(&server, "/v1/status");
    assert_eq!(status["owners"].as_array().map(Vec::len), Some(1), "{status}");
    assert!(!status["notices"].to_string().contains("owner `b`"), "{status}");
    assert_eq!(call(&server, "DELETE", "/v1/desired/b", &Value::Null).0, 404, "it is gone");
    let of_term = |term| call(&server, "PUT", "/v1/desired/b", &with_term(snapshot(9, "203.0.113.2"), term)).0;
    assert_eq!((of_term(8), of_term(9)), (409, 200), "an old leader does not bring it back");
}

#[test]
fn a_disk_that_can_not_be_written_is_reported_and_serving_goes_on() {
    let server = ApiServer::start();
    fs::remove_dir_all(server.state_dir()).expect("removed");
    fs::write(server.state_dir(), "in the way").expect("written");
    let (status, answer) = call(&server, "PUT", "/v1/desired/prod", &snapshot(1, "203.0.113.1"));
    assert_eq!(status, 200);
    assert!(answer["warnings"][0].as_str().is_some_and(|text| text.contains("restart")), "{answer}");
    assert!(get(&server, "/v1/status").1["notices"].to_string().contains("prod.json"));
    assert_eq!(server.engine.published().owners.len(), 1);

    fs::remove_file(server.state_dir()).expect("the disk is mended");
    assert!(server.admin.has_unkept());
    server.admin.keep_again();
    assert!(!server.admin.has_unkept());
    assert!(server.state_dir().join("owners/prod.json").exists(), "written though nobody sent it again");
    assert!(!get(&server, "/v1/status").1["notices"].to_string().contains("prod.json"), "and no longer complained of");
}

#[test]
fn health_and_drains_combine_and_the_worse_wins() {
    let server = ApiServer::start();
    call(&server, "PUT", "/v1/desired/prod", &snapshot(1, "203.0.113.1"));
    let health = json!({"backends": [{"address": "10.0.0.12", "state": "down", "reason": "refused"}]});
    assert_eq!(call(&server, "PUT", "/v1/health", &health).0, 200);
    let published = server.engine.published().times;
    assert_eq!(call(&server, "PUT", "/v1/health", &health).0, 200);
    assert_eq!(server.engine.published().times, published, "the same health is not published again");
    assert_eq!(get(&server, "/v1/health"), (200, health));
    assert_eq!(call(&server, "PUT", "/v1/drain/node-1", &Value::Null).0, 200);
    let (_, drains) = get(&server, "/v1/drain");
    assert_eq!(drains, json!({"node-1": {"state": "draining", "addresses": ["10.0.0.11"]}}));
    let states = |server: &ApiServer| {
        let (_, status) = get(server, "/v1/status");
        let backends = status["services"][0]["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().map(|backend| backend["state"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(states(&server), ["draining", "down"]);
    let twice = json!({"backends": [
        {"address": "10.0.0.12", "state": "down"}, {"address": "10.0.0.12", "state": "active"},
    ]});
    assert_eq!(call(&server, "PUT", "/v1/health", &twice).0, 422);
    assert_eq!(states(&server), ["draining", "down"]);
    assert_eq!(call(&server, "PUT", "/v1/health", &json!({"backends": []})).0, 200);
    assert_eq!(states(&server), ["draining", "active"]);
    assert_eq!(call(&server, "DELETE", "/v1/drain/node-1", &Value::Null).0, 200);
    assert_eq!(states(&server), ["active", "active"]);
    assert_eq!(server.engine.published().health.backends, []);
}

#[test]
fn flows_are_filtered_by_the_engine_and_limited() {
    let server = ApiServer::start();
    let flow = |client: &str, service: &str| FlowStatus {
        worker: 0,
        protocol: Protocol::Tcp,
        client: client.parse().expect("an endpoint"),
        vip: "203.0.113.1:80".parse().expect("an endpoint"),
        snat: None,
        backend: "10.0.0.11:30080".parse().expect("an endpoint"),
        state: "established".into(),
        service: service.into(),
        idle_seconds: 0.5,
        expires_seconds: 7439.5,
    };
    *server.engine.flows.lock().expect("free") =
        vec![flow("198.51.100.1:1000", "web"), flow("198.51.100.1:1001", "api"), flow("[2001:db8::1]:1000", "web")];
    let count = |query: &str| get(&server, &format!("/v1/flows{query}")).1.as_array().map(Vec::len);
    assert_eq!(count(""), Some(3));
    assert_eq!(count("?client=198.51.100.1"), Some(2));
    assert_eq!(count("?client=198.51.100.1%3A1001"), Some(1));
    assert_eq!(count("?client=%5B2001:db8::1%5D:1000&service=web"), Some(1));
    assert_eq!(count("?service=web&limit=1"), Some(1));
    assert_eq!(count("?backend=10.0.0.11:30081"), Some(0));
}

#[test]
fn counters_and_reasons_are_served() {
    let server = ApiServer::start();
    let (_, counters) = get(&server, "/v1/counters");
    assert_eq!(counters["total"]["rx"], 2_000_001);
    assert_eq!(counters["workers"][1]["ledger"]["drops"]["no_service"], 9_000);
    let (_, reasons) = get(&server, "/v1/reasons");
    let all = penstock_dataplane::verdict::DropReason::COUNT;
    assert_eq!(reasons.as_array().map(Vec::len), Some(all));
    assert!(reasons.to_string().contains("snat_exhausted"));
}

#[test]
fn metrics_are_openmetrics_with_every_family() {
    let server = ApiServer::start();
    let mut desired = snapshot(3, "203.0.113.1");
    desired["service"][0]["name"] = json!("shop/web:http");
    call(&server, "PUT", "/v1/desired/prod", &desired);
    let (status, text) = call_text(&server, "GET", "/metrics", b"");
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    for series in [
        r#"penstock_packets_total{worker="0",direction="rx"} 1000000"#,
        r#"penstock_drops_total{worker="1",reason="no_service"} 9000"#,
        r#"penstock_drops_total{worker="1",reason="port_zero"} 0"#,
        r#"penstock_flows{worker="0",state="established"} 1234"#,
        r#"penstock_ledger_imbalance{worker="0"} 0"#,
        r#"penstock_owner_generation{owner="prod"} 3"#,
        r#"penstock_owner_acknowledged{owner="prod"} 3"#,
        r#"penstock_port_bytes_total{interface="eth0",direction="rx"} 1280000640"#,
        r#"penstock_socket_events_total{worker="1",interface="eth0",queue="1",event="rx_ring_full"} 3"#,
        r#"penstock_socket_events_total{worker="1",interface="eth0",queue="1",event="bad_descriptors"} 4"#,
        r#"penstock_socket_events_total{worker="1",interface="eth0",queue="1",event="kick_errors"} 5"#,
        "penstock_build_info{version=\"0.1.0\"",
        r#"penstock_service_backends_up{owner="prod",service="shop/web:http",vip="203.0.113.1",port="80",protocol="tcp"} 2"#,
        "penstock_backend_up{",
        r#"penstock_snat_ports{address="10.0.0.1",backend="10.0.0.11:31443",protocol="tcp",state="live"} 45000"#,
        r#"penstock_snat_ports{address="10.0.0.1",backend="10.0.0.11:31443",protocol="tcp",state="resting"} 9000"#,
        r#"penstock_snat_port_capacity{address="10.0.0.1",backend="10.0.0.11:31443",protocol="tcp"} 64512"#,
        r#"penstock_snat_occupancy_ratio{address="10.0.0.1",backend="10.0.0.11:31443",protocol="tcp"} 0.84"#,
        r#"penstock_snat_full_in_seconds{address="10.0.0.1",backend="10.0.0.11:31443",protocol="tcp"} 412"#,
    ] {
        assert!(text.contains(series), "missing {series} in\n{text}");
    }
}

#[test]
fn the_socket_is_private_and_held_by_one_living_process() {
    let server = ApiServer::start();
    let mode = fs::metadata(&server.socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let second =
        runtime.block_on(penstock_dataplane::admin::serve(server.admin.clone(), server.socket.clone(), async {}));
    assert!(second.is_err_and(|error| error.to_string().contains("another penstock-dataplane")));
    assert_eq!(get(&server, "/v1/desired").0, 200, "the first is unharmed");
    let socket = server.socket.clone();
    let directory = server.stop();
    assert!(!socket.exists(), "a clean stop leaves no socket");
    drop(UnixListener::bind(&socket).expect("a socket whose process is dead"));
    assert!(socket.exists());
    let server = ApiServer::in_directory(directory);
    assert_eq!(get(&server, "/v1/desired").0, 200, "a dead process's socket is taken over");
}

#[test]
fn a_large_cluster_is_accepted_quickly() {
    let server = ApiServer::start();
    let nodes: Vec<Value> = (0..500)
        .map(|i| json!({"name": format!("node-{i}"), "addresses": [format!("10.1.{}.{}", i / 250, i % 250 + 1)]}))
        .collect();
    let backends: Vec<Value> = (0..500).map(|i| json!({"node": format!("node-{i}")})).collect();
    let services: Vec<Value> = (0..5_000)
        .map(|i| {
            json!({
                "name": format!("ns-{}/service-{i}:http", i % 40), "vip": format!("10.2.{}.{}", i / 250, i % 250 + 1),
                "port": 80, "protocol": "tcp", "set": "all", "target_port": 30_000 + i % 2_700,
            })
        })
        .collect();
    let document = json!({
        "generation": 1, "node": nodes, "set": [{"name": "all", "backends": backends}], "service": services,
    });
    let bytes = document.to_string().into_bytes();
    let began = Instant::now();
    let (status, text) = call_text(&server, "PUT", "/v1/desired/large?wait=20000", &bytes);
    assert_eq!(status, 200, "{text}");
    // Half a second where nothing else goes on; minutes, did services and backends multiply.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?} for {} bytes", began.elapsed(), bytes.len());
}
