//! Which addresses can be a VIP, a SNAT address or a backend.

use std::net::IpAddr;

use ipnet::IpNet;

/// Why no host can be reached at `address`, if none can (RFC 6890 and RFC 1122, 3.2.1.3).
pub(super) fn martian(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [0, ..] => Some("is in 0.0.0.0/8, which stands for \"this network\""),
            [127, ..] => Some("is a loopback address"),
            [169, 254, ..] => Some("is link-local, which is never forwarded (RFC 3927)"),
            [224..=239, ..] => Some("is a multicast address"),
            [255, 255, 255, 255] => Some("is the broadcast address"),
            [240..=255, ..] => Some("is in the reserved range 240.0.0.0/4"),
            _ => None,
        },
        IpAddr::V6(v6) if v6.is_unspecified() => Some("is the unspecified address"),
        IpAddr::V6(v6) if v6.is_loopback() => Some("is the loopback address"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("is a multicast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("is link-local, which is never forwarded (RFC 4291)"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("is an IPv4-mapped IPv6 address, which never appears on the wire")
        }
        IpAddr::V6(_) => None,
    }
}

/// The addresses of an interface's subnet that no host may have.
pub(super) fn reserved_in(net: &IpNet) -> impl Iterator<Item = (IpAddr, &'static str)> {
    let of_subnet = match net {
        // RFC 3021: a /31 has neither.
        IpNet::V4(v4) if v4.prefix_len() < 31 => Some([
            (IpAddr::V4(v4.network()), "the network address of the subnet on"),
            (IpAddr::V4(v4.broadcast()), "the broadcast address of the subnet on"),
        ]),
        _ => None,
    };
    of_subnet.into_iter().flatten()
}

pub(super) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The problem and remedy of a network with bits set beyond its prefix.
pub(crate) fn host_bits(net: &IpNet) -> Option<(String, String)> {
    let trunc = net.trunc();
    (trunc != *net).then(|| (format!("{net} has bits set beyond its prefix"), format!("write \"{trunc}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn martians_and_neighbours_that_are_none() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "febf::1",
            "::ffff:192.0.2.1",
        ] {
            assert!(martian(text.parse().expect("address")).is_some(), "{text}");
        }
        for text in [
            "1.0.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.1.1",
            "169.255.0.1",
            "223.255.255.255",
            "10.0.0.255",
            "fec0::1",
            "fd00::1",
            "2001:db8::1",
            "64:ff9b::1",
        ] {
            assert_eq!(martian(text.parse().expect("address")), None, "{text}");
        }
    }
}
