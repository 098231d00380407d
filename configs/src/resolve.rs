//! Where a service's packets can go: its backends with their addresses and ports filled in.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use crate::desired::{Backend, BackendState, Desired, Node, Service};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedBackend<'a> {
    /// The node's name, or the address as text.
    pub name: Cow<'a, str>,
    /// Of the VIP's family.
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    pub state: BackendState,
}

/// Names of a snapshot, looked up once for all its services.
#[derive(Debug)]
pub struct Resolver<'a> {
    nodes: HashMap<&'a str, &'a Node>,
    sets: HashMap<&'a str, &'a [Backend]>,
}

impl<'a> Resolver<'a> {
    #[must_use]
    pub fn new(desired: &'a Desired) -> Self {
        let mut nodes = HashMap::with_capacity(desired.nodes.len());
        for node in &desired.nodes {
            nodes.entry(node.name.as_str()).or_insert(node);
        }
        let mut sets = HashMap::with_capacity(desired.sets.len());
        for set in &desired.sets {
            sets.entry(set.name.as_str()).or_insert(set.backends.as_slice());
        }
        Self { nodes, sets }
    }

    /// The service's list as written: its set's or its own. Services of one set get the same slice.
    #[must_use]
    pub fn list(&self, service: &'a Service) -> &'a [Backend] {
        match &service.set {
            Some(name) => self.sets.get(name.as_str()).copied().unwrap_or_default(),
            None => &service.backends,
        }
    }

    /// The backend's address of one family.
    #[must_use]
    pub fn address_of(&self, backend: &Backend, v4: bool) -> Option<IpAddr> {
        match (&backend.node, backend.address) {
            (Some(name), _) => {
                let node = self.nodes.get(name.as_str())?;
                node.addresses.iter().copied().find(|address| address.is_ipv4() == v4)
            }
            (None, address) => address.filter(|address| address.is_ipv4() == v4),
        }
    }

    /// Backends the service can reach, in the document's order. Passed over: those without an address
    /// of the VIP's family or without a port.
    pub fn backends_of(&self, service: &'a Service) -> impl Iterator<Item = ResolvedBackend<'a>> {
        let v4 = service.vip.is_ipv4();
        self.list(service).iter().filter_map(move |backend| {
            let address = self.address_of(backend, v4)?;
            let name = match &backend.node {
                Some(name) => Cow::Borrowed(name.as_str()),
                None => Cow::Owned(address.to_string()),
            };
            let port = backend.port.or(service.backend_port())?;
            Some(ResolvedBackend { name, address, port, weight: backend.weight, state: backend.state })
        })
    }
}

/// [`Resolver::backends_of`] for one service; of many, make the [`Resolver`] once.
pub fn backends_of<'a>(desired: &'a Desired, service: &'a Service) -> impl Iterator<Item = ResolvedBackend<'a>> {
    Resolver::new(desired).backends_of(service).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired() -> Desired {
        let text = r#"
            [[node]]
            name = "a"
            addresses = ["10.0.0.1", "fd00::1"]
            [[node]]
            name = "b"
            addresses = ["10.0.0.2"]
            [[set]]
            name = "workers"
            backends = [{ node = "b", weight = 5, state = "draining" }, { node = "a", port = 99 }, { address = "fd00::9" }]
            [[service]]
            name = "four"
            vip = "192.0.2.1"
            port = 80
            protocol = "tcp"
            set = "workers"
            target_port = 30080
            [[service]]
            name = "six"
            vip = "2001:db8::1"
            port = 80
            protocol = "tcp"
            set = "workers"
            target_port = 30080
            [[service]]
            name = "inline"
            vip = "192.0.2.1"
            port = 81
            protocol = "udp"
            backends = [{ node = "a", port = 7 }, { node = "ghost", port = 7 }, { address = "10.0.0.9" }]
        "#;
        toml::from_str(text).expect("a snapshot")
    }

    fn resolved(desired: &Desired, index: usize) -> Vec<String> {
        backends_of(desired, &desired.services[index])
            .map(|b| format!("{} {} {} {} {:?}", b.name, b.address, b.port, b.weight, b.state))
            .collect()
    }

    #[test]
    fn addresses_of_the_vips_family_in_the_documents_order() {
        let desired = desired();
        assert_eq!(resolved(&desired, 0), ["b 10.0.0.2 30080 5 Draining", "a 10.0.0.1 99 1 Active"]);
        assert_eq!(resolved(&desired, 1), ["a fd00::1 99 1 Active", "fd00::9 fd00::9 30080 1 Active"]);
    }

    #[test]
    fn without_address_or_port_there_is_no_backend() {
        assert_eq!(resolved(&desired(), 2), ["a 10.0.0.1 7 1 Active"]);
    }

    #[test]
    fn services_of_one_set_share_its_slice() {
        let desired = desired();
        let resolver = Resolver::new(&desired);
        assert_eq!(resolver.list(&desired.services[0]).as_ptr(), resolver.list(&desired.services[1]).as_ptr());
    }
}
