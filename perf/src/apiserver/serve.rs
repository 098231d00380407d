//! The listening side: a thread of its own, so that tests, the demo and a benchmark can use the server from any
//! runtime or from none.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::Inner;
use super::http::handle;

pub(super) enum Command {
    /// The port refuses connections, and those there are end.
    Stop(std::sync::mpsc::Sender<()>),
    Listen(std::sync::mpsc::Sender<std::io::Result<()>>),
}

/// Serves until the commands' sender is gone.
pub(super) fn run(inner: &Arc<Inner>, listener: std::net::TcpListener, commands: mpsc::UnboundedReceiver<Command>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(inner.clone(), listener, commands)),
        Err(error) => tracing::error!(%error, "the API server has no runtime"),
    }
}

async fn serve(inner: Arc<Inner>, listener: std::net::TcpListener, mut commands: mpsc::UnboundedReceiver<Command>) {
    let address = inner.address;
    let mut listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)).ok();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Stop(done)) => {
                    listener = None;
                    inner.drop_connections();
                    // Nobody waits any more: nothing to tell.
                    let _ = done.send(());
                }
                Some(Command::Listen(done)) => {
                    let _ = done.send(listen(address, &mut listener).await);
                }
            },
            stream = accept(listener.as_ref()) => {
                tokio::spawn(connection(inner.clone(), stream));
            }
        }
    }
}

async fn listen(address: SocketAddr, listener: &mut Option<TcpListener>) -> std::io::Result<()> {
    if listener.is_none() {
        *listener = Some(TcpListener::bind(address).await?);
    }
    Ok(())
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    loop {
        match listener {
            None => std::future::pending().await,
            Some(listener) => match listener.accept().await {
                Ok((stream, _)) => return stream,
                // Out of file descriptors: some will be closed.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            },
        }
    }
}

async fn connection(inner: Arc<Inner>, stream: TcpStream) {
    // Watch events are small writes that must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let mut dropped = inner.dropped.subscribe();
    dropped.borrow_and_update();
    let service = service_fn(|request| handle(inner.clone(), request));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error is a client that went away, or a connection dropped on purpose.
        _ = served => {}
        _ = dropped.changed() => {}
    }
}
