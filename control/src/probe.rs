//! The seam between who knows what should be checked (the Kubernetes side, the config file) and who checks.
//!
//! Sources publish their [`ProbeTarget`]s, the checker answers with one [`HealthView`] of all of them. Both go
//! through `watch` channels: only the newest value counts, and a slow reader never holds the writer up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use penstock_configs::desired::{BackendHealth, BackendState};
use tokio::sync::watch;

/// One thing to probe. Its identity is `id`: a target that comes again with the same id and content keeps its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    /// `node/NAME/ADDRESS`, `local/NAMESPACE/SERVICE/NODE/ADDRESS`, `file/SET/ADDRESS:PORT`.
    pub id: Arc<str>,
    pub address: IpAddr,
    pub check: Check,
    pub timing: Timing,
    /// The backend ports of `address` this result speaks for; `None` in it: the whole node. A result for a port
    /// is more specific than one for the node and wins.
    pub covers: Vec<Option<u16>>,
    /// Targets among which the panic threshold is counted: one backend set.
    pub group: Arc<str>,
    /// Nobody has said of it that it serves: one that joins others which do waits for its first proof.
    pub unproven: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The connection is accepted.
    Tcp { port: u16 },
    /// An HTTP(S) GET answers with a status in `expect`. Where `drain_on_503`, a 503 means "takes no new flows"
    /// (what kube-proxy's healthz and a `healthCheckNodePort` say of a node that is leaving), not "down".
    /// Where `keeps`, the connection is kept for the next time: one that fails is made anew before anything is said.
    Http {
        port: u16,
        tls: bool,
        path: String,
        host: Option<String>,
        expect: RangeInclusive<u16>,
        drain_on_503: bool,
        keeps: bool,
    },
    /// A datagram is answered (with `expect` as a prefix, where given); an ICMP port unreachable means down.
    Udp { port: u16, send: Vec<u8>, expect: Option<Vec<u8>>, silence_is_up: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub interval: Duration,
    pub timeout: Duration,
    /// Consecutive good results until a target is up.
    pub rise: u32,
    /// Consecutive bad results until it is down.
    pub fall: u32,
}

/// What the checker knows, of every source's targets.
#[derive(Debug, Clone, Default)]
pub struct HealthView {
    /// Whether anything is checked at all; if not, a backend nobody speaks of counts as up.
    pub checking: bool,
    /// The overlay for the dataplane, panic threshold applied.
    pub backends: Vec<BackendHealth>,
    /// By [`ProbeTarget::id`].
    pub targets: HashMap<Arc<str>, TargetState>,
    /// Groups where the panic threshold holds all members in service.
    pub panicking: Vec<Arc<str>>,
    /// Places that a settled target speaks for, in order.
    pub judged: Vec<Place>,
    /// All there is to be said: every source has named its targets, and each of them is settled (or nothing is checked
    /// at all). Until then what a former process found holds for whatever is not judged yet.
    pub whole: bool,
}

/// An address, or one port of it.
pub type Place = (IpAddr, Option<u16>);

/// What is to be checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    pub list: Arc<Vec<ProbeTarget>>,
    /// Every source has named its own: before it, what is missing may only not be known yet.
    pub whole: bool,
}

impl Targets {
    #[must_use]
    pub fn all(list: Vec<ProbeTarget>) -> Self {
        Self { list: Arc::new(list), whole: true }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetState {
    pub state: BackendState,
    /// Whether `rise` or `fall` was reached since the target is known; until then `state` is a first assumption.
    pub settled: bool,
    /// The last result in words: "connection refused", "503 from healthz".
    pub reason: String,
}

/// Our end of the seam. The checker holds the other: [`seam`] makes both.
#[derive(Debug)]
pub struct HealthSeam {
    pub targets: watch::Sender<Targets>,
    pub view: watch::Receiver<Arc<HealthView>>,
}

/// The checker's end.
#[derive(Debug)]
pub struct CheckerSeam {
    pub targets: watch::Receiver<Targets>,
    pub view: watch::Sender<Arc<HealthView>>,
}

#[must_use]
pub fn seam() -> (HealthSeam, CheckerSeam) {
    let (targets_tx, targets_rx) = watch::channel(Targets::default());
    let (view_tx, view_rx) = watch::channel(Arc::default());
    (HealthSeam { targets: targets_tx, view: view_rx }, CheckerSeam { targets: targets_rx, view: view_tx })
}
