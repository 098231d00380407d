//! nginx's stream module, TCP and UDP.

use std::fmt::Write;
use std::process::Command;

use anyhow::Result;

use super::{BOX_CORE, Peer, Running, Setup, nodes, own_vip, vip};
use crate::compare::cases::Case;
use crate::compare::process::{Process, listens, need, write};
use crate::lab::Lab;

/// Where Debian's libnginx-mod-stream puts it.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub struct Nginx;

impl Peer for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn what(&self) -> &'static str {
        "nginx, stream module, a worker per core"
    }

    fn cannot(&self) -> &'static str {
        "SCTP; one connection through it is two, a socket and a port per UDP flow: its restart ends them, the client's address is lost"
    }

    fn unfit(&self, case: Case) -> Option<&'static str> {
        (case == Case::Memory)
            .then_some("a socket and a port towards the node per UDP flow: it ends near 64,000 a node")
    }

    fn missing(&self) -> Option<String> {
        let module = std::path::Path::new(MODULE).exists();
        let nginx = need("nginx", "nginx libnginx-mod-stream").err().map(|error| error.to_string());
        nginx.or_else(|| (!module).then(|| format!("no {MODULE} here (Debian: apt-get install libnginx-mod-stream)")))
    }

    fn takes_offloads(&self) -> bool {
        true
    }

    fn start(&self, lab: &Lab, setup: &Setup) -> Result<Running> {
        own_vip(lab)?;
        lab.the_box.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        let pinning = if setup.pinned { format!("worker_cpu_affinity {};", affinity(BOX_CORE)) } else { String::new() };
        let mut servers = String::new();
        for node in nodes(lab) {
            // Writing to a String can't fail.
            let _ = write!(servers, " server {node};");
        }
        let config = format!(
            "load_module {MODULE};\nuser root;\nworker_processes {};\n{pinning}\nworker_rlimit_nofile 200000;\npid nginx-box.pid;\n\
             error_log stderr;\nevents {{ worker_connections 100000; }}\n\
             stream {{\n  upstream nodes {{{servers} }}\n  server {{ listen {vip} backlog=4096 reuseport; proxy_pass nodes; }}\n  \
             server {{ listen {vip} udp reuseport; proxy_timeout 30s; proxy_pass nodes; }}\n}}\n",
            setup.workers(),
            vip = vip()
        );
        let file = write(lab, "nginx-box.conf", &config)?;
        let mut command = Command::new(need("nginx", "nginx")?);
        command.arg("-p").arg(lab.dir()).arg("-c").arg(file).args(["-e", "stderr", "-g", "daemon off;"]);
        let mut process = Process::start(lab, &lab.the_box, "nginx-box", &mut command)?;
        process.wait_until("listening", || listens(&lab.the_box, vip().port()))?;
        Ok(Running::at_vip(lab).with(process))
    }
}

/// nginx's mask of one core: binary, the highest core first.
fn affinity(core: usize) -> String {
    format!("{:b}", 1_u64 << core)
}
