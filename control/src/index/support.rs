//! What the dataplane can do, of what a Service can ask for: modes, schedulers and protocols are whatever the
//! schema can read.

use penstock_configs::desired::{Mode, Protocol, Scheduler};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kinds::Transport;

/// Names people know from elsewhere, to tell "not yet" from "never heard of".
const KNOWN_MODES: &[&str] = &["nat", "dnat", "dsr"];
const KNOWN_SCHEDULERS: &[&str] = &["maglev", "rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "random-two-choices"];

/// # Errors
/// In words: not known, or not supported yet.
pub fn mode(text: &str) -> Result<Mode, String> {
    named(text, "mode", KNOWN_MODES)
}

/// # Errors
/// In words: not known, or not supported yet.
pub fn scheduler(text: &str) -> Result<Scheduler, String> {
    named(text, "scheduler", KNOWN_SCHEDULERS)
}

#[must_use]
pub fn protocol(transport: Transport) -> Option<Protocol> {
    match transport {
        Transport::Tcp => Some(Protocol::Tcp),
        Transport::Udp => Some(Protocol::Udp),
        Transport::Sctp => from_name("sctp"),
    }
}

/// As it stands in a file.
#[must_use]
pub fn mode_name(mode: Mode) -> String {
    match serde_json::to_value(mode) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// Direct server return: the destination stays the VIP, so no node port is needed, and the nodes' kube-proxy must
/// take the VIP for its own (`ipMode: VIP`).
#[must_use]
pub fn is_dsr(mode: Mode) -> bool {
    from_name::<Mode>("dsr") == Some(mode)
}

fn named<T: DeserializeOwned>(text: &str, what: &str, known: &[&str]) -> Result<T, String> {
    from_name(text).ok_or_else(|| {
        if known.contains(&text) {
            format!("{what} `{text}` is not supported yet by this dataplane")
        } else {
            format!("{what} `{text}` is not known; there are: {}", known.join(", "))
        }
    })
}

fn from_name<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(Value::String(text.to_owned())).ok()
}
