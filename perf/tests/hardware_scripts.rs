//! What the scripts of `perf/hardware` would say to the kernel's pktgen and to testpmd: neither is here as a lab has it, so a
//! directory stands for pktgen's files, and a script for testpmd.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

fn script(name: &str) -> Command {
    let mut command = Command::new("bash");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("hardware").join(name));
    command
}

/// What `net/core/pktgen.c` of Linux 6.6 takes, of what a script may want.
const PARAMETERS: [&str; 19] = [
    "count",
    "clone_skb",
    "burst",
    "dst_mac",
    "queue_map_min",
    "queue_map_max",
    "udp_dst_min",
    "udp_dst_max",
    "udp_src_min",
    "udp_src_max",
    "flag",
    "ratep",
    "dst",
    "src_min",
    "src_max",
    "dst6",
    "src6",
    "pkt_size",
    "imix_weights",
];

/// pktgen's directory, as a script sees it: what is written stays to be read.
struct Pktgen(tempfile::TempDir);

impl Pktgen {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("eth9@0"), "Result: OK\n  1000pps\n").expect("a file");
        Self(dir)
    }

    fn script(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = script("pktgen.sh");
        command.args(arguments).envs(environment.iter().copied()).env("PKTGEN", self.0.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, case: &str, pps: &str, environment: &[(&str, &str)]) -> ExitStatus {
        // Long enough that it starts before it stops.
        let arguments = [case, "eth9", "02:00:00:00:00:01", "0.3", "0", pps];
        self.script(&arguments, environment).status().expect("bash")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.path().join(file)).unwrap_or_default()
    }

    /// What was said of the device, each parameter known to the kernel.
    fn said(&self) -> BTreeMap<String, String> {
        let text = self.read("eth9@0");
        let said = text.lines().skip(2).map(|line| line.split_once(' ').expect("a name and a value"));
        said.map(|(name, value)| {
            assert!(PARAMETERS.contains(&name), "No such parameter \"{name}\"");
            (name.to_owned(), value.to_owned())
        })
        .collect()
    }
}

fn number(said: &BTreeMap<String, String>, name: &str) -> u32 {
    said[name].parse().expect("a number")
}

/// Drawn at random, an upper bound is not among the values.
fn flows(said: &BTreeMap<String, String>) -> u64 {
    let address = |name: &str| u32::from(said[name].parse::<Ipv4Addr>().expect("an address"));
    let clients = if said.contains_key("src6") { 1 } else { address("src_max") - address("src_min") };
    u64::from(number(said, "udp_src_max") - number(said, "udp_src_min")) * u64::from(clients)
}

#[test]
fn pktgen_is_told_what_it_knows_and_makes_as_many_flows_as_asked() {
    for (case, wanted) in [
        ("udp4-64", 1),
        ("udp4-64", 500),
        ("udp4-64", 1_000),
        ("udp4-64", 1_000_000),
        ("udp4-imix", 66_000_000),
        ("udp4-1518", 1_000),
        ("udp6-78", 1_000),
    ] {
        let pktgen = Pktgen::new();
        assert!(pktgen.run(case, "0", &[("FLOWS", &wanted.to_string())]).success(), "{case}");
        let said = pktgen.said();
        assert_eq!(flows(&said), wanted, "{case}: {said:?}");
        assert_eq!((number(&said, "burst"), said.contains_key("ratep")), (1, false), "{said:?}");
        assert_eq!(pktgen.read("pgctrl"), "reset\nstart\nstop\n");
    }
    let pktgen = Pktgen::new();
    assert!(pktgen.run("flood4", "100000", &[]).success());
    let said = pktgen.said();
    assert!(flows(&said) > 1_000_000_000, "every packet another client: {said:?}");
    assert_eq!((number(&said, "burst"), number(&said, "ratep")), (1, 100_000));
}

/// pktgen counts a rate in bursts, and a burst is one packet again and again.
#[test]
fn pktgen_repeats_packets_only_where_one_flow_will_do() {
    for (case, pps, flows) in [("flood4", "0", "1000"), ("udp4-64", "0", "1000"), ("udp4-1518", "100000", "1000")] {
        let pktgen = Pktgen::new();
        assert_eq!(pktgen.run(case, pps, &[("BURST", "32"), ("FLOWS", flows)]).code(), Some(2), "{case}");
        assert_eq!(pktgen.read("pgctrl"), "", "nothing is begun");
    }
    for (case, flows) in [("udp4-64", "1"), ("udp4-1518", "1000")] {
        let pktgen = Pktgen::new();
        assert!(pktgen.run(case, "0", &[("BURST", "32"), ("FLOWS", flows)]).success(), "{case}");
        assert_eq!(number(&pktgen.said(), "burst"), 32);
    }
}

#[test]
fn pktgen_refuses_flows_it_cannot_make() {
    let pktgen = Pktgen::new();
    assert_eq!(pktgen.run("udp6-78", "0", &[("FLOWS", "1000000")]).code(), Some(2));
}

/// The shells of a process group.
fn shells(group: Pid) -> usize {
    let stats = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let (state, _, pgrp) = (fields.next()?, fields.next()?, fields.next()?);
        Some(name == "bash" && state != "Z" && pgrp == group.as_raw_nonzero().to_string())
    });
    stats.filter(|is_one| *is_one).count()
}

fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends what is left of a group: the sleep of who waited to stop, and whoever should not be there.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

#[test]
fn pktgen_interrupted_leaves_nobody_who_stops_the_next_run() {
    let pktgen = Pktgen::new();
    let mut command = pktgen.script(&["udp4-64", "eth9", "02:00:00:00:00:01", "3600"], &[]);
    let mut script = command.process_group(0).spawn().expect("bash");
    let group = Pid::from_child(&script);
    let _ended = Group(group);
    soon("it starts", || pktgen.read("pgctrl").ends_with("start\n"));
    kill_process(group, Signal::TERM).expect("a process");
    assert_eq!(script.wait().expect("a child").code(), Some(130));
    assert!(pktgen.read("pgctrl").ends_with("start\nstop\n"));
    soon("nobody waits to stop it", || shells(group) == 0);
}

/// A testpmd that says what it was told and ends at a line of input.
fn testpmd(bin: &Path, arguments: &[&str]) -> Vec<String> {
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let told = bin.join("told");
    let mut command = script("testpmd.sh");
    let status = command.args(arguments).env("PATH", path).env("TOLD", &told).stdout(Stdio::null()).status();
    assert!(status.expect("bash").success());
    fs::read_to_string(told).expect("what it was told").lines().map(String::from).collect()
}

fn stand_in() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("dpdk-testpmd");
    let text = "#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$TOLD\"\necho 'txonly packet forwarding - ports=1'\nread line\n";
    fs::write(&program, text).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    let bin = dir.path().to_owned();
    (dir, bin)
}

#[test]
fn two_testpmds_run_side_by_side_each_on_its_cores() {
    let (_dir, bin) = stand_in();
    let reflect = testpmd(&bin, &["reflect", "0000:01:00.1", "5,4", "0"]);
    let generate = testpmd(&bin, &["generate", "0000:01:00.0", "02:00:00:00:00:01", "1,2", "0"]);
    let prefix = |told: &[String]| told.iter().find(|word| word.starts_with("--file-prefix=")).cloned();
    assert!(prefix(&reflect).is_some() && prefix(&reflect) != prefix(&generate), "{reflect:?}\n{generate:?}");
    let after = |told: &[String], name: &str| told.iter().skip_while(|word| *word != name).nth(1).cloned();
    assert_eq!((after(&reflect, "-l"), after(&reflect, "--main-lcore")), (Some("5,4".into()), Some("5".into())));
    assert!(!reflect.iter().any(|word| word == "--no-pci" || word == "--no-huge"), "{reflect:?}");
    // One port a NIC's, the other virtual.
    let forward = testpmd(&bin, &["forward", "0000:01:00.0", "lf9", "1,2", "0"]);
    assert!(forward.iter().any(|word| word == "--vdev=net_af_xdp1,iface=lf9"), "{forward:?}");
    assert!(!forward.iter().any(|word| word == "--no-pci"), "{forward:?}");
}
