//! The machine as a whole: kernel, privileges, memory, cores; and what of it a config file needs.

use penstock_configs::file::{ConfigFile, HugePages};

use super::super::units::count;
use super::Finding;
use super::machine::{Machine, cpu_list};

/// Kubernetes' default `--service-node-port-range`.
const NODE_PORTS: [u16; 2] = [30_000, 32_767];

pub(super) fn check(machine: &Machine) -> Vec<Finding> {
    vec![
        kernel(machine),
        af_xdp(machine),
        bpf_fs(machine),
        jit(machine),
        capabilities(machine),
        locked_memory(machine),
        clock(machine),
        governor(machine),
    ]
}

const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// The first kernel with AF_XDP packets in several frames (`XDP_USE_SG`).
pub(super) const SCATTERS: (u32, u32) = (6, 6);

/// Major and minor of the kernel's version; zeros where it can not be read.
pub(super) fn kernel_version(machine: &Machine) -> (u32, u32) {
    let release = machine.read(RELEASE).unwrap_or_default();
    let numbers: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    (numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(0))
}

fn kernel(machine: &Machine) -> Finding {
    let release = machine.read(RELEASE).unwrap_or_default();
    match kernel_version(machine) {
        (0, _) => Finding::warn("kernel", "its version can not be read", "5.16 or newer is needed"),
        // NTF_EXT_MANAGED neighbours: 5.16. One UMEM over several devices: 5.10.
        version if version < (5, 16) => Finding::bad("kernel", release, "5.16 or newer is needed; Debian 12 has 6.1"),
        version if version < SCATTERS => {
            Finding::warn("kernel", release, "an MTU beyond one frame (3818 of 4096) needs 6.6; all else works")
        }
        _ => Finding::good("kernel", release),
    }
}

fn af_xdp(machine: &Machine) -> Finding {
    let protocols = machine.read("/proc/net/protocols").unwrap_or_default();
    if protocols.lines().any(|line| line.starts_with("XDP ")) {
        Finding::good("AF_XDP", "sockets are built in")
    } else {
        Finding::bad("AF_XDP", "the kernel has no AF_XDP sockets", "a kernel with CONFIG_XDP_SOCKETS=y, as Debian's is")
    }
}

fn bpf_fs(machine: &Machine) -> Finding {
    let filesystems = machine.read("/proc/filesystems").unwrap_or_default();
    if filesystems.lines().any(|line| line.trim_end().ends_with("\tbpf")) {
        Finding::good("bpf filesystem", "the XDP program can be pinned, and outlives a restart")
    } else {
        Finding::bad("bpf filesystem", "the kernel has none", "a kernel with CONFIG_BPF_SYSCALL=y")
    }
}

fn jit(machine: &Machine) -> Finding {
    match machine.number("/proc/sys/net/core/bpf_jit_enable") {
        Some(0) => Finding::warn(
            "BPF compiler",
            "off: the XDP program is interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // Unreadable for users, or always on (CONFIG_BPF_JIT_ALWAYS_ON).
        _ => Finding::good("BPF compiler", "on"),
    }
}

/// Bits of `linux/capability.h`.
const NEEDED: [(u32, &str); 5] =
    [(12, "NET_ADMIN"), (13, "NET_RAW"), (14, "IPC_LOCK"), (PERFMON, "PERFMON"), (39, "BPF")];
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;

fn capabilities(machine: &Machine) -> Finding {
    let status = machine.read("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = bits.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let has = |bit: u32| bits >> bit & 1 == 1;
    // SYS_ADMIN covers what was split from it later; mounting the bpf filesystem needs it anyway.
    let granted = |bit: u32| has(bit) || (bit >= PERFMON && has(SYS_ADMIN));
    let missing: Vec<&str> = NEEDED.iter().filter(|(bit, _)| !granted(*bit)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Finding::good("capabilities", "all the dataplane needs to start");
    }
    Finding::warn(
        "capabilities",
        format!("this shell lacks {}", missing.join(", ")),
        "run the doctor as root to see what penstock-dataplane sees; its systemd unit grants these",
    )
}

fn locked_memory(machine: &Machine) -> Finding {
    let limits = machine.read("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next()).unwrap_or("unknown");
    let status = machine.read("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let can_lock =
        bits.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).is_some_and(|bits| bits >> 14 & 1 == 1);
    if soft == "unlimited" || can_lock {
        return Finding::good("locked memory", format!("limit {soft}; CAP_IPC_LOCK lifts it"));
    }
    Finding::warn(
        "locked memory",
        format!("limited to {soft} bytes without CAP_IPC_LOCK"),
        "grant CAP_IPC_LOCK, or LimitMEMLOCK=infinity in the unit",
    )
}

fn clock(machine: &Machine) -> Finding {
    let source = machine.read("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    match source.as_str() {
        "tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page" => {
            Finding::good("clock", format!("{source} is read without a system call"))
        }
        other => Finding::warn(
            "clock",
            format!("{}: reading it is a system call on every burst", if other.is_empty() { "unknown" } else { other }),
            "see dmesg for why tsc was rejected",
        ),
    }
}

fn governor(machine: &Machine) -> Finding {
    match machine.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").as_deref() {
        None => Finding::good("CPU frequency", "not governed from here"),
        Some("performance") => Finding::good("CPU frequency", "governor performance"),
        Some(other) => Finding::warn(
            "CPU frequency",
            format!("governor {other}: the first packets after a pause are slow"),
            "cpupower frequency-set -g performance",
        ),
    }
}

pub(super) fn check_file(machine: &Machine, file: &ConfigFile) -> Vec<Finding> {
    let mut findings = vec![cores(machine, file), huge_pages(machine, file), run_dir(machine, file)];
    findings.extend(shared_ports(machine, file));
    findings
}

fn workers(machine: &Machine, file: &ConfigFile) -> u16 {
    let fewest = file.ports.iter().map(|port| port.queues.unwrap_or_else(|| machine.queues(&port.interface))).min();
    let cores = u16::try_from(machine.cores().len()).unwrap_or(u16::MAX);
    file.workers.effective_count(fewest.unwrap_or(1).max(1), cores.max(1))
}

fn cores(machine: &Machine, file: &ConfigFile) -> Finding {
    let online = machine.cores();
    let machine_cores = u16::try_from(online.len()).unwrap_or(u16::MAX);
    let workers = workers(machine, file);
    let missing: Vec<&u16> = file.workers.cores.iter().filter(|core| !online.contains(core)).collect();
    if !missing.is_empty() {
        return Finding::bad("cores", format!("{missing:?} are not online"), format!("choose among {online:?}"));
    }
    if workers >= machine_cores {
        return Finding::warn(
            "cores",
            format!(
                "{} on {machine_cores} cores leave none to SSH, BGP and the kernel",
                count(workers.into(), "worker")
            ),
            format!("set workers.count = {}", machine_cores.saturating_sub(1).max(1)),
        );
    }
    let isolated = cpu_list(&machine.read("/sys/devices/system/cpu/isolated").unwrap_or_default());
    let hint = if isolated.is_empty() { "; isolcpus= on the kernel's command line would steady latency" } else { "" };
    Finding::good(
        "cores",
        format!("{}, {} left{hint}", count(workers.into(), "worker"), count((machine_cores - workers).into(), "core")),
    )
}

fn huge_pages(machine: &Machine, file: &ConfigFile) -> Finding {
    let meminfo = machine.read("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (free, kilobytes) = (field("HugePages_Free"), field("Hugepagesize").max(1));
    let bytes = u64::from(file.workers.frames) * u64::from(file.workers.frame_size);
    let needed = bytes.div_ceil(kilobytes * 1024) * u64::from(workers(machine, file));
    let text = format!("{free} free, {needed} or more would hold the packet memory");
    match file.workers.huge_pages {
        HugePages::Off => Finding::good("huge pages", "not asked for"),
        _ if free >= needed => Finding::good("huge pages", text),
        HugePages::Require => Finding::bad("huge pages", text, format!("sysctl -w vm.nr_hugepages={needed}")),
        HugePages::Auto => Finding::warn(
            "huge pages",
            format!("{text}; plain pages serve"),
            format!("sysctl -w vm.nr_hugepages={needed}"),
        ),
    }
}

/// Flow records live there: on a disk every packet would dirty pages that are written back.
fn run_dir(machine: &Machine, file: &ConfigFile) -> Finding {
    let path = file.the_box.run_dir.display().to_string();
    let mounts = machine.read("/proc/self/mounts").unwrap_or_default();
    let holds =
        |mount: &str| mount == "/" || path == mount || path.starts_with(&format!("{}/", mount.trim_end_matches('/')));
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let kind = mounted.filter(|(mount, _)| holds(mount)).max_by_key(|(mount, _)| mount.len()).map(|(_, kind)| kind);
    match kind {
        Some("tmpfs") | None => Finding::good("run directory", format!("{path} is in memory")),
        Some(kind) => Finding::warn(
            "run directory",
            format!("{path} is on {kind}: flow records would be written to a disk"),
            "mount a tmpfs there, or set box.run_dir to a directory on one",
        ),
    }
}

/// A SNAT address the kernel has too: what either hands out, the other must not.
fn shared_ports(machine: &Machine, file: &ConfigFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let overlap = |a: [u16; 2], b: [u16; 2]| a[0] <= b[1] && b[0] <= a[1];
    for snat in file.snat.iter().filter(|snat| snat.shared) {
        let subject = format!("shared SNAT {}", snat.address);
        let [first, last] = snat.ports;
        let reserved = machine.reserved_ports();
        let is_reserved = (first..=last).all(|port| reserved.iter().any(|[from, to]| (*from..=*to).contains(&port)));
        if let Some(range) = machine.local_port_range()
            && overlap(snat.ports, range)
            && !is_reserved
        {
            findings.push(Finding::bad(
                &subject,
                format!("ports {first}-{last} overlap ip_local_port_range {}-{}", range[0], range[1]),
                format!("choose ports outside, or keep the kernel off: sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}"),
            ));
        }
        let taken: Vec<u16> = machine.listeners().into_iter().filter(|port| (first..=last).contains(port)).collect();
        if !taken.is_empty() {
            findings.push(Finding::bad(&subject, format!("something listens on {taken:?}"), "leave those ports out"));
        }
        if overlap(snat.ports, NODE_PORTS) {
            findings.push(Finding::warn(
                &subject,
                format!("ports {first}-{last} overlap Kubernetes' NodePorts ({}-{})", NODE_PORTS[0], NODE_PORTS[1]),
                "if this box is a cluster node too, choose ports outside",
            ));
        }
        if findings.iter().all(|finding| finding.subject != subject) {
            findings.push(Finding::good(&subject, format!("ports {first}-{last} are the dataplane's alone")));
        }
    }
    findings
}
