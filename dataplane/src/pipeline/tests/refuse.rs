//! Who cannot be served is told so, or not, as the service says.

use penstock_configs::desired::{NoBackend, OnIdle};

use super::*;
use crate::pipeline::testkit::{FRONT, valid};
use crate::verdict::{DropReason, Verdict};
use crate::wire::TCP_RST;

const OTHER: &str = "198.51.100.8:6666";

/// Services without backends; they refuse.
fn empty() -> Plan {
    let mut plan = plan();
    for service in &mut plan.services {
        service.backends.clear();
        service.no_backend = NoBackend::Reject;
    }
    plan
}

/// RFC 9293 section 3.10.7.1: a SYN is answered with what acknowledges it.
#[test]
fn a_syn_to_no_backend_is_answered_with_a_reset() {
    for (client, vip, payload) in [(CLIENT, TO_WEB, &b""[..]), (CLIENT, TO_WEB, b"fast"), (CLIENT6, TO_WEB6, b"")] {
        let mut rig = Rig::new(empty());
        let syn = Pkt::syn(client, vip).payload(payload).with(|pkt| (pkt.seq, pkt.vlans) = (u32::MAX, vec![7]));
        let out = rig.front(&syn.bytes());
        let reset = out.to_client();
        assert_eq!((reset.src, reset.dst), (syn.dst, syn.src));
        assert_eq!((reset.flags, reset.seq, reset.ack), (TCP_RST | TCP_ACK, 0, payload.len() as u32));
        assert_eq!((reset.smac, reset.dmac), (syn.dmac, syn.smac), "by the client's last hop");
        assert_eq!((reset.vlans, reset.ttl, reset.payload.len()), (vec![7], 64, 0));
        assert_eq!(rig.drops(DropReason::NoBackend), 1);
        assert_eq!(rig.pipeline.stats().generated.get(), 1);
        rig.check();
    }
}

#[test]
fn a_datagram_to_no_backend_is_answered_with_port_unreachable() {
    for (client, vip, kind) in [(CLIENT, TO_DNS, [3, 3]), (CLIENT6, TO_DNS6, [1, 4])] {
        let mut rig = Rig::new(empty());
        let query = Pkt::udp(client, vip).payload(b"query");
        let error = rig.front(&query.bytes()).to_client();
        assert_eq!((error.src.ip(), error.dst.ip()), (query.dst.ip(), query.src.ip()));
        assert_eq!((&error.payload[..2], &error.payload[4..8]), (&kind[..], &[0; 4][..]));
        assert_eq!(error.payload[8..], query.bytes()[14..], "the packet as it came");
        assert_eq!(rig.drops(DropReason::NoBackend), 1);
    }
}

#[test]
fn refusals_are_rated_with_the_icmp_errors() {
    let mut rig = Rig::new(empty());
    let answered = |rig: &mut Rig, pkt: &Pkt| matches!(rig.front(&pkt.bytes()).verdict, Verdict::Tx(_));
    let answers = (0..20).filter(|_| answered(&mut rig, &Pkt::syn(CLIENT, TO_WEB))).count();
    assert_eq!((answers, rig.drops(DropReason::RateLimited)), (10, 10), "a tenth of a second's worth");
    assert!(!answered(&mut rig, &Pkt::udp(CLIENT, TO_DNS)), "one budget");
    rig.wait(1);
    assert!(answered(&mut rig, &Pkt::udp(CLIENT, TO_DNS)));
}

#[test]
fn silence_where_it_is_asked_for_or_nobody_may_answer() {
    let mut rig = Rig::new(empty());
    // Not opening packets of no flow, RSTs least of all.
    for flags in [TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST, TCP_RST | TCP_ACK, TCP_SYN | TCP_ACK] {
        rig.front(&Pkt::tcp(CLIENT, TO_WEB, flags).bytes()).dropped(DropReason::OutOfState);
    }
    // A VIP's port without a service.
    rig.front(&Pkt::syn(CLIENT, "203.0.113.10:80").bytes()).dropped(DropReason::NoService);
    // To all hosts of the link.
    let broadcast = |pkt: Pkt| pkt.with(|pkt| pkt.dmac = [0xff; 6]).bytes();
    rig.front(&broadcast(Pkt::syn(CLIENT, TO_WEB))).dropped(DropReason::NoBackend);
    rig.front(&broadcast(Pkt::udp(CLIENT, TO_DNS))).dropped(DropReason::NoBackend);
    // From a group of them: the answer would go there.
    let from_group = |pkt: Pkt| pkt.with(|pkt| pkt.smac[0] |= 1).bytes();
    rig.front(&from_group(Pkt::syn(CLIENT, TO_WEB))).dropped(DropReason::NoBackend);
    rig.front(&from_group(Pkt::udp(CLIENT, TO_DNS))).dropped(DropReason::NoBackend);
    rig.change(|plan| plan.services.iter_mut().for_each(|service| service.no_backend = NoBackend::Drop));
    rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).dropped(DropReason::NoBackend);
    rig.front(&Pkt::udp(CLIENT6, TO_DNS6).bytes()).dropped(DropReason::NoBackend);
    assert_eq!(rig.pipeline.stats().generated.get(), 0);
}

#[test]
fn exhausted_ports_refuse_too() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2000]);
    plan.service(WEB).no_backend = NoBackend::Reject;
    let mut rig = Rig::new(plan);
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    let reset = rig.front(&Pkt::syn(OTHER, TO_WEB).bytes()).to_client();
    assert_eq!((reset.flags, reset.ack), (TCP_RST | TCP_ACK, 1001));
    assert_eq!(rig.drops(DropReason::SnatExhausted), 1);
    conn.to_node(&mut rig, TCP_ACK);
}

/// Every backend draining is no backend; down by its checks the last ones are used all the same (panic).
#[test]
fn backends_that_drain_count_as_none() {
    let mut plan = plan();
    plan.service(WEB).no_backend = NoBackend::Reject;
    plan.health("10.0.0.11", penstock_configs::desired::BackendState::Draining);
    let mut rig = Rig::new(plan);
    let out = rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes());
    assert_eq!(out.verdict, Verdict::Tx(FRONT));
    assert_eq!(valid(&out.bytes).flags, TCP_RST | TCP_ACK);
}

/// A RST is never answered, nor does a flood of them use up the answers to others.
#[test]
fn rsts_cost_no_answers() {
    let mut rig = rig();
    rig.change(|plan| plan.service(WEB).on_idle = OnIdle::Reset);
    for port in 1000..1100 {
        let reset = Pkt::tcp(&format!("198.51.100.7:{port}"), TO_WEB, TCP_RST);
        rig.front(&reset.bytes()).dropped(DropReason::OutOfState);
    }
    let stray = rig.front(&Pkt::tcp(CLIENT, TO_WEB, TCP_ACK).bytes());
    assert_eq!(stray.to_client().flags, TCP_RST);
}
