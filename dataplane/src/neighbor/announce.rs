//! Claiming addresses: probe, then announce, then watch for others. A state machine over time passed
//! in; [`super::sockets`] carries its frames. Housekeeping thread only.
//!
//! Sources: RFC 5227 (IPv4: probes in section 2.1, announcements in 2.3, defence in 2.4), RFC 4862
//! section 5.4 (IPv6 duplicate detection), RFC 4861 section 7.2.6 (unsolicited advertisements).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::frames::{self, SmallFrame};
use super::mirror::Link;
use super::{Mac, format_mac, responder};
use crate::verdict::PortId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// ARP probes before an IPv4 address is taken.
    pub arp_probes: u32,
    /// Solicitations before an IPv6 address is taken (`DupAddrDetectTransmits`).
    pub dad_probes: u32,
    /// The first probe waits a random part of this: boxes that start together don't probe together.
    pub probe_wait: Duration,
    /// Between probes, at random.
    pub probe_spacing: (Duration, Duration),
    /// After the last probe, for late answers.
    pub listen: Duration,
    pub announcements: u32,
    pub announcement_spacing: Duration,
    /// Announces again so often, for switches and hosts that forget; `None`: never.
    pub refresh: Option<Duration>,
    /// Answers a host that claims an address of ours at most so often.
    pub defend: Duration,
    /// A link down for longer may come up in a network where another host has our addresses by now: they are probed
    /// for, as RFC 5227 section 2.1 asks. Shorter is how long a bond takes from one member to the other.
    pub blip: Duration,
    /// Tries again for an address that another host had: after the first conflicts so soon, because a box that
    /// hands its addresses over goes on answering for some seconds, and from then on nobody does.
    pub retry_soon: Duration,
    /// And so often after [`MAX_CONFLICTS`].
    pub retry: Duration,
}

impl Default for Settings {
    /// The constants of RFC 5227 section 1.1 and RFC 4862 section 5.1.
    fn default() -> Self {
        Self {
            arp_probes: 3,
            dad_probes: 1,
            probe_wait: Duration::from_secs(1),
            probe_spacing: (Duration::from_secs(1), Duration::from_secs(2)),
            listen: Duration::from_secs(2),
            announcements: 2,
            announcement_spacing: Duration::from_secs(2),
            refresh: None,
            defend: Duration::from_secs(10),
            blip: Duration::from_secs(1),
            retry_soon: Duration::from_secs(2),
            retry: Duration::from_secs(60),
        }
    }
}

impl Settings {
    /// For labs and tests: the same steps, a fraction of a second in all.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            probe_wait: Duration::from_millis(10),
            probe_spacing: (Duration::from_millis(50), Duration::from_millis(100)),
            listen: Duration::from_millis(100),
            announcement_spacing: Duration::from_millis(200),
            retry_soon: Duration::from_millis(500),
            retry: Duration::from_secs(2),
            ..Self::default()
        }
    }
}

/// RFC 5227 section 2.1.1: after so many, only one try in `RATE_LIMIT_INTERVAL`.
const MAX_CONFLICTS: u32 = 10;

/// What the owner of the sockets is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Send {
        port: PortId,
        frame: SmallFrame,
    },
    /// Be a member of the group on the port, so that switches and the NIC's filter deliver
    /// solicitations for the address.
    Join {
        port: PortId,
        group: Ipv6Addr,
    },
    Leave {
        port: PortId,
        group: Ipv6Addr,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Wanted; nothing sent yet.
    New,
    Probing {
        sent: u32,
        due: Instant,
    },
    /// Ours from here on, if not resumed before.
    Announcing {
        sent: u32,
        due: Option<Instant>,
    },
    Held {
        since: Instant,
    },
    /// Another host has it: the claim's rival.
    Refused {
        until: Instant,
    },
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    stage: Stage,
    /// Answered for before its probes are through; they may find that another host has it by now.
    resumed: bool,
    /// Ours, and its link is down: since when.
    cut: Option<Instant>,
    /// Another host was heard claiming the address since the last poll.
    heard: Option<Mac>,
    /// Who else has it or claims it. While we hold it: and when we answered that.
    rival: Option<(Mac, Instant)>,
    /// The rival spoke again since, so that hosts believe it.
    unanswered: bool,
    /// When we last took the last word of a rival that had fallen silent.
    insisted: Option<Instant>,
    /// Probes in a row that found a rival.
    conflicts: u32,
}

impl Claim {
    const NEW: Self = Self {
        stage: Stage::New,
        resumed: false,
        cut: None,
        heard: None,
        rival: None,
        unanswered: false,
        insisted: None,
        conflicts: 0,
    };
    /// Ours as far as we know, and to be probed for.
    const RESUMED: Self = Self { resumed: true, ..Self::NEW };

    fn is_ours(&self) -> bool {
        self.resumed || self.is_announced()
    }

    fn is_announced(&self) -> bool {
        matches!(self.stage, Stage::Announcing { .. } | Stage::Held { .. })
    }
}

/// The addresses the box claims, each on its port.
pub struct Announcer {
    settings: Settings,
    random: u64,
    claims: BTreeMap<(u8, IpAddr), Claim>,
    links: BTreeMap<u8, Link>,
    joined: BTreeSet<(u8, Ipv6Addr)>,
}

impl Announcer {
    /// `seed` spreads the probes of boxes that start together.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        // Xorshift stands still at zero.
        Self { settings, random: seed | 1, claims: BTreeMap::new(), links: BTreeMap::new(), joined: BTreeSet::new() }
    }

    /// The addresses to claim, replacing the former ones. Those that stay are not disturbed.
    pub fn set(&mut self, wanted: &[(PortId, IpAddr)]) {
        let wanted: BTreeSet<_> = wanted.iter().map(|(port, address)| (port.0, *address)).collect();
        self.claims.retain(|key, _| wanted.contains(key));
        for key in wanted {
            self.claims.entry(key).or_insert(Claim::NEW);
        }
    }

    /// Addresses among the wanted ones that this box may have held a moment ago (a restart with flows kept): ours at
    /// once, for probing first would leave them unanswered for seconds, and probed for all the same.
    pub fn resume(&mut self, held: &[(PortId, IpAddr)]) {
        for (port, address) in held {
            if let Some(claim) = self.claims.get_mut(&(port.0, *address))
                && claim.stage == Stage::New
            {
                claim.resumed = true;
            }
        }
    }

    /// The ports as they are now. What comes up, or changes its hardware address, is announced anew if it was still
    /// ours ([`Settings::blip`]); so is, on a bond's member that takes over, what is ours on another one: the wire is
    /// the same.
    pub fn set_links(&mut self, links: &[Link]) {
        // What a bond's members have, and whether it is announced on one.
        let mut held: BTreeMap<(String, IpAddr), bool> = BTreeMap::new();
        for ((port, address), claim) in self.claims.iter().filter(|(_, claim)| claim.is_ours()) {
            if let Some(bond) = self.links.get(port).and_then(|link| link.bond.clone()) {
                *held.entry((bond, *address)).or_default() |= claim.is_announced();
            }
        }
        let links: BTreeMap<u8, Link> = links.iter().map(|link| (link.port.0, link.clone())).collect();
        for (port, link) in &links {
            let before = self.links.get(port);
            if before.is_none_or(|before| before.ifindex != link.ifindex) {
                // Another interface of the same name: the memberships went with the old one.
                self.joined.retain(|(joined, _)| joined != port);
            }
            if before.is_some_and(|before| before.up && before.mac == link.mac && before.ifindex == link.ifindex) {
                continue;
            }
            for ((_, address), claim) in self.claims.iter_mut().filter(|((on, _), _)| on == port) {
                let anew = Stage::Announcing { sent: 0, due: None };
                let by_bond = link.bond.as_ref().and_then(|bond| held.get(&(bond.clone(), *address)));
                match by_bond {
                    _ if claim.is_announced() => claim.stage = anew,
                    Some(true) => *claim = Claim { stage: anew, ..Claim::NEW },
                    Some(false) => *claim = Claim::RESUMED,
                    None => claim.stage = Stage::New,
                }
            }
        }
        self.joined.retain(|(port, _)| links.contains_key(port));
        self.links = links;
    }

    /// A frame of another host, from the port's packet sockets.
    pub fn on_packet(&mut self, port: PortId, frame: &[u8]) {
        let Some(heard) = responder::claim(frame) else { return };
        let Some(claim) = self.claims.get(&(port.0, heard.address)) else { return };
        // Probes for what we hold are answered by the responder; while we probe too, they conflict.
        if !(heard.probe && claim.is_ours()) {
            self.on_conflict(port, heard.address, heard.mac);
        }
    }

    /// Another host claims the address: from [`Self::on_packet`] or the responder's conflicts.
    pub fn on_conflict(&mut self, port: PortId, address: IpAddr, mac: Mac) {
        let Self { links, claims, .. } = self;
        // Our ports may sit on one wire and hear each other.
        if links.values().any(|link| link.mac == mac) {
            return;
        }
        // The switch brings what is for a bond's hardware address to one member, and it is meant for all.
        let bond = links.get(&port.0).and_then(|link| link.bond.as_ref());
        let of_bond = |link: &Link| link.up && bond.is_some() && link.bond.as_ref() == bond;
        for ((on, of), claim) in claims.iter_mut() {
            if *of == address && (*on == port.0 || links.get(on).is_some_and(of_bond)) {
                claim.heard = Some(mac);
            }
        }
    }

    /// The next poll asks for this [`Action::Join`] again: it failed, or the port has one more VLAN.
    pub fn join_again(&mut self, port: PortId, group: Ipv6Addr) {
        self.joined.remove(&(port.0, group));
    }

    /// The addresses that are ours now: those the responder answers for.
    pub fn claimed(&self) -> impl Iterator<Item = (PortId, IpAddr)> + '_ {
        self.claims.iter().filter(|(_, claim)| claim.is_ours()).map(|((port, address), _)| (PortId(*port), *address))
    }

    /// Addresses that are not announced, or that others claim too.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let notice = |(key, claim): (&(u8, IpAddr), &Claim)| {
            let address = key.1;
            let port = self.links.get(&key.0).map_or("a missing port", |link| &link.name);
            let mac = format_mac(claim.rival?.0);
            Some(if claim.is_ours() {
                format!("{address} is claimed on {port} by {mac} too: clients may reach the wrong host")
            } else {
                format!(
                    "{address} is not announced on {port}: {mac} has it already; remove it there or take another address here"
                )
            })
        };
        self.claims.iter().filter_map(notice).collect()
    }

    /// Advances every claim to `now`; call it a few times a second and after `set`.
    pub fn poll(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.memberships();
        let Self { settings, random, claims, links, .. } = self;
        for ((port, address), claim) in claims {
            let Some(link) = links.get(port).filter(|link| link.up) else {
                if claim.is_announced() && now.saturating_duration_since(*claim.cut.get_or_insert(now)) >= settings.blip
                {
                    *claim = Claim::RESUMED;
                }
                continue;
            };
            claim.cut = None;
            let mut turn = Turn { address: *address, mac: link.mac, now, settings, random };
            if let Some(frame) = turn.step(claim) {
                actions.push(Action::Send { port: link.port, frame });
            }
        }
        actions
    }

    fn memberships(&mut self) -> Vec<Action> {
        let wanted: BTreeSet<(u8, Ipv6Addr)> = self
            .claims
            .keys()
            .filter(|(port, _)| self.links.contains_key(port))
            .filter_map(|(port, address)| match address {
                IpAddr::V6(address) => Some((*port, frames::solicited_node(*address))),
                IpAddr::V4(_) => None,
            })
            .collect();
        let leave = self.joined.difference(&wanted);
        let leave = leave.map(|(port, group)| Action::Leave { port: PortId(*port), group: *group });
        let join = wanted.difference(&self.joined);
        let join = join.map(|(port, group)| Action::Join { port: PortId(*port), group: *group });
        let actions = leave.chain(join).collect();
        self.joined = wanted;
        actions
    }
}

/// One claim's turn in a poll.
struct Turn<'a> {
    address: IpAddr,
    mac: Mac,
    now: Instant,
    settings: &'a Settings,
    random: &'a mut u64,
}

impl Turn<'_> {
    /// What to send, if its time has come.
    fn step(&mut self, claim: &mut Claim) -> Option<SmallFrame> {
        if let Some(by) = claim.heard.take() {
            if claim.is_announced() {
                return self.defend(claim, by);
            }
            self.refuse(claim, by);
        }
        if claim.is_announced() && claim.rival.is_some_and(|(_, last)| self.since(last) >= self.settings.retry) {
            // The quiet of a rival ends the notice after the time a refused claim would wait. If its word was the last
            // one, hosts believe that.
            claim.rival = None;
            if std::mem::take(&mut claim.unanswered) {
                claim.insisted = Some(self.now);
                return Some(announcement(self.address, self.mac));
            }
        }
        match claim.stage {
            Stage::New => {
                // Another host that has it by now is to be heard of at once.
                let most = if claim.resumed { Duration::ZERO } else { self.settings.probe_wait };
                let wait = self.between(Duration::ZERO, most);
                claim.stage = Stage::Probing { sent: 0, due: self.now + wait };
                None
            }
            Stage::Probing { due, .. } if self.now < due => None,
            Stage::Probing { sent, .. } => self.probe(claim, sent),
            Stage::Announcing { due: Some(due), .. } if self.now < due => None,
            Stage::Announcing { sent, .. } => self.announce(claim, sent),
            Stage::Held { since } => {
                self.settings.refresh.filter(|refresh| self.since(since) >= *refresh)?;
                claim.stage = Stage::Held { since: self.now };
                Some(announcement(self.address, self.mac))
            }
            Stage::Refused { until, .. } => {
                if self.now >= until {
                    claim.stage = Stage::New;
                }
                None
            }
        }
    }

    fn probe(&mut self, claim: &mut Claim, sent: u32) -> Option<SmallFrame> {
        let (probes, frame) = match self.address {
            IpAddr::V4(address) => (self.settings.arp_probes, frames::arp_probe(self.mac, address)),
            IpAddr::V6(address) => (self.settings.dad_probes, frames::dad_solicitation(self.mac, address)),
        };
        if sent >= probes {
            *claim = Claim::NEW;
            return self.announce(claim, 0);
        }
        let (low, high) = self.settings.probe_spacing;
        let wait = if sent + 1 == probes { self.settings.listen } else { self.between(low, high) };
        claim.stage = Stage::Probing { sent: sent + 1, due: self.now + wait };
        Some(frame)
    }

    fn refuse(&self, claim: &mut Claim, by: Mac) {
        // What it says unasked, while we wait, is the same conflict.
        if !matches!(claim.stage, Stage::Refused { .. }) {
            claim.conflicts = claim.conflicts.saturating_add(1);
        }
        let Settings { retry_soon, retry, .. } = *self.settings;
        let wait = if claim.conflicts < MAX_CONFLICTS { retry_soon } else { retry };
        claim.stage = Stage::Refused { until: self.now + wait };
        claim.resumed = false;
        claim.rival = Some((by, self.now));
    }

    fn announce(&self, claim: &mut Claim, sent: u32) -> Option<SmallFrame> {
        if sent >= self.settings.announcements {
            claim.stage = Stage::Held { since: self.now };
            return None;
        }
        let due = self.now + self.settings.announcement_spacing;
        claim.stage = Stage::Announcing { sent: sent + 1, due: Some(due) };
        Some(announcement(self.address, self.mac))
    }

    /// RFC 5227 section 2.4 (c): a server keeps its address, and says so, but never in a tight loop
    /// with a host that does the same. One that answers our insisting holds it too, and keeps the last word: else
    /// hosts would change sides with each silence, for ever.
    fn defend(&self, claim: &mut Claim, by: Mac) -> Option<SmallFrame> {
        let is_fresh = |at: &Instant| self.since(*at) < self.settings.defend;
        let insisted = claim.insisted.as_ref().is_some_and(is_fresh);
        let answered = claim.rival.map(|(_, last)| last).filter(is_fresh);
        claim.unanswered = answered.is_some() && !insisted;
        claim.rival = Some((by, answered.unwrap_or(self.now)));
        (answered.is_none() && !insisted).then(|| announcement(self.address, self.mac))
    }

    fn since(&self, then: Instant) -> Duration {
        self.now.saturating_duration_since(then)
    }

    /// A duration between the two, by xorshift64: spreading probes needs no better randomness.
    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        *self.random ^= *self.random << 13;
        *self.random ^= *self.random >> 7;
        *self.random ^= *self.random << 17;
        low + high.saturating_sub(low).mul_f64((*self.random >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn announcement(address: IpAddr, mac: Mac) -> SmallFrame {
    match address {
        IpAddr::V4(address) => frames::arp_announcement(mac, address),
        IpAddr::V6(address) => frames::unsolicited_advertisement(mac, address),
    }
}
