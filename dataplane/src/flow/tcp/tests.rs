use super::*;

const C: Direction = Direction::Forward;
const N: Direction = Direction::Reverse;
const ACK: u8 = TCP_ACK;
const FIN: u8 = TCP_FIN | TCP_ACK;
const SYN_ACK: u8 = TCP_SYN | TCP_ACK;

/// Both ends begin here, so the first byte of each is 1001.
const ISN: u32 = 1000;

/// A packet: who, flags, sequence and ACK numbers relative to [`ISN`], bytes of data.
type Step = (Direction, u8, u32, u32, u32);

fn segment((_, flags, seq, ack, data): Step) -> Segment {
    let phantom = u32::from(flags & TCP_SYN != 0) + u32::from(flags & TCP_FIN != 0);
    let seq = ISN.wrapping_add(seq);
    let end = seq.wrapping_add(data).wrapping_add(phantom);
    Segment { flags, seq, ack: ISN.wrapping_add(ack), end, client_stamp: 0 }
}

struct Walk {
    word: Word,
    seen: Positions,
    forgotten: bool,
    doubted: u32,
}

fn walk(steps: &[Step]) -> Walk {
    let word = Word { state: State::SynSent, flags: Flags::default(), protocol: PROTO_TCP };
    let mut walk = Walk { word, seen: Positions::default(), forgotten: false, doubted: 0 };
    for step in steps {
        walk.step(*step);
    }
    walk
}

impl Walk {
    fn step(&mut self, step: Step) {
        let segment = segment(step);
        if segment.has(TCP_RST) && !believes_reset(self.word, self.seen, &segment, step.0) {
            self.doubted += 1;
            return;
        }
        self.forgotten |= segment.has(TCP_RST) && self.word.state == State::SynSent;
        self.word = advance(self.word, &mut self.seen, &segment, step.0);
    }

    fn state(&self) -> State {
        self.word.state
    }
}

const SYN: Step = (C, TCP_SYN, 0, 0, 0);
const ANSWER: Step = (N, SYN_ACK, 0, 1, 0);
const OPENED: [Step; 3] = [SYN, ANSWER, (C, ACK, 1, 1, 0)];

fn then(more: &[Step]) -> Walk {
    walk(&[&OPENED[..], more].concat())
}

#[test]
fn lives_of_a_connection() {
    use State::{Established, FinWait, Reset, SynSent, TimeWait};
    let late = 1 + 50_000;
    let table: &[(&str, Walk, State)] = &[
        ("SYN repeated", walk(&[SYN, SYN]), SynSent),
        ("SYN answered, client silent", walk(&[SYN, ANSWER]), SynSent),
        ("client's ACK without the node's answer", walk(&[SYN, (C, ACK, 1, 1, 0)]), SynSent),
        ("handshake", then(&[]), Established),
        ("handshake by the first data", walk(&[SYN, ANSWER, (C, ACK, 1, 1, 100)]), Established),
        ("the whole request in the handshake's last packet", walk(&[SYN, ANSWER, (C, FIN, 1, 1, 100)]), FinWait),
        ("data", then(&[(C, ACK, 1, 1, 10), (N, ACK, 1, 11, 10)]), Established),
        ("client closes", then(&[(C, FIN, 1, 1, 0)]), FinWait),
        (
            "half closed, node still sends",
            then(&[(C, FIN, 1, 1, 0), (N, ACK, 1, 2, 900), (C, ACK, 2, 901, 0)]),
            FinWait,
        ),
        ("client closes, then the node", then(&[(C, FIN, 1, 1, 0), (N, FIN, 1, 2, 0), (C, ACK, 2, 2, 0)]), TimeWait),
        ("node closes, then the client", then(&[(N, FIN, 1, 1, 0), (C, FIN, 1, 2, 0), (N, ACK, 2, 2, 0)]), TimeWait),
        ("the last ACK is still to come", then(&[(N, FIN, 1, 1, 0), (C, FIN, 1, 2, 0)]), FinWait),
        ("simultaneous close", then(&[(C, FIN, 1, 1, 0), (N, FIN, 1, 1, 0)]), FinWait),
        (
            "simultaneous close, both told",
            then(&[(C, FIN, 1, 1, 0), (N, FIN, 1, 1, 0), (C, ACK, 2, 2, 0), (N, ACK, 2, 2, 0)]),
            TimeWait,
        ),
        (
            "FIN sent again",
            then(&[(C, FIN, 1, 1, 0), (C, FIN, 1, 1, 0), (N, FIN, 1, 2, 0), (C, ACK, 2, 2, 0)]),
            TimeWait,
        ),
        (
            "old ACK overtaken by the FIN",
            then(&[(N, FIN, 1, 1, 500), (C, ACK, 1, 401, 0), (C, FIN, 1, 502, 0), (N, ACK, 502, 2, 0)]),
            TimeWait,
        ),
        ("FIN out of window", then(&[(C, FIN, 1 << 25, 1, 0)]), Established),
        ("FIN behind the window", then(&[(C, ACK, 1, 1, 99), (N, ACK, 1, 100, 0), (C, FIN, 1, 1, 0)]), Established),
        ("forged FIN, sender goes on", then(&[(C, FIN, 5000, 1, 0), (C, ACK, 1, 1, 6000)]), Established),
        ("reset", then(&[(C, TCP_RST, 1, 0, 0)]), Reset),
        (
            "reset with data still in flight",
            then(&[(C, TCP_RST, 1, 0, 0), (N, ACK, 1, 1, 9), (N, ACK, 10, 1, 9)]),
            Reset,
        ),
        ("reset behind much data", then(&[(C, ACK, 1, 1, 50_000), (C, TCP_RST | ACK, late, 1, 0)]), Reset),
        ("reset taken back by its sender", then(&[(C, TCP_RST, 1, 0, 0), (C, ACK, 1, 1, 9)]), Established),
        ("the node's taken back", then(&[(N, TCP_RST, 1, 0, 0), (C, ACK, 1, 1, 0), (N, ACK, 1, 1, 9)]), Established),
        (
            "reset taken back while closing",
            then(&[(C, FIN, 1, 1, 0), (C, TCP_RST, 2, 0, 0), (C, FIN, 1, 1, 0)]),
            FinWait,
        ),
        (
            "late RST does not shorten the rest",
            { then(&[(N, FIN, 1, 1, 0), (C, FIN, 1, 2, 0), (N, ACK, 2, 2, 0), (C, TCP_RST, 2, 0, 0)]) },
            TimeWait,
        ),
        (
            "port used again",
            { then(&[(N, FIN, 1, 1, 0), (C, FIN, 1, 2, 0), (N, ACK, 2, 2, 0), (C, TCP_SYN, 70_000, 0, 0)]) },
            SynSent,
        ),
        ("SYN on a living flow, and its challenge ACK", then(&[(C, TCP_SYN, 9, 0, 0), (N, ACK, 1, 1, 0)]), Established),
        ("SYN-ACK on a living flow", then(&[(N, SYN_ACK, 9, 1, 0), (C, ACK, 1, 1, 0)]), Established),
    ];
    for (what, walk, want) in table {
        assert_eq!(walk.state(), *want, "{what}");
        assert_eq!((walk.doubted, walk.forgotten), (0, false), "{what}");
    }
}

/// RFC 9293 section 3.10.7.4 and RFC 5961 section 3.2, by the box's lights: a RST counts where its
/// receiver may expect the sender's next byte.
#[test]
fn resets_count_in_window_only() {
    let data = [(C, ACK, 1, 1, 3000), (N, ACK, 1, 3001, 5000), (C, ACK, 3001, 5001, 0)];
    let opened = [&OPENED[..], &data].concat();
    for (what, direction, seq, believed) in [
        ("what the node expects", C, 3001, true),
        ("one less", C, 3000, false),
        ("acknowledged long ago", C, 1, false),
        ("some data ahead", C, 3001 + 100_000, true),
        ("the window's edge", C, 3001 + (1 << 20), true),
        ("beyond it", C, 3002 + (1 << 20), false),
        ("half the numbers away", C, 3001 + (1 << 31), false),
        ("what the client expects", N, 5001, true),
        ("one less than that", N, 5000, false),
        ("megabytes under way", N, 5001 + (10 << 20), true),
        ("beyond any of them", N, 5002 + (1 << 24), false),
    ] {
        let mut walk = walk(&opened);
        walk.step((direction, TCP_RST, seq, 0, 0));
        assert_eq!((walk.state() == State::Reset, walk.doubted), (believed, u32::from(!believed)), "{what}");
    }
}

/// After its FIN the stream's end is known, and a RST lies there or before.
#[test]
fn resets_of_the_closing() {
    let cases: [(&str, &[Step], Step, bool); 7] = [
        ("client gone, node sends on", &[(C, FIN, 1, 1, 0), (N, ACK, 1, 2, 900)], (C, TCP_RST, 2, 0, 0), true),
        ("the node had not heard of the FIN", &[(C, FIN, 1, 1, 900)], (C, TCP_RST, 1, 0, 0), true),
        ("beyond the client's end", &[(C, FIN, 1, 1, 0)], (C, TCP_RST, 3, 0, 0), false),
        ("far before", &[(C, FIN, 1, 1, 0)], (C, TCP_RST, u32::MAX - (1 << 21), 0, 0), false),
        ("node closed, client sends on", &[(N, FIN, 1, 1, 0), (C, ACK, 1, 2, 900)], (N, TCP_RST, 2, 0, 0), true),
        ("beyond the node's end", &[(N, FIN, 1, 1, 0)], (N, TCP_RST, 3, 0, 0), false),
        ("the other way, where it is open", &[(N, FIN, 1, 1, 0)], (C, TCP_RST, 1, 0, 0), true),
    ];
    for (what, steps, reset, believed) in cases {
        let mut walk = then(steps);
        walk.step(reset);
        assert_eq!(walk.state() == State::Reset, believed, "{what}");
    }
}

/// The receiver answers a RST that is in its window but not at its edge with a challenge ACK, and the one
/// that answers this lies exactly there.
#[test]
fn the_challenge_ack_brings_the_right_reset() {
    let mut walk = then(&[(C, ACK, 1, 1, 100), (N, ACK, 1, 101, 0)]);
    walk.step((C, TCP_RST, 101 + (2 << 20), 0, 0));
    assert_eq!((walk.state(), walk.doubted), (State::Established, 1));
    walk.step((N, ACK, 1, 101, 0));
    walk.step((C, TCP_RST, 101, 0, 0));
    assert_eq!(walk.state(), State::Reset);
}

#[test]
fn refusals_end_an_embryo_and_guesses_do_not() {
    let reset = TCP_RST;
    let cases: [(&str, &[Step], Step, bool); 9] = [
        ("refused", &[SYN], (N, reset | ACK, 5, 1, 0), true),
        ("refused with its data", &[SYN], (N, reset | ACK, 5, 101, 0), true),
        ("answer to another SYN", &[SYN], (N, reset | ACK, 5, 1 << 20, 0), false),
        ("without an ACK", &[SYN], (N, reset, 5, 1, 0), false),
        ("refused after all", &[SYN, ANSWER], (N, reset, 1, 0, 0), true),
        ("as an answer to a guessed ACK", &[SYN, ANSWER], (N, reset, 77_777, 0, 0), false),
        ("given up", &[SYN], (C, reset, 1, 0, 0), true),
        ("given up half open", &[SYN, ANSWER], (C, reset, 1, 0, 0), true),
        ("guessed", &[SYN, ANSWER], (C, reset, 1 << 30, 0, 0), false),
    ];
    for (what, steps, reset, ends) in cases {
        let mut walk = walk(steps);
        walk.step(reset);
        assert_eq!((walk.forgotten, walk.state()), (ends, State::SynSent), "{what}");
    }
}

/// Who has not seen the SYN-ACK cannot complete the handshake.
#[test]
fn a_blind_client_establishes_nothing() {
    for (what, steps, state) in [
        ("a guess", vec![SYN, ANSWER, (C, ACK, 1, 2_000_000, 0)], State::SynSent),
        ("one too low", vec![SYN, ANSWER, (C, ACK, 1, 0, 0)], State::SynSent),
        ("a guess with data", vec![SYN, ANSWER, (C, ACK, 1, 1 << 31, 100)], State::SynSent),
        ("a guess with FIN", vec![SYN, ANSWER, (C, FIN, 1, 1 << 31, 100)], State::SynSent),
        ("no ACK at all", vec![SYN, ANSWER, (C, 0x08, 1, 1, 100)], State::SynSent),
        (
            "the answer, after guesses",
            vec![SYN, ANSWER, (C, ACK, 1, 1 << 31, 0), (C, ACK, 1, 1, 0)],
            State::Established,
        ),
        ("data that came before the ACK (TFO)", vec![SYN, ANSWER, (N, ACK, 1, 1, 1460), (C, ACK, 1, 1461, 0)], {
            State::Established
        }),
        ("an old ACK of the node is no answer", vec![SYN, (N, ACK, 0, 1, 0), (C, ACK, 1, 1, 0)], State::SynSent),
        ("nor one to another SYN", vec![SYN, (N, SYN_ACK, 0, 1 << 20, 0), (C, ACK, 1, 1, 0)], State::SynSent),
        ("another attempt", vec![SYN, ANSWER, (C, TCP_SYN, 50, 0, 0), (C, ACK, 51, 1, 0)], State::SynSent),
        ("its answer", vec![SYN, ANSWER, (C, TCP_SYN, 50, 0, 0), (N, SYN_ACK, 80, 51, 0), (C, ACK, 51, 81, 0)], {
            State::Established
        }),
    ] {
        assert_eq!(walk(&steps).state(), state, "{what}");
    }
}

#[test]
fn numbers_wrap() {
    let near = u32::MAX - ISN;
    let mut walk = then(&[(C, ACK, near, 1, 0), (N, ACK, 1, near, 0)]);
    walk.step((C, TCP_RST, near.wrapping_add(1000), 0, 0));
    assert_eq!(walk.state(), State::Reset);
}

/// What a node in `TIME_WAIT` will compare the next SYN with: the end of the old stream, and the timestamp
/// of the client's that it saw last, which its last ACK echoes.
#[test]
fn the_rest_knows_what_rfc_6191_asks_for() {
    for last in [C, N] {
        let (first, second) = if last == N { (N, C) } else { (C, N) };
        let mut walk = then(&[(first, FIN, 1, 1, 0), (second, FIN, 1, 2, 0)]);
        let ack = Segment { client_stamp: 777, ..segment((last, ACK, 2, 2, 0)) };
        walk.word = advance(walk.word, &mut walk.seen, &ack, last);
        assert_eq!(walk.state(), State::TimeWait);
        assert_eq!(walk.seen, Positions { node_expects: ISN + 2, client_expects: 777 });
    }
}

#[test]
fn udp_becomes_a_stream_on_the_second_request() {
    let mut word = Word { state: State::UdpOneWay, flags: Flags::default(), protocol: 17 };
    for (direction, want) in
        [(C, State::UdpOneWay), (N, State::UdpOneWay), (N, State::UdpOneWay), (C, State::UdpStream)]
    {
        word = advance(word, &mut Positions::default(), &Segment::default(), direction);
        assert_eq!(word.state, want);
    }
}

#[test]
fn rfc_6191() {
    let syn = |seq, timestamp| SynInfo { seq, timestamp };
    assert!(reopens(1000, 0, syn(1001, 0)), "later sequence, no timestamps");
    assert!(!reopens(1000, 0, syn(1000, 0)), "same sequence");
    assert!(!reopens(1000, 0, syn(999, 7)), "earlier sequence, the old one unstamped");
    assert!(reopens(1000, 50, syn(5, 51)), "later timestamp");
    assert!(!reopens(1000, 50, syn(2000, 49)), "PAWS refuses an earlier timestamp");
    assert!(reopens(1000, 50, syn(2000, 50)), "same timestamp, later sequence");
    assert!(reopens(u32::MAX, u32::MAX, syn(0, 3)), "both wrap");
}
