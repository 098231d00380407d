//! Whole workers over rings in memory: fragments held and handed over, with the ledger balanced and every
//! frame accounted for at any moment. Guards what the pipeline's own tests cannot see: what the loop
//! does with a held frame.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use penstock_dataplane::clock::Now;
use penstock_dataplane::handoff::Exchange;
use penstock_dataplane::io::mem::{MemPeer, MemPort, pair};
use penstock_dataplane::io::{FramePool, PacketMemory};
use penstock_dataplane::persist::Store;
use penstock_dataplane::pipeline::Pipeline;
use penstock_dataplane::pipeline::testkit::{BACK, FRONT, Pkt, Plan, config};
use penstock_dataplane::publish::Mailbox;
use penstock_dataplane::stats::WorkerStats;
use penstock_dataplane::tables::Compiler;
use penstock_dataplane::verdict::{DropReason, WorkerId};
use penstock_dataplane::worker::{Attached, IdlePolicy, Worker, WorkerParts};

struct TheBox {
    workers: Vec<Worker<MemPort, MemPort>>,
    /// By worker: the far ends of the front and the back port.
    peers: Vec<[MemPeer; 2]>,
    stats: Vec<Arc<WorkerStats>>,
    now: Now,
}

impl TheBox {
    fn new(workers: u16, plan: &Plan) -> Self {
        let exchange = Arc::new(Exchange::new(workers, 2048).unwrap());
        let tables = plan.compile(&mut Compiler::default()).unwrap();
        let view = Arc::new(plan.view(tables, 1));
        let mut made = Self { workers: Vec::new(), peers: Vec::new(), stats: Vec::new(), now: Now::from_secs(1000) };
        for worker in 0..workers {
            let config = config(worker, workers);
            let stats = Arc::new(WorkerStats::new(3, config.max_services));
            let store = Store::anonymous(config.shape()).unwrap();
            let pipeline = Pipeline::new(&config, store, Arc::clone(&stats)).unwrap();
            let mailbox = Arc::new(Mailbox::new(Arc::clone(exchange.bell(WorkerId(worker)))));
            mailbox.publish(Arc::clone(&view));
            let ((front, front_peer), (back, back_peer)) = (pair(64), pair(64));
            made.workers.push(Worker::new(WorkerParts {
                sockets: vec![Attached { id: FRONT, port: front }, Attached { id: BACK, port: back }],
                kernel: None,
                pool: FramePool::new(PacketMemory::heap(512, 2048, 256)),
                pipeline,
                exchange: Arc::clone(&exchange),
                mailbox,
                idle: IdlePolicy::busy(),
            }));
            made.peers.push([front_peer, back_peer]);
            made.stats.push(stats);
        }
        made
    }

    /// A turn of each worker, and the books after it.
    #[track_caller]
    fn turn(&mut self) {
        for (worker, stats) in self.workers.iter_mut().zip(&self.stats) {
            worker.turn(self.now);
            assert_eq!(stats.unaccounted(), 0, "the ledger");
            assert_eq!(worker.frames_accounted(), 512, "frames");
        }
    }

    fn sum(&self, of: impl Fn(&WorkerStats) -> u64) -> u64 {
        self.stats.iter().map(|stats| of(stats)).sum()
    }
}

/// IPv4 fragments of a UDP packet, the last one first.
fn reversed_fragments(pkt: &Pkt) -> Vec<Vec<u8>> {
    let whole = pkt.bytes();
    let payload = &whole[34..];
    let mut pieces: Vec<Vec<u8>> = payload
        .chunks(1400)
        .enumerate()
        .map(|(n, part)| {
            let more = (n + 1) * 1400 < payload.len();
            let field = (n * 175) as u16 | if more { 0x2000 } else { 0 };
            let mut piece = whole[..34].to_vec();
            piece[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            piece[20..22].copy_from_slice(&field.to_be_bytes());
            piece.extend(part);
            piece
        })
        .collect();
    pieces.reverse();
    pieces
}

fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.serve("203.0.113.10:53/udp", &["10.0.0.11:31053"]);
    plan.snat("10.0.0.1", [1024, 65535]);
    plan
}

#[test]
fn fragments_over_several_workers() {
    let mut the_box = TheBox::new(3, &plan());
    for port in 2000..2020 {
        let request = Pkt::udp(&format!("198.51.100.7:{port}"), "203.0.113.10:53").payload(&[9; 8000]);
        let pieces = reversed_fragments(&request);
        for (n, piece) in pieces.iter().enumerate() {
            the_box.peers[(n + port) % 3][0].inject(piece);
            the_box.turn();
        }
        the_box.turn();
        the_box.turn();
        let there: usize = the_box.peers.iter().map(|peers| peers[1].take_all().len()).sum();
        assert_eq!(there, pieces.len(), "datagram of port {port}");
        assert_eq!(the_box.sum(|stats| stats.held.get()), 0);
    }
    assert!(the_box.sum(|stats| stats.handoff_out.get()) > 20);
    assert_eq!(the_box.sum(WorkerStats::dropped), 0);
}

#[test]
fn held_frames_time_out_and_are_given_back_at_the_end() {
    let mut the_box = TheBox::new(1, &plan());
    let request = Pkt::udp("198.51.100.7:2000", "203.0.113.10:53").payload(&[9; 8000]);
    let pieces = reversed_fragments(&request);
    for piece in &pieces[..3] {
        the_box.peers[0][0].inject(piece);
    }
    the_box.turn();
    assert_eq!(the_box.sum(|stats| stats.held.get()), 3);
    the_box.now.ns += 4_000_000_000;
    the_box.turn();
    assert_eq!(the_box.sum(|stats| stats.held.get()), 0);
    assert_eq!(the_box.sum(|stats| stats.drops[DropReason::FragmentTimeout as usize].get()), 3);

    the_box.peers[0][0].inject(&pieces[0]);
    the_box.turn();
    assert_eq!(the_box.sum(|stats| stats.held.get()), 1);
    // A worker that stops leaves nothing behind.
    the_box.workers[0].run(&AtomicBool::new(true));
    assert_eq!(the_box.sum(|stats| stats.held.get()), 0);
    assert_eq!(the_box.stats[0].unaccounted(), 0);
    assert_eq!(the_box.workers[0].frames_accounted(), 512);
}
