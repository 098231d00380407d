//! Ports of an address the kernel has too: what the dataplane takes must never be the kernel's.

use super::HostFacts;

/// kube-proxy's default `--service-node-port-range`.
const NODE_PORTS: [u16; 2] = [30_000, 32_767];
/// Below are the ports of services (RFC 6335, 6: "system ports").
pub(super) const FIRST_PORT: u16 = 1024;

/// What stands in the way of taking `ports`, and ports that are free, if any are.
pub(super) fn conflict(ports: [u16; 2], host: Option<&HostFacts>) -> Option<(String, String)> {
    let taken = taken(host);
    let (range, what) = taken.iter().find(|(range, _)| range[0] <= ports[1] && ports[0] <= range[1])?;
    let problem = match range {
        [first, last] if first == last => format!("{ports:?} contains {first}, {what}"),
        [first, last] => format!("{ports:?} overlaps {first}-{last}, {what}"),
    };
    let remedy = match free(&taken) {
        Some(free) => format!("take ports nothing else does, such as ports = {free:?}, or an address of its own"),
        None => "take an address of its own, without `shared`".into(),
    };
    Some((problem, remedy))
}

fn taken(host: Option<&HostFacts>) -> Vec<([u16; 2], &'static str)> {
    let mut taken = vec![(NODE_PORTS, "the NodePort range")];
    if let Some(host) = host {
        let given_out = host.local_port_range.map(|range| without(range, &host.reserved_ports)).unwrap_or_default();
        taken.extend(given_out.into_iter().map(|range| (range, "of net.ipv4.ip_local_port_range")));
        taken.extend(host.listeners.iter().map(|port| ([*port, *port], "on which something listens")));
    }
    taken
}

/// `8080,40000-40063`, as the kernel writes `ip_local_reserved_ports`.
#[must_use]
pub fn port_list(text: &str) -> Vec<[u16; 2]> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some([first.trim().parse().ok()?, last.trim().parse().ok()?])
    };
    text.split(',').filter_map(range).collect()
}

/// What is left of a range.
fn without(range: [u16; 2], reserved: &[[u16; 2]]) -> Vec<[u16; 2]> {
    let mut left = vec![range];
    for [first, last] in reserved {
        left = left
            .into_iter()
            .flat_map(|[from, to]| {
                let below = first.checked_sub(1).map(|end| [from, to.min(end)]);
                let above = last.checked_add(1).map(|start| [from.max(start), to]);
                [below, above].into_iter().flatten().filter(|[from, to]| from <= to)
            })
            .collect();
    }
    left
}

/// The widest range nothing takes.
fn free(taken: &[([u16; 2], &str)]) -> Option<[u16; 2]> {
    let mut ranges: Vec<[u16; 2]> = taken.iter().map(|(range, _)| *range).collect();
    ranges.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = u32::from(FIRST_PORT);
    for [first, last] in ranges.into_iter().map(|range| range.map(u32::from)) {
        if next < first {
            gaps.push([next, first - 1]);
        }
        next = next.max(last + 1);
    }
    if next <= u32::from(u16::MAX) {
        gaps.push([next, u32::from(u16::MAX)]);
    }
    let widest = gaps.into_iter().max_by_key(|[first, last]| last - first)?;
    Some([u16::try_from(widest[0]).ok()?, u16::try_from(widest[1]).ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(range: [u16; 2], listeners: &[u16]) -> HostFacts {
        HostFacts { local_port_range: Some(range), listeners: listeners.to_vec(), ..HostFacts::default() }
    }

    #[test]
    fn disjoint_ports_are_free_to_take() {
        let host = host([32_768, 60_999], &[22, 6443]);
        assert_eq!(conflict([61_000, 65_535], Some(&host)), None);
        assert_eq!(conflict([7000, 29_999], Some(&host)), None);
    }

    #[test]
    fn each_overlap_is_named_by_its_edge() {
        let host = host([32_768, 60_999], &[6443]);
        for (ports, what) in [
            ([60_999, 65_535], "ip_local_port_range"),
            ([1024, 6443], "contains 6443"),
            ([20_000, 30_000], "NodePort"),
            ([32_767, 32_767], "NodePort"),
        ] {
            let (problem, remedy) = conflict(ports, Some(&host)).expect("overlaps");
            assert!(problem.contains(what), "{problem}");
            assert!(remedy.contains("[6444, 29999]"), "{remedy}");
        }
    }

    #[test]
    fn reserved_ports_of_the_range_are_not_given_out() {
        let reserved = port_list("8080,40000-40063,50000-65535\n");
        assert_eq!(reserved, [[8080, 8080], [40_000, 40_063], [50_000, 65_535]]);
        assert_eq!(port_list("\n"), Vec::<[u16; 2]>::new());
        let host = HostFacts { reserved_ports: reserved, ..host([32_768, 60_999], &[40_010]) };
        let (problem, _) = conflict([40_000, 40_063], Some(&host)).expect("a listener is in the way all the same");
        assert!(problem.contains("40010, on which something listens"), "{problem}");
        let host = HostFacts { listeners: Vec::new(), ..host };
        assert_eq!(conflict([40_000, 40_063], Some(&host)), None);
        assert_eq!(conflict([60_000, 60_999], Some(&host)), None);
        let (problem, _) = conflict([40_000, 40_064], Some(&host)).expect("one too many");
        assert!(problem.contains("overlaps 40064-49999, of net.ipv4.ip_local_port_range"), "{problem}");
    }

    #[test]
    fn where_nothing_is_free_the_remedy_is_another_address() {
        let (_, remedy) = conflict([40_000, 40_001], Some(&host([1024, 65_535], &[]))).expect("overlaps");
        assert_eq!(remedy, "take an address of its own, without `shared`");
    }
}
