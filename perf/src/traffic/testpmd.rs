//! DPDK's testpmd on a lab's veth (net_af_xdp): as the generator, as the sink, or as the forwarder in the middle. The
//! same program a lab with real NICs has (`perf/hardware/testpmd.sh`), so figures can be carried across.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::packet::Route;
use super::precedence::NICE;
use crate::lab::Netns;

const PROGRAM: &str = "dpdk-testpmd";
const PACKAGE: &str = "dpdk-dev";
/// Starting it takes seconds: its memory, its ports.
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);
/// What it says once it forwards, and when it has said all.
const FORWARDS: &str = "packet forwarding - ports";
const ALL_SAID: &str = "Bye...";

/// What it is to do.
#[derive(Debug, Clone, Copy)]
pub enum Job<'a> {
    /// UDP packets of this length (without the frame check sequence), flat out. Of its flows there are 16 to the lab's VIP: it
    /// makes their source addresses from the VIP's, whose third octet leaves so many.
    Generate { route: &'a Route, frame_len: usize },
    /// Takes what comes.
    Sink,
    /// From each of two interfaces to the other, MAC addresses swapped.
    Forward,
}

/// A testpmd at work.
#[derive(Debug)]
pub struct Testpmd {
    process: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    said: Vec<String>,
    since: Instant,
}

/// What it counted.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Counted {
    pub seconds: f64,
    /// By port.
    pub received: Vec<u64>,
    pub sent: Vec<u64>,
}

/// Installs it if it is missing.
///
/// # Errors
/// It can't be had; the message says how to get it.
pub fn require() -> Result<()> {
    if is_there() {
        return Ok(());
    }
    eprintln!("{PROGRAM} is missing; installing {PACKAGE}");
    let install = || {
        Command::new("apt-get")
            .args(["install", "--yes", "--quiet", "--no-install-recommends", PACKAGE])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
    };
    let _ = install();
    if !is_there() {
        // Package lists may be absent (a fresh image) or stale.
        let _ = Command::new("apt-get").args(["update", "--quiet"]).stdin(Stdio::null()).output();
        let _ = install();
    }
    ensure!(is_there(), "no {PROGRAM} here, and it could not be installed; on Debian: apt-get install {PACKAGE}");
    Ok(())
}

fn is_there() -> bool {
    let status = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
    !matches!(status, Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

impl Testpmd {
    /// Starts it on interfaces of a namespace and waits until it forwards. Of `cores` the first is its own, the
    /// others forward; once it has started it needs none of its own, and the same one may be given twice.
    ///
    /// # Errors
    /// It ends early; the message has what it said.
    pub fn start(ns: &Netns, job: Job<'_>, interfaces: &[&str], cores: &[usize]) -> Result<Self> {
        ensure!(cores.len() > 1, "{PROGRAM} wants a core of its own and at least one that forwards");
        // With the precedence of our own generators: beside a box that has it, it would take minutes to start. And into a pipe it
        // would say nothing until a page is full.
        let mut command = Command::new("nice");
        command
            .args(["-n", &NICE.to_string(), "stdbuf", "-oL", PROGRAM])
            .args(arguments(job, interfaces, cores))
            .process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = ns.spawn(&mut command).with_context(|| format!("starting {PROGRAM}"))?;
        let input = process.stdin.take();
        let (tell, lines) = std::sync::mpsc::channel();
        let outputs: [Option<Box<dyn std::io::Read + Send>>; 2] =
            [process.stdout.take().map(|out| Box::new(out) as _), process.stderr.take().map(|err| Box::new(err) as _)];
        for output in outputs.into_iter().flatten() {
            let tell = tell.clone();
            // It ends with the process, whose output it reads.
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
            });
        }
        drop(tell);
        let mut testpmd = Self { process, input, lines, said: Vec::new(), since: Instant::now() };
        testpmd.wait_for(FORWARDS, START)?;
        testpmd.since = Instant::now();
        Ok(testpmd)
    }

    /// Ends it and reads what it counted.
    ///
    /// # Errors
    /// It ended before, or does not end.
    pub fn stop(mut self) -> Result<Counted> {
        let seconds = self.since.elapsed().as_secs_f64();
        // It stops at a line of input, and says what it counted.
        let mut input = self.input.take().context("its input")?;
        input.write_all(b"\n").with_context(|| self.tail())?;
        self.wait_for(ALL_SAID, STOP)?;
        self.process.wait()?;
        let (received, sent) = counts(&self.said);
        ensure!(!received.is_empty(), "{PROGRAM} said nothing of what it counted\n{}", self.tail());
        Ok(Counted { seconds, received, sent })
    }

    fn wait_for(&mut self, words: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.contains(words);
                    self.said.push(line);
                    if found {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("{PROGRAM} did not say {words:?} in time\n{}", self.tail()),
                Err(RecvTimeoutError::Disconnected) => bail!("{PROGRAM} ended early\n{}", self.tail()),
            }
        }
    }

    fn tail(&self) -> String {
        let from = self.said.len().saturating_sub(20);
        format!("it said:\n{}", self.said[from..].join("\n"))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As `perf/hardware/testpmd.sh` has them: net_af_xdp copies into memory of its own, so no huge pages are needed.
fn arguments(job: Job<'_>, interfaces: &[&str], cores: &[usize]) -> Vec<String> {
    // Numbered by their place: its own is the lowest number, in whatever order the cores are.
    let places = cores.iter().enumerate().map(|(place, core)| format!("{place}@{core}"));
    let mut all: Vec<String> = vec!["--lcores".into(), places.collect::<Vec<_>>().join(",")];
    for (port, interface) in interfaces.iter().enumerate() {
        all.push(format!("--vdev=net_af_xdp{port},iface={interface}"));
    }
    // Several may run at a time: each has files of its own.
    let unique = format!("--file-prefix=lab{}{}", std::process::id(), interfaces.join(""));
    all.extend(["--no-pci", "--no-huge", "-m", "256", "--no-shconf"].map(String::from));
    all.extend([unique, "--".into(), format!("--nb-cores={}", cores.len() - 1)]);
    let fixed =
        ["--burst=64", "--txd=1024", "--rxd=1024", "--total-num-mbufs=32768", "--no-flush-rx", "--no-lsc-interrupt"];
    all.extend(fixed.map(String::from));
    match job {
        Job::Generate { route, frame_len } => {
            let mac = route.dst_mac.map(|byte| format!("{byte:02x}")).join(":");
            all.extend(["--forward-mode=txonly".into(), "--txonly-multi-flow".into()]);
            all.push(format!("--txpkts={frame_len}"));
            all.push(format!("--tx-ip={},{}", route.first_client, route.vip));
            all.push(format!("--tx-udp=10000,{}", route.vip_port));
            all.push(format!("--eth-peer=0,{mac}"));
        }
        Job::Sink => all.push("--forward-mode=rxonly".into()),
        Job::Forward => all.push("--forward-mode=macswap".into()),
    }
    all
}

/// Packets received and sent, by port.
fn counts(said: &[String]) -> (Vec<u64>, Vec<u64>) {
    let (mut received, mut sent) = (Vec::new(), Vec::new());
    let mut of_a_port = false;
    for line in said {
        if line.contains("orward statistics for") {
            of_a_port = line.contains("for port");
        }
        let count = |name: &str| {
            let rest = line.split_once(name)?.1;
            rest.split_whitespace().next()?.parse::<u64>().ok().filter(|_| of_a_port)
        };
        received.extend(count("RX-packets:"));
        sent.extend(count("TX-packets:"));
    }
    (received, sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "
macswap packet forwarding - ports=2 - cores=1 - streams=2 - NUMA support enabled, MP allocation mode: native
Press enter to exit
Telling cores to stop...
  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 1200           RX-dropped: 3             RX-total: 1203
  TX-packets: 7              TX-dropped: 0             TX-total: 7
  ----------------------------------------------------------------------------

  ---------------------- Forward statistics for port 1  ----------------------
  RX-packets: 7              RX-dropped: 0             RX-total: 7
  TX-packets: 1198           TX-dropped: 2             TX-total: 1200
  ----------------------------------------------------------------------------

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 1207           RX-dropped: 3             RX-total: 1210
  TX-packets: 1205           TX-dropped: 2             TX-total: 1207
Bye...";

    #[test]
    fn its_statistics_are_read_by_port() {
        let said: Vec<String> = SAID.lines().map(String::from).collect();
        assert_eq!(counts(&said), (vec![1200, 7], vec![7, 1198]));
        assert_eq!(counts(&said[..4]), (vec![], vec![]));
    }

    #[test]
    fn it_is_told_what_to_send_and_where() {
        let route = Route {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 0xee],
            first_client: "198.18.0.1".parse().expect("an address"),
            vip: "203.0.113.10".parse().expect("an address"),
            vip_port: 80,
        };
        let line = arguments(Job::Generate { route: &route, frame_len: 60 }, &["eth0"], &[0, 1]).join(" ");
        for words in
            ["--lcores 0@0,1@1 ", "iface=eth0", "--nb-cores=1", "--txpkts=60", "--tx-ip=198.18.0.1,203.0.113.10"]
        {
            assert!(line.contains(words), "{words} is not in {line}");
        }
        assert!(line.contains("--eth-peer=0,02:00:00:00:00:ee") && line.contains("--tx-udp=10000,80"), "{line}");
        let line = arguments(Job::Forward, &["a", "b"], &[1, 0]).join(" ");
        assert!(line.contains("--lcores 0@1,1@0 "), "core 0 forwards: {line}");
        assert!(line.contains("net_af_xdp0,iface=a --vdev=net_af_xdp1,iface=b"), "{line}");
    }
}
