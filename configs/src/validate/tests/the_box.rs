use super::{faults_of, host, one, one_of, one_on_host};

#[test]
fn version() {
    one(&[("version = 1", "version = 2")], &["version: is 2", "write version = 1"]);
}

#[test]
fn names_and_directories() {
    one(&[("\"lb1\"", "\"my box\"")], &["box.name: contains ' '", "use letters"]);
    one(&[("\"lb1\"", "\"\"")], &["box.name: is empty"]);
    let long = format!("{:?}", "x".repeat(64));
    one(&[("\"lb1\"", &long)], &["box.name: has 64 bytes", "at most 63"]);
    one(&[("name = \"lb1\"", "run_dir = \"run\"")], &["box.run_dir: \"run\" is not the absolute path"]);
    one(&[("name = \"lb1\"", "run_dir = \"/\"\nstate_dir = \"/x\"")], &["box."]);
    one(&[("name = \"lb1\"", "state_dir = \"/run/penstock/state\"")], &["box.state_dir: lies in run_dir"]);
}

#[test]
fn vip_ranges() {
    let range = |text: &str| format!("name = \"lb1\"\nvip_ranges = [\"198.51.100.0/24\", \"{text}\"]");
    one(&[("name = \"lb1\"", &range("203.0.113.5/24"))], &["box.vip_ranges[1]: 203.0.113.5/24", "\"203.0.113.0/24\""]);
    let swallow = |text: &str, what: &str| {
        let edits = [("name = \"lb1\"", range(text))];
        let edits: Vec<(&str, &str)> = edits.iter().map(|(from, to)| (*from, to.as_str())).collect();
        one_on_host(&edits, &["box.vip_ranges[1]:", what, "narrow"]);
    };
    swallow("192.0.2.2/31", "192.0.2.2, the box's own on eth0");
    swallow("192.0.2.0/31", "192.0.2.1, a gateway");
    swallow("192.0.2.96/29", "192.0.2.101, the address of node \"worker-1\"");
    swallow("2001:db8::/120", "2001:db8::2, the box's own");
    assert_eq!(faults_of(&[("name = \"lb1\"", &range("192.0.2.8/29"))], Some(&host())), Vec::<String>::new());
}

#[test]
fn access() {
    let with = |text: &str| format!("name = \"lb1\"\n{text}");
    for (text, wanted) in [
        ("deny = [\"192.0.2.0/24\", \"192.0.2.1/24\"]", "box.deny[1]: 192.0.2.1/24 has bits set beyond its prefix"),
        ("deny_file = \"deny.txt\"", "box.deny_file: \"deny.txt\" is not an absolute path"),
        ("new_per_vip = 59", "box.new_per_vip: is 59, less than the program can tell apart; write at least 60"),
    ] {
        one(&[("name = \"lb1\"", &with(text))], &[wanted]);
    }
    one(&[("[limits]", "[limits]\nlimited_sources = 0")], &["limits.limited_sources: is 0"]);
    let good = "deny = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nnew_per_vip = 60";
    assert_eq!(faults_of(&[("name = \"lb1\"", &with(good))], None), Vec::<String>::new());
}

#[test]
fn reply_probe() {
    let with = |list: &str| format!("name = \"lb1\"\nreply_probe = [{list}]");
    for (list, wanted) in [
        ("\"127.0.0.1\"", "box.reply_probe[0]: 127.0.0.1 is a loopback address"),
        ("\"198.51.100.1\", \"198.51.100.2\"", "box.reply_probe[1]: 198.51.100.2 is a second IPv4 address"),
        ("\"192.0.2.250\"", "snat[0].address: 192.0.2.250 is box.reply_probe"),
        ("\"192.0.2.101\"", "box.reply_probe[0]: 192.0.2.101 is the address of node \"worker-1\""),
        ("\"192.0.2.10\"", "service[0] \"web\".vip: 192.0.2.10 is box.reply_probe"),
    ] {
        one(&[("name = \"lb1\"", &with(list))], &[wanted]);
    }
    for list in ["", "\"198.51.100.1\"", "\"198.51.100.1\", \"2001:db8::9\""] {
        assert!(faults_of(&[("name = \"lb1\"", &with(list))], None).is_empty(), "{list}");
    }
}

#[test]
fn interfaces() {
    let port = |text: &'static str| [("[[port]]\ninterface = \"eth0\"", text)];
    one(&[("version = 1", "version = 1\nport = []"), port("")[0]], &["port: names no interface", "[[port]]"]);
    one(
        &port("[[port]]\ninterface = \"eth0\"\n[[port]]\ninterface = \"eth0\""),
        &["port[1].interface: \"eth0\" is port[0] too"],
    );
    one(&port("[[port]]\ninterface = \"a-name-far-too-long\""), &["port[0].interface: has 19 bytes"]);
    one(&port("[[port]]\ninterface = \"eth/0\""), &["port[0].interface: contains '/'"]);
    one_on_host(&port("[[port]]\ninterface = \"eht0\""), &["no interface \"eht0\"", "did you mean \"eth0\"?"]);
    one_on_host(&port("[[port]]\ninterface = \"wan\""), &["no interface \"wan\"", "use one of lo, eth0, eth1"]);
}

#[test]
fn queues() {
    let queues = |count: &'static str| [("\"eth0\"", count)];
    one(&queues("\"eth0\"\nqueues = 0"), &["port[0].queues: is 0"]);
    one_on_host(&queues("\"eth0\"\nqueues = 5"), &["port[0].queues: is 5", "eth0 has 4", "at most 4"]);
    assert!(faults_of(&queues("\"eth0\"\nqueues = 4"), Some(&host())).is_empty());
}

#[test]
fn mss_clamp() {
    let clamp = |text: &'static str| [("\"eth0\"", text)];
    one(&clamp("\"eth0\"\nmss_clamp = 535"), &["port[0].mss_clamp: is 535", "536 or more"]);
    one(&clamp("\"eth0\"\nmss_clamp = 8961"), &["port[0].mss_clamp: is 8961", "leave it out"]);
    assert!(faults_of(&clamp("\"eth0\"\nmss_clamp = 1360"), Some(&host())).is_empty());
}

#[test]
fn workers() {
    let workers = |text: &'static str| [("[workers]", text)];
    one(&workers("[workers]\ncount = 0"), &["workers.count: is 0"]);
    one_on_host(&workers("[workers]\ncount = 5"), &["workers.count: asks for 5 workers", "eth0 has 4 queues"]);
    // The port with the fewest queues decides.
    let two = [("\"eth0\"", "\"eth0\"\n[[port]]\ninterface = \"eth1\""), ("[workers]", "[workers]\ncount = 3")];
    one_on_host(&two, &["workers.count: asks for 3 workers", "eth1 has 2 queues", "at most 2"]);
    let configured = [("\"eth0\"", "\"eth0\"\nqueues = 1"), ("[workers]", "[workers]\ncount = 2")];
    one(&configured, &["workers.count", "eth0 has 1 queues"]);
    let mut small = host();
    small.cores = 2;
    one_of(
        &faults_of(&workers("[workers]\ncount = 3"), Some(&small)),
        &["workers.count: is 3, and the machine has 2 cores"],
    );
    assert!(faults_of(&workers("[workers]\ncount = 4"), Some(&host())).is_empty());
}

#[test]
fn cores() {
    let workers = |text: &'static str| [("[workers]", text)];
    one(&workers("[workers]\ncount = 2\ncores = [0, 1, 2]"), &["workers.cores: names 3 cores for 2 workers"]);
    one(&workers("[workers]\ncores = [3, 4, 3]"), &["workers.cores[2]: core 3 is cores[0] too"]);
    one_on_host(&workers("[workers]\ncores = [7, 8]"), &["workers.cores[1]: is 8", "8 cores", "use 0 to 7"]);
    one_on_host(&workers("[workers]\ncores = [1,2,3,4,5]"), &["workers.cores: asks for 5 workers", "4 queues"]);
    assert!(faults_of(&workers("[workers]\ncount = 2\ncores = [6, 7]"), Some(&host())).is_empty());
}

#[test]
fn memory() {
    let workers = |text: &'static str| [("[workers]", text)];
    one(&workers("[workers]\nframe_size = 3000"), &["workers.frame_size: is 3000", "2048 or 4096"]);
    for (size, near) in [("1000", "1024"), ("32", "64"), ("32768", "16384"), ("0", "64"), ("4294967295", "16384")] {
        let text = format!("[workers]\nring_size = {size}");
        one(&[("[workers]", &text)], &[&format!("workers.ring_size: is {size}"), &format!("write {near}")]);
    }
    one(&workers("[workers]\nframes = 4095"), &["workers.frames: is 4095", "at least 4096"]);
    assert!(faults_of(&workers("[workers]\nframes = 4096"), None).is_empty());
    let two = [("\"eth0\"", "\"eth0\"\n[[port]]\ninterface = \"eth1\""), ("[workers]", "[workers]\nframes = 8191")];
    one(&two, &["workers.frames: is 8191", "2 interface(s)", "at least 8192"]);
    one(&workers("[workers]\nframes = 4194305"), &["workers.frames: is 4194305", "at most 4194304"]);
}

#[test]
fn snat_addresses() {
    let snat = |text: &str| format!("address = \"{text}\"");
    let with = |text: &str, parts: &[&str]| one_on_host(&[("address = \"192.0.2.250\"", &snat(text))], parts);
    with("192.0.2.2", &["snat[0].address: 192.0.2.2 is the box's own address", "shared = true"]);
    with("192.0.2.1", &["snat[0].address: 192.0.2.1 is a gateway of the box"]);
    with("192.0.2.255", &["snat[0].address: 192.0.2.255 is the broadcast address of the subnet on eth0"]);
    with("192.0.2.0", &["snat[0].address: 192.0.2.0 is the network address"]);
    with("127.0.0.5", &["snat[0].address: 127.0.0.5 is a loopback address"]);
    with("192.0.2.251\"\nports = [1024, 2048]\n[[snat]]\naddress = \"192.0.2.251", &["snat[1].address", "snat[0] too"]);
}

#[test]
fn a_snat_address_is_nobody_elses() {
    let faults = faults_of(&[("192.0.2.250", "192.0.2.101")], None);
    let wanted = [
        "snat[0].address: 192.0.2.101 is the address of node \"worker-1\"",
        "node[0] \"worker-1\".addresses[0]: 192.0.2.101 is a SNAT address of the box",
    ];
    assert_eq!(faults.len(), 2, "{faults:#?}");
    for part in wanted {
        assert!(faults.iter().any(|fault| fault.starts_with(part)), "{part}: {faults:#?}");
    }
    one(&[("192.0.2.10\"", "192.0.2.250\"")], &["service[0] \"web\".vip: 192.0.2.250 is a SNAT address of the box"]);
}

#[test]
fn snat_ports() {
    let ports = |text: &'static str| [("\"192.0.2.250\"", text)];
    one(&ports("\"192.0.2.250\"\nports = [2000, 1999]"), &["snat[0].ports: [2000, 1999] runs backwards"]);
    one(&ports("\"192.0.2.250\"\nports = [1023, 2000]"), &["snat[0].ports: begins at 1023", "1024 or above"]);
    assert!(faults_of(&ports("\"192.0.2.250\"\nports = [1024, 1024]"), None).is_empty());
}

#[test]
fn shared_snat() {
    let shared = |text: &'static str| [("\"192.0.2.250\"", text)];
    let good = shared("\"192.0.2.2\"\nshared = true\nports = [61000, 65535]");
    assert_eq!(faults_of(&good, Some(&host())), Vec::<String>::new());
    one_on_host(
        &shared("\"192.0.2.249\"\nshared = true\nports = [61000, 65535]"),
        &["snat[0].address: 192.0.2.249 is shared, and not one of the box's"],
    );
    one_on_host(
        &shared("\"192.0.2.2\"\nshared = true\nports = [60999, 65535]"),
        &["snat[0].ports: [60999, 65535] overlaps 32768-60999", "ip_local_port_range", "ports = [6444, 29999]"],
    );
    // Without the machine the NodePort range still counts.
    one(
        &shared("\"192.0.2.2\"\nshared = true\nports = [32767, 40000]"),
        &["snat[0].ports:", "overlaps 30000-32767, the NodePort range", "[32768, 65535]"],
    );
}

#[test]
fn limits() {
    for key in ["flows_ipv4", "flows_ipv6", "embryonic", "services", "nodes", "maglev_size", "icmp_per_second"] {
        let text = format!("[limits]\n{key} = 0");
        one(&[("[limits]", &text)], &[&format!("limits.{key}: is 0")]);
    }
    let limit = |text: &'static str| [("[limits]", text)];
    one(&limit("[limits]\nservices = 1048577"), &["limits.services: is 1048577", "at most 1048576"]);
    one(&limit("[limits]\nnodes = 65536"), &["limits.nodes: is 65536", "at most 65535"]);
    one(&limit("[limits]\nmaglev_size = 5000012"), &["limits.maglev_size: is 5000012", "at most 5000011"]);
    one(&limit("[limits]\nmaglev_size = 1000"), &["limits.maglev_size: 1000 is not a prime", "write 1009"]);
    one(&limit("[limits]\nmaglev_size = 5000000"), &["limits.maglev_size", "write 5000011"]);
    assert!(faults_of(&limit("[limits]\nmaglev_size = 5000011"), None).is_empty());
    one(&limit("[limits]\nnodes = 1"), &["node: 2 nodes and backend addresses, and limits.nodes is 1", "raise"]);
    one(&limit("[limits]\nmaglev_size = 1009\nflows_ipv4 = 268435457"), &["limits.flows_ipv4", "at most 268435456"]);
}

#[test]
fn timeouts() {
    for key in ["tcp_syn", "tcp_established", "tcp_fin", "tcp_time_wait", "tcp_rst", "udp_one_way", "udp"] {
        let text = format!("[timeouts]\n{key} = 0");
        one(&[("[timeouts]", &text)], &[&format!("timeouts.{key}: is 0"), "at least 1"]);
    }
    one(&[("[timeouts]", "[timeouts]\nudp = 2592001")], &["timeouts.udp: is 2592001 seconds", "2592000"]);
}
