use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
use proptest::prelude::*;

use super::*;
use crate::io::mem::pair;

fn pool() -> FramePool {
    FramePool::new(PacketMemory::heap(128, 2048, 256))
}

/// Receives and transmits all there is.
fn loop_back<W: Write>(port: &mut PcapPort<W>, pool: &mut FramePool) {
    while !port.is_at_end() {
        let mut burst = Burst::new();
        port.rx_burst(pool, &mut burst);
        pool.assert_conserved(port.frames_held(), burst.len());
        port.tx_burst(pool, &mut burst);
        pool.assert_conserved(port.frames_held(), burst.len());
        port.service(pool);
    }
    pool.assert_conserved(0, 0);
}

#[test]
fn a_file_is_replayed_into_another() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.pcap"), dir.path().join("two.pcap"));
    let packets: Vec<Vec<u8>> = (14..200_u8).map(|len| vec![len; usize::from(len)]).collect();
    let mut capture = Capture::create(&one, u64::MAX).unwrap();
    packets.iter().for_each(|packet| capture.packet(packet));
    capture.finish().unwrap();

    let mut port = PcapPort::open(&one, Some(&two)).unwrap();
    loop_back(&mut port, &mut pool());
    port.into_capture().unwrap().finish().unwrap();
    assert_eq!(read(&two).unwrap(), packets);
}

#[test]
fn pcapng_is_read_too_without_its_padding() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.pcapng");
    let mut writer = PcapNgWriter::new(File::create(&path).unwrap()).unwrap();
    writer
        .write_pcapng_block(InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options: vec![] })
        .unwrap();
    let enhanced = EnhancedPacketBlock {
        interface_id: 0,
        timestamp: Duration::ZERO,
        original_len: 15,
        data: vec![1; 15].into(),
        options: vec![],
    };
    writer.write_pcapng_block(enhanced).unwrap();
    writer.write_pcapng_block(SimplePacketBlock { original_len: 17, data: vec![2; 17].into() }).unwrap();
    drop(writer);
    assert_eq!(read(&path).unwrap(), [vec![1; 15], vec![2; 17]]);
}

#[test]
fn faults_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcap");
    assert!(matches!(read(&path), Err(CaptureError::Io { .. })));
    std::fs::write(&path, b"not a capture file at all, but long enough for a header").unwrap();
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("x.pcap: packet 1:"), "{error}");
    let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
    drop(PcapWriter::with_header(File::create(&path).unwrap(), header).unwrap());
    assert!(matches!(read(&path), Err(CaptureError::NotEthernet { .. })));
}

#[test]
fn packets_larger_than_a_frame_are_replayed_and_captured_whole() {
    let packets: Vec<Vec<u8>> = [1793, 60, 9018].map(|len| (0..len).map(|at| at as u8).collect()).into();
    let mut port = PcapPort::new(packets.clone(), Some(Capture::new(Vec::new(), 100).unwrap()));
    loop_back(&mut port, &mut pool());
    let file = port.into_capture().unwrap().finish().unwrap();
    let mut captured = Vec::new();
    assert!(read_pcap(file.as_slice(), &mut captured).is_ok());
    assert!(captured == packets);
    // In more frames than a packet may have.
    let mut port = PcapPort::<Vec<u8>>::new(vec![vec![0; 40_000], vec![0; 60]], None);
    loop_back(&mut port, &mut pool());
    assert_eq!(port.stats().rx_dropped, 1);
}

#[test]
fn a_tee_captures_chains_whole() {
    let (port, peer) = pair(3);
    let mut port = Tee::new(port.chaining(100), Capture::new(Vec::new(), 100).unwrap());
    let mut pool = pool();
    let mut burst = Burst::new();
    let packet: Vec<u8> = (0..4000).map(|at| (at / 16) as u8).collect();
    peer.inject(&packet);
    port.rx_burst(&mut pool, &mut burst);
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
    port.service(&mut pool);
    pool.assert_conserved(0, 0);
    assert!(peer.take().unwrap() == packet);
    let mut captured = Vec::new();
    assert!(read_pcap(port.into_parts().1.finish().unwrap().as_slice(), &mut captured).is_ok());
    assert!(captured == [packet.clone(), packet]);
}

#[test]
fn a_tee_captures_what_passed_both_ways_and_no_more() {
    let (port, peer) = pair(3);
    let mut port = Tee::new(port, Capture::new(Vec::new(), 100).unwrap());
    let mut pool = pool();
    let mut burst = Burst::new();
    peer.inject(b"in");
    port.rx_burst(&mut pool, &mut burst);
    for name in ["a", "b", "c"] {
        burst.push(pool.take_with(name.as_bytes()).unwrap());
    }
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 3, "the ring holds three");
    assert_eq!(burst.len(), 1);
    pool.assert_conserved(port.frames_held(), burst.len());
    assert_eq!(peer.take_all(), [b"in".to_vec(), b"a".to_vec(), b"b".to_vec()]);
    let (_, capture) = port.into_parts();
    assert_eq!(capture.written(), 4);
    let mut reader = PcapReader::new(&*Box::leak(capture.finish().unwrap().into_boxed_slice())).unwrap();
    let captured: Vec<_> = std::iter::from_fn(|| reader.next_packet().map(|p| p.unwrap().data.into_owned())).collect();
    assert_eq!(captured, [b"in".to_vec(), b"in".to_vec(), b"a".to_vec(), b"b".to_vec()]);
}

#[test]
fn a_tee_stops_at_its_limit_and_on_a_full_disk() {
    let (port, peer) = pair(16);
    let mut port = Tee::new(port, Capture::new(Vec::new(), 2).unwrap());
    let mut pool = pool();
    let mut burst = Burst::new();
    (0..5).for_each(|n| assert!(peer.inject(&[n])));
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 5);
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 5);
    assert_eq!(port.into_parts().1.written(), 2);

    /// Room for the file's header.
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (port, peer) = pair(16);
    let mut port = Tee::new(port, Capture::new(Full(30), u64::MAX).unwrap());
    peer.inject(&[1; 60]);
    assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
    assert_eq!(port.tx_burst(&mut pool, &mut burst), 1, "packets pass all the same");
    assert!(port.capture_mut().is_finished());
    assert!(port.into_parts().1.finish().is_err());
}

proptest! {
    #[test]
    fn any_packets_survive_file_and_port(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1792), 0..200),
    ) {
        let mut pool = pool();
        let mut port = PcapPort::new(packets.clone(), Some(Capture::new(Vec::new(), u64::MAX).unwrap()));
        loop_back(&mut port, &mut pool);
        let file = port.into_capture().unwrap().finish().unwrap();
        let mut again = Vec::new();
        prop_assert!(read_pcap(file.as_slice(), &mut again).is_ok());
        prop_assert_eq!(again, packets);
    }
}
