//! The mirror, our routes and the announcer against a real kernel, each test in network namespaces
//! of its own. Needs root; skipped, with the reason printed, without. Guards against believing
//! netlink to work as documented: what is asserted is what `ip` sees.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use penstock_dataplane::neighbor::announce::{Announcer, Settings};
use penstock_dataplane::neighbor::host::HostFacts;
use penstock_dataplane::neighbor::mirror::{Hops, Mirror};
use penstock_dataplane::neighbor::routes::OwnRoutes;
use penstock_dataplane::neighbor::sockets::Announcements;
use penstock_dataplane::neighbor::{Mac, Vlan, VlanTag, format_mac};
use penstock_dataplane::verdict::PortId;
use rustix::event::{PollFd, PollFlags, poll};

const PATIENCE: Duration = Duration::from_secs(20);

/// A box with two ports, `pnb0` and `pnb1`, each with a peer host at its other end (`peer0` and
/// `peer1` inside the namespaces). Removed when dropped.
struct Lab {
    tag: &'static str,
}

impl Lab {
    /// `None`, with the reason printed, where namespaces are not to be had.
    fn new(tag: &'static str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root for network namespaces");
            return None;
        }
        let lab = Self { tag };
        lab.clean();
        for name in ["box", "p0", "p1"] {
            let made = Command::new("ip").args(["netns", "add", &lab.ns(name)]).output();
            if !made.is_ok_and(|output| output.status.success()) {
                eprintln!("skipped: `ip netns add` fails here");
                return None;
            }
            lab.ip(name, "link set lo up");
        }
        for port in ["0", "1"] {
            let peer_ns = lab.ns(&format!("p{port}"));
            lab.ip("box", &format!("link add pnb{port} type veth peer name peer{port} netns {peer_ns}"));
            lab.ip("box", &format!("link set pnb{port} up"));
            lab.ip("box", &format!("addr add 10.7{port}.0.1/24 dev pnb{port}"));
            lab.ip("box", &format!("addr add fd07:{port}::1/64 dev pnb{port} nodad"));
            lab.ip(&format!("p{port}"), &format!("link set peer{port} up"));
            lab.ip(&format!("p{port}"), &format!("addr add 10.7{port}.0.2/24 dev peer{port}"));
            lab.ip(&format!("p{port}"), &format!("addr add fd07:{port}::2/64 dev peer{port} nodad"));
        }
        Some(lab)
    }

    fn ns(&self, name: &str) -> String {
        // Two checkouts may test on one machine.
        format!("pnb{}-{}-{name}", std::process::id(), self.tag)
    }

    fn try_ip(&self, name: &str, arguments: &str) -> Result<String, String> {
        let output = Command::new("ip").args(["-n", &self.ns(name)]).args(arguments.split(' ')).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    #[track_caller]
    fn ip(&self, name: &str, arguments: &str) -> String {
        self.try_ip(name, arguments).unwrap_or_else(|error| panic!("ip {arguments}: {error}"))
    }

    fn mac(&self, name: &str, link: &str) -> Mac {
        let text = self.ip(name, &format!("-o link show {link}"));
        let text = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// Runs `test` on a thread inside the namespace.
    fn inside<T: Send>(&self, name: &str, test: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(format!("/run/netns/{}", self.ns(name))).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                use std::os::fd::AsFd;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                test()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn clean(&self) {
        for name in ["box", "p0", "p1"] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(name)]).output();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.clean();
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn both_ports() -> Vec<String> {
    vec!["pnb0".into(), "pnb1".into()]
}

/// Serves the mirror as housekeeping would, until `done` or out of patience.
#[track_caller]
fn wait_for(mirror: &mut Mirror, what: &str, done: impl Fn(&Hops) -> bool) {
    let start = Instant::now();
    while !done(&mirror.hops()) {
        assert!(start.elapsed() < PATIENCE, "{what} did not come: {:#?} {:?}", mirror.hops(), mirror.notices());
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let readable = poll(&mut [PollFd::from_borrowed_fd(mirror.fd(), PollFlags::IN)], Some(&timeout)).unwrap() > 0;
        if readable {
            mirror.on_readable();
        }
        mirror.poll(Instant::now());
    }
}

fn has(hops: &Hops, target: &str, mac: Mac) -> bool {
    hops.targets[&address(target)].is_some_and(|hop| hop.dst == mac)
}

#[test]
fn privileged_mirror_follows_neighbours_and_links() {
    let Some(lab) = Lab::new("nb") else { return };
    lab.inside("box", || {
        let mut mirror = Mirror::open(&both_ports()).unwrap();
        mirror.want(&[address("10.70.0.2"), address("fd07:0::2"), address("10.71.0.2")]);
        let (mac0, mac1) = (lab.mac("p0", "peer0"), lab.mac("p1", "peer1"));
        wait_for(&mut mirror, "every neighbour", |hops| {
            has(hops, "10.70.0.2", mac0) && has(hops, "fd07:0::2", mac0) && has(hops, "10.71.0.2", mac1)
        });
        let hops = mirror.hops();
        let hop = hops.targets[&address("10.71.0.2")].unwrap();
        assert_eq!((hop.port, hop.src, hop.mtu), (PortId(1), lab.mac("box", "pnb1"), 1500));
        assert!(lab.ip("box", "neigh show 10.70.0.2").contains("managed"), "the kernel keeps it fresh");
        assert_eq!(mirror.notices(), [] as [String; 0]);

        let new_mac: Mac = [0x02, 0, 0, 0, 0x77, 0x77];
        lab.ip("p0", &format!("link set peer0 address {}", format_mac(new_mac)));
        lab.ip("box", "neigh flush dev pnb0");
        wait_for(&mut mirror, "the new MAC", |hops| has(hops, "10.70.0.2", new_mac));
        assert!(lab.ip("box", "neigh show 10.70.0.2").contains("managed"), "managed again after a flush");

        lab.ip("p0", "link set peer0 down");
        wait_for(&mut mirror, "the loss of the link", |hops| {
            hops.targets[&address("10.70.0.2")].is_none() && !hops.links[0].up && hops.links[1].up
        });
        assert!(has(&mirror.hops(), "10.71.0.2", mac1), "the other port goes on");
        lab.ip("p0", "link set peer0 up");
        wait_for(&mut mirror, "the link's return", |hops| has(hops, "10.70.0.2", new_mac));

        lab.ip("box", "link set pnb0 mtu 1400");
        wait_for(&mut mirror, "the MTU", |hops| hops.targets[&address("10.70.0.2")].is_some_and(|hop| hop.mtu == 1400));
    });
}

#[test]
fn privileged_mirror_gives_back_what_it_took() {
    let Some(lab) = Lab::new("rel") else { return };
    lab.inside("box", || {
        let mut mirror = Mirror::open(&both_ports()).unwrap();
        let mac1 = lab.mac("p1", "peer1");
        lab.ip("box", &format!("neigh add 10.71.0.9 dev pnb1 lladdr {} nud permanent", format_mac(mac1)));
        mirror.want(&[address("10.70.0.2"), address("10.71.0.2"), address("10.71.0.9")]);
        wait_for(&mut mirror, "all three", |hops| hops.targets.values().all(Option::is_some));
        assert!(lab.ip("box", "neigh show 10.71.0.9").contains("PERMANENT"), "an administrator's entry stays");

        mirror.want(&[address("10.71.0.2")]);
        wait_for(&mut mirror, "the smaller list", |hops| hops.targets.len() == 1);
        assert!(!lab.ip("box", "neigh show 10.70.0.2").contains("managed"));
        assert!(lab.ip("box", "neigh show 10.71.0.2").contains("managed"));

        // Killed, not stopped: the next run finds the entry and drops it when it is not wanted.
        drop(mirror);
        let mut mirror = Mirror::open(&both_ports()).unwrap();
        assert!(lab.ip("box", "neigh show 10.71.0.2").contains("managed"));
        mirror.want(&[]);
        assert!(!lab.ip("box", "neigh show 10.71.0.2").contains("managed"));

        mirror.want(&[address("10.70.0.2")]);
        mirror.release().unwrap();
        assert!(!lab.ip("box", "neigh show 10.70.0.2").contains("managed"));
    });
}

#[test]
fn privileged_mirror_follows_routes() {
    let Some(lab) = Lab::new("rt") else { return };
    lab.inside("box", || {
        let mut mirror = Mirror::open(&both_ports()).unwrap();
        let (mac0, mac1) = (lab.mac("p0", "peer0"), lab.mac("p1", "peer1"));
        let node = "192.168.50.5";
        mirror.want(&[address(node), address("10.70.0.1")]);
        assert_eq!(mirror.hops().targets[&address(node)], None);
        assert_eq!(
            mirror.notices(),
            ["node 10.70.0.1 is one of the box's own addresses", "node 192.168.50.5 has no route"]
        );

        lab.ip("box", "route add 192.168.50.0/24 via 10.70.0.2");
        wait_for(&mut mirror, "the first gateway", |hops| has(hops, node, mac0));
        lab.ip("box", "route replace 192.168.50.0/24 via 10.71.0.2");
        wait_for(&mut mirror, "the second gateway", |hops| has(hops, node, mac1));
        lab.ip("box", "route replace 192.168.50.0/24 via inet6 fd07:0::2 mtu 1300");
        wait_for(&mut mirror, "a gateway of the other family", |hops| {
            has(hops, node, mac0) && hops.targets[&address(node)].is_some_and(|hop| hop.mtu == 1300)
        });
        lab.ip("box", "route replace unreachable 192.168.50.5/32");
        wait_for(&mut mirror, "the refusal", |hops| hops.targets[&address(node)].is_none());
        assert!(mirror.notices().iter().any(|notice| notice.starts_with("node 192.168.50.5 ")));

        lab.ip("box", "route add default via 10.71.0.2");
        lab.ip("box", "-6 route add default via fd07:0::2");
        wait_for(&mut mirror, "both defaults", |hops| {
            hops.default_v4.is_some_and(|hop| hop.dst == mac1) && hops.default_v6.is_some_and(|hop| hop.dst == mac0)
        });
        lab.ip("box", "rule add to 10.70.0.0/24 unreachable priority 5");
        let count = mirror.notices().len();
        mirror.want(&[address(node), address("10.70.0.2")]);
        assert_eq!(mirror.notices().len(), count, "{:?}", mirror.notices());
        lab.ip("box", "rule del priority 5");
        wait_for(&mut mirror, "the end of the rule", |hops| has(hops, "10.70.0.2", mac0));
        lab.ip("box", "route del default");
        wait_for(&mut mirror, "the loss of the default", |hops| hops.default_v4.is_none());
    });
}

#[test]
fn privileged_mirror_says_which_link_is_no_port() {
    let Some(lab) = Lab::new("np") else { return };
    lab.inside("box", || {
        let mut mirror = Mirror::open(&["pnb0".to_owned(), "nosuch0".to_owned()]).unwrap();
        mirror.want(&[address("10.71.0.2")]);
        assert_eq!(mirror.hops().targets[&address("10.71.0.2")], None);
        assert_eq!(
            mirror.notices(),
            ["node 10.71.0.2 is routed through pnb1, which is not a [[port]]", "port nosuch0 does not exist"]
        );
        assert_eq!(mirror.hops().links.len(), 1);
    });
}

#[test]
fn privileged_mirror_reads_anew_when_events_were_lost() {
    let Some(lab) = Lab::new("res") else { return };
    lab.inside("box", || {
        let mut mirror = Mirror::open(&both_ports()).unwrap();
        mirror.want(&[address("10.70.0.2")]);
        let last: Mac = [0x02, 0, 0, 0, 0x22, 0x22];
        // More events than the socket's buffer holds, unread.
        let mut batch = String::new();
        for turn in 0..6000 {
            batch.push_str(&format!("neigh replace 10.71.0.77 dev pnb1 lladdr 02:00:00:00:11:{:02x}\n", turn % 251));
        }
        batch.push_str(&format!("neigh replace 10.70.0.2 dev pnb0 lladdr {} nud permanent\n", format_mac(last)));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch).unwrap();
        lab.ip("box", &format!("-batch {}", file.path().display()));
        mirror.on_readable();
        assert_eq!(mirror.resyncs(), 1, "the kernel was expected to drop events");
        assert!(has(&mirror.hops(), "10.70.0.2", last));
        wait_for(&mut mirror, "the same as before", |hops| has(hops, "10.70.0.2", last));
    });
}

#[test]
fn privileged_unused_vips_are_unreachable() {
    let Some(lab) = Lab::new("own") else { return };
    lab.inside("box", || {
        lab.ip("box", "route add default via 10.70.0.2");
        let (mut routes, mut now) = (OwnRoutes::open().unwrap(), Instant::now());
        let ranges = ["203.0.113.0/28", "10.71.0.0/24", "2001:db8:7::/64"].map(|range| range.parse().unwrap());
        routes.want(&ranges, None, now);
        routes.poll(now);
        let refused = lab.try_ip("box", "route get 203.0.113.5").unwrap_err();
        assert!(refused.contains("unreachable") || refused.contains("No route to host"), "{refused}");
        lab.try_ip("box", "-6 route get 2001:db8:7::5").unwrap_err();
        assert_eq!(routes.notices().len(), 1);
        assert!(routes.notices()[0].starts_with("VIP range 10.71.0.0/24 is a network"), "{:?}", routes.notices());

        lab.ip("box", "link add pnbtap type veth peer name pnbtap2");
        lab.ip("box", "link set pnbtap up");
        lab.ip("box", "link set pnbtap2 up");
        let facts = HostFacts::read().unwrap();
        let tap = facts.interfaces.iter().find(|interface| interface.name == "pnbtap").unwrap().ifindex;
        let vips = [address("203.0.113.5"), address("2001:db8:7::5")];
        routes.want(&ranges, Some((tap, &vips)), now);
        routes.poll(now);
        let is_there = |text: &str| lab.ip("box", text).contains("dev pnbtap");
        assert!(is_there("route get 203.0.113.5") && is_there("-6 route get 2001:db8:7::5"));

        // Taken away by somebody who knows of no foreign routes, or by its link: the mirror hears, and it is put back.
        let mut mirror = Mirror::open(&both_ports()).unwrap();
        let mut lost = |lab: &Lab, how: &[&str]| {
            how.iter().for_each(|how| drop(lab.ip("box", how)));
            let deadline = Instant::now() + Duration::from_secs(10);
            while !mirror.take_own_lost() {
                assert!(Instant::now() < deadline, "{how:?}");
                mirror.on_readable();
            }
        };
        for how in [
            &["route del unreachable 203.0.113.0/28"][..],
            &["-6 route del 2001:db8:7::5 dev pnbtap"],
            &["link set pnbtap down", "link set pnbtap up"],
        ] {
            let before = lab.ip("box", "route show proto 112") + &lab.ip("box", "-6 route show proto 112");
            lost(&lab, how);
            routes.poll(now);
            routes.doubt(now);
            now += Duration::from_secs(2);
            routes.poll(now);
            let after = lab.ip("box", "route show proto 112") + &lab.ip("box", "-6 route show proto 112");
            assert_eq!((after, routes.notices().len()), (before, 1), "{how:?}");
        }
        // Refused: in words that say what to do, and tried again.
        let ipv6 = |off| std::fs::write("/proc/sys/net/ipv6/conf/pnbtap/disable_ipv6", off).unwrap();
        for (refuse, allow, says) in [
            (
                &(|| drop(lab.ip("box", "link set pnbtap down"))) as &dyn Fn(),
                &(|| ()) as &dyn Fn(),
                "203.0.113.5 by pnbtap",
            ),
            (&|| ipv6("1"), &|| ipv6("0"), "`sysctl net.ipv6.conf.pnbtap.disable_ipv6=0`"),
        ] {
            refuse();
            routes.doubt(now);
            now += Duration::from_secs(2);
            routes.poll(now);
            let notice = routes.notices().last().unwrap();
            assert!(notice.contains(says) && notice.contains("`ip link set pnbtap up`"), "{notice}");
            lab.ip("box", "link set pnbtap up");
            allow();
            now += Duration::from_secs(2);
            routes.poll(now);
            assert_eq!(routes.notices().len(), 1, "{:?}", routes.notices());
        }

        // Without a word as well, after a while.
        lab.ip("box", "route flush proto 112");
        routes.poll(now + Duration::from_secs(29));
        assert!(!is_there("route get 203.0.113.5"));
        routes.poll(now + Duration::from_secs(30));
        assert!(is_there("route get 203.0.113.5"));

        // Killed: the next run finds its routes by their mark, keeps the wanted, removes the rest.
        drop(routes);
        let mut routes = OwnRoutes::open().unwrap();
        routes.want(&ranges[..1], None, now);
        routes.poll(now);
        let left = lab.ip("box", "route show proto 112");
        assert_eq!(left.lines().count(), 1, "{left}");
        assert!(left.contains("unreachable 203.0.113.0/28"), "{left}");
        assert_eq!(lab.ip("box", "-6 route show proto 112"), "");
        routes.clear().unwrap();
        assert_eq!(lab.ip("box", "route show proto 112"), "");
        assert!(lab.ip("box", "route get 203.0.113.5").contains("via 10.70.0.2"));
    });
}

/// What a dataplane that was stopped with `--keep`, or killed, leaves: found by its mark.
#[test]
fn privileged_detach_removes_routes_and_neighbours_unless_a_dataplane_runs() {
    let Some(lab) = Lab::new("det") else { return };
    let run_dir = tempfile::tempdir().unwrap();
    let detach = || {
        let output = Command::new("ip")
            .args(["netns", "exec", &lab.ns("box"), env!("CARGO_BIN_EXE_penstock-dataplane"), "detach", "--run-dir"])
            .arg(run_dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let left = || {
        let routes = ["", "-6 "].map(|family| lab.ip("box", &format!("{family}route show proto 112")).lines().count());
        (routes, lab.ip("box", "neigh show").matches("managed").count())
    };
    lab.inside("box", || {
        let (mut routes, now) = (OwnRoutes::open().unwrap(), Instant::now());
        routes.want(&["203.0.113.0/28", "2001:db8:7::/64"].map(|range| range.parse().unwrap()), None, now);
        routes.poll(now);
        Mirror::open(&both_ports()).unwrap().want(&[address("10.70.0.2"), address("10.71.0.2")]);
    });
    lab.ip("box", "route add 198.51.100.0/24 via 10.70.0.2");
    assert_eq!(left(), ([1, 1], 2));

    let lock = std::fs::File::create(run_dir.path().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(detach(), "nothing of Penstock's was there\n");
    assert_eq!(left(), ([1, 1], 2), "they are the running one's");

    drop(lock);
    assert_eq!(detach(), "2 routes removed\n2 neighbour entries removed\n");
    assert_eq!(left(), ([0, 0], 0));
    assert!(lab.ip("box", "route show").contains("198.51.100.0/24"), "others' stay");
    assert_eq!(detach(), "nothing of Penstock's was there\n");
}

#[test]
fn privileged_host_facts() {
    let Some(lab) = Lab::new("hf") else { return };
    lab.inside("box", || {
        lab.ip("box", "route add default via 10.70.0.2");
        lab.ip("box", "route add 192.0.2.0/24 nexthop via 10.70.0.3 nexthop via 10.71.0.3");
        lab.ip("box", "-6 route add default via fd07:0::2");
        lab.ip("box", "link add pnbq numtxqueues 4 numrxqueues 4 type veth peer name pnbq2");
        let facts = HostFacts::read().unwrap();
        assert!(facts.addresses.contains(&("pnb0".to_owned(), "10.70.0.1/24".parse().unwrap())));
        assert!(facts.addresses.contains(&("pnb1".to_owned(), "fd07:1::1/64".parse().unwrap())));
        let gateways = ["10.70.0.2", "10.70.0.3", "10.71.0.3", "fd07:0::2"].map(address);
        assert_eq!(facts.gateways, gateways);
        let queues = facts.interfaces.iter().find(|interface| interface.name == "pnbq").unwrap().rx_queues;
        assert_eq!(queues, 4);
        let (low, high) = facts.local_ports.unwrap();
        assert!(low > 1024 && low < high);
    });
}

/// Serves the announcer as housekeeping would, until `done` or out of patience.
#[track_caller]
fn announce_until(announcements: &mut Announcements, what: &str, done: impl Fn(&Announcements) -> bool) {
    let start = Instant::now();
    while !done(announcements) {
        assert!(start.elapsed() < PATIENCE, "{what} did not come: {:?}", announcements.notices());
        announcements.on_readable();
        announcements.poll(Instant::now());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn announcements(lab: &Lab) -> Announcements {
    let mirror = Mirror::open(&both_ports()).unwrap();
    let mut announcements = Announcements::new(Announcer::new(Settings::quick(), 3));
    announcements.set_links(&mirror.hops().links);
    // What earlier traffic left in the peer's caches would hide what the test asserts.
    lab.ip("p0", "neigh flush dev peer0");
    announcements
}

#[test]
fn privileged_announcements_reach_the_neighbours_caches() {
    let Some(lab) = Lab::new("ann") else { return };
    let vips = [address("10.70.0.50"), address("fd07:0::50")];
    lab.inside("box", || {
        let mut announcements = announcements(&lab);
        // The peer knew the VIPs at another box, which failed.
        for vip in vips {
            lab.ip("p0", &format!("neigh replace {vip} dev peer0 lladdr 02:00:00:00:99:99 nud stale"));
        }
        announcements.set(&vips.map(|vip| (PortId(0), vip)));
        announce_until(&mut announcements, "the claims", |this| this.claimed().count() == 2);
        let mac = format_mac(lab.mac("box", "pnb0"));
        announce_until(&mut announcements, "the new address in the peer's caches", |_| {
            vips.iter().all(|vip| lab.ip("p0", &format!("neigh show {vip}")).contains(&mac))
        });
        assert_eq!(announcements.notices(), [] as [String; 0]);
    });
}

#[test]
fn privileged_addresses_in_use_are_not_claimed() {
    for resumed in [false, true] {
        addresses_in_use_are_not_claimed(resumed);
    }
}

/// `resumed`: as after a restart, when all are answered for until others are found to have them.
fn addresses_in_use_are_not_claimed(resumed: bool) {
    let Some(lab) = Lab::new("dad") else { return };
    lab.ip("p0", "addr add 10.70.0.50/24 dev peer0");
    lab.ip("p0", "addr add fd07:0::50/64 dev peer0 nodad");
    let taken = [address("10.70.0.50"), address("fd07:0::50")];
    let free = address("10.70.0.51");
    lab.inside("box", || {
        let mut announcements = announcements(&lab);
        let mac = format_mac(lab.mac("p0", "peer0"));
        let wanted = [taken[0], taken[1], free].map(|vip| (PortId(0), vip));
        announcements.set(&wanted);
        if resumed {
            announcements.resume(&wanted);
            assert_eq!(announcements.claimed().count(), 3);
        }
        announce_until(&mut announcements, "the free address and the refusals", |this| {
            this.claimed().eq([(PortId(0), free)]) && this.notices().len() == 2
        });
        for (notice, vip) in announcements.notices().iter().zip(taken) {
            assert!(notice.starts_with(&format!("{vip} is not announced on pnb0: {mac} has it")), "{notice}");
        }
        // The other host leaves; the box takes over by itself.
        lab.ip("p0", "addr del 10.70.0.50/24 dev peer0");
        lab.ip("p0", "addr del fd07:0::50/64 dev peer0");
        announce_until(&mut announcements, "the freed addresses", |this| this.claimed().count() == 3);
    });
}

#[test]
fn privileged_groups_are_joined_and_left() {
    let Some(lab) = Lab::new("mld") else { return };
    lab.inside("box", || {
        // The calling thread's namespace, which is not the process's.
        let groups = || std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
        let member =
            || groups().lines().any(|line| line.contains("pnb0") && line.contains("ff0200000000000000000001ffcdef01"));
        let mut announcements = announcements(&lab);
        assert!(!member());
        announcements.set(&[(PortId(0), address("fd07:0::abcd:ef01")), (PortId(0), address("10.70.0.50"))]);
        announcements.poll(Instant::now());
        assert!(member(), "{}", groups());
        announcements.set(&[]);
        announcements.poll(Instant::now());
        assert!(!member(), "{}", groups());

        // More groups than one socket's memory holds.
        let many: Vec<_> = (0..3000_u32).map(|n| (PortId(1), address(&format!("fd07:1::77:{n:x}")))).collect();
        announcements.set(&many);
        announcements.poll(Instant::now());
        let joined = groups();
        let missing = (0..3000_u32).find(|n| !joined.contains(&format!("ff0200000000000000000001ff77{n:04x}")));
        assert_eq!(missing, None, "{:?}", announcements.notices());
    });
}

/// A VLAN's interface is a link of its own to the kernel, and to the switch behind it, which forwards solicitations
/// only to who has joined in that VLAN. (Another veth stands in for it: the tags are the kernel's business.)
#[test]
fn privileged_a_snooping_switch_learns_the_groups_in_each_vlan() {
    let Some(lab) = Lab::new("vmld") else { return };
    lab.ip("p1", "link add br0 type bridge mcast_snooping 1 mcast_querier 1");
    lab.ip("p1", "link set peer1 master br0");
    lab.ip("p1", "link set br0 up");
    let [first, second] = [address("fd07:0::abcd:ef01"), address("fd07:0::abcd:ef02")];
    lab.inside("box", || {
        let learned = |group: &str| {
            let text = Command::new("bridge").args(["-n", &lab.ns("p1"), "mdb", "show"]).output().unwrap().stdout;
            String::from_utf8_lossy(&text).lines().any(|line| line.contains("peer1") && line.contains(group))
        };
        let mirror = Mirror::open(&both_ports()).unwrap();
        let [port, vlan] = [0, 1].map(|at: usize| mirror.hops().links[at].clone());
        let tags = [Some(VlanTag { ethertype: 0x8100, id: 7 }), None];
        let vlans = [Vlan { port: port.port, tags, ifindex: vlan.ifindex }];
        let mut announcements = Announcements::new(Announcer::new(Settings::quick(), 3));
        announcements.set_links(&[port]);
        // One group before the VLAN is there, one behind it.
        announcements.set(&[(PortId(0), first)]);
        announcements.poll(Instant::now());
        announcements.set_vlans(&vlans);
        announcements.poll(Instant::now());
        announcements.set(&[(PortId(0), first), (PortId(0), second)]);
        announce_until(&mut announcements, "the groups in the switch's table", |_| {
            learned("ff02::1:ffcd:ef01") && learned("ff02::1:ffcd:ef02")
        });
        assert_eq!(announcements.notices(), [] as [String; 0]);
        let member = |group: &str| {
            let groups = std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
            groups.lines().any(|line| line.contains("pnb1") && line.contains(group))
        };
        announcements.set(&[(PortId(0), second)]);
        announcements.poll(Instant::now());
        assert!(!member("ffcdef01") && member("ffcdef02"));
        // Gone, and another in its place.
        announcements.set_vlans(&[]);
        announcements.poll(Instant::now());
        lab.ip("box", "link del pnb1");
        lab.ip("box", &format!("link add pnb1 index {} type veth peer name pnb9", vlan.ifindex));
        lab.ip("box", "link set pnb1 up");
        announcements.set_vlans(&vlans);
        announcements.poll(Instant::now());
        assert!(member("ffcdef02"));
        announcements.set(&[]);
        announcements.poll(Instant::now());
        assert!(!member("ffcdef02"));
        assert_eq!(announcements.notices(), [] as [String; 0]);
    });
}
