//! What the kernel says about an interface: does it exist, and which XDP program runs on it.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::{AttachMode, SteerError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkState {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) attached: Option<Attached>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) program: u32,
    /// `None`: offloaded or several at once, neither of which is ever ours.
    pub(super) mode: Option<AttachMode>,
}

pub(super) fn by_name(name: &str) -> Result<LinkState, SteerError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    ask(message).map_err(|source| fault(name, source))
}

pub(super) fn by_index(ifindex: u32) -> Result<LinkState, SteerError> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    ask(message).map_err(|source| fault(&format!("index {ifindex}"), source))
}

fn fault(name: &str, source: io::Error) -> SteerError {
    match source.raw_os_error() {
        // ERANGE, EINVAL: no interface can have such a name.
        Some(libc::ENODEV | libc::ERANGE | libc::EINVAL) => SteerError::MissingInterface { name: name.to_owned() },
        _ => SteerError::Query { name: name.to_owned(), source },
    }
}

fn ask(link: LinkMessage) -> io::Result<LinkState> {
    let mut request =
        NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(RouteNetlinkMessage::GetLink(link)));
    request.header.flags = NLM_F_REQUEST;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(read(link)),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected netlink answer {other:?}"))),
    }
}

fn read(link: LinkMessage) -> LinkState {
    let mut state = LinkState { ifindex: link.header.index, name: String::new(), attached: None };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => state.name = name,
            LinkAttribute::Xdp(xdp) => state.attached = read_xdp(&xdp),
            _ => {}
        }
    }
    state
}

fn read_xdp(attributes: &[LinkXdp]) -> Option<Attached> {
    let mut program = None;
    let mut mode = None;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => return None,
            LinkXdp::Attached(XdpAttached::Driver) => mode = Some(AttachMode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(AttachMode::Generic),
            LinkXdp::ProgId(id) => program = Some(*id),
            // Where several are attached at once, there is no IFLA_XDP_PROG_ID.
            LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
                program = program.or(Some(*id));
            }
            _ => {}
        }
    }
    program.map(|program| Attached { program, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_without_a_program() {
        let state = by_name("lo").unwrap();
        assert_eq!((state.ifindex, state.name.as_str()), (1, "lo"));
        assert_eq!(by_index(1).unwrap(), state);
    }

    #[test]
    fn a_missing_interface_is_named() {
        for name in ["pst-none", "a-name-far-too-long-for-any-interface"] {
            let error = by_name(name).unwrap_err();
            assert!(matches!(&error, SteerError::MissingInterface { name: told } if told == name), "{error}");
        }
    }

    #[test]
    fn the_mode_and_the_program_are_read() {
        let xdp = [LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(7), LinkXdp::SkbProgId(7)];
        assert_eq!(read_xdp(&xdp), Some(Attached { program: 7, mode: Some(AttachMode::Generic) }));
        assert_eq!(read_xdp(&[LinkXdp::Attached(XdpAttached::None)]), None);
        let several = [LinkXdp::Attached(XdpAttached::Multiple), LinkXdp::DrvProgId(3), LinkXdp::SkbProgId(4)];
        assert_eq!(read_xdp(&several), Some(Attached { program: 3, mode: None }));
    }
}
