//! Several workers: who is asked about a client, and that they agree.

use super::*;

/// Only the opening packet of a flow that another worker owns is handed to whoever knows its client, and
/// one with advice never again.
#[test]
fn who_is_asked_and_when() {
    let mut rigs: Vec<Rig> = (0..2).map(|worker| Rig::with(sticky(), &config(worker, 2))).collect();
    let mut asked = 0;
    for port in 5000..5100 {
        let (client, vip) = (from("198.51.100.7", port), TO_WEB);
        let syn = Pkt::syn(&client, vip).bytes();
        let owner = match rigs[0].front(&syn).verdict {
            Verdict::Handoff(WorkerId(1)) => 1,
            Verdict::Ask(WorkerId(1)) | Verdict::Tx(BACK) => 0,
            other => panic!("{other:?}"),
        };
        let verdict = rigs[owner].handed(FRONT, &syn).verdict;
        // Of no use to anybody: neither is handed on.
        for useless in [Pkt::tcp(&client, TO_ALT, TCP_ACK), Pkt::syn(&client, TO_ALT).with(|pkt| pkt.ttl = 1)] {
            assert!(!matches!(rigs[owner].handed(FRONT, &useless.bytes()).verdict, Verdict::Ask(_)));
        }
        if let Verdict::Ask(WorkerId(adviser)) = verdict {
            asked += 1;
            assert_ne!(usize::from(adviser), owner);
            let now = rigs[0].now;
            let advice = rigs[usize::from(adviser)].pipeline.advise(&syn, now).expect("a node");
            assert!(rigs[owner].pipeline.advise(&syn, now).is_none(), "not its client");
            rigs[owner].pipeline.heed(Note::Advised(Some(advice)));
            let seen = rigs[owner].handed(FRONT, &syn).to_node();
            assert_eq!(seen.dst.ip(), advice.node);
            // One that takes none any more is no advice; neither is asking again.
            rigs[owner].pipeline.heed(Note::Advised(Some(Choice { node: "10.0.0.99".parse().unwrap(), port: 0 })));
            let other = Pkt::syn(&from("198.51.100.8", port), vip).bytes();
            rigs[owner].handed(FRONT, &other).to_node();
            rigs[owner].pipeline.heed(Note::Flow);
            let ack = Pkt::tcp(&client, vip, TCP_ACK).bytes();
            rigs[owner].handed(FRONT, &ack).to_node();
        }
    }
    assert!((20..80).contains(&asked), "{asked}");
    rigs.iter().for_each(Rig::check);
}

/// Whole workers and the real exchange: packets come to either, clients' flows belong to either, and a client
/// has one node all the same.
struct Box2 {
    farm: Farm,
}

impl Box2 {
    fn new(plan: Plan) -> Self {
        let pipeline = PipelineConfig { icmp_per_second: 1000, ..config(0, 2) };
        let mut farm = Farm::new(plan, &FarmConfig { workers: 2, pipeline, frames: 1024, ..FarmConfig::default() });
        (0..3).for_each(|_| farm.round());
        Self { farm }
    }

    /// Where packets to nodes went since the last time: by client port, nodes.
    fn at_nodes(&mut self) -> Vec<Seen> {
        (0..6).for_each(|_| self.farm.round());
        let frames: Vec<Vec<u8>> = self.farm.backs.iter().flat_map(MemPeer::take_all).collect();
        self.farm.fronts.iter().for_each(|front| drop(front.take_all()));
        frames.iter().map(|frame| look(frame).expect("a whole packet")).filter(|seen| seen.dmac[1] == 0xee).collect()
    }

    /// Opens flows from one client, at either worker's port, and says how many each node got.
    fn open(&mut self, host: &str, ports: std::ops::Range<u16>, vip: &str) -> BTreeMap<IpAddr, usize> {
        for port in ports {
            let client = from(host, port);
            let packet = if vip.ends_with(":53") { Pkt::udp(&client, vip) } else { Pkt::syn(&client, vip) };
            assert!(self.farm.fronts[usize::from(port % 3 == 0)].inject(&packet.bytes()));
        }
        let mut nodes = BTreeMap::new();
        for seen in self.at_nodes() {
            *nodes.entry(seen.dst.ip()).or_default() += 1;
        }
        nodes
    }
}

#[test]
fn two_workers_agree_on_every_client() {
    let mut two = Box2::new(sticky());
    let (mut all, mut flows) = (BTreeSet::new(), 0);
    for n in 1..30 {
        for (host, vips) in [(format!("198.51.100.{n}"), FAMILIES[0].1), (format!("2001:db8:2::{n:x}"), FAMILIES[1].1)]
        {
            let mut nodes = BTreeMap::new();
            for (turn, vip) in vips.into_iter().enumerate() {
                let first = 5000 + 100 * turn as u16;
                for (node, count) in two.open(&host, first..first + 40, vip) {
                    *nodes.entry(node).or_insert(0) += count;
                }
            }
            assert_eq!(nodes.values().sum::<usize>(), 120, "{host}: {nodes:?}");
            assert_eq!(nodes.len(), 1, "{host} goes to several nodes: {nodes:?}");
            flows += 120;
            all.extend(nodes.into_keys());
        }
    }
    assert_eq!(all.len(), 10);
    let (asked, evicted) = (two.farm.sum(|s| s.affinity_asked.get()), two.farm.sum(|s| s.affinity_evicted.get()));
    // Half of all flows belong to the worker that does not know their client.
    assert!((flows * 4 / 10..flows * 6 / 10).contains(&asked) && evicted == 0, "{asked} of {flows} asked");
    let (sent, received) = (two.farm.sum(|s| s.handoff_out.get()), two.farm.sum(|s| s.handoff_in.get()));
    assert!(sent == received && received >= 2 * asked, "{sent} sent, {received} received, {asked} asked");
    assert_eq!(two.farm.sum(WorkerStats::dropped), 0);
}

/// Nobody is asked about a client that will be refused, and no place given to it.
#[test]
fn a_denied_client_is_not_asked_about() {
    let mut plan = sticky();
    plan.deny = std::sync::Arc::new(vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:2::/64".parse().unwrap()]);
    let mut two = Box2::new(plan);
    for (host, [web, ..]) in [("198.51.100.7", FAMILIES[0].1), ("2001:db8:2::7", FAMILIES[1].1)] {
        assert!(two.open(host, 5000..5040, web).is_empty());
    }
    assert_eq!((two.farm.sum(|s| s.affinity_asked.get()), two.farm.sum(WorkerStats::dropped)), (0, 80));
    let mut plan = sticky();
    plan.service(WEB).source_ranges = vec!["192.0.2.0/24".parse().unwrap()];
    let mut two = Box2::new(plan);
    assert!(two.open("198.51.100.7", 5000..5040, TO_WEB).is_empty());
    assert_eq!((two.farm.sum(|s| s.affinity_asked.get()), two.farm.sum(WorkerStats::dropped)), (0, 40));
}

/// What the hand-off is for: without it each worker has an opinion of its own.
#[test]
fn two_workers_that_do_not_ask_disagree() {
    let mut plan = sticky();
    plan.service(WEB).scheduler = Scheduler::RandomTwoChoices;
    let mut rigs: Vec<Rig> = (0..2).map(|worker| Rig::with(plan.clone(), &config(worker, 2))).collect();
    let differ = (1..30).filter(|n| {
        let syn = Pkt::syn(&from(&format!("198.51.100.{n}"), 5000), TO_WEB);
        decided(&mut rigs[0], &syn).dst.ip() != decided(&mut rigs[1], &syn).dst.ip()
    });
    assert!(differ.count() > 5);
}

/// A datagram in fragments opens a flow like any other: its rest waits until the first one is back.
#[test]
fn a_fragmented_first_datagram_asks_too() {
    for (host, [.., dns]) in FAMILIES {
        let mut two = Box2::new(sticky());
        let mut nodes = BTreeSet::new();
        for port in 5000..5040 {
            let whole = Pkt::udp(&from(host, port), dns).payload(&vec![port as u8; 2400]).bytes();
            // In either order, by either worker.
            let mut pieces = split(&whole, &[1200], port.into());
            if port % 3 == 0 {
                pieces.reverse();
            }
            for (at, piece) in pieces.iter().enumerate() {
                assert!(two.farm.fronts[(usize::from(port) + at) % 2].inject(piece));
            }
            (0..8).for_each(|_| two.farm.round());
            let frames: Vec<Vec<u8>> = two.farm.backs.iter().flat_map(MemPeer::take_all).collect();
            assert_eq!(frames.len(), pieces.len(), "port {port}: every piece arrives");
            nodes.extend(
                frames.iter().map(|frame| if host.contains(':') { &frame[38..54] } else { &frame[30..34] }.to_vec()),
            );
        }
        assert_eq!(nodes.len(), 1, "{nodes:?}");
        assert!(two.farm.sum(|stats| stats.affinity_asked.get()) > 5);
        assert_eq!(two.farm.sum(WorkerStats::dropped), 0);
    }
}

/// Where a node serves by several ports, the client keeps its own, and the node when that port is gone.
#[test]
fn of_several_backends_on_a_node_a_client_keeps_its_own() {
    let mut plan = sticky();
    let ports: Vec<String> =
        NODES.iter().flat_map(|node| [8001, 8002, 8003].map(|port| format!("{node}:{port}"))).collect();
    plan.service(WEB).backends = ports.iter().map(|place| Plan::backend(place)).collect();
    // With two workers the one asked says which.
    let mut two = Box2::new(plan.clone());
    for host in ["198.51.100.7", "198.51.100.8", "198.51.100.9", "198.51.100.10"] {
        for port in 5000..5010 {
            two.farm.fronts[usize::from(port) % 2].inject(&Pkt::syn(&from(host, port), TO_WEB).bytes());
        }
        (0..8).for_each(|_| two.farm.round());
        let places: BTreeSet<_> = two.at_nodes().iter().map(|seen| seen.dst).collect();
        assert_eq!(places.len(), 1, "{host}: {places:?}");
    }
    let mut rig = Rig::new(plan);
    for host in ["198.51.100.27", "198.51.100.28", "198.51.100.29", "198.51.100.30"] {
        let mut place = |port| rig.front(&Pkt::syn(&from(host, port), TO_WEB).bytes()).to_node().dst;
        assert_eq!(place(1), place(2), "{host}");
    }
    let dst = |rig: &mut Rig, port| rig.front(&Pkt::syn(&from("198.51.100.7", port), TO_WEB).bytes()).to_node().dst;
    let first = dst(&mut rig, 5000);
    assert!((5001..5020).all(|port| dst(&mut rig, port) == first));
    rig.change(|plan| {
        plan.service(WEB).backends.retain(|b| (b.address, b.port) != (Some(first.ip()), Some(first.port())));
    });
    let second = dst(&mut rig, 5100);
    assert!(second.ip() == first.ip() && second.port() != first.port(), "{first}, then {second}");
    assert_eq!(tcp(&mut rig, &from("198.51.100.7", 5101), TO_ALT), first.ip());
    // The other service's flow went to its own node port; this one's next goes to some port of the node.
    assert_eq!(dst(&mut rig, 5102).ip(), first.ip());
}
