//! The parts of the file that are about the box itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use super::address::{host_bits, martian};
use super::{BoxContext, HostFacts, names, shared_ports};
use crate::fault::Fault;
use crate::file::{ConfigFile, PortConfig, SCHEMA_VERSION};
use crate::nearest::nearest;

/// A socket's rings hold frames the others cannot have: fill and transmit full, as much again received
/// and under way, for every interface.
const FRAMES_PER_RING_SLOT: u32 = 4;
/// 8 GiB of 2048-byte frames per worker.
const MOST_FRAMES: u32 = 1 << 22;
const MOST_FLOWS: u32 = 1 << 28;
const MOST_SERVICES: u32 = 1 << 20;
/// Backends are numbered in 16 bits.
const MOST_NODES: u32 = 65_535;
/// 128 MiB a worker and family.
const LARGEST_COUNT: u32 = 1 << 24;
/// Ten times the largest table the Maglev paper measures (655373), rounded up to a prime.
const LARGEST_TABLE: u32 = 5_000_011;
/// What every IPv4 host takes: 576 bytes less headers (RFC 9293 section 3.7.1).
const LEAST_MSS: u16 = 536;
/// MTU 9000 less the smallest headers.
const LARGEST_MSS: u16 = 8960;
/// The program counts in slices of a sixtieth of a second.
const LEAST_NEW_PER_VIP: u32 = 60;
/// Longer is a slip of the pen, and the timer wheel need not reach further.
const LONGEST_TIMEOUT: u32 = 30 * 24 * 3600;

pub(super) fn check(file: &ConfigFile, host: Option<&HostFacts>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if file.version != SCHEMA_VERSION {
        let problem = format!("is {}, and this build reads version {SCHEMA_VERSION}", file.version);
        faults.push(Fault::new("version", problem, format!("write version = {SCHEMA_VERSION}")));
    }
    the_box(file, host, &mut faults);
    ports(&file.ports, host, &mut faults);
    workers(file, host, &mut faults);
    snat(file, host, &mut faults);
    limits(file, &mut faults);
    timeouts(file, &mut faults);
    faults
}

fn the_box(file: &ConfigFile, host: Option<&HostFacts>, faults: &mut Vec<Fault>) {
    let config = &file.the_box;
    faults.extend(names::box_name(&config.name));
    for (key, dir) in [("run_dir", &config.run_dir), ("state_dir", &config.state_dir)] {
        if !is_own_dir(dir) {
            let problem = format!("{dir:?} is not the absolute path of a directory of its own");
            faults.push(Fault::new(format!("box.{key}"), problem, "write one such as \"/run/penstock\""));
        }
    }
    if is_own_dir(&config.run_dir) && config.state_dir.starts_with(&config.run_dir) {
        let problem = "lies in run_dir, which a reboot empties";
        faults.push(Fault::new("box.state_dir", problem, "put it on a disk, such as \"/var/lib/penstock\""));
    }
    reply_probe(file, host, faults);
    deny(file, faults);
    let lockouts = lockouts(file, host);
    for (index, net) in config.vip_ranges.iter().enumerate() {
        let path = format!("box.vip_ranges[{index}]");
        if let Some((problem, remedy)) = host_bits(net) {
            faults.push(Fault::new(&path, problem, remedy));
        }
        if let Some((address, what)) = lockouts.iter().find(|(address, _)| net.contains(address)) {
            let problem = format!("{net} contains {address}, {what}, which would become unreachable");
            faults.push(Fault::new(&path, problem, "narrow the range to addresses that are only VIPs"));
        }
    }
}

fn deny(file: &ConfigFile, faults: &mut Vec<Fault>) {
    let config = &file.the_box;
    for (index, net) in config.deny.iter().enumerate() {
        if let Some((problem, remedy)) = host_bits(net) {
            faults.push(Fault::new(format!("box.deny[{index}]"), problem, remedy));
        }
    }
    if config.deny_file != Path::new("") && !config.deny_file.is_absolute() {
        let problem = format!("{:?} is not an absolute path", config.deny_file);
        faults.push(Fault::new("box.deny_file", problem, "write one such as \"/etc/penstock/deny.txt\""));
    }
    if (1..LEAST_NEW_PER_VIP).contains(&config.new_per_vip) {
        let problem = format!("is {}, less than the program can tell apart", config.new_per_vip);
        let remedy = format!("write at least {LEAST_NEW_PER_VIP}, or 0 for no policing");
        faults.push(Fault::new("box.new_per_vip", problem, remedy));
    }
}

fn reply_probe(file: &ConfigFile, host: Option<&HostFacts>, faults: &mut Vec<Fault>) {
    let remedy = "write an address no host has and the nodes' routes to clients cover, such as 192.0.2.254";
    let mut families = [false; 2];
    let taken = lockouts(file, host);
    for (index, address) in file.the_box.reply_probe.iter().enumerate() {
        let problem = if let Some(why) = martian(*address) {
            format!("{address} {why}")
        } else if std::mem::replace(&mut families[usize::from(address.is_ipv6())], true) {
            format!("{address} is a second {} address", super::address::family(*address))
        } else if let Some((_, what)) = taken.iter().find(|(own, _)| own == address) {
            format!("{address} is {what}")
        } else {
            continue;
        };
        faults.push(Fault::new(format!("box.reply_probe[{index}]"), problem, remedy));
    }
}

fn is_own_dir(dir: &Path) -> bool {
    dir.is_absolute() && dir.parent().is_some()
}

/// Addresses a VIP range must not swallow.
fn lockouts(file: &ConfigFile, host: Option<&HostFacts>) -> Vec<(IpAddr, String)> {
    let mut found = Vec::new();
    if let Some(host) = host {
        let own = |(interface, net): &(String, ipnet::IpNet)| (net.addr(), format!("the box's own on {interface}"));
        found.extend(host.addresses.iter().map(own));
        found.extend(host.gateways.iter().map(|address| (*address, "a gateway".to_owned())));
    }
    for node in &file.nodes {
        found.extend(node.addresses.iter().map(|address| (*address, format!("the address of node {:?}", node.name))));
    }
    found
}

fn ports(ports: &[PortConfig], host: Option<&HostFacts>, faults: &mut Vec<Fault>) {
    if ports.is_empty() {
        faults.push(Fault::new("port", "names no interface", "add a [[port]] with interface = \"…\""));
    }
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("port[{index}].interface");
        if let Some(earlier) = first.insert(&port.interface, index) {
            let problem = format!("{:?} is port[{earlier}] too", port.interface);
            faults.push(Fault::new(&path, problem, "name each interface once; a port serves all its queues"));
        }
        if let Some((problem, remedy)) = names::interface_problem(&port.interface) {
            faults.push(Fault::new(&path, problem, remedy));
        } else if let Some(host) = host.filter(|host| host.queues(&port.interface).is_none()) {
            faults.push(Fault::new(&path, format!("the box has no interface {:?}", port.interface), host.remedy(port)));
        }
        queues(index, port, host, faults);
        mss_clamp(index, port, faults);
    }
}

fn mss_clamp(index: usize, port: &PortConfig, faults: &mut Vec<Fault>) {
    let path = format!("port[{index}].mss_clamp");
    match port.mss_clamp {
        Some(mss) if mss < LEAST_MSS => {
            let problem = format!("is {mss}, less than any path needs");
            faults.push(Fault::new(
                path,
                problem,
                format!("write {LEAST_MSS} or more: the path's MTU less 40, or 60 with IPv6"),
            ));
        }
        Some(mss) if mss > LARGEST_MSS => {
            let problem = format!("is {mss}, more than any packet here holds");
            faults.push(Fault::new(path, problem, "leave it out for no clamp"));
        }
        _ => {}
    }
}

impl HostFacts {
    /// Receive queues of an interface the box has.
    #[must_use]
    pub fn queues(&self, interface: &str) -> Option<u16> {
        self.interfaces.iter().find(|(name, _)| name == interface).map(|(_, queues)| *queues)
    }

    fn remedy(&self, port: &PortConfig) -> String {
        let names = || self.interfaces.iter().map(|(name, _)| name.as_str());
        match nearest(&port.interface, names()) {
            Some(name) => format!("did you mean {name:?}?"),
            None => format!("use one of {}", names().collect::<Vec<_>>().join(", ")),
        }
    }
}

fn queues(index: usize, port: &PortConfig, host: Option<&HostFacts>, faults: &mut Vec<Fault>) {
    let path = format!("port[{index}].queues");
    let Some(queues) = port.queues else { return };
    if queues == 0 {
        faults.push(Fault::new(path, "is 0", "leave it out to serve all queues"));
    } else if let Some(has) = host.and_then(|host| host.queues(&port.interface)).filter(|has| queues > *has) {
        let problem = format!("is {queues}, and {} has {has} receive queues", port.interface);
        faults.push(Fault::new(path, problem, format!("write at most {has}, or add queues with `ethtool -L`")));
    }
}

/// The fewest queues any port serves, as far as known, with the port's name.
fn fewest_queues<'a>(ports: &'a [PortConfig], host: Option<&HostFacts>) -> Option<(u16, &'a str)> {
    let known = |port: &PortConfig| {
        let has = host.and_then(|host| host.queues(&port.interface));
        [port.queues, has].into_iter().flatten().min()
    };
    ports.iter().filter_map(|port| known(port).map(|queues| (queues, port.interface.as_str()))).min()
}

fn workers(file: &ConfigFile, host: Option<&HostFacts>, faults: &mut Vec<Fault>) {
    let config = &file.workers;
    let mut fault = |key: &str, problem: String, remedy: String| {
        faults.push(Fault::new(format!("workers.{key}"), problem, remedy));
    };
    let (key, count) = match config.count {
        Some(count) => ("count", Some(count)),
        None => ("cores", u16::try_from(config.cores.len()).ok().filter(|count| *count > 0)),
    };
    if config.count == Some(0) {
        fault("count", "is 0".into(), "leave it out for one per queue".into());
    }
    if let (Some(count), Some((queues, interface))) = (count, fewest_queues(&file.ports, host).filter(|(q, _)| *q > 0))
        && count > queues
    {
        let problem = format!("asks for {count} workers, and {interface} has {queues} queues to serve");
        fault(key, problem, format!("use at most {queues}: a worker without a queue has no packets"));
    }
    if let (Some(count), Some(host)) = (config.count, host)
        && count > host.cores
    {
        let problem = format!("is {count}, and the machine has {} cores", host.cores);
        fault("count", problem, format!("use at most {}", host.cores));
    }
    if let Some(count) = config.count
        && !config.cores.is_empty()
        && config.cores.len() != usize::from(count)
    {
        let problem = format!("names {} cores for {count} workers", config.cores.len());
        fault("cores", problem, "name one core per worker, or leave `count` out".into());
    }
    let mut seen = HashMap::new();
    for (index, core) in config.cores.iter().enumerate() {
        if let Some(earlier) = seen.insert(*core, index) {
            let problem = format!("core {core} is cores[{earlier}] too");
            fault(&format!("cores[{index}]"), problem, "give each worker a core of its own".into());
        }
        if let Some(host) = host.filter(|host| *core >= host.cores) {
            let problem = format!("is {core}, and the machine has {} cores", host.cores);
            fault(&format!("cores[{index}]"), problem, format!("use 0 to {}", host.cores.saturating_sub(1)));
        }
    }
    memory(file, &mut fault);
}

fn memory(file: &ConfigFile, fault: &mut impl FnMut(&str, String, String)) {
    let config = &file.workers;
    if ![2048, 4096].contains(&config.frame_size) {
        fault("frame_size", format!("is {}", config.frame_size), "write 2048 or 4096".into());
    }
    if !config.ring_size.is_power_of_two() || !(64..=16_384).contains(&config.ring_size) {
        let problem = format!("is {}, not a power of two from 64 to 16384", config.ring_size);
        let near = config.ring_size.clamp(64, 16_384).next_power_of_two();
        return fault("ring_size", problem, format!("write {near}"));
    }
    let ports = u32::try_from(file.ports.len().max(1)).unwrap_or(u32::MAX);
    let least = config.ring_size.saturating_mul(FRAMES_PER_RING_SLOT).saturating_mul(ports);
    if config.frames < least {
        let problem = format!(
            "is {}, too few for the rings of {ports} interface(s) of {} descriptors",
            config.frames, config.ring_size
        );
        fault("frames", problem, format!("write at least {least}, or lower ring_size"));
    } else if config.frames > MOST_FRAMES {
        fault("frames", format!("is {}", config.frames), format!("write at most {MOST_FRAMES}"));
    }
}

fn snat(file: &ConfigFile, host: Option<&HostFacts>, faults: &mut Vec<Fault>) {
    let context = BoxContext::new(file, host);
    let mut first = HashMap::new();
    for (index, snat) in file.snat.iter().enumerate() {
        let address = snat.address;
        let mut fault = |key: &str, problem: String, remedy: &str| {
            faults.push(Fault::new(format!("snat[{index}].{key}"), problem, remedy));
        };
        if let Some(earlier) = first.insert(address, index) {
            let problem = format!("{address} is the address of snat[{earlier}] too");
            fault("address", problem, "list each address once, with all its ports");
        }
        let own = context.is_own(address);
        if let Some(why) = martian(address) {
            fault("address", format!("{address} {why}"), "choose an address of a subnet the nodes reach");
        } else if own && !snat.shared {
            let remedy = "choose an address nothing else uses, or set shared = true and narrow `ports`";
            fault("address", format!("{address} is the box's own address"), remedy);
        } else if !own && snat.shared && host.is_some() {
            let remedy = "leave `shared` out, or write one of the box's addresses";
            fault("address", format!("{address} is shared, and not one of the box's addresses"), remedy);
        } else if let Some(what) = context.bans.get(&address).filter(|_| !own) {
            fault("address", format!("{address} is {what}"), "choose an address nothing else uses");
        }
        let [from, to] = snat.ports;
        if from > to {
            fault("ports", format!("[{from}, {to}] runs backwards"), "write the first port, then the last");
        } else if from < shared_ports::FIRST_PORT {
            fault("ports", format!("begins at {from}, among the system ports"), "begin at 1024 or above");
        } else if let Some((problem, remedy)) = snat.shared.then(|| shared_ports::conflict(snat.ports, host)).flatten()
        {
            fault("ports", problem, &remedy);
        }
    }
}

fn limits(file: &ConfigFile, faults: &mut Vec<Fault>) {
    let limits = &file.limits;
    if file.the_box.panic_threshold > 100 {
        let problem = format!("is {}, more than all", file.the_box.panic_threshold);
        faults.push(Fault::new("box.panic_threshold", problem, "write a percentage from 0 to 100"));
    }
    for (key, value, most) in [
        ("flows_ipv4", limits.flows_ipv4, MOST_FLOWS),
        ("flows_ipv6", limits.flows_ipv6, MOST_FLOWS),
        ("embryonic", limits.embryonic, MOST_FLOWS),
        ("services", limits.services, MOST_SERVICES),
        ("nodes", limits.nodes, MOST_NODES),
        ("maglev_size", limits.maglev_size, LARGEST_TABLE),
        ("icmp_per_second", limits.icmp_per_second, u32::MAX),
        ("counted_backends", limits.counted_backends, LARGEST_COUNT),
        ("affinity", limits.affinity, MOST_FLOWS),
        ("limited_sources", limits.limited_sources, LARGEST_COUNT),
    ] {
        let path = format!("limits.{key}");
        if value == 0 {
            faults.push(Fault::new(path, "is 0", "write at least 1, or leave it out for the default"));
        } else if value > most {
            faults.push(Fault::new(path, format!("is {value}"), format!("write at most {most}")));
        } else if key == "maglev_size" && !is_prime(value) {
            let prime = (value..=LARGEST_TABLE).find(|candidate| is_prime(*candidate)).unwrap_or(LARGEST_TABLE);
            // A table whose size is no prime has permutations that do not visit every slot.
            faults.push(Fault::new(path, format!("{value} is not a prime"), format!("write {prime}")));
        }
    }
}

fn is_prime(number: u32) -> bool {
    let mut divisors = (2..).take_while(|divisor: &u32| divisor.saturating_mul(*divisor) <= number);
    number >= 2 && divisors.all(|divisor| !number.is_multiple_of(divisor))
}

fn timeouts(file: &ConfigFile, faults: &mut Vec<Fault>) {
    let timeouts = &file.timeouts;
    for (key, seconds) in [
        ("tcp_syn", timeouts.tcp_syn),
        ("tcp_established", timeouts.tcp_established),
        ("tcp_fin", timeouts.tcp_fin),
        ("tcp_time_wait", timeouts.tcp_time_wait),
        ("tcp_rst", timeouts.tcp_rst),
        ("udp_one_way", timeouts.udp_one_way),
        ("udp", timeouts.udp),
        ("sctp_init", timeouts.sctp_init),
        ("sctp_established", timeouts.sctp_established),
        ("sctp_shutdown", timeouts.sctp_shutdown),
        ("sctp_closed", timeouts.sctp_closed),
    ] {
        if let Some((problem, remedy)) = timeout_problem(seconds) {
            faults.push(Fault::new(format!("timeouts.{key}"), problem, remedy));
        }
    }
}

pub(super) fn timeout_problem(seconds: u32) -> Option<(String, String)> {
    match seconds {
        0 => Some(("is 0: flows would be forgotten at once".into(), "write at least 1 second".into())),
        1..=LONGEST_TIMEOUT => None,
        _ => Some((format!("is {seconds} seconds"), format!("write at most {LONGEST_TIMEOUT} (30 days)"))),
    }
}
