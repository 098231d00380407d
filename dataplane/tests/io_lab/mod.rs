//! Namespaces without names, joined by veths: they vanish with the test that made them.

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::XskMap;
use aya::programs::{Xdp, XdpMode};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A network namespace, alive as long as this.
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    /// `None`, and the reason on stdout, where there is no permission: the test is skipped.
    pub(crate) fn new() -> Option<Self> {
        let made = std::thread::spawn(|| {
            unshare_network()?;
            Ok::<_, std::io::Error>(File::open("/proc/thread-self/ns/net")?.into())
        });
        match made.join().expect("no panic in there") {
            Ok(fd) => {
                let namespace = Self(fd);
                namespace.run(|| {
                    sh("ip link set lo up");
                    // No router solicitations and such among the packets that are counted.
                    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
                    for which in ["all", "default"] {
                        let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{which}/rp_filter"), "0");
                    }
                });
                Some(namespace)
            }
            Err(error) => {
                println!("skipped: making a network namespace needs root ({error})");
                None
            }
        }
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A veth between this namespace (`NAME`, 10.9.N.1) and another (`NAMEp`, 10.9.N.2), of so many queues.
    /// The peer's stack computes whole checksums: AF_XDP completes none.
    pub(crate) fn veth(&self, peer: &Namespace, net: u8, queues: u32) -> Veth {
        let (name, far) = (format!("pio{net}"), format!("pio{net}p"));
        let path = format!("/proc/{}/fd/{}", std::process::id(), peer.0.as_raw_fd());
        let size = format!("numrxqueues {queues} numtxqueues {queues}");
        self.run(|| {
            sh(&format!("ip link add {name} address 02:00:00:00:{net:02x}:01 {size} type veth peer name {far} address 02:00:00:00:{net:02x}:02 {size} netns {path}"));
            sh(&format!("ip link set {name} up"));
        });
        peer.run(|| {
            sh(&format!("ethtool -K {far} tx off"));
            sh(&format!("ip addr add 10.9.{net}.2/24 dev {far}"));
            sh(&format!("ip link set {far} up"));
            sh(&format!("ip neigh add 10.9.{net}.1 lladdr 02:00:00:00:{net:02x}:01 dev {far}"));
        });
        Veth { name, net }
    }
}

pub(crate) struct Veth {
    pub(crate) name: String,
    pub(crate) net: u8,
}

impl Veth {
    pub(crate) fn peer_mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, self.net, 2]
    }

    pub(crate) fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, self.net, 1]
    }

    /// A UDP socket of the peer's, towards the box's address, which answers nothing by itself.
    pub(crate) fn client(&self, peer: &Namespace, port: u16) -> UdpSocket {
        peer.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("bind");
            socket.connect(SocketAddr::from(([10, 9, self.net, 1], 7))).expect("connect");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            socket
        })
    }
}

#[allow(unsafe_code, reason = "unshare")]
fn unshare_network() -> std::io::Result<()> {
    // SAFETY: `unshare_unsafe` wants no code to rely on what is unshared, such as descriptors: a network
    // namespace is of this thread alone, and the thread ends right after.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

pub(crate) fn sh(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output().expect(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The redirect-all program on one interface of the calling thread's namespace.
pub(crate) struct Redirect {
    bpf: Ebpf,
}

impl Redirect {
    pub(crate) fn attach(interface: &str, mode: XdpMode, jumbo: bool) -> Self {
        let mut bpf = Ebpf::load(OBJECT.get_or_init(object)).expect("load");
        let name = if jumbo { "redirect_jumbo" } else { "redirect_all" };
        let program: &mut Xdp = bpf.program_mut(name).expect("program").try_into().expect("xdp");
        program.load().expect("verifier");
        program.attach(interface, mode).expect("attach");
        Self { bpf }
    }

    pub(crate) fn set(&mut self, queue: u32, socket: BorrowedFd<'_>) {
        let mut map: XskMap<_> = self.bpf.map_mut("sockets").expect("map").try_into().expect("xskmap");
        map.set(queue, socket.as_raw_fd(), 0).expect("update");
    }
}

static OBJECT: OnceLock<Vec<u8>> = OnceLock::new();

fn object() -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/io_lab/redirect.bpf.c");
    let output = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-c", "-o", "-"])
        .arg(source)
        .stderr(Stdio::inherit())
        .output()
        .expect("clang, which the build needs anyway");
    assert!(output.status.success(), "clang");
    output.stdout
}
