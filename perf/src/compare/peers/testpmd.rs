//! DPDK's testpmd over net_af_xdp, MAC forwarding from port to port: what others reach over the same sockets.

use std::process::Command;

use anyhow::Result;

use super::{BOX_CORE, GENERATOR_CORE, Peer, Running, Setup, mac_of, mac_text};
use crate::compare::cases::Case;
use crate::compare::process::{Process, need};
use crate::lab::Lab;

pub struct Testpmd;

impl Peer for Testpmd {
    fn name(&self) -> &'static str {
        "testpmd"
    }

    fn what(&self) -> &'static str {
        "DPDK testpmd over net_af_xdp, --forward-mode=mac; clients address the node"
    }

    fn cannot(&self) -> &'static str {
        "balance: MACs only; it takes the interface whole, ARP and SSH with it"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        match case {
            Case::Pps | Case::Live | Case::Latency => None,
            Case::Memory => Some("it keeps no flows"),
            Case::Conn | Case::Bulk => {
                Some("it always spins: on a core that clients and servers need, that says nothing")
            }
        }
    }

    fn missing(&self) -> Option<String> {
        if crate::config::cores() < 2 {
            return Some("it wants two cores".to_owned());
        }
        need("dpdk-testpmd", "dpdk-dev").err().map(|error| error.to_string())
    }

    fn start(&self, lab: &Lab, _: &Setup) -> Result<Running> {
        let (client, node) = (&lab.clients[0], &lab.nodes[0]);
        // Nobody answers ARP on the box: its interfaces are testpmd's.
        for (host, interface) in [(client, "clients0"), (node, "nodes0")] {
            let gateway = host.ns.sh("ip -4 route show default")?;
            let gateway = gateway.split_whitespace().nth(2).unwrap_or_default().to_owned();
            let mac = mac_text(mac_of(&lab.the_box, interface)?);
            host.ns.sh(&format!("ip neighbor replace {gateway} lladdr {mac} dev eth0 nud permanent"))?;
        }
        // Into a file it would say that it forwards only when its buffer is full.
        let mut command = Command::new("stdbuf");
        command.arg("-oL").arg(need("dpdk-testpmd", "dpdk-dev")?);
        command.args([
            "-l",
            &format!("{GENERATOR_CORE},{BOX_CORE}"),
            "--no-pci",
            "--no-huge",
            "-m",
            "512",
            "--no-shconf",
        ]);
        command.arg(format!("--file-prefix={}", lab.id()));
        command.args(["--vdev=net_af_xdp0,iface=clients0", "--vdev=net_af_xdp1,iface=nodes0", "--"]);
        command.args(["--forward-mode=mac", "--auto-start", "--nb-cores=1", "--burst=64", "--rxd=1024", "--txd=1024"]);
        command.args(["--total-num-mbufs=32768", "--no-lsc-interrupt", "--no-flush-rx"]);
        command.arg(format!("--eth-peer=0,{}", mac_text(mac_of(&client.ns, "eth0")?)));
        command.arg(format!("--eth-peer=1,{}", mac_text(mac_of(&node.ns, "eth0")?)));
        let mut process = Process::start(lab, &lab.the_box, "testpmd", &mut command)?;
        let log = lab.dir().join("testpmd.log");
        process.wait_until("forwarding", || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("packet forwarding - ports"))
        })?;
        Ok(Running::at_node(lab).with(process))
    }
}
