//! Packets larger than 1,792 bytes: in larger frames, and in several.

use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use penstock_dataplane::io::xsk::{UmemConfig, XskConfig, open_worker};
use penstock_dataplane::io::{Burst, Port};

use crate::io_lab::{self, Namespace, Redirect, Veth};
use crate::rig::{MEMORY, Rig, echo, send, spaces, want};

#[test]
fn privileged_frames_of_4096_bytes_take_larger_packets() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    for (space, name) in [(&here, "pio1"), (&peer, "pio1p")] {
        space.run(|| io_lab::sh(&format!("ip link set {name} mtu 3400")));
    }
    for (frame_size, fits) in [(2048, false), (4096, true)] {
        here.run(|| {
            let mut program = Redirect::attach(&veth.name, XdpMode::Driver, false);
            let opened = open_worker(&UmemConfig { frame_size, ..MEMORY }, &[want(&veth.name, 0)]).expect("open");
            program.set(0, opened.ports[0].fd());
            let mut rig = Rig { pool: opened.pool, ports: opened.ports, programs: vec![program] };
            rig.service();
            assert_eq!(client.send(&[9; 3000]).unwrap(), 3000);
            send(&client, 1);
            let end = Instant::now() + Duration::from_secs(10);
            let mut received = 0;
            while received < 1 + usize::from(fits) {
                received += rig.turn(0, 0, echo);
                assert!(Instant::now() < end, "{received} received, {:?}", rig.ports[0].stats());
            }
            assert_eq!(rig.ports[0].stats().rx_dropped, u64::from(!fits));
            rig.drain();
            let mut reply = [0; 4000];
            if fits {
                assert_eq!(client.recv(&mut reply).unwrap(), 3000);
            }
            assert_eq!(client.recv(&mut reply).unwrap(), 4);
        });
    }
}

/// Datagrams of every size up to a jumbo frame's, through ports whose frames hold 1,792 bytes: between a kernel and a
/// port, from one interface to another, and back.
fn jumbo(mode: XdpMode) {
    let Some([here, left, right]) = spaces() else { return };
    let (one, two) = (here.veth(&left, 1, 1), here.veth(&right, 2, 1));
    let mtu = |space: &Namespace, name: &str| space.run(|| io_lab::sh(&format!("ip link set {name} mtu 9000")));
    for (veth, far) in [(&one, &left), (&two, &right)] {
        mtu(&here, &veth.name);
        mtu(far, &format!("{}p", veth.name));
    }
    left.run(|| io_lab::sh("ip route add 10.9.2.0/24 via 10.9.1.1"));
    right.run(|| io_lab::sh("ip route add 10.9.1.0/24 via 10.9.2.1"));
    let (sender, receiver) = (one.client(&left, 6000), two.client(&right, 7));
    sender.connect("10.9.2.2:7").unwrap();
    receiver.connect("10.9.1.2:6000").unwrap();
    let pass_on = |rig: &mut Rig, from: usize, to: usize, veth: &Veth| {
        let end = Instant::now() + Duration::from_secs(10);
        let onwards = |packet: &mut [u8]| {
            packet[..6].copy_from_slice(&veth.peer_mac());
            packet[6..12].copy_from_slice(&veth.mac());
        };
        while rig.turn(from, to, onwards) == 0 {
            assert!(Instant::now() < end, "nothing came: {:?}", rig.ports[from].stats());
        }
    };
    here.run(|| {
        let config = XskConfig { scatter: true, ..XskConfig::default() };
        let mut rig = Rig::open_for(&[&one, &two], 1, mode, config);
        let mut reply = vec![0; 10_000];
        let mut chains = 0;
        // Headers are 42 bytes. Around the ends of frames, and steps between.
        let edges = (1..6).flat_map(|frames| frames * 1792 - 44..frames * 1792 - 40);
        for size in edges.chain((1..8972).step_by(331)).chain([8972]) {
            let sent: Vec<u8> = (0..size).map(|at| (at * 7 + at / 251) as u8).collect();
            chains += u64::from(42 + size > 1792);
            for (from, to, ends, veth) in [(0, 1, [&sender, &receiver], &two), (1, 0, [&receiver, &sender], &one)] {
                ends[0].send(&sent).unwrap();
                pass_on(&mut rig, from, to, veth);
                let len = ends[1].recv(&mut reply).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
                assert!(reply[..len] == sent, "{size} bytes became {len}, or others");
            }
        }
        rig.drain();
        for port in &rig.ports {
            let stats = port.stats();
            assert_eq!((stats.rx_chains, stats.rx_oversize, stats.rx_dropped, stats.tx_invalid), (chains, 0, 0, 0));
        }
    });
}

#[test]
fn privileged_jumbo_frames_in_several_frames() {
    jumbo(XdpMode::Driver);
}

#[test]
fn privileged_jumbo_frames_in_generic_mode() {
    jumbo(XdpMode::Skb);
}

/// A ring with room for some of a packet's frames takes none of them; and a burst of jumbo packets leaves whole.
#[test]
fn privileged_a_packet_is_sent_whole_or_not_at_all() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    peer.run(|| io_lab::sh("ip link set pio1p mtu 9000"));
    here.run(|| io_lab::sh("ip link set pio1 mtu 9000"));
    let sink = veth.client(&peer, 9);
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&sink, 8 << 20).unwrap();
    here.run(|| {
        let config = XskConfig { scatter: true, ..XskConfig::default() };
        let mut rig = Rig::open_for(&[&veth], 1, XdpMode::Driver, config);
        let mut number = 0_u32;
        let packet = |number: u32| {
            let builder = etherparse::PacketBuilder::ethernet2(veth.mac(), veth.peer_mac());
            let builder = builder.ipv4([10, 9, 1, 1], [10, 9, 1, 2], 64).udp(7, 9);
            let mut packet = Vec::new();
            builder
                .write(&mut packet, &[&number.to_be_bytes()[..], &[number as u8; 4996]].concat())
                .expect("in memory");
            packet
        };
        for _ in 0..5 {
            let first = number;
            let mut burst = Burst::new();
            // Three frames each: the ring of 256 takes 85 packets, and one slot is left.
            loop {
                while !burst.is_full() {
                    burst.push(rig.pool.take_packet(&packet(number)).expect("frames"));
                    number += 1;
                }
                let before = burst.len();
                let sent = rig.ports[0].tx_burst(&mut rig.pool, &mut burst);
                rig.assert_conserved(burst.len());
                assert_eq!(before - burst.len(), sent);
                if sent == 0 {
                    break;
                }
            }
            assert_eq!(rig.ports[0].held().1, 255);
            let left = burst.len() as u32;
            burst.drain(..).for_each(|frame| rig.pool.give(frame));
            let mut buffer = [0; 6000];
            for expected in first..number - left {
                rig.service();
                let len = sink.recv(&mut buffer).expect("a datagram");
                assert_eq!((len, &buffer[..4]), (5000, &expected.to_be_bytes()[..]));
                assert!(buffer[4..len].iter().all(|byte| *byte == expected as u8));
            }
            rig.drain();
        }
    });
}
