//! The real `penstock-control` through what befalls its credentials: a CA that is rotated, a token that expires, a
//! kubeconfig that cannot be read. The way to the API server is TLS, ended by a relay of the test's.

#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "../../dataplane/tests/support/api_server.rs"]
mod api_server;
#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "../../dataplane/tests/support/memory_engine.rs"]
mod memory_engine;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use penstock_control::crd;
use penstock_perf::apiserver::{ApiServer, Grant, Settings};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Long enough for a machine that builds something else meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

const CA_A: &str = include_str!("tls/ca-a.pem");
const CA_B: &str = include_str!("tls/ca-b.pem");
const A: (&str, &str) = (include_str!("tls/server-a.pem"), include_str!("tls/server-a.key"));
const B: (&str, &str) = (include_str!("tls/server-b.pem"), include_str!("tls/server-b.key"));

/// TLS in front of the API server, with a certificate that can be changed.
struct Relay {
    address: SocketAddr,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    /// Connections end when it changes, and the relay with it.
    epoch: watch::Sender<u64>,
}

fn acceptor((certificate, key): (&str, &str)) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

impl Relay {
    fn start(to: SocketAddr) -> Self {
        let acceptor = Arc::new(Mutex::new(acceptor(A)));
        let (epoch, ending) = watch::channel(0);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let current = acceptor.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { relay(TcpListener::from_std(listener).unwrap(), to, current, ending).await });
        });
        Self { address, acceptor, epoch }
    }

    fn present(&self, identity: (&str, &str)) {
        *self.acceptor.lock().unwrap() = acceptor(identity);
        self.epoch.send_modify(|epoch| *epoch += 1);
    }
}

async fn relay(
    listener: TcpListener,
    to: SocketAddr,
    current: Arc<Mutex<TlsAcceptor>>,
    mut ending: watch::Receiver<u64>,
) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            changed = ending.changed() => if changed.is_err() { return } else { continue },
        };
        let acceptor = current.lock().unwrap().clone();
        let mut dropped = ending.clone();
        tokio::spawn(async move {
            let talk = async {
                // A client that does not trust us goes away.
                let mut inside = acceptor.accept(stream).await.ok()?;
                let mut outside = TcpStream::connect(to).await.ok()?;
                tokio::io::copy_bidirectional(&mut inside, &mut outside).await.ok()
            };
            tokio::select! {
                _ = talk => {}
                _ = dropped.changed() => {}
            }
        });
    }
}

/// The binary, its files, and what it talks to.
struct World {
    process: Child,
    the_box: api_server::ApiServer,
    server: ApiServer,
    relay: Relay,
    files: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let settings = Settings { require_token: true, ..Settings::default() };
        let server = ApiServer::start(settings).unwrap();
        for definition in crd::definitions() {
            server.put(&serde_json::to_value(definition).unwrap()).unwrap();
        }
        let pool = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "VipPool", "metadata": {"name": "p"},
            "spec": {"addresses": ["203.0.113.1-203.0.113.20"]}});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "penstock-system"}});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
        [namespace, pool, node].iter().for_each(|object| drop(server.put(object).unwrap()));
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes/rbac.yaml");
        let grants = Grant::from_manifest(&std::fs::read_to_string(manifest).unwrap()).unwrap();
        server.add_user("first", "system:serviceaccount:penstock-system:penstock-control", Some(grants));

        let (the_box, relay) = (api_server::ApiServer::start(), Relay::start(server.address()));
        let files = tempfile::tempdir().unwrap();
        let config = format!(
            "version = 1\nbox = 'box-a'\ndataplane = '{}'\nsocket = '{}'\n[health]\nenabled = false\n[kubernetes]\n\
             kubeconfig = '{}'\n[kubernetes.timing]\ncredentials = 0.3\nretry = 0.1\nretry_max = 0.5\nwatch = 2\n",
            the_box.socket.display(),
            files.path().join("control.sock").display(),
            files.path().join("kubeconfig").display()
        );
        std::fs::write(files.path().join("control.toml"), config).unwrap();
        let log = std::fs::File::create(files.path().join("log")).unwrap();
        let path = files.path().to_owned();
        write_files(&path, relay.address, CA_A, &json!({"token": "first"}));
        let process = Command::new(env!("CARGO_BIN_EXE_penstock-control"))
            .arg("--config")
            .arg(path.join("control.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, the_box, server, relay, files }
    }

    fn trusts(&self, ca: &str, token: &str) {
        write_files(self.files.path(), self.relay.address, ca, &json!({"token": token}));
    }

    fn create(&self, name: &str) {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "penstock.dev/box", "selector": {"app": name},
                "ports": [{"port": 80}]}});
        self.server.put(&service).unwrap();
    }

    fn has_address(&self, name: &str) -> bool {
        let service = self.server.get("v1", "Service", &format!("default/{name}")).unwrap_or_default();
        service["status"]["loadBalancer"]["ingress"].is_array()
    }

    fn served(&self) -> usize {
        self.the_box.engine.published().owners.get("kubernetes").map_or(0, |desired| desired.services.len())
    }

    /// What the operator reads.
    fn status(&self) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .arg("--control-socket")
            .arg(self.files.path().join("control.sock"))
            .arg("why")
            .output()
            .unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    #[track_caller]
    fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is() {
            let log = || std::fs::read_to_string(self.files.path().join("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "waited in vain: {what}\n{}\n{}", self.status(), log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Each replaced whole, as an operator's tool does.
fn write_files(directory: &Path, server: SocketAddr, ca: &str, user: &Value) {
    let kubeconfig: Value = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{server}"),
            "certificate-authority": directory.join("ca.pem")}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    for (name, content) in [("ca.pem", ca.to_owned()), ("kubeconfig", kubeconfig.to_string())] {
        let beside = directory.join(format!("{name}.new"));
        std::fs::write(&beside, content).unwrap();
        std::fs::rename(beside, directory.join(name)).unwrap();
    }
}

#[test]
fn a_rotated_ca_an_expired_token_and_a_broken_kubeconfig_are_lived_through() {
    let mut world = World::start();
    world.create("first");
    world.until("an address", || world.has_address("first"));

    world.relay.present(B);
    world.until("distrust is said", || world.status().contains("certificate"));
    assert_eq!(world.served(), 1, "what is served goes on");
    world.create("second");
    world.trusts(CA_B, "first");
    world.until("the new CA is taken up", || world.has_address("second"));

    world.server.rotate_token("first", "next");
    world.server.drop_connections();
    world.until("the expired token is said", || world.status().contains("401"));
    world.create("third");
    assert_eq!(world.served(), 2);
    world.trusts(CA_B, "next");
    world.until("the new token is taken up", || world.has_address("third"));

    // Renewed before it is too late: nothing of the old ones fails yet.
    let leases = || world.server.versions("coordination.k8s.io/v1", "Lease", "penstock-system/penstock");
    let terms = || leases().last().map(|lease| lease["spec"]["leaseTransitions"].clone());
    let before = terms();
    world.trusts(&format!("{CA_B}\n"), "next");
    world.until("a new client", || terms() != before);

    // Through all of it the box kept its Lease: another box would have taken the addresses.
    assert!(leases().iter().all(|lease| lease["spec"]["holderIdentity"] == "box-a"), "{:#?}", leases());

    std::fs::write(world.files.path().join("kubeconfig"), "clusters: 7").unwrap();
    world.until("a kubeconfig that is none is said", || world.status().contains("kubeconfig"));
    // What works goes on working, in the same term.
    let before = terms();
    world.create("fourth");
    world.until("as before", || world.has_address("fourth"));
    assert_eq!(terms(), before);
    world.trusts(&format!("\n{CA_B}"), "next");
    world.until("mended", || terms() != before && !world.status().contains("kubeconfig"));

    // A client can be made with them, and the API server wants neither: what works goes on, in the same term.
    // (One file changes at a time: two that are replaced one after the other are a third state between them.)
    let used = format!("\n{CA_B}");
    for (ca, token, says) in [(CA_A, "next", "certificate"), (used.as_str(), "nobody's", "401")] {
        let before = terms();
        world.trusts(ca, token);
        world.until("why they are not used is said", || {
            let status = world.status();
            status.contains("the former stay") && status.contains(says)
        });
        assert_eq!(terms(), before);
        world.trusts(&used, "next");
        world.until("as it was: nothing to say", || !world.status().contains("the former stay"));
        assert_eq!(terms(), before);
    }

    // A token in a file that comes later than the kubeconfig which names it.
    let (before, token) = (terms(), world.files.path().join("token"));
    write_files(world.files.path(), world.relay.address, &used, &json!({"tokenFile": token}));
    world.until("the missing file is said", || world.status().contains("the former stay"));
    std::fs::write(&token, "next").unwrap();
    world.until("it is used", || terms() != before && !world.status().contains("the former stay"));
    assert!(leases().iter().all(|lease| lease["spec"]["holderIdentity"] == "box-a"), "{:#?}", leases());

    // SIGTERM: a clean end, and the dataplane keeps what it has.
    Command::new("kill").arg(world.process.id().to_string()).status().unwrap();
    assert!(world.process.wait().unwrap().success());
    assert_eq!(world.served(), 4);
}
