//! nftables NAT, with the rules kube-proxy's nftables mode writes for a LoadBalancer address (Kubernetes 1.33,
//! pkg/proxy/nftables/proxier.go), one service for TCP and one for UDP.

use std::net::SocketAddrV4;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Peer, Running, Setup, nodes, own_snat, own_vip, vip};
use crate::compare::cases::Case;
use crate::compare::process::{need, write};
use crate::lab::{Lab, LabBuilder};

pub struct Nftables;

impl Peer for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn what(&self) -> &'static str {
        "nftables NAT as kube-proxy writes it (nftables mode)"
    }

    fn cannot(&self) -> &'static str {
        "health, draining, consistent hash, weights, limits; flows end when the tables or the box do"
    }

    fn unfit(&self, _: Case) -> Option<&'static str> {
        None
    }

    fn missing(&self) -> Option<String> {
        need("nft", "nftables").err().map(|error| error.to_string())
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
        let file = write(lab, "kube-proxy.nft", &rules(vip(), &nodes(lab), setup))?;
        let mut nft = Command::new(need("nft", "nftables")?);
        let output = lab.the_box.output(nft.arg("-f").arg(&file))?;
        ensure!(output.status.success(), "nft refused: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Running::at_vip(lab))
    }
}

fn rules(vip: SocketAddrV4, nodes: &[SocketAddrV4], setup: &Setup) -> String {
    let mut chains = String::new();
    for protocol in ["tcp", "udp"] {
        let vmap: Vec<String> =
            (0..nodes.len()).map(|index| format!("{index} : goto endpoint-{protocol}-{index}")).collect();
        for (index, node) in nodes.iter().enumerate() {
            chains.push_str(&format!(
                "  chain endpoint-{protocol}-{index} {{\n    ip saddr {} jump mark-for-masquerade\n    meta l4proto {protocol} dnat to {node}\n  }}\n",
                node.ip()
            ));
        }
        chains.push_str(&format!(
            "  chain service-{protocol} {{\n    numgen random mod {} vmap {{ {} }}\n  }}\n  chain external-{protocol} {{\n    jump mark-for-masquerade\n    goto service-{protocol}\n  }}\n",
            nodes.len(),
            vmap.join(", ")
        ));
    }
    let addresses = setup.snat_addresses();
    let masquerade = match (addresses.first(), addresses.last()) {
        (Some(first), Some(last)) => format!("snat to {first}-{last} fully-random"),
        _ => "masquerade fully-random".to_owned(),
    };
    let (address, port) = (vip.ip(), vip.port());
    format!(
        "table ip kube-proxy {{
  map service-ips {{
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {{ {address} . tcp . {port} : goto external-tcp, {address} . udp . {port} : goto external-udp }}
  }}
  map no-endpoint-services {{
    type ipv4_addr . inet_proto . inet_service : verdict
  }}
  map firewall-ips {{
    type ipv4_addr . inet_proto . inet_service : verdict
  }}
  chain mark-for-masquerade {{
    meta mark set meta mark or 0x4000
  }}
  chain masquerading {{
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    {masquerade}
  }}
{chains}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100;
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat;
    jump masquerading
  }}
  chain filter-prerouting {{
    type filter hook prerouting priority dstnat - 10;
    ct state new ip daddr . meta l4proto . th dport vmap @firewall-ips
  }}
  chain filter-forward {{
    type filter hook forward priority -110;
    ct state new ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }}
}}
"
    )
}
