//! The files the doctor reads, under a root that tests replace.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use penstock_configs::validate::{HostFacts, port_list};
use serde_json::Value;

#[derive(Debug)]
pub(super) struct Machine {
    root: PathBuf,
}

impl Machine {
    pub(super) fn this() -> Self {
        Self { root: PathBuf::from("/") }
    }

    #[cfg(test)]
    pub(super) fn at(root: &std::path::Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The file's text without the newline at its end.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim_end().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    pub(super) fn link_name(&self, path: &str) -> Option<String> {
        fs::read_link(self.path(path)).ok()?.file_name()?.to_str().map(str::to_owned)
    }

    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    pub(super) fn cores(&self) -> Vec<u16> {
        self.read("/sys/devices/system/cpu/online").map(|text| cpu_list(&text)).unwrap_or_default()
    }

    pub(super) fn queues(&self, interface: &str) -> u16 {
        let queues = self.list(&format!("/sys/class/net/{interface}/queues"));
        u16::try_from(queues.iter().filter(|queue| queue.starts_with("rx-")).count()).unwrap_or(u16::MAX)
    }

    pub(super) fn local_port_range(&self) -> Option<[u16; 2]> {
        let text = self.read("/proc/sys/net/ipv4/ip_local_port_range")?;
        let mut ports = text.split_whitespace().filter_map(|port| port.parse().ok());
        Some([ports.next()?, ports.next()?])
    }

    pub(super) fn reserved_ports(&self) -> Vec<[u16; 2]> {
        port_list(&self.read("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default())
    }

    /// Ports of listening TCP sockets and of bound UDP ones, either family, at any address but loopback.
    pub(super) fn listeners(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        for (file, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
            let text = self.read(&format!("/proc/net/{file}")).unwrap_or_default();
            ports.extend(text.lines().skip(1).filter_map(|line| {
                let mut fields = line.split_whitespace().skip(1);
                let (local, in_state) = (fields.next()?, fields.nth(1)? == state);
                let (address, port) = local.rsplit_once(':')?;
                let port = u16::from_str_radix(port, 16).ok()?;
                (in_state && !is_loopback(address)).then_some(port)
            }));
        }
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// What a file is validated against. Addresses and routes by iproute2, whose absence leaves them
    /// unknown: the dataplane itself asks the kernel.
    pub(super) fn facts(&self) -> HostFacts {
        let addresses = ip(&["addr"]).into_iter().flat_map(|link| {
            let name = link["ifname"].as_str().unwrap_or_default().to_owned();
            let infos = link["addr_info"].as_array().cloned().unwrap_or_default();
            infos.into_iter().filter_map(move |info| {
                let address = info["local"].as_str()?.parse().ok()?;
                let length = u8::try_from(info["prefixlen"].as_u64()?).ok()?;
                Some((name.clone(), ipnet::IpNet::new(address, length).ok()?))
            })
        });
        let routes = [ip(&["-4", "route"]), ip(&["-6", "route"])].concat();
        let interfaces = self.list("/sys/class/net");
        HostFacts {
            addresses: addresses.collect(),
            gateways: routes.iter().filter_map(|route| route["gateway"].as_str()?.parse().ok()).collect(),
            local_port_range: self.local_port_range(),
            reserved_ports: self.reserved_ports(),
            listeners: self.listeners(),
            interfaces: interfaces.iter().map(|name| (name.clone(), self.queues(name))).collect(),
            cores: u16::try_from(self.cores().len()).unwrap_or(u16::MAX),
        }
    }
}

/// As the kernel writes addresses there: words of 32 bits, each in the machine's order.
fn is_loopback(hex: &str) -> bool {
    let word = |text: &str| u32::from_str_radix(text, 16).map(u32::to_ne_bytes).unwrap_or_default();
    match hex.len() {
        8 => word(hex)[0] == 127,
        32 => hex[..24].bytes().all(|digit| digit == b'0') && word(&hex[24..]) == [0, 0, 0, 1],
        _ => false,
    }
}

fn ip(arguments: &[&str]) -> Vec<Value> {
    let output = Command::new("ip").arg("-json").args(arguments).output();
    output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default()
}

/// The kernel's lists: `0-3,6`.
pub(super) fn cpu_list(text: &str) -> Vec<u16> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u16>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_of_cpus() {
        assert_eq!(cpu_list("0-3,6"), [0, 1, 2, 3, 6]);
        assert_eq!(cpu_list("0"), [0]);
        assert!(cpu_list("").is_empty());
    }

    #[test]
    fn listeners_are_found_in_both_families_and_connections_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let proc_net = directory.path().join("proc/net");
        fs::create_dir_all(&proc_net).expect("made");
        let tcp = "  sl  local_address rem_address   st\n   0: 00000000:0016 00000000:0000 0A 0\n   1: 0100007F:1F90 0100007F:9999 01 0\n   2: 0100007F:1F91 0 0A 0\n";
        fs::write(proc_net.join("tcp"), tcp).expect("written");
        let udp = "  sl  local\n   0: 00000000000000000000000000000000:0035 0:0 07 0\n   1: 00000000000000000000000001000000:0036 0:0 07 0\n";
        fs::write(proc_net.join("udp6"), udp).expect("written");
        assert_eq!(Machine::at(directory.path()).listeners(), [22, 53]);
    }
}
