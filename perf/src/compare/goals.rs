//! What shall be reached: ratios of two peers' figures in one round.

use super::cases::Metric;

/// A ratio to look at: a metric of one peer by that of another.
pub struct Goal {
    pub what: &'static str,
    pub of: (&'static str, Column),
    pub to: (&'static str, Column),
    pub wanted: f64,
    pub at_least: bool,
}

/// A column of the table: measured, or what a box adds to what was measured without one.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    Of(Metric),
    /// The higher of a peer's and of its twin's with RPS.
    Best(Metric),
    Added(Metric),
}

impl Column {
    pub fn metric(self) -> Metric {
        match self {
            Self::Of(metric) | Self::Best(metric) | Self::Added(metric) => metric,
        }
    }
}

pub const BOX_PACKET: Column = Column::Added(Metric::PpsLab);
pub const BOX_CONN: Column = Column::Added(Metric::ConnLab);

#[rustfmt::skip]
pub const GOALS: [Goal; 17] = [
    Goal { what: "packets/s of live frames, Penstock to the bare forwarder", of: ("penstock", Column::Of(Metric::LivePps)), to: ("bare", Column::Of(Metric::LivePps)), wanted: 0.90, at_least: true },
    Goal { what: "packets/s of live frames, bare forwarder to testpmd", of: ("bare", Column::Of(Metric::LivePps)), to: ("testpmd", Column::Of(Metric::LivePps)), wanted: 0.95, at_least: true },
    Goal { what: "packets/s, Penstock to the bare forwarder (or the sender's limit)", of: ("penstock", Column::Of(Metric::Pps)), to: ("bare", Column::Of(Metric::Pps)), wanted: 0.90, at_least: true },
    Goal { what: "packets/s, bare forwarder to testpmd (or the sender's limit)", of: ("bare", Column::Of(Metric::Pps)), to: ("testpmd", Column::Of(Metric::Pps)), wanted: 0.95, at_least: true },
    Goal { what: "packets/s, Penstock to kernel forwarding without NAT", of: ("penstock", Column::Of(Metric::Pps)), to: ("kernel", Column::Of(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "packets/s, Penstock to the same on the box's core (RPS)", of: ("penstock", Column::Of(Metric::Pps)), to: ("kernel-rps", Column::Of(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "packets/s, Penstock to nftables NAT, with RPS or without", of: ("penstock", Column::Of(Metric::Pps)), to: ("nftables", Column::Best(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "packets/s, Penstock to iptables NAT, with RPS or without", of: ("penstock", Column::Of(Metric::Pps)), to: ("iptables", Column::Best(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "packets/s, Penstock to quilkin", of: ("penstock", Column::Of(Metric::Pps)), to: ("quilkin", Column::Of(Metric::Pps)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to nftables NAT", of: ("penstock", Column::Of(Metric::Conn)), to: ("nftables", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to iptables NAT", of: ("penstock", Column::Of(Metric::Conn)), to: ("iptables", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to HAProxy", of: ("penstock", Column::Of(Metric::Conn)), to: ("haproxy", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "connections/s, Penstock to nginx", of: ("penstock", Column::Of(Metric::Conn)), to: ("nginx", Column::Of(Metric::Conn)), wanted: 1.0, at_least: true },
    Goal { what: "the box's CPU per connection, Penstock to HAProxy", of: ("penstock", BOX_CONN), to: ("haproxy", BOX_CONN), wanted: 1.0 / 3.0, at_least: false },
    Goal { what: "p99 of HTTP exchanges, Penstock to nftables NAT", of: ("penstock", Column::Of(Metric::ConnP99)), to: ("nftables", Column::Of(Metric::ConnP99)), wanted: 1.0, at_least: false },
    Goal { what: "p99 of each thousand packets at half load, Penstock to the bare forwarder", of: ("penstock", Column::Of(Metric::HalfSteadyP99)), to: ("bare", Column::Of(Metric::HalfSteadyP99)), wanted: 1.2, at_least: false },
    Goal { what: "p99 at half load, Penstock to the bare forwarder", of: ("penstock", Column::Of(Metric::HalfP99)), to: ("bare", Column::Of(Metric::HalfP99)), wanted: 1.2, at_least: false },
];
