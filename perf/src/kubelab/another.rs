//! A second box of a cluster, in the namespace of another host on the nodes' segment.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Cluster, Control, Place, TOKEN};
use crate::config;
use crate::dataplane::{Dataplane, program};
use crate::lab::{Host, Netns, plan};
use crate::rig::wait_for_addresses;

/// Its SNAT address has this number on the nodes' segment, beside the first box's.
const SNAT_HOST: u8 = 201;

/// Fields are dropped in order.
#[derive(Debug)]
pub struct AnotherBox {
    pub control: Control,
    pub dataplane: Dataplane,
    ns: Netns,
}

impl Cluster {
    /// `host` is on the nodes' segment: a client of a one-arm lab. `kubernetes`: lines of control's `[kubernetes]` table.
    pub fn another_box(&self, host: &Host, name: &str, kubernetes: &str) -> Result<AnotherBox> {
        let dir: PathBuf = self.lab.dir().join(name);
        let mut config = config::base(&self.lab, 1);
        config.nodes.clear();
        config.sets.clear();
        name.clone_into(&mut config.the_box.name);
        config.the_box.run_dir = dir.join("run");
        config.the_box.state_dir = dir.join("state");
        config.ports.truncate(1);
        "eth0".clone_into(&mut config.ports[0].interface);
        let own: [IpAddr; 2] = [false, true].map(|v6| plan::NODE_NET.host(SNAT_HOST).ip(v6));
        for (snat, address) in config.snat.iter_mut().zip(own) {
            snat.address = address;
        }
        let dataplane = Dataplane::start_in(&host.ns, &dir, &config)?;
        wait_for_addresses(&self.lab, &config).with_context(|| dataplane.log_tail())?;
        let place = Place { ns: &host.ns, dir, box_name: name, dataplane: dataplane.socket() };
        let control = Control::quick(&place, &self.server.kubeconfig(TOKEN), kubernetes)?;
        Ok(AnotherBox { control, dataplane, ns: host.ns.clone() })
    }
}

impl AnotherBox {
    /// The operator's CLI on this box.
    pub fn penstock(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("penstock")?);
        command.arg("--socket").arg(self.dataplane.socket()).args(arguments).env("COLUMNS", "160");
        let output = self.ns.output(&mut command)?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// Ends both processes cleanly.
    pub fn finish(mut self) -> Result<()> {
        self.control.stop()?;
        let status = self.dataplane.stop()?;
        ensure!(status.success(), "it ended with {status}\n{}", self.dataplane.log_tail());
        Ok(())
    }
}
