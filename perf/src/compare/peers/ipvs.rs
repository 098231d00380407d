//! IPVS, masquerading with source NAT, as kube-proxy's ipvs mode sets it up, but for the scheduler: `mh`, which is Maglev's hash
//! as Penstock's is, where kube-proxy has `rr` unless told.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{Peer, Running, Setup, nodes, own_vip, vip};
use crate::compare::cases::Case;
use crate::compare::process::need;
use crate::lab::{Lab, LabBuilder};
use crate::privilege;

pub struct Ipvs;

impl Peer for Ipvs {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn what(&self) -> &'static str {
        "IPVS, scheduler mh (kube-proxy's own is rr), masquerading"
    }

    fn cannot(&self) -> &'static str {
        "health; source NAT only with connection tracking beside its own"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        (case == Case::Memory).then_some("set up with one address to translate to, which has 64,000 ports")
    }

    fn missing(&self) -> Option<String> {
        let loaded = || std::path::Path::new("/proc/net/ip_vs").exists();
        if !loaded() && privilege::missing().is_none() {
            // A distribution's kernel has it as a module, which stays loaded. Where there is none, nothing comes of it.
            let _ = Command::new("modprobe").args(["--quiet", "ip_vs"]).status();
        }
        if !loaded() {
            return Some("this kernel has no IPVS (CONFIG_IP_VS)".to_owned());
        }
        need("ipvsadm", "ipvsadm").err().map(|error| error.to_string())
    }

    fn lab(&self, builder: LabBuilder, _: &Setup) -> LabBuilder {
        builder.box_forwarding(true)
    }

    fn takes_offloads(&self) -> bool {
        true
    }

    fn start(&self, lab: &Lab, _: &Setup) -> Result<Running> {
        own_vip(lab)?;
        let the_box = &lab.the_box;
        the_box.sysctl("net.ipv4.vs.conntrack", "1")?;
        for protocol in ["-t", "-u"] {
            the_box.sh(&format!("ipvsadm -A {protocol} {} -s mh", vip()))?;
            for node in nodes(lab) {
                the_box.sh(&format!("ipvsadm -a {protocol} {} -r {node} -m", vip()))?;
            }
        }
        the_box.sh("nft add table ip masquerade")?;
        the_box.sh("nft add chain ip masquerade out { type nat hook postrouting priority srcnat ; }")?;
        the_box.sh("nft add rule ip masquerade out oifname nodes0 masquerade")?;
        ensure!(the_box.proc_net("ip_vs")?.lines().count() > 3, "IPVS shows no service");
        Ok(Running::at_vip(lab))
    }
}
