//! What the box in the storm serves, and what may come.

use penstock_configs::desired::{Affinity, Mode};
use penstock_dataplane::pipeline::testkit::Plan;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// What may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Valid packets, as ends would send them.
    Calm,
    /// Any packets with right checksums.
    Rough,
    /// Anything.
    Wild,
}

const WEB: &str = "203.0.113.10:443/tcp";
const NODES: [&str; 4] = ["10.0.0.11:31443", "10.0.0.12:31443", "10.0.0.13:31443", "10.0.0.14:31443"];
const NODES6: [&str; 3] = ["[fd00::11]:31443", "[fd00::12]:31443", "[fd00::13]:31443"];
const SNATS: [(&str, [u16; 2]); 3] =
    [("10.0.0.1", [2000, 2399]), ("10.0.0.2", [3000, 3399]), ("fd00::1", [2000, 2799])];

pub fn plan() -> Plan {
    let mut plan = Plan { maglev_max: 251, gateway: true, ..Plan::default() };
    plan.serve(WEB, &NODES);
    plan.serve("203.0.113.10:53/udp", &NODES);
    plan.serve("203.0.113.10:5000/sctp", &NODES);
    plan.serve("203.0.113.11:443/tcp", &NODES).affinity = Some(Affinity::client_ip());
    plan.serve("203.0.113.11:53/udp", &NODES[..2]).affinity = Some(Affinity::client_ip());
    plan.serve("[2001:db8:1::10]:443/tcp", &NODES6);
    plan.serve("[2001:db8:1::10]:53/udp", &NODES6);
    plan.serve("[2001:db8:1::10]:5000/sctp", &NODES6);
    for (at, node) in [
        ("203.0.113.12:443/tcp", "10.0.0.21:8443"),
        ("203.0.113.12:53/udp", "10.0.0.21:8053"),
        ("203.0.113.12:5000/sctp", "10.0.0.22:8500"),
        ("[2001:db8:1::12]:443/tcp", "[fd00::21]:8443"),
        ("[2001:db8:1::12]:53/udp", "[fd00::21]:8053"),
    ] {
        let service = plan.serve(at, &[node]);
        (service.mode, service.reply_check) = (Mode::Dnat, false);
    }
    for (at, node) in [
        ("203.0.113.13:443/tcp", "10.0.0.31:443"),
        ("203.0.113.13:53/udp", "10.0.0.31:53"),
        ("[2001:db8:1::13]:443/tcp", "[fd00::31]:443"),
    ] {
        plan.serve(at, &[node]).mode = Mode::Dsr;
    }
    for (address, ports) in SNATS {
        plan.snat(address, ports);
    }
    plan
}
