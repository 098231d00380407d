//! Bringing a lab up: namespaces and veths in one batch, then every namespace's own script, all at once.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::cleanup::{self, Manifest, Owner};
use super::netns::Netns;
use super::plan::{self, BOX_HOST, Network, ROUTER_HOST, Tags, Topology, UPLINK_NET, VIP_NET};
use super::wiring::{Script, ip_batch};
use super::{Host, Lab};

/// The tc programs, compiled by build.rs.
const TAGS_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tags.bpf.o"));

/// What the lab shall look like.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    topology: Topology,
    clients: usize,
    nodes: usize,
    queues: u16,
    mtu: u32,
    client_tags: Tags,
    node_tags: Tags,
    router: bool,
    box_forwarding: bool,
    txrehash: bool,
    host_offloads: bool,
}

impl Default for LabBuilder {
    fn default() -> Self {
        Self {
            topology: Topology::TwoArm,
            clients: 1,
            nodes: 3,
            queues: 2,
            mtu: 1500,
            client_tags: Tags::None,
            node_tags: Tags::None,
            router: false,
            box_forwarding: false,
            txrehash: true,
            host_offloads: false,
        }
    }
}

impl LabBuilder {
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    #[must_use]
    pub fn clients(mut self, count: usize) -> Self {
        self.clients = count;
        self
    }

    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// Receive queues of each interface of the box, and transmit queues of its peer.
    #[must_use]
    pub fn queues(mut self, count: u16) -> Self {
        self.queues = count;
        self
    }

    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.queues
    }

    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// VLAN tags on the clients' side of the box (two-arm) or on its only interface.
    #[must_use]
    pub fn client_tags(mut self, tags: Tags) -> Self {
        self.client_tags = tags;
        self
    }

    /// VLAN tags on the nodes' side of the box (two-arm only).
    #[must_use]
    pub fn node_tags(mut self, tags: Tags) -> Self {
        self.node_tags = tags;
        self
    }

    /// A router between the clients and the box (two-arm only).
    #[must_use]
    pub fn router(mut self, wanted: bool) -> Self {
        self.router = wanted;
        self
    }

    /// Whether the box's kernel forwards: for comparisons with it. Off by default, as the
    /// dataplane needs no kernel forwarding.
    #[must_use]
    pub fn box_forwarding(mut self, wanted: bool) -> Self {
        self.box_forwarding = wanted;
        self
    }

    /// `net.core.txrehash` of the hosts: whether retransmitted SYNs may change queue.
    #[must_use]
    pub fn txrehash(mut self, wanted: bool) -> Self {
        self.txrehash = wanted;
        self
    }

    /// Leaves checksum and segmentation offloads of the hosts on: only for paths without XDP. A veth
    /// hands unfinished checksums (CHECKSUM_PARTIAL) to an XDP program, where nobody completes them.
    #[must_use]
    pub fn host_offloads(mut self, wanted: bool) -> Self {
        self.host_offloads = wanted;
        self
    }

    /// Makes the lab. Also sweeps up labs whose process was killed.
    pub fn build(self) -> Result<Lab> {
        self.check()?;
        let started = Instant::now();
        cleanup::install_signal_handler();
        cleanup::sweep();
        let _drawing = cleanup::drawing();
        let manifest = Manifest {
            id: random_id(),
            owner: Some(Owner::current()?),
            topology: self.topology,
            clients: self.clients,
            nodes: self.nodes,
        };
        let id = manifest.id.clone();
        cleanup::register(&id);
        let result = manifest.write().and_then(|()| self.bring_up(manifest, started));
        if result.is_err() {
            cleanup::forget(&id);
            cleanup::remove(&id);
        }
        result
    }

    fn check(&self) -> Result<()> {
        ensure!((1..=plan::MAX_HOSTS).contains(&self.clients), "a lab has 1 to {} clients", plan::MAX_HOSTS);
        ensure!((1..=plan::MAX_HOSTS).contains(&self.nodes), "a lab has 1 to {} nodes", plan::MAX_HOSTS);
        ensure!(self.queues >= 1, "an interface has at least one queue");
        if self.topology == Topology::OneArm {
            ensure!(!self.router, "a router between clients and box needs the two-arm lab");
            ensure!(self.node_tags == Tags::None, "the one-arm lab has one segment: use client_tags");
        }
        Ok(())
    }

    fn bring_up(&self, manifest: Manifest, started: Instant) -> Result<Lab> {
        let mut drawing = Drawing::new(self, &manifest)?;
        let mut names = vec!["box".to_owned()];
        names.extend((0..self.clients).map(|i| format!("client{i}")));
        names.extend((0..self.nodes).map(|i| format!("node{i}")));
        names.extend(self.router.then(|| "router".to_owned()));
        names.extend(self.needs_switch().then(|| "switch".to_owned()));
        drawing.namespaces(&names);
        drawing.segments();
        drawing.apply()?;

        let open = |name: &str| Netns::open(&format!("{}-{name}", manifest.id));
        let host = |kind: &str, index: usize, addr| -> Result<Host> {
            let name = format!("{kind}{index}");
            Ok(Host { ns: open(&name)?, name, addr })
        };
        Ok(Lab {
            the_box: open("box")?,
            router: self.router.then(|| open("router")).transpose()?,
            clients: (0..self.clients).map(|i| host("client", i, self.topology.client(i))).collect::<Result<_>>()?,
            nodes: (0..self.nodes).map(|i| host("node", i, self.topology.node(i))).collect::<Result<_>>()?,
            manifest,
            bring_up: started.elapsed(),
            kept: false,
        })
    }

    fn needs_switch(&self) -> bool {
        self.topology == Topology::OneArm || self.nodes > 1 || self.clients > 1
    }
}

/// Six random hex digits: parallel labs of one machine must not collide.
fn random_id() -> String {
    // The hasher's keys come from the operating system's randomness.
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("pl{:06x}", random & 0xff_ffff)
}

/// The commands of a lab being drawn up.
struct Drawing<'a> {
    spec: &'a LabBuilder,
    id: &'a str,
    /// Run in the machine's own namespace: only makes namespaces and veths inside them.
    root: Vec<String>,
    scripts: BTreeMap<String, Script>,
    tags_object: String,
}

/// A host's only interface.
const HOST_DEV: &str = "eth0";

/// One end of a veth.
struct End<'a> {
    ns: &'a str,
    dev: &'a str,
    queues: u16,
}

impl<'a> Drawing<'a> {
    fn new(spec: &'a LabBuilder, manifest: &'a Manifest) -> Result<Self> {
        let object = Manifest::dir(&manifest.id).join("tags.bpf.o");
        std::fs::write(&object, TAGS_OBJECT).with_context(|| format!("writing {}", object.display()))?;
        let tags_object = object.to_string_lossy().into_owned();
        Ok(Self { spec, id: &manifest.id, root: Vec::new(), scripts: BTreeMap::new(), tags_object })
    }

    fn namespaces(&mut self, names: &[String]) {
        for name in names {
            self.root.push(format!("netns add {}-{name}", self.id));
            let script = self.scripts.entry(name.clone()).or_default();
            script.sysctl("net.ipv4.conf.all.rp_filter", 0);
            script.sysctl("net.ipv6.conf.all.accept_dad", 0);
            script.sysctl("net.ipv6.conf.default.router_solicitations", 0);
            script.sysctl("net.core.txrehash", u8::from(self.spec.txrehash));
            script.ip("link set lo up");
            let forwards = name == "router" || name == "box" && self.spec.box_forwarding;
            if forwards {
                script.sysctl("net.ipv4.ip_forward", 1);
                script.sysctl("net.ipv6.conf.all.forwarding", 1);
            }
            if name == "switch" {
                script.sysctl("net.ipv6.conf.all.disable_ipv6", 1);
                script.sysctl("net.ipv6.conf.default.disable_ipv6", 1);
            }
        }
    }

    fn script(&mut self, ns: &str) -> &mut Script {
        self.scripts.entry(ns.to_owned()).or_default()
    }

    fn veth(&mut self, a: &End<'_>, b: &End<'_>) {
        let Self { id, .. } = *self;
        let mtu = self.spec.mtu;
        let end = |end: &End<'_>| {
            let End { ns, dev, queues } = end;
            let address = match plan::mac(ns) {
                Some(mac) if *dev == HOST_DEV => format!("address {mac} "),
                _ => String::new(),
            };
            format!("{dev} netns {id}-{ns} {address}mtu {mtu} numrxqueues {queues} numtxqueues {queues}")
        };
        self.root.push(format!("link add {} type veth peer name {}", end(a), end(b)));
        for side in [a, b] {
            let offloads = self.spec.host_offloads;
            let script = self.script(side.ns);
            if side.ns != "switch" {
                // Duplicate address detection would hold link-local addresses back for seconds, and with
                // them the neighbour discovery sent from them. `all` does not outrule an interface's own.
                script.sysctl(&format!("net.ipv6.conf.{}.accept_dad", side.dev), 0);
            }
            script.ip(format!("link set {} up", side.dev));
            if !offloads {
                // txvlan: an offloaded tag would travel beside the frame, where XDP does not see it.
                script.tool(format!("ethtool -K {} tx off txvlan off tx-vlan-stag-hw-insert off", side.dev));
            }
        }
    }

    fn segments(&mut self) {
        let spec = self.spec;
        let [to_clients, to_nodes] = spec.topology.interfaces();
        let clients: Vec<(String, u8)> =
            (0..spec.clients).map(|i| (format!("client{i}"), spec.topology.client(i).v4.octets()[3])).collect();
        let nodes: Vec<(String, u8)> =
            (0..spec.nodes).map(|i| (format!("node{i}"), spec.topology.node(i).v4.octets()[3])).collect();
        match spec.topology {
            Topology::OneArm => {
                let everybody: Vec<_> = clients.iter().chain(&nodes).cloned().collect();
                self.segment("lan", plan::NODE_NET, ("box", to_nodes, spec.queues), &everybody, spec.client_tags);
            }
            Topology::TwoArm => {
                self.segment("back", plan::NODE_NET, ("box", to_nodes, spec.queues), &nodes, spec.node_tags);
                if spec.router {
                    self.segment("front", plan::CLIENT_NET, ("router", "inside", 1), &clients, Tags::None);
                    self.uplink(to_clients);
                } else {
                    let gateway = ("box", to_clients, spec.queues);
                    self.segment("front", plan::CLIENT_NET, gateway, &clients, spec.client_tags);
                }
            }
        }
        for (name, _) in &clients {
            // Without a router VIPs are on the clients' link: they ask for them by ARP and ND.
            if !spec.router {
                self.on_link_vips(name, HOST_DEV);
            }
        }
        if spec.topology == Topology::TwoArm {
            self.default_route(&nodes, plan::NODE_NET);
            self.default_route(&clients, plan::CLIENT_NET);
        }
    }

    /// Hosts on a wire with their gateway (the box or a router): by a bridge, or directly when there is
    /// a single host.
    fn segment(&mut self, name: &str, net: Network, gateway: (&str, &str, u16), hosts: &[(String, u8)], tags: Tags) {
        self.wires(name, net, gateway, hosts, tags);
        if tags != Tags::None {
            self.known_neighbors(gateway.1, net, hosts);
        }
    }

    fn wires(&mut self, name: &str, net: Network, gateway: (&str, &str, u16), hosts: &[(String, u8)], tags: Tags) {
        let (gw_ns, gw_dev, queues) = gateway;
        self.address(gw_ns, gw_dev, net, BOX_HOST);
        if let [(host, number)] = hosts {
            self.veth(&End { ns: gw_ns, dev: gw_dev, queues }, &End { ns: host, dev: HOST_DEV, queues });
            self.tags(host, HOST_DEV, tags);
            self.address(host, HOST_DEV, net, *number);
            return;
        }
        let bridge = format!("br-{name}");
        let port = format!("{name}-gw");
        self.script("switch").ip(format!("link add {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"));
        self.script("switch").ip(format!("link set {bridge} up"));
        self.veth(&End { ns: gw_ns, dev: gw_dev, queues }, &End { ns: "switch", dev: &port, queues });
        self.tags("switch", &port, tags);
        self.script("switch").ip(format!("link set {port} master {bridge}"));
        for (host, number) in hosts {
            self.veth(&End { ns: host, dev: HOST_DEV, queues: 1 }, &End { ns: "switch", dev: host, queues: 1 });
            self.script("switch").ip(format!("link set {host} master {bridge}"));
            self.address(host, HOST_DEV, net, *number);
        }
    }

    /// The box's kernel has no VLAN interface to resolve its neighbours on (the kernel may lack 8021q):
    /// they are told to it. What the box sends keeps the tags it came with.
    fn known_neighbors(&mut self, dev: &str, net: Network, hosts: &[(String, u8)]) {
        for (name, number) in hosts {
            let (addr, Some(mac)) = (net.host(*number), plan::mac(name)) else { continue };
            for ip in [addr.v4.to_string(), addr.v6.to_string()] {
                self.script("box").ip(format!("neighbor add {ip} lladdr {mac} dev {dev} nud permanent"));
            }
        }
    }

    /// The wire between the box and the clients' router.
    fn uplink(&mut self, box_dev: &str) {
        let queues = self.spec.queues;
        self.veth(&End { ns: "box", dev: box_dev, queues }, &End { ns: "router", dev: "outside", queues });
        self.tags("router", "outside", self.spec.client_tags);
        self.address("box", box_dev, UPLINK_NET, BOX_HOST);
        self.address("router", "outside", UPLINK_NET, ROUTER_HOST);
        self.on_link_vips("router", "outside");
        let the_box = UPLINK_NET.host(BOX_HOST);
        self.script("router").ip(format!("route add default via {}", the_box.v4));
        self.script("router").ip(format!("route add ::/0 via {}", the_box.v6));
        let via = UPLINK_NET.host(ROUTER_HOST);
        for (net, via) in plan::CLIENT_NET.cidrs().iter().zip([via.v4.to_string(), via.v6.to_string()]) {
            self.script("box").ip(format!("route add {net} via {via}"));
        }
    }

    fn address(&mut self, ns: &str, dev: &str, net: Network, number: u8) {
        let addr = net.host(number);
        let script = self.script(ns);
        script.ip(format!("address add {}/24 dev {dev}", addr.v4));
        script.ip(format!("address add {}/64 dev {dev} nodad", addr.v6));
    }

    fn on_link_vips(&mut self, ns: &str, dev: &str) {
        for net in VIP_NET.cidrs() {
            self.script(ns).ip(format!("route add {net} dev {dev}"));
        }
    }

    fn default_route(&mut self, hosts: &[(String, u8)], net: Network) {
        let gateway = net.host(BOX_HOST);
        for (name, _) in hosts {
            self.script(name).ip(format!("route add default via {}", gateway.v4));
            self.script(name).ip(format!("route add ::/0 via {}", gateway.v6));
        }
    }

    fn tags(&mut self, ns: &str, dev: &str, tags: Tags) {
        let kind = match tags {
            Tags::None => return,
            Tags::Vlan => "vlan",
            Tags::QinQ => "qinq",
        };
        let object = self.tags_object.clone();
        let script = self.script(ns);
        script.tool(format!("tc qdisc add dev {dev} clsact"));
        for (hook, action) in [("egress", "push"), ("ingress", "pop")] {
            script.tool(format!("tc filter add dev {dev} {hook} bpf da obj {object} sec tc/{action}_{kind}"));
        }
    }

    fn apply(mut self) -> Result<()> {
        ip_batch(&self.root).context("making namespaces and veths")?;
        let scripts = std::mem::take(&mut self.scripts);
        let id = self.id;
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let running: Vec<_> = scripts
                .iter()
                .map(|(name, script)| scope.spawn(move || script.run(&Netns::open(&format!("{id}-{name}"))?)))
                .collect();
            running.into_iter().map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        results.into_iter().collect()
    }
}
