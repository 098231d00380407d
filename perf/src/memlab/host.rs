//! A host: a smoltcp stack with a small server (nodes) or client on it.
//!
//! The client sends eight bytes, how many bytes it wants; the node answers its name, a newline and
//! that many bytes of the pattern, and closes.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use std::net::IpAddr;

use super::nic::Nic;
use crate::config::NODE_PORT;
use crate::lab::plan::{self, DualAddr};
use crate::servers::stream::{Digest, Pattern};

/// Connections a node takes at a time.
const LISTENERS: usize = 64;
const TCP_BUFFER: usize = 16 * 1024;
const REQUEST: usize = 8;

pub(super) struct Host {
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    nic: Nic,
    stack: Interface,
    sockets: SocketSet<'static>,
    serving: Vec<Serving>,
    asking: Vec<Asking>,
    echo: Option<SocketHandle>,
}

/// A node's end of a connection, or a listener.
struct Serving {
    handle: SocketHandle,
    answer: Option<Answer>,
}

struct Answer {
    pattern: Pattern,
    /// Taken from the pattern (or the name line), not yet taken by the socket.
    rest: Vec<u8>,
}

/// A client's connection.
struct Asking {
    handle: SocketHandle,
    wanted: u64,
    asked: bool,
    name: Vec<u8>,
    named: bool,
    digest: Digest,
    deadline: u64,
}

impl Host {
    pub(super) fn node(name: &str, addr: DualAddr, now: u64) -> Self {
        let mut host = Self::client(name, addr, now);
        for _ in 0..LISTENERS {
            let handle = host.sockets.add(tcp_socket());
            host.serving.push(Serving { handle, answer: None });
        }
        host.echo = Some(host.bound_udp(NODE_PORT));
        host
    }

    pub(super) fn client(name: &str, addr: DualAddr, now: u64) -> Self {
        let mac = mac_of(name);
        let mut nic = Nic::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        let mut stack = Interface::new(config, &mut nic, instant(now));
        stack.update_ip_addrs(|addresses| {
            for cidr in [IpCidr::new(addr.v4.into(), 24), IpCidr::new(addr.v6.into(), 64)] {
                addresses.push(cidr).expect("a stack has room for two addresses");
            }
        });
        Self {
            name: name.to_owned(),
            mac,
            nic,
            stack,
            sockets: SocketSet::new(Vec::new()),
            serving: Vec::new(),
            asking: Vec::new(),
            echo: None,
        }
    }

    fn bound_udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 16 * 1024]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("a port that is not 0");
        self.sockets.add(socket)
    }

    pub(super) fn receive(&mut self, frame: Vec<u8>) {
        let to_us = frame.get(..6).is_some_and(|to| to == self.mac || to[0] & 1 == 1);
        if to_us {
            self.nic.received.push_back(frame);
        }
    }

    pub(super) fn take(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.nic.sent)
    }

    /// Lets the stack and the applications work. Returns when the stack wants to be called again.
    pub(super) fn poll(&mut self, now: u64) -> u64 {
        self.stack.poll(instant(now), &mut self.nic, &mut self.sockets);
        self.serve();
        self.ask();
        self.answer_datagrams();
        self.stack.poll(instant(now), &mut self.nic, &mut self.sockets);
        let next = self.stack.poll_at(instant(now), &self.sockets);
        next.map_or(u64::MAX, |at| u64::try_from(at.total_micros()).unwrap_or(now))
    }

    fn serve(&mut self) {
        for serving in &mut self.serving {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(serving.handle);
            if !socket.is_open() {
                serving.answer = None;
                socket.listen(NODE_PORT).expect("a closed socket can listen");
            }
            if serving.answer.is_none() && socket.recv_queue() >= REQUEST {
                let mut request = [0; REQUEST];
                if socket.recv_slice(&mut request) == Ok(REQUEST) {
                    let rest = format!("{}\n", self.name).into_bytes();
                    serving.answer = Some(Answer { pattern: Pattern::new(u64::from_be_bytes(request)), rest });
                }
            }
            if let Some(answer) = &mut serving.answer {
                answer.send(socket);
            }
        }
    }

    /// Connections that have not ended.
    pub(super) fn open(&self) -> usize {
        self.asking.len()
    }

    pub(super) fn connect(&mut self, target: IpAddr, port: u16, local: u16, wanted: u64, deadline: u64) {
        let mut socket = tcp_socket();
        let remote = IpEndpoint::new(IpAddress::from(target), port);
        socket.connect(self.stack.context(), remote, local).expect("an unused local port");
        let handle = self.sockets.add(socket);
        self.asking.push(Asking {
            handle,
            wanted,
            asked: false,
            name: Vec::new(),
            named: false,
            digest: Digest::default(),
            deadline,
        });
    }

    fn ask(&mut self) {
        for asking in &mut self.asking {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(asking.handle);
            if !asking.asked && socket.can_send() {
                asking.asked = socket.send_slice(&asking.wanted.to_be_bytes()) == Ok(REQUEST);
            }
            while socket.can_recv() {
                let taken = socket.recv(|bytes| {
                    asking.read(bytes);
                    (bytes.len(), ())
                });
                if taken.is_err() {
                    break;
                }
            }
        }
    }

    /// Outcomes of connections that ended since the last call.
    pub(super) fn ended(&mut self, now: u64) -> Vec<Result<String, String>> {
        let mut outcomes = Vec::new();
        let sockets = &mut self.sockets;
        self.asking.retain(|asking| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(asking.handle);
            let outcome = match socket.state() {
                // The node has closed and everything was read: our FIN, then done.
                tcp::State::CloseWait if !socket.can_recv() => {
                    socket.close();
                    return true;
                }
                tcp::State::Closed | tcp::State::TimeWait => asking.outcome(),
                _ if now > asking.deadline => Err("timed out".to_owned()),
                _ => return true,
            };
            outcomes.push(outcome);
            sockets.remove(asking.handle);
            false
        });
        outcomes
    }

    fn answer_datagrams(&mut self) {
        let Some(echo) = self.echo else { return };
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(echo);
        while let Ok((payload, meta)) = socket.recv() {
            let answer = [self.name.as_bytes(), b" ", payload].concat();
            // A full buffer is a lost datagram, as on a wire.
            let _ = socket.send_slice(&answer, meta.endpoint);
        }
    }

    /// Sends a datagram that names its local port, from a fresh socket.
    pub(super) fn send_datagram(&mut self, target: IpAddr, port: u16, local: u16) {
        if let Some(old) = self.echo.take() {
            self.sockets.remove(old);
        }
        let handle = self.bound_udp(local);
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        let remote = IpEndpoint::new(IpAddress::from(target), port);
        socket.send_slice(local.to_string().as_bytes(), remote).expect("an empty buffer has room");
        self.asking.clear();
        self.echo = Some(handle);
    }

    /// The node that answered the datagram.
    pub(super) fn datagram(&mut self) -> Option<String> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.echo?);
        let local = socket.endpoint().port.to_string();
        let (payload, _) = socket.recv().ok()?;
        let text = String::from_utf8_lossy(payload);
        let (node, echoed) = text.split_once(' ')?;
        (echoed == local).then(|| node.to_owned())
    }
}

impl Answer {
    fn send(&mut self, socket: &mut tcp::Socket<'_>) {
        while socket.can_send() {
            if self.rest.is_empty() {
                self.rest = self.pattern.chunk().to_vec();
            }
            if self.rest.is_empty() {
                socket.close();
                return;
            }
            let Ok(taken) = socket.send_slice(&self.rest) else { return };
            self.rest.drain(..taken);
        }
    }
}

impl Asking {
    fn read(&mut self, mut bytes: &[u8]) {
        if !self.named {
            let end = bytes.iter().position(|&byte| byte == b'\n');
            self.name.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            self.named = end.is_some();
            bytes = end.map_or(&[], |end| &bytes[end + 1..]);
        }
        self.digest.update(bytes);
    }

    fn outcome(&self) -> Result<String, String> {
        if !self.named {
            return Err("connection reset or refused".to_owned());
        }
        if self.digest.length() != self.wanted || self.digest.value() != Pattern::digest(self.wanted) {
            return Err(format!("{} of {} bytes came, or others than were sent", self.digest.length(), self.wanted));
        }
        Ok(String::from_utf8_lossy(&self.name).into_owned())
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
    tcp::Socket::new(buffer(), buffer())
}

fn instant(now: u64) -> Instant {
    Instant::from_micros(i64::try_from(now).unwrap_or(i64::MAX))
}

fn mac_of(name: &str) -> [u8; 6] {
    let text = plan::mac(name).expect("hosts are named clientN or nodeN");
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).expect("the plan writes hexadecimal");
    }
    mac
}
