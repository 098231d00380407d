//! The loader against a real kernel: attach, outlive the process, adopt, refuse, detach. Privileged.

mod steer_net;

use penstock_configs::file::XdpMode;
use penstock_dataplane::steer::{self, AttachMode, Changes, Decision, Interface, Steer, SteerError, Steering};
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use steer_net::{Net, ok, privileged, run};

const VIP: &str = "198.18.77.10";
const HOST: &str = "198.18.77.1";

fn steering() -> Steering {
    Steering { vips: vec![("198.18.77.10".parse().unwrap(), true)], ..Steering::default() }
}

/// A TCP SYN on Ethernet; checksums are not the program's business.
fn syn(destination: [u8; 4]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([198, 18, 77, 2], destination, 64);
    let mut frame = Vec::new();
    builder.tcp(5555, 443, 1, 1000).syn().write(&mut frame, &[]).unwrap();
    frame
}

#[test]
fn privileged_the_kernel_accepts_both_programs_and_runs_them() {
    if !privileged("privileged_the_kernel_accepts_both_programs_and_runs_them") {
        return;
    }
    let net = Net::new("load");
    for frags in [false, true] {
        let options = steer::Options { frags };
        let mut steer = Steer::open_with(net.run_dir(), &[net.interface(XdpMode::Native)], options).unwrap();
        assert_eq!(steer.attached(0), Some(AttachMode::Native));
        steer.sync(&steering()).unwrap();
        assert_eq!(steer.test_run(0, &syn([198, 18, 77, 10]), 1).unwrap().0, Decision::Drop);
        assert_eq!(steer.test_run(0, &syn([198, 18, 77, 1]), 1).unwrap().0, Decision::Pass);
        steer.detach().unwrap();
    }
}

#[test]
fn privileged_another_interface_is_tried_and_left_as_it_was() {
    if !privileged("privileged_another_interface_is_tried_and_left_as_it_was") {
        return;
    }
    let net = Net::new("try");
    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    ok("ip link add veth0 type veth peer name veth1");
    ok("ip link add large0 mtu 9000 type veth peer name large1 mtu 9000");
    let wanted =
        [("veth0", XdpMode::Native), ("large0", XdpMode::Native), ("large0", XdpMode::Auto), ("none", XdpMode::Auto)];
    let outcome = wanted.map(|(name, mode)| steer.try_on(name, mode));
    let shown = ["veth0", "large0"].map(|name| ok(&format!("ip -d link show dev {name}")));
    assert!(matches!(outcome, [Ok(()), Err(SteerError::Attach { .. }), Ok(()), Err(_)]), "{outcome:?}");
    assert!(shown.iter().all(|shown| !shown.contains("prog/xdp")), "{shown:?}");
    steer.detach().unwrap();
}

/// The kernel owns the VIP too and the peer knows the way, so that a packet which gets past the program is answered.
fn let_the_kernel_answer(net: &Net) {
    ok(&format!("ip -n {} addr add {VIP}/32 dev lo", net.box_ns));
    let shown = ok(&format!("ip -n {} -o link show dev box0", net.box_ns));
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    ok(&format!("ip -n {} neigh replace {VIP} lladdr {mac} dev peer0", net.peer_ns));
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Refused,
    Silence,
}

/// Where an answer must come: more than a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where none may come.
const A_WHILE: Duration = Duration::from_millis(700);

/// A TCP connection to a port nobody listens on: the kernel's RST, or nothing at all.
fn connect(net: &Net, address: &str, limit: Duration) -> Answer {
    let target = SocketAddr::new(address.parse().unwrap(), 443);
    let error = net.inside_peer(|| TcpStream::connect_timeout(&target, limit)).expect_err("nobody listens");
    match error.kind() {
        ErrorKind::TimedOut => Answer::Silence,
        ErrorKind::ConnectionRefused => Answer::Refused,
        _ => panic!("{error}"),
    }
}

fn no_pins(run_dir: &Path) -> bool {
    !run_dir.join("bpf").exists()
}

#[test]
fn privileged_the_program_outlives_the_process_and_is_adopted() {
    if !privileged("privileged_the_program_outlives_the_process_and_is_adopted") {
        return;
    }
    let net = Net::new("live");
    let_the_kernel_answer(&net);
    assert_eq!(connect(&net, VIP, PATIENCE), Answer::Refused, "without the program the kernel answers");

    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    assert_eq!(steer.sync(&steering()).unwrap(), Changes { added: 1, changed: 0, removed: 0 });
    assert!(!steer.adopted(0));
    // As kill -9 does: every descriptor is closed, nothing is cleaned up.
    drop(steer);
    assert!(net.link().contains("prog/xdp"));
    assert_eq!(connect(&net, VIP, A_WHILE), Answer::Silence);
    assert_eq!(connect(&net, HOST, PATIENCE), Answer::Refused, "the kernel goes on with what is its own");

    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    assert!(steer.adopted(0) && steer.check(0).unwrap());
    // Before any sync: the maps are the ones the earlier process filled.
    assert_eq!(connect(&net, VIP, A_WHILE), Answer::Silence);
    assert_eq!(steer.sync(&steering()).unwrap(), Changes::default());
    assert!(steer.counters().unwrap().no_socket.vip >= 2, "{:?}", steer.counters());

    let moved = Steering { vips: vec![("198.18.77.11".parse().unwrap(), true)], ..Steering::default() };
    assert_eq!(steer.sync(&moved).unwrap(), Changes { added: 1, changed: 0, removed: 1 });
    assert_eq!(connect(&net, VIP, PATIENCE), Answer::Refused);
    steer.detach().unwrap();
    assert!(no_pins(net.run_dir()) && !net.link().contains("xdp"));
}

#[test]
fn privileged_detach_works_by_hand_with_and_without_a_process() {
    if !privileged("privileged_detach_works_by_hand_with_and_without_a_process") {
        return;
    }
    let net = Net::new("hand");
    assert!(steer::detach_all(net.run_dir()).unwrap().is_empty());
    for alive in [false, true] {
        let steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
        let held = alive.then_some(steer);
        assert!(net.link().contains("prog/xdp"));
        let removed = steer::detach_all(net.run_dir()).unwrap();
        assert!(removed[0].contains("box0") && removed.len() == 3, "{removed:?}");
        assert!(no_pins(net.run_dir()) && !net.link().contains("xdp"), "alive: {alive}");
        if let Some(mut steer) = held {
            assert!(!steer.check(0).unwrap());
        }
    }
}

#[test]
fn privileged_another_layout_is_replaced_once_the_new_maps_are_filled() {
    if !privileged("privileged_another_layout_is_replaced_once_the_new_maps_are_filled") {
        return;
    }
    let net = Net::new("layout");
    let_the_kernel_answer(&net);
    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    steer.sync(&steering()).unwrap();
    drop(steer);
    let bpf = net.run_dir().join("bpf");
    let mut layouts = fs::read_dir(&bpf).unwrap().map(|entry| entry.unwrap().path());
    let is_layout =
        |path: &std::path::PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('v'));
    fs::rename(layouts.find(is_layout).unwrap(), bpf.join("v999")).unwrap();

    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    assert!(steer.adopted(0) && steer.check(0).unwrap());
    assert_eq!(connect(&net, VIP, A_WHILE), Answer::Silence, "the old program runs until the new maps are filled");
    assert_eq!(steer.sync(&steering()).unwrap().added, 1);
    assert_eq!(connect(&net, VIP, A_WHILE), Answer::Silence);
    assert!(!bpf.join("v999").exists());
    assert!(steer.check(0).unwrap());
    let before = steer.counters().unwrap().no_socket.vip;
    assert!(before > 0, "the new program counts in the new maps");
    steer.detach().unwrap();
    assert!(no_pins(net.run_dir()) && !net.link().contains("xdp"));
}

#[test]
fn privileged_a_foreign_program_is_left_alone() {
    if !privileged("privileged_a_foreign_program_is_left_alone") {
        return;
    }
    let net = Net::new("foreign");
    let others = tempfile::tempdir().unwrap();
    for theirs in [XdpMode::Native, XdpMode::Generic] {
        let foreign = Steer::open(others.path(), &[net.interface(theirs)]).unwrap();
        for ours in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
            let error = Steer::open(net.run_dir(), &[net.interface(ours)]).err().expect("refused");
            let text = error.to_string();
            assert!(matches!(error, SteerError::Foreign { .. }), "{text}");
            assert!(
                text.contains("box0") && text.contains("`penstock_steer`") && text.contains("no pin here"),
                "{text}"
            );
        }
        assert!(net.link().contains("xdp"));
        assert!(no_pins(net.run_dir()), "a refusal leaves nothing");
        foreign.detach().unwrap();
    }
    Steer::open(net.run_dir(), &[net.interface(XdpMode::Auto)]).unwrap().detach().unwrap();
}

/// As where one process stops or detaches, and another starts at once.
#[test]
fn privileged_a_program_of_ours_on_its_way_out_is_waited_for() {
    if !privileged("privileged_a_program_of_ours_on_its_way_out_is_waited_for") {
        return;
    }
    let net = Net::new("leaving");
    let others = tempfile::tempdir().unwrap();
    let leaving = Steer::open(others.path(), &[net.interface(XdpMode::Native)]).unwrap();
    let detaching = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        leaving.detach().unwrap();
    });
    let steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    detaching.join().unwrap();
    assert!(net.link().contains("xdp"));
    steer.detach().unwrap();
}

#[test]
fn privileged_generic_mode_is_a_fallback_with_a_warning() {
    if !privileged("privileged_generic_mode_is_a_fallback_with_a_warning") {
        return;
    }
    let net = Net::new("generic");
    let_the_kernel_answer(&net);
    // Too large for one buffer, so the veth driver refuses a program without frags.
    ok(&format!("ip -n {} link set peer0 mtu 9000", net.peer_ns));
    let error = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).err().expect("refused");
    assert!(matches!(error, SteerError::Attach { mode: "native", .. }), "{error}");
    assert!(error.to_string().contains("MTU"), "{error}");

    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Auto)]).unwrap();
    assert_eq!(steer.attached(0), Some(AttachMode::Generic));
    assert!(steer.warnings().iter().any(|warning| warning.contains("generic mode")), "{:?}", steer.warnings());
    steer.sync(&steering()).unwrap();
    assert_eq!(connect(&net, VIP, A_WHILE), Answer::Silence);
    assert_eq!(connect(&net, HOST, PATIENCE), Answer::Refused);
    drop(steer);

    ok(&format!("ip -n {} link set peer0 mtu 1500", net.peer_ns));
    let steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    assert_eq!((steer.attached(0), steer.adopted(0)), (Some(AttachMode::Native), false), "another mode is wanted now");
    assert!(steer.warnings().is_empty());
    steer.detach().unwrap();
}

#[test]
fn privileged_an_interface_that_comes_back_is_attached_again() {
    if !privileged("privileged_an_interface_that_comes_back_is_attached_again") {
        return;
    }
    let net = Net::new("back");
    let mut steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native)]).unwrap();
    steer.sync(&steering()).unwrap();
    ok(&format!("ip -n {} link del box0", net.box_ns));
    assert!(!steer.check(0).unwrap());
    assert_eq!(steer.attached(0), None);
    let error = steer.attach_interface(0).unwrap_err();
    assert!(matches!(error, SteerError::MissingInterface { .. }), "{error}");

    net.add_veth();
    let_the_kernel_answer(&net);
    assert_eq!(connect(&net, VIP, PATIENCE), Answer::Refused);
    assert_eq!(steer.attach_interface(0).unwrap(), AttachMode::Native);
    assert!(steer.check(0).unwrap());
    assert_eq!(connect(&net, VIP, A_WHILE), Answer::Silence);
    // Again, where it runs: nothing to do.
    assert_eq!(steer.attach_interface(0).unwrap(), AttachMode::Native);
    assert_eq!(connect(&net, VIP, A_WHILE), Answer::Silence);
    steer.detach().unwrap();
    assert!(no_pins(net.run_dir()));
}

#[test]
fn privileged_an_interface_no_longer_configured_is_released() {
    if !privileged("privileged_an_interface_no_longer_configured_is_released") {
        return;
    }
    let net = Net::new("free");
    ok(&format!("ip -n {} link add box1 type veth peer name far1", net.box_ns));
    let second = Interface { name: "box1".into(), ifindex: 0, queues: 1, mode: XdpMode::Native };
    let steer = Steer::open(net.run_dir(), &[net.interface(XdpMode::Native), second.clone()]).unwrap();
    assert_eq!((steer.attached(0), steer.attached(1)), (Some(AttachMode::Native), Some(AttachMode::Native)));
    drop(steer);
    let steer = Steer::open(net.run_dir(), &[second]).unwrap();
    assert!(steer.adopted(0));
    assert!(!net.link().contains("xdp"));
    steer.detach().unwrap();
}

#[test]
fn privileged_a_mount_that_dies_with_the_process_is_warned_of() {
    if !privileged("privileged_a_mount_that_dies_with_the_process_is_warned_of") {
        return;
    }
    let run_dir = tempfile::tempdir().unwrap();
    let inside = run_dir.path().to_owned();
    // What `ip netns exec` does: a mount namespace of its own, cut off from init's. It ends with the thread.
    let warning = std::thread::spawn(move || {
        use rustix::mount::{MountPropagationFlags, mount_change};
        #[expect(deprecated, reason = "its unsafety is about file descriptors, which are not unshared here")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).unwrap();
        steer::prepare(&inside).unwrap()
    });
    let warning = warning.join().unwrap().expect("a warning");
    assert!(warning.contains("mount -t bpf bpf") && warning.contains("private"), "{warning}");
    assert!(steer::detach_all(run_dir.path()).unwrap().is_empty());

    assert_eq!(steer::prepare(run_dir.path()).unwrap(), None);
    let removed = steer::detach_all(run_dir.path()).unwrap();
    assert!(removed.iter().any(|line| line.contains("unmounted")) && no_pins(run_dir.path()), "{removed:?}");
}

#[test]
fn privileged_a_failed_start_takes_back_what_it_attached() {
    if !privileged("privileged_a_failed_start_takes_back_what_it_attached") {
        return;
    }
    let net = Net::new("undo");
    ok(&format!("ip -n {} link add box1 type veth peer name far1", net.box_ns));
    let second = Interface { name: "box1".into(), ifindex: 0, queues: 1, mode: XdpMode::Native };
    let others = tempfile::tempdir().unwrap();
    let foreign = Steer::open(others.path(), std::slice::from_ref(&second)).unwrap();
    let both = [net.interface(XdpMode::Native), second];
    let error = Steer::open(net.run_dir(), &both).err().expect("refused");
    assert!(matches!(&error, SteerError::Foreign { name, .. } if name == "box1"), "{error}");
    assert!(!net.link().contains("xdp") && no_pins(net.run_dir()));

    // What an earlier process left on the first interface stays.
    drop(Steer::open(net.run_dir(), &both[..1]).unwrap());
    Steer::open(net.run_dir(), &both).err().expect("refused");
    assert!(net.link().contains("xdp"));
    foreign.detach().unwrap();
}

#[test]
fn privileged_missing_rights_and_interfaces_are_named() {
    if !privileged("privileged_missing_rights_and_interfaces_are_named") {
        return;
    }
    let net = Net::new("rights");
    let missing = Interface { name: "box9".into(), ..net.interface(XdpMode::Auto) };
    let error = Steer::open(net.run_dir(), &[missing]).err().expect("refused");
    assert!(error.to_string().contains("`box9` does not exist"), "{error}");
    assert!(matches!(Steer::open(net.run_dir(), &[]).err(), Some(SteerError::NoInterface)));
    assert!(no_pins(net.run_dir()), "a refusal leaves nothing");

    let interface = net.interface(XdpMode::Auto);
    let run_dir = net.run_dir().to_owned();
    // Capabilities belong to the thread.
    let powerless = std::thread::spawn(move || {
        caps::clear(None, caps::CapSet::Effective).unwrap();
        Steer::open(&run_dir, &[interface]).err().expect("refused").to_string()
    });
    let text = powerless.join().unwrap();
    assert!(text.contains("CAP_BPF CAP_PERFMON CAP_NET_ADMIN") && text.contains("remedy"), "{text}");
    assert!(run(&format!("ip -n {} link show box0", net.box_ns)).status.success());
}
