//! Whether the nodes of mode `dnat` route their replies through the box: each backend is asked from an address that
//! stands for clients everywhere, and only an answer that arrives by the steered path counts. A backend that was
//! never heard so takes no flows: its clients would get nothing at all, and nobody would know why.
//!
//! Plain data: time comes in as an argument, what to send comes out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::reply_frames::Question;
use crate::tables::ways::Source;
use crate::wire::PROTO_TCP;

/// Questions of a round, and how long after the one before each is put; the round fails that long after the last.
const ROUND: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(750), Duration::from_secs(1)];
/// Pauses after rounds that failed.
const BACKOFF: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
/// A way that was proved is looked at again so often.
const AGAIN: Duration = Duration::from_secs(30);
/// Rounds in a row without an answer, until a way that was proved no longer is: a busy node is not a lost one.
const PATIENCE: usize = 3;
/// Ports the questions come from.
const FIRST_PORT: u16 = 32_768;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not answered yet, and asked not long enough.
    Unchecked,
    Passed,
    Failed,
}

/// One thing to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub question: Question,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub protocol: u8,
}

/// What a worker heard: the backend, and the port its answer was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeAnswer {
    pub source: Source,
    pub port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Check {
    standing: Standing,
    /// Before it passes or fails: it is taken to pass, as another process or another probe has found it to.
    believed: bool,
    /// Questions put in this round.
    asked: usize,
    /// Rounds in a row that failed.
    failures: usize,
    due: Instant,
    /// Where the round's questions came from.
    port: u16,
}

#[derive(Debug, Default)]
pub struct ReplyChecks {
    probes: Vec<IpAddr>,
    /// By the backend whose port is asked: of protocols other than TCP one per node, since it is the node's kernel
    /// that answers, at a limited rate, and always the same way.
    checks: BTreeMap<Source, Check>,
    /// All backends that wait for a check, and which one it is.
    wanted: HashMap<Source, Source>,
    next_port: u16,
}

impl ReplyChecks {
    /// The addresses questions come from; where they change, everything is asked again, and what was proved is
    /// believed until it fails.
    pub fn set_probes(&mut self, probes: &[IpAddr], now: Instant) {
        if self.probes == probes {
            return;
        }
        for check in self.checks.values_mut() {
            *check = Check { believed: check.is_proved(), ..Check::due(now) };
        }
        self.probes = probes.to_vec();
    }

    /// An earlier process served all that is wanted now: to refuse its clients until each node has answered again
    /// would make an outage of every restart.
    pub fn believe(&mut self) {
        self.checks.values_mut().for_each(|check| check.believed = true);
    }

    /// The backends to check, replacing the former ones; what is known of those that stay is kept. Where one port
    /// stands for a node, it does so while it is there, and what is known of the node outlasts it.
    pub fn want(&mut self, sources: &BTreeSet<Source>, now: Instant) {
        let of_node = |source: &Source| (source.2 != PROTO_TCP).then_some((source.0, source.2));
        let former = std::mem::take(&mut self.checks);
        let mut asked_of: BTreeMap<_, Source> = BTreeMap::new();
        let mut known: BTreeMap<_, Check> = BTreeMap::new();
        for (source, check) in &former {
            let Some(node) = of_node(source) else { continue };
            known.insert(node, Check { asked: 0, due: now, ..*check });
            if sources.contains(source) {
                asked_of.insert(node, *source);
            }
        }
        self.wanted.clear();
        for source in sources {
            let node = of_node(source);
            let asked = node.map_or(*source, |node| *asked_of.entry(node).or_insert(*source));
            self.wanted.insert(*source, asked);
            self.checks.entry(asked).or_insert_with(|| {
                let known = node.and_then(|node| known.get(&node));
                former.get(&asked).or(known).copied().unwrap_or_else(|| Check::due(now))
            });
        }
    }

    /// Puts the questions that are due. Nodes whose link-layer address is not known are not asked.
    pub fn poll(&mut self, now: Instant, reachable: impl Fn(IpAddr) -> bool) -> Vec<Probe> {
        let Self { probes, checks, next_port, .. } = self;
        let mut due = Vec::new();
        for (source, check) in checks.iter_mut().filter(|(_, check)| check.due <= now) {
            let (address, port, protocol) = *source;
            let Some(probe) = probes.iter().find(|probe| probe.is_ipv4() == address.is_ipv4()) else { continue };
            if check.asked == 0 {
                if !reachable(address) {
                    continue;
                }
                // A port of its own for every round: a node's state of the last one is nobody's concern.
                *next_port = next_port.wrapping_add(1) % (u16::MAX - FIRST_PORT);
                check.port = FIRST_PORT + *next_port;
            }
            let Some(pause) = ROUND.get(check.asked) else {
                check.fail(now);
                continue;
            };
            check.asked += 1;
            check.due = now + *pause;
            let from = SocketAddr::new(*probe, check.port);
            due.push(Probe { question: Question::Ask, from, to: SocketAddr::new(address, port), protocol });
        }
        due
    }

    /// An answer came in by the steered path. What is to be sent about it.
    pub fn answered(&mut self, answer: ProbeAnswer, now: Instant) -> Option<Probe> {
        let (address, port, protocol) = answer.source;
        let check = self.checks.get_mut(&answer.source).filter(|check| check.port == answer.port)?;
        check.standing = Standing::Passed;
        (check.asked, check.failures) = (0, 0);
        check.due = now + AGAIN;
        let probe = self.probes.iter().find(|probe| probe.is_ipv4() == address.is_ipv4())?;
        let (from, to) = (SocketAddr::new(*probe, answer.port), SocketAddr::new(address, port));
        (protocol == PROTO_TCP).then_some(Probe { question: Question::Dismiss, from, to, protocol })
    }

    /// How a backend stands; `None`: it needs no check.
    #[must_use]
    pub fn standing(&self, source: &Source) -> Option<Standing> {
        let asked = self.wanted.get(source)?;
        Some(self.checks.get(asked).map_or(Standing::Unchecked, |check| check.standing))
    }

    /// For the tables: what was proved of all that are to be, or is believed.
    #[must_use]
    pub fn proved(&self) -> HashMap<Source, bool> {
        self.wanted.keys().map(|source| (*source, self.is_proved(source))).collect()
    }

    /// What cannot be asked is never proved, whatever it was before.
    #[must_use]
    pub fn is_proved(&self, source: &Source) -> bool {
        let check = self.wanted.get(source).and_then(|asked| self.checks.get(asked));
        check.is_some_and(Check::is_proved) && self.probe(source.0.is_ipv6()).is_some()
    }

    /// The address a family's nodes are asked from.
    #[must_use]
    pub fn probe(&self, v6: bool) -> Option<IpAddr> {
        self.probes.iter().copied().find(|probe| probe.is_ipv6() == v6)
    }
}

impl Check {
    fn due(now: Instant) -> Self {
        Self { standing: Standing::Unchecked, believed: false, asked: 0, failures: 0, due: now, port: 0 }
    }

    fn is_proved(&self) -> bool {
        match self.standing {
            Standing::Passed => true,
            Standing::Unchecked => self.believed,
            Standing::Failed => false,
        }
    }

    fn fail(&mut self, now: Instant) {
        self.failures += 1;
        self.asked = 0;
        self.due = now + BACKOFF[self.failures.min(BACKOFF.len()) - 1];
        if self.standing != Standing::Passed || self.failures >= PATIENCE {
            self.standing = Standing::Failed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = PROTO_TCP;
    const UDP: u8 = 17;

    fn source(node: &str, port: u16, protocol: u8) -> Source {
        (node.parse().unwrap(), port, protocol)
    }

    struct World {
        checks: ReplyChecks,
        now: Instant,
    }

    impl World {
        fn new(sources: &[Source]) -> Self {
            let (mut checks, now) = (ReplyChecks::default(), Instant::now());
            checks.set_probes(&["192.0.2.254".parse().unwrap(), "2001:db8::1".parse().unwrap()], now);
            checks.want(&sources.iter().copied().collect(), now);
            Self { checks, now }
        }

        fn ask(&mut self) -> Vec<Probe> {
            self.checks.poll(self.now, |_| true)
        }

        /// What is sent within so many milliseconds.
        fn run(&mut self, millis: u64) -> Vec<Probe> {
            (0..millis / 10)
                .flat_map(|_| {
                    self.now += Duration::from_millis(10);
                    self.ask()
                })
                .collect()
        }

        fn answer(&mut self, probe: &Probe) -> Option<Probe> {
            let source = (probe.to.ip(), probe.to.port(), probe.protocol);
            self.checks.answered(ProbeAnswer { source, port: probe.from.port() }, self.now)
        }
    }

    #[test]
    fn a_node_that_answers_by_the_box_passes_and_is_asked_again() {
        let web = source("10.0.0.11", 443, TCP);
        let mut world = World::new(&[web]);
        let [probe] = world.ask()[..] else { panic!("one question") };
        assert_eq!((probe.question, probe.from.ip().to_string()), (Question::Ask, "192.0.2.254".to_owned()));
        assert_eq!(world.checks.proved(), [(web, false)].into());
        // From a port that was not asked from: somebody else's doing.
        assert_eq!(world.checks.answered(ProbeAnswer { source: web, port: 1 }, world.now), None);
        assert_eq!(world.checks.standing(&web), Some(Standing::Unchecked));
        let dismissal = world.answer(&probe).unwrap();
        assert_eq!((dismissal.question, dismissal.from, dismissal.to), (Question::Dismiss, probe.from, probe.to));
        assert_eq!(world.checks.proved(), [(web, true)].into());
        assert_eq!(world.run(29_000), [], "proved");
        let again = world.run(1_100)[0];
        assert_ne!(again.from.port(), probe.from.port());
        assert_eq!(world.checks.standing(&web), Some(Standing::Passed));
    }

    #[test]
    fn a_silent_node_fails_and_is_asked_ever_more_seldom() {
        let web = source("10.0.0.11", 443, TCP);
        let mut world = World::new(&[web]);
        assert_eq!(world.ask().len() + world.run(1_900).len(), 3);
        assert_eq!(world.checks.standing(&web), Some(Standing::Unchecked), "still within its time");
        world.run(200);
        assert_eq!(world.checks.standing(&web), Some(Standing::Failed));
        let asked = world.run(120_000).len();
        assert!((12..=21).contains(&asked), "{asked} questions in two minutes");
        // The operator mends the node's route.
        let probe = world.run(40_000).pop().unwrap();
        world.answer(&probe);
        assert_eq!(world.checks.standing(&web), Some(Standing::Passed));
    }

    #[test]
    fn a_way_that_was_proved_stands_for_some_silence() {
        let web = source("10.0.0.11", 443, TCP);
        let mut world = World::new(&[web]);
        let probe = world.ask()[0];
        world.answer(&probe);
        world.run(30_000 + 2_100);
        assert_eq!(world.checks.standing(&web), Some(Standing::Passed), "one round of silence");
        world.run(10_000);
        assert_eq!(world.checks.standing(&web), Some(Standing::Failed), "three of them");
    }

    #[test]
    fn what_an_earlier_process_served_is_believed_until_it_fails() {
        let (web, api) = (source("10.0.0.11", 443, TCP), source("10.0.0.12", 443, TCP));
        let mut world = World::new(&[web]);
        world.checks.believe();
        world.checks.want(&[web, api].into(), world.now);
        assert_eq!(world.checks.proved(), [(web, true), (api, false)].into(), "what came later is asked first");
        assert_eq!(world.checks.standing(&web), Some(Standing::Unchecked));
        world.ask();
        world.run(1_900);
        assert!(world.checks.proved()[&web], "still within its time");
        world.run(200);
        assert_eq!(world.checks.proved(), [(web, false), (api, false)].into());
    }

    #[test]
    fn a_change_of_the_probe_asks_again_and_refuses_nobody_meanwhile() {
        let (web, api) = (source("10.0.0.11", 443, TCP), source("10.0.0.12", 443, TCP));
        let mut world = World::new(&[web, api]);
        let [of_web, _] = world.ask()[..] else { panic!("one question each") };
        world.answer(&of_web);
        world.run(5_000);
        let proved = [(web, true), (api, false)].into();
        assert_eq!(world.checks.proved(), proved);
        world.checks.set_probes(&["192.0.2.253".parse().unwrap()], world.now);
        assert_eq!(world.checks.proved(), proved);
        assert_eq!(world.answer(&of_web), None, "an answer to the former probe");
        let [probe, _] = world.ask()[..] else { panic!("both are asked, at once") };
        assert_eq!(probe.from.ip().to_string(), "192.0.2.253");
        world.run(2_100);
        assert_eq!(world.checks.proved(), [(web, false), (api, false)].into(), "one round is enough");
        // Without a probe of its family nobody can know.
        let probe = world.run(5_000).pop().unwrap();
        world.answer(&probe);
        assert_eq!(world.checks.proved().values().filter(|proved| **proved).count(), 1);
        world.checks.set_probes(&["2001:db8::1".parse().unwrap()], world.now);
        assert_eq!(world.checks.proved(), [(web, false), (api, false)].into());
    }

    #[test]
    fn other_protocols_are_asked_once_per_node_and_family() {
        let all = [
            source("10.0.0.11", 53, UDP),
            source("10.0.0.11", 123, UDP),
            source("10.0.0.12", 53, UDP),
            source("fd00::11", 53, UDP),
        ];
        let mut world = World::new(&all);
        let probes = world.ask();
        assert_eq!(probes.len(), 3);
        assert_eq!(world.answer(&probes[0]), None, "there is nothing to dismiss");
        let passed: Vec<bool> = all.iter().map(|s| world.checks.standing(s) == Some(Standing::Passed)).collect();
        assert_eq!(passed, [true, true, false, false]);
        // One that goes takes nothing of the other's with it.
        world.checks.want(&all[..1].iter().copied().collect(), world.now);
        assert_eq!(world.checks.proved(), [(all[0], true)].into());
        assert_eq!(world.checks.standing(&all[1]), None);
    }

    #[test]
    fn what_is_known_of_a_node_outlasts_the_port_that_was_asked() {
        let [ntp, dns, tcp] = [(123, UDP), (53, UDP), (443, TCP)].map(|(port, of)| source("10.0.0.11", port, of));
        let mut world = World::new(&[ntp]);
        let probe = world.ask()[0];
        world.answer(&probe);
        // A lower port comes: the one that is asked stays.
        for wanted in [&[ntp, dns][..], &[dns], &[dns, ntp], &[dns, ntp, tcp]] {
            world.checks.want(&wanted.iter().copied().collect(), world.now);
            assert!(wanted.iter().all(|source| world.checks.is_proved(source) == (*source != tcp)), "{wanted:?}");
        }
        let asked: Vec<u16> = world.run(100).iter().map(|probe| probe.to.port()).collect();
        assert_eq!(asked, [53, 443], "once more, by the port that is left");
        // That it fails goes with the node likewise.
        world.checks.want(&[dns].into(), world.now);
        world.run(60_000);
        assert_eq!(world.checks.standing(&dns), Some(Standing::Failed));
        world.checks.want(&[ntp].into(), world.now);
        assert_eq!(world.checks.standing(&ntp), Some(Standing::Failed));
        assert_eq!(world.ask().len(), 1, "and may be mended");
    }

    #[test]
    fn a_node_without_a_link_layer_address_or_a_probe_of_its_family_is_not_asked() {
        let mut world = World::new(&[source("10.0.0.11", 443, TCP)]);
        assert_eq!(world.checks.poll(world.now, |_| false), []);
        assert_eq!(world.ask().len(), 1);
        world.checks.set_probes(&["2001:db8::1".parse().unwrap()], world.now);
        world.checks.want(&[source("10.0.0.11", 443, TCP)].into(), world.now);
        assert_eq!(world.run(5_000), []);
    }
}
