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
    /// Nothing is proved yet; what an earlier process served is not in doubt for that.
    #[must_use]
    pub fn at_start(recovered: bool) -> Self {
        Self { replies: (!recovered).then(HashMap::new), ..Self::default() }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_refuses_no_client_before_the_first_answer() {
        let service =
            serde_json::json!({"name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dnat"});
        let service: Service = serde_json::from_value(service).expect("a service");
        let source = ("10.0.0.11".parse().expect("an address"), 80, 6);
        assert_eq!(Ways::at_start(true).state(&service, source), BackendState::Active);
        assert_eq!(Ways::at_start(false).state(&service, source), BackendState::Draining);
    }
}
