use std::io::Write;

use super::*;

const MINIMAL: &str = "version = 1\n[[port]]\ninterface = \"eth0\"\n";

/// Every fault as printed, without the file's name.
fn faults(text: &str) -> Vec<String> {
    match parse(text, "lb.toml") {
        Ok(_) => Vec::new(),
        Err(faults) => faults
            .to_string()
            .lines()
            .map(|line| line.strip_prefix("lb.toml:").expect("the file's name first").to_owned())
            .collect(),
    }
}

fn faults_with(more: &str) -> Vec<String> {
    faults(&format!("{MINIMAL}{more}"))
}

#[test]
fn the_smallest_file_is_good() {
    let file = parse(MINIMAL, "lb.toml").expect("a box without services");
    assert_eq!(file.ports[0].interface, "eth0");
    assert_eq!(file.limits, crate::file::Limits::default());
}

#[test]
fn all_faults_of_form_and_meaning_come_at_once_with_their_lines() {
    let text = r#"version = 1
colour = "blue"

[[port]]
inteface = "eth0"
queues = "2"

[limits]
maglev_size = 65536
services = -1

[[snat]]
address = "192.0.2.300"

[[service]]
name = "web"
vip = "127.0.0.1"
port = 80
protocol = "tpc"
set = "wrokers"

[[service]]
name = "dns"
vip = "224.0.0.1"
port = 70000
protocol = "udp"
backends = []

[[service]]
name = "mail"
vip = "192.0.2.7"
port = 25
protocol = "tcp"
mode = "dnat"
set = "wrokers"
source_ranges = ["192.0.2.1/24"]

[[set]]
name = "workers"
backends = [
    { address = "10.0.0.1", port = 1 },
    { adress = "10.0.0.2", port = 1 },
]
"#;
    assert_eq!(
        faults(text),
        [
            "2: colour: is not a known key; remove it; known here: version, box, port, workers, snat, limits, \
             timeouts, node, set, service",
            "5: port[0].inteface: is not a known key; did you mean `interface`?",
            "6: port[0].queues: is the text \"2\", not a number; write 2 without quotes",
            "9: limits.maglev_size: 65536 is not a prime; write 65537",
            "10: limits.services: is -1; write a number from 0 to 4294967295",
            "13: snat[0].address: \"192.0.2.300\" is not an IP address; write an IPv4 or IPv6 address such as \
             192.0.2.10 or 2001:db8::10; names are not resolved",
            "19: service[0] \"web\".protocol: is \"tpc\", which is not known; did you mean \"tcp\"?",
            "25: service[1] \"dns\".port: is 70000; write a number from 0 to 65535",
            "35: service[2] \"mail\".set: no set is named \"wrokers\"; did you mean \"workers\"?",
            "36: service[2] \"mail\".source_ranges[0]: 192.0.2.1/24 has bits set beyond its prefix; write \
             \"192.0.2.0/24\"",
            "42: set[0] \"workers\".backends[1].adress: is not a known key; did you mean `address`?",
        ]
    );
}

#[test]
fn a_fault_of_form_hides_no_fault_of_meaning_but_its_own() {
    // A value no other hangs on, and unknown keys: the rest of the service is looked at.
    let service = "[[service]]\nname = \"a\"\nvip = \"127.0.0.1\"\nport = 1\nprotocol = \"tcp\"\nset = \"x\"\n\
                   mode = \"dnat\"\n";
    let found = faults_with(&format!(
        "{service}scheduler = \"fastest\"\nfoo = 1\ntimeouts = {{ udp = -1, tcp_established = 0 }}\n"
    ));
    let paths: Vec<&str> = found.iter().map(|fault| fault.split(": ").nth(1).expect("a path")).collect();
    let wanted = ["vip", "set", "scheduler", "foo", "timeouts.udp", "timeouts.tcp_established"];
    assert_eq!(paths, wanted.map(|key| format!("service[0] \"a\".{key}")), "{found:#?}");
    // Without its mode the service's needs are unknown.
    let found = faults_with(&service.replace("\"dnat\"", "\"dnta\""));
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn what_is_missing_is_named_at_the_header_of_its_table() {
    assert_eq!(
        faults("[[port]]\nxdp = \"auto\"\n\n[[service]]\nname = \"web\"\nport = 80\n"),
        [
            "1: port[0].interface: is missing; add interface = a text in quotes",
            "1: version: is missing; add version = 1",
            "4: service[0] \"web\".vip: is missing; add vip = an address in quotes, such as \"192.0.2.10\"",
            "4: service[0] \"web\".protocol: is missing; add protocol = one of \"tcp\", \"udp\", \"sctp\"",
        ]
    );
    assert_eq!(faults("version = 1"), ["1: port: is missing; add a [[port]] table"]);
}

#[test]
fn a_key_misspelt_is_not_missing_too_and_its_value_counts() {
    // The node is known by its misspelt name, and the misspelt key's value is looked at.
    let more = "[[node]]\nnmae = \"n1\"\naddresses = [\"10.0.0.1\"]\n\
                [[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nport = 1\nprotocol = \"tcp\"\nmode = \"dnat\"\n\
                backends = [{ node = \"n1\", prt = \"x\" }]\n";
    assert_eq!(
        faults_with(more),
        [
            "5: node[0].nmae: is not a known key; did you mean `name`?",
            "13: service[0] \"a\".backends[0].prt: is not a known key; did you mean `port`?",
            "13: service[0] \"a\".backends[0].prt: is the text \"x\", not a number; write a number from 0 to 65535",
        ]
    );
}

#[test]
fn wrong_brackets_are_explained() {
    assert_eq!(
        faults_with("[node]\nname = \"n\"\naddresses = []\n"),
        ["4: node: is a table, not a list of tables; write the header in double brackets: [[node]]"]
    );
    assert_eq!(
        faults_with("[[limits]]\nnodes = 5\n"),
        ["4: limits: is a list, not a table; write the header in single brackets: [limits]"]
    );
    assert_eq!(
        faults_with("[[snat]]\naddress = \"192.0.2.9\"\nports = [1024]\n"),
        ["6: snat[0].ports: has 1 elements, not 2; write a list of 2 in brackets"]
    );
    assert_eq!(
        faults_with("[box]\nvip_ranges = \"192.0.2.0/24\"\n"),
        ["5: box.vip_ranges: is the text \"192.0.2.0/24\", not a list; write it in brackets: [\"192.0.2.0/24\"]"]
    );
}

#[test]
fn addresses_and_networks_are_mended_where_the_meaning_is_plain() {
    let one = |more: &str| faults_with(more).join("\n");
    assert!(one("[[snat]]\naddress = \"192.0.2.9/32\"\n").contains("write \"192.0.2.9\""));
    assert!(one("[[snat]]\naddress = \"[2001:db8::9]\"\n").contains("write \"2001:db8::9\""));
    assert!(one("[box]\nvip_ranges = [\"192.0.2.9\"]\n").contains("\"192.0.2.9/32\""));
    assert!(one("[box]\nvip_ranges = [\"2001:db8::9\"]\n").contains("\"2001:db8::9/128\""));
    assert!(one("[box]\nname = 7\n").contains("write it in quotes: \"7\""));
    assert!(one("[[snat]]\naddress = \"192.0.2.9\"\nshared = \"true\"\n").contains("write true without quotes"));
}

#[test]
fn numbers_too_large_for_anything_are_faults() {
    for number in ["99999999999999999999", "170141183460469231731687303715884105728", "0xffffffffffffffffffff", "1.5"] {
        let text = format!("{MINIMAL}[limits]\nnodes = {number}\n");
        assert_eq!(faults(&text).len(), 1, "{number}: {:?}", faults(&text));
    }
}

#[test]
fn syntax_errors_are_told_by_line_and_alone() {
    let found = faults("version = 1\n[[port]]\ninterface = eth0\ncolour = 1\n[limits\n");
    assert!(found[0].starts_with("3: is not TOML: "), "{found:?}");
    assert!(found.iter().any(|fault| fault.starts_with("5: is not TOML: ")), "{found:?}");
    assert!(!found.iter().any(|fault| fault.contains("colour")), "{found:?}");
    assert!(found.len() <= 20);
}

#[test]
fn a_key_given_twice_is_a_fault() {
    assert!(faults("version = 1\nversion = 1\n")[0].starts_with("2: is not TOML: "), "{:?}", faults("a=1\na=1"));
}

#[test]
fn nesting_without_end_does_not_overflow_the_stack() {
    let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(!faults(&deep).is_empty());
    let json = format!("{{\"node\": {}", "[".repeat(100_000));
    assert!(snapshot(json.as_bytes(), "k8s", &BoxContext::default()).is_err());
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("lb.toml");
    let message = load(&missing).expect_err("no such file").to_string();
    assert!(message.starts_with(&format!("{}: cannot be read: ", missing.display())), "{message}");
    let mut file = std::fs::File::create(&missing).expect("a file");
    file.write_all(b"version = 1\n# caf\xe9\n").expect("written");
    let message = load(&missing).expect_err("Latin-1").to_string();
    assert!(message.contains("lb.toml:2: is not UTF-8 text"), "{message}");
}

#[test]
fn lines_of_paths_and_of_what_is_not_written() {
    let text = "version = 1\n\n[[service]]\nname = \"a\"\n\n[[service]]\nname = \"b\"\nbackends = [\n  { port = 1 },\n  \
                { port = 2 },\n]\n[service.timeouts]\nudp = 3\n[box]\nname = \"x\"\n";
    let lines = Lines::of_text(text);
    for (path, line) in [
        ("version", 1),
        ("service[0]", 3),
        ("service[0] \"a\"", 3),
        ("service[0] \"a\".vip", 3),
        ("service[1] \"b\".name", 7),
        ("service[1] \"b\".backends", 8),
        ("service[1] \"b\".backends[1].port", 10),
        ("service[1] \"b\".backends[1].node", 10),
        ("service[1] \"b\".timeouts.udp", 13),
        ("service[1] \"odd \\\"]. \\\\\".name", 7),
        ("box.name", 15),
        ("box.run_dir", 14),
        ("limits.nodes", 1),
        ("", 1),
    ] {
        assert_eq!(lines.line(path), line, "{path}");
    }
}

#[test]
fn snapshots_have_the_paths_of_the_file() {
    let json = br#"{"generation": 7, "services": [], "set": [{"name": "s", "backends": []}],
        "service": [
            {"name": "web", "vip": "127.0.0.1", "port": 80, "protocol": "tcp", "set": "t"},
            {"name": "dns", "vip": "192.0.2.1", "port": "53", "protocol": "udp", "set": "s", "target_port": null}
        ]}"#;
    let faults = snapshot(json, "cluster-a", &BoxContext::default()).expect_err("faulty").to_string();
    let expected = "cluster-a: service[1] \"dns\".port: is the text \"53\", not a number; write 53 without quotes\n\
        cluster-a: services: is not a known key; did you mean `service`?\n\
        cluster-a: service[0] \"web\".vip: 127.0.0.1 is a loopback address; choose an address nothing else uses\n\
        cluster-a: service[0] \"web\".set: no set is named \"t\"; add a [[set]] with name = \"t\"\n\
        cluster-a: service[0] \"web\".mode: mode \"nat\" needs an IPv4 SNAT address, and the box has none (1 more \
        services need it too); add a [[snat]] table with an IPv4 address to the box's file";
    assert_eq!(faults, expected);
}

#[test]
fn a_snapshot_that_is_no_json_or_gives_a_key_twice_is_refused() {
    let refuse = |json: &[u8]| snapshot(json, "k", &BoxContext::default()).expect_err("refused").to_string();
    assert!(refuse(b"{").starts_with("k: is not JSON: "), "{}", refuse(b"{"));
    assert!(refuse(b"[1]").contains("is a list, not a table"), "{}", refuse(b"[1]"));
    assert!(refuse(br#"{"generation":1,"generation":2}"#).contains("duplicate field"));
}

#[test]
fn health_is_read_the_same_way() {
    health(br#"{"backends":[{"address":"10.0.0.1","state":"down","reason":"refused"}]}"#).expect("good");
    let faults = health(br#"{"backends":[{"address":"10.0.0.1","port":0,"state":"up"}]}"#).expect_err("bad");
    assert_eq!(
        faults.to_string(),
        "health: backends[0].state: is \"up\", which is not known; choose one of \"active\", \"draining\", \
         \"down\"\nhealth: backends[0].port: is 0; name the port, or leave it out for every port"
    );
    let zero = health(br#"{"backends":[{"address":"10.0.0.1","port":0,"state":"down"}]}"#).expect_err("port 0");
    assert!(zero.to_string().contains("backends[0].port: is 0"));
}
