//! iptables NAT, with the chains kube-proxy's iptables mode writes for a LoadBalancer address (Kubernetes 1.33,
//! pkg/proxy/iptables/proxier.go), one service for TCP and one for UDP.

use std::fmt::Write;
use std::net::SocketAddrV4;

use super::Setup;
use super::kube_proxy::KubeProxy;

pub static IPTABLES: KubeProxy = KubeProxy {
    name: "iptables",
    what: "iptables NAT as kube-proxy writes it (iptables mode)",
    cannot: "health, draining, consistent hash, weights, limits; rules are walked one by one: slower with every service",
    loader: "iptables-restore",
    arguments: &[],
    package: "iptables",
    rules,
    steered: false,
};

pub static IPTABLES_RPS: KubeProxy =
    KubeProxy { name: "iptables-rps", what: "the same, steered to the box's core (RPS)", steered: true, ..IPTABLES };

fn rules(vip: SocketAddrV4, nodes: &[SocketAddrV4], setup: &Setup) -> String {
    let (mut chains, mut services, mut rest) = (String::new(), String::new(), String::new());
    for protocol in ["tcp", "udp"] {
        let (service, external) = (format!("KUBE-SVC-{protocol}"), format!("KUBE-EXT-{protocol}"));
        // Writing to a String can't fail.
        let _ = writeln!(chains, ":{service} - [0:0]\n:{external} - [0:0]");
        let _ = writeln!(
            services,
            "-A KUBE-SERVICES -m comment --comment \"shop/web:{protocol} loadbalancer IP\" -m {protocol} -p {protocol} -d {}/32 --dport {} -j {external}",
            vip.ip(),
            vip.port()
        );
        let _ = writeln!(
            rest,
            "-A {external} -m comment --comment \"masquerade traffic for shop/web:{protocol} external destinations\" -j KUBE-MARK-MASQ\n-A {external} -j {service}"
        );
        for (index, node) in nodes.iter().enumerate() {
            let endpoint = format!("KUBE-SEP-{protocol}-{index}");
            let _ = writeln!(chains, ":{endpoint} - [0:0]");
            let left = nodes.len() - index;
            let choice = match left {
                1 => String::new(),
                _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            let _ = writeln!(
                rest,
                "-A {service} -m comment --comment \"shop/web:{protocol} -> {node}\" {choice}-j {endpoint}\n\
                 -A {endpoint} -m comment --comment shop/web:{protocol} -s {}/32 -j KUBE-MARK-MASQ\n\
                 -A {endpoint} -m comment --comment shop/web:{protocol} -m {protocol} -p {protocol} -j DNAT --to-destination {node}",
                node.ip()
            );
        }
    }
    let addresses = setup.snat_addresses();
    let masquerade = match (addresses.first(), addresses.last()) {
        (Some(first), Some(last)) => format!("SNAT --to-source {first}-{last} --random-fully"),
        _ => "MASQUERADE --random-fully".to_owned(),
    };
    format!(
        "*filter
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
{services}-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j {masquerade}
{rest}COMMIT
"
    )
}
