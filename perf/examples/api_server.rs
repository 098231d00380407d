//! The test API server on its own, for `kubectl`: prints the kubeconfig's path and serves until it is interrupted.

use penstock_perf::apiserver::{ADMIN_TOKEN, ApiServer, Settings};

fn main() -> anyhow::Result<()> {
    let server = ApiServer::start(Settings::default())?;
    for definition in penstock_control::crd::definitions() {
        server.put(&serde_json::to_value(definition)?).map_err(|e| anyhow::anyhow!(e.message))?;
    }
    let path = std::env::args().nth(1).unwrap_or_else(|| "kubeconfig.json".into());
    std::fs::write(&path, server.kubeconfig(ADMIN_TOKEN))?;
    println!("{} serves; kubectl --kubeconfig {path} get services", server.url());
    loop {
        std::thread::park();
    }
}
