//! What a connection says. Each side sends a stream of its own in which every byte has one right
//! value, so that a byte lost, doubled, swapped with another's or changed is noticed where it arrives.

use std::time::Duration;

use smoltcp::socket::tcp;

use super::random::mix;

/// How a TCP connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The node closes when both have said everything, as an HTTP server without keep-alive does.
    NodeCloses,
    ClientCloses,
    /// The client closes its direction first; only then the node answers.
    HalfClose,
    /// The client resets when everything was said.
    ClientResets,
    /// The node resets when everything was said and acknowledged.
    NodeResets,
}

/// At most so many bytes at a time: a connection that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub bytes: u32,
    pub every: Duration,
}

/// What a client wants of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// `up` bytes to the node, `down` bytes from it.
    Tcp { up: u64, down: u64, ending: Ending, pace: Option<Pace> },
    /// Datagrams of `size` bytes and their answers, one after the other, from one client port.
    Udp { rounds: u32, size: usize },
}

impl Talk {
    /// A short connection as web servers see them: a small request, an answer, the node closes.
    #[must_use]
    pub fn short() -> Self {
        Self::Tcp { up: 200, down: 1000, ending: Ending::NodeCloses, pace: None }
    }

    /// A whole TCP exchange at full speed.
    #[must_use]
    pub fn tcp(up: u64, down: u64, ending: Ending) -> Self {
        Self::Tcp { up, down, ending, pace: None }
    }

    /// A connection that lasts about `lasting`, with something to say every 100 ms, each way.
    #[must_use]
    pub fn steady(lasting: Duration) -> Self {
        let turns = u64::try_from(lasting.as_millis() / 100).unwrap_or(u64::MAX).max(1);
        let pace = Some(Pace { bytes: 100, every: Duration::from_millis(100) });
        Self::Tcp { up: turns * 100, down: turns * 100, ending: Ending::NodeCloses, pace }
    }
}

/// The first bytes a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) seed: u64,
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) ending: Ending,
    pub(super) pace: Option<Pace>,
}

pub(super) const REQUEST: usize = 33;

impl Request {
    pub(super) fn encode(&self) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        bytes[0] = self.ending as u8;
        bytes[1..9].copy_from_slice(&self.seed.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.up.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.down.to_be_bytes());
        if let Some(pace) = self.pace {
            bytes[25..29].copy_from_slice(&pace.bytes.to_be_bytes());
            let every = u32::try_from(pace.every.as_micros()).unwrap_or(u32::MAX);
            bytes[29..33].copy_from_slice(&every.to_be_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8; REQUEST]) -> Option<Self> {
        let number = |at: usize, len: usize| {
            bytes[at..at + len].iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte))
        };
        let ending = match bytes[0] {
            0 => Ending::NodeCloses,
            1 => Ending::ClientCloses,
            2 => Ending::HalfClose,
            3 => Ending::ClientResets,
            4 => Ending::NodeResets,
            _ => return None,
        };
        let (size, every) = (u32::try_from(number(25, 4)).ok()?, Duration::from_micros(number(29, 4)));
        let pace = (size > 0).then_some(Pace { bytes: size, every });
        Some(Self { seed: number(1, 8), up: number(9, 8), down: number(17, 8), ending, pace })
    }
}

/// The byte of a stream at a place.
fn byte(seed: u64, at: u64) -> u8 {
    mix(seed ^ (at >> 3)).to_le_bytes()[(at & 7) as usize]
}

/// A stream on its way out: first words, then the pattern.
#[derive(Debug)]
pub(super) struct Sender {
    first: Vec<u8>,
    seed: u64,
    total: u64,
    sent: u64,
    pace: Option<Pace>,
    next_at: u64,
}

impl Sender {
    pub(super) fn new(first: Vec<u8>, seed: u64, total: u64, pace: Option<Pace>) -> Self {
        Self { first, seed, total, sent: 0, pace, next_at: 0 }
    }

    /// Gives the socket what it takes and the pace allows.
    pub(super) fn send(&mut self, socket: &mut tcp::Socket<'_>, now: u64) {
        if !self.first.is_empty() && socket.can_send() {
            let taken = socket.send_slice(&self.first).unwrap_or(0);
            self.first.drain(..taken);
        }
        if !self.first.is_empty() || self.is_done() {
            return;
        }
        let mut allowed = u64::MAX;
        if let Some(pace) = self.pace {
            if now < self.next_at {
                return;
            }
            allowed = u64::from(pace.bytes);
            self.next_at = now + u64::try_from(pace.every.as_micros()).unwrap_or(u64::MAX);
        }
        while socket.can_send() && !self.is_done() && allowed > 0 {
            let (seed, at, left) = (self.seed, self.sent, (self.total - self.sent).min(allowed));
            let written = socket.send(|room| {
                let len = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                for (place, byte_at) in room[..len].iter_mut().zip(at..) {
                    *place = byte(seed, byte_at);
                }
                (len, len as u64)
            });
            let Ok(written) = written else { return };
            self.sent += written;
            allowed -= written;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.first.is_empty() && self.sent == self.total
    }

    /// When it wants to send more.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        // Before the first words have gone the socket's own timers are what counts.
        (self.pace.is_some() && self.first.is_empty() && !self.is_done()).then_some(self.next_at)
    }
}

/// A stream on its way in.
#[derive(Debug)]
pub(super) struct Checker {
    seed: u64,
    total: u64,
    received: u64,
    wrong: bool,
}

impl Checker {
    pub(super) fn new(seed: u64, total: u64) -> Self {
        Self { seed, total, received: 0, wrong: false }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.wrong |= bytes.iter().zip(self.received..).any(|(got, at)| *got != byte(self.seed, at));
        self.received += bytes.len() as u64;
        self.wrong |= self.received > self.total;
    }

    pub(super) fn is_wrong(&self) -> bool {
        self.wrong
    }

    pub(super) fn is_done(&self) -> bool {
        self.received == self.total
    }
}

/// The node's stream differs from the client's.
pub(super) fn down_seed(seed: u64) -> u64 {
    mix(!seed)
}

/// A datagram: which round of which talk it is, then the pattern.
pub(super) fn datagram(seed: u64, round: u32, size: usize) -> Vec<u8> {
    let mut bytes = round.to_be_bytes().to_vec();
    bytes.extend((0..size as u64).map(|at| byte(seed ^ u64::from(round), at)));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_went() {
        let pace = Some(Pace { bytes: 7, every: Duration::from_millis(100) });
        for (ending, pace) in [(Ending::NodeCloses, None), (Ending::NodeResets, pace), (Ending::HalfClose, pace)] {
            let request = Request { seed: 0x0123_4567_89ab_cdef, up: 1 << 40, down: 3, ending, pace };
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        let mut bytes = [0; REQUEST];
        bytes[0] = 9;
        assert_eq!(Request::decode(&bytes), None);
    }

    #[test]
    fn the_checker_sees_every_kind_of_harm() {
        let stream: Vec<u8> = (0..100).map(|at| byte(5, at)).collect();
        let check = |bytes: &[u8]| {
            let mut checker = Checker::new(5, 100);
            bytes.chunks(7).for_each(|part| checker.take(part));
            (checker.is_done(), checker.is_wrong())
        };
        assert_eq!(check(&stream), (true, false));
        assert_eq!(check(&stream[..99]), (false, false));
        let mut swapped = stream.clone();
        swapped.swap(10, 50);
        assert_eq!(check(&swapped), (true, true), "two bytes swapped");
        let mut doubled = stream.clone();
        doubled.insert(40, stream[39]);
        assert!(check(&doubled).1, "a byte doubled");
        let mut lost = stream.clone();
        lost.remove(40);
        assert!(check(&lost).1, "a byte lost");
    }
}
