//! The kernel's NAT with the rules kube-proxy writes, by either tool.

use std::net::SocketAddrV4;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Peer, Running, Setup, nodes, own_snat, own_vip, steer_to_box, vip};
use crate::compare::cases::Case;
use crate::compare::process::{need, write};
use crate::lab::{Lab, LabBuilder};

/// A mode of kube-proxy.
pub struct KubeProxy {
    pub name: &'static str,
    pub what: &'static str,
    pub cannot: &'static str,
    /// What loads the rules, with what before their file's name, and the package it is in.
    pub loader: &'static str,
    pub arguments: &'static [&'static str],
    pub package: &'static str,
    /// For the VIP and the nodes behind it.
    pub rules: fn(SocketAddrV4, &[SocketAddrV4], &Setup) -> String,
    /// On the box's core, not on its sender's; only where these differ and the box is the limit.
    pub steered: bool,
}

impl Peer for KubeProxy {
    fn name(&self) -> &'static str {
        self.name
    }

    fn what(&self) -> &'static str {
        self.what
    }

    fn cannot(&self) -> &'static str {
        self.cannot
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        (self.steered && !matches!(case, Case::Pps | Case::Live)).then_some("as without RPS, or near it")
    }

    fn missing(&self) -> Option<String> {
        need(self.loader, self.package).err().map(|error| error.to_string())
    }

    fn lab(&self, builder: LabBuilder, _: &Setup) -> LabBuilder {
        builder.box_forwarding(true)
    }

    fn takes_offloads(&self) -> bool {
        true
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        own_vip(lab)?;
        own_snat(lab, setup)?;
        let file = write(lab, &format!("kube-proxy.{}", self.name), &(self.rules)(vip(), &nodes(lab), setup))?;
        let mut load = Command::new(need(self.loader, self.package)?);
        let output = lab.the_box.output(load.args(self.arguments).arg(&file))?;
        ensure!(output.status.success(), "{} refused: {}", self.loader, String::from_utf8_lossy(&output.stderr));
        if self.steered {
            steer_to_box(lab)?;
        }
        Ok(Running::at_vip(lab))
    }
}
