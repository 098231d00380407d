//! What the scripts of `perf/hardware` would say to the kernel's pktgen, to testpmd and to a NIC: none is here as a lab has it,
//! so directories stand for pktgen's, the card's and its interrupts' files, and scripts for testpmd and ethtool.

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

/// testpmd.sh with a program in testpmd's place.
fn testpmd_script(bin: &Path, arguments: &[&str]) -> Command {
    let mut command = script("testpmd.sh");
    command.args(arguments).env("PATH", path_with(bin)).env("TOLD", bin.join("told")).env("NET", bin);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn path_with(bin: &Path) -> String {
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

/// A testpmd that says what it was told and ends at a line of input.
fn testpmd(bin: &Path, queues: Option<&str>, arguments: &[&str]) -> Vec<String> {
    let mut command = testpmd_script(bin, arguments);
    command.envs(queues.map(|queues| ("QUEUES", queues)));
    assert!(command.status().expect("bash").success());
    fs::read_to_string(bin.join("told")).expect("what it was told").lines().map(String::from).collect()
}

fn program(bin: &Path, name: &str, text: &str) {
    let program = bin.join(name);
    fs::write(&program, text).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
}

fn stand_in() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$TOLD\"\necho 'txonly packet forwarding - ports=1'\nread line\n";
    program(dir.path(), "dpdk-testpmd", text);
    let bin = dir.path().to_owned();
    (dir, bin)
}

/// The word behind another.
fn after(told: &[String], name: &str) -> Option<String> {
    told.iter().skip_while(|word| *word != name).nth(1).cloned()
}

#[test]
fn two_testpmds_run_side_by_side_each_on_its_cores() {
    let (_dir, bin) = stand_in();
    let reflect = testpmd(&bin, None, &["reflect", "0000:01:00.1", "5,4", "0"]);
    let generate = testpmd(&bin, None, &["generate", "0000:01:00.0", "02:00:00:00:00:01", "1,2", "0"]);
    let prefix = |told: &[String]| told.iter().find(|word| word.starts_with("--file-prefix=")).cloned();
    assert!(prefix(&reflect).is_some() && prefix(&reflect) != prefix(&generate), "{reflect:?}\n{generate:?}");
    assert_eq!((after(&reflect, "-l"), after(&reflect, "--main-lcore")), (Some("5,4".into()), Some("5".into())));
    assert!(!reflect.iter().any(|word| word == "--no-pci" || word == "--no-huge"), "{reflect:?}");
    // One port a NIC's, the other virtual.
    let forward = testpmd(&bin, None, &["forward", "0000:01:00.0", "lf9", "1,2", "0"]);
    assert!(forward.iter().any(|word| word == "--vdev=net_af_xdp1,iface=lf9,queue_count=1"), "{forward:?}");
    assert!(!forward.iter().any(|word| word == "--no-pci"), "{forward:?}");
}

/// Else the forwarder that a box is divided by would be one core with a queue of four.
#[test]
fn the_forwarder_takes_all_queues_or_none() {
    let (_dir, bin) = stand_in();
    for queue in 0..4 {
        fs::create_dir_all(bin.join("lf8/queues").join(format!("rx-{queue}"))).expect("a directory");
    }
    let arguments = ["forward", "lf8", "lf9", "1,2,3,4,5", "0"];
    let told = testpmd(&bin, Some("4"), &arguments);
    assert!(told.iter().any(|word| word == "--vdev=net_af_xdp0,iface=lf8,queue_count=4"), "{told:?}");
    assert!(["--rxq=4", "--txq=4", "--nb-cores=4"].iter().all(|word| told.iter().any(|t| t == word)), "{told:?}");
    assert_eq!(testpmd_script(&bin, &arguments).status().expect("bash").code(), Some(2), "it would take one of four");
}

#[test]
fn a_testpmd_that_ends_early_is_said_at_once() {
    let (_dir, bin) = stand_in();
    let forwards = "echo 'mac packet forwarding - ports=2'\n";
    for begins in ["", forwards] {
        program(&bin, "dpdk-testpmd", &format!("#!/bin/sh\n{begins}echo 'EAL: No free hugepages' >&2\nexit 1\n"));
        let began = Instant::now();
        let output = testpmd_script(&bin, &["reflect", "0000:01:00.1", "1,2", "3600"]).stderr(Stdio::piped()).output();
        let output = output.expect("bash");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("EAL: No free hugepages") && began.elapsed() < Duration::from_secs(20), "{said}");
    }
}

/// A NIC as nic.sh sees it: `eth0`, its interrupts as `/proc/interrupts` lists them, an ethtool that adds rules.
struct Nic {
    dir: tempfile::TempDir,
}

impl Nic {
    fn new(device: &str, interrupts: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |path: &str| dir.path().join(path);
        for path in ["devices", "net/eth0", "irqs", "run"] {
            fs::create_dir_all(at(path)).expect("a directory");
        }
        fs::create_dir(at("devices").join(device)).expect("a directory");
        std::os::unix::fs::symlink(at("devices").join(device), at("net/eth0/device")).expect("a link");
        let lines = interrupts.lines().map(|line| {
            let (irq, name) = line.split_once(' ').expect("a number and a name");
            fs::create_dir(at("irqs").join(irq)).expect("a directory");
            format!(" {irq}:          0       4711  IR-PCI-MSIX-{device}    0-edge      {name}\n")
        });
        let text = format!("            CPU0       CPU1\n{}", lines.collect::<String>());
        fs::write(at("interrupts"), text).expect("a file");
        let ethtool = "#!/bin/sh\necho \"$@\" >>\"$TOLD\"\ncase \"$*\" in *flow-type*)\n  echo \"Added rule with ID $((1000 + $(grep -c flow-type \"$TOLD\")))\" ;;\nesac\n";
        program(dir.path(), "ethtool", ethtool);
        Self { dir }
    }

    fn run(&self, arguments: &[&str]) -> String {
        let at = |path: &str| self.dir.path().join(path);
        let mut command = script("nic.sh");
        command.args(arguments).env("PATH", path_with(self.dir.path())).env("TOLD", at("told"));
        command.env("NET", at("net")).env("INTERRUPTS", at("interrupts")).env("IRQS", at("irqs")).env("RUN", at("run"));
        String::from_utf8(command.output().expect("bash").stdout).expect("text")
    }

    fn read(&self, file: &str) -> Option<String> {
        Some(fs::read_to_string(self.dir.path().join(file)).ok()?.trim().to_owned())
    }

    fn core_of(&self, irq: u32) -> Option<String> {
        self.read(&format!("irqs/{irq}/smp_affinity_list"))
    }
}

/// As machines list them: the card's own interrupt is before those of its queues, and of no queue.
#[test]
fn an_irq_is_put_on_the_core_of_the_queue_in_its_name() {
    let mlx5 = "98 mlx5_async0@pci:0000:01:00.0\n99 mlx5_comp0@pci:0000:01:00.0\n100 mlx5_comp1@pci:0000:01:00.0\n\
                101 mlx5_comp2@pci:0000:01:00.0\n102 mlx5_comp3@pci:0000:01:00.0\n103 mlx5_comp0@pci:0000:01:00.1";
    let ena = "98 ena-mgmnt@pci:0000:00:05.0\n99 eth0-Tx-Rx-0\n100 eth0-Tx-Rx-1\n101 eth0-Tx-Rx-2\n\
               102 eth0-Tx-Rx-3\n103 eth01-Tx-Rx-0";
    let igb = "98 eth0\n99 eth0-TxRx-0\n100 eth0-TxRx-1\n101 eth0-TxRx-2\n102 eth0-TxRx-3\n103 eth1-TxRx-0";
    let i40e = "98 i40e-0000:02:00.0:misc\n102 i40e-eth0-TxRx-3\n101 i40e-eth0-TxRx-2\n100 i40e-eth0-TxRx-1\n\
                99 i40e-eth0-TxRx-0\n103 i40e-eth0-TxRx-4";
    let virtio = "98 virtio1-config\n99 virtio1-input.0\n100 virtio1-input.1\n101 virtio1-input.2\n\
                  102 virtio1-input.3\n103 virtio10-input.0";
    for (device, interrupts) in [
        ("0000:01:00.0", mlx5),
        ("0000:00:05.0", ena),
        ("0000:02:00.0", igb),
        ("0000:02:00.0", i40e),
        ("virtio1", virtio),
    ] {
        let nic = Nic::new(device, interrupts);
        let said = nic.run(&["tune", "eth0", "4", "2"]);
        let cores = [98, 99, 100, 101, 102, 103].map(|irq| nic.core_of(irq));
        let wanted = [None, Some("2"), Some("3"), Some("4"), Some("5"), None];
        assert_eq!(cores, wanted.map(|core| core.map(String::from)), "{interrupts}\n{said}");
        let name = interrupts.lines().find_map(|line| line.strip_prefix("101 ")).expect("a name");
        assert!(said.contains(&format!("queue 2: IRQ 101 {name} on core 4")), "{said}");
        let shown = nic.run(&["show", "eth0"]);
        assert!(shown.contains(&format!("queue 2: IRQ 101 {name} on core 4\n")), "{shown}");
        assert!(!shown.contains("IRQ 98"), "{shown}");
    }
}

#[test]
fn queues_without_an_irq_are_said() {
    let nic = Nic::new("0000:01:00.0", "99 eth0-TxRx-0");
    assert!(nic.run(&["tune", "eth0", "2", "2"]).contains("no    IRQs: 1 placed for 2 queues"));
}

/// Without busy polling, interrupts that stand back are packets that lie there.
#[test]
fn interrupts_are_put_off_for_busy_polling_alone() {
    let nic = Nic::new("0000:01:00.0", "99 eth0-TxRx-0");
    let settings = || ["napi_defer_hard_irqs", "gro_flush_timeout"].map(|name| nic.read(&format!("net/eth0/{name}")));
    for (arguments, wanted) in [
        (["tune", "eth0", "1", "2", "busy-poll"], ["2", "200000"]),
        (["tune", "eth0", "1", "2", ""], ["0", "0"]),
        (["tune", "eth0", "1", "", ""], ["0", "0"]),
    ] {
        nic.run(&arguments);
        assert_eq!(settings(), wanted.map(|value| Some(value.to_owned())), "{arguments:?}");
    }
}

#[test]
fn only_its_own_rules_are_taken_away() {
    let nic = Nic::new("0000:01:00.0", "99 eth0-TxRx-0");
    nic.run(&["unsnat", "eth0"]);
    assert_eq!(nic.read("told"), None, "there are none of its own");
    let deleted = || {
        let told = nic.read("told").expect("what ethtool was told");
        told.lines().filter_map(|line| line.strip_prefix("-N eth0 delete ")?.parse().ok()).collect::<Vec<u32>>()
    };
    nic.run(&["snat", "eth0", "2", "10.0.0.200"]);
    assert_eq!(deleted(), []);
    // Again: those before go first.
    nic.run(&["snat", "eth0", "2", "10.0.0.200"]);
    assert_eq!(deleted(), [1001, 1002, 1003, 1004]);
    nic.run(&["unsnat", "eth0"]);
    nic.run(&["unsnat", "eth0"]);
    assert_eq!(deleted()[4..], [1005, 1006, 1007, 1008]);
}
