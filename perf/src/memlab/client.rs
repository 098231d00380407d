//! A client host: opens connections, says what they are to say, and tells how each ended.

use std::collections::BTreeMap;
use std::net::IpAddr;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::host::{tcp_socket, udp_socket};
use super::talk::{Checker, Ending, Request, Sender, Talk, datagram, down_seed};

/// A datagram without an answer is sent again after this long, so many times.
const UDP_AGAIN: u64 = 300_000;
const UDP_TRIES: u32 = 60;
/// Ports a client takes in turn.
const PORTS: std::ops::Range<u16> = 10_000..60_000;

/// Why a connection did not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// A RST before the node had said anything.
    Refused,
    /// A RST, or an end, before everything was said.
    Reset,
    TimedOut,
    /// Bytes that are not the node's.
    WrongBytes,
    /// Another node answered in the middle.
    Moved,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub connection: u64,
    /// The number of the node that answered, if one did.
    pub node: Option<u8>,
    pub result: Result<(), Broken>,
}

/// A connection to be opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    pub(super) connection: u64,
    pub(super) target: IpAddr,
    pub(super) port: u16,
    pub(super) talk: Talk,
    pub(super) seed: u64,
    pub(super) deadline: u64,
}

#[derive(Debug)]
pub(super) struct Client {
    next_port: u16,
    linger: u64,
    talking: BTreeMap<u64, Talking>,
    /// Sockets whose connection is over, and until when they answer what comes late.
    lingering: Vec<(SocketHandle, u64)>,
    ended: Vec<Ended>,
}

#[derive(Debug)]
struct Talking {
    handle: SocketHandle,
    node: Option<u8>,
    deadline: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp { ending: Ending, sender: Sender, checker: Checker, eof: bool, closed: bool },
    Udp { seed: u64, remote: IpEndpoint, rounds: u32, size: usize, round: u32, tries: u32, again_at: u64 },
}

impl Client {
    pub(super) fn new(linger: u64) -> Self {
        let (talking, lingering, ended) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { next_port: PORTS.start, linger, talking, lingering, ended }
    }

    pub(super) fn open(&mut self, stack: &mut Interface, sockets: &mut SocketSet<'static>, opening: &Opening) {
        let local = self.next_port;
        self.next_port = if local + 1 == PORTS.end { PORTS.start } else { local + 1 };
        let remote = IpEndpoint::new(IpAddress::from(opening.target), opening.port);
        let (handle, kind) = match opening.talk {
            Talk::Tcp { up, down, ending, pace } => {
                let mut socket = tcp_socket();
                socket.connect(stack.context(), remote, local).expect("a fresh socket and an unused port");
                let request = Request { seed: opening.seed, up, down, ending, pace };
                let sender = Sender::new(request.encode().to_vec(), opening.seed, up, pace);
                let checker = Checker::new(down_seed(opening.seed), down);
                (sockets.add(socket), Kind::Tcp { ending, sender, checker, eof: false, closed: false })
            }
            Talk::Udp { rounds, size } => {
                let mut socket = udp_socket();
                socket.bind(local).expect("a fresh socket and a port that is not 0");
                let seed = opening.seed;
                (sockets.add(socket), Kind::Udp { seed, remote, rounds, size, round: 0, tries: 0, again_at: 0 })
            }
        };
        let talking = Talking { handle, node: None, deadline: opening.deadline, kind };
        self.talking.insert(opening.connection, talking);
    }

    /// Connections on which a node has spoken, and that are not over.
    pub(super) fn answered(&self) -> impl Iterator<Item = (u64, u8)> {
        self.talking.iter().filter_map(|(id, talking)| Some((*id, talking.node?)))
    }

    pub(super) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    pub(super) fn wakes_at(&self) -> u64 {
        let talking = self.talking.values().map(|talking| talking.wakes_at());
        talking.chain(self.lingering.iter().map(|(_, until)| *until)).min().unwrap_or(u64::MAX)
    }

    pub(super) fn work(&mut self, sockets: &mut SocketSet<'static>, now: u64) {
        self.lingering.retain(|(handle, until)| {
            if now >= *until {
                sockets.remove(*handle);
            }
            now < *until
        });
        let mut over = Vec::new();
        for (id, talking) in &mut self.talking {
            if let Some(result) = talking.advance(sockets, now) {
                self.ended.push(Ended { connection: *id, node: talking.node, result });
                over.push(*id);
            }
        }
        for id in over {
            if let Some(talking) = self.talking.remove(&id) {
                self.lingering.push((talking.handle, now + self.linger));
            }
        }
    }
}

impl Talking {
    fn wakes_at(&self) -> u64 {
        let own = match &self.kind {
            Kind::Tcp { sender, .. } => sender.wakes_at().unwrap_or(u64::MAX),
            Kind::Udp { again_at, .. } => *again_at,
        };
        own.min(self.deadline)
    }

    fn advance(&mut self, sockets: &mut SocketSet<'static>, now: u64) -> Option<Result<(), Broken>> {
        let result = match self.kind {
            Kind::Tcp { .. } => self.advance_tcp(sockets.get_mut(self.handle), now),
            Kind::Udp { .. } => self.advance_udp(sockets.get_mut(self.handle), now),
        };
        if result.is_none() && now >= self.deadline {
            if let Kind::Tcp { .. } = self.kind {
                sockets.get_mut::<tcp::Socket<'_>>(self.handle).abort();
            }
            return Some(Err(Broken::TimedOut));
        }
        result
    }

    fn advance_tcp(&mut self, socket: &mut tcp::Socket<'_>, now: u64) -> Option<Result<(), Broken>> {
        let Self { node, kind: Kind::Tcp { ending, sender, checker, eof, closed }, .. } = self else { return None };
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                // The node's first byte is its number.
                let number = usize::from(node.is_none());
                *node = node.or(bytes.first().copied());
                checker.take(&bytes[number..]);
                (bytes.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
        if checker.is_wrong() {
            socket.abort();
            return Some(Err(Broken::WrongBytes));
        }
        *eof |= matches!(
            socket.state(),
            tcp::State::CloseWait | tcp::State::LastAck | tcp::State::Closing | tcp::State::TimeWait
        );
        sender.send(socket, now);
        let complete = node.is_some() && checker.is_done() && sender.is_done();
        match ending {
            Ending::HalfClose if sender.is_done() => socket.close(),
            Ending::ClientCloses if complete => socket.close(),
            Ending::ClientResets if complete && !*closed => {
                *closed = true;
                socket.abort();
                return Some(Ok(()));
            }
            _ if *eof => socket.close(),
            _ => {}
        }
        match socket.state() {
            tcp::State::Closed | tcp::State::TimeWait if complete && (*eof || *ending == Ending::NodeResets) => {
                Some(Ok(()))
            }
            tcp::State::Closed | tcp::State::TimeWait if node.is_none() => Some(Err(Broken::Refused)),
            tcp::State::Closed | tcp::State::TimeWait => Some(Err(Broken::Reset)),
            _ => None,
        }
    }

    fn advance_udp(&mut self, socket: &mut udp::Socket<'_>, now: u64) -> Option<Result<(), Broken>> {
        let Self { node, kind: Kind::Udp { seed, remote, rounds, size, round, tries, again_at }, .. } = self else {
            return None;
        };
        while let Ok((answer, _)) = socket.recv() {
            let Some((number, echoed)) = answer.split_first() else { return Some(Err(Broken::WrongBytes)) };
            if node.is_some_and(|node| node != *number) {
                return Some(Err(Broken::Moved));
            }
            *node = Some(*number);
            // A second answer to an earlier round is no news.
            let of = (0..=*round).rev().find(|of| echoed == datagram(*seed, *of, *size));
            match of {
                None => return Some(Err(Broken::WrongBytes)),
                Some(of) if of == *round => (*round, *tries, *again_at) = (*round + 1, 0, now),
                Some(_) => {}
            }
            if *round == *rounds {
                return Some(Ok(()));
            }
            if *tries == 0 {
                break;
            }
        }
        if now >= *again_at {
            if *tries == UDP_TRIES {
                return Some(Err(Broken::TimedOut));
            }
            *tries += 1;
            *again_at = now + UDP_AGAIN;
            // A full buffer or an address not resolved yet is a datagram lost: it is sent again.
            let _ = socket.send_slice(&datagram(*seed, *round, *size), *remote);
        }
        None
    }
}
