//! `[[health.check]]`: what is asked of the backends of the dataplane's own file, where connecting is not enough.

use std::ops::RangeInclusive;
use std::time::Duration;

use penstock_configs::desired::Protocol;
use serde::{Deserialize, Serialize};

use crate::config::{FileCheck, HealthConfig};
use crate::probe::{Check, Timing};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedCheck {
    /// A set of the file, or a service that lists its backends itself; missing: all that no other check names.
    #[serde(default)]
    pub set: Option<String>,
    #[serde(rename = "type")]
    pub kind: CheckType,
    /// Default: the backend's own.
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(default)]
    pub path: Option<String>,
    /// `Host` header, and the name in TLS.
    #[serde(default)]
    pub host: Option<String>,
    /// "204", or "200-399".
    #[serde(default)]
    pub status: Option<String>,
    /// A 503 means: takes no new flows.
    #[serde(default)]
    pub drain_on_503: bool,
    /// What a UDP probe sends.
    #[serde(default)]
    pub send: String,
    /// What a UDP answer begins with.
    #[serde(default)]
    pub expect: Option<String>,
    /// For UDP: no answer is good as long as no ICMP error comes.
    #[serde(default)]
    pub silence_is_up: bool,
    /// Seconds; default of these four: as in `[health]`.
    #[serde(default)]
    pub interval: Option<f64>,
    #[serde(default)]
    pub timeout: Option<f64>,
    #[serde(default)]
    pub rise: Option<u32>,
    #[serde(default)]
    pub fall: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckType {
    #[default]
    Tcp,
    Http,
    Https,
    Udp,
    None,
}

const STATUS: RangeInclusive<u16> = 200..=399;

impl NamedCheck {
    /// Of a backend's port; none where nothing is to be checked.
    #[must_use]
    pub fn check(&self, backend: u16) -> Option<Check> {
        let port = self.port.unwrap_or(backend);
        let http = |tls: bool| Check::Http {
            port,
            tls,
            path: self.path.clone().unwrap_or_else(|| "/".into()),
            host: self.host.clone(),
            expect: self.status().unwrap_or(STATUS),
            drain_on_503: self.drain_on_503,
            keeps: false,
        };
        match self.kind {
            CheckType::None => None,
            CheckType::Tcp => Some(Check::Tcp { port }),
            CheckType::Http => Some(http(false)),
            CheckType::Https => Some(http(true)),
            CheckType::Udp => Some(Check::Udp {
                port,
                send: self.send.clone().into_bytes(),
                expect: self.expect.clone().map(String::into_bytes),
                silence_is_up: self.silence_is_up,
            }),
        }
    }

    #[must_use]
    pub fn timing(&self, health: &HealthConfig) -> Timing {
        let general = health.timing();
        let seconds = |own: Option<f64>, general: Duration| own.map_or(general, Duration::from_secs_f64);
        Timing {
            interval: seconds(self.interval, general.interval),
            timeout: seconds(self.timeout, general.timeout),
            rise: self.rise.unwrap_or(general.rise),
            fall: self.fall.unwrap_or(general.fall),
        }
    }

    fn status(&self) -> Option<RangeInclusive<u16>> {
        let text = self.status.as_deref()?;
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && first >= 100 && last <= 599).then_some(first..=last)
    }

    /// What is wrong with it, by its path in the file.
    pub fn faults(&self, at: usize, faults: &mut Vec<String>) {
        let mut fault = |key: &str, why: &str| faults.push(format!("health.check[{at}].{key}: {why}"));
        if self.status.is_some() && self.status().is_none() {
            fault("status", "a status or a range of them: `204`, `200-399`");
        }
        if self.path.as_deref().is_some_and(|p| !p.starts_with('/')) {
            fault("path", "begins with `/`");
        }
        if self.port == Some(0) {
            fault("port", "between 1 and 65535");
        }
        if self.rise == Some(0) || self.fall == Some(0) {
            fault("rise and fall", "at least 1");
        }
        for (key, seconds) in [("interval", self.interval), ("timeout", self.timeout)] {
            if seconds.is_some_and(|s| !(0.001..=1e7).contains(&s)) {
                fault(key, "seconds, between 0.001 and 10000000");
            }
        }
        let http = matches!(self.kind, CheckType::Http | CheckType::Https);
        if !http && (self.path.is_some() || self.host.is_some() || self.status.is_some() || self.drain_on_503) {
            fault("type", "path, host, status and drain_on_503 are for http and https");
        }
        if self.kind != CheckType::Udp && (!self.send.is_empty() || self.expect.is_some() || self.silence_is_up) {
            fault("type", "send, expect and silence_is_up are for udp");
        }
    }
}

impl HealthConfig {
    /// What is asked of a set's or service's backends; none: nothing. What speaks UDP is checked only where a check
    /// names it: nobody else knows what it would answer.
    #[must_use]
    pub fn check_of(&self, group: &str, protocol: Protocol) -> Option<NamedCheck> {
        let named = self.checks.iter().find(|c| c.set.as_deref() == Some(group));
        if let Some(check) = named {
            return Some(check.clone());
        }
        if protocol != Protocol::Tcp || self.file_services == FileCheck::None {
            return None;
        }
        Some(self.checks.iter().find(|c| c.set.is_none()).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ControlConfig;

    fn parse(text: &str) -> Result<HealthConfig, String> {
        let text = format!("version = 1\n{text}");
        ControlConfig::parse(Path::new("control.toml"), &text).map(|c| c.health).map_err(|e| e.to_string())
    }

    #[test]
    fn the_named_check_wins_over_the_general_and_that_over_tcp() {
        let none = parse("").unwrap();
        assert_eq!(none.check_of("web", Protocol::Tcp).unwrap().check(8080), Some(Check::Tcp { port: 8080 }));
        assert_eq!(none.check_of("dns", Protocol::Udp), None);
        let text = "[[health.check]]\ntype = 'http'\nport = 9000\npath = '/up'\nstatus = '204'\n\
                    [[health.check]]\nset = 'dns'\ntype = 'udp'\nsend = 'x'\ninterval = 10.0\n\
                    [[health.check]]\nset = 'raw'\ntype = 'none'";
        let health = parse(text).unwrap();
        let web = health.check_of("web", Protocol::Tcp).unwrap();
        let expected = Check::Http {
            port: 9000,
            tls: false,
            path: "/up".into(),
            host: None,
            expect: 204..=204,
            drain_on_503: false,
            keeps: false,
        };
        assert_eq!(web.check(8080), Some(expected));
        let dns = health.check_of("dns", Protocol::Udp).unwrap();
        assert!(matches!(dns.check(53), Some(Check::Udp { port: 53, .. })));
        assert_eq!(dns.timing(&health).interval, Duration::from_secs(10));
        assert_eq!(health.check_of("raw", Protocol::Tcp).unwrap().check(1), None);
    }

    #[test]
    fn faults_name_the_check_and_the_key() {
        let error = parse("[[health.check]]\ntype = 'tcp'\npath = 'up'\nstatus = '9-1'\nrise = 0").unwrap_err();
        for part in ["health.check[0].type", "health.check[0].path", "health.check[0].status", "rise"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }
}
