//! One probe: asks once and says what came back. Reasons name no times and no counters: the same trouble reads the
//! same each time, so that nobody is told of it twice.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::rustls::pki_types::ServerName;

use super::board::{Kind, Outcome};
use super::tls;
use crate::probe::Check;

/// kube-proxy says some hundred bytes.
const BODY: usize = 64 * 1024;
/// What an access log on the node shows.
const AGENT: &str = concat!("penstock-health/", env!("CARGO_PKG_VERSION"));

impl Outcome {
    fn good(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Good, reason: reason.into() }
    }

    fn bad(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Bad, reason: reason.into() }
    }
}

/// To the server of a check that keeps it. Between two probes nobody looks after it: that it has ended meanwhile is
/// found by the next one.
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: Pin<Box<http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>>>,
    ended: bool,
}

/// `timeout` is for the whole probe: connecting, asking, and the answer. With what is left of the connection.
pub async fn probe(
    address: IpAddr,
    check: &Check,
    timeout: Duration,
    kept: Option<Connection>,
) -> (Outcome, Option<Connection>) {
    let mut connection = kept;
    let result = match check {
        Check::Tcp { port } => tokio::time::timeout(timeout, tcp(SocketAddr::new(address, *port))).await,
        Check::Http { keeps: true, .. } => {
            tokio::time::timeout(timeout, http_again(address, check, &mut connection)).await
        }
        Check::Http { .. } => tokio::time::timeout(timeout, http(address, check)).await,
        Check::Udp { port, send, expect, silence_is_up } => {
            let answer =
                tokio::time::timeout(timeout, udp(SocketAddr::new(address, *port), send, expect.as_deref())).await;
            if answer.is_err() && *silence_is_up {
                return (Outcome::good(format!("nothing refused on udp port {port}")), None);
            }
            answer
        }
    };
    match result {
        Ok(Ok(outcome)) => (outcome, connection),
        Ok(Err(reason)) => (Outcome::bad(reason), None),
        Err(_) => (Outcome::bad(format!("no answer from {} in time", place(check))), None),
    }
}

fn place(check: &Check) -> String {
    match check {
        Check::Tcp { port } => format!("tcp port {port}"),
        Check::Http { port, path, .. } => format!("port {port}{path}"),
        Check::Udp { port, .. } => format!("udp port {port}"),
    }
}

fn words(what: &str, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => format!("{what}: connection refused"),
        ErrorKind::ConnectionReset => format!("{what}: connection reset"),
        ErrorKind::HostUnreachable => format!("{what}: host unreachable"),
        ErrorKind::NetworkUnreachable => format!("{what}: network unreachable"),
        ErrorKind::TimedOut => format!("{what}: no answer in time"),
        _ => format!("{what}: {error}"),
    }
}

async fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(to).await.map_err(|e| words(&format!("tcp port {}", to.port()), &e))
}

async fn tcp(to: SocketAddr) -> Result<Outcome, String> {
    connect(to).await?;
    Ok(Outcome::good(format!("tcp port {} accepts", to.port())))
}

/// Over the connection kept, or over a new one where there is none or it has ended.
async fn http_again(address: IpAddr, check: &Check, kept: &mut Option<Connection>) -> Result<Outcome, String> {
    let Check::Http { port, path, host, expect, drain_on_503, .. } = check else { return Err("no HTTP check".into()) };
    let to = SocketAddr::new(address, *port);
    // Taken, and put back only after a whole answer: one that is left in the middle of an exchange is of no use.
    if let Some(mut connection) = kept.take()
        && let Ok(status) = connection.ask(to, path, host.as_deref()).await
    {
        *kept = Some(connection).filter(|connection| !connection.ended);
        return Ok(judge(status, &place(check), expect, *drain_on_503));
    }
    let mut connection = Connection::open(to).await?;
    let status = connection.ask(to, path, host.as_deref()).await?;
    *kept = Some(connection).filter(|connection| !connection.ended);
    Ok(judge(status, &place(check), expect, *drain_on_503))
}

impl Connection {
    async fn open(to: SocketAddr) -> Result<Self, String> {
        let (sender, driver) = http1::handshake(TokioIo::new(connect(to).await?)).await.map_err(|e| http_words(&e))?;
        Ok(Self { sender, driver: Box::pin(driver), ended: false })
    }

    async fn ask(&mut self, to: SocketAddr, path: &str, host: Option<&str>) -> Result<StatusCode, String> {
        let request = request(to, path, host, false)?;
        let Self { sender, driver, ended } = self;
        let exchange = async {
            sender.ready().await?;
            let mut answer = sender.send_request(request).await?;
            // To its end, or the next answer would begin in the middle of this one; more than a little is not read.
            let mut left = BODY;
            while let Some(frame) = answer.body_mut().frame().await {
                left = left.saturating_sub(frame?.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    break;
                }
            }
            Ok::<_, hyper::Error>(answer.status())
        };
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            status = &mut exchange => status.map_err(|e| http_words(&e)),
            end = driver => {
                *ended = true;
                end.map_err(|e| http_words(&e))?;
                // The last of it may be an answer, of a server that closes after each: it is all here, or will never be.
                let answer = exchange.now_or_never().ok_or("HTTP: the connection ended without an answer")?;
                answer.map_err(|e| http_words(&e))
            }
        }
    }
}

fn http_words(error: &hyper::Error) -> String {
    if error.is_parse() { "no HTTP".to_owned() } else { format!("HTTP: {error}") }
}

fn request(to: SocketAddr, path: &str, host: Option<&str>, last: bool) -> Result<Request<Empty<Bytes>>, String> {
    let host = host.map_or_else(|| to.to_string(), ToOwned::to_owned);
    let mut request = Request::get(path).header(HOST, host).header(USER_AGENT, HeaderValue::from_static(AGENT));
    if last {
        request = request.header(CONNECTION, HeaderValue::from_static("close"));
    }
    let fault = |e| format!("the path `{path}` or the host cannot be asked for: {e}");
    request.body(Empty::<Bytes>::new()).map_err(fault)
}

async fn http(address: IpAddr, check: &Check) -> Result<Outcome, String> {
    let Check::Http { port, tls, path, host, expect, drain_on_503, .. } = check else {
        return Err("no HTTP check".into());
    };
    let to = SocketAddr::new(address, *port);
    let stream = connect(to).await?;
    let status = if *tls {
        let name = host.as_deref().and_then(|h| ServerName::try_from(h.to_owned()).ok());
        let name = name.unwrap_or_else(|| ServerName::from(address));
        let connector = tls::connector().map_err(|e| format!("TLS: {e}"))?;
        let stream = connector.connect(name, stream).await.map_err(|e| words("TLS", &e))?;
        ask(stream, to, path, host.as_deref()).await?
    } else {
        ask(stream, to, path, host.as_deref()).await?
    };
    Ok(judge(status, &place(check), expect, *drain_on_503))
}

fn judge(status: StatusCode, place: &str, expect: &RangeInclusive<u16>, drain_on_503: bool) -> Outcome {
    let reason = format!("{} from {place}", status.as_u16());
    let kind = if expect.contains(&status.as_u16()) {
        Kind::Good
    } else if drain_on_503 && status == StatusCode::SERVICE_UNAVAILABLE {
        Kind::Drain
    } else {
        Kind::Bad
    };
    Outcome { kind, reason }
}

async fn ask<S>(stream: S, to: SocketAddr, path: &str, host: Option<&str>) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let error = |e: hyper::Error| http_words(&e);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(error)?;
    let request = request(to, path, host, true)?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    // The head is enough: with the connection's future the rest of the body is dropped.
    tokio::select! {
        answer = &mut answer => answer.map(|a| a.status()).map_err(error),
        ended = &mut connection => match ended {
            Ok(()) => answer.await.map(|a| a.status()).map_err(error),
            Err(e) => Err(error(e)),
        },
    }
}

async fn udp(to: SocketAddr, send: &[u8], expect: Option<&[u8]>) -> Result<Outcome, String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let what = format!("udp port {}", to.port());
    let refused = |e: std::io::Error| match e.kind() {
        // The kernel's word for an ICMP port unreachable.
        ErrorKind::ConnectionRefused => format!("{what}: port unreachable"),
        _ => words(&what, &e),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(refused)?;
    socket.connect(to).await.map_err(refused)?;
    socket.send(send).await.map_err(refused)?;
    let mut buffer = [0u8; 2048];
    let length = socket.recv(&mut buffer).await.map_err(refused)?;
    match expect {
        Some(prefix) if !buffer[..length].starts_with(prefix) => Err(format!("{what}: an unexpected answer")),
        _ => Ok(Outcome::good(format!("{what} answers"))),
    }
}
