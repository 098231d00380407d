//! Namespaces and veths for the privileged steering tests; each test has names of its own and leaves none behind.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod packets;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};

use penstock_configs::file::XdpMode;
use penstock_dataplane::steer::{self, Interface};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Says why where the test cannot run; whoever counts skipped tests greps for the first word.
pub(crate) fn privileged(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: {test}: needs root (namespaces, XDP)");
    }
    root
}

pub(crate) fn run(command: &str) -> Output {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().unwrap()
}

pub(crate) fn ok(command: &str) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A box and a peer, each in a namespace, joined by a veth with 2 queues a side: `box0` and `peer0`.
/// The calling thread moves into the box's network namespace; its mounts stay the host's.
pub(crate) struct Net {
    pub(crate) box_ns: String,
    pub(crate) peer_ns: String,
    pub(crate) run_dir: tempfile::TempDir,
    home: File,
}

impl Net {
    pub(crate) fn new(tag: &str) -> Self {
        // Two checkouts may test on one machine.
        let of = |who: &str| format!("pst{}-{tag}-{who}", std::process::id());
        let (box_ns, peer_ns) = (of("box"), of("peer"));
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        let net = Self { box_ns, peer_ns, run_dir: tempfile::tempdir().unwrap(), home };
        net.remove();
        ok(&format!("ip netns add {}", net.box_ns));
        ok(&format!("ip netns add {}", net.peer_ns));
        net.add_veth();
        let target = File::open(format!("/run/netns/{}", net.box_ns)).unwrap();
        move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        net
    }

    pub(crate) fn add_veth(&self) {
        let Self { box_ns, peer_ns, .. } = self;
        ok(&format!(
            "ip -n {box_ns} link add box0 numtxqueues 2 numrxqueues 2 type veth peer name peer0 numtxqueues 2 numrxqueues 2 netns {peer_ns}"
        ));
        ok(&format!("ip -n {box_ns} addr add 198.18.77.1/24 dev box0"));
        ok(&format!("ip -n {peer_ns} addr add 198.18.77.2/24 dev peer0"));
        for (ns, link) in [(box_ns, "box0"), (box_ns, "lo"), (peer_ns, "peer0"), (peer_ns, "lo")] {
            ok(&format!("ip -n {ns} link set {link} up"));
        }
    }

    pub(crate) fn interface(&self, mode: XdpMode) -> Interface {
        Interface { name: "box0".into(), ifindex: 0, queues: 2, mode }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    /// `ip -details link show` of the box's interface: says `prog/xdp` or not.
    pub(crate) fn link(&self) -> String {
        ok(&format!("ip -n {} -d link show dev box0", self.box_ns))
    }

    pub(crate) fn in_peer(&self, command: &str) -> Output {
        run(&format!("ip netns exec {} {command}", self.peer_ns))
    }

    /// Runs `work` on a thread inside the peer's namespace.
    pub(crate) fn inside_peer<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let target = File::open(format!("/run/netns/{}", self.peer_ns)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn remove(&self) {
        run(&format!("ip netns del {}", self.box_ns));
        run(&format!("ip netns del {}", self.peer_ns));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = steer::detach_all(self.run_dir.path());
        let _ = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network));
        self.remove();
    }
}
