//! The nodes of TCP measurements: nginx, as the cheapest server that is to be had: it shares the machine with the box.

use std::process::Command;

use anyhow::Result;

use super::process::{Process, listens, need, write};
use crate::config::NODE_PORT;
use crate::lab::Lab;

/// The file of bulk measurements: sixteen at a time are through in a second, long before the client calls one lost.
const BULK: u64 = 8 << 20;
/// Where it is.
pub const BULK_PATH: &str = "/bulk";

/// A web server on every node, running until dropped.
pub struct WebNodes {
    _servers: Vec<Process>,
}

impl WebNodes {
    /// # Errors
    /// No nginx here.
    pub fn start(lab: &Lab) -> Result<Self> {
        let nginx = need("nginx", "nginx")?;
        let bulk = lab.path(format!("www{BULK_PATH}"))?;
        // A file of zeros takes no place, and sendfile reads it from the cache as any other.
        std::fs::File::create(bulk)?.set_len(BULK)?;
        let mut servers = Vec::new();
        for node in &lab.nodes {
            let config = write(lab, &format!("nginx-{}.conf", node.name), &config(lab, &node.name))?;
            let mut command = Command::new(&nginx);
            command.arg("-p").arg(lab.dir()).arg("-c").arg(config).args(["-e", "stderr", "-g", "daemon off;"]);
            let mut server = Process::start(lab, &node.ns, &format!("nginx-{}", node.name), &mut command)?;
            server.wait_until("listening", || listens(&node.ns, NODE_PORT))?;
            servers.push(server);
        }
        Ok(Self { _servers: servers })
    }
}

fn config(lab: &Lab, name: &str) -> String {
    let dir = lab.dir();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {}/nginx-{name}-{kind};\n", dir.display()))
        .concat();
    format!(
        "user root;\nworker_processes {cores};\npid nginx-{name}.pid;\nerror_log stderr;\nworker_rlimit_nofile 65536;\n\
         events {{ worker_connections 16384; }}\nhttp {{\n{temporary}  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  \
         keepalive_requests 1000000;\n  server {{\n    listen {NODE_PORT} backlog=4096 reuseport;\n    root {root}/www;\n    \
         location = / {{ return 200 \"{name}\\n\"; }}\n  }}\n}}\n",
        cores = crate::config::cores(),
        root = dir.display()
    )
}
