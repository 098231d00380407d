//! One network interface of the config, as a poll-mode dataplane needs it.

use penstock_configs::file::{PortConfig, WorkersConfig, XdpMode, ZeroCopy};

use super::Finding;
use super::machine::Machine;

/// Ahead of each packet in its frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
/// Ethernet with two VLAN tags.
const LINK_HEADERS: u32 = 14 + 8;
/// The dataplane's `io::LARGEST_MTU`.
const LARGEST_MTU: u32 = 9216;

/// Drivers with native XDP and zero-copy AF_XDP in Debian 12's kernel and newer.
const ZERO_COPY: &[&str] = &["i40e", "ice", "ixgbe", "igc", "igb", "mlx5_core", "stmmac", "gve", "virtio_net"];
/// Sysfs does not say what it is: a dummy, or a veth whose peer has its number by chance.
const VIRTUAL: &str = "virtual";
/// Native XDP, AF_XDP by copying.
const NATIVE: &[&str] = &[
    "veth",
    "tun",
    "bnxt_en",
    "ena",
    "ixgbevf",
    "iavf",
    "nfp",
    "qede",
    "sfc",
    "thunder",
    "tg3",
    "mlx4_en",
    "mvneta",
    "hv_netvsc",
    "xen-netfront",
    "vmxnet3",
    "dpaa2-eth",
    "enetc",
    "atlantic",
];

/// What the dataplane has as ports for it: a bond's members in its place.
pub(super) fn served_as(machine: &Machine, port: &PortConfig) -> Vec<PortConfig> {
    let members = machine.read(&format!("/sys/class/net/{}/bonding/slaves", port.interface)).unwrap_or_default();
    if members.is_empty() {
        return vec![port.clone()];
    }
    members.split_whitespace().map(|member| PortConfig { interface: member.to_owned(), ..port.clone() }).collect()
}

/// `served`: how many queues of it a dataplane serves that runs.
pub(super) fn check(
    machine: &Machine,
    port: &PortConfig,
    workers: &WorkersConfig,
    served: Option<u16>,
) -> Vec<Finding> {
    let name = &port.interface;
    let base = format!("/sys/class/net/{name}");
    if !machine.exists(&base) {
        let there = machine.list("/sys/class/net").into_iter().filter(|other| other != "lo").collect::<Vec<_>>();
        return vec![Finding::bad(name, "no such interface", format!("this machine has: {}", there.join(", ")))];
    }
    if machine.exists(&format!("{base}/bonding")) {
        return vec![Finding::bad(name, "the bond has no members", format!("ip link set INTERFACE master {name}"))];
    }
    let mut findings = vec![link(machine, name, &base), driver(machine, port, &base)];
    findings.push(queues(machine, port, workers, served));
    findings.push(mtu(machine, name, &base, workers));
    findings.extend(checksums(machine, name, &base));
    findings.push(reverse_path(machine, name));
    findings.extend(numa(machine, name, &base, workers));
    findings
}

fn link(machine: &Machine, name: &str, base: &str) -> Finding {
    // veth and tap say "unknown" while they carry packets.
    match machine.read(&format!("{base}/operstate")).as_deref() {
        Some("up" | "unknown") => Finding::good(name, "link is up"),
        state => Finding::bad(
            name,
            format!("link is {}", state.unwrap_or("unreadable")),
            format!("ip link set {name} up, and look at the cable or the peer"),
        ),
    }
}

/// A NIC's driver; what has no device below it is told apart by what sysfs says of it.
fn driver_name(machine: &Machine, base: &str) -> String {
    if let Some(driver) = machine.link_name(&format!("{base}/device/driver")) {
        return driver;
    }
    for (file, kind) in [("tun_flags", "tun"), ("bridge", "bridge")] {
        if machine.exists(&format!("{base}/{file}")) {
            return kind.to_owned();
        }
    }
    let (own, peer) = (machine.number(&format!("{base}/ifindex")), machine.number(&format!("{base}/iflink")));
    // The peer, in another namespace, may have the same number.
    if own == peer { VIRTUAL.to_owned() } else { "veth".to_owned() }
}

fn driver(machine: &Machine, port: &PortConfig, base: &str) -> Finding {
    let name = &port.interface;
    let driver = driver_name(machine, base);
    if ZERO_COPY.contains(&driver.as_str()) {
        return Finding::good(name, format!("driver {driver}: native XDP, zero-copy where the hardware allows"));
    }
    let native = NATIVE.contains(&driver.as_str());
    if port.zero_copy == ZeroCopy::Require {
        return Finding::bad(
            name,
            format!("driver {driver} has no zero-copy AF_XDP, and the file requires it"),
            "set zero_copy = \"auto\", or use another NIC",
        );
    }
    if native {
        return Finding::good(name, format!("driver {driver}: native XDP; packets are copied, about 0.4 us each"));
    }
    if port.xdp == XdpMode::Native {
        return Finding::warn(
            name,
            format!("driver {driver} is not known to have native XDP, and the file asks for it"),
            "set xdp = \"auto\" if the attach is refused",
        );
    }
    if driver == VIRTUAL {
        return Finding::warn(
            name,
            "a virtual interface, sysfs does not say of which kind",
            "a veth has native XDP; for others generic mode serves, at a fraction of the speed (ip -details link)",
        );
    }
    let under = if driver == "bridge" { "; name its member interfaces instead" } else { "" };
    Finding::warn(
        name,
        format!("driver {driver} is not known to have native XDP"),
        format!("generic mode serves, at a fraction of the speed{under}"),
    )
}

fn queues(machine: &Machine, port: &PortConfig, workers: &WorkersConfig, served: Option<u16>) -> Finding {
    let name = &port.interface;
    let have = machine.queues(name);
    let asked = port.queues.unwrap_or(have);
    let more = format!("ethtool -L {name} combined N (a veth: ip link add ... numrxqueues N numtxqueues N)");
    if asked > have {
        return Finding::bad(name, format!("has {have} receive queues, and the file wants {asked}"), more);
    }
    if workers.count.is_some_and(|count| count > asked) {
        let count = workers.count.unwrap_or_default();
        return Finding::bad(name, format!("{asked} queues can not feed {count} workers: each needs one"), more);
    }
    if asked < have {
        return Finding::warn(
            name,
            format!("{asked} of {have} receive queues are served; packets to VIPs on the others reach the kernel"),
            format!("leave out `queues`, or ethtool -L {name} combined {asked}"),
        );
    }
    if let Some(served) = served.filter(|served| *served < have) {
        return Finding::warn(
            name,
            format!("{served} of {have} receive queues are served by the dataplane that runs: it found no more"),
            format!("restart it, or ethtool -L {name} combined {served}"),
        );
    }
    Finding::good(name, format!("all {have} receive queues are served"))
}

fn mtu(machine: &Machine, name: &str, base: &str, workers: &WorkersConfig) -> Finding {
    let Some(mtu) = machine.number(&format!("{base}/mtu")).and_then(|mtu| u32::try_from(mtu).ok()) else {
        return Finding::warn(name, "its MTU can not be read", "look at `ip link`");
    };
    let room = workers.frame_size.saturating_sub(HEADROOM);
    if mtu + LINK_HEADERS <= room {
        return Finding::good(name, format!("MTU {mtu} fits frames of {} bytes", workers.frame_size));
    }
    if mtu > LARGEST_MTU {
        return Finding::bad(
            name,
            format!("MTU {mtu} is beyond the largest the box takes, {LARGEST_MTU}"),
            format!("ip link set {name} mtu {LARGEST_MTU}, on the nodes and the router too"),
        );
    }
    let frames = (mtu + LINK_HEADERS).div_ceil(room);
    let several = format!("MTU {mtu}: packets in up to {frames} frames of {} bytes (multi-buffer)", workers.frame_size);
    match super::host::kernel_version(machine) {
        (0, _) => return Finding::warn(name, several, "Linux 6.6 or newer; this kernel's version can not be read"),
        version if version >= super::host::SCATTERS => return Finding::good(name, several),
        _ => {}
    }
    let remedy = if workers.frame_size < 4096 && mtu + LINK_HEADERS <= 4096 - HEADROOM {
        "set workers.frame_size = 4096, or use Linux 6.6 or newer".to_owned()
    } else {
        format!(
            "Linux 6.6 or newer; or ip link set {name} mtu {}, on the nodes and the router too",
            4096 - HEADROOM - LINK_HEADERS
        )
    };
    Finding::bad(
        name,
        format!(
            "MTU {mtu} does not fit: a frame of {} holds packets of {}, and this kernel has no packets in several",
            workers.frame_size,
            room - LINK_HEADERS
        ),
        remedy,
    )
}

/// A virtual peer hands over packets whose checksum "the hardware" was to fill in; no hardware will.
fn checksums(machine: &Machine, name: &str, base: &str) -> Option<Finding> {
    let driver = driver_name(machine, base);
    matches!(driver.as_str(), "veth" | "tun" | "virtio_net").then(|| {
        Finding::warn(
            name,
            format!("{driver}: the peer may send packets without their checksum, and TCP through the box then hangs"),
            "on the other end (the peer veth, the VM's host or guest): ethtool -K INTERFACE tx off",
        )
    })
}

fn reverse_path(machine: &Machine, name: &str) -> Finding {
    let of = |which: &str| machine.number(&format!("/proc/sys/net/ipv4/conf/{which}/rp_filter")).unwrap_or(0);
    // The kernel takes the larger of the two (ip-sysctl).
    match of("all").max(of(name)) {
        1 => Finding::warn(
            name,
            "rp_filter is strict: packets the dataplane gives back to the kernel may be discarded",
            format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2"),
        ),
        _ => Finding::good(name, "rp_filter does not stand in the way"),
    }
}

fn numa(machine: &Machine, name: &str, base: &str, workers: &WorkersConfig) -> Option<Finding> {
    let node: i32 = machine.read(&format!("{base}/device/numa_node"))?.parse().ok()?;
    let near = super::machine::cpu_list(&machine.read(&format!("/sys/devices/system/node/node{node}/cpulist"))?);
    let far: Vec<String> = workers.cores.iter().filter(|core| !near.contains(core)).map(ToString::to_string).collect();
    if far.is_empty() {
        return None;
    }
    Some(Finding::warn(
        name,
        format!("is on NUMA node {node}, and cores {} are not", far.join(", ")),
        format!("choose workers.cores of node {node}: {near:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use penstock_configs::status::{PortStatus, Status};

    use super::super::Grade;
    use super::*;

    fn port(toml: &str) -> PortConfig {
        serde_json::from_str(toml).expect("a port")
    }

    fn veth(root: &Path, queues: u16, mtu: u32) {
        named_veth(root, "v0", queues, mtu);
    }

    fn named_veth(root: &Path, name: &str, queues: u16, mtu: u32) {
        let base = root.join("sys/class/net").join(name);
        for queue in 0..queues {
            fs::create_dir_all(base.join(format!("queues/rx-{queue}"))).expect("made");
        }
        for (file, text) in [("operstate", "up"), ("ifindex", "7"), ("iflink", "8"), ("mtu", &mtu.to_string())] {
            fs::write(base.join(file), format!("{text}\n")).expect("written");
        }
    }

    fn grades(root: &Path, port: &PortConfig, workers: &WorkersConfig) -> Vec<(Grade, String)> {
        running(root, port, workers, None)
    }

    fn running(root: &Path, port: &PortConfig, workers: &WorkersConfig, served: Option<u16>) -> Vec<(Grade, String)> {
        let findings = check(&Machine::at(root), port, workers, served);
        findings.into_iter().map(|finding| (finding.grade, finding.text)).collect()
    }

    fn has(findings: &[(Grade, String)], grade: Grade, text: &str) -> bool {
        findings.iter().any(|(found, said)| *found == grade && said.contains(text))
    }

    #[test]
    fn a_veth_is_told_of_its_peers_checksums() {
        let root = tempfile::tempdir().expect("a directory");
        veth(root.path(), 2, 1500);
        let findings = grades(root.path(), &port(r#"{"interface": "v0"}"#), &WorkersConfig::default());
        assert!(has(&findings, Grade::Warn, "without their checksum"), "{findings:?}");
        assert!(has(&findings, Grade::Good, "all 2 receive queues"), "{findings:?}");
        assert!(!findings.iter().any(|(grade, _)| *grade == Grade::Bad), "{findings:?}");
    }

    #[test]
    fn queues_that_the_running_box_does_not_serve_are_told_of() {
        let root = tempfile::tempdir().expect("a directory");
        veth(root.path(), 4, 1500);
        let said = |served| running(root.path(), &port(r#"{"interface": "v0"}"#), &WorkersConfig::default(), served);
        for served in [None, Some(4)] {
            assert!(has(&said(served), Grade::Good, "all 4 receive queues"), "{served:?}");
        }
        let findings = said(Some(2));
        assert!(has(&findings, Grade::Warn, "2 of 4 receive queues are served by the dataplane"), "{findings:?}");
    }

    #[test]
    fn a_bond_is_looked_at_by_its_members() {
        let root = tempfile::tempdir().expect("a directory");
        named_veth(root.path(), "bond0", 16, 1500);
        named_veth(root.path(), "v0", 4, 1500);
        named_veth(root.path(), "v1", 2, 1500);
        let bonding = root.path().join("sys/class/net/bond0/bonding");
        fs::create_dir_all(&bonding).expect("made");
        let (machine, file) = (Machine::at(root.path()), "version = 1\n[[port]]\ninterface = \"bond0\"\n");
        let file = penstock_configs::source::parse(file, "lb.toml").expect("a good file");
        let of_member = |name: &str| PortStatus { interface: name.into(), queues: 2, ..PortStatus::default() };
        let status = Status { ports: ["v0", "v1"].map(of_member).into(), ..Status::default() };
        for (members, told) in [
            ("v0 v1\n", &["v0: 2 of 4 receive queues are served by", "v1: all 2 receive queues"][..]),
            ("\n", &["bond0: the bond has no members"]),
        ] {
            fs::write(bonding.join("slaves"), members).expect("written");
            let findings = super::super::of_file(&machine, &file, Some(&status));
            let said: Vec<String> =
                findings.iter().map(|f| format!("{}: {} -> {}", f.subject, f.text, f.remedy)).collect();
            assert!(told.iter().all(|told| said.iter().any(|said| said.starts_with(told))), "{said:?}");
            assert!(!said.iter().any(|said| said.contains("name its member interfaces")), "{said:?}");
        }
    }

    #[test]
    fn queues_and_mtu_that_do_not_fit_are_bad() {
        let root = tempfile::tempdir().expect("a directory");
        veth(root.path(), 2, 9000);
        let workers = WorkersConfig { count: Some(2), ..WorkersConfig::default() };
        let findings = grades(root.path(), &port(r#"{"interface": "v0", "queues": 4}"#), &workers);
        assert!(has(&findings, Grade::Bad, "has 2 receive queues"), "{findings:?}");
        assert!(has(&findings, Grade::Warn, "MTU 9000"), "the kernel is unknown: {findings:?}");
        let findings = grades(root.path(), &port(r#"{"interface": "v0", "queues": 1}"#), &workers);
        assert!(has(&findings, Grade::Bad, "can not feed 2 workers"), "{findings:?}");
        let findings = grades(root.path(), &port(r#"{"interface": "nope"}"#), &workers);
        assert_eq!(findings, [(Grade::Bad, "no such interface".to_owned())]);
    }

    #[test]
    fn jumbo_frames_are_a_matter_of_the_kernel() {
        let root = tempfile::tempdir().expect("a directory");
        let kernel = root.path().join("proc/sys/kernel");
        fs::create_dir_all(&kernel).expect("made");
        let said = |release: &str, mtu, frame_size| {
            fs::write(kernel.join("osrelease"), release).expect("written");
            veth(root.path(), 1, mtu);
            let workers = WorkersConfig { frame_size, ..WorkersConfig::default() };
            let findings = grades(root.path(), &port(r#"{"interface": "v0"}"#), &workers);
            findings.into_iter().find(|(_, text)| text.starts_with("MTU")).expect("a word on the MTU")
        };
        for (release, mtu, frame_size, grade, words) in [
            ("6.18.1", 9000, 2048, Grade::Good, "up to 6 frames of 2048"),
            ("6.6.0-amd64", 9000, 4096, Grade::Good, "up to 3 frames of 4096"),
            ("6.5.9", 9000, 4096, Grade::Bad, "holds packets of 3818"),
            ("6.1.0-30-amd64", 1771, 2048, Grade::Bad, "holds packets of 1770"),
            ("6.1.0-30-amd64", 3818, 4096, Grade::Good, "fits frames of 4096"),
            ("6.18.1", 9217, 4096, Grade::Bad, "9216"),
        ] {
            let (found, text) = said(release, mtu, frame_size);
            assert_eq!(found, grade, "{release}, {mtu}: {text}");
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn strict_reverse_path_filtering_is_seen_from_either_sysctl() {
        let root = tempfile::tempdir().expect("a directory");
        veth(root.path(), 1, 1500);
        let all = root.path().join("proc/sys/net/ipv4/conf/all");
        fs::create_dir_all(&all).expect("made");
        fs::write(all.join("rp_filter"), "1\n").expect("written");
        let findings = grades(root.path(), &port(r#"{"interface": "v0"}"#), &WorkersConfig::default());
        assert!(has(&findings, Grade::Warn, "rp_filter is strict"), "{findings:?}");
    }
}
