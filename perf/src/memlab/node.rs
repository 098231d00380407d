//! A node's server: answers TCP connections and datagrams on the NodePort, with its number first.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use penstock_dataplane::wire::{self, Parsed, TCP_ACK, TCP_SYN, Transport};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};

use super::fin_guard::source;
use super::host::{tcp_socket, udp_socket};
use super::talk::{Checker, Ending, REQUEST, Request, Sender, down_seed};

/// A client that is silent for so long while it owes an acknowledgement is gone.
const PATIENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(180);

/// A stack takes one frame between two looks at its applications, so one SYN at most.
const LISTENERS: usize = 2;

/// How a node saw its connections end, and what it minds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeReport {
    pub accepted: u64,
    /// Ended by a FIN from each side.
    pub closed: u64,
    /// Ended by a RST of the client's.
    pub reset: u64,
    pub datagrams: u64,
    /// Bytes that were not the client's: never, whatever the cables do.
    pub wrong: u64,
}

pub(super) struct Node {
    number: u8,
    port: u16,
    /// How long an ended connection goes on answering what comes late.
    linger: u64,
    serving: BTreeMap<u64, Serving>,
    listening: Vec<SocketHandle>,
    /// Connections by the other end.
    by_peer: BTreeMap<SocketAddr, u64>,
    next: u64,
    datagrams: Option<SocketHandle>,
    pub(super) report: NodeReport,
}

struct Serving {
    handle: SocketHandle,
    peer: Option<SocketAddr>,
    first: Vec<u8>,
    exchange: Option<(Request, Checker, Sender)>,
    resets: bool,
    ended: bool,
    gone_at: Option<u64>,
}

/// What becomes of a connection after a look at it.
enum Fate {
    Goes,
    Closed,
    Reset,
    Wrong,
}

impl Node {
    pub(super) fn new(number: u8, port: u16, linger: u64) -> Self {
        let report = NodeReport::default();
        Self {
            number,
            port,
            linger,
            serving: BTreeMap::new(),
            listening: Vec::new(),
            by_peer: BTreeMap::new(),
            next: 0,
            datagrams: None,
            report,
        }
    }

    /// Connections with a client at the other end, as far as the node knows.
    pub(super) fn connections(&self) -> usize {
        self.serving.values().filter(|serving| !serving.ended).count()
    }

    pub(super) fn wakes_at(&self) -> u64 {
        let senders = self.serving.values().filter_map(|serving| serving.exchange.as_ref()?.2.wakes_at());
        senders.chain(self.serving.values().filter_map(|serving| serving.gone_at)).min().unwrap_or(u64::MAX)
    }

    pub(super) fn work(&mut self, sockets: &mut SocketSet<'static>, now: u64) {
        self.accept(sockets);
        let mut gone = Vec::new();
        for (id, serving) in &mut self.serving {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(serving.handle);
            let fate = serving.advance(socket, self.number, self.linger, now);
            match fate {
                Fate::Goes => continue,
                Fate::Closed => self.report.closed += 1,
                Fate::Reset => self.report.reset += 1,
                Fate::Wrong => self.report.wrong += 1,
            }
            gone.push(*id);
        }
        for id in gone {
            self.forget(id, sockets);
        }
        self.echo(sockets);
    }

    fn forget(&mut self, id: u64, sockets: &mut SocketSet<'static>) {
        if let Some(serving) = self.serving.remove(&id) {
            sockets.remove(serving.handle);
            if let Some(peer) = serving.peer.filter(|peer| self.by_peer.get(peer) == Some(&id)) {
                self.by_peer.remove(&peer);
            }
        }
    }

    /// Whether the stack may have a frame. smoltcp asks its sockets in no particular order, so that a
    /// listener may take a doubled SYN for a second connection, which no kernel does: it looks for a
    /// connection first. And it opens no new one where an old one rests, which a kernel does
    /// (RFC 9293 section 3.6.1).
    pub(super) fn admits(&mut self, frame: &[u8], sockets: &mut SocketSet<'static>) -> bool {
        let Some(peer) = opener(frame) else { return true };
        match self.by_peer.get(&peer).copied() {
            Some(id) if self.serving.get(&id).is_some_and(|serving| serving.gone_at.is_some()) => {
                self.report.closed += 1;
                self.forget(id, sockets);
            }
            Some(_) => return false,
            None => {}
        }
        true
    }

    /// Connections that came leave the listeners; there are always enough of them for what can come.
    fn accept(&mut self, sockets: &mut SocketSet<'static>) {
        let Self { listening, serving, by_peer, next, report, .. } = self;
        listening.retain(|handle| {
            let socket = sockets.get::<tcp::Socket<'_>>(*handle);
            if socket.is_listening() {
                return true;
            }
            report.accepted += 1;
            *next += 1;
            let peer = socket.remote_endpoint().map(|peer| SocketAddr::new(peer.addr.into(), peer.port));
            by_peer.extend(peer.map(|peer| (peer, *next)));
            serving.insert(*next, Serving::new(*handle, peer));
            false
        });
        while self.listening.len() < LISTENERS {
            let mut socket = tcp_socket();
            socket.set_timeout(Some(PATIENCE));
            socket.listen(self.port).expect("a closed socket listens on any port but 0");
            self.listening.push(sockets.add(socket));
        }
    }

    fn echo(&mut self, sockets: &mut SocketSet<'static>) {
        let handle = *self.datagrams.get_or_insert_with(|| {
            let mut socket = udp_socket();
            socket.bind(self.port).expect("a closed socket binds any port but 0");
            sockets.add(socket)
        });
        let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
        while let Ok((payload, meta)) = socket.recv() {
            self.report.datagrams += 1;
            let answer = [&[self.number], payload].concat();
            // A full buffer is a datagram lost, as on a wire.
            let _ = socket.send_slice(&answer, meta);
        }
    }
}

/// Who sends a SYN.
fn opener(frame: &[u8]) -> Option<SocketAddr> {
    let Ok(Parsed::Ip(packet)) = wire::parse(frame) else { return None };
    if packet.transport != Transport::Tcp || packet.tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
        return None;
    }
    Some(source(frame, &packet))
}

impl Serving {
    fn new(handle: SocketHandle, peer: Option<SocketAddr>) -> Self {
        Self { handle, peer, first: Vec::new(), exchange: None, resets: false, ended: false, gone_at: None }
    }

    fn advance(&mut self, socket: &mut tcp::Socket<'_>, number: u8, linger: u64, now: u64) -> Fate {
        if let Some(at) = self.gone_at {
            return if now >= at { Fate::Closed } else { Fate::Goes };
        }
        self.read(socket, number);
        if self.exchange.as_ref().is_some_and(|(_, checker, _)| checker.is_wrong()) {
            return Fate::Wrong;
        }
        let ended = matches!(
            socket.state(),
            tcp::State::CloseWait | tcp::State::LastAck | tcp::State::Closing | tcp::State::TimeWait
        );
        self.ended |= ended && !socket.can_recv();
        self.say(socket, now);
        match socket.state() {
            // Not at once: its last ACK, or its RST, has yet to be sent.
            tcp::State::TimeWait => self.gone_at = Some(now + linger),
            tcp::State::Closed if self.resets => self.gone_at = Some(now + linger),
            tcp::State::Closed if self.ended => return Fate::Closed,
            // A handshake that was reset makes the socket a listener again.
            tcp::State::Closed | tcp::State::Listen => return Fate::Reset,
            _ => {}
        }
        Fate::Goes
    }

    fn read(&mut self, socket: &mut tcp::Socket<'_>, number: u8) {
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                self.hear(bytes, number);
                (bytes.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
    }

    fn hear(&mut self, mut bytes: &[u8], number: u8) {
        if self.exchange.is_none() {
            let missing = (REQUEST - self.first.len()).min(bytes.len());
            self.first.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            let Ok(first) = <&[u8; REQUEST]>::try_from(self.first.as_slice()) else { return };
            // What is no request at all is one whose every byte is wrong.
            let request = Request::decode(first);
            let (up, ending) = request.map_or((0, Ending::NodeCloses), |request| (request.up, request.ending));
            let (seed, down, pace) = request.map_or((0, 0, None), |request| (request.seed, request.down, request.pace));
            let mut checker = Checker::new(seed, up);
            if request.is_none() {
                checker.take(&[0]);
            }
            let sender = Sender::new(vec![number], down_seed(seed), down, pace);
            self.exchange = Some((Request { seed, up, down, ending, pace }, checker, sender));
        }
        if let Some((_, checker, _)) = &mut self.exchange {
            checker.take(bytes);
        }
    }

    fn say(&mut self, socket: &mut tcp::Socket<'_>, now: u64) {
        let Some((request, checker, sender)) = &mut self.exchange else { return };
        if request.ending != Ending::HalfClose || self.ended {
            sender.send(socket, now);
        }
        if !sender.is_done() {
            return;
        }
        match request.ending {
            Ending::NodeCloses if checker.is_done() => socket.close(),
            Ending::NodeResets if checker.is_done() && socket.send_queue() == 0 && !self.resets => {
                self.resets = true;
                socket.abort();
            }
            _ if self.ended => socket.close(),
            _ => {}
        }
    }
}
