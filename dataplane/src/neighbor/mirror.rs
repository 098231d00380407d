//! Next hops, mirrored from the kernel: its routes say which way a node lies, its neighbour entries
//! which hardware address that is. The kernel keeps the entries fresh (managed neighbours); we only
//! follow. Housekeeping thread only.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia};

use super::netlink::{Event, Events, NetlinkError, Requests, family_of};
use super::view::{Change, KernelView, NeighborEntry, NeighborKey, PROTOCOL, Vlan, VlanTags, route_address};
use super::{Mac, format_mac};
use crate::verdict::PortId;

/// Where the frame of a packet goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub port: PortId,
    pub dst: Mac,
    pub src: Mac,
    /// Of the route or the link, the smaller one: bytes of IP packet.
    pub mtu: u32,
    /// Tags to put on the frame: the route leaves by VLAN sub-interfaces of the port.
    pub tags: VlanTags,
    /// The target itself, not a gateway to it.
    pub adjacent: bool,
}

/// A configured port as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub port: PortId,
    pub ifindex: u32,
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// Administratively up and with carrier, and not a bond's member on standby.
    pub up: bool,
    /// A member its bond does not use now.
    pub standby: bool,
    /// The bond it is a member of.
    pub bond: Option<String>,
}

/// What the packet path needs to know of the network. Published whole, when something changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hops {
    /// Every wanted target; `None`: no route by a port of ours, or no answer from the next hop.
    pub targets: HashMap<IpAddr, Option<Hop>>,
    pub default_v4: Option<Hop>,
    pub default_v6: Option<Hop>,
    pub links: Vec<Link>,
    /// VLANs the kernel is a member of.
    pub vlans: Vec<Vlan>,
}

/// How the kernel would send to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    ifindex: u32,
    gateway: Option<IpAddr>,
    /// Of the route's metrics; path MTU discovery of the kernel's own shows here too.
    mtu: Option<u32>,
}

/// Addresses that only a default route leads to: reserved space (RFC 1112 section 4) and an
/// unassigned corner of global unicast, so that `::/0` and `2000::/3` both count. Asking for one
/// address spares us a dump of a table that may hold all of the internet.
const BEYOND_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1));
const BEYOND_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1));

/// Kernels before 5.16 know no managed neighbours: there the entry is used this often, so that it
/// is revalidated before it is collected.
const POKE: Duration = Duration::from_secs(5);
/// An entry without an answer is asked again so often.
const POKE_UNRESOLVED: Duration = Duration::from_secs(1);
/// Rules and nexthop objects may change in bursts; every target is looked up at most so often.
const LOOKUP_ALL: Duration = Duration::from_millis(200);
/// A safety net under the notifications: nothing but the lookups themselves.
const LOOKUP_REGULAR: Duration = Duration::from_secs(30);

const REFUSED: &str = "has a route that refuses it (unreachable, blackhole or prohibit)";

pub struct Mirror {
    ports: Vec<String>,
    /// As in the config file, where a bond stands for its members.
    configured: Vec<String>,
    events: Events,
    requests: Requests,
    view: KernelView,
    wanted: BTreeSet<IpAddr>,
    /// By target; an error says in words why there is no way.
    routes: HashMap<IpAddr, Result<Route, String>>,
    /// The neighbour entries the hops stand on.
    needed: HashSet<NeighborKey>,
    pokes: HashMap<NeighborKey, Instant>,
    /// `want` has been called: from now on entries of ours that nobody needs are removed.
    started: bool,
    lookup_all: bool,
    /// Events were lost, and the tables could not be read since.
    stale: bool,
    last_lookup: Option<Instant>,
    resyncs: u64,
    hops: Arc<Hops>,
    notices: Vec<String>,
}

impl Mirror {
    /// Reads the kernel's tables of the calling thread's network namespace and starts to follow them.
    pub fn open(ports: &[String]) -> Result<Self, NetlinkError> {
        let mut mirror = Self {
            ports: ports.to_vec(),
            configured: Vec::new(),
            // Listening first: what changes while the tables are read is then not missed.
            events: Events::open()?,
            requests: Requests::open()?,
            view: KernelView::default(),
            wanted: BTreeSet::new(),
            routes: HashMap::new(),
            needed: HashSet::new(),
            pokes: HashMap::new(),
            started: false,
            lookup_all: true,
            stale: false,
            last_lookup: None,
            resyncs: 0,
            hops: Arc::default(),
            notices: Vec::new(),
        };
        mirror.read_tables()?;
        mirror.lookup(|_| true);
        mirror.publish();
        Ok(mirror)
    }

    /// How many ports there are: those without a [`Link`] now, too.
    #[must_use]
    pub fn port_count(&self) -> usize {
        self.ports.len()
    }

    /// Knows what the ports were configured as.
    #[must_use]
    pub fn configured_as(self, configured: Vec<String>) -> Self {
        Self { configured, ..self }
    }

    /// Members that came to a configured bond later than the ports were found, each behind its bond. One on standby
    /// counts: it will take over.
    #[must_use]
    pub fn unserved_members(&self) -> Vec<(String, String)> {
        self.view.unserved_members(&self.configured, &self.ports)
    }

    /// Readable when [`Self::on_readable`] has work.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// The targets hops are needed for, replacing the former ones.
    pub fn want(&mut self, targets: &[IpAddr]) -> bool {
        self.started = true;
        self.wanted = targets.iter().copied().collect();
        self.routes.retain(|target, _| self.wanted.contains(target) || is_beyond(*target));
        let known: HashSet<IpAddr> = self.routes.keys().copied().collect();
        self.lookup(|target| !known.contains(&target));
        self.publish()
    }

    /// Takes what the kernel has to say. Returns whether [`Self::hops`] changed.
    pub fn on_readable(&mut self) -> bool {
        let (mut links, mut neighbors, mut all) = (false, false, false);
        let mut prefixes: HashSet<IpNet> = HashSet::new();
        let Self { events, view, needed, .. } = self;
        let drained = events.drain(|event| {
            let change = match event {
                Event::Message(message) => view.apply(&message),
                Event::Unknown => Change::AllRoutes,
            };
            match change {
                Change::Nothing => {}
                Change::Links => links = true,
                Change::Neighbor(key) => {
                    neighbors |= needed.contains(&key) || view.neighbors.get(&key).is_some_and(|entry| entry.ours);
                }
                Change::Routes(prefix) => {
                    prefixes.insert(prefix);
                }
                Change::AllRoutes => all = true,
            }
        });
        self.lookup_all |= all;
        if !drained.unwrap_or(false) {
            return self.resync();
        }
        if links {
            // Routes over a link that went down vanish without a word (IPv4).
            self.lookup(|_| true);
        } else if !prefixes.is_empty() {
            self.lookup(|target| prefixes.iter().any(|prefix| prefix.contains(&target)));
        }
        (links || neighbors || !prefixes.is_empty()) && self.publish()
    }

    /// Reads every table anew: events were lost.
    pub fn resync(&mut self) -> bool {
        self.resyncs += 1;
        if let Err(error) = self.read_tables() {
            if !std::mem::replace(&mut self.stale, true) {
                tracing::warn!(%error, "the kernel's tables cannot be read; trying again");
            }
            return false;
        }
        self.stale = false;
        self.lookup(|_| true);
        self.publish()
    }

    /// Regular work, a few times a second: delayed lookups, entries that need a push.
    pub fn poll(&mut self, now: Instant) -> bool {
        let since = self.last_lookup.map(|last| now.saturating_duration_since(last));
        let due = if self.lookup_all || self.stale { LOOKUP_ALL } else { LOOKUP_REGULAR };
        let mut changed = false;
        if since.is_none_or(|since| since >= due) {
            self.lookup_all = false;
            self.last_lookup = Some(now);
            changed = if self.stale {
                self.resync()
            } else {
                self.lookup(|_| true);
                self.publish()
            };
        }
        self.poke(now);
        changed
    }

    #[must_use]
    pub fn hops(&self) -> Arc<Hops> {
        Arc::clone(&self.hops)
    }

    /// Why wanted targets have no hop, and what else an operator should know; the present state.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The box's address on the link it reaches a target by: what the target may have for a gateway.
    #[must_use]
    pub fn address_towards(&self, target: IpAddr) -> Option<IpAddr> {
        let route = self.routes.get(&target)?.as_ref().ok()?;
        let next = route.gateway.unwrap_or(target);
        let own =
            self.view.addresses.iter().filter(|((ifindex, _), net)| *ifindex == route.ifindex && net.contains(&next));
        own.map(|((_, address), _)| *address).min()
    }

    /// How often events were lost and everything was read anew.
    #[must_use]
    pub fn resyncs(&self) -> u64 {
        self.resyncs
    }

    /// A clean stop: the neighbour entries that are ours go. Says how many there were.
    pub fn release(&mut self) -> Result<usize, NetlinkError> {
        self.wanted.clear();
        self.needed.clear();
        self.started = true;
        // Entries made a moment ago may not have been announced to us yet.
        self.read_tables()?;
        self.remove_unneeded();
        Ok(self.view.neighbors.values().filter(|entry| entry.ours).count())
    }

    fn read_tables(&mut self) -> Result<(), NetlinkError> {
        let mut view = KernelView::default();
        let requests: [(&'static str, RouteNetlinkMessage); 3] = [
            ("list links", RouteNetlinkMessage::GetLink(LinkMessage::default())),
            ("list addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default())),
            ("list neighbours", RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())),
        ];
        for (what, request) in requests {
            self.requests.dump(what, &request, |message| {
                view.apply(&message);
                true
            })?;
        }
        self.view = view;
        Ok(())
    }

    /// Asks the kernel for the routes to the wanted targets that `which` selects.
    fn lookup(&mut self, which: impl Fn(IpAddr) -> bool) {
        let targets = self.wanted.iter().copied().chain([BEYOND_V4, BEYOND_V6]);
        for target in targets.filter(|target| which(*target)) {
            let route = match self.requests.ask("look up a route", get_route(target), 0) {
                Ok(answers) => read_route(&answers),
                Err(error) => Err(match error.refusal() {
                    Some(libc::ENETUNREACH) => "has no route".to_owned(),
                    Some(libc::EHOSTUNREACH | libc::EACCES) => REFUSED.to_owned(),
                    _ => format!("cannot be looked up: {error}"),
                }),
            };
            self.routes.insert(target, route);
        }
    }

    /// Builds the hops from what is known; keeps the kernel's entries in step with what is needed.
    fn publish(&mut self) -> bool {
        let mut needed = HashSet::new();
        let mut notices = Vec::new();
        let mut targets = HashMap::with_capacity(self.wanted.len());
        for target in &self.wanted {
            let hop = self.hop(*target, &mut needed).unwrap_or_else(|why| {
                notices.push(format!("node {target} {why}"));
                None
            });
            targets.insert(*target, hop);
        }
        let mut beyond = |target| {
            let gateway = matches!(self.routes.get(&target), Some(Ok(Route { gateway: Some(_), .. })));
            if gateway { self.hop(target, &mut needed).ok().flatten() } else { None }
        };
        let (default_v4, default_v6) = (beyond(BEYOND_V4), beyond(BEYOND_V6));
        let links = self.port_links(&mut notices);
        self.notices = notices;
        self.needed = needed;
        self.install();
        self.remove_unneeded();
        let vlans = self.view.vlans(&self.ports);
        let hops = Hops { targets, default_v4, default_v6, links, vlans };
        if *self.hops == hops {
            return false;
        }
        self.hops = Arc::new(hops);
        true
    }

    /// The hop to a target and, on the way, the neighbour entry it needs. `Ok(None)`: the neighbour
    /// has not answered (yet); an error is for the operator to mend.
    fn hop(&self, target: IpAddr, needed: &mut HashSet<NeighborKey>) -> Result<Option<Hop>, String> {
        let route = match self.routes.get(&target) {
            Some(Ok(route)) => route,
            Some(Err(why)) => return Err(why.clone()),
            None => return Err("has no route".into()),
        };
        let Some(path) = self.view.path_for(route.ifindex, &self.ports, spread(target)) else {
            let name = self.view.links.get(&route.ifindex).map_or("an unknown link", |link| &link.name);
            return Err(format!("is routed through {name}, which is not a [[port]]"));
        };
        let next = route.gateway.unwrap_or(target);
        if !path.up {
            return Ok(None);
        }
        let key = (route.ifindex, next);
        needed.insert(key);
        let mtu = route.mtu.map_or(path.mtu, |mtu| mtu.min(path.mtu));
        let neighbor = self.view.neighbors.get(&key).filter(|neighbor| neighbor.usable);
        let dst = neighbor.and_then(|neighbor| neighbor.mac);
        Ok(dst.map(|dst| Hop { port: path.port, dst, src: path.src, mtu, tags: path.tags, adjacent: next == target }))
    }

    fn port_links(&self, notices: &mut Vec<String>) -> Vec<Link> {
        let mut links = Vec::with_capacity(self.ports.len());
        for (index, name) in self.ports.iter().enumerate() {
            let Some((ifindex, link)) = self.view.link_named(name) else {
                notices.push(format!("port {name} does not exist"));
                continue;
            };
            let (Some(mac), Ok(port)) = (link.mac, u8::try_from(index)) else {
                notices.push(format!("port {name} is not an Ethernet interface"));
                continue;
            };
            if !link.up {
                notices.push(format!("port {name} is down"));
            }
            let bond = self.view.bond_of(name).map(str::to_owned);
            let standby = bond.is_some() && link.standby;
            let up = link.up && !standby;
            links.push(Link { port: PortId(port), ifindex, name: name.clone(), mac, mtu: link.mtu, up, standby, bond });
        }
        links
    }

    /// Asks the kernel to keep the entries that are needed and that nobody manages yet.
    fn install(&mut self) {
        let Self { view, requests, needed, pokes, .. } = self;
        pokes.retain(|key, _| needed.contains(key));
        for key in &*needed {
            // Once right away; what does not come of it is `poke`'s to repeat.
            if view.neighbors.get(key).is_some_and(NeighborEntry::is_kept) || pokes.contains_key(key) {
                continue;
            }
            ensure_managed(view, requests, *key);
        }
    }

    /// Repeats what should have made an entry managed, or has left it unresolved.
    fn poke(&mut self, now: Instant) {
        let Self { view, requests, needed, pokes, .. } = self;
        for key in &*needed {
            let entry = view.neighbors.get(key);
            if entry.is_some_and(NeighborEntry::is_kept) {
                pokes.remove(key);
                continue;
            }
            let every = if entry.is_some_and(|entry| entry.usable) { POKE } else { POKE_UNRESOLVED };
            let last = pokes.entry(*key).or_insert(now);
            if now.saturating_duration_since(*last) >= every {
                *last = now;
                ensure_managed(view, requests, *key);
            }
        }
    }

    fn remove_unneeded(&mut self) {
        if !self.started {
            return;
        }
        let Self { view, requests, needed, .. } = self;
        let unneeded = view.neighbors.iter().filter(|(key, entry)| entry.ours && !needed.contains(key));
        for (key, entry) in unneeded {
            let removed = requests.ask("remove a neighbour", RouteNetlinkMessage::DelNeighbour(neighbor(*key)), 0);
            if let Err(error) = removed
                && error.refusal() != Some(libc::ENOENT)
            {
                let mac = entry.mac.map(format_mac);
                tracing::warn!(%error, address = %key.1, ?mac, "a neighbour entry stays behind");
            }
        }
    }
}

/// Targets next to each other go by different members of a bond.
fn spread(target: IpAddr) -> usize {
    match target {
        IpAddr::V4(address) => usize::from(address.octets()[3]),
        IpAddr::V6(address) => usize::from(address.octets()[15]),
    }
}

fn is_beyond(target: IpAddr) -> bool {
    target == BEYOND_V4 || target == BEYOND_V6
}

fn neighbor((ifindex, address): NeighborKey) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

/// Has the kernel resolve the address and keep the entry fresh.
///
/// An entry we do not know of yet is created exclusively: taking over one that an administrator made
/// permanent a moment ago would make the kernel forget its hardware address.
fn ensure_managed(view: &mut KernelView, requests: &mut Requests, key: NeighborKey) {
    let mut result = Ok(());
    if !view.neighbors.contains_key(&key) {
        result = manage(requests, key, NLM_F_CREATE | NLM_F_EXCL);
        if let Err(error) = &result
            && error.refusal() == Some(libc::EEXIST)
        {
            let query = RouteNetlinkMessage::GetNeighbour(neighbor(key));
            for answer in requests.ask("look up a neighbour", query, 0).unwrap_or_default() {
                view.apply(&answer);
            }
        }
    }
    if view.neighbors.get(&key).is_some_and(|entry| !entry.is_kept()) {
        result = manage(requests, key, NLM_F_CREATE);
    }
    if let Err(error) = result {
        tracing::debug!(%error, address = %key.1, "neighbour not managed");
    }
}

/// Resolve it now (`Use`, which old kernels know too) and for ever (`Managed`).
fn manage(requests: &mut Requests, key: NeighborKey, flags: u16) -> Result<(), NetlinkError> {
    let mut message = neighbor(key);
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    message.attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
    requests.ask("keep a neighbour", RouteNetlinkMessage::NewNeighbour(message), flags).map(drop)
}

fn get_route(target: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(target);
    message.header.destination_prefix_length = if target.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(target.into()));
    RouteNetlinkMessage::GetRoute(message)
}

fn read_route(answers: &[RouteNetlinkMessage]) -> Result<Route, String> {
    let route = answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    let route = route.ok_or("has no route")?;
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err("is one of the box's own addresses".into()),
        RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit => {
            return Err(REFUSED.into());
        }
        _ => return Err("has a route that is not unicast".into()),
    }
    let mut found = Route { ifindex: 0, gateway: None, mtu: None };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.ifindex = *index,
            RouteAttribute::Gateway(address) => found.gateway = route_address(address),
            // An IPv4 route by an IPv6 neighbour (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet6(address)) => found.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet(address)) => found.gateway = Some((*address).into()),
            RouteAttribute::Metrics(metrics) => {
                found.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The workers' port behind the last is the TAP's, whatever the kernel says of the others now.
    #[test]
    fn a_port_that_is_missing_has_its_number() {
        let mirror = Mirror::open(&["no-such-port".to_owned(), "lo".to_owned()]).expect("rtnetlink");
        let links: Vec<u8> = mirror.hops().links.iter().map(|link| link.port.0).collect();
        assert_eq!((links, mirror.port_count()), (vec![1], 2));
    }

    /// Reads only, in whatever network namespace the test runs in.
    #[test]
    fn tables_that_could_not_be_read_are_read_again() {
        let mut mirror = Mirror::open(&["lo".to_owned()]).expect("rtnetlink");
        let mut now = Instant::now();
        mirror.poll(now);
        mirror.view = KernelView::default();
        let works = std::mem::replace(&mut mirror.requests, Requests::unanswered());
        assert!(!mirror.resync());
        for _ in 0..3 {
            now += LOOKUP_ALL;
            mirror.poll(now);
            assert!(mirror.view.links.is_empty());
        }
        mirror.requests = works;
        mirror.poll(now);
        assert!(mirror.view.links.is_empty(), "not in every turn");
        now += LOOKUP_ALL;
        mirror.poll(now);
        assert!(!mirror.view.links.is_empty());
        let resyncs = mirror.resyncs();
        now += LOOKUP_REGULAR;
        mirror.poll(now);
        assert_eq!(mirror.resyncs(), resyncs, "once it is done, it is done");
    }
}
