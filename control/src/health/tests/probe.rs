//! Outcomes from what real listeners answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::LOCAL;
use crate::health::board::Kind::{self, Bad, Drain, Good};
use crate::health::probe::probe;
use crate::probe::Check;

const SECOND: Duration = Duration::from_secs(1);

async fn ask(check: Check) -> (Kind, String) {
    let outcome = probe(LOCAL, &check, SECOND, None).await.0;
    (outcome.kind, outcome.reason)
}

fn http(port: u16) -> Check {
    Check::Http {
        port,
        tls: false,
        path: "/healthz".into(),
        host: None,
        expect: 200..=299,
        drain_on_503: true,
        keeps: false,
    }
}

/// Answers every connection with the same bytes and hands over what was asked.
async fn server(answer: &'static str) -> (u16, watch::Receiver<String>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, seen) = watch::channel(String::new());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0u8; 1024];
            let length = stream.read(&mut buffer).await.unwrap_or(0);
            asked.send_replace(String::from_utf8_lossy(&buffer[..length]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, seen)
}

/// A port nobody has: bound, looked at, let go.
async fn nobody() -> u16 {
    TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn tcp_is_up_where_it_is_accepted_and_down_where_refused() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(ask(Check::Tcp { port }).await.0, Good);
    let (kind, reason) = ask(Check::Tcp { port: nobody().await }).await;
    assert_eq!(kind, Bad);
    assert!(reason.ends_with("connection refused"), "{reason}");
}

#[tokio::test]
async fn http_is_judged_by_its_status() {
    let (port, seen) = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(ask(http(port)).await.0, Good);
    let asked = seen.borrow().to_lowercase();
    assert!(asked.starts_with("get /healthz http/1.1\r\n") && asked.contains("host: 127.0.0.1:"), "{asked}");
    let (port, _) = server("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(ask(http(port)).await, (Drain, format!("503 from port {port}/healthz")));
    let mut strict = http(port);
    if let Check::Http { drain_on_503, .. } = &mut strict {
        *drain_on_503 = false;
    }
    assert_eq!(ask(strict).await.0, Bad);
    let (port, _) = server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(ask(http(port)).await.0, Bad);
    let (port, _) = server("SSH-2.0-x\r\n").await;
    assert_eq!(ask(http(port)).await.0, Bad);
    assert_eq!(ask(http(nobody().await)).await.0, Bad);
}

/// Answers so many requests on each connection; how many connections there were.
async fn keeping(per_connection: usize, status: watch::Receiver<u16>) -> (u16, watch::Receiver<u32>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.send_modify(|count| *count += 1);
            let status = status.clone();
            tokio::spawn(async move {
                let mut buffer = [0u8; 1024];
                for _ in 0..per_connection {
                    if !matches!(stream.read(&mut buffer).await, Ok(length) if length > 0) {
                        return;
                    }
                    let answer = format!("HTTP/1.1 {} X\r\nContent-Length: 5\r\n\r\nhello", *status.borrow());
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (port, counted)
}

#[tokio::test]
async fn a_kept_connection_serves_until_it_ends_and_is_made_anew_without_a_word() {
    let (answers, status) = watch::channel(200);
    let (port, connections) = keeping(3, status).await;
    let mut check = http(port);
    if let Check::Http { keeps, .. } = &mut check {
        *keeps = true;
    }
    let mut kept = None;
    for round in 1..=7 {
        if round == 6 {
            answers.send_replace(503);
        }
        let (outcome, left) = probe(LOCAL, &check, SECOND, kept).await;
        assert_eq!(outcome.kind, if round < 6 { Good } else { Drain }, "round {round}: {}", outcome.reason);
        kept = left;
    }
    assert_eq!(*connections.borrow(), 3, "three answers on each");
    // Whoever is gone with the connection is found at once.
    let (port, _) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    if let Check::Http { port: asked, .. } = &mut check {
        *asked = port;
    }
    let (outcome, kept) = probe(LOCAL, &check, SECOND, None).await;
    assert_eq!(outcome.kind, Good);
    if let Check::Http { port: asked, .. } = &mut check {
        *asked = nobody().await;
    }
    let (outcome, kept) = probe(LOCAL, &check, SECOND, kept).await;
    assert_eq!(outcome.kind, Bad);
    assert!(kept.is_none() && outcome.reason.ends_with("connection refused"), "{}", outcome.reason);
}

/// A certificate of its own making, as nodes have; made for this test, worth nothing elsewhere.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBhzCCAS2gAwIBAgIUUM11C2jMj1lhrVL/Mnogk2Jis1cwCgYIKoZIzj0EAwIwGDEWMBQGA1UEAwwNcGVuc3RvY2sgdGVz
dDAgFw0yNjExMjExMzM0MzdaGA8yMTI2MTAyODEzMzQzN1owGDEWMBQGA1UEAwwNcGVuc3RvY2sgdGVzdDBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABJhOjuqVFUygq0Row2fwAEUb1fyrVnhuxS2/wriryVE6HU6PypUSecyBTq4SHflh14ZvXmsjSBwO
aM8ydtU+7COjUzBRMB0GA1UdDgQWBBQZPSDLPxP6ya5BVGdeB+LgM2twETAfBgNVHSMEGDAWgBQZPSDLPxP6ya5BVGdeB+Lg
M2twETAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCs0sTWOHUFooWLzKBst/ZIRcuQV0uyn2BH0cm56Zhx
yAIgQqQNPq8YZOoKo2SHxtPe/g2xE8+k4/s28s1sIeSjzHo=
-----END CERTIFICATE-----
";
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgwUWnBG323RfF1Ft8wgurzuu+UIIBmbW0ceTr1zLEDJ6hRANC
AASYTo7qlRVMoKtEaMNn8ABFG9X8q1Z4bsUtv8K4q8lROh1Oj8qVEnnMgU6uEh35YdeGb15rI0gcDmjPMnbVPuwj
-----END PRIVATE KEY-----
";

async fn tls_server(answer: &'static str) -> u16 {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0u8; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn https_takes_any_certificate_but_needs_tls() {
    let secure = |port: u16, host: Option<&str>| Check::Http {
        port,
        tls: true,
        path: "/".into(),
        host: host.map(Into::into),
        expect: 200..=299,
        drain_on_503: false,
        keeps: false,
    };
    let port = tls_server("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(ask(secure(port, None)).await, (Good, format!("204 from port {port}/")));
    assert_eq!(ask(secure(port, Some("example.com"))).await.0, Good);
    let (plain, _) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let (kind, reason) = ask(secure(plain, None)).await;
    assert_eq!(kind, Bad);
    assert!(reason.contains("TLS"), "{reason}");
}

#[tokio::test]
async fn silence_is_bad_after_the_timeout() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let outcome = probe(LOCAL, &http(port), Duration::from_millis(50), None).await.0;
    assert_eq!(outcome.kind, Bad);
    assert!(outcome.reason.contains("no answer"), "{}", outcome.reason);
}

#[tokio::test]
async fn udp_is_down_on_port_unreachable_and_else_by_its_answer() {
    let socket = UdpSocket::bind((LOCAL, 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0u8; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if &buffer[..length] != b"quiet" {
                let _ = socket.send_to(b"pong 1", from).await;
            }
        }
    });
    let check = |port: u16, send: &str, expect: Option<&str>, silence_is_up: bool| Check::Udp {
        port,
        send: send.into(),
        expect: expect.map(Into::into),
        silence_is_up,
    };
    assert_eq!(ask(check(port, "ping", Some("pong"), false)).await.0, Good);
    assert_eq!(ask(check(port, "ping", Some("gnop"), true)).await.0, Bad);
    let short = Duration::from_millis(50);
    assert_eq!(probe(LOCAL, &check(port, "quiet", None, true), short, None).await.0.kind, Good);
    assert_eq!(probe(LOCAL, &check(port, "quiet", None, false), short, None).await.0.kind, Bad);
    let free = UdpSocket::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port();
    let (kind, reason) = ask(check(free, "ping", None, true)).await;
    assert_eq!(kind, Bad);
    assert!(reason.contains("unreachable"), "{reason}");
}
