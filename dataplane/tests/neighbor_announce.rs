//! Claiming addresses, with a clock of the test's own: guards against announcing what another host
//! has, and against going quiet, or noisy, about what we hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use penstock_dataplane::neighbor::announce::{Action, Announcer, Settings};
use penstock_dataplane::neighbor::mirror::Link;
use penstock_dataplane::neighbor::responder::claim;
use penstock_dataplane::neighbor::{Mac, frames};
use penstock_dataplane::verdict::PortId;

const OWN: Mac = [0x02, 0, 0, 0, 0, 0x01];
const RIVAL: Mac = [0x02, 0, 0, 0, 0, 0x99];
const VIP4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const PORT: PortId = PortId(0);

fn link(port: u8, mac: Mac, up: bool) -> Link {
    Link {
        port: PortId(port),
        ifindex: 10 + u32::from(port),
        name: format!("eth{port}"),
        mac,
        mtu: 1500,
        up,
        standby: false,
        bond: None,
    }
}

/// An announcer and its clock.
struct Rig {
    announcer: Announcer,
    start: Instant,
    now: Instant,
}

impl Rig {
    fn new(wanted: &[IpAddr]) -> Self {
        Self::with(Settings::default(), wanted)
    }

    fn with(settings: Settings, wanted: &[IpAddr]) -> Self {
        let mut announcer = Announcer::new(settings, 7);
        announcer.set_links(&[link(0, OWN, true)]);
        let wanted: Vec<_> = wanted.iter().map(|address| (PORT, *address)).collect();
        announcer.set(&wanted);
        let now = Instant::now();
        Self { announcer, start: now, now }
    }

    /// Polls every 100 ms; what was sent, each with the seconds since the start.
    fn run(&mut self, seconds: f64) -> Vec<(f64, Action)> {
        let end = self.now + Duration::from_secs_f64(seconds);
        let mut actions = Vec::new();
        while self.now < end {
            let at = (self.now - self.start).as_secs_f64();
            actions.extend(self.announcer.poll(self.now).into_iter().map(|action| (at, action)));
            self.now += Duration::from_millis(100);
        }
        actions
    }

    fn sent(&mut self, seconds: f64) -> Vec<(f64, bool)> {
        let probe = |frame: &[u8]| claim(frame).unwrap().probe;
        let sent = self.run(seconds).into_iter().filter_map(|(at, action)| match action {
            Action::Send { frame, .. } => Some((at, probe(&frame))),
            Action::Join { .. } | Action::Leave { .. } => None,
        });
        sent.collect()
    }

    /// As [`Self::sent`], with a rival who answers every probe at once.
    fn contested(&mut self, seconds: f64, answer: &[u8]) -> Vec<(f64, bool)> {
        let mut sent = Vec::new();
        for _ in 0..(seconds * 10.0) as u32 {
            let now = self.sent(0.1);
            if !probes(&now).is_empty() {
                self.announcer.on_packet(PORT, answer);
            }
            sent.extend(now);
        }
        sent
    }

    fn claimed(&self) -> Vec<IpAddr> {
        self.announcer.claimed().map(|(_, address)| address).collect()
    }
}

fn probes(sent: &[(f64, bool)]) -> Vec<f64> {
    sent.iter().filter(|(_, probe)| *probe).map(|(at, _)| *at).collect()
}

#[test]
fn ipv4_is_probed_then_announced() {
    let mut rig = Rig::new(&[VIP4.into()]);
    let sent = rig.sent(15.0);
    let probes = probes(&sent);
    assert_eq!(probes.len(), 3, "RFC 5227: PROBE_NUM");
    assert!(probes[0] <= 1.1, "PROBE_WAIT");
    for pair in probes.windows(2) {
        let gap = pair[1] - pair[0];
        assert!((0.99..2.11).contains(&gap), "PROBE_MIN to PROBE_MAX, was {gap}");
    }
    let announced: Vec<f64> = sent.iter().filter(|(_, probe)| !probe).map(|(at, _)| *at).collect();
    assert_eq!(announced.len(), 2, "ANNOUNCE_NUM");
    assert!(announced[0] - probes[2] >= 1.99, "ANNOUNCE_WAIT");
    assert!(announced[1] - announced[0] >= 1.99, "ANNOUNCE_INTERVAL");
    assert_eq!(rig.claimed(), [IpAddr::from(VIP4)]);
    assert!(rig.sent(100.0).is_empty(), "no refresh unless asked for");
}

#[test]
fn nothing_is_claimed_while_it_is_probed() {
    let mut rig = Rig::new(&[VIP4.into(), VIP6.into()]);
    rig.run(1.5);
    assert!(rig.claimed().is_empty());
    rig.run(2.0);
    assert_eq!(rig.claimed(), [IpAddr::from(VIP6)], "one probe of detection, then ours");
}

#[test]
fn ipv6_joins_its_group_before_it_probes_and_leaves_it() {
    let mut rig = Rig::new(&[VIP6.into()]);
    let actions = rig.run(10.0);
    let group = frames::solicited_node(VIP6);
    assert_eq!(actions[0].1, Action::Join { port: PORT, group });
    let frames: Vec<_> = actions[1..]
        .iter()
        .map(|(_, action)| match action {
            Action::Send { frame, .. } => claim(frame).unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    let kinds: Vec<bool> = frames.iter().map(|claim| claim.probe).collect();
    assert_eq!(kinds, [true, false, false]);

    // A second address in the same group keeps it.
    let sibling = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
    rig.announcer.set(&[(PORT, sibling.into())]);
    assert!(!rig.run(0.2).iter().any(|(_, action)| matches!(action, Action::Leave { .. } | Action::Join { .. })));
    rig.announcer.set(&[]);
    let actions: Vec<Action> = rig.run(0.2).into_iter().map(|(_, action)| action).collect();
    assert_eq!(actions, [Action::Leave { port: PORT, group }]);
    assert!(rig.claimed().is_empty());
}

#[test]
fn an_address_in_use_is_refused_by_name_and_tried_again() {
    for (address, answer) in [
        (IpAddr::from(VIP4), frames::arp_announcement(RIVAL, VIP4)),
        (VIP4.into(), frames::arp_probe(RIVAL, VIP4)),
        (VIP6.into(), frames::unsolicited_advertisement(RIVAL, VIP6)),
        (VIP6.into(), frames::dad_solicitation(RIVAL, VIP6)),
    ] {
        let mut rig = Rig::new(&[address]);
        rig.run(1.5);
        rig.announcer.on_packet(PORT, &answer);
        assert!(rig.sent(1.9).is_empty());
        assert!(rig.claimed().is_empty());
        let notices = rig.announcer.notices();
        assert_eq!(notices.len(), 1);
        assert!(notices[0].starts_with(&format!("{address} is not announced on eth0: 02:00:00:00:00:99 has it")));
        let later = rig.sent(30.0);
        assert!(later[0].1, "probed again");
        assert_eq!(rig.claimed(), [address], "the other host has left");
        assert!(rig.announcer.notices().is_empty());
    }
}

/// A box that hands its addresses over goes on answering for some seconds; after that nobody does.
#[test]
fn an_address_given_up_soon_after_is_claimed_soon_after() {
    for (address, answer) in [
        (IpAddr::from(VIP4), frames::arp_announcement(RIVAL, VIP4)),
        (VIP6.into(), frames::unsolicited_advertisement(RIVAL, VIP6)),
    ] {
        let mut rig = Rig::new(&[address]);
        rig.contested(10.0, &answer);
        assert!(rig.claimed().is_empty());
        rig.run(10.0);
        assert_eq!(rig.claimed(), [address]);
        assert!(rig.announcer.notices().is_empty());
    }
}

/// RFC 5227 section 2.1.1: after MAX_CONFLICTS, one try in RATE_LIMIT_INTERVAL.
#[test]
fn a_rival_that_stays_is_asked_less_and_less_often_and_named_all_the_while() {
    let mut rig = Rig::new(&[VIP4.into()]);
    let answer = frames::arp_announcement(RIVAL, VIP4);
    let first = rig.contested(120.0, &answer);
    assert_eq!(probes(&first).len(), 10 + 1, "ten soon, one after a minute");
    for _ in 0..100 {
        assert_eq!(rig.announcer.notices().len(), 1, "while it is probed for again, too");
        let sent = rig.contested(1.0, &answer);
        assert!(sent.iter().all(|(_, probe)| *probe));
    }
    assert!(rig.claimed().is_empty());
    // What the rival says by itself is no new conflict: once it left, we are back to where we were.
    rig.run(70.0);
    assert_eq!(rig.claimed(), [IpAddr::from(VIP4)]);
}

#[test]
fn a_held_address_is_defended_but_not_in_a_loop() {
    let mut rig = Rig::new(&[VIP4.into()]);
    rig.run(15.0);
    let rival = frames::arp_announcement(RIVAL, VIP4);
    let mut answers = 0;
    for _ in 0..50 {
        rig.announcer.on_packet(PORT, &rival);
        answers += rig.sent(0.1).len();
    }
    assert_eq!(answers, 1, "once in DEFEND_INTERVAL");
    assert_eq!(rig.claimed(), [IpAddr::from(VIP4)]);
    let notice = "203.0.113.10 is claimed on eth0 by 02:00:00:00:00:99 too: clients may reach the wrong host";
    assert_eq!(rig.announcer.notices(), [notice]);
    rig.run(6.0);
    rig.announcer.on_conflict(PORT, VIP4.into(), RIVAL);
    assert_eq!(rig.sent(0.2).len(), 1, "the next interval");
    assert!(rig.sent(61.0).is_empty(), "ours was the last word");
    assert!(rig.announcer.notices().is_empty(), "the rival is gone");
    let answers = [(); 2].map(|()| {
        rig.announcer.on_packet(PORT, &rival);
        rig.sent(1.0).len()
    });
    assert_eq!(answers, [1, 0]);
    let sent = rig.sent(61.0);
    assert_eq!(sent.iter().map(|(_, probe)| *probe).collect::<Vec<_>>(), [false], "the rival's was the last word");
    assert!(rig.announcer.notices().is_empty());
    assert!(rig.sent(100.0).is_empty(), "once");
}

/// After a partition of the network without a link lost, and one whose control cannot withdraw it.
#[test]
fn two_boxes_that_hold_an_address_come_to_rest() {
    for after in [0.0, 0.3, 3.0, 11.0, 70.0] {
        let mut boxes = [Rig::new(&[VIP4.into()]), Rig::new(&[VIP4.into()])];
        let macs = [OWN, RIVAL];
        boxes[1].announcer.set_links(&[link(0, RIVAL, true)]);
        for one in &mut boxes {
            one.run(15.0);
        }
        // Each hears the other at its next turn; some have one more word to say after a while.
        let mut minutes = [0; 12];
        for step in 0..minutes.len() * 600 {
            if step == 0 || step == (after * 10.0) as usize {
                for _ in 0..2 {
                    boxes[1].announcer.on_packet(PORT, &frames::arp_announcement(OWN, VIP4));
                    boxes[0].announcer.on_packet(PORT, &frames::arp_announcement(RIVAL, VIP4));
                }
            }
            for turn in 0..2 {
                for _ in boxes[turn].sent(0.1) {
                    minutes[step / 600] += 1;
                    boxes[1 - turn].announcer.on_packet(PORT, &frames::arp_announcement(macs[turn], VIP4));
                }
            }
        }
        assert!(minutes[0] > 0 && minutes[5..].iter().all(|sent| *sent == 0), "{after}: {minutes:?}");
    }
}

#[test]
fn probes_of_others_and_our_own_ports_are_no_conflict() {
    let mut rig = Rig::new(&[VIP4.into()]);
    rig.announcer.set_links(&[link(0, OWN, true), link(1, RIVAL, true)]);
    rig.run(1.5);
    rig.announcer.on_packet(PORT, &frames::arp_announcement(RIVAL, VIP4));
    rig.run(15.0);
    assert_eq!(rig.claimed(), [IpAddr::from(VIP4)], "both ports are on one wire");
    rig.announcer.on_packet(PORT, &frames::arp_probe([2, 0, 0, 0, 0, 0x55], VIP4));
    assert!(rig.sent(1.0).is_empty(), "the responder answers probes");
    assert!(rig.announcer.notices().is_empty());
}

#[test]
fn a_link_that_blinks_or_changes_its_address_is_announced_on_without_probes() {
    let mut rig = Rig::new(&[VIP4.into()]);
    rig.run(15.0);
    for _ in 0..5 {
        rig.announcer.set_links(&[link(0, OWN, false)]);
        assert!(rig.sent(0.5).is_empty());
        rig.announcer.set_links(&[link(0, OWN, true)]);
        assert_eq!(rig.claimed(), [IpAddr::from(VIP4)], "flows go on at once");
        let sent = rig.sent(5.0);
        assert_eq!(sent.iter().map(|(_, probe)| *probe).collect::<Vec<_>>(), [false, false]);
    }
    let new = [0x02, 0, 0, 0, 0, 0x02];
    rig.announcer.set_links(&[link(0, new, true)]);
    let actions = rig.run(5.0);
    assert_eq!(actions.len(), 2, "a changed hardware address is announced");
    assert!(matches!(&actions[0].1, Action::Send { frame, .. } if claim(frame).unwrap().mac == new));
}

/// While a cable was out, the other box may have taken over.
#[test]
fn on_a_link_that_returns_an_address_is_answered_for_and_probed_for_before_it_is_announced() {
    for (address, answer) in [
        (IpAddr::from(VIP4), frames::arp_announcement(RIVAL, VIP4)),
        (VIP6.into(), frames::unsolicited_advertisement(RIVAL, VIP6)),
    ] {
        let mut rig = Rig::new(&[address]);
        rig.run(15.0);
        rig.announcer.set_links(&[link(0, OWN, false)]);
        assert!(rig.sent(5.0).is_empty());
        rig.announcer.set_links(&[link(0, OWN, true)]);
        assert_eq!(rig.claimed(), [address], "flows go on at once");
        let sent = rig.sent(15.0);
        assert!(sent[0].1 && sent[0].0 < 20.3, "probed for at once");
        assert!(!sent.last().unwrap().1, "and announced: nobody has it");

        rig.announcer.set_links(&[link(0, OWN, false)]);
        rig.run(5.0);
        rig.announcer.set_links(&[link(0, OWN, true)]);
        let sent = rig.contested(10.0, &answer);
        assert!(sent.iter().all(|(_, probe)| *probe), "announced over who has it");
        assert!(rig.claimed().is_empty());
    }
}

#[test]
fn claims_wait_for_their_link() {
    let mut rig = Rig::new(&[VIP4.into()]);
    rig.announcer.set_links(&[link(0, OWN, false)]);
    assert!(rig.sent(5.0).is_empty());
    rig.announcer.set_links(&[]);
    assert!(rig.sent(5.0).is_empty());
    rig.announcer.set_links(&[link(0, OWN, true)]);
    assert_eq!(probes(&rig.sent(15.0)).len(), 3);
}

#[test]
fn a_new_interface_of_the_name_gets_its_groups_again() {
    let mut rig = Rig::new(&[VIP6.into()]);
    rig.run(5.0);
    let mut again = link(0, OWN, true);
    again.ifindex += 5;
    rig.announcer.set_links(&[again]);
    let group = frames::solicited_node(VIP6);
    assert_eq!(rig.run(0.1)[0].1, Action::Join { port: PORT, group });
    rig.announcer.join_again(PORT, group);
    assert_eq!(rig.run(0.1)[0].1, Action::Join { port: PORT, group }, "tried again");
}

#[test]
fn resumed_addresses_are_held_from_the_first_moment_and_announced_after_probes() {
    let mut rig = Rig::new(&[VIP4.into(), VIP6.into()]);
    rig.announcer.resume(&[(PORT, VIP4.into()), (PORT, IpAddr::from([192, 0, 2, 1]))]);
    let mut announced = Vec::new();
    for _ in 0..150 {
        assert!(rig.claimed().contains(&VIP4.into()), "not for a moment less");
        announced.extend(rig.run(0.1).into_iter().filter_map(|(at, action)| match action {
            Action::Send { frame, .. } => {
                claim(&frame).filter(|claim| claim.address == VIP4).map(|claim| (at, claim.probe))
            }
            Action::Join { .. } | Action::Leave { .. } => None,
        }));
    }
    assert_eq!(announced.iter().map(|(_, probe)| *probe).collect::<Vec<_>>(), [true, true, true, false, false]);
    assert!(announced[0].0 < 0.2, "asked at once: who has it by now must not be kept from it");
}

/// Another host got the address while nobody ran here, or had it all along.
#[test]
fn resumed_addresses_are_left_to_who_has_them() {
    for (address, answer) in [
        (IpAddr::from(VIP4), frames::arp_announcement(RIVAL, VIP4)),
        (VIP6.into(), frames::unsolicited_advertisement(RIVAL, VIP6)),
    ] {
        let mut rig = Rig::new(&[address]);
        rig.announcer.resume(&[(PORT, address)]);
        // The responder answers those: we have it, as far as we know.
        let probe =
            if address.is_ipv4() { frames::arp_probe(RIVAL, VIP4) } else { frames::dad_solicitation(RIVAL, VIP6) };
        rig.announcer.on_packet(PORT, &probe);
        rig.run(0.1);
        assert_eq!(rig.claimed(), [address]);
        let sent = rig.contested(30.0, &answer);
        assert!(sent.iter().all(|(_, probe)| *probe), "announced over who has it");
        assert!(rig.claimed().is_empty());
        assert!(rig.announcer.notices()[0].starts_with(&format!("{address} is not announced on eth0: ")));
    }
}

/// Active-backup: the member that takes over is on the wire where the address is ours already.
#[test]
fn a_bonds_other_member_announces_at_once_what_the_bond_held() {
    let of_bond = |active: u8| {
        [0, 1].map(|port| {
            let standby = port != active;
            let bond = Some("bond0".to_owned());
            Link { standby, bond, ..link(port, [0x02, 0, 0, 0, 0, port], !standby) }
        })
    };
    let other = link(2, [0x02, 0, 0, 0, 0, 2], false);
    let links = |active| [&of_bond(active)[..], std::slice::from_ref(&other)].concat();
    let unheard = IpAddr::from([203, 0, 113, 11]);
    let mut rig = Rig::new(&[]);
    rig.announcer.set_links(&links(0));
    let ports = [0, 1, 2].map(|port| (PortId(port), IpAddr::from(VIP4)));
    rig.announcer.set(&ports);
    rig.run(15.0);
    assert_eq!(rig.announcer.claimed().collect::<Vec<_>>(), ports[..1]);

    // One that nobody has answered for yet comes with it, and is probed for.
    rig.announcer.set(&[&ports[..], &[(PortId(0), unheard), (PortId(1), unheard)]].concat());
    let mut now = links(1);
    now[2].up = true;
    rig.announcer.set_links(&now);
    assert_eq!(rig.announcer.claimed().collect::<Vec<_>>(), ports[..2]);
    let sent = rig.run(0.1);
    let [(_, Action::Send { port: PortId(1), frame })] = &sent[..] else { panic!("{sent:?}") };
    assert!(claim(frame).is_some_and(|claim| !claim.probe && claim.address == VIP4), "said at once");
    rig.run(15.0);
    assert_eq!(rig.announcer.claimed().count(), 4, "all but the one on standby that was not held");

    // The bonding driver takes a moment.
    let none = || links(0).into_iter().map(|link| Link { up: false, ..link }).collect::<Vec<_>>();
    rig.announcer.set_links(&none());
    assert!(rig.run(0.3).is_empty());
    rig.announcer.set_links(&links(0));
    let sent = rig.run(0.1);
    assert!(matches!(&sent[..], [(_, Action::Send { frame, .. }), ..] if !claim(frame).unwrap().probe), "{sent:?}");
    // The whole bond was down: another host may have what is ours.
    rig.run(15.0);
    rig.announcer.set_links(&none());
    rig.run(5.0);
    rig.announcer.set_links(&links(1));
    assert!(rig.announcer.claimed().any(|claim| claim == ports[1]));
    let sent = rig.sent(5.0);
    assert!(!sent.is_empty() && sent.iter().all(|(_, probe)| *probe), "{sent:?}");
}

/// 802.3ad, xor, rr: one hardware address on all members, and the switch brings what is for it to one of them.
#[test]
fn what_one_member_of_a_bond_hears_of_a_rival_all_of_them_have_heard() {
    let bond = |port, name: &str| Link { bond: Some(name.to_owned()), ..link(port, OWN, true) };
    let of_other = |port| Link { mac: [0x02, 0, 0, 0, 0, 0x03], ..bond(port, "bond1") };
    for (address, answer) in [
        (IpAddr::from(VIP4), frames::arp_announcement(RIVAL, VIP4)),
        (VIP6.into(), frames::unsolicited_advertisement(RIVAL, VIP6)),
    ] {
        let mut rig = Rig::new(&[]);
        let down = Link { up: false, ..bond(2, "bond0") };
        rig.announcer.set_links(&[bond(0, "bond0"), bond(1, "bond0"), down, of_other(3)]);
        rig.announcer.set(&[0, 1, 2, 3].map(|port| (PortId(port), address)));
        for _ in 0..200 {
            let sent = rig.run(0.1);
            let by_bond = sent.iter().filter_map(|(_, action)| match action {
                Action::Send { port, frame } if port.0 < 2 => claim(frame),
                _ => None,
            });
            for claim in by_bond {
                assert!(claim.probe, "announced over who has it");
                rig.announcer.on_packet(PortId(1), &answer);
            }
        }
        assert_eq!(rig.announcer.claimed().collect::<Vec<_>>(), [(PortId(3), address)], "another wire");
        let notices = rig.announcer.notices();
        assert_eq!(notices.len(), 2, "{notices:?}");
        // One that was down then has heard nothing.
        rig.announcer.set_links(&[0, 1, 2].map(|port| bond(port, "bond0")));
        rig.run(0.1);
        assert_eq!(rig.announcer.notices().len(), 2);
    }
}

#[test]
fn refresh_repeats_the_announcement() {
    let settings = Settings { refresh: Some(Duration::from_secs(60)), ..Settings::default() };
    let mut rig = Rig::with(settings, &[VIP4.into()]);
    rig.run(20.0);
    let sent = rig.sent(180.0);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|(_, probe)| !probe));
}

#[test]
fn a_reload_leaves_what_stays_alone() {
    let mut rig = Rig::new(&[VIP4.into()]);
    rig.run(15.0);
    let other = IpAddr::from([203, 0, 113, 11]);
    rig.announcer.set(&[(PORT, VIP4.into()), (PORT, other)]);
    assert_eq!(rig.claimed(), [IpAddr::from(VIP4)]);
    let actions = rig.run(15.0);
    let about_other =
        |action: &Action| matches!(action, Action::Send { frame, .. } if claim(frame).unwrap().address == other);
    assert!(actions.iter().all(|(_, action)| about_other(action)));
    assert_eq!(rig.claimed(), [IpAddr::from(VIP4), other]);
}
