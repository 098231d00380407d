//! What may leave the box, and with what in it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use penstock_dataplane::pipeline::testkit::{BACK, KERNEL};
use penstock_dataplane::verdict::PortId;
use penstock_dataplane::wire::{PROTO_TCP, PROTO_UDP};

use super::check::{self, Checker, mend, read};
use super::world::Mood;

/// What was known when a frame left.
pub struct Judge<'a> {
    pub mood: Mood,
    pub ours: &'a HashSet<IpAddr>,
    pub backends: &'a HashSet<IpAddr>,
    pub senders: &'a HashSet<IpAddr>,
    pub came: &'a HashSet<Vec<u8>>,
    pub stamps: &'a HashMap<[u8; 8], (SocketAddr, SocketAddr)>,
}

impl Judge<'_> {
    pub fn judge(&self, port: PortId, frame: &[u8], checker: &mut Checker, answered: &mut u64) {
        if port == KERNEL && (self.came.contains(frame) || self.mood == Mood::Wild) {
            return;
        }
        assert!(frame[0] & 1 == 0, "to a group: {frame:02x?}");
        if is_arp(frame) {
            return;
        }
        let Some(sent) = read(frame) else { panic!("no packet: {port:?} {frame:02x?}") };
        assert!(sent.ttl > 0, "out of lives: {sent:?}");
        if sent.protocol == 58 && frame.get(sent.l4) == Some(&136) {
            return;
        }
        let to_node = frame[1] == 0xee;
        if self.ours.contains(&sent.dst) {
            // Only in dsr, to a node that has the VIP too.
            assert!(to_node && port == BACK && self.senders.contains(&sent.src), "to ourselves: {port:?} {sent:?}");
        } else if self.backends.contains(&sent.dst) {
            let known = self.ours.contains(&sent.src) || self.senders.contains(&sent.src);
            assert!(known, "to a backend from a stranger: {sent:?}");
        } else {
            assert!(self.senders.contains(&sent.dst), "to a stranger: {port:?} {sent:?}");
            assert!(self.ours.contains(&sent.src), "to a client, but not from us: {port:?} {sent:?}");
        }
        if self.mood == Mood::Wild {
            return;
        }
        if let Some(problem) = checker.wrong(frame) {
            panic!("{problem}: {port:?} {sent:?} {frame:02x?}");
        }
        if self.mood == Mood::Calm && sent.fragment.is_none() {
            self.check_stamp(&sent, frame, answered);
        }
    }

    /// A node's answer is the client's that was answered.
    fn check_stamp(&self, sent: &check::Read, frame: &[u8], answered: &mut u64) {
        let Some(data) = data(sent, frame) else { return };
        let [b'N', stamp @ ..] = data else { return };
        let Some((client, vip)) = stamp.first_chunk::<8>().and_then(|stamp| self.stamps.get(stamp)) else { return };
        let ports = [sent.l4, sent.l4 + 2].map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]));
        let seen = (SocketAddr::new(sent.dst, ports[1]), SocketAddr::new(sent.src, ports[0]));
        assert_eq!(seen, (*client, *vip), "somebody else's answer");
        *answered += 1;
    }
}

/// What a packet carries behind its headers.
fn data<'a>(headers: &check::Read, frame: &'a [u8]) -> Option<&'a [u8]> {
    let len = match headers.protocol {
        _ if headers.fragment.is_some() => return None,
        PROTO_TCP => usize::from(frame.get(headers.l4 + 12)? >> 4) * 4,
        PROTO_UDP => 8,
        _ => return None,
    };
    frame.get(headers.l4 + len..headers.end)
}

/// The answer with the stamp of what it answers.
pub fn stamped_answer(got: &[u8], frame: Vec<u8>) -> Vec<u8> {
    let (Some(asked), Some(reply)) = (read(got), read(&frame)) else { return frame };
    let Some([b'C', stamp @ ..]) = data(&asked, got) else { return frame };
    let (Some(stamp), Some(room)) = (stamp.first_chunk::<8>(), data(&reply, &frame).map(<[u8]>::len)) else {
        return frame;
    };
    if room < 9 {
        return frame;
    }
    let unchecked = reply.protocol == PROTO_UDP && frame[reply.l4 + 6..reply.l4 + 8] == [0, 0];
    let mut frame = frame;
    let at = reply.end - room;
    frame[at] = b'N';
    frame[at + 1..at + 9].copy_from_slice(stamp);
    mend(&mut frame);
    if unchecked {
        frame[reply.l4 + 6..reply.l4 + 8].fill(0);
    }
    frame
}

fn is_arp(frame: &[u8]) -> bool {
    let mut at = 12;
    while at < 20 && frame.get(at..at + 2).is_some_and(|kind| kind == [0x81, 0] || kind == [0x88, 0xa8]) {
        at += 4;
    }
    frame.get(at..at + 2).is_some_and(|kind| kind == [8, 6])
}
