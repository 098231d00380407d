//! Messages in, data out: what a lab without the 8021q module can't show, and what must be ignored.

use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::{InfoKind, VlanProtocol};
use netlink_packet_route::route::RouteFlags;

use super::*;

const MAC: Mac = [2, 0, 0, 0, 0, 1];

fn link(index: u32, name: &str, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes =
        vec![LinkAttribute::IfName(name.into()), LinkAttribute::Address(MAC.to_vec()), LinkAttribute::Mtu(1500)];
    message.attributes.extend(attributes);
    RouteNetlinkMessage::NewLink(message)
}

fn vlan(index: u32, parent: u32, id: u16, protocol: VlanProtocol) -> RouteNetlinkMessage {
    let data = InfoData::Vlan(vec![InfoVlan::Id(id), InfoVlan::Protocol(protocol)]);
    let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]);
    link(index, &format!("vlan{id}"), vec![LinkAttribute::Link(parent), info, LinkAttribute::Mtu(1496)])
}

fn ports() -> Vec<String> {
    vec!["other".into(), "eth0".into()]
}

#[test]
fn sub_interfaces_lead_to_their_port_in_their_tags() {
    let mut view = KernelView::default();
    assert_eq!(view.apply(&link(2, "eth0", vec![])), Change::Links);
    view.apply(&vlan(3, 2, 100, VlanProtocol::Ieee8021Ad));
    view.apply(&vlan(4, 3, 7, VlanProtocol::Ieee8021Q));
    view.apply(&vlan(5, 4, 8, VlanProtocol::Ieee8021Q));
    let outer = VlanTag { ethertype: 0x88a8, id: 100 };
    let inner = VlanTag { ethertype: 0x8100, id: 7 };

    let plain = view.path(2, &ports()).unwrap();
    assert_eq!((plain.port, plain.tags, plain.mtu, plain.src), (PortId(1), [None, None], 1500, MAC));
    assert_eq!(view.path(3, &ports()).unwrap().tags, [Some(outer), None]);
    let double = view.path(4, &ports()).unwrap();
    assert_eq!((double.port, double.tags, double.mtu), (PortId(1), [Some(outer), Some(inner)], 1496));
    assert_eq!(view.path(5, &ports()), None, "three tags are more than the box writes");
    assert_eq!(view.path(9, &ports()), None);
}

#[test]
fn a_path_is_up_only_if_every_link_of_it_is() {
    let mut view = KernelView::default();
    let mut down = LinkMessage::default();
    down.header.index = 2;
    down.header.flags = LinkFlags::Up;
    down.attributes = vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::Address(MAC.to_vec())];
    view.apply(&RouteNetlinkMessage::NewLink(down));
    view.apply(&vlan(3, 2, 100, VlanProtocol::Ieee8021Q));
    assert!(!view.path(2, &ports()).unwrap().up, "no carrier");
    assert!(!view.path(3, &ports()).unwrap().up);
    view.apply(&link(2, "eth0", vec![]));
    assert!(view.path(3, &ports()).unwrap().up);
}

#[test]
fn links_that_lead_nowhere_or_in_circles_have_no_path() {
    let mut view = KernelView::default();
    view.apply(&vlan(3, 4, 100, VlanProtocol::Ieee8021Q));
    view.apply(&vlan(4, 3, 101, VlanProtocol::Ieee8021Q));
    assert_eq!(view.path(3, &ports()), None);
    // A veth names its peer as its link: not a parent.
    view.apply(&link(2, "eth0", vec![]));
    view.apply(&link(6, "veth6", vec![LinkAttribute::Link(2)]));
    assert_eq!(view.path(6, &ports()), None);
}

#[test]
fn the_same_again_is_no_change() {
    let mut view = KernelView::default();
    assert_eq!(view.apply(&link(2, "eth0", vec![])), Change::Links);
    assert_eq!(view.apply(&link(2, "eth0", vec![])), Change::Nothing);
    let RouteNetlinkMessage::NewLink(mut bridge) = link(2, "eth0", vec![LinkAttribute::Mtu(9000)]) else { return };
    bridge.header.interface_family = AddressFamily::Bridge;
    assert_eq!(view.apply(&RouteNetlinkMessage::NewLink(bridge.clone())), Change::Nothing);
    assert_eq!(view.apply(&RouteNetlinkMessage::DelLink(bridge)), Change::Nothing, "left the bridge, not the box");
    assert_eq!(view.links[&2].mtu, 1500);
}

#[test]
fn a_point_to_point_address_is_the_local_one() {
    let mut view = KernelView::default();
    let mut message = AddressMessage::default();
    message.header = AddressHeader { family: AddressFamily::Inet, prefix_len: 32, index: 2, ..Default::default() };
    message.attributes =
        vec![AddressAttribute::Address([10, 0, 0, 2].into()), AddressAttribute::Local([10, 0, 0, 1].into())];
    assert_eq!(view.apply(&RouteNetlinkMessage::NewAddress(message.clone())), Change::Links);
    assert_eq!(view.addresses.values().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1/32"]);
    assert_eq!(view.apply(&RouteNetlinkMessage::DelAddress(message)), Change::Links);
    assert!(view.addresses.is_empty());
}

#[test]
fn neighbour_states_the_kernel_would_not_send_in_are_not_usable() {
    use NeighbourState::{Delay, Failed, Incomplete, Noarp, None, Permanent, Probe, Reachable, Stale};
    for (state, usable, fixed) in [
        (Reachable, true, false),
        (Stale, true, false),
        (Delay, true, false),
        (Probe, true, false),
        (Permanent, true, true),
        (Noarp, true, true),
        (Failed, false, false),
        (Incomplete, false, false),
        (None, false, false),
    ] {
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.header.ifindex = 2;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 9].into())),
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
        ];
        let mut view = KernelView::default();
        let key = (2, IpAddr::from([10, 0, 0, 9]));
        assert_eq!(view.apply(&RouteNetlinkMessage::NewNeighbour(message.clone())), Change::Neighbor(key));
        let entry = view.neighbors[&key];
        assert_eq!((entry.usable, entry.fixed, entry.mac), (usable, fixed, Some(MAC)), "{state}");
        assert_eq!(view.apply(&RouteNetlinkMessage::DelNeighbour(message)), Change::Neighbor(key));
        assert!(view.neighbors.is_empty());
    }
}

#[test]
fn route_changes_name_their_prefix() {
    let mut view = KernelView::default();
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    assert_eq!(view.apply(&RouteNetlinkMessage::NewRoute(message.clone())), Change::Routes("::/0".parse().unwrap()));
    message.header.destination_prefix_length = 64;
    let destination: std::net::Ipv6Addr = "2001:db8::".parse().unwrap();
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet6(destination))];
    let change = view.apply(&RouteNetlinkMessage::DelRoute(message.clone()));
    assert_eq!(change, Change::Routes("2001:db8::/64".parse().unwrap()));
    message.header.flags = RouteFlags::Cloned;
    assert_eq!(view.apply(&RouteNetlinkMessage::NewRoute(message)), Change::Nothing);
}
