//! `penstock why`, and what `penstock status` says of the cluster: the real binary against control's own API.

#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "../../dataplane/tests/support/api_server.rs"]
mod api_server;
#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "../../dataplane/tests/support/memory_engine.rs"]
mod memory_engine;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use penstock_control::metrics::Metrics;
use penstock_control::serve;
use penstock_control::sync::{Query, ServiceLine, Status};
use penstock_control::why::{NodeWhy, Why};
use tokio::sync::{mpsc, watch};

/// Control's API with answers of the test's, until dropped.
struct Control {
    socket: PathBuf,
    _directory: tempfile::TempDir,
    /// Its end is the server's.
    _shutdown: watch::Sender<bool>,
}

impl Control {
    fn serving(status: Option<Status>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let (shutdown, ending) = watch::channel(false);
        let (asks, mut queries) = mpsc::channel(4);
        let queries_of = status.is_some().then_some(asks);
        let router = serve::router(serve::Api { metrics: Arc::new(Metrics::new()), queries: queries_of });
        let at = socket.clone();
        let answering = async move {
            while let Some(query) = queries.recv().await {
                match query {
                    Query::Status { reply } => drop(reply.send(status.clone().unwrap_or_default())),
                    Query::Why { key, reply } => drop(reply.send(answer(&key.to_string()))),
                }
            }
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move { tokio::join!(serve::on_socket(&at, router, ending), answering) })
        });
        for _ in 0..500 {
            if socket.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { socket, _directory: directory, _shutdown: shutdown }
    }
}

fn answer(key: &str) -> Why {
    Why {
        sentence: format!("{key} is served in mode nat."),
        vips: vec!["203.0.113.7".parse().unwrap()],
        stage: "programmed".into(),
        nodes: vec![NodeWhy { node: "n2".into(), reason: "it is labelled exclude".into() }],
        notices: vec!["watching nodes has failed for 7 s: 500".into()],
    }
}

fn cluster() -> Status {
    let line = |service: &str, stage: &str, exposed: bool, vip: Option<&str>| ServiceLine {
        service: service.into(),
        stage: stage.into(),
        exposed,
        vips: vip.map(|v| v.parse().unwrap()).into_iter().collect(),
    };
    Status {
        owner: "kubernetes".into(),
        leader: true,
        holder: "box-a".into(),
        term: Some(3),
        generation: 12,
        acknowledged: true,
        services: vec![
            line("shop/web", "programmed", false, Some("203.0.113.7")),
            line("shop/old", "programmed", true, Some("203.0.113.8")),
            line("shop/dns", "needs-address", false, None),
            line("test/dns", "programmed", false, Some("203.0.113.9")),
        ],
        notices: vec!["the API server has been unreachable for 9 s (watch: refused)".into()],
    }
}

/// The exit code, and what it printed.
fn penstock(control: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_penstock"))
        .arg("--control-socket")
        .arg(control)
        .args(arguments)
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_service_is_answered_in_a_sentence_with_the_nodes_that_are_out() {
    let control = Control::serving(Some(cluster()));
    for named in ["shop/web", "web", "service/web"] {
        let (code, text) = penstock(&control.socket, &["why", named]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with("shop/web is served in mode nat.\n"), "{text}");
        for part in ["203.0.113.7", "n2", "it is labelled exclude", "watching nodes"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let (_, json) = penstock(&control.socket, &["why", "shop/web", "--json"]);
    assert_eq!(serde_json::from_str::<Why>(&json).unwrap(), answer("shop/web"));
    // Nobody's list has it: asked of the namespace kubectl would mean.
    assert!(penstock(&control.socket, &["why", "elsewhere"]).1.starts_with("default/elsewhere"));
}

#[test]
fn without_a_name_all_are_listed_and_exposed_ones_show_their_address() {
    let control = Control::serving(Some(cluster()));
    let (code, text) = penstock(&control.socket, &["why"]);
    assert_eq!(code, Some(0), "{text}");
    let old = text.lines().find(|line| line.starts_with("shop/old")).unwrap();
    assert!(old.contains("exposed") && old.contains("203.0.113.8"), "{text}");
    let dns = text.lines().find(|line| line.starts_with("shop/dns")).unwrap();
    assert!(dns.contains("needs address"), "{text}");
    assert!(text.contains("unreachable for 9 s"), "{text}");
}

#[test]
fn what_names_no_service_or_several_is_the_askers_fault() {
    let control = Control::serving(Some(cluster()));
    for (named, said) in [("dns", "shop/dns, test/dns"), ("a/b/c", "NAMESPACE/SERVICE"), ("/x", "NAMESPACE/SERVICE")] {
        let (code, text) = penstock(&control.socket, &["why", named]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn a_control_that_cannot_answer_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("control.sock");
    let (code, text) = penstock(&absent, &["why", "shop/web"]);
    assert_eq!(code, Some(1));
    for part in ["does not run", "systemctl start penstock-control", "last snapshot", "control.sock"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let dead = directory.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    assert!(penstock(&dead, &["why"]).1.contains("journalctl -u penstock-control"));
    let without = Control::serving(None);
    let (code, text) = penstock(&without.socket, &["why", "shop/web"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("[kubernetes]"), "{text}");
    // Somebody else's socket.
    let dataplane = api_server::ApiServer::start();
    assert!(penstock(&dataplane.socket, &["why", "shop/web"]).1.contains("is it penstock-control's socket"));
}

#[test]
fn the_status_says_how_the_cluster_is_followed() {
    let control = Control::serving(Some(cluster()));
    let dataplane = api_server::ApiServer::start();
    let socket = dataplane.socket.display().to_string();
    let (code, text) = penstock(&control.socket, &["status", "--socket", &socket]);
    assert_eq!(code, Some(0), "{text}");
    for part in ["this box leads, term 3", "3 of 4 Services", "shop/old (NodePort, exposed) 203.0.113.8", "unreachable"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A box without a cluster has no need of control.
    let absent = control.socket.with_file_name("none.sock");
    assert!(!penstock(&absent, &["status", "--socket", &socket]).1.contains("penstock-control"));
    // One that was led by it has.
    let snapshot = control.socket.with_file_name("led.json");
    std::fs::write(&snapshot, r#"{"term": 4, "generation": 1}"#).unwrap();
    penstock(&absent, &["apply", &snapshot.display().to_string(), "--owner", "prod", "--socket", &socket]);
    let (_, text) = penstock(&absent, &["status", "--socket", &socket]);
    assert!(text.contains("penstock-control does not run"), "{text}");
}
