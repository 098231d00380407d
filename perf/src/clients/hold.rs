//! Many connections held open at once, asked from time to time who is at the other end.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::Failure;
use super::http::{Connection, node_of, text_of, within};
use crate::lab::Netns;

/// Opened at a time: a burst of all would overflow the listeners' queues.
const AT_ONCE: usize = 32;

/// One of the connections: the client's end, and what it answered last.
#[derive(Debug, Clone)]
pub struct Held {
    pub local: SocketAddr,
    pub outcome: Result<String, Failure>,
}

enum Order {
    AskAll { limit: Duration, answer: mpsc::Sender<Vec<Held>> },
}

/// Open connections. Dropping them closes them, from the client's side, and waits for it.
#[derive(Debug)]
pub struct Hold {
    orders: Option<tokio::sync::mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    /// What each connection answered first.
    pub first: Vec<Held>,
}

impl Hold {
    /// Opens `count` connections and asks each once.
    pub fn open(ns: &Netns, target: SocketAddr, count: usize) -> Result<Self> {
        let (orders, inbox) = tokio::sync::mpsc::unbounded_channel();
        let (ready, opened) = mpsc::channel();
        let thread = ns.thread("hold", move || super::run_here(serve(target, count, ready, inbox)))?;
        let first = opened.recv().context("the client thread ended")?.map_err(|failure| anyhow!("{failure}"))?;
        Ok(Self { orders: Some(orders), thread: Some(thread), first })
    }

    /// Asks on every connection again; one that does not answer within `limit` has failed.
    pub fn ask_all(&self, limit: Duration) -> Result<Vec<Held>> {
        let (answer, answers) = mpsc::channel();
        let orders = self.orders.as_ref().context("closed already")?;
        orders.send(Order::AskAll { limit, answer }).map_err(|_| anyhow!("the client thread ended"))?;
        answers.recv().context("the client thread ended")
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    target: SocketAddr,
    count: usize,
    ready: mpsc::Sender<Result<Vec<Held>, Failure>>,
    mut orders: tokio::sync::mpsc::UnboundedReceiver<Order>,
) {
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let batch = AT_ONCE.min(count - connections.len());
        let opening = (0..batch).map(|_| tokio::spawn(within(PATIENCE, "connecting", Connection::open(target))));
        for opened in opening.collect::<Vec<_>>() {
            match opened.await.unwrap_or_else(|error| Err(Failure::Connect(error.to_string()))) {
                Ok(connection) => connections.push(connection),
                Err(failure) => return drop(ready.send(Err(failure))),
            }
        }
    }
    let _ = ready.send(Ok(ask(&mut connections, PATIENCE).await));
    while let Some(Order::AskAll { limit, answer }) = orders.recv().await {
        let _ = answer.send(ask(&mut connections, limit).await);
    }
    for connection in connections {
        // A connection whose node is gone never closes in both directions.
        let _ = tokio::time::timeout(Duration::from_millis(200), connection.close()).await;
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

/// All at once: connections that don't answer cost one time limit, not one each.
async fn ask(connections: &mut [Connection], limit: Duration) -> Vec<Held> {
    let mut answers: Vec<Option<Held>> = vec![None; connections.len()];
    let asking = connections.iter_mut().zip(&mut answers).map(|(connection, slot)| async move {
        let local = connection.local;
        let outcome = within(limit, "asking again", async {
            let response = connection.get("/").await?;
            let node = node_of(&response)?;
            text_of(response.into_body()).await?;
            Ok(node)
        });
        *slot = Some(Held { local, outcome: outcome.await });
    });
    super::http::join_all(asking).await;
    answers.into_iter().flatten().collect()
}
