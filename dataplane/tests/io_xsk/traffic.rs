//! Packets between a kernel and ports, on one interface, several of its queues, and across two.

use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use penstock_dataplane::io::xsk::{Want, XskConfig, open_worker};
use penstock_dataplane::io::{BURST, Burst, Port};

use crate::io_lab;
use crate::rig::{MEMORY, Rig, echo, send, spaces, udp_to_peer, want};

fn echoes_all(mode: XdpMode) {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, mode);
        let (total, window) = (3000_u32, 50);
        let mut received = 0;
        for start in (0..total).step_by(window) {
            let numbers = start..start + window as u32;
            numbers.clone().for_each(|n| send(&client, n));
            let end = Instant::now() + Duration::from_secs(10);
            while received < numbers.end as usize {
                received += rig.turn(0, 0, echo);
                assert!(Instant::now() < end, "{received} of {} arrived, {:?}", numbers.end, rig.ports[0].stats());
            }
            rig.drain();
            for number in numbers {
                let mut reply = [0; 8];
                assert_eq!(client.recv(&mut reply).expect("an echo"), 4);
                assert_eq!(reply[..4], number.to_be_bytes());
            }
        }
        let stats = rig.ports[0].stats();
        assert_eq!((stats.rx_dropped, stats.rx_ring_full, stats.tx_invalid), (0, 0, 0));
    });
}

#[test]
fn privileged_echo_between_a_kernel_sender_and_a_port() {
    echoes_all(XdpMode::Driver);
}

#[test]
fn privileged_echo_in_generic_mode() {
    echoes_all(XdpMode::Skb);
}

#[test]
fn privileged_a_frame_received_on_one_interface_leaves_on_another() {
    let Some([here, left, right]) = spaces() else { return };
    let (one, two) = (here.veth(&left, 1, 1), here.veth(&right, 2, 1));
    left.run(|| io_lab::sh("ip route add 10.9.2.0/24 via 10.9.1.1"));
    right.run(|| io_lab::sh("ip route add 10.9.1.0/24 via 10.9.2.1"));
    let (sender, receiver) = (one.client(&left, 6000), two.client(&right, 7));
    sender.connect("10.9.2.2:7").unwrap();
    receiver.connect("10.9.1.2:6000").unwrap();
    here.run(|| {
        let mut rig = Rig::open(&[&one, &two], 1, XdpMode::Driver);
        let mut forwarded = 0;
        for number in 0..500_u32 {
            sender.send(&number.to_be_bytes()).unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            while forwarded <= number as usize {
                assert!(Instant::now() < end, "packet {number} did not arrive");
                forwarded += rig.turn(0, 1, |packet| {
                    packet[..6].copy_from_slice(&two.peer_mac());
                    packet[6..12].copy_from_slice(&two.mac());
                });
            }
            let mut reply = [0; 8];
            assert_eq!(receiver.recv(&mut reply).expect("forwarded"), 4);
            assert_eq!(reply[..4], number.to_be_bytes());
        }
        rig.drain();
    });
}

#[test]
fn privileged_four_queues_of_one_interface() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 4);
    let clients: Vec<_> = (0..64).map(|n| veth.client(&peer, 7000 + n)).collect();
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 4, XdpMode::Driver);
        let mut per_queue = [0; 4];
        for round in 0..20_u32 {
            clients.iter().for_each(|client| send(client, round));
            let before: usize = per_queue.iter().sum();
            let end = Instant::now() + Duration::from_secs(10);
            while per_queue.iter().sum::<usize>() < before + clients.len() {
                assert!(Instant::now() < end, "round {round}: {per_queue:?}");
                for (queue, count) in per_queue.iter_mut().enumerate() {
                    *count += rig.turn(queue, queue, echo);
                }
            }
            rig.drain();
            for client in &clients {
                let mut reply = [0; 8];
                assert_eq!(client.recv(&mut reply).expect("an echo"), 4);
            }
        }
        assert!(per_queue.iter().filter(|&&count| count > 0).count() > 1, "one queue only: {per_queue:?}");
    });
}

#[test]
fn privileged_no_tail_of_a_burst_strands() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let sink = veth.client(&peer, 9);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        let mut number = 0_u32;
        for size in 1..=200 {
            let first = number;
            let mut left = size;
            while left > 0 {
                let mut burst = Burst::new();
                for _ in 0..left.min(BURST) {
                    burst.push(rig.pool.take_with(&udp_to_peer(&veth, number)).expect("a frame"));
                    number += 1;
                }
                left -= burst.len();
                while !burst.is_empty() {
                    rig.ports[0].tx_burst(&mut rig.pool, &mut burst);
                    rig.assert_conserved(burst.len());
                }
            }
            // What a worker does before it sleeps, and nothing more.
            let mut turns = 0;
            while rig.ports[0].tx_pending() {
                rig.service();
                turns += 1;
                assert!(turns < 50, "{size} frames still pending after {turns} turns");
            }
            for expected in first..number {
                let mut packet = [0; 8];
                let len = sink.recv(&mut packet).unwrap_or_else(|error| panic!("burst of {size}: {error}"));
                assert_eq!((len, &packet[..4]), (4, expected.to_be_bytes().as_slice()), "burst of {size}");
            }
            rig.drain();
        }
    });
}

#[test]
fn privileged_idle_turns_reap_every_completion() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        // More than the ring takes: the rest stays in the burst and goes later.
        for round in 0..10 {
            let mut burst = Burst::new();
            let mut sent = 0;
            while sent < 300 {
                // Ten, then whole bursts: the last does not fit as a whole.
                let size = if sent == 0 { 10 } else { BURST };
                while burst.len() < size {
                    burst.push(rig.pool.take_with(&udp_to_peer(&veth, round)).expect("a frame"));
                }
                let taken = rig.ports[0].tx_burst(&mut rig.pool, &mut burst);
                rig.assert_conserved(burst.len());
                if taken == 0 {
                    break;
                }
                sent += taken;
            }
            assert_eq!(sent, 256, "a ring full, and all-or-nothing handled");
            burst.drain(..).for_each(|frame| rig.pool.give(frame));
            assert_eq!(rig.ports[0].held().1, 256);
            rig.drain();
        }
    });
}

#[test]
fn privileged_busy_polling_still_echoes() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        rig.ports.clear();
        let mut program = rig.programs.pop().unwrap();
        drop(rig);
        let config = XskConfig { busy_poll_budget: 64, ..XskConfig::default() };
        let wants = [Want { config, ..want(&veth.name, 0) }];
        let opened = open_worker(&MEMORY, &wants).unwrap();
        assert!(opened.reports[0].busy_poll, "{}", opened.reports[0]);
        program.set(0, opened.ports[0].fd());
        let mut rig = Rig { pool: opened.pool, ports: opened.ports, programs: vec![program] };
        rig.service();
        for number in 0..100_u32 {
            client.send(&number.to_be_bytes()).unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            while rig.turn(0, 0, echo) == 0 {
                assert!(Instant::now() < end);
            }
            rig.drain();
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 4);
        }
    });
}

#[test]
fn privileged_a_sleeper_wakes_on_a_packet() {
    let Some([here, peer]) = spaces() else { return };
    let veth = here.veth(&peer, 1, 1);
    let client = veth.client(&peer, 5000);
    here.run(|| {
        let mut rig = Rig::open(&[&veth], 1, XdpMode::Driver);
        let slept = |rig: &Rig, limit: Duration| {
            let fd = rig.ports[0].poll_fd().expect("a descriptor");
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec::try_from(limit).unwrap();
            rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 0
        };
        assert!(slept(&rig, Duration::from_millis(20)), "nothing came, nothing is pending");
        for number in 0..20 {
            send(&client, number);
            assert!(!slept(&rig, Duration::from_secs(10)), "packet {number} woke nobody");
            assert_eq!(rig.turn(0, 0, echo), 1);
            rig.drain();
        }
    });
}
