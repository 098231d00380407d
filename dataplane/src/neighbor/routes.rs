//! Routes of our own in the kernel, marked by their protocol number: `unreachable` for VIP ranges,
//! so that an address no service uses never circles between the box and its gateway, and host
//! routes to VIPs by the TAP, so that the box itself reaches them. Reconciled, never patched: what a
//! former run left is found by its mark.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

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

/// They are looked at so often without a reason: IPv4 routes may go without a word. Not more often, since the kernel
/// walks all of a table that may hold all of the internet.
const REGULAR: Duration = Duration::from_secs(30);
/// So long after an error that is news, and at most so long after news that may be of them.
const SOON: Duration = Duration::from_secs(2);

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
    /// When the kernel's are looked at next; `None`: nobody has said yet what there should be.
    due: Option<Instant>,
    notices: Vec<String>,
}

impl OwnRoutes {
    /// For the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self::by(Requests::open()?))
    }

    fn by(requests: Requests) -> Self {
        Self { requests, unreachable: Vec::new(), local: Vec::new(), due: None, notices: Vec::new() }
    }

    /// `box.vip_ranges`, of which every address without a better route is unreachable; and the VIPs that the box's
    /// own programs reach by the link `ifindex` (the TAP), which must be up. [`Self::poll`] does it.
    pub fn want(&mut self, ranges: &[IpNet], local: Option<(u32, &[IpAddr])>, now: Instant) {
        let unreachable: Vec<IpNet> = ranges.iter().map(IpNet::trunc).collect();
        let local: Vec<_> = local.iter().flat_map(|(link, vips)| vips.iter().map(|vip| (*vip, *link))).collect();
        if self.due.is_none() || (&unreachable, &local) != (&self.unreachable, &self.local) {
            (self.unreachable, self.local, self.due) = (unreachable, local, Some(now));
        }
    }

    /// Something happened that may have taken a route of ours away.
    pub fn doubt(&mut self, now: Instant) {
        self.due = self.due.map(|due| due.min(now + SOON));
    }

    /// Regular work: brings the kernel's to what is wanted, when that is due.
    pub fn poll(&mut self, now: Instant) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        let told = std::mem::take(&mut self.notices);
        let pause = if self.reconcile().is_ok() || self.notices == told { REGULAR } else { SOON };
        self.due = Some(now + pause);
        for notice in self.notices.iter().filter(|notice| !told.contains(notice)) {
            tracing::warn!("{notice}");
        }
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

    /// Of several errors the first one is told: thousands of VIPs have one TAP.
    fn reconcile(&mut self) -> Result<(), NetlinkError> {
        let tables = self.wanted().and_then(|wanted| Ok((wanted, self.present()?)));
        let (wanted, present) = tables.inspect_err(|error| {
            self.notices.push(format!("routes of box.vip_ranges and to VIPs cannot be looked after: {error}"));
        })?;
        let mut first_error = None;
        for stale in present.difference(&wanted) {
            let message = RouteNetlinkMessage::DelRoute(stale.message());
            match self.requests.ask("remove a route of ours", message, 0) {
                // Gone already, with its device.
                Err(error) if error.refusal() == Some(libc::ESRCH) => {}
                Err(error) => first_error = first_error.or(Some((format!("route {stale} stays: {error}"), error))),
                Ok(_) => {}
            }
        }
        for missing in wanted.difference(&present) {
            let message = RouteNetlinkMessage::NewRoute(missing.message());
            if let Err(error) = self.requests.ask("add a route of ours", message, NLM_F_CREATE | NLM_F_REPLACE) {
                first_error = first_error.or_else(|| Some((self.without(missing, &error), error)));
            }
        }
        let Some((what, error)) = first_error else { return Ok(()) };
        self.notices.push(what);
        Err(error)
    }

    /// What the kernel's refusal means, and what may mend it.
    fn without(&self, missing: &OwnRoute, error: &NetlinkError) -> String {
        let OwnRoute::Local { address, ifindex } = missing else { return format!("no route {missing}: {error}") };
        let (vip, link) = (address.addr(), self.requests.link_name(*ifindex));
        let ipv6 =
            if vip.is_ipv6() { format!(", `sysctl net.ipv6.conf.{link}.disable_ipv6=0`") } else { String::new() };
        format!(
            "the box's own programs do not reach {vip} by {link}, others do: {error}; `ip link set {link} up`{ipv6}"
        )
    }

    fn wanted(&mut self) -> Result<BTreeSet<OwnRoute>, NetlinkError> {
        let connected = self.connected()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// On a socket nobody answers on, a look at the kernel's routes is a notice.
    #[test]
    fn the_kernel_is_asked_when_there_is_reason_to() {
        let mut routes = OwnRoutes::by(Requests::unanswered());
        let now = Instant::now();
        let asks = |routes: &mut OwnRoutes, at: Duration| {
            let before = routes.due;
            routes.poll(now + at);
            routes.due != before
        };
        let at = Duration::from_secs;
        assert!(!asks(&mut routes, at(60)), "nobody has said what there should be: an earlier process's stay");
        let (range, vip) = ("203.0.113.0/28".parse().unwrap(), ["203.0.113.5".parse().unwrap()]);
        routes.want(&[range], Some((7, &vip)), now);
        assert!(asks(&mut routes, at(0)));
        assert!(!asks(&mut routes, SOON - at(1)));
        assert!(asks(&mut routes, SOON), "again after an error");
        assert!(!asks(&mut routes, SOON + REGULAR - at(1)), "the same one is no reason to hurry");
        assert!(asks(&mut routes, SOON + REGULAR));
        // As if it had been well.
        routes.due = Some(now + at(100));
        routes.want(&[range], Some((7, &vip)), now + at(1));
        assert!(!asks(&mut routes, at(1)), "the same again: with each change of a backend's health");
        routes.want(&[range], Some((7, &[])), now + at(1));
        assert!(asks(&mut routes, at(1)), "a VIP less");
        routes.due = Some(now + at(100));
        routes.doubt(now + at(10));
        routes.doubt(now + at(11));
        assert!(!asks(&mut routes, at(11)));
        assert!(asks(&mut routes, at(12)), "one may have gone");
    }
}
