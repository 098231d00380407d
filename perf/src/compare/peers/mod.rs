//! What is compared. A peer is set up in a fresh lab for every measurement, so that none sees what another, or
//! its own last run, left behind (connection tracking, flow tables, neighbours).

mod bare;
mod direct;
mod haproxy;
mod iptables;
mod ipvs;
mod kernel;
mod kube_proxy;
mod nftables;
mod nginx;
mod penstock;
mod quilkin;
mod testpmd;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use anyhow::{Result, ensure};

use super::cases::Case;
use super::forwarder::mac_in;
use super::process::Process;
use crate::config::NODE_PORT;
use crate::dataplane::Dataplane;
use crate::lab::{Lab, LabBuilder, Netns, plan};
use crate::rig::VIP_PORT;

/// The core of the load generator, where the measurement pins it.
pub const GENERATOR_CORE: usize = 0;
/// The core of the box, where the measurement pins it.
pub const BOX_CORE: usize = 1;
/// Flows one address towards one node is asked to carry: it has some 64,000 ports.
pub const FLOWS_PER_ADDRESS: u32 = 40_000;
/// First of the addresses the box may speak to nodes from when one is not enough: the last number of 10.0.0.0/24.
const FIRST_SNAT: u8 = 200;

/// What a measurement wants of a peer.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub case: Case,
    pub flows: u32,
    /// All of the box on [`BOX_CORE`], one worker that need not sleep; else all cores, and sleep when idle.
    pub pinned: bool,
}

impl Setup {
    /// Threads or workers of the box.
    #[must_use]
    pub fn workers(&self) -> u16 {
        if self.pinned { 1 } else { crate::config::cores() }
    }

    /// Addresses towards the nodes that carry the flows; none: the box's own does.
    #[must_use]
    pub fn snat_addresses(&self) -> Vec<Ipv4Addr> {
        let wanted = self.flows / FLOWS_PER_ADDRESS;
        let wanted = if wanted == 0 { 0 } else { wanted + 1 };
        (FIRST_SNAT..=254).take(wanted as usize).map(|host| plan::NODE_NET.host(host).v4).collect()
    }
}

/// One of those compared.
pub trait Peer: Sync {
    fn name(&self) -> &'static str;

    /// In a few words, for the report.
    fn what(&self) -> &'static str;

    /// What Penstock does and this does not.
    fn cannot(&self) -> &'static str;

    /// Why a case can't be measured with it; `None`: it can.
    fn unfit(&self, case: Case) -> Option<&'static str>;

    /// Why it can't be run here, in words; `None`: it can.
    fn missing(&self) -> Option<String> {
        None
    }

    /// The lab it wants.
    fn lab(&self, builder: LabBuilder, _setup: &Setup) -> LabBuilder {
        builder
    }

    /// Whether the hosts may leave checksums and segmentation to each other, as they do where no XDP program is.
    fn takes_offloads(&self) -> bool {
        false
    }

    /// New flows per second that it surely takes, before anything is measured.
    fn opening_rate(&self) -> f64 {
        20_000.0
    }

    /// Starts it; returns when it serves.
    ///
    /// # Errors
    /// It does not.
    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running>;
}

/// A peer at work. Dropping it ends its programs.
pub struct Running {
    /// What clients send to.
    pub target: SocketAddrV4,
    /// Where its packets come out, and with what destination.
    pub outlet: Outlet,
    pub processes: Vec<Process>,
    pub dataplane: Option<Dataplane>,
}

/// Where packets that went through come to.
pub struct Outlet {
    pub ns: Netns,
    pub interface: &'static str,
    pub address: SocketAddrV4,
}

impl Running {
    /// Clients send to the VIP; packets come out at the first node.
    fn at_vip(lab: &Lab) -> Self {
        Self { target: vip(), ..Self::at_node(lab) }
    }

    /// Clients send to the first node itself.
    fn at_node(lab: &Lab) -> Self {
        let address = node(lab, 0);
        let outlet = Outlet { ns: lab.nodes[0].ns.clone(), interface: "eth0", address };
        Self { target: address, outlet, processes: Vec::new(), dataplane: None }
    }

    fn with(mut self, process: Process) -> Self {
        self.processes.push(process);
        self
    }
}

/// All of them, in the order of the report.
#[must_use]
pub fn all() -> Vec<&'static dyn Peer> {
    vec![
        &direct::Direct,
        &bare::Bare,
        &penstock::Penstock,
        &testpmd::Testpmd,
        &kernel::Kernel,
        &kernel::SteeredKernel,
        &nftables::NFTABLES,
        &nftables::NFTABLES_RPS,
        &iptables::IPTABLES,
        &iptables::IPTABLES_RPS,
        &ipvs::Ipvs,
        &haproxy::Haproxy,
        &nginx::Nginx,
        &quilkin::Quilkin,
    ]
}

/// The service's address.
#[must_use]
pub fn vip() -> SocketAddrV4 {
    SocketAddrV4::new(plan::vip(0).v4, VIP_PORT)
}

/// A node's server.
#[must_use]
pub fn node(lab: &Lab, index: usize) -> SocketAddrV4 {
    SocketAddrV4::new(lab.nodes[index].addr.v4, NODE_PORT)
}

/// All nodes' servers.
fn nodes(lab: &Lab) -> Vec<SocketAddrV4> {
    (0..lab.nodes.len()).map(|index| node(lab, index)).collect()
}

/// The link-layer address of an interface.
///
/// # Errors
/// There is no such interface.
pub fn mac_of(ns: &Netns, interface: &str) -> Result<[u8; 6]> {
    mac_in(&ns.sh(&format!("ip -br link show {interface}"))?)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The VIP as an address of the box's own: its kernel answers ARP for it.
fn own_vip(lab: &Lab) -> Result<()> {
    lab.the_box.sh(&format!("ip address add {}/32 dev lo", plan::vip(0).v4))?;
    Ok(())
}

/// What the box's kernel does for a packet it does on the box's core, not on its sender's (receive packet steering).
fn steer_to_box(lab: &Lab) -> Result<()> {
    let mask = format!("{:x}", 1_u64 << BOX_CORE);
    let script = format!(
        "for interface in clients0 nodes0; do echo {mask} > /sys/class/net/$interface/queues/rx-0/rps_cpus || exit 1; done"
    );
    // `ip netns exec`, because it mounts the namespace's own /sys.
    let mut command = Command::new("ip");
    command.args(["netns", "exec", lab.the_box.name(), "sh", "-c", &script]);
    let output = lab.the_box.output(&mut command)?;
    ensure!(output.status.success(), "setting rps_cpus: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Addresses to translate to, as addresses of the box's own.
fn own_snat(lab: &Lab, setup: &Setup) -> Result<()> {
    for address in setup.snat_addresses() {
        lab.the_box.sh(&format!("ip address add {address}/32 dev nodes0"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_names() {
        let names: BTreeSet<_> = all().iter().map(|peer| peer.name()).collect();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn a_million_flows_have_addresses_enough() {
        let setup = |flows| Setup { case: Case::Memory, flows, pinned: true };
        assert!(setup(4096).snat_addresses().is_empty());
        let addresses = setup(1_000_000).snat_addresses();
        assert!(addresses.len() as u32 * FLOWS_PER_ADDRESS >= 1_000_000);
        assert_eq!(addresses[0], Ipv4Addr::new(10, 0, 0, 200));
    }
}
