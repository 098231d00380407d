//! The box in its network: steering, announcing, next hops, and the routes that are ours.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use penstock_configs::file::VlanTags;

use super::Live;
use super::policing::Policing;
use super::ways::WayWatch;
use crate::io::LARGEST_MTU;
use crate::io::tap::TapDevice;
use crate::neighbor::announce::{Announcer, Settings};
use crate::neighbor::bond::largest_mtu;
use crate::neighbor::mirror::{Hop as KernelHop, Hops, Link, Mirror};
use crate::neighbor::routes::OwnRoutes;
use crate::neighbor::sockets::Announcements;
use crate::rss::Placement;
use crate::steer::{SnatSteer, Steer, Steering};
use crate::tables::{FamilyTables, Hop, Local, PortView, Tables, View};
use crate::verdict::PortId;
use crate::wire::{Family, Tags, V4, V6};

pub struct Network {
    pub steer: Steer,
    pub mirror: Mirror,
    pub announcements: Announcements,
    pub routes: OwnRoutes,
    /// The TAP, and its place behind the configured ports.
    pub tap: Option<TapDevice>,
    pub ports: usize,
    pub placement: Arc<Placement>,
    /// Addresses to answer for, whatever the announcer has got to.
    wanted: Vec<IpAddr>,
    claimed: BTreeSet<(u8, IpAddr)>,
    links: Vec<Link>,
    mss_clamps: Vec<(String, u16)>,
    vlan_tags: VlanTags,
    pub ways: WayWatch,
    pub policing: Policing,
    /// The largest packet a frame of the workers holds.
    largest: u32,
    /// Why the XDP program does not know what the workers run; tried again until it does.
    pub unsteered: Option<String>,
}

impl Network {
    pub fn new(
        steer: Steer,
        mirror: Mirror,
        routes: OwnRoutes,
        tap: Option<TapDevice>,
        placement: Arc<Placement>,
        quick: bool,
    ) -> Self {
        let settings = if quick { Settings::quick() } else { Settings::default() };
        let links = mirror.hops().links.clone();
        let ports = mirror.port_count();
        let seed = crate::clock::Now::read().ns;
        let mut announcements = Announcements::new(Announcer::new(settings, seed));
        announcements.set_links(&links);
        announcements.set_vlans(&mirror.hops().vlans);
        Self {
            steer,
            mirror,
            announcements,
            routes,
            tap,
            ports,
            placement,
            wanted: Vec::new(),
            claimed: BTreeSet::new(),
            links,
            mss_clamps: Vec::new(),
            vlan_tags: VlanTags::Auto,
            ways: WayWatch::new(),
            policing: Policing::default(),
            largest: u32::MAX,
            unsteered: None,
        }
    }

    /// Knows how large a packet the workers take: one frame holds it, or several if that was asked for at the start.
    pub fn with_frames(self, frame_size: u32, jumbo: bool) -> Self {
        Self { largest: if jumbo { LARGEST_MTU } else { largest_mtu(frame_size) }, ..self }
    }

    /// Follows what the tables name: nodes to resolve, addresses to announce, routes to hold.
    pub fn want(&mut self, tables: &Tables, live: &Live) {
        // A node that left leaves its slot vacant.
        let nodes: Vec<IpAddr> = tables.nodes.iter().copied().filter(|node| !node.is_unspecified()).collect();
        self.mirror.want(&nodes);
        self.wanted = announced(tables);
        self.mss_clamps.clone_from(&live.mss_clamps);
        self.vlan_tags = live.vlan_tags;
        self.ways.want(tables, &live.reply_probe, Instant::now());
        let ports = 0..self.ports;
        let claims: Vec<(PortId, IpAddr)> =
            ports.flat_map(|port| self.wanted.iter().map(move |address| (PortId(port as u8), *address))).collect();
        self.announcements.set(&claims);
        self.update_claims();
        if let Err(error) = self.routes.set_unreachable(&live.vip_ranges) {
            tracing::warn!(%error, "unreachable routes for box.vip_ranges could not be set");
        }
        if let Some(tap) = &self.tap {
            let vips = vips(tables);
            if let Err(error) = self.routes.set_local_vips(tap.index, &vips) {
                tracing::warn!(%error, "the box itself cannot reach its VIPs: routes could not be set");
            }
        }
    }

    /// An earlier process answered for the addresses, most likely: so do we from the first moment, while we probe
    /// whether another host has one by now.
    pub fn resume(&mut self) {
        let ports = 0..self.ports;
        let held: Vec<(PortId, IpAddr)> =
            ports.flat_map(|port| self.wanted.iter().map(move |address| (PortId(port as u8), *address))).collect();
        self.announcements.resume(&held);
        self.update_claims();
    }

    /// Regular work. True: what the workers see changed.
    pub fn poll(&mut self, now: Instant) -> bool {
        self.announcements.on_readable();
        self.announcements.poll(now);
        let hops = self.mirror.on_readable() | self.mirror.poll(now);
        if hops {
            let links = self.mirror.hops().links.clone();
            if links != self.links {
                self.announcements.set_links(&links);
                self.links = links;
            }
            self.announcements.set_vlans(&self.mirror.hops().vlans);
        }
        hops | self.update_claims()
    }

    fn update_claims(&mut self) -> bool {
        let claimed = self.announcements.claimed().map(|(port, address)| (port.0, address)).collect();
        let changed = claimed != self.claimed;
        self.claimed = claimed;
        changed
    }

    /// Every address wanted is claimed on every port that has a link to claim it on.
    pub fn has_claimed_all(&self) -> bool {
        let links = self.links.iter().filter(|link| !link.standby).count();
        self.claimed.len() >= self.wanted.len() * links
    }

    fn is_standby(&self, port: u8) -> bool {
        self.links.iter().any(|link| link.port.0 == port && link.standby)
    }

    /// Readable when [`Self::poll`] has work.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(self.mirror.fd()).chain(self.announcements.fds()).collect()
    }

    /// Makes the XDP program know what the tables name. The workers run them already: a failure is no refusal, but
    /// a notice, and what there was to refuse was refused when they were compiled.
    pub fn steer(&mut self, tables: &Tables, live: &Live) {
        let is_claimed = |address: IpAddr| self.claimed.iter().any(|(_, claimed)| *claimed == address);
        let mut steering = Steering::default();
        collect::<V4>(&tables.v4, &mut steering, &is_claimed);
        collect::<V6>(&tables.v6, &mut steering, &is_claimed);
        steering.new_per_vip = if self.policing.is_on() { live.new_per_vip } else { 0 };
        steering.snat = live
            .snat
            .iter()
            .map(|snat| SnatSteer { address: snat.address, ports: snat.ports, shared: snat.shared })
            .collect();
        let why = self.steer.sync(&steering).err().map(|error| error.to_string());
        if let Some(why) = why.as_ref().filter(|_| why != self.unsteered) {
            tracing::warn!("{why}");
        }
        self.unsteered = why;
    }

    /// What the workers see.
    pub fn view(&self, number: u64, tables: &Arc<Tables>, live: &Live) -> View {
        let hops = self.mirror.hops();
        let keep = match self.vlan_tags {
            VlanTags::Keep => true,
            VlanTags::Route => false,
            VlanTags::Auto => hops.vlans.is_empty(),
        };
        let hop = |hop: Option<KernelHop>| hop.map(|hop| tagged_hop(hop, keep));
        let mut ports: Vec<PortView> = self.ports_view(&hops);
        if let Some(tap) = &self.tap {
            let mtu = ports.iter().map(|port| port.mtu).max().unwrap_or(1500);
            ports.push(PortView { mac: tap.mac, mtu, is_kernel: true, mss_clamp: 0 });
        }
        View {
            number,
            tables: Arc::clone(tables),
            placement: Arc::clone(&self.placement),
            node_hops: tables.nodes.iter().map(|node| hop(hops.targets.get(node).copied().flatten())).collect(),
            default_v4: hop(hops.default_v4),
            default_v6: hop(hops.default_v6),
            ports,
            marks: (live.new_per_vip > 0).then(|| self.steer.marks()),
            // On standby nobody is answered.
            claimed: self.claimed.iter().filter(|(port, _)| !self.is_standby(*port)).copied().collect(),
        }
    }

    fn ports_view(&self, hops: &Hops) -> Vec<PortView> {
        let missing = PortView { mac: [0; 6], mtu: 0, is_kernel: false, mss_clamp: 0 };
        let mut ports = vec![missing; self.ports];
        for link in &hops.links {
            if let Some(port) = ports.get_mut(usize::from(link.port.0)) {
                let of = |name: &String| *name == link.name || Some(name) == link.bond.as_ref();
                let mss_clamp = self.mss_clamps.iter().find(|(name, _)| of(name)).map_or(0, |(_, clamp)| *clamp);
                *port = PortView { mac: link.mac, mtu: link.mtu, is_kernel: false, mss_clamp };
            }
        }
        ports
    }

    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Why things are not as they should be, in words.
    pub fn notices(&self) -> Vec<String> {
        let mut notices: Vec<String> = self.mirror.notices().to_vec();
        let beyond = self.links.iter().filter(|link| link.mtu > self.largest);
        notices.extend(beyond.map(|link| {
            format!(
                "port {}: its MTU is now {}, and packets above {} bytes are dropped by the kernel (rx_dropped): lower it, \
                 or restart the dataplane, which then takes packets in several frames if the kernel has them (Linux 6.6)",
                link.name, link.mtu, self.largest
            )
        }));
        notices.extend(self.ways.notices(&self.mirror));
        notices.extend(self.announcements.notices());
        notices.extend(self.routes.notices().iter().cloned());
        notices.extend(self.steer.warnings().iter().cloned());
        notices.extend(self.unsteered.clone());
        notices
    }
}

/// A hop as the workers take it. `keep`: the box is no member of the VLANs it sees, so that frames leave in the
/// tags they came in unless the route names others.
pub fn tagged_hop(hop: KernelHop, keep: bool) -> Hop {
    let KernelHop { port, dst, src, mtu, tags, adjacent } = hop;
    let tags = tags.into_iter().flatten().fold(Tags::NONE, |tags, tag| tags.with(tag.ethertype, tag.id));
    let hop = Hop::new(port, dst, src, mtu);
    let hop = if adjacent { hop } else { hop.of_router() };
    if keep && tags.is_empty() { hop } else { hop.in_tags(tags) }
}

/// VIPs with `announce = "l2"` and the SNAT addresses that are ours alone.
fn announced(tables: &Tables) -> Vec<IpAddr> {
    fn of<F: Family>(family: &FamilyTables<F::Addr>) -> impl Iterator<Item = IpAddr> + '_ {
        family.locals.iter().filter_map(|(address, local)| match local {
            Local::Vip { announce: true } => Some(F::to_ip(*address)),
            Local::Snat { id } if !family.snats.get(usize::from(*id))?.shared => Some(F::to_ip(*address)),
            _ => None,
        })
    }
    let mut all: Vec<IpAddr> = of::<V4>(&tables.v4).chain(of::<V6>(&tables.v6)).collect();
    all.sort();
    all
}

fn vips(tables: &Tables) -> Vec<IpAddr> {
    let services = tables.services.iter().flatten();
    services.map(|service| service.vip).collect::<BTreeSet<_>>().into_iter().collect()
}

fn collect<F: Family>(family: &FamilyTables<F::Addr>, steering: &mut Steering, claimed: &impl Fn(IpAddr) -> bool) {
    for (address, local) in &family.locals {
        if let Local::Vip { announce } = local {
            let address = F::to_ip(*address);
            steering.vips.push((address, *announce && claimed(address)));
        }
    }
    let dnat = family.dnat.keys();
    steering.dnat.extend(dnat.map(|key| (F::to_ip(key.addr), key.port, key.protocol)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbor::VlanTag;

    #[test]
    fn a_kernels_hop_in_the_workers_words() {
        let by = |tags, adjacent| KernelHop { port: PortId(1), dst: [2; 6], src: [4; 6], mtu: 1496, tags, adjacent };
        let tag = |ethertype, id| Some(VlanTag { ethertype, id });
        let plain = by([None; 2], true);
        assert_eq!(tagged_hop(plain, true), Hop::new(PortId(1), [2; 6], [4; 6], 1496), "tags stay as they come");
        let routed = tagged_hop(plain, false);
        assert_eq!((routed.tags, routed.plain_mtu), (Some(Tags::NONE), 1496), "tags are taken off");
        for keep in [true, false] {
            let tagged = tagged_hop(by([tag(0x88a8, 200), tag(0x8100, 7)], false), keep);
            assert_eq!(tagged.tags, Some(Tags::NONE.with(0x88a8, 200).with(0x8100, 7)), "outermost first");
            assert_eq!((tagged.plain_mtu, tagged.mtu, tagged.adjacent), (0, 1496, false), "never by the short way");
        }
    }
}
