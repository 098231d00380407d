//! The kernel's own TCP counters of a namespace: what proves that no host sent a RST.

use anyhow::{Context, Result};

/// The part of `/proc/net/snmp`'s `Tcp` line (RFC 4022 names) that tests assert on. IPv4 and IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Connections opened from here.
    pub active_opens: u64,
    /// Connections accepted here.
    pub passive_opens: u64,
    /// Connections that ended by a reset, sent or received.
    pub established_resets: u64,
    pub retransmitted: u64,
    /// Segments with the RST flag sent.
    pub resets_sent: u64,
}

impl TcpCounters {
    /// Reads the two `Tcp:` lines (names, then values) of `/proc/net/snmp`.
    pub fn parse(snmp: &str) -> Result<Self> {
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:"));
        let names = lines.next().context("/proc/net/snmp has no Tcp: line")?;
        let values = lines.next().context("/proc/net/snmp has no second Tcp: line")?;
        let mut counters = Self::default();
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            let field = match name {
                "ActiveOpens" => &mut counters.active_opens,
                "PassiveOpens" => &mut counters.passive_opens,
                "EstabResets" => &mut counters.established_resets,
                "RetransSegs" => &mut counters.retransmitted,
                "OutRsts" => &mut counters.resets_sent,
                _ => continue,
            };
            *field = value.parse().with_context(|| format!("/proc/net/snmp: Tcp {name} = {value}"))?;
        }
        Ok(counters)
    }

    /// What happened since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.each(before, |now, before| now - before)
    }

    /// With another host's.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    fn each(&self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            active_opens: combine(self.active_opens, other.active_opens),
            passive_opens: combine(self.passive_opens, other.passive_opens),
            established_resets: combine(self.established_resets, other.established_resets),
            retransmitted: combine(self.retransmitted, other.retransmitted),
            resets_sent: combine(self.resets_sent, other.resets_sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TcpCounters;

    const SNMP: &str = "\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors
Tcp: 1 200 120000 -1 11 12 13 14 15 16 17 18 19 20 21
";

    #[test]
    fn reads_the_tcp_lines_by_name() {
        let counters = TcpCounters::parse(SNMP).expect("a well-formed file");
        assert_eq!(
            counters,
            TcpCounters {
                active_opens: 11,
                passive_opens: 12,
                established_resets: 14,
                retransmitted: 18,
                resets_sent: 20
            }
        );
    }

    #[test]
    fn a_file_without_tcp_is_an_error() {
        assert!(TcpCounters::parse("Ip: Forwarding\nIp: 1\n").is_err());
    }
}
