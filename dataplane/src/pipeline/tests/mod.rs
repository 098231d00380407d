//! The pipeline by tables: packet in, verdict and packet out.

mod access;
mod chains;
mod change;
mod drops;
mod errors;
mod express;
mod flows;
mod fragments;
mod headers;
mod icmp;
mod malformed;
mod modes;
mod motion;
mod nat;
mod refuse;
mod renew;
mod sctp;
mod simulation;
mod stick;
mod tcp;
mod upkeep;

use super::testkit::{Out, Pkt, Plan, Rig, Seen};
use crate::wire::{TCP_ACK, TCP_FIN, TCP_SYN};

const VIP: &str = "203.0.113.10";
const VIP6: &str = "2001:db8:1::10";
const WEB: &str = "203.0.113.10:443/tcp";
const DNS: &str = "203.0.113.10:53/udp";
const WEB6: &str = "[2001:db8:1::10]:443/tcp";
const DNS6: &str = "[2001:db8:1::10]:53/udp";
const SNAT: &str = "10.0.0.1";
const SNAT6: &str = "fd00::1";
const CLIENT: &str = "198.51.100.7:5555";
const CLIENT6: &str = "[2001:db8:2::7]:5555";
const TO_WEB: &str = "203.0.113.10:443";
const TO_DNS: &str = "203.0.113.10:53";
const TO_WEB6: &str = "[2001:db8:1::10]:443";
const TO_DNS6: &str = "[2001:db8:1::10]:53";

/// One service of each family and protocol, one node each.
fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.serve(WEB, &["10.0.0.11:31443"]);
    plan.serve(DNS, &["10.0.0.11:31053"]);
    plan.serve(WEB6, &["[fd00::11]:31443"]);
    plan.serve(DNS6, &["[fd00::11]:31053"]);
    plan.snat(SNAT, [1024, 65535]);
    plan.snat(SNAT6, [1024, 65535]);
    plan
}

fn rig() -> Rig {
    Rig::new(plan())
}

/// A client's connection through the box, as far as its handshake.
struct Conn {
    client: String,
    vip: String,
    /// The SYN as the node saw it.
    at_node: Seen,
}

impl Conn {
    /// SYN, SYN-ACK, ACK, each delivered.
    #[track_caller]
    fn open(rig: &mut Rig, client: &str, vip: &str) -> Self {
        let at_node = rig.front(&Pkt::syn(client, vip).bytes()).to_node();
        let conn = Self { client: client.into(), vip: vip.into(), at_node };
        rig.back(&conn.reply(TCP_SYN | TCP_ACK).bytes()).to_client();
        conn.to_node(rig, TCP_ACK);
        conn
    }

    fn request(&self, flags: u8) -> Pkt {
        Pkt::tcp(&self.client, &self.vip, flags).with(|pkt| pkt.seq = self.at_node.seq.wrapping_add(1))
    }

    fn reply(&self, flags: u8) -> Pkt {
        Pkt::answer(&self.at_node, flags)
    }

    /// A packet of the client, which must reach the same node by the same tuple.
    #[track_caller]
    fn to_node(&self, rig: &mut Rig, flags: u8) -> Seen {
        let seen = rig.front(&self.request(flags).bytes()).to_node();
        assert_eq!((seen.src, seen.dst), (self.at_node.src, self.at_node.dst), "another tuple");
        seen
    }

    /// A packet of the node, which must reach the client as from the VIP.
    #[track_caller]
    fn to_client(&self, rig: &mut Rig, flags: u8) -> Seen {
        let seen = rig.back(&self.reply(flags).bytes()).to_client();
        assert_eq!((seen.src, seen.dst), (self.vip.parse().unwrap(), self.client.parse().unwrap()));
        seen
    }

    /// Both ends close.
    #[track_caller]
    fn close(&self, rig: &mut Rig) {
        self.to_node(rig, TCP_FIN | TCP_ACK);
        rig.back(&self.reply(TCP_FIN | TCP_ACK).with(|pkt| pkt.ack = 1002).bytes()).to_client();
        rig.front(&self.request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (1002, 1002)).bytes()).to_node();
    }

    fn out(&self, rig: &mut Rig, flags: u8) -> Out {
        rig.front(&self.request(flags).bytes())
    }
}
