//! Flows of a burst renewed together, against each looked up anew in its packet's turn: two boxes get the same bursts
//! and the same changes, and only one of them renews. Every verdict, every byte, every record and every count must be
//! the same.

use penstock_configs::desired::{Mode, OnDown, Scheduler, ServiceLimits};
use proptest::prelude::*;

use super::*;
use crate::flow::{Direction, Entry};
use crate::pipeline::testkit::{self, FRONT, down, draining};
use crate::pipeline::{PipelineConfig, Stage};
use penstock_configs::desired::BackendState;

const NODES: [&str; 3] = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];

fn start() -> Plan {
    let mut plan = Plan::default();
    plan.serve(WEB, &NODES.map(|node| format!("{node}:31443")).each_ref().map(String::as_str));
    plan.serve(DNS, &["10.0.0.11:31053", "10.0.0.12:31053"]);
    plan.serve(WEB6, &["[fd00::11]:31443", "[fd00::12]:31443"]);
    plan.snat(SNAT, [1024, 65535]);
    plan.snat(SNAT6, [1024, 65535]);
    plan
}

/// What an operator, a controller and the checks do, by number.
fn change(plan: &mut Plan, number: usize) {
    let has_web = plan.services.iter().any(|service| service.name == WEB);
    match number {
        0 => plan.health(NODES[0], BackendState::Down),
        1 => plan.health(NODES[0], BackendState::Active),
        2 => plan.snat.truncate(1),
        3 => plan.deny = std::sync::Arc::new(vec!["198.51.100.0/28".parse().unwrap()]),
        4 => plan.deny = std::sync::Arc::default(),
        5 => plan.unknown = vec![NODES[1].parse().unwrap()],
        6 => plan.remove(DNS),
        7 => plan.services.reverse(),
        _ if !has_web => {
            plan.serve(WEB, &["10.0.0.12:31443"]);
        }
        8 => plan.remove(WEB),
        9 => plan.service(WEB).backends.truncate(2),
        10 => down(&mut plan.service(WEB).backends[0]),
        11 => draining(&mut plan.service(WEB).backends[0]),
        12 => plan.service(WEB).on_down = OnDown::Rehome,
        13 => plan.service(WEB).on_down = OnDown::Keep,
        14 => plan.service(WEB).scheduler = Scheduler::Lc,
        15 => plan.service(WEB).limits = Some(ServiceLimits { connections: Some(12), ..ServiceLimits::default() }),
        16 => plan.service(WEB).source_ranges = vec!["198.51.100.16/28".parse().unwrap()],
        _ => plan.service(WEB).mode = Mode::Dnat,
    }
}

/// A client's first packet and its next; of TCP also what its node saw.
struct Flow {
    opening: Vec<u8>,
    data: Vec<u8>,
    there: Option<Seen>,
}

/// A box with flows.
fn opened() -> (Rig, Vec<Flow>) {
    let mut rig = Rig::with(start(), &PipelineConfig { icmp_per_second: 1_000_000_000, ..testkit::config(0, 1) });
    let mut flows = Vec::new();
    for n in 0..32 {
        let client = format!("198.51.100.{n}:4000");
        let client6 = format!("[2001:db8:2::{n:x}]:4000");
        let (client, vip) = match n % 4 {
            0 => (&client, TO_DNS),
            1 => (&client6, TO_WEB6),
            _ => (&client, TO_WEB),
        };
        let (opening, data) = match vip {
            TO_DNS => (Pkt::udp(client, vip), Pkt::udp(client, vip)),
            _ => (Pkt::syn(client, vip), Pkt::tcp(client, vip, TCP_ACK)),
        };
        let there = rig.front(&opening.bytes()).to_node();
        if vip != TO_DNS && n % 8 != 7 {
            rig.back(&Pkt::answer(&there, TCP_SYN | TCP_ACK).bytes()).to_client();
            rig.front(&data.bytes()).to_node();
        }
        let there = (vip != TO_DNS).then_some(there);
        flows.push(Flow { opening: opening.bytes(), data: data.bytes(), there });
    }
    (rig, flows)
}

fn everything(rig: &Rig) -> Vec<String> {
    let (four, six) = (&rig.pipeline.v4.flows, &rig.pipeline.v6.flows);
    let records = (0..32).flat_map(|at| [format!("{:?}", four.record(at)), format!("{:?}", six.record(at))]);
    let loads = (0..64).map(|slot| format!("{:?} {:?}", four.share().load(slot), six.share().load(slot)));
    records.chain(loads).chain([format!("{:?}", rig.pipeline.stats().drops)]).collect()
}

/// After each change a burst of packets: which flow's, and the client's first again, its data, or the node's.
fn same(rounds: &[(usize, Vec<(usize, u8)>)]) {
    let ((mut together, flows), (mut each, _)) = (opened(), opened());
    for (number, packets) in rounds {
        for rig in [&mut together, &mut each] {
            rig.change(|plan| change(plan, *number));
        }
        // Where an opening's fate hangs on how many flows are counted already, it may differ: together they are counted
        // before the burst's first packet, as they should be.
        let web = together.plan.services.iter().find(|service| service.name == WEB);
        let counts = web.is_some_and(|web| web.scheduler == Scheduler::Lc || web.limits.is_some());
        let bytes_of = |(flow, kind): &(usize, u8)| {
            let Flow { opening, data, there } = &flows[*flow];
            match (kind, there) {
                (0, _) if !counts => (FRONT, opening.clone()),
                (1, Some(there)) => (testkit::BACK, Pkt::answer(there, TCP_ACK).bytes()),
                _ => (FRONT, data.clone()),
            }
        };
        let (front, back): (Vec<_>, Vec<_>) = packets.iter().map(bytes_of).partition(|(from, _)| *from == FRONT);
        for (from, packets) in [(FRONT, front), (testkit::BACK, back)] {
            let slices: Vec<&[u8]> = packets.iter().map(|(_, bytes)| bytes.as_slice()).collect();
            each.pipeline.renews = false;
            assert_eq!(together.burst(from, &slices, false), each.burst(from, &slices, false));
            for (one, other) in everything(&together).into_iter().zip(everything(&each)) {
                assert_eq!(one, other);
            }
        }
    }
    together.check();
    each.check();
}

proptest! {
    #[test]
    fn renewed_together_as_each_for_itself(
        rounds in prop::collection::vec((0_usize..18, prop::collection::vec((0_usize..32, 0_u8..6), 0..64)), 1..6)
    ) {
        same(&rounds);
    }
}

/// Behind a change it is those that stand that are renewed, before any packet is looked at.
#[test]
fn those_that_stand_are_renewed_and_no_other() {
    let (mut rig, _) = opened();
    rig.change(|plan| plan.health(NODES[0], BackendState::Down));
    rig.change(|plan| plan.service(WEB).on_down = OnDown::Reset);
    let gone = u32::from_be_bytes([10, 0, 0, 11]);
    let live: Vec<u32> = rig.pipeline.v4.flows.live().map(|(record, _)| record.client).collect();
    let entries: Vec<_> =
        (0..live.len() as u32).map(|record| Some(Entry { record, direction: Direction::Forward })).collect();
    rig.pipeline.renew(&vec![Stage::Plain4; entries.len()], &entries);
    let (mut renewed, mut left) = (0, 0);
    for (record, _) in rig.pipeline.v4.flows.live() {
        assert_eq!(record.epoch == rig.pipeline.epoch, record.node != gone);
        *(if record.node == gone { &mut left } else { &mut renewed }) += 1;
    }
    assert!(renewed > 5 && left > 2, "{renewed} renewed, {left} left");
}

/// A burst without packets of flows says nothing of the next.
#[test]
fn a_packet_of_no_flow_is_no_sign_that_all_are_renewed() {
    let (mut rig, flows) = opened();
    rig.apply();
    rig.front(&Pkt::syn("198.51.100.200:1", "203.0.113.10:81").bytes());
    assert!(rig.pipeline.renews);
    rig.burst(FRONT, &[&flows[2].data], false);
    assert!(rig.pipeline.renews, "it was of the snapshot before");
    rig.burst(FRONT, &[&flows[2].data], false);
    assert!(!rig.pipeline.renews, "it is of this one");
}
