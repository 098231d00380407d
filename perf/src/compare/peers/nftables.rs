//! nftables NAT, with the rules kube-proxy's nftables mode writes for a LoadBalancer address (Kubernetes 1.33,
//! pkg/proxy/nftables/proxier.go), one service for TCP and one for UDP.

use std::net::SocketAddrV4;

use super::Setup;
use super::kube_proxy::KubeProxy;

pub static NFTABLES: KubeProxy = KubeProxy {
    name: "nftables",
    what: "nftables NAT as kube-proxy writes it (nftables mode)",
    cannot: "health, draining, consistent hash, weights, limits; flows end when the tables or the box do",
    loader: "nft",
    arguments: &["-f"],
    package: "nftables",
    rules,
    steered: false,
};

pub static NFTABLES_RPS: KubeProxy =
    KubeProxy { name: "nftables-rps", what: "the same, steered to the box's core (RPS)", steered: true, ..NFTABLES };

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
