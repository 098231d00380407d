//! The express way against the long way: two boxes get the same packets, one of them only by the
//! long way. Every verdict, every byte and every record must be the same.

use penstock_configs::desired::Mode;
use proptest::prelude::*;

use super::*;
use crate::flow::State;
use crate::pipeline::Stage;
use crate::pipeline::side::Sided;
use crate::pipeline::testkit::{BACK, FRONT};
use crate::tables::Tabled;
use crate::verdict::PortId;
use crate::wire::{self, PROTO_TCP, PROTO_UDP, Parsed, Plain, TCP_RST, Transport, V4, V6};

const PSH: u8 = 0x08;
const FLAGS: [u8; 8] =
    [TCP_ACK, TCP_ACK, TCP_ACK | PSH, TCP_ACK | PSH, TCP_FIN | TCP_ACK, TCP_RST, TCP_SYN, TCP_SYN | TCP_ACK];

/// Settles a packet as [`crate::pipeline::Pipeline::burst`] does one that is not plain.
fn the_long_way(rig: &mut Rig, from: PortId, packet: &[u8]) -> Out {
    let mut frame = rig.pool.take_with(packet).unwrap();
    let memory = rig.pool.memory();
    let pipeline = &mut rig.pipeline;
    let verdict = match wire::parse(packet) {
        Ok(Parsed::Ip(headers)) if matches!(headers.transport, Transport::Tcp | Transport::Udp) => {
            if headers.v6 {
                let hash = V6::side(pipeline).begin(packet, &headers);
                pipeline.transit::<V6>(memory, &mut frame, headers, hash, None, from, false, rig.now)
            } else {
                let hash = V4::side(pipeline).begin(packet, &headers);
                pipeline.transit::<V4>(memory, &mut frame, headers, hash, None, from, false, rig.now)
            }
        }
        // Not for either of the ways compared.
        _ => {
            rig.pool.give(frame);
            return rig.send(from, packet);
        }
    };
    let bytes = memory.bytes(&frame).to_vec();
    rig.pool.give(frame);
    Out { verdict, bytes }
}

/// The same packet to both; they must do the same.
#[track_caller]
fn both(express: &mut Rig, long: &mut Rig, from: PortId, packet: &[u8]) -> Out {
    let (one, other) = (express.send(from, packet), the_long_way(long, from, packet));
    assert_eq!(one, other);
    one
}

fn records(rig: &Rig) -> Vec<String> {
    let v4 = (0..8).map(|at| format!("{:?}", rig.pipeline.v4.flows.record(at)));
    v4.chain((0..8).map(|at| format!("{:?}", rig.pipeline.v6.flows.record(at)))).collect()
}

#[derive(Debug, Clone)]
struct Step {
    flow: usize,
    forward: bool,
    flags: u8,
    ttl: u8,
    payload: usize,
    /// Another neighbour of the client.
    moved: bool,
    corrupt: Option<usize>,
    padding: usize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let payload = prop_oneof![8 => 0_usize..40, 1 => 1440_usize..1480];
    let ttl = prop_oneof![8 => Just(64_u8), 1 => 0_u8..4];
    let corrupt = prop::option::weighted(0.1, 14_usize..60);
    let flags = prop::sample::select(FLAGS.to_vec());
    let step = (0_usize..8, any::<bool>(), flags, ttl, payload, prop::bool::weighted(0.1), corrupt, 0_usize..8);
    let step = step.prop_map(|(flow, forward, flags, ttl, payload, moved, corrupt, padding)| Step {
        flow,
        forward,
        flags,
        ttl,
        payload,
        moved,
        corrupt,
        padding,
    });
    prop::collection::vec(step, 1..60)
}

fn same(mode: Mode, steps: &[Step]) {
    let mut plan = plan();
    for service in &mut plan.services {
        service.mode = mode;
    }
    let (mut express, mut long) = (Rig::new(plan.clone()), Rig::new(plan));
    let clients = [
        (CLIENT, TO_WEB),
        ("198.51.100.8:6000", TO_WEB),
        (CLIENT6, TO_WEB6),
        ("[2001:db8:2::8]:6000", TO_WEB6),
        (CLIENT, TO_DNS),
        ("198.51.100.8:6000", TO_DNS),
        (CLIENT6, TO_DNS6),
        ("[2001:db8:2::8]:6000", TO_DNS6),
    ];
    let there = clients.map(|(src, dst)| {
        if dst.ends_with(":53") {
            return both(&mut express, &mut long, FRONT, &Pkt::udp(src, dst).bytes()).to_node();
        }
        let there = both(&mut express, &mut long, FRONT, &Pkt::syn(src, dst).bytes()).to_node();
        both(&mut express, &mut long, BACK, &Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
        both(&mut express, &mut long, FRONT, &Pkt::tcp(src, dst, TCP_ACK).bytes()).to_node();
        there
    });
    for step in steps {
        let (src, dst) = clients[step.flow];
        let packet = match step.forward {
            false => Pkt::answer(&there[step.flow], step.flags),
            true if dst.ends_with(":53") => Pkt::udp(src, dst),
            true => Pkt::tcp(src, dst, step.flags),
        };
        let mut bytes = packet
            .payload(&vec![0xa5; step.payload])
            .with(|packet| {
                (packet.ttl, packet.padding) = (step.ttl, step.padding);
                packet.smac[5] ^= u8::from(step.moved);
            })
            .bytes();
        if let Some(place) = step.corrupt.and_then(|at| bytes.get_mut(at)) {
            *place ^= 0x21;
        }
        both(&mut express, &mut long, if step.forward { FRONT } else { BACK }, &bytes);
        assert_eq!(records(&express), records(&long));
    }
    express.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_express_way_does_what_the_long_way_does(steps in steps(), dnat: bool) {
        same(if dnat { Mode::Dnat } else { Mode::Nat }, &steps);
    }
}

/// A client that goes on counts as answered where the node answers it by itself.
#[test]
fn datagrams_of_dsr_do_the_same_either_way() {
    let plan = super::modes::dsr();
    let (mut express, mut long) = (Rig::new(plan.clone()), Rig::new(plan));
    for _ in 0..4 {
        both(&mut express, &mut long, FRONT, &Pkt::udp(CLIENT, TO_DNS).bytes());
        assert_eq!(records(&express), records(&long));
    }
    assert_eq!(express.pipeline.v4.flows.record(0).word().unwrap().state, State::UdpStream);
}

/// The comparisons above would hold as well if nothing ever went express.
#[test]
fn data_goes_express() {
    for (client, to, v6) in [(CLIENT, TO_WEB, false), (CLIENT6, TO_WEB6, true)] {
        let mut rig = Rig::new(plan());
        let there = rig.front(&Pkt::syn(client, to).bytes()).to_node();
        rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
        rig.front(&Pkt::tcp(client, to, TCP_ACK).bytes()).to_node();
        let data = Pkt::tcp(client, to, TCP_ACK).payload(b"data").bytes();
        let way = if v6 { sent::<V6, PROTO_TCP> } else { sent::<V4, PROTO_TCP> };
        assert_eq!(way(&mut rig, FRONT, &data), Some(BACK));
    }
}

#[test]
fn datagrams_go_express() {
    for (client, to, v6) in [(CLIENT, TO_DNS, false), (CLIENT6, TO_DNS6, true)] {
        let mut rig = Rig::new(plan());
        let ask = Pkt::udp(client, to).bytes();
        let there = rig.front(&ask).to_node();
        let answer = Pkt::answer(&there, 0).bytes();
        let way = if v6 { sent::<V6, PROTO_UDP> } else { sent::<V4, PROTO_UDP> };
        assert_eq!(way(&mut rig, FRONT, &ask), Some(BACK), "unanswered");
        assert_eq!(way(&mut rig, BACK, &answer), None, "the first answer");
        rig.back(&answer).to_client();
        assert_eq!(way(&mut rig, FRONT, &ask), None, "who goes on has seen it");
        rig.front(&ask).to_node();
        assert_eq!(way(&mut rig, FRONT, &ask), Some(BACK));
        assert_eq!(way(&mut rig, BACK, &answer), Some(FRONT));
    }
}

/// Where the express way sends a packet of a known flow.
fn sent<F: Sided + Tabled + Plain, const PROTOCOL: u8>(rig: &mut Rig, from: PortId, packet: &[u8]) -> Option<PortId> {
    let mut frame = rig.pool.take_with(packet).unwrap();
    let bytes = rig.pool.memory().bytes_mut(&mut frame);
    assert!(F::is_plain_part::<PROTOCOL>(bytes, bytes.len()));
    if PROTOCOL == PROTO_UDP {
        assert!(matches!(rig.pipeline.begin(bytes, bytes.len()).0, Stage::Datagram(_)), "a burst would not take it so");
    }
    let side = F::side_mut(&mut rig.pipeline);
    let hash = side.begin(bytes, &F::headers::<PROTOCOL>(bytes));
    let entry = side.flows.prefetch_record(hash).unwrap();
    let sent = rig.pipeline.express::<F, PROTOCOL>(bytes, entry, from, rig.now);
    rig.pool.give(frame);
    sent
}
