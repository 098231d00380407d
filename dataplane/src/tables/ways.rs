//! What the network says against a backend, beside its health: modes that keep the client's address ask more
//! of the way to a node and back than that it answers.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use penstock_configs::desired::{BackendState, Mode, Service};

/// A backend as replies show it: address, port, protocol number.
pub type Source = (IpAddr, u16, u8);

/// The ways to nodes and back, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// Nodes a router leads to: beyond the reach of `dsr`.
    pub behind_router: HashSet<IpAddr>,
    /// Whether replies were seen to come back through the box; `None`: nobody checks.
    pub replies: Option<HashMap<Source, bool>>,
    /// The addresses nodes are asked from: what comes for them is an answer.
    pub probes: Vec<IpAddr>,
}

impl Ways {
    /// How a service may use the backend, whatever its health is.
    #[must_use]
    pub fn state(&self, service: &Service, source: Source) -> BackendState {
        match service.mode {
            Mode::Dsr if self.behind_router.contains(&source.0) => BackendState::Down,
            Mode::Dnat if service.reply_check => match &self.replies {
                // Flows that are there show that replies came back: they stay.
                Some(proved) if !proved.get(&source).copied().unwrap_or(false) => BackendState::Draining,
                _ => BackendState::Active,
            },
            _ => BackendState::Active,
        }
    }
}
