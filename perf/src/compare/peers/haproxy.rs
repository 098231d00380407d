//! HAProxy, mode tcp.

use std::fmt::Write;
use std::process::Command;

use anyhow::Result;

use super::{Peer, Running, Setup, nodes, own_vip, vip};
use crate::compare::cases::Case;
use crate::compare::process::{Process, listens, need, write};
use crate::lab::Lab;

pub struct Haproxy;

impl Peer for Haproxy {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn what(&self) -> &'static str {
        "HAProxy, mode tcp, a thread per core"
    }

    fn cannot(&self) -> &'static str {
        "UDP and SCTP; one connection through it is two: its restart ends them, the client's address is lost"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        match case {
            Case::Pps | Case::Live | Case::Latency => Some("no UDP"),
            Case::Memory => Some("no UDP flows; a million TCP connections through a proxy are four million sockets"),
            Case::Conn | Case::Bulk => None,
        }
    }

    fn missing(&self) -> Option<String> {
        need("haproxy", "haproxy").err().map(|error| error.to_string())
    }

    fn takes_offloads(&self) -> bool {
        true
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        own_vip(lab)?;
        // A port of the box's per connection to a node.
        lab.the_box.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        let mut config = format!(
            "global\n  nbthread {}\n  maxconn 8000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\nfrontend web\n  bind {} backlog 4096\n  default_backend nodes\nbackend nodes\n  balance roundrobin\n",
            setup.workers(),
            vip()
        );
        for (index, node) in nodes(lab).iter().enumerate() {
            // Writing to a String can't fail.
            let _ = writeln!(config, "  server node{index} {node} check");
        }
        let file = write(lab, "haproxy.cfg", &config)?;
        let mut command = Command::new(need("haproxy", "haproxy")?);
        let mut process = Process::start(lab, &lab.the_box, "haproxy", command.args(["-db", "-f"]).arg(file))?;
        process.wait_until("listening", || listens(&lab.the_box, vip().port()))?;
        Ok(Running::at_vip(lab).with(process))
    }
}
