//! The nodes' side, without a memory of connections: a node's first sequence number is a hash of its address, the
//! client's and the client's number, as a SYN cookie is, so that every later segment shows whether this node opened
//! the connection it says it is of.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

use penstock_dataplane::clock::Now;
use rustc_hash::FxBuildHasher;

use super::client::MARK;
use super::segment::{ACK, End, Ends, FIN, PSH, RST, SYN, Segment};
use super::tally::NodeTally;

/// SNAT addresses that port reuse is told apart for.
const ADDRESSES: usize = 4;
const PORTS: usize = 1 << 16;

/// How long a node that closed first keeps its end of a connection (Linux).
const TIME_WAIT_MS: u32 = 60_000;

/// What is left of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    /// Milliseconds; 0: there was none.
    opened: u32,
    closed: u32,
    /// Behind the client's FIN.
    seq: u32,
    stamp: u32,
}

impl Last {
    /// Whether a node in TIME_WAIT would answer this SYN as a new one (RFC 6191 section 2, as Linux has it).
    fn takes(&self, syn: &Segment, now_ms: u32) -> bool {
        let later = |new: u32, old: u32| (new.wrapping_sub(old) as i32) > 0;
        let over = self.closed == 0 || now_ms.wrapping_sub(self.closed) >= TIME_WAIT_MS;
        over || !later(self.stamp, syn.stamp) && (later(syn.seq, self.seq) || later(syn.stamp, self.stamp))
    }
}

/// Nodes on one interface.
pub struct Responder {
    nodes: Vec<IpAddr>,
    port: u16,
    bytes: u32,
    /// The last connection from each port of each address, by node.
    last: Vec<Last>,
    pub tally: NodeTally,
}

impl Responder {
    /// Answers for these addresses on a port; `bytes` is the length of requests and answers.
    #[must_use]
    pub fn new(nodes: Vec<IpAddr>, port: u16, bytes: usize) -> Self {
        let last = vec![Last::default(); nodes.len() * ADDRESSES * PORTS];
        Self { nodes, port, bytes: bytes as u32, last, tally: NodeTally::default() }
    }

    /// Turns a segment into its answer, in place. False: it has none.
    pub fn answer(&mut self, frame: &mut [u8], now: Now) -> bool {
        let Some((segment, payload)) = Segment::read(frame) else { return false };
        let (_, port) = segment.ends.ports();
        if port != self.port {
            return false;
        }
        let Some(node) = self.node_of(&segment.ends) else { return false };
        if segment.has(RST) {
            self.tally.resets_seen += 1;
            return false;
        }
        let len = payload.len() as u32;
        // Where the client's and this node's streams are, had this node opened the connection.
        let (since_syn, since_own) = match (segment.has(FIN), len) {
            (false, 0) => (2 + self.bytes, 2 + self.bytes),
            (true, _) => ((1 + self.bytes).wrapping_sub(len), 1 + self.bytes),
            (false, _) => (1, 1),
        };
        let (seq, ack, flags, kept) = if segment.has(SYN) {
            self.opened(node, &segment, now);
            (cookie(&segment.ends, segment.seq), segment.seq.wrapping_add(1), SYN | ACK, 0)
        } else if segment.ack != cookie(&segment.ends, segment.seq.wrapping_sub(since_syn)).wrapping_add(since_own) {
            self.tally.wrong_node += 1;
            (segment.ack, 0, RST, 0)
        } else if segment.has(FIN) {
            let behind = segment.seq.wrapping_add(len + 1);
            self.closed(node, &segment, behind, now);
            (segment.ack, behind, FIN | ACK, 0)
        } else if len == self.bytes {
            (segment.ack, segment.seq.wrapping_add(len), ACK | PSH, len)
        } else {
            if len == 0 {
                self.closed(node, &segment, segment.seq, now);
            }
            return false;
        };
        let mut body = [0; 1500];
        let kept = (kept as usize).min(body.len());
        body[..kept].copy_from_slice(&payload[..kept]);
        if kept >= MARK {
            body[MARK - 4..MARK].copy_from_slice(&(node as u32).to_be_bytes());
        }
        let stamp = millis(now);
        let answer = Segment { ends: turned(segment.ends), seq, ack, flags, stamp, echo: segment.stamp };
        let macs: [u8; 12] = std::array::from_fn(|at| frame[at]);
        let (dst, src) = macs.split_at(6);
        let (Ok(dst), Ok(src)) = (dst.try_into(), src.try_into()) else { return false };
        answer.write(frame, src, dst, &body[..kept]);
        true
    }

    /// The node a segment is for.
    fn node_of(&self, ends: &Ends) -> Option<usize> {
        let (_, own) = sides(ends);
        self.nodes.iter().position(|node| *node == own.address)
    }

    fn opened(&mut self, node: usize, syn: &Segment, now: Now) {
        self.tally.opened += 1;
        let now_ms = millis(now);
        let last = self.last_of(node, &syn.ends);
        let old = std::mem::replace(last, Last { opened: now_ms, ..Last::default() });
        if old.opened == 0 {
            return;
        }
        let after = u64::from(now_ms.wrapping_sub(old.opened));
        let tally = &mut self.tally;
        tally.ports_reused += 1;
        tally.soonest_reuse_ms = Some(tally.soonest_reuse_ms.map_or(after, |soonest| soonest.min(after)));
        tally.unwelcome += u64::from(!old.takes(syn, now_ms));
    }

    /// The client's FIN, and the ACK behind it.
    fn closed(&mut self, node: usize, segment: &Segment, behind: u32, now: Now) {
        let last = self.last_of(node, &segment.ends);
        *last = Last { closed: millis(now).max(1), seq: behind, stamp: segment.stamp, ..*last };
    }

    fn last_of(&mut self, node: usize, ends: &Ends) -> &mut Last {
        let (peer, _) = sides(ends);
        let low = match peer.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        &mut self.last[(node * ADDRESSES + usize::from(low) % ADDRESSES) * PORTS + usize::from(peer.port)]
    }
}

/// Never 0.
fn millis(now: Now) -> u32 {
    ((now.ns / 1_000_000) as u32).max(1)
}

/// A node's first sequence number in the connection that a client opened with the number `first`.
fn cookie(ends: &Ends, first: u32) -> u32 {
    let (peer, own) = sides(ends);
    let mut hasher = FxBuildHasher.build_hasher();
    for address in [peer.address, own.address] {
        match address {
            IpAddr::V4(address) => hasher.write_u32(address.into()),
            IpAddr::V6(address) => hasher.write_u128(address.into()),
        }
    }
    hasher.write_u16(peer.port);
    hasher.write_u32(first);
    let hash = hasher.finish();
    (hash ^ hash >> 32) as u32
}

fn sides(ends: &Ends) -> (End<IpAddr>, End<IpAddr>) {
    match ends {
        Ends::V4 { src, dst } => {
            (End { address: src.address.into(), port: src.port }, End { address: dst.address.into(), port: dst.port })
        }
        Ends::V6 { src, dst } => {
            (End { address: src.address.into(), port: src.port }, End { address: dst.address.into(), port: dst.port })
        }
    }
}

fn turned(ends: Ends) -> Ends {
    match ends {
        Ends::V4 { src, dst } => Ends::V4 { src: dst, dst: src },
        Ends::V6 { src, dst } => Ends::V6 { src: dst, dst: src },
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::{Clients, Habits};
    use super::super::tally::{Failure, Stage};
    use super::*;
    use crate::traffic::packet::Route;

    const BYTES: usize = 32;

    fn habits() -> Habits {
        Habits { concurrency: 8, addresses: 2, bytes: BYTES, patience_ns: 1_000, retries: 0 }
    }

    fn route(v6: bool) -> Route {
        let (first_client, vip) = match v6 {
            false => ("198.18.0.1".parse().expect("one"), "10.0.0.11".parse().expect("one")),
            true => ("2001:db8:100::2".parse().expect("one"), "fd00:10::11".parse().expect("one")),
        };
        Route { src_mac: [2, 0, 0, 0, 0, 1], dst_mac: [2, 0, 0, 0, 0, 2], first_client, vip, vip_port: 80 }
    }

    fn at(ns: u64) -> Now {
        Now { ns: 1_000_000_000 + ns }
    }

    /// Clients and their node with nothing between them but `wire`: what it makes of a frame goes on.
    fn talk(clients: &mut Clients, node: &mut Responder, now: Now, mut wire: impl FnMut(Vec<u8>) -> Option<Vec<u8>>) {
        while let Some(out) = clients.next_out() {
            let payload = out.mark.map(|mark| {
                let mut payload = vec![0; BYTES];
                payload[..MARK].copy_from_slice(&mark);
                payload
            });
            let payload = payload.unwrap_or_default();
            let mut frame = vec![0; Segment::frame_len(&out.segment.ends, out.segment.flags, payload.len())];
            let (dst, src) = clients.macs();
            out.segment.write(&mut frame, dst, src, &payload);
            let Some(mut frame) = wire(frame) else { continue };
            if node.answer(&mut frame, now) {
                penstock_dataplane::pipeline::testkit::valid(&frame);
                let Some(frame) = wire(frame) else { continue };
                let (segment, payload) = Segment::read(&frame).expect("a segment");
                clients.take(&segment, payload, now);
            }
        }
    }

    fn both(v6: bool) -> (Clients, Responder) {
        let route = route(v6);
        let node = Responder::new(vec![route.vip], 80, BYTES);
        (Clients::new(route, habits(), 1), node)
    }

    #[test]
    fn conversations_complete_in_order_and_are_counted() {
        for v6 in [false, true] {
            let (mut clients, mut node) = both(v6);
            let mut flags = Vec::new();
            for turn in 0..100 {
                assert!(clients.start(at(turn), at(turn + 500)));
                talk(&mut clients, &mut node, at(turn + 700), |frame| {
                    flags.push(Segment::read(&frame).expect("a segment").0.flags);
                    Some(frame)
                });
            }
            let one = [SYN, SYN | ACK, ACK | PSH, ACK | PSH, FIN | ACK, FIN | ACK, ACK];
            assert!(flags.chunks(7).all(|talk| talk == one), "{flags:?}");
            let tally = &clients.tally;
            assert_eq!((tally.attempted, tally.completed, tally.failures()), (100, 100, 0));
            assert_eq!(tally.by_node, [100]);
            assert_eq!((tally.handshake.min(), tally.whole.max()), (700, 700), "from when they were due");
            assert_eq!((node.tally.opened, node.tally.wrong_node, clients.open()), (100, 0, 0));
        }
    }

    /// Each segment of a conversation lost in its turn: what fails, where.
    #[test]
    fn silence_is_a_failure_of_its_stage() {
        use Stage::{Answer, Close, Connect};
        for (lost, stage) in [(0, Connect), (1, Connect), (2, Answer), (3, Answer), (4, Close), (5, Close)] {
            let (mut clients, mut node) = both(false);
            clients.start(at(0), at(0));
            let mut count = 0;
            talk(&mut clients, &mut node, at(0), |frame| {
                count += 1;
                (count != lost + 1).then_some(frame)
            });
            clients.sweep(at(999));
            assert_eq!(clients.tally.failures(), 0, "not before its time");
            clients.sweep(at(1_000));
            assert_eq!(clients.tally.failed, [(Failure::TimedOut(stage), 1)].into(), "lost: {lost}");
            assert_eq!(clients.open(), 0);
        }
    }

    /// Answers that came while the clients did not run are still to be looked at.
    #[test]
    fn a_pause_of_the_clients_is_no_silence() {
        let (mut clients, _) = both(false);
        clients.start(at(0), at(0));
        clients.paused(50_000);
        clients.sweep(at(50_999));
        assert_eq!((clients.tally.failures(), clients.tally.longest_pause_ns), (0, 50_000));
        clients.sweep(at(51_000));
        assert_eq!(clients.tally.failures(), 1);
    }

    #[test]
    fn what_is_repeated_is_counted_and_completes() {
        for lost in 0..6 {
            let route = route(false);
            let mut node = Responder::new(vec![route.vip], 80, BYTES);
            let mut clients = Clients::new(route, Habits { retries: 1, ..habits() }, 1);
            clients.start(at(0), at(0));
            let mut count = 0;
            talk(&mut clients, &mut node, at(0), |frame| {
                count += 1;
                (count != lost + 1).then_some(frame)
            });
            clients.sweep(at(1_000));
            talk(&mut clients, &mut node, at(1_000), Some);
            let tally = &clients.tally;
            assert_eq!((tally.completed, tally.failures(), tally.repeated), (1, 0, 1), "lost: {lost}");
        }
    }

    /// A box that changes its mind about the node is found out at once, by whichever segment it moved.
    #[test]
    fn another_node_knows_that_the_connection_is_not_its_own() {
        for moved in [1, 2, 3] {
            let addresses = ["10.0.0.11", "10.0.0.12"].map(|address| address.parse().expect("an address"));
            let mut node = Responder::new(addresses.into(), 80, BYTES);
            let mut clients = Clients::new(route(false), habits(), 2);
            clients.start(at(0), at(0));
            let mut sent = 0;
            talk(&mut clients, &mut node, at(0), |mut frame| {
                let (segment, payload) = Segment::read(&frame).expect("a segment");
                let payload = payload.to_vec();
                if segment.ends.ports().1 == 80 {
                    sent += 1;
                    if sent > moved
                        && let Ends::V4 { src, dst } = segment.ends
                    {
                        let other = End { address: "10.0.0.12".parse().expect("an address"), ..dst };
                        Segment { ends: Ends::V4 { src, dst: other }, ..segment }
                            .write(&mut frame, [2; 6], [4; 6], &payload);
                    }
                } else if let Ends::V4 { src, dst } = segment.ends {
                    // The box hides which node it was.
                    let vip = End { address: "10.0.0.11".parse().expect("an address"), ..src };
                    Segment { ends: Ends::V4 { src: vip, dst }, ..segment }.write(&mut frame, [2; 6], [4; 6], &payload);
                }
                Some(frame)
            });
            assert_eq!(node.tally.wrong_node, 1, "moved at {moved}");
            let failed: Vec<_> = clients.tally.failed.keys().copied().collect();
            let wanted = match moved {
                1 => vec![Failure::Reset(Stage::Answer)],
                2 => vec![Failure::Reset(Stage::Close)],
                // The last ACK: nobody waits for anything any more.
                _ => vec![],
            };
            assert_eq!(failed, wanted);
        }
    }

    #[test]
    fn a_port_given_out_again_too_early_is_noticed() {
        let route = route(false);
        let syn = |seq, stamp| Segment { ends: ends_of(&route), seq, ack: 0, flags: SYN, stamp, echo: 0 };
        // Behind the last number: a node in TIME_WAIT takes it, unless its timestamp is older.
        for (seq, stamp, waited_ms, unwelcome) in [
            (10_000, 2_000, 5, 0),
            (10_000, 1_000, 5, 0),
            (10_000, 999, 5, 1),
            (500, 2_000, 5, 0),
            (500, 1_000, 5, 1),
            (500, 999, 60_000, 0),
        ] {
            let mut node = Responder::new(vec![route.vip], 80, BYTES);
            node.opened(0, &syn(1_000, 990), at(0));
            node.closed(0, &syn(0, 1_000), 9_000, at(0));
            node.opened(0, &syn(seq, stamp), at(waited_ms * 1_000_000));
            assert_eq!((node.tally.ports_reused, node.tally.unwelcome), (1, unwelcome), "{seq} {stamp} {waited_ms}");
        }
    }

    fn ends_of(route: &Route) -> Ends {
        let (IpAddr::V4(client), IpAddr::V4(vip)) = (route.first_client, route.vip) else { panic!("IPv4") };
        Ends::V4 { src: End { address: client, port: 40_000 }, dst: End { address: vip, port: 80 } }
    }

    #[test]
    fn an_answer_to_somebody_else_is_foreign() {
        let (mut clients, mut node) = both(false);
        clients.start(at(0), at(0));
        let mut count = 0;
        talk(&mut clients, &mut node, at(0), |mut frame| {
            count += 1;
            if count == 4 {
                let (segment, payload) = Segment::read(&frame).expect("a segment");
                let mut payload = payload.to_vec();
                payload[3] ^= 1;
                segment.write(&mut frame, [2; 6], [4; 6], &payload);
            }
            Some(frame)
        });
        assert_eq!(clients.tally.failed, [(Failure::Foreign(Stage::Answer), 1)].into());
    }

    #[test]
    fn tuples_wrap_around_and_a_hanging_one_is_passed_over() {
        let (mut clients, mut node) = both(false);
        let all = clients.tuples();
        clients.start(at(0), at(0));
        // The first one never gets its SYN-ACK.
        while clients.next_out().is_some() {}
        let mut done = 0;
        while done < all + 10 {
            if clients.start(at(done), at(done)) {
                talk(&mut clients, &mut node, at(done), Some);
            }
            done += 1;
        }
        let tally = &clients.tally;
        assert!(tally.held_back > 0);
        assert_eq!(tally.completed + tally.held_back, all + 10);
        assert_eq!((tally.failures(), node.tally.wrong_node), (0, 0));
        assert!(node.tally.ports_reused >= 9, "{:?}", node.tally);
    }

    #[test]
    fn no_more_are_open_than_wanted() {
        let (mut clients, _) = both(false);
        for _ in 0..habits().concurrency {
            assert!(clients.room() > 0);
            assert!(clients.start(at(0), at(0)));
        }
        assert_eq!(clients.room(), 0);
        clients.abandon();
        assert_eq!((clients.room(), clients.tally.failures()), (habits().concurrency, habits().concurrency as u64));
    }
}
