//! TCP as the endpoints mean it: what ends a connection, what does not, and who is told.

use penstock_configs::desired::{OnIdle, ServiceTimeouts};

use super::*;
use crate::flow::State;
use crate::pipeline::testkit::{BACK, FRONT};
use crate::verdict::DropReason;
use crate::wire::{TCP_RST, Tags};

const FIN: u8 = TCP_FIN | TCP_ACK;
const BOTH: [(&str, &str); 2] = [(CLIENT, TO_WEB), (CLIENT6, TO_WEB6)];
const OTHER: &str = "198.51.100.8:6666";

fn flows(rig: &Rig) -> u32 {
    let (v4, v6) = (rig.pipeline.flows_v4().counts(), rig.pipeline.flows_v6().counts());
    v4.established + v4.embryonic + v6.established + v6.embryonic
}

fn state(rig: &Rig) -> Option<State> {
    let v4 = rig.pipeline.flows_v4().record(0).word();
    v4.or_else(|| rig.pipeline.flows_v6().record(0).word()).map(|word| word.state)
}

#[test]
fn a_forged_reset_ends_no_idle_connection() {
    for (client, vip) in BOTH {
        let mut rig = rig();
        let conn = Conn::open(&mut rig, client, vip);
        conn.to_node(&mut rig, TCP_ACK);
        for seq in [1000, 1001 + (2 << 20), 1 << 30, 1 << 31, 3 << 30] {
            // The attacker sits elsewhere: the node hears it (and says so if it doubts it), the box does not
            // take its neighbour for the client's.
            let forged = conn.request(TCP_RST).with(|pkt| (pkt.seq, pkt.smac) = (seq, [2, 0xba, 0xd0, 0, 0, 1]));
            assert_eq!(rig.front(&forged.bytes()).to_node().seq, seq);
        }
        for seq in [1000, 1 << 30, 1 << 31] {
            let forged = conn.reply(TCP_RST).with(|pkt| pkt.seq = seq);
            assert_eq!(rig.back(&forged.bytes()).to_client().dmac, conn.request(TCP_ACK).smac);
        }
        assert_eq!((rig.pipeline.stats().resets_doubted.get(), state(&rig)), (8, Some(State::Established)));
        rig.wait(7000);
        // No sign of life either: the connection's time runs from its own last packet.
        rig.front(&conn.request(TCP_RST).with(|pkt| pkt.seq = 5).bytes()).to_node();
        rig.sweep();
        assert_eq!(flows(&rig), 1, "reset by a guess");
        rig.wait(440);
        rig.sweep();
        assert_eq!(flows(&rig), 0, "kept alive by a guess");
        rig.check();
    }
}

#[test]
fn a_reset_in_window_ends_a_connection() {
    for (client, vip) in BOTH {
        for (forward, seq) in [(true, 1001), (true, 1101), (false, 1001), (false, 5_000_000)] {
            let mut rig = rig();
            let conn = Conn::open(&mut rig, client, vip);
            if forward {
                rig.front(&conn.request(TCP_RST).with(|pkt| pkt.seq = seq).bytes()).to_node();
            } else {
                rig.back(&conn.reply(TCP_RST).with(|pkt| pkt.seq = seq).bytes()).to_client();
            }
            assert_eq!(state(&rig), Some(State::Reset));
            rig.wait(10);
            rig.sweep();
            assert_eq!(flows(&rig), 0);
        }
    }
}

/// The numbers move with the plain packets, which go the express way.
#[test]
fn the_window_moves_with_the_data() {
    for (client, vip) in BOTH {
        let mut rig = rig();
        let conn = Conn::open(&mut rig, client, vip);
        for n in 0..10 {
            let (seq, ack) = (1001 + n * (1 << 20), 1001 + n * (1 << 24));
            rig.front(&conn.request(TCP_ACK).payload(b"data").with(|pkt| (pkt.seq, pkt.ack) = (seq, ack)).bytes());
            let answer = conn.reply(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (ack, seq + 4));
            rig.back(&answer.bytes()).to_client();
        }
        // The first of either stream is long acknowledged.
        rig.front(&conn.request(TCP_RST).bytes()).to_node();
        rig.back(&conn.reply(TCP_RST).bytes()).to_client();
        assert_eq!(state(&rig), Some(State::Established));
        let last = 1005 + 9 * (1 << 20);
        rig.front(&conn.request(TCP_RST).with(|pkt| pkt.seq = last).bytes()).to_node();
        assert_eq!(state(&rig), Some(State::Reset));
    }
}

#[test]
fn a_blind_client_establishes_no_flow() {
    for (client, vip) in BOTH {
        let mut rig = rig();
        let there = rig.front(&Pkt::syn(client, vip).bytes()).to_node();
        rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).with(|pkt| pkt.seq = 0xdead_0000).bytes()).to_client();
        for guess in [0_u32, 1001, 1 << 31, 0xdead_0000] {
            rig.front(&Pkt::tcp(client, vip, TCP_ACK).with(|pkt| pkt.ack = guess).bytes()).to_node();
            assert_eq!(state(&rig), Some(State::SynSent), "{guess:#x}");
        }
        rig.front(&Pkt::tcp(client, vip, TCP_ACK).with(|pkt| pkt.ack = 0xdead_0001).bytes()).to_node();
        assert_eq!(state(&rig), Some(State::Established));
    }
}

#[test]
fn a_refused_connection_is_over_at_once() {
    for (client, vip) in BOTH {
        let mut rig = rig();
        let there = rig.front(&Pkt::syn(client, vip).bytes()).to_node();
        let refusal = |ack: u32| Pkt::answer(&there, TCP_RST | TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (0, ack));
        rig.back(&refusal(77).bytes()).to_client();
        assert_eq!(flows(&rig), 1, "an answer to some other SYN");
        rig.back(&refusal(1001).bytes()).to_client();
        assert_eq!(flows(&rig), 0);
        rig.back(&refusal(1001).bytes()).dropped(DropReason::NoFlow);
        Conn::open(&mut rig, client, vip);
        rig.check();
    }
}

/// One SNAT port: whether it is to be had says whether its last flow rests.
#[test]
fn a_port_rests_until_the_last_ack() {
    let mut plan = plan();
    plan.snat.clear();
    plan.snat(SNAT, [2000, 2000]);
    let later = Pkt::syn(OTHER, TO_WEB).with(|pkt| pkt.seq = 500_000).bytes();
    let fins = |conn: &Conn| {
        let client = conn.request(FIN).bytes();
        let node = conn.reply(FIN).bytes();
        let client_ack = conn.request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (1002, 1002)).bytes();
        let node_ack = conn.reply(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (1002, 1002)).bytes();
        [(FRONT, client), (BACK, node), (FRONT, client_ack), (BACK, node_ack)]
    };
    for order in [[0, 1, 2, 3], [1, 0, 3, 2], [0, 1, 3, 2], [0, 3, 1, 2], [1, 2, 0, 3]] {
        let mut rig = Rig::new(plan.clone());
        let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
        let packets = fins(&conn);
        for step in order {
            rig.front(&later).dropped(DropReason::SnatExhausted);
            let (from, packet) = &packets[step];
            assert!(matches!(rig.send(*from, packet).verdict, crate::verdict::Verdict::Tx(_)));
        }
        assert_eq!(state(&rig), Some(State::TimeWait), "{order:?}");
        assert_eq!(rig.front(&later).to_node().src.port(), 2000, "{order:?}");
    }
}

/// A half-closed connection is alive in the other direction for as long as packets come.
#[test]
fn half_closed_connections_live_on() {
    for (client, vip) in BOTH {
        let mut rig = rig();
        let conn = Conn::open(&mut rig, client, vip);
        conn.to_node(&mut rig, FIN);
        for n in 0..20 {
            rig.wait(200);
            rig.sweep();
            let data = conn.reply(TCP_ACK).payload(&[1; 1000]).with(|pkt| (pkt.seq, pkt.ack) = (1001 + n * 1000, 1002));
            rig.back(&data.bytes()).to_client();
            rig.front(&conn.request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (1002, 2001 + n * 1000)).bytes())
                .to_node();
        }
        assert_eq!(state(&rig), Some(State::FinWait));
        rig.back(&conn.reply(FIN).with(|pkt| (pkt.seq, pkt.ack) = (21_001, 1002)).bytes()).to_client();
        rig.front(&conn.request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (1002, 21_002)).bytes()).to_node();
        assert_eq!(state(&rig), Some(State::TimeWait));
    }
}

fn told() -> Rig {
    let mut plan = plan();
    for service in &mut plan.services {
        service.on_idle = OnIdle::Reset;
        service.timeouts =
            Some(ServiceTimeouts { tcp_established: Some(100), tcp_fin: Some(50), ..Default::default() });
    }
    Rig::new(plan)
}

#[test]
fn both_ends_are_told_when_an_idle_connection_ends() {
    for (client, vip) in BOTH {
        let mut rig = told();
        let conn = Conn::open(&mut rig, client, vip);
        rig.front(&conn.request(TCP_ACK).payload(b"request").with(|pkt| pkt.ack = 1001).bytes()).to_node();
        rig.back(&conn.reply(TCP_ACK).payload(b"answer").with(|pkt| pkt.ack = 1008).bytes()).to_client();
        rig.front(&conn.request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (1008, 1007)).bytes()).to_node();
        rig.wait(90);
        rig.sweep();
        assert!(rig.said.is_empty(), "it lives");
        rig.wait(10);
        rig.sweep();
        let [to_client, to_node] = &rig.said[..] else { panic!("{} packets", rig.said.len()) };
        let (to_client, to_node) = (to_client.to_client(), to_node.to_node());
        assert_eq!((to_client.src, to_client.dst), (vip.parse().unwrap(), client.parse().unwrap()));
        assert_eq!((to_client.flags, to_client.seq, to_client.ack), (TCP_RST | TCP_ACK, 1007, 1008));
        assert_eq!(to_client.dmac, conn.request(TCP_ACK).smac, "by the client's last hop");
        assert_eq!((to_node.src, to_node.dst), (conn.at_node.src, conn.at_node.dst));
        assert_eq!((to_node.flags, to_node.seq, to_node.ack), (TCP_RST | TCP_ACK, 1008, 1007));
        assert_eq!(to_node.dmac, conn.at_node.dmac);
        assert_eq!((rig.pipeline.stats().idle_resets.get(), rig.pipeline.stats().generated.get()), (1, 2));
        rig.check();
    }
}

/// Where the box is no member of the VLANs it sees, the node's frames are tagged like the client's; and so must be
/// what the box says itself.
#[test]
fn what_is_said_at_the_end_is_in_the_tags_of_the_connection() {
    let to_nodes = Some(Tags::NONE.with(0x8100, 20));
    for (vlans, node_tags, at_node) in [
        (vec![], None, vec![]),
        (vec![7], None, vec![7]),
        (vec![8, 7], None, vec![8, 7]),
        (vec![7], to_nodes, vec![20]),
    ] {
        let mut rig = told();
        rig.change(|plan| plan.node_tags = node_tags);
        let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
        let tagged = conn.request(TCP_ACK).with(|pkt| pkt.vlans.clone_from(&vlans));
        assert_eq!(rig.front(&tagged.bytes()).to_node().vlans, at_node);
        rig.wait(100);
        rig.sweep();
        let [to_client, to_node] = &rig.said[..] else { panic!("{} packets", rig.said.len()) };
        assert_eq!((to_client.to_client().vlans, to_node.to_node().vlans), (vlans, at_node));
    }
}

/// An end that has got more than it acknowledged doubts the RST; the answer to its challenge ACK is right.
#[test]
fn who_speaks_after_the_end_is_answered() {
    for (client, vip) in BOTH {
        let mut rig = told();
        let conn = Conn::open(&mut rig, client, vip);
        rig.wait(100);
        rig.sweep();
        let challenge = conn.request(TCP_ACK).with(|pkt| (pkt.seq, pkt.ack) = (1001, 1461)).bytes();
        let reset = rig.front(&challenge).to_client();
        assert_eq!((reset.src, reset.dst), (vip.parse().unwrap(), client.parse().unwrap()));
        assert_eq!((reset.flags, reset.seq), (TCP_RST, 1461));
        let data = conn.reply(TCP_ACK).payload(b"late").with(|pkt| pkt.ack = 1234);
        let reset = rig.back(&data.bytes()).sent(BACK);
        assert_eq!((reset.src, reset.dst), (conn.at_node.src, conn.at_node.dst));
        assert_eq!((reset.flags, reset.seq), (TCP_RST, 1234));
        rig.front(&conn.request(TCP_RST).bytes()).dropped(DropReason::FlowExpired);
        assert_eq!(rig.drops(DropReason::FlowExpired), 3);
        // The same port again, at once.
        let again = Conn::open(&mut rig, client, vip);
        assert_eq!(again.at_node.src, conn.at_node.src);
        assert_eq!(state(&rig), Some(State::Established));
        // Forgotten, the client is told all the same.
        rig.wait(100);
        rig.sweep();
        rig.wait(11);
        rig.sweep();
        assert_eq!(flows(&rig), 0);
        assert_eq!(rig.front(&challenge).to_client().seq, 1461);
        assert_eq!(rig.drops(DropReason::OutOfState), 1);
        rig.check();
    }
}

#[test]
fn half_closed_ends_are_told_too() {
    let mut rig = told();
    let conn = Conn::open(&mut rig, CLIENT, TO_WEB);
    conn.to_node(&mut rig, FIN);
    rig.back(&conn.reply(TCP_ACK).with(|pkt| pkt.ack = 1002).bytes()).to_client();
    rig.wait(50);
    rig.sweep();
    assert_eq!(
        rig.said.iter().map(|out| super::super::testkit::valid(&out.bytes).seq).collect::<Vec<_>>(),
        [1001, 1002]
    );
}

#[test]
fn nobody_is_told_unless_asked_for_or_what_is_over_anyway() {
    let mut rig = rig();
    Conn::open(&mut rig, CLIENT, TO_WEB);
    rig.wait(7440);
    rig.sweep();
    assert_eq!((flows(&rig), rig.said.len()), (0, 0), "the default");
    let mut rig = told();
    rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node();
    Conn::open(&mut rig, CLIENT6, TO_WEB6).close(&mut rig);
    let reset = Conn::open(&mut rig, OTHER, TO_WEB);
    reset.to_node(&mut rig, TCP_RST);
    rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node();
    rig.wait(400);
    rig.sweep();
    assert_eq!((flows(&rig), rig.said.len()), (0, 0));
}

/// However many end together: so many per turn, and per second, and the rest in their turn.
#[test]
fn ends_are_said_a_few_at_a_time() {
    let mut rig = told();
    for n in 0..2000 {
        Conn::open(&mut rig, &format!("198.51.{}.{}:7000", n / 200, n % 200 + 1), TO_WEB);
    }
    rig.wait(100);
    let start = rig.now;
    while rig.pipeline.stats().idle_resets.get() < 2000 {
        let before = rig.said.len();
        rig.now.ns += 1_000_000;
        rig.upkeep();
        assert!(rig.said.len() - before <= 32);
        assert!(rig.now.ns - start.ns < 60_000_000_000, "{} of 2000", rig.said.len() / 2);
    }
    assert_eq!(rig.said.len(), 4000);
    assert!(rig.now.ns - start.ns > 300_000_000, "5,000 a second, and a tenth of them at once");
    rig.conserved();
}

/// The table must not stay full of ends that wait.
#[test]
fn an_end_long_overdue_is_not_said() {
    let mut rig = told();
    Conn::open(&mut rig, CLIENT, TO_WEB);
    rig.wait(10_000);
    rig.sweep();
    assert_eq!((rig.said.len(), flows(&rig)), (0, 0));
}

/// Without a free frame the end is lost, by name; the books still balance.
#[test]
fn ends_need_frames() {
    let mut rig = told();
    Conn::open(&mut rig, CLIENT, TO_WEB);
    let taken: Vec<_> = std::iter::from_fn(|| rig.pool.take()).collect();
    rig.wait(100);
    rig.sweep();
    assert_eq!((rig.said.len(), rig.drops(DropReason::NoFrame)), (0, 2));
    assert_eq!(rig.pipeline.stats().generated.get(), 2);
    for frame in taken {
        rig.pool.give(frame);
    }
}

#[test]
fn each_timeout_may_be_a_services_own() {
    type Story = fn(&mut Rig);
    let cases: [(&str, u32, Story); 7] = [
        ("tcp_syn", 20, |rig| drop(rig.front(&Pkt::syn(CLIENT, TO_WEB).bytes()).to_node())),
        ("tcp_established", 21, |rig| drop(Conn::open(rig, CLIENT, TO_WEB))),
        ("tcp_fin", 22, |rig| drop(Conn::open(rig, CLIENT, TO_WEB).to_node(rig, FIN))),
        ("tcp_time_wait", 23, |rig| Conn::open(rig, CLIENT, TO_WEB).close(rig)),
        ("tcp_rst", 24, |rig| drop(Conn::open(rig, CLIENT, TO_WEB).to_node(rig, TCP_RST))),
        ("udp_one_way", 25, |rig| drop(rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node())),
        ("udp", 26, |rig| {
            let there = rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node();
            rig.back(&Pkt::answer(&there, 0).bytes()).to_client();
            rig.front(&Pkt::udp(CLIENT, TO_DNS).bytes()).to_node();
        }),
    ];
    for (key, seconds, story) in cases {
        let mut plan = plan();
        let timeouts: ServiceTimeouts = serde_json::from_str(&format!("{{\"{key}\": {seconds}}}")).unwrap();
        plan.services.iter_mut().for_each(|service| service.timeouts = Some(timeouts.clone()));
        let mut rig = Rig::new(plan);
        story(&mut rig);
        rig.wait(u64::from(seconds) - 4);
        rig.sweep();
        assert_eq!(flows(&rig), 1, "{key}: too early");
        rig.wait(4);
        rig.sweep();
        assert_eq!(flows(&rig), 0, "{key}: too late");
    }
}
