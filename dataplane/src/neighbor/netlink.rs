//! Two plain rtnetlink sockets, no runtime: one asks and waits for its answer, one listens.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{self, Timeout};

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot {what} (rtnetlink): {source}")]
    Socket { what: &'static str, source: io::Error },
    /// The kernel's own answer.
    #[error("the kernel refused {what}: {source}")]
    Refused { what: &'static str, source: io::Error },
    #[error("the kernel's answer to {what} cannot be read: {text}")]
    Unreadable { what: &'static str, text: String },
    #[error("{what}: the tables kept changing while they were read")]
    Inconsistent { what: &'static str },
}

impl NetlinkError {
    /// The errno of a refusal.
    #[must_use]
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Socket { .. } | Self::Unreadable { .. } | Self::Inconsistent { .. } => None,
        }
    }
}

/// Larger than what the kernel fills per datagram of a dump (32 KiB).
const BUFFER: usize = 64 * 1024;
/// The kernel answers rtnetlink requests before `sendto` returns; longer means something is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Events that may wait while the housekeeping thread is busy; beyond, the kernel says `ENOBUFS`.
const EVENT_BUFFER: usize = 1 << 20;
/// A dump that a change interrupted is repeated so often.
const DUMP_TRIES: u32 = 4;
const NLMSG_HEADER_LEN: usize = 16;

#[must_use]
pub(super) fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Asks one question at a time.
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let mut socket = new_socket()?;
        socket.bind_auto().map_err(|source| NetlinkError::Socket { what: "bind a socket", source })?;
        // Filters of dumps are honoured, kernel 4.20 and newer; an older one sends more, and we look.
        let _ = socket.set_netlink_get_strict_chk(true);
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|source| NetlinkError::Socket { what: "set a timeout", source: source.into() })?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// A link's name, for people.
    pub(super) fn link_name(&self, ifindex: u32) -> String {
        rustix::net::netdevice::index_to_name(&self.socket, ifindex).unwrap_or_else(|_| format!("link {ifindex}"))
    }

    /// By a socket nobody answers on: every request fails.
    #[cfg(test)]
    pub(super) fn unanswered() -> Self {
        let socket = Socket::new(netlink_sys::protocols::NETLINK_USERSOCK).expect("a socket");
        Self { socket, sequence: 0, buffer: vec![0; BUFFER] }
    }

    /// Sends a change or a query of one thing; the messages that came back before the acknowledgement.
    pub(super) fn ask(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut answers = Vec::new();
        self.exchange(what, message, flags | NLM_F_ACK, &mut |answer| {
            answers.push(answer);
            true
        })?;
        Ok(answers)
    }

    /// Reads a table; `each` sees its entries again from the start if a change interrupted the
    /// kernel, and returns false when it has seen enough. After that the socket is of no more use:
    /// the kernel refuses a second dump while the first one is unfinished.
    pub(super) fn dump(
        &mut self,
        what: &'static str,
        message: &RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage) -> bool,
    ) -> Result<(), NetlinkError> {
        for _ in 0..DUMP_TRIES {
            if self.exchange(what, message.clone(), NLM_F_DUMP, &mut each)? {
                return Ok(());
            }
        }
        Err(NetlinkError::Inconsistent { what })
    }

    /// Returns false if the kernel says that the dump was interrupted by a change.
    fn exchange(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
        each: &mut dyn FnMut(RouteNetlinkMessage) -> bool,
    ) -> Result<bool, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let sent = retry(|| self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0));
        sent.map_err(|source| NetlinkError::Socket { what: "send a request", source })?;
        self.collect(what, each)
    }

    fn collect(
        &mut self,
        what: &'static str,
        each: &mut dyn FnMut(RouteNetlinkMessage) -> bool,
    ) -> Result<bool, NetlinkError> {
        let mut consistent = true;
        loop {
            let Self { socket, buffer, .. } = self;
            let len = retry(|| socket.recv(&mut &mut buffer[..], 0))
                .map_err(|source| NetlinkError::Socket { what: "read an answer", source })?;
            for (header, bytes) in messages(&self.buffer[..len.min(BUFFER)]) {
                if header.sequence_number != self.sequence {
                    // The rest of an answer that a former question did not wait for.
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                if matches!(header.message_type, NLMSG_DONE | NLMSG_ERROR) {
                    return end_of_answer(what, bytes).map(|()| consistent);
                }
                let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(answer), .. }) =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                else {
                    // An attribute newer than the parser, on a thing we may not care for.
                    tracing::debug!(kind = header.message_type, what, "netlink message not understood");
                    continue;
                };
                if !each(answer) {
                    return Ok(consistent);
                }
            }
        }
    }
}

fn end_of_answer(what: &'static str, bytes: &[u8]) -> Result<(), NetlinkError> {
    let unreadable = |text: String| NetlinkError::Unreadable { what, text };
    let end =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).map_err(|error| unreadable(error.to_string()))?;
    let code = match end.payload {
        NetlinkPayload::Error(error) => error.raw_code(),
        NetlinkPayload::Done(done) => done.code,
        _ => return Err(unreadable("no end of answer".into())),
    };
    if code < 0 {
        return Err(NetlinkError::Refused { what, source: io::Error::from_raw_os_error(-code) });
    }
    Ok(())
}

/// What the listening socket brought.
pub(super) enum Event {
    Message(Box<RouteNetlinkMessage>),
    /// A nexthop object or something else the parser does not know: look at everything again.
    Unknown,
}

/// Listens to the kernel's changes.
pub(super) struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let mut socket = new_socket()?;
        socket.bind_auto().map_err(|source| NetlinkError::Socket { what: "bind a socket", source })?;
        // Without CAP_NET_ADMIN the size is capped by net.core.rmem_max: only more resyncs.
        if sockopt::set_socket_recv_buffer_size_force(&socket, EVENT_BUFFER).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&socket, EVENT_BUFFER);
        }
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_RULE,
        ];
        for group in groups {
            let joined = socket.add_membership(group);
            joined.map_err(|source| NetlinkError::Socket { what: "listen to the kernel's changes", source })?;
        }
        // Kernel 5.3 and newer; before, there are no nexthop objects to follow.
        let _ = socket.add_membership(libc::RTNLGRP_NEXTHOP);
        socket
            .set_non_blocking(true)
            .map_err(|source| NetlinkError::Socket { what: "make a socket non-blocking", source })?;
        Ok(Self { socket, buffer: vec![0; BUFFER] })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads until nothing is left. Returns false if the kernel had to drop events (`ENOBUFS`): then
    /// only reading every table anew tells the truth.
    pub(super) fn drain(&mut self, mut each: impl FnMut(Event)) -> Result<bool, NetlinkError> {
        let mut complete = true;
        loop {
            let Self { socket, buffer, .. } = self;
            let len = match retry(|| socket.recv(&mut &mut buffer[..], 0)) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(complete),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    complete = false;
                    continue;
                }
                Err(source) => return Err(NetlinkError::Socket { what: "read events", source }),
            };
            for (_, bytes) in messages(&self.buffer[..len.min(BUFFER)]) {
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                    Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => {
                        each(Event::Message(Box::new(message)));
                    }
                    _ => each(Event::Unknown),
                }
            }
        }
    }
}

fn new_socket() -> Result<Socket, NetlinkError> {
    Socket::new(NETLINK_ROUTE).map_err(|source| NetlinkError::Socket { what: "open a socket", source })
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The messages of a datagram; what is not whole at its end is left out.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (NetlinkHeader, &[u8])> {
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(&bytes).ok()?;
        let len = buffer.length() as usize;
        let message = bytes.get(..len).filter(|_| len >= NLMSG_HEADER_LEN)?;
        let mut header = NetlinkHeader::default();
        header.message_type = buffer.message_type();
        header.flags = buffer.flags();
        header.sequence_number = buffer.sequence_number();
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((header, message))
    })
}
