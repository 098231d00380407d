//! The loader against a real kernel: attach, outlive the process, adopt, refuse, detach. Privileged.

mod steer_net;

use penstock_configs::file::XdpMode;
use penstock_dataplane::steer::{self, AttachMode, Changes, Decision, Interface, Steer, SteerError, Steering};
use steer_net::{Net, ok, privileged, run};

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
