//! One owner's nodes, sets and services, each looked at once: sets are summed up first, so that
//! 10,000 services over one set of 500 nodes cost 10,500 steps.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::address::{family, host_bits, martian};
use super::{BoxContext, FILE_OWNER, item_path, names};
use crate::desired::{Backend, Desired, Mode, Node, OnDown, OnIdle, Protocol, Scheduler, Service};
use crate::fault::Fault;
use crate::nearest::Suggester;

/// A backend that takes longer to warm up is better given its weight by hand.
pub const MOST_SLOW_START: u32 = 3600;

const DISTINCT: &str = "choose an address nothing else uses";

pub(super) fn check(desired: &Desired, owner: &str, context: &BoxContext) -> Vec<Fault> {
    let mut checker = Checker::new(desired, owner, context);
    checker.nodes();
    checker.sets();
    checker.faults.extend(names::list("service", desired.services.iter().map(|service| service.name.as_str())));
    for (index, service) in desired.services.iter().enumerate() {
        checker.service(index, service);
    }
    checker.faults.extend(super::affinity::check(desired));
    checker.snat_families();
    checker.capacities();
    checker.faults
}

/// What a backend can be reached by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn has(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }

    fn add(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(_) => self.v4 = true,
            IpAddr::V6(_) => self.v6 = true,
        }
    }
}

/// What a service needs to know of the set it names.
#[derive(Debug, Default)]
struct SetFacts {
    backends: usize,
    /// Some backend is reachable by the family.
    families: Families,
    /// A backend that leaves its port to the service.
    portless: Option<usize>,
    /// The first backend of each port that some name themselves.
    ports: BTreeMap<u16, usize>,
}

impl SetFacts {
    /// A port some backend names that is not the service's, and the first that does.
    fn other_port(&self, service: &Service) -> Option<(u16, usize)> {
        self.ports.iter().find(|(port, _)| **port != service.port).map(|(port, index)| (*port, *index))
    }
}

struct Checker<'a> {
    desired: &'a Desired,
    owner: &'a str,
    context: &'a BoxContext,
    nodes: HashMap<&'a str, Families>,
    sets: HashMap<&'a str, SetFacts>,
    /// Addresses of this owner's nodes and backends, and what each is.
    taken: HashMap<IpAddr, Taken<'a>>,
    suggester: Suggester,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy)]
enum Taken<'a> {
    Node(&'a str),
    Backend,
    Snat,
}

impl Taken<'_> {
    fn describe(self) -> String {
        match self {
            Self::Node(name) => format!("the address of node {name:?}"),
            Self::Backend => "a backend's own address".into(),
            Self::Snat => "a SNAT address of the box".into(),
        }
    }
}

impl<'a> Checker<'a> {
    fn new(desired: &'a Desired, owner: &'a str, context: &'a BoxContext) -> Self {
        let mut nodes: HashMap<&str, Families> = HashMap::with_capacity(desired.nodes.len());
        let mut taken = HashMap::new();
        for node in &desired.nodes {
            let families = nodes.entry(&node.name).or_default();
            for address in &node.addresses {
                families.add(*address);
                taken.entry(*address).or_insert(Taken::Node(&node.name));
            }
        }
        let inline = desired.services.iter().map(|service| &service.backends);
        for backend in desired.sets.iter().map(|set| &set.backends).chain(inline).flatten() {
            if let Some(address) = backend.address {
                taken.entry(address).or_insert(Taken::Backend);
            }
        }
        taken.extend(context.snat.iter().map(|snat| (snat.address, Taken::Snat)));
        let (sets, suggester) = (HashMap::with_capacity(desired.sets.len()), Suggester::default());
        Self { desired, owner, context, nodes, sets, taken, suggester, faults: Vec::new() }
    }

    fn fault(&mut self, path: String, problem: impl Into<String>, remedy: impl Into<String>) {
        self.faults.push(Fault::new(path, problem, remedy));
    }

    fn nodes(&mut self) {
        self.faults.extend(names::list("node", self.desired.nodes.iter().map(|node| node.name.as_str())));
        for (index, node) in self.desired.nodes.iter().enumerate() {
            self.node(index, node);
        }
    }

    fn node(&mut self, index: usize, node: &Node) {
        let mut seen = Families::default();
        for (place, address) in node.addresses.iter().enumerate() {
            let path = || format!("{}.addresses[{place}]", item_path("node", index, &node.name));
            if seen.has(*address) {
                let problem = format!("{address} is a second {} address", family(*address));
                self.fault(path(), problem, "give a node at most one address of each family");
            }
            seen.add(*address);
            self.reachable(&path, *address);
        }
    }

    /// An address packets are to be sent to.
    fn reachable(&mut self, path: &dyn Fn() -> String, address: IpAddr) {
        if let Some(why) = martian(address) {
            self.fault(path(), format!("{address} {why}"), "write the address packets reach the node by");
        } else if self.context.is_own(address) {
            let remedy = "leave the box itself out: AF_XDP cannot deliver to its own kernel";
            self.fault(path(), format!("{address} is the box's own address"), remedy);
        } else if self.context.snat.iter().any(|snat| snat.address == address) {
            self.fault(path(), format!("{address} is a SNAT address of the box"), DISTINCT);
        }
    }

    fn sets(&mut self) {
        let desired = self.desired;
        self.faults.extend(names::list("set", desired.sets.iter().map(|set| set.name.as_str())));
        for (index, set) in desired.sets.iter().enumerate() {
            let path = || item_path("set", index, &set.name);
            let facts = self.backends(&path, &set.backends, None);
            self.sets.entry(&set.name).or_insert(facts);
        }
    }

    /// A list of backends. Of a service's own list (`inline`) each must be of the VIP's family; of a
    /// set, which may serve VIPs of both, those that are not are passed over.
    fn backends(&mut self, owner: &dyn Fn() -> String, list: &'a [Backend], inline: Option<IpAddr>) -> SetFacts {
        let mut facts = SetFacts { backends: list.len(), ..SetFacts::default() };
        let mut seen = HashSet::with_capacity(list.len());
        for (index, backend) in list.iter().enumerate() {
            let path = || format!("{}.backends[{index}]", owner());
            if !seen.insert((backend.node.as_deref(), backend.address, backend.port)) {
                self.fault(path(), "is listed before", "list it once and raise its weight instead");
            }
            if backend.port == Some(0) {
                self.fault(format!("{}.port", path()), "is 0", "write a port from 1 to 65535");
            }
            match backend.port {
                Some(port) => drop(facts.ports.entry(port).or_insert(index)),
                None => drop(facts.portless.get_or_insert(index)),
            }
            let Some(families) = self.backend(&path, backend) else { continue };
            facts.families.v4 |= families.v4;
            facts.families.v6 |= families.v6;
            if let Some(vip) = inline.filter(|vip| !families.has(*vip)) {
                let what = if backend.node.is_some() { "is a node without an" } else { "is not an" };
                let problem = format!("{what} {} address, as the VIP {vip} needs", family(vip));
                self.fault(path(), problem, "give VIP and backend addresses of one family");
            }
        }
        let most = self.context.limits.maglev_size as usize;
        if most > 0 && list.len() > most {
            let problem = format!("has {} backends, the largest Maglev table {most} slots", list.len());
            self.fault(format!("{}.backends", owner()), problem, "raise limits.maglev_size or split the set");
        }
        facts
    }

    /// `None` after a fault that leaves unknown what the backend is reached by.
    fn backend(&mut self, path: &dyn Fn() -> String, backend: &'a Backend) -> Option<Families> {
        match (&backend.node, backend.address) {
            (Some(name), None) => {
                if let Some(families) = self.nodes.get(name.as_str()) {
                    return Some(*families);
                }
                let known = self.desired.nodes.iter().map(|node| node.name.as_str());
                let remedy = match self.suggester.nearest(name, known) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("add a [[node]] with name = {name:?}"),
                };
                self.fault(format!("{}.node", path()), format!("no node is named {name:?}"), remedy);
                None
            }
            (None, Some(address)) => {
                self.reachable(&|| format!("{}.address", path()), address);
                let mut families = Families::default();
                families.add(address);
                Some(families)
            }
            (Some(_), Some(_)) => {
                self.fault(path(), "has both `node` and `address`", "keep one of them");
                None
            }
            (None, None) => {
                self.fault(path(), "has neither `node` nor `address`", "name a node, or write an address");
                None
            }
        }
    }

    fn service(&mut self, index: usize, service: &'a Service) {
        let path = || item_path("service", index, &service.name);
        let within = |key: &str| format!("{}.{key}", item_path("service", index, &service.name));
        self.vip(&|| within("vip"), service.vip);
        if service.port == 0 {
            self.fault(within("port"), "is 0", "write a port from 1 to 65535");
        }
        if service.target_port == Some(0) {
            self.fault(within("target_port"), "is 0", "write a port from 1 to 65535");
        }
        if let (Mode::Dsr, Some(target)) = (service.mode, service.target_port.filter(|port| *port != service.port)) {
            let problem = format!("is {target}, and mode \"dsr\" leaves the packet its port {}", service.port);
            self.fault(within("target_port"), problem, "leave it out: the nodes serve the VIP's own port");
        }
        for (place, net) in service.source_ranges.iter().enumerate() {
            if let Some((problem, remedy)) = host_bits(net) {
                self.fault(format!("{}[{place}]", within("source_ranges")), problem, remedy);
            }
        }
        self.faults.extend(super::limits::check(&within, service));
        if let Some(timeouts) = &service.timeouts {
            for (key, seconds) in timeouts.by_key() {
                if let Some((problem, remedy)) = seconds.and_then(super::the_box::timeout_problem) {
                    self.fault(format!("{}.{key}", within("timeouts")), problem, remedy);
                }
            }
        }
        self.motion(&within, service);
        if service.on_idle == OnIdle::Reset && service.protocol != Protocol::Tcp {
            let problem =
                format!("is \"reset\", and {} has no way to say so", service.protocol.as_str().to_uppercase());
            self.fault(within("on_idle"), problem, "leave it out: only TCP connections can be reset");
        }
        self.targets(&path, service);
    }

    /// Backends that come and go.
    fn motion(&mut self, within: &dyn Fn(&str) -> String, service: &'a Service) {
        if let Some(seconds) = service.slow_start.filter(|seconds| !(1..=MOST_SLOW_START).contains(seconds)) {
            let remedy = format!("write 1 to {MOST_SLOW_START} seconds, or leave it out");
            self.fault(within("slow_start"), format!("is {seconds}"), remedy);
        }
        if let Some(percent) = service.panic_threshold.filter(|percent| *percent > 100) {
            let problem = format!("is {percent}, more than all");
            self.fault(within("panic_threshold"), problem, "write a percentage from 0 to 100");
        }
        if service.on_down != OnDown::Keep && service.protocol == Protocol::Udp {
            let remedy = "leave it out: UDP flows go to another backend at once";
            self.fault(within("on_down"), "is about TCP connections", remedy);
        }
        if service.slow_start.is_some()
            && matches!(service.scheduler, Scheduler::Rr | Scheduler::Lc | Scheduler::Sh | Scheduler::Dh)
        {
            let problem = format!("has no effect with the scheduler {:?}", service.scheduler.as_str());
            self.fault(within("slow_start"), problem, "choose maglev, wrr, wlc, sed, nq or random-two-choices");
        }
    }

    fn vip(&mut self, path: &dyn Fn() -> String, vip: IpAddr) {
        let problem = if let Some(why) = martian(vip) {
            format!("{vip} {why}")
        } else if let Some(what) = self.context.bans.get(&vip) {
            format!("{vip} is {what}")
        } else if let Some(taken) = self.taken.get(&vip) {
            format!("{vip} is {}", taken.describe())
        } else {
            return;
        };
        self.fault(path(), problem, DISTINCT);
    }

    /// Where the service's packets go: a set or a list of its own, each backend with a port.
    fn targets(&mut self, path: &dyn Fn() -> String, service: &'a Service) {
        match &service.set {
            Some(_) if !service.backends.is_empty() => {
                self.fault(path(), "has both `set` and `backends`", "keep one of them");
            }
            Some(name) => self.target_set(path, service, name),
            None if service.backends.is_empty() => {
                // Over the wire an empty list and none are the same, and a service may have no backends.
                if self.owner == FILE_OWNER {
                    self.fault(path(), "has neither `set` nor `backends`", "name a set, or list backends");
                }
            }
            None => {
                let facts = self.backends(path, &service.backends, Some(service.vip));
                let backend_path = |index| format!("{}.backends[{index}].port", path());
                self.dsr_port(&backend_path, service, facts.other_port(service));
                if let (Some(index), None) = (facts.portless, service.backend_port()) {
                    let problem = "has no port, and the service no `target_port`";
                    self.fault(format!("{}.backends[{index}]", path()), problem, "write one of them");
                }
            }
        }
    }

    fn target_set(&mut self, path: &dyn Fn() -> String, service: &Service, name: &str) {
        let set_path = || format!("{}.set", path());
        let Some(facts) = self.sets.get(name) else {
            let known = self.desired.sets.iter().map(|set| set.name.as_str());
            let remedy = match self.suggester.nearest(name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("add a [[set]] with name = {name:?}"),
            };
            return self.fault(set_path(), format!("no set is named {name:?}"), remedy);
        };
        let (other, portless, reachable) =
            (facts.other_port(service), facts.portless, facts.backends == 0 || facts.families.has(service.vip));
        self.dsr_port(&|_| set_path(), service, other);
        if let (Some(index), None) = (portless, service.backend_port()) {
            let problem = format!("backend {index} of set {name:?} has no port, and the service no `target_port`");
            self.fault(set_path(), problem, "write target_port = the port of the nodes");
        }
        if !reachable {
            let kind = family(service.vip);
            let problem = format!("set {name:?} has no backend with an {kind} address, as the VIP needs");
            self.fault(set_path(), problem, format!("give its nodes {kind} addresses"));
        }
    }

    /// In `dsr` nobody translates the port.
    fn dsr_port(&mut self, path: &dyn Fn(usize) -> String, service: &Service, other: Option<(u16, usize)>) {
        if let (Mode::Dsr, Some((port, index))) = (service.mode, other) {
            let problem = format!(
                "backend {index} names port {port}, and mode \"dsr\" leaves the packet its port {}",
                service.port
            );
            self.fault(path(index), problem, "leave the backends' ports out: the nodes serve the VIP's own port");
        }
    }

    /// `nat` needs an address of the VIP's family to send from: one fault per family, not per service.
    fn snat_families(&mut self) {
        for v4 in [true, false] {
            if self.context.snat.iter().any(|snat| snat.address.is_ipv4() == v4) {
                continue;
            }
            let needs = |service: &Service| service.mode == Mode::Nat && service.vip.is_ipv4() == v4;
            let mut lacking = self.desired.services.iter().enumerate().filter(|(_, service)| needs(service));
            let Some((index, first)) = lacking.next() else { continue };
            let (kind, more) = (family(first.vip), lacking.count());
            let also = if more > 0 { format!(" ({more} more services need it too)") } else { String::new() };
            let problem = format!("mode \"nat\" needs an {kind} SNAT address, and the box has none{also}");
            let path = format!("{}.mode", item_path("service", index, &first.name));
            self.fault(path, problem, format!("add a [[snat]] table with an {kind} address to the box's file"));
        }
    }

    fn capacities(&mut self) {
        let (desired, limits) = (self.desired, &self.context.limits);
        let inline = desired.services.iter().map(|service| &service.backends);
        let lists = desired.sets.iter().map(|set| &set.backends).chain(inline);
        let addresses: HashSet<IpAddr> = lists.flatten().filter_map(|backend| backend.address).collect();
        let nodes = desired.nodes.len() + addresses.len();
        let counts = [
            ("service", desired.services.len(), "services", limits.services),
            ("node", nodes, "nodes and backend addresses", limits.nodes),
        ];
        for (path, count, what, limit) in counts {
            // A limit of 0 is a fault of its own.
            if limit > 0 && count > limit as usize {
                let problem = format!("{count} {what}, and limits.{path}s is {limit}");
                self.fault(path.into(), problem, format!("raise limits.{path}s in the box's file and restart it"));
            }
        }
    }
}
