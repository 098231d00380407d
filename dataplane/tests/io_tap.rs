//! The TAP back to the kernel, in a namespace without a name. Needs root; without it each test prints
//! why it was skipped.

#[allow(dead_code, reason = "shared with the AF_XDP tests, which use more of it")]
mod io_lab;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use io_lab::{Namespace, sh};
use penstock_dataplane::io::tap::{self, TapError, TapPort};
use penstock_dataplane::io::{Burst, FramePool, PacketMemory, Port};

const NAME: &str = "pio_tap0";

/// A TAP with the kernel's address 10.9.9.1 on it.
fn tap(queues: u16) -> (Vec<TapPort>, tap::TapDevice) {
    let opened = tap::open(NAME, queues, 1500).expect("a TAP");
    sh(&format!("ip addr add 10.9.9.1/24 dev {NAME}"));
    sh(&format!("ip neigh add 10.9.9.2 lladdr 02:00:00:00:09:02 dev {NAME}"));
    opened
}

fn pool() -> FramePool {
    FramePool::new(PacketMemory::heap(256, 2048, 256))
}

/// A UDP packet for 10.9.9.1 that came in by another interface, hence to another hardware address.
fn steered(payload: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 9, 2], [2, 0, 0, 0, 0, 77])
        .ipv4([10, 9, 9, 2], [10, 9, 9, 1], 64)
        .udp(4000, 53);
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).expect("in memory");
    packet
}

fn assert_whole_checksum(packet: &[u8]) {
    let packet = etherparse::SlicedPacket::from_ethernet(packet).expect("a packet");
    let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("UDP") };
    let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!("IPv4") };
    let whole = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).expect("short enough");
    assert_eq!(udp.checksum(), whole, "nobody completes a partial checksum after us");
}

#[test]
fn privileged_where_new_interfaces_have_no_ipv6_this_one_has() {
    let Some(here) = Namespace::new() else { return };
    here.run(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("this namespace's");
        let opened = tap(1);
        sh(&format!("ip route add 2001:db8::5/128 dev {NAME}"));
        drop(opened);
    });
}

#[test]
fn privileged_what_is_not_ours_reaches_the_kernel_and_its_answer_comes_back() {
    let Some(here) = Namespace::new() else { return };
    here.run(|| {
        let (mut ports, device) = tap(1);
        let mut port = ports.remove(0);
        assert_eq!(device.name, NAME);
        assert!(device.index > 0 && device.mac[0] & 1 == 0);
        let mut pool = pool();
        let server = UdpSocket::bind("10.9.9.1:53").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for number in 0..100_u32 {
            let mut burst = Burst::new();
            burst.push(pool.take_with(&steered(&number.to_be_bytes())).unwrap());
            assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
            pool.assert_conserved(port.frames_held(), burst.len());
            let mut request = [0; 8];
            let (len, from) = server.recv_from(&mut request).expect("the kernel took it for its own");
            assert_eq!(request[..len], number.to_be_bytes());
            server.send_to(b"answer", from).unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            while burst.is_empty() {
                assert!(Instant::now() < end, "no answer");
                port.rx_burst(&mut pool, &mut burst);
                // The kernel's own chatter.
                for index in (0..burst.len()).rev() {
                    if !pool.memory().bytes(&burst[index]).ends_with(b"answer") {
                        pool.give(burst.remove(index));
                    }
                }
                pool.assert_conserved(port.frames_held(), burst.len());
            }
            assert_whole_checksum(pool.memory().bytes(&burst[0]));
            burst.drain(..).for_each(|frame| pool.give(frame));
        }
        pool.assert_conserved(port.frames_held(), 0);
    });
}

#[test]
fn privileged_a_runt_is_counted_and_a_device_that_is_down_takes_nothing() {
    let Some(here) = Namespace::new() else { return };
    here.run(|| {
        let (mut ports, _) = tap(1);
        let mut port = ports.remove(0);
        let mut pool = pool();
        let mut burst = Burst::new();
        burst.push(pool.take_with(&[0; 13]).unwrap());
        burst.push(pool.take().unwrap());
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 2);
        assert_eq!(port.stats().tx_invalid, 2);
        sh(&format!("ip link set {NAME} down"));
        burst.push(pool.take_with(&steered(b"lost")).unwrap());
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 0);
        assert_eq!(burst.len(), 1, "the worker counts it");
        pool.assert_conserved(port.frames_held(), 1);
    });
}

#[test]
fn privileged_every_worker_writes_and_the_first_alone_receives() {
    let Some(here) = Namespace::new() else { return };
    here.run(|| {
        let (mut ports, _) = tap(3);
        let server = UdpSocket::bind("10.9.9.1:53").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut pool = pool();
        for (number, port) in (0_u8..).zip(&mut ports) {
            let mut burst = Burst::new();
            burst.push(pool.take_with(&steered(&[number])).unwrap());
            assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
            let mut request = [0; 8];
            assert_eq!(server.recv(&mut request).unwrap(), 1);
            assert_eq!(request[0], number);
        }
        // Whoever wrote a flow's last packet, the kernel's next ones come in order, by one queue.
        let sender = UdpSocket::bind("10.9.9.1:0").unwrap();
        let mut seen = Vec::new();
        for number in 0_u8..30 {
            sender.send_to(&[number], "10.9.9.2:53").unwrap();
            let mut burst = Burst::new();
            burst.push(pool.take_with(&steered(&[number])).unwrap());
            ports[usize::from(number) % 3].tx_burst(&mut pool, &mut burst);
            for (end, port) in ports.iter_mut().enumerate() {
                let mut burst = Burst::new();
                port.rx_burst(&mut pool, &mut burst);
                assert!(end == 0 || burst.is_empty(), "end {end} received");
                assert_eq!(port.poll_fd().is_some(), end == 0);
                let to_53 = |frame: &_| pool.memory().bytes(frame).get(36..38) == Some(&[0, 53]);
                seen.extend(burst.iter().filter(|frame| to_53(frame)).map(|frame| pool.memory().bytes(frame)[42]));
                burst.into_iter().for_each(|frame| pool.give(frame));
            }
        }
        assert_eq!(seen, (0..30).collect::<Vec<_>>());
        drop(ports);
        tap::open(NAME, 1, 1500).expect("the device went with its ports");
    });
}

#[test]
fn privileged_a_taken_name_is_refused_with_the_remedy() {
    let Some(here) = Namespace::new() else { return };
    here.run(|| {
        sh(&format!("ip link add {NAME} type veth peer name pio_other"));
        let error = tap::open(NAME, 1, 1500).err().unwrap();
        assert!(matches!(error, TapError::Taken { .. }), "{error}");
        assert!(error.to_string().contains("ip -d link show pio_tap0"), "{error}");
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
        let error = tap::open("pio_tap1", 1, 1500).err().unwrap();
        assert!(matches!(error, TapError::Permission { .. }), "{error}");
    });
}
