//! Routes of our own in the kernel, marked by their protocol number: `unreachable` for VIP ranges,
//! so that an address no service uses never circles between the box and its gateway, and host
//! routes to VIPs by the TAP, so that the box itself reaches them. Reconciled, never patched: what a
//! former run left is found by its mark.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{NetlinkError, Requests, family_of};
use super::view::{KernelView, PROTOCOL, route_address};

/// Any other route to the same prefix is better than ours. (u32::MAX itself is the metric of IPv6's
/// own last resort.)
const UNREACHABLE_METRIC: u32 = u32::MAX - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum OwnRoute {
    Unreachable(IpNet),
    Local { address: IpNet, ifindex: u32 },
}

/// The routes of ours that should be in the kernel.
pub struct OwnRoutes {
    requests: Requests,
    unreachable: Vec<IpNet>,
    local: Vec<(IpAddr, u32)>,
    notices: Vec<String>,
}

impl OwnRoutes {
    /// For the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { requests: Requests::open()?, unreachable: Vec::new(), local: Vec::new(), notices: Vec::new() })
    }

    /// `box.vip_ranges`: every address of them without a better route is unreachable.
    pub fn set_unreachable(&mut self, ranges: &[IpNet]) -> Result<(), NetlinkError> {
        self.unreachable = ranges.iter().map(IpNet::trunc).collect();
        self.reconcile()
    }

    /// The VIPs the box's own programs reach by the link `ifindex` (the TAP), which must be up.
    pub fn set_local_vips(&mut self, ifindex: u32, vips: &[IpAddr]) -> Result<(), NetlinkError> {
        self.local = vips.iter().map(|vip| (*vip, ifindex)).collect();
        self.reconcile()
    }

    /// A clean stop: every route with our mark goes. Says how many there were.
    pub fn clear(&mut self) -> Result<usize, NetlinkError> {
        self.unreachable.clear();
        self.local.clear();
        let present = self.present()?.len();
        self.reconcile().map(|()| present)
    }

    /// What was left out, and why.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    fn reconcile(&mut self) -> Result<(), NetlinkError> {
        let wanted = self.wanted()?;
        let present = self.present()?;
        let mut first_error = None;
        for stale in present.difference(&wanted) {
            let removed =
                self.requests.ask("remove a route of ours", RouteNetlinkMessage::DelRoute(stale.message()), 0);
            match removed {
                // Gone already, with its device.
                Err(error) if error.refusal() == Some(libc::ESRCH) => {}
                Err(error) => first_error = first_error.or(Some(error)),
                Ok(_) => {}
            }
        }
        for missing in wanted.difference(&present) {
            let message = RouteNetlinkMessage::NewRoute(missing.message());
            if let Err(error) = self.requests.ask("add a route of ours", message, NLM_F_CREATE | NLM_F_REPLACE) {
                self.notices.push(format!("no route {missing}: {error}"));
                first_error = first_error.or(Some(error));
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn wanted(&mut self) -> Result<BTreeSet<OwnRoute>, NetlinkError> {
        let connected = self.connected()?;
        self.notices.clear();
        let mut wanted = BTreeSet::new();
        for range in &self.unreachable {
            if connected.contains(range) {
                self.notices.push(format!(
                    "VIP range {range} is a network the box is connected to; it gets no unreachable route, and \
                     unused addresses of it are asked for on the wire"
                ));
            } else {
                wanted.insert(OwnRoute::Unreachable(*range));
            }
        }
        for (vip, ifindex) in &self.local {
            wanted.insert(OwnRoute::Local { address: IpNet::from(*vip), ifindex: *ifindex });
        }
        Ok(wanted)
    }

    fn connected(&mut self) -> Result<BTreeSet<IpNet>, NetlinkError> {
        let mut view = KernelView::default();
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.requests.dump("list addresses", &request, |message| {
            view.apply(&message);
            true
        })?;
        Ok(view.addresses.values().map(IpNet::trunc).collect())
    }

    fn present(&mut self) -> Result<BTreeSet<OwnRoute>, NetlinkError> {
        let mut present = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.protocol = PROTOCOL;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            self.requests.dump("list routes of ours", &RouteNetlinkMessage::GetRoute(request), |message| {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    present.extend(OwnRoute::read(&route));
                }
                true
            })?;
        }
        Ok(present)
    }
}

impl OwnRoute {
    fn read(route: &RouteMessage) -> Option<Self> {
        // Older kernels ignore the filter of the dump.
        if route.header.protocol != PROTOCOL || route.header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let mut destination = None;
        let mut oif = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = route_address(address),
                RouteAttribute::Oif(index) => oif = Some(*index),
                _ => {}
            }
        }
        let unspecified = match route.header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            _ => IpAddr::from([0; 16]),
        };
        let net = IpNet::new(destination.unwrap_or(unspecified), route.header.destination_prefix_length).ok()?;
        match route.header.kind {
            RouteType::Unreachable => Some(Self::Unreachable(net)),
            _ => Some(Self::Local { address: net, ifindex: oif? }),
        }
    }

    fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let (net, kind) = match self {
            Self::Unreachable(net) => (net, RouteType::Unreachable),
            Self::Local { address, .. } => (address, RouteType::Unicast),
        };
        message.header.address_family = family_of(net.addr());
        message.header.destination_prefix_length = net.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = PROTOCOL;
        message.header.kind = kind;
        message.attributes.push(RouteAttribute::Destination(net.addr().into()));
        match self {
            Self::Unreachable(_) => message.attributes.push(RouteAttribute::Priority(UNREACHABLE_METRIC)),
            Self::Local { ifindex, .. } => {
                message.header.scope = RouteScope::Link;
                message.attributes.push(RouteAttribute::Oif(ifindex));
            }
        }
        message
    }
}

impl std::fmt::Display for OwnRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(net) => write!(f, "unreachable {net}"),
            Self::Local { address, ifindex } => write!(f, "{address} by link {ifindex}"),
        }
    }
}
