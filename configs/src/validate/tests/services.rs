use super::{edited, faults_of, host, one, one_of, one_on_host, snapshot};
use crate::validate::{BoxContext, desired, owner_name, warnings};

const SET: &str = "set = \"workers\"\ntarget_port = 31443";

#[test]
fn names_are_well_formed_and_each_once() {
    one(&[("name = \"web\"", "name = \"a b\"")], &["service[0] \"a b\".name: contains ' '"]);
    one(&[("name = \"web\"", "name = \"\"")], &["service[0] \"\".name: is empty"]);
    one(&[("name = \"web\"", "name = \"caf\u{e9}\"")], &["service[0]", "contains 'é'"]);
    let long = format!("name = {:?}", "x".repeat(254));
    one(&[("name = \"web\"", &long)], &["has 254 bytes", "at most 253"]);
    assert!(faults_of(&[("name = \"web\"", "name = \"shop/frontend:https\"")], None).is_empty());
    one(
        &[("[[set]]", "[[node]]\nname = \"worker-1\"\naddresses = [\"192.0.2.103\"]\n[[set]]")],
        &["node[2] \"worker-1\".name: is the name of node[0] too"],
    );
    one(
        &[("[[set]]", "[[set]]\nname = \"workers\"\nbackends = []\n[[set]]"), ("31443", "31443")],
        &["set[1] \"workers\".name: is the name of set[0] too"],
    );
    one(
        &[(
            "[[service]]",
            "[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nport = 1\nprotocol = \"tcp\"\nset = \"workers\"\ntarget_port = 5\n[[service]]",
        )],
        &["service[1] \"web\".name: is the name of service[0] too"],
    );
    one(
        &[("name = \"worker-2\"", "name = \"worker/2\""), (", { node = \"worker-2\" }", "")],
        &["node[1]", "contains '/'"],
    );
}

#[test]
fn owners_are_path_segments() {
    assert_eq!(owner_name("cluster-a.example"), None);
    for bad in ["", "..", ".hidden", "a/b", "a b", &"x".repeat(64)] {
        assert!(owner_name(bad).is_some(), "{bad:?}");
    }
}

#[test]
fn set_or_backends_and_not_both() {
    let both = format!("{SET}\nbackends = [{{ node = \"worker-1\" }}]");
    one(&[(SET, &both)], &["service[0] \"web\": has both `set` and `backends`"]);
    one(&[(SET, "")], &["service[0] \"web\": has neither `set` nor `backends`"]);
    // A cluster's service may have no backends for a while.
    let wire =
        snapshot("[[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nport = 1\nprotocol = \"tcp\"\nmode = \"dnat\"\n");
    assert_eq!(desired(&wire, "cluster", &BoxContext::default()), []);
    // So may a set, in the file too.
    assert!(faults_of(&[("[{ node = \"worker-1\" }, { node = \"worker-2\" }]", "[]")], None).is_empty());
}

#[test]
fn references_exist() {
    one(&[("set = \"workers\"", "set = \"worker\"")], &["service[0] \"web\".set: no set", "did you mean \"workers\"?"]);
    one(&[("set = \"workers\"", "set = \"x\"")], &["service[0] \"web\".set: no set", "add a [[set]]"]);
    one(
        &[("{ node = \"worker-2\" }", "{ node = \"worker2\" }")],
        &["set[0] \"workers\".backends[1].node: no node is named \"worker2\"", "did you mean \"worker-2\"?"],
    );
}

#[test]
fn a_backend_is_a_node_or_an_address_once() {
    let backend = |text: &'static str| [("{ node = \"worker-2\" }", text)];
    let both = backend("{ node = \"worker-2\", address = \"192.0.2.102\" }");
    one(&both, &["set[0] \"workers\".backends[1]: has both"]);
    one(&backend("{ port = 80 }"), &["set[0] \"workers\".backends[1]: has neither"]);
    one(
        &backend("{ node = \"worker-1\", weight = 3 }"),
        &["set[0] \"workers\".backends[1]: is listed before", "weight"],
    );
    assert!(faults_of(&backend("{ node = \"worker-1\", port = 81 }"), None).is_empty());
    assert!(faults_of(&backend("{ node = \"worker-2\", weight = 0 }"), None).is_empty());
}

#[test]
fn every_backend_has_a_port() {
    one(
        &[(SET, "set = \"workers\"")],
        &["service[0] \"web\".set: backend 0 of set \"workers\" has no port", "target_port"],
    );
    one(
        &[(SET, "backends = [{ node = \"worker-1\", port = 1 }, { node = \"worker-2\" }]")],
        &["service[0] \"web\".backends[1]: has no port"],
    );
    one(&[("port = 443", "port = 0")], &["service[0] \"web\".port: is 0"]);
    one(&[("target_port = 31443", "target_port = 0")], &["service[0] \"web\".target_port: is 0"]);
    one(&[("{ node = \"worker-2\" }", "{ node = \"worker-2\", port = 0 }")], &["backends[1].port: is 0"]);
}

#[test]
fn families_match() {
    const SIX: (&str, &str) = ("192.0.2.10\"", "2001:db8::10\"");
    // worker-2 has no IPv6 address: of a set it is passed over, inline it is a fault.
    assert!(faults_of(&[SIX], None).is_empty());
    one(
        &[SIX, (SET, "backends = [{ node = \"worker-2\", port = 1 }]")],
        &["service[0] \"web\".backends[0]: is a node without an IPv6 address"],
    );
    one(
        &[SIX, (SET, "backends = [{ address = \"192.0.2.9\", port = 1 }]")],
        &["service[0] \"web\".backends[0]: is not an IPv6 address"],
    );
    one(
        &[SIX, ("[{ node = \"worker-1\" }, ", "[")],
        &["service[0] \"web\".set: set \"workers\" has no backend with an IPv6 address"],
    );
}

#[test]
fn nat_needs_a_snat_address_of_the_family_and_says_so_once() {
    let no_v4 = ("[[snat]]\naddress = \"192.0.2.250\"", "");
    one(&[no_v4], &["service[0] \"web\".mode: mode \"nat\" needs an IPv4 SNAT address, and the box has none;"]);
    let more =
        format!("[[service]]\nname = \"b\"\nvip = \"192.0.2.10\"\nport = 1\nprotocol = \"tcp\"\n{SET}\n[[service]]");
    one(&[no_v4, ("[[service]]", &more)], &["service[0] \"b\".mode", "(1 more services need it too)"]);
    assert!(faults_of(&[no_v4, ("protocol = \"tcp\"", "protocol = \"tcp\"\nmode = \"dnat\"")], None).is_empty());
}

#[test]
fn a_vip_is_an_address_nobody_has() {
    let vip = |address: &str, what: &str| {
        let to = format!("{address}\"");
        one_on_host(
            &[("192.0.2.10\"", &to)],
            &["service[0] \"web\".vip:", what, "choose an address nothing else uses"],
        );
    };
    vip("192.0.2.2", "192.0.2.2 is the box's own address on eth0");
    vip("192.0.2.1", "192.0.2.1 is a gateway of the box");
    vip("192.0.2.102", "192.0.2.102 is the address of node \"worker-2\"");
    vip("192.0.2.250", "192.0.2.250 is a SNAT address of the box");
    vip("192.0.2.255", "192.0.2.255 is the broadcast address of the subnet on eth0");
    vip("224.0.0.1", "224.0.0.1 is a multicast address");
    vip("127.0.0.1", "127.0.0.1 is a loopback address");
    vip("0.0.0.0", "0.0.0.0 is in 0.0.0.0/8");
    vip("255.255.255.255", "255.255.255.255 is the broadcast address");
    vip("fe80::5", "fe80::5 is link-local");
    vip("ff02::1", "ff02::1 is a multicast address");
    one(
        &[(SET, "backends = [{ address = \"192.0.2.10\", port = 1 }]")],
        &["service[0] \"web\".vip: 192.0.2.10 is a backend's own address"],
    );
}

#[test]
fn a_wire_snapshot_is_held_against_the_boxs_file() {
    let context = BoxContext::new(&edited(&[]), Some(&host()));
    let faults = |vip: &str| -> Vec<String> {
        let text = format!("[[service]]\nname = \"a\"\nvip = \"{vip}\"\nport = 1\nprotocol = \"tcp\"\n");
        desired(&snapshot(&text), "cluster", &context).iter().map(ToString::to_string).collect()
    };
    assert_eq!(faults("192.0.2.77"), Vec::<String>::new());
    one_of(&faults("192.0.2.101"), &["service[0] \"a\".vip: 192.0.2.101 is the address of node \"worker-1\""]);
    one_of(&faults("192.0.2.2"), &["is the box's own address on eth0"]);
    one_of(&faults("192.0.2.250"), &["is a SNAT address of the box"]);
    one_of(
        &desired(&snapshot(""), "..", &context).iter().map(ToString::to_string).collect::<Vec<_>>(),
        &["owner \"..\" begins with a dot"],
    );
}

#[test]
fn nodes_are_reachable() {
    let address = |text: &'static str| [("[\"192.0.2.102\"]", text)];
    one(&address("[\"192.0.2.102\", \"192.0.2.103\"]"), &["node[1] \"worker-2\".addresses[1]:", "second IPv4"]);
    one(&address("[\"127.0.0.1\"]"), &["node[1] \"worker-2\".addresses[0]: 127.0.0.1 is a loopback"]);
    one_on_host(&address("[\"192.0.2.2\"]"), &["node[1]", "the box's own address", "AF_XDP cannot deliver"]);
    one_on_host(
        &[("{ node = \"worker-2\" }", "{ address = \"192.0.2.2\" }")],
        &["set[0] \"workers\".backends[1].address: 192.0.2.2 is the box's own address"],
    );
}

#[test]
fn source_ranges_and_timeouts() {
    let more = |text: &str| format!("port = 443\n{text}");
    one(
        &[("port = 443", &more("source_ranges = [\"10.0.0.0/8\", \"192.0.2.77/24\"]"))],
        &["service[0] \"web\".source_ranges[1]: 192.0.2.77/24", "write \"192.0.2.0/24\""],
    );
    for key in ["tcp_syn", "tcp_established", "tcp_fin", "tcp_time_wait", "tcp_rst", "udp_one_way", "udp"] {
        let text = format!("timeouts = {{ {key} = 0 }}");
        one(&[("port = 443", &more(&text))], &[&format!("service[0] \"web\".timeouts.{key}: is 0")]);
    }
    one(
        &[("port = 443", &more("timeouts = { tcp_established = 4000000000 }"))],
        &["service[0] \"web\".timeouts.tcp_established: is 4000000000 seconds"],
    );
}

#[test]
fn capacities_hold() {
    let limits = |text: &'static str| [("[limits]", text)];
    let two = "[[service]]\nname = \"b\"\nvip = \"192.0.2.9\"\nport = 1\nprotocol = \"tcp\"\nset = \"workers\"\ntarget_port = 1\n[[service]]";
    one(&[limits("[limits]\nservices = 1")[0], ("[[service]]", two)], &["service: 2 services", "limits.services is 1"]);
    one(
        &[
            limits("[limits]\nmaglev_size = 2")[0],
            ("{ node = \"worker-2\" }", "{ node = \"worker-2\" }, { address = \"192.0.2.9\" }"),
        ],
        &["set[0] \"workers\".backends: has 3 backends, the largest Maglev table 2 slots"],
    );
}

#[test]
fn warnings_of_what_is_seldom_meant() {
    let found: Vec<String> = warnings(&snapshot(
        r#"
        [[node]]
        name = "a"
        addresses = ["10.0.0.1"]
        [[node]]
        name = "b"
        addresses = ["10.0.0.1"]
        [[node]]
        name = "c"
        addresses = []
        [[set]]
        name = "idle"
        backends = []
        [[set]]
        name = "zero"
        backends = [{ node = "a", port = 1, weight = 0 }, { node = "b", port = 1, state = "draining" }]
        [[service]]
        name = "s"
        vip = "192.0.2.1"
        port = 1
        protocol = "tcp"
        set = "zero"
        source_ranges = ["2001:db8::/32"]
        "#,
    ))
    .iter()
    .map(ToString::to_string)
    .collect();
    let wanted = [
        "service[0] \"s\": has no backend that takes new flows",
        "service[0] \"s\".source_ranges: has no range of the VIP's family",
        "set[0] \"idle\": is named by no service",
        "node[1] \"b\": has the address 10.0.0.1, as node \"a\" does",
        "node[2] \"c\": has no address",
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.starts_with(wanted), "{found} / {wanted}");
    }
    assert_eq!(warnings(&edited(&[]).desired(1)), []);
}

#[test]
fn backends_in_motion() {
    let with = |line: &str| [("target_port = 31443", format!("target_port = 31443\n{line}"))];
    let faults = |line: &str| {
        let edits = with(line);
        let edits: Vec<(&str, &str)> = edits.iter().map(|(from, to)| (*from, to.as_str())).collect();
        faults_of(&edits, None)
    };
    for good in [
        "scheduler = \"random-two-choices\"\nslow_start = 30",
        "scheduler = \"nq\"",
        "on_down = \"rehome\"\npanic_threshold = 100",
        "panic_threshold = 0",
    ] {
        assert_eq!(faults(good), Vec::<String>::new(), "{good}");
    }
    for (bad, says) in [
        ("slow_start = 0", "service[0] \"web\".slow_start: is 0; write 1 to 3600 seconds"),
        ("slow_start = 3601", "service[0] \"web\".slow_start: is 3601"),
        ("panic_threshold = 101", "service[0] \"web\".panic_threshold: is 101, more than all"),
        (
            "scheduler = \"rr\"\nslow_start = 5",
            "service[0] \"web\".slow_start: has no effect with the scheduler \"rr\"",
        ),
    ] {
        let found = faults(bad);
        assert!(found.len() == 1 && found[0].contains(says), "{bad}: {found:?}");
    }
    let udp = [("protocol = \"tcp\"", "protocol = \"udp\"\non_down = \"reset\"")];
    one(&udp, &["service[0] \"web\".on_down: is about TCP connections"]);
    one(&[("\"lb1\"", "\"lb1\"\npanic_threshold = 200")], &["box.panic_threshold: is 200, more than all"]);
    one(&[("[limits]", "[limits]\ncounted_backends = 0")], &["limits.counted_backends: is 0"]);
}

#[test]
fn ends_and_refusals() {
    let more = |text: &str| format!("port = 443\n{text}");
    one(
        &[("port = 443", &more("on_idle = \"reset\"")), ("protocol = \"tcp\"", "protocol = \"udp\"")],
        &["service[0] \"web\".on_idle: is \"reset\", and UDP has no way to say so", "leave it out"],
    );
}

#[test]
fn limits() {
    let with = |limits: &str| format!("port = 443\nlimits = {limits}");
    for (limits, wanted) in [
        ("{}", "service[0] \"web\".limits: limits nothing"),
        ("{ connections = 0 }", "service[0] \"web\".limits.connections: is 0; write at least 1"),
        ("{ new_per_second = 5000000 }", "service[0] \"web\".limits.new_per_second: is 5000000; write at most 4194303"),
        ("{ per_source = {} }", "service[0] \"web\".limits.per_source: limits nothing"),
        ("{ per_source = { connections = 0 } }", "service[0] \"web\".limits.per_source.connections: is 0"),
        ("{ per_source = { connections = 1, prefix_v4 = 0 } }", "service[0] \"web\".limits.per_source.prefix_v4: is 0"),
        (
            "{ per_source = { connections = 1, prefix_v6 = 129 } }",
            "service[0] \"web\".limits.per_source.prefix_v6: is 129",
        ),
        (
            "{ connections = 10, per_source = { connections = 11 } }",
            "service[0] \"web\".limits.per_source.connections: is 11, more than the whole service may have (10)",
        ),
    ] {
        one(&[("port = 443", &with(limits))], &[wanted]);
    }
    let whole = "{ connections = 9, new_per_second = 9, per_source = { connections = 9, new_per_second = 9 } }";
    assert_eq!(faults_of(&[("port = 443", &with(whole))], None), Vec::<String>::new());
}

#[test]
fn dsr_leaves_ports_alone() {
    let dsr = |more: &str| format!("protocol = \"tcp\"\nmode = \"dsr\"\n{more}");
    let (protocol, target) = ("protocol = \"tcp\"", "target_port = 31443");
    let faults = |more: &str, to: &str| faults_of(&[(protocol, &dsr(more)), (target, to)], None);
    assert!(faults("", "").is_empty(), "no port is needed");
    assert!(faults("", "target_port = 443").is_empty());
    one(
        &[(protocol, &dsr(""))],
        &["service[0] \"web\".target_port: is 31443, and mode \"dsr\" leaves the packet its port 443"],
    );
    let ports = |port: u16| format!("backends = [{{ node = \"worker-1\" }}, {{ node = \"worker-2\", port = {port} }}]");
    let set = "backends = [{ node = \"worker-1\" }, { node = \"worker-2\" }]";
    assert!(faults_of(&[(protocol, &dsr("")), (target, ""), (set, &ports(443))], None).is_empty());
    one(
        &[(protocol, &dsr("")), (target, ""), (set, &ports(8443))],
        &["service[0] \"web\".set: backend 1 names port 8443, and mode \"dsr\""],
    );
    one(
        &[(protocol, &dsr("")), (SET, &ports(8443))],
        &["service[0] \"web\".backends[1].port: backend 1 names port 8443"],
    );
    // Nothing is sent from the box: no SNAT address is needed.
    let no_v4 = ("[[snat]]\naddress = \"192.0.2.250\"\n", "");
    assert!(faults_of(&[no_v4, (protocol, &dsr("")), (target, "")], None).is_empty());
}

#[test]
fn a_waived_reply_check_is_warned_of() {
    for (mode, wanted) in [("dnat", "blackholes its clients"), ("nat", "is about mode \"dnat\" only")] {
        let more = format!("protocol = \"tcp\"\nmode = {mode:?}\nreply_check = false");
        let found = warnings(&edited(&[("protocol = \"tcp\"", &more)]).desired(1));
        let [found] = &found[..] else { panic!("{found:?}") };
        let found = found.to_string();
        assert!(found.starts_with("service[0] \"web\".reply_check: is ") && found.contains(wanted), "{found}");
    }
}

#[test]
fn affinity_is_sane_and_alike_within_a_group() {
    let with = |text: &str| format!("protocol = \"tcp\"\naffinity = {{ by = \"client-ip\"{text} }}");
    let faults = |text: &str| faults_of(&[("protocol = \"tcp\"", &with(text))], None);
    for fine in ["", ", timeout = 1", ", timeout = 86400, prefix_v4 = 24, prefix_v6 = 64, group = \"shop/web\""] {
        assert!(faults(fine).is_empty(), "{fine}: {:?}", faults(fine));
    }
    for (bad, says) in [
        ("timeout = 0", "timeout: is 0; write 1 to 86400 seconds"),
        ("timeout = 86401", "timeout: is 86401"),
        ("prefix_v4 = 0", "prefix_v4: is 0; write 1 to 32 bits"),
        ("prefix_v4 = 33", "prefix_v4: is 33"),
        ("prefix_v6 = 129", "prefix_v6: is 129; write 1 to 128 bits"),
        ("group = \"a b\"", "group: contains ' '"),
    ] {
        let found = faults(&format!(", {bad}"));
        let wanted = format!("service[0] \"web\".affinity.{says}");
        assert!(found.len() == 1 && found[0].contains(&wanted), "{bad}: {found:?}");
    }
    let service = |port: u16, more: &str| {
        format!(
            "[[service]]\nname = \"{port}\"\nvip = \"192.0.2.1\"\nport = {port}\nprotocol = \"tcp\"\nmode = \"dnat\"\n\
             affinity = {{ by = \"client-ip\", group = \"shop\"{more} }}\n"
        )
    };
    let check = |text: String| desired(&snapshot(&text), "cluster", &BoxContext::default());
    assert_eq!(check(service(80, "") + &service(81, "")), []);
    let found = check(service(80, "") + &service(81, ", timeout = 60, prefix_v6 = 64"));
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    let wanted =
        "service[1] \"81\".affinity.timeout: is 60, and service[0] \"80\" of the same group \"shop\" has 10800";
    assert!(found[0].contains(wanted) && found[1].contains("prefix_v6: is 64"), "{found:?}");
    one(&[("[limits]", "[limits]\naffinity = 0")], &["limits.affinity: is 0"]);
}
